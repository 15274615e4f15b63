/*
 * flushes.S - which translations end when: INVLPG, INVPCID, PCIDs, and changes of control registers
 *
 * Two addresses per case, one mapped global, whose entries are changed behind the TLB's back. After
 * what invalidates, the new frame must be seen; before, either one may be (the manual lets an
 * entry go at any time), but nothing else. Rights follow CR0.WP, CR4.SMEP, SMAP and EFLAGS.AC
 * without any invalidation.
 *
 * Spec: Intel SDM vol. 3, 4.10.2 to 4.10.4; vol. 2, INVLPG, INVPCID; AMD64 APM vol. 2, 5.5.
 */
#include "guest.h"

#define TEST 0x10000000000         /* PML4 entry 2 */
#define PLAIN 0                    /* page 0, and page 1 is global */
#define GLOBAL 0x1000
#define FRAME_OLD SCRATCH
#define FRAME_NEW (SCRATCH + 0x1000)
#define OLD 0x0aaa
#define NEW 0x0bbb

#define CR4_PSE 0x10
#define CR4_PGE 0x80
#define CR4_PCIDE 0x20000
#define CR4_SMEP 0x100000
#define CR4_SMAP 0x200000
#define NO_FLUSH 63

    .text
    .code64
    .globl main64
main64:
    movq $test_pdpt + 7, pml4 + 2 * 8
    movq $test_pd + 7, test_pdpt
    movq $test_pt + 7, test_pd
    movl $OLD, FRAME_OLD
    movl $NEW, FRAME_NEW
    movb $0xc3, FRAME_OLD + 0x800
    mov $7, %eax
    xor %ecx, %ecx
    cpuid
    mov %ebx, features7
    mov $1, %eax
    cpuid
    mov %ecx, features1
    mov %cr4, %rax
    or $CR4_PGE, %rax
    mov %rax, %cr4
    movabs $TEST, %rbx
    call by_address
    call by_cr3
    call by_cr4
    call by_cr0
    call rights
    call upper_entries
    call large_and_small
    call pcids
    call types
    ret

/* Both pages to the old frame, looked at so that they are cached, then changed in memory. */
go_stale:
    movq $FRAME_OLD + 3, test_pt
    movq $FRAME_OLD + 0x103, test_pt + 8
    invlpg PLAIN(%rbx)
    invlpg GLOBAL(%rbx)
    mov PLAIN(%rbx), %eax
    mov GLOBAL(%rbx), %eax
    movq $FRAME_NEW + 3, test_pt
    movq $FRAME_NEW + 0x103, test_pt + 8
    ret

/* Neither new nor old: the translation is a mixture. */
.macro check_either name, at
    mov \at(%rbx), %eax
    cmp $OLD, %eax
    jne 1f
    mov $NEW, %eax
1:  check64 "\name: old or new", %rax, $NEW
.endm

.macro check_new name, at
    mov \at(%rbx), %eax
    check64 "\name", %rax, $NEW
.endm

by_address:
    call go_stale
    check_either "stale, plain", PLAIN
    check_either "stale, global", GLOBAL
    invlpg PLAIN+0x7ff(%rbx)
    check_new "invlpg: plain", PLAIN
    check_either "invlpg of the neighbour", GLOBAL
    invlpg GLOBAL(%rbx)
    check_new "invlpg: global", GLOBAL
    /* INVLPG takes any address, and says nothing about it */
    movabs $0x4000000000000000, %rax
    nofault64 "invlpg of a non-canonical address", invlpg (%rax)
    movabs $0x0000300000000000, %rax
    nofault64 "invlpg of an address without tables", invlpg (%rax)
    ret

by_cr3:
    call go_stale
    mov %cr3, %rax
    mov %rax, %cr3
    check_new "mov to CR3: plain", PLAIN
    check_either "mov to CR3: global", GLOBAL
    invlpg GLOBAL(%rbx)
    check_new "invlpg afterwards: global", GLOBAL
    ret

