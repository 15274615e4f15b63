/*
 * generate.c - random instructions and random state, all from one 64-bit seed
 *
 * Bytes are drawn, decoded, and kept when they are something that user mode may execute without
 * the host's noticing; or when they are nothing at all, to see that both refuse them.
 */
#include <string.h>

#include "generate.h"

uint64_t rng_next(struct rng *r)
{
    uint64_t z = (r->s += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

unsigned rng_below(struct rng *r, unsigned n)
{
    return (unsigned)(rng_next(r) >> 33) % n;
}

bool rng_percent(struct rng *r, unsigned percent)
{
    return rng_below(r, 100) < percent;
}

/* Values where carries, signs and widths change. */
uint64_t rng_value(struct rng *r)
{
    static const uint64_t edges[] = {
        0,          1,      2,          0x7f,       0x80,       0xff,      0x7fff,
        0x8000,     0xffff, 0x7fffffff, 0x80000000, 0xffffffff, INT64_MAX, (uint64_t)INT64_MIN,
        UINT64_MAX, 0x100};
    switch (rng_below(r, 4)) {
    case 0:
        return edges[rng_below(r, ARRAY_SIZE(edges))];
    case 1:
        return (uint64_t)(int64_t)(int8_t)rng_next(r);
    case 2:
        return rng_next(r) >> rng_below(r, 64);
    default:
        return rng_next(r);
    }
}

/* Floating point where its cases differ: zeros, denormals, infinities, NaNs, extremes. */
static uint64_t rng_float(struct rng *r)
{
    static const uint32_t singles[] = {0,          0x80000000, 1,          0x007fffff, 0x00800000,
                                       0x7f7fffff, 0x7f800000, 0xff800000, 0x7fc00000, 0x7fa00001,
                                       0x3f800000, 0xbf800000, 0x4f000000, 0x5f000000};
    static const uint64_t doubles[] = {
        1,
        UINT64_C(0x000fffffffffffff),
        UINT64_C(0x0010000000000000),
        UINT64_C(0x7fefffffffffffff),
        UINT64_C(0x7ff0000000000000),
        UINT64_C(0xfff0000000000000),
        UINT64_C(0x7ff8000000000000),
        UINT64_C(0x7ff4000000000001),
        UINT64_C(0x3ff0000000000000),
        UINT64_C(0x41e0000000000000),
    };
    switch (rng_below(r, 4)) {
    case 0:
        return singles[rng_below(r, ARRAY_SIZE(singles))] |
               (uint64_t)singles[rng_below(r, ARRAY_SIZE(singles))] << 32;
    case 1:
        return doubles[rng_below(r, ARRAY_SIZE(doubles))];
    default: /* near 1, in both formats */
        return (rng_next(r) & UINT64_C(0x807fffff807fffff)) | UINT64_C(0x3f8000003f800000);
    }
}

/*
 * EVEX.X would extend a register in ModRM.rm to 32. With a general register it names none, and this
 * processor was seen to read a stale one.
 */
static bool names_no_register(const struct insn *in)
{
    return in->encoding == INSN_EVEX && in->mode == 8 && in->gpr_rm.reg != INSN_NO_REG &&
           !(in->bytes[in->vex_off + 1] & 0x40);
}

/* AMD reads LOCK MOV CR0 as MOV CR8 (APM vol. 3); no CPU model offers that. */
static bool is_locked_mov_cr(const uint8_t bytes[INSN_MAX_LEN])
{
    bool has_lock = false;
    unsigned i = 0;

    while (i < 12 && bytes[i] != 0x0f)
        has_lock |= bytes[i++] == 0xf0;
    return has_lock && (bytes[i + 1] & 0xfc) == 0x20;
}

/*
 * VMCALL or VMMCALL, whatever its prefixes? A hypervisor below the host may serve it, or answer it
 * with #GP for a processor that would say #UD.
 */
static bool is_hypercall(const uint8_t *bytes)
{
    unsigned i = 0;

    while (i < 12 && bytes[i] != 0x0f)
        i++;
    return bytes[i] == 0x0f && bytes[i + 1] == 0x01 &&
           (bytes[i + 2] == 0xc1 || bytes[i + 2] == 0xd9);
}

/* Append `bytes`; false when this draw is no good. */
static bool append(struct rng *r, struct diff_case *c, uint8_t bytes[INSN_MAX_LEN], bool is_last,
                   const struct cpu_model *model, uint16_t *pointers)
{
    struct insn in;
    bool is_first = c->code_size == 0;
    int len = insn_decode(&in, bytes, INSN_MAX_LEN, c->mode, model);

    if (len < 0) { /* no instruction, or too long a one: alone in its case */
        if (!is_first || !is_last || !rng_percent(r, 2) || is_locked_mov_cr(bytes) ||
            is_hypercall(bytes))
            return false;
        memcpy(c->code, bytes, INSN_MAX_LEN);
        memset(c->code + 10, 0xcc, len == -1 ? INSN_MAX_LEN - 10 : 0);
        c->code_size = INSN_MAX_LEN;
        return true;
    }
    enum draw_kind kind = draw_classify(&in);
    if (kind == DRAW_REFUSED || names_no_register(&in) || (kind == DRAW_FIRST && !is_first) ||
        (kind == DRAW_LAST && !is_last))
        return false;
    struct steer s = {.r = r,
                      .c = c,
                      .model = model,
                      .rip = c->before.rip + c->code_size,
                      .is_first = is_first,
                      .pointers = *pointers};
    if (!steer_operands(&s, &in, bytes))
        return false;
    *pointers = s.pointers;
    memcpy(c->code + c->code_size, bytes, (size_t)len);
    c->code_size += (unsigned)len;
    return true;
}

/*
 * What the instructions of a case have in common: nothing, operands at addresses that their bytes
 * hold, or the stack. A translator checks several of those at once.
 */
enum flavour { FLAVOUR_ANY, FLAVOUR_FIXED, FLAVOUR_STACK };

/* An operand through registers becomes one relative to RIP, in 32-bit code an absolute one. */
static void fix_address(const struct diff_case *c, uint8_t bytes[INSN_MAX_LEN])
{
    struct insn in;

    if (insn_decode(&in, bytes, INSN_MAX_LEN, c->mode, NULL) > 0 && in.has_mem && in.has_modrm &&
        !in.is_vsib)
        bytes[in.modrm_off] = (uint8_t)((in.modrm & 0x38) | 5);
}

/* Draw until one fits. Half of what has no memory operand is thrown away: there is most to see. */
static void draw_and_append(struct rng *r, struct diff_case *c, bool is_last, enum flavour flavour,
                            const struct cpu_model *model, uint16_t *pointers)
{
    uint8_t bytes[INSN_MAX_LEN];
    do {
        if (flavour == FLAVOUR_STACK)
            draw_stack_bytes(r, c->mode, bytes);
        else
            draw_bytes(r, c->mode, bytes);
        if (flavour == FLAVOUR_FIXED)
            fix_address(c, bytes);
    } while (!append(r, c, bytes, is_last, model, pointers));
}

static void draw_x87_state(struct rng *r, uint8_t *x)
{
    store_le16(x, 0x37f);
    if (rng_percent(r, 35))
        store_le16(x, (uint16_t)(0x40 | (rng_next(r) & 0xf3f)));
    store_le16(x + 2, (uint16_t)(rng_below(r, 8) << 11));
    if (rng_percent(r, 10)) /* flags; ES and B follow from what is unmasked */
        store_le16(x + 2, (uint16_t)(rng_next(r) & 0x7f7f));
    if (load_le16(x + 2) & ~load_le16(x) & 0x3f)
        store_le16(x + 2, load_le16(x + 2) | 0x8080);
    x[4] = rng_percent(r, 50) ? 0xff : (uint8_t)rng_next(r);
    for (unsigned i = 0; i < 8; i++) {
        uint8_t *st_reg = x + 32 + 16 * i;
        store_le64(st_reg, rng_percent(r, 70) ? rng_next(r) | BIT(63) : rng_value(r));
        store_le16(st_reg + 8, rng_percent(r, 70) ? (uint16_t)(0x3ff0 + rng_below(r, 64))
                                                  : (uint16_t)rng_next(r));
    }
}

static void draw_vector_state(struct rng *r, struct diff_state *st, const struct cpu_model *model)
{
    uint8_t *x = st->xsave;
    bool is_float = rng_percent(r, 50);

    memset(x, 0, sizeof(st->xsave));
    draw_x87_state(r, x);
    store_le32(x + 24, 0x1f80);
    if (rng_percent(r, 35))
        store_le32(x + 24, (uint32_t)rng_next(r) & 0xffc0 & model->mxcsr_mask);
    for (unsigned at = 160; at + 8 <= model->xsave_size && at + 8 <= sizeof(st->xsave); at += 8) {
        if (at == 416)
            at = 576;
        store_le64(x + at, is_float && !rng_percent(r, 20) ? rng_float(r) : rng_value(r));
    }
    store_le64(x + 512, model->xcr0_valid);
}

static void draw_memory(struct rng *r, struct diff_state *st)
{
    bool is_float = rng_percent(r, 30);

    for (unsigned i = 0; i < DIFF_WINDOW; i += 8) {
        store_le64(st->data + i, is_float ? rng_float(r) : rng_next(r));
        store_le64(st->stack + i, rng_next(r));
    }
}

/* A place of its own for each case, so that nothing is translated before; now and then across
 * two pages. */
static uint64_t draw_place(struct rng *r)
{
    uint64_t rip = DIFF_CODE + (rng_next(r) % (DIFF_CODE_SIZE - 2 * DIFF_CODE_MAX) & ~UINT64_C(15));

    if (rng_percent(r, 10))
        rip = (rip & ~UINT64_C(0xfff)) + 0x1000 - 1 - rng_below(r, 24);
    return rip + DIFF_CODE_MAX > DIFF_CODE + DIFF_CODE_SIZE ? DIFF_CODE : rip;
}

void draw_state(struct rng *r, struct diff_case *c, const struct cpu_model *model)
{
    struct diff_state *st = &c->before;

    st->rflags = RFLAGS_FIXED | (rng_next(r) & RFLAGS_STATUS);
    if (rng_percent(r, 3) && !c->is_without_ac)
        st->rflags |= RFLAGS_AC;
    st->cr2 = 0;
    st->vector = st->error = 0;
    for (unsigned i = 0; i < CPU_GPR_COUNT; i++)
        st->gpr[i] = c->mode == 8 ? rng_value(r) : i < 8 ? (uint32_t)rng_value(r) : 0;
    st->gpr[CPU_RSP] = DIFF_STACK + 0x1000 + 8 * rng_below(r, 16);
    if (rng_percent(r, 5))
        st->gpr[CPU_RSP] += rng_below(r, 16);
    if (rng_percent(r, 3))
        st->gpr[CPU_RSP] = DIFF_STACK + rng_below(r, 48);
    if (rng_percent(r, 3))
        st->gpr[CPU_RSP] = DIFF_STACK + DIFF_WINDOW - rng_below(r, 48);
    if (rng_percent(r, 40))
        st->gpr[CPU_RBP] = DIFF_STACK + 0x1000 + 4 * rng_below(r, 512);
    draw_memory(r, st);
    draw_vector_state(r, st, model);
    st->rip = draw_place(r);
}

void draw_finish(struct diff_case *c)
{
    memset(c->code + c->code_size, 0xcc, sizeof(c->code) - c->code_size);
    c->code_size = MIN(c->code_size + DIFF_TAIL, sizeof(c->code));
}

void draw_start(struct diff_case *c, uint64_t seed, unsigned mode)
{
    c->seed = seed;
    c->mode = mode;
    c->code_size = 0;
    c->image = DIFF_IMAGE_NONE;
    c->image_addr = 0;
}

void diff_generate(struct diff_case *c, uint64_t seed, const struct cpu_model *model)
{
    struct rng r = {seed};
    uint16_t pointers = BIT(CPU_RSP);

    draw_start(c, seed, rng_percent(&r, 60) ? 8 : 4);
    draw_state(&r, c, model);
    unsigned kind = rng_below(&r, 100);
    enum flavour flavour = kind < 10 ? FLAVOUR_FIXED : kind < 20 ? FLAVOUR_STACK : FLAVOUR_ANY;
    unsigned count =
        flavour == FLAVOUR_ANY && rng_percent(&r, 75) ? 1 : 1 + rng_below(&r, DIFF_INSNS);
    for (unsigned i = 0; i < count; i++)
        draw_and_append(&r, c, i + 1 == count, flavour, model, &pointers);
    draw_finish(c);
}

bool diff_generate_for(struct diff_case *c, uint64_t seed, const struct cpu_model *model,
                       unsigned mode, const uint8_t *bytes, unsigned size)
{
    struct rng r = {seed};
    uint16_t pointers = BIT(CPU_RSP);

    for (unsigned tries = 0; tries < 16; tries++) {
        bool is_good = true;
        draw_start(c, seed, mode);
        draw_state(&r, c, model);
        for (unsigned at = 0; at < size && is_good;) {
            uint8_t padded[INSN_MAX_LEN] = {0};
            struct insn in;
            memcpy(padded, bytes + at, MIN(size - at, INSN_MAX_LEN));
            int len = insn_decode(&in, padded, INSN_MAX_LEN, mode, model);
            at += len > 0 ? (unsigned)len : INSN_MAX_LEN;
            is_good = append(&r, c, padded, at >= size, model, &pointers);
        }
        if (is_good) {
            draw_finish(c);
            return true;
        }
    }
    return false;
}
