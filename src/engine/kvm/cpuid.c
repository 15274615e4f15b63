/*
 * cpuid.c - the machine's CPU model within what KVM offers, and CPUID from that model
 *
 * Invariant: the guest's CPUID is the model's, leaf by leaf; KVM adds only what depends on the
 * state of a processor, and does it as cpu/cpuid.c does.
 *
 * Spec: Linux, Documentation/virt/kvm/api.rst, KVM_GET_SUPPORTED_CPUID and KVM_SET_CPUID2.
 */
#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>

#include "cpu/msr.h"
#include "engine/kvm/kvm.h"

#define SUPPORTED_ENTRIES 256u
#define HYGON_EBX 0x6f677948u /* "Hygo", which <cpuid.h> does not know */

struct cpuid_table {
    struct kvm_cpuid2 head;
    struct kvm_cpuid_entry2 entries[SUPPORTED_ENTRIES];
};

_Static_assert(SUPPORTED_ENTRIES >= CPU_MODEL_LEAVES_MAX, "a model fits into a table");

/* ---- what KVM offers ---- */

static struct cpuid_regs supported_leaf(const void *ctx, uint32_t leaf, uint32_t subleaf)
{
    const struct cpuid_table *table = ctx;

    for (unsigned i = 0; i < table->head.nent; i++) {
        const struct kvm_cpuid_entry2 *k = &table->entries[i];
        if (k->function == leaf &&
            (!(k->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) || k->index == subleaf))
            return (struct cpuid_regs){k->eax, k->ebx, k->ecx, k->edx};
    }
    return (struct cpuid_regs){0};
}

/* The machine's own doing, whatever KVM says: local APIC, topology, being a virtual machine. */
static bool is_machines_own(enum cpu_feature feature)
{
    switch (feature) {
    case CPU_FEATURE_HYPERVISOR:
    case CPU_FEATURE_APIC:
    case CPU_FEATURE_X2APIC:
    case CPU_FEATURE_TSC_DEADLINE:
    case CPU_FEATURE_ARAT:
    case CPU_FEATURE_HT:
    case CPU_FEATURE_CMP_LEGACY:
        return true;
    default:
        return false;
    }
}

static int limit_from(const struct kvm_sys *sys, int fd, enum engine_irqchip irqchip,
                      struct cpuid_table *table, struct cpu_model_limit *limit, struct err *e)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } msrs = {.head.nmsrs = 1, .entry.index = MSR_ARCH_CAPABILITIES};
    struct cpuid_regs sizes;
    uint32_t vendor;
    int ret;

    table->head.nent = SUPPORTED_ENTRIES;
    ret = KVM_CALL(sys, fd, KVM_GET_SUPPORTED_CPUID, table, e);
    if (ret < 0)
        return ret;
    cpu_model_limit_features(limit, "KVM on this host", supported_leaf, table, is_machines_own);
    vendor = supported_leaf(table, 0, 0).ebx;
    sizes = supported_leaf(table, 0x80000008, 0);
    if ((sizes.eax & 0xff) != 0)
        limit->phys_bits = MIN(limit->phys_bits, sizes.eax & 0xff);
    /*
     * Hypercalls about processors end in KVM, which knows of none whose local APIC is not its own.
     */
    if (irqchip != ENGINE_IRQCHIP_ON ||
        !kvm_probe_hypercalls(sys, vendor == signature_AMD_ebx || vendor == HYGON_EBX)) {
        cpu_model_limit_remove(limit, CPU_FEATURE_KVM_PV_UNHALT);
        cpu_model_limit_remove(limit, CPU_FEATURE_KVM_PV_IPI);
        cpu_model_limit_remove(limit, CPU_FEATURE_KVM_PV_SCHED_YIELD);
    }
    /*
     * KVM on Intel takes writes of the TSC-deadline register on its fast path for its own local
     * APIC's, before any filter, and drops them when there is none. There is one for certain where
     * the engine would not open without.
     */
    if (vendor == signature_INTEL_ebx && irqchip != ENGINE_IRQCHIP_ON)
        cpu_model_limit_remove(limit, CPU_FEATURE_TSC_DEADLINE);
    /* what the host's processor promises; one that KVM does not tell of promises nothing */
    if (kvm_try(sys, fd, KVM_GET_MSRS, &msrs) == 1)
        limit->arch_capabilities &= msrs.entry.data;
    else
        limit->arch_capabilities = 0;
    return 0;
}

int kvm_cpuid_limit(const struct kvm_sys *sys, enum engine_irqchip irqchip,
                    struct cpu_model_limit *limit, struct err *e)
{
    struct cpuid_table *table = calloc(1, sizeof(*table));
    int fd = -1, ret;

    if (table == NULL)
        return err_set(e, ENOMEM, "allocate a table of CPUID leaves");
    ret = kvm_open_system(sys, &fd, e);
    if (ret == 0)
        ret = limit_from(sys, fd, irqchip, table, limit, e);
    if (ret == 0)
        limit->is_tsc_hosts |= kvm_probe_tsc(sys); /* and learns its frequency */
    kvm_close_fd(&fd);
    free(table);
    return ret < 0 ? err_prefix(e, "ask KVM what processor it offers") : 0;
}

/* ---- what the guest sees ---- */

int kvm_cpuid_set(struct engine_vcpu *v, struct err *e)
{
    const struct cpu_model *m = v->engine->soft.model;
    struct cpuid_table *table = calloc(1, sizeof(*table));
    struct cpu_state st;
    int ret;

    if (table == NULL)
        return err_set(e, ENOMEM, "allocate a table of CPUID leaves");
    /* in 64-bit mode Intel's processors show all their features */
    st = v->soft.st;
    st.efer |= EFER_LMA;
    st.seg[CPU_CS].attr |= SEG_L;
    for (unsigned i = 0; i < m->leaf_count; i++) {
        const struct cpu_model_leaf *l = &m->leaves[i];
        struct cpuid_regs r = cpu_model_cpuid(m, &st, v->soft.index, l->leaf, l->subleaf);
        table->entries[table->head.nent++] = (struct kvm_cpuid_entry2){
            .function = l->leaf,
            .index = l->subleaf,
            .flags = l->is_subleaf_significant ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
            .eax = r.eax,
            .ebx = r.ebx,
            .ecx = r.ecx,
            .edx = r.edx,
        };
    }
    ret = KVM_CALL(v->engine->sys, v->fd, KVM_SET_CPUID2, table, e);
    free(table);
    return MIN(ret, 0);
}
