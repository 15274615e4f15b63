/*
 * apics.c - the machine's local APICs, lent to an engine that has its own
 *
 * One machine, one set of local APICs: the registers are either in the board's or in the engine's,
 * never in both. They are the engine's while the guest runs, and come back for everything that
 * concerns the machine as a whole: a change of engine, a pause, a reset. Who sends a message
 * meanwhile waits (apic_bus_hold), so none is lost and none delivered twice.
 *
 * Main loop's thread, with all vCPUs parked, but for the messages.
 */
#include "base/bits.h"
#include "base/log.h"
#include "dev/irqchip/apic_bus.h"
#include "dev/irqchip/ioapic.h"
#include "dev/irqchip/lapic.h"
#include "dev/platform/steal_time.h"
#include "os/vclock.h"
#include "vm/machine.h"

#define APIC_MSI_ADDRESS UINT64_C(0xfee00000)
#define APIC_MSI_DEST_SHIFT 12

_Static_assert(ENGINE_EOI_MESSAGES == IOAPIC_PIN_COUNT, "one for each input");

static bool apics_are_wanted(const struct vm *vm)
{
    return vm->ops->has_apics != NULL && vm->ops->has_apics(vm->engine);
}

bool apics_can_be_lent(const struct vm *vm)
{
    if (vm->config.kvm_irqchip != VM_IRQCHIP_AUTO)
        return vm->config.kvm_irqchip == VM_IRQCHIP_ON;
    for (unsigned i = 0; i < vm->engine_count; i++)
        if (vm->engines[i]->has_apics != NULL)
            return true;
    return false;
}

/* ---- messages, on any thread ---- */

static void apics_failed(struct vm *vm, const struct err *e)
{
    struct vm_end end = {.cause = VM_END_ERROR, .error = *e};

    err_prefix(&end.error, "deliver an interrupt");
    vm_end_with(vm, &end);
}

/* To the engine's local APICs. Returns whether one took it. */
static bool apics_send(struct vm *vm, const struct cpu_msi *msi)
{
    struct err e;
    int ret;

    pthread_rwlock_rdlock(&vm->engine_lock);
    ret = vm->ops->send(vm->engine, msi, &e);
    pthread_rwlock_unlock(&vm->engine_lock);
    if (ret < 0)
        apics_failed(vm, &e);
    return ret > 0;
}

static bool apics_deliver(void *ctx, const struct apic_message *msg)
{
    struct cpu_msi msi = apic_message_to_msi(msg);

    if (msg->mode == APIC_SMI || msg->mode == APIC_EXTINT) {
        log_guest("an interrupt message of mode %u is dropped", msg->mode);
        return false;
    }
    return apics_send(ctx, &msi);
}

static void apics_watch(void *ctx, const struct cpu_msi messages[IOAPIC_PIN_COUNT])
{
    struct vm *vm = ctx;
    struct err e;
    int ret;

    pthread_rwlock_rdlock(&vm->engine_lock);
    ret = vm->ops->watch_eoi(vm->engine, messages, &e);
    pthread_rwlock_unlock(&vm->engine_lock);
    if (ret < 0)
        apics_failed(vm, &e);
}

void apics_unhalt(struct vcpu *vcpu)
{
    struct cpu_msi msi = {.address = APIC_MSI_ADDRESS | vcpu->index << APIC_MSI_DEST_SHIFT,
                          .data = CPU_MSI_UNHALT};

    apics_send(vcpu->vm, &msi);
}

/* ---- steal time ---- */

/*
 * Interrupts are where the machine passes by to tell the guest how long it was kept waiting; those
 * of a local APIC in the kernel it does not see. So it looks from time to time, and seldom as long
 * as nobody waits: an idle guest is to cost nothing.
 */
#define STEAL_INTERVAL_MIN_NS (UINT64_C(50) * 1000 * 1000)
#define STEAL_INTERVAL_MAX_NS NS_PER_SEC

static void apics_arm_steal(struct vm *vm, uint64_t interval_ns)
{
    vm->steal_interval_ns = interval_ns;
    vtimer_arm(&vm->steal_timer, vclock_now_ns(vm->board.clock) + interval_ns);
}

static void apics_update_steal(void *ctx)
{
    struct vm *vm = ctx;
    bool is_new = false;

    for (unsigned i = 0; i < vm->vcpu_count; i++)
        is_new |= steal_time_update(vm->board.steal_time, i);
    apics_arm_steal(vm, is_new ? STEAL_INTERVAL_MIN_NS
                               : MIN(vm->steal_interval_ns * 2, STEAL_INTERVAL_MAX_NS));
}

