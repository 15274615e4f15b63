/*
 * file.c - stores that are a file or a block device of the host
 *
 * With O_DIRECT, buffers that are not aligned as the file wants go through one that is. What is
 * written around then is read first, under a lock: two such writes may touch one block.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/block/store.h"
#include "base/bits.h"
#include "base/log.h"

#define DIRECT_ALIGN 4096u
#define IOV_STEP 64u

struct file {
    struct store store;
    struct store_file host;
    bool is_device;
    bool is_direct;
    pthread_mutex_t around_lock; /* over reading, changing and writing what lies around */
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
static int transfer_some(const struct file *f, bool is_write, uint64_t offset, struct iovec *iov,
                         unsigned count)
{
    while (count > 0) {
        ssize_t n = is_write ? pwritev(f->host.fd, iov, (int)count, (off_t)offset)
                             : preadv(f->host.fd, iov, (int)count, (off_t)offset);
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

/*
 * Through a buffer that starts and ends on aligned places. For writing, what lies around is read
 * first: disks under O_DIRECT say that their unit is DIRECT_ALIGN, so this is rare.
 */
static int transfer_bounced(struct file *f, bool is_write, uint64_t offset, uint64_t size,
                            const struct iovec *iov, unsigned count)
{
    uint64_t from = align_down(offset, DIRECT_ALIGN);
    uint64_t to = align_up(offset + size, DIRECT_ALIGN);
    bool is_around = is_write && (from != offset || to != offset + size);
    uint8_t *bounce = aligned_alloc(DIRECT_ALIGN, to - from);
    struct iovec all = {.iov_base = bounce, .iov_len = to - from};
    int rc = 0;

    if (bounce == NULL)
        return -ENOMEM;
    if (is_around)
        pthread_mutex_lock(&f->around_lock);
    if (!is_write || is_around)
        rc = transfer_some(f, false, from, &all, 1);
    if (rc == 0 && !is_write)
        iov_scatter(bounce + (offset - from), iov, count);
    if (rc == 0 && is_write) {
        iov_gather(bounce + (offset - from), iov, count);
        all = (struct iovec){.iov_base = bounce, .iov_len = to - from};
        rc = transfer_some(f, true, from, &all, 1);
    }
    if (is_around)
        pthread_mutex_unlock(&f->around_lock);
    free(bounce);
    return rc;
}

static int file_transfer(struct store *store, bool is_write, uint64_t offset, uint64_t size,
                         const struct iovec *iov, unsigned count)
{
    struct file *f = CONTAINER_OF(store, struct file, store);
    struct iovec some[IOV_STEP];

    if (f->is_direct && (!is_aligned(iov, count) || (offset & (DIRECT_ALIGN - 1))))
        return transfer_bounced(f, is_write, offset, size, iov, count);
    while (count > 0) {
        unsigned n = MIN(count, IOV_STEP);
        uint64_t bytes = 0;
        for (unsigned i = 0; i < n; i++)
            bytes += iov[i].iov_len;
        memcpy(some, iov, n * sizeof(*iov));
        int rc = transfer_some(f, is_write, offset, some, n);
        if (rc != 0)
            return rc;
        iov += n;
        count -= n;
        offset += bytes;
    }
    return 0;
}

static int file_flush(struct store *store)
{
    struct file *f = CONTAINER_OF(store, struct file, store);
    int rc;

    if (f->host.ignores_flushes)
        return 0;
    do
        rc = fdatasync(f->host.fd) == 0 ? 0 : -errno;
    while (rc == -EINTR);
    return store_file_flushed(&f->host, rc);
}

int store_file_flushed(struct store_file *file, int result)
{
    int none = 0;

    if (result != 0 && atomic_compare_exchange_strong(&file->lost, &none, result))
        log_error("a disk's flush failed (%s): what the guest wrote may be lost, and its flushes "
                  "fail from now on",
                  strerror(-result));
    return atomic_load(&file->lost);
}

static int punch(const struct file *f, uint64_t offset, uint64_t size)
{
    uint64_t range[2] = {offset, size};

    if (f->is_device)
        return ioctl(f->host.fd, BLKDISCARD, range) == 0 ? 0 : -errno;
    return fallocate(f->host.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                     (off_t)size) == 0
               ? 0
               : -errno;
}

static int file_discard(struct store *store, uint64_t offset, uint64_t size)
{
    int rc = punch(CONTAINER_OF(store, struct file, store), offset, size);

    /* a hint that the host cannot take is no failure */
    return rc == -EOPNOTSUPP || rc == -ENOSYS || rc == -EINVAL ? 0 : rc;
}

static int file_write_zeroes(struct store *store, uint64_t offset, uint64_t size, bool may_unmap)
{
    const struct file *f = CONTAINER_OF(store, struct file, store);
    uint64_t range[2] = {offset, size};
    int rc = -EOPNOTSUPP;

    if (f->is_device)
        rc = ioctl(f->host.fd, BLKZEROOUT, range) == 0 ? 0 : -errno;
    else if (may_unmap) /* a hole reads as zeroes */
        rc = punch(f, offset, size);
    else if (fallocate(f->host.fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                       (off_t)size) == 0)
        rc = 0;
    return rc == 0 ? 0 : store_write_zero_data(store, offset, size);
}

/* Holes of a file. The end of one is where data starts, or the file's end. */
static int file_map(struct store *store, uint64_t offset, uint64_t *size, bool *is_zero)
{
    const struct file *f = CONTAINER_OF(store, struct file, store);

    *is_zero = false;
    if (f->is_device)
        return 0;
    off_t data = lseek(f->host.fd, (off_t)offset, SEEK_DATA);
    if (data < 0 && errno == ENXIO) { /* none: a hole to the end, or behind it */
        *is_zero = true;
        return 0;
    }
    if (data < 0)
        return errno == EINVAL || errno == EOPNOTSUPP ? 0 : -errno;
    if ((uint64_t)data > offset) {
        *is_zero = true;
        *size = MIN(*size, (uint64_t)data - offset);
        return 0;
    }
    off_t hole = lseek(f->host.fd, (off_t)offset, SEEK_HOLE);
    if (hole > (off_t)offset)
        *size = MIN(*size, (uint64_t)hole - offset);
    return 0;
}

static int file_length(struct store *store, uint64_t *out)
{
    const struct file *f = CONTAINER_OF(store, struct file, store);
    struct stat st;

    if (f->is_device)
        return ioctl(f->host.fd, BLKGETSIZE64, out) == 0 ? 0 : -errno;
    if (fstat(f->host.fd, &st) != 0)
        return -errno;
    *out = (uint64_t)st.st_size;
    return 0;
}

static int file_resize(struct store *store, uint64_t size)
{
    const struct file *f = CONTAINER_OF(store, struct file, store);

    if (f->is_device)
        return -EOPNOTSUPP;
    if (size > INT64_MAX)
        return -EFBIG;
    return ftruncate(f->host.fd, (off_t)size) == 0 ? 0 : -errno;
}

static int file_allocate(struct store *store, uint64_t offset, uint64_t size)
{
    const struct file *f = CONTAINER_OF(store, struct file, store);

    if (f->is_device)
        return 0;
    return fallocate(f->host.fd, 0, (off_t)offset, (off_t)size) == 0 ? 0 : -errno;
}

static void file_close(struct store *store)
{
    struct file *f = CONTAINER_OF(store, struct file, store);

    if (f->host.fd >= 0)
        close(f->host.fd);
    pthread_mutex_destroy(&f->around_lock);
    free(f);
}

static const struct store_ops file_ops = {
    .transfer = file_transfer,
    .flush = file_flush,
    .discard = file_discard,
    .write_zeroes = file_write_zeroes,
    .map = file_map,
    .length = file_length,
    .resize = file_resize,
    .allocate = file_allocate,
    .close = file_close,
};

/* ---- opening ---- */

static struct file *file_new(void)
{
    struct file *f = calloc(1, sizeof(*f));

    if (f == NULL)
        return NULL;
    f->store.ops = &file_ops;
    f->store.file = &f->host;
    f->store.physical_size = BLOCK_SECTOR;
    f->host.fd = -1;
    pthread_mutex_init(&f->around_lock, NULL);
    return f;
}

static int file_measure(struct file *f, const char *path, struct err *e)
{
    struct stat st;

    if (fstat(f->host.fd, &st) != 0)
        return err_set(e, errno, "look at '%s'", path);
    if (S_ISBLK(st.st_mode)) {
        unsigned physical = 0;
        f->is_device = true;
        if (ioctl(f->host.fd, BLKGETSIZE64, &f->store.size) != 0)
            return err_set(e, errno, "ask for the size of '%s'", path);
        if (ioctl(f->host.fd, BLKPBSZGET, &physical) == 0 && is_pow2(physical))
            f->store.physical_size = MAX(physical, BLOCK_SECTOR);
    } else if (S_ISREG(st.st_mode)) {
        f->store.size = (uint64_t)st.st_size;
        f->store.physical_size = 4096;
        f->store.grows_zeroed = true;
    } else {
        return err_set(e, 0, "use '%s' as a disk: it is neither a file nor a block device", path);
    }
    f->host.has_fallocate = !f->is_device;
    f->host.align = f->is_direct ? DIRECT_ALIGN : 1;
    if (f->is_direct)
        f->store.physical_size = MAX(f->store.physical_size, DIRECT_ALIGN);
    return 0;
}

static int explain_open(const struct store_config *config, int code, struct err *e)
{
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

int store_open_file(const struct store_config *config, struct store **out, struct err *e)
{
    struct file *f = file_new();
    /* O_NONBLOCK: a name may turn out to be a pipe; it changes nothing for what is accepted */
    int flags = (config->is_read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK |
                (config->cache == BLOCK_CACHE_NONE ? O_DIRECT : 0);

    if (f == NULL)
        return err_set(e, ENOMEM, "open the disk '%s'", config->path);
    f->is_direct = config->cache == BLOCK_CACHE_NONE;
    f->host.ignores_flushes = config->cache == BLOCK_CACHE_UNSAFE;
    f->store.is_read_only = config->is_read_only;
    f->host.fd = open(config->path, flags);
    int rc = f->host.fd >= 0 ? file_measure(f, config->path, e) : explain_open(config, errno, e);
    if (rc == 0 && !config->is_unlocked)
        rc = store_lock(f->host.fd, config->path, config->is_read_only, e);
    if (rc != 0) {
        file_close(&f->store);
        return rc;
    }
    *out = &f->store;
    return 0;
}

int store_create_file(const char *path, bool may_replace, struct store **out, struct err *e)
{
    struct file *f = file_new();
    struct stat st;
    int rc;

    if (f == NULL)
        return err_set(e, ENOMEM, "make '%s'", path);
    f->host.fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (f->host.fd < 0 && errno == EEXIST) {
        bool is_device = stat(path, &st) == 0 && S_ISBLK(st.st_mode);
        if (!may_replace && !is_device) {
            file_close(&f->store);
            return err_set(e, EEXIST, "make '%s' (--force replaces what is there)", path);
        }
        f->host.fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    }
    rc = f->host.fd >= 0 ? file_measure(f, path, e) : err_set(e, errno, "make '%s'", path);
    if (rc == 0)
        rc = store_lock(f->host.fd, path, false, e);
    /* only now is it sure that nobody uses it */
    if (rc == 0 && !f->is_device && ftruncate(f->host.fd, 0) != 0)
        rc = err_set(e, errno, "empty '%s'", path);
    if (rc != 0) {
        file_close(&f->store);
        return rc;
    }
    if (!f->is_device)
        f->store.size = 0;
    *out = &f->store;
    return 0;
}

int store_open_temporary(struct store **out, struct err *e)
{
    const char *folder = getenv("TMPDIR");
    char path[PATH_MAX];
    struct file *f = file_new();

    if (folder == NULL || folder[0] == '\0')
        folder = "/var/tmp";
    if (f == NULL)
        return err_set(e, ENOMEM, "make a temporary file in '%s'", folder);
    f->host.ignores_flushes = true;
    f->host.fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC | O_EXCL, 0600);
    if (f->host.fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == ENOENT) &&
        snprintf(path, sizeof(path), "%s/doppel-XXXXXX", folder) < (int)sizeof(path)) {
        f->host.fd = mkostemp(path, O_CLOEXEC); /* a file system without O_TMPFILE */
        if (f->host.fd >= 0)
            unlink(path);
    }
    int rc =
        f->host.fd >= 0
            ? file_measure(f, folder, e)
            : err_set(e, errno, "make a temporary file in '%s' ($TMPDIR names another)", folder);
    if (rc != 0) {
        file_close(&f->store);
        return rc;
    }
    *out = &f->store;
    return 0;
}
