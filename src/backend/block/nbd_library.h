/*
 * nbd_library.h - libnbd, loaded when the first disk of an NBD server is opened
 *
 * It brings along what TLS and URIs take: twenty libraries that every machine would wait for, and
 * have in its memory, to use none of them.
 *
 * Spec: libnbd(3).
 */
#ifndef DOPPEL_BACKEND_BLOCK_NBD_LIBRARY_H
#define DOPPEL_BACKEND_BLOCK_NBD_LIBRARY_H

#include <libnbd.h>

#include "base/err.h"

/* Those of its functions that are used, without "nbd_". */
#define NBD_FUNCTIONS(X)                                                                           \
    X(add_meta_context)                                                                            \
    X(aio_block_status)                                                                            \
    X(aio_connect_uri)                                                                             \
    X(aio_disconnect)                                                                              \
    X(aio_flush)                                                                                   \
    X(aio_get_direction)                                                                           \
    X(aio_get_fd)                                                                                  \
    X(aio_is_closed)                                                                               \
    X(aio_is_connecting)                                                                           \
    X(aio_is_dead)                                                                                 \
    X(aio_is_ready)                                                                                \
    X(aio_notify_read)                                                                             \
    X(aio_notify_write)                                                                            \
    X(aio_pread)                                                                                   \
    X(aio_pwrite)                                                                                  \
    X(aio_trim)                                                                                    \
    X(aio_zero)                                                                                    \
    X(can_flush)                                                                                   \
    X(can_fua)                                                                                     \
    X(can_meta_context)                                                                            \
    X(can_trim)                                                                                    \
    X(can_zero)                                                                                    \
    X(close)                                                                                       \
    X(create)                                                                                      \
    X(get_block_size)                                                                              \
    X(get_errno)                                                                                   \
    X(get_error)                                                                                   \
    X(get_size)                                                                                    \
    X(is_read_only)                                                                                \
    X(set_tls_certificates)                                                                        \
    X(set_uri_allow_local_file)                                                                    \
    X(set_uri_allow_transports)

struct nbd_library {
#define X(name) __typeof__(nbd_##name) *name;
    NBD_FUNCTIONS(X)
#undef X
};

/* The library stays until the process ends. Any thread. Fails where it is not installed. */
int nbd_library_load(struct nbd_library *out, struct err *e);

#endif
