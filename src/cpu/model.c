/*
 * model.c - which features a CPU model has: the host's, a named level's, and the user's changes
 *
 * Invariant: a model offers a feature only when doppel emulates it by itself, or when the host
 * CPU has it and doppel passes it through; and whatever a feature needs is offered as well.
 *
 * Specification: SDM vol. 2, CPUID; x86-64 psABI, "Micro-Architecture Levels".
 */
#include <cpuid.h>
#include <stdio.h>
#include <string.h>

#include "base/bits.h"
#include "cpu/model_build.h"
#include "cpu/state.h"

const struct model_feature model_features[CPU_FEATURE_COUNT] = {
#define X(id, feature_name, feature_leaf, feature_subleaf, feature_reg, feature_bit)               \
    [CPU_FEATURE_##id] = {.name = feature_name,                                                    \
                          .leaf = feature_leaf,                                                    \
                          .subleaf = feature_subleaf,                                              \
                          .reg = CPUID_##feature_reg,                                              \
                          .bit = feature_bit},
#include "cpu/model_features.h"
#undef X
};

/* Who provides a feature. Most are the host CPU's, executed natively. */
enum feature_kind {
    KIND_HOST = 0, /* offered when the host CPU has it */
    KIND_EMULATED, /* doppel's own; any host will do */
    KIND_INTEL,    /* doppel's own, on Intel's processors only */
    KIND_AMD,      /* doppel's own, on AMD's processors only */
    KIND_COMPUTED, /* follows from the number of CPUs; not for the user to choose */
    KIND_REFUSED,  /* not implemented */
};

#define KIND(kind, id) [CPU_FEATURE_##id] = KIND_##kind

