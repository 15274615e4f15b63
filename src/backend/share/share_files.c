/*
 * share_files.c - FUSE operations on open files
 *
 * A file is opened anew from the descriptor that stands for it, and only if it is a file or a
 * folder: opening a device or a FIFO can block, or act. Data goes straight from and to the
 * guest's memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backend/share/share_impl.h"
#include "base/bits.h"

/* One request occupies a thread no longer than a copy of that takes; the guest goes on from there.
 */
#define COPY_MAX (UINT64_C(64) << 20)

void share_fd_name(int fd, char name[SHARE_FD_NAME])
{
    snprintf(name, SHARE_FD_NAME, "%d", fd);
}

int share_reopen(const struct share *share, const struct share_inode *inode, int flags)
{
    char name[SHARE_FD_NAME];

    if (inode->type != S_IFREG && inode->type != S_IFDIR)
        return -ENXIO;
    share_fd_name(inode->fd, name);
    int fd = openat(share->proc_fd, name, flags | O_CLOEXEC | O_NOCTTY);
    return fd < 0 ? -errno : fd;
}

/*
 * Of what the guest asks for: not O_DIRECT, whose alignment its buffers need not have. When it
 * writes from its page cache, it reads pages that it writes to in part, and knows itself where the
 * end is.
 */
static int open_flags(const struct share *share, uint32_t asked)
{
    int flags = (int)(asked & (O_ACCMODE | O_APPEND | O_TRUNC | O_SYNC));

    if (!share->is_write_late)
        return flags;
    if ((flags & O_ACCMODE) == O_WRONLY)
        flags = (flags & ~O_ACCMODE) | O_RDWR;
    return flags & ~O_APPEND;
}

static bool is_write(uint32_t asked)
{
    return (asked & O_ACCMODE) != O_RDONLY || (asked & O_TRUNC);
}

/* Takes `fd` over; fills *out. */
static int add_file(struct share_call *c, struct share_inode *inode, int fd, uint32_t asked,
                    bool is_new, struct fuse_open_out *out)
{
    struct share_tables *tables = &c->share->tables;

    *out = (struct fuse_open_out){0};
    int rc = share_file_add(tables, inode, fd, &out->fh);
    struct share_file *file = rc == 0 ? share_file_get(tables, out->fh, inode->id) : NULL;
    if (file == NULL) /* not there: released by a guess */
        return rc;
    out->open_flags = share_cache_open(c->share, file, asked, is_new);
    share_file_put(tables, file);
    return 0;
}

static int open_inode(struct share_call *c, struct share_inode *inode, uint32_t asked, uint32_t how,
                      struct fuse_open_out *out)
{
    bool kills = (how & FUSE_OPEN_KILL_SUIDGID) != 0;

    if (inode->type != S_IFREG)
        return inode->type == S_IFDIR ? -EISDIR : -ENXIO;
    if (c->share->config.is_read_only && is_write(asked))
        return -EROFS;
    int fd = kills ? share_creds_drop_fsetid(c) : 0;
    if (fd == 0)
        fd = share_reopen(c->share, inode, open_flags(c->share, asked));
    /* one that may be written, but not read */
    if (fd == -EACCES && (asked & O_ACCMODE) == O_WRONLY && c->share->is_write_late)
        fd = share_reopen(c->share, inode, (int)(asked & (O_ACCMODE | O_TRUNC | O_SYNC)));
    if (kills)
        share_creds_regain_fsetid(c);
    return fd < 0 ? fd : add_file(c, inode, fd, asked, false, out);
}

int share_open_file(struct share_call *c, struct share_inode *inode)
{
    const struct fuse_open_in *in = (const void *)c->args;

    c->reply_size = sizeof(struct fuse_open_out);
    return open_inode(c, inode, in->flags, in->open_flags, (struct fuse_open_out *)c->reply);
}

/* ---- CREATE ---- */

/* A file that was not there before: 0, or -EEXIST, or another error. */
static int make_file(struct share_call *c, struct share_inode *parent, const char *name,
                     struct fuse_entry_out *entry, struct fuse_open_out *out)
{
    const struct fuse_create_in *in = (const void *)c->args;
    char fd_name[SHARE_FD_NAME];
    int rc = share_creds_enter(c, in->umask);

