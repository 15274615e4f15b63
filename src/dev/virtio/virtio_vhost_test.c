/*
 * virtio_vhost_test.c - a device that another process serves: against a back end of the test's own,
 * which plays by the rules or does not, and goes away
 */
#include "dev/virtio/test_driver.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "backend/vhost/vhost_user.h"
#include "dev/virtio/virtio_state.h"
#include "dev/virtio/virtio_vhost.h"

#define FEATURES                                                                                   \
    (BIT(30) | VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | BIT(5) | BIT(12) |                    \
     BIT(0)) /* of a disk: RO, MQ; of a network interface: MAC, HOST_TSO6, CSUM */
#define RINGS 4u
#define FILL 0x5a
#define CAPACITY 12345u

/* ---- the back end: one connection at a time, one thread ---- */

enum mode {
    SERVE,
    HOLD,        /* take requests, and never give one back */
    BAD_ID,      /* use what is not out */
    BAD_INDEX,   /* use more than is out */
    USE_TWICE,   /* give one back twice */
    LEAVE_HOLES, /* serve every other request, and keep those before it */
    LEAVE,       /* end the connection at the first request */
    SHORT_REPLY, /* of the configuration */
    WRONG_REPLY, /* to what was not asked */
    REFUSE,      /* the memory */
    OLD,         /* without what is needed */
    FLOOD,       /* announce a message of 4 GiB */
};

struct mapped {
    uint64_t guest_addr, size, user_addr;
    uint8_t *base; /* of the region */
    void *map;
    size_t map_size;
};

struct ring {
    uint64_t descriptors, used, avail; /* as the front end names them */
    uint32_t size;
    int kick, call;
    uint16_t next;
    _Atomic bool is_on;
};

struct backend {
    char path[96];
    int listen_fd, fd;
    _Atomic enum mode mode;
    _Atomic bool is_stopping;
    _Atomic unsigned connections, taken, served;
    _Atomic uint64_t more_features, features; /* offered besides FEATURES; acknowledged */
    _Atomic unsigned mtu;
    pthread_t thread;
    struct mapped mapped[8];
    unsigned mapped_count;
    struct ring rings[RINGS];
    int message_fd;
};

struct wire {
    uint32_t request, flags, size;
    uint8_t payload[512];
} __attribute__((packed));

static uint8_t *by_guest(const struct backend *b, uint64_t addr)
{
    for (unsigned i = 0; i < b->mapped_count; i++)
        if (addr - b->mapped[i].guest_addr < b->mapped[i].size)
            return b->mapped[i].base + (addr - b->mapped[i].guest_addr);
    return NULL;
}

static uint8_t *by_user(const struct backend *b, uint64_t addr)
{
    for (unsigned i = 0; i < b->mapped_count; i++)
        if (addr - b->mapped[i].user_addr < b->mapped[i].size)
            return b->mapped[i].base + (addr - b->mapped[i].user_addr);
    return NULL;
}

static void put_used(struct backend *b, struct ring *r, unsigned id, uint32_t len)
{
    uint8_t *used = by_user(b, r->used);
    uint16_t index = load_le16(used + USED_INDEX);
    uint8_t *entry = used + USED_RING + index % r->size * USED_SIZE;

    store_le32(entry, id);
    store_le32(entry + 4, len);
    ring_store16(used + USED_INDEX, (uint16_t)(index + 1));
}

/* Fill what may be written of the chain; claims 7 bytes, whatever was. */
static void serve_chain(struct backend *b, struct ring *r, unsigned head)
{
    const uint8_t *d = by_user(b, r->descriptors) + head * DESCRIPTOR_SIZE;
    const uint8_t *table = by_guest(b, load_le64(d));
    unsigned count = load_le32(d + 8) / DESCRIPTOR_SIZE;

    for (unsigned i = 0; i < count; i++) {
        const uint8_t *piece = table + i * DESCRIPTOR_SIZE;
        if (load_le16(piece + 12) & DESC_WRITE)
            memset(by_guest(b, load_le64(piece)), FILL, load_le32(piece + 8));
    }
    atomic_fetch_add(&b->served, 1);
    put_used(b, r, head, 7);
}

static bool serve_ring(struct backend *b, struct ring *r)
{
    const uint8_t *avail = by_user(b, r->avail);
    uint64_t one = 1;

    while (r->next != ring_load16(avail + AVAIL_INDEX)) {
        unsigned head = load_le16(avail + AVAIL_RING + 2 * (r->next++ % r->size));
        atomic_fetch_add(&b->taken, 1);
        switch (atomic_load(&b->mode)) {
        case HOLD:
            continue;
        case LEAVE_HOLES:
            if (r->next % 2 == 0)
                serve_chain(b, r, head);
            break;
        case BAD_ID:
            put_used(b, r, 9999, 0);
            break;
        case BAD_INDEX:
            ring_store16(by_user(b, r->used) + USED_INDEX, 0x8000);
            break;
        case LEAVE:
            return false;
        case USE_TWICE:
            put_used(b, r, head, 0);
            put_used(b, r, head, 0);
            break;
        default:
            serve_chain(b, r, head);
            break;
        }
    }
    return write(r->call, &one, sizeof(one)) == sizeof(one);
}

