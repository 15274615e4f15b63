/*
 * ring.c - requests that the kernel carries out by io_uring
 *
 * The thread sleeps in the ring. Who submits writes to an eventfd, which the ring always polls
 * (the wake entry), unless the thread is awake anyhow.
 *
 * Completions cannot overflow: at most SLOTS requests, the wake entry and as many withdrawn ones
 * as the submission queue has are ever out, which is less than the completion queue holds.
 *
 * An entry that the kernel does not take for lack of something (EAGAIN, EBUSY) is made into one
 * that does nothing, and its request is passed on: there is nothing to wait for that would say
 * when to try again.
 *
 * Spec: io_uring_enter(2), io_uring_setup(2).
 */
#include "backend/block/ring.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <linux/falloc.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <liburing.h>

#include "backend/block/store.h"
#include "base/bits.h"
#include "base/log.h"
#include "os/event.h"
#include "os/thread.h"

#define SLOTS 128u
#define ENTRIES 256u           /* of the submission queue; there are twice as many completions */
#define BATCH_BYTES (1u << 20) /* that are submitted before completions are looked at */

_Static_assert(SLOTS + 1 + ENTRIES <= 2 * ENTRIES, "completions could overflow");

struct slot {
    struct block_request *request;
    struct image_place place;
    struct slot *next_free;
};

struct list {
    struct block_request *first, **last;
};

struct ring {
    struct io_uring uring;
    struct ring_owner owner;
    pthread_t thread;
    int wake_fd;

    /* the thread's own */
    struct slot slots[SLOTS], *free;
    unsigned in_flight;  /* slots in use */
    struct list waiting; /* taken, and without a slot */
    bool is_wake_armed;

    pthread_mutex_t lock;
    pthread_cond_t became_idle; /* or was set up */
    struct list submitted;      /* under lock, as the rest */
    int setup;                  /* 1: not yet known; else what it came to, 0 or -errno */
    bool is_idle;               /* nothing is in flight or waiting */
    bool is_sleeping;
    bool is_held;
    bool is_stopping;
    bool is_stopped; /* the thread takes nothing any more */
};

/* What entries carry as user_data, besides slots. */
#define WITHDRAWN NULL
static void *wake_token(struct ring *ring)
{
    return &ring->wake_fd;
}

static void list_init(struct list *list)
{
    list->first = NULL;
    list->last = &list->first;
}

static void list_add(struct list *list, struct block_request *r)
{
    r->next = NULL;
    *list->last = r;
    list->last = &r->next;
}

/* ---- any thread ---- */

void ring_submit(struct ring *ring, struct block_request *request)
{
    pthread_mutex_lock(&ring->lock);
    bool is_sleeping = ring->is_sleeping, is_stopped = ring->is_stopped;
    ring->is_sleeping = false;
    if (!is_stopped)
        list_add(&ring->submitted, request);
    pthread_mutex_unlock(&ring->lock);
    if (is_stopped)
        ring->owner.pass(ring->owner.ctx, request);
    else if (is_sleeping)
        event_raise(ring->wake_fd);
}

void ring_hold(struct ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    ring->is_held = true;
    while (!ring->is_idle)
        pthread_cond_wait(&ring->became_idle, &ring->lock);
    pthread_mutex_unlock(&ring->lock);
}

void ring_release(struct ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    ring->is_held = false;
    pthread_mutex_unlock(&ring->lock);
    event_raise(ring->wake_fd);
}

/* ---- the thread: requests to the kernel ---- */

static void leave(struct image_place *place)
{
    if (place->image->ops->leave != NULL)
        place->image->ops->leave(place->image, place);
}

static void slot_free(struct ring *ring, struct slot *slot)
{
    leave(&slot->place);
    slot->next_free = ring->free;
    ring->free = slot;
    ring->in_flight--;
}

