/*
 * virtio_vhost_internal.h - a device that another process serves, for the virtio_vhost*.c
 */
#ifndef DOPPEL_DEV_VIRTIO_VIRTIO_VHOST_INTERNAL_H
#define DOPPEL_DEV_VIRTIO_VIRTIO_VHOST_INTERNAL_H

#include <stdatomic.h>

#include "dev/virtio/vhost_ring.h"
#include "dev/virtio/virtio_state.h"
#include "dev/virtio/virtio_vhost.h"

struct vhost_user;

#define VHOST_QUEUES_MAX 8u /* that a back end serves */
#define VHOST_NET_F_MQ BIT(22)
#define VHOST_NET_QUEUE_SIZE 256

/* What the kinds of devices differ in. */
struct vhost_kind {
    uint16_t id, queue_size;
    unsigned queue_count; /* 0: as many as are wanted and there */
    unsigned config_size;
    bool has_config; /* the back end tells it */
    uint64_t passed; /* features that are the back end's, if it has them */
    uint64_t own;    /* features of ours */
    uint64_t told;   /* and those of them that a back end is told of, if it knows them */
};

struct virtio_vhost {
    struct virtio_device dev;
    struct virtio_vhost_config config;
    const struct vhost_kind *kind;

    int memory_fd; /* of the rings */
    void *memory;
    size_t memory_size, ring_stride;
    unsigned ring_count; /* queues that the back end serves, the first ones */
    int kick_fds[VHOST_QUEUES_MAX], call_fds[VHOST_QUEUES_MAX], wake_fd;
    int bell_fds[VHOST_QUEUES_MAX]; /* written to instead of a notification by the driver */
    _Atomic uint64_t rung;
    pthread_t thread;
    bool is_started; /* the thread has been */

    /* the thread's own, once it runs */
    struct vhost_user *backend; /* NULL: gone */
    bool is_ring_started[VHOST_QUEUES_MAX];

    /* under dev.lock */
    struct vhost_ring rings[VHOST_QUEUES_MAX];
    bool wants_start, wants_stop, is_up, is_live, is_closing;
    bool wants_control;    /* there may be something in the control queue */
    bool wants_park;       /* the device is to come to rest */
    bool is_parked;        /* it has: the rings are stopped, and start again when it goes on */
    unsigned active_pairs; /* NET: the driver uses these */
    struct virtqueue_buffer control_buffers[VHOST_NET_QUEUE_SIZE];
};

/* ---- virtio_vhost.c ---- */

/* The back end may have written all of it, whatever it says. Under the lock. */
void vhost_note_written(struct virtio_vhost *v, const struct virtqueue_chain *chain);
/* What the back end has used goes back to the driver. False: it broke the ring. Under the lock. */
bool vhost_give_back(struct virtio_vhost *v, unsigned index);
/* Chains that will not come back; the back end has let go of them, or is gone. Under the lock. */
void vhost_drop_chains(struct virtio_vhost *v);
/* The device's thread. */
void vhost_lose_backend(struct virtio_vhost *v, const char *why);
void vhost_stop_rings(struct virtio_vhost *v);

/* ---- virtio_vhost_state.c ---- */

/* Come to rest, or as far as it goes for now. The device's thread. */
void vhost_park(struct virtio_vhost *v);
/* As in struct virtio_ops. */
bool vhost_quiesce(struct virtio_device *dev);
void vhost_resume(struct virtio_device *dev);
int vhost_check_carried(struct virtio_device *dev, struct err *e);
void vhost_get_state(struct virtio_device *dev, struct virtio_state *out);
int vhost_check_state(struct virtio_device *dev, const struct virtio_state *state, struct err *e);
void vhost_set_state(struct virtio_device *dev, const struct virtio_state *state);

#endif
