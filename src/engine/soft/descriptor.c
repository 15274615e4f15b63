/*
 * descriptor.c - descriptor tables, hidden parts of segment registers, stacks from the TSS
 *
 * Table accesses are implicit supervisor accesses whatever the CPL (SDM vol. 3, 4.6).
 * Specification: SDM vol. 3, chapter 3 and 5.8; AMD64 APM vol. 2, chapter 4.
 */
#include "engine/soft/system.h"

static void descriptor_parse(struct soft_descriptor *d)
{
    uint64_t raw = d->raw[0];
    uint32_t limit = (uint32_t)((raw & 0xffff) | bits(raw, 51, 48) << 16);

    d->attr = (uint32_t)(raw >> 40) & 0xf0ff;
    d->limit = d->attr & SEG_G ? limit << 12 | 0xfff : limit;
    d->base = bits(raw, 39, 16) | bits(raw, 63, 56) << 24;
    if (!(d->attr & SEG_S))
        d->base |= d->raw[1] << 32;
}

int soft_descriptor_read(struct soft_vcpu *v, uint16_t selector, struct soft_descriptor *d,
                         bool *is_valid)
{
    const struct cpu_state *st = &v->st;
    uint64_t base = st->gdtr.base;
    uint32_t limit = st->gdtr.limit;
    uint32_t offset = selector & 0xfff8u;

    *is_valid = false;
    d->raw[1] = 0;
    if (SOFT_SELECTOR_IS_NULL(selector))
        return 0;
    if (selector & 4) {
        const struct cpu_seg *ldt = &st->seg[CPU_LDTR];
        if ((ldt->attr & SEG_UNUSABLE) || !(ldt->attr & SEG_P))
            return 0;
        base = ldt->base;
        limit = ldt->limit;
    }
    if (offset + 7 > limit)
        return 0;

    d->addr = base + offset;
    if (!cpu_is_long(st))
        d->addr &= 0xffffffff;
    if (soft_load(v, d->addr, 8, SOFT_AS_SYSTEM, &d->raw[0]))
        return SOFT_FAULT;
    if (cpu_is_long(st) && !((d->raw[0] >> 40) & SEG_S)) {
        unsigned type = (unsigned)(d->raw[0] >> 40) & SEG_TYPE_MASK;
        if (type == SOFT_TYPE_LDT || type == SOFT_TYPE_TSS32 || type == SOFT_TYPE_TSS32_BUSY ||
            type == SOFT_TYPE_CALL32) {
            if (offset + 15 > limit)
                return 0;
            if (soft_load(v, d->addr + 8, 8, SOFT_AS_SYSTEM, &d->raw[1]))
                return SOFT_FAULT;
        }
    }
    descriptor_parse(d);
    *is_valid = true;
    return 0;
}

int soft_descriptor_require(struct soft_vcpu *v, uint16_t selector, unsigned vector, uint32_t ext,
                            struct soft_descriptor *d)
{
    bool is_valid;

    if (soft_descriptor_read(v, selector, d, &is_valid))
        return SOFT_FAULT;
    if (!is_valid)
        return soft_raise_error(v, vector, SOFT_SELECTOR_ERROR(selector) | ext);
    return 0;
}

/* Atomically or/and-not the type byte of a descriptor: other CPUs share the tables. */
static int descriptor_update(struct soft_vcpu *v, gva_t addr, uint8_t set, uint8_t clear)
{
    struct soft_place place;
    uint64_t value;

    if (soft_translate(v, addr, SOFT_RMW, SOFT_AS_SYSTEM, &place))
        return SOFT_FAULT;
    if (place.host == NULL) {
        if (soft_load(v, addr, 1, SOFT_AS_SYSTEM, &value))
            return SOFT_FAULT;
        return soft_store(v, addr, 1, SOFT_AS_SYSTEM, (value | set) & ~(uint64_t)clear);
    }
    if (set != 0)
        __atomic_fetch_or(place.host, set, __ATOMIC_SEQ_CST);
    if (clear != 0)
        __atomic_fetch_and(place.host, (uint8_t)~clear, __ATOMIC_SEQ_CST);
    if (place.is_code_page)
        soft_code_written(v, place.gpa, 1);
    return 0;
}

int soft_descriptor_set_accessed(struct soft_vcpu *v, struct soft_descriptor *d)
{
    if (d->attr & SEG_TYPE_ACCESSED)
        return 0;
    if (descriptor_update(v, d->addr + 5, SEG_TYPE_ACCESSED, 0))
        return SOFT_FAULT;
    d->attr |= SEG_TYPE_ACCESSED;
    return 0;
}

int soft_descriptor_set_busy(struct soft_vcpu *v, const struct soft_descriptor *d, bool is_busy)
{
    return descriptor_update(v, d->addr + 5, is_busy ? 2 : 0, is_busy ? 0 : 2);
}

void soft_segment_install(struct soft_vcpu *v, unsigned seg, uint16_t selector,
                          const struct soft_descriptor *d)
{
    struct cpu_seg *s = &v->st.seg[seg];

    s->selector = selector;
    s->attr = d->attr;
    s->limit = d->limit;
    s->base = d->base;
    v->is_mode_stale = 1;
}

