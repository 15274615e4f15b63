/*
 * cpus.h - the host's processors
 */
#ifndef DOPPEL_OS_CPUS_H
#define DOPPEL_OS_CPUS_H

/* How many processors this process may run on. */
unsigned host_cpu_count(void);

#endif
