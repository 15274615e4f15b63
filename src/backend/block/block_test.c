/*
 * block_test.c - raw disks: reading, writing, holes, errors, and who may use one
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
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/block/block.h"
#include "backend/block/image.h"
#include "backend/block/qcow2.h"
#include "backend/block/store.h"
#include "base/bits.h"

#define SIZE (UINT64_C(1) << 20)

/* All tests are run with threads, and with io_uring where the host has it. */
static enum block_aio aio = BLOCK_AIO_THREADS;

struct fixture {
    char path[64];
    uint8_t *data; /* what the file holds */
};

struct waiter {
    struct block_request request;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool is_done;
    int result;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    strcpy(f->path, "/tmp/doppel-block-XXXXXX");
    int fd = mkstemp(f->path);
    assert_true(fd >= 0);
    f->data = malloc(SIZE);
    for (size_t i = 0; i < SIZE; i++)
        f->data[i] = (uint8_t)(i * 7 + (i >> 9));
    assert_int_equal(write(fd, f->data, SIZE), SIZE);
    close(fd);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    unlink(f->path);
    free(f->data);
    free(f);
    return 0;
}

static void on_done(struct block_request *request, int result)
{
    struct waiter *w = request->ctx;
    pthread_mutex_lock(&w->lock);
    w->is_done = true;
    w->result = result;
    pthread_cond_signal(&w->cond);
    pthread_mutex_unlock(&w->lock);
}

static int run(struct block *b, enum block_op op, uint64_t offset, uint64_t size,
               const struct iovec *iov, unsigned count, bool may_unmap)
{
    struct waiter w = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
    w.request = (struct block_request){.op = op,
                                       .offset = offset,
                                       .size = size,
                                       .iov = iov,
                                       .iov_count = count,
                                       .may_unmap = may_unmap,
                                       .done = on_done,
                                       .ctx = &w};
    block_submit(b, &w.request);
    pthread_mutex_lock(&w.lock);
    while (!w.is_done)
        pthread_cond_wait(&w.cond, &w.lock);
    pthread_mutex_unlock(&w.lock);
    return w.result;
}

static struct block *open_disk(const struct fixture *f, bool is_read_only, enum block_cache cache)
{
    struct block_config config = {
        .path = f->path, .is_read_only = is_read_only, .cache = cache, .aio = aio};
    struct block *b;
    struct err e;
    if (block_open(&config, &b, &e) != 0)
        fail_msg("%s", e.msg);
    assert_int_equal(block_uses_io_uring(b), aio == BLOCK_AIO_IO_URING);
    return b;
}

static void assert_file(const struct fixture *f)
{
    uint8_t *got = malloc(SIZE);
    int fd = open(f->path, O_RDONLY);
    assert_int_equal(read(fd, got, SIZE), SIZE);
    assert_memory_equal(got, f->data, SIZE);
    close(fd);
    free(got);
}

/* Buffers of odd sizes at odd addresses, in both ways of caching. */
static void reads_and_writes(void **state)
{
    struct fixture *f = *state;
    for (unsigned cache = 0; cache < 3; cache++) {
        struct block *b = open_disk(f, false, (enum block_cache)cache);
        uint8_t *buf = malloc(200 * 512 + 1);
        struct iovec iov[130];
        assert_int_equal(block_size(b), SIZE);
        for (unsigned first = 0; first < 3; first++) {
            uint8_t *at = buf + 1;
            unsigned count = 0;
            for (size_t left = 129 * 512; left != 0;
                 count++) { /* more pieces than one call takes */
                size_t n = MIN(left, count % 3 == 0 ? (size_t)300 : (size_t)724);
                iov[count] = (struct iovec){at, n};
                at += n;
                left -= n;
            }
            uint64_t offset = first * 40960 + 512;
            assert_int_equal(run(b, BLOCK_READ, offset, 129 * 512, iov, count, false), 0);
            assert_memory_equal(buf + 1, f->data + offset, 129 * 512);
            for (size_t i = 0; i < 129 * 512; i++)
                buf[1 + i] ^= 0x5a;
            memcpy(f->data + offset, buf + 1, 129 * 512);
            assert_int_equal(run(b, BLOCK_WRITE, offset, 129 * 512, iov, count, false), 0);
        }
        assert_int_equal(run(b, BLOCK_FLUSH, 0, 0, NULL, 0, false), 0);
        block_close(b);
        free(buf);
        assert_file(f);
    }
}

