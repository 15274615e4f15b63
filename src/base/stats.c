/*
 * stats.c - named counters, said once for every form in which they are shown
 */
#include "base/stats.h"

#include <inttypes.h>

#include "base/bits.h"

void stats_begin(struct stats_sink *sink, const char *group, int cpu)
{
    sink->begin(sink, group, cpu);
}

void stats_put_count(struct stats_sink *sink, const char *key, const char *title, uint64_t count)
{
    stats_put_share(sink, key, title, count, 0);
}

void stats_put_share(struct stats_sink *sink, const char *key, const char *title, uint64_t part,
                     uint64_t whole)
{
    struct stats_item item = {.key = key, .title = title, .count = part, .whole = whole};
    sink->put(sink, &item);
}

void stats_put_ms(struct stats_sink *sink, const char *key, const char *title, double ms)
{
    struct stats_item item = {.key = key, .title = title, .is_time = true, .ms = ms};
    sink->put(sink, &item);
}

/* ---- text ---- */

static void stats_text_begin(struct stats_sink *sink, const char *group, int cpu)
{
    struct stats_text *text = CONTAINER_OF(sink, struct stats_text, sink);
    if (cpu >= 0)
        fprintf(text->out, "CPU %d, ", cpu);
    fputs(group, text->out);
    if (sink->engine != NULL)
        fprintf(text->out, " (%s)", sink->engine);
    fputc('\n', text->out);
}

static void stats_text_put(struct stats_sink *sink, const struct stats_item *item)
{
    struct stats_text *text = CONTAINER_OF(sink, struct stats_text, sink);
    if (item->is_time) {
        fprintf(text->out, "  %-46s %14.3f\n", item->title, item->ms);
        return;
    }
    if (item->count == 0 && item->whole == 0)
        return;
    fprintf(text->out, "  %-46s %14" PRIu64, item->title, item->count);
    if (item->whole != 0)
        fprintf(text->out, "  %.3f%%", 100.0 * (double)item->count / (double)item->whole);
    fputc('\n', text->out);
}

void stats_text_init(struct stats_text *text, FILE *out)
{
    *text =
        (struct stats_text){.sink = {.begin = stats_text_begin, .put = stats_text_put}, .out = out};
}
