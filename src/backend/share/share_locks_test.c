/*
 * share_locks_test.c - locks of a shared folder's files: among a guest's processes, between guests
 * that share the folder, and between a guest and the host; those who wait; and bounds
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "backend/share/share_impl.h"
#include "backend/share/testing.h"
#include "backend/share/waiting.h"
#include "base/bits.h"

#define END ((uint64_t)INT64_MAX)

static struct fs_test *setup(void)
{
    struct share_config like = {.has_locks = true, .descriptors_max = 400};

    return fs_setup_like(&like);
}

/* ---- requests ---- */

static struct fuse_lk_in lock_args(uint64_t fh, uint64_t owner, uint32_t type, uint64_t start,
                                   uint64_t end)
{
    return (struct fuse_lk_in){
        .fh = fh,
        .owner = owner,
        .lk = {.start = start, .end = end, .type = type, .pid = (uint32_t)owner * 10}};
}

static int lock(struct fs_test *f, uint64_t node, uint64_t fh, uint64_t owner, uint32_t type,
                uint64_t start, uint64_t end)
{
    struct fuse_lk_in in = lock_args(fh, owner, type, start, end);

    return fs_send(f, FUSE_SETLK, node, &in, sizeof(in));
}

/* What keeps an owner from a lock. */
static struct fuse_file_lock ask(struct fs_test *f, uint64_t node, uint64_t fh, uint64_t owner,
                                 uint32_t type, uint64_t start, uint64_t end)
{
    struct fuse_lk_in in = lock_args(fh, owner, type, start, end);

    assert_int_equal(fs_send(f, FUSE_GETLK, node, &in, sizeof(in)), 0);
    assert_int_equal(f->reply_size, sizeof(struct fuse_lk_out));
    return ((struct fuse_lk_out *)f->reply)->lk;
}

static int lock_file(struct fs_test *f, uint64_t node, uint64_t fh, uint32_t type)
{
    struct fuse_lk_in in = lock_args(fh, 0, type, 0, END);

    in.lk_flags = FUSE_LK_FLOCK;
    return fs_send(f, FUSE_SETLK, node, &in, sizeof(in));
}

static int flush(struct fs_test *f, uint64_t node, uint64_t fh, uint64_t owner)
{
    struct fuse_flush_in in = {.fh = fh, .lock_owner = owner};

    return fs_send(f, FUSE_FLUSH, node, &in, sizeof(in));
}

/* ---- the host's side ---- */

static int open_here(const struct fs_test *f)
{
    int fd = openat(f->dir, "a", O_RDWR | O_CLOEXEC);

    assert_true(fd >= 0);
    return fd;
}

/* As a program of the host that has the file open: 0 or -EAGAIN. */
static int lock_here(int fd, int type, off_t start, off_t size)
{
    struct flock l = {.l_type = (short)type, .l_start = start, .l_len = size};

    return fcntl(fd, F_OFD_SETLK, &l) == 0 ? 0 : -errno;
}

/* ---- locks ---- */

