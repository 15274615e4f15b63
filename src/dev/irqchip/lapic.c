/*
 * lapic.c - local APIC: acceptance of interrupts, commands, pins, modes
 *
 * The INTR pin is recomputed (lapic_update) at the end of every change under the lock, so it
 * never lags behind IRR, ISR and TPR. What leaves the chip for other local APICs or for the
 * IOAPICs (commands, EOI broadcasts) is sent after the lock is dropped.
 *
 * Spec: Intel SDM vol. 3, "Advanced Programmable Interrupt Controller (APIC)".
 */
#include "dev/irqchip/lapic.h"

#include <errno.h>
#include <stdlib.h>

#include "base/log.h"
#include "dev/irqchip/lapic_internal.h"
#include "os/futex.h"

/* Publish what the bus looks at. */
void lapic_publish_route(struct lapic *lapic)
{
    uint64_t route = lapic->ldr | (uint64_t)(lapic->dfr >> 28) << ROUTE_DFR_SHIFT;
    uint32_t id = lapic->config.apic_id;

    if (lapic_is_x2apic(lapic))
        route = (id >> 4 << 16 | 1u << (id & 15)) | ROUTE_X2APIC;
    if (lapic_base(lapic) & APIC_BASE_EN)
        route |= ROUTE_PRESENT;
    if (lapic_is_soft_enabled(lapic))
        route |= ROUTE_SOFT_ENABLED;
    atomic_store_explicit(&lapic->route, route, memory_order_release);
}

/* Priority and the INTR pin. */

uint8_t lapic_compute_ppr(const struct lapic *lapic)
{
    int in_service = vectors_highest(&lapic->isr);
    uint32_t isr_class = in_service < 0 ? 0 : (uint32_t)in_service & 0xf0;

    return (lapic->tpr & 0xf0) >= isr_class ? lapic->tpr : isr_class;
}

/* The vector that would be delivered now, or -1. */
static int lapic_deliverable(const struct lapic *lapic, uint8_t ppr)
{
    int vector = lapic->is_lent ? -1 : vectors_highest(&lapic->irr);

    return vector >= 0 && (vector & 0xf0) > (ppr & 0xf0) ? vector : -1;
}

/* Does the 8259 reach the processor, and does it ask for attention? */
static bool lapic_has_extint(const struct lapic *lapic)
{
    if (lapic->config.pic_acknowledge == NULL)
        return false;
    /* Globally disabled: LINT0 is the processor's INTR pin. Lent: who has it looks at its LVT. */
    if (lapic->is_lent || !(lapic_base(lapic) & APIC_BASE_EN))
        return lapic->lint_level[0];
    if (lapic->is_extint_pending)
        return true;
    return lapic->lint_level[0] &&
           (lapic->lvt[LVT_LINT0] & (LVT_MASKED | LVT_MODE)) == APIC_EXTINT << LVT_MODE_SHIFT;
}

void lapic_update(struct lapic *lapic)
{
    uint8_t ppr = lapic_compute_ppr(lapic);
    /* the one in service may have been ended already: lapic_acknowledge finds out */
    uint8_t ppr_at_least = lapic->is_pv_eoi_armed ? (uint8_t)lapic->tpr : ppr;
    bool level = lapic_deliverable(lapic, ppr_at_least) >= 0 || lapic_has_extint(lapic);

    atomic_store_explicit(&lapic->ppr, ppr, memory_order_relaxed);
    if (level == lapic->intr_level)
        return;
    lapic->intr_level = level;
    lapic->config.ops->set_intr(lapic->config.cpu, level);
}

/* Errors and local interrupts. */

static void lapic_deliver_lvt(struct lapic *lapic, enum lapic_lvt which, bool is_level);

void lapic_log_error(struct lapic *lapic, uint32_t esr_bit)
{
    lapic->esr_pending |= esr_bit;
    /* One interrupt until software has looked, which a write to ESR shows. */
    if (!lapic->is_error_armed)
        return;
    lapic->is_error_armed = false;
    lapic_deliver_lvt(lapic, LVT_ERROR, false);
}

