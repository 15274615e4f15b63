/*
 * masked.c - vector loads and stores under a mask
 *
 * Elements that are masked off are not accessed: they cannot fault, and are not written. While the
 * whole operand is ordinary memory of one page the host CPU sees to that; else each active
 * element is accessed on its own here.
 * Spec: Intel SDM vol. 1, 15.6.1 (opmask), vol. 2 (VMASKMOV, VPMASKMOV, VCOMPRESS, VEXPAND).
 */
#include <Zydis/Zydis.h>

#include "engine/soft/debug.h"
#include "engine/soft/ops.h"
#include "engine/soft/system.h"
#include "engine/soft/thunk.h"
#include "engine/soft/vcpu.h"

#define XSAVE_BV 512
#define XSAVE_XMM 160
#define COMPONENT_AVX 2
#define COMPONENT_OPMASK 5
#define COMPONENT_ZMM_HIGH 6

bool soft_is_compressed(const struct insn *in)
{
    switch (in->op) {
    case ZYDIS_MNEMONIC_VCOMPRESSPS:
    case ZYDIS_MNEMONIC_VCOMPRESSPD:
    case ZYDIS_MNEMONIC_VPCOMPRESSB:
    case ZYDIS_MNEMONIC_VPCOMPRESSW:
    case ZYDIS_MNEMONIC_VPCOMPRESSD:
    case ZYDIS_MNEMONIC_VPCOMPRESSQ:
        return true;
    default:
        return false;
    }
}

static bool is_packed(const struct insn *in)
{
    switch (in->op) {
    case ZYDIS_MNEMONIC_VEXPANDPS:
    case ZYDIS_MNEMONIC_VEXPANDPD:
    case ZYDIS_MNEMONIC_VPEXPANDB:
    case ZYDIS_MNEMONIC_VPEXPANDW:
    case ZYDIS_MNEMONIC_VPEXPANDD:
    case ZYDIS_MNEMONIC_VPEXPANDQ:
        return true;
    default:
        return soft_is_compressed(in);
    }
}

/* Component `c` of the saved image, or NULL when it is in its initial state (all zero). */
static const uint8_t *component(const struct soft_vcpu *v, unsigned c)
{
    if (!(load_le64(v->st.xsave + XSAVE_BV) >> c & 1))
        return NULL;
    return c == 1 ? v->st.xsave + XSAVE_XMM : v->st.xsave + v->model->xsave_offset[c];
}

/*
 * Bit i: element i of the memory operand is accessed. EVEX: the opmask register; compressed
 * operands are contiguous, and an element that is broadcast serves several lanes.
 */
static uint64_t evex_mask(const struct soft_vcpu *v, const struct insn *in, unsigned element_size)
{
    const uint8_t *opmasks = component(v, COMPONENT_OPMASK);
    unsigned k = in->bytes[in->vex_off + 3] & 7, count = in->mem_size / element_size;
    uint64_t mask = opmasks != NULL ? load_le64(opmasks + 8 * k) : 0, accessed = 0;
    unsigned active = 0;

    for (unsigned i = 0; i < in->mask_lanes; i++) {
        if (!(mask >> i & 1))
            continue;
        accessed |= BIT(i % count);
        active++;
    }
    if (is_packed(in))
        return active >= 64 ? ~UINT64_C(0) : BIT(active) - 1;
    return accessed;
}

/* VEX: the sign bits of the register in VEX.vvvv. */
static uint64_t vex_mask(const struct soft_vcpu *v, const struct insn *in, unsigned element_size)
{
    unsigned vvvv = ~in->bytes[in->vex_off + (in->bytes[in->vex_off] == 0xc5 ? 1 : 2)] >> 3 & 15;
    const uint8_t *low = component(v, 1), *high = component(v, COMPONENT_AVX);
    uint64_t mask = 0;

    if (in->mode != 8)
        vvvv &= 7;
    for (unsigned i = 0; i < in->mem_size / element_size; i++) {
        unsigned last = i * element_size + element_size - 1;
        const uint8_t *half = last < 16 ? low : high;
        if (half != NULL && (half[16 * vvvv + (last & 15)] & 0x80))
            mask |= BIT(i);
    }
    return mask;
}

/*
 * Every element is checked against its segment, and its alignment, by itself. Beyond the largest
 * offset they do not wrap around.
 */
static int element_address(struct soft_vcpu *v, const struct insn *in, unsigned i,
                           enum soft_access access, gva_t *addr)
{
    uint64_t offset = soft_effective_address(v, in) + (uint64_t)i * in->mem_element_size;

    if (soft_linear(v, in->seg, offset, in->mem_element_size, access, addr))
        return SOFT_FAULT;
    if (UNLIKELY(v->is_ac_set) && in->encoding == INSN_EVEX &&
        (*addr & (in->mem_element_size - 1u)))
        return soft_raise_error(v, VEC_AC, 0);
    return 0;
}

static int read_elements(struct soft_vcpu *v, const struct insn *in, uint64_t mask,
                         uint8_t *operand)
{
    unsigned size = in->mem_element_size;
    gva_t addr;

    for (unsigned i = 0; i < 64; i++) {
        if (!(mask >> i & 1))
            continue;
        if (element_address(v, in, i, SOFT_READ, &addr) ||
            soft_read(v, addr, operand + i * size, size, SOFT_AS_CPL))
            return SOFT_FAULT;
    }
    return 0;
}

