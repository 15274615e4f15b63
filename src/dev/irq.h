/*
 * irq.h - an interrupt line: three fields and no more
 *
 * A line carries a level. The device that drives it calls irq_set with its own lock held or
 * not, from any thread; the sink takes its own lock. Lock order: device, then chip
 * (8259/IOAPIC), then local APIC. A sink never calls back into the device that drives it.
 */
#ifndef DOPPEL_DEV_IRQ_H
#define DOPPEL_DEV_IRQ_H

#include <stdbool.h>
#include <stddef.h>

struct irq_line {
    void (*set)(void *sink, unsigned input, bool level);
    void *sink;
    unsigned input;
};

/* Drive the line. A zeroed line is not connected. */
static inline void irq_set(const struct irq_line *line, bool level)
{
    if (line->set != NULL)
        line->set(line->sink, line->input, level);
}

#endif
