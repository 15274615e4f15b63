/*
 * qcow2_io.c - reading, writing, discarding
 *
 * A request is cut into pieces that are mapped alike. For each the map is looked up under the
 * lock and the data moved outside of it. Writing to clusters that have no room of their own:
 * room is allocated, the data written there with what surrounds it in its clusters, and only then
 * the map changed. Until then other writers of these clusters wait.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/block/qcow2_impl.h"

/* ---- pieces of buffers ---- */

#define PIECES_MAX 160 /* without allocating */

struct pieces {
    struct iovec *iov;
    unsigned count;
    struct iovec here[PIECES_MAX];
};

static void pieces_free(struct pieces *p)
{
    if (p->iov != p->here)
        free(p->iov);
}

/* Room for what an iovec of `count` and `more` entries needs. */
static int pieces_init(struct pieces *p, unsigned count, unsigned more)
{
    p->count = 0;
    p->iov = count + more <= PIECES_MAX ? p->here : malloc((count + more) * sizeof(*p->iov));
    return p->iov != NULL ? 0 : -ENOMEM;
}

static void pieces_add(struct pieces *p, void *base, uint64_t size)
{
    if (size != 0)
        p->iov[p->count++] = (struct iovec){base, size};
}

/* [skip, skip + size) of an iovec. */
static void pieces_add_part(struct pieces *p, const struct iovec *iov, unsigned count,
                            uint64_t skip, uint64_t size)
{
    for (unsigned i = 0; i < count && size != 0; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        uint64_t n = MIN(iov[i].iov_len - skip, size);
        pieces_add(p, (uint8_t *)iov[i].iov_base + skip, n);
        skip = 0;
        size -= n;
    }
}

static void fill_zeroes(const struct iovec *iov, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        memset(iov[i].iov_base, 0, iov[i].iov_len);
}

/* ---- operations and allocations ---- */

void qcow2_op_begin(struct qcow2 *q, struct image_access *op)
{
    op->number = ++q->op_number;
    op->next = q->ops;
    op->link = &q->ops;
    if (q->ops != NULL)
        q->ops->link = &op->next;
    q->ops = op;
}

void qcow2_op_end(struct qcow2 *q, struct image_access *op)
{
    *op->link = op->next;
    if (op->next != NULL)
        op->next->link = op->link;
}

static void allocation_begin(struct qcow2 *q, struct qcow2_allocation *a)
{
    a->next = q->allocations;
    a->link = &q->allocations;
    if (q->allocations != NULL)
        q->allocations->link = &a->next;
    q->allocations = a;
}

static void allocation_end(struct qcow2 *q, struct qcow2_allocation *a)
{
    *a->link = a->next;
    if (a->next != NULL)
        a->next->link = a->link;
    pthread_cond_broadcast(&q->allocation_ended);
}

/* Of `count` clusters, how many come before one that somebody is allocating. */
static uint64_t unallocating(const struct qcow2 *q, uint64_t first, uint64_t count)
{
    for (const struct qcow2_allocation *a = q->allocations; a != NULL; a = a->next)
        if (ranges_overlap(first, count, a->first, a->count))
            count = a->first > first ? a->first - first : 0;
    return count;
}

/* ---- reading ---- */

static int read_backing(struct image *image, uint64_t offset, uint64_t size,
                        const struct iovec *iov, unsigned count)
{
    struct image *backing = image->backing;
    struct pieces p;

    if (backing == NULL || offset >= backing->size) {
        fill_zeroes(iov, count);
        return 0;
    }
    if (range_fits(offset, size, backing->size))
        return backing->ops->transfer(backing, false, offset, size, iov, count);
    /* what the disk has more than its backing file is zeroes */
    uint64_t there = backing->size - offset;
    if (pieces_init(&p, count, 0) != 0)
        return -ENOMEM;
    pieces_add_part(&p, iov, count, there, size - there);
    fill_zeroes(p.iov, p.count);
    p.count = 0;
    pieces_add_part(&p, iov, count, 0, there);
    int rc = backing->ops->transfer(backing, false, offset, there, p.iov, p.count);
    pieces_free(&p);
    return rc;
}

