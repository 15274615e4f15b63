/*
 * qcow2_refcount.c - how often clusters of the file are in use, and which are free
 *
 * Counts change in memory together with what they count. What must not be taken though nothing is
 * counted is held.
 * Where a region of the file has no refcount block, nothing of it is in use; the first cluster
 * taken there becomes the block.
 *
 * Spec: "Host cluster management".
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/block/qcow2_impl.h"

uint64_t qcow2_count_load(const uint8_t *block, uint64_t index, unsigned order)
{
    switch (order) {
    case 0:
    case 1:
    case 2: {
        unsigned shift = (unsigned)(index << order) & 7;
        return (block[index << order >> 3] >> shift) & ((1u << (1u << order)) - 1);
    }
    case 3:
        return block[index];
    case 4:
        return load_be16(block + index * 2);
    case 5:
        return load_be32(block + index * 4);
    default:
        return load_be64(block + index * 8);
    }
}

void qcow2_count_store(uint8_t *block, uint64_t index, unsigned order, uint64_t value)
{
    switch (order) {
    case 0:
    case 1:
    case 2: {
        unsigned shift = (unsigned)(index << order) & 7;
        uint8_t *byte = &block[index << order >> 3];
        *byte = (uint8_t)((*byte & ~(((1u << (1u << order)) - 1) << shift)) | value << shift);
        break;
    }
    case 3:
        block[index] = (uint8_t)value;
        break;
    case 4:
        store_be16(block + index * 2, (uint16_t)value);
        break;
    case 5:
        store_be32(block + index * 4, (uint32_t)value);
        break;
    default:
        store_be64(block + index * 8, value);
        break;
    }
}

/* A slice of counts, and which of them are asked for. */
struct counts {
    struct qcow2_slice *slice; /* NULL: there is no block, and all are 0 */
    uint64_t index, left;      /* the cluster's, and how many follow from it on */
};

static int counts_find(struct qcow2 *q, uint64_t cluster, struct counts *out)
{
    unsigned order = q->header.refcount_order;
    uint64_t block = cluster >> q->block_bits;
    uint64_t index = cluster & (BIT(q->block_bits) - 1);
    uint64_t per_slice = (uint64_t)q->ref_cache.slice_size * 8 >> order;

    *out = (struct counts){.index = index % per_slice, .left = per_slice - index % per_slice};
    if (block >= q->reftable_count || q->reftable[block] == 0)
        return 0;
    uint64_t offset = q->reftable[block];
    if (offset % q->cluster_size != 0 || offset >= q->file_end)
        return qcow2_corrupt(q, "refcount block %llu lies at 0x%llx, where none can be",
                             (unsigned long long)block, (unsigned long long)offset);
    return qcow2_cache_get(&q->ref_cache, offset + index / per_slice * q->ref_cache.slice_size,
                           &out->slice);
}

int qcow2_refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *out)
{
    struct counts counts;
    int rc = counts_find(q, cluster, &counts);

    *out = 0;
    if (rc == 0 && counts.slice != NULL)
        *out = qcow2_count_load(counts.slice->data, counts.index, q->header.refcount_order);
    return rc;
}

int qcow2_refcount_set(struct qcow2 *q, uint64_t cluster, uint64_t count)
{
    struct counts counts;
    int rc = counts_find(q, cluster, &counts);

    if (rc != 0)
        return rc;
    if (counts.slice == NULL)
        return -ENOENT;
    qcow2_count_store(counts.slice->data, counts.index, q->header.refcount_order, count);
    qcow2_cache_dirty(&q->ref_cache, counts.slice);
    return 0;
}

int qcow2_refcount_increase(struct qcow2 *q, uint64_t cluster)
{
    uint64_t count;
    int rc = qcow2_refcount_get(q, cluster, &count);

    if (rc == 0 && count >= q->refcount_max)
        rc = -ERANGE;
    return rc == 0 ? qcow2_refcount_set(q, cluster, count + 1) : rc;
}

