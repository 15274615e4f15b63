/*
 * integer.c - unprivileged instructions that the host CPU cannot run for the guest as they are
 *
 * Bit strings (the operand lies beyond the address that ModRM names), implicit memory operands,
 * DF, cache-line instructions, BOUND.
 * Spec: Intel SDM vol. 2 (each instruction).
 */
#include <Zydis/Zydis.h>

#include "engine/soft/debug.h"
#include "engine/soft/fpu_state.h"
#include "engine/soft/ops.h"
#include "engine/soft/system.h"
#include "engine/soft/thunk.h"
#include "engine/soft/vcpu.h"

static uint8_t al_of(const struct soft_vcpu *v)
{
    return (uint8_t)v->st.gpr[CPU_RAX];
}

static void set_al(struct soft_vcpu *v, uint8_t al)
{
    soft_gpr_write(v, CPU_RAX, 1, false, al);
}

static int op_cld(struct soft_vcpu *v, const struct insn *in)
{
    v->st.rflags &= ~RFLAGS_DF;
    return 0;
}

static int op_std(struct soft_vcpu *v, const struct insn *in)
{
    v->st.rflags |= RFLAGS_DF;
    return 0;
}

static int op_xlat(struct soft_vcpu *v, const struct insn *in)
{
    uint64_t offset = (v->st.gpr[CPU_RBX] + al_of(v)) & mask_bytes(in->addr_size), value;
    gva_t addr;

    int r = soft_linear(v, soft_prefix_segment(in), offset, 1, SOFT_READ, &addr);
    if (r == 0)
        r = soft_load(v, addr, 1, SOFT_AS_CPL, &value);
    if (r == 0)
        set_al(v, (uint8_t)value);
    return r;
}

int soft_mov_offset(struct soft_vcpu *v, const struct insn *in)
{
    unsigned size = in->opcode & 1 ? in->op_size : 1;
    bool is_store = (in->opcode & 2) != 0;
    uint64_t value = v->st.gpr[CPU_RAX] & mask_bytes(size);
    gva_t addr;

    if (soft_operand_address(v, in, size, is_store ? SOFT_WRITE : SOFT_READ, &addr))
        return SOFT_FAULT;
    if (is_store)
        return soft_store(v, addr, size, SOFT_AS_CPL, value);
    if (soft_load(v, addr, size, SOFT_AS_CPL, &value))
        return SOFT_FAULT;
    soft_gpr_write(v, CPU_RAX, size, false, value);
    return 0;
}

static int bound_load(struct soft_vcpu *v, const struct insn *in, uint64_t offset, uint64_t *value)
{
    gva_t addr;
    int r = soft_linear(v, in->seg, offset, in->op_size, SOFT_READ, &addr);

    return r != 0 ? r : soft_load(v, addr, in->op_size, SOFT_AS_CPL, value);
}

static int op_bound(struct soft_vcpu *v, const struct insn *in)
{
    unsigned size = in->op_size;
    uint64_t low, high, offset = soft_effective_address(v, in);

    /* two operands: the second may lie at the other end of the segment */
    int r = bound_load(v, in, offset, &low);
    if (r == 0)
        r = bound_load(v, in, (offset + size) & mask_bytes(in->addr_size), &high);
    if (r != 0)
        return r;
    int64_t index = sign_extend(v->st.gpr[in->gpr_reg.reg], 8 * size);
    if (index < sign_extend(low, 8 * size) || index > sign_extend(high, 8 * size))
        return soft_raise(v, VEC_BR);
    return 0;
}

static uint64_t bit_changed(unsigned op, uint64_t value, uint64_t bit)
{
    return op == ZYDIS_MNEMONIC_BTS   ? value | bit
           : op == ZYDIS_MNEMONIC_BTR ? value & ~bit
                                      : value ^ bit;
}

