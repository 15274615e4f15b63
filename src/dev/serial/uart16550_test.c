/*
 * uart16550_test.c - the serial port between its registers and a character device made of arrays
 */
#include <string.h>

#include "backend/char/chardev.h"
#include "dev/test_support.h"
#include "dev/serial/uart16550.h"

#define BASE 0x3f8
enum { DATA = BASE, IER, IIR, LCR, MCR, LSR, MSR, SCRATCH };
#define FCR IIR

/* The character device of this test: takes `room` bytes, gives what the test says. */
struct chardev {
    const struct chardev_receiver *receiver;
    void *ctx;
    uint8_t out[256];
    size_t out_len, room;
    unsigned resumes, writes;
};

void chardev_set_receiver(struct chardev *cd, const struct chardev_receiver *receiver, void *ctx)
{
    cd->receiver = receiver;
    cd->ctx = ctx;
}

size_t chardev_write(struct chardev *cd, const void *buf, size_t len)
{
    size_t n = len < cd->room ? len : cd->room;
    memcpy(cd->out + cd->out_len, buf, n);
    cd->out_len += n;
    cd->room -= n;
    cd->writes++;
    return n;
}

void chardev_resume_input(struct chardev *cd)
{
    cd->resumes++;
}

struct fixture {
    struct bench b;
    struct chardev cd;
    struct uart16550 *uart;
    struct probe irq;
};

static int setup(void **state)
{
    static struct fixture f;
    f = (struct fixture){.cd = {.room = 200}};
    bench_setup(&f.b);
    assert_int_equal(uart16550_create(f.b.clock, &f.cd, probe_line(&f.irq), &f.uart, NULL), 0);
    assert_int_equal(uart16550_map(f.uart, f.b.ports, BASE, NULL), 0);
    out8(&f.b, MCR, 0x0b);
    out8(&f.b, LCR, 0x03);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    uart16550_destroy(f->uart);
    assert_null(f->cd.receiver);
    bench_teardown(&f->b);
    return 0;
}

/* What a character device does with input; returns how much was taken. */
static size_t give(struct fixture *f, const char *text)
{
    size_t len = strlen(text), done = 0;
    while (done < len) {
        size_t room = f->cd.receiver->can_receive(f->cd.ctx);
        if (room == 0)
            break;
        size_t n = len - done < room ? len - done : room;
        f->cd.receiver->receive(f->cd.ctx, (const uint8_t *)text + done, n);
        done += n;
    }
    return done;
}

static void test_reset_values(void **state)
{
    struct fixture *f = *state;
    assert_in8(&f->b, IER, 0);
    assert_in8(&f->b, IIR, 0x01);
    assert_in8(&f->b, LSR, 0x60);
    assert_in8(&f->b, MSR, 0xb0);
    out8(&f->b, SCRATCH, 0xa5);
    assert_in8(&f->b, SCRATCH, 0xa5);
    out8(&f->b, IER, 0xff);
    assert_in8(&f->b, IER, 0x0f);
    out8(&f->b, MCR, 0xff);
    assert_in8(&f->b, MCR, 0x1f);
    out8(&f->b, LSR, 0x00);
    uart16550_reset(f->uart);
    assert_in8(&f->b, IER, 0);
    assert_in8(&f->b, LCR, 0);
    assert_in8(&f->b, MCR, 0);
    assert_in8(&f->b, SCRATCH, 0xa5);
    assert_false(f->irq.level);
}

static void test_divisor_latch(void **state)
{
    struct fixture *f = *state;
    out8(&f->b, LCR, 0x83);
    out8(&f->b, DATA, 0x0c);
    out8(&f->b, IER, 0x01);
    assert_in8(&f->b, DATA, 0x0c);
    assert_in8(&f->b, IER, 0x01);
    out8(&f->b, LCR, 0x03);
    assert_in8(&f->b, IER, 0x00);
    assert_int_equal(f->cd.out_len, 0);
}

static void test_writes_reach_the_backend(void **state)
{
    struct fixture *f = *state;
    for (const char *p = "hello"; *p != 0; p++) {
        assert_in8(&f->b, LSR, 0x60);
        out8(&f->b, DATA, (uint8_t)*p);
    }
    assert_int_equal(f->cd.out_len, 5);
    assert_memory_equal(f->cd.out, "hello", 5);
}

