/*
 * shadow.c - what the chip set routes to RAM and to the firmware's ROM below 1 MiB
 *
 * Where reads and writes go the same way, a segment is plain memory that engines have as a slot;
 * a segment that is read from the bus and written to RAM, as while a BIOS copies itself, is a
 * device window.
 */
#include "vm/shadow.h"

#include <string.h>

#include "base/bits.h"
#include "engine/engine.h"

#define SHADOW_READ 1u
#define SHADOW_WRITE 2u
#define SHADOW_MODES 4

/* Which half of which register: in the order of addresses, the last segment being PAM0's. */
static uint8_t segment_mode(const uint8_t pam[SHADOW_PAM_COUNT], unsigned index)
{
    if (index == SHADOW_SEGMENTS - 1)
        return pam[0] >> 4 & 3;
    return pam[1 + index / 2] >> (index % 2 * 4) & 3;
}

/* ---- read from the bus, written to RAM ---- */

static uint64_t split_read(void *ctx, uint64_t offset, unsigned size)
{
    const struct shadow_segment *s = ctx;
    uint64_t value = UINT64_MAX;

    if (s->rom != NULL)
        memcpy(&value, s->rom + offset, size);
    return value;
}

static void split_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    const struct shadow_segment *s = ctx;

    memcpy(s->shadow->ram + s->addr + offset, &value, size);
}

static const struct space_ops split_ops = {.read = split_read, .write = split_write, .max_size = 8};

/* ---- set-up ---- */

static int segment_create(struct shadow *shadow, struct shadow_segment *s, uint8_t *rom,
                          uint32_t rom_size, struct err *e)
{
    uint32_t rom_addr = SHADOW_END - rom_size;
    uint8_t *here = s->addr >= rom_addr ? rom + (s->addr - rom_addr) : NULL;
    uint8_t *ram = shadow->ram + s->addr;
    const struct space_choice choices[SHADOW_MODES] = {
        [0] = {.kind = here != NULL ? SPACE_ROM : SPACE_NOTHING, .host = here},
        [SHADOW_READ] = {.kind = SPACE_ROM, .host = ram},
        [SHADOW_WRITE] = {.kind = SPACE_WINDOW, .window = {.ops = &split_ops, .ctx = s}},
        [SHADOW_READ | SHADOW_WRITE] = {.kind = SPACE_RAM, .host = ram},
    };

    s->shadow = shadow;
    s->rom = here;
    return space_add_switch(shadow->memory, s->addr, s->size, choices, SHADOW_MODES, &s->sw, e);
}

int shadow_create(struct shadow *shadow, struct space *memory, uint8_t *ram, uint8_t *rom,
                  uint32_t rom_size, struct err *e)
{
    uint32_t addr = SHADOW_ADDR;
    int ret = 0;

    *shadow = (struct shadow){.ram = ram, .memory = memory};
    for (unsigned i = 0; ret == 0 && i < SHADOW_SEGMENTS; i++) {
        struct shadow_segment *s = &shadow->segments[i];
        s->addr = addr;
        s->size = i == SHADOW_SEGMENTS - 1 ? 0x10000 : 0x4000;
        addr += s->size;
        ret = segment_create(shadow, s, rom, rom_size, e);
    }
    return ret;
}

/* ---- changes ---- */

bool shadow_want(struct shadow *shadow, const uint8_t pam[SHADOW_PAM_COUNT])
{
    bool is_new = false;

    for (unsigned i = 0; i < SHADOW_SEGMENTS; i++) {
        uint8_t mode = segment_mode(pam, i);
        is_new |= atomic_exchange(&shadow->segments[i].wanted, mode) != mode;
    }
    return is_new;
}

/* What an engine has of a segment in this mode; NULL: no slot. */
static uint8_t *mode_host(const struct shadow_segment *s, uint8_t mode)
{
    if (mode & SHADOW_READ)
        return s->shadow->ram + s->addr;
    return mode == 0 ? (uint8_t *)s->rom : NULL;
}

static int segment_apply(struct shadow_segment *s, uint8_t mode, const struct engine_ops *ops,
                         struct engine *engine, struct err *e)
{
    uint8_t *before = mode_host(s, s->now), *after = mode_host(s, mode);
    int ret = 0;

    if (engine != NULL && before != NULL)
        ret = ops->remove_ram(engine, s->addr, e);
    if (ret != 0)
        return ret;
    space_switch_set(s->sw, mode);
    s->now = mode;
    if (engine != NULL && after != NULL)
        ret = ops->add_ram(engine, s->addr, after, s->size, !(mode & SHADOW_WRITE), e);
    return ret;
}

int shadow_apply(struct shadow *shadow, const struct engine_ops *ops, struct engine *engine,
                 struct err *e)
{
    int ret = 0;

    for (unsigned i = 0; ret == 0 && i < SHADOW_SEGMENTS; i++) {
        struct shadow_segment *s = &shadow->segments[i];
        uint8_t mode = atomic_load(&s->wanted);
        if (mode != s->now)
            ret = segment_apply(s, mode, ops, engine, e);
    }
    return ret == 0 ? 0 : err_prefix(e, "route memory below 1 MiB");
}
