/*
 * debug.c - breakpoints of DR0-DR3
 *
 * Data and port breakpoints are traps: a hit is noted in st.pending_dbg and raised at the end
 * of the instruction (step.c). Pages with data breakpoints are kept out of the TLB (mmu.c), so
 * that only the slow path looks here.
 *
 * Specification: SDM vol. 3, 17.2.4 to 17.3.1; AMD64 APM vol. 2, 13.1.
 */
#include "engine/soft/debug.h"
#include "engine/soft/mmu.h"

enum { DR7_EXECUTE, DR7_WRITE, DR7_IO, DR7_READ_WRITE };

static inline bool breakpoint_is_enabled(uint64_t dr7, unsigned n)
{
    return (dr7 >> (2 * n) & 3) != 0;
}

static inline unsigned breakpoint_kind(uint64_t dr7, unsigned n)
{
    return (unsigned)(dr7 >> (16 + 4 * n)) & 3;
}

/* Length in bytes; the encoding 2 is 8 bytes. */
static inline unsigned breakpoint_size(uint64_t dr7, unsigned n)
{
    static const uint8_t sizes[4] = {1, 2, 8, 4};

    return sizes[dr7 >> (18 + 4 * n) & 3];
}

static inline bool kind_is_data(unsigned kind)
{
    return kind == DR7_WRITE || kind == DR7_READ_WRITE;
}

void soft_debug_changed(struct soft_vcpu *v)
{
    v->is_mode_stale = 1;
    soft_tlb_rights_changed(v);
}

bool soft_debug_page_is_watched(const struct soft_vcpu *v, gva_t addr)
{
    const struct cpu_state *st = &v->st;

    for (unsigned n = 0; n < 4; n++)
        if (breakpoint_is_enabled(st->dr7, n) && kind_is_data(breakpoint_kind(st->dr7, n)) &&
            (st->dr[n] ^ addr) < SOFT_PAGE_SIZE)
            return true;
    return false;
}

/* Do [addr, addr + size) and breakpoint n overlap? The low bits of DRn are masked by its size. */
static bool breakpoint_covers(const struct cpu_state *st, unsigned n, uint64_t addr, unsigned size)
{
    unsigned watched = breakpoint_size(st->dr7, n);
    uint64_t start = st->dr[n] & ~(uint64_t)(watched - 1);

    return addr - start < watched || start - addr < size;
}

void soft_debug_watch(struct soft_vcpu *v, gva_t addr, unsigned size, enum soft_access access)
{
    struct cpu_state *st = &v->st;
    bool is_write = access == SOFT_WRITE || access == SOFT_RMW;

    if (LIKELY(!soft_debug_is_armed(v)) || access == SOFT_FETCH || size == 0)
        return;
    for (unsigned n = 0; n < 4; n++) {
        unsigned kind = breakpoint_kind(st->dr7, n);
        if (breakpoint_is_enabled(st->dr7, n) &&
            (kind == DR7_READ_WRITE || (kind == DR7_WRITE && is_write)) &&
            breakpoint_covers(st, n, addr, size))
            st->pending_dbg |= BIT(n);
    }
}

void soft_debug_watch_io(struct soft_vcpu *v, uint16_t port, unsigned size)
{
    struct cpu_state *st = &v->st;

    if (LIKELY(!soft_debug_is_armed(v)) || !(st->cr4 & CR4_DE))
        return;
    for (unsigned n = 0; n < 4; n++)
        if (breakpoint_is_enabled(st->dr7, n) && breakpoint_kind(st->dr7, n) == DR7_IO &&
            breakpoint_covers(st, n, port, size))
            st->pending_dbg |= BIT(n);
}

uint64_t soft_debug_match_code(const struct soft_vcpu *v, gva_t addr)
{
    const struct cpu_state *st = &v->st;
    uint64_t hits = 0;

    for (unsigned n = 0; n < 4; n++)
        if (breakpoint_is_enabled(st->dr7, n) && breakpoint_kind(st->dr7, n) == DR7_EXECUTE &&
            st->dr[n] == addr)
            hits |= BIT(n);
    return hits;
}