static void map_regions(struct backend *b, const uint8_t *payload, const int *fds)
{
    b->mapped_count = load_le32(payload);
    for (unsigned i = 0; i < b->mapped_count; i++) {
        const uint8_t *r = payload + 8 + i * 32;
        struct mapped *m = &b->mapped[i];
        uint64_t offset = load_le64(r + 24);
        *m = (struct mapped){load_le64(r), load_le64(r + 8), load_le64(r + 16), NULL, NULL, 0};
        m->map_size = m->size + offset;
        m->map = mmap(NULL, m->map_size, PROT_READ | PROT_WRITE, MAP_SHARED, fds[i], 0);
        m->base = (uint8_t *)m->map + offset;
        close(fds[i]);
    }
}

static void reply(struct backend *b, struct wire *w, uint32_t size)
{
    w->flags = 5;
    w->size = size;
    if (atomic_load(&b->mode) == WRONG_REPLY)
        w->request++;
    if (atomic_load(&b->mode) == FLOOD)
        w->size = UINT32_MAX;
    if (send(b->fd, w, 12 + size, MSG_NOSIGNAL) < 0)
        return;
}

/* What a request asks for. False: it is only to be acknowledged. */
static bool answer(struct backend *b, struct wire *w, const int *fds)
{
    uint32_t index = load_le32(w->payload), value = load_le32(w->payload + 4);
    struct ring *r = &b->rings[index % RINGS];

    switch (w->request) {
    case 1: /* features */
        store_le64(w->payload, atomic_load(&b->mode) == OLD
                                   ? BIT(30)
                                   : FEATURES | atomic_load(&b->more_features));
        reply(b, w, 8);
        return true;
    case 2:
        atomic_store(&b->features, load_le64(w->payload));
        return false;
    case 20:
        atomic_store(&b->mtu, (unsigned)load_le64(w->payload));
        return false;
    case 15: /* protocol features: MQ, REPLY_ACK, NET_MTU, BACKEND_REQ, CONFIG */
        store_le64(w->payload, BIT(0) | BIT(3) | BIT(4) | BIT(5) | BIT(9) | BIT(40));
        reply(b, w, 8);
        return true;
    case 17:
        store_le64(w->payload, RINGS);
        reply(b, w, 8);
        return true;
    case 24: /* configuration: capacity, queues */
        memset(w->payload + 12, 0, 60);
        store_le64(w->payload + 12, CAPACITY + atomic_load(&b->served));
        store_le16(w->payload + 12 + 34, 3);
        reply(b, w, atomic_load(&b->mode) == SHORT_REPLY ? 12 : w->size);
        return true;
    case 11: /* stop a ring */
        r->is_on = false;
        store_le32(w->payload + 4, r->next);
        reply(b, w, 8);
        return true;
    case 5:
        map_regions(b, w->payload, fds);
        return false;
    case 8:
        r->size = value;
        return false;
    case 9:
        r->descriptors = load_le64(w->payload + 8);
        r->used = load_le64(w->payload + 16);
        r->avail = load_le64(w->payload + 24);
        return false;
    case 10:
        r->next = (uint16_t)value;
        return false;
    case 12:
        r->kick = fds[0];
        return false;
    case 13:
        r->call = fds[0];
        return false;
    case 18:
        r->is_on = value != 0;
        return false;
    case 21:
        b->message_fd = fds[0];
        return false;
    default:
        return false;
    }
}

static bool take_request(struct backend *b)
{
    struct wire w = {0};
    uint8_t control[CMSG_SPACE(8 * sizeof(int))] __attribute__((aligned(8)));
    struct iovec iov = {&w, 12};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control,
                       .msg_controllen = sizeof(control)};
    int fds[8] = {-1};

    if (recvmsg(b->fd, &m, MSG_WAITALL) != 12)
        return false;
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    if (c != NULL)
        memcpy(fds, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0));
    if (w.size > sizeof(w.payload) ||
        (w.size != 0 && recv(b->fd, w.payload, w.size, MSG_WAITALL) != (ssize_t)w.size))
        return false;
    bool is_asked = w.flags & 8, is_refused = atomic_load(&b->mode) == REFUSE && w.request == 5;
    if (!answer(b, &w, fds) && is_asked) {
        store_le64(w.payload, is_refused);
        reply(b, &w, 8);
    }
    return true;
}

