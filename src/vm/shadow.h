/*
 * shadow.h - what the chip set routes to RAM and to the firmware's ROM below 1 MiB
 *
 * C0000H to FFFFFH in 13 segments, each with two bits in the host bridge's PAM registers: reads
 * go to RAM or to the bus, and so do writes. On the bus there is the end of the firmware's ROM
 * from E0000H on, and nothing below.
 *
 * The guest's write to a register and the change of the map are apart: shadow_want notes what is
 * wanted, shadow_apply does it with all vCPUs out of guest code (vm_request_remap).
 *
 * Spec: Intel 82441FX data sheet, "PAM - Programmable Attribute Map Registers".
 */
#ifndef DOPPEL_VM_SHADOW_H
#define DOPPEL_VM_SHADOW_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "mem/space.h"

struct engine;
struct engine_ops;

#define SHADOW_ADDR 0xc0000u
#define SHADOW_END 0x100000u
#define SHADOW_SEGMENTS 13
#define SHADOW_PAM_COUNT 7
#define SHADOW_ROM_MAX 0x20000u /* as much of the ROM's end shows below 1 MiB */

struct shadow_segment {
    struct space_switch *sw;
    struct shadow *shadow;
    uint32_t addr, size;
    const uint8_t *rom;     /* NULL: nothing on the bus */
    _Atomic uint8_t wanted; /* SHADOW_READ | SHADOW_WRITE */
    uint8_t now;            /* what space and engine have */
};

struct shadow {
    uint8_t *ram; /* the host's address of guest RAM at 0 */
    struct space *memory;
    struct shadow_segment segments[SHADOW_SEGMENTS];
};

/*
 * Put the segments into `memory`, as after reset: all of them on the bus. `ram` is guest RAM from
 * address 0 on; `rom` the last `rom_size` bytes of the ROM, in whole pages, SHADOW_ROM_MAX at
 * most. Both outlive the space.
 */
int shadow_create(struct shadow *shadow, struct space *memory, uint8_t *ram, uint8_t *rom,
                  uint32_t rom_size, struct err *e);

/* Note what the PAM registers say; returns whether that is anything new. Any thread. */
bool shadow_want(struct shadow *shadow, const uint8_t pam[SHADOW_PAM_COUNT]);

/*
 * Do what is wanted: in the space, and in the engine, which may be NULL. No vCPU is in guest code.
 */
int shadow_apply(struct shadow *shadow, const struct engine_ops *ops, struct engine *engine,
                 struct err *e);

#endif
