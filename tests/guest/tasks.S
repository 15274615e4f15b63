/*
 * tasks.S - hardware task switches: by CALL, JMP, IRET, task gate, interrupt, exception
 *
 * Intel SDM vol. 3, "Task Management".
 */
#include "guest.h"

#define SEL_B (SEL_FREE+0)
#define SEL_GATE (SEL_FREE+8)           /* task gate to B */
#define SEL_SHORT (SEL_FREE+16)         /* TSS with a limit of 66H */
#define SEL_GONE (SEL_FREE+24)          /* TSS, not present */
#define SEL_LDT (SEL_FREE+32)

#define TSS_LINK 0
#define TSS_ESP0 4
#define TSS_CR3 28
#define TSS_EIP 32
#define TSS_EFLAGS 36
#define TSS_EAX 40
#define TSS_ECX 44
#define TSS_EBX 52
#define TSS_ESP 56
#define TSS_EDI 68
#define TSS_ES 72
#define TSS_CS 76
#define TSS_SS 80
#define TSS_DS 84
#define TSS_FS 88
#define TSS_GS 92
#define TSS_LDT 96
#define TSS_T 100

#define DR6_CLEAR 0xffff0ff0

#define BUSY_A gdt + SEL_TSS32 + 5
#define BUSY_B gdt + SEL_B + 5

    .text
    .code32
    .globl main32
/* An instruction that ends in the handler within task B. */
.macro task_fault name, vector, error, rip, insn:vararg
    try32 .Lresume\@
    \insn
.Lresume\@:
    movl $0, try_resume
    call back_to_a
    movl $\vector, check_vector
    movl $\error, check_error
    movl $\rip, check_rip
    .pushsection .rodata
.Lname\@: .asciz "\name"
    .popsection
    movl $.Lname\@, check_name
    call report_fault32
.endm

main32:
    mov $tss_b, %eax
    mov $SEL_B, %edx
    mov $103, %ecx
    call set_tss
    mov $SEL_SHORT, %edx
    mov $102, %ecx
    call set_tss
    mov $SEL_GONE, %edx
    mov $103, %ecx
    call set_tss
    andb $0x7f, gdt + SEL_GONE + 5
    set_gdt32 SEL_GATE, (SEL_B<<16), 0x00008500
    set_gdt32 SEL_LDT, 0x00000007, 0x00008200
    mov $local_table, %eax
    mov %ax, gdt + SEL_LDT + 2
    shr $16, %eax
    mov %al, gdt + SEL_LDT + 4

    call by_call
    call by_jump
    call by_gate
    call by_interrupt
    call by_exception
    call faults
    call trap_flag
    call to_user
    call paging_and_ldt
    ret

/* Task B from its beginning, at `EAX`. */
init_b:
    mov %eax, tss_b + TSS_EIP
    movl $2, tss_b + TSS_EFLAGS
    movl $0xaaaa, tss_b + TSS_EAX
    movl $0xcccc, tss_b + TSS_ECX
    movl $0xbbbb, tss_b + TSS_EBX
    movl $ist1_stack_end, tss_b + TSS_ESP
    movl $SEL_DATA, tss_b + TSS_ES
    movl $SEL_CODE32, tss_b + TSS_CS
    movl $SEL_DATA, tss_b + TSS_SS
    movl $SEL_DATA, tss_b + TSS_DS
    movl $0, tss_b + TSS_FS
    movl $0, tss_b + TSS_GS
    movl $0, tss_b + TSS_LDT
    movl $104 << 16, tss_b + TSS_T
    movl $0, tss_b + TSS_LINK
    movl $ring0_stack_end, tss_b + TSS_ESP0
    movl $SEL_DATA, tss_b + TSS_ESP0 + 4
    movb $0x89, BUSY_B
    ret

/* Whatever the state of the task chain: A is the task, B is free. */
back_to_a:
    movb $0x89, BUSY_A
    movb $0x89, BUSY_B
    push %eax
    mov $SEL_TSS32, %eax
    ltr %ax
    clts
    pop %eax
    ret

/* EAX: bit `n` of the flags */
.macro flag n
    pushf
    pop %eax
    shr $\n, %eax
    and $1, %eax
.endm

.macro ts_flag
    mov %cr0, %eax
    shr $3, %eax
    and $1, %eax
.endm

by_call:
    mov $b_called, %eax
    call init_b
    clts
    mov $0x1111, %ebx
    stc
    lcall $SEL_B, $0xdeadbeef
by_call_back:
    setc %cl
    movzbl %cl, %ecx
    check32 "back in A: CF", %ecx, $1
    check32 "back in A: EBX", %ebx, $0x1111
    flag 14
    check32 "back in A: NT clear", %eax, $0
    ts_flag
    check32 "back in A: CR0.TS set", %eax, $1
    str %eax
    check32 "back in A: TR", %eax, $SEL_TSS32
    movzbl BUSY_A, %eax
    check32 "back in A: A is busy", %eax, $0x8b
    movzbl BUSY_B, %eax
    check32 "back in A: B is not", %eax, $0x89
    mov tss_b + TSS_EFLAGS, %eax
    shr $14, %eax
    and $1, %eax
    check32 "iret clears NT in the image of B", %eax, $0
    check32 "B goes on behind its iret", tss_b+TSS_EIP, $b_called_again
    /* once more: B goes on where it was */
    lcall $SEL_B, $0
    check32 "second call: B went on", second_time, $1
    ret

