/*
 * segcheck.c - instructions that load or look at segment selectors
 *
 * LAR, LSL, VERR and VERW never fault because of the selector: they say no with ZF clear.
 *
 * Specification: SDM vol. 2 at each instruction; vol. 3, 5.10.
 */
#include <Zydis/Zydis.h>

#include "engine/soft/system.h"

static unsigned modrm_reg(const struct insn *in)
{
    unsigned rex = in->has_rex ? in->bytes[in->rex_off] : 0;

    return (in->modrm >> 3 & 7) | (rex & 4) << 1;
}

static int op_mov_from_sreg(struct soft_vcpu *v, const struct insn *in)
{
    unsigned seg = in->modrm >> 3 & 7;

    if (seg > CPU_GS)
        return soft_raise(v, VEC_UD);
    return soft_write_rm(v, in, in->has_mem ? 2 : in->op_size, v->st.seg[seg].selector);
}

static int op_mov_to_sreg(struct soft_vcpu *v, const struct insn *in)
{
    unsigned seg = in->modrm >> 3 & 7;
    uint64_t selector;

    if (seg > CPU_GS || seg == CPU_CS)
        return soft_raise(v, VEC_UD);
    if (soft_read_rm(v, in, 2, &selector))
        return SOFT_FAULT;
    if (soft_load_segment(v, seg, (uint16_t)selector))
        return SOFT_FAULT;
    /* debug traps and interrupts wait for the instruction that loads rSP (SDM vol. 3, 6.8.3) */
    if (seg == CPU_SS)
        v->st.shadow = SHADOW_MOV_SS;
    return 0;
}

int soft_mov_sreg(struct soft_vcpu *v, const struct insn *in)
{
    return in->opcode == 0x8e ? op_mov_to_sreg(v, in) : op_mov_from_sreg(v, in);
}

/* LDS, LES, LFS, LGS, LSS: offset, then selector. */
static int op_load_far(struct soft_vcpu *v, const struct insn *in)
{
    uint64_t offset, selector;
    unsigned seg;
    gva_t addr;

    switch (in->op) {
    case ZYDIS_MNEMONIC_LDS:
        seg = CPU_DS;
        break;
    case ZYDIS_MNEMONIC_LES:
        seg = CPU_ES;
        break;
    case ZYDIS_MNEMONIC_LFS:
        seg = CPU_FS;
        break;
    case ZYDIS_MNEMONIC_LGS:
        seg = CPU_GS;
        break;
    default:
        seg = CPU_SS;
        break;
    }
    if (soft_operand_address(v, in, in->op_size + 2u, SOFT_READ, &addr) ||
        soft_load(v, addr, in->op_size, SOFT_AS_CPL, &offset) ||
        soft_load(v, addr + in->op_size, 2, SOFT_AS_CPL, &selector) ||
        soft_load_segment(v, seg, (uint16_t)selector))
        return SOFT_FAULT;
    soft_gpr_write(v, modrm_reg(in), in->op_size, false, offset);
    return 0;
}

static void set_zf(struct soft_vcpu *v, bool is_set)
{
    v->st.rflags = is_set ? v->st.rflags | RFLAGS_ZF : v->st.rflags & ~RFLAGS_ZF;
}

/* May the current privilege, through this selector, see the descriptor? */
static bool segcheck_is_visible(const struct soft_vcpu *v, uint16_t selector,
                                const struct soft_descriptor *d)
{
    unsigned dpl = soft_descriptor_dpl(d);

    if (soft_descriptor_is_code(d) && soft_descriptor_is_conforming(d))
        return true;
    return dpl >= cpu_cpl(&v->st) && dpl >= (selector & 3u);
}

/* Read the selector operand and its descriptor; *is_visible false: ZF has to be cleared. */
static int segcheck_read(struct soft_vcpu *v, const struct insn *in, struct soft_descriptor *d,
                         bool *is_visible)
{
    uint64_t selector;

    if (!soft_is_protected(v))
        return soft_raise(v, VEC_UD);
    if (soft_read_rm(v, in, 2, &selector) ||
        soft_descriptor_read(v, (uint16_t)selector, d, is_visible))
        return SOFT_FAULT;
    *is_visible = *is_visible && segcheck_is_visible(v, (uint16_t)selector, d);
    return 0;
}

