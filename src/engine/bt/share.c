/*
 * share.c - one check for several memory accesses
 *
 * Accesses through the same unchanged base and index, or FS or GS alone, with nearby displacements:
 * stack frames, fields of a structure, runs of PUSH and POP, variables of a thread. The first one
 * checks the whole range and leaves its host address in S1; the others add their displacement.
 * Before S1 is used for something else, the address goes to the vCPU block, from where others load
 * it again (`held`).
 *
 * Invariant: a share lives within straight-line code of one block, while its registers are
 * unchanged (RSP may move by known constants) and no C code has run an instruction. Nothing can
 * then have taken the page's rights away: this vCPU's TLB changes in C only, and whoever wants to
 * protect the page for other reasons waits until this vCPU has left guest code. A C helper that
 * runs an instruction of such a block therefore never resumes it.
 *
 * A range that crosses a page, or a page that is not writable yet, is no fault: the block
 * made without shares (BT_MODE_NOSHARE) takes over at that instruction.
 */
#include <Zydis/Zydis.h>

#include "engine/bt/bt.h"

/* What one instruction accesses, relative to registers. */
struct access {
    uint8_t base, index, scale, seg;
    int32_t disp;
    uint16_t size;
    bool is_write;
};

bool bt_is_simple_stack(const struct bt_tr *t, const struct insn *in)
{
    if ((in->op != ZYDIS_MNEMONIC_PUSH && in->op != ZYDIS_MNEMONIC_POP) || in->op_size != t->size ||
        in->has_mem || in->cls != INSN_SPECIAL)
        return false;
    unsigned g = in->gpr_opcode.reg != INSN_NO_REG ? in->gpr_opcode.reg : in->gpr_rm.reg;
    bool is_immediate = in->opcode == 0x68 || in->opcode == 0x6a;
    return g != INSN_NO_REG || (in->op == ZYDIS_MNEMONIC_PUSH && is_immediate);
}

/* Either may be INSN_NO_REG. */
static uint32_t registers_of(unsigned base, unsigned index)
{
    return (base < CPU_GPR_COUNT ? (uint32_t)BIT(base) : 0) |
           (index < CPU_GPR_COUNT ? (uint32_t)BIT(index) : 0);
}

static bool describe_stack(const struct bt_tr *t, int32_t disp, bool is_write, struct access *a)
{
    *a = (struct access){.base = CPU_RSP,
                         .index = INSN_NO_REG,
                         .scale = 1,
                         .seg = CPU_SS,
                         .disp = disp,
                         .size = (uint16_t)t->size,
                         .is_write = is_write};
    return true;
}

static bool is_indirect_call(const struct insn *in)
{
    return in->opcode == 0xff && (in->modrm >> 3 & 7) == 2;
}

/* The access of *in when it can take part in a share; of CALL, that to the stack. */
static bool describe(const struct bt_tr *t, const struct insn *in, struct access *a)
{
    switch (in->op) {
    case ZYDIS_MNEMONIC_PUSH:
        return bt_is_simple_stack(t, in) && describe_stack(t, -(int32_t)t->size, true, a);
    case ZYDIS_MNEMONIC_POP:
        return bt_is_simple_stack(t, in) && describe_stack(t, 0, false, a);
    case ZYDIS_MNEMONIC_CALL:
        return (in->opcode == 0xe8 || is_indirect_call(in)) && in->op_size == t->size &&
               describe_stack(t, -(int32_t)t->size, true, a);
    case ZYDIS_MNEMONIC_RET:
        return (in->opcode == 0xc3 || in->opcode == 0xc2) && in->op_size == t->size &&
               describe_stack(t, 0, false, a);
    default:
        break;
    }
    if (in->cls != INSN_DATA || in->is_hidden || !in->has_mem || in->is_agen || in->mem_size == 0 ||
        in->is_mem_masked || in->uses_high_byte || in->addr_size != t->size ||
        in->mem_base == INSN_RIP || in->mem_disp < -BT_SHARE_DISP_MAX ||
        in->mem_disp > BT_SHARE_DISP_MAX)
        return false;
    *a = (struct access){.base = in->mem_base,
                         .index = in->mem_index,
                         .scale = in->mem_scale,
                         .seg = in->seg == CPU_FS || in->seg == CPU_GS ? in->seg : CPU_SS,
                         .disp = (int32_t)in->mem_disp,
                         .size = in->mem_size,
                         .is_write = (in->mem_access & INSN_ACCESS_WRITE) != 0};
    /* without any register: bt_fixed_access */
    return (registers_of(a->base, a->index) != 0 || a->seg != CPU_SS) &&
           !(in->seg == CPU_CS && t->size == 4) &&
           !(in->seg == CPU_FS && !(t->mode & BT_MODE_FS_FLAT)) &&
           !(in->seg == CPU_GS && !(t->mode & BT_MODE_GS_FLAT));
}

