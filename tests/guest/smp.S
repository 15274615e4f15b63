/*
 * smp.S - starting the other processors, and what they do to each other
 *
 * Intel SDM vol. 3, "MP Initialization", "Locked Atomic Operations".
 */
#include "guest.h"
#include "machine.h"
#include "smp.h"

#define VEC_WORK 0x60
#define VEC_FLUSH 0x61
#define ROUNDS 20000
#define TEST 0x10000000000

    .text
    .code64
    .globl main64
main64:
    movl $2, eoi_mode
    lapic_write LAPIC_SVR, $0x1ff
    call count_cpus
    call start_all
    cmpl $0, fail_count
    jne 9f
    call counters
    call wide
    call locks
    call split
    call ordering
    call ipis
    call shoot_down
    call cross_modify
    call reset_one
9:  ret

/* RAX = cpu_count * \n */
.macro times_cpus n
    mov cpu_count, %eax
    imul $\n, %rax, %rax
.endm

/* ------------------------------------------------------------------ locked counters */

counters:
    mov $job_counters, %eax
    call run_job
    times_cpus ROUNDS
    mov %rax, %rcx
    check64 "lock inc", counter_inc, %rcx
    check64 "lock xadd", counter_xadd, %rcx
    check64 "lock cmpxchg", counter_cmpxchg, %rcx
    mov counter_byte, %eax
    movzbl %al, %eax
    movzbl %cl, %edx
    check64 "lock incb", %rax, %rdx
    mov counter_sub, %rax
    neg %rax
    check64 "lock sub", %rax, %rcx
    check64 "lock xor, an even number of times", counter_xor, $0
    check64 "lock btc, an even number of times", counter_bits, $0
    movzwl counter_word, %eax
    movzwl %cx, %edx
    check64 "lock adc of a word", %rax, %rdx
    ret

job_counters:
    mov $ROUNDS, %ecx
1:  lock incq counter_inc
    mov $1, %eax
    lock xadd %rax, counter_xadd
2:  mov counter_cmpxchg, %rax
    lea 1(%rax), %rdx
    lock cmpxchg %rdx, counter_cmpxchg
    jne 2b
    lock incb counter_byte
    lock subq $1, counter_sub
    lock xorq $-1, counter_xor
    lock btcl $5, counter_bits
    stc
    lock adcw $0, counter_word
    loop 1b
    ret

/* CMPXCHG8B and CMPXCHG16B: two halves that must move together. */
wide:
    mov $job_wide, %eax
    call run_job
    times_cpus ROUNDS
    check64 "cmpxchg16b: low", wide16, %rax
    imul $3, %rax, %rcx
    check64 "cmpxchg16b: high", wide16+8, %rcx
    mov wide8, %ecx
    check64 "cmpxchg8b: low", %rcx, %rax
    imul $5, %rax, %rdx
    mov wide8 + 4, %ecx
    check64 "cmpxchg8b: high", %rcx, %rdx
    mov $wide16 + 8, %ebx
    fault64 "GP: cmpxchg16b, misaligned", 13, 0, lock cmpxchg16b (%rbx)
    ret

job_wide:
    mov $ROUNDS, %r8d
1:  mov wide16, %rax
    mov wide16 + 8, %rdx
2:  lea 1(%rax), %rbx
    lea 3(%rdx), %rcx
    lock cmpxchg16b wide16
    jne 2b
    mov wide8, %eax
    mov wide8 + 4, %edx
2:  lea 1(%rax), %ebx
    lea 5(%rdx), %ecx
    lock cmpxchg8b wide8
    jne 2b
    dec %r8d
    jnz 1b
    ret

/* A lock by XCHG around a counter that is not locked. */
locks:
    mov $job_locks, %eax
    call run_job
    times_cpus ROUNDS
    check64 "spin lock by xchg", counter_plain, %rax
    check64 "spin lock by bts", counter_plain2, %rax
    ret

job_locks:
    mov $ROUNDS, %ecx
1:  mov $1, %eax
2:  xchg %eax, lock_word
    test %eax, %eax
    jz 3f
    pause
    jmp 2b
3:  incq counter_plain
    movl $0, lock_word
4:  lock btsl $0, lock_word2
    jnc 5f
    pause
    jmp 4b
5:  incq counter_plain2
    movl $0, lock_word2
    loop 1b
    ret

/* Locked operations across cache lines and pages. */
split:
    mov $job_split, %eax
    call run_job
    times_cpus (ROUNDS/10)
    check64 "lock inc across cache lines", split_area+60, %rax
    check64 "lock xadd across pages", split_area+4096-4, %rax
    ret

job_split:
    mov $ROUNDS / 10, %ecx
1:  lock incq split_area + 60
    mov $1, %eax
    lock xadd %rax, split_area + 4096 - 4
    loop 1b
    ret