/* System types that LAR and LSL know, as bit sets (SDM vol. 2, tables 3-52 and 3-55). */
#define LAR_TYPES_LEGACY (BIT(1) | BIT(2) | BIT(3) | BIT(4) | BIT(5) | BIT(9) | BIT(11) | BIT(12))
#define LAR_TYPES_LONG (BIT(2) | BIT(9) | BIT(11) | BIT(12))
#define LSL_TYPES_LEGACY (BIT(1) | BIT(2) | BIT(3) | BIT(9) | BIT(11))
#define LSL_TYPES_LONG (BIT(2) | BIT(9) | BIT(11))

static bool segcheck_type_is_known(const struct soft_vcpu *v, const struct soft_descriptor *d,
                                   uint64_t legacy, uint64_t in_long)
{
    if (d->attr & SEG_S)
        return true;
    return (cpu_is_long(&v->st) ? in_long : legacy) >> soft_descriptor_type(d) & 1;
}

static int op_lar(struct soft_vcpu *v, const struct insn *in)
{
    struct soft_descriptor d;
    bool is_visible;

    if (segcheck_read(v, in, &d, &is_visible))
        return SOFT_FAULT;
    is_visible = is_visible && segcheck_type_is_known(v, &d, LAR_TYPES_LEGACY, LAR_TYPES_LONG);
    set_zf(v, is_visible);
    if (is_visible)
        soft_gpr_write(v, modrm_reg(in), in->op_size, false, (d.raw[0] >> 32) & 0x00f0ff00);
    return 0;
}

static int op_lsl(struct soft_vcpu *v, const struct insn *in)
{
    struct soft_descriptor d;
    bool is_visible;

    if (segcheck_read(v, in, &d, &is_visible))
        return SOFT_FAULT;
    is_visible = is_visible && segcheck_type_is_known(v, &d, LSL_TYPES_LEGACY, LSL_TYPES_LONG);
    set_zf(v, is_visible);
    if (is_visible)
        soft_gpr_write(v, modrm_reg(in), in->op_size, false, d.limit);
    return 0;
}

static int op_verr(struct soft_vcpu *v, const struct insn *in)
{
    struct soft_descriptor d;
    bool is_visible;

    if (segcheck_read(v, in, &d, &is_visible))
        return SOFT_FAULT;
    set_zf(v, is_visible && (d.attr & SEG_S) &&
                  (!soft_descriptor_is_code(&d) || (d.attr & SEG_TYPE_WRITE_READ)));
    return 0;
}

static int op_verw(struct soft_vcpu *v, const struct insn *in)
{
    struct soft_descriptor d;
    bool is_visible;

    if (segcheck_read(v, in, &d, &is_visible))
        return SOFT_FAULT;
    set_zf(v, is_visible && soft_descriptor_is_writable(&d));
    return 0;
}

static int op_arpl(struct soft_vcpu *v, const struct insn *in)
{
    unsigned rpl = (unsigned)v->st.gpr[in->modrm >> 3 & 7] & 3;
    bool is_raised;
    uint64_t selector;

    if (!soft_is_protected(v))
        return soft_raise(v, VEC_UD);
    if (soft_read_rm(v, in, 2, &selector))
        return SOFT_FAULT;
    is_raised = (selector & 3) < rpl;
    if (is_raised && soft_write_rm(v, in, 2, (selector & ~UINT64_C(3)) | rpl))
        return SOFT_FAULT;
    set_zf(v, is_raised);
    return 0;
}

const struct soft_op soft_ops_segcheck[] = {
    {ZYDIS_MNEMONIC_LDS, op_load_far},
    {ZYDIS_MNEMONIC_LES, op_load_far},
    {ZYDIS_MNEMONIC_LFS, op_load_far},
    {ZYDIS_MNEMONIC_LGS, op_load_far},
    {ZYDIS_MNEMONIC_LSS, op_load_far},
    {ZYDIS_MNEMONIC_LAR, op_lar},
    {ZYDIS_MNEMONIC_LSL, op_lsl},
    {ZYDIS_MNEMONIC_VERR, op_verr},
    {ZYDIS_MNEMONIC_VERW, op_verw},
    {ZYDIS_MNEMONIC_ARPL, op_arpl},
    {0, NULL},
};
