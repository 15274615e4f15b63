/*
 * triple.S - a triple fault in 64-bit mode; doppel ends with status 2
 */
#include "guest.h"

    .text
    .code64
    .globl main64
main64:
    check64 "about to die", $1, $1
    lidt no_idt
    ud2
    check64 "still alive", $1, $0
    ret

    .data
no_idt: .quad 0, 0
