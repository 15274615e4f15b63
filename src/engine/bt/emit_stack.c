/*
 * emit_stack.c - host code for PUSH, POP, PUSHF, LEAVE
 *
 * Invariant: RSP and memory change only after every check of the instruction has passed.
 */
#include <Zydis/Zydis.h>

#include "engine/bt/bt.h"

void bt_emit_move_rsp(struct bt_tr *t, int32_t delta)
{
    t->rsp_moved += delta;
    /* C resumes blocks without shares behind the instruction that it ran */
    if (!t->has_shares)
        bt_emit_settle(t);
}

void bt_emit_settle(struct bt_tr *t)
{
    if (t->rsp_moved != 0)
        emit_lea(&t->e, t->size == 8, H_RSP, H_RSP, H_NONE, 1, t->rsp_moved);
    t->rsp_moved = 0;
}

/* Check the stack slot at reg + disp. */
static struct bt_place emit_slot_check(struct bt_tr *t, unsigned reg, int32_t disp, bool is_write)
{
    struct bt_address a = {.base = (uint8_t)reg,
                           .index = INSN_NO_REG,
                           .scale = 1,
                           .seg = CPU_SS,
                           .size = (uint8_t)t->size,
                           .disp = disp};
    struct bt_place place = {.index = S2};

    bt_emit_linear(t, &a, &place.base);
    bt_emit_check(t, place.base, t->size, is_write);
    return place;
}

/* Check the slot below RSP for a push of *in. */
static struct bt_place emit_push_check(struct bt_tr *t, const struct insn *in)
{
    struct bt_place place;
    if (bt_share_access(t, in, &place))
        return place;
    return emit_slot_check(t, CPU_RSP, -(int32_t)t->size, true);
}

/* Check the stack slot at [reg] for a pop of *in. */
struct bt_place bt_emit_pop_check(struct bt_tr *t, const struct insn *in, unsigned reg)
{
    struct bt_place place;
    if (reg == CPU_RSP && bt_share_access(t, in, &place))
        return place;
    return emit_slot_check(t, reg, 0, false);
}

/* opcode reg, the checked operand, as wide as the stack */
void bt_emit_stack_op(struct bt_tr *t, uint8_t opcode, unsigned reg, struct bt_place place)
{
    emit_op_mem(&t->e, t->size == 8, opcode, reg, place.base, place.index, 1, place.disp);
}

void bt_emit_push_imm(struct bt_tr *t, const struct insn *in, uint64_t value)
{
    struct emit *e = &t->e;
    struct bt_place place = emit_push_check(t, in);
    if (t->size == 4 || (int64_t)value == (int32_t)value) {
        bt_emit_stack_op(t, 0xc7, 0, place);
        emit32(e, (uint32_t)value);
    } else {
        emit_mov_imm(e, S0, value);
        bt_emit_stack_op(t, 0x89, S0, place);
    }
    bt_emit_move_rsp(t, -(int32_t)t->size);
}

/* PUSH from memory: the value waits in the vCPU block while the stack is checked. */
static void emit_push_mem(struct bt_tr *t, const struct insn *in)
{
    struct emit *e = &t->e;
    struct bt_place place;
    if (!bt_emit_operand(t, in, t->size, false, &place)) {
        bt_emit_soft(t);
        return;
    }
    bt_share_release(t);
    bt_emit_stack_op(t, 0x8b, S1, place);
    emit_gs_store(e, true, S1, BT_OFFSET(pushed));
    place = emit_push_check(t, in);
    emit_gs_load(e, true, S0, BT_OFFSET(pushed));
    bt_emit_stack_op(t, 0x89, S0, place);
    bt_emit_move_rsp(t, -(int32_t)t->size);
}

void bt_emit_push(struct bt_tr *t, const struct insn *in)
{
    unsigned g = in->gpr_opcode.reg != INSN_NO_REG ? in->gpr_opcode.reg : in->gpr_rm.reg;

    if (in->op_size != t->size) {
        bt_emit_soft(t);
    } else if (in->has_mem) {
        emit_push_mem(t, in);
    } else if (in->opcode == 0x68 || in->opcode == 0x6a) {
        bt_emit_push_imm(t, in, in->imm);
    } else if (g != INSN_NO_REG) {
        struct bt_place place = emit_push_check(t, in);
        bt_emit_stack_op(t, 0x89, bt_emit_gpr_get(t, g, S0), place);
        bt_emit_move_rsp(t, -(int32_t)t->size);
    } else {
        bt_emit_soft(t); /* segment registers */
    }
}

