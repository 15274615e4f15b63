/*
 * btf.S - TF across SYSCALL, SYSRET, IRET, POPF and interrupts; IA32_DEBUGCTL.BTF; RF
 *
 * With BTF, an instruction that began with TF set traps only if it was a branch that was taken;
 * the debug exception clears BTF. A hook on vector 1 logs RIP, DR6 and RFLAGS and can set BTF
 * again.
 *
 * Spec: Intel SDM vol. 3, 17.3.1, 17.4.3; vol. 2, SYSCALL, SYSRET, POPF; AMD64 APM vol. 2, 13.1.
 */
#include "guest.h"

#define DEBUGCTL 0x1d9
#define BTF 2
#define LBR 1
#define DR6_INIT 0xffff0ff0
#define LOG_MAX 32

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
    mov F64_CS(%rdi), %rdx
    mov %rdx, db_cs(, %rax, 8)
    incl %eax
    and $LOG_MAX - 1, %eax
    mov %eax, db_count
    mov $DR6_INIT, %edx
    mov %rdx, %db6
    mov $DEBUGCTL, %ecx
    rdmsr
    mov %eax, db_debugctl
    mov db_again, %eax
    test %eax, %eax
    jz 1f
    xor %edx, %edx
    wrmsr
1:  ret

.macro reset_log again=0
    movl $0, db_count
    movl $\again, db_again
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

.macro check_rip name, index, rip
    check64 "\name", db_rip+(\index)*8, $\rip
.endm

.macro check_count name, want
    push %rax
    mov db_count, %eax
    check64 "\name: number of exceptions", %rax, $\want
    pop %rax
.endm

main64:
    hook64 1, log_db
    mov $DR6_INIT, %eax
    mov %rax, %db6
    call msr
    call branches
    call not_branches
    call once
    call user_branches
    call system_calls
    call returns
    call resume_flag
    call interrupts
    hook64 1, 0
    ret

msr:
    rdmsr64 DEBUGCTL
    check64 "DEBUGCTL after reset", %rax, $0
    wrmsr64 DEBUGCTL, BTF
    rdmsr64 DEBUGCTL
    check64 "BTF reads back", %rax, $BTF
    wrmsr64 DEBUGCTL, 0
    mov $DEBUGCTL, %ecx
    xor %eax, %eax
    mov $1, %edx
    fault64 "GP: DEBUGCTL bit 32", 13, 0, wrmsr
    ret

/* Every kind of branch that is taken, and nothing in between. */
branches:
    reset_log BTF
    mov $1, %ecx
    wrmsr64 DEBUGCTL, BTF
    set_tf
    nop
    nop
    xor %eax, %eax
    jz br1
    ud2
br1:
    nop
    jmp br2
    ud2
br2:
    nop
    jmp br3                             /* to the next instruction */
br3:
    nop
    mov $br4, %ebx
    jmp *%rbx
    ud2
br4:
    call br5
br4_back:
    nop
    mov $2, %ecx
br6:
    loop br6
    mov $0, %ecx
    jrcxz br7
    ud2
br5:
    ret
br7:
    nop
    clear_tf
    wrmsr64 DEBUGCTL, 0
    check_count "BTF: branches", 8
    check_rip "BTF: jz, taken", 0, br1
    check_rip "BTF: jmp", 1, br2
    check_rip "BTF: jmp to the next instruction", 2, br3
    check_rip "BTF: jmp through a register", 3, br4
    check_rip "BTF: call", 4, br5
    check_rip "BTF: ret", 5, br4_back
    check_rip "BTF: loop, taken", 6, br6
    check_rip "BTF: jrcxz, taken", 7, br7
    mov db_dr6, %rax
    and $0xe00f, %eax
    check64 "BTF: DR6 says single step", %rax, $0x4000
    ret

/* What does not branch, or not this time. */
not_branches:
    reset_log BTF
    mov $3, %ecx
    wrmsr64 DEBUGCTL, BTF
    mov $SCRATCH, %edi
    set_tf
    or $1, %eax
    jz 1f
    jnz 2f
1:  ud2
2:  mov $1, %ecx
    loop 1b
    mov $5, %ecx
    jrcxz 1b
    rep stosb
    mov $SEL_DATA, %eax
    mov %eax, %ss
    nop
    cpuid
    clear_tf
    wrmsr64 DEBUGCTL, 0
    check_count "BTF: no branches but jnz", 1
    check_rip "BTF: jnz, taken", 0, 2b
    ret

/* The exception clears BTF, and LBR: from then on every instruction is stepped. */
once:
    reset_log
    wrmsr64 DEBUGCTL, BTF | LBR
    set_tf
    nop
    nop
    jmp once1
    ud2
once1:
    nop
once2:
    nop
