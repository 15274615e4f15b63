/*
 * hpet.h - high precision event timer: a 64-bit 100 MHz counter and three comparators
 *
 * With legacy replacement on, comparators 0 and 1 take the places of the 8254 and of the
 * real-time clock: those two lead their lines through the HPET (hpet_legacy_input), which
 * passes them on only while the guest has not switched them off.
 *
 * Threads: set-up and reset by one thread; register accesses come through the space, which
 * takes the device's lock; legacy inputs from any thread. Lines are driven with the device's
 * lock held. Lock order: 8254 and real-time clock, HPET, interrupt controllers.
 *
 * Spec: Intel IA-PC HPET Specification 1.0a.
 */
#ifndef DOPPEL_DEV_TIMER_HPET_H
#define DOPPEL_DEV_TIMER_HPET_H

#include <stdint.h>

#include "base/err.h"
#include "dev/irq.h"

struct hpet;
struct space;
struct vclock;

#define HPET_DEFAULT_BASE UINT64_C(0xfed00000)
#define HPET_WINDOW_SIZE UINT64_C(0x400)
#define HPET_COMPARATOR_COUNT 3
#define HPET_PERIOD_FS UINT32_C(10000000)
/* Low half of the capabilities register: "Event Timer Block ID" of the ACPI HPET table. */
#define HPET_BLOCK_ID UINT32_C(0x8086a201)
/* For the ACPI table: fewest ticks in periodic mode that lose no interrupt. */
#define HPET_MIN_TICK 128

struct hpet_config {
    struct vclock *clock;
    struct irq_line legacy[2];  /* where IRQ0 (IOAPIC input 2) and IRQ8 lead */
    struct irq_line ioapic[32]; /* where comparators may lead; only those in ioapic_mask */
    uint32_t ioapic_mask;       /* their "interrupt routing capability", not 0 */
};

int hpet_create(const struct hpet_config *config, struct hpet **out, struct err *e);

/* The main loop does not run; nothing leads here any more. NULL is allowed. */
void hpet_destroy(struct hpet *hpet);

void hpet_reset(struct hpet *hpet);

/* Put the register window (HPET_WINDOW_SIZE bytes) at `addr` of guest-physical memory. */
int hpet_map(struct hpet *hpet, struct space *memory, uint64_t addr, struct err *e);

/* The line for the 8254's IRQ0 (which = 0) or the real-time clock's IRQ8 (which = 1). */
struct irq_line hpet_legacy_input(struct hpet *hpet, unsigned which);

#endif
