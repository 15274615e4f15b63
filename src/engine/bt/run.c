/*
 * run.c - the run loop, and the helpers that generated code calls
 *
 * Control is in generated code until a stub calls a helper; the helper returns the host address
 * to go on at, which is a place in a block, or stub_leave to end `run`. While helpers run, the
 * guest's vector state may still be in the host's registers (see engine/soft/vcpu.h): whatever
 * calls libc or the decoder saves it first.
 *
 * Wake-ups are not lost: whoever wants the vCPU's attention sets a pin and then clears `go`, which
 * every block polls; the dispatcher sets `go` and then reads the pins.
 */
#include <asm/prctl.h>
#include <errno.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/bt/bt.h"
#include "engine/soft/debug.h"
#include "engine/soft/mmu.h"
#include "os/fault.h"
#include "os/tsc.h"

static bool segment_is_flat(const struct cpu_seg *seg, bool must_have_base_0)
{
    uint32_t needs = SEG_P | SEG_S;
    if ((seg->attr & (needs | SEG_UNUSABLE)) != needs || seg->limit != UINT32_MAX)
        return false;
    if (must_have_base_0 && seg->base != 0)
        return false;
    /* code segments are not writable, and data segments may expand down */
    return !(seg->attr & (SEG_TYPE_CODE | SEG_TYPE_DOWN_CONFORM)) &&
           (seg->attr & SEG_TYPE_WRITE_READ);
}

static uint32_t mode_of_vector_state(const struct cpu_state *st)
{
    uint32_t mode = 0;
    if (!(st->cr0 & (CR0_EM | CR0_TS)))
        mode |= BT_MODE_X87;
    if (!((st->cr0 & CR0_MP) && (st->cr0 & CR0_TS)))
        mode |= BT_MODE_WAIT;
    if (!(mode & BT_MODE_X87))
        return mode;
    if (st->cr4 & CR4_OSFXSR)
        mode |= BT_MODE_SSE;
    if ((st->cr4 & CR4_OSXSAVE) && bits(st->xcr0, 2, 1) == 3) {
        mode |= BT_MODE_AVX;
        if ((st->xcr0 & XCR0_AVX512) == XCR0_AVX512)
            mode |= BT_MODE_AVX512;
    }
    return mode;
}

/* The mode word of the current state; BT_MODE_STEP where translations do not apply. */
static uint32_t mode_of(const struct soft_vcpu *v)
{
    const struct cpu_state *st = &v->st;
    uint32_t mode = soft_tlb_current(v) << BT_MODE_SET_SHIFT;

    if ((st->rflags & (RFLAGS_TF | RFLAGS_VM)) || soft_debug_is_armed(v) || st->pending_dbg != 0 ||
        st->is_ferr || !(st->cr0 & CR0_PE))
        return mode | BT_MODE_STEP;
    /* alignment checks: no guest runs long with them */
    if ((st->cr0 & CR0_AM) && (st->rflags & RFLAGS_AC) && cpu_cpl(st) == 3)
        return mode | BT_MODE_STEP;

    mode |= BT_MODE_PROTECTED | mode_of_vector_state(st);
    if (cpu_cpl(st) == 0)
        mode |= BT_MODE_CPL0;
    if (cpu_cpl(st) == 0 || !(st->cr4 & CR4_TSD))
        mode |= BT_MODE_RDTSC;
    if (cpu_cpl(st) != 3 && (st->cr4 & CR4_SMAP))
        mode |= BT_MODE_SMAP;
    if (st->cr4 & CR4_FSGSBASE)
        mode |= BT_MODE_FSGSBASE;
    if (cpu_is_64bit(st))
        return mode | BT_MODE_FS_FLAT | BT_MODE_GS_FLAT;

    const struct cpu_seg *cs = &st->seg[CPU_CS];
    if (!(cs->attr & SEG_DB) || cs->base != 0 || cs->limit != UINT32_MAX ||
        !(st->seg[CPU_SS].attr & SEG_DB) || !segment_is_flat(&st->seg[CPU_SS], true) ||
        !segment_is_flat(&st->seg[CPU_DS], true) || !segment_is_flat(&st->seg[CPU_ES], true))
        return mode | BT_MODE_STEP;
    /* a readable flat CS serves CS overrides */
    if (!(cs->attr & SEG_TYPE_WRITE_READ))
        return mode | BT_MODE_STEP;
    mode |= 1;
    if (segment_is_flat(&st->seg[CPU_FS], false))
        mode |= BT_MODE_FS_FLAT;
    if (segment_is_flat(&st->seg[CPU_GS], false))
        mode |= BT_MODE_GS_FLAT;
    return mode;
}

