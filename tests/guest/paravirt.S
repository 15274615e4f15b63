/*
 * paravirt.S - what KVM offers its guests: steal time, EOI by a bit in memory, polling, hypercalls
 *
 * Each is looked at when CPUID says that it is there; when not, its register faults and its
 * hypercall is unknown. Linux, Documentation/virt/kvm/x86/{cpuid,msr,hypercalls}.rst.
 */
#include "guest.h"
#include "machine.h"
#include "smp.h"

#define STEAL_TIME 5 /* bits of CPUID 40000001H.EAX */
#define PV_EOI 6
#define PV_UNHALT 7
#define PV_SEND_IPI 11
#define POLL_CONTROL 12
#define PV_SCHED_YIELD 13

#define MSR_ASYNC_PF 0x4b564d02
#define MSR_STEAL_TIME 0x4b564d03
#define MSR_EOI 0x4b564d04
#define MSR_POLL_CONTROL 0x4b564d05
#define MSR_MIGRATION 0x4b564d08

#define HC_VAPIC_POLL 1
#define HC_KICK 5
#define HC_SEND_IPI 10
#define HC_YIELD 11
#define ENOSYS -1000
#define EINVAL -22

#define VEC_LOW 0x61 /* of classes 6 and 7, in the fourth word of IRR and ISR */
#define VEC_HIGH 0x71
#define VEC_32 0x75
#define WORD 0x30
#define SELF 0x44000 /* ICR: fixed, to self */
#define NO_RAM 0x50000000

#define KICKS 500
#define IPIS 500

/* ------------------------------------------------------------------ 32-bit */

    .text
    .code32
    .globl main32
main32:
    call find_features
    mov $0x7fff, %eax
    call hypercall32
    check32 "32 bits: no such hypercall", %eax, $ENOSYS
    btl $PV_SEND_IPI, features
    jnc 9f
    movl $0x1ff, LAPIC + LAPIC_SVR
    movl $2, eoi_mode
    mov $HC_SEND_IPI, %eax
    xor %ebx, %ebx
    mov $1, %ecx                        /* bit 32 of -32: APIC ID 0 */
    mov $-32, %edx
    mov $VEC_32, %esi
    call hypercall32
    check32 "32 bits: itself by the second word: who took it", %eax, $1
    mov $HC_SEND_IPI, %eax
    mov $1, %ebx
    xor %ecx, %ecx
    xor %edx, %edx
    call hypercall32                    /* once more the same: once in IRR */
    check32 "32 bits: itself by the first word: who took it", %eax, $1
    mov LAPIC + LAPIC_IRR + WORD, %eax
    check32 "32 bits: it is in IRR", %eax, $(1 << (VEC_32 % 32))
    sti
    nop
    nop
    cli
    mov irq_count + VEC_32 * 8, %eax
    check32 "32 bits: it is delivered", %eax, $1
9:  ret

/* EAX to ESI as for the hypercall: EAX. Each vendor's processors have an instruction of their own. */
hypercall32:
    cmpl $0, is_amd
    jne 1f
    vmcall
    ret
1:  vmmcall
    ret

/* Encodings and meaning are the same in 64-bit mode. */
find_features:
    pusha
    xor %eax, %eax
    cpuid
    xor %eax, %eax
    cmp $0x68747541, %ebx               /* "Auth" */
    je 1f
    cmp $0x6f677948, %ebx               /* "Hygo" */
    jne 2f
1:  inc %eax
2:  mov %eax, is_amd
    mov $0x40000000, %eax
    cpuid
    cmp $0x4b4d564b, %ebx               /* "KVMK" */
    jne 9f
    mov $0x40000001, %eax
    cpuid
    mov %eax, features
9:  popa
    ret

/* ------------------------------------------------------------------ 64-bit */

    .code64
    .globl main64
main64:
    movl $2, eoi_mode
    lapic_write LAPIC_SVR, $0x1ff
    call unknown_registers
    call steal_time
    call poll_control
    call eoi
    call hypercalls
    call count_cpus
    call start_all
    cmpl $0, fail_count
    jne 9f
    cmpl $1, cpu_count
    je 9f
    call kicks
    call ipis
9:  ret

hypercall64:
    cmpl $0, is_amd
    jne 1f
    vmcall
    ret
1:  vmmcall
    ret

