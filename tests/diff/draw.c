/*
 * draw.c - random bytes that are likely instructions, and which of them may run as test cases
 *
 * Random bytes alone would be the same few hundred instructions most of the time, so opcode maps
 * and families are weighted, and what needs several bytes to be right comes from a table.
 */
#include <string.h>

#include <Zydis/Zydis.h>

#include "engine/soft/ops.h"
#include "generate.h"

/* Opcode bytes, the last of them with `reg` in ModRM.reg (-1: no ModRM in the table's sense). */
struct pattern {
    uint8_t bytes[4];
    uint8_t len;
    int8_t reg;
};

static const struct pattern special[] = {
    {{0x9c}, 1, -1}, /* PUSHF */
    {{0x9d}, 1, -1}, /* POPF */
    {{0xc8}, 1, -1}, /* ENTER */
    {{0xc9}, 1, -1}, /* LEAVE */
    {{0xe8}, 1, -1}, /* CALL */
    {{0xe9}, 1, -1}, /* JMP */
    {{0xeb}, 1, -1},
    {{0xc3}, 1, -1}, /* RET */
    {{0xc2}, 1, -1},
    {{0xff}, 1, 2}, /* CALL and JMP, indirect */
    {{0xff}, 1, 4},
    {{0xff}, 1, 6},        /* PUSH */
    {{0x8f}, 1, 0},        /* POP */
    {{0x0f, 0x84}, 2, -1}, /* JZ */
    {{0x0f, 0x8d}, 2, -1}, /* JNL */
    {{0x74}, 1, -1},
    {{0xe2}, 1, -1},       /* LOOP */
    {{0xe3}, 1, -1},       /* JrCXZ */
    {{0x0f, 0xae}, 2, 0},  /* FXSAVE */
    {{0x0f, 0xae}, 2, 1},  /* FXRSTOR */
    {{0x0f, 0xae}, 2, 4},  /* XSAVE */
    {{0x0f, 0xae}, 2, 5},  /* XRSTOR */
    {{0x0f, 0xae}, 2, 6},  /* XSAVEOPT */
    {{0x0f, 0xc7}, 2, 4},  /* XSAVEC */
    {{0x0f, 0xae}, 2, 2},  /* LDMXCSR */
    {{0x0f, 0xae}, 2, 3},  /* STMXCSR */
    {{0xdd}, 1, 6},        /* FNSAVE */
    {{0xdd}, 1, 4},        /* FRSTOR */
    {{0xd9}, 1, 6},        /* FNSTENV */
    {{0xd9}, 1, 4},        /* FLDENV */
    {{0x0f, 0xf7}, 2, -1}, /* MASKMOVQ, MASKMOVDQU */
    {{0x66, 0x0f, 0xf7}, 3, -1},
    {{0x0f, 0xa3}, 2, -1}, /* BT family */
    {{0x0f, 0xab}, 2, -1},
    {{0x0f, 0xb3}, 2, -1},
    {{0x0f, 0xbb}, 2, -1},
    {{0x0f, 0xba}, 2, 4},
    {{0x0f, 0xba}, 2, 5},
    {{0xa4}, 1, -1}, /* strings */
    {{0xa5}, 1, -1},
    {{0xf3, 0xa4}, 2, -1},
    {{0xf3, 0xa5}, 2, -1},
    {{0xf3, 0xa6}, 2, -1},
    {{0xf2, 0xa7}, 2, -1},
    {{0xf3, 0xaa}, 2, -1},
    {{0xf3, 0xab}, 2, -1},
    {{0xf2, 0xae}, 2, -1},
    {{0xf3, 0xaf}, 2, -1},
    {{0xf3, 0xac}, 2, -1},
    {{0xd7}, 1, -1}, /* XLAT */
    {{0x60}, 1, -1}, /* PUSHA */
    {{0x61}, 1, -1}, /* POPA */
    {{0x62}, 1, -1}, /* BOUND */
    {{0x63}, 1, -1}, /* ARPL, MOVSXD */
    {{0xce}, 1, -1}, /* INTO */

    {{0xa0}, 1, -1}, /* MOV with an absolute address */
    {{0xa1}, 1, -1},
    {{0xa2}, 1, -1},
    {{0xa3}, 1, -1},
    {{0x0f, 0xc7}, 2, 1},        /* CMPXCHG8B */
    {{0x0f, 0x01, 0xfc}, 3, -1}, /* CLZERO */
    {{0x0f, 0x0b}, 2, -1},       /* UD2 */
    {{0xf4}, 1, -1},             /* HLT */
    {{0x27}, 1, -1},             /* decimal */
    {{0x2f}, 1, -1},
    {{0x37}, 1, -1},
    {{0x3f}, 1, -1},
    {{0xd4}, 1, -1},
    {{0xd5}, 1, -1},
};

