/*
 * guardian.h - a small process that cleans up when doppel is killed
 *
 * A survivor (os/survivor.h) that undoes what is left at its parent's end: the terminal's raw mode,
 * files of sockets.
 */
#ifndef DOPPEL_CLI_GUARDIAN_H
#define DOPPEL_CLI_GUARDIAN_H

#include "base/err.h"
#include "os/survivor.h"
#include "os/tty.h"

#define GUARDIAN_FILES_MAX 32

struct guardian {
    struct survivor process;
    const char *const *files;
    unsigned file_count;
};

/*
 * Start it, before any thread exists. tty: to restore, NULL for none. files: each is removed at the
 * end, once guardian_note_file was called for it; at most GUARDIAN_FILES_MAX. All stay valid.
 */
int guardian_start(struct guardian *guardian, const struct tty *tty, const char *const *files,
                   unsigned file_count, struct err *e);
/* The file (one of those, the same pointer) is there, and ours. One that takes its place is not. */
void guardian_note_file(struct guardian *guardian, const char *file);
/* All is clean: let it go, and wait until it has. */
void guardian_finish(struct guardian *guardian);

#endif
