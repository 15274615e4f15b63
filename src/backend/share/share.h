/*
 * share.h - a folder of the host that a guest mounts: a server for the FUSE protocol
 *
 * A request is the bytes of a FUSE message in the guest's memory, and room for the answer. All of
 * it is hostile. The server gives out nothing but what lies in the folder: it opens names only one
 * at a time, beneath a folder that it holds open, and never follows a symbolic link (the guest
 * does that, among its own paths). Devices, sockets and FIFOs are names with attributes here; they
 * are never opened.
 *
 * Threads: share_submit may be called from any thread and does not block; `done` runs on one of
 * the server's own threads with no lock held, and may submit more. share_reset and share_close
 * belong to one thread, with no request under way; but share_close ends requests that wait.
 *
 * Spec: Linux include/uapi/linux/fuse.h, protocol 7; VIRTIO 1.2, 5.11.
 */
#ifndef DOPPEL_BACKEND_SHARE_SHARE_H
#define DOPPEL_BACKEND_SHARE_SHARE_H

#include <linux/fuse.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"

struct share;

/* The server makes no use of more pieces than that in each direction. */
#define SHARE_IOV_MAX 1024

struct share_request {
    /* the submitter's, until `done` */
    const struct iovec *in, *out;
    unsigned in_count, out_count;
    uint64_t in_size, out_size; /* bytes of all pieces */
    bool is_urgent;             /* goes before those that wait */
    /* The answer is in the first `written` bytes of `out`; the request is the submitter's again. */
    void (*done)(struct share_request *request, uint32_t written);

    /* the server's */
    bool has_header;
    _Atomic bool is_interrupted;
    struct fuse_in_header header; /* read once, when submitted */
    struct share_request *next;
};

/* What the guest keeps in memory of the folder, which others may change at any time. */
enum share_cache {
    SHARE_CACHE_AUTO,   /* names and attributes for a second, data until an open finds it changed */
    SHARE_CACHE_ALWAYS, /* everything, and what it writes for a while: nobody else writes there */
    SHARE_CACHE_NEVER,  /* nothing: each look is one at the folder */
};

struct share_config {
    const char *path; /* for messages too; outlives the share */
    bool is_read_only;
    enum share_cache cache;
    bool has_locks;         /* the guest's locks are the host's, if it asks for that */
    int64_t (*now_s)(void); /* seconds since 1970; NULL: the host's clock (tests have their own) */
    /* how many descriptors the guest may make the server hold at a time; at least 16 */
    unsigned descriptors_max;
};

int share_open(const struct share_config *config, struct share **out, struct err *e);

/* Waits for requests under way. NULL is allowed. */
void share_close(struct share *share);

void share_submit(struct share *share, struct share_request *request);

/*
 * Requests that wait for a lock (FUSE_SETLKW) stay under way until they have it, at most so many at
 * a time: a submitter that can have more than that under way is never stopped by them.
 */
#define SHARE_WAITS_MAX 64u

/*
 * Those that wait for a lock, and those that are about to, end with EINTR. Any thread; does not
 * wait for them.
 */
void share_stop_waiting(struct share *share);

/* Forget what the guest looked up, opened and locked: it will begin again with INIT. */
void share_reset(struct share *share);

/*
 * Raise the limit on open files as far as it goes, and say how many of them each of `count` shares
 * may have, so that enough are left for everything else.
 */
unsigned share_descriptors(unsigned count);

/* Has the guest mounted it? Then it knows files by numbers that mean something here only. */
bool share_has_session(const struct share *share);

#endif
