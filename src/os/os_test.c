/*
 * os_test.c - event loop, guest clock and timers, memory files, short waits
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/clock.h"
#include "os/breakable.h"
#include "os/futex.h"
#include "os/loop.h"
#include "os/memfd.h"
#include "os/run_delay.h"
#include "os/spin_wait.h"
#include "os/thread.h"
#include "os/tsc.h"
#include "os/tty.h"
#include "os/vclock.h"

/* ---- loop ---- */

struct loop_fixture {
    struct loop *loop;
    struct loop_fd *watch[2];
    int fds[2][2];
    unsigned calls;
    unsigned order[1000];
};

static int loop_setup(void **state)
{
    static struct loop_fixture f;
    memset(&f, 0, sizeof(f));
    *state = &f;
    struct err e;
    return loop_create(&f.loop, &e);
}

static int loop_teardown(void **state)
{
    struct loop_fixture *f = *state;
    loop_destroy(f->loop);
    return 0;
}

static void stop_loop(void *ctx)
{
    loop_stop(ctx);
}

static void count_call(void *ctx)
{
    ((struct loop_fixture *)ctx)->calls++;
}

static void test_loop_posts_run_in_order(void **state)
{
    struct loop_fixture *f = *state;
    struct err e;
    /* More than the ring first holds. */
    for (int i = 0; i < 1000; i++)
        loop_post(f->loop, count_call, f);
    loop_post(f->loop, stop_loop, f->loop);
    assert_int_equal(loop_run(f->loop, &e), 0);
    assert_int_equal(f->calls, 1000);
    /* It can run again. */
    loop_post(f->loop, count_call, f);
    loop_post(f->loop, stop_loop, f->loop);
    assert_int_equal(loop_run(f->loop, &e), 0);
    assert_int_equal(f->calls, 1001);
}

static void test_loop_stop_before_run(void **state)
{
    struct loop_fixture *f = *state;
    struct err e;
    loop_stop(f->loop);
    assert_int_equal(loop_run(f->loop, &e), 0);
}

static void *post_from_thread(void *ctx)
{
    struct loop_fixture *f = ctx;
    for (int i = 0; i < 10000; i++)
        loop_post(f->loop, count_call, f);
    return NULL;
}

static void test_loop_posts_from_threads(void **state)
{
    struct loop_fixture *f = *state;
    struct err e;
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, post_from_thread, f), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    loop_post(f->loop, stop_loop, f->loop);
    assert_int_equal(loop_run(f->loop, &e), 0);
    assert_int_equal(f->calls, 40000);
}

/* Both descriptors are ready in one batch; the first callback removes both watches. */
static void remove_both(void *ctx, unsigned events)
{
    struct loop_fixture *f = ctx;
    f->calls++;
    loop_fd_remove(f->watch[0]);
    loop_fd_remove(f->watch[1]);
    loop_post(f->loop, stop_loop, f->loop);
}

static void test_loop_removed_watch_is_silent(void **state)
{
    struct loop_fixture *f = *state;
    struct err e;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pipe(f->fds[i]), 0);
        assert_int_equal(write(f->fds[i][1], "x", 1), 1);
        assert_int_equal(
            loop_fd_add(f->loop, f->fds[i][0], LOOP_READ, remove_both, f, &f->watch[i], &e), 0);
    }
    assert_int_equal(loop_run(f->loop, &e), 0);
    assert_int_equal(f->calls, 1);
    for (int i = 0; i < 2; i++) {
        close(f->fds[i][0]);
        close(f->fds[i][1]);
    }
}

static void note_events(void *ctx, unsigned events)
{
    struct loop_fixture *f = ctx;
    f->order[f->calls++] = events;
    loop_stop(f->loop);
}

static void test_loop_events(void **state)
{
    struct loop_fixture *f = *state;
    struct err e;
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    assert_int_equal(loop_fd_add(f->loop, fds[0], LOOP_WRITE, note_events, f, &f->watch[0], &e), 0);
    assert_int_equal(loop_run(f->loop, &e), 0);
    assert_int_equal(f->order[0], LOOP_WRITE);
    assert_int_equal(loop_fd_modify(f->watch[0], LOOP_READ, &e), 0);
    close(fds[1]);
    assert_int_equal(loop_run(f->loop, &e), 0);
    assert_true(f->order[1] & LOOP_HANGUP);
    loop_fd_remove(f->watch[0]);
    close(fds[0]);
    assert_int_equal(loop_fd_add(f->loop, -1, LOOP_READ, note_events, f, &f->watch[0], &e), -EBADF);
}

/* ---- clock ---- */

struct tick {
    struct vtimer timer;
    struct vclock *clock;
    struct loop *loop;
    uint64_t at_ns[8];
    unsigned count;
    uint64_t period_ns;
};

