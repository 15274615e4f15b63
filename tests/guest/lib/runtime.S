/*
 * runtime.S - start, descriptor tables, exceptions, output, exit
 *
 * Exceptions go, in this order, to the guest's hook for the vector, to the interrupt counter
 * (vectors from 20H, and NMI), to a pending `try`, or end the guest with a report.
 */
#include "guest.h"

    .section .multiboot, "ax"
    .balign 4
multiboot_header:
    .long 0x1badb002, 0x00000003, -(0x1badb002 + 0x00000003)

    .text
    .code32
    .globl _start
_start:
    cli
    cld
    mov $boot_stack_end, %esp
    mov %ebx, multiboot_info
    mov %eax, multiboot_magic
    lgdt gdt_pointer
    ljmp $SEL_CODE32, $1f
1:  mov $SEL_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %eax, %fs
    mov %eax, %gs
    xor %eax, %eax
    lldt %ax
    call pic_init
    call idt32_init
    call tss_init
    mov $main32, %eax
    test %eax, %eax
    jz 1f
    call *%eax
1:  mov $main64, %eax
    test %eax, %eax
    jz finish32
    cli
    mov $boot_stack_end, %esp
    call enter_long
    .code64
    call main64
    jmp finish64
    .code32

    .weak main32, main64

/* Both 8259s to 20H..2FH, all masked. */
pic_init:
    mov $0x11, %al
    out %al, $0x20
    out %al, $0xa0
    mov $VEC_PIC, %al
    out %al, $0x21
    mov $VEC_PIC + 8, %al
    out %al, $0xa1
    mov $4, %al
    out %al, $0x21
    mov $2, %al
    out %al, $0xa1
    mov $1, %al
    out %al, $0x21
    out %al, $0xa1
    mov $0xff, %al
    out %al, $0x21
    out %al, $0xa1
    ret

idt32_init:
    mov $idt32, %edi
    mov $stubs32, %eax
    xor %ecx, %ecx
1:  mov %ax, (%edi)
    movw $SEL_CODE32, 2(%edi)
    movw $0x8e00, 4(%edi)
    mov %eax, %edx
    shr $16, %edx
    mov %dx, 6(%edi)
    add $16, %eax
    add $8, %edi
    inc %ecx
    cmp $256, %ecx
    jne 1b
    /* INT3 and INTO are for everybody */
    movb $0xee, idt32 + 3 * 8 + 5
    movb $0xee, idt32 + 4 * 8 + 5
    lidt idt32_pointer
    ret

tss_init:
    mov $tss32, %eax
    mov $SEL_TSS32, %edx
    mov $103, %ecx
    call set_tss
    mov $tss64, %eax
    mov $SEL_TSS64, %edx
    call set_tss
    movl $0, gdt + SEL_TSS64 + 8
    movl $0, gdt + SEL_TSS64 + 12
    movl $ring0_stack_end, tss32 + 4
    movl $SEL_DATA, tss32 + 8
    movw $104, tss32 + 102
    movl $ring0_stack_end, tss64 + 4
    movl $ist1_stack_end, tss64 + 36
    movl $ist2_stack_end, tss64 + 44
    movw $104, tss64 + 102
    mov $SEL_TSS32, %eax
    ltr %ax
    ret

/* An available 32/64-bit TSS at selector EDX, base EAX, limit ECX. */
    .globl set_tss
set_tss:
    push %eax
    mov %cx, gdt(%edx)
    mov %ax, gdt + 2(%edx)
    shr $16, %eax
    mov %al, gdt + 4(%edx)
    movb $0x89, gdt + 5(%edx)
    movb $0, gdt + 6(%edx)
    mov %ah, gdt + 7(%edx)
    pop %eax
    ret

/*
 * From 32-bit protected mode to 64-bit mode; returns to its caller there. The caller's return
 * address is 32 bits wide. Leaves general registers but RAX, RCX, RDX, RDI alone.
 */
    .globl enter_long
enter_long:
    cmpl $0, pml4
    jne 3f
    movl $pdpt + 7, pml4
    mov $pd + 3, %eax
    mov $pdpt, %edi
    mov $4, %ecx
1:  mov %eax, (%edi)
    add $0x1000, %eax
    add $8, %edi
    loop 1b
    movl $user_pd + 7, pdpt + 2 * 8
    mov $pd, %edi
    mov $0x83, %eax                 /* present, writable, 2 MiB */
    mov $2048, %ecx
