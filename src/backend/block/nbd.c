/*
 * nbd.c - stores that a server has, by the NBD protocol
 *
 * libnbd speaks the protocol, and judges what the server says. Whoever makes a call issues a
 * command and waits for its answer; a thread of the store drives the connection. Commands of
 * several callers are under way at once.
 *
 * When the connection is lost, the thread tries to get another, and callers wait. What the server
 * had acknowledged and not flushed may be lost: it is in a journal, and written again before
 * anything else. Then callers issue again what had no answer. So flushes mean what they always do.
 *
 * Locks: libnbd's own comes before `lock`, because it calls back with it held. So libnbd is never
 * called under `lock`.
 *
 * Spec: the NBD project, doc/proto.md and doc/uri.md.
 */
#include "backend/block/nbd.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "backend/block/nbd_impl.h"
#include "base/bits.h"
#include "base/clock.h"
#include "os/event.h"

#define ATTEMPTS 5u /* at a command whose connection is lost */
#define JOURNAL_MAX                                                                                \
    (UINT64_C(64) << 20) /* bytes that are not flushed, before we have them flushed */

static struct nbd_store *nbd_of(struct store *store)
{
    return CONTAINER_OF(store, struct nbd_store, store);
}

/* ---- calls ---- */

/* By libnbd, on the thread that it happened to be on. Returns that the command is finished. */
static int call_done(void *ctx, int *error)
{
    struct nbd_call *call = ctx;
    struct nbd_store *s = call->store;

    pthread_mutex_lock(&s->lock);
    call->result = -*error;
    call->is_done = true;
    pthread_cond_broadcast(&s->is_answered);
    pthread_mutex_unlock(&s->lock);
    return 1;
}

static int64_t issue(struct nbd_store *s, struct nbd_call *call, const struct nbd_command *c)
{
    nbd_completion_callback done = {.callback = call_done, .user_data = call};

    switch (c->kind) {
    case NBD_READ:
        return s->lib.aio_pread(s->nbd, c->data, c->size, c->offset, done, c->flags);
    case NBD_WRITE:
        return s->lib.aio_pwrite(s->nbd, c->data, c->size, c->offset, done, c->flags);
    case NBD_FLUSH:
        return s->lib.aio_flush(s->nbd, done, c->flags);
    case NBD_TRIM:
        return s->lib.aio_trim(s->nbd, c->size, c->offset, done, c->flags);
    case NBD_ZERO:
        return s->lib.aio_zero(s->nbd, c->size, c->offset, done, c->flags);
    default:
        return s->lib.aio_block_status(s->nbd, c->size, c->offset, c->told, done, c->flags);
    }
}

int64_t nbd_call_begin(struct nbd_store *s, struct nbd_call *call, const struct nbd_command *c)
{
    *call = (struct nbd_call){.store = s, .deadline_ns = clock_now_ns() + s->answer_limit_ns};
    pthread_mutex_lock(&s->lock);
    call->next = s->calls;
    call->link = &s->calls;
    if (s->calls != NULL)
        s->calls->link = &call->next;
    s->calls = call;
    pthread_mutex_unlock(&s->lock);
    return issue(s, call, c);
}

int nbd_call_end(struct nbd_store *s, struct nbd_call *call, int64_t cookie)
{
    int refused = cookie < 0 ? s->lib.get_errno() : 0;

    pthread_mutex_lock(&s->lock);
    *call->link = call->next;
    if (call->next != NULL)
        call->next->link = call->link;
    pthread_mutex_unlock(&s->lock);
    if (cookie >= 0)
        return call->result;
    if (nbd_is_over(s))
        return -ENOTCONN;
    return refused == ENOTSUP ? -EOPNOTSUPP : refused == ENOMEM ? -ENOMEM : -EIO;
}

/* ---- commands ---- */

/* The connection, as soon as there is one. */
static int use_connection(struct nbd_store *s)
{
    pthread_mutex_lock(&s->lock);
    while (s->state == NBD_LOST)
        pthread_cond_wait(&s->is_answered, &s->lock);
    int rc = s->state == NBD_READY ? 0 : -EIO;
    s->users += rc == 0;
    pthread_mutex_unlock(&s->lock);
    return rc;
}

