/*
 * acpi_pm.h - ACPI fixed hardware: PM1a event and control, PM timer, GPE0, SMI command port
 *
 * Layout from the base given to acpi_pm_map (the FADT's business):
 *   +0  PM1a event block, 4 bytes (status, enable)
 *   +4  PM1a control block, 2 bytes
 *   +8  PM timer, 4 bytes
 *   +32 GPE0 block, 4 bytes (2 status, 2 enable); no event is wired
 * There is no sleep button and no RTC wake-up here: the FADT sets SLP_BUTTON and FIX_RTC.
 *
 * The machine starts in ACPI mode (SCI_EN set), as firmware would hand over a machine with no
 * legacy mode; the SMI command port takes ACPI_PM_ENABLE and ACPI_PM_DISABLE all the same.
 *
 * Threads: set-up and reset by one thread; register accesses come through the space, which
 * takes the device's lock. The SCI is driven, and `power_off` is called, with that lock held;
 * it must not call back. acpi_pm_press_power_button from any thread.
 *
 * Spec: ACPI 6.5, chapter 4, "ACPI Hardware Specification".
 */
#ifndef DOPPEL_DEV_PLATFORM_ACPI_PM_H
#define DOPPEL_DEV_PLATFORM_ACPI_PM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "dev/irq.h"

struct acpi_pm;
struct space;
struct vclock;

#define ACPI_PM_DEFAULT_BASE 0x600
#define ACPI_PM_SIZE 0x40

#define ACPI_PM1_EVT_OFFSET 0
#define ACPI_PM1_EVT_LEN 4
#define ACPI_PM1_CNT_OFFSET 4
#define ACPI_PM1_CNT_LEN 2
#define ACPI_PM_TMR_OFFSET 8
#define ACPI_PM_TMR_LEN 4
#define ACPI_PM_GPE0_OFFSET 32
#define ACPI_PM_GPE0_LEN 4

#define ACPI_PM_TIMER_HZ UINT64_C(3579545)

#define ACPI_PM_SMI_PORT 0xb2 /* 2 ports: command and status */
#define ACPI_PM_ENABLE 0xf1   /* FADT ACPI_ENABLE */
#define ACPI_PM_DISABLE 0xf0  /* FADT ACPI_DISABLE */

#define ACPI_PM_SLP_TYP_S5 5 /* for \_S5 in the DSDT */

struct acpi_pm_config {
    struct vclock *clock;
    struct irq_line sci;          /* level, "asserted is true"; normally IRQ9 */
    bool is_timer_32bit;          /* as FADT TMR_VAL_EXT says */
    void (*power_off)(void *ctx); /* SLP_EN with the S5 type */
    void *ctx;
};

int acpi_pm_create(const struct acpi_pm_config *config, struct acpi_pm **out, struct err *e);

/* The main loop does not run and the space no longer leads here. NULL is allowed. */
void acpi_pm_destroy(struct acpi_pm *pm);

void acpi_pm_reset(struct acpi_pm *pm);

/* Normally at ACPI_PM_DEFAULT_BASE and ACPI_PM_SMI_PORT. */
int acpi_pm_map(struct acpi_pm *pm, struct space *ports, uint16_t base, uint16_t smi,
                struct err *e);

/* Set PWRBTN_STS; with it enabled the SCI follows. Any thread, no lock held. */
void acpi_pm_press_power_button(struct acpi_pm *pm);

#endif
