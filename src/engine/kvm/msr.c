/*
 * msr.c - model-specific registers: what KVM keeps, and all the rest
 *
 * KVM is left the registers that its hardware switches or that the guest writes often; their
 * rules are the processor's. Every other access leaves the guest through the filter and ends in
 * engine/soft, as on the other engines: the machine's devices (local APIC, paravirtual clock),
 * MTRRs, the TSC's offset, and registers that only exist so that systems find them.
 *
 * IA32_DEBUGCTL is among those: what KVM does of it depends on the processor and on the kernel's
 * version. So it reads back, and branch stepping (BTF) steps every instruction.
 *
 * Spec: Linux, Documentation/virt/kvm/api.rst, KVM_X86_SET_MSR_FILTER; Intel SDM vol. 4.
 */
#include <string.h>

#include "cpu/msr.h"
#include "engine/kvm/kvm.h"
#include "engine/soft/system.h"

#define MSR_STORED_MAX 16u
#define NO_FIELD SIZE_MAX

static bool model_has_any(const struct cpu_model *m, const uint16_t *features)
{
    for (; *features != CPU_FEATURE_COUNT; features++)
        if (cpu_model_has(m, (enum cpu_feature) * features))
            return true;
    return false;
}

#define ANY(...) ((const uint16_t[]){__VA_ARGS__, CPU_FEATURE_COUNT})
#define F(id) CPU_FEATURE_##id
#define FIELD(name) offsetof(struct cpu_state, name)

/* What KVM keeps, when the model has one of the features; `field` is NO_FIELD for commands and
 * for what is exchanged otherwise. */
static const struct kept_msr {
    uint32_t index;
    bool is_readable, is_writable;
    const uint16_t *features;
    size_t field;
    bool is_apics; /* only where local APICs are in the kernel */
} kept_msrs[] = {
    {MSR_TSC, true, false, ANY(F(TSC)), NO_FIELD},
    {MSR_SPEC_CTRL, true, true,
     ANY(F(SPEC_CTRL), F(INTEL_STIBP), F(SSBD), F(IBRS), F(STIBP), F(AMD_SSBD)), FIELD(spec_ctrl)},
    {MSR_PRED_CMD, false, true, ANY(F(SPEC_CTRL), F(IBPB)), NO_FIELD},
    {MSR_FLUSH_CMD, false, true, ANY(F(FLUSH_L1D)), NO_FIELD},
    {MSR_SYSENTER_CS, true, true, ANY(F(SEP)), FIELD(sysenter_cs)},
    {MSR_SYSENTER_ESP, true, true, ANY(F(SEP)), FIELD(sysenter_esp)},
    {MSR_SYSENTER_EIP, true, true, ANY(F(SEP)), FIELD(sysenter_eip)},
    {MSR_PAT, true, true, ANY(F(PAT)), FIELD(pat)},
    {MSR_EFER, true, true, ANY(F(NX), F(LM)), NO_FIELD},
    {MSR_STAR, true, true, ANY(F(SYSCALL)), FIELD(star)},
    {MSR_LSTAR, true, true, ANY(F(LM)), FIELD(lstar)},
    {MSR_CSTAR, true, true, ANY(F(LM)), FIELD(cstar)},
    {MSR_SFMASK, true, true, ANY(F(LM)), FIELD(sfmask)},
    {MSR_FS_BASE, true, true, ANY(F(LM)), NO_FIELD},
    {MSR_GS_BASE, true, true, ANY(F(LM)), NO_FIELD},
    {MSR_KERNEL_GS_BASE, true, true, ANY(F(LM)), FIELD(kernel_gs_base)},
    {MSR_TSC_AUX, true, true, ANY(F(RDTSCP), F(RDPID)), FIELD(tsc_aux)},
    {MSR_APIC_BASE, true, true, ANY(F(APIC)), NO_FIELD, true},
    {MSR_TSC_DEADLINE, true, true, ANY(F(TSC_DEADLINE)), NO_FIELD, true},
    {MSR_KVM_PV_EOI, true, true, ANY(F(KVM_PV_EOI)), NO_FIELD, true},
    {MSR_KVM_POLL_CONTROL, true, true, ANY(F(KVM_POLL_CONTROL)), NO_FIELD, true},
};

static bool is_kept_by(const struct engine *engine, const struct kept_msr *k)
{
    return model_has_any(engine->soft.model, k->features) && (engine->has_apics || !k->is_apics);
}

/* ---- the filter ---- */

/* Stretches of registers that the table's rows fall into. */
static const struct {
    uint32_t base, count;
} filter_ranges[] = {
    {0x0, 0x200}, {0x200, 0x200}, {0x600, 0x200}, {0xc0000000, 0x200}, {MSR_KVM_FIRST, 0x100},
};

#define FILTER_BYTES (0x200 / 8)

