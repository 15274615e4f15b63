/*
 * share_attrs.c - FUSE operations on attributes
 *
 * Descriptors here are O_PATH: what has no call for such goes by their name in /proc/self/fd, which
 * leads to the file itself and nowhere else.
 *
 * Extended attributes are those of "user."; the others mean something to the host ("trusted.",
 * "security.", access control lists), and the guest's would not be theirs.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "backend/share/share_impl.h"
#include "base/bits.h"

void share_fill_attr(const struct statx *st, struct fuse_attr *attr)
{
    *attr = (struct fuse_attr){
        .ino = st->stx_ino,
        .size = st->stx_size,
        .blocks = st->stx_blocks,
        .atime = (uint64_t)st->stx_atime.tv_sec,
        .mtime = (uint64_t)st->stx_mtime.tv_sec,
        .ctime = (uint64_t)st->stx_ctime.tv_sec,
        .atimensec = st->stx_atime.tv_nsec,
        .mtimensec = st->stx_mtime.tv_nsec,
        .ctimensec = st->stx_ctime.tv_nsec,
        .mode = st->stx_mode,
        .nlink = st->stx_nlink,
        .uid = st->stx_uid,
        .gid = st->stx_gid,
        /* as the kernel's new_encode_dev */
        .rdev = (st->stx_rdev_minor & 0xff) | (st->stx_rdev_major << 8) |
                ((st->stx_rdev_minor & ~0xffu) << 12),
        .blksize = st->stx_blksize,
    };
}

static int answer_attr(struct share_call *c, const struct share_inode *inode)
{
    struct fuse_attr_out *out = (void *)c->reply;
    struct statx st;
    int rc = share_stat(inode->fd, &st);

    if (rc != 0)
        return rc;
    *out = (struct fuse_attr_out){.attr_valid = share_valid_s(c->share)};
    share_fill_attr(&st, &out->attr);
    c->reply_size = sizeof(*out);
    return 0;
}

int share_getattr(struct share_call *c, struct share_inode *inode)
{
    return answer_attr(c, inode);
}

/* ---- setting; one thing each, as SETATTR asks for it ---- */

static int set_mode(const struct share_call *c, const struct share_inode *inode, uint32_t mode)
{
    char name[SHARE_FD_NAME];

    if (inode->type == S_IFLNK)
        return -EOPNOTSUPP;
    share_fd_name(inode->fd, name);
    return fchmodat(c->share->proc_fd, name, mode & 07777, 0) == 0 ? 0 : -errno;
}

static int set_owner(const struct share_inode *inode, const struct fuse_setattr_in *in)
{
    uid_t uid = in->valid & FATTR_UID ? in->uid : (uid_t)-1;
    gid_t gid = in->valid & FATTR_GID ? in->gid : (gid_t)-1;

    return fchownat(inode->fd, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) == 0 ? 0 : -errno;
}

static int truncate_to(const struct share_call *c, const struct share_inode *inode,
                       const struct fuse_setattr_in *in)
{
    struct share_file *file = NULL;
    int fd;

    if (in->size > INT64_MAX)
        return -EFBIG;
    if (in->valid & FATTR_FH) {
        file = share_file_get(&c->share->tables, in->fh, inode->id);
        if (file == NULL)
            return -EBADF;
        fd = file->fd;
    } else {
        fd = share_reopen(c->share, inode, O_WRONLY);
        if (fd < 0)
            return fd;
    }
    int rc = in->valid & FATTR_KILL_SUIDGID ? share_creds_drop_fsetid(c) : 0;
    if (rc == 0)
        rc = ftruncate(fd, (off_t)in->size) == 0 ? 0 : -errno;
    if (in->valid & FATTR_KILL_SUIDGID)
        share_creds_regain_fsetid(c);
    if (file != NULL)
        share_file_put(&c->share->tables, file);
    else
        close(fd);
    return rc;
}

static struct timespec make_time(uint32_t valid, uint32_t set, uint32_t now, uint64_t s,
                                 uint32_t ns)
{
    if (valid & now)
        return (struct timespec){.tv_nsec = UTIME_NOW};
    if (!(valid & set))
        return (struct timespec){.tv_nsec = UTIME_OMIT};
    /* more than a second's is refused by the host's kernel, but for its two special values */
    return (struct timespec){.tv_sec = (time_t)s, .tv_nsec = (long)MIN(ns, 1000000000u)};
}

static int set_times(const struct share_call *c, const struct share_inode *inode,
                     const struct fuse_setattr_in *in)
{
    const struct timespec times[2] = {
        make_time(in->valid, FATTR_ATIME, FATTR_ATIME_NOW, in->atime, in->atimensec),
        make_time(in->valid, FATTR_MTIME, FATTR_MTIME_NOW, in->mtime, in->mtimensec),
    };
    char name[SHARE_FD_NAME];

    share_fd_name(inode->fd, name);
    return utimensat(c->share->proc_fd, name, times, 0) == 0 ? 0 : -errno;
}

int share_setattr(struct share_call *c, struct share_inode *inode)
{
    const struct fuse_setattr_in *in = (const void *)c->args;
    int rc = 0;

    if (in->valid & FATTR_MODE)
        rc = set_mode(c, inode, in->mode);
    if (rc == 0 && (in->valid & (FATTR_UID | FATTR_GID)))
        rc = set_owner(inode, in);
    if (rc == 0 && (in->valid & FATTR_SIZE))
        rc = truncate_to(c, inode, in);
    if (rc == 0 && (in->valid & (FATTR_ATIME | FATTR_MTIME | FATTR_ATIME_NOW | FATTR_MTIME_NOW)))
        rc = set_times(c, inode, in);
    return rc == 0 ? answer_attr(c, inode) : rc;
}

