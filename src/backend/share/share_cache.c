/*
 * share_cache.c - what the guest may keep of a shared folder, and for how long
 *
 * Names and attributes: for as many seconds as the answer says. Data: until a file is opened and
 * the answer does not say "keep". In SHARE_CACHE_AUTO it says so when nobody has changed the file
 * since the guest emptied its cache of it, which is told by size and times, the change time above
 * all: no call sets that back.
 *
 * Invariant: while a file's stamp equals its inode's `kept`, what the guest has cached of the file
 * is what the file holds. `kept` is a stamp that was taken before the guest emptied its cache, and
 * is set once the guest has: it does so when it takes the answer to its OPEN, so a READ by that
 * handle says that it is done.
 *
 * A stamp counts only when the last change was a while ago: changes within a tick of the file
 * system's clock may have the same time.
 */
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>

#include "backend/share/share_impl.h"

/* Longer than a tick of file systems that count whole seconds. */
#define SETTLED_S 2

#define KEPT_S 86400u /* SHARE_CACHE_ALWAYS: a day */

uint32_t share_valid_s(const struct share *share)
{
    switch (share->config.cache) {
    case SHARE_CACHE_ALWAYS:
        return KEPT_S;
    case SHARE_CACHE_NEVER:
        return 0;
    default:
        return 1;
    }
}

static int64_t now_s(const struct share *share)
{
    return share->config.now_s != NULL ? share->config.now_s() : (int64_t)time(NULL);
}

/* False when it is too new to tell, or cannot be had. */
static bool take_stamp(const struct share *share, int fd, struct share_stamp *out)
{
    struct statx st;

    if (share_stat(fd, &st) != 0)
        return false;
    *out = (struct share_stamp){
        .size = st.stx_size,
        .mtime_s = st.stx_mtime.tv_sec,
        .ctime_s = st.stx_ctime.tv_sec,
        .mtime_ns = st.stx_mtime.tv_nsec,
        .ctime_ns = st.stx_ctime.tv_nsec,
    };
    return st.stx_ctime.tv_sec < now_s(share) - SETTLED_S;
}

static bool is_same(const struct share_stamp *a, const struct share_stamp *b)
{
    return a->size == b->size && a->mtime_s == b->mtime_s && a->mtime_ns == b->mtime_ns &&
           a->ctime_s == b->ctime_s && a->ctime_ns == b->ctime_ns;
}

/* May the guest keep what it has? If not, the file's first READ will say that it has not. */
static bool is_kept(struct share *share, struct share_file *file)
{
    struct share_stamp stamp;

    if (!take_stamp(share, file->fd, &stamp))
        return false;
    pthread_mutex_lock(&share->tables.lock);
    bool is_current = file->inode->has_kept && is_same(&file->inode->kept, &stamp);
    if (!is_current) {
        file->stamp = stamp;
        file->has_stamp = true;
    }
    pthread_mutex_unlock(&share->tables.lock);
    return is_current;
}

/*
 * Those of Linux whose files have no `flush`: all that closing a descriptor could say is said by
 * write. Network file systems write late and say at `close` what came of it.
 */
bool share_is_flushless(int fd)
{
    struct statfs st;

    if (fstatfs(fd, &st) != 0)
        return false;
    switch ((uint32_t)st.f_type) {
    case EXT4_SUPER_MAGIC:
    case XFS_SUPER_MAGIC:
    case BTRFS_SUPER_MAGIC:
    case F2FS_SUPER_MAGIC:
    case TMPFS_MAGIC:
        return true;
    default:
        return false;
    }
}

/* There is nothing that a FLUSH of the handle could do, so the guest need not send one. */
static bool is_flushless(const struct share *share, const struct share_file *file, uint32_t asked)
{
    if (share->has_locks) /* which it gives back */
        return false;
    return (asked & O_ACCMODE) == O_RDONLY ||
           (share->is_flushless && file->inode->dev == share->root_dev);
}

uint32_t share_cache_open(struct share *share, struct share_file *file, uint32_t asked, bool is_new)
{
    uint32_t flags = is_flushless(share, file, asked) ? FOPEN_NOFLUSH : 0;

    switch (share->config.cache) {
    case SHARE_CACHE_ALWAYS:
        return flags | FOPEN_KEEP_CACHE;
    case SHARE_CACHE_NEVER:
        return flags | FOPEN_DIRECT_IO;
    default:
        /* what O_TRUNC takes away is no reason to ask, nor what nobody has read yet */
        if (!is_new && !(asked & O_TRUNC) && is_kept(share, file))
            flags |= FOPEN_KEEP_CACHE;
        return flags;
    }
}

uint32_t share_cache_opendir(const struct share *share)
{
    return share->config.cache == SHARE_CACHE_ALWAYS ? FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE : 0;
}

void share_cache_read(struct share *share, struct share_file *file)
{
    if (!__atomic_load_n(&file->has_stamp, __ATOMIC_RELAXED))
        return;
    pthread_mutex_lock(&share->tables.lock);
    if (file->has_stamp) {
        __atomic_store_n(&file->has_stamp, false, __ATOMIC_RELAXED);
        file->inode->kept = file->stamp;
        file->inode->has_kept = true;
    }
    pthread_mutex_unlock(&share->tables.lock);
}
