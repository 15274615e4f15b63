/*
 * ioapic.h - I/O APIC, 24 inputs (82093AA with the EOI register of version 20H)
 *
 * Inputs carry "asserted", not a voltage: the polarity bit is storage for the guest. Which
 * interrupt is wired to which input is the board's matter.
 *
 * Threads: set-up and reset by one thread; the inputs from any thread; register accesses come
 * through the space, which takes the chip's lock.
 *
 * Spec: Intel 82093AA data sheet; ICH "I/O APIC EOI Register".
 */
#ifndef DOPPEL_DEV_IRQCHIP_IOAPIC_H
#define DOPPEL_DEV_IRQCHIP_IOAPIC_H

#include <stdint.h>

#include "base/err.h"
#include "cpu/apic.h"
#include "dev/irq.h"

struct apic_bus;
struct ioapic;
struct space;

#define IOAPIC_PIN_COUNT 24
#define IOAPIC_DEFAULT_BASE UINT64_C(0xfec00000)
#define IOAPIC_WINDOW_SIZE UINT64_C(0x1000)

/* In reset state: every input masked. `id` is what the ID register holds after reset (0..15). */
int ioapic_create(struct apic_bus *bus, unsigned id, struct ioapic **out, struct err *e);

/* After the space and the lines no longer lead here, and before the bus. NULL is allowed. */
void ioapic_destroy(struct ioapic *ioapic);

void ioapic_reset(struct ioapic *ioapic);

/* Put the register window (IOAPIC_WINDOW_SIZE bytes) at `addr`. */
int ioapic_map(struct ioapic *ioapic, struct space *space, uint64_t addr, struct err *e);

/*
 * Who executes the guest with local APICs of its own has to know of which interrupts the I/O APIC
 * wants to hear the end: fn(ctx, messages) is called at once, and whenever that changes, with a
 * message for each input; one that has no use for an EOI is all zero. With the chip's lock held;
 * it may take engine_lock. NULL: no longer. Any thread.
 */
typedef void (*ioapic_watch_fn)(void *ctx, const struct cpu_msi messages[IOAPIC_PIN_COUNT]);
void ioapic_watch(struct ioapic *ioapic, ioapic_watch_fn fn, void *ctx);

/* Input `pin` (0..23) as a line for irq_set. */
struct irq_line ioapic_input(struct ioapic *ioapic, unsigned pin);

#endif
