/*
 * client.c - ask a running machine something, over its control socket
 *
 * Invariants: the descriptor is non-blocking and every wait ends at the deadline. The answer is
 * not trusted: it is bounded and has to be JSON. One connection carries one request.
 */
#include "cli/client.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "api/http.h"
#include "base/bits.h"
#include "base/clock.h"

#define CLIENT_ANSWER_MAX (4u << 20)
/* A machine that is just starting does not listen yet. */
#define CLIENT_START_MS 3000
#define CLIENT_RETRY_MS 20

struct client {
    int fd;
    int64_t deadline_ms; /* -1: none */
    const char *socket;
    char *buf;
    size_t len, size;
    struct err *e;
};

static int64_t client_now_ms(void)
{
    return (int64_t)(clock_now_ns() / 1000000);
}

static void client_sleep(unsigned ms)
{
    struct timespec wait = {.tv_nsec = (long)ms * 1000000};
    nanosleep(&wait, NULL);
}

static int client_late(struct client *c)
{
    return err_set(c->e, ETIMEDOUT,
                   "ask the machine at '%s': it does not answer; is its doppel stopped or "
                   "overloaded?",
                   c->socket);
}

static int client_wait(struct client *c, short events)
{
    for (;;) {
        int64_t left = c->deadline_ms < 0 ? -1 : c->deadline_ms - client_now_ms();
        if (c->deadline_ms >= 0 && left <= 0)
            return client_late(c);
        struct pollfd poll_fd = {.fd = c->fd, .events = events};
        int n = poll(&poll_fd, 1, (int)left);
        if (n > 0)
            return 0;
        if (n < 0 && errno != EINTR)
            return err_set(c->e, errno, "wait for the machine at '%s'", c->socket);
    }
}

static int client_connect_error(struct client *c, int code)
{
    if (code == EACCES || code == EPERM)
        return err_set(c->e, code,
                       "connect to '%s': only its owner and root may; use sudo, or ask as the "
                       "user who started the machine",
                       c->socket);
    if (code == ECONNREFUSED)
        return err_set(c->e, code, "connect to '%s': nobody listens there", c->socket);
    return err_set(c->e, code, "connect to '%s'", c->socket);
}

/* A queue that is full, and a machine that is about to listen, are worth another try. */
static int client_connect(struct client *c, const struct rundir_entry *entry)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int64_t start_ms = client_now_ms();
    strcpy(addr.sun_path, entry->socket);
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->fd < 0)
        return err_set(c->e, errno, "make a Unix socket");
    while (connect(c->fd, (struct sockaddr *)&addr, sizeof(addr)) != 0) {
        int code = errno;
        bool is_starting = (code == ENOENT || code == ECONNREFUSED) && rundir_is_held(entry) &&
                           client_now_ms() - start_ms < CLIENT_START_MS;
        if (c->deadline_ms >= 0 && client_now_ms() >= c->deadline_ms)
            return client_late(c);
        if (code != EAGAIN && code != EINTR && !is_starting)
            return client_connect_error(c, code);
        client_sleep(CLIENT_RETRY_MS);
    }
    return 0;
}

/* The machine may refuse and answer before it has everything: then read on. */
static int client_send(struct client *c, const char *text, size_t len)
{
    while (len > 0) {
        ssize_t n = send(c->fd, text, len, MSG_NOSIGNAL);
        if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
            return 0;
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return err_set(c->e, errno, "send a request to '%s'", c->socket);
        if (n < 0) {
            int rc = client_wait(c, POLLOUT);
            if (rc != 0)
                return rc;
            continue;
        }
        text += n;
        len -= (size_t)n;
    }
    return 0;
}

/* > 0: bytes came; 0: the machine closed. */
static int client_receive(struct client *c)
{
    if (c->len == c->size) {
        size_t size = c->size != 0 ? c->size * 2 : 16384;
        char *bigger = size <= CLIENT_ANSWER_MAX ? realloc(c->buf, size) : NULL;
        if (bigger == NULL)
            return err_set(c->e, EMSGSIZE, "take the answer of '%s'", c->socket);
        c->buf = bigger;
        c->size = size;
    }
    for (;;) {
        int rc = client_wait(c, POLLIN);
        if (rc != 0)
            return rc;
        ssize_t n = recv(c->fd, c->buf + c->len, c->size - c->len, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (n < 0 && errno != ECONNRESET)
            return err_set(c->e, errno, "read the answer of '%s'", c->socket);
        if (n <= 0)
            return 0;
        c->len += (size_t)n;
        return 1;
    }
}

/* What an error says for itself. */
static int client_take_error(struct client *c, const struct client_answer *answer)
{
    const char *message = NULL;
    if (json_unpack(answer->json, "{s:{s:s}}", "error", "message", &message) != 0)
        return err_set(c->e, 0, "the machine at '%s' answered with status %u", c->socket,
                       answer->status);
    return err_set(c->e, answer->status == 403 ? EACCES : 0, "%s", message);
}

static int client_take_body(struct client *c, const char *body, size_t size,
                            struct client_answer *out)
{
    json_error_t why;
    out->json = json_loadb(body, size, JSON_REJECT_DUPLICATES, &why);
    if (!json_is_object(out->json))
        return err_set(c->e, 0, "what listens at '%s' is no doppel: its answer is no JSON object",
                       c->socket);
    return out->status < 400 ? 0 : client_take_error(c, out);
}

static int client_read_answer(struct client *c, struct client_answer *out)
{
    struct http_head head;
    struct err why;
    int size = 0;
    for (;;) {
        size = size > 0 ? size : http_parse_response(c->buf, c->len, &head, &why);
        if (size < 0)
            return err_set(c->e, 0, "what listens at '%s' is no doppel: %s", c->socket, why.msg);
        /* http_parse_response bounds the head; the pointers in `head` are not used below. */
        if (size > 0 && head.length <= c->len - (size_t)size) {
            out->status = head.status;
            return client_take_body(c, c->buf + size, (size_t)head.length, out);
        }
        int rc = client_receive(c);
        if (rc == 0)
            return err_set(c->e, EPIPE, "ask the machine at '%s': it ended before it had answered",
                           c->socket);
        if (rc < 0)
            return rc;
    }
}

int client_call(const struct rundir_entry *entry, const char *method, const char *path,
                const char *body, int timeout_ms, struct client_answer *out, struct err *e)
{
    char text[1024];
    struct client c = {
        .fd = -1,
        .deadline_ms = timeout_ms < 0 ? -1 : client_now_ms() + timeout_ms,
        .socket = entry->socket,
        .e = e,
    };
    *out = (struct client_answer){0};
    int len = snprintf(text, sizeof(text),
                       "%s %s HTTP/1.1\r\n"
                       "Host: doppel\r\n"
                       "Connection: close\r\n"
                       "Content-Type: application/json\r\n"
                       "Content-Length: %zu\r\n"
                       "\r\n%s",
                       method, path, body != NULL ? strlen(body) : 0, body != NULL ? body : "");
    int rc = (size_t)len < sizeof(text) ? client_connect(&c, entry)
                                        : err_set(e, EMSGSIZE, "ask for %s", path);
    if (rc == 0)
        rc = client_send(&c, text, (size_t)len);
    if (rc == 0)
        rc = client_read_answer(&c, out);
    if (rc != 0) {
        json_decref(out->json);
        out->json = NULL;
    }
    if (c.fd >= 0)
        close(c.fd);
    free(c.buf);
    return rc;
}