static void refresh_mode(struct bt_vcpu *b)
{
    struct soft_vcpu *v = &b->soft;
    v->is_mode_stale = 0;
    v->is_ac_set = (v->st.cr0 & CR0_AM) && (v->st.rflags & RFLAGS_AC) && cpu_cpl(&v->st) == 3;
    b->mode = mode_of(v);
    b->set = (b->mode & BT_MODE_SET) >> BT_MODE_SET_SHIFT;
    b->canonical_shift = v->st.cr4 & CR4_LA57 ? 56 : 47;
    struct bt_jump_cache *jc = &b->jc[b->set];
    if (jc->mode != b->mode && !(b->mode & BT_MODE_STEP)) {
        jc->mode = b->mode;
        bt_jump_cache_clear(jc);
    }
}

/* Cycles that have clocks of their own. */
static uint64_t clock_elsewhere(const struct bt_vcpu *b)
{
    return b->stats.translate_cycles + b->soft.stats.host_tsc + b->soft.stats.exclusive_tsc;
}

/* With is_counting: from now on time counts as `kind`. Returns what it was. */
static enum bt_time clock_switch(struct bt_vcpu *b, enum bt_time kind)
{
    struct bt_clock *c = &b->clock;
    enum bt_time old = c->kind;

    if (LIKELY(!b->engine->is_counting))
        return old;
    uint64_t now = tsc_read(), elsewhere = clock_elsewhere(b);
    b->stats.cycles[old] += now - c->since - (elsewhere - c->elsewhere);
    *c = (struct bt_clock){.kind = kind, .since = now, .elsewhere = elsewhere};
    return old;
}

static const uint8_t *leave(struct bt_vcpu *b, enum engine_stop stop)
{
    b->stop = stop;
    return b->engine->stub_leave;
}

/* Look at the pins, wake from HLT. NULL: run on. */
static const uint8_t *take_events(struct bt_vcpu *b)
{
    struct soft_vcpu *v = &b->soft;

    if (!__atomic_load_n(&v->go, __ATOMIC_RELAXED)) {
        __atomic_store_n(&v->go, BT_GO, __ATOMIC_SEQ_CST);
        soft_guest_yield(v);
    }
    uint32_t pins = atomic_load(&v->pins->bits);
    if (pins & PIN_LEAVE)
        return leave(b, ENGINE_STOP_PIN);
    if (pins != 0 && v->st.run_state != CPU_SHUTDOWN)
        soft_take_interrupts(v);
    switch (v->st.run_state) {
    case CPU_RUNNING:
        return NULL;
    case CPU_SHUTDOWN:
        return leave(b, ENGINE_STOP_SHUTDOWN);
    default:
        return leave(b, ENGINE_STOP_HALT);
    }
}

/* Translate an instruction that begins at `head` and goes on in the next page. NULL: look again. */
static struct bt_block *translate_crossing(struct bt_vcpu *b, uint64_t rip,
                                           const struct soft_place *head)
{
    struct bt_engine *be = b->engine;
    struct soft_vcpu *v = &b->soft;
    size_t avail = SOFT_PAGE_SIZE - (rip & 0xfff);
    uint8_t bytes[INSN_MAX_LEN];
    struct bt_block *block = NULL;
    struct soft_place tail;

    if (soft_translate(v, bt_tail_rip(rip), SOFT_FETCH, SOFT_AS_CPL, &tail) != 0) {
        soft_deliver_fault(v);
        return NULL;
    }
    if (tail.host == NULL) {
        soft_step(v);
        return NULL;
    }
    pthread_mutex_lock(&be->lock);
    bool is_ready = bt_page_is_protected(be, head->gpa) && bt_page_is_protected(be, tail.gpa);
    if (is_ready && bt_cache_has_room(be) && bt_block_find(be, rip, head->gpa, b->mode) == NULL) {
        soft_copy(bytes, head->host, avail);
        soft_copy(bytes + avail, tail.host, INSN_MAX_LEN - avail);
        block = bt_translate(b, rip, head->gpa, bytes, INSN_MAX_LEN, tail.gpa);
    }
    bool is_full = is_ready && !bt_cache_has_room(be);
    pthread_mutex_unlock(&be->lock);
    if (!is_ready)
        bt_page_protect(b, tail.gpa);
    else if (block == NULL && is_full)
        soft_step(v); /* the next block empties the cache */
    return block;
}

