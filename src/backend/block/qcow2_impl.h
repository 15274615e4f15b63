/*
 * qcow2_impl.h - what the files of the qcow2 driver share
 *
 * Tables in memory: the L1 table and the refcount table as a whole, L2 tables and refcount blocks
 * in slices (qcow2_cache.c). All of it under `lock`, which is held for looking things up and never
 * over a transfer of data.
 *
 * Whenever the lock is free, the tables in memory agree: each cluster is counted as often as they,
 * and the releases that wait for a commit, refer to it. Clusters that are `held` are not counted
 * and not referred to, but not free either: somebody writes to them, and will then count them and
 * refer to them, or they were given free and somebody may still be reading or writing there.
 *
 * A commit (qcow2_commit.c) takes the file from one such state to the next, by one list of writes
 * (redo.h): the end of this process leaves all of it or nothing. The list's order is for a host
 * that loses what was not flushed:
 *  1. refcounts that grow; data are there      then a flush of the store
 *  2. entries of the refcount table            then a flush, if there were any
 *  3. entries of L2 tables                     then a flush, if there were any
 *  4. entries of the L1 table                  then a flush, if there were any
 *  5. refcounts of what nothing refers to any more
 * So whatever an entry on the disk refers to is there, and counted. Such a host leaves at the worst
 * clusters that are counted and not referred to.
 *
 * Spec: QEMU, docs/interop/qcow2.txt.
 */
#ifndef DOPPEL_BACKEND_BLOCK_QCOW2_IMPL_H
#define DOPPEL_BACKEND_BLOCK_QCOW2_IMPL_H

#include <pthread.h>

#include "backend/block/qcow2.h"
#include "backend/block/redo.h"
#include "backend/block/store.h"
#include "base/bits.h"

/* Limits of ours, those of QEMU: a table that is larger is no table. */
#define QCOW2_L1_BYTES_MAX (UINT64_C(32) << 20)
#define QCOW2_REFTABLE_BYTES_MAX (UINT64_C(8) << 20)
#define QCOW2_SNAPSHOTS_MAX 65536u
#define QCOW2_SNAPSHOT_BYTES_MAX (UINT64_C(64) << 20)
#define QCOW2_BITMAPS_MAX 65535u
#define QCOW2_BITMAP_DIRECTORY_MAX (UINT64_C(64) << 20)

/* Tables are kept in slices of this size, or of a cluster's, if that is smaller. So many: */
#define QCOW2_SLICE_SIZE 4096u
#define QCOW2_L2_SLICES_MIN 64u
#define QCOW2_L2_SLICES_MAX 4096u /* 16 MiB, which map 128 GiB in clusters of 64 KiB */
#define QCOW2_REF_SLICES_SPARE 64u
#define QCOW2_REF_SLICES_MIN 256u
#define QCOW2_REF_SLICES_MAX 4096u /* which count 512 GiB in clusters of 64 KiB */

#define QCOW2_OFFSET_MASK UINT64_C(0x00fffffffffffe00) /* of entries of L1 and L2 tables */
#define QCOW2_COPIED BIT(63)                           /* the refcount is exactly 1 */
#define QCOW2_COMPRESSED BIT(62)
#define QCOW2_ZERO BIT(0)
#define QCOW2_HOST_MAX BIT(56) /* offsets in the file end here */

#define QCOW2_INCOMPATIBLE_DIRTY BIT(0)
#define QCOW2_INCOMPATIBLE_CORRUPT BIT(1)
#define QCOW2_INCOMPATIBLE_DATA_FILE BIT(2)
#define QCOW2_INCOMPATIBLE_COMPRESSION BIT(3)
#define QCOW2_INCOMPATIBLE_EXTENDED_L2 BIT(4)
#define QCOW2_COMPATIBLE_LAZY_REFCOUNTS BIT(0)
#define QCOW2_AUTOCLEAR_BITMAPS BIT(0)

/* Offsets of header fields that are written on their own. */
enum {
    QCOW2_AT_SIZE = 24,
    QCOW2_AT_L1 = 36,       /* entries (4 bytes), then offset (8) */
    QCOW2_AT_REFTABLE = 48, /* offset (8), then clusters (4) */
    QCOW2_AT_INCOMPATIBLE = 72,
    QCOW2_AT_AUTOCLEAR = 88,
    QCOW2_HEADER_V2 = 72,
    QCOW2_HEADER_V3 = 104,
    QCOW2_HEADER_FULL = 112, /* with the compression type */
};

#define QCOW2_EXTENSION_END 0u
#define QCOW2_EXTENSION_BACKING_FORMAT 0xe2792acau
#define QCOW2_EXTENSION_FEATURES 0x6803f857u
#define QCOW2_EXTENSION_BITMAPS 0x23852875u

