/*
 * fpu.c - whose x87 and vector state the host's registers hold, and when an instruction may use it
 *
 * The image in st.xsave is of standard format and always acceptable to XRSTOR: it is only ever
 * written by XSAVE here, or checked by whoever puts it there.
 * Spec: Intel SDM vol. 1, 13.7 and 13.8; vol. 3, 2.5 (CR0) and 13.1 (OSFXSR), table 2-3.
 */
#include "engine/soft/vcpu.h"

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

void soft_fpu_save(struct soft_vcpu *v)
{
    static const uint32_t host_mxcsr = 0x1f80;
    uint8_t *image = v->st.xsave;
    uint64_t mask = v->model->xcr0_valid;

    if (!v->is_fpu_live)
        return;
    if (has_xsave(v))
        __asm__ volatile("xsave64 %0"
                         : "+m"(*(uint8_t(*)[CPU_XSAVE_SIZE])image)
                         : "a"((uint32_t)mask), "d"((uint32_t)(mask >> 32)));
    else
        __asm__ volatile("fxsave64 %0" : "+m"(*(uint8_t(*)[512])image));
    /* host code expects an empty x87 stack and default rounding */
    __asm__ volatile("fninit; ldmxcsr %0" : : "m"(host_mxcsr));
    v->is_fpu_live = false;
    v->stats.fpu_saves++;
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
