/*
 * exercise.c - random requests to a disk, many at once, and what must be true of it then
 *
 *   exercise run IMAGE FORMAT MODEL SEED OPS      MODEL, a raw file with the disk's contents, is
 *                                                 kept in step, and every read compared with it
 *   exercise crash IMAGE FORMAT LOG SEED OPS      writes what can be told apart; LOG gets the
 *                                                 number of requests that a flush has covered
 *   exercise verify IMAGE FORMAT LOG SEED OPS     after "crash" was killed: is all that was
 *                                                 flushed there?
 *   exercise same IMAGE FORMAT MODEL              the disk has the contents of MODEL?
 *
 * Requests under way never overlap, but share clusters: that is what a guest may do.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/block/block.h"
#include "base/bits.h"

#define SLOTS 8
#define SIZE_MAX_BYTES (UINT64_C(192) << 10)

enum kind { READ, WRITE, ZEROES, ZEROES_UNMAP, DISCARD, FLUSH, KINDS };

struct op {
    enum kind kind;
    uint64_t offset, size;
};

struct slot {
    struct block_request request;
    struct op op;
    uint64_t number;
    struct iovec iov[3];
    uint8_t *data;
    bool is_busy;
    int result;
};

struct exercise {
    struct block *block;
    uint64_t size, random, done_before; /* all requests with smaller numbers are done */
    bool *is_done;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct slot slots[SLOTS];
    bool is_crash;
    uint8_t *model;
    int log;
};

__attribute__((format(printf, 1, 2))) static void fail(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fprintf(stderr, "exercise: ");
    vfprintf(stderr, fmt, args);
    fprintf(stderr, "\n");
    va_end(args);
    _exit(1);
}

static uint64_t draw(struct exercise *x, uint64_t limit)
{
    x->random = x->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (x->random >> 33) % limit;
}

/* The same for the same seed, whatever happens with the requests. */
static struct op draw_op(struct exercise *x)
{
    static const enum kind kinds[] = {WRITE, WRITE,  WRITE,        WRITE,   WRITE,   READ,
                                      READ,  ZEROES, ZEROES_UNMAP, DISCARD, DISCARD, FLUSH};
    struct op op = {.kind = kinds[draw(x, ARRAY_SIZE(kinds))]};
    uint64_t sectors = x->size / BLOCK_SECTOR, most = SIZE_MAX_BYTES / BLOCK_SECTOR;
    if (draw(x, 2) == 0)
        most = 16;
    uint64_t first = draw(x, sectors), count = 1 + draw(x, most);
    if (draw(x, 2) == 0) { /* as file systems do */
        first &= ~UINT64_C(7);
        count = (count + 7) & ~UINT64_C(7);
    }
    if (op.kind != FLUSH)
        op = (struct op){op.kind, first * BLOCK_SECTOR, MIN(count, sectors - first) * BLOCK_SECTOR};
    return op;
}

/* ---- what sectors hold ---- */

/* Of a crash test: the number of the request that wrote it, and where; 0: zeroes. */
static void stamp(uint8_t *data, uint64_t number, const struct op *op)
{
    for (uint64_t at = 0; at < op->size; at += BLOCK_SECTOR) {
        memset(data + at, (int)(number * 7 + at / BLOCK_SECTOR), BLOCK_SECTOR);
        store_le64(data + at, number + 1);
        store_le64(data + at + 8, op->offset + at);
    }
}

static void fill_random(struct exercise *x, uint8_t *data, uint64_t size)
{
    uint64_t how = draw(x, 4);
    for (uint64_t i = 0; i < size; i += 8) {
        uint64_t v = how == 0 ? 0 : draw(x, UINT64_MAX);
        memcpy(data + i, &v, 8);
    }
}

/* ---- requests ---- */

static void on_done(struct block_request *request, int result)
{
    struct slot *s = CONTAINER_OF(request, struct slot, request);
    struct exercise *x = request->ctx;
    pthread_mutex_lock(&x->lock);
    s->result = result;
    s->is_busy = false;
    x->is_done[s->number] = true;
    while (x->is_done[x->done_before])
        x->done_before++;
    if (x->is_crash && s->op.kind == FLUSH && result == 0) {
        /* survives the process */
        uint64_t covered = (uint64_t)(uintptr_t)s->data;
        if (write(x->log, &covered, sizeof(covered)) != sizeof(covered))
            fail("cannot write the log");
    }
    pthread_cond_broadcast(&x->changed);
    pthread_mutex_unlock(&x->lock);
}

