/*
 * loop.c - event loop over epoll, woken by an eventfd
 *
 * Invariants: a watch that is removed while events are being dispatched stays allocated until
 * the batch is done, marked dead, so that an event already fetched for it is dropped. Posted
 * calls run in order, each batch without the queue's lock held.
 */
#include "os/loop.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/log.h"
#include "os/event.h"

#define LOOP_BATCH 32
#define LOOP_POSTED_FIRST 256

struct loop_fd {
    struct loop *loop;
    int fd;
    loop_fd_fn fn;
    void *ctx;
    bool is_dead;
    struct loop_fd *next_dead;
};

struct loop_posted {
    loop_call_fn fn;
    void *ctx;
};

struct loop {
    int epoll_fd;
    int wake_fd;
    _Atomic bool is_stopping;
    struct loop_fd *dead; /* loop's thread: freed when the batch is done */

    pthread_mutex_t lock; /* protects the ring of posted calls */
    struct loop_posted *posted;
    size_t posted_first, posted_count, posted_size; /* size is a power of two */
    bool is_woken; /* under lock: the eventfd has been written since it was last read */
};

int loop_create(struct loop **out, struct err *e)
{
    struct loop *loop = calloc(1, sizeof(*loop));
    if (loop == NULL)
        return err_set(e, ENOMEM, "allocate an event loop");
    loop->wake_fd = -1;
    loop->posted_size = LOOP_POSTED_FIRST;
    loop->posted = calloc(loop->posted_size, sizeof(loop->posted[0]));
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (loop->epoll_fd >= 0)
        loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = NULL};
    if (loop->posted == NULL || loop->wake_fd < 0 ||
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->wake_fd, &ev) != 0) {
        int rc = err_set(e, loop->posted == NULL ? ENOMEM : errno, "create an event loop");
        if (loop->wake_fd >= 0)
            close(loop->wake_fd);
        if (loop->epoll_fd >= 0)
            close(loop->epoll_fd);
        free(loop->posted);
        free(loop);
        return rc;
    }
    pthread_mutex_init(&loop->lock, NULL);
    *out = loop;
    return 0;
}

static void loop_free_dead(struct loop *loop)
{
    while (loop->dead != NULL) {
        struct loop_fd *watch = loop->dead;
        loop->dead = watch->next_dead;
        free(watch);
    }
}

void loop_destroy(struct loop *loop)
{
    if (loop == NULL)
        return;
    loop_free_dead(loop);
    close(loop->wake_fd);
    close(loop->epoll_fd);
    pthread_mutex_destroy(&loop->lock);
    free(loop->posted);
    free(loop);
}

void loop_stop(struct loop *loop)
{
    atomic_store(&loop->is_stopping, true);
    event_raise(loop->wake_fd);
}

void loop_post(struct loop *loop, loop_call_fn fn, void *ctx)
{
    pthread_mutex_lock(&loop->lock);
    if (loop->posted_count == loop->posted_size) {
        /* Posters coalesce, so the ring grows a few times at most in a process's life. */
        struct loop_posted *bigger = calloc(loop->posted_size * 2, sizeof(bigger[0]));
        if (bigger == NULL) {
            log_error("out of memory for %zu posted calls", loop->posted_size * 2);
            abort();
        }
        for (size_t i = 0; i < loop->posted_count; i++)
            bigger[i] = loop->posted[(loop->posted_first + i) & (loop->posted_size - 1)];
        free(loop->posted);
        loop->posted = bigger;
        loop->posted_size *= 2;
        loop->posted_first = 0;
    }
    size_t slot = (loop->posted_first + loop->posted_count) & (loop->posted_size - 1);
    loop->posted[slot] = (struct loop_posted){.fn = fn, .ctx = ctx};
    loop->posted_count++;
    bool must_wake = !loop->is_woken;
    loop->is_woken = true;
    pthread_mutex_unlock(&loop->lock);
    if (must_wake)
        event_raise(loop->wake_fd);
}

/* Run what had been posted when we began; what these calls post waits for the next turn. */
static void loop_run_posted(struct loop *loop)
{
    pthread_mutex_lock(&loop->lock);
    event_take(loop->wake_fd);
    loop->is_woken = false;
    size_t left = loop->posted_count;
    while (left-- > 0) {
        struct loop_posted call = loop->posted[loop->posted_first];
        loop->posted_first = (loop->posted_first + 1) & (loop->posted_size - 1);
        loop->posted_count--;
        pthread_mutex_unlock(&loop->lock);
        call.fn(call.ctx);
        pthread_mutex_lock(&loop->lock);
    }
    pthread_mutex_unlock(&loop->lock);
}

int loop_run(struct loop *loop, struct err *e)
{
    while (!atomic_load(&loop->is_stopping)) {
        struct epoll_event events[LOOP_BATCH];
        int n = epoll_wait(loop->epoll_fd, events, LOOP_BATCH, -1);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(e, errno, "wait for events");
        for (int i = 0; i < n; i++) {
            struct loop_fd *watch = events[i].data.ptr;
            if (watch == NULL) {
                loop_run_posted(loop);
                continue;
            }
            unsigned got = 0;
            if (events[i].events & EPOLLIN)
                got |= LOOP_READ;
            if (events[i].events & EPOLLOUT)
                got |= LOOP_WRITE;
            if (events[i].events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP))
                got |= LOOP_HANGUP;
            if (!watch->is_dead)
                watch->fn(watch->ctx, got);
        }
        loop_free_dead(loop);
    }
    atomic_store(&loop->is_stopping, false);
    return 0;
}

static uint32_t loop_epoll_bits(unsigned events)
{
    /* RDHUP only for readers: one that does not read could not make the condition go away. */
    return (events & LOOP_READ ? (uint32_t)EPOLLIN | (uint32_t)EPOLLRDHUP : 0) |
           (events & LOOP_WRITE ? (uint32_t)EPOLLOUT : 0);
}

int loop_fd_add(struct loop *loop, int fd, unsigned events, loop_fd_fn fn, void *ctx,
                struct loop_fd **out, struct err *e)
{
    struct loop_fd *watch = calloc(1, sizeof(*watch));
    if (watch == NULL)
        return err_set(e, ENOMEM, "watch descriptor %d", fd);
    *watch = (struct loop_fd){.loop = loop, .fd = fd, .fn = fn, .ctx = ctx};
    struct epoll_event ev = {.events = loop_epoll_bits(events), .data.ptr = watch};
    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &ev) != 0) {
        int code = errno;
        free(watch);
        return err_set(e, code, "watch descriptor %d", fd);
    }
    *out = watch;
    return 0;
}

int loop_fd_modify(struct loop_fd *watch, unsigned events, struct err *e)
{
    struct epoll_event ev = {.events = loop_epoll_bits(events), .data.ptr = watch};
    if (epoll_ctl(watch->loop->epoll_fd, EPOLL_CTL_MOD, watch->fd, &ev) != 0)
        return err_set(e, errno, "change what is watched on descriptor %d", watch->fd);
    return 0;
}

void loop_fd_remove(struct loop_fd *watch)
{
    if (watch == NULL)
        return;
    epoll_ctl(watch->loop->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
    watch->is_dead = true;
    watch->next_dead = watch->loop->dead;
    watch->loop->dead = watch;
}
