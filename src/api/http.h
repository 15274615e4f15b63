/*
 * http.h - heads of HTTP/1.1 messages
 *
 * A pure function of the bytes so far, so that server, client and fuzzer use it alike. It is
 * strict: what RFC 9112 lets a recipient forgive (bare LF, folded fields, white space before a
 * colon) is refused, because a client of ours has no reason to send it. Bodies have a
 * Content-Length or are not there; chunked ones are refused with 411 (RFC 9112, 6.3).
 */
#ifndef DOPPEL_API_HTTP_H
#define DOPPEL_API_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define HTTP_HEAD_MAX 8192
#define HTTP_FIELDS_MAX 64

/* Part of the buffer that was parsed. */
struct http_span {
    const char *at;
    size_t len;
};

struct http_head {
    struct http_span method, target; /* of a request */
    unsigned status;                 /* of a response */
    unsigned minor;                  /* HTTP/1.minor: 0 or 1 */
    bool keeps_alive;
    bool expects_continue;
    bool has_length;
    uint64_t length; /* of the body; 0 without a Content-Length */
};

/*
 * Parse the head at the beginning of buf. Returns its size in bytes, 0 when it is not complete
 * yet, or, negated, the status code to answer a request with; *e says what is wrong.
 */
int http_parse_request(const char *buf, size_t len, struct http_head *out, struct err *e);
int http_parse_response(const char *buf, size_t len, struct http_head *out, struct err *e);

bool http_span_is(struct http_span span, const char *text);

/* "Not Found" for 404. */
const char *http_reason(unsigned status);

#endif
