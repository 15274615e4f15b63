/*
 * transfer.c - far JMP, CALL and RET: real mode, code segments, call gates, tasks
 *
 * Invariant: a transfer that changes the stack installs the new CS and SS first, pushes through
 * them with the new privilege, and puts everything back when a push faults. RIP moves last.
 *
 * Specification: SDM vol. 2, JMP, CALL, RET; vol. 3, 5.8; AMD64 APM vol. 3.
 */
#include "engine/soft/system.h"

/* CS, SS and rSP as they were, for the way back from a faulting push. */
struct transfer_save {
    struct cpu_seg cs, ss;
    uint64_t rsp;
};

static void transfer_save(const struct soft_vcpu *v, struct transfer_save *save)
{
    save->cs = v->st.seg[CPU_CS];
    save->ss = v->st.seg[CPU_SS];
    save->rsp = v->st.gpr[CPU_RSP];
}

static int transfer_undo(struct soft_vcpu *v, const struct transfer_save *save)
{
    v->st.seg[CPU_CS] = save->cs;
    v->st.seg[CPU_SS] = save->ss;
    v->st.gpr[CPU_RSP] = save->rsp;
    return SOFT_FAULT;
}

/* AMD knows no far pointer with a 64-bit offset: REX.W is ignored (APM vol. 3, JMP far). */
static unsigned transfer_size(const struct soft_vcpu *v, const struct insn *in)
{
    return in->op_size == 8 && soft_is_amd(v) ? 4 : in->op_size;
}

/* The far pointer in the immediate or in memory. */
static int transfer_operand(struct soft_vcpu *v, const struct insn *in, uint16_t *selector,
                            uint64_t *offset)
{
    unsigned size = transfer_size(v, in);
    uint64_t value;
    gva_t addr;

    if (!in->has_mem) {
        const uint8_t *p = in->bytes + in->imm_off;
        *offset = size == 2 ? load_le16(p) : load_le32(p);
        *selector = load_le16(p + (size == 2 ? 2 : 4));
        return 0;
    }
    if (soft_operand_address(v, in, size + 2u, SOFT_READ, &addr) ||
        soft_load(v, addr, size, SOFT_AS_CPL, offset) ||
        soft_load(v, addr + size, 2, SOFT_AS_CPL, &value))
        return SOFT_FAULT;
    *selector = (uint16_t)value;
    return 0;
}

int soft_code_offset_check(struct soft_vcpu *v, const struct soft_descriptor *cs, uint64_t offset)
{
    bool is_ok = cpu_is_long(&v->st) && (cs->attr & SEG_L) ? soft_is_canonical(v, offset)
                                                           : offset <= cs->limit;

    return is_ok ? 0 : soft_raise_error(v, VEC_GP, 0);
}

/* Long mode knows no segment that is both 64-bit and 32-bit. */
static bool transfer_code_is_malformed(const struct soft_vcpu *v, const struct soft_descriptor *cs)
{
    return cpu_is_long(&v->st) && (cs->attr & (SEG_L | SEG_DB)) == (SEG_L | SEG_DB);
}

/* Direct far JMP or CALL to a code segment: privilege stays. */
static int transfer_direct_check(struct soft_vcpu *v, uint16_t selector, struct soft_descriptor *cs)
{
    unsigned cpl = cpu_cpl(&v->st);
    unsigned dpl = soft_descriptor_dpl(cs);
    uint32_t error = SOFT_SELECTOR_ERROR(selector);

    if (soft_descriptor_is_conforming(cs) ? dpl > cpl : (selector & 3u) > cpl || dpl != cpl)
        return soft_raise_error(v, VEC_GP, error);
    if (transfer_code_is_malformed(v, cs))
        return soft_raise_error(v, VEC_GP, error);
    if (!(cs->attr & SEG_P))
        return soft_raise_error(v, VEC_NP, error);
    return 0;
}

static void transfer_go(struct soft_vcpu *v, uint16_t selector, const struct soft_descriptor *cs,
                        uint64_t offset)
{
    soft_segment_install(v, CPU_CS, (uint16_t)((selector & ~3u) | cpu_cpl(&v->st)), cs);
    v->next_rip = offset;
}

