/*
 * user.c - user-mode network: a TCP/IP stack in this process (libslirp) and the host's sockets
 *
 * libslirp belongs to the backend's thread, which sleeps in poll(2) on its sockets, the event
 * descriptor and the nearest of its timers. TCP segments of any size are packets to it: those of
 * the guest are not cut. Those for the guest are no larger than its link, because many that follow
 * each other keep both sides busy where a large one has them wait for each other.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include <slirp/libslirp.h>

#include "backend/net/netdev_impl.h"
#include "base/bits.h"
#include "base/clock.h"
#include "base/log.h"

#define POLL_MAX 1024u
#define TIMERS_MAX 8

struct user_timer {
    SlirpTimerCb fn; /* NULL: free */
    void *ctx;
    int64_t due_ms; /* -1: not armed */
};

struct user {
    struct netdev net; /* first */
    Slirp *slirp;
    struct pollfd fds[POLL_MAX];
    unsigned fd_count;
    struct user_timer timers[TIMERS_MAX];
    uint8_t frame[NETDEV_FRAME_MAX]; /* from libslirp */
};

static int64_t now_ns(void *opaque)
{
    return (int64_t)clock_now_ns();
}

/* ---- what libslirp asks of us ---- */

/* libslirp has summed up all that it sends. */
static ssize_t on_packet(const void *buf, size_t len, void *opaque)
{
    static const struct netdev_header header = {.flags = NETDEV_DATA_VALID};
    struct user *u = opaque;

    if (len <= sizeof(u->frame)) {
        memcpy(u->frame, buf, len);
        netdev_deliver(&u->net, &header, u->frame, len);
    }
    return (ssize_t)len;
}

static void on_guest_error(const char *message, void *opaque)
{
    log_guest("network: %s", message);
}

static void *timer_new(SlirpTimerCb fn, void *ctx, void *opaque)
{
    struct user *u = opaque;

    for (unsigned i = 0; i < TIMERS_MAX; i++)
        if (u->timers[i].fn == NULL) {
            u->timers[i] = (struct user_timer){.fn = fn, .ctx = ctx, .due_ms = -1};
            return &u->timers[i];
        }
    return NULL;
}

static void timer_free(void *timer, void *opaque)
{
    if (timer != NULL)
        ((struct user_timer *)timer)->fn = NULL;
}

/* `due_ms` is on the clock of now_ns. */
static void timer_mod(void *timer, int64_t due_ms, void *opaque)
{
    if (timer != NULL)
        ((struct user_timer *)timer)->due_ms = due_ms;
}

static void poll_fd_changed(int fd, void *opaque)
{
    /* descriptors are collected anew before each poll(2) */
}

static void on_notify(void *opaque)
{
    /* everything is done on one thread, which asks again before it sleeps */
}

static const SlirpCb user_callbacks = {
    .send_packet = on_packet,
    .guest_error = on_guest_error,
    .clock_get_ns = now_ns,
    .timer_new = timer_new,
    .timer_free = timer_free,
    .timer_mod = timer_mod,
    .register_poll_fd = poll_fd_changed,
    .unregister_poll_fd = poll_fd_changed,
    .notify = on_notify,
};

/* ---- waiting ---- */

static int add_poll(int fd, int events, void *opaque)
{
    struct user *u = opaque;
    short wanted = 0;

    if (u->fd_count == POLL_MAX)
        return -1;
    if (events & SLIRP_POLL_IN)
        wanted |= POLLIN;
    if (events & SLIRP_POLL_OUT)
        wanted |= POLLOUT;
    if (events & SLIRP_POLL_PRI)
        wanted |= POLLPRI;
    u->fds[u->fd_count] = (struct pollfd){.fd = fd, .events = wanted};
    return (int)u->fd_count++;
}

static int get_revents(int index, void *opaque)
{
    const struct user *u = opaque;
    int events = 0;

    if (index < 0)
        return 0;
    short got = u->fds[index].revents;
    if (got & POLLIN)
        events |= SLIRP_POLL_IN;
    if (got & POLLOUT)
        events |= SLIRP_POLL_OUT;
    if (got & POLLPRI)
        events |= SLIRP_POLL_PRI;
    if (got & POLLERR)
        events |= SLIRP_POLL_ERR;
    if (got & POLLHUP)
        events |= SLIRP_POLL_HUP;
    return events;
}

/* Milliseconds to the nearest timer, at most `timeout`. */
static uint32_t timers_limit(const struct user *u, uint32_t timeout)
{
    int64_t now = (int64_t)(clock_now_ns() / 1000000);

    for (unsigned i = 0; i < TIMERS_MAX; i++) {
        const struct user_timer *t = &u->timers[i];
        if (t->fn != NULL && t->due_ms >= 0)
            timeout = (uint32_t)MIN((int64_t)timeout, MAX(t->due_ms - now, (int64_t)0));
    }
    return timeout;
}

