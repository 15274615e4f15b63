/*
 * deliver.c - one event through the interrupt vector table or the IDT
 *
 * Invariant: everything that can fault comes before the first register changes; the frame is
 * written by one call that checks all its pages first. So a nested fault finds the state of the
 * interrupted instruction. (A task gate has a commit point of its own, see task.c.)
 *
 * Specification: SDM vol. 3, 6.10 to 6.14, 20.1.4 and 20.3 (real and virtual-8086 mode), vol. 2,
 * INT n, "Operation".
 */
#include "engine/soft/exception.h"
#include "engine/soft/segment.h"
#include "engine/soft/system.h"

#define FRAME_ITEMS_MAX 10u
#define GATE_TYPE_MASK (SEG_S | SEG_TYPE_MASK)

/* What is pushed, in that order. */
struct frame {
    uint64_t items[FRAME_ITEMS_MAX];
    unsigned count;
    unsigned size; /* bytes of an item: 2, 4, 8 */
};

/* Where it goes, and the state afterwards. */
struct target {
    struct soft_descriptor cs, ss;
    uint16_t cs_selector, ss_selector;
    uint64_t rip;
    uint64_t rsp; /* before the pushes */
    unsigned cpl;
    bool is_stack_switched;
    bool clears_if;
};

static inline void frame_push(struct frame *f, uint64_t value)
{
    f->items[f->count++] = value;
}

static inline uint32_t event_ext(const struct soft_event *ev)
{
    return ev->kind == SOFT_EVENT_SOFTWARE ? 0 : 1;
}

/* Stack pushes are explicit accesses at the new privilege level. */
static inline enum soft_as stack_access(unsigned cpl)
{
    return cpl == 3 ? SOFT_AS_USER : SOFT_AS_KERNEL;
}

/* 16-bit stack pointer that wraps within the frame: item by item, all checked first. */
static int frame_write_wrapped(struct soft_vcpu *v, const struct frame *f, const struct cpu_seg *ss,
                               uint64_t sp, uint64_t mask, unsigned cpl, uint32_t ss_error)
{
    enum soft_as as = stack_access(cpl);

    for (unsigned i = 0; i < f->count; i++) {
        uint64_t offset = (sp - (i + 1) * f->size) & mask;
        if (!soft_limit_allows(ss, offset, f->size))
            return soft_raise_error(v, VEC_SS, ss_error);
        if (soft_probe(v, (uint32_t)(ss->base + offset), f->size, SOFT_WRITE, as))
            return SOFT_FAULT;
    }
    for (unsigned i = 0; i < f->count; i++) {
        uint64_t offset = (sp - (i + 1) * f->size) & mask;
        if (soft_store(v, (uint32_t)(ss->base + offset), f->size, as, f->items[i]))
            return SOFT_FAULT;
    }
    return 0;
}

/* Write the frame below *sp on stack `ss`, all or nothing; *sp is the new stack pointer. */
static int frame_write(struct soft_vcpu *v, const struct frame *f, const struct cpu_seg *ss,
                       uint64_t *sp, unsigned cpl, uint32_t ss_error)
{
    bool is_long = cpu_is_long(&v->st);
    uint64_t mask = is_long ? ~UINT64_C(0) : ss->attr & SEG_DB ? 0xffffffff : 0xffff;
    unsigned total = f->count * f->size;
    uint64_t start = (*sp - total) & mask;
    uint64_t high = *sp & ~mask & 0xffffffff; /* upper half of ESP on a 16-bit stack */
    uint8_t image[FRAME_ITEMS_MAX * 8];
    uint8_t *p = image + total;
    gva_t addr = start;

    if (is_long) {
        if (!soft_is_canonical(v, start) || !soft_is_canonical(v, start + total - 1))
            return soft_raise_error(v, VEC_SS, ss_error);
    } else if ((ss->attr & SEG_UNUSABLE) && !cpu_is_real(&v->st)) {
        return soft_raise_error(v, VEC_SS, ss_error);
    } else if (UNLIKELY(start + total - 1 > mask)) {
        if (frame_write_wrapped(v, f, ss, *sp, mask, cpl, ss_error))
            return SOFT_FAULT;
        *sp = high | start;
        return 0;
    } else {
        if (!soft_limit_allows(ss, start, total))
            return soft_raise_error(v, VEC_SS, ss_error);
        addr = (uint32_t)(ss->base + start);
    }

    if (UNLIKELY(cpl == 3 && (v->st.rflags & RFLAGS_AC) && (v->st.cr0 & CR0_AM) &&
                 (addr & (f->size - 1)) != 0))
        return soft_raise_error(v, VEC_AC, 0);

    for (unsigned i = 0; i < f->count; i++) {
        p -= f->size;
        if (f->size == 8)
            store_le64(p, f->items[i]);
        else if (f->size == 4)
            store_le32(p, (uint32_t)f->items[i]);
        else
            store_le16(p, (uint16_t)f->items[i]);
    }
    /* Pushes fault in their order, from the top, and CR2 shows which one did. */
    for (unsigned done = f->size; done <= total; done += f->size) {
        gva_t item = is_long ? addr + total - done : (uint32_t)(addr + total - done);
        bool is_new_page = done == f->size || (item ^ (item + f->size)) >> 12 != 0;
        if (is_new_page && soft_probe(v, item, f->size, SOFT_WRITE, stack_access(cpl)))
            return SOFT_FAULT;
    }
    if (soft_write(v, addr, image, total, stack_access(cpl)))
        return SOFT_FAULT;
    *sp = high | start;
    return 0;
}

