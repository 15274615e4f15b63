/*
 * faults.S - exceptions during delivery, their order, and what holds off interrupts
 *
 * Every first event (exceptions of each class, INT n, INT3, an interrupt, NMI) is sent through a
 * gate that cannot be used, in each way there is; table 6-5 of the manual says whether the second
 * exception, the double fault, or the second with EXT set comes out of it. Then: which of two
 * reasons to fault is reported, and where interrupts are taken behind STI, MOV SS, POPF, IRET.
 *
 * Spec: Intel SDM vol. 3, 6.8.3, 6.9 (table 6-2), 6.13, 6.14.5, 6.15 (interrupts 8, 10 to 14, 17).
 */
#include "guest.h"
#include "machine.h"

#define SEL_ABSENT (SEL_FREE + 0)
#define TSS_IST(n) (tss64 + 0x24 + 8 * ((n) - 1))
#define GONE 0x700000000000             /* canonical, and nothing there */
#define VEC_IPI 0x60

/* How the gate is spoilt. */
#define GATE_ABSENT 0
#define GATE_TO_DATA 1
#define GATE_TO_ABSENT 2
#define GATE_STACK_GONE 3
#define GATE_STACK_BAD 4
#define GATE_END 5

/* Classes of the first event. */
#define BENIGN 0
#define CONTRIBUTORY 1
#define PAGE_FAULT 2
#define SOFTWARE 3
#define EXTERNAL 4

    .text
    .code64
    .globl main64
main64:
    set_gdt64 SEL_ABSENT, 0x0000ffff, 0x00af1b00
    movabs $GONE, %rax
    mov %rax, TSS_IST(3)
    movabs $0x4000000000000000, %rax
    mov %rax, TSS_IST(4)
    mov %cr0, %rax
    and $~0xc, %rax
    or $0x22, %rax                      /* NE, MP */
    mov %rax, %cr0
    mov %cr4, %rax
    or $0x600, %rax
    mov %rax, %cr4
    mov $LAPIC, %eax
    movl $0x1ff, LAPIC_SVR(%rax)
    movl $2, eoi_mode
    call pairs
    call order
    call shadows
    call alignment
    ret

/* ------------------------------------------------------------------ pairs of exceptions */

pairs:
    mov $first_events, %r12d            /* R12: row of the table */
1:  mov (%r12), %rax
    test %rax, %rax
    jz 3f
    xor %r13d, %r13d                    /* R13: how the gate is spoilt */
2:  call one_pair
    inc %r13d
    cmp $GATE_END, %r13d
    jne 2b
    add $32, %r12
    jmp 1b
3:  check64 "pairs that went wrong", pair_failures, $0
    ret

one_pair:
    mov 8(%r12), %rax
    shl $4, %rax
    lea idt64(%rax), %r14               /* R14: the gate */
    mov (%r14), %rax
    mov %rax, gate_saved
    mov 8(%r14), %rax
    mov %rax, gate_saved + 8
    jmp *spoil(, %r13, 8)
spoil_absent:
    andb $0x7f, 5(%r14)
    jmp 1f
spoil_to_data:
    movw $SEL_DATA, 2(%r14)
    jmp 1f
spoil_to_absent:
    movw $SEL_ABSENT, 2(%r14)
    jmp 1f
spoil_stack_gone:
    movb $3, 4(%r14)
    jmp 1f
spoil_stack_bad:
    movb $4, 4(%r14)
1:  call expect_pair                    /* R15: vector << 32 | error */
    mov %rsp, pair_rsp
    try64 pair_done
    jmp *(%r12)
pair_done:
    movq $0, try_resume
    mov pair_rsp, %rsp
    mov gate_saved, %rax
    mov %rax, (%r14)
    mov gate_saved + 8, %rax
    mov %rax, 8(%r14)
    mov $LAPIC, %eax                    /* an interrupt was accepted, whatever its gate */
    movl $0, LAPIC_EOI(%rax)
    clts
    fnclex
    movl $0x1f80, mxcsr
    ldmxcsr mxcsr
    mov $SEL_DATA, %eax
    mov %eax, %ss
    mov exc_vector, %rax
    shl $32, %rax
    or exc_error, %rax
    cmp %r15, %rax
    jne pair_wrong
    /* a page fault of the stack: CR2 is where the frame would have gone */
    mov %r15, %rdx
    shr $32, %rdx
    cmp $14, %edx
    jne 2f
    movabs $GONE - 8, %rcx
    mov exc_cr2, %rax
    cmp %rcx, %rax
    je 2f
    check64 "pair: CR2", %rax, %rcx
    jmp pair_wrong