static const struct pattern locked[] = {
    {{0x00}, 1, -1},       {{0x01}, 1, -1},       {{0x09}, 1, -1},       {{0x11}, 1, -1},
    {{0x18}, 1, -1},       {{0x21}, 1, -1},       {{0x29}, 1, -1},       {{0x31}, 1, -1},
    {{0x80}, 1, -1},       {{0x81}, 1, -1},       {{0x83}, 1, -1},       {{0x86}, 1, -1},
    {{0x87}, 1, -1},       {{0xfe}, 1, 0},        {{0xff}, 1, 0},        {{0xff}, 1, 1},
    {{0xf6}, 1, 2},        {{0xf7}, 1, 2},        {{0xf7}, 1, 3},        {{0x0f, 0xb0}, 2, -1},
    {{0x0f, 0xb1}, 2, -1}, {{0x0f, 0xc0}, 2, -1}, {{0x0f, 0xc1}, 2, -1}, {{0x0f, 0xc7}, 2, 1},
    {{0x0f, 0xab}, 2, -1}, {{0x0f, 0xb3}, 2, -1}, {{0x0f, 0xbb}, 2, -1}, {{0x0f, 0xba}, 2, 5},
    {{0x0f, 0xba}, 2, 6},  {{0x0f, 0xba}, 2, 7},
};

static unsigned put_pattern(const struct pattern *p, uint8_t *bytes, unsigned n)
{
    memcpy(bytes + n, p->bytes, p->len);
    n += p->len;
    if (p->reg >= 0)
        bytes[n] = (uint8_t)((bytes[n] & 0xc7) | (unsigned)p->reg << 3);
    return n;
}

/* Up to four prefixes, REX among them now and then (where it is not last it means nothing). */
static unsigned put_prefixes(struct rng *r, unsigned mode, uint8_t *bytes)
{
    static const uint8_t legacy[] = {0x66, 0x66, 0xf2, 0xf3, 0xf0, 0x67, 0x2e, 0x3e, 0x36, 0x26};
    unsigned n = 0;

    while (n < 4 && rng_percent(r, 22)) {
        if (mode == 8 && rng_percent(r, 12))
            bytes[n++] = (uint8_t)(0x40 | rng_below(r, 16));
        else
            bytes[n++] = legacy[rng_below(r, sizeof(legacy))];
    }
    return n;
}

static void put_vex(struct rng *r, unsigned mode, uint8_t *bytes, unsigned n)
{
    if (rng_percent(r, 35)) {
        bytes[n] = 0xc5;
        if (mode == 4)
            bytes[n + 1] |= 0xc0; /* else it is LDS */
        return;
    }
    bytes[n] = 0xc4;
    bytes[n + 1] = (uint8_t)((bytes[n + 1] & 0xe0) | (1 + rng_below(r, 3)));
    if (mode == 4)
        bytes[n + 1] |= 0xc0; /* else it is LES */
}

/* BMI1, BMI2: VEX.L0.0F38 F2..F7 and RORX. */
static void put_vex_integer(struct rng *r, unsigned mode, uint8_t *bytes, unsigned n)
{
    static const uint8_t opcodes[] = {0xf2, 0xf3, 0xf5, 0xf6, 0xf7};
    bool is_rorx = rng_percent(r, 10);

    bytes[n] = 0xc4;
    bytes[n + 1] = (uint8_t)((bytes[n + 1] & 0xe0) | (is_rorx ? 3 : 2) | (mode == 4 ? 0xc0 : 0));
    bytes[n + 2] &= 0xfb;
    if (is_rorx)
        bytes[n + 2] = (uint8_t)((bytes[n + 2] & 0x80) | 0x7b);
    bytes[n + 3] = is_rorx ? 0xf0 : opcodes[rng_below(r, sizeof(opcodes))];
}

