/*
 * guess.c - where a table lies
 *
 * Code that works with tables has their address from an LEA, or in the operand itself, and an index
 * that differs. The slot of the TLB for such an access is that of the table's page most times, so a
 * check looks there first: the addend is loaded before the address is known, and the processor need
 * not wait for the index, then the slot, then the addend, before it can load the element.
 *
 * A guess is no promise: the check compares the address itself with the slot's tag, and looks in
 * the slot of the address when they differ (emit_mem.c).
 */
#include <Zydis/Zydis.h>

#include "engine/bt/bt.h"

/* Does the block use a constant in that page? Then the table is one of few elements, beside it. */
static bool has_constant_beside(const struct bt_tr *t, uint64_t page)
{
    for (unsigned i = 0; i < t->insn_count; i++) {
        const struct insn *in = &t->insns[i];
        if (!in->has_mem || in->is_agen || in->mem_base != INSN_RIP || in->cls != INSN_DATA)
            continue;
        uint64_t addr = t->block_rip + t->be->insn_at[i] + in->len + (uint64_t)in->mem_disp;
        if (addr >> SOFT_PAGE_SHIFT == page)
            return true;
    }
    return false;
}

uint32_t bt_guess_slot(const struct bt_tr *t, const struct insn *in, bool is_write)
{
    uint64_t addr = (uint64_t)in->mem_disp;

    /* large arrays are elsewhere than they begin; those that are written to are seldom tables */
    if (is_write || in->cls != INSN_DATA || in->mem_index == INSN_NO_REG || in->addr_size != 8 ||
        t->size != 8 || in->seg == CPU_FS || in->seg == CPU_GS)
        return BT_NO_GUESS;
    if (in->mem_base != INSN_NO_REG) {
        if (in->mem_base >= CPU_GPR_COUNT || !(t->constants & BIT(in->mem_base)))
            return BT_NO_GUESS;
        addr += t->constant[in->mem_base];
    }
    if (!has_constant_beside(t, addr >> SOFT_PAGE_SHIFT))
        return BT_NO_GUESS;
    return soft_tlb_slot(addr);
}

void bt_guess_after(struct bt_tr *t, const struct insn *in)
{
    t->constants &= (uint16_t)~in->gpr_written;
    if (in->cls == INSN_DATA && in->op == ZYDIS_MNEMONIC_LEA && in->mem_base == INSN_RIP &&
        in->op_size == 8 && in->addr_size == 8) {
        t->constants |= (uint16_t)BIT(in->gpr_reg.reg);
        t->constant[in->gpr_reg.reg] = t->rip + in->len + (uint64_t)in->mem_disp;
    }
}
