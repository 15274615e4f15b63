/*
 * model_leaves.c - the CPUID leaves of a model
 *
 * Feature bits come from the model's feature words and from nowhere else; identification,
 * caches and descriptive leaves are the host's; topology is cpu_count cores of one thread in
 * one package, with APIC IDs 0, 1, 2 ... What depends on the CPU or its state is filled in when
 * CPUID is executed (cpuid.c).
 *
 * Specification: SDM vol. 2, CPUID; AMD64 APM vol. 3, appendix E; hypervisor leaves as KVM
 * documents them (0x40000000, 0x40000001) and 0x40000010 as VMware and KVM define it.
 */
#include <string.h>

#include "base/bits.h"
#include "cpu/model_build.h"
#include "cpu/state.h"

#define APIC_BUS_KHZ 1000000u

#define KVM_FEATURE_CLOCKSOURCE BIT(0)
#define KVM_FEATURE_NOP_IO_DELAY BIT(1)
#define KVM_FEATURE_CLOCKSOURCE2 BIT(3)
#define KVM_FEATURE_CLOCKSOURCE_STABLE BIT(24)

/* Bits of leaf 1 EDX that AMD repeats in leaf 80000001H EDX. */
#define AMD_REPEATED_EDX 0x0183f3ffu

struct leaf_builder {
    struct cpu_model *m;
    const struct model_host *host;
    bool is_amd;
    unsigned core_id_bits; /* of an APIC ID */
};

static void leaf_add(struct leaf_builder *b, uint32_t leaf, uint32_t subleaf, bool has_subleaves,
                     struct cpuid_regs regs)
{
    struct cpu_model *m = b->m;

    if (m->leaf_count == CPU_MODEL_LEAVES_MAX)
        return;
    m->leaves[m->leaf_count++] = (struct cpu_model_leaf){
        .leaf = leaf, .subleaf = subleaf, .regs = regs, .is_subleaf_significant = has_subleaves};
}

/* The model's feature bits of one leaf. */
static struct cpuid_regs leaf_features(const struct cpu_model *m, uint32_t leaf, uint32_t subleaf)
{
    uint32_t out[4] = {0};

    for (unsigned i = 0; i < CPU_FEATURE_COUNT; i++) {
        const struct model_feature *f = &model_features[i];
        if (f->leaf == leaf && f->subleaf == subleaf && cpu_model_has(m, i))
            out[f->reg] |= UINT32_C(1) << f->bit;
    }
    return (struct cpuid_regs){out[0], out[1], out[2], out[3]};
}

static unsigned ceil_log2(unsigned n)
{
    unsigned result = 0;

    while ((1u << result) < n)
        result++;
    return result;
}

static void add_leaf_1(struct leaf_builder *b)
{
    struct cpuid_regs host = model_host_leaf(b->host, 1, 0);
    struct cpuid_regs r = leaf_features(b->m, 1, 0);
    unsigned ids = b->is_amd ? b->m->cpu_count : 1u << b->core_id_bits;

    r.eax = host.eax;
    r.ebx = host.ebx & 0xff00; /* CLFLUSH line size */
    if (b->m->cpu_count > 1)
        r.ebx |= MIN(ids, 255u) << 16;
    leaf_add(b, 1, 0, false, r);
}

/* Deterministic cache parameters: levels 1 and 2 are a core's own, level 3 is everybody's. */
static void add_caches(struct leaf_builder *b, uint32_t leaf, unsigned sharing_shared)
{
    unsigned n = 0;

    for (; n < 8; n++) {
        struct cpuid_regs r = model_host_leaf(b->host, leaf, n);
        unsigned level = (unsigned)bits(r.eax, 7, 5);

        if ((r.eax & 0x1f) == 0)
            break;
        r.eax &= 0x3fff;
        if (level >= 3)
            r.eax |= sharing_shared << 14;
        if (leaf == 4)
            r.eax |= MIN((1u << b->core_id_bits) - 1, 63u) << 26;
        leaf_add(b, leaf, n, true, r);
    }
    leaf_add(b, leaf, n, true, (struct cpuid_regs){0});
}

static void add_leaf_7(struct leaf_builder *b)
{
    struct cpuid_regs sub0 = leaf_features(b->m, 7, 0);
    struct cpuid_regs sub1 = leaf_features(b->m, 7, 1);

    sub0.eax = sub1.eax != 0 ? 1 : 0;
    leaf_add(b, 7, 0, true, sub0);
    leaf_add(b, 7, 1, true, sub1);
}