/* *is_last: nothing refers to it any more. */
static int decrease_one(struct qcow2 *q, uint64_t cluster, bool *is_last)
{
    uint64_t now;
    int rc = qcow2_refcount_get(q, cluster, &now);

    if (rc == 0 && now == 0)
        rc = qcow2_corrupt(q, "the cluster at 0x%llx is given free, but was not in use",
                           (unsigned long long)cluster << q->cluster_bits);
    if (rc == 0)
        rc = qcow2_refcount_set(q, cluster, now - 1);
    *is_last = rc == 0 && now == 1;
    if (*is_last)
        qcow2_cache_forget(&q->l2_cache, cluster << q->cluster_bits, q->cluster_size);
    return rc;
}

int qcow2_refcount_decrease(struct qcow2 *q, uint64_t first, uint64_t count)
{
    for (uint64_t c = first; c < first + count; c++) {
        bool is_last;
        int rc = decrease_one(q, c, &is_last);
        if (rc != 0)
            return rc;
        if (is_last)
            q->free_hint = MIN(q->free_hint, c);
    }
    return 0;
}

/* ---- growth ---- */

static void span_add(struct qcow2_span *span, uint64_t index)
{
    if (span->first == span->end)
        *span = (struct qcow2_span){index, index + 1};
    span->first = MIN(span->first, index);
    span->end = MAX(span->end, index + 1);
}

/* The cluster was never written since the file was made; from now on it may be. */
static bool take_fresh(struct qcow2 *q, uint64_t first, uint64_t count)
{
    uint64_t offset = first << q->cluster_bits;
    bool is_fresh = q->store->grows_zeroed && offset >= q->file_end;

    q->file_end = MAX(q->file_end, offset + (count << q->cluster_bits));
    return is_fresh;
}

/* A block for the region of `cluster`, in that cluster. */
static int make_block(struct qcow2 *q, uint64_t cluster)
{
    uint64_t index = cluster >> q->block_bits, offset = cluster << q->cluster_bits;
    int rc = qcow2_set_add(&q->tables, cluster);

    if (rc == -EEXIST)
        return qcow2_corrupt(q, "the table at 0x%llx is not counted as in use",
                             (unsigned long long)offset);
    if (rc != 0)
        return rc;
    qcow2_cache_forget(&q->ref_cache, offset, q->cluster_size);
    if (!take_fresh(q, cluster, 1))
        rc = q->store->ops->write_zeroes(q->store, offset, q->cluster_size, false);
    if (rc != 0) {
        qcow2_set_remove(&q->tables, cluster);
        return rc;
    }
    q->reftable[index] = offset;
    rc = qcow2_refcount_set(q, cluster, 1);
    if (rc != 0) {
        q->reftable[index] = 0;
        qcow2_set_remove(&q->tables, cluster);
        return rc;
    }
    span_add(&q->reftable_dirty, index);
    return 0;
}

/* The larger table, and the blocks that count it, in clusters that no block counted before. */
struct new_table {
    uint64_t first; /* cluster; the blocks come first, then the table */
    uint64_t blocks;
    uint64_t clusters; /* of the table */
    uint64_t entry_count;
    uint64_t *entries;
};

static int plan_table(const struct qcow2 *q, struct new_table *t)
{
    uint64_t per_cluster = q->cluster_size / 8, per_block = BIT(q->block_bits);
    uint64_t wanted = q->reftable_count + q->reftable_count / 2 + per_cluster;

    t->first = q->reftable_count << q->block_bits;
    t->clusters = (wanted + per_cluster - 1) / per_cluster;
    t->clusters = MIN(t->clusters, QCOW2_REFTABLE_BYTES_MAX >> q->cluster_bits);
    t->entry_count = t->clusters * per_cluster;
    t->blocks = 1;
    while (t->blocks * per_block < t->blocks + t->clusters)
        t->blocks++;
    if (q->reftable_count + t->blocks > t->entry_count)
        return -EFBIG;
    if (!q->store->grows_zeroed &&
        t->first + t->blocks + t->clusters > q->store->size >> q->cluster_bits)
        return -ENOSPC;
    t->entries = calloc(t->entry_count, sizeof(*t->entries));
    if (t->entries == NULL)
        return -ENOMEM;
    memcpy(t->entries, q->reftable, q->reftable_count * sizeof(*t->entries));
    for (uint64_t i = 0; i < t->blocks; i++)
        t->entries[q->reftable_count + i] = (t->first + i) << q->cluster_bits;
    return 0;
}

