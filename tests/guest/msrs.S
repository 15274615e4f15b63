/*
 * msrs.S - model-specific registers: what they hold after reset, reserved bits, canonical addresses
 *
 * A table of registers and values: what must be refused with #GP(0), what must be taken and read
 * back. Registers that CPUID does not offer must refuse everything.
 *
 * Spec: Intel SDM vol. 4, table 2-2; vol. 3, 10.11 (MTRRs), 10.12 (PAT), 17.17 (TSC); AMD64 APM
 * vol. 2, 3.1.7, 7.7, 7.8; Linux, Documentation/virt/kvm/x86/msr.rst.
 */
#include "guest.h"

#define HOLE 0x0000800000000000    /* not canonical with 48 bits */
#define TAKEN 0                    /* and reads back */
#define GP 1

#define EFER 0xc0000080

    .text
    .code64
    .globl main64
main64:
    call learn
    call table
    call efer
    call tsc
    call mtrrs
    call bases
    call paravirtual
    call user
    ret

learn:
    xor %eax, %eax
    cpuid
    cmp $0x68747541, %ebx
    sete is_amd
    mov $0x80000008, %eax
    cpuid
    movzbl %al, %ecx
    mov $1, %eax
    shl %cl, %rax
    mov %rax, past_phys
    mov $1, %eax
    cpuid
    mov %ecx, features_c
    mov %edx, features_d
    mov $7, %eax
    xor %ecx, %ecx
    cpuid
    mov %ebx, features7
    mov $0x80000001, %eax
    cpuid
    mov %edx, features_ed
    ret

/* RCX, RAX (64 bits): EAX = 0 when WRMSR takes it, else the vector. */
try_write:
    mov %rax, %rdx
    shr $32, %rdx
    try64 1f
    wrmsr
1:  movq $0, try_resume
    mov exc_vector, %rax
    cmp $NO_EXCEPTION, %rax
    jne 2f
    xor %eax, %eax
2:  ret

/* RCX: RAX its value, or carry when the read faults. */
try_read:
    try64 1f
    rdmsr
    movq $0, try_resume
    shl $32, %rdx
    or %rdx, %rax
    clc
    ret
1:  movq $0, try_resume
    stc
    ret

/* ------------------------------------------------------------------ the table */

table:
    mov $rows, %r12d
1:  mov (%r12), %ecx
    cmp $-1, %ecx
    je 5f
    call try_read
    jc 4f
    mov %rax, %r13                      /* to put back */
    mov 8(%r12), %rax
    call try_write
    mov 4(%r12), %edx
    cmp $TAKEN, %edx
    jne 2f
    test %eax, %eax
    jnz 3f
    mov (%r12), %ecx
    call try_read
    jc 3f
    cmp 8(%r12), %rax
    jne 3f
    mov %r13, %rax
    mov (%r12), %ecx
    call try_write
    jmp 4f
2:  cmp $13, %eax
    jne 3f
    cmpq $0, exc_error
    jne 3f
    mov (%r12), %ecx
    call try_read
    cmp %r13, %rax
    je 4f
3:  mov (%r12), %ecx
    check64 "MSR of the table", %rcx, $0
    mov 8(%r12), %rcx
    check64 "its value, or what was made of it", %rax, %rcx
    incq wrong
4:  add $16, %r12
    jmp 1b
5:  check64 "rows of the table that went wrong", wrong, $0
    /* some must exist: a table that skips them says nothing */
    mov $0xc0000082, %ecx
    call try_read
    setc %al
    movzbl %al, %eax
    check64 "LSTAR exists", %rax, $0
    mov $0x277, %ecx
    call try_read
    movabs $0x0007040600070406, %rcx
    check64 "PAT after reset", %rax, %rcx
    mov $0xdeadbeef, %ecx
    fault64 "GP: rdmsr of nothing", 13, 0, rdmsr
    fault64 "GP: wrmsr of nothing", 13, 0, wrmsr
    /* RDMSR and WRMSR look at ECX only, and RDMSR clears the upper halves */
    movabs $0xffffffff00000277, %rcx
    mov $-1, %rax
    mov $-1, %rdx
    rdmsr
    shr $32, %rax
    shr $32, %rdx
    or %rdx, %rax
    check64 "rdmsr: upper halves are cleared", %rax, $0
    ret

efer:
    rdmsr64 EFER
    mov %rax, %r12
    and $0x500, %eax
    check64 "EFER: LME and LMA", %rax, $0x500
    mov $EFER, %ecx
    mov %r12, %rax
    and $~0x100, %rax
    call try_write
    check64 "EFER: LME cannot change with paging", %rax, $13
    mov %r12, %rax
    and $~0x400, %rax
    mov $EFER, %ecx
    call try_write
    cmpb $0, is_amd
    je 1f
    check64 "EFER: LMA with another value", %rax, $13
    jmp 2f