void soft_segment_install_real(struct soft_vcpu *v, unsigned seg, uint16_t selector)
{
    struct cpu_seg *s = &v->st.seg[seg];

    s->selector = selector;
    s->base = (uint64_t)selector << 4;
    if (cpu_is_v86(&v->st)) {
        s->limit = 0xffff;
        s->attr = 3 | SEG_S | SEG_P | 3 << SEG_DPL_SHIFT; /* writable data, accessed, DPL 3 */
    } else {
        /* limit and granularity stay ("unreal" mode); the rest is what real mode implies */
        s->attr &= ~SEG_UNUSABLE;
        if (seg == CPU_CS)
            s->attr = (s->attr & ~(uint32_t)SEG_DPL) | SEG_P;
    }
    v->is_mode_stale = 1;
}

void soft_segment_install_null(struct soft_vcpu *v, unsigned seg, uint16_t selector, unsigned dpl)
{
    struct cpu_seg *s = &v->st.seg[seg];

    /* the base goes as well: FS and GS show it in 64-bit mode (CPUID's NULL_SEL_CLR_BASE) */
    s->selector = selector;
    s->base = 0;
    s->limit = 0;
    s->attr = SEG_UNUSABLE | dpl << SEG_DPL_SHIFT;
    v->is_mode_stale = 1;
}

void soft_segment_install_flat_code(struct soft_vcpu *v, uint16_t selector, unsigned dpl,
                                    bool is_64bit)
{
    struct cpu_seg *s = &v->st.seg[CPU_CS];

    s->selector = selector;
    s->base = 0;
    s->limit = 0xffffffff;
    s->attr = 0xb | SEG_S | SEG_P | SEG_G | dpl << SEG_DPL_SHIFT | (is_64bit ? SEG_L : SEG_DB);
    v->is_mode_stale = 1;
}

void soft_segment_install_flat_stack(struct soft_vcpu *v, uint16_t selector, unsigned dpl)
{
    struct cpu_seg *s = &v->st.seg[CPU_SS];

    s->selector = selector;
    s->base = 0;
    s->limit = 0xffffffff;
    s->attr = 3 | SEG_S | SEG_P | SEG_G | SEG_DB | dpl << SEG_DPL_SHIFT;
    v->is_mode_stale = 1;
}

void soft_segments_drop_inaccessible(struct soft_vcpu *v)
{
    static const uint8_t data_segments[] = {CPU_ES, CPU_DS, CPU_FS, CPU_GS};
    unsigned cpl = cpu_cpl(&v->st);

    for (unsigned i = 0; i < ARRAY_SIZE(data_segments); i++) {
        struct cpu_seg *s = &v->st.seg[data_segments[i]];
        bool is_conforming = (s->attr & (SEG_TYPE_CODE | SEG_TYPE_DOWN_CONFORM)) ==
                             (SEG_TYPE_CODE | SEG_TYPE_DOWN_CONFORM);
        if ((s->attr & SEG_UNUSABLE) || is_conforming)
            continue;
        if ((s->attr & SEG_DPL) >> SEG_DPL_SHIFT < cpl)
            soft_segment_install_null(v, data_segments[i], 0, 0);
    }
}

/* RSPn of the 64-bit TSS (SDM vol. 3, figure 7-11). */
static int tss_stack_long(struct soft_vcpu *v, unsigned dpl, uint32_t ext, uint64_t *sp)
{
    const struct cpu_seg *tr = &v->st.seg[CPU_TR];
    uint32_t offset = 4 + 8 * dpl;

    if (offset + 7 > tr->limit)
        return soft_raise_error(v, VEC_TS, SOFT_SELECTOR_ERROR(tr->selector) | ext);
    if (soft_load(v, tr->base + offset, 8, SOFT_AS_SYSTEM, sp))
        return SOFT_FAULT;
    if (!soft_is_canonical(v, *sp))
        return soft_raise_error(v, VEC_SS, ext);
    return 0;
}

int soft_tss_stack(struct soft_vcpu *v, unsigned dpl, uint32_t ext, uint16_t *ss, uint64_t *sp)
{
    const struct cpu_seg *tr = &v->st.seg[CPU_TR];
    bool is_32bit = (tr->attr & SEG_TYPE_MASK) >= SOFT_TYPE_TSS32;
    unsigned size = is_32bit ? 4 : 2;
    uint32_t offset = is_32bit ? 4 + 8 * dpl : 2 + 4 * dpl;
    uint64_t value;

    if (cpu_is_long(&v->st)) {
        *ss = (uint16_t)dpl;
        return tss_stack_long(v, dpl, ext, sp);
    }
    if (offset + size + 1 > tr->limit)
        return soft_raise_error(v, VEC_TS, SOFT_SELECTOR_ERROR(tr->selector) | ext);
    if (soft_load(v, (uint32_t)(tr->base + offset), size, SOFT_AS_SYSTEM, sp) ||
        soft_load(v, (uint32_t)(tr->base + offset + size), 2, SOFT_AS_SYSTEM, &value))
        return SOFT_FAULT;
    *ss = (uint16_t)value;
    return 0;
}

int soft_inner_stack_check(struct soft_vcpu *v, uint16_t ss, unsigned dpl, uint32_t ext,
                           struct soft_descriptor *d)
{
    uint32_t error = SOFT_SELECTOR_ERROR(ss) | ext;

    if (soft_descriptor_require(v, ss, VEC_TS, ext, d))
        return SOFT_FAULT;
    if ((ss & 3) != dpl || soft_descriptor_dpl(d) != dpl || !soft_descriptor_is_writable(d))
        return soft_raise_error(v, VEC_TS, error);
    if (!(d->attr & SEG_P))
        return soft_raise_error(v, VEC_SS, error);
    return soft_descriptor_set_accessed(v, d);
}