once3:
    clear_tf
    check_rip "BTF once: the branch", 0, once1
    check_rip "BTF once: then each instruction", 1, once2
    check_rip "BTF once: and on", 2, once3
    mov db_debugctl, %eax
    check64 "BTF once: clear in the handler", %rax, $0
    /* a breakpoint clears it as well */
    mov $once4, %eax
    mov %rax, %db0
    mov $0x402, %eax
    mov %rax, %db7
    reset_log
    hook64 1, log_bp
    wrmsr64 DEBUGCTL, BTF
once4:
    nop
    hook64 1, log_db
    xor %eax, %eax
    mov %rax, %db7
    rdmsr64 DEBUGCTL
    check64 "BTF: a breakpoint clears it", %rax, $0
    check_count "BTF: a breakpoint", 1
    /* BTF without TF does nothing, and neither does a software interrupt to it */
    reset_log
    wrmsr64 DEBUGCTL, BTF
    jmp 1f
    ud2
1:  int $0x40
    check_count "BTF without TF", 0
    rdmsr64 DEBUGCTL
    check64 "BTF without TF stays", %rax, $BTF
    /* INT1 is a debug exception */
    .byte 0xf1
    mov db_debugctl, %eax
    check64 "BTF: int1 clears it", %rax, $0
    wrmsr64 DEBUGCTL, 0
    ret

log_bp:
    orl $0x10000, F64_RFLAGS(%rdi)
    jmp log_db

/* IRET to ring 3 with TF: the branch is not over until the program branches. */
user_branches:
    reset_log
    movq $0x102, user_rflags
    wrmsr64 DEBUGCTL, BTF
    try64 2f
    movq $ub1, user_rip
    jmp enter_user64
ub1:
    nop
    nop
    jmp ub2
    ud2
ub2:
    nop
ub3:
    ud2
2:  movq $0, try_resume
    movq $2, user_rflags
    wrmsr64 DEBUGCTL, 0
    check_count "BTF, user: steps", 2
    mov $USER_WINDOW + ub2, %eax
    check64 "BTF, user: the branch", db_rip, %rax
    add $1, %rax
    check64 "BTF, user: then the next instruction", db_rip+8, %rax
    check64 "BTF, user: in ring 3", db_cs, $SEL_USER_CODE64
    ret

/* ------------------------------------------------------------------ SYSCALL and SYSRET */

#define STAR 0xc0000081
#define LSTAR 0xc0000082
#define SFMASK 0xc0000084

/* TF masked by SFMASK: no trap in the kernel; not masked: one at its first instruction. */
system_calls:
    wrmsr64 STAR, (((SEL_USER_CODE32 & ~3) << 48) | (SEL_CODE64 << 32))
    wrmsr64_symbol LSTAR, sc_target
    wrmsr64 SFMASK, 0x100
    reset_log
    call sc_run
    check_count "syscall, TF masked", 1
    mov $USER_WINDOW + sc_after, %eax
    check64 "syscall, TF masked: the step before it", db_rip, %rax
    mov sc_r11, %eax
    and $0x100, %eax
    check64 "syscall, TF masked: TF in R11", %rax, $0x100
    wrmsr64 SFMASK, 0
    reset_log
    call sc_run
    mov db_count, %eax
    cmp $2, %eax
    check_that ae, "syscall, TF not masked: it traps"
    check64 "syscall, TF not masked: at its target", db_rip+8, $sc_target
    check64 "syscall, TF not masked: in ring 0", db_cs+8, $SEL_CODE64
    /* SYSRET with TF in R11: the trap comes before the program's first instruction */
    reset_log
    wrmsr64 SFMASK, 0x100
    try64 3f
    mov $USER_WINDOW + sr1, %ecx
    mov $0x102, %r11d
    mov %rsp, sc_rsp
    mov user_rsp64, %rsp
    sysretq
sr1:
    nop
sr2:
    nop
    ud2
3:  movq $0, try_resume
    check_count "sysret that sets TF: steps", 3
    mov $USER_WINDOW + sr1, %eax
    check64 "sysret that sets TF: before the first instruction", db_rip, %rax
    add $1, %rax
    check64 "sysret that sets TF: after it", db_rip+8, %rax
    ret

/* One SYSCALL from ring 3 with TF set; back when the kernel is at sc_target. */
sc_run:
    movq $0x102, user_rflags
    mov %rsp, sc_rsp
    movq $sc_user, user_rip
    jmp enter_user64
sc_user:
    nop
sc_after:
    syscall
    ud2
sc_target:
    mov %r11, sc_r11
    mov sc_rsp, %rsp
    clear_tf
    mov $SEL_DATA, %eax
    mov %eax, %ss
    movq $2, user_rflags
    ret

/* ------------------------------------------------------------------ IRET and POPF */

