/*
 * emit_mem.c - guest addresses in generated code: computation, check, indirect branches
 *
 * Invariant (isolation): a load or store of generated code goes to S1 + S2 right behind
 * bt_emit_check, which left there the sum of a linear address and the addend of a TLB slot whose
 * tag matched it: a RAM page that the walker allowed. Only shares (share.c) and operands at fixed
 * addresses (fixed.c) form addresses differently, of the same parts.
 */
#include "engine/bt/bt.h"

struct bt_cold *bt_cold_add(struct bt_tr *t, unsigned kind, uint8_t *from)
{
    if (t->cold_count == ARRAY_SIZE(t->cold)) {
        t->e.is_full = true; /* the block is made again, shorter */
        return &t->cold[0];
    }
    struct bt_cold *cold = &t->cold[t->cold_count++];
    *cold = (struct bt_cold){.kind = (uint8_t)kind, .from = from};
    return cold;
}

unsigned bt_emit_gpr_get(struct bt_tr *t, unsigned gpr, unsigned scratch)
{
    if (gpr == CPU_RCX)
        return H_GUEST_RCX;
    if (!BT_IN_MEMORY(gpr))
        return gpr;
    emit_gs_load(&t->e, true, scratch, BT_GPR_OFFSET(gpr));
    return scratch;
}

bool bt_emit_address(struct bt_tr *t, const struct insn *in)
{
    struct emit *e = &t->e;
    bool is_wide = in->addr_size == 8;
    bool has_base_segment = in->seg == CPU_FS || in->seg == CPU_GS;

    if (in->addr_size == 2)
        return false;
    if (in->seg == CPU_FS && !(t->mode & BT_MODE_FS_FLAT))
        return false;
    if (in->seg == CPU_GS && !(t->mode & BT_MODE_GS_FLAT))
        return false;
    if (in->seg == CPU_CS && t->size == 4 && (in->mem_access & INSN_ACCESS_WRITE))
        return false; /* code segments are never writable */

    t->retry = e->p;
    if (in->mem_base == INSN_RIP) {
        uint64_t addr = t->rip + in->len + (uint64_t)in->mem_disp;
        emit_mov_imm(e, S1, is_wide ? addr : (uint32_t)addr);
    } else if (in->mem_base == INSN_NO_REG && in->mem_index == INSN_NO_REG) {
        emit_mov_imm(e, S1, is_wide ? (uint64_t)in->mem_disp : (uint32_t)in->mem_disp);
    } else {
        unsigned base = in->mem_base == INSN_NO_REG ? H_NONE : bt_emit_gpr_get(t, in->mem_base, S1);
        unsigned index =
            in->mem_index == INSN_NO_REG ? H_NONE : bt_emit_gpr_get(t, in->mem_index, S2);
        emit_lea(e, is_wide, S1, base, index, in->mem_scale, (int32_t)in->mem_disp);
    }
    if (has_base_segment) {
        /* a linear address wraps at 4 GiB outside of 64-bit mode */
        emit_gs_load(e, true, S2, BT_SEG_BASE_OFFSET(in->seg));
        emit_lea(e, t->size == 8, S1, S1, S2, 1, 0);
    }
    return true;
}

void bt_emit_count(struct bt_tr *t, uint32_t offset)
{
    if (!t->be->is_counting)
        return;
    emit_gs_load(&t->e, true, S0, offset);
    emit_lea(&t->e, true, S0, S0, H_NONE, 1, 1);
    emit_gs_store(&t->e, true, S0, offset);
}

static void emit_check(struct bt_tr *t, unsigned size, bool is_write, uint32_t info)
{
    struct emit *e = &t->e;
    uint32_t tags = is_write ? BT_SET_OFFSET(t->set, write_tag) : BT_SET_OFFSET(t->set, read_tag);

    bt_emit_count(t, BT_OFFSET(accesses));
    emit_pext_gs(e, S2, S1, BT_OFFSET(mask_tlb));
    emit_op_gs(e, true, 0x8b, S0, S2, tags);
    emit_lea(e, true, S0, S0, S1, 1, (int32_t)size - 1);
    emit_pext_gs(e, S0, S0, BT_OFFSET(mask_page));
    uint8_t *hit = emit_jrcxz(e);
    uint8_t *miss = emit_jmp(e);
    emit_patch8(e, hit, e->p);
    emit_op_gs(e, true, 0x8b, S2, S2,
               is_write ? BT_SET_OFFSET(t->set, write_addend) : BT_SET_OFFSET(t->set, read_addend));

    struct bt_cold *cold = bt_cold_add(t, BT_COLD_TLB, miss);
    cold->resume = t->retry;
    cold->info = size | (is_write ? BT_MISS_WRITE : 0) | info;
}

