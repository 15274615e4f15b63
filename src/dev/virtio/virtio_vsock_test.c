/*
 * virtio_vsock_test.c - connections between a driver and Unix sockets, credit, hostile packets
 */
#include "dev/virtio/testing.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "dev/virtio/virtio_vsock_internal.h"
#include "os/unixsock.h"

#define CID 42u
#define RX 0x200000u
#define TX 0x400000u
#define RX_SIZE 4096u

struct fixture {
    struct driver driver;
    struct loop *loop;
    char dir[64], path[80];
    struct virtio_vsock *vsock;
    unsigned next_tx, next_rx;
    struct vsock_header got; /* the last packet from the device, its data: */
    uint8_t *data;
};

static void stop(void *loop)
{
    loop_stop(loop);
}

/* Let the loop do what there is to do, and what comes of that. */
static void turn(struct fixture *f)
{
    struct err e;
    for (unsigned i = 0; i < 4; i++) {
        loop_post(f->loop, stop, f->loop);
        assert_int_equal(loop_run(f->loop, &e), 0);
    }
}

static void give_rx(struct fixture *f, unsigned count)
{
    for (unsigned i = 0; i < count; i++, f->next_rx++) {
        unsigned id = f->next_rx % VSOCK_QUEUE_SIZE;
        struct driver_piece piece = {RX + id * RX_SIZE, RX_SIZE, true};
        driver_offer(&f->driver, VSOCK_QUEUE_RX, id, &piece, 1);
    }
    driver_notify(&f->driver, VSOCK_QUEUE_RX);
}

static void make_vsock(struct fixture *f, uint32_t cid)
{
    struct err e;
    struct virtio_vsock_config config = {
        .memory = f->driver.space, .loop = f->loop, .cid = cid, .path = f->path};
    assert_int_equal(virtio_vsock_create(&config, &f->vsock, &e), 0);
}

static struct fixture *setup(void)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct err e;
    driver_setup(&f->driver);
    assert_int_equal(loop_create(&f->loop, &e), 0);
    strcpy(f->dir, "/tmp/doppel-test-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->path, sizeof(f->path), "%s/v", f->dir);
    make_vsock(f, CID);
    driver_start(&f->driver, virtio_vsock_device(f->vsock), BIT(0));
    assert_int_equal(load_le64(f->driver.dev->config), CID);
    turn(f);
    return f;
}

static void teardown(struct fixture *f)
{
    virtio_vsock_destroy(f->vsock);
    assert_int_equal(access(f->path, F_OK), -1);
    loop_destroy(f->loop);
    driver_teardown(&f->driver);
    assert_int_equal(rmdir(f->dir), 0);
    free(f);
}

static void send_raw(struct fixture *f, const struct vsock_header *h, const void *data,
                     uint32_t size)
{
    unsigned id = f->next_tx++ % VSOCK_QUEUE_SIZE;
    uint32_t at = TX + id * 0x12000;
    struct driver_piece piece = {at, VSOCK_HEADER_SIZE + size, false};
    uint8_t *p = f->driver.ram + at;
    store_le64(p, h->src_cid);
    store_le64(p + 8, h->dst_cid);
    store_le32(p + 16, h->src_port);
    store_le32(p + 20, h->dst_port);
    store_le32(p + 24, h->len);
    store_le16(p + 28, h->type);
    store_le16(p + 30, h->op);
    store_le32(p + 32, h->flags);
    store_le32(p + 36, h->buf_alloc);
    store_le32(p + 40, h->fwd_cnt);
    if (size != 0)
        memcpy(p + VSOCK_HEADER_SIZE, data, size);
    driver_offer(&f->driver, VSOCK_QUEUE_TX, id, &piece, 1);
    if (id & 1)
        driver_ring_bell(&f->driver, VSOCK_QUEUE_TX);
    else
        driver_notify(&f->driver, VSOCK_QUEUE_TX);
    turn(f);
    assert_int_equal(driver_used(&f->driver, VSOCK_QUEUE_TX, NULL), (int)id);
}

static struct vsock_header header(unsigned op, uint32_t guest_port, uint32_t host_port)
{
    return (struct vsock_header){.src_cid = CID,
                                 .dst_cid = VSOCK_CID_HOST,
                                 .src_port = guest_port,
                                 .dst_port = host_port,
                                 .type = VSOCK_TYPE_STREAM,
                                 .op = (uint16_t)op,
                                 .buf_alloc = 10000};
}

static void send_packet(struct fixture *f, unsigned op, uint32_t guest_port, uint32_t host_port,
                        uint32_t flags, const char *data)
{
    struct vsock_header h = header(op, guest_port, host_port);
    h.flags = flags;
    h.len = (uint32_t)strlen(data);
    send_raw(f, &h, data, h.len);
}

