/*
 * socket.c - an interface on a software switch (switch.h)
 *
 * A switch that goes away takes nobody with it: frames are lost, as without a cable, and the socket
 * is tried again every second until a switch is there. While it does not take a frame at once, the
 * guest's next ones wait in its queue; when it takes none for a while, they are lost until it does.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "backend/net/netdev_impl.h"
#include "backend/net/switch.h"
#include "base/bits.h"
#include "base/clock.h"
#include "base/log.h"

_Static_assert(sizeof(struct netdev_header) == SWITCH_HEADER, "the protocol's header");

#define RETRY_NS UINT64_C(1000000000)
#define PATIENCE_MS 100 /* for a switch that takes nothing */
#define RECEIVE_BUDGET 64

struct socket_net {
    struct netdev net; /* first */
    struct sockaddr_un addr;
    int fd; /* -1: no switch is there */
    uint64_t retry_ns;
    bool is_stuck; /* the switch had PATIENCE_MS and took nothing */
    uint8_t in[SWITCH_HEADER + NETDEV_FRAME_MAX];
};

static struct socket_net *socket_of(struct netdev *net)
{
    return CONTAINER_OF(net, struct socket_net, net);
}

/* 0 or -errno. */
static int socket_connect(struct socket_net *s)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return -errno;
    if (connect(fd, (const struct sockaddr *)&s->addr, sizeof(s->addr)) != 0 ||
        send(fd, SWITCH_HELLO, sizeof(SWITCH_HELLO), MSG_NOSIGNAL) < 0) {
        int code = errno;
        close(fd);
        return -code;
    }
    s->fd = fd;
    s->is_stuck = false;
    return 0;
}

static void socket_lost(struct socket_net *s)
{
    log_warn("the switch at '%s' is gone; the network comes back with it", s->addr.sun_path);
    close(s->fd);
    s->fd = -1;
    s->retry_ns = clock_now_ns() + RETRY_NS;
}

static void socket_retry(struct socket_net *s)
{
    if (clock_now_ns() < s->retry_ns)
        return;
    if (socket_connect(s) == 0)
        log_warn("the switch at '%s' is back", s->addr.sun_path);
    else
        s->retry_ns = clock_now_ns() + RETRY_NS;
}

static void socket_receive(struct socket_net *s)
{
    for (unsigned i = 0; i < RECEIVE_BUDGET; i++) {
        ssize_t n = recv(s->fd, s->in, sizeof(s->in), MSG_TRUNC);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            socket_lost(s);
            return;
        }
        if ((size_t)n < SWITCH_HEADER || (size_t)n > sizeof(s->in))
            continue;
        struct netdev_header header;
        memcpy(&header, s->in, sizeof(header));
        netdev_deliver(&s->net, &header, s->in + SWITCH_HEADER, (size_t)n - SWITCH_HEADER);
    }
}

/* Milliseconds until the next try, at least 1: none is made too early. */
static int socket_retry_ms(const struct socket_net *s)
{
    uint64_t now_ns = clock_now_ns();

    return now_ns < s->retry_ns ? (int)((s->retry_ns - now_ns) / 1000000) + 1 : 1;
}

static void socket_serve(struct netdev *net)
{
    struct socket_net *s = socket_of(net);
    /* what the guest has no room for stays with the switch, which has bounds of its own */
    bool has_room = net->backlog_count < NETDEV_BACKLOG / 2;
    struct pollfd fds[2] = {{.fd = net->event_fd, .events = POLLIN},
                            {.fd = s->fd, .events = has_room ? POLLIN : 0}};

    if (poll(fds, ARRAY_SIZE(fds), s->fd < 0 ? socket_retry_ms(s) : -1) < 0)
        return;
    if (s->fd < 0)
        socket_retry(s);
    else if (fds[1].revents != 0)
        socket_receive(s);
}

static bool socket_can_send(struct socket_net *s)
{
    struct pollfd fd = {.fd = s->fd, .events = POLLOUT};

    s->is_stuck = poll(&fd, 1, s->is_stuck ? 0 : PATIENCE_MS) <= 0;
    return !s->is_stuck;
}

static void socket_send(struct netdev *net, const struct netdev_header *header, uint8_t *frame,
                        size_t len)
{
    struct socket_net *s = socket_of(net);
    struct iovec parts[2] = {{(void *)(uintptr_t)header, sizeof(*header)}, {frame, len}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = ARRAY_SIZE(parts)};

    if (s->fd < 0)
        return;
    while (sendmsg(s->fd, &message, MSG_NOSIGNAL) < 0) {
        if (errno == EINTR)
            continue;
        if (errno == EPIPE || errno == ECONNRESET) {
            socket_lost(s);
            return;
        }
        if (errno != EAGAIN || !socket_can_send(s)) {
            net->dropped++;
            return;
        }
    }
}

static void socket_close(struct netdev *net)
{
    struct socket_net *s = socket_of(net);

    if (s->fd >= 0)
        close(s->fd);
    free(s);
}

static const struct netdev_ops socket_ops = {
    .serve = socket_serve, .send = socket_send, .close = socket_close};

int netdev_socket_open(const char *path, unsigned mtu, struct netdev **out, struct err *e)
{
    struct socket_net *s = calloc(1, sizeof(*s));

    if (s == NULL)
        return err_set(e, ENOMEM, "make a network interface on a switch");
    s->fd = -1;
    s->addr.sun_family = AF_UNIX;
    int rc = 0;
    if (strlen(path) >= sizeof(s->addr.sun_path))
        rc = err_set(e, ENAMETOOLONG, "connect to the switch '%s' (at most %zu bytes)", path,
                     sizeof(s->addr.sun_path) - 1);
    if (rc == 0)
        rc = netdev_init(&s->net, &socket_ops, e);
    if (rc != 0) {
        free(s);
        return rc;
    }
    strcpy(s->addr.sun_path, path);
    s->net.mtu = mtu != 0 ? mtu : NETDEV_MTU_DEFAULT;
    /* between machines nothing needs to be done: who receives a frame takes it so, or finishes it
     */
    s->net.takes = NETDEV_TAKES_CHECKSUM | NETDEV_TAKES_TCP4 | NETDEV_TAKES_TCP6 |
                   NETDEV_TAKES_UDP | NETDEV_TAKES_ECN;
    rc = socket_connect(s);
    if (rc == -ENOENT || rc == -ECONNREFUSED)
        rc = err_set(e, -rc, "connect to the switch at '%s'; 'doppel switch %s' starts one", path,
                     path);
    else if (rc != 0)
        rc = err_set(e, -rc, "connect to the switch at '%s'", path);
    if (rc != 0) {
        netdev_close(&s->net);
        return rc;
    }
    *out = &s->net;
    return 0;
}
