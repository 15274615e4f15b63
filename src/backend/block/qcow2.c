/*
 * qcow2.c - opening and closing qcow2 images
 *
 * Opening for writing looks at all that the header and the tables in memory point to, and refuses
 * images whose tables lie over one another: writing to such an image would damage it further.
 */
#include "backend/block/qcow2.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/block/qcow2_impl.h"
#include "base/log.h"

int qcow2_corrupt(struct qcow2 *q, const char *fmt, ...)
{
    static struct log_limit limit;
    char why[160];
    va_list args;

    va_start(args, fmt);
    vsnprintf(why, sizeof(why), fmt, args);
    va_end(args);
    if (log_limit_allows(&limit))
        log_error("the image '%s' is damaged: %s%s", q->path, why,
                  q->image.is_read_only || q->broken != 0
                      ? ""
                      : "; nothing is written to it any more ('doppel image check' says more)");
    if (!q->image.is_read_only && q->broken == 0) {
        q->broken = -EIO;
        /* so that nobody writes to it before it was looked at (version 2 has no place for that) */
        if (q->header.version >= 3 && !q->is_temporary)
            qcow2_header_write_u64(q, QCOW2_AT_INCOMPATIBLE,
                                   q->header.incompatible | QCOW2_INCOMPATIBLE_CORRUPT);
    }
    return -EIO;
}

/* ---- the image's functions ---- */

static int qcow2_flush(struct image *image)
{
    return qcow2_commit(qcow2_of(image));
}

static int qcow2_map(struct image *image, uint64_t offset, uint64_t *size, enum image_extent *out)
{
    static const enum image_extent extents[] = {
        [QCOW2_ABSENT] = IMAGE_ABSENT,         [QCOW2_ZEROES] = IMAGE_ZERO,
        [QCOW2_ZEROES_ALLOCATED] = IMAGE_ZERO, [QCOW2_DATA] = IMAGE_DATA,
        [QCOW2_PACKED] = IMAGE_DATA,
    };
    struct qcow2 *q = qcow2_of(image);
    struct qcow2_mapping m;

    pthread_mutex_lock(&q->lock);
    int rc = qcow2_map_find(q, offset, MIN(*size, image->size - offset), &m);
    pthread_mutex_unlock(&q->lock);
    if (rc == 0) {
        *size = m.size;
        *out = extents[m.kind];
    }
    return rc;
}

static int qcow2_empty(struct image *image)
{
    struct qcow2 *q = qcow2_of(image);

    return qcow2_forget(q, 0, align_up(image->size, q->cluster_size));
}

static void qcow2_free(struct qcow2 *q)
{
    qcow2_cache_free(&q->l2_cache);
    qcow2_cache_free(&q->ref_cache);
    qcow2_set_free(&q->tables);
    for (unsigned i = 0; i < QCOW2_UNPACKED_COUNT; i++)
        free(q->unpacked[i].data);
    free(q->l1);
    free(q->reftable);
    free(q->releases.all);
    free(q->leavings.all);
    qcow2_set_free(&q->held);
    free(q->path);
    redo_close(&q->redo);
    q->store->ops->close(q->store);
    pthread_mutex_destroy(&q->unpacked_lock);
    pthread_cond_destroy(&q->allocation_ended);
    pthread_mutex_destroy(&q->lock);
    pthread_mutex_destroy(&q->commit_lock);
    free(q);
}

static void qcow2_close(struct image *image)
{
    struct qcow2 *q = qcow2_of(image);

    if (q->redo.list != NULL && !q->is_temporary && q->broken == 0 && qcow2_commit(q) != 0)
        log_error("the image '%s' could not be written out", q->path);
    qcow2_free(q);
}

static const struct image_ops qcow2_ops = {
    .transfer = qcow2_transfer,
    .flush = qcow2_flush,
    .discard = qcow2_discard,
    .write_zeroes = qcow2_write_zeroes,
    .locate = qcow2_locate,
    .leave = qcow2_leave,
    .map = qcow2_map,
    .resize = qcow2_resize,
    .write_compressed = qcow2_packed_write,
    .empty = qcow2_empty,
    .close = qcow2_close,
};

/* ---- opening ---- */

static int read_table(struct qcow2 *q, uint64_t offset, uint64_t count, uint64_t **out)
{
    uint64_t *table = calloc(count + 1, sizeof(*table));
    int rc = table != NULL ? store_read(q->store, offset, table, count * 8) : -ENOMEM;

    for (uint64_t i = 0; rc == 0 && i < count; i++)
        table[i] = load_be64(&table[i]);
    *out = table;
    return rc;
}

