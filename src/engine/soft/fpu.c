/*
 * fpu.c - whose x87 and vector state the host's registers hold, and when an instruction may use it
 *
 * The image in st.xsave is of standard format and always acceptable to XRSTOR: it is only ever
 * written by XSAVE here, or checked by whoever puts it there.
 * Spec: Intel SDM vol. 1, 13.7 and 13.8; vol. 3, 2.5 (CR0) and 13.1 (OSFXSR), table 2-3.
 */
#include <Zydis/Zydis.h>

#include "engine/soft/fpu_state.h"

/* Components that exist for the guest, whatever XCR0 it has set. Hosts without XSAVE: x87, SSE. */
static bool has_xsave(const struct soft_vcpu *v)
{
    return v->model->xcr0_valid != 0;
}

void soft_fpu_load(struct soft_vcpu *v)
{
    uint8_t *image = v->st.xsave;
    uint64_t mask = v->model->xcr0_valid;

    if (has_xsave(v))
        __asm__ volatile("xrstor64 %0"
                         :
                         : "m"(*(uint8_t(*)[CPU_XSAVE_SIZE])image), "a"((uint32_t)mask),
                           "d"((uint32_t)(mask >> 32)));
    else
        __asm__ volatile("fxrstor64 %0" : : "m"(*(uint8_t(*)[512])image));
    v->is_fpu_live = true;
    v->stats.fpu_loads++;
}

/*
 * What XSAVE stored of the last x87 instruction is the host's view. The guest's own, which the
 * image holds all the time, is put back; where x87 is in its initial state there is none.
 */
static void put_pointers_back(struct soft_vcpu *v, uint16_t fop, uint64_t fip, uint64_t fdp)
{
    uint8_t *image = v->st.xsave;
    bool is_init = has_xsave(v) && !(load_le64(image + FPU_XSTATE_BV) & XCR0_X87);

    store_le16(image + FPU_FOP, is_init ? 0 : fop);
    store_le64(image + FPU_FIP, is_init ? 0 : fip);
    store_le64(image + FPU_FDP, is_init ? 0 : fdp);
}

void soft_fpu_save(struct soft_vcpu *v)
{
    static const uint32_t host_mxcsr = FPU_MXCSR_INIT;
    uint8_t *image = v->st.xsave;
    uint64_t mask = v->model->xcr0_valid;

    if (!v->is_fpu_live)
        return;
    uint16_t fop = load_le16(image + FPU_FOP);
    uint64_t fip = load_le64(image + FPU_FIP), fdp = load_le64(image + FPU_FDP);
    if (has_xsave(v))
        __asm__ volatile("xsave64 %0"
                         : "+m"(*(uint8_t(*)[CPU_XSAVE_SIZE])image)
                         : "a"((uint32_t)mask), "d"((uint32_t)(mask >> 32)));
    else
        __asm__ volatile("fxsave64 %0" : "+m"(*(uint8_t(*)[512])image));
    put_pointers_back(v, fop, fip, fdp);
    /* host code expects an empty x87 stack, default rounding, and clean upper halves */
    __asm__ volatile("fninit; ldmxcsr %0" : : "m"(host_mxcsr));
    if (mask & XCR0_AVX)
        __asm__ volatile("vzeroupper");
    v->is_fpu_live = false;
    v->stats.fpu_saves++;
}

uint8_t *soft_fpu_image(struct soft_vcpu *v)
{
    uint8_t *image = v->st.xsave;
    uint64_t in_use;

    soft_fpu_save(v);
    if (!has_xsave(v))
        store_le64(image + FPU_XSTATE_BV, XCR0_X87 | XCR0_SSE);
    in_use = load_le64(image + FPU_XSTATE_BV);
    /* an image that came from elsewhere need not hold the bytes of what is in its initial state */
    if (!(in_use & XCR0_X87)) {
        soft_zero(image, FPU_MXCSR);
        soft_zero(image + FPU_ST, 128);
        store_le16(image + FPU_FCW, FPU_FCW_INIT);
    }
    if (!(in_use & XCR0_SSE))
        soft_zero(image + FPU_XMM, FPU_XMM_END - FPU_XMM);
    for (unsigned i = 2; i < FPU_COMP_COUNT; i++)
        if ((v->model->xcr0_valid & ~in_use) >> i & 1)
            soft_zero(image + v->model->xsave_offset[i], v->model->xsave_component_size[i]);
    return image;
}

uint8_t *soft_fpu_vector(struct soft_vcpu *v, unsigned n, unsigned part)
{
    const uint32_t *offset = v->model->xsave_offset;

    if (n >= 16)
        return v->st.xsave + offset[FPU_COMP_HI16_ZMM] + 64 * (n - 16) + 16 * part;
    switch (part) {
    case 0:
        return v->st.xsave + FPU_XMM + 16 * n;
    case 1:
        return v->st.xsave + offset[FPU_COMP_AVX] + 16 * n;
    default:
        return v->st.xsave + offset[FPU_COMP_ZMM_HI256] + 32 * n + 16 * (part - 2);
    }
}

void soft_fpu_vector_mark(struct soft_vcpu *v, unsigned n, unsigned size)
{
    if (n >= 16) {
        soft_fpu_image_mark(v, FPU_COMP_HI16_ZMM);
        return;
    }
    soft_fpu_image_mark(v, FPU_COMP_SSE);
    if (size > 16)
        soft_fpu_image_mark(v, FPU_COMP_AVX);
    if (size > 32)
        soft_fpu_image_mark(v, FPU_COMP_ZMM_HI256);
}

