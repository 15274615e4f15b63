/*
 * task.c - hardware task switching
 *
 * Invariant: every check of the new TSS and every page that the switch reads or writes comes
 * before the commit point, which is the first store into the old TSS. After it the processor is
 * in the new task, and what fails is a fault of the new task (SDM vol. 3, 7.3).
 *
 * Specification: SDM vol. 3, chapter 7; table 7-1 for the checks and their error codes.
 */
#include "engine/soft/debug.h"
#include "engine/soft/system.h"

/* Offsets within the two formats (SDM vol. 3, figures 7-2 and 7-10). */
#define TSS32_CR3 28
#define TSS32_EIP 32
#define TSS32_EFLAGS 36
#define TSS32_GPR 40
#define TSS32_SEG 72
#define TSS32_LDT 96
#define TSS32_TRAP 100
#define TSS32_LIMIT_MIN 103u
#define TSS16_IP 14
#define TSS16_FLAGS 16
#define TSS16_GPR 18
#define TSS16_SEG 34
#define TSS16_LDT 42
#define TSS16_LIMIT_MIN 43u

/* The dynamic part of a TSS. Segments in the order of enum cpu_seg_index, ES .. GS. */
struct task_image {
    uint32_t cr3, eip, eflags, gpr[8];
    uint16_t seg[6], ldt;
    bool is_debug_trap;
};

static bool task_is_32bit(uint32_t attr)
{
    return (attr & 8) != 0;
}

/* Where the switch stores the old task: within the TSS from its IP to its last segment. */
static int task_probe_old(struct soft_vcpu *v)
{
    const struct cpu_seg *tr = &v->st.seg[CPU_TR];
    bool is_32bit = task_is_32bit(tr->attr);
    unsigned start = is_32bit ? TSS32_EIP : TSS16_IP;
    unsigned end = is_32bit ? TSS32_LDT : TSS16_LDT;

    if (tr->limit < (is_32bit ? TSS32_LIMIT_MIN : TSS16_LIMIT_MIN))
        return soft_raise_error(v, VEC_TS, SOFT_SELECTOR_ERROR(tr->selector));
    return soft_probe(v, (uint32_t)(tr->base + start), end - start, SOFT_WRITE, SOFT_AS_SYSTEM);
}

static int task_store_old(struct soft_vcpu *v, uint64_t eip, uint64_t eflags)
{
    const struct cpu_state *st = &v->st;
    uint32_t base = (uint32_t)st->seg[CPU_TR].base;
    uint8_t image[TSS32_LDT - TSS32_EIP];
    uint8_t *p = image;

    if (task_is_32bit(st->seg[CPU_TR].attr)) {
        store_le32(p, (uint32_t)eip);
        store_le32(p + 4, (uint32_t)eflags);
        for (unsigned i = 0; i < 8; i++)
            store_le32(p + 8 + 4 * i, (uint32_t)st->gpr[i]);
        for (unsigned i = 0; i < 6; i++)
            store_le32(p + TSS32_SEG - TSS32_EIP + 4 * i, st->seg[i].selector);
        return soft_write(v, base + TSS32_EIP, image, TSS32_LDT - TSS32_EIP, SOFT_AS_SYSTEM);
    }
    store_le16(p, (uint16_t)eip);
    store_le16(p + 2, (uint16_t)eflags);
    for (unsigned i = 0; i < 8; i++)
        store_le16(p + 4 + 2 * i, (uint16_t)st->gpr[i]);
    for (unsigned i = 0; i < 4; i++)
        store_le16(p + TSS16_SEG - TSS16_IP + 2 * i, st->seg[i].selector);
    return soft_write(v, base + TSS16_IP, image, TSS16_LDT - TSS16_IP, SOFT_AS_SYSTEM);
}

static int task_load_image(struct soft_vcpu *v, const struct soft_descriptor *tss,
                           struct task_image *t)
{
    uint8_t image[TSS32_LIMIT_MIN + 1];
    const uint8_t *p = image;