static void zeroes_and_holes(void **state)
{
    struct fixture *f = *state;
    struct block *b = open_disk(f, false, BLOCK_CACHE_WRITEBACK);
    assert_int_equal(run(b, BLOCK_WRITE_ZEROES, 512, 5 * 512, NULL, 0, false), 0);
    memset(f->data + 512, 0, 5 * 512);
    assert_int_equal(run(b, BLOCK_WRITE_ZEROES, 65536, 131072, NULL, 0, true), 0);
    memset(f->data + 65536, 0, 131072);
    assert_int_equal(run(b, BLOCK_DISCARD, 524288, 262144, NULL, 0, false), 0);
    memset(f->data + 524288, 0, 262144); /* of a file: a hole */
    assert_int_equal(run(b, BLOCK_FLUSH, 0, 0, NULL, 0, false), 0);
    block_close(b);
    assert_file(f);
}

static void impossible_requests_fail(void **state)
{
    struct fixture *f = *state;
    uint8_t buf[1024] = {0};
    struct iovec iov = {buf, 512}, odd = {buf, 100};
    struct block *b = open_disk(f, false, BLOCK_CACHE_WRITEBACK);
    assert_int_equal(run(b, BLOCK_READ, SIZE, 512, &iov, 1, false), -EINVAL);
    assert_int_equal(run(b, BLOCK_READ, UINT64_MAX - 511, 512, &iov, 1, false), -EINVAL);
    assert_int_equal(run(b, BLOCK_WRITE, 0, 100, &odd, 1, false), -EINVAL);
    assert_int_equal(run(b, BLOCK_WRITE, 3, 512, &iov, 1, false), -EINVAL);
    block_close(b);
    b = open_disk(f, true, BLOCK_CACHE_WRITEBACK);
    assert_true(block_is_read_only(b));
    assert_int_equal(run(b, BLOCK_WRITE, 0, 512, &iov, 1, false), -EROFS);
    assert_int_equal(run(b, BLOCK_DISCARD, 0, 512, NULL, 0, false), -EROFS);
    assert_int_equal(run(b, BLOCK_FLUSH, 0, 0, NULL, 0, false), 0);
    block_close(b);
    assert_file(f);
}

/* A file that shrank beneath us: what is gone reads as zeroes and grows again when written. */
static void the_file_may_shrink(void **state)
{
    struct fixture *f = *state;
    uint8_t buf[1024];
    struct iovec iov = {buf, sizeof(buf)};
    struct block *b = open_disk(f, false, BLOCK_CACHE_WRITEBACK);
    assert_int_equal(truncate(f->path, 512), 0);
    memset(buf, 1, sizeof(buf));
    assert_int_equal(run(b, BLOCK_READ, 0, 1024, &iov, 1, false), 0);
    assert_memory_equal(buf, f->data, 512);
    for (unsigned i = 512; i < 1024; i++)
        assert_int_equal(buf[i], 0);
    block_close(b);
}

static int try_open(const struct fixture *f, bool is_read_only)
{
    struct block_config config = {.path = f->path, .is_read_only = is_read_only};
    struct block *b;
    struct err e;
    int rc = block_open(&config, &b, &e);
    if (rc == 0)
        block_close(b);
    else
        assert_non_null(strstr(e.msg, f->path));
    return rc;
}

