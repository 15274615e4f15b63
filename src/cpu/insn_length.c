/*
 * insn_length.c - how long an instruction is that does not exist
 *
 * An undefined opcode, or a LOCK out of place, raises #UD, but only after the whole instruction
 * has been fetched: a page fault of its second half, and #GP for more than 15 bytes, go first.
 * The maps whose opcodes are all alike tell the length without knowing the opcode.
 *
 * Specification: SDM vol. 2, 2.1 (ModRM and SIB), 2.3 and 2.7 (VEX, EVEX), tables.
 */
#include "cpu/insn_length.h"

struct reader {
    const uint8_t *bytes;
    size_t n, at;
    unsigned mode;
    bool has_67;
};

/* The byte at `offset` from here; 0 beyond what is there, which makes the length too short, not
 * wrong: whatever follows is not there either. */
static uint8_t peek(const struct reader *r, size_t offset)
{
    return r->at + offset < r->n ? r->bytes[r->at + offset] : 0;
}

static void skip_prefixes(struct reader *r)
{
    for (; r->at < r->n; r->at++) {
        switch (r->bytes[r->at]) {
        case 0x67:
            r->has_67 = true;
            break;
        case 0x26:
        case 0x2e:
        case 0x36:
        case 0x3e:
        case 0x64:
        case 0x65:
        case 0x66:
        case 0xf0:
        case 0xf2:
        case 0xf3:
            break;
        default:
            if (r->mode != 8 || (r->bytes[r->at] & 0xf0) != 0x40)
                return;
        }
    }
}

size_t insn_prefix_count(const uint8_t *bytes, size_t n, unsigned mode)
{
    struct reader r = {.bytes = bytes, .n = n, .mode = mode};

    skip_prefixes(&r);
    return r.at;
}

/* ModRM, SIB and displacement. */
static size_t modrm_length(const struct reader *r)
{
    unsigned modrm = peek(r, 0), mod = modrm >> 6, rm = modrm & 7;
    bool is_16 = r->mode == 2 ? !r->has_67 : r->mode == 4 && r->has_67;

    if (mod == 3)
        return 1;
    if (is_16)
        return mod == 1 ? 2 : mod == 2 || rm == 6 ? 3 : 1;
    size_t length = rm == 4 ? 2 : 1;
    if (mod == 0)
        return rm == 5 || (rm == 4 && (peek(r, 1) & 7) == 5) ? length + 4 : length;
    return length + (mod == 1 ? 1 : 4);
}

/* Opcode, ModRM and immediate of a map: 0F38 has no immediates, 0F3A always one byte. */
static size_t map_length(struct reader *r, unsigned map)
{
    unsigned opcode = peek(r, 0);
    bool has_imm = map == 3 || (map == 1 && ((opcode >= 0x70 && opcode <= 0x73) || opcode == 0xc2 ||
                                             (opcode >= 0xc4 && opcode <= 0xc6)));

    if (map == 1 && opcode == 0x77) /* VZEROUPPER */
        return r->at + 1;
    r->at++;
    return r->at + modrm_length(r) + has_imm;
}

/* XOP maps 8 to 10: one byte of immediate, none, four (APM vol. 3, 1.2.6 and 1.2.7). */
static size_t xop_length(struct reader *r, unsigned map)
{
    static const uint8_t imm[] = {1, 0, 4};

    if (map < 8 || map > 10)
        return 0; /* POP */
    r->at += 4;
    return r->at + modrm_length(r) + imm[map - 8];
}

size_t insn_undefined_length(const uint8_t *bytes, size_t n, unsigned mode, bool is_amd)
{
    struct reader r = {.bytes = bytes, .n = n, .mode = mode};
    uint8_t first, second;

    skip_prefixes(&r);
    first = peek(&r, 0);
    second = peek(&r, 1);
    if (first == 0x0f && (second == 0x38 || second == 0x3a)) {
        r.at += 2;
        return map_length(&r, second == 0x38 ? 2 : 3);
    }
    if (first == 0x8f && is_amd)
        return xop_length(&r, second & 0x1f);
    if (mode != 8 && second < 0xc0)
        return 0; /* LES, LDS, BOUND */
    switch (first) {
    case 0xc5:
        r.at += 2;
        return map_length(&r, 1);
    case 0xc4:
        r.at += 3;
        return map_length(&r, second & 0x1f);
    case 0x62:
        r.at += 4;
        return map_length(&r, second & 7);
    default:
        return 0;
    }
}
