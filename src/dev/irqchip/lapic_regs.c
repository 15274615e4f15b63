/*
 * lapic_regs.c - the local APIC's registers, memory-mapped (xAPIC) and as MSRs (x2APIC)
 *
 * Where the memory-mapped interface ignores reserved bits and logs illegal registers in ESR,
 * the MSRs fault; nothing has changed when they do.
 *
 * Spec: Intel SDM vol. 3, "Local APIC Register Address Map", "x2APIC Register Address Space".
 */
#include "dev/irqchip/lapic_internal.h"

enum lapic_reg {
    REG_ID = 0x20,
    REG_VERSION = 0x30,
    REG_TPR = 0x80,
    REG_APR = 0x90,
    REG_PPR = 0xa0,
    REG_EOI = 0xb0,
    REG_RRD = 0xc0,
    REG_LDR = 0xd0,
    REG_DFR = 0xe0,
    REG_SVR = 0xf0,
    REG_ISR = 0x100,
    REG_TMR = 0x180,
    REG_IRR = 0x200,
    REG_ESR = 0x280,
    REG_ICR_LOW = 0x300,
    REG_ICR_HIGH = 0x310,
    REG_LVT_TIMER = 0x320,
    REG_LVT_THERMAL = 0x330,
    REG_LVT_PERF = 0x340,
    REG_LVT_LINT0 = 0x350,
    REG_LVT_LINT1 = 0x360,
    REG_LVT_ERROR = 0x370,
    REG_INITIAL_COUNT = 0x380,
    REG_CURRENT_COUNT = 0x390,
    REG_DIVIDE = 0x3e0,
    REG_SELF_IPI = 0x3f0,
};

/* Integrated APIC, six LVT entries, EOI-broadcast suppression. */
#define LAPIC_VERSION (0x14u | (LVT_COUNT - 1) << 16 | 1u << 24)

#define SVR_WRITABLE (0xffu | SVR_ENABLED | SVR_FOCUS | SVR_EOI_SUPPRESS)

/* Bits of an LVT entry that software may set; the status bits besides them are read-only. */
static const uint32_t lvt_writable[LVT_COUNT] = {
    [LVT_TIMER] = LVT_VECTOR | LVT_MASKED | LVT_TIMER_MODE,
    [LVT_THERMAL] = LVT_VECTOR | LVT_MODE | LVT_MASKED,
    [LVT_PERF] = LVT_VECTOR | LVT_MODE | LVT_MASKED,
    [LVT_LINT0] = LVT_VECTOR | LVT_MODE | LVT_POLARITY | LVT_LEVEL | LVT_MASKED,
    [LVT_LINT1] = LVT_VECTOR | LVT_MODE | LVT_POLARITY | LVT_LEVEL | LVT_MASKED,
    [LVT_ERROR] = LVT_VECTOR | LVT_MASKED,
};

#define ICR_WRITABLE (0xfffu | ICR_ASSERT | ICR_LEVEL | BIT(18) | BIT(19))
/* In x2APIC mode the delivery-status bit is gone; processors take a written 1 all the same. */
#define ICR_X2APIC_RESERVED (0xfff00000u | BIT(17) | BIT(16) | BIT(13))

/* What the two interfaces have in common. */

static bool lapic_read_register(struct lapic *lapic, unsigned reg, uint32_t *value)
{
    switch (reg) {
    case REG_VERSION:
        *value = LAPIC_VERSION;
        return true;
    case REG_TPR:
        *value = lapic->tpr;
        return true;
    case REG_PPR:
        *value = lapic_compute_ppr(lapic);
        return true;
    case REG_SVR:
        *value = lapic->svr;
        return true;
    case REG_ISR ... REG_ISR + 0x70:
        *value = lapic->isr.word[(reg - REG_ISR) >> 4];
        return true;
    case REG_TMR ... REG_TMR + 0x70:
        *value = lapic->tmr.word[(reg - REG_TMR) >> 4];
        return true;
    case REG_IRR ... REG_IRR + 0x70:
        *value = lapic->irr.word[(reg - REG_IRR) >> 4];
        return true;
    case REG_ESR:
        *value = lapic->esr;
        return true;
    case REG_LVT_TIMER ... REG_LVT_ERROR:
        *value = lapic->lvt[(reg - REG_LVT_TIMER) >> 4];
        return true;
    case REG_INITIAL_COUNT:
        *value = lapic->timer.initial_count;
        return true;
    case REG_CURRENT_COUNT:
        *value = lapic_timer_read_count(lapic);
        return true;
    case REG_DIVIDE:
        *value = lapic->timer.divide;
        return true;
    default:
        return false;
    }
}

