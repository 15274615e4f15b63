/*
 * virtio_vsock_host.c - the host's side of sockets: Unix sockets, and what is read and written
 * there
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/parse.h"
#include "dev/virtio/virtio_vsock_internal.h"
#include "os/unixsock.h"

/* Ports of connections that programs of the host make. */
#define FIRST_PORT 0x40000000u
#define BACKLOG 128

/* ---- the table ---- */

static struct vsock_connection **bucket(struct virtio_vsock *v, uint32_t guest_port,
                                        uint32_t host_port)
{
    uint32_t h = (guest_port * 0x9e3779b1u) ^ host_port;

    return &v->buckets[(h ^ h >> 16) % VSOCK_BUCKETS];
}

struct vsock_connection *vsock_find(struct virtio_vsock *v, uint32_t guest_port, uint32_t host_port)
{
    for (struct vsock_connection *c = *bucket(v, guest_port, host_port); c != NULL; c = c->next)
        if (c->guest_port == guest_port && c->host_port == host_port)
            return c;
    return NULL;
}

static void on_socket(void *ctx, unsigned events);

struct vsock_connection *vsock_add(struct virtio_vsock *v, int fd, enum vsock_state state)
{
    struct vsock_connection *c = NULL;
    struct err e;

    if (v->count < VSOCK_CONNECTIONS_MAX)
        c = calloc(1, sizeof(*c));
    if (c == NULL) {
        close(fd);
        return NULL;
    }
    if (loop_fd_add(v->loop, fd, LOOP_READ, on_socket, c, &c->watch, &e) != 0) {
        close(fd);
        free(c);
        return NULL;
    }
    c->vsock = v;
    c->state = state;
    c->fd = fd;
    c->events = LOOP_READ;
    c->list_next = v->all;
    c->list_prev = &v->all;
    if (v->all != NULL)
        v->all->list_prev = &c->list_next;
    v->all = c;
    v->count++;
    return c;
}

bool vsock_bind(struct vsock_connection *c, uint32_t guest_port, uint32_t host_port)
{
    struct vsock_connection **at = bucket(c->vsock, guest_port, host_port);

    c->ring = malloc(VSOCK_BUFFER_SIZE);
    if (c->ring == NULL)
        return false;
    c->guest_port = guest_port;
    c->host_port = host_port;
    c->next = *at;
    *at = c;
    return true;
}

void vsock_hang_up(struct vsock_connection *c)
{
    loop_fd_remove(c->watch);
    c->watch = NULL;
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->is_starved = false;
}

void vsock_remove(struct vsock_connection *c)
{
    vsock_hang_up(c);
    if (c->ring != NULL) {
        struct vsock_connection **at = bucket(c->vsock, c->guest_port, c->host_port);
        while (*at != c)
            at = &(*at)->next;
        *at = c->next;
    }
    *c->list_prev = c->list_next;
    if (c->list_next != NULL)
        c->list_next->list_prev = c->list_prev;
    c->vsock->count--;
    free(c->ring);
    free(c);
}

void vsock_remove_all(struct virtio_vsock *v)
{
    while (v->all != NULL)
        vsock_remove(v->all);
    v->reset_count = 0;
}

/* ---- reading and writing ---- */

void vsock_watch(struct vsock_connection *c)
{
    unsigned events = 0;
    struct err e;

    if (c->fd < 0)
        return;
    if (c->state == VSOCK_GREETING || (c->state == VSOCK_OPEN && !c->is_read && !c->is_starved))
        events |= LOOP_READ;
    if (c->ring_count != 0)
        events |= LOOP_WRITE;
    if (events == c->events)
        return;
    /* a hang-up is reported whether it is asked for or not: with nothing to do, don't look */
    if (events == 0) {
        loop_fd_remove(c->watch);
        c->watch = NULL;
    } else if (c->watch == NULL) {
        if (loop_fd_add(c->vsock->loop, c->fd, events, on_socket, c, &c->watch, &e) != 0)
            log_warn("%s; a connection of the guest stands still", e.msg);
    } else if (loop_fd_modify(c->watch, events, &e) != 0) {
        log_warn("%s; a connection of the guest stands still", e.msg);
    }
    c->events = events;
}

