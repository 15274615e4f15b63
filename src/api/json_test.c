/*
 * json_test.c - texts, requests and counters as JSON
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/json.h"
#include "base/bits.h"

static void test_text(void **state)
{
    json_t *json = json_text("caf\xc3\xa9");
    assert_string_equal(json_string_value(json), "caf\xc3\xa9");
    json_decref(json);
    json = json_text("caf\xe9!");
    assert_string_equal(json_string_value(json), "caf?!");
    json_decref(json);
    json = json_text(NULL);
    assert_true(json_is_null(json));
    json_decref(json);
}

static const char *const words[] = {"a", "bb", NULL};
static const struct json_field fields[] = {
    {"word", JSON_KIND_TEXT, words, true},
    {"seconds", JSON_KIND_SECONDS, NULL, false},
    {"flag", JSON_KIND_BOOL, NULL, false},
};

static void test_take(void **state)
{
    union json_value values[JSON_FIELDS_MAX] = {{.text = NULL}, {.seconds = 7}, {.is_true = true}};
    static const char body[] = "{\"word\": \"bb\", \"flag\": false}";
    struct err e;
    assert_int_equal(json_take(body, strlen(body), fields, 3, values, &e), 0);
    assert_ptr_equal(values[0].text, words[1]);
    assert_true(values[1].seconds == 7);
    assert_false(values[2].is_true);
    assert_int_equal(json_take("", 0, NULL, 0, values, &e), 0);
}

static void test_bytes_and_names(void **state)
{
    static const struct json_field more[] = {{"size", JSON_KIND_BYTES, NULL, true},
                                             {"disk", JSON_KIND_NAME, NULL, false}};
    static const char *const bad[] = {
        "{\"size\": -1}",
        "{\"size\": 1.5}",
        "{\"size\": \"1\"}",
        "{\"size\": 99999999999999999999}",
        "{\"size\": 1, \"disk\": \"\"}",
        "{\"size\": 1, \"disk\": 7}",
        "{\"size\": 1, \"disk\": \"a\\u0000b\"}",
    };
    union json_value values[JSON_FIELDS_MAX] = {{.bytes = 0}};
    static const char body[] = "{\"size\": 9223372036854775807, \"disk\": \"/a/b\"}";
    char longest[JSON_NAME_MAX + 64];
    struct err e;
    assert_int_equal(json_take(body, strlen(body), more, 2, values, &e), 0);
    assert_true(values[0].bytes == INT64_MAX);
    assert_string_equal(values[1].name, "/a/b");
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(json_take(bad[i], strlen(bad[i]), more, 2, values, &e), -EINVAL);
    for (int extra = 0; extra < 2; extra++) {
        int n = sprintf(longest, "{\"size\":1,\"disk\":\"");
        memset(longest + n, 'x', (size_t)(JSON_NAME_MAX + extra));
        strcpy(longest + n + JSON_NAME_MAX + extra, "\"}");
        assert_int_equal(json_take(longest, strlen(longest), more, 2, values, &e),
                         extra ? -EINVAL : 0);
    }
}

static void test_refuse(void **state)
{
    static const struct {
        const char *body, *message;
    } cases[] = {
        {"", "'word'"},
        {"{", "line 1"},
        {"[]", "object"},
        {"null", "JSON"},
        {"{}", "'word'"},
        {"{\"word\": \"c\"}", "'a', 'bb'"},
        {"{\"word\": 1}", "'a', 'bb'"},
        {"{\"word\": \"a\", \"seconds\": \"1\"}", "'seconds'"},
        {"{\"word\": \"a\", \"seconds\": -0.5}", "'seconds'"},
        {"{\"word\": \"a\", \"seconds\": 86401}", "'seconds'"},
        {"{\"word\": \"a\", \"flag\": 1}", "'flag'"},
        {"{\"word\": \"a\", \"x\": 1}", "'x'"},
        {"{\"word\": \"a\", \"word\": \"a\"}", "duplicate"},
        {"{\"word\": \"a\"} {}", "end of file"},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        union json_value values[JSON_FIELDS_MAX];
        struct err e = {0};
        size_t len = strlen(cases[i].body);
        assert_int_not_equal(json_take(cases[i].body, len, fields, 3, values, &e), 0);
        if (strstr(e.msg, cases[i].message) == NULL)
            fail_msg("case %u: '%s' does not contain '%s'", i, e.msg, cases[i].message);
    }
}

static void test_stats(void **state)
{
    struct json_stats stats;
    json_stats_init(&stats);
    stats_begin(&stats.sink, "cache", -1);
    stats_put_count(&stats.sink, "blocks", "Blocks", 0);
    stats.sink.engine = "bt";
    stats_begin(&stats.sink, "time", 2);
    stats_put_ms(&stats.sink, "running_ms", "ms running", 1.5);
    stats_put_share(&stats.sink, "hits", "hits", 3, 4);
    char *text = json_dumps(stats.groups, JSON_COMPACT);
    assert_string_equal(text, "[{\"name\":\"cache\",\"cpu\":null,\"counters\":{\"blocks\":0}},"
                              "{\"name\":\"time\",\"cpu\":2,\"engine\":\"bt\",\"counters\":{"
                              "\"running_ms\":1.5,\"hits\":3}}]");
    free(text);
    json_decref(stats.groups);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_take),
        cmocka_unit_test(test_bytes_and_names),
        cmocka_unit_test(test_refuse),
        cmocka_unit_test(test_stats),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
