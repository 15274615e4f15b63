/*
 * virtio_net_test.c - frames with work left, pairs of queues, control commands, hostile drivers
 *
 * The network is the test's own, without a thread.
 */
#include "dev/virtio/testing.h"

#include "backend/net/netdev.h"
#include "dev/virtio/virtio_net.h"
#include "dev/virtio/virtio_net_internal.h"

#define F_CSUM BIT(0)
#define F_GUEST_CSUM BIT(1)
#define F_CTRL_OFFLOADS BIT(2)
#define F_GUEST_TSO4 BIT(7)
#define F_MRG BIT(15)
#define F_CTRL BIT(17)
#define F_MQ BIT(22)
#define FRAME 0x200000u
#define ROOM 0x300000u
#define HEADER 12u

struct netdev {
    const struct netdev_client *client;
    void *ctx;
    unsigned takes, wakes;
    bool is_used;
};

struct fixture {
    struct driver driver;
    struct netdev netdev, others[2];
    struct netdev *nets[3];
    unsigned net_count;
    struct virtio_net *net;
    unsigned next[VIRTIO_QUEUES_MAX];
};

int netdev_start(struct netdev *net, const struct netdev_client *client, void *ctx, struct err *e)
{
    net->client = client;
    net->ctx = ctx;
    return 0;
}

#define WAKE_FD 77

int netdev_wake_fd(const struct netdev *net)
{
    return WAKE_FD;
}

void netdev_wake(struct netdev *net)
{
    net->wakes++;
}

void netdev_accept(struct netdev *net, unsigned takes)
{
    net->takes = takes;
}

void netdev_use(struct netdev *net, bool is_used)
{
    net->is_used = is_used;
}

unsigned netdev_mtu(const struct netdev *net)
{
    return 1400;
}

static void make_net(struct fixture *f)
{
    struct err e;
    struct virtio_net_config config = {.name = "net",
                                       .memory = f->driver.space,
                                       .nets = f->nets,
                                       .net_count = f->net_count,
                                       .mac = {0x52, 1, 2, 3, 4, 5},
                                       .pair_count = 3};
    assert_int_equal(virtio_net_create(&config, &f->net, &e), 0);
    assert_int_equal(virtio_net_start(f->net, &e), 0);
}

static struct fixture *setup_with(unsigned net_count, uint64_t features)
{
    struct fixture *f = calloc(1, sizeof(*f));
    driver_setup(&f->driver);
    f->nets[0] = &f->netdev;
    f->nets[1] = &f->others[0];
    f->nets[2] = &f->others[1];
    f->net_count = net_count;
    make_net(f);
    driver_start(&f->driver, virtio_net_device(f->net), features);
    return f;
}

static struct fixture *setup(uint64_t features)
{
    return setup_with(1, features);
}

static void teardown(struct fixture *f)
{
    virtio_net_destroy(f->net);
    driver_teardown(&f->driver);
    free(f);
}

/* A TCP segment between two ports, from the guest or to it. */
static size_t make_frame(uint8_t *frame, bool is_to_guest, uint16_t guest_port, size_t payload)
{
    memset(frame, 0, 54 + payload);
    memset(frame, 0xff, 6);
    frame[12] = 8;
    frame[14] = 0x45;
    frame[16] = (uint8_t)((40 + payload) >> 8);
    frame[17] = (uint8_t)(40 + payload);
    frame[23] = 6;
    frame[26 + (is_to_guest ? 4 : 0)] = 10; /* the guest's address */
    uint8_t *ports = frame + 34;
    ports[is_to_guest ? 2 : 0] = (uint8_t)(guest_port >> 8);
    ports[is_to_guest ? 3 : 1] = (uint8_t)guest_port;
    frame[46] = 5 << 4;
    return 54 + payload;
}

static unsigned transmit(struct fixture *f, unsigned queue, const struct netdev_header *header,
                         uint16_t port, size_t payload)
{
    unsigned id = f->next[queue]++ % 256;
    uint8_t *p = f->driver.ram + FRAME;
    memset(p, 0, HEADER);
    memcpy(p, header, sizeof(*header));
    size_t len = make_frame(p + HEADER, false, port, payload);
    struct driver_piece piece = {FRAME, HEADER + (uint32_t)len, false};
    driver_offer(&f->driver, queue, id, &piece, 1);
    return id;
}

