/*
 * strings.S - string instructions: counts, directions, sizes, and faults half-way
 *
 * A region of four pages has a hole: pages 0 and 1 are mapped, page 2 is not, page 3 is
 * read-only. What a fault leaves in RCX, RSI and RDI is exact: iterations done are done, the one
 * that faults has not happened. Intel SDM vol. 2, "REP".
 */
#include "guest.h"

#define TEST 0x10000000000
#define FRAMES SCRATCH
#define SIZE64 0x20000

    .text
    .code64
    .globl main64
main64:
    movq $test_pdpt + 7, pml4 + 2 * 8
    movq $test_pd + 7, test_pdpt
    movq $test_pt + 7, test_pd
    movq $FRAMES + 7, test_pt
    movq $FRAMES + 0x1007, test_pt + 8
    movq $FRAMES + 0x3005, test_pt + 24
    mov %cr0, %rax
    or $0x10000, %rax                   /* WP */
    mov %rax, %cr0
    movabs $TEST, %r8                   /* the region */
    mov $SCRATCH + 0x10000, %r9d        /* plain memory */
    call plain
    call faults
    call compare
    call sizes
    call ports
    call large
    ret

/* RDI, RSI, RCX for a copy of RCX elements. */
plain:
    mov %r9, %rdi
    mov $0x5a, %al
    mov $100, %ecx
    rep stosb
    check64 "stosb: RCX", %rcx, $0
    lea 100(%r9), %rax
    check64 "stosb: RDI", %rdi, %rax
    movabs $0x1122334455667788, %rax
    mov %r9, %rdi
    mov $16, %ecx
    rep stosq
    check64 "stosq", 120(%r9), %rax
    movzbl 128(%r9), %eax
    check64 "stosq: not further", %rax, $0
    /* overlapping copies go element by element */
    mov $0xab, %al
    mov %al, (%r9)
    mov %r9, %rsi
    lea 1(%r9), %rdi
    mov $64, %ecx
    rep movsb
    mov 57(%r9), %rax
    movabs $0xabababababababab, %rcx
    check64 "movsb onto the next byte fills", %rax, %rcx
    movabs $0x1122334455667788, %rax
    mov %rax, (%r9)
    mov %r9, %rsi
    lea 3(%r9), %rdi
    mov $8, %ecx
    rep movsb
    mov 3(%r9), %rax
    movabs $0x7788667788667788, %rcx
    check64 "movsb onto 3 further repeats", %rax, %rcx
    mov %r9, %rdi
    movl $0x04030201, (%r9)
    movl $0x08070605, 4(%r9)
    movl $0, 8(%r9)
    mov %r9, %rsi
    lea 2(%r9), %rdi
    mov $2, %ecx
    rep movsl
    mov 2(%r9), %rax
    movabs $0x0807040304030201, %rcx
    check64 "movsl onto 2 further", %rax, %rcx
    /* backwards */
    movabs $0x0807060504030201, %rax
    mov %rax, (%r9)
    lea 7(%r9), %rsi
    lea 9(%r9), %rdi
    mov $8, %ecx
    std
    rep movsb
    cld
    mov 2(%r9), %rax
    movabs $0x0807060504030201, %rcx
    check64 "movsb backwards keeps an overlap", %rax, %rcx
    lea -1(%r9), %rax
    check64 "movsb backwards: RSI", %rsi, %rax
    lea 1(%r9), %rax
    check64 "movsb backwards: RDI", %rdi, %rax
    /* count 0: nothing, not even a fault */
    xor %ecx, %ecx
    lea 0x2000(%r8), %rdi
    lea 0x2000(%r8), %rsi
    nofault64 "count 0 touches nothing", rep movsb
    ret

/*
 * broken "name", "instruction", error, RCX, RSI, RDI, then RCX, RSI, RDI and CR2 at the fault; the
 * addresses are offsets in the region.
 */
