/*
 * hpet.c - high precision event timer
 *
 * Nothing ticks: the main counter is guest time in units of 10 ns plus an offset, and each
 * comparator keeps the counter value (of 64 bits, not wrapped) at which it matches next.
 * hpet_settle moves comparators past matches that have happened; it runs before every register
 * access and when the timer fires. The timer is armed for matches that interrupt only.
 *
 * A comparator in edge mode with legacy replacement drives its line as the 8254 does (resting
 * high, dipping at each match): an 8259 input that falls too early would be a spurious interrupt.
 *
 * Spec: Intel IA-PC HPET Specification 1.0a.
 */
#include "dev/timer/hpet.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/bits.h"
#include "mem/space.h"
#include "os/vclock.h"

#define TICK_NS (HPET_PERIOD_FS / 1000000)
#define NEVER UINT64_MAX
/* Interrupts come no faster than this, whatever period the guest writes. */
#define MATCH_GAP_NS 20000

#define REG_CAPABILITIES 0x000
#define REG_CONFIG 0x010
#define REG_STATUS 0x020
#define REG_COUNTER 0x0f0
#define REG_TIMERS 0x100
#define TIMER_STRIDE 0x20
#define TIMER_CONFIG 0x00
#define TIMER_COMPARATOR 0x08

#define CONFIG_ENABLE 0x1
#define CONFIG_LEGACY 0x2

#define TN_LEVEL 0x0002
#define TN_INT_ENABLE 0x0004
#define TN_PERIODIC 0x0008
#define TN_PERIODIC_CAP 0x0010
#define TN_SIZE_CAP 0x0020
#define TN_VALUE_SET 0x0040
#define TN_32BIT 0x0100
#define TN_ROUTE_SHIFT 9
#define TN_ROUTE 0x3e00
#define TN_WRITABLE (TN_LEVEL | TN_INT_ENABLE | TN_PERIODIC | TN_VALUE_SET | TN_32BIT)

struct hpet_timer {
    uint32_t config; /* low half of the register, without capabilities */
    uint64_t comparator;
    uint64_t period; /* last value written to the comparator in periodic mode */
    uint64_t due;    /* counter at the next match, or NEVER */
};

struct hpet_state {
    uint64_t config;
    uint64_t status;  /* bit n: comparator n, level mode only */
    uint64_t counter; /* while halted: its value; while running: value at guest time 0 */
    struct hpet_timer timer[HPET_COMPARATOR_COUNT];
    uint64_t not_before_ns;
    bool legacy_input[2];   /* what the 8254 and the real-time clock drive */
    bool legacy_edge[2];    /* edge mode: the line rests high since the last match */
    bool legacy_level[2];   /* what the lines were told last */
    uint32_t ioapic_levels; /* likewise, one bit an input */
};

struct hpet {
    pthread_mutex_t lock;
    struct hpet_config config;
    struct vtimer timer;
    struct hpet_state s; /* under lock */
};

/* ---- counter and matches ---- */

static bool is_running(const struct hpet_state *s)
{
    return (s->config & CONFIG_ENABLE) != 0;
}

static bool is_legacy_on(const struct hpet_state *s)
{
    return (s->config & (CONFIG_ENABLE | CONFIG_LEGACY)) == (CONFIG_ENABLE | CONFIG_LEGACY);
}

static uint64_t counter_at(const struct hpet_state *s, uint64_t now_ns)
{
    return is_running(s) ? s->counter + now_ns / TICK_NS : s->counter;
}

static uint64_t width_mask(const struct hpet_timer *t)
{
    return t->config & TN_32BIT ? UINT32_MAX : UINT64_MAX;
}

/* The comparator or the counter changed: when do they meet? */
static void timer_set_due(const struct hpet_state *s, struct hpet_timer *t, uint64_t now_ns)
{
    uint64_t counter = counter_at(s, now_ns);
    uint64_t distance = (t->comparator - counter) & width_mask(t);

    /* A distance of 2^63 and more is a comparator in the past: 2900 years are never. */
    t->due = is_running(s) && distance < BIT(63) ? counter + distance : NEVER;
}

/* After a match at t->due: where the next one is. */
static void timer_advance(struct hpet_timer *t, uint64_t counter)
{
    if ((t->config & TN_PERIODIC) && t->period != 0) {
        uint64_t steps = (counter - t->due) / t->period + 1;
        t->due += steps * t->period;
        t->comparator = (t->comparator + steps * t->period) & width_mask(t);
    } else if (t->config & TN_32BIT) {
        t->due += ((counter - t->due) >> 32 << 32) + BIT(32); /* each time the counter wraps */
    } else {
        t->due = NEVER;
    }
}