unknown_registers:
    mov $MSR_ASYNC_PF, %ecx
    fault64 "GP: rdmsr: asynchronous page faults", 13, 0, rdmsr
    xor %eax, %eax
    xor %edx, %edx
    fault64 "GP: wrmsr: asynchronous page faults", 13, 0, wrmsr
    mov $MSR_MIGRATION, %ecx
    fault64 "GP: rdmsr: migration control", 13, 0, rdmsr
    mov $0x4b564dff, %ecx
    fault64 "GP: wrmsr: nothing", 13, 0, wrmsr
    ret

/* ------------------------------------------------------------------ steal time */

steal_time:
    mov $MSR_STEAL_TIME, %ecx
    btl $STEAL_TIME, features
    jc 1f
    fault64 "GP: rdmsr: no steal time", 13, 0, rdmsr
    ret
1:  rdmsr64 MSR_STEAL_TIME
    check64 "steal time: off", %rax, $0
    xor %edx, %edx
    mov $MSR_STEAL_TIME, %ecx
.irp bit, 1, 2, 3, 4, 5
    mov $steal_record + (1 << \bit) + 1, %eax
    fault64 "GP: wrmsr: steal time, bit \bit", 13, 0, wrmsr
.endr
    /* what was there goes on, but for what a first writer finds */
    movq $1000, steal_record
    movl $7, steal_record + 8
    movl $1, steal_record + 16
    wrmsr64_symbol MSR_STEAL_TIME, steal_record + 1
    rdmsr64 MSR_STEAL_TIME
    mov $steal_record + 1, %ecx
    check64 "steal time: reads back", %rax, %rcx
    mov steal_record + 8, %eax
    and $1, %eax
    check64 "steal time: an even version", %rax, $0
    cmpl $7, steal_record + 8
    check_that a, "steal time: a new version"
    mov steal_record + 12, %eax
    check64 "steal time: no flags", %rax, $0
    movzbl steal_record + 16, %eax
    check64 "steal time: it runs", %rax, $0
    cmpq $1000, steal_record
    check_that ae, "steal time: no less than it was"
    /* where there is no memory it is lost */
    mov $MSR_STEAL_TIME, %ecx
    mov $LAPIC + 1, %eax
    xor %edx, %edx
    nofault64 "steal time: into a device", wrmsr
    mov $-63, %eax
    mov $0xfffff, %edx
    nofault64 "steal time: behind all memory", wrmsr
    wrmsr64 MSR_STEAL_TIME, 0
    ret

/* ------------------------------------------------------------------ polling */

/* Interrupts that wait are delivered. */
.macro let_in
    sti
    nop
    nop
    nop
    cli
.endm

poll_control:
    mov $MSR_POLL_CONTROL, %ecx
    btl $POLL_CONTROL, features
    jc 1f
    fault64 "GP: rdmsr: no poll control", 13, 0, rdmsr
    ret
1:  rdmsr64 MSR_POLL_CONTROL
    check64 "poll control: on", %rax, $1
    mov $2, %eax
    xor %edx, %edx
    mov $MSR_POLL_CONTROL, %ecx
    fault64 "GP: wrmsr: poll control, bit 1", 13, 0, wrmsr
    xor %eax, %eax
    mov $0x80000000, %edx
    fault64 "GP: wrmsr: poll control, bit 63", 13, 0, wrmsr
    wrmsr64 MSR_POLL_CONTROL, 0
    rdmsr64 MSR_POLL_CONTROL
    check64 "poll control: off", %rax, $0
    call halt_once
    wrmsr64 MSR_POLL_CONTROL, 1
    ret

/* HLT until the local APIC's timer, which goes on: there are hosts that let it in before the HLT. */
halt_once:
    hook64 VEC_LOW, end_low
    movl $0, low
    lapic_write LAPIC_LVT_TIMER, $(0x20000 + VEC_LOW)
    lapic_write LAPIC_INITIAL, $500000
1:  sti
    hlt
    cli
    cmpl $0, low
    je 1b
    lapic_write LAPIC_INITIAL, $0
    let_in                              /* one that came meanwhile */
    ret

/* ------------------------------------------------------------------ EOI */

.macro self_ipi vector
    lapic_write LAPIC_ICR, $SELF + \vector
.endm

.macro forget
    movl $0, low
    movl $0, high
    movl $0, by_memory
    movl $0, by_register
    movl $-1, seen
.endm

/* So many interrupts were ended, one way or the other. */
.macro check_ended name, count
    mov by_memory, %eax
    add by_register, %eax
    check64 "\name", %rax, $\count
.endm

/* Both were ended: nothing is in service any more, and nothing waits. */
.macro check_quiet name
    lapic_read LAPIC_ISR + WORD
    check64 "\name: none in service", %rax, $0
    lapic_read LAPIC_IRR + WORD
    check64 "\name: none waits", %rax, $0
