/*
 * fw_cfg.h - QEMU's firmware configuration device, as much as bare-metal tests ask of it
 *
 * A 16-bit write to the first port selects an item; byte reads of the second give its bytes one
 * after the other, zeros behind its end. There is no DMA interface, and the directory of files
 * is empty.
 *
 * Threads: set-up by one thread; accesses come through the space, which takes the device's lock.
 *
 * Spec: QEMU docs/specs/fw_cfg.rst, "Legacy, i386-specific" registers and items.
 */
#ifndef DOPPEL_DEV_PLATFORM_FW_CFG_H
#define DOPPEL_DEV_PLATFORM_FW_CFG_H

#include <stdint.h>

#include "base/err.h"

struct fw_cfg;
struct space;

#define FW_CFG_PORT 0x510 /* 2 ports */

int fw_cfg_create(uint64_t memory_bytes, unsigned cpu_count, struct fw_cfg **out, struct err *e);

/* After the space no longer leads here. NULL is allowed. */
void fw_cfg_destroy(struct fw_cfg *dev);

void fw_cfg_reset(struct fw_cfg *dev);

int fw_cfg_map(struct fw_cfg *dev, struct space *ports, uint16_t base, struct err *e);

#endif
