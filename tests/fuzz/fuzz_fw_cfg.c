/*
 * fuzz_fw_cfg.c - libFuzzer entry of the firmware configuration device: the input is port accesses
 *
 * Each access is four bytes: what, which port, and two that are spread over the value. RAM is an
 * allocation of just its size, so that the sanitizer sees a byte too many; requests lie in it as
 * the input begins.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "dev/platform/fw_cfg.h"
#include "mem/space.h"

#define RAM_SIZE UINT64_C(0x3000)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void access_port(struct space *ports, const uint8_t *step)
{
    static const uint16_t bases[] = {FW_CFG_PORT, FW_CFG_DMA_PORT, FW_CFG_DMA_PORT + 4,
                                     FW_CFG_PORT + 1};
    uint64_t port = bases[step[1] & 3] + (step[1] >> 6);
    unsigned bytes = 1u << (step[0] >> 1 & 3);
    uint32_t value = load_le16(step + 2);

    /* addresses are big-endian, and the low ones interesting */
    if (step[0] & 8)
        value = __builtin_bswap32(value);
    if (step[0] & 16)
        value = ~value;
    if (step[0] & 1)
        space_store(ports, port, value, bytes);
    else
        space_load(ports, port, bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *ram = calloc(1, RAM_SIZE);
    struct space *memory, *ports;
    struct fw_cfg *dev;
    struct err e;

    assert(ram != NULL);
    memcpy(ram, data, MIN(size, RAM_SIZE));
    if (space_create("memory", BIT(40), &memory, &e) != 0 ||
        space_create("ports", 65536, &ports, &e) != 0 ||
        space_add_ram(memory, 0, ram, RAM_SIZE, false, &e) != 0 ||
        fw_cfg_create(memory, &dev, &e) != 0 ||
        fw_cfg_add_number(dev, FW_CFG_KEY_MEMORY, 1 << 20, 8, &e) != 0 ||
        fw_cfg_add_file(dev, "file", ram, 300, &e) != 0 ||
        fw_cfg_add_file(dev, "empty", NULL, 0, &e) != 0 ||
        fw_cfg_map(dev, ports, FW_CFG_PORT, FW_CFG_DMA_PORT, &e) != 0)
        abort();
    for (size_t at = 0; at + 4 <= size; at += 4)
        access_port(ports, data + at);
    space_destroy(ports);
    fw_cfg_destroy(dev);
    space_destroy(memory);
    free(ram);
    return 0;
}
