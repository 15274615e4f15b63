/*
 * paging.S - 4-level paging: who may do what, error codes, CR2, accessed and dirty, invalidation
 *
 * Intel SDM vol. 3, "Paging". The permission matrix computes its own expectation from the rules
 * of "Access Rights"; a state that differs is reported as (state << 32 | vector << 16 | error).
 */
#include "guest.h"

#define TEST 0x10000000000         /* PML4 entry 2 */
#define FRAME0 SCRATCH
#define FRAME1 (SCRATCH + 0x1000)
#define FRAME2 (SCRATCH + 0x2000)

/* state of the matrix, in R12 */
#define STATE_P 1
#define STATE_W 2
#define STATE_U 4
#define STATE_NX 8
#define STATE_ACCESS_SHIFT 4       /* 3 bits: bit 0 write, bit 1 fetch, bit 2 user */
#define STATE_WP 0x80
#define STATE_SMEP 0x100
#define STATE_SMAP 0x200
#define STATE_AC 0x400
#define STATE_END 0x800

#define CR4_PGE 0x80
#define CR4_PCIDE 0x20000
#define CR4_SMEP 0x100000
#define CR4_SMAP 0x200000

    .text
    .code64
    .globl main64
main64:
    movq $test_pdpt + 7, pml4 + 2 * 8
    movq $test_pd + 7, test_pdpt
    movq $test_pt + 7, test_pd
    mov $7, %eax
    xor %ecx, %ecx
    cpuid
    mov %ebx, features7
    movb $0xc3, FRAME0                  /* RET */
    movb $0xc3, FRAME1
    call matrix
    call upper_levels
    call accessed_dirty
    call cr2_and_crossing
    call reserved_bits
    call invalidation
    call large_pages
    call global_pages
    call pcid
    ret

/* ------------------------------------------------------------------ permissions */

matrix:
    xor %r12d, %r12d
    xor %r15d, %r15d                    /* cases that went wrong */
matrix_next:
    mov %r12d, %eax                     /* a fetch is no write */
    shr $STATE_ACCESS_SHIFT, %eax
    and $3, %eax
    cmp $3, %eax
    je matrix_skip
    test $STATE_SMEP, %r12d
    jz 1f
    btl $7, features7
    jnc matrix_skip
1:  test $STATE_SMAP, %r12d
    jz 1f
    btl $20, features7
    jnc matrix_skip
1:  call matrix_expect                  /* R13: vector << 16 | error */
    call matrix_set
    movabs $TEST, %rbx
    mov $0xc3, %al
    mov %r12d, %ecx
    shr $STATE_ACCESS_SHIFT, %ecx
    and $7, %ecx
    try64 matrix_done
    btl $10, %r12d
    jnc 1f
    pushf
    orl $0x40000, (%rsp)
    popf
1:  orq $0x40000, user_rflags
    btl $10, %r12d
    jc 1f
    andq $~0x40000, user_rflags
1:  jmp *matrix_access(, %rcx, 8)

sup_read:
    mov (%rbx), %al
    ud2
sup_write:
    mov %al, (%rbx)
    ud2
sup_fetch:
    call *%rbx
    ud2
go_user:
    mov matrix_user(, %rcx, 8), %rdx
    mov %rdx, user_rip
    jmp enter_user64
user_read:
    mov (%rbx), %al
    ud2
user_write:
    mov %al, (%rbx)
    ud2
user_fetch:
    call *%rbx
    ud2

matrix_done:
    pushf
    andl $~0x40000, (%rsp)
    popf
    mov exc_vector, %rax
    shl $16, %rax
    or exc_error, %rax
    cmp %r13, %rax
    je matrix_skip
    mov %r12, %rdx
    shl $32, %rdx
    or %rdx, %rax
    or %r13, %rdx
    check64 "permission matrix: state, vector, error", %rax, %rdx
    inc %r15d
    cmp $20, %r15d
    je matrix_end
matrix_skip:
    inc %r12d
    cmp $STATE_END, %r12d
    jne matrix_next
