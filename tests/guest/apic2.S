/*
 * apic2.S - level-triggered interrupts, remote IRR, EOI broadcast; logical destinations; ExtINT
 *
 * The serial port is the level-triggered source: with its transmitter's interrupt enabled and
 * nothing to send, its line stays up. Then clusters, the window that moves, and what x2APIC mode
 * refuses.
 *
 * Spec: Intel SDM vol. 3, 10.6.2 (destinations), 10.8.5 (EOI), 10.12 (x2APIC); 82093AA data
 * sheet, with the EOI register of version 20H.
 */
#include "guest.h"
#include "machine.h"

#define MSR_APIC_BASE 0x1b
#define X2(register) (0x800+(register>>4))
#define COM1 0x3f8
#define PIN 4
#define VEC_LEVEL 0x91
#define VEC_EDGE 0x82
#define VEC_A 0x61
#define REMOTE_IRR 0x4000

    .text
    .code64
    .globl main64
main64:
    movl $2, eoi_mode
    lapic_write LAPIC_SVR, $0x1ff
    call level
    call directed
    call edge
    call extint
    call logical
    call timer_modes
    call window
    call x2apic
    ret

/* Redirection entry of the serial port to RAX. */
read_entry:
    push %rcx
    mov $IOAPIC, %ecx
    movl $0x10 + 2 * PIN, (%rcx)
    mov 0x10(%rcx), %eax
    pop %rcx
    ret

.macro serial_interrupt on
    mov $COM1 + 1, %dx
    mov $\on, %al
    out %al, %dx
.endm

.macro serial_out2
    mov $COM1 + 4, %dx
    mov $0x0b, %al
    out %al, %dx
.endm

/* Spin with interrupts on for a while. */
.macro let_in
    sti
    mov $2000000, %eax
    call spin
    cli
.endm

/* ------------------------------------------------------------------ level-triggered */

level:
    serial_out2
    hook64 VEC_LEVEL, level_handler
    movl $0, level_count
    ioapic_entry PIN, (0x8000+VEC_LEVEL), 0
    serial_interrupt 2
    let_in
    check64 "level: again and again until the device is served", level_count, $3
    check64 "level: remote IRR in the handler", level_irr, $REMOTE_IRR
    check64 "level: TMR bit", level_tmr, $(1<<(VEC_LEVEL&31))
    call read_entry
    and $REMOTE_IRR, %eax
    check64 "level: remote IRR clear after the last EOI", %rax, $0
    hook64 VEC_LEVEL, 0
    ret

level_handler:
    incl level_count
    call read_entry
    and $REMOTE_IRR, %eax
    mov %rax, level_irr
    mov $LAPIC + LAPIC_TMR + (VEC_LEVEL / 32) * 16, %eax
    mov (%rax), %eax
    mov %rax, level_tmr
    cmpl $3, level_count
    jne 1f
    push %rdx
    serial_interrupt 0
    pop %rdx
1:  lapic_write LAPIC_EOI, $0
    ret

/* SVR bit 12 keeps EOIs to the local APIC; the IOAPIC is told through its own register. */
directed:
    lapic_read LAPIC_VERSION
    bt $24, %eax
    jnc 9f
    hook64 VEC_LEVEL, directed_handler
    lapic_write LAPIC_SVR, $0x11ff
    lapic_read LAPIC_SVR
    check64 "EOI broadcasts suppressed: SVR", %rax, $0x11ff
    movl $0, level_count
    serial_interrupt 2
    let_in
    check64 "suppressed: one interrupt", level_count, $1
    call read_entry
    and $REMOTE_IRR, %eax
    check64 "suppressed: remote IRR stays", %rax, $REMOTE_IRR
    mov $IOAPIC, %ecx
    movl $VEC_LEVEL + 1, 0x40(%rcx)
    call read_entry
    and $REMOTE_IRR, %eax
    check64 "EOI register: another vector", %rax, $REMOTE_IRR
    movl $VEC_LEVEL, 0x40(%rcx)
    let_in
    check64 "EOI register: the line is still up, another interrupt", level_count, $2
    serial_interrupt 0
    mov $IOAPIC, %ecx
    movl $VEC_LEVEL, 0x40(%rcx)
    call read_entry
    and $REMOTE_IRR, %eax
    check64 "EOI register: remote IRR clear", %rax, $0
    let_in
    check64 "EOI register: no other", level_count, $2
    lapic_write LAPIC_SVR, $0x1ff
    hook64 VEC_LEVEL, 0