    if (rc != 0)
        return rc;
    int fd = share_open_name(parent->fd, name,
                             open_flags(c->share, in->flags) | O_CREAT | O_EXCL | O_NOCTTY,
                             in->mode & 07777);
    share_creds_leave(c);
    if (fd < 0)
        return fd;
    /* by the open file, not by the name, which may be another's by now */
    share_fd_name(fd, fd_name);
    int path_fd = openat(c->share->proc_fd, fd_name, O_PATH | O_CLOEXEC);
    rc = path_fd < 0 ? -errno : share_enter_fd(c, parent, path_fd, entry);
    if (rc != 0) {
        close(fd);
        return rc;
    }
    struct share_inode *inode = share_inode_get(&c->share->tables, entry->nodeid);
    if (inode == NULL) { /* forgotten by a guess */
        close(fd);
        return -ESTALE;
    }
    rc = add_file(c, inode, fd, in->flags, true, out);
    share_inode_put(&c->share->tables, inode);
    if (rc != 0) /* the guest will not hear of its number */
        share_inode_forget(&c->share->tables, entry->nodeid, 1);
    return rc;
}

static int open_name(struct share_call *c, struct share_inode *parent, const char *name,
                     struct fuse_entry_out *entry, struct fuse_open_out *out)
{
    const struct fuse_create_in *in = (const void *)c->args;
    int rc = share_lookup_name(c, parent, name, entry);

    if (rc != 0)
        return rc;
    struct share_inode *inode = share_inode_get(&c->share->tables, entry->nodeid);
    rc = inode == NULL ? -ESTALE : open_inode(c, inode, in->flags, in->open_flags, out);
    if (inode != NULL)
        share_inode_put(&c->share->tables, inode);
    if (rc != 0)
        share_inode_forget(&c->share->tables, entry->nodeid, 1);
    return rc;
}

int share_create(struct share_call *c, struct share_inode *parent)
{
    const struct fuse_create_in *in = (const void *)c->args;
    struct fuse_entry_out *entry = (void *)c->reply;
    struct fuse_open_out *out = (void *)(entry + 1);
    int rc = -EEXIST;

    c->taken = sizeof(*in);
    const char *name = share_take_name(c);
    if (name == NULL)
        return -EINVAL;
    if (parent->type != S_IFDIR)
        return -ENOTDIR;
    c->reply_size = sizeof(*entry) + sizeof(*out);
    if (!c->share->config.is_read_only)
        rc = make_file(c, parent, name, entry, out);
    if (rc == -EEXIST && !(in->flags & O_EXCL))
        rc = open_name(c, parent, name, entry, out);
    return rc == -ENOENT && c->share->config.is_read_only ? -EROFS : rc;
}

int share_release(struct share_call *c, struct share_inode *inode)
{
    const struct fuse_release_in *in = (const void *)c->args;
    struct share_tables *tables = &c->share->tables;

    if (!c->share->has_locks)
        return share_file_release(tables, in->fh, inode->id) ? 0 : -EBADF;
    struct share_file *file = share_file_get(tables, in->fh, inode->id);
    if (file == NULL)
        return -EBADF;
    share_file_release(tables, in->fh, inode->id);
    share_locks_release(c->share, file, (in->release_flags & FUSE_RELEASE_FLOCK_UNLOCK) != 0);
    share_file_put(tables, file);
    return 0;
}

/* ---- data ---- */