/* The image has IF and its like from st.rflags, the status flags from the host; RF and VM clear. */
void bt_emit_pushf(struct bt_tr *t, const struct insn *in)
{
    static const uint8_t lahf_seto[] = {0x9f, 0x0f, 0x90, 0xc0};
    static const uint8_t add_sahf[] = {0x04, 0x7f, 0x9e};
    struct emit *e = &t->e;

    if (in->op_size != 8 || t->size != 8) {
        bt_emit_soft(t);
        return;
    }
    struct bt_place place = emit_push_check(t, in);
    emit_mov(e, true, S0, H_RAX);
    emit_bytes(e, lahf_seto, sizeof(lahf_seto));
    emit_gs_store(e, false, H_RAX, BT_OFFSET(flags_ax));
    bt_share_release(t);
    emit_lea(e, true, S1, place.base, place.index, 1, place.disp);
    /* status bits of AH, OF from AL, the rest from memory: flags are free here */
    emit_mov(e, false, S2, H_RAX);
    emit8(e, 0x41); /* shr r15d, 8 */
    emit8(e, 0xc1);
    emit8(e, emit_modrm(3, 5, S2));
    emit8(e, 8);
    emit8(e, 0x41); /* and r15d, 0xd5 */
    emit8(e, 0x81);
    emit8(e, emit_modrm(3, 4, S2));
    emit32(e, 0xd5);
    emit8(e, 0x0f); /* movzx eax, al */
    emit8(e, 0xb6);
    emit8(e, emit_modrm(3, H_RAX, H_RAX));
    emit8(e, 0xc1); /* shl eax, 11 */
    emit8(e, emit_modrm(3, 4, H_RAX));
    emit8(e, 11);
    emit8(e, 0x44); /* or eax, r15d */
    emit8(e, 0x09);
    emit8(e, emit_modrm(3, S2, H_RAX));
    emit_gs_load(e, true, S2, BT_OFFSET(soft.st.rflags));
    emit8(e, 0x49); /* and r15, ~(status, RF, VM) */
    emit8(e, 0x81);
    emit8(e, emit_modrm(3, 4, S2));
    emit32(e, ~(uint32_t)(RFLAGS_STATUS | RFLAGS_RF | RFLAGS_VM));
    emit8(e, 0x4c); /* or rax, r15 */
    emit8(e, 0x09);
    emit8(e, emit_modrm(3, S2, H_RAX));
    emit_op_mem(e, true, 0x89, H_RAX, S1, H_NONE, 1, 0);
    emit_gs_load(e, false, H_RAX, BT_OFFSET(flags_ax));
    emit_bytes(e, add_sahf, sizeof(add_sahf));
    emit_mov(e, true, H_RAX, S0);
    bt_emit_move_rsp(t, -8);
}

void bt_emit_pop(struct bt_tr *t, const struct insn *in)
{
    struct emit *e = &t->e;
    unsigned g = in->gpr_opcode.reg != INSN_NO_REG ? in->gpr_opcode.reg : in->gpr_rm.reg;
    bool is_wide = t->size == 8;

    if (in->op_size != t->size || in->has_mem || g == INSN_NO_REG) {
        bt_emit_soft(t);
        return;
    }
    struct bt_place place = bt_emit_pop_check(t, in, CPU_RSP);
    unsigned h = g == CPU_RCX ? H_GUEST_RCX : BT_IN_MEMORY(g) || g == CPU_RSP ? S0 : g;
    bt_emit_stack_op(t, 0x8b, h, place);
    if (g == CPU_RSP) {
        emit_mov(e, is_wide, H_RSP, S0);
        return;
    }
    bt_emit_move_rsp(t, (int32_t)t->size);
    if (BT_IN_MEMORY(g))
        emit_gs_store(e, true, S0, BT_GPR_OFFSET(g));
}

void bt_emit_leave(struct bt_tr *t, const struct insn *in)
{
    if (in->op_size != t->size) {
        bt_emit_soft(t);
        return;
    }
    struct bt_place place = bt_emit_pop_check(t, in, CPU_RBP);
    emit_lea(&t->e, t->size == 8, H_RSP, H_RBP, H_NONE, 1, (int32_t)t->size);
    bt_emit_stack_op(t, 0x8b, H_RBP, place);
}
