/*
 * engine.c - the engine table of KVM: opening, vCPUs, memory slots
 *
 * KVM cannot give a vCPU back before its machine ends, so a detached one is kept for the next
 * attach of the same index.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/log.h"
#include "engine/kvm/kvm.h"
#include "os/fault.h"

/*
 * Pages that processors without unrestricted guests need for real mode: three for a TSS, one for
 * page tables; in a gap of the machine's map (Documentation/virt/kvm/api.rst, KVM_SET_TSS_ADDR).
 */
#define IDENTITY_MAP_ADDR UINT64_C(0xfeffc000)
#define TSS_ADDR UINT64_C(0xfeffd000)

/* Habits of KVM that are not the processor's: the other engines do not have them either. */
#define QUIRKS_UNWANTED                                                                            \
    (KVM_X86_QUIRK_OUT_7E_INC_RIP | KVM_X86_QUIRK_FIX_HYPERCALL_INSN |                             \
     KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS)

/* IA32_APIC_BASE after power-up: enabled, in xAPIC mode */
#define APIC_BASE_RESET UINT64_C(0xfee00800)
#define APIC_BASE_BSP BIT(8)

/* ---- the engine ---- */

static int enable_cap(struct engine *engine, unsigned cap_index, uint64_t arg, const char *what,
                      struct err *e)
{
    struct kvm_enable_cap cap = {.cap = cap_index, .args[0] = arg};
    int ret = KVM_CALL(engine->sys, engine->vm_fd, KVM_ENABLE_CAP, &cap, e);

    return ret < 0 ? err_prefix(e, "%s", what) : 0;
}

/* What is there is used; what is not, the rest of the engine does without. */
static int set_caps(struct engine *engine, struct err *e)
{
    const struct kvm_sys *sys = engine->sys;
    struct kvm_caps *caps = &engine->caps;
    uint32_t quirks = (uint32_t)kvm_extension(sys, engine->vm_fd, KVM_CAP_DISABLE_QUIRKS2);
    int ret = 0;

    engine->has_bells = kvm_extension(sys, engine->vm_fd, KVM_CAP_IOEVENTFD) != 0;
    caps->has_sregs2 = kvm_extension(sys, engine->vm_fd, KVM_CAP_SREGS2) != 0;
    caps->has_tsc_offset = kvm_extension(sys, engine->vm_fd, KVM_CAP_VCPU_ATTRIBUTES) != 0;
    caps->xsave_size = (uint32_t)kvm_extension(sys, engine->vm_fd, KVM_CAP_XSAVE2);
    if (caps->xsave_size > KVM_XSAVE_BUFFER_SIZE)
        return err_set(e, 0,
                       "KVM_CHECK_EXTENSION(KVM_CAP_XSAVE2): vector state of %" PRIu32
                       " bytes is more than doppel knows",
                       caps->xsave_size);
    if (kvm_extension(sys, engine->vm_fd, KVM_CAP_EXIT_ON_EMULATION_FAILURE) != 0) {
        caps->has_failure_exit = true;
        ret = enable_cap(engine, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1,
                         "have emulation failures reported", e);
    }
    if (ret == 0 && kvm_extension(sys, engine->vm_fd, KVM_CAP_X86_TRIPLE_FAULT_EVENT) != 0) {
        caps->has_triple_fault_event = true;
        ret =
            enable_cap(engine, KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1, "have triple faults reported", e);
    }
    if (ret == 0 && (quirks & QUIRKS_UNWANTED) != 0)
        ret = enable_cap(engine, KVM_CAP_DISABLE_QUIRKS2, quirks & QUIRKS_UNWANTED,
                         "switch quirks off", e);
    return ret;
}

static int make_vm(struct engine *engine, enum engine_irqchip irqchip, struct err *e)
{
    const struct kvm_sys *sys = engine->sys;
    uint64_t identity_map = IDENTITY_MAP_ADDR;
    int ret = kvm_create_vm(sys, engine->system_fd, &engine->vm_fd, e);

    if (ret == 0)
        ret = set_caps(engine, e);
    if (ret == 0)
        ret = kvm_apic_choose(engine, irqchip, e);
    if (ret == 0)
        ret = KVM_CALL(sys, engine->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map, e);
    if (ret >= 0)
        ret = KVM_CALL(sys, engine->vm_fd, KVM_SET_TSS_ADDR, (void *)(uintptr_t)TSS_ADDR, e);
    if (ret >= 0)
        ret = kvm_msr_set_filter(engine, e);
    return MIN(ret, 0);
}