static const uint8_t feature_kinds[CPU_FEATURE_COUNT] = {
    KIND(EMULATED, VME),
    KIND(EMULATED, DE),
    KIND(EMULATED, PSE),
    KIND(EMULATED, MSR),
    KIND(EMULATED, PAE),
    KIND(EMULATED, MCE),
    KIND(EMULATED, APIC),
    KIND(EMULATED, SEP),
    KIND(EMULATED, MTRR),
    KIND(EMULATED, PGE),
    KIND(EMULATED, MCA),
    KIND(EMULATED, PAT),
    KIND(EMULATED, PSE36),
    KIND(EMULATED, PCID),
    KIND(EMULATED, X2APIC),
    KIND(EMULATED, TSC_DEADLINE),
    KIND(EMULATED, HYPERVISOR),
    KIND(EMULATED, ARAT),
    KIND(EMULATED, FSGSBASE),
    KIND(EMULATED, TSC_ADJUST),
    KIND(EMULATED, SMEP),
    KIND(EMULATED, SMAP),
    KIND(EMULATED, UMIP),
    KIND(EMULATED, INVPCID),
    KIND(EMULATED, RDPID),
    KIND(EMULATED, RDTSCP),
    KIND(EMULATED, SYSCALL),
    KIND(EMULATED, NX),
    KIND(EMULATED, PDPE1GB),
    KIND(EMULATED, LM),
    KIND(EMULATED, KVM_STEAL_TIME),
    KIND(EMULATED, KVM_PV_EOI),
    KIND(EMULATED, KVM_PV_UNHALT),
    KIND(EMULATED, KVM_PV_IPI),
    KIND(EMULATED, KVM_POLL_CONTROL),
    KIND(EMULATED, KVM_PV_SCHED_YIELD),
    KIND(INTEL, ARCH_CAPABILITIES),
    KIND(AMD, NULL_SEL_CLR_BASE),
    /*
     * No RET of the guest becomes one of the host's under the software engines, so what defends it
     * against mispredicted ones only costs time. KVM says for itself what holds there.
     */
    KIND(AMD, SRSO_NO),
    KIND(COMPUTED, HT),
    KIND(COMPUTED, CMP_LEGACY),

    /* thermal, power and debug-store machinery, other virtual machines, SMX */
    KIND(REFUSED, PSN),
    KIND(REFUSED, DS),
    KIND(REFUSED, ACPI),
    KIND(REFUSED, TM),
    KIND(REFUSED, PBE),
    KIND(REFUSED, DTES64),
    KIND(REFUSED, MONITOR),
    KIND(REFUSED, DS_CPL),
    KIND(REFUSED, VMX),
    KIND(REFUSED, SMX),
    KIND(REFUSED, EST),
    KIND(REFUSED, TM2),
    KIND(REFUSED, XTPR),
    KIND(REFUSED, PDCM),
    KIND(REFUSED, DCA),
    KIND(REFUSED, DTHERM),
    KIND(REFUSED, IDA),
    KIND(REFUSED, PLN),
    KIND(REFUSED, PTS),
    KIND(REFUSED, HWP),
    KIND(REFUSED, SVM),
    KIND(REFUSED, MP),
    KIND(REFUSED, EXTAPIC),
    KIND(REFUSED, IBS),
    KIND(REFUSED, SKINIT),
    KIND(REFUSED, WDT),
    KIND(REFUSED, NODEID_MSR),
    KIND(REFUSED, PERFCTR_CORE),
    KIND(REFUSED, PERFCTR_NB),
    KIND(REFUSED, PERFCTR_LLC),
    KIND(REFUSED, BPEXT),
    KIND(REFUSED, PTSC),
    KIND(REFUSED, MWAITX),
    KIND(REFUSED, OVERFLOW_RECOV),
    KIND(REFUSED, SUCCOR),
    KIND(REFUSED, SMCA),
    KIND(REFUSED, HW_PSTATE),
    KIND(REFUSED, CPB),
    KIND(REFUSED, IRPERF),
    KIND(REFUSED, RDPRU),
    KIND(REFUSED, MCOMMIT),
    KIND(REFUSED, CPPC),
    KIND(REFUSED, CQM),
    KIND(REFUSED, RDT_A),
    KIND(REFUSED, INTEL_PT),
    KIND(REFUSED, TME),
    KIND(REFUSED, PCONFIG),
    KIND(REFUSED, ARCH_LBR),
    KIND(REFUSED, HYBRID),
    KIND(REFUSED, BUS_LOCK_DETECT),
    KIND(REFUSED, CORE_CAPABILITIES),
    KIND(REFUSED, SRBDS_CTRL),
    KIND(REFUSED, VIRT_SSBD),
    KIND(REFUSED, AMD_PSFD),
    KIND(REFUSED, AUTOIBRS),
    KIND(REFUSED, SBPB),
    KIND(REFUSED, WBNOINVD),
    KIND(REFUSED, SERIALIZE),
    KIND(REFUSED, MOVDIRI),

    /* state or system behaviour that the engines do not model */
    KIND(REFUSED, SGX),
    KIND(REFUSED, SGX_LC),
    KIND(REFUSED, HLE),
    KIND(REFUSED, RTM),
    KIND(REFUSED, RTM_ALWAYS_ABORT),
    KIND(REFUSED, TSXLDTRK),
    KIND(REFUSED, MPX),
    KIND(REFUSED, PKU),
    KIND(REFUSED, PKS),
    KIND(REFUSED, SHSTK),
    KIND(REFUSED, IBT),
    KIND(REFUSED, LA57),
    KIND(REFUSED, WAITPKG),
    KIND(REFUSED, UINTR),
    KIND(REFUSED, KEYLOCKER),
    KIND(REFUSED, ENQCMD),
    KIND(REFUSED, MOVDIR64B),
    KIND(REFUSED, AMX_BF16),
    KIND(REFUSED, AMX_TILE),
    KIND(REFUSED, AMX_INT8),
    KIND(REFUSED, AMX_FP16),
    KIND(REFUSED, FRED),
    KIND(REFUSED, LKGS),
    KIND(REFUSED, HRESET),
    KIND(REFUSED, LAM),
    KIND(REFUSED, XFD),
    KIND(REFUSED, FXSR_OPT),
    KIND(REFUSED, TCE),
    KIND(REFUSED, LWP),

    /* no engine's every form can do them (decision 0023) */
    KIND(REFUSED, KVM_PV_TLB_FLUSH),
    KIND(REFUSED, KVM_ASYNCPF_INT),

    /* encodings that the decoder does not know, or the thunks cannot re-encode */
    KIND(REFUSED, AVX512PF),
    KIND(REFUSED, AVX512ER),
    KIND(REFUSED, AVX512_4VNNIW),
    KIND(REFUSED, AVX512_4FMAPS),
    KIND(REFUSED, SHA512),
    KIND(REFUSED, SM3),
    KIND(REFUSED, SM4),
    KIND(REFUSED, RAO_INT),
    KIND(REFUSED, CMPCCXADD),
    KIND(REFUSED, AVX_IFMA),
    KIND(REFUSED, 3DNOW),
    KIND(REFUSED, 3DNOWEXT),
    KIND(REFUSED, XOP),
    KIND(REFUSED, FMA4),
    KIND(REFUSED, TBM),
};

