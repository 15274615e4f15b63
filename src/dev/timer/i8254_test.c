/*
 * i8254_test.c - the interval timer's modes, latches and line on a manual clock
 */
#include "dev/test_support.h"
#include "dev/timer/i8254.h"

struct fixture {
    struct bench b;
    struct i8254 *pit;
    struct probe irq0;
    uint64_t tick; /* where the clock stands */
};

/* Move to the first nanosecond of tick `at`. */
static void go_to(struct fixture *f, uint64_t at)
{
    uint64_t ns = (at * NS_PER_SEC + I8254_HZ - 1) / I8254_HZ;
    vclock_advance(f->b.clock, ns - vclock_now_ns(f->b.clock));
    f->tick = at;
}

static void go_by(struct fixture *f, uint64_t ticks)
{
    go_to(f, f->tick + ticks);
}

static int setup(void **state)
{
    static struct fixture f;
    f = (struct fixture){0};
    bench_setup(&f.b);
    assert_int_equal(i8254_create(f.b.clock, probe_line(&f.irq0), &f.pit, NULL), 0);
    assert_int_equal(i8254_map(f.pit, f.b.ports, 0x40, 0x61, NULL), 0);
    go_to(&f, 1000);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    i8254_destroy(f->pit);
    bench_teardown(&f->b);
    return 0;
}

static void program(struct fixture *f, unsigned channel, uint8_t control, uint16_t count)
{
    out8(&f->b, 0x43, (uint8_t)(channel << 6 | 0x30 | control));
    out8(&f->b, (uint16_t)(0x40 + channel), (uint8_t)count);
    out8(&f->b, (uint16_t)(0x40 + channel), (uint8_t)(count >> 8));
}

static unsigned count_of(struct fixture *f, unsigned channel)
{
    out8(&f->b, 0x43, (uint8_t)(channel << 6));
    unsigned lo = in8(&f->b, (uint16_t)(0x40 + channel));
    return lo | in8(&f->b, (uint16_t)(0x40 + channel)) << 8;
}

static uint8_t status_of(struct fixture *f, unsigned channel)
{
    out8(&f->b, 0x43, (uint8_t)(0xe0 | 2u << channel));
    return in8(&f->b, (uint16_t)(0x40 + channel));
}

static bool out2(struct fixture *f)
{
    return (in8(&f->b, 0x61) & 0x20) != 0;
}

static void test_mode0_interrupts_once(void **state)
{
    struct fixture *f = *state;
    program(f, 0, 0x00, 100);
    assert_false(f->irq0.level);
    go_by(f, 1);
    assert_int_equal(count_of(f, 0), 100);
    go_by(f, 99);
    assert_int_equal(count_of(f, 0), 1);
    assert_false(f->irq0.level);
    go_by(f, 1);
    assert_true(f->irq0.level);
    assert_int_equal(count_of(f, 0), 0);
    go_by(f, 1);
    assert_int_equal(count_of(f, 0), 0xffff); /* it wraps and goes on */
    go_by(f, 200000);
    assert_int_equal(f->irq0.rises, 1);
    assert_true(vclock_next_deadline_ns(f->b.clock) == UINT64_MAX);
    out8(&f->b, 0x40, 10); /* the first byte lowers OUT and stops */
    assert_false(f->irq0.level);
    go_by(f, 100);
    assert_int_equal(f->irq0.rises, 1);
    out8(&f->b, 0x40, 0);
    go_by(f, 11);
    assert_int_equal(f->irq0.rises, 2);
}

static void test_mode2_is_periodic(void **state)
{
    struct fixture *f = *state;
    program(f, 0, 0x04, 1000);
    f->irq0.rises = 0;
    go_by(f, 1); /* loaded */
    assert_int_equal(count_of(f, 0), 1000);
    go_by(f, 999);
    assert_int_equal(count_of(f, 0), 1);
    assert_int_equal(status_of(f, 0), 0x34); /* OUT is low for this one tick */
    assert_int_equal(f->irq0.rises, 0);
    go_by(f, 1);
    assert_int_equal(status_of(f, 0), 0xb4);
    assert_int_equal(count_of(f, 0), 1000);
    assert_int_equal(f->irq0.rises, 1);
    for (unsigned i = 0; i < 50; i++)
        go_by(f, 1000);
    assert_int_equal(f->irq0.rises, 51);
    assert_true(f->irq0.level); /* rests high */
}

