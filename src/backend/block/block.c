/*
 * block.c - a disk: requests, and the threads that carry them out
 *
 * A few threads take requests from one list. They block in the kernel, so more of them than CPUs
 * keep a disk busy; they are made with the disk and sleep while there is nothing to do. With
 * io_uring (ring.c), what is one call on a file passes them by.
 */
#include "backend/block/block.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "backend/block/image.h"
#include "backend/block/ring.h"
#include "base/bits.h"
#include "base/log.h"
#include "os/thread.h"

#define THREADS 4

struct block {
    struct image *image;
    struct ring *ring; /* NULL: threads do it all */
    unsigned ring_ops; /* bits of enum block_op: what it is asked for */
    struct block_faults faults;
    _Atomic uint64_t size; /* only grows */

    pthread_mutex_t lock;
    pthread_cond_t has_work;
    pthread_cond_t is_quiet;
    struct block_request *first, **last; /* under lock, as the rest */
    unsigned running;                    /* requests that threads are at */
    bool is_held;                        /* no further request is begun */
    bool is_stopping;
    pthread_t threads[THREADS];
    unsigned thread_count;
};

static int check(const struct block *block, const struct block_request *r)
{
    if (r->op != BLOCK_FLUSH && (((r->offset | r->size) & (BLOCK_SECTOR - 1)) != 0 ||
                                 !range_fits(r->offset, r->size, block_size(block))))
        return -EINVAL;
    if (r->op != BLOCK_READ && r->op != BLOCK_FLUSH && block->image->is_read_only)
        return -EROFS;
    return 0;
}

static int execute(const struct block *block, const struct block_request *r)
{
    struct image *image = block->image;
    int rc = check(block, r);

    if (rc != 0)
        return rc;
    switch (r->op) {
    case BLOCK_READ:
    case BLOCK_WRITE:
        return image->ops->transfer(image, r->op == BLOCK_WRITE, r->offset, r->size, r->iov,
                                    r->iov_count);
    case BLOCK_FLUSH:
        return image->is_read_only ? 0 : image->ops->flush(image);
    case BLOCK_DISCARD:
        return image->ops->discard(image, r->offset, r->size);
    case BLOCK_WRITE_ZEROES:
        return image->ops->write_zeroes(image, r->offset, r->size, r->may_unmap);
    }
    return -EINVAL;
}

static void *block_run(void *ctx)
{
    struct block *block = ctx;

    pthread_mutex_lock(&block->lock);
    for (;;) {
        struct block_request *r = block->is_held ? NULL : block->first;
        if (r == NULL) {
            if (block->is_stopping)
                break;
            pthread_cond_wait(&block->has_work, &block->lock);
            continue;
        }
        block->first = r->next;
        if (block->first == NULL)
            block->last = &block->first;
        block->running++;
        pthread_mutex_unlock(&block->lock);
        r->done(r, execute(block, r));
        pthread_mutex_lock(&block->lock);
        if (--block->running == 0 && block->is_held)
            pthread_cond_signal(&block->is_quiet);
    }
    pthread_mutex_unlock(&block->lock);
    return NULL;
}

/* To the threads. */
static void push(void *ctx, struct block_request *request)
{
    struct block *block = ctx;

    request->next = NULL;
    pthread_mutex_lock(&block->lock);
    *block->last = request;
    block->last = &request->next;
    pthread_cond_signal(&block->has_work);
    pthread_mutex_unlock(&block->lock);
}

static bool locate(void *ctx, const struct block_request *request, struct image_place *place)
{
    const struct block *block = ctx;
    struct image *image = block->image;

    return check(block, request) == 0 && !(request->op == BLOCK_FLUSH && image->is_read_only) &&
           image->ops->locate(image, request, place);
}

void block_submit(struct block *block, struct block_request *request)
{
    if (block->ring_ops & BIT(request->op))
        ring_submit(block->ring, request);
    else
        push(block, request);
}

static int start_threads(struct block *block, const char *path, struct err *e)
{
    int rc = 0;

    while (block->thread_count < THREADS && rc == 0) {
        rc = thread_start(&block->threads[block->thread_count], "doppel-disk", block_run, block);
        block->thread_count += rc == 0;
    }
    return rc == 0 ? 0 : err_set(e, -rc, "start the threads of the disk '%s'", path);
}

/*
 * By itself the ring gets what it was measured to be better at (decision 0019): reads past the
 * page cache. Writes to a file mostly end up on threads of the kernel's, and later.
 */
static unsigned wanted_ops(const struct block_config *config)
{
    if (config->aio == BLOCK_AIO_IO_URING)
        return BLOCK_OPS_ALL;
    return config->aio == BLOCK_AIO_AUTO && config->cache == BLOCK_CACHE_NONE ? BIT(BLOCK_READ) : 0;
}