static int probe_elements(struct soft_vcpu *v, const struct insn *in, uint64_t mask)
{
    gva_t addr;

    for (unsigned i = 0; i < 64; i++) {
        if (!(mask >> i & 1))
            continue;
        if (element_address(v, in, i, SOFT_WRITE, &addr) ||
            soft_probe(v, addr, in->mem_element_size, SOFT_WRITE, SOFT_AS_CPL))
            return SOFT_FAULT;
    }
    return 0;
}

static int write_elements(struct soft_vcpu *v, const struct insn *in, uint64_t mask,
                          const uint8_t *operand)
{
    unsigned size = in->mem_element_size;
    gva_t addr;

    for (unsigned i = 0; i < 64; i++) {
        if (!(mask >> i & 1))
            continue;
        if (element_address(v, in, i, SOFT_WRITE, &addr) ||
            soft_write(v, addr, operand + i * size, size, SOFT_AS_CPL))
            return SOFT_FAULT;
    }
    return 0;
}

static int exec_by_element(struct soft_vcpu *v, const struct insn *in)
{
    uint8_t *operand = soft_thunk_bounce(v, 0);
    bool is_write = (in->mem_access & INSN_ACCESS_WRITE) != 0;
    unsigned size = in->mem_element_size;

    soft_fpu_save(v);
    uint64_t mask = in->encoding == INSN_EVEX ? evex_mask(v, in, size) : vex_mask(v, in, size);
    soft_zero(operand, in->mem_size);
    if (is_write ? probe_elements(v, in, mask) : read_elements(v, in, mask, operand))
        return SOFT_FAULT;
    if (soft_thunk_run(v, in, operand))
        return SOFT_FAULT;
    return is_write ? write_elements(v, in, mask, operand) : 0;
}

/*
 * Data breakpoints, and #AC of misaligned elements, are for those elements only that are accessed.
 * (Operands of VMASKMOV are never checked for alignment.)
 */
static bool is_checked_by_element(const struct soft_vcpu *v, const struct insn *in, gva_t addr)
{
    return soft_debug_is_armed(v) || (UNLIKELY(v->is_ac_set) && in->encoding == INSN_EVEX &&
                                      (addr & (in->mem_element_size - 1u)));
}

/* An aligned move of no element at all does not mind. */
static bool is_refused_misaligned(struct soft_vcpu *v, const struct insn *in)
{
    uint64_t addr = soft_effective_address(v, in) + v->st.seg[in->seg].base;

    if (!in->is_mem_aligned || !(addr & (in->mem_size - 1u)))
        return false;
    soft_fpu_save(v);
    return evex_mask(v, in, in->mem_element_size) != 0;
}

/*
 * The page fault of an operand that is checked as a whole stands, but for an accessed element that
 * is misaligned: its #AC is found first.
 */
static int fault_unmasked(struct soft_vcpu *v, const struct insn *in, gva_t addr)
{
    if (LIKELY(!v->is_ac_set) || in->encoding != INSN_EVEX || !(addr & (in->mem_element_size - 1u)))
        return SOFT_FAULT;
    soft_fpu_save(v);
    if (evex_mask(v, in, in->mem_element_size) == 0)
        return SOFT_FAULT;
    return soft_raise_error(v, VEC_AC, 0);
}

int soft_exec_masked(struct soft_vcpu *v, const struct insn *in)
{
    bool is_write = (in->mem_access & INSN_ACCESS_WRITE) != 0;
    enum soft_access access = is_write ? SOFT_WRITE : SOFT_READ;
    struct soft_place place;
    gva_t addr;

    if (is_refused_misaligned(v, in))
        return soft_raise_error(v, VEC_GP, 0);
    /* a fault here may be one of an element that is masked off, and is forgotten then */
    if (soft_operand_address(v, in, in->mem_size, access, &addr) != 0)
        return in->is_fault_unmasked ? SOFT_FAULT : exec_by_element(v, in);
    if (soft_probe(v, addr, in->mem_size, access, SOFT_AS_CPL) != 0)
        return in->is_fault_unmasked ? fault_unmasked(v, in, addr) : exec_by_element(v, in);
    if ((addr & (SOFT_PAGE_SIZE - 1)) + in->mem_size > SOFT_PAGE_SIZE ||
        (in->is_mem_aligned && (addr & (in->mem_size - 1u))) || is_checked_by_element(v, in, addr))
        return exec_by_element(v, in);
    if (soft_translate(v, addr, access, SOFT_AS_CPL, &place))
        return SOFT_FAULT;
    if (place.host == NULL)
        return exec_by_element(v, in);
    int r = soft_thunk_run(v, in, place.host);
    if (r == 0 && is_write && place.is_code_page)
        soft_code_written(v, place.gpa, in->mem_size);
    return r;
}

/* VZEROUPPER and VZEROALL of 32-bit code: registers 0 to 7 only. */
static int op_vzero(struct soft_vcpu *v, const struct insn *in)
{
    bool is_all = in->op == ZYDIS_MNEMONIC_VZEROALL;

    soft_fpu_save(v);
    uint64_t bv = load_le64(v->st.xsave + XSAVE_BV);
    if (is_all)
        soft_zero(v->st.xsave + XSAVE_XMM, 128);
    if (bv >> COMPONENT_AVX & 1)
        soft_zero(v->st.xsave + v->model->xsave_offset[COMPONENT_AVX], 128);
    if (bv >> COMPONENT_ZMM_HIGH & 1)
        soft_zero(v->st.xsave + v->model->xsave_offset[COMPONENT_ZMM_HIGH], 256);
    return 0;
}

const struct soft_op soft_ops_vzero[] = {
    {ZYDIS_MNEMONIC_VZEROUPPER, op_vzero},
    {ZYDIS_MNEMONIC_VZEROALL, op_vzero},
    {0, NULL},
};