static void serve_connection(struct backend *b)
{
    bool is_good = true;

    while (is_good && !atomic_load(&b->is_stopping)) {
        struct pollfd fds[2 + RINGS] = {{.fd = b->fd, .events = POLLIN},
                                        {.fd = b->listen_fd, .events = 0}};
        for (unsigned i = 0; i < RINGS; i++)
            fds[2 + i] =
                (struct pollfd){.fd = b->rings[i].is_on ? b->rings[i].kick : -1, .events = POLLIN};
        poll(fds, 2 + RINGS, -1);
        for (unsigned i = 0; i < RINGS && is_good; i++) {
            uint64_t count;
            if (fds[2 + i].revents && read(b->rings[i].kick, &count, sizeof(count)) > 0)
                is_good = serve_ring(b, &b->rings[i]);
        }
        if (is_good && fds[0].revents)
            is_good = take_request(b);
        if (fds[1].revents) /* shut down */
            is_good = false;
    }
    close(b->fd);
    for (unsigned i = 0; i < b->mapped_count; i++)
        munmap(b->mapped[i].map, b->mapped[i].map_size);
    b->mapped_count = 0;
    for (unsigned i = 0; i < RINGS; i++) {
        if (b->rings[i].size != 0 && b->rings[i].kick > 0) {
            close(b->rings[i].kick);
            close(b->rings[i].call);
        }
        b->rings[i] = (struct ring){0};
    }
    if (b->message_fd > 0)
        close(b->message_fd);
    b->message_fd = 0;
}

static void *run_backend(void *ctx)
{
    struct backend *b = ctx;

    while (!atomic_load(&b->is_stopping)) {
        b->fd = accept(b->listen_fd, NULL, NULL);
        if (b->fd < 0)
            break;
        atomic_fetch_add(&b->connections, 1);
        serve_connection(b);
    }
    return NULL;
}

static void start_backend(struct backend *b, const char *path, enum mode mode)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    *b = (struct backend){.mode = mode};
    snprintf(b->path, sizeof(b->path), "%s", path);
    strcpy(addr.sun_path, path);
    b->listen_fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(b->listen_fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    assert_int_equal(listen(b->listen_fd, 4), 0);
    assert_int_equal(pthread_create(&b->thread, NULL, run_backend, b), 0);
}

static void stop_backend(struct backend *b)
{
    atomic_store(&b->is_stopping, true);
    shutdown(b->listen_fd, SHUT_RDWR);
    pthread_join(b->thread, NULL);
    close(b->listen_fd);
    unlink(b->path);
}

/* ---- the device ---- */

struct fixture {
    struct test_driver t;
    struct backend backend;
    char folder[64], path[96];
    struct vhost_user_region region;
    struct virtio_vhost *vhost;
};

static int make_kind(struct fixture *f, enum virtio_vhost_kind kind, struct err *e)
{
    bool has_mtu = atomic_load(&f->backend.more_features) != 0;
    struct virtio_vhost_config config = {.kind = kind,
                                         .path = f->path,
                                         .tag = "tag",
                                         .mac = {2, 3, 4, 5, 6, 7},
                                         .memory = f->t.space,
                                         .regions = &f->region,
                                         .region_count = 1,
                                         .queues_wanted = 2,
                                         .mtu = has_mtu ? 1400 : 0};

    return virtio_vhost_create(&config, &f->vhost, e);
}

static int make_device(struct fixture *f, struct err *e)
{
    return make_kind(f, VIRTIO_VHOST_DISK, e);
}

static struct fixture *setup_backend(enum mode mode)
{
    struct fixture *f = calloc(1, sizeof(*f));

    test_driver_init(&f->t);
    strcpy(f->folder, "/tmp/doppel-vhost-XXXXXX");
    assert_non_null(mkdtemp(f->folder));
    snprintf(f->path, sizeof(f->path), "%s/socket", f->folder);
    start_backend(&f->backend, f->path, mode);
    f->region =
        (struct vhost_user_region){.size = TEST_RAM_SIZE, .host = f->t.ram, .fd = f->t.ram_fd};
    return f;
}

static struct fixture *setup(enum mode mode)
{
    struct fixture *f = setup_backend(mode);
    struct err e;

    assert_int_equal(make_device(f, &e), 0);
    test_driver_attach(&f->t, virtio_vhost_device(f->vhost));
    return f;
}

static void teardown(struct fixture *f)
{
    if (f->vhost != NULL) {
        pthread_mutex_unlock(&f->t.dev->lock);
        virtio_vhost_close(f->vhost);
        virtio_vhost_destroy(f->vhost);
    }
    stop_backend(&f->backend);
    rmdir(f->folder);
    test_driver_fini(&f->t);
    free(f);
}

static void wait_needs_reset(struct fixture *f)
{
    while (!(f->t.dev->status & VIRTIO_STATUS_NEEDS_RESET))
        pthread_cond_wait(&f->t.signalled, &f->t.dev->lock);
}

/* ---- tests ---- */

