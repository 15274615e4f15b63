/*
 * server.c - HTTP/1.1 connections on a Unix socket
 *
 * Invariants: a connection's phase says what it waits for, and its timer runs for that. Requests
 * of one connection are answered one after the other. A connection that is closed by us first
 * gets rid of what its client still sends, so that the answer is not lost with it.
 * Spec: RFC 9112; unix(7), SO_PEERCRED.
 */
#include "api/server.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/log.h"
#include "os/loop.h"
#include "os/vclock.h"

#define SERVER_REQUEST_NS (10 * NS_PER_SEC)
#define SERVER_IDLE_NS (60 * NS_PER_SEC)
#define SERVER_SEND_NS (10 * NS_PER_SEC)
#define SERVER_LINGER_NS (1 * NS_PER_SEC)
#define SERVER_RETRY_NS (1 * NS_PER_SEC)
#define SERVER_LINGER_BYTES (1u << 20)
#define SERVER_CONNS_REFUSED 32 /* beyond SERVER_CONNS_MAX */
#define SERVER_ACCEPT_BATCH 16
#define SERVER_IN_SIZE (HTTP_HEAD_MAX + SERVER_BODY_MAX)

enum conn_phase {
    CONN_NEW,     /* to be settled */
    CONN_IDLE,    /* between requests */
    CONN_REQUEST, /* a request has begun to come in */
    CONN_HELD,    /* server_hold */
    CONN_SEND,    /* the client has to take output */
    CONN_LINGER,  /* all is said; the client has to close */
};

struct server_conn {
    struct server *server;
    struct server_conn *next, **link;
    int fd;
    struct loop_fd *watch;
    unsigned events; /* what is watched */
    struct vtimer timer;
    enum conn_phase phase;
    bool is_eof; /* the client sends no more */
    bool is_held;
    bool is_last; /* close when the output is gone */
    bool is_head; /* the answer goes without its body */
    bool has_continued;
    uint64_t hold_ns;
    size_t lingered;
    char *out;
    size_t out_len, out_sent;
    size_t in_len;
    char in[SERVER_IN_SIZE];
};

struct server {
    struct server_config config;
    struct vclock *clock; /* host time: it is never paused */
    struct loop_fd *listen_watch;
    struct vtimer retry; /* of accept, when descriptors ran out */
    struct server_conn *conns;
    unsigned conn_count;
    bool is_closed;
    struct log_limit limit;
};

static void server_watch(struct server *server);

/* ---- one connection ---- */

static void conn_close(struct server_conn *c)
{
    struct server *server = c->server;
    vtimer_cancel(&c->timer);
    loop_fd_remove(c->watch);
    close(c->fd);
    *c->link = c->next;
    if (c->next != NULL)
        c->next->link = c->link;
    free(c->out);
    free(c);
    server->conn_count--;
    server_watch(server);
}

static uint64_t conn_limit_ns(const struct server_conn *c, enum conn_phase phase)
{
    const struct server_config *config = &c->server->config;
    switch (phase) {
    case CONN_IDLE:
        return config->idle_ns;
    case CONN_REQUEST:
        return config->request_ns;
    case CONN_HELD:
        return c->hold_ns;
    case CONN_SEND:
        return config->send_ns;
    default:
        return SERVER_LINGER_NS;
    }
}

static void conn_set_phase(struct server_conn *c, enum conn_phase phase)
{
    if (phase == c->phase)
        return;
    c->phase = phase;
    uint64_t limit_ns = conn_limit_ns(c, phase);
    if (limit_ns == 0)
        vtimer_cancel(&c->timer);
    else
        vtimer_arm(&c->timer, vclock_now_ns(c->server->clock) + limit_ns);
}

/* Watch what can make progress. False: the connection is gone. */
static bool conn_settle(struct server_conn *c)
{
    bool has_output = c->out != NULL;
    bool may_read = !c->is_eof && (c->phase == CONN_LINGER || c->in_len < sizeof(c->in));
    unsigned events = (may_read ? LOOP_READ : 0) | (has_output ? LOOP_WRITE : 0);
    struct err e;
    if (events == c->events)
        return true;
    if (loop_fd_modify(c->watch, events, &e) != 0) {
        log_warn("%s", e.msg);
        conn_close(c);
        return false;
    }
    c->events = events;
    return true;
}

