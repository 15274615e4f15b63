/*
 * lapic_timer.c - the local APIC's timer: one-shot, periodic, TSC deadline
 *
 * The count is computed from guest time when read, never ticked; a host timer is armed only for
 * an expiry that will interrupt. timer_sync brings the state up to the present before anything
 * reads or changes it, so the order of a register access and an expiry is that of guest time.
 *
 * Periodic ticks that pile up while the host is late, or while the previous one still waits in
 * IRR, are made up for at the guest's next EOIs, MISSED_TICKS_MAX of them at most.
 *
 * Spec: Intel SDM vol. 3, "APIC Timer", "TSC-Deadline Mode".
 */
#include "dev/irqchip/lapic_internal.h"
#include "os/futex.h"

#define MISSED_TICKS_MAX 32

/*
 * A guest that asks for a shorter period gets its ticks in groups, paid at EOI: the main loop
 * must not spend itself on one guest's timer.
 */
#define HOST_TIMER_GAP_NS 20000

/* Deadlines beyond this are as good as never, and sums with it stay far from wrapping. */
#define FAR_NS (UINT64_C(1) << 62)

static uint32_t timer_mode(const struct lapic *lapic)
{
    return lapic->lvt[LVT_TIMER] & LVT_TIMER_MODE;
}

static bool timer_is_masked(const struct lapic *lapic)
{
    return (lapic->lvt[LVT_TIMER] & LVT_MASKED) != 0;
}

static uint64_t timer_period_ns(const struct lapic_timer *timer)
{
    return (uint64_t)timer->initial_count * timer->count_ns;
}

/* `ticks` expiries happened at once. */
static void timer_fire(struct lapic *lapic, uint64_t ticks)
{
    struct lapic_timer *timer = &lapic->timer;
    uint8_t vector = lapic->lvt[LVT_TIMER] & LVT_VECTOR;
    bool is_periodic = timer_mode(lapic) == LVT_TIMER_PERIODIC;

    if (timer_is_masked(lapic))
        return;
    if (is_periodic && vectors_test(&lapic->irr, vector))
        ticks++;
    lapic_request(lapic, vector, false);
    if (is_periodic && ticks > 1)
        timer->missed_ticks = MIN(timer->missed_ticks + ticks - 1, MISSED_TICKS_MAX);
}

/* Let everything happen that is due by `now_ns`. */
static void timer_sync(struct lapic *lapic, uint64_t now_ns)
{
    struct lapic_timer *timer = &lapic->timer;

    if (!timer->is_running || now_ns < timer->expiry_ns)
        return;
    if (timer_mode(lapic) == LVT_TIMER_PERIODIC) {
        uint64_t period_ns = timer_period_ns(timer);
        uint64_t ticks = 1 + (now_ns - timer->expiry_ns) / period_ns;
        timer->expiry_ns += ticks * period_ns;
        timer_fire(lapic, ticks);
    } else {
        timer->is_running = false;
        timer->deadline_tsc = 0;
        timer_fire(lapic, 1);
    }
}

/* Arm the host timer for what comes next, if that is worth an interrupt. */
static void timer_schedule(struct lapic *lapic, uint64_t now_ns)
{
    struct lapic_timer *timer = &lapic->timer;

    if (!timer->is_running || timer_is_masked(lapic)) {
        vtimer_cancel(&timer->vtimer);
        return;
    }
    uint64_t deadline_ns = timer->expiry_ns;
    if (timer_mode(lapic) == LVT_TIMER_PERIODIC)
        deadline_ns = MAX(deadline_ns, now_ns + HOST_TIMER_GAP_NS);
    vtimer_arm(&timer->vtimer, deadline_ns);
}

static void timer_expired(void *ctx)
{
    struct lapic *lapic = ctx;

    futex_hold_wakes();
    pthread_mutex_lock(&lapic->lock);
    uint64_t now_ns = vclock_now_ns(lapic->config.clock);
    timer_sync(lapic, now_ns);
    /* One-shot kinds: a callback on its way from before a re-arm finds nothing due. */
    if (lapic->timer.is_running)
        timer_schedule(lapic, now_ns);
    lapic_update(lapic);
    pthread_mutex_unlock(&lapic->lock);
    futex_release_wakes();
}

