/*
 * model.h - what kind of processor the guest sees: CPUID, and what follows from it
 *
 * A model is made once, before any vCPU, and never changes: engines read it, #UD and #GP rules
 * follow it, and it can only offer what the host CPU can execute and doppel implements.
 */
#ifndef DOPPEL_CPU_MODEL_H
#define DOPPEL_CPU_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct cpu_state;

struct cpuid_regs {
    uint32_t eax, ebx, ecx, edx;
};

/*
 * Features that code asks about, as (leaf, subleaf, register, bit). Names are those of
 * /proc/cpuinfo, which `--cpu-model` takes as well. The list is in model_features.h as
 * X(NAME, "name", leaf, subleaf, reg, bit), reg being EAX, EBX, ECX or EDX; CPU_FEATURE_NAME
 * enumerators follow from it.
 */
enum cpu_feature {
#define X(id, name, leaf, subleaf, reg, bit) CPU_FEATURE_##id,
#include "cpu/model_features.h"
#undef X
    CPU_FEATURE_COUNT,
};

#define CPU_MODEL_LEAVES_MAX 96

struct cpu_model_leaf {
    uint32_t leaf, subleaf;
    struct cpuid_regs regs;
    bool is_subleaf_significant;
};

struct cpu_model {
    char name[64];
    struct cpu_model_leaf leaves[CPU_MODEL_LEAVES_MAX];
    unsigned leaf_count;
    uint64_t feature_words[(CPU_FEATURE_COUNT + 63) / 64];
    uint64_t xcr0_valid;         /* bits that XSETBV may set */
    uint32_t xsave_size;         /* bytes, all of xcr0_valid, standard format */
    uint32_t xsave_offset[16];   /* standard-format offset and size of each component */
    uint32_t xsave_component_size[16];
    uint32_t mxcsr_mask;
    unsigned phys_bits;          /* MAXPHYADDR */
    unsigned linear_bits;        /* 48, or 57 where LA57 is offered */
    uint64_t arch_capabilities;  /* IA32_ARCH_CAPABILITIES, where it is offered */
    bool is_amd;                 /* AMD's (and Hygon's) rules where vendors differ */
    uint64_t tsc_hz;
    bool is_tsc_hosts;           /* an engine shows the host's TSC as it is: offsets must be 0 */
    unsigned cpu_count;
};

/*
 * Make a model from "host" or a named model, with "+feature,-feature" modifications as in
 * `--cpu-model`. Asking for what the host or doppel cannot do is an error that names it.
 */
int cpu_model_create(const char *spec, unsigned cpu_count, uint64_t tsc_hz, struct cpu_model *out,
                     struct err *e);

/*
 * What an engine can offer of a processor. A machine that is to run on several engines gets a
 * model within the limits of each.
 */
struct cpu_model_limit {
    uint64_t feature_words[(CPU_FEATURE_COUNT + 63) / 64];
    unsigned phys_bits;
    uint64_t arch_capabilities;
    bool is_tsc_hosts;
    const char *who;             /* who lacks what is missing, for messages */
};

/* No limit at all. */
void cpu_model_limit_init(struct cpu_model_limit *limit);

/* Take away what this CPUID does not show; `is_kept` features stay whatever it says. */
void cpu_model_limit_features(struct cpu_model_limit *limit, const char *who,
                              struct cpuid_regs (*cpuid)(const void *ctx, uint32_t leaf,
                                                         uint32_t subleaf),
                              const void *ctx, bool (*is_kept)(enum cpu_feature feature));

static inline void cpu_model_limit_remove(struct cpu_model_limit *limit, enum cpu_feature feature)
{
    limit->feature_words[feature / 64] &= ~(UINT64_C(1) << (feature % 64));
}

/*
 * As cpu_model_create, within `limit` (NULL: none): "host" leaves out what is beyond it, and what
 * is named but beyond it is an error.
 */
int cpu_model_create_within(const char *spec, unsigned cpu_count, uint64_t tsc_hz,
                            const struct cpu_model_limit *limit, struct cpu_model *out,
                            struct err *e);

/*
 * Can an engine with this limit run a machine with that model? If not, *e says what it lacks.
 * Limits of the same CPU on the same host only: what no engine can change is not compared.
 */
int cpu_model_check_limit(const struct cpu_model *model, const struct cpu_model_limit *limit,
                          struct err *e);

/* Print the known model and feature names, one per line each, for `--cpu-model help`. */
void cpu_model_list(void (*print)(void *ctx, const char *line), void *ctx);

static inline bool cpu_model_has(const struct cpu_model *model, enum cpu_feature feature)
{
    return model->feature_words[feature / 64] >> (feature % 64) & 1;
}

/*
 * What CPUID returns with these EAX and ECX on CPU `apic_id` in state *st: dynamic bits (APIC ID,
 * OSXSAVE, XSAVE sizes) filled in, out-of-range leaves as the vendor defines them.
 * No libc calls: safe while guest vector state is live.
 */
struct cpuid_regs cpu_model_cpuid(const struct cpu_model *model, const struct cpu_state *st,
                                  uint32_t apic_id, uint32_t leaf, uint32_t subleaf);

#endif
