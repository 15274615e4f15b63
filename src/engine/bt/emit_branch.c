/*
 * emit_branch.c - host code for jumps, calls and returns
 *
 * Invariant: as for every instruction, nothing of the guest changes before all that may fault is
 * behind it. A target that is not canonical faults in the branch itself.
 */
#include <Zydis/Zydis.h>

#include "engine/bt/bt.h"

uint64_t bt_branch_target(const struct bt_tr *t, const struct insn *in)
{
    uint64_t target = t->rip + in->len + in->imm;
    return t->size == 8 ? target : (uint32_t)target;
}

/* At the edge of an address space a branch may lead out of it: C raises its fault. */
static bool target_is_canonical(const struct bt_tr *t, const struct insn *in)
{
    uint64_t target = bt_branch_target(t, in);
    return t->size != 8 || (uint64_t)sign_extend(target, 48) == target;
}

/*
 * S1 = target of an indirect CALL or JMP. A memory operand's value waits in the vCPU block
 * while the stack is checked.
 */
static bool emit_indirect_target(struct bt_tr *t, const struct insn *in)
{
    struct emit *e = &t->e;
    if (in->has_mem) {
        struct bt_place place;
        if (!bt_emit_operand(t, in, t->size, false, &place))
            return false;
        bt_share_release(t);
        bt_emit_stack_op(t, 0x8b, S1, place);
    } else {
        unsigned h = bt_emit_gpr_get(t, in->gpr_rm.reg, S1);
        if (h != S1)
            emit_mov(e, t->size == 8, S1, h);
        else if (t->size == 4)
            emit_mov(e, false, S1, S1);
    }
    return true;
}

void bt_emit_call(struct bt_tr *t, const struct insn *in)
{
    struct emit *e = &t->e;
    uint64_t next = t->rip + in->len;
    bool is_direct = in->opcode == 0xe8;

    if (in->op_size != t->size || (!is_direct && in->opcode != 0xff) ||
        in->op != ZYDIS_MNEMONIC_CALL || (in->opcode == 0xff && (in->modrm >> 3 & 7) != 2) ||
        (is_direct && !target_is_canonical(t, in))) {
        bt_emit_end_soft(t);
        return;
    }
    if (is_direct) {
        bt_emit_push_imm(t, in, t->size == 8 ? next : (uint32_t)next);
        bt_emit_exit(t, bt_branch_target(t, in));
        t->is_end = true;
        return;
    }
    if (!emit_indirect_target(t, in)) {
        bt_emit_end_soft(t);
        return;
    }
    /* a target that is not canonical must be found before the return address is pushed */
    bt_emit_lookup(t, BT_INDIRECT_REDO);
    emit_op_gs(e, true, 0x8b, S0, S2, BT_JC_OFFSET(t->set, host));
    emit_gs_store(e, true, S0, BT_OFFSET(pushed));
    bt_emit_push_imm(t, in, t->size == 8 ? next : (uint32_t)next);
    bt_emit_settle(t);
    emit_op_gs(e, false, 0xff, 4, H_NONE, BT_OFFSET(pushed)); /* jmp [...] */
    t->is_end = true;
}

void bt_emit_jump(struct bt_tr *t, const struct insn *in)
{
    bool is_direct = in->opcode == 0xe9 || in->opcode == 0xeb;

    if (is_direct && in->op_size == t->size && target_is_canonical(t, in)) {
        bt_emit_exit(t, bt_branch_target(t, in));
        t->is_end = true;
    } else if (in->opcode == 0xff && (in->modrm >> 3 & 7) == 4 && in->op_size == t->size &&
               emit_indirect_target(t, in)) {
        bt_emit_indirect(t, 0);
    } else {
        bt_emit_end_soft(t);
    }
}

void bt_emit_ret(struct bt_tr *t, const struct insn *in)
{
    int32_t delta = (int32_t)t->size;

    if (in->op_size != t->size || (in->opcode != 0xc3 && in->opcode != 0xc2)) {
        bt_emit_end_soft(t);
        return;
    }
    if (in->opcode == 0xc2)
        delta += (int32_t)(in->imm & 0xffff);
    struct bt_place place = bt_emit_pop_check(t, in, CPU_RSP);
    bt_emit_stack_op(t, 0x8b, S1, place);
    bt_emit_move_rsp(t, delta);
    bt_emit_indirect(t, delta);
}

/* The taken side leaves the block; the other goes on in it. */
void bt_emit_jcc(struct bt_tr *t, const struct insn *in)
{
    struct emit *e = &t->e;
    if ((in->op_size != t->size && in->op_size == 2) || !target_is_canonical(t, in)) {
        bt_emit_soft(t);
        return;
    }
    bt_emit_settle(t);
    emit_nops(e, bt_link_padding(e->p + 2));
    emit8(e, 0x0f);
    emit8(e, (uint8_t)(0x80 | (in->opcode & 15)));
    emit32(e, 0);
    bt_cold_add(t, BT_COLD_CHAIN, e->p - 4)->rip = bt_branch_target(t, in);
}