/*
 * Make the second page of a block that has one known to its check. False: the world has changed,
 * or C has run the instruction because something else is mapped there now.
 */
static bool prepare_tail(struct bt_vcpu *b, const struct bt_block *block)
{
    struct soft_vcpu *v = &b->soft;
    const struct bt_engine *be = b->engine;
    const struct bt_tail *wanted = bt_block_tail(be, block);
    uint64_t rip = bt_tail_rip(bt_block_rip(be, block));
    struct soft_place tail;

    if (soft_translate(v, rip, SOFT_FETCH, SOFT_AS_CPL, &tail) != 0) {
        soft_deliver_fault(v);
        return false;
    }
    if (tail.host == NULL || tail.gpa != bt_tail_gpa(be, wanted)) {
        soft_step(v);
        return false;
    }
    v->tlb[b->set].code_cookie[soft_tlb_exec_slot(rip)] = wanted->cookie;
    return true;
}

/*
 * The block at rip, translated if need be; NULL when the world has changed meanwhile (the
 * dispatcher starts over).
 */
static struct bt_block *find_or_translate(struct bt_vcpu *b, uint64_t rip,
                                          const struct soft_place *place)
{
    struct bt_engine *be = b->engine;
    struct soft_vcpu *v = &b->soft;

    pthread_mutex_lock(&be->lock);
    struct bt_block *block = bt_block_find(be, rip, place->gpa, b->mode);
    if (block != NULL) {
        pthread_mutex_unlock(&be->lock);
        return block;
    }
    soft_fpu_save(v); /* the decoder and libc are ordinary C */
    if (!bt_page_is_protected(be, place->gpa)) {
        pthread_mutex_unlock(&be->lock);
        bt_page_protect(b, place->gpa);
        return NULL;
    }
    if (bt_crosses_page(b, rip, place->host)) {
        pthread_mutex_unlock(&be->lock);
        return translate_crossing(b, rip, place);
    }
    if (bt_cache_has_room(be))
        block = bt_translate(b, rip, place->gpa, place->host, SOFT_PAGE_SIZE - (rip & 0xfff),
                             BT_NO_TAIL);
    pthread_mutex_unlock(&be->lock);
    if (block == NULL) {
        soft_exclusive_begin(v);
        bt_cache_empty(be);
        soft_exclusive_end(v);
        b->stats.flushes++;
    }
    return block;
}

static unsigned jump_cache_slot(uint64_t rip)
{
    return (unsigned)(rip >> 1) & (BT_JC_SIZE - 1);
}

/*
 * Host code for st.rip in the current mode; NULL after something else happened (a fault was
 * delivered, a page got protected): look again. *block is set when its body is returned.
 */
