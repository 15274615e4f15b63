/*
 * thunk_alloc.c - memory of native thunks: one file, mapped writable and executable apart
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bits.h"
#include "engine/soft/thunk.h"
#include "engine/soft/vcpu.h"
#include "os/memfd.h"

int soft_thunks_create(const struct soft_sizes *sizes, struct soft_thunks **out, struct err *e)
{
    size_t size = align_up(sizeof(struct soft_thunks) +
                               sizes->thunk_slots * sizeof(struct soft_thunk_slot), 64);
    struct soft_thunks *t = aligned_alloc(64, size);
    void *rw = NULL, *rx = NULL;

    if (t == NULL)
        return err_set(e, ENOMEM, "allocate the table of native thunks");
    memset(t, 0, size);
    t->size = sizes->thunk_bytes;
    t->slot_mask = sizes->thunk_slots - 1;
    int fd = memfd_make("doppel-thunks", t->size, e);
    if (fd < 0) {
        free(t);
        return fd;
    }
    int r = memfd_map(fd, 0, t->size, MEMFD_READ | MEMFD_WRITE, &rw, e);
    if (r == 0)
        r = memfd_map(fd, 0, t->size, MEMFD_READ | MEMFD_EXEC, &rx, e);
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
        memfd_unmap(t->rw, t->size);
    if (t->rx != NULL)
        memfd_unmap(t->rx, t->size);
    free(t);
}
