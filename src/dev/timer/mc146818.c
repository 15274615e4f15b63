/*
 * mc146818.c - real-time clock and CMOS memory
 *
 * Nothing ticks. While the clock runs, its time is `anchor_second` plus the guest time since
 * `anchor_ns`, and the divider chain has the same phase; while the guest holds it (SET, or the
 * divider in reset) the time lies in the registers as written. Flags are settled when somebody
 * looks: each covers the interval since the last look. The timer is armed for the earliest
 * interrupt that is enabled and not yet flagged, so a guest that ignores IRQ8 costs nothing.
 *
 * Spec: Motorola MC146818A data sheet.
 */
#include "dev/timer/mc146818.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bits.h"
#include "mem/space.h"
#include "os/vclock.h"

enum {
    REG_SECONDS,
    REG_SECONDS_ALARM,
    REG_MINUTES,
    REG_MINUTES_ALARM,
    REG_HOURS,
    REG_HOURS_ALARM,
    REG_WEEKDAY,
    REG_DAY,
    REG_MONTH,
    REG_YEAR,
    REG_A,
    REG_B,
    REG_C,
    REG_D,
};

#define A_UIP 0x80
#define A_DIVIDER 0x70
#define A_DIVIDER_RESET 0x60 /* 110 and 111 */
#define A_DIVIDER_32KHZ 0x20
#define A_RATE 0x0f
#define B_SET 0x80
#define B_PIE 0x40
#define B_AIE 0x20
#define B_UIE 0x10
#define B_SQWE 0x08
#define B_BINARY 0x04
#define B_24H 0x02
#define C_IRQF 0x80
#define C_FLAGS 0x70 /* PF, AF, UF: the same bits as their enables */
#define C_PF 0x40
#define C_AF 0x20
#define C_UF 0x10
#define D_VRT 0x80
#define HOURS_PM 0x80
#define ALARM_ANY 0xc0

#define SECONDS_PER_DAY 86400
#define DIVIDER_HZ 32768
/* UIP rises 244 us before the update cycle, which takes 1984 us with a 32 kHz crystal. */
#define UIP_NS UINT64_C(2228000)
/* The first update comes half a second after the divider is let go. */
#define DIVIDER_RELEASE_NS UINT64_C(500000000)

struct mc146818_state {
    uint8_t index;
    uint8_t ram[MC146818_SIZE]; /* REG_C holds flags without IRQF; see the file's comment */
    int64_t anchor_second;      /* since 1970; the second that began at anchor_ns */
    int64_t anchor_ns;          /* guest time */
    int weekday_shift;          /* what the guest wrote, less what the calendar says */
    bool is_held;
    uint64_t settled_ns; /* guest time up to which flags are true */
    uint64_t skipped_ns; /* less than a second, not yet in anchor_second */
};

struct mc146818 {
    pthread_mutex_t lock;
    struct vclock *clock;
    struct irq_line irq8;
    struct vtimer timer;
    struct mc146818_state s; /* under lock */
};

/* ---- calendar ---- */

struct rtc_time {
    int second, minute, hour;      /* hour 0..23 */
    int day, month, year, weekday; /* day and month from 1, year 0..9999, Sunday is 1 */
};

/* Days since 1970-01-01 of a date of the Gregorian calendar; years start in March here. */
static int64_t days_from_date(int year, int month, int day)
{
    int64_t y = month <= 2 ? year - 1 : year;
    int64_t era = (y >= 0 ? y : y - 399) / 400;
    int64_t year_of_era = y - era * 400;
    int64_t day_of_year = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1;
    int64_t day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    return era * 146097 + day_of_era - 719468;
}

static void date_from_days(int64_t days, struct rtc_time *t)
{
    int64_t z = days + 719468;
    int64_t era = (z >= 0 ? z : z - 146096) / 146097;
    int64_t day_of_era = z - era * 146097;
    int64_t year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
    int64_t day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    int64_t month_index = (5 * day_of_year + 2) / 153;

    t->day = (int)(day_of_year - (153 * month_index + 2) / 5 + 1);
    t->month = (int)(month_index < 10 ? month_index + 3 : month_index - 9);
    t->year = (int)(year_of_era + era * 400 + (t->month <= 2));
}