1:  mov %eax, (%edi)
    movl $0, 4(%edi)
    add $0x200000, %eax
    add $8, %edi
    loop 1b
    mov $user_pd, %edi
    mov $0x87, %eax                 /* and user */
    mov $512, %ecx
1:  mov %eax, (%edi)
    movl $0, 4(%edi)
    add $0x200000, %eax
    add $8, %edi
    loop 1b
    mov $idt64, %edi
    mov $stubs64, %eax
    mov $256, %ecx
1:  mov %ax, (%edi)
    movw $SEL_CODE64, 2(%edi)
    movw $0x8e00, 4(%edi)
    mov %eax, %edx
    shr $16, %edx
    mov %dx, 6(%edi)
    movl $0, 8(%edi)
    movl $0, 12(%edi)
    add $16, %eax
    add $16, %edi
    loop 1b
    movb $0xee, idt64 + 3 * 16 + 5
    movb $0xee, idt64 + 4 * 16 + 5
3:  mov %cr4, %eax
    or $0x20, %eax
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x901, %eax                 /* SCE, LME, NXE */
    wrmsr
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    ljmp $SEL_CODE64, $1f
    .code64
1:  mov $SEL_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %eax, %fs
    mov %eax, %gs
    lidt idt64_pointer
    andb $0xfd, gdt + SEL_TSS64 + 5
    mov $SEL_TSS64, %eax
    ltr %ax
    mov (%rsp), %eax
    add $4, %rsp
    jmp *%rax

/* Back to 32-bit protected mode without paging; a call from 64-bit code that returns in 32-bit. */
    .globl leave_long
leave_long:
    mov (%rsp), %eax
    add $8, %rsp
    ljmp *leave_pointer
    .code32
leave_32:
    mov %eax, %edi
    mov $SEL_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    mov $0xc0000080, %ecx
    rdmsr
    and $~0x100, %eax
    wrmsr
    mov %cr4, %eax
    and $~0x20, %eax
    mov %eax, %cr4
    lidt idt32_pointer
    jmp *%edi

/* To ring 3 at user_rip; no register changes. */
    .globl enter_user32
enter_user32:
    /* IRET would make segments of ring 0 null */
    push %eax
    mov $SEL_USER_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    pop %eax
    pushl $SEL_USER_DATA
    pushl user_rsp32
    pushl user_rflags
    pushl $SEL_USER_CODE32
    pushl user_rip
    iretl

    .code64
/* The same, in the user window. */
    .globl enter_user64
enter_user64:
    push %rax
    mov $USER_WINDOW, %eax
    or %rax, user_rip
    pop %rax
    pushq $SEL_USER_DATA
    pushq user_rsp64
    pushq user_rflags
    pushq $SEL_USER_CODE64
    pushq user_rip
    iretq

    .globl report_user_fault64
report_user_fault64:
    pushf
    push %rax
    mov $USER_WINDOW, %eax
    or %rax, check_rip
    pop %rax
    popf
    jmp report_fault64

/* ------------------------------------------------------------------ exceptions */

#define HAS_ERROR 0x60227d00  /* vectors 8, 10..14, 17, 21, 29, 30 */

    .code32
    .balign 16
stubs32:
    .set vector, 0
    .rept 256
    .balign 16
    .set has_error, 0
    .if vector < 32
    .set has_error, (HAS_ERROR >> vector) & 1
    .endif
    .if !has_error
    push $0
    .endif
    .byte 0x68
    .long vector
    jmp common32
    .set vector, vector + 1
    .endr

common32:
    pushal
    push %ds
    push %es
    cld
    mov $SEL_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %esp, %eax
    mov F32_VECTOR(%eax), %ecx
    mov hooks32(, %ecx, 4), %edx
    test %edx, %edx
    jz 1f
    call *%edx
    jmp return32
1:  cmp $2, %ecx
    je count32
    cmp $32, %ecx
    jb exception32
count32:
    mov F32_EIP(%eax), %edx
    mov %edx, irq_rip
    lock incl irq_count(, %ecx, 8)
    call irq_eoi32
return32:
    pop %es
    pop %ds
    popal
    add $8, %esp
    iretl

irq_eoi32:
    cmpl $1, eoi_mode
    jb 3f
    ja 2f
    mov $0x20, %al
    cmp $VEC_PIC + 8, %ecx
    jb 1f
    out %al, $0xa0
1:  out %al, $0x20
    ret
2:  movl $0, LAPIC + 0xb0
3:  ret

exception32:
    cmpl $0, try_resume
    jne 1f
    lea F32_VECTOR(%eax), %eax
    call die32
