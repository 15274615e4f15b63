/*
 * qcow2_format.c - new images
 *
 * In the file: header, refcount table, refcount blocks, L1 table. The header is written last: a
 * file that has it is whole.
 *
 * Spec: "Header", "Header extensions".
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/block/qcow2_impl.h"
#include "base/parse.h"

#define REFCOUNT_ORDER 4u
#define HEADER_PLAIN_MIN                                                                           \
    4096u /* with smaller clusters the header has no table of feature names                        \
           */

struct layout {
    uint32_t cluster_size;
    unsigned cluster_bits;
    uint64_t table_clusters, blocks;
    uint64_t l1_count, l1_clusters;
    uint64_t total;
};

uint64_t qcow2_size_max(uint32_t cluster_size)
{
    uint64_t l2_covers = (uint64_t)cluster_size * (cluster_size / 8);
    uint64_t l1_max = QCOW2_L1_BYTES_MAX / 8;

    return align_down(l2_covers > INT64_MAX / l1_max ? INT64_MAX : l2_covers * l1_max,
                      BLOCK_SECTOR);
}

static int check_create(const struct qcow2_create *c, struct err *e)
{
    char min[PARSE_SIZE_TEXT], max[PARSE_SIZE_TEXT];

    if (c->version != 2 && c->version != 3)
        return err_set(e, 0, "make an image: version %u is not supported (2 and 3 are)",
                       c->version);
    if (!is_pow2(c->cluster_size) || c->cluster_size < QCOW2_CLUSTER_MIN ||
        c->cluster_size > QCOW2_CLUSTER_MAX)
        return err_set(e, 0, "make an image: the cluster size must be a power of 2 from %s to %s",
                       parse_format_size(QCOW2_CLUSTER_MIN, min),
                       parse_format_size(QCOW2_CLUSTER_MAX, max));
    if (c->size < BLOCK_SECTOR || c->size % BLOCK_SECTOR != 0 ||
        c->size > qcow2_size_max(c->cluster_size))
        return err_set(e, 0,
                       "make an image: with clusters of %s the size must be a multiple of 512 "
                       "bytes, up to %s",
                       parse_format_size(c->cluster_size, min),
                       parse_format_size(qcow2_size_max(c->cluster_size), max));
    if (c->version < 3 && (c->compression != QCOW2_ZLIB || c->has_lazy_refcounts))
        return err_set(e, 0, "make an image: version 2 has no %s",
                       c->has_lazy_refcounts ? "lazy refcounts" : "compression but zlib");
    if (c->preallocation != QCOW2_PREALLOCATE_OFF && c->backing_file != NULL)
        return err_set(e, 0, "make an image: preallocated clusters would hide the backing file");
    return 0;
}

static void plan(const struct qcow2_create *c, struct layout *l)
{
    uint64_t per_block = (uint64_t)c->cluster_size * 8 >> REFCOUNT_ORDER;
    uint64_t l2_covers = (uint64_t)c->cluster_size * (c->cluster_size / 8);

    *l = (struct layout){.cluster_size = c->cluster_size, .table_clusters = 1, .blocks = 1};
    l->cluster_bits = (unsigned)__builtin_ctz(c->cluster_size);
    l->l1_count = c->size / l2_covers + (c->size % l2_covers != 0);
    l->l1_clusters = align_up(l->l1_count * 8, c->cluster_size) >> l->cluster_bits;
    for (;;) {
        l->total = 1 + l->table_clusters + l->blocks + l->l1_clusters;
        uint64_t blocks = (l->total + per_block - 1) / per_block;
        uint64_t tables = align_up(blocks * 8, c->cluster_size) >> l->cluster_bits;
        if (blocks == l->blocks && tables == l->table_clusters)
            return;
        l->blocks = blocks;
        l->table_clusters = tables;
    }
}

/* ---- the header ---- */

static uint64_t add_extension(uint8_t *cluster, uint64_t at, uint32_t type, const void *data,
                              uint32_t size)
{
    store_be32(cluster + at, type);
    store_be32(cluster + at + 4, size);
    memcpy(cluster + at + 8, data, size);
    return at + 8 + align_up(size, 8);
}

