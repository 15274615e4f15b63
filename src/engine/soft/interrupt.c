/*
 * interrupt.c - software interrupts: INT n, INT3, INTO, INT1, and undefined opcodes
 *
 * These only decide whether the interrupt may be asked for and which way it goes; delivery is
 * the step's, through exception.c. The exception is virtual-8086 mode with VME, where INT n may
 * go to the 8086 program's own handler without leaving the mode; that happens here.
 *
 * Specification: SDM vol. 2, INT n; vol. 3, 21.3 (virtual-8086 mode interrupt methods).
 */
#include <Zydis/Zydis.h>

#include "engine/soft/system.h"

#define TSS32_IOMAP 102u
#define REDIRECTION_BYTES 32u

static int interrupt_software(struct soft_vcpu *v, unsigned vector)
{
    v->fault.vector = (uint8_t)vector;
    v->fault.has_error = false;
    v->fault.is_software = true;
    v->fault.is_trap = false;
    v->fault.error = 0;
    v->fault.cr2 = 0;
    v->fault.dr6 = 0;
    return SOFT_FAULT;
}

/* The bit for `vector` in the redirection map; set (trap to the monitor) when there is none. */
static int interrupt_redirection(struct soft_vcpu *v, unsigned vector, bool *is_trapped)
{
    const struct cpu_seg *tr = &v->st.seg[CPU_TR];
    uint64_t iomap, byte;

    *is_trapped = true;
    if ((tr->attr & SEG_TYPE_MASK) < SOFT_TYPE_TSS32 || tr->limit < TSS32_IOMAP + 1)
        return 0;
    if (soft_load(v, (uint32_t)(tr->base + TSS32_IOMAP), 2, SOFT_AS_SYSTEM, &iomap))
        return SOFT_FAULT;
    if (iomap < REDIRECTION_BYTES || iomap - REDIRECTION_BYTES + vector / 8 > tr->limit)
        return 0;
    if (soft_load(v, (uint32_t)(tr->base + iomap - REDIRECTION_BYTES + vector / 8), 1,
                  SOFT_AS_SYSTEM, &byte))
        return SOFT_FAULT;
    *is_trapped = byte >> (vector % 8) & 1;
    return 0;
}

/* Methods 5 and 6: as an 8086 would, through the table at linear address 0. */
static int interrupt_v86(struct soft_vcpu *v, unsigned vector)
{
    struct cpu_state *st = &v->st;
    bool is_virtual_if = (st->rflags & RFLAGS_IOPL) != RFLAGS_IOPL;
    uint64_t flags = st->rflags;
    uint64_t rsp = st->gpr[CPU_RSP];
    uint64_t target;

    if (soft_load(v, vector * 4, 4, SOFT_AS_CPL, &target))
        return SOFT_FAULT;
    if ((target & 0xffff) > st->seg[CPU_CS].limit)
        return soft_raise_error(v, VEC_GP, 0);
    if (is_virtual_if) {
        flags &= ~RFLAGS_IF;
        flags |= RFLAGS_IOPL | (flags & RFLAGS_VIF ? RFLAGS_IF : 0);
    }
    if (soft_push(v, 2, flags) || soft_push(v, 2, st->seg[CPU_CS].selector) ||
        soft_push(v, 2, v->next_rip)) {
        st->gpr[CPU_RSP] = rsp;
        return SOFT_FAULT;
    }
    st->rflags &= ~(RFLAGS_TF | RFLAGS_RF | RFLAGS_NT | (is_virtual_if ? RFLAGS_VIF : RFLAGS_IF));
    soft_segment_install_real(v, CPU_CS, (uint16_t)(target >> 16));
    v->next_rip = target & 0xffff;
    v->is_mode_stale = 1;
    return 0;
}

