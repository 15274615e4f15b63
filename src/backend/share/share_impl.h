/*
 * share_impl.h - the FUSE server's parts, for the files of this folder
 *
 * A guest names files by node number (given out by look-ups, taken back by FORGET) and open files
 * by handle. Numbers are never given out twice, so what was forgotten is no number any more. Both
 * tables are bounded: each entry holds a descriptor of the host.
 *
 * Whoever uses an inode or a file holds a reference; its descriptor is closed with the last.
 */
#ifndef DOPPEL_BACKEND_SHARE_SHARE_IMPL_H
#define DOPPEL_BACKEND_SHARE_SHARE_IMPL_H

#include <pthread.h>
#include <sys/stat.h>

#include "backend/share/share.h"
#include "os/spin_wait.h"

/* What tells whether a file was changed. */
struct share_stamp {
    uint64_t size;
    int64_t mtime_s, ctime_s;
    uint32_t mtime_ns, ctime_ns;
};

struct share_inode {
    uint64_t id;   /* the guest's name for it */
    int fd;        /* O_PATH | O_NOFOLLOW */
    uint32_t type; /* S_IFMT part of its mode, which never changes */
    uint64_t dev, ino, mount;
    /* under tables.lock */
    uint64_t lookups; /* not yet forgotten by the guest; together one reference */
    unsigned refs;
    struct share_inode *next_by_id, *next_by_key;
    bool has_kept;
    struct share_stamp kept;              /* see share_cache.c */
    struct share_lock_owner *lock_owners; /* under locks.lock */
};

struct share_file {
    uint64_t id;
    int fd;
    struct share_inode *inode;
    pthread_mutex_t position_lock; /* of a folder, while it is read */
    /* under tables.lock */
    unsigned refs;
    bool is_open; /* not released; one reference */
    bool has_stamp;
    struct share_stamp stamp; /* the inode's `kept`, once the guest reads */
    struct share_file *next;
};

#define SHARE_BUCKETS 16384u

struct share_tables {
    pthread_mutex_t lock;
    /* under lock */
    struct share_inode *by_id[SHARE_BUCKETS], *by_key[SHARE_BUCKETS];
    struct share_file *files[SHARE_BUCKETS];
    uint64_t last_id;
    unsigned inode_count, file_count;
    /* fixed */
    unsigned inodes_max, files_max;
};

/* Arguments and answers that are not file data. */
#define SHARE_ARGS_MAX (72u << 10)
#define SHARE_REPLY_MAX (68u << 10)

/* One request as it is carried out, on one thread. */
struct share_call {
    struct share *share;
    const struct share_request *request;
    const struct fuse_in_header *header;
    /* what follows the header, but for WRITE's data; a copy, with a NUL behind it */
    union {
        uint8_t args[SHARE_ARGS_MAX + 1];
        uint64_t args_align;
    };
    size_t args_size;
    size_t taken; /* of args, by share_take_name */
    /* the answer behind its header */
    union {
        uint8_t reply[SHARE_REPLY_MAX];
        uint64_t reply_align;
    };
    size_t reply_size;
    bool is_direct; /* reply_size bytes are in the guest's memory already */
    /* under share.lock: the request, if it may come to wait, until it does or is done */
    struct share_request *may_wait;
};

struct share_creds {
    bool keeps_ids; /* the process may act as any user: files belong to whom the guest says */
};

/* ---- locks ---- */

/* A piece of a file, with what lock is on it (F_RDLCK, F_WRLCK). */
struct share_range {
    uint64_t start, end; /* the last byte; INT64_MAX: to the end, wherever that is */
    uint32_t type, pid;  /* pid: the guest's, who set it */
};

/* Sorted, without overlaps; what touches and is of one type is one. */
struct share_ranges {
    struct share_range *list;
    unsigned count;
};

/* What a request asks for. */
struct share_lock {
    bool is_flock;
    uint64_t owner;           /* not of flock, which is the open file's */
    struct share_range range; /* type may be F_UNLCK */
};

struct share_locks {
    pthread_mutex_t lock;
    /* under lock */
    struct share_lock_owner *owners;
    unsigned owner_count, range_count;
    unsigned owners_max; /* fixed */
};

#define SHARE_THREADS 4

struct share {
    struct share_config config;
    int proc_fd; /* /proc/self/fd */
    uint64_t root_dev;
    bool is_flushless; /* the root's file system: share_is_flushless */
    struct share_creds creds;
    struct share_tables tables;
    _Atomic uint32_t minor;     /* of the protocol, 0: before INIT */
    _Atomic bool is_write_late; /* the guest writes from its page cache, when it likes */
    _Atomic bool has_locks;     /* the guest's locks come here */
    struct share_locks locks;