static void frame_push_return(struct frame *f, const struct soft_vcpu *v,
                              const struct soft_event *ev)
{
    const struct cpu_state *st = &v->st;

    frame_push(f, st->rflags | RFLAGS_FIXED | (ev->sets_rf ? RFLAGS_RF : 0));
    frame_push(f, st->seg[CPU_CS].selector);
    frame_push(f, ev->rip);
}

/* The end of every delivery: at the handler, no shadow, awake. */
static void arrive(struct soft_vcpu *v, uint64_t rip, uint64_t cleared_flags)
{
    struct cpu_state *st = &v->st;

    st->rflags &= ~cleared_flags;
    st->rip = rip;
    v->next_rip = rip;
    st->shadow = 0;
    if (st->run_state == CPU_HALTED)
        st->run_state = CPU_RUNNING;
    v->is_mode_stale = 1;
}

/* Real mode (SDM vol. 3, 20.1.4): four-byte vectors, error codes are not pushed. */
static int deliver_real(struct soft_vcpu *v, const struct soft_event *ev)
{
    struct cpu_state *st = &v->st;
    uint64_t sp = st->gpr[CPU_RSP];
    struct frame f;
    uint64_t vector;

    f.count = 0;
    f.size = 2;
    if (ev->vector * 4u + 3 > st->idtr.limit)
        return soft_raise_error(v, VEC_GP, ev->vector * 8u + 2 + event_ext(ev));
    if (soft_load(v, (uint32_t)(st->idtr.base + ev->vector * 4u), 4, SOFT_AS_SYSTEM, &vector))
        return SOFT_FAULT;
    if ((vector & 0xffff) > st->seg[CPU_CS].limit)
        return soft_raise_error(v, VEC_GP, event_ext(ev));
    frame_push_return(&f, v, ev);
    if (frame_write(v, &f, &st->seg[CPU_SS], &sp, 0, event_ext(ev)))
        return SOFT_FAULT;

    st->gpr[CPU_RSP] = sp;
    soft_segment_install_real(v, CPU_CS, (uint16_t)(vector >> 16));
    arrive(v, vector & 0xffff, RFLAGS_IF | RFLAGS_TF | RFLAGS_AC | RFLAGS_RF);
    return 0;
}

