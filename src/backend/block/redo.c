/*
 * redo.c - a list of writes that is carried out as a whole, also when this process is killed
 *
 * Invariant: as long as `published` is not 0, the list does not change. Writing a part of it a
 * second time changes nothing: nobody else writes there, because who made the list waits for its
 * end.
 *
 * A thread may be within a write while its process is being killed. The pipe ends only after that:
 * the kernel closes a process's descriptors when its last thread has left.
 */
#include "backend/block/redo.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bits.h"
#include "os/memfd.h"

#define MEMORY (sizeof(struct redo_list) + REDO_BYTES_MAX)
#define KEPT (UINT64_C(1) << 20) /* of a list's data, when it is done: bytes */
#define PAGE 4096u

int redo_open(struct redo *r, struct err *e)
{
    /* Given by the host as it is touched. Not a memory file: those count as files where the size of
     * files is limited (RLIMIT_FSIZE). */
    void *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (memory == MAP_FAILED)
        return err_set(e, errno, "map memory for writes to a disk's tables");
    *r = (struct redo){.list = memory, .survivor = {.pipe_fd = -1}};
    return 0;
}

/* ---- the survivor ---- */

struct task {
    const struct redo_list *list;
    struct store *store;
};

static void survive(void *ctx, int fd)
{
    const struct task *task = ctx;
    char nothing;

    while (read(fd, &nothing, 1) < 0 && errno == EINTR)
        ;
    redo_finish(task->list, task->store); /* there is nobody to tell if it fails */
    /* at once, for who waits for the file's lock: before this process's memory is given back */
    close(task->store->file->fd);
}

int redo_start_survivor(struct redo *r, struct store *store, struct err *e)
{
    struct task task = {r->list, store};

    assert(store->file != NULL);
    return survivor_start(&r->survivor, "disk-survivor", &store->file->fd, 1, survive, &task, e);
}

void redo_close(struct redo *r)
{
    survivor_finish(&r->survivor);
    if (r->list != NULL)
        munmap(r->list, MEMORY);
    r->list = NULL;
}

/* ---- lists ---- */

void redo_begin(struct redo *r)
{
    r->count = r->used = 0;
}

uint8_t *redo_add(struct redo *r, uint64_t offset, uint64_t size)
{
    struct redo_write *last = r->count != 0 ? &r->list->writes[r->count - 1] : NULL;
    uint64_t at = align_up(r->used, size % PAGE == 0 ? PAGE : REDO_ALIGN);

    assert(size != 0 && at + size <= REDO_BYTES_MAX && r->count < REDO_WRITES_MAX);
    r->used = at + size;
    if (last != NULL && last->size != 0 && last->offset + last->size == offset &&
        last->at + last->size == at)
        last->size += size;
    else
        r->list->writes[r->count++] = (struct redo_write){offset, size, at};
    return r->list->data + at;
}

void redo_add_flush(struct redo *r)
{
    assert(r->count < REDO_WRITES_MAX);
    r->list->writes[r->count++] = (struct redo_write){0};
}

static int carry_out(const struct redo_list *list, uint64_t from, uint64_t count,
                     _Atomic uint64_t *flushed, struct store *store)
{
    int rc = 0;

    for (uint64_t i = from; i < count && rc == 0; i++) {
        const struct redo_write *w = &list->writes[i];
        if (w->size != 0) {
            rc = store_write(store, w->offset, list->data + w->at, w->size);
            continue;
        }
        rc = store->ops->flush(store);
        if (rc == 0 && flushed != NULL)
            atomic_store_explicit(flushed, i + 1, memory_order_release);
    }
    return rc;
}

int redo_carry_out(struct redo *r, struct store *store)
{
    struct redo_list *list = r->list;

    atomic_store_explicit(&list->flushed, 0, memory_order_relaxed);
    if (r->used != 0)
        atomic_store_explicit(&list->published, r->count, memory_order_release);
    int rc = carry_out(list, 0, r->count, &list->flushed, store);
    /* Also when it has failed: what a failed flush should have covered may be lost, and what comes
     * after it must not be written then. */
    atomic_store_explicit(&list->published, 0, memory_order_release);
    if (r->used > KEPT)
        memfd_discard(list->data, align_up(r->used, PAGE));
    return rc;
}

int redo_finish(const struct redo_list *list, struct store *store)
{
    uint64_t count = atomic_load_explicit(&list->published, memory_order_acquire);
    uint64_t from = atomic_load_explicit(&list->flushed, memory_order_relaxed);

    return count == 0 ? 0 : carry_out(list, from, count, NULL, store);
}
