/*
 * qcow2_packed.c - compressed clusters
 *
 * They are read as a whole; the latest few are kept unpacked, because guests read them in pieces.
 * They are written by `doppel image` only, one after the other, packed densely.
 *
 * Spec: "Compressed Clusters Descriptor", "compression_type".
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "backend/block/qcow2_impl.h"

/* ---- reading ---- */

/* Raw deflate; a window larger than the writer's does no harm. */
static int unpack_zlib(uint8_t *to, size_t to_size, const uint8_t *from, size_t size)
{
    z_stream z = {.next_in = (uint8_t *)from,
                  .avail_in = (unsigned)size,
                  .next_out = to,
                  .avail_out = (unsigned)to_size};

    if (inflateInit2(&z, -MAX_WBITS) != Z_OK)
        return -ENOMEM;
    int got = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    /* what follows the end of the stream in its last sector does not matter; Z_BUF_ERROR with
     * all output there is an end that was not looked for */
    return (got == Z_STREAM_END || got == Z_BUF_ERROR) && z.avail_out == 0 ? 0 : -EIO;
}

#define ZSTD_WINDOW_LOG_MAX                                                                        \
    23 /* clusters are at most 2^21 bytes; what asks for more is hostile                           \
        */

static int unpack_zstd(uint8_t *to, size_t to_size, const uint8_t *from, size_t size)
{
    ZSTD_DCtx *zstd = ZSTD_createDCtx();
    ZSTD_inBuffer in = {.src = from, .size = size};
    ZSTD_outBuffer out = {.dst = to, .size = to_size};
    int rc = zstd != NULL ? 0 : -ENOMEM;

    if (rc == 0)
        ZSTD_DCtx_setParameter(zstd, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG_MAX);
    /* several frames are allowed; what follows them in the last sector is not looked at */
    while (rc == 0 && out.pos < out.size) {
        size_t in_before = in.pos, out_before = out.pos;
        size_t got = ZSTD_decompressStream(zstd, &out, &in);
        if (ZSTD_isError(got) || (in.pos == in_before && out.pos == out_before))
            rc = -EIO;
    }
    ZSTD_freeDCtx(zstd);
    return rc;
}

static int unpack(struct qcow2 *q, uint64_t entry, uint8_t *to)
{
    uint64_t offset, size;

    qcow2_packed_range(q, entry, &offset, &size);
    uint8_t *packed = malloc(size);
    int rc = packed != NULL ? store_read(q->store, offset, packed, size) : -ENOMEM;
    if (rc == 0)
        rc = q->header.compression == QCOW2_ZSTD ? unpack_zstd(to, q->cluster_size, packed, size)
                                                 : unpack_zlib(to, q->cluster_size, packed, size);
    free(packed);
    return rc;
}

int qcow2_packed_read(struct qcow2 *q, uint64_t entry, uint64_t skip, const struct iovec *iov,
                      unsigned iov_count)
{
    struct qcow2_unpacked *slot = &q->unpacked[0];
    int rc = 0;

    pthread_mutex_lock(&q->unpacked_lock);
    for (unsigned i = 0; i < QCOW2_UNPACKED_COUNT; i++) {
        if (q->unpacked[i].entry == entry) {
            slot = &q->unpacked[i];
            break;
        }
        if (q->unpacked[i].used_at < slot->used_at)
            slot = &q->unpacked[i];
    }
    if (slot->entry != entry) {
        slot->entry = 0;
        if (slot->data == NULL)
            slot->data = malloc(q->cluster_size);
        rc = slot->data != NULL ? unpack(q, entry, slot->data) : -ENOMEM;
    }
    if (rc == 0) {
        slot->entry = entry;
        slot->used_at = ++q->unpacked_clock;
        iov_scatter(slot->data + skip, iov, iov_count);
    }
    pthread_mutex_unlock(&q->unpacked_lock);
    return rc;
}

void qcow2_packed_forget(struct qcow2 *q)
{
    pthread_mutex_lock(&q->unpacked_lock);
    for (unsigned i = 0; i < QCOW2_UNPACKED_COUNT; i++)
        q->unpacked[i].entry = 0;
    pthread_mutex_unlock(&q->unpacked_lock);
}

