/*
 * xsave.c - images of x87 and vector state in guest memory
 *
 * Everything is done on st.xsave, the complete image in standard format, so no host instruction
 * ever reads an image that the guest made. Instruction and data pointers of the x87 are reported as
 * zero: what the host CPU keeps there are addresses of the monitor.
 * Spec: Intel SDM vol. 1, 8.1.10 (environments), 10.5 (FXSAVE), 13 (XSAVE and its formats).
 */
#include <Zydis/Zydis.h>

#include "engine/soft/system.h"
#include "engine/soft/vcpu.h"

#define FXSAVE_SIZE 512u
#define XSAVE_HEADER 512u
#define XSAVE_EXTENDED 576u
#define XCOMP_COMPACT BIT(63)

struct component {
    unsigned offset, size;     /* in the image in question */
};

static struct component standard(const struct soft_vcpu *v, unsigned c)
{
    return (struct component){v->model->xsave_offset[c], v->model->xsave_component_size[c]};
}

/* Bytes of XMM registers that this mode can see. */
static unsigned xmm_bytes(const struct soft_vcpu *v)
{
    return cpu_is_64bit(&v->st) ? 256 : 128;
}

static uint64_t in_use(const struct soft_vcpu *v)
{
    return load_le64(v->st.xsave + XSAVE_HEADER);
}

static void set_in_use(struct soft_vcpu *v, uint64_t bv)
{
    store_le64(v->st.xsave + XSAVE_HEADER, bv);
}

/* The x87 part of an image, pointers blanked. */
static void x87_image(const struct soft_vcpu *v, uint8_t out[24])
{
    soft_copy(out, v->st.xsave, 24);
    soft_zero(out + 6, 18);
}

static int check_fxsave(struct soft_vcpu *v)
{
    return v->st.cr0 & (CR0_EM | CR0_TS) ? soft_raise(v, VEC_NM) : 0;
}

static int check_xsave(struct soft_vcpu *v)
{
    if (!(v->st.cr4 & CR4_OSXSAVE))
        return soft_raise(v, VEC_UD);
    return v->st.cr0 & CR0_TS ? soft_raise(v, VEC_NM) : 0;
}

static int image_address(struct soft_vcpu *v, const struct insn *in, unsigned size, unsigned align,
                         enum soft_access access, gva_t *addr)
{
    int r = soft_linear(v, in->seg, soft_effective_address(v, in), size, access, addr);
    if (r == 0 && (*addr & (align - 1)))
        return soft_raise_error(v, VEC_GP, 0);
    return r;
}

static bool mxcsr_is_valid(const struct soft_vcpu *v, uint32_t mxcsr)
{
    return !(mxcsr & ~v->model->mxcsr_mask);
}

static int op_fxsave(struct soft_vcpu *v, const struct insn *in)
{
    uint8_t x87[24];
    gva_t addr;

    int r = check_fxsave(v);
    if (r == 0)
        r = image_address(v, in, FXSAVE_SIZE, 16, SOFT_WRITE, &addr);
    if (r == 0)
        r = soft_probe(v, addr, FXSAVE_SIZE, SOFT_WRITE, SOFT_AS_CPL);
    if (r != 0)
        return r;
    soft_fpu_save(v);
    x87_image(v, x87);
    store_le32(v->st.xsave + 28, v->model->mxcsr_mask);
    r = soft_write(v, addr, x87, 24, SOFT_AS_CPL);
    if (r == 0)
        r = soft_write(v, addr + 24, v->st.xsave + 24, 136 + xmm_bytes(v), SOFT_AS_CPL);
    return r;
}

