/*
 * debug_port.c - the port to which firmware for virtual machines writes what it does
 *
 * Lines come from the guest: what cannot be printed becomes a dot, and one that is longer than
 * the buffer is several.
 */
#include "dev/platform/debug_port.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/log.h"
#include "mem/space.h"

#define LINE_MAX_LENGTH 160

struct debug_port {
    pthread_mutex_t lock;
    debug_port_line_fn line;
    void *ctx;
    char text[LINE_MAX_LENGTH + 1]; /* under lock, like `length` */
    unsigned length;
};

static void log_line(void *ctx, const char *line)
{
    log_debug("firmware: %s", line);
}

static void end_line(struct debug_port *dev)
{
    dev->text[dev->length] = '\0';
    if (dev->length != 0)
        dev->line(dev->ctx, dev->text);
    dev->length = 0;
}

static uint64_t debug_port_read(void *ctx, uint64_t offset, unsigned size)
{
    return DEBUG_PORT_ID;
}

static void debug_port_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct debug_port *dev = ctx;
    char c = (char)value;

    if (c == '\n') {
        end_line(dev);
    } else if (c != '\r') {
        dev->text[dev->length++] = c >= ' ' && c <= '~' ? c : '.';
        if (dev->length == LINE_MAX_LENGTH)
            end_line(dev);
    }
}

static const struct space_ops debug_port_ops = {
    .read = debug_port_read, .write = debug_port_write, .max_size = 1};

int debug_port_map(struct debug_port *dev, struct space *ports, uint16_t base, struct err *e)
{
    return space_add_io(ports, base, 1, &debug_port_ops, dev, &dev->lock, e);
}

void debug_port_reset(struct debug_port *dev)
{
    pthread_mutex_lock(&dev->lock);
    end_line(dev);
    pthread_mutex_unlock(&dev->lock);
}

int debug_port_create(debug_port_line_fn line, void *ctx, struct debug_port **out, struct err *e)
{
    struct debug_port *dev = calloc(1, sizeof(*dev));

    if (dev == NULL)
        return err_set(e, ENOMEM, "make the firmware's debug port");
    pthread_mutex_init(&dev->lock, NULL);
    dev->line = line != NULL ? line : log_line;
    dev->ctx = ctx;
    *out = dev;
    return 0;
}

void debug_port_destroy(struct debug_port *dev)
{
    if (dev == NULL)
        return;
    pthread_mutex_destroy(&dev->lock);
    free(dev);
}
