/*
 * debug_port.h - the port to which firmware for virtual machines writes what it does
 *
 * It reads as DEBUG_PORT_ID, by which firmware knows that it is there. What is written to it goes
 * to the log, line by line, at debug level.
 *
 * Threads: set-up and reset by one thread; accesses come through the space, which takes the
 * device's lock.
 *
 * Spec: Bochs, iodebug ("port E9 hack"); SeaBIOS and EDK II use it at port 402h.
 */
#ifndef DOPPEL_DEV_PLATFORM_DEBUG_PORT_H
#define DOPPEL_DEV_PLATFORM_DEBUG_PORT_H

#include <stdint.h>

#include "base/err.h"

struct debug_port;
struct space;

#define DEBUG_PORT 0x402
#define DEBUG_PORT_ID 0xe9

/* `line` gets each line without its end; NULL: the log. */
typedef void (*debug_port_line_fn)(void *ctx, const char *line);
int debug_port_create(debug_port_line_fn line, void *ctx, struct debug_port **out, struct err *e);

/* After the space no longer leads here. NULL is allowed. */
void debug_port_destroy(struct debug_port *dev);

/* What was written of a line is a line. */
void debug_port_reset(struct debug_port *dev);

int debug_port_map(struct debug_port *dev, struct space *ports, uint16_t base, struct err *e);

#endif