static bool overlaps(const struct exercise *x, const struct op *op)
{
    for (unsigned i = 0; i < SLOTS; i++)
        if (x->slots[i].is_busy &&
            ranges_overlap(op->offset, op->size, x->slots[i].op.offset, x->slots[i].op.size))
            return true;
    return false;
}

/* What a finished request means for the model; under the lock. */
static void settle(struct exercise *x, struct slot *s)
{
    if (s->result != 0)
        fail("request %llu (kind %u, %llu bytes at %llu): %s", (unsigned long long)s->number,
             s->op.kind, (unsigned long long)s->op.size, (unsigned long long)s->op.offset,
             strerror(-s->result));
    if (x->is_crash || s->op.size == 0)
        return;
    uint8_t *at = x->model + s->op.offset;
    if (s->op.kind == READ && memcmp(at, s->data, s->op.size) != 0) {
        uint64_t i = 0;
        while (at[i] == s->data[i])
            i++;
        fail("request %llu read %02x instead of %02x at %llu", (unsigned long long)s->number,
             s->data[i], at[i], (unsigned long long)(s->op.offset + i));
    }
    if (s->op.kind == WRITE)
        memcpy(at, s->data, s->op.size);
    if (s->op.kind == ZEROES || s->op.kind == ZEROES_UNMAP)
        memset(at, 0, s->op.size);
}

static int run_now(struct exercise *x, enum block_op op, uint64_t offset, uint8_t *data,
                   uint64_t size);

static void submit(struct exercise *x, struct slot *s, const struct op *op, uint64_t number)
{
    static const enum block_op ops[] = {
        [READ] = BLOCK_READ,           [WRITE] = BLOCK_WRITE,
        [ZEROES] = BLOCK_WRITE_ZEROES, [ZEROES_UNMAP] = BLOCK_WRITE_ZEROES,
        [DISCARD] = BLOCK_DISCARD,     [FLUSH] = BLOCK_FLUSH};
    s->op = *op;
    s->number = number;
    s->is_busy = true;
    if (x->is_crash && op->kind == FLUSH) {
        free(s->data);
        s->data = (uint8_t *)(uintptr_t)x->done_before;
    }
    if (op->kind == WRITE && x->is_crash)
        stamp(s->data, number, op);
    else if (op->kind == WRITE)
        fill_random(x, s->data, op->size);
    /* uneven pieces */
    uint64_t a = op->size / 3 + 1, b = op->size - a;
    s->iov[0] = (struct iovec){s->data, MIN(a, op->size)};
    s->iov[1] = (struct iovec){s->data + MIN(a, op->size), op->size > a ? b : 0};
    s->request = (struct block_request){.op = ops[op->kind],
                                        .may_unmap = op->kind == ZEROES_UNMAP,
                                        .offset = op->offset,
                                        .size = op->size,
                                        .iov = s->iov,
                                        .iov_count = op->size > a ? 2 : 1,
                                        .done = on_done,
                                        .ctx = x};
    block_submit(x->block, &s->request);
}

static struct slot *free_slot(struct exercise *x)
{
    for (;;) {
        for (unsigned i = 0; i < SLOTS; i++)
            if (!x->slots[i].is_busy)
                return &x->slots[i];
        pthread_cond_wait(&x->changed, &x->lock);
    }
}

static bool is_idle(const struct exercise *x)
{
    for (unsigned i = 0; i < SLOTS; i++)
        if (x->slots[i].is_busy)
            return false;
    return true;
}

/* Discarded bytes are undefined: what they are now, or zeroes; they must stay what they are. */
static void settle_discard(struct exercise *x, const struct op *op)
{
    uint8_t *now = malloc(op->size);
    if (run_now(x, BLOCK_READ, op->offset, now, op->size) != 0)
        fail("cannot read what was discarded");
    for (uint64_t i = 0; i < op->size; i++)
        if (now[i] != 0 && now[i] != x->model[op->offset + i])
            fail("a discard at %llu made %02x of %02x", (unsigned long long)(op->offset + i),
                 now[i], x->model[op->offset + i]);
    memcpy(x->model + op->offset, now, op->size);
    free(now);
}

