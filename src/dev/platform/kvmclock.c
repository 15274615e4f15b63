/*
 * kvmclock.c - pvclock structures in guest memory
 *
 * One pair (host TSC, guest time) serves all vCPUs; a vCPU's record differs from the others' by
 * its TSC offset only. A record is written under the version protocol: odd while it changes.
 * Guest memory is not trusted: an address that is not RAM gets nothing.
 *
 * Spec: Linux Documentation/virt/kvm/x86/msr.rst; the structures are the pvclock ABI's.
 */
#include "dev/platform/kvmclock.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "base/bits.h"
#include "mem/space.h"
#include "os/tsc.h"
#include "os/vclock.h"

#define SYSTEM_TIME_ENABLED BIT(0)

/* pvclock_vcpu_time_info */
enum {
    TIME_VERSION = 0,
    TIME_TSC_TIMESTAMP = 8,
    TIME_SYSTEM_TIME = 16,
    TIME_TSC_TO_SYSTEM_MUL = 24,
    TIME_TSC_SHIFT = 28,
    TIME_FLAGS = 29,
    TIME_SIZE = 32,
};
#define TIME_FLAG_TSC_STABLE 1u
#define TIME_FLAG_GUEST_STOPPED 2u

/* pvclock_wall_clock: version, seconds, nanoseconds */
#define WALL_SIZE 12

struct kvmclock_cpu {
    uint64_t msr;     /* as written; the vCPU's thread only */
    uint32_t version; /* of the record last written */
};

struct kvmclock {
    struct kvmclock_config config;
    uint32_t tsc_mul;
    int8_t tsc_shift;

    /* the common pair: changes with the vCPUs stopped */
    uint64_t base_tsc; /* host TSC */
    uint64_t base_ns;  /* guest time at that instant */

    _Atomic uint64_t wall_msr;
    struct kvmclock_cpu cpu[];
};

static uint64_t read_host_tsc(void *ctx)
{
    return tsc_read();
}

static uint64_t read_realtime_ns(void *ctx)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

/*
 * ns = (ticks << shift) * mul >> 32, with a negative shift to the right. mul is chosen with its
 * top bit set, which is as exact as 32 bits can be.
 */
static void compute_scale(uint64_t tsc_hz, uint32_t *mul, int8_t *shift)
{
    unsigned __int128 scaled;
    int s = 0;

    /* 2^31 <= 10^9 * 2^(32 - s) / tsc_hz < 2^32 */
    while (s > -31 && (unsigned __int128)NS_PER_SEC << (1 - s) < tsc_hz)
        s--;
    while (s >= 0 && s < 31 && tsc_hz << s <= NS_PER_SEC)
        s++;
    if (s < 0)
        scaled = ((unsigned __int128)NS_PER_SEC << (32 - s)) / tsc_hz;
    else
        scaled = ((unsigned __int128)NS_PER_SEC << 32) / ((unsigned __int128)tsc_hz << s);
    *mul = scaled > UINT32_MAX ? UINT32_MAX : (uint32_t)scaled;
    *shift = (int8_t)s;
}

/* Host TSC and guest time of the same instant: the tightest of a few tries. */
static void take_base(struct kvmclock *kc)
{
    const struct kvmclock_config *c = &kc->config;
    uint64_t best = UINT64_MAX;

    for (int i = 0; i < 8; i++) {
        uint64_t before = c->host_tsc(c->ctx);
        uint64_t ns = vclock_now_ns(c->clock);
        uint64_t width = c->host_tsc(c->ctx) - before;

        if (width < best) {
            best = width;
            kc->base_tsc = before + width / 2;
            kc->base_ns = ns;
        }
    }
}

static void write_time(struct kvmclock *kc, unsigned index, unsigned flags)
{
    const struct kvmclock_config *c = &kc->config;
    struct kvmclock_cpu *cpu = &kc->cpu[index];
    uint64_t addr = cpu->msr & ~SYSTEM_TIME_ENABLED;
    uint8_t record[TIME_SIZE] = {0};

    if (!(cpu->msr & SYSTEM_TIME_ENABLED) ||
        space_ram_ptr(c->memory, addr, TIME_SIZE, true) == NULL)
        return;

    cpu->version += 2;
    store_le64(record + TIME_TSC_TIMESTAMP, kc->base_tsc + c->tsc_offset(c->ctx, index));
    store_le64(record + TIME_SYSTEM_TIME, kc->base_ns);
    store_le32(record + TIME_TSC_TO_SYSTEM_MUL, kc->tsc_mul);
    record[TIME_TSC_SHIFT] = (uint8_t)kc->tsc_shift;
    record[TIME_FLAGS] = TIME_FLAG_TSC_STABLE | flags;

    /* x86 stores are seen in order; the fences keep the compiler to it. */
    space_store(c->memory, addr + TIME_VERSION, cpu->version - 1, 4);
    atomic_thread_fence(memory_order_release);
    space_write(c->memory, addr + 4, record + 4, TIME_SIZE - 4);
    atomic_thread_fence(memory_order_release);
    space_store(c->memory, addr + TIME_VERSION, cpu->version, 4);
}

