/*
 * steal_time.c - steal-time records in guest memory
 *
 * A record is written under the version protocol: odd while it changes. Guest memory is not
 * trusted: what is read from it (version, sum) only goes back to it, and an address that is not
 * RAM gets nothing. `preempted` is always 0: the host does not tell a process when it takes a
 * processor away from one of its threads, and 0 is how "not known" reads.
 *
 * Spec: Linux Documentation/virt/kvm/x86/msr.rst, MSR_KVM_STEAL_TIME.
 */
#include "dev/platform/steal_time.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/bits.h"
#include "mem/space.h"
#include "os/tsc.h"

#define STEAL_ENABLED BIT(0)
#define STEAL_RESERVED UINT64_C(0x3e) /* the record is 64-byte aligned */
#define STEAL_LOOKS_HZ 2000

/* struct kvm_steal_time */
enum {
    STEAL_NS = 0,
    STEAL_VERSION = 8,
    STEAL_FLAGS = 12,
    STEAL_PREEMPTED = 16,
    STEAL_SIZE = 64,
};

struct steal_cpu {
    _Atomic uint64_t msr; /* written under lock, read freely */
    uint64_t waited_ns;   /* what the sum has of it */
    uint64_t look_tsc;    /* the host's, of the last look */
};

struct steal_time {
    struct steal_time_config config;
    uint64_t look_ticks;
    pthread_mutex_t lock; /* innermost */
    struct steal_cpu cpu[];
};

static uint64_t read_host_tsc(void *ctx)
{
    return tsc_read();
}

int steal_time_create(const struct steal_time_config *config, struct steal_time **out,
                      struct err *e)
{
    struct steal_time *st = calloc(1, sizeof(*st) + config->cpu_count * sizeof(st->cpu[0]));

    if (st == NULL)
        return err_set(e, ENOMEM, "make steal-time records for %u CPUs", config->cpu_count);
    st->config = *config;
    if (config->host_tsc == NULL)
        st->config.host_tsc = read_host_tsc;
    st->look_ticks = config->tsc_hz / STEAL_LOOKS_HZ;
    pthread_mutex_init(&st->lock, NULL);
    *out = st;
    return 0;
}

void steal_time_destroy(struct steal_time *st)
{
    if (st == NULL)
        return;
    pthread_mutex_destroy(&st->lock);
    free(st);
}

void steal_time_reset(struct steal_time *st, unsigned cpu)
{
    pthread_mutex_lock(&st->lock);
    st->cpu[cpu].msr = 0;
    pthread_mutex_unlock(&st->lock);
}

/* NULL: the guest wants none, or nowhere. */
static uint8_t *steal_record(const struct steal_time *st, unsigned cpu, uint64_t *addr)
{
    uint64_t msr = st->cpu[cpu].msr;

    *addr = msr & ~STEAL_ENABLED;
    return msr & STEAL_ENABLED ? space_ram_ptr(st->config.memory, *addr, STEAL_SIZE, true) : NULL;
}

/* Other vCPUs may read it meanwhile. x86 stores are seen in order; release keeps the compiler to
 * it. */
static void steal_add(struct steal_time *st, unsigned cpu, uint64_t ns)
{
    uint64_t addr;
    uint8_t *record = steal_record(st, cpu, &addr);
    uint32_t *version;
    uint64_t *sum;
    uint32_t old;

    if (record == NULL)
        return;
    version = (uint32_t *)(void *)(record + STEAL_VERSION);
    sum = (uint64_t *)(void *)(record + STEAL_NS);
    old = __atomic_load_n(version, __ATOMIC_RELAXED);
    old += old & 1; /* never written yet: whatever was there */
    __atomic_store_n(version, old + 1, __ATOMIC_RELAXED);
    atomic_thread_fence(memory_order_release);
    __atomic_store_n(sum, __atomic_load_n(sum, __ATOMIC_RELAXED) + ns, __ATOMIC_RELAXED);
    __atomic_store_n((uint32_t *)(void *)(record + STEAL_FLAGS), 0, __ATOMIC_RELAXED);
    __atomic_store_n(record + STEAL_PREEMPTED, 0, __ATOMIC_RELAXED);
    __atomic_store_n(version, old + 2, __ATOMIC_RELEASE);
    space_note_written(st->config.memory, addr, STEAL_SIZE);
}

bool steal_time_write(struct steal_time *st, unsigned cpu, uint64_t value)
{
    struct steal_cpu *c = &st->cpu[cpu];

    if (value & STEAL_RESERVED)
        return false;
    /* KVM takes any address; an absent one is the guest's loss */
    pthread_mutex_lock(&st->lock);
    c->msr = value;
    c->look_tsc = st->config.host_tsc(st->config.ctx);
    if (!st->config.waited_ns(st->config.ctx, cpu, &c->waited_ns))
        c->waited_ns = 0;
    steal_add(st, cpu, 0);
    pthread_mutex_unlock(&st->lock);
    return true;
}

uint64_t steal_time_read(const struct steal_time *st, unsigned cpu)
{
    return st->cpu[cpu].msr;
}

/* With the lock. Returns whether there was something new. */
static bool steal_look(struct steal_time *st, unsigned cpu)
{
    struct steal_cpu *c = &st->cpu[cpu];
    uint64_t now = st->config.host_tsc(st->config.ctx);
    uint64_t waited_ns, old_ns = c->waited_ns;

    if (now - c->look_tsc < st->look_ticks)
        return false;
    c->look_tsc = now;
    if (!st->config.waited_ns(st->config.ctx, cpu, &waited_ns) || waited_ns == old_ns)
        return false;
    c->waited_ns = waited_ns;
    if (waited_ns > old_ns)
        steal_add(st, cpu, waited_ns - old_ns);
    return true;
}

bool steal_time_update(struct steal_time *st, unsigned cpu)
{
    bool is_new;

    if (LIKELY(!(atomic_load_explicit(&st->cpu[cpu].msr, memory_order_relaxed) & STEAL_ENABLED)))
        return false;
    pthread_mutex_lock(&st->lock);
    is_new = steal_look(st, cpu);
    pthread_mutex_unlock(&st->lock);
    return is_new;
}