/* False: the connection is gone. */
static bool conn_read(struct server_conn *c)
{
    char waste[4096];
    bool is_lingering = c->phase == CONN_LINGER;
    char *to = is_lingering ? waste : c->in + c->in_len;
    size_t room = is_lingering ? sizeof(waste) : sizeof(c->in) - c->in_len;
    ssize_t n = room > 0 ? recv(c->fd, to, room, MSG_DONTWAIT) : -1;
    if (n < 0 && (room == 0 || errno == EAGAIN || errno == EINTR))
        return true;
    if (n > 0 && is_lingering)
        c->lingered += (size_t)n;
    else if (n > 0)
        c->in_len += (size_t)n;
    if (n < 0 || (n == 0 && is_lingering) || c->lingered > SERVER_LINGER_BYTES) {
        conn_close(c);
        return false;
    }
    c->is_eof = n == 0;
    return true;
}

/* False: the connection is gone. */
static bool conn_send(struct server_conn *c)
{
    while (c->out_sent < c->out_len) {
        ssize_t n = send(c->fd, c->out + c->out_sent, c->out_len - c->out_sent,
                         MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            conn_set_phase(c, CONN_SEND);
            return true;
        }
        if (n < 0) {
            conn_close(c);
            return false;
        }
        c->out_sent += (size_t)n;
        c->phase = CONN_NEW; /* progress: the time begins anew */
    }
    free(c->out);
    c->out = NULL;
    return true;
}

static bool conn_put(struct server_conn *c, const char *head, size_t head_len, const char *body,
                     size_t body_len)
{
    c->out = malloc(head_len + body_len);
    if (c->out == NULL) {
        log_warn("out of memory for an answer of %zu bytes on the control socket", body_len);
        c->is_last = true;
        return false;
    }
    memcpy(c->out, head, head_len);
    memcpy(c->out + head_len, body, body_len);
    c->out_len = head_len + body_len;
    c->out_sent = 0;
    return true;
}

static void conn_refuse(struct server_conn *c, unsigned status, const char *why)
{
    c->is_last = true;
    c->server->config.ops->refuse(c->server->config.ctx, c, status, why);
}

/* Its body is not there yet. False: it never will be. */
static bool conn_await_body(struct server_conn *c, const struct http_head *head)
{
    static const char go_on[] = "HTTP/1.1 100 Continue\r\n\r\n";
    if (c->is_eof) {
        conn_refuse(c, 400, "the connection was shut down within the request's body");
        return false;
    }
    if (head->expects_continue && !c->has_continued && c->out == NULL) {
        c->has_continued = true;
        return !conn_put(c, go_on, sizeof(go_on) - 1, "", 0);
    }
    return true;
}

/* Take the next request. False: it is not complete, or there is none. */
static bool conn_take_request(struct server_conn *c)
{
    struct http_head head;
    struct err e = {0};
    int rc = http_parse_request(c->in, c->in_len, &head, &e);
    if (rc == 0 && c->is_eof) {
        /* Closed between two requests: all is well. */
        if (c->in_len > 0)
            conn_refuse(c, 400, "the connection was shut down within a request");
        c->is_last = true;
        return c->in_len > 0;
    }
    if (rc == 0) {
        conn_set_phase(c, c->in_len > 0 ? CONN_REQUEST : CONN_IDLE);
        return false;
    }
    if (rc < 0) {
        conn_refuse(c, (unsigned)-rc, e.msg);
        return true;
    }
    if (head.length > SERVER_BODY_MAX) {
        conn_refuse(c, 413, "the body is longer than 4096 bytes");
        return true;
    }
    size_t size = (size_t)rc + (size_t)head.length;
    if (c->in_len < size) {
        conn_set_phase(c, CONN_REQUEST);
        return !conn_await_body(c, &head);
    }
    c->has_continued = false;
    c->phase = CONN_NEW;
    c->is_last = !head.keeps_alive;
    c->is_head = http_span_is(head.method, "HEAD");
    c->server->config.ops->handle(c->server->config.ctx, c, &head, c->in + rc);
    c->is_head = false;
    c->in_len -= size;
    memmove(c->in, c->in + size, c->in_len);
    return true;
}