struct feature_need {
    uint16_t feature, needs;
};

#define NEED(feature, needs)                                                                       \
    {                                                                                              \
        CPU_FEATURE_##feature, CPU_FEATURE_##needs                                                 \
    }

static const struct feature_need feature_needs[] = {
    NEED(SSE, FXSR),
    NEED(SSE2, SSE),
    NEED(SSE3, SSE2),
    NEED(SSSE3, SSE3),
    NEED(SSE4_1, SSSE3),
    NEED(SSE4_2, SSE4_1),
    NEED(SSE4A, SSE3),
    NEED(MISALIGNSSE, SSE),
    NEED(MMXEXT, MMX),
    NEED(PCLMULQDQ, SSE2),
    NEED(AES, SSE2),
    NEED(SHA_NI, SSE2),
    NEED(GFNI, SSE2),
    NEED(CX16, CX8),
    NEED(FXSR, FPU),
    NEED(MMX, FPU),
    NEED(XSAVE, FXSR),
    NEED(XSAVEOPT, XSAVE),
    NEED(XSAVEC, XSAVE),
    NEED(XGETBV1, XSAVE),
    NEED(XSAVES, XSAVEC),
    NEED(XSAVEERPTR, FXSR),
    NEED(AVX, XSAVE),
    NEED(AVX, SSE4_2),
    NEED(AVX2, AVX),
    NEED(FMA, AVX),
    NEED(F16C, AVX),
    NEED(VAES, AVX),
    NEED(VAES, AES),
    NEED(VPCLMULQDQ, AVX),
    NEED(VPCLMULQDQ, PCLMULQDQ),
    NEED(AVX_VNNI, AVX2),
    NEED(AVX512F, AVX2),
    NEED(AVX512F, FMA),
    NEED(AVX512F, F16C),
    NEED(AVX512DQ, AVX512F),
    NEED(AVX512CD, AVX512F),
    NEED(AVX512BW, AVX512F),
    NEED(AVX512VL, AVX512F),
    NEED(AVX512IFMA, AVX512F),
    NEED(AVX512_VNNI, AVX512F),
    NEED(AVX512_VPOPCNTDQ, AVX512F),
    NEED(AVX512_VP2INTERSECT, AVX512F),
    NEED(AVX512VBMI, AVX512BW),
    NEED(AVX512_VBMI2, AVX512BW),
    NEED(AVX512_BITALG, AVX512BW),
    NEED(AVX512_BF16, AVX512BW),
    NEED(AVX512_FP16, AVX512BW),
    NEED(AVX512_FP16, AVX512DQ),
    NEED(AVX512_FP16, AVX512VL),
    NEED(LM, PAE),
    NEED(LM, MSR),
    NEED(LM, SYSCALL),
    NEED(LM, SSE2),
    NEED(SYSCALL, MSR),
    NEED(SEP, MSR),
    NEED(NX, PAE),
    NEED(NX, MSR),
    NEED(PDPE1GB, LM),
    NEED(PCID, LM),
    NEED(FSGSBASE, LM),
    NEED(LAHF_LM, LM),
    NEED(PSE36, PSE),
    NEED(MTRR, MSR),
    NEED(MCA, MSR),
    NEED(MCA, MCE),
    NEED(PAT, MSR),
    NEED(APIC, MSR),
    NEED(X2APIC, APIC),
    NEED(ARAT, APIC),
    NEED(TSC_DEADLINE, APIC),
    NEED(TSC_DEADLINE, TSC),
    NEED(TSC_ADJUST, TSC),
    NEED(TSC_ADJUST, MSR),
    NEED(RDTSCP, TSC),
    NEED(INVTSC, TSC),
    NEED(CLFLUSHOPT, CLFLUSH),
    NEED(CLWB, CLFLUSH),
    NEED(ARCH_CAPABILITIES, MSR),
    NEED(SPEC_CTRL, MSR),
    NEED(INTEL_STIBP, MSR),
    NEED(SSBD, MSR),
    NEED(IBPB, MSR),
    NEED(IBRS, MSR),
    NEED(STIBP, MSR),
    NEED(STIBP_ALWAYS_ON, STIBP),
    NEED(AMD_SSBD, MSR),
    NEED(FLUSH_L1D, MSR),
    NEED(KVM_STEAL_TIME, HYPERVISOR),
    NEED(KVM_STEAL_TIME, MSR),
    NEED(KVM_PV_EOI, HYPERVISOR),
    NEED(KVM_PV_EOI, APIC),
    NEED(KVM_PV_UNHALT, HYPERVISOR),
    NEED(KVM_PV_UNHALT, APIC),
    NEED(KVM_PV_IPI, HYPERVISOR),
    NEED(KVM_PV_IPI, APIC),
    NEED(KVM_POLL_CONTROL, HYPERVISOR),
    NEED(KVM_POLL_CONTROL, MSR),
    NEED(KVM_PV_SCHED_YIELD, HYPERVISOR),
    NEED(KVM_PV_SCHED_YIELD, APIC),
};

