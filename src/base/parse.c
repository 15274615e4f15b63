/*
 * parse.c - numbers and sizes as people type them
 */
#include "base/parse.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

static int parse_digit(char c, unsigned base)
{
    unsigned d;
    if (c >= '0' && c <= '9')
        d = (unsigned)(c - '0');
    else if (c >= 'a' && c <= 'f')
        d = (unsigned)(c - 'a') + 10;
    else if (c >= 'A' && c <= 'F')
        d = (unsigned)(c - 'A') + 10;
    else
        return -1;
    return d < base ? (int)d : -1;
}

/* Digits at *text, which then points behind them. False: none, or too many to fit. */
static bool parse_digits(const char **text, uint64_t *out)
{
    const char *p = *text;
    unsigned base = 10;
    if (p[0] == '0' && (p[1] == 'x' || p[1] == 'X') && parse_digit(p[2], 16) >= 0) {
        base = 16;
        p += 2;
    }
    if (parse_digit(*p, base) < 0)
        return false;
    uint64_t v = 0;
    for (int d; (d = parse_digit(*p, base)) >= 0; p++)
        if (__builtin_mul_overflow(v, base, &v) || __builtin_add_overflow(v, (unsigned)d, &v))
            return false;
    *text = p;
    *out = v;
    return true;
}

int parse_u64(const char *text, const char *what, uint64_t min, uint64_t max, uint64_t *out,
              struct err *e)
{
    const char *p = text;
    uint64_t v;
    if (!parse_digits(&p, &v) || *p != '\0')
        return err_set(e, 0, "%s: '%s' is not a number", what, text);
    if (v < min || v > max)
        return err_set(e, 0, "%s: %s is out of range (%" PRIu64 " to %" PRIu64 ")", what, text, min,
                       max);
    *out = v;
    return 0;
}

int parse_size(const char *text, const char *what, uint64_t *out, struct err *e)
{
    const char *p = text;
    uint64_t v;
    if (!parse_digits(&p, &v))
        return err_set(e, 0, "%s: '%s' is not a size (write it as in 512M or 4G)", what, text);

    static const char suffixes[] = "KMGT";
    unsigned shift = 0;
    if (*p != '\0') {
        char upper = (char)(*p >= 'a' && *p <= 'z' ? *p - 'a' + 'A' : *p);
        const char *s = strchr(suffixes, upper);
        if (s != NULL) {
            shift = 10 * (unsigned)(s - suffixes + 1);
            p++;
            if (strcasecmp(p, "iB") == 0 || strcasecmp(p, "B") == 0)
                p += strlen(p);
        }
    }
    if (*p != '\0')
        return err_set(e, 0, "%s: '%s' is not a size (write it as in 512M or 4G)", what, text);
    if (shift != 0 && v > UINT64_MAX >> shift)
        return err_set(e, 0, "%s: %s does not fit into 64 bits", what, text);
    *out = v << shift;
    return 0;
}

const char *parse_format_size(uint64_t bytes, char buf[PARSE_SIZE_TEXT])
{
    static const char suffixes[] = "\0KMGT";
    unsigned i = 0;
    while (i < 4 && bytes != 0 && (bytes & 1023) == 0) {
        bytes >>= 10;
        i++;
    }
    snprintf(buf, PARSE_SIZE_TEXT, "%" PRIu64 "%.1s", bytes, &suffixes[i]);
    return buf;
}
