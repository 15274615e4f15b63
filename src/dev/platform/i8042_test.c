/*
 * i8042_test.c - keyboard controller, its two devices, and the ways to reset the machine
 */
#include "dev/test_support.h"
#include "dev/platform/i8042.h"

struct fixture {
    struct bench b;
    struct i8042 *kbc;
    struct probe irq1, irq12;
    unsigned resets;
};

static void count_reset(void *ctx)
{
    ((struct fixture *)ctx)->resets++;
}

static int setup(void **state)
{
    static struct fixture f;
    f = (struct fixture){0};
    bench_setup(&f.b);
    struct i8042_config config = {.irq1 = probe_line(&f.irq1),
                                  .irq12 = probe_line(&f.irq12),
                                  .reset = count_reset,
                                  .ctx = &f};
    assert_int_equal(i8042_create(&config, &f.kbc, NULL), 0);
    assert_int_equal(i8042_map(f.kbc, f.b.ports, 0x60, 0x64, 0x92, NULL), 0);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    bench_teardown(&f->b);
    i8042_destroy(f->kbc);
    return 0;
}

#define STATUS(f) (in8(&(f)->b, 0x64) & 0x21) /* output buffer full; from the mouse */
#define FROM_KBD 0x01
#define FROM_AUX 0x21

static void command(struct fixture *f, uint8_t v)
{
    out8(&f->b, 0x64, v);
}

static void data(struct fixture *f, uint8_t v)
{
    out8(&f->b, 0x60, v);
}

static void aux(struct fixture *f, uint8_t v)
{
    command(f, 0xd4);
    data(f, v);
}

#define assert_answer(f, from, v)                                                                  \
    do {                                                                                           \
        assert_int_equal(STATUS(f), from);                                                         \
        assert_in8(&(f)->b, 0x60, v);                                                              \
    } while (0)

static void test_controller(void **state)
{
    struct fixture *f = *state;
    assert_in8(&f->b, 0x64, 0x14);
    command(f, 0xaa);
    assert_in8(&f->b, 0x64, 0x1d);
    assert_answer(f, FROM_KBD, 0x55);
    command(f, 0xab);
    assert_answer(f, FROM_KBD, 0x00);
    command(f, 0xa9);
    assert_answer(f, FROM_KBD, 0x00);
    command(f, 0x60);
    data(f, 0x47);
    command(f, 0x20);
    assert_answer(f, FROM_KBD, 0x47);
    command(f, 0xa7);
    command(f, 0xad);
    command(f, 0x20);
    assert_answer(f, FROM_KBD, 0x77);
    command(f, 0xa8);
    command(f, 0xae);
    command(f, 0x20);
    assert_answer(f, FROM_KBD, 0x47);
    command(f, 0x7f);
    data(f, 0x99);
    command(f, 0x3f);
    assert_answer(f, FROM_KBD, 0x99);
    assert_int_equal(STATUS(f), 0);
    assert_int_equal(in8(&f->b, 0x60), 0x99); /* nothing new: the last byte again */
}

static void test_aux_loop(void **state)
{
    struct fixture *f = *state;
    command(f, 0x60);
    data(f, 0x66); /* mouse disabled, its interrupt enabled */
    command(f, 0xd3);
    data(f, 0x5a);
    assert_true(f->irq12.level);
    assert_answer(f, FROM_AUX, 0x5a);
    assert_false(f->irq12.level);
    command(f, 0xd2);
    data(f, 0xa5);
    assert_answer(f, FROM_KBD, 0xa5);
    assert_int_equal(f->irq1.rises, 0);
}

static void test_keyboard(void **state)
{
    struct fixture *f = *state;
    data(f, 0xff);
    assert_true(f->irq1.level);
    assert_answer(f, FROM_KBD, 0xfa);
    assert_true(f->irq1.level);
    assert_answer(f, FROM_KBD, 0xaa);
    assert_false(f->irq1.level);
    assert_int_equal(f->irq1.rises, 2); /* an edge for each byte */
    data(f, 0xf2);
    assert_answer(f, FROM_KBD, 0xfa);
    assert_answer(f, FROM_KBD, 0xab);
    assert_answer(f, FROM_KBD, 0x41); /* translated */
    command(f, 0x60);
    data(f, 0x05);
    data(f, 0xf2);
    assert_answer(f, FROM_KBD, 0xfa);
    assert_answer(f, FROM_KBD, 0xab);
    assert_answer(f, FROM_KBD, 0x83);
    data(f, 0xed);
    assert_answer(f, FROM_KBD, 0xfa);
    data(f, 0x07);
    assert_answer(f, FROM_KBD, 0xfa);
    data(f, 0xf0);
    assert_answer(f, FROM_KBD, 0xfa);
    data(f, 0x03);
    assert_answer(f, FROM_KBD, 0xfa);
    data(f, 0xf0);
    assert_answer(f, FROM_KBD, 0xfa);
    data(f, 0x00);
    assert_answer(f, FROM_KBD, 0xfa);
    assert_answer(f, FROM_KBD, 0x03);
    data(f, 0xf0);
    assert_answer(f, FROM_KBD, 0xfa);
    data(f, 0x09);
    assert_answer(f, FROM_KBD, 0xfe);
    data(f, 0xee);
    assert_answer(f, FROM_KBD, 0xee);
    data(f, 0x00);
    assert_answer(f, FROM_KBD, 0xfe);
    data(f, 0xf3);
    assert_answer(f, FROM_KBD, 0xfa);
    data(f, 0xf4); /* a command in place of the argument */
    assert_answer(f, FROM_KBD, 0xfa);
    data(f, 0xfe);
    assert_answer(f, FROM_KBD, 0xfa); /* sends its last byte again */
    assert_int_equal(STATUS(f), 0);
}

