/*
 * segment.c - from a segment and an offset to a linear address; loading data segments
 *
 * In 64-bit mode segments have no limits and, but for FS and GS, no base; what is left is that
 * the linear address must be canonical. Descriptors come from descriptor.c.
 *
 * Specification: SDM vol. 3, 5.3 (limits), 5.4 (types), 5.6 and 5.7 (privileges), 3.4.4 (64-bit
 * mode); vol. 2, MOV to segment register.
 */
#include "engine/soft/segment.h"
#include "engine/soft/system.h"

static __attribute__((cold, noinline)) int segment_fault(struct soft_vcpu *v, unsigned seg)
{
    return soft_raise_error(v, seg == CPU_SS ? VEC_SS : VEC_GP, 0);
}

/* Type rules of protected mode; v86 segments always pass them, real mode has none. */
static inline bool type_allows(const struct cpu_state *st, const struct cpu_seg *s,
                               enum soft_access access)
{
    if (UNLIKELY(s->attr & SEG_UNUSABLE))
        return cpu_is_real(st);
    if (access == SOFT_FETCH)
        return true;
    if (access == SOFT_READ)
        return (s->attr & (SEG_TYPE_CODE | SEG_TYPE_WRITE_READ)) != SEG_TYPE_CODE ||
               cpu_is_real(st);
    return (s->attr & (SEG_TYPE_CODE | SEG_TYPE_WRITE_READ)) == SEG_TYPE_WRITE_READ ||
           cpu_is_real(st);
}

int soft_linear(struct soft_vcpu *v, unsigned seg, uint64_t offset, unsigned size,
                enum soft_access access, gva_t *addr)
{
    const struct cpu_state *st = &v->st;
    const struct cpu_seg *s = &st->seg[seg];

    if (LIKELY(cpu_is_64bit(st))) {
        uint64_t linear = seg >= CPU_FS ? s->base + offset : offset;
        if (UNLIKELY(!soft_is_canonical(v, linear) ||
                     !soft_is_canonical(v, linear + (size != 0 ? size - 1 : 0))))
            return segment_fault(v, seg);
        *addr = linear;
        return 0;
    }
    if (UNLIKELY(!type_allows(st, s, access) || !soft_limit_allows(s, offset, size)))
        return segment_fault(v, seg);
    *addr = (uint32_t)(s->base + offset);
    return 0;
}

static int load_null(struct soft_vcpu *v, unsigned seg, uint16_t selector)
{
    unsigned cpl = cpu_cpl(&v->st);

    if (seg != CPU_SS) {
        soft_segment_install_null(v, seg, selector, 0);
        return 0;
    }
    /* a null SS is for inner levels of 64-bit mode, where it is what interrupts load */
    if (!cpu_is_64bit(&v->st) || cpl == 3 || (selector & 3) != cpl)
        return soft_raise_error(v, VEC_GP, 0);
    soft_segment_install_null(v, seg, selector, cpl);
    return 0;
}

static int check_stack(struct soft_vcpu *v, uint16_t selector, const struct soft_descriptor *d)
{
    unsigned cpl = cpu_cpl(&v->st);
    uint32_t error = SOFT_SELECTOR_ERROR(selector);

    if ((selector & 3) != cpl || !soft_descriptor_is_writable(d) || soft_descriptor_dpl(d) != cpl)
        return soft_raise_error(v, VEC_GP, error);
    if (!(d->attr & SEG_P))
        return soft_raise_error(v, VEC_SS, error);
    return 0;
}

static int check_data(struct soft_vcpu *v, uint16_t selector, const struct soft_descriptor *d)
{
    unsigned cpl = cpu_cpl(&v->st), rpl = selector & 3;
    bool is_code = soft_descriptor_is_code(d);
    uint32_t error = SOFT_SELECTOR_ERROR(selector);

    if (!(d->attr & SEG_S) || (is_code && !(d->attr & SEG_TYPE_WRITE_READ)))
        return soft_raise_error(v, VEC_GP, error);
    if (!(is_code && soft_descriptor_is_conforming(d)) && soft_descriptor_dpl(d) < MAX(cpl, rpl))
        return soft_raise_error(v, VEC_GP, error);
    if (!(d->attr & SEG_P))
        return soft_raise_error(v, VEC_NP, error);
    return 0;
}

int soft_load_segment(struct soft_vcpu *v, unsigned seg, uint16_t selector)
{
    struct soft_descriptor d;

    if (!soft_is_protected(v)) {
        soft_segment_install_real(v, seg, selector);
        return 0;
    }
    if (SOFT_SELECTOR_IS_NULL(selector))
        return load_null(v, seg, selector);
    if (soft_descriptor_require(v, selector, VEC_GP, 0, &d))
        return SOFT_FAULT;
    if (seg == CPU_SS ? check_stack(v, selector, &d) : check_data(v, selector, &d))
        return SOFT_FAULT;
    if (soft_descriptor_set_accessed(v, &d))
        return SOFT_FAULT;
    soft_segment_install(v, seg, selector, &d);
    return 0;
}
