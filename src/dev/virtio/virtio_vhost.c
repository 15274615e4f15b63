/*
 * virtio_vhost.c - a virtio device that another process serves
 *
 * Invariants: `backend` belongs to the device's thread, which starts and stops its rings as the
 * driver starts and resets the device. Chains go into the rings while is_live, under the lock.
 * is_up lasts from when the driver starts the device until the thread has taken all back that
 * the back end had: until then a reset is not complete.
 */
#include "dev/virtio/virtio_vhost.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "backend/vhost/vhost_user.h"
#include "base/log.h"
#include "dev/virtio/virtio_vhost_internal.h"
#include "mem/space.h"
#include "os/event.h"
#include "os/memfd.h"
#include "os/thread.h"

/* Where the back end finds the rings: far from any guest's RAM. */
#define RINGS_ADDR BIT(51)

#define BLK_F_MQ BIT(12)
#define BLK_QUEUE_COUNT_AT 34 /* in the configuration (5.2.4) */
#define NET_F_MTU BIT(3)
#define NET_F_MAC BIT(5)
#define NET_F_CTRL_VQ BIT(17)
/* in the configuration (5.1.4) */
#define NET_PAIRS_AT 8
#define NET_MTU_AT 10
/* the one command of the control queue (5.1.6.5.5) */
#define CONTROL_CLASS_MQ 4
#define CONTROL_PAIRS_SET 0
#define CONTROL_SIZE 4u
enum { CONTROL_OK, CONTROL_ERR };

static const struct vhost_kind kinds[] = {
    [VIRTIO_VHOST_DISK] =
        {
            .id = VIRTIO_ID_BLOCK,
            .queue_size = 128,
            .config_size = 60,
            .has_config = true,
            /* SIZE_MAX, SEG_MAX, GEOMETRY, RO, BLK_SIZE, FLUSH, TOPOLOGY, MQ, DISCARD, WRITE_ZEROES
             */
            .passed = BIT(1) | BIT(2) | BIT(4) | BIT(5) | BIT(6) | BIT(9) | BIT(10) | BLK_F_MQ |
                      BIT(13) | BIT(14),
        },
    [VIRTIO_VHOST_NET] =
        {
            .id = VIRTIO_ID_NET,
            .queue_size = VHOST_NET_QUEUE_SIZE,
            .config_size = 12,
            /* checksums, segments of the guest's and the host's, mergeable buffers */
            .passed = BIT(0) | BIT(1) | BIT(7) | BIT(8) | BIT(9) | BIT(10) | BIT(11) | BIT(12) |
                      BIT(13) | BIT(14) | BIT(15),
            .own = NET_F_MAC,
            .told = NET_F_MTU | VHOST_NET_F_MQ,
        },
    [VIRTIO_VHOST_SHARE] =
        {
            .id = VIRTIO_ID_FS,
            .queue_size = 1024,
            .queue_count = 2,
            .config_size = 40,
        },
};

/* ---- requests; under the lock ---- */

/* How many queues the back end serves for this driver, which need not know of them all. */
static unsigned served_count(const struct virtio_vhost *v)
{
    bool is_one_pair = (v->dev.offered & VHOST_NET_F_MQ) != 0 && v->kind->told != 0 &&
                       !virtio_has(&v->dev, VHOST_NET_F_MQ);

    return is_one_pair ? 2 : v->ring_count;
}

static bool is_control(const struct virtio_vhost *v, unsigned index)
{
    return v->config.kind == VIRTIO_VHOST_NET && virtio_has(&v->dev, NET_F_CTRL_VQ) &&
           index == served_count(v);
}