#define F(id) CPU_FEATURE_##id

/* Each level adds to the one before. What is emulated goes where such processors had it. */
static const uint16_t level_base[] = {
    F(FPU), F(VME),    F(DE),           F(PSE),  F(TSC),        F(MSR),
    F(PAE), F(MCE),    F(CX8),          F(APIC), F(SEP),        F(MTRR),
    F(PGE), F(MCA),    F(CMOV),         F(PAT),  F(PSE36),      F(CLFLUSH),
    F(MMX), F(FXSR),   F(SSE),          F(SSE2), F(SYSCALL),    F(NX),
    F(LM),  F(X2APIC), F(TSC_DEADLINE), F(ARAT), F(TSC_ADJUST), F(HYPERVISOR),
};
static const uint16_t level_v2[] = {
    F(CX16), F(LAHF_LM), F(POPCNT), F(SSE3), F(SSSE3), F(SSE4_1), F(SSE4_2), F(RDTSCP), F(PDPE1GB),
};
static const uint16_t level_v3[] = {
    F(AVX),   F(AVX2), F(BMI1), F(BMI2),    F(F16C), F(FMA),  F(ABM),      F(MOVBE),
    F(XSAVE), F(PCID), F(SMEP), F(INVPCID), F(UMIP), F(SMAP), F(FSGSBASE),
};
static const uint16_t level_v4[] = {
    F(AVX512F),  F(AVX512BW), F(AVX512CD), F(AVX512DQ),
    F(AVX512VL), F(XSAVEOPT), F(XSAVEC),   F(XGETBV1),
};

static const struct model_level {
    const char *name;
    const char *brand;
    const uint16_t *features;
    unsigned count;
} model_levels[] = {
    {"base", "doppel x86-64", level_base, ARRAY_SIZE(level_base)},
    {"x86-64-v2", "doppel x86-64-v2", level_v2, ARRAY_SIZE(level_v2)},
    {"x86-64-v3", "doppel x86-64-v3", level_v3, ARRAY_SIZE(level_v3)},
    {"x86-64-v4", "doppel x86-64-v4", level_v4, ARRAY_SIZE(level_v4)},
};

/* What a machine has rather than its processor: every level, where the engines can do it. */
static const uint16_t paravirtual[] = {
    F(KVM_STEAL_TIME), F(KVM_PV_EOI),       F(KVM_PV_UNHALT),
    F(KVM_PV_IPI),     F(KVM_POLL_CONTROL), F(KVM_PV_SCHED_YIELD),
};

/*
 * What software may rely on where doppel's own engines execute the guest: its code never runs
 * with another address space's memory mapped as its own, so rogue loads, L1TF at VM entry, MDS,
 * TAA and the page-size machine check do not exist.
 */
