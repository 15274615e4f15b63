/*
 * doublefault.S - which pairs of exceptions make a double fault
 *
 * Intel SDM vol. 3, "Interrupt 8 - Double Fault Exception": contributory after contributory, page
 * fault or contributory after page fault. Everything else is handled one after the other.
 */
#include "guest.h"

#define SEL_ABSENT (SEL_FREE+0)
#define GATE_DE idt32
#define GATE_GP idt32 + 13 * 8

    .text
    .code32
    .globl main32, main64
main32:
    set_gdt32 SEL_ABSENT, 0x0000ffff, 0x00cf9b00
    andb $0x7f, gdt + SEL_ABSENT + 5
    xor %ecx, %ecx
    andb $0x7f, GATE_DE + 5
    fault32 "DE, then its gate is absent (contributory twice)", 8, 0, div %ecx
    orb $0x80, GATE_DE + 5
    movw $SEL_DATA, GATE_DE + 2
    fault32 "DE, then its gate leads to data", 8, 0, div %ecx
    movw $SEL_ABSENT, GATE_DE + 2
    fault32 "DE, then its gate leads to absent code", 8, 0, div %ecx
    movw $SEL_CODE32, GATE_DE + 2
    andb $0x7f, GATE_GP + 5
    mov $SEL_END, %eax
    fault32 "GP, then its gate is absent", 8, 0, mov %eax, %gs
    orb $0x80, GATE_GP + 5
    /* benign first: one after the other, the second with EXT */
    andb $0x7f, idt32 + 6 * 8 + 5
    fault32 "UD, then NP: no double fault", 11, (6*8+3), ud2
    movw $SEL_DATA, idt32 + 6 * 8 + 2
    orb $0x80, idt32 + 6 * 8 + 5
    fault32 "UD, then GP: no double fault", 13, (SEL_DATA+1), ud2
    movw $SEL_CODE32, idt32 + 6 * 8 + 2
    /* INT n is benign, and no external event */
    andb $0x7f, idt32 + 0x70 * 8 + 5
    fault32 "INT n, then NP", 11, (0x70*8+2), int $0x70
    fault32 "a plain fault afterwards", 0, 0, div %ecx
    ret

    .code64
main64:
    movb $2, idt64 + 8 * 16 + 4         /* #DF on IST2 */
    xor %ecx, %ecx
    andb $0x7f, idt64 + 5
    fault64 "DE, then its gate is absent", 8, 0, div %ecx
    orb $0x80, idt64 + 5
    /* a page fault, then #GP: the IDT ends before vector 14 */
    mov $14 * 16 - 1, %eax
    mov %ax, short_idt
    movq $idt64, short_idt + 2
    lidt short_idt
    movabs $0x0000700000000000, %rbx
    fault64 "PF, then GP", 8, 0, mov (%rbx), %rax
    lidt idt64_pointer
    /* #UD is benign; #PF pushing its frame; #PF pushing that one's */
    mov %rsp, %rbp
    try64 1f
    mov %rbx, %rsp
    ud2
1:  movq $0, try_resume
    mov %rbp, %rsp
    check64 "UD without a stack: PF, then PF", exc_vector, $8
    check64 "double fault: error code", exc_error, $0
    check64 "double fault: RSP", exc_rsp, %rbx
    mov $ist2_stack_end - F64_SS - 8, %rax
    check64 "double fault: on IST2", exc_frame, %rax
    /* with a stack for #PF, there is no double fault */
    movb $1, idt64 + 14 * 16 + 4
    try64 1f
    mov %rbx, %rsp
    ud2
1:  movq $0, try_resume
    mov %rbp, %rsp
    check64 "UD without a stack, PF with one", exc_vector, $14
    lea -8(%rbx), %rcx
    check64 "CR2 is where the frame would have gone", exc_cr2, %rcx
    mov exc_error, %rax
    check64 "a supervisor write to a page that is not there", %rax, $2
    movb $0, idt64 + 14 * 16 + 4
    /* #PF, then the page of the #PF handler's gate is not there: #PF twice */
    fault64 "a plain fault afterwards", 14, 0, mov (%rbx), %rax
    movw $0xfff, short_idt
    call map_half_idt
    lidt short_idt
    fault64 "PF, then PF reading the IDT", 8, 0, mov 0x10000(%rbx), %rax
    lidt idt64_pointer
    movb $0, idt64 + 8 * 16 + 4
    ret

/*
 * An IDT that starts 13 gates before the end of a page, the next page not being there: #DF has a
 * gate, #PF has none that can be read.
 */
map_half_idt:
    movq $half_pdpt + 7, pml4 + 0xe0 * 8
    movq $half_pd + 7, half_pdpt
    movq $half_pt + 7, half_pd
    movq $half_page + 3, half_pt
    mov $idt64, %esi
    mov $half_page + 4096 - 13 * 16, %edi
    mov $13 * 2, %ecx
    rep movsq
    movabs $0x0000700000001000 - 13 * 16, %rax
    mov %rax, short_idt + 2
    ret

    .data
    .balign 8
short_idt: .quad 0, 0

    .bss
    .balign 4096
half_page: .skip 4096
half_pdpt: .skip 4096
half_pd: .skip 4096
half_pt: .skip 4096
