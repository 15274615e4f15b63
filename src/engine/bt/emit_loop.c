/*
 * emit_loop.c - host code for loops that run in strips
 *
 * The block proper runs an iteration with all its checks. Its branch back leads to the strip's
 * entry, which translates the first byte of each stream and counts the iterations that stay within
 * these pages; a copy of the loop without checks then runs so many, and comes back for more.
 *
 * Invariant (isolation): an access of a copy goes to [pointer + constant], whatever guest registers
 * hold. The pointer begins as the host address of the stream's first byte, translated as
 * emit_mem.c does; it lies `o` bytes into its page. Each iteration moves it by the stream's step,
 * and all bytes accessed in iteration k are in [o + k * step, o + k * step + span). The entry
 * allows n iterations, where o + span <= 4096 and step > 0: n - 1 <= (4096 - span - o) / step step
 * < 0: n - 1 <= o / -step so each of them stays in the page. A counter ends the strip after n
 * whatever the guest's branch says. Nothing takes a page's rights away during a strip, for the
 * reasons given in share.c.
 *
 * Guest registers that gave way to pointers wait in the vCPU block and are put back at each exit;
 * after a host fault bt_loop_recover does that.
 */
#include <Zydis/Zydis.h>

#include "engine/bt/bt.h"

#define TEMP_OFFSET(member, i) (BT_OFFSET(member) + 8 * (uint32_t)(i))

/* A branch out of the copies; `kind` says where to. */
struct loop_exit {
    uint8_t *from;
    uint8_t insn; /* side exits: the branch */
    uint8_t kind;
};

enum { EXIT_DONE, EXIT_AGAIN, EXIT_SIDE };

struct loop_emit {
    struct bt_tr *t;
    struct bt_loop *loop;
    struct bt_draft *block;
    unsigned map_count;
    struct loop_exit exits[BT_LOOP_EXITS];
    unsigned exit_count;
    bool is_failed;
};

/* jrcxz with a rel32, whose place it returns */
static uint8_t *emit_jrcxz_far(struct emit *e)
{
    uint8_t *zero = emit_jrcxz(e);
    emit8(e, 0xeb); /* jmp short, over the other */
    emit8(e, 5);
    emit_patch8(e, zero, e->p);
    return emit_jmp(e);
}

/* op r32, imm32 (81 /ext): flags are in RAX while the entry computes */
static void emit_op_imm(struct emit *e, unsigned ext, unsigned reg, uint32_t imm)
{
    emit_op_reg(e, false, 0x81, ext, reg);
    emit32(e, imm);
}

static void emit_shr(struct emit *e, unsigned reg, unsigned count)
{
    emit_op_reg(e, false, 0xc1, 5, reg);
    emit8(e, (uint8_t)count);
}

/* jcc rel32; returns the place of the displacement */
static uint8_t *emit_jcc(struct emit *e, unsigned condition)
{
    emit8(e, 0x0f);
    emit8(e, (uint8_t)(0x80 | condition));
    emit32(e, 0);
    return e->p - 4;
}

#define CONDITION_B 2
#define CONDITION_A 7

static void add_exit(struct loop_emit *l, uint8_t *from, unsigned kind, unsigned insn)
{
    if (l->exit_count == BT_LOOP_EXITS) {
        l->is_failed = true;
        return;
    }
    l->exits[l->exit_count++] =
        (struct loop_exit){.from = from, .kind = (uint8_t)kind, .insn = (uint8_t)insn};
}

void bt_loop_emit_back(struct bt_tr *t, const struct insn *in)
{
    struct emit *e = &t->e;

    bt_emit_settle(t);
    if (t->loop.is_endless) {
        emit_nops(e, bt_link_padding(e->p + 1));
        t->loop.back = emit_jmp(e);
        t->is_end = true;
    } else {
        emit_nops(e, bt_link_padding(e->p + 2));
        t->loop.back = emit_jcc(e, in->opcode & 15);
    }
    t->loop.behind = e->p;
    bt_shares_forget(t); /* the copies come here without having made any */
}

/* ---- entry ---- */

