/*
 * cpuid.c - what the CPUID instruction returns
 *
 * Runs while guest vector state is live in the host's registers: no libc, no vector registers
 * (the build compiles it like engine/soft).
 *
 * Specification: SDM vol. 2, CPUID; AMD64 APM vol. 3, appendix E.
 */
#include <cpuid.h>

#include "base/bits.h"
#include "cpu/model.h"
#include "cpu/state.h"

#define LEAF_1_ECX_OSXSAVE BIT(27)
#define LEAF_1_EDX_MSR BIT(5)
#define LEAF_80000001_EDX_SYSCALL BIT(11)

static const struct cpu_model_leaf *cpuid_find(const struct cpu_model *model, uint32_t leaf,
                                               uint32_t subleaf)
{
    for (unsigned i = 0; i < model->leaf_count; i++) {
        const struct cpu_model_leaf *l = &model->leaves[i];
        if (l->leaf == leaf && (!l->is_subleaf_significant || l->subleaf == subleaf))
            return l;
    }
    return NULL;
}

static bool cpuid_is_amd(const struct cpu_model *model)
{
    uint32_t ebx = model->leaves[0].regs.ebx;

    return ebx == signature_AMD_ebx || ebx == 0x6f677948; /* "Auth", "Hygo" */
}

/* Size of an XSAVE image with these components, standard format. */
static uint32_t xsave_size_standard(const struct cpu_model *model, uint64_t components)
{
    uint32_t size = 512 + 64;

    for (unsigned i = 2; i < ARRAY_SIZE(model->xsave_offset); i++)
        if (components >> i & 1)
            size = MAX(size, model->xsave_offset[i] + model->xsave_component_size[i]);
    return size;
}

/* In the compacted format; bit 1 of a component's ECX asks for 64-byte alignment. */
static uint32_t xsave_size_compacted(const struct cpu_model *model, uint64_t components)
{
    uint32_t size = 512 + 64;

    for (unsigned i = 2; i < ARRAY_SIZE(model->xsave_offset); i++) {
        const struct cpu_model_leaf *l;
        if (!(components >> i & 1))
            continue;
        l = cpuid_find(model, 0xd, i);
        if (l != NULL && (l->regs.ecx & 2))
            size = (uint32_t)align_up(size, 64);
        size += model->xsave_component_size[i];
    }
    return size;
}

/* Everything that depends on which CPU asks, or on its state. */
static struct cpuid_regs cpuid_complete(const struct cpu_model *model, const struct cpu_state *st,
                                        uint32_t apic_id, uint32_t leaf, uint32_t subleaf,
                                        struct cpuid_regs r)
{
    switch (leaf) {
    case 1:
        r.ebx |= apic_id << 24;
        if ((st->cr4 & CR4_OSXSAVE) && cpu_model_has(model, CPU_FEATURE_XSAVE))
            r.ecx |= LEAF_1_ECX_OSXSAVE;
        break;
    case 0xb:
        /* ECX bits 7..0 and EDX are valid at every level (SDM, "leaf 0BH") */
        if (subleaf > 1)
            r.ecx = subleaf & 0xff;
        r.edx = apic_id;
        break;
    case 0xd:
        if (!cpu_model_has(model, CPU_FEATURE_XSAVE))
            break;
        if (subleaf == 0)
            r.ebx = xsave_size_standard(model, st->xcr0);
        else if (subleaf == 1 && (r.eax & 0xa)) /* XSAVEC or XSAVES; IA32_XSS is 0 */
            r.ebx = xsave_size_compacted(model, st->xcr0);
        break;
    case 0x80000001:
        /* Intel has SYSCALL in 64-bit mode only, and says so */
        if (!cpuid_is_amd(model) && !cpu_is_64bit(st))
            r.edx &= ~(uint32_t)LEAF_80000001_EDX_SYSCALL;
        break;
    case 0x8000001e:
        if (cpu_model_has(model, CPU_FEATURE_TOPOEXT)) {
            r.eax = apic_id;
            r.ebx = apic_id & 0xff; /* core ID; one thread */
        }
        break;
    default:
        break;
    }
    return r;
}

struct cpuid_regs cpu_model_cpuid(const struct cpu_model *model, const struct cpu_state *st,
                                  uint32_t apic_id, uint32_t leaf, uint32_t subleaf)
{
    const struct cpu_model_leaf *l;
    struct cpuid_regs r = {0, 0, 0, 0};
    uint32_t basic_max = model->leaves[0].regs.eax;
    bool is_hypervisor_leaf = leaf >> 28 == 4;

    /* Intel answers beyond the highest leaf with the highest basic one, AMD with zeros */
    if (!cpuid_is_amd(model) && !is_hypervisor_leaf) {
        const struct cpu_model_leaf *first = cpuid_find(model, leaf & 0x80000000, 0);
        if (leaf > first->regs.eax)
            leaf = basic_max;
    }
    l = cpuid_find(model, leaf, subleaf);
    if (l != NULL)
        r = l->regs;
    return cpuid_complete(model, st, apic_id, leaf, subleaf, r);
}
