/*
 * vclock.c - guest time, and a heap of timers on one timerfd
 *
 * Invariants: heap[0] has the earliest deadline, and every armed timer knows its place in the
 * heap. The timerfd never fires later than heap[0]; it may fire earlier (when the earliest
 * timer was cancelled or moved later), which costs one idle turn of the loop but saves a
 * system call for each of the many timers that are moved before they fall due.
 */
#include "os/vclock.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/clock.h"
#include "base/log.h"
#include "os/loop.h"

#define VCLOCK_HEAP_FIRST 64
/* Callbacks in one turn of the loop, so that a timer that is always due starves nobody. */
#define VCLOCK_TURN 64

struct vclock {
    /* Host time minus guest time. */
    _Atomic uint64_t offset_ns;
    /* Guest time while it stands still, UINT64_MAX while it runs. */
    _Atomic uint64_t stopped_at_ns;
    bool is_manual;
    struct loop_fd *watch;
    int timer_fd; /* -1: manual */

    pthread_mutex_t lock; /* protects all below and the timers' own fields */
    struct vtimer **heap;
    size_t count, size;
    uint64_t programmed_ns; /* guest time at which the timerfd fires, UINT64_MAX: never */
};

uint64_t vclock_now_ns(const struct vclock *clock)
{
    uint64_t stopped = atomic_load_explicit(&clock->stopped_at_ns, memory_order_acquire);
    if (stopped != UINT64_MAX)
        return stopped;
    return clock_now_ns() - atomic_load_explicit(&clock->offset_ns, memory_order_relaxed);
}

/* ---- the heap ---- */

static void vclock_heap_put(struct vclock *clock, size_t i, struct vtimer *timer)
{
    clock->heap[i] = timer;
    timer->heap_index = (int)i;
}