static void disks_grow(void **state)
{
    struct fixture *f = *state;
    struct block_config config = {.path = f->path, .aio = aio};
    struct block *b;
    struct err e;
    uint8_t sector[BLOCK_SECTOR];
    struct iovec iov = {sector, sizeof(sector)};
    assert_int_equal(block_open(&config, &b, &e), 0);
    memset(sector, 'n', sizeof(sector));
    assert_int_equal(run(b, BLOCK_WRITE, SIZE, sizeof(sector), &iov, 1, false), -EINVAL);
    assert_int_equal(block_resize(b, SIZE + 4096, &e), 0);
    assert_int_equal(block_size(b), SIZE + 4096);
    assert_int_equal(run(b, BLOCK_WRITE, SIZE, sizeof(sector), &iov, 1, false), 0);
    assert_int_equal(block_resize(b, SIZE + 1, &e), -EINVAL);
    assert_int_equal(block_resize(b, SIZE, &e), -EINVAL); /* what is there would be gone */
    assert_int_equal(truncate(f->path, SIZE + 10000), 0); /* somebody else grows it */
    assert_int_equal(block_size(b), SIZE + 4096);
    assert_int_equal(block_resize(b, 0, &e), 0);
    assert_int_equal(block_size(b), SIZE + 9728); /* whole sectors */
    assert_int_equal(truncate(f->path, SIZE), 0);
    assert_int_equal(block_resize(b, 0, &e), -EINVAL);
    assert_int_equal(block_size(b), SIZE + 9728);
    block_close(b);
    config.is_read_only = true;
    assert_int_equal(block_open(&config, &b, &e), 0);
    assert_int_equal(block_resize(b, SIZE * 2, &e), -EROFS);
    assert_int_equal(truncate(f->path, SIZE * 2), 0);
    assert_int_equal(block_resize(b, 0, &e), 0);
    assert_int_equal(block_size(b), SIZE * 2);
    block_close(b);
}

/* A writer that goes on over the disk's growth: stamps sectors in turn. */
struct stamper {
    struct block *block;
    uint64_t stamped; /* sectors */
    int result;
};

#define STAMPED_SECTORS (SIZE / BLOCK_SECTOR)

static void *stamp(void *ctx)
{
    struct stamper *s = ctx;
    uint8_t sector[BLOCK_SECTOR];
    struct iovec iov = {sector, sizeof(sector)};
    for (uint64_t i = 0; i < STAMPED_SECTORS && s->result == 0; i++) {
        memset(sector, (int)(i % 251), sizeof(sector));
        s->result = run(s->block, BLOCK_WRITE, i * BLOCK_SECTOR, BLOCK_SECTOR, &iov, 1, false);
        s->stamped++;
    }
    return NULL;
}

