/*
 * share_locks.c - the guest's locks of files, taken on the host
 *
 * flock is the open file's on both sides: it is taken with the descriptor of the guest's handle.
 * POSIX locks are an owner's (the guest's number for a process, or for an open file): each owner
 * that has some of a file has the file open once more, and holds open-file-description locks by
 * that descriptor. So the host judges between owners of one guest, between guests and between a
 * guest and the host's programs. An owner's descriptor is opened for reading and writing where that
 * can be, since it serves locks of both types; it is closed with its last lock.
 *
 * Invariant: while locks.lock is free, an owner's descriptor has the locks that are in its ranges,
 * and besides at most what a thread within share_lock_await has just got, which is set once more
 * before it counts.
 *
 * Bounds: owners are so many descriptors; ranges are memory of the host's kernel. Both are searched
 * one after the other.
 *
 * Spec: Linux include/uapi/linux/fuse.h; fcntl(2), "Open file description locks".
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

#include "backend/share/share_impl.h"
#include "base/bits.h"
#include "os/breakable.h"

#define OWNERS_MAX 4096u
#define RANGES_MAX 8192u

struct share_lock_owner {
    uint64_t owner;
    struct share_file *file; /* by which it came here last; a reference */
    int fd;
    unsigned waits; /* threads that use fd without the lock */
    struct share_ranges ranges;
    struct share_lock_owner *next;              /* of the inode */
    struct share_lock_owner *next_of_all, **to; /* `to` points here */
};

/* ---- the host's calls ---- */

static struct flock to_host(const struct share_range *range)
{
    uint64_t end = range->end;

    return (struct flock){.l_type = (short)range->type,
                          .l_whence = SEEK_SET,
                          .l_start = (off_t)range->start,
                          .l_len = end == INT64_MAX ? 0 : (off_t)(end - range->start + 1)};
}

static int set_range(int fd, int cmd, const struct share_range *range)
{
    struct flock lock = to_host(range);

    if (fcntl(fd, cmd, &lock) == 0)
        return 0;
    return errno == EACCES ? -EAGAIN : -errno;
}

static int set_flock(int fd, uint32_t type, int flags)
{
    int how = type == F_UNLCK ? LOCK_UN : type == F_RDLCK ? LOCK_SH : LOCK_EX;

    return flock(fd, how | flags) == 0 ? 0 : -errno;
}

static const struct share_range everything = {.end = INT64_MAX, .type = F_UNLCK};

/* ---- owners; under the lock ---- */

static struct share_lock_owner *find_owner(const struct share_inode *inode, uint64_t owner)
{
    struct share_lock_owner *o = inode->lock_owners;

    while (o != NULL && o->owner != owner)
        o = o->next;
    return o;
}

static int open_for_locks(const struct share *share, const struct share_inode *inode, uint32_t type)
{
    bool is_write = type == F_WRLCK;

    if (share->config.is_read_only)
        return is_write ? -EBADF : share_reopen(share, inode, O_RDONLY);
    int fd = share_reopen(share, inode, O_RDWR);
    return fd >= 0 ? fd : share_reopen(share, inode, is_write ? O_WRONLY : O_RDONLY);
}

/* Takes the reference to the file over, unless it fails. */
static int add_owner(struct share *share, struct share_file *file, const struct share_lock *lock,
                     struct share_lock_owner **out)
{
    struct share_locks *locks = &share->locks;
    struct share_inode *inode = file->inode;
    struct share_lock_owner *o = calloc(1, sizeof(*o));
    int fd = -ENOMEM;

    if (locks->owner_count >= locks->owners_max)
        fd = -ENOLCK;
    else if (o != NULL)
        fd = open_for_locks(share, inode, lock->range.type);
    if (fd < 0) {
        free(o);
        return fd;
    }
    *o = (struct share_lock_owner){.owner = lock->owner,
                                   .file = file,
                                   .fd = fd,
                                   .next = inode->lock_owners,
                                   .next_of_all = locks->owners,
                                   .to = &locks->owners};
    inode->lock_owners = o;
    if (locks->owners != NULL)
        locks->owners->to = &o->next_of_all;
    locks->owners = o;
    locks->owner_count++;
    *out = o;
    return 0;
}

