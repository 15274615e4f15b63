/*
 * virtio_rng.h - entropy device
 *
 * Random bytes come from the host's kernel (getrandom). There is one queue and no configuration.
 *
 * Spec: VIRTIO 1.2, 5.4.
 */
#ifndef DOPPEL_DEV_VIRTIO_VIRTIO_RNG_H
#define DOPPEL_DEV_VIRTIO_VIRTIO_RNG_H

#include "base/err.h"

struct space;
struct virtio_device;
struct virtio_rng;

int virtio_rng_create(struct space *memory, struct virtio_rng **out, struct err *e);

/* NULL is allowed. After its transport. */
void virtio_rng_destroy(struct virtio_rng *rng);

struct virtio_device *virtio_rng_device(struct virtio_rng *rng);

#endif