2:  ret
pair_wrong:
    incq pair_failures
    mov 8(%r12), %rcx
    check64 "pair: first vector", %rcx, $0x100
    check64 "pair: gate", %r13, $0x100
    mov exc_vector, %rax
    shl $32, %rax
    or exc_error, %rax
    check64 "pair: vector and error code", %rax, %r15
    ret

/* The second exception, and what becomes of it after the first. */
expect_pair:
    mov 8(%r12), %eax
    mov second_vector(, %r13, 8), %rcx
    xor %edx, %edx                      /* error code */
    cmp $GATE_ABSENT, %r13d
    jne 1f
    lea 2(, %rax, 8), %edx
1:  cmp $GATE_TO_DATA, %r13d
    jne 1f
    mov $SEL_DATA, %edx
1:  cmp $GATE_TO_ABSENT, %r13d
    jne 1f
    mov $SEL_ABSENT, %edx
1:  mov 16(%r12), %rax
    cmp $14, %ecx
    jne 2f
    mov $2, %edx                        /* a supervisor's write */
    cmp $PAGE_FAULT, %eax
    je expect_double
    jmp expect_second
2:  cmp $PAGE_FAULT, %eax
    je expect_double
    cmp $CONTRIBUTORY, %eax
    je expect_double
    cmp $SOFTWARE, %eax
    je expect_second
    or $1, %edx                         /* EXT */
expect_second:
    mov %rcx, %r15
    shl $32, %r15
    or %rdx, %r15
    ret
expect_double:
    mov $8, %r15d
    shl $32, %r15
    ret

raise_de:
    xor %ecx, %ecx
    div %ecx
    ud2
raise_ud:
    ud2
raise_nm:
    mov %cr0, %rax
    or $8, %rax
    mov %rax, %cr0
    fld1
    ud2
raise_mf:
    fninit
    movw $0x37b, word
    fldcw word
    fld1
    fldz
    fdivrp
    fwait
    ud2
raise_xm:
    movl $0x1d80, mxcsr
    ldmxcsr mxcsr
    mov $0x3f800000, %eax
    movd %eax, %xmm0
    xorps %xmm1, %xmm1
    divss %xmm1, %xmm0
    ud2
raise_np:
    mov $SEL_ABSENT, %eax
    mov %eax, %gs
    ud2
raise_gp:
    mov $SEL_END, %eax
    mov %eax, %gs
    ud2
raise_ss:
    movabs $0x4000000000000000, %rbp
    mov (%rbp), %rax
    ud2
raise_pf:
    movabs $0x600000000000, %rax
    mov (%rax), %rax
    ud2
raise_int:
    int $0x50
    ud2
raise_int3:
    int3
    ud2
raise_nmi:
    mov $LAPIC, %eax
    movl $0x44400, LAPIC_ICR(%rax)      /* NMI to self */
    mov $1000, %ecx
1:  pause
    loop 1b
    ud2
raise_ipi:
    mov $LAPIC, %eax
    movl $0x44000 + VEC_IPI, LAPIC_ICR(%rax)
    sti
    mov $1000, %ecx
1:  pause
    loop 1b
    ud2

/* ------------------------------------------------------------------ one of two reasons */