static int op_fxrstor(struct soft_vcpu *v, const struct insn *in)
{
    uint8_t image[FXSAVE_SIZE];
    gva_t addr;

    int r = check_fxsave(v);
    if (r == 0)
        r = image_address(v, in, FXSAVE_SIZE, 16, SOFT_READ, &addr);
    if (r == 0)
        r = soft_read(v, addr, image, FXSAVE_SIZE, SOFT_AS_CPL);
    if (r != 0)
        return r;
    if (!mxcsr_is_valid(v, load_le32(image + 24)))
        return soft_raise_error(v, VEC_GP, 0);
    soft_fpu_save(v);
    soft_copy(v->st.xsave, image, 28);
    soft_copy(v->st.xsave + 32, image + 32, 128 + xmm_bytes(v));
    set_in_use(v, in_use(v) | XCR0_X87 | XCR0_SSE);
    return 0;
}

static uint64_t requested(const struct soft_vcpu *v)
{
    return ((v->st.gpr[CPU_RDX] << 32) | (uint32_t)v->st.gpr[CPU_RAX]) & v->st.xcr0;
}

/* Where component `c` lies in a compacted image that holds `components`. */
static struct component compacted(const struct soft_vcpu *v, uint64_t components, unsigned c)
{
    unsigned offset = XSAVE_EXTENDED;
    for (unsigned i = 2; i < c; i++)
        if (components >> i & 1)
            offset += v->model->xsave_component_size[i];
    return (struct component){offset, v->model->xsave_component_size[c]};
}

static unsigned image_size(const struct soft_vcpu *v, uint64_t components, bool is_compact)
{
    unsigned size = XSAVE_EXTENDED;
    for (unsigned i = 2; i < 16; i++) {
        if (!(components >> i & 1))
            continue;
        struct component c = is_compact ? compacted(v, components, i) : standard(v, i);
        size = MAX(size, c.offset + c.size);
    }
    return size;
}

/* Write the components in `mask`; the memory has been probed. */
static int write_components(struct soft_vcpu *v, gva_t addr, uint64_t mask, uint64_t layout,
                            bool is_compact, bool has_mxcsr)
{
    uint8_t x87[24];
    int r = 0;

    if (mask & XCR0_X87) {
        x87_image(v, x87);
        r = soft_write(v, addr, x87, 24, SOFT_AS_CPL);
        if (r == 0)
            r = soft_write(v, addr + 32, v->st.xsave + 32, 128, SOFT_AS_CPL);
    }
    if (r == 0 && has_mxcsr) {
        store_le32(v->st.xsave + 28, v->model->mxcsr_mask);
        r = soft_write(v, addr + 24, v->st.xsave + 24, 8, SOFT_AS_CPL);
    }
    if (r == 0 && (mask & XCR0_SSE))
        r = soft_write(v, addr + 160, v->st.xsave + 160, xmm_bytes(v), SOFT_AS_CPL);
    for (unsigned i = 2; i < 16 && r == 0; i++) {
        if (!(mask >> i & 1))
            continue;
        struct component to = is_compact ? compacted(v, layout, i) : standard(v, i);
        r = soft_write(v, addr + to.offset, v->st.xsave + standard(v, i).offset, to.size,
                       SOFT_AS_CPL);
    }
    return r;
}

/* MXCSR other than its reset value makes the SSE component be in use (SDM vol. 1, 13.6). */
static uint64_t in_use_with_mxcsr(const struct soft_vcpu *v)
{
    uint64_t bv = in_use(v);
    return load_le32(v->st.xsave + 24) != 0x1f80 ? bv | XCR0_SSE : bv;
}

static int xsave_standard(struct soft_vcpu *v, const struct insn *in, bool is_optimised)
{
    uint64_t rfbm = requested(v), bv, old;
    gva_t addr;

    int r = image_address(v, in, image_size(v, rfbm, false), 64, SOFT_WRITE, &addr);
    if (r == 0)
        r = soft_probe(v, addr, image_size(v, rfbm, false), SOFT_RMW, SOFT_AS_CPL);
    if (r == 0)
        r = soft_load(v, addr + XSAVE_HEADER, 8, SOFT_AS_CPL, &old);
    if (r != 0)
        return r;
    soft_fpu_save(v);
    bv = in_use(v);
    r = write_components(v, addr, is_optimised ? rfbm & bv : rfbm, 0, false,
                         (rfbm & (XCR0_SSE | XCR0_AVX)) != 0);
    return r != 0 ? r : soft_store(v, addr + XSAVE_HEADER, 8, SOFT_AS_CPL,
                                   (old & ~rfbm) | (bv & rfbm));
}

