/*
 * exceptions.S - which vector, which error code, which frame
 *
 * Intel SDM vol. 3, "Interrupt and Exception Handling"; paging, segment limits, tasks, debug and
 * floating-point exceptions have guests of their own.
 */
#include "guest.h"

#define SEL_ABSENT (SEL_FREE+0)        /* data, not present */
#define SEL_XONLY (SEL_FREE+8)         /* execute-only code */
#define SEL_SMALL (SEL_FREE+16)        /* data, limit 0FFFH */
#define SEL_DPL3 (SEL_FREE+24)         /* data, DPL 3 */
#define SEL_READONLY (SEL_FREE+32)     /* data, read-only */
#define SEL_LD (SEL_FREE+40)           /* code with both L and D */

    .text
    .code32
    .globl main32, main64
main32:
    set_gdt32 SEL_ABSENT, 0x0000ffff, 0x00cf1300
    set_gdt32 SEL_XONLY, 0x0000ffff, 0x00cf9900
    set_gdt32 SEL_SMALL, 0x00000fff, 0x00409300
    set_gdt32 SEL_DPL3, 0x0000ffff, 0x00cff300
    set_gdt32 SEL_READONLY, 0x0000ffff, 0x00cf9100
    set_gdt32 SEL_LD, 0x0000ffff, 0x00ef9b00

    /* 0: #DE */
    xor %edx, %edx
    mov $1, %eax
    xor %ecx, %ecx
    fault32 "DE: div by 0", 0, 0, div %ecx
    mov $1, %edx
    mov $1, %ecx
    fault32 "DE: div quotient too large", 0, 0, div %ecx
    mov $0x80000000, %eax
    cdq
    mov $-1, %ecx
    fault32 "DE: idiv of the most negative by -1", 0, 0, idiv %ecx
    check32 "DE: EAX is kept", exc_rax, $0x80000000
    check32 "DE: EDX is kept", exc_rdx, $0xffffffff
    mov $0x8000, %eax
    mov $0xff, %cl
    fault32 "DE: 8-bit idiv", 0, 0, idiv %cl
    fault32 "DE: aam 0", 0, 0, aam $0

    /* 1, 3, 4: traps */
    trap32 "DB: int1", 1, 0, .byte 0xf1
    mov exc_rflags, %eax
    shr $16, %eax
    and $1, %eax
    check32 "DB: int1 pushes RF clear", %eax, $0
    trap32 "BP: int3", 3, 0, int3
    trap32 "BP: int 3 of two bytes", 3, 0, .byte 0xcd, 3
    mov $0x7fffffff, %eax
    inc %eax
    trap32 "OF: into with OF", 4, 0, into
    xor %eax, %eax
    nofault32 "OF: into without OF", into

    /* 5: #BR */
    mov $bounds, %ebx
    mov $10, %eax
    nofault32 "BR: at the upper bound", bound %eax, (%ebx)
    mov $-5, %eax
    nofault32 "BR: at the lower bound", bound %eax, (%ebx)
    mov $11, %eax
    fault32 "BR: above", 5, 0, bound %eax, (%ebx)
    mov $-6, %eax
    fault32 "BR: below", 5, 0, bound %eax, (%ebx)

    /* 6: #UD */
    fault32 "UD: ud2", 6, 0, ud2
    mov exc_rflags, %eax
    shr $16, %eax
    and $1, %eax
    check32 "UD: a fault pushes RF set", %eax, $1
    fault32 "UD: ud1", 6, 0, .byte 0x0f, 0xb9, 0xc0
    fault32 "UD: lock nop", 6, 0, .byte 0xf0, 0x90
    fault32 "UD: lock mov to memory", 6, 0, .byte 0xf0, 0x89, 0x03
    fault32 "UD: lock add to register", 6, 0, .byte 0xf0, 0x01, 0xc0
    fault32 "UD: lock cmp with memory", 6, 0, .byte 0xf0, 0x39, 0x03
    fault32 "UD: mov to CS", 6, 0, .byte 0x8e, 0xc8
    fault32 "UD: mov from segment register 6", 6, 0, .byte 0x8c, 0xf0
    fault32 "UD: lea of a register", 6, 0, .byte 0x8d, 0xc0
    fault32 "UD: mov from CR1", 6, 0, .byte 0x0f, 0x20, 0xc8
    fault32 "UD: les of a register", 6, 0, .byte 0xc4, 0xc0
    fault32 "UD: group 4 /7", 6, 0, .byte 0xfe, 0xf8
    fault32 "UD: group 5 /7", 6, 0, .byte 0xff, 0xf8
    fault32 "UD: pop group /1", 6, 0, .byte 0x8f, 0xc8
    fault32 "UD: sldt is not for real mode, but for this", NO_EXCEPTION, 0, sldt %eax
    fault32 "UD: cmpxchg8b of a register", 6, 0, .byte 0x0f, 0xc7, 0xc8

    /* 7: #NM, and what CR0.EM makes of it */
    mov %cr0, %eax
    or $8, %eax
    mov %eax, %cr0
    fault32 "NM: x87 with TS", 7, 0, fninit
    nofault32 "NM: wait with TS and without MP", fwait
    or $2, %eax
    mov %eax, %cr0
    fault32 "NM: wait with TS and MP", 7, 0, fwait
    fault32 "NM: mmx with TS", 7, 0, emms
    clts
    nofault32 "NM: gone after clts", fninit
    mov %cr0, %eax
    or $4, %eax
    mov %eax, %cr0
    fault32 "NM: x87 with EM", 7, 0, fninit
    fault32 "UD: mmx with EM", 6, 0, emms
    and $~4, %eax
    mov %eax, %cr0
    fault32 "UD: sse without OSFXSR", 6, 0, xorps %xmm0, %xmm0
    mov %cr4, %eax
    or $0x200, %eax
    mov %eax, %cr4
    nofault32 "sse with OSFXSR", xorps %xmm0, %xmm0
    mov %cr0, %eax
    or $8, %eax
    mov %eax, %cr0
    fault32 "NM: sse with TS", 7, 0, xorps %xmm0, %xmm0
    mov %cr0, %eax
    or $4, %eax
    mov %eax, %cr0
    fault32 "UD: sse with EM and TS", 6, 0, xorps %xmm0, %xmm0
    and $~12, %eax
    mov %eax, %cr0

    call segments32
    call gates32
    call user32
    call control32
    ret