static void requests_are_served(void **state)
{
    struct fixture *f = setup(SERVE);
    struct virtio_device *dev = f->t.dev;

    assert_int_equal(dev->id, VIRTIO_ID_BLOCK);
    assert_int_equal(dev->queue_count, 2); /* of the back end's three */
    assert_int_equal(load_le64(dev->config), CAPACITY);
    assert_int_equal(load_le16(dev->config + 34), 2);
    assert_true(dev->offered & BIT(5));
    for (unsigned n = 0; n < 1000; n++) {
        unsigned queue = n % 2;
        memset(f->t.ram + TEST_DATA, 0, 64);
        uint64_t before = f->t.noted;
        test_driver_offer(&f->t, queue, TEST_DATA + 4096, 16, TEST_DATA, 33);
        if (n & 2) {
            test_driver_ring_bell(&f->t, queue);
            test_driver_await(&f->t, queue);
        } else {
            test_driver_wait(&f->t, queue);
        }
        assert_int_equal(test_driver_used_length(&f->t, queue), 7);
        for (unsigned i = 0; i < 64; i++)
            assert_int_equal(f->t.ram[TEST_DATA + i], i < 33 ? FILL : 0);
        /* code may lie in all of it, whatever the back end says it has written */
        assert_true(f->t.noted - before >= 33);
        /* and that was known before the driver could know that it is done */
        if (queue == 0)
            assert_int_equal(f->t.noted_at_used, (uint16_t)(f->t.avail[0] - 1));
    }
    teardown(f);
}

/* Bells that nobody expects: of a device that is not started, of queues with nothing in them. */
static void bells_do_no_harm(void **state)
{
    struct fixture *f = setup(SERVE);

    for (unsigned round = 0; round < 20; round++) {
        for (unsigned queue = 0; queue < 2; queue++)
            test_driver_ring_bell(&f->t, queue);
        test_driver_offer(&f->t, 0, 0, 0, TEST_DATA, 512);
        test_driver_ring_bell(&f->t, 0);
        test_driver_await(&f->t, 0);
        test_driver_ring_bell(&f->t, 1);
        test_driver_reset(&f->t);
        test_driver_ring_bell(&f->t, 0);
        test_driver_start(&f->t);
    }
    assert_int_equal(atomic_load(&f->backend.served), 20);
    /* those of the last start may not have been looked at yet */
    assert_in_range(virtio_vhost_rung(f->vhost), 40, 100);
    teardown(f);
}

/* A full queue each time. */
static void many_at_once(void **state)
{
    struct fixture *f = setup(SERVE);

    for (unsigned round = 0; round < 50; round++) {
        for (unsigned i = 0; i < 64; i++)
            test_driver_offer(&f->t, 0, 0, 0, TEST_DATA + i * 512, 512);
        test_driver_wait(&f->t, 0);
    }
    assert_int_equal(atomic_load(&f->backend.served), 50 * 64);
    teardown(f);
}

static void reset_takes_all_back(void **state)
{
    struct fixture *f = setup(SERVE);

    for (unsigned round = 0; round < 30; round++) {
        atomic_store(&f->backend.mode, HOLD);
        for (unsigned i = 0; i < 20; i++)
            test_driver_offer(&f->t, 0, 0, 0, TEST_DATA + i * 512, 512);
        virtio_notify(f->t.dev, 0);
        test_driver_reset(&f->t);
        atomic_store(&f->backend.mode, SERVE);
        test_driver_start(&f->t);
        test_driver_offer(&f->t, 0, 0, 0, TEST_DATA, 100);
        test_driver_wait(&f->t, 0);
    }
    assert_int_equal(atomic_load(&f->backend.connections), 1);
    teardown(f);
}

/* It dies with requests under way; a reset by the driver finds the next one. */
static void backend_goes_and_comes(void **state)
{
    struct fixture *f = setup(HOLD);

    test_driver_offer(&f->t, 0, 0, 0, TEST_DATA, 4096);
    virtio_notify(f->t.dev, 0);
    pthread_mutex_unlock(&f->t.dev->lock);
    while (atomic_load(&f->backend.taken) == 0)
        sched_yield();
    stop_backend(&f->backend);
    pthread_mutex_lock(&f->t.dev->lock);
    wait_needs_reset(f);
    assert_int_equal(f->t.config_signals, 1);
    assert_true(f->t.noted >= 4096); /* it may have written some of it */
    /* there is none yet */
    test_driver_reset(&f->t);
    test_driver_start(&f->t);
    wait_needs_reset(f);
    start_backend(&f->backend, f->path, SERVE);
    test_driver_reset(&f->t);
    test_driver_start(&f->t);
    test_driver_offer(&f->t, 0, 0, 0, TEST_DATA, 100);
    test_driver_wait(&f->t, 0);
    assert_int_equal(f->t.ram[TEST_DATA], FILL);
    /* the next promises less than the guest was told */
    pthread_mutex_unlock(&f->t.dev->lock);
    stop_backend(&f->backend);
    start_backend(&f->backend, f->path, OLD);
    pthread_mutex_lock(&f->t.dev->lock);
    wait_needs_reset(f);
    test_driver_reset(&f->t);
    test_driver_start(&f->t);
    wait_needs_reset(f);
    teardown(f);
}

