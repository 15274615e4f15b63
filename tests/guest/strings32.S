/*
 * strings32.S - MOVS and STOS of 32-bit code: addresses of 32 bits wrap to 0, and above, and what
 * 64-bit code left above them does not count
 *
 * The last page of the 4 GiB is FRAME_LAST, the first one FRAME_FIRST. Each instruction runs
 * several times, so that translations run both ways: a page's first access, and later ones.
 * Intel SDM vol. 2, "MOVS", "STOS", "REP"; vol. 1, 3.4.1.1 (registers of 64 bits in other modes).
 */
#include "guest.h"

#define FRAME_LAST SCRATCH
#define FRAME_FIRST (SCRATCH + 0x1000)
#define PLAIN (SCRATCH + 0x4000)
#define PLAIN_BELOW (SCRATCH + 0x3fff)
#define ROUNDS 8
#define CR4_PSE 0x10

    .text
    .code32
    .globl main32
main32:
    mov $directory, %edi                /* 4 MiB pages, one to one */
    mov $0x83, %eax
    mov $1024, %ecx
1:  stosl
    add $0x400000, %eax
    loop 1b
    mov $first_table, %edi              /* 4 KiB pages, one to one */
    mov $3, %eax
    mov $1024, %ecx
1:  stosl
    add $0x1000, %eax
    loop 1b
    movl $FRAME_FIRST + 3, first_table
    movl $FRAME_LAST + 3, last_table + 1023 * 4
    movl $first_table + 3, directory
    movl $last_table + 3, directory + 1023 * 4
    mov %cr4, %eax
    or $CR4_PSE, %eax
    mov %eax, %cr4
    mov $directory, %eax
    mov %eax, %cr3
    mov %cr0, %eax
    or $0x80010000, %eax                /* PG, WP */
    mov %eax, %cr0
    call single
    call repeated
    call backwards
    call broken
    mov %cr0, %eax
    and $0x7ffeffff, %eax
    mov %eax, %cr0
    ret

/* \insn ROUNDS times from the same registers, then ESI and EDI are checked. */
.macro moves name, esi, edi, ecx, esi_end, edi_end, insn:vararg
    movl $ROUNDS, rounds
.Lagain\@:
    mov $\esi, %esi
    mov $\edi, %edi
    mov $\ecx, %ecx
    \insn
    decl rounds
    jnz .Lagain\@
    cld
    mov %ecx, left
    check32 "\name: ESI", %esi, $\esi_end
    check32 "\name: EDI", %edi, $\edi_end
    check32 "\name: ECX", left, $0
.endm

single:
    movl $0x04030201, FRAME_LAST + 0xffc
    movl $0, PLAIN
    moves "movsb from the last byte", 0xffffffff, PLAIN, 0, 0, PLAIN + 1, movsb
    check32 "movsb from the last byte", PLAIN, $4
    moves "movsw from the last two", 0xfffffffe, PLAIN, 0, 0, PLAIN + 2, movsw
    check32 "movsw from the last two", PLAIN, $0x0403
    moves "movsl from the last four", 0xfffffffc, PLAIN, 0, 0, PLAIN + 4, movsl
    check32 "movsl from the last four", PLAIN, $0x04030201
    movl $0x5a6b7c8d, PLAIN + 8
    moves "movsb to the last byte", PLAIN + 8, 0xffffffff, 0, PLAIN + 9, 0, movsb
    check32 "movsb to the last byte", FRAME_LAST + 0xffc, $0x8d030201
    moves "movsl to the last four", PLAIN + 8, 0xfffffffc, 0, PLAIN + 12, 0, movsl
    check32 "movsl to the last four", FRAME_LAST + 0xffc, $0x5a6b7c8d
    mov $0x11223344, %eax
    moves "stosb to the last byte", 0, 0xffffffff, 0, 0, 0, stosb
    check32 "stosb to the last byte", FRAME_LAST + 0xffc, $0x446b7c8d
    mov $0x11223344, %eax
    moves "stosl to the last four", 0, 0xfffffffc, 0, 0, 0, stosl
    check32 "stosl to the last four", FRAME_LAST + 0xffc, $0x11223344
    moves "movsb within a page", PLAIN, PLAIN + 1, 0, PLAIN + 1, PLAIN + 2, movsb
    moves "movsl across pages", PLAIN + 0xffe, PLAIN + 0x1ffd, 0, PLAIN + 0x1002, PLAIN + 0x2001, movsl
    ret

