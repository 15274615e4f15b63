/*
 * share_ranges.c - which pieces of a file an owner has locked
 *
 * Spec: fcntl in POSIX.1-2017: a piece has one type of lock, and setting another replaces it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>

#include "backend/share/share_impl.h"

/* Behind those that are there. `end` is at most INT64_MAX. */
static void append(struct share_ranges *r, struct share_range range)
{
    struct share_range *last = r->count != 0 ? &r->list[r->count - 1] : NULL;

    if (last != NULL && last->type == range.type && last->end + 1 == range.start) {
        last->end = range.end;
        last->pid = range.pid;
        return;
    }
    r->list[r->count++] = range;
}

int share_ranges_plan(const struct share_ranges *old, const struct share_range *change,
                      struct share_ranges *out)
{
    bool is_placed = change->type == F_UNLCK;

    /* one may be cut in two, and the change is one more */
    *out = (struct share_ranges){.list = malloc((old->count + 2) * sizeof(*out->list))};
    if (out->list == NULL)
        return -ENOMEM;
    for (unsigned i = 0; i < old->count; i++) {
        struct share_range left = old->list[i], right = left;
        if (left.start < change->start) {
            if (left.end >= change->start)
                left.end = change->start - 1;
            append(out, left);
        }
        if (right.end <= change->end)
            continue;
        if (!is_placed) {
            append(out, *change);
            is_placed = true;
        }
        if (right.start <= change->end)
            right.start = change->end + 1;
        append(out, right);
    }
    if (!is_placed)
        append(out, *change);
    return 0;
}
