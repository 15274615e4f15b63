/*
 * qcow2_set.c - a set of clusters: those that hold tables, so that nothing else is written there
 *
 * Open addressing with linear probing, at most half full.
 */
#include <errno.h>
#include <stdlib.h>

#include "backend/block/qcow2_impl.h"

#define SIZE_MIN 64u

static uint64_t home(const struct qcow2_set *set, uint64_t cluster)
{
    return (cluster * UINT64_C(0x9e3779b97f4a7c15) >> 20) & (set->size - 1);
}

static void put(struct qcow2_set *set, uint64_t slot)
{
    uint64_t i = home(set, slot - 1);

    while (set->slots[i] != 0)
        i = (i + 1) & (set->size - 1);
    set->slots[i] = slot;
}

static int grow(struct qcow2_set *set)
{
    struct qcow2_set larger = {.size = MAX(set->size * 2, SIZE_MIN), .used = set->used};

    larger.slots = calloc(larger.size, sizeof(*larger.slots));
    if (larger.slots == NULL)
        return -ENOMEM;
    for (uint64_t i = 0; i < set->size; i++)
        if (set->slots[i] != 0)
            put(&larger, set->slots[i]);
    free(set->slots);
    *set = larger;
    return 0;
}

int qcow2_set_add(struct qcow2_set *set, uint64_t cluster)
{
    if (qcow2_set_has(set, cluster, 1))
        return -EEXIST;
    if (set->used * 2 >= set->size && grow(set) != 0)
        return -ENOMEM;
    put(set, cluster + 1);
    set->used++;
    return 0;
}

bool qcow2_set_has(const struct qcow2_set *set, uint64_t first, uint64_t count)
{
    if (set->size == 0)
        return false;
    for (uint64_t c = first; c < first + count; c++)
        for (uint64_t i = home(set, c); set->slots[i] != 0; i = (i + 1) & (set->size - 1))
            if (set->slots[i] == c + 1)
                return true;
    return false;
}

void qcow2_set_remove(struct qcow2_set *set, uint64_t cluster)
{
    if (set->size == 0)
        return;
    uint64_t i = home(set, cluster);
    while (set->slots[i] != 0 && set->slots[i] != cluster + 1)
        i = (i + 1) & (set->size - 1);
    if (set->slots[i] == 0)
        return;
    set->slots[i] = 0;
    set->used--;
    /* what was pushed past the gap moves to where it is found again */
    for (i = (i + 1) & (set->size - 1); set->slots[i] != 0; i = (i + 1) & (set->size - 1)) {
        uint64_t slot = set->slots[i];
        set->slots[i] = 0;
        put(set, slot);
    }
}

void qcow2_set_free(struct qcow2_set *set)
{
    free(set->slots);
    *set = (struct qcow2_set){0};
}
