/*
 * tables.S - loads of table elements beside constants, which a translator may be tempted to share
 *
 * An element may lie in the page of the table's start, in another, across both, or nowhere. Each
 * step runs the code several times, because a translator may do it another way from the second
 * time on. Intel SDM vol. 3, 4.8 (accessed flags), 4.10 (invalidation).
 */
#include "guest.h"

#define TEST 0x10000000000
#define FRAMES SCRATCH                  /* code; the table's start; its end; something else */
#define ALIAS 0x1000000                 /* in software TLBs, addresses so far apart may meet */
#define TABLE (TEST + 0x1810)
#define LOW 0x9008                      /* slot 9; TABLE has slot 1 of 4096 */

    .section .rodata
    .balign 16
template:
/* RAX = element at RSI bytes, plus the constant; CF stays. */
plain_code:
    mov template + 0x1800(%rip), %rax
    lea template + 0x1810(%rip), %rdi
    mov (%rdi,%rsi), %rbx
    setc %cl
    movzbl %cl, %ecx
    add %rbx, %rax
    ret
/* The same without the constant where RDX is zero: nothing then needs the table's own page. */
    .balign 64
bare_code:
    lea template + 0x1810(%rip), %rdi
    mov (%rdi,%rsi), %rax
    test %rdx, %rdx
    jz 1f
    add template + 0x1800(%rip), %rax
1:  ret
/* Two elements, the second eight bytes on; the registers of the address are not the usual ones. */
    .balign 64
pair_code:
    lea template + 0x1810(%rip), %r10
    mov %rsi, %r15
    mov template + 0x1800(%rip), %rax
    movq (%r10,%r15), %xmm0
    mov 8(%r10,%r15), %rbx
    movq %xmm0, %rcx
    add %rcx, %rax
    add %rbx, %rax
    ret
/* The register holds the table's address no longer. */
    .balign 64
moved_code:
    mov template + 0x1800(%rip), %rax
    lea template + 0x1810(%rip), %rdi
    add $0x1000, %rdi
    add (%rdi,%rsi), %rax
    ret
template_end:

    .text
    .code64
    .globl main64
main64:
    mov %cr4, %rax
    or $0x200, %eax                     /* OSFXSR */
    mov %rax, %cr4
    movq $test_pdpt + 7, pml4 + 2 * 8
    movq $test_pd + 7, test_pdpt
    movq $test_pt + 7, test_pd
    movq $alias_pt + 7, test_pd + 8 * 8
    movq $FRAMES + 7, test_pt
    movq $FRAMES + 0x1007, test_pt + 8
    movq $FRAMES + 0x2007, test_pt + 16
    movq $FRAMES + 0x3007, alias_pt + 8
    mov $template, %esi
    mov $FRAMES, %edi
    mov $template_end - template, %ecx
    rep movsb
    /* element at offset N of frame F: F << 32 | N, each eight bytes */
    mov $FRAMES + 0x1000, %edi
    mov $1, %edx
1:  mov %rdx, %rax
    shl $32, %rax
    mov %edi, %ecx
    and $0xff8, %ecx
    or %rcx, %rax
    mov %rax, (%rdi)
    add $8, %edi
    mov %edi, %edx
    sub $FRAMES, %edx
    shr $12, %edx
    cmp $4, %edx
    jb 1b
    movq $0x5000, FRAMES + 0x1800
    call plain
    call pair
    call alias
    call absent
    call own_page_absent
    call remapped
    call marks
    call nowhere
    ret

/* Run \code with element \at, \times times. */
.macro run name, code, at, want, times=3
    mov $\times, %ebp
1:  mov $\at, %rsi
    mov $1, %edx
    movabs $TEST + \code - template, %r8
    stc
    call *%r8
    check64_imm "\name", %rax, \want
    dec %ebp
    jnz 1b
.endm

plain:
    mov $2, %r14d
2:  run "in the table's page", plain_code, 0, 0x100005810
    check64 "CF stays", %rcx, $1
    run "further on in it", plain_code, 0x400, 0x100005c10
    run "its last", plain_code, 0x7e8, 0x100005ff8
    run "in the next page", plain_code, 0x7f0, 0x200005000
    run "further on there", plain_code, 0x1000, 0x200005810
    check64 "CF stays there", %rcx, $1
    run "across both", plain_code, 0x7ec, 0x5001
    run "before the table", plain_code, -0x810, 0x100005000
    run "moved on", moved_code, 0, 0x200005810
    run "moved back", moved_code, -0x1000, 0x100005810
    dec %r14d
    jnz 2b
    ret

pair:
    mov $2, %r14d
2:  run "two in the table's page", pair_code, 0, 0x200006028
    run "two in the next page", pair_code, 0x7f0, 0x400005008
    run "one in each page", pair_code, 0x7e8, 0x300005ff8
    run "the second across both", pair_code, 0x7e4, 0xff800005002
    dec %r14d
    jnz 2b
    ret