static bool same_registers(const struct access *a, const struct access *b)
{
    return a->base == b->base && a->index == b->index && a->seg == b->seg &&
           (a->index == INSN_NO_REG || a->scale == b->scale);
}

/* What *in adds to RSP when that is a constant. */
static bool moves_rsp_by_constant(const struct bt_tr *t, const struct insn *in, int32_t *delta)
{
    switch (in->op) {
    case ZYDIS_MNEMONIC_PUSH:
        *delta = -(int32_t)t->size;
        return bt_is_simple_stack(t, in);
    case ZYDIS_MNEMONIC_POP:
        *delta = (int32_t)t->size;
        return bt_is_simple_stack(t, in) && in->gpr_opcode.reg != CPU_RSP &&
               in->gpr_rm.reg != CPU_RSP;
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_SUB:
        if (in->has_mem || in->gpr_rm.reg != CPU_RSP || in->gpr_reg.reg != INSN_NO_REG ||
            in->op_size != t->size || in->imm_size == 0 || (int64_t)in->imm != (int32_t)in->imm)
            return false;
        *delta = in->op == ZYDIS_MNEMONIC_ADD ? (int32_t)in->imm : -(int32_t)in->imm;
        return *delta > -BT_SHARE_RSP_MAX && *delta < BT_SHARE_RSP_MAX;
    default:
        return false;
    }
}

bool bt_stays_inline(const struct insn *in)
{
    if (in->is_hidden || in->cls == INSN_INVALID)
        return false;
    if (in->cls == INSN_DATA)
        return true;
    return in->op == ZYDIS_MNEMONIC_PUSH || in->op == ZYDIS_MNEMONIC_POP || bt_is_jcc(in);
}

/*
 * Follow the code from the current instruction: the range that accesses through the same registers
 * cover, and how many there are.
 */
static unsigned look_ahead(const struct bt_tr *t, const struct access *first, int32_t *low,
                           int32_t *high, bool *is_write)
{
    uint32_t registers = registers_of(first->base, first->index);
    int32_t moved = 0; /* RSP, since `first` */
    unsigned count = 1;
    bool is_certain = true; /* no conditional branch passed */

    *low = first->disp;
    *high = first->disp + first->size;
    *is_write = first->is_write;
    for (unsigned i = t->insn_index;; i++) {
        const struct insn *in = &t->insns[i];
        int32_t delta;
        if (in->gpr_written & registers) {
            if (first->base != CPU_RSP || first->index != INSN_NO_REG ||
                (in->gpr_written & registers) != BIT(CPU_RSP) ||
                !moves_rsp_by_constant(t, in, &delta))
                break;
            moved += delta;
        }
        if (!bt_stays_inline(in) || i + 1 >= t->insn_count)
            break;
        if (in->cls == INSN_SPECIAL && bt_is_jcc(in))
            is_certain = false;

        struct access a;
        if (!describe(t, &t->insns[i + 1], &a) || !same_registers(&a, first))
            continue;
        int64_t from = (int64_t)a.disp + moved, to = from + a.size;
        /* a write that may not happen must not ask for a writable page */
        if (a.is_write && !*is_write && !is_certain)
            continue;
        if (MAX(to, *high) - MIN(from, *low) > BT_SHARE_SPAN_MAX)
            continue;
        *low = (int32_t)MIN(from, *low);
        *high = (int32_t)MAX(to, *high);
        *is_write |= a.is_write;
        count++;
    }
    return count;
}

