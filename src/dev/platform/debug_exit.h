/*
 * debug_exit.h - a port by which a test guest ends the machine with a status
 *
 * A write of V (8, 16 or 32 bits) asks for the status (V << 1) | 1, which is never 0: power-off
 * is the only way to end with success.
 */
#ifndef DOPPEL_DEV_PLATFORM_DEBUG_EXIT_H
#define DOPPEL_DEV_PLATFORM_DEBUG_EXIT_H

#include <stdint.h>

#include "base/err.h"

struct debug_exit;
struct space;

#define DEBUG_EXIT_PORT 0xf4 /* 4 ports */

/* `status` is (V << 1) | 1 modulo 2^32; the caller cuts it to what it can report. vCPU. */
typedef void (*debug_exit_fn)(void *ctx, uint32_t status);

int debug_exit_create(debug_exit_fn fn, void *ctx, struct debug_exit **out, struct err *e);

/* After the space no longer leads here. NULL is allowed. */
void debug_exit_destroy(struct debug_exit *dev);

int debug_exit_map(struct debug_exit *dev, struct space *ports, uint16_t base, struct err *e);

#endif
