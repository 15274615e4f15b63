/*
 * hpet_test.c - counter, comparators, routing and legacy replacement
 */
#include "dev/test_support.h"
#include "dev/timer/hpet.h"

#define BASE 0x1000 /* the window is put among the ports: a space is a space */
#define TICK 10     /* ns */
#define ROUTES 0x00f00000u
#define LEGACY 0x2

struct fixture {
    struct bench b;
    struct hpet *hpet;
    struct probe legacy[2];
    struct probe ioapic[32];
};

static int setup(void **state)
{
    static struct fixture f;
    f = (struct fixture){0};
    bench_setup(&f.b);
    struct hpet_config config = {.clock = f.b.clock, .ioapic_mask = ROUTES};
    for (unsigned i = 0; i < 2; i++)
        config.legacy[i] = probe_line(&f.legacy[i]);
    for (unsigned i = 0; i < 32; i++)
        config.ioapic[i] = probe_line(&f.ioapic[i]);
    vclock_advance(f.b.clock, 12345);
    assert_int_equal(hpet_create(&config, &f.hpet, NULL), 0);
    assert_int_equal(hpet_map(f.hpet, f.b.ports, BASE, NULL), 0);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    hpet_destroy(f->hpet);
    bench_teardown(&f->b);
    return 0;
}

static uint64_t get(struct fixture *f, unsigned reg)
{
    return space_load(f->b.ports, BASE + reg, 8);
}

static void set(struct fixture *f, unsigned reg, uint64_t v)
{
    space_store(f->b.ports, BASE + reg, v, 8);
}

static void set32(struct fixture *f, unsigned reg, uint32_t v)
{
    space_store(f->b.ports, BASE + reg, v, 4);
}

static void go(struct fixture *f, uint64_t ticks)
{
    vclock_advance(f->b.clock, ticks * TICK);
}

#define T_CONFIG(n) (0x100u + 0x20u * (n))
#define T_COMPARATOR(n) (0x108u + 0x20u * (n))

static void test_capabilities(void **state)
{
    struct fixture *f = *state;
    uint64_t cap = get(f, 0);
    assert_int_equal(cap >> 32, 10000000);
    assert_int_equal(cap & 0xffffffff, 0x8086a201);
    assert_int_equal(cap >> 8 & 31, HPET_COMPARATOR_COUNT - 1);
    assert_int_equal(space_load(f->b.ports, BASE + 4, 4), 10000000);
    assert_int_equal(get(f, T_CONFIG(2)), (uint64_t)ROUTES << 32 | 0x30);
    set(f, 0, 0);
    assert_int_equal(get(f, 0), cap);
    set(f, T_CONFIG(1), 0xc000); /* FSB is not offered */
    assert_int_equal(get(f, T_CONFIG(1)) & 0xc000, 0);
    assert_int_equal(get(f, 0x3f8), 0);
}

static void test_counter(void **state)
{
    struct fixture *f = *state;
    go(f, 100);
    assert_int_equal(get(f, 0xf0), 0);
    set(f, 0x10, 1);
    go(f, 100);
    assert_int_equal(get(f, 0xf0), 100);
    set(f, 0x10, 0);
    go(f, 100);
    assert_int_equal(get(f, 0xf0), 100);
    set(f, 0xf0, 0x1fffffff0);
    set(f, 0x10, 1);
    go(f, 0x20);
    assert_int_equal(get(f, 0xf0), 0x200000010);
    assert_int_equal(space_load(f->b.ports, BASE + 0xf4, 4), 2);
    set(f, 0x10, 0);
    set32(f, 0xf4, 7);
    set32(f, 0xf0, 9);
    assert_int_equal(get(f, 0xf0), 0x700000009);
}

static void test_one_shot_edge(void **state)
{
    struct fixture *f = *state;
    set(f, 0x10, 1);
    set(f, T_CONFIG(2), 20 << 9 | 0x4);
    set(f, T_COMPARATOR(2), 5000);
    go(f, 4999);
    assert_int_equal(f->ioapic[20].rises, 0);
    go(f, 1);
    assert_int_equal(f->ioapic[20].rises, 1);
    assert_false(f->ioapic[20].level);
    assert_int_equal(get(f, 0x20), 0); /* edge: no status */
    go(f, 1000000);
    assert_int_equal(f->ioapic[20].rises, 1);
    set(f, T_COMPARATOR(2), 1); /* in the past: not within a life time */
    assert_true(vclock_next_deadline_ns(f->b.clock) == UINT64_MAX);
}

static void test_one_shot_32_bits_wraps(void **state)
{
    struct fixture *f = *state;
    set(f, 0xf0, 0x3fffffff0);
    set(f, T_CONFIG(0), 21 << 9 | 0x104);
    set32(f, T_COMPARATOR(0), 0x10);
    assert_int_equal(get(f, T_COMPARATOR(0)), 0x10);
    set(f, 0x10, 1);
    go(f, 0x20);
    assert_int_equal(f->ioapic[21].rises, 1);
    go(f, 0xffffffff);
    assert_int_equal(f->ioapic[21].rises, 1);
    go(f, 1);
    assert_int_equal(f->ioapic[21].rises, 2);
}

