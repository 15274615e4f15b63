/*
 * i8259_test.c - the interrupt controllers as their ports and lines show them
 */
#include "dev/test_support.h"
#include "dev/irqchip/i8259.h"

#define M0 0x20
#define M1 0x21
#define S0 0xa0
#define S1 0xa1

struct fixture {
    struct bench b;
    struct i8259 *pic;
    struct probe intr;
};

static void intr_set(void *ctx, bool level)
{
    probe_set(ctx, 0, level);
}

static void init_pair(struct fixture *f, uint8_t icw4)
{
    out8(&f->b, M0, 0x11);
    out8(&f->b, M1, 0x20);
    out8(&f->b, M1, 0x04);
    out8(&f->b, M1, icw4);
    out8(&f->b, S0, 0x11);
    out8(&f->b, S1, 0x28);
    out8(&f->b, S1, 0x02);
    out8(&f->b, S1, icw4);
}

static int setup(void **state)
{
    static struct fixture f;
    f = (struct fixture){0};
    bench_setup(&f.b);
    assert_int_equal(i8259_create(intr_set, &f.intr, &f.pic, NULL), 0);
    assert_int_equal(i8259_map(f.pic, f.b.ports, M0, S0, 0x4d0, NULL), 0);
    *state = &f;
    return 0;
}

static int setup_ready(void **state)
{
    setup(state);
    init_pair(*state, 0x01);
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    bench_teardown(&f->b);
    i8259_destroy(f->pic);
    return 0;
}

static void drive(struct fixture *f, unsigned irq, bool level)
{
    struct irq_line line = i8259_input(f->pic, irq);
    irq_set(&line, level);
}

static void pulse(struct fixture *f, unsigned irq)
{
    drive(f, irq, false);
    drive(f, irq, true);
}

static uint8_t isr(struct fixture *f, uint16_t port)
{
    out8(&f->b, port, 0x0b);
    return in8(&f->b, port);
}

static uint8_t irr(struct fixture *f, uint16_t port)
{
    out8(&f->b, port, 0x0a);
    return in8(&f->b, port);
}

static void test_reset_masks_everything(void **state)
{
    struct fixture *f = *state;
    assert_in8(&f->b, M1, 0xff);
    assert_in8(&f->b, S1, 0xff);
    out8(&f->b, M1, 0); /* not initialised: no interrupt however open the mask is */
    pulse(f, 4);
    assert_false(f->intr.level);
    i8259_reset(f->pic);
    i8259_set_firmware_defaults(f->pic);
    assert_in8(&f->b, M1, 0xfb);
    out8(&f->b, M1, 0xef);
    pulse(f, 4);
    assert_int_equal(i8259_acknowledge(f->pic), 0x0c);
}

static void test_edge_is_one_interrupt(void **state)
{
    struct fixture *f = *state;
    pulse(f, 3);
    assert_true(f->intr.level);
    assert_int_equal(irr(f, M0), 0x08);
    assert_int_equal(i8259_acknowledge(f->pic), 0x23);
    assert_false(f->intr.level);
    assert_int_equal(isr(f, M0), 0x08);
    assert_int_equal(irr(f, M0), 0); /* still high, but the edge is used up */
    out8(&f->b, M0, 0x20);
    assert_int_equal(isr(f, M0), 0);
    assert_false(f->intr.level);
    pulse(f, 3);
    assert_true(f->intr.level);
}

static void test_slave_goes_through_input_2(void **state)
{
    struct fixture *f = *state;
    pulse(f, 12);
    assert_int_equal(irr(f, M0), 0x04);
    assert_int_equal(i8259_acknowledge(f->pic), 0x2c);
    assert_int_equal(isr(f, M0), 0x04);
    assert_int_equal(isr(f, S0), 0x10);
    pulse(f, 9); /* a higher one of the slave's: the master holds it back until its EOI */
    assert_false(f->intr.level);
    out8(&f->b, M0, 0x20);
    assert_true(f->intr.level);
    assert_int_equal(i8259_acknowledge(f->pic), 0x29);
}

