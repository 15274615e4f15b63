/*
 * nbd_connection.c - the connection to an NBD server: made, driven, and made again
 *
 * A thread of the store drives the connection. When it is lost, the thread waits until nobody uses
 * it any more, and tries to get another for as long as a server may take for an answer. It must
 * find the same export there, and writes again what is in the journal, before callers have it.
 */
#include "backend/block/nbd_impl.h"

#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/clock.h"
#include "base/log.h"
#include "os/event.h"
#include "os/thread.h"

#define AUTHORITIES "ca-cert.pem"
#define PAUSE_MS 100 /* between attempts at a connection */

/* What the socket and libnbd have for one another. Up to `timeout_ms`, or a wake-up. */
static void drive(struct nbd_store *s, int timeout_ms)
{
    unsigned direction = s->lib.aio_get_direction(s->nbd);
    struct pollfd fds[] = {
        {.fd = s->lib.aio_get_fd(s->nbd)},
        {.fd = s->wake_fd, .events = POLLIN},
    };

    fds[0].events = (short)((direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                            (direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0));
    if (poll(fds, ARRAY_SIZE(fds), timeout_ms) <= 0)
        return;
    if (fds[1].revents & POLLIN)
        event_take(s->wake_fd);
    /* who issued a command meanwhile may have changed what libnbd waits for */
    direction = s->lib.aio_get_direction(s->nbd);
    if ((fds[0].revents & (POLLIN | POLLHUP | POLLERR)) && (direction & LIBNBD_AIO_DIRECTION_READ))
        s->lib.aio_notify_read(s->nbd);
    else if ((fds[0].revents & (POLLOUT | POLLHUP | POLLERR)) &&
             (direction & LIBNBD_AIO_DIRECTION_WRITE))
        s->lib.aio_notify_write(s->nbd);
}

bool nbd_is_over(const struct nbd_store *s)
{
    return s->lib.aio_is_dead(s->nbd) || s->lib.aio_is_closed(s->nbd);
}

/* Milliseconds until the first command is too late; -1: none is under way. */
static int time_left(struct nbd_store *s)
{
    uint64_t deadline = UINT64_MAX, now = clock_now_ns();

    pthread_mutex_lock(&s->lock);
    for (const struct nbd_call *call = s->calls; call != NULL; call = call->next)
        if (!call->is_done)
            deadline = MIN(deadline, call->deadline_ns);
    pthread_mutex_unlock(&s->lock);
    if (deadline == UINT64_MAX)
        return -1;
    return deadline <= now ? 0 : (int)MIN((deadline - now) / 1000000 + 1, (uint64_t)INT32_MAX);
}

/* libnbd sees the connection end, and fails the commands. */
static void cut(struct nbd_store *s)
{
    int fd = s->lib.aio_get_fd(s->nbd);

    if (fd >= 0)
        shutdown(fd, SHUT_RDWR);
}

static bool is_stopping(struct nbd_store *s)
{
    pthread_mutex_lock(&s->lock);
    bool is = s->is_stopping;
    pthread_mutex_unlock(&s->lock);
    return is;
}

static int failed(const struct nbd_store *s, const char *what, struct err *e)
{
    const char *why = s->lib.get_error();
    int code = s->lib.get_errno();

    if (why != NULL && strstr(why, "certificate verification") != NULL)
        err_set(e, 0,
                "%s '%s': its certificate is not for a host of that name, or none of the "
                "authorities in '%s/" AUTHORITIES "' vouches for it (%s)",
                what, s->uri, s->keys, why);
    else
        err_set(e, 0, "%s '%s': %s", what, s->uri, why != NULL ? why : "the connection was lost");
    return code > 0 ? -code : -EIO;
}

/* ---- TLS ---- */

/* In one of these, as libnbd has it: which authorities may vouch for a server. */
static bool find_keys(struct nbd_store *s)
{
    static const char *const folders[] = {"/.config/pki/libnbd", "/.pki/libnbd", NULL};
    const char *home = getenv("HOME");
    char path[PATH_MAX];

    for (unsigned i = 0; i < ARRAY_SIZE(folders); i++) {
        if (folders[i] == NULL)
            snprintf(s->keys, sizeof(s->keys), "/etc/pki/libnbd");
        else if (home == NULL || snprintf(s->keys, sizeof(s->keys), "%s%s", home, folders[i]) >=
                                     (int)sizeof(s->keys))
            continue;
        if (snprintf(path, sizeof(path), "%s/" AUTHORITIES, s->keys) < (int)sizeof(path) &&
            access(path, R_OK) == 0)
            return true;
    }
    return false;
}

/*
 * libnbd (1.14 at least) checks a server's certificate only if it has a name to compare it with,
 * which it takes from a TCP address alone, and if it was given authorities: it falls back to those
 * of the host, and then checks nothing. Without a check, TLS keeps nobody from being in the middle.
 */
static int prepare_tls(struct nbd_store *s, struct err *e)
{
    if (strncmp(s->uri, "nbds", 4) != 0)
        return 0;
    if (s->uri[4] != ':')
        return err_set(e, 0,
                       "connect to '%s': by TLS, only TCP is supported (nbds://...): a certificate "
                       "cannot be checked without the name of a host",
                       s->uri);
    if (!find_keys(s))
        return err_set(e, 0,
                       "connect to '%s': there is nothing to check its certificate by; put the "
                       "authorities' into ~/.config/pki/libnbd/" AUTHORITIES
                       " (or link the host's there, /etc/ssl/certs/ca-certificates.crt)",
                       s->uri);
    if (s->lib.set_tls_certificates(s->nbd, s->keys) != 0)
        return failed(s, "prepare a connection to", e);
    return 0;
}

/* What a URI may ask for: network and Unix sockets. Not: to read files for it (keys). */
static int confine(struct nbd_store *s, struct err *e)
{
    if (s->lib.set_uri_allow_transports(s->nbd, LIBNBD_ALLOW_TRANSPORT_TCP |
                                                    LIBNBD_ALLOW_TRANSPORT_UNIX |
                                                    LIBNBD_ALLOW_TRANSPORT_VSOCK) != 0 ||
        s->lib.set_uri_allow_local_file(s->nbd, false) != 0 ||
        s->lib.add_meta_context(s->nbd, NBD_ALLOCATION) != 0)
        return failed(s, "prepare a connection to", e);
    return prepare_tls(s, e);
}

/* Until `end_ns`, or until the store is closed. */
static int make_connection(struct nbd_store *s, uint64_t end_ns, struct err *e)
{
    uint64_t now;

    s->nbd = s->lib.create();
    if (s->nbd == NULL)
        return err_set(e, ENOMEM, "connect to '%s'", s->uri);
    int rc = confine(s, e);
    if (rc != 0)
        return rc;
    if (s->lib.aio_connect_uri(s->nbd, s->uri) != 0)
        return failed(s, "connect to", e);
    while (s->lib.aio_is_connecting(s->nbd)) {
        now = clock_now_ns();
        if (now >= end_ns || is_stopping(s))
            return err_set(e, ETIMEDOUT, "connect to '%s' (no answer for %" PRIu64 " s)", s->uri,
                           s->answer_limit_ns / 1000000000u);
        drive(s, (int)MIN((end_ns - now) / 1000000 + 1, (uint64_t)INT32_MAX));
    }
    return s->lib.aio_is_ready(s->nbd) ? 0 : failed(s, "connect to", e);
}

/* Its sizes of blocks: the smallest, the best, the largest; 0: it does not say. */
static int take_blocks(struct nbd_store *s, struct nbd_export *x, struct err *e)
{
    int64_t min = s->lib.get_block_size(s->nbd, LIBNBD_SIZE_MINIMUM);
    int64_t best = s->lib.get_block_size(s->nbd, LIBNBD_SIZE_PREFERRED);
    int64_t max = s->lib.get_block_size(s->nbd, LIBNBD_SIZE_MAXIMUM);

    x->unit = BLOCK_SECTOR;
    if (min < 0 || best < 0 || max < 0)
        return failed(s, "ask for the block sizes of", e);
    if (min > BLOCK_SECTOR) {
        if (!is_pow2((uint64_t)min) || min > NBD_UNIT_MAX)
            return err_set(e, 0, "use '%s': its blocks of %" PRId64 " bytes are not supported",
                           s->uri, min);
        x->unit = (uint32_t)min;
    }
    x->transfer_max = NBD_TRANSFER_MAX;
    if (max > 0)
        x->transfer_max = align_down(MIN((uint64_t)max, NBD_TRANSFER_MAX), x->unit);
    if (x->transfer_max == 0)
        return err_set(e, 0, "use '%s': it takes at most %" PRId64 " bytes at once", s->uri, max);
    x->preferred = x->unit;
    if (best > x->unit && is_pow2((uint64_t)best) && best <= NBD_UNIT_MAX)
        x->preferred = (uint32_t)best;
    return 0;
}

static int take_export(struct nbd_store *s, struct nbd_export *x, struct err *e)
{
    int64_t size = s->lib.get_size(s->nbd);

    *x = (struct nbd_export){0};
    int rc = size >= 0 ? take_blocks(s, x, e) : failed(s, "ask for the size of", e);
    if (rc != 0)
        return rc;
    x->size = align_down((uint64_t)size, x->unit);
    x->is_read_only = s->lib.is_read_only(s->nbd) != 0;
    x->can_flush = s->lib.can_flush(s->nbd) > 0;
    x->can_fua = s->lib.can_fua(s->nbd) > 0;
    x->can_trim = s->lib.can_trim(s->nbd) > 0;
    x->can_zero = s->lib.can_zero(s->nbd) > 0;
    x->can_map = s->lib.can_meta_context(s->nbd, NBD_ALLOCATION) > 0;
    return 0;
}

/* A peer that is lost without a word is found out by the network. */
static void keep_alive(struct nbd_store *s)
{
    int fd = s->lib.aio_get_fd(s->nbd), on = 1;

    /* means nothing to a Unix socket, and is no matter then */
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
}

/* ---- another connection ---- */

static bool is_same_export(const struct nbd_export *a, const struct nbd_export *b)
{
    return a->size == b->size && a->unit == b->unit && a->preferred == b->preferred &&
           a->transfer_max == b->transfer_max && a->is_read_only == b->is_read_only &&
           a->can_flush == b->can_flush && a->can_fua == b->can_fua && a->can_trim == b->can_trim &&
           a->can_zero == b->can_zero && a->can_map == b->can_map;
}

/* On the thread itself, with nobody else there. */
static int run_here(struct nbd_store *s, const struct nbd_command *c)
{
    struct nbd_call call;
    int64_t cookie = nbd_call_begin(s, &call, c);
    bool is_cut = false;

    while (cookie >= 0 && !call.is_done) {
        int left = time_left(s);
        if (!is_cut && (left == 0 || is_stopping(s))) {
            is_cut = true; /* which ends the call */
            cut(s);
        }
        drive(s, is_cut ? -1 : left);
    }
    return nbd_call_end(s, &call, cookie);
}

/* What a server may have lost, once more. */
static int write_again(struct nbd_store *s, unsigned *count)
{
    int rc = 0;

    *count = 0;
    for (struct nbd_entry *x = s->journal.first; x != NULL && rc == 0; x = x->next, ++*count) {
        struct nbd_command c = {x->is_zeroes ? NBD_ZERO : NBD_WRITE, x->offset, x->size, x->data};
        if (x->is_zeroes && !x->may_unmap)
            c.flags = LIBNBD_CMD_FLAG_NO_HOLE;
        rc = run_here(s, &c);
    }
    return rc;
}

/* 0; -EAGAIN: it is worth another try; else *e says why it is not. */
static int connect_again(struct nbd_store *s, uint64_t end_ns, struct err *e)
{
    struct nbd_export export;
    unsigned count;

    s->lib.close(s->nbd);
    s->nbd = NULL;
    if (make_connection(s, end_ns, e) != 0 || take_export(s, &export, e) != 0)
        return s->nbd != NULL ? -EAGAIN : -ENOMEM;
    if (!is_same_export(&s->export, &export))
        return err_set(e, 0, "use '%s': its size, or what its server can do, is not what it was",
                       s->uri);
    keep_alive(s);
    int rc = write_again(s, &count);
    if (rc != 0)
        err_set(e, -rc, "write to '%s' again what had not been flushed", s->uri);
    if (rc != 0)
        return rc == -ENOTCONN ? -EAGAIN : rc;
    log_info("connected to '%s' again; what had not been flushed was written again (%u writes)",
             s->uri, count);
    return 0;
}

/* A moment later; less if the store is closed. */
static void pause_here(struct nbd_store *s)
{
    struct pollfd wake = {.fd = s->wake_fd, .events = POLLIN};

    if (poll(&wake, 1, PAUSE_MS) > 0)
        event_take(s->wake_fd);
}

/* On the thread, when the connection is lost. Is there another? */
static bool recover(struct nbd_store *s)
{
    uint64_t end = clock_now_ns() + s->answer_limit_ns;
    struct err e;
    int rc = -EAGAIN;

    pthread_mutex_lock(&s->lock);
    s->state = NBD_LOST;
    while (s->users != 0)
        pthread_cond_wait(&s->is_answered, &s->lock);
    bool has_gap = s->journal.gap != 0;
    pthread_mutex_unlock(&s->lock);
    log_warn("the connection to '%s' is lost; requests wait for another, for up to %" PRIu64 " s",
             s->uri, s->answer_limit_ns / 1000000000u);
    err_set(&e, 0, "there was no memory to keep what had not been flushed");
    while (!has_gap && rc == -EAGAIN && !is_stopping(s) && clock_now_ns() < end) {
        rc = connect_again(s, end, &e);
        if (rc == -EAGAIN)
            pause_here(s);
    }
    if (rc != 0 && !is_stopping(s))
        log_error("%s; the disk '%s' fails from now on", e.msg, s->uri);
    pthread_mutex_lock(&s->lock);
    s->state = rc == 0 ? NBD_READY : NBD_GONE;
    pthread_cond_broadcast(&s->is_answered);
    pthread_mutex_unlock(&s->lock);
    return rc == 0;
}

/* ---- the thread ---- */

static void serve(struct nbd_store *s)
{
    bool is_cut = false;

    while (!is_stopping(s) && !nbd_is_over(s)) {
        int left = is_cut ? -1 : time_left(s);
        if (left == 0) {
            is_cut = true;
            log_error("'%s' has not answered for %" PRIu64 " s; its connection is given up", s->uri,
                      s->answer_limit_ns / 1000000000u);
            cut(s);
        }
        drive(s, is_cut ? -1 : left);
    }
}

static void *nbd_run(void *ctx)
{
    struct nbd_store *s = ctx;

    do
        serve(s);
    while (!is_stopping(s) && recover(s));
    return NULL;
}

/* What is left of a connection: say good-bye, but do not wait long for an answer. */
static void say_good_bye(struct nbd_store *s)
{
    uint64_t end = clock_now_ns() + 1000000000u, now;

    if (s->nbd == NULL || !s->lib.aio_is_ready(s->nbd) || s->lib.aio_disconnect(s->nbd, 0) != 0)
        return;
    while (!nbd_is_over(s) && (now = clock_now_ns()) < end)
        drive(s, (int)((end - now) / 1000000 + 1));
}

void nbd_disconnect(struct nbd_store *s)
{
    pthread_mutex_lock(&s->lock);
    s->is_stopping = true;
    pthread_mutex_unlock(&s->lock);
    event_raise(s->wake_fd);
    pthread_join(s->thread, NULL);
    say_good_bye(s);
}

static int check_rights(struct nbd_store *s, const struct store_config *config, struct err *e)
{
    if (!config->is_read_only && s->export.is_read_only)
        return err_set(e, EROFS,
                       "open '%s' for writing: its server lets it only be read (with ',ro' it is)",
                       s->uri);
    if (!config->is_read_only && !s->export.can_flush && !s->export.can_fua && !s->ignores_flushes)
        log_info("the server of '%s' knows no flushes: what is written is safe when it says so",
                 s->uri);
    return 0;
}

int nbd_connect_first(struct nbd_store *s, const struct store_config *config, struct err *e)
{
    int rc = make_connection(s, clock_now_ns() + s->answer_limit_ns, e);

    if (rc != 0)
        return rc;
    keep_alive(s);
    rc = take_export(s, &s->export, e);
    if (rc == 0)
        rc = check_rights(s, config, e);
    if (rc == 0) {
        s->store.size = s->export.size;
        s->store.physical_size = s->export.preferred;
        s->store.is_read_only = config->is_read_only;
        rc = thread_start(&s->thread, "doppel-nbd", nbd_run, s);
        if (rc != 0)
            err_set(e, -rc, "start the thread of the disk '%s'", s->uri);
    }
    if (rc != 0)
        say_good_bye(s);
    return rc;
}
