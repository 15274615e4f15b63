/*
 * qcow2.h - images in QEMU's copy-on-write format, versions 2 and 3
 *
 * Spec: QEMU, docs/interop/qcow2.txt ("the specification" in comments of these files).
 */
#ifndef DOPPEL_BACKEND_BLOCK_QCOW2_H
#define DOPPEL_BACKEND_BLOCK_QCOW2_H

#include <stdbool.h>
#include <stdint.h>

#include "backend/block/image.h"
#include "base/err.h"

#define QCOW2_CLUSTER_DEFAULT 65536u
#define QCOW2_CLUSTER_MIN 512u
#define QCOW2_CLUSTER_MAX (2u << 20)

#define QCOW2_BACKING_FILE_MAX 1023 /* bytes; the specification's limit */

/* What an image says of the file that it is based on; "" when it says nothing. */
struct qcow2_names {
    char backing_file[QCOW2_BACKING_FILE_MAX + 1];
    char backing_format[32];
};

enum qcow2_compression { QCOW2_ZLIB, QCOW2_ZSTD };
enum qcow2_preallocation {
    QCOW2_PREALLOCATE_OFF,
    QCOW2_PREALLOCATE_METADATA, /* all tables; the file is full-sized, with holes */
    QCOW2_PREALLOCATE_FALLOC,   /* and the host's room is reserved */
};

struct qcow2_create {
    uint64_t size;         /* bytes, a multiple of BLOCK_SECTOR */
    unsigned version;      /* 2 or 3 */
    uint32_t cluster_size; /* a power of 2, QCOW2_CLUSTER_MIN to MAX */
    enum qcow2_compression compression;
    enum qcow2_preallocation preallocation; /* not with a backing file */
    bool has_lazy_refcounts;
    const char *backing_file; /* as the image is to name it; NULL: none */
    enum block_format backing_format;
};

/* Make an empty image in an empty store. It is on stable storage afterwards. */
int qcow2_format(struct store *store, const struct qcow2_create *create, struct err *e);

/* Give every cluster of a new image room, which reads as zeroes. Not QCOW2_PREALLOCATE_OFF. */
int qcow2_preallocate(struct image *image, enum qcow2_preallocation how, struct err *e);

/* The largest disk that tables of this cluster size can describe: bytes. */
uint64_t qcow2_size_max(uint32_t cluster_size);

/*
 * Read and check the header and the tables it names. Takes over the store, also when it fails.
 * The image is to be closed, or used, only after qcow2_start.
 */
int qcow2_open(struct store *store, const struct image_config *config, struct image **out,
               struct err *e);

/* Once image->backing is set: repair what was left dirty, and get ready to write. */
int qcow2_start(struct image *image, const struct image_config *config, struct err *e);

const struct qcow2_names *qcow2_names(const struct image *image);

/* ---- for `doppel image` ---- */

struct qcow2_info {
    unsigned version;
    uint32_t cluster_size;
    unsigned refcount_bits;
    enum qcow2_compression compression;
    bool has_lazy_refcounts;
    bool is_dirty;
    bool is_corrupt;
    unsigned snapshot_count;
    uint64_t disk_bytes; /* length of the file */
};
void qcow2_get_info(struct image *image, struct qcow2_info *out);

enum qcow2_repair { QCOW2_REPAIR_NONE, QCOW2_REPAIR_LEAKS, QCOW2_REPAIR_ALL };

struct qcow2_check {
    uint64_t errors; /* found: data or tables are, or may become, damaged */
    uint64_t leaks;  /* found: clusters that are allocated but not used */
    uint64_t errors_fixed;
    uint64_t leaks_fixed;
    uint64_t clusters;  /* of the disk */
    uint64_t allocated; /* of them, with room of their own; compressed ones too */
    uint64_t compressed;
    uint64_t end_offset;                         /* where the used part of the file ends: bytes */
    void (*report)(void *ctx, const char *text); /* what is wrong, one by one; NULL: not wanted */
    void *ctx;
};

/*
 * Compare what is referred to with what is counted, and repair. The image must be open for
 * repair, and for writing if something is to be repaired. Fails only if it could not be done;
 * what was found is in *check. Flushes.
 */
int qcow2_check(struct image *image, enum qcow2_repair repair, struct qcow2_check *check,
                struct err *e);

#endif
