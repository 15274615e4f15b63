/*
 * testing.h - a driver's side of a virtio device, for the unit tests of this folder
 *
 * The driver's RAM begins at guest address 0. Each queue has a split ring of its own in the first
 * MiB; above is the test's. What the driver puts into the rings is up to the test.
 */
#ifndef DOPPEL_DEV_VIRTIO_TESTING_H
#define DOPPEL_DEV_VIRTIO_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "dev/virtio/virtio_state.h"
#include "dev/virtio/virtqueue_ring.h"
#include "mem/space.h"

#define DRIVER_RAM (16u << 20)
#define DRIVER_DATA (1u << 20)
#define DRIVER_QUEUE_BYTES 0x4000u /* ring of a queue of up to 256 entries */

struct driver {
    uint8_t *ram;
    struct space *space;
    struct virtio_device *dev;
    uint16_t avail[VIRTIO_QUEUES_MAX], used[VIRTIO_QUEUES_MAX];
    unsigned signals[VIRTIO_QUEUES_MAX], config_signals;
};

struct driver_piece {
    uint32_t at, len;
    bool is_writable;
};

static inline void driver_on_queue(void *transport, unsigned index)
{
    ((struct driver *)transport)->signals[index]++;
}

static inline void driver_on_config(void *transport)
{
    ((struct driver *)transport)->config_signals++;
}

