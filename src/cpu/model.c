/*
 * model.c - the processor that the guest sees
 *
 * Invariant: a feature bit is set only when the host has it and doppel implements what belongs to
 * it. Leaves are made once from the feature words; CPUID then only fills in what is dynamic.
 * Spec: Intel SDM vol. 2 (CPUID), AMD APM vol. 3 appendix E, Linux Documentation/virt/kvm/x86.
 */
#include "cpu/model.h"

#include <cpuid.h>
#include <stdio.h>
#include <string.h>

#include "cpu/state.h"

struct feature_place {
    const char *name;
    uint32_t leaf, subleaf;
    uint8_t reg, bit;
};

static const struct feature_place places[CPU_FEATURE_COUNT] = {
#define X(id, name, leaf, subleaf, reg, bit) {name, leaf, subleaf, reg, bit},
#include "cpu/model_features.h"
#undef X
};

/* What doppel does not implement, or must not offer, whatever the host has. */
static const uint16_t refused[] = {
    CPU_FEATURE_MONITOR, CPU_FEATURE_HLE, CPU_FEATURE_RTM, CPU_FEATURE_MPX, CPU_FEATURE_PKU,
    CPU_FEATURE_LA57, CPU_FEATURE_AVX512_FP16, CPU_FEATURE_SS, CPU_FEATURE_SERIALIZE,
    CPU_FEATURE_SPEC_CTRL, CPU_FEATURE_INTEL_STIBP, CPU_FEATURE_SSBD, CPU_FEATURE_IBPB,
    CPU_FEATURE_IBRS, CPU_FEATURE_STIBP, CPU_FEATURE_AMD_SSBD, CPU_FEATURE_OSVW, CPU_FEATURE_FXSR_OPT,
    CPU_FEATURE_CR8_LEGACY, CPU_FEATURE_XSAVEERPTR, CPU_FEATURE_WBNOINVD, CPU_FEATURE_HT,
};

/* What doppel implements itself, whatever the host offers. */
static const uint16_t implemented[] = {
    CPU_FEATURE_VME, CPU_FEATURE_DE, CPU_FEATURE_PSE, CPU_FEATURE_TSC, CPU_FEATURE_MSR,
    CPU_FEATURE_PAE, CPU_FEATURE_MCE, CPU_FEATURE_MCA, CPU_FEATURE_APIC, CPU_FEATURE_SEP,
    CPU_FEATURE_MTRR, CPU_FEATURE_PGE, CPU_FEATURE_PAT, CPU_FEATURE_PSE36, CPU_FEATURE_PCID,
    CPU_FEATURE_X2APIC, CPU_FEATURE_TSC_DEADLINE_TIMER, CPU_FEATURE_HYPERVISOR, CPU_FEATURE_ARAT,
    CPU_FEATURE_TSC_ADJUST, CPU_FEATURE_FSGSBASE, CPU_FEATURE_SMEP, CPU_FEATURE_SMAP,
    CPU_FEATURE_UMIP, CPU_FEATURE_INVPCID, CPU_FEATURE_RDPID, CPU_FEATURE_SYSCALL, CPU_FEATURE_NX,
    CPU_FEATURE_PDPE1GB, CPU_FEATURE_RDTSCP, CPU_FEATURE_LM, CPU_FEATURE_INVARIANT_TSC,
};