/* preadv or pwritev of [offset, offset + size) of the request's pieces. */
static ssize_t transfer(struct share_call *c, const struct share_file *file, bool is_writing,
                        uint64_t position, uint64_t at, uint64_t size)
{
    const struct share_request *r = c->request;
    struct iovec iov[SHARE_IOV_MAX];
    ssize_t n;

    unsigned count = is_writing ? share_iov_cut(iov, r->in, r->in_count, at, size)
                                : share_iov_cut(iov, r->out, r->out_count, at, size);
    do
        n = is_writing ? pwritev(file->fd, iov, (int)count, (off_t)position)
                       : preadv(file->fd, iov, (int)count, (off_t)position);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

int share_read(struct share_call *c, struct share_inode *inode)
{
    const struct fuse_read_in *in = (const void *)c->args;
    uint64_t room = c->request->out_size - sizeof(struct fuse_out_header);
    struct share_file *file = share_file_get(&c->share->tables, in->fh, inode->id);

    if (file == NULL)
        return -EBADF;
    share_cache_read(c->share, file);
    ssize_t n = -EINVAL;
    if (in->offset <= INT64_MAX)
        n = transfer(c, file, false, in->offset, sizeof(struct fuse_out_header),
                     MIN(in->size, room));
    share_file_put(&c->share->tables, file);
    if (n < 0)
        return (int)n;
    c->is_direct = true;
    c->reply_size = (size_t)n;
    return 0;
}

int share_write(struct share_call *c, struct share_inode *inode)
{
    const struct fuse_write_in *in = (const void *)c->args;
    uint64_t at = sizeof(*c->header) + sizeof(*in);
    bool kills = (in->write_flags & FUSE_WRITE_KILL_SUIDGID) != 0;

    if (in->size != c->request->in_size - at || in->offset > INT64_MAX)
        return -EINVAL;
    struct share_file *file = share_file_get(&c->share->tables, in->fh, inode->id);
    if (file == NULL)
        return -EBADF;
    ssize_t n = kills ? share_creds_drop_fsetid(c) : 0;
    if (n == 0)
        n = transfer(c, file, true, in->offset, at, in->size);
    if (kills)
        share_creds_regain_fsetid(c);
    share_file_put(&c->share->tables, file);
    if (n < 0)
        return (int)n;
    *(struct fuse_write_out *)c->reply = (struct fuse_write_out){.size = (uint32_t)n};
    c->reply_size = sizeof(struct fuse_write_out);
    return 0;
}

/* What a file system has to say when one of several descriptors is closed (NFS: what failed). */
int share_flush(struct share_call *c, struct share_inode *inode)
{
    const struct fuse_flush_in *in = (const void *)c->args;
    struct share_file *file = share_file_get(&c->share->tables, in->fh, inode->id);

    if (file == NULL)
        return -EBADF;
    if (c->share->has_locks)
        share_locks_flush(c->share, inode, in->lock_owner);
    int fd = fcntl(file->fd, F_DUPFD_CLOEXEC, 0);
    int rc = fd < 0 ? -errno : close(fd) == 0 ? 0 : -errno;
    share_file_put(&c->share->tables, file);
    return rc;
}

int share_fsync(struct share_call *c, struct share_inode *inode)
{
    const struct fuse_fsync_in *in = (const void *)c->args;
    struct share_file *file = share_file_get(&c->share->tables, in->fh, inode->id);

    if (file == NULL)
        return -EBADF;
    bool is_data_only = in->fsync_flags & FUSE_FSYNC_FDATASYNC;
    int rc = (is_data_only ? fdatasync(file->fd) : fsync(file->fd)) == 0 ? 0 : -errno;
    share_file_put(&c->share->tables, file);
    return rc;
}

int share_fallocate(struct share_call *c, struct share_inode *inode)
{
    const struct fuse_fallocate_in *in = (const void *)c->args;

    if (in->offset > INT64_MAX || in->length > INT64_MAX)
        return -EINVAL;
    struct share_file *file = share_file_get(&c->share->tables, in->fh, inode->id);
    if (file == NULL)
        return -EBADF;
    int rc =
        fallocate(file->fd, (int)in->mode, (off_t)in->offset, (off_t)in->length) == 0 ? 0 : -errno;
    share_file_put(&c->share->tables, file);
    return rc;
}

int share_lseek(struct share_call *c, struct share_inode *inode)
{
    const struct fuse_lseek_in *in = (const void *)c->args;

    if (in->whence != SEEK_DATA && in->whence != SEEK_HOLE)
        return -EINVAL;
    struct share_file *file = share_file_get(&c->share->tables, in->fh, inode->id);
    if (file == NULL)
        return -EBADF;
    /* nothing else uses a file's position */
    off_t at = lseek(file->fd, (off_t)in->offset, (int)in->whence);
    int rc = at < 0 ? -errno : 0;
    share_file_put(&c->share->tables, file);
    *(struct fuse_lseek_out *)c->reply = (struct fuse_lseek_out){.offset = (uint64_t)at};
    c->reply_size = sizeof(struct fuse_lseek_out);
    return rc;
}

int share_copy_file_range(struct share_call *c, struct share_inode *inode)
{
    const struct fuse_copy_file_range_in *in = (const void *)c->args;
    off_t from = (off_t)in->off_in, to = (off_t)in->off_out;

    if (in->flags != 0 || from < 0 || to < 0)
        return -EINVAL;
    struct share_file *source = share_file_get(&c->share->tables, in->fh_in, inode->id);
    struct share_file *target = share_file_get(&c->share->tables, in->fh_out, in->nodeid_out);
    ssize_t n = -EBADF;
    if (source != NULL && target != NULL) {
        n = copy_file_range(source->fd, &from, target->fd, &to, MIN(in->len, COPY_MAX), 0);
        n = n < 0 ? -errno : n;
    }
    if (source != NULL)
        share_file_put(&c->share->tables, source);
    if (target != NULL)
        share_file_put(&c->share->tables, target);
    if (n < 0)
        return (int)n;
    *(struct fuse_write_out *)c->reply = (struct fuse_write_out){.size = (uint32_t)n};
    c->reply_size = sizeof(struct fuse_write_out);
    return 0;
}