/* 11, 12, 13: segment loads and limits */
segments32:
    mov $SEL_ABSENT, %eax
    fault32 "NP: load DS", 11, SEL_ABSENT, mov %eax, %ds
    set_gdt32 SEL_ABSENT, 0x0000ffff, 0x00cf7300
    mov $SEL_ABSENT + 3, %eax
    fault32 "NP: the error code has no RPL", 11, SEL_ABSENT, mov %eax, %es
    set_gdt32 SEL_ABSENT, 0x0000ffff, 0x00cf1300
    mov $SEL_ABSENT, %eax
    fault32 "SS: load SS with an absent segment", 12, SEL_ABSENT, mov %eax, %ss
    xor %eax, %eax
    fault32 "GP: load SS with null", 13, 0, mov %eax, %ss
    nofault32 "load ES with null", mov %eax, %es
    fault32 "GP: access through null ES", 13, 0, movb $0, %es:SCRATCH
    mov $SEL_DATA, %eax
    mov %eax, %es
    mov $SEL_DATA + 3, %eax
    fault32 "GP: load SS with RPL above CPL", 13, SEL_DATA, mov %eax, %ss
    mov $SEL_DPL3, %eax
    fault32 "GP: load SS with DPL above CPL", 13, SEL_DPL3, mov %eax, %ss
    mov $SEL_CODE32, %eax
    fault32 "GP: load SS with code", 13, SEL_CODE32, mov %eax, %ss
    mov $SEL_READONLY, %eax
    fault32 "GP: load SS read-only", 13, SEL_READONLY, mov %eax, %ss
    nofault32 "load ES read-only", mov %eax, %es
    fault32 "GP: write through it", 13, 0, movb $0, %es:SCRATCH
    nofault32 "read through it", movb %es:SCRATCH, %al
    mov $SEL_XONLY, %eax
    fault32 "GP: load DS execute-only", 13, SEL_XONLY, mov %eax, %ds
    mov $SEL_TSS32, %eax
    fault32 "GP: load DS with a system segment", 13, SEL_TSS32, mov %eax, %ds
    mov $SEL_END, %eax
    fault32 "GP: load DS beyond the GDT", 13, SEL_END, mov %eax, %ds
    mov $0xc, %eax
    fault32 "GP: load DS from an absent LDT", 13, 0xc, mov %eax, %ds
    mov $SEL_SMALL, %eax
    mov %eax, %es
    nofault32 "last byte within the limit", movb %es:0xfff, %cl
    fault32 "GP: first byte beyond the limit", 13, 0, movb %es:0x1000, %cl
    mov %eax, %es                   /* the handler leaves flat segments behind */
    fault32 "GP: access across the limit", 13, 0, movl %es:0xffd, %ecx
    mov %eax, %es
    fault32 "GP: access wraps at 4 GiB", 13, 0, movl %es:0xfffffffe, %ecx
    mov $SEL_DATA, %eax
    mov %eax, %es
    /* the same through SS; the handler pushes its frame on that stack */
    set_gdt32 SEL_SMALL, 0x0000ffff, 0x00409300
    mov $SEL_SMALL, %eax
    mov %esp, %ebp
    try32 1f
    mov %eax, %ss
    mov $LOW_STACK, %esp