static void timer_stop(struct lapic *lapic)
{
    struct lapic_timer *timer = &lapic->timer;

    if (timer->is_running)
        vtimer_cancel(&timer->vtimer);
    timer->is_running = false;
    timer->deadline_tsc = 0;
    timer->missed_ticks = 0;
}

void lapic_timer_init(struct lapic *lapic)
{
    vtimer_init(&lapic->timer.vtimer, lapic->config.clock, timer_expired, lapic);
}

void lapic_timer_reset(struct lapic *lapic)
{
    timer_stop(lapic);
    lapic->timer.initial_count = 0;
    lapic->timer.divide = 0;
    lapic->timer.count_ns = 2;
}

uint32_t lapic_timer_read_count(struct lapic *lapic)
{
    struct lapic_timer *timer = &lapic->timer;
    uint64_t now_ns = vclock_now_ns(lapic->config.clock);

    timer_sync(lapic, now_ns);
    lapic_update(lapic);
    if (!timer->is_running || timer_mode(lapic) == LVT_TIMER_TSC_DEADLINE)
        return 0;
    /* Rounded up: a count that is read as 0 has expired. */
    return (timer->expiry_ns - now_ns + timer->count_ns - 1) / timer->count_ns;
}

void lapic_timer_write_count(struct lapic *lapic, uint32_t value)
{
    struct lapic_timer *timer = &lapic->timer;
    uint64_t now_ns = vclock_now_ns(lapic->config.clock);

    /* "In TSC-deadline mode, writes to the initial-count register are ignored." */
    if (timer_mode(lapic) == LVT_TIMER_TSC_DEADLINE)
        return;
    timer_sync(lapic, now_ns);
    timer->initial_count = value;
    timer->missed_ticks = 0;
    timer->is_running = value != 0;
    timer->expiry_ns = now_ns + timer_period_ns(timer);
    timer_schedule(lapic, now_ns);
}

void lapic_timer_write_divide(struct lapic *lapic, uint32_t value)
{
    struct lapic_timer *timer = &lapic->timer;
    uint64_t now_ns = vclock_now_ns(lapic->config.clock);
    /* Bits 3, 1, 0: 000 is 2, 001 is 4, ... 110 is 128, 111 is 1. */
    unsigned code = (value & 3) | (value >> 1 & 4);
    uint32_t count_ns = (uint32_t)(NS_PER_SEC / LAPIC_TIMER_HZ) << ((code + 1) & 7);

    timer_sync(lapic, now_ns);
    timer->divide = value & 0xb;
    if (count_ns == timer->count_ns)
        return;
    /* A running count keeps its value and goes on at the new rate. */
    if (timer->is_running && timer_mode(lapic) != LVT_TIMER_TSC_DEADLINE) {
        uint64_t left = (timer->expiry_ns - now_ns + timer->count_ns - 1) / timer->count_ns;
        timer->expiry_ns = now_ns + left * count_ns;
        timer->count_ns = count_ns;
        timer_schedule(lapic, now_ns);
    }
    timer->count_ns = count_ns;
}

void lapic_timer_write_lvt(struct lapic *lapic, uint32_t value)
{
    struct lapic_timer *timer = &lapic->timer;
    uint64_t now_ns = vclock_now_ns(lapic->config.clock);
    uint32_t changed = value ^ lapic->lvt[LVT_TIMER];
    bool was_deadline = timer_mode(lapic) == LVT_TIMER_TSC_DEADLINE;

    timer_sync(lapic, now_ns);
    lapic->lvt[LVT_TIMER] = value;
    if (changed == 0)
        return;
    timer->missed_ticks = 0;
    /* "Transitioning between TSC-deadline mode and other timer modes also disarms the timer." */
    if (was_deadline != (timer_mode(lapic) == LVT_TIMER_TSC_DEADLINE))
        timer_stop(lapic);
    if (timer->is_running || (changed & LVT_MASKED))
        timer_schedule(lapic, now_ns);
}

