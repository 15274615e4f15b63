/*
 * i8254.c - programmable interval timer (three channels) and system control port B
 *
 * Counts are computed from guest time when read, never ticked: a channel keeps the tick at
 * which its counting element was loaded, and what the data sheet draws as waveforms follows from
 * the distance to it. All channels share one tick count, I8254_HZ from guest time 0. A count
 * written at tick t is loaded at t + 1 ("loaded on the next CLK pulse").
 *
 * The timer is armed for the next rising edge of channel 0 only. Edges missed because the host
 * was late are made up for at four times the pace, at most OWED_MAX of them; edges come no
 * faster than one each EDGE_GAP_NS, whatever count the guest writes.
 *
 * Spec: Intel 8254 data sheet; 82371SB (PIIX3), "NMI Status and Control Register".
 */
#include "dev/timer/i8254.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/bits.h"
#include "mem/space.h"
#include "os/vclock.h"

#define CHANNEL_COUNT 3
#define OWED_MAX 8
#define EDGE_GAP_NS 20000
#define NO_TICK UINT64_MAX

/* Control word, bits 5..4. */
#define RW_LATCH 0
#define RW_LSB 1
#define RW_MSB 2
#define RW_BOTH 3

#define STATUS_OUT 0x80
#define STATUS_NULL 0x40

#define PORT61_GATE2 0x01
#define PORT61_STORED 0x0f
#define PORT61_REFRESH 0x10
#define PORT61_OUT2 0x20
/* Ticks between two refresh requests as every PC's firmware programs channel 1 (15 us). */
#define REFRESH_TICKS 18

/* Registers of one channel; everything that a snapshot has to keep. */
struct i8254_channel {
    uint64_t start;       /* tick at which `count` was loaded; may lie one ahead of now */
    uint64_t frozen;      /* modes 0 and 4, gate low: ticks counted so far */
    uint64_t switch_tick; /* modes 2 and 3: when next_count takes over, if it is not 0 */
    uint64_t next_start;
    uint32_t next_count;
    uint32_t count; /* 1..65536 (BCD: 1..16665) */
    uint8_t mode;
    uint8_t rw;
    bool is_bcd;
    bool gate;
    bool is_loaded;  /* a count was written since the control word */
    bool is_running; /* counting, or (modes 0 and 4) held by the gate */
    bool is_write_msb_next;
    uint8_t write_lsb;
    bool is_read_msb_next;
    uint8_t latched_bytes; /* how many bytes of `latched_count` are still to be read */
    uint16_t latched_count;
    bool is_status_latched;
    uint8_t latched_status;
};

struct i8254_state {
    struct i8254_channel channel[CHANNEL_COUNT];
    uint8_t port61;
    bool is_line_high;  /* what IRQ0 was told last */
    uint64_t next_edge; /* channel 0: tick of the next rising edge of OUT, or NO_TICK */
    unsigned owed;      /* edges that were missed and will be made up for */
    uint64_t not_before_ns;
};

struct i8254 {
    pthread_mutex_t lock;
    struct vclock *clock;
    struct irq_line irq0;
    struct vtimer timer;
    struct i8254_state s; /* under lock */
};

static uint64_t ticks_from_ns(uint64_t ns)
{
    return (uint64_t)((unsigned __int128)ns * I8254_HZ / NS_PER_SEC);
}

/* The first nanosecond that belongs to `tick`. */
static uint64_t ns_from_ticks(uint64_t tick)
{
    return (uint64_t)(((unsigned __int128)tick * NS_PER_SEC + I8254_HZ - 1) / I8254_HZ);
}

static uint64_t tick_now(struct i8254 *pit)
{
    return ticks_from_ns(vclock_now_ns(pit->clock));
}

/* ---- waveforms ---- */

static bool mode_is_periodic(const struct i8254_channel *c)
{
    return c->mode == 2 || c->mode == 3;
}

/* Modes that the gate's level holds, rather than triggers. */
static bool mode_is_held_by_gate(const struct i8254_channel *c)
{
    return c->mode == 0 || c->mode == 4;
}