static void take_chains(struct virtio_vhost *v, unsigned index)
{
    struct virtqueue *q = &v->dev.queues[index];
    struct vhost_ring *ring = &v->rings[index];
    struct virtqueue_chain *chain;
    bool is_new = false;

    if (!v->is_live || !q->is_enabled)
        return;
    do {
        virtqueue_set_notify(q, false);
        while ((chain = vhost_ring_room(ring)) != NULL && virtio_pop(&v->dev, index, chain)) {
            vhost_ring_add(ring);
            is_new = true;
        }
        /* when all are out, what comes back goes on here */
    } while (chain != NULL && virtio_may_take(&v->dev) && virtqueue_set_notify(q, true));
    if (is_new && vhost_ring_wants_kick(ring))
        event_raise(v->kick_fds[index]);
}

/* The back end may have written all of it, whatever it says. */
void vhost_note_written(struct virtio_vhost *v, const struct virtqueue_chain *chain)
{
    const struct virtqueue_buffer *in = chain->buffers + chain->out_count;

    for (unsigned i = 0; i < chain->in_count; i++)
        space_note_written(v->dev.memory, in[i].addr, in[i].len);
}

/* False when the back end broke the ring. */
bool vhost_give_back(struct virtio_vhost *v, unsigned index)
{
    const struct virtqueue_chain *chain;
    uint32_t written;
    int rc;

    if (!v->is_live)
        return true;
    while ((rc = vhost_ring_take(&v->rings[index], &chain, &written)) > 0) {
        vhost_note_written(v, chain);
        virtqueue_push(&v->dev.queues[index], chain, (uint32_t)MIN(written, chain->in_size));
    }
    virtio_signal_queue(&v->dev, index);
    take_chains(v, index);
    return rc == 0;
}

/* Chains that will not come back; the back end has let go of them, or is gone. */
void vhost_drop_chains(struct virtio_vhost *v)
{
    v->is_live = false;
    for (unsigned i = 0; i < v->ring_count; i++) {
        struct vhost_ring *ring = &v->rings[i];
        for (unsigned n = 0; n < VHOST_RING_SIZE && ring->out_count != 0; n++)
            if (ring->slots[n].is_out)
                vhost_note_written(v, &ring->slots[n].chain);
        vhost_ring_reset(ring);
    }
}

/* ---- the device's thread ---- */

void vhost_lose_backend(struct virtio_vhost *v, const char *why)
{
    static struct log_limit limit;

    if (log_limit_allows(&limit))
        log_warn("%s; when the guest resets the device, a back end is looked for again", why);
    vhost_user_close(v->backend);
    v->backend = NULL;
    memset(v->is_ring_started, 0, sizeof(v->is_ring_started));
    virtio_lock(&v->dev);
    vhost_drop_chains(v);
    if (v->is_up && !v->dev.is_resetting)
        virtio_needs_reset(&v->dev, "its back end is gone");
    virtio_unlock(&v->dev);
}

static int give_memory(struct virtio_vhost *v, struct err *e)
{
    struct vhost_user_region regions[VHOST_USER_REGIONS_MAX];
    unsigned count = v->config.region_count;

    assert(count < ARRAY_SIZE(regions));
    memcpy(regions, v->config.regions, count * sizeof(*regions));
    regions[count++] = (struct vhost_user_region){
        .guest_addr = RINGS_ADDR, .size = v->memory_size, .host = v->memory, .fd = v->memory_fd};
    return vhost_user_set_memory(v->backend, regions, count, e);
}

static int start_ring(struct virtio_vhost *v, unsigned index, unsigned pairs, struct err *e)
{
    const struct vhost_ring *ring = &v->rings[index];
    struct vhost_user_ring r = {.size = VHOST_RING_SIZE,
                                .descriptors = ring->descriptors,
                                .avail = ring->avail,
                                .used = ring->used,
                                .kick_fd = v->kick_fds[index],
                                .call_fd = v->call_fds[index],
                                .waits = v->config.kind == VIRTIO_VHOST_NET && index / 2 >= pairs};
    int rc = vhost_user_start_ring(v->backend, index, &r, e);

    v->is_ring_started[index] = rc == 0;
    return rc;
}

