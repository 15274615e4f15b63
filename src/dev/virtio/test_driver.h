/*
 * test_driver.h - the driver's side of a virtio device, for unit tests of devices
 *
 * Split rings with two descriptors a chain at the most; RAM is a memory file. Tests run with the
 * device's lock held, but where they wait.
 */
#ifndef DOPPEL_DEV_VIRTIO_TEST_DRIVER_H
#define DOPPEL_DEV_VIRTIO_TEST_DRIVER_H

#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>
#include <unistd.h>

#include "base/bits.h"
#include "dev/virtio/virtio.h"
#include "dev/virtio/virtqueue_ring.h"
#include "mem/space.h"
#include "os/memfd.h"

#define TEST_RAM_SIZE 0x100000u
#define TEST_DATA 0x20000u /* free for the test's buffers */
#define TEST_RING_SIZE 256u
#define TEST_QUEUES 5u
#define TEST_AREA(queue) (0x1000u + (queue)*0x6000u) /* descriptors, then the rings */
#define TEST_DRIVER(queue) (TEST_AREA(queue) + 0x2000u)
#define TEST_DEVICE(queue) (TEST_AREA(queue) + 0x3000u)

struct test_driver {
    uint8_t *ram;
    int ram_fd;
    struct space *space;
    struct virtio_device *dev;
    uint64_t features;      /* more than the usual, which the test negotiates */
    unsigned queues;        /* that it has set up; 0: the first two */
    uint64_t noted;         /* bytes that the space's watcher heard of */
    uint16_t noted_at_used; /* queue 0's used index when it last heard of the test's buffers */
    pthread_cond_t signalled;
    unsigned config_signals;
    uint16_t avail[TEST_QUEUES], next_descriptor[TEST_QUEUES];
};

static inline void test_driver_signal_queue(void *transport, unsigned index)
{
    pthread_cond_broadcast(&((struct test_driver *)transport)->signalled);
}

static inline void test_driver_signal_config(void *transport)
{
    ((struct test_driver *)transport)->config_signals++;
    pthread_cond_broadcast(&((struct test_driver *)transport)->signalled);
}

static inline void test_driver_note_written(void *ctx, uint64_t addr, uint64_t size)
{
    struct test_driver *t = ctx;

    __atomic_fetch_add(&t->noted, size, __ATOMIC_RELAXED);
    if (addr >= TEST_DATA)
        t->noted_at_used = load_le16(t->ram + TEST_DEVICE(0) + USED_INDEX);
}

/* RAM and its space. */
static inline void test_driver_init(struct test_driver *t)
{
    void *ram;

    *t = (struct test_driver){.ram_fd = memfd_make("test-ram", TEST_RAM_SIZE, NULL)};
    assert_true(t->ram_fd >= 0);
    assert_int_equal(memfd_map(t->ram_fd, 0, TEST_RAM_SIZE, MEMFD_READ | MEMFD_WRITE, &ram, NULL),
                     0);
    t->ram = ram;
    pthread_cond_init(&t->signalled, NULL);
    assert_int_equal(space_create("memory", BIT(40), &t->space, NULL), 0);
    assert_int_equal(space_add_ram(t->space, 0, t->ram, TEST_RAM_SIZE, false, NULL), 0);
    space_set_watcher(t->space, test_driver_note_written, t);
}

static inline void test_driver_fini(struct test_driver *t)
{
    space_destroy(t->space);
    memfd_unmap(t->ram, TEST_RAM_SIZE);
    close(t->ram_fd);
}