static void owners_exclude_each_other(void **state)
{
    struct fs_test *f = setup();
    uint64_t a = fs_look_up(f, 1, "a"), x = fs_open_node(f, a, O_RDWR), y;

    y = fs_open_node(f, a, O_RDWR);
    assert_int_equal(lock(f, a, x, 1, F_WRLCK, 10, 19), 0);
    assert_int_equal(lock(f, a, x, 2, F_RDLCK, 19, 30), -EAGAIN); /* by the same handle */
    assert_int_equal(lock(f, a, y, 2, F_WRLCK, 0, END), -EAGAIN);
    assert_int_equal(lock(f, a, y, 2, F_WRLCK, 20, END), 0);
    assert_int_equal(lock(f, a, y, 1, F_WRLCK, 15, 17), 0); /* its own, by another handle */
    struct fuse_file_lock l = ask(f, a, y, 2, F_RDLCK, 0, 15);
    assert_int_equal(l.type, F_WRLCK);
    assert_true(l.start == 10 && l.end == 19 && l.pid == 10);
    l = ask(f, a, x, 3, F_RDLCK, 100, 200);
    assert_true(l.type == F_WRLCK && l.start == 20 && l.end == END && l.pid == 20);
    assert_int_equal(ask(f, a, x, 1, F_WRLCK, 0, 19).type, F_UNLCK);

    /* less of it, and another type */
    assert_int_equal(lock(f, a, x, 1, F_UNLCK, 12, 13), 0);
    assert_int_equal(lock(f, a, x, 2, F_WRLCK, 12, 13), 0);
    assert_int_equal(lock(f, a, x, 2, F_WRLCK, 11, 13), -EAGAIN);
    assert_int_equal(lock(f, a, x, 1, F_RDLCK, 14, 19), 0);
    assert_int_equal(lock(f, a, x, 3, F_RDLCK, 14, 19), 0);
    assert_int_equal(lock(f, a, x, 1, F_WRLCK, 14, 19), -EAGAIN);
    assert_int_equal(lock(f, a, x, 3, F_UNLCK, 0, END), 0);
    assert_int_equal(lock(f, a, x, 1, F_WRLCK, 14, 19), 0);
    assert_int_equal(lock(f, a, x, 3, F_RDLCK, 14, 14), -EAGAIN);
    fs_teardown(f);
}

static void the_host_is_one_of_them(void **state)
{
    struct fs_test *f = setup();
    uint64_t a = fs_look_up(f, 1, "a"), x = fs_open_node(f, a, O_RDWR);
    int fd = open_here(f);

    assert_int_equal(lock(f, a, x, 1, F_WRLCK, 10, 19), 0);
    assert_int_equal(lock_here(fd, F_RDLCK, 15, 1), -EAGAIN);
    assert_int_equal(lock_here(fd, F_WRLCK, 20, 0), 0);
    assert_int_equal(lock(f, a, x, 1, F_RDLCK, 20, 20), -EAGAIN);
    struct fuse_file_lock l = ask(f, a, x, 1, F_WRLCK, 0, END);
    assert_true(l.type == F_WRLCK && l.start == 20 && l.end == END && l.pid == 0);
    close(fd);
    assert_int_equal(lock(f, a, x, 1, F_RDLCK, 20, 20), 0);

    fd = open_here(f);
    assert_int_equal(flock(fd, LOCK_SH), 0);
    assert_int_equal(lock_file(f, a, x, F_WRLCK), -EAGAIN);
    assert_int_equal(lock_file(f, a, x, F_RDLCK), 0);
    assert_int_equal(flock(fd, LOCK_UN), 0);
    assert_int_equal(lock_file(f, a, x, F_WRLCK), 0);
    assert_int_equal(flock(fd, LOCK_SH | LOCK_NB), -1);
    assert_int_equal(lock_file(f, a, x, F_UNLCK), 0);
    assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), 0);
    close(fd);
    fs_teardown(f);
}

static void guests_exclude_each_other(void **state)
{
    struct fs_test *f = setup(), other = {.reply = NULL};
    struct share_config config = {.path = f->folder, .has_locks = true, .descriptors_max = 100};
    uint64_t a = fs_look_up(f, 1, "a"), x = fs_open_node(f, a, O_RDWR);
    struct err e;

    other.reply = other.answer + sizeof(struct fuse_out_header);
    assert_int_equal(share_open(&config, &other.share, &e), 0);
    assert_int_equal(fs_init(&other, 7, 36), 0);
    uint64_t b = fs_look_up(&other, 1, "a"), y = fs_open_node(&other, b, O_RDWR);
    assert_int_equal(lock(f, a, x, 1, F_WRLCK, 0, 9), 0);
    assert_int_equal(lock(&other, b, y, 1, F_WRLCK, 9, 9), -EAGAIN);
    assert_true(ask(&other, b, y, 1, F_WRLCK, 9, 9).pid == 0); /* no process of that guest */
    assert_int_equal(lock(&other, b, y, 1, F_WRLCK, 10, 10), 0);
    assert_int_equal(lock(f, a, x, 1, F_WRLCK, 10, 10), -EAGAIN);
    assert_int_equal(lock_file(f, a, x, F_WRLCK), 0);
    assert_int_equal(lock_file(&other, b, y, F_RDLCK), -EAGAIN);
    share_reset(f->share); /* one guest begins again */
    assert_int_equal(lock_file(&other, b, y, F_RDLCK), 0);
    assert_int_equal(lock(&other, b, y, 1, F_WRLCK, 0, END), 0);
    share_close(other.share);
    fs_teardown(f);
}