/* Any change of PGE takes everything; the SDM names PGE, PCIDE, PAE, SMEP; AMD's APM also PSE. */
by_cr4:
    call go_stale
    mov %cr4, %rax
    xor $CR4_PGE, %rax
    mov %rax, %cr4
    check_new "PGE cleared: plain", PLAIN
    check_new "PGE cleared: global", GLOBAL
    call go_stale
    mov %cr4, %rax
    or $CR4_PGE, %rax
    mov %rax, %cr4
    check_new "PGE set: plain", PLAIN
    check_new "PGE set: global", GLOBAL
    call go_stale
    mov %cr4, %rax
    xor $CR4_PSE, %rax
    mov %rax, %cr4
    check_either "PSE changed: plain", PLAIN
    mov %cr4, %rax
    xor $CR4_PSE, %rax
    mov %rax, %cr4
    btl $7, features7
    jnc 1f
    call go_stale
    mov %cr4, %rax
    or $CR4_SMEP, %rax
    mov %rax, %cr4
    check_new "SMEP set: plain", PLAIN
    mov %cr4, %rax
    and $~CR4_SMEP, %rax
    mov %rax, %cr4
1:  ret

/* Leaving paging takes everything; CR0.WP and TS nothing, and they break nothing. */
by_cr0:
    call go_stale
    call leave_long
    .code32
    call enter_long
    .code64
    check_new "paging off and on: plain", PLAIN
    check_new "paging off and on: global", GLOBAL
    call go_stale
    mov %cr0, %rax
    xor $0x10000, %rax
    mov %rax, %cr0
    check_either "WP changed: plain", PLAIN
    mov %cr0, %rax
    xor $0x10000, %rax
    mov %rax, %cr0
    invlpg PLAIN(%rbx)
    invlpg GLOBAL(%rbx)
    ret

/* What is cached is the translation with its rights, not the answer: every change counts at once. */
rights:
    movq $FRAME_OLD + 1, test_pt        /* read-only */
    invlpg (%rbx)
    mov (%rbx), %eax
    mov %cr0, %rax
    and $~0x10000, %rax
    mov %rax, %cr0
    nofault64 "WP cleared: a write goes through", movl $OLD, (%rbx)
    mov %cr0, %rax
    or $0x10000, %rax
    mov %rax, %cr0
    fault64 "WP set: the write that went through faults", 14, 3, movl $OLD, (%rbx)
    nofault64 "WP set: the read does not", movl (%rbx), %eax
    movq $FRAME_OLD + 7, test_pt        /* open to ring 3 */
    invlpg (%rbx)
    mov (%rbx), %eax
    btl $20, features7
    jnc 2f
    mov %cr4, %rax
    or $CR4_SMAP, %rax
    mov %rax, %cr4
    fault64 "SMAP set: the read faults", 14, 1, movl (%rbx), %eax
    stac
    nofault64 "stac: it does not", movl (%rbx), %eax
    nofault64 "stac: a write", movl $OLD, (%rbx)
    clac
    fault64 "clac: the write faults", 14, 3, movl $OLD, (%rbx)
    pushf
    orl $0x40000, (%rsp)
    popf
    nofault64 "popf with AC", movl (%rbx), %eax
    clac
    /* accesses that are not the program's own: tables are read as supervisor, AC or not */
    stac
    mov %cr4, %rax
    and $~CR4_SMAP, %rax
    mov %rax, %cr4
    clac
    nofault64 "SMAP cleared", movl (%rbx), %eax
2:  btl $7, features7
    jnc 3f
    lea 0x800(%rbx), %rdx
    nofault64 "without SMEP: a fetch", call *%rdx
    mov %cr4, %rax
    or $CR4_SMEP, %rax
    mov %rax, %cr4
    try64 1f
    call *%rdx
