/*
 * timers.S - 8254, 8259, MC146818, HPET and PM timer, and waking from HLT
 *
 * Timing is judged one way only where the host may be late: an interrupt must come, and not
 * before its time. Data sheets of the parts; ACPI 6.4 for the PM timer; IA-PC HPET 1.0a.
 */
#include "guest.h"
#include "machine.h"

#define PM_HZ 3579545

    .text
    .code64
    .globl main64
main64:
    movl $1, eoi_mode
    call pm_timer
    call pit
    call pic
    call hlt_wakes
    call rtc
    call hpet
    call tsc
    ret

/* out port, value: loses AL */
.macro outp port, value
    mov $\value, %al
    out %al, $\port
.endm

.macro inp port
    in $\port, %al
    movzbl %al, %eax
.endm

/* ------------------------------------------------------------------ PM timer */

pm_timer:
    mov $0x50434146, %eax               /* "FACP" */
    call find_acpi
    test %rax, %rax
    setz %cl
    movzbl %cl, %ecx
    check64 "FADT found", %rcx, $0
    test %rax, %rax
    jz finish64
    mov 76(%rax), %ecx
    mov %ecx, pm_port
    mov 112(%rax), %ebx                 /* flags: bit 8, 32 bits */
    mov %ecx, %edx
    in %dx, %eax
    mov %eax, %esi
    mov $2000000, %eax
    call spin
    in %dx, %eax
    sub %esi, %eax
    and $0xffffff, %eax
    setz %al
    movzbl %al, %eax
    check64 "PM timer moves", %rax, $0
    /* never backwards in 10000 reads */
    in %dx, %eax
    mov %eax, %esi
    mov $10000, %ecx
    xor %edi, %edi
1:  in %dx, %eax
    mov %eax, %r8d
    sub %esi, %eax
    and $0xffffff, %eax
    bt $23, %eax
    adc $0, %edi
    mov %r8d, %esi
    loop 1b
    check64 "PM timer: never backwards", %rdi, $0
    ret

/* EAX = PM timer. Loses EDX. */
read_pm:
    mov pm_port, %edx
    in %dx, %eax
    and $0xffffff, %eax
    ret

/* ------------------------------------------------------------------ 8254 */

pit:
    /* channel 2, mode 0, gate and output in port 61H */
    inp 0x61
    and $0xfc, %al
    or $1, %al                          /* gate on, speaker off */
    out %al, $0x61
    /* a host that is busy for 55 ms in between has it end before we look: once more then */
1:  call read_pm
    mov %eax, %edi
    outp 0x43, 0xb0
    outp 0x42, 0x00
    outp 0x42, 0x00                     /* 65536 counts: 55 ms */
    call read_pm
    mov %eax, %esi
    inp 0x61
    and $0x20, %eax
    mov %eax, %ebx
    call read_pm
    sub %edi, %eax
    and $0xffffff, %eax
    cmp $190000, %eax                   /* of the 196608 PM ticks that it takes */
    jae 1b
    check64 "8254 mode 0: output low while counting", %rbx, $0
    mov $200000000, %ecx
1:  inp 0x61
    test $0x20, %al
    jnz 2f
    loop 1b
