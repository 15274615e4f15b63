/*
 * bells.c - registers that wake a device's thread, and the engine that may do so by itself
 *
 * The PCI bus knows where the guest can reach them. An engine that takes bells writes to their
 * eventfds within the guest's write; for any other engine that write goes to the device's window,
 * as it does for whatever else is at the address. So it makes no difference to a device which
 * engine there is, and what was rung before a change of the engine stays rung.
 *
 * Invariant: a bell under a local APIC's window is not given to the engine; the window is the
 * processor's own, and comes first. (Of local APICs that were lent the kernel thinks so too.)
 */
#include "backend/net/netdev.h"
#include "base/stats.h"
#include "dev/irqchip/lapic.h"
#include "dev/pci/pci_host.h"
#include "dev/virtio/virtio_vhost.h"
#include "dev/virtio/virtio_vsock.h"
#include "vm/machine.h"

_Static_assert(ENGINE_BELLS_MAX >= PCI_HOST_BELLS_MAX, "all that the bus has");

static bool bells_are_hidden(const struct vm *vm, const struct engine_bell *bell)
{
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        if (lapic_claims(vm->vcpus[i].lapic, bell->addr) ||
            lapic_claims(vm->vcpus[i].lapic, bell->addr + bell->size - 1))
            return true;
    return false;
}

/* With the lock held. */
static int bells_give(struct vm *vm, const struct engine_ops *ops, struct engine *engine,
                      struct err *e)
{
    struct engine_bell list[ENGINE_BELLS_MAX];
    unsigned count = 0;

    if (ops->set_bells == NULL)
        return 0;
    for (unsigned i = 0; i < vm->bells.count; i++)
        if (!bells_are_hidden(vm, &vm->bells.list[i]))
            list[count++] = vm->bells.list[i];
    return ops->set_bells(engine, list, count, e);
}

/* With the lock held. */
static void bells_give_present(struct vm *vm)
{
    struct vm_end end = {.cause = VM_END_ERROR};
    int ret = 0;

    pthread_rwlock_rdlock(&vm->engine_lock);
    if (vm->engine != NULL)
        ret = bells_give(vm, vm->ops, vm->engine, &end.error);
    pthread_rwlock_unlock(&vm->engine_lock);
    if (ret != 0)
        vm_end_with(vm, &end);
}

void bells_moved(struct vm *vm, const struct pci_host_bell *bells, unsigned count)
{
    pthread_mutex_lock(&vm->bells.lock);
    for (unsigned i = 0; i < count; i++)
        vm->bells.list[i] =
            (struct engine_bell){.addr = bells[i].addr, .size = PCI_BELL_SIZE, .fd = bells[i].fd};
    vm->bells.count = count;
    bells_give_present(vm);
    pthread_mutex_unlock(&vm->bells.lock);
}

void bells_follow(struct vm *vm)
{
    pthread_mutex_lock(&vm->bells.lock);
    if (vm->bells.count != 0)
        bells_give_present(vm);
    pthread_mutex_unlock(&vm->bells.lock);
}

int bells_prepare(struct vm *vm, const struct vm_engine *engine, struct err *e)
{
    int ret;

    pthread_mutex_lock(&vm->bells.lock);
    ret = bells_give(vm, engine->ops, engine->engine, e);
    pthread_mutex_unlock(&vm->bells.lock);
    return ret;
}

void bells_report_stats(const struct vm *vm, struct stats_sink *sink)
{
    const struct board *b = &vm->board;
    uint64_t rung = 0;

    for (unsigned i = 0; i < b->netdev_count; i++)
        rung += netdev_rung(b->netdevs[i]);
    if (b->net_vhost != NULL)
        rung += virtio_vhost_rung(b->net_vhost);
    if (b->vsock != NULL)
        rung += virtio_vsock_rung(b->vsock);
    for (unsigned i = 0; i < VM_DISKS_MAX; i++)
        if (b->disks[i].vhost != NULL)
            rung += virtio_vhost_rung(b->disks[i].vhost);
    for (unsigned i = 0; i < VM_SHARES_MAX; i++)
        if (b->shares[i].vhost != NULL)
            rung += virtio_vhost_rung(b->shares[i].vhost);
    if (rung == 0)
        return;
    stats_begin(sink, "devices", -1);
    stats_put_count(sink, "bells_rung", "notifications without an exit", rung);
}
