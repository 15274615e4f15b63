/*
 * operand.c - explicit operands, the stack, near jumps
 *
 * Spec: Intel SDM vol. 1, 3.7 (operand addressing), 6.2 (stacks); vol. 3, 6.15 (#AC).
 */
#include "engine/soft/system.h"
#include "engine/soft/vcpu.h"

uint64_t soft_gpr_read(const struct soft_vcpu *v, unsigned reg, unsigned size, bool is_high_byte)
{
    if (is_high_byte)
        return v->st.gpr[reg] >> 8 & 0xff;
    return v->st.gpr[reg] & mask_bytes(size);
}

void soft_gpr_write(struct soft_vcpu *v, unsigned reg, unsigned size, bool is_high_byte,
                    uint64_t value)
{
    uint64_t *r = &v->st.gpr[reg];

    if (is_high_byte)
        *r = (*r & ~UINT64_C(0xff00)) | (value & 0xff) << 8;
    else if (size >= 4)
        *r = value & mask_bytes(size);
    else
        *r = (*r & ~mask_bytes(size)) | (value & mask_bytes(size));
}

uint64_t soft_effective_address(const struct soft_vcpu *v, const struct insn *in)
{
    uint64_t addr = (uint64_t)in->mem_disp;

    if (in->mem_base == INSN_RIP)
        addr += v->st.rip + in->len;
    else if (in->mem_base != INSN_NO_REG)
        addr += v->st.gpr[in->mem_base];
    if (in->mem_index != INSN_NO_REG)
        addr += v->st.gpr[in->mem_index] * in->mem_scale;
    return addr & mask_bytes(in->addr_size);
}

int soft_operand_address(struct soft_vcpu *v, const struct insn *in, unsigned size,
                         enum soft_access access, gva_t *addr)
{
    int r = soft_linear(v, in->seg, soft_effective_address(v, in), size, access, addr);

    if (r == 0 && UNLIKELY(v->is_ac_set) && is_pow2(size) && size <= 8 && (*addr & (size - 1)))
        return soft_raise_error(v, VEC_AC, 0);
    return r;
}

/* The register that a ModRM with mod 3 names, when it is a GPR of the instruction. */
static const struct insn_gpr *rm_register(const struct insn *in)
{
    return &in->gpr_rm;
}

int soft_read_rm(struct soft_vcpu *v, const struct insn *in, unsigned size, uint64_t *value)
{
    gva_t addr;

    if (!in->has_mem) {
        const struct insn_gpr *g = rm_register(in);
        *value = soft_gpr_read(v, g->reg, size, g->is_high_byte);
        return 0;
    }
    int r = soft_operand_address(v, in, size, SOFT_READ, &addr);
    return r != 0 ? r : soft_load(v, addr, size, SOFT_AS_CPL, value);
}

int soft_write_rm(struct soft_vcpu *v, const struct insn *in, unsigned size, uint64_t value)
{
    gva_t addr;

    if (!in->has_mem) {
        const struct insn_gpr *g = rm_register(in);
        soft_gpr_write(v, g->reg, size, g->is_high_byte, value);
        return 0;
    }
    int r = soft_operand_address(v, in, size, SOFT_WRITE, &addr);
    return r != 0 ? r : soft_store(v, addr, size, SOFT_AS_CPL, value);
}

static void set_sp(struct soft_vcpu *v, uint64_t sp)
{
    uint64_t mask = mask_bytes(cpu_stack_size(&v->st));
    v->st.gpr[CPU_RSP] =
        cpu_stack_size(&v->st) == 2 ? (v->st.gpr[CPU_RSP] & ~mask) | (sp & mask) : sp & mask;
}

int soft_push(struct soft_vcpu *v, unsigned size, uint64_t value)
{
    uint64_t sp = (v->st.gpr[CPU_RSP] - size) & mask_bytes(cpu_stack_size(&v->st));
    gva_t addr;

    int r = soft_linear(v, CPU_SS, sp, size, SOFT_WRITE, &addr);
    if (r == 0 && UNLIKELY(v->is_ac_set) && (addr & (size - 1)))
        return soft_raise_error(v, VEC_AC, 0);
    if (r == 0)
        r = soft_store(v, addr, size, SOFT_AS_CPL, value);
    if (r == 0)
        set_sp(v, sp);
    return r;
}

int soft_pop(struct soft_vcpu *v, unsigned size, uint64_t *value)
{
    uint64_t sp = v->st.gpr[CPU_RSP] & mask_bytes(cpu_stack_size(&v->st));
    gva_t addr;

    int r = soft_linear(v, CPU_SS, sp, size, SOFT_READ, &addr);
    if (r == 0 && UNLIKELY(v->is_ac_set) && (addr & (size - 1)))
        return soft_raise_error(v, VEC_AC, 0);
    if (r == 0)
        r = soft_load(v, addr, size, SOFT_AS_CPL, value);
    if (r == 0)
        set_sp(v, sp + size);
    return r;
}

int soft_jump_near(struct soft_vcpu *v, uint64_t target, unsigned size)
{
    target &= mask_bytes(size);
    if (cpu_is_64bit(&v->st)) {
        if (!soft_is_canonical(v, target))
            return soft_raise_error(v, VEC_GP, 0);
    } else if (target > v->st.seg[CPU_CS].limit) {
        return soft_raise_error(v, VEC_GP, 0);
    }
    v->next_rip = target;
    v->has_jumped = true;
    return 0;
}
