/*
 * state.c - register groups between KVM and the soft vCPU's state
 *
 * Groups are fetched when somebody asks and stored when the guest is entered. What KVM holds of
 * events that are on their way is turned into what the machine knows: an NMI that waits goes back
 * to its pin, an exception becomes `is_exception_pending`; an interrupt that was acknowledged is
 * left in injected_vector, for kvm_deliver_pending.
 *
 * Spec: Linux, Documentation/virt/kvm/api.rst; Intel SDM vol. 3, 26.3 (checks on guest state).
 */
#include <errno.h>
#include <string.h>

#include "cpu/msr.h"
#include "engine/kvm/kvm.h"
#include "os/tsc.h"

#define GROUPS_SREGS (CPU_GROUP_SEG | CPU_GROUP_CONTROL | CPU_GROUP_MSR)
#define XSTATE_BV 512
#define XSTATE_LEGACY (XCR0_X87 | XCR0_SSE)
#define APIC_BASE_EXTD BIT(10)

/* ---- general registers ---- */

static int regs_fetch(struct engine_vcpu *v, struct err *e)
{
    struct cpu_state *st = &v->soft.st;
    struct kvm_regs r;
    int ret = KVM_CALL(v->engine->sys, v->fd, KVM_GET_REGS, &r, e);

    if (ret < 0)
        return ret;
    st->gpr[CPU_RAX] = r.rax;
    st->gpr[CPU_RCX] = r.rcx;
    st->gpr[CPU_RDX] = r.rdx;
    st->gpr[CPU_RBX] = r.rbx;
    st->gpr[CPU_RSP] = r.rsp;
    st->gpr[CPU_RBP] = r.rbp;
    st->gpr[CPU_RSI] = r.rsi;
    st->gpr[CPU_RDI] = r.rdi;
    memcpy(&st->gpr[CPU_R8], &r.r8, 8 * sizeof(r.r8));
    st->rip = r.rip;
    st->rflags = r.rflags;
    return 0;
}

static int regs_store(struct engine_vcpu *v, struct err *e)
{
    const struct cpu_state *st = &v->soft.st;
    struct kvm_regs r = {
        .rax = st->gpr[CPU_RAX],
        .rcx = st->gpr[CPU_RCX],
        .rdx = st->gpr[CPU_RDX],
        .rbx = st->gpr[CPU_RBX],
        .rsp = st->gpr[CPU_RSP],
        .rbp = st->gpr[CPU_RBP],
        .rsi = st->gpr[CPU_RSI],
        .rdi = st->gpr[CPU_RDI],
        .rip = st->rip,
        .rflags = st->rflags,
    };

    memcpy(&r.r8, &st->gpr[CPU_R8], 8 * sizeof(r.r8));
    return KVM_CALL(v->engine->sys, v->fd, KVM_SET_REGS, &r, e);
}

/* ---- segments, control registers, EFER ---- */

static struct cpu_seg seg_from_kvm(const struct kvm_segment *k)
{
    struct cpu_seg s = {.selector = k->selector, .limit = k->limit, .base = k->base};

    s.attr = k->type | (k->s ? SEG_S : 0) | (uint32_t)k->dpl << SEG_DPL_SHIFT |
             (k->present ? SEG_P : 0) | (k->avl ? SEG_AVL : 0) | (k->l ? SEG_L : 0) |
             (k->db ? SEG_DB : 0) | (k->g ? SEG_G : 0);
    if (k->unusable)
        s.attr = (s.attr & ~SEG_P) | SEG_UNUSABLE;
    return s;
}

/* `is_long`: outside of long mode the L bit means nothing, and KVM refuses it. */
static struct kvm_segment seg_to_kvm(const struct cpu_seg *s, bool is_long)
{
    bool is_unusable = (s->attr & SEG_UNUSABLE) != 0;

    return (struct kvm_segment){
        .base = s->base,
        .limit = s->limit,
        .selector = s->selector,
        .type = s->attr & SEG_TYPE_MASK,
        .present = (s->attr & SEG_P) && !is_unusable,
        .dpl = (s->attr & SEG_DPL) >> SEG_DPL_SHIFT,
        .db = (s->attr & SEG_DB) != 0,
        .s = (s->attr & SEG_S) != 0,
        .l = is_long && (s->attr & SEG_L),
        .g = (s->attr & SEG_G) != 0,
        .avl = (s->attr & SEG_AVL) != 0,
        .unusable = is_unusable,
    };
}