struct qcow2_header {
    uint32_t version;
    uint64_t backing_offset;
    uint32_t backing_size;
    uint32_t cluster_bits;
    uint64_t size;
    uint32_t encryption;
    uint32_t l1_count; /* entries */
    uint64_t l1_offset;
    uint64_t reftable_offset;
    uint32_t reftable_clusters;
    uint32_t snapshot_count;
    uint64_t snapshots_offset;
    uint64_t incompatible, compatible, autoclear;
    uint32_t refcount_order; /* a count has 1 << refcount_order bits */
    uint32_t length;
    uint8_t compression;
    uint32_t bitmap_count; /* 0: the image has none */
    uint64_t bitmap_directory_size, bitmap_directory_offset;
    struct qcow2_names names;
};

/* ---- qcow2_cache.c: pieces of tables ---- */

struct qcow2_slice {
    uint64_t offset; /* in the file */
    uint8_t *data;
    bool is_used;
    bool is_dirty;
    bool is_leaving; /* a copy of it is being written: not to be read from the file */
    struct qcow2_slice *same_hash;
    struct qcow2_slice *older, *newer;
};

struct qcow2_cache {
    struct store *store;
    uint32_t slice_size;
    unsigned count;
    unsigned dirty_count, leaving_count;
    struct qcow2_slice *slices;
    uint8_t *memory;
    struct qcow2_slice **buckets;
    unsigned bucket_count;
    struct qcow2_slice ages; /* a ring: ages.newer is the oldest */
    bool may_write;          /* dirty slices may be written at any time, to make room */
};

int qcow2_cache_init(struct qcow2_cache *cache, struct store *store, uint32_t slice_size,
                     unsigned count);
/* Room for `count` slices, if there is memory for it; forgets what is known. Nothing is dirty. */
void qcow2_cache_enlarge(struct qcow2_cache *cache, unsigned count);
void qcow2_cache_free(struct qcow2_cache *cache);
/* The slice at `offset`, a multiple of its size; valid until the next call for this cache. */
int qcow2_cache_get(struct qcow2_cache *cache, uint64_t offset, struct qcow2_slice **out);
void qcow2_cache_dirty(struct qcow2_cache *cache, struct qcow2_slice *slice);
/* Is that slice in memory? */
bool qcow2_cache_has(const struct qcow2_cache *cache, uint64_t offset);
/* Forget what is known of a range, changes included. */
void qcow2_cache_forget(struct qcow2_cache *cache, uint64_t offset, uint64_t size);
int qcow2_cache_write(struct qcow2_cache *cache);

/* ---- qcow2_set.c: which clusters hold tables ---- */

struct qcow2_set {
    uint64_t *slots; /* cluster + 1; 0: free */
    uint64_t size;   /* a power of 2 */
    uint64_t used;
};

/* -EEXIST: it is in. -ENOMEM. */
int qcow2_set_add(struct qcow2_set *set, uint64_t cluster);
void qcow2_set_remove(struct qcow2_set *set, uint64_t cluster);
bool qcow2_set_has(const struct qcow2_set *set, uint64_t first, uint64_t count);
void qcow2_set_free(struct qcow2_set *set);

/* ---- the image ---- */

/* Clusters of the disk that are getting room: other writers of them wait. */
struct qcow2_allocation {
    uint64_t first, count;
    struct qcow2_allocation *next, **link;
};

/* Clusters of the file that lose one reference each in step 5 of the next commit; or that are held
 * since one. */
struct qcow2_release {
    uint64_t first, count;
    uint64_t number; /* operations up to this one may still use them */
    bool is_discard; /* the host gets its room back */
};

struct qcow2_releases {
    struct qcow2_release *all;
    size_t count, room;
};

/* Changed entries of a table that is in memory as a whole: [first, end). */
struct qcow2_span {
    uint64_t first, end;
};

#define QCOW2_UNPACKED_COUNT 4 /* decompressed clusters that are kept */

struct qcow2_unpacked {
    uint64_t entry; /* of the L2 table; 0: none */
    uint8_t *data;
    uint64_t used_at;
};

struct qcow2 {
    struct image image;
    struct store *store;
    char *path; /* for messages */
    struct qcow2_header header;
    uint32_t cluster_size;
    unsigned cluster_bits;
    unsigned l2_bits;    /* entries of an L2 table, as a power of 2 */
    unsigned block_bits; /* counts in a refcount block, likewise */
    uint64_t refcount_max;
    bool is_temporary; /* lost when it is closed: nothing has to be written out */

