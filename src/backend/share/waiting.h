/*
 * waiting.h - a request to a shared folder's server whose submitter waits for it
 *
 * For tests: devices do not wait.
 */
#ifndef DOPPEL_BACKEND_SHARE_WAITING_H
#define DOPPEL_BACKEND_SHARE_WAITING_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "backend/share/share.h"
#include "base/bits.h"

struct share_waiting {
    struct share_request share;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool is_done; /* under lock, as the next */
    uint32_t written;
};

/* share_request.done of such a request. */
static inline void share_waiting_done(struct share_request *share, uint32_t written)
{
    struct share_waiting *w = CONTAINER_OF(share, struct share_waiting, share);

    pthread_mutex_lock(&w->lock);
    w->is_done = true;
    w->written = written;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

/* Prepare *w for these pieces; they and *w are the request's until share_waiting_end returns. */
static inline void share_waiting_init(struct share_waiting *w, const struct iovec *in,
                                      unsigned in_count, const struct iovec *out,
                                      unsigned out_count)
{
    *w = (struct share_waiting){.share = {.in = in,
                                          .in_count = in_count,
                                          .out = out,
                                          .out_count = out_count,
                                          .done = share_waiting_done},
                                .lock = PTHREAD_MUTEX_INITIALIZER,
                                .changed = PTHREAD_COND_INITIALIZER};
    for (unsigned i = 0; i < in_count; i++)
        w->share.in_size += in[i].iov_len;
    for (unsigned i = 0; i < out_count; i++)
        w->share.out_size += out[i].iov_len;
}

static inline void share_waiting_submit(struct share_waiting *w, struct share *share,
                                        const struct iovec *in, unsigned in_count,
                                        const struct iovec *out, unsigned out_count)
{
    share_waiting_init(w, in, in_count, out, out_count);
    share_submit(share, &w->share);
}

/* Wait until it is done; returns what it wrote. */
static inline uint32_t share_waiting_end(struct share_waiting *w)
{
    pthread_mutex_lock(&w->lock);
    while (!w->is_done)
        pthread_cond_wait(&w->changed, &w->lock);
    pthread_mutex_unlock(&w->lock);
    return w->written;
}

#endif
