/*
 * model_build.h - inside cpu/: how a model is made from what the host reports
 *
 * The host is passed in, so that tests can be any host.
 */
#ifndef DOPPEL_CPU_MODEL_BUILD_H
#define DOPPEL_CPU_MODEL_BUILD_H

#include "cpu/model.h"

enum cpuid_reg { CPUID_EAX, CPUID_EBX, CPUID_ECX, CPUID_EDX };

/* The processor that a model is made for, as user mode sees it. */
struct model_host {
    struct cpuid_regs (*cpuid)(const void *ctx, uint32_t leaf, uint32_t subleaf);
    const void *ctx;
    uint64_t xcr0; /* what the host's system has enabled; 0 without OSXSAVE */
    uint32_t mxcsr_mask;
    const struct cpu_model_limit *limit; /* NULL: none */
};

struct model_feature {
    const char *name;
    uint32_t leaf;
    uint8_t subleaf, reg, bit;
};

extern const struct model_feature model_features[CPU_FEATURE_COUNT];

/* cpu_model_create for a given host. */
int model_create_on(const struct model_host *host, const char *spec, unsigned cpu_count,
                    uint64_t tsc_hz, struct cpu_model *out, struct err *e);

/*
 * Fill leaves and XSAVE layout from m->feature_words, cpu_count, tsc_hz and the host; `brand` is
 * the processor's name, NULL for the host's.
 */
void model_fill_leaves(struct cpu_model *m, const struct model_host *host, const char *brand);

/* CPUID of the host, zero beyond its highest leaf of that range. */
struct cpuid_regs model_host_leaf(const struct model_host *host, uint32_t leaf, uint32_t subleaf);

/* AMD and Hygon, whose leaves are AMD's. */
bool model_host_is_amd(const struct model_host *host);

static inline uint32_t cpuid_reg_of(const struct cpuid_regs *regs, unsigned reg)
{
    switch (reg) {
    case CPUID_EAX:
        return regs->eax;
    case CPUID_EBX:
        return regs->ebx;
    case CPUID_ECX:
        return regs->ecx;
    default:
        return regs->edx;
    }
}

static inline void model_set(struct cpu_model *m, enum cpu_feature feature, bool is_on)
{
    uint64_t bit = UINT64_C(1) << (feature % 64);

    if (is_on)
        m->feature_words[feature / 64] |= bit;
    else
        m->feature_words[feature / 64] &= ~bit;
}

#endif
