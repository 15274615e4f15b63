/*
 * real.S - real mode, big segments in real mode, virtual-8086 mode with and without VME
 *
 * Code of section .text.low is copied to LOW_CODE and runs there as 16-bit code with CS =
 * LOW_CODE / 16; everything is judged in 32-bit protected mode. Intel SDM vol. 3, "8086
 * Emulation".
 */
#include "guest.h"

#define SEG_CODE (LOW_CODE >> 4)
#define SEG_DATA (LOW_DATA >> 4)
#define LOW(label) (label - low_start)

/* real "instructions": run them in real mode up to an exception. Several are set apart by ";". */
.macro real insn
    .pushsection .text.low, "ax"
    .code16
.Llow\@:
    \insn
.Llowend\@:
    ud2
    .popsection
    .code32
    .set real_here, .Llow\@ - low_start
    .set real_there, .Llowend\@ - low_start
    movw $.Llow\@ - low_start, entry_ip
    call run_real
.endm

.macro judge name
    .pushsection .rodata
.Lname\@: .asciz "\name"
    .popsection
    movl $.Lname\@, check_name
    call report_fault32
.endm

.macro real_fault name, vector, insn
    real "\insn"
    movl $\vector, check_vector
    movl $0, check_error
    movl $real_here, check_rip
    judge "\name"
.endm

.macro real_ok name, insn
    real "\insn"
    movl $6, check_vector
    movl $0, check_error
    movl $real_there, check_rip
    judge "\name"
.endm

.macro v86 insn
    .pushsection .text.low, "ax"
    .code16
.Llow\@:
    \insn
.Llowend\@:
    ud2
    .popsection
    .code32
    .set real_here, .Llow\@ - low_start
    .set real_there, .Llowend\@ - low_start
    movw $.Llow\@ - low_start, entry_ip
    try32 .Lresume\@
    jmp enter_v86
.Lresume\@:
.endm

.macro v86_fault name, vector, error, insn
    v86 "\insn"
    movl $\vector, check_vector
    movl $\error, check_error
    movl $real_here, check_rip
    judge "\name"
.endm

.macro v86_ok name, insn
    v86 "\insn"
    movl $6, check_vector
    movl $0, check_error
    movl $real_there, check_rip
    judge "\name"
.endm

    .set low_segment, SEG_CODE

/* ------------------------------------------------------------------ low code */

    .section .text.low, "ax"
    .code16
low_start:
low_entry:                              /* still protected, 16-bit code */
    mov %cr0, %eax
    and $~1, %eax
    mov %eax, %cr0
    ljmp $SEG_CODE, $LOW(1f)
1:  xor %ax, %ax
    mov %ax, %ss
    mov $SEG_DATA, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %cs:LOW(low_eax), %eax
    jmp *%cs:LOW(low_ip)

/* One stub for each of the first 32 vectors, 4 bytes. */
low_stubs:
    .set vector, 0
    .rept 32
    .byte 0x6a, vector                  /* push $vector */
    jmp 1f
    .org low_stubs + 4 * vector + 4
    .set vector, vector + 1
    .endr
    .org low_stubs + 128
1:  jmp low_common

low_common:
    mov %eax, %cs:LOW(low_eax)
    mov %ds, %cs:LOW(low_ds)
    mov %es, %cs:LOW(low_es)
    mov %ss, %cs:LOW(low_ss)
    mov %esp, %cs:LOW(low_esp)
    mov %cr0, %eax
    or $1, %eax
    mov %eax, %cr0
    ljmpl $SEL_CODE32, $real_back

/* handlers of vectors 60H and 61H: something in AX, and how the stack looks */
low_int60:
    mov %sp, %bx
    pushf
    pop %cx
    mov $0x6060, %ax
    iret
low_far:
    mov %sp, %bx
    mov $0xfafa, %ax
    lret
low_v86_int:
    mov $0x6161, %ax
    iret

    .balign 4
low_eax: .long 0
low_ds: .word 0
low_es: .word 0
low_ss: .word 0
low_ip: .word 0
low_esp: .long 0
low_pointer: .long 0

#define LOW_VAR(name) (LOW_CODE + LOW(name))

/* ------------------------------------------------------------------ the way there and back */

    .text
    .code32
    .globl main32