static int op_xsave(struct soft_vcpu *v, const struct insn *in)
{
    bool is_optimised = in->op == ZYDIS_MNEMONIC_XSAVEOPT || in->op == ZYDIS_MNEMONIC_XSAVEOPT64;
    int r = check_xsave(v);
    return r != 0 ? r : xsave_standard(v, in, is_optimised);
}

/* XSAVEC, and XSAVES with no supervisor state. */
static int op_xsavec(struct soft_vcpu *v, const struct insn *in)
{
    bool is_supervisor = in->op == ZYDIS_MNEMONIC_XSAVES || in->op == ZYDIS_MNEMONIC_XSAVES64;
    uint64_t rfbm = requested(v), bv;
    gva_t addr;

    int r = check_xsave(v);
    if (r == 0 && is_supervisor)
        r = soft_require_cpl0(v);
    if (r == 0)
        r = image_address(v, in, image_size(v, rfbm, true), 64, SOFT_WRITE, &addr);
    if (r == 0)
        r = soft_probe(v, addr, image_size(v, rfbm, true), SOFT_WRITE, SOFT_AS_CPL);
    if (r != 0)
        return r;
    soft_fpu_save(v);
    bv = in_use_with_mxcsr(v) & rfbm;
    r = write_components(v, addr, bv, rfbm, true, (bv & XCR0_SSE) != 0);
    if (r == 0)
        r = soft_store(v, addr + XSAVE_HEADER, 8, SOFT_AS_CPL, bv);
    return r != 0 ? r : soft_store(v, addr + XSAVE_HEADER + 8, 8, SOFT_AS_CPL,
                                   rfbm | XCOMP_COMPACT);
}

/* Header rules of XRSTOR (SDM vol. 1, 13.8.1 and 13.8.2). */
static bool header_is_valid(const struct soft_vcpu *v, const uint8_t header[64], bool must_be_compact)
{
    uint64_t bv = load_le64(header), comp = load_le64(header + 8);
    bool is_compact = (comp & XCOMP_COMPACT) != 0;

    if (is_compact) {
        if (!cpu_model_has(v->model, CPU_FEATURE_XSAVEC))
            return false;
        if ((comp & ~XCOMP_COMPACT & ~v->st.xcr0) || (bv & ~comp))
            return false;
        for (unsigned i = 16; i < 64; i++)
            if (header[i] != 0)
                return false;
        return true;
    }
    if (must_be_compact || (bv & ~v->st.xcr0))
        return false;
    for (unsigned i = 8; i < 24; i++)
        if (header[i] != 0)
            return false;
    return true;
}

static void init_component(struct soft_vcpu *v, unsigned c)
{
    uint8_t *x = v->st.xsave;
    if (c == 0) {
        soft_zero(x, 24);
        soft_zero(x + 32, 128);
        store_le16(x, 0x37f);
    } else if (c == 1) {
        soft_zero(x + 160, xmm_bytes(v));
    } else {
        soft_zero(x + standard(v, c).offset, standard(v, c).size);
    }
}

/* Copy component `c` from the image in `buf`, whose extended part is laid out as told. */
static void load_component(struct soft_vcpu *v, const uint8_t *buf, unsigned c, uint64_t layout,
                           bool is_compact)
{
    uint8_t *x = v->st.xsave;
    if (c == 0) {
        soft_copy(x, buf, 24);
        soft_copy(x + 32, buf + 32, 128);
    } else if (c == 1) {
        soft_copy(x + 160, buf + 160, xmm_bytes(v));
    } else {
        struct component from = is_compact ? compacted(v, layout, c) : standard(v, c);
        soft_copy(x + standard(v, c).offset, buf + from.offset, from.size);
    }
}