#define ARCH_CAPABILITIES (BIT(0) | BIT(3) | BIT(5) | BIT(6) | BIT(8))

#define MODEL_NAMES "host, base, x86-64-v2, x86-64-v3, x86-64-v4"

/* Names that other programs use for the same bits. */
static const struct {
    const char *name;
    uint16_t feature;
} feature_aliases[] = {
    {"sse3", F(SSE3)},
    {"lzcnt", F(ABM)},
    {"sha", F(SHA_NI)},
    {"constant_tsc", F(INVTSC)},
    {"nonstop_tsc", F(INVTSC)},
    {"tsc_deadline", F(TSC_DEADLINE)},
    {"osxsave", F(XSAVE)},
    {"avx512_ifma", F(AVX512IFMA)},
    {"avx512_vbmi", F(AVX512VBMI)},
    {"cmpxchg16b", F(CX16)},
    {"cmpxchg8b", F(CX8)},
    {"pclmul", F(PCLMULQDQ)},
};

struct cpuid_regs model_host_leaf(const struct model_host *host, uint32_t leaf, uint32_t subleaf)
{
    static const struct cpuid_regs none;

    if (leaf > host->cpuid(host->ctx, leaf & 0x80000000, 0).eax)
        return none;
    return host->cpuid(host->ctx, leaf, subleaf);
}

bool model_host_is_amd(const struct model_host *host)
{
    uint32_t ebx = host->cpuid(host->ctx, 0, 0).ebx;

    return ebx == signature_AMD_ebx || ebx == 0x6f677948; /* "Auth", "Hygo" */
}

/* Of the components that `feature` keeps state in: does the host's system save them? */
static bool host_enables_state(const struct model_host *host, enum cpu_feature feature)
{
    uint64_t needed = 0;

    if (feature == CPU_FEATURE_XSAVE)
        needed = XCR0_X87 | XCR0_SSE;
    else if (feature == CPU_FEATURE_AVX)
        needed = XCR0_X87 | XCR0_SSE | XCR0_AVX;
    else if (feature == CPU_FEATURE_AVX512F)
        needed = XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_AVX512;
    return (host->xcr0 & needed) == needed;
}

static bool host_has(const struct model_host *host, enum cpu_feature feature)
{
    const struct model_feature *f = &model_features[feature];
    struct cpuid_regs regs;

    if (f->leaf == 7 && f->subleaf > model_host_leaf(host, 7, 0).eax)
        return false;
    regs = model_host_leaf(host, f->leaf, f->subleaf);
    return (cpuid_reg_of(&regs, f->reg) >> f->bit & 1) && host_enables_state(host, feature);
}

/* Does the limit forbid it? What follows from the number of CPUs is nobody's to offer. */
static bool limit_forbids(const struct model_host *host, enum cpu_feature feature)
{
    return host->limit != NULL && feature_kinds[feature] != KIND_COMPUTED &&
           !(host->limit->feature_words[feature / 64] >> (feature % 64) & 1);
}

/* Not looking at what the feature needs. */
static bool feature_is_possible(const struct model_host *host, enum cpu_feature feature)
{
    if (limit_forbids(host, feature))
        return false;
    switch (feature_kinds[feature]) {
    case KIND_HOST:
        return host_has(host, feature);
    case KIND_EMULATED:
        return true;
    case KIND_INTEL:
        return !model_host_is_amd(host);
    case KIND_AMD:
        return model_host_is_amd(host);
    default:
        return false;
    }
}

static void model_remove_feature(struct cpu_model *m, enum cpu_feature feature)
{
    model_set(m, feature, false);
    for (unsigned i = 0; i < ARRAY_SIZE(feature_needs); i++)
        if (feature_needs[i].needs == feature && cpu_model_has(m, feature_needs[i].feature))
            model_remove_feature(m, feature_needs[i].feature);
}

/* Adds `feature` and all it needs; the first that is not possible is an error. */
static int model_add_feature(struct cpu_model *m, const struct model_host *host,
                             enum cpu_feature feature, struct err *e)
{
    const char *name = model_features[feature].name;

