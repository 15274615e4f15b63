/*
 * share_dispatch.c - one FUSE request: checked, carried out, answered
 *
 * What the driver wrote is copied before it is looked at, and copied once; only file data goes
 * straight from and to its memory. A request that is no message at all is answered with nothing.
 *
 * Spec: Linux include/uapi/linux/fuse.h.
 */
#include <errno.h>
#include <string.h>

#include "backend/share/share_impl.h"
#include "base/bits.h"

/* ---- pieces ---- */

size_t share_iov_copy(const struct iovec *iov, unsigned count, uint64_t offset, uint8_t *to,
                      const uint8_t *from, size_t size)
{
    size_t done = 0;

    for (unsigned i = 0; i < count && done < size; i++) {
        if (offset >= iov[i].iov_len) {
            offset -= iov[i].iov_len;
            continue;
        }
        size_t n = MIN(size - done, iov[i].iov_len - offset);
        uint8_t *base = (uint8_t *)iov[i].iov_base + offset;
        if (to != NULL)
            memcpy(to + done, base, n);
        else
            memcpy(base, from + done, n);
        done += n;
        offset = 0;
    }
    return done;
}

unsigned share_iov_cut(struct iovec out[SHARE_IOV_MAX], const struct iovec *iov, unsigned count,
                       uint64_t offset, uint64_t size)
{
    unsigned n = 0;

    for (unsigned i = 0; i < count && size != 0 && n < SHARE_IOV_MAX; i++) {
        if (offset >= iov[i].iov_len) {
            offset -= iov[i].iov_len;
            continue;
        }
        size_t len = MIN(iov[i].iov_len - offset, size);
        out[n++] = (struct iovec){(uint8_t *)iov[i].iov_base + offset, len};
        size -= len;
        offset = 0;
    }
    return n;
}

/* ---- arguments ---- */

bool share_read_header(struct share_request *r)
{
    return share_iov_copy(r->in, r->in_count, 0, (uint8_t *)&r->header, NULL, sizeof(r->header)) ==
           sizeof(r->header);
}

const char *share_take_text(struct share_call *c)
{
    const char *text = (const char *)c->args + c->taken;
    size_t len = strnlen(text, c->args_size - c->taken);

    if (len == c->args_size - c->taken)
        return NULL;
    c->taken += len + 1;
    return text;
}

const char *share_take_name(struct share_call *c)
{
    const char *name = share_take_text(c);

    if (name == NULL || name[0] == '\0' || strchr(name, '/') != NULL || strcmp(name, ".") == 0 ||
        strcmp(name, "..") == 0)
        return NULL;
    return name;
}

/* ---- the session ---- */

#define MAX_WRITE (UINT32_C(1) << 20)
#define PAGE 4096u
#define BACKGROUND_MAX 64

/* Older drivers have other layouts; none of virtio's is older. */
#define MINOR_MIN 31

#define WANTED                                                                                     \
    (FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES | FUSE_DONT_MASK |                    \
     FUSE_AUTO_INVAL_DATA | FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO | FUSE_ASYNC_DIO |         \
     FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES | FUSE_CACHE_SYMLINKS | FUSE_SUBMOUNTS |                \
     FUSE_HANDLE_KILLPRIV_V2)

#define LOCKS_WANTED (FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS)

static uint32_t wanted(const struct share *share)
{
    /* what the guest writes late, others see late, and it takes no size from the host */
    bool is_late = share->config.cache == SHARE_CACHE_ALWAYS && !share->config.is_read_only;

    return WANTED | (is_late ? FUSE_WRITEBACK_CACHE : 0) |
           (share->config.has_locks ? LOCKS_WANTED : 0);
}