static void closing_gives_locks_back(void **state)
{
    struct fs_test *f = setup();
    uint64_t a = fs_look_up(f, 1, "a"), x = fs_open_node(f, a, O_RDWR), y;
    unsigned before = fs_count_descriptors();
    int fd = open_here(f);

    /* of one process, by whichever handle */
    y = fs_open_node(f, a, O_RDWR);
    assert_int_equal(lock(f, a, x, 1, F_WRLCK, 0, 9), 0);
    assert_int_equal(lock(f, a, x, 2, F_WRLCK, 10, 19), 0);
    assert_int_equal(flush(f, a, y, 1), 0);
    assert_int_equal(lock_here(fd, F_WRLCK, 0, 10), 0);
    assert_int_equal(lock_here(fd, F_WRLCK, 10, 1), -EAGAIN);
    /* of an open file, when it is released */
    assert_int_equal(fs_release(f, FUSE_RELEASE, a, y), 0);
    assert_int_equal(lock_here(fd, F_WRLCK, 10, 1), -EAGAIN);
    assert_int_equal(lock_file(f, a, x, F_WRLCK), 0);
    assert_int_equal(fs_release(f, FUSE_RELEASE, a, x), 0);
    assert_int_equal(lock_here(fd, F_WRLCK, 0, 0), 0);
    assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), 0);
    assert_int_equal(lock(f, a, x, 1, F_RDLCK, 0, 9), -EBADF);
    assert_int_equal(lock_file(f, a, x, F_RDLCK), -EBADF);
    close(fd);
    assert_int_equal(fs_count_descriptors(), before - 1);

    /* of all, when the session ends */
    x = fs_open_node(f, a, O_RDWR);
    assert_int_equal(lock(f, a, x, 1, F_WRLCK, 0, 9), 0);
    assert_int_equal(lock_file(f, a, x, F_WRLCK), 0);
    assert_int_equal(fs_send(f, FUSE_DESTROY, 0, "", 0), 0);
    fd = open_here(f);
    assert_int_equal(lock_here(fd, F_WRLCK, 0, 0), 0);
    assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), 0);
    close(fd);
    fs_teardown(f);
}

static void only_when_both_ask_for_them(void **state)
{
    struct fuse_init_in in = {.major = 7, .minor = 36, .flags = UINT32_MAX};
    struct fs_test *f = fs_setup();
    const struct fuse_init_out *out = (void *)f->reply;
    const struct fuse_open_out *opened = (void *)f->reply;
    uint32_t bits = FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS;

    assert_int_equal(fs_init(f, 7, 36), 0);
    assert_int_equal(out->flags & bits, 0);
    uint64_t a = fs_look_up(f, 1, "a"), x = fs_open_node(f, a, O_RDONLY);
    assert_true(opened->open_flags & FOPEN_NOFLUSH);
    assert_int_equal(lock(f, a, x, 1, F_RDLCK, 0, 9), -ENOSYS);
    assert_int_equal(lock_file(f, a, x, F_RDLCK), -ENOSYS);
    fs_teardown(f);

    f = setup();
    out = (void *)f->reply;
    opened = (void *)f->reply;
    assert_int_equal(fs_init(f, 7, 36), 0);
    assert_int_equal(out->flags & bits, bits);
    a = fs_look_up(f, 1, "a"), x = fs_open_node(f, a, O_RDONLY);
    assert_false(opened->open_flags & FOPEN_NOFLUSH);
    in.flags &= ~bits;
    assert_int_equal(fs_send(f, FUSE_INIT, 0, &in, sizeof(in)), 0);
    assert_int_equal(out->flags & bits, 0);
    assert_int_equal(lock(f, a, x, 1, F_RDLCK, 0, 9), -ENOSYS);
    fs_teardown(f);
}

