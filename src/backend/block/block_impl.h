/*
 * block_impl.h - image formats, for the files of this folder
 *
 * A format is a table of blocking functions, called by the disk's threads, several at once. They
 * return 0 or -errno. Offsets and sizes were checked by block.c.
 */
#ifndef DOPPEL_BACKEND_BLOCK_BLOCK_IMPL_H
#define DOPPEL_BACKEND_BLOCK_BLOCK_IMPL_H

#include "backend/block/block.h"

struct block_format {
    int (*transfer)(void *image, bool is_write, uint64_t offset, uint64_t size,
                    const struct iovec *iov, unsigned iov_count);
    int (*flush)(void *image);
    int (*discard)(void *image, uint64_t offset, uint64_t size);
    int (*write_zeroes)(void *image, uint64_t offset, uint64_t size, bool may_unmap);
    /*
     * Make the image *size bytes large (a multiple of BLOCK_SECTOR), or with 0 look how large it
     * is by now; *size becomes that. NULL: it has one size for ever. While others transfer.
     */
    int (*resize)(void *image, uint64_t *size);
    void (*close)(void *image);
};

struct block_image {
    const struct block_format *format;
    void *image;
    uint64_t size;
    uint32_t physical_size;
};

/* raw.c: the file as it is. */
int block_raw_open(const struct block_config *config, struct block_image *out, struct err *e);

/*
 * lock.c: keep two machines from using one image at once. Locks `fd`, by the byte ranges that
 * QEMU uses too; released when it is closed.
 */
int block_lock(int fd, const char *path, bool is_read_only, struct err *e);

#endif
