/*
 * stack.c - PUSH and POP in all forms, PUSHA/POPA, PUSHF/POPF, ENTER, LEAVE
 *
 * Spec: Intel SDM vol. 2 (each instruction); vol. 3, 20.2.7 and 20.3 (VME, PUSHF/POPF in
 * virtual-8086 mode).
 */
#include <Zydis/Zydis.h>

#include "engine/soft/ops.h"
#include "engine/soft/system.h"
#include "engine/soft/vcpu.h"

/* The segment register of a one- or two-byte PUSH/POP Sreg; CPU_SEG_COUNT when it is none. */
static unsigned pushed_segment(const struct insn *in)
{
    if (in->opcode_map == ZYDIS_OPCODE_MAP_0F)
        return in->opcode == 0xa0 || in->opcode == 0xa1 ? CPU_FS : CPU_GS;
    switch (in->opcode) {
    case 0x06:
    case 0x07:
        return CPU_ES;
    case 0x0e:
        return CPU_CS;
    case 0x16:
    case 0x17:
        return CPU_SS;
    case 0x1e:
    case 0x1f:
        return CPU_DS;
    default:
        return CPU_SEG_COUNT;
    }
}

static int op_push(struct soft_vcpu *v, const struct insn *in)
{
    unsigned seg = pushed_segment(in);
    uint64_t value;

    if (seg != CPU_SEG_COUNT)
        return soft_push(v, in->op_size, v->st.seg[seg].selector);
    if (in->imm_size != 0)
        return soft_push(v, in->op_size, in->imm);
    if (in->gpr_opcode.reg != INSN_NO_REG)
        return soft_push(v, in->op_size, v->st.gpr[in->gpr_opcode.reg]);
    int r = soft_read_rm(v, in, in->op_size, &value);
    return r != 0 ? r : soft_push(v, in->op_size, value);
}

static int pop_segment(struct soft_vcpu *v, const struct insn *in, unsigned seg)
{
    uint64_t sp = v->st.gpr[CPU_RSP], value;

    int r = soft_pop(v, in->op_size, &value);
    if (r != 0)
        return r;
    uint64_t new_sp = v->st.gpr[CPU_RSP];
    v->st.gpr[CPU_RSP] = sp;
    r = soft_load_segment(v, seg, (uint16_t)value);
    if (r != 0)
        return r;
    v->st.gpr[CPU_RSP] = new_sp;
    if (seg == CPU_SS)
        v->st.shadow |= SHADOW_MOV_SS;
    return 0;
}

static int op_pop(struct soft_vcpu *v, const struct insn *in)
{
    unsigned seg = pushed_segment(in);
    uint64_t sp = v->st.gpr[CPU_RSP], value;

    if (seg != CPU_SEG_COUNT)
        return pop_segment(v, in, seg);
    int r = soft_pop(v, in->op_size, &value);
    if (r != 0)
        return r;
    if (in->gpr_opcode.reg != INSN_NO_REG) {
        soft_gpr_write(v, in->gpr_opcode.reg, in->op_size, false, value);
        return 0;
    }
    /* an address that uses rSP sees it incremented */
    r = soft_write_rm(v, in, in->op_size, value);
    if (r != 0)
        v->st.gpr[CPU_RSP] = sp;
    return r;
}

static int op_pusha(struct soft_vcpu *v, const struct insn *in)
{
    uint64_t sp = v->st.gpr[CPU_RSP];

    for (unsigned i = 0; i < 8; i++) {
        int r = soft_push(v, in->op_size, i == CPU_RSP ? sp : v->st.gpr[i]);
        if (r != 0) {
            v->st.gpr[CPU_RSP] = sp;
            return r;
        }
    }
    return 0;
}

/*
 * A fault leaves rSP as it was, so that the instruction can be started again. AMD's CPUs have
 * written the registers before the faulting one by then; Intel's have written none.
 */
static int op_popa(struct soft_vcpu *v, const struct insn *in)
{
    uint64_t sp = v->st.gpr[CPU_RSP], values[8];
    unsigned i = 8;
    int r = 0;

    while (i > 0 && r == 0) {
        r = soft_pop(v, in->op_size, &values[i - 1]);
        if (r == 0)
            i--;
    }
    if (r != 0) {
        v->st.gpr[CPU_RSP] = sp;
        if (!v->model->is_amd)
            return r;
    }
    for (unsigned g = 8; g-- > i;)
        if (g != CPU_RSP)
            soft_gpr_write(v, g, in->op_size, false, values[g]);
    return r;
}

static unsigned iopl(const struct soft_vcpu *v)
{
    return (unsigned)(v->st.rflags & RFLAGS_IOPL) >> RFLAGS_IOPL_SHIFT;
}

static int op_pushf(struct soft_vcpu *v, const struct insn *in)
{
    uint64_t flags = v->st.rflags & ~(RFLAGS_VM | RFLAGS_RF);

    if (cpu_is_v86(&v->st) && iopl(v) < 3) {
        if (!(v->st.cr4 & CR4_VME) || in->op_size != 2)
            return soft_raise_error(v, VEC_GP, 0);
        /* the image shows VIF as IF, and IOPL 3 */
        flags = (flags & ~RFLAGS_IF) | RFLAGS_IOPL;
        if (v->st.rflags & RFLAGS_VIF)
            flags |= RFLAGS_IF;
    }
    return soft_push(v, in->op_size, flags);
}

