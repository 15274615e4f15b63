/*
 * translate.c - from guest bytes to a block
 *
 * A block covers straight-line code within one page: it goes on past conditional branches, whose
 * taken sides leave it, and ends at anything else that changes control, at the page's end, or at
 * BT_BLOCK_INSNS_MAX. An instruction that crosses the page's end is a block of its own, whose body
 * checks the second page's cookie as well: that page may be remapped without the first noticing.
 * Outside of 64-bit mode it runs in C.
 */
#include <Zydis/Zydis.h>

#include "engine/bt/bt.h"
#include "os/tsc.h"

/* What must precede a body that would be at `at`: its NOP lies within an aligned quadword. */
static unsigned body_padding(const uint8_t *at)
{
    unsigned offset = (uintptr_t)at & 7;
    return offset > 3 ? 8 - offset : 0;
}

#define POLL_SIZE 10 /* MOV and JRCXZ; were it another size, the body would be padded once more */

/* All entries and the way out when an entry refuses (see bt.h). */
static void emit_entries(struct bt_tr *t)
{
    struct bt_draft *block = &t->block;
    struct emit *e = &t->e;
    uint32_t cookie =
        (uint32_t)BT_SET_OFFSET(t->set, code_cookie) + 4 * soft_tlb_exec_slot(t->block_rip);

    block->guard = (uint8_t *)bt_rx(t->be, e->p);
    emit_gs_load(e, false, S0, cookie);
    emit_gs_load(e, false, S1, BT_OFFSET(soft.go));
    emit_lea(e, true, S0, S0, S1, 1, (int32_t) - (int64_t)(BT_GO + block->cookie));
    uint8_t *match = emit_jrcxz(e);

    block->fail = (uint8_t *)bt_rx(t->be, e->p);
    uint8_t *fail = e->p;
    bt_emit_set_rip(e, t->block_rip);
    emit_jmp_to(e, bt_rw(t->be, t->be->stub_dispatch));

    /* pad the body here, where nothing runs */
    emit_nops(e, body_padding(e->p + POLL_SIZE));
    block->poll = (uint8_t *)bt_rx(t->be, e->p);
    emit_gs_load(e, false, S0, BT_OFFSET(soft.go));
    emit_patch8(e, emit_jrcxz(e), fail);
    emit_nops(e, body_padding(e->p));
    emit_patch8(e, match, e->p);
    t->body = e->p;
    block->body = (uint8_t *)bt_rx(t->be, e->p);
    emit_nops(e, 5);
    if (block->tail_gpa != BT_NO_TAIL) {
        uint32_t slot = soft_tlb_exec_slot(bt_tail_rip(t->block_rip));
        emit_gs_load(e, false, S0, (uint32_t)BT_SET_OFFSET(t->set, code_cookie) + 4 * slot);
        emit_lea(e, true, S0, S0, H_NONE, 1, -(int32_t)block->tail_cookie);
        match = emit_jrcxz(e);
        emit_jmp_to(e, fail);
        emit_patch8(e, match, e->p);
    }
    bt_emit_count(t, BT_OFFSET(blocks_run));
}

/* Instructions behind which nothing of the same straight line can follow. */
static bool ends_straight_line(const struct insn *in)
{
    return in->cls == INSN_SPECIAL && in->encoding == INSN_LEGACY &&
           (in->op == ZYDIS_MNEMONIC_JMP || in->op == ZYDIS_MNEMONIC_CALL ||
            in->op == ZYDIS_MNEMONIC_RET);
}

/*
 * Decode up to `limit` instructions into the engine's buffer; returns their number. One that
 * goes beyond `avail`, or is none, stands alone: C fetches it anew.
 */
static unsigned decode_insns(struct bt_tr *t, const uint8_t *bytes, size_t avail, unsigned limit)
{
    struct bt_engine *be = t->be;
    size_t offset = 0;
    unsigned n = 0;

    while (n < limit && offset < avail) {
        struct insn *in = &be->insns[n];
        int len = insn_decode_cached(&be->decoded, in, bytes + offset, avail - offset, t->size,
                                     t->b->soft.model);
        if (len <= 0 && n > 0)
            break;
        be->insn_at[n++] = (uint16_t)offset;
        if (len <= 0) {
            *in = (struct insn){.cls = INSN_INVALID};
            offset = avail;
            break;
        }
        offset += (size_t)len;
        if (ends_straight_line(in))
            break;
    }
    be->insn_at[n] = (uint16_t)offset;
    return n;
}

static void map_set(struct bt_tr *t, unsigned n)
{
    t->block.map[n] = (struct bt_insn_map){
        .guest = t->be->insn_at[n],
        .host = (uint16_t)(bt_rx(t->be, t->e.p) - t->block.guard),
    };
}

/* Note where instruction n begins; false: too far from the one before for what a block keeps. */
static bool map_add(struct bt_tr *t, unsigned n)
{
    const struct bt_insn_map *m = t->block.map;

    map_set(t, n);
    return n == 0 || (m[n].host - m[n - 1].host <= (int)BT_MAP_HOST_MAX &&
                      m[n].guest - m[n - 1].guest <= (int)BT_MAP_GUEST_MAX);
}

