/*
 * rows_two.c - rows for two CPUs: scaling, locks, and what one CPU does to the other
 *
 * Two threads, each on a CPU of its own where there are two. They begin together: each row starts
 * its clock when both are there.
 */
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "rows.h"

struct pair {
    void (*work)(struct pair *pair, int n);
    atomic_int arrived;
    double begin[2], end[2];
    int count; /* of threads */
};

static void arrive(struct pair *pair)
{
    atomic_fetch_add(&pair->arrived, 1);
    while (atomic_load(&pair->arrived) < pair->count)
        sched_yield();
}

static void run_half(struct pair *pair, int n)
{
    pin(n);
    arrive(pair);
    pair->begin[n] = now();
    pair->work(pair, n);
    pair->end[n] = now();
    unpin();
}

static void *second(void *pair)
{
    run_half(pair, 1);
    return NULL;
}

/* Seconds from the first's beginning to the last's end. */
static double run_threads(int count, void (*work)(struct pair *pair, int n))
{
    struct pair pair = {.work = work, .count = count};
    pthread_t thread;
    if (count == 2 && pthread_create(&thread, NULL, second, &pair) != 0)
        fail("pthread_create");
    run_half(&pair, 0);
    if (count == 1)
        return pair.end[0] - pair.begin[0];
    pthread_join(thread, NULL);
    double begin = pair.begin[0] < pair.begin[1] ? pair.begin[0] : pair.begin[1];
    double end = pair.end[0] > pair.end[1] ? pair.end[0] : pair.end[1];
    return end - begin;
}

/* How many times as much two threads get done as one. */
static double scaling(void (*work)(struct pair *pair, int n))
{
    double one = 0, two = 0;
    for (int i = 0; i < 5; i++) {
        double t1 = run_threads(1, work), t2 = run_threads(2, work);
        if (i == 0 || t1 < one)
            one = t1;
        if (i == 0 || t2 < two)
            two = t2;
    }
    return 2 * one / two;
}

/* Integer work on a small buffer, calls and branches; nothing is shared. */
static void compute(struct pair *pair, int n)
{
    enum { SIZE = 4096, TIMES = 2000 };
    const uint32_t COMPUTED = 1971890073; /* from a run on a real processor */
    uint32_t buffer[SIZE], x = 1;
    (void)pair, (void)n;
    for (int i = 0; i < SIZE; i++)
        buffer[i] = x = x * 1664525 + 1013904223;
    for (int k = 0; k < TIMES; k++)
        for (int i = 0; i < SIZE; i++)
            x = (x & 64) ? x + buffer[i] : (x ^ buffer[i]) * 5;
    if (x != COMPUTED)
        fail("threads");
}

static double row_threads(void)
{
    return scaling(compute);
}

/* Each thread's page faults and unmappings, in one address space: kernel locks, TLB shootdowns. */
static void fault_pages(struct pair *pair, int n)
{
    enum { PAGES = 256, TIMES = 8 };
    (void)pair, (void)n;
    for (int k = 0; k < TIMES; k++) {
        char *p =
            mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            fail("faults2");
        madvise(p, PAGES * 4096, MADV_NOHUGEPAGE);
        for (int i = 0; i < PAGES; i++)
            p[i * 4096] = 1;
        munmap(p, PAGES * 4096);
    }
}

static double row_faults2(void)
{
    return run_threads(2, fault_pages) * 1e6 / (2 * 8 * 256);
}

/* Whose turn it is; the other sleeps. */
static _Atomic uint32_t turn;

static void futex(int op, uint32_t value)
{
    if (syscall(SYS_futex, &turn, op, value, NULL, NULL, 0) < 0 && errno != EAGAIN &&
        errno != EINTR)
        fail("futex");
}

enum { FUTEX_TURNS = 5000 };

static void take_turns(struct pair *pair, int n)
{
    (void)pair;
    for (int i = 0; i < FUTEX_TURNS; i++) {
        while (atomic_load(&turn) != (uint32_t)n)
            futex(FUTEX_WAIT_PRIVATE, (uint32_t)!n);
        atomic_store(&turn, (uint32_t)!n);
        futex(FUTEX_WAKE_PRIVATE, 1);
    }
}

