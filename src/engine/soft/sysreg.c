/*
 * sysreg.c - control and debug registers, descriptor-table registers
 *
 * Invariant: a control register is written only after every rule on the combination of CR0,
 * CR3, CR4 and EFER has been checked; then translations that the change invalidates are dropped
 * and is_mode_stale is set.
 *
 * Specification: SDM vol. 3, 2.5, 4.1.2, 4.10.4, 10.8.5 (long mode), 17.2; AMD64 APM vol. 2, 3.1.
 */
#include <Zydis/Zydis.h>

#include "engine/soft/debug.h"
#include "engine/soft/mmu.h"
#include "engine/soft/ops.h"
#include "engine/soft/system.h"

#define CR0_DEFINED                                                                                \
    (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD |     \
     CR0_PG)
#define CR3_NO_FLUSH BIT(63)
#define DR6_WRITABLE (UINT64_C(0xf) | DR6_BD | DR6_BS | DR6_BT)
#define DR7_WRITABLE UINT64_C(0xffff23ff)

/* PAE paging outside long mode keeps its four PDPTEs in registers. */
static bool uses_pdptes(uint64_t cr0, uint64_t cr4, uint64_t efer)
{
    return (cr0 & CR0_PG) && (cr4 & CR4_PAE) && !(efer & EFER_LME);
}

static bool cr0_is_consistent(const struct cpu_state *st, uint64_t value)
{
    if (value >> 32 != 0)
        return false;
    if ((value & CR0_NW) && !(value & CR0_CD))
        return false;
    if ((value & CR0_PG) && !(value & CR0_PE))
        return false;
    if ((value & CR0_PG) && !(st->cr0 & CR0_PG) && (st->efer & EFER_LME))
        return (st->cr4 & CR4_PAE) && !(st->seg[CPU_CS].attr & SEG_L);
    if (!(value & CR0_PG) && (st->cr0 & CR0_PG))
        return !cpu_is_64bit(st) && !(st->cr4 & CR4_PCIDE);
    return true;
}

int soft_write_cr0(struct soft_vcpu *v, uint64_t value)
{
    struct cpu_state *st = &v->st;
    uint64_t changed;

    if (!cr0_is_consistent(st, value))
        return soft_raise_error(v, VEC_GP, 0);
    value = (value & CR0_DEFINED) | CR0_ET;
    changed = value ^ st->cr0;
    if ((changed & (CR0_PG | CR0_CD | CR0_NW)) && uses_pdptes(value, st->cr4, st->efer) &&
        soft_load_pdptrs(v, st->cr3))
        return SOFT_FAULT;

    st->cr0 = value;
    if (changed & CR0_PG) {
        if ((value & CR0_PG) && (st->efer & EFER_LME))
            st->efer |= EFER_LMA;
        else
            st->efer &= ~EFER_LMA;
        soft_tlb_flush_all(v);
    } else if (changed & CR0_WP) {
        soft_tlb_rights_changed(v);
    }
    v->is_mode_stale = 1;
    return 0;
}

int soft_write_cr3(struct soft_vcpu *v, uint64_t value)
{
    struct cpu_state *st = &v->st;
    bool keep = false;

    if (st->cr4 & CR4_PCIDE) {
        keep = (value & CR3_NO_FLUSH) != 0;
        value &= ~CR3_NO_FLUSH;
    }
    if (cpu_is_long(st)) {
        if (value >> v->model->phys_bits != 0)
            return soft_raise_error(v, VEC_GP, 0);
    } else if (uses_pdptes(st->cr0, st->cr4, st->efer)) {
        if (soft_load_pdptrs(v, value))
            return SOFT_FAULT;
    }
    st->cr3 = value;
    soft_tlb_switch(v, keep);
    v->is_mode_stale = 1;
    return 0;
}

static uint64_t cr4_bit(const struct soft_vcpu *v, enum cpu_feature feature, uint64_t bit)
{
    return cpu_model_has(v->model, feature) ? bit : 0;
}