2:  and $0x20, %eax
    check64 "8254 mode 0: output high at the end", %rax, $0x20
    call read_pm
    sub %esi, %eax
    and $0xffffff, %eax
    cmp $190000, %eax                   /* 65536 counts are 196608 PM ticks */
    setb %al
    movzbl %al, %eax
    check64 "8254 mode 0: not too early", %rax, $0
    /* read-back: status and count */
    outp 0x43, 0xb4                     /* channel 2, mode 2 */
    outp 0x42, 0xff
    outp 0x42, 0xff
    outp 0x43, 0xe8                     /* status of channel 2 */
    inp 0x42
    and $0x3f, %eax
    check64 "8254 read-back: mode 2, both bytes, binary", %rax, $0x34
    outp 0x43, 0x80                     /* latch channel 2 */
    inp 0x42
    mov %eax, %ebx
    inp 0x42
    shl $8, %eax
    or %eax, %ebx
    mov $1000000, %eax
    call spin
    outp 0x43, 0x80
    inp 0x42
    mov %eax, %ecx
    inp 0x42
    shl $8, %eax
    or %eax, %ecx
    cmp %ebx, %ecx
    sete %al
    movzbl %al, %eax
    check64 "8254 latch: counts", %rax, $0
    /* the gate stops a count in mode 2 */
    inp 0x61
    and $0xfe, %al
    out %al, $0x61
    outp 0x43, 0x80
    inp 0x42
    mov %eax, %ebx
    inp 0x42
    shl $8, %eax
    or %eax, %ebx
    mov $1000000, %eax
    call spin
    outp 0x43, 0x80
    inp 0x42
    mov %eax, %ecx
    inp 0x42
    shl $8, %eax
    or %eax, %ecx
    check64 "8254 gate low: stands still", %rcx, %rbx
    /* channel 0: interrupts */
    irq_forget VEC_PIC
    outp 0x43, 0x34
    outp 0x40, 0xa9                     /* 1193 counts: 1 ms */
    outp 0x40, 0x04
    outp 0x21, 0xfe
    call read_pm
    mov %eax, %esi
    expect_irqs "8254 mode 2: 20 interrupts", VEC_PIC, 20
    call read_pm
    sub %esi, %eax
    and $0xffffff, %eax
    cmp $PM_HZ / 1000 * 9, %eax
    setb %al
    movzbl %al, %eax
    check64 "8254 mode 2: not too fast", %rax, $0
    outp 0x21, 0xff
    /* one-shot: mode 0 gives one */
    outp 0x43, 0x30
    outp 0x40, 0x00
    outp 0x40, 0x04
    outp 0x21, 0xfe
    irq_forget VEC_PIC
    expect_irqs "8254 mode 0: an interrupt", VEC_PIC, 1
    sti
    mov $20000000, %eax
    call spin
    cli
    irq_counted VEC_PIC
    check64 "8254 mode 0: no other", %rax, $1
    outp 0x21, 0xff
    ret

/* ------------------------------------------------------------------ 8259 */

pic:
    inp 0x21
    check64 "8259: the mask reads back", %rax, $0xff
    outp 0x21, 0x5a
    inp 0x21
    check64 "8259: another mask", %rax, $0x5a
    outp 0x21, 0xff
    /* a masked request waits in IRR */
    outp 0x43, 0x30
    outp 0x40, 0x40
    outp 0x40, 0x00
    /* a busy host may be late with the request: some seconds at most */
    mov $2000, %ebx
1:  mov $5000000, %eax
    call spin
    outp 0x20, 0x0a                     /* OCW3: read IRR */
    inp 0x20
    and $1, %eax
    jnz 2f
    dec %ebx
    jnz 1b
2:  check64 "8259: IRR", %rax, $1
    outp 0x20, 0x0b
    inp 0x20
    check64 "8259: ISR empty", %rax, $0
    /* taken, it is in ISR until EOI */
    hook64 VEC_PIC, pic_handler
    outp 0x21, 0xfe
    sti
    nop
    nop
    cli
    mov pic_isr, %eax
    check64 "8259: ISR in the handler", %rax, $1
    outp 0x20, 0x0b
    inp 0x20
    check64 "8259: still in service", %rax, $1
    outp 0x20, 0x60                     /* specific EOI of IRQ 0 */
    inp 0x20
    check64 "8259: specific EOI", %rax, $0
    hook64 VEC_PIC, 0
    outp 0x21, 0xff
    /* poll mode */
    outp 0x43, 0x30
    outp 0x40, 0x40
    outp 0x40, 0x00
    outp 0x21, 0xfe
    /* a busy host may be late with the interrupt: some seconds at most */
    mov $2000, %ebx