1:  movq $0, try_resume
    check64 "SMEP set: the fetch faults", exc_vector, $14
    check64 "SMEP set: its error code", exc_error, $0x11
    mov %cr4, %rax
    and $~CR4_SMEP, %rax
    mov %rax, %cr4
    nofault64 "SMEP cleared: a fetch", call *%rdx
3:  /* EFER.NXE and the page's NX, with the invalidation that it takes */
    btsq $63, test_pt
    invlpg (%rbx)
    lea 0x800(%rbx), %rdx
    try64 1f
    call *%rdx
1:  movq $0, try_resume
    check64 "NX: the fetch faults", exc_error, $0x11
    btrq $63, test_pt
    invlpg (%rbx)
    nofault64 "without NX: it does not", call *%rdx
    /* a fault with a stale entry that is more restrictive is not one once it is invalidated */
    movq $FRAME_OLD + 3, test_pt
    nofault64 "read of an entry that was opened", movl (%rbx), %eax
    invlpg (%rbx)
    ret

/* INVLPG takes the entries of the upper levels that lead there, as well. */
upper_entries:
    movq $FRAME_OLD + 3, test_pt
    movq $FRAME_NEW + 3, other_pt
    invlpg (%rbx)
    mov (%rbx), %eax
    movq $other_pt + 7, test_pd
    check_either "another page table", PLAIN
    invlpg (%rbx)
    check_new "another page table, invlpg", PLAIN
    movq $test_pt + 7, test_pd
    invlpg (%rbx)
    mov (%rbx), %eax
    check64 "and back", %rax, $OLD
    /* another page of the same table: INVLPG of one is enough for all paging-structure entries */
    movq $FRAME_NEW + 3, other_pt + 2 * 8
    movq $FRAME_OLD + 3, test_pt + 2 * 8
    movq $other_pt + 7, test_pd
    invlpg (%rbx)
    mov 0x2000(%rbx), %eax
    check64 "a page not seen before, through the new table", %rax, $NEW
    movq $test_pt + 7, test_pd
    invlpg (%rbx)
    invlpg 0x2000(%rbx)
    ret

/* A large page becomes small ones and the other way round. */
large_and_small:
    movl $OLD, SCRATCH + 0x5000         /* page 5 of the large page */
    movq $FRAME_NEW + 3, test_pt + 5 * 8
    movq $SCRATCH + 0x83, test_pd
    invlpg (%rbx)
    mov 0x5000(%rbx), %eax
    check64 "large page", %rax, $OLD
    movq $test_pt + 7, test_pd
    invlpg (%rbx)                       /* an address of the same large page */
    mov 0x5000(%rbx), %eax
    check64 "large page split, one invlpg", %rax, $NEW
    movq $SCRATCH + 0x83, test_pd
    mov %cr3, %rax
    mov %rax, %cr3
    mov 0x5000(%rbx), %eax
    check64 "small pages joined, mov to CR3", %rax, $OLD
    /* global: only what takes global ones */
    movq $SCRATCH + 0x183, test_pd
    invlpg (%rbx)
    mov 0x5000(%rbx), %eax
    movq $test_pt + 7, test_pd
    mov %cr3, %rax
    mov %rax, %cr3
    invlpg 0x12000(%rbx)
    mov 0x5000(%rbx), %eax
    check64 "global large page, invlpg of any address in it", %rax, $NEW
    ret

/* ------------------------------------------------------------------ PCIDs */

#define SPACE_A (pml4 + 1)
#define SPACE_B (pml4 + 2)

