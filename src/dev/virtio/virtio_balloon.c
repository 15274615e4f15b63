/*
 * virtio_balloon.c - memory balloon
 *
 * The page numbers are the guest's: what is no RAM of its own is passed over. Pages go back to
 * the host through the space, which tells engines that their contents have changed.
 *
 * Spec: VIRTIO 1.2, 5.5.
 */
#include "dev/virtio/virtio_balloon.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/stats.h"
#include "dev/virtio/virtio.h"
#include "dev/virtio/virtio_state.h"
#include "mem/space.h"
#include "os/loop.h"

#define QUEUE_SIZE 128
#define QUEUE_COUNT_MAX 4
#define PAGE_SHIFT 12

#define BALLOON_F_STATS_VQ BIT(1)
#define BALLOON_F_DEFLATE_ON_OOM BIT(2)
#define BALLOON_F_PAGE_POISON BIT(4)
#define BALLOON_F_REPORTING BIT(5)

/* Configuration (5.5.4). */
enum { CONFIG_TARGET = 0, CONFIG_ACTUAL = 4, CONFIG_POISON = 12, CONFIG_SIZE = 16 };

/* A page number; many more in one chain than drivers send are passed over. */
#define PFN_SIZE 4u
#define PFNS_MAX 65536u
#define PFNS_AT_ONCE 256u
/* Chains that are served before the CPU has its turn. */
#define CHAINS_BUDGET 64u

/* Statistics (5.5.6.4). */
#define STAT_SIZE 10u
static const struct {
    const char *key, *title;
} stat_names[] = {
    {"swapped_in_bytes", "bytes swapped in"},
    {"swapped_out_bytes", "bytes swapped out"},
    {"major_faults", "major faults"},
    {"minor_faults", "minor faults"},
    {"free_bytes", "bytes free"},
    {"total_bytes", "bytes in all"},
    {"available_bytes", "bytes available"},
    {"disk_cache_bytes", "bytes of disk caches"},
    {"hugetlb_allocations", "huge pages allocated"},
    {"hugetlb_failures", "huge pages refused"},
};

_Static_assert(ARRAY_SIZE(stat_names) == VIRTIO_BALLOON_STATS, "state has room for all");

struct virtio_balloon {
    struct virtio_device dev;
    struct loop *loop;

    /* under dev.lock */
    uint64_t stats[ARRAY_SIZE(stat_names)];
    uint32_t known; /* bits: which of them */
    bool has_stats_chain;
    struct virtqueue_chain stats_chain; /* the driver waits until it comes back */
    struct virtqueue_buffer stats_buffers[QUEUE_SIZE];
    struct virtqueue_buffer buffers[QUEUE_SIZE];
    uint64_t inflated_pages, deflated_pages, bad_pages, reported_bytes, given_bytes;
    bool is_posted[QUEUE_COUNT_MAX]; /* more chains are served on the loop */
};

/* Queues are numbered without those that were not negotiated: 0 and 1 are always there. */
enum { QUEUE_INFLATE = 0, QUEUE_DEFLATE = 1 };

static unsigned stats_queue(const struct virtio_balloon *b)
{
    return virtio_has(&b->dev, BALLOON_F_STATS_VQ) ? 2 : QUEUE_COUNT_MAX;
}

static unsigned reporting_queue(const struct virtio_balloon *b)
{
    if (!virtio_has(&b->dev, BALLOON_F_REPORTING))
        return QUEUE_COUNT_MAX;
    return virtio_has(&b->dev, BALLOON_F_STATS_VQ) ? 3 : 2;
}

/* ---- pages; under the lock ---- */

/* Pages [pfn, pfn + count) went into the balloon. */
static void give_pages(struct virtio_balloon *b, uint64_t pfn, uint64_t count)
{
    uint64_t given = space_discard(b->dev.memory, pfn << PAGE_SHIFT, count << PAGE_SHIFT);

    b->inflated_pages += count;
    b->given_bytes += given;
    b->bad_pages += count - (given >> PAGE_SHIFT);
}

/* Neighbours go together: drivers name pages one by one, mostly downwards. */
static void give_listed(struct virtio_balloon *b, const struct virtqueue_chain *chain)
{
    uint8_t bytes[PFNS_AT_ONCE * PFN_SIZE];
    uint64_t first = 0, count = 0, limit = MIN(chain->out_size, PFNS_MAX * PFN_SIZE);

    for (uint64_t offset = 0; offset < limit;) {
        size_t n = virtqueue_read(chain, offset, bytes, sizeof(bytes));
        offset += n;
        for (size_t i = 0; i + PFN_SIZE <= n; i += PFN_SIZE) {
            uint64_t pfn = load_le32(bytes + i);
            if (count != 0 && pfn == first + count) {
                count++;
            } else if (count != 0 && pfn + 1 == first) {
                first--;
                count++;
            } else {
                if (count != 0)
                    give_pages(b, first, count);
                first = pfn;
                count = 1;
            }
        }
    }
    if (count != 0)
        give_pages(b, first, count);
}