    pthread_mutex_t commit_lock; /* before lock */
    pthread_mutex_t lock;        /* all that follows, and the header's tables */
    pthread_cond_t allocation_ended;
    uint64_t *l1; /* as numbers of the host */
    uint64_t *reftable;
    uint64_t reftable_count;
    struct qcow2_span l1_dirty, reftable_dirty;
    bool is_l1_moved, is_reftable_moved; /* the header on the disk names the old one */
    struct qcow2_cache l2_cache, ref_cache;
    struct qcow2_set tables; /* clusters that hold tables */
    struct qcow2_set held;   /* clusters that nobody may take */
    uint64_t free_hint;      /* no cluster before it is free */
    uint64_t file_end;       /* nothing was ever written behind it: bytes */
    uint64_t packed_at;      /* where the next compressed cluster may go; 0: nowhere yet */
    struct qcow2_allocation *allocations;
    struct image_access *ops; /* to clusters, outside of the lock: what they touch stays */
    uint64_t op_number;
    struct qcow2_releases releases; /* for the next commit */
    uint64_t release_slices;        /* that they will change: at most so many slices of refcounts */
    struct qcow2_releases leavings; /* held until the operations of their time are over */
    struct redo redo;               /* under commit_lock */
    uint64_t flush_wanted, flush_done; /* tickets */
    int broken;                        /* -errno: nothing is written any more; 0: all is well */

    pthread_mutex_t unpacked_lock; /* innermost */
    struct qcow2_unpacked unpacked[QCOW2_UNPACKED_COUNT];
    uint64_t unpacked_clock;
};

static inline struct qcow2 *qcow2_of(struct image *image)
{
    return CONTAINER_OF(image, struct qcow2, image);
}

/* What the file says may be wrong; what it was, is logged, and nothing is written from now on.
 * Under the lock. Returns -EIO. */
int qcow2_corrupt(struct qcow2 *q, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/*
 * Note which clusters hold tables. -ERANGE: one lies outside of the file; -EEXIST: two lie over
 * one another. Those of snapshots are not looked into: they are counted, so nothing is placed
 * there.
 */
int qcow2_add_tables(struct qcow2 *q);

/* Under the lock. */
void qcow2_op_begin(struct qcow2 *q, struct image_access *op);
void qcow2_op_end(struct qcow2 *q, struct image_access *op);

/* How much of the L2 tables, and of refcounts, is kept in memory, for a disk of this size. */
unsigned qcow2_slices_wanted(const struct qcow2 *q);
unsigned qcow2_ref_slices_wanted(const struct qcow2 *q);

/* ---- qcow2_header.c ---- */

int qcow2_header_read(struct store *store, const char *path, struct qcow2_header *h, struct err *e);
/* [offset, offset + size) is a table that starts on a cluster and begins inside of the file. */
bool qcow2_is_table(const struct qcow2 *q, uint64_t offset, uint64_t size, uint64_t size_max);
int qcow2_header_write_u64(struct qcow2 *q, uint64_t at, uint64_t value);

/* ---- qcow2_refcount.c; under the lock ---- */

int qcow2_refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *out);
/* Exactly this. The refcount block must exist. */
int qcow2_refcount_set(struct qcow2 *q, uint64_t cluster, uint64_t count);
/* One more, for clusters that are in use. -ERANGE: the width of counts does not allow it. */
int qcow2_refcount_increase(struct qcow2 *q, uint64_t cluster);
int qcow2_refcount_decrease(struct qcow2 *q, uint64_t first, uint64_t count);
/*
 * 1 to `want` clusters in a row, counted as 1 each; to be referred to before the lock is let go.
 * *is_fresh: they read as zeroes. They lie below `limit` (bytes), or -ENOSPC.
 */
int qcow2_allocate(struct qcow2 *q, uint64_t want, uint64_t limit, uint64_t *offset,
                   uint64_t *count, bool *is_fresh);
/* Just so many, or none. */
int qcow2_allocate_all(struct qcow2 *q, uint64_t count, uint64_t *offset, bool *is_fresh);
/* As qcow2_allocate, anywhere, but held instead of counted. */
int qcow2_reserve(struct qcow2 *q, uint64_t want, uint64_t *offset, uint64_t *count,
                  bool *is_fresh);
/* What was reserved is counted, all or nothing, or given back. */
int qcow2_reserve_count(struct qcow2 *q, uint64_t offset, uint64_t count);
void qcow2_reserve_drop(struct qcow2 *q, uint64_t offset, uint64_t count);
/* Clusters lose a reference in the next commit. */
int qcow2_release(struct qcow2 *q, uint64_t first, uint64_t count, bool is_discard);
/* What was released loses its references, in memory; what thereby becomes free is held. If that
 * fails, the rest stays released. */