static void test_transmitter_waits_for_the_backend(void **state)
{
    struct fixture *f = *state;
    f->cd.room = 2;
    out8(&f->b, FCR, 0x01);
    out8(&f->b, IER, 0x02);
    assert_true(f->irq.level);
    assert_in8(&f->b, IIR, 0xc2);
    assert_false(f->irq.level); /* reading IIR acknowledges it */
    for (unsigned i = 0; i < 2 + 16; i++)
        out8(&f->b, DATA, (uint8_t)('a' + i));
    assert_in8(&f->b, LSR, 0x00);
    assert_false(f->irq.level);
    out8(&f->b, DATA, '!'); /* into a full FIFO: lost */
    f->cd.room = 10;
    f->cd.receiver->writable(f->cd.ctx);
    assert_in8(&f->b, LSR, 0x00);
    assert_false(f->irq.level);
    f->cd.room = 100;
    f->cd.receiver->writable(f->cd.ctx);
    assert_in8(&f->b, LSR, 0x60);
    assert_true(f->irq.level);
    assert_memory_equal(f->cd.out, "abcdefghijklmnopqr", 18);
    assert_int_equal(f->cd.out_len, 18);
}

static void test_thre_interrupt_edges(void **state)
{
    struct fixture *f = *state;
    out8(&f->b, IER, 0x02);
    for (unsigned i = 0; i < 10; i++) {
        assert_in8(&f->b, IIR, 0x02);
        assert_in8(&f->b, IIR, 0x01);
        out8(&f->b, DATA, 'x');
    }
    assert_int_equal(f->irq.rises, 11);
    out8(&f->b, IER, 0x00);
    assert_false(f->irq.level);
    assert_in8(&f->b, IIR, 0x01);
    out8(&f->b, IER, 0x02); /* enabling with an empty transmitter interrupts again */
    assert_true(f->irq.level);
}

static void test_receive_without_fifo(void **state)
{
    struct fixture *f = *state;
    out8(&f->b, IER, 0x01);
    assert_int_equal(give(f, "xy"), 1);
    assert_true(f->irq.level);
    assert_in8(&f->b, IIR, 0x04);
    assert_in8(&f->b, LSR, 0x61);
    assert_int_equal(f->cd.resumes, 0);
    assert_in8(&f->b, DATA, 'x');
    assert_int_equal(f->cd.resumes, 1);
    assert_false(f->irq.level);
    assert_in8(&f->b, LSR, 0x60);
    assert_int_equal(give(f, "y"), 1);
    assert_in8(&f->b, DATA, 'y');
    assert_int_equal(f->cd.resumes, 1);
}

static void test_receive_fifo_and_trigger(void **state)
{
    struct fixture *f = *state;
    out8(&f->b, FCR, 0x81); /* trigger at 8 */
    out8(&f->b, IER, 0x01);
    assert_int_equal(give(f, "0123456"), 7);
    assert_false(f->irq.level);
    assert_int_equal(give(f, "7"), 1);
    assert_true(f->irq.level);
    assert_in8(&f->b, IIR, 0xc4);
    assert_in8(&f->b, DATA, '0');
    assert_false(f->irq.level);
    assert_int_equal(give(f, "89abcdefghi"), 9); /* to sixteen */
    for (const char *p = "123456789abcdefg"; *p != 0; p++)
        assert_in8(&f->b, DATA, (uint8_t)*p);
    assert_in8(&f->b, LSR, 0x60);
    assert_int_equal(f->cd.resumes, 1);
    give(f, "zz");
    out8(&f->b, FCR, 0x83); /* clear the receiver */
    assert_in8(&f->b, LSR, 0x60);
}

static void test_fifo_mode_changes(void **state)
{
    struct fixture *f = *state;
    give(f, "a");
    out8(&f->b, FCR, 0x01); /* keeps it */
    assert_in8(&f->b, LSR, 0x61);
    give(f, "b");
    assert_in8(&f->b, DATA, 'a');
    out8(&f->b, FCR, 0x00); /* clears */
    assert_in8(&f->b, LSR, 0x60);
    assert_in8(&f->b, IIR, 0x01);
}