9:  ret

directed_handler:
    incl level_count
    lapic_write LAPIC_EOI, $0
    ret

/* The same line into an edge-triggered entry: one interrupt a rise. */
edge:
    irq_forget VEC_EDGE
    ioapic_entry PIN, VEC_EDGE, 0
    serial_interrupt 2
    let_in
    irq_counted VEC_EDGE
    check64 "edge: once", %rax, $1
    mov $LAPIC + LAPIC_TMR + (VEC_EDGE / 32) * 16, %eax
    mov (%rax), %eax
    and $1 << (VEC_EDGE & 31), %eax
    check64 "edge: TMR bit clear", %rax, $0
    call read_entry
    and $REMOTE_IRR, %eax
    check64 "edge: no remote IRR", %rax, $0
    serial_interrupt 0
    serial_interrupt 2
    let_in
    irq_counted VEC_EDGE
    check64 "edge: another rise", %rax, $2
    /* while masked, an edge is lost */
    serial_interrupt 0
    ioapic_entry PIN, (0x10000+VEC_EDGE), 0
    serial_interrupt 2
    ioapic_entry PIN, VEC_EDGE, 0
    let_in
    irq_counted VEC_EDGE
    check64 "edge while masked: lost", %rax, $2
    serial_interrupt 0
    /* a level is not: unmasking delivers it */
    hook64 VEC_LEVEL, level_handler
    ioapic_entry PIN, (0x18000+VEC_LEVEL), 0
    movl $2, level_count
    serial_interrupt 2
    let_in
    check64 "level while masked: nothing yet", level_count, $2
    ioapic_entry PIN, (0x8000+VEC_LEVEL), 0
    let_in
    check64 "level unmasked: delivered", level_count, $3
    hook64 VEC_LEVEL, 0
    ioapic_entry PIN, 0x10000, 0
    /* remote IRR and delivery status cannot be written */
    ioapic_entry PIN, (0x1d000+VEC_LEVEL), 0
    call read_entry
    and $0x5000, %eax
    check64 "remote IRR and delivery status are read-only", %rax, $0
    ioapic_entry PIN, 0x10000, 0
    ret

/* ------------------------------------------------------------------ the 8259 through LINT0 */

/* ExtINT: the vector is the 8259's, and the local APIC's ISR and PPR do not know of it. */
extint:
    movl $1, eoi_mode
    lapic_write LAPIC_TPR, $0xff
    lapic_write LAPIC_LVT_LINT0, $0x700
    movq $0, irq_count + (VEC_PIC) * 8
    hook64 VEC_PIC, extint_handler
    movl $0, level_count
    mov $0xfe, %al
    out %al, $0x21
    mov $0x30, %al                      /* 8254, mode 0: one interrupt */
    out %al, $0x43
    mov $0x10, %al
    out %al, $0x40
    mov $0, %al
    out %al, $0x40
    mov $100, %ebx
1:  let_in
    cmpl $0, level_count
    jne 2f
    dec %ebx
    jnz 1b
2:  check64 "ExtINT: whatever the TPR", level_count, $1
    check64 "ExtINT: not in the local APIC's ISR", level_irr, $0
    /* masked at LINT0 it stays in the 8259 */
    lapic_write LAPIC_LVT_LINT0, $0x10700
    movl $0, level_count
    mov $0x30, %al
    out %al, $0x43
    mov $0x10, %al
    out %al, $0x40
    mov $0, %al
    out %al, $0x40
    let_in
    mov $100, %ebx
3:  mov $0x0a, %al                      /* wait for the 8259 to have it */
    out %al, $0x20
    in $0x20, %al
    test $1, %al
    jnz 4f
    mov $2000000, %eax
    call spin
    dec %ebx
    jnz 3b
