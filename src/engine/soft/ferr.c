/*
 * ferr.c - x87 exceptions that are reported on FERR# (CR0.NE clear)
 *
 * The instruction that finds the exception waits, restarted again and again at boundaries where
 * interrupts are taken. With IGNNE# it runs as if there were no exception, which stays noted in
 * the status word. st.is_ferr says that FERR# is asserted; engines then step, and
 * soft_ferr_update sees the exception go.
 *
 * Specification: SDM vol. 1, 8.7.2 and appendix D.2; vol. 3, 2.5 (CR0.NE).
 */
#include <Zydis/Zydis.h>

#include "engine/soft/fpu_state.h"

#define FCW_MASKS 0x3fu

int soft_fpu_raise_pending(struct soft_vcpu *v)
{
    struct cpu_state *st = &v->st;

    if (st->cr0 & CR0_NE)
        return soft_raise(v, VEC_MF);
    if (!st->is_ferr) {
        st->is_ferr = 1;
        v->is_mode_stale = 1;
        soft_host_set_ferr(v, true);
    }
    v->next_rip = st->rip;
    return 0;
}

bool soft_ferr_is_ignored(struct soft_vcpu *v, const struct insn *in)
{
    if (v->st.cr0 & CR0_NE)
        return false;
    switch (in->unit) {
    case INSN_UNIT_X87:
    case INSN_UNIT_WAIT:
    case INSN_UNIT_MMX:
        break;
    default:
        return false;
    }
    switch (in->op) {
    case ZYDIS_MNEMONIC_FNCLEX:
    case ZYDIS_MNEMONIC_FNINIT:
    case ZYDIS_MNEMONIC_FNSTCW:
    case ZYDIS_MNEMONIC_FNSTSW:
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FNSAVE:
        return false; /* they do not wait */
    default:
        return soft_fpu_is_pending(v) && soft_host_set_ferr(v, true);
    }
}

/* Does it load the control word? Then the masks it brings are the ones to keep. */
static bool loads_control_word(const struct insn *in)
{
    return in->op == ZYDIS_MNEMONIC_FLDCW || in->op == ZYDIS_MNEMONIC_FLDENV ||
           in->op == ZYDIS_MNEMONIC_FRSTOR;
}

uint16_t soft_ferr_mask(struct soft_vcpu *v)
{
    uint8_t environment[28];
    uint16_t fcw;

    if (!v->is_fpu_live)
        soft_fpu_load(v);
    /* FNSTENV masks everything behind it, without asking for the exception first */
    __asm__ volatile("fnstcw %0\n\tfnstenv %1" : "=m"(fcw), "=m"(environment));
    return fcw;
}

void soft_ferr_unmask(struct soft_vcpu *v, const struct insn *in, uint16_t fcw, bool has_run)
{
    uint16_t now;

    if (has_run && loads_control_word(in))
        return;
    if (!v->is_fpu_live)
        soft_fpu_load(v);
    __asm__ volatile("fnstcw %0" : "=m"(now));
    now = (uint16_t)((now & ~FCW_MASKS) | (fcw & FCW_MASKS));
    __asm__ volatile("fldcw %0" : : "m"(now));
}

void soft_ferr_update(struct soft_vcpu *v)
{
    if (soft_fpu_is_pending(v))
        return;
    v->st.is_ferr = 0;
    v->is_mode_stale = 1;
    (void)soft_host_set_ferr(v, false);
}
