/*
 * debug_exit.c - a port by which a test guest ends the machine with a status
 *
 * It has no state; the callback may come from several vCPUs at once.
 */
#include "dev/platform/debug_exit.h"

#include <errno.h>
#include <stdlib.h>

#include "base/bits.h"
#include "mem/space.h"

struct debug_exit {
    debug_exit_fn fn;
    void *ctx;
};

int debug_exit_create(debug_exit_fn fn, void *ctx, struct debug_exit **out, struct err *e)
{
    struct debug_exit *dev = calloc(1, sizeof(*dev));
    if (dev == NULL)
        return err_set(e, ENOMEM, "make the debug-exit port");
    dev->fn = fn;
    dev->ctx = ctx;
    *out = dev;
    return 0;
}

void debug_exit_destroy(struct debug_exit *dev)
{
    free(dev);
}

static uint64_t debug_exit_read(void *ctx, uint64_t offset, unsigned size)
{
    return 0;
}

static void debug_exit_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct debug_exit *dev = ctx;
    uint32_t v = (uint32_t)(value & mask_bytes(size));
    dev->fn(dev->ctx, v << 1 | 1);
}

static const struct space_ops debug_exit_ops = {
    .read = debug_exit_read,
    .write = debug_exit_write,
    .min_size = 1,
    .max_size = 4,
};

int debug_exit_map(struct debug_exit *dev, struct space *ports, uint16_t base, struct err *e)
{
    return space_add_io(ports, base, 4, &debug_exit_ops, dev, NULL, e);
}
