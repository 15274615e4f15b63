/*
 * interp.c - the engine that steps one instruction at a time
 *
 * The reference for bt: it runs the same semantic functions and nothing else.
 *
 * Wake-ups are not lost: whoever wants the vCPU's attention sets a pin and then clears `go`;
 * the loop sets `go` and then reads the pins. Either the pin is seen, or `go` is 0 again.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/stats.h"
#include "engine/engine.h"
#include "engine/soft/stats.h"
#include "engine/soft/vcpu.h"
#include "os/fault.h"
#include "os/tsc.h"

struct engine {
    struct soft_engine soft;
    uint64_t slice;
};

struct engine_vcpu {
    struct soft_vcpu soft; /* first: 64-byte aligned */
    uint64_t run_tsc;      /* time in `run`, host calls included */
    uint64_t slice_left;   /* instructions until ENGINE_STOP_SLICE; 0: no limit */
};

static int interp_open(const struct engine_config *config, struct engine **out, struct err *e)
{
    struct engine *engine = calloc(1, sizeof(*engine));
    int ret;

    if (engine == NULL)
        return err_set(e, ENOMEM, "allocate the interpreter");
    ret = fault_init(e);
    if (ret == 0)
        ret = soft_engine_init(&engine->soft, config, e);
    if (ret != 0) {
        free(engine);
        return ret;
    }
    engine->slice = config->slice;
    *out = engine;
    return 0;
}

static void interp_close(struct engine *engine)
{
    if (engine == NULL)
        return;
    soft_engine_fini(&engine->soft);
    free(engine);
}

static int interp_attach(struct engine *engine, unsigned index, void *cpu, struct engine_pins *pins,
                         struct engine_vcpu **out, struct err *e)
{
    struct engine_vcpu *vcpu = aligned_alloc(64, align_up(sizeof(*vcpu), 64));
    int ret;

    if (vcpu == NULL)
        return err_set(e, ENOMEM, "allocate CPU %u of the interpreter", index);
    memset(vcpu, 0, sizeof(*vcpu));
    ret = soft_vcpu_init(&vcpu->soft, &engine->soft, index, cpu, pins, e);
    if (ret != 0) {
        free(vcpu);
        return ret;
    }
    vcpu->slice_left = engine->slice;
    *out = vcpu;
    return 0;
}

static void interp_detach(struct engine_vcpu *vcpu)
{
    if (vcpu == NULL)
        return;
    soft_vcpu_fini(&vcpu->soft);
    free(vcpu);
}

static bool interp_fault_hook(void *ctx, int sig, siginfo_t *info, ucontext_t *uc)
{
    return soft_thunk_fault(ctx, sig, info, uc);
}

/* Returns true when `run` has to end, with *stop. In guest. */
static bool interp_must_stop(struct soft_vcpu *v, enum engine_stop *stop)
{
    if (v->st.run_state == CPU_SHUTDOWN) {
        *stop = ENGINE_STOP_SHUTDOWN;
        return true;
    }
    if (atomic_load(&v->pins->bits) & PIN_LEAVE) {
        *stop = ENGINE_STOP_PIN;
        return true;
    }
    soft_take_interrupts(v);
    switch (v->st.run_state) {
    case CPU_RUNNING:
        return false;
    case CPU_SHUTDOWN:
        *stop = ENGINE_STOP_SHUTDOWN;
        return true;
    default:
        *stop = ENGINE_STOP_HALT;
        return true;
    }
}

/*
 * The last instruction of a slice is executed as if somebody wanted the vCPU's attention, which
 * interrupts repeated string instructions.
 */
static void interp_slice_begin_step(struct engine_vcpu *vcpu)
{
    if (vcpu->slice_left == 1)
        __atomic_store_n(&vcpu->soft.go, 0, __ATOMIC_SEQ_CST);
}

/* Returns true when the slice is used up. What the instruction left pending stays so. */
static bool interp_slice_end_step(struct engine_vcpu *vcpu)
{
    if (--vcpu->slice_left != 0)
        return false;
    vcpu->slice_left = CONTAINER_OF(vcpu->soft.engine, struct engine, soft)->slice;
    return true;
}

