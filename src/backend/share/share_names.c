/*
 * share_names.c - FUSE operations on names in folders
 *
 * Every operation takes a folder by its descriptor and one name without "/", so that the host's
 * kernel has no path to walk: no "..", no symbolic link, nothing that a race could redirect.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "backend/share/share_impl.h"

int share_open_name(int folder, const char *name, int flags, uint32_t mode)
{
    struct open_how how = {.flags = (uint64_t)(unsigned)flags | O_CLOEXEC,
                           .mode = mode,
                           .resolve =
                               RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS};
    long fd;

    /* EAGAIN: something was renamed meanwhile, and the kernel could not say that all was beneath */
    do
        fd = syscall(SYS_openat2, folder, name, &how, sizeof(how));
    while (fd < 0 && (errno == EINTR || errno == EAGAIN));
    return fd < 0 ? -errno : (int)fd;
}

int share_stat(int fd, struct statx *st)
{
    return statx(fd, "", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_STATX_SYNC_AS_STAT,
                 STATX_BASIC_STATS | STATX_MNT_ID, st) == 0
               ? 0
               : -errno;
}

int share_enter_fd(struct share_call *c, const struct share_inode *parent, int fd,
                   struct fuse_entry_out *entry)
{
    struct share_inode *inode;
    struct statx st;
    int rc = share_stat(fd, &st);

    if (rc != 0) {
        close(fd);
        return rc;
    }
    struct share_inode_key key = {.fd = fd,
                                  .type = st.stx_mode & S_IFMT,
                                  .dev = (uint64_t)st.stx_dev_major << 32 | st.stx_dev_minor,
                                  .ino = st.stx_ino,
                                  .mount = st.stx_mnt_id};
    rc = share_inode_learn(&c->share->tables, &key, &inode);
    if (rc != 0)
        return rc;
    uint32_t valid_s = share_valid_s(c->share);
    *entry =
        (struct fuse_entry_out){.nodeid = inode->id, .entry_valid = valid_s, .attr_valid = valid_s};
    share_fill_attr(&st, &entry->attr);
    /* inode numbers of another file system are another's in the guest too */
    if (key.type == S_IFDIR && (inode->dev != parent->dev || inode->mount != parent->mount))
        entry->attr.flags |= FUSE_ATTR_SUBMOUNT;
    share_inode_put(&c->share->tables, inode);
    return 0;
}

int share_lookup_name(struct share_call *c, struct share_inode *parent, const char *name,
                      struct fuse_entry_out *entry)
{
    if (parent->type != S_IFDIR)
        return -ENOTDIR;
    int fd = share_open_name(parent->fd, name, O_PATH | O_NOFOLLOW, 0);
    return fd < 0 ? fd : share_enter_fd(c, parent, fd, entry);
}

static int answer_entry(struct share_call *c, struct share_inode *parent, const char *name)
{
    c->reply_size = sizeof(struct fuse_entry_out);
    return share_lookup_name(c, parent, name, (struct fuse_entry_out *)c->reply);
}

int share_lookup(struct share_call *c, struct share_inode *parent)
{
    const char *name = share_take_name(c);
    uint32_t valid_s = share_valid_s(c->share);

    if (name == NULL)
        return -EINVAL;
    int rc = answer_entry(c, parent, name);
    if (rc != -ENOENT || valid_s == 0)
        return rc;
    /* number 0: that there is no such name may be remembered too */
    *(struct fuse_entry_out *)c->reply = (struct fuse_entry_out){.entry_valid = valid_s};
    return 0;
}

int share_readlink(struct share_call *c, struct share_inode *inode)
{
    if (inode->type != S_IFLNK)
        return -EINVAL;
    ssize_t n = readlinkat(inode->fd, "", (char *)c->reply, sizeof(c->reply));
    if (n < 0)
        return -errno;
    c->reply_size = (size_t)n;
    return 0;
}

/* ---- making ---- */

int share_symlink(struct share_call *c, struct share_inode *parent)
{
    const char *name = share_take_name(c);
    const char *target = share_take_text(c);

    if (name == NULL || target == NULL)
        return -EINVAL;
    int rc = share_creds_enter(c, 0);
    if (rc != 0)
        return rc;
    rc = symlinkat(target, parent->fd, name) == 0 ? 0 : -errno;
    share_creds_leave(c);
    return rc == 0 ? answer_entry(c, parent, name) : rc;
}