/* What was written is in the journal before its caller hears of it, and before there is another
 * connection. */
static void leave_connection(struct nbd_store *s, const struct nbd_command *c, int rc)
{
    bool is_kept = rc == 0 && s->export.can_flush && (c->kind == NBD_WRITE || c->kind == NBD_ZERO);
    struct nbd_entry *entry = NULL;

    if (is_kept)
        entry =
            nbd_journal_entry(c->offset, c->size, c->data, !(c->flags & LIBNBD_CMD_FLAG_NO_HOLE));
    pthread_mutex_lock(&s->lock);
    if (is_kept)
        nbd_journal_add(&s->journal, entry);
    if (rc == 0 && c->kind == NBD_FLUSH)
        nbd_journal_drop(&s->journal, c->number);
    if (rc == -ENOTCONN && s->state == NBD_READY)
        s->state = NBD_LOST;
    if (--s->users == 0)
        pthread_cond_broadcast(&s->is_answered);
    pthread_mutex_unlock(&s->lock);
    if (rc == -ENOTCONN)
        event_raise(s->wake_fd);
}

static int run_once(struct nbd_store *s, const struct nbd_command *c)
{
    struct nbd_call call;
    int rc = use_connection(s);

    if (rc != 0)
        return rc;
    int64_t cookie = nbd_call_begin(s, &call, c);
    if (cookie >= 0) {
        event_raise(s->wake_fd); /* there may be more to send than the socket took */
        pthread_mutex_lock(&s->lock);
        while (!call.is_done)
            pthread_cond_wait(&s->is_answered, &s->lock);
        pthread_mutex_unlock(&s->lock);
    }
    rc = nbd_call_end(s, &call, cookie);
    leave_connection(s, c, rc);
    return rc;
}

static int run(struct nbd_store *s, const struct nbd_command *c)
{
    int rc = -ENOTCONN;

    for (unsigned i = 0; i < ATTEMPTS && rc == -ENOTCONN; i++)
        rc = run_once(s, c);
    return rc == -ENOTCONN ? -EIO : rc;
}

/* What was acknowledged before this was called is on stable storage afterwards. */
static int flush(struct nbd_store *s)
{
    struct nbd_command c = {.kind = NBD_FLUSH};

    pthread_mutex_lock(&s->lock);
    c.number = s->journal.number;
    pthread_mutex_unlock(&s->lock);
    /* if it is issued a second time, what had been acknowledged was written again before */
    return run(s, &c);
}

static int run_write(struct nbd_store *s, const struct nbd_command *c)
{
    int rc = run(s, c);

    pthread_mutex_lock(&s->lock);
    bool is_full = s->journal.bytes > JOURNAL_MAX || s->journal.gap != 0;
    pthread_mutex_unlock(&s->lock);
    return rc == 0 && is_full ? flush(s) : rc;
}

/* Without flushes, writes are durable by themselves if that can be had: also with cache=unsafe, as
 * the disk is to outlive its server. */
static uint32_t write_flags(const struct nbd_store *s)
{
    return !s->export.can_flush && s->export.can_fua ? LIBNBD_CMD_FLAG_FUA : 0;
}

/* One piece of whole units. */
static int transfer_piece(struct nbd_store *s, bool is_write, uint64_t offset, uint8_t *data,
                          size_t size)
{
    struct nbd_command c = {is_write ? NBD_WRITE : NBD_READ, offset, size, data};

    c.flags = is_write ? write_flags(s) : 0;
    return is_write ? run_write(s, &c) : run(s, &c);
}

static int transfer_pieces(struct nbd_store *s, bool is_write, uint64_t offset, uint8_t *data,
                           uint64_t size)
{
    int rc = 0;

    for (uint64_t n; size != 0 && rc == 0; offset += n, data += n, size -= n) {
        n = MIN(size, s->export.transfer_max);
        rc = transfer_piece(s, is_write, offset, data, n);
    }
    return rc;
}