/* needed -> what goes when it goes; applied until nothing changes. */
static const uint16_t depends[][2] = {
    {CPU_FEATURE_XSAVE, CPU_FEATURE_AVX}, {CPU_FEATURE_XSAVE, CPU_FEATURE_XSAVEOPT},
    {CPU_FEATURE_XSAVE, CPU_FEATURE_XSAVEC}, {CPU_FEATURE_XSAVE, CPU_FEATURE_XGETBV1},
    {CPU_FEATURE_XSAVE, CPU_FEATURE_XSAVES}, {CPU_FEATURE_AVX, CPU_FEATURE_AVX2},
    {CPU_FEATURE_AVX, CPU_FEATURE_FMA}, {CPU_FEATURE_AVX, CPU_FEATURE_F16C},
    {CPU_FEATURE_AVX, CPU_FEATURE_VAES}, {CPU_FEATURE_AVX, CPU_FEATURE_VPCLMULQDQ},
    {CPU_FEATURE_AVX2, CPU_FEATURE_AVX512F}, {CPU_FEATURE_AVX2, CPU_FEATURE_AVX_VNNI},
    {CPU_FEATURE_AVX512F, CPU_FEATURE_AVX512DQ}, {CPU_FEATURE_AVX512F, CPU_FEATURE_AVX512IFMA},
    {CPU_FEATURE_AVX512F, CPU_FEATURE_AVX512CD}, {CPU_FEATURE_AVX512F, CPU_FEATURE_AVX512BW},
    {CPU_FEATURE_AVX512F, CPU_FEATURE_AVX512VL}, {CPU_FEATURE_AVX512F, CPU_FEATURE_AVX512VBMI},
    {CPU_FEATURE_AVX512F, CPU_FEATURE_AVX512_VBMI2}, {CPU_FEATURE_AVX512F, CPU_FEATURE_AVX512_VNNI},
    {CPU_FEATURE_AVX512F, CPU_FEATURE_AVX512_BITALG},
    {CPU_FEATURE_AVX512F, CPU_FEATURE_AVX512_VPOPCNTDQ},
    {CPU_FEATURE_AVX512F, CPU_FEATURE_AVX512_VP2INTERSECT},
    {CPU_FEATURE_AVX512F, CPU_FEATURE_AVX512_BF16}, {CPU_FEATURE_SSE, CPU_FEATURE_SSE2},
    {CPU_FEATURE_SSE2, CPU_FEATURE_SSE3}, {CPU_FEATURE_SSE3, CPU_FEATURE_SSSE3},
    {CPU_FEATURE_SSSE3, CPU_FEATURE_SSE4_1}, {CPU_FEATURE_SSE4_1, CPU_FEATURE_SSE4_2},
    {CPU_FEATURE_SSE4_2, CPU_FEATURE_AVX}, {CPU_FEATURE_SSE2, CPU_FEATURE_AES},
    {CPU_FEATURE_SSE2, CPU_FEATURE_PCLMULQDQ}, {CPU_FEATURE_SSE2, CPU_FEATURE_SHA_NI},
    {CPU_FEATURE_SSE2, CPU_FEATURE_GFNI}, {CPU_FEATURE_SSE, CPU_FEATURE_SSE4A},
    {CPU_FEATURE_PCID, CPU_FEATURE_INVPCID},
};

static void cpuid_host(uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    uint32_t max = __get_cpuid_max(leaf & 0x80000000u, NULL);
    memset(out, 0, 16);
    if (max >= leaf)
        __cpuid_count(leaf, subleaf, out[0], out[1], out[2], out[3]);
}

static void feature_set(struct cpu_model *m, unsigned f, bool on)
{
    uint64_t bit = UINT64_C(1) << (f % 64);
    if (on)
        m->feature_words[f / 64] |= bit;
    else
        m->feature_words[f / 64] &= ~bit;
}

static bool host_has(unsigned f)
{
    uint32_t r[4];
    cpuid_host(places[f].leaf, places[f].subleaf, r);
    return r[places[f].reg] >> places[f].bit & 1;
}

static bool is_refused(unsigned f)
{
    for (size_t i = 0; i < ARRAY_SIZE(refused); i++)
        if (refused[i] == f)
            return true;
    return f == CPU_FEATURE_OSXSAVE || (f == CPU_FEATURE_XSAVE && !__builtin_cpu_supports("avx") && 0);
}

static bool is_available(unsigned f)
{
    if (is_refused(f))
        return false;
    for (size_t i = 0; i < ARRAY_SIZE(implemented); i++)
        if (implemented[i] == f)
            return true;
    return host_has(f);
}

