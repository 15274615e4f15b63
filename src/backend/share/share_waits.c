/*
 * share_waits.c - requests that wait for a lock
 *
 * Each has a thread, which blocks in the host's call: there is no other way to wait for a lock that
 * a program of the host has. When it is told to stop, whether it had the lock by then is not known,
 * so it gives back what it may have got.
 *
 * Invariant: a request that may wait is in share.first, in a call's `may_wait` or in share.waits,
 * and goes from one to the next under share.lock: whoever interrupts it finds it.
 */
#include <errno.h>
#include <stdlib.h>

#include "backend/share/share_impl.h"
#include "os/breakable.h"
#include "os/thread.h"

struct share_wait {
    struct share *share;
    struct share_request *request;
    struct share_file *file; /* a reference */
    struct share_lock lock;
    int fd; /* see share_lock_pin */
    pthread_t thread;
    /* under share.lock */
    struct share_wait *next;
};

static void free_wait(struct share_wait *w)
{
    share_lock_unpin(w->share, w->file, &w->lock);
    share_file_put(&w->share->tables, w->file);
}

/* The last thing that its thread does with it. */
static void end_wait(struct share_wait *w, int rc)
{
    struct share *share = w->share;
    struct share_request *request = w->request;
    struct share_wait **p = &share->waits;

    free_wait(w);
    pthread_mutex_lock(&share->lock);
    while (*p != w)
        p = &(*p)->next;
    *p = w->next;
    w->next = share->ended_waits;
    share->ended_waits = w;
    if (--share->wait_count == 0)
        pthread_cond_signal(&share->no_waits);
    pthread_mutex_unlock(&share->lock);
    request->done(request, share_answer(request, rc));
}

/* Until it has the lock, or cannot have it. */
static int await_lock(struct share_wait *w)
{
    int rc;

    do {
        rc = share_lock_await(w->fd, &w->lock);
        if (rc == 0)
            rc = share_lock_set(w->share, w->file, &w->lock);
        if (rc != 0 && rc != -EAGAIN)
            share_lock_undo(w->share, w->file, &w->lock);
    } while (rc == -EAGAIN);
    return rc;
}

static void *run_wait(void *ctx)
{
    end_wait(ctx, await_lock(ctx));
    return NULL;
}

static void join_ended(struct share *share)
{
    pthread_mutex_lock(&share->lock);
    struct share_wait *w = share->ended_waits, *next;
    share->ended_waits = NULL;
    pthread_mutex_unlock(&share->lock);
    for (; w != NULL; w = next) {
        next = w->next;
        pthread_join(w->thread, NULL);
        free(w);
    }
}

/* Under share.lock. */
static int start_wait(struct share_call *c, struct share_wait *w)
{
    struct share *share = c->share;

    if (share->is_stopping || w->request->is_interrupted)
        return -EINTR;
    if (share->wait_count >= SHARE_WAITS_MAX)
        return -ENOLCK;
    int rc = thread_start(&w->thread, "doppel-lock", run_wait, w);
    if (rc != 0)
        return rc == -EAGAIN ? -ENOLCK : rc;
    w->next = share->waits;
    share->waits = w;
    share->wait_count++;
    c->may_wait = NULL;
    return 0;
}

int share_wait_begin(struct share_call *c, struct share_file *file, const struct share_lock *lock)
{
    struct share *share = c->share;
    struct share_wait *w = calloc(1, sizeof(*w));
    int fd = w != NULL ? share_lock_pin(share, file, lock) : -ENOMEM;

    if (fd < 0) {
        free(w);
        return fd;
    }
    *w = (struct share_wait){
        .share = share, .request = c->may_wait, .file = file, .lock = *lock, .fd = fd};
    join_ended(share);
    pthread_mutex_lock(&share->lock);
    int rc = start_wait(c, w);
    pthread_mutex_unlock(&share->lock);
    if (rc == 0)
        return SHARE_WAITS;
    share_lock_unpin(share, file, lock);
    free(w);
    return rc;
}

bool share_wait_interrupt(struct share *share, const uint64_t *unique)
{
    bool is_there = false;

    for (struct share_wait *w = share->waits; w != NULL; w = w->next)
        if (unique == NULL || w->request->header.unique == *unique) {
            breakable_break(w->thread);
            is_there = true;
        }
    return is_there;
}

void share_waits_join(struct share *share)
{
    pthread_mutex_lock(&share->lock);
    while (share->waits != NULL)
        pthread_cond_wait(&share->no_waits, &share->lock);
    pthread_mutex_unlock(&share->lock);
    join_ended(share);
}
