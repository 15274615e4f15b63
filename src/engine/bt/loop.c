/*
 * loop.c - which loops can run in strips
 *
 * A loop is straight-line code from a block's start to a branch back there; other branches in it
 * leave it. Each of its accesses must have an address that changes by a constant in every
 * iteration: its registers are changed by additions of constants only, at the width that addresses
 * have, so that the address is linear modulo 2^64 or 2^32, whatever the registers hold.
 *
 * Accesses through the same registers make a stream, which a strip checks as one range.
 */
#include <Zydis/Zydis.h>

#include "engine/bt/bt.h"

/* How registers move in one iteration. */
struct movement {
    int64_t total[CPU_GPR_COUNT];
    uint16_t irregular; /* changed by anything but additions of constants */
};

static bool is_add_of_constant(const struct bt_tr *t, const struct insn *in, unsigned g,
                               int64_t *delta)
{
    if (in->op_size != t->size || in->has_lock || in->cls != INSN_DATA)
        return false;
    switch (in->op) {
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_SUB:
        if (in->has_mem || in->imm_size == 0 || in->gpr_reg.reg != INSN_NO_REG ||
            (in->gpr_rm.reg != g && in->gpr_rm.reg != INSN_NO_REG))
            return false;
        *delta = in->op == ZYDIS_MNEMONIC_ADD ? (int32_t)in->imm : -(int64_t)(int32_t)in->imm;
        return true;
    case ZYDIS_MNEMONIC_INC:
    case ZYDIS_MNEMONIC_DEC:
        *delta = in->op == ZYDIS_MNEMONIC_INC ? 1 : -1;
        return !in->has_mem;
    case ZYDIS_MNEMONIC_LEA:
        if (in->gpr_reg.reg != g || in->mem_base != g || in->mem_index != INSN_NO_REG ||
            in->addr_size != t->size)
            return false;
        *delta = in->mem_disp;
        return true;
    default:
        return false;
    }
}

/* Add what *in does to the registers. */
static void follow(const struct bt_tr *t, const struct insn *in, struct movement *m)
{
    int64_t delta;

    for (unsigned written = in->gpr_written; written != 0; written &= written - 1) {
        unsigned g = (unsigned)__builtin_ctz(written);
        if (in->gpr_written == BIT(g) && is_add_of_constant(t, in, g, &delta))
            m->total[g] += delta;
        else
            m->irregular |= (uint16_t)BIT(g);
    }
}

static bool is_branch_to(const struct bt_tr *t, unsigned i, uint64_t target)
{
    const struct insn *in = &t->insns[i];
    uint64_t to = t->block_rip + t->be->insn_at[i] + in->len + in->imm;
    return (t->size == 8 ? to : (uint32_t)to) == target;
}

/* The branch back to the block's start; false when there is none. */
static bool find_last(const struct bt_tr *t, struct bt_loop *loop)
{
    for (unsigned i = 0; i < t->insn_count && i < BT_LOOP_INSNS_MAX; i++) {
        const struct insn *in = &t->insns[i];
        if (in->is_hidden || in->cls == INSN_INVALID)
            return false;
        if (in->cls == INSN_DATA || bt_is_hint(in))
            continue;
        bool is_jcc = in->encoding == INSN_LEGACY && bt_is_jcc(in);
        bool is_jmp = in->op == ZYDIS_MNEMONIC_JMP && (in->opcode == 0xe9 || in->opcode == 0xeb);
        if ((!is_jcc && !is_jmp) || in->op_size != t->size)
            return false;
        if (is_branch_to(t, i, t->block_rip)) {
            loop->last = (uint8_t)i;
            loop->is_endless = is_jmp;
            return i > 0;
        }
        if (is_jmp)
            return false;
    }
    return false;
}

static uint16_t register_bit(unsigned g)
{
    return g < CPU_GPR_COUNT ? (uint16_t)BIT(g) : 0;
}

/*
 * Guest registers that the copies of *in need: all of it but those that only form the operand's
 * address. RAX to RBX may be operands that no field names.
 */
