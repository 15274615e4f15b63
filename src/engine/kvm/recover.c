/*
 * recover.c - going on where KVM cannot
 *
 * The soft vCPU takes over at the instruction that KVM failed on, executes it and, where failures
 * come close together, some more; then KVM goes on. Every turn executes at least one instruction
 * or delivers one event, so a guest that KVM cannot run at all still runs, at the speed of the
 * step-by-step engine; nothing loops.
 */
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "engine/kvm/kvm.h"
#include "engine/kvm/step.h"
#include "os/tsc.h"

/* A failure that comes sooner than this after the last one doubles what is stepped at a time. */
#define RECOVER_NEAR_US 50
#define RECOVER_BATCH_MAX 4096u

/* So many failures of a vCPU make one wonder what KVM this is. */
#define RECOVER_PATIENCE 16

/* Where the groups lie in struct cpu_state. */
static const struct {
    uint32_t group;
    uint16_t first, end;
} group_ranges[] = {
#define RANGE(group, from, to)                                                                     \
    {                                                                                              \
        CPU_GROUP_##group, offsetof(struct cpu_state, from), offsetof(struct cpu_state, to)        \
    }
    RANGE(GPR, gpr, seg),
    RANGE(SEG, seg, gdtr),
    RANGE(CONTROL, gdtr, xcr0),
    RANGE(XSAVE, xcr0, dr),
    RANGE(CONTROL, dr, efer),
    RANGE(MSR, efer, tsc_offset),
    RANGE(TSC, tsc_offset, run_state),
    RANGE(EVENT, run_state, xsave),
    {CPU_GROUP_XSAVE, offsetof(struct cpu_state, xsave), sizeof(struct cpu_state)},
#undef RANGE
};

/* Mark what the soft vCPU changed. */
static void note_changes(struct engine_vcpu *v)
{
    const char *now = (const char *)&v->soft.st, *old = (const char *)&v->before;

    for (unsigned i = 0; i < ARRAY_SIZE(group_ranges); i++) {
        unsigned first = group_ranges[i].first, end = group_ranges[i].end;
        if (memcmp(now + first, old + first, end - first) != 0)
            kvm_state_changed(v, group_ranges[i].group);
    }
}

/*
 * The processor underneath executes all it has, whatever the guest's CPUID says of it, and so does
 * what takes its place: KVM that interprets kernel mode shows guests more than it can do itself.
 */
static int stepping_model(struct engine *engine, const struct cpu_model **out, struct err *e)
{
    struct cpu_model *made, *expected = NULL;
    int ret;

    *out = atomic_load(&engine->stepping_model);
    if (*out != NULL)
        return 0;
    made = malloc(sizeof(*made));
    if (made == NULL)
        return err_set(e, ENOMEM, "allocate a CPU model");
    ret = cpu_model_create("host", engine->soft.model->cpu_count, engine->soft.model->tsc_hz, made,
                           e);
    if (ret != 0 || !atomic_compare_exchange_strong(&engine->stepping_model, &expected, made))
        free(made);
    *out = atomic_load(&engine->stepping_model);
    return ret;
}

/* Have all of the vCPU's state in soft.st, and what to step it with. */
static int begin_stepping(struct engine_vcpu *v, const struct cpu_model **model, struct err *e)
{
    int ret = kvm_state_fetch(v, CPU_GROUP_ALL, e);

    return ret == 0 ? stepping_model(v->engine, model, e) : ret;
}

int kvm_deliver_pending(struct engine_vcpu *v, struct err *e)
{
    struct cpu_state *st = &v->soft.st;
    const struct cpu_model *model;
    int ret = begin_stepping(v, &model, e);

    if (ret != 0)
        return ret;
    v->before = *st;
    if (v->injected_vector >= 0)
        kvm_step_interrupt(&v->soft, model, (unsigned)v->injected_vector);
    else
        kvm_step(&v->soft, model, 1);
    v->injected_vector = -1;
    note_changes(v);
    kvm_state_changed(v, CPU_GROUP_EVENT);
    return 0;
}

/* KVM that fails again and again may be one that interprets. */
static void find_out_speed(struct engine *engine)
{
    bool is_interpreted;
    struct err why;

    if (engine->has_apics || /* engine/soft could not reach them */
        atomic_exchange(&engine->is_probed, true) ||
        kvm_probe(engine->sys, &is_interpreted, &why) == 0 || !is_interpreted)
        return;
    log_info("%s: doppel's own step-by-step engine takes over from it", why.msg);
    atomic_store(&engine->is_interpreted, true);
}

/*
 * Where KVM interprets kernel mode, engine/soft is ten times as fast, and right where that KVM is
 * not: its SYSCALL goes to the kernel's entry at CPL 3. So it takes over for good.
 */
int kvm_take_over(struct engine_vcpu *v, struct err *e)
{
    struct cpu_state *st = &v->soft.st;
    uint64_t count = v->soft.stats.instructions;
    const struct cpu_model *model;
    int ret = begin_stepping(v, &model, e);

    if (ret != 0)
        return ret;
    if (v->injected_vector >= 0)
        return kvm_deliver_pending(v, e);
    v->before = *st;
    kvm_step_guest(&v->soft, model);
    note_changes(v);
    v->stats.counts[KVM_COUNT_TAKEN_OVER] += v->soft.stats.instructions - count;
    return 0;
}

static void choose_batch(struct engine_vcpu *v)
{
    /* an instruction that reaches for a local APIC in the kernel must be KVM's */
    if (v->engine->has_apics) {
        v->batch = 1;
        return;
    }
    uint64_t near = v->engine->soft.model->tsc_hz / 1000000 * RECOVER_NEAR_US;

    if (v->batch == 0 || tsc_read() - v->resume_tsc >= near)
        v->batch = MAX(v->batch / 2, 1u);
    else
        v->batch = MIN(v->batch * 2, RECOVER_BATCH_MAX);
    if (v->batch == RECOVER_BATCH_MAX && !v->has_warned) {
        v->has_warned = true;
        log_info("KVM fails on much of what CPU %u executes; doppel's own step-by-step engine "
                 "executes it instead, slowly (--stats counts it)",
                 v->soft.index);
    }
}

int kvm_recover(struct engine_vcpu *v, bool drops_ud, struct err *e)
{
    struct cpu_state *st = &v->soft.st;
    uint64_t count = v->soft.stats.instructions;
    const struct cpu_model *model;
    uint8_t bytes[15] = {0};
    int ret = begin_stepping(v, &model, e);

    if (ret != 0)
        return ret;
    if (drops_ud && st->is_exception_pending && st->exception_vector == VEC_UD)
        st->is_exception_pending = 0;
    if (v->injected_vector >= 0)
        return kvm_deliver_pending(v, e);
    if (v->stats.counts[KVM_COUNT_FAILURE] == RECOVER_PATIENCE)
        find_out_speed(v->engine);
    choose_batch(v);
    kvm_stats_count_failed(v, bytes, kvm_step_peek(&v->soft, model, bytes));
    v->before = *st;
    kvm_step(&v->soft, model, v->batch);
    note_changes(v);
    log_trace("KVM failed on CPU %u at rip 0x%" PRIx64 " (%02x %02x %02x), stepped to 0x%" PRIx64,
              v->soft.index, v->before.rip, bytes[0], bytes[1], bytes[2], st->rip);
    v->stats.counts[KVM_COUNT_STEPPED] += v->soft.stats.instructions - count;
    v->resume_tsc = tsc_read();
    return 0;
}
