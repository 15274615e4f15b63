/*
 * pflash.h - a parallel flash chip with Intel's command set, in which UEFI keeps its variables
 *
 * It reads as memory until a command is written to it; programming can only clear bits, erasing
 * sets those of a block. All of it is a device window, in which nothing can be executed: code is
 * in the ROM beside it.
 *
 * The status register is 0 after it was cleared, its ready bit included, until the next operation:
 * by that OVMF tells flash from RAM and ROM.
 *
 * Threads: set-up and reset by one thread; accesses come through the space, which takes the
 * device's lock. `changed` is called with that lock held; it must not call back.
 *
 * Spec: Intel 28F128J3 data sheet (command set), JEDEC JESD68 (CFI), JEP137 (command set 0001h).
 */
#ifndef DOPPEL_DEV_PLATFORM_PFLASH_H
#define DOPPEL_DEV_PLATFORM_PFLASH_H

#include <stdint.h>

#include "base/err.h"

struct pflash;
struct space;

#define PFLASH_BLOCK_SIZE 4096u /* what is erased at once */

struct pflash_config {
    uint8_t *bytes; /* its contents, the caller's */
    uint32_t size;  /* a multiple of PFLASH_BLOCK_SIZE */
    /* These bytes have changed: keep them. Returns 0 or -errno, which the guest sees in the status.
     */
    int (*changed)(void *ctx, uint32_t offset, uint32_t size);
    void *ctx;
};

int pflash_create(const struct pflash_config *config, struct pflash **out, struct err *e);

/* After the space no longer leads here. NULL is allowed. */
void pflash_destroy(struct pflash *flash);

/* It reads as memory; what it holds stays. */
void pflash_reset(struct pflash *flash);

int pflash_map(struct pflash *flash, struct space *memory, uint64_t base, struct err *e);

#endif