/* VMASKMOV, VPMASKMOV, MASKMOV and gathers: VEX.66.0F38. */
static void put_vex_masked(struct rng *r, unsigned mode, uint8_t *bytes, unsigned n)
{
    static const uint8_t opcodes[] = {0x2c, 0x2d, 0x2e, 0x2f, 0x8c, 0x8e, 0x90, 0x91, 0x92, 0x93};

    bytes[n] = 0xc4;
    bytes[n + 1] = (uint8_t)((bytes[n + 1] & 0xe0) | 2 | (mode == 4 ? 0xc0 : 0));
    bytes[n + 2] = (uint8_t)((bytes[n + 2] & 0xfc) | 1);
    bytes[n + 3] = opcodes[rng_below(r, sizeof(opcodes))];
    if (bytes[n + 3] >= 0x90)
        bytes[n + 4] = (uint8_t)((rng_below(r, 3) << 6) | (bytes[n + 4] & 0x38) | 4);
}

static void put_evex(struct rng *r, unsigned mode, uint8_t *bytes, unsigned n)
{
    static const uint8_t vsib[] = {0x90, 0x91, 0x92, 0x93, 0xa0, 0xa1, 0xa2, 0xa3};

    bytes[n] = 0x62;
    bytes[n + 1] = (uint8_t)((bytes[n + 1] & 0xf0) | (1 + rng_below(r, 3)));
    if (mode == 4)
        bytes[n + 1] |= 0xc0; /* else it is BOUND */
    bytes[n + 2] |= 0x04;
    if (rng_percent(r, 35))
        bytes[n + 3] &= 0x68; /* no mask, no broadcast */
    if (rng_percent(r, 7)) {
        bytes[n + 1] = (uint8_t)((bytes[n + 1] & 0xf8) | 2);
        bytes[n + 2] = (uint8_t)((bytes[n + 2] & 0x80) | 0x7d);
        bytes[n + 3] = (uint8_t)((bytes[n + 3] & 0x6f) | (1 + rng_below(r, 7)));
        bytes[n + 4] = vsib[rng_below(r, sizeof(vsib))];
        bytes[n + 5] = (uint8_t)((rng_below(r, 3) << 6) | (bytes[n + 5] & 0x38) | 4);
    }
}

static unsigned put_rex(struct rng *r, unsigned mode, uint8_t *bytes, unsigned n)
{
    if (mode == 8 && rng_percent(r, 60))
        bytes[n++] = (uint8_t)(0x40 | rng_below(r, 16));
    return n;
}

/* Legacy encodings: opcode maps in full, then the families that have a table. */
static void put_legacy(struct rng *r, unsigned mode, uint8_t *bytes, unsigned n, unsigned family)
{
    bool is_locked = family >= 40 && family < 43;

    if (is_locked)
        bytes[n++] = 0xf0;
    n = put_rex(r, mode, bytes, n);
    if (is_locked) {
        put_pattern(&locked[rng_below(r, ARRAY_SIZE(locked))], bytes, n);
    } else if (family >= 43) {
        put_pattern(&special[rng_below(r, ARRAY_SIZE(special))], bytes, n);
    } else if (family >= 14) {
        bytes[n++] = 0x0f;
        if (family >= 30)
            bytes[n++] = family < 36 ? 0x38 : 0x3a;
    }
}

void draw_bytes(struct rng *r, unsigned mode, uint8_t bytes[INSN_MAX_LEN])
{
    uint64_t noise[2] = {rng_next(r), rng_next(r)};
    unsigned n, family = rng_below(r, 100);

    memcpy(bytes, noise, INSN_MAX_LEN);
    n = put_prefixes(r, mode, bytes);
    if (family < 49) {
        put_legacy(r, mode, bytes, n, family);
    } else if (family < 63) {
        put_vex(r, mode, bytes, n);
    } else if (family < 67) {
        put_vex_integer(r, mode, bytes, n);
    } else if (family < 69) {
        put_vex_masked(r, mode, bytes, n);
    } else if (family < 90) {
        put_evex(r, mode, bytes, n);
    } else {
        bytes[n] = (uint8_t)(0xd8 | rng_below(r, 8));
        if (rng_percent(r, 50))
            bytes[n + 1] &= 0x3f;
    }
}

