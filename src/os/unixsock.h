/*
 * unixsock.h - Unix stream sockets by path
 *
 * All descriptors are non-blocking and close-on-exec. Any thread.
 */
#ifndef DOPPEL_OS_UNIXSOCK_H
#define DOPPEL_OS_UNIXSOCK_H

#include "base/err.h"

/*
 * Listen at `path`, for its owner only. A stale socket that nobody listens on is replaced;
 * anything else there is not. Returns the descriptor or -errno. The file is the caller's to
 * remove.
 */
int unixsock_listen(const char *path, int backlog, struct err *e);

/* Returns the descriptor, connected, or -errno. */
int unixsock_connect(const char *path, struct err *e);

#endif
