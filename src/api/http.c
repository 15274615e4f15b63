/*
 * http.c - heads of HTTP/1.1 messages
 *
 * Every line is judged as soon as it is complete, so that a stream that is no HTTP at all is
 * refused at once and not when it has ended.
 * Spec: RFC 9110 (semantics), RFC 9112 (HTTP/1.1).
 */
#include "api/http.h"

#include <string.h>
#include <strings.h>

#include "base/bits.h"

#define HTTP_METHOD_MAX 32

struct http_parser {
    struct http_head *head;
    bool is_request;
    unsigned field_count, host_count;
    bool has_transfer_encoding, is_kept, is_closed;
    struct err *e;
};

bool http_span_is(struct http_span span, const char *text)
{
    return span.len == strlen(text) && memcmp(span.at, text, span.len) == 0;
}

static bool span_is_word(struct http_span span, const char *text)
{
    return span.len == strlen(text) && strncasecmp(span.at, text, span.len) == 0;
}

/* RFC 9110, 5.6.2 */
static bool is_token_char(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           (c != '\0' && strchr("!#$%&'*+-.^_`|~", c) != NULL);
}

static bool is_token(struct http_span span)
{
    for (size_t i = 0; i < span.len; i++)
        if (!is_token_char(span.at[i]))
            return false;
    return span.len > 0;
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t';
}

/* Visible, a blank, or of a character set we need not know (RFC 9110, 5.5). */
static bool is_text_char(char c)
{
    return (unsigned char)c >= 0x20 ? c != 0x7f : c == '\t';
}

static int fail(struct http_parser *p, int status, const char *what)
{
    err_set(p->e, 0, "%s", what);
    return -status;
}

/* "HTTP/1.1"; a response's or a request's. */
static int parse_version(struct http_parser *p, struct http_span text)
{
    bool is_http = text.len == 8 && memcmp(text.at, "HTTP/", 5) == 0 && text.at[5] >= '0' &&
                   text.at[5] <= '9' && text.at[6] == '.' && text.at[7] >= '0' && text.at[7] <= '9';
    if (!is_http)
        return fail(p, 400,
                    "the first line has to end in an HTTP version, as in "
                    "'GET /v1/status HTTP/1.1'");
    if (text.at[5] != '1')
        return fail(p, 505, "only HTTP/1.1 and HTTP/1.0 are spoken here");
    p->head->minor = text.at[7] == '0' ? 0 : 1;
    return 0;
}

static int parse_request_line(struct http_parser *p, const char *line, size_t len)
{
    const char *end = line + len;
    const char *first = memchr(line, ' ', len);
    const char *second = first != NULL ? memchr(first + 1, ' ', (size_t)(end - first - 1)) : NULL;
    if (second == NULL)
        return fail(p, 400, "the first line has to be 'METHOD TARGET HTTP/1.1'");
    struct http_head *h = p->head;
    h->method = (struct http_span){line, (size_t)(first - line)};
    h->target = (struct http_span){first + 1, (size_t)(second - first - 1)};
    if (!is_token(h->method) || h->method.len > HTTP_METHOD_MAX)
        return fail(p, 400, "the request's method is not a word");
    if (h->target.len == 0)
        return fail(p, 400, "the request's target is empty");
    for (size_t i = 0; i < h->target.len; i++)
        if ((unsigned char)h->target.at[i] <= 0x20 || (unsigned char)h->target.at[i] >= 0x7f)
            return fail(p, 400, "the request's target has characters that have to be encoded");
    return parse_version(p, (struct http_span){second + 1, (size_t)(end - second - 1)});
}

static int parse_status_line(struct http_parser *p, const char *line, size_t len)
{
    if (len < 12 || line[8] != ' ' || (len > 12 && line[12] != ' '))
        return fail(p, 400, "the answer does not begin with an HTTP status line");
    p->head->status = 0;
    for (unsigned i = 9; i < 12; i++) {
        if (line[i] < '0' || line[i] > '9')
            return fail(p, 400, "the answer's status is not a number");
        p->head->status = p->head->status * 10 + (unsigned)(line[i] - '0');
    }
    return parse_version(p, (struct http_span){line, 8});
}

static int parse_length(struct http_parser *p, struct http_span value)
{
    uint64_t length = 0;
    if (p->head->has_length)
        return fail(p, 400, "there is more than one Content-Length");
    /* No overflow: 18 digits fit. */
    if (value.len == 0 || value.len > 18)
        return fail(p, 400, "Content-Length is not a number of bytes");
    for (size_t i = 0; i < value.len; i++) {
        if (value.at[i] < '0' || value.at[i] > '9')
            return fail(p, 400, "Content-Length is not a number of bytes");
        length = length * 10 + (unsigned)(value.at[i] - '0');
    }
    p->head->has_length = true;
    p->head->length = length;
    return 0;
}

/* A list of words with commas between them. */
static void parse_connection(struct http_parser *p, struct http_span value)
{
    const char *at = value.at, *end = value.at + value.len;
    while (at < end) {
        const char *comma = memchr(at, ',', (size_t)(end - at));
        const char *stop = comma != NULL ? comma : end;
        struct http_span word = {at, (size_t)(stop - at)};
        while (word.len > 0 && is_blank(word.at[0]))
            word = (struct http_span){word.at + 1, word.len - 1};
        while (word.len > 0 && is_blank(word.at[word.len - 1]))
            word.len--;
        p->is_closed |= span_is_word(word, "close");
        p->is_kept |= span_is_word(word, "keep-alive");
        at = comma != NULL ? comma + 1 : end;
    }
}

