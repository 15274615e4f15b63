/*
 * qcow2_cache.c - slices of tables that are kept in memory
 *
 * A slice is a part of an L2 table or of a refcount block, small enough that changing one entry
 * writes little. Their number is fixed; the one that was used least recently makes room.
 *
 * Invariant: a slice that is dirty or leaving is newer than the file, and stays.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/block/qcow2_impl.h"

#define ALIGN 4096u /* no bounce buffers under O_DIRECT */

static struct qcow2_slice **bucket_of(const struct qcow2_cache *cache, uint64_t offset)
{
    uint64_t hash = offset / cache->slice_size * UINT64_C(0x9e3779b97f4a7c15);

    return &cache->buckets[(hash >> 32) & (cache->bucket_count - 1)];
}

static void age_remove(struct qcow2_slice *slice)
{
    slice->older->newer = slice->newer;
    slice->newer->older = slice->older;
}

/* Just before `newer` in age. */
static void age_insert(struct qcow2_slice *slice, struct qcow2_slice *newer)
{
    slice->newer = newer;
    slice->older = newer->older;
    slice->older->newer = slice;
    newer->older = slice;
}

static void make_empty(struct qcow2_cache *cache)
{
    cache->ages.older = cache->ages.newer = &cache->ages;
    for (unsigned i = 0; i < cache->count; i++) {
        cache->slices[i].data = cache->memory + (uint64_t)i * cache->slice_size;
        age_insert(&cache->slices[i], &cache->ages);
    }
}

int qcow2_cache_init(struct qcow2_cache *cache, struct store *store, uint32_t slice_size,
                     unsigned count)
{
    *cache = (struct qcow2_cache){.store = store, .slice_size = slice_size, .count = count};
    for (cache->bucket_count = 1; cache->bucket_count < count;)
        cache->bucket_count *= 2;
    cache->slices = calloc(count, sizeof(*cache->slices));
    cache->buckets = calloc(cache->bucket_count, sizeof(struct qcow2_slice *));
    /* whole pages, which the host gives as they are touched */
    cache->memory = aligned_alloc(ALIGN, align_up((uint64_t)slice_size * count, ALIGN));
    if (cache->slices == NULL || cache->buckets == NULL || cache->memory == NULL) {
        qcow2_cache_free(cache);
        return -ENOMEM;
    }
    make_empty(cache);
    return 0;
}

void qcow2_cache_enlarge(struct qcow2_cache *cache, unsigned count)
{
    struct qcow2_cache larger;

    assert(cache->dirty_count + cache->leaving_count == 0);
    if (count <= cache->count ||
        qcow2_cache_init(&larger, cache->store, cache->slice_size, count) != 0)
        return;
    larger.may_write = cache->may_write;
    qcow2_cache_free(cache);
    *cache = larger;
    make_empty(cache); /* the ring of ages begins in the structure itself */
}

void qcow2_cache_free(struct qcow2_cache *cache)
{
    free(cache->slices);
    free(cache->buckets);
    free(cache->memory);
    *cache = (struct qcow2_cache){0};
}

static void forget_one(struct qcow2_cache *cache, struct qcow2_slice *slice)
{
    struct qcow2_slice **link = bucket_of(cache, slice->offset);

    while (*link != slice)
        link = &(*link)->same_hash;
    *link = slice->same_hash;
    cache->dirty_count -= slice->is_dirty;
    cache->leaving_count -= slice->is_leaving;
    slice->is_used = slice->is_dirty = slice->is_leaving = false;
    age_remove(slice);
    age_insert(slice, cache->ages.newer); /* the oldest */
}

static struct qcow2_slice *find(const struct qcow2_cache *cache, uint64_t offset)
{
    struct qcow2_slice *slice = *bucket_of(cache, offset);

    while (slice != NULL && slice->offset != offset)
        slice = slice->same_hash;
    return slice;
}

bool qcow2_cache_has(const struct qcow2_cache *cache, uint64_t offset)
{
    return find(cache, offset) != NULL;
}

static int find_room(struct qcow2_cache *cache, struct qcow2_slice **out)
{
    for (unsigned i = 0; i < 2; i++) {
        for (struct qcow2_slice *s = cache->ages.newer; s != &cache->ages; s = s->newer)
            if (!s->is_dirty && !s->is_leaving) {
                if (s->is_used)
                    forget_one(cache, s);
                *out = s;
                return 0;
            }
        int rc = cache->may_write ? qcow2_cache_write(cache) : -ENOBUFS;
        if (rc != 0)
            return rc;
    }
    return -ENOBUFS;
}

int qcow2_cache_get(struct qcow2_cache *cache, uint64_t offset, struct qcow2_slice **out)
{
    struct qcow2_slice *slice = find(cache, offset);

    if (slice == NULL) {
        int rc = find_room(cache, &slice);
        if (rc == 0)
            rc = store_read(cache->store, offset, slice->data, cache->slice_size);
        if (rc != 0)
            return rc;
        slice->offset = offset;
        slice->is_used = true;
        struct qcow2_slice **bucket = bucket_of(cache, offset);
        slice->same_hash = *bucket;
        *bucket = slice;
    }
    if (slice->newer != &cache->ages) {
        age_remove(slice);
        age_insert(slice, &cache->ages); /* the newest */
    }
    *out = slice;
    return 0;
}

void qcow2_cache_dirty(struct qcow2_cache *cache, struct qcow2_slice *slice)
{
    cache->dirty_count += !slice->is_dirty;
    slice->is_dirty = true;
}

void qcow2_cache_forget(struct qcow2_cache *cache, uint64_t offset, uint64_t size)
{
    for (uint64_t at = offset; at < offset + size; at += cache->slice_size) {
        struct qcow2_slice *slice = find(cache, at);
        if (slice != NULL)
            forget_one(cache, slice);
    }
}

int qcow2_cache_write(struct qcow2_cache *cache)
{
    for (unsigned i = 0; i < cache->count && cache->dirty_count != 0; i++) {
        struct qcow2_slice *slice = &cache->slices[i];
        if (!slice->is_dirty)
            continue;
        int rc = store_write(cache->store, slice->offset, slice->data, cache->slice_size);
        if (rc != 0)
            return rc;
        slice->is_dirty = false;
        cache->dirty_count--;
    }
    return 0;
}
