/*
 * mc146818_test.c - time, alarm, periodic and update interrupts of the real-time clock
 */
#include "dev/test_support.h"
#include "dev/timer/mc146818.h"

#define MS UINT64_C(1000000)
/* 2023-12-31 23:59:58.25 UTC, a Sunday */
#define START_NS (UINT64_C(1704067198) * NS_PER_SEC + 250 * MS)

struct fixture {
    struct bench b;
    struct mc146818 *rtc;
    struct probe irq8;
};

static uint64_t start_ns(void *ctx)
{
    return START_NS;
}

static int setup(void **state)
{
    static struct fixture f;
    f = (struct fixture){0};
    bench_setup(&f.b);
    struct mc146818_config config = {
        .clock = f.b.clock, .irq8 = probe_line(&f.irq8), .realtime_ns = start_ns};
    vclock_advance(f.b.clock, 7 * MS); /* guest time is not 0 when the clock is made */
    assert_int_equal(mc146818_create(&config, &f.rtc, NULL), 0);
    assert_int_equal(mc146818_map(f.rtc, f.b.ports, 0x70, NULL), 0);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    mc146818_destroy(f->rtc);
    bench_teardown(&f->b);
    return 0;
}

static uint8_t get(struct fixture *f, uint8_t index)
{
    out8(&f->b, 0x70, index);
    return in8(&f->b, 0x71);
}

static void set(struct fixture *f, uint8_t index, uint8_t v)
{
    out8(&f->b, 0x70, index | 0x80); /* the NMI mask bit is no part of the index */
    out8(&f->b, 0x71, v);
}

static void assert_time(struct fixture *f, uint8_t century, uint8_t year, uint8_t month,
                        uint8_t day, uint8_t hour, uint8_t minute, uint8_t second)
{
    assert_int_equal(get(f, 0x32), century);
    assert_int_equal(get(f, 9), year);
    assert_int_equal(get(f, 8), month);
    assert_int_equal(get(f, 7), day);
    assert_int_equal(get(f, 4), hour);
    assert_int_equal(get(f, 2), minute);
    assert_int_equal(get(f, 0), second);
}

static void test_shows_utc(void **state)
{
    struct fixture *f = *state;
    assert_time(f, 0x20, 0x23, 0x12, 0x31, 0x23, 0x59, 0x58);
    assert_int_equal(get(f, 6), 1); /* Sunday */
    vclock_advance(f->b.clock, 1749 * MS);
    assert_int_equal(get(f, 0), 0x59);
    vclock_advance(f->b.clock, 1 * MS);
    assert_time(f, 0x20, 0x24, 0x01, 0x01, 0x00, 0x00, 0x00);
    assert_int_equal(get(f, 6), 2);
    assert_int_equal(get(f, 0x0d), 0x80);
    assert_int_equal(in8(&f->b, 0x70), 0xff);
}

static void test_formats(void **state)
{
    struct fixture *f = *state;
    set(f, 0x0b, 0x00); /* 12 hours, BCD */
    assert_int_equal(get(f, 4), 0x91);
    set(f, 0x0b, 0x04); /* 12 hours, binary */
    assert_int_equal(get(f, 4), 0x8b);
    set(f, 0x0b, 0x06); /* 24 hours, binary */
    assert_time(f, 20, 23, 12, 31, 23, 59, 58);
    vclock_advance(f->b.clock, 2000 * MS);
    set(f, 0x0b, 0x00);
    assert_int_equal(get(f, 4), 0x12); /* midnight is 12 AM */
}

static void write_time(struct fixture *f)
{
    set(f, 0x32, 0x20);
    set(f, 9, 0x24);
    set(f, 8, 0x02);
    set(f, 7, 0x28);
    set(f, 6, 0x04);
    set(f, 4, 0x23);
    set(f, 2, 0x59);
    set(f, 0, 0x50);
}

