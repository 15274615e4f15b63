/*
 * share_dirs.c - FUSE operations that list folders
 *
 * The guest's position in a folder is the host's own (d_off), so nothing is kept between requests.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "backend/share/share_impl.h"
#include "base/bits.h"

#define LIST_MAX (64u << 10)

int share_opendir(struct share_call *c, struct share_inode *inode)
{
    struct fuse_open_out *out = (void *)c->reply;

    if (inode->type != S_IFDIR)
        return -ENOTDIR;
    int fd = share_reopen(c->share, inode, O_RDONLY | O_DIRECTORY);
    if (fd < 0)
        return fd;
    *out = (struct fuse_open_out){.open_flags = share_cache_opendir(c->share)};
    c->reply_size = sizeof(*out);
    return share_file_add(&c->share->tables, inode, fd, &out->fh);
}

static bool is_dots(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/*
 * The entry itself and, for READDIRPLUS, what a look-up says: a number of 0 when it fails, which
 * the guest takes for "not looked up". Dots are never looked up.
 */
static void put_plus(struct share_call *c, struct share_inode *folder, const struct dirent64 *d,
                     struct fuse_entry_out *entry)
{
    memset(entry, 0, sizeof(*entry));
    if (is_dots(d->d_name) || share_lookup_name(c, folder, d->d_name, entry) != 0) {
        memset(entry, 0, sizeof(*entry));
        entry->attr.ino = d->d_ino;
        entry->attr.mode = DTTOIF(d->d_type);
    }
}

/* False when there is no room: nothing was looked up then. */
static bool put_entry(struct share_call *c, struct share_inode *folder, const struct dirent64 *d,
                      bool is_plus, size_t room)
{
    size_t head = is_plus ? sizeof(struct fuse_entry_out) : 0;
    size_t name_len = strlen(d->d_name);
    size_t size = head + FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + name_len);
    uint8_t *to = c->reply + c->reply_size;
    struct fuse_dirent *entry = (void *)(to + head);

    if (size > room - c->reply_size)
        return false;
    memset(to, 0, size);
    if (is_plus)
        put_plus(c, folder, d, (struct fuse_entry_out *)to);
    /* what is above the shared folder is not the guest's to know */
    bool is_above = folder->id == FUSE_ROOT_ID && strcmp(d->d_name, "..") == 0;
    entry->ino = is_above ? folder->ino : d->d_ino;
    entry->off = (uint64_t)d->d_off;
    entry->namelen = (uint32_t)name_len;
    entry->type = d->d_type;
    memcpy(entry->name, d->d_name, name_len);
    c->reply_size += size;
    return true;
}

/* Until the answer is full, or the folder's end; an error counts only when there is no answer. */
static int list(struct share_call *c, const struct share_file *file, uint64_t position,
                bool is_plus, size_t room)
{
    uint8_t host[4096] __attribute__((aligned(8)));

    if (lseek(file->fd, (off_t)position, SEEK_SET) < 0)
        return -errno;
    for (;;) {
        ssize_t n = getdents64(file->fd, host, sizeof(host));
        if (n <= 0)
            return n < 0 && c->reply_size == 0 ? -errno : 0;
        for (ssize_t at = 0; at < n;) {
            const struct dirent64 *d = (const void *)(host + at);
            if (!put_entry(c, file->inode, d, is_plus, room))
                return c->reply_size == 0 ? -EINVAL : 0;
            at += d->d_reclen;
        }
    }
}

static int read_folder(struct share_call *c, struct share_inode *inode, bool is_plus)
{
    const struct fuse_read_in *in = (const void *)c->args;
    uint64_t room = c->request->out_size - sizeof(struct fuse_out_header);

    if (inode->type != S_IFDIR)
        return -ENOTDIR;
    struct share_file *file = share_file_get(&c->share->tables, in->fh, inode->id);
    if (file == NULL)
        return -EBADF;
    room = MIN(MIN(room, in->size), LIST_MAX);
    pthread_mutex_lock(&file->position_lock);
    int rc = list(c, file, in->offset, is_plus, (size_t)room);
    pthread_mutex_unlock(&file->position_lock);
    share_file_put(&c->share->tables, file);
    return rc;
}

int share_readdir(struct share_call *c, struct share_inode *inode)
{
    return read_folder(c, inode, false);
}

int share_readdirplus(struct share_call *c, struct share_inode *inode)
{
    return read_folder(c, inode, true);
}
