/*
 * qcow2_commit.c - changes of tables on their way to the disk, in an order that a crash may end
 *
 * The order is that of qcow2_impl.h. What is to be written is copied under the lock and written
 * outside of it: the image stays in use over the flushes of its store. What the copies refer to
 * had been written when they were made.
 *
 * A store that failed a flush may have lost what it was to flush, so that nothing is known of the
 * file any more: then the image is not written again.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/block/qcow2_impl.h"

/* Copies of what is written outside of the lock. */
struct leaving {
    uint8_t *slices;
    uint64_t *offsets; /* of the slices, in the file */
    unsigned slice_count;
    uint8_t *l1, *reftable;
    struct qcow2_span l1_span, reftable_span;
    size_t release_count; /* that are covered */
};

static void leaving_free(struct leaving *l)
{
    free(l->slices);
    free(l->offsets);
    free(l->l1);
    free(l->reftable);
}

static uint8_t *copy_span(const uint64_t *table, const struct qcow2_span *span)
{
    uint8_t *copy = malloc((span->end - span->first) * 8 + 1);

    for (uint64_t i = span->first; copy != NULL && i < span->end; i++)
        store_be64(copy + (i - span->first) * 8, table[i]);
    return copy;
}

static int copy_slices(struct qcow2_cache *cache, struct leaving *l)
{
    unsigned n = 0;

    l->slices = malloc((size_t)cache->dirty_count * cache->slice_size + 1);
    l->offsets = malloc(cache->dirty_count * sizeof(*l->offsets) + 1);
    if (l->slices == NULL || l->offsets == NULL)
        return -ENOMEM;
    for (unsigned i = 0; i < cache->count && cache->dirty_count != 0; i++) {
        struct qcow2_slice *slice = &cache->slices[i];
        if (!slice->is_dirty)
            continue;
        memcpy(l->slices + (size_t)n * cache->slice_size, slice->data, cache->slice_size);
        l->offsets[n++] = slice->offset;
        slice->is_dirty = false;
        slice->is_leaving = true;
        cache->dirty_count--;
        cache->leaving_count++;
    }
    l->slice_count = n;
    return 0;
}

/* Under the lock. */
static int copy_changes(struct qcow2 *q, struct leaving *l)
{
    *l = (struct leaving){.l1_span = q->l1_dirty,
                          .reftable_span = q->reftable_dirty,
                          .release_count = q->release_count};
    l->l1 = copy_span(q->l1, &l->l1_span);
    l->reftable = copy_span(q->reftable, &l->reftable_span);
    if (l->l1 == NULL || l->reftable == NULL)
        return -ENOMEM;
    int rc = copy_slices(&q->l2_cache, l);
    if (rc == 0)
        q->l1_dirty = q->reftable_dirty = (struct qcow2_span){0};
    return rc;
}

static int write_span(struct qcow2 *q, uint64_t table, const struct qcow2_span *span,
                      const uint8_t *copy)
{
    return store_write(q->store, table + span->first * 8, copy, (span->end - span->first) * 8);
}

/* Steps 1 (its flush) to 4. */
static int write_changes(struct qcow2 *q, const struct leaving *l, uint64_t l1_offset,
                         uint64_t reftable_offset)
{
    bool has_l1 = l->l1_span.first != l->l1_span.end;
    bool has_reftable = l->reftable_span.first != l->reftable_span.end;
    uint32_t slice_size = q->l2_cache.slice_size;
    int rc = q->store->ops->flush(q->store);

    if (rc == 0 && has_reftable) {
        rc = write_span(q, reftable_offset, &l->reftable_span, l->reftable);
        if (rc == 0)
            rc = q->store->ops->flush(q->store);
    }
    for (unsigned i = 0; i < l->slice_count && rc == 0; i++)
        rc = store_write(q->store, l->offsets[i], l->slices + (size_t)i * slice_size, slice_size);
    if (rc == 0 && l->slice_count != 0)
        rc = q->store->ops->flush(q->store);
    if (rc == 0 && has_l1) {
        rc = write_span(q, l1_offset, &l->l1_span, l->l1);
        if (rc == 0)
            rc = q->store->ops->flush(q->store);
    }
    return rc;
}