static void timers_run(struct user *u)
{
    int64_t now = (int64_t)(clock_now_ns() / 1000000);

    for (unsigned i = 0; i < TIMERS_MAX; i++) {
        struct user_timer *t = &u->timers[i];
        if (t->fn != NULL && t->due_ms >= 0 && t->due_ms <= now) {
            t->due_ms = -1;
            t->fn(t->ctx);
        }
    }
}

static void user_serve(struct netdev *net)
{
    struct user *u = CONTAINER_OF(net, struct user, net);
    uint32_t timeout = UINT32_MAX;

    u->fds[0] = (struct pollfd){.fd = net->event_fd, .events = POLLIN};
    u->fd_count = 1;
    slirp_pollfds_fill(u->slirp, &timeout, add_poll, u);
    timeout = timers_limit(u, timeout);
    int n = poll(u->fds, u->fd_count, timeout > INT32_MAX ? -1 : (int)timeout);
    slirp_pollfds_poll(u->slirp, n < 0, get_revents, u);
    timers_run(u);
}

/* A segment of any size is one packet to libslirp. */
static void user_send(struct netdev *net, const struct netdev_header *header, uint8_t *frame,
                      size_t len)
{
    slirp_input(CONTAINER_OF(net, struct user, net)->slirp, frame, (int)len);
}

static void user_close(struct netdev *net)
{
    struct user *u = CONTAINER_OF(net, struct user, net);

    if (u->slirp != NULL)
        slirp_cleanup(u->slirp);
    free(u);
}

static const struct netdev_ops user_ops = {
    .serve = user_serve, .send = user_send, .close = user_close};

/* ---- set-up ---- */

static struct in_addr ipv4(const char *text)
{
    struct in_addr addr;

    inet_pton(AF_INET, text, &addr);
    return addr;
}

static struct in6_addr ipv6(const char *text)
{
    struct in6_addr addr;

    inet_pton(AF_INET6, text, &addr);
    return addr;
}

static int add_forward(struct user *u, const struct netdev_forward *f, struct err *e)
{
    struct in_addr host, guest;
    char text[INET_ADDRSTRLEN];

    memcpy(&host, f->host_addr, 4);
    memcpy(&guest, f->guest_addr, 4);
    if (slirp_add_hostfwd(u->slirp, f->is_udp, host, f->host_port, guest, f->guest_port) == 0)
        return 0;
    return err_set(e, errno, "forward %s port %u of %s to the guest", f->is_udp ? "UDP" : "TCP",
                   f->host_port, inet_ntop(AF_INET, &host, text, sizeof(text)));
}

int netdev_user_open(const struct netdev_user_config *config, unsigned mtu, struct netdev **out,
                     struct err *e)
{
    struct user *u = calloc(1, sizeof(*u));
    SlirpConfig slirp = {
        .version = 1,
        .restricted = config->is_restricted,
        .in_enabled = true,
        .vnetwork = ipv4("10.0.2.0"),
        .vnetmask = ipv4("255.255.255.0"),
        .vhost = ipv4("10.0.2.2"),
        .in6_enabled = true,
        .vprefix_addr6 = ipv6("fec0::"),
        .vprefix_len = 64,
        .vhost6 = ipv6("fec0::2"),
        .vhostname = "doppel",
        .vdhcp_start = ipv4("10.0.2.15"),
        .vnameserver = ipv4("10.0.2.3"),
        .vnameserver6 = ipv6("fec0::3"),
        .if_mtu = mtu != 0 ? mtu : NETDEV_MTU_DEFAULT,
        .if_mru = mtu != 0 ? mtu : NETDEV_MTU_DEFAULT,
    };

    if (u == NULL)
        return err_set(e, ENOMEM, "make a user-mode network");
    int rc = netdev_init(&u->net, &user_ops, e);
    if (rc != 0) {
        free(u);
        return rc;
    }
    u->net.takes = NETDEV_TAKES_TCP4 | NETDEV_TAKES_TCP6 | NETDEV_TAKES_ECN;
    u->net.mtu = (unsigned)slirp.if_mtu;
    u->slirp = slirp_new(&slirp, &user_callbacks, u);
    if (u->slirp == NULL)
        rc = err_set(e, 0, "make a user-mode network: libslirp refuses");
    for (unsigned i = 0; rc == 0 && i < config->forward_count; i++)
        rc = add_forward(u, &config->forwards[i], e);
    if (rc != 0) {
        netdev_close(&u->net);
        return rc;
    }
    *out = &u->net;
    return 0;
}