static void engine_close(struct engine *engine);

int kvm_engine_open(const struct kvm_sys *sys, const struct engine_config *config,
                    struct engine **out, struct err *e)
{
    struct engine *engine = calloc(1, sizeof(*engine));
    int ret;

    if (engine == NULL)
        return err_set(e, ENOMEM, "allocate the KVM engine");
    engine->sys = sys;
    engine->system_fd = engine->vm_fd = -1;
    for (unsigned i = 0; i < ARRAY_SIZE(engine->seats); i++)
        engine->seats[i].fd = -1;
    ret = soft_engine_init(&engine->soft, config, e);
    if (ret != 0) {
        free(engine);
        return ret;
    }
    engine->soft.call_out = kvm_call_out;
    ret = fault_init(e);
    if (ret == 0)
        ret = kvm_kick_init(e);
    if (ret == 0)
        ret = kvm_open_system(sys, &engine->system_fd, e);
    if (ret == 0)
        ret = make_vm(engine, config->irqchip, e);
    if (ret == 0) {
        ret = KVM_CALL(sys, engine->system_fd, KVM_GET_VCPU_MMAP_SIZE, NULL, e);
        engine->run_size = (size_t)MAX(ret, 0);
    }
    if (ret >= 0 && engine->run_size < sizeof(struct kvm_run))
        ret = err_set(e, 0, "KVM_GET_VCPU_MMAP_SIZE: %zu bytes are too few", engine->run_size);
    if (ret < 0) {
        engine_close(engine);
        return err_prefix(e, "start KVM");
    }
    *out = engine;
    return 0;
}

static int engine_open(const struct engine_config *config, struct engine **out, struct err *e)
{
    return kvm_engine_open(&kvm_sys_host, config, out, e);
}

static void engine_close(struct engine *engine)
{
    if (engine == NULL)
        return;
    for (unsigned i = 0; i < ARRAY_SIZE(engine->seats); i++) {
        if (engine->seats[i].run != NULL)
            munmap(engine->seats[i].run, engine->run_size);
        kvm_close_fd(&engine->seats[i].fd);
    }
    kvm_close_fd(&engine->vm_fd);
    kvm_close_fd(&engine->system_fd);
    soft_engine_fini(&engine->soft);
    free(atomic_load(&engine->stepping_model));
    free(engine);
}

/* ---- vCPUs ---- */

/* Of its paravirtual features KVM is to have those that the guest is told of, as doppel does. */
static int seat_follow_cpuid(struct engine *engine, struct kvm_seat *seat, struct err *e)
{
    struct kvm_enable_cap cap = {.cap = KVM_CAP_ENFORCE_PV_FEATURE_CPUID, .args[0] = 1};

    if (kvm_extension(engine->sys, engine->vm_fd, KVM_CAP_ENFORCE_PV_FEATURE_CPUID) == 0)
        return 0;
    return KVM_CALL(engine->sys, seat->fd, KVM_ENABLE_CAP, &cap, e);
}

static int seat_make(struct engine *engine, unsigned index, struct err *e)
{
    const struct kvm_sys *sys = engine->sys;
    struct kvm_seat *seat = &engine->seats[index];
    void *run;
    int ret;

    if (seat->fd < 0) {
        ret = KVM_CALL(sys, engine->vm_fd, KVM_CREATE_VCPU, (void *)(uintptr_t)index, e);
        if (ret < 0)
            return ret;
        seat->fd = ret;
        ret = seat_follow_cpuid(engine, seat, e);
        if (ret < 0)
            return ret;
    }
    if (seat->run == NULL) {
        run = sys->map(sys->ctx, seat->fd, engine->run_size);
        if (run == MAP_FAILED)
            return err_set(e, errno, "map what KVM shares of CPU %u", index);
        seat->run = run;
    }
    return 0;
}

static void engine_detach(struct engine_vcpu *v)
{
    if (v == NULL)
        return;
    soft_vcpu_fini(&v->soft);
    free(v->xsave);
    free(v);
}

static int engine_attach(struct engine *engine, unsigned index, void *cpu, struct engine_pins *pins,
                         struct engine_vcpu **out, struct err *e)
{
    struct engine_vcpu *v = aligned_alloc(64, align_up(sizeof(*v), 64));
    int ret;