/* KVM_GET_SREGS and its successor begin alike; what differs is in the tail. */
static void sregs_from_kvm(struct cpu_state *st, const struct kvm_sregs2 *s)
{
    const struct kvm_segment *segs[CPU_SEG_COUNT] = {
        [CPU_ES] = &s->es, [CPU_CS] = &s->cs, [CPU_SS] = &s->ss,    [CPU_DS] = &s->ds,
        [CPU_FS] = &s->fs, [CPU_GS] = &s->gs, [CPU_LDTR] = &s->ldt, [CPU_TR] = &s->tr,
    };

    for (unsigned i = 0; i < CPU_SEG_COUNT; i++)
        st->seg[i] = seg_from_kvm(segs[i]);
    st->gdtr = (struct cpu_table){.base = s->gdt.base, .limit = s->gdt.limit};
    st->idtr = (struct cpu_table){.base = s->idt.base, .limit = s->idt.limit};
    st->cr0 = s->cr0;
    st->cr2 = s->cr2;
    st->cr3 = s->cr3;
    st->cr4 = s->cr4;
    st->efer = s->efer;
}

/* The local APIC is a device of the machine: KVM only derives CPUID's APIC bit from its base. */
static uint64_t machines_apic_base(const struct engine_vcpu *v)
{
    uint64_t base = 0;

    v->engine->soft.host->msr_read(v->soft.cpu, MSR_APIC_BASE, &base);
    return base & ~APIC_BASE_EXTD;
}

static void sregs_to_kvm(const struct engine_vcpu *v, struct kvm_sregs2 *s)
{
    const struct cpu_state *st = &v->soft.st;
    struct kvm_segment *segs[CPU_SEG_COUNT] = {
        [CPU_ES] = &s->es, [CPU_CS] = &s->cs, [CPU_SS] = &s->ss,    [CPU_DS] = &s->ds,
        [CPU_FS] = &s->fs, [CPU_GS] = &s->gs, [CPU_LDTR] = &s->ldt, [CPU_TR] = &s->tr,
    };

    for (unsigned i = 0; i < CPU_SEG_COUNT; i++)
        *segs[i] = seg_to_kvm(&st->seg[i], cpu_is_long(st));
    s->gdt = (struct kvm_dtable){.base = st->gdtr.base, .limit = st->gdtr.limit};
    s->idt = (struct kvm_dtable){.base = st->idtr.base, .limit = st->idtr.limit};
    s->cr0 = st->cr0;
    s->cr2 = st->cr2;
    s->cr3 = st->cr3;
    s->cr4 = st->cr4;
    s->cr8 = v->engine->has_apics ? v->cr8 : v->run->cr8;
    s->efer = st->efer;
    s->apic_base = v->engine->has_apics ? v->apic_base : machines_apic_base(v);
}

static bool is_pae_paging(const struct cpu_state *st)
{
    return (st->cr0 & CR0_PG) && (st->cr4 & CR4_PAE) && !cpu_is_long(st);
}

/* Kernels that do not show the PDPTE registers load them from memory, so that is what they hold. */
static void pdpte_read(struct engine_vcpu *v)
{
    struct cpu_state *st = &v->soft.st;
    gpa_t addr = st->cr3 & UINT64_C(0xffffffe0);
    struct soft_ram *ram = soft_ram_find(&v->engine->soft, addr);

    if (ram != NULL)
        memcpy(st->pae_pdpte, ram->host + (addr - ram->addr), sizeof(st->pae_pdpte));
}

static int sregs_fetch(struct engine_vcpu *v, struct err *e)
{
    const struct kvm_sys *sys = v->engine->sys;
    struct cpu_state *st = &v->soft.st;
    struct kvm_sregs2 s2 = {0};
    struct kvm_sregs s;
    int ret;

    if (v->engine->caps.has_sregs2) {
        ret = KVM_CALL(sys, v->fd, KVM_GET_SREGS2, &s2, e);
    } else {
        ret = KVM_CALL(sys, v->fd, KVM_GET_SREGS, &s, e);
        if (ret >= 0)
            memcpy(&s2, &s, offsetof(struct kvm_sregs, interrupt_bitmap));
    }
    if (ret < 0)
        return ret;
    sregs_from_kvm(st, &s2);
    v->apic_base = s2.apic_base;
    v->cr8 = s2.cr8;
    if (s2.flags & KVM_SREGS2_FLAGS_PDPTRS_VALID)
        memcpy(st->pae_pdpte, s2.pdptrs, sizeof(st->pae_pdpte));
    else if (is_pae_paging(st))
        pdpte_read(v);
    return 0;
}

