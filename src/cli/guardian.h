/*
 * guardian.h - a small process that cleans up when doppel is killed
 *
 * Nothing can be done in a process that gets SIGKILL. The guardian waits for the end of its
 * parent (a pipe that only the parent holds open), then undoes what is left: the terminal's raw
 * mode, a socket's file. It never outlives the parent by more than that.
 */
#ifndef DOPPEL_CLI_GUARDIAN_H
#define DOPPEL_CLI_GUARDIAN_H

#include <sys/types.h>

#include "base/err.h"
#include "os/tty.h"

struct guardian {
    pid_t pid;
    int pipe_fd;
};

/*
 * Start it, before any thread exists. tty: to restore, NULL for none. socket_path: to remove
 * once guardian_note_socket has been called, NULL for none. Both must stay valid.
 */
int guardian_start(struct guardian *guardian, const struct tty *tty, const char *socket_path,
                   struct err *e);
/* The socket's file is there, and ours. */
void guardian_note_socket(struct guardian *guardian);
/* All is clean: let it go, and wait until it has. */
void guardian_finish(struct guardian *guardian);

#endif
