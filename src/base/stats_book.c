/*
 * stats_book.c - counters written down, to be added up over several reports
 *
 * Reports of one kind name their counters in the same order each time, so a look-up begins behind
 * the last hit and ends there as a rule.
 */
#include "base/stats_book.h"

#include <stdlib.h>
#include <string.h>

#include "base/bits.h"

struct stats_book_item {
    char *key, *title;
    bool is_time;
    uint64_t count, whole;
    double ms;
};

struct stats_book_group {
    struct stats_book_group *next;
    char *name;
    int cpu;
    struct stats_book_item *items;
    unsigned count, room;
    unsigned after; /* behind the last hit */
};

/* ---- finding ---- */

static struct stats_book_group *group_add(struct stats_book *book, const char *name, int cpu)
{
    struct stats_book_group **end = &book->groups, *group = calloc(1, sizeof(*group));

    if (group != NULL)
        group->name = strdup(name);
    if (group == NULL || group->name == NULL) {
        free(group);
        return NULL;
    }
    group->cpu = cpu;
    while (*end != NULL)
        end = &(*end)->next;
    *end = group;
    return group;
}

static struct stats_book_group *group_find(const struct stats_book *book, const char *name, int cpu)
{
    struct stats_book_group *group = book->groups;

    while (group != NULL && (group->cpu != cpu || strcmp(group->name, name) != 0))
        group = group->next;
    return group;
}

static struct stats_book_item *item_find(struct stats_book_group *group, const char *key)
{
    for (unsigned i = 0; i < group->count; i++) {
        unsigned at = (group->after + i) % group->count;
        if (strcmp(group->items[at].key, key) == 0) {
            group->after = at + 1;
            return &group->items[at];
        }
    }
    return NULL;
}

static struct stats_book_item *item_add(struct stats_book_group *group,
                                        const struct stats_item *item)
{
    struct stats_book_item new = {.is_time = item->is_time}, *items = group->items;

    if (group->count == STATS_BOOK_ITEMS_MAX)
        return NULL;
    if (group->count == group->room) {
        unsigned room = MAX(2 * group->room, 16u);
        items = realloc(items, room * sizeof(*items));
        if (items == NULL)
            return NULL;
        group->items = items;
        group->room = room;
    }
    new.key = strdup(item->key);
    new.title = strdup(item->title);
    if (new.key == NULL || new.title == NULL) {
        free(new.key);
        free(new.title);
        return NULL;
    }
    items[group->count++] = new;
    group->after = group->count;
    return &items[group->count - 1];
}

/* ---- the sink ---- */

static void book_begin(struct stats_sink *sink, const char *name, int cpu)
{
    struct stats_book *book = CONTAINER_OF(sink, struct stats_book, sink);

    book->open = group_find(book, name, cpu);
    if (book->open == NULL)
        book->open = group_add(book, name, cpu);
    if (book->open == NULL)
        book->is_incomplete = true;
}

static void book_put(struct stats_sink *sink, const struct stats_item *item)
{
    struct stats_book *book = CONTAINER_OF(sink, struct stats_book, sink);
    struct stats_book_item *total;

    if (book->open == NULL)
        return;
    total = item_find(book->open, item->key);
    if (total == NULL)
        total = item_add(book->open, item);
    if (total == NULL) {
        book->is_incomplete = true;
        return;
    }
    total->count += item->count;
    total->whole += item->whole;
    total->ms += item->ms;
}

void stats_book_init(struct stats_book *book)
{
    *book = (struct stats_book){.sink = {.begin = book_begin, .put = book_put}};
}

static void group_free(struct stats_book_group *group)
{
    for (unsigned i = 0; i < group->count; i++) {
        free(group->items[i].key);
        free(group->items[i].title);
    }
    free(group->items);
    free(group->name);
    free(group);
}

void stats_book_fini(struct stats_book *book)
{
    for (struct stats_book_group *group = book->groups; group != NULL;) {
        struct stats_book_group *next = group->next;
        group_free(group);
        group = next;
    }
    stats_book_init(book);
}

void stats_book_report(const struct stats_book *book, bool is_each_cpus, struct stats_sink *sink)
{
    for (const struct stats_book_group *group = book->groups; group != NULL; group = group->next) {
        if (is_each_cpus && group->cpu < 0)
            continue;
        stats_begin(sink, group->name, group->cpu);
        for (unsigned i = 0; i < group->count; i++) {
            const struct stats_book_item *total = &group->items[i];
            struct stats_item item = {.key = total->key,
                                      .title = total->title,
                                      .is_time = total->is_time,
                                      .count = total->count,
                                      .ms = total->ms,
                                      .whole = total->whole};
            sink->put(sink, &item);
        }
    }
}