int qcow2_apply_releases(struct qcow2 *q);
/* Held clusters which no operation uses any more become free. Lets the lock go meanwhile. */
void qcow2_let_go(struct qcow2 *q);
/* How refcounts lie in blocks. */
uint64_t qcow2_count_load(const uint8_t *block, uint64_t index, unsigned order);
void qcow2_count_store(uint8_t *block, uint64_t index, unsigned order, uint64_t value);

/* ---- qcow2_map.c; under the lock ---- */

enum qcow2_kind {
    QCOW2_ABSENT,
    QCOW2_ZEROES,
    QCOW2_ZEROES_ALLOCATED, /* zeroes, with room in the file */
    QCOW2_DATA,
    QCOW2_PACKED, /* compressed */
};

struct qcow2_mapping {
    enum qcow2_kind kind;
    bool is_copied; /* the room is nobody else's */
    uint64_t host;  /* DATA, ZEROES_ALLOCATED: of the first byte asked for */
    uint64_t entry; /* of the first cluster */
    uint64_t size;  /* bytes that are alike and, with room, in a row */
};

/* What an entry says; its host offset is that of the cluster. -EIO: nothing sensible. */
int qcow2_entry_kind(const struct qcow2 *q, uint64_t entry, enum qcow2_kind *kind, uint64_t *host);
/* Where the parts of a compressed cluster lie: bytes. */
void qcow2_packed_range(const struct qcow2 *q, uint64_t entry, uint64_t *offset, uint64_t *size);
int qcow2_map_find(struct qcow2 *q, uint64_t offset, uint64_t size, struct qcow2_mapping *out);
/* Would qcow2_map_find find all it needs in memory? */
bool qcow2_map_is_known(const struct qcow2 *q, uint64_t offset);
/*
 * The slice with the entry of a cluster, in a table that may be changed, and where in it. The
 * table is made if `may_make`, else *slice is NULL if there is none.
 */
int qcow2_map_writable(struct qcow2 *q, uint64_t cluster, bool may_make, struct qcow2_slice **slice,
                       unsigned *index);
/* Entries from this one on that are in the same slice. */
unsigned qcow2_map_room(const struct qcow2 *q, uint64_t cluster);
/* Give up what an entry refers to. */
int qcow2_map_release(struct qcow2 *q, uint64_t entry, bool is_discard);

/* ---- qcow2_commit.c ---- */

/* Steps 1 to 5, durable. Not under the lock, and in no operation. */
int qcow2_commit(struct qcow2 *q);
/* Under the lock, which it may let go meanwhile: make room for changes if there is little. */
int qcow2_commit_if_full(struct qcow2 *q);

/* ---- qcow2_io.c ---- */

int qcow2_transfer(struct image *image, bool is_write, uint64_t offset, uint64_t size,
                   const struct iovec *iov, unsigned iov_count);
bool qcow2_locate(struct image *image, const struct block_request *request,
                  struct image_place *out);
void qcow2_leave(struct image *image, struct image_place *place);
int qcow2_discard(struct image *image, uint64_t offset, uint64_t size);
int qcow2_write_zeroes(struct image *image, uint64_t offset, uint64_t size, bool may_unmap);
/* Everything the image says of a range is taken back. Multiples of the cluster size. */
int qcow2_forget(struct qcow2 *q, uint64_t offset, uint64_t size);

/* ---- qcow2_packed.c ---- */

/* Part of a compressed cluster. Not under the lock, within an operation. */
int qcow2_packed_read(struct qcow2 *q, uint64_t entry, uint64_t skip, const struct iovec *iov,
                      unsigned iov_count);
void qcow2_packed_forget(struct qcow2 *q);
int qcow2_packed_write(struct image *image, uint64_t offset, const uint8_t *data);

/* ---- qcow2_walk.c ---- */

/* How often each cluster of the file is referred to. */
struct qcow2_walk {
    struct qcow2 *q;
    struct qcow2_check *check;
    uint32_t *counts;
    uint64_t cluster_count; /* of the file */
    uint64_t budget;        /* entries that may be looked at: an enemy's tables never end */
    bool is_incomplete;     /* tables could not be read as such: there may be more references */
    bool is_refcounts_bad;  /* refcount blocks lie where none can be */
};

/* Says on check->report that something is wrong, and counts it. */
void qcow2_walk_error(struct qcow2_walk *w, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* Fills counts; `is_with_refcounts`: the clusters of refcounts themselves, too. 0 or -errno. */
int qcow2_walk(struct qcow2_walk *w, bool is_with_refcounts);
/* Read a table's entries. `to` has room for them. */
int qcow2_walk_read(struct qcow2 *q, uint64_t offset, uint64_t count, uint64_t *to);

/* ---- qcow2_resize.c ---- */

int qcow2_resize(struct image *image, uint64_t size, struct err *e);

#endif