static void test_set_holds_the_time(void **state)
{
    struct fixture *f = *state;
    set(f, 0x0b, 0x82);
    write_time(f);
    vclock_advance(f->b.clock, 5000 * MS);
    assert_int_equal(get(f, 0), 0x50);
    assert_int_equal(get(f, 0x0a) & 0x80, 0);
    set(f, 0x0b, 0x02);
    assert_time(f, 0x20, 0x24, 0x02, 0x28, 0x23, 0x59, 0x50);
    vclock_advance(f->b.clock, 10000 * MS);
    assert_time(f, 0x20, 0x24, 0x02, 0x29, 0x00, 0x00, 0x00); /* a leap year */
    assert_int_equal(get(f, 6), 5);
    vclock_advance(f->b.clock, 86400 * NS_PER_SEC);
    assert_time(f, 0x20, 0x24, 0x03, 0x01, 0x00, 0x00, 0x00);
}

/* As Linux sets the time: SET, divider reset, write, let both go. */
static void test_divider_reset(void **state)
{
    struct fixture *f = *state;
    set(f, 0x0b, 0x82);
    set(f, 0x0a, 0x76);
    write_time(f);
    set(f, 0x0b, 0x02);
    vclock_advance(f->b.clock, 3000 * MS);
    assert_int_equal(get(f, 0), 0x50); /* the divider still holds it */
    set(f, 0x0a, 0x26);
    vclock_advance(f->b.clock, 499 * MS);
    assert_int_equal(get(f, 0), 0x50);
    vclock_advance(f->b.clock, 1 * MS);
    assert_int_equal(get(f, 0), 0x51);
}

static void test_running_write_changes_one_field(void **state)
{
    struct fixture *f = *state;
    set(f, 4, 0x12);
    assert_time(f, 0x20, 0x23, 0x12, 0x31, 0x12, 0x59, 0x58);
    vclock_advance(f->b.clock, 750 * MS); /* the second's phase was kept */
    assert_int_equal(get(f, 0), 0x59);
}

static void test_garbage_becomes_a_date(void **state)
{
    struct fixture *f = *state;
    set(f, 0x0b, 0x82);
    for (uint8_t i = 0; i < 10; i++)
        set(f, i, 0xff);
    set(f, 0x32, 0xff);
    assert_int_equal(get(f, 8), 0xff);
    set(f, 0x0b, 0x02);
    assert_time(f, 0x99, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59);
    vclock_advance(f->b.clock, 2000 * MS);
    assert_time(f, 0x00, 0x00, 0x01, 0x01, 0x00, 0x00, 0x01);
}

static void test_update_in_progress(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(get(f, 0x0a), 0x26);
    vclock_advance(f->b.clock, 747 * MS);
    assert_int_equal(get(f, 0x0a), 0x26);
    vclock_advance(f->b.clock, 1 * MS);
    assert_int_equal(get(f, 0x0a), 0xa6);
    vclock_advance(f->b.clock, 2 * MS);
    assert_int_equal(get(f, 0x0a), 0x26);
    assert_int_equal(get(f, 0), 0x59);
}

static void test_update_interrupt(void **state)
{
    struct fixture *f = *state;
    get(f, 0x0c);
    set(f, 0x0b, 0x12);
    vclock_advance(f->b.clock, 749 * MS);
    assert_false(f->irq8.level);
    vclock_advance(f->b.clock, 1 * MS);
    assert_true(f->irq8.level);
    /* Nobody reads register C: nothing more is armed. */
    assert_true(vclock_next_deadline_ns(f->b.clock) == UINT64_MAX);
    assert_int_equal(get(f, 0x0c), 0xd0); /* the periodic flag comes without its interrupt */
    assert_false(f->irq8.level);
    assert_int_equal(get(f, 0x0c), 0x00);
    vclock_advance(f->b.clock, 1000 * MS);
    assert_int_equal(f->irq8.rises, 2);
    set(f, 0x0b, 0x92); /* SET clears UIE, which lowers the line */
    assert_int_equal(get(f, 0x0b), 0x82);
    assert_false(f->irq8.level);
}