1:  mov %ecx, exc_vector
    mov F32_ERROR(%eax), %edx
    mov %edx, exc_error
    mov F32_EIP(%eax), %edx
    mov %edx, exc_rip
    mov F32_CS(%eax), %edx
    mov %edx, exc_cs
    mov F32_EFLAGS(%eax), %edx
    mov %edx, exc_rflags
    mov F32_ESP(%eax), %edx
    mov %edx, exc_rsp
    mov F32_SS(%eax), %edx
    mov %edx, exc_ss
    mov %eax, exc_frame
    mov F32_EAX(%eax), %edx
    mov %edx, exc_rax
    mov F32_ECX(%eax), %edx
    mov %edx, exc_rcx
    mov F32_EDX(%eax), %edx
    mov %edx, exc_rdx
    mov F32_EBX(%eax), %edx
    mov %edx, exc_rbx
    mov F32_ESI(%eax), %edx
    mov %edx, exc_rsi
    mov F32_EDI(%eax), %edx
    mov %edx, exc_rdi
    mov %cr2, %edx
    mov %edx, exc_cr2
    mov %dr6, %edx
    mov %edx, exc_dr6
    mov $SEL_DATA, %edx
    mov %edx, %ss
    mov try_rsp, %esp
    push $2
    push $SEL_CODE32
    pushl try_resume
    movl $0, try_resume
    mov exc_rax, %eax
    mov exc_rcx, %ecx
    mov exc_rdx, %edx
    mov exc_rbx, %ebx
    mov exc_rsi, %esi
    mov exc_rdi, %edi
    iretl

    .code64
    .balign 16
stubs64:
    .set vector, 0
    .rept 256
    .balign 16
    .set has_error, 0
    .if vector < 32
    .set has_error, (HAS_ERROR >> vector) & 1
    .endif
    .if !has_error
    push $0
    .endif
    .byte 0x68
    .long vector
    jmp common64
    .set vector, vector + 1
    .endr

common64:
    push %rax
    push %rcx
    push %rdx
    push %rbx
    push %rbp
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    push %r12
    push %r13
    push %r14
    push %r15
    cld
    mov %rsp, %rdi
    mov F64_VECTOR(%rdi), %ecx
    mov hooks64(, %rcx, 8), %rdx
    test %rdx, %rdx
    jz 1f
    call *%rdx
    jmp return64
1:  cmp $2, %ecx
    je count64
    cmp $32, %ecx
    jb exception64
count64:
    mov F64_RIP(%rdi), %rdx
    mov %rdx, irq_rip
    lock incq irq_count(, %rcx, 8)
    call irq_eoi64
return64:
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rbp
    pop %rbx
    pop %rdx
    pop %rcx
    pop %rax
    add $16, %rsp
    iretq

irq_eoi64:
    cmpl $1, eoi_mode
    jb 3f
    ja 2f
    mov $0x20, %al
    cmp $VEC_PIC + 8, %ecx
    jb 1f
    out %al, $0xa0
1:  out %al, $0x20
    ret
2:  mov $LAPIC + 0xb0, %edx
    movl $0, (%rdx)
3:  ret

exception64:
    cmpq $0, try_resume
    jne 1f
    lea F64_VECTOR(%rdi), %rax
    call die64
1:  mov %rcx, exc_vector
    mov F64_ERROR(%rdi), %rdx
    mov %rdx, exc_error
    mov F64_RIP(%rdi), %rdx
    mov %rdx, exc_rip
    mov F64_CS(%rdi), %rdx
    mov %rdx, exc_cs
    mov F64_RFLAGS(%rdi), %rdx
    mov %rdx, exc_rflags
    mov F64_RSP(%rdi), %rdx
    mov %rdx, exc_rsp
    mov F64_SS(%rdi), %rdx
    mov %rdx, exc_ss
    mov %rdi, exc_frame
    mov F64_RAX(%rdi), %rdx
    mov %rdx, exc_rax
    mov F64_RCX(%rdi), %rdx
    mov %rdx, exc_rcx
    mov F64_RDX(%rdi), %rdx
    mov %rdx, exc_rdx
    mov F64_RBX(%rdi), %rdx
    mov %rdx, exc_rbx
    mov F64_RSI(%rdi), %rdx
    mov %rdx, exc_rsi
    mov F64_RDI(%rdi), %rdx
    mov %rdx, exc_rdi
    mov %cr2, %rdx
    mov %rdx, exc_cr2
    mov %dr6, %rdx
    mov %rdx, exc_dr6
    mov $SEL_DATA, %edx
    mov %edx, %ds
    mov %edx, %es
    pushq $SEL_DATA
    pushq try_rsp
    pushq $2
    pushq $SEL_CODE64
    pushq try_resume
    movq $0, try_resume
    mov exc_rax, %rax
    mov exc_rcx, %rcx
    mov exc_rdx, %rdx
    mov exc_rbx, %rbx
    mov exc_rsi, %rsi
    mov exc_rdi, %rdi
    iretq