static void apics_begin_steal(struct vm *vm)
{
    if (!cpu_model_has(&vm->model, CPU_FEATURE_KVM_STEAL_TIME))
        return;
    if (vm->steal_timer.clock == NULL)
        vtimer_init(&vm->steal_timer, vm->board.clock, apics_update_steal, vm);
    apics_arm_steal(vm, STEAL_INTERVAL_MIN_NS);
}

static void apics_end_steal(struct vm *vm)
{
    if (vm->steal_timer.clock != NULL)
        vtimer_cancel(&vm->steal_timer);
}

/* ---- to and fro ---- */

/* Of what end a HLT early, nothing is shown by an engine, nor can it be given to it as a state. */
static void apics_push_kicks(struct vm *vm)
{
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        if (atomic_exchange(&vm->vcpus[i].is_kicked, false))
            apics_unhalt(&vm->vcpus[i]);
}

/*
 * A kick that came before its HLT may be among what was not shown: without it the guest would sleep
 * for ever. Those who can be kicked expect a HLT to be over for no reason.
 */
static void apics_assume_kicks(struct vm *vm)
{
    if (!cpu_model_has(&vm->model, CPU_FEATURE_KVM_PV_UNHALT))
        return;
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        if (vm->vcpus[i].state.run_state == CPU_RUNNING)
            atomic_store(&vm->vcpus[i].is_kicked, true);
}

static int apics_push(struct vm *vm, struct err *e)
{
    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        struct vcpu *vcpu = &vm->vcpus[i];
        vcpu->apic.poll_control = vcpu->poll_control;
        int ret = vm->ops->push_apic(vcpu->engine, &vcpu->apic, e);
        if (ret != 0)
            return ret;
    }
    return 0;
}

int apics_lend(struct vm *vm, struct err *e)
{
    int ret;

    if (vm->are_apics_lent || !apics_are_wanted(vm))
        return 0;
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        vcpu_take_startup(&vm->vcpus[i]);
    apic_bus_hold(vm->board.apic_bus);
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        lapic_lend(vm->vcpus[i].lapic, &vm->vcpus[i].apic);
    ret = apics_push(vm, e);
    for (unsigned i = 0; ret != 0 && i < vm->vcpu_count; i++)
        lapic_take_back(vm->vcpus[i].lapic, &vm->vcpus[i].apic);
    apic_bus_release(vm->board.apic_bus, ret == 0 ? apics_deliver : NULL, vm);
    if (ret != 0)
        return ret;
    vm->are_apics_lent = true;
    apics_push_kicks(vm);
    apics_begin_steal(vm);
    ioapic_watch(vm->board.ioapic, apics_watch, vm);
    return 0;
}

/* What waits for a start-up is asked for first: the answer may change all the rest. */
static int apics_pull(struct vm *vm, struct err *e)
{
    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        struct vcpu *vcpu = &vm->vcpus[i];
        int ret;
        vm->ops->pull(vcpu->engine, &vcpu->state, CPU_GROUP_EVENT);
        vcpu->is_waiting_sipi = vcpu->state.run_state == CPU_WAIT_SIPI;
        ret = vm->ops->pull_apic(vcpu->engine, &vcpu->apic, e);
        if (ret != 0)
            return ret;
        vcpu->poll_control = vcpu->apic.poll_control;
    }
    return 0;
}

int apics_take_back(struct vm *vm, struct err *e)
{
    int ret;

    if (!vm->are_apics_lent)
        return 0;
    apic_bus_hold(vm->board.apic_bus);
    ret = apics_pull(vm, e);
    for (unsigned i = 0; ret == 0 && i < vm->vcpu_count; i++)
        lapic_take_back(vm->vcpus[i].lapic, &vm->vcpus[i].apic);
    apic_bus_release(vm->board.apic_bus, ret == 0 ? NULL : apics_deliver, vm);
    if (ret != 0)
        return ret;
    vm->are_apics_lent = false;
    apics_assume_kicks(vm);
    apics_end_steal(vm);
    ioapic_watch(vm->board.ioapic, NULL, NULL);
    return 0;
}

void apics_abandon(struct vm *vm)
{
    if (!vm->are_apics_lent)
        return;
    apics_end_steal(vm);
    ioapic_watch(vm->board.ioapic, NULL, NULL);
    apic_bus_hold(vm->board.apic_bus);
    apic_bus_release(vm->board.apic_bus, NULL, NULL);
    vm->are_apics_lent = false;
}
