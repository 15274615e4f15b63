/*
 * fw_cfg.c - QEMU's firmware configuration device: how the machine tells firmware what it is
 *
 * Invariant: `at` never passes the end of the selected item. A DMA request's numbers are the
 * guest's: they are read once, and each piece that is copied is checked to be RAM, within a page.
 */
#include "dev/platform/fw_cfg.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "mem/space.h"

/* Bit 14 of a selector asks for write mode, which there is none of. */
#define SELECTOR_ITEM 0xbfff

#define ID_PORTS 1
#define ID_DMA 2

/* An entry of the directory: size and key big-endian, two bytes of nothing, the name. */
#define ENTRY_SIZE 64
#define ENTRY_KEY 4
#define ENTRY_NAME 8

/* A DMA request, all big-endian. */
#define DMA_REQUEST_SIZE 16
#define DMA_CONTROL 0
#define DMA_LENGTH 4
#define DMA_ADDRESS 8
#define CONTROL_ERROR 0x01u
#define CONTROL_READ 0x02u
#define CONTROL_SKIP 0x04u
#define CONTROL_SELECT 0x08u
#define CONTROL_WRITE 0x10u
#define CONTROL_KEY_SHIFT 16

/* What the address register reads as: "QEMU CFG". */
#define DMA_SIGNATURE UINT64_C(0x51454d5520434647)

#define PIECE_SIZE 4096u

struct item {
    unsigned key;
    size_t size;
    uint8_t *bytes;
    char name[FW_CFG_NAME_MAX + 1]; /* of a file, else empty */
};

struct fw_cfg {
    pthread_mutex_t lock;
    struct space *memory;
    struct item items[FW_CFG_ITEMS_MAX];
    unsigned item_count, file_count;
    unsigned selector;           /* under lock: of the item */
    const struct item *selected; /* under lock; NULL: an item without bytes */
    size_t at;                   /* under lock */
    uint64_t dma_address;        /* under lock */
};

/* ---- items ---- */

static struct item *find(struct fw_cfg *dev, unsigned key)
{
    for (unsigned i = 0; i < dev->item_count; i++)
        if (dev->items[i].key == key)
            return &dev->items[i];
    return NULL;
}

static int item_set(struct item *item, const void *bytes, size_t size, struct err *e)
{
    /* an item of no bytes is one, too */
    uint8_t *copy = malloc(MAX(size, (size_t)1));

    if (copy == NULL)
        return err_set(e, ENOMEM, "give firmware an item of %zu bytes", size);
    if (size != 0)
        memcpy(copy, bytes, size);
    free(item->bytes);
    item->bytes = copy;
    item->size = size;
    return 0;
}

static int add(struct fw_cfg *dev, unsigned key, const char *name, const void *bytes, size_t size,
               struct err *e)
{
    struct item *item = &dev->items[dev->item_count];
    int ret;

    if (find(dev, key) != NULL)
        return err_set(e, EEXIST, "give firmware item 0x%x: there is one already", key);
    if (dev->item_count == FW_CFG_ITEMS_MAX)
        return err_set(e, ENOSPC, "give firmware more than %u items", FW_CFG_ITEMS_MAX);
    *item = (struct item){.key = key};
    memcpy(item->name, name, strlen(name));
    ret = item_set(item, bytes, size, e);
    if (ret == 0)
        dev->item_count++;
    return ret;
}

int fw_cfg_add(struct fw_cfg *dev, unsigned key, const void *bytes, size_t size, struct err *e)
{
    return add(dev, key, "", bytes, size, e);
}

int fw_cfg_add_number(struct fw_cfg *dev, unsigned key, uint64_t value, size_t size, struct err *e)
{
    uint8_t bytes[8];

    store_le64(bytes, value);
    return fw_cfg_add(dev, key, bytes, size, e);
}

static void store_be(uint8_t *to, uint64_t value, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        to[i] = (uint8_t)(value >> 8 * (size - 1 - i));
}

static uint64_t load_be(const uint8_t *from, unsigned size)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < size; i++)
        value = value << 8 | from[i];
    return value;
}

/* The directory: a number of entries, and they, in the order of their keys. */
static int list_files(struct fw_cfg *dev, struct err *e)
{
    uint8_t list[4 + FW_CFG_ITEMS_MAX * ENTRY_SIZE] = {0};

    store_be(list, dev->file_count, 4);
    for (unsigned i = 0; i < dev->file_count; i++) {
        const struct item *item = find(dev, FW_CFG_KEY_FILES + i);
        uint8_t *entry = list + 4 + i * ENTRY_SIZE;

        store_be(entry, item->size, 4);
        store_be(entry + ENTRY_KEY, item->key, 2);
        memcpy(entry + ENTRY_NAME, item->name, sizeof(item->name));
    }
    return item_set(find(dev, FW_CFG_KEY_DIRECTORY), list, 4 + dev->file_count * ENTRY_SIZE, e);
}