/* Mode 3: OUT is high for this many ticks of each period. */
static uint32_t high_ticks(uint32_t count)
{
    return (count + 1) / 2;
}

/* `start` may lie one tick ahead, or before tick 0: compared as signed distances. */
static bool is_before_start(const struct i8254_channel *c, uint64_t now)
{
    return (int64_t)(now - c->start) < 0;
}

/* Take over a new count whose time has come. */
static void channel_settle(struct i8254_channel *c, uint64_t now)
{
    if (c->next_count == 0 || now < c->switch_tick)
        return;
    c->start = c->next_start;
    c->count = c->next_count;
    c->next_count = 0;
}

static uint64_t channel_elapsed(const struct i8254_channel *c, uint64_t now)
{
    if (mode_is_held_by_gate(c) && !c->gate)
        return c->frozen;
    return is_before_start(c, now) ? 0 : now - c->start;
}

static bool channel_out(const struct i8254_channel *c, uint64_t now)
{
    uint64_t elapsed = channel_elapsed(c, now);
    bool is_counting = c->is_running && (!is_before_start(c, now) || mode_is_held_by_gate(c));

    if (!is_counting)
        return c->mode != 0;
    switch (c->mode) {
    case 0:
        return elapsed >= c->count;
    case 1:
        return elapsed >= c->count;
    case 2:
        /* A count of 1 is illegal here; the output then simply rests. */
        return c->count == 1 || elapsed % c->count != c->count - 1;
    case 3:
        return elapsed % c->count < high_ticks(c->count);
    default: /* 4 and 5: one low tick when the count has run out */
        return elapsed != c->count;
    }
}

/* The counting element as the guest reads it: 16 bits, BCD if so programmed. */
static uint16_t channel_value(const struct i8254_channel *c, uint64_t now)
{
    uint64_t elapsed = c->is_running ? channel_elapsed(c, now) : 0;
    uint64_t wrap = c->is_bcd ? 10000 : 65536;
    uint64_t v;

    if (c->mode == 2) {
        v = c->count - elapsed % c->count;
    } else if (c->mode == 3) {
        uint64_t at = elapsed % c->count;
        if (at >= high_ticks(c->count))
            at -= high_ticks(c->count);
        v = (c->count & ~1u) - 2 * at; /* odd counts are loaded less one, "Mode 3" */
    } else {
        v = c->count + wrap * 2 - elapsed % wrap;
    }
    v %= wrap;
    if (!c->is_bcd)
        return (uint16_t)v;
    return (uint16_t)(v / 1000 << 12 | v / 100 % 10 << 8 | v / 10 % 10 << 4 | v % 10);
}

/* The next rising edge of channel 0's OUT after `now`. Its gate is tied high. */
static uint64_t channel_next_edge(const struct i8254_channel *c, uint64_t now)
{
    if (!c->is_running)
        return NO_TICK;
    switch (c->mode) {
    case 0:
        return c->start + c->count > now ? c->start + c->count : NO_TICK;
    case 2:
    case 3:
        if (c->next_count != 0)
            return c->next_start == c->switch_tick ? c->switch_tick : c->next_start + c->next_count;
        if (is_before_start(c, now))
            return c->start + c->count;
        return c->start + ((now - c->start) / c->count + 1) * c->count;
    case 4:
        return c->start + c->count + 1 > now ? c->start + c->count + 1 : NO_TICK;
    default: /* 1 and 5 wait for a gate that never moves */
        return NO_TICK;
    }
}

/* ---- interrupt 0 ---- */

static void line_set(struct i8254 *pit, bool level)
{
    if (pit->s.is_line_high == level)
        return;
    pit->s.is_line_high = level;
    irq_set(&pit->irq0, level);
}