static void backends_that_break_the_ring(void **state)
{
    static const enum mode modes[] = {BAD_ID, BAD_INDEX, USE_TWICE, LEAVE};

    for (unsigned i = 0; i < ARRAY_SIZE(modes); i++) {
        struct fixture *f = setup(modes[i]);
        test_driver_offer(&f->t, 0, 0, 0, TEST_DATA, 100);
        virtio_notify(f->t.dev, 0);
        wait_needs_reset(f);
        atomic_store(&f->backend.mode, SERVE);
        test_driver_reset(&f->t);
        test_driver_start(&f->t);
        test_driver_offer(&f->t, 0, 0, 0, TEST_DATA, 100);
        test_driver_wait(&f->t, 0);
        assert_int_equal(atomic_load(&f->backend.connections), 2);
        teardown(f);
    }
}

static void backends_that_break_the_protocol(void **state)
{
    static const enum mode modes[] = {SHORT_REPLY, WRONG_REPLY, OLD, FLOOD};
    struct err e = {0};

    for (unsigned i = 0; i < ARRAY_SIZE(modes); i++) {
        struct fixture *f = setup_backend(modes[i]);
        assert_true(make_device(f, &e) < 0);
        assert_non_null(strstr(e.msg, f->path));
        teardown(f);
    }
    struct fixture *f = setup(REFUSE); /* found out when it is started */
    wait_needs_reset(f);
    teardown(f);
    f = setup_backend(SERVE);
    snprintf(f->path, sizeof(f->path), "%s/nowhere", f->folder);
    assert_int_equal(make_device(f, &e), -ENOENT);
    teardown(f);
}

/* The driver breaks its own queue: the back end sees nothing of it. */
static void drivers_that_break_the_ring(void **state)
{
    struct fixture *f = setup(SERVE);

    test_driver_offer(&f->t, 0, 0, 0, TEST_RAM_SIZE, 100);
    virtio_notify(f->t.dev, 0);
    wait_needs_reset(f);
    assert_int_equal(atomic_load(&f->backend.served), 0);
    test_driver_reset(&f->t);
    test_driver_start(&f->t);
    test_driver_offer(&f->t, 0, 0, 0, TEST_DATA, 100);
    test_driver_wait(&f->t, 0);
    assert_int_equal(atomic_load(&f->backend.connections), 1);
    teardown(f);
}

static void configuration_changes(void **state)
{
    struct fixture *f = setup(SERVE);
    struct {
        uint32_t request, flags, size;
    } changed = {2, 1 | 8, 0};
    uint8_t answered[20];

    test_driver_offer(&f->t, 0, 0, 0, TEST_DATA, 100);
    test_driver_wait(&f->t, 0); /* the back end's capacity grows with it */
    assert_int_equal(send(f->backend.message_fd, &changed, sizeof(changed), 0), sizeof(changed));
    while (f->t.config_signals == 0)
        pthread_cond_wait(&f->t.signalled, &f->t.dev->lock);
    assert_int_equal(load_le64(f->t.dev->config), CAPACITY + 1);
    assert_int_equal(load_le16(f->t.dev->config + 34), 2);
    assert_int_equal(recv(f->backend.message_fd, answered, sizeof(answered), MSG_WAITALL), 20);
    assert_int_equal(load_le64(answered + 12), 0);
    teardown(f);
}

static void networks_and_folders(void **state)
{
    struct fixture *f = setup_backend(SERVE);
    struct err e;

    assert_int_equal(make_kind(f, VIRTIO_VHOST_NET, &e), 0);
    test_driver_attach(&f->t, virtio_vhost_device(f->vhost));
    assert_int_equal(f->t.dev->id, VIRTIO_ID_NET);
    assert_int_equal(f->t.dev->queue_count, 2);
    assert_int_equal(f->t.dev->offered & 0xffffff, BIT(0) | BIT(5) | BIT(12));
    assert_int_equal(atomic_load(&f->backend.mtu), 0);
    assert_memory_equal(f->t.dev->config, "\2\3\4\5\6\7", 6);
    test_driver_offer(&f->t, 0, 0, 0, TEST_DATA, 1526);
    test_driver_wait(&f->t, 0);
    assert_int_equal(f->t.ram[TEST_DATA + 1525], FILL);
    teardown(f);

    f = setup_backend(SERVE);
    assert_int_equal(make_kind(f, VIRTIO_VHOST_SHARE, &e), 0);
    test_driver_attach(&f->t, virtio_vhost_device(f->vhost));
    assert_int_equal(f->t.dev->id, VIRTIO_ID_FS);
    assert_int_equal(f->t.dev->offered & 0xffffff, 0);
    assert_string_equal((char *)f->t.dev->config, "tag");
    assert_int_equal(load_le32(f->t.dev->config + 36), 1);
    for (unsigned queue = 0; queue < 2; queue++) {
        test_driver_offer(&f->t, queue, TEST_DATA, 40, TEST_DATA + 4096, 256);
        test_driver_wait(&f->t, queue);
    }
    teardown(f);
}