order:
    movabs $GONE, %rbx
    fault64 "UD before PF: lock mov", 6, 0, .byte 0xf0, 0x89, 0x03
    fault64 "UD before PF: group 5 /7", 6, 0, .byte 0xff, 0x3b
    fault64 "PF before DE: div by memory", 14, 0, divl (%rbx)
    mov %cr0, %rax
    or $8, %rax
    mov %rax, %cr0
    fault64 "NM before PF: fldl", 7, 0, fldl (%rbx)
    fault64 "NM before PF: movups", 7, 0, movups (%rbx), %xmm0
    fault64 "UD before NM: lock fld1 is none", 6, 0, .byte 0xf0, 0xd9, 0xe8
    clts
    fault64 "GP before PF: movaps, misaligned", 13, 0, movaps 1(%rbx), %xmm0
    fault64 "UD before GP: mov to CR1", 6, 0, .byte 0x0f, 0x22, 0xc8
    user_fault64 "GP before PF: user lgdt", 13, 0, lgdt (%rbx)
    user_fault64 "GP before PF: user invlpg", 13, 0, invlpg (%rbx)
    user_fault64 "UD before GP: user mov to CR5", 6, 0, .byte 0x0f, 0x22, 0xe8
    user_fault64 "PF: user outs checks the port first", 13, 0, outsb
    mov %rbx, %rsi
    lea 0x10000(%rbx), %rdi
    fault64 "PF: movsb", 14, 0, movsb
    check64 "PF: movsb: the source first", exc_cr2, %rbx
    /* an instruction breakpoint comes before the fetch's own page fault */
    mov %rbx, %db0
    mov $0x402, %eax
    mov %rax, %db7
    try64 1f
    jmp *%rbx
1:  movq $0, try_resume
    xor %eax, %eax
    mov %rax, %db7
    check64 "DB before PF: an instruction breakpoint", exc_vector, $1
    check64 "DB before PF: at the target", exc_rip, %rbx
    mov exc_dr6, %rax
    and $0xf, %eax
    check64 "DB before PF: B0", %rax, $1
    mov $0xffff0ff0, %eax
    mov %rax, %db6
    /* PUSH of memory: the load's fault, then the stack's */
    mov %rsp, %rbp
    movb $1, idt64 + 14 * 16 + 4
    try64 1f
    lea 0x10000(%rbx), %rsp
    pushq (%rbx)
1:  movq $0, try_resume
    mov %rbp, %rsp
    check64 "push: the operand first", exc_cr2, %rbx
    check64 "push: a read", exc_error, $0
    /* and CALL through memory that is not there */
    try64 1f
    lea 0x10000(%rbx), %rsp
    call *(%rbx)
1:  movq $0, try_resume
    mov %rbp, %rsp
    check64 "call: the operand first", exc_cr2, %rbx
    movb $0, idt64 + 14 * 16 + 4
    ret

/* ------------------------------------------------------------------ where interrupts come in */

.macro send_ipi
    mov $LAPIC, %eax
    movl $0x44000 + VEC_IPI, LAPIC_ICR(%rax)
1:  testl $1, LAPIC_IRR + 0x30(%rax)    /* vector 60H: bit 0 of the fourth word */
    jz 1b
.endm

.macro check_taken name, at
    check64 "\name", irq_rip, $\at
.endm

shadows:
    movq $0, irq_count + VEC_IPI * 8
    send_ipi
    sti
    nop
shadow1:
    nop
    cli
    check_taken "sti: after the next instruction", shadow1
    send_ipi
    sti
    cli
    nop
    check64 "sti, cli: not at all", irq_count+VEC_IPI*8, $1
    sti
    nop
    cli
    check64 "and now", irq_count+VEC_IPI*8, $2
    /* POPF and IRET have no shadow */
    send_ipi
    pushq $0x202
    popf
shadow2:
    nop
    cli
    check_taken "popf: at once", shadow2
    send_ipi
    mov %rsp, %rbp
    pushq $SEL_DATA
    push %rbp
    pushq $0x202
    pushq $SEL_CODE64
    pushq $shadow3
    iretq
shadow3:
    nop
    cli
    check_taken "iret: at once", shadow3
    /* MOV SS holds off, whether IF was set or is being set */
    send_ipi
    mov $SEL_DATA, %eax
    sti
    mov %eax, %ss
    nop
shadow4:
    nop
    cli
    check_taken "sti, mov SS: after the instruction behind it", shadow4
    /* STI with IF set makes no new shadow: the first one covers one instruction */
    send_ipi
    sti
    sti
shadow5:
    nop
    nop
    cli
    check_taken "sti, sti: after the second", shadow5
    /* STI, HLT: woken, the frame points behind HLT */
    send_ipi
    sti
    hlt