static void fill_entry(struct io_uring_sqe *sqe, const struct block_request *r,
                       const struct image_place *place)
{
    int fd = place->file->fd;

    switch (r->op) {
    case BLOCK_READ:
        io_uring_prep_readv(sqe, fd, r->iov, r->iov_count, place->offset);
        break;
    case BLOCK_WRITE:
        io_uring_prep_writev(sqe, fd, r->iov, r->iov_count, place->offset);
        break;
    case BLOCK_FLUSH:
        io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
        break;
    case BLOCK_DISCARD:
        io_uring_prep_fallocate(sqe, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                (off_t)place->offset, (off_t)r->size);
        break;
    case BLOCK_WRITE_ZEROES:
        io_uring_prep_fallocate(sqe, fd,
                                (r->may_unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) |
                                    FALLOC_FL_KEEP_SIZE,
                                (off_t)place->offset, (off_t)r->size);
        break;
    }
}

/* Can the kernel take the request as it is? */
static bool suits(const struct block_request *r, const struct image_place *place)
{
    const struct store_file *file = place->file;
    uintptr_t all = place->offset;

    if (r->op == BLOCK_FLUSH)
        return true;
    if (r->op == BLOCK_DISCARD || r->op == BLOCK_WRITE_ZEROES)
        return file->has_fallocate;
    if (r->iov_count > IOV_MAX)
        return false;
    for (unsigned i = 0; i < r->iov_count; i++)
        all |= (uintptr_t)r->iov[i].iov_base | r->iov[i].iov_len;
    return (all & (file->align - 1)) == 0;
}

/* True when the request is on its way or passed on; false when there is no room for it. */
static bool start(struct ring *ring, struct block_request *r)
{
    struct slot *slot = ring->free;
    struct io_uring_sqe *sqe;

    if (slot == NULL)
        return false;
    if (!ring->owner.locate(ring->owner.ctx, r, &slot->place)) {
        ring->owner.pass(ring->owner.ctx, r);
        return true;
    }
    sqe = suits(r, &slot->place) ? io_uring_get_sqe(&ring->uring) : NULL;
    if (sqe == NULL) {
        leave(&slot->place);
        ring->owner.pass(ring->owner.ctx, r);
        return true;
    }
    fill_entry(sqe, r, &slot->place);
    io_uring_sqe_set_data(sqe, slot);
    ring->free = slot->next_free;
    ring->in_flight++;
    slot->request = r;
    return true;
}

static void start_some(struct ring *ring)
{
    uint64_t bytes = 0;

    while (ring->waiting.first != NULL && bytes < BATCH_BYTES) {
        uint64_t size = ring->waiting.first->size;
        struct block_request *next = ring->waiting.first->next;
        if (!start(ring, ring->waiting.first))
            return;
        bytes += size;
        ring->waiting.first = next; /* the request may be somebody else's by now */
        if (next == NULL)
            ring->waiting.last = &ring->waiting.first;
    }
}

/* ---- the thread: what came of them ---- */

/* Errors that say that it was not, or not wholly, tried. */
static bool is_untried(int result)
{
    return result == -EINTR || result == -EAGAIN || result == -ECANCELED || result == -EINVAL ||
           result == -EOPNOTSUPP || result == -ENOSYS;
}

static bool is_whole(const struct block_request *r, int result)
{
    bool is_transfer = r->op == BLOCK_READ || r->op == BLOCK_WRITE;

    return result >= 0 && (uint64_t)result == (is_transfer ? r->size : 0);
}

static void finish(struct ring *ring, struct slot *slot, int result)
{
    struct block_request *r = slot->request;
    const struct block_faults *faults = ring->owner.faults;

    if (faults != NULL && faults->result != NULL)
        result = faults->result(faults->ctx, r, result);
    bool is_ours = is_whole(r, result);
    if (result < 0 && r->op <= BLOCK_FLUSH)
        is_ours = !is_untried(result);
    if (is_ours && r->op == BLOCK_FLUSH)
        result = store_file_flushed(slot->place.file, result);
    slot_free(ring, slot);
    if (is_ours)
        r->done(r, MIN(result, 0));
    else
        ring->owner.pass(ring->owner.ctx, r);
}

static void reap(struct ring *ring)
{
    struct io_uring_cqe *cqe;

    while (io_uring_peek_cqe(&ring->uring, &cqe) == 0) {
        void *data = io_uring_cqe_get_data(cqe);
        int result = cqe->res;
        io_uring_cqe_seen(&ring->uring, cqe);
        if (data == wake_token(ring)) {
            ring->is_wake_armed = false;
            event_take(ring->wake_fd);
        } else if (data != WITHDRAWN)
            finish(ring, data, result);
    }
}

