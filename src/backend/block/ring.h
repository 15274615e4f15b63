/*
 * ring.h - requests that the kernel carries out by io_uring, without a thread that waits for each
 *
 * A ring has one thread, the only one that enters it. It takes requests from a list; those that
 * are one transfer of a file, or one call on it, go to the kernel, all others back to the owner's
 * threads (`pass`). So do those that the kernel did not carry out whole, or not in this way: what
 * to do about a short transfer or a file that cannot punch holes is known there already.
 *
 * Nothing here depends on the order of requests: a flush covers what had completed when it was
 * submitted, and a write has completed when its completion was taken from the ring.
 */
#ifndef DOPPEL_BACKEND_BLOCK_RING_H
#define DOPPEL_BACKEND_BLOCK_RING_H

#include "backend/block/block.h"
#include "backend/block/image.h"
#include "base/err.h"

struct ring;

/* What a ring asks of its owner, on the ring's thread. */
struct ring_owner {
    /* Is the request one call on a file? Then *place says which (image_ops.locate). */
    bool (*locate)(void *ctx, const struct block_request *request, struct image_place *place);
    /* The request is the owner's again, and not done. */
    void (*pass)(void *ctx, struct block_request *request);
    void *ctx;
    const struct block_faults *faults; /* NULL: none */
};

/*
 * Make a ring and its thread. Fails where the kernel has no io_uring or does not let us use it,
 * -ENOSYS and -EPERM among others, or lacks an operation (-EOPNOTSUPP). *owner is copied.
 */
int ring_open(const struct ring_owner *owner, struct ring **out, struct err *e);

/* Waits for requests under way; what is submitted from then on is passed on at once. */
void ring_stop(struct ring *ring);
/* It has stopped, and nobody submits any more. NULL is allowed. */
void ring_free(struct ring *ring);

/* The request is done, or passed on, by the ring's thread. Any thread; does not block. */
void ring_submit(struct ring *ring, struct block_request *request);

/* Wait until nothing is under way; what is submitted from then on waits for ring_release. */
void ring_hold(struct ring *ring);
void ring_release(struct ring *ring);

#endif