static void test_mode2_new_count_waits_for_the_period(void **state)
{
    struct fixture *f = *state;
    program(f, 0, 0x04, 1000);
    f->irq0.rises = 0;
    go_by(f, 401);
    out8(&f->b, 0x40, 200);
    out8(&f->b, 0x40, 0);
    assert_int_equal(count_of(f, 0), 600);
    assert_int_equal(status_of(f, 0) & 0x40, 0x40); /* not loaded yet */
    go_by(f, 599);
    assert_int_equal(f->irq0.rises, 0);
    go_by(f, 1);
    assert_int_equal(f->irq0.rises, 1);
    assert_int_equal(count_of(f, 0), 200);
    assert_int_equal(status_of(f, 0) & 0x40, 0);
    go_by(f, 200);
    assert_int_equal(f->irq0.rises, 2);
}

static void test_mode3_is_square(void **state)
{
    struct fixture *f = *state;
    out8(&f->b, 0x61, 1);
    program(f, 2, 0x06, 101); /* odd: 51 high, 50 low */
    go_by(f, 1);
    assert_true(out2(f));
    assert_int_equal(count_of(f, 2), 100);
    go_by(f, 1);
    assert_int_equal(count_of(f, 2), 98); /* by twos */
    go_by(f, 49);
    assert_true(out2(f));
    go_by(f, 1);
    assert_false(out2(f));
    assert_int_equal(count_of(f, 2), 100);
    go_by(f, 49);
    assert_false(out2(f));
    go_by(f, 1);
    assert_true(out2(f));
    out8(&f->b, 0x61, 0); /* gate low: OUT high at once */
    go_by(f, 70);
    assert_true(out2(f));
    out8(&f->b, 0x61, 1); /* a trigger reloads */
    go_by(f, 1);
    assert_int_equal(count_of(f, 2), 100);
    /* In the high half a new count starts with its low half. */
    out8(&f->b, 0x42, 20);
    out8(&f->b, 0x42, 0);
    go_by(f, 51);
    assert_false(out2(f));
    go_by(f, 9);
    assert_false(out2(f));
    go_by(f, 1);
    assert_true(out2(f));
    go_by(f, 10);
    assert_false(out2(f));
}

static void test_mode3_interrupts(void **state)
{
    struct fixture *f = *state;
    program(f, 0, 0x06, 11932); /* 100 Hz */
    f->irq0.rises = 0;
    go_by(f, 1);
    for (unsigned i = 0; i < 100; i++)
        go_by(f, 11932);
    assert_int_equal(f->irq0.rises, 100);
}

static void test_mode1_waits_for_its_gate(void **state)
{
    struct fixture *f = *state;
    program(f, 2, 0x02, 50);
    go_by(f, 100);
    assert_true(out2(f));
    assert_int_equal(status_of(f, 2) & 0x40, 0x40); /* nothing loaded before the trigger */
    out8(&f->b, 0x61, 1);
    go_by(f, 1);
    assert_false(out2(f));
    assert_int_equal(count_of(f, 2), 50);
    go_by(f, 30);
    out8(&f->b, 0x61, 0); /* letting go does nothing */
    assert_int_equal(count_of(f, 2), 20);
    out8(&f->b, 0x61, 1); /* again: retriggered */
    go_by(f, 40);
    assert_false(out2(f));
    go_by(f, 11);
    assert_true(out2(f));
}

static void test_mode4_strobes(void **state)
{
    struct fixture *f = *state;
    program(f, 0, 0x08, 100);
    f->irq0.rises = 0;
    go_by(f, 100);
    assert_int_equal(status_of(f, 0) & 0x80, 0x80);
    go_by(f, 1);
    assert_int_equal(status_of(f, 0) & 0x80, 0); /* one tick low */
    assert_int_equal(f->irq0.rises, 0);
    go_by(f, 1);
    assert_int_equal(status_of(f, 0) & 0x80, 0x80);
    assert_int_equal(f->irq0.rises, 1);
    go_by(f, 100000);
    assert_int_equal(f->irq0.rises, 1);
}

static void test_mode5_strobes_after_its_gate(void **state)
{
    struct fixture *f = *state;
    program(f, 2, 0x0a, 10);
    go_by(f, 100);
    assert_true(out2(f));
    out8(&f->b, 0x61, 1);
    go_by(f, 10);
    assert_true(out2(f));
    go_by(f, 1);
    assert_false(out2(f));
    go_by(f, 1);
    assert_true(out2(f));
}

static void test_mode0_gate_holds(void **state)
{
    struct fixture *f = *state;
    out8(&f->b, 0x61, 1);
    program(f, 2, 0x00, 100);
    go_by(f, 41);
    assert_int_equal(count_of(f, 2), 60);
    out8(&f->b, 0x61, 0);
    go_by(f, 1000);
    assert_int_equal(count_of(f, 2), 60);
    assert_false(out2(f));
    out8(&f->b, 0x61, 3);
    go_by(f, 59);
    assert_false(out2(f));
    go_by(f, 1);
    assert_true(out2(f));
    assert_int_equal(in8(&f->b, 0x61) & 0x0f, 3);
}

