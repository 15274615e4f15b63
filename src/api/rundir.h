/*
 * rundir.h - names of running machines: lock files and sockets in a folder of the user's
 *
 * The folder is the first of these that there is, and belongs to the effective user:
 *   $XDG_RUNTIME_DIR/doppel
 *   /run/doppel            root's
 *   /run/user/UID/doppel   everybody else's
 *   /tmp/doppel-UID        where there is no /run/user/UID
 * It holds NAME.lock, locked (flock) as long as the machine runs, with its process and socket in
 * it, and NAME.sock. A lock file that nobody has locked was left by a doppel that was killed;
 * whoever comes across it removes it and its socket.
 *
 * A control socket elsewhere (--control PATH) has a lock file as well, PATH.lock.
 */
#ifndef DOPPEL_API_RUNDIR_H
#define DOPPEL_API_RUNDIR_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/err.h"

#define RUNDIR_NAME_MAX 63
#define RUNDIR_PATH_MAX 256
#define RUNDIR_SOCKET_MAX 108 /* with the terminating 0, see unix(7) */

/* A name that no other machine of this user has while we hold it, and a place for a socket. */
struct rundir_claim {
    char name_lock[RUNDIR_PATH_MAX], socket_lock[RUNDIR_PATH_MAX]; /* "": none */
    char socket[RUNDIR_SOCKET_MAX];
    int name_fd, socket_fd; /* the lock files, -1: none */
    int listen_fd;          /* -1: rundir_listen has not been called */
    dev_t device;           /* of the socket's file, ours */
    ino_t inode;
};

/* A machine that runs, or is about to, or just ends. */
struct rundir_entry {
    char name[RUNDIR_NAME_MAX + 1]; /* "": known by its socket's path only */
    char socket[RUNDIR_SOCKET_MAX];
    char lock[RUNDIR_PATH_MAX];
    pid_t pid; /* 0: not known yet */
};

#define RUNDIR_CLAIM_NONE                                                                          \
    {                                                                                              \
        .name_fd = -1, .socket_fd = -1, .listen_fd = -1                                            \
    }

/* Letters, digits, ".", "_" and "-", at most RUNDIR_NAME_MAX, a letter or digit first. */
int rundir_check_name(const char *name, struct err *e);

/*
 * Claim `name` (NULL: none) and a socket at `path` (NULL: in the folder, under the name); one of
 * them is given. rundir_release undoes it, also after a failure.
 */
int rundir_claim(const char *name, const char *path, struct rundir_claim *out, struct err *e);

/* Make the socket, mode 0600, and listen on it: claim->listen_fd, non-blocking. */
int rundir_listen(struct rundir_claim *claim, struct err *e);
/* Remove the socket: no one can come any more. The name stays claimed. */
void rundir_close_socket(struct rundir_claim *claim);
void rundir_release(struct rundir_claim *claim);

/*
 * Where the machine with this name, or with its socket at this path (it has a "/"), is. -ESRCH: it
 * does not run.
 */
int rundir_find(const char *name_or_path, struct rundir_entry *out, struct err *e);

/* Does its doppel still hold the lock? */
bool rundir_is_held(const struct rundir_entry *entry);

/* Call fn for each named machine, in order of their names. */
int rundir_list(void (*fn)(void *ctx, const struct rundir_entry *entry), void *ctx, struct err *e);

#endif