static uint8_t frame[NETDEV_FRAME_MAX];

static void give_room(struct fixture *f, unsigned queue, unsigned count, uint32_t size)
{
    for (unsigned i = 0; i < count; i++) {
        unsigned id = f->next[queue]++ % 256;
        struct driver_piece piece = {ROOM + queue * 0x100000 + id * 0x1000, size, true};
        driver_offer(&f->driver, queue, id, &piece, 1);
    }
}

static bool push(struct fixture *f, const struct netdev_header *header, uint16_t port,
                 size_t payload)
{
    size_t len = make_frame(frame, true, port, payload);
    return f->netdev.client->push(f->netdev.ctx, header, frame, len);
}

static const struct netdev_header none, large = {.flags = NETDEV_NEEDS_CHECKSUM,
                                                 .gso_type = NETDEV_GSO_TCP4,
                                                 .headers_size = 54,
                                                 .gso_size = 1000,
                                                 .checksum_start = 34,
                                                 .checksum_offset = 16};

static bool pull(struct fixture *f, struct netdev_header *header, size_t *len)
{
    *len = f->netdev.client->pull(f->netdev.ctx, header, frame);
    return *len != 0;
}

static void headers_pass_through(void **state)
{
    struct netdev_header got;
    size_t len;
    struct fixture *f = setup(F_CSUM);
    assert_int_equal(load_le16(f->driver.dev->config + 10), 1400);
    transmit(f, 1, &large, 80, 3000);
    driver_notify(&f->driver, 1);
    assert_true(f->netdev.wakes > 0);
    assert_true(pull(f, &got, &len));
    assert_int_equal(len, 3054);
    assert_memory_equal(&got, &large, sizeof(got));
    assert_false(pull(f, &got, &len));
    assert_int_equal(driver_used(&f->driver, 1, NULL), 0);
    teardown(f);

    f = setup(0); /* a driver that did not say that it leaves anything */
    transmit(f, 1, &large, 80, 3000);
    assert_true(pull(f, &got, &len));
    assert_memory_equal(&got, &none, sizeof(got));
    teardown(f);
}

static void what_the_guest_takes(void **state)
{
    uint32_t len;
    struct fixture *f = setup(F_GUEST_CSUM | F_GUEST_TSO4 | F_MRG);
    assert_int_equal(f->netdev.takes, NETDEV_TAKES_CHECKSUM | NETDEV_TAKES_TCP4);
    give_room(f, 0, 10, 1000);
    assert_true(push(f, &large, 80, 2900));
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(driver_used(&f->driver, 0, &len), i);
        assert_int_equal(len, i < 2 ? 1000 : HEADER + 2954 - 2000);
    }
    const uint8_t *p = f->driver.ram + ROOM;
    assert_memory_equal(p, &large, sizeof(large));
    assert_int_equal(load_le16(p + 10), 3); /* buffers */
    driver_set_status(&f->driver, 0);
    assert_int_equal(f->netdev.takes, 0);
    driver_start(&f->driver, f->driver.dev, F_GUEST_TSO4); /* rests on GUEST_CSUM */
    assert_int_equal(f->netdev.takes, 0);
    f->next[0] = 0;
    give_room(f, 0, 4, 4000);
    assert_true(push(f, &large, 80, 2900)); /* left over from before: lost */
    assert_int_equal(driver_used(&f->driver, 0, &len), -1);
    assert_true(push(f, &none, 80, 100));
    assert_int_equal(driver_used(&f->driver, 0, &len), 0);
    assert_true(push(f, &none, 80, 5000)); /* will never fit: lost, too */
    give_room(f, 0, 0, 0);
    teardown(f);
}

static uint8_t command(struct fixture *f, unsigned queue, unsigned class, unsigned what,
                       const void *data, uint32_t size)
{
    uint8_t *p = f->driver.ram + FRAME;
    struct driver_piece pieces[] = {
        {FRAME, 2, false}, {FRAME + 0x100, size, false}, {FRAME + 0x1000, 1, true}};
    p[0] = (uint8_t) class;
    p[1] = (uint8_t)what;
    memcpy(p + 0x100, data, size);
    p[0x1000] = 0xee;
    unsigned id = (f->next[queue]++ * 3) % 255;
    driver_offer(&f->driver, queue, id, pieces, 3);
    driver_notify(&f->driver, queue);
    assert_int_equal(driver_used(&f->driver, queue, NULL), id);
    return p[0x1000];
}

