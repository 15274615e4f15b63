/*
 * stats.c - what the translator counts
 */
#include <Zydis/Zydis.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/stats.h"
#include "engine/bt/bt.h"
#include "engine/soft/stats.h"

#define TOP_OPS 24

struct op_count {
    unsigned op;
    uint64_t count;
};

static int compare_counts(const void *a, const void *b)
{
    const struct op_count *x = a, *y = b;
    return x->count < y->count ? 1 : x->count > y->count ? -1 : 0;
}

/* Instructions that ran in C, the most frequent first. */
static void report_ops(const struct bt_stats *s, struct stats_sink *sink)
{
    struct op_count ops[ARRAY_SIZE(s->soft_ops)];
    uint64_t total = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(ops); i++) {
        ops[i] = (struct op_count){.op = i, .count = s->soft_ops[i]};
        total += s->soft_ops[i];
    }
    qsort(ops, ARRAY_SIZE(ops), sizeof(ops[0]), compare_counts);
    stats_put_count(sink, "helper_calls", "helper calls (instructions run in C)", total);
    for (unsigned i = 0; i < TOP_OPS && ops[i].count != 0; i++) {
        const char *name = ZydisMnemonicGetString((ZydisMnemonic)ops[i].op);
        char key[48], title[48];
        snprintf(key, sizeof(key), "helper_calls.%s", name);
        snprintf(title, sizeof(title), "  %s", name);
        stats_put_count(sink, key, title, ops[i].count);
    }
}

/* Share of `total` that was not among `misses`. */
static void report_hits(struct stats_sink *sink, const char *key, const char *title, uint64_t total,
                        uint64_t misses)
{
    stats_put_share(sink, key, title, total - MIN(misses, total), total);
}

static void report_times(const struct bt_vcpu *b, double tsc_per_ms, struct stats_sink *sink)
{
    const struct bt_stats *s = &b->stats;
    /* they add up to the time in the engine */
    const struct {
        const char *key, *title;
        uint64_t cycles;
    } rows[] = {
        {"code_ms", "ms in translated code", s->cycles[BT_TIME_CODE]},
        {"translating_ms", "ms translating", s->translate_cycles},
        {"tlb_misses_ms", "ms in TLB misses, walks included", s->cycles[BT_TIME_TLB]},
        {"helpers_ms", "ms in instructions run in C", s->cycles[BT_TIME_SOFT]},
        {"dispatching_ms", "ms dispatching, events and faults", s->cycles[BT_TIME_DISPATCH]},
        {"devices_ms", "ms in devices", b->soft.stats.host_tsc},
        {"exclusive_ms", "ms waiting for other CPUs", b->soft.stats.exclusive_tsc},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
        stats_put_ms(sink, rows[i].key, rows[i].title, (double)rows[i].cycles / tsc_per_ms);
}

static void report_vcpu(const struct bt_vcpu *b, double tsc_per_ms, struct stats_sink *sink)
{
    const struct bt_stats *s = &b->stats;

    stats_put_count(sink, "blocks", "blocks translated", s->blocks);
    stats_put_count(sink, "guest_instructions", "guest instructions in them", s->guest_insns);
    stats_put_count(sink, "guest_bytes", "guest bytes", s->guest_bytes);
    stats_put_count(sink, "host_bytes", "host bytes", s->host_bytes);
    report_times(b, tsc_per_ms, sink);
    report_hits(sink, "blocks_chained", "blocks entered without a dispatch", b->blocks_run,
                s->dispatches);
    stats_put_count(sink, "dispatches", "dispatches (control came back to C)", s->dispatches);
    stats_put_count(sink, "dispatches.indirect", "  after an indirect branch without a guess",
                    s->indirect_misses);
    stats_put_count(sink, "dispatches.link", "  to link a branch", s->chains);
    stats_put_count(sink, "host_faults", "host faults in generated code", s->host_faults);
    stats_put_count(sink, "instructions_stepped", "instructions stepped", s->steps);
    report_hits(sink, "tlb_hits", "TLB hits of generated code", b->accesses, s->tlb_misses);
    stats_put_count(sink, "tlb_misses", "TLB misses of generated code", s->tlb_misses);
    stats_put_count(sink, "tlb_misses.in_c", "  of them finished in C (fault, device, ...)",
                    s->tlb_miss_soft);
    stats_put_count(sink, "share_misses", "shared checks that failed", s->share_misses);
    stats_put_count(sink, "loops", "loops that run in strips", s->loops);
    stats_put_count(sink, "loops.refused", "  strips refused", s->loop_refusals);
    stats_put_count(sink, "code_writes", "writes to pages with code", s->code_writes);
    stats_put_count(sink, "code_writes.beside", "  of them beside the code", s->code_writes_beside);
    stats_put_count(sink, "blocks_dropped", "blocks dropped by writes", s->kills);
    stats_put_count(sink, "pages_protected", "pages protected", s->protects);
    stats_put_count(sink, "pages_protected.exclusive", "  of them with all CPUs stopped",
                    s->protect_exclusive);
    report_ops(s, sink);
}

void bt_report_stats(struct engine *engine, struct stats_sink *sink)
{
    struct bt_engine *be = (struct bt_engine *)engine;
    double tsc_per_ms = be->soft.model->tsc_hz != 0 ? (double)be->soft.model->tsc_hz / 1000 : 1e6;

    stats_begin(sink, "code cache", -1);
    stats_put_share(sink, "used_bytes", "bytes used", be->used, be->cache_size);
    stats_put_count(sink, "tables_bytes", "bytes of tables beside them", bt_cache_tables_size(be));
    stats_put_count(sink, "size_bytes", "bytes there are", be->cache_size);
    stats_put_count(sink, "blocks", "blocks", be->block_count);
    stats_put_count(sink, "emptied", "times emptied", be->generation);
    for (unsigned i = 0; i < be->soft.vcpu_count; i++) {
        if (be->soft.vcpus[i] == NULL)
            continue;
        stats_begin(sink, "translator", (int)i);
        report_vcpu((const struct bt_vcpu *)be->soft.vcpus[i], tsc_per_ms, sink);
    }
    soft_stats_report(&be->soft, sink);
}