4:  sti
    nop
    nop
    cli
    check64 "LINT0 masked: not delivered", level_count, $0
    lapic_write LAPIC_LVT_LINT0, $0x700
    let_in
    check64 "LINT0 unmasked: delivered", level_count, $1
    mov $0xff, %al
    out %al, $0x21
    hook64 VEC_PIC, 0
    lapic_write LAPIC_LVT_LINT0, $0x10000
    lapic_write LAPIC_TPR, $0
    movl $2, eoi_mode
    ret

extint_handler:
    incl level_count
    mov $LAPIC + LAPIC_ISR + (VEC_PIC / 32) * 16, %eax
    mov (%rax), %eax
    mov %rax, level_irr
    mov $0x20, %al
    out %al, $0x20
    ret

/* ------------------------------------------------------------------ logical destinations */

/* One IPI of vector A to logical destination `dest`; RAX = how many came. */
.macro logical_ipi name, dest, want
    irq_forget VEC_A
    lapic_write LAPIC_ICR2, $((\dest)<<24)
    lapic_write LAPIC_ICR, $(0x4800+VEC_A)
    sti
    nop
    nop
    cli
    irq_counted VEC_A
    check64 "\name", %rax, $\want
.endm

logical:
    lapic_write LAPIC_DFR, $0xffffffff
    lapic_write LAPIC_LDR, $0x04000000
    logical_ipi "flat: our bit", 0x04, 1
    logical_ipi "flat: among others", 0xf7, 1
    logical_ipi "flat: others only", 0xfb, 0
    logical_ipi "flat: nobody", 0, 0
    logical_ipi "flat: everybody", 0xff, 1
    lapic_write LAPIC_DFR, $0x0fffffff
    lapic_read LAPIC_DFR
    mov $0x0fffffff, %ecx
    check64 "cluster: DFR", %rax, %rcx
    lapic_write LAPIC_LDR, $0x22000000
    logical_ipi "cluster: our cluster and bit", 0x22, 1
    logical_ipi "cluster: our bit among others", 0x2f, 1
    logical_ipi "cluster: another bit", 0x21, 0
    logical_ipi "cluster: another cluster", 0x32, 0
    logical_ipi "cluster: everybody", 0xff, 1
    lapic_write LAPIC_DFR, $0xffffffff
    /* no LDR: logically addressed interrupts pass by */
    lapic_write LAPIC_LDR, $0
    logical_ipi "LDR 0", 0x7f, 0
    /* LDR keeps its upper byte only */
    lapic_write LAPIC_LDR, $0xffffffff
    lapic_read LAPIC_LDR
    mov $0xff000000, %ecx
    check64 "LDR: its upper byte", %rax, %rcx
    lapic_write LAPIC_LDR, $0x01000000
    /* physical: FFH is everybody, another ID nobody */
    irq_forget VEC_A
    lapic_write LAPIC_ICR2, $0xff000000
    lapic_write LAPIC_ICR, $(0x4000+VEC_A)
    sti
    nop
    nop
    cli
    irq_counted VEC_A
    check64 "physical: everybody", %rax, $1
    lapic_write LAPIC_ICR2, $0x77000000
    lapic_write LAPIC_ICR, $(0x4000+VEC_A)
    sti
    nop
    nop
    cli
    irq_counted VEC_A
    check64 "physical: nobody", %rax, $1
    /* the same vector twice before it is taken is one interrupt; while in service it is kept */
    irq_forget VEC_A
    lapic_write LAPIC_ICR, $(0x44000+VEC_A)
    lapic_write LAPIC_ICR, $(0x44000+VEC_A)
    sti
    nop
    nop
    cli
    irq_counted VEC_A
    check64 "the same vector twice: once", %rax, $1
    /* software-disabled: IPIs are not accepted, NMIs are */
    lapic_write LAPIC_SVR, $0xff
    lapic_write LAPIC_ICR, $(0x44000+VEC_A)
    sti
    nop
    nop
    cli
    irq_counted VEC_A
    check64 "software-disabled: no IPI", %rax, $1
    lapic_read LAPIC_LVT_TIMER
    and $0x10000, %eax
    check64 "software-disabled: LVTs are masked", %rax, $0x10000
    lapic_write LAPIC_LVT_TIMER, $0x50
    lapic_read LAPIC_LVT_TIMER
    and $0x10000, %eax
    check64 "software-disabled: they cannot be unmasked", %rax, $0x10000
    movq $0, irq_count + 2 * 8
    lapic_write LAPIC_ICR, $0x44400
    nop
    check64 "software-disabled: NMI", irq_count+2*8, $1
    lapic_write LAPIC_SVR, $0x1ff
    ret

