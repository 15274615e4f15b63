/*
 * log.c - doppel's own messages, on standard error
 *
 * Invariant: a message is one write(2) of whole lines, so that lines of different threads do
 * not mix. The level and the line ending are the only process-wide state of the program that
 * changes; both are atomic.
 */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

static _Atomic int log_level_now = LOG_WARN;
static _Atomic bool log_is_raw;

static const char *const log_level_names[] = {
    [LOG_ERROR] = "error", [LOG_WARN] = "warn",   [LOG_INFO] = "info",
    [LOG_DEBUG] = "debug", [LOG_TRACE] = "trace",
};

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&log_level_now, (int)level, memory_order_relaxed);
}

int log_parse_level(const char *name, enum log_level *level)
{
    for (int i = LOG_ERROR; i <= LOG_TRACE; i++)
        if (strcmp(name, log_level_names[i]) == 0) {
            *level = (enum log_level)i;
            return 0;
        }
    return -EINVAL;
}

bool log_enabled(enum log_level level)
{
    return (int)level <= atomic_load_explicit(&log_level_now, memory_order_relaxed);
}

void log_set_raw_terminal(bool is_raw)
{
    atomic_store_explicit(&log_is_raw, is_raw, memory_order_relaxed);
}

/*
 * Copy text with each line prefixed and properly ended. Control characters other than the line
 * feed could come from a guest and drive the user's terminal, so they become '?'.
 */
static size_t log_format_lines(char *out, size_t size, const char *prefix, const char *text)
{
    const char *eol = atomic_load_explicit(&log_is_raw, memory_order_relaxed) ? "\r\n" : "\n";
    size_t used = 0;
    size_t len = strlen(text);
    while (len > 0 && text[len - 1] == '\n')
        len--;
    for (size_t i = 0; i <= len && used + 3 < size;) {
        used += (size_t)snprintf(out + used, size - used - 2, "%s", prefix);
        if (used > size - 3)
            used = size - 3;
        for (; i < len && text[i] != '\n'; i++)
            if (used + 3 < size) {
                unsigned char c = (unsigned char)text[i];
                out[used++] = (c < 0x20 && c != '\t') || c == 0x7f ? '?' : (char)c;
            }
        i++;
        memcpy(out + used, eol, strlen(eol));
        used += strlen(eol);
    }
    return used;
}

void log_write(enum log_level level, const char *fmt, ...)
{
    if (!log_enabled(level))
        return;
    int saved_errno = errno;
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (n >= 0) {
        char prefix[32];
        snprintf(prefix, sizeof(prefix), "doppel: %s: ", log_level_names[level]);
        char line[2048];
        size_t len = log_format_lines(line, sizeof(line), prefix, text);
        for (size_t done = 0; done < len;) {
            ssize_t r = write(STDERR_FILENO, line + done, len - done);
            if (r < 0 && errno == EINTR)
                continue;
            if (r <= 0)
                break; /* there is nowhere left to say so */
            done += (size_t)r;
        }
    }
    errno = saved_errno;
}

bool log_limit_allows(struct log_limit *limit)
{
    unsigned used = atomic_load_explicit(&limit->used, memory_order_relaxed);
    while (used < LOG_LIMIT_BURST)
        if (atomic_compare_exchange_weak(&limit->used, &used, used + 1))
            return true;
    uint64_t now = clock_now_ns();
    uint64_t last = atomic_load_explicit(&limit->last_ns, memory_order_relaxed);
    if (now - last < 1000000000u)
        return false;
    return atomic_compare_exchange_strong(&limit->last_ns, &last, now);
}
