/*
 * debug.S - single-stepping, breakpoints, RF, the shadow of MOV SS, DR6 and DR7
 *
 * Intel SDM vol. 3, "Debug Exception (#DB)". A hook on vector 1 logs RIP, DR6 and RFLAGS of each
 * exception, clears DR6 and, for an instruction breakpoint, sets RF to go on.
 */
#include "guest.h"

#define DR6_INIT 0xffff0ff0

    .text
    .code64
    .globl main64

log_db:
    mov db_count, %eax
    mov F64_RIP(%rdi), %rdx
    mov %rdx, db_rip(, %rax, 8)
    mov %db6, %rdx
    mov %rdx, db_dr6(, %rax, 8)
    mov F64_RFLAGS(%rdi), %rdx
    mov %rdx, db_flags(, %rax, 8)
    incl %eax
    and $31, %eax
    mov %eax, db_count
    orl $0x10000, F64_RFLAGS(%rdi)
    mov $DR6_INIT, %edx
    mov %rdx, %db6
    ret

.macro reset_log
    movl $0, db_count
.endm

.macro set_tf
    pushf
    orl $0x100, (%rsp)
    popf
.endm

.macro clear_tf
    pushf
    andl $~0x100, (%rsp)
    popf
.endm

/* check_db "name", index, rip, bits of DR6 */
.macro check_db name, index, rip, bits
    check64 "\name: RIP", db_rip+(\index)*8, $\rip
    push %rax
    mov db_dr6 + (\index) * 8, %rax
    and $0xe00f, %eax
    check64 "\name: DR6", %rax, $\bits
    pop %rax
.endm

.macro check_count name, want
    push %rax
    mov db_count, %eax
    check64 "\name: number of exceptions", %rax, $\want
    pop %rax
.endm

/* DR0 = address, DR7 = value (bits 1..0 L0/G0, 17..16 R/W0, 19..18 LEN0) */
.macro breakpoint address, dr7
    mov $\address, %eax
    mov %rax, %db0
    mov $\dr7, %eax
    mov %rax, %db7
.endm

main64:
    hook64 1, log_db
    mov $DR6_INIT, %eax
    mov %rax, %db6
    call single_step
    call shadow
    call repeated
    call instruction_breakpoints
    call data_breakpoints
    call io_breakpoints
    call registers
    call user_step
    hook64 1, 0
    ret

single_step:
    reset_log
    set_tf
    nop                                 /* the first that is stepped */
step1:
    nop
step2:
    clear_tf                            /* pushf, andl, popf: each began with TF set */
step3:
    nop
    check_count "single step", 5
    check_db "single step: first", 0, step1, 0x4000
    check_db "single step: second", 1, step2, 0x4000
    check_db "single step: popf that clears TF", 4, step3, 0x4000
    mov db_flags, %rax
    and $0x100, %eax
    check64 "TF in the frame", %rax, $0x100
    mov db_flags + 4 * 8, %rax
    and $0x100, %eax
    check64 "TF clear in the frame behind popf", %rax, $0

    /* the image that PUSHF writes has TF; branches */
    reset_log
    set_tf
    pushf
    pop %rbx
    jmp 1f
    ud2
1:  clear_tf
    and $0x100, %ebx
    check64 "pushf shows TF", %rbx, $0x100

    /* INT enters its handler with TF clear; stepping goes on after IRET */
    reset_log
    set_tf
    int $0x40
step4:
    nop
step5:
    clear_tf
    check_db "int n: not in the handler, after the next", 0, step5, 0x4000
    check64 "int n: the handler ran", irq_count+0x40*8, $1

    /* an instruction that faults has not been stepped */
    reset_log
    hook64 6, skip_ud2
    set_tf
    nop
step6:
    ud2
step7:
    nop
step8:
    clear_tf
    hook64 6, 0
    check_db "before the fault", 0, step6, 0x4000
    check_db "after the fault", 1, step8, 0x4000

    /* INT1 sets no bit of DR6 */
    reset_log
    .byte 0xf1
step9:
    check_count "int1", 1
    check_db "int1", 0, step9, 0

    /* DR6 is sticky (but for B3..B0): nobody but software clears it */
    mov $DR6_INIT | 0x2000, %eax
    mov %rax, %db6
    reset_log
    set_tf
    nop
    clear_tf
    mov db_dr6, %rax
    and $0xe00f, %eax
    check64 "BS does not clear BD", %rax, $0x6000
    ret

skip_ud2:
    addq $2, F64_RIP(%rdi)
    ret