/* Names by which a program that does not know a feature can refuse it. */
static uint64_t add_features(uint8_t *cluster, uint64_t at)
{
    static const struct {
        uint8_t type, bit;
        char name[46];
    } features[] = {
        {0, 0, "dirty bit"},        {0, 1, "corrupt bit"},         {0, 2, "external data file"},
        {0, 3, "compression type"}, {0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"},
        {2, 0, "bitmaps"},
    };
    _Static_assert(sizeof(features[0]) == 48, "as the specification has it");

    return add_extension(cluster, at, QCOW2_EXTENSION_FEATURES, features, sizeof(features));
}

static int make_header(const struct qcow2_create *c, const struct layout *l, uint8_t *p,
                       struct err *e)
{
    size_t name_size = c->backing_file != NULL ? strlen(c->backing_file) : 0;
    uint64_t at = c->version < 3 ? QCOW2_HEADER_V2 : QCOW2_HEADER_FULL;

    memcpy(p, "QFI\xfb", IMAGE_MAGIC_SIZE);
    store_be32(p + 4, c->version);
    store_be32(p + 20, l->cluster_bits);
    store_be64(p + QCOW2_AT_SIZE, c->size);
    store_be32(p + QCOW2_AT_L1, (uint32_t)l->l1_count);
    store_be64(p + QCOW2_AT_L1 + 4, (1 + l->table_clusters + l->blocks) << l->cluster_bits);
    store_be64(p + QCOW2_AT_REFTABLE, l->cluster_size);
    store_be32(p + QCOW2_AT_REFTABLE + 8, (uint32_t)l->table_clusters);
    if (c->version >= 3) {
        store_be64(p + QCOW2_AT_INCOMPATIBLE,
                   c->compression != QCOW2_ZLIB ? QCOW2_INCOMPATIBLE_COMPRESSION : 0);
        store_be64(p + 80, c->has_lazy_refcounts ? QCOW2_COMPATIBLE_LAZY_REFCOUNTS : 0);
        store_be32(p + 96, REFCOUNT_ORDER);
        store_be32(p + 100, QCOW2_HEADER_FULL);
        p[104] = (uint8_t)c->compression;
    }
    if (name_size != 0) {
        const char *format = image_format_name(c->backing_format);
        at = add_extension(p, at, QCOW2_EXTENSION_BACKING_FORMAT, format, (uint32_t)strlen(format));
    }
    if (c->version >= 3 && l->cluster_size >= HEADER_PLAIN_MIN)
        at = add_features(p, at);
    at += 8; /* the end */
    if (name_size > QCOW2_BACKING_FILE_MAX || at + name_size > l->cluster_size)
        return err_set(e, ENAMETOOLONG, "make an image with the backing file '%s'",
                       c->backing_file);
    if (name_size != 0) {
        store_be64(p + 8, at);
        store_be32(p + 16, (uint32_t)name_size);
        memcpy(p + at, c->backing_file, name_size);
    }
    return 0;
}

/* ---- tables ---- */

static int write_tables(struct store *store, const struct layout *l, uint8_t *buf)
{
    uint64_t per_block = (uint64_t)l->cluster_size * 8 >> REFCOUNT_ORDER;
    uint64_t offset = l->cluster_size, entry = 0;
    int rc = 0;

    for (uint64_t i = 0; i < l->table_clusters && rc == 0; i++, offset += l->cluster_size) {
        memset(buf, 0, l->cluster_size);
        for (uint64_t j = 0; j < l->cluster_size / 8 && entry < l->blocks; j++, entry++)
            store_be64(buf + j * 8, (1 + l->table_clusters + entry) << l->cluster_bits);
        rc = store_write(store, offset, buf, l->cluster_size);
    }
    for (uint64_t i = 0; i < l->blocks && rc == 0; i++, offset += l->cluster_size) {
        memset(buf, 0, l->cluster_size);
        for (uint64_t j = 0; j < per_block && i * per_block + j < l->total; j++)
            qcow2_count_store(buf, j, REFCOUNT_ORDER, 1);
        rc = store_write(store, offset, buf, l->cluster_size);
    }
    memset(buf, 0, l->cluster_size);
    for (uint64_t i = 0; i < l->l1_clusters && rc == 0; i++, offset += l->cluster_size)
        rc = store_write(store, offset, buf, l->cluster_size);
    return rc;
}

int qcow2_format(struct store *store, const struct qcow2_create *create, struct err *e)
{
    struct layout l;
    int rc = check_create(create, e);

    if (rc != 0)
        return rc;
    plan(create, &l);
    uint8_t *buf = calloc(1, l.cluster_size);
    if (buf == NULL)
        return err_set(e, ENOMEM, "make an image");
    rc = make_header(create, &l, buf, e);
    if (rc == 0) {
        rc = write_tables(store, &l, buf);
        if (rc == 0)
            rc = store->ops->flush(store);
        memset(buf, 0, l.cluster_size);
        make_header(create, &l, buf, NULL);
        if (rc == 0)
            rc = store_write(store, 0, buf, l.cluster_size);
        if (rc == 0)
            rc = store->ops->flush(store);
        if (rc != 0)
            rc = err_set(e, -rc, "write a new image");
    }
    free(buf);
    return rc;
}

/* ---- preallocation ---- */

/* Room for what one slice maps, from `cluster` on; *done: clusters. */
static int preallocate_some(struct qcow2 *q, uint64_t cluster, uint64_t count, uint64_t *done)
{
    struct qcow2_slice *slice;
    unsigned index;
    uint64_t host;
    bool is_fresh;
    int rc = qcow2_commit_if_full(q);

    if (rc == 0)
        rc = qcow2_map_writable(q, cluster, true, &slice, &index);
    if (rc == 0)
        rc = qcow2_allocate(q, MIN(count, qcow2_map_room(q, cluster)), QCOW2_HOST_MAX, &host, done,
                            &is_fresh);
    if (rc == 0 && !is_fresh)
        rc = q->store->ops->write_zeroes(q->store, host, *done << q->cluster_bits, true);
    if (rc != 0)
        return rc;
    for (uint64_t i = 0; i < *done; i++)
        store_be64(slice->data + (index + i) * 8, (host + (i << q->cluster_bits)) | QCOW2_COPIED);
    qcow2_cache_dirty(&q->l2_cache, slice);
    return 0;
}

int qcow2_preallocate(struct image *image, enum qcow2_preallocation how, struct err *e)
{
    struct qcow2 *q = qcow2_of(image);
    uint64_t end = align_up(image->size, q->cluster_size) >> q->cluster_bits, done;
    int rc = q->store->grows_zeroed ? 0 : -EOPNOTSUPP;

    pthread_mutex_lock(&q->lock);
    for (uint64_t c = 0; c < end && rc == 0; c += done)
        rc = preallocate_some(q, c, end - c, &done);
    pthread_mutex_unlock(&q->lock);
    if (rc == 0)
        rc = q->store->ops->resize(q->store, q->file_end);
    if (rc == 0 && how == QCOW2_PREALLOCATE_FALLOC)
        rc = q->store->ops->allocate(q->store, 0, q->file_end);
    if (rc == 0)
        rc = qcow2_commit(q);
    return rc == 0 ? 0 : err_set(e, -rc, "preallocate '%s'", q->path);
}
