/*
 * debug.h - breakpoints of DR0-DR3
 *
 * Specification: SDM vol. 3, chapter 17.2 and 17.3.
 */
#ifndef DOPPEL_ENGINE_SOFT_DEBUG_H
#define DOPPEL_ENGINE_SOFT_DEBUG_H

#include "engine/soft/vcpu.h"

/* Any breakpoint enabled: L0-L3, G0-G3. Engines step then (soft_step) or check as below. */
static inline bool soft_debug_is_armed(const struct soft_vcpu *v)
{
    return (v->st.dr7 & 0xff) != 0;
}

/*
 * DR0-DR3, DR7 or CR4.DE were written: pages that have a data breakpoint now must leave the
 * TLB. Sets is_mode_stale.
 */
void soft_debug_changed(struct soft_vcpu *v);

/* Does a data breakpoint lie on the page of `addr`? */
bool soft_debug_page_is_watched(const struct soft_vcpu *v, gva_t addr);

/*
 * A data access of the instruction to [addr, addr + size): note the breakpoints it hits in
 * st.pending_dbg, for the trap after the instruction. soft_load and soft_store do it
 * themselves; whoever accesses memory through soft_place.host does it, too.
 */
void soft_debug_watch(struct soft_vcpu *v, gva_t addr, unsigned size, enum soft_access access);
/* The same for ports (only with CR4.DE). */
void soft_debug_watch_io(struct soft_vcpu *v, uint16_t port, unsigned size);

/* DR6 bits of instruction breakpoints at linear address `addr`; 0: none. */
uint64_t soft_debug_match_code(const struct soft_vcpu *v, gva_t addr);

#endif