static int64_t floor_div(int64_t a, int64_t b)
{
    return a / b - (a % b < 0);
}

static void time_from_seconds(const struct mc146818_state *s, int64_t seconds, struct rtc_time *t)
{
    int64_t days = floor_div(seconds, SECONDS_PER_DAY);
    int rest = (int)(seconds - days * SECONDS_PER_DAY);

    date_from_days(days, t);
    t->hour = rest / 3600;
    t->minute = rest / 60 % 60;
    t->second = rest % 60;
    /* 1970-01-01 was a Thursday. */
    t->weekday = (int)(((days + 4 + s->weekday_shift) % 7 + 7) % 7) + 1;
}

/* ---- register formats ---- */

static uint8_t encode(const struct mc146818_state *s, int value)
{
    if (s->ram[REG_B] & B_BINARY)
        return (uint8_t)value;
    return (uint8_t)(value / 10 << 4 | value % 10);
}

static int decode(const struct mc146818_state *s, uint8_t raw)
{
    if (s->ram[REG_B] & B_BINARY)
        return raw;
    return (raw >> 4) * 10 + (raw & 15);
}

static uint8_t encode_hour(const struct mc146818_state *s, int hour)
{
    if (s->ram[REG_B] & B_24H)
        return encode(s, hour);
    uint8_t v = encode(s, hour % 12 == 0 ? 12 : hour % 12);
    return hour >= 12 ? v | HOURS_PM : v;
}

static int decode_hour(const struct mc146818_state *s, uint8_t raw)
{
    if (s->ram[REG_B] & B_24H)
        return decode(s, raw);
    int hour = decode(s, raw & (uint8_t)~HOURS_PM) % 12;
    return raw & HOURS_PM ? hour + 12 : hour;
}

/* What the guest put in the registers may be any byte: clamp it to a date that exists. */
static int clamp(int v, int lo, int hi)
{
    return v < lo ? lo : v > hi ? hi : v;
}

static int64_t seconds_from_registers(const struct mc146818_state *s)
{
    const uint8_t *ram = s->ram;
    int year = clamp(decode(s, ram[MC146818_CENTURY]), 0, 99) * 100 +
               clamp(decode(s, ram[REG_YEAR]), 0, 99);
    int month = clamp(decode(s, ram[REG_MONTH]), 1, 12);
    int day = clamp(decode(s, ram[REG_DAY]), 1, 31);
    int64_t seconds = days_from_date(year, month, day) * SECONDS_PER_DAY;

    seconds += clamp(decode_hour(s, ram[REG_HOURS]), 0, 23) * 3600;
    seconds += clamp(decode(s, ram[REG_MINUTES]), 0, 59) * 60;
    return seconds + clamp(decode(s, ram[REG_SECONDS]), 0, 59);
}

static void registers_from_seconds(struct mc146818_state *s, int64_t seconds)
{
    struct rtc_time t;
    time_from_seconds(s, seconds, &t);
    int year = (t.year % 10000 + 10000) % 10000;
    s->ram[REG_SECONDS] = encode(s, t.second);
    s->ram[REG_MINUTES] = encode(s, t.minute);
    s->ram[REG_HOURS] = encode_hour(s, t.hour);
    s->ram[REG_WEEKDAY] = encode(s, t.weekday);
    s->ram[REG_DAY] = encode(s, t.day);
    s->ram[REG_MONTH] = encode(s, t.month);
    s->ram[REG_YEAR] = encode(s, year % 100);
    s->ram[MC146818_CENTURY] = encode(s, year / 100);
}

/* ---- time ---- */

static bool divider_is_reset(const struct mc146818_state *s)
{
    return (s->ram[REG_A] & A_DIVIDER_RESET) == A_DIVIDER_RESET;
}

