/*
 * edges.S - the ends of the address space, and I/O permission maps at their ends
 *
 * Execution and data at the edges of the canonical halves and of 64 bits; then what the TSS's
 * limit and I/O map base make of port accesses of each width, and XSAVE headers.
 *
 * Spec: Intel SDM vol. 1, 3.3.7.1, 13.4.2, 13.8, 18.5.2; vol. 3, 5.3.1, 7.7.
 */
#include "guest.h"

#define LOW_END 0x0000800000000000
#define LAST_PAGE (LOW_END - 0x1000)
#define HIGH_START 0xffff800000000000
#define TOP_PAGE 0xfffffffffffff000
#define FRAME SCRATCH
#define FRAME2 (SCRATCH + 0x1000)
#define MAP 0x68                       /* of the I/O map in TSS64 */

    .text
    .code64
    .globl main64
main64:
    call map_edges
    call code_edges
    call data_edges
    call stack_edges
    call io_maps
    call headers
    ret

/* The last page of the lower half, the first of the upper, the last of all: FRAME, FRAME2, FRAME. */
map_edges:
    movq $low_pdpt + 7, pml4 + 255 * 8
    movq $low_pd + 7, low_pdpt + 511 * 8
    movq $low_pt + 7, low_pd + 511 * 8
    movq $FRAME + 7, low_pt + 511 * 8
    movq $high_pdpt + 7, pml4 + 256 * 8
    movq $high_pd + 7, high_pdpt
    movq $high_pt + 7, high_pd
    movq $FRAME2 + 7, high_pt
    movq $low_pdpt + 7, pml4 + 511 * 8
    mov %cr3, %rax
    mov %rax, %cr3
    ret

/* ------------------------------------------------------------------ code */

.macro check_fault name, vector, rip
    movq $0, try_resume
    check64 "\name: vector", exc_vector, $\vector
    movabs $\rip, %rcx
    check64 "\name: RIP", exc_rip, %rcx
.endm

code_edges:
    /* a NOP as the last byte below the hole: the next instruction is not there */
    movb $0x90, FRAME + 0xfff
    movabs $LOW_END - 1, %rdx
    try64 1f
    jmp *%rdx
1:  check_fault "running into the hole", 13, LOW_END
    check64 "running into the hole: error", exc_error, $0
    /* an instruction that reaches into it */
    movb $0xb8, FRAME + 0xffe
    movabs $LOW_END - 2, %rdx
    try64 1f
    jmp *%rdx
1:  check_fault "an instruction that reaches into the hole", 13, (LOW_END - 2)
    /* a short jump from the edge into the hole: the branch faults, as its target is bad */
    movw $0x00eb, FRAME + 0xffe
    movabs $LOW_END - 2, %rdx
    try64 1f
    jmp *%rdx
1:  check_fault "a jump to the next instruction, which is not canonical", 13, (LOW_END - 2)
    /* a conditional one that is not taken runs into it instead */
    movw $0x0074, FRAME + 0xffe
    or $1, %eax
    try64 1f
    jmp *%rdx
1:  check_fault "a jump that is not taken", 13, LOW_END
    /* back from the edge, and code that starts the upper half */
    movb $0xc3, FRAME + 0xfff
    movabs $LOW_END - 1, %rdx
    nofault64 "a return from the last byte", call *%rdx
    movb $0xc3, FRAME2
    movabs $HIGH_START, %rdx
    nofault64 "a call to the first byte of the upper half", call *%rdx
    /* a call as the last instruction pushes an address that is not canonical, and the RET faults */
    movw $0xd1ff, FRAME + 0xffe         /* call *%rcx */
    mov $edge_target, %ecx
    movabs $LOW_END - 2, %rdx
    mov %rsp, %rbp
    try64 1f
    jmp *%rdx
edge_target:
    mov (%rsp), %rbx
edge_ret:
    ret