static int sregs_store(struct engine_vcpu *v, struct err *e)
{
    const struct kvm_sys *sys = v->engine->sys;
    const struct cpu_state *st = &v->soft.st;
    struct kvm_sregs2 s2 = {0};
    struct kvm_sregs s = {0};

    sregs_to_kvm(v, &s2);
    if (!v->engine->caps.has_sregs2) {
        memcpy(&s, &s2, offsetof(struct kvm_sregs, interrupt_bitmap));
        return KVM_CALL(sys, v->fd, KVM_SET_SREGS, &s, e);
    }
    if (is_pae_paging(st)) {
        s2.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
        memcpy(s2.pdptrs, st->pae_pdpte, sizeof(s2.pdptrs));
    }
    return KVM_CALL(sys, v->fd, KVM_SET_SREGS2, &s2, e);
}

_Static_assert(offsetof(struct kvm_sregs, apic_base) == offsetof(struct kvm_sregs2, apic_base) &&
                   offsetof(struct kvm_sregs, interrupt_bitmap) ==
                       offsetof(struct kvm_sregs2, flags),
               "both begin alike");

/* ---- debug registers ---- */

static int debug_fetch(struct engine_vcpu *v, struct err *e)
{
    struct cpu_state *st = &v->soft.st;
    struct kvm_debugregs d;
    int ret = KVM_CALL(v->engine->sys, v->fd, KVM_GET_DEBUGREGS, &d, e);

    if (ret < 0)
        return ret;
    memcpy(st->dr, d.db, sizeof(st->dr));
    st->dr6 = d.dr6;
    st->dr7 = d.dr7;
    return 0;
}

static int debug_store(struct engine_vcpu *v, struct err *e)
{
    const struct cpu_state *st = &v->soft.st;
    struct kvm_debugregs d = {.dr6 = st->dr6, .dr7 = st->dr7};

    memcpy(d.db, st->dr, sizeof(d.db));
    return KVM_CALL(v->engine->sys, v->fd, KVM_SET_DEBUGREGS, &d, e);
}

/* ---- x87 and vector registers ---- */

static bool has_xsave(const struct engine_vcpu *v)
{
    return v->engine->soft.model->xcr0_valid != 0;
}

static int xsave_fetch(struct engine_vcpu *v, struct err *e)
{
    const struct kvm_sys *sys = v->engine->sys;
    struct cpu_state *st = &v->soft.st;
    struct kvm_xcrs xcrs = {0};
    int ret = 0;

    if (has_xsave(v)) {
        ret = KVM_CALL(sys, v->fd, KVM_GET_XCRS, &xcrs, e);
        for (unsigned i = 0; ret >= 0 && i < MIN(xcrs.nr_xcrs, KVM_MAX_XCRS); i++)
            if (xcrs.xcrs[i].xcr == 0)
                st->xcr0 = xcrs.xcrs[i].value;
    }
    if (ret >= 0 && v->engine->caps.xsave_size > sizeof(struct kvm_xsave))
        ret = KVM_CALL(sys, v->fd, KVM_GET_XSAVE2, v->xsave, e);
    else if (ret >= 0)
        ret = KVM_CALL(sys, v->fd, KVM_GET_XSAVE, v->xsave, e);
    if (ret < 0)
        return ret;
    memcpy(st->xsave, v->xsave, sizeof(st->xsave));
    return 0;
}

