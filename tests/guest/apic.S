/*
 * apic.S - local APIC as xAPIC and x2APIC, its timer, IPIs to oneself, NMI, IOAPIC
 *
 * Intel SDM vol. 3, "Advanced Programmable Interrupt Controller (APIC)"; 82093AA data sheet.
 */
#include "guest.h"
#include "machine.h"

#define MSR_APIC_BASE 0x1b
#define MSR_DEADLINE 0x6e0
#define X2(register) (0x800+(register>>4))

#define VEC_TIMER 0x50
#define VEC_A 0x61
#define VEC_B 0x72
#define VEC_ERROR 0xe1
#define VEC_IO 0x80

.macro fault64_rdmsr name, index
    mov $\index, %ecx
    fault64 "\name", 13, 0, rdmsr
.endm

.macro fault64_wrmsr name, index, value
    mov $\index, %ecx
    movl $(\value) & 0xffffffff, %eax
    movl $(\value) >> 32, %edx
    fault64 "\name", 13, 0, wrmsr
.endm

    .text
    .code64
    .globl main64
main64:
    movl $2, eoi_mode
    call base
    lapic_write LAPIC_SVR, $0x1ff
    call self_ipi
    call priorities
    call nmi
    call errors
    call timer
    call deadline
    call ioapic
    call x2apic
    ret

base:
    rdmsr64 MSR_APIC_BASE
    mov $0xfee00900, %ecx
    check64 "IA32_APIC_BASE: BSP, enabled", %rax, %rcx
    lapic_read LAPIC_VERSION
    mov %eax, %ecx
    and $0xff, %eax
    sub $0x10, %eax
    cmp $6, %eax
    setae %al
    movzbl %al, %eax
    check64 "version 1XH", %rax, $0
    shr $16, %ecx
    and $0xff, %ecx
    cmp $3, %ecx
    setb %cl
    movzbl %cl, %ecx
    check64 "at least four LVT entries", %rcx, $0
    lapic_read LAPIC_ID
    shr $24, %eax
    mov %eax, %esi
    mov $1, %eax
    cpuid
    shr $24, %ebx
    check64 "APIC ID as in CPUID", %rbx, %rsi
    lapic_read LAPIC_DFR
    mov $0xffffffff, %ecx
    check64 "DFR: flat", %rax, %rcx
    ret

/* ICR: fixed, self by shorthand or by ID. */
self_ipi:
    irq_forget VEC_A
    lapic_write LAPIC_ICR, $(0x44000+VEC_A)
    expect_irqs "self IPI by shorthand", VEC_A, 1
    lapic_write LAPIC_ICR2, $0
    lapic_write LAPIC_ICR, $(0x4000+VEC_A)
    expect_irqs "self IPI by ID", VEC_A, 2
    lapic_write LAPIC_ICR, $(0x84000+VEC_A)
    expect_irqs "IPI to all", VEC_A, 3
    lapic_write LAPIC_ICR, $(0xc4000+VEC_A)
    sti
    mov $1000000, %eax
    call spin
    cli
    irq_counted VEC_A
    check64 "IPI to all but self", %rax, $3
    lapic_write LAPIC_LDR, $0x04000000
    lapic_write LAPIC_ICR2, $0x0c000000
    lapic_write LAPIC_ICR, $(0x4800+VEC_A)
    expect_irqs "IPI, logical, flat", VEC_A, 4
    lapic_write LAPIC_ICR2, $0x02000000
    lapic_write LAPIC_ICR, $(0x4800+VEC_A)
    lapic_write LAPIC_ICR2, $0x04000000
    lapic_write LAPIC_ICR, $(0x4900+VEC_A)
    expect_irqs "IPI, lowest priority", VEC_A, 5
    irq_counted VEC_A
    check64 "IPI, logical, to others", %rax, $5
    /* pending until IF */
    lapic_write LAPIC_ICR, $(0x44000+VEC_A)
    lapic_read (LAPIC_IRR+0x30)
    shr $VEC_A - 0x60, %eax
    and $1, %eax
    check64 "IRR", %rax, $1
    expect_irqs "taken with IF", VEC_A, 6
    lapic_read (LAPIC_IRR+0x30)
    check64 "IRR empty", %rax, $0
    ret