.endm

/*
 * RAX = this processor's number, by its stack: to ask the local APIC or CPUID would be a way out of
 * the guest, and KVM takes the bit back on each.
 */
.macro my_number
    mov %rsp, %rax
    sub $stacks, %rax
    shr $13, %rax                       /* STACK_SIZE */
    cmp $CPUS_MAX, %rax
    jb .Lother\@
    xor %eax, %eax                      /* the BSP's is elsewhere */
.Lother\@:
.endm

/* End the interrupt in service as guests do. Loses RAX. */
end_interrupt:
    my_number
    btrl $0, eoi_words(, %rax, 4)
    jc 1f
    lapic_write LAPIC_EOI, $0
    lock incl by_register
    ret
1:  lock incl by_memory
    ret

end_low:
    lock incl low
    jmp end_interrupt

end_high:
    lock incl high
    jmp end_interrupt

eoi:
    mov $MSR_EOI, %ecx
    btl $PV_EOI, features
    jc 1f
    fault64 "GP: rdmsr: no paravirtual EOI", 13, 0, rdmsr
    ret
1:  rdmsr64 MSR_EOI
    check64 "EOI: off", %rax, $0
    mov $MSR_EOI, %ecx
    mov $eoi_words + 3, %eax
    xor %edx, %edx
    fault64 "GP: wrmsr: EOI, bit 1", 13, 0, wrmsr
    mov $NO_RAM + 1, %eax
    fault64 "GP: wrmsr: EOI where there is no memory", 13, 0, wrmsr
    mov $LAPIC + 1, %eax
    fault64 "GP: wrmsr: EOI in a device", 13, 0, wrmsr
    mov $-3, %eax
    mov $-1, %edx
    fault64 "GP: wrmsr: EOI behind all memory", 13, 0, wrmsr
    wrmsr64_symbol MSR_EOI, eoi_words + 1
    rdmsr64 MSR_EOI
    mov $eoi_words + 1, %ecx
    check64 "EOI: reads back", %rax, %rcx
    hook64 VEC_LOW, end_low
    hook64 VEC_HIGH, end_high

    forget
    mov $100, %r12d
1:  self_ipi VEC_LOW
    let_in
    dec %r12d
    jnz 1b
    mov low, %eax
    check64 "EOI: one at a time: delivered", %rax, $100
    /* whoever stops the guest in between may take the bit back */
    cmpl $50, by_memory
    check_that ae, "EOI: one at a time: ended in memory, most of them"
    check_ended "EOI: one at a time: ended", 100
    check_quiet "EOI: one at a time"

    forget
    self_ipi VEC_LOW
    self_ipi VEC_HIGH
    let_in
    mov by_register, %eax
    test %eax, %eax
    check_that nz, "EOI: two at once: the first is ended by the register"
    check_ended "EOI: two at once: ended", 2
    check_quiet "EOI: two at once"

    forget
    hook64 VEC_LOW, look_at_isr
    self_ipi VEC_LOW
    let_in
    mov seen, %eax
    check64 "EOI: in service, as the register shows it", %rax, $(1 << (VEC_LOW % 32))
    check_quiet "EOI: after a look at ISR"

    forget
    hook64 VEC_LOW, end_low_look_at_ppr
    self_ipi VEC_LOW
    let_in
    mov seen, %eax
    check64 "EOI: ended in memory: PPR", %rax, $0
    check_quiet "EOI: after a look at PPR"

    forget
    hook64 VEC_LOW, end_low
    hook64 VEC_HIGH, end_high_then_low
    self_ipi VEC_HIGH
    let_in
    mov seen, %eax
    check64 "EOI: ended in memory: one of a lower class gets in", %rax, $1
    check_quiet "EOI: lower class"

    forget
    hook64 VEC_HIGH, low_then_end_high
    self_ipi VEC_HIGH
    let_in
    mov seen, %eax
    check64 "EOI: not ended: one of a lower class waits", %rax, $0
    mov low, %eax
    check64 "EOI: not ended: it comes in then", %rax, $1
    check_quiet "EOI: lower class waits"

    forget
    hook64 VEC_LOW, high_then_end_low
    hook64 VEC_HIGH, end_high
    self_ipi VEC_LOW
    let_in
    mov seen, %eax
    check64 "EOI: not ended: one of a higher class gets in", %rax, $1
    check_quiet "EOI: higher class"

    forget
    hook64 VEC_LOW, end_low_by_register
    self_ipi VEC_LOW
    let_in
    andl $~1, eoi_words
    check_quiet "EOI: by the register all the same"

    mov $50, %r12d
