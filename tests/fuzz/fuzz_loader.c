/*
 * fuzz_loader.c - libFuzzer entry of the boot loaders: the input is a kernel file
 *
 * The first byte of RAM after each range and the hole between them are checked by the sanitizer:
 * RAM is two allocations of just their size.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/log.h"
#include "mem/space.h"
#include "vm/boot/boot.h"

#define LOW_SIZE UINT64_C(0xa0000)
#define HIGH_ADDR UINT64_C(0x100000)
#define HIGH_SIZE UINT64_C(0x300000)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Registers must lead into what was loaded. */
static void check_state(const struct boot_load *load, const struct cpu_state *st)
{
    assert(st->rip < HIGH_ADDR + HIGH_SIZE);
    assert(boot_is_claimed(load, st->rip, 1));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t initrd[100];
    const struct boot_map map = {
        .ranges = {{0, 0x9fc00, BOOT_RAM},
                   {0x9fc00, 0x400, BOOT_RESERVED},
                   {HIGH_ADDR, HIGH_SIZE, BOOT_RAM}},
        .count = 3,
    };
    struct boot_source source = {
        .kernel = {.name = "kernel", .data = data, .size = size, .fd = -1},
        .modules = {{.name = "initrd", .data = initrd, .size = sizeof(initrd), .fd = -1}},
        .module_count = 1,
    };
    uint8_t *low = calloc(1, LOW_SIZE), *high = calloc(1, HIGH_SIZE);
    struct boot_load load = {.map = &map, .cmdline = "quiet"};
    struct cpu_state state = {0};
    struct err e = {0};

    log_set_level(LOG_ERROR);
    assert(low != NULL && high != NULL);
    if (space_create("memory", BIT(40), &load.memory, &e) != 0 ||
        space_add_ram(load.memory, 0, low, LOW_SIZE, false, &e) != 0 ||
        space_add_ram(load.memory, HIGH_ADDR, high, HIGH_SIZE, false, &e) != 0)
        abort();
    if (boot_detect(&source.kernel, &source.format, &e) == 0 &&
        boot_load(&source, &load, &state, &e) == 0)
        check_state(&load, &state);
    else
        assert(e.msg[0] != '\0');
    space_destroy(load.memory);
    free(low);
    free(high);
    return 0;
}