    if (cpu_model_has(m, feature))
        return 0;
    if (feature_kinds[feature] == KIND_REFUSED)
        return err_set(e, 0, "doppel does not implement CPU feature '%s'", name);
    if (limit_forbids(host, feature))
        return err_set(e, 0, "%s does not offer CPU feature '%s'", host->limit->who, name);
    if (!feature_is_possible(host, feature))
        return err_set(e, 0, "the host CPU does not have feature '%s'", name);
    for (unsigned i = 0; i < ARRAY_SIZE(feature_needs); i++) {
        enum cpu_feature needed = feature_needs[i].needs;
        if (feature_needs[i].feature == feature && model_add_feature(m, host, needed, e) != 0)
            return err_prefix(e, "feature '%s' needs '%s'", name, model_features[needed].name);
    }
    model_set(m, feature, true);
    return 0;
}

/* Everything possible; what lacks something it needs is left out. */
static void model_take_host(struct cpu_model *m, const struct model_host *host)
{
    for (unsigned i = 0; i < CPU_FEATURE_COUNT; i++)
        model_set(m, i, feature_is_possible(host, i));
    for (unsigned i = 0; i < ARRAY_SIZE(feature_needs); i++)
        if (!cpu_model_has(m, feature_needs[i].needs))
            model_remove_feature(m, feature_needs[i].feature);
}

/* The best level the host can do, for error messages. */
static const char *best_level(const struct model_host *host)
{
    const char *best = "none";

    for (unsigned i = 0; i < ARRAY_SIZE(model_levels); i++) {
        for (unsigned k = 0; k < model_levels[i].count; k++)
            if (!feature_is_possible(host, model_levels[i].features[k]))
                return best;
        best = model_levels[i].name;
    }
    return best;
}

static int model_take_level(struct cpu_model *m, const struct model_host *host, unsigned level,
                            struct err *e)
{
    for (unsigned i = 0; i <= level; i++)
        for (unsigned k = 0; k < model_levels[i].count; k++)
            if (model_add_feature(m, host, model_levels[i].features[k], e) != 0)
                return err_prefix(e, "CPU model '%s' (this host can do 'host' and up to '%s')",
                                  model_levels[level].name, best_level(host));
    for (unsigned i = 0; i < ARRAY_SIZE(paravirtual); i++)
        model_set(m, paravirtual[i], feature_is_possible(host, paravirtual[i]));
    return 0;
}

/* Equal, with '-' and '.' taken for '_'. */
static bool name_matches(const char *name, const char *text, size_t length)
{
    if (strlen(name) != length)
        return false;
    for (size_t i = 0; i < length; i++) {
        char c = text[i] == '-' || text[i] == '.' ? '_' : text[i];
        if (c != name[i])
            return false;
    }
    return true;
}

/* Index of the feature, or -1. */
static int feature_find(const char *text, size_t length)
{
    for (unsigned i = 0; i < CPU_FEATURE_COUNT; i++)
        if (name_matches(model_features[i].name, text, length))
            return (int)i;
    for (unsigned i = 0; i < ARRAY_SIZE(feature_aliases); i++)
        if (name_matches(feature_aliases[i].name, text, length))
            return feature_aliases[i].feature;
    return -1;
}

/* One "+feature" or "-feature". */
static int model_apply_change(struct cpu_model *m, const struct model_host *host, const char *text,
                              size_t length, struct err *e)
{
    int feature;

    if (length < 2 || (text[0] != '+' && text[0] != '-'))
        return err_set(e, 0, "CPU feature '%.*s' must begin with + or -", (int)length, text);
    feature = feature_find(text + 1, length - 1);
    if (feature < 0)
        return err_set(e, 0, "CPU feature '%.*s' is not known; --cpu-model help lists the names",
                       (int)(length - 1), text + 1);
    if (feature_kinds[feature] == KIND_COMPUTED)
        return err_set(e, 0, "CPU feature '%s' follows from the number of CPUs",
                       model_features[feature].name);
    if (text[0] == '+')
        return model_add_feature(m, host, (enum cpu_feature)feature, e);
    model_remove_feature(m, (enum cpu_feature)feature);
    return 0;
}

