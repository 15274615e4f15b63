/*
 * virtio_console_test.c - ports: what the driver is told, and that no byte is lost
 *
 * The character devices are the test's own.
 */
#include "dev/virtio/testing.h"

#include "backend/char/chardev.h"
#include "dev/virtio/virtio_console.h"
#include "os/loop.h"

#define F_MULTIPORT BIT(1)
#define IN 0x200000u  /* buffers for input and messages */
#define OUT 0x300000u /* what the driver sends */

struct chardev {
    const struct chardev_receiver *receiver;
    void *ctx;
    char out[4096];
    size_t out_len, room;
    unsigned resumed;
};

struct fixture {
    struct driver driver;
    struct loop *loop;
    struct chardev chardevs[2];
    struct virtio_console *console;
};

void chardev_set_receiver(struct chardev *cd, const struct chardev_receiver *receiver, void *ctx)
{
    cd->receiver = receiver;
    cd->ctx = ctx;
}

size_t chardev_write(struct chardev *cd, const void *buf, size_t len)
{
    size_t n = MIN(MIN(len, cd->room), sizeof(cd->out) - cd->out_len);
    memcpy(cd->out + cd->out_len, buf, n);
    cd->out_len += n;
    cd->room -= n;
    return n;
}

void chardev_resume_input(struct chardev *cd)
{
    cd->resumed++;
}

static void make_console(struct fixture *f)
{
    struct err e;
    struct virtio_console_config config = {
        .memory = f->driver.space,
        .loop = f->loop,
        .ports = {{.chardev = &f->chardevs[0], .is_console = true},
                  {.chardev = &f->chardevs[1], .name = "org.test.0"}},
        .port_count = 2,
    };
    assert_int_equal(virtio_console_create(&config, &f->console, &e), 0);
}

static struct fixture *setup(uint64_t features)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct err e;
    driver_setup(&f->driver);
    assert_int_equal(loop_create(&f->loop, &e), 0);
    f->chardevs[0].room = f->chardevs[1].room = SIZE_MAX;
    make_console(f);
    driver_start(&f->driver, virtio_console_device(f->console), features);
    return f;
}

static void teardown(struct fixture *f)
{
    virtio_console_destroy(f->console);
    assert_null(f->chardevs[0].receiver);
    loop_destroy(f->loop);
    driver_teardown(&f->driver);
    free(f);
}

static void offer_in(struct fixture *f, unsigned queue, unsigned id, uint32_t size)
{
    struct driver_piece piece = {IN + queue * 0x8000 + id * 0x100, size, true};
    driver_offer(&f->driver, queue, id, &piece, 1);
}

static void send_out(struct fixture *f, unsigned queue, unsigned id, const void *bytes, uint32_t n)
{
    struct driver_piece piece = {OUT + queue * 0x8000 + id * 0x100, n, false};
    memcpy(f->driver.ram + piece.at, bytes, n);
    driver_offer(&f->driver, queue, id, &piece, 1);
    driver_notify(&f->driver, queue);
}

static void say(struct fixture *f, uint32_t port, unsigned event, unsigned value)
{
    uint8_t message[8];
    store_le32(message, port);
    store_le16(message + 4, (uint16_t)event);
    store_le16(message + 6, (uint16_t)value);
    send_out(f, 3, 0, message, sizeof(message));
    assert_int_equal(driver_used(&f->driver, 3, NULL), 0);
}

static void assert_told(struct fixture *f, uint32_t port, unsigned event, unsigned value)
{
    uint32_t len = 0;
    int id = driver_used(&f->driver, 2, &len);
    assert_true(id >= 0 && len >= 8);
    const uint8_t *m = f->driver.ram + IN + 2 * 0x8000 + (unsigned)id * 0x100;
    assert_int_equal(load_le32(m), port);
    assert_int_equal(load_le16(m + 4), event);
    assert_int_equal(load_le16(m + 6), value);
    if (event == 7)
        assert_memory_equal(m + 8, "org.test.0", len - 8);
}

static void assert_got(struct fixture *f, unsigned queue, const char *text)
{
    uint32_t len = 0;
    int id = driver_used(&f->driver, queue, &len);
    assert_true(id >= 0);
    assert_int_equal(len, strlen(text));
    assert_memory_equal(f->driver.ram + IN + queue * 0x8000 + (unsigned)id * 0x100, text, len);
}

