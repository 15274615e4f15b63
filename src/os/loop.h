/*
 * loop.h - event loop: descriptors, posted calls, one deadline source
 *
 * One thread runs a loop; callbacks run on it. loop_post and loop_stop may be called from
 * any thread; everything else from the loop's thread or before it runs.
 */
#ifndef DOPPEL_OS_LOOP_H
#define DOPPEL_OS_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct loop;
struct loop_fd;

#define LOOP_READ 1u
#define LOOP_WRITE 2u
#define LOOP_HANGUP 4u   /* only reported: peer closed or error */

typedef void (*loop_fd_fn)(void *ctx, unsigned events);
typedef void (*loop_call_fn)(void *ctx);

int loop_create(struct loop **out, struct err *e);
void loop_destroy(struct loop *loop);

/* Run until loop_stop; may be called again afterwards. Returns 0 or -errno. */
int loop_run(struct loop *loop, struct err *e);
void loop_stop(struct loop *loop);

/* Watch fd (not owned) for `events` (LOOP_READ | LOOP_WRITE). */
int loop_fd_add(struct loop *loop, int fd, unsigned events, loop_fd_fn fn, void *ctx,
                struct loop_fd **out, struct err *e);
int loop_fd_modify(struct loop_fd *watch, unsigned events, struct err *e);
/* No callback runs after this returns. NULL is allowed. Does not close the descriptor. */
void loop_fd_remove(struct loop_fd *watch);

/* Run fn(ctx) once on the loop's thread, in order of posting. Any thread. */
void loop_post(struct loop *loop, loop_call_fn fn, void *ctx);

#endif
