/*
 * pflash.h - a parallel flash chip with Intel's command set, in which UEFI keeps its variables
 *
 * It reads as memory until a command is written to it; programming can only clear bits, erasing
 * sets those of a block. Where it is in a space there are two ways to have it: a device window,
 * which is right in all its modes, and ROM that sends writes here, for while it reads as memory:
 * accesses cost nothing then, and code can be executed. Going from one to the other stops the
 * machine for a moment; so the chip asks for ROM only when it has been read PFLASH_ROM_AFTER times
 * with no command in between, and for the window at the next command.
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
struct space_switch;

#define PFLASH_BLOCK_SIZE 4096u /* what is erased at once */
#define PFLASH_ROM_AFTER 64u

/* Choices of the switch that pflash_map makes. */
enum { PFLASH_WINDOW, PFLASH_ROM };

struct pflash_config {
    uint8_t *bytes; /* its contents, the caller's */
    uint32_t size;  /* a multiple of PFLASH_BLOCK_SIZE */
    /* These bytes have changed: keep them. Returns 0 or -errno, which the guest sees in the status.
     */
    int (*changed)(void *ctx, uint32_t offset, uint32_t size);
    /*
     * Had better be this choice in the space from now on; for PFLASH_WINDOW, before the access
     * ends. Called with the device's lock held, as `changed`. NULL: it stays a window.
     */
    void (*wants)(void *ctx, unsigned choice);
    void *ctx;
};

int pflash_create(const struct pflash_config *config, struct pflash **out, struct err *e);

/* After the space no longer leads here. NULL is allowed. */
void pflash_destroy(struct pflash *flash);

/* It reads as memory; what it holds stays. */
void pflash_reset(struct pflash *flash);

#define PFLASH_BUFFER_SIZE 32u /* bytes that are programmed at once */

/*
 * The chip between the cycles of a command. Its contents are not in it, nor whether it is ROM in
 * the space: it is a window until it has been read for a while. Plain data, no pointers.
 */
struct pflash_state {
    uint8_t mode;    /* what a read gives: enum pflash_mode */
    uint8_t expects; /* what the next write is: enum pflash_expects */
    uint8_t status;  /* status register */
    /* while the buffer is filled, and until it is programmed: else without a meaning */
    uint8_t buffer_wanted, buffer_used; /* bytes of it that are to come, and have */
    uint32_t buffer_at;                 /* where in the chip the first goes */
    uint8_t buffer[PFLASH_BUFFER_SIZE];
};
enum pflash_mode { PFLASH_READ_ARRAY, PFLASH_READ_STATUS, PFLASH_READ_ID, PFLASH_READ_QUERY };
enum pflash_expects {
    PFLASH_EXPECT_COMMAND,
    PFLASH_EXPECT_DATA,
    PFLASH_EXPECT_ERASE,
    PFLASH_EXPECT_LOCK,
    PFLASH_EXPECT_COUNT,
    PFLASH_EXPECT_BUFFER,
    PFLASH_EXPECT_CONFIRM,
};

/*
 * Taking and putting back; the latter may ask for the window by `wants`, and changes nothing if it
 * fails. No CPU runs.
 */
void pflash_get_state(struct pflash *flash, struct pflash_state *out);
int pflash_set_state(struct pflash *flash, const struct pflash_state *state, struct err *e);

/* A window to begin with. The caller does what `wants` asks for. */
int pflash_map(struct pflash *flash, struct space *memory, uint64_t base, struct space_switch **out,
               struct err *e);

#endif
