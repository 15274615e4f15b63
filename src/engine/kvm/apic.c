/*
 * apic.c - local APICs in the kernel, which stand in for the machine's
 *
 * KVM's "split" interrupt controller: the local APICs, with their timers, and with them HLT, INIT
 * and start-up, are the kernel's; the 8259 pair, the I/O APIC and the 8254 stay the machine's.
 *
 * Invariants:
 *  - MP state is read before all other registers: reading it is what makes KVM act on an INIT or a
 *    start-up that waits, and that changes them.
 *  - When `run` has returned, nothing waits inside of KVM that no ioctl shows: a one-shot timer
 *    that has expired but is not in IRR yet, an EOI that has not come out (kvm_apic_settle).
 *
 * Spec: Linux, Documentation/virt/kvm/api.rst, KVM_CAP_SPLIT_IRQCHIP, KVM_GET_LAPIC,
 * KVM_GET_MP_STATE, KVM_SET_GSI_ROUTING, KVM_EXIT_IOAPIC_EOI.
 */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "cpu/msr.h"
#include "engine/kvm/kvm.h"

#define REG_STRIDE 16
#define SVR_EOI_SUPPRESS BIT(12)
#define APIC_COUNT_NS_MIN 1u /* the bus clock that KVM's timers count: 1 GHz */

_Static_assert(CPU_APIC_REGS *REG_STRIDE == sizeof(((struct kvm_lapic_state *)NULL)->regs),
               "all of the window's registers");

/* ---- does this host have them? ---- */