static void test_level(void **state)
{
    struct fixture *f = *state;
    set(f, 0x10, 1);
    set(f, T_CONFIG(1), 22 << 9 | 0x6);
    set(f, T_COMPARATOR(1), 4000);
    go(f, 4000);
    assert_true(f->ioapic[22].level);
    assert_int_equal(get(f, 0x20), 2);
    set(f, 0x20, 5); /* others' bits */
    assert_true(f->ioapic[22].level);
    set(f, 0x20, 2);
    assert_false(f->ioapic[22].level);
    assert_int_equal(get(f, 0x20), 0);
    set(f, T_COMPARATOR(1), 9000);
    set(f, T_CONFIG(1), 22 << 9 | 0x2); /* status comes without the interrupt, too */
    go(f, 10000);
    assert_int_equal(get(f, 0x20), 2);
    assert_false(f->ioapic[22].level);
    set(f, T_CONFIG(1), 22 << 9 | 0x6);
    assert_true(f->ioapic[22].level);
    set(f, 0x10, 0); /* the whole block off */
    assert_false(f->ioapic[22].level);
}

/* As Linux sets it: VALUE_SET, the first match, then the period. */
static void test_periodic(void **state)
{
    struct fixture *f = *state;
    set(f, 0x10, 1);
    set(f, T_CONFIG(2), 23 << 9 | 0x14c);
    set32(f, T_COMPARATOR(2), 5000);
    assert_int_equal(get(f, T_CONFIG(2)) & 0x40, 0); /* clears itself */
    set32(f, T_COMPARATOR(2), 10000);
    go(f, 5000);
    assert_int_equal(f->ioapic[23].rises, 1);
    assert_int_equal(get(f, T_COMPARATOR(2)), 15000);
    for (unsigned i = 0; i < 100; i++)
        go(f, 10000);
    assert_int_equal(f->ioapic[23].rises, 101);
    assert_int_equal(get(f, T_COMPARATOR(2)), 1015000);
    set(f, 0x10, 0);
    go(f, 100000);
    assert_int_equal(f->ioapic[23].rises, 101);
    assert_true(vclock_next_deadline_ns(f->b.clock) == UINT64_MAX);
}

static void test_tiny_period_is_bounded(void **state)
{
    struct fixture *f = *state;
    set(f, 0x10, 1);
    set(f, T_CONFIG(2), 23 << 9 | 0x4c);
    set(f, T_COMPARATOR(2), 1);
    vclock_advance(f->b.clock, 10000000);
    assert_in_range(f->ioapic[23].rises, 1, 501);
    set(f, T_CONFIG(2), 23 << 9 | 0x4c);
    set(f, T_COMPARATOR(2), 0); /* a period of nothing */
    vclock_advance(f->b.clock, 10000000);
}

static void test_routes(void **state)
{
    struct fixture *f = *state;
    set(f, 0x10, 1);
    set(f, T_CONFIG(2), 20 << 9 | 0x4);
    set(f, T_CONFIG(2), 3 << 9 | 0x4); /* not offered: does not stick */
    assert_int_equal(get(f, T_CONFIG(2)) >> 9 & 31, 20);
    set(f, T_CONFIG(0), 21 << 9 | 0x6);
    set(f, T_CONFIG(1), 21 << 9 | 0x6); /* two on one line */
    set(f, T_COMPARATOR(0), 3000);
    set(f, T_COMPARATOR(1), 6000);
    go(f, 6000);
    set(f, 0x20, 1);
    assert_true(f->ioapic[21].level);
    set(f, 0x20, 2);
    assert_false(f->ioapic[21].level);
    assert_int_equal(f->ioapic[21].rises, 1);
}

static void test_legacy_replacement(void **state)
{
    struct fixture *f = *state;
    struct irq_line pit = hpet_legacy_input(f->hpet, 0), rtc = hpet_legacy_input(f->hpet, 1);
    irq_set(&pit, true);
    irq_set(&rtc, true);
    assert_true(f->legacy[0].level && f->legacy[1].level);
    set(f, 0x10, 1 | LEGACY);
    assert_false(f->legacy[0].level || f->legacy[1].level);
    irq_set(&pit, false);
    irq_set(&pit, true);
    assert_int_equal(f->legacy[0].rises, 1);
    set(f, T_CONFIG(0), 20 << 9 | 0x4c);
    set(f, T_COMPARATOR(0), 10000);
    for (unsigned i = 0; i < 10; i++)
        go(f, 10000);
    assert_int_equal(f->legacy[0].rises, 11);
    assert_true(f->legacy[0].level); /* rests high for the 8259 */
    assert_int_equal(f->ioapic[20].rises, 0);
    set(f, T_CONFIG(0), 0);
    assert_false(f->legacy[0].level);
    set(f, 0x10, 1);
    assert_true(f->legacy[0].level && f->legacy[1].level); /* what the 8254 drives shows again */
    irq_set(&rtc, false);
    assert_false(f->legacy[1].level);
}

static void test_reset(void **state)
{
    struct fixture *f = *state;
    set(f, 0x10, 3);
    set(f, T_CONFIG(0), 20 << 9 | 0x4c);
    set(f, T_COMPARATOR(0), 1000);
    go(f, 1000);
    assert_true(f->legacy[0].level);
    hpet_reset(f->hpet);
    assert_false(f->legacy[0].level);
    assert_int_equal(get(f, 0x10), 0);
    assert_int_equal(get(f, 0xf0), 0);
    assert_true(get(f, T_COMPARATOR(0)) == UINT64_MAX);
    assert_true(vclock_next_deadline_ns(f->b.clock) == UINT64_MAX);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_capabilities),
        TEST(test_counter),
        TEST(test_one_shot_edge),
        TEST(test_one_shot_32_bits_wraps),
        TEST(test_level),
        TEST(test_periodic),
        TEST(test_tiny_period_is_bounded),
        TEST(test_routes),
        TEST(test_legacy_replacement),
        TEST(test_reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
