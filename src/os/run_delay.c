/*
 * run_delay.c - reading a thread's schedstat
 */
#include "os/run_delay.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

/* Three numbers: on a processor, waiting for one (both in nanoseconds), how often it had one. */
#define SCHEDSTAT_PATH "/proc/thread-self/schedstat"

int run_delay_open(void)
{
    return open(SCHEDSTAT_PATH, O_RDONLY | O_CLOEXEC);
}

/* False: no number that is followed by `end`. */
static bool parse_number(const char **text, char end, uint64_t *value)
{
    const char *p = *text;

    *value = 0;
    for (; *p >= '0' && *p <= '9'; p++)
        if (__builtin_mul_overflow(*value, 10, value) ||
            __builtin_add_overflow(*value, (unsigned)(*p - '0'), value))
            return false;
    if (p == *text || *p != end)
        return false;
    *text = p + 1;
    return true;
}

static bool schedstat_read(int fd, uint64_t *on_cpu, uint64_t *waited)
{
    char text[80];
    const char *p = text;
    ssize_t n;

    if (fd < 0)
        return false;
    n = pread(fd, text, sizeof(text) - 1, 0);
    if (n <= 0)
        return false;
    text[n] = '\0';
    return parse_number(&p, ' ', on_cpu) && parse_number(&p, ' ', waited);
}

bool run_delay_read(int fd, uint64_t *ns)
{
    uint64_t on_cpu;

    return schedstat_read(fd, &on_cpu, ns);
}

/* Who runs has run: a system that shows no time at all only has the file. */
bool run_delay_is_known(void)
{
    int fd = run_delay_open();
    uint64_t on_cpu, waited;
    bool is_known = schedstat_read(fd, &on_cpu, &waited) && on_cpu != 0;

    if (fd >= 0)
        close(fd);
    return is_known;
}
