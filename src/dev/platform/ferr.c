/*
 * ferr.c - x87 errors the AT's way: FERR#, IRQ 13, port F0H and IGNNE#
 *
 * IGNNE# is asserted only while FERR# is. The interrupt rises with FERR#, and nothing but a write
 * to the port takes it down: that the error itself has gone does not.
 *
 * Spec: Intel 82371AB (PIIX4) data sheet, "Coprocessor Error Register" and FERR#, IGNNE#;
 * Intel SDM vol. 1, appendix D.2 ("MS-DOS compatibility mode").
 */
#include "dev/platform/ferr.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/bits.h"
#include "mem/space.h"

struct ferr {
    pthread_mutex_t lock;
    struct irq_line irq;
    bool is_ferr, is_ignne; /* under lock */
};

int ferr_create(struct irq_line irq, struct ferr **out, struct err *e)
{
    struct ferr *dev = calloc(1, sizeof(*dev));

    if (dev == NULL)
        return err_set(e, ENOMEM, "make the coprocessor error logic");
    pthread_mutex_init(&dev->lock, NULL);
    dev->irq = irq;
    *out = dev;
    return 0;
}

void ferr_destroy(struct ferr *dev)
{
    if (dev == NULL)
        return;
    pthread_mutex_destroy(&dev->lock);
    free(dev);
}

void ferr_reset(struct ferr *dev)
{
    pthread_mutex_lock(&dev->lock);
    dev->is_ferr = dev->is_ignne = false;
    irq_set(&dev->irq, false);
    pthread_mutex_unlock(&dev->lock);
}

bool ferr_set(struct ferr *dev, bool is_asserted)
{
    bool is_ignne;

    pthread_mutex_lock(&dev->lock);
    if (is_asserted && !dev->is_ferr)
        irq_set(&dev->irq, true);
    dev->is_ferr = is_asserted;
    if (!is_asserted)
        dev->is_ignne = false;
    is_ignne = dev->is_ignne;
    pthread_mutex_unlock(&dev->lock);
    return is_ignne;
}

static void ferr_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct ferr *dev = ctx;

    pthread_mutex_lock(&dev->lock);
    irq_set(&dev->irq, false);
    dev->is_ignne = dev->is_ferr;
    pthread_mutex_unlock(&dev->lock);
}

static uint64_t ferr_read(void *ctx, uint64_t offset, unsigned size)
{
    return mask_bytes(size);
}

int ferr_map(struct ferr *dev, struct space *ports, struct err *e)
{
    static const struct space_ops ops = {
        .read = ferr_read,
        .write = ferr_write,
        .max_size = 1,
    };

    return space_add_io(ports, FERR_PORT, 1, &ops, dev, NULL, e);
}
