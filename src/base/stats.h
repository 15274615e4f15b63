/*
 * stats.h - named counters, said once for every form in which they are shown
 *
 * Whoever counts reports to a sink: it opens a group, then puts counters into it. The sink of
 * this file makes text of them (`--stats`); the control socket's makes JSON.
 */
#ifndef DOPPEL_BASE_STATS_H
#define DOPPEL_BASE_STATS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* Strings are valid during the call only. */
struct stats_item {
    const char *key;   /* for programs: lower case, words joined by "_", kinds behind a "." */
    const char *title; /* for people; leading spaces show that it is a part of the one above */
    bool is_time;      /* `ms` counts, else `count` */
    uint64_t count;
    double ms;
    uint64_t whole; /* `count` is a part of so many; 0: of nothing in particular */
};

struct stats_sink {
    /* What follows belongs to `group`, of that CPU, or of the whole machine when cpu is -1. */
    void (*begin)(struct stats_sink *sink, const char *group, int cpu);
    void (*put)(struct stats_sink *sink, const struct stats_item *item);
    const char *engine; /* whose groups begin; NULL: the machine's own */
};

void stats_begin(struct stats_sink *sink, const char *group, int cpu);
void stats_put_count(struct stats_sink *sink, const char *key, const char *title, uint64_t count);
void stats_put_share(struct stats_sink *sink, const char *key, const char *title, uint64_t part,
                     uint64_t whole);
void stats_put_ms(struct stats_sink *sink, const char *key, const char *title, double ms);

/* Tables for people. Counters of zero are left out. */
struct stats_text {
    struct stats_sink sink;
    FILE *out;
};
void stats_text_init(struct stats_text *text, FILE *out);

#endif
