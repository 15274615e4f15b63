/*
 * fuzz_virtio.c - a hostile driver's descriptor tables, rings and data against each virtio device
 *
 * The input chooses the device, its features and the ring's kind, then is copied into the
 * driver's memory, piece by piece, with notifications, register writes and turns of the loop
 * between. Another device may take the place of the first, with its state, or with what the input
 * made of that. What must hold: nothing but what sanitizers and the devices' own asserts watch, the
 * device ends its reset, and another driver can work with it; and whatever a driver has done, the
 * device's state can be taken and put back.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/block/block.h"
#include "backend/char/chardev.h"
#include "backend/net/offload.h"
#include "dev/virtio/virtio.h"
#include "dev/virtio/virtio_balloon.h"
#include "dev/virtio/virtio_blk.h"
#include "dev/virtio/virtio_console.h"
#include "dev/virtio/virtio_net.h"
#include "dev/virtio/virtio_rng.h"
#include "dev/virtio/virtio_state.h"
#include "dev/virtio/virtio_vsock.h"
#include "mem/space.h"
#include "os/loop.h"
#include "os/memfd.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define RAM_SIZE 0x20000u
#define QUEUE_BYTES 0x2000u
#define STEPS_MAX 200u

enum { DEVICE_RNG, DEVICE_CONSOLE, DEVICE_BALLOON, DEVICE_VSOCK, DEVICE_NET, DEVICE_BLK, DEVICES };

static void require(int claim)
{
    if (!claim)
        abort();
}

struct input {
    const uint8_t *at;
    size_t left;
};

static uint32_t take(struct input *in, unsigned bytes)
{
    uint32_t value = 0;

    for (unsigned i = 0; i < bytes && in->left > 0; i++, in->left--)
        value |= (uint32_t)*in->at++ << (8 * i);
    return value;
}

/* ---- a network without a thread: frames move when the input says so ---- */

struct netdev {
    const struct netdev_client *client;
    void *ctx;
    unsigned accepted;
};

int netdev_start(struct netdev *net, const struct netdev_client *client, void *ctx, struct err *e)
{
    net->client = client;
    net->ctx = ctx;
    return 0;
}

int netdev_wake_fd(const struct netdev *net)
{
    return -1;
}

void netdev_wake(struct netdev *net)
{
}

void netdev_accept(struct netdev *net, unsigned takes)
{
    net->accepted = takes;
}

void netdev_use(struct netdev *net, bool is_used)
{
}

unsigned netdev_mtu(const struct netdev *net)
{
    return NETDEV_MTU_DEFAULT;
}

struct machine {
    unsigned kind;
    uint8_t *ram;
    struct space *space;
    struct loop *loop;
    struct virtio_device *dev;
    struct virtio_rng *rng;
    struct virtio_console *console;
    struct chardev *chardevs[2];
    struct virtio_balloon *balloon;
    struct virtio_vsock *vsock;
    char path[64], disk[64];
    struct netdev net;
    struct virtio_net *virtio_net;
    struct block *block;
    struct virtio_blk *blk;
};

static void on_queue(void *transport, unsigned index)
{
    require(index < VIRTIO_QUEUES_MAX);
}

static void on_config(void *transport)
{
}

static const struct virtio_transport_ops transport_ops = {on_queue, on_config};

/* ---- the machine ---- */

static void make_console(struct machine *m)
{
    struct err e;
    struct virtio_console_config config = {.memory = m->space, .loop = m->loop, .port_count = 2};

    for (unsigned i = 0; i < 2; i++)
        if (m->chardevs[i] == NULL)
            require(chardev_create_none(m->loop, &m->chardevs[i], &e) == 0);
    config.ports[0] = (struct virtio_console_port){.chardev = m->chardevs[0], .is_console = true};
    config.ports[1] = (struct virtio_console_port){.chardev = m->chardevs[1], .name = "port"};
    require(virtio_console_create(&config, &m->console, &e) == 0);
    m->dev = virtio_console_device(m->console);
}

