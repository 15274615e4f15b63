/*
 * pause.c - the machine stands still, and guest time with it
 *
 * Invariant: guest TSC and guest time stop and go on together, so that what one of them was
 * converted to the other (TSC deadlines, kvmclock) stays true.
 *
 * Spec: Linux Documentation/virt/kvm/x86/msr.rst (PVCLOCK_GUEST_STOPPED).
 */
#include <time.h>

#include "dev/platform/kvmclock.h"
#include "dev/timer/mc146818.h"
#include "os/tsc.h"
#include "os/vclock.h"
#include "vm/machine.h"

/* Time in which the host itself slept is not the guest's either, but the real-time clock's. */
static uint64_t pause_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_BOOTTIME, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

static int pause_check(struct vm *vm, const char *what, struct err *e)
{
    if (vm_is_ended(vm))
        return err_set(e, 0, "there is nothing to %s: the machine has ended", what);
    return 0;
}

int vm_pause(struct vm *vm, struct err *e)
{
    int ret = pause_check(vm, "pause", e);

    if (ret != 0 || vm->is_paused)
        return ret;
    vm_hold(vm);
    ret = apics_take_back(vm, e);
    if (ret != 0) {
        vm_release(vm);
        return ret;
    }
    vclock_pause(vm->board.clock);
    vm->paused_tsc = tsc_read();
    vm->paused_ns = pause_now_ns();
    vm->is_paused = true;
    return 0;
}

/* The guest's TSC goes on from where it stood. */
static void pause_skip_tsc(struct vm *vm, uint64_t ticks)
{
    vm->tsc_base += ticks;
    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        struct vcpu *vcpu = &vm->vcpus[i];
        vm->ops->pull(vcpu->engine, &vcpu->state, CPU_GROUP_TSC);
        vcpu->state.tsc_offset -= ticks;
        vm->ops->push(vcpu->engine, &vcpu->state, CPU_GROUP_TSC);
    }
}

int vm_resume(struct vm *vm, struct err *e)
{
    int ret = pause_check(vm, "resume", e);

    if (ret != 0 || !vm->is_paused)
        return ret;
    vclock_resume(vm->board.clock);
    pause_skip_tsc(vm, tsc_read() - vm->paused_tsc);
    kvmclock_rebase(vm->board.kvmclock, true);
    mc146818_skip(vm->board.rtc, pause_now_ns() - vm->paused_ns);
    vm->is_paused = false;
    vm_release(vm);
    return 0;
}

bool vm_is_paused(const struct vm *vm)
{
    return vm->is_paused;
}