/* The model's name, without its changes; *brand is NULL for the host's. */
static int model_apply_name(struct cpu_model *m, const struct model_host *host, const char *text,
                            size_t length, const char **brand, struct err *e)
{
    *brand = NULL;
    if (length == 4 && memcmp(text, "host", 4) == 0) {
        model_take_host(m, host);
        return 0;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(model_levels); i++)
        if (strlen(model_levels[i].name) == length &&
            memcmp(model_levels[i].name, text, length) == 0) {
            *brand = model_levels[i].brand;
            return model_take_level(m, host, i, e);
        }
    return err_set(e, 0, "CPU model '%.*s' is not known; there are " MODEL_NAMES, (int)length,
                   text);
}

int model_create_on(const struct model_host *host, const char *spec, unsigned cpu_count,
                    uint64_t tsc_hz, struct cpu_model *out, struct err *e)
{
    size_t length = strcspn(spec, ",");
    const char *brand;
    int ret;

    memset(out, 0, sizeof(*out));
    snprintf(out->name, sizeof(out->name), "%s", spec);
    out->cpu_count = cpu_count;
    out->tsc_hz = tsc_hz;
    out->mxcsr_mask = host->mxcsr_mask;

    ret = model_apply_name(out, host, spec, length, &brand, e);
    while (ret == 0 && spec[length] == ',') {
        spec += length + 1;
        length = strcspn(spec, ",");
        ret = model_apply_change(out, host, spec, length, e);
    }
    if (ret != 0)
        return ret;

    model_set(out, CPU_FEATURE_HT, cpu_count > 1);
    model_set(out, CPU_FEATURE_CMP_LEGACY, cpu_count > 1 && model_host_is_amd(host));
    out->is_amd = model_host_is_amd(host);
    out->arch_capabilities = ARCH_CAPABILITIES;
    if (host->limit != NULL)
        out->arch_capabilities &= host->limit->arch_capabilities;
    out->is_tsc_hosts = host->limit != NULL && host->limit->is_tsc_hosts;
    model_fill_leaves(out, host, brand);
    return 0;
}

void cpu_model_limit_init(struct cpu_model_limit *limit)
{
    memset(limit->feature_words, 0xff, sizeof(limit->feature_words));
    limit->phys_bits = 52;
    limit->arch_capabilities = ~UINT64_C(0);
    limit->is_tsc_hosts = false;
    limit->who = "";
}

void cpu_model_limit_features(struct cpu_model_limit *limit, const char *who,
                              struct cpuid_regs (*cpuid)(const void *ctx, uint32_t leaf,
                                                         uint32_t subleaf),
                              const void *ctx, bool (*is_kept)(enum cpu_feature feature))
{
    limit->who = who;
    for (unsigned i = 0; i < CPU_FEATURE_COUNT; i++) {
        const struct model_feature *f = &model_features[i];
        struct cpuid_regs regs = cpuid(ctx, f->leaf, f->subleaf);
        if (!(cpuid_reg_of(&regs, f->reg) >> f->bit & 1) && !is_kept((enum cpu_feature)i))
            cpu_model_limit_remove(limit, (enum cpu_feature)i);
    }
}

int cpu_model_check_limit(const struct cpu_model *model, const struct cpu_model_limit *limit,
                          struct err *e)
{
    char list[160] = "";
    size_t used = 0;

    for (unsigned i = 0; i < CPU_FEATURE_COUNT; i++) {
        if (feature_kinds[i] == KIND_COMPUTED || !cpu_model_has(model, (enum cpu_feature)i) ||
            (limit->feature_words[i / 64] >> (i % 64) & 1))
            continue;
        if (used < sizeof(list))
            used += (size_t)snprintf(list + used, sizeof(list) - used, "%s%s", used > 0 ? ", " : "",
                                     model_features[i].name);
    }
    if (used > 0)
        return err_set(e, 0, "%s does not offer what this machine's CPU has: %s%s", limit->who,
                       list, used < sizeof(list) ? "" : " ...");
    if (model->phys_bits > limit->phys_bits)
        return err_set(e, 0, "%s offers %u bits of physical address, this machine's CPU has %u",
                       limit->who, limit->phys_bits, model->phys_bits);
    if (cpu_model_has(model, CPU_FEATURE_ARCH_CAPABILITIES) &&
        (model->arch_capabilities & ~limit->arch_capabilities) != 0)
        return err_set(e, 0,
                       "%s does not make the promises of IA32_ARCH_CAPABILITIES that this "
                       "machine's CPU makes (0x%llx)",
                       limit->who,
                       (unsigned long long)(model->arch_capabilities & ~limit->arch_capabilities));
    return 0;
}

