/*
 * json.c - texts of any bytes, counters and requests as JSON
 *
 * Parsing is jansson's, with duplicate members refused; what a request may contain is a table.
 * Spec: RFC 8259.
 */
#include "api/json.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"

json_t *json_text(const char *text)
{
    if (text == NULL)
        return json_null();
    json_t *json = json_string(text);
    if (json != NULL)
        return json;
    char *copy = strdup(text);
    for (char *c = copy; copy != NULL && *c != '\0'; c++)
        if ((unsigned char)*c >= 0x80)
            *c = '?';
    json = json_string(copy != NULL ? copy : "");
    free(copy);
    return json;
}

/* ---- requests ---- */

static void list_words(char *buf, size_t size, const char *const *words)
{
    buf[0] = '\0';
    for (unsigned i = 0; words[i] != NULL; i++)
        snprintf(buf + strlen(buf), size - strlen(buf), "%s'%s'", i > 0 ? ", " : "", words[i]);
}

static int take_text(const json_t *json, const struct json_field *field, union json_value *value,
                     struct err *e)
{
    char list[128];
    for (unsigned i = 0; json_is_string(json) && field->words[i] != NULL; i++)
        if (strcmp(json_string_value(json), field->words[i]) == 0) {
            value->text = field->words[i];
            return 0;
        }
    list_words(list, sizeof(list), field->words);
    return err_set(e, 0, "'%s' has to be one of %s", field->name, list);
}

static int take_member(const json_t *json, const struct json_field *field, union json_value *value,
                       struct err *e)
{
    switch (field->kind) {
    case JSON_KIND_TEXT:
        return take_text(json, field, value, e);
    case JSON_KIND_SECONDS:
        value->seconds = json_number_value(json);
        if (!json_is_number(json) || !(value->seconds >= 0 && value->seconds <= JSON_SECONDS_MAX))
            return err_set(e, 0, "'%s' has to be a number of seconds, 0 to %d", field->name,
                           JSON_SECONDS_MAX);
        return 0;
    case JSON_KIND_BOOL:
        if (!json_is_boolean(json))
            return err_set(e, 0, "'%s' has to be true or false", field->name);
        value->is_true = json_is_true(json);
        return 0;
    case JSON_KIND_BYTES:
        if (!json_is_integer(json) || json_integer_value(json) < 0)
            return err_set(e, 0, "'%s' has to be a whole number of bytes", field->name);
        value->bytes = (uint64_t)json_integer_value(json);
        return 0;
    case JSON_KIND_NAME:
        if (!json_is_string(json) || json_string_length(json) == 0 ||
            json_string_length(json) > JSON_NAME_MAX ||
            strlen(json_string_value(json)) != json_string_length(json))
            return err_set(e, 0, "'%s' has to be a text of 1 to %d bytes", field->name,
                           JSON_NAME_MAX);
        memcpy(value->name, json_string_value(json), json_string_length(json) + 1);
        return 0;
    }
    return 0;
}

static const struct json_field *find_field(const struct json_field *fields, unsigned count,
                                           const char *name)
{
    for (unsigned i = 0; i < count; i++)
        if (strcmp(fields[i].name, name) == 0)
            return &fields[i];
    return NULL;
}

static int take_object(json_t *object, const struct json_field *fields, unsigned count,
                       union json_value *values, struct err *e)
{
    const char *name;
    json_t *member;
    json_object_foreach(object, name, member)
    {
        const struct json_field *field = find_field(fields, count, name);
        if (field == NULL && count == 0)
            return err_set(e, 0, "this request takes nothing in its body, but has '%.40s'", name);
        if (field == NULL)
            return err_set(e, 0, "there is no '%.40s' in this request", name);
        int rc = take_member(member, field, &values[field - fields], e);
        if (rc != 0)
            return rc;
    }
    for (unsigned i = 0; i < count; i++)
        if (fields[i].is_required && json_object_get(object, fields[i].name) == NULL)
            return err_set(e, 0, "the body has to be a JSON object with '%s' in it",
                           fields[i].name);
    return 0;
}

int json_take(const char *body, size_t size, const struct json_field *fields, unsigned count,
              union json_value *values, struct err *e)
{
    json_error_t why;
    json_t *object =
        size == 0 ? json_object() : json_loadb(body, size, JSON_REJECT_DUPLICATES, &why);
    if (object == NULL)
        return err_set(e, 0, "the body is not JSON: line %d, column %d: %s", why.line, why.column,
                       why.text);
    int rc = json_is_object(object) ? take_object(object, fields, count, values, e)
                                    : err_set(e, 0, "the body has to be a JSON object");
    json_decref(object);
    return rc;
}

/* ---- counters ---- */

static void json_stats_begin(struct stats_sink *sink, const char *group, int cpu)
{
    struct json_stats *stats = CONTAINER_OF(sink, struct json_stats, sink);
    json_t *json = json_object();
    stats->counters = json_object();
    json_object_set_new(json, "name", json_string(group));
    json_object_set_new(json, "cpu", cpu >= 0 ? json_integer(cpu) : json_null());
    if (sink->engine != NULL)
        json_object_set_new(json, "engine", json_string(sink->engine));
    json_object_set_new(json, "counters", stats->counters);
    json_array_append_new(stats->groups, json);
}

static void json_stats_put(struct stats_sink *sink, const struct stats_item *item)
{
    struct json_stats *stats = CONTAINER_OF(sink, struct json_stats, sink);
    json_object_set_new(stats->counters, item->key,
                        item->is_time ? json_real(item->ms)
                                      : json_integer((json_int_t)item->count));
}

void json_stats_init(struct json_stats *stats)
{
    *stats = (struct json_stats){.sink = {.begin = json_stats_begin, .put = json_stats_put},
                                 .groups = json_array()};
}