1:  movq $0, try_resume
    mov %rbp, %rsp
    movabs $LOW_END, %rcx
    check64 "the return address of a call at the edge", %rbx, %rcx
    check64 "a return to it", exc_vector, $13
    check64 "a return to it: at the RET", exc_rip, $edge_ret
    /* the top of the address space: the last byte, then 0, which is mapped and not executed */
    movb $0xc3, FRAME + 0xfff
    mov $-1, %rdx
    nofault64 "a return from the very last byte", call *%rdx
    ret

/* ------------------------------------------------------------------ data */

data_edges:
    movabs $LOW_END - 8, %rbx
    movabs $0x1122334455667788, %rax
    nofault64 "the last quadword below the hole", movq %rax, (%rbx)
    check64 "it is there", FRAME+0xff8, %rax
    fault64 "one byte further", 13, 0, movq 1(%rbx), %rcx
    fault64 "the first byte of the hole", 13, 0, movb 8(%rbx), %cl
    movabs $HIGH_START, %rbx
    nofault64 "the first quadword of the upper half", movq %rax, (%rbx)
    check64 "it is there, as well", FRAME2, %rax
    fault64 "one byte before", 13, 0, movb -1(%rbx), %cl
    fault64 "from the hole into the upper half", 13, 0, movq -4(%rbx), %rcx
    /* from the last byte of all to the first: the addresses are canonical, and go on at 0 */
    mov $-4, %rbx
    movl $0xaabbccdd, FRAME + 0xffc
    mov 0, %eax
    mov %eax, %r12d
    nofault64 "a quadword from the top to the bottom", movq (%rbx), %rcx
    mov %ecx, %eax
    mov $0xaabbccdd, %edx
    check64 "its lower half is the top", %rax, %rdx
    shr $32, %rcx
    check64 "its upper half is the bottom", %rcx, %r12
    /* address arithmetic wraps at 64 bits, and at 32 with an address-size prefix */
    mov $-16, %rbx
    nofault64 "a displacement that wraps", movq SCRATCH+16(%rbx), %rcx
    check64 "what is there", %rcx, SCRATCH
    movabs $0x1fffffff0, %rbx
    nofault64 "32-bit addresses wrap", movl SCRATCH+16(%ebx), %ecx
    mov SCRATCH, %eax
    check64 "what is there, too", %rcx, %rax
    /* segment bases: the sum wraps, and is checked as a whole */
    wrmsr64 0xc0000100, 0xfffffffffffff000
    nofault64 "FS base and offset wrap", movb %fs:SCRATCH+0x1000, %cl
    wrmsr64 0xc0000100, 0x00007ffffffff000
    fault64 "FS base and offset in the hole", 13, 0, movb %fs:0x1000, %cl
    wrmsr64 0xc0000100, 0
    /* implicit operands */
    movabs $LOW_END - 4, %rdi
    mov $2, %ecx
    fault64 "a repeated store runs into the hole", 13, 0, rep stosl
    movabs $LOW_END, %rdx
    check64 "what it had done: RDI", exc_rdi, %rdx
    check64 "what it had done: RCX", exc_rcx, $1
    ret

/* ------------------------------------------------------------------ stack */

/* at_stack "name", vector, rsp, instructions: with RSP there; UD2 ends what goes through. */
.macro at_stack name, vector, where, insn:vararg
    movabs $\where, %rsp
    movq $.Lresume\@, try_resume
    mov %r13, try_rsp
    movq $NO_EXCEPTION, exc_vector
    \insn
    ud2
.Lresume\@:
    check64 "\name", exc_vector, $\vector
.endm

