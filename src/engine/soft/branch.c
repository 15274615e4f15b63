/*
 * branch.c - near calls, jumps and returns; far ones go to transfer.c
 *
 * Spec: Intel SDM vol. 2 (CALL, JMP, RET, Jcc, LOOP, JCXZ).
 */
#include <Zydis/Zydis.h>

#include "engine/soft/ops.h"
#include "engine/soft/system.h"
#include "engine/soft/vcpu.h"

/* The decoder knows what 66H does to a near branch in 64-bit mode: nothing (Intel), 16 bits (AMD).
 */
static unsigned branch_size(const struct soft_vcpu *v, const struct insn *in)
{
    return in->op_size;
}

static int jump_relative(struct soft_vcpu *v, const struct insn *in)
{
    return soft_jump_near(v, v->st.rip + in->len + in->imm, branch_size(v, in));
}

static bool is_far(const struct insn *in)
{
    unsigned group = in->modrm >> 3 & 7;
    return in->opcode == 0xea || in->opcode == 0x9a ||
           (in->opcode == 0xff && (group == 3 || group == 5));
}

/*
 * AMD's processors push before they look at the target: a fault of the stack replaces the one
 * recorded for a target that is not canonical. Nothing is written either way.
 */
static void call_fault_order(struct soft_vcpu *v, unsigned size)
{
    uint64_t sp = (v->st.gpr[CPU_RSP] - size) & mask_bytes(cpu_stack_size(&v->st));
    gva_t addr;

    if (!soft_is_amd(v) || soft_linear(v, CPU_SS, sp, size, SOFT_WRITE, &addr) != 0)
        return;
    if (v->is_ac_set && (addr & (size - 1)))
        (void)!soft_raise_error(v, VEC_AC, 0);
    else
        (void)!soft_probe(v, addr, size, SOFT_WRITE, SOFT_AS_CPL);
}

static int op_call(struct soft_vcpu *v, const struct insn *in)
{
    unsigned size = branch_size(v, in);
    uint64_t target = v->st.rip + in->len + in->imm, return_to = v->next_rip;

    if (is_far(in))
        return soft_far_call(v, in);
    if (in->opcode == 0xff) {
        int r = soft_read_rm(v, in, size, &target);
        if (r != 0)
            return r;
    }
    int r = soft_jump_near(v, target, size);
    if (r != 0)
        call_fault_order(v, size);
    return r != 0 ? r : soft_push(v, size, return_to);
}

static int op_jmp(struct soft_vcpu *v, const struct insn *in)
{
    uint64_t target;

    if (is_far(in))
        return soft_far_jump(v, in);
    if (in->opcode != 0xff)
        return jump_relative(v, in);
    int r = soft_read_rm(v, in, branch_size(v, in), &target);
    return r != 0 ? r : soft_jump_near(v, target, branch_size(v, in));
}

static int op_ret(struct soft_vcpu *v, const struct insn *in)
{
    uint64_t sp = v->st.gpr[CPU_RSP], target;
    unsigned width = cpu_stack_size(&v->st);

    if (in->opcode == 0xca || in->opcode == 0xcb)
        return soft_far_return(v, in);
    int r = soft_pop(v, branch_size(v, in), &target);
    if (r == 0)
        r = soft_jump_near(v, target, branch_size(v, in));
    if (r != 0) {
        v->st.gpr[CPU_RSP] = sp;
        return r;
    }
    if (in->opcode == 0xc2)
        soft_gpr_write(v, CPU_RSP, width, false, v->st.gpr[CPU_RSP] + (in->imm & 0xffff));
    return 0;
}

static bool condition_holds(uint64_t f, unsigned condition)
{
    bool sf = f & RFLAGS_SF, of = f & RFLAGS_OF, holds;
    switch (condition >> 1) {
    case 0:
        holds = of;
        break;
    case 1:
        holds = f & RFLAGS_CF;
        break;
    case 2:
        holds = f & RFLAGS_ZF;
        break;
    case 3:
        holds = f & (RFLAGS_CF | RFLAGS_ZF);
        break;
    case 4:
        holds = sf;
        break;
    case 5:
        holds = f & RFLAGS_PF;
        break;
    case 6:
        holds = sf != of;
        break;
    default:
        holds = (f & RFLAGS_ZF) || sf != of;
        break;
    }
    return holds != (condition & 1);
}

static int op_jcc(struct soft_vcpu *v, const struct insn *in)
{
    return condition_holds(v->st.rflags, in->opcode & 15) ? jump_relative(v, in) : 0;
}

/*
 * What LOOPE (true) and LOOPNE wait for. A repeat prefix overrules the opcode on AMD's processors,
 * as it does for CMPS; on others it is ignored.
 */
static bool loop_is_while_equal(const struct soft_vcpu *v, const struct insn *in)
{
    if (v->model->is_amd && (in->has_rep || in->has_repne))
        return in->has_rep;
    return in->op == ZYDIS_MNEMONIC_LOOPE;
}

/* The count register has the width of the address size. */
static int op_loop(struct soft_vcpu *v, const struct insn *in)
{
    uint64_t count = soft_gpr_read(v, CPU_RCX, in->addr_size, false) - 1;
    bool zf = v->st.rflags & RFLAGS_ZF;
    bool is_taken = (count & mask_bytes(in->addr_size)) != 0;

    if (in->op != ZYDIS_MNEMONIC_LOOP)
        is_taken &= zf == loop_is_while_equal(v, in);
    if (is_taken) {
        int r = jump_relative(v, in);
        if (r != 0)
            return r;
    }
    soft_gpr_write(v, CPU_RCX, in->addr_size, false, count);
    return 0;
}

static int op_jcxz(struct soft_vcpu *v, const struct insn *in)
{
    return soft_gpr_read(v, CPU_RCX, in->addr_size, false) == 0 ? jump_relative(v, in) : 0;
}

const struct soft_op soft_ops_branch[] = {
    {ZYDIS_MNEMONIC_CALL, op_call},  {ZYDIS_MNEMONIC_JMP, op_jmp},
    {ZYDIS_MNEMONIC_RET, op_ret},    {ZYDIS_MNEMONIC_LOOP, op_loop},
    {ZYDIS_MNEMONIC_LOOPE, op_loop}, {ZYDIS_MNEMONIC_LOOPNE, op_loop},
    {ZYDIS_MNEMONIC_JCXZ, op_jcxz},  {ZYDIS_MNEMONIC_JECXZ, op_jcxz},
    {ZYDIS_MNEMONIC_JRCXZ, op_jcxz}, {ZYDIS_MNEMONIC_JB, op_jcc},
    {ZYDIS_MNEMONIC_JBE, op_jcc},    {ZYDIS_MNEMONIC_JL, op_jcc},
    {ZYDIS_MNEMONIC_JLE, op_jcc},    {ZYDIS_MNEMONIC_JNB, op_jcc},
    {ZYDIS_MNEMONIC_JNBE, op_jcc},   {ZYDIS_MNEMONIC_JNL, op_jcc},
    {ZYDIS_MNEMONIC_JNLE, op_jcc},   {ZYDIS_MNEMONIC_JNO, op_jcc},
    {ZYDIS_MNEMONIC_JNP, op_jcc},    {ZYDIS_MNEMONIC_JNS, op_jcc},
    {ZYDIS_MNEMONIC_JNZ, op_jcc},    {ZYDIS_MNEMONIC_JO, op_jcc},
    {ZYDIS_MNEMONIC_JP, op_jcc},     {ZYDIS_MNEMONIC_JS, op_jcc},
    {ZYDIS_MNEMONIC_JZ, op_jcc},     {0, NULL},
};