static void test_disabled_keyboard_waits(void **state)
{
    struct fixture *f = *state;
    data(f, 0xf4);
    command(f, 0xad);
    assert_answer(f, FROM_KBD, 0xfa); /* was in the buffer already */
    data(f, 0xff);                    /* a byte for it enables it again */
    assert_answer(f, FROM_KBD, 0xfa);
    command(f, 0xad);
    assert_answer(f, FROM_KBD, 0xaa);
}

static void test_mouse(void **state)
{
    struct fixture *f = *state;
    command(f, 0x60);
    data(f, 0x47);
    aux(f, 0xff);
    assert_true(f->irq12.level);
    assert_answer(f, FROM_AUX, 0xfa);
    assert_answer(f, FROM_AUX, 0xaa);
    assert_answer(f, FROM_AUX, 0x00);
    assert_int_equal(f->irq12.rises, 3);
    assert_int_equal(f->irq1.rises, 0);
    static const uint8_t knock[] = {200, 100, 80};
    for (unsigned i = 0; i < 3; i++) {
        aux(f, 0xf3);
        assert_answer(f, FROM_AUX, 0xfa);
        aux(f, knock[i]);
        assert_answer(f, FROM_AUX, 0xfa);
    }
    aux(f, 0xf2);
    assert_answer(f, FROM_AUX, 0xfa);
    assert_answer(f, FROM_AUX, 0x03); /* a wheel */
    aux(f, 0xe8);
    assert_answer(f, FROM_AUX, 0xfa);
    aux(f, 0x04);
    assert_answer(f, FROM_AUX, 0xfe);
    aux(f, 0x03);
    assert_answer(f, FROM_AUX, 0xfa);
    aux(f, 0xe7);
    assert_answer(f, FROM_AUX, 0xfa);
    aux(f, 0xf4);
    assert_answer(f, FROM_AUX, 0xfa);
    aux(f, 0xe9);
    assert_answer(f, FROM_AUX, 0xfa);
    assert_answer(f, FROM_AUX, 0x30);
    assert_answer(f, FROM_AUX, 0x03);
    assert_answer(f, FROM_AUX, 80);
    aux(f, 0xeb);
    assert_answer(f, FROM_AUX, 0xfa);
    assert_answer(f, FROM_AUX, 0x08);
    assert_answer(f, FROM_AUX, 0x00);
    assert_answer(f, FROM_AUX, 0x00);
    assert_answer(f, FROM_AUX, 0x00);
    aux(f, 0xee);
    assert_answer(f, FROM_AUX, 0xfa);
    aux(f, 0x12);
    assert_answer(f, FROM_AUX, 0x12);
    aux(f, 0xec);
    assert_answer(f, FROM_AUX, 0xfa);
    aux(f, 0xe1);
    assert_answer(f, FROM_AUX, 0xfe);
    assert_int_equal(STATUS(f), 0);
}

static void test_resets(void **state)
{
    struct fixture *f = *state;
    command(f, 0xff); /* pulses nothing */
    assert_int_equal(f->resets, 0);
    command(f, 0xfe);
    assert_int_equal(f->resets, 1);
    command(f, 0xd0);
    assert_answer(f, FROM_KBD, 0xc3);
    command(f, 0xdd);
    command(f, 0xd1);
    data(f, 0xdf);
    assert_int_equal(f->resets, 1);
    command(f, 0xd1);
    data(f, 0xde);
    assert_int_equal(f->resets, 2);
    assert_in8(&f->b, 0x92, 0x02);
    out8(&f->b, 0x92, 0x00);
    assert_in8(&f->b, 0x92, 0x02); /* A20 cannot be switched off */
    assert_int_equal(f->resets, 2);
    out8(&f->b, 0x92, 0x03);
    out8(&f->b, 0x92, 0x03); /* only the bit's rise counts */
    assert_int_equal(f->resets, 3);
}

static void test_overfilled_queues(void **state)
{
    struct fixture *f = *state;
    for (unsigned i = 0; i < 100; i++) {
        command(f, 0x20);
        command(f, 0xd3);
        data(f, (uint8_t)i);
        data(f, 0xee);
        aux(f, 0xe9);
    }
    unsigned bytes = 0;
    while (STATUS(f) != 0 && bytes < 1000) {
        in8(&f->b, 0x60);
        bytes++;
    }
    assert_in_range(bytes, 32, 65);
    i8042_reset(f->kbc);
    assert_int_equal(STATUS(f), 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_controller),
        TEST(test_aux_loop),
        TEST(test_keyboard),
        TEST(test_disabled_keyboard_waits),
        TEST(test_mouse),
        TEST(test_resets),
        TEST(test_overfilled_queues),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
