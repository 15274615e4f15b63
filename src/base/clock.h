/*
 * clock.h - the host's monotonic clock
 */
#ifndef DOPPEL_BASE_CLOCK_H
#define DOPPEL_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

/* CLOCK_MONOTONIC in nanoseconds. Any thread, signal-safe. */
static inline uint64_t clock_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* The time `timeout_ns` from now, for pthread_cond_timedwait on a condition of CLOCK_MONOTONIC. */
static inline struct timespec clock_deadline(uint64_t timeout_ns)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    timeout_ns += (uint64_t)ts.tv_nsec;
    ts.tv_sec += (time_t)(timeout_ns / 1000000000u);
    ts.tv_nsec = (long)(timeout_ns % 1000000000u);
    return ts;
}

#endif