bool vsock_flush(struct vsock_connection *c)
{
    while (c->ring_count != 0 && c->fd >= 0) {
        uint32_t n = MIN(c->ring_count, VSOCK_BUFFER_SIZE - c->ring_first);
        ssize_t done = send(c->fd, c->ring + c->ring_first, n, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return errno == EAGAIN;
        c->ring_first = (c->ring_first + (uint32_t)done) % VSOCK_BUFFER_SIZE;
        c->ring_count -= (uint32_t)done;
        c->fwd_cnt += (uint32_t)done;
    }
    return true;
}

/* ---- programs that want a port of the guest ---- */

/* One that no connection has to that port of the guest. */
static uint32_t choose_port(struct virtio_vsock *v, uint32_t guest_port)
{
    do {
        v->next_port =
            v->next_port < FIRST_PORT || v->next_port == UINT32_MAX ? FIRST_PORT : v->next_port + 1;
    } while (vsock_find(v, guest_port, v->next_port) != NULL);
    return v->next_port;
}

/* "CONNECT port", without its line end. */
static bool parse_greeting(const char *line, uint32_t *port)
{
    static const char word[] = "CONNECT ";
    uint64_t number;

    if (strncmp(line, word, sizeof(word) - 1) != 0 ||
        parse_u64(line + sizeof(word) - 1, "port", 0, UINT32_MAX, &number, NULL) != 0)
        return false;
    *port = (uint32_t)number;
    return true;
}

/* What follows the line is the guest's: it is read byte by byte. */
static void read_greeting(struct vsock_connection *c)
{
    struct virtio_vsock *v = c->vsock;
    uint32_t port;

    for (;;) {
        char byte;
        ssize_t n = recv(c->fd, &byte, 1, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0 || c->line_len == VSOCK_LINE_MAX - 1 || byte == '\0')
            break;
        if (byte != '\n') {
            c->line[c->line_len++] = byte;
            continue;
        }
        c->line[c->line_len] = '\0';
        if (!parse_greeting(c->line, &port) || !virtio_is_running(&v->dev) ||
            !vsock_bind(c, port, choose_port(v, port)))
            break;
        c->state = VSOCK_REQUESTED;
        c->due |= 1u << VSOCK_OP_REQUEST;
        vsock_watch(c);
        return;
    }
    vsock_remove(c);
}

static void on_socket(void *ctx, unsigned events)
{
    struct vsock_connection *c = ctx;
    struct virtio_vsock *v = c->vsock;

    virtio_lock(&v->dev);
    if (v->is_reset_due) {
        /* it is among those that go */
        virtio_unlock(&v->dev);
        vsock_enter(v);
        vsock_leave(v);
        return;
    }
    if (c->state == VSOCK_GREETING) {
        read_greeting(c);
    } else if (!vsock_flush(c)) {
        vsock_lost(c);
    } else {
        if (events & (LOOP_READ | LOOP_HANGUP))
            vsock_pull(c);
        vsock_settle(c);
    }
    vsock_leave(v);
}

static void on_listen(void *ctx, unsigned events)
{
    struct virtio_vsock *v = ctx;
    int fd = accept4(v->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd < 0)
        return; /* it gave up before we came */
    vsock_enter(v);
    vsock_add(v, fd, VSOCK_GREETING);
    vsock_leave(v);
}

int vsock_listen(struct virtio_vsock *v, struct err *e)
{
    v->listen_fd = unixsock_listen(v->path, BACKLOG, e);
    if (v->listen_fd < 0)
        return v->listen_fd;
    return loop_fd_add(v->loop, v->listen_fd, LOOP_READ, on_listen, v, &v->listen_watch, e);
}

int vsock_connect_host(struct virtio_vsock *v, uint32_t port)
{
    char path[VIRTIO_VSOCK_PATH_MAX + 16];
    struct err e;

    snprintf(path, sizeof(path), "%s_%" PRIu32, v->path, port);
    int fd = unixsock_connect(path, &e);
    if (fd < 0)
        log_debug("the guest's connection to port %" PRIu32 ": %s", port, e.msg);
    return fd < 0 ? -1 : fd;
}