/* As the loop would: only what there is room for. Returns bytes taken. */
static size_t type(struct chardev *cd, const char *text)
{
    size_t room = cd->receiver->can_receive(cd->ctx), n = MIN(room, strlen(text));
    if (n > 0)
        cd->receiver->receive(cd->ctx, (const uint8_t *)text, n);
    return n;
}

static void ports_are_made_known(void **state)
{
    struct fixture *f = setup(F_MULTIPORT);
    f->chardevs[1].receiver->event(f->chardevs[1].ctx, CHARDEV_CONNECTED);
    say(f, 0xffffffff, 0, 1); /* DEVICE_READY; no buffer for an answer yet */
    assert_int_equal(driver_used(&f->driver, 2, NULL), -1);
    for (unsigned i = 0; i < 20; i++)
        offer_in(f, 2, i, 0x100);
    driver_notify(&f->driver, 2);
    assert_told(f, 0, 1, 1); /* PORT_ADD */
    assert_told(f, 1, 1, 1);
    say(f, 0, 3, 1); /* PORT_READY */
    assert_told(f, 0, 4, 1);
    assert_told(f, 0, 5, 1); /* RESIZE */
    say(f, 1, 3, 1);
    assert_told(f, 1, 6, 1); /* PORT_OPEN: somebody was there before */
    assert_told(f, 1, 7, 1);
    f->chardevs[1].receiver->event(f->chardevs[1].ctx, CHARDEV_DISCONNECTED);
    assert_told(f, 1, 6, 0);
    virtio_console_set_size(f->console, 132, 50);
    assert_told(f, 0, 5, 1);
    assert_int_equal(f->driver.config_signals, 1);
    assert_int_equal(load_le16(f->driver.dev->config), 132);
    assert_int_equal(driver_used(&f->driver, 2, NULL), -1);
    teardown(f);
}

static void input_waits_for_the_guest(void **state)
{
    struct fixture *f = setup(F_MULTIPORT);
    struct chardev *cd = &f->chardevs[1];
    offer_in(f, 4, 0, 4);
    assert_int_equal(type(cd, "early"), 0); /* no program has it open */
    cd->resumed = 0;
    say(f, 1, 6, 1);
    assert_int_equal(cd->resumed, 1);
    assert_int_equal(type(cd, "abcdefgh"), 4);
    assert_got(f, 4, "abcd");
    assert_int_equal(type(cd, "efgh"), 0);
    offer_in(f, 4, 1, 200);
    driver_notify(&f->driver, 4);
    assert_true(cd->resumed >= 2);
    assert_int_equal(type(cd, "efgh"), 4);
    assert_got(f, 4, "efgh");
    say(f, 1, 6, 0);
    offer_in(f, 4, 2, 200);
    assert_int_equal(type(cd, "more"), 0);
    teardown(f);
}

/* The driver resets the device between the question for room and what comes: it is kept. */
static void input_survives_a_reset(void **state)
{
    struct fixture *f = setup(0);
    struct chardev *cd = &f->chardevs[0];
    offer_in(f, 0, 0, 100);
    assert_int_equal(cd->receiver->can_receive(cd->ctx), 100);
    driver_set_status(&f->driver, 0);
    cd->receiver->receive(cd->ctx, (const uint8_t *)"kept", 4);
    assert_int_equal(cd->receiver->can_receive(cd->ctx), 0);
    driver_start(&f->driver, f->driver.dev, 0);
    offer_in(f, 0, 0, 3);
    driver_notify(&f->driver, 0);
    assert_got(f, 0, "kep");
    offer_in(f, 0, 1, 3);
    driver_notify(&f->driver, 0);
    assert_got(f, 0, "t");
    teardown(f);
}

static void output_waits_for_the_host(void **state)
{
    struct fixture *f = setup(0);
    struct chardev *cd = &f->chardevs[0];
    cd->room = 3;
    send_out(f, 1, 0, "hello", 5);
    send_out(f, 1, 1, "world", 5);
    assert_int_equal(driver_used(&f->driver, 1, NULL), -1);
    cd->room = 4;
    cd->receiver->writable(cd->ctx);
    assert_int_equal(driver_used(&f->driver, 1, NULL), 0);
    assert_int_equal(driver_used(&f->driver, 1, NULL), -1);
    cd->room = SIZE_MAX;
    cd->receiver->writable(cd->ctx);
    assert_int_equal(driver_used(&f->driver, 1, NULL), 1);
    assert_int_equal(cd->out_len, 10);
    assert_memory_equal(cd->out, "helloworld", 10);
    pthread_mutex_lock(&f->driver.dev->lock);
    virtio_config_write(f->driver.dev, 8, '!', 4); /* emergency */
    pthread_mutex_unlock(&f->driver.dev->lock);
    assert_int_equal(cd->out[10], '!');
    teardown(f);
}

