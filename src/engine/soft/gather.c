/*
 * gather.c - gathers and scatters (VSIB addressing)
 *
 * Element by element on the image in st.xsave, lowest first. What was done before a fault stays
 * done: its mask elements are clear, so the instruction goes on with the faulting element when
 * it is started again (SDM vol. 2, VGATHERDPS and VSCATTERDPS, "Description").
 *
 * Specification: SDM vol. 2, 2.3.12 (VSIB), 2.7.5 (compressed displacements).
 */
#include <Zydis/Zydis.h>

#include "engine/soft/fpu_state.h"
#include "engine/soft/ops.h"

struct gather {
    unsigned data, index; /* registers */
    unsigned mask;        /* vector register (VEX) or opmask (EVEX) */
    unsigned data_size, index_size;
    unsigned count;
    bool is_evex;
};

static unsigned vector_bytes(const struct insn *in)
{
    const uint8_t *p = in->bytes + in->vex_off;

    return in->encoding == INSN_EVEX ? 16u << (p[3] >> 5 & 3) : 16u << (p[2] >> 2 & 1);
}

static void gather_decode(const struct insn *in, struct gather *g)
{
    const uint8_t *p = in->bytes + in->vex_off;
    unsigned sib = in->bytes[in->modrm_off + 1];

    g->is_evex = in->encoding == INSN_EVEX;
    g->data = in->modrm >> 3 & 7;
    g->index = sib >> 3 & 7;
    g->mask = g->is_evex ? p[3] & 7u : ~(p[2] >> 3) & (in->mode == 8 ? 15u : 7u);
    if (in->mode == 8) {
        g->data |= (~p[1] & 0x80u) >> 4;
        g->index |= (~p[1] & 0x40u) >> 3;
        if (g->is_evex) {
            g->data |= ~p[1] & 0x10u;
            g->index |= (~p[3] & 0x08u) << 1;
        }
    }
    switch (in->op) {
    case ZYDIS_MNEMONIC_VGATHERDPS:
    case ZYDIS_MNEMONIC_VPGATHERDD:
    case ZYDIS_MNEMONIC_VSCATTERDPS:
    case ZYDIS_MNEMONIC_VPSCATTERDD:
        g->index_size = g->data_size = 4;
        break;
    case ZYDIS_MNEMONIC_VGATHERDPD:
    case ZYDIS_MNEMONIC_VPGATHERDQ:
    case ZYDIS_MNEMONIC_VSCATTERDPD:
    case ZYDIS_MNEMONIC_VPSCATTERDQ:
        g->index_size = 4;
        g->data_size = 8;
        break;
    case ZYDIS_MNEMONIC_VGATHERQPS:
    case ZYDIS_MNEMONIC_VPGATHERQD:
    case ZYDIS_MNEMONIC_VSCATTERQPS:
    case ZYDIS_MNEMONIC_VPSCATTERQD:
        g->index_size = 8;
        g->data_size = 4;
        break;
    default:
        g->index_size = g->data_size = 8;
    }
    g->count = vector_bytes(in) / MAX(g->index_size, g->data_size);
}

static uint8_t *element(struct soft_vcpu *v, unsigned reg, unsigned i, unsigned size)
{
    unsigned at = i * size;

    return soft_fpu_vector(v, reg, at / 16) + at % 16;
}

static uint8_t *opmask(struct soft_vcpu *v, unsigned k)
{
    return v->st.xsave + v->model->xsave_offset[FPU_COMP_OPMASK] + 8 * k;
}

static bool mask_is_set(struct soft_vcpu *v, const struct gather *g, unsigned i)
{
    if (g->is_evex)
        return load_le64(opmask(v, g->mask)) >> i & 1;
    return element(v, g->mask, i, g->data_size)[g->data_size - 1] & 0x80;
}

static void mask_clear(struct soft_vcpu *v, const struct gather *g, unsigned i)
{
    if (g->is_evex) {
        uint8_t *k = opmask(v, g->mask);
        store_le64(k, load_le64(k) & ~BIT(i));
    } else {
        soft_zero(element(v, g->mask, i, g->data_size), g->data_size);
    }
}

static int element_address(struct soft_vcpu *v, const struct insn *in, const struct gather *g,
                           unsigned i, enum soft_access access, gva_t *addr)
{
    const uint8_t *p = element(v, g->index, i, g->index_size);
    uint64_t index = g->index_size == 4 ? (uint64_t)(int32_t)load_le32(p) : load_le64(p);
    uint64_t offset = index * in->mem_scale + (uint64_t)in->mem_disp;

    if (in->mem_base != INSN_NO_REG)
        offset += v->st.gpr[in->mem_base];
    return soft_linear(v, in->seg, offset & mask_bytes(in->addr_size), g->data_size, access, addr);
}

/* Clear bytes [from, 64) of a vector register, as far as the model has them. */
static void vector_clear_above(struct soft_vcpu *v, unsigned reg, unsigned from)
{
    unsigned size = v->model->xcr0_valid & XCR0_AVX512 ? 64 : 32;

    for (unsigned at = from; at < size; at += 4)
        soft_zero(element(v, reg, at / 4, 4), 4);
}

