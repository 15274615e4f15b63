/*
 * switch.c - a software switch on a Unix socket
 *
 * The table of addresses has buckets; an entry is where its address hashes to, or nowhere. A live
 * entry is never pushed out by another, and no port has more than SWITCH_ADDRESSES_MAX of them:
 * what is not in the table goes to all ports.
 *
 * The lock file beside the socket is held while the switch lives. Whoever holds it may remove the
 * socket; it is removed only by its holder, who checks that it is still the one under its name.
 *
 * Spec: IEEE 802.1D-2004, 7.8 and 7.9 (learning, ageing); unix(7).
 */
#include "backend/net/switch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "backend/net/netdev.h"
#include "base/bits.h"
#include "base/clock.h"
#include "base/log.h"
#include "os/loop.h"

#define SWITCH_ADDRESSES_MAX 64u /* of one port */
#define SWITCH_BUCKETS 1024u     /* a power of 2 */
#define SWITCH_BUCKET_SIZE 8u    /* twice what all ports can have */
#define SWITCH_AGE_NS                                                                              \
    300000000000u /* an address that was not heard of for so long is forgotten                     \
                   */
#define SWITCH_QUEUE_BYTES (1u << 20)
#define SWITCH_QUEUE_FRAMES 1024u
#define SWITCH_BUDGET 32 /* frames from one port before the others have their turn */

#define ETHERNET_HEADER 14u
#define MESSAGE_MIN (SWITCH_HEADER + ETHERNET_HEADER)
#define MESSAGE_MAX (SWITCH_HEADER + NETDEV_FRAME_MAX)

struct switch_message {
    struct switch_message *next;
    size_t len;
    uint8_t bytes[];
};

struct switch_port {
    struct netswitch *owner;
    int fd; /* -1: free */
    struct loop_fd *watch;
    bool is_greeted;
    unsigned address_count; /* in the table */
    struct switch_message *first, **last;
    unsigned queued;
    size_t queued_bytes;
};

struct switch_entry {
    uint64_t seen_ns; /* 0: free */
    uint8_t addr[6];
    uint16_t port;
};

struct netswitch {
    struct loop *loop;
    struct sockaddr_un addr;
    char lock_path[sizeof(((struct sockaddr_un *)0)->sun_path) + 8];
    int lock_fd, listen_fd;
    struct loop_fd *listen_watch;
    struct netswitch_stats stats;
    uint64_t hash_key;
    struct switch_port ports[SWITCH_PORTS_MAX];
    struct switch_entry table[SWITCH_BUCKETS][SWITCH_BUCKET_SIZE];
    uint8_t message[MESSAGE_MAX];
};

/* ---- addresses ---- */

static struct switch_entry *switch_bucket(struct netswitch *s, const uint8_t addr[6])
{
    uint64_t h = s->hash_key;

    for (unsigned i = 0; i < 6; i++)
        h = (h ^ addr[i]) * UINT64_C(0x100000001b3);
    h ^= h >> 29;
    return s->table[(h * UINT64_C(0x9e3779b97f4a7c15)) >> 54 & (SWITCH_BUCKETS - 1)];
}

static bool entry_is_live(const struct switch_entry *entry, uint64_t now_ns)
{
    return entry->seen_ns != 0 && now_ns - entry->seen_ns < SWITCH_AGE_NS;
}

static void entry_free(struct netswitch *s, struct switch_entry *entry)
{
    if (entry->seen_ns != 0)
        s->ports[entry->port].address_count--;
    entry->seen_ns = 0;
}

/* The port that leads to `addr`, or NULL when it is not known. */
static struct switch_port *switch_find(struct netswitch *s, const uint8_t addr[6], uint64_t now_ns)
{
    struct switch_entry *bucket = switch_bucket(s, addr);

    for (unsigned i = 0; i < SWITCH_BUCKET_SIZE; i++)
        if (entry_is_live(&bucket[i], now_ns) && memcmp(bucket[i].addr, addr, 6) == 0)
            return &s->ports[bucket[i].port];
    return NULL;
}

static void switch_learn(struct netswitch *s, struct switch_port *from, const uint8_t addr[6],
                         uint64_t now_ns)
{
    struct switch_entry *bucket = switch_bucket(s, addr), *entry = NULL;

    if (addr[0] & 1) /* of a group: nobody's own */
        return;
    for (unsigned i = 0; i < SWITCH_BUCKET_SIZE; i++) {
        if (!entry_is_live(&bucket[i], now_ns))
            entry_free(s, &bucket[i]);
        if (bucket[i].seen_ns != 0 && memcmp(bucket[i].addr, addr, 6) == 0) {
            entry = &bucket[i];
            break;
        }
        if (bucket[i].seen_ns == 0 && entry == NULL)
            entry = &bucket[i];
    }
    if (entry == NULL)
        return;
    /* known at this port: only the time changes */
    bool is_here = entry->seen_ns != 0 && &s->ports[entry->port] == from;
    if (!is_here) {
        if (from->address_count == SWITCH_ADDRESSES_MAX)
            return;
        entry_free(s, entry);
        from->address_count++;
    }
    *entry = (struct switch_entry){.seen_ns = now_ns, .port = (uint16_t)(from - s->ports)};
    memcpy(entry->addr, addr, 6);
}