1:  mov $5000000, %eax
    call spin
    outp 0x20, 0x0c
    inp 0x20
    test $0x80, %al
    jnz 2f
    dec %ebx
    jnz 1b
2:  check64 "8259: poll", %rax, $0x80
    outp 0x20, 0x20
    outp 0x20, 0x0c
    inp 0x20
    and $0x80, %eax
    check64 "8259: poll, nothing there", %rax, $0
    outp 0x21, 0xff
    ret

pic_handler:
    outp 0x20, 0x0b
    inp 0x20
    mov %eax, pic_isr
    ret

/* ------------------------------------------------------------------ HLT */

hlt_wakes:
    irq_forget VEC_PIC
    outp 0x43, 0x34
    outp 0x40, 0xa9
    outp 0x40, 0x04
    outp 0x21, 0xfe
    mov $5, %ecx
1:  sti                                 /* the shadow of STI covers HLT */
    hlt
    cli
    loop 1b
    irq_counted VEC_PIC
    cmp $5, %rax
    setb %al
    movzbl %al, %eax
    check64 "five HLTs, at least five interrupts", %rax, $0
    check64 "the frame points behind HLT", irq_rip, $(1b+2)
    outp 0x21, 0xff
    ret

/* ------------------------------------------------------------------ RTC */

.macro cmos_read index
    outp 0x70, \index
    inp 0x71
.endm

.macro cmos_write index, value
    outp 0x70, \index
    outp 0x71, \value
.endm

rtc:
    cmos_read 0x0d
    and $0x80, %eax
    check64 "RTC: valid RAM and time", %rax, $0x80
    cmos_write 0x50, 0xa5
    cmos_read 0x50
    check64 "RTC: RAM", %rax, $0xa5
    cmos_read 0x0b
    mov %eax, %ebx
    and $4, %eax
    check64 "RTC: BCD", %rax, $0
    cmos_read 8
    dec %eax
    cmp $0x12, %eax
    setae %al
    movzbl %al, %eax
    check64 "RTC: month", %rax, $0
    cmos_read 0x32
    check64 "RTC: century", %rax, $0x20
    /* periodic interrupt, 1024 Hz */
    cmos_read 0x0c
    irq_forget VEC_PIC+8
    cmos_write 0x0a, 0x26
    mov %ebx, %eax
    or $0x40, %eax
    mov %al, %cl
    outp 0x70, 0x0b
    mov %cl, %al
    out %al, $0x71
    outp 0x21, 0xfb
    outp 0xa1, 0xfe
    hook64 VEC_PIC+8, rtc_handler
    movl $0, rtc_count
    sti
    mov $400000000, %ecx
1:  cmpl $5, rtc_count
    jae 2f
    pause
    loop 1b
2:  cli
    mov rtc_count, %eax
    cmp $5, %eax
    setb %al
    movzbl %al, %eax
    check64 "RTC: five periodic interrupts", %rax, $0
    mov rtc_flags, %eax
    and $0xc0, %eax
    check64 "RTC: IRQF and PF in register C", %rax, $0xc0
    outp 0x70, 0x0b
    mov %bl, %al
    out %al, $0x71
    cmos_read 0x0c
    cmos_read 0x0c
    check64 "RTC: reading register C clears it", %rax, $0
    outp 0xa1, 0xff
    outp 0x21, 0xff
    hook64 VEC_PIC+8, 0
    ret

rtc_handler:
    cmos_read 0x0c
    mov %eax, rtc_flags
    incl rtc_count
    outp 0xa0, 0x20
    outp 0x20, 0x20
    ret

/* ------------------------------------------------------------------ HPET */

