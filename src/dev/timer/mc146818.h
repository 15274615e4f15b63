/*
 * mc146818.h - real-time clock and CMOS memory
 *
 * The clock shows UTC: the host's time when the machine was made (or what the guest set) plus
 * the guest time that has passed since, and what mc146818_skip was told of. Nothing ticks:
 * registers are computed when read, and a timer is armed only for an interrupt that the guest has
 * enabled.
 *
 * Threads: set-up, reset, skip and set_byte by one thread while no vCPU runs; register accesses
 * come through the space, which takes the device's lock. The line is driven with that lock held.
 *
 * Spec: Motorola MC146818A data sheet; Dallas DS12885 for the century byte's place.
 */
#ifndef DOPPEL_DEV_TIMER_MC146818_H
#define DOPPEL_DEV_TIMER_MC146818_H

#include <stdint.h>

#include "base/err.h"
#include "dev/irq.h"

struct mc146818;
struct space;
struct vclock;

#define MC146818_PORT 0x70 /* 2 ports: index (bit 7 masks NMI, stored only) and data */
#define MC146818_SIZE 128
#define MC146818_CENTURY 0x32

struct mc146818_config {
    struct vclock *clock;
    struct irq_line irq8;
    /* Nanoseconds since 1970 UTC. NULL: the host's CLOCK_REALTIME. */
    uint64_t (*realtime_ns)(void *ctx);
    void *ctx;
};

int mc146818_create(const struct mc146818_config *config, struct mc146818 **out, struct err *e);

/* The main loop does not run and the space no longer leads here. NULL is allowed. */
void mc146818_destroy(struct mc146818 *rtc);

/*
 * RESET pin: interrupts off and cleared; time and memory are kept by the battery. A clock that
 * the guest left stopped runs again, as firmware sees to.
 */
void mc146818_reset(struct mc146818 *rtc);

/*
 * Guest time stood still for `ns` of the host's: a clock with a battery went on. What it would have
 * raised meanwhile is raised now.
 */
void mc146818_skip(struct mc146818 *rtc, uint64_t ns);

int mc146818_map(struct mc146818 *rtc, struct space *ports, uint16_t base, struct err *e);

/*
 * CMOS memory as firmware would fill it; `index` below MC146818_SIZE. The clock's registers
 * (0..13 and the century) are not memory: they are left alone and read as the guest would.
 */
void mc146818_set_byte(struct mc146818 *rtc, unsigned index, uint8_t value);
uint8_t mc146818_byte(struct mc146818 *rtc, unsigned index);

/* The bytes in which firmware leaves the memory's size (15h.., 30h.., 34h.., 5bh..). */
void mc146818_set_memory_size(struct mc146818 *rtc, uint64_t below_4g, uint64_t above_4g);

#endif