static void test_receive_timeout(void **state)
{
    struct fixture *f = *state;
    uint64_t character_ns = 10 * NS_PER_SEC / 115200;
    out8(&f->b, FCR, 0xc1);
    out8(&f->b, IER, 0x01);
    give(f, "ab");
    vclock_advance(f->b.clock, 3 * character_ns);
    give(f, "c"); /* movement starts it over */
    vclock_advance(f->b.clock, 3 * character_ns);
    assert_false(f->irq.level);
    vclock_advance(f->b.clock, 2 * character_ns);
    assert_true(f->irq.level);
    assert_in8(&f->b, IIR, 0xcc);
    assert_in8(&f->b, DATA, 'a');
    assert_false(f->irq.level); /* a read clears it, and it comes again */
    vclock_advance(f->b.clock, 5 * character_ns);
    assert_true(f->irq.level);
    assert_in8(&f->b, DATA, 'b');
    assert_in8(&f->b, DATA, 'c');
    vclock_advance(f->b.clock, 50 * character_ns);
    assert_false(f->irq.level);
    assert_true(vclock_next_deadline_ns(f->b.clock) == UINT64_MAX);
}

/* What is typed before a driver is there waits for it, outside. */
static void test_input_waits_for_a_listener(void **state)
{
    struct fixture *f = *state;
    out8(&f->b, MCR, 0x09); /* no RTS */
    assert_int_equal(give(f, "ab"), 0);
    out8(&f->b, FCR, 0x07);
    assert_int_equal(f->cd.resumes, 0);
    out8(&f->b, IER, 0x0f); /* somebody looks whether there is a chip */
    assert_int_equal(give(f, "ab"), 0);
    out8(&f->b, IER, 0x00);
    vclock_advance(f->b.clock, 100000000);
    assert_int_equal(f->cd.resumes, 0);
    out8(&f->b, IER, 0x01);
    vclock_advance(f->b.clock, 100000000);
    assert_int_equal(f->cd.resumes, 1);
    assert_int_equal(give(f, "ab"), 2);
    out8(&f->b, IER, 0x00);
    in8(&f->b, DATA);
    in8(&f->b, DATA);
    assert_int_equal(give(f, "c"), 0);
    out8(&f->b, MCR, 0x0b);
    assert_int_equal(f->cd.resumes, 2);
    out8(&f->b, MCR, 0x00);
    assert_int_equal(give(f, "c"), 0);
    for (unsigned i = 0; i < 1000; i++) { /* waits for the transmitter, then writes */
        in8(&f->b, LSR);
        if (i % 10 == 0 && i < 100)
            out8(&f->b, DATA, 'x');
        if (i == 100)
            assert_int_equal(f->cd.resumes, 2);
    }
    assert_int_equal(f->cd.resumes, 3); /* a guest that polls for input */
    assert_int_equal(give(f, "c"), 1);
    assert_in8(&f->b, LSR, 0x61);
    assert_in8(&f->b, DATA, 'c');
}

static void test_break(void **state)
{
    struct fixture *f = *state;
    out8(&f->b, FCR, 0x01);
    out8(&f->b, IER, 0x05);
    give(f, "a");
    f->cd.receiver->event(f->cd.ctx, CHARDEV_BREAK);
    assert_in8(&f->b, LSR, 0xe1); /* an error waits deeper in the FIFO */
    assert_in8(&f->b, IIR, 0xc4);
    assert_in8(&f->b, DATA, 'a');
    assert_in8(&f->b, IIR, 0xc6); /* line status comes first now */
    assert_in8(&f->b, LSR, 0xf9);
    assert_in8(&f->b, IIR, 0xc4);
    assert_in8(&f->b, LSR, 0x61);
    assert_in8(&f->b, DATA, 0x00);
    assert_in8(&f->b, IIR, 0xc1);
}