#define NET_MTU BIT(3)
#define NET_CTRL_VQ BIT(17)
#define NET_MQ BIT(22)

/* A command on the control queue; returns the device's answer. */
static uint8_t control(struct fixture *f, unsigned queue, const char *bytes, unsigned size)
{
    memcpy(f->t.ram + TEST_DATA, bytes, size);
    f->t.ram[TEST_DATA + 512] = 0xee;
    test_driver_offer(&f->t, queue, TEST_DATA, size, TEST_DATA + 512, 1);
    test_driver_wait(&f->t, queue);
    assert_int_equal(test_driver_used_length(&f->t, queue), 1);
    return f->t.ram[TEST_DATA + 512];
}

static unsigned rings_on(const struct fixture *f)
{
    unsigned bits = 0;

    for (unsigned i = 0; i < RINGS; i++)
        bits |= (unsigned)atomic_load(&f->backend.rings[i].is_on) << i;
    return bits;
}

static struct fixture *setup_network(enum mode mode)
{
    struct fixture *f = setup_backend(mode);
    struct err e;

    atomic_store(&f->backend.more_features, NET_MQ | NET_MTU);
    assert_int_equal(make_kind(f, VIRTIO_VHOST_NET, &e), 0);
    f->t.features = NET_MTU | NET_CTRL_VQ | NET_MQ;
    f->t.queues = 5;
    test_driver_attach(&f->t, virtio_vhost_device(f->vhost));
    return f;
}

/* The back end uses the pairs that the driver says, and knows the MTU. */
static void networks_with_several_queues(void **state)
{
    struct fixture *f = setup_network(SERVE);

    assert_int_equal(f->t.dev->queue_count, 5);
    assert_int_equal(load_le16(f->t.dev->config + 8), 2);
    assert_int_equal(load_le16(f->t.dev->config + 10), 1400);
    assert_int_equal(f->t.dev->offered & 0xffffff,
                     BIT(0) | BIT(5) | BIT(12) | NET_MTU | NET_CTRL_VQ | NET_MQ);
    test_driver_offer(&f->t, 0, 0, 0, TEST_DATA, 64);
    test_driver_wait(&f->t, 0);
    assert_int_equal(atomic_load(&f->backend.mtu), 1400);
    assert_int_equal(atomic_load(&f->backend.features) & (NET_MQ | NET_MTU | NET_CTRL_VQ),
                     NET_MQ | NET_MTU);
    assert_int_equal(rings_on(f), 3);
    assert_int_equal(control(f, 4, "\4\0\2\0", 4), 0);
    assert_int_equal(rings_on(f), 15);
    test_driver_offer(&f->t, 2, 0, 0, TEST_DATA, 64);
    test_driver_wait(&f->t, 2);
    assert_int_equal(f->t.ram[TEST_DATA + 63], FILL);
    assert_int_equal(control(f, 4, "\4\0\1\0", 4), 0);
    assert_int_equal(rings_on(f), 3);
    /* none, too many, cut short, another class, another command */
    assert_int_equal(control(f, 4, "\4\0\0\0", 4), 1);
    assert_int_equal(control(f, 4, "\4\0\3\0", 4), 1);
    assert_int_equal(control(f, 4, "\4\0\2", 3), 1);
    assert_int_equal(control(f, 4, "\1\0\2\0", 4), 1);
    assert_int_equal(control(f, 4, "\4\1\2\0", 4), 1);
    assert_int_equal(rings_on(f), 3);
    assert_int_equal(control(f, 4, "\4\0\2\0", 4), 0);

    /* a driver that knows of one pair finds the control queue behind it */
    test_driver_reset(&f->t);
    f->t.features = NET_CTRL_VQ;
    f->t.queues = 3;
    test_driver_start(&f->t);
    assert_int_equal(control(f, 2, "\4\0\1\0", 4), 1);
    test_driver_offer(&f->t, 0, 0, 0, TEST_DATA, 64);
    test_driver_wait(&f->t, 0);
    assert_int_equal(rings_on(f), 3);
    assert_int_equal(atomic_load(&f->backend.features) & (NET_MQ | NET_MTU), 0);
    teardown(f);
}

/* ---- state ---- */

#define MINUTE_NS (UINT64_C(60) * 1000000000)

static int take_state(struct fixture *f, struct virtio_state *s, struct err *e)
{
    pthread_mutex_unlock(&f->t.dev->lock);
    int rc = virtio_quiesce(f->t.dev, MINUTE_NS, e);
    if (rc == 0)
        rc = virtio_get_state(f->t.dev, s, e);
    pthread_mutex_lock(&f->t.dev->lock);
    return rc;
}

/* Another device, and with it another connection to the back end. It does not go on yet. */
static void replace(struct fixture *f, enum virtio_vhost_kind kind)
{
    const struct virtio_transport_ops *ops = f->t.dev->transport_ops;
    struct err e;

    pthread_mutex_unlock(&f->t.dev->lock);
    virtio_vhost_close(f->vhost);
    virtio_vhost_destroy(f->vhost);
    if (make_kind(f, kind, &e) != 0)
        fail_msg("%s", e.msg);
    f->t.dev = virtio_vhost_device(f->vhost);
    f->t.dev->transport_ops = ops;
    f->t.dev->transport = &f->t;
    assert_int_equal(virtio_quiesce(f->t.dev, 0, &e), 0);
    pthread_mutex_lock(&f->t.dev->lock);
}