/* Read and check the gate of the event's vector. */
static int gate_read(struct soft_vcpu *v, const struct soft_event *ev, struct soft_descriptor *gate)
{
    const struct cpu_state *st = &v->st;
    bool is_long = cpu_is_long(st);
    unsigned size = is_long ? 16 : 8;
    uint32_t offset = ev->vector * size;
    uint32_t error = ev->vector * 8u + 2 + event_ext(ev);
    unsigned type;

    if (offset + size - 1 > st->idtr.limit)
        return soft_raise_error(v, VEC_GP, error);
    gate->addr = is_long ? st->idtr.base + offset : (uint32_t)(st->idtr.base + offset);
    gate->raw[1] = 0;
    if (soft_load(v, gate->addr, 8, SOFT_AS_SYSTEM, &gate->raw[0]) ||
        (is_long && soft_load(v, gate->addr + 8, 8, SOFT_AS_SYSTEM, &gate->raw[1])))
        return SOFT_FAULT;
    gate->base = 0;
    gate->limit = 0;
    gate->attr = (uint32_t)(gate->raw[0] >> 40) & 0xff;

    type = gate->attr & GATE_TYPE_MASK;
    if (type != SOFT_TYPE_INT32 && type != SOFT_TYPE_TRAP32 &&
        (is_long ||
         (type != SOFT_TYPE_INT16 && type != SOFT_TYPE_TRAP16 && type != SOFT_TYPE_TASK_GATE)))
        return soft_raise_error(v, VEC_GP, error);
    if (ev->kind == SOFT_EVENT_SOFTWARE && soft_descriptor_dpl(gate) < cpu_cpl(st))
        return soft_raise_error(v, VEC_GP, error);
    if (!(gate->attr & SEG_P))
        return soft_raise_error(v, VEC_NP, error);
    return 0;
}

/* The handler's code segment and offset. */
static int target_code(struct soft_vcpu *v, const struct soft_descriptor *gate, uint32_t ext,
                       struct target *t)
{
    uint16_t selector = soft_gate_selector(gate);
    uint32_t error = SOFT_SELECTOR_ERROR(selector) | ext;
    unsigned cpl = cpu_cpl(&v->st);

    if (SOFT_SELECTOR_IS_NULL(selector))
        return soft_raise_error(v, VEC_GP, ext);
    if (soft_descriptor_require(v, selector, VEC_GP, ext, &t->cs))
        return SOFT_FAULT;
    if (!soft_descriptor_is_code(&t->cs) || soft_descriptor_dpl(&t->cs) > cpl)
        return soft_raise_error(v, VEC_GP, error);
    if (cpu_is_long(&v->st) && (t->cs.attr & (SEG_L | SEG_DB)) != SEG_L)
        return soft_raise_error(v, VEC_GP, error);
    if (!(t->cs.attr & SEG_P))
        return soft_raise_error(v, VEC_NP, error);
    t->cpl = soft_descriptor_is_conforming(&t->cs) ? cpl : soft_descriptor_dpl(&t->cs);
    if (cpu_is_v86(&v->st) && t->cpl != 0)
        return soft_raise_error(v, VEC_GP, error);
    t->cs_selector = (uint16_t)((selector & ~3u) | t->cpl);

    t->rip = soft_gate_offset(gate);
    if (cpu_is_long(&v->st) ? !soft_is_canonical(v, t->rip) : t->rip > t->cs.limit)
        return soft_raise_error(v, VEC_GP, ext);
    return 0;
}

/* The handler's stack: the current one, an inner one from the TSS, or one of the IST. */
static int target_stack(struct soft_vcpu *v, const struct soft_descriptor *gate, uint32_t ext,
                        struct target *t)
{
    bool is_inner = t->cpl < cpu_cpl(&v->st);
    unsigned ist = cpu_is_long(&v->st) ? (unsigned)bits(gate->raw[0], 34, 32) : 0;

    t->is_stack_switched = is_inner;
    t->ss_selector = v->st.seg[CPU_SS].selector;
    t->rsp = v->st.gpr[CPU_RSP];
    if (ist != 0) {
        /* IST n lies where RSP(n + 3) would */
        if (soft_tss_stack(v, ist + 3, ext, &t->ss_selector, &t->rsp))
            return SOFT_FAULT;
        t->ss_selector = (uint16_t)t->cpl;
    } else if (is_inner) {
        if (soft_tss_stack(v, t->cpl, ext, &t->ss_selector, &t->rsp))
            return SOFT_FAULT;
        if (!cpu_is_long(&v->st)) {
            if (SOFT_SELECTOR_IS_NULL(t->ss_selector))
                return soft_raise_error(v, VEC_TS, ext);
            return soft_inner_stack_check(v, t->ss_selector, t->cpl, ext, &t->ss);
        }
    }
    if (cpu_is_long(&v->st))
        t->rsp &= ~UINT64_C(15);
    return 0;
}