static int op_int(struct soft_vcpu *v, const struct insn *in)
{
    unsigned vector = in->bytes[in->imm_off];
    bool is_iopl3 = (v->st.rflags & RFLAGS_IOPL) == RFLAGS_IOPL;

    if (!cpu_is_v86(&v->st))
        return interrupt_software(v, vector);
    if (v->st.cr4 & CR4_VME) {
        bool is_trapped;
        if (interrupt_redirection(v, vector, &is_trapped))
            return SOFT_FAULT;
        if (!is_trapped)
            return interrupt_v86(v, vector);
    }
    return is_iopl3 ? interrupt_software(v, vector) : soft_raise_error(v, VEC_GP, 0);
}

static int op_int3(struct soft_vcpu *v, const struct insn *in)
{
    return interrupt_software(v, VEC_BP);
}

static int op_into(struct soft_vcpu *v, const struct insn *in)
{
    return v->st.rflags & RFLAGS_OF ? interrupt_software(v, VEC_OF) : 0;
}

/* A #DB without a reason in DR6, and without the DPL check of INT n (SDM vol. 2, INT1). */
static int op_int1(struct soft_vcpu *v, const struct insn *in)
{
    return soft_raise_debug(v, 0, true);
}

static int op_undefined(struct soft_vcpu *v, const struct insn *in)
{
    return soft_raise(v, VEC_UD);
}

const struct soft_op soft_ops_interrupt[] = {
    {ZYDIS_MNEMONIC_INT, op_int},
    {ZYDIS_MNEMONIC_INT3, op_int3},
    {ZYDIS_MNEMONIC_INTO, op_into},
    {ZYDIS_MNEMONIC_INT1, op_int1},
    {ZYDIS_MNEMONIC_IRET, soft_iret},
    {ZYDIS_MNEMONIC_IRETD, soft_iret},
    {ZYDIS_MNEMONIC_IRETQ, soft_iret},
    {ZYDIS_MNEMONIC_UD0, op_undefined},
    {ZYDIS_MNEMONIC_UD1, op_undefined},
    {ZYDIS_MNEMONIC_UD2, op_undefined},
    {ZYDIS_MNEMONIC_RSM, op_undefined},    /* outside system management mode */
    {ZYDIS_MNEMONIC_GETSEC, op_undefined}, /* CR4.SMXE cannot be set */
    {ZYDIS_MNEMONIC_VMXON, op_undefined},  /* CR4.VMXE cannot be set, nor EFER.SVME */
    {ZYDIS_MNEMONIC_VMXOFF, op_undefined},
    {ZYDIS_MNEMONIC_VMLAUNCH, op_undefined},
    {ZYDIS_MNEMONIC_VMRESUME, op_undefined},
    {ZYDIS_MNEMONIC_VMREAD, op_undefined},
    {ZYDIS_MNEMONIC_VMWRITE, op_undefined},
    {ZYDIS_MNEMONIC_VMPTRLD, op_undefined},
    {ZYDIS_MNEMONIC_VMPTRST, op_undefined},
    {ZYDIS_MNEMONIC_VMCLEAR, op_undefined},
    {ZYDIS_MNEMONIC_VMFUNC, op_undefined},
    {ZYDIS_MNEMONIC_INVEPT, op_undefined},
    {ZYDIS_MNEMONIC_INVVPID, op_undefined},
    {ZYDIS_MNEMONIC_VMRUN, op_undefined},
    {ZYDIS_MNEMONIC_VMLOAD, op_undefined},
    {ZYDIS_MNEMONIC_VMSAVE, op_undefined},
    {ZYDIS_MNEMONIC_STGI, op_undefined},
    {ZYDIS_MNEMONIC_CLGI, op_undefined},
    {ZYDIS_MNEMONIC_SKINIT, op_undefined},
    {ZYDIS_MNEMONIC_INVLPGA, op_undefined},
    {ZYDIS_MNEMONIC_ENCLS, op_undefined},
    {ZYDIS_MNEMONIC_ENCLU, op_undefined},
    {ZYDIS_MNEMONIC_ENCLV, op_undefined},
    {ZYDIS_MNEMONIC_PCONFIG, op_undefined},
    {0, NULL},
};