/* Where the stream's first byte is: checked, and left in the vCPU block. */
static void emit_stream_check(struct loop_emit *l, unsigned i)
{
    struct bt_tr *t = l->t;
    struct emit *e = &t->e;
    const struct bt_loop_stream *s = &l->loop->streams[i];

    t->retry = e->p;
    if (s->base == INSN_NO_REG && s->index == INSN_NO_REG) {
        emit_mov_imm(e, S1, t->size == 8 ? s->low : (uint32_t)s->low);
    } else {
        unsigned base = s->base == INSN_NO_REG ? H_NONE : bt_emit_gpr_get(t, s->base, S1);
        unsigned index = s->index == INSN_NO_REG ? H_NONE : bt_emit_gpr_get(t, s->index, S2);
        emit_lea(e, t->size == 8, S1, base, index, s->scale, (int32_t)s->low);
    }
    if (s->seg != CPU_DS) {
        emit_gs_load(e, true, S2, BT_SEG_BASE_OFFSET(s->seg));
        emit_lea(e, t->size == 8, S1, S1, S2, 1, 0);
    }
    bt_emit_check_loop(t, s->is_write);
    emit_lea(e, true, S1, S1, S2, 1, 0);
    emit_gs_store(e, true, S1, TEMP_OFFSET(loop_host, i));
}

/* S1 /= step, for S1 below 4096: a shift, or a product that is exact there (2^-12 < 1 / step). */
static void emit_divide(struct emit *e, unsigned step)
{
    if (step & (step - 1)) {
        emit_op_reg(e, true, 0x69, S1, S1); /* imul S1, S1, imm32 */
        emit32(e, (1u << 24) / step + 1);
        emit_op_reg(e, true, 0xc1, 5, S1); /* shr S1, 24 */
        emit8(e, 24);
    } else if (step > 1) {
        emit_shr(e, S1, (unsigned)__builtin_ctz(step));
    }
}

/* RCX = min(RCX, n - 1) of one stream; returns the branch that is taken when n is 0. */
static uint8_t *emit_stream_count(struct loop_emit *l, unsigned i)
{
    struct emit *e = &l->t->e;
    const struct bt_loop_stream *s = &l->loop->streams[i];
    uint32_t room = (uint32_t)(SOFT_PAGE_SIZE - (s->high - s->low));
    uint8_t *none;

    emit_gs_load(e, false, S1, TEMP_OFFSET(loop_host, i));
    emit_op_imm(e, 4, S1, 0xfff); /* and: pages are aligned in the host as well */
    if (s->step > 0) {
        emit_mov_imm(e, S2, room);
        emit_op_reg(e, false, 0x29, S1, S2); /* sub S2, S1 */
        none = emit_jcc(e, CONDITION_B);
        emit_mov(e, false, S1, S2);
    } else {
        emit_op_imm(e, 7, S1, room); /* cmp */
        none = emit_jcc(e, CONDITION_A);
    }
    if (s->step == 0)
        return none;
    emit_divide(e, (unsigned)(s->step < 0 ? -s->step : s->step));
    emit_op_reg(e, false, 0x39, S1, H_RCX);  /* cmp ecx, S1 */
    emit_rex(e, false, H_RCX, 0, S1, false); /* cmova ecx, S1 */
    emit8(e, 0x0f);
    emit8(e, 0x47);
    emit8(e, emit_modrm(3, H_RCX, S1));
    return none;
}

static void emit_flags_back(struct emit *e)
{
    static const uint8_t add_sahf[] = {0x04, 0x7f, 0x9e};
    emit_bytes(e, add_sahf, sizeof(add_sahf));
}

/*
 * RCX = groups of iterations, loop_tail the rest. When a stream's range crosses its page, the block
 * proper runs the iteration.
 */
