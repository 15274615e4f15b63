/*
 * share_cache_test.c - what the server tells a guest to keep, and when it tells it to drop it
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "backend/share/share_impl.h"
#include "backend/share/testing.h"

static int64_t clock_ahead_s;

static int64_t test_now_s(void)
{
    return (int64_t)time(NULL) + clock_ahead_s;
}

static struct fs_test *setup_cache(enum share_cache cache)
{
    struct share_config like = {.cache = cache, .descriptors_max = 1000, .now_s = test_now_s};

    clock_ahead_s = 10;
    return fs_setup_like(&like);
}

/*
 * Opens, reads if asked to, and releases; returns the FOPEN_* flags, but for NOFLUSH of what can be
 * written, which is the file system's matter.
 */
static uint32_t open_read(struct fs_test *f, uint64_t node, uint32_t flags, bool reads)
{
    uint64_t fh = fs_open_node(f, node, flags);
    uint32_t got = ((struct fuse_open_out *)f->reply)->open_flags;

    if (reads)
        assert_int_equal(fs_read_at(f, node, fh, 0, 100), 0);
    assert_int_equal(fs_release(f, FUSE_RELEASE, node, fh), 0);
    return (flags & O_ACCMODE) == O_RDONLY ? got : got & ~(uint32_t)FOPEN_NOFLUSH;
}

/* A time of its own: two changes within a tick of the clock would look alike. */
static void touch(const struct fs_test *f, const char *name, long second)
{
    struct timespec times[2] = {{.tv_sec = second}, {.tv_sec = second}};

    assert_int_equal(utimensat(f->dir, name, times, 0), 0);
}

static void data_is_kept_while_nobody_changes_it(void **state)
{
    struct fs_test *f = setup_cache(SHARE_CACHE_AUTO);
    uint64_t node = fs_look_up(f, 1, "a");
    const uint32_t nothing = FOPEN_NOFLUSH, keep = FOPEN_NOFLUSH | FOPEN_KEEP_CACHE;

    assert_int_equal(open_read(f, node, O_RDONLY, false), nothing);
    /* nobody said that the cache was emptied */
    assert_int_equal(open_read(f, node, O_RDONLY, true), nothing);
    assert_int_equal(open_read(f, node, O_RDONLY, false), keep);
    assert_int_equal(open_read(f, node, O_RDWR, true), FOPEN_KEEP_CACHE);
    assert_int_equal(open_read(f, fs_look_up(f, fs_look_up(f, 1, "d"), "b"), O_RDONLY, true),
                     nothing);

    /* one that was open before the change says nothing about what is kept after it */
    uint64_t fh = fs_open_node(f, node, O_RDONLY);
    touch(f, "a", 1000);
    assert_int_equal(fs_read_at(f, node, fh, 0, 100), 0);
    assert_int_equal(open_read(f, node, O_RDONLY, false), nothing);
    assert_int_equal(open_read(f, node, O_RDONLY, true), nothing);
    assert_int_equal(open_read(f, node, O_RDONLY, true), keep);
    fs_put_file(f, "a", "another size");
    assert_int_equal(open_read(f, node, O_RDONLY, true), nothing);
    assert_int_equal(open_read(f, node, O_RDONLY, true), keep);

    /* an answer that the guest takes late: its cache was emptied, but of what was there before */
    touch(f, "a", 2000);
    uint64_t late = fs_open_node(f, node, O_RDONLY);
    touch(f, "a", 3000);
    assert_int_equal(fs_read_at(f, node, late, 0, 100), 0);
    assert_int_equal(open_read(f, node, O_RDONLY, true), nothing);

    /* what the guest itself writes and cuts off */
    assert_int_equal(open_read(f, node, O_RDONLY, true), keep);
    assert_int_equal(fs_write_text(f, node, late, 0, 0, "x"), -EBADF);
    uint64_t writer = fs_open_node(f, node, O_WRONLY);
    assert_int_equal(fs_write_text(f, node, writer, 0, 0, "longer than all of it was"), 0);
    assert_int_equal(open_read(f, node, O_RDONLY, true), nothing);
    assert_int_equal(open_read(f, node, O_RDONLY, true), keep);
    assert_int_equal(open_read(f, node, O_WRONLY | O_TRUNC, false), 0);

    /* a change this moment may be followed by one with the same time */
    clock_ahead_s = 0;
    fs_put_file(f, "a", "now");
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(open_read(f, node, O_RDONLY, true), nothing);
    fs_teardown(f);
}

static void names_are_kept_a_second(void **state)
{
    static const uint32_t valid_s[] = {
        [SHARE_CACHE_AUTO] = 1, [SHARE_CACHE_ALWAYS] = 86400, [SHARE_CACHE_NEVER] = 0};

    for (enum share_cache cache = SHARE_CACHE_AUTO; cache <= SHARE_CACHE_NEVER; cache++) {
        struct fs_test *f = setup_cache(cache);
        const struct fuse_entry_out *entry = (const void *)f->reply;
        uint64_t node = fs_look_up(f, 1, "a");
        assert_int_equal(entry->entry_valid, valid_s[cache]);
        assert_int_equal(entry->attr_valid, valid_s[cache]);
        struct fuse_getattr_in get = {0};
        assert_int_equal(fs_send(f, FUSE_GETATTR, node, &get, sizeof(get)), 0);
        assert_int_equal(((struct fuse_attr_out *)f->reply)->attr_valid, valid_s[cache]);
        /* that there is none, too */
        if (cache == SHARE_CACHE_NEVER) {
            assert_int_equal(fs_send_name(f, FUSE_LOOKUP, 1, "none"), -ENOENT);
        } else {
            assert_int_equal(fs_look_up(f, 1, "none"), 0);
            assert_int_equal(entry->entry_valid, valid_s[cache]);
        }
        fs_teardown(f);
    }
}