/* Push the return address for a CALL that stays on its stack, then go. */
static int transfer_call_same(struct soft_vcpu *v, uint16_t selector, struct soft_descriptor *cs,
                              uint64_t offset, unsigned size)
{
    struct transfer_save save;
    uint64_t return_rip = v->next_rip;

    transfer_save(v, &save);
    if (soft_descriptor_set_accessed(v, cs))
        return SOFT_FAULT;
    transfer_go(v, selector, cs, offset);
    if (soft_push(v, size, save.cs.selector) || soft_push(v, size, return_rip))
        return transfer_undo(v, &save);
    return 0;
}

/* The code segment a call gate names; *is_inner when it is more privileged and not conforming. */
static int transfer_gate_target(struct soft_vcpu *v, const struct soft_descriptor *gate,
                                bool is_call, struct soft_descriptor *cs, bool *is_inner)
{
    uint16_t selector = soft_gate_selector(gate);
    uint32_t error = SOFT_SELECTOR_ERROR(selector);
    unsigned cpl = cpu_cpl(&v->st);

    if (soft_descriptor_require(v, selector, VEC_GP, 0, cs))
        return SOFT_FAULT;
    if (!soft_descriptor_is_code(cs) || soft_descriptor_dpl(cs) > cpl)
        return soft_raise_error(v, VEC_GP, error);
    if (!is_call && !soft_descriptor_is_conforming(cs) && soft_descriptor_dpl(cs) != cpl)
        return soft_raise_error(v, VEC_GP, error);
    if (cpu_is_long(&v->st) && (cs->attr & (SEG_L | SEG_DB)) != SEG_L)
        return soft_raise_error(v, VEC_GP, error);
    if (!(cs->attr & SEG_P))
        return soft_raise_error(v, VEC_NP, error);
    *is_inner = !soft_descriptor_is_conforming(cs) && soft_descriptor_dpl(cs) < cpl;
    return 0;
}

/* Parameters that a 16- or 32-bit gate copies from the caller's stack; [0] is on top. */
static int transfer_read_parameters(struct soft_vcpu *v, unsigned count, unsigned size,
                                    uint32_t *parameters)
{
    uint64_t mask = mask_bytes(cpu_stack_size(&v->st));
    uint64_t value;
    gva_t addr;

    for (unsigned i = 0; i < count; i++) {
        uint64_t offset = (v->st.gpr[CPU_RSP] + (uint64_t)i * size) & mask;
        if (soft_linear(v, CPU_SS, offset, size, SOFT_READ, &addr) ||
            soft_load(v, addr, size, SOFT_AS_CPL, &value))
            return SOFT_FAULT;
        parameters[i] = (uint32_t)value;
    }
    return 0;
}

/* A push onto the stack of an inner level: #SS names that stack's selector. */
static int transfer_push_inner(struct soft_vcpu *v, unsigned size, uint64_t value)
{
    if (soft_push(v, size, value) == 0)
        return 0;
    if (v->fault.vector == VEC_SS)
        v->fault.error = SOFT_SELECTOR_ERROR(v->st.seg[CPU_SS].selector);
    return SOFT_FAULT;
}

/* CALL through a gate to a more privileged level: new stack, old one saved on it. */
static int transfer_call_inner(struct soft_vcpu *v, const struct soft_descriptor *gate,
                               struct soft_descriptor *cs)
{
    bool is_long = cpu_is_long(&v->st);
    unsigned size = is_long ? 8 : soft_descriptor_type(gate) == SOFT_TYPE_CALL32 ? 4 : 2;
    unsigned count = is_long ? 0 : (unsigned)(gate->raw[0] >> 32) & 31;
    unsigned dpl = soft_descriptor_dpl(cs);
    uint64_t offset = soft_gate_offset(gate);
    struct soft_descriptor ss_descriptor;
    struct transfer_save save;
    uint32_t parameters[31];
    uint64_t sp;
    uint16_t ss;

    if (soft_tss_stack(v, dpl, 0, &ss, &sp))
        return SOFT_FAULT;
    if (!is_long && soft_inner_stack_check(v, ss, dpl, 0, &ss_descriptor))
        return SOFT_FAULT;
    if (soft_code_offset_check(v, cs, offset) ||
        transfer_read_parameters(v, count, size, parameters) || soft_descriptor_set_accessed(v, cs))
        return SOFT_FAULT;

