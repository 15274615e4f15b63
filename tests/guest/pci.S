/*
 * pci.S - interrupts and power of a PCI function: INTA through the IOAPIC, MSI-X, D3hot
 *
 * The function is the entropy device's: each buffer that it fills makes it interrupt.
 *
 * Spec: PCI Local Bus Specification 3.0, 6.2.2, 6.2.3, 6.8.2; PCI Bus Power Management Interface
 * Specification 1.2, 3.2.4; VIRTIO 1.2, 4.1.4.5, 4.1.5.
 */
#include "guest.h"
#include "machine.h"
#include "entropy.h"

#define VEC_WIRE 0x60
#define VEC_MESSAGE 0x61
#define INPUT 17                    /* wire of slot 2, pin A: PIRQB */
#define LEVEL_LOW 0xa000
#define BUFFER SCRATCH
#define SPINS 300000

#define COMMAND 4
#define COMMAND_ON 6                /* memory, bus master */
#define COMMAND_NO_INTX 0x400
#define MSIX_ENABLE 0x80000000
#define MSIX_MASK 0x40000000
#define PENDING (MSIX_ADDRESS + 0x1000)
#define ENTRY (MSIX_ADDRESS + 16)   /* the queue's vector, 1 */

.macro put register, value
    mov \register, %eax
    mov \value, %ecx
    call pci_write
.endm

/* A buffer is filled; interrupts are off. */
.macro fill
    mov $BUFFER, %edi
    mov $16, %ecx
    call entropy_write
.endm

/* Interrupts on for a while, in which vector `v` has to stay away. */
.macro expect_none name, v
    irq_forget \v
    sti
    mov $SPINS, %eax
    call spin
    cli
    irq_counted \v
    check64 "\name", %rax, $0
.endm

    .text
    .code64
    .globl main64
main64:
    movl $2, eoi_mode
    lapic_write LAPIC_SVR, $0x1ff
    call entropy_set_up
    jc 1f
    xor %r8d, %r8d
    call wires
    call messages
    call power
    check64 "the device answered", %r8, $0
1:  ret

/* Reading the interrupt status takes the wire back. Hooks count and end interrupts themselves. */
take_wire:
    mov entropy_isr, %rax
    movzbl (%rax), %eax
    or %eax, isr
    incq irq_count + VEC_WIRE * 8
    lapic_write LAPIC_EOI, $0
    ret

wires:
    hook64 VEC_WIRE, take_wire
    ioapic_entry INPUT, (LEVEL_LOW+VEC_WIRE), 0
    irq_forget VEC_WIRE
    fill
    expect_irqs "INTA: it interrupts", VEC_WIRE, 1
    mov isr, %eax
    check64 "INTA: for its queue", %rax, $1
    expect_none "INTA: once", VEC_WIRE

    put $COMMAND, $(COMMAND_ON|COMMAND_NO_INTX)
    fill
    expect_none "INTA: disabled", VEC_WIRE
    mov $COMMAND, %eax
    call pci_read
    shr $19, %eax
    and $1, %eax
    check64 "INTA: the status tells it all the same", %rax, $1
    irq_forget VEC_WIRE
    put $COMMAND, $COMMAND_ON
    expect_irqs "INTA: enabled", VEC_WIRE, 1
    mov $COMMAND, %eax
    call pci_read
    shr $19, %eax
    and $1, %eax
    check64 "INTA: taken back", %rax, $0
    ret

messages:
    put $0x14, $MSIX_ADDRESS
    mov $ENTRY, %ebx
    mov 12(%rbx), %eax
    check64 "MSI-X: masked at first", %rax, $1
    movl $0xfee00000, (%rbx)
    movl $0, 4(%rbx)
    movl $VEC_MESSAGE, 8(%rbx)
    movl $0, 12(%rbx)
    mov entropy_msix, %eax
    put %eax, $MSIX_ENABLE
    mov common, %rbx
    movw $1, QUEUE_VECTOR(%rbx)
    movzwl QUEUE_VECTOR(%rbx), %eax
    check64 "MSI-X: the queue has a vector", %rax, $1
    irq_forget VEC_MESSAGE
    fill
    expect_irqs "MSI-X: a message", VEC_MESSAGE, 1
    fill
    expect_none "MSI-X: no wire", VEC_WIRE

    mov entropy_msix, %eax
    put %eax, $(MSIX_ENABLE|MSIX_MASK)
    fill
    expect_none "MSI-X: the function is masked", VEC_MESSAGE
    mov $PENDING, %ebx
    mov (%rbx), %eax
    check64 "MSI-X: it is pending", %rax, $2
    irq_forget VEC_MESSAGE
    mov entropy_msix, %eax
    put %eax, $MSIX_ENABLE
    expect_irqs "MSI-X: it is sent when it may be", VEC_MESSAGE, 1
    mov (%rbx), %eax
    check64 "MSI-X: it is pending no more", %rax, $0

    mov $ENTRY, %ebx
    movl $1, 12(%rbx)
    fill
    expect_none "MSI-X: the vector is masked", VEC_MESSAGE
    irq_forget VEC_MESSAGE
    movl $0, 12(%rbx)
    expect_irqs "MSI-X: the vector is unmasked", VEC_MESSAGE, 1
    ret

power:
    mov entropy_pm, %eax
    add $4, %eax
    mov %eax, %r12d
    put %r12d, $2
    mov %r12d, %eax
    call pci_read
    check64 "no D2", %rax, $8
    put %r12d, $3
    mov %r12d, %eax
    call pci_read
    check64 "D3hot", %rax, $0xb
    mov common, %rbx
    movzbl STATUS(%rbx), %eax
    check64 "D3hot: nobody answers", %rax, $0xff
    movb $0, STATUS(%rbx)
    put %r12d, $0
    movzbl STATUS(%rbx), %eax
    check64 "D0: as it was", %rax, $0xf
    irq_forget VEC_MESSAGE
    fill
    expect_irqs "D0: it interrupts", VEC_MESSAGE, 1
    ret

    .data
isr: .quad 0