static void flows_keep_to_their_pair(void **state)
{
    struct fixture *f = setup(F_MQ | F_CTRL | F_MRG);
    struct netdev_header got;
    uint8_t pairs[2] = {3, 0};
    size_t len;
    for (unsigned i = 0; i < 3; i++)
        give_room(f, 2 * i, 4, 2000);
    transmit(f, 5, &none, 80, 100);
    assert_false(pull(f, &got, &len)); /* one pair until the driver says more */
    assert_int_equal(command(f, 6, 4, 0, pairs, 2), 0);
    assert_true(pull(f, &got, &len));
    transmit(f, 3, &none, 81, 100);
    assert_true(pull(f, &got, &len));
    assert_true(push(f, &none, 80, 10));
    assert_true(push(f, &none, 81, 10));
    assert_int_equal(driver_used(&f->driver, 4, NULL), 0);
    assert_int_equal(driver_used(&f->driver, 2, NULL), 0);
    pairs[0] = 0;
    assert_int_equal(command(f, 6, 4, 0, pairs, 2), 1);
    pairs[0] = 4;
    assert_int_equal(command(f, 6, 4, 0, pairs, 2), 1);
    pairs[0] = 1;
    assert_int_equal(command(f, 6, 4, 0, pairs, 2), 0);
    assert_true(push(f, &none, 80, 10));
    assert_int_equal(driver_used(&f->driver, 0, NULL), 0);
    teardown(f);
}

/* A backend with a queue for each pair: frames keep to it, both ways. */
static void queues_of_the_backend(void **state)
{
    struct fixture *f = setup_with(3, F_MQ | F_CTRL | F_MRG);
    const struct netdev_client *client = f->netdev.client;
    struct netdev_header got;
    uint8_t pairs[2] = {3, 0};

    assert_true(f->netdev.is_used && !f->others[0].is_used && !f->others[1].is_used);
    for (unsigned i = 0; i < 3; i++)
        give_room(f, 2 * i, 4, 2000);
    assert_int_equal(command(f, 6, 4, 0, pairs, 2), 0);
    assert_true(f->netdev.is_used && f->others[0].is_used && f->others[1].is_used);
    f->netdev.wakes = f->others[0].wakes = f->others[1].wakes = 0;
    transmit(f, 5, &none, 80, 100);
    driver_notify(&f->driver, 5);
    assert_true(f->netdev.wakes == 0 && f->others[0].wakes == 0 && f->others[1].wakes == 1);
    assert_int_equal(client->pull(f->nets[0]->ctx, &got, frame), 0);
    assert_int_equal(client->pull(f->nets[1]->ctx, &got, frame), 0);
    assert_int_equal(client->pull(f->nets[2]->ctx, &got, frame), 154);
    for (unsigned i = 0; i < 3; i++) {
        size_t len = make_frame(frame, true, 80, 10);
        assert_true(client->push(f->nets[i]->ctx, &none, frame, len));
        assert_int_equal(driver_used(&f->driver, 2 * i, NULL), 0);
    }
    /* what was on its way by a queue that is not used any more comes on the first */
    pairs[0] = 1;
    assert_int_equal(command(f, 6, 4, 0, pairs, 2), 0);
    assert_true(f->netdev.is_used && !f->others[0].is_used && !f->others[1].is_used);
    size_t len = make_frame(frame, true, 80, 10);
    assert_true(client->push(f->nets[2]->ctx, &none, frame, len));
    assert_int_equal(driver_used(&f->driver, 0, NULL), 1);
    transmit(f, 5, &none, 80, 100);
    assert_int_equal(client->pull(f->nets[2]->ctx, &got, frame), 0);
    teardown(f);
}