static void close_dependencies(struct cpu_model *m)
{
    bool has_changed = true;
    while (has_changed) {
        has_changed = false;
        for (size_t i = 0; i < ARRAY_SIZE(depends); i++) {
            if (!cpu_model_has(m, depends[i][0]) && cpu_model_has(m, depends[i][1])) {
                feature_set(m, depends[i][1], false);
                has_changed = true;
            }
        }
    }
}

/* Levels of the psABI, each with all before it. */
static const uint16_t level1[] = {
    CPU_FEATURE_FPU, CPU_FEATURE_VME, CPU_FEATURE_DE, CPU_FEATURE_PSE, CPU_FEATURE_TSC,
    CPU_FEATURE_MSR, CPU_FEATURE_PAE, CPU_FEATURE_MCE, CPU_FEATURE_CX8, CPU_FEATURE_APIC,
    CPU_FEATURE_SEP, CPU_FEATURE_MTRR, CPU_FEATURE_PGE, CPU_FEATURE_MCA, CPU_FEATURE_CMOV,
    CPU_FEATURE_PAT, CPU_FEATURE_PSE36, CPU_FEATURE_CLFLUSH, CPU_FEATURE_MMX, CPU_FEATURE_FXSR,
    CPU_FEATURE_SSE, CPU_FEATURE_SSE2, CPU_FEATURE_HYPERVISOR, CPU_FEATURE_X2APIC,
    CPU_FEATURE_TSC_DEADLINE_TIMER, CPU_FEATURE_ARAT, CPU_FEATURE_SYSCALL, CPU_FEATURE_NX,
    CPU_FEATURE_LM, CPU_FEATURE_INVARIANT_TSC, CPU_FEATURE_TSC_ADJUST, CPU_FEATURE_RDTSCP,
};
static const uint16_t level2[] = {
    CPU_FEATURE_CX16, CPU_FEATURE_LAHF_LM, CPU_FEATURE_POPCNT, CPU_FEATURE_SSE3,
    CPU_FEATURE_SSSE3, CPU_FEATURE_SSE4_1, CPU_FEATURE_SSE4_2,
};
static const uint16_t level3[] = {
    CPU_FEATURE_AVX, CPU_FEATURE_AVX2, CPU_FEATURE_BMI1, CPU_FEATURE_BMI2, CPU_FEATURE_F16C,
    CPU_FEATURE_FMA, CPU_FEATURE_ABM, CPU_FEATURE_MOVBE, CPU_FEATURE_XSAVE, CPU_FEATURE_XSAVEOPT,
    CPU_FEATURE_PCID, CPU_FEATURE_INVPCID, CPU_FEATURE_FSGSBASE, CPU_FEATURE_SMEP,
    CPU_FEATURE_PDPE1GB,
};
static const uint16_t level4[] = {
    CPU_FEATURE_AVX512F, CPU_FEATURE_AVX512BW, CPU_FEATURE_AVX512CD, CPU_FEATURE_AVX512DQ,
    CPU_FEATURE_AVX512VL, CPU_FEATURE_SMAP, CPU_FEATURE_UMIP, CPU_FEATURE_ADX, CPU_FEATURE_RDRAND,
};

static const struct {
    const char *name;
    unsigned level;
} named_models[] = {{"host", 0}, {"base", 1}, {"x86-64-v2", 2}, {"x86-64-v3", 3}, {"x86-64-v4", 4}};

static int add_level(struct cpu_model *m, const uint16_t *list, size_t n, const char *name,
                     struct err *e)
{
    for (size_t i = 0; i < n; i++) {
        if (!is_available(list[i]))
            return err_set(e, 0,
                           "CPU model '%s' needs '%s', which this host's CPU does not have; try "
                           "--cpu-model host",
                           name, places[list[i]].name);
        feature_set(m, list[i], true);
    }
    return 0;
}