bool lapic_request(struct lapic *lapic, uint8_t vector, bool is_level)
{
    if (vector < 16) {
        lapic_log_error(lapic, ESR_RECEIVE_ILLEGAL_VECTOR);
        return false;
    }
    vectors_set(&lapic->irr, vector);
    if (is_level)
        vectors_set(&lapic->tmr, vector);
    else
        vectors_clear(&lapic->tmr, vector);
    return true;
}

/* An unmasked local interrupt source fires. ExtINT is a level and looked at in lapic_update. */
static void lapic_deliver_lvt(struct lapic *lapic, enum lapic_lvt which, bool is_level)
{
    const struct lapic_ops *ops = lapic->config.ops;
    uint32_t lvt = lapic->lvt[which];

    if (lvt & LVT_MASKED)
        return;
    switch ((lvt & LVT_MODE) >> LVT_MODE_SHIFT) {
    case APIC_FIXED:
        lapic_request(lapic, lvt & LVT_VECTOR, is_level);
        break;
    case APIC_NMI:
        ops->raise_nmi(lapic->config.cpu);
        break;
    case APIC_INIT:
        ops->raise_init(lapic->config.cpu);
        break;
    default:
        break;
    }
}

/* A level-triggered fixed interrupt on LINT0: once for each EOI while the pin is asserted. */
void lapic_check_lint0_level(struct lapic *lapic)
{
    uint32_t *lvt = &lapic->lvt[LVT_LINT0];

    if (!lapic->lint_level[0] || (*lvt & (LVT_MODE | LVT_MASKED | LVT_REMOTE_IRR)) != 0)
        return;
    if (!(*lvt & LVT_LEVEL))
        return;
    *lvt |= LVT_REMOTE_IRR;
    lapic_deliver_lvt(lapic, LVT_LINT0, true);
}

static void lapic_set_lint(void *sink, unsigned pin, bool level)
{
    struct lapic *lapic = sink;

    pthread_mutex_lock(&lapic->lock);
    bool is_rising = level && !lapic->lint_level[pin];
    lapic->lint_level[pin] = level;
    if (lapic->is_lent) {
        if (is_rising && pin == 1)
            log_guest("local APIC %u: LINT1 leads nowhere while it is lent", lapic->config.apic_id);
    } else if (!(lapic_base(lapic) & APIC_BASE_EN)) {
        if (is_rising && pin == 1)
            lapic->config.ops->raise_nmi(lapic->config.cpu);
    } else if (is_rising) {
        enum lapic_lvt which = pin == 0 ? LVT_LINT0 : LVT_LINT1;
        uint32_t lvt = lapic->lvt[which];
        /* LINT1 is always edge-triggered, and so is everything but fixed delivery. */
        if (pin == 0 && (lvt & LVT_LEVEL) && (lvt & LVT_MODE) == 0)
            lapic_check_lint0_level(lapic);
        else
            lapic_deliver_lvt(lapic, which, false);
    }
    lapic_update(lapic);
    pthread_mutex_unlock(&lapic->lock);
}

struct irq_line lapic_lint(struct lapic *lapic, unsigned pin)
{
    return (struct irq_line){.set = lapic_set_lint, .sink = lapic, .input = pin & 1};
}

bool lapic_accept(struct lapic *lapic, const struct apic_message *msg)
{
    const struct lapic_ops *ops = lapic->config.ops;
    bool is_accepted = true;

    /* the CPU that is woken for it acknowledges first of all, under the lock */
    futex_hold_wakes();
    pthread_mutex_lock(&lapic->lock);
    switch (msg->mode) {
    case APIC_FIXED:
    case APIC_LOWEST:
        is_accepted =
            lapic_is_soft_enabled(lapic) && lapic_request(lapic, msg->vector, msg->is_level);
        break;
    case APIC_NMI:
        ops->raise_nmi(lapic->config.cpu);
        break;
    case APIC_INIT:
        /* A level de-assert synchronised arbitration IDs once; today it does nothing. */
        if (msg->is_asserted)
            ops->raise_init(lapic->config.cpu);
        break;
    case APIC_SIPI:
        ops->raise_sipi(lapic->config.cpu, msg->vector);
        break;
    case APIC_EXTINT:
        lapic->is_extint_pending = true;
        break;
    default:
        /* SMI: there is no system-management mode to enter. */
        is_accepted = false;
        break;
    }
    lapic_update(lapic);
    pthread_mutex_unlock(&lapic->lock);
    futex_release_wakes();
    return is_accepted;
}