static void what_makes_no_sense(void **state)
{
    struct fs_test *f = setup();
    uint64_t a = fs_look_up(f, 1, "a"), d = fs_look_up(f, 1, "d"), x = fs_open_node(f, a, O_RDWR);
    struct fuse_lk_in in = lock_args(x, 1, F_UNLCK, 0, END);

    assert_int_equal(lock(f, a, x, 1, 3, 0, 9), -EINVAL);
    assert_int_equal(lock(f, a, x, 1, UINT32_MAX, 0, 9), -EINVAL);
    assert_int_equal(lock(f, a, x, 1, F_RDLCK, 10, 9), -EINVAL);
    assert_int_equal(lock(f, a, x, 1, F_RDLCK, 0, END + 1), -EINVAL);
    assert_int_equal(lock(f, a, x + 1, 1, F_RDLCK, 0, 9), -EBADF);
    assert_int_equal(lock(f, d, x, 1, F_RDLCK, 0, 9), -EBADF);
    assert_int_equal(lock(f, a, x, 1, F_UNLCK, 0, 9), 0); /* there is none */
    assert_int_equal(fs_send(f, FUSE_GETLK, a, &in, sizeof(in)), -EINVAL);
    fs_teardown(f);

    /* what can only be read can only be locked for reading */
    struct share_config like = {.has_locks = true, .is_read_only = true, .descriptors_max = 100};
    f = fs_setup_like(&like);
    a = fs_look_up(f, 1, "a"), x = fs_open_node(f, a, O_RDONLY);
    assert_int_equal(lock(f, a, x, 1, F_WRLCK, 0, 9), -EBADF);
    assert_int_equal(lock(f, a, x, 1, F_RDLCK, 0, 9), 0);
    assert_int_equal(lock(f, a, x, 1, F_WRLCK, 0, 9), -EBADF);
    fs_teardown(f);
}

/* ---- waiting ---- */

struct waiter {
    struct share_waiting w;
    struct {
        struct fuse_in_header header;
        struct fuse_lk_in in;
    } m;
    struct fuse_out_header answer;
    struct iovec from, to;
};

static void begin(struct fs_test *f, struct waiter *w, uint64_t node, const struct fuse_lk_in *in)
{
    *w = (struct waiter){.m = {.header = {.len = sizeof(w->m),
                                          .opcode = FUSE_SETLKW,
                                          .unique = ++f->unique,
                                          .nodeid = node},
                               .in = *in},
                         .from = {&w->m, sizeof(w->m)},
                         .to = {&w->answer, sizeof(w->answer)}};
    share_waiting_submit(&w->w, f->share, &w->from, 1, &w->to, 1);
}

static int end(struct waiter *w)
{
    assert_int_equal(share_waiting_end(&w->w), sizeof(w->answer));
    assert_int_equal(w->answer.unique, w->m.header.unique);
    return w->answer.error;
}

static bool has_ended(struct waiter *w)
{
    pthread_mutex_lock(&w->w.lock);
    bool is_done = w->w.is_done;
    pthread_mutex_unlock(&w->w.lock);
    return is_done;
}

static int interrupt(struct fs_test *f, uint64_t unique)
{
    struct fuse_interrupt_in in = {.unique = unique};

    return fs_send(f, FUSE_INTERRUPT, 0, &in, sizeof(in));
}