matrix_end:
    movq $2, user_rflags
    check64 "permission matrix", %r15, $0
    /* back to plain settings */
    mov %cr4, %rax
    and $~(CR4_SMEP | CR4_SMAP), %rax
    mov %rax, %cr4
    mov %cr0, %rax
    or $0x10000, %rax
    mov %rax, %cr0
    ret

/* Page and control registers for state R12. */
matrix_set:
    mov %r12d, %eax
    and $7, %eax
    or $FRAME0, %eax
    btl $3, %r12d
    jnc 1f
    bts $63, %rax
1:  mov %rax, test_pt
    mov %cr0, %rax
    and $~0x10000, %rax
    test $STATE_WP, %r12d
    jz 1f
    or $0x10000, %rax
1:  mov %rax, %cr0
    mov %cr4, %rax
    and $~(CR4_SMEP | CR4_SMAP), %rax
    test $STATE_SMEP, %r12d
    jz 1f
    or $CR4_SMEP, %rax
1:  test $STATE_SMAP, %r12d
    jz 1f
    or $CR4_SMAP, %rax
1:  mov %rax, %cr4
    movabs $TEST, %rbx
    invlpg (%rbx)
    ret

/* What the manual says for state R12: R13 = vector << 16 | error. */
matrix_expect:
    mov %r12d, %edx
    shr $STATE_ACCESS_SHIFT, %edx       /* bit 0 write, bit 1 fetch, bit 2 user */
    mov $14 << 16, %r13d
    btl $0, %edx
    jnc 1f
    or $2, %r13d
1:  btl $2, %edx
    jnc 1f
    or $4, %r13d
1:  btl $1, %edx
    jnc 1f
    or $16, %r13d                       /* EFER.NXE is set */
1:  test $STATE_P, %r12d
    jz matrix_faults
    btl $2, %edx
    jnc expect_supervisor
    /* user */
    test $STATE_U, %r12d
    jz matrix_protection
    btl $0, %edx
    jnc 1f
    test $STATE_W, %r12d
    jz matrix_protection
1:  btl $1, %edx
    jnc matrix_passes
    test $STATE_NX, %r12d
    jnz matrix_protection
    jmp matrix_passes
expect_supervisor:
    btl $1, %edx
    jnc 1f
    test $STATE_NX, %r12d
    jnz matrix_protection
    test $STATE_U, %r12d
    jz matrix_passes
    test $STATE_SMEP, %r12d
    jnz matrix_protection
    jmp matrix_passes
1:  test $STATE_U, %r12d
    jz 1f
    test $STATE_SMAP, %r12d
    jz 1f
    test $STATE_AC, %r12d
    jz matrix_protection
1:  btl $0, %edx
    jnc matrix_passes
    test $STATE_W, %r12d
    jnz matrix_passes
    test $STATE_WP, %r12d
    jz matrix_passes
matrix_protection:
    or $1, %r13d
matrix_faults:
    ret
matrix_passes:
    mov $6 << 16, %r13d                 /* on to the UD2 */
    ret

/* Permissions of all levels count. */
upper_levels:
    movabs $TEST, %rbx
    movq $FRAME0 + 7, test_pt
    andq $~2, test_pd
    invlpg (%rbx)
    fault64 "write-protected by the PDE", 14, 3, movb %al, (%rbx)
    orq $2, test_pd
    andq $~2, test_pdpt
    invlpg (%rbx)
    fault64 "write-protected by the PDPTE", 14, 3, movb %al, (%rbx)
    orq $2, test_pdpt
    andq $~2, pml4 + 2 * 8
    invlpg (%rbx)
    fault64 "write-protected by the PML4E", 14, 3, movb %al, (%rbx)
    orq $2, pml4 + 2 * 8
    andq $~4, test_pd
    invlpg (%rbx)
    user_fault64 "kept from users by the PDE", 14, 5, movb (%rbx), %al
    orq $4, test_pd
    btsq $63, test_pdpt
    invlpg (%rbx)
    try64 1f
    call *%rbx