1:  check64 "EFER: LMA is not written", %rax, $0
2:  rdmsr64 EFER
    check64 "EFER: as it was", %rax, %r12
    mov $1, %r13d                       /* every bit that is reserved */
    xor %r14d, %r14d
3:  mov $0x4d01, %eax                   /* SCE, LME, LMA, NXE, FFXSR */
    test %rax, %r13
    jnz 4f
    mov %r12, %rax
    or %r13, %rax
    mov $EFER, %ecx
    call try_write
    cmp $13, %eax
    je 4f
    inc %r14
4:  shl $1, %r13
    jnz 3b
    check64 "EFER: reserved bits that were taken", %r14, $0
    ret

/* The TSC is written through two registers, which follow each other (SDM vol. 3, 17.17.3). */
tsc:
    btl $1, features7                   /* TSC_ADJUST */
    jnc 9f
    rdmsr64 0x3b
    mov %rax, %r12
    wrmsr64 0x3b, 0
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    mov %rax, %r13
    movabs $0x100000000000, %rbx        /* 2^44 ticks: hours, whatever the rate */
    mov %rbx, %rax
    mov %rbx, %rdx
    shr $32, %rdx
    mov $0x3b, %ecx
    wrmsr
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    sub %r13, %rax
    sub %rbx, %rax
    shr $40, %rax                       /* moved by that, and some ticks */
    check64 "TSC_ADJUST moves the TSC", %rax, $0
    rdmsr64 0x3b
    check64 "TSC_ADJUST reads back", %rax, %rbx
    wrmsr64 0x10, 0x1000000
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    shr $40, %rax
    check64 "TSC written", %rax, $0
    rdmsr64 0x3b
    mov %rax, %r14
    /* TSC = base + ADJUST: taking ADJUST back undoes the write */
    wrmsr64 0x3b, 0
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    sub %r13, %rax
    shr $40, %rax
    check64 "a write of the TSC is in TSC_ADJUST", %rax, $0
    rdmsr64 0x10
    mov %rax, %r15
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    sub %r15, %rax
    shr $40, %rax
    check64 "the MSR is the same counter", %rax, $0
    mov %r12, %rax
    mov %r12, %rdx
    shr $32, %rdx
    mov $0x3b, %ecx
    wrmsr
9:  ret

mtrrs:
    btl $12, features_d
    jnc 9f
    rdmsr64 0xfe
    mov %eax, %r12d
    and $0xff, %r12d                    /* variable ranges */
    mov $0xfe, %ecx
    fault64 "GP: MTRRcap is read-only", 13, 0, wrmsr
    mov $0x200, %ecx
    mov past_phys, %rax
    call try_write
    check64 "MTRR base beyond the physical addresses", %rax, $13
    mov $0x200, %ecx
    mov $0x106, %eax
    call try_write
    check64 "MTRR base: bits 11:8", %rax, $13
    mov $0x200, %ecx
    mov $2, %eax
    call try_write
    check64 "MTRR base: type 2", %rax, $13
    mov $0x201, %ecx
    mov $0x400, %eax
    call try_write
    check64 "MTRR mask: bits 10:0", %rax, $13
    mov $0x201, %ecx
    mov past_phys, %rax
    call try_write
    check64 "MTRR mask beyond the physical addresses", %rax, $13
    lea 0x200(%r12, %r12), %ecx         /* one pair too many */
    cmp $0x210, %ecx
    jb 1f
    mov $0x210, %ecx
1:  xor %eax, %eax
    call try_write
    check64 "MTRR beyond their number", %rax, $13
    mov $0x2ff, %ecx
    mov $0x100, %eax
    call try_write
    check64 "MTRR default type: bit 8", %rax, $13
    mov $0x2ff, %ecx
    mov $0x803, %eax
    call try_write
    check64 "MTRR default type: type 3", %rax, $13
    mov $0x250, %ecx
    movabs $0x0606060603060606, %rax
    call try_write
    check64 "fixed MTRR: a reserved type", %rax, $13
    mov $0x251, %ecx
    xor %eax, %eax
    call try_write
    check64 "no fixed MTRR", %rax, $13
9:  ret

/* Canonical addresses: the last on each side is taken, the first beyond faults. */
bases:
    mov $canonical_msrs, %r12d
    xor %r14d, %r14d
1:  mov (%r12), %ecx
    test %ecx, %ecx
    jz 3f
    call try_read
    jc 2f
    mov %rax, %r13