/* The ring, if it is wanted and can be had. */
static int start_ring(struct block *block, const struct block_config *config, struct err *e)
{
    struct ring_owner owner = {.locate = locate, .pass = push, .ctx = block};

    unsigned wanted = wanted_ops(config);

    if (wanted == 0)
        return 0;
    if (config->faults != NULL) {
        block->faults = *config->faults;
        owner.faults = &block->faults;
    }
    if (block->image->located_ops == 0) {
        if (config->aio == BLOCK_AIO_AUTO)
            return 0;
        return err_set(e, 0,
                       "use io_uring for the disk '%s': it is neither a file nor a block device "
                       "(aio=threads works)",
                       config->path);
    }
    int rc = ring_open(&owner, &block->ring, e);
    if (rc == 0)
        block->ring_ops = wanted & block->image->located_ops;
    if (rc == 0)
        return 0;
    if (config->aio == BLOCK_AIO_IO_URING)
        return err_prefix(e, "use io_uring for the disk '%s' (aio=threads does without)",
                          config->path);
    log_info("the disk '%s' is served by threads: io_uring is not to be had (%s)", config->path,
             strerror(-rc));
    return 0;
}

static int open_image(const struct block_config *config, struct image **out, struct err *e)
{
    struct image_config image = {
        .path = config->path,
        .format = config->format,
        .is_read_only = config->is_read_only || config->is_ephemeral,
        .cache = config->cache,
    };
    int rc = image_open(&image, out, e);

    if (rc == 0 && config->is_ephemeral && !config->is_read_only)
        rc = image_open_ephemeral(*out, out, e);
    return rc;
}

int block_open(const struct block_config *config, struct block **out, struct err *e)
{
    struct block *block = calloc(1, sizeof(*block));

    if (block == NULL)
        return err_set(e, ENOMEM, "open the disk '%s'", config->path);
    block->last = &block->first;
    int rc = open_image(config, &block->image, e);
    if (rc != 0) {
        free(block);
        return rc;
    }
    atomic_init(&block->size, block->image->size);
    pthread_mutex_init(&block->lock, NULL);
    pthread_cond_init(&block->has_work, NULL);
    pthread_cond_init(&block->is_quiet, NULL);
    rc = start_threads(block, config->path, e);
    if (rc == 0)
        rc = start_ring(block, config, e);
    if (rc != 0) {
        block_close(block);
        return rc;
    }
    *out = block;
    return 0;
}

void block_close(struct block *block)
{
    if (block == NULL)
        return;
    if (block->ring != NULL)
        ring_stop(block->ring); /* first: it passes requests on, also those that follow others */
    pthread_mutex_lock(&block->lock);
    block->is_stopping = true;
    pthread_cond_broadcast(&block->has_work);
    pthread_mutex_unlock(&block->lock);
    for (unsigned i = 0; i < block->thread_count; i++)
        pthread_join(block->threads[i], NULL);
    assert(block->first == NULL);
    ring_free(block->ring);
    image_close(block->image);
    pthread_cond_destroy(&block->is_quiet);
    pthread_cond_destroy(&block->has_work);
    pthread_mutex_destroy(&block->lock);
    free(block);
}

uint64_t block_size(const struct block *block)
{
    return atomic_load(&block->size);
}

/* Requests under way come to their end; what is submitted from now on waits. */
static void hold(struct block *block)
{
    if (block->ring != NULL)
        ring_hold(block->ring);
    pthread_mutex_lock(&block->lock);
    block->is_held = true;
    while (block->running != 0)
        pthread_cond_wait(&block->is_quiet, &block->lock);
    pthread_mutex_unlock(&block->lock);
}

static void release(struct block *block)
{
    pthread_mutex_lock(&block->lock);
    block->is_held = false;
    pthread_cond_broadcast(&block->has_work);
    pthread_mutex_unlock(&block->lock);
    if (block->ring != NULL)
        ring_release(block->ring);
}

/* What the format can do while requests are under way, or else what it can do without. */
static int grow(struct block *block, uint64_t *size, struct err *e)
{
    struct image *image = block->image;
    int rc = 0;

    if (*size != 0 && image->is_read_only)
        return err_set(e, EROFS, "resize a disk");
    if (image->ops->grow != NULL) {
        rc = image->ops->grow(image, size);
        return rc == 0 ? 0 : err_set(e, -rc, "resize a disk to %" PRIu64 " bytes", *size);
    }
    hold(block);
    if (*size != 0) /* else what it is: nobody can have changed it */
        rc = image->ops->resize(image, *size, e);
    *size = image->size;
    release(block);
    return rc;
}

int block_resize(struct block *block, uint64_t bytes, struct err *e)
{
    uint64_t old = block_size(block), size = bytes;

    if (bytes % BLOCK_SECTOR != 0)
        return err_set(e, EINVAL,
                       "resize a disk to %" PRIu64 " bytes: it has to be a multiple of %u", bytes,
                       BLOCK_SECTOR);
    if (bytes != 0 && bytes < old)
        return err_set(e, EINVAL,
                       "resize a disk of %" PRIu64 " bytes to %" PRIu64 ": it can only grow", old,
                       bytes);
    int rc = grow(block, &size, e);
    if (rc != 0)
        return rc;
    if (size < old)
        return err_set(e, EINVAL,
                       "the disk of %" PRIu64 " bytes has shrunk to %" PRIu64
                       ": the guest keeps to what it was",
                       old, size);
    atomic_store(&block->size, size);
    return 0;
}

bool block_is_read_only(const struct block *block)
{
    return block->image->is_read_only;
}

uint32_t block_physical_size(const struct block *block)
{
    return block->image->physical_size;
}

bool block_uses_io_uring(const struct block *block)
{
    return block->ring != NULL;
}
