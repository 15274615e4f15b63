/*
 * emit_mem.c - guest addresses in generated code: computation, check, indirect branches
 *
 * Invariant (isolation): a load or store of generated code goes to the sum of a linear address and
 * S2 right behind bt_emit_check, which left there the addend of a TLB slot whose
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

void bt_emit_linear(struct bt_tr *t, const struct bt_address *a, unsigned *reg)
{
    struct emit *e = &t->e;
    bool has_base_segment = a->seg == CPU_FS || a->seg == CPU_GS;

    bt_share_release(t);
    bt_emit_settle(t);
    t->retry = e->p;
    *reg = S1;
    unsigned base = a->base == INSN_NO_REG ? H_NONE : bt_emit_gpr_get(t, a->base, S1);
    unsigned index = a->index == INSN_NO_REG ? H_NONE : bt_emit_gpr_get(t, a->index, S2);
    if (base != H_NONE && index == H_NONE && a->disp == 0 && a->size == 8 && !has_base_segment) {
        *reg = base;
        return;
    }
    if (has_base_segment && a->size == 8 && index == H_NONE) {
        emit_gs_load(e, true, S2, BT_SEG_BASE_OFFSET(a->seg));
        emit_lea(e, true, S1, base == H_NONE ? S2 : base, base == H_NONE ? H_NONE : S2, 1, a->disp);
        return;
    }
    emit_lea(e, a->size == 8, S1, base, index, a->scale, a->disp);
    if (has_base_segment) {
        /* a linear address wraps at 4 GiB outside of 64-bit mode */
        emit_gs_load(e, true, S2, BT_SEG_BASE_OFFSET(a->seg));
        emit_lea(e, t->size == 8, S1, S1, S2, 1, 0);
    }
}

bool bt_is_segment_flat(const struct bt_tr *t, const struct insn *in)
{
    if (in->seg == CPU_FS && !(t->mode & BT_MODE_FS_FLAT))
        return false;
    if (in->seg == CPU_GS && !(t->mode & BT_MODE_GS_FLAT))
        return false;
    /* code segments are never writable */
    return !(in->seg == CPU_CS && t->size == 4 && (in->mem_access & INSN_ACCESS_WRITE));
}

bool bt_emit_address(struct bt_tr *t, const struct insn *in, unsigned *reg)
{
    struct emit *e = &t->e;
    bool has_base_segment = in->seg == CPU_FS || in->seg == CPU_GS;

    if (in->addr_size == 2)
        return false;
    if (!bt_is_segment_flat(t, in))
        return false;

    if (in->mem_base != INSN_RIP && (in->mem_base != INSN_NO_REG || in->mem_index != INSN_NO_REG)) {
        struct bt_address a = {.base = in->mem_base,
                               .index = in->mem_index,
                               .scale = in->mem_scale,
                               .seg = in->seg,
                               .size = in->addr_size,
                               .disp = (int32_t)in->mem_disp};
        bt_emit_linear(t, &a, reg);
        return true;
    }
    bt_share_release(t);
    bt_emit_settle(t);
    t->retry = e->p;
    uint64_t addr = (uint64_t)in->mem_disp;
    if (in->mem_base == INSN_RIP)
        addr += t->rip + in->len;
    emit_mov_imm(e, S1, in->addr_size == 8 ? addr : (uint32_t)addr);
    if (has_base_segment) {
        emit_gs_load(e, true, S2, BT_SEG_BASE_OFFSET(in->seg));
        emit_lea(e, t->size == 8, S1, S1, S2, 1, 0);
    }
    *reg = S1;
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

static void emit_check(struct bt_tr *t, unsigned reg, unsigned size, bool is_write, uint32_t info)
{
    struct emit *e = &t->e;
    uint32_t tags = is_write ? BT_SET_OFFSET(t->set, write_tag) : BT_SET_OFFSET(t->set, read_tag);

    bt_emit_count(t, BT_OFFSET(accesses));
    emit_pext_gs(e, S2, reg, BT_OFFSET(mask_tlb));
    emit_op_gs(e, true, 0x8b, S0, S2, tags);
    emit_lea(e, true, S0, reg, S0, 1, (int32_t)size - 1); /* RSP is no index */
    emit_pext_gs(e, S0, S0, BT_OFFSET(mask_page));
    uint8_t *hit = emit_jrcxz(e);
    uint8_t *miss = emit_jmp(e);
    emit_patch8(e, hit, e->p);
    emit_op_gs(e, true, 0x8b, S2, S2,
               is_write ? BT_SET_OFFSET(t->set, write_addend) : BT_SET_OFFSET(t->set, read_addend));

    struct bt_cold *cold = bt_cold_add(t, BT_COLD_TLB, miss);
    cold->resume = t->retry;
    cold->reg = (uint8_t)reg;
    cold->info = size | (is_write ? BT_MISS_WRITE : 0) | info;
}

void bt_emit_check(struct bt_tr *t, unsigned reg, unsigned size, bool is_write)
{
    emit_check(t, reg, size, is_write, 0);
}

void bt_emit_check_shared(struct bt_tr *t, unsigned reg, unsigned size, bool is_write)
{
    emit_check(t, reg, size, is_write, BT_MISS_SHARED);
}

bool bt_emit_operand(struct bt_tr *t, const struct insn *in, unsigned size, bool is_write,
                     struct bt_place *place)
{
    if (bt_fixed_access(t, in, size, is_write, place))
        return true;
    if (in->cls == INSN_DATA && bt_share_access(t, in, place))
        return true;
    *place = (struct bt_place){.index = S2};
    if (!bt_emit_address(t, in, &place->base))
        return false;
    bt_emit_check(t, place->base, size, is_write);
    return true;
}

void bt_emit_check_loop(struct bt_tr *t, bool is_write)
{
    emit_check(t, S1, 1, is_write, BT_MISS_SHARED | BT_MISS_LOOP);
}

void bt_emit_lookup(struct bt_tr *t, int32_t stack_delta)
{
    struct emit *e = &t->e;

    bt_emit_settle(t);
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
    bt_emit_settle(t);
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

/* The address is in cold->reg and the access failed its check. */
static void emit_tlb_miss(struct bt_tr *t, const struct bt_cold *cold)
{
    struct emit *e = &t->e;

    if (cold->reg != S1)
        emit_mov(e, true, S1, cold->reg);
    emit_lea_rip(e, S2, cold->resume);
    emit_mov_imm(e, S0, cold->info);
    emit_jmp_to(e, bt_rw(t->be, t->be->stub_tlb));
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
            emit_tlb_miss(t, cold);
            break;
        case BT_COLD_TLB:
            emit_tlb_miss(t, cold);
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
