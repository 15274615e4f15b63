/*
 * bells.c - writes that the kernel serves by waking a thread (ioeventfd)
 *
 * A bell is rung by writes of its very size, whatever is written. KVM knows a faster kind, without
 * a size, for which Intel's processors need not decode the instruction; but that one rings for
 * reads too, and they return nothing.
 *
 * Spec: Linux, Documentation/virt/kvm/api.rst, KVM_IOEVENTFD.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/log.h"
#include "engine/kvm/kvm.h"

static struct kvm_ioeventfd bell_request(const struct engine_bell *bell, uint32_t flags)
{
    return (struct kvm_ioeventfd){
        .addr = bell->addr, .len = bell->size, .fd = bell->fd, .flags = flags};
}

static bool bells_have(const struct engine_bell *bells, unsigned count,
                       const struct engine_bell *bell)
{
    for (unsigned i = 0; i < count; i++)
        if (bells[i].addr == bell->addr && bells[i].size == bell->size && bells[i].fd == bell->fd)
            return true;
    return false;
}

/* Take down what is not among `bells`. */
static int bells_take_down(struct engine *engine, const struct engine_bell *bells, unsigned count,
                           struct err *e)
{
    for (unsigned i = 0; i < engine->bell_count;) {
        struct engine_bell *old = &engine->bells[i];
        struct kvm_ioeventfd request = bell_request(old, KVM_IOEVENTFD_FLAG_DEASSIGN);
        int ret;

        if (bells_have(bells, count, old)) {
            i++;
            continue;
        }
        ret = KVM_CALL(engine->sys, engine->vm_fd, KVM_IOEVENTFD, &request, e);
        if (ret < 0)
            return err_prefix(e, "take a bell down from 0x%" PRIx64, old->addr);
        *old = engine->bells[--engine->bell_count];
    }
    return 0;
}

int kvm_set_bells(struct engine *engine, const struct engine_bell *bells, unsigned count,
                  struct err *e)
{
    int ret = bells_take_down(engine, bells, count, e);

    if (ret != 0)
        return ret;
    for (unsigned i = 0; i < count && engine->has_bells; i++) {
        struct kvm_ioeventfd request = bell_request(&bells[i], 0);
        if (bells_have(engine->bells, engine->bell_count, &bells[i]))
            continue;
        if (kvm_try(engine->sys, engine->vm_fd, KVM_IOEVENTFD, &request) < 0) {
            /* KVM has room for so many; writes to others leave the guest, as without */
            log_debug("KVM_IOEVENTFD at 0x%" PRIx64 ": %s", bells[i].addr, strerror(errno));
            continue;
        }
        engine->bells[engine->bell_count++] = bells[i];
    }
    return 0;
}
