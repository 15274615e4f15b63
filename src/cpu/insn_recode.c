/*
 * insn_recode.c - encode an INSN_DATA instruction again, with other registers, for 64-bit mode
 *
 * Opcode, mandatory prefixes, immediates and the vector fields are copied; only the bits that
 * name general registers and the address are replaced.
 * Spec: Intel SDM vol. 2, chapter 2 (REX, VEX and EVEX formats).
 */
#include <Zydis/Zydis.h>

#include "cpu/insn.h"
#include "cpu/state.h"

struct out {
    uint8_t *p;
    unsigned n;
};

static void put(struct out *o, unsigned byte)
{
    o->p[o->n++] = (uint8_t)byte;
}

/* The fields that do not hold GPRs keep their numbers from the original encoding. */
struct fields {
    unsigned reg, rm, vvvv, opcode_reg; /* 4 bits (reg, rm: 5 in EVEX) */
    unsigned base, index;
    bool has_index;
};

static unsigned old_reg(const struct insn *in)
{
    unsigned r = in->modrm >> 3 & 7;
    if (in->has_rex)
        r |= (in->bytes[in->rex_off] & 4u) << 1;
    else if (in->encoding != INSN_LEGACY)
        r |= in->mode == 8 ? (~in->bytes[in->vex_off + 1] & 0x80u) >> 4 : 0;
    return r;
}

static unsigned old_rm(const struct insn *in)
{
    unsigned r = in->modrm & 7;
    if (in->has_rex)
        r |= (in->bytes[in->rex_off] & 1u) << 3;
    else if (in->encoding != INSN_LEGACY && in->bytes[in->vex_off] != 0xc5 && in->mode == 8)
        r |= (~in->bytes[in->vex_off + 1] & 0x20u) >> 2;
    return r;
}

/* ModRM, SIB and displacement of the replaced address. disp8 is not used with EVEX (scaled). */
static void put_address(struct out *o, const struct insn *in, unsigned reg,
                        const struct insn_recode *r)
{
    bool has_sib = r->mem_index != INSN_NO_REG || (r->mem_base & 7) == 4;
    unsigned mod = 0;
    bool is_evex = in->encoding == INSN_EVEX;

    if (r->mem_disp != 0 || (r->mem_base & 7) == 5)
        mod = (r->mem_disp >= -128 && r->mem_disp <= 127 && (!is_evex || r->mem_disp == 0)) ? 1 : 2;
    put(o, mod << 6 | (reg & 7) << 3 | (has_sib ? 4 : r->mem_base & 7));
    if (has_sib)
        put(o, (r->mem_index == INSN_NO_REG ? 4u : r->mem_index & 7u) << 3 | (r->mem_base & 7u));
    if (mod == 1) {
        put(o, (uint8_t)r->mem_disp);
    } else if (mod == 2) {
        for (unsigned i = 0; i < 4; i++)
            put(o, (uint32_t)r->mem_disp >> 8 * i);
    }
}

static void put_immediates(struct out *o, const struct insn *in)
{
    unsigned n = in->imm_size + in->imm2_size;
    if (in->imm_size != 0)
        for (unsigned i = 0; i < n; i++)
            put(o, in->bytes[in->imm_off + i]);
    else if (in->imm2_size != 0)
        for (unsigned i = 0; i < in->imm2_size; i++)
            put(o, in->bytes[in->imm2_off + i]);
}

/*
 * Outside of 64-bit mode W is ignored where it would choose a 64-bit general register or its
 * image in memory; here it would not be (SDM vol. 2, 2.3.6.1 and 2.7.11).
 */
static bool ignores_w(const struct insn *in)
{
    if (in->mode == 8)
        return false;
    if (in->gpr_reg.reg != INSN_NO_REG || in->gpr_rm.reg != INSN_NO_REG ||
        in->gpr_vvvv.reg != INSN_NO_REG)
        return true;
    switch (in->op) {
    case ZYDIS_MNEMONIC_VCVTSI2SD:
    case ZYDIS_MNEMONIC_VCVTSI2SH:
    case ZYDIS_MNEMONIC_VCVTSI2SS:
    case ZYDIS_MNEMONIC_VCVTUSI2SD:
    case ZYDIS_MNEMONIC_VCVTUSI2SH:
    case ZYDIS_MNEMONIC_VCVTUSI2SS:
    case ZYDIS_MNEMONIC_VMOVD:
    case ZYDIS_MNEMONIC_VPCMPESTRI: /* lengths in EAX and EDX */
    case ZYDIS_MNEMONIC_VPCMPESTRM:
    case ZYDIS_MNEMONIC_VPEXTRD:
    case ZYDIS_MNEMONIC_VPINSRD:
        return true;
    default:
        return false;
    }
}