/* Higher vectors first, TPR, PPR, nesting. */
priorities:
    lapic_write LAPIC_TPR, $0x70
    lapic_read LAPIC_PPR
    check64 "PPR is TPR", %rax, $0x70
    irq_forget VEC_A
    irq_forget VEC_B
    lapic_write LAPIC_ICR, $(0x44000+VEC_A)
    lapic_write LAPIC_ICR, $(0x44000+VEC_B)
    sti
    mov $1000000, %eax
    call spin
    cli
    irq_counted VEC_A
    check64 "TPR holds vectors below its class", %rax, $0
    irq_counted VEC_B
    check64 "and those of its class", %rax, $0
    mov $6, %eax
    mov %rax, %cr8
    lapic_read LAPIC_TPR
    check64 "CR8 is TPR", %rax, $0x60
    expect_irqs "CR8 = 6 lets 72H in", VEC_B, 1
    irq_counted VEC_A
    check64 "and not 61H", %rax, $0
    xor %eax, %eax
    mov %rax, %cr8
    expect_irqs "CR8 = 0 lets 61H in", VEC_A, 1
    /* two at once: the higher first; the lower waits for its EOI */
    movl $0, order
    hook64 VEC_A, note_a
    hook64 VEC_B, note_b
    lapic_write LAPIC_ICR, $(0x44000+VEC_A)
    lapic_write LAPIC_ICR, $(0x44000+VEC_B)
    sti
    nop
    nop
    nop
    cli
    mov order, %eax
    check64 "in order of priority", %rax, $0x0b0a
    /* a higher one interrupts the handler of a lower one, not the other way round */
    movl $0, order
    hook64 VEC_A, nest_a
    lapic_write LAPIC_ICR, $(0x44000+VEC_A)
    sti
    nop
    nop
    nop
    cli
    mov order, %eax
    check64 "nested", %rax, $0x010b02
    mov nest_ppr, %eax
    check64 "PPR in the handler", %rax, $0x60
    mov nest_isr, %eax
    check64 "ISR in the handler", %rax, $2
    movl $0, order
    hook64 VEC_A, note_a
    hook64 VEC_B, nest_b
    lapic_write LAPIC_ICR, $(0x44000+VEC_B)
    sti
    nop
    nop
    nop
    cli
    mov order, %eax
    check64 "not nested", %rax, $0x01020a
    hook64 VEC_A, 0
    hook64 VEC_B, 0
    ret

.macro note what
    shll $8, order
    orl $\what, order
.endm
.macro eoi
    lapic_write LAPIC_EOI, $0
.endm

note_a:
    note 0xa
    eoi
    ret
note_b:
    note 0xb
    eoi
    ret
nest_a:
    note 1
    lapic_read LAPIC_PPR
    mov %eax, nest_ppr
    lapic_read (LAPIC_ISR+0x30)
    mov %eax, nest_isr
    lapic_write LAPIC_ICR, $(0x44000+VEC_B)
    sti
    nop
    nop
    cli
    note 2
    eoi
    ret
nest_b:
    note 1
    lapic_write LAPIC_ICR, $(0x44000+VEC_A)
    sti
    nop
    nop
    cli
    note 2
    eoi
    ret

/* NMI: whatever IF says; blocked until IRET. */
nmi:
    lapic_write LAPIC_ICR2, $0
    movq $0, irq_count + 2 * 8
    lapic_write LAPIC_ICR, $0x4400
    nop
    nop
    irq_counted 2
    check64 "NMI with IF clear", %rax, $1
    hook64 2, nmi_handler
    movl $0, order
    lapic_write LAPIC_ICR, $0x4400
    nop
    nop
    mov order, %eax
    check64 "NMI in its handler waits for IRET", %rax, $0x0102
    mov order + 4, %eax
    check64 "and comes then", %rax, $1
    hook64 2, 0
    ret

nmi_handler:
    cmpl $0, order
    jne 1f
    note 1
    movl $0, order + 4
    lapic_write LAPIC_ICR, $0x4400
    nop
    nop
    note 2
    ret
1:  incl order + 4
    ret

errors:
    lapic_write LAPIC_LVT_ERROR, $VEC_ERROR
    lapic_write LAPIC_ESR, $0
    irq_forget VEC_ERROR
    lapic_write LAPIC_ICR, $0x44005
    expect_irqs "error interrupt", VEC_ERROR, 1
    lapic_write LAPIC_ESR, $0
    lapic_read LAPIC_ESR
    and $0x60, %eax
    setz %al
    movzbl %al, %eax
    check64 "ESR: illegal vector", %rax, $0
    lapic_write LAPIC_ESR, $0
    lapic_read LAPIC_ESR
    check64 "ESR: cleared by a write", %rax, $0
    lapic_write LAPIC_LVT_ERROR, $(0x10000+VEC_ERROR)
    ret

/* ------------------------------------------------------------------ timer */

