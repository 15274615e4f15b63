/*
 * acpi_pm.c - ACPI fixed hardware: PM1a event and control, PM timer, GPE0, SMI command port
 *
 * The PM timer is computed from guest time when read; its overflow status is settled when
 * somebody looks, and the host's timer is armed only while that overflow would interrupt.
 *
 * Spec: ACPI 6.5, 4.8 "ACPI Register Model".
 */
#include "dev/platform/acpi_pm.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/bits.h"
#include "base/log.h"
#include "mem/space.h"
#include "os/vclock.h"

#define PM1_TMR 0x0001
#define PM1_GBL 0x0020
#define PM1_PWRBTN 0x0100
/* Events that exist here; the bits are the same in status and enable. */
#define PM1_EVENTS (PM1_TMR | PM1_GBL | PM1_PWRBTN)
/*
 * The FADT says that the RTC cannot wake the machine (FIX_RTC), so its status bit never sets. Its
 * enable bit is there all the same: Linux sets it and complains when it does not read back.
 */
#define PM1_RTC_EN 0x0400
#define PM1_ENABLES (PM1_EVENTS | PM1_RTC_EN)

#define CNT_SCI_EN 0x0001
#define CNT_BM_RLD 0x0002
#define CNT_SLP_TYP 0x1c00
#define CNT_SLP_TYP_SHIFT 10
#define CNT_SLP_EN 0x2000

struct acpi_pm_state {
    uint16_t pm1_status, pm1_enable, pm1_control;
    uint16_t gpe_enable;
    uint8_t smi_command, smi_data;
    uint64_t settled_ns; /* guest time up to which TMR_STS is true */
};

struct acpi_pm {
    pthread_mutex_t lock;
    struct acpi_pm_config config;
    struct vtimer timer;
    struct acpi_pm_state s; /* under lock */
};

static uint64_t timer_ticks(uint64_t ns)
{
    return (uint64_t)((unsigned __int128)ns * ACPI_PM_TIMER_HZ / NS_PER_SEC);
}

/* TMR_STS is set each time the most significant bit changes (4.8.3.3). */
static unsigned timer_msb(const struct acpi_pm *pm)
{
    return pm->config.is_timer_32bit ? 31 : 23;
}

static void timer_settle(struct acpi_pm *pm, uint64_t now_ns)
{
    unsigned shift = timer_msb(pm);
    if (timer_ticks(pm->s.settled_ns) >> shift != timer_ticks(now_ns) >> shift)
        pm->s.pm1_status |= PM1_TMR;
    pm->s.settled_ns = now_ns;
}

/* After any change: drive the SCI, and wait for the next overflow if it matters. */
static void sci_update(struct acpi_pm *pm, uint64_t now_ns)
{
    struct acpi_pm_state *s = &pm->s;
    bool is_acpi_mode = (s->pm1_control & CNT_SCI_EN) != 0;

    irq_set(&pm->config.sci, is_acpi_mode && (s->pm1_status & s->pm1_enable) != 0);
    if (s->pm1_enable & ~s->pm1_status & PM1_TMR) {
        uint64_t tick = ((timer_ticks(now_ns) >> timer_msb(pm)) + 1) << timer_msb(pm);
        unsigned __int128 ns = (unsigned __int128)tick * NS_PER_SEC + ACPI_PM_TIMER_HZ - 1;
        vtimer_arm(&pm->timer, (uint64_t)(ns / ACPI_PM_TIMER_HZ));
    } else {
        vtimer_cancel(&pm->timer);
    }
}

static void timer_fired(void *ctx)
{
    struct acpi_pm *pm = ctx;
    pthread_mutex_lock(&pm->lock);
    uint64_t now_ns = vclock_now_ns(pm->config.clock);
    timer_settle(pm, now_ns);
    sci_update(pm, now_ns);
    pthread_mutex_unlock(&pm->lock);
}

void acpi_pm_press_power_button(struct acpi_pm *pm)
{
    pthread_mutex_lock(&pm->lock);
    uint64_t now_ns = vclock_now_ns(pm->config.clock);
    timer_settle(pm, now_ns);
    pm->s.pm1_status |= PM1_PWRBTN;
    sci_update(pm, now_ns);
    pthread_mutex_unlock(&pm->lock);
}

/* ---- registers ---- */

static uint8_t register_byte(const struct acpi_pm *pm, uint64_t offset, uint64_t now_ns)
{
    const struct acpi_pm_state *s = &pm->s;
    unsigned shift = (unsigned)(offset & 1) * 8;

    switch (offset & ~UINT64_C(1)) {
    case ACPI_PM1_EVT_OFFSET:
        return (uint8_t)(s->pm1_status >> shift);
    case ACPI_PM1_EVT_OFFSET + 2:
        return (uint8_t)(s->pm1_enable >> shift);
    case ACPI_PM1_CNT_OFFSET:
        return (uint8_t)(s->pm1_control >> shift);
    case ACPI_PM_TMR_OFFSET:
    case ACPI_PM_TMR_OFFSET + 2: {
        uint64_t ticks = timer_ticks(now_ns) & (BIT(timer_msb(pm) + 1) - 1);
        return (uint8_t)(ticks >> (offset - ACPI_PM_TMR_OFFSET) * 8);
    }
    case ACPI_PM_GPE0_OFFSET + 2:
        return (uint8_t)(s->gpe_enable >> shift);
    default: /* GPE0 status: no event is wired */
        return 0;
    }
}