/* The next packet from the device: its operation, 0 when there is none. */
static unsigned next(struct fixture *f)
{
    uint32_t len;
    turn(f);
    int id = driver_used(&f->driver, VSOCK_QUEUE_RX, &len);
    if (id < 0)
        return 0;
    const uint8_t *p = f->driver.ram + RX + (unsigned)id * RX_SIZE;
    f->got = (struct vsock_header){.src_cid = load_le64(p),
                                   .dst_cid = load_le64(p + 8),
                                   .src_port = load_le32(p + 16),
                                   .dst_port = load_le32(p + 20),
                                   .len = load_le32(p + 24),
                                   .type = load_le16(p + 28),
                                   .op = load_le16(p + 30),
                                   .flags = load_le32(p + 32),
                                   .buf_alloc = load_le32(p + 36),
                                   .fwd_cnt = load_le32(p + 40)};
    f->data = f->driver.ram + RX + (unsigned)id * RX_SIZE + VSOCK_HEADER_SIZE;
    assert_int_equal(len, VSOCK_HEADER_SIZE + f->got.len);
    assert_true(f->got.src_cid == VSOCK_CID_HOST && f->got.dst_cid == CID);
    return f->got.op;
}

static void assert_reads(int fd, const char *text)
{
    char buf[256];
    ssize_t n = recv(fd, buf, sizeof(buf), MSG_DONTWAIT);
    assert_int_equal(n, strlen(text));
    assert_memory_equal(buf, text, strlen(text));
}

/* A program of the host is connected to port 1024 of the guest: its descriptor. */
static int connect_in(struct fixture *f)
{
    char ok[32];
    struct err e;
    int fd = unixsock_connect(f->path, &e);
    assert_true(fd >= 0);
    assert_int_equal(send(fd, "CONNECT 1024\nearly", 18, 0), 18);
    assert_int_equal(next(f), VSOCK_OP_REQUEST);
    assert_int_equal(f->got.dst_port, 1024);
    send_packet(f, VSOCK_OP_RESPONSE, 1024, f->got.src_port, 0, "");
    snprintf(ok, sizeof(ok), "OK %u\n", f->got.src_port);
    assert_reads(fd, ok);
    return fd;
}

static void the_host_connects(void **state)
{
    struct fixture *f = setup();
    give_rx(f, 20);
    int fd = connect_in(f);
    uint32_t port = f->got.src_port;
    assert_int_equal(next(f), VSOCK_OP_RW); /* what was sent behind the greeting */
    assert_int_equal(f->got.len, 5);
    assert_memory_equal(f->data, "early", 5);
    send_packet(f, VSOCK_OP_RW, 1024, port, 0, "hello");
    assert_reads(fd, "hello");
    assert_int_equal(send(fd, "there", 5, 0), 5);
    assert_int_equal(next(f), VSOCK_OP_RW);
    assert_memory_equal(f->data, "there", 5);
    assert_int_equal(f->got.fwd_cnt, 5);
    shutdown(fd, SHUT_WR); /* it only listens from here on */
    assert_int_equal(next(f), VSOCK_OP_SHUTDOWN);
    assert_int_equal(f->got.flags, VSOCK_SHUTDOWN_SEND);
    send_packet(f, VSOCK_OP_RW, 1024, port, 0, "still");
    assert_reads(fd, "still");
    send_packet(f, VSOCK_OP_SHUTDOWN, 1024, port, VSOCK_SHUTDOWN_BOTH, "");
    assert_int_equal(next(f), VSOCK_OP_RST);
    assert_reads(fd, ""); /* the end */
    assert_int_equal(f->vsock->count, 0);
    assert_int_equal(next(f), 0);
    close(fd);
    teardown(f);
}