static void test_flags_without_interrupts(void **state)
{
    struct fixture *f = *state;
    set(f, 5, 0x12); /* an alarm far from here */
    get(f, 0x0c);
    vclock_advance(f->b.clock, 1000 * MS);
    assert_int_equal(get(f, 0x0c), 0x50); /* update and periodic, no request */
    set(f, 0x0a, 0x20);                   /* no periodic rate */
    get(f, 0x0c);
    vclock_advance(f->b.clock, 1000 * MS);
    assert_int_equal(get(f, 0x0c), 0x10);
    vclock_advance(f->b.clock, 1000 * MS);
    assert_false(f->irq8.level);
    set(f, 0x0b, 0x12); /* the flag is set already: at once */
    assert_true(f->irq8.level);
}

static void test_alarm(void **state)
{
    struct fixture *f = *state;
    set(f, 5, 0x00);
    set(f, 3, 0x01);
    set(f, 1, 0x30);
    get(f, 0x0c);
    set(f, 0x0b, 0x22);
    vclock_advance(f->b.clock, 1750 * MS + 89999 * MS);
    assert_false(f->irq8.level);
    vclock_advance(f->b.clock, 1 * MS);
    assert_true(f->irq8.level);
    assert_int_equal(get(f, 0x0c) & 0xa0, 0xa0);
    set(f, 5, 0xff); /* any hour */
    vclock_advance(f->b.clock, 3600 * NS_PER_SEC - 1 * MS);
    assert_false(f->irq8.level);
    vclock_advance(f->b.clock, 1 * MS);
    assert_true(f->irq8.level);
    get(f, 0x0c);
    set(f, 3, 0x61); /* no such minute: never */
    vclock_advance(f->b.clock, 2 * 86400 * NS_PER_SEC);
    assert_false(f->irq8.level);
    assert_true(vclock_next_deadline_ns(f->b.clock) == UINT64_MAX);
    set(f, 5, 0xc0);
    set(f, 3, 0xc0);
    set(f, 1, 0xc0); /* each second */
    get(f, 0x0c);
    f->irq8.rises = 0;
    for (unsigned i = 0; i < 5; i++) {
        vclock_advance(f->b.clock, 1000 * MS);
        get(f, 0x0c);
    }
    assert_int_equal(f->irq8.rises, 5);
}

static void test_periodic_interrupt(void **state)
{
    struct fixture *f = *state;
    set(f, 0x0a, 0x26); /* 1024 Hz */
    get(f, 0x0c);
    set(f, 0x0b, 0x42);
    f->irq8.rises = 0;
    for (unsigned i = 0; i < 10000; i++) {
        vclock_advance(f->b.clock, MS / 10);
        if (f->irq8.level)
            assert_int_equal(get(f, 0x0c) & 0xc0, 0xc0);
    }
    assert_in_range(f->irq8.rises, 1023, 1025);
    set(f, 0x0a, 0x21); /* 256 Hz */
    get(f, 0x0c);
    f->irq8.rises = 0;
    for (unsigned i = 0; i < 1000; i++) {
        vclock_advance(f->b.clock, MS);
        get(f, 0x0c);
    }
    assert_in_range(f->irq8.rises, 255, 257);
}

static void test_reset_keeps_time_and_memory(void **state)
{
    struct fixture *f = *state;
    set(f, 0x40, 0x5a);
    set(f, 0x0b, 0x7a);
    vclock_advance(f->b.clock, 1000 * MS);
    assert_true(f->irq8.level);
    mc146818_reset(f->rtc);
    assert_false(f->irq8.level);
    assert_int_equal(get(f, 0x0b), 0x02);
    assert_int_equal(get(f, 0x40), 0x5a);
    assert_time(f, 0x20, 0x23, 0x12, 0x31, 0x23, 0x59, 0x59);
    set(f, 0x0b, 0x82); /* left held, divider and all */
    set(f, 0x0a, 0x70);
    mc146818_reset(f->rtc);
    assert_int_equal(get(f, 0x0a), 0x26);
    vclock_advance(f->b.clock, 500 * MS);
    assert_time(f, 0x20, 0x24, 0x01, 0x01, 0x00, 0x00, 0x00);
}