int lapic_acknowledge(struct lapic *lapic)
{
    bool is_armed = false;
    int vector = -1;

    lapic_pv_eoi_sync(lapic);
    pthread_mutex_lock(&lapic->lock);
    if (lapic_has_extint(lapic)) {
        lapic->is_extint_pending = false;
        lapic_update(lapic);
        pthread_mutex_unlock(&lapic->lock);
        return lapic->config.pic_acknowledge(lapic->config.pic);
    }
    vector = lapic_deliverable(lapic, lapic_compute_ppr(lapic));
    if (vector >= 0) {
        vectors_clear(&lapic->irr, vector);
        vectors_set(&lapic->isr, vector);
        is_armed = lapic->is_pv_eoi_armed = lapic_pv_eoi_is_safe(lapic, vector);
        lapic_update(lapic);
    }
    pthread_mutex_unlock(&lapic->lock);
    if (is_armed)
        lapic_pv_eoi_arm(lapic);
    return vector;
}

int lapic_end_of_interrupt(struct lapic *lapic)
{
    int vector = vectors_highest(&lapic->isr);
    uint32_t *lint0 = &lapic->lvt[LVT_LINT0];

    if (vector < 0)
        return -1;
    vectors_clear(&lapic->isr, vector);
    bool is_level = vectors_test(&lapic->tmr, vector);
    if ((*lint0 & LVT_REMOTE_IRR) && (*lint0 & LVT_VECTOR) == (uint32_t)vector) {
        *lint0 &= ~LVT_REMOTE_IRR;
        lapic_check_lint0_level(lapic);
    }
    lapic_timer_eoi(lapic, vector);
    lapic_update(lapic);
    return is_level && !(lapic->svr & SVR_EOI_SUPPRESS) ? vector : -1;
}

/* Interrupt commands. */

/* May this be sent at all? Logs illegal vectors. */
static bool lapic_check_command(struct lapic *lapic, uint64_t icr)
{
    bool is_to_self = ICR_SHORTHAND(icr) == ICR_SELF || ICR_SHORTHAND(icr) == ICR_ALL;

    switch (ICR_MODE(icr)) {
    case APIC_FIXED:
    case APIC_LOWEST:
        if ((icr & ICR_VECTOR) < 16) {
            lapic_log_error(lapic, ESR_SEND_ILLEGAL_VECTOR);
            return false;
        }
        return true;
    case APIC_NMI:
        return true;
    case APIC_INIT:
    case APIC_SIPI:
        /* Not with these shorthands (SDM, "Valid Combinations for the ICR"). */
        return !is_to_self;
    default:
        return false;
    }
}

static void lapic_send(struct lapic *lapic, uint64_t icr, bool is_from_x2apic)
{
    struct apic_message msg = apic_message_from_icr(icr);

    switch (ICR_SHORTHAND(icr)) {
    case ICR_DEST_FIELD:
        msg.dest = is_from_x2apic ? icr >> 32 : apic_dest_from_8bit(icr >> 56, msg.is_logical);
        apic_bus_deliver(lapic->config.bus, &msg);
        break;
    case ICR_SELF:
        lapic_accept(lapic, &msg);
        break;
    case ICR_ALL:
        apic_bus_broadcast(lapic->config.bus, &msg, NULL);
        break;
    case ICR_ALL_BUT_SELF:
        apic_bus_broadcast(lapic->config.bus, &msg, lapic);
        break;
    }
}

void lapic_command(struct lapic *lapic, uint64_t icr)
{
    bool is_from_x2apic = lapic_is_x2apic(lapic);
    bool is_sent = lapic_check_command(lapic, icr);

    lapic_update(lapic);
    pthread_mutex_unlock(&lapic->lock);
    if (is_sent)
        lapic_send(lapic, icr, is_from_x2apic);
    else
        log_guest("local APIC %u: interrupt command %#llx is not valid", lapic->config.apic_id,
                  (unsigned long long)icr);
}

/* Reset. */