    soft_zero(t, sizeof(*t));
    if (task_is_32bit(tss->attr)) {
        if (soft_read(v, tss->base, image, TSS32_LIMIT_MIN + 1, SOFT_AS_SYSTEM))
            return SOFT_FAULT;
        t->cr3 = load_le32(p + TSS32_CR3);
        t->eip = load_le32(p + TSS32_EIP);
        t->eflags = load_le32(p + TSS32_EFLAGS);
        for (unsigned i = 0; i < 8; i++)
            t->gpr[i] = load_le32(p + TSS32_GPR + 4 * i);
        for (unsigned i = 0; i < 6; i++)
            t->seg[i] = load_le16(p + TSS32_SEG + 4 * i);
        t->ldt = load_le16(p + TSS32_LDT);
        t->is_debug_trap = p[TSS32_TRAP] & 1;
        return 0;
    }
    if (soft_read(v, tss->base, image, TSS16_LIMIT_MIN + 1, SOFT_AS_SYSTEM))
        return SOFT_FAULT;
    t->eip = load_le16(p + TSS16_IP);
    t->eflags = load_le16(p + TSS16_FLAGS);
    for (unsigned i = 0; i < 8; i++)
        t->gpr[i] = load_le16(p + TSS16_GPR + 2 * i) | 0xffff0000;
    for (unsigned i = 0; i < 4; i++)
        t->seg[i] = load_le16(p + TSS16_SEG + 2 * i);
    t->ldt = load_le16(p + TSS16_LDT);
    return 0;
}

/* The new TSS's descriptor: present, of the right kind, long enough. */
static int task_check_descriptor(struct soft_vcpu *v, uint16_t selector,
                                 enum soft_task_source source, uint32_t ext,
                                 struct soft_descriptor *tss)
{
    unsigned vector = source == SOFT_TASK_IRET ? VEC_TS : VEC_GP;
    uint32_t error = SOFT_SELECTOR_ERROR(selector) | ext;
    unsigned type, limit_min;

    if (selector & 4)
        return soft_raise_error(v, vector, error);
    if (soft_descriptor_require(v, selector, vector, ext, tss))
        return SOFT_FAULT;
    type = soft_descriptor_type(tss);
    if (tss->attr & SEG_S ||
        (type & ~8u) != (source == SOFT_TASK_IRET ? SOFT_TYPE_TSS16_BUSY : SOFT_TYPE_TSS16))
        return soft_raise_error(v, vector, error);
    if (!(tss->attr & SEG_P))
        return soft_raise_error(v, VEC_NP, error);
    limit_min = task_is_32bit(tss->attr) ? TSS32_LIMIT_MIN : TSS16_LIMIT_MIN;
    if (tss->limit < limit_min)
        return soft_raise_error(v, VEC_TS, error);
    return 0;
}

static int task_fault(struct soft_vcpu *v, unsigned vector, uint16_t selector, uint32_t ext)
{
    return soft_raise_error(v, vector, SOFT_SELECTOR_ERROR(selector) | ext);
}

static int task_load_ldt(struct soft_vcpu *v, uint16_t selector, uint32_t ext)
{
    struct soft_descriptor d;
    bool is_valid;

    if (SOFT_SELECTOR_IS_NULL(selector))
        return 0;
    if (selector & 4)
        return task_fault(v, VEC_TS, selector, ext);
    if (soft_descriptor_read(v, selector, &d, &is_valid))
        return SOFT_FAULT;
    if (!is_valid || (d.attr & SEG_S) || soft_descriptor_type(&d) != SOFT_TYPE_LDT ||
        !(d.attr & SEG_P))
        return task_fault(v, VEC_TS, selector, ext);
    soft_segment_install(v, CPU_LDTR, selector, &d);
    return 0;
}

