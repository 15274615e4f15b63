/*
 * block.h - disks of the host: files and block devices that guests' disks are kept in
 *
 * Requests are asynchronous and run in no order but this: a flush covers what had completed when
 * it was submitted. The caller keeps overlapping requests apart.
 *
 * Threads: block_submit may be called from any thread and does not block; `done` runs on one of
 * the disk's own threads with no lock held, and may submit more. Everything else belongs to one
 * thread, with no request under way.
 */
#ifndef DOPPEL_BACKEND_BLOCK_BLOCK_H
#define DOPPEL_BACKEND_BLOCK_BLOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"

struct block;

#define BLOCK_SECTOR 512u

enum block_op {
    BLOCK_READ,
    BLOCK_WRITE,
    BLOCK_FLUSH,        /* what was written is on stable storage afterwards */
    BLOCK_DISCARD,      /* a hint: the contents are no longer wanted, and undefined */
    BLOCK_WRITE_ZEROES, /* `may_unmap`: by deallocating, if that makes zeroes */
};

#define BLOCK_OPS_ALL 0x1fu /* a bit for each */

struct block_request {
    enum block_op op;
    bool may_unmap;
    uint64_t offset, size;   /* bytes; multiples of BLOCK_SECTOR, inside of the disk */
    const struct iovec *iov; /* READ, WRITE: `size` bytes in all; the submitter's until `done` */
    unsigned iov_count;
    /* `result`: 0 or -errno. The request is the submitter's again. */
    void (*done)(struct block_request *request, int result);
    void *ctx;
    struct block_request *next; /* the block layer's */
};

enum block_cache {
    BLOCK_CACHE_WRITEBACK, /* the host's page cache; flushes are honoured */
    BLOCK_CACHE_NONE,      /* O_DIRECT: past the page cache; flushes are honoured */
    BLOCK_CACHE_UNSAFE,    /* flushes are ignored: for disks that may be lost */
};

/* How the host is asked to carry out requests. */
enum block_aio {
    BLOCK_AIO_AUTO,     /* io_uring for what that was measured to be better at, if it works */
    BLOCK_AIO_IO_URING, /* for all that it can do; or it is an error */
    BLOCK_AIO_THREADS,
};

/* Failures for tests to cause. Each may be NULL. */
struct block_faults {
    void *ctx;
    int (*setup)(void *ctx);  /* -errno: io_uring cannot be had */
    int (*submit)(void *ctx); /* -errno: the kernel takes no requests this time */
    /* What the kernel is to have said of a request, instead of `result`. */
    int (*result)(void *ctx, const struct block_request *request, int result);
};

enum block_format {
    BLOCK_FORMAT_AUTO, /* found out: image.h says how, and what is refused */
    BLOCK_FORMAT_RAW,
    BLOCK_FORMAT_QCOW2,
};

struct block_config {
    const char *path;
    enum block_format format;
    bool is_read_only;
    bool is_ephemeral; /* what is written is lost at the end; the image itself is only read */
    enum block_cache cache;
    enum block_aio aio;
    const struct block_faults *faults; /* NULL: none */
};

int block_open(const struct block_config *config, struct block **out, struct err *e);

/* Waits for requests under way. NULL is allowed. Does not flush. */
void block_close(struct block *block);

/* In bytes. Any thread. */
uint64_t block_size(const struct block *block);

/*
 * Make the disk `bytes` large, or with 0 take the size that its file or device has by now. It may
 * be in use; a qcow2 image lets requests wait meanwhile. Disks do not shrink: what a guest has
 * stored would be gone.
 */
int block_resize(struct block *block, uint64_t bytes, struct err *e);

bool block_is_read_only(const struct block *block);
/* Smallest unit of writing that is not a read and a write beneath: bytes. */
uint32_t block_physical_size(const struct block *block);
/* Does io_uring carry out requests? Else threads do it all. */
bool block_uses_io_uring(const struct block *block);

void block_submit(struct block *block, struct block_request *request);

#endif
