/*
 * runs.S - straight lines of accesses that a translator may check together, and what comes between
 *
 * Each line must behave as its instructions do one by one: a segment base that changes, a page that
 * goes away, a fault with RSP on its way, a return address that is no longer the pushed one.
 */
#include "guest.h"

#define TEST (-0x80000000)         /* PML4 entry 511, PDPT entry 510: in reach of a displacement */
#define FRAME0 SCRATCH
#define FRAME1 (SCRATCH + 0x1000)
#define MSR_GS_BASE 0xc0000101
#define MSR_KERNEL_GS_BASE 0xc0000102

    .text
    .code64
    .globl main64
main64:
    movq $test_pdpt + 7, pml4 + 511 * 8
    movq $test_pd + 7, test_pdpt + 510 * 8
    movq $test_pt + 7, test_pd
    movq $FRAME0 + 7, test_pt
    movq $FRAME1 + 7, test_pt + 8
    call segments
    call fixed
    call pushes
    call returns
    ret

.macro wrmsr_imm msr, value
    mov $\msr, %ecx
    mov $\value, %eax
    xor %edx, %edx
    wrmsr
.endm

segments:
    wrmsr_imm MSR_GS_BASE, FRAME0
    wrmsr_imm MSR_KERNEL_GS_BASE, FRAME1
    movq $1, FRAME0 + 0x10
    movq $2, FRAME0 + 0x18
    movq $3, FRAME1 + 0x10
    movq $4, FRAME1 + 0x18
    mov $8, %ebp
    mov %gs:0x10, %rax
    mov %gs:0x18, %rbx
    mov %gs:8(%rbp), %r8
    mov %gs:16(%rbp), %r9
    swapgs
    mov %gs:0x10, %rcx
    mov %gs:0x18, %rdx
    mov %gs:8(%rbp), %r10
    mov %gs:16(%rbp), %r11
    swapgs
    mov %gs:0x18, %rsi
    addq %gs:0x10, %rsi
    check64 "GS + 10H", %rax, $1
    check64 "GS + 18H", %rbx, $2
    check64 "behind SWAPGS: GS + 10H", %rcx, $3
    check64 "behind SWAPGS: GS + 18H", %rdx, $4
    check64 "behind another: both", %rsi, $3
    check64 "through a register: GS + 10H", %r8, $1
    check64 "through a register: GS + 18H", %r9, $2
    check64 "through a register behind SWAPGS: GS + 10H", %r10, $3
    check64 "through a register behind SWAPGS: GS + 18H", %r11, $4
    mov %gs:0x10, %rbx
    mov %gs:0x18, %rsi
    wrmsr_imm MSR_GS_BASE, FRAME1
    mov %gs:0x10, %rdi
    add %gs:0x18, %rdi
    check64 "behind WRMSR: both", %rdi, $7
    wrmsr_imm MSR_GS_BASE, 0
    ret

fixed:
    movq $10, FRAME0
    movq $20, FRAME0 + 8
    movq $30, FRAME0 + 0x10
    xor %ebx, %ebx
    addq TEST, %rbx
    addq TEST + 8, %rbx
    addq TEST + 0x10, %rbx
    check64 "three operands in a page", %rbx, $60
    /* the page goes away between the second and the third */
    xor %ebx, %ebx
    try64 1f
    addq TEST, %rbx
    addq TEST + 8, %rbx
    movq $0, test_pt
    invlpg TEST
    addq TEST + 0x10, %rbx
1:  movq $0, try_resume
    check64 "the page went away: vector", exc_vector, $14
    check64 "the page went away: error", exc_error, $0
    check64 "the page went away: RBX", exc_rbx, $30
    check64 "the page went away: CR2", exc_cr2, $TEST + 0x10
    /* reads are checked together; the write behind them is not allowed */
    movq $FRAME0 + 5, test_pt
    invlpg TEST
    xor %ebx, %ebx
    mov %cr0, %rax
    or $0x10000, %rax
    mov %rax, %cr0
    try64 1f
    addq TEST, %rbx
    addq TEST + 8, %rbx
    stc
    movq %rbx, TEST + 0x10
    addq %rax, %rbx