static uint32_t slice_size(const struct qcow2 *q)
{
    return MIN(q->cluster_size, QCOW2_SLICE_SIZE);
}

unsigned qcow2_slices_wanted(const struct qcow2 *q)
{
    uint64_t mapped = (uint64_t)slice_size(q) / 8 << q->cluster_bits; /* by a slice: bytes */

    return (unsigned)MIN(q->image.size / mapped + QCOW2_L2_SLICES_MIN, QCOW2_L2_SLICES_MAX);
}

/* For the file as it is, and as all that the disk can still get in it will make it. */
unsigned qcow2_ref_slices_wanted(const struct qcow2 *q)
{
    uint64_t counted = ((uint64_t)slice_size(q) * 8 >> q->header.refcount_order) << q->cluster_bits;
    uint64_t wanted = q->file_end / counted + q->image.size / counted +
                      q->image.size / counted / 8 + 2 * QCOW2_REF_SLICES_SPARE;

    return (unsigned)MIN(MAX(wanted, QCOW2_REF_SLICES_MIN), QCOW2_REF_SLICES_MAX);
}

static int read_tables(struct qcow2 *q)
{
    const struct qcow2_header *h = &q->header;
    uint32_t slice = slice_size(q);

    q->reftable_count = h->reftable_clusters * (uint64_t)q->cluster_size / 8;
    int rc = read_table(q, h->l1_offset, h->l1_count, &q->l1);
    if (rc == 0)
        rc = read_table(q, h->reftable_offset, q->reftable_count, &q->reftable);
    for (uint64_t i = 0; rc == 0 && i < q->reftable_count; i++)
        q->reftable[i] &= ~UINT64_C(0x1ff); /* reserved */
    if (rc == 0)
        rc = qcow2_cache_init(&q->l2_cache, q->store, slice, qcow2_slices_wanted(q));
    if (rc == 0)
        rc = qcow2_cache_init(&q->ref_cache, q->store, slice, qcow2_ref_slices_wanted(q));
    q->ref_cache.may_write = true; /* until there are commits */
    return rc;
}

int qcow2_open(struct store *store, const struct image_config *config, struct image **out,
               struct err *e)
{
    struct qcow2 *q = calloc(1, sizeof(*q));

    if (q == NULL) {
        store->ops->close(store);
        return err_set(e, ENOMEM, "open '%s'", config->path);
    }
    q->store = store;
    pthread_mutex_init(&q->commit_lock, NULL);
    pthread_mutex_init(&q->lock, NULL);
    pthread_mutex_init(&q->unpacked_lock, NULL);
    pthread_cond_init(&q->allocation_ended, NULL);
    int rc = qcow2_header_read(store, config->path, &q->header, e);
    if (rc != 0) {
        qcow2_free(q);
        return rc;
    }
    q->cluster_bits = q->header.cluster_bits;
    q->cluster_size = 1u << q->cluster_bits;
    q->l2_bits = q->cluster_bits - 3;
    q->block_bits = q->cluster_bits + 3 - q->header.refcount_order;
    q->refcount_max = mask_bytes(8) >> (64 - (1u << q->header.refcount_order));
    q->image = (struct image){
        .ops = &qcow2_ops,
        .format = BLOCK_FORMAT_QCOW2,
        .size = align_down(q->header.size, BLOCK_SECTOR),
        .physical_size = (uint32_t)MIN(q->cluster_size, MAX(store->physical_size, 4096u)),
        .is_read_only = store->is_read_only,
        .located_ops = store->file != NULL ? BIT(BLOCK_READ) | BIT(BLOCK_WRITE) : 0,
    };
    q->path = strdup(config->path);
    rc = q->path != NULL ? store->ops->length(store, &q->file_end) : -ENOMEM;
    if (rc == 0)
        rc = read_tables(q);
    if (rc != 0) {
        qcow2_free(q);
        return err_set(e, -rc, "read the tables of '%s'", config->path);
    }
    *out = &q->image;
    return 0;
}

const struct qcow2_names *qcow2_names(const struct image *image)
{
    return &CONTAINER_OF(image, struct qcow2, image)->header.names;
}

/* ---- getting ready to write ---- */

static int add_table(struct qcow2 *q, uint64_t offset, uint64_t size)
{
    int rc = 0;

    if (offset % q->cluster_size != 0 || offset >= q->file_end)
        return -ERANGE;
    for (uint64_t at = 0; at < size && rc == 0; at += q->cluster_size)
        rc = qcow2_set_add(&q->tables, (offset + at) >> q->cluster_bits);
    return rc;
}