hpet:
    mov $0x54455048, %eax               /* "HPET" */
    call find_acpi
    test %rax, %rax
    setz %cl
    movzbl %cl, %ecx
    check64 "HPET table found", %rcx, $0
    test %rax, %rax
    jz 9f
    mov 44(%rax), %r8
    mov $HPET, %eax
    check64 "HPET: address", %r8, %rax
    mov (%r8), %rax
    mov %rax, %r9
    shr $32, %r9                        /* period in femtoseconds */
    mov %r9, %rcx
    dec %rcx
    cmp $100000000, %rcx
    setae %cl
    movzbl %cl, %ecx
    check64 "HPET: period", %rcx, $0
    shr $8, %eax
    and $0x1f, %eax
    cmp $2, %eax
    setb %cl
    movzbl %cl, %ecx
    check64 "HPET: at least three timers", %rcx, $0
    movq $0, 0x10(%r8)
    movq $0x123456, 0xf0(%r8)
    mov 0xf0(%r8), %rax
    check64 "HPET: halted, the counter is written", %rax, $0x123456
    movq $1, 0x10(%r8)
    mov $1000000, %eax
    call spin
    mov 0xf0(%r8), %rax
    cmp $0x123456, %rax
    setbe %cl
    movzbl %cl, %ecx
    check64 "HPET: enabled, it counts", %rcx, $0
    mov 0xf0(%r8), %ebx
    mov 0xf0(%r8), %rcx
    sub %rbx, %rcx
    cmp $0x10000000, %rcx
    setae %cl
    movzbl %cl, %ecx
    check64 "HPET: 32-bit and 64-bit reads agree", %rcx, $0
    /* timer 0, one-shot, legacy replacement: IRQ 0 */
    movq $0, 0x10(%r8)
    movq $0, 0xf0(%r8)
    movq $4, 0x100(%r8)                 /* edge, enabled */
    mov $1000000000000, %rax            /* 1 ms */
    xor %edx, %edx
    div %r9
    mov %rax, %r10
    mov %rax, 0x108(%r8)
    irq_forget VEC_PIC
    outp 0x21, 0xfe
    movq $3, 0x10(%r8)
    expect_irqs "HPET: one-shot through legacy replacement", VEC_PIC, 1
    mov 0xf0(%r8), %rax
    cmp %r10, %rax
    setb %cl
    movzbl %cl, %ecx
    check64 "HPET: not too early", %rcx, $0
    /* periodic */
    movq $0, 0x10(%r8)
    movq $0, 0xf0(%r8)
    mov 0x100(%r8), %rax
    and $0x10, %eax
    check64 "HPET: timer 0 is capable of periodic mode", %rax, $0x10
    movq $0x4c, 0x100(%r8)              /* periodic, the accumulator is written next */
    mov %r10, 0x108(%r8)
    mov %r10, 0x108(%r8)
    irq_forget VEC_PIC
    movq $3, 0x10(%r8)
    expect_irqs "HPET: periodic, five interrupts", VEC_PIC, 5
    mov 0xf0(%r8), %rax
    lea (%r10, %r10, 2), %rcx
    cmp %rcx, %rax
    setb %cl
    movzbl %cl, %ecx
    check64 "HPET: periodic, not too fast", %rcx, $0
    movq $0, 0x10(%r8)
    movq $0, 0x100(%r8)
    outp 0x21, 0xff
9:  ret

/* ------------------------------------------------------------------ TSC */

tsc:
    mov $10000, %ecx
    xor %edi, %edi
    xor %esi, %esi
1:  rdtsc
    shl $32, %rdx
    or %rdx, %rax
    cmp %rsi, %rax
    adc $0, %edi
    mov %rax, %rsi
    loop 1b
    check64 "TSC: never backwards", %rdi, $0
    wrmsr64 0x10, 0x100000000000
    rdtsc
    shr $12, %rdx
    check64 "TSC: written", %rdx, $1
    rdmsr64 0x10
    mov %rax, %rbx
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    sub %rbx, %rax
    bt $63, %rax
    setc %al
    movzbl %al, %eax
    check64 "TSC: the MSR is the same counter", %rax, $0
    ret

    .data
    .balign 8
pm_port: .long 0
pic_isr: .long 0
rtc_count: .long 0
rtc_flags: .long 0