/* Where nothing refers to it yet: blocks that count nothing, and the table as it is in memory. */
static int write_table(struct qcow2 *q, const struct new_table *t, bool is_fresh)
{
    uint64_t at = (t->first + t->blocks) << q->cluster_bits;
    uint8_t *buf = malloc(q->cluster_size);
    int rc = buf != NULL ? 0 : -ENOMEM;

    if (rc == 0 && !is_fresh)
        rc = q->store->ops->write_zeroes(q->store, t->first << q->cluster_bits,
                                         t->blocks << q->cluster_bits, false);
    for (uint64_t i = 0; i < t->entry_count && rc == 0; i += q->cluster_size / 8) {
        for (uint64_t c = 0; c < q->cluster_size / 8; c++)
            store_be64(buf + c * 8, t->entries[i + c]);
        rc = store_write(q->store, at + i * 8, buf, q->cluster_size);
    }
    free(buf);
    return rc;
}

/* The new table takes the place of the old one, which a commit under way may still write to. */
static int use_table(struct qcow2 *q, const struct new_table *t)
{
    uint64_t old_first = q->header.reftable_offset >> q->cluster_bits;
    uint64_t old_count = q->header.reftable_clusters;
    int rc = 0;

    free(q->reftable);
    q->reftable = t->entries;
    q->reftable_count = t->entry_count;
    q->reftable_dirty = (struct qcow2_span){0}; /* all of it was written */
    q->is_reftable_moved = true;
    q->header.reftable_offset = (t->first + t->blocks) << q->cluster_bits;
    q->header.reftable_clusters = (uint32_t)t->clusters;
    for (uint64_t i = 0; i < old_count; i++)
        qcow2_set_remove(&q->tables, old_first + i);
    for (uint64_t i = 0; i < t->blocks + t->clusters && rc == 0; i++)
        rc = qcow2_refcount_set(q, t->first + i, 1);
    if (rc == 0)
        rc = qcow2_release(q, old_first, old_count, false);
    if (rc != 0)
        q->broken = rc; /* half of it is counted */
    return rc;
}

static int grow_table(struct qcow2 *q)
{
    struct new_table t = {0};
    uint64_t added = 0;
    int rc = plan_table(q, &t);

    for (; rc == 0 && added < t.blocks + t.clusters; added += rc == 0)
        if (qcow2_set_add(&q->tables, t.first + added) != 0)
            rc = qcow2_corrupt(q, "the refcount table cannot grow to 0x%llx",
                               (unsigned long long)t.first << q->cluster_bits);
    if (rc == 0) {
        bool is_fresh = take_fresh(q, t.first, t.blocks + t.clusters);
        qcow2_cache_forget(&q->ref_cache, t.first << q->cluster_bits,
                           (t.blocks + t.clusters) << q->cluster_bits);
        rc = write_table(q, &t, is_fresh);
    }
    if (rc == 0)
        return use_table(q, &t);
    while (added > 0)
        qcow2_set_remove(&q->tables, t.first + --added);
    free(t.entries);
    return rc;
}

/* ---- allocation ---- */

/* Make sure that there is a block for the cluster; 1: its making has taken the cluster. */
static int need_block(struct qcow2 *q, uint64_t cluster)
{
    uint64_t block = cluster >> q->block_bits;

    if (block >= q->reftable_count) {
        int rc = grow_table(q);
        return rc != 0 ? rc : 1;
    }
    if (q->reftable[block] != 0)
        return 0;
    int rc = make_block(q, cluster);
    return rc != 0 ? rc : 1;
}

