/*
 * nbd.h - disks that a server on the network or in another process has, by the NBD protocol
 */
#ifndef DOPPEL_BACKEND_BLOCK_NBD_H
#define DOPPEL_BACKEND_BLOCK_NBD_H

#include <stdbool.h>

#include "backend/block/store.h"
#include "base/err.h"

/* Is it the name of an export: nbd://, nbds://, and those with +unix or +vsock? */
bool nbd_is_uri(const char *path);

#define NBD_ANSWER_LIMIT_MS 60000

/*
 * Connect to the export that config->path, a URI, names. Its size is what the server says now.
 * There is no lock: the server decides who else may use it. A server that has not answered for
 * `answer_limit_ms` counts as gone, while connecting and later. Then, as when the connection ends,
 * another connection is tried for as long again, and calls wait for it; if there is none they fail
 * with -EIO, now and later.
 */
int store_open_nbd(const struct store_config *config, unsigned answer_limit_ms, struct store **out,
                   struct err *e);

/* Another limit for what is issued from now on, with nothing under way. */
void nbd_limit_answers(struct store *store, unsigned answer_limit_ms);

#endif
