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
#include "entropy.h"

#define ROUNDS 200

#define CODE SCRATCH               /* a page of code, and the next one */

    .text
    .code64
    .globl main64
main64:
    call entropy_set_up
    jc 1f
    call plain
    call aliased
    call compatibility
    call own_page
    call two_pages
    call data
1:  ret

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
    call entropy_write
    call *%rdx
    cmp 1(%rdx), %eax
    je 3f
    inc %r9
3:  dec %r10d
    jnz 1b
    check_rounds "64-bit code"
    mov CODE + 1, %eax                  /* not what was there at first, but with luck of 2^-32 */
    cmp $0x11111111, %eax
    check_that ne, "64-bit code: it was written"
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
    call entropy_write
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
    call entropy_write
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
    call entropy_write
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
    call entropy_write
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
    call entropy_write
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
