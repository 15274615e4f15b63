/*
 * raw.c - disks that are a file or a block device as it is
 *
 * With O_DIRECT, buffers that are not aligned as the file wants go through one that is; a size
 * that is not is the caller's to avoid (physical_size says).
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/block/block_impl.h"
#include "base/bits.h"

#define DIRECT_ALIGN 4096u
#define IOV_STEP 64u
#define ZERO_STEP (UINT64_C(1) << 20)

struct raw {
    int fd;
    bool is_device;
    bool is_direct;
    bool is_unsafe;
};

/* Advance the copy of an iovec by n bytes; returns entries left. */
static unsigned iov_advance(struct iovec *iov, unsigned count, size_t n)
{
    unsigned skip = 0;

    while (skip < count && n >= iov[skip].iov_len)
        n -= iov[skip++].iov_len;
    memmove(iov, iov + skip, (count - skip) * sizeof(*iov));
    if (count > skip) {
        iov[0].iov_base = (uint8_t *)iov[0].iov_base + n;
        iov[0].iov_len -= n;
    }
    return count - skip;
}

/* All of up to IOV_STEP pieces. A file shorter than the disk reads as zeroes behind its end. */
static int transfer_some(const struct raw *r, bool is_write, uint64_t offset, struct iovec *iov,
                         unsigned count)
{
    while (count > 0) {
        ssize_t n = is_write ? pwritev(r->fd, iov, (int)count, (off_t)offset)
                             : preadv(r->fd, iov, (int)count, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0 && is_write)
            return -ENOSPC;
        if (n == 0) {
            for (unsigned i = 0; i < count; i++)
                memset(iov[i].iov_base, 0, iov[i].iov_len);
            return 0;
        }
        count = iov_advance(iov, count, (size_t)n);
        offset += (uint64_t)n;
    }
    return 0;
}

static bool is_aligned(const struct iovec *iov, unsigned count)
{
    uintptr_t all = 0;

    for (unsigned i = 0; i < count; i++)
        all |= (uintptr_t)iov[i].iov_base | iov[i].iov_len;
    return (all & (DIRECT_ALIGN - 1)) == 0;
}

static void bounce_copy(uint8_t *bounce, const struct iovec *iov, unsigned count, bool is_write)
{
    for (unsigned i = 0; i < count; bounce += iov[i++].iov_len) {
        if (is_write)
            memcpy(bounce, iov[i].iov_base, iov[i].iov_len);
        else
            memcpy(iov[i].iov_base, bounce, iov[i].iov_len);
    }
}

/*
 * Through a buffer that starts and ends on aligned places. For writing, what lies around is read
 * first: disks under O_DIRECT say that their unit is DIRECT_ALIGN, so this is rare.
 */
static int transfer_bounced(const struct raw *r, bool is_write, uint64_t offset, uint64_t size,
                            const struct iovec *iov, unsigned count)
{
    uint64_t from = offset & ~(uint64_t)(DIRECT_ALIGN - 1);
    uint64_t to = align_up(offset + size, DIRECT_ALIGN);
    uint8_t *bounce = aligned_alloc(DIRECT_ALIGN, to - from);
    struct iovec all = {.iov_base = bounce, .iov_len = to - from};
    int rc = 0;

    if (bounce == NULL)
        return -ENOMEM;
    if (!is_write || from != offset || to != offset + size)
        rc = transfer_some(r, false, from, &all, 1);
    if (rc == 0)
        bounce_copy(bounce + (offset - from), iov, count, is_write);
    all = (struct iovec){.iov_base = bounce, .iov_len = to - from};
    if (rc == 0 && is_write)
        rc = transfer_some(r, true, from, &all, 1);
    free(bounce);
    return rc;
}

static int raw_transfer(void *image, bool is_write, uint64_t offset, uint64_t size,
                        const struct iovec *iov, unsigned count)
{
    const struct raw *r = image;
    struct iovec some[IOV_STEP];

    if (r->is_direct && (!is_aligned(iov, count) || (offset & (DIRECT_ALIGN - 1))))
        return transfer_bounced(r, is_write, offset, size, iov, count);
    while (count > 0) {
        unsigned n = MIN(count, IOV_STEP);
        uint64_t bytes = 0;
        for (unsigned i = 0; i < n; i++)
            bytes += iov[i].iov_len;
        memcpy(some, iov, n * sizeof(*iov));
        int rc = transfer_some(r, is_write, offset, some, n);
        if (rc != 0)
            return rc;
        iov += n;
        count -= n;
        offset += bytes;
    }
    return 0;
}

static int raw_flush(void *image)
{
    const struct raw *r = image;

    if (r->is_unsafe)
        return 0;
    return fdatasync(r->fd) == 0 ? 0 : -errno;
}

static int punch(const struct raw *r, uint64_t offset, uint64_t size)
{
    uint64_t range[2] = {offset, size};

    if (r->is_device)
        return ioctl(r->fd, BLKDISCARD, range) == 0 ? 0 : -errno;
    return fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                     (off_t)size) == 0
               ? 0
               : -errno;
}

static int raw_discard(void *image, uint64_t offset, uint64_t size)
{
    int rc = punch(image, offset, size);

    /* a hint that the host cannot take is no failure */
    return rc == -EOPNOTSUPP || rc == -ENOSYS || rc == -EINVAL ? 0 : rc;
}

