/*
 * store.h - where an image's bytes lie: a file or a block device of the host, or a server's export
 *
 * The lower of the two layers of a disk. An image (image.h) makes a disk of what a store holds.
 * A store is a table of blocking functions that return 0 or -errno; several threads may be in
 * them at once. Whoever calls keeps overlapping transfers apart.
 */
#ifndef DOPPEL_BACKEND_BLOCK_STORE_H
#define DOPPEL_BACKEND_BLOCK_STORE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "backend/block/block.h"
#include "base/err.h"

struct store;

struct store_ops {
    /* Exactly `size` bytes. What is read behind the end is zeroes; writing there makes a file
     * longer. */
    int (*transfer)(struct store *store, bool is_write, uint64_t offset, uint64_t size,
                    const struct iovec *iov, unsigned iov_count);
    /* What was written is on stable storage afterwards. */
    int (*flush)(struct store *store);
    /* A hint: the bytes are no longer wanted. Undefined afterwards. */
    int (*discard)(struct store *store, uint64_t offset, uint64_t size);
    /* `may_unmap`: by deallocating. Reaches stable storage as a write does. */
    int (*write_zeroes)(struct store *store, uint64_t offset, uint64_t size, bool may_unmap);
    /* From `offset` on, *size bytes (at most what *size was) are all known to be zero, or not. */
    int (*map)(struct store *store, uint64_t offset, uint64_t *size, bool *is_zero);
    int (*length)(struct store *store, uint64_t *out); /* bytes, as of now */
    int (*resize)(struct store *store, uint64_t size); /* -EOPNOTSUPP: of a device */
    /* Reserve the host's room for bytes, which keep what they hold. */
    int (*allocate)(struct store *store, uint64_t offset, uint64_t size);
    void (*close)(struct store *store);
};

/* Of a store that is an open file of the host: what calls on it directly need. */
struct store_file {
    int fd;
    uint32_t align;     /* of offsets, sizes and buffers: more than 1 with O_DIRECT */
    bool has_fallocate; /* not a device */
    bool ignores_flushes;
    _Atomic int lost; /* -errno of the first flush that failed; 0: none */
};

struct store {
    const struct store_ops *ops;
    struct store_file *file; /* NULL: it is none */
    uint64_t size;           /* bytes when it was opened */
    uint32_t physical_size;  /* smallest unit of writing that is not a read and a write: bytes */
    bool is_read_only;
    bool grows_zeroed; /* a file: what writing makes it longer by reads as zeroes */
};

struct store_config {
    const char *path;
    bool is_read_only;
    bool is_unlocked; /* not locked against use by others: for looking at an image in use */
    enum block_cache cache;
};

/* file.c: a file or a block device. */
int store_open_file(const struct store_config *config, struct store **out, struct err *e);

/*
 * file.c: what a flush came to. The kernel reports what it could not write once, and forgets it:
 * after a flush that failed, no later one may say that all is on stable storage. Returns the
 * first failure, or 0. Any thread.
 */
int store_file_flushed(struct store_file *file, int result);

/* file.c: make the file, which must not exist, or be a block device, or `may_replace`. */
int store_create_file(const char *path, bool may_replace, struct store **out, struct err *e);

/*
 * file.c: a file without a name, in the folder $TMPDIR (/var/tmp without it), that is gone when
 * it is closed, however the process ends. Its flushes do nothing.
 */
int store_open_temporary(struct store **out, struct err *e);

/*
 * lock.c: keep two machines from using one image at once. Locks `fd`, by the byte ranges that
 * QEMU uses too; released when it is closed.
 */
int store_lock(int fd, const char *path, bool is_read_only, struct err *e);

/* ---- store.c ---- */

/* One piece; of a store's transfer. */
int store_read(struct store *store, uint64_t offset, void *buf, uint64_t size);
int store_write(struct store *store, uint64_t offset, const void *buf, uint64_t size);

/* Zeroes, as data that is transferred: for stores that know no better. */
int store_write_zero_data(struct store *store, uint64_t offset, uint64_t size);

/* All bytes of an iovec into one buffer that is as long, and the other way. */
void iov_gather(uint8_t *to, const struct iovec *iov, unsigned count);
void iov_scatter(const uint8_t *from, const struct iovec *iov, unsigned count);

#endif
