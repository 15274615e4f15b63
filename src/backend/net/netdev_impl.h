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
    struct netdev_header header;
    uint8_t *data;
    size_t len;
};

struct netdev_ops {
    /* Serve what is ready and wait for more, or for the event descriptor. On the thread. */
    void (*serve)(struct netdev *net);
    /*
     * A frame from the guest, of at most NETDEV_FRAME_MAX bytes, with nothing undone but what
     * net->takes says. The backend may change it. On the thread.
     */
    void (*send)(struct netdev *net, const struct netdev_header *header, uint8_t *frame,
                 size_t len);
    /*
     * The guest takes `takes` undone in what is delivered; what comes with more is finished
     * before the guest sees it. NULL: no matter. Any thread, the client's lock held.
     */
    void (*accept)(struct netdev *net, unsigned takes);
    /* See netdev_use. NULL: there is one queue. Any thread, the client's lock held. */
    void (*use)(struct netdev *net, bool is_used);
    void (*close)(struct netdev *net);
};

struct netdev {
    const struct netdev_ops *ops;
    unsigned mtu;
    unsigned takes; /* what `send` takes undone: NETDEV_TAKES_*; set before it is started */
    const struct netdev_client *client;
    void *ctx;
    int event_fd; /* readable: woken, or to stop */
    _Atomic bool is_woken, is_stopping;
    _Atomic uint64_t own_wakes, wakes; /* written by netdev_wake; read, whoever wrote them */
    _Atomic unsigned accepted;         /* what the guest takes undone */
    pthread_t thread;
    bool is_started;

    /* the thread's own */
    struct netdev_frame backlog[NETDEV_BACKLOG];
    unsigned backlog_first, backlog_count;
    uint64_t dropped;
    uint8_t frame[NETDEV_FRAME_MAX];   /* pulled */
    uint8_t segment[NETDEV_FRAME_MAX]; /* cut from it, or from one that is delivered */
};

int netdev_init(struct netdev *net, const struct netdev_ops *ops, struct err *e);

/*
 * A frame for the guest arrived; `header` NULL: with nothing undone. With a header that makes no
 * sense it is lost. It is changed. On the thread.
 */
void netdev_deliver(struct netdev *net, const struct netdev_header *header, uint8_t *frame,
                    size_t len);

#endif
