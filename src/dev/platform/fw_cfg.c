/*
 * fw_cfg.c - QEMU's firmware configuration device, as much as bare-metal tests ask of it
 *
 * Invariant: `at` never passes the end of the selected item.
 */
#include "dev/platform/fw_cfg.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "mem/space.h"

/* Bits 14 and 15 of a selector ask for write mode and for an item of the architecture. */
#define SELECTOR_ITEM 0x3fff
#define SELECTOR_ARCH 0x8000

enum fw_cfg_key {
    KEY_SIGNATURE = 0x00, /* "QEMU" */
    KEY_ID = 0x01,        /* bit 0: these two registers are there; bit 1 would be DMA */
    KEY_MEMORY = 0x03,    /* bytes of RAM */
    KEY_CPUS = 0x05,
    KEY_MAX_CPUS = 0x0f,
    KEY_COUNT = 0x10,
    /* The directory of files at 19H has four bytes, a count of 0: what every other item reads as.
     */
};

struct item {
    uint8_t bytes[8];
    unsigned size;
};

struct fw_cfg {
    pthread_mutex_t lock;
    struct item items[KEY_COUNT];
    unsigned key, at; /* KEY_COUNT: an item without bytes */
};

static void item_set(struct item *item, uint64_t value, unsigned size)
{
    item->size = size;
    for (unsigned i = 0; i < size; i++)
        item->bytes[i] = (uint8_t)(value >> (8 * i));
}

int fw_cfg_create(uint64_t memory_bytes, unsigned cpu_count, struct fw_cfg **out, struct err *e)
{
    struct fw_cfg *dev = calloc(1, sizeof(*dev));

    if (dev == NULL)
        return err_set(e, ENOMEM, "make the firmware configuration device");
    pthread_mutex_init(&dev->lock, NULL);
    dev->items[KEY_SIGNATURE] = (struct item){.bytes = "QEMU", .size = 4};
    item_set(&dev->items[KEY_ID], 1, 4);
    item_set(&dev->items[KEY_MEMORY], memory_bytes, 8);
    item_set(&dev->items[KEY_CPUS], cpu_count, 2);
    item_set(&dev->items[KEY_MAX_CPUS], cpu_count, 2);
    *out = dev;
    return 0;
}

void fw_cfg_destroy(struct fw_cfg *dev)
{
    if (dev == NULL)
        return;
    pthread_mutex_destroy(&dev->lock);
    free(dev);
}

void fw_cfg_reset(struct fw_cfg *dev)
{
    pthread_mutex_lock(&dev->lock);
    dev->key = KEY_SIGNATURE;
    dev->at = 0;
    pthread_mutex_unlock(&dev->lock);
}

static uint64_t fw_cfg_read(void *ctx, uint64_t offset, unsigned size)
{
    struct fw_cfg *dev = ctx;

    if (offset != 1 || size != 1)
        return mask_bytes(size);
    if (dev->key == KEY_COUNT || dev->at == dev->items[dev->key].size)
        return 0;
    return dev->items[dev->key].bytes[dev->at++];
}

static void fw_cfg_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct fw_cfg *dev = ctx;
    unsigned item = value & SELECTOR_ITEM;

    /* Byte writes were for setting items, which QEMU has given up too. */
    if (offset != 0 || size != 2)
        return;
    dev->key = value & SELECTOR_ARCH || item >= KEY_COUNT ? KEY_COUNT : item;
    dev->at = 0;
}

static const struct space_ops fw_cfg_ops = {
    .read = fw_cfg_read,
    .write = fw_cfg_write,
    .max_size = 2,
};

int fw_cfg_map(struct fw_cfg *dev, struct space *ports, uint16_t base, struct err *e)
{
    return space_add_io(ports, base, 2, &fw_cfg_ops, dev, &dev->lock, e);
}
