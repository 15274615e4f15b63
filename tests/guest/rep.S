/*
 * rep.S - an interrupt between two iterations of a repeated string instruction
 *
 * The frame shows the instruction itself with the registers of the iterations that are left, and
 * RF set, so that a breakpoint on it is not hit once more (Intel SDM vol. 3, 17.3.1.1).
 */
#include "guest.h"
#include "machine.h"

#define VEC 0x40
#define AREA (SCRATCH + 0x100000)
#define AREA_SIZE 0xe00000

    .text
    .code64
    .globl main64
main64:
    lapic_write LAPIC_SVR, $0x1ff
    lapic_write LAPIC_DIVIDE, $0xb
    lapic_write LAPIC_LVT_TIMER, $VEC    /* one-shot */
    movq $on_timer, hooks64 + VEC * 8
    mov $1000, %r12d                    /* tries: at most a few seconds */
    mov $20000, %r13d
1:  movq $0, is_between
    movq $0, irqs
    mov $LAPIC + LAPIC_INITIAL, %eax
    mov %r13d, (%rax)
    mov $AREA, %edi
    mov $AREA_SIZE, %ecx
    mov %r12d, %eax
    sti
string:
    rep stosb
    mov $LAPIC + LAPIC_INITIAL, %eax
    movl $0, (%rax)
    cli
    add $1777, %r13d
    cmpq $0, is_between
    jne 2f
    dec %r12d
    jnz 1b
2:  check64 "interrupted between iterations", is_between, $1
    check64 "once", irqs, $1
    check64 "RIP is the instruction's", seen_rip, $string
    mov seen_rflags, %rax
    and $0x10000, %eax
    check64 "RF in the frame", %rax, $0x10000
    mov seen_rcx, %rax
    add seen_rdi, %rax
    check64 "RDI and RCX agree", %rax, $AREA + AREA_SIZE
    check64 "and at the end: RCX", %rcx, $0
    check64 "and at the end: RDI", %rdi, $AREA + AREA_SIZE
    pushf
    pop %rax
    and $0x10000, %eax
    check64 "RF is gone", %rax, $0
    /* every byte was stored */
    mov %r12d, %eax
    mov $AREA, %edi
    mov $AREA_SIZE, %ecx
    repe scasb
    check64 "every element was stored", %rcx, $0
    ret

/* RDI: the frame. Before the first iteration and behind the last one are no places between. */
on_timer:
    incq irqs
    mov $LAPIC + LAPIC_EOI, %eax
    movl $0, (%rax)
    cmpq $string, F64_RIP(%rdi)
    jne 1f
    mov F64_RCX(%rdi), %rax
    cmp $AREA_SIZE, %rax
    je 1f
    movq $1, is_between
    mov %rax, seen_rcx
    mov F64_RDI(%rdi), %rax
    mov %rax, seen_rdi
    mov F64_RIP(%rdi), %rax
    mov %rax, seen_rip
    mov F64_RFLAGS(%rdi), %rax
    mov %rax, seen_rflags
1:  ret

    .bss
    .balign 8
is_between: .skip 8
irqs: .skip 8
seen_rcx: .skip 8
seen_rdi: .skip 8
seen_rip: .skip 8
seen_rflags: .skip 8