run_real:
    pushal
    mov %esp, saved_esp
    mov entry_ip, %cx
    mov %cx, LOW_VAR(low_ip)
    mov 28(%esp), %eax
    mov %eax, LOW_VAR(low_eax)
    mov 24(%esp), %ecx
    lidt real_idt
    mov $SEL_DATA16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %gs
    mov %eax, %ss
    mov %cs:real_sp, %esp
    ljmp $SEL_CODE16, $LOW_CODE + LOW(low_entry)

real_back:
    mov $SEL_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %eax, %gs
    mov %ecx, exc_rcx
    mov %edx, exc_rdx
    mov %ebx, exc_rbx
    mov %esi, exc_rsi
    mov %edi, exc_rdi
    mov LOW_VAR(low_eax), %eax
    mov %eax, exc_rax
    movzwl LOW_VAR(low_ss), %ebx
    shl $4, %ebx
    movzwl LOW_VAR(low_esp), %eax
    add %eax, %ebx
    movzwl (%ebx), %eax
    mov %eax, exc_vector
    movzwl 2(%ebx), %eax
    mov %eax, exc_rip
    movzwl 4(%ebx), %eax
    mov %eax, exc_cs
    movzwl 6(%ebx), %eax
    mov %eax, exc_rflags
    movzwl LOW_VAR(low_esp), %eax
    add $8, %eax
    mov %eax, exc_rsp
    lidt idt32_pointer
    mov saved_esp, %esp
    popal
    ret

/* To virtual-8086 mode at entry_ip, flags v86_flags; the handler comes back through try32. */
enter_v86:
    pushl $SEG_DATA + 3                 /* GS */
    pushl $SEG_DATA + 2                 /* FS */
    pushl $SEG_DATA                     /* DS */
    pushl $SEG_DATA + 1                 /* ES */
    pushl $0                            /* SS */
    pushl $LOW_STACK
    pushl v86_flags
    pushl $SEG_CODE
    pushl entry_ip
    iretl

main32:
    mov $low_start, %esi
    mov $LOW_CODE, %edi
    mov $low_end - low_start, %ecx
    rep movsb
    xor %edi, %edi                      /* the IVT */
    mov $SEG_CODE << 16 | LOW(low_stubs), %eax
    mov $32, %ecx
1:  stosl
    add $4, %eax
    loop 1b
    movl $SEG_CODE << 16 | LOW(low_int60), 0x60 * 4
    movl $SEG_CODE << 16 | LOW(low_v86_int), 0x61 * 4

    call real_mode
    call big_real
    call v86_mode
    call vme
    ret

/* ------------------------------------------------------------------ real mode */

