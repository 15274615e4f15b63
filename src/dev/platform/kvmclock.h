/*
 * kvmclock.h - KVM's paravirtual clock: wall clock and per-vCPU system time in guest memory
 *
 * All vCPUs are given the same pair (host TSC, guest time), moved by each vCPU's TSC offset, so
 * that their clocks agree to the tick and the TSC_STABLE flag is true.
 *
 * Threads: set-up and kvmclock_rebase with the vCPUs stopped; the others on the thread of the
 * vCPU concerned.
 *
 * Spec: Linux Documentation/virt/kvm/x86/msr.rst and pvclock ABI.
 */
#ifndef DOPPEL_DEV_PLATFORM_KVMCLOCK_H
#define DOPPEL_DEV_PLATFORM_KVMCLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct kvmclock;
struct space;
struct vclock;

struct kvmclock_config {
    struct space *memory; /* guest-physical */
    struct vclock *clock;
    unsigned cpu_count;
    uint64_t tsc_hz;
    /* Guest TSC minus host TSC of vCPU `index` (cpu_state.tsc_offset). vCPU's thread. */
    uint64_t (*tsc_offset)(void *ctx, unsigned index);
    void *ctx;
    /* For tests; NULL: the host's TSC and CLOCK_REALTIME. */
    uint64_t (*host_tsc)(void *ctx);
    uint64_t (*realtime_ns)(void *ctx);
};

int kvmclock_create(const struct kvmclock_config *config, struct kvmclock **out, struct err *e);
void kvmclock_destroy(struct kvmclock *kc);

/* System reset: nothing is written any more until a guest asks again. */
void kvmclock_reset(struct kvmclock *kc);
/* INIT: the same for one vCPU. Its thread. */
void kvmclock_reset_cpu(struct kvmclock *kc, unsigned cpu);

#define KVMCLOCK_MSR_WALL_CLOCK_OLD 0x11u
#define KVMCLOCK_MSR_SYSTEM_TIME_OLD 0x12u
#define KVMCLOCK_MSR_WALL_CLOCK 0x4b564d00u
#define KVMCLOCK_MSR_SYSTEM_TIME 0x4b564d01u
static inline bool kvmclock_has_msr(uint32_t index)
{
    return index == KVMCLOCK_MSR_WALL_CLOCK_OLD || index == KVMCLOCK_MSR_SYSTEM_TIME_OLD ||
           index == KVMCLOCK_MSR_WALL_CLOCK || index == KVMCLOCK_MSR_SYSTEM_TIME;
}

/* Only for an index that kvmclock_has_msr. False: #GP(0). */
bool kvmclock_msr_read(struct kvmclock *kc, unsigned cpu, uint32_t index, uint64_t *value);
bool kvmclock_msr_write(struct kvmclock *kc, unsigned cpu, uint32_t index, uint64_t value);

/* The TSC offset of this vCPU changed (WRMSR to IA32_TSC or IA32_TSC_ADJUST). */
void kvmclock_tsc_changed(struct kvmclock *kc, unsigned cpu);

/*
 * Take a new pair of host TSC and guest time and tell every vCPU: after guest time stood still.
 * With was_stopped the guest's watchdogs are told, too (PVCLOCK_GUEST_STOPPED).
 */
void kvmclock_rebase(struct kvmclock *kc, bool was_stopped);

#endif