static int share_init(struct share_call *c, struct share_inode *inode)
{
    const struct fuse_init_in *in = (const void *)c->args;
    struct fuse_init_out *out = (void *)c->reply;

    *out = (struct fuse_init_out){.major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION};
    c->reply_size = sizeof(*out);
    if (in->major > FUSE_KERNEL_VERSION) /* it will begin again with ours */
        return 0;
    if (in->major < FUSE_KERNEL_VERSION || in->minor < MINOR_MIN)
        return -EPROTO;
    out->minor = MIN(in->minor, (uint32_t)FUSE_KERNEL_MINOR_VERSION);
    out->max_readahead = MIN(in->max_readahead, MAX_WRITE);
    out->flags = in->flags & wanted(c->share);
    c->share->is_write_late = (out->flags & FUSE_WRITEBACK_CACHE) != 0;
    c->share->has_locks = (out->flags & LOCKS_WANTED) != 0;
    out->max_background = BACKGROUND_MAX;
    out->congestion_threshold = BACKGROUND_MAX / 4 * 3;
    out->max_write = MAX_WRITE;
    out->time_gran = 1;
    out->max_pages = MAX_WRITE / PAGE;
    c->share->minor = out->minor;
    return 0;
}

static int share_destroy(struct share_call *c, struct share_inode *inode)
{
    c->share->minor = 0;
    share_stop_waiting(c->share);
    share_tables_clear(&c->share->tables);
    share_locks_clear(c->share);
    return 0;
}

/* ---- requests without an answer ---- */

static void forget(struct share_call *c)
{
    const struct fuse_forget_in *in = (const void *)c->args;

    if (c->args_size >= sizeof(*in))
        share_inode_forget(&c->share->tables, c->header->nodeid, in->nlookup);
}

static void batch_forget(struct share_call *c)
{
    const struct fuse_batch_forget_in *in = (const void *)c->args;
    const struct fuse_forget_one *one = (const void *)(in + 1);

    if (c->args_size < sizeof(*in))
        return;
    size_t count = MIN((c->args_size - sizeof(*in)) / sizeof(*one), (size_t)in->count);
    for (size_t i = 0; i < count; i++)
        share_inode_forget(&c->share->tables, one[i].nodeid, one[i].nlookup);
}

static bool mark_interrupted(struct share_request *r, uint64_t unique)
{
    if (!r->has_header || r->header.unique != unique || r->is_urgent)
        return false;
    r->is_interrupted = true;
    return true;
}

/*
 * Takes the request that it names out of those that wait, for a thread or for a lock. One that is
 * not there has been answered, or is still to come: EAGAIN has the driver look.
 */
static int interrupt(struct share_call *c)
{
    const struct fuse_interrupt_in *in = (const void *)c->args;
    struct share *share = c->share;

    if (c->args_size < sizeof(*in))
        return -EINVAL;
    pthread_mutex_lock(&share->lock);
    bool is_there = share_wait_interrupt(share, &in->unique);
    for (struct share_request *r = share->first; r != NULL; r = r->next)
        is_there |= mark_interrupted(r, in->unique);
    for (unsigned i = 0; i < share->thread_count; i++)
        if (share->calls[i].may_wait != NULL)
            is_there |= mark_interrupted(share->calls[i].may_wait, in->unique);
    pthread_mutex_unlock(&share->lock);
    return is_there ? 0 : -EAGAIN;
}

/* ---- all of them ---- */

#define WRITES 1u  /* changes the folder: refused when it is read-only */
#define SESSION 2u /* about no inode */
#define LOCKS 4u   /* not there unless the guest's locks come here */

