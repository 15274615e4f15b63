/*
 * server.h - HTTP/1.1 connections on a Unix socket
 *
 * All of it runs on the loop's thread and never waits. What a client can make doppel hold is
 * bounded: connections, bytes of a request, time for a request, for taking the answer and for
 * sitting idle. Only processes of the same user, and root's, are served.
 */
#ifndef DOPPEL_API_SERVER_H
#define DOPPEL_API_SERVER_H

#include <stddef.h>
#include <stdint.h>

#include "api/http.h"
#include "base/err.h"

struct loop;
struct server;
struct server_conn;

#define SERVER_BODY_MAX 4096
#define SERVER_CONNS_MAX 128 /* served at a time; some more are told to come back */

/* Each of them answers with server_reply, `handle` perhaps later: see server_hold. */
struct server_ops {
    void (*handle)(void *ctx, struct server_conn *conn, const struct http_head *head,
                   const char *body);
    /* The request is refused with that status; `why` says what is wrong with it. */
    void (*refuse)(void *ctx, struct server_conn *conn, unsigned status, const char *why);
    /* The time given to server_hold is over. */
    void (*expire)(void *ctx, struct server_conn *conn);
};

struct server_config {
    struct loop *loop;
    int listen_fd; /* listening and non-blocking; the caller's */
    const struct server_ops *ops;
    void *ctx;
    /* Nanoseconds; 0: the default. Tests want them short. */
    uint64_t request_ns, idle_ns, send_ns;
};

int server_create(const struct server_config *config, struct server **out, struct err *e);
/* Closes all connections. NULL is allowed. */
void server_destroy(struct server *server);

/* Take no more connections; what is there goes on. */
void server_close_listener(struct server *server);

/*
 * Answer the request that conn waits with; once. `fields` are further header fields, each ending
 * in CR LF, or "". The body, JSON, is copied.
 */
void server_reply(struct server_conn *conn, unsigned status, const char *fields, const char *body);

/* From `handle`: the answer comes later, or `expire` is called after that time. 0: no limit. */
void server_hold(struct server_conn *conn, uint64_t timeout_ns);

/* Give every connection that is held the same last answer. */
void server_reply_all(struct server *server, unsigned status, const char *body);

#endif
