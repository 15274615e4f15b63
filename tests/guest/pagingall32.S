/*
 * pagingall32.S - 32-bit and PAE paging, enumerated: every combination of an entry's bits
 *
 * For both formats, under every combination of CR0.WP, EFER.NXE (PAE) or CR4.PSE (32-bit),
 * CR4.SMEP, CR4.SMAP and RFLAGS.AC, with a read, a write and a fetch from ring 0 and ring 3:
 *   bits   P, W, U, A, D, PS, G, NX and a reserved bit of the PDE, and of the PTE, all 512
 *   rights P, W, U, NX and PS of PDE and PTE together, all 1024
 *   single each bit of the entry inverted, for a table and a large page
 * `expect` works as in pagingall.S. Then the PDPTE registers of PAE, bit by bit, PSE-36, and
 * what CR4.PSE and CR4.PAE change.
 *
 * Spec: Intel SDM vol. 3, 4.3 (tables 4-4 to 4-6), 4.4 (tables 4-8 to 4-11), 4.6, 4.7, 4.8.
 */
#include "guest.h"

#define FRAME (SCRATCH + 0x3000)
#define TEST 0x40003000                 /* a page table, or a page of 2 or 4 MiB, leads to FRAME */
#define WINDOW 0x80000000               /* low memory again, open to ring 3 */

#define BIT_P 1
#define BIT_W 2
#define BIT_U 4
#define BIT_A 0x20
#define BIT_D 0x40
#define BIT_PS 0x80
#define BIT_G 0x100

#define MODE_WP 1
#define MODE_NXE 2                      /* PAE */
#define MODE_PSE 2                      /* 32-bit */
#define MODE_SMEP 4
#define MODE_SMAP 8
#define MODE_AC 16
#define MODE_END 32

#define ACCESS_WRITE 1
#define ACCESS_FETCH 2
#define ACCESS_USER 4

#define NO_FAULT 0xffff
#define WRONG_ADDRESS 0xfffe
#define WRONG_ENTRIES 0xfffd

#define CR4_PSE 0x10
#define CR4_PAE 0x20
#define CR4_SMEP 0x100000
#define CR4_SMAP 0x200000

    .text
    .code32
    .globl main32
main32:
    movb $0xc3, FRAME                   /* RET, where fetches land */
    mov $7, %eax
    xor %ecx, %ecx
    cpuid
    mov %ebx, features7
    mov $1, %eax
    cpuid
    mov %edx, features1
    mov $0x80000001, %eax
    cpuid
    bt $20, %edx
    setc has_nx
    mov $0x80000008, %eax
    cpuid
    movzbl %al, %eax
    mov %eax, phys_bits
    call set_gates
    call set_legacy
    call sweep_all
    call pse36
    call pse_toggled
    call paging_off
    call set_pae
    call sweep_all
    call pointers
    call paging_off
    check32 "cases that went wrong", failures, $0
    mov cases, %eax
    cmp $200000, %eax
    setae %al
    movzbl %al, %eax
    check32 "cases were run", %eax, $1
    movl $gate_saved, %esi
    mov $idt32 + 14 * 8, %edi
    movsl
    movsl
    mov $idt32 + 6 * 8, %edi
    movsl
    movsl
    ret

/* Handlers of their own for #PF and #UD, as the runtime's take long. */
set_gates:
    mov $SEL_USER_DATA, %eax            /* good in both rings; the runtime's handlers change them */
    mov %eax, %ds
    mov %eax, %es
    mov $gate_saved, %edi
    mov $idt32 + 14 * 8, %esi
    movsl
    movsl
    mov $idt32 + 6 * 8, %esi
    movsl
    movsl
    mov $on_page_fault, %eax
    mov $idt32 + 14 * 8, %edi
    call 1f
    mov $on_ud, %eax
    mov $idt32 + 6 * 8, %edi
1:  mov %ax, (%edi)
    shr $16, %eax
    mov %ax, 6(%edi)
    ret

plain_gates:
    mov $gate_saved, %esi
    mov $idt32 + 14 * 8, %edi
    movsl
    movsl
    mov $idt32 + 6 * 8, %edi
    movsl
    movsl
    ret

