/*
 * nbd.c - stores that a server has, by the NBD protocol
 *
 * libnbd speaks the protocol, and judges what the server says. Whoever makes a call issues a
 * command and waits for its answer; a thread of the store drives the connection. Commands of
 * several callers are under way at once.
 *
 * A server that closes the connection, breaks the protocol or leaves a command unanswered for
 * too long is gone for good: commands fail, those under way and all that come. There is no new
 * connection: a server that was started again may have lost what was written and not flushed, and
 * nothing would tell the guest.
 *
 * Locks: libnbd's own comes before `lock`, because it calls back with it held. So libnbd is never
 * called under `lock`.
 *
 * Spec: the NBD project, doc/proto.md and doc/uri.md.
 */
#include "backend/block/nbd.h"

#include <errno.h>
#include <inttypes.h>
#include <libnbd.h>
#include <limits.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend/block/store.h"
#include "base/bits.h"
#include "base/clock.h"
#include "base/log.h"
#include "os/event.h"
#include "os/thread.h"

#define UNIT_MAX 65536u                   /* of a server's smallest block */
#define TRANSFER_MAX (UINT64_C(32) << 20) /* of one command, unless the server says less */
#define RANGE_MAX (UINT64_C(1) << 30)     /* of a discard or zeroes: lengths have 32 bits */
#define ALLOCATION "base:allocation"
#define AUTHORITIES "ca-cert.pem"

/* A command under way; on the stack of who waits for it. */
struct call {
    struct nbd_store *store;
    uint64_t deadline_ns;
    bool is_done;
    int result;
    struct call *next, **link;
};

struct nbd_store {
    struct store store;
    struct nbd_handle *nbd;
    char *uri;
    char keys[PATH_MAX - 64]; /* folder with the certificates for TLS */
    _Atomic uint64_t answer_limit_ns;
    uint32_t unit;         /* offsets and sizes are multiples of it */
    uint64_t transfer_max; /* of one command */
    bool can_flush, can_fua, can_trim, can_zero, can_map;
    pthread_mutex_t around_lock; /* over reading, changing and writing what lies around */

    pthread_t thread;
    int wake_fd;
    pthread_mutex_t lock;
    pthread_cond_t is_answered;
    struct call *calls; /* under lock, as the rest */
    bool is_stopping;
};

static struct nbd_store *nbd_of(struct store *store)
{
    return CONTAINER_OF(store, struct nbd_store, store);
}

/* ---- commands ---- */

/* By libnbd, on the thread that it happened to be on. Returns that the command is finished. */
static int call_done(void *ctx, int *error)
{
    struct call *call = ctx;
    struct nbd_store *s = call->store;

    pthread_mutex_lock(&s->lock);
    call->result = -*error;
    call->is_done = true;
    pthread_cond_broadcast(&s->is_answered);
    pthread_mutex_unlock(&s->lock);
    return 1;
}

static void call_begin(struct nbd_store *s, struct call *call)
{
    *call = (struct call){.store = s, .deadline_ns = clock_now_ns() + s->answer_limit_ns};
    pthread_mutex_lock(&s->lock);
    call->next = s->calls;
    call->link = &s->calls;
    if (s->calls != NULL)
        s->calls->link = &call->next;
    s->calls = call;
    pthread_mutex_unlock(&s->lock);
}

/* After a command was issued (`cookie`), or could not be (-1). */
static int call_end(struct nbd_store *s, struct call *call, int64_t cookie)
{
    int refused = cookie < 0 ? nbd_get_errno() : 0;

    if (cookie >= 0)
        event_raise(s->wake_fd); /* there may be more to send than the socket took */
    pthread_mutex_lock(&s->lock);
    while (cookie >= 0 && !call->is_done)
        pthread_cond_wait(&s->is_answered, &s->lock);
    *call->link = call->next;
    if (call->next != NULL)
        call->next->link = call->link;
    pthread_mutex_unlock(&s->lock);
    if (cookie < 0)
        return refused == ENOTSUP ? -EOPNOTSUPP : refused == ENOMEM ? -ENOMEM : -EIO;
    /* the connection is lost: to a guest, that is its disk's failure */
    return call->result == -ENOTCONN ? -EIO : call->result;
}

#define DONE(call)                                                                                 \
    (nbd_completion_callback)                                                                      \
    {                                                                                              \
        .callback = call_done, .user_data = (call)                                                 \
    }