/* Can this back end serve what the first one promised? */
static int check_backend(const struct virtio_vhost *v, const struct vhost_user *u, struct err *e)
{
    uint64_t needed = VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC;
    uint64_t offered = vhost_user_features(u);

    if ((offered & needed) != needed)
        return err_set(e, 0,
                       "the vhost-user back end at '%s' is too old: it does not do virtio 1 with "
                       "indirect descriptors",
                       v->config.path);
    if (v->dev.offered & (v->kind->passed | (v->kind->told & VHOST_NET_F_MQ)) & ~offered)
        return err_set(e, 0, "the vhost-user back end at '%s' does less than the one before",
                       v->config.path);
    /* a network's back end may count pairs, and one of them it has */
    unsigned queues = v->config.kind == VIRTIO_VHOST_NET && v->ring_count == 2 ? 1 : v->ring_count;
    if (vhost_user_queues_max(u) < queues)
        return err_set(e, 0, "the vhost-user back end at '%s' has %u queues, and %u are needed",
                       v->config.path, vhost_user_queues_max(u), queues);
    return 0;
}

static int start_rings(struct virtio_vhost *v, uint64_t features, unsigned pairs,
                       const bool *is_enabled, struct err *e)
{
    uint64_t passed = v->kind->passed;
    int rc = 0;

    if (v->backend == NULL) {
        rc = vhost_user_open(v->config.path, &v->backend, e);
        if (rc == 0)
            rc = check_backend(v, v->backend, e);
    }
    if (rc == 0) {
        passed |= v->kind->told & vhost_user_features(v->backend);
        rc = vhost_user_set_features(
            v->backend, (features & passed) | VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC, e);
    }
    if (rc == 0 && v->config.mtu != 0 && (features & v->kind->told & NET_F_MTU))
        rc = vhost_user_set_mtu(v->backend, v->config.mtu, e);
    if (rc == 0)
        rc = give_memory(v, e);
    for (unsigned i = 0; rc == 0 && i < v->ring_count; i++)
        if (is_enabled[i])
            rc = start_ring(v, i, pairs, e);
    return rc;
}

static void start(struct virtio_vhost *v)
{
    bool is_enabled[VHOST_QUEUES_MAX] = {false};
    struct err e;

    virtio_lock(&v->dev);
    uint64_t features = v->dev.features;
    unsigned count = served_count(v), pairs = v->active_pairs;
    for (unsigned i = 0; i < count; i++)
        is_enabled[i] = v->dev.queues[i].is_enabled;
    virtio_unlock(&v->dev);
    if (start_rings(v, features, pairs, is_enabled, &e) != 0) {
        vhost_lose_backend(v, e.msg);
        return;
    }
    virtio_lock(&v->dev);
    if (!v->wants_stop) {
        v->is_live = true;
        for (unsigned i = 0; i < count; i++)
            take_chains(v, i);
    }
    virtio_unlock(&v->dev);
}

void vhost_stop_rings(struct virtio_vhost *v)
{
    struct err e;

    for (unsigned i = 0; i < v->ring_count && v->backend != NULL; i++) {
        if (v->is_ring_started[i] && vhost_user_stop_ring(v->backend, i, &e) != 0)
            vhost_lose_backend(v, e.msg);
        v->is_ring_started[i] = false;
    }
}

static void stop(struct virtio_vhost *v)
{
    vhost_stop_rings(v);
    virtio_lock(&v->dev);
    vhost_drop_chains(v);
    v->active_pairs = 1; /* until the driver says more */
    v->wants_stop = v->is_up = v->wants_control = false;
    virtio_reset_done(&v->dev);
    virtio_unlock(&v->dev);
}

/* ---- the control queue ---- */

