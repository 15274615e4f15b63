/*
 * qcow2_map.c - from an offset on the disk to one in the file
 *
 * Spec: "Cluster mapping".
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/block/qcow2_impl.h"

int qcow2_entry_kind(const struct qcow2 *q, uint64_t entry, enum qcow2_kind *kind, uint64_t *host)
{
    *host = 0;
    if (entry & QCOW2_COMPRESSED) {
        *kind = QCOW2_PACKED;
        return 0;
    }
    *host = entry & QCOW2_OFFSET_MASK;
    if (*host % q->cluster_size != 0 || *host >= q->file_end)
        return -EIO;
    if (entry & QCOW2_ZERO) {
        *kind = *host != 0 ? QCOW2_ZEROES_ALLOCATED : QCOW2_ZEROES;
        return q->header.version >= 3 ? 0 : -EIO;
    }
    *kind = *host != 0 ? QCOW2_DATA : QCOW2_ABSENT;
    return 0;
}

/* Spec: "Compressed Clusters Descriptor". */
void qcow2_packed_range(const struct qcow2 *q, uint64_t entry, uint64_t *offset, uint64_t *size)
{
    unsigned x = 62 - (q->cluster_bits - 8);
    uint64_t sectors = (entry & (QCOW2_COMPRESSED - 1)) >> x;

    *offset = entry & (BIT(x) - 1);
    *size = (sectors + 1) * 512 - *offset % 512;
}

static uint64_t slice_entries(const struct qcow2 *q)
{
    return q->l2_cache.slice_size / 8;
}

unsigned qcow2_map_room(const struct qcow2 *q, uint64_t cluster)
{
    return (unsigned)(slice_entries(q) - cluster % slice_entries(q));
}

/* Of the L2 table; 0: there is none. */
static int table_offset(struct qcow2 *q, uint64_t cluster, uint64_t *out)
{
    uint64_t index = cluster >> q->l2_bits;

    *out = q->l1[index] & QCOW2_OFFSET_MASK;
    if (*out % q->cluster_size != 0 || *out >= q->file_end)
        return qcow2_corrupt(q, "L2 table %llu lies at 0x%llx, where none can be",
                             (unsigned long long)index, (unsigned long long)*out);
    return 0;
}

/* Where in the file the slice with the entry of a cluster lies. */
static uint64_t slice_offset(const struct qcow2 *q, uint64_t table, uint64_t cluster)
{
    uint64_t i = cluster & (BIT(q->l2_bits) - 1);

    return table + i / slice_entries(q) * q->l2_cache.slice_size;
}

bool qcow2_map_is_known(const struct qcow2 *q, uint64_t offset)
{
    uint64_t cluster = offset >> q->cluster_bits;
    uint64_t table = q->l1[cluster >> q->l2_bits] & QCOW2_OFFSET_MASK;

    return table == 0 || qcow2_cache_has(&q->l2_cache, slice_offset(q, table, cluster));
}

static int slice_of(struct qcow2 *q, uint64_t table, uint64_t cluster, struct qcow2_slice **slice,
                    unsigned *index)
{
    *index = (unsigned)((cluster & (BIT(q->l2_bits) - 1)) % slice_entries(q));
    return qcow2_cache_get(&q->l2_cache, slice_offset(q, table, cluster), slice);
}

static bool continues(const struct qcow2 *q, const struct qcow2_mapping *m, uint64_t host,
                      uint64_t entry)
{
    enum qcow2_kind kind;
    uint64_t at;

    if (m->kind == QCOW2_PACKED || qcow2_entry_kind(q, entry, &kind, &at) != 0 || kind != m->kind)
        return false;
    return at == 0 || (at == host && !(entry & QCOW2_COPIED) == !m->is_copied);
}