/*
 * Free pages, as the buffers themselves. With a poison value they have to keep it: nothing but
 * zeroes comes back from the host (5.5.6.7).
 */
static void give_reported(struct virtio_balloon *b, const struct virtqueue_chain *chain)
{
    bool is_poisoned =
        virtio_has(&b->dev, BALLOON_F_PAGE_POISON) && load_le32(b->dev.config + CONFIG_POISON) != 0;

    for (unsigned i = 0; i < chain->in_count && !is_poisoned; i++) {
        const struct virtqueue_buffer *buffer = &chain->buffers[chain->out_count + i];
        b->reported_bytes += space_discard(b->dev.memory, buffer->addr, buffer->len);
    }
}

/* ---- statistics; under the lock ---- */

static void ask_for_stats(struct virtio_balloon *b)
{
    if (!b->has_stats_chain || !virtio_is_running(&b->dev))
        return;
    b->has_stats_chain = false;
    virtqueue_push(&b->dev.queues[stats_queue(b)], &b->stats_chain, 0);
    virtio_signal_queue(&b->dev, stats_queue(b));
}

static void take_stats(struct virtio_balloon *b)
{
    uint8_t bytes[64 * STAT_SIZE];

    /* there is one at a time: a driver that gives another gets the first back */
    ask_for_stats(b);
    b->stats_chain.buffers = b->stats_buffers;
    if (!virtio_pop(&b->dev, stats_queue(b), &b->stats_chain))
        return;
    b->has_stats_chain = true;
    size_t n = virtqueue_read(&b->stats_chain, 0, bytes, sizeof(bytes));
    for (size_t i = 0; i + STAT_SIZE <= n; i += STAT_SIZE) {
        unsigned tag = load_le16(bytes + i);
        if (tag >= ARRAY_SIZE(stat_names))
            continue;
        b->stats[tag] = load_le64(bytes + i + 2);
        b->known |= 1u << tag;
    }
}

/* ---- queues; under the lock ---- */

static void serve(struct virtio_balloon *b, unsigned index);

static void serve_posted(void *ctx)
{
    struct virtio_balloon *b = ctx;

    virtio_lock(&b->dev);
    for (unsigned i = 0; i < QUEUE_COUNT_MAX; i++)
        if (b->is_posted[i]) {
            b->is_posted[i] = false;
            serve(b, i);
        }
    virtio_unlock(&b->dev);
}

static void serve(struct virtio_balloon *b, unsigned index)
{
    struct virtqueue_chain chain = {.buffers = b->buffers};
    unsigned count = 0;

    if (b->is_posted[index])
        return;
    while (count < CHAINS_BUDGET && virtio_pop(&b->dev, index, &chain)) {
        if (index == QUEUE_INFLATE)
            give_listed(b, &chain);
        else if (index == QUEUE_DEFLATE)
            b->deflated_pages += chain.out_size / PFN_SIZE;
        else
            give_reported(b, &chain);
        virtqueue_push(&b->dev.queues[index], &chain, 0);
        count++;
    }
    virtio_signal_queue(&b->dev, index);
    if (count == CHAINS_BUDGET) {
        b->is_posted[index] = true;
        loop_post(b->loop, serve_posted, b);
    }
}

static void balloon_notify(struct virtio_device *dev, unsigned index)
{
    struct virtio_balloon *b = CONTAINER_OF(dev, struct virtio_balloon, dev);

    if (index == stats_queue(b))
        take_stats(b);
    else if (index <= QUEUE_DEFLATE || index == reporting_queue(b))
        serve(b, index);
}

static bool balloon_reset(struct virtio_device *dev)
{
    struct virtio_balloon *b = CONTAINER_OF(dev, struct virtio_balloon, dev);

    b->has_stats_chain = false;
    b->known = 0;
    store_le32(dev->config + CONFIG_ACTUAL, 0);
    store_le32(dev->config + CONFIG_POISON, 0);
    return true;
}

/* ---- state; under the lock ---- */

/* The driver's statistics are taken once more when the device goes on. */
static bool balloon_quiesce(struct virtio_device *dev)
{
    struct virtio_balloon *b = CONTAINER_OF(dev, struct virtio_balloon, dev);

    if (b->has_stats_chain && virtio_is_running(dev))
        virtqueue_unpop(&dev->queues[stats_queue(b)], &b->stats_chain);
    b->has_stats_chain = false;
    return true;
}

static void balloon_get_state(struct virtio_device *dev, struct virtio_state *out)
{
    const struct virtio_balloon *b = CONTAINER_OF(dev, struct virtio_balloon, dev);

    out->balloon.known = (uint16_t)b->known;
    memcpy(out->balloon.stats, b->stats, sizeof(b->stats));
}