/* 32-bit paging: low memory by 4 KiB pages, so that CR4.PSE may change. */
set_legacy:
    movl $0, is_pae
    movl $low_table + 3, directory
    movl $window_table + 7, directory + (WINDOW >> 22) * 4
    xor %ecx, %ecx
    mov $3, %eax
1:  mov %eax, low_table(, %ecx, 4)
    lea 4(%eax), %edx
    mov %edx, window_table(, %ecx, 4)
    add $0x1000, %eax
    inc %ecx
    cmp $1024, %ecx
    jne 1b
    movl $directory + (TEST >> 22) * 4, entry_at
    movl $test_table + (TEST >> 12 & 1023) * 4, entry_at + 4
    movl $FRAME & ~0x3fffff, place_large
    /* bit 21, and address bits 39:32 in 20:13 as far as there are none */
    mov phys_bits, %ecx
    sub $32, %ecx
    btl $17, features1
    jc 1f
    xor %ecx, %ecx
1:  cmp $8, %ecx
    jbe 1f
    mov $8, %ecx
1:  mov $0x1fe000, %eax
    shl %cl, %eax
    and $0x1fe000, %eax
    or $0x200000, %eax
    mov %eax, large_low
    movl $0, high_mask
    mov $0xc0000080, %ecx               /* NXE means nothing here */
    cmpb $0, has_nx
    je 1f
    rdmsr
    or $0x800, %eax
    wrmsr
1:  mov $directory, %eax
    jmp paging_on

set_pae:
    movl $1, is_pae
    movl $pae_directory + 1, pae_pointers
    movl $pae_test_directory + 1, pae_pointers + 8
    movl $pae_window + 1, pae_pointers + 16
    xor %ecx, %ecx
    mov $0x83, %eax
1:  mov %eax, pae_directory(, %ecx, 8)
    lea 4(%eax), %edx
    mov %edx, pae_window(, %ecx, 8)
    add $0x200000, %eax
    inc %ecx
    cmp $512, %ecx
    jne 1b
    movl $pae_test_directory, entry_at
    movl $test_table + (TEST >> 12 & 511) * 8, entry_at + 4
    movl $FRAME & ~0x1fffff, place_large
    movl $0x1fe000, large_low
    movl $0x7ff00000, high_mask         /* 62:52, and address bits from MAXPHYADDR up */
    mov phys_bits, %ecx
    sub $32, %ecx
    mov $-1, %eax
    shl %cl, %eax
    and $0xfffff, %eax
    or %eax, high_mask
    mov %cr4, %eax
    or $CR4_PAE, %eax
    mov %eax, %cr4
    mov $pae_pointers, %eax
paging_on:
    mov %eax, %cr3
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    ret

paging_off:
    mov %cr0, %eax
    and $0x7fffffff, %eax
    or $0x10000, %eax
    mov %eax, %cr0
    mov %cr4, %eax
    and $~(CR4_PSE | CR4_PAE | CR4_SMEP | CR4_SMAP), %eax
    mov %eax, %cr4
    ret

/* Control registers for `mode`; carry if the processor lacks something of it. */
set_mode:
    testl $MODE_SMEP, mode
    jz 1f
    btl $7, features7
    jnc 9f
1:  testl $MODE_SMAP, mode
    jz 1f
    btl $20, features7
    jnc 9f
1:  cmpl $0, is_pae
    je 1f
    testl $MODE_NXE, mode
    jz 1f
    cmpb $0, has_nx
    je 9f
1:  mov %cr0, %eax
    and $~0x10000, %eax
    testl $MODE_WP, mode
    jz 1f
    or $0x10000, %eax
1:  mov %eax, %cr0
    mov %cr4, %eax
    and $~(CR4_SMEP | CR4_SMAP), %eax
    testl $MODE_SMEP, mode
    jz 1f
    or $CR4_SMEP, %eax
1:  testl $MODE_SMAP, mode
    jz 1f
    or $CR4_SMAP, %eax
