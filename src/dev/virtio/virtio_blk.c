/*
 * virtio_blk.c - block device
 *
 * Invariant: a request is either free, or out with the host's disk; what is out is counted, and a
 * reset waits for the count to reach 0.
 *
 * Spec: VIRTIO 1.2, 5.2.
 */
#include "dev/virtio/virtio_blk.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/block/block.h"
#include "base/log.h"
#include "dev/virtio/virtio.h"
#include "dev/virtio/virtio_state.h"

/*
 * Long enough for a request of 1 MiB in scattered pages: drivers make no chain longer than the
 * queue, indirect or not. Of requests under way fewer are enough.
 */
#define QUEUE_SIZE 512
#define REQUESTS_PER_QUEUE 128
#define SEGMENTS_MAX (QUEUE_SIZE - 2) /* of data; header and status take one each */

#define BLK_F_SEG_MAX BIT(2)
#define BLK_F_RO BIT(5)
#define BLK_F_BLK_SIZE BIT(6)
#define BLK_F_FLUSH BIT(9)
#define BLK_F_TOPOLOGY BIT(10)
#define BLK_F_CONFIG_WCE BIT(11)
#define BLK_F_MQ BIT(12)
#define BLK_F_DISCARD BIT(13)
#define BLK_F_WRITE_ZEROES BIT(14)

/* Configuration (5.2.4). */
enum {
    CONFIG_CAPACITY = 0,
    CONFIG_SEG_MAX = 12,
    CONFIG_BLK_SIZE = 20,
    CONFIG_PHYSICAL_EXP = 24,
    CONFIG_MIN_IO = 26,
    CONFIG_WRITEBACK = 32,
    CONFIG_QUEUE_COUNT = 34,
    CONFIG_DISCARD_MAX = 36,
    CONFIG_DISCARD_SEGMENTS = 40,
    CONFIG_DISCARD_ALIGNMENT = 44,
    CONFIG_ZEROES_MAX = 48,
    CONFIG_ZEROES_SEGMENTS = 52,
    CONFIG_ZEROES_MAY_UNMAP = 56,
    CONFIG_SIZE = 60,
};

#define RANGE_SECTORS_MAX 0x3fffffu /* of one discard or write-zeroes: 2 GiB */

/* Requests (5.2.6). */
#define HEADER_SIZE 16
#define RANGE_SIZE 16
#define RANGE_UNMAP 1u
#define TYPE_IN 0
#define TYPE_OUT 1
#define TYPE_FLUSH 4
#define TYPE_GET_ID 8
#define TYPE_DISCARD 11
#define TYPE_WRITE_ZEROES 13
enum { STATUS_OK, STATUS_IOERR, STATUS_UNSUPP };

struct blk_request {
    struct block_request block;
    struct virtio_blk *blk;
    unsigned queue;
    bool is_write_through; /* a flush follows */
    struct virtqueue_chain chain;
    struct blk_request *next_free;
    struct virtqueue_buffer buffers[QUEUE_SIZE];
    struct iovec iov[QUEUE_SIZE];
};

struct virtio_blk {
    struct virtio_device dev;
    struct block *block;
    char serial[VIRTIO_BLK_SERIAL_MAX];

    /* under dev.lock */
    struct blk_request *requests, *free;
    unsigned out_count;
    bool is_starved; /* a queue was left because no request was free */
};

static void take_requests(struct virtio_blk *blk, unsigned index);

/* ---- completion ---- */

/*
 * Under the lock: answer, and free the request. The status is the last byte of the driver's
 * buffers, so all of them count as written.
 */
static void complete(struct blk_request *r, uint8_t status)
{
    struct virtio_blk *blk = r->blk;

    virtqueue_write(&r->chain, r->chain.in_size - 1, &status, 1);
    virtqueue_push(&blk->dev.queues[r->queue], &r->chain, (uint32_t)r->chain.in_size);
    r->next_free = blk->free;
    blk->free = r;
}

static uint8_t status_of(int result)
{
    return result == 0 ? STATUS_OK : result == -EOPNOTSUPP ? STATUS_UNSUPP : STATUS_IOERR;
}

