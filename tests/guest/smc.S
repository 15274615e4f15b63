/*
 * smc.S - code that is written while it runs, through its own address and others
 *
 * A store to the linear address of the very next instructions is seen at once (Intel SDM vol. 3,
 * "Handling Self- and Cross-Modifying Code", and all processors since the Pentium); one through
 * another linear address is followed by a serializing instruction here.
 */
#include "guest.h"

#define TEST 0x10000000000
#define CODE (SCRATCH + 0x10000)       /* where generated code goes */
#define SEL_CODE16_1M SEL_FREE

    .text
    .code32
    .globl main32, main64
main32:
    set_gdt32 SEL_CODE16_1M, 0x0000ffff, 0x00009b10
    /* 32-bit code */
    movl $0x12345678, 1f + 1
1:  mov $0, %eax
    check32 "32-bit: the next instruction", %eax, $0x12345678
    xor %ebx, %ebx
    mov $100, %ecx
1:  mov %ecx, 2f + 2
2:  add $0x11111111, %ebx
    loop 1b
    check32 "32-bit: in a loop", %ebx, $5050
    /* 16-bit code */
    ljmp $SEL_CODE16_1M, $1f - 0x100000
    .code16
1:  mov $0x4321, %ax
    addr32 mov %ax, 2f + 1
2:  mov $0, %bx
    ljmpl $SEL_CODE32, $1f
    .code32
1:  movzwl %bx, %ebx
    check32 "16-bit: the next instruction", %ebx, $0x4321
    ret

    .code64
main64:
    call in_block
    call loops
    call by_strings
    call generated
    call aliases
    call remapped
    call two_modes
    call edges
    call data_beside_code
    ret

in_block:
    movb $0x77, 1f + 1(%rip)
1:  mov $0, %eax
    check64 "the next instruction", %rax, $0x77
    /* a conditional jump becomes the other */
    xor %eax, %eax
    movb $0x75, 1f                      /* jz becomes jnz */
    cmp %eax, %eax
1:  jz 2f
    mov $1, %eax
2:  check64 "jz becomes jnz", %rax, $1
    /* instructions become longer: two nops become jmp */
    xor %eax, %eax
    movw $0x02eb, 1f
1:  nop
    nop
    inc %eax
    check64 "two nops become a jump", %rax, $0
    /* PUSH and XCHG write code as well */
    mov %rsp, %rbp
    mov $1f + 8, %esp
    movabs $0x9090900000002ab8, %rax    /* mov $42, %eax; nop; nop; nop */
    push %rax
1:  .skip 8, 0x90
    mov %rbp, %rsp
    check64 "push onto the next instruction", %rax, $42
    mov $0x55, %eax
    xchg %eax, 1f + 1
1:  mov $0x66, %ebx
    check64 "xchg with the next instruction", %rbx, $0x55
    check64 "xchg gives the old bytes", %rax, $0x66
    ret

loops:
    /* the body patches itself further down, over and over */
    xor %ebx, %ebx
    mov $1000, %ecx
1:  mov %ecx, 2f + 2
    nop
2:  add $0x11111111, %ebx
    dec %ecx
    jnz 1b
    check64 "loop that patches itself ahead", %rbx, $500500
    /* and further up */
    xor %ebx, %ebx
    mov $1000, %ecx
    movl $0, 1f + 2
1:  add $0x11111111, %ebx
    mov %ecx, 1b + 2
    dec %ecx
    jnz 1b
    check64 "loop that patches itself behind", %rbx, $500499
    /* a function called between patches */
    xor %ebx, %ebx
    mov $1000, %ecx
1:  mov %ecx, patched + 1
    call patched
    add %eax, %ebx
    dec %ecx
    jnz 1b
    check64 "a function patched between calls", %rbx, $500500
    ret

    .balign 64
patched:
    mov $0, %eax
    ret

by_strings:
    mov $1f, %edi
    mov $new_code, %esi
    mov $new_code_end - new_code, %ecx
    rep movsb
1:  mov $1, %eax
    mov $2, %ebx
    check64 "rep movsb onto the next instruction", %rax, $0x1111
    check64 "and the one after", %rbx, $0x2222
    mov $1f, %edi
    mov $0x90, %al
    mov $6, %ecx
    xor %ebx, %ebx
    rep stosb
1:  inc %ebx
    inc %ebx
    inc %ebx
    check64 "rep stosb of nops", %rbx, $0
    /* SSE store */
    mov %cr4, %rax
    or $0x200, %rax
    mov %rax, %cr4
    movups sse_code, %xmm0
    movups %xmm0, 1f
