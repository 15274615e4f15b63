/*
 * emit_x87.c - the guest's pointers to its last x87 instruction, kept by translated code
 *
 * The host's own pointers show the code cache, and never reach the guest: st.xsave holds the
 * guest's (engine/soft/fpu_state.h), written behind each x87 instruction that sets them. A fault of
 * the instruction finds them as they were.
 * Spec: Intel SDM vol. 1, 8.1.8 and 8.1.9.
 */
#include <Zydis/Zydis.h>

#include "engine/bt/bt.h"
#include "engine/soft/fpu_state.h"

#define IMAGE_OFFSET(field) (BT_OFFSET(soft.st.xsave) + (field))

static void emit_store_opcode(struct emit *e, unsigned opcode)
{
    emit8(e, 0x66);
    emit_op_gs(e, false, 0xc7, 0, H_NONE, IMAGE_OFFSET(FPU_FOP));
    emit8(e, (uint8_t)opcode);
    emit8(e, (uint8_t)(opcode >> 8));
}

/* The selector of `seg` goes beside a 32-bit offset. */
static void emit_store_selector(struct emit *e, unsigned seg, unsigned field)
{
    uint32_t selector = BT_OFFSET(soft.st.seg) + (uint32_t)(seg * sizeof(struct cpu_seg)) +
                        (uint32_t)offsetof(struct cpu_seg, selector);

    emit8(e, 0x65); /* movzx S1d, word %gs:[selector] */
    emit_rex(e, false, S1, 0, 0, false);
    emit8(e, 0x0f);
    emit8(e, 0xb7);
    emit_address(e, S1, H_NONE, H_NONE, 1, (int32_t)selector);
    emit_gs_store(e, false, S1, IMAGE_OFFSET(field) + 4);
}

static void emit_store_constant(struct emit *e, uint64_t value, unsigned field)
{
    if ((int64_t)value == (int32_t)value) {
        emit_gs_store_imm(e, IMAGE_OFFSET(field), (int32_t)value);
    } else {
        emit_mov_imm(e, S1, value);
        emit_gs_store(e, true, S1, IMAGE_OFFSET(field));
    }
}

/* The operand's offset in its segment; x87 memory instructions change no register of it. */
static void emit_store_operand(struct bt_tr *t, const struct insn *in)
{
    struct emit *e = &t->e;
    bool is_wide = in->addr_size == 8;

    if (in->mem_base == INSN_RIP || (in->mem_base == INSN_NO_REG && in->mem_index == INSN_NO_REG)) {
        uint64_t addr = (uint64_t)in->mem_disp;
        if (in->mem_base == INSN_RIP)
            addr += t->rip + in->len;
        emit_store_constant(e, is_wide ? addr : (uint32_t)addr, FPU_FDP);
        return;
    }
    unsigned base = in->mem_base == INSN_NO_REG ? H_NONE : bt_emit_gpr_get(t, in->mem_base, S1);
    unsigned index = in->mem_index == INSN_NO_REG ? H_NONE : bt_emit_gpr_get(t, in->mem_index, S2);
    emit_lea(e, is_wide, S1, base, index, in->mem_scale, (int32_t)in->mem_disp);
    emit_gs_store(e, true, S1, IMAGE_OFFSET(FPU_FDP));
}

void bt_emit_note_x87(struct bt_tr *t, const struct insn *in)
{
    struct emit *e = &t->e;
    bool has_selectors = t->size != 8 && !cpu_model_has(t->b->soft.model, CPU_FEATURE_ZERO_FCS_FDS);

    bt_share_release(t);
    if (in->op == ZYDIS_MNEMONIC_FNINIT) {
        emit_store_opcode(e, 0);
        emit_store_constant(e, 0, FPU_FIP);
        emit_store_constant(e, 0, FPU_FDP);
        return;
    }
    if (!soft_fpu_sets_pointers(in))
        return;
    emit_store_opcode(e, (in->opcode & 7u) << 8 | in->modrm);
    emit_store_constant(e, t->size == 8 ? t->rip : (uint32_t)t->rip, FPU_FIP);
    if (has_selectors)
        emit_store_selector(e, CPU_CS, FPU_FIP);
    if (!in->has_mem)
        return;
    emit_store_operand(t, in);
    if (has_selectors)
        emit_store_selector(e, in->seg, FPU_FDP);
}