2:  movb %ss:0x10000, %cl
1:  movl $0, try_resume
    mov $SEL_DATA, %eax
    mov %eax, %ss
    mov %ebp, %esp
    check32 "SS: beyond the limit: vector", exc_vector, $12
    check32 "SS: beyond the limit: error", exc_error, $0
    check32 "SS: beyond the limit: EIP", exc_rip, $2b
    ret

/* Gates of the IDT. */
gates32:
    movb $0x0e, idt32 + 0x50 * 8 + 5
    fault32 "NP: gate of int 50H", 11, (0x50*8+2), int $0x50
    movb $0x8c, idt32 + 0x50 * 8 + 5        /* a call gate */
    fault32 "GP: gate type of int 50H", 13, (0x50*8+2), int $0x50
    movb $0x8e, idt32 + 0x50 * 8 + 5
    movw $0, idt32 + 0x50 * 8 + 2
    fault32 "GP: gate with null selector", 13, 0, int $0x50
    movw $SEL_DATA, idt32 + 0x50 * 8 + 2
    fault32 "GP: gate to data", 13, SEL_DATA, int $0x50
    movw $SEL_ABSENT, idt32 + 0x50 * 8 + 2
    fault32 "GP: gate to absent data", 13, SEL_ABSENT, int $0x50
    movw $SEL_CODE32, idt32 + 0x50 * 8 + 2
    /* a fault in delivering #UD, which is benign, has EXT set */
    movb $0x0e, idt32 + 6 * 8 + 5
    fault32 "NP: gate of #UD", 11, (6*8+3), ud2
    movb $0x8e, idt32 + 6 * 8 + 5
    lidt short_idt
    fault32 "GP: int beyond the IDT", 13, (0x20*8+2), int $0x20
    lidt idt32_pointer

    /* a 16-bit gate pushes a 16-bit frame */
    set_gdt32 SEL_CODE16, 0x0000ffff, 0x00009b10
    movw $gate16 - 0x100000, idt32 + 0x50 * 8
    movw $SEL_CODE16, idt32 + 0x50 * 8 + 2
    movb $0x86, idt32 + 0x50 * 8 + 5
    movw $0, idt32 + 0x50 * 8 + 6
    mov %esp, %ebx
    stc
    int $0x50
gate16_return:
    ret

    .code16
gate16:
    /* back to 32-bit code; the frame stays for the checks */
    ljmpl $SEL_CODE32, $gate16_check
    .code32
gate16_check:
    mov %ebx, %ecx
    sub %esp, %ecx
    check32 "16-bit gate: frame size", %ecx, $6
    movzwl (%esp), %ecx
    movl $gate16_return, %edx
    movzwl %dx, %edx
    check32 "16-bit gate: IP", %ecx, %edx
    movzwl 2(%esp), %ecx
    check32 "16-bit gate: CS", %ecx, $SEL_CODE32
    movzwl 4(%esp), %ecx
    and $1, %ecx
    check32 "16-bit gate: FLAGS", %ecx, $1
    mov %ebx, %esp
    set_gdt32 SEL_CODE16, 0x0000ffff, 0x00009b00
    movb $0x8e, idt32 + 0x50 * 8 + 5
    ret

