/*
 * run_delay.h - for how long the host's scheduler made a thread wait for a processor
 *
 * Spec: Linux Documentation/scheduler/sched-stats.rst, /proc/<pid>/schedstat; there where the
 * kernel has CONFIG_SCHED_INFO.
 */
#ifndef DOPPEL_OS_RUN_DELAY_H
#define DOPPEL_OS_RUN_DELAY_H

#include <stdbool.h>
#include <stdint.h>

/* Does this host tell? */
bool run_delay_is_known(void);

/* A descriptor for the calling thread's, to be closed by the caller; -1: the host does not tell. */
int run_delay_open(void);

/* Nanoseconds since the thread began that it was ready to run and did not. Any thread. False: not
 * known (or fd is -1). */
bool run_delay_read(int fd, uint64_t *ns);

#endif
