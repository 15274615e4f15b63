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
        fprintf(out, "  %-44s %14.3f\n", "time translating, ms",
                (double)s->translate_cycles / tsc_per_ms);
        print_row(out, "dispatches (control came back to C)", s->dispatches);
        print_row(out, "branches linked", s->chains);
        print_row(out, "instructions stepped", s->steps);
        print_row(out, "TLB misses of generated code", s->tlb_misses);
        print_row(out, "  of them finished in C (fault, device, ...)", s->tlb_miss_soft);
        print_row(out, "writes to pages with code", s->code_writes);
        print_row(out, "  of them beside the code", s->code_writes_beside);
        print_row(out, "blocks dropped by writes", s->kills);
        print_row(out, "pages protected", s->protects);
        print_row(out, "  of them with all CPUs stopped", s->protect_exclusive);
        print_ops(s, out);
    }
    soft_stats_print(&be->soft, out);
}