static struct bt_share *find_live(struct bt_tr *t, const struct access *a)
{
    for (unsigned i = 0; i < BT_SHARES; i++) {
        struct bt_share *s = &t->shares[i];
        if (s->is_live && !s->is_fixed && s->base == a->base && s->index == a->index &&
            s->seg == a->seg && (a->index == INSN_NO_REG || s->scale == a->scale) &&
            a->disp >= s->low && a->disp + a->size <= s->high && (s->is_write || !a->is_write))
            return s;
    }
    return NULL;
}

/* A share that is dead, else the oldest. */
static struct bt_share *find_place(struct bt_tr *t)
{
    for (unsigned i = 0; i < BT_SHARES; i++)
        if (!t->shares[i].is_live)
            return &t->shares[i];
    return &t->shares[t->share_next++ % BT_SHARES];
}

static uint32_t slot_offset(const struct bt_tr *t, const struct bt_share *s)
{
    return BT_OFFSET(share) + 8 * (uint32_t)(s - t->shares);
}

void bt_share_release(struct bt_tr *t)
{
    struct bt_share *s = t->held;

    t->held = NULL;
    if (s == NULL || t->is_held_saved || !s->is_live)
        return;
    if (s->uses_left != 0)
        emit_gs_store(&t->e, true, S1, slot_offset(t, s));
    else
        s->is_live = false;
}

struct bt_share *bt_share_add(struct bt_tr *t, const struct bt_share *made)
{
    struct bt_share *s = find_place(t);

    *s = *made;
    t->has_shares = true;
    t->held = s;
    t->is_held_saved = false;
    return s;
}

void bt_share_use(struct bt_tr *t, struct bt_share *s)
{
    bt_emit_count(t, BT_OFFSET(accesses));
    if (s->uses_left > 0)
        s->uses_left--;
    if (t->held == s)
        return;
    bt_share_release(t);
    emit_gs_load(&t->e, true, S1, slot_offset(t, s));
    t->held = s;
    t->is_held_saved = true;
}

bool bt_share_access(struct bt_tr *t, const struct insn *in, struct bt_place *place)
{
    struct access a;
    unsigned reg;

    if (!bt_may_share(t) || !describe(t, in, &a))
        return false;
    struct bt_share *s = find_live(t, &a);
    if (s != NULL) {
        bt_share_use(t, s);
    } else {
        struct bt_share made = {
            .is_live = true, .base = a.base, .index = a.index, .scale = a.scale, .seg = a.seg};
        unsigned count = look_ahead(t, &a, &made.low, &made.high, &made.is_write);
        if (count < 2)
            return false;
        made.uses_left = (uint16_t)(count - 1);
        bt_emit_linear(t,
                       &(struct bt_address){.base = made.base,
                                            .index = made.index,
                                            .scale = made.scale,
                                            .seg = made.seg,
                                            .size = (uint8_t)t->size,
                                            .disp = made.low},
                       &reg);
        bt_emit_check_shared(t, reg, (unsigned)(made.high - made.low), made.is_write);
        emit_lea(&t->e, true, S1, reg, S2, 1, 0);
        s = bt_share_add(t, &made);
    }
    *place = (struct bt_place){.base = S1, .index = H_NONE, .disp = a.disp - s->low};
    return true;
}

void bt_shares_forget(struct bt_tr *t)
{
    t->held = NULL;
    for (unsigned i = 0; i < BT_SHARES; i++)
        t->shares[i].is_live = false;
}

void bt_shares_after(struct bt_tr *t, const struct insn *in)
{
    int32_t delta = 0;
    bool is_constant = moves_rsp_by_constant(t, in, &delta);

    for (unsigned i = 0; i < BT_SHARES; i++) {
        struct bt_share *s = &t->shares[i];
        if (!s->is_live || s->is_fixed)
            continue;
        uint32_t registers = registers_of(s->base, s->index);
        uint32_t written = in->gpr_written & registers;
        if (written == 0)
            continue;
        if (written == BIT(CPU_RSP) && s->base == CPU_RSP && s->index == INSN_NO_REG &&
            is_constant) {
            s->low -= delta;
            s->high -= delta;
        } else {
            s->is_live = false;
        }
    }
}
