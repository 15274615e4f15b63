/*
 * xsave.c - FXSAVE, FXRSTOR and the XSAVE family; XCR0
 *
 * They work on the image in st.xsave: the guest's state is put there first, and what a restore
 * has to check is checked before a byte of it changes, so no host instruction ever reads an
 * image that the guest made. Outside of 64-bit mode the registers 8 to 31 are neither saved nor
 * restored.
 *
 * Specification: SDM vol. 1, 10.5 (FXSAVE) and chapter 13 (XSAVE); vol. 2 for faults.
 */
#include <Zydis/Zydis.h>

#include "engine/soft/fpu_state.h"
#include "engine/soft/ops.h"
#include "engine/soft/system.h"

/* A save is a list of pieces, all probed before the first is written. */
struct piece {
    uint16_t offset, size;
    const uint8_t *from;
};

#define PIECES_MAX 16u

struct pieces {
    struct piece list[PIECES_MAX];
    unsigned count;
};

static void pieces_add(struct pieces *p, unsigned offset, const uint8_t *from, unsigned size)
{
    if (size != 0)
        p->list[p->count++] = (struct piece){(uint16_t)offset, (uint16_t)size, from};
}

static int pieces_write(struct soft_vcpu *v, const struct pieces *p, gva_t addr)
{
    for (unsigned i = 0; i < p->count; i++)
        if (soft_probe(v, addr + p->list[i].offset, p->list[i].size, SOFT_WRITE, SOFT_AS_CPL))
            return SOFT_FAULT;
    for (unsigned i = 0; i < p->count; i++)
        if (soft_write(v, addr + p->list[i].offset, p->list[i].from, p->list[i].size, SOFT_AS_CPL))
            return SOFT_FAULT;
    return 0;
}

/* With REX.W: 64-bit pointers. */
static bool is_wide(const struct insn *in)
{
    switch (in->op) {
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_FXRSTOR64:
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
    case ZYDIS_MNEMONIC_XSAVEC64:
    case ZYDIS_MNEMONIC_XSAVES64:
    case ZYDIS_MNEMONIC_XRSTOR64:
    case ZYDIS_MNEMONIC_XRSTORS64:
        return true;
    default:
        return false;
    }
}

/* Bytes of the XMM registers that exist in this mode. */
static unsigned xmm_bytes(const struct insn *in)
{
    return in->mode == 8 ? 256 : 128;
}

/* Bytes 0..31 as FXSAVE and XSAVE write them: pointers are 64 bits, or 32 and a selector. */
static void legacy_head(const struct soft_vcpu *v, const struct insn *in, uint8_t head[32])
{
    soft_copy(head, v->st.xsave, 32);
    head[5] = 0;
    if (!is_wide(in)) {
        /* in 64-bit mode what stands above 32 bits is no selector */
        for (unsigned i = in->mode == 8 ? 12 : 14; i < 16; i++)
            head[i] = head[i + 8] = 0;
    }
    store_le32(head + FPU_MXCSR_MASK, v->model->mxcsr_mask);
}

/* ES and B follow from the flags and masks, whatever the image said (SDM vol. 1, 8.1.3.3). */
static void set_error_summary(uint8_t *image)
{
    uint16_t fcw = load_le16(image + FPU_FCW), fsw = load_le16(image + FPU_FSW) & 0x7f7f;

    store_le16(image + FPU_FSW, fsw & ~fcw & 0x3f ? fsw | 0x8080 : fsw);
}

static void load_x87(struct soft_vcpu *v, const struct insn *in, const uint8_t *from)
{
    uint8_t *image = v->st.xsave;

    soft_copy(image, from, FPU_MXCSR);
    image[5] = 0;
    store_le16(image + FPU_FCW, (load_le16(image + FPU_FCW) & 0x1f7f) | 0x40);
    store_le16(image + FPU_FOP, load_le16(image + FPU_FOP) & 0x7ff);
    if (!is_wide(in)) {
        soft_zero(image + FPU_FIP + 6, 2);
        soft_zero(image + FPU_FDP + 6, 2);
    }
    for (unsigned i = 0; i < 8; i++) {
        soft_copy(image + FPU_ST + 16 * i, from + FPU_ST + 16 * i, 10);
        soft_zero(image + FPU_ST + 16 * i + 10, 6);
    }
    set_error_summary(image);
    soft_fpu_image_mark(v, FPU_COMP_X87);
}

