/*
 * fw_cfg.h - QEMU's firmware configuration device: how the machine tells firmware what it is
 *
 * Items are bytes under a number. A 16-bit write to the first port selects one; byte reads of the
 * second give its bytes one after the other, zeros behind its end. Files are items with a name;
 * the item FW_CFG_KEY_DIRECTORY lists them. With a memory to reach, the device also copies items
 * itself (DMA), to RAM only. Nothing can be written: a DMA write is answered with the error bit,
 * bytes written to the data port are ignored.
 *
 * Threads: items are added by set-up; accesses come through the space, which takes the device's
 * lock. Lock order: this device, then what the memory's watcher takes.
 *
 * Spec: QEMU docs/specs/fw_cfg.rst.
 */
#ifndef DOPPEL_DEV_PLATFORM_FW_CFG_H
#define DOPPEL_DEV_PLATFORM_FW_CFG_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct fw_cfg;
struct space;

#define FW_CFG_PORT 0x510     /* 2 ports */
#define FW_CFG_DMA_PORT 0x514 /* 8 ports: the request's address, big-endian */

enum fw_cfg_key {
    FW_CFG_KEY_SIGNATURE = 0x00, /* "QEMU"; the device's own */
    FW_CFG_KEY_ID = 0x01,        /* bit 0: ports, bit 1: DMA; the device's own */
    FW_CFG_KEY_MEMORY = 0x03,    /* 8 bytes: bytes of RAM */
    FW_CFG_KEY_NO_GRAPHICS = 0x04,
    FW_CFG_KEY_CPUS = 0x05,
    FW_CFG_KEY_BOOT_MENU = 0x0e,
    FW_CFG_KEY_MAX_CPUS = 0x0f,
    FW_CFG_KEY_DIRECTORY = 0x19, /* the device's own */
    FW_CFG_KEY_FILES = 0x20,     /* the first file, the others behind it */
    FW_CFG_KEY_ARCH = 0x8000,    /* bit: an item of the architecture */
    FW_CFG_KEY_IRQ0_OVERRIDE = 0x8002,
};

#define FW_CFG_NAME_MAX 55 /* characters of a file's name */
#define FW_CFG_ITEMS_MAX 64

/* `memory` is what DMA reaches and outlives the device; NULL: there is no DMA. */
int fw_cfg_create(struct space *memory, struct fw_cfg **out, struct err *e);

/* After the space no longer leads here. NULL is allowed. */
void fw_cfg_destroy(struct fw_cfg *dev);

void fw_cfg_reset(struct fw_cfg *dev);

/* Copy `size` bytes into the device as item `key`, which has none so far. Set-up. */
int fw_cfg_add(struct fw_cfg *dev, unsigned key, const void *bytes, size_t size, struct err *e);
/* The same for a number of `size` (1 to 8) bytes, low one first. */
int fw_cfg_add_number(struct fw_cfg *dev, unsigned key, uint64_t value, size_t size, struct err *e);

/* The same as a file; the name is new, and has 1 to FW_CFG_NAME_MAX characters. */
int fw_cfg_add_file(struct fw_cfg *dev, const char *name, const void *bytes, size_t size,
                    struct err *e);
int fw_cfg_add_number_file(struct fw_cfg *dev, const char *name, uint64_t value, size_t size,
                           struct err *e);

/*
 * What the guest has changed of the device; its items are as they were made. Plain data, no
 * pointers.
 */
struct fw_cfg_state {
    uint16_t selector;    /* the item that was selected last, whether there is one or not */
    uint32_t at;          /* of its bytes, the next that is read; 0 if there is no such item */
    uint32_t dma_address; /* the upper half of a DMA request's address; the lower starts it */
};

/* Taking and putting back; the latter changes nothing if it fails. No CPU runs. */
void fw_cfg_get_state(struct fw_cfg *dev, struct fw_cfg_state *out);
int fw_cfg_set_state(struct fw_cfg *dev, const struct fw_cfg_state *state, struct err *e);

/* Normally at FW_CFG_PORT and FW_CFG_DMA_PORT. */
int fw_cfg_map(struct fw_cfg *dev, struct space *ports, uint16_t base, uint16_t dma, struct err *e);

#endif