real_mode:
    real_ok "real mode", "nop"
    check32 "CS in the frame", exc_cs, $SEG_CODE
    check32 "SP before the frame", exc_rsp, $LOW_STACK
    real_fault "UD", 6, "ud2"
    xor %ecx, %ecx
    real_fault "DE", 0, "div %cl"
    real_fault "UD: sldt", 6, "sldt %ax"
    real_fault "UD: str", 6, "str %ax"
    real_fault "UD: lar", 6, "lar %ax, %ax"
    real_fault "UD: verr", 6, "verr %ax"
    real_fault "UD: lldt", 6, "lldt %ax"
    real_fault "UD: ltr", 6, "ltr %ax"
    real_fault "UD: arpl", 6, "arpl %ax, %ax"
    real_ok "smsw", "smsw %ax"
    real_ok "lgdt", "lgdtl %cs:low_gdt-low_start"
    real_ok "mov from CR0", "mov %cr0, %eax"
    check32 "PE clear", exc_rax, $0x10

    /* segments are paragraphs */
    movl $0x12345678, LOW_DATA + 0x100
    real_ok "load", "mov 0x100, %eax"
    check32 "DS * 16", exc_rax, $0x12345678
    mov $SEG_DATA + 1, %eax
    real_ok "load through ES", "mov %ax, %es; mov %es:0xf0, %eax"
    check32 "ES * 16", exc_rax, $0x12345678
    movl $0x87654321, 0x100000
    mov $0xffff, %eax
    real_ok "above 1 MiB", "mov %ax, %es; mov %es:0x10, %eax"
    check32 "FFFF:0010 with A20", exc_rax, $0x87654321

    /* limits: 64 KiB, vector 13 or 12 without an error code */
    real_fault "GP: word at FFFFH", 13, "mov 0xffff, %ax"
    real_fault "GP: dword at FFFDH", 13, "mov 0xfffd, %eax"
    real_ok "word at FFFEH", "mov 0xfffe, %ax"
    mov $0x10000, %ebx
    real_fault "GP: 32-bit address above 64 KiB", 13, "mov (%ebx), %al"
    movl $0xffff, %ebx
    real_ok "32-bit address FFFFH", "mov (%ebx), %al"
    mov $0xffff, %ebp
    real_fault "SS: word at FFFFH of the stack", 12, "mov 0(%bp), %ax"
    /* the effective address wraps at 64 KiB */
    mov $0xff00, %ebx
    movb $0x77, LOW_DATA + 0x10
    real_ok "16-bit address wraps", "mov 0x110(%bx), %al"
    movzbl exc_rax, %eax
    check32 "FF00H + 110H", %eax, $0x77
    /* SP wraps, too */
    movl $0, real_sp
    movw $0x1234, 0xfffe
    real_ok "push with SP 0", "pushw $0x4321"
    movzwl 0xfffe, %eax
    check32 "push with SP 0 wraps", %eax, $0x4321
    movl $LOW_STACK, real_sp

    /* INT pushes three words, clears IF and TF */
    real_ok "int and iret", "sti; stc; int $0x60; setc %dl; pushf; cli; popw %si"
    movzwl exc_rax, %eax
    check32 "int: handler ran", %eax, $0x6060
    movzwl exc_rbx, %eax
    check32 "int: three words", %eax, $(LOW_STACK-6)
    movzwl exc_rcx, %eax
    and $0x301, %eax
    check32 "int: IF and TF clear, CF kept", %eax, $1
    movzbl exc_rdx, %eax
    check32 "iret: CF back", %eax, $1
    movzwl exc_rsi, %eax
    and $0x200, %eax
    check32 "iret: IF back", %eax, $0x200
    real_ok "far call", "lcall $low_segment, $low_far-low_start"
    movzwl exc_rbx, %eax
    check32 "far call: two words", %eax, $(LOW_STACK-4)
    check32 "far call: SP after", exc_rsp, $LOW_STACK
    mov $0x7fff, %eax
    real_ok "no into", "into"
    real "inc %ax; into"
    check32 "OF", exc_vector, $4
    movl $0x00050001, LOW_DATA
    mov $6, %eax
    real_fault "BR", 5, "bound %ax, 0"
    real "int3"
    check32 "BP", exc_vector, $3
    /* PUSH SP stores the old value; 8086s did not */
    real_ok "push SP", "push %sp; pop %ax"
    movzwl exc_rax, %eax
    check32 "push SP", %eax, $LOW_STACK
    real_ok "pusha and popa", "pusha; mov %sp, %bp; popa; mov %sp, %di"
    movzwl exc_rdi, %eax
    check32 "pusha and popa: SP", %eax, $LOW_STACK
    /* 16-bit loops and jumps */
    mov $0x12340003, %ecx
    xor %eax, %eax
    real_ok "loop counts CX", "1: inc %eax; loopw 1b"
    check32 "loop: turns", exc_rax, $3
    check32 "loop: the upper half stays", exc_rcx, $0x12340000
    mov $0x10000, %ecx
    real_ok "jcxz looks at CX", "jcxz 1f; ud2; 1: nop"
    /* string operations wrap SI and DI */
    mov $0xffff, %esi
    mov $0x10, %edi
    real_ok "lodsb at FFFFH", "lodsb"
    movzwl exc_rsi, %eax
    check32 "lodsb: SI wraps", %eax, $0
    mov $0x1234ffff, %esi
    real_ok "lodsb: upper half of ESI", "lodsb"
    check32 "lodsb: upper half of ESI stays", exc_rsi, $0x12340000
    /* an IDT that is too short */
    movw $0x40 * 4 - 1, real_idt
    real_fault "GP: int beyond the IDT", 13, "int $0x60"
    movw $0x3ff, real_idt
    ret

