/*
 * qcow2_header.c - the header of a qcow2 image: read, judged, and its fields written
 *
 * Everything in it may be made by an enemy. What is accepted here can be computed with: sizes are
 * bounded, tables are aligned and begin inside of the file.
 *
 * Spec: "Header", "Header extensions".
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/block/qcow2_impl.h"

static void take_fields(const uint8_t *p, struct qcow2_header *h)
{
    h->version = load_be32(p + 4);
    h->backing_offset = load_be64(p + 8);
    h->backing_size = load_be32(p + 16);
    h->cluster_bits = load_be32(p + 20);
    h->size = load_be64(p + 24);
    h->encryption = load_be32(p + 32);
    h->l1_count = load_be32(p + QCOW2_AT_L1);
    h->l1_offset = load_be64(p + QCOW2_AT_L1 + 4);
    h->reftable_offset = load_be64(p + QCOW2_AT_REFTABLE);
    h->reftable_clusters = load_be32(p + QCOW2_AT_REFTABLE + 8);
    h->snapshot_count = load_be32(p + 60);
    h->snapshots_offset = load_be64(p + 64);
    if (h->version < 3) {
        h->refcount_order = 4;
        h->length = QCOW2_HEADER_V2;
        return;
    }
    h->incompatible = load_be64(p + QCOW2_AT_INCOMPATIBLE);
    h->compatible = load_be64(p + 80);
    h->autoclear = load_be64(p + QCOW2_AT_AUTOCLEAR);
    h->refcount_order = load_be32(p + 96);
    h->length = load_be32(p + 100);
    if (h->length > QCOW2_HEADER_V3)
        h->compression = p[104];
}

/* The name that the image's own table gives to an incompatible feature, or NULL. */
static const char *feature_name(const uint8_t *table, uint32_t size, unsigned bit, char buf[47])
{
    for (uint32_t at = 0; at + 48 <= size; at += 48) {
        if (table[at] != 0 || table[at + 1] != bit)
            continue;
        unsigned n = 0;
        for (; n < 46 && table[at + 2 + n] != 0; n++) {
            uint8_t c = table[at + 2 + n];
            buf[n] = c >= ' ' && c < 0x7f ? (char)c : '?';
        }
        buf[n] = '\0';
        return n != 0 ? buf : NULL;
    }
    return NULL;
}

/* What may stand in a message or be opened: no control characters, and no NUL within. */
static bool is_name(const uint8_t *p, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (p[i] < ' ' || p[i] == 0x7f)
            return false;
    return true;
}

struct features {
    const uint8_t *table;
    uint32_t size;
};