/* A pair that is left in the midst of sending may notify when it is used again. */
static void a_pair_comes_back(void **state)
{
    struct fixture *f = setup(F_MQ | F_CTRL);
    struct netdev_header got;
    uint8_t pairs[2] = {2, 0};
    size_t len;
    assert_int_equal(command(f, 6, 4, 0, pairs, 2), 0);
    transmit(f, 3, &none, 80, 100);
    assert_true(pull(f, &got, &len)); /* and would go on */
    assert_true(f->driver.dev->queues[3].is_quiet);
    pairs[0] = 1;
    f->netdev.wakes = 0;
    assert_int_equal(command(f, 6, 4, 0, pairs, 2), 0);
    assert_false(f->driver.dev->queues[3].is_quiet);
    assert_int_equal(f->netdev.wakes, 1);
    teardown(f);
}

static void control_commands(void **state)
{
    struct fixture *f = setup(F_CTRL | F_CTRL_OFFLOADS | F_GUEST_CSUM | F_GUEST_TSO4);
    uint8_t bytes[64] = {0};
    assert_int_equal(command(f, 2, 4, 0, "\1\0", 2), 1); /* pairs were not negotiated */
    store_le64(bytes, F_GUEST_CSUM);
    assert_int_equal(command(f, 2, 5, 0, bytes, 8), 0);
    assert_int_equal(f->netdev.takes, NETDEV_TAKES_CHECKSUM);
    store_le64(bytes, F_GUEST_CSUM | BIT(8)); /* was not negotiated */
    assert_int_equal(command(f, 2, 5, 0, bytes, 8), 1);
    assert_int_equal(command(f, 2, 5, 0, bytes, 7), 1);
    assert_int_equal(command(f, 2, 1, 1, "\2\3\4\5\6\7", 6), 0);
    assert_memory_equal(f->driver.dev->config, "\2\3\4\5\6\7", 6);
    assert_int_equal(command(f, 2, 1, 1, bytes, 7), 1);
    store_le32(bytes, 0xffffffff); /* addresses that are not there */
    assert_int_equal(command(f, 2, 1, 0, bytes, 40), 1);
    store_le32(bytes, 2);
    assert_int_equal(command(f, 2, 1, 0, bytes, 17), 1); /* no second table */
    assert_int_equal(command(f, 2, 0, 99, bytes, 1), 1);
    assert_int_equal(command(f, 2, 77, 0, bytes, 1), 1);
    assert_false(driver_needs_reset(&f->driver));
    teardown(f);
}

static void no_cable(void **state)
{
    struct fixture *f = setup(0);
    struct netdev_header got;
    size_t len;
    virtio_net_set_link(f->net, false);
    assert_int_equal(f->driver.config_signals, 1);
    transmit(f, 1, &none, 80, 10);
    assert_false(pull(f, &got, &len));
    assert_int_equal(driver_used(&f->driver, 1, NULL), 0); /* sent, and lost */
    give_room(f, 0, 2, 2000);
    assert_true(push(f, &none, 80, 10));
    assert_int_equal(driver_used(&f->driver, 0, NULL), -1);
    virtio_net_set_link(f->net, true);
    assert_true(push(f, &none, 80, 10));
    assert_int_equal(driver_used(&f->driver, 0, NULL), 0);
    teardown(f);
}

static void hold(struct fixture *f, bool is_held)
{
    pthread_mutex_lock(&f->driver.dev->lock);
    virtio_hold(f->driver.dev, is_held);
    pthread_mutex_unlock(&f->driver.dev->lock);
}

/* Buffers that may not be taken are none: a frame waits, and what was sent does. */
static void a_held_device_waits(void **state)
{
    struct fixture *f = setup(0);
    struct netdev_header got;
    size_t len;
    give_room(f, 0, 2, 2000);
    transmit(f, 1, &none, 80, 10);
    hold(f, true);
    assert_false(push(f, &none, 80, 10));
    assert_false(pull(f, &got, &len));
    f->netdev.wakes = 0;
    hold(f, false);
    assert_true(f->netdev.wakes != 0);
    assert_true(push(f, &none, 80, 10));
    assert_true(pull(f, &got, &len));
    assert_int_equal(driver_used(&f->driver, 0, NULL), 0);
    assert_int_equal(driver_used(&f->driver, 1, NULL), 0);
    teardown(f);
}