static void emit_counts(struct loop_emit *l, const uint8_t *plain)
{
    static const uint8_t lahf_seto[] = {0x9f, 0x0f, 0x90, 0xc0};
    struct emit *e = &l->t->e;
    const struct bt_loop *loop = l->loop;
    unsigned budget = MAX(BT_LOOP_BUDGET / (loop->last + 1u), 128u);
    uint8_t *none[BT_LOOP_STREAMS];

    emit_gs_store(e, true, H_RAX, TEMP_OFFSET(loop_spill, CPU_RAX));
    emit_bytes(e, lahf_seto, sizeof(lahf_seto));
    emit_mov_imm(e, H_RCX, budget - 1);
    for (unsigned i = 0; i < loop->stream_count; i++)
        none[i] = emit_stream_count(l, i);
    emit_lea(e, false, H_RCX, H_RCX, H_NONE, 1, 1);
    if (loop->unroll > 1) {
        emit_mov(e, false, S1, H_RCX);
        emit_op_imm(e, 4, S1, loop->unroll - 1u);
        emit_gs_store(e, true, S1, BT_OFFSET(loop_tail));
        emit_shr(e, H_RCX, (unsigned)__builtin_ctz(loop->unroll));
    }
    emit_flags_back(e);
    if (loop->stream_count == 0) {
        emit_gs_load(e, true, H_RAX, TEMP_OFFSET(loop_spill, CPU_RAX));
        return;
    }
    uint8_t *over = emit_jmp(e);
    for (unsigned i = 0; i < loop->stream_count; i++)
        emit_patch32(e, none[i], e->p);
    emit_flags_back(e);
    emit_gs_load(e, true, H_RAX, TEMP_OFFSET(loop_spill, CPU_RAX));
    emit_jmp_to(e, plain);
    emit_patch32(e, over, e->p);
    emit_gs_load(e, true, H_RAX, TEMP_OFFSET(loop_spill, CPU_RAX));
}

/* Guest registers to where the copies want them, and pointers in the place of others. */
static void emit_registers_in(struct loop_emit *l)
{
    struct emit *e = &l->t->e;
    const struct bt_loop *loop = l->loop;

    for (unsigned spilled = loop->spilled; spilled != 0; spilled &= spilled - 1) {
        unsigned g = (unsigned)__builtin_ctz(spilled);
        emit_gs_store(e, true, g == CPU_RCX ? H_GUEST_RCX : g, TEMP_OFFSET(loop_spill, g));
    }
    for (unsigned g = 0; g < CPU_GPR_COUNT; g++)
        if (BT_IN_MEMORY(g) && (loop->used & BIT(g)))
            emit_gs_load(e, true, loop->host[g], BT_GPR_OFFSET(g));
    for (unsigned i = 0; i < loop->stream_count; i++)
        emit_gs_load(e, true, loop->streams[i].pointer, TEMP_OFFSET(loop_host, i));
}

/* The reverse; flags and S0 are left alone. */
static void emit_registers_out(struct loop_emit *l)
{
    struct emit *e = &l->t->e;
    const struct bt_loop *loop = l->loop;

    for (unsigned g = 0; g < CPU_GPR_COUNT; g++)
        if (BT_IN_MEMORY(g) && (loop->written & BIT(g)))
            emit_gs_store(e, true, loop->host[g], BT_GPR_OFFSET(g));
    for (unsigned spilled = loop->spilled; spilled != 0; spilled &= spilled - 1) {
        unsigned g = (unsigned)__builtin_ctz(spilled);
        emit_gs_load(e, true, g == CPU_RCX ? H_GUEST_RCX : g, TEMP_OFFSET(loop_spill, g));
    }
}

/* ---- copies ---- */

static unsigned host_of(const struct bt_loop *loop, unsigned g)
{
    return g < CPU_GPR_COUNT ? loop->host[g] : H_NONE;
}

static void emit_copy_lea(struct loop_emit *l, const struct insn *in)
{
    struct emit *e = &l->t->e;
    unsigned dst = host_of(l->loop, in->gpr_reg.reg);
    bool is_wide = in->op_size == 8 && in->addr_size == 8;

    if (in->mem_base == INSN_RIP || (in->mem_base == INSN_NO_REG && in->mem_index == INSN_NO_REG)) {
        uint64_t addr = (uint64_t)in->mem_disp;
        if (in->mem_base == INSN_RIP)
            addr += l->t->rip + in->len;
        emit_mov_imm(e, dst, is_wide ? addr : (uint32_t)addr);
    } else {
        emit_lea(e, is_wide, dst, host_of(l->loop, in->mem_base), host_of(l->loop, in->mem_index),
                 in->mem_scale, (int32_t)in->mem_disp);
    }
}