/*
 * Files, FIFOs, sockets, and the device 0:0 that overlay file systems mark holes with. Any other
 * device node would be one of the host's.
 */
static bool may_make(uint32_t mode, uint32_t device)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
    case S_IFIFO:
    case S_IFSOCK:
        return true;
    case S_IFCHR:
        return device == 0;
    default:
        return false;
    }
}

int share_mknod(struct share_call *c, struct share_inode *parent)
{
    const struct fuse_mknod_in *in = (const void *)c->args;

    c->taken = sizeof(*in);
    const char *name = share_take_name(c);
    if (name == NULL)
        return -EINVAL;
    if (!may_make(in->mode, in->rdev))
        return -EPERM;
    int rc = share_creds_enter(c, in->umask);
    if (rc != 0)
        return rc;
    rc = mknodat(parent->fd, name, in->mode & (S_IFMT | 07777), makedev(0, 0)) == 0 ? 0 : -errno;
    share_creds_leave(c);
    return rc == 0 ? answer_entry(c, parent, name) : rc;
}

int share_mkdir(struct share_call *c, struct share_inode *parent)
{
    const struct fuse_mkdir_in *in = (const void *)c->args;

    c->taken = sizeof(*in);
    const char *name = share_take_name(c);
    if (name == NULL)
        return -EINVAL;
    int rc = share_creds_enter(c, in->umask);
    if (rc != 0)
        return rc;
    rc = mkdirat(parent->fd, name, in->mode & 07777) == 0 ? 0 : -errno;
    share_creds_leave(c);
    return rc == 0 ? answer_entry(c, parent, name) : rc;
}

int share_link(struct share_call *c, struct share_inode *parent)
{
    const struct fuse_link_in *in = (const void *)c->args;
    char fd_name[SHARE_FD_NAME];

    c->taken = sizeof(*in);
    const char *name = share_take_name(c);
    if (name == NULL)
        return -EINVAL;
    struct share_inode *old = share_inode_get(&c->share->tables, in->oldnodeid);
    if (old == NULL)
        return -ESTALE;
    share_fd_name(old->fd, fd_name);
    int rc =
        linkat(c->share->proc_fd, fd_name, parent->fd, name, AT_SYMLINK_FOLLOW) == 0 ? 0 : -errno;
    share_inode_put(&c->share->tables, old);
    return rc == 0 ? answer_entry(c, parent, name) : rc;
}

/* ---- taking away and moving ---- */

int share_unlink(struct share_call *c, struct share_inode *parent)
{
    const char *name = share_take_name(c);

    if (name == NULL)
        return -EINVAL;
    return unlinkat(parent->fd, name, 0) == 0 ? 0 : -errno;
}

int share_rmdir(struct share_call *c, struct share_inode *parent)
{
    const char *name = share_take_name(c);

    if (name == NULL)
        return -EINVAL;
    return unlinkat(parent->fd, name, AT_REMOVEDIR) == 0 ? 0 : -errno;
}

static int rename_to(struct share_call *c, struct share_inode *parent, uint64_t new_parent,
                     uint32_t flags)
{
    const char *name = share_take_name(c);
    const char *new_name = share_take_name(c);

    if (name == NULL || new_name == NULL ||
        (flags & ~(uint32_t)(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT)))
        return -EINVAL;
    struct share_inode *to = share_inode_get(&c->share->tables, new_parent);
    if (to == NULL)
        return -ESTALE;
    int rc = renameat2(parent->fd, name, to->fd, new_name, flags) == 0 ? 0 : -errno;
    share_inode_put(&c->share->tables, to);
    return rc;
}

int share_rename(struct share_call *c, struct share_inode *parent)
{
    const struct fuse_rename_in *in = (const void *)c->args;

    c->taken = sizeof(*in);
    return rename_to(c, parent, in->newdir, 0);
}

int share_rename2(struct share_call *c, struct share_inode *parent)
{
    const struct fuse_rename2_in *in = (const void *)c->args;

    c->taken = sizeof(*in);
    return rename_to(c, parent, in->newdir, in->flags);
}