static int task_load_code(struct soft_vcpu *v, uint16_t selector, uint32_t ext)
{
    unsigned rpl = selector & 3;
    struct soft_descriptor d;
    unsigned dpl;

    if (soft_descriptor_require(v, selector, VEC_TS, ext, &d))
        return SOFT_FAULT;
    dpl = soft_descriptor_dpl(&d);
    if (!soft_descriptor_is_code(&d) ||
        (soft_descriptor_is_conforming(&d) ? dpl > rpl : dpl != rpl))
        return task_fault(v, VEC_TS, selector, ext);
    if (!(d.attr & SEG_P))
        return task_fault(v, VEC_NP, selector, ext);
    if (soft_descriptor_set_accessed(v, &d))
        return SOFT_FAULT;
    soft_segment_install(v, CPU_CS, selector, &d);
    return 0;
}

static int task_load_stack(struct soft_vcpu *v, uint16_t selector, unsigned cpl, uint32_t ext)
{
    struct soft_descriptor d;

    if (soft_inner_stack_check(v, selector, cpl, ext, &d))
        return SOFT_FAULT;
    soft_segment_install(v, CPU_SS, selector, &d);
    return 0;
}

static int task_load_data(struct soft_vcpu *v, unsigned seg, uint16_t selector, unsigned cpl,
                          uint32_t ext)
{
    struct soft_descriptor d;
    bool is_code;

    if (SOFT_SELECTOR_IS_NULL(selector))
        return 0;
    if (soft_descriptor_require(v, selector, VEC_TS, ext, &d))
        return SOFT_FAULT;
    is_code = soft_descriptor_is_code(&d);
    if (!(d.attr & SEG_S) || (is_code && !(d.attr & SEG_TYPE_WRITE_READ)))
        return task_fault(v, VEC_TS, selector, ext);
    if (!(is_code && soft_descriptor_is_conforming(&d)) &&
        soft_descriptor_dpl(&d) < MAX(cpl, selector & 3u))
        return task_fault(v, VEC_TS, selector, ext);
    if (!(d.attr & SEG_P))
        return task_fault(v, VEC_NP, selector, ext);
    if (soft_descriptor_set_accessed(v, &d))
        return SOFT_FAULT;
    soft_segment_install(v, seg, selector, &d);
    return 0;
}

/* Selectors are loaded first, all unusable, so that a fault on the way finds a sane state. */
static void task_load_selectors(struct soft_vcpu *v, const struct task_image *t)
{
    unsigned cpl = t->eflags & RFLAGS_VM ? 3 : t->seg[CPU_CS] & 3;

    for (unsigned i = 0; i < 6; i++)
        soft_segment_install_null(v, i, t->seg[i], i == CPU_SS ? cpl : 0);
    soft_segment_install_null(v, CPU_LDTR, t->ldt, 0);
}

static int task_load_segments(struct soft_vcpu *v, const struct task_image *t, uint32_t ext)
{
    static const uint8_t data_segments[] = {CPU_ES, CPU_DS, CPU_FS, CPU_GS};
    unsigned cpl = t->seg[CPU_CS] & 3;

    if (t->eflags & RFLAGS_VM) {
        for (unsigned i = 0; i < 6; i++)
            soft_segment_install_real(v, i, t->seg[i]);
        return task_load_ldt(v, t->ldt, ext);
    }
    if (task_load_ldt(v, t->ldt, ext) || task_load_code(v, t->seg[CPU_CS], ext) ||
        task_load_stack(v, t->seg[CPU_SS], cpl, ext))
        return SOFT_FAULT;
    for (unsigned i = 0; i < ARRAY_SIZE(data_segments); i++)
        if (task_load_data(v, data_segments[i], t->seg[data_segments[i]], cpl, ext))
            return SOFT_FAULT;
    return 0;
}