/* Bits 7..4 of the immediate name a register (VEX.0F3A 4A..4C). */
static bool has_register_immediate(const struct insn *in)
{
    return in->opcode_map == ZYDIS_OPCODE_MAP_0F3A && in->opcode >= 0x4a && in->opcode <= 0x4c;
}

static size_t recode_vex(uint8_t *dst, const struct insn *in, const struct insn_recode *r,
                         const struct fields *f)
{
    const uint8_t *v = in->bytes + in->vex_off;
    struct out o = {.p = dst};
    unsigned map, last; /* last: W vvvv L pp */

    if (v[0] == 0xc5) {
        map = 1;
        last = v[1] & 0x7f;
    } else {
        map = v[1] & 0x1f;
        last = v[2];
    }
    if (in->mode != 8)
        last |= 0x40; /* vvvv[3] is ignored outside of 64-bit mode, and inverted */
    if (in->gpr_vvvv.reg != INSN_NO_REG)
        last = (last & ~0x78u) | (~f->vvvv & 15) << 3;
    if (ignores_w(in))
        last &= ~0x80u;
    unsigned x = f->has_index ? f->index >> 3 & 1 : 0;
    unsigned b = in->has_mem ? f->base >> 3 & 1 : f->rm >> 3 & 1;
    if (map == 1 && x == 0 && b == 0 && !(last & 0x80)) {
        put(&o, 0xc5);
        put(&o, (~(f->reg >> 3) & 1) << 7 | last);
    } else {
        put(&o, 0xc4);
        put(&o, (~(f->reg >> 3) & 1) << 7 | (~x & 1) << 6 | (~b & 1) << 5 | map);
        put(&o, last);
    }
    put(&o, in->opcode);
    if (in->has_mem)
        put_address(&o, in, f->reg, r);
    else if (in->has_modrm)
        put(&o, 0xc0 | (f->reg & 7) << 3 | (f->rm & 7));
    put_immediates(&o, in);
    if (in->mode != 8 && has_register_immediate(in))
        o.p[o.n - 1] &= 0x7f; /* one of eight registers there */
    return o.n;
}

static size_t recode_evex(uint8_t *dst, const struct insn *in, const struct insn_recode *r,
                          const struct fields *f)
{
    const uint8_t *v = in->bytes + in->vex_off;
    struct out o = {.p = dst};
    unsigned p0 = v[1], p1 = v[2], p2 = v[3];

    if (in->mode != 8) {
        p0 |= 0xf0; /* R X B R' select nothing there */
        p1 |= 0x40;
        p2 |= 0x08;
        if (ignores_w(in))
            p1 &= ~0x80u;
    }
    if (in->gpr_reg.reg != INSN_NO_REG)
        p0 = (p0 & ~0x90u) | (~(f->reg >> 3) & 1) << 7 | 0x10;
    if (in->has_mem) {
        unsigned x = f->has_index ? f->index >> 3 & 1 : 0;
        p0 = (p0 & ~0x60u) | (~x & 1) << 6 | (~(f->base >> 3) & 1) << 5;
    } else if (in->gpr_rm.reg != INSN_NO_REG) {
        p0 = (p0 & ~0x60u) | 0x40 | (~(f->rm >> 3) & 1) << 5;
    }
    put(&o, 0x62);
    put(&o, p0);
    put(&o, p1);
    put(&o, p2);
    put(&o, in->opcode);
    if (in->has_mem)
        put_address(&o, in, f->reg, r);
    else
        put(&o, 0xc0 | (f->reg & 7) << 3 | (f->rm & 7));
    put_immediates(&o, in);
    return o.n;
}

/* SPL..DIL need REX to be told from AH..BH. */
static bool needs_rex_for_byte(const struct insn_gpr *g, unsigned host)
{
    return g->reg != INSN_NO_REG && g->size == 1 && !g->is_high_byte && host >= 4 && host < 8;
}

/*
 * Is 66H an operand-size prefix here, rather than part of the opcode or without meaning? Integer
 * instructions of 0F maps that 66H would turn into something else are left out.
 */
static bool has_variable_size(const struct insn *in)
{
    if (in->unit != INSN_UNIT_INT || in->is_66_opcode)
        return false;
    switch (in->op) {
    case ZYDIS_MNEMONIC_ADOX:
    case ZYDIS_MNEMONIC_CMPXCHG8B:
    case ZYDIS_MNEMONIC_CMPXCHG16B:
    case ZYDIS_MNEMONIC_LFENCE:
    case ZYDIS_MNEMONIC_MFENCE:
    case ZYDIS_MNEMONIC_MOVNTI:
    case ZYDIS_MNEMONIC_PAUSE:
    case ZYDIS_MNEMONIC_SFENCE:
        return false;
    default:
        return true;
    }
}

/*
 * LOCK, operand size, and what selects the instruction. An F2H or F3H that means nothing (or
 * hints at lock elision) is dropped: with another CPU model's eyes it might mean something, as it
 * does before BSF.
 */