1:  cmpl $0, is_pae
    jne 2f
    and $~CR4_PSE, %eax
    testl $MODE_PSE, mode
    jz 2f
    or $CR4_PSE, %eax
2:  mov %eax, %cr4
    cmpl $0, is_pae
    je 2f
    cmpb $0, has_nx
    je 2f
    mov $0xc0000080, %ecx
    rdmsr
    and $~0x800, %eax
    testl $MODE_NXE, mode
    jz 1f
    or $0x800, %eax
1:  wrmsr
2:  movl $2, access_flags
    testl $MODE_AC, mode
    jz 1f
    movl $0x40002, access_flags
1:  clc
    ret
9:  stc
    ret

/* ------------------------------------------------------------------ sweeps */

sweep_all:
    movl $0, mode
1:  call set_mode
    jc 2f
    call sweep_bits
    call sweep_rights
    call sweep_single
2:  incl mode
    cmpl $MODE_END, mode
    jne 1b
    movl $0, mode
    jmp set_mode

/* Is EAX, at level ECX, a page rather than a table? Flag Z says no. */
is_page:
    cmp $1, %ecx
    je 1f
    test $BIT_PS, %eax
    jz 2f
    cmpl $0, is_pae
    jne 1f
    testl $MODE_PSE, mode
    jz 2f
1:  or $1, %ecx                         /* not zero */
    mov level, %ecx
    ret
2:  xor %ecx, %ecx
    mov level, %ecx
    ret

/* EAX flags, EDX upper half: into entry `level` with the address that goes with them. */
place_entry:
    mov level, %ecx
    cmp $1, %ecx
    jne 1f
    or $FRAME, %eax
    jmp 3f
1:  call is_page
    jz 2f
    or place_large, %eax
    jmp 3f
2:  or $test_table, %eax
3:  mov level, %ecx
    mov %eax, entries(, %ecx, 8)
    mov %edx, entries + 4(, %ecx, 8)
    ret

plain_entries:
    movl $test_table + BIT_P + BIT_W + BIT_U, entries
    movl $0, entries + 4
    movl $FRAME + BIT_P + BIT_W + BIT_U, entries + 8
    movl $0, entries + 12
    ret

sweep_bits:
    movl $0, level
1:  xor %ebx, %ebx                      /* P W U A D PS G, NX, reserved */
2:  call plain_entries
    mov %ebx, %eax
    and $7, %eax
    mov %ebx, %edx
    and $0x78, %edx
    shl $2, %edx
    or %edx, %eax
    xor %edx, %edx
    cmpl $0, is_pae
    je 3f
    btl $7, %ebx
    jnc 4f
    bts $31, %edx
4:  btl $8, %ebx
    jnc 5f
    incl reserved_turn                  /* one of the reserved bits, each in turn */
4:  mov reserved_turn, %ecx
    and $31, %ecx
    bt %ecx, high_mask
    jc 4f
    incl reserved_turn
    jmp 4b
4:  bts %ecx, %edx
    jmp 5f
3:  test $0x80, %ebx                    /* nothing of the kind in 32-bit entries */
    jnz 6f
    btl $8, %ebx
    jnc 5f
    cmpl $0, level
    jne 6f
    test $BIT_PS, %eax
    jz 6f
    testl $MODE_PSE, mode
    jz 6f
    or $0x200000, %eax
5:  call place_entry
    movl $1, sweep
    call all_accesses
6:  inc %ebx
    cmp $512, %ebx
    jne 2b
    incl level
    cmpl $2, level
    jne 1b
    ret

/* P, W, U, NX of both levels, PS of the first. */
sweep_rights:
    xor %ebx, %ebx
1:  movl $1, level
    mov %ebx, %eax
    call 4f
    call place_entry
    movl $0, level
    mov %ebx, %eax
    shr $4, %eax
    call 4f
    btl $8, %ebx
    jnc 2f
    or $BIT_PS, %eax
    cmpl $0, is_pae
    jne 2f
    testl $MODE_PSE, mode               /* ignored: the table's address stays */
    jz 2f
2:  call place_entry
    movl $2, sweep
    call all_accesses
    inc %ebx
    cmp $512, %ebx
    jne 1b
    ret