/* The image has other tables afterwards; writers notice nothing. */
static void qcow2_grows_beneath_writers(void **state)
{
    struct fixture *f = *state;
    struct qcow2_create create = {.size = SIZE, .version = 3, .cluster_size = 512};
    struct block_config config = {.path = f->path, .format = BLOCK_FORMAT_QCOW2, .aio = aio};
    struct stamper s = {0};
    struct store *store;
    struct err e;
    uint8_t sector[BLOCK_SECTOR];
    struct iovec iov = {sector, sizeof(sector)};
    pthread_t thread;
    assert_int_equal(store_create_file(f->path, true, &store, &e), 0);
    assert_int_equal(qcow2_format(store, &create, &e), 0);
    store->ops->close(store);
    assert_int_equal(block_open(&config, &s.block, &e), 0);
    assert_int_equal(pthread_create(&thread, NULL, stamp, &s), 0);
    for (unsigned i = 1; i <= 40; i++) { /* most of them move the L1 table */
        uint64_t size = SIZE + i * UINT64_C(100000) / BLOCK_SECTOR * BLOCK_SECTOR;
        if (block_resize(s.block, size, &e) != 0)
            fail_msg("%s", e.msg);
        assert_int_equal(block_size(s.block), size);
        memset(sector, 'e', sizeof(sector));
        assert_int_equal(
            run(s.block, BLOCK_WRITE, size - BLOCK_SECTOR, BLOCK_SECTOR, &iov, 1, false), 0);
    }
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(s.result, 0);
    assert_int_equal(s.stamped, STAMPED_SECTORS);
    uint64_t size = block_size(s.block);
    assert_int_equal(block_resize(s.block, 0, &e), 0); /* nobody else can have resized it */
    assert_int_equal(block_size(s.block), size);
    assert_int_equal(block_resize(s.block, SIZE, &e), -EINVAL);
    assert_true(block_resize(s.block, UINT64_C(1) << 50, &e) < 0);
    assert_non_null(strstr(e.msg, "at most"));
    for (uint64_t i = 0; i < STAMPED_SECTORS; i++) {
        assert_int_equal(run(s.block, BLOCK_READ, i * BLOCK_SECTOR, BLOCK_SECTOR, &iov, 1, false),
                         0);
        for (unsigned at = 0; at < BLOCK_SECTOR; at++)
            assert_int_equal(sector[at], i % 251);
    }
    block_close(s.block);
    struct image_config look = {
        .path = f->path, .format = BLOCK_FORMAT_QCOW2, .is_for_repair = true};
    struct qcow2_check check = {0};
    struct image *image;
    assert_int_equal(image_open(&look, &image, &e), 0);
    assert_int_equal(image->size, size);
    assert_int_equal(qcow2_check(image, QCOW2_REPAIR_NONE, &check, &e), 0);
    assert_int_equal(check.errors + check.leaks, 0);
    image_close(image);
}

static void one_writer_or_many_readers(void **state)
{
    struct fixture *f = *state;
    struct block *b = open_disk(f, false, BLOCK_CACHE_WRITEBACK);
    assert_int_equal(try_open(f, false), -EBUSY);
    assert_int_equal(try_open(f, true), -EBUSY);
    block_close(b);
    b = open_disk(f, true, BLOCK_CACHE_WRITEBACK);
    assert_int_equal(try_open(f, true), 0);
    assert_int_equal(try_open(f, false), -EBUSY);
    block_close(b);
    assert_int_equal(try_open(f, false), 0);

    /* Somebody who shares with nobody, as no QEMU does. */
    struct flock alone = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 201, .l_len = 1};
    int fd = open(f->path, O_RDWR | O_CLOEXEC);
    assert_int_equal(fcntl(fd, F_OFD_SETLK, &alone), 0);
    assert_int_equal(try_open(f, false), -EBUSY);
    close(fd);
    assert_int_equal(try_open(f, false), 0);
}

static void what_is_no_disk_is_refused(void **state)
{
    struct block_config config = {.path = "/tmp/doppel-no-such-disk"};
    struct block *b;
    struct err e;
    assert_int_equal(block_open(&config, &b, &e), -ENOENT);
    assert_non_null(strstr(e.msg, "/tmp/doppel-no-such-disk"));
    config.path = "/tmp";
    config.is_read_only = true;
    assert_true(block_open(&config, &b, &e) < 0);
    config.path = "/dev/null";
    assert_int_equal(block_open(&config, &b, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "neither a file nor a block device"));
    struct fixture *f = *state;
    assert_int_equal(truncate(f->path, 100), 0);
    config.path = f->path;
    assert_int_equal(block_open(&config, &b, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "less than one sector"));
}

/* ---- io_uring: what may go wrong ---- */

/* Of every so many requests of a kind, what the kernel says instead. */
struct faults {
    enum block_op op;
    int result; /* -errno, or bytes that it says were transferred */
    unsigned caused, submits_refused;
    int setup;
    _Atomic int submit;
};

static int fault_setup(void *ctx)
{
    return ((struct faults *)ctx)->setup;
}

static int fault_submit(void *ctx)
{
    struct faults *faults = ctx;
    faults->submits_refused += faults->submit != 0;
    /* interrupted every other time: of an interruption that never ended nothing would come */
    return faults->submit == -EINTR && faults->submits_refused % 2 == 0 ? 0 : faults->submit;
}