/* ---- FXSAVE ---- */

/* CR0.EM, CR0.TS -> #NM; the operand's address; misaligned -> #GP(0) (SDM vol. 2, FXSAVE). */
static int fxsave_operand(struct soft_vcpu *v, const struct insn *in, enum soft_access access,
                          gva_t *addr)
{
    if (v->st.cr0 & (CR0_EM | CR0_TS))
        return soft_raise(v, VEC_NM);
    uint64_t offset = soft_effective_address(v, in);
    gva_t linear = v->st.seg[in->seg].base + offset;

    /*
     * AMD: the first 4 bytes are accessed as one, so they must not lie across the largest offset.
     * Their #AC goes first where alignment is checked, but for an address that is not canonical.
     * Otherwise the segment, and the address's form, come before alignment.
     */
    if (UNLIKELY(v->model->is_amd && in->mode != 8 && offset > UINT32_MAX - 3) &&
        soft_linear(v, in->seg, offset, 4, access, &linear))
        return SOFT_FAULT;
    if (v->is_ac_set && v->model->is_amd && (linear & 3) &&
        (in->mode != 8 || soft_is_canonical(v, linear)))
        return soft_raise_error(v, VEC_AC, 0);
    if (soft_linear(v, in->seg, offset, 1, access, &linear))
        return SOFT_FAULT;
    if (linear & 15)
        return soft_raise_error(v, VEC_GP, 0);
    if (soft_fpu_operand(v, in, FPU_LEGACY_SIZE, FPU_LEGACY_SIZE - 1, 1, access, addr))
        return SOFT_FAULT;
    /* AMD's CPUs try the last byte first, which shows in CR2 */
    return v->model->is_amd ? soft_probe(v, *addr + FPU_LEGACY_SIZE - 1, 1, access, SOFT_AS_CPL)
                            : 0;
}

/* Fast FXSAVE leaves the XMM registers out (APM vol. 2, 3.1.7, EFER.FFXSR). */
static bool is_fast(const struct soft_vcpu *v, const struct insn *in)
{
    return (v->st.efer & EFER_FFXSR) && in->mode == 8 && cpu_cpl(&v->st) == 0;
}

static int op_fxsave(struct soft_vcpu *v, const struct insn *in)
{
    struct pieces p;
    uint8_t head[32];
    gva_t addr;

    if (fxsave_operand(v, in, SOFT_WRITE, &addr))
        return SOFT_FAULT;
    uint8_t *image = soft_fpu_image(v);
    p.count = 0;
    legacy_head(v, in, head);
    pieces_add(&p, 0, head, sizeof(head));
    pieces_add(&p, FPU_ST, image + FPU_ST, 128);
    if (!is_fast(v, in))
        pieces_add(&p, FPU_XMM, image + FPU_XMM, xmm_bytes(in));
    return pieces_write(v, &p, addr);
}

static int op_fxrstor(struct soft_vcpu *v, const struct insn *in)
{
    uint8_t from[FPU_LEGACY_SIZE];
    gva_t addr;

    if (fxsave_operand(v, in, SOFT_READ, &addr) ||
        soft_read(v, addr, from, sizeof(from), SOFT_AS_CPL))
        return SOFT_FAULT;
    if (load_le32(from + FPU_MXCSR) & ~v->model->mxcsr_mask)
        return soft_raise_error(v, VEC_GP, 0);
    uint8_t *image = soft_fpu_image(v);
    load_x87(v, in, from);
    store_le32(image + FPU_MXCSR, load_le32(from + FPU_MXCSR));
    if (!is_fast(v, in)) {
        soft_copy(image + FPU_XMM, from + FPU_XMM, xmm_bytes(in));
        soft_fpu_image_mark(v, FPU_COMP_SSE);
    }
    return 0;
}

/* ---- XSAVE ---- */

/* !CR4.OSXSAVE -> #UD, TS -> #NM, XSAVES and XRSTORS at CPL > 0 -> #GP(0). */
static int xsave_check(struct soft_vcpu *v, bool is_supervisor)
{
    if (!(v->st.cr4 & CR4_OSXSAVE))
        return soft_raise(v, VEC_UD);
    if (v->st.cr0 & CR0_TS)
        return soft_raise(v, VEC_NM);
    if (is_supervisor && cpu_cpl(&v->st) != 0)
        return soft_raise_error(v, VEC_GP, 0);
    return 0;
}