/* MOV SS holds off debug exceptions until after the next instruction. */
shadow:
    mov $SEL_DATA, %ebx
    reset_log
    set_tf
    nop
shadow1:
    mov %ebx, %ss
    nop
shadow2:
    nop
shadow3:
    clear_tf
    check_db "before mov SS", 0, shadow1, 0x4000
    check_db "not between mov SS and the next", 1, shadow2, 0x4000
    check_db "and on", 2, shadow3, 0x4000
    /* a data breakpoint on the operand of MOV SS comes late */
    movw $SEL_DATA, watched
    breakpoint watched, 0x70402         /* read/write, 2 bytes */
    reset_log
    movw watched, %ss
    nop
shadow4:
    nop
    check_count "data breakpoint of mov SS", 1
    check_db "data breakpoint of mov SS", 0, shadow4, 1
    xor %eax, %eax
    mov %rax, %db7
    ret

/* REP: a trap after each iteration, with RIP at the instruction. */
repeated:
    mov $SCRATCH, %edi
    mov $3, %ecx
    reset_log
    set_tf
    nop
repeat1:
    rep stosb
repeat2:
    clear_tf
    check_db "rep: before", 0, repeat1, 0x4000
    check_db "rep: first iteration", 1, repeat1, 0x4000
    check_db "rep: second iteration", 2, repeat1, 0x4000
    check_db "rep: last iteration", 3, repeat2, 0x4000
    check64 "rep: RDI", %rdi, $(SCRATCH+3)
    /* a data breakpoint in the middle of a REP: trap after that iteration */
    breakpoint SCRATCH+0x102, 0x10402   /* write, 1 byte */
    mov $SCRATCH + 0x100, %edi
    mov $8, %ecx
    hook64 1, log_rep
    reset_log
repeat3:
    rep stosb
repeat4:
    xor %eax, %eax
    mov %rax, %db7
    hook64 1, log_db
    check_count "rep: data breakpoint", 1
    check_db "rep: data breakpoint", 0, repeat3, 1
    check64 "rep: RCX then", rep_rcx, $5
    check64 "rep: RDI then", rep_rdi, $(SCRATCH+0x103)
    check64 "rep: RCX in the end", %rcx, $0
    ret

log_rep:
    mov F64_RCX(%rdi), %rax
    mov %rax, rep_rcx
    mov F64_RDI(%rdi), %rax
    mov %rax, rep_rdi
    jmp log_db

instruction_breakpoints:
    reset_log
    breakpoint bp1, 0x402
    xor %ebx, %ebx
bp1:
    inc %ebx
    inc %ebx
    check_count "instruction breakpoint", 1
    check_db "instruction breakpoint: before it", 0, bp1, 1
    mov db_flags, %rax
    and $0x10000, %eax
    check64 "instruction breakpoint: RF clear in the frame", %rax, $0
    check64 "instruction breakpoint: RF lets it run once", %rbx, $2
    /* RF covers one instruction only: a loop hits every time */
    reset_log
    breakpoint bp2, 0x402
    mov $3, %ecx
bp2:
    dec %ecx
    jnz bp2
    check_count "instruction breakpoint in a loop", 3
    /* not with the enables off, not with another length, not in the middle */
    reset_log
    breakpoint bp3, 0x400
bp3:
    nop
    breakpoint bp4+1, 0x402
bp4:
    mov $0x12345678, %ebx
    check_count "no breakpoint", 0
    /* DR3 */
    mov $bp5, %eax
    mov %rax, %db3
    mov $0x480, %eax
    mov %rax, %db7
bp5:
    nop
    check_db "DR3", 0, bp5, 8
    xor %eax, %eax
    mov %rax, %db7
    /* a breakpoint and a step */
    reset_log
    breakpoint bp6, 0x402
    set_tf
    nop
bp6:
    nop
bp7:
    clear_tf
    check64 "step up to a breakpoint", db_rip, $bp6
    mov db_dr6, %rax
    and $0xe000, %eax                   /* whether B0 shows as well is nobody's promise */
    check64 "step up to a breakpoint: BS", %rax, $0x4000
    xor %eax, %eax
    mov %rax, %db7
    ret

data_breakpoints:
    movq $0, watched
    reset_log
    breakpoint watched, 0xd0402         /* write, 4 bytes */
    movl $1, watched
