/*
 * segments.S - limits, expand-down segments, accessed bits, far transfers, gates, LAR and company
 *
 * Intel SDM vol. 3, "Protection"; vol. 2 for each instruction.
 */
#include "guest.h"

#define SEL_DOWN (SEL_FREE+0)          /* expand-down, 32-bit, limit 0FFFH */
#define SEL_DOWN16 (SEL_FREE+8)        /* expand-down, 16-bit */
#define SEL_ACCESSED (SEL_FREE+16)     /* data, accessed bit clear */
#define SEL_CONFORM (SEL_FREE+24)      /* conforming code, DPL 0 */
#define SEL_GATE (SEL_FREE+32)         /* call gate, DPL 3, to ring 0 */
#define SEL_GATE16 (SEL_FREE+40)       /* 16-bit call gate, DPL 0 */
#define SEL_LDT (SEL_FREE+48)
#define SEL_ABSENT (SEL_FREE+56)
#define SEL_BASE (SEL_FREE+64)         /* data, base SCRATCH */
#define SEL_GATE_BAD (SEL_FREE+72)
#define SEL_RET16 (SEL_FREE+80)        /* 16-bit code at 1 MiB */

/* In compatibility mode exceptions come back in 64-bit mode. */
.macro fault32_in_long name, vector, error, insn:vararg
    try32 .Lresume\@
    movl $0, try_resume + 4
    movl $0, try_rsp + 4
.Lhere\@:
    \insn
    ljmp $SEL_CODE64, $.Lresume\@
    .code64
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
    ljmp *compat_pointer\@
    .pushsection .data
compat_pointer\@:
    .long .Lcompat\@
    .word SEL_CODE32
    .popsection
    .code32
.Lcompat\@:
.endm

    .text
    .code32
    .globl main32, main64
main32:
    set_gdt32 SEL_DOWN, 0x00000fff, 0x00409700
    set_gdt32 SEL_DOWN16, 0x00000fff, 0x00009700
    set_gdt32 SEL_ACCESSED, 0x0000ffff, 0x00cf9200
    set_gdt32 SEL_CONFORM, 0x0000ffff, 0x00cf9f00
    set_gdt32 SEL_ABSENT, 0x0000ffff, 0x00cf1300
    set_gdt32 SEL_BASE, 0x0000ffff, 0x01409300
    set_gdt32 SEL_RET16, 0x0000ffff, 0x00009b10
    call limits
    call accessed
    call loads
    call inspect
    call far_same
    call far_inner
    call ldt
    ret

limits:
    mov $SEL_DOWN, %eax
    mov %eax, %fs
    nofault32 "expand-down: first byte above the limit", movb %fs:0x1000, %cl
    nofault32 "expand-down: the last byte of 4 GiB", movb %fs:0xffffffff, %cl
    fault32 "expand-down: at the limit", 13, 0, movb %fs:0xfff, %cl
    fault32 "expand-down: at 0", 13, 0, movb %fs:0, %cl
    fault32 "expand-down: across the limit", 13, 0, movw %fs:0xfff, %cx
    mov $SEL_DOWN16, %eax
    mov %eax, %fs
    nofault32 "expand-down, 16-bit: above the limit", movb %fs:0xffff, %cl
    fault32 "expand-down, 16-bit: above 64 KiB", 13, 0, movb %fs:0x10000, %cl
    fault32 "expand-down, 16-bit: across 64 KiB", 13, 0, movw %fs:0xffff, %cx
    mov $SEL_BASE, %eax
    mov %eax, %fs
    movl $0x12345678, SCRATCH + 0x100
    mov %fs:0x100, %eax
    check32 "base is added", %eax, $0x12345678
    fault32 "limit of a segment with a base", 13, 0, movl %fs:0xfffd, %ecx
    nofault32 "last dword", movl %fs:0xfffc, %ecx
    /* LEA knows no segments */
    .byte 0x64
    lea 0x123456, %eax
    check32 "lea", %eax, $0x123456
    xor %eax, %eax
    mov %eax, %fs
    fault32 "null FS", 13, 0, movl %fs:0, %ecx
    ret

