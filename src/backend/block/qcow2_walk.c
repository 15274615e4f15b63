/*
 * qcow2_walk.c - everything that an image refers to, counted
 *
 * Spec: "Host cluster management", "Cluster mapping", "Snapshots", "Bitmaps".
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/block/qcow2_impl.h"

#define BUDGET_MIN (UINT64_C(1) << 22)
#define BUDGET_PER_CLUSTER 1024

void qcow2_walk_error(struct qcow2_walk *w, const char *fmt, ...)
{
    char text[160];
    va_list args;

    w->check->errors++;
    if (w->check->report == NULL)
        return;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    w->check->report(w->check->ctx, text);
}

int qcow2_walk_read(struct qcow2 *q, uint64_t offset, uint64_t count, uint64_t *to)
{
    int rc = store_read(q->store, offset, to, count * 8);

    for (uint64_t i = 0; rc == 0 && i < count; i++)
        to[i] = load_be64(&to[i]);
    return rc;
}

static void count(struct qcow2_walk *w, uint64_t offset, uint64_t size)
{
    unsigned bits = w->q->cluster_bits;

    for (uint64_t c = offset >> bits; c <= (offset + size - 1) >> bits; c++)
        if (c < w->cluster_count && w->counts[c] != UINT32_MAX)
            w->counts[c]++;
}

/* A table or cluster that is referred to; false, and an error counted: it cannot be there. */
static bool refer(struct qcow2_walk *w, uint64_t offset, uint64_t size, const char *what)
{
    if (offset % w->q->cluster_size == 0 &&
        range_fits(offset, size, w->cluster_count << w->q->cluster_bits)) {
        count(w, offset, size);
        return true;
    }
    qcow2_walk_error(w, "%s lies at 0x%llx, where none can be", what, (unsigned long long)offset);
    w->is_incomplete = true;
    return false;
}

static int spend(struct qcow2_walk *w, uint64_t entries)
{
    if (w->budget < entries)
        return -ELOOP;
    w->budget -= entries;
    return 0;
}

/* ---- maps ---- */

static void refer_entry(struct qcow2_walk *w, uint64_t entry, bool is_active)
{
    enum qcow2_kind kind;
    uint64_t host, size;

    if (qcow2_entry_kind(w->q, entry, &kind, &host) != 0) {
        qcow2_walk_error(w, "an entry of an L2 table is 0x%llx, which means nothing",
                         (unsigned long long)entry);
        w->is_incomplete = true;
        return;
    }
    if (kind == QCOW2_PACKED) {
        qcow2_packed_range(w->q, entry, &host, &size);
        if (host >= w->cluster_count << w->q->cluster_bits) {
            qcow2_walk_error(w, "a compressed cluster lies at 0x%llx, behind the end of the file",
                             (unsigned long long)host);
            return;
        }
        count(w, host, size);
    } else if (host != 0) {
        count(w, host, w->q->cluster_size);
    }
    if (is_active && kind != QCOW2_ABSENT && kind != QCOW2_ZEROES) {
        w->check->allocated++;
        w->check->compressed += kind == QCOW2_PACKED;
    }
}

static int walk_map(struct qcow2_walk *w, const uint64_t *l1, uint64_t l1_count, bool is_active)
{
    struct qcow2 *q = w->q;
    uint64_t *l2 = malloc(q->cluster_size);
    int rc = l2 != NULL ? 0 : -ENOMEM;

    for (uint64_t i = 0; i < l1_count && rc == 0; i++) {
        uint64_t table = l1[i] & QCOW2_OFFSET_MASK;
        if (table == 0 || !refer(w, table, q->cluster_size, "an L2 table"))
            continue;
        rc = spend(w, BIT(q->l2_bits));
        if (rc == 0)
            rc = qcow2_walk_read(q, table, BIT(q->l2_bits), l2);
        for (uint64_t j = 0; rc == 0 && j < BIT(q->l2_bits); j++)
            if (l2[j] != 0)
                refer_entry(w, l2[j], is_active);
    }
    free(l2);
    return rc;
}

/* ---- snapshots ---- */

static int walk_snapshot(struct qcow2_walk *w, uint64_t l1_offset, uint64_t l1_count)
{
    if (l1_count == 0)
        return 0;
    if (l1_count > QCOW2_L1_BYTES_MAX / 8) {
        qcow2_walk_error(w, "the L1 table of a snapshot is impossibly large");
        w->is_incomplete = true;
        return 0;
    }
    if (!refer(w, l1_offset, l1_count * 8, "the L1 table of a snapshot"))
        return 0;
    uint64_t *l1 = malloc(l1_count * 8);
    int rc = l1 != NULL ? spend(w, l1_count) : -ENOMEM;
    if (rc == 0)
        rc = qcow2_walk_read(w->q, l1_offset, l1_count, l1);
    if (rc == 0)
        rc = walk_map(w, l1, l1_count, false);
    free(l1);
    return rc;
}