/* ------------------------------------------------------------------ timer modes */

timer_modes:
    mov $1, %eax
    cpuid
    bt $24, %ecx
    jnc 9f
    /* outside of deadline mode the MSR reads 0 and takes nothing */
    lapic_write LAPIC_LVT_TIMER, $0x10050
    wrmsr64 0x6e0, 0x7fffffffffffffff
    rdmsr64 0x6e0
    check64 "deadline outside of its mode: 0", %rax, $0
    lapic_write LAPIC_LVT_TIMER, $0x50050
    lapic_write LAPIC_INITIAL, $1000
    lapic_read LAPIC_CURRENT
    check64 "deadline mode: no count", %rax, $0
    wrmsr64 0x6e0, 0x7fffffffffffffff
    rdmsr64 0x6e0
    movabs $0x7fffffffffffffff, %rcx
    check64 "deadline reads back", %rax, %rcx
    lapic_write LAPIC_LVT_TIMER, $0x10050
    rdmsr64 0x6e0
    check64 "another mode disarms it", %rax, $0
    /* a TSC_ADJUST that moves the TSC past the deadline sets it off */
    mov $7, %eax
    xor %ecx, %ecx
    cpuid
    bt $1, %ebx
    jnc 9f
    irq_forget 0x50
    lapic_write LAPIC_LVT_TIMER, $0x40050
    rdtsc
    add $0x10000, %edx                  /* 2^48 ticks from now */
    mov $0x6e0, %ecx
    wrmsr
    rdmsr64 0x3b
    push %rax
    mov %rax, %rdx
    shr $32, %rdx
    add $0x10010, %edx
    mov $0x3b, %ecx
    wrmsr
    expect_irqs "TSC_ADJUST past the deadline", 0x50, 1
    pop %rax
    mov %rax, %rdx
    shr $32, %rdx
    mov $0x3b, %ecx
    wrmsr
    lapic_write LAPIC_LVT_TIMER, $0x10050
9:  ret

/* ------------------------------------------------------------------ the window */

#define ELSEWHERE 0xfea00000

window:
    lapic_write LAPIC_TPR, $0x30
    wrmsr64 MSR_APIC_BASE, (ELSEWHERE + 0x900)
    mov $ELSEWHERE, %ebx
    mov LAPIC_TPR(%rbx), %eax
    check64 "the window moved: TPR", %rax, $0x30
    irq_forget VEC_A
    movl $0, LAPIC_TPR(%rbx)
    movl $0, eoi_mode
    movl $0x44000 + VEC_A, LAPIC_ICR(%rbx)
    sti
    nop
    nop
    cli
    movl $0, LAPIC_EOI(%rbx)
    irq_counted VEC_A
    check64 "the window moved: an IPI", %rax, $1
    movl $2, eoi_mode
    wrmsr64 MSR_APIC_BASE, 0xfee00900
    lapic_read LAPIC_TPR
    check64 "and back", %rax, $0
    ret

/* ------------------------------------------------------------------ x2APIC */

.macro refused name, index, value
    mov $\index, %ecx
    movl $(\value) & 0xffffffff, %eax
    movl $(\value) >> 32, %edx
    fault64 "GP: \name", 13, 0, wrmsr
.endm

.macro refused_read name, index
    mov $\index, %ecx
    fault64 "GP: \name", 13, 0, rdmsr
.endm