static void on_tick(void *ctx)
{
    struct tick *t = ctx;
    if (t->count < ARRAY_SIZE(t->at_ns))
        t->at_ns[t->count] = vclock_now_ns(t->clock);
    t->count++;
    if (t->period_ns != 0)
        vtimer_arm(&t->timer, vclock_now_ns(t->clock) + t->period_ns);
    if (t->loop != NULL)
        loop_stop(t->loop);
}

static void test_manual_clock(void **state)
{
    struct err e;
    struct vclock *clock;
    assert_int_equal(vclock_create_manual(&clock, &e), 0);
    struct tick a = {.clock = clock, .period_ns = 100}, b = {.clock = clock};
    vtimer_init(&a.timer, clock, on_tick, &a);
    vtimer_init(&b.timer, clock, on_tick, &b);
    assert_true(vclock_next_deadline_ns(clock) == UINT64_MAX);
    vtimer_arm(&a.timer, 100);
    vtimer_arm(&b.timer, 150);
    assert_int_equal(vclock_next_deadline_ns(clock), 100);
    vclock_advance(clock, 99);
    assert_int_equal(a.count, 0);
    vclock_advance(clock, 251);
    assert_int_equal(vclock_now_ns(clock), 350);
    assert_int_equal(a.count, 3);
    assert_int_equal(a.at_ns[2], 300);
    assert_int_equal(b.count, 1);
    assert_int_equal(b.at_ns[0], 150);
    vtimer_cancel(&a.timer);
    vtimer_cancel(&a.timer);
    /* A deadline in the past is due at once and does not turn time back. */
    vtimer_arm(&b.timer, 10);
    vclock_advance(clock, 0);
    assert_int_equal(b.count, 2);
    assert_int_equal(b.at_ns[1], 350);
    /* "Never" is not armed. */
    vtimer_arm(&b.timer, UINT64_MAX);
    assert_int_equal(b.timer.heap_index, -1);
    vclock_destroy(clock);
}

/* Random arming, moving and cancelling, against a plain table. */
static void test_heap_against_table(void **state)
{
    enum { TIMERS = 200 };
    static struct tick ticks[TIMERS];
    static uint64_t want[TIMERS];
    struct err e;
    struct vclock *clock;
    assert_int_equal(vclock_create_manual(&clock, &e), 0);
    for (int i = 0; i < TIMERS; i++) {
        ticks[i] = (struct tick){.clock = clock};
        vtimer_init(&ticks[i].timer, clock, on_tick, &ticks[i]);
        want[i] = UINT64_MAX;
    }
    uint64_t random = 88172645463325252u;
    for (int step = 0; step < 20000; step++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        unsigned i = (unsigned)(random >> 32) % TIMERS;
        uint64_t now = vclock_now_ns(clock);
        switch (random % 8) {
        case 0:
            vtimer_cancel(&ticks[i].timer);
            want[i] = UINT64_MAX;
            break;
        case 1:
            vclock_advance(clock, random % 64);
            now = vclock_now_ns(clock);
            for (unsigned k = 0; k < TIMERS; k++) {
                assert_int_equal(ticks[k].count, want[k] <= now ? 1 : 0);
                if (want[k] <= now) {
                    assert_true(ticks[k].at_ns[0] == want[k]);
                    want[k] = UINT64_MAX;
                    ticks[k].count = 0;
                }
            }
            break;
        default:
            want[i] = now + 1 + (random >> 16) % 1000;
            vtimer_arm(&ticks[i].timer, want[i]);
            break;
        }
        uint64_t first = UINT64_MAX;
        for (unsigned k = 0; k < TIMERS; k++)
            first = MIN(first, want[k]);
        assert_true(vclock_next_deadline_ns(clock) == first);
    }
    for (int i = 0; i < TIMERS; i++)
        vtimer_cancel(&ticks[i].timer);
    vclock_destroy(clock);
}

