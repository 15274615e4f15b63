/*
 * redo_test.c - lists of writes whose process is killed while it carries them out
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend/block/redo.h"
#include "backend/block/store.h"
#include "base/bits.h"

#define PIECES 6
#define PIECE 4096u

/* ---- a store that kills its process ---- */

struct deadly {
    struct store store, *real;
    unsigned left; /* calls until then */
    pid_t only;    /* in this process: in the survivor it works */
};

static void maybe_die(struct deadly *d)
{
    if (getpid() == d->only && d->left-- == 0)
        kill(d->only, SIGKILL);
}

static int deadly_transfer(struct store *store, bool is_write, uint64_t offset, uint64_t size,
                           const struct iovec *iov, unsigned count)
{
    struct deadly *d = CONTAINER_OF(store, struct deadly, store);
    maybe_die(d);
    return d->real->ops->transfer(d->real, is_write, offset, size, iov, count);
}

static int deadly_flush(struct store *store)
{
    struct deadly *d = CONTAINER_OF(store, struct deadly, store);
    maybe_die(d);
    return d->real->ops->flush(d->real);
}

static const struct store_ops deadly_ops = {.transfer = deadly_transfer, .flush = deadly_flush};

/* ---- lists ---- */

/* Odd pieces of the file become `with`, with a flush after each but the last. */
static void make_list(struct redo *redo, int with)
{
    redo_begin(redo);
    for (unsigned i = 0; i < PIECES; i++) {
        memset(redo_add(redo, (2 * i + 1) * PIECE, PIECE), with, PIECE);
        if (i + 1 < PIECES)
            redo_add_flush(redo);
    }
}

static char path[] = "/tmp/doppel-redo-XXXXXX";

static struct store *open_store(enum block_cache cache)
{
    struct store_config config = {.path = path, .cache = cache};
    struct store *store;
    struct err e;
    if (store_open_file(&config, &store, &e) != 0)
        _exit(2);
    return store;
}

/* In a process of its own. */
static void work_and_die(enum block_cache cache, unsigned calls)
{
    struct deadly d = {.real = open_store(cache), .left = calls, .only = getpid()};
    struct redo redo;
    struct err e;
    d.store = *d.real;
    d.store.ops = &deadly_ops;
    if (redo_open(&redo, &e) != 0 || redo_start_survivor(&redo, &d.store, &e) != 0)
        _exit(3);
    make_list(&redo, 1);
    redo_carry_out(&redo, &d.store);
    make_list(&redo, 2); /* which nobody has heard of when the process ends */
    kill(getpid(), SIGKILL);
}

/* Until nobody has it open: what was locked is locked as long as that. */
static int wait_until_free(void)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 100, .l_len = 200};
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_int_equal(fcntl(fd, F_OFD_SETLKW, &lock), 0);
    return fd;
}

static void is_all_or_nothing(enum block_cache cache, unsigned calls)
{
    uint8_t piece[PIECE];
    int status;
    assert_int_equal(truncate(path, 0), 0);
    assert_int_equal(truncate(path, PIECES * 2 * PIECE), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        work_and_die(cache, calls);
        _exit(4);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 2 && cache == BLOCK_CACHE_NONE)
        skip(); /* a file system without O_DIRECT */
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    int fd = wait_until_free();
    for (unsigned i = 0; i < 2 * PIECES; i++) {
        assert_int_equal(pread(fd, piece, PIECE, (off_t)i * PIECE), PIECE);
        for (unsigned b = 0; b < PIECE; b++)
            assert_int_equal(piece[b], i % 2);
    }
    close(fd);
}

static void killed_anywhere(void **state)
{
    /* within the list, and behind it */
    for (unsigned calls = 0; calls <= 2 * PIECES; calls++)
        is_all_or_nothing(BLOCK_CACHE_WRITEBACK, calls);
}

static void killed_past_the_page_cache(void **state)
{
    for (unsigned calls = 0; calls <= 2 * PIECES; calls++)
        is_all_or_nothing(BLOCK_CACHE_NONE, calls);
}

/* A flush that fails ends the list, for the survivor, too. */
static int failing_flush(struct store *store)
{
    return -EIO;
}

static void failure_ends_a_list(void **state)
{
    static const struct store_ops ops = {.transfer = deadly_transfer, .flush = failing_flush};
    struct deadly d = {.real = open_store(BLOCK_CACHE_WRITEBACK), .left = 1000};
    struct redo redo;
    struct err e;
    d.store = *d.real;
    d.store.ops = &ops;
    assert_int_equal(redo_open(&redo, &e), 0);
    make_list(&redo, 3);
    assert_int_equal(redo_carry_out(&redo, &d.store), -EIO);
    assert_int_equal(redo_finish(redo.list, &d.store), 0); /* nothing is left */
    redo_close(&redo);
    uint8_t byte;
    assert_int_equal(store_read(d.real, PIECE, &byte, 1), 0);
    assert_int_equal(byte, 3);
    assert_int_equal(store_read(d.real, 3 * PIECE, &byte, 1), 0);
    assert_int_not_equal(byte, 3);
    d.real->ops->close(d.real);
}

/* Neighbours become one write; a flush between keeps them apart. */
static void neighbours_are_joined(void **state)
{
    struct redo redo;
    struct err e;
    assert_int_equal(redo_open(&redo, &e), 0);
    redo_begin(&redo);
    redo_add(&redo, 4096, 4096);
    redo_add(&redo, 8192, 4096);
    assert_int_equal(redo.count, 1);
    assert_int_equal(redo.list->writes[0].size, 8192);
    redo_add(&redo, 16384, 12);
    redo_add(&redo, 16396, 8); /* not behind it in memory */
    assert_int_equal(redo.count, 3);
    redo_add_flush(&redo);
    redo_add(&redo, 16404, 8);
    assert_int_equal(redo.count, 5);
    redo_close(&redo);
}

static int setup(void **state)
{
    int fd = mkstemp(path);
    if (fd < 0)
        return -1;
    return close(fd);
}

static int teardown(void **state)
{
    return unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(killed_anywhere),
        cmocka_unit_test(killed_past_the_page_cache),
        cmocka_unit_test(failure_ends_a_list),
        cmocka_unit_test(neighbours_are_joined),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