/* Everything but base, ID and pins, with the lock held. */
static void lapic_reset_registers(struct lapic *lapic)
{
    lapic->irr = lapic->isr = lapic->tmr = (struct lapic_vectors){{0}};
    lapic->tpr = 0;
    lapic->ldr = 0;
    lapic->dfr = UINT32_MAX;
    lapic->svr = 0xff;
    lapic->esr = 0;
    lapic->esr_pending = 0;
    lapic->is_error_armed = true;
    lapic->icr = 0;
    lapic->is_extint_pending = false;
    lapic_timer_reset(lapic);
    for (unsigned i = 0; i < LVT_COUNT; i++)
        lapic->lvt[i] = LVT_MASKED;
    lapic_publish_route(lapic);
}

void lapic_init_reset(struct lapic *lapic)
{
    pthread_mutex_lock(&lapic->lock);
    lapic_pv_eoi_drop(lapic);
    lapic_reset_registers(lapic);
    lapic_update(lapic);
    pthread_mutex_unlock(&lapic->lock);
}

void lapic_reset(struct lapic *lapic)
{
    uint64_t base = LAPIC_DEFAULT_BASE | APIC_BASE_EN;

    if (lapic->config.is_bsp)
        base |= APIC_BASE_BSP;
    pthread_mutex_lock(&lapic->lock);
    atomic_store_explicit(&lapic->base, base, memory_order_relaxed);
    lapic_pv_eoi_drop(lapic);
    lapic_reset_registers(lapic);
    lapic_update(lapic);
    pthread_mutex_unlock(&lapic->lock);
}

void lapic_set_virtual_wire(struct lapic *lapic)
{
    pthread_mutex_lock(&lapic->lock);
    lapic_write_svr(lapic, SVR_ENABLED | 0xf);
    lapic_write_lvt(lapic, LVT_LINT0, APIC_EXTINT << LVT_MODE_SHIFT);
    lapic_write_lvt(lapic, LVT_LINT1, APIC_NMI << LVT_MODE_SHIFT);
    lapic_update(lapic);
    pthread_mutex_unlock(&lapic->lock);
}

static bool lapic_write_base(struct lapic *lapic, uint64_t value)
{
    uint64_t old = lapic_base(lapic);
    uint64_t mode = value & (APIC_BASE_EN | APIC_BASE_EXTD);
    uint64_t old_mode = old & (APIC_BASE_EN | APIC_BASE_EXTD);
    uint64_t allowed = APIC_BASE_BSP | APIC_BASE_EXTD | APIC_BASE_EN |
                       align_down(mask_bytes(8) >> (64 - lapic->config.phys_bits), 4096);

    if (lapic->config.without_x2apic)
        allowed &= ~APIC_BASE_EXTD;
    if (value & ~allowed)
        return false;
    /* SDM, "x2APIC State Transitions": off - xAPIC - x2APIC - off, no other way. */
    if (mode == APIC_BASE_EXTD)
        return false;
    if (mode == (APIC_BASE_EN | APIC_BASE_EXTD) && old_mode == 0)
        return false;
    if (mode == APIC_BASE_EN && old_mode == (APIC_BASE_EN | APIC_BASE_EXTD))
        return false;

    lapic_pv_eoi_sync(lapic);
    pthread_mutex_lock(&lapic->lock);
    atomic_store_explicit(&lapic->base, value, memory_order_relaxed);
    /* "The APIC may return to the state of a power-up reset" when it is disabled; it does. */
    if (mode == 0 && old_mode != 0)
        lapic_reset_registers(lapic);
    if ((mode ^ old_mode) & APIC_BASE_EXTD)
        lapic->icr &= UINT32_MAX;
    lapic_publish_route(lapic);
    lapic_update(lapic);
    pthread_mutex_unlock(&lapic->lock);
    return true;
}

bool lapic_msr_read(struct lapic *lapic, uint32_t index, uint64_t *value)
{
    unsigned reg = (index - LAPIC_MSR_X2APIC_FIRST) << 4;
    bool is_known = true;

    if (index == LAPIC_MSR_APIC_BASE) {
        *value = lapic_base(lapic);
        return true;
    }
    if (index != LAPIC_MSR_TSC_DEADLINE && lapic_register_needs_isr(reg))
        lapic_pv_eoi_sync(lapic);
    pthread_mutex_lock(&lapic->lock);
    if (index == LAPIC_MSR_TSC_DEADLINE) {
        *value = lapic_timer_read_deadline(lapic);
        is_known = !lapic->config.without_tsc_deadline;
    } else {
        is_known = lapic_is_x2apic(lapic) && lapic_x2apic_read(lapic, reg, value);
    }
    pthread_mutex_unlock(&lapic->lock);
    return is_known;
}

