/*
 * insn_cache.c - decoding by what was decoded before
 *
 * Key invariant: an instruction that is kept is the same function of its displacement and immediate
 * for every instruction with the same head: only opcodes of which that is known are looked up.
 * What an immediate says about flags (shifts by a constant) makes it part of the head.
 *
 * Specification: SDM vol. 2, 2.1 to 2.3, tables.
 */
#include "cpu/insn_cache.h"

#include <string.h>

#include "base/bits.h"

/* What follows an opcode. */
enum follow {
    FOLLOW_UNKNOWN, /* not for the cache */
    FOLLOW_NOTHING, /* or an immediate */
    FOLLOW_MODRM,
    FOLLOW_SHIFT, /* ModRM and a count */
};

/* An opcode of the one-byte map. */
static enum follow follow_one(uint8_t op, unsigned mode)
{
    if (op < 0x40)
        return (op & 7) < 4 ? FOLLOW_MODRM : (op & 7) < 6 ? FOLLOW_NOTHING : FOLLOW_UNKNOWN;
    switch (op) {
    case 0x40 ... 0x5f: /* REX was taken off in 64-bit mode */
        return mode == 4 || op >= 0x50 ? FOLLOW_NOTHING : FOLLOW_UNKNOWN;
    case 0x63:
        return mode == 8 ? FOLLOW_MODRM : FOLLOW_UNKNOWN;
    case 0x69:
    case 0x6b:
    case 0x80:
    case 0x81:
    case 0x83 ... 0x8b:
    case 0x8d:
    case 0xc6:
    case 0xc7:
    case 0xd0 ... 0xd3:
    case 0xf6:
    case 0xf7:
    case 0xfe:
    case 0xff:
        return FOLLOW_MODRM;
    case 0x68:
    case 0x6a:
    case 0x70 ... 0x7f:
    case 0x90 ... 0x99:
    case 0xa8:
    case 0xa9:
    case 0xb0 ... 0xbf:
    case 0xc3:
    case 0xc9:
    case 0xe8:
    case 0xe9:
    case 0xeb:
        return FOLLOW_NOTHING;
    case 0xc0:
    case 0xc1:
        return FOLLOW_SHIFT;
    default:
        return FOLLOW_UNKNOWN;
    }
}

/* One behind 0FH. */
static enum follow follow_two(uint8_t op)
{
    switch (op) {
    case 0x10 ... 0x18:
    case 0x1e:
    case 0x1f:
    case 0x28 ... 0x2f:
    case 0x40 ... 0x76:
    case 0x7e:
    case 0x7f:
    case 0x90 ... 0x9f:
    case 0xa3:
    case 0xa5:
    case 0xab:
    case 0xad:
    case 0xaf:
    case 0xb0:
    case 0xb1:
    case 0xb3:
    case 0xb6 ... 0xb8:
    case 0xba ... 0xc2:
    case 0xc4 ... 0xc6:
    case 0xd0 ... 0xfe:
        return FOLLOW_MODRM;
    case 0x80 ... 0x8f:
    case 0xc8 ... 0xcf:
        return FOLLOW_NOTHING;
    case 0xa4:
    case 0xac:
        return FOLLOW_SHIFT;
    default:
        return FOLLOW_UNKNOWN;
    }
}

