/*
 * exception.c - exceptions: recording them, and what follows when delivering one raises another
 *
 * Invariant: between soft_raise and delivery the vCPU's registers are those at the start of the
 * instruction (fault) or at its end (trap). CR2 and DR6 are written when the event is taken up,
 * even when its delivery fails: that is what the handler of the double fault finds.
 *
 * Specification: SDM vol. 3, 6.15, "Interrupt 8" with tables 6-4 and 6-5; 6.13 (error codes).
 */
#include <inttypes.h>

#include "engine/soft/exception.h"

/* Nested exceptions in a row, after which the pins are looked at before going on. */
#define NESTING_MAX 8

enum exception_class { CLASS_BENIGN, CLASS_CONTRIBUTORY, CLASS_PAGE_FAULT };

int soft_raise_error(struct soft_vcpu *v, unsigned vector, uint32_t error)
{
    soft_raise(v, vector);
    v->fault.has_error = true;
    v->fault.error = error;
    return SOFT_FAULT;
}

int soft_raise(struct soft_vcpu *v, unsigned vector)
{
    struct soft_fault *f = &v->fault;

    f->vector = (uint8_t)vector;
    f->has_error = false;
    f->is_software = false;
    f->is_trap = false;
    f->error = 0;
    f->cr2 = 0;
    f->dr6 = 0;
    return SOFT_FAULT;
}

int soft_raise_page_fault(struct soft_vcpu *v, gva_t addr, uint32_t error)
{
    soft_raise_error(v, VEC_PF, error);
    v->fault.cr2 = addr;
    return SOFT_FAULT;
}

int soft_raise_debug(struct soft_vcpu *v, uint64_t dr6_bits, bool is_trap)
{
    soft_raise(v, VEC_DB);
    v->fault.dr6 = dr6_bits;
    v->fault.is_trap = is_trap;
    return SOFT_FAULT;
}

static enum exception_class class_of(unsigned vector)
{
    switch (vector) {
    case VEC_DE:
    case VEC_TS:
    case VEC_NP:
    case VEC_SS:
    case VEC_GP:
        return CLASS_CONTRIBUTORY;
    case VEC_PF:
        return CLASS_PAGE_FAULT;
    default:
        return CLASS_BENIGN;
    }
}

/* Does `second`, raised while *first was delivered, make a double fault? (SDM table 6-5) */
static bool is_double_fault(const struct soft_event *first, unsigned second)
{
    if (first->kind != SOFT_EVENT_EXCEPTION)
        return false;
    switch (class_of(first->vector)) {
    case CLASS_CONTRIBUTORY:
        return class_of(second) == CLASS_CONTRIBUTORY;
    case CLASS_PAGE_FAULT:
        return class_of(second) != CLASS_BENIGN;
    default:
        return false;
    }
}

/* Take up v->fault: CR2 and DR6 change, and a trap's instruction is complete. */
static void event_from_fault(struct soft_vcpu *v, struct soft_event *ev)
{
    const struct soft_fault *f = &v->fault;
    struct cpu_state *st = &v->st;
    bool is_breakpoint = f->vector == VEC_DB && (f->dr6 & 0xf) != 0;

    ev->vector = f->vector;
    ev->kind = f->is_software ? SOFT_EVENT_SOFTWARE : SOFT_EVENT_EXCEPTION;
    ev->has_error = f->has_error;
    ev->error = f->error;
    ev->sets_rf = !f->is_software && !f->is_trap && !is_breakpoint;
    if (f->is_software) {
        ev->rip = v->next_rip;
        return;
    }
    if (f->is_trap)
        st->rip = v->next_rip;
    ev->rip = st->rip;
    if (f->vector == VEC_PF)
        st->cr2 = f->cr2;
    if (f->vector == VEC_DB)
        st->debugctl &= ~(DEBUGCTL_LBR | DEBUGCTL_BTF); /* SDM vol. 3, 17.4.3; APM vol. 2, 13.1.1 */
    if (f->vector == VEC_DB && f->dr6 != 0)
        st->dr6 = (st->dr6 & ~UINT64_C(0xf)) | f->dr6;
}

