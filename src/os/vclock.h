/*
 * vclock.h - guest time, and timers on it
 *
 * Guest time is in nanoseconds since the clock was made; it runs with CLOCK_MONOTONIC and
 * stands still while the clock is paused. Devices compute what they need from it when asked
 * and arm a timer for the next event only; an idle machine arms nothing.
 *
 * Threads: vclock_now_ns, vtimer_arm and vtimer_cancel may be called from any thread, with
 * or without a device's lock held. Callbacks run on the loop's thread with no lock held.
 * A callback may already be on its way when vtimer_cancel or vtimer_arm returns: it takes its
 * device's lock and then decides from the device's state whether anything is due.
 */
#ifndef DOPPEL_OS_VCLOCK_H
#define DOPPEL_OS_VCLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define NS_PER_SEC UINT64_C(1000000000)

struct loop;
struct vclock;

typedef void (*vtimer_fn)(void *ctx);

struct vtimer {
    struct vclock *clock;
    vtimer_fn fn;
    void *ctx;
    uint64_t deadline_ns;   /* under the clock's lock; UINT64_MAX when not armed */
    int heap_index;         /* under the clock's lock; -1 when not armed */
};

/* A clock that starts at 0 now; its timers run on `loop`, which must outlive it. */
int vclock_create(struct loop *loop, struct vclock **out, struct err *e);

/* For unit tests: time moves only by vclock_advance, which runs what falls due, in order. */
int vclock_create_manual(struct vclock **out, struct err *e);
void vclock_advance(struct vclock *clock, uint64_t ns);

/* Every timer must have been cancelled. NULL is allowed. */
void vclock_destroy(struct vclock *clock);

uint64_t vclock_now_ns(const struct vclock *clock);

/* The earliest armed deadline, UINT64_MAX when none is armed. */
uint64_t vclock_next_deadline_ns(struct vclock *clock);

/* Stop and restart guest time. Timers keep their guest-time deadlines. Loop's thread. */
void vclock_pause(struct vclock *clock);
void vclock_resume(struct vclock *clock);

void vtimer_init(struct vtimer *timer, struct vclock *clock, vtimer_fn fn, void *ctx);

/* Call fn once at or soon after guest time deadline_ns; replaces an earlier deadline. */
void vtimer_arm(struct vtimer *timer, uint64_t deadline_ns);
void vtimer_cancel(struct vtimer *timer);

#endif