static void some_wait(void **state)
{
    struct fs_test *f = setup();
    uint64_t a = fs_look_up(f, 1, "a"), x = fs_open_node(f, a, O_RDWR);
    struct fuse_getattr_in get = {0};
    struct waiter waiters[12];
    int fd = open_here(f);

    /* for a program of the host: more than there are threads; others are served meanwhile */
    assert_int_equal(lock_here(fd, F_WRLCK, 0, 0), 0);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    for (unsigned i = 0; i < ARRAY_SIZE(waiters); i++) {
        struct fuse_lk_in in = lock_args(x, i + 1, F_WRLCK, i * 10, i * 10 + 9);
        in.lk_flags = i == 0 ? FUSE_LK_FLOCK : 0;
        begin(f, &waiters[i], a, &in);
    }
    for (unsigned i = 0; i < 100; i++)
        assert_int_equal(fs_send(f, FUSE_GETATTR, a, &get, sizeof(get)), 0);
    for (unsigned i = 0; i < ARRAY_SIZE(waiters); i++)
        assert_false(has_ended(&waiters[i]));
    assert_int_equal(lock_here(fd, F_UNLCK, 0, 30), 0);
    assert_int_equal(end(&waiters[1]), 0);
    assert_int_equal(end(&waiters[2]), 0);
    assert_false(has_ended(&waiters[0]));
    assert_false(has_ended(&waiters[3]));
    close(fd);
    for (unsigned i = 0; i < ARRAY_SIZE(waiters); i++)
        if (i != 1 && i != 2)
            assert_int_equal(end(&waiters[i]), 0);
    fd = open_here(f);
    assert_int_equal(lock_here(fd, F_WRLCK, 0, 10), 0);
    assert_int_equal(lock_here(fd, F_RDLCK, 10, 1), -EAGAIN);
    assert_int_equal(lock_here(fd, F_RDLCK, 119, 1), -EAGAIN);
    assert_int_equal(lock_here(fd, F_RDLCK, 120, 1), 0);
    assert_int_equal(flock(fd, LOCK_SH | LOCK_NB), -1);

    /* for another process of the guest */
    struct fuse_lk_in in = lock_args(x, 100, F_WRLCK, 15, 15);
    begin(f, &waiters[0], a, &in);
    assert_int_equal(flush(f, a, x, 2), 0);
    assert_int_equal(end(&waiters[0]), 0);
    assert_int_equal(lock(f, a, x, 2, F_RDLCK, 15, 15), -EAGAIN);
    close(fd);
    fs_teardown(f);
}

static void who_waits_is_interrupted(void **state)
{
    struct fs_test *f = setup();
    uint64_t a = fs_look_up(f, 1, "a"), x = fs_open_node(f, a, O_RDWR);
    struct waiter w;
    int fd = open_here(f);

    /* what was held before is held afterwards, and no more */
    assert_int_equal(lock_here(fd, F_RDLCK, 50, 1), 0);
    assert_int_equal(lock(f, a, x, 1, F_RDLCK, 10, 19), 0);
    assert_int_equal(lock(f, a, x, 1, F_WRLCK, 30, 39), 0);
    struct fuse_lk_in in = lock_args(x, 1, F_WRLCK, 15, 60);
    for (unsigned i = 0; i < 50; i++) {
        begin(f, &w, a, &in);
        int rc = interrupt(f, w.m.header.unique);
        assert_true(rc == 0); /* wherever it is by now */
        assert_int_equal(end(&w), -EINTR);
    }
    assert_int_equal(interrupt(f, w.m.header.unique), -EAGAIN);
    assert_int_equal(lock_here(fd, F_WRLCK, 0, 10), 0);
    assert_int_equal(lock_here(fd, F_WRLCK, 10, 1), -EAGAIN);
    assert_int_equal(lock_here(fd, F_RDLCK, 10, 10), 0);
    assert_int_equal(lock_here(fd, F_WRLCK, 20, 10), 0);
    assert_int_equal(lock_here(fd, F_RDLCK, 30, 1), -EAGAIN);
    assert_int_equal(lock_here(fd, F_RDLCK, 39, 1), -EAGAIN);
    assert_int_equal(lock_here(fd, F_WRLCK, 40, 0), 0);
    assert_int_equal(lock_here(fd, F_UNLCK, 0, 0), 0);

    /* as it gets the lock: it has it, or has not, and says so */
    for (unsigned i = 0; i < 200; i++) {
        assert_int_equal(lock(f, a, x, 1, F_UNLCK, 0, END), 0);
        assert_int_equal(lock_here(fd, F_WRLCK, 0, 0), 0);
        in = lock_args(x, 1, F_RDLCK, 0, END);
        begin(f, &w, a, &in);
        assert_int_equal(lock_here(fd, F_UNLCK, 0, 0), 0);
        interrupt(f, w.m.header.unique);
        int rc = end(&w);
        assert_true(rc == 0 || rc == -EINTR);
        assert_int_equal(lock_here(fd, F_WRLCK, 7, 1), rc == 0 ? -EAGAIN : 0);
        assert_int_equal(lock_here(fd, F_UNLCK, 0, 0), 0);
    }
    assert_int_equal(flock(fd, LOCK_EX), 0);
    in.lk_flags = FUSE_LK_FLOCK;
    begin(f, &w, a, &in);
    assert_int_equal(interrupt(f, w.m.header.unique), 0);
    assert_int_equal(end(&w), -EINTR);
    close(fd);
    fs_teardown(f);
}

