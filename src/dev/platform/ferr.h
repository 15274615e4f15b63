/*
 * ferr.h - x87 errors the AT's way: FERR#, IRQ 13, port F0H and IGNNE#
 *
 * With CR0.NE clear the boot processor reports an unmasked x87 exception on FERR#. That raises
 * IRQ 13, whose handler writes port F0H: the interrupt goes away, and as long as the error is
 * still there IGNNE# lets the handler use x87 instructions all the same.
 */
#ifndef DOPPEL_DEV_PLATFORM_FERR_H
#define DOPPEL_DEV_PLATFORM_FERR_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "dev/irq.h"

struct ferr;
struct space;

#define FERR_PORT 0xf0

int ferr_create(struct irq_line irq, struct ferr **out, struct err *e);

/* After the space no longer leads here. NULL is allowed. */
void ferr_destroy(struct ferr *dev);

void ferr_reset(struct ferr *dev);

int ferr_map(struct ferr *dev, struct space *ports, struct err *e);

/* Drive FERR#. Returns whether IGNNE# is asserted then. vCPU. */
bool ferr_set(struct ferr *dev, bool is_asserted);

#endif