void lapic_write_lvt(struct lapic *lapic, enum lapic_lvt which, uint32_t value)
{
    uint32_t kept = LVT_REMOTE_IRR;

    value &= lvt_writable[which];
    /* "While software-disabled, attempts to reset the mask bits are ignored." */
    if (!lapic_is_soft_enabled(lapic))
        value |= LVT_MASKED;
    if (which == LVT_TIMER) {
        lapic_timer_write_lvt(lapic, value);
        return;
    }
    /* Remote IRR has no meaning for other than level-triggered fixed interrupts. */
    if ((value & LVT_MODE) != 0 || !(value & LVT_LEVEL))
        kept = 0;
    lapic->lvt[which] = value | (lapic->lvt[which] & kept);
    if (which == LVT_LINT0)
        lapic_check_lint0_level(lapic);
}

void lapic_write_svr(struct lapic *lapic, uint32_t value)
{
    bool was_enabled = lapic_is_soft_enabled(lapic);

    lapic->svr = value & SVR_WRITABLE;
    if (was_enabled && !lapic_is_soft_enabled(lapic)) {
        for (unsigned i = 0; i < LVT_COUNT; i++)
            lapic_write_lvt(lapic, i, lapic->lvt[i] | LVT_MASKED);
    }
    lapic_publish_route(lapic);
}

/* EOI and commands, which send something, are not here. False: no such writable register. */
static bool lapic_write_register(struct lapic *lapic, unsigned reg, uint32_t value)
{
    switch (reg) {
    case REG_TPR:
        lapic->tpr = value & 0xff;
        return true;
    case REG_SVR:
        lapic_write_svr(lapic, value);
        return true;
    case REG_ESR:
        lapic->esr = lapic->esr_pending;
        lapic->esr_pending = 0;
        lapic->is_error_armed = true;
        return true;
    case REG_LVT_TIMER ... REG_LVT_ERROR:
        lapic_write_lvt(lapic, (reg - REG_LVT_TIMER) >> 4, value);
        return true;
    case REG_INITIAL_COUNT:
        lapic_timer_write_count(lapic, value);
        return true;
    case REG_DIVIDE:
        lapic_timer_write_divide(lapic, value);
        return true;
    default:
        return false;
    }
}

bool lapic_register_needs_isr(unsigned reg)
{
    switch (reg) {
    case REG_TPR:
    case REG_APR:
    case REG_PPR:
    case REG_EOI:
    case REG_SVR:
    case REG_ISR ... REG_ISR + 0x70:
        return true;
    default:
        return false;
    }
}

/* xAPIC: memory-mapped. */

bool lapic_claims(const struct lapic *lapic, uint64_t addr)
{
    uint64_t base = lapic_base(lapic);

    return (base & (APIC_BASE_EN | APIC_BASE_EXTD)) == APIC_BASE_EN &&
           align_down(addr, LAPIC_WINDOW_SIZE) == align_down(base, LAPIC_WINDOW_SIZE);
}

static uint32_t lapic_xapic_read(struct lapic *lapic, unsigned reg)
{
    uint32_t value = 0;

    switch (reg) {
    case REG_ID:
        return lapic->config.apic_id << 24;
    case REG_APR:
        return lapic_compute_ppr(lapic);
    case REG_EOI:
    case REG_RRD:
        return 0;
    case REG_LDR:
        return lapic->ldr;
    case REG_DFR:
        return lapic->dfr;
    case REG_ICR_LOW:
        return lapic->icr;
    case REG_ICR_HIGH:
        return lapic->icr >> 32;
    default:
        if (!lapic_read_register(lapic, reg, &value)) {
            lapic_log_error(lapic, ESR_ILLEGAL_REGISTER);
            lapic_update(lapic);
        }
        return value;
    }
}

