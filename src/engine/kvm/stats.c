/*
 * stats.c - what the engine on KVM counts
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/stats.h"
#include "engine/kvm/kvm.h"

static const struct {
    const char *key, *title;
} counts[KVM_COUNT_MAX] = {
    [KVM_COUNT_IO_READ] = {"io_reads", "port reads"},
    [KVM_COUNT_IO_WRITE] = {"io_writes", "port writes"},
    [KVM_COUNT_MMIO_READ] = {"mmio_reads", "MMIO reads"},
    [KVM_COUNT_MMIO_WRITE] = {"mmio_writes", "MMIO writes"},
    [KVM_COUNT_MSR_READ] = {"msr_reads", "MSR reads"},
    [KVM_COUNT_MSR_WRITE] = {"msr_writes", "MSR writes"},
    [KVM_COUNT_EOI] = {"level_eois", "EOIs of level-triggered interrupts"},
    [KVM_COUNT_HALT] = {"halts", "halts"},
    [KVM_COUNT_WINDOW] = {"interrupt_windows", "interrupt windows"},
    [KVM_COUNT_TPR] = {"tpr_lowered", "task priority lowered"},
    [KVM_COUNT_KICK] = {"kicks", "kicked out"},
    [KVM_COUNT_INTERRUPT] = {"interrupts", "interrupts"},
    [KVM_COUNT_NMI] = {"nmis", "NMIs"},
    [KVM_COUNT_FETCH] = {"registers_read", "registers read"},
    [KVM_COUNT_STORE] = {"registers_set", "registers set"},
    [KVM_COUNT_FAILURE] = {"emulation_failures", "emulation failures"},
    [KVM_COUNT_BAD_ENTRY] = {"entries_refused", "entries refused"},
    [KVM_COUNT_STEPPED] = {"instructions_stepped", "instructions stepped over"},
    [KVM_COUNT_TAKEN_OVER] = {"instructions_taken_over", "instructions taken over"},
};

/* Space-Saving: a newcomer takes the rarest one's place, and its count. */
static void tally_add(struct kvm_tally *tallies, unsigned size, const void *key, unsigned length,
                      uint64_t count)
{
    struct kvm_tally *rarest = tallies;

    for (unsigned i = 0; i < size; i++) {
        struct kvm_tally *t = &tallies[i];
        if (t->count != 0 && t->length == length && memcmp(t->key, key, length) == 0) {
            t->count += count;
            return;
        }
        if (t->count < rarest->count)
            rarest = t;
    }
    memcpy(rarest->key, key, length);
    rarest->length = (uint8_t)length;
    rarest->count += count;
}

/* All of them, the most frequent first; `report` names one. */
static void tally_report(const struct kvm_tally *tallies, unsigned size, struct stats_sink *sink,
                         void (*report)(const struct kvm_tally *t, struct stats_sink *sink))
{
    uint64_t done = 0;

    for (unsigned n = 0; n < size; n++) {
        const struct kvm_tally *best = NULL;
        for (unsigned i = 0; i < size; i++)
            if (!(done >> i & 1) && tallies[i].count != 0 &&
                (best == NULL || tallies[i].count > best->count))
                best = &tallies[i];
        if (best == NULL)
            return;
        done |= BIT(best - tallies);
        report(best, sink);
    }
}

/* The key of a place. */
struct place {
    uint64_t addr; /* of memory: of a page of 4 KiB */
    bool is_port;
} __attribute__((packed));

void kvm_stats_count_place(struct engine_vcpu *v, bool is_port, uint64_t addr, uint64_t count)
{
    struct place place = {is_port ? addr : align_down(addr, 4096), is_port};

    tally_add(v->stats.places, KVM_EXIT_PLACES, &place, sizeof(place), count);
}

void kvm_stats_count_failed(struct engine_vcpu *v, const uint8_t *bytes, unsigned length)
{
    tally_add(v->stats.failed, KVM_FAILED_KINDS, bytes, length, 1);
}

static void report_failed(const struct kvm_tally *t, struct stats_sink *sink)
{
    char hex[2 * sizeof(t->key) + 1] = "not_readable";
    char key[16 + sizeof(hex)], title[16 + sizeof(hex)];

    for (unsigned i = 0; i < t->length; i++)
        snprintf(hex + 2 * i, sizeof(hex) - 2 * i, "%02x", t->key[i]);
    snprintf(key, sizeof(key), "failed.%s", hex);
    snprintf(title, sizeof(title), "  failed on %s", hex);
    stats_put_count(sink, key, title, t->count);
}

static void report_place(const struct kvm_tally *t, struct stats_sink *sink)
{
    struct place place;
    char key[40], title[40];

    memcpy(&place, t->key, sizeof(place));
    snprintf(key, sizeof(key), place.is_port ? "exits.port_%04" PRIx64 : "exits.page_%" PRIx64,
             place.addr);
    snprintf(title, sizeof(title), place.is_port ? "  port %04" PRIx64 : "  page %" PRIx64,
             place.addr);
    stats_put_count(sink, key, title, t->count);
}

_Static_assert(sizeof(struct place) <= sizeof((struct kvm_tally){0}.key), "of a key");
_Static_assert(KVM_EXIT_PLACES <= 64 && KVM_FAILED_KINDS <= 64, "a bit for each");

void kvm_stats_report(struct engine *engine, struct stats_sink *sink)
{
    double tsc_per_ms = MAX((double)engine->soft.model->tsc_hz / 1000, 1.0);

    if (engine->bell_count != 0) {
        stats_begin(sink, "KVM", -1);
        stats_put_count(sink, "bells", "registers that wake threads without an exit",
                        engine->bell_count);
    }

    for (unsigned i = 0; i < engine->soft.vcpu_count; i++) {
        const struct engine_vcpu *v;
        if (engine->soft.vcpus[i] == NULL)
            continue;
        v = CONTAINER_OF(engine->soft.vcpus[i], struct engine_vcpu, soft);
        stats_begin(sink, "KVM", (int)i);
        stats_put_ms(sink, "running_ms", "ms running", (double)v->run_tsc / tsc_per_ms);
        stats_put_count(sink, "entries", "times entered", v->stats.runs);
        for (unsigned n = 0; n < KVM_COUNT_MAX; n++)
            stats_put_count(sink, counts[n].key, counts[n].title, v->stats.counts[n]);
        tally_report(v->stats.failed, KVM_FAILED_KINDS, sink, report_failed);
        tally_report(v->stats.places, KVM_EXIT_PLACES, sink, report_place);
    }
}