static const uint8_t *find_code(struct bt_vcpu *b, struct bt_block **block)
{
    const struct bt_engine *be = b->engine;
    struct soft_vcpu *v = &b->soft;
    struct soft_tlb_set *tlb = &v->tlb[b->set];
    struct bt_jump_cache *jc = &b->jc[b->set];
    uint64_t rip = v->st.rip;
    unsigned slot = soft_tlb_exec_slot(rip), jc_slot = jump_cache_slot(rip);
    struct soft_place place;

    /*
     * A guess is good when the page is mapped as its guard wants it and its body goes on. Where
     * exec_tag does not hold the page the cookie says nothing.
     */
    *block = NULL;
    if (jc->minus_rip[jc_slot] + rip == 0 && soft_tlb_find_exec(v, b->set, rip) != NULL) {
        const struct bt_block *guess = bt_block(be, jc->block[jc_slot]);
        if (tlb->code_cookie[slot] == guess->cookie && !guess->is_dead && !guess->has_tail)
            return bt_block_body(be, guess);
    }

    v->next_rip = rip;
    if (soft_translate(v, rip, SOFT_FETCH, SOFT_AS_CPL, &place) != 0) {
        soft_deliver_fault(v);
        return NULL;
    }
    if (place.host == NULL) {
        soft_step(v); /* code in a device's window */
        return NULL;
    }
    struct bt_block *found = find_or_translate(b, rip, &place);
    if (found == NULL || (found->has_tail && !prepare_tail(b, found)))
        return NULL;
    tlb->code_cookie[slot] = found->cookie;
    *block = found;
    if (be->slice != 0)
        return bt_block_body(be, found);
    jc->minus_rip[jc_slot] = -rip;
    jc->host[jc_slot] = (uintptr_t)bt_block_guard(be, found);
    jc->block[jc_slot] = bt_block_number(be, found);
    jc->filled[jc_slot / BT_JC_GROUP / 64] |= BIT(jc_slot / BT_JC_GROUP % 64);
    return bt_block_body(be, found);
}

/* Is the slice used up? What the instruction before left pending stays so. */
static bool slice_ends(struct bt_vcpu *b)
{
    if (b->engine->slice == 0 || b->slice_left > 0)
        return false;
    b->slice_left = (int64_t)b->engine->slice;
    return true;
}

static const uint8_t *dispatch_uncounted(struct bt_vcpu *b, struct bt_block **block)
{
    struct soft_vcpu *v = &b->soft;
    const uint8_t *at;

    b->stats.dispatches++;
    b->is_code_lost = false;
    *block = NULL;
    for (;;) {
        if (UNLIKELY(slice_ends(b)))
            return leave(b, ENGINE_STOP_SLICE);
        at = take_events(b);
        if (at != NULL)
            return at;
        if (v->is_mode_stale)
            refresh_mode(b);
        if ((b->mode & BT_MODE_STEP) || v->st.shadow != 0 || v->st.pending_dbg != 0 ||
            v->st.is_exception_pending) {
            b->stats.steps++;
            b->slice_left--;
            soft_step(v);
            continue;
        }
        /* RF matters to instruction breakpoints only, and none is armed in this mode */
        v->st.rflags &= ~RFLAGS_RF;
        at = find_code(b, block);
        if (at != NULL)
            break;
    }
    if (*block != NULL)
        b->slice_left -= (*block)->insn_count;
    if (!v->is_fpu_live)
        soft_fpu_load(v);
    bt_flags_to_host(b);
    return at;
}

/* Go on at st.rip: events, single steps, then translated code. */
static const uint8_t *dispatch(struct bt_vcpu *b, struct bt_block **block)
{
    enum bt_time old = clock_switch(b, BT_TIME_DISPATCH);
    const uint8_t *at = dispatch_uncounted(b, block);

    clock_switch(b, old);
    return at;
}

static const uint8_t *dispatch_any(struct bt_vcpu *b)
{
    struct bt_block *block;
    return dispatch(b, &block);
}

/* May translated code be resumed where it called, now that C has run an instruction? */
static bool may_resume(const struct bt_vcpu *b)
{
    const struct soft_vcpu *v = &b->soft;
    return !v->is_mode_stale && !b->is_code_lost && v->st.shadow == 0 && v->st.pending_dbg == 0 &&
           !v->st.is_exception_pending && v->st.run_state == CPU_RUNNING &&
           __atomic_load_n(&v->go, __ATOMIC_RELAXED) != 0 &&
           atomic_load_explicit(&v->pins->bits, memory_order_relaxed) == 0 &&
           v->tlb[b->set].code_cookie[soft_tlb_exec_slot(v->st.rip)] != 0;
}