static int fault_result(void *ctx, const struct block_request *request, int result)
{
    struct faults *faults = ctx;
    if (request->op != faults->op)
        return result;
    faults->caused++;
    return faults->result;
}

static struct block *open_faulty(const struct fixture *f, struct faults *faults,
                                 enum block_cache cache)
{
    struct block_faults hooks = {
        .ctx = faults, .setup = fault_setup, .submit = fault_submit, .result = fault_result};
    struct block_config config = {
        .path = f->path, .cache = cache, .aio = BLOCK_AIO_IO_URING, .faults = &hooks};
    struct block *b;
    struct err e;
    if (block_open(&config, &b, &e) != 0)
        fail_msg("%s", e.msg);
    return b;
}

#define NOT_CARRIED_OUT 1000 /* no result: requests come to nothing */

/* What is not carried out, or not wholly, is carried out; what fails, fails. */
static void odd_results(void **state)
{
    static const struct {
        enum block_op op;
        int result, expected;
    } cases[] = {
        {BLOCK_READ, 0, 0},
        {BLOCK_READ, 512, 0},
        {BLOCK_READ, 8191, 0},
        {BLOCK_READ, -EINTR, 0},
        {BLOCK_READ, -EAGAIN, 0},
        {BLOCK_READ, -ECANCELED, 0},
        {BLOCK_READ, -EIO, -EIO},
        {BLOCK_WRITE, 0, 0},
        {BLOCK_WRITE, 4096, 0},
        {BLOCK_WRITE, -EINTR, 0},
        {BLOCK_WRITE, -EAGAIN, 0},
        {BLOCK_WRITE, -ENOSPC, -ENOSPC},
        {BLOCK_WRITE, -EIO, -EIO},
        {BLOCK_FLUSH, -EINTR, 0},
        {BLOCK_FLUSH, -EAGAIN, 0},
        {BLOCK_DISCARD, -EOPNOTSUPP, 0},
        {BLOCK_WRITE_ZEROES, -EOPNOTSUPP, 0},
        {BLOCK_WRITE_ZEROES, -EINTR, 0},
    };
    struct fixture *f = *state;
    uint8_t *buf = malloc(8192);
    struct iovec iov = {buf, 8192};
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct faults faults = {.op = cases[i].op, .result = cases[i].result};
        struct block *b = open_faulty(f, &faults, BLOCK_CACHE_WRITEBACK);
        bool is_zero = cases[i].op >= BLOCK_DISCARD, is_read = cases[i].op == BLOCK_READ;
        memset(buf, is_read ? 0 : (int)i + 1, 8192);
        int rc = run(b, cases[i].op, 4096, 8192, &iov,
                     is_zero || cases[i].op == BLOCK_FLUSH ? 0 : 1, true);
        if (rc != cases[i].expected || faults.caused != 1)
            fail_msg("case %u: %d instead of %d, %u faults", i, rc, cases[i].expected,
                     faults.caused);
        if (is_read && rc == 0)
            assert_memory_equal(buf, f->data + 4096, 8192);
        block_close(b);
        if (cases[i].op == BLOCK_WRITE || is_zero)
            memset(f->data + 4096, is_zero ? 0 : (int)i + 1, 8192);
        assert_file(f);
    }
    free(buf);
}

/* The kernel tells of what it could not write once. Nobody may say afterwards that it is safe. */
static void a_failed_flush_is_not_forgotten(void **state)
{
    struct fixture *f = *state;
    struct faults faults = {.op = BLOCK_FLUSH, .result = -EIO};
    struct block *b = open_faulty(f, &faults, BLOCK_CACHE_WRITEBACK);
    assert_int_equal(run(b, BLOCK_FLUSH, 0, 0, NULL, 0, false), -EIO);
    faults.result = 0; /* the kernel sees nothing wrong any more */
    assert_int_equal(run(b, BLOCK_FLUSH, 0, 0, NULL, 0, false), -EIO);
    faults.result = -EINTR; /* threads remember, too */
    assert_int_equal(run(b, BLOCK_FLUSH, 0, 0, NULL, 0, false), -EIO);
    block_close(b);
}

