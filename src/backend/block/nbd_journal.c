/*
 * nbd_journal.c - what a server has acknowledged, and not yet flushed
 */
#include "backend/block/nbd_journal.h"

#include <stdlib.h>
#include <string.h>

void nbd_journal_init(struct nbd_journal *j)
{
    *j = (struct nbd_journal){0};
    j->end = &j->first;
}

struct nbd_entry *nbd_journal_entry(uint64_t offset, uint64_t size, const uint8_t *data,
                                    bool may_unmap)
{
    uint64_t bytes = data != NULL ? size : 0;
    struct nbd_entry *entry = malloc(sizeof(*entry) + bytes);

    if (entry == NULL)
        return NULL;
    *entry = (struct nbd_entry){
        .offset = offset, .size = size, .is_zeroes = data == NULL, .may_unmap = may_unmap};
    if (bytes != 0)
        memcpy(entry->data, data, bytes);
    return entry;
}

static uint64_t memory_of(const struct nbd_entry *entry)
{
    return sizeof(*entry) + (entry->is_zeroes ? 0 : entry->size);
}

void nbd_journal_add(struct nbd_journal *j, struct nbd_entry *entry)
{
    j->number++;
    if (entry == NULL) {
        j->gap = j->number;
        return;
    }
    entry->number = j->number;
    j->bytes += memory_of(entry);
    *j->end = entry;
    j->end = &entry->next;
}

void nbd_journal_drop(struct nbd_journal *j, uint64_t number)
{
    if (number >= j->gap)
        j->gap = 0;
    while (j->first != NULL && j->first->number <= number) {
        struct nbd_entry *entry = j->first;
        j->first = entry->next;
        j->bytes -= memory_of(entry);
        free(entry);
    }
    if (j->first == NULL)
        j->end = &j->first;
}

void nbd_journal_free(struct nbd_journal *j)
{
    nbd_journal_drop(j, UINT64_MAX);
}