uint64_t lapic_timer_read_deadline(struct lapic *lapic)
{
    if (timer_mode(lapic) != LVT_TIMER_TSC_DEADLINE)
        return 0;
    timer_sync(lapic, vclock_now_ns(lapic->config.clock));
    lapic_update(lapic);
    return lapic->timer.deadline_tsc;
}

/* Nanoseconds that `ticks` of the TSC take, rounded up so as never to be early. */
static uint64_t tsc_to_ns(uint64_t ticks, uint64_t tsc_hz)
{
    uint64_t ns;

    if (ticks < UINT64_MAX / NS_PER_SEC - tsc_hz) {
        ns = (ticks * NS_PER_SEC + tsc_hz - 1) / tsc_hz;
    } else {
        unsigned __int128 wide = (unsigned __int128)ticks * NS_PER_SEC / tsc_hz + 1;
        ns = wide < FAR_NS ? (uint64_t)wide : FAR_NS;
    }
    return MIN(ns, FAR_NS);
}

void lapic_timer_write_deadline(struct lapic *lapic, uint64_t tsc)
{
    struct lapic_timer *timer = &lapic->timer;

    if (timer_mode(lapic) != LVT_TIMER_TSC_DEADLINE)
        return;

    uint64_t now_ns = vclock_now_ns(lapic->config.clock);
    uint64_t now_tsc = lapic->config.ops->guest_tsc(lapic->config.cpu);

    timer_sync(lapic, now_ns);
    timer->deadline_tsc = tsc;
    timer->is_running = tsc != 0;
    if (tsc > now_tsc) {
        timer->expiry_ns = now_ns + tsc_to_ns(tsc - now_tsc, lapic->config.tsc_hz);
    } else {
        timer->expiry_ns = now_ns;
        timer_sync(lapic, now_ns);
    }
    timer_schedule(lapic, now_ns);
}

void lapic_timer_eoi(struct lapic *lapic, uint8_t vector)
{
    struct lapic_timer *timer = &lapic->timer;

    if (timer->missed_ticks == 0 || vector != (lapic->lvt[LVT_TIMER] & LVT_VECTOR))
        return;
    if (!vectors_test(&lapic->irr, vector)) {
        timer->missed_ticks--;
        lapic_request(lapic, vector, false);
    }
}

void lapic_timer_lend(struct lapic *lapic, struct cpu_apic *out)
{
    struct lapic_timer *timer = &lapic->timer;
    uint64_t now_ns = vclock_now_ns(lapic->config.clock);

    timer_sync(lapic, now_ns);
    out->reg[CPU_APIC_INITIAL_COUNT] = timer->initial_count;
    out->reg[CPU_APIC_DIVIDE] = timer->divide;
    if (timer->is_running && timer_mode(lapic) == LVT_TIMER_TSC_DEADLINE) {
        out->deadline_tsc = timer->deadline_tsc;
    } else if (timer->is_running) {
        out->is_counting = true;
        out->reg[CPU_APIC_CURRENT_COUNT] =
            (uint32_t)((timer->expiry_ns - now_ns + timer->count_ns - 1) / timer->count_ns);
    }
    timer_stop(lapic);
}

void lapic_timer_take_back(struct lapic *lapic, const struct cpu_apic *in)
{
    struct lapic_timer *timer = &lapic->timer;
    uint64_t now_ns = vclock_now_ns(lapic->config.clock);

    timer_stop(lapic);
    lapic_timer_write_divide(lapic, in->reg[CPU_APIC_DIVIDE]);
    timer->initial_count = in->reg[CPU_APIC_INITIAL_COUNT];
    if (timer_mode(lapic) == LVT_TIMER_TSC_DEADLINE) {
        if (in->deadline_tsc != 0)
            lapic_timer_write_deadline(lapic, in->deadline_tsc);
        return;
    }
    /* without an initial count there is no period to count */
    if (!in->is_counting || timer->initial_count == 0)
        return;
    timer->is_running = true;
    timer->expiry_ns =
        now_ns +
        (uint64_t)MIN(in->reg[CPU_APIC_CURRENT_COUNT], timer->initial_count) * timer->count_ns;
    timer_sync(lapic, now_ns);
    timer_schedule(lapic, now_ns);
}