timer:
    /* one-shot, divide by 16 */
    lapic_write LAPIC_DIVIDE, $3
    lapic_write LAPIC_LVT_TIMER, $VEC_TIMER
    irq_forget VEC_TIMER
    lapic_write LAPIC_INITIAL, $0x10000000
    lapic_read LAPIC_CURRENT
    mov %eax, %ebx
    mov $1000000, %eax
    call spin
    lapic_read LAPIC_CURRENT
    cmp %ebx, %eax
    setae %al
    movzbl %al, %eax
    check64 "timer counts down", %rax, $0
    lapic_write LAPIC_INITIAL, $100000
    expect_irqs "one-shot", VEC_TIMER, 1
    lapic_read LAPIC_CURRENT
    check64 "one-shot: count 0 afterwards", %rax, $0
    sti
    mov $20000000, %eax
    call spin
    cli
    irq_counted VEC_TIMER
    check64 "one-shot: once", %rax, $1
    /* periodic */
    lapic_write LAPIC_LVT_TIMER, $(0x20000+VEC_TIMER)
    lapic_write LAPIC_INITIAL, $20000
    expect_irqs "periodic: ten interrupts", VEC_TIMER, 11
    /* masked, it does not interrupt */
    lapic_write LAPIC_LVT_TIMER, $(0x30000+VEC_TIMER)
    sti
    nop
    nop
    cli
    irq_forget VEC_TIMER
    sti
    mov $20000000, %eax
    call spin
    cli
    irq_counted VEC_TIMER
    check64 "masked", %rax, $0
    lapic_write LAPIC_LVT_TIMER, $(0x20000+VEC_TIMER)
    expect_irqs "unmasked again", VEC_TIMER, 2
    lapic_write LAPIC_INITIAL, $0
    sti
    nop
    nop
    cli
    irq_forget VEC_TIMER
    sti
    mov $20000000, %eax
    call spin
    cli
    irq_counted VEC_TIMER
    check64 "count 0 stops it", %rax, $0
    /* and it wakes a halted processor */
    lapic_write LAPIC_LVT_TIMER, $VEC_TIMER
    lapic_write LAPIC_INITIAL, $100000
    sti
    hlt
    cli
    irq_counted VEC_TIMER
    check64 "one-shot wakes from HLT", %rax, $1
    ret

deadline:
    mov $1, %eax
    cpuid
    bt $24, %ecx
    jc 1f
    say64 "no TSC-deadline mode"
    ret
1:  irq_forget VEC_TIMER
    lapic_write LAPIC_LVT_TIMER, $(0x40000+VEC_TIMER)
    mfence
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    add $10000000, %rax
    mov %rax, %rbx
    mov %rax, %rdx
    shr $32, %rdx
    mov $MSR_DEADLINE, %ecx
    wrmsr
    rdmsr64 MSR_DEADLINE
    check64 "deadline reads back", %rax, %rbx
    expect_irqs "deadline", VEC_TIMER, 1
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    cmp %rbx, %rax
    setb %al
    movzbl %al, %eax
    check64 "deadline: not before its time", %rax, $0
    rdmsr64 MSR_DEADLINE
    check64 "deadline: the MSR is 0 afterwards", %rax, $0
    wrmsr64 MSR_DEADLINE, 1
    expect_irqs "deadline in the past", VEC_TIMER, 2
    /* 0 disarms; so does another mode */
    wrmsr64 MSR_DEADLINE, 0x7fffffffffffffff
    wrmsr64 MSR_DEADLINE, 0
    rdmsr64 MSR_DEADLINE
    check64 "deadline 0 disarms", %rax, $0
    wrmsr64 MSR_DEADLINE, 0x7fffffffffffffff
    lapic_write LAPIC_LVT_TIMER, $VEC_TIMER
    lapic_write LAPIC_LVT_TIMER, $(0x40000+VEC_TIMER)
    rdmsr64 MSR_DEADLINE
    check64 "another mode disarms", %rax, $0
    lapic_write LAPIC_LVT_TIMER, $0x10000
    ret

/* ------------------------------------------------------------------ IOAPIC */