/* CR4 bits that this model implements; others are reserved. */
static uint64_t cr4_defined(const struct soft_vcpu *v)
{
    return CR4_PCE | cr4_bit(v, CPU_FEATURE_VME, CR4_VME | CR4_PVI) |
           cr4_bit(v, CPU_FEATURE_TSC, CR4_TSD) | cr4_bit(v, CPU_FEATURE_DE, CR4_DE) |
           cr4_bit(v, CPU_FEATURE_PSE, CR4_PSE) | cr4_bit(v, CPU_FEATURE_PAE, CR4_PAE) |
           cr4_bit(v, CPU_FEATURE_MCE, CR4_MCE) | cr4_bit(v, CPU_FEATURE_PGE, CR4_PGE) |
           cr4_bit(v, CPU_FEATURE_FXSR, CR4_OSFXSR) | cr4_bit(v, CPU_FEATURE_SSE, CR4_OSXMMEXCPT) |
           cr4_bit(v, CPU_FEATURE_UMIP, CR4_UMIP) | cr4_bit(v, CPU_FEATURE_LA57, CR4_LA57) |
           cr4_bit(v, CPU_FEATURE_FSGSBASE, CR4_FSGSBASE) |
           cr4_bit(v, CPU_FEATURE_PCID, CR4_PCIDE) | cr4_bit(v, CPU_FEATURE_XSAVE, CR4_OSXSAVE) |
           cr4_bit(v, CPU_FEATURE_SMEP, CR4_SMEP) | cr4_bit(v, CPU_FEATURE_SMAP, CR4_SMAP) |
           cr4_bit(v, CPU_FEATURE_PKU, CR4_PKE);
}

int soft_write_cr4(struct soft_vcpu *v, uint64_t value)
{
    struct cpu_state *st = &v->st;
    uint64_t changed = value ^ st->cr4;

    if (value & ~cr4_defined(v))
        return soft_raise_error(v, VEC_GP, 0);
    if (cpu_is_long(st) && (!(value & CR4_PAE) || (changed & CR4_LA57)))
        return soft_raise_error(v, VEC_GP, 0);
    if ((changed & value & CR4_PCIDE) && (!cpu_is_long(st) || (st->cr3 & 0xfff) != 0))
        return soft_raise_error(v, VEC_GP, 0);
    if ((changed & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP)) &&
        uses_pdptes(st->cr0, value, st->efer) && soft_load_pdptrs(v, st->cr3))
        return SOFT_FAULT;

    st->cr4 = value;
    /* SMEP when it is set, not when it is cleared (SDM vol. 3, 4.10.4.1) */
    if ((changed & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_PCIDE | CR4_LA57)) ||
        (changed & value & CR4_SMEP))
        soft_tlb_flush_all(v);
    else if (changed & (CR4_SMEP | CR4_SMAP | CR4_PKE))
        soft_tlb_rights_changed(v);
    if (changed & CR4_DE)
        soft_debug_changed(v);
    v->is_mode_stale = 1;
    return 0;
}

/* MOV to and from CRn, DRn: ModRM.rm is always a register, whatever mod says. */
static unsigned modrm_rm_gpr(const struct insn *in)
{
    unsigned rex = in->has_rex ? in->bytes[in->rex_off] : 0;

    return (in->modrm & 7) | (rex & 1) << 3;
}

static unsigned modrm_reg(const struct insn *in)
{
    unsigned rex = in->has_rex ? in->bytes[in->rex_off] : 0;

    return (in->modrm >> 3 & 7) | (rex & 4) << 1;
}

static unsigned sysreg_size(const struct insn *in)
{
    return in->mode == 8 ? 8 : 4;
}

static bool cr_exists(unsigned cr)
{
    return cr == 0 || cr == 2 || cr == 3 || cr == 4 || cr == 8;
}

/* In legacy mode AMD reaches CR8 as LOCK MOV CR0 (APM vol. 3, MOV CRn). */
static unsigned cr_number(const struct soft_vcpu *v, const struct insn *in)
{
    unsigned cr = modrm_reg(in);

    return cr == 0 && in->has_lock && cpu_model_has(v->model, CPU_FEATURE_CR8_LEGACY) ? 8 : cr;
}

