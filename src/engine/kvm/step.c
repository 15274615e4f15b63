/*
 * step.c - the soft vCPU of a KVM vCPU executes some instructions itself
 *
 * Compiled like engine/soft: the guest's vector state may be in the host's registers here.
 *
 * Invariant: outside of these functions it is not, and the soft TLB holds nothing that anybody
 * relies on: the guest changes its page tables under KVM without a word.
 */
#include <Zydis/Zydis.h>

#include "engine/kvm/step.h"

static void step_enter(struct soft_vcpu *v, const struct cpu_model *model)
{
    __atomic_store_n(&v->go, 1, __ATOMIC_SEQ_CST);
    soft_guest_enter(v);
    v->model = model;
    soft_tlb_flush_all(v);
    v->is_mode_stale = 1;
}

static void step_leave(struct soft_vcpu *v)
{
    if (v->is_fpu_live)
        soft_fpu_save(v);
    v->model = v->engine->model;
    soft_guest_leave(v);
}

/* What the guest's own model decides is left to KVM. */
static bool step_is_cpuid(struct soft_vcpu *v)
{
    const struct insn *in;

    return soft_fetch(v, &in) == 0 && in->op == ZYDIS_MNEMONIC_CPUID;
}

void kvm_step(struct soft_vcpu *v, const struct cpu_model *model, unsigned count)
{
    step_enter(v, model);
    do {
        soft_step(v);
        count--;
    } while (count != 0 && v->st.run_state == CPU_RUNNING &&
             __atomic_load_n(&v->go, __ATOMIC_RELAXED) &&
             atomic_load_explicit(&v->pins->bits, memory_order_relaxed) == 0 && !step_is_cpuid(v));
    step_leave(v);
}

/* CPUID answers for the guest's model, whatever the processor that stands in has. */
static void step_one(struct soft_vcpu *v, const struct cpu_model *model)
{
    if (step_is_cpuid(v))
        v->model = v->engine->model;
    soft_step(v);
    v->model = model;
}

/* Wake-ups are not lost: go is set before the pins are read, as in interp. */
void kvm_step_guest(struct soft_vcpu *v, const struct cpu_model *model)
{
    step_enter(v, model);
    for (;;) {
        __atomic_store_n(&v->go, 1, __ATOMIC_SEQ_CST);
        soft_guest_yield(v);
        if (atomic_load(&v->pins->bits) & PIN_LEAVE)
            break;
        soft_take_interrupts(v);
        if (v->st.run_state != CPU_RUNNING)
            break;
        while (__atomic_load_n(&v->go, __ATOMIC_RELAXED) && v->st.run_state == CPU_RUNNING) {
            step_one(v, model);
            if (atomic_load_explicit(&v->pins->bits, memory_order_relaxed) != 0)
                soft_take_interrupts(v);
        }
    }
    step_leave(v);
}

void kvm_step_interrupt(struct soft_vcpu *v, const struct cpu_model *model, unsigned vector)
{
    step_enter(v, model);
    soft_deliver_interrupt(v, vector);
    step_leave(v);
}

unsigned kvm_step_peek(struct soft_vcpu *v, const struct cpu_model *model, uint8_t bytes[15])
{
    const struct insn *in;
    unsigned length = 0;

    step_enter(v, model);
    if (soft_fetch(v, &in) == 0) {
        length = in->len;
        soft_copy(bytes, in->bytes, length);
    }
    step_leave(v);
    return length;
}
