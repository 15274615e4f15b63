/*
 * virtio_blk.h - block device
 *
 * Requests go to the host's disk (backend/block) as they are taken from the queues, and come back
 * on its threads; any number of queues work at once. Until the last has come back a reset is not
 * complete.
 *
 * Threads: created and destroyed by one thread; everything else as virtio.h says.
 *
 * Spec: VIRTIO 1.2, 5.2.
 */
#ifndef DOPPEL_DEV_VIRTIO_VIRTIO_BLK_H
#define DOPPEL_DEV_VIRTIO_VIRTIO_BLK_H

#include "base/err.h"

struct block;
struct space;
struct virtio_blk;
struct virtio_device;

#define VIRTIO_BLK_SERIAL_MAX 20

struct virtio_blk_config {
    const char *name; /* for messages; outlives the device */
    struct space *memory;
    struct block *block; /* outlives the device */
    const char *serial;  /* up to VIRTIO_BLK_SERIAL_MAX characters; NULL: none */
    unsigned queue_count;
};

int virtio_blk_create(const struct virtio_blk_config *config, struct virtio_blk **out,
                      struct err *e);

/* NULL is allowed. After its transport; waits for requests under way. */
void virtio_blk_destroy(struct virtio_blk *blk);

/* The host's disk has another size: tell the driver. Any thread. */
void virtio_blk_resized(struct virtio_blk *blk);

struct virtio_device *virtio_blk_device(struct virtio_blk *blk);

#endif