bool lapic_msr_write(struct lapic *lapic, uint32_t index, uint64_t value)
{
    if (lapic->is_lent)
        return false;
    if (index == LAPIC_MSR_APIC_BASE)
        return lapic_write_base(lapic, value);
    if (index != LAPIC_MSR_TSC_DEADLINE) {
        return lapic_is_x2apic(lapic) &&
               lapic_x2apic_write(lapic, (index - LAPIC_MSR_X2APIC_FIRST) << 4, value);
    }
    if (lapic->config.without_tsc_deadline)
        return false;
    pthread_mutex_lock(&lapic->lock);
    lapic_timer_write_deadline(lapic, value);
    lapic_update(lapic);
    pthread_mutex_unlock(&lapic->lock);
    return true;
}

void lapic_tsc_changed(struct lapic *lapic)
{
    pthread_mutex_lock(&lapic->lock);
    uint64_t deadline = lapic_timer_read_deadline(lapic);
    if (deadline != 0)
        lapic_timer_write_deadline(lapic, deadline);
    lapic_update(lapic);
    pthread_mutex_unlock(&lapic->lock);
}

uint64_t lapic_cr8_read(struct lapic *lapic)
{
    pthread_mutex_lock(&lapic->lock);
    uint64_t value = lapic->tpr >> 4;
    pthread_mutex_unlock(&lapic->lock);
    return value;
}

void lapic_cr8_write(struct lapic *lapic, uint64_t value)
{
    lapic_pv_eoi_sync(lapic);
    pthread_mutex_lock(&lapic->lock);
    lapic->tpr = (value & 0xf) << 4;
    lapic_update(lapic);
    pthread_mutex_unlock(&lapic->lock);
}

void lapic_lend(struct lapic *lapic, struct cpu_apic *out)
{
    lapic_pv_eoi_sync(lapic);
    pthread_mutex_lock(&lapic->lock);
    *out = (struct cpu_apic){.base = lapic_base(lapic), .pv_eoi = lapic->pv_eoi_msr};
    lapic_timer_lend(lapic, out); /* what is due may still get into IRR */
    lapic_regs_lend(lapic, out);
    lapic->is_lent = true;
    lapic_update(lapic);
    pthread_mutex_unlock(&lapic->lock);
}

void lapic_take_back(struct lapic *lapic, const struct cpu_apic *in)
{
    pthread_mutex_lock(&lapic->lock);
    lapic->is_lent = false;
    lapic->pv_eoi_msr = in->pv_eoi;
    atomic_store_explicit(&lapic->base, in->base, memory_order_relaxed);
    lapic_regs_take_back(lapic, in);
    lapic_timer_take_back(lapic, in);
    lapic_publish_route(lapic);
    lapic_update(lapic);
    pthread_mutex_unlock(&lapic->lock);
}

uint32_t lapic_apic_id(const struct lapic *lapic)
{
    return lapic->config.apic_id;
}

bool lapic_is_bsp(const struct lapic *lapic)
{
    return (lapic_base(lapic) & APIC_BASE_BSP) != 0;
}

bool lapic_is_enabled(const struct lapic *lapic)
{
    return (lapic_base(lapic) & APIC_BASE_EN) != 0;
}

int lapic_create(const struct lapic_config *config, struct lapic **out, struct err *e)
{
    struct lapic *lapic = calloc(1, sizeof(*lapic));
    int ret;

    if (lapic == NULL)
        return err_set(e, ENOMEM, "make local APIC %u", config->apic_id);
    lapic->config = *config;
    ret = apic_bus_add(config->bus, lapic, e);
    if (ret < 0) {
        free(lapic);
        return ret;
    }
    pthread_mutex_init(&lapic->lock, NULL);
    lapic_timer_init(lapic);
    lapic_reset(lapic);
    *out = lapic;
    return 0;
}

void lapic_destroy(struct lapic *lapic)
{
    if (lapic == NULL)
        return;
    apic_bus_remove(lapic->config.bus, lapic);
    vtimer_cancel(&lapic->timer.vtimer);
    pthread_mutex_destroy(&lapic->lock);
    free(lapic);
}