accessed:
    movb gdt + SEL_ACCESSED + 5, %al
    and $1, %eax
    check32 "accessed bit before", %eax, $0
    mov $SEL_ACCESSED, %eax
    mov %eax, %fs
    movzbl gdt + SEL_ACCESSED + 5, %eax
    check32 "accessed bit after", %eax, $0x93
    set_gdt32 SEL_ACCESSED, 0x0000ffff, 0x00cf9200
    mov $SEL_ACCESSED, %eax
    verr %ax
    movzbl gdt + SEL_ACCESSED + 5, %eax
    check32 "verr does not set it", %eax, $0x92
    ret

loads:
    /* a load by LFS, POP and MOV of the same selector */
    movl $0x55, far_pointer
    movw $SEL_BASE, far_pointer + 4
    lfs far_pointer, %eax
    check32 "lfs: offset", %eax, $0x55
    mov %fs, %eax
    check32 "lfs: selector", %eax, $SEL_BASE
    movw $SEL_ABSENT, far_pointer + 4
    mov $0x1234, %eax
    fault32 "NP: lgs of an absent segment", 11, SEL_ABSENT, lgs far_pointer, %eax
    check32 "lgs that faults leaves the register", exc_rax, $0x1234
    mov %esp, %ebp
    push $SEL_ABSENT
    fault32 "NP: pop GS", 11, SEL_ABSENT, pop %gs
    lea 4(%esp), %esp
    /* MOV from a segment register clears the upper half; to memory it is 16 bits wide */
    mov $-1, %eax
    mov %ds, %eax
    check32 "mov from DS zero-extends", %eax, $SEL_DATA
    movl $-1, scratch
    mov %ds, scratch
    check32 "mov DS to memory: 16 bits", scratch, $0xffff0010
    push $-1
    push %ds
    pop %eax
    and $0xffff, %eax
    check32 "push DS", %eax, $SEL_DATA
    pop %eax
    ret

inspect:
    xor %eax, %eax
    mov $SEL_CODE32, %ecx
    lar %ecx, %eax
    setz %dl
    movzbl %dl, %edx
    check32 "lar of code: ZF", %edx, $1
    and $0x00f0ff00, %eax               /* limit bits are undefined */
    check32 "lar of code", %eax, $0x00c09b00
    lsl %ecx, %eax
    check32 "lsl of code", %eax, $0xffffffff
    mov $SEL_BASE, %ecx
    lsl %ecx, %eax
    check32 "lsl of bytes", %eax, $0xffff
    mov $SEL_TSS32, %ecx
    lar %ecx, %eax
    check32 "lar of a busy TSS", %eax, $0x00008b00
    lsl %ecx, %eax
    check32 "lsl of a TSS", %eax, $0x67
    mov $0x77, %eax
    mov $SEL_END, %ecx
    lar %ecx, %eax
    setz %dl
    movzbl %dl, %edx
    check32 "lar beyond the GDT: ZF", %edx, $0
    check32 "lar beyond the GDT: register kept", %eax, $0x77
    xor %ecx, %ecx
    lsl %ecx, %eax
    setz %dl
    movzbl %dl, %edx
    check32 "lsl of null: ZF", %edx, $0
    mov $SEL_DATA + 3, %ecx
    lar %ecx, %eax
    setz %dl
    movzbl %dl, %edx
    check32 "lar with RPL above DPL: ZF", %edx, $0
    set_gdt32 SEL_GATE, 0x00380000, 0x0000ec00
    mov $SEL_GATE, %ecx
    lar %ecx, %eax
    check32 "lar of a call gate", %eax, $0x0000ec00
    lsl %ecx, %eax
    setz %dl
    movzbl %dl, %edx
    check32 "lsl of a call gate: ZF", %edx, $0

    mov $SEL_DATA, %ecx
    verw %cx
    setz %dl
    movzbl %dl, %edx
    check32 "verw of data", %edx, $1
    mov $SEL_CODE32, %ecx
    verw %cx
    setz %dl
    movzbl %dl, %edx
    check32 "verw of code", %edx, $0
    verr %cx
    setz %dl
    movzbl %dl, %edx
    check32 "verr of readable code", %edx, $1
    mov $SEL_TSS32, %ecx
    verr %cx
    setz %dl
    movzbl %dl, %edx
    check32 "verr of a TSS", %edx, $0
    mov $SEL_ABSENT, %ecx
    verr %cx
    setz %dl
    movzbl %dl, %edx
    check32 "verr of an absent segment", %edx, $1

    mov $0x10, %eax
    mov $0x13, %ecx
    arpl %cx, %ax
    setz %dl
    movzbl %dl, %edx
    check32 "arpl raises: ZF", %edx, $1
    check32 "arpl raises", %eax, $0x13
    mov $0x11, %ecx
    arpl %cx, %ax
    setz %dl
    movzbl %dl, %edx
    check32 "arpl leaves: ZF", %edx, $0
    check32 "arpl leaves", %eax, $0x13
    str %eax
    check32 "str", %eax, $SEL_TSS32
    sldt %eax
    check32 "sldt", %eax, $0
    sgdt table_register
    movzwl table_register, %eax
    check32 "sgdt: limit", %eax, $(SEL_END-1)
    check32 "sgdt: base", table_register+2, $gdt
    smsw %eax
    mov %cr0, %ecx
    and $0xffff, %eax
    and $0xffff, %ecx
    check32 "smsw", %eax, %ecx
    ret

