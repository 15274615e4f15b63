/*
 * generate.c - random instructions and random state, all from one 64-bit seed
 *
 * Bytes are drawn, decoded, and kept when they are something that user mode may execute without
 * reaching the kernel or reading what differs between machines (time, identity). Memory operands
 * are steered into the data window, now and then across its middle or its end.
 */
#include <string.h>

#include <Zydis/Zydis.h>

#include "cpu/insn.h"
#include "diff.h"

struct rng {
    uint64_t s;
};

static uint64_t rng_next(struct rng *r)
{
    uint64_t z = (r->s += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static unsigned rng_below(struct rng *r, unsigned n)
{
    return (unsigned)(rng_next(r) >> 33) % n;
}

static bool rng_percent(struct rng *r, unsigned percent)
{
    return rng_below(r, 100) < percent;
}

/* Values where carries, signs and widths change. */
static uint64_t rng_value(struct rng *r)
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

static void put_random_bytes(struct rng *r, uint8_t *p, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        p[i] = (uint8_t)rng_next(r);
}

/* 15 bytes that begin with plausible prefixes and an opcode of some map. */
static void draw_bytes(struct rng *r, unsigned mode, uint8_t bytes[INSN_MAX_LEN])
{
    static const uint8_t legacy[] = {0x66, 0xf2, 0xf3, 0xf0, 0x67, 0x2e, 0x3e};
    unsigned n = 0;

    put_random_bytes(r, bytes, INSN_MAX_LEN);
    while (n < 2 && rng_percent(r, 25))
        bytes[n++] = legacy[rng_below(r, ARRAY_SIZE(legacy))];
    unsigned map = rng_below(r, 100);
    if (map < 68) {
        if (mode == 8 && rng_percent(r, 60))
            bytes[n++] = (uint8_t)(0x40 | rng_below(r, 16));
        if (map >= 35)
            bytes[n++] = 0x0f;
        if (map >= 55)
            bytes[n++] = map < 62 ? 0x38 : 0x3a;
    } else if (map < 84) {
        bytes[n++] = rng_percent(r, 40) ? 0xc5 : 0xc4;
        if (bytes[n - 1] == 0xc4) {
            bytes[n] = (uint8_t)((bytes[n] & 0xe0) | (1 + rng_below(r, 3)));
            if (mode == 4)
                bytes[n] |= 0xc0; /* else it is LES */
        } else if (mode == 4) {
            bytes[n] |= 0xc0;
        }
    } else if (map < 97) {
        bytes[n++] = 0x62;
        bytes[n] = (uint8_t)((bytes[n] & 0xf0) | (1 + rng_below(r, 3)));
        if (mode == 4)
            bytes[n] |= 0xc0;
        bytes[n + 1] |= 0x04;
        if (rng_percent(r, 50))
            bytes[n + 2] &= 0x68; /* no mask, no broadcast */
    } else {
        bytes[n++] = (uint8_t)(0xd8 | rng_below(r, 8));
    }
}

/* Time, identity, randomness; and what would reach the kernel or another segment. */
static bool is_forbidden(const struct insn *in)
{
    switch (in->op) {
    case ZYDIS_MNEMONIC_RDRAND:
    case ZYDIS_MNEMONIC_RDSEED:
    case ZYDIS_MNEMONIC_RDPID:
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP:
        return true;
    default:
        return in->seg == CPU_FS || in->seg == CPU_GS;
    }
}

/* INSN_SPECIAL that may be the last of a sequence; they go to the next instruction. */
static bool is_allowed_special(const struct insn *in)
{
    if (in->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && in->opcode >= 0x70 && in->opcode <= 0x7f)
        return true;
    switch (in->op) {
    case ZYDIS_MNEMONIC_PUSH:
    case ZYDIS_MNEMONIC_POP:
        return in->opcode != 0x06 && in->opcode != 0x07 && in->opcode != 0x0e &&
               in->opcode != 0x16 && in->opcode != 0x17 && in->opcode != 0x1e &&
               in->opcode != 0x1f && in->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT;
    case ZYDIS_MNEMONIC_PUSHA:
    case ZYDIS_MNEMONIC_PUSHAD:
    case ZYDIS_MNEMONIC_POPA:
    case ZYDIS_MNEMONIC_POPAD:
    case ZYDIS_MNEMONIC_LEAVE:
    case ZYDIS_MNEMONIC_XLAT:
    case ZYDIS_MNEMONIC_CLD:
    case ZYDIS_MNEMONIC_STD:
    case ZYDIS_MNEMONIC_LOOP:
    case ZYDIS_MNEMONIC_LOOPE:
    case ZYDIS_MNEMONIC_LOOPNE:
    case ZYDIS_MNEMONIC_JCXZ:
    case ZYDIS_MNEMONIC_JECXZ:
    case ZYDIS_MNEMONIC_JRCXZ:
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
    case ZYDIS_MNEMONIC_AAA:
    case ZYDIS_MNEMONIC_AAS:
    case ZYDIS_MNEMONIC_AAM:
    case ZYDIS_MNEMONIC_AAD:
    case ZYDIS_MNEMONIC_DAA:
    case ZYDIS_MNEMONIC_DAS:
    case ZYDIS_MNEMONIC_SALC:
    case ZYDIS_MNEMONIC_MOVSB:
    case ZYDIS_MNEMONIC_MOVSW:
    case ZYDIS_MNEMONIC_MOVSQ:
    case ZYDIS_MNEMONIC_STOSB:
    case ZYDIS_MNEMONIC_STOSW:
    case ZYDIS_MNEMONIC_STOSD:
    case ZYDIS_MNEMONIC_STOSQ:
    case ZYDIS_MNEMONIC_LODSB:
    case ZYDIS_MNEMONIC_LODSW:
    case ZYDIS_MNEMONIC_LODSD:
    case ZYDIS_MNEMONIC_LODSQ:
    case ZYDIS_MNEMONIC_CMPSB:
    case ZYDIS_MNEMONIC_CMPSW:
    case ZYDIS_MNEMONIC_CMPSQ:
    case ZYDIS_MNEMONIC_SCASB:
    case ZYDIS_MNEMONIC_SCASW:
    case ZYDIS_MNEMONIC_SCASD:
    case ZYDIS_MNEMONIC_SCASQ:
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
        return true;
    case ZYDIS_MNEMONIC_MOVSD:
    case ZYDIS_MNEMONIC_CMPSD:
        return in->opcode == 0xa5 || in->opcode == 0xa7;
    default:
        return false;
    }
}

static bool is_string(const struct insn *in)
{
    return in->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && in->encoding == INSN_LEGACY &&
           ((in->opcode >= 0xa4 && in->opcode <= 0xa7) ||
            (in->opcode >= 0xaa && in->opcode <= 0xaf));
}

static bool is_short_branch(const struct insn *in)
{
    return in->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && in->encoding == INSN_LEGACY &&
           ((in->opcode >= 0x70 && in->opcode <= 0x7f) ||
            (in->opcode >= 0xe0 && in->opcode <= 0xe3));
}

/* Where an operand of `size` bytes shall lie. */
static uint64_t pick_address(struct rng *r, unsigned size)
{
    unsigned room = (unsigned)DIFF_WINDOW - size;
    unsigned at = rng_below(r, room);
    switch (rng_below(r, 20)) {
    case 0:
        return DIFF_DATA + 0x1000 - rng_below(r, size + 1); /* across the middle */
    case 1:
        return DIFF_DATA + DIFF_WINDOW - rng_below(r, size + 1); /* across the end */
    case 2:
    case 3:
    case 4:
        return DIFF_DATA + at;
    default:
        return DIFF_DATA + (at & ~63u);
    }
}

static void set_low(uint64_t *reg, uint64_t value, unsigned size, struct rng *r, unsigned mode)
{
    if (size == 8)
        *reg = value;
    else if (mode == 8 && rng_percent(r, 50))
        *reg = (uint32_t)value | rng_next(r) << 32;
    else
        *reg = (uint32_t)value;
}

/* Make the operand's address what it shall be: registers if they are free, displacement else. */
static bool steer_operand(struct rng *r, struct diff_case *c, struct insn *in, uint8_t *bytes,
                          uint64_t rip, bool may_set_registers)
{
    uint64_t target = pick_address(r, in->mem_size != 0 ? in->mem_size : 1);
    uint64_t disp = (uint64_t)in->mem_disp;

    if (in->addr_size == 2 || !in->has_modrm)
        return false;
    if (in->mem_base == INSN_RIP) {
        store_le32(bytes + in->modrm_off + 1, (uint32_t)(target - (rip + in->len)));
        return true;
    }
    if (in->mem_base == INSN_NO_REG && in->mem_index == INSN_NO_REG) {
        bool has_sib = (in->modrm & 7) == 4;
        store_le32(bytes + in->modrm_off + 1 + has_sib, (uint32_t)target);
        return true;
    }
    if (!may_set_registers)
        return false;
    if (in->mem_base == INSN_NO_REG) {
        set_low(&c->before.gpr[in->mem_index], (target - disp) / in->mem_scale, in->addr_size, r,
                c->mode);
        return (int64_t)(target - disp) >= 0;
    }
    if (in->mem_index != INSN_NO_REG) {
        if (in->mem_index == in->mem_base)
            return false;
        uint64_t index = rng_below(r, 256);
        set_low(&c->before.gpr[in->mem_index], index, in->addr_size, r, c->mode);
        disp += index * in->mem_scale;
    }
    set_low(&c->before.gpr[in->mem_base], target - disp, in->addr_size, r, c->mode);
    return true;
}

static void steer_string(struct rng *r, struct diff_case *c, const struct insn *in)
{
    uint64_t *gpr = c->before.gpr;
    set_low(&gpr[CPU_RSI], pick_address(r, in->op_size), in->addr_size, r, c->mode);
    set_low(&gpr[CPU_RDI],
            rng_percent(r, 30) ? gpr[CPU_RSI] + rng_below(r, 9) : pick_address(r, in->op_size),
            in->addr_size, r, c->mode);
    set_low(&gpr[CPU_RCX], rng_below(r, 80), in->addr_size, r, c->mode);
    if (rng_percent(r, 25))
        c->before.rflags |= RFLAGS_DF;
}

/* Append one instruction; false when this draw is no good. */
static bool append(struct rng *r, struct diff_case *c, bool is_first, bool is_last,
                   const struct cpu_model *model)
{
    uint8_t bytes[INSN_MAX_LEN];
    struct insn in;

    draw_bytes(r, c->mode, bytes);
    int len = insn_decode(&in, bytes, sizeof(bytes), c->mode, model);
    if (len <= 0 || in.is_hidden || is_forbidden(&in))
        return false;
    if (in.cls == INSN_SPECIAL) {
        if (!is_last || !is_allowed_special(&in) || (is_string(&in) && !is_first))
            return false;
        if (is_string(&in))
            steer_string(r, c, &in);
        if (is_short_branch(&in))
            bytes[len - 1] = (uint8_t)rng_below(r, 16);
        if (in.op == ZYDIS_MNEMONIC_MASKMOVQ || in.op == ZYDIS_MNEMONIC_MASKMOVDQU ||
            in.op == ZYDIS_MNEMONIC_VMASKMOVDQU) {
            if (!is_first)
                return false;
            c->before.gpr[CPU_RDI] = pick_address(r, 16);
        }
    } else if (in.cls != INSN_DATA) {
        return false;
    }
    if (in.has_mem && !in.is_agen &&
        !steer_operand(r, c, &in, bytes, c->before.rip + c->code_size, is_first))
        return false;
    memcpy(c->code + c->code_size, bytes, (size_t)len);
    c->code_size += (unsigned)len;
    return true;
}

static void draw_vector_state(struct rng *r, struct diff_state *st, const struct cpu_model *model)
{
    uint8_t *x = st->xsave;

    memset(x, 0, sizeof(st->xsave));
    store_le16(x, 0x37f);
    store_le32(x + 24, 0x1f80);
    if (rng_percent(r, 20))
        store_le16(x, (uint16_t)(0x40 | (rng_next(r) & 0xf3f)));
    if (rng_percent(r, 20))
        store_le32(x + 24, (uint32_t)rng_next(r) & 0xffc0 & model->mxcsr_mask);
    store_le16(x + 2, (uint16_t)(rng_below(r, 8) << 11));
    x[4] = rng_percent(r, 50) ? 0xff : (uint8_t)rng_next(r);
    for (unsigned i = 0; i < 8; i++) {
        uint8_t *st_reg = x + 32 + 16 * i;
        store_le64(st_reg, rng_percent(r, 70) ? rng_next(r) | BIT(63) : rng_value(r));
        store_le16(st_reg + 8, rng_percent(r, 70) ? (uint16_t)(0x3ff0 + rng_below(r, 64))
                                                  : (uint16_t)rng_next(r));
    }
    for (unsigned at = 160; at + 8 <= model->xsave_size && at + 8 <= sizeof(st->xsave); at += 8) {
        if (at == 416)
            at = 576;
        uint64_t v = rng_value(r);
        if (rng_percent(r, 30)) /* floating point near 1 */
            v = (v & UINT64_C(0x807fffff807fffff)) | UINT64_C(0x3f8000003f800000);
        store_le64(x + at, v);
    }
    store_le64(x + 512, model->xcr0_valid);
}

void diff_generate(struct diff_case *c, uint64_t seed, const struct cpu_model *model)
{
    struct rng r = {seed};
    struct diff_state *st = &c->before;

    c->seed = seed;
    c->mode = rng_percent(&r, 70) ? 8 : 4;
    st->rflags = RFLAGS_FIXED | (rng_next(&r) & RFLAGS_STATUS);
    st->cr2 = 0;
    st->vector = st->error = 0;
    for (unsigned i = 0; i < CPU_GPR_COUNT; i++)
        st->gpr[i] = c->mode == 8 ? rng_value(&r) : i < 8 ? (uint32_t)rng_value(&r) : 0;
    st->gpr[CPU_RSP] = DIFF_STACK + 0x1000 + 8 * rng_below(&r, 16);
    if (rng_percent(&r, 5))
        st->gpr[CPU_RSP] += rng_below(&r, 16);
    for (unsigned i = 0; i < DIFF_WINDOW; i += 8) {
        store_le64(st->data + i, rng_next(&r));
        store_le64(st->stack + i, rng_next(&r));
    }
    draw_vector_state(&r, st, model);
    /* a place of its own for each case; now and then across two pages */
    st->rip = DIFF_CODE + (rng_next(&r) % (DIFF_CODE_SIZE - 2 * DIFF_CODE_MAX) & ~UINT64_C(15));
    if (rng_percent(&r, 4))
        st->rip = (st->rip & ~UINT64_C(0xfff)) + 0x1000 - 1 - rng_below(&r, 12);
    if (st->rip + DIFF_CODE_MAX > DIFF_CODE + DIFF_CODE_SIZE)
        st->rip = DIFF_CODE;

    c->code_size = 0;
    unsigned count = rng_percent(&r, 60) ? 1 : 1 + rng_below(&r, DIFF_INSNS);
    for (unsigned i = 0; i < count; i++)
        while (!append(&r, c, i == 0, i + 1 == count, model))
            ;
    memset(c->code + c->code_size, 0xcc, sizeof(c->code) - c->code_size);
    c->code_size = MIN(c->code_size + 17, sizeof(c->code)); /* a branch lands on any of them */
}