/* A control queue has none, and with one pair it is where the second would be. */
static void bells_wake_the_network_only(void **state)
{
    static const uint64_t features[] = {NET_F_CTRL_VQ, NET_F_CTRL_VQ | NET_F_MQ};

    for (unsigned n = 0; n < ARRAY_SIZE(features); n++) {
        struct fixture *f = setup(features[n]);
        struct virtio_device *dev = f->driver.dev;
        unsigned control = virtio_net_control_queue(f->net);
        assert_int_equal(dev->queue_count, 7);
        assert_int_equal(control, n == 0 ? 2 : 6);
        for (unsigned i = 0; i < dev->queue_count; i++)
            assert_int_equal(dev->ops->bell(dev, i), i == 2 || i == 6 ? -1 : WAKE_FD);
        teardown(f);
    }
}

static void hostile_drivers(void **state)
{
    struct fixture *f = setup(F_CSUM | F_MRG);
    struct netdev_header got;
    size_t len;
    struct driver_piece pieces[] = {{FRAME, 8, false}, {FRAME, 0x20000, false}};
    driver_offer(&f->driver, 1, 0, pieces, 1);     /* no whole header */
    driver_offer(&f->driver, 1, 1, pieces + 1, 1); /* longer than any frame */
    struct driver_piece in = {FRAME, 100, true};
    driver_offer(&f->driver, 1, 2, &in, 1); /* nothing to send in it */
    assert_false(pull(f, &got, &len));
    for (int i = 0; i < 3; i++)
        assert_int_equal(driver_used(&f->driver, 1, NULL), i);
    /* room for a frame, in buffers that are too many */
    give_room(f, 0, 128, 20);
    assert_true(push(f, &none, 80, 2000));
    assert_int_equal(driver_used(&f->driver, 0, NULL), -1);
    assert_true(push(f, &none, 80, 100)); /* nothing was lost of them */
    assert_int_equal(driver_used(&f->driver, 0, NULL), 0);
    driver_start(&f->driver, f->driver.dev, F_MRG);
    f->next[0] = 0;
    give_room(f, 0, 20, 8);
    assert_true(push(f, &none, 80, 10));
    assert_true(driver_needs_reset(&f->driver)); /* no room for the header */
    teardown(f);
}

/* ---- state ---- */

#define F_ALL (F_CSUM | F_GUEST_CSUM | F_GUEST_TSO4 | F_CTRL_OFFLOADS | F_MRG | F_CTRL | F_MQ)

static void take_net(struct fixture *f, struct virtio_state *s)
{
    driver_take_state(&f->driver, s);
    virtio_net_destroy(f->net);
    make_net(f);
    f->netdev.takes = 0;
}

static void put_net(struct fixture *f, const struct virtio_state *s)
{
    driver_put_state(&f->driver, virtio_net_device(f->net), s);
}

static bool reaches(struct fixture *f, const char *to, unsigned queue)
{
    size_t len = make_frame(frame, true, 80, 10);
    memcpy(frame, to, 6);
    assert_true(f->netdev.client->push(f->netdev.ctx, &none, frame, len));
    return driver_used(&f->driver, queue, NULL) >= 0;
}