/* One piece that is mapped alike; *done: its bytes. `skip`: of the iovec. */
static int read_some(struct qcow2 *q, uint64_t offset, uint64_t size, const struct iovec *iov,
                     unsigned count, uint64_t skip, uint64_t *done)
{
    struct qcow2_mapping m;
    struct image_access op;
    struct pieces p;

    pthread_mutex_lock(&q->lock);
    int rc = qcow2_map_find(q, offset, size, &m);
    if (rc == 0)
        qcow2_op_begin(q, &op);
    pthread_mutex_unlock(&q->lock);
    if (rc != 0)
        return rc;
    *done = m.size;
    rc = pieces_init(&p, count, 0);
    if (rc == 0) {
        pieces_add_part(&p, iov, count, skip, m.size);
        switch (m.kind) {
        case QCOW2_ABSENT:
            rc = read_backing(&q->image, offset, m.size, p.iov, p.count);
            break;
        case QCOW2_ZEROES:
        case QCOW2_ZEROES_ALLOCATED:
            fill_zeroes(p.iov, p.count);
            break;
        case QCOW2_DATA:
            rc = q->store->ops->transfer(q->store, false, m.host, m.size, p.iov, p.count);
            break;
        case QCOW2_PACKED:
            rc = qcow2_packed_read(q, m.entry, offset % q->cluster_size, p.iov, p.count);
            break;
        }
        pieces_free(&p);
    }
    pthread_mutex_lock(&q->lock);
    qcow2_op_end(q, &op);
    pthread_mutex_unlock(&q->lock);
    return rc;
}

/* ---- writing ---- */

/* Clusters that get room in the file, and what is written there. */
struct filling {
    struct qcow2_allocation clusters;
    uint64_t host;
    bool is_reused;              /* the clusters had this room, and read as zeroes */
    bool skips_head, skips_tail; /* zeroes, which are there already */
    uint64_t head, tail;         /* bytes around the data in its first and last cluster */
};