/* By turns in the table's page and in one that may have the same slot. */
alias:
    mov $3, %r14d
2:  run "far away", plain_code, ALIAS, 0x300005810, 1
    run "near again", plain_code, 0, 0x100005810, 1
    dec %r14d
    jnz 2b
    ret

.macro faults name, code, at, vector, offset
    mov $\at, %rsi
    mov $0, %edx
    movabs $TEST + \code - template, %r8
    try64 .Lresume\@
    call *%r8
.Lresume\@:
    movq $0, try_resume
    check64 "\name", exc_vector, $\vector
    movabs $TEST + \code - template + \offset, %rax
    check64 "\name: RIP", exc_rip, %rax
.endm
#define AT_LOAD 14                      /* of the element, in plain_code */
#define AT_BARE 7                       /* in bare_code */

absent:
    mov $2, %r14d
2:  movq $0, test_pt + 16
    movabs $TEST + 0x2000, %r9
    invlpg (%r9)
    faults "the next page absent: #PF", plain_code, 0x800, 14, AT_LOAD
    check64 "error: a read", exc_error, $0
    movabs $TABLE + 0x800, %rax
    check64 "CR2 is the element's address", exc_cr2, %rax
    faults "the next page absent, across both: #PF", plain_code, 0x7ec, 14, AT_LOAD
    check64 "CR2 is in the next page", exc_cr2, %r9
    run "in the table's page all the same", plain_code, 0, 0x100005810
    movq $FRAMES + 0x2007, test_pt + 16
    invlpg (%r9)
    run "present again", plain_code, 0x800, 0x200005010
    dec %r14d
    jnz 2b
    ret

/* The page guessed is not looked at when the element is elsewhere. */
own_page_absent:
    mov $2, %r14d
    movabs $TEST + 0x1000, %r9
2:  movq $0, test_pt + 8
    invlpg (%r9)
    mov $3, %ebp
1:  mov $0x800, %esi
    mov $0, %edx
    movabs $TEST + bare_code - template, %r8
    call *%r8
    check64_imm "the table's page absent, the next not", %rax, 0x200000010
    dec %ebp
    jnz 1b
    faults "the table's page absent: #PF", bare_code, 8, 14, AT_BARE
    movabs $TABLE + 8, %rax
    check64 "CR2 is the address in it", exc_cr2, %rax
    movq $FRAMES + 0x1007, test_pt + 8  /* not accessed */
    invlpg (%r9)
    mov $0x800, %esi
    mov $0, %edx
    call *%r8
    mov test_pt + 8, %rax
    and $0x20, %eax
    check64 "and not accessed by that", %rax, $0
    run "present again", bare_code, 8, 0x100005818
    mov test_pt + 8, %rax
    and $0x20, %eax
    check64 "accessed now", %rax, $0x20
    dec %r14d
    jnz 2b
    ret

remapped:
    mov $2, %r14d
    movq $0x7000, FRAMES + 0x3800
    movl $0x77, FRAMES + 0xffc
2:  movq $FRAMES + 0x3007, test_pt + 8
    invlpg (%r9)
    run "another page there", plain_code, 0, 0x300007810
    run "and the next", plain_code, 0x800, 0x200007010
    run "across both, from before it", bare_code, -0x814, 0x7077
    movq $FRAMES + 0x1007, test_pt + 8
    mov %cr3, %rax
    mov %rax, %cr3
    run "the first again", plain_code, 0, 0x100005810
    dec %r14d
    jnz 2b
    ret

/*
 * A software TLB may mark a slot that holds nothing by a page that belongs in another slot: an
 * element in such a page, while nothing is known of the table's.
 */
marks:
    mov $3, %r14d
    movabs $TEST + 0x1000, %r9
    mov LOW, %rbx
2:  run "in the table's page", bare_code, 8, 0x100005818, 1
    movq $0, test_pt + 8
    invlpg (%r9)
    mov %r14, LOW
    movabs $LOW - TABLE, %rsi
    mov $0, %edx
    call *%r8
    check64 "far below, the table's page unknown", %rax, %r14
    movq $FRAMES + 0x1007, test_pt + 8
    dec %r14d
    jnz 2b
    mov %rbx, LOW
    ret

nowhere:
    mov $3, %r14d
2:  faults "not canonical: #GP", plain_code, 0x4000000000000000, 13, AT_LOAD
    check64 "error 0", exc_error, $0
    dec %r14d
    jnz 2b
    run "at the end", plain_code, 8, 0x100005818
    ret

    .bss
    .balign 4096
test_pdpt: .skip 4096
test_pd: .skip 4096
test_pt: .skip 4096
alias_pt: .skip 4096