shadow6:
    nop
    cli
    check_taken "sti, hlt: after it", shadow6
    /* a fault of the instruction in the shadow: the shadow is over in its handler's IRET */
    movq $0, irq_count + VEC_IPI * 8
    hook64 6, skip_ud
    send_ipi
    sti
    ud2
    nop
    nop
    cli
    hook64 6, 0
    check64 "sti, a fault: taken afterwards", irq_count+VEC_IPI*8, $1
    /* TF: the step comes before the interrupt, so the interrupt waits for the handler's IRET */
    movq $0, irq_count + VEC_IPI * 8
    hook64 1, note_step
    send_ipi
    pushq $0x302
    popf
step_then:
    nop
    cli
    pushq $2
    popf
    hook64 1, 0
    check64 "TF and an interrupt: it was taken", irq_count+VEC_IPI*8, $1
    ret

skip_ud:
    addq $2, F64_RIP(%rdi)
    ret

note_step:
    mov $0xffff0ff0, %eax
    mov %rax, %db6
    ret

/* ------------------------------------------------------------------ #AC */

/* With CR0.AM and RFLAGS.AC, in ring 3 only: each size to its own alignment. */
alignment:
    mov %cr0, %rax
    or $0x40000, %rax
    mov %rax, %cr0
    movq $0x40002, user_rflags
    mov $SCRATCH + USER_WINDOW + 1, %ebx
    user_ok64 "AC: bytes", movb (%rbx), %al
    user_fault64 "AC: a word at 1", 17, 0, movw (%rbx), %ax
    user_ok64 "AC: a word at 2", movw 1(%rbx), %ax
    user_fault64 "AC: a doubleword at 2", 17, 0, movl 1(%rbx), %eax
    user_ok64 "AC: a doubleword at 4", movl 3(%rbx), %eax
    user_fault64 "AC: a quadword at 4", 17, 0, movq 3(%rbx), %rax
    user_ok64 "AC: a quadword at 8", movq 7(%rbx), %rax
    user_fault64 "AC: a locked word", 17, 0, lock incw (%rbx)
    decq user_rsp64
    user_fault64 "AC: a push", 17, 0, push %rax
    incq user_rsp64
    user_fault64 "AC: a double at 4", 17, 0, fldl 3(%rbx)
    user_ok64 "AC: a single at 4", flds 3(%rbx)
    mov %rbx, %rsi
    lea 7(%rbx), %rdi
    user_fault64 "AC: movs, the source", 17, 0, movsw
    mov %rdi, %rsi
    mov %rbx, %rdi
    user_fault64 "AC: movs, the destination", 17, 0, movsw
    user_ok64 "AC: lea", lea (%rbx), %rax
    user_ok64 "AC: prefetch", prefetcht0 (%rbx)
    nofault64 "AC: not in ring 0", movq (%rbx), %rax
    pushq $0x40002
    popf
    nofault64 "AC: not in ring 0 with AC", movq (%rbx), %rax
    pushq $2
    popf
    mov %cr0, %rax
    and $~0x40000, %rax
    mov %rax, %cr0
    user_ok64 "AC: not without CR0.AM", movq (%rbx), %rax
    movq $2, user_rflags
    ret

    .data
    .balign 8
/* raises it, vector, class */
first_events:
    .quad raise_de, 0, CONTRIBUTORY, 0
    .quad raise_ud, 6, BENIGN, 0
    .quad raise_nm, 7, BENIGN, 0
    .quad raise_np, 11, CONTRIBUTORY, 0
    .quad raise_ss, 12, CONTRIBUTORY, 0
    .quad raise_gp, 13, CONTRIBUTORY, 0
    .quad raise_pf, 14, PAGE_FAULT, 0
    .quad raise_mf, 16, BENIGN, 0
    .quad raise_xm, 19, BENIGN, 0
    .quad raise_int, 0x50, SOFTWARE, 0
    .quad raise_int3, 3, SOFTWARE, 0
    .quad raise_nmi, 2, EXTERNAL, 0
    .quad raise_ipi, VEC_IPI, EXTERNAL, 0
    .quad 0
spoil:
    .quad spoil_absent, spoil_to_data, spoil_to_absent, spoil_stack_gone, spoil_stack_bad
second_vector:
    .quad 11, 13, 11, 14, 12
pair_failures: .quad 0
pair_rsp: .quad 0
mxcsr: .long 0
word: .word 0
    .balign 8
gate_saved: .quad 0, 0
