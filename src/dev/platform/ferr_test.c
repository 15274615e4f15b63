/*
 * ferr_test.c - FERR#, IRQ 13, port F0H and IGNNE#
 */
#include "dev/test_support.h"
#include "dev/platform/ferr.h"

struct fixture {
    struct bench b;
    struct ferr *dev;
    struct probe irq13;
};

static int setup(void **state)
{
    static struct fixture f;

    f = (struct fixture){0};
    bench_setup(&f.b);
    assert_int_equal(ferr_create(probe_line(&f.irq13), &f.dev, NULL), 0);
    assert_int_equal(ferr_map(f.dev, f.b.ports, NULL), 0);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    bench_teardown(&f->b);
    ferr_destroy(f->dev);
    return 0;
}

static void interrupts_once_an_error(void **state)
{
    struct fixture *f = *state;

    assert_false(ferr_set(f->dev, true));
    assert_false(ferr_set(f->dev, true)); /* the waiting instruction asks again and again */
    assert_int_equal(f->irq13.rises, 1);
    out8(&f->b, FERR_PORT, 0);
    assert_false(f->irq13.level);
    assert_true(ferr_set(f->dev, true)); /* still that error: no other interrupt, but IGNNE# */
    assert_int_equal(f->irq13.rises, 1);
    assert_false(ferr_set(f->dev, false));
    assert_false(ferr_set(f->dev, true)); /* the next one */
    assert_int_equal(f->irq13.rises, 2);
}

static void interrupt_outlasts_the_error(void **state)
{
    struct fixture *f = *state;

    ferr_set(f->dev, true);
    ferr_set(f->dev, false);
    assert_true(f->irq13.level);
    out8(&f->b, FERR_PORT, 0);
    assert_false(f->irq13.level);
    assert_false(ferr_set(f->dev, true)); /* the write came without FERR#: no IGNNE# */
}

static void reset_clears(void **state)
{
    struct fixture *f = *state;

    ferr_set(f->dev, true);
    out8(&f->b, FERR_PORT, 0);
    ferr_reset(f->dev);
    assert_false(ferr_set(f->dev, true));
    ferr_reset(f->dev);
    assert_false(f->irq13.level);
    assert_int_equal(in8(&f->b, FERR_PORT), 0xff);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(interrupts_once_an_error, setup, teardown),
        cmocka_unit_test_setup_teardown(interrupt_outlasts_the_error, setup, teardown),
        cmocka_unit_test_setup_teardown(reset_clears, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
