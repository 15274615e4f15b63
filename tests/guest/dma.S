/*
 * dma.S - code that a device writes
 *
 * The entropy device (virtio, PCI 00:02.0) writes over immediate operands of code that has run.
 * What it writes cannot be known, but the code must then do what memory says. In 64-bit code, in
 * compatibility code, through another address, on the page of the code that asks for it, and
 * across two pages.
 *
 * Spec: VIRTIO 1.2, 2.7 (split queues), 4.1.4 (PCI capabilities), 5.4; Intel SDM vol. 3, 8.1.3.
 */
#include "guest.h"

#define SLOT 2
#define ID_VIRTIO_RNG 0x10441af4
#define BAR_ADDRESS 0xc0000000
#define ROUNDS 200

/* virtio_pci_common_cfg */
#define FEATURE_SELECT 8
#define FEATURE 12
#define STATUS 20
#define QUEUE_SELECT 22
#define QUEUE_SIZE 24
#define QUEUE_VECTOR 26
#define QUEUE_ENABLE 28
#define QUEUE_NOTIFY_OFFSET 30
#define QUEUE_DESC 32
#define QUEUE_DRIVER 40
#define QUEUE_DEVICE 48

#define DESC_WRITE 2
#define CODE SCRATCH               /* a page of code, and the next one */

    .text
    .code64
    .globl main64
main64:
    call set_up
    jc 1f
    call plain
    call aliased
    call compatibility
    call own_page
    call two_pages
    call data
1:  ret

/* ------------------------------------------------------------------ the device */

/* EAX = configuration register EAX. */
pci_read:
    push %rdx
    or $0x80000000 | SLOT << 11, %eax
    mov $0xcf8, %edx
    out %eax, %dx
    mov $0xcfc, %edx
    in %dx, %eax
    pop %rdx
    ret

/* Configuration register EAX = ECX. */
pci_write:
    push %rdx
    or $0x80000000 | SLOT << 11, %eax
    mov $0xcf8, %edx
    out %eax, %dx
    mov $0xcfc, %edx
    mov %ecx, %eax
    out %eax, %dx
    pop %rdx
    ret

set_up:
    xor %eax, %eax
    call pci_read
    mov $ID_VIRTIO_RNG, %ecx
    check64 "the entropy device is there", %rax, %rcx
    cmp %ecx, %eax
    jne 9f
    mov $0x34, %eax
    call pci_read
    movzbl %al, %r12d                   /* R12: capability */
1:  test %r12d, %r12d
    jz 4f
    mov %r12d, %eax
    call pci_read
    mov %eax, %r13d                     /* R13: ID, next, length, type */
    cmp $9, %r13b
    jne 3f
    lea 4(%r12), %eax
    call pci_read
    movzbl %al, %r14d                   /* R14: BAR */
    lea 8(%r12), %eax
    call pci_read
    add $BAR_ADDRESS, %eax
    mov %r13d, %ecx
    shr $24, %ecx
    cmp $1, %ecx
    jne 2f
    mov %rax, common
    mov %r14, bar
2:  cmp $2, %ecx
    jne 3f
    mov %rax, notify
    lea 16(%r12), %eax
    call pci_read
    mov %rax, notify_multiplier
3:  movzbl %r13b, %eax
    mov %r13d, %r12d
    shr $8, %r12d
    movzbl %r12b, %r12d
    jmp 1b
4:  mov bar, %rax
    lea 0x10(, %rax, 4), %r12d
    mov %r12d, %eax
    call pci_read
    mov %eax, %r13d
    mov %r12d, %eax
    mov $BAR_ADDRESS, %ecx
    call pci_write
    and $6, %r13d
    cmp $4, %r13d                       /* 64 bits wide */
    jne 5f
    lea 4(%r12), %eax
    xor %ecx, %ecx
    call pci_write
5:  mov $4, %eax
    call pci_read
    or $6, %eax                         /* memory, bus master */
    mov %eax, %ecx
    mov $4, %eax
    call pci_write

    mov common, %rbx
    movb $0, STATUS(%rbx)
    movb $1, STATUS(%rbx)
    movb $3, STATUS(%rbx)
    movl $0, FEATURE_SELECT(%rbx)
    movl $0, FEATURE(%rbx)
    movl $1, FEATURE_SELECT(%rbx)
    movl $1, FEATURE(%rbx)              /* VERSION_1 */
    movb $0xb, STATUS(%rbx)
    movzbl STATUS(%rbx), %eax
    check64 "features accepted", %rax, $0xb
    movw $0, QUEUE_SELECT(%rbx)
    movw $8, QUEUE_SIZE(%rbx)
    movw $0xffff, QUEUE_VECTOR(%rbx)
    movl $descriptors, QUEUE_DESC(%rbx)
    movl $0, QUEUE_DESC + 4(%rbx)
    movl $available, QUEUE_DRIVER(%rbx)
    movl $0, QUEUE_DRIVER + 4(%rbx)
    movl $used, QUEUE_DEVICE(%rbx)
    movl $0, QUEUE_DEVICE + 4(%rbx)
    movw $1, QUEUE_ENABLE(%rbx)
    movzwl QUEUE_NOTIFY_OFFSET(%rbx), %eax
    imul notify_multiplier, %rax
    add %rax, notify
    movb $0xf, STATUS(%rbx)
    clc
    ret
9:  stc
    ret