static int balloon_check_state(struct virtio_device *dev, const struct virtio_state *state,
                               struct err *e)
{
    if (state->balloon.known >> VIRTIO_BALLOON_STATS != 0)
        return err_set(e, 0, "balloon.known is 0x%x, and there are %u statistics",
                       state->balloon.known, VIRTIO_BALLOON_STATS);
    return 0;
}

static void balloon_set_state(struct virtio_device *dev, const struct virtio_state *state)
{
    struct virtio_balloon *b = CONTAINER_OF(dev, struct virtio_balloon, dev);

    b->known = state->balloon.known;
    memcpy(b->stats, state->balloon.stats, sizeof(b->stats));
}

static const struct virtio_ops balloon_ops = {
    .notify = balloon_notify,
    .reset = balloon_reset,
    .quiesce = balloon_quiesce,
    .get_state = balloon_get_state,
    .check_state = balloon_check_state,
    .set_state = balloon_set_state,
    .state_kind = VIRTIO_STATE_BALLOON,
};

/* ---- for the host ---- */

void virtio_balloon_set_target(struct virtio_balloon *b, uint64_t bytes)
{
    virtio_lock(&b->dev);
    store_le32(b->dev.config + CONFIG_TARGET,
               (uint32_t)MIN(bytes >> PAGE_SHIFT, (uint64_t)UINT32_MAX));
    virtio_signal_config(&b->dev);
    virtio_unlock(&b->dev);
}

static void get_status(const struct virtio_balloon *b, struct virtio_balloon_status *out)
{
    *out = (struct virtio_balloon_status){
        .has_driver = virtio_is_running(&b->dev),
        .target_bytes = (uint64_t)load_le32(b->dev.config + CONFIG_TARGET) << PAGE_SHIFT,
        .actual_bytes = (uint64_t)load_le32(b->dev.config + CONFIG_ACTUAL) << PAGE_SHIFT,
    };
}

void virtio_balloon_get_status(struct virtio_balloon *b, struct virtio_balloon_status *out)
{
    virtio_lock(&b->dev);
    get_status(b, out);
    virtio_unlock(&b->dev);
}

void virtio_balloon_report_stats(struct virtio_balloon *b, struct stats_sink *sink)
{
    struct virtio_balloon_status status;

    virtio_lock(&b->dev);
    get_status(b, &status);
    stats_begin(sink, "balloon", -1);
    stats_put_count(sink, "target_bytes", "bytes asked for", status.target_bytes);
    stats_put_count(sink, "actual_bytes", "bytes in it", status.actual_bytes);
    stats_put_count(sink, "inflated_pages", "pages put in", b->inflated_pages);
    stats_put_count(sink, "deflated_pages", "pages taken out", b->deflated_pages);
    stats_put_count(sink, "bad_pages", "pages that were no memory", b->bad_pages);
    stats_put_count(sink, "given_bytes", "bytes given to the host", b->given_bytes);
    stats_put_count(sink, "reported_bytes", "bytes reported free", b->reported_bytes);
    if (b->known != 0)
        stats_begin(sink, "guest memory", -1);
    for (unsigned i = 0; i < ARRAY_SIZE(stat_names); i++)
        if (b->known & 1u << i)
            stats_put_count(sink, stat_names[i].key, stat_names[i].title, b->stats[i]);
    ask_for_stats(b);
    virtio_unlock(&b->dev);
}

/* ---- set-up ---- */

int virtio_balloon_create(const struct virtio_balloon_config *config, struct virtio_balloon **out,
                          struct err *e)
{
    struct virtio_balloon *b = calloc(1, sizeof(*b));

    if (b == NULL)
        return err_set(e, ENOMEM, "make the memory balloon");
    b->loop = config->loop;
    b->dev.ops = &balloon_ops;
    b->dev.name = "virtio balloon";
    b->dev.id = VIRTIO_ID_BALLOON;
    b->dev.offered = VIRTIO_FEATURES_COMMON | BALLOON_F_STATS_VQ;
    if (config->deflates_on_oom)
        b->dev.offered |= BALLOON_F_DEFLATE_ON_OOM;
    if (config->reports_free_pages)
        b->dev.offered |= BALLOON_F_REPORTING | BALLOON_F_PAGE_POISON;
    b->dev.queue_count = QUEUE_COUNT_MAX;
    b->dev.queue_size = QUEUE_SIZE;
    b->dev.config_size = CONFIG_SIZE;
    b->dev.memory = config->memory;
    virtio_init(&b->dev);
    memset(b->dev.config_rule + CONFIG_TARGET, VIRTIO_CONFIG_CARRIED, 4);
    memset(b->dev.config_write_mask + CONFIG_ACTUAL, 0xff, 4);
    memset(b->dev.config_write_mask + CONFIG_POISON, 0xff, 4);
    *out = b;
    return 0;
}

void virtio_balloon_destroy(struct virtio_balloon *b)
{
    if (b == NULL)
        return;
    virtio_fini(&b->dev);
    free(b);
}

struct virtio_device *virtio_balloon_device(struct virtio_balloon *b)
{
    return &b->dev;
}