static int op_mov_from_cr(struct soft_vcpu *v, const struct insn *in)
{
    const struct cpu_state *st = &v->st;
    unsigned cr = cr_number(v, in);
    uint64_t value;

    if (!cr_exists(cr))
        return soft_raise(v, VEC_UD);
    if (soft_require_cpl0(v))
        return SOFT_FAULT;
    switch (cr) {
    case 0:
        value = st->cr0;
        break;
    case 2:
        value = st->cr2;
        break;
    case 3:
        value = st->cr3;
        break;
    case 4:
        value = st->cr4;
        break;
    default:
        value = soft_host_cr8_read(v);
        break;
    }
    soft_gpr_write(v, modrm_rm_gpr(in), sysreg_size(in), false, value);
    return 0;
}

static int op_mov_to_cr(struct soft_vcpu *v, const struct insn *in)
{
    uint64_t value = v->st.gpr[modrm_rm_gpr(in)] & mask_bytes(sysreg_size(in));
    unsigned cr = cr_number(v, in);

    if (!cr_exists(cr))
        return soft_raise(v, VEC_UD);
    if (soft_require_cpl0(v))
        return SOFT_FAULT;
    switch (cr) {
    case 0:
        return soft_write_cr0(v, value);
    case 2:
        v->st.cr2 = value;
        return 0;
    case 3:
        return soft_write_cr3(v, value);
    case 4:
        return soft_write_cr4(v, value);
    default:
        if (value > 15)
            return soft_raise_error(v, VEC_GP, 0);
        soft_host_cr8_write(v, value);
        return 0;
    }
}

/* What every access to a debug register checks; *dr is 6 or 7 for the aliases 4 and 5. */
static int dr_check(struct soft_vcpu *v, const struct insn *in, unsigned *dr)
{
    *dr = modrm_reg(in);
    if (soft_require_cpl0(v))
        return SOFT_FAULT;
    if (*dr > 7 || ((*dr == 4 || *dr == 5) && (v->st.cr4 & CR4_DE)))
        return soft_raise(v, VEC_UD);
    if (*dr == 4 || *dr == 5)
        *dr += 2;
    if (v->st.dr7 & DR7_GD)
        return soft_raise_debug(v, DR6_BD, false);
    return 0;
}

static int op_mov_from_dr(struct soft_vcpu *v, const struct insn *in)
{
    const struct cpu_state *st = &v->st;
    uint64_t value;
    unsigned dr;

    if (dr_check(v, in, &dr))
        return SOFT_FAULT;
    value = dr < 4 ? st->dr[dr] : dr == 6 ? st->dr6 : st->dr7;
    soft_gpr_write(v, modrm_rm_gpr(in), sysreg_size(in), false, value);
    return 0;
}

static int op_mov_to_dr(struct soft_vcpu *v, const struct insn *in)
{
    uint64_t value = v->st.gpr[modrm_rm_gpr(in)] & mask_bytes(sysreg_size(in));
    struct cpu_state *st = &v->st;
    unsigned dr;

    if (dr_check(v, in, &dr))
        return SOFT_FAULT;
    if (dr >= 6 && value >> 32 != 0)
        return soft_raise_error(v, VEC_GP, 0);
    if (dr == 6) {
        st->dr6 = (value & DR6_WRITABLE) | DR6_FIXED;
        return 0;
    }
    if (dr == 7)
        st->dr7 = (value & DR7_WRITABLE) | DR7_FIXED;
    else
        st->dr[dr] = value;
    soft_debug_changed(v);
    v->is_mode_stale = 1;
    return 0;
}

/* MOV that the host cannot do: to and from segment, control and debug registers. */
static int op_mov(struct soft_vcpu *v, const struct insn *in)
{
    if (in->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT)
        return in->opcode >= 0xa0 && in->opcode <= 0xa3 ? soft_mov_offset(v, in)
                                                        : soft_mov_sreg(v, in);
    switch (in->opcode) {
    case 0x20:
        return op_mov_from_cr(v, in);
    case 0x21:
        return op_mov_from_dr(v, in);
    case 0x22:
        return op_mov_to_cr(v, in);
    case 0x23:
        return op_mov_to_dr(v, in);
    default:
        return soft_raise(v, VEC_UD);
    }
}