static void test_clock_on_loop(void **state)
{
    struct err e;
    struct loop *loop;
    struct vclock *clock;
    assert_int_equal(loop_create(&loop, &e), 0);
    assert_int_equal(vclock_create(loop, &clock, &e), 0);
    struct tick a = {.clock = clock, .loop = loop}, far = {.clock = clock};
    vtimer_init(&a.timer, clock, on_tick, &a);
    vtimer_init(&far.timer, clock, on_tick, &far);
    vtimer_arm(&far.timer, vclock_now_ns(clock) + 3600 * NS_PER_SEC);
    uint64_t due = vclock_now_ns(clock) + 1000000;
    vtimer_arm(&a.timer, due);
    assert_int_equal(loop_run(loop, &e), 0);
    assert_int_equal(a.count, 1);
    assert_true(a.at_ns[0] >= due);
    assert_int_equal(far.count, 0);

    /* Standing still: a timer that is due by guest time waits for the clock. */
    vclock_pause(clock);
    uint64_t stopped = vclock_now_ns(clock);
    vtimer_arm(&a.timer, stopped);
    loop_post(loop, stop_loop, loop);
    assert_int_equal(loop_run(loop, &e), 0);
    assert_int_equal(a.count, 1);
    assert_true(vclock_now_ns(clock) == stopped);
    vclock_resume(clock);
    assert_int_equal(loop_run(loop, &e), 0);
    assert_int_equal(a.count, 2);

    /* An absurd deadline is as good as never. */
    vtimer_arm(&a.timer, UINT64_MAX - 1);
    vtimer_cancel(&a.timer);
    vtimer_cancel(&far.timer);
    vclock_destroy(clock);
    loop_destroy(loop);
}

/* ---- memory files, tsc, tty ---- */

static void test_memfd(void **state)
{
    struct err e;
    int fd = memfd_make("test", 2 * 4096, &e);
    assert_true(fd >= 0);
    uint8_t *rw, *ro;
    assert_int_equal(memfd_map(fd, 0, 2 * 4096, MEMFD_READ | MEMFD_WRITE, (void **)&rw, &e), 0);
    assert_int_equal(memfd_map(fd, 4096, 4096, MEMFD_READ | MEMFD_EXEC, (void **)&ro, &e), 0);
    rw[4096 + 5] = 42;
    assert_int_equal(ro[5], 42);
    assert_int_equal(ftruncate(fd, 4096), -1);
    rw[7] = 43;
    memfd_discard(rw + 4096, 4096);
    assert_int_equal(ro[5], 0);
    assert_int_equal(rw[7], 43);
    memfd_unmap(rw, 2 * 4096);
    memfd_unmap(ro, 4096);
    close(fd);
    assert_int_equal(memfd_make("test", UINT64_MAX, &e), -EFBIG);
}

static void test_tsc(void **state)
{
    uint64_t hz = tsc_frequency_hz();
    assert_true(hz > 100000000u && hz < 20000000000u);
    assert_true(tsc_frequency_hz() == hz);
}

/* ---- waiting ---- */

struct sleeper {
    pthread_t thread;
    _Atomic uint32_t word, is_awake;
};

static void *sleep_once(void *ctx)
{
    struct sleeper *s = ctx;

    while (atomic_load(&s->word) == 0)
        futex_wait(&s->word, 0);
    atomic_store(&s->is_awake, 1);
    return NULL;
}

/* More than can be held back; held twice, released twice. A lost wake hangs. */
static void test_futex_held_wakes(void **state)
{
    struct sleeper sleepers[12] = {0};

    for (unsigned i = 0; i < ARRAY_SIZE(sleepers); i++)
        assert_int_equal(pthread_create(&sleepers[i].thread, NULL, sleep_once, &sleepers[i]), 0);
    futex_hold_wakes();
    futex_hold_wakes();
    for (unsigned i = 0; i < ARRAY_SIZE(sleepers); i++) {
        atomic_store(&sleepers[i].word, 1);
        futex_wake(&sleepers[i].word);
    }
    futex_release_wakes();
    futex_release_wakes();
    for (unsigned i = 0; i < ARRAY_SIZE(sleepers); i++) {
        pthread_join(sleepers[i].thread, NULL);
        assert_int_equal(sleepers[i].is_awake, 1);
    }
    /* and afterwards they go out at once */
    struct sleeper last = {0};
    assert_int_equal(pthread_create(&last.thread, NULL, sleep_once, &last), 0);
    atomic_store(&last.word, 1);
    futex_wake(&last.word);
    pthread_join(last.thread, NULL);
}

/* By its rules: how long anything takes here is the host's to say. */
static void test_spin_wait(void **state)
{
    const uint64_t us = 1000, start = 1000000000;
    struct spin_wait s = {0};
    _Atomic uint32_t word = 0;

    /* nothing was learnt yet */
    assert_int_equal(spin_wait(&s, &word, 1, clock_now_ns()), 0);
    /* what comes soon is looked for, twice as long each time */
    for (uint64_t want = 10 * us; want < 200 * us; want *= 2) {
        spin_wait_slept(&s, start, start + 100 * us, true);
        assert_int_equal(s.limit_ns, MIN(want, 100 * us));
    }
    /* bits of others are not waited for, and what is there is found at once */
    uint64_t now = clock_now_ns();
    word = 2;
    assert_true(spin_wait(&s, &word, 1, now) >= 100 * us || s.limit_ns == 0);
    s = (struct spin_wait){.limit_ns = UINT64_MAX};
    assert_int_equal(spin_wait(&s, &word, 3, clock_now_ns()), 0);
    /* a long sleep, or no processor for it */
    spin_wait_slept(&s, start, start + 101 * us, true);
    assert_int_equal(s.limit_ns, 0);
    s.limit_ns = 50 * us;
    spin_wait_slept(&s, start, start + us, false);
    assert_int_equal(s.limit_ns, 0);
    /* somebody else wanted it: not before the time */
    s = (struct spin_wait){.limit_ns = 50 * us, .after_ns = start + 5 * us};
    spin_wait_slept(&s, start, start + 4 * us, true);
    assert_int_equal(s.limit_ns, 0);
    spin_wait_slept(&s, start, start + 5 * us, true);
    assert_int_equal(s.limit_ns, 10 * us);
}

