/*
 * stats.h - reporting what the software engines count
 */
#ifndef DOPPEL_ENGINE_SOFT_STATS_H
#define DOPPEL_ENGINE_SOFT_STATS_H

struct soft_engine;
struct stats_sink;

/* One group, "execution", per vCPU. No vCPU runs. */
void soft_stats_report(const struct soft_engine *se, struct stats_sink *sink);

#endif