static void test_latches(void **state)
{
    struct fixture *f = *state;
    program(f, 0, 0x04, 0x1234);
    go_by(f, 1);
    out8(&f->b, 0x43, 0x00); /* latch */
    go_by(f, 0x34);
    out8(&f->b, 0x43, 0x00); /* a second latch command is ignored */
    assert_in8(&f->b, 0x40, 0x34);
    assert_in8(&f->b, 0x40, 0x12);
    assert_in8(&f->b, 0x40, 0x00); /* then the running count: 1200h */
    assert_in8(&f->b, 0x40, 0x12);
    out8(&f->b, 0x43, 0xc2); /* read back count and status: status first */
    go_by(f, 5);
    out8(&f->b, 0x43, 0xc2);
    assert_in8(&f->b, 0x40, 0xb4);
    assert_in8(&f->b, 0x40, 0x00);
    assert_in8(&f->b, 0x40, 0x12);
    out8(&f->b, 0x43, 0xd6); /* read back counts of channels 0 and 1 */
    out8(&f->b, 0x43, 0x34); /* programming drops the latch */
    out8(&f->b, 0x40, 5);
    out8(&f->b, 0x40, 0);
    go_by(f, 1);
    assert_in8(&f->b, 0x40, 5);
    assert_in8(&f->b, 0x43, 0xff);
}

static void test_single_bytes_and_bcd(void **state)
{
    struct fixture *f = *state;
    out8(&f->b, 0x43, 0x54); /* channel 1, low byte only, mode 2 */
    out8(&f->b, 0x41, 18);
    go_by(f, 4);
    assert_in8(&f->b, 0x41, 15);
    assert_in8(&f->b, 0x41, 15);
    out8(&f->b, 0x43, 0x64); /* high byte only */
    out8(&f->b, 0x41, 0x02);
    go_by(f, 2);
    assert_in8(&f->b, 0x41, 0x01);
    program(f, 0, 0x05, 0x1000); /* BCD */
    go_by(f, 2);
    assert_int_equal(count_of(f, 0), 0x0999);
    program(f, 0, 0x05, 0); /* 10000 */
    f->irq0.rises = 0;
    go_by(f, 10000);
    assert_int_equal(f->irq0.rises, 0);
    go_by(f, 1);
    assert_int_equal(f->irq0.rises, 1);
    program(f, 0, 0x04, 0); /* 65536 */
    go_by(f, 1);
    assert_int_equal(count_of(f, 0), 0);
    go_by(f, 1);
    assert_int_equal(count_of(f, 0), 0xffff);
}

static void test_refresh_toggles(void **state)
{
    struct fixture *f = *state;
    unsigned toggles = 0;
    uint8_t last = in8(&f->b, 0x61) & 0x10;
    for (unsigned i = 0; i < 180; i++) {
        go_by(f, 1);
        uint8_t now = in8(&f->b, 0x61) & 0x10;
        toggles += now != last;
        last = now;
    }
    assert_int_equal(toggles, 10);
}

static void test_small_counts_are_bounded(void **state)
{
    struct fixture *f = *state;
    program(f, 0, 0x04, 2);
    f->irq0.rises = 0;
    vclock_advance(f->b.clock, 10000000);
    assert_in_range(f->irq0.rises, 1, 501);
    program(f, 0, 0x04, 1);
    program(f, 0, 0x06, 1);
    vclock_advance(f->b.clock, 10000000);
    (void)count_of(f, 0);
}

static void test_reset_stops_everything(void **state)
{
    struct fixture *f = *state;
    struct vclock *clock = f->b.clock;
    program(f, 0, 0x04, 1193); /* about 1 ms */
    vclock_advance(clock, 1500000);
    f->irq0.rises = 0;
    i8254_reset(f->pit);
    assert_false(f->irq0.level);
    assert_true(vclock_next_deadline_ns(clock) == UINT64_MAX);
    vclock_advance(clock, 10000000);
    assert_int_equal(f->irq0.rises, 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_mode0_interrupts_once),
        TEST(test_mode2_is_periodic),
        TEST(test_mode2_new_count_waits_for_the_period),
        TEST(test_mode3_is_square),
        TEST(test_mode3_interrupts),
        TEST(test_mode1_waits_for_its_gate),
        TEST(test_mode4_strobes),
        TEST(test_mode5_strobes_after_its_gate),
        TEST(test_mode0_gate_holds),
        TEST(test_latches),
        TEST(test_single_bytes_and_bcd),
        TEST(test_refresh_toggles),
        TEST(test_small_counts_are_bounded),
        TEST(test_reset_stops_everything),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