static void timer_arm(struct i8254 *pit, uint64_t now_ns)
{
    struct i8254_state *s = &pit->s;
    uint64_t deadline = UINT64_MAX;

    if (s->next_edge != NO_TICK)
        deadline = ns_from_ticks(s->next_edge);
    if (s->owed != 0) {
        uint64_t gap = ns_from_ticks(s->channel[0].count) / 4;
        deadline = MIN(deadline, now_ns + gap);
    }
    if (deadline == UINT64_MAX)
        vtimer_cancel(&pit->timer);
    else
        vtimer_arm(&pit->timer, MAX(deadline, s->not_before_ns));
}

/* Channel 0 was programmed: start over with what it does now. */
static void channel0_changed(struct i8254 *pit)
{
    struct i8254_state *s = &pit->s;
    uint64_t now_ns = vclock_now_ns(pit->clock);
    uint64_t now = ticks_from_ns(now_ns);

    s->owed = 0;
    s->next_edge = channel_next_edge(&s->channel[0], now);
    line_set(pit, mode_is_periodic(&s->channel[0]) || channel_out(&s->channel[0], now));
    timer_arm(pit, now_ns);
}

static void timer_fired(void *ctx)
{
    struct i8254 *pit = ctx;
    struct i8254_state *s = &pit->s;
    struct i8254_channel *c = &s->channel[0];

    pthread_mutex_lock(&pit->lock);
    uint64_t now_ns = vclock_now_ns(pit->clock);
    uint64_t now = ticks_from_ns(now_ns);
    bool is_edge = s->next_edge != NO_TICK && now >= s->next_edge;

    if (now_ns < s->not_before_ns || (!is_edge && s->owed == 0)) {
        timer_arm(pit, now_ns); /* overtaken by a write */
        pthread_mutex_unlock(&pit->lock);
        return;
    }
    if (is_edge) {
        uint64_t edge = s->next_edge;
        channel_settle(c, now);
        if (mode_is_periodic(c))
            s->owed = (unsigned)MIN(s->owed + (now - edge) / c->count, OWED_MAX);
        s->next_edge = channel_next_edge(c, now);
    } else {
        s->owed--;
    }
    s->not_before_ns = now_ns + EDGE_GAP_NS;
    line_set(pit, false);
    line_set(pit, true);
    timer_arm(pit, now_ns);
    pthread_mutex_unlock(&pit->lock);
}

/* ---- programming ---- */

static uint32_t count_decode(const struct i8254_channel *c, uint16_t raw)
{
    if (raw == 0)
        return c->is_bcd ? 10000 : 65536;
    if (!c->is_bcd)
        return raw;
    return (raw >> 12) * 1000u + (raw >> 8 & 15) * 100u + (raw >> 4 & 15) * 10u + (raw & 15);
}

/* Modes 2 and 3: the new count waits for the end of the period, or half period. */
static void channel_queue_count(struct i8254_channel *c, uint32_t count, uint64_t now)
{
    uint64_t at = channel_elapsed(c, now) % c->count;
    uint64_t period_start = now - at;

    if (is_before_start(c, now)) { /* the one before has not even been loaded */
        c->count = count;
        return;
    }
    c->next_count = count;
    if (c->mode == 3 && at < high_ticks(c->count)) {
        c->switch_tick = period_start + high_ticks(c->count);
        /* It begins with its low half. */
        c->next_start = c->switch_tick - high_ticks(count);
    } else {
        c->switch_tick = period_start + c->count;
        c->next_start = c->switch_tick;
    }
}

static void channel_load(struct i8254_channel *c, uint16_t raw, uint64_t now)
{
    uint32_t count = count_decode(c, raw);
    bool was_running = c->is_running;

    c->is_loaded = true;
    switch (c->mode) {
    case 0:
    case 4:
        c->count = count;
        c->start = now + 1;
        c->frozen = 0;
        c->is_running = true;
        break;
    case 2:
    case 3:
        if (was_running && c->gate) {
            channel_queue_count(c, count, now);
            break;
        }
        c->count = count;
        c->next_count = 0;
        c->start = now + 1;
        c->is_running = c->gate;
        break;
    default: /* 1 and 5: from the next trigger on */
        c->next_count = count;
        c->switch_tick = NO_TICK;
        break;
    }
}