/* The pairs that a command wants in use; 0: it is none. Under the lock. */
static unsigned wanted_pairs(struct virtio_vhost *v, const struct virtqueue_chain *chain)
{
    uint8_t bytes[CONTROL_SIZE];

    if (virtqueue_read(chain, 0, bytes, CONTROL_SIZE) != CONTROL_SIZE ||
        bytes[0] != CONTROL_CLASS_MQ || bytes[1] != CONTROL_PAIRS_SET)
        return 0;
    unsigned pairs = load_le16(bytes + 2);
    return pairs <= served_count(v) / 2 && virtio_has(&v->dev, VHOST_NET_F_MQ) ? pairs : 0;
}

static int use_pairs(struct virtio_vhost *v, unsigned pairs, struct err *e)
{
    int rc = 0;

    for (unsigned i = 2; rc == 0 && i < v->ring_count; i++)
        if (v->is_ring_started[i])
            rc = vhost_user_enable_ring(v->backend, i, i / 2 < pairs, e);
    return rc;
}

/*
 * The back end is asked without the lock, for it may take its time. The chain stays the device's
 * meanwhile: a reset waits for this thread.
 */
static void serve_control(struct virtio_vhost *v)
{
    struct virtqueue_chain chain = {.buffers = v->control_buffers};
    struct err e;

    for (unsigned n = 0; n < VHOST_NET_QUEUE_SIZE && v->backend != NULL; n++) {
        virtio_lock(&v->dev);
        unsigned queue = served_count(v);
        bool is_there = is_control(v, queue) && virtio_pop(&v->dev, queue, &chain);
        unsigned pairs = is_there ? wanted_pairs(v, &chain) : 0;
        virtio_unlock(&v->dev);
        if (!is_there)
            return;
        if (pairs != 0 && use_pairs(v, pairs, &e) != 0) {
            vhost_lose_backend(v, e.msg);
            return;
        }
        uint8_t ack = pairs != 0 ? CONTROL_OK : CONTROL_ERR;
        virtio_lock(&v->dev);
        if (pairs != 0)
            v->active_pairs = pairs;
        uint32_t written = (uint32_t)virtqueue_write(&chain, 0, &ack, 1);
        virtqueue_push(&v->dev.queues[queue], &chain, written);
        virtio_signal_queue(&v->dev, queue);
        virtio_unlock(&v->dev);
    }
}

/* The configuration as the guest sees it. */
static int read_config(struct virtio_vhost *v, uint8_t *config, struct err *e)
{
    int rc = vhost_user_get_config(v->backend, config, v->kind->config_size, e);

    if (rc == 0 && v->dev.queue_count != 0)
        store_le16(config + BLK_QUEUE_COUNT_AT, (uint16_t)v->dev.queue_count);
    return rc;
}

static void take_message(struct virtio_vhost *v)
{
    uint8_t config[VIRTIO_CONFIG_MAX];
    struct err e;
    int rc = vhost_user_take_message(v->backend, &e);

    if (rc > 0 && v->kind->has_config) {
        rc = read_config(v, config, &e);
        if (rc == 0) {
            virtio_lock(&v->dev);
            memcpy(v->dev.config, config, v->kind->config_size);
            virtio_signal_config(&v->dev);
            virtio_unlock(&v->dev);
        }
    }
    if (rc < 0)
        vhost_lose_backend(v, e.msg);
}

enum {
    POLL_WAKE,
    POLL_BACKEND,
    POLL_MESSAGE,
    POLL_CALLS,
    POLL_BELLS = POLL_CALLS + VHOST_QUEUES_MAX
};

/* A notification of queue `index`, on this thread. */
static void answer_bell(struct virtio_vhost *v, unsigned index)
{
    atomic_fetch_add(&v->rung, event_take(v->bell_fds[index]));
    virtio_lock(&v->dev);
    virtio_notify(&v->dev, index);
    virtio_unlock(&v->dev);
}