static void put_state(struct fixture *f, const struct virtio_state *s)
{
    struct err e;

    pthread_mutex_unlock(&f->t.dev->lock);
    if (virtio_set_state(f->t.dev, s, &e) != 0)
        fail_msg("%s", e.msg);
    virtio_resume(f->t.dev);
    pthread_mutex_lock(&f->t.dev->lock);
}

static void refuses(struct fixture *f, const struct virtio_state *s, const char *says)
{
    struct err e = {0};

    pthread_mutex_unlock(&f->t.dev->lock);
    assert_int_not_equal(virtio_set_state(f->t.dev, s, &e), 0);
    pthread_mutex_lock(&f->t.dev->lock);
    if (strstr(e.msg, says) == NULL)
        fail_msg("'%s' should say '%s'", e.msg, says);
}

/* Requests under way come back first; with the next connection it goes on. */
static void another_disk_goes_on(void **state)
{
    struct fixture *f = setup(SERVE);
    struct virtio_state s, bad;
    struct err e;

    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < 20; i++)
            test_driver_offer(&f->t, 0, 0, 0, TEST_DATA + i * 512, 512);
        virtio_notify(f->t.dev, 0);
        assert_int_equal(take_state(f, &s, &e), 0);
        assert_true(s.queues[0].next <= f->t.avail[0]); /* some may not have been taken */
        assert_int_equal(load_le16(f->t.ram + TEST_DEVICE(0) + USED_INDEX), s.queues[0].next);
        replace(f, VIRTIO_VHOST_DISK);
        bad = s;
        bad.vhost.kind = VIRTIO_VHOST_NET;
        refuses(f, &bad, "vhost.kind");
        bad = s;
        bad.vhost.active_pairs = 2;
        refuses(f, &bad, "vhost.active_pairs");
        bad = s;
        store_le64(bad.config, UINT64_MAX);
        refuses(f, &bad, "capacity");
        bad = s;
        bad.config[34]++;
        refuses(f, &bad, "config[34]");
        put_state(f, &s);
        test_driver_await(&f->t, 0);
        test_driver_offer(&f->t, 1, 0, 0, TEST_DATA, 100);
        test_driver_wait(&f->t, 1);
    }
    assert_int_equal(atomic_load(&f->backend.served), 63);
    assert_int_equal(atomic_load(&f->backend.connections), 4);
    /* at rest, and on with the same connection */
    assert_int_equal(take_state(f, &s, &e), 0);
    test_driver_offer(&f->t, 0, 0, 0, TEST_DATA, 100);
    pthread_mutex_unlock(&f->t.dev->lock);
    virtio_resume(f->t.dev);
    pthread_mutex_lock(&f->t.dev->lock);
    test_driver_await(&f->t, 0);
    assert_int_equal(atomic_load(&f->backend.connections), 4);
    test_driver_reset(&f->t);
    assert_int_equal(take_state(f, &s, &e), 0);
    assert_int_equal(s.status, 0);
    teardown(f);
}

/* A back end that does not give back is waited for as long as is said, and then left alone. */
static void a_disk_that_does_not_come_to_rest(void **state)
{
    struct fixture *f = setup(HOLD);
    struct err e;

    test_driver_offer(&f->t, 0, 0, 0, TEST_DATA, 4096);
    virtio_notify(f->t.dev, 0);
    pthread_mutex_unlock(&f->t.dev->lock);
    while (atomic_load(&f->backend.taken) == 0)
        sched_yield();
    assert_int_equal(virtio_quiesce(f->t.dev, 1000000, &e), -ETIMEDOUT);
    assert_non_null(strstr(e.msg, f->path));
    atomic_store(&f->backend.mode, SERVE);
    pthread_mutex_lock(&f->t.dev->lock);
    test_driver_offer(&f->t, 1, 0, 0, TEST_DATA, 100);
    test_driver_wait(&f->t, 1);
    teardown(f);
}

static struct fixture *setup_two_pairs(enum mode mode)
{
    struct fixture *f = setup_network(mode);

    assert_int_equal(control(f, 4, "\4\0\2\0", 4), 0);
    return f;
}