1:  mov $1, %eax
    mov $2, %ebx
    nop
    nop
    nop
    nop
    nop
    nop
    check64 "16-byte store onto the next instruction", %rax, $0x3333
    lock orl $0x0f, 1f + 1
1:  mov $0x70, %eax
    check64 "locked read-modify-write", %rax, $0x7f
    mov $0x55, %edx
    mov $0x01, %eax
    lock cmpxchg %edx, 1f + 1
1:  mov $0x01, %ecx
    check64 "lock cmpxchg", %rcx, $0x55
    ret

new_code:
    mov $0x1111, %eax
    mov $0x2222, %ebx
new_code_end:
sse_code:
    mov $0x3333, %eax
    mov $0x4444, %ebx
    .skip 6, 0x90

/* Functions written to memory, called, and written over. */
generated:
    xor %ebx, %ebx
    mov $200, %ecx
1:  mov $CODE, %edi
    movb $0xb8, (%rdi)                  /* mov $ecx, %eax; ret */
    mov %ecx, 1(%rdi)
    movb $0xc3, 5(%rdi)
    call *%rdi
    add %eax, %ebx
    dec %ecx
    jnz 1b
    check64 "generated over and over", %rbx, $20100
    /* many functions in one page, one of them changed */
    mov $CODE, %edi
    xor %ecx, %ecx
1:  movb $0xb8, (%rdi)
    mov %ecx, 1(%rdi)
    movb $0xc3, 5(%rdi)
    add $8, %rdi
    inc %ecx
    cmp $512, %ecx
    jb 1b
    call sum_functions
    check64 "512 functions in a page", %rbx, $(511*512/2)
    addl $1000, CODE + 8 * 100 + 1
    call sum_functions
    check64 "one of them changed", %rbx, $(511*512/2+1000)
    ret

sum_functions:
    xor %ebx, %ebx
    mov $CODE, %edi
    mov $512, %ecx
1:  call *%rdi
    add %eax, %ebx
    add $8, %rdi
    loop 1b
    ret

/* A second linear address of the same frame; CPUID serializes. */
aliases:
    movq $test_pdpt + 7, pml4 + 2 * 8
    movq $test_pd + 7, test_pdpt
    movq $test_pt + 7, test_pd
    movq $CODE + 7, test_pt
    movq $CODE + 0x1007, test_pt + 8
    movabs $TEST, %r8
    mov $CODE, %edi
    movl $0xb8, (%rdi)
    movb $0, 4(%rdi)
    movb $0xc3, 5(%rdi)
    xor %r10d, %r10d
    mov $100, %r11d
1:  mov %r11d, 1(%r8)                   /* written here, */
    xor %eax, %eax
    cpuid
    call *%rdi                          /* run there */
    add %eax, %r10d
    dec %r11d
    jnz 1b
    check64 "written through an alias", %r10, $5050
    xor %r10d, %r10d
    mov $100, %r11d
1:  mov %r11d, 1(%rdi)
    xor %eax, %eax
    cpuid
    call *%r8
    add %eax, %r10d
    dec %r11d
    jnz 1b
    check64 "run through an alias", %r10, $5050
    /* both run, then one is written */
    call *%rdi
    call *%r8
    movl $0x7777, 1(%r8)
    xor %eax, %eax
    cpuid
    call *%rdi
    mov %eax, %ebx
    check64 "both have run: the one", %rbx, $0x7777
    call *%r8
    check64 "both have run: the other", %rax, $0x7777
    /* code that writes itself through the alias */
    mov $self_code, %esi
    mov $CODE + 0x200, %edi
    mov $self_code_end - self_code, %ecx
    rep movsb
    mov $CODE + 0x200, %edi
    mov $0x5678, %ecx
    call *%rdi
    check64 "code that writes itself through an alias", %rax, $0x5678
    mov $0x8765, %ecx
    call *%rdi
    check64 "and once more", %rax, $0x8765
    ret

self_code:
    mov %ecx, 0x200 + 1f - self_code + 1(%r8)
    xor %eax, %eax
    push %rbx
    push %rcx
    cpuid
    pop %rcx
    pop %rbx
1:  mov $0, %eax
    ret
self_code_end:

/* The same linear address, another frame with other code. */
remapped:
    movl $0x11b8, CODE
    movw $0xc300, CODE + 4
    movl $0x22b8, CODE + 0x1000
    movw $0xc300, CODE + 0x1004
    movb $0, CODE + 3
    movb $0, CODE + 0x1003
    movabs $TEST, %r8
    xor %ebx, %ebx
    mov $50, %ecx
