/*
 * virtio_blk_test.c - a disk's state: taken at awkward moments, put into another device, refused
 *
 * The host's disk is the test's own: it completes requests in the order in which they came, when
 * the test wants it. One script of requests runs undisturbed; then again and again, each time with
 * the device replaced at another of its steps. Memory and disk have to come out the same.
 */
#include "dev/virtio/testing.h"

#include <errno.h>
#include <sched.h>

#include "backend/block/block.h"
#include "dev/virtio/virtio_blk.h"
#include "dev/virtio/virtio_state.h"

#define F_FLUSH BIT(9)
#define SECTORS 64u
#define RING 8u /* entries: a script goes around many times */
#define STEPS 60u
#define DESCRIPTORS 0x1000u
#define DRIVER_AREA 0x2000u
#define DEVICE_AREA 0x3000u
#define TABLES 0x10000u /* indirect, 0x100 a request */
#define HEADERS 0x20000u
#define BUFFERS 0x30000u
#define STATUSES 0x80000u
#define SECOND 1000000000u
#define MS 1000000u

/* ---- the host's disk ---- */

struct block {
    pthread_mutex_t lock;
    struct block_request *first, **last;
    uint8_t bytes[SECTORS * BLOCK_SECTOR];
    unsigned flushes;
};

uint64_t block_size(const struct block *block)
{
    return sizeof(block->bytes);
}

bool block_is_read_only(const struct block *block)
{
    return false;
}

uint32_t block_physical_size(const struct block *block)
{
    return 4096;
}

void block_submit(struct block *block, struct block_request *request)
{
    pthread_mutex_lock(&block->lock);
    request->next = NULL;
    *block->last = request;
    block->last = &request->next;
    pthread_mutex_unlock(&block->lock);
}

static struct block_request *take(struct block *block)
{
    pthread_mutex_lock(&block->lock);
    struct block_request *r = block->first;
    if (r != NULL) {
        block->first = r->next;
        if (block->first == NULL)
            block->last = &block->first;
    }
    pthread_mutex_unlock(&block->lock);
    return r;
}

/* False: there is nothing to do. */
static bool complete_one(struct block *block)
{
    struct block_request *r = take(block);
    uint8_t *at;

    if (r == NULL)
        return false;
    at = block->bytes + r->offset;
    for (unsigned i = 0; i < r->iov_count; i++) {
        if (r->op == BLOCK_READ)
            memcpy(r->iov[i].iov_base, at, r->iov[i].iov_len);
        else if (r->op == BLOCK_WRITE)
            memcpy(at, r->iov[i].iov_base, r->iov[i].iov_len);
        at += r->iov[i].iov_len;
    }
    block->flushes += r->op == BLOCK_FLUSH;
    r->done(r, 0);
    return true;
}

/* ---- the guest ---- */

struct guest {
    uint8_t *ram;
    struct space *space;
    struct block block;
    struct virtio_blk *blk;
    struct virtio_device *dev;
    uint64_t features;
    unsigned signals, config_signals;
    uint16_t avail, used; /* split: indices; packed: positions */
    bool avail_wrap, used_wrap;
    unsigned sent, done;    /* requests */
    unsigned lengths[RING]; /* packed: entries of the requests under way, by id */
};

static void on_queue(void *transport, unsigned index)
{
    ((struct guest *)transport)->signals++;
}

static void on_config(void *transport)
{
    ((struct guest *)transport)->config_signals++;
}

static const struct virtio_transport_ops transport_ops = {on_queue, on_config};

static void make_device(struct guest *g)
{
    struct virtio_blk_config config = {
        .name = "disk", .memory = g->space, .block = &g->block, .serial = "s", .queue_count = 2};

    assert_int_equal(virtio_blk_create(&config, &g->blk, NULL), 0);
    g->dev = virtio_blk_device(g->blk);
    g->dev->transport_ops = &transport_ops;
    g->dev->transport = g;
}

static void set_status(struct guest *g, uint8_t status)
{
    pthread_mutex_lock(&g->dev->lock);
    virtio_set_status(g->dev, status);
    pthread_mutex_unlock(&g->dev->lock);
}

static bool has(const struct guest *g, uint64_t feature)
{
    return (g->features & feature) != 0;
}