/* Misaligned -> #GP(0), before the segment is looked at. */
static int xsave_operand(struct soft_vcpu *v, const struct insn *in, unsigned size,
                         enum soft_access access, gva_t *addr)
{
    if ((soft_effective_address(v, in) + v->st.seg[in->seg].base) & 63)
        return soft_raise_error(v, VEC_GP, 0);
    return soft_operand_address(v, in, size, access, addr);
}

/* The first byte is tried first, then the last one (which shows in CR2). */
static int xsave_probe_ends(struct soft_vcpu *v, gva_t addr, unsigned size)
{
    if (soft_probe(v, addr, 1, SOFT_WRITE, SOFT_AS_CPL))
        return SOFT_FAULT;
    return soft_probe(v, addr + size - 1, 1, SOFT_WRITE, SOFT_AS_CPL);
}

/* Requested-feature bitmap. IA32_XSS has no bits: no supervisor component is offered. */
static uint64_t requested(const struct soft_vcpu *v)
{
    return v->st.xcr0 & (v->st.gpr[CPU_RDX] << 32 | (uint32_t)v->st.gpr[CPU_RAX]);
}

/* Bytes of extended component `c` (2 and up) that this mode's instructions touch. */
static unsigned component_bytes(const struct soft_vcpu *v, const struct insn *in, unsigned c)
{
    unsigned size = v->model->xsave_component_size[c];

    if (in->mode == 8)
        return size;
    if (c == FPU_COMP_AVX || c == FPU_COMP_ZMM_HI256)
        return size / 2; /* registers 0 to 7 of 16 */
    return c == FPU_COMP_HI16_ZMM ? 0 : size;
}

static bool component_is_aligned(const struct soft_vcpu *v, unsigned c)
{
    return cpu_model_cpuid(v->model, &v->st, v->index, 0xd, c).ecx & 2;
}

/*
 * Where component `c` stands in a compacted image made of `components`; c == FPU_COMP_COUNT:
 * where the image ends (SDM vol. 1, 13.4.3).
 */
static unsigned compacted_offset(const struct soft_vcpu *v, uint64_t components, unsigned c)
{
    unsigned offset = FPU_EXTENDED;

    for (unsigned i = 2; i < FPU_COMP_COUNT; i++) {
        if (!(components >> i & 1))
            continue;
        if (component_is_aligned(v, i))
            offset = (unsigned)align_up(offset, 64);
        if (i == c)
            break;
        offset += v->model->xsave_component_size[i];
    }
    return offset;
}

static unsigned compacted_end(const struct soft_vcpu *v, uint64_t components)
{
    return compacted_offset(v, components, FPU_COMP_COUNT);
}

static unsigned standard_end(const struct soft_vcpu *v, uint64_t components)
{
    unsigned end = FPU_EXTENDED;

    for (unsigned i = 2; i < FPU_COMP_COUNT; i++)
        if (components >> i & 1)
            end = MAX(end, v->model->xsave_offset[i] + v->model->xsave_component_size[i]);
    return end;
}

static void add_legacy(struct pieces *p, const struct insn *in, const uint8_t *head,
                       const uint8_t *image, uint64_t components, bool has_mxcsr)
{
    if (components & XCR0_X87) {
        pieces_add(p, 0, head, FPU_MXCSR);
        pieces_add(p, FPU_ST, image + FPU_ST, 128);
    }
    if (has_mxcsr)
        pieces_add(p, FPU_MXCSR, head + FPU_MXCSR, 8);
    if (components & XCR0_SSE)
        pieces_add(p, FPU_XMM, image + FPU_XMM, xmm_bytes(in));
}

