/*
 * chardev.h - character devices: the host's end of a serial line
 *
 * A device model talks to one character device; the front end makes it and owns it. Nothing
 * here blocks but chardev_drain.
 *
 * Threads: chardev_write and chardev_resume_input may be called from any thread, with or
 * without the caller's device lock held. The receiver's callbacks run on the loop's thread
 * with no lock of the character device held, so they may take the device's lock. Everything
 * else belongs to the loop's thread.
 */
#ifndef DOPPEL_BACKEND_CHAR_CHARDEV_H
#define DOPPEL_BACKEND_CHAR_CHARDEV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct chardev;
struct loop;

enum chardev_event {
    CHARDEV_BREAK,        /* the user asked for a break condition on the line */
    CHARDEV_CONNECTED,    /* somebody is at the other end (reported once when set, if so) */
    CHARDEV_DISCONNECTED, /* nobody is any more; writes are still accepted */
};

/* Any member may be NULL. */
struct chardev_receiver {
    /* How many bytes `receive` would take now. Not asked again after 0 until resume_input. */
    size_t (*can_receive)(void *ctx);
    /* Input: 1 <= len <= what can_receive just returned. */
    void (*receive)(void *ctx, const uint8_t *buf, size_t len);
    /* After a short chardev_write: there is room again. */
    void (*writable)(void *ctx);
    void (*event)(void *ctx, enum chardev_event event);
};

/*
 * Say who gets input; input that came earlier is kept for it. NULL takes the receiver away:
 * no callback runs after this returns. `receiver` outlives its registration.
 */
void chardev_set_receiver(struct chardev *cd, const struct chardev_receiver *receiver, void *ctx);

/*
 * Accept as much of buf as there is room for, without blocking. When the count returned is
 * less than len (0 included), `writable` is called once, later.
 */
size_t chardev_write(struct chardev *cd, const void *buf, size_t len);

/* The receiver has room again after can_receive returned 0. */
void chardev_resume_input(struct chardev *cd);

/*
 * Wait until what was accepted is with the host, or timeout_ms (-1: no limit) pass without
 * progress. Returns 0 or -errno (-ETIMEDOUT). Call when the loop no longer runs.
 */
int chardev_drain(struct chardev *cd, int timeout_ms, struct err *e);

/*
 * Drops what has not been written yet: drain first. No writer runs any more, and the loop does
 * not run again: a call for the device may still be in its queue. NULL is allowed.
 */
void chardev_destroy(struct chardev *cd);

/*
 * Called once, on the loop's thread, when output can go nowhere any more (a closed pipe, a
 * full disk). From then on output is dropped, so that the guest does not hang on it.
 */
typedef void (*chardev_failed_fn)(void *ctx, const struct err *why);
void chardev_set_failed(struct chardev *cd, chardev_failed_fn fn, void *ctx);

/* Deliver CHARDEV_BREAK to the receiver. */
void chardev_send_break(struct chardev *cd);

/* ---- kinds ---- */

/*
 * Looks at input as it arrives, before it is queued: edits buf in place and returns how many
 * bytes remain (at most len). This is where a terminal's escape key is taken out.
 */
typedef size_t (*chardev_filter_fn)(void *ctx, uint8_t *buf, size_t len);

struct chardev_stdio_config {
    int in_fd;                /* -1: no input. Not owned; its file status flags are left alone */
    int out_fd;               /* not owned; its file status flags are left alone */
    chardev_filter_fn filter; /* NULL: none */
    void *filter_ctx;
};

/* A pair of descriptors, such as standard input and output. */
int chardev_create_stdio(struct loop *loop, const struct chardev_stdio_config *config,
                         struct chardev **out, struct err *e);

/* Output to a file, which is made or truncated; no input. */
int chardev_create_file(struct loop *loop, const char *path, struct chardev **out, struct err *e);

/*
 * Listen on a Unix stream socket at `path`; one client at a time, others wait in line. While
 * nobody is connected the latest output is kept for the next client. The socket's file goes
 * away with the device. A stale socket that nobody listens on is replaced; a live one is not.
 */
int chardev_create_unix(struct loop *loop, const char *path, struct chardev **out, struct err *e);

/*
 * A pseudo-terminal in raw mode; `path` becomes a symbolic link to it, and goes away with the
 * device. Output waits until somebody reads it.
 */
int chardev_create_pty(struct loop *loop, const char *path, struct chardev **out, struct err *e);

/* Nothing connected: swallows output, gives no input. */
int chardev_create_none(struct loop *loop, struct chardev **out, struct err *e);

/* `spec` as in --serial: "stdio", "file:PATH", "unix:PATH", "pty:PATH" or "none". */
int chardev_create(struct loop *loop, const char *spec, const struct chardev_stdio_config *stdio,
                   struct chardev **out, struct err *e);

#endif