/* Translate up to `limit` instructions; false when the host code did not fit. */
static bool translate_insns(struct bt_tr *t, const uint8_t *bytes, size_t avail, unsigned limit)
{
    struct bt_draft *block = &t->block;
    struct bt_engine *be = t->be;
    unsigned n = 0;

    t->insns = be->insns;
    t->insn_count = decode_insns(t, bytes, avail, limit);
    bt_loop_find(t);
    while (n < t->insn_count && !t->is_end) {
        const struct insn *in = &be->insns[n];
        t->insn_index = n;
        t->rip = t->block_rip + be->insn_at[n];
        if (t->size == 4)
            t->rip = (uint32_t)t->rip;
        if (!map_add(t, n))
            return false;
        n++;
        if (t->loop.is_found && t->insn_index == t->loop.last)
            bt_loop_emit_back(t, in);
        else
            bt_emit_insn(t, in);
        bt_shares_after(t, in);
        if (t->e.is_full)
            return false;
    }
    size_t offset = be->insn_at[n];
    block->insn_count = (uint16_t)n;
    block->guest_len = (uint16_t)offset;
    map_set(t, n);
    if (!t->is_end) {
        uint64_t next = t->block_rip + offset;
        bt_emit_exit(t, t->size == 8 ? next : (uint32_t)next);
    }
    if (t->loop.is_found)
        bt_loop_emit(t);
    bt_emit_cold(t);
    return !t->e.is_full;
}

/* Not an initialiser: `cold` and maps are large and need no clearing. */
static void tr_begin(struct bt_tr *t, struct bt_vcpu *b, uint64_t rip, gpa_t gpa, gpa_t tail_gpa)
{
    struct bt_engine *be = b->engine;
    bool has_tail = tail_gpa != BT_NO_TAIL;
    uint8_t *start = be->rw + be->used;
    t->e = (struct emit){.start = start, .p = start, .end = start + BT_BLOCK_HOST_MAX};
    t->be = be;
    t->b = b;
    t->rip = t->block_rip = rip;
    t->set = b->set;
    t->mode = b->mode;
    t->size = b->mode & BT_MODE_SIZE ? 4 : 8;
    t->body = t->retry = NULL;
    t->is_end = false;
    t->cold_count = 0;
    bt_shares_forget(t);
    t->share_next = 0;
    t->rsp_moved = 0;
    t->has_shares = false;
    t->is_share_refused = bt_is_share_refused(be, rip, gpa);

    t->block.rip = rip;
    t->block.gpa = gpa;
    t->block.mode = b->mode;
    t->block.cookie = bt_view_cookie(be, rip, gpa);
    t->block.tail_gpa = tail_gpa;
    t->block.tail_cookie = has_tail ? bt_view_cookie(be, bt_tail_rip(rip), tail_gpa) : 0;
    t->block.loop_entry = NULL;
}

bool bt_crosses_page(const struct bt_vcpu *b, uint64_t rip, const uint8_t *bytes)
{
    size_t avail = SOFT_PAGE_SIZE - (rip & 0xfff);
    struct insn in;

    /* not where the next page is the first that is not canonical, with 4 or 5 levels */
    return avail < INSN_MAX_LEN && !(b->mode & BT_MODE_SIZE) && bt_tail_rip(rip) != BIT(47) &&
           bt_tail_rip(rip) != BIT(56) && bt_tail_rip(rip) != 0 &&
           insn_decode(&in, bytes, avail, 8, b->soft.model) == 0;
}

struct bt_block *bt_translate(struct bt_vcpu *b, uint64_t rip, gpa_t gpa, const uint8_t *bytes,
                              size_t avail, gpa_t tail_gpa)
{
    struct bt_engine *be = b->engine;
    uint64_t begin_tsc = tsc_read();
    bool has_tail = tail_gpa != BT_NO_TAIL;
    struct bt_tr t;

    for (unsigned limit = has_tail ? 1 : BT_BLOCK_INSNS_MAX; limit > 0; limit /= 2) {
        struct bt_draft *draft = &t.block;
        tr_begin(&t, b, rip, gpa, tail_gpa);
        emit_entries(&t);
        if (!translate_insns(&t, bytes, avail, limit))
            continue;
        draft->end = (uint8_t *)bt_rx(be, t.e.p);
        draft->has_shares = t.has_shares;
        if (has_tail)
            draft->tail_len = (uint16_t)((rip & 0xfff) + draft->guest_len - SOFT_PAGE_SIZE);
        struct bt_block *block = bt_block_publish(be, draft);
        b->stats.blocks++;
        b->stats.loops += t.loop.is_found;
        b->stats.guest_insns += draft->insn_count;
        b->stats.guest_bytes += draft->guest_len;
        b->stats.host_bytes += (uint64_t)(draft->end - draft->guard);
        b->stats.translate_cycles += tsc_read() - begin_tsc;
        bt_trace_block(be, draft, bytes);
        return block;
    }
    return NULL;
}