static const struct {
    int extension;
    const char *name;
} needed[] = {
    {KVM_CAP_SPLIT_IRQCHIP, "KVM_CAP_SPLIT_IRQCHIP"},
    {KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI"},
    {KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING"},
    {KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE"},
    {KVM_CAP_TSC_DEADLINE_TIMER, "KVM_CAP_TSC_DEADLINE_TIMER"},
};

/*
 * 0: they can be used; else *why. A KVM that interprets is better off without: it can leave the
 * guest to engine/soft for good.
 */
static int find_out(struct engine *engine, enum engine_irqchip irqchip, struct err *why)
{
    for (unsigned i = 0; i < ARRAY_SIZE(needed); i++)
        if (kvm_extension(engine->sys, engine->vm_fd, needed[i].extension) == 0)
            return err_set(why, EOPNOTSUPP, "KVM_CHECK_EXTENSION(%s)", needed[i].name);
    return irqchip == ENGINE_IRQCHIP_AUTO ? kvm_probe(engine->sys, NULL, why) : 0;
}

int kvm_apic_choose(struct engine *engine, enum engine_irqchip irqchip, struct err *e)
{
    struct kvm_enable_cap cap = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args[0] = ENGINE_EOI_MESSAGES};
    struct err why = {0};
    int ret;

    if (irqchip == ENGINE_IRQCHIP_OFF)
        return 0;
    ret = find_out(engine, irqchip, &why);
    if (ret != 0 && irqchip == ENGINE_IRQCHIP_AUTO) {
        log_debug("no interrupt controllers in the kernel: %s", why.msg);
        return 0;
    }
    if (ret != 0) {
        if (e != NULL)
            *e = why;
        return err_prefix(e, "have local APICs in the kernel (--kvm-irqchip auto does without)");
    }
    ret = KVM_CALL(engine->sys, engine->vm_fd, KVM_ENABLE_CAP, &cap, e);
    if (ret < 0)
        return err_prefix(e, "have local APICs in the kernel");
    engine->has_apics = true;
    log_debug("KVM: local APICs in the kernel");
    return 0;
}

bool kvm_has_apics(const struct engine *engine)
{
    return engine->has_apics;
}

/* ---- messages ---- */

int kvm_apic_send(struct engine *engine, const struct cpu_msi *msi, struct err *e)
{
    struct kvm_msi m = {
        .address_lo = (uint32_t)msi->address,
        .address_hi = (uint32_t)(msi->address >> 32),
        .data = msi->data,
    };

    return KVM_CALL(engine->sys, engine->vm_fd, KVM_SIGNAL_MSI, &m, e);
}

/* KVM takes those of its routes that are level-triggered for the I/O APIC's inputs. */
int kvm_apic_watch_eoi(struct engine *engine, const struct cpu_msi *messages, struct err *e)
{
    struct {
        struct kvm_irq_routing head;
        struct kvm_irq_routing_entry entries[ENGINE_EOI_MESSAGES];
    } table = {.head.nr = 0};
    int ret;

    _Static_assert(offsetof(__typeof__(table), entries) == sizeof(struct kvm_irq_routing),
                   "entries follow");
    for (unsigned i = 0; i < ENGINE_EOI_MESSAGES; i++) {
        if (messages[i].address == 0)
            continue;
        table.entries[table.head.nr++] = (struct kvm_irq_routing_entry){
            .gsi = i,
            .type = KVM_IRQ_ROUTING_MSI,
            .u.msi.address_lo = (uint32_t)messages[i].address,
            .u.msi.address_hi = (uint32_t)(messages[i].address >> 32),
            .u.msi.data = messages[i].data,
        };
    }
    ret = KVM_CALL(engine->sys, engine->vm_fd, KVM_SET_GSI_ROUTING, &table, e);
    return MIN(ret, 0);
}

/* ---- MP state ---- */

int kvm_apic_fetch_mp_state(struct engine_vcpu *v, struct err *e)
{
    struct kvm_mp_state mp;
    struct cpu_state *st = &v->soft.st;
    int ret = KVM_CALL(v->engine->sys, v->fd, KVM_GET_MP_STATE, &mp, e);

    if (ret < 0)
        return ret;
    if (st->run_state == CPU_SHUTDOWN) /* KVM knows no such state; INIT or RESET ends it */
        return 0;
    if (mp.mp_state == KVM_MP_STATE_RUNNABLE)
        st->run_state = CPU_RUNNING;
    else if (mp.mp_state == KVM_MP_STATE_HALTED)
        st->run_state = CPU_HALTED;
    else
        st->run_state = CPU_WAIT_SIPI;
    return 0;
}

int kvm_apic_store_mp_state(struct engine_vcpu *v, struct err *e)
{
    static const uint32_t states[] = {
        [CPU_RUNNING] = KVM_MP_STATE_RUNNABLE,
        [CPU_HALTED] = KVM_MP_STATE_HALTED,
        [CPU_WAIT_SIPI] = KVM_MP_STATE_INIT_RECEIVED,
        [CPU_SHUTDOWN] = KVM_MP_STATE_RUNNABLE, /* which is never entered */
    };
    struct kvm_mp_state mp = {.mp_state = states[v->soft.st.run_state & 3]};

    return KVM_CALL(v->engine->sys, v->fd, KVM_SET_MP_STATE, &mp, e);
}

/* ---- the registers ---- */

static uint32_t page_get(const struct kvm_lapic_state *page, unsigned reg)
{
    return load_le32(page->regs + reg * REG_STRIDE);
}

static bool page_is_one_shot(const struct kvm_lapic_state *page)
{
    return (page_get(page, CPU_APIC_LVT_TIMER) & CPU_APIC_TIMER_MODE) == 0 &&
           page_get(page, CPU_APIC_INITIAL_COUNT) != 0;
}

/* How long a count takes: the divider's bits 3, 1, 0 are 000 for 2, 001 for 4 ... 111 for 1. */
static uint64_t page_count_ns(const struct kvm_lapic_state *page)
{
    uint32_t divide = page_get(page, CPU_APIC_DIVIDE);
    unsigned code = (divide & 3) | (divide >> 1 & 4);

    return (uint64_t)APIC_COUNT_NS_MIN << ((code + 1) & 7);
}

struct msr_one {
    struct kvm_msrs head;
    struct kvm_msr_entry entry;
};

static int msr_fetch(struct engine_vcpu *v, uint32_t index, const char *name, uint64_t *value,
                     struct err *e)
{
    struct msr_one msr = {.head.nmsrs = 1, .entry.index = index};
    int ret = KVM_CALL(v->engine->sys, v->fd, KVM_GET_MSRS, &msr, e);

    if (ret == 0)
        ret = err_set(e, EIO, "KVM_GET_MSRS: no %s", name);
    *value = msr.entry.data;
    return MIN(ret, 0);
}

/* 1: taken, 0: refused. */
static int msr_offer(struct engine_vcpu *v, uint32_t index, uint64_t value, struct err *e)
{
    struct msr_one msr = {.head.nmsrs = 1, .entry = {.index = index, .data = value}};

    return KVM_CALL(v->engine->sys, v->fd, KVM_SET_MSRS, &msr, e);
}

static int msr_store(struct engine_vcpu *v, uint32_t index, const char *name, uint64_t value,
                     struct err *e)
{
    int ret = msr_offer(v, index, value, e);

    if (ret == 0)
        ret = err_set(e, EIO, "KVM_SET_MSRS: no %s", name);
    return MIN(ret, 0);
}

static int deadline_fetch(struct engine_vcpu *v, uint64_t *value, struct err *e)
{
    return msr_fetch(v, MSR_TSC_DEADLINE, "TSC deadline", value, e);
}

static int deadline_store(struct engine_vcpu *v, uint64_t value, struct err *e)
{
    return msr_store(v, MSR_TSC_DEADLINE, "TSC deadline", value, e);
}

/* Is it there, the way the guest sees it? KVM refuses those whose CPUID bit is clear. */
static bool has(const struct engine_vcpu *v, enum cpu_feature feature)
{
    return cpu_model_has(v->engine->soft.model, feature);
}

static int paravirtual_fetch(struct engine_vcpu *v, struct cpu_apic *out, struct err *e)
{
    int ret = 0;

    out->poll_control = 1;
    if (has(v, CPU_FEATURE_KVM_PV_EOI))
        ret = msr_fetch(v, MSR_KVM_PV_EOI, "paravirtual EOI", &out->pv_eoi, e);
    if (ret == 0 && has(v, CPU_FEATURE_KVM_POLL_CONTROL))
        ret = msr_fetch(v, MSR_KVM_POLL_CONTROL, "poll control", &out->poll_control, e);
    return ret;
}

/*
 * Where memory is no more that once was, KVM takes no address for EOIs: the guest, whose bit is
 * never set then, ends its interrupts by the register.
 */
static int paravirtual_store(struct engine_vcpu *v, const struct cpu_apic *in, struct err *e)
{
    int ret = 0;

    if (has(v, CPU_FEATURE_KVM_PV_EOI)) {
        ret = msr_offer(v, MSR_KVM_PV_EOI, in->pv_eoi, e);
        if (ret == 0)
            ret = msr_store(v, MSR_KVM_PV_EOI, "paravirtual EOI", 0, e);
    }
    if (ret >= 0 && has(v, CPU_FEATURE_KVM_POLL_CONTROL))
        ret = msr_store(v, MSR_KVM_POLL_CONTROL, "poll control", in->poll_control, e);
    return MIN(ret, 0);
}

/* KVM's timer was armed for the TSC that was. */
int kvm_apic_tsc_changed(struct engine_vcpu *v, struct err *e)
{
    uint64_t deadline;
    int ret = deadline_fetch(v, &deadline, e);

    return ret == 0 && deadline != 0 ? deadline_store(v, deadline, e) : ret;
}

int kvm_apic_push(struct engine_vcpu *v, const struct cpu_apic *in, struct err *e)
{
    struct kvm_lapic_state page = {{0}};
    int ret = kvm_state_set_apic_base(v, in->base, in->reg[CPU_APIC_TPR] >> 4, e);

    for (unsigned i = 0; i < CPU_APIC_REGS; i++)
        store_le32((uint8_t *)page.regs + i * REG_STRIDE, in->reg[i]);
    /* KVM starts its timer from what is left, or not at all when that is nothing */
    if (!in->is_counting)
        store_le32((uint8_t *)page.regs + CPU_APIC_CURRENT_COUNT * REG_STRIDE, 0);
    v->is_shot_pending = in->is_counting && page_is_one_shot(&page);
    v->shot_count = in->reg[CPU_APIC_CURRENT_COUNT];
    v->shot_seen_ns = clock_now_ns();
    if (ret == 0)
        ret = KVM_CALL(v->engine->sys, v->fd, KVM_SET_LAPIC, &page, e);
    if (ret >= 0)
        ret = deadline_store(v, in->deadline_tsc, e);
    if (ret == 0)
        ret = paravirtual_store(v, in, e);
    return ret < 0 ? err_prefix(e, "give the local APIC of CPU %u to KVM", v->soft.index) : 0;
}

/*
 * What the one-shot timer has left: what it had when `run` returned, less the time since. KVM
 * itself does not tell one that expired since then from one whose interrupt was taken long ago.
 */
static void pull_one_shot(struct engine_vcpu *v, const struct kvm_lapic_state *page,
                          struct cpu_apic *out)
{
    uint64_t passed = (clock_now_ns() - v->shot_seen_ns) / page_count_ns(page);

    out->is_counting = v->is_shot_pending;
    out->reg[CPU_APIC_CURRENT_COUNT] =
        v->is_shot_pending && v->shot_count > passed ? (uint32_t)(v->shot_count - passed) : 0;
}

int kvm_apic_pull(struct engine_vcpu *v, struct cpu_apic *out, struct err *e)
{
    struct kvm_lapic_state page;
    int ret = kvm_state_fetch(v, CPU_GROUP_CONTROL, e);

    *out = (struct cpu_apic){0};
    if (ret == 0)
        ret = KVM_CALL(v->engine->sys, v->fd, KVM_GET_LAPIC, &page, e);
    if (ret >= 0)
        ret = deadline_fetch(v, &out->deadline_tsc, e);
    if (ret == 0)
        ret = paravirtual_fetch(v, out, e);
    if (ret < 0)
        return err_prefix(e, "take the local APIC of CPU %u from KVM", v->soft.index);
    for (unsigned i = 0; i < CPU_APIC_REGS; i++)
        out->reg[i] = page_get(&page, i);
    out->base = v->apic_base;
    if (page_is_one_shot(&page))
        pull_one_shot(v, &page, out);
    else
        out->is_counting = out->reg[CPU_APIC_INITIAL_COUNT] != 0;
    return 0;
}

/* ---- leaving `run` ---- */

static int page_fetch(struct engine_vcpu *v, struct kvm_lapic_state *page, struct err *e)
{
    return KVM_CALL(v->engine->sys, v->fd, KVM_GET_LAPIC, page, e);
}

/* Which signals are blocked inside of KVM_RUN; NULL: the same as outside. */
static int set_run_mask(struct engine_vcpu *v, const sigset_t *blocked, struct err *e)
{
    struct {
        struct kvm_signal_mask head;
        uint8_t set[8];
    } mask = {.head.len = sizeof(mask.set)};

    if (blocked == NULL)
        return KVM_CALL(v->engine->sys, v->fd, KVM_SET_SIGNAL_MASK, NULL, e);
    memcpy(mask.set, blocked, sizeof(mask.set));
    return KVM_CALL(v->engine->sys, v->fd, KVM_SET_SIGNAL_MASK, &mask, e);
}

/*
 * KVM_RUN with a signal pending does all that KVM has put off until the next entry, but does not
 * enter the guest; with immediate_exit it does nothing at all.
 */
static int run_in_place(struct engine_vcpu *v, struct err *e)
{
    sigset_t kick, blocked;
    struct timespec now = {0};
    int ret, after;

    sigemptyset(&kick);
    sigaddset(&kick, KVM_KICK_SIGNAL);
    pthread_sigmask(SIG_BLOCK, &kick, &blocked);
    ret = set_run_mask(v, &blocked, e);
    syscall(SYS_tgkill, getpid(), gettid(), KVM_KICK_SIGNAL);
    while (ret >= 0) {
        __atomic_store_n(&v->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
        ret = kvm_run_turn(v, e);
        if (ret != 0)
            break;
        ret = kvm_exit_serve(v, e); /* of an EOI, say */
    }
    after = set_run_mask(v, NULL, ret >= 0 ? e : NULL);
    sigtimedwait(&kick, NULL, &now);
    pthread_sigmask(SIG_SETMASK, &blocked, NULL);
    return ret < 0 ? ret : MIN(after, 0);
}

/* KVM offers the guest to suppress EOI broadcasts, and tells of every EOI all the same. */
int kvm_apic_eoi(struct engine_vcpu *v, uint8_t vector, struct err *e)
{
    struct kvm_lapic_state page;
    int ret = page_fetch(v, &page, e);

    if (ret >= 0 && !(page_get(&page, CPU_APIC_SVR) & SVR_EOI_SUPPRESS))
        v->engine->soft.host->apic_eoi(v->soft.cpu, vector);
    return MIN(ret, 0);
}

int kvm_apic_settle(struct engine_vcpu *v, struct err *e)
{
    struct kvm_lapic_state before, after;
    int ret;

    do {
        ret = page_fetch(v, &before, e);
        if (ret >= 0)
            ret = run_in_place(v, e);
        if (ret >= 0)
            ret = page_fetch(v, &after, e);
        if (ret < 0)
            return ret;
        v->shot_seen_ns = clock_now_ns();
        v->shot_count = page_get(&after, CPU_APIC_CURRENT_COUNT);
        v->is_shot_pending = page_is_one_shot(&after) && v->shot_count != 0;
        /* expired in between: was that before or after KVM looked? */
    } while (page_is_one_shot(&before) && page_get(&before, CPU_APIC_CURRENT_COUNT) != 0 &&
             v->shot_count == 0);
    return 0;
}