1:  movq $CODE + 7, test_pt
    invlpg (%r8)
    call *%r8
    add %eax, %ebx
    movq $CODE + 0x1007, test_pt
    invlpg (%r8)
    call *%r8
    add %eax, %ebx
    loop 1b
    check64 "another frame at the same address", %rbx, $(50*0x33)
    /* a jump across pages, its target remapped */
    movb $0xe9, CODE + 0xff0            /* jmp to the next page */
    movl $0xb, CODE + 0xff1
    movq $CODE + 7, test_pt
    invlpg (%r8)
    movl $0x33b8, CODE + 0x2000
    movl $0x90c300, CODE + 0x2004
    movb $0, CODE + 0x2003
    xor %ebx, %ebx
    lea 0xff0(%r8), %rdi
    mov $50, %ecx
1:  movq $CODE + 0x1007, test_pt + 8
    invlpg 0x1000(%r8)
    call *%rdi
    add %eax, %ebx
    movq $CODE + 0x2007, test_pt + 8
    invlpg 0x1000(%r8)
    call *%rdi
    add %eax, %ebx
    loop 1b
    check64 "a jump to a page that is remapped", %rbx, $(50*0x55)
    /* code that is no longer there, or no longer executable */
    movq $0, test_pt + 8
    invlpg 0x1000(%r8)
    try64 1f
    call *%rdi
1:  movq $0, try_resume
    check64 "the page is gone: vector", exc_vector, $14
    lea 0x1000(%r8), %rax
    check64 "the page is gone: CR2", exc_cr2, %rax
    movq $CODE + 0x1007, test_pt + 8
    btsq $63, test_pt + 8
    try64 1f
    call *%rdi
1:  movq $0, try_resume
    check64 "no longer executable: error", exc_error, $0x11
    ret

/* The same bytes in 64-bit and in 32-bit code. */
two_modes:
    movl $0x90c0ff48, CODE              /* 64-bit: inc %rax; 32-bit: dec %eax, inc %eax */
    movb $0xc3, CODE + 4
    mov $CODE, %edi
    mov $5, %eax
    call *%rdi
    check64 "48 FF C0 in 64-bit code", %rax, $6
    ljmp *compat_pointer
    .code32
1:  mov $5, %eax
    call *%edi
    check32 "48 FF C0 in 32-bit code", %eax, $5
    ljmp $SEL_CODE64, $2f
    .code64
2:  mov $5, %eax
    call *%rdi
    check64 "and in 64-bit code again", %rax, $6
    ret
    .pushsection .data
    .balign 8
compat_pointer:
    .long 1b
    .word SEL_CODE32
    .popsection

/* An instruction across two pages, one half of it changed. */
edges:
    movq $CODE + 7, test_pt
    movq $CODE + 0x1007, test_pt + 8
    movabs $TEST, %r8
    invlpg (%r8)
    invlpg 0x1000(%r8)
    movb $0xb8, CODE + 0xffd
    movw $0x2211, CODE + 0xffe
    movw $0x4433, CODE + 0x1000
    movb $0xc3, CODE + 0x1002
    lea 0xffd(%r8), %rdi
    call *%rdi
    check64 "across two pages", %rax, $0x44332211
    movw $0x6655, CODE + 0x1000
    xor %eax, %eax
    cpuid
    call *%rdi
    check64 "its second half changed", %rax, $0x66552211
    movw $0x8877, CODE + 0xffe
    xor %eax, %eax
    cpuid
    call *%rdi
    check64 "its first half changed", %rax, $0x66558877
    /* one store across the edge */
    movl $0x01020304, 1(%rdi)
    call *%rdi
    check64 "one store to both halves", %rax, $0x01020304
    /* the second page becomes another */
    movl $0x00c3ccbb, CODE + 0x2000
    movq $CODE + 0x2007, test_pt + 8
    invlpg 0x1000(%r8)
    call *%rdi
    mov $0xccbb0304, %ecx
    check64 "its second half remapped", %rax, %rcx
    ret

/* A counter in the page of the loop that increments it. */
data_beside_code:
    movq $0, counter
    mov $200000, %ecx
1:  incq counter
    dec %ecx
    jnz 1b
    check64 "data beside code", counter, $200000
    /* and one in the cache line of the code */
    movl $0, close_counter
    mov $20000, %ecx
    jmp 1f
close_counter: .long 0
1:  incl close_counter
    dec %ecx
    jnz 1b
    mov close_counter, %eax
    check64 "data between instructions", %rax, $20000
    ret
    .balign 8
counter: .quad 0

    .bss
    .balign 4096
test_pdpt: .skip 4096
test_pd: .skip 4096
test_pt: .skip 4096