data1:
    mov watched, %ebx
    check_count "write breakpoint: write, not read", 1
    check_db "write breakpoint: after it", 0, data1, 1
    check64 "write breakpoint: it was written", %rbx, $1
    mov db_flags, %rax
    and $0x10000, %eax
    check64 "write breakpoint: RF clear in the frame", %rax, $0
    reset_log
    movb $1, watched + 3
    movb $1, watched + 4
    movw $1, watched - 1
    movq $1, watched - 4
    movb $1, watched - 1
    check_count "write breakpoint: overlaps", 3
    reset_log
    lock addl $1, watched
    xchg %ebx, watched
    push %rbx
    pop watched
    check_count "write breakpoint: lock, xchg, pop", 3
    reset_log
    breakpoint watched, 0xf0402         /* read or write */
    mov watched, %ebx
data2:
    movl $1, watched
    check_count "read/write breakpoint", 2
    check_db "read/write breakpoint: after the read", 0, data2, 1
    reset_log
    breakpoint watched, 0x90402         /* write, 8 bytes */
    movb $1, watched + 7
    movb $1, watched + 8
    check_count "8 bytes", 1
    /* a fault comes first and instead */
    reset_log
    breakpoint watched, 0x90402
    movabs $0x4000000000000000, %rbx
    fault64 "fault, no breakpoint", 13, 0, mov %eax, watched(%rbx)
    check_count "no breakpoint of a store that faults", 0
    /* two at once */
    reset_log
    mov $watched + 4, %eax
    mov %rax, %db1
    mov $0xdd040a, %eax                 /* write, 4 bytes each */
    mov %rax, %db7
    movq $0, watched
    check_count "two breakpoints at once", 1
    mov db_dr6, %rax
    and $0xe00f, %eax
    check64 "two breakpoints at once: DR6", %rax, $3
    xor %eax, %eax
    mov %rax, %db7
    ret

io_breakpoints:
    mov %cr4, %rax
    or $8, %rax
    mov %rax, %cr4
    reset_log
    breakpoint 0x80, 0x20402            /* I/O, 1 byte */
    mov $1, %al
    out %al, $0x80
io1:
    out %al, $0xed
    in $0x80, %al
    check_count "I/O breakpoint", 2
    check_db "I/O breakpoint: after it", 0, io1, 1
    xor %eax, %eax
    mov %rax, %db7
    ret

registers:
    mov %db7, %rax
    check64 "DR7: bit 10 is 1", %rax, $0x400
    mov %db6, %rax
    mov $DR6_INIT, %ecx
    check64 "DR6: reserved bits are 1", %rax, %rcx
    mov $1, %ebx
    shl $32, %rbx
    fault64 "GP: DR7 bit 32", 13, 0, mov %rbx, %db7
    fault64 "GP: DR6 bit 32", 13, 0, mov %rbx, %db6
    movabs $0x1122334455667788, %rbx
    mov %rbx, %db2
    mov %db2, %rcx
    check64 "DR2 takes 64 bits", %rcx, %rbx
    fault64 "UD: DR5 with CR4.DE", 6, 0, mov %db5, %rax
    /* general detect */
    reset_log
    hook64 1, log_gd
    mov $0x2400, %eax
    mov %rax, %db7
gd1:
    mov %db0, %rbx
    check_count "general detect", 1
    check_db "general detect: before it", 0, gd1, 0x2000
    check64 "general detect: GD clear in the handler", gd_dr7, $0x400
    hook64 1, log_db
    ret

log_gd:
    mov %db7, %rax
    mov %rax, gd_dr7
    jmp log_db

user_step:
    reset_log
    movq $0x102, user_rflags
    try64 2f
    movq $user1, user_rip
    jmp enter_user64
user1:
    nop
user2:
    nop
user3:
    ud2
2:  movq $0, try_resume
    movq $2, user_rflags
    check_count "user: steps", 2
    mov $USER_WINDOW, %eax
    add $user2, %rax
    check64 "user: after the first", db_rip, %rax
    add $1, %rax
    check64 "user: after the second", db_rip+8, %rax
    mov exc_rflags, %rax
    and $0x100, %eax
    check64 "user: TF at the end", %rax, $0x100
    pushf
    pop %rax
    and $0x100, %eax
    check64 "TF clear in the handler", %rax, $0
    ret

    .data
    .balign 16
    .quad 0
watched: .quad 0, 0
rep_rcx: .quad 0
rep_rdi: .quad 0
gd_dr7: .quad 0

    .bss
    .balign 8
db_count: .skip 8
db_rip: .skip 32 * 8
db_dr6: .skip 32 * 8
db_flags: .skip 32 * 8