.macro broken name, insn, error, count, rsi, rdi, left, rsi_end, rdi_end, cr2
    mov $\count, %ecx
    lea \rsi(%r8), %rsi
    lea \rdi(%r8), %rdi
    fault64 "\name", 14, \error, \insn
    cld
    check64 "\name: RCX", exc_rcx, $\left
    lea \rsi_end(%r8), %rax
    check64 "\name: RSI", exc_rsi, %rax
    lea \rdi_end(%r8), %rax
    check64 "\name: RDI", exc_rdi, %rax
    lea \cr2(%r8), %rax
    check64 "\name: CR2", exc_cr2, %rax
.endm

faults:
    broken "stosb into the hole", "rep stosb", 2, 0x100, 0, 0x1f80, 0x80, 0, 0x2000, 0x2000
    broken "stosq into the hole", "rep stosq", 2, 0x20, 0, 0x1f80, 0x10, 0, 0x2000, 0x2000
    broken "stosq across the edge", "rep stosq", 2, 0x20, 0, 0x1f84, 0x11, 0, 0x1ffc, 0x2000
    broken "movsb from the hole", "rep movsb", 0, 0x100, 0x1ff0, 0, 0xf0, 0x2000, 0x10, 0x2000
    broken "movsb into the hole", "rep movsb", 2, 0x100, 0, 0x1ff0, 0xf0, 0x10, 0x2000, 0x2000
    broken "movsl from across the edge", "rep movsl", 0, 0x100, 0x1ff2, 0, 0xfd, 0x1ffe, 0xc, 0x2000
    broken "movsl to across the edge", "rep movsl", 2, 0x100, 0, 0x1ff2, 0xfd, 0xc, 0x1ffe, 0x2000
    broken "lodsb in the hole", "rep lodsb", 0, 0x100, 0x1fff, 0, 0xff, 0x2000, 0, 0x2000
    broken "movsb to a read-only page", "rep movsb", 3, 0x10, 0, 0x3000, 0x10, 0, 0x3000, 0x3000
    broken "stosw to a read-only page", "rep stosw", 3, 0x10, 0, 0x3010, 0x10, 0, 0x3010, 0x3010
    broken "cmpsb in the hole, second operand", "repe cmpsb", 0, 0x20, 0x1000, 0x2000, 0x20, 0x1000, 0x2000, 0x2000
    std
    broken "stosb backwards to a read-only page", "rep stosb", 3, 0x10, 0, 0x3008, 0x10, 0, 0x3008, 0x3008
    std
    broken "movsb backwards into the hole", "rep movsb", 0, 0x20, 0x2004, 0x10, 0x20, 0x2004, 0x10, 0x2004
    std
    broken "lodsb backwards into the hole", "rep lodsb", 0, 0x20, 0x3004, 0, 0x1b, 0x2fff, 0, 0x2fff
    /* what was done before the fault is there, and goes on where it stopped */
    mov %r8, %rdi
    mov $0x11, %al
    mov $0x2000, %ecx
    rep stosb
    mov $0x22, %al
    lea 0x1ff8(%r8), %rdi
    mov $16, %ecx
    hook64 14, map_hole
    rep stosb
    hook64 14, 0
    check64 "continued: RCX", %rcx, $0
    movabs $0x2222222222222222, %rax
    check64 "continued: before the edge", 0x1ff8(%r8), %rax
    check64 "continued: behind the edge", 0x2000(%r8), %rax
    movabs $0x1111111111111111, %rax
    check64 "continued: not before", 0x1ff0(%r8), %rax
    check64 "continued: one fault", hole_count, $1
    movq $0, test_pt + 16
    invlpg 0x2000(%r8)
    /* ring 3 */
    mov $1, %ecx
    mov $0x2000, %edi
    or %r8, %rdi
    user_fault64 "user stosb in the hole", 14, 6, rep stosb
    ret