returns:
    /* POPF that sets TF: the instruction after it is the first to trap */
    reset_log
    pushf
    orl $0x100, (%rsp)
    popf
ret1:
    nop
ret2:
    clear_tf
    check_rip "popf that sets TF: after the next instruction", 0, ret2
    /* IRET that sets TF: the same */
    reset_log
    mov %rsp, %rbp
    pushq $SEL_DATA
    push %rbp
    pushq $0x102
    pushq $SEL_CODE64
    pushq $ret3
    iretq
ret3:
    nop
ret4:
    clear_tf
    check_rip "iret that sets TF: after the next instruction", 0, ret4
    /* IRET that clears TF traps, as it began with TF set */
    reset_log
    mov %rsp, %rbp
    pushq $SEL_DATA
    push %rbp
    pushq $2
    pushq $SEL_CODE64
    pushq $ret5
    set_tf
    iretq
ret5:
    nop
    check_count "iret that clears TF", 1
    check_rip "iret that clears TF: at its target", 0, ret5
    mov db_flags, %rax
    and $0x100, %eax
    check64 "iret that clears TF: clear in the frame", %rax, $0
    /* the shadow of MOV SS in front of a POPF that sets TF */
    reset_log
    mov $SEL_DATA, %eax
    pushf
    orl $0x100, (%rsp)
    mov %eax, %ss
    popf
    nop
ret6:
    clear_tf
    check_rip "mov SS, popf that sets TF", 0, ret6
    ret

/* ------------------------------------------------------------------ RF */

/* RF comes in by IRET alone, covers one instruction, and POPF cannot set it. */
resume_flag:
    mov $rf1, %eax
    mov %rax, %db0
    mov $0x402, %eax
    mov %rax, %db7
    reset_log
    mov %rsp, %rbp
    pushq $SEL_DATA
    push %rbp
    pushq $0x10002
    pushq $SEL_CODE64
    pushq $rf1
    iretq
rf1:
    nop
    check_count "iret with RF to a breakpoint", 0
    mov $rf2, %eax
    mov %rax, %db0
    reset_log
    hook64 1, log_bp
    pushq $0x10002
    popf
rf2:
    nop
    check_count "popf does not set RF", 1
    pushf
    pop %rax
    and $0x10000, %eax
    check64 "pushf shows RF clear", %rax, $0
    /* a fault of the instruction that RF covers: RF is in the frame, and its restart is covered */
    mov $rf3, %eax
    mov %rax, %db0
    reset_log
    hook64 6, rf_ud
    movl $0, rf_ud_count
rf3:
    ud2
    hook64 6, 0
    check_count "a breakpoint on an instruction that faults", 1
    check64 "RF in the frame of the fault", rf_ud_flags, $0x10000
    check64 "the fault came twice, the breakpoint once", rf_ud_count, $2
    /* the next instruction is not covered */
    mov $rf5, %eax
    mov %rax, %db0
    reset_log
    mov %rsp, %rbp
    pushq $SEL_DATA
    push %rbp
    pushq $0x10002
    pushq $SEL_CODE64
    pushq $rf4
    iretq
rf4:
    nop
rf5:
    nop
    check_count "RF covers one instruction", 1
    xor %eax, %eax
    mov %rax, %db7
    hook64 1, log_db
    ret

rf_ud:
    mov F64_RFLAGS(%rdi), %rax
    and $0x10000, %eax
    mov %rax, rf_ud_flags
    incl rf_ud_count
    cmpl $2, rf_ud_count
    jne 1f
    addq $2, F64_RIP(%rdi)
1:  ret

/* ------------------------------------------------------------------ interrupts */

/* INT n, INT3 and INTO-less exceptions: the handler starts with TF clear, its IRET steps on. */
interrupts:
    reset_log
    set_tf
    int $0x41
int1:
    nop
int2:
    clear_tf
    check_rip "int n with TF: not before the next instruction's end", 0, int2
    /* the handler's own IRET does not trap for what it interrupted */
    reset_log
    hook64 6, rf_skip
    set_tf
    ud2
int3:
    nop
int4:
    clear_tf
    hook64 6, 0
    check_rip "a fault with TF: after the next instruction", 0, int4
    ret

rf_skip:
    addq $2, F64_RIP(%rdi)
    ret

    .data
    .balign 8
db_debugctl: .long 0
db_again: .long 0
rf_ud_flags: .quad 0
rf_ud_count: .quad 0
sc_rsp: .quad 0
sc_r11: .quad 0

    .bss
    .balign 8
db_count: .skip 8
db_rip: .skip LOG_MAX * 8
db_dr6: .skip LOG_MAX * 8
db_flags: .skip LOG_MAX * 8
db_cs: .skip LOG_MAX * 8