static void make_net(struct machine *m)
{
    struct err e;
    struct virtio_net_config config = {.name = "net",
                                       .memory = m->space,
                                       .nets = &(struct netdev *){&m->net},
                                       .net_count = 1,
                                       .pair_count = 2};

    require(virtio_net_create(&config, &m->virtio_net, &e) == 0);
    require(virtio_net_start(m->virtio_net, &e) == 0);
    m->dev = virtio_net_device(m->virtio_net);
}

static void make_image(struct machine *m)
{
    struct err e;
    struct block_config host = {.path = m->disk};

    snprintf(m->disk, sizeof(m->disk), "/tmp/doppel-fuzz-XXXXXX");
    int fd = mkstemp(m->disk);
    require(fd >= 0 && ftruncate(fd, 65536) == 0);
    close(fd);
    require(block_open(&host, &m->block, &e) == 0);
}

static void make_disk(struct machine *m)
{
    struct err e;

    if (m->block == NULL)
        make_image(m);
    struct virtio_blk_config config = {
        .name = "disk", .memory = m->space, .block = m->block, .queue_count = 2};
    require(virtio_blk_create(&config, &m->blk, &e) == 0);
    m->dev = virtio_blk_device(m->blk);
}

static void make_device(struct machine *m)
{
    struct err e;
    struct virtio_balloon_config balloon = {
        .memory = m->space, .loop = m->loop, .deflates_on_oom = true, .reports_free_pages = true};
    struct virtio_vsock_config vsock = {
        .memory = m->space, .loop = m->loop, .cid = 3, .path = m->path};

    switch (m->kind) {
    case DEVICE_RNG:
        require(virtio_rng_create(m->space, &m->rng, &e) == 0);
        m->dev = virtio_rng_device(m->rng);
        break;
    case DEVICE_CONSOLE:
        make_console(m);
        break;
    case DEVICE_BALLOON:
        require(virtio_balloon_create(&balloon, &m->balloon, &e) == 0);
        m->dev = virtio_balloon_device(m->balloon);
        break;
    case DEVICE_VSOCK:
        snprintf(m->path, sizeof(m->path), "/tmp/doppel-fuzz-%d", (int)getpid());
        require(virtio_vsock_create(&vsock, &m->vsock, &e) == 0);
        m->dev = virtio_vsock_device(m->vsock);
        break;
    case DEVICE_NET:
        make_net(m);
        break;
    default:
        make_disk(m);
        break;
    }
    m->dev->transport_ops = &transport_ops;
    m->dev->transport = m;
}

static void stop(void *loop)
{
    loop_stop(loop);
}

static void turn(struct machine *m)
{
    struct err e;

    loop_post(m->loop, stop, m->loop);
    require(loop_run(m->loop, &e) == 0);
}

static void destroy_device(struct machine *m)
{
    virtio_blk_destroy(m->blk);
    virtio_net_destroy(m->virtio_net);
    virtio_rng_destroy(m->rng);
    virtio_balloon_destroy(m->balloon);
    virtio_vsock_destroy(m->vsock);
    virtio_console_destroy(m->console);
}

static void destroy_machine(struct machine *m)
{
    block_close(m->block);
    if (m->block != NULL)
        unlink(m->disk);
    destroy_device(m);
    for (unsigned i = 0; i < 2; i++)
        chardev_destroy(m->chardevs[i]);
    loop_destroy(m->loop);
    space_destroy(m->space);
}

/* One for all runs. */
static uint8_t *guest_memory(void)
{
    static void *ram;
    struct err e;

    if (ram == NULL) {
        int fd = memfd_make("fuzz", RAM_SIZE, &e);
        require(fd >= 0 && memfd_map(fd, 0, RAM_SIZE, MEMFD_READ | MEMFD_WRITE, &ram, &e) == 0);
    }
    memset(ram, 0, RAM_SIZE);
    return ram;
}