int fw_cfg_add_file(struct fw_cfg *dev, const char *name, const void *bytes, size_t size,
                    struct err *e)
{
    size_t length = strlen(name);
    int ret;

    if (length == 0 || length > FW_CFG_NAME_MAX || size > UINT32_MAX)
        return err_set(e, EINVAL, "give firmware the file '%s' of %zu bytes", name, size);
    for (unsigned i = 0; i < dev->item_count; i++)
        if (strcmp(dev->items[i].name, name) == 0)
            return err_set(e, EEXIST, "give firmware the file '%s': there is one already", name);
    ret = add(dev, FW_CFG_KEY_FILES + dev->file_count, name, bytes, size, e);
    if (ret != 0)
        return ret;
    dev->file_count++;
    return list_files(dev, e);
}

int fw_cfg_add_number_file(struct fw_cfg *dev, const char *name, uint64_t value, size_t size,
                           struct err *e)
{
    uint8_t bytes[8];

    store_le64(bytes, value);
    return fw_cfg_add_file(dev, name, bytes, size, e);
}

/* ---- ports ---- */

static void select_item(struct fw_cfg *dev, unsigned selector)
{
    dev->selector = selector & SELECTOR_ITEM;
    dev->selected = find(dev, dev->selector);
    dev->at = 0;
}

static uint64_t fw_cfg_read(void *ctx, uint64_t offset, unsigned size)
{
    struct fw_cfg *dev = ctx;

    if (offset != 1 || size != 1)
        return mask_bytes(size);
    if (dev->selected == NULL || dev->at == dev->selected->size)
        return 0;
    return dev->selected->bytes[dev->at++];
}

static void fw_cfg_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    if (offset == 0 && size == 2)
        select_item(ctx, (unsigned)value);
}

static const struct space_ops fw_cfg_ops = {
    .read = fw_cfg_read,
    .write = fw_cfg_write,
    .max_size = 2,
};

/* ---- DMA ---- */

/* `size` bytes that do not leave their page: NULL: zeros. False: that is not RAM. */
static bool dma_put(struct fw_cfg *dev, uint64_t addr, const uint8_t *bytes, size_t size)
{
    uint8_t *ram = space_ram_ptr(dev->memory, addr, size, true);

    if (ram == NULL)
        return false;
    if (bytes != NULL)
        memcpy(ram, bytes, size);
    else
        memset(ram, 0, size);
    space_note_written(dev->memory, addr, size);
    return true;
}

/* The selected item's next `length` bytes, and zeros behind its end, to `addr`. */
static bool dma_read(struct fw_cfg *dev, uint64_t addr, uint32_t length)
{
    if (!range_fits(addr, length, UINT64_MAX))
        return false;
    while (length > 0) {
        size_t left = dev->selected != NULL ? dev->selected->size - dev->at : 0;
        size_t n = MIN((size_t)length, PIECE_SIZE - (size_t)(addr % PIECE_SIZE));
        const uint8_t *bytes = NULL;

        if (left != 0) {
            n = MIN(n, left);
            bytes = dev->selected->bytes + dev->at;
        }
        if (!dma_put(dev, addr, bytes, n))
            return false;
        dev->at += bytes != NULL ? n : 0;
        addr += n;
        length -= (uint32_t)n;
    }
    return true;
}

static void dma_skip(struct fw_cfg *dev, uint32_t length)
{
    if (dev->selected != NULL)
        dev->at += MIN((size_t)length, dev->selected->size - dev->at);
}

/* When several things are asked for, reading comes before writing before skipping. */
static bool dma_perform(struct fw_cfg *dev, uint32_t control, uint64_t addr, uint32_t length)
{
    if (control & CONTROL_SELECT)
        select_item(dev, control >> CONTROL_KEY_SHIFT);
    if (control & CONTROL_READ)
        return dma_read(dev, addr, length);
    if (control & CONTROL_WRITE)
        return length == 0;
    if (control & CONTROL_SKIP)
        dma_skip(dev, length);
    return true;
}

/* The request stands in RAM; its first field becomes the answer. */
static void dma_run(struct fw_cfg *dev)
{
    uint64_t at = dev->dma_address;
    uint8_t request[DMA_REQUEST_SIZE], answer[4];
    bool is_done;

    dev->dma_address = 0;
    /* one that cannot be answered is not looked at */
    if (!range_fits(at, sizeof(request), UINT64_MAX) ||
        space_ram_ptr(dev->memory, at, sizeof(request), true) == NULL)
        return;
    space_read(dev->memory, at, request, sizeof(request));
    is_done =
        dma_perform(dev, (uint32_t)load_be(request + DMA_CONTROL, 4),
                    load_be(request + DMA_ADDRESS, 8), (uint32_t)load_be(request + DMA_LENGTH, 4));
    store_be(answer, is_done ? 0 : CONTROL_ERROR, 4);
    space_write(dev->memory, at + DMA_CONTROL, answer, sizeof(answer));
}