static uint64_t elapsed_ns(const struct mc146818_state *s, uint64_t now_ns)
{
    return now_ns - (uint64_t)s->anchor_ns;
}

static int64_t current_second(const struct mc146818_state *s, uint64_t now_ns)
{
    return s->anchor_second + (int64_t)(elapsed_ns(s, now_ns) / NS_PER_SEC);
}

/* Bring the registers of a running clock up to date. */
static void registers_refresh(struct mc146818_state *s, uint64_t now_ns)
{
    if (!s->is_held)
        registers_from_seconds(s, current_second(s, now_ns));
}

/* The registers hold the time; the second's phase is as given. */
static void clock_restart(struct mc146818_state *s, uint64_t now_ns, uint64_t phase_ns)
{
    struct rtc_time t;
    int weekday = clamp(decode(s, s->ram[REG_WEEKDAY]), 1, 7);

    s->anchor_second = seconds_from_registers(s);
    s->anchor_ns = (int64_t)(now_ns - phase_ns);
    s->weekday_shift = 0;
    time_from_seconds(s, s->anchor_second, &t);
    s->weekday_shift = weekday - t.weekday;
}

/* ---- flags and the interrupt ---- */

/* Ticks of the divider between two periodic events; 0: none ("Periodic Interrupt Rate"). */
static uint64_t periodic_ticks(const struct mc146818_state *s)
{
    unsigned rate = s->ram[REG_A] & A_RATE;
    if (rate == 0 || divider_is_reset(s))
        return 0;
    if (rate <= 2)
        rate += 7;
    return UINT64_C(1) << (rate - 1);
}

static uint64_t divider_ticks(const struct mc146818_state *s, uint64_t now_ns)
{
    return (uint64_t)((unsigned __int128)elapsed_ns(s, now_ns) * DIVIDER_HZ / NS_PER_SEC);
}

/* One field of the alarm: its value, -1 for "any", or `never` when it can never match. */
#define ALARM_NEVER INT32_MAX
static int alarm_field(const struct mc146818_state *s, unsigned reg)
{
    uint8_t raw = s->ram[reg];
    int max = reg == REG_HOURS_ALARM ? 23 : 59;
    int v;
    if ((raw & ALARM_ANY) == ALARM_ANY)
        return -1;
    v = reg == REG_HOURS_ALARM ? decode_hour(s, raw) : decode(s, raw);
    /* Compared as registers are: a byte that the clock never shows never matches. */
    if (v > max || (reg == REG_HOURS_ALARM ? encode_hour(s, v) : encode(s, v)) != raw)
        return ALARM_NEVER;
    return v;
}

/* The first second after `after` at which the alarm goes off, or INT64_MAX. */
static int64_t alarm_next(const struct mc146818_state *s, int64_t after)
{
    int hour = alarm_field(s, REG_HOURS_ALARM);
    int minute = alarm_field(s, REG_MINUTES_ALARM);
    int second = alarm_field(s, REG_SECONDS_ALARM);
    int64_t t = after + 1;

    if (hour == ALARM_NEVER || minute == ALARM_NEVER || second == ALARM_NEVER)
        return INT64_MAX;
    for (;;) { /* at most 24 + 60 + 60 steps */
        int rest = (int)(t - floor_div(t, SECONDS_PER_DAY) * SECONDS_PER_DAY);
        if (hour != -1 && rest / 3600 != hour)
            t += 3600 - rest % 3600;
        else if (minute != -1 && rest / 60 % 60 != minute)
            t += 60 - rest % 60;
        else if (second != -1 && rest % 60 != second)
            t++;
        else
            return t;
    }
}

static void flags_settle(struct mc146818_state *s, uint64_t now_ns)
{
    uint64_t from = s->settled_ns;
    uint64_t period = periodic_ticks(s);

    s->settled_ns = now_ns;
    if (period != 0 && divider_ticks(s, from) / period != divider_ticks(s, now_ns) / period)
        s->ram[REG_C] |= C_PF;
    if (s->is_held || current_second(s, from) == current_second(s, now_ns))
        return;
    s->ram[REG_C] |= C_UF;
    if (alarm_next(s, current_second(s, from)) <= current_second(s, now_ns))
        s->ram[REG_C] |= C_AF;
}