/* The owner of a lock, known or new. */
static int take_owner(struct share *share, struct share_file *file, const struct share_lock *lock,
                      struct share_lock_owner **out)
{
    struct share_inode *inode = file->inode;
    struct share_lock_owner *o = find_owner(inode, lock->owner);
    int rc = 0;

    /* what is released takes its locks with it, now or, if it was open, hereafter */
    if (!share_file_ref(&share->tables, file))
        return -EBADF;
    if (o != NULL) {
        struct share_file *before = o->file;
        o->file = file;
        share_file_put(&share->tables, before);
    } else {
        rc = add_owner(share, file, lock, &o);
        if (rc != 0)
            share_file_put(&share->tables, file);
    }
    *out = o;
    return rc;
}

/* One that has nothing and awaits nothing goes; `o` may be gone then. */
static void put_owner(struct share *share, struct share_lock_owner *o)
{
    struct share_file *file = o->file;
    struct share_lock_owner **p = &file->inode->lock_owners;

    if (o->ranges.count != 0 || o->waits != 0)
        return;
    while (*p != o)
        p = &(*p)->next;
    *p = o->next;
    *o->to = o->next_of_all;
    if (o->next_of_all != NULL)
        o->next_of_all->to = o->to;
    share->locks.owner_count--;
    close(o->fd);
    free(o->ranges.list);
    free(o);
    share_file_put(&share->tables, file);
}

static void drop_ranges(struct share *share, struct share_lock_owner *o)
{
    set_range(o->fd, F_OFD_SETLK, &everything);
    share->locks.range_count -= o->ranges.count;
    o->ranges.count = 0;
    put_owner(share, o);
}

static int set_ranges(struct share *share, struct share_lock_owner *o,
                      const struct share_range *range)
{
    struct share_ranges planned;
    int rc = share_ranges_plan(&o->ranges, range, &planned);

    if (rc != 0)
        return rc;
    unsigned others = share->locks.range_count - o->ranges.count;
    if (planned.count > o->ranges.count && others + planned.count > RANGES_MAX)
        rc = -ENOLCK;
    else
        rc = set_range(o->fd, F_OFD_SETLK, range);
    if (rc != 0) {
        free(planned.list);
        return rc;
    }
    free(o->ranges.list);
    o->ranges = planned;
    share->locks.range_count = others + planned.count;
    return 0;
}

/* What the ranges say, once more, of one piece: never more than what the descriptor has. */
static void restore_ranges(const struct share_lock_owner *o, const struct share_range *piece)
{
    struct share_range free_piece = {.start = piece->start, .end = piece->end, .type = F_UNLCK};

    for (unsigned i = 0; i < o->ranges.count; i++) {
        struct share_range held = o->ranges.list[i];
        if (held.end < piece->start || held.start > piece->end)
            continue;
        held.start = MAX(held.start, piece->start);
        held.end = MIN(held.end, piece->end);
        if (held.start > free_piece.start) {
            free_piece.end = held.start - 1;
            set_range(o->fd, F_OFD_SETLK, &free_piece);
        }
        set_range(o->fd, F_OFD_SETLK, &held);
        if (held.end == piece->end)
            return;
        free_piece.start = held.end + 1;
    }
    free_piece.end = piece->end;
    set_range(o->fd, F_OFD_SETLK, &free_piece);
}

/* ---- locks ---- */

static int set_of_owner(struct share *share, struct share_file *file, const struct share_lock *lock)
{
    struct share_lock_owner *o;

    if (lock->range.type == F_UNLCK && find_owner(file->inode, lock->owner) == NULL)
        return 0;
    int rc = take_owner(share, file, lock, &o);
    if (rc != 0)
        return rc;
    rc = set_ranges(share, o, &lock->range);
    put_owner(share, o);
    return rc;
}