stack_edges:
    mov %rsp, %r13
    mov %rbp, %r12
    movb $1, idt64 + 6 * 16 + 4         /* #UD and #SS on a stack of their own */
    movb $1, idt64 + 12 * 16 + 4
    at_stack "push to the first quadword of the upper half", 6, HIGH_START+8, push %rax
    at_stack "push below it: #SS", 12, HIGH_START, push %rax
    check64 "push below it: error code", exc_error, $0
    at_stack "pop from the hole: #SS", 12, LOW_END, pop %rax
    at_stack "pop of the last quadword", 6, (LOW_END-8), pop %rax
    at_stack "a call that pushes into the hole: #SS", 12, HIGH_START, call *%rdx
    at_stack "enter at the edge", 6, LOW_END, enter $0, $0
    at_stack "enter that pushes into the hole: #SS", 12, HIGH_START, enter $0, $0
    mov $stack_edges, %eax
    at_stack "push with RSP 0: the top of the address space", 6, 0, push %rax
    check64 "what it pushed", FRAME+0xff8, $stack_edges
    movb $0, idt64 + 6 * 16 + 4
    movb $0, idt64 + 12 * 16 + 4
    mov %r12, %rbp
    movabs $LOW_END, %rbx
    fault64 "GP: through RBX", 13, 0, movb (%rbx), %al
    mov %rbp, %r12
    mov %rbx, %rbp
    fault64 "SS: through RBP", 12, 0, movb 0(%rbp), %al
    fault64 "GP: through RBP with DS", 12, 0, movb %ds:0(%rbp), %al
    fault64 "GP: RBP as an index, no base", 13, 0, movb 0(, %rbp, 1), %al
    mov %r12, %rbp
    ret

/* ------------------------------------------------------------------ I/O maps */

/* I/O map at MAP, TSS limit `limit`: ports 40H..5FH open but 4AH; then the byte of ones. */
.macro io_map limit
    movw $MAP, tss64 + 0x66
    movl $0, tss64 + MAP
    movl $0, tss64 + MAP + 4
    movl $0, tss64 + MAP + 8
    movb $0xff, tss64 + MAP + 12
    movb $4, tss64 + MAP + 9
    movw $\limit, gdt + SEL_TSS64
    andb $0xfd, gdt + SEL_TSS64 + 5
    mov $SEL_TSS64, %eax
    ltr %ax
.endm

io_maps:
    mov gdt + SEL_TSS64, %ax
    mov %ax, tss_limit
    mov tss64 + 0x66, %ax
    mov %ax, tss_map
    io_map (MAP+12)
    user_ok64 "io: open", inb $0x49, %al
    user_fault64 "io: closed", 13, 0, inb $0x4a, %al
    user_fault64 "io: a word into it", 13, 0, inw $0x49, %ax
    user_fault64 "io: a doubleword into it", 13, 0, inl $0x47, %eax
    user_ok64 "io: a doubleword before it", inl $0x46, %eax
    user_ok64 "io: behind it", inb $0x4b, %al
    user_ok64 "io: the last one before the ones", inb $0x5f, %al
    user_fault64 "io: a word into the ones", 13, 0, inw $0x5f, %ax
    user_fault64 "io: the byte of ones itself", 13, 0, inb $0x60, %al
    user_fault64 "io: beyond the limit", 13, 0, inb $0x68, %al
    mov $0x4a, %edx
    user_fault64 "io: outb to a closed port", 13, 0, outb %al, %dx
    user_fault64 "io: insb from a closed port", 13, 0, insb
    /* the processor reads two bytes of the map: the last one must be within the limit */
    io_map (MAP+9)
    user_fault64 "io: its second byte beyond the limit", 13, 0, inb $0x48, %al
    user_ok64 "io: both bytes within it", inb $0x40, %al
    /* a map base beyond the limit: no map */
    io_map (MAP-1)
    user_fault64 "io: no map", 13, 0, inb $0x40, %al
    nofault64 "io: ring 0 does not ask", inb $0x40, %al
    movq $0x3002, user_rflags
    user_ok64 "io: IOPL 3 does not ask", inb $0x40, %al
    movq $0x2002, user_rflags
    user_fault64 "io: IOPL 2 does", 13, 0, inb $0x40, %al
    movq $2, user_rflags
    mov tss_limit, %ax
    mov %ax, gdt + SEL_TSS64
    mov tss_map, %ax
    mov %ax, tss64 + 0x66
    andb $0xfd, gdt + SEL_TSS64 + 5
    mov $SEL_TSS64, %eax
    ltr %ax
    ret

/* ------------------------------------------------------------------ XSAVE headers */

.macro clean_area
    mov $area, %edi
    mov $1024 / 8, %ecx
    xor %eax, %eax
    rep stosq
    movw $0x37f, area
    movl $0x1f80, area + 24
    movq $3, area + 512
    mov $7, %eax
    xor %edx, %edx