static void stop(void *loop)
{
    loop_stop(loop);
}

/* More chains than one turn serves: the loop goes on with them. */
static void output_in_turns(void **state)
{
    struct fixture *f = setup(0);
    struct driver_piece piece = {OUT, 4, false};
    struct err e;
    memcpy(f->driver.ram + OUT, "abcd", 4);
    /* the index runs ahead by a whole queue, again and again, as another CPU could do it */
    for (unsigned n = 0; n < 3; n++) {
        for (unsigned i = 0; i < 128; i++)
            driver_offer(&f->driver, 1, i, &piece, 1);
        driver_notify(&f->driver, 1);
        loop_post(f->loop, stop, f->loop);
        assert_int_equal(loop_run(f->loop, &e), 0);
    }
    assert_int_equal(f->chardevs[0].out_len, 3 * 128 * 4);
    teardown(f);
}

static void hostile_drivers(void **state)
{
    struct fixture *f = setup(F_MULTIPORT);
    static const uint8_t bytes[3] = {0};
    for (unsigned i = 0; i < 20; i++)
        offer_in(f, 2, i, i < 10 ? 1 : 0x100); /* too small for a message */
    send_out(f, 3, 0, bytes, 3);               /* too short for one */
    assert_int_equal(driver_used(&f->driver, 3, NULL), 0);
    say(f, 99, 3, 1);
    say(f, 0xffffffff, 6, 1);
    for (unsigned event = 0; event < 70; event++)
        for (unsigned port = 0; port < 3; port++)
            say(f, port, event, event & 1);
    assert_false(driver_needs_reset(&f->driver));
    /* a buffer that cannot be written to, for input */
    say(f, 0, 6, 1);
    struct driver_piece piece = {IN, 8, false};
    driver_offer(&f->driver, 0, 0, &piece, 1);
    assert_int_equal(f->chardevs[0].receiver->can_receive(f->chardevs[0].ctx), 0);
    f->chardevs[0].receiver->receive(f->chardevs[0].ctx, (const uint8_t *)"x", 1);
    assert_true(driver_needs_reset(&f->driver));
    teardown(f);
}

/* ---- state ---- */

static void take_console(struct fixture *f, struct virtio_state *state)
{
    driver_take_state(&f->driver, state);
    virtio_console_destroy(f->console);
    make_console(f);
}

static void put_console(struct fixture *f, const struct virtio_state *state)
{
    driver_put_state(&f->driver, virtio_console_device(f->console), state);
}

/*
 * Half of a chain is out, input lies in the stash, a message has no buffer: with another console
 * nothing is lost, and nothing comes twice.
 */
static void another_console_goes_on(void **state)
{
    struct fixture *f = setup(F_MULTIPORT);
    struct virtio_state s;
    struct chardev *cd = &f->chardevs[1];
    offer_in(f, 2, 0, 0x100);
    offer_in(f, 2, 1, 0x100);
    offer_in(f, 2, 2, 0x100);
    say(f, 0xffffffff, 0, 1);
    assert_told(f, 0, 1, 1);
    assert_told(f, 1, 1, 1);
    say(f, 1, 3, 1);
    assert_told(f, 1, 7, 1);
    say(f, 1, 6, 1);
    say(f, 0, 3, 1); /* CONSOLE_PORT and RESIZE are due */
    cd->room = 3;
    send_out(f, 5, 0, "hello", 5);
    send_out(f, 5, 1, "world", 5);
    offer_in(f, 4, 0, 4);
    assert_int_equal(cd->receiver->can_receive(cd->ctx), 4);
    store_le32(f->driver.ram + driver_ring(4) + 8, 2); /* the driver changes its mind */
    cd->receiver->receive(cd->ctx, (const uint8_t *)"abcd", 4);
    assert_got(f, 4, "ab");

    take_console(f, &s);
    assert_int_equal(s.console.ports[1].stash_len, 2);
    assert_int_equal(s.console.ports[1].out_offset, 3);
    assert_int_equal(s.console.ports[0].due, BIT(4) | BIT(5));
    cd->room = SIZE_MAX;
    cd->resumed = 0;
    put_console(f, &s);
    assert_true(cd->resumed != 0);
    assert_int_equal(cd->out_len, 10);
    assert_memory_equal(cd->out, "helloworld", 10);
    assert_int_equal(driver_used(&f->driver, 5, NULL), 0);
    assert_int_equal(driver_used(&f->driver, 5, NULL), 1);
    offer_in(f, 4, 1, 100);
    driver_notify(&f->driver, 4);
    assert_got(f, 4, "cd");
    for (unsigned i = 3; i < 6; i++)
        offer_in(f, 2, i, 0x100);
    driver_notify(&f->driver, 2);
    assert_told(f, 0, 4, 1);
    assert_told(f, 0, 5, 1);
    assert_int_equal(driver_used(&f->driver, 2, NULL), -1);
    assert_int_equal(type(cd, "x"), 0);
    offer_in(f, 4, 2, 100);
    assert_int_equal(type(cd, "efg"), 3); /* it is open still */
    assert_got(f, 4, "efg");
    teardown(f);
}