1:  movq $0, try_resume
    check64 "no-execute by the PDPTE", exc_error, $0x11
    btrq $63, test_pdpt
    btrq $0, test_pdpt
    invlpg (%rbx)
    fault64 "PDPTE not present", 14, 0, movb (%rbx), %al
    btsq $0, test_pdpt
    btrq $0, pml4 + 2 * 8
    invlpg (%rbx)
    fault64 "PML4E not present", 14, 2, movb %al, (%rbx)
    btsq $0, pml4 + 2 * 8
    invlpg (%rbx)
    nofault64 "and all is well again", movb %al, (%rbx)
    ret

/* ------------------------------------------------------------------ accessed and dirty */

#define CLEAN(entry) andq $~0x60, entry

accessed_dirty:
    movabs $TEST, %rbx
    CLEAN(test_pt)
    CLEAN(test_pd)
    CLEAN(test_pdpt)
    CLEAN(pml4 + 2 * 8)
    invlpg (%rbx)
    mov (%rbx), %al
    call leaf_bits
    check64 "a read sets A only", %rax, $0x20
    mov test_pd, %rax
    and $0x60, %eax
    check64 "A in the PDE", %rax, $0x20
    mov test_pdpt, %rax
    and $0x60, %eax
    check64 "A in the PDPTE", %rax, $0x20
    mov pml4 + 2 * 8, %rax
    and $0x60, %eax
    check64 "A in the PML4E", %rax, $0x20
    mov %al, (%rbx)
    call leaf_bits
    check64 "a write after the read sets D", %rax, $0x60
    CLEAN(test_pt)
    invlpg (%rbx)
    lock addb $0, (%rbx)
    call leaf_bits
    check64 "a locked write sets A and D at once", %rax, $0x60
    movb $0xc3, FRAME0
    CLEAN(test_pt)
    invlpg (%rbx)
    call *%rbx
    call leaf_bits
    check64 "a fetch sets A only", %rax, $0x20
    CLEAN(test_pt)
    andq $~2, test_pt
    invlpg (%rbx)
    fault64 "write to a clean, protected page", 14, 3, movb %al, (%rbx)
    call leaf_bits
    and $0x40, %eax
    check64 "a write that faults does not set D", %rax, $0
    orq $2, test_pt
    /* CMPXCHG that does not match writes all the same */
    CLEAN(test_pt)
    invlpg (%rbx)
    movl $1, FRAME0 + 8
    xor %eax, %eax
    lock cmpxchg %ecx, 8(%rbx)
    call leaf_bits
    check64 "cmpxchg that does not match sets D", %rax, $0x60
    /* the dirty page is written without its entry being touched: nothing to see, but it works */
    movl $0x12345678, 8(%rbx)
    mov FRAME0 + 8, %eax
    check64 "the write went to the frame", %rax, $0x12345678
    ret

leaf_bits:
    mov test_pt, %rax
    and $0x60, %eax
    ret

/* ------------------------------------------------------------------ CR2 */