static uint16_t registers_needed(const struct insn *in)
{
    uint16_t all = in->gpr_read | in->gpr_written;
    if (!in->has_mem || in->is_agen)
        return all;
    uint16_t address = register_bit(in->mem_base) | register_bit(in->mem_index);
    uint16_t named = register_bit(in->gpr_reg.reg) | register_bit(in->gpr_rm.reg) |
                     register_bit(in->gpr_vvvv.reg) | register_bit(in->gpr_opcode.reg);
    uint16_t implicit = BIT(CPU_RAX) | BIT(CPU_RCX) | BIT(CPU_RDX) | BIT(CPU_RBX) | BIT(CPU_RDI);
    return all & ~(address & ~(named | in->gpr_written | implicit));
}

/* Can a copy of *in run? Accesses are another matter. */
static bool is_fit(const struct bt_tr *t, const struct insn *in)
{
    if (in->unit == INSN_UNIT_X87 || in->unit == INSN_UNIT_WAIT || in->op == ZYDIS_MNEMONIC_PAUSE ||
        !bt_is_unit_enabled(t, in->unit))
        return false;
    return in->op != ZYDIS_MNEMONIC_LEA || (in->op_size >= 4 && in->addr_size >= 4);
}

/* The stream that the access of instruction i is part of, or a new one; NULL when it is none. */
static struct bt_loop_stream *find_stream(struct bt_loop *loop, const struct bt_loop_stream *access)
{
    for (unsigned i = 0; i < loop->stream_count; i++) {
        struct bt_loop_stream *s = &loop->streams[i];
        if (s->base != access->base || s->index != access->index || s->scale != access->scale ||
            s->seg != access->seg)
            continue;
        /* distances modulo 2^64: an address has no sign */
        uint64_t before = s->low - access->low, after = access->high - s->low;
        if (before <= BT_LOOP_SPAN_MAX && s->high - access->low <= BT_LOOP_SPAN_MAX)
            s->low = access->low;
        else if (after > BT_LOOP_SPAN_MAX || access->low - s->low > BT_LOOP_SPAN_MAX)
            continue;
        if (access->high - s->low > s->high - s->low)
            s->high = access->high;
        s->is_write |= access->is_write;
        return s;
    }
    if (loop->stream_count == BT_LOOP_STREAMS)
        return NULL;
    loop->streams[loop->stream_count] = *access;
    return &loop->streams[loop->stream_count++];
}

/* Give the access of instruction i its stream; `now` is how far registers have moved by then. */
static bool add_access(struct bt_tr *t, unsigned i, const struct movement *all,
                       const struct movement *now)
{
    const struct insn *in = &t->insns[i];
    struct bt_loop *loop = &t->loop;
    uint64_t disp = (uint64_t)in->mem_disp;
    int64_t step = 0;
    struct bt_loop_stream a = {
        .base = in->mem_base, .index = in->mem_index, .scale = in->mem_scale, .seg = CPU_DS};

    if (in->addr_size != t->size || in->mem_size == 0 || in->mem_size > BT_LOOP_SPAN_MAX ||
        !bt_is_segment_flat(t, in))
        return false;
    if (((register_bit(a.base) | register_bit(a.index)) & all->irregular) != 0)
        return false;
    if (in->seg == CPU_FS || in->seg == CPU_GS)
        a.seg = in->seg;
    if (a.index == INSN_NO_REG)
        a.scale = 1;
    if (a.base == INSN_RIP) {
        disp += t->block_rip + t->be->insn_at[i] + in->len;
        a.base = INSN_NO_REG;
    } else if (a.base < CPU_GPR_COUNT) {
        step += all->total[a.base];
        disp += (uint64_t)now->total[a.base];
    }
    if (a.index < CPU_GPR_COUNT) {
        step += all->total[a.index] * a.scale;
        disp += (uint64_t)now->total[a.index] * a.scale;
    }
    if (t->size == 4)
        disp = (uint64_t)(int32_t)disp;
    if (step < -BT_LOOP_STEP_MAX || step > BT_LOOP_STEP_MAX)
        return false;
    a.step = (int32_t)step;
    a.low = disp;
    a.high = disp + in->mem_size;
    a.is_write = (in->mem_access & INSN_ACCESS_WRITE) != 0;
    struct bt_loop_stream *s = find_stream(loop, &a);
    if (s == NULL)
        return false;
    loop->stream_of[i] = (uint8_t)(s - loop->streams);
    loop->disp_of[i] = disp;
    return true;
}