/* An exception raised by delivering *ev: v->fault becomes *ev. */
static void event_nest(struct soft_vcpu *v, struct soft_event *ev)
{
    struct soft_fault *f = &v->fault;
    unsigned vector = f->vector;

    if (ev->kind != SOFT_EVENT_SOFTWARE &&
        (vector == VEC_TS || vector == VEC_NP || vector == VEC_SS || vector == VEC_GP))
        f->error |= 1; /* EXT: while an event was delivered that the program did not ask for */
    if (is_double_fault(ev, vector)) {
        if (vector == VEC_PF)
            v->st.cr2 = f->cr2;
        soft_raise_error(v, VEC_DF, 0);
        event_from_fault(v, ev);
        ev->sets_rf = false; /* an abort, not a fault */
        return;
    }
    event_from_fault(v, ev);
}

static void event_count(struct soft_vcpu *v, const struct soft_event *ev)
{
    if (ev->kind == SOFT_EVENT_EXCEPTION || ev->kind == SOFT_EVENT_NMI)
        v->stats.exceptions[ev->vector & 31]++;
    else if (ev->kind == SOFT_EVENT_EXTERNAL)
        v->stats.interrupts++;
}

/* `first` is what the program did; the double and the triple fault only followed from it. */
static __attribute__((cold)) void shut_down(struct soft_vcpu *v, const struct soft_event *first)
{
    v->st.run_state = CPU_SHUTDOWN;
    v->st.exception_vector = first->vector;
    v->st.exception_has_error = first->has_error;
    v->st.exception_error = first->error;
    soft_host_log(v, "CPU %" PRIu64 ": triple fault at rip 0x%" PRIx64, v->index, v->st.rip);
}

/*
 * A guest can make exceptions nest for ever (an alignment check whose frame is misaligned):
 * between the attempts the vCPU must be able to stop.
 */
static __attribute__((cold)) void postpone(struct soft_vcpu *v, const struct soft_event *ev)
{
    struct cpu_state *st = &v->st;

    st->is_exception_pending = 1;
    st->exception_vector = ev->vector;
    st->exception_has_error = ev->has_error;
    st->exception_error = ev->error;
}

static void deliver_event(struct soft_vcpu *v, struct soft_event *ev)
{
    struct soft_event first = *ev;

    for (unsigned depth = 0; depth < NESTING_MAX; depth++) {
        bool is_exception = ev->kind == SOFT_EVENT_EXCEPTION;

        event_count(v, ev);
        if (LIKELY(soft_deliver(v, ev) == 0)) {
            if (UNLIKELY(is_exception && ev->vector == VEC_DB && (v->st.dr7 & DR7_GD))) {
                v->st.dr7 &= ~DR7_GD; /* so that the handler can use the registers */
                v->is_mode_stale = 1;
            }
            return;
        }
        if (UNLIKELY(is_exception && ev->vector == VEC_DF)) {
            shut_down(v, &first);
            return;
        }
        event_nest(v, ev);
    }
    postpone(v, ev);
}

void soft_deliver_fault(struct soft_vcpu *v)
{
    struct soft_event ev;

    event_from_fault(v, &ev);
    deliver_event(v, &ev);
}

void soft_deliver_interrupt(struct soft_vcpu *v, unsigned vector)
{
    struct soft_event ev = {
        .vector = (uint8_t)vector, .kind = SOFT_EVENT_EXTERNAL, .rip = v->st.rip};

    v->next_rip = v->st.rip;
    deliver_event(v, &ev);
}

void soft_deliver_nmi(struct soft_vcpu *v)
{
    struct soft_event ev = {.vector = VEC_NMI, .kind = SOFT_EVENT_NMI, .rip = v->st.rip};

    v->next_rip = v->st.rip;
    v->st.is_nmi_blocked = 1;
    deliver_event(v, &ev);
}