static void switch_forget(struct netswitch *s, const struct switch_port *port)
{
    for (unsigned i = 0; i < SWITCH_BUCKETS; i++)
        for (unsigned j = 0; j < SWITCH_BUCKET_SIZE; j++)
            if (&s->ports[s->table[i][j].port] == port)
                entry_free(s, &s->table[i][j]);
}

/* ---- towards a port ---- */

static void port_drop_first(struct switch_port *port)
{
    struct switch_message *first = port->first;

    port->first = first->next;
    if (port->first == NULL)
        port->last = &port->first;
    port->queued--;
    port->queued_bytes -= first->len;
    free(first);
}

/* A port that is gone, or has no room, takes nothing; that it is gone is heard of by reading. */
static bool port_try(struct switch_port *port, const uint8_t *bytes, size_t len)
{
    return send(port->fd, bytes, len, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0 ||
           (errno != EAGAIN && errno != ENOBUFS && errno != EINTR);
}

static void port_watch(struct switch_port *port)
{
    struct err e;

    if (loop_fd_modify(port->watch, LOOP_READ | (port->first != NULL ? LOOP_WRITE : 0), &e) != 0)
        log_warn("%s", e.msg);
}

static void port_flush(struct switch_port *port)
{
    while (port->first != NULL && port_try(port, port->first->bytes, port->first->len))
        port_drop_first(port);
    if (port->first == NULL)
        port_watch(port);
}

static void port_send(struct netswitch *s, struct switch_port *port, const uint8_t *bytes,
                      size_t len)
{
    s->stats.sent++;
    if (port->first == NULL && port_try(port, bytes, len))
        return;
    struct switch_message *copy = NULL;
    if (port->queued < SWITCH_QUEUE_FRAMES && port->queued_bytes + len <= SWITCH_QUEUE_BYTES)
        copy = malloc(sizeof(*copy) + len);
    if (copy == NULL) {
        s->stats.sent--;
        s->stats.dropped++;
        return;
    }
    copy->next = NULL;
    copy->len = len;
    memcpy(copy->bytes, bytes, len);
    *port->last = copy;
    port->last = &copy->next;
    port->queued_bytes += len;
    if (port->queued++ == 0)
        port_watch(port);
}

/* ---- from a port ---- */

static void port_close(struct netswitch *s, struct switch_port *port)
{
    loop_fd_remove(port->watch);
    close(port->fd);
    while (port->first != NULL)
        port_drop_first(port);
    switch_forget(s, port);
    port->fd = -1;
    s->stats.ports--;
    log_info("port %u: disconnected", (unsigned)(port - s->ports));
}

static void switch_forward(struct netswitch *s, struct switch_port *from, const uint8_t *bytes,
                           size_t len)
{
    const uint8_t *frame = bytes + SWITCH_HEADER;
    uint64_t now_ns = clock_now_ns();

    s->stats.received++;
    switch_learn(s, from, frame + 6, now_ns);
    struct switch_port *to = (frame[0] & 1) ? NULL : switch_find(s, frame, now_ns);
    if (to != NULL) {
        if (to != from)
            port_send(s, to, bytes, len);
        return;
    }
    for (unsigned i = 0; i < SWITCH_PORTS_MAX; i++)
        if (s->ports[i].fd >= 0 && s->ports[i].is_greeted && &s->ports[i] != from)
            port_send(s, &s->ports[i], bytes, len);
}

/* False: the port is to be closed. */
static bool port_take(struct netswitch *s, struct switch_port *port, size_t len)
{
    if (!port->is_greeted) {
        port->is_greeted =
            len == sizeof(SWITCH_HELLO) && memcmp(s->message, SWITCH_HELLO, len) == 0;
        if (!port->is_greeted)
            log_warn("port %u: what connected is no network interface of this doppel",
                     (unsigned)(port - s->ports));
        return port->is_greeted;
    }
    if (len < MESSAGE_MIN || len > MESSAGE_MAX)
        s->stats.refused++;
    else
        switch_forward(s, port, s->message, len);
    return true;
}

static void port_on_event(void *ctx, unsigned events)
{
    struct switch_port *port = ctx;
    struct netswitch *s = port->owner;

    if (events & LOOP_WRITE)
        port_flush(port);
    for (unsigned i = 0; i < SWITCH_BUDGET; i++) {
        /* MSG_TRUNC: the length that was sent, also of what is too long */
        ssize_t n = recv(port->fd, s->message, sizeof(s->message), MSG_DONTWAIT | MSG_TRUNC);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0 || !port_take(s, port, (size_t)n)) {
            port_close(s, port);
            return;
        }
    }
}

static struct switch_port *switch_free_port(struct netswitch *s)
{
    for (unsigned i = 0; i < SWITCH_PORTS_MAX; i++)
        if (s->ports[i].fd < 0)
            return &s->ports[i];
    return NULL;
}

