/*
 * fuzz_http.c - arbitrary bytes through the control socket's parsers
 *
 * What must hold whatever the bytes are: a head lies within the buffer, its parts within the
 * head; a head that is complete, or refused, stays so when more bytes come; bodies are taken
 * apart without a fault, and give only values that their table allows.
 */
#include <stdlib.h>
#include <string.h>

#include "api/http.h"
#include "api/json.h"
#include "base/bits.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int claim)
{
    if (!claim)
        abort();
}

static void check_span(struct http_span span, const char *buf, size_t size)
{
    require(span.len > 0 && span.at >= buf && span.at + span.len <= buf + size);
}

static void check_head(const char *buf, size_t size)
{
    struct http_head head, again;
    struct err e = {0};
    int rc = http_parse_request(buf, size, &head, &e);

    require(rc <= (int)MIN(size, HTTP_HEAD_MAX));
    if (rc > 0) {
        check_span(head.method, buf, (size_t)rc);
        check_span(head.target, buf, (size_t)rc);
        require(head.has_length || head.length == 0);
        require(memcmp(buf + rc - 2, "\r\n", 2) == 0);
    }
    if (rc < 0)
        require(-rc >= 400 && -rc < 600 && e.msg[0] != '\0' &&
                strcmp(http_reason((unsigned)-rc), "Unknown") != 0);
    /* What a prefix says is final, unless it says that more is needed. */
    for (size_t part = 0; part < size; part += 1 + size / 16) {
        int early = http_parse_request(buf, part, &again, &e);
        require(early == 0 || early == rc);
    }
    rc = http_parse_response(buf, size, &head, &e);
    require(rc <= (int)size && (rc <= 0 || head.status <= 999));
}

static void check_body(const char *body, size_t size)
{
    static const char *const words[] = {"auto", "button", "hard", NULL};
    static const struct json_field fields[] = {
        {"mode", JSON_KIND_TEXT, words, false},
        {"timeout_s", JSON_KIND_SECONDS, NULL, false},
        {"wait", JSON_KIND_BOOL, NULL, true},
    };
    union json_value values[JSON_FIELDS_MAX] = {{.text = words[0]}, {.seconds = 1}};
    struct err e = {0};

    if (json_take(body, size, fields, ARRAY_SIZE(fields), values, &e) != 0) {
        require(e.msg[0] != '\0');
        return;
    }
    require(values[0].text == words[0] || values[0].text == words[1] || values[0].text == words[2]);
    require(values[1].seconds >= 0 && values[1].seconds <= JSON_SECONDS_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct http_head head;
    struct err e;

    check_head((const char *)data, size);
    int rc = http_parse_request((const char *)data, size, &head, &e);
    if (rc > 0)
        check_body((const char *)data + rc, size - (size_t)rc);
    check_body((const char *)data, size);
    return 0;
}