/* The device writes ECX bytes at RDI; CPUID serializes. Changes RAX only; R8 counts failures. */
dma_write:
    push %rbx
    push %rcx
    push %rdx
    mov %rdi, descriptors
    mov %ecx, descriptors + 8
    movw $DESC_WRITE, descriptors + 12
    movw $0, descriptors + 14
    movzwl available + 2, %eax
    mov %eax, %edx
    and $7, %edx
    movw $0, available + 4(, %rdx, 2)
    inc %eax
    mov %ax, available + 2
    mov notify, %rbx
    movw $0, (%rbx)
    mov $100000000, %ecx
1:  cmp used + 2, %ax
    je 2f
    pause
    dec %ecx
    jnz 1b
    inc %r8
2:  xor %eax, %eax
    cpuid
    pop %rdx
    pop %rcx
    pop %rbx
    ret

/* ------------------------------------------------------------------ code */

/* mov $imm32, %eax; ret at RDI. */
put_code:
    movb $0xb8, (%rdi)
    movl $0x11111111, 1(%rdi)
    movb $0xc3, 5(%rdi)
    ret

.macro check_rounds name
    check64 "\name: the device answered", %r8, $0
    check64 "\name: rounds in which old code ran", %r9, $0
.endm

plain:
    xor %r8d, %r8d
    xor %r9d, %r9d
    mov $CODE, %edi
    call put_code
    mov $ROUNDS, %r10d
1:  mov $CODE, %edx
    mov $50, %r11d                      /* often enough to be worth a translation */
2:  call *%rdx
    dec %r11d
    jnz 2b
    lea 1(%rdx), %rdi
    mov $4, %ecx
    call dma_write
    call *%rdx
    cmp 1(%rdx), %eax
    je 3f
    inc %r9
3:  dec %r10d
    jnz 1b
    check_rounds "64-bit code"
    mov CODE + 1, %eax                  /* not what was there at first, but with luck of 2^-32 */
    cmp $0x11111111, %eax
    setne %al
    movzbl %al, %eax
    check64 "64-bit code: it was written", %rax, $1
    ret

/* Run through the user window's address, which is another one of the same frame. */
aliased:
    xor %r8d, %r8d
    xor %r9d, %r9d
    mov $ROUNDS, %r10d
1:  mov $CODE + USER_WINDOW, %edx
    call *%rdx
    mov $CODE + 1, %edi
    mov $4, %ecx
    call dma_write
    call *%rdx
    cmp CODE + 1, %eax
    jne 2f
    mov $CODE, %esi
    call *%rsi
    cmp CODE + 1, %eax
    je 3f
2:  inc %r9
3:  dec %r10d
    jnz 1b
    check_rounds "through another address"
    ret

/* The same bytes as 32-bit code. */
compatibility:
    xor %r8d, %r8d
    xor %r9d, %r9d
    mov $ROUNDS, %r10d
1:  call in_compatibility
    mov $CODE + 1, %edi
    mov $4, %ecx
    call dma_write
    call in_compatibility
    cmp CODE + 1, %eax
    je 2f
    inc %r9
2:  dec %r10d
    jnz 1b
    check_rounds "32-bit code"
    ret

in_compatibility:
    push %r8
    push %r9
    push %r10
    ljmp *compatible_pointer
    .code32
compatible:
    mov $CODE, %edx
    call *%edx
    ljmp $SEL_CODE64, $1f
    .code64
1:  pop %r10
    pop %r9
    pop %r8
    ret

/* The operand of an instruction behind the notification, in its block's page. */
own_page:
    xor %r8d, %r8d
    xor %r9d, %r9d
    mov $ROUNDS, %r10d
1:  mov $own_operand + 1, %edi
    mov $4, %ecx
    call dma_write
own_operand:
    mov $0x12345678, %eax
    cmp own_operand + 1, %eax
    je 2f
    inc %r9
2:  dec %r10d
    jnz 1b
    check_rounds "the page of the code that asks"
    ret

/* An instruction across two pages: the device writes the bytes of the second. */
two_pages:
    xor %r8d, %r8d
    xor %r9d, %r9d
    mov $CODE + 0xffd, %edi
    call put_code
    mov $ROUNDS, %r10d
1:  mov $CODE + 0xffd, %edx
    call *%rdx
    mov $CODE + 0x1000, %edi
    mov $2, %ecx
    call dma_write
    call *%rdx
    cmp 1(%rdx), %eax
    je 2f
    inc %r9
2:  dec %r10d
    jnz 1b
    check_rounds "across two pages"
    ret

/* Data: read before and after, through a translation that is cached. */
data:
    xor %r8d, %r8d
    xor %r9d, %r9d
    movq $0, SCRATCH + 0x4000
    mov SCRATCH + 0x4000, %rax
    mov $SCRATCH + 0x4000, %edi
    mov $64, %ecx
    call dma_write
    mov SCRATCH + 0x4000, %rax
    mov $SCRATCH + 0x4000 + USER_WINDOW, %edx
    cmp (%rdx), %rax
    je 1f
    inc %r9
1:  test %rax, %rax
    jnz 2f
    inc %r9
2:  check_rounds "data"
    ret

    .data
    .balign 8
compatible_pointer:
    .long compatible
    .word SEL_CODE32
    .balign 8
common: .quad 0
notify: .quad 0
notify_multiplier: .quad 0
bar: .quad 0

    .bss
    .balign 4096
descriptors: .skip 128
    .balign 16
available: .skip 64
    .balign 16
used: .skip 128