int kvm_msr_set_filter(struct engine *engine, struct err *e)
{
    uint8_t bitmaps[ARRAY_SIZE(filter_ranges)][2][FILTER_BYTES] = {0};
    struct kvm_msr_filter filter = {.flags = KVM_MSR_FILTER_DEFAULT_DENY};
    struct kvm_enable_cap cap = {
        .cap = KVM_CAP_X86_USER_SPACE_MSR,
        .args[0] =
            KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER,
    };
    int ret = KVM_CALL(engine->sys, engine->vm_fd, KVM_ENABLE_CAP, &cap, e);

    if (ret < 0)
        return err_prefix(e, "let MSR accesses out to doppel");
    for (unsigned r = 0; r < ARRAY_SIZE(filter_ranges); r++) {
        uint32_t base = filter_ranges[r].base;
        for (unsigned i = 0; i < ARRAY_SIZE(kept_msrs); i++) {
            const struct kept_msr *k = &kept_msrs[i];
            uint32_t n = k->index - base;
            if (n >= filter_ranges[r].count || !is_kept_by(engine, k))
                continue;
            bitmaps[r][0][n / 8] |= (uint8_t)(k->is_readable << n % 8);
            bitmaps[r][1][n / 8] |= (uint8_t)(k->is_writable << n % 8);
        }
        for (unsigned w = 0; w < 2; w++)
            filter.ranges[2 * r + w] = (struct kvm_msr_filter_range){
                .flags = w ? KVM_MSR_FILTER_WRITE : KVM_MSR_FILTER_READ,
                .base = base,
                .nmsrs = filter_ranges[r].count,
                .bitmap = bitmaps[r][w],
            };
    }
    return KVM_CALL(engine->sys, engine->vm_fd, KVM_X86_SET_MSR_FILTER, &filter, e);
}

/* ---- exchange ---- */

struct msr_list {
    struct kvm_msrs head;
    struct kvm_msr_entry entries[MSR_STORED_MAX];
};

_Static_assert(offsetof(struct msr_list, entries) == sizeof(struct kvm_msrs), "entries follow");

static void list_make(const struct engine_vcpu *v, struct msr_list *list)
{
    list->head = (struct kvm_msrs){0};
    for (unsigned i = 0; i < ARRAY_SIZE(kept_msrs); i++) {
        const struct kept_msr *k = &kept_msrs[i];
        if (k->field == NO_FIELD || !model_has_any(v->engine->soft.model, k->features))
            continue;
        list->entries[list->head.nmsrs++] = (struct kvm_msr_entry){.index = k->index};
    }
}

static uint64_t *list_field(struct engine_vcpu *v, uint32_t index)
{
    for (unsigned i = 0; i < ARRAY_SIZE(kept_msrs); i++)
        if (kept_msrs[i].index == index)
            return (uint64_t *)((char *)&v->soft.st + kept_msrs[i].field);
    return NULL;
}

/* KVM processes the list up to the first register that it refuses. */
static int list_check(const struct msr_list *list, int done, const char *call, struct err *e)
{
    if (done == (int)list->head.nmsrs)
        return 0;
    return err_set(e, 0,
                   "%s: this host's KVM refuses MSR 0x%x, value 0x%llx (use --cpu-model "
                   "without the feature that it belongs to)",
                   call, list->entries[done].index, (unsigned long long)list->entries[done].data);
}

int kvm_msr_fetch(struct engine_vcpu *v, struct err *e)
{
    struct msr_list list;
    int ret;

    list_make(v, &list);
    ret = KVM_CALL(v->engine->sys, v->fd, KVM_GET_MSRS, &list, e);
    if (ret >= 0)
        ret = list_check(&list, ret, "KVM_GET_MSRS", e);
    if (ret < 0)
        return ret;
    for (unsigned i = 0; i < list.head.nmsrs; i++)
        *list_field(v, list.entries[i].index) = list.entries[i].data;
    return 0;
}

int kvm_msr_store(struct engine_vcpu *v, struct err *e)
{
    struct msr_list list;
    int ret;

    list_make(v, &list);
    for (unsigned i = 0; i < list.head.nmsrs; i++)
        list.entries[i].data = *list_field(v, list.entries[i].index);
    ret = KVM_CALL(v->engine->sys, v->fd, KVM_SET_MSRS, &list, e);
    return ret < 0 ? ret : list_check(&list, ret, "KVM_SET_MSRS", e);
}

/* ---- accesses that left the guest ---- */

/* A register that KVM keeps, and refused: what it decided stands. */
static bool is_kept(const struct engine_vcpu *v, uint32_t index)
{
    /* not in the table: no filter applies to them */
    if (v->engine->has_apics && index >= MSR_X2APIC_FIRST && index <= MSR_X2APIC_LAST)
        return true;
    for (unsigned i = 0; i < ARRAY_SIZE(kept_msrs); i++)
        if (kept_msrs[i].index == index)
            return is_kept_by(v->engine, &kept_msrs[i]);
    return false;
}

/* An access that the filter let through came back with another reason than FILTER. */
static bool is_refused(const struct engine_vcpu *v)
{
    return v->run->msr.reason != KVM_MSR_EXIT_REASON_FILTER && is_kept(v, v->run->msr.index);
}

void kvm_msr_exit_read(struct engine_vcpu *v)
{
    uint64_t value = 0;
    bool is_ok = false;

    if (!is_refused(v)) {
        soft_guest_enter(&v->soft);
        is_ok = soft_msr_read(&v->soft, v->run->msr.index, &value);
        soft_guest_leave(&v->soft);
    }
    v->run->msr.error = !is_ok;
    v->run->msr.data = value;
    v->stats.counts[KVM_COUNT_MSR_READ]++;
}

void kvm_msr_exit_write(struct engine_vcpu *v)
{
    struct cpu_state *st = &v->soft.st;
    uint64_t tsc_offset = st->tsc_offset;
    bool is_ok = false;

    if (!is_refused(v)) {
        soft_guest_enter(&v->soft);
        is_ok = soft_msr_write(&v->soft, v->run->msr.index, v->run->msr.data);
        soft_guest_leave(&v->soft);
    }
    v->run->msr.error = !is_ok;
    if (is_ok && v->run->msr.index == MSR_APIC_BASE)
        kvm_state_changed_later(v, CPU_GROUP_CONTROL);
    if (st->tsc_offset != tsc_offset)
        kvm_state_changed(v, CPU_GROUP_TSC);
    v->stats.counts[KVM_COUNT_MSR_WRITE]++;
}