static void test_special_fully_nested(void **state)
{
    struct fixture *f = *state;
    init_pair(f, 0x11);
    pulse(f, 12);
    assert_int_equal(i8259_acknowledge(f->pic), 0x2c);
    pulse(f, 9);
    assert_true(f->intr.level);
    assert_int_equal(i8259_acknowledge(f->pic), 0x29);
    pulse(f, 4); /* lower than input 2: held */
    assert_false(f->intr.level);
    pulse(f, 1);
    assert_true(f->intr.level);
}

static void test_priorities_nest(void **state)
{
    struct fixture *f = *state;
    pulse(f, 5);
    assert_int_equal(i8259_acknowledge(f->pic), 0x25);
    pulse(f, 6);
    assert_false(f->intr.level);
    pulse(f, 1);
    assert_true(f->intr.level);
    assert_int_equal(i8259_acknowledge(f->pic), 0x21);
    out8(&f->b, M0, 0x20); /* non-specific: ends the highest, 1 */
    assert_int_equal(isr(f, M0), 0x20);
    assert_false(f->intr.level);
    out8(&f->b, M0, 0x65); /* specific: ends 5 */
    assert_int_equal(isr(f, M0), 0);
    assert_int_equal(i8259_acknowledge(f->pic), 0x26);
}

static void test_mask(void **state)
{
    struct fixture *f = *state;
    out8(&f->b, M1, 0x10);
    pulse(f, 4);
    assert_false(f->intr.level);
    assert_int_equal(irr(f, M0), 0x10); /* requested all the same */
    out8(&f->b, M1, 0);
    assert_true(f->intr.level);
    assert_in8(&f->b, M1, 0);
}

static void test_spurious(void **state)
{
    struct fixture *f = *state;
    pulse(f, 4);
    assert_true(f->intr.level);
    drive(f, 4, false); /* "goes low before the first INTA" */
    assert_false(f->intr.level);
    assert_int_equal(i8259_acknowledge(f->pic), 0x27);
    assert_int_equal(isr(f, M0), 0);
}

static void test_spurious_of_slave(void **state)
{
    struct fixture *f = *state;
    /* The slave's own request is masked away between INT and INTA: then even the master's is. */
    pulse(f, 10);
    out8(&f->b, S1, 0xff);
    assert_false(f->intr.level);
    assert_int_equal(i8259_acknowledge(f->pic), 0x27);
    out8(&f->b, S1, 0);
    assert_int_equal(i8259_acknowledge(f->pic), 0x2a);
}

static void test_level_triggered(void **state)
{
    struct fixture *f = *state;
    out8(&f->b, 0x4d0, 0xff);
    out8(&f->b, 0x4d1, 0xff);
    assert_in8(&f->b, 0x4d0, 0xf8); /* 0, 1, 2, 8 and 13 cannot be */
    assert_in8(&f->b, 0x4d1, 0xde);
    drive(f, 5, true);
    assert_int_equal(i8259_acknowledge(f->pic), 0x25);
    assert_false(f->intr.level);
    out8(&f->b, M0, 0x20);
    assert_true(f->intr.level); /* still up: again */
    drive(f, 5, false);
    assert_false(f->intr.level);
    drive(f, 11, true);
    assert_int_equal(i8259_acknowledge(f->pic), 0x2b);
    out8(&f->b, S0, 0x20);
    out8(&f->b, M0, 0x20);
    assert_true(f->intr.level);
}

static void test_auto_eoi_and_rotation(void **state)
{
    struct fixture *f = *state;
    init_pair(f, 0x03);
    out8(&f->b, M0, 0x80); /* rotate in automatic EOI mode */
    pulse(f, 0);
    assert_int_equal(i8259_acknowledge(f->pic), 0x20);
    assert_int_equal(isr(f, M0), 0);
    pulse(f, 0);
    pulse(f, 1); /* 0 is the lowest now */
    assert_int_equal(i8259_acknowledge(f->pic), 0x21);
    assert_int_equal(i8259_acknowledge(f->pic), 0x20);
    out8(&f->b, M0, 0x00);
    pulse(f, 1);
    assert_int_equal(i8259_acknowledge(f->pic), 0x21);
    pulse(f, 0);
    pulse(f, 1); /* no rotation any more: order is as 0 left it, 1 first */
    assert_int_equal(i8259_acknowledge(f->pic), 0x21);
}