static int op_xrstor(struct soft_vcpu *v, const struct insn *in)
{
    bool is_supervisor = in->op == ZYDIS_MNEMONIC_XRSTORS || in->op == ZYDIS_MNEMONIC_XRSTORS64;
    uint8_t image[CPU_XSAVE_SIZE];
    uint64_t rfbm = requested(v);
    gva_t addr;

    int r = check_xsave(v);
    if (r == 0 && is_supervisor)
        r = soft_require_cpl0(v);
    if (r == 0)
        r = image_address(v, in, XSAVE_EXTENDED, 64, SOFT_READ, &addr);
    if (r == 0)
        r = soft_read(v, addr, image, XSAVE_EXTENDED, SOFT_AS_CPL);
    if (r != 0)
        return r;
    if (!header_is_valid(v, image + XSAVE_HEADER, is_supervisor))
        return soft_raise_error(v, VEC_GP, 0);
    uint64_t bv = load_le64(image + XSAVE_HEADER), comp = load_le64(image + XSAVE_HEADER + 8);
    bool is_compact = (comp & XCOMP_COMPACT) != 0;
    uint64_t layout = comp & ~XCOMP_COMPACT, loaded = bv & rfbm;
    unsigned size = is_compact ? image_size(v, layout, true) : image_size(v, loaded, false);

    if (size > XSAVE_EXTENDED) {
        r = soft_read(v, addr + XSAVE_EXTENDED, image + XSAVE_EXTENDED, size - XSAVE_EXTENDED,
                      SOFT_AS_CPL);
        if (r != 0)
            return r;
    }
    bool has_mxcsr = is_compact ? (loaded & XCR0_SSE) != 0 : (rfbm & (XCR0_SSE | XCR0_AVX)) != 0;
    if (has_mxcsr && !mxcsr_is_valid(v, load_le32(image + 24)))
        return soft_raise_error(v, VEC_GP, 0);
    soft_fpu_save(v);
    for (unsigned c = 0; c < 16; c++) {
        if (!(rfbm >> c & 1))
            continue;
        if (loaded >> c & 1)
            load_component(v, image, c, layout, is_compact);
        else
            init_component(v, c);
    }
    if (has_mxcsr)
        store_le32(v->st.xsave + 24, load_le32(image + 24));
    else if (is_compact && (rfbm & XCR0_SSE))
        store_le32(v->st.xsave + 24, 0x1f80);
    set_in_use(v, (in_use(v) & ~rfbm) | loaded);
    return 0;
}

static int op_xgetbv(struct soft_vcpu *v, const struct insn *in)
{
    uint32_t index = (uint32_t)v->st.gpr[CPU_RCX];
    uint64_t value = v->st.xcr0;

    if (!(v->st.cr4 & CR4_OSXSAVE))
        return soft_raise(v, VEC_UD);
    if (index > 1 || (index == 1 && !cpu_model_has(v->model, CPU_FEATURE_XGETBV1)))
        return soft_raise_error(v, VEC_GP, 0);
    if (index == 1) {
        soft_fpu_save(v);
        value &= in_use_with_mxcsr(v);
    }
    v->st.gpr[CPU_RAX] = (uint32_t)value;
    v->st.gpr[CPU_RDX] = value >> 32;
    return 0;
}

