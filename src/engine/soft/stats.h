/*
 * stats.h - printing what the software engines count
 */
#ifndef DOPPEL_ENGINE_SOFT_STATS_H
#define DOPPEL_ENGINE_SOFT_STATS_H

#include <stdio.h>

struct soft_engine;

/* One block per vCPU; counters of zero are left out. No vCPU runs. */
void soft_stats_print(const struct soft_engine *se, FILE *out);

#endif
