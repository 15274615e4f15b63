/*
 * switch.c - a running machine goes on on another engine
 *
 * Whatever takes time is done with the guest running: the new engine is opened, given the RAM and
 * its vCPUs before the guest stops, and the old one closed after it goes on. In between only
 * registers move. Outside of `run` no engine keeps any state of the guest that struct cpu_state
 * does not carry, guest time goes on, and interrupts stay where they are, in the machine's
 * interrupt controllers and pins; so nothing else has to move.
 *
 * Until the new engine has said that it can run what it was given, the machine stays on the old
 * one.
 */

#include "base/clock.h"
#include "base/log.h"
#include "base/stats.h"
#include "os/loop.h"
#include "os/vclock.h"
#include "vm/machine.h"

/*
 * With an engine that does not count instructions, a storm's change comes after the time that as
 * many take on a fast processor, and not so soon that the guest executes none.
 */
#define STORM_NS_MIN UINT64_C(100000)

/* ---- the registers ---- */

/* Does an exchange with this vCPU, of this engine, leave anything to be desired? */
static int switch_sync(const struct engine_ops *ops, struct engine_vcpu *vcpu, struct err *e)
{
    return ops->sync != NULL ? ops->sync(vcpu, e) : 0;
}

/* All vCPUs are parked. On failure the machine can go on where it was. */
static int switch_move(struct vm *vm, const struct vm_engine *to, struct err *e)
{
    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        struct vcpu *vcpu = &vm->vcpus[i];
        int ret;

        vm->ops->pull(vcpu->engine, &vcpu->state, CPU_GROUP_ALL);
        ret = switch_sync(vm->ops, vcpu->engine, e);
        if (ret != 0)
            return err_prefix(e, "take CPU %u from %s", i, vm->ops->name);
        to->ops->push(to->vcpus[i], &vcpu->state, CPU_GROUP_ALL);
        ret = switch_sync(to->ops, to->vcpus[i], e);
        if (ret != 0)
            return err_prefix(e, "give CPU %u to %s", i, to->ops->name);
    }
    return 0;
}

void switch_report_stats(const struct vm *vm, struct stats_sink *sink)
{
    const struct vm_switches *s = &vm->switches;

    if (s->count == 0)
        return;
    stats_begin(sink, "machine", -1);
    stats_put_count(sink, "engine_changes", "engine changes", s->count);
    stats_put_ms(sink, "engine_changes_stopped_ms", "  ms that the guest stood still",
                 (double)s->stopped_ns / 1e6);
    stats_put_ms(sink, "engine_changes_longest_ms", "  of them at once, at most",
                 (double)s->stopped_max_ns / 1e6);
}

/* ---- the change ---- */

static int switch_check(struct vm *vm, const struct engine_ops *ops, struct err *e)
{
    struct cpu_model_limit limit;
    int ret;

    if (vm_is_ended(vm))
        return err_set(e, 0, "the machine has ended");
    if (ops->limit_model == NULL)
        return 0;
    cpu_model_limit_init(&limit);
    ret = engines_limit_model(vm, ops, &limit, e);
    if (ret == 0)
        ret = cpu_model_check_limit(&vm->model, &limit, e);
    if (ret != 0 && vm->config.engines == NULL)
        err_prefix(e, "the machine was not made for %s (start it with --engines %s,%s)", ops->name,
                   vm->ops->name, ops->name);
    return ret;
}

/* To an engine other than the present one. */
static int switch_now(struct vm *vm, const struct engine_ops *ops, struct vm_switch *done,
                      struct err *e)
{
    uint64_t begin = clock_now_ns(), stop, go;
    struct vm_engine engine;
    int ret = switch_check(vm, ops, e);