int qcow2_map_find(struct qcow2 *q, uint64_t offset, uint64_t size, struct qcow2_mapping *out)
{
    uint64_t cluster = offset >> q->cluster_bits, skip = offset % q->cluster_size;
    unsigned room = qcow2_map_room(q, cluster), index;
    struct qcow2_slice *slice;
    uint64_t table, host;
    int rc = table_offset(q, cluster, &table);

    if (rc != 0)
        return rc;
    if (table == 0) {
        uint64_t left = BIT(q->l2_bits) - (cluster & (BIT(q->l2_bits) - 1));
        *out = (struct qcow2_mapping){.kind = QCOW2_ABSENT};
        out->size = MIN(size, (left << q->cluster_bits) - skip);
        return 0;
    }
    rc = slice_of(q, table, cluster, &slice, &index);
    if (rc != 0)
        return rc;
    uint64_t entry = load_be64(slice->data + index * 8);
    *out = (struct qcow2_mapping){.entry = entry, .is_copied = entry & QCOW2_COPIED};
    if (qcow2_entry_kind(q, entry, &out->kind, &host) != 0)
        return qcow2_corrupt(q, "the entry of disk offset 0x%llx is 0x%llx, which means nothing",
                             (unsigned long long)offset, (unsigned long long)entry);
    out->host = host + skip;
    out->size = q->cluster_size - skip;
    for (unsigned i = 1; i < room && out->size < size; i++) {
        uint64_t next = host != 0 ? host + ((uint64_t)i << q->cluster_bits) : 0;
        if (!continues(q, out, next, load_be64(slice->data + (index + i) * 8)))
            break;
        out->size += q->cluster_size;
    }
    out->size = MIN(out->size, size);
    return 0;
}

static void set_l1(struct qcow2 *q, uint64_t index, uint64_t table)
{
    q->l1[index] = table | QCOW2_COPIED;
    if (q->l1_dirty.first == q->l1_dirty.end)
        q->l1_dirty = (struct qcow2_span){index, index + 1};
    q->l1_dirty.first = MIN(q->l1_dirty.first, index);
    q->l1_dirty.end = MAX(q->l1_dirty.end, index + 1);
}

static int copy_table(struct qcow2 *q, uint64_t from, uint64_t to)
{
    uint8_t *buf = malloc(q->cluster_size);
    int rc = buf != NULL ? store_read(q->store, from, buf, q->cluster_size) : -ENOMEM;

    if (rc == 0)
        rc = store_write(q->store, to, buf, q->cluster_size);
    free(buf);
    return rc;
}

/*
 * A table of our own, in place of none or of one that is shared with a snapshot. A shared table
 * is as the file has it: nobody changes it. The new one is written at once, and referred to when
 * a commit has flushed it.
 */
static int make_table(struct qcow2 *q, uint64_t index, uint64_t old, uint64_t *out)
{
    bool is_fresh;
    int rc = qcow2_allocate_all(q, 1, out, &is_fresh);

    if (rc != 0)
        return rc;
    uint64_t cluster = *out >> q->cluster_bits;
    qcow2_cache_forget(&q->l2_cache, *out, q->cluster_size);
    if (old != 0)
        rc = copy_table(q, old, *out);
    else if (!is_fresh)
        rc = q->store->ops->write_zeroes(q->store, *out, q->cluster_size, false);
    if (rc == 0)
        rc = qcow2_set_add(&q->tables, cluster);
    if (rc != 0) {
        qcow2_refcount_decrease(q, cluster, 1);
        return rc;
    }
    if (old != 0) {
        qcow2_set_remove(&q->tables, old >> q->cluster_bits);
        rc = qcow2_release(q, old >> q->cluster_bits, 1, false);
    }
    set_l1(q, index, *out);
    return rc;
}

int qcow2_map_writable(struct qcow2 *q, uint64_t cluster, bool may_make, struct qcow2_slice **slice,
                       unsigned *index)
{
    uint64_t i = cluster >> q->l2_bits, table;
    int rc = table_offset(q, cluster, &table);

    *slice = NULL;
    if (rc == 0 && table == 0 && !may_make)
        return 0;
    if (rc == 0 && (table == 0 || !(q->l1[i] & QCOW2_COPIED)))
        rc = make_table(q, i, table, &table);
    return rc == 0 ? slice_of(q, table, cluster, slice, index) : rc;
}

int qcow2_map_release(struct qcow2 *q, uint64_t entry, bool is_discard)
{
    enum qcow2_kind kind;
    uint64_t host, size;

    if (qcow2_entry_kind(q, entry, &kind, &host) != 0)
        return qcow2_corrupt(q, "the entry 0x%llx means nothing", (unsigned long long)entry);
    if (kind == QCOW2_PACKED) {
        qcow2_packed_range(q, entry, &host, &size);
        uint64_t first = host >> q->cluster_bits, last = (host + size - 1) >> q->cluster_bits;
        return qcow2_release(q, first, last - first + 1, is_discard);
    }
    return host != 0 ? qcow2_release(q, host >> q->cluster_bits, 1, is_discard) : 0;
}
