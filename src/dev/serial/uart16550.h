/*
 * uart16550.h - 16550A asynchronous serial port
 *
 * The line is as fast as the character device behind it takes and gives: the divisor sets the
 * time base of the receiver's time-out only. Nothing is lost in either direction: input waits in
 * the character device until the guest listens.
 *
 * Threads: set-up, reset and destroy on the main loop's thread (or before it runs); register
 * accesses come through the space, which takes the device's lock. The line and the character
 * device are driven with that lock held.
 *
 * Spec: National Semiconductor PC16550D data sheet.
 */
#ifndef DOPPEL_DEV_SERIAL_UART16550_H
#define DOPPEL_DEV_SERIAL_UART16550_H

#include <stdint.h>

#include "base/err.h"
#include "dev/irq.h"

struct chardev;
struct space;
struct uart16550;
struct vclock;

#define UART16550_COM1_PORT 0x3f8 /* 8 ports, IRQ4 */

/* Becomes the receiver of `cd`, which is not owned; NULL: nothing connected. */
int uart16550_create(struct vclock *clock, struct chardev *cd, struct irq_line irq,
                     struct uart16550 **out, struct err *e);

/* The main loop does not run and the space no longer leads here. NULL is allowed. */
void uart16550_destroy(struct uart16550 *uart);

/* Master reset: registers as in the data sheet's table, FIFOs empty. */
void uart16550_reset(struct uart16550 *uart);

int uart16550_map(struct uart16550 *uart, struct space *ports, uint16_t base, struct err *e);

#endif