/* ------------------------------------------------------------------ far transfers */

far_same:
    mov %esp, %ebp
    lcall $SEL_CODE32, $1f
    check32 "far call and return", %esp, %ebp
    jmp 2f
1:  mov 4(%esp), %eax
    check32 "far call: CS pushed", %eax, $SEL_CODE32
    mov %ebp, %eax
    sub %esp, %eax
    check32 "far call: frame size", %eax, $8
    lretl
2:  push $1
    push $2
    push $3
    lcall $SEL_CODE32, $1f
    check32 "lret with an immediate", %esp, %ebp
    jmp 2f
1:  lretl $12
2:  fault32 "GP: far jump to null", 13, 0, ljmp $0, $1f
    fault32 "GP: far jump to data", 13, SEL_DATA, ljmp $SEL_DATA, $1f
    fault32 "GP: far jump to ring 3 code", 13, 0x18, ljmp $SEL_USER_CODE32, $1f
    fault32 "GP: far jump beyond the GDT", 13, SEL_END, ljmp $SEL_END, $1f
    set_gdt32 SEL_ABSENT, 0x0000ffff, 0x00cf1b00
    fault32 "NP: far jump to absent code", 11, SEL_ABSENT, ljmp $SEL_ABSENT, $1f
    fault32 "GP: far jump beyond the limit", 13, 0, ljmp $SEL_RET16, $0x10000
    fault32 "NP: far call to absent code", 11, SEL_ABSENT, lcall $SEL_ABSENT, $1f
    check32 "far call that faults leaves ESP", %esp, %ebp
    ljmp $SEL_CONFORM, $1f
1:  mov %cs, %eax
    check32 "jump to conforming code", %eax, $SEL_CONFORM
    ljmp $SEL_CODE32, $1f
1:  push $0
    push $1f
    fault32 "GP: lret to null", 13, 0, lretl
    mov %ebp, %esp
    push $SEL_DATA
    push $1f
    fault32 "GP: lret to data", 13, SEL_DATA, lretl
    mov %ebp, %esp
1:
    /* a 16-bit call gate in the same ring pushes 16-bit words */
    set_gdt32 SEL_GATE16, 0x00000000, 0x00008400
    movw $gate16 - 0x100000, gdt + SEL_GATE16
    movw $SEL_RET16, gdt + SEL_GATE16 + 2
    push $0x1111
    lcall $SEL_GATE16, $0
gate16_back:
    ud2
    .code16
gate16:
    ljmpl $SEL_CODE32, $gate16_32
    .code32
gate16_32:
    mov %ebp, %eax
    sub %esp, %eax
    check32 "16-bit call gate: frame size", %eax, $8
    movzwl (%esp), %eax
    mov $gate16_back, %ecx
    movzwl %cx, %ecx
    check32 "16-bit call gate: IP", %eax, %ecx
    movzwl 2(%esp), %eax
    check32 "16-bit call gate: CS", %eax, $SEL_CODE32
    mov %ebp, %esp
    ret