static int set_of_file(struct share *share, struct share_file *file, uint32_t type)
{
    if (!share_file_ref(&share->tables, file))
        return -EBADF;
    int rc = set_flock(file->fd, type, LOCK_NB);
    share_file_put(&share->tables, file);
    return rc;
}

int share_lock_set(struct share *share, struct share_file *file, const struct share_lock *lock)
{
    pthread_mutex_lock(&share->locks.lock);
    int rc = lock->is_flock ? set_of_file(share, file, lock->range.type)
                            : set_of_owner(share, file, lock);
    pthread_mutex_unlock(&share->locks.lock);
    return rc;
}

/* ---- for those that wait ---- */

int share_lock_pin(struct share *share, struct share_file *file, const struct share_lock *lock)
{
    struct share_lock_owner *o;

    if (lock->is_flock)
        return file->fd;
    pthread_mutex_lock(&share->locks.lock);
    int rc = take_owner(share, file, lock, &o);
    if (rc == 0) {
        o->waits++;
        rc = o->fd;
    }
    pthread_mutex_unlock(&share->locks.lock);
    return rc;
}

void share_lock_unpin(struct share *share, struct share_file *file, const struct share_lock *lock)
{
    if (lock->is_flock)
        return;
    pthread_mutex_lock(&share->locks.lock);
    struct share_lock_owner *o = find_owner(file->inode, lock->owner);
    o->waits--;
    put_owner(share, o);
    pthread_mutex_unlock(&share->locks.lock);
}

struct awaited {
    int fd;
    const struct share_lock *lock;
};

static int await(void *ctx)
{
    const struct awaited *a = ctx;

    return a->lock->is_flock ? set_flock(a->fd, a->lock->range.type, 0)
                             : set_range(a->fd, F_OFD_SETLKW, &a->lock->range);
}

int share_lock_await(int fd, const struct share_lock *lock)
{
    struct awaited a = {.fd = fd, .lock = lock};
    int rc;

    return breakable_run(await, &a, &rc) ? rc : -EINTR;
}

void share_lock_undo(struct share *share, struct share_file *file, const struct share_lock *lock)
{
    pthread_mutex_lock(&share->locks.lock);
    if (lock->is_flock) /* what it had before went when it began to wait: flock(2) */
        set_flock(file->fd, F_UNLCK, 0);
    else
        restore_ranges(find_owner(file->inode, lock->owner), &lock->range);
    pthread_mutex_unlock(&share->locks.lock);
}

/* ---- the end of locks ---- */

void share_locks_flush(struct share *share, struct share_inode *inode, uint64_t owner)
{
    pthread_mutex_lock(&share->locks.lock);
    struct share_lock_owner *o = find_owner(inode, owner);
    if (o != NULL)
        drop_ranges(share, o);
    pthread_mutex_unlock(&share->locks.lock);
}

void share_locks_release(struct share *share, struct share_file *file, bool has_flock)
{
    struct share_lock_owner *next;

    pthread_mutex_lock(&share->locks.lock);
    if (has_flock) /* whoever waits for one still has it open */
        set_flock(file->fd, F_UNLCK, 0);
    /* those of the guest's open files: a process' went when it closed */
    for (struct share_lock_owner *o = file->inode->lock_owners; o != NULL; o = next) {
        next = o->next;
        if (o->file == file)
            drop_ranges(share, o);
    }
    pthread_mutex_unlock(&share->locks.lock);
}

void share_locks_init(struct share_locks *locks, unsigned owners_max)
{
    pthread_mutex_init(&locks->lock, NULL);
    locks->owners_max = MIN(owners_max, OWNERS_MAX);
}

void share_locks_clear(struct share *share)
{
    struct share_lock_owner *next;

    pthread_mutex_lock(&share->locks.lock);
    for (struct share_lock_owner *o = share->locks.owners; o != NULL; o = next) {
        next = o->next_of_all;
        drop_ranges(share, o);
    }
    pthread_mutex_unlock(&share->locks.lock);
}

