/*
 * image.h - disk images: what a disk's contents are, in a format on a store
 *
 * The upper of the two layers beneath a disk; `doppel image` uses it as it is, block.c with
 * threads. An image is a table of blocking functions that return 0 or -errno. transfer, flush,
 * discard and write_zeroes may be called by several threads at once; their offsets and sizes are
 * multiples of BLOCK_SECTOR and lie inside of the image. Everything else belongs to one thread,
 * with nothing else under way.
 */
#ifndef DOPPEL_BACKEND_BLOCK_IMAGE_H
#define DOPPEL_BACKEND_BLOCK_IMAGE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "backend/block/block.h"
#include "base/err.h"

struct image;
struct store;

/* Where a piece of an image gets its contents. */
enum image_extent {
    IMAGE_ABSENT, /* the image says nothing of it: from its backing file, else zeroes */
    IMAGE_ZERO,
    IMAGE_DATA,
};

/* A format's note of an access that goes on outside of its functions. */
struct image_access {
    uint64_t number;
    struct image_access *next, **link;
};

/* Where a request may be carried out by one call on a file. */
struct image_place {
    struct store_file *file;
    uint64_t offset;
    struct image *image; /* that gave it: its `leave` wants it back */
    struct image_access access;
};

struct image_ops {
    int (*transfer)(struct image *image, bool is_write, uint64_t offset, uint64_t size,
                    const struct iovec *iov, unsigned iov_count);
    int (*flush)(struct image *image);
    int (*discard)(struct image *image, uint64_t offset, uint64_t size);
    int (*write_zeroes)(struct image *image, uint64_t offset, uint64_t size, bool may_unmap);
    /*
     * Is all of a request one call on a file: a transfer, a flush, a discard or zeroes? Then *out
     * says where, and stays in place until `leave`. Does not wait, for what false may always
     * be answered. `leave` may be NULL. For requests of image->located_ops; NULL: none.
     */
    bool (*locate)(struct image *image, const struct block_request *request,
                   struct image_place *out);
    void (*leave)(struct image *image, struct image_place *place);
    /* From `offset` on, *size bytes (at most what *size was) are of one kind. */
    int (*map)(struct image *image, uint64_t offset, uint64_t *size, enum image_extent *out);
    int (*resize)(struct image *image, uint64_t size, struct err *e);
    /* While it is in use: to *size bytes, or, of 0, to what somebody else has made it; *size gets
     * what it is then. image->size stays. NULL: resize does it, with nothing else under way. */
    int (*grow)(struct image *image, uint64_t *size);
    /* One cluster, at a multiple of the cluster size. NULL: the format compresses nothing.
     * -E2BIG: it does not become smaller. */
    int (*write_compressed)(struct image *image, uint64_t offset, const uint8_t *data);
    /* Everything goes back to what the backing file says. NULL: the format has none. */
    int (*empty)(struct image *image);
    /* Writes out what is delayed, as far as that works, and frees. */
    void (*close)(struct image *image);
};

struct image {
    const struct image_ops *ops;
    enum block_format format; /* not BLOCK_FORMAT_AUTO */
    uint64_t size;            /* bytes, a multiple of BLOCK_SECTOR */
    uint32_t physical_size;
    bool is_read_only;
    unsigned located_ops;  /* bits of enum block_op that `locate` may say yes to */
    struct image *backing; /* NULL: none */
};

#define IMAGE_CHAIN_MAX 32 /* images on top of each other */

struct image_config {
    const char *path;
    enum block_format format;
    bool is_read_only;
    bool is_unlocked;            /* not locked against use by others: to look at an image in use */
    bool is_alone;               /* backing files are not opened, and count as absent */
    bool is_for_repair;          /* open also what is marked as corrupt, and do not repair it */
    bool opens_backing_writable; /* the file directly behind it, to be written, too */
    bool names_nothing;          /* refuse a detected format that leads to other files */
    enum block_cache cache;
};

/*
 * Open an image and the files behind it. With BLOCK_FORMAT_AUTO the format is found out from the
 * first bytes. Those of a raw disk are its guest's to write, and so could be made to name a
 * backing file that the guest would like to read; so a detected image that names other files is
 * taken only if its own name ends in ".qcow2", and as a backing file never.
 */
int image_open(const struct image_config *config, struct image **out, struct err *e);

/* An empty disk of this image's contents, whose writes are lost when it is closed. Takes over
 * `base`, also when it fails. */
int image_open_ephemeral(struct image *base, struct image **out, struct err *e);

/* NULL is allowed. Writes out what is delayed; does not flush. */
void image_close(struct image *image);

/*
 * The path of a backing file `name`, which is meant from the folder of the image that names it.
 * Allocates; NULL: out of memory.
 */
char *image_resolve(const char *image_path, const char *name);

const char *image_format_name(enum block_format format);
/* 0 or -EINVAL. */
int image_parse_format(const char *name, enum block_format *out);

/* ---- for those who use images without block.c; anywhere inside, any size ---- */

int image_read(struct image *image, uint64_t offset, void *buf, uint64_t size);
int image_write(struct image *image, uint64_t offset, const void *buf, uint64_t size);
/* As map, through the chain of backing files: never IMAGE_ABSENT. */
int image_map_chain(struct image *image, uint64_t offset, uint64_t *size, enum image_extent *out);

/* ---- formats; for this folder ---- */

/* raw.c. Takes over the store, also when it fails. */
int image_open_raw(struct store *store, const struct image_config *config, struct image **out,
                   struct err *e);

#define IMAGE_MAGIC_SIZE 4
/* Do the first bytes make a qcow2 image? */
bool image_is_qcow2_magic(const uint8_t magic[IMAGE_MAGIC_SIZE]);

#endif