/* Buffers that wait for frames go back into their queues, and from there to the next back end. */
static void another_network_goes_on(void **state)
{
    struct fixture *f = setup_two_pairs(HOLD);
    struct virtio_state s, bad;
    struct err e;

    for (unsigned i = 0; i < 10; i++)
        test_driver_offer(&f->t, 0, 0, 0, TEST_DATA + i * 512, 512);
    for (unsigned i = 10; i < 13; i++)
        test_driver_offer(&f->t, 2, 0, 0, TEST_DATA + i * 512, 512);
    virtio_notify(f->t.dev, 0);
    virtio_notify(f->t.dev, 2);
    pthread_mutex_unlock(&f->t.dev->lock);
    while (atomic_load(&f->backend.taken) != 13)
        sched_yield();
    pthread_mutex_lock(&f->t.dev->lock);
    assert_int_equal(take_state(f, &s, &e), 0);
    assert_int_equal(s.queues[0].next, 0);
    assert_int_equal(s.queues[2].next, 0);
    assert_int_equal(s.queues[4].next, 1);
    assert_int_equal(s.vhost.active_pairs, 2);
    atomic_store(&f->backend.mode, SERVE);
    replace(f, VIRTIO_VHOST_NET);
    bad = s;
    bad.vhost.active_pairs = 3;
    refuses(f, &bad, "vhost.active_pairs");
    bad = s;
    bad.features &= ~(uint64_t)NET_MQ;
    refuses(f, &bad, "vhost.active_pairs");
    put_state(f, &s);
    test_driver_await(&f->t, 0);
    test_driver_await(&f->t, 2);
    assert_int_equal(atomic_load(&f->backend.served), 13);
    assert_int_equal(rings_on(f), 15);
    assert_int_equal(control(f, 4, "\4\0\1\0", 4), 0);
    assert_int_equal(rings_on(f), 3);
    test_driver_reset(&f->t);
    test_driver_start(&f->t);
    test_driver_offer(&f->t, 0, 0, 0, TEST_DATA, 64);
    test_driver_wait(&f->t, 0);
    assert_int_equal(rings_on(f), 3);
    teardown(f);
}

/* What cannot be put back as it was is not passed over: the device needs a reset. */
static void a_back_end_that_keeps_some(void **state)
{
    struct fixture *f = setup_two_pairs(LEAVE_HOLES);
    struct virtio_state s;
    struct err e;

    for (unsigned i = 0; i < 4; i++)
        test_driver_offer(&f->t, 0, 0, 0, TEST_DATA + i * 512, 512);
    virtio_notify(f->t.dev, 0);
    pthread_mutex_unlock(&f->t.dev->lock);
    while (atomic_load(&f->backend.served) != 2)
        sched_yield();
    pthread_mutex_lock(&f->t.dev->lock);
    assert_int_equal(take_state(f, &s, &e), 0);
    assert_true(s.status & VIRTIO_STATUS_NEEDS_RESET);
    atomic_store(&f->backend.mode, SERVE);
    replace(f, VIRTIO_VHOST_NET);
    put_state(f, &s);
    assert_true(f->t.dev->status & VIRTIO_STATUS_NEEDS_RESET);
    test_driver_reset(&f->t);
    test_driver_start(&f->t);
    test_driver_offer(&f->t, 0, 0, 0, TEST_DATA, 64);
    test_driver_wait(&f->t, 0);
    teardown(f);
}

/* What a guest has opened there only the other process knows. */
static void a_folder_in_use_stays(void **state)
{
    struct fixture *f = setup_backend(SERVE);
    struct virtio_state s;
    struct err e;

    assert_int_equal(make_kind(f, VIRTIO_VHOST_SHARE, &e), 0);
    test_driver_attach(&f->t, virtio_vhost_device(f->vhost));
    assert_int_equal(take_state(f, &s, &e), -ENOTSUP);
    assert_non_null(strstr(e.msg, f->path));
    pthread_mutex_unlock(&f->t.dev->lock);
    virtio_resume(f->t.dev);
    pthread_mutex_lock(&f->t.dev->lock);
    test_driver_offer(&f->t, 1, 0, 0, TEST_DATA, 64);
    test_driver_wait(&f->t, 1);
    test_driver_reset(&f->t);
    assert_int_equal(take_state(f, &s, &e), 0);
    replace(f, VIRTIO_VHOST_SHARE);
    put_state(f, &s);
    test_driver_start(&f->t);
    test_driver_offer(&f->t, 1, 0, 0, TEST_DATA, 64);
    test_driver_wait(&f->t, 1);
    teardown(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_are_served),
        cmocka_unit_test(bells_do_no_harm),
        cmocka_unit_test(many_at_once),
        cmocka_unit_test(reset_takes_all_back),
        cmocka_unit_test(backend_goes_and_comes),
        cmocka_unit_test(backends_that_break_the_ring),
        cmocka_unit_test(backends_that_break_the_protocol),
        cmocka_unit_test(drivers_that_break_the_ring),
        cmocka_unit_test(configuration_changes),
        cmocka_unit_test(networks_and_folders),
        cmocka_unit_test(networks_with_several_queues),
        cmocka_unit_test(another_disk_goes_on),
        cmocka_unit_test(a_disk_that_does_not_come_to_rest),
        cmocka_unit_test(another_network_goes_on),
        cmocka_unit_test(a_back_end_that_keeps_some),
        cmocka_unit_test(a_folder_in_use_stays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