/* RAM and nothing else yet: the device is made with d->space. */
static inline void driver_setup(struct driver *d)
{
    *d = (struct driver){0};
    d->ram = mmap(NULL, DRIVER_RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(d->ram, MAP_FAILED);
    assert_int_equal(space_create("memory", BIT(40), &d->space, NULL), 0);
    assert_int_equal(space_add_ram(d->space, 0, d->ram, DRIVER_RAM, false, NULL), 0);
}

static inline void driver_teardown(struct driver *d)
{
    space_destroy(d->space);
    munmap(d->ram, DRIVER_RAM);
}

static inline uint32_t driver_ring(unsigned queue)
{
    return queue * DRIVER_QUEUE_BYTES;
}

static inline void driver_set_status(struct driver *d, uint8_t status)
{
    pthread_mutex_lock(&d->dev->lock);
    virtio_set_status(d->dev, status);
    pthread_mutex_unlock(&d->dev->lock);
}

/* Reset it, accept `features` (VERSION_1 is added), enable all queues and begin. */
static inline void driver_start(struct driver *d, struct virtio_device *dev, uint64_t features)
{
    static const struct virtio_transport_ops ops = {driver_on_queue, driver_on_config};

    d->dev = dev;
    dev->transport_ops = &ops;
    dev->transport = d;
    driver_set_status(d, 0);
    driver_set_status(d, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
    features |= VIRTIO_F_VERSION_1;
    pthread_mutex_lock(&dev->lock);
    virtio_set_driver_features(dev, 0, (uint32_t)features);
    virtio_set_driver_features(dev, 1, (uint32_t)(features >> 32));
    pthread_mutex_unlock(&dev->lock);
    driver_set_status(d, dev->status | VIRTIO_STATUS_FEATURES_OK);
    assert_true(dev->status & VIRTIO_STATUS_FEATURES_OK);
    for (unsigned i = 0; i < dev->queue_count; i++) {
        struct virtqueue *q = &dev->queues[i];
        memset(d->ram + driver_ring(i), 0, DRIVER_QUEUE_BYTES);
        q->descriptors = driver_ring(i);
        q->driver = driver_ring(i) + 0x1000;
        q->device = driver_ring(i) + 0x2000;
        d->avail[i] = d->used[i] = 0;
        d->signals[i] = 0;
        pthread_mutex_lock(&dev->lock);
        virtio_enable_queue(dev, i);
        pthread_mutex_unlock(&dev->lock);
        assert_true(q->is_enabled);
    }
    driver_set_status(d, dev->status | VIRTIO_STATUS_DRIVER_OK);
}

/* Make a chain available; its descriptors begin at `first`, which is its identifier too. */
static inline void driver_offer(struct driver *d, unsigned queue, unsigned first,
                                const struct driver_piece *pieces, unsigned count)
{
    unsigned size = d->dev->queues[queue].size;
    uint8_t *ring = d->ram + driver_ring(queue);

    for (unsigned i = 0; i < count; i++) {
        unsigned at = (first + i) % size;
        uint8_t *p = ring + (size_t)at * DESCRIPTOR_SIZE;
        store_le64(p, pieces[i].at);
        store_le32(p + 8, pieces[i].len);
        store_le16(p + 12, (uint16_t)((pieces[i].is_writable ? DESC_WRITE : 0) |
                                      (i + 1 < count ? DESC_NEXT : 0)));
        store_le16(p + 14, (uint16_t)((at + 1) % size));
    }
    store_le16(ring + 0x1000 + AVAIL_RING + 2 * (d->avail[queue] % size), (uint16_t)first);
    d->avail[queue]++;
    store_le16(ring + 0x1000 + AVAIL_INDEX, d->avail[queue]);
}

static inline void driver_notify(struct driver *d, unsigned queue)
{
    pthread_mutex_lock(&d->dev->lock);
    virtio_notify(d->dev, queue);
    pthread_mutex_unlock(&d->dev->lock);
}

/* Ring the queue's bell instead. */
static inline void driver_ring_bell(struct driver *d, unsigned queue)
{
    uint64_t one = 1;

    assert_int_equal(write(d->dev->ops->bell(d->dev, queue), &one, sizeof(one)), sizeof(one));
}

/* The next chain that was given back: its identifier and what was written, or -1. */
static inline int driver_used(struct driver *d, unsigned queue, uint32_t *len)
{
    const uint8_t *ring = d->ram + driver_ring(queue) + 0x2000;
    unsigned size = d->dev->queues[queue].size;

    if (load_le16(ring + USED_INDEX) == d->used[queue])
        return -1;
    const uint8_t *entry = ring + USED_RING + USED_SIZE * (d->used[queue]++ % size);
    if (len != NULL)
        *len = load_le32(entry + 4);
    return (int)load_le32(entry);
}

/* ---- another device in its place ---- */

/* Once what the device has is back. */
static inline void driver_take_state(struct driver *d, struct virtio_state *state)
{
    struct err e;

    if (virtio_quiesce(d->dev, UINT64_C(60) * 1000000000, &e) != 0)
        fail_msg("%s", e.msg);
    memset(state, 0xa5, sizeof(*state)); /* what is not filled in shows */
    if (virtio_get_state(d->dev, state, &e) != 0)
        fail_msg("%s", e.msg);
}

/* The driver has this device from now on, which was made as the last one was. */
static inline void driver_put_state(struct driver *d, struct virtio_device *dev,
                                    const struct virtio_state *state)
{
    static const struct virtio_transport_ops ops = {driver_on_queue, driver_on_config};
    struct err e;

    d->dev = dev;
    dev->transport_ops = &ops;
    dev->transport = d;
    assert_int_equal(virtio_quiesce(dev, 0, &e), 0);
    if (virtio_set_state(dev, state, &e) != 0)
        fail_msg("%s", e.msg);
    virtio_resume(dev);
}

/* A state that no device could have had is refused, in words that tell the field. */
static inline void driver_refuses(struct virtio_device *dev, const struct virtio_state *state,
                                  const char *says)
{
    struct err e = {0};

    assert_int_equal(virtio_quiesce(dev, 0, &e), 0);
    assert_int_not_equal(virtio_set_state(dev, state, &e), 0);
    if (strstr(e.msg, says) == NULL)
        fail_msg("'%s' should say '%s'", e.msg, says);
    assert_int_equal(dev->status, 0);
}

/* What is done to `s`, a copy of the good state, makes it one that is refused. */
#define DRIVER_REFUSES(dev, good, s, what, says)                                                   \
    do {                                                                                           \
        (s) = (good);                                                                              \
        what;                                                                                      \
        driver_refuses(dev, &(s), says);                                                           \
    } while (0)

static inline bool driver_needs_reset(const struct driver *d)
{
    return (d->dev->status & VIRTIO_STATUS_NEEDS_RESET) != 0;
}

#endif