    if (v == NULL)
        return err_set(e, ENOMEM, "allocate CPU %u of the KVM engine", index);
    memset(v, 0, sizeof(*v));
    v->engine = engine;
    v->injected_vector = -1;
    v->apic_base = APIC_BASE_RESET | (index == 0 ? APIC_BASE_BSP : 0);
    ret = soft_vcpu_init(&v->soft, &engine->soft, index, cpu, pins, e);
    if (ret != 0) {
        free(v);
        return ret;
    }
    v->xsave = calloc(1, KVM_XSAVE_BUFFER_SIZE);
    if (v->xsave == NULL)
        ret = err_set(e, ENOMEM, "allocate the vector state of CPU %u", index);
    if (ret == 0)
        ret = seat_make(engine, index, e);
    if (ret == 0) {
        v->fd = engine->seats[index].fd;
        v->run = engine->seats[index].run;
        ret = kvm_cpuid_set(v, e);
    }
    if (ret < 0) {
        engine_detach(v);
        return err_prefix(e, "make CPU %u", index);
    }
    kvm_state_changed(v, CPU_GROUP_ALL);
    *out = v;
    return 0;
}

/*
 * Other processors' interrupt commands reach KVM after `run` has returned here: what was read then
 * may no longer be true.
 */
static void forget(struct engine_vcpu *v, struct err *e)
{
    if (kvm_state_store(v, e) == 0)
        v->valid = CPU_GROUP_TSC;
}

/* A failure here is that of the next `run`. */
static void engine_pull(struct engine_vcpu *v, struct cpu_state *out, uint32_t groups)
{
    if (v->engine->has_apics && v->has_entered && (groups & ~CPU_GROUP_TSC) && v->failure.code == 0)
        forget(v, &v->failure);
    if (v->failure.code == 0)
        kvm_state_fetch(v, groups, &v->failure);
    soft_vcpu_pull(&v->soft, out, groups);
}

static void engine_push(struct engine_vcpu *v, const struct cpu_state *in, uint32_t groups)
{
    soft_vcpu_push(&v->soft, in, groups);
    if (groups & CPU_GROUP_EVENT)
        v->injected_vector = -1;
    if ((groups & CPU_GROUP_ALL) == CPU_GROUP_ALL)
        v->has_entered = false;
    kvm_state_changed(v, groups);
}

static int engine_sync(struct engine_vcpu *v, struct err *e)
{
    if (v->failure.code != 0) {
        *e = v->failure;
        return -e->code;
    }
    return kvm_state_store(v, e);
}

/* ---- memory ---- */

static int slot_set(struct engine *engine, unsigned slot, struct err *e)
{
    const struct kvm_slot *s = &engine->slots[slot];
    struct kvm_userspace_memory_region region = {
        .slot = slot,
        .flags = s->flags,
        .guest_phys_addr = s->addr,
        .memory_size = s->size,
        .userspace_addr = (uintptr_t)s->host,
    };
    int ret = KVM_CALL(engine->sys, engine->vm_fd, KVM_SET_USER_MEMORY_REGION, &region, e);

    return MIN(ret, 0);
}

static int engine_add_ram(struct engine *engine, gpa_t addr, void *host, uint64_t size, bool is_rom,
                          struct err *e)
{
    unsigned slot = 0;
    int ret = soft_engine_add_ram(&engine->soft, addr, host, size, is_rom, e);

    if (ret != 0)
        return ret;
    while (engine->slots[slot].size != 0) /* as many as engine/soft has: one is free */
        slot++;
    engine->slots[slot] = (struct kvm_slot){
        .addr = addr, .size = size, .host = host, .flags = is_rom ? KVM_MEM_READONLY : 0};
    ret = slot_set(engine, slot, e);
    if (ret != 0) {
        engine->slots[slot].size = 0;
        soft_engine_remove_ram(&engine->soft, addr, NULL);
        return err_prefix(e, "add RAM at 0x%" PRIx64, addr);
    }
    return 0;
}

static int engine_remove_ram(struct engine *engine, gpa_t addr, struct err *e)
{
    for (unsigned i = 0; i < ARRAY_SIZE(engine->slots); i++) {
        struct kvm_slot old = engine->slots[i];
        int ret;

        if (old.size == 0 || old.addr != addr)
            continue;
        engine->slots[i].size = 0;
        ret = slot_set(engine, i, e);
        if (ret != 0) {
            engine->slots[i] = old;
            return err_prefix(e, "remove RAM at 0x%" PRIx64, addr);
        }
        return soft_engine_remove_ram(&engine->soft, addr, e);
    }
    return err_set(e, ENOENT, "remove RAM at 0x%" PRIx64, addr);
}

