/*
 * virtio_rng.c - entropy device
 *
 * Requests are answered where they are made, on the vCPU's thread: the host's generator costs
 * less than handing over. A notification is worth a bounded number of bytes, so that a driver
 * that asks without end still lets its CPU be interrupted; what is left waits for the next one.
 *
 * Spec: VIRTIO 1.2, 5.4.
 */
#include "dev/virtio/virtio_rng.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#include "dev/virtio/virtio.h"

#define QUEUE_SIZE 64
#define REQUEST_MAX 4096u /* bytes; the device may give less than was asked for */

struct virtio_rng {
    struct virtio_device dev;
    struct virtqueue_buffer buffers[QUEUE_SIZE];
};

/* Returns bytes given; 0 when the host has none, which the driver tries again. */
static uint32_t fill(const struct virtqueue_chain *chain)
{
    uint8_t bytes[256];
    uint32_t done = 0, wanted = (uint32_t)MIN(chain->in_size, (uint64_t)REQUEST_MAX);

    while (done < wanted) {
        size_t n = MIN(sizeof(bytes), (size_t)(wanted - done));
        ssize_t got = getrandom(bytes, n, GRND_NONBLOCK);
        if (got <= 0)
            break;
        done += (uint32_t)virtqueue_write(chain, done, bytes, (size_t)got);
    }
    return done;
}

static void rng_notify(struct virtio_device *dev, unsigned index)
{
    struct virtio_rng *rng = CONTAINER_OF(dev, struct virtio_rng, dev);
    struct virtqueue_chain chain = {.buffers = rng->buffers};

    for (unsigned n = 0; n < QUEUE_SIZE && virtio_pop(dev, index, &chain); n++)
        virtqueue_push(&dev->queues[index], &chain, fill(&chain));
    virtio_signal_queue(dev, index);
}

static const struct virtio_ops rng_ops = {.notify = rng_notify, .state_kind = VIRTIO_STATE_PLAIN};

int virtio_rng_create(struct space *memory, struct virtio_rng **out, struct err *e)
{
    struct virtio_rng *rng = calloc(1, sizeof(*rng));

    if (rng == NULL)
        return err_set(e, ENOMEM, "make the entropy device");
    rng->dev.ops = &rng_ops;
    rng->dev.name = "virtio entropy";
    rng->dev.id = VIRTIO_ID_ENTROPY;
    rng->dev.offered = VIRTIO_FEATURES_COMMON;
    rng->dev.queue_count = 1;
    rng->dev.queue_size = QUEUE_SIZE;
    rng->dev.memory = memory;
    virtio_init(&rng->dev);
    *out = rng;
    return 0;
}

void virtio_rng_destroy(struct virtio_rng *rng)
{
    if (rng == NULL)
        return;
    virtio_fini(&rng->dev);
    free(rng);
}

struct virtio_device *virtio_rng_device(struct virtio_rng *rng)
{
    return &rng->dev;
}
