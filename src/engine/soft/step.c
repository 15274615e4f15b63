/*
 * step.c - one instruction with all that the manuals put at its boundaries
 *
 * Order at a boundary: traps of the instruction before, NMI, external interrupts, instruction
 * breakpoints, fetch (SDM vol. 3, table 6-2). Shadows and RF are taken down before the
 * instruction executes and come back when it faults: what it sets itself (STI, MOV SS, IRET) is
 * what the next boundary sees.
 *
 * Specification: SDM vol. 3, 6.8, 6.9, 17.3.1.
 */
#include <Zydis/Zydis.h>

#include "engine/soft/debug.h"
#include "engine/soft/fpu_state.h"

/* Deliver what is due before the next instruction, apart from interrupts. */
static bool step_pending(struct soft_vcpu *v)
{
    struct cpu_state *st = &v->st;

    if (UNLIKELY(st->is_exception_pending)) {
        st->is_exception_pending = 0;
        v->next_rip = st->rip;
        soft_raise(v, st->exception_vector);
        v->fault.has_error = st->exception_has_error;
        v->fault.error = st->exception_error;
        v->fault.cr2 = st->cr2; /* written when the fault was taken up */
        soft_deliver_fault(v);
        return true;
    }
    if (UNLIKELY(st->pending_dbg != 0 && !(st->shadow & SHADOW_MOV_SS))) {
        uint64_t dr6 = st->pending_dbg;
        st->pending_dbg = 0;
        st->run_state = CPU_RUNNING; /* HLT has completed when it is single-stepped */
        v->next_rip = st->rip;
        soft_raise_debug(v, dr6, true);
        soft_deliver_fault(v);
        return true;
    }
    return false;
}

/* An instruction breakpoint at CS:rip: a fault, and RF lets the instruction pass. */
static bool step_breakpoint(struct soft_vcpu *v)
{
    const struct cpu_state *st = &v->st;
    gva_t addr = st->rip;
    uint64_t hits;

    if (LIKELY(!soft_debug_is_armed(v)) || (st->rflags & RFLAGS_RF) || (st->shadow & SHADOW_MOV_SS))
        return false;
    if (!cpu_is_64bit(st))
        addr = (uint32_t)(st->seg[CPU_CS].base + addr);
    hits = soft_debug_match_code(v, addr);
    if (hits == 0)
        return false;
    v->next_rip = st->rip;
    soft_raise_debug(v, hits, false);
    soft_deliver_fault(v);
    return true;
}

/* Instructions that transfer control whenever they complete. */
static bool op_is_branch(uint16_t op)
{
    switch (op) {
    case ZYDIS_MNEMONIC_CALL:
    case ZYDIS_MNEMONIC_JMP:
    case ZYDIS_MNEMONIC_RET:
    case ZYDIS_MNEMONIC_IRET:
    case ZYDIS_MNEMONIC_IRETD:
    case ZYDIS_MNEMONIC_IRETQ:
    case ZYDIS_MNEMONIC_SYSCALL:
    case ZYDIS_MNEMONIC_SYSRET:
    case ZYDIS_MNEMONIC_SYSENTER:
    case ZYDIS_MNEMONIC_SYSEXIT:
        return true;
    default:
        return false;
    }
}

/* Does an instruction that began with TF set trap? With DEBUGCTL.BTF, branches alone do. */
static bool is_stepped(const struct soft_vcpu *v, uint16_t op)
{
    return !(v->st.debugctl & DEBUGCTL_BTF) || v->has_jumped || op_is_branch(op);
}

/* Traps after an instruction that has completed. */
static void step_trap(struct soft_vcpu *v, bool is_single_step, uint16_t op)
{
    struct cpu_state *st = &v->st;

    /* SYSCALL masks TF before it completes; every other instruction goes by TF at its start */
    if (is_single_step && (op != ZYDIS_MNEMONIC_SYSCALL || (st->rflags & RFLAGS_TF)) &&
        !(st->shadow & SHADOW_MOV_SS))
        st->pending_dbg |= DR6_BS;
    step_pending(v);
}

static inline void step_update_ac(struct soft_vcpu *v)
{
    const struct cpu_state *st = &v->st;

    v->is_ac_set = (st->rflags & RFLAGS_AC) && (st->cr0 & CR0_AM) && cpu_cpl(st) == 3;
}

void soft_step(struct soft_vcpu *v)
{
    struct cpu_state *st = &v->st;
    uint64_t start = st->rip;
    uint64_t flags = st->rflags & (RFLAGS_TF | RFLAGS_RF);
    uint64_t pending = st->pending_dbg;
    uint8_t shadow = st->shadow;
    const struct insn *in;
    uint16_t op;

    if (step_pending(v) || step_breakpoint(v))
        return;
    step_update_ac(v); /* is_mode_stale may have been taken down by the engine */
    v->next_rip = start;
    if (UNLIKELY(soft_fetch(v, &in))) {
        soft_deliver_fault(v);
        return;
    }
    op = in->op;
    st->shadow = 0;
    st->rflags &= ~RFLAGS_RF;
    v->has_jumped = false;
    if (UNLIKELY(soft_exec(v, in))) {
        /* as at the start, for the frame; hits of data breakpoints come again at the restart */
        if (!v->fault.is_software && !v->fault.is_trap) {
            st->rflags |= flags & RFLAGS_RF;
            st->pending_dbg = pending;
            st->shadow = shadow;
        }
        soft_deliver_fault(v);
    } else {
        if (UNLIKELY((flags & RFLAGS_TF) || st->pending_dbg != 0))
            step_trap(v, (flags & RFLAGS_TF) && is_stepped(v, op), op);
    }
    if (UNLIKELY(st->is_ferr))
        soft_ferr_update(v);
    if (v->is_mode_stale)
        step_update_ac(v);
}

bool soft_take_interrupts(struct soft_vcpu *v)
{
    struct cpu_state *st = &v->st;
    uint32_t pins = atomic_load_explicit(&v->pins->bits, memory_order_acquire);
    int vector;

    if (UNLIKELY(st->run_state >= CPU_WAIT_SIPI))
        return false;
    if (step_pending(v))
        return true;
    if (LIKELY(!(pins & (PIN_NMI | PIN_INTR))) || (st->shadow & SHADOW_MOV_SS))
        return false;
    if ((pins & PIN_NMI) && !st->is_nmi_blocked) {
        atomic_fetch_and_explicit(&v->pins->bits, ~PIN_NMI, memory_order_acq_rel);
        st->run_state = CPU_RUNNING;
        soft_deliver_nmi(v);
        return true;
    }
    if (!(pins & PIN_INTR) || !(st->rflags & RFLAGS_IF) || (st->shadow & SHADOW_STI))
        return false;
    vector = soft_host_interrupt_acknowledge(v);
    if (vector < 0)
        return false;
    st->run_state = CPU_RUNNING;
    soft_deliver_interrupt(v, (unsigned)vector);
    return true;
}