static const struct share_op {
    share_op_fn *run;
    uint16_t args_min;
    uint16_t reply_min; /* room that there has to be behind the header */
    uint8_t flags;
} ops[] = {
    [FUSE_LOOKUP] = {share_lookup, 2, sizeof(struct fuse_entry_out), 0},
    [FUSE_GETATTR] = {share_getattr, sizeof(struct fuse_getattr_in), sizeof(struct fuse_attr_out),
                      0},
    [FUSE_SETATTR] = {share_setattr, sizeof(struct fuse_setattr_in), sizeof(struct fuse_attr_out),
                      WRITES},
    [FUSE_READLINK] = {share_readlink, 0, 0, 0},
    [FUSE_SYMLINK] = {share_symlink, 4, sizeof(struct fuse_entry_out), WRITES},
    [FUSE_MKNOD] = {share_mknod, sizeof(struct fuse_mknod_in) + 2, sizeof(struct fuse_entry_out),
                    WRITES},
    [FUSE_MKDIR] = {share_mkdir, sizeof(struct fuse_mkdir_in) + 2, sizeof(struct fuse_entry_out),
                    WRITES},
    [FUSE_UNLINK] = {share_unlink, 2, 0, WRITES},
    [FUSE_RMDIR] = {share_rmdir, 2, 0, WRITES},
    [FUSE_RENAME] = {share_rename, sizeof(struct fuse_rename_in) + 4, 0, WRITES},
    [FUSE_RENAME2] = {share_rename2, sizeof(struct fuse_rename2_in) + 4, 0, WRITES},
    [FUSE_LINK] = {share_link, sizeof(struct fuse_link_in) + 2, sizeof(struct fuse_entry_out),
                   WRITES},
    [FUSE_OPEN] = {share_open_file, sizeof(struct fuse_open_in), sizeof(struct fuse_open_out), 0},
    [FUSE_READ] = {share_read, sizeof(struct fuse_read_in), 0, 0},
    [FUSE_WRITE] = {share_write, sizeof(struct fuse_write_in), sizeof(struct fuse_write_out),
                    WRITES},
    [FUSE_STATFS] = {share_statfs, 0, sizeof(struct fuse_statfs_out), 0},
    [FUSE_RELEASE] = {share_release, sizeof(struct fuse_release_in), 0, 0},
    [FUSE_FSYNC] = {share_fsync, sizeof(struct fuse_fsync_in), 0, 0},
    [FUSE_SETXATTR] = {share_setxattr, FUSE_COMPAT_SETXATTR_IN_SIZE + 2, 0, WRITES},
    [FUSE_GETXATTR] = {share_getxattr, sizeof(struct fuse_getxattr_in) + 2, 0, 0},
    [FUSE_LISTXATTR] = {share_listxattr, sizeof(struct fuse_getxattr_in), 0, 0},
    [FUSE_REMOVEXATTR] = {share_removexattr, 2, 0, WRITES},
    [FUSE_FLUSH] = {share_flush, sizeof(struct fuse_flush_in), 0, 0},
    [FUSE_GETLK] = {share_getlk, sizeof(struct fuse_lk_in), sizeof(struct fuse_lk_out), LOCKS},
    [FUSE_SETLK] = {share_setlk, sizeof(struct fuse_lk_in), 0, LOCKS},
    [FUSE_SETLKW] = {share_setlk, sizeof(struct fuse_lk_in), 0, LOCKS},
    [FUSE_INIT] = {share_init, 16, sizeof(struct fuse_init_out), SESSION},
    [FUSE_OPENDIR] = {share_opendir, sizeof(struct fuse_open_in), sizeof(struct fuse_open_out), 0},
    [FUSE_READDIR] = {share_readdir, sizeof(struct fuse_read_in), 0, 0},
    [FUSE_RELEASEDIR] = {share_release, sizeof(struct fuse_release_in), 0, 0},
    [FUSE_FSYNCDIR] = {share_fsync, sizeof(struct fuse_fsync_in), 0, 0},
    [FUSE_ACCESS] = {share_access, sizeof(struct fuse_access_in), 0, 0},
    /* of a read-only folder it may open what is there */
    [FUSE_CREATE] = {share_create, sizeof(struct fuse_create_in) + 2,
                     sizeof(struct fuse_entry_out) + sizeof(struct fuse_open_out), 0},
    [FUSE_DESTROY] = {share_destroy, 0, 0, SESSION},
    [FUSE_FALLOCATE] = {share_fallocate, sizeof(struct fuse_fallocate_in), 0, WRITES},
    [FUSE_READDIRPLUS] = {share_readdirplus, sizeof(struct fuse_read_in), 0, 0},
    [FUSE_LSEEK] = {share_lseek, sizeof(struct fuse_lseek_in), sizeof(struct fuse_lseek_out), 0},
    [FUSE_COPY_FILE_RANGE] = {share_copy_file_range, sizeof(struct fuse_copy_file_range_in),
                              sizeof(struct fuse_write_out), WRITES},
    [FUSE_SYNCFS] = {share_syncfs, 0, 0, 0},
};

