/*
 * virtio_net.h - network device
 *
 * Frames go to and come from a network backend (backend/net), on whose thread they are copied.
 * Pairs of queues and a control queue; frames that a flow receives come on the pair that it sends
 * on. A backend with several queues serves the pairs in turn, pair n by queue n modulo their
 * number, and chooses itself where a flow comes.
 *
 * Threads: created and destroyed by one thread; everything else as virtio.h says.
 *
 * Spec: VIRTIO 1.2, 5.1.
 */
#ifndef DOPPEL_DEV_VIRTIO_VIRTIO_NET_H
#define DOPPEL_DEV_VIRTIO_VIRTIO_NET_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct netdev;
struct space;
struct virtio_device;
struct virtio_net;

#define VIRTIO_NET_PAIRS_MAX 8

struct virtio_net_config {
    const char *name; /* for messages; outlives the device */
    struct space *memory;
    /* queues of the backend, 1..NETDEV_QUEUES_MAX, not more than pairs; not started yet; they
     * outlive the device, but for netdev_close */
    struct netdev *const *nets;
    unsigned net_count;
    uint8_t mac[6];
    unsigned pair_count; /* of queues, 1..VIRTIO_NET_PAIRS_MAX */
};

int virtio_net_create(const struct virtio_net_config *config, struct virtio_net **out,
                      struct err *e);

/* Let frames flow: from when the transport is there. */
int virtio_net_start(struct virtio_net *net, struct err *e);

/* NULL is allowed. After the backend was closed, and after its transport. */
void virtio_net_destroy(struct virtio_net *net);

/* The cable is plugged in, or not. Any thread. */
void virtio_net_set_link(struct virtio_net *net, bool is_up);

struct virtio_device *virtio_net_device(struct virtio_net *net);

#endif
