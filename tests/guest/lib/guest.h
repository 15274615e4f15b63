/*
 * guest.h - what an assembly guest sees of its runtime
 *
 * A guest is a Multiboot-1 kernel. It defines main32 (32-bit protected mode, flat, no paging),
 * main64 (64-bit mode, the first 4 GiB mapped one to one), or both; the runtime calls them in
 * this order with interrupts off, then reports and leaves through the debug-exit port.
 *
 * Every check prints "ok NAME" or "FAIL NAME got .. want ..". Macros keep all registers and
 * flags unless they say otherwise. Expectations come from the Intel SDM and the AMD APM.
 *
 * Spec: Multiboot 0.6.96.
 */

/* The runtime's GDT; entries from SEL_FREE up to SEL_END are for guests. */
#define SEL_CODE64 0x08
#define SEL_DATA 0x10
#define SEL_USER_CODE32 0x1b
#define SEL_USER_DATA 0x23
#define SEL_USER_CODE64 0x2b
#define SEL_USER_DATA2 0x33
#define SEL_CODE32 0x38
#define SEL_CODE16 0x40
#define SEL_DATA16 0x48
#define SEL_TSS32 0x50
#define SEL_TSS64 0x58
#define SEL_FREE 0x68
#define SEL_END 0x200

/* Vectors of the runtime: the 8259 pair is remapped to 20H..2FH, everything masked. */
#define VEC_PIC 0x20

#define LAPIC 0xfee00000
#define IOAPIC 0xfec00000
#define HPET 0xfed00000

/* Memory that guests may use as they like, and that nothing else uses. */
#define SCRATCH 0x01000000
#define SCRATCH_END 0x02000000
/* Low memory for real-mode code and for APs. */
#define LOW_CODE 0x8000
#define LOW_DATA 0x10000
#define LOW_STACK 0x7c00
#define AP_TRAMPOLINE 0x7000

/* With the runtime's paging, the first GiB appears here again, open to user mode. */
#define USER_WINDOW 0x80000000

/* Offsets in the frame that hooks get (64-bit: in RDI; 32-bit: in EAX). */
#define F64_R15 0
#define F64_RDI 64
#define F64_RSI 72
#define F64_RBP 80
#define F64_RBX 88
#define F64_RDX 96
#define F64_RCX 104
#define F64_RAX 112
#define F64_VECTOR 120
#define F64_ERROR 128
#define F64_RIP 136
#define F64_CS 144
#define F64_RFLAGS 152
#define F64_RSP 160
#define F64_SS 168

#define F32_ES 0
#define F32_DS 4
#define F32_EDI 8
#define F32_ESI 12
#define F32_EBP 16
#define F32_EBX 24
#define F32_EDX 28
#define F32_ECX 32
#define F32_EAX 36
#define F32_VECTOR 40
#define F32_ERROR 44
#define F32_EIP 48
#define F32_CS 52
#define F32_EFLAGS 56
#define F32_ESP 60
#define F32_SS 64
#define F32_V86_ES 68
#define F32_V86_DS 72
#define F32_V86_FS 76
#define F32_V86_GS 80


/* ------------------------------------------------------------------ 64-bit */

/* check64 "name", got, want: operands of PUSHQ (register, memory, 32-bit immediate). */
.macro check64 name, got, want
    pushq \got
    popq check_got
    pushq \want
    popq check_want
    .pushsection .rodata
.Lname\@: .asciz "\name"
    .popsection
    movq $.Lname\@, check_name
    call report64
.endm

/* The same for a constant of 64 bits. */
.macro check64_imm name, got, want
    pushq \got
    popq check_got
    movl $(\want) & 0xffffffff, check_want
    movl $(\want) >> 32, check_want + 4
    .pushsection .rodata
.Lname\@: .asciz "\name"
    .popsection
    movq $.Lname\@, check_name
    call report64
.endm

/* The flags say `condition`, as of SETcc. Loses RAX. */
.macro check_that condition, name
    set\condition %al
    movzbl %al, %eax
    check64 "\name", %rax, $1
.endm

/* Print a line, as a remark. */
.macro say64 text
    .pushsection .rodata
.Lname\@: .asciz "\text"
    .popsection
    movq $.Lname\@, check_name
    call say_line64
.endm

/*
 * Catch the next exception: its particulars go to exc_*, execution goes on at `resume` in ring 0
 * with RSP as it is now, IF and TF clear. exc_vector is NO_EXCEPTION until then.
 */
#define NO_EXCEPTION 0x100
.macro try64 resume
    movq $\resume, try_resume
    movq %rsp, try_rsp
    movq $NO_EXCEPTION, exc_vector
    movq $0, exc_error
.endm

/* fault64 "name", vector, error, instruction: the instruction faults just so, with RIP at it. */
.macro fault64 name, vector, error, insn:vararg
    try64 .Lresume\@
.Lhere\@:
    \insn
.Lresume\@:
    movq $0, try_resume
    movq $\vector, check_vector
    movq $\error, check_error
    movq $.Lhere\@, check_rip
    .pushsection .rodata
.Lname\@: .asciz "\name"
    .popsection
    movq $.Lname\@, check_name
    call report_fault64
.endm

/* trap64: as fault64, but the frame points behind the instruction. */
.macro trap64 name, vector, error, insn:vararg
    try64 .Lresume\@
    \insn
.Lresume\@:
    movq $0, try_resume
    movq $\vector, check_vector
    movq $\error, check_error
    movq $.Lresume\@, check_rip
    .pushsection .rodata
.Lname\@: .asciz "\name"
    .popsection
    movq $.Lname\@, check_name
    call report_fault64