/* On one of the disk's threads. */
static void block_done(struct block_request *block, int result)
{
    static struct log_limit limit;
    struct blk_request *r = CONTAINER_OF(block, struct blk_request, block);
    struct virtio_blk *blk = r->blk;

    if (result == 0 && r->is_write_through) {
        r->is_write_through = false;
        block->op = BLOCK_FLUSH;
        block_submit(blk->block, block);
        return;
    }
    if (result != 0 && log_limit_allows(&limit))
        log_warn("%s: a request of %llu bytes at %llu failed: %s", blk->dev.name,
                 (unsigned long long)block->size, (unsigned long long)block->offset,
                 strerror(-result));
    virtio_lock(&blk->dev);
    unsigned queue = r->queue;
    if (--blk->out_count == 0 && blk->dev.is_quiesced)
        virtio_drained(&blk->dev);
    if (blk->dev.is_resetting) {
        r->next_free = blk->free;
        blk->free = r;
        if (blk->out_count == 0)
            virtio_reset_done(&blk->dev);
    } else {
        complete(r, status_of(result));
        virtio_signal_queue(&blk->dev, queue);
        if (blk->is_starved) {
            blk->is_starved = false;
            for (unsigned i = 0; i < blk->dev.queue_count; i++)
                take_requests(blk, i);
        }
    }
    virtio_unlock(&blk->dev);
}

/* ---- requests; under the lock ---- */

/* The pieces of `count` buffers from `offset` on, `size` bytes in all; returns their number. */
static unsigned make_iov(struct iovec *iov, const struct virtqueue_buffer *buffers, unsigned count,
                         uint64_t offset, uint64_t size)
{
    unsigned n = 0;

    for (unsigned i = 0; i < count && size != 0; i++) {
        if (offset >= buffers[i].len) {
            offset -= buffers[i].len;
            continue;
        }
        size_t len = MIN(buffers[i].len - offset, size);
        iov[n++] = (struct iovec){(uint8_t *)buffers[i].host + offset, len};
        size -= len;
        offset = 0;
    }
    return n;
}

static void submit(struct blk_request *r, enum block_op op, uint64_t offset, uint64_t size)
{
    r->block.op = op;
    r->block.offset = offset;
    r->block.size = size;
    r->block.iov = r->iov;
    r->block.done = block_done;
    r->blk->out_count++;
    block_submit(r->blk->block, &r->block);
}

/* Sectors [sector, sector + size / 512) exist, and size is a whole number of them? */
static bool is_range_good(const struct virtio_blk *blk, uint64_t sector, uint64_t size)
{
    uint64_t sectors = block_size(blk->block) / BLOCK_SECTOR;

    return size % BLOCK_SECTOR == 0 && range_fits(sector, size / BLOCK_SECTOR, sectors);
}

/* Writing is write-through unless the driver can flush, or says that it need not (5.2.5.2). */
static bool is_write_through(const struct virtio_blk *blk)
{
    if (virtio_has(&blk->dev, BLK_F_CONFIG_WCE))
        return blk->dev.config[CONFIG_WRITEBACK] == 0;
    return !virtio_has(&blk->dev, BLK_F_FLUSH);
}

/* Each returns a status when the request is over at once, or -1 when it is on its way. */
static int start_read(struct blk_request *r, uint64_t sector)
{
    uint64_t size = r->chain.in_size - 1;

    if (!is_range_good(r->blk, sector, size))
        return STATUS_IOERR;
    if (size == 0)
        return STATUS_OK;
    r->block.iov_count =
        make_iov(r->iov, r->chain.buffers + r->chain.out_count, r->chain.in_count, 0, size);
    submit(r, BLOCK_READ, sector * BLOCK_SECTOR, size);
    return -1;
}

static int start_write(struct blk_request *r, uint64_t sector)
{
    uint64_t size = r->chain.out_size - HEADER_SIZE;

    if (block_is_read_only(r->blk->block) || !is_range_good(r->blk, sector, size))
        return STATUS_IOERR;
    if (size == 0)
        return STATUS_OK;
    r->is_write_through = is_write_through(r->blk);
    r->block.iov_count = make_iov(r->iov, r->chain.buffers, r->chain.out_count, HEADER_SIZE, size);
    submit(r, BLOCK_WRITE, sector * BLOCK_SECTOR, size);
    return -1;
}