b_called:
    check32 "in B: EAX", %eax, $0xaaaa
    check32 "in B: EBX", %ebx, $0xbbbb
    check32 "in B: ESP", %esp, $ist1_stack_end
    flag 14
    check32 "in B: NT set", %eax, $1
    ts_flag
    check32 "in B: CR0.TS set", %eax, $1
    str %eax
    check32 "in B: TR", %eax, $SEL_B
    movzwl tss_b + TSS_LINK, %eax
    check32 "in B: back link", %eax, $SEL_TSS32
    movzbl BUSY_A, %eax
    check32 "in B: A is still busy", %eax, $0x8b
    movzbl BUSY_B, %eax
    check32 "in B: B is busy", %eax, $0x8b
    check32 "image of A: EIP", tss32+TSS_EIP, $by_call_back
    check32 "image of A: EBX", tss32+TSS_EBX, $0x1111
    movzwl tss32 + TSS_CS, %eax
    check32 "image of A: CS", %eax, $SEL_CODE32
    mov tss32 + TSS_EFLAGS, %eax
    and $0x4001, %eax
    check32 "image of A: CF set, NT clear", %eax, $1
    iret
b_called_again:
    movl $1, second_time
    iret

by_jump:
    mov $b_jumped, %eax
    call init_b
    ljmp $SEL_B, $0
    movzbl BUSY_B, %eax
    check32 "jumped back: B is not busy", %eax, $0x89
    movzbl BUSY_A, %eax
    check32 "jumped back: A is busy", %eax, $0x8b
    flag 14
    check32 "jumped back: NT clear", %eax, $0
    ret
b_jumped:
    flag 14
    check32 "jumped to B: NT clear", %eax, $0
    movzbl BUSY_A, %eax
    check32 "jumped to B: A is not busy", %eax, $0x89
    movzwl tss_b + TSS_LINK, %eax
    check32 "jumped to B: no back link", %eax, $0
    ljmp $SEL_TSS32, $0

by_gate:
    mov $b_gate, %eax
    call init_b
    movl $0, count
    lcall $SEL_GATE, $0
    check32 "call through a task gate", count, $1
    ret
b_gate:
    incl count
    iret
    incl count
    iret

by_interrupt:
    mov $b_interrupt, %eax
    call init_b
    movl $0, count
    movl $SEL_B << 16, idt32 + 0x60 * 8
    movl $0x8500, idt32 + 0x60 * 8 + 4
    movl $0xcccccccc, ist1_stack_end - 4
    int $0x60
    check32 "int through a task gate", count, $1
    check32 "int pushes nothing", ist1_stack_end-4, $0xcccccccc
    int $0x60
    check32 "int through a task gate again", count, $2
    ret
b_interrupt:
    incl count
    iret
    incl count
    iret

/* #GP through a task gate: the error code is on B's stack; B moves A's EIP on. */
by_exception:
    mov $b_exception, %eax
    call init_b
    mov idt32 + 13 * 8, %eax
    mov %eax, saved_gate
    mov idt32 + 13 * 8 + 4, %eax
    mov %eax, saved_gate + 4
    movl $SEL_B << 16, idt32 + 13 * 8
    movl $0x8500, idt32 + 13 * 8 + 4
    mov $SEL_END, %eax
by_exception_here:
    mov %eax, %gs
by_exception_next:
    mov saved_gate, %eax
    mov %eax, idt32 + 13 * 8
    mov saved_gate + 4, %eax
    mov %eax, idt32 + 13 * 8 + 4
    check32 "exception through a task gate: EIP in the image", count, $by_exception_here
    check32 "exception through a task gate: error code", count+4, $SEL_END
    check32 "exception through a task gate: ESP", count+8, $(ist1_stack_end-4)
    mov count + 12, %eax
    shr $16, %eax
    and $1, %eax
    check32 "exception through a task gate: RF in the image", %eax, $1
    ret
b_exception:
    mov %esp, count + 8
    popl count + 4
    mov tss32 + TSS_EIP, %eax
    mov %eax, count
    mov tss32 + TSS_EFLAGS, %eax
    mov %eax, count + 12
    movl $by_exception_next, tss32 + TSS_EIP
    iret