    pthread_mutex_t lock;
    _Atomic uint32_t has_first; /* there is one: for the thread that looks without the lock */
    _Atomic uint32_t changes;   /* counted up with each request, and to stop: threads sleep on it */
    unsigned sleepers;
    struct share_request *first, **last; /* under lock, as the rest */
    bool is_stopping;
    bool can_spin;    /* fixed */
    bool is_spinning; /* one thread looks for the next request, and need not be woken */
    struct spin_wait spin;
    uint64_t idle_ns; /* when the list was last found empty */
    pthread_t threads[SHARE_THREADS];
    struct share_call *calls; /* one for each thread */
    unsigned thread_count;
    /* under lock, while it is opened: threads that can serve, and why one cannot */
    pthread_cond_t is_ready;
    unsigned ready_count;
    struct err failure; /* code 0: none */
    /* under lock: requests that wait for a file's lock, and threads of such that came to an end */
    struct share_wait *waits, *ended_waits;
    unsigned wait_count; /* of `waits` */
    pthread_cond_t no_waits;
};

/* ---- share_dispatch.c ---- */

/*
 * Carry out one request; returns bytes of the answer, or SHARE_LATER: somebody else answers it, or
 * has done so already. `call` is scratch.
 */
#define SHARE_LATER UINT32_MAX
uint32_t share_serve(struct share *share, struct share_request *request, struct share_call *call);

/* Answer a request that has a header and room, with no more than 0 or -errno. */
uint32_t share_answer(const struct share_request *request, int rc);

/* Copy what is in front of the request; false when it has not even a header. */
bool share_read_header(struct share_request *request);

/* The next NUL-terminated name of the arguments, from `taken` on: NULL when there is none. */
const char *share_take_text(struct share_call *c);
/* The same; it must be one that can be in a folder: no "/", not empty, ".", or "..". */
const char *share_take_name(struct share_call *c);

/* Copy from or to the pieces, from `offset` on; returns bytes copied. */
size_t share_iov_copy(const struct iovec *iov, unsigned count, uint64_t offset, uint8_t *to,
                      const uint8_t *from, size_t size);
/* The pieces of [offset, offset + size); returns their number. */
unsigned share_iov_cut(struct iovec out[SHARE_IOV_MAX], const struct iovec *iov, unsigned count,
                       uint64_t offset, uint64_t size);

/* ---- share_tables.c ---- */

int share_tables_init(struct share_tables *tables, unsigned descriptors_max);
/* Everything but the root. */
void share_tables_clear(struct share_tables *tables);
void share_tables_fini(struct share_tables *tables);

/* What `fd` (O_PATH), which it takes over, stands for. */
struct share_inode_key {
    int fd;
    uint32_t type;
    uint64_t dev, ino, mount;
};
int share_tables_set_root(struct share_tables *tables, const struct share_inode_key *key);

/*
 * The inode of the key, known or new, with one look-up more: 0, -ENFILE when there are too many, or
 * -ENOMEM. *out is a reference.
 */
int share_inode_learn(struct share_tables *tables, const struct share_inode_key *key,
                      struct share_inode **out);
/* A reference; NULL: the guest was never given the number, or has forgotten it. */
struct share_inode *share_inode_get(struct share_tables *tables, uint64_t id);
void share_inode_put(struct share_tables *tables, struct share_inode *inode);
void share_inode_forget(struct share_tables *tables, uint64_t id, uint64_t lookups);

/* An open file of `inode`, with `fd`, which it takes over: 0, -ENFILE or -ENOMEM. */
int share_file_add(struct share_tables *tables, struct share_inode *inode, int fd, uint64_t *id);
/* A reference; NULL when there is no such handle of inode number `node`. */
struct share_file *share_file_get(struct share_tables *tables, uint64_t id, uint64_t node);
void share_file_put(struct share_tables *tables, struct share_file *file);
/* One reference more; false when it has been released. */
bool share_file_ref(struct share_tables *tables, struct share_file *file);
/* False when there is no such handle. */
bool share_file_release(struct share_tables *tables, uint64_t id, uint64_t node);

/* ---- share_creds.c ---- */

void share_creds_init(struct share_creds *creds);
/* A thread that serves: its umask and file-system identity are its own from now on. */
int share_creds_thread(struct err *e);
/*
 * Act as the user that the request names, for what is made (when ids are kept), with `umask`. Ends
 * with share_creds_leave. 0 or -errno.
 */
int share_creds_enter(const struct share_call *c, uint32_t umask);
void share_creds_leave(const struct share_call *c);
/* Without the right to keep set-user-ID bits of what is written; share_creds_leave ends it. */
int share_creds_drop_fsetid(const struct share_call *c);
void share_creds_regain_fsetid(const struct share_call *c);

/* ---- share_ranges.c ---- */