/* XSAVE, XSAVEOPT: standard format; other components in the image stay as they are. */
static int op_xsave(struct soft_vcpu *v, const struct insn *in)
{
    bool is_optimised = in->op == ZYDIS_MNEMONIC_XSAVEOPT || in->op == ZYDIS_MNEMONIC_XSAVEOPT64;
    struct pieces p;
    uint64_t rfbm = requested(v), old;
    uint8_t head[32], bv[8];
    gva_t addr;

    if (xsave_check(v, false) || xsave_operand(v, in, standard_end(v, rfbm), SOFT_WRITE, &addr) ||
        xsave_probe_ends(v, addr, standard_end(v, rfbm)) ||
        soft_probe(v, addr + FPU_XSTATE_BV, 8, SOFT_RMW, SOFT_AS_CPL) ||
        soft_load(v, addr + FPU_XSTATE_BV, 8, SOFT_AS_CPL, &old))
        return SOFT_FAULT;
    uint8_t *image = soft_fpu_image(v);
    uint64_t in_use = load_le64(image + FPU_XSTATE_BV);
    /* the init optimisation: what is in its initial state is not written */
    uint64_t written = is_optimised ? rfbm & in_use : rfbm;
    p.count = 0;
    legacy_head(v, in, head);
    store_le64(bv, (old & ~rfbm) | (in_use & rfbm));
    add_legacy(&p, in, head, image, written, (rfbm & (XCR0_SSE | XCR0_AVX)) != 0);
    pieces_add(&p, FPU_XSTATE_BV, bv, sizeof(bv));
    for (unsigned i = 2; i < FPU_COMP_COUNT; i++)
        if (written >> i & 1)
            pieces_add(&p, v->model->xsave_offset[i], image + v->model->xsave_offset[i],
                       component_bytes(v, in, i));
    return pieces_write(v, &p, addr);
}

/* XSAVEC, XSAVES: compacted format; what is in its initial state is not written. */
static int op_xsavec(struct soft_vcpu *v, const struct insn *in)
{
    bool is_supervisor = in->op == ZYDIS_MNEMONIC_XSAVES || in->op == ZYDIS_MNEMONIC_XSAVES64;
    struct pieces p;
    uint64_t rfbm = requested(v);
    uint8_t head[32], header[16];
    gva_t addr;

    if (xsave_check(v, is_supervisor) ||
        xsave_operand(v, in, compacted_end(v, rfbm), SOFT_WRITE, &addr) ||
        xsave_probe_ends(v, addr, compacted_end(v, rfbm)))
        return SOFT_FAULT;
    uint8_t *image = soft_fpu_image(v);
    uint64_t written = load_le64(image + FPU_XSTATE_BV) & rfbm;
    /* MXCSR is part of SSE here (SDM vol. 1, 13.10) */
    if (load_le32(image + FPU_MXCSR) != FPU_MXCSR_INIT)
        written |= rfbm & XCR0_SSE;
    p.count = 0;
    legacy_head(v, in, head);
    store_le64(header, written);
    store_le64(header + 8, rfbm | BIT(63));
    add_legacy(&p, in, head, image, written, (written & XCR0_SSE) != 0);
    pieces_add(&p, FPU_XSTATE_BV, header, sizeof(header));
    for (unsigned i = 2; i < FPU_COMP_COUNT; i++)
        if (written >> i & 1)
            pieces_add(&p, compacted_offset(v, rfbm, i), image + v->model->xsave_offset[i],
                       component_bytes(v, in, i));
    return pieces_write(v, &p, addr);
}

/* ---- XRSTOR ---- */

/* An image read from guest memory; its extended components stand as in the standard format. */
struct restore {
    uint64_t rfbm, xstate_bv, xcomp_bv;
    bool is_compacted, has_mxcsr;
    uint8_t image[CPU_XSAVE_SIZE];
};

static bool is_zero(const uint8_t *p, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        if (p[i] != 0)
            return false;
    return true;
}

/* The header's #GP conditions (SDM vol. 1, 13.8 and 13.12). */
static bool header_is_bad(const struct soft_vcpu *v, const struct restore *r, bool is_supervisor)
{
    const uint8_t *header = r->image + FPU_XSTATE_BV;

    if (!r->is_compacted)
        return is_supervisor || !is_zero(header + 8, 16) || (r->xstate_bv & ~v->st.xcr0) != 0;
    return !cpu_model_has(v->model, CPU_FEATURE_XSAVEC) || !is_zero(header + 16, 48) ||
           (r->xcomp_bv & ~(v->st.xcr0 | BIT(63))) != 0 ||
           (r->xstate_bv & ~(r->xcomp_bv & ~BIT(63))) != 0;
}