static void nobody_waits_for_those_who_wait(void **state)
{
    unsigned before = fs_count_descriptors();
    struct fs_test *f = setup();
    uint64_t a = fs_look_up(f, 1, "a"), x = fs_open_node(f, a, O_RDWR);
    struct fuse_lk_in in = lock_args(x, 1, F_WRLCK, 0, END);
    struct waiter waiters[6];
    int fd = open_here(f);

    /* a reset */
    assert_int_equal(lock_here(fd, F_RDLCK, 5, 1), 0);
    assert_int_equal(flock(fd, LOCK_SH), 0);
    for (unsigned i = 0; i < ARRAY_SIZE(waiters); i++, in.lk_flags ^= FUSE_LK_FLOCK)
        begin(f, &waiters[i], a, &in);
    share_stop_waiting(f->share);
    for (unsigned i = 0; i < ARRAY_SIZE(waiters); i++)
        assert_int_equal(end(&waiters[i]), -EINTR);
    share_reset(f->share);
    /* the end of the session, of the file, and of the machine */
    assert_int_equal(fs_init(f, 7, 36), 0);
    a = fs_look_up(f, 1, "a"), in.fh = fs_open_node(f, a, O_RDWR);
    for (unsigned i = 0; i < ARRAY_SIZE(waiters); i++, in.lk_flags ^= FUSE_LK_FLOCK)
        begin(f, &waiters[i], a, &in);
    assert_int_equal(fs_release(f, FUSE_RELEASE, a, in.fh), 0);
    close(fd);
    for (unsigned i = 0; i < ARRAY_SIZE(waiters); i++) { /* some had it before that */
        int rc = end(&waiters[i]);
        assert_true(rc == -EBADF || rc == 0);
    }
    fd = open_here(f);
    assert_int_equal(lock_here(fd, F_WRLCK, 0, 0), 0);
    assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), 0);
    in.fh = fs_open_node(f, a, O_RDWR);
    for (unsigned i = 0; i < ARRAY_SIZE(waiters); i++, in.lk_flags ^= FUSE_LK_FLOCK)
        begin(f, &waiters[i], a, &in);
    fs_teardown(f);
    for (unsigned i = 0; i < ARRAY_SIZE(waiters); i++)
        assert_int_equal(end(&waiters[i]), -EINTR);
    close(fd);
    assert_int_equal(fs_count_descriptors(), before);
}

/* ---- bounds ---- */