void draw_stack_bytes(struct rng *r, unsigned mode, uint8_t bytes[INSN_MAX_LEN])
{
    static const uint8_t through_rsp[] = {0x89, 0x8b, 0x89, 0x8b, 0x01, 0x03, 0x2b, 0x39, 0x85};
    unsigned n = 0, kind = rng_below(r, 10);

    draw_bytes(r, mode, bytes);
    if (kind == 0)
        return;
    if (kind < 7 && mode == 8 && rng_percent(r, 40))
        bytes[n++] = (uint8_t)(0x41 | rng_below(r, 16)); /* R8 to R15 */
    if (kind < 4) {
        bytes[n] = (uint8_t)(0x50 | rng_below(r, 8));
    } else if (kind < 6) {
        bytes[n] = (uint8_t)(0x58 | rng_below(r, 8));
    } else if (kind == 6) {
        bytes[n] = rng_percent(r, 50) ? 0x6a : 0x68;
    } else {
        unsigned rex_r = kind == 7 ? 0 : rng_below(r, 2);
        if (mode == 8)
            bytes[n++] = (uint8_t)(0x48 | rex_r << 2);
        if (kind == 7) { /* SUB or ADD RSP */
            bytes[n] = 0x83;
            bytes[n + 1] = rng_percent(r, 50) ? 0xec : 0xc4;
            bytes[n + 2] = (uint8_t)(8 * rng_below(r, 8));
        } else {
            bytes[n] = through_rsp[rng_below(r, ARRAY_SIZE(through_rsp))];
            bytes[n + 1] = (uint8_t)(0x44 | rng_below(r, 8) << 3);
            bytes[n + 2] = 0x24;
            bytes[n + 3] = (uint8_t)(rng_below(r, 128) - 32);
        }
    }
}

bool draw_is_string(const struct insn *in)
{
    return in->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && in->encoding == INSN_LEGACY &&
           ((in->opcode >= 0xa4 && in->opcode <= 0xa7) ||
            (in->opcode >= 0xaa && in->opcode <= 0xaf));
}

bool draw_is_image(const struct insn *in)
{
    switch (in->op) {
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEC64:
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64:
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FRSTOR:
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FLDENV:
        return true;
    default:
        return false;
    }
}

/* Near branches of every kind; their targets are chosen by steer.c. */
static bool is_near_branch(const struct insn *in)
{
    if (in->encoding != INSN_LEGACY)
        return false;
    if (in->opcode_map == ZYDIS_OPCODE_MAP_0F)
        return in->opcode >= 0x80 && in->opcode <= 0x8f;
    if (in->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT)
        return false;
    switch (in->opcode) {
    case 0xc2:
    case 0xc3:
    case 0xe8:
    case 0xe9:
    case 0xeb:
        return true;
    case 0xff:
        return (in->modrm >> 3 & 7) == 2 || (in->modrm >> 3 & 7) == 4;
    default:
        return (in->opcode >= 0x70 && in->opcode <= 0x7f) ||
               (in->opcode >= 0xe0 && in->opcode <= 0xe3);
    }
}

/* Pushes and pops of segment registers. */
static bool is_segment_stack(const struct insn *in)
{
    return in->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT ||
           ((in->opcode & 0xe6) == 0x06 && in->opcode < 0x20);
}

