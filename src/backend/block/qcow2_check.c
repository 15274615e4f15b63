/*
 * qcow2_check.c - is what is counted what is referred to? And making it so
 *
 * Refcounts are repaired in place where there are blocks for them; where blocks are missing or
 * lie over something else, all of them are made anew, in room at the end of the file.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/block/qcow2_impl.h"

/* ---- refcounts ---- */

struct refcounts {
    struct qcow2_walk walk;
    enum qcow2_repair repair;
    uint64_t missing; /* counts that no block has room for */
};

static void report_leak(struct qcow2_check *check, uint64_t offset, uint64_t count, uint64_t wanted)
{
    char text[128];

    check->leaks++;
    if (check->report == NULL)
        return;
    snprintf(text, sizeof(text), "the cluster at 0x%llx is counted %llu times and used %llu times",
             (unsigned long long)offset, (unsigned long long)count, (unsigned long long)wanted);
    check->report(check->ctx, text);
}

static int compare_one(struct refcounts *r, uint64_t cluster, uint64_t count, uint64_t wanted)
{
    struct qcow2 *q = r->walk.q;
    struct qcow2_check *check = r->walk.check;
    bool is_leak = count > wanted;

    if (is_leak)
        report_leak(check, cluster << q->cluster_bits, count, wanted);
    else
        qcow2_walk_error(&r->walk,
                         "the cluster at 0x%llx is used %llu times and counted %llu times",
                         (unsigned long long)cluster << q->cluster_bits, (unsigned long long)wanted,
                         (unsigned long long)count);
    /* what could not be followed may refer to what seems to be leaked */
    if (r->repair == QCOW2_REPAIR_NONE || (is_leak && r->walk.is_incomplete) ||
        (!is_leak && r->repair != QCOW2_REPAIR_ALL) || wanted > q->refcount_max)
        return 0;
    int rc = qcow2_refcount_set(q, cluster, wanted);
    if (rc == -ENOENT) {
        r->missing++;
        return 0;
    }
    if (rc == 0 && is_leak)
        check->leaks_fixed++;
    else if (rc == 0)
        check->errors_fixed++;
    return rc;
}

static int compare(struct refcounts *r)
{
    struct qcow2_walk *w = &r->walk;
    struct qcow2 *q = w->q;
    uint64_t per_block = BIT(q->block_bits);
    uint64_t blocks = MAX(q->reftable_count, (w->cluster_count + per_block - 1) / per_block);
    int rc = 0;

    for (uint64_t b = 0; b < blocks && rc == 0; b++) {
        uint64_t first = b << q->block_bits;
        bool is_there = b < q->reftable_count && q->reftable[b] != 0;
        if (is_there && (q->reftable[b] % q->cluster_size != 0 || q->reftable[b] >= q->file_end))
            continue; /* which was found before */
        if (!is_there && first >= w->cluster_count)
            continue;
        for (uint64_t i = 0; i < per_block && rc == 0; i++) {
            uint64_t count = 0, wanted = first + i < w->cluster_count ? w->counts[first + i] : 0;
            if (is_there)
                rc = qcow2_refcount_get(q, first + i, &count);
            else if (first + i >= w->cluster_count)
                break;
            if (count != 0)
                w->check->end_offset =
                    MAX(w->check->end_offset, (first + i + 1) << q->cluster_bits);
            if (rc == 0 && count != wanted)
                rc = compare_one(r, first + i, count, wanted);
        }
    }
    return rc;
}

/* ---- making them anew ---- */

/* Where the new blocks, and then the new table, go; and that much is then in use. */
struct rebuild {
    uint64_t first, blocks, table_clusters;
};

static int plan_rebuild(const struct qcow2 *q, const struct qcow2_walk *w, struct rebuild *out)
{
    uint64_t per_block = BIT(q->block_bits), end = w->cluster_count;

    *out = (struct rebuild){.first = end, .blocks = 1, .table_clusters = 1};
    for (;;) {
        uint64_t total = end + out->blocks + out->table_clusters;
        uint64_t blocks = (total + per_block - 1) / per_block;
        uint64_t clusters = align_up(blocks * 8, q->cluster_size) >> q->cluster_bits;
        if (blocks == out->blocks && clusters == out->table_clusters)
            break;
        out->blocks = blocks;
        out->table_clusters = clusters;
    }
    if (out->table_clusters << q->cluster_bits > QCOW2_REFTABLE_BYTES_MAX)
        return -EFBIG;
    return q->store->grows_zeroed ? 0 : -ENOSPC;
}

static uint64_t rebuilt_count(const struct qcow2 *q, const struct qcow2_walk *w,
                              const struct rebuild *r, uint64_t cluster)
{
    if (cluster < w->cluster_count)
        return MIN(w->counts[cluster], q->refcount_max);
    return cluster < r->first + r->blocks + r->table_clusters;
}