/* Atomic on RAM whatever the prefix: a plain read and write would do, but LOCK must not tear. */
static bool exchange(void *p, unsigned size, uint64_t *expected, uint64_t desired)
{
    switch (size) {
    case 2: {
        uint16_t e = (uint16_t)*expected;
        bool ok = __atomic_compare_exchange_n((uint16_t *)p, &e, (uint16_t)desired, false,
                                              __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        *expected = e;
        return ok;
    }
    case 4: {
        uint32_t e = (uint32_t)*expected;
        bool ok = __atomic_compare_exchange_n((uint32_t *)p, &e, (uint32_t)desired, false,
                                              __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        *expected = e;
        return ok;
    }
    default:
        return __atomic_compare_exchange_n((uint64_t *)p, expected, desired, false,
                                           __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
}

static int bit_update(struct soft_vcpu *v, const struct insn *in, gva_t addr, unsigned size,
                      uint64_t bit, uint64_t *value)
{
    struct soft_place place;

    if (in->op == ZYDIS_MNEMONIC_BT)
        return soft_load(v, addr, size, SOFT_AS_CPL, value);
    if ((addr & (SOFT_PAGE_SIZE - 1)) + size <= SOFT_PAGE_SIZE) {
        int r = soft_translate(v, addr, SOFT_RMW, SOFT_AS_CPL, &place);
        if (r != 0)
            return r;
        if (place.host != NULL) {
            *value = size == 2   ? load_le16(place.host)
                     : size == 4 ? load_le32(place.host)
                                 : load_le64(place.host);
            while (!exchange(place.host, size, value, bit_changed(in->op, *value, bit)))
                ;
            if (place.is_code_page)
                soft_code_written(v, place.gpa, size);
            soft_debug_watch(v, addr, size, SOFT_RMW);
            return 0;
        }
    }
    soft_exclusive_begin(v);
    int r = soft_probe(v, addr, size, SOFT_RMW, SOFT_AS_CPL);
    if (r == 0)
        r = soft_load(v, addr, size, SOFT_AS_CPL, value);
    if (r == 0)
        r = soft_store(v, addr, size, SOFT_AS_CPL, bit_changed(in->op, *value, bit));
    soft_exclusive_end(v);
    return r;
}

/*
 * BT, BTS, BTR, BTC with a bit string in memory: the register is a signed distance in bits. The
 * operand that holds the bit is worked on as the same instruction with an immediate would.
 */
static int op_bit_string(struct soft_vcpu *v, const struct insn *in)
{
    unsigned size = in->op_size, width = 8 * size;
    int64_t distance = sign_extend(v->st.gpr[in->gpr_reg.reg], width);
    uint64_t offset = soft_effective_address(v, in) + (uint64_t)((distance >> (size == 8   ? 6
                                                                               : size == 4 ? 5
                                                                                           : 4)) *
                                                                 (int64_t)size);
    uint64_t bit = BIT((uint64_t)distance & (width - 1)), value;
    bool is_write = in->op != ZYDIS_MNEMONIC_BT;
    gva_t addr;

    int r = soft_linear(v, in->seg, offset & mask_bytes(in->addr_size), size,
                        is_write ? SOFT_RMW : SOFT_READ, &addr);
    if (r == 0 && UNLIKELY(v->is_ac_set) && (addr & (size - 1)))
        return soft_raise_error(v, VEC_AC, 0);
    if (r == 0)
        r = bit_update(v, in, addr, size, bit, &value);
    if (r != 0)
        return r;
    v->st.rflags = (v->st.rflags & ~RFLAGS_CF) | (value & bit ? RFLAGS_CF : 0);
    return 0;
}

/* CLFLUSH and its kin: the address is checked as for a read; caches are the host's business. */
static int op_cache_line(struct soft_vcpu *v, const struct insn *in)
{
    gva_t addr;
    int r = soft_linear(v, in->seg, soft_effective_address(v, in), 1, SOFT_READ, &addr);
    return r != 0 ? r : soft_probe(v, addr, 1, SOFT_READ, SOFT_AS_CPL);
}

static int op_clzero(struct soft_vcpu *v, const struct insn *in)
{
    uint64_t zero[8];
    gva_t addr;
    uint64_t offset = v->st.gpr[CPU_RAX] & mask_bytes(in->addr_size) & ~UINT64_C(63);

    soft_zero(zero, sizeof(zero));
    int r = soft_linear(v, soft_prefix_segment(in), offset, 64, SOFT_WRITE, &addr);
    return r != 0 ? r : soft_write(v, addr, zero, 64, SOFT_AS_CPL);
}

/* Registers of MASKMOV: the data is ModRM.reg, the mask ModRM.rm. */
static void maskmov_registers(const struct insn *in, bool is_mmx, unsigned *data, unsigned *mask)
{
    *data = in->modrm >> 3 & 7;
    *mask = in->modrm & 7;
    if (in->encoding == INSN_VEX && in->mode == 8) {
        *data |= (~in->bytes[in->vex_off + 1] & 0x80u) >> 4;
        if (in->bytes[in->vex_off] == 0xc4)
            *mask |= (~in->bytes[in->vex_off + 1] & 0x20u) >> 2;
    } else if (in->has_rex && !is_mmx) {
        *data |= (in->bytes[in->rex_off] & 4u) << 1;
        *mask |= (in->bytes[in->rex_off] & 1u) << 3;
    }
}

/*
 * MASKMOVQ and MASKMOVDQU: bytes whose mask byte has its top bit set, to DS:rDI. The whole operand
 * must be writable, whatever the mask; the manual leaves that open, processors do it so.
 */
static int op_maskmov(struct soft_vcpu *v, const struct insn *in)
{
    bool is_mmx = in->op == ZYDIS_MNEMONIC_MASKMOVQ;
    unsigned size = is_mmx ? 8 : 16, data_reg, mask_reg;
    const uint8_t *data, *mask;
    gva_t addr;

    maskmov_registers(in, is_mmx, &data_reg, &mask_reg);
    if (is_mmx) {
        /* what every MMX instruction does to the x87 state, faulting or not: TOP = 0, all tags
         * valid */
        unsigned unused;
        if (soft_fpu_is_pending(v)) /* MOVD would find it, too, on the host */
            return soft_fpu_raise_pending(v);
        __asm__ volatile("movd %%mm0, %0" : "=r"(unused));
    }
    data = soft_fpu_image(v) + (is_mmx ? FPU_ST : FPU_XMM);
    mask = data + 16 * mask_reg;
    data += 16 * data_reg;
    if (soft_linear(v, soft_prefix_segment(in), v->st.gpr[CPU_RDI] & mask_bytes(in->addr_size),
                    size, SOFT_WRITE, &addr))
        return SOFT_FAULT;
    if (UNLIKELY(v->is_ac_set) && (addr & 7)) /* quadwords, both of them */
        return soft_raise_error(v, VEC_AC, 0);
    if (soft_probe(v, addr, size, SOFT_WRITE, SOFT_AS_CPL))
        return SOFT_FAULT;
    for (unsigned i = 0; i < size; i++)
        if ((mask[i] & 0x80) && soft_store(v, addr + i, 1, SOFT_AS_CPL, data[i]))
            return SOFT_FAULT;
    return 0;
}

const struct soft_op soft_ops_integer[] = {
    {ZYDIS_MNEMONIC_CLD, op_cld},
    {ZYDIS_MNEMONIC_STD, op_std},
    {ZYDIS_MNEMONIC_XLAT, op_xlat},
    {ZYDIS_MNEMONIC_BOUND, op_bound},
    {ZYDIS_MNEMONIC_BT, op_bit_string},
    {ZYDIS_MNEMONIC_BTS, op_bit_string},
    {ZYDIS_MNEMONIC_BTR, op_bit_string},
    {ZYDIS_MNEMONIC_BTC, op_bit_string},
    {ZYDIS_MNEMONIC_CLFLUSH, op_cache_line},
    {ZYDIS_MNEMONIC_CLFLUSHOPT, op_cache_line},
    {ZYDIS_MNEMONIC_CLWB, op_cache_line},
    {ZYDIS_MNEMONIC_CLZERO, op_clzero},
    {ZYDIS_MNEMONIC_MASKMOVQ, op_maskmov},
    {ZYDIS_MNEMONIC_MASKMOVDQU, op_maskmov},
    {ZYDIS_MNEMONIC_VMASKMOVDQU, op_maskmov},
    {0, NULL},
};
