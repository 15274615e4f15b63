/*
 * nbd_journal.h - what a server has acknowledged, and not yet flushed
 *
 * A server that is started again may have lost it. Written once more in this order, it is there
 * again. For one thread at a time.
 */
#ifndef DOPPEL_BACKEND_BLOCK_NBD_JOURNAL_H
#define DOPPEL_BACKEND_BLOCK_NBD_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>

struct nbd_entry {
    struct nbd_entry *next;
    uint64_t number; /* rising */
    uint64_t offset, size;
    bool is_zeroes, may_unmap; /* zeroes, which have no data */
    uint8_t data[];
};

struct nbd_journal {
    struct nbd_entry *first, **end;
    uint64_t bytes;  /* of memory */
    uint64_t number; /* of the latest */
    uint64_t gap;    /* number of the latest that is missing, for want of memory; 0: none */
};

void nbd_journal_init(struct nbd_journal *j);
/* A copy; `data`: NULL for zeroes. NULL: there is no memory. */
struct nbd_entry *nbd_journal_entry(uint64_t offset, uint64_t size, const uint8_t *data,
                                    bool may_unmap);
/* Takes it over; NULL leaves a gap. */
void nbd_journal_add(struct nbd_journal *j, struct nbd_entry *entry);
/* All up to this number is on stable storage. */
void nbd_journal_drop(struct nbd_journal *j, uint64_t number);
void nbd_journal_free(struct nbd_journal *j);

#endif