    if (ret == 0)
        ret = engines_open(vm, ops, &engine, e);
    if (ret != 0)
        return ret;
    ret = bells_prepare(vm, &engine, e);
    if (ret != 0) {
        engines_close(vm, &engine);
        return ret;
    }
    stop = clock_now_ns();
    vm_hold(vm);
    ret = apics_take_back(vm, e);
    if (ret == 0)
        ret = switch_move(vm, &engine, e);
    if (ret == 0) {
        engines_exchange(vm, &engine);
        bells_follow(vm);
    }
    vm_release(vm);
    go = clock_now_ns();
    if (ret == 0) {
        totals_keep(vm, &engine);
        *done = (struct vm_switch){engine.ops->name, ops->name, stop - begin, go - stop};
        vm->switches.count++;
        vm->switches.stopped_ns += go - stop;
        vm->switches.stopped_max_ns = MAX(vm->switches.stopped_max_ns, go - stop);
    }
    engines_close(vm, &engine);
    return ret;
}

int switch_to_ops(struct vm *vm, const struct engine_ops *ops, struct vm_switch *done,
                  struct err *e)
{
    struct vm_switch unused;
    int ret;

    if (done == NULL)
        done = &unused;
    if (ops == vm->ops) {
        *done = (struct vm_switch){ops->name, ops->name, 0, 0};
        return 0;
    }
    ret = switch_now(vm, ops, done, e);
    if (ret != 0)
        return err_prefix(e, "change the engine from %s to %s", vm->ops->name, ops->name);
    log_info("engine: %s instead of %s; the guest stood still for %.3f ms (prepared in %.3f ms)",
             done->to, done->from, (double)done->stopped_ns / 1e6, (double)done->prepare_ns / 1e6);
    return 0;
}

int vm_switch_engine(struct vm *vm, const char *engine, struct vm_switch *done, struct err *e)
{
    const struct engine_ops *ops = engines_find(engine, e);

    return ops != NULL ? switch_to_ops(vm, ops, done, e) : -e->code;
}

/* ---- a storm of changes, for tests ---- */

static const struct engine_ops *storm_next(const struct vm *vm)
{
    for (unsigned i = 0; i < vm->engine_count; i++)
        if (vm->engines[i] == vm->ops)
            return vm->engines[(i + 1) % vm->engine_count];
    return vm->engines[0];
}

static void storm_arm(struct vm *vm)
{
    uint64_t wait_ns = MIN(MAX(vm->config.switch_storm, STORM_NS_MIN), NS_PER_SEC);

    if (!vm->ops->has_slices)
        vtimer_arm(&vm->storm_timer, vclock_now_ns(vm->board.clock) + wait_ns);
}

static void storm_step(void *ctx)
{
    struct vm *vm = ctx;
    struct vm_end end = {.cause = VM_END_ERROR};
    struct vm_switch done;
    const struct engine_ops *next = storm_next(vm);

    pthread_mutex_lock(&vm->lock);
    vm->is_storm_due = false;
    pthread_mutex_unlock(&vm->lock);
    if (vm_is_ended(vm))
        return;
    if (next != vm->ops && switch_now(vm, next, &done, &end.error) != 0) {
        err_prefix(&end.error, "--switch-storm");
        vm_end_with(vm, &end);
        return;
    }
    vm_release(vm);
    storm_arm(vm);
}

void switch_storm(struct vcpu *vcpu)
{
    struct vm *vm = vcpu->vm;
    bool is_first;

    pthread_mutex_lock(&vm->lock);
    is_first = !vm->is_storm_due;
    vm->is_storm_due = true;
    pthread_mutex_unlock(&vm->lock);
    vm_stop_running(vm);
    if (is_first)
        loop_post(vm->config.loop, storm_step, vm);
}

void switch_storm_begin(struct vm *vm)
{
    vtimer_init(&vm->storm_timer, vm->board.clock, storm_step, vm);
    if (vm->config.switch_storm != 0)
        storm_arm(vm);
}

void switch_storm_end(struct vm *vm)
{
    if (vm->storm_timer.clock != NULL)
        vtimer_cancel(&vm->storm_timer);
}
