/*
 * machine.h - for guests that look at devices: ACPI tables, waiting with a limit, local APIC
 *
 * 64-bit code only; include it once, after guest.h.
 */

#define LAPIC_ID 0x20
#define LAPIC_VERSION 0x30
#define LAPIC_TPR 0x80
#define LAPIC_PPR 0xa0
#define LAPIC_EOI 0xb0
#define LAPIC_LDR 0xd0
#define LAPIC_DFR 0xe0
#define LAPIC_SVR 0xf0
#define LAPIC_ISR 0x100
#define LAPIC_TMR 0x180
#define LAPIC_IRR 0x200
#define LAPIC_ESR 0x280
#define LAPIC_ICR 0x300
#define LAPIC_ICR2 0x310
#define LAPIC_LVT_TIMER 0x320
#define LAPIC_LVT_LINT0 0x350
#define LAPIC_LVT_LINT1 0x360
#define LAPIC_LVT_ERROR 0x370
#define LAPIC_INITIAL 0x380
#define LAPIC_CURRENT 0x390
#define LAPIC_DIVIDE 0x3e0

/* lapic_write register, value: no register changes. */
.macro lapic_write register, value
    push %rax
    mov $LAPIC + \register, %eax
    movl \value, (%rax)
    pop %rax
.endm

/* lapic_read register: to RAX */
.macro lapic_read register
    mov $LAPIC + \register, %eax
    mov (%rax), %eax
.endm

/* Redirection entry `pin`: the low half, and the destination's APIC ID. Loses EAX, ECX. */
.macro ioapic_entry pin, low, dest
    mov $IOAPIC, %ecx
    movl $0x11 + 2 * (\pin), (%rcx)
    movl $(\dest) << 24, 0x10(%rcx)
    movl $0x10 + 2 * (\pin), (%rcx)
    movl $\low, 0x10(%rcx)
.endm

/*
 * Wait until irq_count[vector] is at least `count`, interrupts on, a few seconds at most, and
 * check that it happened. Interrupts are off afterwards.
 */
.macro expect_irqs name, vector, count
    push %rax
    push %rdx
    mov $\vector, %eax
    mov $\count, %edx
    call wait_irqs
    setc %al
    movzbl %al, %eax
    check64 "\name", %rax, $0
    pop %rdx
    pop %rax
.endm

.macro irq_counted vector
    mov irq_count + (\vector) * 8, %rax
.endm

.macro irq_forget vector
    movq $0, irq_count + (\vector) * 8
.endm

    .pushsection .text
    .code64

/* CF clear when irq_count[RAX] reached RDX. */
wait_irqs:
    push %rbx
    push %rcx
    push %r8
    push %r9
    mov %rax, %rbx
    mov %rdx, %r9
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    mov %rax, %r8
    mov $20000000000, %rcx              /* TSC ticks: seconds, whatever its rate */
    add %rcx, %r8
    sti
1:  cmp %r9, irq_count(, %rbx, 8)
    jae 2f
    pause
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    cmp %r8, %rax
    jb 1b
    cli
    stc
    jmp 3f
2:  cli
    clc
3:  pop %r9
    pop %r8
    pop %rcx
    pop %rbx
    ret

/* Spin for about RAX TSC ticks. */
spin:
    push %rbx
    push %rdx
    mov %rax, %rbx
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    add %rax, %rbx
1:  pause
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    cmp %rbx, %rax
    jb 1b
    pop %rdx
    pop %rbx
    ret

/* RAX = the ACPI table with signature EAX, or 0. */
find_acpi:
    push %rbx
    push %rcx
    push %rdx
    push %rsi
    push %rdi
    mov %eax, %edi
    mov $0xe0000, %esi
    movabs $0x2052545020445352, %rdx    /* "RSD PTR " */
1:  cmp %rdx, (%rsi)
    je 2f
    add $16, %rsi
    cmp $0x100000, %rsi
    jb 1b
    jmp acpi_none
2:  cmpb $2, 15(%rsi)
    jb 3f
    mov 24(%rsi), %rbx                  /* XSDT */
    test %rbx, %rbx
    jz 3f
    mov $8, %edx
    jmp 4f
3:  mov 16(%rsi), %ebx                  /* RSDT */
    mov $4, %edx
4:  mov 4(%rbx), %ecx
    add %rbx, %rcx
    add $36, %rbx
5:  cmp %rcx, %rbx
    jae acpi_none
    mov (%rbx), %eax
    cmp $8, %edx
    jne 6f
    mov (%rbx), %rax
6:  cmp %edi, (%rax)
    je 7f
    add %rdx, %rbx
    jmp 5b
acpi_none:
    xor %eax, %eax
7:  pop %rdi
    pop %rsi
    pop %rdx
    pop %rcx
    pop %rbx
    ret

    .popsection