/* Ring 3 calls ring 0 through a gate, with parameters. */
far_inner:
    mov $gate_target, %eax
    mov %ax, gdt + SEL_GATE
    movw $SEL_CODE32, gdt + SEL_GATE + 2
    movw $0xec03, gdt + SEL_GATE + 4    /* three parameters */
    shr $16, %eax
    mov %ax, gdt + SEL_GATE + 6
    movl $gate_user, user_rip
    mov %esp, saved_esp
    jmp enter_user32
gate_user:
    push $0x333
    push $0x222
    push $0x111
    lcall $SEL_GATE+3, $0xdeadbeef
gate_user_back:
    mov %esp, %esi
    mov %cs, %edi
    int $0x3                            /* DPL 3 */
gate_target:
    mov %esp, %edx
    mov $SEL_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov $ring0_stack_end - 28, %eax
    check32 "call gate: frame on the ring 0 stack", %edx, %eax
    mov %cs, %eax
    check32 "call gate: CPL 0", %eax, $SEL_CODE32
    check32 "call gate: EIP", (%edx), $gate_user_back
    check32 "call gate: CS", 4(%edx), $SEL_USER_CODE32
    check32 "call gate: parameter 1", 8(%edx), $0x111
    check32 "call gate: parameter 2", 12(%edx), $0x222
    check32 "call gate: parameter 3", 16(%edx), $0x333
    mov user_rsp32, %eax
    sub $12, %eax
    check32 "call gate: ESP", 20(%edx), %eax
    check32 "call gate: SS", 24(%edx), $SEL_USER_DATA
    hook32 3, gate_done
    mov $SEL_USER_DATA, %eax
    mov %eax, %ds
    mov $SEL_DATA, %eax
    mov %eax, %fs
    lretl $12
gate_done:
    hook32 3, 0
    mov %eax, %ebx
    check32 "lret to ring 3: ESP", F32_ESI(%ebx), user_rsp32
    check32 "lret to ring 3: CS", F32_EDI(%ebx), $SEL_USER_CODE32
    mov F32_DS(%ebx), %eax
    and $0xffff, %eax
    check32 "lret to ring 3 keeps DS of DPL 3", %eax, $SEL_USER_DATA
    mov F32_ES(%ebx), %eax
    and $0xffff, %eax
    check32 "lret to ring 3 makes ES of DPL 0 null", %eax, $0
    mov %fs, %eax
    check32 "and FS", %eax, $0
    mov saved_esp, %esp

    user_fault32 "GP: user call gate of DPL 0", 13, SEL_GATE16, lcall $SEL_GATE16+3, $0
    user_fault32 "GP: user far jump through a gate to ring 0", 13, SEL_CODE32, ljmp $SEL_GATE+3, $0
    andb $0x7f, gdt + SEL_GATE + 5
    user_fault32 "NP: absent call gate", 11, SEL_GATE, lcall $SEL_GATE+3, $0
    orb $0x80, gdt + SEL_GATE + 5
    movw $0, gdt + SEL_GATE + 2
    user_fault32 "GP: call gate to null", 13, 0, lcall $SEL_GATE+3, $0
    movw $SEL_DATA, gdt + SEL_GATE + 2
    user_fault32 "GP: call gate to data", 13, SEL_DATA, lcall $SEL_GATE+3, $0
    movw $SEL_ABSENT, gdt + SEL_GATE + 2
    user_fault32 "NP: call gate to absent code", 11, SEL_ABSENT, lcall $SEL_GATE+3, $0
    movw $SEL_CODE32, gdt + SEL_GATE + 2
    ret