/* ------------------------------------------------------------------ output */

    .code32
#define BITS 32
#define WORD 4
#define R(x) e##x
#define FN(x) x##32
#include "print.h"
#undef BITS
#undef WORD
#undef R
#undef FN
    .code64
#define BITS 64
#define WORD 8
#define R(x) r##x
#define FN(x) x##64
#include "print.h"

/* ------------------------------------------------------------------ data */

    .data
    .balign 16
    .globl gdt, gdt_pointer, idt32_pointer, idt64_pointer, leave_pointer
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        /* SEL_CODE64 */
    .quad 0x00cf93000000ffff        /* SEL_DATA */
    .quad 0x00cffb000000ffff        /* SEL_USER_CODE32 */
    .quad 0x00cff3000000ffff        /* SEL_USER_DATA */
    .quad 0x00affb000000ffff        /* SEL_USER_CODE64 */
    .quad 0x00cff3000000ffff        /* SEL_USER_DATA2 */
    .quad 0x00cf9b000000ffff        /* SEL_CODE32 */
    .quad 0x00009b000000ffff        /* SEL_CODE16 */
    .quad 0x000093000000ffff        /* SEL_DATA16 */
    .fill SEL_END / 8 - 10, 8, 0
gdt_pointer:
    .word SEL_END - 1
    .quad gdt
idt32_pointer:
    .word 256 * 8 - 1
    .quad idt32
idt64_pointer:
    .word 256 * 16 - 1
    .quad idt64
leave_pointer:
    .long leave_32
    .word SEL_CODE32

    .globl check_got, check_want, check_name, check_vector, check_error, check_rip
    .globl try_resume, try_rsp, exc_vector, exc_error, exc_rip, exc_cs, exc_rflags, exc_rsp
    .globl exc_ss, exc_cr2, exc_dr6, exc_frame, exc_rax, exc_rcx, exc_rdx, exc_rbx, exc_rsi
    .globl exc_rdi, irq_count, irq_rip, eoi_mode, hooks32, hooks64, ok_count, fail_count
    .globl multiboot_info, multiboot_magic, tss32, tss64, idt32, idt64, pml4, pdpt, pd, user_pd
    .globl boot_stack_end, ring0_stack_end, ist1_stack_end, ist2_stack_end
check_name: .quad no_check
no_check: .asciz "start"
    .globl user_rip, user_rsp32, user_rsp64, user_rflags
    .balign 8
user_rip: .quad 0
user_rsp32: .quad user_stack_end
user_rsp64: .quad user_stack_end + USER_WINDOW
user_rflags: .quad 2

    .bss
    .balign 4096
pml4: .skip 4096
pdpt: .skip 4096
pd: .skip 4 * 4096
user_pd: .skip 4096
idt64: .skip 4096
idt32: .skip 4096
hooks64: .skip 256 * 8
hooks32: .skip 256 * 4
irq_count: .skip 256 * 8
check_got: .skip 8
check_want: .skip 8
check_vector: .skip 8
check_error: .skip 8
check_rip: .skip 8
try_resume: .skip 8
try_rsp: .skip 8
exc_vector: .skip 8
exc_error: .skip 8
exc_rip: .skip 8
exc_cs: .skip 8
exc_rflags: .skip 8
exc_rsp: .skip 8
exc_ss: .skip 8
exc_cr2: .skip 8
exc_dr6: .skip 8
exc_frame: .skip 8
exc_rax: .skip 8
exc_rcx: .skip 8
exc_rdx: .skip 8
exc_rbx: .skip 8
exc_rsi: .skip 8
exc_rdi: .skip 8
irq_rip: .skip 8
ok_count: .skip 8
fail_count: .skip 8
multiboot_info: .skip 8
multiboot_magic: .skip 8
eoi_mode: .skip 8                   /* 0 none, 1 8259, 2 local APIC */
    .balign 16
tss32: .skip 256
tss64: .skip 256
    .balign 4096
    .skip 16384
boot_stack_end:
    .skip 16384
ring0_stack_end:
    .skip 4096
ist1_stack_end:
    .skip 4096
ist2_stack_end:
    .skip 4096
    .globl user_stack_end
user_stack_end:
