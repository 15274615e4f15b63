/*
 * virtio_vhost.h - a virtio device that another process serves (vhost-user)
 *
 * The device has its own thread, which talks to the back end and hears of what is done; requests
 * go on from the CPU that notified. When the back end goes away the device needs a reset, and
 * nothing else suffers; once the driver has reset it, a back end is looked for anew.
 *
 * A network interface with several pairs of queues has a control queue, which is served here: it
 * says how many of the pairs the back end may use.
 *
 * Threads: created, closed and destroyed by one thread; everything else as virtio.h says.
 *
 * Spec: VIRTIO 1.2, 5.1, 5.2, 5.11; backend/vhost/vhost_user.h.
 */
#ifndef DOPPEL_DEV_VIRTIO_VIRTIO_VHOST_H
#define DOPPEL_DEV_VIRTIO_VIRTIO_VHOST_H

#include <stdint.h>

#include "base/err.h"

struct space;
struct vhost_user_region;
struct virtio_device;
struct virtio_vhost;

enum virtio_vhost_kind { VIRTIO_VHOST_DISK, VIRTIO_VHOST_NET, VIRTIO_VHOST_SHARE };

struct virtio_vhost_config {
    enum virtio_vhost_kind kind;
    const char *path; /* the back end's socket; outlives the device */
    struct space *memory;
    const struct vhost_user_region *regions; /* guest RAM; outlives the device */
    unsigned region_count;
    unsigned queues_wanted; /* DISK: queues, NET: pairs; the back end may have fewer */
    const char *tag;        /* SHARE: 1 to 36 bytes */
    uint8_t mac[6];         /* NET */
    uint16_t mtu;           /* NET; 0: the guest is told none */
};

/* Connects to the back end, which has to be there. */
int virtio_vhost_create(const struct virtio_vhost_config *config, struct virtio_vhost **out,
                        struct err *e);

/* Leave the back end. Before its transport is destroyed. NULL is allowed. */
void virtio_vhost_close(struct virtio_vhost *v);

/* NULL is allowed. After virtio_vhost_close, and after its transport. */
void virtio_vhost_destroy(struct virtio_vhost *v);

struct virtio_device *virtio_vhost_device(struct virtio_vhost *v);

/* Notifications that came by its bells. Any thread. */
uint64_t virtio_vhost_rung(const struct virtio_vhost *v);

#endif