static void test_rotations(void **state)
{
    struct fixture *f = *state;
    out8(&f->b, M0, 0xc3); /* set priority: 3 is the lowest, 4 the highest */
    pulse(f, 0);
    pulse(f, 5);
    assert_int_equal(i8259_acknowledge(f->pic), 0x25);
    out8(&f->b, M0, 0xa0); /* rotate on non-specific EOI: 5 is the lowest */
    pulse(f, 5);
    assert_int_equal(i8259_acknowledge(f->pic), 0x20);
    out8(&f->b, M0, 0xe0); /* rotate on specific EOI of 0 */
    assert_int_equal(isr(f, M0), 0);
    pulse(f, 0);
    assert_int_equal(i8259_acknowledge(f->pic), 0x25);
}

static void test_special_mask(void **state)
{
    struct fixture *f = *state;
    pulse(f, 3);
    assert_int_equal(i8259_acknowledge(f->pic), 0x23);
    out8(&f->b, M1, 0x08);
    pulse(f, 6);
    assert_false(f->intr.level);
    out8(&f->b, M0, 0x68);
    assert_true(f->intr.level); /* a lower level gets through */
    assert_int_equal(i8259_acknowledge(f->pic), 0x26);
    out8(&f->b, M0, 0x20); /* non-specific: 6, not the masked 3 */
    assert_int_equal(isr(f, M0), 0x08);
    out8(&f->b, M0, 0x48);
    pulse(f, 6);
    assert_false(f->intr.level);
}

static void test_poll(void **state)
{
    struct fixture *f = *state;
    out8(&f->b, M0, 0x0c);
    assert_int_equal(in8(&f->b, M0) & 0x80, 0);
    pulse(f, 6);
    out8(&f->b, M0, 0x0c);
    assert_in8(&f->b, M0, 0x86);
    assert_int_equal(isr(f, M0), 0x40);
    assert_false(f->intr.level);
}

static void test_icw1_starts_over(void **state)
{
    struct fixture *f = *state;
    pulse(f, 4);
    out8(&f->b, M1, 0xff);
    init_pair(f, 0x01);
    assert_in8(&f->b, M1, 0);
    assert_false(f->intr.level); /* the edge was forgotten though the line is high */
    out8(&f->b, M0, 0x12);       /* single, no ICW4: ICW2 is the last word */
    out8(&f->b, M1, 0x47);
    out8(&f->b, M1, 0xfe);
    assert_in8(&f->b, M1, 0xfe);
    pulse(f, 0);
    assert_int_equal(i8259_acknowledge(f->pic), 0x40); /* low bits of ICW2 do not count */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_reset_masks_everything, setup, teardown),
        cmocka_unit_test_setup_teardown(test_edge_is_one_interrupt, setup_ready, teardown),
        cmocka_unit_test_setup_teardown(test_slave_goes_through_input_2, setup_ready, teardown),
        cmocka_unit_test_setup_teardown(test_special_fully_nested, setup_ready, teardown),
        cmocka_unit_test_setup_teardown(test_priorities_nest, setup_ready, teardown),
        cmocka_unit_test_setup_teardown(test_mask, setup_ready, teardown),
        cmocka_unit_test_setup_teardown(test_spurious, setup_ready, teardown),
        cmocka_unit_test_setup_teardown(test_spurious_of_slave, setup_ready, teardown),
        cmocka_unit_test_setup_teardown(test_level_triggered, setup_ready, teardown),
        cmocka_unit_test_setup_teardown(test_auto_eoi_and_rotation, setup_ready, teardown),
        cmocka_unit_test_setup_teardown(test_rotations, setup_ready, teardown),
        cmocka_unit_test_setup_teardown(test_special_mask, setup_ready, teardown),
        cmocka_unit_test_setup_teardown(test_poll, setup_ready, teardown),
        cmocka_unit_test_setup_teardown(test_icw1_starts_over, setup_ready, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