/* Through a buffer of whole units in one piece. What lies around of a write is read first. */
static int transfer_copied(struct nbd_store *s, bool is_write, uint64_t offset, uint64_t size,
                           const struct iovec *iov, unsigned count)
{
    uint64_t from = align_down(offset, s->export.unit),
             to = align_up(offset + size, s->export.unit);
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
    if (count == 1 && ((offset | size) & (s->export.unit - 1)) == 0)
        return transfer_pieces(s, is_write, offset, iov[0].iov_base, size);
    return transfer_copied(s, is_write, offset, size, iov, count);
}

static int nbd_store_flush(struct store *store)
{
    struct nbd_store *s = nbd_of(store);

    if (!s->export.can_flush || s->ignores_flushes)
        return 0; /* writes were flushed one by one, or the server knows no such thing */
    return flush(s);
}

/* Discards, or zeroes, the whole units of a range. */
static int change_range(struct nbd_store *s, bool is_discard, uint64_t from, uint64_t to,
                        bool may_unmap)
{
    struct nbd_command c = {.kind = is_discard ? NBD_TRIM : NBD_ZERO};
    int rc = 0;

    if (!is_discard)
        c.flags = write_flags(s) | (may_unmap ? 0 : LIBNBD_CMD_FLAG_NO_HOLE);
    for (; from < to && rc == 0; from += c.size) {
        c.offset = from;
        c.size = MIN(to - from, NBD_RANGE_MAX);
        rc = is_discard ? run(s, &c) : run_write(s, &c);
    }
    return rc;
}

static int nbd_store_discard(struct store *store, uint64_t offset, uint64_t size)
{
    struct nbd_store *s = nbd_of(store);
    int rc = s->export.can_trim ? change_range(s, true, align_up(offset, s->export.unit),
                                               align_down(offset + size, s->export.unit), true)
                                : 0;

    /* a hint that the server does not take is no failure */
    return rc == -EOPNOTSUPP || rc == -EINVAL ? 0 : rc;
}

static int nbd_store_write_zeroes(struct store *store, uint64_t offset, uint64_t size,
                                  bool may_unmap)
{
    struct nbd_store *s = nbd_of(store);
    uint64_t from = align_up(offset, s->export.unit),
             to = align_down(offset + size, s->export.unit);
    int rc;

    if (!s->export.can_zero || from >= to)
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

    if (strcmp(context, NBD_ALLOCATION) == 0 && extent->size == 0 && count >= 2) {
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

    *is_zero = false;
    *size = MIN(*size, NBD_RANGE_MAX);
    if (!s->export.can_map || !range_fits(offset, *size, store->size) ||
        ((offset | *size) & (s->export.unit - 1)) != 0)
        return 0;
    told.user_data = &extent;
    struct nbd_command c = {.kind = NBD_STATUS, .offset = offset, .size = *size, .told = told};
    c.flags = LIBNBD_CMD_FLAG_REQ_ONE;
    int rc = run(s, &c);
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

/* ---- opening and closing ---- */

static void nbd_free(struct nbd_store *s)
{
    s->lib.close(s->nbd);
    nbd_journal_free(&s->journal);
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

    nbd_disconnect(s);
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

int store_open_nbd(const struct store_config *config, unsigned answer_limit_ms, struct store **out,
                   struct err *e)
{
    struct nbd_library lib;
    struct nbd_store *s;
    int rc = nbd_library_load(&lib, e);

    if (rc != 0)
        return err_prefix(e, "open the disk '%s'", config->path);
    s = calloc(1, sizeof(*s));
    if (s == NULL)
        return err_set(e, ENOMEM, "open the disk '%s'", config->path);
    s->lib = lib;
    s->store.ops = &nbd_ops;
    s->answer_limit_ns = answer_limit_ms * UINT64_C(1000000);
    pthread_mutex_init(&s->around_lock, NULL);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->is_answered, NULL);
    nbd_journal_init(&s->journal);
    s->ignores_flushes = config->cache == BLOCK_CACHE_UNSAFE;
    s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    s->uri = strdup(config->path);
    rc = s->wake_fd >= 0 && s->uri != NULL ? nbd_connect_first(s, config, e)
                                           : err_set(e, ENOMEM, "open the disk '%s'", config->path);
    if (rc != 0) {
        nbd_free(s);
        return rc;
    }
    *out = &s->store;
    return 0;
}