1:  movq $0, try_resume
    check64 "a write behind reads: vector", exc_vector, $14
    check64 "a write behind reads: error", exc_error, $3
    check64 "a write behind reads: RBX", exc_rbx, $30
    andq $1, exc_rflags
    check64 "a write behind reads: CF", exc_rflags, $1
    movq $FRAME0 + 7, test_pt
    invlpg TEST
    movq $40, TEST
    movq $50, TEST + 8
    mov TEST, %rbx
    add TEST + 8, %rbx
    check64 "writes, then reads", %rbx, $90
    ret

/* Faults between pushes find RSP where the last one left it. */
pushes:
    mov %rsp, %rbp
    mov $7, %eax
    xor %edx, %edx
    xor %ebx, %ebx
    try64 1f
    push %rax
    push %rbp
    push %rdx
    div %ebx
    push %rbx
1:  movq $0, try_resume
    check64 "DIV among pushes: vector", exc_vector, $0
    mov %rbp, %rax
    sub exc_rsp, %rax
    check64 "DIV among pushes: RSP", %rax, $24
    try64 1f
    push %rax
    push %rbp
    mov %rsp, %rcx
    push %rdx
    lea -8(%rsp), %rdx
    mov (%rsp, %rbx), %r8
    pop %rax
    pop %rax
    mov %rsp, %rsi
    ud2
1:  movq $0, try_resume
    mov %rbp, %rax
    sub exc_rcx, %rax
    check64 "RSP read among pushes", %rax, $16
    mov %rbp, %rax
    sub exc_rdx, %rax
    check64 "LEA of RSP among pushes", %rax, $32
    mov %rbp, %rax
    sub exc_rsi, %rax
    check64 "RSP read behind pops", %rax, $8
    /* a push onto a page that is missing, others before it on one that is there */
    mov $TEST + 0x1018, %rax
    movq $0, test_pt
    invlpg TEST
    mov %rsp, %rbp
    mov %rax, %rsp
    push $1
    push $2
    push $3
    mov %rsp, %rcx
    mov %rbp, %rsp
    and $0xffff, %ecx
    check64 "pushes down to a page's start", %rcx, $0x1000
    check64 "the third of them", FRAME1, $3
    movq $FRAME0 + 7, test_pt
    ret

/* Return addresses that the callee replaces, and one that is used twice. */
returns:
    xor %ebx, %ebx
    mov $3, %r12d
1:  call 3f
    or $1, %ebx                         /* skipped */
2:  or $2, %ebx
    dec %r12d
    jnz 1b
    check64 "the callee changed its return address", %rbx, $2
    xor %ebx, %ebx
    mov $4, %r12d
4:  call 5f
    add $0x10, %ebx
    dec %r12d
    jnz 4b
    check64 "every other return goes elsewhere", %rbx, $0x242
    /* indirect calls behind accesses to the same part of the stack */
    push $0x11
    push $0x22
    mov $9f, %eax
    mov (%rsp), %rbx
    mov 8(%rsp), %rcx
    call *%rax
8:  check64 "indirect call: return address", %rdx, $8b
    check64 "indirect call: what was read before", %rbx, $0x22
    movq $0x33, -8(%rsp)
    movabs $0x8000000000000000, %rax
    mov %rsp, %rbp
    try64 1f
    mov (%rsp), %rbx
    mov 8(%rsp), %rcx
    mov -8(%rsp), %rdx
    call *%rax
1:  movq $0, try_resume
    check64 "indirect call to nowhere: vector", exc_vector, $13
    check64 "indirect call to nowhere: RSP", exc_rsp, %rbp
    check64 "indirect call to nowhere: RDX", exc_rdx, $0x33
    /* the register that is read for an address is moved from memory and back */
    mov $TEST, %r15
    mov %r15, %rax
    mov %rax, %r11
    mov %r11, %rcx
    mov %rcx, %r10
    check64 "a register moved around", %r10, $TEST
    mov %r10d, %ecx
    check64_imm "its lower half", %rcx, 0x80000000
    mov %ecx, %r15d
    check64_imm "and back", %r15, 0x80000000
    pop %rax
    pop %rax
    ret
9:  mov (%rsp), %rdx
    ret
3:  movq $2b, (%rsp)
    ret
5:  test $1, %r12d
    jz 6f
    ret
6:  push $7f
    ret
7:  add $0x101, %ebx
    ret

    .bss
    .balign 4096
test_pdpt: .skip 4096
test_pd: .skip 4096
test_pt: .skip 4096