static int choose_base(struct cpu_model *m, const char *name, size_t len, struct err *e)
{
    static const struct {
        const uint16_t *list;
        size_t n;
    } levels[] = {{level1, ARRAY_SIZE(level1)}, {level2, ARRAY_SIZE(level2)},
                  {level3, ARRAY_SIZE(level3)}, {level4, ARRAY_SIZE(level4)}};
    for (size_t i = 0; i < ARRAY_SIZE(named_models); i++) {
        if (strlen(named_models[i].name) != len || strncmp(named_models[i].name, name, len) != 0)
            continue;
        snprintf(m->name, sizeof(m->name), "%s", named_models[i].name);
        if (named_models[i].level == 0) {
            for (unsigned f = 0; f < CPU_FEATURE_COUNT; f++)
                feature_set(m, f, is_available(f));
            return 0;
        }
        for (unsigned l = 0; l < named_models[i].level; l++) {
            int r = add_level(m, levels[l].list, levels[l].n, named_models[i].name, e);
            if (r != 0)
                return r;
        }
        return 0;
    }
    return err_set(e, 0, "no CPU model '%.*s' (see --cpu-model help)", (int)len, name);
}

static int modify(struct cpu_model *m, const char *item, size_t len, struct err *e)
{
    bool on = item[0] == '+';
    if (len < 2 || (item[0] != '+' && item[0] != '-'))
        return err_set(e, 0, "CPU model: '%.*s' is neither +FEATURE nor -FEATURE", (int)len, item);
    for (unsigned f = 0; f < CPU_FEATURE_COUNT; f++) {
        if (strlen(places[f].name) != len - 1 || strncmp(places[f].name, item + 1, len - 1) != 0)
            continue;
        if (on && is_refused(f))
            return err_set(e, 0, "CPU model: doppel does not implement '%s'", places[f].name);
        if (on && !is_available(f))
            return err_set(e, 0, "CPU model: this host's CPU does not have '%s'", places[f].name);
        feature_set(m, f, on);
        return 0;
    }
    return err_set(e, 0, "CPU model: no feature '%.*s' (see --cpu-model help)", (int)len - 1, item + 1);
}

static struct cpu_model_leaf *leaf_add(struct cpu_model *m, uint32_t leaf, uint32_t subleaf,
                                       bool is_sub)
{
    static struct cpu_model_leaf overflow;
    if (m->leaf_count == CPU_MODEL_LEAVES_MAX)
        return &overflow;
    struct cpu_model_leaf *l = &m->leaves[m->leaf_count++];
    *l = (struct cpu_model_leaf){.leaf = leaf, .subleaf = subleaf, .is_subleaf_significant = is_sub};
    return l;
}

static uint32_t feature_register(const struct cpu_model *m, uint32_t leaf, uint32_t subleaf,
                                 unsigned reg)
{
    uint32_t v = 0;
    for (unsigned f = 0; f < CPU_FEATURE_COUNT; f++)
        if (places[f].leaf == leaf && places[f].subleaf == subleaf && places[f].reg == reg &&
            cpu_model_has(m, f))
            v |= UINT32_C(1) << places[f].bit;
    return v;
}

static void leaf_add_features(struct cpu_model *m, uint32_t leaf, uint32_t subleaf, bool is_sub,
                              struct cpuid_regs base)
{
    struct cpu_model_leaf *l = leaf_add(m, leaf, subleaf, is_sub);
    l->regs.eax = base.eax | feature_register(m, leaf, subleaf, 0);
    l->regs.ebx = base.ebx | feature_register(m, leaf, subleaf, 1);
    l->regs.ecx = base.ecx | feature_register(m, leaf, subleaf, 2);
    l->regs.edx = base.edx | feature_register(m, leaf, subleaf, 3);
}