/* ---- step 5 ---- */

static uint64_t oldest_op(const struct qcow2 *q)
{
    uint64_t oldest = UINT64_MAX;

    for (const struct image_access *op = q->ops; op != NULL; op = op->next)
        oldest = MIN(oldest, op->number);
    return oldest;
}

/* Under the lock: clusters of the range that nobody will refer to; they are still counted, so
 * that nobody takes them meanwhile. */
static int last_references(struct qcow2 *q, const struct qcow2_release *r, uint64_t from,
                           uint64_t *first, uint64_t *count)
{
    *count = 0;
    for (uint64_t c = from; c < r->first + r->count; c++) {
        uint64_t now;
        int rc = qcow2_refcount_get(q, c, &now);
        if (rc != 0)
            return rc;
        if (now == 1 && (*count)++ == 0)
            *first = c;
        if (now != 1 && *count != 0)
            break;
    }
    return 0;
}

/* Under the lock, which it lets go: the host gets back the room of what is given free. */
static void punch(struct qcow2 *q, const struct qcow2_release *r)
{
    uint64_t from = r->first, first = 0, count;

    while (from < r->first + r->count && last_references(q, r, from, &first, &count) == 0 &&
           count != 0) {
        pthread_mutex_unlock(&q->lock);
        /* a hint: what came of it does not matter */
        q->store->ops->discard(q->store, first << q->cluster_bits, count << q->cluster_bits);
        pthread_mutex_lock(&q->lock);
        from = first + count;
    }
}

/* Under the lock, which it lets go meanwhile. */
static int apply_releases(struct qcow2 *q, size_t limit)
{
    size_t done = 0;
    bool is_packed_stale = false;
    int rc = 0;

    for (; done < limit && rc == 0; done++) {
        struct qcow2_release r = q->releases[done];
        if (r.number >= oldest_op(q))
            break; /* somebody may still be at it; next time */
        if (r.is_discard)
            punch(q, &r);
        rc = qcow2_refcount_decrease(q, r.first, r.count);
        is_packed_stale = true;
    }
    if (is_packed_stale)
        qcow2_packed_forget(q);
    if (done != 0)
        memmove(q->releases, q->releases + done, (q->release_count - done) * sizeof(*q->releases));
    q->release_count -= done;
    return rc;
}

/* ---- the commit ---- */

static void left(struct qcow2 *q)
{
    for (unsigned i = 0; i < q->l2_cache.count && q->l2_cache.leaving_count != 0; i++)
        if (q->l2_cache.slices[i].is_leaving) {
            q->l2_cache.slices[i].is_leaving = false;
            q->l2_cache.leaving_count--;
        }
}

/* Under both locks. */
static int commit(struct qcow2 *q)
{
    struct leaving l = {0};
    uint64_t ticket = q->flush_wanted;
    int rc = q->broken;

    if (rc == 0)
        rc = qcow2_cache_write(&q->ref_cache);
    if (rc == 0)
        rc = copy_changes(q, &l);
    if (rc != 0) { /* nothing was lost, and it may be tried again */
        leaving_free(&l);
        return rc;
    }
    uint64_t l1_offset = q->header.l1_offset, reftable_offset = q->header.reftable_offset;
    pthread_mutex_unlock(&q->lock);
    rc = write_changes(q, &l, l1_offset, reftable_offset);
    pthread_mutex_lock(&q->lock);
    left(q);
    if (rc != 0)
        q->broken = rc;
    if (rc == 0)
        rc = apply_releases(q, l.release_count);
    if (rc == 0)
        q->flush_done = ticket;
    leaving_free(&l);
    return rc;
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

int qcow2_commit_if_full(struct qcow2 *q)
{
    unsigned stays = q->l2_cache.dirty_count + q->l2_cache.leaving_count;

    if (stays < q->l2_cache.count / 2 && q->release_count < 16384)
        return 0;
    pthread_mutex_unlock(&q->lock);
    int rc = qcow2_commit(q);
    pthread_mutex_lock(&q->lock);
    return rc == 0 ? 1 : rc;
}