/* One piece of whole units. */
static int transfer_piece(struct nbd_store *s, bool is_write, uint64_t offset, uint8_t *data,
                          size_t size)
{
    uint32_t flags = is_write && !s->can_flush && s->can_fua ? LIBNBD_CMD_FLAG_FUA : 0;
    struct call call;
    int64_t cookie;

    call_begin(s, &call);
    if (is_write)
        cookie = nbd_aio_pwrite(s->nbd, data, size, offset, DONE(&call), flags);
    else
        cookie = nbd_aio_pread(s->nbd, data, size, offset, DONE(&call), 0);
    return call_end(s, &call, cookie);
}

static int transfer_pieces(struct nbd_store *s, bool is_write, uint64_t offset, uint8_t *data,
                           uint64_t size)
{
    int rc = 0;

    for (uint64_t n; size != 0 && rc == 0; offset += n, data += n, size -= n) {
        n = MIN(size, s->transfer_max);
        rc = transfer_piece(s, is_write, offset, data, n);
    }
    return rc;
}

/* Through a buffer of whole units in one piece. What lies around of a write is read first. */
static int transfer_copied(struct nbd_store *s, bool is_write, uint64_t offset, uint64_t size,
                           const struct iovec *iov, unsigned count)
{
    uint64_t from = align_down(offset, s->unit), to = align_up(offset + size, s->unit);
    bool is_around = is_write && (from != offset || to != offset + size);
    uint8_t *flat = malloc(to - from);
    int rc = 0;

    if (flat == NULL)
        return -ENOMEM;
    if (is_around)
        pthread_mutex_lock(&s->around_lock);
    if (!is_write || is_around)
        rc = transfer_pieces(s, false, from, flat, to - from);
    if (rc == 0 && !is_write)
        iov_scatter(flat + (offset - from), iov, count);
    if (rc == 0 && is_write) {
        iov_gather(flat + (offset - from), iov, count);
        rc = transfer_pieces(s, true, from, flat, to - from);
    }
    if (is_around)
        pthread_mutex_unlock(&s->around_lock);
    free(flat);
    return rc;
}

static int nbd_store_transfer(struct store *store, bool is_write, uint64_t offset, uint64_t size,
                              const struct iovec *iov, unsigned count)
{
    struct nbd_store *s = nbd_of(store);
    uint64_t there = offset < store->size ? MIN(size, store->size - offset) : 0;

    if (there != size && is_write)
        return -ENOSPC; /* an export is as large as it is */
    if (there != size) {
        uint8_t *flat = calloc(1, size + 1);
        struct iovec all = {flat, there};
        int rc = flat == NULL ? -ENOMEM : 0;
        if (rc == 0 && there != 0)
            rc = transfer_copied(s, false, offset, there, &all, 1);
        if (rc == 0)
            iov_scatter(flat, iov, count);
        free(flat);
        return rc;
    }
    if (count == 1 && ((offset | size) & (s->unit - 1)) == 0)
        return transfer_pieces(s, is_write, offset, iov[0].iov_base, size);
    return transfer_copied(s, is_write, offset, size, iov, count);
}

static int nbd_store_flush(struct store *store)
{
    struct nbd_store *s = nbd_of(store);
    struct call call;

    if (!s->can_flush)
        return 0; /* writes were flushed one by one, or the server knows no such thing */
    call_begin(s, &call);
    return call_end(s, &call, nbd_aio_flush(s->nbd, DONE(&call), 0));
}

/* Discards, or zeroes, the whole units of a range. */
static int change_range(struct nbd_store *s, bool is_discard, uint64_t from, uint64_t to,
                        bool may_unmap)
{
    uint32_t flags = !is_discard && !may_unmap ? LIBNBD_CMD_FLAG_NO_HOLE : 0;
    int rc = 0;

    if (!is_discard && !s->can_flush && s->can_fua)
        flags |= LIBNBD_CMD_FLAG_FUA;
    for (uint64_t n; from < to && rc == 0; from += n) {
        struct call call;
        n = MIN(to - from, RANGE_MAX);
        call_begin(s, &call);
        rc = call_end(s, &call,
                      is_discard ? nbd_aio_trim(s->nbd, n, from, DONE(&call), flags)
                                 : nbd_aio_zero(s->nbd, n, from, DONE(&call), flags));
    }
    return rc;
}

static int nbd_store_discard(struct store *store, uint64_t offset, uint64_t size)
{
    struct nbd_store *s = nbd_of(store);
    int rc = s->can_trim ? change_range(s, true, align_up(offset, s->unit),
                                        align_down(offset + size, s->unit), true)
                         : 0;

    /* a hint that the server does not take is no failure */
    return rc == -EOPNOTSUPP || rc == -EINVAL ? 0 : rc;
}

