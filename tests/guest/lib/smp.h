/*
 * smp.h - for guests with several processors: starting them, and giving them work
 *
 * The MADT says how many there are. Each waits for work in a loop: the BSP sets `job` and counts up
 * `job_number`, everybody runs the job and counts up `job_done`. 64-bit code only; include it once,
 * after machine.h, and call count_cpus, then start_all. Intel SDM vol. 3, "MP Initialization".
 */

#define STACK_SIZE 8192
#define CPUS_MAX 64

    .pushsection .data
    .balign 8
cpu_count: .quad 0
started: .quad 0
ready: .quad 0
job: .quad 0
    .balign 64
job_number: .quad 0
    .balign 64
job_done: .quad 0
    .popsection

    .pushsection .bss
ap_ids: .skip CPUS_MAX * 4
ap_cs: .skip CPUS_MAX * 2
    .balign 16
stacks: .skip (CPUS_MAX + 2) * STACK_SIZE
    .popsection

    .pushsection .text
    .code64

count_cpus:
    mov $0x43495041, %eax               /* "APIC" */
    call find_acpi
    test %rax, %rax
    setz %cl
    movzbl %cl, %ecx
    check64 "MADT found", %rcx, $0
    mov 4(%rax), %ecx
    add %rax, %rcx
    add $44, %rax
    xor %ebx, %ebx
1:  cmp %rcx, %rax
    jae 2f
    cmpb $0, (%rax)                     /* local APIC, enabled */
    jne 3f
    testb $1, 4(%rax)
    jz 3f
    inc %ebx
3:  movzbl 1(%rax), %edx
    add %rdx, %rax
    jmp 1b
2:  mov %ebx, cpu_count
    ret

    .pushsection .text
trampoline:
    .code16
    cli
    xor %ax, %ax
    mov %ax, %ds
    mov %cs, %bp
    lgdtl AP_TRAMPOLINE + trampoline_gdt - trampoline
    mov %cr0, %eax
    or $1, %eax
    mov %eax, %cr0
    ljmpl $SEL_CODE32, $ap_protected
    .balign 8
trampoline_gdt:
    .word SEL_END - 1
    .long gdt
trampoline_end:
    .code32
ap_protected:
    mov $SEL_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %cr4, %eax
    or $0x20, %eax
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x901, %eax
    wrmsr
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    ljmp $SEL_CODE64, $ap_long
    .code64
ap_long:
    mov $1, %ebx
    lock xadd %ebx, started             /* its number: 1, 2, ... */
    mov %ebx, %eax
    shl $13, %eax                       /* STACK_SIZE */
    lea stacks + STACK_SIZE(%rax), %rsp
    lidt idt64_pointer
    lapic_write LAPIC_SVR, $0x1ff
    lapic_read LAPIC_ID
    shr $24, %eax
    mov %eax, ap_ids(, %rbx, 4)
    mov %bp, ap_cs(, %rbx, 2)
    lock incl ready
    xor %r15d, %r15d                    /* jobs seen */
1:  pause
    cmp job_number, %r15d
    je 1b
    inc %r15d
    mov job, %rax
    call *%rax
    lock incl job_done
    jmp 1b
    .popsection

start_all:
    mov $trampoline, %esi
    mov $AP_TRAMPOLINE, %edi
    mov $trampoline_end - trampoline, %ecx
    rep movsb
    movl $1, started
    lapic_write LAPIC_ICR, $0xc4500     /* INIT to all but self */
    mov $20000000, %eax
    call spin
    lapic_write LAPIC_ICR, $(0xc4600+(AP_TRAMPOLINE>>12))
    mov $2000000, %eax
    call spin
    lapic_write LAPIC_ICR, $(0xc4600+(AP_TRAMPOLINE>>12))
    mov cpu_count, %ebx
    dec %ebx
    mov $2000000000, %ecx
1:  cmp %ebx, ready
    jae 2f
    pause
    loop 1b
2:  mov $20000000, %eax                 /* the second SIPI starts nobody twice */
    call spin
    mov ready, %eax
    check64 "every processor of the MADT started, once", %rax, %rbx
    /* IDs differ */
    xor %r8d, %r8d
    mov $1, %r9d                        /* the BSP's is 0 */
    mov $1, %ecx
1:  cmp cpu_count, %ecx
    jae 2f
    mov ap_ids(, %rcx, 4), %eax
    bts %rax, %r9
    adc $0, %r8d
    inc %ecx
    jmp 1b
2:  check64 "every processor has an ID of its own", %r8, $0
    movzwl ap_cs + 2, %eax
    cmpl $1, cpu_count
    je 3f
    check64 "SIPI: CS is the vector's page", %rax, $(AP_TRAMPOLINE>>4)
3:  ret

/* Everybody runs RAX; returns when all are done. */
run_job:
    movl $0, job_done
    mov %rax, job
    lock incl job_number
    call *%rax
    mov cpu_count, %ebx
    dec %ebx
1:  pause
    cmp %ebx, job_done
    jne 1b
    ret

    .popsection