static void test_loopback(void **state)
{
    struct fixture *f = *state;
    assert_in8(&f->b, MSR, 0xb0);
    out8(&f->b, MCR, 0x1a); /* as Linux probes: RTS and OUT2 come back as CTS and DCD */
    assert_int_equal(in8(&f->b, MSR) & 0xf0, 0x90);
    out8(&f->b, MCR, 0x1f);
    assert_int_equal(in8(&f->b, MSR), 0xf2); /* RI rising is no event, DSR is */
    out8(&f->b, MCR, 0x1b);
    assert_int_equal(in8(&f->b, MSR), 0xb4); /* its trailing edge is */
    out8(&f->b, DATA, 'l');
    assert_in8(&f->b, LSR, 0x61);
    assert_in8(&f->b, DATA, 'l');
    assert_int_equal(f->cd.out_len, 0);
    out8(&f->b, DATA, 'm');
    out8(&f->b, DATA, 'n');
    assert_in8(&f->b, LSR, 0x63); /* overrun */
    assert_in8(&f->b, DATA, 'n');
    assert_int_equal(give(f, "x"), 0); /* waits outside */
    out8(&f->b, LCR, 0x43);
    assert_in8(&f->b, LSR, 0x79); /* its own break */
    assert_in8(&f->b, DATA, 0);
    out8(&f->b, MCR, 0x0b);
    assert_int_equal(f->cd.resumes, 1);
    assert_int_equal(give(f, "x"), 1);
}

static void test_modem_lines(void **state)
{
    struct fixture *f = *state;
    in8(&f->b, MSR);
    out8(&f->b, IER, 0x08);
    f->cd.receiver->event(f->cd.ctx, CHARDEV_CONNECTED);
    assert_false(f->irq.level);
    f->cd.receiver->event(f->cd.ctx, CHARDEV_DISCONNECTED);
    assert_true(f->irq.level);
    assert_in8(&f->b, IIR, 0x00);
    assert_in8(&f->b, MSR, 0x38);
    assert_false(f->irq.level);
    f->cd.receiver->event(f->cd.ctx, CHARDEV_CONNECTED);
    assert_in8(&f->b, MSR, 0xb8);
    assert_in8(&f->b, MSR, 0xb0);
}

static void test_priorities(void **state)
{
    struct fixture *f = *state;
    in8(&f->b, MSR);
    out8(&f->b, IER, 0x0f);
    f->cd.receiver->event(f->cd.ctx, CHARDEV_DISCONNECTED);
    f->cd.receiver->event(f->cd.ctx, CHARDEV_BREAK);
    assert_in8(&f->b, IIR, 0x06);
    in8(&f->b, LSR);
    assert_in8(&f->b, IIR, 0x04);
    in8(&f->b, DATA);
    assert_in8(&f->b, IIR, 0x02);
    assert_in8(&f->b, IIR, 0x00);
    in8(&f->b, MSR);
    assert_in8(&f->b, IIR, 0x01);
    assert_false(f->irq.level);
}

static void test_nothing_connected(void **state)
{
    struct fixture *f = *state;
    struct uart16550 *alone;
    assert_int_equal(uart16550_create(f->b.clock, NULL, (struct irq_line){0}, &alone, NULL), 0);
    assert_int_equal(uart16550_map(alone, f->b.ports, 0x2f8, NULL), 0);
    out8(&f->b, 0x2f8, 'x');
    assert_in8(&f->b, 0x2fd, 0x60);
    assert_in8(&f->b, 0x2fe, 0x00);
    out8(&f->b, 0x2fa, 0x07);
    in8(&f->b, 0x2f8);
    uart16550_destroy(alone);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_reset_values),
        TEST(test_divisor_latch),
        TEST(test_writes_reach_the_backend),
        TEST(test_transmitter_waits_for_the_backend),
        TEST(test_thre_interrupt_edges),
        TEST(test_receive_without_fifo),
        TEST(test_receive_fifo_and_trigger),
        TEST(test_fifo_mode_changes),
        TEST(test_receive_timeout),
        TEST(test_input_waits_for_a_listener),
        TEST(test_break),
        TEST(test_loopback),
        TEST(test_modem_lines),
        TEST(test_priorities),
        TEST(test_nothing_connected),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
