/*
 * http_test.c - heads of requests and answers, whole, in pieces and malformed
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "api/http.h"
#include "base/bits.h"

static int parse(const char *text, struct http_head *head)
{
    struct err e = {0};
    int rc = http_parse_request(text, strlen(text), head, &e);
    if (rc < 0)
        assert_true(e.msg[0] != '\0');
    return rc;
}

static void test_request(void **state)
{
    static const char text[] = "\r\nPOST http://x/v1/stop HTTP/1.1\r\nHost: x\r\n"
                               "content-LENGTH: \t12 \r\nConnection: foo , Close\r\n"
                               "Expect: 100-continue\r\n\r\n{";
    struct http_head head;
    assert_int_equal(parse(text, &head), sizeof(text) - 2);
    assert_true(http_span_is(head.method, "POST"));
    assert_true(http_span_is(head.target, "http://x/v1/stop"));
    assert_int_equal(head.minor, 1);
    assert_int_equal(head.length, 12);
    assert_true(head.has_length && head.expects_continue);
    assert_false(head.keeps_alive);
    assert_true(parse("GET / HTTP/1.1\r\nHost: x\r\n\r\n", &head) > 0);
    assert_true(head.keeps_alive);
    assert_false(head.has_length);
    assert_true(parse("GET / HTTP/1.0\r\n\r\n", &head) > 0);
    assert_false(head.keeps_alive);
    assert_true(parse("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", &head) > 0);
    assert_true(head.keeps_alive);
}

static void test_pieces(void **state)
{
    static const char text[] = "GET /v1/status HTTP/1.1\r\nHost: x\r\nX: \x80y\r\n\r\n";
    struct http_head head;
    struct err e;
    for (size_t len = 0; len < sizeof(text) - 1; len++)
        assert_int_equal(http_parse_request(text, len, &head, &e), 0);
    assert_int_equal(parse(text, &head), sizeof(text) - 1);
}

static void test_malformed(void **state)
{
    static const struct {
        const char *text;
        int status;
    } cases[] = {
        {"GET", 0},
        {"G\tET", 0}, /* the line is not complete: a method comes to an end at a blank */
        {"G\tET / HTTP/1.1\r\n", 400},
        {"\x01", 400},
        {"GET / HTTP/1.1\n", 400},
        {"GET / HTTP/1.1\rx", 400},
        {"GET  / HTTP/1.1\r\n", 400},
        {"GET / HTTP/1.1 \r\n", 400},
        {" GET / HTTP/1.1\r\n", 400},
        {"GET /\x80 HTTP/1.1\r\n", 400},
        {"GET / http/1.1\r\n", 400},
        {"GET / HTTP/0.9\r\n", 505},
        {"GET / HTTP/1.9\r\nHost: x\r\n\r\n", 1},
        {"GET / HTTP/1.1\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost : x\r\n", 400},
        {"GET / HTTP/1.1\r\n: x\r\n", 400},
        {"GET / HTTP/1.1\r\nHost\r\n", 400},
        {"GET / HTTP/1.1\r\nContent-Length: 1, 1\r\n", 400},
        {"GET / HTTP/1.1\r\nContent-Length: +1\r\n", 400},
        {"GET / HTTP/1.1\r\nContent-Length:\r\n", 400},
        {"GET / HTTP/1.1\r\nContent-Length: 1000000000000000000\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 411},
        {"GET / HTTP/1.1\r\nHost: x\r\nExpect: 200\r\n", 417},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct http_head head;
        int rc = parse(cases[i].text, &head);
        int want = cases[i].status >= 400 ? -cases[i].status
                   : cases[i].status > 0  ? (int)strlen(cases[i].text)
                                          : 0;
        if (rc != want)
            fail_msg("case %u: %d instead of %d", i, rc, want);
    }
}

static void test_limits(void **state)
{
    char text[HTTP_HEAD_MAX + 10] = "GET / HTTP/1.1\r\nHost: x\r\nX: ";
    struct http_head head;
    struct err e;
    size_t used = strlen(text);
    memset(text + used, 'x', sizeof(text) - used);
    assert_int_equal(http_parse_request(text, HTTP_HEAD_MAX - 1, &head, &e), 0);
    assert_int_equal(http_parse_request(text, HTTP_HEAD_MAX, &head, &e), -431);
    memcpy(text + HTTP_HEAD_MAX - 4, "\r\n\r\n", 4);
    assert_int_equal(http_parse_request(text, sizeof(text), &head, &e), HTTP_HEAD_MAX);
    memset(text, 'x', sizeof(text));
    assert_int_equal(http_parse_request(text, sizeof(text), &head, &e), -414);
}

static void test_response(void **state)
{
    static const char text[] = "HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\n{}\n";
    struct http_head head;
    struct err e;
    assert_int_equal(http_parse_response(text, sizeof(text) - 1, &head, &e), sizeof(text) - 4);
    assert_int_equal(head.status, 404);
    assert_int_equal(head.length, 3);
    assert_string_equal(http_reason(404), "Not Found");
    assert_true(http_parse_response("HTTP/1.1 200\r\n\r\n", 16, &head, &e) > 0);
    assert_true(http_parse_response("HTTP/1.1 2000\r\n\r\n", 17, &head, &e) < 0);
    assert_true(http_parse_response("SSH-2.0-x\r\n", 11, &head, &e) < 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_request),   cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_malformed), cmocka_unit_test(test_limits),
        cmocka_unit_test(test_response),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