4:  xor %edx, %edx
    btl $3, %eax
    jnc 5f
    cmpl $0, is_pae
    je 5f
    bts $31, %edx
5:  and $7, %eax
    ret

/* Each bit inverted that is no address, or a reserved one. */
sweep_single:
    movl $0, level
1:  xor %ebx, %ebx                      /* bit, and bit 6: large */
2:  mov $BIT_P | BIT_W | BIT_U, %eax
    xor %edx, %edx
    btl $6, %ebx
    jnc 3f
    or $BIT_PS, %eax
3:  call plain_entries
    call place_entry
    mov level, %ecx
    call is_page
    setnz %ah
    mov %ebx, %ecx
    and $63, %ecx
    cmp $7, %ecx
    je 7f
    cmp $12, %ecx
    jb 5f
    cmp $32, %ecx
    jae 4f
    cmpl $0, level                      /* reserved bits of large pages */
    jne 7f
    test %ah, %ah
    jz 7f
    bt %ecx, large_low
    jnc 7f
    jmp 5f
4:  cmpl $0, is_pae
    je 7f
    cmp $63, %ecx
    je 5f
    mov %ebx, %ecx
    and $31, %ecx
    bt %ecx, high_mask
    jnc 7f
5:  mov level, %edx
    lea entries(, %edx, 8), %edx
    mov %ebx, %ecx
    and $63, %ecx
    btcl %ecx, (%edx)
    movl $3, sweep
    call all_accesses
7:  inc %ebx
    cmp $128, %ebx
    jne 2b
    incl level
    cmpl $2, level
    jne 1b
    ret

/* ------------------------------------------------------------------ one case */

all_accesses:
    push %ebx
    movl $0, access
1:  mov access, %eax
    and $3, %eax
    cmp $3, %eax
    je 2f
    call expect
    call one_access
    call judge
2:  incl access
    cmpl $8, access
    jne 1b
    pop %ebx
    ret

/* What the manual says: `expected` = error code or NO_FAULT, `want` = the entries afterwards. */
expect:
    mov $entries, %esi
    mov $want, %edi
    mov $4, %ecx
    rep movsl
    mov access, %eax
    mov %eax, %edi                      /* EDI: error code; U/S is bit 2 in both */
    and $ACCESS_USER, %edi
    test $ACCESS_WRITE, %eax
    jz 1f
    or $2, %edi
1:  test $ACCESS_FETCH, %eax
    jz 2f
    testl $MODE_SMEP, mode
    jnz 1f
    cmpl $0, is_pae
    je 2f
    testl $MODE_NXE, mode
    jz 2f
1:  or $16, %edi
2:  mov $BIT_W | BIT_U, %ebx            /* AND of rights */
    xor %ebp, %ebp                      /* OR of NX */
    xor %ecx, %ecx
expect_level:
    mov entries(, %ecx, 8), %eax
    mov entries + 4(, %ecx, 8), %edx
    test $BIT_P, %al
    jz expect_fault
    xor %esi, %esi                      /* reserved bits of the lower half */
    mov level, %edx
    push %edx
    mov %ecx, level
    call is_page
    popl level
    setnz is_leaf
    jz 1f
    cmp $0, %ecx
    jne 1f
    mov large_low, %esi
1:  test %esi, %eax
    jnz expect_reserved
    mov entries + 4(, %ecx, 8), %edx
    test high_mask, %edx
    jnz expect_reserved
    btr $31, %edx
    jnc 2f
    testl $MODE_NXE, mode
    jz expect_reserved
    inc %ebp
2:  and %eax, %ebx
    inc %ecx
    cmpb $0, is_leaf
    je expect_level
    mov access, %eax
    test $ACCESS_USER, %eax
    jnz expect_user
    test $ACCESS_FETCH, %eax
    jnz expect_kernel_fetch
    test $BIT_U, %ebx
    jz 1f
    testl $MODE_SMAP, mode
    jz 1f
    testl $MODE_AC, mode
    jz expect_protection
