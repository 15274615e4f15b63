/*
 * emit_string.c - host code for MOVS and STOS, and for bit strings
 *
 * Both form addresses from more than the ModRM operand, so each is confined here: a string
 * instruction runs on the host only when all its elements lie in one checked page (and there are
 * less than 4096 of them, so that no product wraps); a bit string's register is reduced to a
 * bit's number within the checked operand. Whatever else comes runs in C.
 */
#include <Zydis/Zydis.h>

#include "engine/bt/bt.h"

/* S0 = pext(src, mask in the vCPU block): go on when that is 0, else jump to a place not known. */
static uint8_t *emit_require_zero(struct bt_tr *t, unsigned src, uint32_t mask)
{
    struct emit *e = &t->e;

    emit_pext_gs(e, S0, src, mask);
    uint8_t *is_zero = emit_jrcxz(e);
    uint8_t *other = emit_jmp(e);
    emit_patch8(e, is_zero, e->p);
    return other;
}

void bt_emit_load_df(struct bt_tr *t)
{
    struct emit *e = &t->e;

    emit8(e, 0x65); /* movzx ecx, byte gs:[rflags + 1] */
    emit8(e, 0x0f);
    emit8(e, 0xb6);
    emit_address(e, S0, H_NONE, H_NONE, 1, (int32_t)(BT_OFFSET(soft.st.rflags) + 1));
    emit_pext_gs(e, S0, S0, BT_OFFSET(mask_df));
}

/*
 * S2 = addend of the page at [h], which all elements lie in; else a jump to a place not known. An
 * empty string may pass for one before the page's start: nothing is accessed then.
 */
static uint8_t *emit_string_check(struct bt_tr *t, unsigned h, unsigned size, bool is_repeated,
                                  bool is_write)
{
    struct emit *e = &t->e;
    uint32_t tags = is_write ? BT_SET_OFFSET(t->set, write_tag) : BT_SET_OFFSET(t->set, read_tag);

    bt_emit_count(t, BT_OFFSET(accesses));
    emit_pext_gs(e, S2, h, BT_OFFSET(mask_tlb));
    emit_op_gs(e, true, 0x8b, S0, S2, tags);
    if (is_repeated) {
        emit_lea(e, true, S0, S0, H_GUEST_RCX, size, 0);
        emit_lea(e, true, S0, S0, h, 1, -1);
    } else {
        emit_lea(e, true, S0, S0, h, 1, (int32_t)size - 1);
    }
    uint8_t *other = emit_require_zero(t, S0, BT_OFFSET(mask_page));
    emit_op_gs(e, true, 0x8b, S2, S2,
               is_write ? BT_SET_OFFSET(t->set, write_addend) : BT_SET_OFFSET(t->set, read_addend));
    return other;
}

static void emit_string_op(struct bt_tr *t, const struct insn *in, unsigned size)
{
    struct emit *e = &t->e;

    if (in->has_rep || in->has_repne)
        emit8(e, 0xf3);
    if (size == 2)
        emit8(e, 0x66);
    if (size == 8)
        emit8(e, 0x48);
    emit8(e, in->opcode);
}

void bt_emit_string(struct bt_tr *t, const struct insn *in)
{
    struct emit *e = &t->e;
    bool is_movs = in->opcode == 0xa4 || in->opcode == 0xa5;
    bool is_repeated = in->has_rep || in->has_repne;
    unsigned size = in->opcode & 1 ? in->op_size : 1, others = 0;
    uint8_t *other[6];

    /* elsewhere: MOVSD of SSE2; segment bases; wrapping offsets */
    if (in->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT || in->addr_size != t->size ||
        in->has_seg_override || in->has_lock) {
        bt_emit_soft(t);
        return;
    }
    /* 32-bit code in which 64-bit code left something above its addresses */
    if (t->size == 4 && is_movs)
        other[others++] = emit_require_zero(t, H_RSI, BT_OFFSET(mask_high));
    if (t->size == 4)
        other[others++] = emit_require_zero(t, H_RDI, BT_OFFSET(mask_high));
    bt_emit_load_df(t);
    uint8_t *is_up = emit_jrcxz(e);
    other[others++] = emit_jmp(e);
    emit_patch8(e, is_up, e->p);
    if (is_repeated)
        other[others++] = emit_require_zero(t, H_GUEST_RCX, BT_OFFSET(mask_page));
    if (is_movs) {
        other[others++] = emit_string_check(t, H_RSI, size, is_repeated, false);
        emit_mov(e, true, S1, S2);
    }
    other[others++] = emit_string_check(t, H_RDI, size, is_repeated, true);
    emit_lea(e, true, H_RDI, H_RDI, S2, 1, 0);
    if (is_movs)
        emit_lea(e, true, H_RSI, H_RSI, S1, 1, 0);
    if (is_repeated)
        emit_mov(e, true, H_RCX, H_GUEST_RCX);
    emit_string_op(t, in, size);
    if (is_repeated)
        emit_mov(e, true, H_GUEST_RCX, H_RCX);
    /* minus the addends: x + ~a + 1; addresses of 32 bits may have reached 0 */
    emit_not(e, S2);
    emit_lea(e, t->size == 8, H_RDI, H_RDI, S2, 1, 1);
    if (is_movs) {
        emit_not(e, S1);
        emit_lea(e, t->size == 8, H_RSI, H_RSI, S1, 1, 1);
    }
    uint8_t *done = emit_jmp(e);
    for (unsigned i = 0; i < others; i++)
        emit_patch32(e, other[i], e->p);
    bt_emit_soft(t);
    emit_patch32(e, done, e->p);
}

void bt_emit_bit_string(struct bt_tr *t, const struct insn *in)
{
    struct emit *e = &t->e;
    bool is_write = in->op != ZYDIS_MNEMONIC_BT;
    unsigned size = in->op_size, base;

    if (t->size != 8 || (size != 4 && size != 8) || in->addr_size != 8 || !in->has_mem ||
        in->gpr_reg.reg == INSN_NO_REG || in->opcode_map != ZYDIS_OPCODE_MAP_0F ||
        (in->opcode & 0xc7) != 0x83 || !bt_emit_address(t, in, &base)) {
        bt_emit_soft(t);
        return;
    }
    /* the operand that holds the bit: + (distance >> 5 or 6) * size */
    unsigned h = bt_emit_gpr_get(t, in->gpr_reg.reg, S0);
    if (size == 4) {
        emit_op_reg(e, true, 0x63, S0, h); /* movsxd */
        h = S0;
    }
    emit_mov_imm(e, S2, size == 8 ? 6 : 5);
    emit_shift(e, EMIT_SARX, S0, h, S2);
    emit_lea(e, true, S1, base, S0, size, 0);
    bt_emit_check(t, S1, size, is_write);
    h = bt_emit_gpr_get(t, in->gpr_reg.reg, S0);
    emit_pext_gs(e, S0, h, BT_OFFSET(mask_bit[size == 8]));
    emit_lea(e, true, S1, S1, S2, 1, 0);
    if (in->has_lock)
        emit8(e, 0xf0);
    emit_rex(e, size == 8, S0, 0, S1, false);
    emit8(e, 0x0f);
    emit8(e, in->opcode);
    emit_address(e, S0, S1, H_NONE, 1, 0);
}
