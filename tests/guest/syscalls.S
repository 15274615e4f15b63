/*
 * syscalls.S - SYSCALL, SYSRET, SYSENTER, SYSEXIT, and the forms of IRET
 *
 * Intel SDM vol. 2, AMD APM vol. 3 (the two vendors differ; what differs is not judged or judged
 * by CPUID).
 */
#include "guest.h"

#define SEL_CODE16_1M SEL_FREE          /* 16-bit code at 1 MiB */
#define SEL_CODE32_2 (SEL_FREE+8)       /* for SYSENTER: ring 0 code, data, ring 3 code, data */

    .text
    .code32
    .globl main32, main64
main32:
    set_gdt32 SEL_CODE16_1M, 0x0000ffff, 0x00009b10
    set_gdt32 SEL_CODE32_2, 0x0000ffff, 0x00cf9b00
    set_gdt32 SEL_CODE32_2 + 8, 0x0000ffff, 0x00cf9300
    set_gdt32 SEL_CODE32_2 + 16, 0x0000ffff, 0x00cffb00
    set_gdt32 SEL_CODE32_2 + 24, 0x0000ffff, 0x00cff300
    call iret32
    call sysenter32
    ret

iret32:
    mov %esp, %ebp
    pushfl
    push $SEL_CODE32
    push $1f
    iretl
1:  check32 "iret: ESP", %esp, %ebp
    /* 16-bit operand size */
    pushw $2
    pushw $SEL_CODE16_1M
    pushw $2f - 0x100000
    iretw
    .code16
2:  ljmpl $SEL_CODE32, $3f
    .code32
3:  check32 "iret of 16 bits: ESP", %esp, %ebp
    /* flags: IF, IOPL, NT, AC, ID go in; VIF, RF */
    pushl $0x240002
    push $SEL_CODE32
    push $1f
    iretl
1:  pushf
    pop %eax
    and $0x247202, %eax
    check32 "iret: flags AC and ID", %eax, $0x240002
    push $2
    popf
    push $2
    push $0
    push $1f
    fault32 "GP: iret to null CS", 13, 0, iretl
    mov %ebp, %esp
    push $2
    push $SEL_DATA
    push $1f
    fault32 "GP: iret to data", 13, SEL_DATA, iretl
    mov %ebp, %esp
    /* to ring 3: SS is checked, too */
    pushl $SEL_DATA
    pushl $0x1000
    pushl $2
    pushl $SEL_USER_CODE32
    push $1f
    fault32 "GP: iret to ring 3 with an SS of ring 0", 13, SEL_DATA, iretl
    mov %ebp, %esp
    pushl $0
    pushl $0x1000
    pushl $2
    pushl $SEL_USER_CODE32
    push $1f
    fault32 "GP: iret to ring 3 with null SS", 13, 0, iretl
1:  mov %ebp, %esp
    /* POPF and IRET in ring 3 leave IF and IOPL as they are */
    movl $0x3202, user_stack_end - 4
    subl $4, user_rsp32
    user_ok32 "user popf", popf
    addl $4, user_rsp32
    mov exc_rflags, %eax
    and $0x3200, %eax
    check32 "user popf changes neither IF nor IOPL", %eax, $0
    ret

sysenter32:
    mov $0x174, %ecx
    xor %eax, %eax
    xor %edx, %edx
    wrmsr
    fault32 "GP: sysenter with a null CS", 13, 0, sysenter
    fault32 "GP: sysexit with a null CS", 13, 0, sysexit
    mov $0x174, %ecx
    mov $SEL_CODE32_2, %eax
    wrmsr
    mov $0x175, %ecx
    mov $ist1_stack_end, %eax
    wrmsr
    mov $0x176, %ecx
    mov $sysenter_target, %eax
    wrmsr
    mov %esp, %ebp
    movl $3, user_rflags
    movl $sysenter_user, user_rip
    jmp enter_user32
sysenter_user:
    mov $0x55, %ebx
    sysenter
    ud2
sysenter_target:
    mov %esp, %edx
    setc %cl
    mov %ebp, %esp
    check32 "sysenter: ESP", %edx, $ist1_stack_end
    movzbl %cl, %ecx
    check32 "sysenter: CF", %ecx, $1
    mov %cs, %eax
    check32 "sysenter: CS", %eax, $SEL_CODE32_2
    mov %ss, %eax
    check32 "sysenter: SS", %eax, $(SEL_CODE32_2+8)
    check32 "sysenter: EBX", %ebx, $0x55
    try32 sysexit_back
    mov user_rsp32, %ecx
    mov $sysexit_user, %edx
    sysexit
sysexit_user:
    mov %cs, %esi
    mov %ss, %edi
    mov %esp, %ebx
    ud2
