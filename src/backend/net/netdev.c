/*
 * netdev.c - the thread of a network backend, and frames that wait for the guest
 *
 * Wake-ups are not lost: is_woken is set before the descriptor is written, and cleared before the
 * client is asked, so whoever comes later writes the descriptor again.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "backend/net/netdev_impl.h"
#include "backend/net/offload.h"
#include "base/bits.h"
#include "os/event.h"
#include "os/thread.h"

/* Frames pulled before the host's sockets have their turn again. */
#define PULL_BUDGET 64

int netdev_init(struct netdev *net, const struct netdev_ops *ops, struct err *e)
{
    net->ops = ops;
    net->mtu = NETDEV_MTU_DEFAULT;
    net->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return net->event_fd >= 0 ? 0 : err_set(e, errno, "make an event descriptor for a network");
}

void netdev_wake(struct netdev *net)
{
    if (atomic_exchange(&net->is_woken, true))
        return;
    atomic_fetch_add(&net->own_wakes, 1);
    event_raise(net->event_fd);
}

int netdev_wake_fd(const struct netdev *net)
{
    return net->event_fd;
}

uint64_t netdev_rung(const struct netdev *net)
{
    uint64_t wakes = atomic_load(&net->wakes), own = atomic_load(&net->own_wakes);

    /* one of our own may not have been read yet */
    return wakes > own ? wakes - own : 0;
}

/* ---- towards the guest ---- */

static void backlog_flush(struct netdev *net)
{
    while (net->backlog_count > 0) {
        struct netdev_frame *frame = &net->backlog[net->backlog_first];
        if (!net->client->push(net->ctx, &frame->header, frame->data, frame->len))
            return;
        free(frame->data);
        net->backlog_first = (net->backlog_first + 1) % NETDEV_BACKLOG;
        net->backlog_count--;
    }
}

/* What the guest takes: to it, or behind what waits already. */
static void push_or_keep(void *ctx, const struct netdev_header *header, uint8_t *frame, size_t len)
{
    struct netdev *net = ctx;

    if (net->backlog_count == 0 && net->client->push(net->ctx, header, frame, len))
        return;
    uint8_t *copy = net->backlog_count < NETDEV_BACKLOG ? malloc(len) : NULL;
    if (copy == NULL) {
        net->dropped++;
        return;
    }
    memcpy(copy, frame, len);
    unsigned at = (net->backlog_first + net->backlog_count++) % NETDEV_BACKLOG;
    net->backlog[at] = (struct netdev_frame){.header = *header, .data = copy, .len = len};
}

void netdev_deliver(struct netdev *net, const struct netdev_header *header, uint8_t *frame,
                    size_t len)
{
    static const struct netdev_header none;

    if (len > NETDEV_FRAME_MAX)
        return;
    netdev_finish(header != NULL ? header : &none, frame, len, atomic_load(&net->accepted),
                  net->segment, push_or_keep, net);
}

void netdev_accept(struct netdev *net, unsigned takes)
{
    atomic_store(&net->accepted, takes);
    if (net->ops->accept != NULL)
        net->ops->accept(net, takes);
}

void netdev_use(struct netdev *net, bool is_used)
{
    if (net->ops->use != NULL)
        net->ops->use(net, is_used);
}

/* ---- the thread ---- */

static void send_finished(void *ctx, const struct netdev_header *header, uint8_t *frame, size_t len)
{
    struct netdev *net = ctx;

    net->ops->send(net, header, frame, len);
}

static void pull_some(struct netdev *net)
{
    for (unsigned i = 0; i < PULL_BUDGET; i++) {
        struct netdev_header header;
        size_t len = net->client->pull(net->ctx, &header, net->frame);
        if (len == 0)
            return;
        netdev_finish(&header, net->frame, len, net->takes, net->segment, send_finished, net);
    }
    netdev_wake(net); /* there may be more */
}

static void *netdev_run(void *ctx)
{
    struct netdev *net = ctx;

    while (!atomic_load(&net->is_stopping)) {
        net->ops->serve(net);
        uint64_t count = event_take(net->event_fd);
        if (count == 0)
            continue; /* woken by the host's side */
        atomic_fetch_add(&net->wakes, count);
        atomic_store(&net->is_woken, false);
        backlog_flush(net);
        pull_some(net);
    }
    return NULL;
}

int netdev_start(struct netdev *net, const struct netdev_client *client, void *ctx, struct err *e)
{
    net->client = client;
    net->ctx = ctx;
    int rc = thread_start(&net->thread, "doppel-net", netdev_run, net);
    if (rc != 0)
        return err_set(e, -rc, "start the thread of a network");
    net->is_started = true;
    return 0;
}

void netdev_close(struct netdev *net)
{
    if (net == NULL)
        return;
    if (net->is_started) {
        atomic_store(&net->is_stopping, true);
        atomic_store(&net->is_woken, false);
        netdev_wake(net);
        pthread_join(net->thread, NULL);
    }
    for (unsigned i = 0; i < net->backlog_count; i++)
        free(net->backlog[(net->backlog_first + i) % NETDEV_BACKLOG].data);
    int event_fd = net->event_fd;
    net->ops->close(net);
    close(event_fd);
}

unsigned netdev_mtu(const struct netdev *net)
{
    return net->mtu;
}