static void everything_is_kept(void **state)
{
    struct fs_test *f = setup_cache(SHARE_CACHE_ALWAYS);
    const struct fuse_open_out *out = (const void *)f->reply;

    assert_int_equal(fs_init(f, 7, 36), 0);
    assert_true(((struct fuse_init_out *)f->reply)->flags & FUSE_WRITEBACK_CACHE);
    uint64_t node = fs_look_up(f, 1, "a");
    assert_int_equal(open_read(f, node, O_RDONLY, false), FOPEN_NOFLUSH | FOPEN_KEEP_CACHE);
    struct fuse_open_in in = {.flags = O_DIRECTORY};
    assert_int_equal(fs_send(f, FUSE_OPENDIR, 1, &in, sizeof(in)), 0);
    assert_int_equal(out->open_flags, FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE);

    /* pages that are written in part are read first, and go where the guest says */
    uint64_t fh = fs_open_node(f, node, O_WRONLY | O_APPEND);
    assert_int_equal(out->open_flags & ~(uint32_t)FOPEN_NOFLUSH, FOPEN_KEEP_CACHE);
    assert_int_equal(fs_read_at(f, node, fh, 0, 100), 0);
    assert_int_equal(f->reply_size, 5);
    assert_int_equal(fs_write_text(f, node, fh, 0, FUSE_WRITE_CACHE, "J"), 0);
    assert_int_equal(fs_read_at(f, node, fh, 0, 100), 0);
    assert_memory_equal(f->reply, "Jello", 5);

    /* a driver that cannot write late is not taken to do so */
    struct fuse_init_in plain = {.major = 7, .minor = 36, .flags = FUSE_MAX_PAGES};
    assert_int_equal(fs_send(f, FUSE_INIT, 0, &plain, sizeof(plain)), 0);
    fh = fs_open_node(f, node, O_WRONLY | O_APPEND);
    assert_int_equal(fs_read_at(f, node, fh, 0, 100), -EBADF);
    assert_int_equal(fs_write_text(f, node, fh, 0, 0, "!"), 0);
    assert_int_equal(open_read(f, node, O_RDONLY, true), FOPEN_NOFLUSH | FOPEN_KEEP_CACHE);
    fh = fs_open_node(f, node, O_RDONLY);
    assert_int_equal(fs_read_at(f, node, fh, 0, 100), 0);
    assert_memory_equal(f->reply, "Jello!", 6);
    fs_teardown(f);
}

static void nothing_is_kept(void **state)
{
    struct fs_test *f = setup_cache(SHARE_CACHE_NEVER);
    uint64_t node = fs_look_up(f, 1, "a");

    assert_int_equal(fs_init(f, 7, 36), 0);
    assert_false(((struct fuse_init_out *)f->reply)->flags & FUSE_WRITEBACK_CACHE);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(open_read(f, node, O_RDWR, true), FOPEN_DIRECT_IO);
    struct fuse_open_in in = {.flags = O_DIRECTORY};
    assert_int_equal(fs_send(f, FUSE_OPENDIR, 1, &in, sizeof(in)), 0);
    assert_int_equal(((struct fuse_open_out *)f->reply)->open_flags, 0);
    fs_teardown(f);
}

/* FLUSH is not asked for where it does nothing. */
static void flushes_are_saved(void **state)
{
    struct fs_test *f = setup_cache(SHARE_CACHE_AUTO);
    struct fuse_create_in in = {.flags = O_RDWR | O_CREAT, .mode = 0644};
    uint32_t expected = share_is_flushless(f->dir) ? FOPEN_NOFLUSH : 0;
    int memory = memfd_create("tmpfs", MFD_CLOEXEC), proc = open("/proc", O_RDONLY);

    assert_true(share_is_flushless(memory));
    assert_false(share_is_flushless(proc));
    assert_false(share_is_flushless(-1));
    close(memory);
    close(proc);
    assert_int_equal(fs_send_names(f, FUSE_CREATE, 1, &in, sizeof(in), "new", NULL), 0);
    const struct fuse_open_out *out = (void *)(f->reply + sizeof(struct fuse_entry_out));
    assert_int_equal(out->open_flags, expected);
    out = (void *)f->reply;
    fs_open_node(f, fs_look_up(f, 1, "new"), O_WRONLY);
    assert_int_equal(out->open_flags, expected);
    fs_open_node(f, fs_look_up(f, 1, "new"), O_RDONLY);
    assert_int_equal(out->open_flags, FOPEN_NOFLUSH);
    fs_teardown(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(data_is_kept_while_nobody_changes_it),
        cmocka_unit_test(names_are_kept_a_second),
        cmocka_unit_test(everything_is_kept),
        cmocka_unit_test(nothing_is_kept),
        cmocka_unit_test(flushes_are_saved),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