/* What a driver does up to DRIVER_OK. */
static inline void test_driver_start(struct test_driver *t)
{
    struct virtio_device *dev = t->dev;

    virtio_set_status(dev, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
    virtio_set_driver_features(dev, 0, (uint32_t)(VIRTIO_F_INDIRECT_DESC | t->features));
    virtio_set_driver_features(dev, 1, (uint32_t)(VIRTIO_F_VERSION_1 >> 32));
    virtio_set_status(dev, dev->status | VIRTIO_STATUS_FEATURES_OK);
    assert_true(dev->status & VIRTIO_STATUS_FEATURES_OK);
    memset(t->ram, 0, TEST_DATA);
    for (unsigned i = 0; i < MIN(dev->queue_count, t->queues != 0 ? t->queues : 2u); i++) {
        dev->queues[i].size = (uint16_t)MIN(TEST_RING_SIZE, dev->queue_size);
        dev->queues[i].descriptors = TEST_AREA(i);
        dev->queues[i].driver = TEST_DRIVER(i);
        dev->queues[i].device = TEST_DEVICE(i);
        virtio_enable_queue(dev, i);
        assert_true(dev->queues[i].is_enabled);
        t->avail[i] = t->next_descriptor[i] = 0;
    }
    virtio_set_status(dev, dev->status | VIRTIO_STATUS_DRIVER_OK);
}

/* Begin to drive a device whose model is made. Takes its lock. */
static inline void test_driver_attach(struct test_driver *t, struct virtio_device *dev)
{
    static const struct virtio_transport_ops ops = {test_driver_signal_queue,
                                                    test_driver_signal_config};

    t->dev = dev;
    dev->transport_ops = &ops;
    dev->transport = t;
    pthread_mutex_lock(&dev->lock);
    test_driver_start(t);
}

/* Reset the device, and wait as drivers do until it is. */
static inline void test_driver_reset(struct test_driver *t)
{
    virtio_set_status(t->dev, 0);
    while (virtio_get_status(t->dev) != 0) {
        pthread_mutex_unlock(&t->dev->lock);
        sched_yield();
        pthread_mutex_lock(&t->dev->lock);
    }
}

/* A chain of one readable and one writable buffer (size 0: not there), made available. */
static inline void test_driver_offer(struct test_driver *t, unsigned queue, uint32_t from,
                                     uint32_t from_size, uint32_t to, uint32_t to_size)
{
    unsigned size = t->dev->queues[queue].size, head = t->next_descriptor[queue];
    unsigned count = (from_size != 0) + (to_size != 0);

    for (unsigned i = 0; i < count; i++) {
        bool is_write = i == 1 || from_size == 0;
        uint8_t *d = t->ram + TEST_AREA(queue) + (head + i) * DESCRIPTOR_SIZE;
        store_le64(d, is_write ? to : from);
        store_le32(d + 8, is_write ? to_size : from_size);
        store_le16(d + 12,
                   (uint16_t)((is_write ? DESC_WRITE : 0) | (i + 1 < count ? DESC_NEXT : 0)));
        store_le16(d + 14, (uint16_t)(head + i + 1));
    }
    t->next_descriptor[queue] = (uint16_t)((head + 2) % size);
    store_le16(t->ram + TEST_DRIVER(queue) + AVAIL_RING + 2 * (t->avail[queue]++ % size),
               (uint16_t)head);
    ring_store16(t->ram + TEST_DRIVER(queue) + AVAIL_INDEX, t->avail[queue]);
}

/* Wait until all that was made available has come back. */
static inline void test_driver_await(struct test_driver *t, unsigned queue)
{
    while (ring_load16(t->ram + TEST_DEVICE(queue) + USED_INDEX) != t->avail[queue])
        pthread_cond_wait(&t->signalled, &t->dev->lock);
}

/* Notify, and wait. */
static inline void test_driver_wait(struct test_driver *t, unsigned queue)
{
    virtio_notify(t->dev, queue);
    test_driver_await(t, queue);
}

/* Ring the queue's bell instead. */
static inline void test_driver_ring_bell(struct test_driver *t, unsigned queue)
{
    uint64_t one = 1;

    assert_int_equal(write(t->dev->ops->bell(t->dev, queue), &one, sizeof(one)), sizeof(one));
}

/* What the device says it has written of the chain that came back last. */
static inline uint32_t test_driver_used_length(const struct test_driver *t, unsigned queue)
{
    unsigned last = (t->avail[queue] - 1u) % t->dev->queues[queue].size;

    return load_le32(t->ram + TEST_DEVICE(queue) + USED_RING + last * USED_SIZE + 4);
}

#endif
