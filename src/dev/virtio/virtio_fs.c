/*
 * virtio_fs.c - file system device
 *
 * Invariant: a request is either free, or out with the share; what is out is counted, and a reset
 * waits for the count to reach 0. Then the share forgets what the driver knew of it.
 *
 * Spec: VIRTIO 1.2, 5.11.
 */
#include "dev/virtio/virtio_fs.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/share/share.h"
#include "dev/virtio/virtio.h"

/* A request has a descriptor for each page of its data, and a few more. */
#define QUEUE_SIZE 1024
#define REQUESTS_MAX (64 + SHARE_WAITS_MAX)
enum { QUEUE_URGENT, QUEUE_REQUESTS, QUEUE_COUNT };

/* Configuration (5.11.4). */
enum { CONFIG_TAG = 0, CONFIG_QUEUE_COUNT = 36, CONFIG_SIZE = 40 };

_Static_assert(QUEUE_SIZE <= SHARE_IOV_MAX, "a chain is a list of pieces");

struct fs_request {
    struct share_request share;
    struct virtio_fs *fs;
    unsigned queue;
    struct virtqueue_chain chain;
    struct fs_request *next_free;
    struct virtqueue_buffer buffers[QUEUE_SIZE];
    struct iovec iov[QUEUE_SIZE];
};

struct virtio_fs {
    struct virtio_device dev;
    struct share *share;

    /* under dev.lock */
    struct fs_request *requests, *free;
    unsigned out_count;
    bool is_starved; /* a queue was left because no request was free */
};

static void take_requests(struct virtio_fs *fs, unsigned index);

/* On one of the share's threads. */
static void share_done(struct share_request *share, uint32_t written)
{
    struct fs_request *r = CONTAINER_OF(share, struct fs_request, share);
    struct virtio_fs *fs = r->fs;

    virtio_lock(&fs->dev);
    if (--fs->out_count == 0 && fs->dev.is_quiesced)
        virtio_drained(&fs->dev);
    if (!fs->dev.is_resetting) {
        virtqueue_push(&fs->dev.queues[r->queue], &r->chain, written);
        virtio_signal_queue(&fs->dev, r->queue);
    }
    r->next_free = fs->free;
    fs->free = r;
    if (fs->dev.is_resetting && fs->out_count == 0) {
        share_reset(fs->share);
        virtio_reset_done(&fs->dev);
    } else if (fs->is_starved) {
        fs->is_starved = false;
        for (unsigned i = 0; i < QUEUE_COUNT; i++)
            take_requests(fs, i);
    }
    virtio_unlock(&fs->dev);
}

/* ---- under the lock ---- */

static void submit(struct fs_request *r, unsigned queue)
{
    const struct virtqueue_chain *chain = &r->chain;
    unsigned count = chain->out_count + chain->in_count;

    for (unsigned i = 0; i < count; i++)
        r->iov[i] = (struct iovec){chain->buffers[i].host, chain->buffers[i].len};
    r->queue = queue;
    r->share.in = r->iov;
    r->share.in_count = chain->out_count;
    r->share.in_size = chain->out_size;
    r->share.out = r->iov + chain->out_count;
    r->share.out_count = chain->in_count;
    r->share.out_size = chain->in_size;
    r->share.is_urgent = queue == QUEUE_URGENT;
    r->fs->out_count++;
    share_submit(r->fs->share, &r->share);
}

static void take_requests(struct virtio_fs *fs, unsigned index)
{
    struct virtio_device *dev = &fs->dev;
    struct virtqueue *q = &dev->queues[index];

    do {
        virtqueue_set_notify(q, false);
        for (struct fs_request *r; (r = fs->free) != NULL && virtio_pop(dev, index, &r->chain);) {
            fs->free = r->next_free;
            submit(r, index);
        }
        if (fs->free == NULL) { /* whoever completes one goes on here */
            fs->is_starved = true;
            return;
        }
    } while (virtio_may_take(dev) && virtqueue_set_notify(q, true));
}

static void fs_notify(struct virtio_device *dev, unsigned index)
{
    take_requests(CONTAINER_OF(dev, struct virtio_fs, dev), index);
}

static bool fs_reset(struct virtio_device *dev)
{
    struct virtio_fs *fs = CONTAINER_OF(dev, struct virtio_fs, dev);

    fs->is_starved = false;
    if (fs->out_count != 0) {
        share_stop_waiting(fs->share);
        return false;
    }
    share_reset(fs->share);
    return true;
}

/* ---- state; under the lock ---- */

static bool fs_quiesce(struct virtio_device *dev)
{
    return CONTAINER_OF(dev, struct virtio_fs, dev)->out_count == 0;
}

/*
 * What the guest has looked up and opened are descriptors of this process. By their paths they
 * could not be found again: files are renamed and deleted while they are open.
 */
static int fs_check_carried(struct virtio_device *dev, struct err *e)
{
    if (share_has_session(CONTAINER_OF(dev, struct virtio_fs, dev)->share))
        return err_set(e, EBUSY,
                       "take the state of the shared folder '%s', which the guest has mounted; "
                       "unmount it there first",
                       dev->name);
    return 0;
}

static const struct virtio_ops fs_ops = {
    .notify = fs_notify,
    .reset = fs_reset,
    .quiesce = fs_quiesce,
    .check_carried = fs_check_carried,
    .state_kind = VIRTIO_STATE_PLAIN,
};

/* ---- set-up ---- */

int virtio_fs_create(const struct virtio_fs_config *config, struct virtio_fs **out, struct err *e)
{
    struct virtio_fs *fs = calloc(1, sizeof(*fs));
    size_t tag_size = strlen(config->tag);

    assert(tag_size >= 1 && tag_size <= VIRTIO_FS_TAG_MAX);
    if (fs != NULL)
        fs->requests = calloc(REQUESTS_MAX, sizeof(*fs->requests));
    if (fs == NULL || fs->requests == NULL) {
        free(fs);
        return err_set(e, ENOMEM, "make the file system device of '%s'", config->name);
    }
    fs->share = config->share;
    for (unsigned i = 0; i < REQUESTS_MAX; i++) {
        struct fs_request *r = &fs->requests[i];
        r->fs = fs;
        r->share.done = share_done;
        r->chain.buffers = r->buffers;
        r->next_free = fs->free;
        fs->free = r;
    }
    fs->dev.ops = &fs_ops;
    fs->dev.name = config->name;
    fs->dev.id = VIRTIO_ID_FS;
    fs->dev.offered = VIRTIO_FEATURES_COMMON;
    fs->dev.queue_count = QUEUE_COUNT;
    fs->dev.queue_size = QUEUE_SIZE;
    fs->dev.config_size = CONFIG_SIZE;
    fs->dev.memory = config->memory;
    memcpy(fs->dev.config + CONFIG_TAG, config->tag, tag_size);
    store_le32(fs->dev.config + CONFIG_QUEUE_COUNT, QUEUE_COUNT - QUEUE_REQUESTS);
    virtio_init(&fs->dev);
    *out = fs;
    return 0;
}

void virtio_fs_destroy(struct virtio_fs *fs)
{
    if (fs == NULL)
        return;
    assert(fs->out_count == 0);
    virtio_fini(&fs->dev);
    free(fs->requests);
    free(fs);
}

struct virtio_device *virtio_fs_device(struct virtio_fs *fs)
{
    return &fs->dev;
}