static void the_guest_connects(void **state)
{
    struct fixture *f = setup();
    char path[96];
    struct err e;
    snprintf(path, sizeof(path), "%s_77", f->path);
    int listener = unixsock_listen(path, 8, &e);
    assert_true(listener >= 0);
    give_rx(f, 20);
    send_packet(f, VSOCK_OP_REQUEST, 5, 76, 0, ""); /* nobody is there */
    assert_int_equal(next(f), VSOCK_OP_RST);
    assert_true(f->got.src_port == 76 && f->got.dst_port == 5);
    send_packet(f, VSOCK_OP_REQUEST, 5, 77, 0, "");
    assert_int_equal(next(f), VSOCK_OP_RESPONSE);
    int fd = accept(listener, NULL, NULL);
    send_packet(f, VSOCK_OP_RW, 5, 77, 0, "ping");
    assert_reads(fd, "ping");
    send_packet(f, VSOCK_OP_SHUTDOWN, 5, 77, VSOCK_SHUTDOWN_SEND, "");
    assert_reads(fd, "");
    assert_int_equal(send(fd, "pong", 4, 0), 4);
    assert_int_equal(next(f), VSOCK_OP_RW);
    assert_memory_equal(f->data, "pong", 4);
    close(fd);
    assert_int_equal(next(f), VSOCK_OP_SHUTDOWN);
    send_packet(f, VSOCK_OP_RST, 5, 77, 0, "");
    assert_int_equal(f->vsock->count, 0);
    assert_int_equal(next(f), 0); /* a reset is not answered */
    close(listener);
    unlink(path);
    teardown(f);
}

/* The guest gets no more than it has room for, and goes on when it says that it has. */
static void credit_of_the_guest(void **state)
{
    struct fixture *f = setup();
    static char bytes[30000];
    uint32_t total = 0;
    give_rx(f, 100);
    int fd = connect_in(f);
    uint32_t port = f->got.src_port;
    assert_int_equal(next(f), VSOCK_OP_RW);
    total = f->got.len;
    assert_int_equal(send(fd, bytes, sizeof(bytes), 0), sizeof(bytes));
    while (next(f) == VSOCK_OP_RW)
        total += f->got.len;
    assert_int_equal(total, 10000);
    struct vsock_header h = header(VSOCK_OP_CREDIT_UPDATE, 1024, port);
    h.fwd_cnt = 4000;
    send_raw(f, &h, NULL, 0);
    while (next(f) == VSOCK_OP_RW)
        total += f->got.len;
    assert_int_equal(total, 14000);
    h.buf_alloc = 100; /* takes back what it promised */
    send_raw(f, &h, NULL, 0);
    assert_int_equal(next(f), 0);
    h.buf_alloc = 0xffffffff;
    h.fwd_cnt = 14000;
    send_raw(f, &h, NULL, 0);
    while (next(f) == VSOCK_OP_RW)
        total += f->got.len;
    assert_int_equal(total, sizeof(bytes) + 5);
    close(fd);
    teardown(f);
}

/* What the program does not take stays; the guest is told of room, and held to it. */
static void credit_of_the_host(void **state)
{
    struct fixture *f = setup();
    static char bytes[60000];
    unsigned told = 0, sent = 0;
    uint32_t fwd_cnt = 0;
    give_rx(f, 100);
    int fd = connect_in(f);
    uint32_t port = f->got.src_port;
    assert_int_equal(next(f), VSOCK_OP_RW);
    memset(bytes, 'x', sizeof(bytes));
    struct vsock_header h = header(VSOCK_OP_RW, 1024, port);
    h.len = sizeof(bytes);
    for (unsigned i = 0; i < 64 && sent - fwd_cnt + h.len <= VSOCK_BUFFER_SIZE; i++) {
        send_raw(f, &h, bytes, sizeof(bytes));
        sent += h.len;
        for (unsigned op; (op = next(f)) != 0; told++) {
            assert_int_equal(op, VSOCK_OP_CREDIT_UPDATE);
            fwd_cnt = f->got.fwd_cnt;
        }
    }
    assert_true(told > 0 && sent > VSOCK_BUFFER_SIZE); /* the socket's own buffer took some */
    unsigned received = 0;
    for (ssize_t n; received < sent; received += (unsigned)n) {
        n = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);
        if (n < 0)
            n = 0;
        turn(f);
    }
    while (next(f) == VSOCK_OP_CREDIT_UPDATE)
        fwd_cnt = f->got.fwd_cnt;
    assert_true(sent - fwd_cnt < VSOCK_BUFFER_SIZE / 4);
    assert_int_equal(f->vsock->count, 1);
    for (unsigned i = 0; i < 64 && f->vsock->count != 0; i++)
        send_raw(f, &h, bytes, sizeof(bytes)); /* more than there is room for */
    while (next(f) == VSOCK_OP_CREDIT_UPDATE)
        ;
    assert_int_equal(f->got.op, VSOCK_OP_RST);
    assert_int_equal(f->vsock->count, 0);
    close(fd);
    teardown(f);
}