static int take_extension(const char *path, uint32_t type, const uint8_t *data, uint32_t size,
                          struct qcow2_header *h, struct features *features, struct err *e)
{
    switch (type) {
    case QCOW2_EXTENSION_BACKING_FORMAT:
        if (size >= sizeof(h->names.backing_format) || !is_name(data, size))
            return err_set(e, 0, "open '%s': the format of its backing file is no name", path);
        memcpy(h->names.backing_format, data, size);
        h->names.backing_format[size] = '\0';
        return 0;
    case QCOW2_EXTENSION_FEATURES:
        *features = (struct features){data, size};
        return 0;
    case QCOW2_EXTENSION_BITMAPS:
        /* without the bit they are out of date, and nobody's business (specification) */
        if (!(h->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
            return 0;
        if (size != 24)
            return err_set(e, 0, "open '%s': its extension for bitmaps has a wrong size", path);
        h->bitmap_count = load_be32(data);
        h->bitmap_directory_size = load_be64(data + 8);
        h->bitmap_directory_offset = load_be64(data + 16);
        if (h->bitmap_count > QCOW2_BITMAPS_MAX ||
            h->bitmap_directory_size > QCOW2_BITMAP_DIRECTORY_MAX)
            return err_set(e, 0, "open '%s': its directory of bitmaps is impossibly large", path);
        return 0;
    default: /* may be ignored (specification) */
        return 0;
    }
}

/* `area` is what lies between the header and the backing file's name. */
static int take_extensions(const char *path, const uint8_t *area, uint64_t size,
                           struct qcow2_header *h, struct features *features, struct err *e)
{
    uint64_t at = 0;

    while (at + 8 <= size) {
        uint32_t type = load_be32(area + at), len = load_be32(area + at + 4);
        if (type == QCOW2_EXTENSION_END)
            return 0;
        at += 8;
        if (len > size - at)
            return err_set(e, 0, "open '%s': a header extension is longer than the header", path);
        int rc = take_extension(path, type, area + at, len, h, features, e);
        if (rc != 0)
            return rc;
        at += align_up(len, 8);
    }
    return 0;
}

static int check_features(const char *path, const struct qcow2_header *h,
                          const struct features *features, struct err *e)
{
    uint64_t known =
        QCOW2_INCOMPATIBLE_DIRTY | QCOW2_INCOMPATIBLE_CORRUPT | QCOW2_INCOMPATIBLE_COMPRESSION;
    char buf[47];

    if (h->incompatible & QCOW2_INCOMPATIBLE_DATA_FILE)
        return err_set(e, 0,
                       "open '%s': it keeps its data in another file (external data file), which "
                       "is not supported; 'qemu-img convert -O qcow2' makes one file of it",
                       path);
    if (h->incompatible & QCOW2_INCOMPATIBLE_EXTENDED_L2)
        return err_set(e, 0,
                       "open '%s': it has extended L2 entries (subclusters), which are not "
                       "supported; 'qemu-img convert -O qcow2' makes an image without them",
                       path);
    if (h->incompatible & ~known) {
        unsigned bit = (unsigned)__builtin_ctzll(h->incompatible & ~known);
        const char *name = feature_name(features->table, features->size, bit, buf);
        return err_set(e, 0, "open '%s': it needs the feature '%s' (bit %u), which is not known",
                       path, name != NULL ? name : "without a name", bit);
    }
    if (!(h->incompatible & QCOW2_INCOMPATIBLE_COMPRESSION) != (h->compression == QCOW2_ZLIB))
        return err_set(e, 0, "open '%s': its compression type and its features disagree", path);
    if (h->compression > QCOW2_ZSTD)
        return err_set(e, 0, "open '%s': compression type %u is not known", path, h->compression);
    if (h->encryption != 0)
        return err_set(e, 0, "open '%s': it is encrypted, which is not supported", path);
    return 0;
}

static int check_sizes(const char *path, const struct qcow2_header *h, uint64_t length,
                       struct err *e)
{
    uint64_t cluster = UINT64_C(1) << h->cluster_bits;
    uint64_t l2_covers = cluster * (cluster / 8);

    if (h->size > INT64_MAX || h->size < BLOCK_SECTOR)
        return err_set(e, 0, "open '%s': a disk of %llu bytes is impossible", path,
                       (unsigned long long)h->size);
    if (h->refcount_order > 6)
        return err_set(e, 0, "open '%s': refcounts of 2^%u bits are impossible", path,
                       h->refcount_order);
    if (h->l1_count > QCOW2_L1_BYTES_MAX / 8)
        return err_set(e, 0, "open '%s': its L1 table is impossibly large", path);
    if (h->l1_count < h->size / l2_covers + (h->size % l2_covers != 0))
        return err_set(e, 0, "open '%s': its L1 table is too small for the disk", path);
    if (h->reftable_clusters == 0 || h->reftable_clusters > QCOW2_REFTABLE_BYTES_MAX / cluster)
        return err_set(e, 0, "open '%s': its refcount table has an impossible size", path);
    if (h->snapshot_count > QCOW2_SNAPSHOTS_MAX)
        return err_set(e, 0, "open '%s': it has impossibly many snapshots", path);
    uint64_t tables[][2] = {
        {h->l1_offset, h->l1_count * UINT64_C(8)},
        {h->reftable_offset, h->reftable_clusters * cluster},
        {h->snapshots_offset, h->snapshot_count}, /* at least */
    };
    for (unsigned i = 0; i < ARRAY_SIZE(tables); i++)
        if (tables[i][1] != 0 &&
            (tables[i][0] % cluster != 0 || tables[i][0] == 0 || tables[i][0] >= length ||
             !range_fits(tables[i][0], tables[i][1], align_up(length, cluster))))
            return err_set(e, 0,
                           "open '%s': its header places a table at 0x%llx, where none can be",
                           path, (unsigned long long)tables[i][0]);
    return 0;
}

static int take_backing_file(const char *path, const uint8_t *cluster, uint64_t cluster_size,
                             struct qcow2_header *h, struct err *e)
{
    if (h->backing_offset == 0)
        return 0;
    if (h->backing_size > QCOW2_BACKING_FILE_MAX || h->backing_offset < h->length ||
        !range_fits(h->backing_offset, h->backing_size, cluster_size) ||
        !is_name(cluster + h->backing_offset, h->backing_size))
        return err_set(e, 0, "open '%s': the name of its backing file is damaged", path);
    memcpy(h->names.backing_file, cluster + h->backing_offset, h->backing_size);
    h->names.backing_file[h->backing_size] = '\0';
    return 0;
}

/* `cluster` holds the first cluster. */
static int judge(const char *path, const uint8_t *cluster, uint64_t cluster_size, uint64_t length,
                 struct qcow2_header *h, struct err *e)
{
    struct features features = {0};
    uint64_t end = h->backing_offset != 0 ? MIN(h->backing_offset, cluster_size) : cluster_size;
    int rc = 0;

    if (h->length > cluster_size || h->length < QCOW2_HEADER_V2 ||
        (h->version == 3 && h->length < QCOW2_HEADER_V3) || h->length % 8 != 0)
        return err_set(e, 0, "open '%s': its header has an impossible length", path);
    if (h->length < end)
        rc = take_extensions(path, cluster + h->length, end - h->length, h, &features, e);
    if (rc == 0)
        rc = check_features(path, h, &features, e);
    if (rc == 0)
        rc = take_backing_file(path, cluster, cluster_size, h, e);
    if (rc == 0)
        rc = check_sizes(path, h, length, e);
    return rc;
}

int qcow2_header_read(struct store *store, const char *path, struct qcow2_header *h, struct err *e)
{
    uint8_t fields[QCOW2_HEADER_FULL];
    uint64_t length;
    int rc = store->ops->length(store, &length);

    if (rc == 0)
        rc = store_read(store, 0, fields, sizeof(fields));
    if (rc != 0)
        return err_set(e, -rc, "read '%s'", path);
    *h = (struct qcow2_header){0};
    if (!image_is_qcow2_magic(fields))
        return err_set(e, 0, "open '%s' as qcow2: it is no qcow2 image", path);
    take_fields(fields, h);
    if (h->version < 2 || h->version > 3)
        return err_set(e, 0, "open '%s': qcow2 version %u is not supported (2 and 3 are)", path,
                       h->version);
    if (h->cluster_bits < 9 || h->cluster_bits > 21)
        return err_set(e, 0, "open '%s': clusters of 2^%u bytes are impossible", path,
                       h->cluster_bits);
    uint64_t size = UINT64_C(1) << h->cluster_bits;
    uint8_t *cluster = malloc(size);
    if (cluster == NULL)
        return err_set(e, ENOMEM, "open '%s'", path);
    rc = store_read(store, 0, cluster, size);
    rc = rc != 0 ? err_set(e, -rc, "read '%s'", path) : judge(path, cluster, size, length, h, e);
    free(cluster);
    return rc;
}

bool qcow2_is_table(const struct qcow2 *q, uint64_t offset, uint64_t size, uint64_t size_max)
{
    return size != 0 && size <= size_max && offset != 0 && offset % q->cluster_size == 0 &&
           offset < q->file_end && range_fits(offset, size, align_up(q->file_end, q->cluster_size));
}

int qcow2_header_write_u64(struct qcow2 *q, uint64_t at, uint64_t value)
{
    uint8_t field[8];

    store_be64(field, value);
    return store_write(q->store, at, field, sizeof(field));
}