static int nbd_store_write_zeroes(struct store *store, uint64_t offset, uint64_t size,
                                  bool may_unmap)
{
    struct nbd_store *s = nbd_of(store);
    uint64_t from = align_up(offset, s->unit), to = align_down(offset + size, s->unit);
    int rc;

    if (!s->can_zero || from >= to)
        return store_write_zero_data(store, offset, size);
    rc = from > offset ? store_write_zero_data(store, offset, from - offset) : 0;
    if (rc == 0)
        rc = change_range(s, false, from, to, may_unmap);
    if (rc == -EOPNOTSUPP || rc == -EINVAL)
        rc = store_write_zero_data(store, from, to - from);
    if (rc == 0 && to < offset + size)
        rc = store_write_zero_data(store, to, offset + size - to);
    return rc;
}

/* The first extent that the server tells of; what comes after it is asked for again. */
struct extent {
    uint64_t size;
    bool is_zero;
};

static int extent_told(void *ctx, const char *context, uint64_t offset, uint32_t *entries,
                       size_t count, int *error)
{
    struct extent *extent = ctx;

    if (strcmp(context, ALLOCATION) == 0 && extent->size == 0 && count >= 2) {
        extent->size = entries[0];
        extent->is_zero = entries[1] & LIBNBD_STATE_ZERO;
    }
    return 0;
}

static int nbd_store_map(struct store *store, uint64_t offset, uint64_t *size, bool *is_zero)
{
    struct nbd_store *s = nbd_of(store);
    nbd_extent_callback told = {.callback = extent_told};
    struct extent extent = {0};
    struct call call;

    *is_zero = false;
    *size = MIN(*size, RANGE_MAX);
    if (!s->can_map || !range_fits(offset, *size, store->size) ||
        ((offset | *size) & (s->unit - 1)) != 0)
        return 0;
    told.user_data = &extent;
    call_begin(s, &call);
    int rc = call_end(
        s, &call,
        nbd_aio_block_status(s->nbd, *size, offset, told, DONE(&call), LIBNBD_CMD_FLAG_REQ_ONE));
    extent.size = align_down(extent.size, BLOCK_SECTOR);
    if (rc != 0 || extent.size == 0)
        return rc == -EIO ? rc : 0; /* who does not know says that all may be data */
    *size = MIN(*size, extent.size);
    *is_zero = extent.is_zero;
    return 0;
}

static int nbd_store_length(struct store *store, uint64_t *out)
{
    *out = store->size;
    return 0;
}

static int nbd_store_resize(struct store *store, uint64_t size)
{
    return -EOPNOTSUPP;
}

static int nbd_store_allocate(struct store *store, uint64_t offset, uint64_t size)
{
    return 0;
}

/* ---- the connection ---- */