int qcow2_add_tables(struct qcow2 *q)
{
    const struct qcow2_header *h = &q->header;
    int rc = add_table(q, 0, q->cluster_size);

    if (rc == 0)
        rc = add_table(q, h->l1_offset, h->l1_count * UINT64_C(8));
    if (rc == 0)
        rc = add_table(q, h->reftable_offset, (uint64_t)h->reftable_clusters << q->cluster_bits);
    if (rc == 0 && h->snapshot_count != 0)
        rc = add_table(q, h->snapshots_offset, 1);
    for (uint64_t i = 0; i < q->reftable_count && rc == 0; i++)
        if (q->reftable[i] != 0)
            rc = add_table(q, q->reftable[i], q->cluster_size);
    for (uint64_t i = 0; i < h->l1_count && rc == 0; i++)
        if ((q->l1[i] & QCOW2_OFFSET_MASK) != 0)
            rc = add_table(q, q->l1[i] & QCOW2_OFFSET_MASK, q->cluster_size);
    return rc;
}

static int repair_dirty(struct qcow2 *q, const char *path, struct err *e)
{
    struct qcow2_check check = {0};

    log_info("the image '%s' was not closed; its refcounts are made anew", path);
    int rc = qcow2_check(&q->image, QCOW2_REPAIR_ALL, &check, e);
    if (rc == 0 && check.errors > check.errors_fixed)
        rc = err_set(e, 0,
                     "open '%s' for writing: it was not closed, and has %llu errors that could not "
                     "be repaired ('doppel image check' lists them)",
                     path, (unsigned long long)(check.errors - check.errors_fixed));
    return rc;
}

int qcow2_start(struct image *image, const struct image_config *config, struct err *e)
{
    struct qcow2 *q = qcow2_of(image);
    const char *path = config->path;
    struct err why;
    int rc;

    q->is_temporary = image->backing != NULL && q->header.names.backing_file[0] == '\0';
    if (image->is_read_only)
        return 0;
    rc = redo_open(&q->redo, e);
    if (rc != 0 || config->is_for_repair)
        return rc;
    if (q->header.incompatible & QCOW2_INCOMPATIBLE_CORRUPT)
        return err_set(e, 0,
                       "open '%s' for writing: it is marked as damaged; 'doppel image check "
                       "--repair all' may mend it",
                       path);
    if (q->header.incompatible & QCOW2_INCOMPATIBLE_DIRTY) {
        rc = repair_dirty(q, path, e);
        if (rc != 0)
            return rc;
    }
    rc = qcow2_add_tables(q);
    if (rc == -ENOMEM)
        return err_set(e, ENOMEM, "open '%s'", path);
    if (rc != 0)
        return err_set(e, 0,
                       "open '%s' for writing: tables of it lie over one another or outside of the "
                       "file; 'doppel image check' says more",
                       path);
    /* what we do not know, we do not keep up to date (specification) */
    if (q->header.autoclear != 0) {
        rc = qcow2_header_write_u64(q, QCOW2_AT_AUTOCLEAR, 0);
        if (rc != 0)
            return err_set(e, -rc, "write the header of '%s'", path);
        q->header.autoclear = 0;
        q->header.bitmap_count = 0;
    }
    q->ref_cache.may_write = false;
    /* who does not lock it out does not mind being seen in between */
    if (q->store->file != NULL && !q->is_temporary && !config->is_unlocked &&
        redo_start_survivor(&q->redo, q->store, &why) != 0)
        log_info(
            "the image '%s' has no process that survives this one (%s): if this one is killed, "
            "there may be clusters that leak",
            path, why.msg);
    return 0;
}

void qcow2_get_info(struct image *image, struct qcow2_info *out)
{
    const struct qcow2 *q = qcow2_of(image);

    *out = (struct qcow2_info){
        .version = q->header.version,
        .cluster_size = q->cluster_size,
        .refcount_bits = 1u << q->header.refcount_order,
        .compression = q->header.compression,
        .has_lazy_refcounts = q->header.compatible & QCOW2_COMPATIBLE_LAZY_REFCOUNTS,
        .is_dirty = q->header.incompatible & QCOW2_INCOMPATIBLE_DIRTY,
        .is_corrupt = q->header.incompatible & QCOW2_INCOMPATIBLE_CORRUPT,
        .snapshot_count = q->header.snapshot_count,
        .disk_bytes = q->file_end,
    };
}