    transfer_save(v, &save);
    soft_segment_install(v, CPU_CS, (uint16_t)((soft_gate_selector(gate) & ~3u) | dpl), cs);
    if (is_long) {
        soft_segment_install_null(v, CPU_SS, ss, dpl);
    } else {
        soft_segment_install(v, CPU_SS, ss, &ss_descriptor);
        if (cpu_stack_size(&v->st) == 2)
            sp = (save.rsp & ~UINT64_C(0xffff)) | (sp & 0xffff);
    }
    v->st.gpr[CPU_RSP] = sp;

    if (transfer_push_inner(v, size, save.ss.selector) || transfer_push_inner(v, size, save.rsp))
        return transfer_undo(v, &save);
    for (unsigned i = count; i-- > 0;)
        if (transfer_push_inner(v, size, parameters[i]))
            return transfer_undo(v, &save);
    if (transfer_push_inner(v, size, save.cs.selector) || transfer_push_inner(v, size, v->next_rip))
        return transfer_undo(v, &save);
    v->next_rip = offset;
    return 0;
}

static int transfer_call_gate(struct soft_vcpu *v, uint16_t selector,
                              const struct soft_descriptor *gate, bool is_call)
{
    bool is_long = cpu_is_long(&v->st);
    struct soft_descriptor cs;
    unsigned size;
    bool is_inner = false;

    /* the second half's type field must be 0 (SDM vol. 3, 5.8.3.1) */
    if (is_long && (gate->raw[1] >> 40 & 0x1f) != 0)
        return soft_raise_error(v, VEC_GP, SOFT_SELECTOR_ERROR(selector));
    if (!(gate->attr & SEG_P))
        return soft_raise_error(v, VEC_NP, SOFT_SELECTOR_ERROR(selector));
    if (transfer_gate_target(v, gate, is_call, &cs, &is_inner))
        return SOFT_FAULT;
    if (is_call && is_inner)
        return transfer_call_inner(v, gate, &cs);

    if (soft_code_offset_check(v, &cs, soft_gate_offset(gate)))
        return SOFT_FAULT;
    size = is_long ? 8 : soft_descriptor_type(gate) == SOFT_TYPE_CALL32 ? 4 : 2;
    if (is_call)
        return transfer_call_same(v, soft_gate_selector(gate), &cs, soft_gate_offset(gate), size);
    if (soft_descriptor_set_accessed(v, &cs))
        return SOFT_FAULT;
    transfer_go(v, soft_gate_selector(gate), &cs, soft_gate_offset(gate));
    return 0;
}

/* JMP or CALL with a system descriptor: gates and TSSs. */
static int transfer_system(struct soft_vcpu *v, uint16_t selector, const struct soft_descriptor *d,
                           bool is_call)
{
    enum soft_task_source source = is_call ? SOFT_TASK_CALL : SOFT_TASK_JUMP;
    uint32_t error = SOFT_SELECTOR_ERROR(selector);
    unsigned type = soft_descriptor_type(d);
    unsigned dpl = soft_descriptor_dpl(d);
    bool is_long = cpu_is_long(&v->st);

    if ((d->attr & SEG_S) || (is_long && type != SOFT_TYPE_CALL32))
        return soft_raise_error(v, VEC_GP, error);
    if (dpl < cpu_cpl(&v->st) || dpl < (selector & 3u))
        return soft_raise_error(v, VEC_GP, error);
    switch (type) {
    case SOFT_TYPE_CALL16:
    case SOFT_TYPE_CALL32:
        return transfer_call_gate(v, selector, d, is_call);
    case SOFT_TYPE_TASK_GATE:
        if (!(d->attr & SEG_P))
            return soft_raise_error(v, VEC_NP, error);
        return soft_task_switch(v, soft_gate_selector(d), source, v->next_rip, 0, false, 0);
    case SOFT_TYPE_TSS16:
    case SOFT_TYPE_TSS32:
        return soft_task_switch(v, selector, source, v->next_rip, 0, false, 0);
    default:
        return soft_raise_error(v, VEC_GP, error);
    }
}

static int transfer_jump_real(struct soft_vcpu *v, uint16_t selector, uint64_t offset)
{
    if (offset > v->st.seg[CPU_CS].limit)
        return soft_raise_error(v, VEC_GP, 0);
    soft_segment_install_real(v, CPU_CS, selector);
    v->next_rip = offset;
    return 0;
}

