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
void kvm_stats_count_place(struct engine_vcpu *v, bool is_port, uint64_t addr, uint64_t count)
{
    struct kvm_exit_place *rarest = &v->stats.places[0];
    uint64_t at = is_port ? addr : align_down(addr, 4096);

    for (unsigned i = 0; i < KVM_EXIT_PLACES; i++) {
        struct kvm_exit_place *place = &v->stats.places[i];
        if (place->count != 0 && place->addr == at && place->is_port == is_port) {
            place->count += count;
            return;
        }
        if (place->count < rarest->count)
            rarest = place;
    }
    rarest->addr = at;
    rarest->is_port = is_port;
    rarest->count += count;
}

/* The same. */
void kvm_stats_count_failed(struct engine_vcpu *v, const uint8_t *bytes, unsigned length)
{
    struct kvm_failed_insn *rarest = &v->stats.failed[0];

    for (unsigned i = 0; i < KVM_FAILED_KINDS; i++) {
        struct kvm_failed_insn *f = &v->stats.failed[i];
        if (f->count != 0 && f->length == length && memcmp(f->bytes, bytes, length) == 0) {
            f->count++;
            return;
        }
        if (f->count < rarest->count)
            rarest = f;
    }
    memcpy(rarest->bytes, bytes, length);
    rarest->length = (uint8_t)length;
    rarest->count++;
}

/* Instructions that KVM failed on, the most frequent first. */
static void report_failed(const struct kvm_stats *s, struct stats_sink *sink)
{
    bool is_done[KVM_FAILED_KINDS] = {false};

    for (unsigned n = 0; n < KVM_FAILED_KINDS; n++) {
        char hex[2 * sizeof(s->failed[0].bytes) + 1] = "not_readable";
        char key[16 + sizeof(hex)], title[16 + sizeof(hex)];
        unsigned best = KVM_FAILED_KINDS;
        for (unsigned i = 0; i < KVM_FAILED_KINDS; i++)
            if (!is_done[i] && s->failed[i].count != 0 &&
                (best == KVM_FAILED_KINDS || s->failed[i].count > s->failed[best].count))
                best = i;
        if (best == KVM_FAILED_KINDS)
            return;
        is_done[best] = true;
        for (unsigned i = 0; i < s->failed[best].length; i++)
            snprintf(hex + 2 * i, sizeof(hex) - 2 * i, "%02x", s->failed[best].bytes[i]);
        snprintf(key, sizeof(key), "failed.%s", hex);
        snprintf(title, sizeof(title), "  failed on %s", hex);
        stats_put_count(sink, key, title, s->failed[best].count);
    }
}

/* The most frequent first. */
static void report_places(const struct kvm_stats *s, struct stats_sink *sink)
{
    bool is_done[KVM_EXIT_PLACES] = {false};

    for (unsigned n = 0; n < KVM_EXIT_PLACES; n++) {
        const struct kvm_exit_place *best = NULL;
        char key[40], title[40];
        for (unsigned i = 0; i < KVM_EXIT_PLACES; i++)
            if (!is_done[i] && s->places[i].count != 0 &&
                (best == NULL || s->places[i].count > best->count))
                best = &s->places[i];
        if (best == NULL)
            return;
        is_done[best - s->places] = true;
        snprintf(key, sizeof(key), best->is_port ? "exits.port_%04" PRIx64 : "exits.page_%" PRIx64,
                 best->addr);
        snprintf(title, sizeof(title), best->is_port ? "  port %04" PRIx64 : "  page %" PRIx64,
                 best->addr);
        stats_put_count(sink, key, title, best->count);
    }
}

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
        report_failed(&v->stats, sink);
        report_places(&v->stats, sink);
    }
}
