/*
 * json.h - texts of any bytes, counters and requests as JSON
 */
#ifndef DOPPEL_API_JSON_H
#define DOPPEL_API_JSON_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/stats.h"

/* A string; what is not UTF-8 in it becomes "?". NULL gives null. */
json_t *json_text(const char *text);

/* A member of a request's object. */
enum json_kind {
    JSON_KIND_TEXT,
    JSON_KIND_SECONDS,
    JSON_KIND_BOOL,
    JSON_KIND_BYTES, /* 0 to JSON_BYTES_MAX */
    JSON_KIND_NAME,  /* any text of 1 to JSON_NAME_MAX bytes */
};
#define JSON_BYTES_MAX INT64_MAX
#define JSON_NAME_MAX 1023
struct json_field {
    const char *name;
    enum json_kind kind;
    const char *const *words; /* JSON_KIND_TEXT: ends with NULL; the first is the default */
    bool is_required;
};
union json_value {
    const char *text; /* one of `words` */
    double seconds;
    bool is_true;
    uint64_t bytes;
    char name[JSON_NAME_MAX + 1];
};
#define JSON_FIELDS_MAX 4
#define JSON_SECONDS_MAX 86400

/*
 * Take an object apart: values[i] is that of fields[i], left as it was if the member is not
 * there. `size` 0 is an object with nothing in it. Members that no field describes are errors.
 * Returns 0 or -EINVAL.
 */
int json_take(const char *body, size_t size, const struct json_field *fields, unsigned count,
              union json_value *values, struct err *e);

/* Counters become {"groups": [{"name", "cpu", "engine", "counters": {key: number}}]}. */
struct json_stats {
    struct stats_sink sink;
    json_t *groups;   /* an array, the caller's */
    json_t *counters; /* borrowed: of the group that is open */
};
void json_stats_init(struct json_stats *stats);

#endif