/* Extended topology; EDX, and ECX beyond level 1, are filled in on execution. */
static void add_leaf_b(struct leaf_builder *b)
{
    leaf_add(b, 0xb, 0, true, (struct cpuid_regs){.eax = 0, .ebx = 1, .ecx = 0x100});
    leaf_add(b, 0xb, 1, true,
             (struct cpuid_regs){.eax = b->core_id_bits, .ebx = b->m->cpu_count, .ecx = 0x201});
}

/* Where XSAVE puts things is the host's affair: images are loaded and saved natively. */
static void add_leaf_d(struct leaf_builder *b)
{
    struct cpu_model *m = b->m;
    struct cpuid_regs sub1 = leaf_features(m, 0xd, 1);

    if (!cpu_model_has(m, CPU_FEATURE_XSAVE)) {
        leaf_add(b, 0xd, 0, false, (struct cpuid_regs){0});
        return;
    }
    m->xcr0_valid = XCR0_X87 | XCR0_SSE;
    if (cpu_model_has(m, CPU_FEATURE_AVX))
        m->xcr0_valid |= XCR0_AVX;
    if (cpu_model_has(m, CPU_FEATURE_AVX512F))
        m->xcr0_valid |= XCR0_AVX512;
    for (unsigned i = 2; i < ARRAY_SIZE(m->xsave_offset); i++)
        if (m->xcr0_valid >> i & 1)
            m->xsave_size = MAX(m->xsave_size, m->xsave_offset[i] + m->xsave_component_size[i]);

    leaf_add(b, 0xd, 0, true,
             (struct cpuid_regs){.eax = (uint32_t)m->xcr0_valid, .ecx = m->xsave_size});
    leaf_add(b, 0xd, 1, true, sub1);
    for (unsigned i = 2; i < ARRAY_SIZE(m->xsave_offset); i++) {
        struct cpuid_regs host = model_host_leaf(b->host, 0xd, i);
        if (m->xcr0_valid >> i & 1)
            leaf_add(b, 0xd, i, true,
                     (struct cpuid_regs){.eax = host.eax, .ebx = host.ebx, .ecx = host.ecx & 2});
    }
}

/* The legacy region and header, and where the host puts the components it has. */
static void fill_xsave_layout(struct cpu_model *m, const struct model_host *host)
{
    m->xsave_size = 512 + 64;
    m->xsave_offset[0] = 0;
    m->xsave_component_size[0] = 160;
    m->xsave_offset[1] = 160;
    m->xsave_component_size[1] = 256;
    for (unsigned i = 2; i < ARRAY_SIZE(m->xsave_offset); i++) {
        struct cpuid_regs r = {0};
        if (host->xcr0 >> i & 1)
            r = model_host_leaf(host, 0xd, i);
        m->xsave_offset[i] = r.ebx;
        m->xsave_component_size[i] = r.eax;
    }
}

