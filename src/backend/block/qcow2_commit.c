/*
 * qcow2_commit.c - changes of tables on their way to the disk, all of them or none
 *
 * The order is that of qcow2_impl.h. What is to be written is gathered under the lock and written
 * outside of it: the image stays in use over the flushes of its store. What it refers to had been
 * written when it was gathered.
 *
 * A store that failed a flush may have lost what it was to flush, so that nothing is known of the
 * file any more: then the image is not written again.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/block/qcow2_impl.h"

#define RELEASES_MAX 16384u /* that wait for a commit */

/* The most that a list can get, for an image with the largest tables there may be. */
_Static_assert(QCOW2_L1_BYTES_MAX + QCOW2_REFTABLE_BYTES_MAX +
                       (QCOW2_L2_SLICES_MAX + 2 * QCOW2_REF_SLICES_MAX) * QCOW2_SLICE_SIZE + 65536 <
                   REDO_BYTES_MAX,
               "a commit's writes have room in a list");
_Static_assert(QCOW2_L2_SLICES_MAX + 2 * QCOW2_REF_SLICES_MAX + 16 < REDO_WRITES_MAX, "likewise");

/* ---- what is written; under the lock ---- */

/* What is dirty is leaving; it stays in memory until it has left. */
static void add_slices(struct qcow2 *q, struct qcow2_cache *cache)
{
    for (unsigned i = 0; i < cache->count && cache->dirty_count != 0; i++) {
        struct qcow2_slice *slice = &cache->slices[i];
        if (!slice->is_dirty)
            continue;
        memcpy(redo_add(&q->redo, slice->offset, cache->slice_size), slice->data,
               cache->slice_size);
        cache->leaving_count += !slice->is_leaving;
        slice->is_leaving = true;
        slice->is_dirty = false;
        cache->dirty_count--;
    }
}

static bool add_span(struct qcow2 *q, uint64_t at, const uint64_t *table, struct qcow2_span *span)
{
    if (span->first == span->end)
        return false;
    uint8_t *to = redo_add(&q->redo, at + span->first * 8, (span->end - span->first) * 8);
    for (uint64_t i = span->first; i < span->end; i++)
        store_be64(to + (i - span->first) * 8, table[i]);
    *span = (struct qcow2_span){0};
    return true;
}

static void add_reftable(struct qcow2 *q)
{
    const struct qcow2_header *h = &q->header;
    bool is_there = add_span(q, h->reftable_offset, q->reftable, &q->reftable_dirty);

    if (q->is_reftable_moved) {
        uint8_t *field = redo_add(&q->redo, QCOW2_AT_REFTABLE, 12);
        store_be64(field, h->reftable_offset);
        store_be32(field + 8, h->reftable_clusters);
    }
    if (is_there || q->is_reftable_moved)
        redo_add_flush(&q->redo);
    q->is_reftable_moved = false;
}

static void add_l1(struct qcow2 *q)
{
    const struct qcow2_header *h = &q->header;
    bool is_there = add_span(q, h->l1_offset, q->l1, &q->l1_dirty);

    if (q->is_l1_moved) {
        uint8_t *field = redo_add(&q->redo, QCOW2_AT_L1, 12);
        store_be32(field, h->l1_count);
        store_be64(field + 4, h->l1_offset);
    }
    if (is_there || q->is_l1_moved)
        redo_add_flush(&q->redo);
    q->is_l1_moved = false;
}

/* Steps 1 to 5. If counts cannot go down, what they count is left for the next commit. */
static int gather(struct qcow2 *q)
{
    redo_begin(&q->redo);
    add_slices(q, &q->ref_cache);
    redo_add_flush(&q->redo);
    add_reftable(q);
    if (q->l2_cache.dirty_count != 0) {
        add_slices(q, &q->l2_cache);
        redo_add_flush(&q->redo);
    }
    add_l1(q);
    int rc = qcow2_apply_releases(q);
    add_slices(q, &q->ref_cache);
    return rc;
}

static void left(struct qcow2_cache *cache)
{
    for (unsigned i = 0; i < cache->count && cache->leaving_count != 0; i++)
        if (cache->slices[i].is_leaving) {
            cache->slices[i].is_leaving = false;
            cache->leaving_count--;
        }
}

/* ---- the commit ---- */

/* Under both locks. */
static int commit(struct qcow2 *q)
{
    uint64_t ticket = q->flush_wanted;

    if (q->broken != 0)
        return q->broken;
    int gathered = gather(q), rc = q->broken; /* it may have found damage */
    if (rc == 0) {
        pthread_mutex_unlock(&q->lock);
        rc = redo_carry_out(&q->redo, q->store);
        pthread_mutex_lock(&q->lock);
    }
    left(&q->l2_cache);
    left(&q->ref_cache);
    if (rc != 0) {
        q->broken = rc;
        return rc;
    }
    qcow2_let_go(q);
    if (gathered == 0)
        q->flush_done = ticket;
    return gathered;
}

int qcow2_commit(struct qcow2 *q)
{
    pthread_mutex_lock(&q->lock);
    uint64_t ticket = ++q->flush_wanted;
    pthread_mutex_unlock(&q->lock);
    pthread_mutex_lock(&q->commit_lock);
    pthread_mutex_lock(&q->lock);
    /* one that began after we came has done it for us, too */
    int rc = q->flush_done >= ticket ? q->broken : commit(q);
    pthread_mutex_unlock(&q->lock);
    pthread_mutex_unlock(&q->commit_lock);
    return rc;
}

/* More than this, and a table's changes might find no room in memory. */
static bool is_full(const struct qcow2 *q)
{
    const struct qcow2_cache *l2 = &q->l2_cache, *ref = &q->ref_cache;
    uint64_t covered = ((uint64_t)ref->slice_size * 8 >> q->header.refcount_order)
                       << q->cluster_bits;

    if (l2->dirty_count + l2->leaving_count >= l2->count / 2 || q->releases.count >= RELEASES_MAX)
        return true;
    /* Where there is room for all refcounts, they need no limit. Else there must be some left for
     * all requests that are under way: each may change a slice for every entry that it replaces. */
    return q->file_end / covered + QCOW2_REF_SLICES_SPARE > ref->count &&
           ref->dirty_count + ref->leaving_count + q->release_slices >= ref->count / 4;
}

int qcow2_commit_if_full(struct qcow2 *q)
{
    int rc = 0;

    while (rc == 0 && is_full(q)) {
        pthread_mutex_unlock(&q->lock);
        rc = qcow2_commit(q);
        pthread_mutex_lock(&q->lock);
    }
    return rc;
}
