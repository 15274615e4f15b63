/*
 * lock.c - an image in use is locked against use by somebody else
 *
 * Open file description locks on single bytes of the file, which no reader or writer of data ever
 * notices. Byte 100 + p says "I use permission p", byte 200 + p "nobody else may use p"; the
 * permissions of interest are writing (1) and resizing (3). Both are taken as read locks, so that
 * holders of the same wish do not collide, and tested for as write locks. The numbers are those of
 * QEMU's image locking, which takes part in this way.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "backend/block/store.h"
#include "base/bits.h"

#define USED_BASE 100
#define DENIED_BASE 200

enum { PERM_READ = 0, PERM_WRITE = 1, PERM_RESIZE = 3 };

static int lock_byte(int fd, off_t at)
{
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = at, .l_len = 1};

    return fcntl(fd, F_OFD_SETLK, &lock) == 0 ? 0 : -errno;
}

/* Does another open file hold the byte? */
static bool is_held(int fd, off_t at)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = at, .l_len = 1};

    return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

static int in_use(const char *path, const char *why, struct err *e)
{
    return err_set(e, EBUSY, "lock '%s' (%s; a copy, or a read-only use by all, would be possible)",
                   path, why);
}

int store_lock(int fd, const char *path, bool is_read_only, struct err *e)
{
    static const unsigned perms[] = {PERM_WRITE, PERM_RESIZE};
    int rc = lock_byte(fd, USED_BASE + PERM_READ);

    for (unsigned i = 0; rc == 0 && i < ARRAY_SIZE(perms); i++) {
        if (!is_read_only)
            rc = lock_byte(fd, USED_BASE + (off_t)perms[i]);
        if (rc == 0)
            rc = lock_byte(fd, DENIED_BASE + (off_t)perms[i]);
    }
    /* A lock for writing, which neither QEMU nor doppel ever holds. */
    if (rc == -EAGAIN || rc == -EACCES)
        return in_use(path, "another program keeps it for itself", e);
    if (rc != 0)
        return err_set(e, -rc, "lock '%s'", path);
    /* Taken before looking: of two that start at once, at least one sees the other. */
    for (unsigned i = 0; i < ARRAY_SIZE(perms); i++) {
        if (is_held(fd, USED_BASE + (off_t)perms[i]))
            return in_use(path, "another program writes to it", e);
        if (!is_read_only && is_held(fd, DENIED_BASE + (off_t)perms[i]))
            return in_use(path, "another program uses it", e);
    }
    return 0;
}
