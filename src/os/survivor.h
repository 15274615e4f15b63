/*
 * survivor.h - a small process that goes on when this one is killed
 *
 * Nothing can be done in a process that gets SIGKILL. A survivor waits for the end of its parent,
 * on a pipe whose other end only the parent holds, and then does what is left to do. It never
 * outlives the parent by more than that.
 */
#ifndef DOPPEL_OS_SURVIVOR_H
#define DOPPEL_OS_SURVIVOR_H

#include <sys/types.h>

#include "base/err.h"

#define SURVIVOR_FDS_MAX 4

struct survivor {
    pid_t pid; /* 0: there is none */
    int pipe_fd;
};

/*
 * Fork a process that calls run(ctx, fd) and exits. fd is its end of the pipe; of all other
 * descriptors it has only those `kept`, at most SURVIVOR_FDS_MAX, under their numbers. It is in a
 * session of its own, with all signals blocked: what is sent to doppel's process group, a Ctrl-C or
 * `kill -9 -PGID`, does not reach it. `name` is what ps shows, 15 bytes. Memory is as it was at the
 * fork; `run` changes what was mapped shared only. If there are other threads, it calls nothing
 * that takes a lock of theirs.
 */
int survivor_start(struct survivor *s, const char *name, const int *kept, unsigned kept_count,
                   void (*run)(void *ctx, int fd), void *ctx, struct err *e);

/* Close the pipe, and wait until the survivor has ended. Without one: nothing. */
void survivor_finish(struct survivor *s);

#endif