static uint64_t ns_of_second(const struct mc146818_state *s, int64_t second)
{
    return (uint64_t)s->anchor_ns + (uint64_t)(second - s->anchor_second) * NS_PER_SEC;
}

static uint64_t next_event_ns(const struct mc146818_state *s, uint64_t now_ns)
{
    unsigned wanted = s->ram[REG_B] & ~s->ram[REG_C] & C_FLAGS;
    uint64_t period = periodic_ticks(s);
    uint64_t next = UINT64_MAX;

    if ((wanted & C_PF) && period != 0) {
        uint64_t tick = (divider_ticks(s, now_ns) / period + 1) * period;
        unsigned __int128 ns = (unsigned __int128)tick * NS_PER_SEC + DIVIDER_HZ - 1;
        next = (uint64_t)s->anchor_ns + (uint64_t)(ns / DIVIDER_HZ);
    }
    if (s->is_held)
        return next;
    int64_t second = current_second(s, now_ns);
    if (wanted & C_UF)
        next = MIN(next, ns_of_second(s, second + 1));
    if (wanted & C_AF) {
        int64_t alarm = alarm_next(s, second);
        if (alarm != INT64_MAX)
            next = MIN(next, ns_of_second(s, alarm));
    }
    return next;
}

/* After any change: drive the line as the flags say, and wait for the next one. */
static void irq_update(struct mc146818 *rtc, uint64_t now_ns)
{
    struct mc146818_state *s = &rtc->s;
    uint64_t next = next_event_ns(s, now_ns);

    irq_set(&rtc->irq8, (s->ram[REG_B] & s->ram[REG_C] & C_FLAGS) != 0);
    if (next == UINT64_MAX)
        vtimer_cancel(&rtc->timer);
    else
        vtimer_arm(&rtc->timer, next);
}

static void timer_fired(void *ctx)
{
    struct mc146818 *rtc = ctx;
    pthread_mutex_lock(&rtc->lock);
    uint64_t now_ns = vclock_now_ns(rtc->clock);
    flags_settle(&rtc->s, now_ns);
    irq_update(rtc, now_ns);
    pthread_mutex_unlock(&rtc->lock);
}

/* ---- registers ---- */

static bool is_time_register(unsigned index)
{
    switch (index) {
    case REG_SECONDS:
    case REG_MINUTES:
    case REG_HOURS:
    case REG_WEEKDAY:
    case REG_DAY:
    case REG_MONTH:
    case REG_YEAR:
    case MC146818_CENTURY:
        return true;
    default:
        return false;
    }
}

/* SET or the divider's reset came or went: hand the time to or from the registers. */
static void hold_update(struct mc146818_state *s, bool was_divider_reset, uint64_t now_ns)
{
    bool is_held = (s->ram[REG_B] & B_SET) != 0 || divider_is_reset(s);
    uint64_t phase = elapsed_ns(s, now_ns) % NS_PER_SEC;

    if (was_divider_reset && !divider_is_reset(s)) {
        /* The chain starts anew: keep that phase even while SET still holds the time. */
        phase = NS_PER_SEC - DIVIDER_RELEASE_NS;
        s->anchor_ns = (int64_t)(now_ns - phase);
    }
    if (s->is_held && !is_held)
        clock_restart(s, now_ns, phase);
    s->is_held = is_held;
}

static void reg_a_write(struct mc146818_state *s, uint8_t value, uint64_t now_ns)
{
    bool was_reset = divider_is_reset(s);
    registers_refresh(s, now_ns);
    s->ram[REG_A] = value & (uint8_t)~A_UIP;
    hold_update(s, was_reset, now_ns);
}