faults:
    mov $b_gate, %eax
    call init_b
    fault32 "GP: call of a busy TSS", 13, SEL_TSS32, lcall $SEL_TSS32, $0
    fault32 "GP: jump to a busy TSS", 13, SEL_TSS32, ljmp $SEL_TSS32, $0
    fault32 "NP: absent TSS", 11, SEL_GONE, lcall $SEL_GONE, $0
    fault32 "TS: limit too small", 10, SEL_SHORT, ljmp $SEL_SHORT, $0
    set_gdt32 SEL_GATE, (SEL_B<<16), 0x00000500
    fault32 "NP: absent task gate", 11, SEL_GATE, lcall $SEL_GATE, $0
    set_gdt32 SEL_GATE, (SEL_DATA<<16), 0x00008500
    fault32 "GP: task gate to data", 13, SEL_DATA, lcall $SEL_GATE, $0
    set_gdt32 SEL_GATE, (SEL_GONE<<16), 0x00008500
    fault32 "NP: task gate to an absent TSS", 11, SEL_GONE, lcall $SEL_GATE, $0
    set_gdt32 SEL_GATE, (SEL_B<<16), 0x00008500
    movzbl BUSY_B, %eax
    check32 "B is not busy after all this", %eax, $0x89
    user_fault32 "GP: user call of a TSS of DPL 0", 13, SEL_B, lcall $SEL_B, $0

    /* IRET with NT set to a task that is not busy, or is none */
    movl $SEL_B, tss32 + TSS_LINK
    mov %esp, %ebp
    pushl $0x4002
    popf
    fault32 "TS: iret to a task that is not busy", 10, SEL_B, iret
    movl $SEL_DATA, tss32 + TSS_LINK
    pushl $0x4002
    popf
    fault32 "TS: iret to data", 10, SEL_DATA, iret
    pushl $2
    popf

    /* what is wrong with the new task's segments shows in the new task */
    mov $b_gate, %eax
    call init_b
    movl $SEL_END, tss_b + TSS_DS
    mov $b_gate, %eax
    task_fault "TS: bad DS in the new task", 10, SEL_END, b_gate, lcall $SEL_B, $0
    mov $b_gate, %eax
    call init_b
    movl $SEL_TSS32, tss_b + TSS_ES
    task_fault "TS: a system segment in ES", 10, SEL_TSS32, b_gate, lcall $SEL_B, $0
    ret

trap_flag:
    mov $b_gate, %eax
    call init_b
    movl $104 << 16 | 1, tss_b + TSS_T
    mov $DR6_CLEAR, %eax
    mov %eax, %db6
    task_fault "DB: T bit of the new task", 1, 0, b_gate, lcall $SEL_B, $0
    mov exc_dr6, %eax
    and $0xe00f, %eax
    check32 "DB: DR6.BT", %eax, $0x8000
    mov $DR6_CLEAR, %eax
    mov %eax, %db6
    ret

/* A task in ring 3; it goes back by IRET. */
to_user:
    mov $b_user, %eax
    call init_b
    movl $SEL_USER_CODE32, tss_b + TSS_CS
    movl $SEL_USER_DATA, tss_b + TSS_SS
    movl $SEL_USER_DATA, tss_b + TSS_DS
    movl $SEL_USER_DATA, tss_b + TSS_ES
    mov user_rsp32, %eax
    mov %eax, tss_b + TSS_ESP
    clts
    lcall $SEL_B, $0
    check32 "task in ring 3: its CS", tss_b+TSS_EDI, $SEL_USER_CODE32
    mov %cs, %eax
    check32 "and back in ring 0", %eax, $SEL_CODE32
    ret
b_user:
    mov %cs, %edi
    iret

/* A switch changes CR3 when paging is on, and the LDT. */
paging_and_ldt:
    mov $directory, %edi
    mov $0x83, %eax
    mov $1024, %ecx
1:  mov %eax, (%edi)
    mov %eax, 4096(%edi)
    add $4, %edi
    add $0x400000, %eax
    loop 1b
    /* address 16 MiB is elsewhere in B's directory */
    movl $0x01400083, directory + 4096 + 4 * 4
    movl $0xaaaa, 0x01000000
    movl $0xbbbb, 0x01400000
    mov %cr4, %eax
    or $0x10, %eax
    mov %eax, %cr4
    mov $directory, %eax
    mov %eax, %cr3
    mov %eax, tss32 + TSS_CR3
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    mov $b_paging, %eax
    call init_b
    movl $directory + 4096, tss_b + TSS_CR3
    movl $SEL_LDT, tss_b + TSS_LDT
    movl $4, tss_b + TSS_FS
    lcall $SEL_B, $0
    check32 "CR3 of B", count, $0xbbbb
    check32 "LDT of B", count+4, $SEL_LDT
    check32 "FS from the LDT of B", count+8, $0xbbbb
    mov 0x01000000, %eax
    check32 "CR3 of A again", %eax, $0xaaaa
    sldt %eax
    check32 "LDT of A again", %eax, $0
    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    ret
b_paging:
    mov 0x01000000, %eax
    mov %eax, count
    sldt %eax
    mov %eax, count + 4
    mov %fs:0, %eax
    mov %eax, count + 8
    iret

    .data
    .balign 8
count: .long 0, 0, 0, 0
second_time: .long 0
saved_gate: .quad 0
local_table: .quad 0x0140930000000fff   /* base 16 MiB */

    .bss
    .balign 4096
directory: .skip 8192
tss_b: .skip 256