/* ---- the thread: entering the kernel ---- */

static void arm_wake(struct ring *ring)
{
    struct io_uring_sqe *sqe = ring->is_wake_armed ? NULL : io_uring_get_sqe(&ring->uring);

    if (sqe == NULL)
        return;
    io_uring_prep_poll_add(sqe, ring->wake_fd, POLLIN);
    io_uring_sqe_set_data(sqe, wake_token(ring));
    ring->is_wake_armed = true;
}

/* The kernel took nothing from `head` on: it gets entries that do nothing in their place. */
static void withdraw(struct ring *ring)
{
    struct io_uring_sq *sq = &ring->uring.sq;

    for (unsigned i = io_uring_smp_load_acquire(sq->khead); i != sq->sqe_tail; i++) {
        struct io_uring_sqe *sqe = &sq->sqes[i & *sq->kring_mask];
        void *data = (void *)(uintptr_t)sqe->user_data;
        if (data == WITHDRAWN || data == wake_token(ring))
            continue;
        struct slot *slot = data;
        struct block_request *r = slot->request;
        io_uring_prep_nop(sqe);
        io_uring_sqe_set_data(sqe, WITHDRAWN);
        slot_free(ring, slot);
        ring->owner.pass(ring->owner.ctx, r);
    }
}

static int submit(struct ring *ring, bool may_wait)
{
    const struct block_faults *faults = ring->owner.faults;
    int rc = faults != NULL && faults->submit != NULL ? faults->submit(faults->ctx) : 0;

    if (rc != 0)
        return rc;
    return may_wait ? io_uring_submit_and_wait(&ring->uring, 1)
                    : io_uring_submit_and_get_events(&ring->uring);
}

/* The ring takes no entries: sleep without it, until there is something to do. */
static void sleep_outside(struct ring *ring)
{
    struct pollfd fds[] = {{.fd = ring->wake_fd, .events = POLLIN},
                           {.fd = ring->uring.ring_fd, .events = POLLIN}};

    io_uring_get_events(&ring->uring); /* completions that wait for this thread */
    if (io_uring_cq_ready(&ring->uring) != 0)
        return;
    poll(fds, ARRAY_SIZE(fds), -1);
    io_uring_get_events(&ring->uring);
    event_take(ring->wake_fd);
}

static void enter(struct ring *ring, bool may_wait)
{
    static struct log_limit limit;
    int rc;

    arm_wake(ring);
    rc = submit(ring, may_wait);
    if (rc >= 0 || rc == -EINTR)
        return;
    if (log_limit_allows(&limit))
        log_warn("io_uring takes no requests (error %d); threads carry them out", -rc);
    withdraw(ring);
    if (may_wait)
        sleep_outside(ring);
}

/* Under the lock. */
static void note_idle(struct ring *ring)
{
    ring->is_idle = ring->in_flight == 0 && ring->waiting.first == NULL;
    if (ring->is_idle && ring->is_held)
        pthread_cond_signal(&ring->became_idle);
}

/* Take what was submitted; false at the end. */
static bool take(struct ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    ring->is_sleeping = false;
    if (!ring->is_held && ring->submitted.first != NULL) {
        *ring->waiting.last = ring->submitted.first;
        ring->waiting.last = ring->submitted.last;
        list_init(&ring->submitted);
    }
    note_idle(ring);
    ring->is_stopped = ring->is_idle && ring->is_stopping && ring->submitted.first == NULL;
    bool is_over = ring->is_stopped;
    pthread_mutex_unlock(&ring->lock);
    return !is_over;
}

/* Is there nothing to do but wait? From now on who submits wakes the thread. */
static bool fall_asleep(struct ring *ring)
{
    bool has_room = ring->waiting.first != NULL && ring->free != NULL;

    pthread_mutex_lock(&ring->lock);
    note_idle(ring);
    bool has_work = has_room || (ring->submitted.first != NULL && !ring->is_held) ||
                    (ring->is_stopping && ring->is_idle);
    ring->is_sleeping = !has_work;
    pthread_mutex_unlock(&ring->lock);
    return !has_work;
}