static void frame_build(const struct soft_vcpu *v, const struct soft_event *ev,
                        const struct target *t, struct frame *f)
{
    const struct cpu_state *st = &v->st;

    f->count = 0;
    if (cpu_is_v86(st)) {
        frame_push(f, st->seg[CPU_GS].selector);
        frame_push(f, st->seg[CPU_FS].selector);
        frame_push(f, st->seg[CPU_DS].selector);
        frame_push(f, st->seg[CPU_ES].selector);
    }
    if (t->is_stack_switched || cpu_is_long(st)) {
        frame_push(f, st->seg[CPU_SS].selector);
        frame_push(f, st->gpr[CPU_RSP]);
    }
    frame_push_return(f, v, ev);
    if (ev->has_error)
        frame_push(f, ev->error);
}

static int target_write_frame(struct soft_vcpu *v, const struct frame *f, struct target *t,
                              uint32_t ext)
{
    struct cpu_seg ss = v->st.seg[CPU_SS];
    uint32_t ss_error = ext;

    if (t->is_stack_switched && !cpu_is_long(&v->st)) {
        ss.attr = t->ss.attr;
        ss.limit = t->ss.limit;
        ss.base = t->ss.base;
        ss_error |= SOFT_SELECTOR_ERROR(t->ss_selector);
    }
    return frame_write(v, f, &ss, &t->rsp, t->cpl, ss_error);
}

static void target_enter(struct soft_vcpu *v, const struct target *t)
{
    static const uint8_t data_segments[] = {CPU_ES, CPU_DS, CPU_FS, CPU_GS};
    struct cpu_state *st = &v->st;

    if (t->is_stack_switched) {
        if (cpu_is_long(st))
            soft_segment_install_null(v, CPU_SS, (uint16_t)t->cpl, t->cpl);
        else
            soft_segment_install(v, CPU_SS, t->ss_selector, &t->ss);
    }
    if (cpu_is_v86(st))
        for (unsigned i = 0; i < ARRAY_SIZE(data_segments); i++)
            soft_segment_install_null(v, data_segments[i], 0, 0);
    soft_segment_install(v, CPU_CS, t->cs_selector, &t->cs);
    st->gpr[CPU_RSP] = t->rsp;
    arrive(v, t->rip,
           RFLAGS_TF | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM | (t->clears_if ? RFLAGS_IF : 0));
}

static int deliver_task(struct soft_vcpu *v, const struct soft_event *ev, uint16_t selector)
{
    struct cpu_state *st = &v->st;
    uint64_t flags = st->rflags;
    uint16_t task = st->seg[CPU_TR].selector;

    /* the flags of the interrupted task go into its TSS, with RF as they would into a frame */
    if (ev->sets_rf)
        st->rflags |= RFLAGS_RF;
    if (soft_task_switch(v, selector, SOFT_TASK_EVENT, ev->rip, event_ext(ev), ev->has_error,
                         ev->error)) {
        if (st->seg[CPU_TR].selector == task)
            st->rflags = flags;
        return SOFT_FAULT;
    }
    arrive(v, v->next_rip, 0);
    return 0;
}

int soft_deliver(struct soft_vcpu *v, const struct soft_event *ev)
{
    uint32_t ext = event_ext(ev);
    struct soft_descriptor gate;
    struct target t;
    struct frame f;
    unsigned type;

    if (cpu_is_real(&v->st))
        return deliver_real(v, ev);
    if (gate_read(v, ev, &gate))
        return SOFT_FAULT;
    type = soft_descriptor_type(&gate);
    if (type == SOFT_TYPE_TASK_GATE)
        return deliver_task(v, ev, soft_gate_selector(&gate));
    if (target_code(v, &gate, ext, &t) || target_stack(v, &gate, ext, &t) ||
        soft_descriptor_set_accessed(v, &t.cs))
        return SOFT_FAULT;

    t.clears_if = type == SOFT_TYPE_INT16 || type == SOFT_TYPE_INT32;
    f.size = cpu_is_long(&v->st) ? 8 : type & 8 ? 4 : 2;
    frame_build(v, ev, &t, &f);
    if (target_write_frame(v, &f, &t, ext))
        return SOFT_FAULT;
    target_enter(v, &t);
    return 0;
}