static void wait_for_work(struct virtio_vhost *v)
{
    struct pollfd fds[POLL_BELLS + VHOST_QUEUES_MAX] = {
        [POLL_WAKE] = {.fd = v->wake_fd, .events = POLLIN},
        [POLL_BACKEND] = {.fd = v->backend != NULL ? vhost_user_fd(v->backend) : -1,
                          .events = POLLIN},
        [POLL_MESSAGE] = {.fd = v->backend != NULL ? vhost_user_message_fd(v->backend) : -1,
                          .events = POLLIN},
    };
    char why[ERR_MSG_SIZE];

    /* of queues that are not there the descriptors are -1 */
    for (unsigned i = 0; i < VHOST_QUEUES_MAX; i++) {
        fds[POLL_CALLS + i] = (struct pollfd){.fd = v->call_fds[i], .events = POLLIN};
        fds[POLL_BELLS + i] = (struct pollfd){.fd = v->bell_fds[i], .events = POLLIN};
    }
    if (poll(fds, ARRAY_SIZE(fds), -1) < 0)
        return;
    if (fds[POLL_WAKE].revents)
        event_take(v->wake_fd);
    for (unsigned i = 0; i < v->ring_count; i++) {
        if (fds[POLL_BELLS + i].revents)
            answer_bell(v, i);
        if (!fds[POLL_CALLS + i].revents)
            continue;
        event_take(v->call_fds[i]);
        virtio_lock(&v->dev);
        bool is_good = vhost_give_back(v, i);
        virtio_unlock(&v->dev);
        if (!is_good && v->backend != NULL) {
            snprintf(why, sizeof(why), "the vhost-user back end at '%s' broke its ring",
                     v->config.path);
            vhost_lose_backend(v, why);
        }
    }
    if (fds[POLL_BACKEND].revents && v->backend != NULL) {
        snprintf(why, sizeof(why), "the vhost-user back end at '%s' has left", v->config.path);
        vhost_lose_backend(v, why);
    } else if (fds[POLL_MESSAGE].revents && v->backend != NULL) {
        take_message(v);
    }
}

static void *vhost_run(void *ctx)
{
    struct virtio_vhost *v = ctx;

    for (;;) {
        virtio_lock(&v->dev);
        bool wants_stop = v->wants_stop, wants_start = v->wants_start, is_closing = v->is_closing;
        bool wants_control = v->wants_control && !wants_stop;
        bool wants_park = v->wants_park && !wants_stop && !is_closing;
        v->wants_start = v->wants_control = false;
        virtio_unlock(&v->dev);
        if (wants_stop || is_closing)
            stop(v);
        else if (wants_start)
            start(v);
        if (is_closing)
            return NULL;
        if (wants_control)
            serve_control(v);
        if (wants_park)
            vhost_park(v);
        if (!wants_stop) /* else the driver may have started it meanwhile */
            wait_for_work(v);
    }
}

/* ---- the driver's side; under the lock ---- */

static void vhost_start(struct virtio_device *dev)
{
    struct virtio_vhost *v = CONTAINER_OF(dev, struct virtio_vhost, dev);

    v->wants_start = v->is_up = true;
    event_raise(v->wake_fd);
}

static void vhost_notify(struct virtio_device *dev, unsigned index)
{
    struct virtio_vhost *v = CONTAINER_OF(dev, struct virtio_vhost, dev);

    if (is_control(v, index)) {
        v->wants_control = true;
        event_raise(v->wake_fd);
    } else if (index < served_count(v)) {
        take_chains(v, index);
    }
}

static int vhost_bell(struct virtio_device *dev, unsigned index)
{
    struct virtio_vhost *v = CONTAINER_OF(dev, struct virtio_vhost, dev);

    return index < v->ring_count ? v->bell_fds[index] : -1;
}

static bool vhost_reset(struct virtio_device *dev)
{
    struct virtio_vhost *v = CONTAINER_OF(dev, struct virtio_vhost, dev);

    v->wants_start = v->is_live = false;
    if (!v->is_up)
        return true;
    v->wants_stop = true;
    event_raise(v->wake_fd);
    return false;
}

