/*
 * exit.c - what KVM_RUN came back with
 *
 * Accesses to ports, devices and MSRs go out through the host table; KVM finishes the instruction
 * when it is entered again (is_incomplete). What KVM could not execute is left to recover.c.
 */
#include <string.h>

#include "engine/kvm/kvm.h"

/* A repeated string instruction moves `count` items at once. */
static void exit_io(struct engine_vcpu *v)
{
    const struct engine_host *host = v->engine->soft.host;
    const struct kvm_run *run = v->run;
    unsigned size = run->io.size;
    bool is_out = run->io.direction == KVM_EXIT_IO_OUT;
    uint8_t *data = (uint8_t *)v->run + run->io.data_offset;

    for (uint32_t i = 0; i < run->io.count; i++, data += size) {
        uint64_t value = 0;
        if (is_out) {
            memcpy(&value, data, size);
            host->io_write(v->soft.cpu, run->io.port, value, size);
        } else {
            value = host->io_read(v->soft.cpu, run->io.port, size);
            memcpy(data, &value, size);
        }
    }
    v->stats.counts[is_out ? KVM_COUNT_IO_WRITE : KVM_COUNT_IO_READ] += run->io.count;
    kvm_stats_count_place(v, true, run->io.port, run->io.count);
    v->is_incomplete = true;
}

/* Accesses that cross a page come in pieces of any length; devices know powers of two. */
static void exit_mmio(struct engine_vcpu *v)
{
    const struct engine_host *host = v->engine->soft.host;
    struct kvm_run *run = v->run;
    unsigned length = MIN(run->mmio.len, (uint32_t)sizeof(run->mmio.data));

    for (unsigned done = 0; done < length;) {
        unsigned size = 8;
        uint64_t value = 0;
        while (size > length - done)
            size /= 2;
        if (run->mmio.is_write) {
            memcpy(&value, run->mmio.data + done, size);
            host->mmio_write(v->soft.cpu, run->mmio.phys_addr + done, value, size);
        } else {
            value = host->mmio_read(v->soft.cpu, run->mmio.phys_addr + done, size);
            memcpy(run->mmio.data + done, &value, size);
        }
        done += size;
    }
    v->stats.counts[run->mmio.is_write ? KVM_COUNT_MMIO_WRITE : KVM_COUNT_MMIO_READ]++;
    kvm_stats_count_place(v, false, run->mmio.phys_addr, 1);
    v->is_incomplete = true;
}

/*
 * Kernels without KVM_CAP_EXIT_ON_EMULATION_FAILURE have queued an #UD along with the exit, for
 * users who would let the guest have it.
 */
static int exit_failure(struct engine_vcpu *v, struct err *e)
{
    bool is_emulation = v->run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION;

    v->stats.counts[KVM_COUNT_FAILURE]++;
    return kvm_recover(v, is_emulation && !v->engine->caps.has_failure_exit, e);
}

/* A triple fault. KVM does not tell what led there; on AMD it has reset the processor. */
static void exit_shutdown(struct engine_vcpu *v)
{
    struct cpu_state *st = &v->soft.st;

    st->run_state = CPU_SHUTDOWN;
    st->exception_vector = CPU_VECTOR_UNKNOWN;
    st->exception_has_error = 0;
}

int kvm_exit_serve(struct engine_vcpu *v, struct err *e)
{
    switch (v->run->exit_reason) {
    case KVM_EXIT_IO:
        exit_io(v);
        return 0;
    case KVM_EXIT_MMIO:
        exit_mmio(v);
        return 0;
    case KVM_EXIT_X86_RDMSR:
        kvm_msr_exit_read(v);
        v->is_incomplete = true;
        return 0;
    case KVM_EXIT_X86_WRMSR:
        kvm_msr_exit_write(v);
        v->is_incomplete = true;
        return 0;
    case KVM_EXIT_HLT:
        v->soft.st.run_state = CPU_HALTED;
        v->stats.counts[KVM_COUNT_HALT]++;
        return 0;
    case KVM_EXIT_IRQ_WINDOW_OPEN:
        v->stats.counts[KVM_COUNT_WINDOW]++;
        return 0;
    case KVM_EXIT_SET_TPR: /* run->cr8 holds it */
        v->stats.counts[KVM_COUNT_TPR]++;
        return 0;
    case KVM_EXIT_IOAPIC_EOI:
        v->stats.counts[KVM_COUNT_EOI]++;
        return kvm_apic_eoi(v, v->run->eoi.vector, e);
    case KVM_EXIT_INTR:
        return 0;
    case KVM_EXIT_SHUTDOWN:
        exit_shutdown(v);
        return 0;
    case KVM_EXIT_INTERNAL_ERROR:
        return exit_failure(v, e);
    case KVM_EXIT_FAIL_ENTRY: /* a state that the processor refuses to enter */
    case KVM_EXIT_UNKNOWN:
    case KVM_EXIT_EXCEPTION:
        v->stats.counts[KVM_COUNT_BAD_ENTRY]++;
        return kvm_recover(v, false, e);
    default:
        return err_set(e, 0, "KVM_RUN: exit %u, which doppel does not know", v->run->exit_reason);
    }
}