/* Wall-clock time of the instant when guest time was 0; written once, on request. */
static void write_wall_clock(struct kvmclock *kc, uint64_t addr)
{
    const struct kvmclock_config *c = &kc->config;
    uint64_t boot_ns = c->realtime_ns(c->ctx) - vclock_now_ns(c->clock);

    if (space_ram_ptr(c->memory, addr, WALL_SIZE, true) == NULL)
        return;

    uint32_t version = (uint32_t)space_load(c->memory, addr, 4);
    version += version & 1; /* never written yet: whatever was there */
    space_store(c->memory, addr, version + 1, 4);
    atomic_thread_fence(memory_order_release);
    space_store(c->memory, addr + 4, boot_ns / NS_PER_SEC, 4);
    space_store(c->memory, addr + 8, boot_ns % NS_PER_SEC, 4);
    atomic_thread_fence(memory_order_release);
    space_store(c->memory, addr, version + 2, 4);
}

bool kvmclock_msr_read(struct kvmclock *kc, unsigned cpu, uint32_t index, uint64_t *value)
{
    switch (index) {
    case KVMCLOCK_MSR_WALL_CLOCK_OLD:
    case KVMCLOCK_MSR_WALL_CLOCK:
        *value = atomic_load_explicit(&kc->wall_msr, memory_order_relaxed);
        return true;
    case KVMCLOCK_MSR_SYSTEM_TIME_OLD:
    case KVMCLOCK_MSR_SYSTEM_TIME:
        *value = kc->cpu[cpu].msr;
        return true;
    default:
        return false;
    }
}

bool kvmclock_msr_write(struct kvmclock *kc, unsigned cpu, uint32_t index, uint64_t value)
{
    switch (index) {
    case KVMCLOCK_MSR_WALL_CLOCK_OLD:
    case KVMCLOCK_MSR_WALL_CLOCK:
        atomic_store_explicit(&kc->wall_msr, value, memory_order_relaxed);
        write_wall_clock(kc, value);
        return true;
    case KVMCLOCK_MSR_SYSTEM_TIME_OLD:
    case KVMCLOCK_MSR_SYSTEM_TIME:
        /* KVM takes any address; an unaligned or absent one is the guest's loss. */
        kc->cpu[cpu].msr = value;
        write_time(kc, cpu, 0);
        return true;
    default:
        return false;
    }
}

void kvmclock_tsc_changed(struct kvmclock *kc, unsigned cpu)
{
    write_time(kc, cpu, 0);
}

void kvmclock_rebase(struct kvmclock *kc, bool was_stopped)
{
    take_base(kc);
    for (unsigned i = 0; i < kc->config.cpu_count; i++)
        write_time(kc, i, was_stopped ? TIME_FLAG_GUEST_STOPPED : 0);
}

void kvmclock_reset(struct kvmclock *kc)
{
    atomic_store_explicit(&kc->wall_msr, 0, memory_order_relaxed);
    for (unsigned i = 0; i < kc->config.cpu_count; i++)
        kvmclock_reset_cpu(kc, i);
}

void kvmclock_reset_cpu(struct kvmclock *kc, unsigned cpu)
{
    kc->cpu[cpu].msr = 0;
    kc->cpu[cpu].version = 0;
}

int kvmclock_create(const struct kvmclock_config *config, struct kvmclock **out, struct err *e)
{
    struct kvmclock *kc = calloc(1, sizeof(*kc) + config->cpu_count * sizeof(kc->cpu[0]));

    if (kc == NULL)
        return err_set(e, ENOMEM, "make kvmclock for %u CPUs", config->cpu_count);
    kc->config = *config;
    if (config->host_tsc == NULL)
        kc->config.host_tsc = read_host_tsc;
    if (config->realtime_ns == NULL)
        kc->config.realtime_ns = read_realtime_ns;
    compute_scale(config->tsc_hz, &kc->tsc_mul, &kc->tsc_shift);
    take_base(kc);
    *out = kc;
    return 0;
}

void kvmclock_destroy(struct kvmclock *kc)
{
    free(kc);
}