void bt_emit_check(struct bt_tr *t, unsigned size, bool is_write)
{
    emit_check(t, size, is_write, 0);
}

void bt_emit_check_shared(struct bt_tr *t, unsigned size, bool is_write)
{
    emit_check(t, size, is_write, BT_MISS_SHARED);
}

void bt_emit_lookup(struct bt_tr *t, int32_t stack_delta)
{
    struct emit *e = &t->e;
    uint8_t *here = e->p;

    emit_pext_gs(e, S2, S1, BT_OFFSET(mask_jc));
    emit_op_gs(e, true, 0x8b, S0, S2, BT_JC_OFFSET(t->set, minus_rip));
    emit_lea(e, true, S0, S0, S1, 1, 0);
    uint8_t *hit = emit_jrcxz(e);
    uint8_t *miss = emit_jmp(e);
    emit_patch8(e, hit, e->p);

    struct bt_cold *cold = bt_cold_add(t, BT_COLD_INDIRECT, miss);
    cold->resume = here;
    cold->info = (uint32_t)stack_delta;
}

void bt_emit_indirect(struct bt_tr *t, int32_t stack_delta)
{
    bt_emit_lookup(t, stack_delta);
    emit_op_gs(&t->e, false, 0xff, 4, S2, BT_JC_OFFSET(t->set, host)); /* jmp [...] */
    t->is_end = true;
}

void bt_emit_set_rip(struct emit *e, uint64_t rip)
{
    if ((int64_t)rip == (int32_t)rip) {
        emit_gs_store_imm(e, BT_OFFSET(soft.st.rip), (int32_t)rip);
    } else {
        emit_mov_imm(e, S1, rip);
        emit_gs_store(e, true, S1, BT_OFFSET(soft.st.rip));
    }
}

void bt_emit_exit(struct bt_tr *t, uint64_t target)
{
    struct emit *e = &t->e;
    emit_nops(e, bt_link_padding(e->p + 1));
    bt_cold_add(t, BT_COLD_CHAIN, emit_jmp(e))->rip = target;
}

void bt_emit_exit_to_mode(struct bt_tr *t, uint64_t target, uint32_t mode)
{
    struct emit *e = &t->e;
    emit_nops(e, bt_link_padding(e->p + 1));
    struct bt_cold *cold = bt_cold_add(t, BT_COLD_SWITCH, emit_jmp(e));
    cold->rip = target;
    cold->info = mode;
}

void bt_emit_cold(struct bt_tr *t)
{
    struct emit *e = &t->e;
    for (unsigned i = 0; i < t->cold_count && !e->is_full; i++) {
        const struct bt_cold *cold = &t->cold[i];
        emit_patch32(e, cold->from, e->p);
        switch (cold->kind) {
        case BT_COLD_TLB_FIXED:
            emit_mov_imm(e, S1, cold->rip);
            /* fall through */
        case BT_COLD_TLB:
            emit_lea_rip(e, S2, cold->resume);
            emit_mov_imm(e, S0, cold->info);
            emit_jmp_to(e, bt_rw(t->be, t->be->stub_tlb));
            break;
        case BT_COLD_CHAIN:
            bt_emit_set_rip(e, cold->rip);
            emit_lea_rip(e, S2, cold->from);
            emit_jmp_to(e, bt_rw(t->be, t->be->stub_chain));
            break;
        case BT_COLD_SWITCH:
            bt_emit_set_rip(e, cold->rip);
            emit_lea_rip(e, S2, cold->from);
            emit_mov_imm(e, S0, cold->info);
            emit_jmp_to(e, bt_rw(t->be, t->be->stub_switch));
            break;
        case BT_COLD_INDIRECT:
            emit_lea_rip(e, S2, cold->resume);
            emit_mov_imm(e, S0, cold->info);
            emit_jmp_to(e, bt_rw(t->be, t->be->stub_indirect));
            break;
        }
    }
}
