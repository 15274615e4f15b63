/*
 * watch.S - which accesses hit breakpoints: lengths, overlaps, ports, strings, vectors, segments
 *
 * A hook on vector 1 counts and keeps RIP and DR6. Then what a task switch does to DR7.
 *
 * Spec: Intel SDM vol. 3, 17.2.4, 17.2.5 (table 17-2), 17.3.1; 7.3 for tasks.
 */
#include "guest.h"

#define DR6_INIT 0xffff0ff0
#define SEL_B (SEL_FREE + 0)
#define SEL_BASED (SEL_FREE + 8)

/* DR7 for breakpoint 0, globally enabled: kind 1 write, 2 I/O, 3 read or write; length 0, 1, 3, 2 */
#define ON(kind, length) (0x402 | (kind) << 16 | (length) << 18)
#define BYTES1 0
#define BYTES2 1
#define BYTES8 2
#define BYTES4 3

    .text
    .code64
    .globl main64, main32

log_db:
    incl db_count
    mov F64_RIP(%rdi), %rax
    mov %rax, db_rip
    mov %db6, %rax
    and $0xe00f, %eax
    mov %rax, db_dr6
    mov $DR6_INIT, %eax
    mov %rax, %db6
    orl $0x10000, F64_RFLAGS(%rdi)
    ret

.macro watch address, dr7
    mov $\address, %eax
    mov %rax, %db0
    mov $\dr7, %eax
    mov %rax, %db7
    movl $0, db_count
.endm

.macro hits name, want
    check64 "\name", db_count, $\want
    movl $0, db_count
.endm

/* An instruction, and how many exceptions it must make. */
.macro watched name, want, insn:vararg
    movl $0, db_count
    \insn
    check64 "\name", db_count, $\want
.endm

main64:
    hook64 1, log_db
    mov $DR6_INIT, %eax
    mov %rax, %db6
    mov %cr4, %rax
    or $0x608, %rax                     /* DE, OSFXSR, OSXMMEXCPT */
    mov %rax, %cr4
    call lengths
    call instructions
    call pages
    call ports
    call code
    xor %eax, %eax
    mov %rax, %db7
    hook64 1, 0
    ret

lengths:
    /* the low bits of the address are masked by the length */
    watch cell+1, ON(1, BYTES2)
    watched "2 bytes at an odd address: the byte below", 1, movb $0, cell
    watched "2 bytes at an odd address: itself", 1, movb $0, cell+1
    watched "2 bytes at an odd address: the next", 0, movb $0, cell+2
    watch cell+3, ON(1, BYTES4)
    watched "4 bytes, misaligned: the first of them", 1, movb $0, cell
    watched "4 bytes, misaligned: behind them", 0, movb $0, cell+4
    watch cell+7, ON(1, BYTES8)
    watched "8 bytes, misaligned: the first of them", 1, movb $0, cell
    watched "8 bytes, misaligned: behind them", 0, movb $0, cell+8
    /* both enables, one, none */
    mov $0x10401, %eax
    mov %rax, %db7
    watched "local enable", 1, movb $0, cell+7
    mov $0x10403, %eax
    mov %rax, %db7
    watched "both enables: one exception", 1, movb $0, cell+7
    mov $0x10400, %eax
    mov %rax, %db7
    watched "no enable", 0, movb $0, cell+7
    mov $0x10702, %eax
    mov %rax, %db7
    watched "LE and GE do nothing", 1, movb $0, cell+7
    mov %db7, %rax
    check64 "they read back, and the breakpoint stays", %rax, $0x10702
    ret