static void leaf_add_host(struct cpu_model *m, uint32_t leaf, uint32_t subleaf, bool is_sub)
{
    uint32_t r[4];
    cpuid_host(leaf, subleaf, r);
    leaf_add(m, leaf, subleaf, is_sub)->regs = (struct cpuid_regs){r[0], r[1], r[2], r[3]};
}

static unsigned log2_up(unsigned n)
{
    unsigned bits_count = 0;
    while ((1u << bits_count) < n)
        bits_count++;
    return bits_count;
}

/* Sizes and offsets of the XSAVE components, from the host's own leaf 0DH. */
static void make_xsave(struct cpu_model *m)
{
    m->xcr0_valid = 0;
    m->xsave_size = 576;
    if (!cpu_model_has(m, CPU_FEATURE_XSAVE))
        return;
    m->xcr0_valid = XCR0_X87 | XCR0_SSE;
    if (cpu_model_has(m, CPU_FEATURE_AVX))
        m->xcr0_valid |= XCR0_AVX;
    if (cpu_model_has(m, CPU_FEATURE_AVX512F))
        m->xcr0_valid |= XCR0_AVX512;
    for (unsigned i = 2; i < 16; i++) {
        uint32_t r[4];
        if (!(m->xcr0_valid >> i & 1))
            continue;
        cpuid_host(0xd, i, r);
        m->xsave_component_size[i] = r[0];
        m->xsave_offset[i] = r[1];
        if (r[0] + r[1] > m->xsave_size)
            m->xsave_size = r[0] + r[1];
    }
}

static void make_topology(struct cpu_model *m, bool is_amd)
{
    unsigned width = log2_up(m->cpu_count);
    if (is_amd) {
        leaf_add(m, 0x8000001e, 0, false);
    } else {
        static const uint32_t caches[][4] = {
            {0x121, 0x2c0003f, 0x3f, 0}, {0x122, 0x1c0003f, 0x3f, 0},
            {0x143, 0x3c0003f, 0x3ff, 0}, {0x163, 0x3c0003f, 0x3fff, 0}};
        for (unsigned i = 0; i < ARRAY_SIZE(caches); i++) {
            struct cpu_model_leaf *l = leaf_add(m, 4, i, true);
            l->regs = (struct cpuid_regs){caches[i][0], caches[i][1], caches[i][2], caches[i][3]};
            l->regs.eax |= ((1u << width) - 1) << 26;
            if (i == 3)
                l->regs.eax |= ((1u << width) - 1) << 14;
        }
    }
    /* one thread a core; the package holds all; EDX (x2APIC ID) is dynamic */
    leaf_add(m, 0xb, 0, true)->regs = (struct cpuid_regs){0, 1, 0x100, 0};
    leaf_add(m, 0xb, 1, true)->regs = (struct cpuid_regs){width, m->cpu_count, 0x201, 0};
}

static void make_standard_leaves(struct cpu_model *m, bool is_amd)
{
    uint32_t r[4];
    cpuid_host(0, 0, r);
    uint32_t max = cpu_model_has(m, CPU_FEATURE_XSAVE) ? 0xd : 0xb;
    if (!is_amd)
        max = 0x16;
    leaf_add(m, 0, 0, false)->regs = (struct cpuid_regs){max, r[1], r[2], r[3]};
    cpuid_host(1, 0, r);
    struct cpuid_regs base = {.eax = r[0], .ebx = 0x800 | (m->cpu_count & 0xff) << 16};
    if (m->cpu_count > 1)
        base.edx = 1u << 28;
    leaf_add_features(m, 1, 0, false, base);
    if (!is_amd)
        leaf_add(m, 2, 0, false)->regs = (struct cpuid_regs){0x00feff01, 0, 0, 0};
    leaf_add_features(m, 6, 0, false, (struct cpuid_regs){0});
    leaf_add_features(m, 7, 0, true, (struct cpuid_regs){.eax = 1});
    leaf_add_features(m, 7, 1, true, (struct cpuid_regs){0});
    make_topology(m, is_amd);
    if (cpu_model_has(m, CPU_FEATURE_XSAVE)) {
        leaf_add(m, 0xd, 0, true)->regs = (struct cpuid_regs){
            (uint32_t)m->xcr0_valid, 0, m->xsave_size, (uint32_t)(m->xcr0_valid >> 32)};
        leaf_add_features(m, 0xd, 1, true, (struct cpuid_regs){0});
        for (unsigned i = 2; i < 16; i++)
            if (m->xcr0_valid >> i & 1)
                leaf_add(m, 0xd, i, true)->regs = (struct cpuid_regs){
                    m->xsave_component_size[i], m->xsave_offset[i], i >= 5 && i <= 7 ? 0u : 0u, 0};
    }
    if (!is_amd) {
        /* TSC = crystal * EBX / EAX */
        leaf_add(m, 0x15, 0, false)->regs =
            (struct cpuid_regs){1000, (uint32_t)(m->tsc_hz / 1000), 1000000, 0};
        uint32_t mhz = (uint32_t)(m->tsc_hz / 1000000);
        leaf_add(m, 0x16, 0, false)->regs = (struct cpuid_regs){mhz, mhz, 100, 0};
    }
}