.endm

headers:
    mov $1, %eax
    cpuid
    bt $26, %ecx
    jnc 9f
    mov %cr4, %rax
    or $0x40600, %rax
    mov %rax, %cr4
    xor %ecx, %ecx
    mov $3, %eax
    xor %edx, %edx
    xsetbv
    clean_area
    nofault64 "xrstor of a clean header", xrstor area
    movq $7, area + 512
    fault64 "GP: XSTATE_BV beyond XCR0", 13, 0, xrstor area
    mov $3, %eax                        /* not even asked for: the whole header is checked */
    fault64 "GP: XSTATE_BV beyond XCR0, not asked for", 13, 0, xrstor area
    clean_area
    xor %ebx, %ebx                      /* bytes 8 to 23 of the header must be 0 */
1:  movb $1, area + 520(%rbx)
    try64 2f
    xrstor area
2:  movq $0, try_resume
    movb $0, area + 520(%rbx)
    mov exc_vector, %rcx
    cmp $13, %ecx
    jne 3f
    inc %ebx
    cmp $16, %ebx
    jne 1b
3:  check64 "GP: header bytes 8 to 23", %rbx, $16
    clean_area
    movl $0x10000000, area + 24
    fault64 "GP: reserved bits of MXCSR", 13, 0, xrstor area
    mov $1, %eax
    nofault64 "not looked at when only x87 is asked for", xrstor area
    mov $5, %eax
    movq $1, area + 512
    nofault64 "nor without AVX and SSE being asked for", xrstor area
    clean_area
    movq $0, area + 512
    movl $0x10000000, area + 24
    mov $2, %eax
    fault64 "GP: MXCSR is looked at though XSTATE_BV has no SSE", 13, 0, xrstor area
    clean_area
    movq $0, area + 512
    movl $0x1fa0, area + 24
    nofault64 "xrstor that initializes", xrstor area
    stmxcsr area + 600
    mov area + 600, %eax
    and $0xffff, %eax
    check64 "MXCSR comes from memory even so", %rax, $0x1fa0
    clean_area
    nofault64 "xrstor", xrstor area
    fault64 "GP: xrstor, misaligned", 13, 0, xrstor area+16
    fault64 "UD: lock xrstor", 6, 0, .byte 0xf0, 0x0f, 0xae, 0x2c, 0x25, 0, 0, 0, 0
    /* XSAVE leaves the header's other bytes alone */
    movq $-1, area + 520
    mov $3, %eax
    xor %edx, %edx
    xsave area
    check64 "xsave leaves bytes 8 to 15 of the header", area+520, $-1
    /* compacted images */
    mov $0xd, %eax
    mov $1, %ecx
    cpuid
    bt $1, %eax
    jnc 9f
    clean_area
    mov $3, %eax
    xor %edx, %edx
    nofault64 "xsavec", xsavec area
    movabs $0x8000000000000003, %rcx
    check64 "xsavec: XCOMP_BV", area+520, %rcx
    nofault64 "xrstor of a compacted image", xrstor area
    movabs $0x8000000000000001, %rcx
    mov %rcx, area + 520
    movq $3, area + 512
    fault64 "GP: XSTATE_BV not within XCOMP_BV", 13, 0, xrstor area
    movabs $0x8000000000000007, %rcx
    mov %rcx, area + 520
    movq $3, area + 512
    fault64 "GP: XCOMP_BV beyond XCR0", 13, 0, xrstor area
    movabs $0x8000000000000003, %rcx
    mov %rcx, area + 520
    movq $1, area + 528
    fault64 "GP: compacted, header byte 16", 13, 0, xrstor area
    movq $0, area + 528
9:  ret

    .data
    .balign 64
area: .skip 1024
tss_limit: .word 0
tss_map: .word 0

    .bss
    .balign 4096
low_pdpt: .skip 4096
low_pd: .skip 4096
low_pt: .skip 4096
high_pdpt: .skip 4096
high_pd: .skip 4096
high_pt: .skip 4096