map_hole:
    movq $FRAMES + 0x2007, test_pt + 16
    incq hole_count
    ret

compare:
    mov %r9, %rdi
    mov $0x77, %al
    mov $0x200, %ecx
    rep stosb
    movb $0x78, 0x123(%r9)
    /* SCAS */
    mov %r9, %rdi
    mov $0x200, %ecx
    mov $0x78, %al
    repne scasb
    setz %dl
    movzbl %dl, %edx
    check64 "repne scasb: ZF", %rdx, $1
    lea 0x124(%r9), %rax
    check64 "repne scasb: RDI", %rdi, %rax
    check64 "repne scasb: RCX", %rcx, $(0x200-0x124)
    mov %r9, %rdi
    mov $0x100, %ecx
    mov $0x78, %al
    repne scasb
    setz %dl
    movzbl %dl, %edx
    check64 "repne scasb, not found: ZF", %rdx, $0
    check64 "repne scasb, not found: RCX", %rcx, $0
    mov %r9, %rdi
    mov $0x200, %ecx
    mov $0x77, %al
    repe scasb
    lea 0x124(%r9), %rax
    check64 "repe scasb: RDI", %rdi, %rax
    /* count 0 leaves the flags */
    xor %ecx, %ecx
    cmp %eax, %eax
    repe cmpsb
    setz %dl
    movzbl %dl, %edx
    check64 "repe cmpsb of nothing: ZF kept", %rdx, $1
    /* CMPS: flags are those of the last comparison, source minus destination */
    mov %r9, %rsi
    lea 0x400(%r9), %rdi
    mov $0x200, %ecx
    mov $0x77, %al
    push %rdi
    rep stosb
    pop %rdi
    mov $0x200, %ecx
    repe cmpsb
    setc %dl
    seta %al
    movzbl %dl, %edx
    movzbl %al, %eax
    check64 "repe cmpsb: 78H above 77H", %rax, $1
    check64 "repe cmpsb: CF", %rdx, $0
    check64 "repe cmpsb: RCX", %rcx, $(0x200-0x124)
    mov %r9, %rsi
    lea 0x400(%r9), %rdi
    mov $0x40, %ecx
    repe cmpsq
    lea 0x128(%r9), %rax
    check64 "repe cmpsq: RSI", %rsi, %rax
    check64 "repe cmpsq: RCX", %rcx, $(0x40-0x25)
    /* a comparison that ends before the hole does not fault */
    lea 0x1fff(%r8), %rdi
    mov $0x10, %ecx
    mov $0x99, %al
    nofault64 "repe scasb that ends at the edge", repe scasb
    /* and the flags of one that faults are those of the last comparison done */
    movb $0x99, 0x1fff(%r8)
    lea 0x1fff(%r8), %rdi
    mov $0x10, %ecx
    fault64 "repe scasb into the hole", 14, 0, repe scasb
    mov exc_rflags, %rax
    and $0x40, %eax
    check64 "repe scasb into the hole: ZF of the last", %rax, $0x40
    check64 "repe scasb into the hole: RCX", exc_rcx, $0xf
    ret

sizes:
    /* 32-bit addresses: ECX, ESI, EDI; the upper halves of what is written become 0 */
    movabs $0xffffffff00000004, %rcx
    mov %r9, %rdi
    bts $40, %rdi
    mov %r9, %rsi
    bts $41, %rsi
    addr32 rep movsb
    check64 "addr32: RCX", %rcx, $0
    lea 4(%r9), %rax
    check64 "addr32: RDI", %rdi, %rax
    check64 "addr32: RSI", %rsi, %rax
    /* segment override for the source */
    wrmsr64 0xc0000100, 0x100
    movabs $0x0123456789abcdef, %rax
    mov %rax, 0x180(%r9)
    lea 0x80(%r9), %rsi
    fs lodsq
    movabs $0x0123456789abcdef, %rcx
    check64 "lods through FS", %rax, %rcx
    wrmsr64 0xc0000100, 0
    /* REP of what is no string instruction does nothing special */
    mov $5, %ecx
    xor %eax, %eax
    .byte 0xf3, 0xff, 0xc0              /* rep inc %eax */
    check64 "rep inc: once", %rax, $1
    check64 "rep inc: RCX", %rcx, $5
    /* REPNE of MOVS and STOS is REP */
    mov %r9, %rdi
    mov $4, %ecx
    mov $0x44, %al
    repne stosb
    mov (%r9), %eax
    check64 "repne stosb", %rax, $0x44444444
    /* XLAT */
    mov %r9, %rbx
    movb $0x5c, 0x80(%r9)
    mov $0x80, %eax
    xlatb
    check64 "xlat: zero-extended index", %rax, $0x5c
    ret