static unsigned gcd(unsigned a, unsigned b)
{
    while (b != 0) {
        unsigned rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/*
 * TSC against the crystal, which is the APIC timer's clock as well (SDM vol. 3, 10.5.4). Guests
 * compute crystal_khz * EBX / EAX in 32 bits: a ratio that does not fit is left out.
 */
static void add_frequency_leaves(struct leaf_builder *b)
{
    unsigned tsc_khz = (unsigned)(b->m->tsc_hz / 1000);
    unsigned divisor = gcd(tsc_khz, APIC_BUS_KHZ);
    struct cpuid_regs ratio = {0};

    if (divisor != 0 && (uint64_t)APIC_BUS_KHZ * (tsc_khz / divisor) <= UINT32_MAX) {
        ratio.eax = APIC_BUS_KHZ / divisor;
        ratio.ebx = tsc_khz / divisor;
        ratio.ecx = APIC_BUS_KHZ * 1000u;
    }
    leaf_add(b, 0x15, 0, false, ratio);
    leaf_add(b, 0x16, 0, false,
             (struct cpuid_regs){.eax = tsc_khz / 1000, .ebx = tsc_khz / 1000, .ecx = 100});
}

static void add_basic(struct leaf_builder *b)
{
    struct cpuid_regs r = model_host_leaf(b->host, 0, 0);

    r.eax = b->is_amd ? 0xd : 0x16;
    leaf_add(b, 0, 0, false, r);
    add_leaf_1(b);
    if (!b->is_amd) {
        leaf_add(b, 2, 0, false, model_host_leaf(b->host, 2, 0));
        add_caches(b, 4, (1u << b->core_id_bits) - 1);
    }
    leaf_add(b, 6, 0, false, leaf_features(b->m, 6, 0));
    add_leaf_7(b);
    add_leaf_b(b);
    add_leaf_d(b);
    if (!b->is_amd)
        add_frequency_leaves(b);
}

static void add_hypervisor(struct leaf_builder *b)
{
    struct cpuid_regs features = leaf_features(b->m, 0x40000001, 0);

    if (!cpu_model_has(b->m, CPU_FEATURE_HYPERVISOR))
        return;
    leaf_add(b, 0x40000000, 0, false,
             (struct cpuid_regs){0x40000010, 0x4b4d564b, 0x564b4d56, 0x4d}); /* KVMKVMKVM */
    features.eax |= KVM_FEATURE_CLOCKSOURCE | KVM_FEATURE_NOP_IO_DELAY | KVM_FEATURE_CLOCKSOURCE2 |
                    KVM_FEATURE_CLOCKSOURCE_STABLE;
    leaf_add(b, 0x40000001, 0, false, features);
    leaf_add(b, 0x40000010, 0, false,
             (struct cpuid_regs){.eax = (uint32_t)(b->m->tsc_hz / 1000), .ebx = APIC_BUS_KHZ});
}

static void add_brand(struct leaf_builder *b, const char *brand)
{
    uint8_t text[48] = {0};

    if (brand != NULL)
        memcpy(text, brand, strnlen(brand, sizeof(text) - 1));
    for (uint32_t i = 0; i < 3; i++) {
        const uint8_t *t = text + 16 * i;
        struct cpuid_regs r = {load_le32(t), load_le32(t + 4), load_le32(t + 8), load_le32(t + 12)};
        leaf_add(b, 0x80000002 + i, 0, false,
                 brand != NULL ? r : model_host_leaf(b->host, 0x80000002 + i, 0));
    }
}

static void add_address_sizes(struct leaf_builder *b)
{
    struct cpuid_regs host = model_host_leaf(b->host, 0x80000008, 0);
    struct cpuid_regs r = leaf_features(b->m, 0x80000008, 0);

    b->m->phys_bits = host.eax & 0xff;
    if (b->m->phys_bits < 36 || b->m->phys_bits > 52)
        b->m->phys_bits = b->m->phys_bits > 52 ? 52 : 36;
    if (b->host->limit != NULL)
        b->m->phys_bits = MIN(b->m->phys_bits, MAX(b->host->limit->phys_bits, 36u));
    b->m->linear_bits = 48;
    r.eax = b->m->phys_bits | b->m->linear_bits << 8;
    if (b->is_amd)
        r.ecx = (b->m->cpu_count - 1) | b->core_id_bits << 12;
    leaf_add(b, 0x80000008, 0, false, r);
}

static void add_extended_amd(struct leaf_builder *b)
{
    static const uint32_t descriptive[] = {0x80000019, 0x8000001a};

    for (unsigned i = 0; i < ARRAY_SIZE(descriptive); i++)
        leaf_add(b, descriptive[i], 0, false, model_host_leaf(b->host, descriptive[i], 0));
    if (cpu_model_has(b->m, CPU_FEATURE_TOPOEXT)) {
        add_caches(b, 0x8000001d, b->m->cpu_count - 1);
        leaf_add(b, 0x8000001e, 0, false, (struct cpuid_regs){0});
    }
    leaf_add(b, 0x80000021, 0, false, leaf_features(b->m, 0x80000021, 0));
}

static void add_extended(struct leaf_builder *b, const char *brand)
{
    struct cpuid_regs first = model_host_leaf(b->host, 0x80000000, 0);
    struct cpuid_regs host = model_host_leaf(b->host, 0x80000001, 0);
    struct cpuid_regs r = leaf_features(b->m, 0x80000001, 0);

    first.eax = b->is_amd ? 0x80000021 : 0x80000008;
    leaf_add(b, 0x80000000, 0, false, first);
    r.eax = host.eax;
    r.ebx = host.ebx;
    if (b->is_amd)
        r.edx |= leaf_features(b->m, 1, 0).edx & AMD_REPEATED_EDX;
    leaf_add(b, 0x80000001, 0, false, r);
    add_brand(b, brand);
    leaf_add(b, 0x80000005, 0, false, model_host_leaf(b->host, 0x80000005, 0));
    leaf_add(b, 0x80000006, 0, false, model_host_leaf(b->host, 0x80000006, 0));
    leaf_add(b, 0x80000007, 0, false, leaf_features(b->m, 0x80000007, 0));
    add_address_sizes(b);
    if (b->is_amd)
        add_extended_amd(b);
}

void model_fill_leaves(struct cpu_model *m, const struct model_host *host, const char *brand)
{
    struct leaf_builder b = {
        .m = m,
        .host = host,
        .is_amd = model_host_is_amd(host),
        .core_id_bits = ceil_log2(m->cpu_count),
    };

    m->leaf_count = 0;
    fill_xsave_layout(m, host);
    add_basic(&b);
    add_hypervisor(&b);
    add_extended(&b, brand);
}