static int restore_read_header(struct soft_vcpu *v, const struct insn *in, struct restore *r,
                               bool is_supervisor, gva_t *addr)
{
    if (xsave_operand(v, in, FPU_EXTENDED, SOFT_READ, addr) ||
        soft_probe(v, *addr, 1, SOFT_READ, SOFT_AS_CPL) ||
        soft_read(v, *addr + FPU_XSTATE_BV, r->image + FPU_XSTATE_BV, 64, SOFT_AS_CPL))
        return SOFT_FAULT;
    r->rfbm = requested(v);
    r->xstate_bv = load_le64(r->image + FPU_XSTATE_BV);
    r->xcomp_bv = load_le64(r->image + FPU_XCOMP_BV);
    r->is_compacted = r->xcomp_bv >> 63;
    return header_is_bad(v, r, is_supervisor) ? soft_raise_error(v, VEC_GP, 0) : 0;
}

static int restore_read(struct soft_vcpu *v, const struct insn *in, struct restore *r,
                        bool is_supervisor)
{
    gva_t addr;

    if (restore_read_header(v, in, r, is_supervisor, &addr))
        return SOFT_FAULT;
    uint64_t loaded = r->rfbm & r->xstate_bv, layout = r->xcomp_bv & ~BIT(63);
    unsigned end = r->is_compacted ? compacted_end(v, layout) : standard_end(v, r->rfbm);

    if (xsave_operand(v, in, end, SOFT_READ, &addr))
        return SOFT_FAULT;
    /* in the standard format MXCSR does not depend on XSTATE_BV (SDM vol. 1, 13.8.1) */
    r->has_mxcsr =
        r->is_compacted ? (loaded & XCR0_SSE) != 0 : (r->rfbm & (XCR0_SSE | XCR0_AVX)) != 0;
    if ((r->has_mxcsr || (loaded & (XCR0_X87 | XCR0_SSE))) &&
        soft_read(v, addr, r->image, FPU_LEGACY_SIZE, SOFT_AS_CPL))
        return SOFT_FAULT;
    for (unsigned i = 2; i < FPU_COMP_COUNT; i++) {
        unsigned at = v->model->xsave_offset[i], size = component_bytes(v, in, i);
        if (!(loaded >> i & 1) || size == 0)
            continue;
        unsigned from = r->is_compacted ? compacted_offset(v, layout, i) : at;
        if (soft_read(v, addr + from, r->image + at, size, SOFT_AS_CPL))
            return SOFT_FAULT;
    }
    if (r->has_mxcsr && (load_le32(r->image + FPU_MXCSR) & ~v->model->mxcsr_mask))
        return soft_raise_error(v, VEC_GP, 0);
    return 0;
}

static void restore_legacy(struct soft_vcpu *v, const struct insn *in, struct restore *r)
{
    uint8_t *image = v->st.xsave;

    if (r->rfbm & XCR0_X87) {
        if (!(r->xstate_bv & XCR0_X87)) {
            soft_zero(r->image, FPU_MXCSR);
            soft_zero(r->image + FPU_ST, 128);
            store_le16(r->image + FPU_FCW, FPU_FCW_INIT);
        }
        load_x87(v, in, r->image);
    }
    if (r->has_mxcsr)
        store_le32(image + FPU_MXCSR, load_le32(r->image + FPU_MXCSR));
    else if (r->is_compacted && (r->rfbm & XCR0_SSE))
        store_le32(image + FPU_MXCSR, FPU_MXCSR_INIT);
    if (r->rfbm & XCR0_SSE) {
        if (r->xstate_bv & XCR0_SSE)
            soft_copy(image + FPU_XMM, r->image + FPU_XMM, xmm_bytes(in));
        else
            soft_zero(image + FPU_XMM, xmm_bytes(in));
    }
}

static int op_xrstor(struct soft_vcpu *v, const struct insn *in)
{
    bool is_supervisor = in->op == ZYDIS_MNEMONIC_XRSTORS || in->op == ZYDIS_MNEMONIC_XRSTORS64;
    struct restore r;

    if (xsave_check(v, is_supervisor) || restore_read(v, in, &r, is_supervisor))
        return SOFT_FAULT;
    uint8_t *image = soft_fpu_image(v);
    uint64_t in_use = load_le64(image + FPU_XSTATE_BV);
    restore_legacy(v, in, &r);
    for (unsigned i = 2; i < FPU_COMP_COUNT; i++) {
        unsigned at = v->model->xsave_offset[i], size = component_bytes(v, in, i);
        if (!(r.rfbm >> i & 1) || size == 0)
            continue;
        if (r.xstate_bv >> i & 1)
            soft_copy(image + at, r.image + at, size);
        else
            soft_zero(image + at, size);
    }
    /* outside of 64-bit mode registers 8 to 31 were kept, so a component may stay in use */
    uint64_t kept = in->mode == 8 ? ~r.rfbm : ~(r.rfbm & (XCR0_X87 | BIT(FPU_COMP_OPMASK)));
    store_le64(image + FPU_XSTATE_BV, (in_use & kept) | (r.rfbm & r.xstate_bv));
    return 0;
}