repeated:
    /* through the top: the last 16 bytes, then the first 16 */
    mov $PLAIN, %edi
    mov $0xa5, %al
    mov $64, %ecx
    rep stosb
    movl $0x04030201, FRAME_LAST + 0xff0
    movl $0x08070605, FRAME_LAST + 0xffc
    movl $0x0c0b0a09, FRAME_FIRST
    movl $0x100f0e0d, FRAME_FIRST + 12
    moves "rep movsb through the top", 0xfffffff0, PLAIN, 32, 0x10, PLAIN + 32, rep movsb
    check32 "rep movsb through the top: 0", PLAIN, $0x04030201
    check32 "rep movsb through the top: 12", PLAIN + 12, $0x08070605
    check32 "rep movsb through the top: 16", PLAIN + 16, $0x0c0b0a09
    check32 "rep movsb through the top: 28", PLAIN + 28, $0x100f0e0d
    check32 "rep movsb through the top: 32", PLAIN + 32, $0xa5a5a5a5
    moves "rep movsl to the top's end", PLAIN, 0xfffffff0, 4, PLAIN + 16, 0, rep movsl
    check32 "rep movsl to the top's end", FRAME_LAST + 0xffc, $0x08070605
    mov $0x77777777, %eax
    moves "rep stosl through the top", 0, 0xfffffff8, 4, 0, 8, rep stosl
    check32 "rep stosl through the top: last", FRAME_LAST + 0xffc, $0x77777777
    check32 "rep stosl through the top: first", FRAME_FIRST, $0x77777777
    check32 "rep stosl through the top: not further", FRAME_FIRST + 12, $0x100f0e0d
    moves "rep movsb of nothing", 0xffffffff, 0xffffffff, 0, 0xffffffff, 0xffffffff, rep movsb
    moves "rep movsb of many pages", PLAIN, PLAIN + 0x8000, 0x5001, PLAIN + 0x5001, PLAIN + 0xd001, rep movsb
    ret

.macro moves_back name, esi, edi, ecx, esi_end, edi_end, insn:vararg
    std
    moves "\name", \esi, \edi, \ecx, \esi_end, \edi_end, \insn
.endm

backwards:
    movl $0x04030201, FRAME_FIRST
    moves_back "movsb backwards from 0", 0, PLAIN, 0, 0xffffffff, PLAIN_BELOW, movsb
    movzbl PLAIN, %eax
    check32 "movsb backwards from 0", %eax, $1
    mov $0x99, %al
    moves_back "stosb backwards to 0", 0, 0, 0, 0, 0xffffffff, stosb
    check32 "stosb backwards to 0", FRAME_FIRST, $0x04030299
    moves_back "rep movsb backwards through 0", 3, PLAIN + 7, 8, 0xfffffffb, PLAIN_BELOW, rep movsb
    check32 "rep movsb backwards through 0", PLAIN + 4, $0x04030299
    ret

/* Nothing moves that faults. */
broken:
    movl $FRAME_LAST + 1, last_table + 1023 * 4 /* not writable */
    invlpg 0xfffff000
    mov $PLAIN, %esi
    mov $0xfffffff0, %edi
    fault32 "movsb to a read-only page", 14, 3, movsb
    check32 "movsb to a read-only page: ESI", %esi, $PLAIN
    check32 "movsb to a read-only page: EDI", %edi, $0xfffffff0
    movl $0, last_table + 1023 * 4
    invlpg 0xfffff000
    mov $PLAIN, %edi
    mov $0xfffffff0, %esi
    fault32 "movsl from a missing page", 14, 0, movsl
    check32 "movsl from a missing page: ESI", %esi, $0xfffffff0
    check32 "movsl from a missing page: EDI", %edi, $PLAIN
    ret

    .code64
    .globl main64
main64:
    mov $ROUNDS, %r8d
1:  movabs $0x0123456789abcdef, %rax
    mov %rax, PLAIN
    movq $0, PLAIN + 16
    movabs $0x5a00000000000000 + PLAIN, %rsi
    movabs $0x0000000100000000 + PLAIN + 16, %rdi
    movabs $0x8000000000000002, %rcx
    ljmp *compatible_pointer
    .code32
compatible:
    movsl
    rep movsw
    ljmp $SEL_CODE64, $2f
    .code64
2:  check64 "above 32 bits", PLAIN + 16, %rax
    check64 "above 32 bits: ESI", %rsi, $PLAIN + 8
    check64 "above 32 bits: EDI", %rdi, $PLAIN + 24
    movl $0, PLAIN + 16
    movabs $0x7700000000000000 + PLAIN + 16, %rdi
    ljmp *compatible_stos_pointer
    .code32
compatible_stos:
    stosl
    ljmp $SEL_CODE64, $3f
    .code64
3:  check64 "above 32 bits: STOS", PLAIN + 16, %rax
    check64 "above 32 bits: EDI of STOS", %rdi, $PLAIN + 20
    dec %r8d
    jnz 1b
    ret

    .data
    .balign 8
compatible_pointer:
    .long compatible
    .word SEL_CODE32
    .balign 8
compatible_stos_pointer:
    .long compatible_stos
    .word SEL_CODE32
    .balign 4
rounds: .long 0
left: .long 0

    .bss
    .balign 4096
directory: .skip 4096
first_table: .skip 4096
last_table: .skip 4096