/* Length of the head at `bytes`, of which there are INSN_MAX_LEN; 0: not for the cache. */
static unsigned head_length(const uint8_t *bytes, unsigned mode)
{
    enum follow follow;
    unsigned i = 0;

    while (i < 2 && (bytes[i] == 0x66 || bytes[i] == 0xf2 || bytes[i] == 0xf3 || bytes[i] == 0x64 ||
                     bytes[i] == 0x65))
        i++;
    if (mode == 8 && (bytes[i] & 0xfe) == 0xc4) {
        i += bytes[i] == 0xc4 ? 3 : 2;
        follow = bytes[i++] == 0x77 ? FOLLOW_UNKNOWN : FOLLOW_MODRM;
    } else {
        if (mode == 8 && (bytes[i] & 0xf0) == 0x40)
            i++;
        uint8_t op = bytes[i++];
        follow = op == 0x0f ? follow_two(bytes[i++]) : follow_one(op, mode);
    }
    if (follow == FOLLOW_UNKNOWN)
        return 0;
    if (follow == FOLLOW_NOTHING)
        return i;
    uint8_t modrm = bytes[i++];
    bool is_register = modrm >= 0xc0;
    if (follow == FOLLOW_SHIFT)
        return is_register ? i + 1 : 0; /* the count, when nothing is in between */
    return i + (!is_register && (modrm & 7) == 4);
}

static int64_t load_signed(const uint8_t *bytes, unsigned size)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)bytes[i] << 8 * i;
    return size == 0 || size == 8 ? (int64_t)value : sign_extend(value, 8 * size);
}

/* The first `len` of INSN_MAX_LEN bytes, and zeros. */
static void copy_bytes(uint8_t *to, const uint8_t *from, unsigned len)
{
    uint64_t low, high;

    memcpy(&low, from, 8);
    memcpy(&high, from + INSN_MAX_LEN - 8, 8); /* one byte in common */
    low = len < 8 ? bits(low, 8 * len - 1, 0) : low;
    high = len < 8 ? low >> 56 : bits(high, 8 * (len - 7) - 1, 0);
    memcpy(to, &low, 8);
    memcpy(to + INSN_MAX_LEN - 8, &high, 8);
}

/* Displacement and immediate of the instruction at `bytes`, which has the template's head. */
static void fill_in(struct insn *out, const struct insn_template *t, const uint8_t *bytes)
{
    copy_bytes(out->bytes, bytes, out->len);
    if (t->disp_size != 0)
        out->mem_disp = load_signed(bytes + t->disp_off, t->disp_size);
    if (out->imm_size != 0) {
        uint64_t imm = (uint64_t)load_signed(bytes + out->imm_off, out->imm_size);
        out->imm = out->is_imm_signed ? imm : bits(imm, 8 * out->imm_size - 1u, 0);
    }
}

/* Keep *in, unless there is something to it that fill_in does not know. */
static void template_make(struct insn_template *t, uint64_t head, unsigned head_len,
                          const struct insn *in)
{
    unsigned imm_off = in->imm_size != 0 ? in->imm_off : in->len;
    unsigned disp_size = head_len < imm_off ? imm_off - head_len : 0;

    t->in.len = 0;
    if (in->imm2_size != 0 || (disp_size != 0 && (!in->has_mem || !in->has_modrm)))
        return;
    t->head = head;
    t->in = *in;
    t->disp_off = (uint8_t)head_len;
    t->disp_size = (uint8_t)disp_size;
}

int insn_decode_cached(struct insn_cache *cache, struct insn *out, const uint8_t *bytes,
                       size_t avail, unsigned mode, const struct cpu_model *model)
{
    unsigned head_len = avail >= INSN_MAX_LEN ? head_length(bytes, mode) : 0;

    if (head_len == 0)
        return insn_decode(out, bytes, avail, mode, model);
    uint64_t head;
    memcpy(&head, bytes, sizeof(head));
    head = bits(head, 8 * head_len - 1, 0);
    /* heads are told apart by their bytes alone: what one begins with is not another */
    uint64_t hash = (head + mode) * UINT64_C(0x9e3779b97f4a7c15);
    struct insn_template *t = &cache->slots[(hash >> 40) % INSN_CACHE_SLOTS];

    if (t->head == head && t->in.len != 0 && t->in.mode == mode) {
        cache->hits++;
        *out = t->in;
        fill_in(out, t, bytes);
        return out->len;
    }
    int len = insn_decode(out, bytes, avail, mode, model);
    if (len > 0)
        template_make(t, head, head_len, out);
    return len;
}