static uint64_t acpi_pm_read(void *ctx, uint64_t offset, unsigned size)
{
    struct acpi_pm *pm = ctx;
    uint64_t now_ns = vclock_now_ns(pm->config.clock);
    uint64_t v = 0;

    timer_settle(pm, now_ns);
    for (unsigned i = 0; i < size; i++)
        v |= (uint64_t)register_byte(pm, offset + i, now_ns) << i * 8;
    return v;
}

static void control_byte_write(struct acpi_pm *pm, unsigned shift, uint8_t value)
{
    struct acpi_pm_state *s = &pm->s;
    uint16_t writable = (CNT_BM_RLD | CNT_SLP_TYP) & (uint16_t)(0xff << shift);
    uint16_t word = (uint16_t)(value << shift);

    /* SCI_EN belongs to the hardware (4.8.3.2.1); GBL_RLS and SLP_EN read as 0. */
    s->pm1_control = (s->pm1_control & (uint16_t)~writable) | (word & writable);
    if (!(word & CNT_SLP_EN))
        return;
    unsigned type = (s->pm1_control & CNT_SLP_TYP) >> CNT_SLP_TYP_SHIFT;
    if (type == ACPI_PM_SLP_TYP_S5)
        pm->config.power_off(pm->config.ctx);
    else
        log_guest("guest asks for sleep type %u, which no _Sx object offers", type);
}

static void register_byte_write(struct acpi_pm *pm, uint64_t offset, uint8_t value)
{
    struct acpi_pm_state *s = &pm->s;
    unsigned shift = (unsigned)(offset & 1) * 8;
    uint16_t word = (uint16_t)(value << shift);
    uint16_t mask = (uint16_t)(0xff << shift);

    switch (offset & ~UINT64_C(1)) {
    case ACPI_PM1_EVT_OFFSET:
        s->pm1_status &= (uint16_t)~word;
        break;
    case ACPI_PM1_EVT_OFFSET + 2:
        s->pm1_enable = (s->pm1_enable & (uint16_t)~mask) | (word & PM1_ENABLES);
        break;
    case ACPI_PM1_CNT_OFFSET:
        control_byte_write(pm, shift, value);
        break;
    case ACPI_PM_GPE0_OFFSET + 2:
        s->gpe_enable = (s->gpe_enable & (uint16_t)~mask) | word;
        break;
    default: /* the timer is read-only, the rest is not there */
        break;
    }
}

static void acpi_pm_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct acpi_pm *pm = ctx;
    uint64_t now_ns = vclock_now_ns(pm->config.clock);

    timer_settle(pm, now_ns);
    for (unsigned i = 0; i < size; i++)
        register_byte_write(pm, offset + i, (uint8_t)(value >> i * 8));
    sci_update(pm, now_ns);
}

static uint64_t smi_read(void *ctx, uint64_t offset, unsigned size)
{
    const struct acpi_pm_state *s = &((struct acpi_pm *)ctx)->s;
    return offset == 0 ? s->smi_command : s->smi_data;
}

static void smi_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct acpi_pm *pm = ctx;
    if (offset != 0) {
        pm->s.smi_data = (uint8_t)value;
        return;
    }
    pm->s.smi_command = (uint8_t)value;
    if (pm->s.smi_command == ACPI_PM_ENABLE)
        pm->s.pm1_control |= CNT_SCI_EN;
    else if (pm->s.smi_command == ACPI_PM_DISABLE)
        pm->s.pm1_control &= (uint16_t)~CNT_SCI_EN;
    uint64_t now_ns = vclock_now_ns(pm->config.clock);
    timer_settle(pm, now_ns);
    sci_update(pm, now_ns);
}

static const struct space_ops acpi_pm_ops = {
    .read = acpi_pm_read, .write = acpi_pm_write, .min_size = 1, .max_size = 4};
static const struct space_ops smi_ops = {.read = smi_read, .write = smi_write, .max_size = 1};

int acpi_pm_map(struct acpi_pm *pm, struct space *ports, uint16_t base, uint16_t smi, struct err *e)
{
    int rc = space_add_io(ports, base, ACPI_PM_SIZE, &acpi_pm_ops, pm, &pm->lock, e);
    if (rc == 0)
        rc = space_add_io(ports, smi, 2, &smi_ops, pm, &pm->lock, e);
    return rc;
}

/* ---- set-up ---- */

static void state_reset(struct acpi_pm *pm)
{
    pm->s = (struct acpi_pm_state){
        .pm1_control = CNT_SCI_EN,
        .settled_ns = vclock_now_ns(pm->config.clock),
    };
}

void acpi_pm_reset(struct acpi_pm *pm)
{
    pthread_mutex_lock(&pm->lock);
    state_reset(pm);
    sci_update(pm, pm->s.settled_ns);
    pthread_mutex_unlock(&pm->lock);
}

int acpi_pm_create(const struct acpi_pm_config *config, struct acpi_pm **out, struct err *e)
{
    struct acpi_pm *pm = calloc(1, sizeof(*pm));
    if (pm == NULL)
        return err_set(e, ENOMEM, "make the ACPI power management registers");
    pthread_mutex_init(&pm->lock, NULL);
    pm->config = *config;
    vtimer_init(&pm->timer, config->clock, timer_fired, pm);
    state_reset(pm);
    *out = pm;
    return 0;
}

void acpi_pm_destroy(struct acpi_pm *pm)
{
    if (pm == NULL)
        return;
    vtimer_cancel(&pm->timer);
    pthread_mutex_destroy(&pm->lock);
    free(pm);
}