static uint32_t swap32(uint32_t value)
{
    return __builtin_bswap32(value);
}

static uint64_t dma_port_read(void *ctx, uint64_t offset, unsigned size)
{
    uint8_t bytes[8];
    uint64_t value = 0;

    store_be(bytes, DMA_SIGNATURE, 8);
    memcpy(&value, bytes + offset, MIN(size, 8 - offset));
    return value;
}

/* The low half starts the request. */
static void dma_port_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct fw_cfg *dev = ctx;

    if (size != 4)
        return;
    if (offset == 0) {
        dev->dma_address = (uint64_t)swap32((uint32_t)value) << 32;
    } else if (offset == 4) {
        dev->dma_address |= swap32((uint32_t)value);
        dma_run(dev);
    }
}

static const struct space_ops dma_ops = {
    .read = dma_port_read,
    .write = dma_port_write,
    .max_size = 4,
};

int fw_cfg_map(struct fw_cfg *dev, struct space *ports, uint16_t base, uint16_t dma, struct err *e)
{
    int ret = space_add_io(ports, base, 2, &fw_cfg_ops, dev, &dev->lock, e);

    if (ret == 0 && dev->memory != NULL)
        ret = space_add_io(ports, dma, 8, &dma_ops, dev, &dev->lock, e);
    return ret;
}

/* ---- state ---- */

void fw_cfg_get_state(struct fw_cfg *dev, struct fw_cfg_state *out)
{
    memset(out, 0, sizeof(*out));
    pthread_mutex_lock(&dev->lock);
    out->selector = (uint16_t)dev->selector;
    out->at = (uint32_t)dev->at;
    out->dma_address = (uint32_t)(dev->dma_address >> 32);
    pthread_mutex_unlock(&dev->lock);
}

static int set_state(struct fw_cfg *dev, const struct fw_cfg_state *state, struct err *e)
{
    const struct item *item = find(dev, state->selector);

    if (state->selector & ~SELECTOR_ITEM)
        return err_set(e, 0, "selector is 0x%x, and not all of these bits are kept",
                       state->selector);
    if (state->at > (item != NULL ? item->size : 0))
        return err_set(e, 0, "at is %u, and item 0x%x has %zu bytes", state->at, state->selector,
                       item != NULL ? item->size : 0);
    select_item(dev, state->selector);
    dev->at = state->at;
    dev->dma_address = (uint64_t)state->dma_address << 32;
    return 0;
}

int fw_cfg_set_state(struct fw_cfg *dev, const struct fw_cfg_state *state, struct err *e)
{
    pthread_mutex_lock(&dev->lock);
    int rc = set_state(dev, state, e);
    pthread_mutex_unlock(&dev->lock);
    return rc != 0 ? err_prefix(e, "put back the state of the firmware configuration device") : 0;
}

/* ---- set-up ---- */

void fw_cfg_reset(struct fw_cfg *dev)
{
    pthread_mutex_lock(&dev->lock);
    select_item(dev, FW_CFG_KEY_SIGNATURE);
    dev->dma_address = 0;
    pthread_mutex_unlock(&dev->lock);
}

int fw_cfg_create(struct space *memory, struct fw_cfg **out, struct err *e)
{
    static const uint8_t no_files[4];
    struct fw_cfg *dev = calloc(1, sizeof(*dev));
    int ret;

    if (dev == NULL)
        return err_set(e, ENOMEM, "make the firmware configuration device");
    pthread_mutex_init(&dev->lock, NULL);
    dev->memory = memory;
    ret = fw_cfg_add(dev, FW_CFG_KEY_SIGNATURE, "QEMU", 4, e);
    if (ret == 0)
        ret = fw_cfg_add_number(dev, FW_CFG_KEY_ID, ID_PORTS | (memory != NULL ? ID_DMA : 0), 4, e);
    if (ret == 0)
        ret = fw_cfg_add(dev, FW_CFG_KEY_DIRECTORY, no_files, sizeof(no_files), e);
    if (ret != 0) {
        fw_cfg_destroy(dev);
        return ret;
    }
    select_item(dev, FW_CFG_KEY_SIGNATURE);
    *out = dev;
    return 0;
}

void fw_cfg_destroy(struct fw_cfg *dev)
{
    if (dev == NULL)
        return;
    for (unsigned i = 0; i < dev->item_count; i++)
        free(dev->items[i].bytes);
    pthread_mutex_destroy(&dev->lock);
    free(dev);
}