/* ---- another device ---- */

/*
 * Bytes of the state are changed before it is put into the next device. If that is refused, what
 * was taken is put back, which is not.
 */
static void replace_device(struct machine *m, struct input *in)
{
    static struct virtio_state taken, forged, again;
    unsigned changes = take(in, 1) % 4;
    struct err e;

    require(virtio_quiesce(m->dev, UINT64_C(20) * 1000000000, &e) == 0);
    require(virtio_get_state(m->dev, &taken, &e) == 0);
    turn(m); /* what was posted is done with */
    destroy_device(m);
    make_device(m);
    require(virtio_quiesce(m->dev, 0, &e) == 0);
    forged = taken;
    for (unsigned i = 0; i < changes; i++) {
        unsigned at = take(in, 2) % sizeof(forged);
        ((uint8_t *)&forged)[at] = (uint8_t)take(in, 1);
    }
    if (changes == 0 || virtio_set_state(m->dev, &forged, &e) != 0) {
        require(virtio_set_state(m->dev, &taken, &e) == 0);
        require(virtio_get_state(m->dev, &again, &e) == 0);
        require(memcmp(&taken, &again, sizeof(taken)) == 0);
    }
    virtio_resume(m->dev);
}

/* ---- the driver ---- */

static void set_status(struct machine *m, uint8_t status)
{
    pthread_mutex_lock(&m->dev->lock);
    virtio_set_status(m->dev, status);
    pthread_mutex_unlock(&m->dev->lock);
}