cr2_and_crossing:
    movabs $TEST, %rbx
    movq $FRAME0 + 3, test_pt
    movq $0, test_pt + 8
    invlpg (%rbx)
    invlpg 0x1000(%rbx)
    fault64 "read of a page that is not there", 14, 0, movb 0x1234(%rbx), %al
    movabs $TEST + 0x1234, %rcx
    check64 "CR2 is the address", exc_cr2, %rcx
    movl $0x11111111, FRAME0 + 0xffc
    fault64 "write across to a page that is not there", 14, 2, movl %eax, 0xffe(%rbx)
    movabs $TEST + 0x1000, %rcx
    check64 "CR2 is the second page", exc_cr2, %rcx
    mov FRAME0 + 0xffc, %eax
    check64 "nothing was written to the first", %rax, $0x11111111
    movq $FRAME1 + 1, test_pt + 8       /* read-only */
    fault64 "write across to a read-only page", 14, 3, movl %eax, 0xffe(%rbx)
    movq $FRAME1 + 3, test_pt + 8
    invlpg 0x1000(%rbx)
    mov $0x44332211, %eax
    nofault64 "write across two frames", movl %eax, 0xffe(%rbx)
    movzwl FRAME0 + 0xffe, %eax
    check64 "low half", %rax, $0x2211
    movzwl FRAME1, %eax
    check64 "high half", %rax, $0x4433
    mov 0xffe(%rbx), %eax
    check64 "read across two frames", %rax, $0x44332211
    /* frames that are not neighbours */
    movq $FRAME2 + 3, test_pt + 8
    invlpg 0x1000(%rbx)
    movw $0x6655, FRAME2
    mov 0xffe(%rbx), %eax
    check64 "read across frames in any order", %rax, $0x66552211
    /* an instruction across pages */
    movb $0xb8, FRAME0 + 0xffd          /* mov $imm32, %eax; ret */
    movw $0x2211, FRAME0 + 0xffe
    movw $0x4433, FRAME2
    movb $0xc3, FRAME2 + 2
    lea 0xffd(%rbx), %rdx
    call *%rdx
    check64 "instruction across two frames", %rax, $0x44332211
    movq $0, test_pt + 8
    invlpg 0x1000(%rbx)
    try64 1f
    call *%rdx
1:  movq $0, try_resume
    check64 "fetch across to a page that is not there: vector", exc_vector, $14
    check64 "fetch across: error", exc_error, $0x10
    check64 "fetch across: RIP is the instruction's", exc_rip, %rdx
    movabs $TEST + 0x1000, %rcx
    check64 "fetch across: CR2 is the second page", exc_cr2, %rcx
    movb $0xc3, FRAME0
    ret

reserved_bits:
    movabs $TEST, %rbx
    movq $FRAME0 + 3, test_pt
    btsq $7, pml4 + 2 * 8
    invlpg (%rbx)
    fault64 "reserved bit 7 in the PML4E", 14, 9, movb (%rbx), %al
    btrq $7, pml4 + 2 * 8
    movq $0x1000083 + 0x2000, test_pd       /* bit 13 of a 2 MiB page */
    invlpg (%rbx)
    fault64 "reserved bit 13 in a 2 MiB PDE", 14, 0xb, movb %al, (%rbx)
    movq $test_pt + 7, test_pd
    mov $0xc0000080, %ecx
    rdmsr
    and $~0x800, %eax
    wrmsr
    btsq $63, test_pt
    invlpg (%rbx)
    fault64 "NX is reserved without EFER.NXE", 14, 9, movb (%rbx), %al
    mov $0xc0000080, %ecx
    rdmsr
    or $0x800, %eax
    wrmsr
    invlpg (%rbx)
    nofault64 "and fine with it", movb (%rbx), %al
    btrq $63, test_pt
    invlpg (%rbx)
    ret

/* ------------------------------------------------------------------ invalidation */

invalidation:
    movabs $TEST, %rbx
    movl $0xaaaa, FRAME0 + 16
    movl $0xbbbb, FRAME1 + 16
    movq $0, test_pt
    invlpg (%rbx)
    fault64 "not present", 14, 0, movl 16(%rbx), %eax
    movq $FRAME0 + 3, test_pt
    nofault64 "making a page present needs no invalidation", movl 16(%rbx), %eax
    check64 "its contents", %rax, $0xaaaa
    movq $FRAME1 + 3, test_pt
    invlpg (%rbx)
    mov 16(%rbx), %eax
    check64 "another frame after invlpg", %rax, $0xbbbb
    movq $FRAME0 + 3, test_pt
    invlpg 0xfff(%rbx)
    mov 16(%rbx), %eax
    check64 "invlpg of any address in the page", %rax, $0xaaaa
    movq $FRAME1 + 3, test_pt
    mov %cr3, %rax
    mov %rax, %cr3
    mov 16(%rbx), %eax
    check64 "another frame after mov to CR3", %rax, $0xbbbb
    movq $FRAME0 + 1, test_pt
    invlpg (%rbx)
    fault64 "read-only after invlpg", 14, 3, movl %eax, 16(%rbx)
    /* the same through a hypervisor-free alias: two addresses of one frame */
    movq $FRAME0 + 3, test_pt
    movq $FRAME0 + 3, test_pt + 8
    invlpg (%rbx)
    invlpg 0x1000(%rbx)
    movl $0xcccc, 16(%rbx)
    mov 0x1010(%rbx), %eax
    check64 "two addresses of one frame", %rax, $0xcccc
    ret

