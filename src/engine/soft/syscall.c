/*
 * syscall.c - SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS and the segment-base instructions
 *
 * Segments are forced flat without looking at descriptors. Where Intel and AMD differ the
 * model's vendor decides: SYSRET to a non-canonical address, the SS that SYSRET leaves,
 * SYSCALL and SYSENTER outside the modes each vendor has them in.
 *
 * Specification: SDM vol. 2 at each instruction; AMD64 APM vol. 3.
 */
#include <Zydis/Zydis.h>

#include "engine/soft/system.h"

#define STAR_SYSCALL_SHIFT 32
#define STAR_SYSRET_SHIFT 48
#define SYSRET_FLAGS UINT64_C(0x3c7fd7)

static void syscall_long(struct soft_vcpu *v, uint16_t selector, bool was_64bit)
{
    struct cpu_state *st = &v->st;

    st->gpr[CPU_RCX] = v->next_rip;
    st->gpr[CPU_R11] = st->rflags & ~RFLAGS_RF;
    v->next_rip = was_64bit ? st->lstar : st->cstar;
    st->rflags = (st->rflags & ~st->sfmask & ~RFLAGS_RF) | RFLAGS_FIXED;
    soft_segment_install_flat_code(v, selector & 0xfffc, 0, true);
    soft_segment_install_flat_stack(v, (uint16_t)((selector & 0xfffc) + 8), 0);
}

static int op_syscall(struct soft_vcpu *v, const struct insn *in)
{
    struct cpu_state *st = &v->st;
    uint16_t selector = (uint16_t)(st->star >> STAR_SYSCALL_SHIFT);

    if (!(st->efer & EFER_SCE) || cpu_is_real(st) || (!cpu_is_64bit(st) && !soft_is_amd(v)))
        return soft_raise(v, VEC_UD);
    if (cpu_is_long(st)) {
        syscall_long(v, selector, cpu_is_64bit(st));
        return 0;
    }

    /* legacy mode, AMD only */
    st->gpr[CPU_RCX] = (uint32_t)v->next_rip;
    v->next_rip = (uint32_t)st->star;
    st->rflags &= ~(RFLAGS_IF | RFLAGS_VM | RFLAGS_RF);
    soft_segment_install_flat_code(v, selector & 0xfffc, 0, false);
    soft_segment_install_flat_stack(v, (uint16_t)((selector & 0xfffc) + 8), 0);
    return 0;
}

static void sysret_stack(struct soft_vcpu *v, uint16_t selector)
{
    struct cpu_seg *ss = &v->st.seg[CPU_SS];

    if (!soft_is_amd(v)) {
        soft_segment_install_flat_stack(v, selector, 3);
        return;
    }
    /* AMD loads the selector only: base, limit and rights stay (APM vol. 3, SYSRET) */
    ss->selector = selector;
    ss->attr |= 3u << SEG_DPL_SHIFT;
    v->is_mode_stale = 1;
}

static int op_sysret(struct soft_vcpu *v, const struct insn *in)
{
    struct cpu_state *st = &v->st;
    uint16_t selector = (uint16_t)(st->star >> STAR_SYSRET_SHIFT);
    bool to_64bit = in->op_size == 8;

    if (!(st->efer & EFER_SCE) || !soft_is_protected(v) || (!cpu_is_64bit(st) && !soft_is_amd(v)))
        return soft_raise(v, VEC_UD);
    if (soft_require_cpl0(v))
        return SOFT_FAULT;
    if (to_64bit && !soft_is_canonical(v, st->gpr[CPU_RCX]) && !soft_is_amd(v))
        return soft_raise_error(v, VEC_GP, 0);

    if (cpu_is_long(st))
        st->rflags = (st->gpr[CPU_R11] & SYSRET_FLAGS) | RFLAGS_FIXED;
    else
        st->rflags |= RFLAGS_IF;
    /* a TF that SYSRET sets traps before the first instruction of the program */
    if (st->rflags & RFLAGS_TF)
        st->pending_dbg |= DR6_BS;
    v->next_rip = to_64bit ? st->gpr[CPU_RCX] : (uint32_t)st->gpr[CPU_RCX];
    soft_segment_install_flat_code(v, (uint16_t)((selector + (to_64bit ? 16 : 0)) | 3), 3,
                                   to_64bit);
    sysret_stack(v, (uint16_t)((selector + 8) | 3));
    return 0;
}