/*
 * Each leaf is asked for many times, and in a virtual machine CPUID is a trap of 2 to 20
 * microseconds: ask the processor once.
 */
struct native_leaves {
    struct {
        uint32_t leaf, subleaf;
        struct cpuid_regs regs;
    } known[128];
    unsigned count;
};

static struct cpuid_regs native_cpuid(const void *ctx, uint32_t leaf, uint32_t subleaf)
{
    struct native_leaves *leaves = *(struct native_leaves *const *)ctx;
    struct cpuid_regs r;

    for (unsigned i = 0; i < leaves->count; i++)
        if (leaves->known[i].leaf == leaf && leaves->known[i].subleaf == subleaf)
            return leaves->known[i].regs;
    __cpuid_count(leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
    if (leaves->count < ARRAY_SIZE(leaves->known)) {
        leaves->known[leaves->count].leaf = leaf;
        leaves->known[leaves->count].subleaf = subleaf;
        leaves->known[leaves->count++].regs = r;
    }
    return r;
}

static uint64_t native_xcr0(void)
{
    uint32_t lo, hi, ecx;

    if (!__get_cpuid(1, &lo, &lo, &ecx, &hi) || !(ecx & bit_OSXSAVE))
        return 0;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

/* A mask of 0 stands for the first processors' (SDM vol. 1, 11.6.6). */
static uint32_t native_mxcsr_mask(void)
{
    uint8_t image[512] __attribute__((aligned(16))) = {0};
    uint32_t mask;

    __asm__ volatile("fxsave %0" : "=m"(image));
    mask = load_le32(image + 28);
    return mask != 0 ? mask : 0xffbf;
}

int cpu_model_create(const char *spec, unsigned cpu_count, uint64_t tsc_hz, struct cpu_model *out,
                     struct err *e)
{
    return cpu_model_create_within(spec, cpu_count, tsc_hz, NULL, out, e);
}

int cpu_model_create_within(const char *spec, unsigned cpu_count, uint64_t tsc_hz,
                            const struct cpu_model_limit *limit, struct cpu_model *out,
                            struct err *e)
{
    struct native_leaves leaves = {.count = 0}, *cache = &leaves;
    const struct model_host host = {
        .cpuid = native_cpuid,
        .ctx = &cache,
        .xcr0 = native_xcr0(),
        .mxcsr_mask = native_mxcsr_mask(),
        .limit = limit,
    };

    return model_create_on(&host, spec, cpu_count, tsc_hz, out, e);
}

void cpu_model_list(void (*print)(void *ctx, const char *line), void *ctx)
{
    struct native_leaves leaves = {.count = 0}, *cache = &leaves;
    const struct model_host host = {.cpuid = native_cpuid, .ctx = &cache, .xcr0 = native_xcr0()};
    char line[96];

    print(ctx, "models:");
    print(ctx, "  host");
    for (unsigned i = 0; i < ARRAY_SIZE(model_levels); i++) {
        snprintf(line, sizeof(line), "  %s", model_levels[i].name);
        print(ctx, line);
    }
    print(ctx, "features that models on this host can have:");
    for (unsigned i = 0; i < CPU_FEATURE_COUNT; i++) {
        if (!feature_is_possible(&host, i))
            continue;
        snprintf(line, sizeof(line), "  %s", model_features[i].name);
        print(ctx, line);
    }
    print(ctx, "known features that this host or doppel lacks:");
    for (unsigned i = 0; i < CPU_FEATURE_COUNT; i++) {
        if (feature_is_possible(&host, i) || feature_kinds[i] == KIND_COMPUTED)
            continue;
        snprintf(line, sizeof(line), "  %s (%s)", model_features[i].name,
                 feature_kinds[i] == KIND_REFUSED ? "not implemented" : "host CPU lacks it");
        print(ctx, line);
    }
}
