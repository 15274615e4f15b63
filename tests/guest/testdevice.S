/*
 * testdevice.S - the test device: register, interrupt lines, buffer; firmware configuration
 *
 * Expectations: what QEMU's pc-testdev and fw_cfg do, and for edges the 82093AA data sheet. QEMU 7.2
 * (run.sh's "qemu") takes a second write to a high line for another edge, and gives up at line 23.
 */
#include "guest.h"
#include "machine.h"

#define VEC_EDGE 0x70
#define VEC_LEVEL 0x81
#define BUFFER 0xff000000
#define IOAPIC_LEVEL 0x8000
#define IOAPIC_MASKED 0x10000

    .text
    .code64
    .globl main64
main64:
    lapic_write LAPIC_SVR, $0x1ff
    movl $2, eoi_mode
    call register
    call flush
    call buffer
    call edge
    call level
    call pic
    call config
    ret

register:
    mov $0x44332211, %eax
    out %eax, $0xe0
    xor %eax, %eax
    in $0xe0, %eax
    check64 "register: 32 bits", %rax, $0x44332211
    xor %eax, %eax
    in $0xe2, %al
    check64 "register: a byte", %rax, $0x33
    xor %eax, %eax
    in $0xe2, %ax
    check64 "register: a word", %rax, $0x4433
    in $0xe8, %eax
    check64 "register: at E8H too", %rax, $0x44332211
    mov $0x99, %al
    out %al, $0xe9
    mov $0x7788, %ax
    out %ax, $0xe2
    in $0xe0, %eax
    check64 "register: parts written", %rax, $0x77889911
    /* string instructions reach it as well */
    mov $SCRATCH, %esi
    movl $0x01020304, (%rsi)
    mov $0xe0, %edx
    cld
    outsl
    mov $(SCRATCH+16), %edi
    movl $0, (%rdi)
    mov $0xe8, %edx
    mov $4, %ecx
1:  insb
    inc %edx
    loop 1b
    mov SCRATCH+16, %eax
    check64 "register: OUTSD, INSB", %rax, $0x01020304
    ret

flush:
    mov $SCRATCH, %ebx
    movl $0x12345678, (%rbx)
    mov %ebx, %eax
    out %eax, $0xe4
    mov (%rbx), %eax
    check64 "flush: the page is as it was", %rax, $0x12345678
    movl $0x23456789, (%rbx)
    mov (%rbx), %eax
    check64 "flush: and can be written", %rax, $0x23456789
    ret

buffer:
    mov $BUFFER, %ebx
    mov $0x1122334455667788, %rax
    mov %rax, (%rbx)
    mov (%rbx), %rcx
    check64 "buffer: 64 bits", %rcx, %rax
    movzwl 3(%rbx), %eax
    check64 "buffer: an odd word", %rax, $0x4455
    movb $0xee, 0xffff(%rbx)
    movzbl 0xffff(%rbx), %eax
    check64 "buffer: its last byte", %rax, $0xee
    lock addl $0x10, (%rbx)
    mov (%rbx), %eax
    check64 "buffer: read and written by one instruction", %rax, $0x55667798
    lea 0x100(%rbx), %rdi
    mov %rbx, %rsi
    mov $8, %ecx
    rep movsb
    mov 0x100(%rbx), %rax
    mov (%rbx), %rcx
    check64 "buffer: copied within", %rax, %rcx
    mov %cr4, %rdx
    or $0x200, %edx                     /* OSFXSR */
    mov %rdx, %cr4
    movdqu (%rbx), %xmm0
    movdqu %xmm0, 0x201(%rbx)
    mov 0x201(%rbx), %rax
    check64 "buffer: vectors", %rax, %rcx
    ret

.macro line n, level
    mov $(0x2000+\n), %edx
    mov $\level, %al
    out %al, (%dx)
.endm

.macro window
    sti
    nop
    nop
    cli
.endm

/* One interrupt for each rise. */
edge:
    ioapic_entry 14, VEC_EDGE, 0
    irq_forget VEC_EDGE
    line 14, 1
    expect_irqs "edge: a rise", VEC_EDGE, 1
    line 14, 1
    window
    irq_counted VEC_EDGE
    check64 "edge: high already", %rax, $1
    line 14, 0
    window
    irq_counted VEC_EDGE
    check64 "edge: a fall", %rax, $1
    line 14, 0x80
    expect_irqs "edge: another rise, any value but 0", VEC_EDGE, 2
    line 14, 0
    ioapic_entry 14, IOAPIC_MASKED, 0
    /* one of the IOAPIC's own inputs */
    ioapic_entry 23, VEC_EDGE, 0
    irq_forget VEC_EDGE
    line 23, 1
    expect_irqs "edge: line 23", VEC_EDGE, 1
    line 23, 0
    ioapic_entry 23, IOAPIC_MASKED, 0
    ret

/* As long as the line is high: the handler lowers it the third time. */
level:
    hook64 VEC_LEVEL, level_handler
    ioapic_entry 15, (IOAPIC_LEVEL+VEC_LEVEL), 0
    irq_forget VEC_LEVEL
    line 15, 1
    expect_irqs "level: until it is lowered", VEC_LEVEL, 3
    window
    irq_counted VEC_LEVEL
    check64 "level: and no more", %rax, $3
    ioapic_entry 15, IOAPIC_MASKED, 0
    hook64 VEC_LEVEL, 0
    ret

level_handler:
    lock incq irq_count + VEC_LEVEL * 8
    cmpl $3, irq_count + VEC_LEVEL * 8
    jne 1f
    mov $0x200f, %edx
    xor %eax, %eax
    out %al, (%dx)
1:  lapic_write LAPIC_EOI, $0
    ret

/* Line 5 through the 8259 pair, which the local APIC's LINT0 takes. */
pic:
    lapic_write LAPIC_LVT_LINT0, $0x700
    movl $1, eoi_mode
    irq_forget VEC_PIC+5
    mov $0xdf, %al
    out %al, $0x21
    line 5, 1
    expect_irqs "8259: line 5", VEC_PIC+5, 1
    line 5, 0
    mov $0xff, %al
    out %al, $0x21
    movl $2, eoi_mode
    lapic_write LAPIC_LVT_LINT0, $0x10000
    ret

/* RAX = ECX bytes of item EAX. */
read_item:
    mov $0x510, %edx
    out %ax, (%dx)
    inc %edx
    xor %ebx, %ebx
    xor %esi, %esi
1:  xor %eax, %eax
    in (%dx), %al
    push %rcx
    mov %esi, %ecx
    shl %cl, %rax
    pop %rcx
    or %rax, %rbx
    add $8, %esi
    loop 1b
    mov %rbx, %rax
    ret

.macro item name, key, bytes, want
    mov $\key, %eax
    mov $\bytes, %ecx
    call read_item
    check64 "\name", %rax, $\want
.endm

config:
    item "firmware configuration: signature", 0, 4, 0x554d4551
    item "firmware configuration: memory", 3, 8, (64<<20)
    item "firmware configuration: processors", 5, 2, 1
    item "firmware configuration: behind the end", 5, 8, 1
    item "firmware configuration: at most", 0x0f, 2, 1
    ret
