/*
 * steal_time.h - KVM's steal time: for how long a vCPU could have run and was not let
 *
 * The record is in guest memory, and so is the sum: what is added to it is what the host's
 * scheduler made the vCPU's thread wait since it was looked at last.
 *
 * Threads: any, but for set-up.
 *
 * Spec: Linux Documentation/virt/kvm/x86/msr.rst, MSR_KVM_STEAL_TIME.
 */
#ifndef DOPPEL_DEV_PLATFORM_STEAL_TIME_H
#define DOPPEL_DEV_PLATFORM_STEAL_TIME_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct space;
struct steal_time;

struct steal_time_config {
    struct space *memory; /* guest-physical */
    unsigned cpu_count;
    uint64_t tsc_hz;
    /* How long the vCPU's thread has waited for a processor since it began. False: not known. */
    bool (*waited_ns)(void *ctx, unsigned cpu, uint64_t *ns);
    void *ctx;
    uint64_t (*host_tsc)(void *ctx); /* for tests; NULL: the host's */
};

int steal_time_create(const struct steal_time_config *config, struct steal_time **out,
                      struct err *e);
void steal_time_destroy(struct steal_time *st);

/* RESET or INIT of a vCPU: nothing is written any more until a guest asks again. */
void steal_time_reset(struct steal_time *st, unsigned cpu);

/* The value of MSR_KVM_STEAL_TIME. False: #GP(0). */
bool steal_time_write(struct steal_time *st, unsigned cpu, uint64_t value);
uint64_t steal_time_read(const struct steal_time *st, unsigned cpu);

/*
 * The guest is about to look, perhaps: write what the vCPU has waited. To be called often; looks
 * no more than 2000 times a second, and writes when there is something new, which is returned.
 */
bool steal_time_update(struct steal_time *st, unsigned cpu);

#endif