.endm

/* nofault64 "name", instruction: it goes through. */
.macro nofault64 name, insn:vararg
    try64 .Lresume\@
    \insn
.Lresume\@:
    movq $0, try_resume
    check64 "\name", exc_vector, $NO_EXCEPTION
.endm

/*
 * user_fault64 "name", vector, error, instruction: the same with the instruction run in ring 3
 * (in the user window, with user_rflags). user_ok64: it goes through, to the UD2 behind it.
 */
.macro user_fault64 name, vector, error, insn:vararg
    try64 .Lresume\@
    movq $.Lhere\@, user_rip
    jmp enter_user64
.Lhere\@:
    \insn
.Lthere\@:
    ud2
.Lresume\@:
    movq $0, try_resume
    movq $\vector, check_vector
    movq $\error, check_error
    movq $.Lhere\@, check_rip
    .pushsection .rodata
.Lname\@: .asciz "\name"
    .popsection
    movq $.Lname\@, check_name
    call report_user_fault64
.endm

.macro user_ok64 name, insn:vararg
    try64 .Lresume\@
    movq $.Lhere\@, user_rip
    jmp enter_user64
.Lhere\@:
    \insn
.Lthere\@:
    ud2
.Lresume\@:
    movq $0, try_resume
    movq $6, check_vector
    movq $0, check_error
    movq $.Lthere\@, check_rip
    .pushsection .rodata
.Lname\@: .asciz "\name"
    .popsection
    movq $.Lname\@, check_name
    call report_user_fault64
.endm

/* Have vector `v` call `fn` (with RDI at the frame) and return; 0 takes the hook off. */
.macro hook64 v, fn
    movq $\fn, hooks64 + (\v) * 8
.endm

.macro wrmsr64 index, value
    push %rax
    push %rcx
    push %rdx
    movl $\index, %ecx
    movl $(\value) & 0xffffffff, %eax
    movl $(\value) >> 32, %edx
    wrmsr
    pop %rdx
    pop %rcx
    pop %rax
.endm

/* The same with the address of a symbol. */
.macro wrmsr64_symbol index, symbol
    push %rax
    push %rcx
    push %rdx
    movl $\index, %ecx
    movl $\symbol, %eax
    xor %edx, %edx
    wrmsr
    pop %rdx
    pop %rcx
    pop %rax
.endm

/* RAX = MSR; RCX and RDX are lost. */
.macro rdmsr64 index
    movl $\index, %ecx
    rdmsr
    shlq $32, %rdx
    orq %rdx, %rax
.endm

/* ------------------------------------------------------------------ 32-bit */

.macro check32 name, got, want
    pushl \got
    popl check_got
    pushl \want
    popl check_want
    .pushsection .rodata
.Lname\@: .asciz "\name"
    .popsection
    movl $.Lname\@, check_name
    call report32
.endm

.macro say32 text
    .pushsection .rodata
.Lname\@: .asciz "\text"
    .popsection
    movl $.Lname\@, check_name
    call say_line32
.endm

.macro try32 resume
    movl $\resume, try_resume
    movl %esp, try_rsp
    movl $NO_EXCEPTION, exc_vector
    movl $0, exc_error
.endm

.macro fault32 name, vector, error, insn:vararg
    try32 .Lresume\@
.Lhere\@:
    \insn
.Lresume\@:
    movl $0, try_resume
    movl $\vector, check_vector
    movl $\error, check_error
    movl $.Lhere\@, check_rip
    .pushsection .rodata
.Lname\@: .asciz "\name"
    .popsection
    movl $.Lname\@, check_name
    call report_fault32
.endm

.macro trap32 name, vector, error, insn:vararg
    try32 .Lresume\@
    \insn
.Lresume\@:
    movl $0, try_resume
    movl $\vector, check_vector
    movl $\error, check_error
    movl $.Lresume\@, check_rip
    .pushsection .rodata
.Lname\@: .asciz "\name"
    .popsection
    movl $.Lname\@, check_name
    call report_fault32
.endm

.macro nofault32 name, insn:vararg
    try32 .Lresume\@
    \insn
.Lresume\@:
    movl $0, try_resume
    check32 "\name", exc_vector, $NO_EXCEPTION
.endm

/* Ring 3 without paging. */
.macro user_fault32 name, vector, error, insn:vararg
    try32 .Lresume\@
    movl $.Lhere\@, user_rip
    jmp enter_user32
.Lhere\@:
    \insn
    ud2
.Lresume\@:
    movl $0, try_resume
    movl $\vector, check_vector
    movl $\error, check_error
    movl $.Lhere\@, check_rip
    .pushsection .rodata
.Lname\@: .asciz "\name"
    .popsection
    movl $.Lname\@, check_name
    call report_fault32
.endm

.macro user_ok32 name, insn:vararg
    try32 .Lresume\@
    movl $.Lhere\@, user_rip
    jmp enter_user32
.Lhere\@:
    \insn
.Lthere\@:
    ud2
.Lresume\@:
    movl $0, try_resume
    movl $6, check_vector
    movl $0, check_error
    movl $.Lthere\@, check_rip
    .pushsection .rodata
.Lname\@: .asciz "\name"
    .popsection
    movl $.Lname\@, check_name
    call report_fault32
.endm

.macro hook32 v, fn
    movl $\fn, hooks32 + (\v) * 4
.endm

/* Write an 8-byte descriptor at GDT selector `sel`. */
.macro set_gdt32 sel, low, high
    movl $\low, gdt + (\sel & 0xfff8)
    movl $\high, gdt + (\sel & 0xfff8) + 4
.endm
#define set_gdt64 set_gdt32