static void reg_b_write(struct mc146818_state *s, uint8_t value, uint64_t now_ns)
{
    /* The time moves into the registers in the old format before the format changes. */
    registers_refresh(s, now_ns);
    if (value & B_SET)
        value &= (uint8_t)~B_UIE; /* "SET: UIE is cleared" */
    s->ram[REG_B] = value;
    hold_update(s, divider_is_reset(s), now_ns);
}

static void register_write(struct mc146818_state *s, unsigned index, uint8_t value, uint64_t now_ns)
{
    switch (index) {
    case REG_A:
        reg_a_write(s, value, now_ns);
        return;
    case REG_B:
        reg_b_write(s, value, now_ns);
        return;
    case REG_C:
    case REG_D:
        return; /* read-only */
    }
    registers_refresh(s, now_ns);
    s->ram[index] = value;
    /* A write while the clock runs changes one field and leaves the second's phase alone. */
    if (is_time_register(index) && !s->is_held)
        clock_restart(s, now_ns, elapsed_ns(s, now_ns) % NS_PER_SEC);
}

static uint8_t register_read(struct mc146818_state *s, unsigned index, uint64_t now_ns)
{
    uint8_t v;

    if (is_time_register(index))
        registers_refresh(s, now_ns);
    v = s->ram[index];
    switch (index) {
    case REG_A:
        if (!s->is_held && elapsed_ns(s, now_ns) % NS_PER_SEC >= NS_PER_SEC - UIP_NS)
            v |= A_UIP;
        break;
    case REG_C:
        if (v & s->ram[REG_B] & C_FLAGS)
            v |= C_IRQF;
        s->ram[REG_C] = 0;
        break;
    case REG_D:
        v = D_VRT;
        break;
    }
    return v;
}

static uint64_t mc146818_read(void *ctx, uint64_t offset, unsigned size)
{
    struct mc146818 *rtc = ctx;
    if (offset == 0)
        return 0xff; /* the index cannot be read */
    uint64_t now_ns = vclock_now_ns(rtc->clock);
    flags_settle(&rtc->s, now_ns);
    uint8_t v = register_read(&rtc->s, rtc->s.index, now_ns);
    irq_update(rtc, now_ns);
    return v;
}

static void mc146818_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct mc146818 *rtc = ctx;
    if (offset == 0) {
        rtc->s.index = value & (MC146818_SIZE - 1);
        return;
    }
    uint64_t now_ns = vclock_now_ns(rtc->clock);
    flags_settle(&rtc->s, now_ns);
    register_write(&rtc->s, rtc->s.index, (uint8_t)value, now_ns);
    irq_update(rtc, now_ns);
}

static const struct space_ops mc146818_ops = {
    .read = mc146818_read, .write = mc146818_write, .max_size = 1};

int mc146818_map(struct mc146818 *rtc, struct space *ports, uint16_t base, struct err *e)
{
    return space_add_io(ports, base, 2, &mc146818_ops, rtc, &rtc->lock, e);
}

/* ---- set-up ---- */

static uint64_t host_realtime_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

int mc146818_create(const struct mc146818_config *config, struct mc146818 **out, struct err *e)
{
    struct mc146818 *rtc = calloc(1, sizeof(*rtc));
    if (rtc == NULL)
        return err_set(e, ENOMEM, "make the real-time clock");
    pthread_mutex_init(&rtc->lock, NULL);
    rtc->clock = config->clock;
    rtc->irq8 = config->irq8;
    vtimer_init(&rtc->timer, config->clock, timer_fired, rtc);

    uint64_t utc =
        config->realtime_ns != NULL ? config->realtime_ns(config->ctx) : host_realtime_ns();
    uint64_t now_ns = vclock_now_ns(config->clock);
    struct mc146818_state *s = &rtc->s;
    s->anchor_second = (int64_t)(utc / NS_PER_SEC);
    s->anchor_ns = (int64_t)(now_ns - utc % NS_PER_SEC);
    s->settled_ns = now_ns;
    s->ram[REG_A] = A_DIVIDER_32KHZ | 6; /* 1024 Hz, as firmware leaves it */
    s->ram[REG_B] = B_24H;
    *out = rtc;
    return 0;
}