1:  test $ACCESS_WRITE, %eax
    jz expect_passes
    test $BIT_W, %ebx
    jnz expect_passes
    testl $MODE_WP, mode
    jnz expect_protection
    jmp expect_passes
expect_kernel_fetch:
    test %ebp, %ebp
    jnz expect_protection
    test $BIT_U, %ebx
    jz expect_passes
    testl $MODE_SMEP, mode
    jnz expect_protection
    jmp expect_passes
expect_user:
    test $BIT_U, %ebx
    jz expect_protection
    test $ACCESS_FETCH, %eax
    jz 1f
    test %ebp, %ebp
    jnz expect_protection
1:  test $ACCESS_WRITE, %eax
    jz expect_passes
    test $BIT_W, %ebx
    jz expect_protection
expect_passes:
    mov $NO_FAULT, %edi
    xor %edx, %edx
1:  orl $BIT_A, want(, %edx, 8)
    inc %edx
    cmp %ecx, %edx
    jne 1b
    test $ACCESS_WRITE, %eax
    jz expect_fault
    orl $BIT_D, want - 8(, %ecx, 8)
    jmp expect_fault
expect_reserved:
    or $8, %edi
expect_protection:
    or $1, %edi
expect_fault:
    mov %edi, expected
    ret

/* Entry n (0, 1) to and from memory, as large as the format has it. */
.macro store_entry n
    mov entry_at + 4 * \n, %edx
    mov entries + 8 * \n, %eax
    mov %eax, (%edx)
    cmpl $0, is_pae
    je 1f
    mov entries + 8 * \n + 4, %eax
    mov %eax, 4(%edx)
1:
.endm
.macro load_entry n
    mov entry_at + 4 * \n, %edx
    mov (%edx), %eax
    mov %eax, now + 8 * \n
    xor %eax, %eax
    cmpl $0, is_pae
    je 1f
    mov 4(%edx), %eax
1:  mov %eax, now + 8 * \n + 4
.endm

/* Do it: `seen` = error code or NO_FAULT. */
one_access:
    store_entry 0
    store_entry 1
    mov $TEST, %esi
    invlpg (%esi)
    movl $NO_FAULT, seen
    mov %esp, access_esp
    xor %eax, %eax
    mov %eax, %cr2
    mov $0xc3, %al                      /* a write writes what is there */
    mov access, %ecx
    mov access_code(, %ecx, 4), %edx
    test $ACCESS_USER, %ecx
    jnz 1f
    pushl access_flags
    popf
    jmp *%edx
1:  or $WINDOW, %edx
    pushl $SEL_USER_DATA
    pushl $user_stack_end + WINDOW
    pushl access_flags
    pushl $SEL_USER_CODE32
    push %edx
    iretl

access_read:
    movzbl (%esi), %eax
    cmp $0xc3, %al
    je access_done
    movl $WRONG_ADDRESS, seen
    jmp access_done
access_write:
    mov %al, (%esi)
    jmp access_done
access_fetch:
    call *%esi
access_done:
    pushl $2
    popf
    ret
access_user_read:
    movzbl (%esi), %eax
    ud2
access_user_write:
    mov %al, (%esi)
    ud2
access_user_fetch:
    call *%esi
    ud2

on_page_fault:
    pop %eax
    and $0xffff, %eax
    mov %eax, seen
    mov %cr2, %edx
    cmp %esi, %edx
    jne 1f
    pop %edx
    and $~WINDOW, %edx
    cmp access_eip(, %ecx, 4), %edx
    je on_ud
1:  movl $WRONG_ADDRESS, seen
on_ud:
    mov access_esp, %esp
    pushl $2
    popf
    ret

judge:
    incl cases
    mov seen, %eax
    cmp expected, %eax
    jne judge_differs
    load_entry 0
    load_entry 1
    xor %ecx, %ecx
1:  mov now + 4(, %ecx, 8), %eax
    cmp want + 4(, %ecx, 8), %eax
    jne judge_entries
    mov now(, %ecx, 8), %eax
    mov want(, %ecx, 8), %edx
    cmp %edx, %eax
    je 2f
    cmpl $NO_FAULT, expected            /* with a fault, A may have been set on the way */
    je judge_entries
    or $BIT_A, %edx
    cmp %edx, %eax
    jne judge_entries