/* Stores become visible in order; loads are not reordered with loads. */
ordering:
    cmpl $1, cpu_count
    je 1f
    mov $job_ordering, %eax
    call run_job
    check64 "message passing: data before flag", order_errors, $0
1:  ret

job_ordering:
    lapic_read LAPIC_ID                 /* the BSP writes, the others look */
    shr $24, %eax
    jz order_writer
    mov $ROUNDS * 10, %ecx
1:  mov order_flag, %rax
    mov order_data, %rdx
    cmp %rax, %rdx                      /* data is never behind the flag */
    jae 2f
    lock incq order_errors
2:  loop 1b
    ret
order_writer:
    mov $ROUNDS * 10, %ecx
    xor %eax, %eax
1:  inc %rax
    mov %rax, order_data
    mov %rax, order_flag
    loop 1b
    ret

/* ------------------------------------------------------------------ IPIs */

/* The others wait in HLT; each interrupt counts. */
ipis:
    mov cpu_count, %ebx
    dec %ebx
    jz 9f
    movl $0, halted
    mov $job_halt, %eax
    movl $0, job_done
    mov %rax, job
    lock incl job_number
1:  pause
    cmp %ebx, halted
    jne 1b
    irq_forget VEC_WORK
    /* one by one */
    mov $1, %ecx
2:  mov ap_ids(, %rcx, 4), %eax
    shl $24, %eax
    mov $LAPIC, %edx
    mov %eax, LAPIC_ICR2(%rdx)
    movl $0x4000 + VEC_WORK, LAPIC_ICR(%rdx)
    inc %ecx
    cmp cpu_count, %ecx
    jb 2b
    call wait_work
    check64 "IPI to each by its ID, out of HLT", %rax, %rbx
    /* all but self, many times */
    mov $1000, %r12d
    mov %rbx, %r13
3:  lapic_write LAPIC_ICR, $(0xc4000+VEC_WORK)
    add %rbx, %r13
    call wait_more
    jc 4f
    dec %r12d
    jnz 3b
4:  irq_counted VEC_WORK
    check64 "1000 IPIs to all but self", %rax, %r13
    /* NMI gets through with interrupts off and out of HLT */
    movq $0, irq_count + 2 * 8
    lapic_write LAPIC_ICR, $0xc4400
    mov $2000000000, %ecx
5:  cmp %rbx, irq_count + 2 * 8
    jae 6f
    pause
    loop 5b
6:  irq_counted 2
    check64 "NMI to all but self", %rax, %rbx
    movl $1, stop_halting
    lapic_write LAPIC_ICR, $(0xc4000+VEC_WORK)
7:  pause
    cmp %ebx, job_done
    jne 7b
9:  ret

wait_work:
    mov %rbx, %r13
    call wait_more
    irq_counted VEC_WORK
    ret

/* Wait for irq_count[VEC_WORK] >= R13; CF set when it takes too long. */
wait_more:
    mov $2000000000, %ecx
1:  cmp %r13, irq_count + VEC_WORK * 8
    jae 2f
    pause
    loop 1b
    stc
    ret
2:  clc
    ret

job_halt:
    lock incl halted
1:  sti
    hlt
    cli
    cmpl $0, stop_halting
    je 1b
    ret

/* ------------------------------------------------------------------ TLB shoot-down */

shoot_down:
    movq $test_pdpt + 7, pml4 + 2 * 8
    movq $test_pd + 7, test_pdpt
    movq $test_pt + 7, test_pd
    movq $SCRATCH + 3, test_pt
    movq $0, SCRATCH
    movq $0, SCRATCH + 0x1000
    hook64 VEC_FLUSH, flush_handler
    movl $0, stop_reading
    movl $0, reading
    movq $0, read_errors
    mov $job_read, %eax
    movl $0, job_done
    mov %rax, job
    lock incl job_number
    mov cpu_count, %ebx
    dec %ebx
    jz 9f
1:  pause
    cmp %ebx, reading
    jne 1b
    /* each round: map the other frame, have everybody flush, and let the old frame rot */
    mov $200, %r12d
    xor %r13d, %r13d
2:  mov %r12d, %eax
    and $1, %eax
    shl $12, %eax
    lea SCRATCH(%rax), %ecx             /* the frame to come */
    mov %ecx, %r14d
    xor $0x1000, %r14d                  /* the frame to go */
    movq $0, (%rcx)
    or $3, %ecx
    mov %rcx, test_pt
    movabs $TEST, %rax
    invlpg (%rax)
    movl $0, flushed
    lapic_write LAPIC_ICR, $(0xc4000+VEC_FLUSH)
    mov $2000000000, %ecx