static void test_memory_bytes(void **state)
{
    struct fixture *f = *state;
    mc146818_set_memory_size(f->rtc, UINT64_C(3) << 30, UINT64_C(5) << 30);
    assert_int_equal(get(f, 0x15), 0x80);
    assert_int_equal(get(f, 0x16), 0x02);
    assert_int_equal(get(f, 0x17), 0xff);
    assert_int_equal(get(f, 0x31), 0xff);
    assert_int_equal(get(f, 0x34) | get(f, 0x35) << 8, (3072 - 16) * 16);
    assert_int_equal(get(f, 0x5b) | get(f, 0x5c) << 8 | get(f, 0x5d) << 16, 5 * 1024 * 16);
    mc146818_set_byte(f->rtc, 0x10, 0x40);
    assert_int_equal(get(f, 0x10), 0x40);
    assert_int_equal(mc146818_byte(f->rtc, 0x10), 0x40);
    mc146818_set_byte(f->rtc, 0x0b, 0xff); /* a register, not memory */
    mc146818_set_byte(f->rtc, 0x32, 0x19);
    assert_int_equal(get(f, 0x0b), 0x02);
    assert_int_equal(get(f, 0x32), 0x20);
    assert_int_equal(mc146818_byte(f->rtc, 0), 0x58);
}

static void test_goes_on_while_guest_time_stands_still(void **state)
{
    struct fixture *f = *state;

    mc146818_skip(f->rtc, 700 * MS); /* parts of a second are saved up */
    assert_time(f, 0x20, 0x23, 0x12, 0x31, 0x23, 0x59, 0x58);
    mc146818_skip(f->rtc, 300 * MS);
    assert_time(f, 0x20, 0x23, 0x12, 0x31, 0x23, 0x59, 0x59);
    mc146818_skip(f->rtc, 3601 * NS_PER_SEC);
    assert_time(f, 0x20, 0x24, 0x01, 0x01, 0x01, 0x00, 0x00);
    vclock_advance(f->b.clock, 749 * MS); /* with the phase it had */
    assert_time(f, 0x20, 0x24, 0x01, 0x01, 0x01, 0x00, 0x00);
    vclock_advance(f->b.clock, 1 * MS);
    assert_time(f, 0x20, 0x24, 0x01, 0x01, 0x01, 0x00, 0x01);
}

static void test_alarm_while_guest_time_stands_still(void **state)
{
    struct fixture *f = *state;

    set(f, 5, 0x00); /* 00:00:10 */
    set(f, 3, 0x00);
    set(f, 1, 0x10);
    set(f, 0x0b, 0x22);
    mc146818_skip(f->rtc, 11 * NS_PER_SEC);
    assert_false(f->irq8.level); /* 00:00:09 */
    mc146818_skip(f->rtc, 30 * NS_PER_SEC);
    assert_true(f->irq8.level);
    assert_int_equal(get(f, 0x0c) & 0x20, 0x20);
}

static void test_held_clock_skips_nothing(void **state)
{
    struct fixture *f = *state;

    set(f, 0x0b, 0x82);
    mc146818_skip(f->rtc, 100 * NS_PER_SEC);
    set(f, 0x0b, 0x02);
    assert_time(f, 0x20, 0x23, 0x12, 0x31, 0x23, 0x59, 0x58);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_shows_utc),
        TEST(test_goes_on_while_guest_time_stands_still),
        TEST(test_alarm_while_guest_time_stands_still),
        TEST(test_held_clock_skips_nothing),
        TEST(test_formats),
        TEST(test_set_holds_the_time),
        TEST(test_divider_reset),
        TEST(test_running_write_changes_one_field),
        TEST(test_garbage_becomes_a_date),
        TEST(test_update_in_progress),
        TEST(test_update_interrupt),
        TEST(test_flags_without_interrupts),
        TEST(test_alarm),
        TEST(test_periodic_interrupt),
        TEST(test_reset_keeps_time_and_memory),
        TEST(test_memory_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
