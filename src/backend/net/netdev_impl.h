/*
 * netdev_impl.h - a network backend's thread and its table, for the files of this folder
 */
#ifndef DOPPEL_BACKEND_NET_NETDEV_IMPL_H
#define DOPPEL_BACKEND_NET_NETDEV_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "backend/net/netdev.h"

/* Frames that the guest has no room for wait in order; more are dropped, as on a wire. */
#define NETDEV_BACKLOG 256u

struct netdev_frame {
    uint8_t *data;
    size_t len;
};

struct netdev_ops {
    /* Serve what is ready and wait for more, or for the event descriptor. On the thread. */
    void (*serve)(struct netdev *net);
    /* A frame from the guest. On the thread. */
    void (*send)(struct netdev *net, const uint8_t *frame, size_t len);
    void (*close)(struct netdev *net);
};

struct netdev {
    const struct netdev_ops *ops;
    unsigned mtu;
    const struct netdev_client *client;
    void *ctx;
    int event_fd; /* readable: woken, or to stop */
    _Atomic bool is_woken, is_stopping;
    pthread_t thread;
    bool is_started;

    /* the thread's own */
    struct netdev_frame backlog[NETDEV_BACKLOG];
    unsigned backlog_first, backlog_count;
    uint64_t dropped;
    uint8_t frame[NETDEV_FRAME_MAX];
};

int netdev_init(struct netdev *net, const struct netdev_ops *ops, struct err *e);

/* A frame for the guest arrived. On the thread. */
void netdev_deliver(struct netdev *net, const uint8_t *frame, size_t len);

#endif
