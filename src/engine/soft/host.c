/*
 * host.c - the way out: the host table, as the engines call it
 *
 * Each call puts the guest's x87/vector state away and leaves the guest (exclusive.c) for its
 * duration, so that a device may run ordinary C, block on its lock, and stop the other vCPUs.
 */
#include "base/log.h"
#include "engine/soft/vcpu.h"
#include "os/tsc.h"

/* Returns the time of the call for host_return. */
static uint64_t host_call(struct soft_vcpu *v)
{
    if (v->is_fpu_live)
        soft_fpu_save(v);
    soft_guest_leave(v);
    v->stats.host_calls++;
    return tsc_read();
}

static void host_return(struct soft_vcpu *v, uint64_t start)
{
    v->stats.host_tsc += tsc_read() - start;
    soft_guest_enter(v);
}

uint64_t soft_host_io_read(struct soft_vcpu *v, uint16_t port, unsigned size)
{
    uint64_t start = host_call(v);
    uint64_t value = v->engine->host->io_read(v->cpu, port, size);

    host_return(v, start);
    v->stats.io_reads++;
    return value;
}

void soft_host_io_write(struct soft_vcpu *v, uint16_t port, unsigned size, uint64_t value)
{
    uint64_t start = host_call(v);

    v->engine->host->io_write(v->cpu, port, value, size);
    host_return(v, start);
    v->stats.io_writes++;
}

uint64_t soft_host_mmio_read(struct soft_vcpu *v, gpa_t addr, unsigned size)
{
    uint64_t start = host_call(v);
    uint64_t value = v->engine->host->mmio_read(v->cpu, addr, size);

    host_return(v, start);
    v->stats.mmio_reads++;
    return value;
}

void soft_host_mmio_write(struct soft_vcpu *v, gpa_t addr, unsigned size, uint64_t value)
{
    uint64_t start = host_call(v);

    v->engine->host->mmio_write(v->cpu, addr, value, size);
    host_return(v, start);
    v->stats.mmio_writes++;
}

int soft_host_interrupt_acknowledge(struct soft_vcpu *v)
{
    uint64_t start = host_call(v);
    int vector = v->engine->host->interrupt_acknowledge(v->cpu);

    host_return(v, start);
    return vector;
}

uint64_t soft_host_cr8_read(struct soft_vcpu *v)
{
    uint64_t start = host_call(v);
    uint64_t value = v->engine->host->cr8_read(v->cpu);

    host_return(v, start);
    return value;
}

void soft_host_cr8_write(struct soft_vcpu *v, uint64_t value)
{
    uint64_t start = host_call(v);

    v->engine->host->cr8_write(v->cpu, value);
    host_return(v, start);
}

bool soft_host_msr_read(struct soft_vcpu *v, uint32_t index, uint64_t *value)
{
    uint64_t start = host_call(v);
    bool is_known = v->engine->host->msr_read(v->cpu, index, value);

    host_return(v, start);
    return is_known;
}

bool soft_host_msr_write(struct soft_vcpu *v, uint32_t index, uint64_t value)
{
    uint64_t start = host_call(v);
    bool is_accepted = v->engine->host->msr_write(v->cpu, index, value);

    host_return(v, start);
    return is_accepted;
}

bool soft_host_set_ferr(struct soft_vcpu *v, bool is_asserted)
{
    uint64_t start = host_call(v);
    bool is_ignne = v->engine->host->set_ferr(v->cpu, is_asserted);

    host_return(v, start);
    return is_ignne;
}

void soft_host_tsc_changed(struct soft_vcpu *v)
{
    uint64_t start;

    if (v->engine->host->tsc_changed == NULL)
        return;
    start = host_call(v);
    v->engine->host->tsc_changed(v->cpu);
    host_return(v, start);
}

int64_t soft_host_hypercall(struct soft_vcpu *v, const struct cpu_hypercall *call)
{
    int64_t result;
    uint64_t start;

    if (v->engine->host->hypercall == NULL)
        return -HYPERCALL_ENOSYS;
    start = host_call(v);
    result = v->engine->host->hypercall(v->cpu, call);
    host_return(v, start);
    return result;
}

void soft_host_log(struct soft_vcpu *v, const char *format, uint64_t a, uint64_t b)
{
    uint64_t start;

    if (!log_enabled(LOG_DEBUG))
        return;
    start = host_call(v);
    log_guest(format, a, b);
    host_return(v, start);
}