/* One set of tables under two PCIDs: what is cached under one says nothing of the other. */
pcids:
    btl $17, features1
    jnc no_pcid
    mov %cr4, %rax
    or $CR4_PCIDE, %rax
    mov %rax, %cr4
    mov $SPACE_B, %eax
    mov %rax, %cr3
    mov (%rbx), %eax                    /* nothing of it counts */
    mov $SPACE_A, %eax
    mov %rax, %cr3
    call go_stale
    /* without bit 63: the PCID that is loaded loses its translations, global ones apart */
    mov $SPACE_A, %eax
    mov %rax, %cr3
    check_new "mov to CR3, same PCID: plain", PLAIN
    check_either "mov to CR3, same PCID: global", GLOBAL
    call go_stale
    mov $SPACE_A, %eax
    bts $NO_FLUSH, %rax
    mov %rax, %cr3
    check_either "no flush, same PCID", PLAIN
    /* a load of B without bit 63 leaves A alone, and takes B's */
    call go_stale
    mov $SPACE_B, %eax
    mov %rax, %cr3
    check_new "mov to CR3, other PCID: plain", PLAIN
    mov $SPACE_A, %eax
    bts $NO_FLUSH, %rax
    mov %rax, %cr3
    check_either "back without a flush", PLAIN
    mov $SPACE_A, %eax
    mov %rax, %cr3
    check_new "back with a flush", PLAIN
    /* INVLPG: this PCID's, and global ones whatever their PCID */
    mov $SPACE_B, %eax
    mov %rax, %cr3
    call go_stale
    mov $SPACE_A, %eax
    mov %rax, %cr3
    invlpg GLOBAL(%rbx)
    mov $SPACE_B, %eax
    bts $NO_FLUSH, %rax
    mov %rax, %cr3
    check_new "invlpg under another PCID: global", GLOBAL
    check_either "invlpg under another PCID: plain", PLAIN
    /* clearing PCIDE takes all of all PCIDs */
    mov $SPACE_A, %eax
    mov %rax, %cr3
    call go_stale
    mov $pml4, %eax
    mov %rax, %cr3
    mov %cr4, %rax
    and $~CR4_PCIDE, %rax
    mov %rax, %cr4
    check_new "PCIDE cleared: plain", PLAIN
    check_new "PCIDE cleared: global", GLOBAL
    mov %cr4, %rax
    or $CR4_PCIDE, %rax
    mov %rax, %cr4
    mov $SPACE_A, %eax
    bts $NO_FLUSH, %rax
    mov %rax, %cr3
    check_new "PCIDE set again, no flush: the old PCID has nothing left", PLAIN
    mov %cr3, %rax
    mov $SPACE_A, %ecx
    check64 "CR3 reads without bit 63", %rax, %rcx
    mov $pml4, %eax
    mov %rax, %cr3
    ret
no_pcid:
    say64 "no PCIDs"
    /* bit 63 of CR3 is reserved then */
    mov %cr3, %rax
    bts $NO_FLUSH, %rax
    fault64 "GP: CR3 bit 63 without PCIDE", 13, 0, mov %rax, %cr3
    ret

/* ------------------------------------------------------------------ INVPCID */

/* After: under PCID 1 and 2 the pages are cached with their old frames, and the tables say new. */
two_stale:
    movq $FRAME_OLD + 3, test_pt
    movq $FRAME_OLD + 0x103, test_pt + 8
    mov $SPACE_B, %eax
    mov %rax, %cr3
    invlpg GLOBAL(%rbx)
    mov PLAIN(%rbx), %eax
    mov GLOBAL(%rbx), %eax
    mov $SPACE_A, %eax
    mov %rax, %cr3
    mov PLAIN(%rbx), %eax
    mov GLOBAL(%rbx), %eax
    movq $FRAME_NEW + 3, test_pt
    movq $FRAME_NEW + 0x103, test_pt + 8
    ret

.macro to_space space
    mov $\space, %eax
    bts $NO_FLUSH, %rax
    mov %rax, %cr3
.endm

.macro invpcid_now type, pcid, address=$0
    movq $\pcid, descriptor
    mov \address, %rax
    mov %rax, descriptor + 8
    mov $\type, %ecx
    invpcid descriptor, %rcx
.endm