3:  cmp %ebx, flushed
    jae 4f
    pause
    loop 3b
    inc %r13d
4:  movq $1, (%r14)                     /* whoever reads 1 has a stale translation */
    mov $20000, %eax
    call spin
    dec %r12d
    jnz 2b
    check64 "every shoot-down is answered", %r13, $0
    movl $1, stop_reading
5:  pause
    cmp %ebx, job_done
    jne 5b
    check64 "no stale translation after a shoot-down", read_errors, $0
9:  hook64 VEC_FLUSH, 0
    ret

flush_handler:
    movabs $TEST, %rax
    invlpg (%rax)
    lock incl flushed
    lapic_write LAPIC_EOI, $0
    ret

/*
 * Reads with interrupts on. The flush may come between the load and the test, and the frame rot
 * only after the flush, so a 1 is an error whenever it is read.
 */
job_read:
    movabs $TEST, %rdi
    lock incl reading
    sti
1:  mov (%rdi), %rax
    test %rax, %rax
    jz 2f
    lock incq read_errors
2:  cmpl $0, stop_reading
    je 1b
    cli
    ret

/* ------------------------------------------------------------------ cross-modifying code */

/* A function's immediate is written by one while the others call it: old or new, never a mixture,
 * and the new one once they have been told and have serialized. */
cross_modify:
    movl $0, stop_reading
    movl $0, reading
    movq $0, read_errors
    movl $0, announced
    mov $job_call, %eax
    movl $0, job_done
    mov %rax, job
    lock incl job_number
    mov cpu_count, %ebx
    dec %ebx
    jz 9f
1:  pause
    cmp %ebx, reading
    jne 1b
    mov $1, %ecx
2:  mov %ecx, %eax
    shl $16, %eax
    or %ecx, %eax                       /* both halves the same */
    mov %eax, modified + 4              /* aligned to 4: one store */
    mov %ecx, announced
    mov $20000, %eax
    call spin
    inc %ecx
    cmp $300, %ecx
    jb 2b
    movl $1, stop_reading
3:  pause
    cmp %ebx, job_done
    jne 3b
    check64 "code modified by another processor", read_errors, $0
9:  ret

    .balign 64
modified:
    .byte 0x90, 0x90, 0x90, 0xb8        /* mov $imm32, %eax */
    .long 0
    ret

job_call:
    lock incl reading
1:  mov announced, %esi
    xor %eax, %eax
    cpuid
    call modified
    mov %eax, %edx
    shr $16, %edx
    movzwl %ax, %eax
    cmp %eax, %edx
    jne 2f
    cmp %esi, %eax
    jae 3f
2:  lock incq read_errors
3:  cmpl $0, stop_reading
    je 1b
    ret

/* ------------------------------------------------------------------ INIT */

/* INIT takes a processor out of whatever it does; SIPI starts it again at the trampoline. */
reset_one:
    cmpl $1, cpu_count
    je 9f
    mov started, %ebx
    mov ap_ids + 4, %eax
    shl $24, %eax
    mov $LAPIC, %edx
    mov %eax, LAPIC_ICR2(%rdx)
    movl $0x4500, LAPIC_ICR(%rdx)
    mov $20000000, %eax
    call spin
    movl $0x4600 + (AP_TRAMPOLINE >> 12), LAPIC_ICR(%rdx)
    mov $2000000000, %ecx
1:  cmp %ebx, started
    ja 2f
    pause
    loop 1b
2:  inc %ebx
    mov started, %eax
    check64 "INIT and SIPI start a processor again", %rax, %rbx
    /* a SIPI to a running processor is ignored */
    movl $0x4600 + (AP_TRAMPOLINE >> 12), LAPIC_ICR(%rdx)
    mov $20000000, %eax
    call spin
    mov started, %eax
    check64 "SIPI to a running processor", %rax, %rbx
9:  ret

    .data
    .balign 64
wide16: .quad 0, 0
wide8: .quad 0
    .balign 64
counter_inc: .quad 0
counter_xadd: .quad 0
counter_cmpxchg: .quad 0
counter_byte: .quad 0
counter_sub: .quad 0
counter_xor: .quad 0
counter_bits: .quad 0
counter_word: .quad 0
counter_plain: .quad 0
counter_plain2: .quad 0
lock_word: .quad 0
lock_word2: .quad 0
    .balign 64
order_data: .quad 0
    .balign 64
order_flag: .quad 0
    .balign 64
order_errors: .quad 0
    .balign 64
halted: .quad 0
stop_halting: .quad 0
stop_reading: .quad 0
reading: .quad 0
read_errors: .quad 0
flushed: .quad 0
announced: .quad 0

    .bss
    .balign 4096
split_area: .skip 8192
test_pdpt: .skip 4096
test_pd: .skip 4096
test_pt: .skip 4096
