/*
 * spin_wait.h - look for work a while before going to sleep
 *
 * Waking a thread takes the host tens of microseconds, longer than those who work hand in hand
 * (two processors of a guest, a driver and its device) need to answer each other. So who is about
 * to sleep looks for what it would be woken by for a while: longer while it comes soon, not at all
 * after one that was not worth it. An idle guest thus costs nothing. Only where there is a
 * processor of the host for it, and nobody else wants that: this shows in a gap between two looks.
 *
 * Threads: one at a time, as the caller sees to.
 */
#ifndef DOPPEL_OS_SPIN_WAIT_H
#define DOPPEL_OS_SPIN_WAIT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct spin_wait {
    uint64_t limit_ns; /* how long to look next time; 0: not at all */
    uint64_t after_ns; /* not before this time */
};

/*
 * Look until one of `bits` is set in *word, but no longer than is worth it. `start`: the time, from
 * clock_now_ns. Returns how long it looked, in nanoseconds.
 */
uint64_t spin_wait(struct spin_wait *s, const _Atomic uint32_t *word, uint32_t bits,
                   uint64_t start);

/* What was waited for from `start` on came at `now`, after a sleep. May it be looked for at all? */
void spin_wait_slept(struct spin_wait *s, uint64_t start, uint64_t now, bool is_allowed);

#endif
