/*
 * host.c - what an engine finds outside of itself: ports, memory-mapped devices, APIC, MSRs
 *
 * All on the vCPU's thread. The local APIC's window is looked at first: it is private to a
 * processor and may be moved, so it is not in the address space.
 */
#include "base/bits.h"
#include "dev/irqchip/apic_bus.h"
#include "dev/irqchip/lapic.h"
#include "dev/platform/ferr.h"
#include "cpu/msr.h"
#include "dev/platform/kvmclock.h"
#include "dev/platform/steal_time.h"
#include "mem/space.h"
#include "vm/machine.h"

/* What a write to a chip changed of the memory map is true for the next instruction. */
static inline void host_follow_remap(struct vcpu *vcpu)
{
    if (UNLIKELY(atomic_load_explicit(&vcpu->vm->is_remap_due, memory_order_relaxed)))
        vm_await_remap(vcpu->vm);
}

static uint64_t host_io_read(void *cpu, uint16_t port, unsigned size)
{
    struct vcpu *vcpu = cpu;

    return space_load(vcpu->vm->board.ports, port, size);
}

static void host_io_write(void *cpu, uint16_t port, uint64_t value, unsigned size)
{
    struct vcpu *vcpu = cpu;

    space_store(vcpu->vm->board.ports, port, value, size);
    host_follow_remap(vcpu);
}

static uint64_t host_mmio_read(void *cpu, gpa_t addr, unsigned size)
{
    struct vcpu *vcpu = cpu;

    if (lapic_claims(vcpu->lapic, addr))
        return lapic_mmio_read(vcpu->lapic, addr, size);
    return space_load(vcpu->vm->board.memory, addr, size);
}

static void host_mmio_write(void *cpu, gpa_t addr, uint64_t value, unsigned size)
{
    struct vcpu *vcpu = cpu;

    if (lapic_claims(vcpu->lapic, addr)) {
        lapic_mmio_write(vcpu->lapic, addr, value, size);
        return;
    }
    space_store(vcpu->vm->board.memory, addr, value, size);
    host_follow_remap(vcpu);
}

static int host_interrupt_acknowledge(void *cpu)
{
    struct vcpu *vcpu = cpu;

    /* a timer's handler is about to look */
    steal_time_update(vcpu->vm->board.steal_time, vcpu->index);
    return lapic_acknowledge(vcpu->lapic);
}

static void host_apic_eoi(void *cpu, uint8_t vector)
{
    struct vcpu *vcpu = cpu;

    apic_bus_eoi(vcpu->vm->board.apic_bus, vector);
}

static uint64_t host_cr8_read(void *cpu)
{
    struct vcpu *vcpu = cpu;

    return lapic_cr8_read(vcpu->lapic);
}

static void host_cr8_write(void *cpu, uint64_t value)
{
    struct vcpu *vcpu = cpu;

    lapic_cr8_write(vcpu->lapic, value);
}

/* KVM's registers but those of the clock: there when CPUID says so. */
static bool host_has_paravirtual(const struct vcpu *vcpu, uint32_t index)
{
    const struct cpu_model *m = &vcpu->vm->model;

    switch (index) {
    case MSR_KVM_STEAL_TIME:
        return cpu_model_has(m, CPU_FEATURE_KVM_STEAL_TIME);
    case MSR_KVM_PV_EOI:
        return cpu_model_has(m, CPU_FEATURE_KVM_PV_EOI);
    case MSR_KVM_POLL_CONTROL:
        return cpu_model_has(m, CPU_FEATURE_KVM_POLL_CONTROL);
    default:
        return false;
    }
}

static void host_paravirtual_read(struct vcpu *vcpu, uint32_t index, uint64_t *value)
{
    if (index == MSR_KVM_STEAL_TIME)
        *value = steal_time_read(vcpu->vm->board.steal_time, vcpu->index);
    else if (index == MSR_KVM_PV_EOI)
        *value = lapic_pv_eoi_read(vcpu->lapic);
    else
        *value = vcpu->poll_control;
}

static bool host_paravirtual_write(struct vcpu *vcpu, uint32_t index, uint64_t value)
{
    if (index == MSR_KVM_STEAL_TIME)
        return steal_time_write(vcpu->vm->board.steal_time, vcpu->index, value);
    if (index == MSR_KVM_PV_EOI)
        return lapic_pv_eoi_write(vcpu->lapic, value);
    if (value & ~UINT64_C(1))
        return false;
    vcpu->poll_control = value;
    return true;
}

static bool host_msr_read(void *cpu, uint32_t index, uint64_t *value)
{
    struct vcpu *vcpu = cpu;

    if (lapic_has_msr(index))
        return lapic_msr_read(vcpu->lapic, index, value);
    if (kvmclock_has_msr(index))
        return kvmclock_msr_read(vcpu->vm->board.kvmclock, vcpu->index, index, value);
    if (!host_has_paravirtual(vcpu, index))
        return false;
    host_paravirtual_read(vcpu, index, value);
    return true;
}

static bool host_msr_write(void *cpu, uint32_t index, uint64_t value)
{
    struct vcpu *vcpu = cpu;

    if (index == LAPIC_MSR_APIC_BASE) {
        bool is_good = lapic_msr_write(vcpu->lapic, index, value);
        bells_follow(vcpu->vm);
        return is_good;
    }
    if (lapic_has_msr(index))
        return lapic_msr_write(vcpu->lapic, index, value);
    if (kvmclock_has_msr(index))
        return kvmclock_msr_write(vcpu->vm->board.kvmclock, vcpu->index, index, value);
    return host_has_paravirtual(vcpu, index) && host_paravirtual_write(vcpu, index, value);
}

static bool host_set_ferr(void *cpu, bool is_asserted)
{
    struct vcpu *vcpu = cpu;

    /* only the boot processor's FERR# is wired, as on real boards */
    return vcpu->index == 0 && ferr_set(vcpu->vm->board.ferr, is_asserted);
}

static void host_tsc_changed(void *cpu)
{
    struct vcpu *vcpu = cpu;

    lapic_tsc_changed(vcpu->lapic);
    kvmclock_tsc_changed(vcpu->vm->board.kvmclock, vcpu->index);
}

static int64_t host_hypercall(void *cpu, const struct cpu_hypercall *call)
{
    return hypercall_serve(cpu, call);
}

const struct engine_host vm_engine_host = {
    .io_read = host_io_read,
    .io_write = host_io_write,
    .mmio_read = host_mmio_read,
    .mmio_write = host_mmio_write,
    .interrupt_acknowledge = host_interrupt_acknowledge,
    .apic_eoi = host_apic_eoi,
    .cr8_read = host_cr8_read,
    .cr8_write = host_cr8_write,
    .msr_read = host_msr_read,
    .msr_write = host_msr_write,
    .hypercall = host_hypercall,
    .set_ferr = host_set_ferr,
    .tsc_changed = host_tsc_changed,
};