uint64_t lapic_mmio_read(struct lapic *lapic, uint64_t addr, unsigned size)
{
    unsigned offset = addr & (LAPIC_WINDOW_SIZE - 1);

    /* Registers are the first 4 bytes of each 16; the rest is undefined, here zero. */
    if ((offset & 15) >= 4)
        return 0;
    if (lapic_register_needs_isr(offset & ~15u))
        lapic_pv_eoi_sync(lapic);
    pthread_mutex_lock(&lapic->lock);
    uint64_t value = lapic_xapic_read(lapic, offset & ~15u);
    pthread_mutex_unlock(&lapic->lock);
    return (value >> (offset & 15) * 8) & mask_bytes(size);
}

/* Those registers that only the memory-mapped interface has, or has in this form. */
static void lapic_xapic_write(struct lapic *lapic, unsigned reg, uint32_t value)
{
    switch (reg) {
    case REG_ID: /* read-only, as on all recent processors */
    case REG_VERSION:
    case REG_APR:
    case REG_PPR:
    case REG_RRD:
    case REG_ISR ... REG_IRR + 0x70:
    case REG_CURRENT_COUNT:
        break;
    case REG_LDR:
        lapic->ldr = value & 0xff000000;
        lapic_publish_route(lapic);
        break;
    case REG_DFR:
        lapic->dfr = value | 0x0fffffff;
        lapic_publish_route(lapic);
        break;
    case REG_ICR_HIGH:
        lapic->icr = (lapic->icr & UINT32_MAX) | (uint64_t)(value & 0xff000000) << 32;
        break;
    default:
        if (!lapic_write_register(lapic, reg, value))
            lapic_log_error(lapic, ESR_ILLEGAL_REGISTER);
        break;
    }
    lapic_update(lapic);
}

void lapic_mmio_write(struct lapic *lapic, uint64_t addr, uint64_t value, unsigned size)
{
    unsigned reg = addr & (LAPIC_WINDOW_SIZE - 1);

    /* Anything but an aligned 32-bit store is undefined; nothing happens. */
    if ((reg & 15) != 0 || size < 4)
        return;
    if (lapic->is_lent)
        return;
    if (lapic_register_needs_isr(reg))
        lapic_pv_eoi_sync(lapic);
    pthread_mutex_lock(&lapic->lock);
    switch (reg) {
    case REG_EOI: {
        int vector = lapic_end_of_interrupt(lapic);
        pthread_mutex_unlock(&lapic->lock);
        if (vector >= 0)
            apic_bus_eoi(lapic->config.bus, vector);
        return;
    }
    case REG_ICR_LOW:
        lapic->icr = (lapic->icr & ~(uint64_t)UINT32_MAX) | (value & ICR_WRITABLE);
        lapic_command(lapic, lapic->icr);
        return;
    default:
        lapic_xapic_write(lapic, reg, value);
        pthread_mutex_unlock(&lapic->lock);
    }
}

/* x2APIC: MSRs, where what is reserved faults. */

bool lapic_x2apic_read(struct lapic *lapic, unsigned reg, uint64_t *value)
{
    uint32_t low = 0;

    switch (reg) {
    case REG_ID:
        *value = lapic->config.apic_id;
        return true;
    case REG_LDR:
        *value = atomic_load_explicit(&lapic->route, memory_order_relaxed) & ROUTE_LDR;
        return true;
    case REG_ICR_LOW:
        *value = lapic->icr;
        return true;
    default:
        if (!lapic_read_register(lapic, reg, &low))
            return false;
        *value = low;
        return true;
    }
}

/* Bits that WRMSR may have set in each register; 0 with false: not writable. */
static bool lapic_x2apic_writable(unsigned reg, uint64_t *mask)
{
    switch (reg) {
    case REG_TPR:
    case REG_SELF_IPI:
        *mask = 0xff;
        return true;
    case REG_EOI:
    case REG_ESR:
        *mask = 0;
        return true;
    case REG_SVR:
        *mask = SVR_WRITABLE;
        return true;
    case REG_ICR_LOW:
        *mask = ~(uint64_t)ICR_X2APIC_RESERVED;
        return true;
    case REG_LVT_TIMER ... REG_LVT_ERROR:
        /* The read-only bits may be written back as they were read. */
        *mask = lvt_writable[(reg - REG_LVT_TIMER) >> 4] | LVT_STATUS;
        if (reg == REG_LVT_LINT0 || reg == REG_LVT_LINT1)
            *mask |= LVT_REMOTE_IRR;
        return true;
    case REG_INITIAL_COUNT:
        *mask = UINT32_MAX;
        return true;
    case REG_DIVIDE:
        *mask = 0xb;
        return true;
    default:
        return false;
    }
}