/* ---- the rest ---- */

int share_access(struct share_call *c, struct share_inode *inode)
{
    const struct fuse_access_in *in = (const void *)c->args;
    char name[SHARE_FD_NAME];

    if (in->mask & ~(uint32_t)(R_OK | W_OK | X_OK))
        return -EINVAL;
    if ((in->mask & W_OK) && c->share->config.is_read_only)
        return -EROFS;
    share_fd_name(inode->fd, name);
    return faccessat(c->share->proc_fd, name, (int)in->mask, 0) == 0 ? 0 : -errno;
}

int share_statfs(struct share_call *c, struct share_inode *inode)
{
    struct fuse_statfs_out *out = (void *)c->reply;
    struct statvfs st;

    if (fstatvfs(inode->fd, &st) != 0)
        return -errno;
    *out = (struct fuse_statfs_out){.st = {
                                        .blocks = st.f_blocks,
                                        .bfree = st.f_bfree,
                                        .bavail = st.f_bavail,
                                        .files = st.f_files,
                                        .ffree = st.f_ffree,
                                        .bsize = (uint32_t)st.f_bsize,
                                        .namelen = (uint32_t)st.f_namemax,
                                        .frsize = (uint32_t)st.f_frsize,
                                    }};
    c->reply_size = sizeof(*out);
    return 0;
}

int share_syncfs(struct share_call *c, struct share_inode *inode)
{
    int fd = share_reopen(c->share, inode, O_RDONLY);

    if (fd < 0)
        return fd;
    int rc = syncfs(fd) == 0 ? 0 : -errno;
    close(fd);
    return rc;
}

/* ---- extended attributes ---- */

#define XATTR_PREFIX "user."

/* Calls for extended attributes take a path or a descriptor that is open, which a FIFO's never is.
 */
static void xattr_path(const struct share_inode *inode, char path[40])
{
    snprintf(path, 40, "/proc/self/fd/%d", inode->fd);
}

static bool is_xattr_shared(const struct share_inode *inode, const char *name)
{
    return (inode->type == S_IFREG || inode->type == S_IFDIR) &&
           strncmp(name, XATTR_PREFIX, strlen(XATTR_PREFIX)) == 0;
}

int share_setxattr(struct share_call *c, struct share_inode *inode)
{
    const struct fuse_setxattr_in *in = (const void *)c->args;
    char path[40];

    c->taken = FUSE_COMPAT_SETXATTR_IN_SIZE;
    const char *name = share_take_text(c);
    if (name == NULL || in->size != c->args_size - c->taken ||
        (in->flags & ~(uint32_t)(XATTR_CREATE | XATTR_REPLACE)))
        return -EINVAL;
    if (!is_xattr_shared(inode, name))
        return -EOPNOTSUPP;
    xattr_path(inode, path);
    return setxattr(path, name, c->args + c->taken, in->size, (int)in->flags) == 0 ? 0 : -errno;
}

/* `n`: what the host said, for a question about the size, or about the value. */
static int answer_xattr(struct share_call *c, uint32_t size, ssize_t n)
{
    if (n < 0)
        return -errno;
    if (size == 0) {
        *(struct fuse_getxattr_out *)c->reply = (struct fuse_getxattr_out){.size = (uint32_t)n};
        n = sizeof(struct fuse_getxattr_out);
    } else if ((size_t)n > size) {
        return -ERANGE;
    }
    c->reply_size = (size_t)n;
    return 0;
}

int share_getxattr(struct share_call *c, struct share_inode *inode)
{
    const struct fuse_getxattr_in *in = (const void *)c->args;
    char path[40];

    c->taken = sizeof(*in);
    const char *name = share_take_text(c);
    if (name == NULL)
        return -EINVAL;
    if (!is_xattr_shared(inode, name))
        return -EOPNOTSUPP;
    xattr_path(inode, path);
    return answer_xattr(c, in->size, getxattr(path, name, c->reply, sizeof(c->reply)));
}

int share_listxattr(struct share_call *c, struct share_inode *inode)
{
    const struct fuse_getxattr_in *in = (const void *)c->args;
    char *names = (char *)c->reply, *to = names;
    char path[40];

    if (inode->type != S_IFREG && inode->type != S_IFDIR)
        return answer_xattr(c, in->size, 0);
    xattr_path(inode, path);
    ssize_t n = listxattr(path, names, sizeof(c->reply));
    if (n < 0)
        return -errno;
    for (const char *from = names; from < names + n;) {
        size_t len = strnlen(from, (size_t)(names + n - from)) + 1;
        if (is_xattr_shared(inode, from)) {
            memmove(to, from, len);
            to += len;
        }
        from += len;
    }
    return answer_xattr(c, in->size, to - names);
}

int share_removexattr(struct share_call *c, struct share_inode *inode)
{
    const char *name = share_take_text(c);
    char path[40];

    if (name == NULL)
        return -EINVAL;
    if (!is_xattr_shared(inode, name))
        return -EOPNOTSUPP;
    xattr_path(inode, path);
    return removexattr(path, name) == 0 ? 0 : -errno;
}