static int write_rebuild(struct qcow2 *q, const struct qcow2_walk *w, const struct rebuild *r)
{
    uint8_t *block = malloc(q->cluster_size);
    uint8_t field[12];
    uint64_t table = (r->first + r->blocks) << q->cluster_bits;
    int rc = block != NULL ? 0 : -ENOMEM;

    for (uint64_t b = 0; b < r->blocks && rc == 0; b++) {
        memset(block, 0, q->cluster_size);
        for (uint64_t i = 0; i < BIT(q->block_bits); i++)
            qcow2_count_store(block, i, q->header.refcount_order,
                              rebuilt_count(q, w, r, (b << q->block_bits) + i));
        rc = store_write(q->store, (r->first + b) << q->cluster_bits, block, q->cluster_size);
    }
    for (uint64_t at = 0; at < r->table_clusters << q->cluster_bits && rc == 0;
         at += q->cluster_size) {
        for (uint64_t i = 0; i < q->cluster_size / 8; i++)
            store_be64(block + i * 8,
                       at / 8 + i < r->blocks ? (r->first + at / 8 + i) << q->cluster_bits : 0);
        rc = store_write(q->store, table + at, block, q->cluster_size);
    }
    free(block);
    if (rc == 0)
        rc = q->store->ops->flush(q->store);
    store_be64(field, table);
    store_be32(field + 8, (uint32_t)r->table_clusters);
    if (rc == 0)
        rc = store_write(q->store, QCOW2_AT_REFTABLE, field, sizeof(field));
    return rc == 0 ? q->store->ops->flush(q->store) : rc;
}

static void forget_cached(struct qcow2_cache *cache)
{
    for (unsigned i = 0; i < cache->count; i++)
        if (cache->slices[i].is_used)
            qcow2_cache_forget(cache, cache->slices[i].offset, cache->slice_size);
}

/* Counts as they should be, with no reference to those that there were. */
static int rebuild(struct qcow2 *q)
{
    struct qcow2_check ignored = {0};
    struct qcow2_walk w = {.q = q, .check = &ignored};
    struct rebuild plan;
    uint64_t *table = NULL;
    int rc = qcow2_walk(&w, false);

    if (rc == 0)
        rc = plan_rebuild(q, &w, &plan);
    if (rc == 0) {
        uint64_t count = plan.table_clusters * q->cluster_size / 8;
        table = calloc(count, sizeof(*table));
        rc = table != NULL ? write_rebuild(q, &w, &plan) : -ENOMEM;
        if (rc == 0) {
            for (uint64_t i = 0; i < plan.blocks; i++)
                table[i] = (plan.first + i) << q->cluster_bits;
            free(q->reftable);
            q->reftable = table;
            table = NULL;
            q->reftable_count = count;
            q->header.reftable_offset = (plan.first + plan.blocks) << q->cluster_bits;
            q->header.reftable_clusters = (uint32_t)plan.table_clusters;
            q->file_end = q->header.reftable_offset + plan.table_clusters * q->cluster_size;
        }
        forget_cached(&q->ref_cache);
    }
    free(table);
    free(w.counts);
    return rc;
}

/* ---- the flags that say "used once" ---- */

struct flags {
    struct qcow2_walk *walk;
    enum qcow2_repair repair;
};

/* Is the flag of an entry as the count says? With repair, it will be. */
static int fix_flag(struct flags *f, uint64_t host, uint64_t *entry, bool *is_changed)
{
    struct qcow2 *q = f->walk->q;
    uint64_t count;
    int rc = qcow2_refcount_get(q, host >> q->cluster_bits, &count);

    if (rc != 0 || !(*entry & QCOW2_COPIED) == (count != 1))
        return rc;
    qcow2_walk_error(f->walk,
                     "the entry 0x%llx says that its cluster is used %s, but it is %llu "
                     "times",
                     (unsigned long long)*entry, *entry & QCOW2_COPIED ? "once" : "more than once",
                     (unsigned long long)count);
    if (f->repair == QCOW2_REPAIR_ALL) {
        *entry ^= QCOW2_COPIED;
        *is_changed = true;
        f->walk->check->errors_fixed++;
    }
    return 0;
}

static int write_table(struct qcow2 *q, uint64_t offset, const uint64_t *entries, uint64_t count)
{
    uint8_t *buf = malloc(count * 8 + 1);

    if (buf == NULL)
        return -ENOMEM;
    for (uint64_t i = 0; i < count; i++)
        store_be64(buf + i * 8, entries[i]);
    int rc = store_write(q->store, offset, buf, count * 8);
    free(buf);
    return rc;
}

