/*
 * smoke.S - the runtime itself: both modes, checks, catching exceptions, interrupts, exit
 */
#include "guest.h"

    .text
    .code32
    .globl main32, main64
main32:
    check32 "multiboot magic", multiboot_magic, $0x2badb002
    fault32 "ud2 in 32-bit mode", 6, 0, ud2
    trap32 "int3 in 32-bit mode", 3, 0, int3
    nofault32 "nop in 32-bit mode", nop
    int $0x40
    check32 "software interrupt counted", irq_count+0x40*8, $1
    ret

    .code64
main64:
    fault64 "ud2 in 64-bit mode", 6, 0, ud2
    trap64 "int3 in 64-bit mode", 3, 0, int3
    mov $SCRATCH, %rax
    movabs $0x4000000000000000, %rbx
    fault64 "non-canonical load", 13, 0, mov (%rax, %rbx), %rcx
    nofault64 "load", mov (%rax), %rcx
    int $0x41
    check64 "software interrupt counted in 64-bit mode", irq_count+0x41*8, $1
    call leave_long
    .code32
    fault32 "back in 32-bit mode", 6, 0, ud2
    call enter_long
    .code64
    fault64 "and in 64-bit mode again", 6, 0, ud2
    ret