1:  call halt_once
    dec %r12d
    jnz 1b
    check_quiet "EOI: the timer's, out of HLT"

    wrmsr64 MSR_EOI, 0
    forget
    hook64 VEC_LOW, end_low
    self_ipi VEC_LOW
    let_in
    mov by_register, %eax
    check64 "EOI: off again: by the register", %rax, $1
    check_quiet "EOI: off again"
    ret

look_at_isr:
    lapic_read LAPIC_ISR + WORD
    mov %eax, seen
    jmp end_low

end_low_look_at_ppr:
    call end_low
    lapic_read LAPIC_PPR
    mov %eax, seen
    ret

end_high_then_low:
    call end_high
    self_ipi VEC_LOW
    let_in
    mov low, %eax
    mov %eax, seen
    ret

low_then_end_high:
    self_ipi VEC_LOW
    let_in
    mov low, %eax
    mov %eax, seen
    jmp end_high

high_then_end_low:
    self_ipi VEC_HIGH
    let_in
    mov high, %eax
    mov %eax, seen
    jmp end_low

end_low_by_register:
    lock incl low
    lapic_write LAPIC_EOI, $0
    ret

/* ------------------------------------------------------------------ hypercalls */

/* call64 number, four arguments: RAX is what it returned. */
.macro call64 number, a, b, c, d
    mov $\number, %eax
    mov \a, %rbx
    mov \b, %rcx
    mov \c, %rdx
    mov \d, %rsi
    call hypercall64
.endm

hypercalls:
    call64 0x7fff, $0, $0, $0, $0
    check64 "no such hypercall", %rax, $ENOSYS
    mov $1, %eax
    shl $32, %rax
    or $HC_VAPIC_POLL, %rax
    call hypercall64
    check64 "the number has 64 bits", %rax, $ENOSYS
    call64 HC_VAPIC_POLL, $0, $0, $0, $0
    check64 "look for interrupts", %rax, $0

    btl $PV_UNHALT, features
    jc 1f
    call64 HC_KICK, $0, $0, $0, $0
    check64 "no kick", %rax, $ENOSYS
    jmp 2f
1:  call64 HC_KICK, $0, $250, $0, $0
    check64 "kick of no processor", %rax, $0
    call64 HC_KICK, $0, $0, $0, $0
    check64 "kick of itself", %rax, $0
    hlt                                 /* interrupts are off: nothing else would end it */
    check64 "HLT after a kick is over at once", $0, $0
2:
    btl $PV_SEND_IPI, features
    jc 1f
    call64 HC_SEND_IPI, $1, $0, $0, $VEC_LOW
    check64 "no IPIs", %rax, $ENOSYS
    jmp 2f
1:  call64 HC_SEND_IPI, $1, $0, $0, $(SELF + VEC_LOW)
    check64 "IPI with a shorthand", %rax, $EINVAL
    call64 HC_SEND_IPI, $1, $0, $0, $(0x800 + VEC_LOW)
    check64 "IPI with a logical destination", %rax, $EINVAL
    call64 HC_SEND_IPI, $-1, $-1, $200, $VEC_LOW
    check64 "IPI to nobody: who took it", %rax, $0
    call64 HC_SEND_IPI, $0, $1, $0, $VEC_LOW
    check64 "IPI to APIC ID 64: who took it", %rax, $0
    lapic_read LAPIC_IRR + WORD
    check64 "none came", %rax, $0
    irq_forget VEC_LOW
    hook64 VEC_LOW, 0
    call64 HC_SEND_IPI, $0, $1, $-64, $VEC_LOW
    check64 "IPI to itself by the second word: who took it", %rax, $1
    call64 HC_SEND_IPI, $1, $0, $0, $VEC_LOW
    check64 "IPI to itself: who took it", %rax, $1
    let_in
    irq_counted VEC_LOW
    check64 "IPI to itself: delivered", %rax, $1
2:
    btl $PV_SCHED_YIELD, features
    jc 1f
    call64 HC_YIELD, $0, $0, $0, $0
    check64 "no yielding", %rax, $ENOSYS
    ret
1:  call64 HC_YIELD, $1, $0, $0, $0
    check64 "yield to another", %rax, $0
    call64 HC_YIELD, $-1, $0, $0, $0
    check64 "yield to nobody", %rax, $0
    ret

/* ------------------------------------------------------------------ several processors */