static struct kvm_slot *slot_find(struct engine *engine, gpa_t addr)
{
    for (unsigned i = 0; i < ARRAY_SIZE(engine->slots); i++)
        if (engine->slots[i].size != 0 && engine->slots[i].addr == addr)
            return &engine->slots[i];
    return NULL;
}

/* ---- the dirty log ---- */

/*
 * What the soft vCPUs write while they step over something is KVM's to know as little as it is the
 * guest's: their TLBs note it in the slot's page flags, and forget it with every step.
 */
static void dirty_take_soft(struct engine *engine, gpa_t addr, uint64_t *bitmap)
{
    struct soft_ram *ram = soft_ram_find(&engine->soft, addr);

    for (uint64_t page = 0; page < ram->size >> SOFT_PAGE_SHIFT; page++)
        if (atomic_exchange(&ram->page_flags[page], 0) != 0 && bitmap != NULL)
            bitmap[page / 64] |= BIT(page % 64);
}

static int engine_log_dirty(struct engine *engine, gpa_t addr, bool is_on, struct err *e)
{
    struct kvm_slot *slot = slot_find(engine, addr);
    uint32_t old;
    int ret;

    if (slot == NULL)
        return err_set(e, ENOENT, "log writes to RAM at 0x%" PRIx64, addr);
    old = slot->flags;
    slot->flags = (old & ~KVM_MEM_LOG_DIRTY_PAGES) | (is_on ? KVM_MEM_LOG_DIRTY_PAGES : 0);
    ret = slot_set(engine, (unsigned)(slot - engine->slots), e);
    if (ret != 0) {
        slot->flags = old;
        return err_prefix(e, "log writes to RAM at 0x%" PRIx64, addr);
    }
    dirty_take_soft(engine, addr, NULL);
    return 0;
}

static int engine_take_dirty(struct engine *engine, gpa_t addr, uint64_t *bitmap, struct err *e)
{
    struct kvm_slot *slot = slot_find(engine, addr);
    struct kvm_dirty_log log = {.dirty_bitmap = bitmap};
    int ret;

    if (slot == NULL || !(slot->flags & KVM_MEM_LOG_DIRTY_PAGES))
        return err_set(e, 0, "no writes to RAM at 0x%" PRIx64 " are logged", addr);
    log.slot = (uint32_t)(slot - engine->slots);
    ret = KVM_CALL(engine->sys, engine->vm_fd, KVM_GET_DIRTY_LOG, &log, e);
    if (ret < 0)
        return err_prefix(e, "see what was written to RAM at 0x%" PRIx64, addr);
    dirty_take_soft(engine, addr, bitmap);
    return 0;
}

/* The processor sees changed code by itself. */
static void engine_code_changed(struct engine *engine, gpa_t addr, uint64_t size)
{
}

static int engine_probe(struct err *why)
{
    return kvm_probe(&kvm_sys_host, NULL, why);
}

static int engine_limit_model(enum engine_irqchip irqchip, struct cpu_model_limit *limit,
                              struct err *e)
{
    return kvm_cpuid_limit(&kvm_sys_host, irqchip, limit, e);
}

const struct engine_ops engine_kvm = {
    .name = "kvm",
    .probe = engine_probe,
    .limit_model = engine_limit_model,
    .open = engine_open,
    .close = engine_close,
    .attach = engine_attach,
    .detach = engine_detach,
    .run = kvm_run,
    .kick = kvm_kick,
    .pull = engine_pull,
    .push = engine_push,
    .sync = engine_sync,
    .has_apics = kvm_has_apics,
    .push_apic = kvm_apic_push,
    .pull_apic = kvm_apic_pull,
    .send = kvm_apic_send,
    .watch_eoi = kvm_apic_watch_eoi,
    .add_ram = engine_add_ram,
    .remove_ram = engine_remove_ram,
    .set_bells = kvm_set_bells,
    .log_dirty = engine_log_dirty,
    .take_dirty = engine_take_dirty,
    .code_changed = engine_code_changed,
    .report_stats = kvm_stats_report,
};
