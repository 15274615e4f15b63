/*
 * iret.c - IRET in every mode
 *
 * Invariant: everything is popped into locals and checked before the first register changes.
 * The one exception is NMI blocking, which IRET ends even when it faults (SDM vol. 3, 26.3).
 *
 * Specification: SDM vol. 2, IRET; vol. 3, 21.2 (virtual-8086 mode); AMD64 APM vol. 3.
 */
#include "engine/soft/system.h"

/* Flags that every IRET may change, and those that come with a 32- or 64-bit image. */
#define IRET_FLAGS_16 (RFLAGS_STATUS | RFLAGS_TF | RFLAGS_DF | RFLAGS_NT)
#define IRET_FLAGS_32 (RFLAGS_RF | RFLAGS_AC | RFLAGS_ID)

struct iret_frame {
    uint64_t rip, rflags;
    uint16_t cs;
};

static int iret_pop_frame(struct soft_vcpu *v, unsigned size, struct iret_frame *frame)
{
    uint64_t cs;

    if (soft_return_peek(v, 0, size, &frame->rip) || soft_return_peek(v, size, size, &cs) ||
        soft_return_peek(v, 2 * size, size, &frame->rflags))
        return SOFT_FAULT;
    frame->cs = (uint16_t)cs;
    return 0;
}

static void iret_set_flags(struct soft_vcpu *v, uint64_t value, uint64_t mask)
{
    v->st.rflags = (v->st.rflags & ~mask) | (value & mask) | RFLAGS_FIXED;
    v->is_mode_stale = 1;
}

/* rSP += n within the stack's width, before CS or SS change. */
static void iret_release(struct soft_vcpu *v, uint64_t n)
{
    uint64_t mask = mask_bytes(cpu_stack_size(&v->st));
    uint64_t rsp = v->st.gpr[CPU_RSP];

    if (cpu_stack_size(&v->st) == 4)
        v->st.gpr[CPU_RSP] = (uint32_t)(rsp + n);
    else
        v->st.gpr[CPU_RSP] = (rsp & ~mask) | ((rsp + n) & mask);
}

/* Real mode, and virtual-8086 mode with IOPL 3. */
static int iret_real(struct soft_vcpu *v, unsigned size, uint64_t flags_mask)
{
    struct iret_frame frame;

    if (iret_pop_frame(v, size, &frame))
        return SOFT_FAULT;
    if (frame.rip > v->st.seg[CPU_CS].limit)
        return soft_raise_error(v, VEC_GP, 0);
    iret_release(v, 3 * size);
    soft_segment_install_real(v, CPU_CS, frame.cs);
    iret_set_flags(v, frame.rflags, flags_mask);
    v->next_rip = frame.rip;
    return 0;
}

/* Virtual-8086 mode with IOPL below 3: only with VME, and then IF is VIF (SDM vol. 3, 21.3). */
static int iret_vme(struct soft_vcpu *v, unsigned size)
{
    struct iret_frame frame;

    if (!(v->st.cr4 & CR4_VME) || size != 2)
        return soft_raise_error(v, VEC_GP, 0);
    if (iret_pop_frame(v, size, &frame))
        return SOFT_FAULT;
    if ((frame.rflags & RFLAGS_TF) || ((frame.rflags & RFLAGS_IF) && (v->st.rflags & RFLAGS_VIP)))
        return soft_raise_error(v, VEC_GP, 0);
    if (frame.rip > v->st.seg[CPU_CS].limit)
        return soft_raise_error(v, VEC_GP, 0);
    iret_release(v, 3 * size);
    soft_segment_install_real(v, CPU_CS, frame.cs);
    if (frame.rflags & RFLAGS_IF)
        frame.rflags |= RFLAGS_VIF;
    else
        frame.rflags &= ~RFLAGS_VIF;
    iret_set_flags(v, frame.rflags, IRET_FLAGS_16 | RFLAGS_VIF);
    v->next_rip = frame.rip;
    return 0;
}

/* NT set: back to the task that the current TSS links to. */
static int iret_task(struct soft_vcpu *v)
{
    const struct cpu_seg *tr = &v->st.seg[CPU_TR];
    uint64_t link;

    if (tr->limit < 1)
        return soft_raise_error(v, VEC_TS, SOFT_SELECTOR_ERROR(tr->selector));
    if (soft_load(v, (uint32_t)tr->base, 2, SOFT_AS_SYSTEM, &link))
        return SOFT_FAULT;
    return soft_task_switch(v, (uint16_t)link, SOFT_TASK_IRET, v->next_rip, 0, false, 0);
}