int soft_far_jump(struct soft_vcpu *v, const struct insn *in)
{
    struct soft_descriptor d;
    uint16_t selector;
    uint64_t offset;

    if (transfer_operand(v, in, &selector, &offset))
        return SOFT_FAULT;
    if (!soft_is_protected(v))
        return transfer_jump_real(v, selector, offset);
    if (soft_descriptor_require(v, selector, VEC_GP, 0, &d))
        return SOFT_FAULT;
    if (!soft_descriptor_is_code(&d))
        return transfer_system(v, selector, &d, false);
    if (transfer_direct_check(v, selector, &d) || soft_code_offset_check(v, &d, offset) ||
        soft_descriptor_set_accessed(v, &d))
        return SOFT_FAULT;
    transfer_go(v, selector, &d, offset);
    return 0;
}

static int transfer_call_real(struct soft_vcpu *v, const struct insn *in, uint16_t selector,
                              uint64_t offset)
{
    uint64_t rsp = v->st.gpr[CPU_RSP];

    if (offset > v->st.seg[CPU_CS].limit)
        return soft_raise_error(v, VEC_GP, 0);
    if (soft_push(v, in->op_size, v->st.seg[CPU_CS].selector))
        return SOFT_FAULT;
    if (soft_push(v, in->op_size, v->next_rip)) {
        v->st.gpr[CPU_RSP] = rsp;
        return SOFT_FAULT;
    }
    soft_segment_install_real(v, CPU_CS, selector);
    v->next_rip = offset;
    return 0;
}

int soft_far_call(struct soft_vcpu *v, const struct insn *in)
{
    struct soft_descriptor d;
    uint16_t selector;
    uint64_t offset;

    if (transfer_operand(v, in, &selector, &offset))
        return SOFT_FAULT;
    if (!soft_is_protected(v))
        return transfer_call_real(v, in, selector, offset);
    if (soft_descriptor_require(v, selector, VEC_GP, 0, &d))
        return SOFT_FAULT;
    if (!soft_descriptor_is_code(&d))
        return transfer_system(v, selector, &d, true);
    if (transfer_direct_check(v, selector, &d) || soft_code_offset_check(v, &d, offset))
        return SOFT_FAULT;
    return transfer_call_same(v, selector, &d, offset, transfer_size(v, in));
}

int soft_return_peek(struct soft_vcpu *v, uint64_t displacement, unsigned size, uint64_t *value)
{
    uint64_t offset = (v->st.gpr[CPU_RSP] + displacement) & mask_bytes(cpu_stack_size(&v->st));
    gva_t addr;

    if (soft_linear(v, CPU_SS, offset, size, SOFT_READ, &addr))
        return SOFT_FAULT;
    return soft_load(v, addr, size, SOFT_AS_CPL, value);
}

int soft_return_code_check(struct soft_vcpu *v, uint16_t selector, struct soft_descriptor *cs)
{
    uint32_t error = SOFT_SELECTOR_ERROR(selector);
    unsigned rpl = selector & 3;
    unsigned dpl;

    if (soft_descriptor_require(v, selector, VEC_GP, 0, cs))
        return SOFT_FAULT;
    dpl = soft_descriptor_dpl(cs);
    if (!soft_descriptor_is_code(cs) || rpl < cpu_cpl(&v->st))
        return soft_raise_error(v, VEC_GP, error);
    if (soft_descriptor_is_conforming(cs) ? dpl > rpl : dpl != rpl)
        return soft_raise_error(v, VEC_GP, error);
    if (transfer_code_is_malformed(v, cs))
        return soft_raise_error(v, VEC_GP, error);
    if (!(cs->attr & SEG_P))
        return soft_raise_error(v, VEC_NP, error);
    return 0;
}

