/*
 * crossing.S - instructions that begin in one page and end in the next
 *
 * Their second half may be written, remapped or taken away without the first page noticing. Each
 * step runs the code several times, because a translator may do it another way from the second
 * time on. Intel SDM vol. 3, 4.10 (invalidation), 9.1.3 (self-modifying code).
 */
#include "guest.h"

#define TEST 0x10000000000
#define FRAMES SCRATCH                  /* frames of the two pages, and a third */
#define AT (FRAMES + 0xffd)             /* mov $imm32, %eax: three bytes and two */
#define TAIL (FRAMES + 0x1000)

    .text
    .code64
    .globl main64
main64:
    movq $test_pdpt + 7, pml4 + 2 * 8
    movq $test_pd + 7, test_pdpt
    movq $test_pt + 7, test_pd
    movq $FRAMES + 7, test_pt
    movq $FRAMES + 0x1007, test_pt + 8
    movabs $TEST + 0xffd, %r8
    movabs $TEST + 0x1000, %r9
    call put
    call plain
    call tail_written
    call head_written
    call remapped
    call absent
    call branch
    call itself
    ret

/* mov $0x44332211, %eax; ret */
put:
    movb $0xb8, AT
    movw $0x2211, AT + 1
    movw $0x4433, TAIL
    movb $0xc3, TAIL + 2
    ret

/* Run it, \times times; EAX is what it gives. */
.macro run name, want, times=3
    mov $\times, %ebp
1:  xor %eax, %eax
    call *%r8
    mov $\want, %ecx
    check64 "\name", %rax, %rcx
    dec %ebp
    jnz 1b
.endm

plain:
    run "across pages", 0x44332211, 5
    ret

tail_written:
    movb $0x55, TAIL                    /* by another address */
    run "its second half written", 0x44552211
    movb $0x66, 1(%r9)
    run "its last byte written", 0x66552211
    movb $0x90, TAIL + 0x800            /* beside it */
    run "something else written", 0x66552211
    call put
    run "put back", 0x44332211
    ret

head_written:
    movb $0x77, AT + 2
    run "its first half written", 0x44337711
    movb $0xbb, AT                      /* mov $imm32, %ebx */
    mov $3, %ebp
1:  xor %ebx, %ebx
    call *%r8
    mov $0x44337711, %ecx
    check64 "its opcode written", %rbx, %rcx
    dec %ebp
    jnz 1b
    /* shorter now: it does not cross any more */
    movl $0x909001b0, AT                /* mov $1, %al; nop; nop */
    movb $0x90, TAIL + 1
    run "shorter", 1
    call put
    run "long again", 0x44332211
    ret

remapped:
    movw $0x8877, FRAMES + 0x2000
    movb $0xc3, FRAMES + 0x2002
    mov $2, %ebx
2:  movq $FRAMES + 0x2007, test_pt + 8
    invlpg (%r9)
    run "its second page remapped", 0x88772211
    movq $FRAMES + 0x1007, test_pt + 8
    invlpg (%r9)
    run "and back", 0x44332211
    movq $FRAMES + 0x2007, test_pt + 8
    mov %cr3, %rax
    mov %rax, %cr3
    run "remapped, all flushed", 0x88772211
    movq $FRAMES + 0x1007, test_pt + 8
    mov %cr3, %rax
    mov %rax, %cr3
    run "and back, all flushed", 0x44332211
    dec %ebx
    jnz 2b
    ret

absent:
    mov $2, %ebx
2:  movq $0, test_pt + 8
    invlpg (%r9)
    try64 3f
    call *%r8
3:  movq $0, try_resume
    check64 "its second page absent: #PF", exc_vector, $14
    check64 "error: a fetch", exc_error, $0x10
    check64 "CR2 is in the second page", exc_cr2, %r9
    check64 "RIP is at the instruction", exc_rip, %r8
    movq $FRAMES + 0x1007, test_pt + 8
    invlpg (%r9)
    run "present again", 0x44332211
    dec %ebx
    jnz 2b
    ret

/* A conditional branch across the pages, taken and not. */
branch:
    movb $0x0f, AT                      /* jz TAIL + 6 */
    movw $0x0384, AT + 1
    movl $0xb0000000, TAIL              /* its end; mov $1, %al; ret */
    movw $0xc301, TAIL + 4
    movw $0x02b0, TAIL + 6              /* mov $2, %al; ret */
    movb $0xc3, TAIL + 8
    mov $4, %ebp
1:  xor %eax, %eax                      /* ZF */
    call *%r8
    check64 "a branch across pages, taken", %rax, $2
    xor %eax, %eax
    test %rsp, %rsp
    call *%r8
    check64 "a branch across pages, not taken", %rax, $1
    dec %ebp
    jnz 1b
    call put
    ret

/* One that writes to its own second half: movb $imm8, 4(%r9), to the immediate; ret. */
itself:
    mov $3, %ebp
1:  movb $0x41, AT
    movw $0x81c6, AT + 1
    movl $4, TAIL
    movw $0x90c3, TAIL + 4
    movb $0xc3, TAIL + 6
    call *%r8
    movzbl TAIL + 4, %eax
    check64 "writes itself", %rax, $0xc3
    movb $0x55, TAIL + 4
    call *%r8
    movzbl TAIL + 4, %eax
    check64 "writes itself, changed", %rax, $0x55
    dec %ebp
    jnz 1b
    call put
    run "at the end", 0x44332211
    ret

    .bss
    .balign 4096
test_pdpt: .skip 4096
test_pd: .skip 4096
test_pt: .skip 4096