static int walk_snapshots(struct qcow2_walk *w)
{
    const struct qcow2_header *h = &w->q->header;
    uint64_t at = h->snapshots_offset;

    for (uint32_t i = 0; i < h->snapshot_count; i++) {
        uint8_t fixed[40];
        int rc = spend(w, 8);
        if (rc == 0)
            rc = store_read(w->q->store, at, fixed, sizeof(fixed));
        if (rc == 0)
            rc = walk_snapshot(w, load_be64(fixed), load_be32(fixed + 8));
        if (rc != 0)
            return rc;
        at += align_up(sizeof(fixed) + load_be32(fixed + 36) + load_be16(fixed + 12) +
                           load_be16(fixed + 14),
                       8);
        if (at - h->snapshots_offset > QCOW2_SNAPSHOT_BYTES_MAX) {
            qcow2_walk_error(w, "the table of snapshots is impossibly large");
            w->is_incomplete = true;
            return 0;
        }
    }
    if (h->snapshot_count != 0)
        refer(w, h->snapshots_offset, at - h->snapshots_offset, "the table of snapshots");
    return 0;
}

/* ---- bitmaps ---- */

static int walk_bitmap(struct qcow2_walk *w, uint64_t offset, uint64_t entries)
{
    if (entries == 0 || entries > QCOW2_BITMAP_DIRECTORY_MAX / 8 ||
        !refer(w, offset, entries * 8, "the table of a bitmap"))
        return 0;
    uint64_t *table = malloc(entries * 8);
    int rc = table != NULL ? spend(w, entries) : -ENOMEM;
    if (rc == 0)
        rc = qcow2_walk_read(w->q, offset, entries, table);
    for (uint64_t i = 0; rc == 0 && i < entries; i++)
        if ((table[i] & QCOW2_OFFSET_MASK) != 0)
            refer(w, table[i] & QCOW2_OFFSET_MASK, w->q->cluster_size, "a cluster of a bitmap");
    free(table);
    return rc;
}

static int walk_bitmaps(struct qcow2_walk *w)
{
    const struct qcow2_header *h = &w->q->header;
    uint64_t size = h->bitmap_directory_size, at = 0;
    int rc = 0;

    if (h->bitmap_count == 0 || size == 0 ||
        !refer(w, h->bitmap_directory_offset, size, "the directory of bitmaps"))
        return 0;
    uint8_t *directory = malloc(size);
    rc = directory != NULL ? store_read(w->q->store, h->bitmap_directory_offset, directory, size)
                           : -ENOMEM;
    for (uint32_t i = 0; rc == 0 && i < h->bitmap_count && size - at >= 24; i++) {
        const uint8_t *p = directory + at;
        rc = walk_bitmap(w, load_be64(p), load_be32(p + 8));
        at += align_up(UINT64_C(24) + load_be32(p + 20) + load_be16(p + 18), 8);
        at = MIN(at, size);
    }
    free(directory);
    return rc;
}

/* ---- all of it ---- */

static void walk_refcounts(struct qcow2_walk *w)
{
    const struct qcow2 *q = w->q;

    refer(w, q->header.reftable_offset, (uint64_t)q->header.reftable_clusters << q->cluster_bits,
          "the refcount table");
    for (uint64_t i = 0; i < q->reftable_count; i++)
        if (q->reftable[i] != 0 && !refer(w, q->reftable[i], q->cluster_size, "a refcount block"))
            w->is_refcounts_bad = true;
}

int qcow2_walk(struct qcow2_walk *w, bool is_with_refcounts)
{
    struct qcow2 *q = w->q;
    uint64_t length;
    int rc = q->store->ops->length(q->store, &length);

    if (rc != 0)
        return rc;
    w->cluster_count = align_up(length, q->cluster_size) >> q->cluster_bits;
    w->budget = BUDGET_MIN + w->cluster_count * BUDGET_PER_CLUSTER;
    /* one that is as large as a sparse file pretends to be is given page by page */
    if (w->cluster_count > UINT32_MAX)
        return -EFBIG;
    w->counts = calloc(w->cluster_count + 1, sizeof(*w->counts));
    if (w->counts == NULL)
        return -ENOMEM;
    refer(w, 0, q->cluster_size, "the header");
    refer(w, q->header.l1_offset, q->header.l1_count * UINT64_C(8), "the L1 table");
    rc = walk_map(w, q->l1, q->header.l1_count, true);
    if (rc == 0)
        rc = walk_snapshots(w);
    if (rc == 0)
        rc = walk_bitmaps(w);
    if (rc == 0 && is_with_refcounts)
        walk_refcounts(w);
    return rc;
}