/* What ring 3 may not do. */
user32:
    user_fault32 "GP: user int 40H with a gate of DPL 0", 13, (0x40*8+2), int $0x40
    user_fault32 "GP: user hlt", 13, 0, hlt
    user_fault32 "GP: user cli", 13, 0, cli
    user_fault32 "GP: user sti", 13, 0, sti
    user_fault32 "GP: user in", 13, 0, inb $0x80, %al
    user_fault32 "GP: user out", 13, 0, outb %al, %dx
    user_fault32 "GP: user clts", 13, 0, clts
    user_fault32 "GP: user lgdt", 13, 0, lgdt gdt_pointer
    user_fault32 "GP: user lidt", 13, 0, lidt idt32_pointer
    user_fault32 "GP: user lldt", 13, 0, lldt %ax
    user_fault32 "GP: user ltr", 13, 0, ltr %ax
    user_fault32 "GP: user mov to CR0", 13, 0, mov %eax, %cr0
    user_fault32 "GP: user mov from CR3", 13, 0, mov %cr3, %eax
    user_fault32 "GP: user mov from DR7", 13, 0, mov %db7, %eax
    user_fault32 "GP: user lmsw", 13, 0, lmsw %ax
    user_fault32 "GP: user invlpg", 13, 0, invlpg SCRATCH
    user_fault32 "GP: user invd", 13, 0, invd
    user_fault32 "GP: user wbinvd", 13, 0, wbinvd
    user_fault32 "GP: user rdmsr", 13, 0, rdmsr
    user_fault32 "GP: user wrmsr", 13, 0, wrmsr
    user_ok32 "user rdtsc", rdtsc
    user_ok32 "user smsw", smsw %eax
    mov %cr4, %eax
    or $4, %eax                     /* TSD */
    mov %eax, %cr4
    user_fault32 "GP: user rdtsc with TSD", 13, 0, rdtsc
    and $~4, %eax
    mov %eax, %cr4
    check32 "user CS in the frame", exc_cs, $SEL_USER_CODE32
    check32 "user SS in the frame", exc_ss, $SEL_USER_DATA
    check32 "user ESP in the frame", exc_rsp, user_rsp32
    mov exc_frame, %eax
    sub $ring0_stack_end - F32_SS - 4, %eax
    check32 "frame on the ring 0 stack of the TSS", %eax, $0
    /* IOPL lets CLI, STI and ports through */
    movl $0x3002, user_rflags
    user_ok32 "user cli with IOPL 3", cli
    user_ok32 "user in with IOPL 3", inb $0x80, %al
    user_fault32 "GP: user hlt with IOPL 3", 13, 0, hlt
    movl $2, user_rflags
    /* the I/O permission bitmap, after the TSS proper */
    movb $0xfe, tss32 + 104 + 0x80 / 8      /* port 80H open, 81H closed */
    movb $0xff, tss32 + 104 + 0x80 / 8 + 1
    movw $104 + 0x80 / 8 + 1, gdt + SEL_TSS32
    andb $0xfd, gdt + SEL_TSS32 + 5
    mov $SEL_TSS32, %eax
    ltr %ax
    user_ok32 "user in from an open port", inb $0x80, %al
    user_fault32 "GP: user in from a closed port", 13, 0, inb $0x81, %al
    user_fault32 "GP: user in across open and closed", 13, 0, inw $0x80, %ax
    user_fault32 "GP: user in beyond the bitmap", 13, 0, inb $0x90, %al
    /* #AC */
    mov %cr0, %eax
    or $0x40000, %eax
    mov %eax, %cr0
    mov $SCRATCH + 1, %ebx
    user_ok32 "user misaligned load without AC", movl (%ebx), %ecx
    movl $0x40002, user_rflags
    user_fault32 "AC: user misaligned load", 17, 0, movl (%ebx), %ecx
    user_fault32 "AC: user misaligned word store", 17, 0, movw %cx, (%ebx)
    user_ok32 "user byte load with AC", movb (%ebx), %cl
    movl $2, user_rflags
    mov %cr0, %eax
    and $~0x40000, %eax
    mov %eax, %cr0
    /* UMIP */
    mov $7, %eax
    xor %ecx, %ecx
    cpuid
    test $4, %ecx
    jz 1f
    mov %cr4, %eax
    or $0x800, %eax
    mov %eax, %cr4
    user_fault32 "GP: user sgdt with UMIP", 13, 0, sgdt SCRATCH
    user_fault32 "GP: user sidt with UMIP", 13, 0, sidt SCRATCH
    user_fault32 "GP: user sldt with UMIP", 13, 0, sldt %ecx
    user_fault32 "GP: user str with UMIP", 13, 0, str %ecx
    user_fault32 "GP: user smsw with UMIP", 13, 0, smsw %ecx
    nofault32 "sgdt in ring 0 with UMIP", sgdt SCRATCH
    mov %cr4, %eax
    and $~0x800, %eax
    mov %eax, %cr4
