/*
 * fixed.c - operands whose address is known when their block is made: relative to RIP, or absolute
 *
 * The slot of the TLB is a constant then, and so is whether the access stays within its page: what
 * remains to be checked is that the slot holds this very page. One check serves every access to
 * the page that follows in straight-line code (share.c says how long), because rights are a page's.
 *
 * Invariant (isolation): S1 + displacement is the constant address plus the addend of the slot
 * whose tag matched its page; in a share's place in the vCPU block, such a sum waits without the
 * part that is the displacement.
 */
#include "engine/bt/bt.h"

struct fixed {
    uint64_t addr, page;
    bool is_near; /* fits a displacement, so that nothing but the addend is in S1 */
};

static bool describe(const struct bt_tr *t, const struct insn *in, uint64_t rip, unsigned size,
                     struct fixed *f)
{
    bool is_absolute = in->mem_base == INSN_NO_REG && in->mem_index == INSN_NO_REG;

    if (!in->has_mem || in->is_agen || size == 0 || in->is_mem_masked || in->uses_high_byte ||
        in->addr_size == 2 || (in->mem_base != INSN_RIP && !is_absolute) || in->seg == CPU_FS ||
        in->seg == CPU_GS || (in->seg == CPU_CS && t->size == 4))
        return false;
    f->addr = (uint64_t)in->mem_disp;
    if (in->mem_base == INSN_RIP)
        f->addr += rip + in->len;
    if (in->addr_size == 4)
        f->addr = (uint32_t)f->addr;
    f->page = f->addr & ~(SOFT_PAGE_SIZE - 1);
    f->is_near = (int64_t)f->addr == (int32_t)f->addr;
    return (f->addr & (SOFT_PAGE_SIZE - 1)) + size <= SOFT_PAGE_SIZE;
}

/* How many instructions further on in the straight line access the same page no differently? */
static unsigned count_uses(const struct bt_tr *t, const struct fixed *f, bool is_write)
{
    unsigned count = 0;

    for (unsigned i = t->insn_index; i + 1 < t->insn_count && bt_stays_inline(&t->insns[i]); i++) {
        const struct insn *in = &t->insns[i + 1];
        uint64_t rip = t->block_rip + t->be->insn_at[i + 1];
        struct fixed other;
        if (in->cls == INSN_DATA && describe(t, in, rip, in->mem_size, &other) &&
            other.page == f->page && (is_write || !(in->mem_access & INSN_ACCESS_WRITE)))
            count++;
    }
    return count;
}

static struct bt_share *find_live(struct bt_tr *t, const struct fixed *f, bool is_write)
{
    for (unsigned i = 0; i < BT_SHARES; i++) {
        struct bt_share *s = &t->shares[i];
        if (s->is_live && s->is_fixed && s->page == f->page && (s->is_write || !is_write))
            return s;
    }
    return NULL;
}

static void emit_check(struct bt_tr *t, const struct fixed *f, unsigned size, bool is_write)
{
    struct emit *e = &t->e;
    uint32_t slot = 8 * soft_tlb_slot(f->addr);
    uint32_t tags = is_write ? BT_SET_OFFSET(t->set, write_tag) : BT_SET_OFFSET(t->set, read_tag);
    uint32_t addends =
        is_write ? BT_SET_OFFSET(t->set, write_addend) : BT_SET_OFFSET(t->set, read_addend);

    bt_share_release(t);
    bt_emit_settle(t);
    t->retry = e->p;
    bt_emit_count(t, BT_OFFSET(accesses));
    emit_gs_load(e, true, S0, tags + slot);
    if (f->is_near) {
        emit_lea(e, true, S0, S0, H_NONE, 1, (int32_t)(uint32_t)f->page);
    } else {
        emit_mov_imm(e, S1, f->page);
        emit_lea(e, true, S0, S0, S1, 1, 0);
    }
    uint8_t *hit = emit_jrcxz(e);
    struct bt_cold *cold = bt_cold_add(t, BT_COLD_TLB_FIXED, emit_jmp(e));
    cold->resume = t->retry;
    cold->rip = f->addr;
    cold->reg = S1;
    cold->info = size | (is_write ? BT_MISS_WRITE : 0);
    emit_patch8(e, hit, e->p);
    emit_gs_load(e, true, f->is_near ? S1 : S2, addends + slot);
    if (!f->is_near)
        emit_lea(e, true, S1, S1, S2, 1, 0);
}

bool bt_fixed_access(struct bt_tr *t, const struct insn *in, unsigned size, bool is_write,
                     struct bt_place *place)
{
    struct fixed f;

    if (!describe(t, in, t->rip, size, &f))
        return false;
    *place = (struct bt_place){
        .base = S1,
        .index = H_NONE,
        .disp = (int32_t)(uint32_t)(f.is_near ? f.addr : f.addr - f.page),
    };
    struct bt_share *s = find_live(t, &f, is_write);
    if (s != NULL) {
        bt_share_use(t, s);
        return true;
    }
    emit_check(t, &f, size, is_write);
    unsigned uses = bt_may_share(t) ? count_uses(t, &f, is_write) : 0;
    if (uses > 0)
        bt_share_add(t, &(struct bt_share){.is_live = true,
                                           .is_write = is_write,
                                           .is_fixed = true,
                                           .base = INSN_NO_REG,
                                           .index = INSN_NO_REG,
                                           .page = f.page,
                                           .uses_left = (uint16_t)uses});
    return true;
}