instructions:
    watch cell, ON(3, BYTES4)
    mov $cell, %esi
    mov $cell + 16, %edi
    watched "movsq from it", 1, movsq
    mov $cell, %edi
    mov $cell + 16, %esi
    watched "movsq to it", 1, movsq
    mov $cell, %edi
    watched "scasb", 1, scasb
    mov $cell, %esi
    watched "lodsb", 1, lodsb
    mov $cell - 8, %edi
    mov $4, %ecx
    watched "rep stosq over it: once", 1, rep stosq
    check64 "rep stosq goes on", %rcx, $0
    watched "movups of 16 bytes, from before it", 1, movups cell-12, %xmm0
    watched "movups, up to it", 0, movups cell-16, %xmm0
    watched "movups to it", 1, movups %xmm0, cell
    watched "fldt over it", 1, fldt cell-8
    fninit
    watched "fxsave over it", 1, fxsave cell-16
    watched "prefetch", 0, prefetcht0 cell
    watched "lea", 0, lea cell, %rax
    watched "nop with an operand", 0, nopl cell
    mov $0, %ecx
    watched "rep movsb of nothing", 0, rep movsb
    mov %rsp, %rbp
    mov $cell + 8, %esp
    movl $0, db_count
    push %rax
    mov %rbp, %rsp
    hits "push", 1
    mov $cell, %esp
    movl $0, db_count
    pop %rax
    mov %rbp, %rsp
    hits "pop", 1
    mov $cell + 8, %esp
    movl $0, db_count
    call 1f
1:  mov %rbp, %rsp
    hits "call", 1
    xor %eax, %eax
    watched "cmpxchg", 1, cmpxchg %ecx, cell
    watched "bt of a bit in it, from elsewhere", 1, btl $3, cell
    mov $64, %eax
    watched "bts with a register, from elsewhere", 1, btsq %rax, cell-8
    watch cell, ON(1, BYTES4)
    watched "bt does not write", 0, btl $3, cell
    watched "bts does", 1, btsl $3, cell
    watched "cmp does not", 0, cmpl $0, cell
    watched "test does not", 0, testl $1, cell
    watched "inc does", 1, incl cell
    watched "a store that changes nothing does", 1, orl $0, cell
    watched "through another segment register", 1, movl $0, %fs:cell
    /* four breakpoints, two hit */
    mov $cell + 4, %eax
    mov %rax, %db1
    mov $cell + 8, %eax
    mov %rax, %db2
    mov $cell + 9, %eax
    mov %rax, %db3
    mov $0x11110400 | 0xaa, %eax
    mov %rax, %db7
    watched "two of four: one exception", 1, movw $0, cell+8
    check64 "two of four: DR6", db_dr6, $0xc
    ret

/* An access across pages, watched in the second; user mode; an access that faults. */
pages:
    mov $SCRATCH + 0x1000, %eax
    mov %rax, %db0
    mov $ON(1, BYTES1), %eax
    mov %rax, %db7
    watched "across pages, the second half", 1, movl $0, SCRATCH+0xffe
    watched "across pages, not far enough", 0, movw $0, SCRATCH+0xffe
    movups SCRATCH, %xmm0
    watched "16 bytes across pages", 1, movups %xmm0, SCRATCH+0xff8
    mov $SCRATCH + USER_WINDOW, %ebx
    mov %rbx, %db0
    user_ok64 "user: a store elsewhere", movb $0, 16(%rbx)
    movl $0, db_count
    user_ok64 "user: a store", movb $0, (%rbx)
    hits "user: it hits", 1
    movb $0, SCRATCH
    hits "the same frame by another address does not", 0
    ret

ports:
    watch 0x80, ON(2, BYTES1)
    watched "outb", 1, outb %al, $0x80
    watched "inb", 1, inb $0x80, %al
    watched "a word that covers it", 1, outw %ax, $0x7f
    watched "a port beside it", 0, inb $0x81, %al
    mov $0x80, %edx
    mov $cell, %esi
    mov $2, %ecx
    watched "rep outsb: each", 2, rep outsb
    mov $cell, %edi
    watched "insb", 1, insb
    watch 0x82, ON(2, BYTES4)
    watched "4 ports, misaligned: the first", 1, inb $0x80, %al
    watched "4 ports: the last", 1, inb $0x83, %al
    watched "4 ports: behind", 0, inb $0x84, %al
    mov %cr4, %rax
    and $~8, %rax
    mov %rax, %cr4
    watched "without CR4.DE", 0, inb $0x80, %al
    mov %cr4, %rax
    or $8, %rax
    mov %rax, %cr4
    watched "with it again", 1, inb $0x80, %al
    ret