/* INS and OUTS: a fault in memory comes before the port is touched, or is repeated right. */
ports:
    mov $0x80, %edx
    lea 0x1ff0(%r8), %rdi
    mov $0x20, %ecx
    fault64 "insb into the hole", 14, 2, rep insb
    check64 "insb into the hole: RCX", exc_rcx, $0x10
    lea 0x2000(%r8), %rax
    check64 "insb into the hole: RDI", exc_rdi, %rax
    mov $0x80, %edx
    lea 0x1ff8(%r8), %rsi
    mov $0x20, %ecx
    fault64 "outsb from the hole", 14, 0, rep outsb
    check64 "outsb from the hole: RCX", exc_rcx, $0x18
    lea 0x2000(%r8), %rax
    check64 "outsb from the hole: RSI", exc_rsi, %rax
    /* scratch register of the serial port: OUTS writes what INS reads */
    mov $0x3ff, %edx
    movl $0x04030201, (%r9)
    mov %r9, %rsi
    mov $4, %ecx
    rep outsb
    lea 0x10(%r9), %rdi
    mov $2, %ecx
    rep insb
    movzwl 0x10(%r9), %eax
    check64 "outsb and insb", %rax, $0x0404
    ret

/* Long ones, across many pages, against a checksum. */
large:
    mov $SCRATCH + 0x100000, %edi
    mov $SIZE64 / 8, %ecx
    xor %eax, %eax
    movabs $0x9e3779b97f4a7c15, %rdx
1:  add %rdx, %rax
    mov %rax, (%rdi)
    add $8, %rdi
    loop 1b
    mov $SCRATCH + 0x100000, %esi
    mov $SCRATCH + 0x200003, %edi       /* misaligned */
    mov $SIZE64, %ecx
    rep movsb
    mov $SCRATCH + 0x100000, %esi
    mov $SCRATCH + 0x200003, %edi
    mov $SIZE64, %ecx
    repe cmpsb
    check64 "large copy: compares equal", %rcx, $0
    mov $SCRATCH + 0x100000 + SIZE64 - 8, %esi
    mov $SCRATCH + 0x300000 + SIZE64 - 8, %edi
    mov $SIZE64 / 8, %ecx
    std
    rep movsq
    cld
    mov $SCRATCH + 0x100000, %esi
    mov $SCRATCH + 0x300000, %edi
    mov $SIZE64 / 8, %ecx
    repe cmpsq
    check64 "large copy backwards: compares equal", %rcx, $0
    movb $0, SCRATCH + 0x300000 + SIZE64 - 1
    mov $SCRATCH + 0x100000, %esi
    mov $SCRATCH + 0x300000, %edi
    mov $SIZE64, %ecx
    repe cmpsb
    setz %al
    movzbl %al, %eax
    check64 "large compare: the last byte differs", %rax, $0
    check64 "large compare: RCX", %rcx, $0
    ret

    .data
    .balign 8
hole_count: .quad 0

    .bss
    .balign 4096
test_pdpt: .skip 4096
test_pd: .skip 4096
test_pt: .skip 4096
