/*
 * share.c - a shared folder: requests, and the threads that carry them out
 *
 * A few threads take requests from one list, as those of a disk do: a slow file system of the host
 * stops the guest's processes that wait for it, and nothing else.
 */
#include "backend/share/share.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "backend/share/share_impl.h"
#include "base/bits.h"
#include "base/clock.h"
#include "os/breakable.h"
#include "os/cpus.h"
#include "os/futex.h"
#include "os/thread.h"

/* Descriptors that stay for disks, sockets and the like. */
#define DESCRIPTORS_RESERVED 512u
#define DESCRIPTORS_MIN 64u
#define DESCRIPTORS_MAX (1u << 20)

unsigned share_descriptors(unsigned count)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return DESCRIPTORS_MIN;
    if (limit.rlim_cur < limit.rlim_max) {
        rlim_t before = limit.rlim_cur;
        limit.rlim_cur = limit.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
            limit.rlim_cur = before;
    }
    rlim_t all = limit.rlim_cur > 2 * DESCRIPTORS_RESERVED ? limit.rlim_cur - DESCRIPTORS_RESERVED
                                                           : limit.rlim_cur / 2;
    return (unsigned)MAX(MIN(all / count, (rlim_t)DESCRIPTORS_MAX), (rlim_t)DESCRIPTORS_MIN);
}

/* ---- threads ---- */

/* Under the lock, which it leaves meanwhile. May return for nothing. */
static void wait_for_work(struct share *share)
{
    share->idle_ns = clock_now_ns();
    if (!share->is_spinning && share->spin.limit_ns != 0) {
        uint64_t start = share->idle_ns;
        share->is_spinning = true;
        pthread_mutex_unlock(&share->lock);
        spin_wait(&share->spin, &share->has_first, 1, start);
        pthread_mutex_lock(&share->lock);
        share->is_spinning = false;
        if (share->first != NULL || share->is_stopping)
            return;
    }
    uint32_t seen = atomic_load(&share->changes);
    share->sleepers++;
    pthread_mutex_unlock(&share->lock);
    futex_wait(&share->changes, seen);
    pthread_mutex_lock(&share->lock);
    share->sleepers--;
    if (share->first != NULL && !share->is_spinning)
        spin_wait_slept(&share->spin, share->idle_ns, clock_now_ns(), share->can_spin);
}

static bool may_wait(const struct share_request *r)
{
    return r->has_header && r->header.opcode == FUSE_SETLKW;
}

/* One request, without the lock. */
static void carry_out(struct share *share, struct share_request *r, struct share_call *call)
{
    bool was_waiting = call->may_wait != NULL;
    uint32_t written = share_serve(share, r, call);

    if (written == SHARE_LATER)
        return;
    if (was_waiting) {
        pthread_mutex_lock(&share->lock);
        call->may_wait = NULL;
        pthread_mutex_unlock(&share->lock);
    }
    r->done(r, written);
}

static void *share_run(void *ctx)
{
    struct share *share = ctx;
    struct err e;
    int rc = share_creds_thread(&e);

    pthread_mutex_lock(&share->lock);
    struct share_call *call = &share->calls[share->ready_count++];
    if (rc != 0)
        share->failure = e;
    pthread_cond_signal(&share->is_ready);
    while (rc == 0) {
        struct share_request *r = share->first;
        if (r == NULL) {
            if (share->is_stopping)
                break;
            wait_for_work(share);
            continue;
        }
        share->first = r->next;
        if (share->first == NULL) {
            share->last = &share->first;
            atomic_store_explicit(&share->has_first, 0, memory_order_relaxed);
        }
        call->may_wait = may_wait(r) ? r : NULL;
        pthread_mutex_unlock(&share->lock);
        carry_out(share, r, call);
        pthread_mutex_lock(&share->lock);
    }
    pthread_mutex_unlock(&share->lock);
    return NULL;
}

void share_submit(struct share *share, struct share_request *r)
{
    r->next = NULL;
    r->is_interrupted = false;
    r->has_header = share_read_header(r);
    pthread_mutex_lock(&share->lock);
    if (r->is_urgent) {
        r->next = share->first;
        share->first = r;
        if (r->next == NULL)
            share->last = &r->next;
    } else {
        *share->last = r;
        share->last = &r->next;
    }
    atomic_store_explicit(&share->has_first, 1, memory_order_relaxed);
    atomic_fetch_add(&share->changes, 1);
    bool is_awaited = share->is_spinning && share->first == r && r->next == NULL;
    bool wakes = share->sleepers != 0 && !is_awaited;
    pthread_mutex_unlock(&share->lock);
    if (wakes)
        futex_wake(&share->changes);
}

static int start_threads(struct share *share, struct err *e)
{
    int rc = 0;

    while (share->thread_count < ARRAY_SIZE(share->threads) && rc == 0) {
        rc = thread_start(&share->threads[share->thread_count], "doppel-share", share_run, share);
        share->thread_count += rc == 0;
    }
    if (rc != 0)
        return err_set(e, -rc, "start the threads of the folder '%s'", share->config.path);
    pthread_mutex_lock(&share->lock);
    while (share->ready_count < share->thread_count)
        pthread_cond_wait(&share->is_ready, &share->lock);
    rc = -share->failure.code;
    if (rc != 0 && e != NULL)
        *e = share->failure;
    pthread_mutex_unlock(&share->lock);
    return rc;
}