/* Discard and write-zeroes name one range, as the configuration asks for (5.2.6.2). */
static int start_range(struct blk_request *r, uint32_t type)
{
    bool is_discard = type == TYPE_DISCARD;
    uint8_t range[RANGE_SIZE];

    if (!virtio_has(&r->blk->dev, is_discard ? BLK_F_DISCARD : BLK_F_WRITE_ZEROES))
        return STATUS_UNSUPP;
    if (block_is_read_only(r->blk->block) || r->chain.out_size != HEADER_SIZE + RANGE_SIZE)
        return STATUS_IOERR;
    virtqueue_read(&r->chain, HEADER_SIZE, range, sizeof(range));
    uint64_t sector = load_le64(range);
    uint32_t count = load_le32(range + 8), flags = load_le32(range + 12);
    if ((flags & ~RANGE_UNMAP) || (is_discard && flags))
        return STATUS_UNSUPP;
    if (count > RANGE_SECTORS_MAX || !is_range_good(r->blk, sector, (uint64_t)count * BLOCK_SECTOR))
        return STATUS_IOERR;
    if (count == 0)
        return STATUS_OK;
    r->block.may_unmap = flags & RANGE_UNMAP;
    r->is_write_through = !is_discard && is_write_through(r->blk);
    submit(r, is_discard ? BLOCK_DISCARD : BLOCK_WRITE_ZEROES, sector * BLOCK_SECTOR,
           (uint64_t)count * BLOCK_SECTOR);
    return -1;
}

static int get_id(struct blk_request *r)
{
    if (r->chain.in_size < 1 + VIRTIO_BLK_SERIAL_MAX)
        return STATUS_IOERR;
    virtqueue_write(&r->chain, 0, r->blk->serial, VIRTIO_BLK_SERIAL_MAX);
    return STATUS_OK;
}

static int start(struct blk_request *r)
{
    uint8_t header[HEADER_SIZE];

    if (virtqueue_read(&r->chain, 0, header, sizeof(header)) != sizeof(header))
        return STATUS_IOERR;
    uint32_t type = load_le32(header);
    uint64_t sector = load_le64(header + 8);
    switch (type) {
    case TYPE_IN:
        return start_read(r, sector);
    case TYPE_OUT:
        return start_write(r, sector);
    case TYPE_FLUSH:
        submit(r, BLOCK_FLUSH, 0, 0);
        return -1;
    case TYPE_GET_ID:
        return get_id(r);
    case TYPE_DISCARD:
    case TYPE_WRITE_ZEROES:
        return start_range(r, type);
    default:
        return STATUS_UNSUPP;
    }
}

static void take_requests(struct virtio_blk *blk, unsigned index)
{
    struct virtio_device *dev = &blk->dev;
    struct virtqueue *q = &dev->queues[index];

    do {
        virtqueue_set_notify(q, false);
        for (struct blk_request *r; (r = blk->free) != NULL && virtio_pop(dev, index, &r->chain);) {
            if (r->chain.in_size == 0) { /* nowhere to say what came of it */
                virtio_needs_reset(dev, "a request has no room for its status");
                break;
            }
            blk->free = r->next_free;
            r->queue = index;
            r->is_write_through = r->block.may_unmap = false;
            r->block.iov_count = 0;
            int status = start(r);
            if (status >= 0)
                complete(r, (uint8_t)status);
        }
    } while (virtio_may_take(dev) && blk->free != NULL && virtqueue_set_notify(q, true));
    /* a driver may use entries again that it has not got back: then there are too few */
    blk->is_starved |= blk->free == NULL;
    virtio_signal_queue(dev, index);
}

static void blk_notify(struct virtio_device *dev, unsigned index)
{
    take_requests(CONTAINER_OF(dev, struct virtio_blk, dev), index);
}

static bool blk_reset(struct virtio_device *dev)
{
    struct virtio_blk *blk = CONTAINER_OF(dev, struct virtio_blk, dev);

    dev->config[CONFIG_WRITEBACK] = 1;
    return blk->out_count == 0;
}

static bool blk_quiesce(struct virtio_device *dev)
{
    return CONTAINER_OF(dev, struct virtio_blk, dev)->out_count == 0;
}

/* A larger disk is told of as a resize is; of a smaller one the guest's data would be gone. */
static int blk_check_state(struct virtio_device *dev, const struct virtio_state *state,
                           struct err *e)
{
    uint64_t had = load_le64(state->config + CONFIG_CAPACITY);
    uint64_t has = load_le64(dev->config + CONFIG_CAPACITY);

    if (had > has)
        return err_set(e, 0, "config: the capacity is %llu sectors, and the disk has %llu",
                       (unsigned long long)had, (unsigned long long)has);
    if (state->config[CONFIG_WRITEBACK] > 1)
        return err_set(e, 0, "config: writeback is %u, not 0 or 1",
                       state->config[CONFIG_WRITEBACK]);
    return 0;
}

static void blk_config_written(struct virtio_device *dev, unsigned offset, unsigned size)
{
    /* 0 or 1 (5.2.4) */
    dev->config[CONFIG_WRITEBACK] &= 1;
}

