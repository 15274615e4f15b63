/*
 * stats_book.h - counters written down, to be added up over several reports
 *
 * A book is a sink: what is reported to it is added to what it holds of the same group, CPU and
 * key. So the totals of something that is made and destroyed several times outlive it.
 *
 * Threads: none; the caller's.
 */
#ifndef DOPPEL_BASE_STATS_BOOK_H
#define DOPPEL_BASE_STATS_BOOK_H

#include <stdbool.h>

#include "base/stats.h"

/* Kinds of counters in a group: keys may be made of what a guest does, so they are bounded. */
#define STATS_BOOK_ITEMS_MAX 256u

struct stats_book_group;

struct stats_book {
    struct stats_sink sink;
    struct stats_book_group *groups; /* in the order in which they were first reported */
    struct stats_book_group *open;   /* where counters go; NULL: they are dropped */
    bool is_incomplete;              /* memory ran out, or a group had too many kinds */
};

/* An empty book. */
void stats_book_init(struct stats_book *book);

/* Empty it, and give its memory back. */
void stats_book_fini(struct stats_book *book);

/*
 * Report what the book holds. With is_each_cpus, only groups of a CPU. `sink` may be another
 * book's, not its own.
 */
void stats_book_report(const struct stats_book *book, bool is_each_cpus, struct stats_sink *sink);

#endif