/* CPL 0 with VM set in a 32-bit image: to virtual-8086 mode. */
static int iret_to_v86(struct soft_vcpu *v, const struct iret_frame *frame)
{
    static const uint8_t order[] = {CPU_SS, CPU_ES, CPU_DS, CPU_FS, CPU_GS};
    uint16_t selectors[ARRAY_SIZE(order)];
    uint64_t esp, value;

    if (soft_return_peek(v, 12, 4, &esp))
        return SOFT_FAULT;
    for (unsigned i = 0; i < ARRAY_SIZE(order); i++) {
        if (soft_return_peek(v, 16 + 4 * i, 4, &value))
            return SOFT_FAULT;
        selectors[i] = (uint16_t)value;
    }
    if (frame->rip > 0xffff)
        return soft_raise_error(v, VEC_GP, 0);

    iret_set_flags(v, frame->rflags,
                   IRET_FLAGS_16 | IRET_FLAGS_32 | RFLAGS_IF | RFLAGS_IOPL | RFLAGS_VM |
                       RFLAGS_VIF | RFLAGS_VIP);
    soft_segment_install_real(v, CPU_CS, frame->cs);
    for (unsigned i = 0; i < ARRAY_SIZE(order); i++)
        soft_segment_install_real(v, order[i], selectors[i]);
    v->st.gpr[CPU_RSP] = (uint32_t)esp;
    v->next_rip = frame->rip;
    return 0;
}

/* Which flags a return from privilege `cpl` may change (SDM vol. 2, IRET). */
static uint64_t iret_flags_mask(const struct soft_vcpu *v, unsigned cpl, unsigned size)
{
    uint64_t mask = IRET_FLAGS_16;
    unsigned iopl = (unsigned)(v->st.rflags & RFLAGS_IOPL) >> RFLAGS_IOPL_SHIFT;

    if (size != 2)
        mask |= IRET_FLAGS_32;
    if (cpl <= iopl)
        mask |= RFLAGS_IF;
    if (cpl == 0) {
        mask |= RFLAGS_IOPL;
        if (size != 2)
            mask |= RFLAGS_VIF | RFLAGS_VIP;
    }
    return mask;
}

static int iret_protected(struct soft_vcpu *v, unsigned size)
{
    unsigned cpl = cpu_cpl(&v->st);
    bool has_stack = cpu_is_64bit(&v->st); /* 64-bit mode pops SS:RSP always */
    struct soft_descriptor cs, ss;
    struct iret_frame frame;
    uint64_t sp = 0, ss_selector = 0, mask;
    unsigned rpl;

    if (iret_pop_frame(v, size, &frame))
        return SOFT_FAULT;
    if (size == 4 && (frame.rflags & RFLAGS_VM) && cpl == 0 && !cpu_is_long(&v->st))
        return iret_to_v86(v, &frame);

    if (soft_return_code_check(v, frame.cs, &cs))
        return SOFT_FAULT;
    rpl = frame.cs & 3;
    has_stack = has_stack || rpl != cpl;
    if (has_stack) {
        if (soft_return_peek(v, 3 * size, size, &sp) ||
            soft_return_peek(v, 4 * size, size, &ss_selector))
            return SOFT_FAULT;
        if (soft_return_stack_check(v, (uint16_t)ss_selector, rpl, &cs, &ss))
            return SOFT_FAULT;
    }
    if (soft_code_offset_check(v, &cs, frame.rip) || soft_descriptor_set_accessed(v, &cs))
        return SOFT_FAULT;

    mask = iret_flags_mask(v, cpl, size);
    if (!has_stack)
        iret_release(v, 3 * size);
    soft_segment_install(v, CPU_CS, frame.cs, &cs);
    if (has_stack)
        soft_return_stack_install(v, (uint16_t)ss_selector, rpl, &ss, sp);
    iret_set_flags(v, frame.rflags, mask);
    if (rpl != cpl)
        soft_segments_drop_inaccessible(v);
    v->next_rip = frame.rip;
    return 0;
}

int soft_iret(struct soft_vcpu *v, const struct insn *in)
{
    struct cpu_state *st = &v->st;
    uint64_t mask;

    st->is_nmi_blocked = 0;
    mask = IRET_FLAGS_16 | RFLAGS_IF | (in->op_size == 2 ? 0 : IRET_FLAGS_32);
    if (cpu_is_real(st))
        return iret_real(v, in->op_size, mask | RFLAGS_IOPL);
    if (cpu_is_v86(st)) {
        if ((st->rflags & RFLAGS_IOPL) == RFLAGS_IOPL)
            return iret_real(v, in->op_size, mask);
        return iret_vme(v, in->op_size);
    }
    if (st->rflags & RFLAGS_NT)
        return cpu_is_long(st) ? soft_raise_error(v, VEC_GP, 0) : iret_task(v);
    return iret_protected(v, in->op_size);
}