static void submissions_may_be_refused(void **state)
{
    static const int codes[] = {-EAGAIN, -EBUSY, -EINTR, -ENOMEM};
    struct fixture *f = *state;
    uint8_t buf[4096];
    struct iovec iov = {buf, sizeof(buf)};
    for (unsigned i = 0; i < ARRAY_SIZE(codes); i++) {
        struct faults faults = {.op = NOT_CARRIED_OUT};
        struct block *b = open_faulty(f, &faults, BLOCK_CACHE_WRITEBACK);
        for (unsigned j = 0; j < 40; j++) {
            faults.submit = j % 4 != 0 ? codes[i] : 0;
            memset(buf, (int)(i * 40 + j), sizeof(buf));
            memset(f->data + j * 4096, (int)(i * 40 + j), sizeof(buf));
            assert_int_equal(run(b, BLOCK_WRITE, j * 4096, sizeof(buf), &iov, 1, false), 0);
            assert_int_equal(run(b, BLOCK_READ, j * 4096, sizeof(buf), &iov, 1, false), 0);
            assert_memory_equal(buf, f->data + j * 4096, sizeof(buf));
        }
        faults.submit = 0;
        block_close(b);
        assert_true(faults.submits_refused >= 30);
        assert_file(f);
    }
}

/* More at once than the ring has room for. Some writes are followed by a flush, as with a guest
 * that cannot flush; a close waits for all of them, in whichever lane they are. */
#define MANY 1000
#define FLUSHED 20 /* one of so many */
struct many {
    struct block_request request;
    struct iovec iov;
    uint8_t data[512];
    atomic_uint *left;
    struct block *block;
};

static void one_of_many(struct block_request *request, int result)
{
    struct many *m = request->ctx;
    assert_int_equal(result, 0);
    atomic_fetch_sub(m->left, 1);
    if (request->op == BLOCK_FLUSH || request->offset / BLOCK_SECTOR % FLUSHED != 0)
        return;
    request->op = BLOCK_FLUSH;
    request->size = 0;
    block_submit(m->block, request);
}

static void more_than_there_is_room_for(void **state)
{
    struct fixture *f = *state;
    for (unsigned cache = BLOCK_CACHE_WRITEBACK; cache <= BLOCK_CACHE_NONE; cache++) {
        struct many *all = calloc(MANY, sizeof(*all));
        struct block *b = open_disk(f, false, (enum block_cache)cache);
        atomic_uint left = MANY + MANY / FLUSHED;
        for (unsigned i = 0; i < MANY; i++) {
            struct many *m = &all[i];
            memset(m->data, (int)(cache * 7 + i), 512);
            memcpy(f->data + i * 512, m->data, 512);
            m->iov = (struct iovec){m->data, 512};
            m->left = &left;
            m->block = b;
            m->request = (struct block_request){.op = BLOCK_WRITE,
                                                .offset = i * 512,
                                                .size = 512,
                                                .iov = &m->iov,
                                                .iov_count = 1,
                                                .done = one_of_many,
                                                .ctx = m};
            block_submit(b, &m->request);
        }
        block_close(b);
        assert_int_equal(left, 0);
        assert_file(f);
        free(all);
    }
}