/* Who is there, and how large the terminal is, is told anew when it is not as it was. */
static void the_other_end_may_have_changed(void **state)
{
    struct fixture *f = setup(F_MULTIPORT);
    struct virtio_state s;
    for (unsigned i = 0; i < 20; i++)
        offer_in(f, 2, i, 0x100);
    f->chardevs[1].receiver->event(f->chardevs[1].ctx, CHARDEV_CONNECTED);
    say(f, 0, 3, 1);
    assert_told(f, 0, 4, 1);
    assert_told(f, 0, 5, 1);
    say(f, 1, 3, 1);
    assert_told(f, 1, 6, 1);
    assert_told(f, 1, 7, 1);
    take_console(f, &s);
    virtio_console_set_size(f->console, 132, 50);
    unsigned before = f->driver.config_signals;
    put_console(f, &s);
    assert_told(f, 0, 5, 1);
    assert_told(f, 1, 6, 0);
    assert_int_equal(load_le16(f->driver.dev->config), 132);
    assert_int_equal(f->driver.config_signals, before + 1);
    assert_int_equal(driver_used(&f->driver, 2, NULL), -1);
    take_console(f, &s); /* nothing changed, and nothing is told */
    virtio_console_set_size(f->console, 132, 50);
    put_console(f, &s);
    assert_int_equal(driver_used(&f->driver, 2, NULL), -1);
    assert_int_equal(f->driver.config_signals, before + 1);
    teardown(f);
}

static void forged_states_are_refused(void **state)
{
    struct fixture *f = setup(F_MULTIPORT);
    struct virtio_state good, s;
    take_console(f, &good);
    struct virtio_device *dev = virtio_console_device(f->console);
#define REFUSES(what, says) DRIVER_REFUSES(dev, good, s, what, says)
    REFUSES(s.console.port_count = 3, "console.port_count");
    REFUSES(s.console.ports[1].stash_len = 257, "console.ports[1].stash_len");
    REFUSES(s.console.ports[0].due = 1, "console.ports[0].due");
    REFUSES(s.console.ports[1].is_guest_open = 9, "is_guest_open of port of 1");
    REFUSES(s.console.ports[1].is_guest_ready = 2, "is_guest_ready of port of 1");
    REFUSES(s.console.ports[0].was_host_open = 2, "was_host_open of port of 0");
    REFUSES((s.features &= ~F_MULTIPORT, s.console.ports[0].due = 2), "MULTIPORT is off");
    REFUSES(s.config[8] = 1, "emergency_wr");
    REFUSES(s.config[4] = 3, "config[4]"); /* ports */
#undef REFUSES
    put_console(f, &good);
    teardown(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ports_are_made_known),
        cmocka_unit_test(input_waits_for_the_guest),
        cmocka_unit_test(input_survives_a_reset),
        cmocka_unit_test(output_waits_for_the_host),
        cmocka_unit_test(output_in_turns),
        cmocka_unit_test(hostile_drivers),
        cmocka_unit_test(another_console_goes_on),
        cmocka_unit_test(the_other_end_may_have_changed),
        cmocka_unit_test(forged_states_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