/* All is said: wait for the client to close, and not for ever. */
static void conn_linger(struct server_conn *c)
{
    if (c->is_eof) {
        conn_close(c);
        return;
    }
    shutdown(c->fd, SHUT_WR);
    conn_set_phase(c, CONN_LINGER);
    conn_settle(c);
}

/* Do what can be done. The connection may be gone on return. */
static void conn_advance(struct server_conn *c)
{
    while (c->phase != CONN_LINGER) {
        if (c->out != NULL && !conn_send(c))
            return;
        if (c->out != NULL)
            break;
        if (c->is_held) {
            conn_set_phase(c, CONN_HELD);
            break;
        }
        if (c->is_last) {
            conn_linger(c);
            return;
        }
        if (!conn_take_request(c) && !c->is_last)
            break;
    }
    conn_settle(c);
}

static void conn_on_event(void *ctx, unsigned events)
{
    struct server_conn *c = ctx;
    if ((events & LOOP_READ) && !conn_read(c))
        return;
    /* With nothing left to read, hanging up means that nobody listens either. */
    if ((events & LOOP_HANGUP) && !(events & LOOP_READ)) {
        conn_close(c);
        return;
    }
    conn_advance(c);
}

static void conn_on_timer(void *ctx)
{
    struct server_conn *c = ctx;
    switch (c->phase) {
    case CONN_REQUEST:
        c->phase = CONN_NEW;
        conn_refuse(c, 408, "the request took too long to come in");
        conn_advance(c);
        return;
    case CONN_HELD:
        c->server->config.ops->expire(c->server->config.ctx, c);
        return;
    default:
        conn_close(c);
        return;
    }
}

/* ---- answers ---- */

void server_reply(struct server_conn *c, unsigned status, const char *fields, const char *body)
{
    char date[40] = "", head[512];
    size_t len = strlen(body);
    time_t now = time(NULL);
    struct tm tm;
    bool was_held = c->is_held;

    c->is_held = false;
    if (gmtime_r(&now, &tm) != NULL)
        strftime(date, sizeof(date), "%a, %d %b %Y %H:%M:%S GMT", &tm);
    int n = snprintf(head, sizeof(head),
                     "HTTP/1.1 %u %s\r\n"
                     "Date: %s\r\n"
                     "Content-Type: application/json\r\n"
                     "Content-Length: %zu\r\n"
                     "Cache-Control: no-store\r\n"
                     "%s%s\r\n",
                     status, http_reason(status), date, len, fields,
                     c->is_last ? "Connection: close\r\n" : "");
    conn_put(c, head, MIN((size_t)n, sizeof(head) - 1), body, c->is_head ? 0 : len);
    /* Else we are within conn_advance, which goes on with it. */
    if (was_held)
        conn_advance(c);
}

void server_hold(struct server_conn *c, uint64_t timeout_ns)
{
    c->is_held = true;
    c->hold_ns = timeout_ns;
}

void server_reply_all(struct server *server, unsigned status, const char *body)
{
    struct server_conn *next;
    for (struct server_conn *c = server->conns; c != NULL; c = next) {
        next = c->next;
        if (!c->is_held)
            continue;
        c->is_last = true;
        server_reply(c, status, "", body);
    }
}

/* ---- the listener ---- */

/* Only this user, and root, who may do anything anyway. */
static bool conn_is_allowed(int fd)
{
    struct ucred peer;
    socklen_t len = sizeof(peer);
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 &&
           (peer.uid == geteuid() || peer.uid == 0);
}