static const struct virtio_ops vhost_ops = {
    .start = vhost_start,
    .notify = vhost_notify,
    .bell = vhost_bell,
    .reset = vhost_reset,
    .quiesce = vhost_quiesce,
    .resume = vhost_resume,
    .check_carried = vhost_check_carried,
    .get_state = vhost_get_state,
    .check_state = vhost_check_state,
    .set_state = vhost_set_state,
    .state_kind = VIRTIO_STATE_VHOST,
};

/* ---- set-up ---- */

/* How many queues the back end is to serve. */
static unsigned count_queues(const struct virtio_vhost *v, const uint8_t *config)
{
    unsigned count = v->kind->queue_count;

    if (v->config.kind == VIRTIO_VHOST_NET) {
        bool has_many = (vhost_user_features(v->backend) & VHOST_NET_F_MQ) != 0;
        count = has_many ? MIN(v->config.queues_wanted, vhost_user_queues_max(v->backend) / 2) : 1;
        count = 2 * MAX(count, 1u);
    } else if (count == 0) {
        bool has_many = (vhost_user_features(v->backend) & BLK_F_MQ) != 0;
        count = has_many ? MAX(load_le16(config + BLK_QUEUE_COUNT_AT), 1) : 1;
        count = MIN(count, v->config.queues_wanted);
        count = MIN(count, vhost_user_queues_max(v->backend));
    }
    return MIN(MAX(count, 1u), VHOST_QUEUES_MAX);
}

static void fill_config(struct virtio_vhost *v)
{
    uint8_t *config = v->dev.config;

    if (v->config.kind == VIRTIO_VHOST_NET) {
        memcpy(config, v->config.mac, 6);
        store_le16(config + NET_PAIRS_AT, (uint16_t)(v->ring_count / 2));
        store_le16(config + NET_MTU_AT, v->config.mtu);
    } else if (v->config.kind == VIRTIO_VHOST_SHARE) {
        memcpy(config, v->config.tag, MIN(strlen(v->config.tag), (size_t)36));
        store_le32(config + 36, 1);
    }
}

static int fill_device(struct virtio_vhost *v, struct err *e)
{
    struct virtio_device *dev = &v->dev;
    int rc = v->kind->has_config ? read_config(v, dev->config, e) : 0;

    if (rc != 0)
        return rc;
    v->ring_count = count_queues(v, dev->config);
    fill_config(v);
    dev->ops = &vhost_ops;
    dev->name = v->config.path;
    dev->id = v->kind->id;
    dev->offered =
        VIRTIO_FEATURES_COMMON | v->kind->own | (vhost_user_features(v->backend) & v->kind->passed);
    dev->queue_count = v->ring_count;
    if (v->config.kind == VIRTIO_VHOST_NET && v->ring_count > 2) {
        dev->offered |= NET_F_CTRL_VQ | VHOST_NET_F_MQ;
        dev->queue_count++;
    }
    if (v->config.kind == VIRTIO_VHOST_NET && v->config.mtu != 0)
        dev->offered |= NET_F_MTU;
    if (v->kind->has_config) {
        store_le16(dev->config + BLK_QUEUE_COUNT_AT, (uint16_t)dev->queue_count);
        memset(dev->config_rule, VIRTIO_CONFIG_OF_HOST, v->kind->config_size);
        memset(dev->config_rule + BLK_QUEUE_COUNT_AT, VIRTIO_CONFIG_FIXED, 2);
    }
    dev->queue_size = v->kind->queue_size;
    dev->config_size = v->kind->config_size;
    dev->memory = v->config.memory;
    return check_backend(v, v->backend, e);
}