static int op_xsetbv(struct soft_vcpu *v, const struct insn *in)
{
    uint64_t value = v->st.gpr[CPU_RDX] << 32 | (uint32_t)v->st.gpr[CPU_RAX];

    if (!(v->st.cr4 & CR4_OSXSAVE))
        return soft_raise(v, VEC_UD);
    int r = soft_require_cpl0(v);
    if (r != 0)
        return r;
    bool is_consistent = (value & XCR0_X87) && (!(value & XCR0_AVX) || (value & XCR0_SSE)) &&
                         (!(value & XCR0_AVX512) ||
                          ((value & XCR0_AVX512) == XCR0_AVX512 && (value & XCR0_AVX)));
    if ((uint32_t)v->st.gpr[CPU_RCX] != 0 || !is_consistent || (value & ~v->model->xcr0_valid))
        return soft_raise_error(v, VEC_GP, 0);
    v->st.xcr0 = value;
    v->is_mode_stale = 1;
    return 0;
}

/* The 16-bit tag word from the abridged one: empty, valid, zero, special. */
static uint16_t full_tags(const uint8_t *x)
{
    unsigned top = x[3] >> 3 & 7;
    uint16_t tags = 0;

    for (unsigned i = 0; i < 8; i++) {
        const uint8_t *st = x + 32 + 16 * ((i - top) & 7);
        uint16_t exponent = load_le16(st + 8) & 0x7fff;
        uint64_t significand = load_le64(st);
        unsigned tag;
        if (!(x[4] >> i & 1))
            tag = 3;
        else if (exponent == 0 && significand == 0)
            tag = 1;
        else if (exponent == 0 || exponent == 0x7fff || !(significand >> 63))
            tag = 2;
        else
            tag = 0;
        tags |= (uint16_t)(tag << 2 * i);
    }
    return tags;
}

static uint8_t abridged_tags(uint16_t tags)
{
    uint8_t out = 0;
    for (unsigned i = 0; i < 8; i++)
        if ((tags >> 2 * i & 3) != 3)
            out |= (uint8_t)(1u << i);
    return out;
}

/* 14 or 28 bytes; pointers are zero. Returns the size. */
static unsigned make_environment(const struct soft_vcpu *v, unsigned op_size, uint8_t out[28])
{
    const uint8_t *x = v->st.xsave;
    unsigned width = op_size == 2 ? 2 : 4;

    soft_zero(out, 28);
    if (width == 4)
        for (unsigned i = 0; i < 3; i++)
            store_le16(out + 4 * i + 2, 0xffff);
    store_le16(out, load_le16(x));
    store_le16(out + width, load_le16(x + 2));
    store_le16(out + 2 * width, full_tags(x));
    if (width == 4)
        store_le16(out + 26, 0xffff);
    return 7 * width;
}

static void take_environment(struct soft_vcpu *v, unsigned width, const uint8_t *env)
{
    uint8_t *x = v->st.xsave;
    store_le16(x, (uint16_t)(load_le16(env) | 0x40));
    store_le16(x + 2, load_le16(env + width));
    x[4] = abridged_tags(load_le16(env + 2 * width));
    x[5] = 0;
    soft_zero(x + 6, 18);
    /* ES and B follow from unmasked exceptions */
    uint16_t fsw = load_le16(x + 2) & 0x7f7f;
    if (fsw & ~load_le16(x) & 0x3f)
        fsw |= 0x8080;
    store_le16(x + 2, fsw);
    set_in_use(v, in_use(v) | XCR0_X87);
}

static int op_fnstenv(struct soft_vcpu *v, const struct insn *in)
{
    uint8_t env[28];
    gva_t addr;

    soft_fpu_save(v);
    unsigned size = make_environment(v, in->op_size, env);
    int r = soft_operand_address(v, in, size, SOFT_WRITE, &addr);
    if (r == 0)
        r = soft_write(v, addr, env, size, SOFT_AS_CPL);
    if (r != 0)
        return r;
    /* all exceptions are masked afterwards, so none is pending */
    store_le16(v->st.xsave, load_le16(v->st.xsave) | 0x3f);
    store_le16(v->st.xsave + 2, load_le16(v->st.xsave + 2) & 0x7f7f);
    set_in_use(v, in_use(v) | XCR0_X87);
    return 0;
}

