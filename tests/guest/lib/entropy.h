/*
 * entropy.h - the entropy device (virtio, PCI 00:02.0), for guests that want one that writes memory
 * and interrupts; to be included once, 64-bit code
 *
 * Spec: VIRTIO 1.2, 2.7 (split queues), 4.1.4 (PCI capabilities), 5.4.
 */
#define SLOT 2
#define ID_VIRTIO_RNG 0x10441af4
#define BAR_ADDRESS 0xc0000000
#define MSIX_ADDRESS 0xc0100000

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

    .text
    .code64
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

entropy_set_up:
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
    cmp $1, %r13b
    jne 6f
    mov %r12, entropy_pm
6:  cmp $0x11, %r13b
    jne 7f
    mov %r12, entropy_msix
7:  cmp $9, %r13b
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
2:  cmp $3, %ecx
    jne 8f
    mov %rax, entropy_isr
8:  cmp $2, %ecx
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
entropy_write:
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

    .data
    .balign 8
common: .quad 0
notify: .quad 0
notify_multiplier: .quad 0
bar: .quad 0
entropy_isr: .quad 0
entropy_pm: .quad 0                    /* capabilities: where they are */
entropy_msix: .quad 0

    .bss
    .balign 4096
descriptors: .skip 128
    .balign 16
available: .skip 64
    .balign 16
used: .skip 128
    .text