static void vclock_heap_up(struct vclock *clock, size_t i, struct vtimer *timer)
{
    while (i > 0 && clock->heap[(i - 1) / 2]->deadline_ns > timer->deadline_ns) {
        vclock_heap_put(clock, i, clock->heap[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    vclock_heap_put(clock, i, timer);
}

static void vclock_heap_down(struct vclock *clock, size_t i, struct vtimer *timer)
{
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= clock->count)
            break;
        if (child + 1 < clock->count &&
            clock->heap[child + 1]->deadline_ns < clock->heap[child]->deadline_ns)
            child++;
        if (clock->heap[child]->deadline_ns >= timer->deadline_ns)
            break;
        vclock_heap_put(clock, i, clock->heap[child]);
        i = child;
    }
    vclock_heap_put(clock, i, timer);
}

static void vclock_heap_remove(struct vclock *clock, struct vtimer *timer)
{
    size_t i = (size_t)timer->heap_index;
    timer->heap_index = -1;
    timer->deadline_ns = UINT64_MAX;
    struct vtimer *last = clock->heap[--clock->count];
    if (last == timer)
        return;
    if (i > 0 && clock->heap[(i - 1) / 2]->deadline_ns > last->deadline_ns)
        vclock_heap_up(clock, i, last);
    else
        vclock_heap_down(clock, i, last);
}

/* ---- the timerfd ---- */

/* Have the timerfd fire at guest time `at_ns`. Under the lock. */
static void vclock_program(struct vclock *clock, uint64_t at_ns)
{
    struct itimerspec its = {0};
    if (at_ns != UINT64_MAX) {
        uint64_t host;
        if (__builtin_add_overflow(at_ns, atomic_load(&clock->offset_ns), &host) ||
            host > (uint64_t)INT64_MAX)
            host = (uint64_t)INT64_MAX; /* 292 years of uptime: as good as never */
        its.it_value.tv_sec = (time_t)(host / NS_PER_SEC);
        its.it_value.tv_nsec = (long)(host % NS_PER_SEC);
        if (host == 0)
            its.it_value.tv_nsec = 1; /* all zero would disarm */
    }
    /* It can fail for a bad argument only, which would be our bug. */
    int rc = timerfd_settime(clock->timer_fd, TFD_TIMER_ABSTIME, &its, NULL);
    assert(rc == 0);
    clock->programmed_ns = at_ns;
}

static bool vclock_is_stopped(struct vclock *clock)
{
    return atomic_load(&clock->stopped_at_ns) != UINT64_MAX;
}

static void vclock_program_first(struct vclock *clock)
{
    if (clock->timer_fd < 0 || vclock_is_stopped(clock))
        return;
    uint64_t first = clock->count > 0 ? clock->heap[0]->deadline_ns : UINT64_MAX;
    if (first != clock->programmed_ns)
        vclock_program(clock, first);
}

/* Run what is due at now_ns, earliest first; at most `limit` callbacks. Returns how many ran. */
static unsigned vclock_run_due(struct vclock *clock, uint64_t now_ns, unsigned limit)
{
    unsigned ran = 0;
    while (ran < limit && clock->count > 0 && clock->heap[0]->deadline_ns <= now_ns) {
        struct vtimer *timer = clock->heap[0];
        vtimer_fn fn = timer->fn;
        void *ctx = timer->ctx;
        vclock_heap_remove(clock, timer);
        pthread_mutex_unlock(&clock->lock);
        fn(ctx);
        pthread_mutex_lock(&clock->lock);
        ran++;
    }
    return ran;
}

static void vclock_on_timer(void *ctx, unsigned events)
{
    struct vclock *clock = ctx;
    uint64_t count;
    if (read(clock->timer_fd, &count, sizeof(count)) < 0 && errno != EAGAIN && errno != EINTR)
        log_error("read the timer: error %d", errno);
    pthread_mutex_lock(&clock->lock);
    /* It fired: it is armed for nothing now. */
    clock->programmed_ns = UINT64_MAX;
    if (!vclock_is_stopped(clock)) {
        vclock_run_due(clock, vclock_now_ns(clock), VCLOCK_TURN);
        vclock_program_first(clock);
    }
    pthread_mutex_unlock(&clock->lock);
}

/* ---- making and destroying ---- */

static struct vclock *vclock_alloc(struct err *e)
{
    struct vclock *clock = calloc(1, sizeof(*clock));
    if (clock != NULL) {
        clock->size = VCLOCK_HEAP_FIRST;
        clock->heap = calloc(clock->size, sizeof(clock->heap[0]));
    }
    if (clock == NULL || clock->heap == NULL) {
        free(clock);
        err_set(e, ENOMEM, "allocate a clock");
        return NULL;
    }
    clock->timer_fd = -1;
    clock->programmed_ns = UINT64_MAX;
    atomic_init(&clock->stopped_at_ns, UINT64_MAX);
    pthread_mutex_init(&clock->lock, NULL);
    return clock;
}

int vclock_create(struct loop *loop, struct vclock **out, struct err *e)
{
    struct vclock *clock = vclock_alloc(e);
    if (clock == NULL)
        return -ENOMEM;
    clock->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (clock->timer_fd < 0) {
        int rc = err_set(e, errno, "create a timer");
        vclock_destroy(clock);
        return rc;
    }
    int rc =
        loop_fd_add(loop, clock->timer_fd, LOOP_READ, vclock_on_timer, clock, &clock->watch, e);
    if (rc != 0) {
        vclock_destroy(clock);
        return rc;
    }
    atomic_store(&clock->offset_ns, clock_now_ns());
    *out = clock;
    return 0;
}

int vclock_create_manual(struct vclock **out, struct err *e)
{
    struct vclock *clock = vclock_alloc(e);
    if (clock == NULL)
        return -ENOMEM;
    clock->is_manual = true;
    atomic_store(&clock->stopped_at_ns, 0);
    *out = clock;
    return 0;
}

void vclock_destroy(struct vclock *clock)
{
    if (clock == NULL)
        return;
    assert(clock->count == 0);
    loop_fd_remove(clock->watch);
    if (clock->timer_fd >= 0)
        close(clock->timer_fd);
    pthread_mutex_destroy(&clock->lock);
    free(clock->heap);
    free(clock);
}

void vclock_advance(struct vclock *clock, uint64_t ns)
{
    assert(clock->is_manual);
    pthread_mutex_lock(&clock->lock);
    uint64_t target = atomic_load(&clock->stopped_at_ns) + ns;
    while (clock->count > 0 && clock->heap[0]->deadline_ns <= target) {
        uint64_t now = atomic_load(&clock->stopped_at_ns);
        atomic_store(&clock->stopped_at_ns, MAX(now, clock->heap[0]->deadline_ns));
        vclock_run_due(clock, atomic_load(&clock->stopped_at_ns), 1);
    }
    atomic_store(&clock->stopped_at_ns, target);
    pthread_mutex_unlock(&clock->lock);
}

void vclock_pause(struct vclock *clock)
{
    if (clock->is_manual)
        return;
    pthread_mutex_lock(&clock->lock);
    if (!vclock_is_stopped(clock)) {
        uint64_t now = vclock_now_ns(clock);
        vclock_program(clock, UINT64_MAX);
        atomic_store_explicit(&clock->stopped_at_ns, now, memory_order_release);
    }
    pthread_mutex_unlock(&clock->lock);
}

void vclock_resume(struct vclock *clock)
{
    if (clock->is_manual)
        return;
    pthread_mutex_lock(&clock->lock);
    if (vclock_is_stopped(clock)) {
        uint64_t stopped = atomic_load(&clock->stopped_at_ns);
        /* Offset first: a reader that sees the clock run must see what it runs from. */
        atomic_store(&clock->offset_ns, clock_now_ns() - stopped);
        atomic_store_explicit(&clock->stopped_at_ns, UINT64_MAX, memory_order_release);
        vclock_program_first(clock);
    }
    pthread_mutex_unlock(&clock->lock);
}

uint64_t vclock_next_deadline_ns(struct vclock *clock)
{
    pthread_mutex_lock(&clock->lock);
    uint64_t next = clock->count > 0 ? clock->heap[0]->deadline_ns : UINT64_MAX;
    pthread_mutex_unlock(&clock->lock);
    return next;
}

/* ---- timers ---- */

void vtimer_init(struct vtimer *timer, struct vclock *clock, vtimer_fn fn, void *ctx)
{
    *timer = (struct vtimer){
        .clock = clock, .fn = fn, .ctx = ctx, .deadline_ns = UINT64_MAX, .heap_index = -1};
}

/* Room for one more. Timers are few and fixed, so this runs while devices are made. */
static void vclock_reserve(struct vclock *clock)
{
    if (clock->count < clock->size)
        return;
    struct vtimer **bigger = reallocarray(clock->heap, clock->size * 2, sizeof(bigger[0]));
    if (bigger == NULL) {
        log_error("out of memory for %zu timers", clock->size * 2);
        abort();
    }
    clock->heap = bigger;
    clock->size *= 2;
}

void vtimer_arm(struct vtimer *timer, uint64_t deadline_ns)
{
    if (deadline_ns == UINT64_MAX) {
        vtimer_cancel(timer);
        return;
    }
    struct vclock *clock = timer->clock;
    pthread_mutex_lock(&clock->lock);
    if (timer->heap_index < 0) {
        vclock_reserve(clock);
        timer->deadline_ns = deadline_ns;
        vclock_heap_up(clock, clock->count++, timer);
    } else {
        bool is_earlier = deadline_ns < timer->deadline_ns;
        timer->deadline_ns = deadline_ns;
        if (is_earlier)
            vclock_heap_up(clock, (size_t)timer->heap_index, timer);
        else
            vclock_heap_down(clock, (size_t)timer->heap_index, timer);
    }
    if (clock->timer_fd >= 0 && deadline_ns < clock->programmed_ns && !vclock_is_stopped(clock))
        vclock_program(clock, deadline_ns);
    pthread_mutex_unlock(&clock->lock);
}

void vtimer_cancel(struct vtimer *timer)
{
    struct vclock *clock = timer->clock;
    pthread_mutex_lock(&clock->lock);
    if (timer->heap_index >= 0)
        vclock_heap_remove(clock, timer);
    pthread_mutex_unlock(&clock->lock);
}