static void make_extended_leaves(struct cpu_model *m, bool is_amd)
{
    uint32_t r[4];
    cpuid_host(0x80000000u, 0, r);
    leaf_add(m, 0x80000000u, 0, false)->regs =
        (struct cpuid_regs){is_amd ? 0x8000001eu : 0x80000008u, r[1], r[2], r[3]};
    cpuid_host(0x80000001u, 0, r);
    leaf_add_features(m, 0x80000001u, 0, false,
                      (struct cpuid_regs){.eax = r[0], .ebx = r[1],
                                          .edx = is_amd ? feature_register(m, 1, 0, 3) & 0x0183f3ff
                                                        : 0});
    for (uint32_t leaf = 0x80000002u; leaf <= 0x80000006u; leaf++)
        leaf_add_host(m, leaf, 0, false);
    leaf_add_features(m, 0x80000007u, 0, false, (struct cpuid_regs){0});
    cpuid_host(0x80000008u, 0, r);
    m->phys_bits = r[0] & 0xff;
    if (m->phys_bits < 36 || m->phys_bits > 52)
        m->phys_bits = 40;
    m->linear_bits = 48;
    leaf_add_features(m, 0x80000008u, 0, false,
                      (struct cpuid_regs){.eax = m->phys_bits | 48 << 8,
                                          .ecx = is_amd ? (m->cpu_count - 1) |
                                                              log2_up(m->cpu_count) << 12
                                                        : 0});
    if (!is_amd)
        return;
    leaf_add_host(m, 0x80000019u, 0, false);
    leaf_add_host(m, 0x8000001au, 0, false);
    for (uint32_t i = 0; i < 4; i++) {
        cpuid_host(0x8000001du, i, r);
        r[0] = (r[0] & 0x3fff) | (i == 3 ? (m->cpu_count - 1) << 14 : 0);
        leaf_add(m, 0x8000001du, i, true)->regs = (struct cpuid_regs){r[0], r[1], r[2], r[3]};
    }
}

/* KVM's paravirtual clock: Linux then keeps time without calibrating. */
static void make_hypervisor_leaves(struct cpu_model *m)
{
    if (!cpu_model_has(m, CPU_FEATURE_HYPERVISOR))
        return;
    leaf_add(m, 0x40000000u, 0, false)->regs =
        (struct cpuid_regs){0x40000010u, 0x4b4d564b, 0x564b4d56, 0x4d};
    leaf_add(m, 0x40000001u, 0, false)->regs =
        (struct cpuid_regs){1u << 0 | 1u << 3 | 1u << 24, 0, 0, 0};
    leaf_add(m, 0x40000010u, 0, false)->regs =
        (struct cpuid_regs){(uint32_t)(m->tsc_hz / 1000), 1000000, 0, 0};
}

