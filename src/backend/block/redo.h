/*
 * redo.h - a list of writes that is carried out as a whole, also when this process is killed
 *
 * The list is made in memory that is shared with a survivor (os/survivor.h) and published by one
 * store to it. From then on until all of it is carried out, the end of this process, whatever it
 * came from, makes the survivor go on with it. So a file is never seen to be between the first and
 * the last write: the survivor shares this process's open file, and with it the lock.
 *
 * It helps against the end of the process, not of the host: for that the list has flushes in it,
 * and the survivor keeps to them. One thread at a time.
 */
#ifndef DOPPEL_BACKEND_BLOCK_REDO_H
#define DOPPEL_BACKEND_BLOCK_REDO_H

#include <stdint.h>

#include "backend/block/store.h"
#include "base/err.h"
#include "os/survivor.h"

/* Of a list: the sum of its writes, each rounded up to REDO_ALIGN, and their number. */
#define REDO_BYTES_MAX (UINT64_C(160) << 20)
#define REDO_WRITES_MAX 65536u
#define REDO_ALIGN 8u

struct redo_write {
    uint64_t offset, size; /* in the store; of 0 bytes: a flush */
    uint64_t at;           /* in the list's data */
};

/* In shared memory. */
struct redo_list {
    _Atomic uint64_t published; /* writes that are to be carried out; 0: nothing to do */
    _Atomic uint64_t flushed;   /* so many of them are on stable storage */
    struct redo_write writes[REDO_WRITES_MAX];
    _Alignas(4096) uint8_t data[]; /* so that O_DIRECT takes it as it is */
};

struct redo {
    struct redo_list *list;
    uint64_t count, used; /* writes and bytes of a list that is being made */
    struct survivor survivor;
};

/* Memory for lists; nobody survives yet. */
int redo_open(struct redo *r, struct err *e);
/* Start a survivor for lists that are carried out on `store`, an open file (store->file). */
int redo_start_survivor(struct redo *r, struct store *store, struct err *e);
/* Waits for the survivor's end, so that the file is nobody's any more once the store is closed,
 * too. Of one that was never opened, all zeroes: nothing. */
void redo_close(struct redo *r);

/* Begin a new list. */
void redo_begin(struct redo *r);
/* One more write: where its data go. Within the bounds above, which is the caller's to know. */
uint8_t *redo_add(struct redo *r, uint64_t offset, uint64_t size);
/* What comes after is not written before what comes in front is on stable storage. */
void redo_add_flush(struct redo *r);
/* Carry it out. 0 or -errno of the first write that failed; what follows that is left. */
int redo_carry_out(struct redo *r, struct store *store);

/* What the survivor does: what is left of a published list. 0 or -errno. */
int redo_finish(const struct redo_list *list, struct store *store);

#endif