static enum draw_kind classify_special(const struct insn *in)
{
    if (is_near_branch(in))
        return DRAW_LAST;
    if (draw_is_image(in))
        return DRAW_LAST; /* what is blanked in an image must not be loaded again */
    if (draw_is_string(in))
        return in->op == ZYDIS_MNEMONIC_MOVSD || in->op == ZYDIS_MNEMONIC_CMPSD ||
                       in->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT
                   ? DRAW_FIRST
                   : DRAW_REFUSED;
    if (in->is_vsib)
        return DRAW_FIRST;
    switch (in->op) {
    case ZYDIS_MNEMONIC_PUSH:
    case ZYDIS_MNEMONIC_POP:
        return is_segment_stack(in) ? DRAW_REFUSED : DRAW_ANYWHERE;
    case ZYDIS_MNEMONIC_MOV: /* absolute addresses */
        return in->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && in->opcode >= 0xa0 &&
                       in->opcode <= 0xa3
                   ? DRAW_ANYWHERE
                   : DRAW_REFUSED;
    case ZYDIS_MNEMONIC_POPF:
    case ZYDIS_MNEMONIC_POPFD:
    case ZYDIS_MNEMONIC_POPFQ: /* TF and others must be clear in what is popped */
    case ZYDIS_MNEMONIC_XLAT:
    case ZYDIS_MNEMONIC_ENTER:
    case ZYDIS_MNEMONIC_LEAVE:
    case ZYDIS_MNEMONIC_CLZERO:
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
    case ZYDIS_MNEMONIC_BOUND:
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
        return DRAW_FIRST;
    case ZYDIS_MNEMONIC_PUSHF:
    case ZYDIS_MNEMONIC_PUSHFD:
    case ZYDIS_MNEMONIC_PUSHFQ: /* IOPL and IF of a real machine are what they are */
    case ZYDIS_MNEMONIC_PUSHA:
    case ZYDIS_MNEMONIC_PUSHAD:
    case ZYDIS_MNEMONIC_POPA:
    case ZYDIS_MNEMONIC_POPAD:
    case ZYDIS_MNEMONIC_CLD:
    case ZYDIS_MNEMONIC_STD:
    case ZYDIS_MNEMONIC_AAA:
    case ZYDIS_MNEMONIC_AAS:
    case ZYDIS_MNEMONIC_AAM:
    case ZYDIS_MNEMONIC_AAD:
    case ZYDIS_MNEMONIC_DAA:
    case ZYDIS_MNEMONIC_DAS:
    case ZYDIS_MNEMONIC_SALC:
    case ZYDIS_MNEMONIC_ARPL:
    case ZYDIS_MNEMONIC_CLFLUSH:
    case ZYDIS_MNEMONIC_CLFLUSHOPT:
    case ZYDIS_MNEMONIC_CLWB:
    case ZYDIS_MNEMONIC_VZEROUPPER:
    case ZYDIS_MNEMONIC_VZEROALL:
        return DRAW_ANYWHERE;
    case ZYDIS_MNEMONIC_INTO:
    case ZYDIS_MNEMONIC_UD0:
    case ZYDIS_MNEMONIC_UD1:
    case ZYDIS_MNEMONIC_UD2:
    /* privileged: #GP, or #UD where CPL alone forbids them */
    case ZYDIS_MNEMONIC_CLAC:
    case ZYDIS_MNEMONIC_CLI:
    case ZYDIS_MNEMONIC_CLTS:
    case ZYDIS_MNEMONIC_HLT:
    case ZYDIS_MNEMONIC_IN:
    case ZYDIS_MNEMONIC_INVD:
    case ZYDIS_MNEMONIC_INVLPG:
    case ZYDIS_MNEMONIC_LGDT:
    case ZYDIS_MNEMONIC_LIDT:
    case ZYDIS_MNEMONIC_LLDT:
    case ZYDIS_MNEMONIC_LMSW:
    case ZYDIS_MNEMONIC_LTR:
    case ZYDIS_MNEMONIC_OUT:
    case ZYDIS_MNEMONIC_RDMSR:
    case ZYDIS_MNEMONIC_STAC:
    case ZYDIS_MNEMONIC_STI:
    case ZYDIS_MNEMONIC_SWAPGS:
    case ZYDIS_MNEMONIC_WBINVD:
    case ZYDIS_MNEMONIC_WRMSR:
    case ZYDIS_MNEMONIC_XSETBV:
        return DRAW_ANYWHERE;
    default:
        return DRAW_REFUSED;
    }
}

enum draw_kind draw_classify(const struct insn *in)
{
    /* rAX of CLZERO is no memory operand to the decoder */
    unsigned seg = in->op == ZYDIS_MNEMONIC_CLZERO ? soft_prefix_segment(in) : in->seg;
    if (in->is_hidden || seg == CPU_FS || seg == CPU_GS)
        return DRAW_REFUSED; /* the host keeps its own things there */
    switch (in->op) {
    case ZYDIS_MNEMONIC_RDRAND:
    case ZYDIS_MNEMONIC_RDSEED:
    case ZYDIS_MNEMONIC_RDPID:
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP:
        return DRAW_REFUSED;
    default:
        break;
    }
    if (in->cls == INSN_SPECIAL)
        return classify_special(in);
    return in->cls == INSN_DATA ? DRAW_ANYWHERE : DRAW_REFUSED;
}
