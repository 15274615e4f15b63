/*
 * i8259.h - the PC's pair of 8259A interrupt controllers, with edge/level control registers
 *
 * Sixteen inputs; input 2 of the first chip is taken by the second. The pair drives one INTR
 * output, which the board leads to the local APICs' LINT0.
 *
 * Threads: set-up and reset by one thread; inputs and i8259_acknowledge from any thread;
 * register accesses come through the space, which takes the chip's lock. `intr` is called with
 * that lock held (lock order of dev/irq.h: the 8259 comes before the local APIC) and must not
 * call back into the 8259.
 *
 * Spec: Intel 8259A data sheet; 82371SB (PIIX3), "Interrupt Controller Registers" and "ELCR".
 */
#ifndef DOPPEL_DEV_IRQCHIP_I8259_H
#define DOPPEL_DEV_IRQCHIP_I8259_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "dev/irq.h"

struct i8259;
struct space;

#define I8259_INPUT_COUNT 16
#define I8259_MASTER_PORT 0x20 /* 2 ports */
#define I8259_SLAVE_PORT 0xa0  /* 2 ports */
#define I8259_ELCR_PORT 0x4d0  /* 2 ports */

typedef void (*i8259_intr_fn)(void *ctx, bool level);

/* In reset state: not initialised, everything masked, output low. */
int i8259_create(i8259_intr_fn intr, void *ctx, struct i8259 **out, struct err *e);

/* After the space and the lines no longer lead here. NULL is allowed. */
void i8259_destroy(struct i8259 *pic);

/* The levels on the inputs are kept: they belong to the devices. */
void i8259_reset(struct i8259 *pic);

/*
 * What PC firmware leaves behind, for machines that start without any: vectors 8..15 and
 * 70h..77h, everything masked but the cascade. After i8259_reset.
 */
void i8259_set_firmware_defaults(struct i8259 *pic);

/* Put the registers into the port space, normally at the I8259_*_PORT addresses. */
int i8259_map(struct i8259 *pic, struct space *ports, uint16_t master, uint16_t slave,
              uint16_t elcr, struct err *e);

/* Input `irq` (0..15, not 2) as a line for irq_set. */
struct irq_line i8259_input(struct i8259 *pic, unsigned irq);

/*
 * The interrupt acknowledge cycle: freeze priorities, put the request in service, and return
 * its vector (0..255). When nothing is requested any more it is the vector of input 7 (or 15),
 * and nothing is in service: the spurious interrupt. No lock held.
 */
int i8259_acknowledge(struct i8259 *pic);

#endif
