/*
 * null_host.h - members of an engine's host table behind which there is nothing
 *
 * For tests and tools that run an engine without a machine: ports and memory without devices, no
 * interrupts, MSRs that fault, a task priority of 0, no x87 errors by wire.
 */
#ifndef DOPPEL_ENGINE_NULL_HOST_H
#define DOPPEL_ENGINE_NULL_HOST_H

#include "base/bits.h"
#include "engine/engine.h"

static inline uint64_t null_io_read(void *cpu, uint16_t port, unsigned size)
{
    return mask_bytes(size);
}

static inline void null_io_write(void *cpu, uint16_t port, uint64_t value, unsigned size)
{
}

static inline uint64_t null_mmio_read(void *cpu, gpa_t addr, unsigned size)
{
    return mask_bytes(size);
}

static inline void null_mmio_write(void *cpu, gpa_t addr, uint64_t value, unsigned size)
{
}

static inline int null_interrupt_acknowledge(void *cpu)
{
    return -1;
}

static inline uint64_t null_cr8_read(void *cpu)
{
    return 0;
}

static inline void null_cr8_write(void *cpu, uint64_t value)
{
}

static inline bool null_msr_read(void *cpu, uint32_t index, uint64_t *value)
{
    return false;
}

static inline bool null_msr_write(void *cpu, uint32_t index, uint64_t value)
{
    return false;
}

static inline bool null_set_ferr(void *cpu, bool is_asserted)
{
    return false;
}

#endif
