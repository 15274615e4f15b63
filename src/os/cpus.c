/*
 * cpus.c - the host's processors, as the scheduler lets this process use them
 */
#include "os/cpus.h"

#include <sched.h>

unsigned host_cpu_count(void)
{
    cpu_set_t set;

    /* it fails on hosts with more than 1024 processors: then there are enough */
    if (sched_getaffinity(0, sizeof(set), &set) != 0)
        return CPU_SETSIZE;
    int count = CPU_COUNT(&set);
    return count > 0 ? (unsigned)count : 1;
}