static void locks_are_bounded(void **state)
{
    struct fs_test *f = setup();
    uint64_t a = fs_look_up(f, 1, "a"), x = fs_open_node(f, a, O_RDWR);
    unsigned before = fs_count_descriptors(), count = 0, waiting = 0;
    static struct waiter waiters[SHARE_WAITS_MAX + 10];
    int fd = open_here(f);

    for (uint64_t owner = 1; lock(f, a, x, owner, F_RDLCK, 0, 9) == 0; owner++)
        count++;
    assert_int_equal(f->error, -ENOLCK);
    assert_int_equal(count, 400 / 8);
    assert_int_equal(fs_count_descriptors(), before + 1 + count);
    for (uint64_t owner = 1; owner <= count; owner++)
        assert_int_equal(flush(f, a, x, owner), 0);
    assert_int_equal(fs_count_descriptors(), before + 1);

    for (count = 0; lock(f, a, x, 1, F_WRLCK, count * 2, count * 2) == 0;)
        count++;
    assert_int_equal(f->error, -ENOLCK);
    assert_int_equal(count, 8192);
    assert_int_equal(lock(f, a, x, 2, F_WRLCK, count * 2, END), -ENOLCK);
    assert_int_equal(lock(f, a, x, 1, F_WRLCK, 2, 6), 0); /* that is fewer */
    assert_int_equal(lock(f, a, x, 1, F_WRLCK, 1000000, END), 0);
    assert_int_equal(lock(f, a, x, 1, F_UNLCK, 1000010, 1000010), 0);
    assert_int_equal(lock(f, a, x, 1, F_UNLCK, 1000020, 1000020), -ENOLCK);
    assert_int_equal(lock(f, a, x, 1, F_UNLCK, 1000010, END), 0);
    assert_int_equal(flush(f, a, x, 1), 0);

    assert_int_equal(flock(fd, LOCK_EX), 0);
    struct fuse_lk_in in = lock_args(x, 1, F_WRLCK, 0, END);
    in.lk_flags = FUSE_LK_FLOCK;
    for (unsigned i = 0; i < ARRAY_SIZE(waiters); i++)
        begin(f, &waiters[i], a, &in);
    assert_int_equal(flush(f, a, x, 1), 0);
    share_stop_waiting(f->share);
    for (unsigned i = 0; i < ARRAY_SIZE(waiters); i++) {
        int rc = end(&waiters[i]);
        assert_true(rc == -EINTR || rc == -ENOLCK);
        waiting += rc == -EINTR;
    }
    assert_true(waiting <= ARRAY_SIZE(waiters));
    close(fd);
    fs_teardown(f);
}

/* Against a byte for each byte. */
static void ranges_are_as_bytes(void **state)
{
    enum { BYTES = 48 };
    uint8_t bytes[BYTES];
    struct share_ranges r = {NULL, 0}, next;
    uint32_t seed = 1;

    memset(bytes, F_UNLCK, sizeof(bytes));
    for (unsigned i = 0; i < 20000; i++) {
        seed = seed * 1103515245 + 12345;
        uint64_t start = (seed >> 8) % BYTES, stop = start + (seed >> 16) % (BYTES - start);
        struct share_range change = {.start = start, .end = stop, .type = (seed >> 24) % 3};
        assert_int_equal(share_ranges_plan(&r, &change, &next), 0);
        assert_true(next.count <= r.count + 2);
        free(r.list);
        r = next;
        memset(bytes + start, (int)change.type, stop - start + 1);
        uint64_t at = 0;
        for (unsigned k = 0; k < r.count; k++) {
            const struct share_range *p = &r.list[k];
            assert_true(p->start >= at && p->end >= p->start && p->end < BYTES);
            assert_true(k == 0 || p[-1].end + 1 < p->start || p[-1].type != p->type);
            for (; at < p->start; at++)
                assert_int_equal(bytes[at], F_UNLCK);
            for (; at <= p->end; at++)
                assert_int_equal(bytes[at], p->type);
        }
        for (; at < BYTES; at++)
            assert_int_equal(bytes[at], F_UNLCK);
    }
    free(r.list);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(owners_exclude_each_other),
        cmocka_unit_test(the_host_is_one_of_them),
        cmocka_unit_test(guests_exclude_each_other),
        cmocka_unit_test(closing_gives_locks_back),
        cmocka_unit_test(only_when_both_ask_for_them),
        cmocka_unit_test(what_makes_no_sense),
        cmocka_unit_test(some_wait),
        cmocka_unit_test(who_waits_is_interrupted),
        cmocka_unit_test(nobody_waits_for_those_who_wait),
        cmocka_unit_test(locks_are_bounded),
        cmocka_unit_test(ranges_are_as_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
