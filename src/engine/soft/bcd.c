/*
 * bcd.c - decimal and ASCII adjustments: AAA, AAS, AAM, AAD, DAA, DAS; and SALC
 *
 * 64-bit mode lacks them, so no thunk can run them. The flags that the manuals leave undefined
 * are those of the addition or subtraction that the hardware makes, as AMD's processors show them
 * (bcd_test.c compares with the host CPU, all inputs).
 *
 * Specification: SDM vol. 2 and APM vol. 3 at each instruction.
 */
#include <Zydis/Zydis.h>

#include "engine/soft/ops.h"
#include "engine/soft/vcpu.h"

/* SF, ZF and PF of the low `bits_count` bits. */
static uint64_t bcd_flags_of(uint64_t value, unsigned bits_count)
{
    uint64_t flags = value >> (bits_count - 1) & 1 ? RFLAGS_SF : 0;

    if ((value & (BIT(bits_count) - 1)) == 0)
        flags |= RFLAGS_ZF;
    if (!__builtin_parity((unsigned)value & 0xff))
        flags |= RFLAGS_PF;
    return flags;
}

/* OF of left + right = sum at this width. */
static uint64_t bcd_overflow(uint64_t left, uint64_t right, uint64_t sum, unsigned bits_count)
{
    return ((left ^ sum) & (right ^ sum)) >> (bits_count - 1) & 1 ? RFLAGS_OF : 0;
}

static void bcd_finish(struct soft_vcpu *v, unsigned size, uint64_t value, uint64_t flags)
{
    soft_gpr_write(v, CPU_RAX, size, false, value);
    v->st.rflags = (v->st.rflags & ~RFLAGS_STATUS) | flags;
}

/* AH takes the carry; flags are of AX before its bits 7..4 are cleared. */
static int op_aaa_aas(struct soft_vcpu *v, const struct insn *in)
{
    bool is_add = in->op == ZYDIS_MNEMONIC_AAA;
    uint16_t before = (uint16_t)v->st.gpr[CPU_RAX], change = 0, after;
    uint64_t flags = 0;

    if ((before & 15) > 9 || (v->st.rflags & RFLAGS_AF)) {
        change = is_add ? 0x106 : (uint16_t)-0x106;
        flags = RFLAGS_AF | RFLAGS_CF;
    }
    after = (uint16_t)(before + change);
    flags |= bcd_flags_of(after, 16) | bcd_overflow(before, change, after, 16);
    bcd_finish(v, 2, after & 0xff0f, flags);
    return 0;
}

static int op_daa_das(struct soft_vcpu *v, const struct insn *in)
{
    bool is_add = in->op == ZYDIS_MNEMONIC_DAA;
    bool had_carry = (v->st.rflags & RFLAGS_CF) != 0, has_carry = false;
    uint8_t before = (uint8_t)v->st.gpr[CPU_RAX], change = 0, after;
    uint64_t flags = 0;

    if ((before & 15) > 9 || (v->st.rflags & RFLAGS_AF)) {
        change = 6;
        has_carry = had_carry || (is_add ? before > 0xf9 : before < 6);
        flags |= RFLAGS_AF;
    }
    if (before > 0x99 || had_carry) {
        change += 0x60;
        has_carry = true;
    }
    if (!is_add)
        change = (uint8_t)-change;
    after = (uint8_t)(before + change);
    flags |= bcd_flags_of(after, 8) | bcd_overflow(before, change, after, 8);
    bcd_finish(v, 1, after, has_carry ? flags | RFLAGS_CF : flags);
    return 0;
}

static int op_aam(struct soft_vcpu *v, const struct insn *in)
{
    uint8_t base = in->bytes[in->imm_off], al = (uint8_t)v->st.gpr[CPU_RAX];

    if (base == 0)
        return soft_raise(v, VEC_DE);
    bcd_finish(v, 2, (uint64_t)(al / base) << 8 | al % base, bcd_flags_of(al % base, 8));
    return 0;
}

/* All six flags are those of the addition of AH * base to AL. */
static int op_aad(struct soft_vcpu *v, const struct insn *in)
{
    uint16_t ax = (uint16_t)v->st.gpr[CPU_RAX];
    uint8_t al = (uint8_t)ax, product = (uint8_t)((ax >> 8) * in->bytes[in->imm_off]);
    uint8_t sum = (uint8_t)(al + product);
    uint64_t flags = bcd_flags_of(sum, 8) | bcd_overflow(al, product, sum, 8);

    if (sum < al)
        flags |= RFLAGS_CF;
    if ((al ^ product ^ sum) & 0x10)
        flags |= RFLAGS_AF;
    bcd_finish(v, 2, sum, flags);
    return 0;
}

static int op_salc(struct soft_vcpu *v, const struct insn *in)
{
    soft_gpr_write(v, CPU_RAX, 1, false, v->st.rflags & RFLAGS_CF ? 0xff : 0);
    return 0;
}

const struct soft_op soft_ops_bcd[] = {
    {ZYDIS_MNEMONIC_AAA, op_aaa_aas}, {ZYDIS_MNEMONIC_AAS, op_aaa_aas},
    {ZYDIS_MNEMONIC_DAA, op_daa_das}, {ZYDIS_MNEMONIC_DAS, op_daa_das},
    {ZYDIS_MNEMONIC_AAM, op_aam},     {ZYDIS_MNEMONIC_AAD, op_aad},
    {ZYDIS_MNEMONIC_SALC, op_salc},   {0, NULL},
};
