/*
 * fuzz_pflash.c - libFuzzer entry of the flash chip: the input is accesses, four bytes each
 *
 * The chip's contents are an allocation of just its size, so that the sanitizer sees a byte too
 * many; what the chip says has changed has to be inside.
 */
#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "dev/platform/pflash.h"
#include "mem/space.h"

#define BASE UINT64_C(0x1000)
#define SIZE (2 * PFLASH_BLOCK_SIZE)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct world {
    struct space_switch *sw;
    unsigned choice;
    bool fails, obeys;
};

static int check_change(void *ctx, uint32_t offset, uint32_t size)
{
    const struct world *w = ctx;

    assert(size != 0 && range_fits(offset, size, SIZE));
    assert(w->choice == PFLASH_WINDOW); /* else guests could see it half done */
    return w->fails ? -1 : 0;
}

static void obey(void *ctx, unsigned choice)
{
    struct world *w = ctx;

    assert(choice <= PFLASH_ROM && choice != w->choice);
    w->choice = choice;
    if (w->obeys)
        space_switch_set(w->sw, choice);
}

static void access_flash(struct space *memory, const uint8_t *step)
{
    /* small places, and those around the blocks' borders */
    uint64_t at = BASE + step[1] + (step[0] & 0x30u) * (PFLASH_BLOCK_SIZE / 32) - (step[0] >> 6);
    unsigned bytes = 1u << (step[0] >> 1 & 3);

    if (step[0] == 0xfe) /* as often as that it becomes ROM */
        for (unsigned i = 0; i <= PFLASH_ROM_AFTER; i++)
            space_load(memory, BASE + step[1], 1);
    else if (step[0] & 1)
        space_store(memory, at, (uint64_t)step[3] << 8 | step[2], bytes);
    else
        space_load(memory, at, bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct world w = {.choice = PFLASH_WINDOW};
    struct pflash_config config = {
        .bytes = malloc(SIZE), .size = SIZE, .changed = check_change, .wants = obey, .ctx = &w};
    struct space *memory;
    struct pflash *flash;
    struct err e;

    if (size == 0) {
        free(config.bytes);
        return 0;
    }
    w.fails = data[0] & 1;
    w.obeys = !(data[0] & 2);
    assert(config.bytes != NULL);
    memset(config.bytes, 0xff, SIZE);
    if (space_create("memory", BIT(32), &memory, &e) != 0 ||
        pflash_create(&config, &flash, &e) != 0 || pflash_map(flash, memory, BASE, &w.sw, &e) != 0)
        abort();
    for (size_t at = 0; at + 4 <= size; at += 4)
        access_flash(memory, data + at);
    space_destroy(memory);
    pflash_destroy(flash);
    free(config.bytes);
    return 0;
}
