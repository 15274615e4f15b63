/*
 * stats.c - the translator's part of --stats
 */
#include <Zydis/Zydis.h>
#include <inttypes.h>
#include <stdlib.h>

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

static void print_row(FILE *out, const char *what, uint64_t value)
{
    fprintf(out, "  %-44s %14" PRIu64 "\n", what, value);
}

/* Instructions that ran in C, the most frequent first. */
static void print_ops(const struct bt_stats *s, FILE *out)
{
    struct op_count ops[ARRAY_SIZE(s->soft_ops)];
    uint64_t total = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(ops); i++) {
        ops[i] = (struct op_count){.op = i, .count = s->soft_ops[i]};
        total += s->soft_ops[i];
    }
    qsort(ops, ARRAY_SIZE(ops), sizeof(ops[0]), compare_counts);
    print_row(out, "helper calls (instructions run in C)", total);
    for (unsigned i = 0; i < TOP_OPS && ops[i].count != 0; i++)
        fprintf(out, "    %-42s %14" PRIu64 "\n", ZydisMnemonicGetString((ZydisMnemonic)ops[i].op),
                ops[i].count);
}

/* Share of `total` that was not among `misses`. */
static void print_rate(FILE *out, const char *what, uint64_t total, uint64_t misses)
{
    if (total != 0)
        fprintf(out, "  %-44s %14" PRIu64 "  %.3f%%\n", what, total - MIN(misses, total),
                100.0 * (double)(total - MIN(misses, total)) / (double)total);
}

static void print_times(const struct bt_vcpu *b, double tsc_per_ms, FILE *out)
{
    const struct bt_stats *s = &b->stats;
    const struct {
        const char *what;
        uint64_t cycles;
    } rows[] = {
        {"ms translating", s->translate_cycles},
        {"ms in TLB misses", s->tlb_miss_cycles},
        {"ms in instructions run in C, devices included", s->soft_cycles},
        {"ms dispatching, translating included", s->dispatch_cycles},
        {"ms in devices", b->soft.stats.host_tsc},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
        fprintf(out, "  %-44s %14.3f\n", rows[i].what, (double)rows[i].cycles / tsc_per_ms);
}

void bt_print_stats(struct engine *engine, FILE *out)
{
    struct bt_engine *be = (struct bt_engine *)engine;
    double tsc_per_ms = be->soft.model->tsc_hz != 0 ? (double)be->soft.model->tsc_hz / 1000 : 1e6;

    fprintf(out, "engine bt\n");
    fprintf(out, "  code cache: %zu of %zu KiB, %zu blocks, emptied %" PRIu64 " times\n",
            be->used >> 10, be->cache_size >> 10, be->block_count, be->generation);
    for (unsigned i = 0; i < be->soft.vcpu_count; i++) {
        const struct bt_vcpu *b = (const struct bt_vcpu *)be->soft.vcpus[i];
        if (b == NULL)
            continue;
        const struct bt_stats *s = &b->stats;
        fprintf(out, "CPU %u, translator\n", i);
        print_row(out, "blocks translated", s->blocks);
        print_row(out, "guest instructions in them", s->guest_insns);
        print_row(out, "guest bytes", s->guest_bytes);
        print_row(out, "host bytes", s->host_bytes);
        print_times(b, tsc_per_ms, out);
        print_rate(out, "blocks entered without a dispatch", b->blocks_run, s->dispatches);
        print_row(out, "dispatches (control came back to C)", s->dispatches);
        print_row(out, "  after an indirect branch without a guess", s->indirect_misses);
        print_row(out, "  to link a branch", s->chains);
        print_row(out, "host faults in generated code", s->host_faults);
        print_row(out, "instructions stepped", s->steps);
        print_rate(out, "TLB hits of generated code", b->accesses, s->tlb_misses);
        print_row(out, "TLB misses of generated code", s->tlb_misses);
        print_row(out, "  of them finished in C (fault, device, ...)", s->tlb_miss_soft);
        print_row(out, "shared checks that failed", s->share_misses);
        print_row(out, "writes to pages with code", s->code_writes);
        print_row(out, "  of them beside the code", s->code_writes_beside);
        print_row(out, "blocks dropped by writes", s->kills);
        print_row(out, "pages protected", s->protects);
        print_row(out, "  of them with all CPUs stopped", s->protect_exclusive);
        print_ops(s, out);
    }
    soft_stats_print(&be->soft, out);
}