2:  inc %ecx
    cmp $2, %ecx
    jne 1b
    ret
judge_entries:
    movl $WRONG_ENTRIES, seen
judge_differs:
    incl failures
    cmpl $20, failures
    ja 1f
    say32 "PAE, mode, access (1 write, 2 fetch, 4 user), sweep, level; entries"
    mov is_pae, %eax
    call show
    mov mode, %eax
    call show
    mov access, %eax
    call show
    mov sweep, %eax
    call show
    mov level, %eax
    call show
    mov entries + 4, %eax
    call show
    mov entries, %eax
    call show
    mov entries + 12, %eax
    call show
    mov entries + 8, %eax
    call show
    mov $'\n', %al
    call put_char32
    check32 "error code", seen, expected
1:  ret

show:
    call put_hex32
    mov $' ', %al
    jmp put_char32

/* ------------------------------------------------------------------ formats and their switches */

/* A 4 MiB page above 4 GiB is not the one below. */
pse36:
    call plain_gates
    mov %cr4, %eax
    or $CR4_PSE, %eax
    mov %eax, %cr4
    btl $17, features1
    jnc 1f
    movl $(FRAME & ~0x3fffff) + 0x2083, directory + (TEST >> 22) * 4
    invlpg TEST
    nofault32 "PSE-36: a page above 4 GiB", movb $0x55, TEST
    movl $(FRAME & ~0x3fffff) + 0x83, directory + (TEST >> 22) * 4
    invlpg TEST
    movzbl TEST, %eax
    check32 "PSE-36: is not the one below", %eax, $0xc3
1:  ret

/* The same entry, with PSE and without: a page, or a table in the page's first 4 KiB. */
pse_toggled:
    movl $test_table + 7, directory + (TEST >> 22) * 4
    movl $FRAME + 7, test_table + (TEST >> 12 & 1023) * 4
    invlpg TEST
    movzbl TEST, %eax
    check32 "PSE set, PS clear: a table", %eax, $0xc3
    mov $SCRATCH, %eax                  /* as a table: entry 3 leads to FRAME */
    orl $0x87, %eax
    mov %eax, directory + (TEST >> 22) * 4
    invlpg TEST
    movzbl TEST, %eax
    check32 "PSE set, PS set: a page", %eax, $0xc3
    mov %cr4, %eax
    and $~CR4_PSE, %eax
    mov %eax, %cr4
    mov %cr3, %eax                      /* the SDM does not say that PSE flushes */
    mov %eax, %cr3
    fault32 "PSE clear: the same entry is a table", 14, 0, movb TEST, %al
    mov %cr4, %eax
    or $CR4_PSE, %eax
    mov %eax, %cr4
    mov %cr3, %eax
    mov %eax, %cr3
    movzbl TEST, %eax
    check32 "PSE set again: a page", %eax, $0xc3
    call set_gates
    ret

/* The four pointers: loaded, and checked, by MOV to CR3 and by whatever changes the format. */
pointers:
    call plain_gates
    movl $test_table + 7, pae_test_directory
    movl $0, pae_test_directory + 4
    movl $FRAME + 7, test_table + (TEST >> 12 & 511) * 8
    movl $0, test_table + (TEST >> 12 & 511) * 8 + 4
    xor %ebx, %ebx
    xor %ebp, %ebp                      /* wrong ones */
1:  cmp $12, %ebx                       /* address bits of tables that are there */
    jb 2f
    cmp $32, %ebx
    jb 7f
    lea -32(%ebx), %ecx
    bt %ecx, high_mask
    jc 2f
    cmp $31, %ecx
    jne 7f
2:  mov $pae_directory + 1, %eax        /* the pointer of the last GiB, which nobody needs */
    mov %eax, pae_pointers + 24
    movl $0, pae_pointers + 28
    mov $pae_pointers + 24, %edx
    btcl %ebx, (%edx)
    mov $13, %edi                       /* 2:1, 8:5 and the upper reserved ones */
    cmp $12, %ebx
    jae 3f
    mov $0x1e6, %ecx
    bt %ebx, %ecx
    jc 3f
    mov $NO_EXCEPTION, %edi
