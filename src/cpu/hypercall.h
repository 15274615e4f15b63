/*
 * hypercall.h - calls of KVM's guests, by VMCALL or VMMCALL, as data
 *
 * Spec: Linux Documentation/virt/kvm/x86/hypercalls.rst.
 */
#ifndef DOPPEL_CPU_HYPERCALL_H
#define DOPPEL_CPU_HYPERCALL_H

#include <stdbool.h>
#include <stdint.h>

enum cpu_hypercall_number {
    HYPERCALL_VAPIC_POLL_IRQ = 1,
    HYPERCALL_KICK_CPU = 5,
    HYPERCALL_SEND_IPI = 10,
    HYPERCALL_SCHED_YIELD = 11,
};

/* Of RAX, RBX, RCX, RDX and RSI; outside of 64-bit mode their lower halves. */
struct cpu_hypercall {
    uint64_t number;
    uint64_t arg[4];
    bool is_64bit;
};

/* What they return, negated, in RAX: KVM's own numbers, not the host's. */
#define HYPERCALL_EPERM 1
#define HYPERCALL_EINVAL 22
#define HYPERCALL_ENOSYS 1000

#endif