static int read_old(struct qcow2 *q, uint64_t offset, uint8_t *buf, uint64_t size)
{
    uint64_t there = offset < q->image.size ? MIN(size, q->image.size - offset) : 0;

    memset(buf + there, 0, size - there);
    for (uint64_t at = 0, done = 0; at < there; at += done) {
        struct iovec iov = {buf + at, there - at};
        int rc = read_some(q, offset + at, there - at, &iov, 1, 0, &done);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* Not under the lock. */
static int fill(struct qcow2 *q, const struct filling *f, uint64_t offset, uint64_t size,
                const struct iovec *iov, unsigned count, uint64_t skip)
{
    uint64_t start = f->clusters.first << q->cluster_bits;
    uint64_t head = f->skips_head ? 0 : f->head, tail = f->skips_tail ? 0 : f->tail;
    uint8_t *around = NULL;
    struct pieces p;
    int rc = pieces_init(&p, count, 2);

    if (rc != 0)
        return rc;
    if (head + tail != 0) {
        around = aligned_alloc(4096, align_up(head + tail, 4096));
        rc = around == NULL ? -ENOMEM : 0;
        if (rc == 0 && head != 0)
            rc = read_old(q, start, around, head);
        if (rc == 0 && tail != 0)
            rc = read_old(q, offset + size, around + head, tail);
    }
    if (rc == 0) {
        pieces_add(&p, around, head);
        pieces_add_part(&p, iov, count, skip, size);
        if (tail != 0)
            pieces_add(&p, around + head, tail);
        rc = q->store->ops->transfer(q->store, true, f->host + (f->head - head), head + size + tail,
                                     p.iov, p.count);
    }
    free(around);
    pieces_free(&p);
    return rc;
}

/* Does the cluster with this entry read as zeroes? False also when that is not known. */
static bool is_zero_entry(const struct qcow2 *q, uint64_t cluster, uint64_t entry)
{
    enum qcow2_kind kind;
    uint64_t host;

    if (qcow2_entry_kind(q, entry, &kind, &host) != 0)
        return false;
    if (kind == QCOW2_ABSENT)
        return q->image.backing == NULL || cluster << q->cluster_bits >= q->image.backing->size;
    return kind == QCOW2_ZEROES || kind == QCOW2_ZEROES_ALLOCATED;
}

/* Under the lock: how many of `count` clusters, whose entries start at `entries`, are to get new
 * room; or, if the first has room that reads as zeroes, how many follow it in a row. */
static uint64_t count_alike(const struct qcow2 *q, const uint8_t *entries, uint64_t count,
                            bool *is_reused)
{
    enum qcow2_kind kind;
    uint64_t host, first_host = 0, n = 0;

    for (; n < count; n++) {
        uint64_t entry = load_be64(entries + n * 8);
        if (qcow2_entry_kind(q, entry, &kind, &host) != 0)
            break;
        bool has_room = (entry & QCOW2_COPIED) && kind != QCOW2_PACKED && host != 0;
        if (n == 0) {
            *is_reused = has_room;
            first_host = host;
        }
        if (has_room != *is_reused || (has_room && (kind != QCOW2_ZEROES_ALLOCATED ||
                                                    host != first_host + (n << q->cluster_bits))))
            break;
    }
    return n;
}

/* Under the lock: decide which clusters of a range get room, and where. */
static int plan_filling(struct qcow2 *q, uint64_t offset, uint64_t size, uint64_t count,
                        struct filling *f)
{
    struct qcow2_slice *slice;
    unsigned index;
    bool is_fresh = false;
    uint64_t first = offset >> q->cluster_bits;
    int rc = qcow2_map_writable(q, first, true, &slice, &index);

    if (rc != 0)
        return rc;
    count = count_alike(q, slice->data + index * 8, count, &f->is_reused);
    if (count == 0)
        return qcow2_corrupt(q, "the entry of disk offset 0x%llx means nothing",
                             (unsigned long long)offset);
    if (f->is_reused)
        f->host = load_be64(slice->data + index * 8) & QCOW2_OFFSET_MASK;
    else
        rc = qcow2_reserve(q, count, &f->host, &count, &is_fresh);
    if (rc != 0)
        return rc;
    uint64_t end = (first + count) << q->cluster_bits;
    f->clusters.first = first;
    f->clusters.count = count;
    f->head = offset % q->cluster_size;
    f->tail = offset + size < end ? end - (offset + size) : 0;
    f->skips_head = is_fresh && is_zero_entry(q, first, load_be64(slice->data + index * 8));
    f->skips_tail = is_fresh && is_zero_entry(q, first + count - 1,
                                              load_be64(slice->data + (index + count - 1) * 8));
    return 0;
}

/* Under the lock: the room is not needed after all. */
static void give_up_filling(struct qcow2 *q, const struct filling *f)
{
    if (!f->is_reused)
        qcow2_reserve_drop(q, f->host, f->clusters.count);
}

/* Under the lock: the map changes to what was written. */
static int finish_filling(struct qcow2 *q, const struct filling *f)
{
    struct qcow2_slice *slice;
    unsigned index;
    int rc = qcow2_map_writable(q, f->clusters.first, true, &slice, &index), released;

    if (rc == 0 && !f->is_reused)
        rc = qcow2_reserve_count(q, f->host, f->clusters.count);
    if (rc != 0) {
        give_up_filling(q, f);
        return rc;
    }
    for (uint64_t i = 0; i < f->clusters.count; i++) {
        uint8_t *at = slice->data + (index + i) * 8;
        uint64_t old = load_be64(at);
        store_be64(at, (f->host + (i << q->cluster_bits)) | QCOW2_COPIED);
        released = f->is_reused ? 0 : qcow2_map_release(q, old, false);
        rc = rc != 0 ? rc : released;
    }
    qcow2_cache_dirty(&q->l2_cache, slice);
    return rc;
}

/* Under the lock, which it lets go meanwhile. */
static int write_filling(struct qcow2 *q, uint64_t offset, uint64_t size, const struct iovec *iov,
                         unsigned count, uint64_t skip, uint64_t *done)
{
    uint64_t first = offset >> q->cluster_bits, last = (offset + size - 1) >> q->cluster_bits;
    uint64_t clusters = MIN(last - first + 1, qcow2_map_room(q, first));
    struct image_access op;
    struct filling f;

    clusters = unallocating(q, first, clusters);
    if (clusters == 0) {
        pthread_cond_wait(&q->allocation_ended, &q->lock);
        *done = 0; /* look again */
        return 0;
    }
    int rc = plan_filling(q, offset, size, clusters, &f);
    if (rc != 0)
        return rc;
    *done = MIN(size, ((f.clusters.count - 1) << q->cluster_bits) + q->cluster_size - f.head);
    if (qcow2_set_has(&q->tables, f.host >> q->cluster_bits,
                      f.clusters.count)) /* if it was there */
        return qcow2_corrupt(q, "the data of disk offset 0x%llx lies over a table",
                             (unsigned long long)offset);
    allocation_begin(q, &f.clusters);
    qcow2_op_begin(q, &op);
    pthread_mutex_unlock(&q->lock);
    rc = fill(q, &f, offset, *done, iov, count, skip);
    pthread_mutex_lock(&q->lock);
    if (rc == 0)
        rc = finish_filling(q, &f);
    else
        give_up_filling(q, &f);
    qcow2_op_end(q, &op);
    allocation_end(q, &f.clusters);
    return rc;
}

/* Under the lock, which it lets go meanwhile. */
static int write_in_place(struct qcow2 *q, const struct qcow2_mapping *m, const struct iovec *iov,
                          unsigned count, uint64_t skip)
{
    uint64_t first = m->host >> q->cluster_bits;
    uint64_t last = (m->host + m->size - 1) >> q->cluster_bits;
    struct image_access op;
    struct pieces p;

    if (qcow2_set_has(&q->tables, first, last - first + 1))
        return qcow2_corrupt(q, "data at 0x%llx lies over a table", (unsigned long long)m->host);
    int rc = pieces_init(&p, count, 0);
    if (rc != 0)
        return rc;
    qcow2_op_begin(q, &op);
    pthread_mutex_unlock(&q->lock);
    pieces_add_part(&p, iov, count, skip, m->size);
    rc = q->store->ops->transfer(q->store, true, m->host, m->size, p.iov, p.count);
    pthread_mutex_lock(&q->lock);
    qcow2_op_end(q, &op);
    pieces_free(&p);
    return rc;
}

static int write_some(struct qcow2 *q, uint64_t offset, uint64_t size, const struct iovec *iov,
                      unsigned count, uint64_t skip, uint64_t *done)
{
    struct qcow2_mapping m;

    pthread_mutex_lock(&q->lock);
    int rc = qcow2_commit_if_full(q);
    rc = q->broken != 0 ? q->broken : rc;
    if (rc == 0)
        rc = qcow2_map_find(q, offset, size, &m);
    if (rc == 0 && m.kind == QCOW2_DATA && m.is_copied) {
        *done = m.size;
        rc = write_in_place(q, &m, iov, count, skip);
    } else if (rc == 0) {
        rc = write_filling(q, offset, size, iov, count, skip, done);
    }
    pthread_mutex_unlock(&q->lock);
    return rc;
}

int qcow2_transfer(struct image *image, bool is_write, uint64_t offset, uint64_t size,
                   const struct iovec *iov, unsigned iov_count)
{
    struct qcow2 *q = qcow2_of(image);
    uint64_t at = 0, done = 0;
    int rc = 0;

    for (; at < size && rc == 0; at += done)
        rc = is_write ? write_some(q, offset + at, size - at, iov, iov_count, at, &done)
                      : read_some(q, offset + at, size - at, iov, iov_count, at, &done);
    return rc;
}

/* ---- transfers that somebody else carries out ---- */

/* Under the lock: does all of the request lie in a row, in room of its own if it is to be written?
 * Then it is an operation from now on. */
static bool locate_here(struct qcow2 *q, const struct block_request *r, struct qcow2_mapping *m,
                        struct image_place *out)
{
    bool is_write = r->op == BLOCK_WRITE;

    if (!qcow2_map_is_known(q, r->offset) || (is_write && q->broken != 0) ||
        qcow2_map_find(q, r->offset, r->size, m) != 0)
        return false;
    if (m->kind != QCOW2_DATA || m->size != r->size || q->store->file == NULL)
        return false;
    uint64_t first = m->host >> q->cluster_bits;
    uint64_t last = (m->host + m->size - 1) >> q->cluster_bits;
    if (is_write && (!m->is_copied || qcow2_set_has(&q->tables, first, last - first + 1)))
        return false; /* a thread will say what is wrong with it */
    *out = (struct image_place){.file = q->store->file, .offset = m->host, .image = &q->image};
    qcow2_op_begin(q, &out->access);
    return true;
}

bool qcow2_locate(struct image *image, const struct block_request *request, struct image_place *out)
{
    struct qcow2 *q = qcow2_of(image);
    struct image *backing = image->backing;
    struct qcow2_mapping m = {.kind = QCOW2_DATA};

    pthread_mutex_lock(&q->lock);
    bool is_here = locate_here(q, request, &m, out);
    pthread_mutex_unlock(&q->lock);
    if (is_here)
        return true;
    return request->op == BLOCK_READ && m.kind == QCOW2_ABSENT && m.size == request->size &&
           backing != NULL && range_fits(request->offset, request->size, backing->size) &&
           (backing->located_ops & BIT(BLOCK_READ)) && backing->ops->locate(backing, request, out);
}

void qcow2_leave(struct image *image, struct image_place *place)
{
    struct qcow2 *q = qcow2_of(image);

    pthread_mutex_lock(&q->lock);
    qcow2_op_end(q, &place->access);
    pthread_mutex_unlock(&q->lock);
}

/* ---- whole clusters ---- */

/* What entries become. */
enum change {
    CHANGE_DISCARD,    /* contents are not wanted any more, but must not come back */
    CHANGE_ZERO,       /* zeroes; room is kept */
    CHANGE_ZERO_UNMAP, /* zeroes; room is given up */
    CHANGE_FORGET,     /* as the backing file says */
};

static uint64_t changed_entry(const struct qcow2 *q, uint64_t cluster, uint64_t entry,
                              enum change change)
{
    bool has_backing =
        q->image.backing != NULL && cluster << q->cluster_bits < q->image.backing->size;
    enum qcow2_kind kind;
    uint64_t host;

    if (change == CHANGE_FORGET)
        return 0;
    if (qcow2_entry_kind(q, entry, &kind, &host) != 0)
        return entry; /* writing to it will say what is wrong */
    if (change == CHANGE_DISCARD && kind == QCOW2_ABSENT)
        return entry;
    if (change == CHANGE_ZERO && (entry & QCOW2_COPIED) && kind == QCOW2_DATA)
        return entry | QCOW2_ZERO;
    if (change == CHANGE_ZERO && kind == QCOW2_ZEROES_ALLOCATED)
        return entry;
    return has_backing ? QCOW2_ZERO : 0;
}

/* Some of `count` clusters from `first` on, which are no more than a slice holds; *done: how
 * many. */
static int change_some(struct qcow2 *q, uint64_t first, uint64_t count, enum change change,
                       uint64_t *done)
{
    bool is_needed = change >= CHANGE_ZERO && change != CHANGE_FORGET && q->image.backing != NULL &&
                     first << q->cluster_bits < q->image.backing->size;
    struct qcow2_slice *slice;
    unsigned index;

    *done = unallocating(q, first, count);
    if (*done == 0) {
        pthread_cond_wait(&q->allocation_ended, &q->lock);
        return 0;
    }
    int rc = qcow2_map_writable(q, first, is_needed, &slice, &index);
    for (uint64_t i = 0; rc == 0 && slice != NULL && i < *done; i++) {
        uint8_t *at = slice->data + (index + i) * 8;
        uint64_t old = load_be64(at), now = changed_entry(q, first + i, old, change);
        if (old == now)
            continue;
        store_be64(at, now);
        qcow2_cache_dirty(&q->l2_cache, slice);
        if ((now & QCOW2_OFFSET_MASK) == 0)
            rc = qcow2_map_release(q, old, true);
    }
    return rc;
}

static int change_clusters(struct qcow2 *q, uint64_t first, uint64_t count, enum change change)
{
    uint64_t done = 0;
    int rc = 0;

    for (; count != 0 && rc == 0; first += done, count -= done) {
        pthread_mutex_lock(&q->lock);
        rc = qcow2_commit_if_full(q);
        rc = q->broken != 0 ? q->broken : rc;
        if (rc == 0)
            rc = change_some(q, first, MIN(count, qcow2_map_room(q, first)), change, &done);
        pthread_mutex_unlock(&q->lock);
    }
    return rc;
}

/* The clusters that lie wholly in a range. The last of the disk may be cut short by its end. */
static void whole_clusters(const struct qcow2 *q, uint64_t offset, uint64_t size, uint64_t *first,
                           uint64_t *end)
{
    *first = align_up(offset, q->cluster_size) >> q->cluster_bits;
    *end = (offset + size) >> q->cluster_bits;
    if (offset + size == q->image.size)
        *end = align_up(q->image.size, q->cluster_size) >> q->cluster_bits;
    *end = MAX(*end, *first);
}

/* In version 2 no entry says "zeroes, whatever the backing file has". */
static bool can_say_zero(const struct qcow2 *q)
{
    return q->header.version >= 3 || q->image.backing == NULL;
}

int qcow2_discard(struct image *image, uint64_t offset, uint64_t size)
{
    struct qcow2 *q = qcow2_of(image);
    uint64_t first, end;

    if (!can_say_zero(q))
        return 0;
    whole_clusters(q, offset, size, &first, &end);
    return change_clusters(q, first, end - first, CHANGE_DISCARD);
}

int qcow2_forget(struct qcow2 *q, uint64_t offset, uint64_t size)
{
    return change_clusters(q, offset >> q->cluster_bits, size >> q->cluster_bits, CHANGE_FORGET);
}

/* Zeroes as data, except where there are some already. */
static int write_zero_data(struct qcow2 *q, uint64_t offset, uint64_t size)
{
    uint64_t step = MIN(size, UINT64_C(1) << 20), done;
    struct iovec iov = {.iov_base = NULL};
    int rc = 0;

    for (; size != 0 && rc == 0; offset += done, size -= done) {
        uint64_t run = MIN(size, step);
        enum image_extent extent = IMAGE_DATA;
        rc = image_map_chain(&q->image, offset, &run, &extent);
        done = MIN(run, step);
        if (rc != 0 || extent == IMAGE_ZERO)
            continue;
        if (iov.iov_base == NULL)
            iov.iov_base = calloc(1, step);
        iov.iov_len = done;
        rc =
            iov.iov_base == NULL ? -ENOMEM : qcow2_transfer(&q->image, true, offset, done, &iov, 1);
    }
    free(iov.iov_base);
    return rc;
}

int qcow2_write_zeroes(struct image *image, uint64_t offset, uint64_t size, bool may_unmap)
{
    struct qcow2 *q = qcow2_of(image);
    bool can_change = q->header.version >= 3 || (may_unmap && image->backing == NULL);
    uint64_t first, end;

    whole_clusters(q, offset, size, &first, &end);
    if (!can_change || first == end)
        return write_zero_data(q, offset, size);
    uint64_t from = first << q->cluster_bits;
    uint64_t to = MIN(end << q->cluster_bits, offset + size);
    int rc = from > offset ? write_zero_data(q, offset, from - offset) : 0;
    if (rc == 0)
        rc = change_clusters(q, first, end - first, may_unmap ? CHANGE_ZERO_UNMAP : CHANGE_ZERO);
    if (rc == 0 && to < offset + size)
        rc = write_zero_data(q, to, offset + size - to);
    return rc;
}