code:
    /* the address of the first byte, prefixes included */
    watch at_prefix, 0x402
    movl $0, db_count
at_prefix:
    .byte 0x66, 0x90
    hits "at the prefix", 1
    watch behind_prefix+1, 0x402
    movl $0, db_count
behind_prefix:
    .byte 0x66, 0x90
    hits "behind the prefix", 0
    /* a length other than 1 is undefined for instructions, so nothing of that */
    /* executing is not reading */
    watch executed, ON(3, BYTES4)
    movl $0, db_count
executed:
    nop
    nop
    hits "executing is not reading", 0
    watch executed, 0x402
    movl $0, db_count
    mov executed, %eax
    movb $0x90, executed
    hits "reading is not executing", 0
    /* hit again and again by a repeated string instruction only at its start */
    watch repeated, 0x402
    mov $SCRATCH, %edi
    mov $5, %ecx
    movl $0, db_count
repeated:
    rep stosb
    hits "a repeated string instruction: once", 1
    check64 "and it ran", %rcx, $0
    ret

/* ------------------------------------------------------------------ 32-bit: bases, tasks */

    .code32
main32:
    hook32 1, log_db32
    mov $DR6_INIT, %eax
    mov %eax, %db6
    /* linear addresses count, not offsets */
    set_gdt32 SEL_BASED, 0x0000ffff, 0x00c09300
    mov $cell, %eax
    mov %ax, gdt + SEL_BASED + 2
    shr $16, %eax
    mov %al, gdt + SEL_BASED + 4
    mov $SEL_BASED, %eax
    mov %eax, %fs
    mov $cell + 4, %eax
    mov %eax, %db0
    mov $ON(1, BYTES4), %eax
    mov %eax, %db7
    movl $0, db_count
    movl $0, %fs:4
    check32 "base and offset", db_count, $1
    movl $0, %fs:8
    check32 "another offset", db_count, $1
    /* a task switch clears the local enables, and no others */
    mov $tss_b, %eax
    movw $0x67, gdt + SEL_B
    mov %ax, gdt + SEL_B + 2
    shr $16, %eax
    mov %al, gdt + SEL_B + 4
    movb $0x89, gdt + SEL_B + 5
    movl $task, tss_b + 0x20
    movl $2, tss_b + 0x24
    movl $stack_b, tss_b + 0x38
    movl $SEL_DATA, tss_b + 0x48
    movl $SEL_CODE32, tss_b + 0x4c
    movl $SEL_DATA, tss_b + 0x50
    movl $SEL_DATA, tss_b + 0x54
    movl $0x680000, tss_b + 0x64
    xor %eax, %eax
    mov %eax, %db7
    mov $0x7ff, %eax
    mov %eax, %db7
    lcall $SEL_B, $0
    clts
    mov task_dr7, %eax
    check32 "a task switch clears the local enables", %eax, $0x6aa
    xor %eax, %eax
    mov %eax, %db7
    mov %eax, %fs
    hook32 1, 0
    ret

task:
    mov %db7, %eax
    mov %eax, task_dr7
    iret

log_db32:
    incl db_count
    mov $DR6_INIT, %eax
    mov %eax, %db6
    ret

    .data
    .balign 16
    .quad 0, 0
cell: .skip 512
    .balign 16
db_count: .quad 0
db_rip: .quad 0
db_dr6: .quad 0
task_dr7: .long 0

    .bss
    .balign 128
tss_b: .skip 128
    .skip 1024
stack_b:
    .balign 16
