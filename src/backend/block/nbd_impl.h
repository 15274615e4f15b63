/*
 * nbd_impl.h - what the files of NBD stores share
 *
 * nbd.c issues commands and waits for them, on its callers' threads; nbd_connection.c has the
 * connection, and the thread that drives it.
 */
#ifndef DOPPEL_BACKEND_BLOCK_NBD_IMPL_H
#define DOPPEL_BACKEND_BLOCK_NBD_IMPL_H

#include <limits.h>
#include <pthread.h>

#include "backend/block/nbd.h"
#include "backend/block/nbd_journal.h"
#include "backend/block/nbd_library.h"
#include "backend/block/store.h"

#define NBD_UNIT_MAX 65536u                   /* of a server's smallest block */
#define NBD_TRANSFER_MAX (UINT64_C(32) << 20) /* of one command, unless the server says less */
#define NBD_RANGE_MAX (UINT64_C(1) << 30)     /* of a discard or zeroes: lengths have 32 bits */
#define NBD_ALLOCATION "base:allocation"

enum nbd_command_kind { NBD_READ, NBD_WRITE, NBD_FLUSH, NBD_TRIM, NBD_ZERO, NBD_STATUS };

struct nbd_command {
    enum nbd_command_kind kind;
    uint64_t offset, size;
    uint8_t *data;
    uint32_t flags;
    nbd_extent_callback told; /* of NBD_STATUS */
    uint64_t number;          /* of NBD_FLUSH: what it covers of the journal */
};

/* A command under way; on the stack of who waits for it. */
struct nbd_call {
    struct nbd_store *store;
    uint64_t deadline_ns;
    bool is_done;
    int result;
    struct nbd_call *next, **link;
};

/* What a server says of its export; another connection must find the same. */
struct nbd_export {
    uint64_t size;
    uint32_t unit, preferred; /* offsets and sizes are multiples of `unit` */
    uint64_t transfer_max;    /* of one command */
    bool is_read_only, can_flush, can_fua, can_trim, can_zero, can_map;
};

enum nbd_state {
    NBD_READY,
    NBD_LOST, /* a new connection is tried */
    NBD_GONE, /* for good */
};

struct nbd_store {
    struct store store;
    struct nbd_library lib;
    struct nbd_handle *nbd;
    char *uri;
    char keys[PATH_MAX - 64]; /* folder with the certificates for TLS */
    _Atomic uint64_t answer_limit_ns;
    struct nbd_export export;
    bool ignores_flushes;
    pthread_mutex_t around_lock; /* over reading, changing and writing what lies around */

    pthread_t thread;
    int wake_fd;
    pthread_mutex_t lock;       /* all that follows */
    pthread_cond_t is_answered; /* a call; and `state` or `users` is another */
    enum nbd_state state;
    unsigned users; /* of the handle: it stays as long as there are any */
    struct nbd_call *calls;
    struct nbd_journal journal; /* while there are no users: the thread's */
    bool is_stopping;
};

/* ---- nbd.c ---- */

/* Puts a call on the list, and issues it: -1, or a cookie. It stays there until nbd_call_end. */
int64_t nbd_call_begin(struct nbd_store *s, struct nbd_call *call, const struct nbd_command *c);
/* 0, -errno, or -ENOTCONN: the connection was lost before there was an answer. */
int nbd_call_end(struct nbd_store *s, struct nbd_call *call, int64_t cookie);

/* ---- nbd_connection.c ---- */

/* Connect, see what there is, start the thread. */
int nbd_connect_first(struct nbd_store *s, const struct store_config *config, struct err *e);
/* Is this handle's connection at its end? */
bool nbd_is_over(const struct nbd_store *s);
/* End the thread, say good-bye. */
void nbd_disconnect(struct nbd_store *s);

#endif