static const uint8_t *soft_at_uncounted(struct bt_vcpu *b, uint64_t rip, const uint8_t *resume)
{
    struct soft_vcpu *v = &b->soft;
    struct bt_engine *be = b->engine;
    uint64_t generation = be->generation;
    const struct insn *in;

    v->st.rip = rip;
    v->next_rip = rip;
    b->is_code_lost = false;
    if (soft_fetch(v, &in) != 0) {
        soft_deliver_fault(v);
        return dispatch_any(b);
    }
    uint64_t next = rip + in->len;
    if (!(v->st.efer & EFER_LMA) || b->mode & BT_MODE_SIZE)
        next = (uint32_t)next;
    b->stats.soft_ops[in->op]++;
    if (soft_exec(v, in) != 0) {
        soft_deliver_fault(v);
        return dispatch_any(b);
    }
    /* another vCPU may have emptied the cache while this one was in a device */
    if (resume == NULL || v->st.rip != next || !may_resume(b) || generation != be->generation)
        return dispatch_any(b);
    if (!v->is_fpu_live)
        soft_fpu_load(v);
    bt_flags_to_host(b);
    return resume;
}

/*
 * Run the instruction at `rip` in C. Its host code is followed by `resume`, which serves as
 * long as the instruction went to the next one and nothing else changed.
 */
static const uint8_t *soft_at(struct bt_vcpu *b, uint64_t rip, const uint8_t *resume)
{
    enum bt_time old = clock_switch(b, BT_TIME_SOFT);
    const uint8_t *at = soft_at_uncounted(b, rip, resume);

    clock_switch(b, old);
    return at;
}

static uint64_t insn_rip(const struct bt_vcpu *b, const struct bt_block *block, unsigned i)
{
    const struct bt_engine *be = b->engine;
    uint64_t rip = bt_block_rip(be, block) + bt_block_insn(be, block, i).guest;
    return b->mode & BT_MODE_SIZE ? (uint32_t)rip : rip;
}

/* Run in C the instruction whose host code contains `at`, then go on behind it. */
static const uint8_t *soft_instead(struct bt_vcpu *b, const uint8_t *at)
{
    struct bt_engine *be = b->engine;
    const struct bt_block *block = bt_block_at(be, at);
    unsigned i = bt_block_insn_at(be, block, at);
    const uint8_t *resume = NULL;

    if (i + 1u < block->insn_count && !block->has_shares)
        resume = bt_block_guard(be, block) + bt_block_insn(be, block, i + 1).host;
    return soft_at(b, insn_rip(b, block, i), resume);
}

const uint8_t *bt_helper_dispatch(struct bt_vcpu *b)
{
    bt_flags_from_host(b);
    const uint8_t *at = dispatch_any(b);
    return at;
}

const uint8_t *bt_helper_soft(struct bt_vcpu *b, uint64_t s1, uint64_t info, const uint8_t *resume)
{
    bt_flags_from_host(b);
    const uint8_t *at = soft_at(b, b->soft.st.rip, resume);
    return at;
}

/*
 * A check for several accesses failed: the range crosses a page, or is not all writable yet. The
 * block without shares goes on at the instruction; blocks that come here often are made anew.
 */
static const uint8_t *leave_shares(struct bt_vcpu *b, const uint8_t *at)
{
    struct bt_engine *be = b->engine;
    struct soft_vcpu *v = &b->soft;
    struct bt_block *block = bt_block_at(be, at), *plain = NULL;
    struct soft_place place;

    b->stats.share_misses++;
    v->st.rip = insn_rip(b, block, bt_block_insn_at(be, block, at));
    if (++block->share_misses == BT_SHARE_MISSES_MAX) {
        pthread_mutex_lock(&be->lock);
        bt_share_refuse(be, block);
        bt_block_retire(be, block);
        pthread_mutex_unlock(&be->lock);
    }
    if (soft_translate(v, v->st.rip, SOFT_FETCH, SOFT_AS_CPL, &place) == 0 && place.host != NULL) {
        b->mode |= BT_MODE_NOSHARE;
        plain = find_or_translate(b, v->st.rip, &place);
        b->mode &= ~BT_MODE_NOSHARE;
    }
    if (plain == NULL)
        return soft_at(b, v->st.rip, NULL);
    v->tlb[b->set].code_cookie[soft_tlb_exec_slot(v->st.rip)] = plain->cookie;
    if (!v->is_fpu_live)
        soft_fpu_load(v);
    bt_flags_to_host(b);
    return bt_block_body(be, plain);
}