3:  mov $pae_pointers, %eax
    try32 4f
    mov %eax, %cr3
4:  movl $0, try_resume
    cmp %edi, exc_vector
    je 5f
    inc %ebp
    check32 "PDPTE: bit", %ebx, $0
    check32 "PDPTE: vector", exc_vector, %edi
5:  mov $pae_pointers + 24, %edx
    btcl %ebx, (%edx)
7:  inc %ebx
    cmp $64, %ebx
    jne 1b
    check32 "PDPTE: bits that went wrong", %ebp, $0
    /* reserved bits of one that is not present are nobody's business */
    movl $0x1e6, pae_pointers + 24
    nofault32 "PDPTE: not present, reserved bits", call reload
    fault32 "PDPTE: not present", 14, 0, movb 0xc0000000, %al
    /* a load of CR3 that faults changes neither CR3 nor the registers */
    movl $pae_test_directory + 3, pae_pointers + 8
    mov %cr3, %ebx
    mov $pae_pointers, %eax
    fault32 "PDPTE: GP", 13, 0, mov %eax, %cr3
    mov %cr3, %eax
    check32 "PDPTE: CR3 afterwards", %eax, %ebx
    movzbl TEST, %eax
    check32 "PDPTE: the old pointer counts", %eax, $0xc3
    /* toggling CR0.WP does not reload them, toggling PGE, PSE or SMEP does: faults here */
    mov %cr4, %eax
    xor $CR4_PSE, %eax
    fault32 "PDPTE: CR4.PSE reloads them", 13, 0, mov %eax, %cr4
    mov %cr4, %eax
    xor $0x80, %eax
    fault32 "PDPTE: CR4.PGE reloads them", 13, 0, mov %eax, %cr4
    movl $pae_test_directory + 1, pae_pointers + 8
    nofault32 "PDPTE: CR4.PGE, all well", mov %eax, %cr4
    xor $0x80, %eax
    mov %eax, %cr4
    movzbl TEST, %eax
    check32 "PDPTE: translated", %eax, $0xc3
    /* setting CR0.PG loads them: the fault leaves paging off */
    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    movl $pae_test_directory + 3, pae_pointers + 8
    or $0x80000000, %eax
    fault32 "PDPTE: setting CR0.PG", 13, 0, mov %eax, %cr0
    mov %cr0, %eax
    shr $31, %eax
    check32 "PDPTE: paging is off", %eax, $0
    movl $pae_test_directory + 1, pae_pointers + 8
    mov %cr0, %eax
    or $0x80000000, %eax
    nofault32 "PDPTE: paging is on again", mov %eax, %cr0
    ret

reload:
    mov %cr3, %eax
    mov %eax, %cr3
    ret

    .data
    .balign 8
access_code:
    .long access_read, access_write, access_fetch, 0
    .long access_user_read, access_user_write, access_user_fetch, 0
access_eip:
    .long access_read, access_write, TEST, 0
    .long access_user_read, access_user_write, TEST, 0
access_flags: .long 2
access_esp: .long 0
mode: .long 0
access: .long 0
sweep: .long 0
level: .long 0
is_pae: .long 0
expected: .long 0
seen: .long 0
cases: .long 0
failures: .long 0
features1: .long 0
features7: .long 0
phys_bits: .long 0
high_mask: .long 0
large_low: .long 0
place_large: .long 0
reserved_turn: .long 0
entry_at: .long 0, 0
has_nx: .byte 0
is_leaf: .byte 0
    .balign 8
gate_saved: .quad 0, 0
entries: .quad 0, 0
want: .quad 0, 0
now: .quad 0, 0

    .bss
    .balign 4096
directory: .skip 4096
low_table: .skip 4096
window_table: .skip 4096
test_table: .skip 4096
pae_pointers: .skip 4096
pae_directory: .skip 4096
pae_window: .skip 4096
pae_test_directory: .skip 4096