/* ---- lines ---- */

static bool is_timer_legacy(const struct hpet_state *s, unsigned n)
{
    return n < 2 && is_legacy_on(s);
}

static unsigned timer_route(const struct hpet_timer *t)
{
    return (t->config & TN_ROUTE) >> TN_ROUTE_SHIFT;
}

/* Comparator n holds its line up because its status bit is set. */
static bool is_level_asserted(const struct hpet_state *s, unsigned n)
{
    uint32_t wanted = TN_LEVEL | TN_INT_ENABLE;
    return is_running(s) && (s->timer[n].config & wanted) == wanted && (s->status & BIT(n)) != 0;
}

static void lines_update(struct hpet *hpet)
{
    struct hpet_state *s = &hpet->s;
    uint32_t levels = 0;

    for (unsigned n = 0; n < 2; n++) {
        bool level = s->legacy_input[n];
        if (is_legacy_on(s))
            level = is_level_asserted(s, n) || s->legacy_edge[n];
        if (level != s->legacy_level[n]) {
            s->legacy_level[n] = level;
            irq_set(&hpet->config.legacy[n], level);
        }
    }
    for (unsigned n = 0; n < HPET_COMPARATOR_COUNT; n++)
        if (!is_timer_legacy(s, n) && is_level_asserted(s, n))
            levels |= BIT(timer_route(&s->timer[n]));
    levels &= hpet->config.ioapic_mask;
    for (unsigned i = 0; i < 32; i++)
        if ((levels ^ s->ioapic_levels) & BIT(i))
            irq_set(&hpet->config.ioapic[i], (levels & BIT(i)) != 0);
    s->ioapic_levels = levels;
}

static void edge_send(struct hpet *hpet, unsigned n)
{
    struct hpet_state *s = &hpet->s;
    if (is_timer_legacy(s, n)) {
        s->legacy_edge[n] = false;
        lines_update(hpet);
        s->legacy_edge[n] = true;
        return; /* hpet_settle ends with lines_update */
    }
    uint32_t bit = (uint32_t)BIT(timer_route(&s->timer[n]));
    if ((bit & hpet->config.ioapic_mask) == 0 || (bit & s->ioapic_levels) != 0)
        return; /* leads nowhere, or shared with a level that is up anyway */
    irq_set(&hpet->config.ioapic[timer_route(&s->timer[n])], true);
    irq_set(&hpet->config.ioapic[timer_route(&s->timer[n])], false);
}

/* ---- time passes ---- */

static void hpet_settle(struct hpet *hpet, uint64_t now_ns)
{
    struct hpet_state *s = &hpet->s;
    uint64_t counter = counter_at(s, now_ns);

    if (!is_running(s))
        return;
    for (unsigned n = 0; n < HPET_COMPARATOR_COUNT; n++) {
        struct hpet_timer *t = &s->timer[n];
        if (t->due == NEVER || (int64_t)(counter - t->due) < 0)
            continue;
        timer_advance(t, counter);
        s->not_before_ns = now_ns + MATCH_GAP_NS;
        if (t->config & TN_LEVEL)
            s->status |= BIT(n);
        else if (t->config & TN_INT_ENABLE)
            edge_send(hpet, n);
    }
    lines_update(hpet);
}

static void hpet_arm(struct hpet *hpet, uint64_t now_ns)
{
    struct hpet_state *s = &hpet->s;
    uint64_t counter = counter_at(s, now_ns);
    uint64_t next = NEVER;

    for (unsigned n = 0; n < HPET_COMPARATOR_COUNT && is_running(s); n++) {
        const struct hpet_timer *t = &s->timer[n];
        bool is_up_already = (t->config & TN_LEVEL) && (s->status & BIT(n));
        if (t->due == NEVER || !(t->config & TN_INT_ENABLE) || is_up_already)
            continue;
        /* Guest time of a counter value: beyond 2^63 ns (292 years) it does not matter. */
        uint64_t ticks = t->due - counter;
        if (ticks < BIT(62) / TICK_NS)
            next = MIN(next, (now_ns / TICK_NS + ticks) * TICK_NS);
    }
    if (next == NEVER)
        vtimer_cancel(&hpet->timer);
    else
        vtimer_arm(&hpet->timer, MAX(next, s->not_before_ns));
}