/* The kernel takes ENOSYS for "never ask again". */
static const struct share_op *find_op(uint32_t opcode)
{
    return opcode < ARRAY_SIZE(ops) && ops[opcode].run != NULL ? &ops[opcode] : NULL;
}

static int run(struct share_call *c, const struct share_op *op)
{
    struct share *share = c->share;
    uint64_t room = c->request->out_size - sizeof(struct fuse_out_header);

    if (op == NULL || ((op->flags & LOCKS) && !share->has_locks))
        return -ENOSYS;
    if (c->args_size < op->args_min || room < op->reply_min)
        return -EINVAL;
    if (op->flags & SESSION)
        return op->run(c, NULL);
    if (share->minor == 0)
        return -EIO;
    if ((op->flags & WRITES) && share->config.is_read_only)
        return -EROFS;
    struct share_inode *inode = share_inode_get(&share->tables, c->header->nodeid);
    if (inode == NULL)
        return -ESTALE;
    int rc = op->run(c, inode);
    share_inode_put(&share->tables, inode);
    return rc;
}

uint32_t share_answer(const struct share_request *r, int rc)
{
    struct fuse_out_header out = {.error = rc, .unique = r->header.unique, .len = sizeof(out)};

    share_iov_copy(r->out, r->out_count, 0, NULL, (const uint8_t *)&out, sizeof(out));
    return out.len;
}

static uint32_t answer(struct share_call *c, int rc)
{
    const struct share_request *r = c->request;
    uint64_t room = r->out_size - sizeof(struct fuse_out_header);

    if (rc == 0 && c->reply_size > room)
        rc = -ERANGE;
    struct fuse_out_header out = {.error = rc, .unique = c->header->unique, .len = sizeof(out)};
    if (rc == 0)
        out.len += (uint32_t)c->reply_size;
    share_iov_copy(r->out, r->out_count, 0, NULL, (const uint8_t *)&out, sizeof(out));
    if (rc == 0 && !c->is_direct)
        share_iov_copy(r->out, r->out_count, sizeof(out), NULL, c->reply, c->reply_size);
    return out.len;
}

/* The length that the message claims is that of what was sent; WRITE's data is left in place. */
static int take_args(struct share_call *c)
{
    const struct share_request *r = c->request;
    uint64_t size = r->in_size - sizeof(*c->header);

    c->args_size = 0;
    c->args[0] = '\0';
    if (c->header->len != r->in_size)
        return -EINVAL;
    if (c->header->opcode == FUSE_WRITE)
        size = MIN(size, sizeof(struct fuse_write_in));
    if (size > SHARE_ARGS_MAX)
        return -E2BIG;
    c->args_size =
        share_iov_copy(r->in, r->in_count, sizeof(*c->header), c->args, NULL, (size_t)size);
    c->args[c->args_size] = '\0';
    return 0;
}

uint32_t share_serve(struct share *share, struct share_request *r, struct share_call *c)
{
    if (!r->has_header)
        return 0;
    c->share = share;
    c->request = r;
    c->header = &r->header;
    c->taken = c->reply_size = 0;
    c->is_direct = false;
    int rc = take_args(c);
    if (rc == 0 && r->header.opcode == FUSE_FORGET) {
        forget(c);
        return 0;
    }
    if (rc == 0 && r->header.opcode == FUSE_BATCH_FORGET) {
        batch_forget(c);
        return 0;
    }
    /* nothing is done whose outcome could not be said */
    if (r->out_size < sizeof(struct fuse_out_header))
        return 0;
    if (rc == 0 && r->header.opcode == FUSE_INTERRUPT)
        rc = interrupt(c);
    else if (rc == 0)
        rc = r->is_interrupted ? -EINTR : run(c, find_op(r->header.opcode));
    return rc == SHARE_WAITS ? SHARE_LATER : answer(c, rc);
}