large_pages:
    movabs $TEST, %rbx
    movl $0xdddd, SCRATCH + 0x3010
    movq $SCRATCH + 0x83, test_pd       /* SCRATCH is a multiple of 2 MiB */
    invlpg (%rbx)
    mov 0x3010(%rbx), %eax
    check64 "2 MiB page", %rax, $0xdddd
    mov test_pd, %rax
    and $0x60, %eax
    check64 "2 MiB page: A", %rax, $0x20
    movl $0xeeee, 0x3010(%rbx)
    mov test_pd, %rax
    and $0x60, %eax
    check64 "2 MiB page: D", %rax, $0x60
    mov SCRATCH + 0x3010, %eax
    check64 "2 MiB page: the frame", %rax, $0xeeee
    movq $SCRATCH + 0x200000 + 0x83, test_pd
    invlpg 0x12345(%rbx)
    movl $0x7777, SCRATCH + 0x203010
    mov 0x3010(%rbx), %eax
    check64 "2 MiB page: one invlpg for all of it", %rax, $0x7777
    mov 0x5010(%rbx), %eax
    mov SCRATCH + 0x205010, %ecx
    check64 "2 MiB page: another part of it", %rax, %rcx
    movq $test_pt + 7, test_pd
    invlpg (%rbx)

    mov $0x80000001, %eax
    cpuid
    bt $26, %edx
    jnc 1f
    movabs $TEST, %rbx
    mov $0x83, %eax
    mov %rax, test_pdpt
    invlpg (%rbx)
    mov %rbx, %rcx
    or $SCRATCH + 0x203010, %rcx
    mov (%rcx), %eax
    check64 "1 GiB page", %rax, $0x7777
    movq $test_pd + 7, test_pdpt
    invlpg (%rbx)
1:  movq $FRAME0 + 3, test_pt
    invlpg (%rbx)
    mov 16(%rbx), %eax
    check64 "back to 4 KiB pages", %rax, $0xcccc
    ret

global_pages:
    movabs $TEST, %rbx
    mov %cr4, %rax
    or $CR4_PGE, %rax
    mov %rax, %cr4
    movq $FRAME0 + 0x103, test_pt
    invlpg (%rbx)
    mov 16(%rbx), %eax
    movq $FRAME1 + 0x103, test_pt
    invlpg (%rbx)
    mov 16(%rbx), %eax
    check64 "invlpg takes global pages as well", %rax, $0xbbbb
    movq $FRAME0 + 0x103, test_pt
    mov %cr4, %rax
    and $~CR4_PGE, %rax
    mov %rax, %cr4
    mov 16(%rbx), %eax
    check64 "clearing CR4.PGE takes them", %rax, $0xcccc
    ret

/* Two address spaces under two PCIDs, switched without invalidation. */
pcid:
    mov $1, %eax
    cpuid
    bt $17, %ecx
    jc 1f
    ret
1:  mov $pml4, %esi
    mov $alt_pml4, %edi
    mov $512, %ecx
    rep movsq
    movq $alt_pdpt + 7, alt_pml4 + 2 * 8
    movq $alt_pd + 7, alt_pdpt
    movq $alt_pt + 7, alt_pd
    movq $FRAME0 + 3, test_pt
    movq $FRAME1 + 3, alt_pt
    mov $pml4 + 1, %eax
    mov %rax, %cr3
    mov %cr4, %rax
    or $CR4_PCIDE, %rax
    fault64 "GP: set CR4.PCIDE with a PCID in CR3", 13, 0, mov %rax, %cr4
    mov $pml4, %ecx
    mov %rcx, %cr3
    nofault64 "set CR4.PCIDE", mov %rax, %cr4
    mov $pml4 + 1, %r8d
    mov %r8, %cr3
    mov $alt_pml4 + 2, %r9d
    mov %r9, %cr3
    bts $63, %r8
    bts $63, %r9
    movabs $TEST, %rbx
    mov $4, %r10d
    xor %r11d, %r11d