static int op_fldenv(struct soft_vcpu *v, const struct insn *in)
{
    unsigned width = in->op_size == 2 ? 2 : 4;
    uint8_t env[28];
    gva_t addr;

    int r = soft_operand_address(v, in, 7 * width, SOFT_READ, &addr);
    if (r == 0)
        r = soft_read(v, addr, env, 7 * width, SOFT_AS_CPL);
    if (r != 0)
        return r;
    soft_fpu_save(v);
    take_environment(v, width, env);
    return 0;
}

static int op_fnsave(struct soft_vcpu *v, const struct insn *in)
{
    uint8_t image[108];
    gva_t addr;

    soft_fpu_save(v);
    unsigned size = make_environment(v, in->op_size, image);
    for (unsigned i = 0; i < 8; i++)
        soft_copy(image + size + 10 * i, v->st.xsave + 32 + 16 * i, 10);
    int r = soft_operand_address(v, in, size + 80, SOFT_WRITE, &addr);
    if (r == 0)
        r = soft_write(v, addr, image, size + 80, SOFT_AS_CPL);
    if (r != 0)
        return r;
    init_component(v, 0);
    set_in_use(v, in_use(v) | XCR0_X87);
    return 0;
}

static int op_frstor(struct soft_vcpu *v, const struct insn *in)
{
    unsigned width = in->op_size == 2 ? 2 : 4, size = 7 * width + 80;
    uint8_t image[108];
    gva_t addr;

    int r = soft_operand_address(v, in, size, SOFT_READ, &addr);
    if (r == 0)
        r = soft_read(v, addr, image, size, SOFT_AS_CPL);
    if (r != 0)
        return r;
    soft_fpu_save(v);
    take_environment(v, width, image);
    for (unsigned i = 0; i < 8; i++) {
        soft_copy(v->st.xsave + 32 + 16 * i, image + 7 * width + 10 * i, 10);
        soft_zero(v->st.xsave + 42 + 16 * i, 6);
    }
    return 0;
}

const struct soft_op soft_ops_fpu[] = {
    {ZYDIS_MNEMONIC_FXSAVE, op_fxsave},     {ZYDIS_MNEMONIC_FXSAVE64, op_fxsave},
    {ZYDIS_MNEMONIC_FXRSTOR, op_fxrstor},   {ZYDIS_MNEMONIC_FXRSTOR64, op_fxrstor},
    {ZYDIS_MNEMONIC_XSAVE, op_xsave},       {ZYDIS_MNEMONIC_XSAVE64, op_xsave},
    {ZYDIS_MNEMONIC_XSAVEOPT, op_xsave},    {ZYDIS_MNEMONIC_XSAVEOPT64, op_xsave},
    {ZYDIS_MNEMONIC_XSAVEC, op_xsavec},     {ZYDIS_MNEMONIC_XSAVEC64, op_xsavec},
    {ZYDIS_MNEMONIC_XSAVES, op_xsavec},     {ZYDIS_MNEMONIC_XSAVES64, op_xsavec},
    {ZYDIS_MNEMONIC_XRSTOR, op_xrstor},     {ZYDIS_MNEMONIC_XRSTOR64, op_xrstor},
    {ZYDIS_MNEMONIC_XRSTORS, op_xrstor},    {ZYDIS_MNEMONIC_XRSTORS64, op_xrstor},
    {ZYDIS_MNEMONIC_XGETBV, op_xgetbv},     {ZYDIS_MNEMONIC_XSETBV, op_xsetbv},
    {ZYDIS_MNEMONIC_FNSTENV, op_fnstenv},   {ZYDIS_MNEMONIC_FLDENV, op_fldenv},
    {ZYDIS_MNEMONIC_FNSAVE, op_fnsave},     {ZYDIS_MNEMONIC_FRSTOR, op_frstor},
    {0, NULL},
};