static void server_add(struct server *server, int fd)
{
    struct server_conn *c = calloc(1, sizeof(*c));
    struct err e = {.msg = "out of memory"};
    if (c != NULL)
        *c = (struct server_conn){.server = server, .fd = fd, .events = LOOP_READ};
    if (c == NULL ||
        loop_fd_add(server->config.loop, fd, LOOP_READ, conn_on_event, c, &c->watch, &e) != 0) {
        if (log_limit_allows(&server->limit))
            log_warn("control socket: a client was turned away: %s", e.msg);
        free(c);
        close(fd);
        return;
    }
    vtimer_init(&c->timer, server->clock, conn_on_timer, c);
    c->next = server->conns;
    c->link = &server->conns;
    if (c->next != NULL)
        c->next->link = &c->next;
    server->conns = c;
    server->conn_count++;
    if (!conn_is_allowed(fd))
        conn_refuse(c, 403, "this machine belongs to another user");
    else if (server->conn_count > SERVER_CONNS_MAX)
        conn_refuse(c, 503, "there are 128 connections already; try again when one has ended");
    conn_set_phase(c, CONN_REQUEST);
    conn_advance(c);
}

static void server_on_listen(void *ctx, unsigned events)
{
    struct server *server = ctx;
    for (unsigned i = 0; i < SERVER_ACCEPT_BATCH && server->listen_watch != NULL; i++) {
        int fd = accept4(server->config.listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0 && (errno == EAGAIN || errno == ECONNABORTED || errno == EINTR))
            return;
        if (fd < 0) {
            /* Out of descriptors or memory: it would be reported again at once. */
            if (log_limit_allows(&server->limit))
                log_warn("control socket: accept: %s", strerror(errno));
            loop_fd_remove(server->listen_watch);
            server->listen_watch = NULL;
            vtimer_arm(&server->retry, vclock_now_ns(server->clock) + SERVER_RETRY_NS);
            return;
        }
        server_add(server, fd);
        server_watch(server);
    }
}

/* Watch the listener exactly while there is room. */
static void server_watch(struct server *server)
{
    bool has_room = server->conn_count < SERVER_CONNS_MAX + SERVER_CONNS_REFUSED;
    struct err e;
    if (has_room && !server->is_closed && server->listen_watch == NULL) {
        if (loop_fd_add(server->config.loop, server->config.listen_fd, LOOP_READ, server_on_listen,
                        server, &server->listen_watch, &e) != 0)
            log_warn("control socket: %s; it takes no more clients", e.msg);
    } else if (!has_room && server->listen_watch != NULL) {
        loop_fd_remove(server->listen_watch);
        server->listen_watch = NULL;
    }
}

static void server_on_retry(void *ctx)
{
    server_watch(ctx);
}

void server_close_listener(struct server *server)
{
    server->is_closed = true;
    vtimer_cancel(&server->retry);
    loop_fd_remove(server->listen_watch);
    server->listen_watch = NULL;
}

int server_create(const struct server_config *config, struct server **out, struct err *e)
{
    struct server *server = calloc(1, sizeof(*server));
    if (server == NULL)
        return err_set(e, ENOMEM, "serve the control socket");
    server->config = *config;
    if (config->request_ns == 0)
        server->config.request_ns = SERVER_REQUEST_NS;
    if (config->idle_ns == 0)
        server->config.idle_ns = SERVER_IDLE_NS;
    if (config->send_ns == 0)
        server->config.send_ns = SERVER_SEND_NS;
    int rc = vclock_create(config->loop, &server->clock, e);
    if (rc != 0) {
        free(server);
        return rc;
    }
    vtimer_init(&server->retry, server->clock, server_on_retry, server);
    rc = loop_fd_add(config->loop, config->listen_fd, LOOP_READ, server_on_listen, server,
                     &server->listen_watch, e);
    if (rc != 0) {
        vclock_destroy(server->clock);
        free(server);
        return rc;
    }
    *out = server;
    return 0;
}

void server_destroy(struct server *server)
{
    if (server == NULL)
        return;
    server_close_listener(server);
    while (server->conns != NULL)
        conn_close(server->conns);
    vclock_destroy(server->clock);
    free(server);
}
