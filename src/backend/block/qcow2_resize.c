/*
 * qcow2_resize.c - disks made larger and smaller
 *
 * What becomes visible at the end of a disk is zeroes, whatever a backing file has there. It is
 * made so before the header has the new size. A disk may be grown while a guest has it: block.c
 * keeps requests away. So whatever fails leaves a disk that goes on as it was, or one to which
 * nothing is written any more.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/block/qcow2_impl.h"

/* The header's field changes, durably. When that fails, nobody knows what the file says. */
static int write_header(struct qcow2 *q, uint64_t at, const uint8_t *field, uint64_t size)
{
    int rc = store_write(q->store, at, field, size);

    if (rc == 0)
        rc = q->store->ops->flush(q->store);
    if (rc != 0)
        q->broken = rc;
    return rc;
}

/* A copy of the table with more entries, in new clusters that are counted. */
static int copy_l1(struct qcow2 *q, uint64_t *l1, uint64_t clusters, uint64_t *offset)
{
    uint8_t *buf = calloc(clusters, q->cluster_size);
    bool is_fresh;
    int rc = buf != NULL ? qcow2_allocate_all(q, clusters, offset, &is_fresh) : -ENOMEM;

    for (uint64_t i = 0; rc == 0 && i < q->header.l1_count; i++) {
        l1[i] = q->l1[i];
        store_be64(buf + i * 8, l1[i]);
    }
    if (rc == 0) {
        rc = store_write(q->store, *offset, buf, clusters << q->cluster_bits);
        if (rc != 0)
            qcow2_refcount_decrease(q, *offset >> q->cluster_bits, clusters);
    }
    free(buf);
    return rc;
}

/* The table with more entries, elsewhere; the next commit tells the header. Nothing is dirty. */
static int move_l1(struct qcow2 *q, uint32_t count)
{
    uint64_t old = q->header.l1_offset, old_size = q->header.l1_count * UINT64_C(8), offset;
    uint64_t old_clusters = align_up(old_size, q->cluster_size) >> q->cluster_bits;
    uint64_t clusters = align_up(count * UINT64_C(8), q->cluster_size) >> q->cluster_bits;
    uint64_t *l1 = calloc(count, sizeof(*l1));
    int rc = l1 != NULL ? copy_l1(q, l1, clusters, &offset) : -ENOMEM;

    if (rc != 0) {
        free(l1);
        return rc;
    }
    for (uint64_t i = 0; i < old_clusters; i++)
        qcow2_set_remove(&q->tables, (old >> q->cluster_bits) + i);
    for (uint64_t i = 0; i < clusters && rc == 0; i++)
        rc = qcow2_set_add(&q->tables, (offset >> q->cluster_bits) + i);
    free(q->l1);
    q->l1 = l1;
    q->header.l1_count = count;
    q->header.l1_offset = offset;
    q->is_l1_moved = true;
    if (rc != 0) { /* a write to where the table is would not be noticed */
        q->broken = rc;
        return rc;
    }
    return old_size != 0 ? qcow2_release(q, old >> q->cluster_bits, old_clusters, false) : 0;
}

static int write_size(struct qcow2 *q, uint64_t size)
{
    uint8_t field[8];

    store_be64(field, size);
    int rc = write_header(q, QCOW2_AT_SIZE, field, sizeof(field));
    if (rc == 0)
        q->header.size = size;
    return rc;
}

static int grow(struct qcow2 *q, uint64_t size)
{
    uint64_t old = q->image.size, l2_covers = BIT(q->cluster_bits + q->l2_bits);
    uint64_t count = size / l2_covers + (size % l2_covers != 0);
    uint64_t visible = align_up(old, q->cluster_size); /* of the last cluster */
    int rc = count > q->header.l1_count ? move_l1(q, (uint32_t)count) : 0;

    if (rc != 0)
        return rc;
    if (q->image.backing != NULL)
        visible = MAX(visible, q->image.backing->size);
    visible = MIN(visible, size);
    q->image.size = size;
    if (visible > old)
        rc = qcow2_write_zeroes(&q->image, old, visible - old, true);
    if (rc == 0)
        rc = qcow2_commit(q);
    if (rc == 0)
        rc = write_size(q, size);
    if (rc != 0)
        q->image.size = old;
    if (rc == 0) {
        qcow2_cache_enlarge(&q->l2_cache, qcow2_slices_wanted(q));
        qcow2_cache_enlarge(&q->ref_cache, qcow2_ref_slices_wanted(q));
    }
    return rc;
}

static int shrink(struct qcow2 *q, uint64_t size)
{
    uint64_t old = q->image.size;
    uint64_t from = align_up(size, q->cluster_size), to = align_up(old, q->cluster_size);
    int rc = write_size(q, size);

    if (rc == 0 && size < MIN(from, old))
        rc = qcow2_write_zeroes(&q->image, size, MIN(from, old) - size, true);
    if (rc == 0 && from < to)
        rc = qcow2_forget(q, from, to - from);
    if (rc == 0)
        rc = qcow2_commit(q);
    q->image.size = size;
    return rc;
}

int qcow2_resize(struct image *image, uint64_t size, struct err *e)
{
    struct qcow2 *q = qcow2_of(image);
    char max[32];

    if (size > qcow2_size_max(q->cluster_size)) {
        snprintf(max, sizeof(max), "%llu", (unsigned long long)qcow2_size_max(q->cluster_size));
        return err_set(e, 0, "resize '%s': with its clusters, a disk has at most %s bytes", q->path,
                       max);
    }
    if (q->header.snapshot_count != 0 && (q->header.version < 3 || size < image->size))
        return err_set(
            e, 0, "resize '%s': it has snapshots, and %s ('qemu-img snapshot -d' deletes them)",
            q->path,
            size < image->size ? "they would be cut off"
                               : "in version 2 they do not know their size");
    int rc = qcow2_commit(q);
    if (rc == 0 && size > image->size)
        rc = grow(q, size);
    else if (rc == 0 && size < image->size)
        rc = shrink(q, size);
    return rc == 0 ? 0 : err_set(e, -rc, "resize '%s'", q->path);
}
