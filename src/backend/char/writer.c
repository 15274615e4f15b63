/*
 * writer.c - output by a thread of its own
 *
 * Invariants: only the thread takes bytes out of the ring, so what it is writing stays in place
 * while the lock is free. The thread can be cancelled in write(2) and poll(2) only, where it
 * holds no lock.
 *
 * After each write the thread naps for a moment, so that a guest that prints byte by byte costs
 * one system call for many bytes and no wake-up each.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "backend/char/chardev_impl.h"
#include "base/clock.h"
#include "os/loop.h"
#include "os/thread.h"

#define WRITER_NAP_NS 500000L

static void writer_on_writable(void *ctx)
{
    chardev_report_writable(((struct char_writer *)ctx)->cd);
}

static void writer_on_failed(void *ctx)
{
    struct char_writer *writer = ctx;
    chardev_report_failed(writer->cd, &writer->why);
}

/* Everything that may block. Returns bytes written, or -errno. */
static ssize_t writer_write_some(int fd, const uint8_t *buf, size_t len)
{
    int old;
    ssize_t n;
    pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &old);
    do {
        n = write(fd, buf, len);
        if (n < 0 && errno == EAGAIN) {
            /* Somebody who shares the descriptor made it non-blocking. */
            struct pollfd pfd = {.fd = fd, .events = POLLOUT};
            poll(&pfd, 1, -1);
            errno = EINTR;
        }
    } while (n < 0 && errno == EINTR);
    ssize_t rc = n < 0 ? -errno : n;
    pthread_setcancelstate(old, NULL);
    return rc;
}

static void writer_nap(void)
{
    struct timespec ts = {.tv_nsec = WRITER_NAP_NS};
    nanosleep(&ts, NULL);
}

/* Under the lock: `n` bytes are out of the way. */
static void writer_advance(struct char_writer *writer, size_t n)
{
    char_ring_drop(&writer->ring, n);
    pthread_cond_broadcast(&writer->has_progress);
    if (writer->is_full && char_ring_room(&writer->ring) >= writer->ring.size / 2) {
        writer->is_full = false;
        loop_post(writer->cd->loop, writer_on_writable, writer);
    }
}

static void *writer_run(void *ctx)
{
    struct char_writer *writer = ctx;
    int old;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old);
    pthread_mutex_lock(&writer->lock);
    while (!writer->is_stopping) {
        if (writer->ring.count == 0) {
            writer->is_idle = true;
            pthread_cond_wait(&writer->has_work, &writer->lock);
            writer->is_idle = false;
            continue;
        }
        const uint8_t *front;
        size_t len = char_ring_front(&writer->ring, &front);
        pthread_mutex_unlock(&writer->lock);
        ssize_t n = writer_write_some(writer->fd, front, len);
        if (n > 0 && (size_t)n == len)
            writer_nap();
        pthread_mutex_lock(&writer->lock);
        if (n < 0) {
            err_set(&writer->why, (int)-n, "write the guest's serial output");
            writer->is_failed = true;
            loop_post(writer->cd->loop, writer_on_failed, writer);
            writer_advance(writer, writer->ring.count);
            break;
        }
        writer_advance(writer, (size_t)n);
    }
    pthread_mutex_unlock(&writer->lock);
    return NULL;
}

int char_writer_init(struct char_writer *writer, struct chardev *cd, int fd, struct err *e)
{
    *writer = (struct char_writer){.cd = cd, .fd = fd};
    int rc = char_ring_init(&writer->ring, CHARDEV_OUTPUT_SIZE, e);
    if (rc != 0)
        return rc;
    pthread_mutex_init(&writer->lock, NULL);
    pthread_cond_init(&writer->has_work, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&writer->has_progress, &attr);
    pthread_condattr_destroy(&attr);

    /* SIGPIPE is seen as EPIPE. */
    rc = thread_start(&writer->thread, "doppel-out", writer_run, writer);
    if (rc != 0) {
        char_ring_free(&writer->ring);
        return err_set(e, -rc, "start the thread that writes serial output");
    }
    return 0;
}

size_t char_writer_write(struct char_writer *writer, const uint8_t *buf, size_t len)
{
    pthread_mutex_lock(&writer->lock);
    size_t n = len;
    if (!writer->is_failed) {
        n = char_ring_put(&writer->ring, buf, len);
        if (n < len)
            writer->is_full = true;
        if (writer->is_idle) {
            writer->is_idle = false;
            pthread_cond_signal(&writer->has_work);
        }
    }
    pthread_mutex_unlock(&writer->lock);
    return n;
}

int char_writer_drain(struct char_writer *writer, int timeout_ms, struct err *e)
{
    int rc = 0;
    pthread_mutex_lock(&writer->lock);
    while (writer->ring.count > 0 && rc == 0) {
        size_t before = writer->ring.count;
        if (timeout_ms < 0) {
            pthread_cond_wait(&writer->has_progress, &writer->lock);
            continue;
        }
        struct timespec until = clock_deadline((uint64_t)timeout_ms * 1000000u);
        if (pthread_cond_timedwait(&writer->has_progress, &writer->lock, &until) == ETIMEDOUT &&
            writer->ring.count == before)
            rc = err_set(e, ETIMEDOUT, "write the guest's serial output (%zu bytes are left)",
                         before);
    }
    if (rc == 0 && writer->is_failed) {
        if (e != NULL)
            *e = writer->why;
        rc = -writer->why.code;
    }
    pthread_mutex_unlock(&writer->lock);
    return rc;
}

void char_writer_fini(struct char_writer *writer)
{
    pthread_mutex_lock(&writer->lock);
    writer->is_stopping = true;
    pthread_cond_signal(&writer->has_work);
    pthread_mutex_unlock(&writer->lock);
    pthread_cancel(writer->thread);
    pthread_join(writer->thread, NULL);
    pthread_cond_destroy(&writer->has_work);
    pthread_cond_destroy(&writer->has_progress);
    pthread_mutex_destroy(&writer->lock);
    char_ring_free(&writer->ring);
}