/* Under the lock. */
static void stop_waiting(struct share *share)
{
    share_wait_interrupt(share, NULL);
    for (struct share_request *r = share->first; r != NULL; r = r->next)
        if (may_wait(r))
            r->is_interrupted = true;
    for (unsigned i = 0; i < share->thread_count; i++)
        if (share->calls[i].may_wait != NULL)
            share->calls[i].may_wait->is_interrupted = true;
}

void share_stop_waiting(struct share *share)
{
    pthread_mutex_lock(&share->lock);
    stop_waiting(share);
    pthread_mutex_unlock(&share->lock);
}

static void stop_threads(struct share *share)
{
    pthread_mutex_lock(&share->lock);
    stop_waiting(share);
    share->is_stopping = true;
    atomic_fetch_add(&share->changes, 1);
    pthread_mutex_unlock(&share->lock);
    for (unsigned i = 0; i < share->thread_count; i++)
        futex_wake(&share->changes);
    for (unsigned i = 0; i < share->thread_count; i++)
        pthread_join(share->threads[i], NULL);
    share_waits_join(share);
}

/* ---- opening ---- */

static int open_root(struct share *share, struct err *e)
{
    const char *path = share->config.path;
    struct statx st;
    int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0)
        return err_set(e, errno, "share the folder '%s'", path);
    int rc = share_stat(fd, &st);
    if (rc != 0) {
        close(fd);
        return err_set(e, -rc, "look at the folder '%s'", path);
    }
    struct share_inode_key key = {.fd = fd,
                                  .type = S_IFDIR,
                                  .dev = (uint64_t)st.stx_dev_major << 32 | st.stx_dev_minor,
                                  .ino = st.stx_ino,
                                  .mount = st.stx_mnt_id};
    share->root_dev = key.dev;
    share->is_flushless = share_is_flushless(fd);
    rc = share_tables_set_root(&share->tables, &key);
    if (rc != 0) {
        close(fd);
        return err_set(e, -rc, "share the folder '%s'", path);
    }
    return 0;
}

/* What the server relies on, tried on the folder itself. */
static int try_host(struct share *share, struct err *e)
{
    const char *path = share->config.path;
    struct share_inode *root = share_inode_get(&share->tables, FUSE_ROOT_ID);
    int fd = share_open_name(root->fd, ".", O_PATH | O_NOFOLLOW, 0);
    int listed = share_reopen(share, root, O_RDONLY | O_DIRECTORY);

    share_inode_put(&share->tables, root);
    if (fd >= 0)
        close(fd);
    if (listed >= 0)
        close(listed);
    if (fd == -ENOSYS)
        return err_set(e, 0,
                       "share the folder '%s': the host's kernel has no openat2, which keeps the "
                       "guest inside; it takes Linux 5.6 or later",
                       path);
    if (fd < 0)
        return err_set(e, -fd, "search the folder '%s'", path);
    if (listed < 0)
        return err_set(e, -listed, "list the folder '%s'", path);
    return 0;
}

static int open_parts(struct share *share, struct err *e)
{
    if (share->calls == NULL)
        return err_set(e, ENOMEM, "share the folder '%s'", share->config.path);
    share->proc_fd = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (share->proc_fd < 0)
        return err_set(e, errno, "share the folder '%s': it takes /proc, open /proc/self/fd",
                       share->config.path);
    share_creds_init(&share->creds);
    int rc = share->config.has_locks ? breakable_init() : 0;
    if (rc != 0)
        return err_set(e, -rc, "share the locks of the folder '%s'", share->config.path);
    rc = open_root(share, e);
    if (rc == 0)
        rc = try_host(share, e);
    return rc == 0 ? start_threads(share, e) : rc;
}

int share_open(const struct share_config *config, struct share **out, struct err *e)
{
    struct share *share = calloc(1, sizeof(*share));

    if (share == NULL)
        return err_set(e, ENOMEM, "share the folder '%s'", config->path);
    share->config = *config;
    share->last = &share->first;
    share->proc_fd = -1;
    share->can_spin = host_cpu_count() > 1;
    pthread_mutex_init(&share->lock, NULL);
    pthread_cond_init(&share->is_ready, NULL);
    pthread_cond_init(&share->no_waits, NULL);
    share->calls = calloc(SHARE_THREADS, sizeof(*share->calls));
    unsigned for_locks = config->has_locks ? config->descriptors_max / 8 : 0;
    share_locks_init(&share->locks, for_locks);
    share_tables_init(&share->tables, config->descriptors_max - for_locks);
    int rc = open_parts(share, e);
    if (rc != 0) {
        share_close(share);
        return rc;
    }
    *out = share;
    return 0;
}

void share_reset(struct share *share)
{
    share->minor = 0;
    share_tables_clear(&share->tables);
    share_locks_clear(share);
}

void share_close(struct share *share)
{
    if (share == NULL)
        return;
    stop_threads(share);
    share_tables_clear(&share->tables);
    share_locks_fini(share);
    share_tables_fini(&share->tables);
    if (share->proc_fd >= 0)
        close(share->proc_fd);
    free(share->calls);
    pthread_cond_destroy(&share->no_waits);
    pthread_cond_destroy(&share->is_ready);
    pthread_mutex_destroy(&share->lock);
    free(share);
}

bool share_has_session(const struct share *share)
{
    return share->minor != 0;
}
