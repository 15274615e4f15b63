/*
 * err.c - the error record that every fallible function fills
 *
 * Invariant: msg is always terminated; a message too long for it is cut, never dropped.
 */
#include "base/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int err_set(struct err *e, int code, const char *fmt, ...)
{
    int stored = code != 0 ? code : EINVAL;
    if (e == NULL)
        return -stored;

    /* A caller may pass its own old message as an argument, so format beside it. */
    char text[ERR_MSG_SIZE];
    va_list ap;
    va_start(ap, fmt);
    int len = vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (len < 0)
        text[0] = '\0';

    if (code != 0) {
        char reason[128];
        const char *why = strerror_r(code, reason, sizeof(reason));
        /* The reason matters most: where both do not fit, what was tried is cut. */
        size_t room = sizeof(e->msg) - 3;
        size_t why_len = strnlen(why, room / 2);
        snprintf(e->msg, sizeof(e->msg), "%.*s: %.*s", (int)(room - why_len), text, (int)why_len,
                 why);
    } else {
        memcpy(e->msg, text, sizeof(text));
    }
    e->code = stored;
    return -stored;
}

int err_prefix(struct err *e, const char *fmt, ...)
{
    if (e == NULL)
        return -EINVAL;
    char text[ERR_MSG_SIZE];
    va_list ap;
    va_start(ap, fmt);
    int len = vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (len >= 0) {
        size_t used = strlen(text);
        const char *const parts[] = {": ", e->msg};
        for (int i = 0; i < 2; i++) {
            size_t n = strnlen(parts[i], sizeof(text) - 1 - used);
            memcpy(text + used, parts[i], n);
            used += n;
        }
        text[used] = '\0';
        memcpy(e->msg, text, sizeof(text));
    }
    return -e->code;
}