/* What POPF may change at this privilege. */
static int popf_mask(struct soft_vcpu *v, const struct insn *in, uint64_t *mask, uint64_t *value)
{
    uint64_t m = RFLAGS_STATUS | RFLAGS_TF | RFLAGS_DF | RFLAGS_NT | RFLAGS_AC | RFLAGS_ID;

    if (cpu_is_v86(&v->st)) {
        if (iopl(v) == 3) {
            m |= RFLAGS_IF;
        } else {
            if (!(v->st.cr4 & CR4_VME) || in->op_size != 2)
                return soft_raise_error(v, VEC_GP, 0);
            if ((*value & RFLAGS_TF) || ((*value & RFLAGS_IF) && (v->st.rflags & RFLAGS_VIP)))
                return soft_raise_error(v, VEC_GP, 0);
            m |= RFLAGS_VIF;
            *value = *value & RFLAGS_IF ? *value | RFLAGS_VIF : *value & ~RFLAGS_VIF;
            if (in->op_size == 2) {
                *mask = (m & 0xffff) | RFLAGS_VIF;
                return 0;
            }
        }
    } else {
        unsigned cpl = cpu_is_real(&v->st) ? 0 : cpu_cpl(&v->st);
        if (cpl == 0)
            m |= RFLAGS_IOPL;
        if (cpl <= iopl(v))
            m |= RFLAGS_IF;
    }
    *mask = in->op_size == 2 ? m & 0xffff : m;
    return 0;
}

static int op_popf(struct soft_vcpu *v, const struct insn *in)
{
    uint64_t sp = v->st.gpr[CPU_RSP], value, mask = 0;

    int r = soft_pop(v, in->op_size, &value);
    if (r == 0)
        r = popf_mask(v, in, &mask, &value);
    if (r != 0) {
        v->st.gpr[CPU_RSP] = sp;
        return r;
    }
    uint64_t before = v->st.rflags;
    v->st.rflags = (before & ~mask) | (value & mask);
    v->st.rflags &= ~RFLAGS_RF;
    if ((before ^ v->st.rflags) & (RFLAGS_TF | RFLAGS_AC))
        v->is_mode_stale = 1;
    return 0;
}

static int op_leave(struct soft_vcpu *v, const struct insn *in)
{
    uint64_t sp = v->st.gpr[CPU_RSP], value;
    unsigned width = cpu_stack_size(&v->st);

    soft_gpr_write(v, CPU_RSP, width, false, v->st.gpr[CPU_RBP]);
    int r = soft_pop(v, in->op_size, &value);
    if (r != 0) {
        v->st.gpr[CPU_RSP] = sp;
        return r;
    }
    soft_gpr_write(v, CPU_RBP, in->op_size, false, value);
    return 0;
}

/* Copy the enclosing frames' pointers: level - 1 of them, then the new frame's own. */
static int enter_nested(struct soft_vcpu *v, const struct insn *in, unsigned level, uint64_t frame)
{
    unsigned width = cpu_stack_size(&v->st);
    uint64_t bp = v->st.gpr[CPU_RBP];

    for (unsigned i = 1; i < level; i++) {
        uint64_t value;
        gva_t addr;
        bp -= in->op_size;
        int r = soft_linear(v, CPU_SS, bp & mask_bytes(width), in->op_size, SOFT_READ, &addr);
        if (r == 0)
            r = soft_load(v, addr, in->op_size, SOFT_AS_CPL, &value);
        if (r == 0)
            r = soft_push(v, in->op_size, value);
        if (r != 0)
            return r;
    }
    return soft_push(v, in->op_size, frame);
}

static int op_enter(struct soft_vcpu *v, const struct insn *in)
{
    unsigned width = cpu_stack_size(&v->st), level = in->imm2 & 31;
    uint64_t sp = v->st.gpr[CPU_RSP];
    gva_t addr;

    int r = soft_push(v, in->op_size, v->st.gpr[CPU_RBP]);
    uint64_t frame = v->st.gpr[CPU_RSP];
    if (r == 0 && level != 0)
        r = enter_nested(v, in, level, frame);
    uint64_t new_sp = (v->st.gpr[CPU_RSP] - (in->imm & 0xffff)) & mask_bytes(width);
    /* the page that the new rSP points to must be writable, though nothing is written */
    if (r == 0)
        r = soft_linear(v, CPU_SS, new_sp, 1, SOFT_WRITE, &addr);
    /* it is checked as a slot of the stack */
    if (r == 0 && UNLIKELY(v->is_ac_set) && (addr & (in->op_size - 1u)))
        r = soft_raise_error(v, VEC_AC, 0);
    if (r == 0)
        r = soft_probe(v, addr, 1, SOFT_WRITE, SOFT_AS_CPL);
    if (r != 0) {
        v->st.gpr[CPU_RSP] = sp;
        return r;
    }
    soft_gpr_write(v, CPU_RBP, in->op_size, false, frame);
    soft_gpr_write(v, CPU_RSP, width, false, new_sp);
    return 0;
}

const struct soft_op soft_ops_stack[] = {
    {ZYDIS_MNEMONIC_PUSH, op_push},
    {ZYDIS_MNEMONIC_POP, op_pop},
    {ZYDIS_MNEMONIC_PUSHA, op_pusha},
    {ZYDIS_MNEMONIC_PUSHAD, op_pusha},
    {ZYDIS_MNEMONIC_POPA, op_popa},
    {ZYDIS_MNEMONIC_POPAD, op_popa},
    {ZYDIS_MNEMONIC_PUSHF, op_pushf},
    {ZYDIS_MNEMONIC_PUSHFD, op_pushf},
    {ZYDIS_MNEMONIC_PUSHFQ, op_pushf},
    {ZYDIS_MNEMONIC_POPF, op_popf},
    {ZYDIS_MNEMONIC_POPFD, op_popf},
    {ZYDIS_MNEMONIC_POPFQ, op_popf},
    {ZYDIS_MNEMONIC_LEAVE, op_leave},
    {ZYDIS_MNEMONIC_ENTER, op_enter},
    {0, NULL},
};
