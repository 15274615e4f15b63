/*
 * hypercall.c - what guests ask of the machine by VMCALL or VMMCALL
 *
 * KVM answers these by itself; so this serves the engines that execute instructions in doppel, and
 * does as KVM does. What the CPU model does not offer is not there.
 *
 * Spec: Linux Documentation/virt/kvm/x86/hypercalls.rst.
 */
#include <sched.h>

#include "base/bits.h"
#include "cpu/hypercall.h"
#include "dev/irqchip/apic_bus.h"
#include "vm/machine.h"

/* The processor with this APIC ID, or NULL. */
static struct vcpu *hypercall_find_cpu(struct vm *vm, uint64_t apic_id)
{
    return apic_id < vm->vcpu_count ? &vm->vcpus[apic_id] : NULL;
}

static int64_t hypercall_kick_cpu(struct vm *vm, uint64_t apic_id)
{
    struct vcpu *target = hypercall_find_cpu(vm, apic_id);

    if (target != NULL)
        vcpu_unhalt(target);
    return 0;
}

/* As many bits as registers have, the first of them APIC ID `first`. Returns how many took it. */
static int64_t hypercall_send_to(struct vm *vm, uint64_t bitmap, unsigned width, uint64_t first,
                                 struct apic_message *msg)
{
    int64_t count = 0;

    for (unsigned i = 0; i < width && first + i < vm->vcpu_count; i++) {
        if (!(bitmap >> i & 1))
            continue;
        msg->dest = (uint32_t)(first + i);
        count += apic_bus_deliver(vm->board.apic_bus, msg);
    }
    return count;
}

static int64_t hypercall_send_ipi(struct vm *vm, const struct cpu_hypercall *call)
{
    unsigned width = call->is_64bit ? 64 : 32;
    uint64_t first = (uint32_t)call->arg[2], icr = call->arg[3];
    struct apic_message msg = apic_message_from_icr(icr);

    if (msg.is_logical || ICR_SHORTHAND(icr) != ICR_DEST_FIELD)
        return -HYPERCALL_EINVAL;
    if (msg.mode == APIC_EXTINT || msg.mode == APIC_SMI) /* KVM's local APICs take none */
        return 0;
    return hypercall_send_to(vm, call->arg[0], width, first, &msg) +
           hypercall_send_to(vm, call->arg[1], width, (uint32_t)(first + width), &msg);
}

int64_t hypercall_serve(struct vcpu *vcpu, const struct cpu_hypercall *call)
{
    struct vm *vm = vcpu->vm;
    const struct cpu_model *model = &vm->model;

    switch (call->number) {
    case HYPERCALL_VAPIC_POLL_IRQ: /* a reason to look for interrupts, no more */
        return 0;
    case HYPERCALL_KICK_CPU:
        if (!cpu_model_has(model, CPU_FEATURE_KVM_PV_UNHALT))
            break;
        return hypercall_kick_cpu(vm, (uint32_t)call->arg[1]);
    case HYPERCALL_SEND_IPI:
        if (!cpu_model_has(model, CPU_FEATURE_KVM_PV_IPI))
            break;
        return hypercall_send_ipi(vm, call);
    case HYPERCALL_SCHED_YIELD:
        if (!cpu_model_has(model, CPU_FEATURE_KVM_PV_SCHED_YIELD))
            break;
        /* a process cannot say to whom */
        if (hypercall_find_cpu(vm, call->arg[0]) != NULL && call->arg[0] != vcpu->index)
            sched_yield();
        return 0;
    default:
        break;
    }
    return -HYPERCALL_ENOSYS;
}