static int make_rings(struct virtio_vhost *v, struct err *e)
{
    v->ring_stride = vhost_ring_memory(v->dev.queue_size);
    v->memory_size = v->ring_stride * v->ring_count;
    v->memory_fd = memfd_make("doppel-vhost", v->memory_size, e);
    if (v->memory_fd < 0)
        return v->memory_fd;
    int rc = memfd_map(v->memory_fd, 0, v->memory_size, MEMFD_READ | MEMFD_WRITE, &v->memory, e);
    for (unsigned i = 0; rc == 0 && i < v->ring_count; i++) {
        rc = vhost_ring_init(&v->rings[i], (uint8_t *)v->memory + i * v->ring_stride,
                             RINGS_ADDR + i * v->ring_stride, v->dev.queue_size);
        if (rc != 0)
            return err_set(e, -rc, "make the rings for '%s'", v->config.path);
        v->kick_fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        v->call_fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        v->bell_fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (v->kick_fds[i] < 0 || v->call_fds[i] < 0 || v->bell_fds[i] < 0)
            return err_set(e, errno, "make event descriptors for '%s'", v->config.path);
    }
    return rc;
}

static int start_thread(struct virtio_vhost *v, struct err *e)
{
    v->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (v->wake_fd < 0)
        return err_set(e, errno, "make an event descriptor for '%s'", v->config.path);
    int rc = thread_start(&v->thread, "doppel-vhost", vhost_run, v);
    if (rc != 0)
        return err_set(e, -rc, "start the thread for '%s'", v->config.path);
    v->is_started = true;
    return 0;
}

int virtio_vhost_create(const struct virtio_vhost_config *config, struct virtio_vhost **out,
                        struct err *e)
{
    struct virtio_vhost *v = calloc(1, sizeof(*v));

    if (v == NULL)
        return err_set(e, ENOMEM, "make the device of '%s'", config->path);
    v->config = *config;
    v->kind = &kinds[config->kind];
    v->memory_fd = v->wake_fd = -1;
    v->active_pairs = 1;
    for (unsigned i = 0; i < VHOST_QUEUES_MAX; i++)
        v->kick_fds[i] = v->call_fds[i] = v->bell_fds[i] = -1;
    int rc = vhost_user_open(config->path, &v->backend, e);
    if (rc == 0)
        rc = fill_device(v, e);
    virtio_init(&v->dev);
    if (rc == 0)
        rc = make_rings(v, e);
    if (rc == 0)
        rc = start_thread(v, e);
    if (rc != 0) {
        virtio_vhost_destroy(v);
        return rc;
    }
    *out = v;
    return 0;
}

void virtio_vhost_close(struct virtio_vhost *v)
{
    if (v == NULL || !v->is_started)
        return;
    virtio_lock(&v->dev);
    v->is_closing = true;
    v->is_live = false;
    virtio_unlock(&v->dev);
    event_raise(v->wake_fd);
    pthread_join(v->thread, NULL);
    v->is_started = false;
}

static void close_if_open(int fd)
{
    if (fd >= 0)
        close(fd);
}

void virtio_vhost_destroy(struct virtio_vhost *v)
{
    if (v == NULL)
        return;
    assert(!v->is_started);
    vhost_user_close(v->backend);
    for (unsigned i = 0; i < VHOST_QUEUES_MAX; i++) {
        close_if_open(v->kick_fds[i]);
        close_if_open(v->call_fds[i]);
        close_if_open(v->bell_fds[i]);
        vhost_ring_fini(&v->rings[i]);
    }
    close_if_open(v->wake_fd);
    if (v->memory != NULL)
        memfd_unmap(v->memory, v->memory_size);
    close_if_open(v->memory_fd);
    virtio_fini(&v->dev);
    free(v);
}

uint64_t virtio_vhost_rung(const struct virtio_vhost *v)
{
    return atomic_load(&v->rung);
}

struct virtio_device *virtio_vhost_device(struct virtio_vhost *v)
{
    return &v->dev;
}