static void interp_loop(struct engine_vcpu *vcpu, enum engine_stop *stop)
{
    struct soft_vcpu *v = &vcpu->soft;
    bool has_slice = vcpu->slice_left != 0;

    for (;;) {
        __atomic_store_n(&v->go, 1, __ATOMIC_SEQ_CST);
        soft_guest_yield(v);
        if (interp_must_stop(v, stop))
            return;
        while (__atomic_load_n(&v->go, __ATOMIC_RELAXED) && v->st.run_state == CPU_RUNNING) {
            if (UNLIKELY(has_slice))
                interp_slice_begin_step(vcpu);
            soft_step(v);
            if (UNLIKELY(has_slice) && interp_slice_end_step(vcpu)) {
                *stop = ENGINE_STOP_SLICE;
                return;
            }
            /* an interrupt that was masked when it arrived may be deliverable now */
            if (atomic_load_explicit(&v->pins->bits, memory_order_relaxed) != 0)
                soft_take_interrupts(v);
        }
    }
}

static int interp_run(struct engine_vcpu *vcpu, enum engine_stop *stop, struct err *e)
{
    struct soft_vcpu *v = &vcpu->soft;
    uint64_t start = tsc_read();
    int ret = fault_thread_enter(interp_fault_hook, v, e);

    if (ret != 0)
        return ret;
    soft_guest_enter(v);
    interp_loop(vcpu, stop);
    if (v->is_fpu_live)
        soft_fpu_save(v);
    soft_guest_leave(v);
    fault_thread_exit();
    vcpu->run_tsc += tsc_read() - start;
    return 0;
}

static void interp_kick(struct engine_vcpu *vcpu)
{
    __atomic_store_n(&vcpu->soft.go, 0, __ATOMIC_SEQ_CST);
}

static void interp_pull(struct engine_vcpu *vcpu, struct cpu_state *out, uint32_t groups)
{
    soft_vcpu_pull(&vcpu->soft, out, groups);
}

static void interp_push(struct engine_vcpu *vcpu, const struct cpu_state *in, uint32_t groups)
{
    soft_vcpu_push(&vcpu->soft, in, groups);
}

static int interp_add_ram(struct engine *engine, gpa_t addr, void *host, uint64_t size, bool is_rom,
                          struct err *e)
{
    return soft_engine_add_ram(&engine->soft, addr, host, size, is_rom, e);
}

static int interp_remove_ram(struct engine *engine, gpa_t addr, struct err *e)
{
    return soft_engine_remove_ram(&engine->soft, addr, e);
}

/* Decoded instructions are cached by their bytes, so changed code needs no notice. */
static void interp_code_changed(struct engine *engine, gpa_t addr, uint64_t size)
{
}

static void interp_report_stats(struct engine *engine, struct stats_sink *sink)
{
    double tsc_per_ms =
        engine->soft.model->tsc_hz != 0 ? (double)engine->soft.model->tsc_hz / 1000 : 1e6;

    for (unsigned i = 0; i < engine->soft.vcpu_count; i++) {
        const struct soft_vcpu *v = engine->soft.vcpus[i];
        const struct engine_vcpu *vcpu;
        if (v == NULL)
            continue;
        vcpu = CONTAINER_OF(v, struct engine_vcpu, soft);
        stats_begin(sink, "interpreter", (int)i);
        stats_put_ms(sink, "running_ms", "ms running", (double)vcpu->run_tsc / tsc_per_ms);
    }
    soft_stats_report(&engine->soft, sink);
}

const struct engine_ops engine_interp = {
    .name = "interp",
    .has_slices = true,
    .open = interp_open,
    .close = interp_close,
    .attach = interp_attach,
    .detach = interp_detach,
    .run = interp_run,
    .kick = interp_kick,
    .pull = interp_pull,
    .push = interp_push,
    .add_ram = interp_add_ram,
    .remove_ram = interp_remove_ram,
    .code_changed = interp_code_changed,
    .report_stats = interp_report_stats,
};
