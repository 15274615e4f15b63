/*
 * acpi_pm_test.c - ACPI fixed hardware, and the debug-exit port
 */
#include "dev/test_support.h"
#include "dev/platform/acpi_pm.h"
#include "dev/platform/debug_exit.h"

#define BASE 0x600

struct fixture {
    struct bench b;
    struct acpi_pm *pm;
    struct probe sci;
    unsigned power_offs;
};

static void count_power_off(void *ctx)
{
    ((struct fixture *)ctx)->power_offs++;
}

static void make(struct fixture *f, bool is_32bit)
{
    *f = (struct fixture){0};
    bench_setup(&f->b);
    struct acpi_pm_config config = {.clock = f->b.clock,
                                    .sci = probe_line(&f->sci),
                                    .is_timer_32bit = is_32bit,
                                    .power_off = count_power_off,
                                    .ctx = f};
    assert_int_equal(acpi_pm_create(&config, &f->pm, NULL), 0);
    assert_int_equal(acpi_pm_map(f->pm, f->b.ports, BASE, 0xb2, NULL), 0);
}

static int setup(void **state)
{
    static struct fixture f;
    make(&f, false);
    *state = &f;
    return 0;
}

static int setup_32bit(void **state)
{
    static struct fixture f;
    make(&f, true);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    acpi_pm_destroy(f->pm);
    bench_teardown(&f->b);
    return 0;
}

static uint32_t get(struct fixture *f, unsigned offset, unsigned size)
{
    return (uint32_t)space_load(f->b.ports, BASE + offset, size);
}

static void set(struct fixture *f, unsigned offset, uint32_t v, unsigned size)
{
    space_store(f->b.ports, BASE + offset, v, size);
}

static void test_timer_counts(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(get(f, 8, 4), 0);
    vclock_advance(f->b.clock, NS_PER_SEC);
    assert_int_equal(get(f, 8, 4), 3579545);
    assert_int_equal(get(f, 8, 1), 3579545 & 0xff);
    set(f, 8, 0, 4);
    assert_int_equal(get(f, 8, 4), 3579545);
    vclock_advance(f->b.clock, 4 * NS_PER_SEC);
    assert_int_equal(get(f, 8, 4), 5 * 3579545 - (1 << 24));
}

static void test_timer_32bit(void **state)
{
    struct fixture *f = *state;
    vclock_advance(f->b.clock, 100 * NS_PER_SEC);
    assert_int_equal(get(f, 8, 4), 357954500);
    assert_int_equal(get(f, 0, 2), 0);
    vclock_advance(f->b.clock, 500 * NS_PER_SEC);
    assert_int_equal(get(f, 0, 2), 1); /* bit 31 went up after 599.9 s */
}

static void test_timer_overflow_interrupts(void **state)
{
    struct fixture *f = *state;
    set(f, 2, 1, 2);
    uint64_t half_ns = ((UINT64_C(1) << 23) * NS_PER_SEC + 3579544) / 3579545;
    vclock_advance(f->b.clock, half_ns - 1);
    assert_false(f->sci.level);
    vclock_advance(f->b.clock, 1);
    assert_true(f->sci.level);
    assert_int_equal(get(f, 0, 2), 1);
    set(f, 0, 1, 2);
    assert_false(f->sci.level);
    vclock_advance(f->b.clock, half_ns);
    assert_int_equal(f->sci.rises, 2); /* the bit's fall counts as well */
    acpi_pm_reset(f->pm);
    assert_false(f->sci.level);
    assert_int_equal(get(f, 0, 4), 0);
}

static void test_power_button(void **state)
{
    struct fixture *f = *state;
    acpi_pm_press_power_button(f->pm);
    assert_int_equal(get(f, 0, 2), 0x100);
    assert_false(f->sci.level);
    set(f, 2, 0x100, 2);
    assert_true(f->sci.level);
    set(f, 1, 0x00, 1); /* writing zeroes clears nothing */
    assert_true(f->sci.level);
    set(f, 1, 0x01, 1); /* as a byte */
    assert_false(f->sci.level);
    set(f, 0, 0x01000000, 4); /* status and enable in one */
    assert_int_equal(get(f, 0, 4), 0x01000000);
    set(f, 2, 0xffff, 2);
    assert_int_equal(get(f, 2, 2), 0x0521); /* only what exists, and the RTC for Linux */
}

static void test_acpi_mode(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(get(f, 4, 2), 1);
    set(f, 2, 0x100, 2);
    acpi_pm_press_power_button(f->pm);
    assert_true(f->sci.level);
    set(f, 4, 0, 2); /* SCI_EN is not the guest's to write */
    assert_int_equal(get(f, 4, 2), 1);
    out8(&f->b, 0xb2, ACPI_PM_DISABLE);
    assert_int_equal(get(f, 4, 2), 0);
    assert_false(f->sci.level);
    out8(&f->b, 0xb2, ACPI_PM_ENABLE);
    assert_true(f->sci.level);
    out8(&f->b, 0xb3, 0x5a);
    assert_in8(&f->b, 0xb3, 0x5a);
    assert_in8(&f->b, 0xb2, ACPI_PM_ENABLE);
}

static void test_sleep(void **state)
{
    struct fixture *f = *state;
    set(f, 4, 5 << 10, 2);
    assert_int_equal(f->power_offs, 0);
    assert_int_equal(get(f, 4, 2), 5 << 10 | 1);
    set(f, 4, 3 << 10 | 0x2000, 2);
    assert_int_equal(f->power_offs, 0); /* no such sleep state */
    set(f, 4, 5 << 10 | 0x2000, 2);
    assert_int_equal(f->power_offs, 1);
    assert_int_equal(get(f, 4, 2), 5 << 10 | 1); /* SLP_EN reads as 0 */
    set(f, 5, 0x34, 1);                          /* by its byte */
    assert_int_equal(f->power_offs, 2);
}

static void test_general_purpose_events(void **state)
{
    struct fixture *f = *state;
    set(f, 32, 0xffffffff, 4);
    assert_int_equal(get(f, 32, 4), 0xffff0000);
    assert_false(f->sci.level);
    assert_int_equal(get(f, 48, 4), 0);
    set(f, 48, 1, 4);
}

static void take_status(void *ctx, uint32_t status)
{
    *(uint32_t *)ctx = status;
}

static void test_debug_exit(void **state)
{
    struct fixture *f = *state;
    struct debug_exit *dev;
    uint32_t status = 0;
    assert_int_equal(debug_exit_create(take_status, &status, &dev, NULL), 0);
    assert_int_equal(debug_exit_map(dev, f->b.ports, 0xf4, NULL), 0);
    assert_int_equal(space_load(f->b.ports, 0xf4, 4), 0);
    assert_int_equal(status, 0);
    space_store(f->b.ports, 0xf4, 0x10, 4);
    assert_int_equal(status, 0x21);
    space_store(f->b.ports, 0xf4, 0xff, 1);
    assert_int_equal(status, 0x1ff);
    space_store(f->b.ports, 0xf4, 0xffffffff, 4);
    assert_int_equal(status, 0xffffffff);
    debug_exit_destroy(dev);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_timer_counts),
        cmocka_unit_test_setup_teardown(test_timer_32bit, setup_32bit, teardown),
        TEST(test_timer_overflow_interrupts),
        TEST(test_power_button),
        TEST(test_acpi_mode),
        TEST(test_sleep),
        TEST(test_general_purpose_events),
        TEST(test_debug_exit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