static int xsave_store(struct engine_vcpu *v, struct err *e)
{
    const struct kvm_sys *sys = v->engine->sys;
    const struct cpu_state *st = &v->soft.st;
    struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs[0] = {.xcr = 0, .value = st->xcr0}};
    int ret = 0;

    if (has_xsave(v))
        ret = KVM_CALL(sys, v->fd, KVM_SET_XCRS, &xcrs, e);
    if (ret < 0)
        return ret;
    memset(v->xsave, 0, KVM_XSAVE_BUFFER_SIZE);
    memcpy(v->xsave, st->xsave, sizeof(st->xsave));
    /* KVM refuses components that the guest does not have; FXSAVE's image has no header */
    if (has_xsave(v))
        store_le64(v->xsave + XSTATE_BV, load_le64(v->xsave + XSTATE_BV) &
                                             (v->engine->soft.model->xcr0_valid | XSTATE_LEGACY));
    else
        store_le64(v->xsave + XSTATE_BV, XSTATE_LEGACY);
    memset(v->xsave + XSTATE_BV + 8, 0, 56);
    return KVM_CALL(sys, v->fd, KVM_SET_XSAVE, v->xsave, e);
}

/* ---- events ---- */

static int events_fetch(struct engine_vcpu *v, struct err *e)
{
    struct cpu_state *st = &v->soft.st;
    struct kvm_vcpu_events ev = {0};
    int ret = KVM_CALL(v->engine->sys, v->fd, KVM_GET_VCPU_EVENTS, &ev, e);

    if (ret < 0)
        return ret;
    st->shadow = (ev.interrupt.shadow & KVM_X86_SHADOW_INT_STI ? SHADOW_STI : 0) |
                 (ev.interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS ? SHADOW_MOV_SS : 0);
    st->is_nmi_blocked = ev.nmi.masked != 0;
    st->is_exception_pending = ev.exception.injected || ev.exception.pending;
    if (st->is_exception_pending) {
        st->exception_vector = ev.exception.nr;
        st->exception_has_error = ev.exception.has_error_code != 0;
        st->exception_error = ev.exception.error_code;
    }
    st->pending_dbg = 0;
    v->injected_vector = ev.interrupt.injected ? ev.interrupt.nr : -1;
    if (st->is_exception_pending || v->injected_vector >= 0)
        v->dirty |= CPU_GROUP_EVENT;
    if (ev.nmi.pending || ev.nmi.injected) {
        if (ev.nmi.injected) /* on its way in: to be delivered again, from the start */
            st->is_nmi_blocked = 0;
        atomic_fetch_or(&v->soft.pins->bits, PIN_NMI);
        v->dirty |= CPU_GROUP_EVENT;
    }
    if ((ev.flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT) && ev.triple_fault.pending)
        st->run_state = CPU_SHUTDOWN;
    return 0;
}

/*
 * What is pending was delivered in software before: only blocking is left. MP state comes last:
 * KVM acts on nothing that waits before it is entered.
 */
static int events_store(struct engine_vcpu *v, struct err *e)
{
    const struct cpu_state *st = &v->soft.st;
    struct kvm_vcpu_events ev = {
        .flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        .nmi.masked = st->is_nmi_blocked,
    };
    int ret;

    /* the entry checks take one of the two only, and blocking by STI only with IF set */
    if (st->shadow & SHADOW_MOV_SS)
        ev.interrupt.shadow = KVM_X86_SHADOW_INT_MOV_SS;
    else if ((st->shadow & SHADOW_STI) && (st->rflags & RFLAGS_IF))
        ev.interrupt.shadow = KVM_X86_SHADOW_INT_STI;
    if (v->engine->caps.has_triple_fault_event)
        ev.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
    ret = KVM_CALL(v->engine->sys, v->fd, KVM_SET_VCPU_EVENTS, &ev, e);
    return ret >= 0 && v->engine->has_apics ? kvm_apic_store_mp_state(v, e) : ret;
}

/* ---- TSC ---- */

static int offset_store(struct engine_vcpu *v, struct err *e)
{
    uint64_t offset = v->soft.st.tsc_offset;
    struct kvm_device_attr attr = {
        .group = KVM_VCPU_TSC_CTRL,
        .attr = KVM_VCPU_TSC_OFFSET,
        .addr = (uintptr_t)&offset,
    };
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } msrs = {.head.nmsrs = 1, .entry.index = 0x10};

    if (v->engine->caps.has_tsc_offset)
        return KVM_CALL(v->engine->sys, v->fd, KVM_SET_DEVICE_ATTR, &attr, e);
    msrs.entry.data = tsc_read() + offset;
    return KVM_CALL(v->engine->sys, v->fd, KVM_SET_MSRS, &msrs, e);
}