/* Descriptors from an LDT. */
ldt:
    set_gdt32 SEL_LDT, 0x0000000f, 0x00008200
    mov $local_table, %eax
    mov %ax, gdt + SEL_LDT + 2
    shr $16, %eax
    mov %al, gdt + SEL_LDT + 4
    mov $SEL_LDT, %eax
    lldt %ax
    sldt %eax
    check32 "lldt and sldt", %eax, $SEL_LDT
    mov $0xc, %eax                      /* entry 1 */
    nofault32 "load from the LDT", mov %eax, %fs
    mov %fs:0x100, %eax
    check32 "base from the LDT", %eax, $0x12345678
    mov $0x14, %eax
    fault32 "GP: load beyond the LDT", 13, 0x14, mov %eax, %fs
    mov $4, %eax
    fault32 "NP: load of an absent entry 0, which is not null", 11, 4, mov %eax, %fs
    mov $SEL_DATA, %eax
    fault32 "GP: lldt of data", 13, SEL_DATA, lldt %ax
    mov $0xc, %eax
    fault32 "GP: lldt from the LDT", 13, 0xc, lldt %ax
    andb $0x7f, gdt + SEL_LDT + 5
    mov $SEL_LDT, %eax
    fault32 "NP: lldt, absent", 11, SEL_LDT, lldt %ax
    mov $SEL_TSS32, %eax
    fault32 "GP: ltr of a busy TSS", 13, SEL_TSS32, ltr %ax
    mov $SEL_DATA, %eax
    fault32 "GP: ltr of data", 13, SEL_DATA, ltr %ax
    xor %eax, %eax
    fault32 "GP: ltr of null", 13, 0, ltr %ax
    lldt %ax
    mov $0xc, %eax
    fault32 "GP: load from a null LDT", 13, 0xc, mov %eax, %fs
    xor %eax, %eax
    mov %eax, %fs
    ret

/* ------------------------------------------------------------------ 64-bit mode */

    .code64
main64:
    /* bases of FS and GS count, the others do not; limits never */
    set_gdt64 SEL_BASE, 0x0000ffff, 0x01409300
    mov $SEL_BASE, %eax
    mov %eax, %ds
    movl $0x12345678, %ds:SCRATCH + 0x100
    mov SCRATCH + 0x100, %eax
    check64 "DS base is not added", %rax, $0x12345678
    mov $SEL_DATA, %ecx
    mov %ecx, %ds
    mov $SEL_BASE, %eax
    mov %eax, %fs
    mov %fs:0x100, %eax
    check64 "FS base is added", %rax, $0x12345678
    rdmsr64 0xc0000100
    check64 "FS base in its MSR", %rax, $SCRATCH
    nofault64 "no limit in 64-bit mode", movb %fs:0x100000, %al
    wrmsr64 0xc0000100, 0xfffffffffffffff0
    mov %fs:SCRATCH + 0x110, %eax
    check64 "negative base", %rax, $0x12345678
    wrmsr64 0xc0000101, SCRATCH
    wrmsr64 0xc0000102, SCRATCH + 0x1000
    movl $0x9999, SCRATCH + 0x1100
    swapgs
    mov %gs:0x100, %eax
    check64 "swapgs", %rax, $0x9999
    swapgs
    mov %gs:0x100, %eax
    check64 "swapgs again", %rax, $0x12345678
    xor %eax, %eax
    mov %eax, %ds
    mov %eax, %es
    mov SCRATCH + 0x100, %eax
    check64 "null DS is of no consequence", %rax, $0x12345678
    mov $SEL_DATA, %eax
    mov %eax, %ds
    mov %eax, %es

    /* FSGSBASE */
    mov $7, %eax
    xor %ecx, %ecx
    cpuid
    bt $0, %ebx
    jnc 1f
    fault64 "UD: rdfsbase without CR4.FSGSBASE", 6, 0, rdfsbase %rax
    mov %cr4, %rax
    or $0x10000, %rax
    mov %rax, %cr4
    mov $SCRATCH + 0x1000, %ecx
    wrfsbase %rcx
    mov %fs:0x100, %eax
    check64 "wrfsbase", %rax, $0x9999
    rdfsbase %rax
    check64 "rdfsbase", %rax, $SCRATCH+0x1000
    movabs $0x800000000000, %rcx
    fault64 "GP: wrgsbase of a non-canonical address", 13, 0, wrgsbase %rcx
