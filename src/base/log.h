/*
 * log.h - doppel's own messages, on standard error
 *
 * The one process-wide sink; it is configured once by the front end before threads exist.
 * Messages never go to standard output, which belongs to the guest's serial port.
 */
#ifndef DOPPEL_BASE_LOG_H
#define DOPPEL_BASE_LOG_H

#include <stdbool.h>
#include <stdint.h>

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG, LOG_TRACE };

/* Set the most verbose level that is printed. Call before threads are made. */
void log_set_level(enum log_level level);

/* Parse "error", "warn", "info", "debug" or "trace". Returns 0, or -EINVAL. */
int log_parse_level(const char *name, enum log_level *level);

bool log_enabled(enum log_level level);

/* Print one line "doppel: LEVEL: text\n" (a "\r\n" when the terminal is raw). Any thread. */
void log_write(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* While on, every line ends with "\r\n" (the terminal is in raw mode). Any thread. */
void log_set_raw_terminal(bool is_raw);

/*
 * A budget for messages that a guest can cause: at most LOG_LIMIT_BURST, then one a second.
 * Zero-initialise it. Returns true when the message may be printed. Any thread.
 */
#define LOG_LIMIT_BURST 10
struct log_limit {
    _Atomic uint64_t last_ns;
    _Atomic unsigned used;
};
bool log_limit_allows(struct log_limit *limit);

#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__)
#define log_warn(...) log_write(LOG_WARN, __VA_ARGS__)
#define log_info(...) log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...)                                                                             \
    do {                                                                                           \
        if (log_enabled(LOG_DEBUG))                                                                \
            log_write(LOG_DEBUG, __VA_ARGS__);                                                     \
    } while (0)
#define log_trace(...)                                                                             \
    do {                                                                                           \
        if (log_enabled(LOG_TRACE))                                                                \
            log_write(LOG_TRACE, __VA_ARGS__);                                                     \
    } while (0)
/* What a guest did wrong: rate-limited per call site, at debug level. */
#define log_guest(...)                                                                             \
    do {                                                                                           \
        static struct log_limit log_limit_here;                                                    \
        if (log_enabled(LOG_DEBUG) && log_limit_allows(&log_limit_here))                           \
            log_write(LOG_DEBUG, __VA_ARGS__);                                                     \
    } while (0)

#endif