bool lapic_x2apic_write(struct lapic *lapic, unsigned reg, uint64_t value)
{
    uint64_t mask;

    if (!lapic_x2apic_writable(reg, &mask) || (value & ~mask) != 0)
        return false;
    if (lapic_register_needs_isr(reg))
        lapic_pv_eoi_sync(lapic);
    pthread_mutex_lock(&lapic->lock);
    switch (reg) {
    case REG_EOI: {
        int vector = lapic_end_of_interrupt(lapic);
        pthread_mutex_unlock(&lapic->lock);
        if (vector >= 0)
            apic_bus_eoi(lapic->config.bus, vector);
        return true;
    }
    case REG_ICR_LOW:
        lapic->icr = value & ~(uint64_t)LVT_STATUS;
        lapic_command(lapic, lapic->icr);
        return true;
    case REG_SELF_IPI:
        lapic_command(lapic, value | (uint64_t)ICR_SELF << 18 | ICR_ASSERT);
        return true;
    default:
        lapic_write_register(lapic, reg, value);
        lapic_update(lapic);
        pthread_mutex_unlock(&lapic->lock);
        return true;
    }
}

/* ---- exchange with whoever stands in ---- */

static void vectors_lend(const struct lapic_vectors *v, uint32_t *reg)
{
    for (unsigned i = 0; i < ARRAY_SIZE(v->word); i++)
        reg[i] = v->word[i];
}

/* Vectors 0 to 15 cannot be there. */
static void vectors_take_back(struct lapic_vectors *v, const uint32_t *reg)
{
    for (unsigned i = 0; i < ARRAY_SIZE(v->word); i++)
        v->word[i] = reg[i];
    v->word[0] &= 0xffff0000;
}

void lapic_regs_lend(const struct lapic *lapic, struct cpu_apic *out)
{
    out->reg[CPU_APIC_ID] = lapic->config.apic_id << 24;
    out->reg[CPU_APIC_VERSION] = LAPIC_VERSION;
    out->reg[CPU_APIC_TPR] = lapic->tpr;
    out->reg[CPU_APIC_LDR] = lapic->ldr;
    out->reg[CPU_APIC_DFR] = lapic->dfr;
    out->reg[CPU_APIC_SVR] = lapic->svr;
    vectors_lend(&lapic->isr, &out->reg[CPU_APIC_ISR]);
    vectors_lend(&lapic->tmr, &out->reg[CPU_APIC_TMR]);
    vectors_lend(&lapic->irr, &out->reg[CPU_APIC_IRR]);
    out->reg[CPU_APIC_ESR] = lapic->esr;
    out->reg[CPU_APIC_ICR_LOW] = (uint32_t)lapic->icr;
    out->reg[CPU_APIC_ICR_HIGH] = (uint32_t)(lapic->icr >> 32);
    for (unsigned i = 0; i < LVT_COUNT; i++)
        out->reg[CPU_APIC_LVT_TIMER + i] = lapic->lvt[i];
}

void lapic_regs_take_back(struct lapic *lapic, const struct cpu_apic *in)
{
    lapic->tpr = in->reg[CPU_APIC_TPR] & 0xff;
    /* in x2APIC mode it follows from the ID */
    if (!lapic_is_x2apic(lapic))
        lapic->ldr = in->reg[CPU_APIC_LDR] & 0xff000000;
    lapic->dfr = in->reg[CPU_APIC_DFR] | 0x0fffffff;
    lapic->svr = in->reg[CPU_APIC_SVR] & SVR_WRITABLE;
    vectors_take_back(&lapic->isr, &in->reg[CPU_APIC_ISR]);
    vectors_take_back(&lapic->tmr, &in->reg[CPU_APIC_TMR]);
    vectors_take_back(&lapic->irr, &in->reg[CPU_APIC_IRR]);
    lapic->esr = in->reg[CPU_APIC_ESR];
    lapic->icr = in->reg[CPU_APIC_ICR_LOW] | (uint64_t)in->reg[CPU_APIC_ICR_HIGH] << 32;
    for (unsigned i = 0; i < LVT_COUNT; i++) {
        uint32_t kept = i == LVT_LINT0 || i == LVT_LINT1 ? LVT_REMOTE_IRR : 0;
        lapic->lvt[i] = in->reg[CPU_APIC_LVT_TIMER + i] & (lvt_writable[i] | kept);
    }
}