/* A driver up to DRIVER_OK; of two queues it uses the first. */
static void start(struct guest *g)
{
    struct virtio_device *dev = g->dev;

    set_status(g, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
    pthread_mutex_lock(&dev->lock);
    virtio_set_driver_features(dev, 0, (uint32_t)g->features);
    virtio_set_driver_features(dev, 1, (uint32_t)(g->features >> 32));
    virtio_set_status(dev, dev->status | VIRTIO_STATUS_FEATURES_OK);
    dev->queues[0].size = RING;
    dev->queues[0].descriptors = DESCRIPTORS;
    dev->queues[0].driver = DRIVER_AREA;
    dev->queues[0].device = DEVICE_AREA;
    virtio_enable_queue(dev, 0);
    assert_true(dev->queues[0].is_enabled);
    pthread_mutex_unlock(&dev->lock);
    set_status(g, dev->status | VIRTIO_STATUS_DRIVER_OK);
    g->avail_wrap = g->used_wrap = true;
}

static struct guest *guest_make(uint64_t features)
{
    struct guest *g = calloc(1, sizeof(*g));

    g->ram = mmap(NULL, DRIVER_RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(g->ram, MAP_FAILED);
    assert_int_equal(space_create("memory", BIT(40), &g->space, NULL), 0);
    assert_int_equal(space_add_ram(g->space, 0, g->ram, DRIVER_RAM, false, NULL), 0);
    pthread_mutex_init(&g->block.lock, NULL);
    g->block.last = &g->block.first;
    for (unsigned i = 0; i < sizeof(g->block.bytes); i++)
        g->block.bytes[i] = (uint8_t)(i * 7 + i / 512);
    /* that can flush: else each write is followed by one */
    g->features = features | VIRTIO_F_VERSION_1 | F_FLUSH;
    make_device(g);
    return g;
}

static void guest_free(struct guest *g)
{
    while (complete_one(&g->block))
        ;
    virtio_blk_destroy(g->blk);
    space_destroy(g->space);
    munmap(g->ram, DRIVER_RAM);
    pthread_mutex_destroy(&g->block.lock);
    free(g);
}

/* ---- requests ---- */

struct piece {
    uint32_t at, len;
    bool is_writable;
};

static unsigned make_request(struct guest *g, unsigned n, struct piece pieces[4])
{
    uint8_t *header = g->ram + HEADERS + n * 16;
    uint32_t data = BUFFERS + n * 1024;
    bool is_write = n % 3 != 0, is_flush = n % 10 == 9;
    unsigned count = 1;

    store_le32(header, is_flush ? 4 : is_write ? 1 : 0);
    store_le64(header + 8, is_flush ? 0 : n * 5 % (SECTORS - 1));
    pieces[0] = (struct piece){HEADERS + n * 16, 16, false};
    if (!is_flush) {
        for (unsigned i = 0; i < 1024 && is_write; i++)
            g->ram[data + i] = (uint8_t)(n * 31 + i);
        pieces[count++] = (struct piece){data, n % 2 ? 512 : 1024, !is_write};
    }
    pieces[count++] = (struct piece){STATUSES + n, 1, true};
    g->ram[STATUSES + n] = 0xee;
    return count;
}

static void put_piece(uint8_t *d, const struct piece *p, unsigned flags, unsigned last)
{
    store_le64(d, p->at);
    store_le32(d + 8, p->len);
    store_le16(d + 12, (uint16_t)flags);
    store_le16(d + 14, (uint16_t)last);
}

static unsigned flags_of(const struct piece *p, bool has_next)
{
    return (p->is_writable ? DESC_WRITE : 0u) | (has_next ? DESC_NEXT : 0u);
}

/* Every other request by an indirect table, if that was negotiated. */
static unsigned make_table(struct guest *g, unsigned n, struct piece *pieces, unsigned count)
{
    uint8_t *table = g->ram + TABLES + n * 0x100;
    bool is_packed = has(g, VIRTIO_F_RING_PACKED);

    if (!has(g, VIRTIO_F_INDIRECT_DESC) || n % 2 != 0)
        return count;
    for (unsigned i = 0; i < count; i++) {
        unsigned flags = flags_of(&pieces[i], i + 1 < count);
        put_piece(table + i * DESCRIPTOR_SIZE, &pieces[i], is_packed ? 0 : flags,
                  is_packed ? flags & DESC_WRITE : i + 1);
    }
    pieces[0] = (struct piece){TABLES + n * 0x100, count * DESCRIPTOR_SIZE, false};
    return 1;
}

static void send_split(struct guest *g, unsigned n, const struct piece *pieces, unsigned count,
                       bool is_table)
{
    /* at most two requests of three descriptors are under way: each has a half of the ring */
    unsigned head = n % 2 * 4;

    for (unsigned i = 0; i < count; i++)
        put_piece(g->ram + DESCRIPTORS + (head + i) * DESCRIPTOR_SIZE, &pieces[i],
                  is_table ? DESC_INDIRECT : flags_of(&pieces[i], i + 1 < count), head + i + 1);
    store_le16(g->ram + DRIVER_AREA + AVAIL_RING + 2 * (g->avail % RING), (uint16_t)head);
    g->avail++;
    ring_store16(g->ram + DRIVER_AREA + AVAIL_INDEX, g->avail);
}

static void send_packed(struct guest *g, unsigned n, const struct piece *pieces, unsigned count,
                        bool is_table)
{
    for (unsigned i = 0; i < count; i++) {
        uint8_t *d = g->ram + DESCRIPTORS + (unsigned)g->avail * DESCRIPTOR_SIZE;
        unsigned flags = is_table ? DESC_INDIRECT : flags_of(&pieces[i], i + 1 < count);
        flags |= g->avail_wrap ? (unsigned)DESC_AVAIL : (unsigned)DESC_USED;
        put_piece(d, &pieces[i], n % RING, flags);
        if (++g->avail == RING) {
            g->avail = 0;
            g->avail_wrap = !g->avail_wrap;
        }
    }
    g->lengths[n % RING] = count;
}

static void send(struct guest *g)
{
    struct piece pieces[4];
    unsigned n = g->sent++, count = make_request(g, n, pieces);
    unsigned left = make_table(g, n, pieces, count);

    if (has(g, VIRTIO_F_RING_PACKED))
        send_packed(g, n, pieces, left, left < count);
    else
        send_split(g, n, pieces, left, left < count);
    pthread_mutex_lock(&g->dev->lock);
    virtio_notify(g->dev, 0);
    pthread_mutex_unlock(&g->dev->lock);
}

/* The next request has come back. */
static void collect(struct guest *g)
{
    unsigned n = g->done++;

    if (has(g, VIRTIO_F_RING_PACKED)) {
        const uint8_t *d = g->ram + DESCRIPTORS + (unsigned)g->used * DESCRIPTOR_SIZE;
        unsigned flags = ring_load16(d + 14);
        assert_int_equal((flags & DESC_AVAIL) != 0, g->used_wrap);
        assert_int_equal((flags & DESC_USED) != 0, g->used_wrap);
        assert_int_equal(load_le16(d + 12), n % RING);
        g->used = (uint16_t)(g->used + g->lengths[n % RING]);
        if (g->used >= RING) {
            g->used = (uint16_t)(g->used - RING);
            g->used_wrap = !g->used_wrap;
        }
        /* interrupt for the next one */
        store_le16(g->ram + DRIVER_AREA, (uint16_t)(g->used | (unsigned)g->used_wrap << 15));
        store_le16(g->ram + DRIVER_AREA + 2, has(g, VIRTIO_F_EVENT_IDX) ? EVENT_DESCRIPTOR : 0);
    } else {
        const uint8_t *ring = g->ram + DEVICE_AREA;
        assert_int_not_equal(load_le16(ring + USED_INDEX), g->used);
        assert_int_equal(load_le32(ring + USED_RING + g->used % RING * USED_SIZE), n % 2 * 4);
        g->used++;
        store_le16(g->ram + DRIVER_AREA + AVAIL_RING + 2 * RING, g->used); /* used_event */
    }
    assert_int_equal(g->ram[STATUSES + n], 0);
}

/* ---- another device in its place ---- */

static void *complete_when_quiesced(void *ctx)
{
    struct guest *g = ctx;

    for (bool is_quiesced = false; !is_quiesced; sched_yield()) {
        pthread_mutex_lock(&g->dev->lock);
        is_quiesced = g->dev->is_quiesced;
        pthread_mutex_unlock(&g->dev->lock);
    }
    while (complete_one(&g->block))
        ;
    return NULL;
}

static void take_state(struct guest *g, struct virtio_state *state)
{
    pthread_t thread;
    struct err e;

    assert_int_equal(pthread_create(&thread, NULL, complete_when_quiesced, g), 0);
    if (virtio_quiesce(g->dev, 60ull * SECOND, &e) != 0)
        fail_msg("%s", e.msg);
    pthread_join(thread, NULL);
    memset(state, 0xa5, sizeof(*state)); /* what was not filled in shows */
    if (virtio_get_state(g->dev, state, &e) != 0)
        fail_msg("%s", e.msg);
}

static void replace(struct guest *g)
{
    struct virtio_state state;
    struct err e;

    take_state(g, &state);
    virtio_blk_destroy(g->blk);
    make_device(g);
    assert_int_equal(virtio_quiesce(g->dev, 0, &e), 0);
    if (virtio_set_state(g->dev, &state, &e) != 0)
        fail_msg("%s", e.msg);
    struct virtio_state *again = malloc(sizeof(*again));
    assert_int_equal(virtio_get_state(g->dev, again, &e), 0);
    assert_memory_equal(&state, again, sizeof(state));
    free(again);
    virtio_resume(g->dev);
}

/*
 * Up to two requests are under way. Before each step the device may be replaced: with it in all
 * states of set-up, with requests outstanding, in the midst of a packed ring.
 */
static void run_script(struct guest *g, unsigned replaced_at)
{
    unsigned step = 0;

#define STEP()                                                                                     \
    do {                                                                                           \
        if (step++ == replaced_at)                                                                 \
            replace(g);                                                                            \
    } while (0)
    STEP();
    set_status(g, VIRTIO_STATUS_ACKNOWLEDGE);
    STEP();
    start(g);
    for (unsigned i = 0; step < STEPS - 1; i++) {
        STEP();
        send(g);
        if (i == 0)
            continue;
        STEP();
        complete_one(&g->block); /* or it was, for the state */
        STEP();
        collect(g);
    }
    STEP();
    while (complete_one(&g->block))
        ;
    while (g->done < g->sent)
        collect(g);
#undef STEP
}

static const uint64_t rings[] = {
    0,
    VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_RING_PACKED | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX,
};

static void another_device_goes_on(void **state)
{
    for (unsigned n = 0; n < ARRAY_SIZE(rings); n++) {
        struct guest *calm = guest_make(rings[n]);
        run_script(calm, UINT32_MAX);
        assert_true(calm->sent > RING);
        for (unsigned at = 0; at < STEPS; at++) {
            struct guest *g = guest_make(rings[n]);
            run_script(g, at);
            assert_int_equal(g->sent, calm->sent);
            assert_memory_equal(g->ram, calm->ram, 0x100000);
            assert_memory_equal(g->block.bytes, calm->block.bytes, sizeof(calm->block.bytes));
            assert_int_equal(g->block.flushes, calm->block.flushes);
            assert_true(g->signals != 0);
            guest_free(g);
        }
        guest_free(calm);
    }
}

/* Quiesced, a device takes nothing; then it takes all that came meanwhile. */
static void what_comes_meanwhile_waits(void **state)
{
    struct guest *g = guest_make(0);
    struct virtio_state s;

    start(g);
    take_state(g, &s);
    send(g);
    send(g);
    assert_false(complete_one(&g->block));
    virtio_resume(g->dev);
    assert_true(complete_one(&g->block));
    assert_true(complete_one(&g->block));
    collect(g);
    collect(g);
    guest_free(g);
}

static void what_does_not_end_is_an_error(void **state)
{
    struct guest *g = guest_make(0);
    struct virtio_state s;
    struct err e;

    start(g);
    send(g);
    assert_int_equal(virtio_get_state(g->dev, &s, &e), -EBUSY); /* at work */
    assert_int_equal(virtio_quiesce(g->dev, MS, &e), -ETIMEDOUT);
    assert_non_null(strstr(e.msg, "disk"));
    assert_true(complete_one(&g->block)); /* and it goes on as if nothing had been */
    collect(g);
    send(g);
    assert_true(complete_one(&g->block));
    collect(g);
    assert_int_equal(virtio_quiesce(g->dev, 0, &e), 0);
    assert_int_equal(virtio_get_state(g->dev, &s, &e), 0);
    assert_int_equal(virtio_set_state(g->dev, &s, &e), -EBUSY); /* it has a driver */
    guest_free(g);
}

/* A reset that waits for its requests ends first. */
static void a_reset_under_way_ends(void **state)
{
    struct guest *g = guest_make(0);
    struct virtio_state s;

    start(g);
    send(g);
    set_status(g, 0);
    assert_int_not_equal(g->dev->status, 0);
    take_state(g, &s);
    assert_int_equal(s.status, 0);
    assert_int_equal(s.queues[0].is_enabled, 0);
    guest_free(g);
}

/* A device that needs a reset needs one afterwards, too. */
static void a_broken_device_stays_so(void **state)
{
    struct guest *g = guest_make(0);
    struct virtio_state s;

    start(g);
    store_le16(g->ram + DRIVER_AREA + AVAIL_RING, 99); /* no such descriptor */
    store_le16(g->ram + DRIVER_AREA + AVAIL_INDEX, 1);
    pthread_mutex_lock(&g->dev->lock);
    virtio_notify(g->dev, 0);
    pthread_mutex_unlock(&g->dev->lock);
    assert_true(g->dev->status & VIRTIO_STATUS_NEEDS_RESET);
    replace(g);
    assert_true(g->dev->status & VIRTIO_STATUS_NEEDS_RESET);
    g->avail = 1;
    send(g);
    assert_false(complete_one(&g->block));
    set_status(g, 0);
    assert_int_equal(g->dev->status, 0);
    take_state(g, &s);
    guest_free(g);
}

/* What was given back while nobody wanted to hear of it, somebody may want to hear of later. */
static void interrupts_are_not_forgotten(void **state)
{
    for (unsigned is_replaced = 0; is_replaced < 2; is_replaced++) {
        struct guest *g = guest_make(VIRTIO_F_RING_PACKED);
        start(g);
        store_le16(g->ram + DRIVER_AREA + PACKED_EVENT_FLAGS, EVENT_DISABLE);
        send(g);
        assert_true(complete_one(&g->block));
        if (is_replaced)
            replace(g);
        assert_int_equal(g->signals, 0);
        store_le16(g->ram + DRIVER_AREA + PACKED_EVENT_FLAGS, EVENT_ENABLE);
        pthread_mutex_lock(&g->dev->lock);
        virtio_notify(g->dev, 0);
        pthread_mutex_unlock(&g->dev->lock);
        assert_int_equal(g->signals, 1);
        collect(g);
        guest_free(g);
    }
}

/* The driver is told that the disk has grown; one that has shrunk is not its disk. */
static void the_disk_may_have_grown(void **state)
{
    struct guest *g = guest_make(0);
    struct virtio_state s;
    struct err e;

    start(g);
    take_state(g, &s);
    virtio_blk_destroy(g->blk);
    make_device(g);
    assert_int_equal(virtio_quiesce(g->dev, 0, &e), 0);
    store_le64(s.config, SECTORS + 1);
    assert_int_not_equal(virtio_set_state(g->dev, &s, &e), 0);
    assert_non_null(strstr(e.msg, "capacity"));
    store_le64(s.config, SECTORS - 1);
    assert_int_equal(virtio_set_state(g->dev, &s, &e), 0);
    assert_int_equal(g->config_signals, 0);
    virtio_resume(g->dev);
    assert_int_equal(g->config_signals, 1);
    assert_int_equal(load_le64(g->dev->config), SECTORS);
    assert_int_equal(g->dev->config_generation, (uint8_t)(s.config_generation + 1));
    guest_free(g);
}

/* ---- states that nobody took ---- */

struct forgery {
    const char *says; /* the error names what is wrong */
    void (*forge)(struct virtio_state *s);
};

#define FORGERY(name, what)                                                                        \
    static void name(struct virtio_state *s)                                                       \
    {                                                                                              \
        what;                                                                                      \
    }
FORGERY(forge_kind, s->kind = VIRTIO_STATE_NET)
FORGERY(forge_id, s->id = VIRTIO_ID_NET)
FORGERY(forge_queue_count, s->queue_count = 3)
FORGERY(forge_config_size, s->config_size = 256)
FORGERY(forge_status, s->status |= 0x20)
FORGERY(forge_driver_ok, s->status &= (uint8_t)~VIRTIO_STATUS_FEATURES_OK)
FORGERY(forge_feature, s->features |= BIT(50))
FORGERY(forge_version, s->features &= ~VIRTIO_F_VERSION_1)
FORGERY(forge_config, s->config[12] ^= 1)
FORGERY(forge_writeback, s->config[32] = 2)
FORGERY(forge_no_size, s->queues[0].size = 0)
FORGERY(forge_large, s->queues[1].size = 1024)
FORGERY(forge_odd_size, s->queues[0].size = 7)
FORGERY(forge_enabled, s->queues[1].is_enabled = 2)
FORGERY(forge_quiet, s->queues[0].is_quiet = 0xff)
FORGERY(forge_wrap, s->queues[0].wrap = 1)
FORGERY(forge_wrap_claim, s->queues[0].wrap = 3)
FORGERY(forge_position, s->queues[1].next = 1)
FORGERY(forge_descriptors, s->queues[0].descriptors = DRIVER_RAM)
FORGERY(forge_end, s->queues[0].descriptors = DRIVER_RAM - 16)
FORGERY(forge_overflow, s->queues[0].driver = UINT64_MAX - 1)
FORGERY(forge_alignment, s->queues[0].device++)
FORGERY(forge_early, s->status = 3)
FORGERY(forge_next_packed, (s->features |= VIRTIO_F_RING_PACKED, s->queues[0].next = RING))

static void forged_states_are_refused(void **state)
{
    static const struct forgery forgeries[] = {
        {"kind", forge_kind},
        {"id", forge_id},
        {"queue_count", forge_queue_count},
        {"config_size", forge_config_size},
        {"status is 0x2f", forge_status},
        {"DRIVER_OK without", forge_driver_ok},
        {"not offered", forge_feature},
        {"without VERSION_1", forge_version},
        {"config[12]", forge_config},
        {"writeback", forge_writeback},
        {"queues[0].size", forge_no_size},
        {"queues[1].size", forge_large},
        {"queues[0]: the queue has an impossible size", forge_odd_size},
        {"is_enabled of queue of 1", forge_enabled},
        {"is_quiet of queue of 0", forge_quiet},
        {"queues[0].wrap", forge_wrap},
        {"wrap of queue of 0", forge_wrap_claim},
        {"queues[1] has a position", forge_position},
        {"queues[0]: an area of the queue is not in RAM", forge_descriptors},
        {"queues[0]: an area of the queue is not in RAM", forge_end},
        {"queues[0]: an area of the queue is not in RAM", forge_overflow},
        {"queues[0]: an area of the queue is not aligned", forge_alignment},
        {"queues[0].is_enabled", forge_early},
        {"queues[0].next", forge_next_packed},
    };
    struct guest *g = guest_make(0), *other = guest_make(0);
    struct virtio_state good, s, before, after;
    struct err e;

    start(g);
    send(g);
    take_state(g, &good);
    assert_int_equal(virtio_quiesce(other->dev, 0, &e), 0);
    assert_int_equal(virtio_get_state(other->dev, &before, &e), 0);
    for (unsigned i = 0; i < ARRAY_SIZE(forgeries); i++) {
        s = good;
        forgeries[i].forge(&s);
        assert_int_not_equal(virtio_set_state(other->dev, &s, &e), 0);
        if (strstr(e.msg, forgeries[i].says) == NULL || strstr(e.msg, "disk") == NULL)
            fail_msg("'%s' should say '%s'", e.msg, forgeries[i].says);
        assert_int_equal(virtio_get_state(other->dev, &after, &e), 0);
        assert_memory_equal(&before, &after, sizeof(before)); /* nothing was changed */
    }
    assert_int_equal(virtio_set_state(other->dev, &good, &e), 0);
    guest_free(other);
    guest_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(another_device_goes_on),
        cmocka_unit_test(what_comes_meanwhile_waits),
        cmocka_unit_test(what_does_not_end_is_an_error),
        cmocka_unit_test(a_reset_under_way_ends),
        cmocka_unit_test(a_broken_device_stays_so),
        cmocka_unit_test(interrupts_are_not_forgotten),
        cmocka_unit_test(the_disk_may_have_grown),
        cmocka_unit_test(forged_states_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