/* Fill the TLB; false when the access cannot be left to generated code. */
static bool fill_tlb(struct bt_vcpu *b, uint64_t addr, uint64_t info)
{
    unsigned size = (unsigned)(info & BT_MISS_SIZE);
    bool is_write = (info & BT_MISS_WRITE) != 0;
    /* the write that makes a shared range dirty may come later: only itself marks the page */
    enum soft_access access = !is_write || (info & BT_MISS_SHARED) ? SOFT_READ : SOFT_RMW;
    struct soft_vcpu *v = &b->soft;
    struct soft_place place;

    if ((addr & 0xfff) + size > SOFT_PAGE_SIZE ||
        soft_translate(v, addr, access, SOFT_AS_CPL, &place) != 0)
        return false;
    return (is_write ? soft_tlb_find_write(v, b->set, addr, size)
                     : soft_tlb_find_read(v, b->set, addr, size)) != NULL;
}

static const uint8_t *resolve_miss(struct bt_vcpu *b, uint64_t addr, uint64_t info,
                                   const uint8_t *resume)
{
    b->stats.tlb_misses++;
    if (fill_tlb(b, addr, info))
        return resume;
    bt_flags_from_host(b);
    const uint8_t *at;
    if (info & BT_MISS_LOOP) {
        at = bt_loop_refuse(b, resume);
    } else if (info & BT_MISS_SHARED) {
        at = leave_shares(b, resume);
    } else {
        /* a fault, a device, code beneath, or two pages: C does it all, precisely */
        b->stats.tlb_miss_soft++;
        at = soft_instead(b, resume);
    }
    return at;
}

const uint8_t *bt_helper_tlb(struct bt_vcpu *b, uint64_t addr, uint64_t info, const uint8_t *resume)
{
    enum bt_time old = clock_switch(b, BT_TIME_TLB);
    const uint8_t *at = resolve_miss(b, addr, info, resume);

    clock_switch(b, old);
    return at;
}

static bool is_canonical(const struct soft_vcpu *v, uint64_t addr)
{
    unsigned width = v->st.cr4 & CR4_LA57 ? 57 : 48;
    return (uint64_t)sign_extend(addr, width) == addr;
}

const uint8_t *bt_helper_indirect(struct bt_vcpu *b, uint64_t target, uint64_t info,
                                  const uint8_t *at)
{
    struct soft_vcpu *v = &b->soft;
    b->stats.indirect_misses++;
    bt_flags_from_host(b);
    if ((int32_t)(uint32_t)info == BT_INDIRECT_REDO)
        return soft_instead(b, at);
    if (!(b->mode & BT_MODE_SIZE) && !is_canonical(v, target)) {
        /* the branch itself faults, so what it did to the stack pointer is undone */
        v->st.gpr[CPU_RSP] -= (uint64_t)(int64_t)(int32_t)info;
        return soft_instead(b, at);
    }
    v->st.rip = target;
    const uint8_t *next = dispatch_any(b);
    return next;
}

const uint8_t *bt_helper_fault(struct bt_vcpu *b, uint64_t s1, const uint8_t *at, uint64_t s2)
{
    b->stats.host_faults++;
    bt_flags_from_host(b);
    at = bt_loop_recover(b, bt_block_at(b->engine, at), at, s1, s2);
    return soft_instead(b, at);
}

/*
 * Let the branch whose displacement is at `site` go straight to `block`. Another mode has another
 * TLB set, so what is known of the page does not hold in it.
 */