static void channel_write(struct i8254_channel *c, uint8_t value, uint64_t now)
{
    channel_settle(c, now);
    switch (c->rw) {
    case RW_LSB:
        channel_load(c, value, now);
        break;
    case RW_MSB:
        channel_load(c, (uint16_t)(value << 8), now);
        break;
    case RW_BOTH:
        if (c->is_write_msb_next) {
            c->is_write_msb_next = false;
            channel_load(c, (uint16_t)(value << 8 | c->write_lsb), now);
        } else {
            c->is_write_msb_next = true;
            c->write_lsb = value;
            if (c->mode == 0)
                c->is_running = false; /* "writing the first byte disables counting" */
        }
        break;
    default: /* never programmed */
        break;
    }
}

/* A channel whose gate went up or down (only channel 2's can). */
static void channel_set_gate(struct i8254_channel *c, bool gate, uint64_t now)
{
    if (c->gate == gate)
        return;
    channel_settle(c, now);
    if (mode_is_held_by_gate(c)) {
        if (gate)
            c->start = now - c->frozen;
        else
            c->frozen = channel_elapsed(c, now);
        c->gate = gate;
        return;
    }
    c->gate = gate;
    if (gate && c->is_loaded) {
        if (c->next_count != 0) {
            c->count = c->next_count;
            c->next_count = 0;
        }
        c->start = now + 1;
        c->is_running = true;
    } else if (!gate && mode_is_periodic(c)) {
        c->is_running = false;
    }
}

static bool channel_is_null(const struct i8254_channel *c, uint64_t now)
{
    if (!c->is_loaded || c->next_count != 0)
        return true;
    return c->is_running && c->gate && is_before_start(c, now);
}

static void channel_latch_count(struct i8254_channel *c, uint64_t now)
{
    if (c->latched_bytes != 0)
        return; /* kept until it has been read */
    c->latched_count = channel_value(c, now);
    c->latched_bytes = c->rw == RW_BOTH ? 2 : 1;
}

static void channel_latch_status(struct i8254_channel *c, uint64_t now)
{
    if (c->is_status_latched)
        return;
    c->is_status_latched = true;
    c->latched_status = (uint8_t)(c->rw << 4 | c->mode << 1 | (c->is_bcd ? 1 : 0));
    if (channel_out(c, now))
        c->latched_status |= STATUS_OUT;
    if (channel_is_null(c, now))
        c->latched_status |= STATUS_NULL;
}

static uint8_t channel_read(struct i8254_channel *c, uint64_t now)
{
    channel_settle(c, now);
    if (c->is_status_latched) {
        c->is_status_latched = false;
        return c->latched_status;
    }
    if (c->latched_bytes != 0) {
        bool is_msb = c->rw == RW_MSB || (c->rw == RW_BOTH && c->latched_bytes == 1);
        c->latched_bytes--;
        return (uint8_t)(is_msb ? c->latched_count >> 8 : c->latched_count);
    }
    uint16_t value = channel_value(c, now);
    bool is_msb = c->rw == RW_MSB || (c->rw == RW_BOTH && c->is_read_msb_next);
    if (c->rw == RW_BOTH)
        c->is_read_msb_next = !c->is_read_msb_next;
    return (uint8_t)(is_msb ? value >> 8 : value);
}

static void channel_program(struct i8254_channel *c, uint8_t control)
{
    uint8_t mode = control >> 1 & 7;
    *c = (struct i8254_channel){
        .mode = mode >= 6 ? mode - 4 : mode, /* bit 2 of modes 2 and 3 is "don't care" */
        .rw = control >> 4 & 3,
        .is_bcd = (control & 1) != 0,
        .gate = c->gate,
        .count = c->count,
    };
}