/* FS keeps the limit it got in protected mode. */
big_real:
    mov $SEL_DATA, %eax
    mov %eax, %fs
    movl $0x5a5a5a5a, SCRATCH
    mov $SCRATCH, %ebx
    real_ok "32-bit address through a big segment", "mov %fs:(%ebx), %eax"
    check32 "big segment", exc_rax, $0x5a5a5a5a
    mov $0x20, %ecx
    real_ok "a load in real mode changes the base only", "mov %cx, %fs; mov %fs:-0x200(%ebx), %eax"
    check32 "base changed, limit kept", exc_rax, $0x5a5a5a5a
    xor %eax, %eax
    mov %eax, %fs
    ret

/* ------------------------------------------------------------------ virtual-8086 mode */

v86_mode:
    movl $0x20002, v86_flags
    v86_ok "v8086 mode", "nop"
    check32 "v86: CS", exc_cs, $SEG_CODE
    check32 "v86: SS", exc_ss, $0
    check32 "v86: ESP", exc_rsp, $LOW_STACK
    mov exc_rflags, %eax
    and $0x20000, %eax
    check32 "v86: VM in the frame", %eax, $0x20000
    mov exc_frame, %ebx
    movzwl F32_V86_ES(%ebx), %eax
    check32 "v86: ES in the frame", %eax, $(SEG_DATA+1)
    movzwl F32_V86_DS(%ebx), %eax
    check32 "v86: DS in the frame", %eax, $SEG_DATA
    movzwl F32_V86_FS(%ebx), %eax
    check32 "v86: FS in the frame", %eax, $(SEG_DATA+2)
    movzwl F32_V86_GS(%ebx), %eax
    check32 "v86: GS in the frame", %eax, $(SEG_DATA+3)
    movzwl F32_DS(%ebx), %eax
    check32 "v86: the handler starts with null DS", %eax, $0
    mov %fs, %eax
    check32 "v86: and null FS", %eax, $0
    sub $ring0_stack_end - F32_V86_GS - 4, %ebx
    check32 "v86: frame on the ring 0 stack", %ebx, $0

    movl $0x12345678, LOW_DATA + 0x100
    v86_ok "v86: load", "mov 0x100, %eax"
    check32 "v86: DS * 16", exc_rax, $0x12345678
    v86_fault "v86: word at FFFFH", 13, 0, "mov 0xffff, %ax"
    mov $0x10000, %ebx
    v86_fault "v86: above 64 KiB", 13, 0, "mov (%ebx), %al"
    mov $0xffff, %ebp
    v86_fault "v86: word at FFFFH of the stack", 12, 0, "mov 0(%bp), %ax"
    v86_fault "v86: hlt", 13, 0, "hlt"
    v86_fault "v86: mov from CR0", 13, 0, "mov %cr0, %eax"
    v86_fault "v86: lgdt", 13, 0, "lgdtl %cs:low_gdt-low_start"
    v86_fault "v86: sldt", 6, 0, "sldt %ax"
    v86_fault "v86: lar", 6, 0, "lar %ax, %ax"
    v86_fault "v86: arpl", 6, 0, "arpl %ax, %ax"
    v86_ok "v86: smsw", "smsw %ax"
    v86_fault "v86: clts", 13, 0, "clts"
    /* with IOPL 0 what touches IF is the monitor's */
    v86_fault "v86: cli, IOPL 0", 13, 0, "cli"
    v86_fault "v86: sti, IOPL 0", 13, 0, "sti"
    v86_fault "v86: pushf, IOPL 0", 13, 0, "pushf"
    v86_fault "v86: popf, IOPL 0", 13, 0, "popf"
    v86_fault "v86: iret, IOPL 0", 13, 0, "iret"
    v86_fault "v86: int, IOPL 0", 13, 0, "int $0x60"
    v86 "int3"
    check32 "v86: int3 needs no IOPL", exc_vector, $3
    v86_fault "v86: in without a bitmap", 13, 0, "inb $0x80, %al"
    movl $0x23002, v86_flags
    v86_ok "v86: cli, IOPL 3", "cli"
    v86_ok "v86: pushf, IOPL 3", "pushf; pop %ax"
    movzwl exc_rax, %eax
    and $0x3000, %eax
    check32 "v86: pushf shows IOPL", %eax, $0x3000
    v86_ok "v86: popf cannot change IOPL", "pushw $0; popf; pushf; pop %ax"
    movzwl exc_rax, %eax
    and $0x3000, %eax
    check32 "v86: IOPL after popf", %eax, $0x3000
    v86_fault "v86: int, gate of DPL 0", 13, 0x602, "int $0xc0"
    v86_fault "v86: in looks at the bitmap whatever IOPL", 13, 0, "inb $0x80, %al"
    v86_ok "v86: iret within", "pushf; pushw %cs; pushw $1f-low_start; iret; 1: nop"
    movb $0xee, idt32 + 0xc0 * 8 + 5
    v86_ok "v86: int through a gate of DPL 3", "int $0xc0"
    check32 "v86: it was counted", irq_count+0xc0*8, $1
    mov exc_frame, %ebx
    movzwl F32_V86_ES(%ebx), %eax
    check32 "v86: ES after iret", %eax, $(SEG_DATA+1)
    movzwl F32_V86_GS(%ebx), %eax
    check32 "v86: GS after iret", %eax, $(SEG_DATA+3)
    /* ports of the bitmap */
    movb $0xfe, tss32 + 104 + 0x80 / 8
    movw $104 + 0x80 / 8 + 1, gdt + SEL_TSS32
    movb $0xff, tss32 + 104 + 0x80 / 8 + 1
    movb $0x89, gdt + SEL_TSS32 + 5
    mov $SEL_TSS32, %eax
    ltr %ax
    v86_ok "v86: in from an open port", "inb $0x80, %al"
    v86_fault "v86: in from a closed port", 13, 0, "inb $0x81, %al"
    /* far transfers are as in real mode */
    v86_ok "v86: far call", "lcall $low_segment, $low_far-low_start"
    movzwl exc_rax, %eax
    check32 "v86: far call went", %eax, $0xfafa
    ret