static void timer_fired(void *ctx)
{
    struct hpet *hpet = ctx;
    pthread_mutex_lock(&hpet->lock);
    uint64_t now_ns = vclock_now_ns(hpet->config.clock);
    hpet_settle(hpet, now_ns);
    hpet_arm(hpet, now_ns);
    pthread_mutex_unlock(&hpet->lock);
}

/* ---- registers ---- */

static uint64_t register_read(struct hpet *hpet, unsigned reg, uint64_t now_ns)
{
    struct hpet_state *s = &hpet->s;
    unsigned n = (reg - REG_TIMERS) / TIMER_STRIDE;

    switch (reg) {
    case REG_CAPABILITIES:
        return (uint64_t)HPET_PERIOD_FS << 32 | HPET_BLOCK_ID;
    case REG_CONFIG:
        return s->config;
    case REG_STATUS:
        return s->status;
    case REG_COUNTER:
        return counter_at(s, now_ns);
    }
    if (reg < REG_TIMERS || n >= HPET_COMPARATOR_COUNT)
        return 0;
    switch (reg % TIMER_STRIDE) {
    case TIMER_CONFIG:
        return (uint64_t)hpet->config.ioapic_mask << 32 | s->timer[n].config | TN_PERIODIC_CAP |
               TN_SIZE_CAP;
    case TIMER_COMPARATOR:
        return s->timer[n].comparator;
    default: /* FSB route: not offered */
        return 0;
    }
}

static void config_write(struct hpet *hpet, uint64_t value, uint64_t now_ns)
{
    struct hpet_state *s = &hpet->s;
    uint64_t counter = counter_at(s, now_ns);

    s->config = value & (CONFIG_ENABLE | CONFIG_LEGACY);
    s->counter = is_running(s) ? counter - now_ns / TICK_NS : counter;
    if (!is_legacy_on(s))
        s->legacy_edge[0] = s->legacy_edge[1] = false;
    for (unsigned n = 0; n < HPET_COMPARATOR_COUNT; n++)
        timer_set_due(s, &s->timer[n], now_ns);
}

static void counter_write(struct hpet *hpet, uint64_t value, uint64_t now_ns)
{
    struct hpet_state *s = &hpet->s;
    s->counter = is_running(s) ? value - now_ns / TICK_NS : value;
    for (unsigned n = 0; n < HPET_COMPARATOR_COUNT; n++)
        timer_set_due(s, &s->timer[n], now_ns);
}

static void timer_config_write(struct hpet *hpet, unsigned n, uint32_t value, uint64_t now_ns)
{
    struct hpet_state *s = &hpet->s;
    struct hpet_timer *t = &s->timer[n];
    uint32_t old = t->config;
    uint32_t route = (value & TN_ROUTE) >> TN_ROUTE_SHIFT;

    /* A route that is not offered does not stick ("Tn_INT_ROUTE_CNF"). */
    t->config = (value & TN_WRITABLE) |
                ((hpet->config.ioapic_mask & BIT(route)) ? value & TN_ROUTE : old & TN_ROUTE);
    if (!(t->config & TN_PERIODIC))
        t->config &= ~TN_VALUE_SET;
    if (!(t->config & TN_LEVEL))
        s->status &= ~BIT(n);
    if (n < 2 && ((t->config & TN_LEVEL) || !(t->config & TN_INT_ENABLE)))
        s->legacy_edge[n] = false;
    if ((t->config ^ old) & TN_32BIT) {
        t->comparator &= width_mask(t);
        t->period &= width_mask(t);
    }
    if ((t->config ^ old) & (TN_32BIT | TN_PERIODIC))
        timer_set_due(s, t, now_ns);
}

static void comparator_write(struct hpet_state *s, struct hpet_timer *t, uint64_t value,
                             uint64_t now_ns)
{
    value &= width_mask(t);
    if (t->config & TN_PERIODIC) {
        t->period = value;
        if (!(t->config & TN_VALUE_SET))
            return; /* only the period; the accumulator goes on */
        t->config &= ~TN_VALUE_SET;
    }
    t->comparator = value;
    timer_set_due(s, t, now_ns);
}