static const struct virtio_ops blk_ops = {
    .notify = blk_notify,
    .reset = blk_reset,
    .config_written = blk_config_written,
    .quiesce = blk_quiesce,
    .check_state = blk_check_state,
    .state_kind = VIRTIO_STATE_PLAIN,
};

void virtio_blk_resized(struct virtio_blk *blk)
{
    virtio_lock(&blk->dev);
    store_le64(blk->dev.config + CONFIG_CAPACITY, block_size(blk->block) / BLOCK_SECTOR);
    virtio_signal_config(&blk->dev);
    virtio_unlock(&blk->dev);
}

/* ---- set-up ---- */

static void fill_config(struct virtio_blk *blk)
{
    uint8_t *c = blk->dev.config;
    uint32_t physical = block_physical_size(blk->block);

    store_le64(c + CONFIG_CAPACITY, block_size(blk->block) / BLOCK_SECTOR);
    memset(blk->dev.config_rule + CONFIG_CAPACITY, VIRTIO_CONFIG_OF_HOST, 8);
    store_le32(c + CONFIG_SEG_MAX, SEGMENTS_MAX);
    store_le32(c + CONFIG_BLK_SIZE, BLOCK_SECTOR);
    c[CONFIG_PHYSICAL_EXP] = (uint8_t)__builtin_ctz(physical / BLOCK_SECTOR);
    store_le16(c + CONFIG_MIN_IO, (uint16_t)(physical / BLOCK_SECTOR));
    c[CONFIG_WRITEBACK] = 1;
    blk->dev.config_write_mask[CONFIG_WRITEBACK] = 0xff;
    store_le16(c + CONFIG_QUEUE_COUNT, (uint16_t)blk->dev.queue_count);
    store_le32(c + CONFIG_DISCARD_MAX, RANGE_SECTORS_MAX);
    store_le32(c + CONFIG_DISCARD_SEGMENTS, 1);
    store_le32(c + CONFIG_DISCARD_ALIGNMENT, physical / BLOCK_SECTOR);
    store_le32(c + CONFIG_ZEROES_MAX, RANGE_SECTORS_MAX);
    store_le32(c + CONFIG_ZEROES_SEGMENTS, 1);
    c[CONFIG_ZEROES_MAY_UNMAP] = 1;
}

static void fill_device(struct virtio_blk *blk, const struct virtio_blk_config *config)
{
    struct virtio_device *dev = &blk->dev;

    dev->ops = &blk_ops;
    dev->name = config->name;
    dev->id = VIRTIO_ID_BLOCK;
    dev->offered = VIRTIO_FEATURES_COMMON | BLK_F_SEG_MAX | BLK_F_BLK_SIZE | BLK_F_FLUSH |
                   BLK_F_TOPOLOGY | BLK_F_MQ;
    if (block_is_read_only(config->block))
        dev->offered |= BLK_F_RO;
    else
        dev->offered |= BLK_F_CONFIG_WCE | BLK_F_DISCARD | BLK_F_WRITE_ZEROES;
    dev->queue_count = config->queue_count;
    dev->queue_size = QUEUE_SIZE;
    dev->config_size = CONFIG_SIZE;
    dev->memory = config->memory;
    fill_config(blk);
    virtio_init(dev);
}

int virtio_blk_create(const struct virtio_blk_config *config, struct virtio_blk **out,
                      struct err *e)
{
    struct virtio_blk *blk = calloc(1, sizeof(*blk));
    unsigned count = config->queue_count * REQUESTS_PER_QUEUE;

    assert(config->queue_count >= 1 && config->queue_count <= VIRTIO_QUEUES_MAX);
    if (blk != NULL)
        blk->requests = calloc(count, sizeof(*blk->requests));
    if (blk == NULL || blk->requests == NULL) {
        free(blk);
        return err_set(e, ENOMEM, "make a disk with %u queues", config->queue_count);
    }
    blk->block = config->block;
    if (config->serial != NULL)
        memcpy(blk->serial, config->serial, MIN(strlen(config->serial), sizeof(blk->serial)));
    for (unsigned i = 0; i < count; i++) {
        struct blk_request *r = &blk->requests[i];
        r->blk = blk;
        r->chain.buffers = r->buffers;
        r->next_free = blk->free;
        blk->free = r;
    }
    fill_device(blk, config);
    *out = blk;
    return 0;
}

void virtio_blk_destroy(struct virtio_blk *blk)
{
    if (blk == NULL)
        return;
    assert(blk->out_count == 0);
    virtio_fini(&blk->dev);
    free(blk->requests);
    free(blk);
}

struct virtio_device *virtio_blk_device(struct virtio_blk *blk)
{
    return &blk->dev;
}