types:
    btl $10, features7
    jnc 9f
    btl $17, features1
    jnc 9f
    call two_stale
    invpcid_now 0, 1, %rbx
    check_new "invpcid 0: the address", PLAIN
    check_either "invpcid 0: another address", GLOBAL
    to_space SPACE_B
    check_either "invpcid 0: another PCID", PLAIN
    call two_stale
    invpcid_now 0, 2, %rbx
    check_either "invpcid 0 of another PCID: not this", PLAIN
    to_space SPACE_B
    check_new "invpcid 0 of another PCID: there", PLAIN
    call two_stale
    invpcid_now 1, 2
    check_either "invpcid 1 of another PCID: not this", PLAIN
    to_space SPACE_B
    check_new "invpcid 1: plain", PLAIN
    check_either "invpcid 1: global ones may stay", GLOBAL
    call two_stale
    invpcid_now 2, 0
    check_new "invpcid 2: plain", PLAIN
    check_new "invpcid 2: global", GLOBAL
    to_space SPACE_B
    check_new "invpcid 2: another PCID", PLAIN
    call two_stale
    invpcid_now 3, 0
    check_new "invpcid 3: plain", PLAIN
    check_either "invpcid 3: global ones may stay", GLOBAL
    to_space SPACE_B
    check_new "invpcid 3: another PCID", PLAIN
    /* types 2 and 3 ignore the descriptor; 0 and 1 check it */
    movabs $0x4000000000000000, %rdx
    movabs $0xfffffffffffff000, %rax
    mov %rax, descriptor
    mov %rdx, descriptor + 8
    mov $4, %ecx
    fault64 "GP: invpcid 4", 13, 0, invpcid descriptor, %rcx
    mov $1, %ecx
    shl $32, %rcx
    fault64 "GP: invpcid, type above 32 bits", 13, 0, invpcid descriptor, %rcx
    mov $1, %ecx
    fault64 "GP: invpcid 1, reserved bits", 13, 0, invpcid descriptor, %rcx
    movq $1, descriptor
    nofault64 "invpcid 1: no look at the address", invpcid descriptor, %rcx
    xor %ecx, %ecx
    fault64 "GP: invpcid 0, non-canonical address", 13, 0, invpcid descriptor, %rcx
    /* the descriptor is an operand like others */
    movq $0, test_pt + 3 * 8
    invlpg 0x3000(%rbx)
    mov $2, %ecx
    fault64 "PF: the descriptor's page is not there", 14, 0, invpcid 0x3000(%rbx), %rcx
    user_fault64 "GP: user invpcid", 13, 0, invpcid descriptor, %rcx
    fault64 "UD: invpcid of registers", 6, 0, .byte 0x66, 0x0f, 0x38, 0x82, 0xc0
    /* without PCIDE, PCID 0 is the only one */
    mov $pml4, %eax
    mov %rax, %cr3
    mov %cr4, %rax
    and $~CR4_PCIDE, %rax
    mov %rax, %cr4
    movq $1, descriptor
    movq $0, descriptor + 8
    mov $1, %ecx
    fault64 "GP: invpcid 1, PCID 1 without PCIDE", 13, 0, invpcid descriptor, %rcx
    xor %ecx, %ecx
    fault64 "GP: invpcid 0, PCID 1 without PCIDE", 13, 0, invpcid descriptor, %rcx
    call go_stale
    movq $0, descriptor
    mov %rbx, descriptor + 8
    nofault64 "invpcid 0 without PCIDE", invpcid descriptor, %rcx
    check_new "invpcid 0 without PCIDE: it is gone", PLAIN
    ret
9:  say64 "no INVPCID"
    mov %cr4, %rax
    and $~CR4_PCIDE, %rax
    mov $pml4, %ecx
    mov %rcx, %cr3
    mov %rax, %cr4
    ret

    .data
    .balign 16
descriptor: .quad 0, 0
features1: .long 0
features7: .long 0

    .bss
    .balign 4096
test_pdpt: .skip 4096
test_pd: .skip 4096
test_pt: .skip 4096
other_pt: .skip 4096