static void many_connections(void **state)
{
    struct fixture *f = setup();
    int fds[200];
    give_rx(f, 100);
    for (unsigned i = 0; i < ARRAY_SIZE(fds); i++) {
        fds[i] = connect_in(f);
        assert_int_equal(next(f), VSOCK_OP_RW);
        give_rx(f, 2);
    }
    assert_int_equal(f->vsock->count, ARRAY_SIZE(fds));
    for (unsigned i = 0; i < ARRAY_SIZE(fds); i += 2)
        close(fds[i]);
    for (unsigned i = 0; i < ARRAY_SIZE(fds) / 2; i++) {
        assert_int_equal(next(f), VSOCK_OP_SHUTDOWN);
        send_packet(f, VSOCK_OP_RST, 1024, f->got.src_port, 0, "");
        give_rx(f, 1);
    }
    assert_int_equal(f->vsock->count, ARRAY_SIZE(fds) / 2);
    driver_set_status(&f->driver, 0); /* the driver goes, and all with it */
    turn(f);
    assert_int_equal(f->vsock->count, 0);
    for (unsigned i = 1; i < ARRAY_SIZE(fds); i += 2) {
        assert_reads(fds[i], "");
        close(fds[i]);
    }
    teardown(f);
}

static void hostile_packets(void **state)
{
    struct fixture *f = setup();
    give_rx(f, 100);
    struct vsock_header good = header(VSOCK_OP_RW, 9, 9), h;
#define RESET(change)                                                                              \
    do {                                                                                           \
        h = good;                                                                                  \
        change;                                                                                    \
        send_raw(f, &h, "abcd", 4);                                                                \
        assert_int_equal(next(f), VSOCK_OP_RST);                                                   \
    } while (0)
    RESET(h.len = 4);
    RESET(h.len = 5; h.op = VSOCK_OP_REQUEST); /* more than the packet holds */
    RESET(h.len = 0xffffffff);
    RESET(h.type = 7);
    RESET(h.op = 0);
    RESET(h.op = 0xffff);
    RESET(h.op = VSOCK_OP_SHUTDOWN; h.flags = 0xffffffff);
    h = good;
    h.src_cid = 1; /* somebody else's name: not answered */
    send_raw(f, &h, NULL, 0);
    h = good;
    h.op = VSOCK_OP_RST;
    send_raw(f, &h, NULL, 0);
    struct driver_piece little = {TX, 43, false}; /* no whole header */
    driver_offer(&f->driver, VSOCK_QUEUE_TX, f->next_tx++, &little, 1);
    driver_notify(&f->driver, VSOCK_QUEUE_TX);
    assert_int_equal(next(f), 0);
    assert_true(driver_used(&f->driver, VSOCK_QUEUE_TX, NULL) >= 0);
    int fd = connect_in(f);
    assert_int_equal(next(f), VSOCK_OP_RW);
    send_packet(f, VSOCK_OP_REQUEST, 1024, f->got.src_port, 0, ""); /* it is open already */
    assert_int_equal(next(f), VSOCK_OP_RST);
    assert_reads(fd, "");
    close(fd);
    /* programs that don't know what to say */
    static const char *const lines[] = {"CONNECT\n", "CONNECT 99999999999\n", "GET / HTTP/1.1\n",
                                        "CONNECT 1 2\n", "CONNECT 1234567890123456789012345678"};
    for (unsigned i = 0; i < ARRAY_SIZE(lines); i++) {
        struct err e;
        fd = unixsock_connect(f->path, &e);
        assert_int_equal(send(fd, lines[i], strlen(lines[i]), 0), strlen(lines[i]));
        assert_int_equal(next(f), 0);
        char byte;
        ssize_t n = recv(fd, &byte, 1, MSG_DONTWAIT);
        assert_true(n == 0 || (n < 0 && errno == ECONNRESET));
        close(fd);
    }
    assert_false(driver_needs_reset(&f->driver));
    /* resets without a buffer for them: the queue is not served any further */
    driver_start(&f->driver, f->driver.dev, BIT(0));
    f->next_tx = f->next_rx = 0;
    for (unsigned i = 0; i < 100; i++) {
        struct driver_piece piece = {TX, VSOCK_HEADER_SIZE, false};
        driver_offer(&f->driver, VSOCK_QUEUE_TX, i, &piece, 1);
    }
    store_le16(f->driver.ram + TX + 30, VSOCK_OP_RW);
    store_le64(f->driver.ram + TX, CID);
    driver_notify(&f->driver, VSOCK_QUEUE_TX);
    turn(f);
    unsigned done = 0;
    while (driver_used(&f->driver, VSOCK_QUEUE_TX, NULL) >= 0)
        done++;
    assert_int_equal(done, VSOCK_RESETS_MAX);
    give_rx(f, 100);
    turn(f);
    while (driver_used(&f->driver, VSOCK_QUEUE_TX, NULL) >= 0)
        done++;
    assert_int_equal(done, 100);
    teardown(f);
}