struct waiter {
    struct block_request request;
    struct exercise *x;
    bool is_done;
    int result;
};

static void on_waited(struct block_request *request, int result)
{
    struct waiter *w = CONTAINER_OF(request, struct waiter, request);
    pthread_mutex_lock(&w->x->lock);
    w->result = result;
    w->is_done = true;
    pthread_cond_broadcast(&w->x->changed);
    pthread_mutex_unlock(&w->x->lock);
}

/* Under the lock, which it lets go meanwhile. */
static int run_now(struct exercise *x, enum block_op op, uint64_t offset, uint8_t *data,
                   uint64_t size)
{
    struct iovec iov = {data, size};
    struct waiter w = {.x = x};
    w.request = (struct block_request){
        .op = op, .offset = offset, .size = size, .iov = &iov, .iov_count = 1, .done = on_waited};
    block_submit(x->block, &w.request);
    while (!w.is_done)
        pthread_cond_wait(&x->changed, &x->lock);
    return w.result;
}

static void run(struct exercise *x, uint64_t ops)
{
    pthread_mutex_lock(&x->lock);
    for (unsigned i = 0; i < SLOTS; i++)
        x->slots[i].data = malloc(SIZE_MAX_BYTES + 4096);
    for (uint64_t n = 0; n < ops; n++) {
        struct op op = draw_op(x);
        struct slot *s = free_slot(x);
        if (s->op.size != 0 || s->op.kind == FLUSH)
            settle(x, s);
        s->op = (struct op){0};
        while (overlaps(x, &op))
            pthread_cond_wait(&x->changed, &x->lock);
        /* what was just waited for is settled before its range is used again */
        for (unsigned i = 0; i < SLOTS; i++)
            if (!x->slots[i].is_busy && x->slots[i].op.size != 0) {
                settle(x, &x->slots[i]);
                x->slots[i].op = (struct op){0};
            }
        if (x->is_crash && s->request.op == BLOCK_FLUSH)
            s->data = NULL;
        if (s->data == NULL)
            s->data = malloc(SIZE_MAX_BYTES + 4096);
        submit(x, s, &op, n);
        if (op.kind == DISCARD && !x->is_crash) {
            while (s->is_busy)
                pthread_cond_wait(&x->changed, &x->lock);
            s->op = (struct op){0};
            settle_discard(x, &op);
        }
    }
    while (!is_idle(x))
        pthread_cond_wait(&x->changed, &x->lock);
    for (unsigned i = 0; i < SLOTS; i++)
        settle(x, &x->slots[i]);
    if (run_now(x, BLOCK_FLUSH, 0, NULL, 0) != 0)
        fail("the last flush failed");
    pthread_mutex_unlock(&x->lock);
}

/* ---- after a crash ---- */

static void verify(struct exercise *x, uint64_t covered, uint64_t ops)
{
    uint64_t sectors = x->size / BLOCK_SECTOR, *flushed = calloc(sectors, sizeof(*flushed));
    struct op *all = calloc(ops, sizeof(*all));
    uint8_t *disk = malloc(x->size);
    for (uint64_t n = 0; n < ops; n++) {
        all[n] = draw_op(x);
        /* with discards, what is there is known only once something was written again */
        if (n < covered && all[n].kind != READ && all[n].kind != FLUSH)
            for (uint64_t at = 0; at < all[n].size; at += BLOCK_SECTOR)
                flushed[(all[n].offset + at) / BLOCK_SECTOR] = all[n].kind == DISCARD ? UINT64_MAX
                                                               : all[n].kind == WRITE ? n + 1
                                                                                      : 0;
    }
    pthread_mutex_lock(&x->lock);
    if (run_now(x, BLOCK_READ, 0, disk, x->size) != 0)
        fail("cannot read the disk");
    pthread_mutex_unlock(&x->lock);
    for (uint64_t s = 0; s < sectors; s++) {
        uint8_t want[BLOCK_SECTOR] = {0};
        uint64_t got = load_le64(disk + s * BLOCK_SECTOR), at = s * BLOCK_SECTOR;
        if (got > ops)
            fail("sector %llu holds what nobody wrote", (unsigned long long)s);
        if (got != 0) {
            struct op *op = &all[got - 1];
            if (op->kind != WRITE || at < op->offset || at >= op->offset + op->size)
                fail("sector %llu holds what was written elsewhere", (unsigned long long)s);
            memset(want, (int)((got - 1) * 7 + (at - op->offset) / BLOCK_SECTOR), sizeof(want));
            store_le64(want, got);
            store_le64(want + 8, at);
        }
        if (memcmp(want, disk + at, sizeof(want)) != 0)
            fail("sector %llu is torn", (unsigned long long)s);
        bool is_later = got > covered;
        for (uint64_t n = covered; n < ops && !is_later && got == 0; n++)
            is_later = (all[n].kind >= ZEROES && all[n].kind <= DISCARD) && at >= all[n].offset &&
                       at < all[n].offset + all[n].size;
        if (got != flushed[s] && flushed[s] != UINT64_MAX && !is_later)
            fail("sector %llu: write %llu is there, but %llu had been flushed (%llu were covered)",
                 (unsigned long long)s, (unsigned long long)got, (unsigned long long)flushed[s],
                 (unsigned long long)covered);
    }
    printf("%llu requests were flushed\n", (unsigned long long)covered);
    free(disk);
    free(all);
    free(flushed);
}