/* ---- opening and closing ---- */

static int check_operations(struct io_uring *uring)
{
    static const int needed[] = {IORING_OP_READV,    IORING_OP_WRITEV,    IORING_OP_FSYNC,
                                 IORING_OP_POLL_ADD, IORING_OP_FALLOCATE, IORING_OP_NOP};
    struct io_uring_probe *probe = io_uring_get_probe_ring(uring);
    int rc = probe != NULL ? 0 : -EOPNOTSUPP;

    for (unsigned i = 0; i < ARRAY_SIZE(needed) && rc == 0; i++)
        if (!io_uring_opcode_supported(probe, needed[i]))
            rc = -EOPNOTSUPP;
    io_uring_free_probe(probe);
    return rc;
}

/* With what newer kernels do better for a ring of one thread, or else without. */
static int make_uring(struct ring *ring)
{
    static const unsigned flags[] = {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, 0};
    const struct block_faults *faults = ring->owner.faults;
    int rc = faults != NULL && faults->setup != NULL ? faults->setup(faults->ctx) : 0;

    if (rc != 0)
        return rc;
    for (unsigned i = 0; i < ARRAY_SIZE(flags); i++) {
        rc = io_uring_queue_init(ENTRIES, &ring->uring, flags[i]);
        if (rc != -EINVAL)
            break;
    }
    if (rc != 0)
        return rc;
    rc = check_operations(&ring->uring);
    if (rc != 0)
        io_uring_queue_exit(&ring->uring);
    return rc;
}

static void *ring_run(void *ctx)
{
    struct ring *ring = ctx;
    int rc = make_uring(ring); /* here: a ring may belong to the thread that made it */

    pthread_mutex_lock(&ring->lock);
    ring->setup = rc;
    pthread_cond_signal(&ring->became_idle);
    pthread_mutex_unlock(&ring->lock);
    while (rc == 0 && take(ring)) {
        start_some(ring);
        enter(ring, fall_asleep(ring));
        reap(ring);
    }
    if (rc == 0)
        io_uring_queue_exit(&ring->uring);
    return NULL;
}

static int start_thread(struct ring *ring)
{
    int rc = thread_start(&ring->thread, "doppel-disk", ring_run, ring);

    if (rc != 0)
        return rc;
    pthread_mutex_lock(&ring->lock);
    while (ring->setup > 0)
        pthread_cond_wait(&ring->became_idle, &ring->lock);
    rc = ring->setup;
    pthread_mutex_unlock(&ring->lock);
    if (rc != 0)
        pthread_join(ring->thread, NULL);
    return rc;
}

void ring_free(struct ring *ring)
{
    if (ring == NULL)
        return;
    if (ring->wake_fd >= 0)
        close(ring->wake_fd);
    pthread_cond_destroy(&ring->became_idle);
    pthread_mutex_destroy(&ring->lock);
    free(ring);
}

int ring_open(const struct ring_owner *owner, struct ring **out, struct err *e)
{
    struct ring *ring = calloc(1, sizeof(*ring));

    if (ring == NULL)
        return err_set(e, ENOMEM, "make an io_uring");
    ring->owner = *owner;
    ring->is_idle = true;
    list_init(&ring->waiting);
    list_init(&ring->submitted);
    for (unsigned i = 0; i < SLOTS; i++) {
        ring->slots[i].next_free = ring->free;
        ring->free = &ring->slots[i];
    }
    pthread_mutex_init(&ring->lock, NULL);
    pthread_cond_init(&ring->became_idle, NULL);
    ring->setup = 1;
    ring->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int rc = ring->wake_fd >= 0 ? start_thread(ring) : -errno;
    if (rc != 0) {
        ring_free(ring);
        return err_set(e, -rc, "set up an io_uring");
    }
    *out = ring;
    return 0;
}

void ring_stop(struct ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    ring->is_stopping = true;
    pthread_mutex_unlock(&ring->lock);
    event_raise(ring->wake_fd);
    pthread_join(ring->thread, NULL);
    assert(ring->in_flight == 0 && ring->submitted.first == NULL);
}