/* Free clusters from `from` on: the first, and how many of up to `want` are in a row. */
static int find_free(struct qcow2 *q, uint64_t from, uint64_t want, uint64_t end, uint64_t *first,
                     uint64_t *count)
{
    unsigned order = q->header.refcount_order;
    uint64_t c = from;

    *count = 0;
    while (*count < want && c < end) {
        struct counts counts;
        int rc = 0;
        if (c >> q->block_bits >= q->reftable_count || q->reftable[c >> q->block_bits] == 0) {
            if (*count != 0) /* the block would lie in the middle */
                return 0;
            rc = need_block(q, c);
            if (rc < 0)
                return rc;
            /* a grown table may have taken some, too: they are counted */
            continue;
        }
        rc = counts_find(q, c, &counts);
        if (rc != 0)
            return rc;
        for (; counts.left != 0 && *count < want && c < end; counts.left--, counts.index++, c++) {
            if (qcow2_count_load(counts.slice->data, counts.index, order) != 0 ||
                qcow2_set_has(&q->held, c, 1)) {
                if (*count != 0)
                    return 0;
                continue;
            }
            if ((*count)++ == 0)
                *first = c;
        }
    }
    return *count != 0 ? 0 : -ENOSPC;
}

static uint64_t cluster_limit(const struct qcow2 *q, uint64_t limit)
{
    if (!q->store->grows_zeroed)
        limit = MIN(limit, q->store->size);
    return limit >> q->cluster_bits;
}

/* These are to be used for something. */
static int take(struct qcow2 *q, uint64_t first, uint64_t count, uint64_t *offset, bool *is_fresh)
{
    if (qcow2_set_has(&q->tables, first, count))
        return qcow2_corrupt(q, "a table at or behind 0x%llx is not counted as in use",
                             (unsigned long long)first << q->cluster_bits);
    *offset = first << q->cluster_bits;
    *is_fresh = take_fresh(q, first, count);
    return 0;
}

/* All of them are counted once, or none. */
static int count_once(struct qcow2 *q, uint64_t first, uint64_t count)
{
    int rc = 0;

    for (uint64_t c = first; c < first + count && rc == 0; c++) {
        rc = qcow2_refcount_set(q, c, 1);
        while (rc != 0 && c-- > first)
            qcow2_refcount_set(q, c, 0);
    }
    return rc;
}

int qcow2_allocate(struct qcow2 *q, uint64_t want, uint64_t limit, uint64_t *offset,
                   uint64_t *count, bool *is_fresh)
{
    uint64_t first;
    int rc = q->broken;

    if (rc == 0)
        rc = find_free(q, q->free_hint, want, cluster_limit(q, limit), &first, count);
    if (rc == 0)
        rc = take(q, first, *count, offset, is_fresh);
    if (rc == 0)
        rc = count_once(q, first, *count);
    if (rc == 0)
        q->free_hint = first + *count;
    return rc;
}

int qcow2_allocate_all(struct qcow2 *q, uint64_t count, uint64_t *offset, bool *is_fresh)
{
    uint64_t from = q->free_hint, first, got;
    int rc = q->broken;

    while (rc == 0) {
        rc = find_free(q, from, count, cluster_limit(q, QCOW2_HOST_MAX), &first, &got);
        if (rc == 0 && got == count) {
            rc = take(q, first, count, offset, is_fresh);
            return rc == 0 ? count_once(q, first, count) : rc;
        }
        if (rc == 0)
            from = first + got;
    }
    return rc;
}

/* ---- what is held ---- */

static void let_go(struct qcow2 *q, uint64_t first, uint64_t count)
{
    for (uint64_t c = first; c < first + count; c++)
        qcow2_set_remove(&q->held, c);
    q->free_hint = MIN(q->free_hint, first);
}

int qcow2_reserve(struct qcow2 *q, uint64_t want, uint64_t *offset, uint64_t *count, bool *is_fresh)
{
    uint64_t first, i = 0;
    int rc = q->broken;

    if (rc == 0)
        rc = find_free(q, q->free_hint, want, cluster_limit(q, QCOW2_HOST_MAX), &first, count);
    if (rc == 0)
        rc = take(q, first, *count, offset, is_fresh);
    for (; rc == 0 && i < *count; i += rc == 0)
        rc = qcow2_set_add(&q->held, first + i);
    if (rc == 0)
        q->free_hint = first + *count;
    else if (i != 0)
        let_go(q, first, i);
    return rc;
}

