/*
 * disk_lanes.c FILE [SECONDS] - requests a second by io_uring and by threads, on one disk
 *
 * Without a guest: the block layer alone. FILE, which is written to, is a raw image that should
 * be there as a whole (no holes). Both ways take turns, so that what else the machine does falls
 * on both alike. Processor time is that of the process, the kernel's work for it included.
 */
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "backend/block/block.h"
#include "base/bits.h"

#define TURN 0.4 /* seconds */
#define DEPTH_MAX 64
#define MIB (UINT64_C(1) << 20)

struct row {
    const char *name;
    enum block_op op;
    uint32_t size;
    unsigned depth; /* requests at once */
    bool has_flushes;
};

static const struct row rows[] = {
    {"read 4k, 1 at once", BLOCK_READ, 4096, 1, false},
    {"read 4k, 16 at once", BLOCK_READ, 4096, 16, false},
    {"read 4k, 64 at once", BLOCK_READ, 4096, 64, false},
    {"write 4k, 1 at once", BLOCK_WRITE, 4096, 1, false},
    {"write 4k, 16 at once", BLOCK_WRITE, 4096, 16, false},
    {"write 4k and flush", BLOCK_WRITE, 4096, 1, true},
    {"read 1M, 4 at once", BLOCK_READ, MIB, 4, false},
    {"write 1M, 4 at once", BLOCK_WRITE, MIB, 4, false},
};

struct slot {
    struct block_request request;
    struct iovec iov;
    struct slot *next;
    struct load *load;
};

struct load {
    struct slot slots[DEPTH_MAX], *free;
    pthread_mutex_t lock;
    sem_t free_count;
    unsigned failures; /* under lock */
};

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double processor_time(void)
{
    struct rusage r;

    getrusage(RUSAGE_SELF, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) +
           (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) * 1e-6;
}

static void done(struct block_request *request, int result)
{
    struct slot *slot = request->ctx;
    struct load *load = slot->load;

    pthread_mutex_lock(&load->lock);
    load->failures += result != 0;
    slot->next = load->free;
    load->free = slot;
    pthread_mutex_unlock(&load->lock);
    sem_post(&load->free_count);
}

static struct slot *take(struct load *load)
{
    while (sem_wait(&load->free_count) != 0)
        ;
    pthread_mutex_lock(&load->lock);
    struct slot *slot = load->free;
    load->free = slot->next;
    pthread_mutex_unlock(&load->lock);
    return slot;
}

static uint64_t pick_offset(const struct row *row, uint64_t disk, uint64_t number)
{
    uint64_t random = (number * UINT64_C(0x9e3779b97f4a7c15)) >> 20;

    return (row->size == MIB ? number : random) % (disk / row->size) * row->size;
}

/* One turn; returns how many requests were carried out. */
static uint64_t run(struct block *block, const struct row *row, struct load *load)
{
    double end = now() + TURN;
    uint64_t count = 0;

    for (; now() < end; count++) {
        struct slot *slot = take(load);
        bool is_flush = row->has_flushes && count % 2 != 0;
        slot->request.op = is_flush ? BLOCK_FLUSH : row->op;
        slot->request.size = is_flush ? 0 : row->size;
        slot->request.offset = is_flush ? 0 : pick_offset(row, block_size(block), count);
        block_submit(block, &slot->request);
    }
    for (unsigned i = 0; i < row->depth; i++)
        take(load);
    return count;
}

static int load_init(struct load *load, const struct row *row)
{
    memset(load, 0, sizeof(*load));
    pthread_mutex_init(&load->lock, NULL);
    sem_init(&load->free_count, 0, 0);
    for (unsigned i = 0; i < row->depth; i++) {
        struct slot *slot = &load->slots[i];
        slot->iov = (struct iovec){aligned_alloc(4096, row->size), row->size};
        if (slot->iov.iov_base == NULL)
            return -1;
        memset(slot->iov.iov_base, (int)i + 1, row->size);
        slot->load = load;
        slot->request =
            (struct block_request){.iov = &slot->iov, .iov_count = 1, .done = done, .ctx = slot};
        done(&slot->request, 0);
    }
    return 0;
}

static void load_free(struct load *load)
{
    for (unsigned i = 0; i < DEPTH_MAX; i++)
        free(load->slots[i].iov.iov_base);
    sem_destroy(&load->free_count);
    pthread_mutex_destroy(&load->lock);
}

struct sum {
    double seconds, processor;
    uint64_t count;
};

static int turn(const char *path, const struct row *row, enum block_cache cache, enum block_aio aio,
                struct sum *sum)
{
    struct block_config config = {
        .path = path, .format = BLOCK_FORMAT_RAW, .cache = cache, .aio = aio};
    struct block *block;
    struct load load;
    struct err e;

    if (block_open(&config, &block, &e) != 0) {
        fprintf(stderr, "disk_lanes: %s\n", e.msg);
        return -1;
    }
    int rc = load_init(&load, row);
    double start = now(), processor = processor_time();
    if (rc == 0)
        sum->count += run(block, row, &load);
    sum->seconds += now() - start;
    sum->processor += processor_time() - processor;
    block_close(block);
    if (rc == 0 && load.failures != 0) {
        fprintf(stderr, "disk_lanes: %u requests failed\n", load.failures);
        rc = -1;
    }
    load_free(&load);
    return rc;
}

static int measure(const char *path, const struct row *row, enum block_cache cache, double seconds)
{
    static const enum block_aio ways[] = {BLOCK_AIO_THREADS, BLOCK_AIO_IO_URING};
    struct sum sums[2] = {0};

    for (unsigned i = 0; i < 2 || sums[0].seconds < seconds / 2; i += 2)
        for (unsigned w = 0; w < 2; w++) {
            unsigned which = i / 2 % 2 == 0 ? w : 1 - w;
            if (turn(path, row, cache, ways[which], &sums[which]) != 0)
                return -1;
        }
    double threads = (double)sums[0].count / sums[0].seconds;
    double ring = (double)sums[1].count / sums[1].seconds;
    printf("%-10s %-21s %9.0f %9.0f %6.2f %8.1f %8.1f\n",
           cache == BLOCK_CACHE_NONE ? "none" : "writeback", row->name, threads, ring,
           ring / threads, sums[0].processor / (double)sums[0].count * 1e6,
           sums[1].processor / (double)sums[1].count * 1e6);
    fflush(stdout);
    return 0;
}

int main(int argc, char **argv)
{
    double seconds = argc > 2 ? atof(argv[2]) : 5;

    if (argc < 2) {
        fprintf(stderr, "usage: disk_lanes FILE [SECONDS]\n");
        return 2;
    }
    printf("%-10s %-21s %9s %9s %6s %8s %8s\n", "cache", "", "threads/s", "ring/s", "ratio",
           "us each", "us each");
    for (unsigned cache = BLOCK_CACHE_WRITEBACK; cache <= BLOCK_CACHE_NONE; cache++)
        for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
            if (measure(argv[1], &rows[i], (enum block_cache)cache, seconds) != 0)
                return 1;
    return 0;
}