.irp value, 0x00007fffffffffff, 0xffff800000000000
    movabs $\value, %rax
    mov (%r12), %ecx
    call try_write
    test %eax, %eax
    setnz %al
    movzbl %al, %eax
    add %eax, %r14d
    movabs $\value, %rbx
    mov (%r12), %ecx
    call try_read
    cmp %rbx, %rax
    setne %al
    movzbl %al, %eax
    add %eax, %r14d
.endr
.irp value, 0x0000800000000000, 0xffff7fffffffffff, 0x8000000000000000
    movabs $\value, %rax
    mov (%r12), %ecx
    call try_write
    cmp $13, %eax
    setne %al
    movzbl %al, %eax
    add %eax, %r14d
.endr
    mov %r13, %rax
    mov (%r12), %ecx
    call try_write
2:  add $4, %r12
    jmp 1b
3:  check64 "canonical checks that went wrong", %r14, $0
    ret

/* KVM's: two that set clocks up by address; both say which bits mean something. */
paravirtual:
    mov $0x40000001, %eax
    cpuid
    bt $3, %eax                         /* KVM_FEATURE_CLOCKSOURCE2 */
    jnc 9f
    movl $-1, clock_area
    wrmsr64_symbol 0x4b564d00, clock_area
    mov clock_area, %eax
    and $1, %eax
    check64 "KVM's wall clock: an even version", %rax, $0
    mov clock_area + 4, %eax
    test %eax, %eax
    setz %al
    movzbl %al, %eax
    check64 "KVM's wall clock: a time", %rax, $0
    movl $-1, clock_area + 28
    mov $clock_area + 1, %eax
    xor %edx, %edx
    mov $0x4b564d01, %ecx
    wrmsr
    mov clock_area, %eax
    and $1, %eax
    check64 "KVM's system clock: an even version", %rax, $0
    mov clock_area + 24, %eax
    test %eax, %eax
    setz %al
    movzbl %al, %eax
    check64 "KVM's system clock: a multiplier", %rax, $0
    rdmsr64 0x4b564d01
    mov $clock_area + 1, %ecx
    check64 "KVM's system clock: reads back", %rax, %rcx
    wrmsr64 0x4b564d01, 0
9:  ret

user:
    mov $0x10, %ecx
    user_fault64 "GP: user rdmsr of the TSC", 13, 0, rdmsr
    user_fault64 "GP: user wrmsr of the TSC", 13, 0, wrmsr
    ret

    .data
    .balign 8
.macro row index, kind, value
    .long \index, \kind
    .quad \value
.endm
rows:
    row 0x174, TAKEN, 0x12345678
    row 0x175, TAKEN, 0xffff800000001000
    row 0x175, GP, HOLE
    row 0x176, GP, HOLE
    row 0xc0000081, TAKEN, 0x1122334455667788
    row 0xc0000082, TAKEN, 0xffffffff80000000
    row 0xc0000082, GP, HOLE
    row 0xc0000083, GP, HOLE
    row 0xc0000084, TAKEN, 0x47700
    row 0xc0000100, GP, HOLE
    row 0xc0000101, GP, HOLE
    row 0xc0000102, TAKEN, 0x00007fffffffffff
    row 0xc0000102, GP, HOLE
    row 0xc0000103, TAKEN, 0xffffffff
    row 0xc0000103, GP, 0x100000000
    row 0x277, TAKEN, 0x0706050401000007
    row 0x277, GP, 0x0007040600070402
    row 0x277, GP, 0x0307040600070406
    row 0x277, GP, 0x0007040608070406
    row 0x1d9, TAKEN, 3
    row 0x1d9, GP, 0x10000
    row 0x48, GP, 0x100
    row 0x3a, GP, 0
    row 0xfe, GP, 0
    row 0x1b, GP, 0xfee00901
    row 0x1b, GP, 0xfee00902
    row 0x1b, GP, 0xfee00980
    row 0x1b, GP, 0x100000fee00900
    row 0x10a, GP, 0
    row 0xda0, GP, 1
    row 0xda0, GP, 0x100
    row 0x179, GP, 1
    row 0x17a, GP, 8
    row 0xc0010015, TAKEN, 0x1000000
    .long -1, 0

canonical_msrs:
    .long 0x175, 0x176, 0xc0000082, 0xc0000083, 0xc0000100, 0xc0000101, 0xc0000102, 0

wrong: .quad 0
past_phys: .quad 0
features_c: .long 0
features_d: .long 0
features7: .long 0
features_ed: .long 0
is_amd: .byte 0
    .balign 64
clock_area: .skip 64
