/*
 * test_device.c - what QEMU calls pc-testdev: interrupt lines, a register and a buffer
 *
 * Offsets come from the space and are inside of the windows; nothing here depends on the guest's
 * good will.
 */
#include "dev/platform/test_device.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "mem/space.h"

/* Offsets from TEST_DEVICE_PORT. */
#define REGISTER_OFFSET 0
#define FLUSH_OFFSET 4
#define REGISTER_BYTES_OFFSET 8

struct test_device {
    pthread_mutex_t lock;
    struct irq_line lines[TEST_DEVICE_LINES];
    uint8_t reg[4];
    uint8_t buffer[TEST_DEVICE_MEMORY_SIZE];
};

int test_device_create(const struct irq_line lines[TEST_DEVICE_LINES], struct test_device **out,
                       struct err *e)
{
    struct test_device *dev = calloc(1, sizeof(*dev));

    if (dev == NULL)
        return err_set(e, ENOMEM, "make the test device");
    pthread_mutex_init(&dev->lock, NULL);
    memcpy(dev->lines, lines, sizeof(dev->lines));
    *out = dev;
    return 0;
}

void test_device_destroy(struct test_device *dev)
{
    if (dev == NULL)
        return;
    pthread_mutex_destroy(&dev->lock);
    free(dev);
}

void test_device_reset(struct test_device *dev)
{
    pthread_mutex_lock(&dev->lock);
    memset(dev->reg, 0, sizeof(dev->reg));
    memset(dev->buffer, 0, sizeof(dev->buffer));
    for (unsigned i = 0; i < TEST_DEVICE_LINES; i++)
        irq_set(&dev->lines[i], false);
    pthread_mutex_unlock(&dev->lock);
}

static uint64_t load_bytes(const uint8_t *from, unsigned size)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)from[i] << (8 * i);
    return value;
}

static void store_bytes(uint8_t *to, uint64_t value, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        to[i] = (uint8_t)(value >> (8 * i));
}

/* ---- the register ---- */

static uint64_t register_read(void *ctx, uint64_t offset, unsigned size)
{
    struct test_device *dev = ctx;

    return load_bytes(dev->reg + offset, size);
}

static void register_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct test_device *dev = ctx;

    store_bytes(dev->reg + offset, value, size);
}

static const struct space_ops register_ops = {.read = register_read, .write = register_write};

/* ---- the page to forget ---- */

static uint64_t flush_read(void *ctx, uint64_t offset, unsigned size)
{
    return mask_bytes(size);
}

/*
 * QEMU takes the page out of its own page tables for a moment, so that a hypervisor that mapped
 * it for the guest has to look it up again. The guest cannot tell whether that happened, and
 * engines here follow the guest's tables, not the host's: there is nothing to forget.
 */
static void flush_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
}

static const struct space_ops flush_ops = {.read = flush_read, .write = flush_write};

/* ---- interrupt lines ---- */

static uint64_t lines_read(void *ctx, uint64_t offset, unsigned size)
{
    return mask_bytes(size);
}

static void lines_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct test_device *dev = ctx;

    irq_set(&dev->lines[offset], (value & 0xff) != 0);
}

static const struct space_ops lines_ops = {
    .read = lines_read,
    .write = lines_write,
    .max_size = 1,
};

/* ---- the buffer ---- */

static uint64_t buffer_read(void *ctx, uint64_t offset, unsigned size)
{
    struct test_device *dev = ctx;

    return load_bytes(dev->buffer + offset, size);
}

static void buffer_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct test_device *dev = ctx;

    store_bytes(dev->buffer + offset, value, size);
}

static const struct space_ops buffer_ops = {
    .read = buffer_read,
    .write = buffer_write,
    .max_size = 8,
};

int test_device_map(struct test_device *dev, struct space *ports, struct space *memory,
                    struct err *e)
{
    int ret = space_add_io(ports, TEST_DEVICE_PORT + REGISTER_OFFSET, 4, &register_ops, dev,
                           &dev->lock, e);

    if (ret == 0)
        ret = space_add_io(ports, TEST_DEVICE_PORT + FLUSH_OFFSET, 4, &flush_ops, dev, NULL, e);
    if (ret == 0)
        ret = space_add_io(ports, TEST_DEVICE_PORT + REGISTER_BYTES_OFFSET, 4, &register_ops, dev,
                           &dev->lock, e);
    if (ret == 0)
        ret = space_add_io(ports, TEST_DEVICE_LINES_PORT, TEST_DEVICE_LINES, &lines_ops, dev,
                           &dev->lock, e);
    if (ret == 0)
        ret = space_add_io(memory, TEST_DEVICE_MEMORY, TEST_DEVICE_MEMORY_SIZE, &buffer_ops, dev,
                           &dev->lock, e);
    return ret;
}