static int op_clts(struct soft_vcpu *v, const struct insn *in)
{
    if (soft_require_cpl0(v))
        return SOFT_FAULT;
    v->st.cr0 &= ~CR0_TS;
    v->is_mode_stale = 1;
    return 0;
}

/* The low four bits of CR0; PE can be set but not cleared. */
static int op_lmsw(struct soft_vcpu *v, const struct insn *in)
{
    uint64_t value;

    if (soft_require_cpl0(v) || soft_read_rm(v, in, 2, &value))
        return SOFT_FAULT;
    value = (value & 0xf) | (v->st.cr0 & CR0_PE);
    return soft_write_cr0(v, (v->st.cr0 & ~UINT64_C(0xf)) | value);
}

/* #GP(0) for what CR4.UMIP keeps from user programs. */
static int umip_check(struct soft_vcpu *v)
{
    if ((v->st.cr4 & CR4_UMIP) && cpu_cpl(&v->st) != 0)
        return soft_raise_error(v, VEC_GP, 0);
    return 0;
}

/* Store to a register of the operand's size, or to 16 bits of memory. */
static int store_word(struct soft_vcpu *v, const struct insn *in, uint64_t value)
{
    if (umip_check(v))
        return SOFT_FAULT;
    return soft_write_rm(v, in, in->has_mem ? 2 : in->op_size, value);
}

static int op_smsw(struct soft_vcpu *v, const struct insn *in)
{
    return store_word(v, in, v->st.cr0);
}

static int op_sldt(struct soft_vcpu *v, const struct insn *in)
{
    if (!soft_is_protected(v))
        return soft_raise(v, VEC_UD);
    return store_word(v, in, v->st.seg[CPU_LDTR].selector);
}

static int op_str(struct soft_vcpu *v, const struct insn *in)
{
    if (!soft_is_protected(v))
        return soft_raise(v, VEC_UD);
    return store_word(v, in, v->st.seg[CPU_TR].selector);
}

static int table_load(struct soft_vcpu *v, const struct insn *in, struct cpu_table *table)
{
    unsigned size = in->mode == 8 ? 8 : 4;
    uint64_t limit, base;
    gva_t addr;

    if (soft_require_cpl0(v) || soft_operand_address(v, in, 2 + size, SOFT_READ, &addr) ||
        soft_load(v, addr, 2, SOFT_AS_CPL, &limit) ||
        soft_load(v, addr + 2, size, SOFT_AS_CPL, &base))
        return SOFT_FAULT;
    if (size == 8 && !soft_is_canonical(v, base))
        return soft_raise_error(v, VEC_GP, 0);
    if (size == 4 && in->op_size == 2)
        base &= 0xffffff;
    table->limit = (uint16_t)limit;
    table->base = base;
    return 0;
}

static int table_store(struct soft_vcpu *v, const struct insn *in, const struct cpu_table *table)
{
    unsigned size = in->mode == 8 ? 8 : 4;
    uint8_t image[10];
    gva_t addr;

    if (umip_check(v) || soft_operand_address(v, in, 2 + size, SOFT_WRITE, &addr))
        return SOFT_FAULT;
    store_le16(image, table->limit);
    store_le64(image + 2, table->base);
    return soft_write(v, addr, image, 2 + size, SOFT_AS_CPL);
}

static int op_lgdt(struct soft_vcpu *v, const struct insn *in)
{
    return table_load(v, in, &v->st.gdtr);
}

static int op_lidt(struct soft_vcpu *v, const struct insn *in)
{
    return table_load(v, in, &v->st.idtr);
}

static int op_sgdt(struct soft_vcpu *v, const struct insn *in)
{
    return table_store(v, in, &v->st.gdtr);
}

static int op_sidt(struct soft_vcpu *v, const struct insn *in)
{
    return table_store(v, in, &v->st.idtr);
}

/* The second half of a 16-byte descriptor has a type field of 0. */
static bool system_descriptor_is_malformed(const struct soft_vcpu *v,
                                           const struct soft_descriptor *d)
{
    return cpu_is_long(&v->st) && (d->raw[1] >> 40 & 0x1f) != 0;
}