/* ---- XCR0 ---- */

static int op_xgetbv(struct soft_vcpu *v, const struct insn *in)
{
    uint64_t value = v->st.xcr0;

    if (!(v->st.cr4 & CR4_OSXSAVE))
        return soft_raise(v, VEC_UD);
    switch ((uint32_t)v->st.gpr[CPU_RCX]) {
    case 0:
        break;
    case 1: /* XCR0 and the components in use (SDM vol. 1, 13.2) */
        if (!cpu_model_has(v->model, CPU_FEATURE_XGETBV1))
            return soft_raise_error(v, VEC_GP, 0);
        soft_fpu_image(v);
        if (load_le32(v->st.xsave + FPU_MXCSR) != FPU_MXCSR_INIT)
            value &= load_le64(v->st.xsave + FPU_XSTATE_BV) | XCR0_SSE;
        else
            value &= load_le64(v->st.xsave + FPU_XSTATE_BV);
        break;
    default:
        return soft_raise_error(v, VEC_GP, 0);
    }
    v->st.gpr[CPU_RAX] = (uint32_t)value;
    v->st.gpr[CPU_RDX] = value >> 32;
    return 0;
}

/* Combinations that XSETBV refuses (SDM vol. 1, 13.3). */
static bool xcr0_is_bad(const struct soft_vcpu *v, uint64_t value)
{
    uint64_t avx512 = value & XCR0_AVX512;

    return (value & ~v->model->xcr0_valid) != 0 || !(value & XCR0_X87) ||
           ((value & XCR0_AVX) && !(value & XCR0_SSE)) ||
           (avx512 != 0 && (avx512 != XCR0_AVX512 || !(value & XCR0_AVX)));
}

static int op_xsetbv(struct soft_vcpu *v, const struct insn *in)
{
    uint64_t value = v->st.gpr[CPU_RDX] << 32 | (uint32_t)v->st.gpr[CPU_RAX];

    if (!(v->st.cr4 & CR4_OSXSAVE))
        return soft_raise(v, VEC_UD);
    if (cpu_cpl(&v->st) != 0 || (uint32_t)v->st.gpr[CPU_RCX] != 0 || xcr0_is_bad(v, value))
        return soft_raise_error(v, VEC_GP, 0);
    v->st.xcr0 = value;
    v->is_mode_stale = 1;
    return 0;
}

const struct soft_op soft_ops_xsave[] = {
    {ZYDIS_MNEMONIC_FXSAVE, op_fxsave},
    {ZYDIS_MNEMONIC_FXSAVE64, op_fxsave},
    {ZYDIS_MNEMONIC_FXRSTOR, op_fxrstor},
    {ZYDIS_MNEMONIC_FXRSTOR64, op_fxrstor},
    {ZYDIS_MNEMONIC_XSAVE, op_xsave},
    {ZYDIS_MNEMONIC_XSAVE64, op_xsave},
    {ZYDIS_MNEMONIC_XSAVEOPT, op_xsave},
    {ZYDIS_MNEMONIC_XSAVEOPT64, op_xsave},
    {ZYDIS_MNEMONIC_XSAVEC, op_xsavec},
    {ZYDIS_MNEMONIC_XSAVEC64, op_xsavec},
    {ZYDIS_MNEMONIC_XSAVES, op_xsavec},
    {ZYDIS_MNEMONIC_XSAVES64, op_xsavec},
    {ZYDIS_MNEMONIC_XRSTOR, op_xrstor},
    {ZYDIS_MNEMONIC_XRSTOR64, op_xrstor},
    {ZYDIS_MNEMONIC_XRSTORS, op_xrstor},
    {ZYDIS_MNEMONIC_XRSTORS64, op_xrstor},
    {ZYDIS_MNEMONIC_XGETBV, op_xgetbv},
    {ZYDIS_MNEMONIC_XSETBV, op_xsetbv},
    {0, NULL},
};