/*
 * What *old becomes when *change is set (F_UNLCK: taken away): *out, whose list is malloc'ed, or
 * -ENOMEM.
 */
int share_ranges_plan(const struct share_ranges *old, const struct share_range *change,
                      struct share_ranges *out);

/* ---- share_locks.c: locks of files; 0 or -errno ---- */

void share_locks_init(struct share_locks *locks, unsigned owners_max);
/* All that are held, by files that have been released. */
void share_locks_clear(struct share *share);
void share_locks_fini(struct share *share);

/* Set or take away, at once; -EAGAIN: somebody else has it. */
int share_lock_set(struct share *share, struct share_file *file, const struct share_lock *lock);
/*
 * Who means to wait: prepare what share_lock_await takes. A descriptor that stays until
 * share_lock_unpin, or -errno.
 */
int share_lock_pin(struct share *share, struct share_file *file, const struct share_lock *lock);
void share_lock_unpin(struct share *share, struct share_file *file, const struct share_lock *lock);
/*
 * Block until it can be had: 0, then share_lock_set sees whether it still can. breakable_break ends
 * it with -EINTR; then share_lock_undo.
 */
int share_lock_await(int fd, const struct share_lock *lock);
/* What share_lock_await may have got and nobody has taken note of goes back. */
void share_lock_undo(struct share *share, struct share_file *file, const struct share_lock *lock);

/* `owner` closes a descriptor of the file: it loses what it has locked there. */
void share_locks_flush(struct share *share, struct share_inode *inode, uint64_t owner);
/* The file was released: what was locked by it goes. */
void share_locks_release(struct share *share, struct share_file *file, bool has_flock);

/* ---- share_waits.c ---- */

/* What an operation returns whose request is answered later. */
#define SHARE_WAITS 1

/*
 * The call's request waits for the lock, on a thread of its own: SHARE_WAITS, and the reference to
 * the file is its; or -errno.
 */
int share_wait_begin(struct share_call *c, struct share_file *file, const struct share_lock *lock);
/* Under share.lock: interrupt request number *unique, or each (NULL); false when there is none. */
bool share_wait_interrupt(struct share *share, const uint64_t *unique);
/* Wait for those that have been told to stop. */
void share_waits_join(struct share *share);

/* ---- operations: 0, with the answer in `reply`, or -errno ---- */

typedef int share_op_fn(struct share_call *c, struct share_inode *inode);

/* share_names.c */
share_op_fn share_lookup, share_readlink, share_symlink, share_mknod, share_mkdir, share_unlink,
    share_rmdir, share_rename, share_rename2, share_link;
/* Look `name` up in a folder and count that: fills *entry. */
int share_lookup_name(struct share_call *c, struct share_inode *parent, const char *name,
                      struct fuse_entry_out *entry);
/* The answer of LOOKUP and its like, for a descriptor (O_PATH), which it takes over. */
int share_enter_fd(struct share_call *c, const struct share_inode *parent, int fd,
                   struct fuse_entry_out *entry);
int share_stat(int fd, struct statx *st);
/* openat2 of one name, beneath the folder. A descriptor or -errno. */
int share_open_name(int folder, const char *name, int flags, uint32_t mode);

/* share_attrs.c */
share_op_fn share_getattr, share_setattr, share_statfs, share_access, share_setxattr,
    share_getxattr, share_listxattr, share_removexattr, share_syncfs;
void share_fill_attr(const struct statx *st, struct fuse_attr *attr);

/* ---- share_cache.c ---- */

/* How long the guest may use names and attributes unasked, in seconds. */
uint32_t share_valid_s(const struct share *share);
/* Does FLUSH do nothing on the file system of the descriptor? */
bool share_is_flushless(int fd);
/* The FOPEN_* flags of a file that was opened with flags `asked`, or made, and of a folder. */
uint32_t share_cache_open(struct share *share, struct share_file *file, uint32_t asked,
                          bool is_new);
uint32_t share_cache_opendir(const struct share *share);
/* The guest reads by this handle. */
void share_cache_read(struct share *share, struct share_file *file);

/* share_locks.c */
share_op_fn share_getlk, share_setlk;

/* share_files.c */
share_op_fn share_open_file, share_create, share_read, share_write, share_flush, share_fsync,
    share_release, share_fallocate, share_lseek, share_copy_file_range;
/* Open what `inode` stands for, a file or a folder: a descriptor or -errno. */
int share_reopen(const struct share *share, const struct share_inode *inode, int flags);
/* The path of a descriptor beneath proc_fd. */
#define SHARE_FD_NAME 16
void share_fd_name(int fd, char name[SHARE_FD_NAME]);

/* share_dirs.c */
share_op_fn share_opendir, share_readdir, share_readdirplus;

#endif