1:  ret

/* Control registers, MSRs, instruction length. */
control32:
    mov %cr0, %eax
    mov %eax, %ebx
    or $0x20000000, %eax
    and $~0x40000000, %eax
    fault32 "GP: CR0.NW without CD", 13, 0, mov %eax, %cr0
    mov $0x80000010, %eax
    fault32 "GP: CR0.PG without PE", 13, 0, mov %eax, %cr0
    mov %cr0, %eax
    check32 "CR0 has not changed", %eax, %ebx
    mov $0x80000000, %eax
    fault32 "GP: CR4 bit 31", 13, 0, mov %eax, %cr4
    mov $0x12345678, %ecx
    fault32 "GP: rdmsr of an unknown MSR", 13, 0, rdmsr
    fault32 "GP: wrmsr of an unknown MSR", 13, 0, wrmsr
    nofault32 "instruction of 15 bytes", .byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90
    fault32 "GP: instruction of 16 bytes", 13, 0, .byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90
    mov %cr4, %eax
    and $~8, %eax
    mov %eax, %cr4
    nofault32 "DR4 is DR6 without CR4.DE", mov %db4, %ecx
    or $8, %eax
    mov %eax, %cr4
    fault32 "UD: DR4 with CR4.DE", 6, 0, mov %db4, %ecx
    ret

/* ------------------------------------------------------------------ 64-bit mode */

    .code64
main64:
    fault64 "UD: push CS", 6, 0, .byte 0x0e
    fault64 "UD: pop SS", 6, 0, .byte 0x17
    fault64 "UD: daa", 6, 0, .byte 0x27
    fault64 "UD: aas", 6, 0, .byte 0x3f
    fault64 "UD: pusha", 6, 0, .byte 0x60
    fault64 "UD: popa", 6, 0, .byte 0x61
    fault64 "UD: opcode 82H", 6, 0, .byte 0x82, 0xc0, 0
    fault64 "UD: far call to an immediate", 6, 0, .byte 0x9a, 0, 0, 0, 0, 8, 0
    fault64 "UD: far jump to an immediate", 6, 0, .byte 0xea, 0, 0, 0, 0, 8, 0
    fault64 "UD: into", 6, 0, .byte 0xce
    fault64 "UD: aam", 6, 0, .byte 0xd4, 10
    fault64 "UD: salc", 6, 0, .byte 0xd6
    fault64 "UD: vmcall-less vmlaunch", 6, 0, .byte 0x0f, 0x01, 0xc2
    trap64 "BP: int3", 3, 0, int3
    xor %ecx, %ecx
    fault64 "DE: 64-bit div", 0, 0, div %rcx

    /* canonical addresses */
    movabs $0x0000800000000000, %rbx
    fault64 "GP: non-canonical load", 13, 0, movq (%rbx), %rax
    fault64 "GP: non-canonical store", 13, 0, movb %al, (%rbx)
    fault64 "GP: load that runs into the hole", 13, 0, movq -4(%rbx), %rax
    mov %rbp, %r8
    mov %rbx, %rbp
    fault64 "SS: non-canonical through RBP", 12, 0, movq 0(%rbp), %rax
    mov %r8, %rbp
    mov %rsp, %r8
    movb $1, idt64 + 12 * 16 + 4            /* there is no stack to take it on: IST1 */
    try64 1f
    lea 0x100(%rbx), %rsp
    push %rax