void mc146818_destroy(struct mc146818 *rtc)
{
    if (rtc == NULL)
        return;
    vtimer_cancel(&rtc->timer);
    pthread_mutex_destroy(&rtc->lock);
    free(rtc);
}

void mc146818_reset(struct mc146818 *rtc)
{
    pthread_mutex_lock(&rtc->lock);
    uint64_t now_ns = vclock_now_ns(rtc->clock);
    flags_settle(&rtc->s, now_ns);
    rtc->s.ram[REG_B] &= (uint8_t) ~(B_PIE | B_AIE | B_UIE | B_SQWE);
    rtc->s.ram[REG_C] = 0;
    rtc->s.index = 0;
    /* A machine without firmware: nobody else restarts a clock that the guest left held. */
    reg_a_write(&rtc->s, A_DIVIDER_32KHZ | 6, now_ns);
    reg_b_write(&rtc->s, rtc->s.ram[REG_B] & (uint8_t)~B_SET, now_ns);
    irq_update(rtc, now_ns);
    pthread_mutex_unlock(&rtc->lock);
}

void mc146818_skip(struct mc146818 *rtc, uint64_t ns)
{
    struct mc146818_state *s = &rtc->s;

    pthread_mutex_lock(&rtc->lock);
    uint64_t now_ns = vclock_now_ns(rtc->clock);
    flags_settle(s, now_ns);
    if (!s->is_held) {
        int64_t before = current_second(s, now_ns);
        /* whole seconds only: the divider's phase is part of what stood still */
        s->skipped_ns += ns % NS_PER_SEC;
        s->anchor_second += (int64_t)(ns / NS_PER_SEC + s->skipped_ns / NS_PER_SEC);
        s->skipped_ns %= NS_PER_SEC;
        if (current_second(s, now_ns) != before)
            s->ram[REG_C] |= C_UF;
        if (alarm_next(s, before) <= current_second(s, now_ns))
            s->ram[REG_C] |= C_AF;
    }
    irq_update(rtc, now_ns);
    pthread_mutex_unlock(&rtc->lock);
}

void mc146818_set_byte(struct mc146818 *rtc, unsigned index, uint8_t value)
{
    assert(index < MC146818_SIZE);
    if (index <= REG_D || index == MC146818_CENTURY)
        return;
    pthread_mutex_lock(&rtc->lock);
    rtc->s.ram[index] = value;
    pthread_mutex_unlock(&rtc->lock);
}

uint8_t mc146818_byte(struct mc146818 *rtc, unsigned index)
{
    assert(index < MC146818_SIZE);
    pthread_mutex_lock(&rtc->lock);
    if (is_time_register(index))
        registers_refresh(&rtc->s, vclock_now_ns(rtc->clock));
    uint8_t v = rtc->s.ram[index];
    pthread_mutex_unlock(&rtc->lock);
    return v;
}

static void set_word(struct mc146818 *rtc, unsigned index, uint64_t value)
{
    mc146818_set_byte(rtc, index, (uint8_t)value);
    mc146818_set_byte(rtc, index + 1, (uint8_t)(value >> 8));
}

void mc146818_set_memory_size(struct mc146818 *rtc, uint64_t below_4g, uint64_t above_4g)
{
    uint64_t extended_kib = below_4g > BIT(20) ? (below_4g - BIT(20)) >> 10 : 0;
    uint64_t above_16m = below_4g > BIT(24) ? (below_4g - BIT(24)) >> 16 : 0;
    uint64_t high = MIN(above_4g >> 16, 0xffffff);

    set_word(rtc, 0x15, MIN(below_4g >> 10, 640));
    set_word(rtc, 0x17, MIN(extended_kib, 0xffff));
    set_word(rtc, 0x30, MIN(extended_kib, 0xffff));
    set_word(rtc, 0x34, MIN(above_16m, 0xffff));
    set_word(rtc, 0x5b, high);
    mc146818_set_byte(rtc, 0x5d, (uint8_t)(high >> 16));
}