static void start_driver(struct machine *m, uint64_t features)
{
    struct virtio_device *dev = m->dev;

    set_status(m, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
    features = (features & dev->offered) | VIRTIO_F_VERSION_1;
    pthread_mutex_lock(&dev->lock);
    virtio_set_driver_features(dev, 0, (uint32_t)features);
    virtio_set_driver_features(dev, 1, (uint32_t)(features >> 32));
    pthread_mutex_unlock(&dev->lock);
    set_status(m, dev->status | VIRTIO_STATUS_FEATURES_OK);
    for (unsigned i = 0; i < dev->queue_count; i++) {
        struct virtqueue *q = &dev->queues[i];
        pthread_mutex_lock(&dev->lock);
        q->size = 16;
        q->descriptors = i * QUEUE_BYTES;
        q->driver = i * QUEUE_BYTES + 0x400;
        q->device = i * QUEUE_BYTES + 0x800;
        virtio_enable_queue(dev, i);
        pthread_mutex_unlock(&dev->lock);
        require(q->is_enabled);
    }
    set_status(m, dev->status | VIRTIO_STATUS_DRIVER_OK);
}

static void on_sent(void *ctx, const struct netdev_header *header, uint8_t *frame, size_t len)
{
    /* all of it is ours to read */
    volatile uint8_t sum = 0;

    require(len <= NETDEV_FRAME_MAX);
    for (size_t i = 0; i < len; i += 64)
        sum ^= frame[i];
}

static void on_delivered(void *ctx, const struct netdev_header *header, uint8_t *frame, size_t len)
{
    struct machine *m = ctx;

    m->net.client->push(m->net.ctx, header, frame, len);
}

/* As the thread of a network would: one frame each way, with any header. */
static void move_frames(struct machine *m, struct input *in)
{
    static uint8_t frame[NETDEV_FRAME_MAX], segment[NETDEV_FRAME_MAX];
    struct netdev_header header;
    unsigned takes = take(in, 1);
    size_t len = m->net.client->pull(m->net.ctx, &header, frame);

    if (len != 0)
        netdev_finish(&header, frame, len, takes, segment, on_sent, m);
    len = MIN((size_t)take(in, 2), sizeof(frame));
    for (unsigned i = 0; i < sizeof(header); i++)
        ((uint8_t *)&header)[i] = (uint8_t)take(in, 1);
    memset(frame, 0x5a, len);
    memcpy(frame, in->at, MIN(len, in->left));
    netdev_finish(&header, frame, len, m->net.accepted, segment, on_delivered, m);
}

/* Each queue's rings of a driver that says what the input says, with addresses that exist. */
static void offer(struct machine *m, struct input *in)
{
    unsigned queue = take(in, 1) % m->dev->queue_count, count = take(in, 1) % 5;
    uint8_t *ring = m->ram + queue * QUEUE_BYTES;
    unsigned avail = load_le16(ring + 0x402);
    bool is_packed = m->dev->queues[queue].is_packed;

    for (unsigned i = 0; i <= count; i++) {
        unsigned at = (avail + i) % 16;
        uint32_t flags = take(in, 1);
        store_le64(ring + at * 16, take(in, 3) % RAM_SIZE);
        store_le32(ring + at * 16 + 8, take(in, 2));
        uint16_t bits = (uint16_t)((flags & 7) | (i < count ? 1 : 0));
        if (is_packed)
            bits |= flags & 8 ? 0x80 : 0x8000;
        store_le16(ring + at * 16 + (is_packed ? 14 : 12), bits);
        store_le16(ring + at * 16 + (is_packed ? 12 : 14), (uint16_t)((at + 1) % 16));
    }
    store_le16(ring + 0x404 + 2 * (avail % 16), (uint16_t)(avail % 16));
    store_le16(ring + 0x402, (uint16_t)(avail + 1));
}

static void step(struct machine *m, struct input *in)
{
    struct virtio_device *dev = m->dev;
    unsigned what = take(in, 1), at, n;

    switch (what % 8) {
    case 0: /* memory */
        at = take(in, 3) % RAM_SIZE;
        n = MIN((unsigned)take(in, 1), RAM_SIZE - at);
        n = (unsigned)MIN((size_t)n, in->left);
        memcpy(m->ram + at, in->at, n);
        in->at += n;
        in->left -= n;
        break;
    case 1:
    case 2:
        offer(m, in);
        break;
    case 3:
        pthread_mutex_lock(&dev->lock);
        virtio_config_write(dev, take(in, 1), take(in, 4), 1u << (what >> 6));
        pthread_mutex_unlock(&dev->lock);
        break;
    case 4:
        turn(m);
        break;
    case 5:
        if (m->virtio_net != NULL)
            move_frames(m, in);
        break;
    case 7:
        if (what & 8) {
            replace_device(m, in);
            break;
        }
        /* fall through */
    default:
        pthread_mutex_lock(&dev->lock);
        virtio_notify(dev, take(in, 1) % (dev->queue_count + 1));
        pthread_mutex_unlock(&dev->lock);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    struct machine m = {.kind = take(&in, 1) % DEVICES};
    uint64_t features = (uint64_t)take(&in, 4) << 32 | take(&in, 4);
    struct err e;

    m.ram = guest_memory();
    require(space_create("memory", BIT(40), &m.space, &e) == 0);
    require(space_add_ram(m.space, 0, m.ram, RAM_SIZE, false, &e) == 0);
    require(loop_create(&m.loop, &e) == 0);
    make_device(&m);
    start_driver(&m, features);
    for (unsigned i = 0; i < STEPS_MAX && in.left > 0; i++)
        step(&m, &in);
    set_status(&m, 0);
    turn(&m);
    if (m.block != NULL) /* requests under way come back first */
        while (virtio_get_status(m.dev) != 0)
            usleep(100);
    require(virtio_get_status(m.dev) == 0);
    memset(m.ram, 0, RAM_SIZE);
    start_driver(&m, features);
    turn(&m);
    require(!(m.dev->status & VIRTIO_STATUS_NEEDS_RESET));
    set_status(&m, 0);
    turn(&m);
    destroy_machine(&m);
    return 0;
}