static void mark(struct soft_vcpu *v, const struct gather *g, bool is_data_written)
{
    unsigned size = v->model->xcr0_valid & XCR0_AVX512 ? 64 : 32;

    if (is_data_written)
        soft_fpu_vector_mark(v, g->data, size);
    if (g->is_evex)
        soft_fpu_image_mark(v, FPU_COMP_OPMASK);
    else
        soft_fpu_vector_mark(v, g->mask, size);
}

static int gather_elements(struct soft_vcpu *v, const struct insn *in, const struct gather *g)
{
    uint64_t value;
    gva_t addr;

    /* soft_read and soft_write: alignment is never checked (SDM vol. 2, VGATHERDPS) */
    for (unsigned i = 0; i < g->count; i++) {
        if (!mask_is_set(v, g, i)) {
            mask_clear(v, g, i); /* the bits below the sign, where AMD left them */
            continue;
        }
        if (element_address(v, in, g, i, SOFT_READ, &addr) ||
            soft_read(v, addr, &value, g->data_size, SOFT_AS_CPL))
            return SOFT_FAULT;
        soft_copy(element(v, g->data, i, g->data_size), &value, g->data_size);
        mask_clear(v, g, i);
        /* AMD's CPUs write an EVEX destination whole with each element: seen after a fault */
        if (g->is_evex && v->model->is_amd)
            vector_clear_above(v, g->data, g->count * MAX(g->data_size, g->index_size));
    }
    return 0;
}

/*
 * The mask is its elements' sign bits. Before the first access Intel's CPUs spread them over the
 * elements, which shows after a fault (SDM vol. 2, VGATHERDPS, "Operation"); AMD's do not.
 */
static void spread_mask(struct soft_vcpu *v, const struct gather *g)
{
    for (unsigned i = 0; i < g->count; i++) {
        uint64_t all = mask_is_set(v, g, i) ? ~UINT64_C(0) : 0;
        soft_copy(element(v, g->mask, i, g->data_size), &all, g->data_size);
    }
}

static int op_gather(struct soft_vcpu *v, const struct insn *in)
{
    struct gather g;

    if (soft_fpu_check(v, in->unit))
        return SOFT_FAULT;
    gather_decode(in, &g);
    soft_fpu_image(v);
    mark(v, &g, true);
    if (!g.is_evex && !v->model->is_amd)
        spread_mask(v, &g);
    if (gather_elements(v, in, &g))
        return SOFT_FAULT;
    vector_clear_above(v, g.data, g.count * g.data_size);
    if (g.is_evex)
        store_le64(opmask(v, g.mask), 0);
    else
        vector_clear_above(v, g.mask, 0);
    return 0;
}

static int op_scatter(struct soft_vcpu *v, const struct insn *in)
{
    struct gather g;
    gva_t addr;

    if (soft_fpu_check(v, in->unit))
        return SOFT_FAULT;
    gather_decode(in, &g);
    soft_fpu_image(v);
    mark(v, &g, false);
    for (unsigned i = 0; i < g.count; i++) {
        uint64_t value = 0;
        if (!mask_is_set(v, &g, i))
            continue;
        soft_copy(&value, element(v, g.data, i, g.data_size), g.data_size);
        if (element_address(v, in, &g, i, SOFT_WRITE, &addr) ||
            soft_write(v, addr, &value, g.data_size, SOFT_AS_CPL))
            return SOFT_FAULT;
        mask_clear(v, &g, i);
    }
    store_le64(opmask(v, g.mask), 0);
    return 0;
}

const struct soft_op soft_ops_gather[] = {
    {ZYDIS_MNEMONIC_VGATHERDPS, op_gather},
    {ZYDIS_MNEMONIC_VGATHERDPD, op_gather},
    {ZYDIS_MNEMONIC_VGATHERQPS, op_gather},
    {ZYDIS_MNEMONIC_VGATHERQPD, op_gather},
    {ZYDIS_MNEMONIC_VPGATHERDD, op_gather},
    {ZYDIS_MNEMONIC_VPGATHERDQ, op_gather},
    {ZYDIS_MNEMONIC_VPGATHERQD, op_gather},
    {ZYDIS_MNEMONIC_VPGATHERQQ, op_gather},
    {ZYDIS_MNEMONIC_VSCATTERDPS, op_scatter},
    {ZYDIS_MNEMONIC_VSCATTERDPD, op_scatter},
    {ZYDIS_MNEMONIC_VSCATTERQPS, op_scatter},
    {ZYDIS_MNEMONIC_VSCATTERQPD, op_scatter},
    {ZYDIS_MNEMONIC_VPSCATTERDD, op_scatter},
    {ZYDIS_MNEMONIC_VPSCATTERDQ, op_scatter},
    {ZYDIS_MNEMONIC_VPSCATTERQD, op_scatter},
    {ZYDIS_MNEMONIC_VPSCATTERQQ, op_scatter},
    {0, NULL},
};