.macro x2_ipi name, value, want
    irq_forget VEC_A
    wrmsr64 X2(LAPIC_ICR), \value
    sti
    nop
    nop
    cli
    wrmsr64 X2(LAPIC_EOI), 0
    irq_counted VEC_A
    check64 "\name", %rax, $\want
.endm

x2apic:
    mov $1, %eax
    cpuid
    bt $21, %ecx
    jnc 9f
    movl $0, eoi_mode
    wrmsr64 MSR_APIC_BASE, 0xfee00d00
    rdmsr64 X2(LAPIC_LDR)
    mov %eax, %r12d
    rdmsr64 X2(LAPIC_ID)
    mov %eax, %ecx
    and $15, %ecx
    mov $1, %edx
    shl %cl, %edx
    shr $4, %eax
    shl $16, %eax
    or %edx, %eax
    check64 "x2APIC: LDR from the ID", %r12, %rax
    x2_ipi "x2APIC: physical, to itself", (0x4000 + VEC_A), 1
    x2_ipi "x2APIC: physical, nobody", ((0x1234 << 32) + 0x4000 + VEC_A), 0
    x2_ipi "x2APIC: everybody", ((0xffffffff << 32) + 0x4000 + VEC_A), 1
    x2_ipi "x2APIC: logical, cluster 0", ((0xffff << 32) + 0x4800 + VEC_A), 1
    x2_ipi "x2APIC: logical, another cluster", ((0x1ffff << 32) + 0x4800 + VEC_A), 0
    x2_ipi "x2APIC: logical, everybody", ((0xffffffff << 32) + 0x4800 + VEC_A), 1
    /* ICR is one register: its upper half reads back, and there is no delivery status */
    wrmsr64 X2(LAPIC_ICR), ((0x1234 << 32) + 0x4000 + VEC_A)
    rdmsr64 X2(LAPIC_ICR)
    movabs $((0x1234 << 32) + 0x4000 + VEC_A), %rcx
    check64 "x2APIC: ICR reads back", %rax, %rcx
    irq_forget VEC_A
    wrmsr64 X2(0x3f0), VEC_A
    sti
    nop
    nop
    cli
    wrmsr64 X2(LAPIC_EOI), 0
    irq_counted VEC_A
    check64 "x2APIC: SELF IPI", %rax, $1
    refused "SELF IPI, bit 8", X2(0x3f0), 0x161
    refused "EOI of 1", X2(LAPIC_EOI), 1
    refused "TPR, bit 8", X2(LAPIC_TPR), 0x100
    refused "SVR, bit 10", X2(LAPIC_SVR), 0x5ff
    refused "LVT timer, bit 19", X2(LAPIC_LVT_TIMER), 0x80050
    refused "LVT LINT0, bit 17", X2(LAPIC_LVT_LINT0), 0x20000
    refused "LVT error, delivery mode", X2(LAPIC_LVT_ERROR), 0x400
    refused "divide, bit 2", X2(LAPIC_DIVIDE), 4
    refused "initial count, upper half", X2(LAPIC_INITIAL), 0x100000000
    refused "ICR, bit 20", X2(LAPIC_ICR), 0x104000
    refused "ICR, bit 13", X2(LAPIC_ICR), 0x2000
    refused "write of the version", X2(LAPIC_VERSION), 0
    refused "write of PPR", X2(LAPIC_PPR), 0
    refused "write of LDR", X2(LAPIC_LDR), 0
    refused "write of an ISR", X2(LAPIC_ISR), 0
    refused "write of an IRR", X2(LAPIC_IRR), 0
    refused "write of the current count", X2(LAPIC_CURRENT), 0
    refused_read "no register 2FH at 830H + 1", 0x831
    refused_read "no register at 800H", 0x800
    refused_read "no APR", 0x809
    refused_read "no register at 840H", 0x840
    refused_read "the last of the range", 0x8ff
    wrmsr64 MSR_APIC_BASE, 0xfee00100
    wrmsr64 MSR_APIC_BASE, 0xfee00900
    movl $2, eoi_mode
9:  ret

    .data
    .balign 8
level_count: .quad 0
level_irr: .quad 0
level_tmr: .quad 0