static uint64_t hpet_read(void *ctx, uint64_t offset, unsigned size)
{
    struct hpet *hpet = ctx;
    uint64_t now_ns = vclock_now_ns(hpet->config.clock);
    hpet_settle(hpet, now_ns);
    uint64_t v = register_read(hpet, (unsigned)offset & ~7u, now_ns);
    return v >> (offset & 7) * 8 & mask_bytes(size);
}

/* Put what was written into the 64 bits of its register. */
static uint64_t merge(uint64_t old, uint64_t offset, uint64_t value, unsigned size)
{
    unsigned shift = (unsigned)(offset & 7) * 8;
    uint64_t mask = mask_bytes(size) << shift;
    return (old & ~mask) | (value << shift & mask);
}

static void hpet_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct hpet *hpet = ctx;
    struct hpet_state *s = &hpet->s;
    uint64_t now_ns = vclock_now_ns(hpet->config.clock);
    unsigned reg = (unsigned)offset & ~7u;
    unsigned n = (reg - REG_TIMERS) / TIMER_STRIDE;

    hpet_settle(hpet, now_ns);
    uint64_t merged = merge(register_read(hpet, reg, now_ns), offset, value, size);
    if (reg == REG_CONFIG) {
        config_write(hpet, merged, now_ns);
    } else if (reg == REG_STATUS) {
        s->status &= ~merge(0, offset, value, size);
    } else if (reg == REG_COUNTER) {
        counter_write(hpet, merged, now_ns);
    } else if (reg >= REG_TIMERS && n < HPET_COMPARATOR_COUNT) {
        if (reg % TIMER_STRIDE == TIMER_CONFIG)
            timer_config_write(hpet, n, (uint32_t)merged, now_ns);
        else if (reg % TIMER_STRIDE == TIMER_COMPARATOR)
            comparator_write(s, &s->timer[n],
                             (s->timer[n].config & TN_PERIODIC)
                                 ? merge(s->timer[n].period, offset, value, size)
                                 : merged,
                             now_ns);
    }
    lines_update(hpet);
    hpet_arm(hpet, now_ns);
}

static const struct space_ops hpet_ops = {
    .read = hpet_read,
    .write = hpet_write,
    .min_size = 4,
    .max_size = 8,
};

int hpet_map(struct hpet *hpet, struct space *memory, uint64_t addr, struct err *e)
{
    return space_add_io(memory, addr, HPET_WINDOW_SIZE, &hpet_ops, hpet, &hpet->lock, e);
}

/* ---- set-up ---- */

static void legacy_set(void *sink, unsigned input, bool level)
{
    struct hpet *hpet = sink;
    pthread_mutex_lock(&hpet->lock);
    hpet->s.legacy_input[input] = level;
    lines_update(hpet);
    pthread_mutex_unlock(&hpet->lock);
}

struct irq_line hpet_legacy_input(struct hpet *hpet, unsigned which)
{
    assert(which < 2);
    return (struct irq_line){.set = legacy_set, .sink = hpet, .input = which};
}

static void state_clear(struct hpet_state *s)
{
    s->config = 0;
    s->status = 0;
    s->counter = 0;
    s->not_before_ns = 0;
    s->legacy_edge[0] = s->legacy_edge[1] = false;
    for (unsigned n = 0; n < HPET_COMPARATOR_COUNT; n++)
        s->timer[n] = (struct hpet_timer){.comparator = UINT64_MAX, .due = NEVER};
}

void hpet_reset(struct hpet *hpet)
{
    pthread_mutex_lock(&hpet->lock);
    vtimer_cancel(&hpet->timer);
    state_clear(&hpet->s);
    lines_update(hpet);
    pthread_mutex_unlock(&hpet->lock);
}

int hpet_create(const struct hpet_config *config, struct hpet **out, struct err *e)
{
    struct hpet *hpet = calloc(1, sizeof(*hpet));
    if (hpet == NULL)
        return err_set(e, ENOMEM, "make the HPET");
    assert(config->ioapic_mask != 0);
    pthread_mutex_init(&hpet->lock, NULL);
    hpet->config = *config;
    vtimer_init(&hpet->timer, config->clock, timer_fired, hpet);
    state_clear(&hpet->s);
    *out = hpet;
    return 0;
}

void hpet_destroy(struct hpet *hpet)
{
    if (hpet == NULL)
        return;
    vtimer_cancel(&hpet->timer);
    pthread_mutex_destroy(&hpet->lock);
    free(hpet);
}