/* ---- state ---- */

#define EVENTS 0x1f0000u

static void take_vsock(struct fixture *f, struct virtio_state *s, uint32_t cid)
{
    driver_take_state(&f->driver, s);
    turn(f); /* what was posted is done with */
    virtio_vsock_destroy(f->vsock);
    make_vsock(f, cid);
}

static void give_event_buffer(struct fixture *f, unsigned id, uint32_t size)
{
    struct driver_piece piece = {EVENTS + id * 8, size, true};
    memset(f->driver.ram + piece.at, 0xee, 8);
    driver_offer(&f->driver, VSOCK_QUEUE_EVENT, id, &piece, 1);
    driver_notify(&f->driver, VSOCK_QUEUE_EVENT);
}

/* Connections end; the driver hears of it, and can make others. */
static void connections_end_with_the_device(void **state)
{
    struct fixture *f = setup();
    struct virtio_state s;
    uint32_t len;
    give_rx(f, 20);
    give_event_buffer(f, 0, 8);
    int fd = connect_in(f);
    uint32_t port = f->got.src_port;
    assert_int_equal(next(f), VSOCK_OP_RW);
    assert_int_equal(driver_used(&f->driver, VSOCK_QUEUE_EVENT, NULL), -1);
    take_vsock(f, &s, CID);
    driver_put_state(&f->driver, virtio_vsock_device(f->vsock), &s);
    assert_int_equal(driver_used(&f->driver, VSOCK_QUEUE_EVENT, &len), 0);
    assert_int_equal(len, 4);
    assert_int_equal(load_le32(f->driver.ram + EVENTS), 0); /* TRANSPORT_RESET */
    assert_int_equal(load_le32(f->driver.ram + EVENTS + 4), 0xeeeeeeee);
    assert_int_equal(f->driver.signals[VSOCK_QUEUE_EVENT], 1);
    assert_reads(fd, ""); /* the program sees the end */
    close(fd);
    send_packet(f, VSOCK_OP_RW, 1024, port, 0, "too late");
    assert_int_equal(next(f), VSOCK_OP_RST);
    fd = connect_in(f);
    assert_int_equal(f->got.src_port, port + 1); /* not to be mistaken for the one before */
    assert_int_equal(next(f), VSOCK_OP_RW);
    close(fd);
    assert_int_equal(next(f), VSOCK_OP_SHUTDOWN);
    assert_int_equal(driver_used(&f->driver, VSOCK_QUEUE_EVENT, NULL), -1);
    teardown(f);
}

/* The event waits for a buffer; with it the driver reads its number anew. */
static void an_event_waits_for_a_buffer(void **state)
{
    struct fixture *f = setup();
    struct virtio_state s;
    uint32_t len;
    take_vsock(f, &s, CID + 1);
    driver_put_state(&f->driver, virtio_vsock_device(f->vsock), &s);
    assert_int_equal(load_le64(f->driver.dev->config), CID + 1);
    assert_int_equal(f->driver.config_signals, 1);
    give_event_buffer(f, 1, 8);
    assert_int_equal(driver_used(&f->driver, VSOCK_QUEUE_EVENT, &len), 1);
    /* once is enough: a state that is taken, and the device goes on */
    give_event_buffer(f, 2, 8);
    driver_take_state(&f->driver, &s);
    virtio_resume(f->driver.dev);
    assert_int_equal(driver_used(&f->driver, VSOCK_QUEUE_EVENT, NULL), -1);
    take_vsock(f, &s, CID);
    store_le32(f->driver.ram + driver_ring(VSOCK_QUEUE_EVENT) + 2 * 16 + 8, 2); /* too small */
    driver_put_state(&f->driver, virtio_vsock_device(f->vsock), &s);
    assert_true(driver_needs_reset(&f->driver));
    /* without a driver nobody has to hear of anything */
    driver_set_status(&f->driver, 0);
    turn(f);
    take_vsock(f, &s, CID);
    driver_put_state(&f->driver, virtio_vsock_device(f->vsock), &s);
    driver_start(&f->driver, f->driver.dev, BIT(0));
    give_event_buffer(f, 0, 8);
    assert_int_equal(driver_used(&f->driver, VSOCK_QUEUE_EVENT, NULL), -1);
    teardown(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_host_connects),
        cmocka_unit_test(the_guest_connects),
        cmocka_unit_test(credit_of_the_guest),
        cmocka_unit_test(credit_of_the_host),
        cmocka_unit_test(many_connections),
        cmocka_unit_test(hostile_packets),
        cmocka_unit_test(connections_end_with_the_device),
        cmocka_unit_test(an_event_waits_for_a_buffer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