void share_locks_fini(struct share *share)
{
    share_locks_clear(share);
    pthread_mutex_destroy(&share->locks.lock);
}

/* ---- operations ---- */

static int take_lock(struct share_call *c, const struct share_inode *inode, struct share_lock *lock)
{
    const struct fuse_lk_in *in = (const void *)c->args;

    *lock = (struct share_lock){
        .is_flock = (in->lk_flags & FUSE_LK_FLOCK) != 0,
        .owner = in->owner,
        .range = {
            .start = in->lk.start, .end = in->lk.end, .type = in->lk.type, .pid = in->lk.pid}};
    if (inode->type != S_IFREG)
        return -EBADF;
    if (in->lk.start > in->lk.end || in->lk.end > INT64_MAX)
        return -EINVAL;
    return in->lk.type == F_RDLCK || in->lk.type == F_WRLCK || in->lk.type == F_UNLCK ? 0 : -EINVAL;
}

/* The guest's process that has what the host says somebody has; 0: none of this guest. */
static uint32_t find_pid(const struct share_inode *inode, const struct share_lock_owner *asking,
                         const struct share_range *found)
{
    for (const struct share_lock_owner *o = inode->lock_owners; o != NULL; o = o->next)
        for (unsigned i = 0; o != asking && i < o->ranges.count; i++) {
            const struct share_range *r = &o->ranges.list[i];
            if (r->type == found->type && r->start <= found->end && r->end >= found->start)
                return r->pid;
        }
    return 0;
}

int share_getlk(struct share_call *c, struct share_inode *inode)
{
    const struct fuse_lk_in *in = (const void *)c->args;
    struct share_locks *locks = &c->share->locks;
    struct share_lock lock;
    int rc = take_lock(c, inode, &lock);

    if (rc != 0 || lock.is_flock || lock.range.type == F_UNLCK)
        return rc != 0 ? rc : -EINVAL;
    struct share_file *file = share_file_get(&c->share->tables, in->fh, inode->id);
    if (file == NULL)
        return -EBADF;
    pthread_mutex_lock(&locks->lock);
    const struct share_lock_owner *o = find_owner(inode, lock.owner);
    struct flock found = to_host(&lock.range);
    rc = fcntl(o != NULL ? o->fd : file->fd, F_OFD_GETLK, &found) == 0 ? 0 : -errno;
    struct fuse_file_lock out = {.type = F_UNLCK};
    if (rc == 0 && found.l_type != F_UNLCK) {
        out = (struct fuse_file_lock){
            .start = (uint64_t)found.l_start,
            .end = found.l_len == 0 ? INT64_MAX : (uint64_t)(found.l_start + found.l_len - 1),
            .type = (uint32_t)found.l_type};
        struct share_range range = {.start = out.start, .end = out.end, .type = out.type};
        out.pid = found.l_pid == -1 ? find_pid(inode, o, &range) : 0;
    }
    pthread_mutex_unlock(&locks->lock);
    share_file_put(&c->share->tables, file);
    ((struct fuse_lk_out *)c->reply)->lk = out;
    c->reply_size = sizeof(struct fuse_lk_out);
    return rc;
}

int share_setlk(struct share_call *c, struct share_inode *inode)
{
    const struct fuse_lk_in *in = (const void *)c->args;
    struct share_lock lock;
    int rc = take_lock(c, inode, &lock);

    if (rc != 0)
        return rc;
    struct share_file *file = share_file_get(&c->share->tables, in->fh, inode->id);
    if (file == NULL)
        return -EBADF;
    rc = share_lock_set(c->share, file, &lock);
    if (rc == -EAGAIN && c->header->opcode == FUSE_SETLKW)
        rc = share_wait_begin(c, file, &lock);
    if (rc != SHARE_WAITS)
        share_file_put(&c->share->tables, file);
    return rc;
}
