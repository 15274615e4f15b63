/*
 * strips.S - loops that walk through memory, as the translator runs them without checks
 *
 * Whatever ends such a stretch (code beneath the stores, an interrupt, a fault, the end of RAM) must
 * find the state that instruction after instruction would have left.
 */
#include "guest.h"
#include "machine.h"

#define CODE (SCRATCH+0x10000)
#define ENTRY (CODE+0x40)
#define FROM (SCRATCH+0x20000)
#define BEFORE 0x140                    /* bytes that are copied before those of the code */
#define DATA (SCRATCH+0x30000)

    .text
    .code64
    .globl main64
main64:
    call copies_over_itself
    call interrupted
    call divides_by_zero
    call pages_end
    call end_of_ram
    ret

    .section .rodata
template:
1:  mov (%rsi), %al
    mov %al, (%rdi)
    inc %rsi
    inc %rdi
template_add:
    add $1, %ebx
    dec %ecx
    jnz 1b
    ret
template_end:
    .text
#define LENGTH (BEFORE+template_end-template)
#define PATCHED (BEFORE+template_add+2-template) /* the byte that becomes 2 */

/* A copy that ends on the page of the loop itself and changes it. */
copies_over_itself:
    mov $ENTRY, %edi
    mov $template, %esi
    mov $template_end - template, %ecx
    rep movsb
    mov $FROM + BEFORE, %edi
    mov $template, %esi
    mov $template_end - template, %ecx
    rep movsb
    movb $2, FROM + PATCHED
    mov $FROM, %esi
    mov $ENTRY - BEFORE, %edi
    mov $LENGTH, %ecx
    xor %ebx, %ebx
    mov $ENTRY, %eax
    call *%rax
    check64 "a copy over its own loop", %rbx, $PATCHED+2*(LENGTH-PATCHED)
    check64 "its source", %rsi, $FROM+LENGTH
    check64 "its destination", %rdi, $ENTRY-BEFORE+LENGTH
    ret

/* ------------------------------------------------------------------ interrupts */

interrupted:
    hook64 VEC_PIC, on_tick
    mov $0x34, %al                      /* channel 0, mode 2, 1 kHz */
    out %al, $0x43
    mov $0xa9, %al
    out %al, $0x40
    mov $0x04, %al
    out %al, $0x40
    mov $0xfe, %al
    out %al, $0x21
    /* a loop that looks at memory */
    movl $0, ticks
    movq $0, leave_to
    sti
1:  inc %rax
    cmpl $3, ticks
    jb 1b
    cli
    mov ticks, %eax
    cmp $3, %eax
    setb %al
    movzbl %al, %eax
    check64 "a loop waits for interrupts", %rax, $0
    /* one that does not, and has no end but the interrupt's */
    xor %ebx, %ebx
    xor %edx, %edx
    mov $DATA, %r15d
    movq $0, DATA
    movl $0, ticks
    movq $2f, leave_to
    sti
1:  inc %rbx
    mov %rbx, (%r15)
    inc %rdx
    jmp 1b
2:  cli
    mov left_from, %rax
    sub $1b, %rax                       /* 3 and 6: behind the first, the second; else 0 or 9 */
    sub $3, %rax
    cmp $3, %rax
    setbe %al
    movzbl %al, %eax
    add %rdx, %rax
    check64 "left by an interrupt between instructions", %rax, %rbx
    mov left_from, %rax
    sub $1b, %rax
    cmp $3, %rax
    sete %al
    movzbl %al, %eax
    add DATA, %rax
    check64 "with its stores done", %rax, %rbx
    /* two pages that lead to each other, by branches that look where they go and by others */
    movl $0, ticks
    movq $2f, leave_to
    mov $1f, %esi
    mov $from_other_page, %edi
    sti
1:  jmp *%rdi
2:  cli
    movl $0, ticks
    movq $2f, leave_to
    sti
    jmp other_page
    .balign 4096
other_page:
    jmp this_page
from_other_page:
    jmp *%rsi
    .balign 4096
this_page:
    jmp other_page
2:  cli
    check64 "pages that lead to each other are left by an interrupt", leave_to, $0
    mov $0xff, %al
    out %al, $0x21
    hook64 VEC_PIC, 0
    ret

/* RDI: the frame. At the third tick it goes on at leave_to, when there is one. */
on_tick:
    mov $0x20, %al
    out %al, $0x20
    incl ticks
    cmpl $3, ticks
    jb 1f
    cmpq $0, leave_to
    je 1f
    mov F64_RIP(%rdi), %rax
    mov %rax, left_from
    mov leave_to, %rax
    mov %rax, F64_RIP(%rdi)
    movq $0, leave_to
1:  ret

/* ------------------------------------------------------------------ faults */

/* The 38th divisor is 0. Most registers are in use, so that some have to give way. */
divides_by_zero:
    mov $DATA, %edi
    mov $100, %ecx
    mov $5, %eax
    rep stosl
    movl $0, DATA + 37 * 4
    mov $DATA, %esi
    mov $DATA + 0x2000, %edi
    mov $100, %ecx
    xor %r11d, %r11d
    mov $7, %r15d
    mov $0x1008, %r8d
    mov $0x1009, %r9d
    mov $0x1012, %r12d
    mov $0x1013, %r13d
    mov $0x1014, %r14d
    mov $0x1010, %r10d
    try64 2f
1:  mov $100, %eax
    xor %edx, %edx
    divl (%rsi)
    add %eax, %r11d
    mov %r11d, (%rdi)
    add $4, %rsi
    add $8, %rdi
    inc %r15
    dec %ecx
    jnz 1b
2:  movq $0, try_resume
    check64 "#DE midway", exc_vector, $0
    check64 "source", %rsi, $DATA+37*4
    check64 "destination", %rdi, $DATA+0x2000+37*8
    check64 "count", %rcx, $63
    check64 "sum", %r11, $37*20
    check64 "another counter", %r15, $44
    check64 "dividend", %rax, $100
    check64 "R8", %r8, $0x1008
    check64 "R9", %r9, $0x1009
    check64 "R10", %r10, $0x1010
    check64 "R12", %r12, $0x1012
    check64 "R13", %r13, $0x1013
    check64 "R14", %r14, $0x1014
    ret

/* Elements that cross pages, upwards and downwards. */
pages_end:
    mov $DATA + 0x0fc3, %esi
    mov $1000, %ecx
    xor %eax, %eax
1:  add $3, %rax
    mov %rax, (%rsi)
    add $8, %rsi
    dec %ecx
    jnz 1b
    mov $1000, %ecx
    xor %edx, %edx
1:  sub $8, %rsi
    add (%rsi), %rdx
    dec %ecx
    jnz 1b
    check64 "elements that cross pages", %rdx, $1501500
    check64 "back where it began", %rsi, $DATA+0x0fc3
    ret

/* From RAM to where there is none. */
end_of_ram:
    mov $0x9ff80, %esi
    mov $0x100, %ecx
    xor %ebx, %ebx
1:  movzbl (%rsi), %eax
    add %rax, %rbx
    inc %rsi
    dec %ecx
    jnz 1b
    mov $0x9ff80, %esi
    mov $0x100, %ecx
    xor %edx, %edx
    xor %eax, %eax
1:  lodsb
    add %rax, %rdx
    loop 1b
    check64 "from RAM to where there is none", %rbx, %rdx
    ret

    .bss
    .balign 8
ticks: .skip 8
leave_to: .skip 8
left_from: .skip 8
