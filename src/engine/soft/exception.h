/*
 * exception.h - delivery of one event through the IDT
 */
#ifndef DOPPEL_ENGINE_SOFT_EXCEPTION_H
#define DOPPEL_ENGINE_SOFT_EXCEPTION_H

#include "engine/soft/vcpu.h"

enum soft_event_kind {
    SOFT_EVENT_EXCEPTION,
    SOFT_EVENT_SOFTWARE, /* INT n, INT3, INTO: the gate's DPL is checked, EXT is 0 */
    SOFT_EVENT_EXTERNAL,
    SOFT_EVENT_NMI,
};

struct soft_event {
    uint8_t vector;
    uint8_t kind; /* enum soft_event_kind */
    bool has_error;
    bool sets_rf; /* the pushed flags have RF set (SDM vol. 3, 17.3.1.1) */
    uint32_t error;
    uint64_t rip; /* that the handler returns to */
};

/*
 * Deliver *ev: 0 with st.rip (and v->next_rip) at the handler, or SOFT_FAULT with the nested
 * exception in v->fault and no register changed. One attempt: double faults and shutdown are
 * the business of soft_deliver_fault and its siblings.
 */
int soft_deliver(struct soft_vcpu *v, const struct soft_event *ev) SOFT_MUST_CHECK;

#endif