1:
    /* LAR and LSL know the 16-byte descriptors */
    mov $SEL_TSS64, %ecx
    lar %ecx, %eax
    check64 "lar of a 64-bit TSS", %rax, $0x8b00
    lsl %ecx, %eax
    check64 "lsl of a 64-bit TSS", %rax, $0x67
    movb $0x83, gdt + SEL_BASE + 5
    mov $SEL_BASE, %ecx
    lar %ecx, %eax
    setz %al
    movzbl %al, %eax
    check64 "lar of a 286 TSS: not in long mode", %rax, $0

    /* far calls and returns in 64-bit mode */
    mov %rsp, %rbp
    movl $1f, far_pointer
    movw $SEL_CODE64, far_pointer + 4
    lcall *far_pointer
    check64 "far call through memory and back", %rsp, %rbp
    jmp 2f
1:  mov %rbp, %rax
    sub %rsp, %rax
    check64 "far call with 32-bit operands: frame size", %rax, $8
    lretl
2:  xor %eax, %eax
    cpuid
    cmp $0x68747541, %ebx               /* "Auth": AMD has no 64-bit offsets in far pointers */
    je 2f
    movq $1f, far_pointer
    movw $SEL_CODE64, far_pointer + 8
    rex.w lcall *far_pointer
    check64 "64-bit far call and back", %rsp, %rbp
    jmp 2f
1:  mov %rbp, %rax
    sub %rsp, %rax
    check64 "64-bit far call: frame size", %rax, $16
    lretq
2:
    /* a 64-bit call gate from ring 3 */
    mov $gate64, %eax
    mov %ax, gdt + SEL_GATE
    movw $SEL_CODE64, gdt + SEL_GATE + 2
    movw $0xec00, gdt + SEL_GATE + 4
    shr $16, %eax
    mov %ax, gdt + SEL_GATE + 6
    movl $0, gdt + SEL_GATE + 8
    movl $0, gdt + SEL_GATE + 12
    movl $0, SCRATCH
    movw $SEL_GATE + 3, SCRATCH + 4
    movq $1f, user_rip
    mov %rsp, saved_esp
    jmp enter_user64
1:  mov $USER_WINDOW + SCRATCH, %eax
    lcall *(%rax)
gate64_back:
    ud2
gate64:
    mov %rsp, %rdx
    mov saved_esp, %rsp
    mov $ring0_stack_end - 32, %rax
    check64 "64-bit call gate: frame", %rdx, %rax
    mov $gate64_back, %ecx
    mov $USER_WINDOW, %eax
    or %rax, %rcx
    check64 "64-bit call gate: RIP", 0(%rdx), %rcx
    check64 "64-bit call gate: CS", 8(%rdx), $SEL_USER_CODE64
    check64 "64-bit call gate: RSP", 16(%rdx), user_rsp64
    check64 "64-bit call gate: SS", 24(%rdx), $SEL_USER_DATA
    mov %ss, %eax
    check64 "64-bit call gate: SS is null", %rax, $0
    mov $SEL_DATA, %eax
    mov %eax, %ss
    movl $1, gdt + SEL_GATE + 12
    orl $0x1f00, gdt + SEL_GATE + 12
    mov $USER_WINDOW + SCRATCH, %eax
    user_fault64 "GP: 64-bit call gate with a type in its upper half", 13, SEL_GATE, lcall *(%rax)
    /* from 64-bit to compatibility mode and back */
    movl $1f, far_pointer
    movw $SEL_CODE32, far_pointer + 4
    ljmp *far_pointer
    .code32
1:  mov $0xffffffff, %eax
    inc %eax
    check32 "compatibility mode", %eax, $0
    mov $SEL_BASE, %ecx
    movb $0x93, gdt + SEL_BASE + 5
    mov %ecx, %fs
    fault32_in_long "limits count in compatibility mode", 13, 0, movb %fs:0x10000, %al
    mov %fs:0x100, %eax
    check32 "bases count in compatibility mode", %eax, $0x12345678
    ljmp $SEL_CODE64, $1f
    .code64
1:  ret

    .data
    .balign 8
far_pointer: .quad 0
scratch: .quad 0
table_register: .quad 0, 0
saved_esp: .quad 0
    .balign 8
local_table:
    .quad 0x0040130000000fff
    .quad 0x014093000000ffff