ioapic:
    mov $IOAPIC, %ecx
    movl $1, (%rcx)
    mov 0x10(%rcx), %eax
    shr $16, %eax
    and $0xff, %eax
    check64 "IOAPIC: 24 entries", %rax, $23
    movl $0x10, (%rcx)
    mov 0x10(%rcx), %eax
    and $0x10000, %eax
    check64 "IOAPIC: masked", %rax, $0x10000
    /* the 8254 is on input 2 */
    irq_forget VEC_IO
    ioapic_entry 2, VEC_IO, 0
    mov $0x34, %al
    out %al, $0x43
    mov $0xa9, %al
    out %al, $0x40
    mov $0x04, %al
    out %al, $0x40
    expect_irqs "IOAPIC: 8254 through input 2", VEC_IO, 5
    ioapic_entry 2, (0x10000+VEC_IO), 0
    sti
    nop
    nop
    cli
    irq_forget VEC_IO
    sti
    mov $10000000, %eax
    call spin
    cli
    irq_counted VEC_IO
    check64 "IOAPIC: masked again", %rax, $0
    /* logical destination */
    lapic_write LAPIC_LDR, $0x01000000
    ioapic_entry 2, (0x800+VEC_IO), 1
    expect_irqs "IOAPIC: logical destination", VEC_IO, 2
    ioapic_entry 2, 0x10000, 0
    /* NMI */
    movq $0, irq_count + 2 * 8
    ioapic_entry 2, 0x400, 0
    expect_irqs "IOAPIC: NMI", 2, 2
    ioapic_entry 2, 0x10000, 0
    ret

/* ------------------------------------------------------------------ x2APIC */

x2apic:
    mov $1, %eax
    cpuid
    bt $21, %ecx
    jc 1f
    say64 "no x2APIC"
    ret
1:  fault64_rdmsr "GP: x2APIC MSR in xAPIC mode", X2(LAPIC_VERSION)
    fault64_wrmsr "GP: EXTD without EN", MSR_APIC_BASE, 0xfee00500
    fault64_wrmsr "GP: reserved bit of IA32_APIC_BASE", MSR_APIC_BASE, 0xfee00901
    wrmsr64 MSR_APIC_BASE, 0xfee00d00
    rdmsr64 X2(LAPIC_ID)
    mov %rax, %rsi
    mov $0xb, %eax
    xor %ecx, %ecx
    cpuid
    check64 "x2APIC: ID as in CPUID", %rsi, %rdx
    rdmsr64 X2(LAPIC_SVR)
    check64 "x2APIC: SVR kept", %rax, $0x1ff
    rdmsr64 X2(LAPIC_LDR)
    check64 "x2APIC: LDR follows from the ID", %rax, $1
    movl $0, eoi_mode
    hook64 VEC_A, x2_handler
    movl $0, order
    wrmsr64 X2(0x3f0), VEC_A
    sti
    nop
    cli
    wrmsr64 X2(LAPIC_ICR), (0x4000+VEC_A)
    sti
    nop
    cli
    wrmsr64 X2(LAPIC_ICR), (0x100004800+VEC_A)
    sti
    nop
    cli
    mov order, %eax
    check64 "x2APIC: self IPI, by ID, logical", %rax, $3
    rdmsr64 X2(LAPIC_TPR)
    check64 "x2APIC: TPR", %rax, $0
    mov $5, %eax
    mov %rax, %cr8
    rdmsr64 X2(LAPIC_TPR)
    check64 "x2APIC: CR8", %rax, $0x50
    xor %eax, %eax
    mov %rax, %cr8
    fault64_wrmsr "GP: EOI other than 0", X2(LAPIC_EOI), 1
    fault64_wrmsr "GP: write of the ID", X2(LAPIC_ID), 1
    fault64_wrmsr "GP: reserved bits of TPR", X2(LAPIC_TPR), 0x100
    fault64_wrmsr "GP: upper half of SVR", X2(LAPIC_SVR), 0x1000001ff
    fault64_wrmsr "GP: ESR other than 0", X2(LAPIC_ESR), 1
    fault64_rdmsr "GP: read of EOI", X2(LAPIC_EOI)
    fault64_rdmsr "GP: DFR", X2(LAPIC_DFR)
    fault64_rdmsr "GP: ICR2", X2(LAPIC_ICR2)
    fault64_rdmsr "GP: read of the self-IPI register", X2(0x3f0)
    fault64_wrmsr "GP: x2APIC to xAPIC", MSR_APIC_BASE, 0xfee00900
    wrmsr64 MSR_APIC_BASE, 0xfee00100
    mov $1, %eax
    cpuid
    shr $9, %edx
    and $1, %edx
    check64 "disabled: not in CPUID", %rdx, $0
    fault64_wrmsr "GP: off to x2APIC", MSR_APIC_BASE, 0xfee00d00
    wrmsr64 MSR_APIC_BASE, 0xfee00900
    lapic_read LAPIC_SVR
    and $0x100, %eax
    check64 "xAPIC again, software-disabled", %rax, $0
    ret

x2_handler:
    incl order
    wrmsr64 X2(LAPIC_EOI), 0
    ret

    .data
    .balign 8
order: .long 0, 0
nest_ppr: .long 0
nest_isr: .long 0