static int lock_for_ever(void *ctx)
{
    struct flock lock = {.l_type = F_WRLCK};

    return fcntl(*(int *)ctx, F_OFD_SETLKW, &lock) == 0 ? 0 : -errno;
}

static void *run_breakable(void *ctx)
{
    int result;

    return breakable_run(lock_for_ever, ctx, &result) ? "it has returned" : "it was broken";
}

/* Wherever the thread is by then. */
static void test_breakable(void **state)
{
    char path[] = "/tmp/doppel-os-XXXXXX";
    struct flock lock = {.l_type = F_WRLCK};
    int here = mkstemp(path), there = open(path, O_RDWR);

    unlink(path);
    assert_int_equal(breakable_init(), 0);
    assert_int_equal(fcntl(here, F_OFD_SETLK, &lock), 0);
    for (unsigned i = 0; i < 300; i++) {
        pthread_t thread;
        void *result;
        assert_int_equal(thread_start(&thread, "breakable", run_breakable, &there), 0);
        for (unsigned k = 0; k < i % 30; k++)
            sched_yield();
        breakable_break(thread);
        assert_int_equal(pthread_join(thread, &result), 0);
        assert_string_equal(result, "it was broken");
    }
    close(here);
    close(there);
}

static void test_tty_wants_a_terminal(void **state)
{
    struct err e;
    struct tty tty;
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(tty_open(&tty, fds[0], &e), -ENOTTY);
    unsigned rows, columns;
    assert_false(tty_size(fds[0], &rows, &columns));
    close(fds[0]);
    close(fds[1]);
}

static bool has_waited(int fd)
{
    uint64_t ns = 0;

    return run_delay_read(fd, &ns) && ns > 0;
}

struct crowd {
    _Atomic bool is_over;
    int fd;
    uint64_t until_ns;
};

/* Two threads on one processor: one of them waits. */
static void *crowd_in(void *arg)
{
    struct crowd *c = arg;

    while (!atomic_load(&c->is_over) && !has_waited(c->fd) && clock_now_ns() < c->until_ns)
        ;
    atomic_store(&c->is_over, true);
    return NULL;
}

static void test_run_delay(void **state)
{
    struct crowd c = {.fd = run_delay_open(), .until_ns = clock_now_ns() + 20 * NS_PER_SEC};
    cpu_set_t all, one;
    pthread_t other;
    uint64_t ns;

    assert_false(run_delay_read(-1, &ns));
    if (!run_delay_is_known())
        skip();
    assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
    CPU_ZERO(&one);
    for (unsigned i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &all)) {
            CPU_SET(i, &one);
            break;
        }
    assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
    assert_int_equal(pthread_create(&other, NULL, crowd_in, &c), 0);
    crowd_in(&c);
    pthread_join(other, NULL);
    assert_true(has_waited(c.fd));
    assert_int_equal(sched_setaffinity(0, sizeof(all), &all), 0);
    close(c.fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_loop_posts_run_in_order, loop_setup, loop_teardown),
        cmocka_unit_test_setup_teardown(test_loop_stop_before_run, loop_setup, loop_teardown),
        cmocka_unit_test_setup_teardown(test_loop_posts_from_threads, loop_setup, loop_teardown),
        cmocka_unit_test_setup_teardown(test_loop_removed_watch_is_silent, loop_setup,
                                        loop_teardown),
        cmocka_unit_test_setup_teardown(test_loop_events, loop_setup, loop_teardown),
        cmocka_unit_test(test_manual_clock),
        cmocka_unit_test(test_heap_against_table),
        cmocka_unit_test(test_clock_on_loop),
        cmocka_unit_test(test_memfd),
        cmocka_unit_test(test_tsc),
        cmocka_unit_test(test_futex_held_wakes),
        cmocka_unit_test(test_spin_wait),
        cmocka_unit_test(test_breakable),
        cmocka_unit_test(test_run_delay),
        cmocka_unit_test(test_tty_wants_a_terminal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