static int write_zero_buffer(const struct raw *r, uint64_t offset, uint64_t size)
{
    uint64_t step = MIN(size, ZERO_STEP);
    uint8_t *zeroes = aligned_alloc(DIRECT_ALIGN, align_up(step, DIRECT_ALIGN));
    int rc = 0;

    if (zeroes == NULL)
        return -ENOMEM;
    memset(zeroes, 0, align_up(step, DIRECT_ALIGN));
    while (size > 0 && rc == 0) {
        uint64_t n = MIN(size, step);
        struct iovec iov = {.iov_base = zeroes, .iov_len = n};
        rc = raw_transfer((void *)r, true, offset, n, &iov, 1);
        offset += n;
        size -= n;
    }
    free(zeroes);
    return rc;
}

static int raw_write_zeroes(void *image, uint64_t offset, uint64_t size, bool may_unmap)
{
    const struct raw *r = image;
    uint64_t range[2] = {offset, size};
    int rc = -EOPNOTSUPP;

    if (r->is_device)
        rc = ioctl(r->fd, BLKZEROOUT, range) == 0 ? 0 : -errno;
    else if (may_unmap) /* a hole reads as zeroes */
        rc = punch(r, offset, size);
    else if (fallocate(r->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                       (off_t)size) == 0)
        rc = 0;
    return rc == 0 ? 0 : write_zero_buffer(r, offset, size);
}

static int raw_resize(void *image, uint64_t *size)
{
    const struct raw *r = image;
    struct stat st;
    uint64_t is = 0;

    if (!r->is_device && *size != 0 && ftruncate(r->fd, (off_t)*size) != 0)
        return -errno;
    if (r->is_device) {
        if (ioctl(r->fd, BLKGETSIZE64, &is) != 0)
            return -errno;
        if (*size > is)
            return -ENOSPC; /* it is as large as it is */
    } else {
        if (fstat(r->fd, &st) != 0)
            return -errno;
        is = (uint64_t)st.st_size & ~(uint64_t)(BLOCK_SECTOR - 1);
    }
    *size = is;
    return 0;
}

static void raw_close(void *image)
{
    struct raw *r = image;

    close(r->fd);
    free(r);
}

static const struct block_format raw_format = {
    .transfer = raw_transfer,
    .flush = raw_flush,
    .discard = raw_discard,
    .write_zeroes = raw_write_zeroes,
    .resize = raw_resize,
    .close = raw_close,
};

/* ---- opening ---- */

static int raw_measure(struct raw *r, const char *path, struct block_image *out, struct err *e)
{
    struct stat st;
    uint64_t size = 0;

    if (fstat(r->fd, &st) != 0)
        return err_set(e, errno, "look at '%s'", path);
    if (S_ISBLK(st.st_mode)) {
        unsigned physical = 0;
        r->is_device = true;
        if (ioctl(r->fd, BLKGETSIZE64, &size) != 0)
            return err_set(e, errno, "ask for the size of '%s'", path);
        if (ioctl(r->fd, BLKPBSZGET, &physical) == 0 && is_pow2(physical))
            out->physical_size = physical;
    } else if (S_ISREG(st.st_mode)) {
        size = (uint64_t)st.st_size;
        out->physical_size = 4096;
    } else {
        return err_set(e, 0, "use '%s' as a disk: it is neither a file nor a block device", path);
    }
    if (r->is_direct)
        out->physical_size = MAX(out->physical_size, DIRECT_ALIGN);
    if (size < BLOCK_SECTOR)
        return err_set(e, 0, "use '%s' as a disk: it has less than one sector of 512 bytes", path);
    /* what does not fill a sector cannot be reached by a guest */
    out->size = size & ~(uint64_t)(BLOCK_SECTOR - 1);
    return 0;
}

int block_raw_open(const struct block_config *config, struct block_image *out, struct err *e)
{
    struct raw *r = calloc(1, sizeof(*r));
    int flags = (config->is_read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC |
                (config->cache == BLOCK_CACHE_NONE ? O_DIRECT : 0);

    if (r == NULL)
        return err_set(e, ENOMEM, "open the disk '%s'", config->path);
    r->is_direct = config->cache == BLOCK_CACHE_NONE;
    r->is_unsafe = config->cache == BLOCK_CACHE_UNSAFE;
    r->fd = open(config->path, flags);
    if (r->fd < 0) {
        int code = errno;
        free(r);
        if (code == EINVAL && config->cache == BLOCK_CACHE_NONE)
            return err_set(e, 0,
                           "open the disk '%s' past the page cache: its file system cannot; leave "
                           "cache=none out",
                           config->path);
        if ((code == EACCES || code == EROFS) && !config->is_read_only)
            return err_set(e, code, "open the disk '%s' for writing (with ',ro' it is only read)",
                           config->path);
        return err_set(e, code, "open the disk '%s'", config->path);
    }
    *out = (struct block_image){.format = &raw_format, .image = r, .physical_size = BLOCK_SECTOR};
    int rc = raw_measure(r, config->path, out, e);
    if (rc == 0)
        rc = block_lock(r->fd, config->path, config->is_read_only, e);
    if (rc != 0)
        raw_close(r);
    return rc;
}