bool soft_fpu_is_pending(struct soft_vcpu *v)
{
    uint16_t fsw;

    if (!v->is_fpu_live)
        soft_fpu_load(v);
    __asm__ volatile("fnstsw %0" : "=a"(fsw));
    return fsw & FPU_FSW_ES;
}

int soft_fpu_operand(struct soft_vcpu *v, const struct insn *in, unsigned size, unsigned first,
                     unsigned piece_size, enum soft_access access, gva_t *addr)
{
    const struct cpu_seg *seg = &v->st.seg[in->seg];
    uint64_t offset = soft_effective_address(v, in);
    gva_t piece;

    if (LIKELY(in->mode == 8 || seg->limit != UINT32_MAX || offset + size - 1 <= UINT32_MAX))
        return soft_operand_address(v, in, size, access, addr);
    if (soft_linear(v, in->seg, (uint32_t)(offset + first), piece_size, access, &piece))
        return SOFT_FAULT;
    if (UNLIKELY(v->is_ac_set) && (piece & (piece_size - 1)))
        return soft_raise_error(v, VEC_AC, 0);
    if (soft_probe(v, piece, 1, access, SOFT_AS_CPL))
        return SOFT_FAULT;
    return soft_operand_address(v, in, size, access, addr);
}

/* Control instructions leave the pointers alone (SDM vol. 1, 8.1.8). */
bool soft_fpu_sets_pointers(const struct insn *in)
{
    switch (in->op) {
    case ZYDIS_MNEMONIC_FNCLEX:
    case ZYDIS_MNEMONIC_FNINIT:
    case ZYDIS_MNEMONIC_FLDCW:
    case ZYDIS_MNEMONIC_FNSTCW:
    case ZYDIS_MNEMONIC_FNSTSW:
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FLDENV:
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FRSTOR:
        return false;
    default:
        return in->opcode >= 0xd8 && in->opcode <= 0xdf;
    }
}

void soft_fpu_note_x87(struct soft_vcpu *v, const struct insn *in)
{
    uint8_t *image = v->st.xsave;
    bool has_selectors = in->mode != 8 && !cpu_model_has(v->model, CPU_FEATURE_ZERO_FCS_FDS);
    uint64_t cs = has_selectors ? v->st.seg[CPU_CS].selector : 0;

    if (in->op == ZYDIS_MNEMONIC_FNINIT) {
        store_le16(image + FPU_FOP, 0);
        store_le64(image + FPU_FIP, 0);
        store_le64(image + FPU_FDP, 0);
        return;
    }
    if (!soft_fpu_sets_pointers(in))
        return;
    store_le16(image + FPU_FOP, (uint16_t)((in->opcode & 7) << 8 | in->modrm));
    store_le64(image + FPU_FIP, in->mode == 8 ? v->st.rip : (uint32_t)v->st.rip | cs << 32);
    if (in->has_mem) {
        uint64_t offset = soft_effective_address(v, in);
        uint64_t ds = has_selectors ? v->st.seg[in->seg].selector : 0;
        store_le64(image + FPU_FDP, in->mode == 8 ? offset : (uint32_t)offset | ds << 32);
    }
}

static int check_x87(struct soft_vcpu *v)
{
    return v->st.cr0 & (CR0_EM | CR0_TS) ? soft_raise(v, VEC_NM) : 0;
}

static int check_ts(struct soft_vcpu *v)
{
    return v->st.cr0 & CR0_TS ? soft_raise(v, VEC_NM) : 0;
}

int soft_fpu_check(struct soft_vcpu *v, unsigned unit)
{
    const struct cpu_state *st = &v->st;
    bool has_vex = !cpu_is_real(st) && !cpu_is_v86(st);

    switch (unit) {
    case INSN_UNIT_X87:
        return check_x87(v);
    case INSN_UNIT_WAIT:
        return (st->cr0 & (CR0_MP | CR0_TS)) == (CR0_MP | CR0_TS) ? soft_raise(v, VEC_NM) : 0;
    case INSN_UNIT_MMX:
        return st->cr0 & CR0_EM ? soft_raise(v, VEC_UD) : check_ts(v);
    case INSN_UNIT_SSE:
        if ((st->cr0 & CR0_EM) || !(st->cr4 & CR4_OSFXSR))
            return soft_raise(v, VEC_UD);
        return check_ts(v);
    case INSN_UNIT_AVX:
        if (!has_vex || !(st->cr4 & CR4_OSXSAVE) || bits(st->xcr0, 2, 1) != 3)
            return soft_raise(v, VEC_UD);
        return check_ts(v);
    case INSN_UNIT_AVX512:
    case INSN_UNIT_MASK:
        if (!has_vex || !(st->cr4 & CR4_OSXSAVE) || bits(st->xcr0, 2, 1) != 3 ||
            (st->xcr0 & XCR0_AVX512) != XCR0_AVX512)
            return soft_raise(v, VEC_UD);
        return check_ts(v);
    case INSN_UNIT_VEX_INT:
        return has_vex ? 0 : soft_raise(v, VEC_UD);
    default:
        return 0;
    }
}