/* What the socket and libnbd have for one another. Up to `timeout_ms`, or a wake-up. */
static void drive(struct nbd_store *s, int timeout_ms)
{
    unsigned direction = nbd_aio_get_direction(s->nbd);
    struct pollfd fds[] = {
        {.fd = nbd_aio_get_fd(s->nbd)},
        {.fd = s->wake_fd, .events = POLLIN},
    };

    fds[0].events = (short)((direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                            (direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0));
    if (poll(fds, ARRAY_SIZE(fds), timeout_ms) <= 0)
        return;
    if (fds[1].revents & POLLIN)
        event_take(s->wake_fd);
    /* who issued a command meanwhile may have changed what libnbd waits for */
    direction = nbd_aio_get_direction(s->nbd);
    if ((fds[0].revents & (POLLIN | POLLHUP | POLLERR)) && (direction & LIBNBD_AIO_DIRECTION_READ))
        nbd_aio_notify_read(s->nbd);
    else if ((fds[0].revents & (POLLOUT | POLLHUP | POLLERR)) &&
             (direction & LIBNBD_AIO_DIRECTION_WRITE))
        nbd_aio_notify_write(s->nbd);
}

static bool is_over(struct nbd_store *s)
{
    return nbd_aio_is_dead(s->nbd) || nbd_aio_is_closed(s->nbd);
}

/* Milliseconds until the first command is too late; -1: none is under way. */
static int time_left(struct nbd_store *s)
{
    uint64_t deadline = UINT64_MAX, now = clock_now_ns();

    pthread_mutex_lock(&s->lock);
    for (const struct call *call = s->calls; call != NULL; call = call->next)
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
    int fd = nbd_aio_get_fd(s->nbd);

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

static void *nbd_run(void *ctx)
{
    struct nbd_store *s = ctx;
    bool is_cut = false;

    while (!is_stopping(s) && !is_over(s)) {
        int left = is_cut ? -1 : time_left(s);
        if (left == 0) {
            is_cut = true;
            log_error("'%s' has not answered for %" PRIu64 " s; it counts as gone", s->uri,
                      s->answer_limit_ns / 1000000000u);
            cut(s);
        }
        drive(s, is_cut ? -1 : left);
    }
    if (!is_stopping(s))
        log_error("the connection to '%s' is lost: the disk fails from now on", s->uri);
    return NULL;
}

/* What is left of a connection: say good-bye, but do not wait long for an answer. */
static void disconnect(struct nbd_store *s)
{
    uint64_t end = clock_now_ns() + 1000000000u, now;

    if (!nbd_aio_is_ready(s->nbd) || nbd_aio_disconnect(s->nbd, 0) != 0)
        return;
    while (!is_over(s) && (now = clock_now_ns()) < end)
        drive(s, (int)((end - now) / 1000000 + 1));
}

static void nbd_free(struct nbd_store *s)
{
    nbd_close(s->nbd);
    if (s->wake_fd >= 0)
        close(s->wake_fd);
    pthread_cond_destroy(&s->is_answered);
    pthread_mutex_destroy(&s->lock);
    pthread_mutex_destroy(&s->around_lock);
    free(s->uri);
    free(s);
}

static void nbd_store_close(struct store *store)
{
    struct nbd_store *s = nbd_of(store);

    pthread_mutex_lock(&s->lock);
    s->is_stopping = true;
    pthread_mutex_unlock(&s->lock);
    event_raise(s->wake_fd);
    pthread_join(s->thread, NULL);
    disconnect(s);
    nbd_free(s);
}

static const struct store_ops nbd_ops = {
    .transfer = nbd_store_transfer,
    .flush = nbd_store_flush,
    .discard = nbd_store_discard,
    .write_zeroes = nbd_store_write_zeroes,
    .map = nbd_store_map,
    .length = nbd_store_length,
    .resize = nbd_store_resize,
    .allocate = nbd_store_allocate,
    .close = nbd_store_close,
};

void nbd_limit_answers(struct store *store, unsigned answer_limit_ms)
{
    nbd_of(store)->answer_limit_ns = answer_limit_ms * UINT64_C(1000000);
}

/* ---- opening ---- */

bool nbd_is_uri(const char *path)
{
    static const char *const schemes[] = {"nbd",       "nbds",      "nbd+unix",
                                          "nbds+unix", "nbd+vsock", "nbds+vsock"};

    for (unsigned i = 0; i < ARRAY_SIZE(schemes); i++) {
        size_t n = strlen(schemes[i]);
        if (strncmp(path, schemes[i], n) == 0 && strncmp(path + n, "://", 3) == 0)
            return true;
    }
    return false;
}

static int failed(const struct nbd_store *s, const char *what, struct err *e)
{
    const char *why = nbd_get_error();
    int code = nbd_get_errno();

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
    if (nbd_set_tls_certificates(s->nbd, s->keys) != 0)
        return failed(s, "prepare a connection to", e);
    return 0;
}

/* What a URI may ask for: network and Unix sockets. Not: to read files for it (keys). */
static int confine(struct nbd_store *s, struct err *e)
{
    if (nbd_set_uri_allow_transports(s->nbd, LIBNBD_ALLOW_TRANSPORT_TCP |
                                                 LIBNBD_ALLOW_TRANSPORT_UNIX |
                                                 LIBNBD_ALLOW_TRANSPORT_VSOCK) != 0 ||
        nbd_set_uri_allow_local_file(s->nbd, false) != 0 ||
        nbd_add_meta_context(s->nbd, ALLOCATION) != 0)
        return failed(s, "prepare a connection to", e);
    return prepare_tls(s, e);
}

static int make_connection(struct nbd_store *s, struct err *e)
{
    uint64_t end = clock_now_ns() + s->answer_limit_ns, now;

    if (nbd_aio_connect_uri(s->nbd, s->uri) != 0)
        return failed(s, "connect to", e);
    while (nbd_aio_is_connecting(s->nbd)) {
        now = clock_now_ns();
        if (now >= end)
            return err_set(e, ETIMEDOUT, "connect to '%s' (no answer for %" PRIu64 " s)", s->uri,
                           s->answer_limit_ns / 1000000000u);
        drive(s, (int)MIN((end - now) / 1000000 + 1, (uint64_t)INT32_MAX));
    }
    return nbd_aio_is_ready(s->nbd) ? 0 : failed(s, "connect to", e);
}

/* Its sizes of blocks: the smallest, the best, the largest; 0: it does not say. */
static int take_blocks(struct nbd_store *s, struct err *e)
{
    int64_t min = nbd_get_block_size(s->nbd, LIBNBD_SIZE_MINIMUM);
    int64_t best = nbd_get_block_size(s->nbd, LIBNBD_SIZE_PREFERRED);
    int64_t max = nbd_get_block_size(s->nbd, LIBNBD_SIZE_MAXIMUM);

    s->unit = BLOCK_SECTOR;
    if (min < 0 || best < 0 || max < 0)
        return failed(s, "ask for the block sizes of", e);
    if (min > BLOCK_SECTOR) {
        if (!is_pow2((uint64_t)min) || min > UNIT_MAX)
            return err_set(e, 0, "use '%s': its blocks of %" PRId64 " bytes are not supported",
                           s->uri, min);
        s->unit = (uint32_t)min;
    }
    s->transfer_max = TRANSFER_MAX;
    if (max > 0)
        s->transfer_max = align_down(MIN((uint64_t)max, TRANSFER_MAX), s->unit);
    if (s->transfer_max == 0)
        return err_set(e, 0, "use '%s': it takes at most %" PRId64 " bytes at once", s->uri, max);
    s->store.physical_size = s->unit;
    if (best > s->unit && is_pow2((uint64_t)best) && best <= UNIT_MAX)
        s->store.physical_size = (uint32_t)best;
    return 0;
}

static int take_export(struct nbd_store *s, const struct store_config *config, struct err *e)
{
    bool is_read_only = config->is_read_only;
    int64_t size = nbd_get_size(s->nbd);
    int rc = size >= 0 ? take_blocks(s, e) : failed(s, "ask for the size of", e);

    if (rc != 0)
        return rc;
    s->store.size = align_down((uint64_t)size, s->unit);
    s->store.is_read_only = is_read_only;
    if (!is_read_only && nbd_is_read_only(s->nbd) != 0)
        return err_set(e, EROFS,
                       "open '%s' for writing: its server lets it only be read (with ',ro' it is)",
                       s->uri);
    s->can_flush = nbd_can_flush(s->nbd) > 0;
    s->can_fua = nbd_can_fua(s->nbd) > 0;
    if (config->cache == BLOCK_CACHE_UNSAFE)
        s->can_flush = s->can_fua = false; /* nothing is asked for */
    s->can_trim = nbd_can_trim(s->nbd) > 0;
    s->can_zero = nbd_can_zero(s->nbd) > 0;
    s->can_map = nbd_can_meta_context(s->nbd, ALLOCATION) > 0;
    if (!is_read_only && !s->can_flush && !s->can_fua && config->cache != BLOCK_CACHE_UNSAFE)
        log_info("the server of '%s' knows no flushes: what is written is safe when it says so",
                 s->uri);
    return 0;
}

/* A peer that is lost without a word is found out by the network. */
static void keep_alive(struct nbd_store *s)
{
    int fd = nbd_aio_get_fd(s->nbd), on = 1;

    /* means nothing to a Unix socket, and is no matter then */
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
}

static int start_thread(struct nbd_store *s, struct err *e)
{
    int rc = thread_start(&s->thread, "doppel-nbd", nbd_run, s);

    return rc == 0 ? 0 : err_set(e, -rc, "start the thread of the disk '%s'", s->uri);
}

int store_open_nbd(const struct store_config *config, unsigned answer_limit_ms, struct store **out,
                   struct err *e)
{
    struct nbd_store *s = calloc(1, sizeof(*s));

    if (s == NULL)
        return err_set(e, ENOMEM, "open the disk '%s'", config->path);
    s->store.ops = &nbd_ops;
    s->answer_limit_ns = answer_limit_ms * UINT64_C(1000000);
    pthread_mutex_init(&s->around_lock, NULL);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->is_answered, NULL);
    s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    s->uri = strdup(config->path);
    s->nbd = nbd_create();
    int rc = s->wake_fd >= 0 && s->uri != NULL && s->nbd != NULL
                 ? confine(s, e)
                 : err_set(e, ENOMEM, "open the disk '%s'", config->path);
    if (rc == 0)
        rc = make_connection(s, e);
    if (rc == 0) {
        keep_alive(s);
        rc = take_export(s, config, e);
        if (rc == 0)
            rc = start_thread(s, e);
        if (rc != 0)
            disconnect(s);
    }
    if (rc != 0) {
        nbd_free(s);
        return rc;
    }
    *out = &s->store;
    return 0;
}