static int op_lldt(struct soft_vcpu *v, const struct insn *in)
{
    struct soft_descriptor d;
    uint64_t operand;
    uint16_t selector;

    if (!soft_is_protected(v))
        return soft_raise(v, VEC_UD);
    if (soft_require_cpl0(v) || soft_read_rm(v, in, 2, &operand))
        return SOFT_FAULT;
    selector = (uint16_t)operand;
    if (SOFT_SELECTOR_IS_NULL(selector)) {
        soft_segment_install_null(v, CPU_LDTR, selector, 0);
        return 0;
    }
    if (selector & 4)
        return soft_raise_error(v, VEC_GP, SOFT_SELECTOR_ERROR(selector));
    if (soft_descriptor_require(v, selector, VEC_GP, 0, &d))
        return SOFT_FAULT;
    if ((d.attr & SEG_S) || soft_descriptor_type(&d) != SOFT_TYPE_LDT ||
        system_descriptor_is_malformed(v, &d))
        return soft_raise_error(v, VEC_GP, SOFT_SELECTOR_ERROR(selector));
    if (!(d.attr & SEG_P))
        return soft_raise_error(v, VEC_NP, SOFT_SELECTOR_ERROR(selector));
    if (cpu_is_long(&v->st) && !soft_is_canonical(v, d.base))
        return soft_raise_error(v, VEC_GP, SOFT_SELECTOR_ERROR(selector));
    soft_segment_install(v, CPU_LDTR, selector, &d);
    return 0;
}

static int op_ltr(struct soft_vcpu *v, const struct insn *in)
{
    struct soft_descriptor d;
    uint64_t operand;
    uint16_t selector;
    unsigned type;

    if (!soft_is_protected(v))
        return soft_raise(v, VEC_UD);
    if (soft_require_cpl0(v) || soft_read_rm(v, in, 2, &operand))
        return SOFT_FAULT;
    selector = (uint16_t)operand;
    if (selector & 4)
        return soft_raise_error(v, VEC_GP, SOFT_SELECTOR_ERROR(selector));
    if (soft_descriptor_require(v, selector, VEC_GP, 0, &d))
        return SOFT_FAULT;
    type = soft_descriptor_type(&d);
    if ((d.attr & SEG_S) ||
        (type != SOFT_TYPE_TSS32 && (type != SOFT_TYPE_TSS16 || cpu_is_long(&v->st))) ||
        system_descriptor_is_malformed(v, &d))
        return soft_raise_error(v, VEC_GP, SOFT_SELECTOR_ERROR(selector));
    if (!(d.attr & SEG_P))
        return soft_raise_error(v, VEC_NP, SOFT_SELECTOR_ERROR(selector));
    if (cpu_is_long(&v->st) && !soft_is_canonical(v, d.base))
        return soft_raise_error(v, VEC_GP, SOFT_SELECTOR_ERROR(selector));
    if (soft_descriptor_set_busy(v, &d, true))
        return SOFT_FAULT;
    soft_segment_install(v, CPU_TR, selector, &d);
    v->st.seg[CPU_TR].attr |= 2; /* busy */
    return 0;
}

const struct soft_op soft_ops_sysreg[] = {
    {ZYDIS_MNEMONIC_MOV, op_mov},
    {ZYDIS_MNEMONIC_CLTS, op_clts},
    {ZYDIS_MNEMONIC_LMSW, op_lmsw},
    {ZYDIS_MNEMONIC_SMSW, op_smsw},
    {ZYDIS_MNEMONIC_SLDT, op_sldt},
    {ZYDIS_MNEMONIC_STR, op_str},
    {ZYDIS_MNEMONIC_LGDT, op_lgdt},
    {ZYDIS_MNEMONIC_LIDT, op_lidt},
    {ZYDIS_MNEMONIC_SGDT, op_sgdt},
    {ZYDIS_MNEMONIC_SIDT, op_sidt},
    {ZYDIS_MNEMONIC_LLDT, op_lldt},
    {ZYDIS_MNEMONIC_LTR, op_ltr},
    {0, NULL},
};