static int tsc_store(struct engine_vcpu *v, struct err *e)
{
    int ret = offset_store(v, e);

    return ret >= 0 && v->engine->has_apics ? kvm_apic_tsc_changed(v, e) : ret;
}

/* ---- all of it ---- */

struct exchange {
    uint32_t groups;
    int (*fetch)(struct engine_vcpu *v, struct err *e);
    int (*store)(struct engine_vcpu *v, struct err *e);
};

/*
 * In the order of stores: EFER and CR4 before what depends on them; general registers drop
 * pending exceptions, so events come last.
 */
static const struct exchange exchanges[] = {
    {GROUPS_SREGS, sregs_fetch, sregs_store},      {CPU_GROUP_CONTROL, debug_fetch, debug_store},
    {CPU_GROUP_MSR, kvm_msr_fetch, kvm_msr_store}, {CPU_GROUP_XSAVE, xsave_fetch, xsave_store},
    {CPU_GROUP_GPR, regs_fetch, regs_store},       {CPU_GROUP_EVENT, events_fetch, events_store},
};

int kvm_state_fetch(struct engine_vcpu *v, uint32_t groups, struct err *e)
{
    int ret;

    /* one ioctl serves three groups, which therefore become valid together */
    if (groups & ~v->valid & GROUPS_SREGS)
        groups |= GROUPS_SREGS;
    groups &= ~v->valid;
    if (groups == 0)
        return 0;
    if (v->engine->has_apics && !(v->valid & CPU_GROUP_EVENT)) {
        groups |= CPU_GROUP_EVENT;
        ret = kvm_apic_fetch_mp_state(v, e);
        if (ret < 0)
            return err_prefix(e, "read the state of CPU %u", v->soft.index);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(exchanges); i++) {
        ret = groups & exchanges[i].groups ? exchanges[i].fetch(v, e) : 0;
        if (ret < 0)
            return err_prefix(e, "read the registers of CPU %u", v->soft.index);
    }
    v->valid |= groups;
    v->soft.is_mode_stale = 1;
    v->stats.counts[KVM_COUNT_FETCH]++;
    return 0;
}

void kvm_state_changed(struct engine_vcpu *v, uint32_t groups)
{
    v->valid |= groups;
    v->dirty |= groups;
}

int kvm_state_set_apic_base(struct engine_vcpu *v, uint64_t base, uint64_t cr8, struct err *e)
{
    int ret = kvm_state_fetch(v, GROUPS_SREGS, e);

    v->apic_base = base;
    v->cr8 = cr8;
    if (ret == 0)
        ret = sregs_store(v, e);
    return MIN(ret, 0);
}

void kvm_state_changed_later(struct engine_vcpu *v, uint32_t groups)
{
    v->dirty |= groups;
}

int kvm_state_store(struct engine_vcpu *v, struct err *e)
{
    int ret = 0;

    if (v->dirty == 0)
        return 0;
    /* KVM_SET_REGS drops exceptions, and shadows are checked against RFLAGS.IF */
    if (v->dirty & (CPU_GROUP_GPR | CPU_GROUP_EVENT))
        ret = kvm_state_fetch(v, CPU_GROUP_GPR | CPU_GROUP_EVENT, e);
    if (ret == 0 && (v->dirty & GROUPS_SREGS))
        ret = kvm_state_fetch(v, GROUPS_SREGS, e);
    if (ret != 0)
        return ret;
    if (v->dirty & CPU_GROUP_GPR)
        v->dirty |= CPU_GROUP_EVENT;
    for (unsigned i = 0; ret >= 0 && i < ARRAY_SIZE(exchanges); i++)
        if (v->dirty & exchanges[i].groups)
            ret = exchanges[i].store(v, e);
    if (ret >= 0 && (v->dirty & CPU_GROUP_TSC))
        ret = tsc_store(v, e);
    if (ret < 0)
        return err_prefix(e, "set the registers of CPU %u", v->soft.index);
    v->dirty = 0;
    v->is_inject_ready = false;
    v->stats.counts[KVM_COUNT_STORE]++;
    return 0;
}