/* What control commands said holds for the next device, too. */
static void another_interface_goes_on(void **state)
{
    struct fixture *f = setup(F_ALL);
    struct netdev_header got;
    struct virtio_state s;
    uint8_t bytes[64] = {0};
    size_t len;
    for (unsigned i = 0; i < 3; i++)
        give_room(f, 2 * i, 8, 2000);
    assert_int_equal(command(f, 6, 0, 0, "\0", 1), 0); /* no longer promiscuous */
    assert_int_equal(command(f, 6, 0, 5, "\1", 1), 0); /* no broadcasts */
    assert_int_equal(command(f, 6, 1, 1, "\2\3\4\5\6\7", 6), 0);
    store_le32(bytes, 1);
    memcpy(bytes + 4, "\2\0\0\0\0\1", 6);
    store_le32(bytes + 10, 1);
    memcpy(bytes + 14, "\3\0\0\0\0\2", 6);
    assert_int_equal(command(f, 6, 1, 0, bytes, 20), 0);
    assert_int_equal(command(f, 6, 4, 0, "\2\0", 2), 0);
    store_le64(bytes, F_GUEST_CSUM);
    assert_int_equal(command(f, 6, 5, 0, bytes, 8), 0);
    transmit(f, 3, &none, 80, 100); /* the second pair is in the midst of sending */
    assert_true(pull(f, &got, &len));
    assert_true(f->driver.dev->queues[3].is_quiet);
    transmit(f, 3, &none, 80, 200);

    take_net(f, &s);
    assert_int_equal(s.net.active_pairs, 2);
    assert_int_equal(s.net.offloads, F_GUEST_CSUM);
    f->netdev.wakes = 0;
    put_net(f, &s);
    assert_true(f->netdev.wakes != 0);
    assert_int_equal(f->netdev.takes, NETDEV_TAKES_CHECKSUM);
    assert_true(pull(f, &got, &len)); /* nobody had to notify */
    assert_int_equal(len, 254);
    assert_false(pull(f, &got, &len));
    assert_false(f->driver.dev->queues[3].is_quiet);
    assert_int_equal(driver_used(&f->driver, 3, NULL), 0);
    assert_int_equal(driver_used(&f->driver, 3, NULL), 1);
    transmit(f, 3, &none, 80, 100);
    assert_true(pull(f, &got, &len));
    take_net(f, &s);
    put_net(f, &s);
    assert_false(pull(f, &got, &len)); /* that was the last: the driver is to notify again */
    assert_false(f->driver.dev->queues[3].is_quiet);
    transmit(f, 3, &none, 80, 100);
    assert_true(pull(f, &got, &len));
    unsigned queue = 2; /* where the flow was last sent on */
    assert_true(reaches(f, "\2\3\4\5\6\7", queue));
    assert_true(reaches(f, "\2\0\0\0\0\1", queue));
    assert_true(reaches(f, "\3\0\0\0\0\2", queue));
    assert_false(reaches(f, "\2\0\0\0\0\2", queue));
    assert_false(reaches(f, "\x52\1\2\3\4\5", queue));
    assert_false(reaches(f, "\xff\xff\xff\xff\xff\xff", queue));
    assert_int_equal(command(f, 6, 4, 0, "\3\0", 2), 0);

    virtio_net_set_link(f->net, false);
    take_net(f, &s);
    put_net(f, &s);
    assert_false(reaches(f, "\2\3\4\5\6\7", queue));
    driver_set_status(&f->driver, 0);
    assert_memory_equal(f->driver.dev->config, "\x52\1\2\3\4\5", 6);
    teardown(f);
}

static void forged_states_are_refused(void **state)
{
    struct fixture *f = setup(F_ALL);
    struct virtio_state good, s;
    take_net(f, &good);
    struct virtio_device *dev = virtio_net_device(f->net);
#define REFUSES(what, says) DRIVER_REFUSES(dev, good, s, what, says)
    REFUSES(s.net.active_pairs = 0, "net.active_pairs");
    REFUSES(s.net.active_pairs = 4, "net.active_pairs");
    REFUSES((s.features &= ~F_MQ, s.net.active_pairs = 2), "net.active_pairs");
    REFUSES(s.net.rx[5] = 2, "net.rx, mode of 5");
    REFUSES(s.net.offloads |= BIT(8), "net.offloads");
    REFUSES(s.net.unicast.count = 33, "net.unicast.count");
    REFUSES(s.net.multicast.count = 255, "net.multicast.count");
    REFUSES(s.net.multicast.is_full = 2, "net.multicast.is_full");
    REFUSES(s.config[CONFIG_STATUS] = 3, "only the link's bit");
    REFUSES(s.config[CONFIG_MTU] ^= 1, "config[10]");
#undef REFUSES
    put_net(f, &good);
    teardown(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(headers_pass_through),      cmocka_unit_test(what_the_guest_takes),
        cmocka_unit_test(flows_keep_to_their_pair),  cmocka_unit_test(queues_of_the_backend),
        cmocka_unit_test(a_pair_comes_back),         cmocka_unit_test(bells_wake_the_network_only),
        cmocka_unit_test(control_commands),          cmocka_unit_test(no_cable),
        cmocka_unit_test(a_held_device_waits),       cmocka_unit_test(hostile_drivers),
        cmocka_unit_test(another_interface_goes_on), cmocka_unit_test(forged_states_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