static void emit_copy_data(struct loop_emit *l, unsigned i, unsigned iteration)
{
    struct emit *e = &l->t->e;
    const struct bt_loop *loop = l->loop;
    const struct insn *in = &l->t->insns[i];
    struct insn_recode r = {.mem_base = S1, .mem_index = INSN_NO_REG};
    uint8_t code[INSN_RECODE_MAX];

    if (in->has_mem && !in->is_agen) {
        const struct bt_loop_stream *s = &loop->streams[loop->stream_of[i]];
        r.mem_base = s->pointer;
        r.mem_disp = (int32_t)(loop->disp_of[i] - s->low) + (int32_t)iteration * s->step;
    }
    const struct insn_gpr *fields[] = {&in->gpr_reg, &in->gpr_rm, &in->gpr_vvvv, &in->gpr_opcode};
    uint8_t *hosts[] = {&r.reg, &r.rm, &r.vvvv, &r.opcode};
    for (unsigned k = 0; k < ARRAY_SIZE(fields); k++)
        if (fields[k]->reg != INSN_NO_REG)
            *hosts[k] = loop->host[fields[k]->reg];
    if (bt_uses_rcx_implicitly(in))
        emit_mov(e, true, H_RCX, loop->host[CPU_RCX]);
    size_t n = insn_recode(code, in, &r);
    if (n == 0)
        l->is_failed = true;
    emit_bytes(e, code, n);
}

static void map_add(struct loop_emit *l, unsigned i)
{
    struct bt_tr *t = l->t;
    if (l->map_count == BT_LOOP_MAP_MAX) {
        l->is_failed = true;
        return;
    }
    l->block->copies[l->map_count++] = (struct bt_copy_map){
        .insn = (uint16_t)i,
        .host = (uint16_t)(bt_rx(t->be, t->e.p) - l->block->guard),
    };
}

/* One iteration, the branch back excepted; the pointers are `iteration` steps behind. */
static void emit_copy(struct loop_emit *l, unsigned iteration)
{
    struct bt_tr *t = l->t;

    for (unsigned i = 0; i < l->loop->last && !t->e.is_full; i++) {
        const struct insn *in = &t->insns[i];
        t->rip = t->block_rip + t->be->insn_at[i];
        if (bt_is_hint(in))
            continue;
        map_add(l, i);
        if (in->cls == INSN_SPECIAL)
            add_exit(l, emit_jcc(&t->e, in->opcode & 15), EXIT_SIDE, i);
        else if (in->op == ZYDIS_MNEMONIC_LEA)
            emit_copy_lea(l, in);
        else
            emit_copy_data(l, i, iteration);
    }
}

/* Leave when the guest's branch goes on. */
static void emit_leave_unless_back(struct loop_emit *l)
{
    const struct insn *in = &l->t->insns[l->loop->last];
    if (!l->loop->is_endless)
        add_exit(l, emit_jcc(&l->t->e, (in->opcode & 15u) ^ 1), EXIT_DONE, 0);
}

/*
 * `iterations` copies that are run RCX times. Control falls out of it, still in the loop, when the
 * counter has run out.
 */
static void emit_strip(struct loop_emit *l, unsigned iterations)
{
    struct emit *e = &l->t->e;
    const struct bt_loop *loop = l->loop;
    const struct insn *in = &l->t->insns[loop->last];

    if (loop->is_rcx_implicit)
        emit_gs_store(e, true, H_RCX, BT_OFFSET(loop_count));
    const uint8_t *top = e->p;
    for (unsigned k = 0; k < iterations; k++) {
        emit_copy(l, k);
        if (k + 1 < iterations)
            emit_leave_unless_back(l);
    }
    for (unsigned i = 0; i < loop->stream_count; i++) {
        const struct bt_loop_stream *s = &loop->streams[i];
        if (s->step != 0)
            emit_lea(e, true, s->pointer, s->pointer, H_NONE, 1, s->step * (int32_t)iterations);
    }
    if (loop->is_rcx_implicit)
        emit_gs_load(e, true, H_RCX, BT_OFFSET(loop_count));
    emit_lea(e, true, H_RCX, H_RCX, H_NONE, 1, -1);
    if (loop->is_rcx_implicit)
        emit_gs_store(e, true, H_RCX, BT_OFFSET(loop_count));
    uint8_t *out = emit_jrcxz(e);
    if (loop->is_endless) {
        emit_jmp_to(e, top);
    } else {
        emit_patch32(e, emit_jcc(e, in->opcode & 15), top);
        add_exit(l, emit_jmp(e), EXIT_DONE, 0);
    }
    emit_patch8(e, out, e->p);
    emit_leave_unless_back(l);
}

