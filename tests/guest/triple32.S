/*
 * triple32.S - a triple fault in 32-bit mode: #GP without a gate, without one for #DF
 */
#include "guest.h"

    .text
    .code32
    .globl main32
main32:
    check32 "about to die", $1, $1
    movb $0, idt32 + 13 * 8 + 5
    movb $0, idt32 + 8 * 8 + 5
    mov $SEL_END, %eax
    mov %eax, %gs
    check32 "still alive", $1, $0
    ret