static void switch_on_listen(void *ctx, unsigned events)
{
    struct netswitch *s = ctx;
    struct err e;
    int fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd < 0)
        return;
    struct switch_port *port = switch_free_port(s);
    if (port == NULL) {
        log_warn("all %u ports are taken: a connection was refused", SWITCH_PORTS_MAX);
        close(fd);
        return;
    }
    *port = (struct switch_port){.owner = s, .fd = fd, .last = &port->first};
    if (loop_fd_add(s->loop, fd, LOOP_READ, port_on_event, port, &port->watch, &e) != 0) {
        log_warn("%s; a connection was refused", e.msg);
        close(fd);
        port->fd = -1;
        return;
    }
    s->stats.ports++;
    log_info("port %u: connected", (unsigned)(port - s->ports));
}

/* ---- set-up ---- */

static bool switch_lock_is_current(const struct netswitch *s)
{
    struct stat open_st, path_st;

    return fstat(s->lock_fd, &open_st) == 0 && lstat(s->lock_path, &path_st) == 0 &&
           open_st.st_dev == path_st.st_dev && open_st.st_ino == path_st.st_ino;
}

static int switch_lock(struct netswitch *s, struct err *e)
{
    do {
        if (s->lock_fd >= 0)
            close(s->lock_fd);
        s->lock_fd = open(s->lock_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (s->lock_fd < 0)
            return err_set(e, errno, "make the lock file '%s'", s->lock_path);
        if (flock(s->lock_fd, LOCK_EX | LOCK_NB) != 0) {
            int code = errno;
            close(s->lock_fd);
            s->lock_fd = -1;
            if (code == EWOULDBLOCK)
                return err_set(e, EADDRINUSE, "'%s' has a switch already", s->addr.sun_path);
            return err_set(e, code, "lock '%s'", s->lock_path);
        }
        /* its last holder may have removed it between our two calls */
    } while (!switch_lock_is_current(s));
    return 0;
}

static int switch_listen(struct netswitch *s, struct err *e)
{
    const char *path = s->addr.sun_path;
    struct stat st;

    if (lstat(path, &st) == 0 && !S_ISSOCK(st.st_mode))
        return err_set(e, EEXIST, "make the socket '%s'", path);
    /* we hold the lock, so a socket is what a switch that was killed left */
    if (unlink(path) != 0 && errno != ENOENT)
        return err_set(e, errno, "remove the old socket '%s'", path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_set(e, errno, "make a socket");
    /* a network is its owner's; bind(2) takes the mode over */
    fchmod(fd, 0600);
    if (bind(fd, (const struct sockaddr *)&s->addr, sizeof(s->addr)) != 0) {
        int code = errno;
        close(fd);
        return err_set(e, code, "make the socket '%s'", path);
    }
    s->listen_fd = fd; /* from here on, destroying removes the file */
    if (listen(fd, SWITCH_PORTS_MAX) != 0)
        return err_set(e, errno, "listen on '%s'", path);
    return loop_fd_add(s->loop, fd, LOOP_READ, switch_on_listen, s, &s->listen_watch, e);
}

int netswitch_create(struct loop *loop, const char *path, struct netswitch **out, struct err *e)
{
    struct netswitch *s = calloc(1, sizeof(*s));

    if (s == NULL)
        return err_set(e, ENOMEM, "make a switch");
    s->loop = loop;
    s->lock_fd = s->listen_fd = -1;
    s->addr.sun_family = AF_UNIX;
    for (unsigned i = 0; i < SWITCH_PORTS_MAX; i++)
        s->ports[i].fd = -1;
    if (strlen(path) >= sizeof(s->addr.sun_path)) {
        free(s);
        return err_set(e, ENAMETOOLONG, "make the socket '%s' (at most %zu bytes)", path,
                       sizeof(s->addr.sun_path) - 1);
    }
    strcpy(s->addr.sun_path, path);
    snprintf(s->lock_path, sizeof(s->lock_path), "%s.lock", path);
    /* so that nobody can choose addresses that share a bucket */
    int rc = getrandom(&s->hash_key, sizeof(s->hash_key), 0) == sizeof(s->hash_key)
                 ? 0
                 : err_set(e, errno, "get a random number");
    if (rc == 0)
        rc = switch_lock(s, e);
    if (rc == 0)
        rc = switch_listen(s, e);
    if (rc != 0) {
        netswitch_destroy(s);
        return rc;
    }
    *out = s;
    return 0;
}

void netswitch_destroy(struct netswitch *s)
{
    if (s == NULL)
        return;
    for (unsigned i = 0; i < SWITCH_PORTS_MAX; i++)
        if (s->ports[i].fd >= 0)
            port_close(s, &s->ports[i]);
    loop_fd_remove(s->listen_watch);
    if (s->listen_fd >= 0) {
        unlink(s->addr.sun_path);
        close(s->listen_fd);
    }
    if (s->lock_fd >= 0) {
        unlink(s->lock_path);
        close(s->lock_fd);
    }
    free(s);
}

struct netswitch_stats netswitch_stats(const struct netswitch *s)
{
    return s->stats;
}