static uint32_t host_mxcsr_mask(void)
{
    struct {
        uint8_t bytes[512];
    } __attribute__((aligned(16))) image;
    memset(&image, 0, sizeof(image));
    __asm__ volatile("fxsave %0" : "=m"(image));
    uint32_t mask;
    memcpy(&mask, image.bytes + 28, 4);
    return mask != 0 ? mask : 0xffbf;
}

int cpu_model_create(const char *spec, unsigned cpu_count, uint64_t tsc_hz, struct cpu_model *out,
                     struct err *e)
{
    uint32_t r[4];
    memset(out, 0, sizeof(*out));
    out->cpu_count = cpu_count;
    out->tsc_hz = tsc_hz;
    if (spec == NULL)
        spec = "host";
    size_t len = strcspn(spec, ",");
    int ret = choose_base(out, spec, len, e);
    while (ret == 0 && spec[len] == ',') {
        spec += len + 1;
        len = strcspn(spec, ",");
        ret = modify(out, spec, len, e);
    }
    if (ret != 0)
        return ret;
    close_dependencies(out);
    cpuid_host(0, 0, r);
    bool is_amd = r[1] == 0x68747541 || r[1] == 0x6f677948;
    make_xsave(out);
    make_standard_leaves(out, is_amd);
    make_extended_leaves(out, is_amd);
    make_hypervisor_leaves(out);
    out->mxcsr_mask = host_mxcsr_mask();
    return 0;
}

void cpu_model_list(void (*print)(void *ctx, const char *line), void *ctx)
{
    for (size_t i = 0; i < ARRAY_SIZE(named_models); i++)
        print(ctx, named_models[i].name);
    for (unsigned f = 0; f < CPU_FEATURE_COUNT; f++)
        if (is_available(f))
            print(ctx, places[f].name);
}

static const struct cpu_model_leaf *find_leaf(const struct cpu_model *m, uint32_t leaf,
                                              uint32_t subleaf)
{
    for (unsigned i = 0; i < m->leaf_count; i++) {
        const struct cpu_model_leaf *l = &m->leaves[i];
        if (l->leaf == leaf && (!l->is_subleaf_significant || l->subleaf == subleaf))
            return l;
    }
    return NULL;
}

/* Bytes that XSAVE needs with these components, standard or compacted. */
static uint32_t xsave_area(const struct cpu_model *m, uint64_t components, bool is_compact)
{
    uint32_t size = 576;
    for (unsigned i = 2; i < 16; i++) {
        if (!(components >> i & 1))
            continue;
        if (is_compact)
            size += m->xsave_component_size[i];
        else if (m->xsave_offset[i] + m->xsave_component_size[i] > size)
            size = m->xsave_offset[i] + m->xsave_component_size[i];
    }
    return size;
}

struct cpuid_regs cpu_model_cpuid(const struct cpu_model *model, const struct cpu_state *st,
                                  uint32_t apic_id, uint32_t leaf, uint32_t subleaf)
{
    struct cpuid_regs out = {0};
    const struct cpu_model_leaf *l = find_leaf(model, leaf, subleaf);

    if (leaf == 0xb && l == NULL)
        out.ecx = subleaf & 0xff;
    if (l != NULL)
        out = l->regs;
    switch (leaf) {
    case 1:
        out.ebx |= apic_id << 24;
        if (st->cr4 & CR4_OSXSAVE)
            out.ecx |= 1u << 27;
        break;
    case 0xb:
        out.edx = apic_id;
        break;
    case 0xd:
        if (l != NULL && subleaf == 0)
            out.ebx = xsave_area(model, st->xcr0, false);
        else if (l != NULL && subleaf == 1 && (out.eax & 0xa))
            out.ebx = xsave_area(model, st->xcr0, true);
        break;
    case 0x8000001eu:
        if (l != NULL) {
            out.eax = apic_id;
            out.ebx = apic_id & 0xff;
        }
        break;
    default:
        break;
    }
    return out;
}
