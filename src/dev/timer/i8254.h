/*
 * i8254.h - programmable interval timer and the system control port B (61h) around it
 *
 * Channel 0 drives IRQ0, channel 1 was memory refresh, channel 2 the speaker, gated and read
 * back through port 61h. Counts are computed from guest time when read.
 *
 * The line for IRQ0 carries what an edge-triggered input needs: in the periodic modes it rests
 * high and dips only at the moment of each rising edge, so that a late guest does not lose a
 * request to the low half of a square wave. The OUT pin as the read-back command shows it is
 * exact.
 *
 * Threads: set-up and reset by one thread; register accesses come through the space, which
 * takes the device's lock. The line is driven with that lock held.
 *
 * Spec: Intel 8254 data sheet; 82371SB (PIIX3), "NMI Status and Control Register" (61h).
 */
#ifndef DOPPEL_DEV_TIMER_I8254_H
#define DOPPEL_DEV_TIMER_I8254_H

#include <stdint.h>

#include "base/err.h"
#include "dev/irq.h"

struct i8254;
struct space;
struct vclock;

#define I8254_HZ UINT64_C(1193182)
#define I8254_PORT 0x40         /* 4 ports */
#define I8254_CONTROL_PORT 0x61 /* 1 port */

int i8254_create(struct vclock *clock, struct irq_line irq0, struct i8254 **out, struct err *e);

/* The main loop does not run and the space no longer leads here. NULL is allowed. */
void i8254_destroy(struct i8254 *pit);

/* No channel counts until it is programmed; speaker off. */
void i8254_reset(struct i8254 *pit);

/* Normally at I8254_PORT and I8254_CONTROL_PORT. */
int i8254_map(struct i8254 *pit, struct space *ports, uint16_t base, uint16_t control,
              struct err *e);

#endif