static double row_futex2(void)
{
    atomic_store(&turn, 0);
    return run_threads(2, take_turns) * 1e6 / FUTEX_TURNS;
}

/* On one CPU the other can only go on when this one sleeps. */
static void *take_second_turns(void *unused)
{
    take_turns(NULL, 1);
    return unused;
}

static double row_futex(void)
{
    pthread_t thread;
    atomic_store(&turn, 0);
    double t = now();
    if (pthread_create(&thread, NULL, take_second_turns, NULL) != 0)
        fail("futex");
    take_turns(NULL, 0);
    pthread_join(thread, NULL);
    return (now() - t) * 1e6 / FUTEX_TURNS;
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static uint64_t guarded;

enum { LOCKS = 200000 };

static void lock_often(struct pair *pair, int n)
{
    (void)pair, (void)n;
    for (int i = 0; i < LOCKS; i++) {
        pthread_mutex_lock(&mutex);
        guarded++;
        pthread_mutex_unlock(&mutex);
    }
}

static double row_mutex(void)
{
    guarded = 0;
    double t = run_threads(2, lock_often);
    if (guarded != 2 * LOCKS)
        fail("mutex");
    return t * 1e9 / (2.0 * LOCKS);
}

static _Atomic uint64_t counter;

enum { ADDS = 500000 };

static void add_often(struct pair *pair, int n)
{
    (void)pair, (void)n;
    for (int i = 0; i < ADDS; i++)
        atomic_fetch_add(&counter, 1);
}

static double row_atomic(void)
{
    atomic_store(&counter, 0);
    double t = run_threads(2, add_often);
    if (atomic_load(&counter) != 2 * ADDS)
        fail("atomic");
    return t * 1e9 / (2.0 * ADDS);
}

/* A byte there and back between two CPUs: wake-ups by interprocessor interrupt. */
static int pipes[2][2];

enum { BYTES = 2000 };

static void pass_bytes(struct pair *pair, int n)
{
    char c = 0;
    (void)pair;
    for (int i = 0; i < BYTES; i++) {
        if (n == 0 && write(pipes[0][1], &c, 1) != 1)
            fail("pipe2");
        if (read(pipes[n == 0][0], &c, 1) != 1)
            fail("pipe2");
        if (n == 1 && write(pipes[1][1], &c, 1) != 1)
            fail("pipe2");
    }
}

static double row_pipe2(void)
{
    if (pipe(pipes[0]) != 0 || pipe(pipes[1]) != 0)
        return -1;
    double t = run_threads(2, pass_bytes);
    for (int i = 0; i < 4; i++)
        close(pipes[i / 2][i % 2]);
    return t * 1e6 / BYTES;
}

/* One thread unmaps a page again and again; the other computes and has to be interrupted. */
static atomic_int is_over;
static volatile char *page;

enum { SHOTS = 2000 };

static void shoot(struct pair *pair, int n)
{
    (void)pair;
    if (n == 1) {
        while (!atomic_load(&is_over))
            sink++;
        return;
    }
    for (int i = 0; i < SHOTS; i++) {
        *page = 1;
        if (madvise((char *)page, 4096, MADV_DONTNEED) != 0 || *page != 0)
            fail("shootdown");
    }
    atomic_store(&is_over, 1);
}

static double row_shootdown(void)
{
    char *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return -1;
    page = p;
    atomic_store(&is_over, 0);
    double t = run_threads(2, shoot);
    munmap(p, 4096);
    return t * 1e6 / SHOTS;
}

const struct row rows_two[] = {
    {"threads", "x", row_threads, "smp", ROW_TWO, 1, 1},
    {"futex", "us", row_futex, "system", ROW_ONE, 5, 0},
    {"futex2", "us", row_futex2, "smp", ROW_TWO, 5, 0},
    {"mutex", "ns", row_mutex, "smp", ROW_TWO, 5, 0},
    {"atomic", "ns", row_atomic, "smp", ROW_TWO, 5, 0},
    {"pipe2", "us", row_pipe2, "smp", ROW_TWO, 5, 0},
    {"faults2", "us", row_faults2, "smp", ROW_TWO, 5, 0},
    {"shootdown", "us", row_shootdown, "smp", ROW_TWO, 5, 0},
    {0},
};