/* Where io_uring is not to be had: threads, or an error that says what to do. */
static void hosts_without_io_uring(void **state)
{
    struct fixture *f = *state;
    static const int codes[] = {-ENOSYS, -EPERM, -ENOMEM, -EOPNOTSUPP};
    for (unsigned i = 0; i < ARRAY_SIZE(codes); i++) {
        struct faults faults = {.setup = codes[i]};
        struct block_faults hooks = {.ctx = &faults, .setup = fault_setup};
        struct block_config config = {.path = f->path, .cache = BLOCK_CACHE_NONE, .faults = &hooks};
        struct block *b;
        struct err e;
        uint8_t sector[512];
        struct iovec iov = {sector, 512};
        config.aio = BLOCK_AIO_IO_URING;
        assert_int_equal(block_open(&config, &b, &e), codes[i]);
        assert_non_null(strstr(e.msg, f->path));
        assert_non_null(strstr(e.msg, "aio=threads"));
        config.aio = BLOCK_AIO_AUTO;
        assert_int_equal(block_open(&config, &b, &e), 0);
        assert_false(block_uses_io_uring(b));
        assert_int_equal(run(b, BLOCK_READ, 512, 512, &iov, 1, false), 0);
        assert_memory_equal(sector, f->data + 512, 512);
        block_close(b);
    }
}

/* Left to itself, a disk past the page cache has its reads carried out by the ring. */
static void reads_past_the_cache(void **state)
{
    struct fixture *f = *state;
    for (unsigned cache = BLOCK_CACHE_WRITEBACK; cache <= BLOCK_CACHE_NONE; cache++) {
        struct faults faults = {.op = BLOCK_READ, .result = -EAGAIN};
        struct block_faults hooks = {.ctx = &faults, .result = fault_result};
        struct block_config config = {
            .path = f->path, .cache = (enum block_cache)cache, .faults = &hooks};
        struct block *b;
        struct err e;
        uint8_t *page = aligned_alloc(4096, 4096);
        struct iovec iov = {page, 4096};
        assert_int_equal(block_open(&config, &b, &e), 0);
        assert_int_equal(block_uses_io_uring(b), cache == BLOCK_CACHE_NONE);
        assert_int_equal(run(b, BLOCK_READ, 4096, 4096, &iov, 1, false), 0);
        assert_memory_equal(page, f->data + 4096, 4096);
        assert_int_equal(faults.caused, cache == BLOCK_CACHE_NONE);
        faults.op = BLOCK_WRITE;
        assert_int_equal(run(b, BLOCK_WRITE, 4096, 4096, &iov, 1, false), 0);
        assert_int_equal(faults.caused, cache == BLOCK_CACHE_NONE);
        block_close(b);
        free(page);
    }
}

static int try_io_uring(void)
{
    void *state;
    setup(&state);
    struct fixture *f = state;
    struct block_config config = {.path = f->path, .aio = BLOCK_AIO_IO_URING};
    struct block *b;
    struct err e;
    int rc = block_open(&config, &b, &e);
    if (rc == 0)
        block_close(b);
    else
        print_message("io_uring is not tested: %s\n", e.msg);
    teardown(&state);
    return rc;
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(reads_and_writes),
        TEST(zeroes_and_holes),
        TEST(impossible_requests_fail),
        TEST(the_file_may_shrink),
        TEST(disks_grow),
        TEST(one_writer_or_many_readers),
        TEST(what_is_no_disk_is_refused),
        TEST(qcow2_grows_beneath_writers),
        TEST(more_than_there_is_room_for),
    };
    const struct CMUnitTest ring_tests[] = {
        TEST(odd_results),
        TEST(reads_past_the_cache),
        TEST(a_failed_flush_is_not_forgotten),
        TEST(submissions_may_be_refused),
    };
    const struct CMUnitTest without[] = {TEST(hosts_without_io_uring)};
    int failed = cmocka_run_group_tests_name("threads", tests, NULL, NULL);
    failed += cmocka_run_group_tests_name("without io_uring", without, NULL, NULL);
    if (try_io_uring() != 0)
        return failed;
    aio = BLOCK_AIO_IO_URING;
    failed += cmocka_run_group_tests_name("io_uring", tests, NULL, NULL);
    return failed + cmocka_run_group_tests_name("faults of io_uring", ring_tests, NULL, NULL);
}
