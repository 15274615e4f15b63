/*
 * chardev_impl.h - what the kinds of character devices share (for backend/char only)
 */
#ifndef DOPPEL_BACKEND_CHAR_CHARDEV_IMPL_H
#define DOPPEL_BACKEND_CHAR_CHARDEV_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "backend/char/chardev.h"

/* ---- a queue of bytes ---- */

struct char_ring {
    uint8_t *bytes;
    size_t first, count;
    size_t size; /* a power of two */
};

int char_ring_init(struct char_ring *ring, size_t size, struct err *e);
void char_ring_free(struct char_ring *ring);
/* Append what fits; returns how much that was. */
size_t char_ring_put(struct char_ring *ring, const uint8_t *buf, size_t len);
/* The longest run of bytes at the front that lies in one piece. */
size_t char_ring_front(const struct char_ring *ring, const uint8_t **out);
void char_ring_drop(struct char_ring *ring, size_t len);

static inline size_t char_ring_room(const struct char_ring *ring)
{
    return ring->size - ring->count;
}

/* ---- the device ---- */

struct chardev_ops {
    size_t (*write)(struct chardev *cd, const uint8_t *buf, size_t len);
    int (*drain)(struct chardev *cd, int timeout_ms, struct err *e);
    void (*destroy)(struct chardev *cd);
    /* The receiver took input: there is room in the queue again. May be NULL. */
    void (*input_taken)(struct chardev *cd);
};

struct chardev {
    const struct chardev_ops *ops;
    struct loop *loop;
    /* all on the loop's thread, but for is_resume_posted */
    const struct chardev_receiver *receiver;
    void *receiver_ctx;
    chardev_failed_fn failed;
    void *failed_ctx;
    bool is_connected;
    bool is_delivering;
    struct char_ring input;
    _Atomic bool is_resume_posted;
};

#define CHARDEV_INPUT_SIZE 4096u
#define CHARDEV_OUTPUT_SIZE 65536u

int chardev_init(struct chardev *cd, const struct chardev_ops *ops, struct loop *loop,
                 struct err *e);
void chardev_fini(struct chardev *cd);

/* Queue input and hand over what the receiver has room for. Returns how much was queued. */
size_t chardev_put_input(struct chardev *cd, const uint8_t *buf, size_t len);
void chardev_set_connected(struct chardev *cd, bool is_connected);
void chardev_report_writable(struct chardev *cd);
void chardev_report_failed(struct chardev *cd, const struct err *why);

/* ---- output by a thread of its own ---- */

/*
 * For descriptors that may block and whose O_NONBLOCK flag is not ours to set (standard output
 * is shared with the shell), and for files, which epoll does not take.
 */
struct char_writer {
    struct chardev *cd;
    int fd;
    pthread_t thread;
    pthread_mutex_t lock; /* protects all below */
    pthread_cond_t has_work, has_progress;
    struct char_ring ring;
    bool is_idle; /* the thread waits for has_work */
    bool is_full; /* a write was cut short: report when there is room */
    bool is_stopping;
    bool is_failed; /* output goes nowhere any more */
    struct err why;
};

int char_writer_init(struct char_writer *writer, struct chardev *cd, int fd, struct err *e);
size_t char_writer_write(struct char_writer *writer, const uint8_t *buf, size_t len);
int char_writer_drain(struct char_writer *writer, int timeout_ms, struct err *e);
/* Ends the thread, also out of a write that blocks. Does not close fd. */
void char_writer_fini(struct char_writer *writer);

#endif
