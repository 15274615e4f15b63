/*
 * tsc.h - the host's time-stamp counter
 */
#ifndef DOPPEL_OS_TSC_H
#define DOPPEL_OS_TSC_H

#include <stdbool.h>
#include <stdint.h>

static inline uint64_t tsc_read(void)
{
    uint32_t lo, hi;
    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return (uint64_t)hi << 32 | lo;
}

/*
 * Frequency in Hz, found once per process and then cached: CPUID 15H, the hypervisor timing
 * leaf 40000010H, the kernel's own conversion factors (perf_event_open's user page), else
 * measured against CLOCK_MONOTONIC_RAW over at least 10 ms. Any thread.
 */
uint64_t tsc_frequency_hz(void);

/*
 * Somebody (KVM) knows the frequency: spares a measurement, when nobody has asked before. True
 * when there is no need of that any more. Any thread; hz 0 only asks.
 */
bool tsc_hint_frequency_hz(uint64_t hz);

#endif