1:  movq $0, try_resume
    mov %r8, %rsp
    movb $0, idt64 + 12 * 16 + 4
    check64 "SS: push to a non-canonical RSP", exc_vector, $12

    /* the frame: SS:RSP always, 16-byte aligned, RF in the image of a fault */
    mov %rsp, %r8
    sub $4, %rsp
    fault64 "UD: on a misaligned stack", 6, 0, ud2
    lea -4(%r8), %rax
    check64 "frame: RSP", exc_rsp, %rax
    check64 "frame: SS", exc_ss, $SEL_DATA
    check64 "frame: CS", exc_cs, $SEL_CODE64
    mov exc_rflags, %rax
    shr $16, %rax
    and $1, %eax
    check64 "frame: RF", %rax, $1
    mov exc_frame, %rax
    add $F64_SS + 8, %rax
    and $15, %rax
    check64 "frame: aligned to 16 bytes", %rax, $0
    mov %r8, %rsp

    /* IST */
    movb $1, idt64 + 6 * 16 + 4
    fault64 "UD: through IST1", 6, 0, ud2
    mov $ist1_stack_end - F64_SS - 8, %rax
    check64 "IST1: the frame is on its stack", exc_frame, %rax
    user_fault64 "UD: user, through IST1", 6, 0, ud2
    check64 "IST1: from ring 3 as well", exc_frame, %rax
    movb $0, idt64 + 6 * 16 + 4
    user_fault64 "UD: user", 6, 0, ud2
    mov $ring0_stack_end - F64_SS - 8, %rax
    check64 "RSP0: the frame is on its stack", exc_frame, %rax
    check64 "user CS in the frame", exc_cs, $SEL_USER_CODE64
    check64 "user SS in the frame", exc_ss, $SEL_USER_DATA
    check64 "user RSP in the frame", exc_rsp, user_rsp64

    user_fault64 "GP: user int 40H", 13, (0x40*8+2), int $0x40
    user_fault64 "GP: user hlt", 13, 0, hlt
    user_fault64 "GP: user mov to CR8", 13, 0, mov %rax, %cr8
    user_fault64 "GP: user swapgs", 13, 0, swapgs
    user_fault64 "GP: user sysret", 13, 0, sysretq
    user_fault64 "GP: user wrmsr", 13, 0, wrmsr

    /* gates */
    movb $0x86, idt64 + 0x50 * 16 + 5
    fault64 "GP: 16-bit gate", 13, (0x50*8+2), int $0x50
    movb $0x8e, idt64 + 0x50 * 16 + 5
    movw $SEL_CODE32, idt64 + 0x50 * 16 + 2
    fault64 "GP: gate to 32-bit code", 13, SEL_CODE32, int $0x50
    movw $SEL_CODE64, idt64 + 0x50 * 16 + 2
    movb $0x0e, idt64 + 0x50 * 16 + 5
    fault64 "NP: gate of int 50H", 11, (0x50*8+2), int $0x50
    movb $0x8e, idt64 + 0x50 * 16 + 5

    /* control registers and MSRs */
    mov %cr0, %rax
    mov %rax, %rbx
    and $0x7fffffff, %eax
    fault64 "GP: clear CR0.PG in 64-bit mode", 13, 0, mov %rax, %cr0
    mov $1, %eax
    shl $32, %rax
    or %rbx, %rax
    fault64 "GP: CR0 bit 32", 13, 0, mov %rax, %cr0
    mov %cr4, %rax
    and $~0x20, %rax
    fault64 "GP: clear CR4.PAE in long mode", 13, 0, mov %rax, %cr4
    mov %cr3, %rax
    bts $62, %rax
    fault64 "GP: CR3 bit 62", 13, 0, mov %rax, %cr3
    mov $16, %eax
    fault64 "GP: CR8 bit 4", 13, 0, mov %rax, %cr8
    mov $0xf, %eax
    nofault64 "CR8", mov %rax, %cr8
    mov %cr8, %rax
    check64 "CR8 reads back", %rax, $0xf
    xor %eax, %eax
    mov %rax, %cr8
    mov $0xc0000080, %ecx
    rdmsr
    and $~0x100, %eax
    fault64 "GP: clear EFER.LME with paging", 13, 0, wrmsr
    or $0x102, %eax
    fault64 "GP: EFER bit 1", 13, 0, wrmsr
    mov $0xc0000082, %ecx
    mov $0x00008000, %edx
    xor %eax, %eax
    fault64 "GP: non-canonical LSTAR", 13, 0, wrmsr
    mov $0xc0000100, %ecx
    fault64 "GP: non-canonical FS base", 13, 0, wrmsr

    /* far transfers */
    movl $1f, far_pointer
    movw $SEL_LD, far_pointer + 4
    fault64 "GP: far jump to code with L and D", 13, SEL_LD, ljmp *far_pointer
    movw $SEL_DATA, far_pointer + 4
    fault64 "GP: far jump to data", 13, SEL_DATA, ljmp *far_pointer
    movw $0, far_pointer + 4
    fault64 "GP: far jump to null", 13, 0, ljmp *far_pointer
1:
    xor %eax, %eax
    nofault64 "null SS in ring 0", mov %eax, %ss
    mov $SEL_DATA, %eax
    mov %eax, %ss
    ret

    .data
    .balign 8
bounds: .long -5, 10
far_pointer: .quad 0
short_idt:
    .word 0x20 * 8 - 1
    .long idt32