/* Everybody else runs RAX. RBX: how many they are. */
start_job:
    mov cpu_count, %ebx
    dec %ebx
    movl $0, job_done
    mov %rax, job
    lock incl job_number
    ret

/* Wait for (RAX) = RCX, for seconds at most; EDX = 1: in vain. */
wait_for:
    push %rbx
    mov %rax, %rbx
    mov $2000000000, %edx
1:  cmp %ecx, (%rbx)
    je 2f
    pause
    dec %edx
    jnz 1b
    mov $1, %edx
    pop %rbx
    ret
2:  xor %edx, %edx
    pop %rbx
    ret

/* Each of the others halts with its interrupts off, again and again. */
kicks:
    btl $PV_UNHALT, features
    jnc 9f
    movl $0, woken
    mov $job_kicked, %eax
    call start_job
    mov %rbx, %r13                      /* how many */
    xor %r12d, %r12d
1:  mov $1, %r14d
2:  mov ap_ids(, %r14, 4), %ecx
    mov $HC_KICK, %eax
    xor %ebx, %ebx
    call hypercall64
    inc %r14d
    cmp cpu_count, %r14d
    jb 2b
    add %r13d, %r12d
    mov $woken, %eax
    mov %r12d, %ecx
    call wait_for
    test %edx, %edx
    jnz 3f
    mov %r13d, %eax
    imul $KICKS, %eax, %eax
    cmp %eax, %r12d
    jb 1b
3:  mov woken, %eax
    mov %r13d, %ecx
    imul $KICKS, %ecx, %ecx
    check64 "kicks, each out of HLT", %rax, %rcx
    mov $job_done, %eax
    mov %r13d, %ecx
    call wait_for
9:  ret

job_kicked:
    mov $KICKS, %ecx
1:  hlt
    lock incl woken
    dec %ecx
    jnz 1b
    ret

/* The others sleep; all are sent to at once, by both words. */
ipis:
    btl $PV_SEND_IPI, features
    jnc 9f
    forget
    movl $0, sleeping
    movl $0, is_over
    hook64 VEC_LOW, end_low
    mov $job_sleep, %eax
    call start_job
    mov %rbx, %r13
    mov $sleeping, %eax
    mov %r13d, %ecx
    call wait_for
    mov $1, %r14d                       /* the bits, from APIC ID 1 on */
    mov %r13d, %ecx
    shl %cl, %r14
    dec %r14
    xor %r12d, %r12d                    /* sent */
    xor %r15d, %r15d                    /* taken, as they say */
1:  call64 HC_SEND_IPI, %r14, $0, $1, $VEC_LOW
    add %eax, %r15d
    add %r13d, %r12d
    call wait_low
    jnz 2f
    lea (%r14, %r14), %rbp
    call64 HC_SEND_IPI, %rbp, $0, $0, $VEC_LOW
    add %eax, %r15d
    add %r13d, %r12d
    call wait_low
    jnz 2f
    cmp $2 * IPIS, %r12d
    jb 1b
2:  mov low, %eax
    check64 "IPIs to all but self, out of HLT", %rax, %r12
    check64 "IPIs to all but self: who took them", %r15, %r12
    movl $1, is_over
    call64 HC_SEND_IPI, %r14, $0, $1, $VEC_LOW
    mov $job_done, %eax
    mov %r13d, %ecx
    call wait_for
    mov by_memory, %eax
    add by_register, %eax
    add %r13d, %r12d
    check64 "each was ended once", %rax, %r12
    btl $PV_EOI, features
    jnc 9f
    mov by_memory, %eax
    test %eax, %eax
    check_that nz, "some in memory"
9:  ret

wait_low:
    mov $low, %eax
    mov %r12d, %ecx
    call wait_for
    test %edx, %edx
    ret

job_sleep:
    my_number
    lea eoi_words + 1(, %rax, 4), %eax
    xor %edx, %edx
    mov $MSR_EOI, %ecx
    btl $PV_EOI, features
    jnc 1f
    wrmsr
1:  lock incl sleeping
2:  sti
    hlt
    cli
    cmpl $0, is_over
    je 2b
    ret

    .data
    .balign 64
steal_record: .fill 8, 8, 0
eoi_words: .fill CPUS_MAX, 4, 0
features: .quad 0
is_amd: .quad 0
    .balign 64
low: .quad 0
high: .quad 0
by_memory: .quad 0
by_register: .quad 0
seen: .quad 0
woken: .quad 0
sleeping: .quad 0
is_over: .quad 0