/* ---- writing ---- */

/* QEMU reads with a window of 2^12 bytes. */
static int pack_zlib(uint8_t *to, size_t to_size, const uint8_t *from, size_t size, size_t *out)
{
    z_stream z = {0};

    if (deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY) != Z_OK)
        return -ENOMEM;
    z.next_in = (uint8_t *)from;
    z.avail_in = (unsigned)size;
    z.next_out = to;
    z.avail_out = (unsigned)to_size;
    int got = deflate(&z, Z_FINISH);
    deflateEnd(&z);
    *out = to_size - z.avail_out;
    return got == Z_STREAM_END ? 0 : -E2BIG;
}

static int pack_zstd(uint8_t *to, size_t to_size, const uint8_t *from, size_t size, size_t *out)
{
    *out = ZSTD_compress(to, to_size, from, size, ZSTD_CLEVEL_DEFAULT);
    return ZSTD_isError(*out) ? -E2BIG : 0;
}

/*
 * Room for `size` bytes, behind the latest that were packed if that is possible. Each cluster
 * that they touch is counted once more. Under the lock.
 */
static int find_place(struct qcow2 *q, uint64_t size, uint64_t *offset)
{
    unsigned x = 62 - (q->cluster_bits - 8);
    uint64_t limit = MIN(BIT(x), QCOW2_HOST_MAX), used = q->packed_at % q->cluster_size;
    uint64_t left = used != 0 ? q->cluster_size - used : 0, next, count;
    bool is_fresh;
    int rc;

    *offset = q->packed_at;
    if (left >= size) {
        rc = qcow2_refcount_increase(q, q->packed_at >> q->cluster_bits);
        if (rc != -ERANGE)
            return rc;
    }
    rc = qcow2_allocate(q, 1, limit, &next, &count, &is_fresh);
    if (rc != 0)
        return rc;
    bool is_behind = left != 0 && left < size && next == q->packed_at + left;
    if (is_behind)
        rc = qcow2_refcount_increase(q, q->packed_at >> q->cluster_bits);
    if (!is_behind || rc == -ERANGE)
        *offset = next;
    return rc == -ERANGE ? 0 : rc;
}

/* Under the lock: the entry, in place of what there was. */
static int point_to(struct qcow2 *q, uint64_t cluster, uint64_t offset, uint64_t size)
{
    unsigned x = 62 - (q->cluster_bits - 8), index;
    uint64_t sectors = (offset % 512 + size - 1) / 512;
    struct qcow2_slice *slice;
    int rc = qcow2_map_writable(q, cluster, true, &slice, &index);

    if (rc != 0)
        return rc;
    uint64_t old = load_be64(slice->data + index * 8);
    store_be64(slice->data + index * 8, QCOW2_COMPRESSED | sectors << x | offset);
    qcow2_cache_dirty(&q->l2_cache, slice);
    q->packed_at = offset + size;
    return qcow2_map_release(q, old, false);
}

int qcow2_packed_write(struct image *image, uint64_t offset, const uint8_t *data)
{
    struct qcow2 *q = qcow2_of(image);
    size_t size, room = q->cluster_size - 1;
    uint8_t *packed = malloc(room);
    uint64_t at;
    int rc = packed != NULL ? 0 : -ENOMEM;

    if (rc == 0)
        rc = q->header.compression == QCOW2_ZSTD
                 ? pack_zstd(packed, room, data, q->cluster_size, &size)
                 : pack_zlib(packed, room, data, q->cluster_size, &size);
    if (rc == 0) {
        pthread_mutex_lock(&q->lock);
        rc = qcow2_commit_if_full(q);
        if (rc == 0)
            rc = find_place(q, size, &at);
        if (rc == 0)
            rc = store_write(q->store, at, packed, size);
        if (rc == 0)
            rc = point_to(q, offset >> q->cluster_bits, at, size);
        pthread_mutex_unlock(&q->lock);
        qcow2_packed_forget(q);
    }
    free(packed);
    return rc;
}
