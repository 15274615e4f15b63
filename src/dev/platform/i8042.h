/*
 * i8042.h - keyboard controller with a PS/2 keyboard and mouse that nobody touches, port 92h
 *
 * Enough for a guest to find both devices, configure them, and reset the machine. A20 is always
 * on: the bits that control it can be written and read, and have no effect.
 *
 * Threads: set-up and reset by one thread; register accesses come through the space, which
 * takes the device's lock. Lines are driven, and `reset` is called, with that lock held; it
 * must not call back into the controller.
 *
 * Spec: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device
 * Controller", "Keyboards" and "Mouse"; 82371SB (PIIX3) for port 92h.
 */
#ifndef DOPPEL_DEV_PLATFORM_I8042_H
#define DOPPEL_DEV_PLATFORM_I8042_H

#include <stdint.h>

#include "base/err.h"
#include "dev/irq.h"

struct i8042;
struct space;

#define I8042_DATA_PORT 0x60
#define I8042_COMMAND_PORT 0x64
#define I8042_PORT_A 0x92

struct i8042_config {
    struct irq_line irq1;
    struct irq_line irq12;
    void (*reset)(void *ctx); /* the guest pulls the processor's reset line */
    void *ctx;
};

int i8042_create(const struct i8042_config *config, struct i8042 **out, struct err *e);

/* After the space no longer leads here. NULL is allowed. */
void i8042_destroy(struct i8042 *kbc);

void i8042_reset(struct i8042 *kbc);

/* Normally at I8042_DATA_PORT, I8042_COMMAND_PORT and I8042_PORT_A; one port each. */
int i8042_map(struct i8042 *kbc, struct space *ports, uint16_t data, uint16_t command,
              uint16_t port_a, struct err *e);

#endif