sysexit_back:
    check32 "sysexit: CS", exc_rsi, $(SEL_CODE32_2+16+3)
    check32 "sysexit: SS", exc_rdi, $(SEL_CODE32_2+24+3)
    check32 "sysexit: ESP", exc_rbx, user_rsp32
    movl $2, user_rflags
    user_fault32 "GP: user sysexit", 13, 0, sysexit
    fault32 "UD: syscall without EFER.SCE", 6, 0, syscall
    ret

    .code64
main64:
    call syscall64
    call sysret_forms
    call sysenter64
    call iret64
    ret

syscall64:
    wrmsr64 0xc0000081, (0x1b<<48|SEL_CODE64<<32)
    wrmsr64_symbol 0xc0000082, syscall_target
    wrmsr64_symbol 0xc0000083, syscall_compat
    wrmsr64 0xc0000084, 0x40700
    mov %rsp, saved_rsp
    movq $0x40003, user_rflags          /* AC and CF */
    movq $1f, user_rip
    jmp enter_user64
1:  mov $0x77, %ebx
    syscall
syscall_next:
    mov %cs, %esi
    mov %ss, %edi
    pushf
    pop %rbx
    ud2
syscall_target:
    mov %rsp, %rdx
    mov saved_rsp, %rsp
    pushf
    pop %rax
    check64 "syscall: RFLAGS are masked", %rax, $3
    check64 "syscall: R11 has RFLAGS", %r11, $0x40003
    mov $syscall_next, %esi
    mov $USER_WINDOW, %eax
    or %rax, %rsi
    check64 "syscall: RCX has RIP", %rcx, %rsi
    check64 "syscall: RSP is kept", %rdx, user_rsp64
    mov %cs, %eax
    check64 "syscall: CS", %rax, $SEL_CODE64
    mov %ss, %eax
    check64 "syscall: SS", %rax, $SEL_DATA
    check64 "syscall: RBX", %rbx, $0x77
    /* back; RFLAGS come from R11, without RF and VM */
    try64 2f
    mov user_rsp64, %rsp
    mov $0x50ad7, %r11d                 /* RF as well */
    sysretq
2:  movq $0, try_resume
    mov saved_rsp, %rsp
    check64 "sysret: CS", exc_rsi, $SEL_USER_CODE64
    check64 "sysret: SS", exc_rdi, $SEL_USER_DATA
    mov exc_rbx, %rax
    and $0x50fd7, %eax
    check64 "sysret: RFLAGS", %rax, $0x40ad7
    movq $2, user_rflags
    ret

sysret_forms:
    /* to compatibility mode */
    mov %rsp, saved_rsp
    try64 2f
    mov $USER_WINDOW, %eax
    lea compat_user(%rax), %rcx
    mov $2, %r11d
    movabs $0x1234567800000000, %rbp
    mov user_rsp64, %rsp
    sysretl
    .code32
compat_user:
    mov %cs, %esi
    mov %ss, %edi
    mov $0xffffffff, %ebx
    inc %ebx
    syscall
    ud2
    .code64
syscall_compat:
    mov saved_rsp, %rsp
    movq $0, try_resume
    check64 "sysret to compatibility mode: CS", %rsi, $SEL_USER_CODE32
    check64 "sysret to compatibility mode: SS", %rdi, $SEL_USER_DATA
    check64 "syscall from compatibility mode: CSTAR", %rbx, $0
    jmp 3f
2:  movq $0, try_resume                 /* Intel knows no SYSCALL in compatibility mode: #UD */
    mov saved_rsp, %rsp
    check64 "sysret to compatibility mode: CS", exc_rsi, $SEL_USER_CODE32
    check64 "sysret to compatibility mode: SS", exc_rdi, $SEL_USER_DATA
    check64 "syscall in compatibility mode: #UD", exc_vector, $6
3:  wrmsr64 0xc0000080, 0xd00
    fault64 "UD: syscall without EFER.SCE", 6, 0, syscall
    fault64 "UD: sysret without EFER.SCE", 6, 0, sysretq
    wrmsr64 0xc0000080, 0xd01
    ret

sysenter64:
    xor %eax, %eax
    cpuid
    cmp $0x68747541, %ebx               /* AMD: #UD in long mode */
    je sysenter_amd
    wrmsr64 0x174, SEL_CODE64
    wrmsr64_symbol 0x175, ist1_stack_end
    wrmsr64_symbol 0x176, sysenter64_target
    mov %rsp, saved_rsp
    movq $1f, user_rip
    jmp enter_user64
1:  sysenter
    ud2