static void put_prefixes(struct out *o, const struct insn *in)
{
    if (in->has_lock)
        put(o, 0xf0);
    if (in->is_66_opcode || (in->op_size == 2 && has_variable_size(in)))
        put(o, 0x66);
    if (in->opcode_prefix != 0)
        put(o, in->opcode_prefix);
}

static size_t recode_legacy(uint8_t *dst, const struct insn *in, const struct insn_recode *r,
                            const struct fields *f)
{
    struct out o = {.p = dst};
    bool is_mem = in->has_mem;
    unsigned rex = in->has_rex ? in->bytes[in->rex_off] & 8u : 0;
    unsigned opcode = in->opcode;

    put_prefixes(&o, in);
    if (in->has_modrm) {
        rex |= (f->reg >> 3 & 1) << 2;
        if (is_mem)
            rex |= (f->base >> 3 & 1) | (f->has_index ? (f->index >> 3 & 1) << 1 : 0);
        else
            rex |= f->rm >> 3 & 1;
    } else if (in->gpr_opcode.reg != INSN_NO_REG) {
        rex |= f->opcode_reg >> 3 & 1;
    }
    bool is_needed = rex != 0 || needs_rex_for_byte(&in->gpr_reg, r->reg) ||
                     needs_rex_for_byte(&in->gpr_rm, r->rm) ||
                     needs_rex_for_byte(&in->gpr_opcode, r->opcode);
    if (is_needed && in->uses_high_byte)
        return 0;
    if (is_needed)
        put(&o, 0x40 | rex);

    bool is_inc_dec = in->mode != 8 && in->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
                      opcode >= 0x40 && opcode <= 0x4f;
    if (is_inc_dec) { /* these are REX prefixes in 64-bit mode */
        put(&o, 0xff);
        put(&o, 0xc0 | (opcode >= 0x48 ? 1u : 0u) << 3 | (f->opcode_reg & 7));
        return o.n;
    }
    switch (in->opcode_map) {
    case ZYDIS_OPCODE_MAP_0F:
        put(&o, 0x0f);
        break;
    case ZYDIS_OPCODE_MAP_0F38:
        put(&o, 0x0f);
        put(&o, 0x38);
        break;
    case ZYDIS_OPCODE_MAP_0F3A:
        put(&o, 0x0f);
        put(&o, 0x3a);
        break;
    case ZYDIS_OPCODE_MAP_DEFAULT:
        if (opcode == 0x82)
            opcode = 0x80;
        break;
    default:
        return 0;
    }
    if (in->gpr_opcode.reg != INSN_NO_REG)
        opcode = (opcode & ~7u) | (f->opcode_reg & 7);
    put(&o, opcode);
    if (in->has_modrm) {
        if (is_mem)
            put_address(&o, in, f->reg, r);
        else
            put(&o, 0xc0 | (f->reg & 7) << 3 | (f->rm & 7));
    }
    put_immediates(&o, in);
    return o.n;
}

/* AH..BH are encoded as 4..7. */
static unsigned field_number(const struct insn_gpr *g, unsigned host)
{
    return g->is_high_byte ? host + 4 : host;
}

/* Only RAX, RCX, RDX and RBX have high bytes. */
static bool high_byte_is_lost(const struct insn_gpr *g, unsigned host)
{
    return g->reg != INSN_NO_REG && g->is_high_byte && host > CPU_RBX;
}

size_t insn_recode(uint8_t out[INSN_RECODE_MAX], const struct insn *in, const struct insn_recode *r)
{
    struct fields f = {
        .reg = in->gpr_reg.reg != INSN_NO_REG ? field_number(&in->gpr_reg, r->reg) : old_reg(in),
        .rm = in->gpr_rm.reg != INSN_NO_REG ? field_number(&in->gpr_rm, r->rm) : old_rm(in),
        .vvvv = r->vvvv,
        .opcode_reg =
            in->gpr_opcode.reg != INSN_NO_REG ? field_number(&in->gpr_opcode, r->opcode) : 0,
        .base = r->mem_base,
        .index = r->mem_index,
        .has_index = r->mem_index != INSN_NO_REG,
    };
    if (in->has_mem && (!in->has_modrm || in->is_vsib || r->mem_index == CPU_RSP))
        return 0;
    if (high_byte_is_lost(&in->gpr_reg, r->reg) || high_byte_is_lost(&in->gpr_rm, r->rm) ||
        high_byte_is_lost(&in->gpr_opcode, r->opcode))
        return 0;
    switch (in->encoding) {
    case INSN_VEX:
        return recode_vex(out, in, r, &f);
    case INSN_EVEX:
        return recode_evex(out, in, r, &f);
    default:
        return recode_legacy(out, in, r, &f);
    }
}
