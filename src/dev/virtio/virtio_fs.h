/*
 * virtio_fs.h - file system device: a folder of the host, shared with the guest
 *
 * Requests go to the server of the folder (backend/share) as they are taken from the queues, and
 * come back on its threads. Until the last has come back a reset is not complete.
 *
 * Threads: created and destroyed by one thread; everything else as virtio.h says.
 *
 * Spec: VIRTIO 1.2, 5.11.
 */
#ifndef DOPPEL_DEV_VIRTIO_VIRTIO_FS_H
#define DOPPEL_DEV_VIRTIO_VIRTIO_FS_H

#include "base/err.h"

struct share;
struct space;
struct virtio_device;
struct virtio_fs;

#define VIRTIO_FS_TAG_MAX 36

struct virtio_fs_config {
    const char *name; /* for messages; outlives the device */
    struct space *memory;
    struct share *share; /* outlives the device, but for share_close */
    const char *tag;     /* what the guest mounts it by: 1 to VIRTIO_FS_TAG_MAX bytes */
};

int virtio_fs_create(const struct virtio_fs_config *config, struct virtio_fs **out, struct err *e);

/* NULL is allowed. After the share was closed, and after its transport. */
void virtio_fs_destroy(struct virtio_fs *fs);

struct virtio_device *virtio_fs_device(struct virtio_fs *fs);

#endif