static int fix_table(struct flags *f, uint64_t table, uint64_t *l2)
{
    struct qcow2 *q = f->walk->q;
    bool is_changed = false;
    int rc = qcow2_walk_read(q, table, BIT(q->l2_bits), l2);

    for (uint64_t i = 0; i < BIT(q->l2_bits) && rc == 0; i++) {
        enum qcow2_kind kind;
        uint64_t host;
        if (qcow2_entry_kind(q, l2[i], &kind, &host) != 0 || kind == QCOW2_PACKED || host == 0)
            continue;
        rc = fix_flag(f, host, &l2[i], &is_changed);
    }
    return rc == 0 && is_changed ? write_table(q, table, l2, BIT(q->l2_bits)) : rc;
}

static int fix_flags(struct flags *f)
{
    struct qcow2 *q = f->walk->q;
    uint64_t *l2 = malloc(q->cluster_size);
    bool is_changed = false;
    int rc = l2 != NULL ? 0 : -ENOMEM;

    for (uint64_t i = 0; i < q->header.l1_count && rc == 0; i++) {
        uint64_t table = q->l1[i] & QCOW2_OFFSET_MASK;
        if (table == 0 || table % q->cluster_size != 0 || table >= q->file_end)
            continue;
        rc = fix_flag(f, table, &q->l1[i], &is_changed);
        if (rc == 0)
            rc = fix_table(f, table, l2);
    }
    if (rc == 0 && is_changed)
        rc = write_table(q, q->header.l1_offset, q->l1, q->header.l1_count);
    free(l2);
    forget_cached(&q->l2_cache);
    return rc;
}

/* ---- all of it ---- */

static bool has_overlap(struct qcow2 *q)
{
    int rc = qcow2_add_tables(q);

    qcow2_set_free(&q->tables);
    return rc == -EEXIST;
}

/* The marks go, when what they stand for is gone. */
static int clear_marks(struct qcow2 *q)
{
    uint64_t marks = QCOW2_INCOMPATIBLE_DIRTY | QCOW2_INCOMPATIBLE_CORRUPT;
    int rc = q->store->ops->flush(q->store);

    if (rc != 0 || !(q->header.incompatible & marks))
        return rc;
    q->header.incompatible &= ~marks;
    rc = qcow2_header_write_u64(q, QCOW2_AT_INCOMPATIBLE, q->header.incompatible);
    return rc == 0 ? q->store->ops->flush(q->store) : rc;
}

static int check_refcounts(struct qcow2 *q, enum qcow2_repair repair, struct refcounts *r)
{
    struct qcow2_check *check = r->walk.check;
    bool is_overlapping = has_overlap(q);
    int rc = qcow2_walk(&r->walk, true);

    if (is_overlapping)
        qcow2_walk_error(&r->walk, "tables lie over one another");
    if (rc != 0)
        return rc;
    bool must_rebuild = is_overlapping || r->walk.is_refcounts_bad;
    r->repair = must_rebuild ? QCOW2_REPAIR_NONE : repair;
    rc = compare(r);
    must_rebuild |= r->missing != 0;
    if (rc != 0 || !must_rebuild || repair != QCOW2_REPAIR_ALL)
        return rc == 0 ? qcow2_cache_write(&q->ref_cache) : rc;
    rc = rebuild(q);
    if (rc != 0)
        return rc;
    /* what is still wrong after it? */
    struct qcow2_check again = {0};
    struct refcounts left = {.walk = {.q = q, .check = &again}};
    is_overlapping = has_overlap(q);
    rc = qcow2_walk(&left.walk, true);
    if (rc == 0)
        rc = compare(&left);
    again.errors += is_overlapping;
    check->errors_fixed = check->errors - MIN(again.errors, check->errors);
    check->leaks_fixed = check->leaks - MIN(again.leaks, check->leaks);
    free(left.walk.counts);
    return rc;
}

int qcow2_check(struct image *image, enum qcow2_repair repair, struct qcow2_check *check,
                struct err *e)
{
    struct qcow2 *q = qcow2_of(image);
    struct refcounts r = {.walk = {.q = q, .check = check}};
    struct flags flags = {.walk = &r.walk, .repair = repair};

    assert(repair == QCOW2_REPAIR_NONE || !image->is_read_only);
    check->clusters = align_up(image->size, q->cluster_size) >> q->cluster_bits;
    int rc = check_refcounts(q, repair, &r);
    if (rc == 0)
        rc = fix_flags(&flags);
    if (rc == 0 && repair == QCOW2_REPAIR_ALL && check->errors == check->errors_fixed)
        rc = clear_marks(q);
    else if (rc == 0 && repair != QCOW2_REPAIR_NONE)
        rc = q->store->ops->flush(q->store);
    free(r.walk.counts);
    q->free_hint = 0;
    if (rc == -ELOOP)
        return err_set(e, 0, "check '%s': its tables refer to one another without end", q->path);
    return rc == 0 ? 0 : err_set(e, -rc, "check '%s'", q->path);
}
