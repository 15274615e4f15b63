/*
 * tsc.c - the host's time-stamp counter
 *
 * Spec: Intel SDM vol 3, "Determining the Processor Base Frequency" (CPUID 15H); the timing
 * leaf 40000010H that hypervisors share; perf_event_open(2), time_mult and time_shift.
 */
#include "os/tsc.h"

#include <cpuid.h>
#include <linux/perf_event.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define TSC_MEASURE_NS UINT64_C(20000000)

/* CPUID 15H: TSC / crystal = EBX / EAX, and ECX is the crystal's frequency when not 0. */
static uint64_t tsc_hz_from_cpuid15(void)
{
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid_count(0x15, 0, &eax, &ebx, &ecx, &edx) || eax == 0 || ebx == 0 || ecx == 0)
        return 0;
    return (uint64_t)ecx * ebx / eax;
}

/* Under a hypervisor: leaf 40000010H, EAX is the TSC's frequency in kHz. */
static uint64_t tsc_hz_from_hypervisor(void)
{
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & (1u << 31)))
        return 0;
    __cpuid(0x40000000, eax, ebx, ecx, edx);
    if (eax < 0x40000010 || eax > 0x4000ffff)
        return 0;
    __cpuid(0x40000010, eax, ebx, ecx, edx);
    return (uint64_t)eax * 1000;
}

/* The kernel's calibration: ns = tsc * time_mult >> time_shift. */
static uint64_t tsc_hz_from_kernel(void)
{
    struct perf_event_attr attr = {
        .type = PERF_TYPE_SOFTWARE,
        .size = sizeof(attr),
        .config = PERF_COUNT_SW_DUMMY,
        .exclude_kernel = 1,
        .exclude_hv = 1,
    };
    int fd = (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
    if (fd < 0)
        return 0;
    uint64_t hz = 0;
    long page_size = sysconf(_SC_PAGESIZE);
    struct perf_event_mmap_page *page = mmap(NULL, (size_t)page_size, PROT_READ, MAP_SHARED, fd, 0);
    if (page != MAP_FAILED) {
        if (page->cap_user_time && page->time_mult != 0 && page->time_shift < 64)
            hz = (uint64_t)(((unsigned __int128)1000000000u << page->time_shift) / page->time_mult);
        munmap(page, (size_t)page_size);
    }
    close(fd);
    return hz;
}

/* The counter and the clock as close together as some tries get them. */
static void tsc_sample(uint64_t *tsc, uint64_t *ns)
{
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < 16; i++) {
        struct timespec ts;
        uint64_t before = tsc_read();
        clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
        uint64_t after = tsc_read();
        if (after - before < best) {
            best = after - before;
            *tsc = before + best / 2;
            *ns = (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
        }
    }
}

static uint64_t tsc_hz_measured(void)
{
    uint64_t tsc0, ns0, tsc1, ns1;
    tsc_sample(&tsc0, &ns0);
    struct timespec wait = {.tv_nsec = (long)TSC_MEASURE_NS};
    while (nanosleep(&wait, &wait) != 0)
        ;
    tsc_sample(&tsc1, &ns1);
    return (uint64_t)((unsigned __int128)(tsc1 - tsc0) * 1000000000u / (ns1 - ns0));
}

/* Process-wide because the hardware's is; two threads that race find the same. */
static _Atomic uint64_t *tsc_cached_hz(void)
{
    static _Atomic uint64_t cached_hz;
    return &cached_hz;
}

bool tsc_hint_frequency_hz(uint64_t hz)
{
    uint64_t unknown = 0;
    return !atomic_compare_exchange_strong(tsc_cached_hz(), &unknown, hz) || hz != 0;
}

uint64_t tsc_frequency_hz(void)
{
    uint64_t hz = atomic_load_explicit(tsc_cached_hz(), memory_order_relaxed);
    if (hz != 0)
        return hz;
    hz = tsc_hz_from_cpuid15();
    if (hz == 0)
        hz = tsc_hz_from_hypervisor();
    if (hz == 0)
        hz = tsc_hz_from_kernel();
    if (hz == 0)
        hz = tsc_hz_measured();
    atomic_store_explicit(tsc_cached_hz(), hz, memory_order_relaxed);
    return hz;
}