/* Everything of the new task that cannot fault. */
static void task_enter(struct soft_vcpu *v, uint16_t selector, const struct soft_descriptor *tss,
                       const struct task_image *t, bool is_nested)
{
    struct cpu_state *st = &v->st;

    soft_segment_install(v, CPU_TR, selector, tss);
    st->seg[CPU_TR].attr |= 2; /* busy */
    for (unsigned i = 0; i < 8; i++)
        st->gpr[i] = t->gpr[i];
    st->rflags =
        (t->eflags & (RFLAGS_STATUS | RFLAGS_TF | RFLAGS_IF | RFLAGS_DF | RFLAGS_IOPL | RFLAGS_NT |
                      RFLAGS_RF | RFLAGS_VM | RFLAGS_AC | RFLAGS_VIF | RFLAGS_VIP | RFLAGS_ID)) |
        RFLAGS_FIXED | (is_nested ? RFLAGS_NT : 0);
    st->rip = t->eip;
    v->next_rip = t->eip;
    st->cr0 |= CR0_TS;
    st->dr7 &= ~UINT64_C(0x155); /* L0..L3 and LE (SDM vol. 3, 17.2.4) */
    soft_debug_changed(v);
    if (t->is_debug_trap)
        st->pending_dbg |= DR6_BT;
    v->is_mode_stale = 1;
}

/* The old TSS loses its busy bit on JMP and IRET, the new one gains it but on IRET. */
static int task_update_busy(struct soft_vcpu *v, enum soft_task_source source,
                            const struct soft_descriptor *tss)
{
    struct soft_descriptor old;
    bool is_valid;

    if (source == SOFT_TASK_JUMP || source == SOFT_TASK_IRET) {
        if (soft_descriptor_read(v, v->st.seg[CPU_TR].selector, &old, &is_valid))
            return SOFT_FAULT;
        if (is_valid && soft_descriptor_set_busy(v, &old, false))
            return SOFT_FAULT;
    }
    return source == SOFT_TASK_IRET ? 0 : soft_descriptor_set_busy(v, tss, true);
}

/* The checks of the new stack and CS come with the new task's privilege. */
static int task_complete(struct soft_vcpu *v, const struct soft_descriptor *tss,
                         const struct task_image *t, uint32_t ext, bool has_error, uint32_t error)
{
    if (task_is_32bit(tss->attr) && (v->st.cr0 & CR0_PG)) {
        if (soft_write_cr3(v, t->cr3)) {
            /* bad PDPTEs: the SDM gives #GP for MOV CR3; here the new TSS is what is wrong */
            return soft_raise_error(v, VEC_TS, SOFT_SELECTOR_ERROR(v->st.seg[CPU_TR].selector));
        }
    }
    task_load_selectors(v, t);
    if (task_load_segments(v, t, ext))
        return SOFT_FAULT;
    if (has_error && soft_push(v, task_is_32bit(tss->attr) ? 4 : 2, error))
        return SOFT_FAULT;
    if (t->eip > v->st.seg[CPU_CS].limit)
        return soft_raise_error(v, VEC_GP, ext);
    return 0;
}

int soft_task_switch(struct soft_vcpu *v, uint16_t tss_selector, enum soft_task_source source,
                     uint64_t saved_eip, uint32_t ext, bool has_error, uint32_t error)
{
    bool is_nested = source == SOFT_TASK_CALL || source == SOFT_TASK_EVENT;
    uint16_t old_selector = v->st.seg[CPU_TR].selector;
    uint64_t old_flags = v->st.rflags;
    struct soft_descriptor tss;
    struct task_image image;

    if (task_check_descriptor(v, tss_selector, source, ext, &tss) || task_probe_old(v) ||
        task_load_image(v, &tss, &image))
        return SOFT_FAULT;
    if (is_nested && soft_probe(v, tss.base, 2, SOFT_WRITE, SOFT_AS_SYSTEM))
        return SOFT_FAULT;
    if (source == SOFT_TASK_IRET)
        old_flags &= ~RFLAGS_NT;

    if (task_update_busy(v, source, &tss) || task_store_old(v, saved_eip, old_flags))
        return SOFT_FAULT;
    if (is_nested && soft_store(v, tss.base, 2, SOFT_AS_SYSTEM, old_selector))
        return SOFT_FAULT;
    task_enter(v, tss_selector, &tss, &image, is_nested);
    return task_complete(v, &tss, &image, ext, has_error, error);
}