int soft_return_stack_check(struct soft_vcpu *v, uint16_t selector, unsigned rpl,
                            const struct soft_descriptor *cs, struct soft_descriptor *ss)
{
    uint32_t error = SOFT_SELECTOR_ERROR(selector);

    if (SOFT_SELECTOR_IS_NULL(selector)) {
        bool is_allowed =
            cpu_is_long(&v->st) && (cs->attr & SEG_L) && rpl != 3 && (selector & 3u) == rpl;
        if (!is_allowed)
            return soft_raise_error(v, VEC_GP, error);
        ss->attr = SEG_UNUSABLE;
        return 0;
    }
    if (soft_descriptor_require(v, selector, VEC_GP, 0, ss))
        return SOFT_FAULT;
    if ((selector & 3u) != rpl || soft_descriptor_dpl(ss) != rpl ||
        !soft_descriptor_is_writable(ss))
        return soft_raise_error(v, VEC_GP, error);
    if (!(ss->attr & SEG_P))
        return soft_raise_error(v, VEC_SS, error);
    return soft_descriptor_set_accessed(v, ss);
}

void soft_return_stack_install(struct soft_vcpu *v, uint16_t selector, unsigned rpl,
                               const struct soft_descriptor *ss, uint64_t sp)
{
    if (ss->attr & SEG_UNUSABLE)
        soft_segment_install_null(v, CPU_SS, selector, rpl);
    else
        soft_segment_install(v, CPU_SS, selector, ss);

    /* the upper half of ESP is left alone when the new stack is a 16-bit one */
    switch (cpu_stack_size(&v->st)) {
    case 2:
        v->st.gpr[CPU_RSP] = (v->st.gpr[CPU_RSP] & 0xffff0000) | (sp & 0xffff);
        break;
    case 4:
        v->st.gpr[CPU_RSP] = (uint32_t)sp;
        break;
    default:
        v->st.gpr[CPU_RSP] = sp;
        break;
    }
}

/* rSP += n within the stack's width. */
static void return_release(struct soft_vcpu *v, uint64_t n)
{
    uint64_t *rsp = &v->st.gpr[CPU_RSP];

    switch (cpu_stack_size(&v->st)) {
    case 2:
        *rsp = (*rsp & ~UINT64_C(0xffff)) | ((*rsp + n) & 0xffff);
        break;
    case 4:
        *rsp = (uint32_t)(*rsp + n);
        break;
    default:
        *rsp += n;
        break;
    }
}

static int return_far_outer(struct soft_vcpu *v, uint16_t selector, struct soft_descriptor *cs,
                            uint64_t offset, unsigned size, uint64_t release)
{
    unsigned rpl = selector & 3;
    struct soft_descriptor ss;
    uint64_t sp, ss_selector;

    if (soft_return_peek(v, 2 * size + release, size, &sp) ||
        soft_return_peek(v, 3 * size + release, size, &ss_selector))
        return SOFT_FAULT;
    if (soft_return_stack_check(v, (uint16_t)ss_selector, rpl, cs, &ss) ||
        soft_code_offset_check(v, cs, offset) || soft_descriptor_set_accessed(v, cs))
        return SOFT_FAULT;
    soft_segment_install(v, CPU_CS, selector, cs);
    soft_return_stack_install(v, (uint16_t)ss_selector, rpl, &ss, sp);
    return_release(v, release);
    soft_segments_drop_inaccessible(v);
    v->next_rip = offset;
    return 0;
}

int soft_far_return(struct soft_vcpu *v, const struct insn *in)
{
    uint64_t release = in->imm_size != 0 ? load_le16(in->bytes + in->imm_off) : 0;
    unsigned size = in->op_size;
    uint64_t offset, selector;
    struct soft_descriptor cs;

    if (soft_return_peek(v, 0, size, &offset) || soft_return_peek(v, size, size, &selector))
        return SOFT_FAULT;
    selector &= 0xffff;
    if (!soft_is_protected(v)) {
        if (transfer_jump_real(v, (uint16_t)selector, offset))
            return SOFT_FAULT;
        return_release(v, 2 * size + release);
        return 0;
    }
    if (soft_return_code_check(v, (uint16_t)selector, &cs))
        return SOFT_FAULT;
    if ((selector & 3) != cpu_cpl(&v->st))
        return return_far_outer(v, (uint16_t)selector, &cs, offset, size, release);
    if (soft_code_offset_check(v, &cs, offset) || soft_descriptor_set_accessed(v, &cs))
        return SOFT_FAULT;

    /* the width that counts is that of the stack popped from */
    return_release(v, 2 * size + release);
    soft_segment_install(v, CPU_CS, (uint16_t)selector, &cs);
    v->next_rip = offset;
    return 0;
}