/* The paths on which registers are put back, one for each place to go to. */
static void emit_exits(struct loop_emit *l)
{
    struct bt_tr *t = l->t;
    struct emit *e = &t->e;
    bool is_emitted[BT_LOOP_EXITS] = {false};

    for (unsigned i = 0; i < l->exit_count; i++) {
        const struct loop_exit *x = &l->exits[i];
        if (is_emitted[i])
            continue;
        for (unsigned k = i; k < l->exit_count; k++) {
            if (l->exits[k].kind != x->kind || l->exits[k].insn != x->insn)
                continue;
            emit_patch32(e, l->exits[k].from, e->p);
            is_emitted[k] = true;
        }
        emit_registers_out(l);
        if (x->kind == EXIT_AGAIN) {
            emit_jmp_to(e, bt_rw(t->be, l->block->loop_entry));
        } else if (x->kind == EXIT_DONE) {
            emit_jmp_to(e, t->loop.behind);
        } else {
            t->rip = t->block_rip + t->be->insn_at[x->insn];
            bt_emit_exit(t, bt_branch_target(t, &t->insns[x->insn]));
        }
    }
}

/* The entry: as a block's body it can be turned into a jump, and polls. */
static void emit_entry(struct loop_emit *l)
{
    struct bt_tr *t = l->t;
    struct emit *e = &t->e;

    uint8_t *fail = e->p;
    emit_jmp_to(e, bt_rw(t->be, l->block->fail));
    emit_nops(e, (unsigned)(-(uintptr_t)e->p & 7));
    l->block->loop_entry = (uint8_t *)bt_rx(t->be, e->p);
    emit_nops(e, 5);
    emit_gs_load(e, false, S0, BT_OFFSET(soft.go));
    emit_patch8(e, emit_jrcxz(e), fail);
    bt_emit_count(t, BT_OFFSET(blocks_run));
    for (unsigned i = 0; i < l->loop->stream_count; i++)
        emit_stream_check(l, i);
    emit_counts(l, bt_rw(t->be, l->block->guard + l->block->map[0].host));
    emit_registers_in(l);
}

static void fill_map(struct loop_emit *l, const uint8_t *begin, const uint8_t *end)
{
    const struct bt_loop *loop = l->loop;
    struct bt_loop_map *m = &l->block->loop;

    m->entry = (uint16_t)(l->block->loop_entry - l->block->guard);
    m->begin = (uint16_t)(bt_rx(l->t->be, begin) - l->block->guard);
    m->end = (uint16_t)(bt_rx(l->t->be, end) - l->block->guard);
    m->refusals = 0;
    m->count = (uint16_t)l->map_count;
    m->spilled = loop->spilled;
    m->moved = loop->used & (BIT(CPU_R10) | BIT(CPU_R11) | BIT(CPU_R15));
    m->host[0] = loop->host[CPU_R10];
    m->host[1] = loop->host[CPU_R11];
    m->host[2] = loop->host[CPU_R15];
}

void bt_loop_emit(struct bt_tr *t)
{
    struct emit *e = &t->e;
    struct loop_emit l = {.t = t, .loop = &t->loop, .block = &t->block};
    uint8_t *begin = e->p, *tail = NULL;
    unsigned cold_count = t->cold_count;

    emit_entry(&l);
    if (t->loop.unroll > 1)
        tail = emit_jrcxz_far(e);
    emit_nops(e, (unsigned)(-(uintptr_t)e->p & 15));
    uint8_t *copies = e->p;
    emit_strip(&l, t->loop.unroll);
    if (t->loop.unroll > 1) {
        emit_patch32(e, tail, e->p);
        emit_gs_load(e, true, H_RCX, BT_OFFSET(loop_tail));
        add_exit(&l, emit_jrcxz_far(e), EXIT_AGAIN, 0);
        emit_strip(&l, 1);
    }
    add_exit(&l, emit_jmp(e), EXIT_AGAIN, 0);
    uint8_t *end = e->p;
    emit_exits(&l);
    if (l.is_failed) {
        /* some instruction cannot be encoded with these registers: an ordinary loop */
        e->p = begin;
        t->cold_count = cold_count;
        t->block.loop_entry = NULL;
        t->loop.is_found = false;
        bt_cold_add(t, BT_COLD_CHAIN, t->loop.back)->rip = t->block_rip;
        return;
    }
    emit_patch32(e, t->loop.back, bt_rw(t->be, t->block.loop_entry));
    fill_map(&l, copies, end);
}