/* A displacement that LEA can hold, unless the address is all displacement. */
static bool streams_can_be_addressed(const struct bt_loop *loop)
{
    for (unsigned i = 0; i < loop->stream_count; i++) {
        const struct bt_loop_stream *s = &loop->streams[i];
        bool is_absolute = s->base == INSN_NO_REG && s->index == INSN_NO_REG;
        if (s->high - s->low > BT_LOOP_SPAN_MAX ||
            (!is_absolute && (int64_t)s->low != (int32_t)s->low))
            return false;
    }
    return true;
}

/* Does a strip last long enough? */
static bool is_worthwhile(const struct bt_loop *loop)
{
    int32_t steps = 0;

    for (unsigned i = 0; i < loop->stream_count; i++) {
        int32_t step = loop->streams[i].step;
        steps += step < 0 ? -step : step;
    }
    return steps <= BT_LOOP_STEPS_MAX;
}

/* Take a host register that holds nothing the loop needs. */
static unsigned take_host(struct bt_loop *loop, uint32_t *taken)
{
    static const uint8_t order[] = {H_R10, H_R15, H_R9,  H_R8,  H_R14, H_R13, H_R12,
                                    H_RBX, H_RBP, H_RSI, H_RDI, H_RDX, H_R11, H_RAX};
    for (unsigned i = 0; i < ARRAY_SIZE(order); i++) {
        unsigned h = order[i];
        if (*taken & BIT(h))
            continue;
        *taken |= (uint32_t)BIT(h);
        if (h == H_GUEST_RCX)
            loop->spilled |= BIT(CPU_RCX);
        else if (!BT_IN_MEMORY(h))
            loop->spilled |= (uint16_t)BIT(h);
        return h;
    }
    return H_NONE;
}

/* Host registers: RCX counts, guest registers stay at home where they can, pointers get others. */
static bool assign_hosts(struct bt_loop *loop)
{
    uint32_t taken = BIT(H_RCX) | BIT(H_RSP);

    for (unsigned g = 0; g < CPU_GPR_COUNT; g++) {
        if (!(loop->used & BIT(g)) || (g == CPU_R11 && (loop->used & BIT(CPU_RCX))))
            continue;
        unsigned h = g == CPU_RCX ? H_GUEST_RCX : g;
        loop->host[g] = (uint8_t)h;
        taken |= (uint32_t)BIT(h);
        if (g == CPU_R11)
            loop->spilled |= BIT(CPU_RCX);
    }
    if ((loop->used & BIT(CPU_R11)) && (loop->used & BIT(CPU_RCX))) {
        loop->host[CPU_R11] = (uint8_t)take_host(loop, &taken);
        if (loop->host[CPU_R11] == H_NONE)
            return false;
    }
    for (unsigned i = 0; i < loop->stream_count; i++) {
        loop->streams[i].pointer = (uint8_t)take_host(loop, &taken);
        if (loop->streams[i].pointer == H_NONE)
            return false;
    }
    return true;
}

void bt_loop_find(struct bt_tr *t)
{
    struct bt_loop *loop = &t->loop;
    struct movement all = {.irregular = 0}, now = {.irregular = 0};

    *loop = (struct bt_loop){.unroll = 1};
    if ((t->mode & BT_MODE_NOSHARE) || !find_last(t, loop))
        return;
    for (unsigned i = 0; i < loop->last; i++)
        if (!bt_is_hint(&t->insns[i]))
            follow(t, &t->insns[i], &all);
    for (unsigned i = 0; i < loop->last; i++) {
        const struct insn *in = &t->insns[i];
        if (in->cls != INSN_DATA || bt_is_hint(in))
            continue;
        if (!is_fit(t, in) || (in->has_mem && !in->is_agen && !add_access(t, i, &all, &now)))
            return;
        if (bt_uses_rcx_implicitly(in)) {
            if (in->gpr_written & BIT(CPU_RCX))
                return;
            loop->is_rcx_implicit = true;
        }
        loop->used |= registers_needed(in);
        loop->written |= in->gpr_written;
        follow(t, in, &now);
    }
    if (!streams_can_be_addressed(loop) || !is_worthwhile(loop) || !assign_hosts(loop))
        return;
    loop->unroll = loop->last <= 8 ? 4 : loop->last <= 16 ? 2 : 1;
    loop->is_found = true;
}