/* CR4.VME: the software interrupts that the bitmap clears stay in v8086 mode; VIF is IF. */
vme:
    mov $1, %eax
    cpuid
    bt $1, %edx
    jc 1f
    ret
1:  mov %cr4, %eax
    or $1, %eax
    mov %eax, %cr4
    /* the 32-byte redirection map is right below the I/O map */
    movw $104 + 32, tss32 + 102
    mov $tss32 + 104, %edi
    mov $-1, %eax
    mov $8, %ecx
    rep stosl
    movb $0xfd, tss32 + 104 + 0x61 / 8  /* 61H is redirected */
    movb $0xff, tss32 + 104 + 32
    movw $104 + 32, gdt + SEL_TSS32
    movb $0x89, gdt + SEL_TSS32 + 5
    mov $SEL_TSS32, %eax
    ltr %ax
    movl $0x20002, v86_flags            /* IOPL 0 */
    v86_ok "vme: redirected int", "int $0x61"
    movzwl exc_rax, %eax
    check32 "vme: the 8086 handler ran", %eax, $0x6161
    v86_fault "vme: int that is not redirected, IOPL 0", 13, 0, "int $0x60"
    v86_ok "vme: sti sets VIF", "sti; pushf; pop %ax"
    movzwl exc_rax, %eax
    and $0x3200, %eax
    check32 "vme: pushf shows VIF as IF, and IOPL 3", %eax, $0x3200
    mov exc_rflags, %eax
    and $0x80200, %eax
    check32 "vme: VIF set, IF not", %eax, $0x80000
    movl $0xa0002, v86_flags
    v86_ok "vme: cli clears VIF", "cli"
    mov exc_rflags, %eax
    and $0x80200, %eax
    check32 "vme: VIF clear", %eax, $0
    movl $0x120002, v86_flags           /* VIP */
    v86_fault "vme: sti with VIP", 13, 0, "sti"
    v86_ok "vme: popf without IF", "pushw $0; popf"
    v86 "pushw $0x202; popf"
    check32 "vme: popf with IF and VIP", exc_vector, $13
    movl $0x23002, v86_flags
    v86_fault "vme: IOPL 3, not redirected, gate of DPL 0", 13, 0x302, "int $0x60"
    mov %cr4, %eax
    and $~1, %eax
    mov %eax, %cr4
    ret

    .section .text.low, "ax"
low_gdt:
    .word SEL_END - 1
    .long gdt
low_end:

    .data
    .balign 8
entry_ip: .long 0
v86_flags: .long 0
real_sp: .long LOW_STACK
saved_esp: .long 0
real_idt:
    .word 0x3ff
    .long 0