int qcow2_reserve_count(struct qcow2 *q, uint64_t offset, uint64_t count)
{
    uint64_t first = offset >> q->cluster_bits;
    int rc = count_once(q, first, count);

    for (uint64_t c = first; rc == 0 && c < first + count; c++)
        qcow2_set_remove(&q->held, c);
    return rc;
}

void qcow2_reserve_drop(struct qcow2 *q, uint64_t offset, uint64_t count)
{
    let_go(q, offset >> q->cluster_bits, count);
}

/* ---- what is given up ---- */

static int add_release(struct qcow2_releases *list, const struct qcow2_release *r)
{
    struct qcow2_release *last = list->count != 0 ? &list->all[list->count - 1] : NULL;

    if (last != NULL && last->first + last->count == r->first && last->number == r->number &&
        last->is_discard == r->is_discard) {
        last->count += r->count;
        return 0;
    }
    if (list->count == list->room) {
        size_t room = MAX(list->room * 2, (size_t)1024);
        struct qcow2_release *larger = realloc(list->all, room * sizeof(*larger));
        if (larger == NULL)
            return -ENOMEM;
        list->all = larger;
        list->room = room;
    }
    list->all[list->count++] = *r;
    return 0;
}

int qcow2_release(struct qcow2 *q, uint64_t first, uint64_t count, bool is_discard)
{
    struct qcow2_release r = {first, count, q->op_number, is_discard};
    uint64_t per_slice = (uint64_t)q->ref_cache.slice_size * 8 >> q->header.refcount_order;

    q->release_slices += count / per_slice + 2;
    return add_release(&q->releases, &r); /* if it fails, they leak */
}

/* One reference less; *done: clusters of the release for which that is so. */
static int apply_release(struct qcow2 *q, const struct qcow2_release *r, uint64_t *done)
{
    int rc = 0;

    for (*done = 0; *done < r->count && rc == 0; *done += rc == 0) {
        struct qcow2_release one = {r->first + *done, 1, r->number, r->is_discard};
        bool is_last;
        rc = decrease_one(q, one.first, &is_last);
        if (rc != 0 || !is_last)
            continue;
        /* Without memory to hold it, it is not given free until the image is opened anew. */
        if (qcow2_set_add(&q->held, one.first) != 0 || add_release(&q->leavings, &one) != 0)
            rc = qcow2_refcount_set(q, one.first, 1);
    }
    return rc;
}

int qcow2_apply_releases(struct qcow2 *q)
{
    struct qcow2_releases *list = &q->releases;
    size_t done = 0;
    int rc = 0;

    while (done < list->count && rc == 0) {
        struct qcow2_release *r = &list->all[done];
        uint64_t clusters;
        rc = apply_release(q, r, &clusters);
        r->first += clusters;
        r->count -= clusters;
        done += rc == 0;
    }
    if (done != 0)
        memmove(list->all, list->all + done, (list->count - done) * sizeof(*list->all));
    list->count -= done;
    if (list->count == 0)
        q->release_slices = 0;
    return rc;
}

static uint64_t oldest_op(const struct qcow2 *q)
{
    uint64_t oldest = UINT64_MAX;

    for (const struct image_access *op = q->ops; op != NULL; op = op->next)
        oldest = MIN(oldest, op->number);
    return oldest;
}

void qcow2_let_go(struct qcow2 *q)
{
    struct qcow2_releases *list = &q->leavings;
    uint64_t oldest = oldest_op(q); /* those to come know nothing of these clusters */
    size_t done = 0;

    if (list->count != 0 && list->all[0].number < oldest)
        qcow2_packed_forget(q); /* what is unpacked goes by its place, which gets another use */
    for (; done < list->count && list->all[done].number < oldest; done++) {
        struct qcow2_release r = list->all[done];
        if (r.is_discard) {
            pthread_mutex_unlock(&q->lock);
            /* a hint: what came of it does not matter */
            q->store->ops->discard(q->store, r.first << q->cluster_bits,
                                   r.count << q->cluster_bits);
            pthread_mutex_lock(&q->lock);
        }
        let_go(q, r.first, r.count);
    }
    if (done != 0)
        memmove(list->all, list->all + done, (list->count - done) * sizeof(*list->all));
    list->count -= done;
}