sysenter64_target:
    mov %rsp, %rdx
    mov saved_rsp, %rsp
    mov $ist1_stack_end, %eax
    check64 "sysenter, 64-bit: RSP", %rdx, %rax
    mov %cs, %eax
    check64 "sysenter, 64-bit: CS", %rax, $SEL_CODE64
    try64 2f
    mov user_rsp64, %rcx
    mov $USER_WINDOW, %eax
    lea 1f(%rax), %rdx
    sysexitq
1:  mov %cs, %esi
    mov %ss, %edi
    ud2
2:  movq $0, try_resume
    check64 "sysexit, 64-bit: CS", exc_rsi, $SEL_USER_CODE64
    check64 "sysexit, 64-bit: SS", exc_rdi, $SEL_USER_DATA2
    movabs $0x800000000000, %rdx
    fault64 "GP: sysexit to a non-canonical address", 13, 0, sysexitq
    ret
sysenter_amd:
    fault64 "UD: sysenter in long mode on AMD", 6, 0, sysenter
    fault64 "UD: sysexit in long mode on AMD", 6, 0, sysexitl
    ret

iret64:
    mov %rsp, %rbp
    pushq $SEL_DATA
    push %rbp
    pushq $2
    pushq $SEL_CODE64
    pushq $1f
    iretq
1:  check64 "iretq: RSP", %rsp, %rbp
    pushq $0                            /* null SS is fine in ring 0 */
    push %rbp
    pushq $2
    pushq $SEL_CODE64
    pushq $1f
    iretq
1:  mov %ss, %eax
    check64 "iretq: null SS", %rax, $0
    mov $SEL_DATA, %eax
    mov %eax, %ss
    pushq $SEL_USER_DATA
    push %rbp
    pushq $2
    pushq $SEL_CODE64
    pushq $1f
    fault64 "GP: iretq within ring 0 with an SS of ring 3", 13, 0x20, iretq
    mov %rbp, %rsp
    pushq $SEL_DATA
    push %rbp
    pushq $0x20002                      /* VM is ignored in long mode */
    pushq $SEL_CODE64
    pushq $1f
    iretq
1:  pushf
    pop %rax
    check64 "iretq: no VM in long mode", %rax, $2
    pushq $SEL_DATA
    push %rbp
    pushq $0x4002
    pushq $SEL_CODE64
    pushq $1f
    iretq
1:  fault64 "GP: iretq with NT in long mode", 13, 0, iretq
    pushq $2
    popf
    mov %rbp, %rsp
    /* a non-canonical return address */
    pushq $SEL_DATA
    push %rbp
    pushq $2
    pushq $SEL_CODE64
    movabs $0x800000000000, %rax
    push %rax
    try64 2f
    iretq
2:  movq $0, try_resume
    mov %rbp, %rsp
    check64 "iretq to a non-canonical address", exc_vector, $13
    /* 32-bit operands in 64-bit mode */
    subq $20, %rsp
    movl $1f, (%rsp)
    movl $SEL_CODE64, 4(%rsp)
    movl $2, 8(%rsp)
    movl %ebp, 12(%rsp)
    movl $SEL_DATA, 16(%rsp)
    iretl
1:  check64 "iretl in 64-bit mode: RSP", %rsp, %rbp
    /* to compatibility mode in the same ring */
    pushq $SEL_DATA
    push %rbp
    pushq $2
    pushq $SEL_CODE32
    pushq $1f
    iretq
    .code32
1:  mov $0xffffffff, %eax
    inc %eax
    check32 "iretq to compatibility mode", %eax, $0
    ljmp $SEL_CODE64, $1f
    .code64
1:  check64 "and back", %rsp, %rbp
    /* to compatibility mode in ring 3, and an exception from there */
    mov $USER_WINDOW, %ecx
    try64 2f
    pushq $SEL_USER_DATA
    pushq user_rsp64
    pushq $2
    pushq $SEL_USER_CODE32
    lea compat_user2(%rcx), %rax
    push %rax
    iretq
    .code32
compat_user2:
    movl $0x11223344, -4(%esp)
    mov -4(%esp), %esi
    mov %cs, %edi
    into
    int $0x80
    ud2
    .code64
2:  movq $0, try_resume
    mov $USER_WINDOW, %ecx
    check64 "user compatibility mode: data", exc_rsi, $0x11223344
    check64 "user compatibility mode: CS", exc_rdi, $SEL_USER_CODE32
    check64 "user compatibility mode: int of DPL 0", exc_error, $(0x80*8+2)
    check64 "user compatibility mode: SS in the frame", exc_ss, $SEL_USER_DATA
    mov exc_frame, %rax
    add $F64_SS + 8, %rax
    sub $ring0_stack_end, %rax
    check64 "user compatibility mode: 64-bit frame", %rax, $0
    ret

    .data
    .balign 8
saved_rsp: .quad 0