static uint64_t last_of_log(int log)
{
    uint64_t value = 0;
    struct stat st;
    if (fstat(log, &st) != 0)
        fail("cannot read the log");
    if (st.st_size >= 8 && pread(log, &value, 8, (st.st_size & ~7) - 8) != 8)
        fail("cannot read the log");
    return value;
}

int main(int argc, char **argv)
{
    struct exercise x = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    struct block_config config = {0};
    struct err e;
    if (argc < 5)
        fail("usage: exercise run|crash|verify|same IMAGE FORMAT MODEL [SEED OPS]");
    const char *mode = argv[1];
    uint64_t ops = argc > 6 ? strtoull(argv[6], NULL, 10) : 0;
    x.random = argc > 5 ? strtoull(argv[5], NULL, 10) * UINT64_C(0x9e3779b97f4a7c15) : 0;
    config.path = argv[2];
    config.format = strcmp(argv[3], "raw") == 0     ? BLOCK_FORMAT_RAW
                    : strcmp(argv[3], "qcow2") == 0 ? BLOCK_FORMAT_QCOW2
                                                    : BLOCK_FORMAT_AUTO;
    config.is_read_only = strcmp(mode, "verify") == 0 || strcmp(mode, "same") == 0;
    if (getenv("EXERCISE_CACHE_NONE") != NULL)
        config.cache = BLOCK_CACHE_NONE;
    if (getenv("EXERCISE_IO_URING") != NULL)
        config.aio = BLOCK_AIO_IO_URING;
    if (block_open(&config, &x.block, &e) != 0)
        fail("%s", e.msg);
    x.size = block_size(x.block);
    x.is_done = calloc(ops + 2, sizeof(bool));
    x.is_crash = strcmp(mode, "crash") == 0;
    int fd = open(argv[4], x.is_crash ? O_RDWR | O_CREAT | O_APPEND : O_RDWR, 0666);
    if (fd < 0)
        fail("cannot open '%s'", argv[4]);
    x.log = fd;
    if (strcmp(mode, "run") == 0 || strcmp(mode, "same") == 0) {
        struct stat st;
        if (fstat(fd, &st) != 0 || (uint64_t)st.st_size != x.size)
            fail("'%s' has not the disk's size, %llu", argv[4], (unsigned long long)x.size);
        x.model = mmap(NULL, x.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    if (strcmp(mode, "verify") == 0) {
        verify(&x, last_of_log(fd), ops);
    } else if (strcmp(mode, "same") == 0) {
        uint8_t *buf = malloc(1 << 20);
        pthread_mutex_lock(&x.lock);
        for (uint64_t at = 0; at < x.size; at += 1 << 20) {
            uint64_t n = MIN(x.size - at, (uint64_t)1 << 20);
            if (run_now(&x, BLOCK_READ, at, buf, n) != 0)
                fail("cannot read at %llu", (unsigned long long)at);
            if (memcmp(buf, x.model + at, n) != 0)
                fail("differs within the MiB at %llu", (unsigned long long)at);
        }
        pthread_mutex_unlock(&x.lock);
        free(buf);
    } else {
        run(&x, ops);
    }
    block_close(x.block);
    return 0;
}
