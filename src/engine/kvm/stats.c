/*
 * stats.c - the table of `--stats`
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "engine/kvm/kvm.h"
#include "engine/soft/stats.h"

static const char *const count_names[KVM_COUNT_MAX] = {
    [KVM_COUNT_IO_READ] = "port reads",
    [KVM_COUNT_IO_WRITE] = "port writes",
    [KVM_COUNT_MMIO_READ] = "MMIO reads",
    [KVM_COUNT_MMIO_WRITE] = "MMIO writes",
    [KVM_COUNT_MSR_READ] = "MSR reads",
    [KVM_COUNT_MSR_WRITE] = "MSR writes",
    [KVM_COUNT_HALT] = "halts",
    [KVM_COUNT_WINDOW] = "interrupt windows",
    [KVM_COUNT_TPR] = "task priority lowered",
    [KVM_COUNT_KICK] = "kicked out",
    [KVM_COUNT_INTERRUPT] = "interrupts",
    [KVM_COUNT_NMI] = "NMIs",
    [KVM_COUNT_FETCH] = "registers read",
    [KVM_COUNT_STORE] = "registers set",
    [KVM_COUNT_FAILURE] = "emulation failures",
    [KVM_COUNT_BAD_ENTRY] = "entries refused",
    [KVM_COUNT_STEPPED] = "instructions stepped over",
};

/* Space-Saving: a newcomer takes the rarest one's place, and its count. */
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

static void print_failed(const struct kvm_stats *s, FILE *out)
{
    bool is_done[KVM_FAILED_KINDS] = {false};

    for (unsigned n = 0; n < KVM_FAILED_KINDS; n++) {
        unsigned best = KVM_FAILED_KINDS;
        for (unsigned i = 0; i < KVM_FAILED_KINDS; i++)
            if (!is_done[i] && s->failed[i].count != 0 &&
                (best == KVM_FAILED_KINDS || s->failed[i].count > s->failed[best].count))
                best = i;
        if (best == KVM_FAILED_KINDS)
            return;
        is_done[best] = true;
        fprintf(out, "    failed on %16" PRIu64 " times:", s->failed[best].count);
        for (unsigned i = 0; i < s->failed[best].length; i++)
            fprintf(out, " %02x", s->failed[best].bytes[i]);
        fprintf(out, "%s\n", s->failed[best].length == 0 ? " (not readable)" : "");
    }
}

void kvm_stats_print(struct engine *engine, FILE *out)
{
    double tsc_per_ms = MAX((double)engine->soft.model->tsc_hz / 1000, 1.0);

    fprintf(out, "engine kvm\n");
    for (unsigned i = 0; i < engine->soft.vcpu_count; i++) {
        const struct engine_vcpu *v;
        if (engine->soft.vcpus[i] == NULL)
            continue;
        v = CONTAINER_OF(engine->soft.vcpus[i], struct engine_vcpu, soft);
        fprintf(out, "CPU %u ran %.3f ms, entered KVM %" PRIu64 " times\n", i,
                (double)v->run_tsc / tsc_per_ms, v->stats.runs);
        for (unsigned n = 0; n < KVM_COUNT_MAX; n++)
            if (v->stats.counts[n] != 0)
                fprintf(out, "  %-28s %16" PRIu64 "\n", count_names[n], v->stats.counts[n]);
        print_failed(&v->stats, out);
    }
}
