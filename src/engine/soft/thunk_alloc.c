/*
 * thunk_alloc.c - memory of native thunks: one file, mapped writable and executable apart
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bits.h"
#include "engine/soft/thunk.h"
#include "os/memfd.h"

int soft_thunks_create(struct soft_thunks **out, struct err *e)
{
    struct soft_thunks *t = aligned_alloc(64, align_up(sizeof(*t), 64));
    void *rw = NULL, *rx = NULL;

    if (t == NULL)
        return err_set(e, ENOMEM, "allocate the table of native thunks");
    memset(t, 0, sizeof(*t));
    int fd = memfd_make("doppel-thunks", SOFT_THUNK_CACHE_SIZE, e);
    if (fd < 0) {
        free(t);
        return fd;
    }
    int r = memfd_map(fd, 0, SOFT_THUNK_CACHE_SIZE, MEMFD_READ | MEMFD_WRITE, &rw, e);
    if (r == 0)
        r = memfd_map(fd, 0, SOFT_THUNK_CACHE_SIZE, MEMFD_READ | MEMFD_EXEC, &rx, e);
    close(fd);
    t->rw = rw;
    t->rx = rx;
    if (r != 0) {
        soft_thunks_destroy(t);
        return r;
    }
    *out = t;
    return 0;
}

void soft_thunks_destroy(struct soft_thunks *t)
{
    if (t == NULL)
        return;
    if (t->rw != NULL)
        memfd_unmap(t->rw, SOFT_THUNK_CACHE_SIZE);
    if (t->rx != NULL)
        memfd_unmap(t->rx, SOFT_THUNK_CACHE_SIZE);
    free(t);
}