static int op_sysenter(struct soft_vcpu *v, const struct insn *in)
{
    struct cpu_state *st = &v->st;
    uint16_t selector = (uint16_t)(st->sysenter_cs & 0xfffc);
    bool is_long = cpu_is_long(st);

    if (is_long && soft_is_amd(v))
        return soft_raise(v, VEC_UD);
    if (cpu_is_real(st) || selector == 0)
        return soft_raise_error(v, VEC_GP, 0);
    st->rflags &= ~(RFLAGS_VM | RFLAGS_IF | RFLAGS_RF);
    soft_segment_install_flat_code(v, selector, 0, is_long);
    soft_segment_install_flat_stack(v, (uint16_t)(selector + 8), 0);
    st->gpr[CPU_RSP] = is_long ? st->sysenter_esp : (uint32_t)st->sysenter_esp;
    v->next_rip = is_long ? st->sysenter_eip : (uint32_t)st->sysenter_eip;
    return 0;
}

static int op_sysexit(struct soft_vcpu *v, const struct insn *in)
{
    struct cpu_state *st = &v->st;
    uint16_t selector = (uint16_t)(st->sysenter_cs & 0xfffc);
    bool to_64bit = in->op_size == 8;
    uint64_t rip = st->gpr[CPU_RDX], rsp = st->gpr[CPU_RCX];

    if (cpu_is_long(st) && soft_is_amd(v))
        return soft_raise(v, VEC_UD);
    if (cpu_is_real(st) || selector == 0)
        return soft_raise_error(v, VEC_GP, 0);
    if (soft_require_cpl0(v))
        return SOFT_FAULT;
    if (to_64bit && (!soft_is_canonical(v, rip) || !soft_is_canonical(v, rsp)))
        return soft_raise_error(v, VEC_GP, 0);
    selector = (uint16_t)((selector + (to_64bit ? 32 : 16)) | 3);
    soft_segment_install_flat_code(v, selector, 3, to_64bit);
    soft_segment_install_flat_stack(v, (uint16_t)(selector + 8), 3);
    st->gpr[CPU_RSP] = to_64bit ? rsp : (uint32_t)rsp;
    v->next_rip = to_64bit ? rip : (uint32_t)rip;
    return 0;
}

static int op_swapgs(struct soft_vcpu *v, const struct insn *in)
{
    struct cpu_state *st = &v->st;
    uint64_t base = st->seg[CPU_GS].base;

    if (!cpu_is_64bit(st))
        return soft_raise(v, VEC_UD);
    if (soft_require_cpl0(v))
        return SOFT_FAULT;
    st->seg[CPU_GS].base = st->kernel_gs_base;
    st->kernel_gs_base = base;
    v->is_mode_stale = 1;
    return 0;
}

static int fsgsbase_check(struct soft_vcpu *v)
{
    if (!cpu_is_64bit(&v->st) || !(v->st.cr4 & CR4_FSGSBASE))
        return soft_raise(v, VEC_UD);
    return 0;
}

static unsigned fsgsbase_seg(const struct insn *in)
{
    bool is_fs = in->op == ZYDIS_MNEMONIC_RDFSBASE || in->op == ZYDIS_MNEMONIC_WRFSBASE;

    return is_fs ? CPU_FS : CPU_GS;
}

static int op_read_base(struct soft_vcpu *v, const struct insn *in)
{
    unsigned size = in->op_size == 8 ? 8 : 4;

    if (fsgsbase_check(v))
        return SOFT_FAULT;
    return soft_write_rm(v, in, size, v->st.seg[fsgsbase_seg(in)].base & mask_bytes(size));
}

static int op_write_base(struct soft_vcpu *v, const struct insn *in)
{
    uint64_t value;

    if (fsgsbase_check(v) || soft_read_rm(v, in, in->op_size == 8 ? 8 : 4, &value))
        return SOFT_FAULT;
    if (!soft_is_canonical(v, value))
        return soft_raise_error(v, VEC_GP, 0);
    v->st.seg[fsgsbase_seg(in)].base = value;
    v->is_mode_stale = 1;
    return 0;
}

const struct soft_op soft_ops_syscall[] = {
    {ZYDIS_MNEMONIC_SYSCALL, op_syscall},     {ZYDIS_MNEMONIC_SYSRET, op_sysret},
    {ZYDIS_MNEMONIC_SYSENTER, op_sysenter},   {ZYDIS_MNEMONIC_SYSEXIT, op_sysexit},
    {ZYDIS_MNEMONIC_SWAPGS, op_swapgs},       {ZYDIS_MNEMONIC_RDFSBASE, op_read_base},
    {ZYDIS_MNEMONIC_RDGSBASE, op_read_base},  {ZYDIS_MNEMONIC_WRFSBASE, op_write_base},
    {ZYDIS_MNEMONIC_WRGSBASE, op_write_base}, {0, NULL},
};