static void control_write(struct i8254 *pit, uint8_t value)
{
    uint64_t now = tick_now(pit);

    if (value >> 6 == 3) { /* "Read-Back Command"; its latch bits are active low */
        for (unsigned i = 0; i < CHANNEL_COUNT; i++) {
            struct i8254_channel *c = &pit->s.channel[i];
            if ((value & 2u << i) == 0)
                continue;
            channel_settle(c, now);
            if ((value & 0x20) == 0)
                channel_latch_count(c, now);
            if ((value & 0x10) == 0)
                channel_latch_status(c, now);
        }
        return;
    }
    struct i8254_channel *c = &pit->s.channel[value >> 6];
    channel_settle(c, now);
    if ((value >> 4 & 3) == RW_LATCH) {
        channel_latch_count(c, now);
        return;
    }
    channel_program(c, value);
    if (value >> 6 == 0)
        channel0_changed(pit);
}

static uint64_t i8254_read(void *ctx, uint64_t offset, unsigned size)
{
    struct i8254 *pit = ctx;
    if (offset >= CHANNEL_COUNT)
        return 0xff; /* the control register cannot be read */
    return channel_read(&pit->s.channel[offset], tick_now(pit));
}

static void i8254_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct i8254 *pit = ctx;
    if (offset >= CHANNEL_COUNT) {
        control_write(pit, (uint8_t)value);
        return;
    }
    channel_write(&pit->s.channel[offset], (uint8_t)value, tick_now(pit));
    if (offset == 0)
        channel0_changed(pit);
}

static uint64_t port61_read(void *ctx, uint64_t offset, unsigned size)
{
    struct i8254 *pit = ctx;
    uint64_t now = tick_now(pit);
    uint8_t v = pit->s.port61;

    channel_settle(&pit->s.channel[2], now);
    if (now / REFRESH_TICKS & 1)
        v |= PORT61_REFRESH;
    if (channel_out(&pit->s.channel[2], now))
        v |= PORT61_OUT2;
    return v;
}

static void port61_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct i8254 *pit = ctx;
    pit->s.port61 = value & PORT61_STORED;
    channel_set_gate(&pit->s.channel[2], (value & PORT61_GATE2) != 0, tick_now(pit));
}

static const struct space_ops i8254_ops = {.read = i8254_read, .write = i8254_write, .max_size = 1};
static const struct space_ops port61_ops = {
    .read = port61_read, .write = port61_write, .max_size = 1};

/* ---- set-up ---- */

static void state_clear(struct i8254_state *s)
{
    *s = (struct i8254_state){.next_edge = NO_TICK};
    for (unsigned i = 0; i < CHANNEL_COUNT; i++)
        s->channel[i].count = 65536;
    s->channel[0].gate = true;
    s->channel[1].gate = true;
}

void i8254_reset(struct i8254 *pit)
{
    pthread_mutex_lock(&pit->lock);
    vtimer_cancel(&pit->timer);
    line_set(pit, false);
    state_clear(&pit->s);
    pthread_mutex_unlock(&pit->lock);
}

int i8254_create(struct vclock *clock, struct irq_line irq0, struct i8254 **out, struct err *e)
{
    struct i8254 *pit = calloc(1, sizeof(*pit));
    if (pit == NULL)
        return err_set(e, ENOMEM, "make the 8254 timer");
    pthread_mutex_init(&pit->lock, NULL);
    pit->clock = clock;
    pit->irq0 = irq0;
    vtimer_init(&pit->timer, clock, timer_fired, pit);
    state_clear(&pit->s);
    *out = pit;
    return 0;
}

void i8254_destroy(struct i8254 *pit)
{
    if (pit == NULL)
        return;
    vtimer_cancel(&pit->timer);
    pthread_mutex_destroy(&pit->lock);
    free(pit);
}

int i8254_map(struct i8254 *pit, struct space *ports, uint16_t base, uint16_t control,
              struct err *e)
{
    int rc = space_add_io(ports, base, 4, &i8254_ops, pit, &pit->lock, e);
    if (rc == 0)
        rc = space_add_io(ports, control, 1, &port61_ops, pit, &pit->lock, e);
    return rc;
}