static void link_site(struct bt_engine *be, const struct bt_block *source, uint8_t *site,
                      const struct bt_block *block)
{
    bool is_same_page =
        source->cookie == block->cookie && ((source->mode ^ block->mode) & BT_MODE_SET) == 0;
    /* links that skip the poll lead upwards only: every loop has one that does not */
    const uint8_t *target = !is_same_page                    ? bt_block_guard(be, block)
                            : block->offset > source->offset ? bt_block_body(be, block)
                                                             : bt_block_poll(be, block);
    int32_t rel = (int32_t)(target - (site + 4));

    pthread_mutex_lock(&be->lock);
    if (!block->is_dead)
        __atomic_store_n((int32_t *)(void *)bt_rw(be, site), rel, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&be->lock);
}

/* Go on at st.rip, and link the branch at `site` if that leads to a block of `mode`. */
static const uint8_t *chain(struct bt_vcpu *b, const struct bt_block *source, uint8_t *site,
                            uint32_t mode)
{
    struct bt_engine *be = b->engine;
    struct soft_vcpu *v = &b->soft;
    uint64_t generation = be->generation, rip = v->st.rip;
    struct bt_block *block;
    bt_flags_from_host(b);
    const uint8_t *at = dispatch(b, &block);
    if (generation != be->generation || v->st.rip != rip)
        return at;
    if (block == NULL && at != be->stub_leave)
        block = bt_block_at(be, at);
    if (block != NULL && ((mode ^ block->mode) & ~BT_MODE_NOSHARE) == 0 &&
        bt_block_rip(be, block) == rip && be->slice == 0) {
        b->stats.chains++;
        link_site(be, source, site, block);
    }
    return at;
}

const uint8_t *bt_helper_chain(struct bt_vcpu *b, uint64_t s1, uint64_t info, uint8_t *site)
{
    const struct bt_block *source = bt_block_at(b->engine, site);

    return chain(b, source, site, source->mode);
}

const uint8_t *bt_helper_switch(struct bt_vcpu *b, uint64_t s1, uint64_t info, uint8_t *site)
{
    return chain(b, bt_block_at(b->engine, site), site, (uint32_t)info);
}

bool bt_fault_hook(void *ctx, int sig, siginfo_t *info, ucontext_t *uc)
{
    struct bt_vcpu *b = ctx;
    struct bt_engine *be = b->engine;
    greg_t *regs = uc->uc_mcontext.gregs;
    const uint8_t *at = (const uint8_t *)(uintptr_t)regs[REG_RIP];

    if (at < be->rx + be->stubs_end || at >= be->rx + be->cache_size)
        return soft_thunk_fault(&b->soft, sig, info, uc);
    /*
     * Generated code touches guest RAM that is mapped, and nothing else: a page fault is a hole in
     * the confinement (or the host could not give the page) and ends the process loudly.
     */
    if (regs[REG_TRAPNO] == VEC_PF)
        return false;
    regs[REG_RCX] = (greg_t)(uintptr_t)at;
    regs[REG_RIP] = (greg_t)(uintptr_t)be->stub_fault;
    return true;
}

static int set_gs_base(const void *base, struct err *e)
{
    if (syscall(SYS_arch_prctl, ARCH_SET_GS, (unsigned long)base) != 0)
        return err_set(e, errno, "set the GS base of a vCPU thread");
    return 0;
}

int bt_run(struct engine_vcpu *vcpu, enum engine_stop *stop, struct err *e)
{
    struct bt_vcpu *b = (struct bt_vcpu *)vcpu;
    struct soft_vcpu *v = &b->soft;
    struct bt_block *block;
    int r = fault_thread_enter(bt_fault_hook, b, e);

    if (r == 0)
        r = set_gs_base(b, e);
    if (r != 0)
        return r;
    soft_guest_enter(v);
    __atomic_store_n(&v->go, BT_GO, __ATOMIC_SEQ_CST);
    soft_guest_yield(v);
    b->clock = (struct bt_clock){
        .kind = BT_TIME_CODE, .since = tsc_read(), .elsewhere = clock_elsewhere(b)};
    const uint8_t *at = dispatch(b, &block);
    if (at != b->engine->stub_leave)
        ((bt_enter_fn)(uintptr_t)b->engine->stub_enter)(b, at);
    clock_switch(b, BT_TIME_CODE);
    if (v->is_fpu_live)
        soft_fpu_save(v);
    soft_guest_leave(v);
    fault_thread_exit();
    *stop = b->stop;
    return 0;
}