static int parse_field(struct http_parser *p, const char *line, size_t len)
{
    const char *colon = memchr(line, ':', len);
    if (is_blank(line[0]))
        return fail(p, 400, "header fields may not be folded over lines");
    if (colon == NULL)
        return fail(p, 400, "a header line has no colon");
    struct http_span name = {line, (size_t)(colon - line)};
    struct http_span value = {colon + 1, len - name.len - 1};
    while (value.len > 0 && is_blank(value.at[0]))
        value = (struct http_span){value.at + 1, value.len - 1};
    while (value.len > 0 && is_blank(value.at[value.len - 1]))
        value.len--;
    if (!is_token(name))
        return fail(p, 400, "the name of a header field is not a word");
    if (++p->field_count > HTTP_FIELDS_MAX)
        return fail(p, 431, "there are more than 64 header fields");
    if (span_is_word(name, "host"))
        p->host_count++;
    else if (span_is_word(name, "connection"))
        parse_connection(p, value);
    else if (span_is_word(name, "transfer-encoding"))
        p->has_transfer_encoding = true;
    else if (span_is_word(name, "content-length"))
        return parse_length(p, value);
    else if (span_is_word(name, "expect") && p->is_request) {
        if (!span_is_word(value, "100-continue"))
            return fail(p, 417, "the only expectation that can be met is '100-continue'");
        p->head->expects_continue = true;
    }
    return 0;
}

/* All fields have been seen: what they say together. */
static int parse_finish(struct http_parser *p)
{
    struct http_head *h = p->head;
    h->keeps_alive = !p->is_closed && (h->minor >= 1 || p->is_kept);
    /* Two ways to say where the body ends invite smuggling (RFC 9112, 6.1). */
    if (p->has_transfer_encoding && h->has_length)
        return fail(p, 400, "Transfer-Encoding and Content-Length exclude each other");
    if (p->has_transfer_encoding)
        return fail(p, 411, "bodies in chunks are not taken: send a Content-Length");
    if (p->is_request && h->minor >= 1 && p->host_count != 1)
        return fail(p, 400, "HTTP/1.1 wants one Host field; any name will do");
    if (h->minor == 0)
        h->expects_continue = false;
    return 0;
}

/* The line that is not complete yet. */
static int check_rest(struct http_parser *p, const char *buf, size_t at, size_t len, bool has_line)
{
    size_t end = len > at && buf[len - 1] == '\r' ? len - 1 : len;
    for (size_t i = at; i < end; i++)
        if (!is_text_char(buf[i]))
            return fail(p, 400, "there is a control character in the head");
    if (len >= HTTP_HEAD_MAX)
        return has_line ? fail(p, 431, "the head is longer than 8192 bytes")
                        : fail(p, 414, "the first line is longer than 8192 bytes");
    return 0;
}

static int parse_line(struct http_parser *p, const char *line, size_t len, bool is_first)
{
    for (size_t i = 0; i < len; i++)
        if (!is_text_char(line[i]))
            return fail(p, 400, "there is a control character in the head");
    if (!is_first)
        return parse_field(p, line, len);
    return p->is_request ? parse_request_line(p, line, len) : parse_status_line(p, line, len);
}

static int parse_head(struct http_parser *p, const char *buf, size_t len)
{
    bool has_line = false;
    size_t at = 0;
    if (len > HTTP_HEAD_MAX)
        len = HTTP_HEAD_MAX;
    for (;;) {
        const char *newline = len > at ? memchr(buf + at, '\n', len - at) : NULL;
        if (newline == NULL)
            return check_rest(p, buf, at, len, has_line);
        size_t line_len = (size_t)(newline - (buf + at));
        if (line_len == 0 || buf[at + line_len - 1] != '\r')
            return fail(p, 400, "lines have to end in CR LF");
        line_len--;
        size_t next = at + line_len + 2;
        if (line_len > 0) {
            int rc = parse_line(p, buf + at, line_len, !has_line);
            if (rc != 0)
                return rc;
            has_line = true;
        } else if (has_line) {
            int rc = parse_finish(p);
            return rc != 0 ? rc : (int)next;
        }
        /* else: empty lines before the first are let pass (RFC 9112, 2.2) */
        at = next;
    }
}

int http_parse_request(const char *buf, size_t len, struct http_head *out, struct err *e)
{
    struct http_parser p = {.head = out, .is_request = true, .e = e};
    *out = (struct http_head){0};
    return parse_head(&p, buf, len);
}

int http_parse_response(const char *buf, size_t len, struct http_head *out, struct err *e)
{
    struct http_parser p = {.head = out, .is_request = false, .e = e};
    *out = (struct http_head){0};
    return parse_head(&p, buf, len);
}

const char *http_reason(unsigned status)
{
    static const struct {
        unsigned status;
        const char *reason;
    } reasons[] = {
        {200, "OK"},
        {202, "Accepted"},
        {400, "Bad Request"},
        {403, "Forbidden"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {408, "Request Timeout"},
        {409, "Conflict"},
        {411, "Length Required"},
        {413, "Content Too Large"},
        {414, "URI Too Long"},
        {417, "Expectation Failed"},
        {431, "Request Header Fields Too Large"},
        {500, "Internal Server Error"},
        {501, "Not Implemented"},
        {503, "Service Unavailable"},
        {505, "HTTP Version Not Supported"},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(reasons); i++)
        if (reasons[i].status == status)
            return reasons[i].reason;
    return "Unknown";
}