1:  mov %r8, %cr3
    mov 16(%rbx), %eax
    xor $0xcccc, %eax
    or %eax, %r11d
    mov %r9, %cr3
    mov 16(%rbx), %eax
    xor $0xbbbb, %eax
    or %eax, %r11d
    dec %r10d
    jnz 1b
    check64 "each PCID has its own translations", %r11, $0
    mov %cr3, %rax
    mov $alt_pml4 + 2, %ecx
    check64 "CR3 reads back without bit 63", %rax, %rcx
    /* a load of CR3 without bit 63 takes the PCID's translations */
    movq $FRAME1 + 3, test_pt
    mov $pml4 + 1, %eax
    mov %rax, %cr3
    mov 16(%rbx), %eax
    check64 "mov to CR3 takes the PCID's", %rax, $0xbbbb
    /* INVPCID */
    btl $10, features7
    jnc 1f
    movq $FRAME0 + 3, alt_pt
    movq $2, invpcid_descriptor
    mov %rbx, invpcid_descriptor + 8
    xor %ecx, %ecx
    nofault64 "invpcid of an address in another PCID", invpcid invpcid_descriptor, %rcx
    mov %r9, %cr3
    mov 16(%rbx), %eax
    check64 "it is gone there", %rax, $0xcccc
    movq $FRAME1 + 3, alt_pt
    mov $1, %ecx
    invpcid invpcid_descriptor, %rcx
    mov 16(%rbx), %eax
    check64 "invpcid of a PCID", %rax, $0xbbbb
    movq $FRAME0 + 3, alt_pt
    mov $2, %ecx
    invpcid invpcid_descriptor, %rcx
    mov 16(%rbx), %eax
    check64 "invpcid of everything", %rax, $0xcccc
    movq $FRAME1 + 3, alt_pt
    mov $3, %ecx
    invpcid invpcid_descriptor, %rcx
    mov 16(%rbx), %eax
    check64 "invpcid of everything but global", %rax, $0xbbbb
    mov $4, %ecx
    fault64 "GP: invpcid type 4", 13, 0, invpcid invpcid_descriptor, %rcx
    xor %ecx, %ecx
    movq $0x1000, invpcid_descriptor
    fault64 "GP: invpcid with a PCID above 4095", 13, 0, invpcid invpcid_descriptor, %rcx
    movq $2, invpcid_descriptor
    movl $0x8000, invpcid_descriptor + 12
    fault64 "GP: invpcid of a non-canonical address", 13, 0, invpcid invpcid_descriptor, %rcx
1:  mov %cr0, %rax
    and $0x7fffffff, %eax
    fault64 "GP: clear CR0.PG with PCIDE", 13, 0, mov %rax, %cr0
    mov $pml4, %eax
    mov %rax, %cr3
    mov %cr4, %rax
    and $~CR4_PCIDE, %rax
    mov %rax, %cr4
    mov %cr3, %rax
    mov $pml4, %ecx
    check64 "CR3 after all", %rax, %rcx
    ret

    .data
    .balign 8
matrix_access:
    .quad sup_read, sup_write, sup_fetch, 0, go_user, go_user, go_user, 0
matrix_user:
    .quad 0, 0, 0, 0, user_read, user_write, user_fetch, 0
features7: .long 0

    .bss
    .balign 4096
test_pdpt: .skip 4096
test_pd: .skip 4096
test_pt: .skip 4096
alt_pml4: .skip 4096
alt_pdpt: .skip 4096
alt_pd: .skip 4096
alt_pt: .skip 4096
invpcid_descriptor: .skip 16
