/*
 * event.h - eventfds: descriptors that wake whoever waits for them
 */
#ifndef DOPPEL_OS_EVENT_H
#define DOPPEL_OS_EVENT_H

#include <errno.h>
#include <stdint.h>
#include <unistd.h>

/* Make it readable. Any thread, signal-safe. */
static inline void event_raise(int fd)
{
    uint64_t one = 1;

    /* EAGAIN means that the counter is full: it is as readable as can be */
    while (write(fd, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
}

/* How often it was raised since the last time; not readable until the next. `fd` does not block. */
static inline uint64_t event_take(int fd)
{
    uint64_t count = 0;

    while (read(fd, &count, sizeof(count)) < 0 && errno == EINTR)
        ;
    return count;
}

#endif
