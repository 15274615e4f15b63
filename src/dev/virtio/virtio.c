/*
 * virtio.c - a virtio device: status, features, queues, configuration
 *
 * Spec: VIRTIO 1.2, 2.1 to 2.6, 3.1.
 */
#include "dev/virtio/virtio.h"

#include <string.h>
#include <time.h>

#include "base/log.h"
#include "os/futex.h"

#define STATUS_WRITABLE                                                                            \
    (VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_DRIVER_OK |                  \
     VIRTIO_STATUS_FEATURES_OK | VIRTIO_STATUS_FAILED)

static void reset_state(struct virtio_device *dev)
{
    dev->status = 0;
    dev->features = 0;
    dev->is_resetting = false;
    for (unsigned i = 0; i < dev->queue_count; i++)
        virtqueue_reset(&dev->queues[i], dev->queue_size);
}

void virtio_init(struct virtio_device *dev)
{
    pthread_condattr_t attr;

    pthread_mutex_init(&dev->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&dev->drained, &attr);
    pthread_condattr_destroy(&attr);
    reset_state(dev);
}

void virtio_fini(struct virtio_device *dev)
{
    pthread_cond_destroy(&dev->drained);
    pthread_mutex_destroy(&dev->lock);
}

void virtio_lock(struct virtio_device *dev)
{
    pthread_mutex_lock(&dev->lock);
    futex_hold_wakes();
}

void virtio_unlock(struct virtio_device *dev)
{
    pthread_mutex_unlock(&dev->lock);
    futex_release_wakes();
}

/* ---- for device models ---- */

void virtio_needs_reset(struct virtio_device *dev, const char *why)
{
    if (dev->status & VIRTIO_STATUS_NEEDS_RESET)
        return;
    log_guest("%s: %s; it needs a reset by its driver", dev->name, why);
    dev->status |= VIRTIO_STATUS_NEEDS_RESET;
    if (dev->status & VIRTIO_STATUS_DRIVER_OK)
        dev->transport_ops->signal_config(dev->transport);
}

bool virtio_pop(struct virtio_device *dev, unsigned index, struct virtqueue_chain *chain)
{
    struct virtqueue *q = &dev->queues[index];

    if (!virtio_may_take(dev))
        return false;
    bool is_there = virtqueue_pop(q, chain);
    if (q->is_broken)
        virtio_needs_reset(dev, q->why);
    return is_there;
}

void virtio_signal_queue(struct virtio_device *dev, unsigned index)
{
    if (virtio_is_running(dev) && virtqueue_wants_interrupt(&dev->queues[index]))
        dev->transport_ops->signal_queue(dev->transport, index);
}

void virtio_signal_config(struct virtio_device *dev)
{
    dev->config_generation++;
    if (virtio_is_running(dev))
        dev->transport_ops->signal_config(dev->transport);
}

void virtio_reset_done(struct virtio_device *dev)
{
    if (dev->is_resetting)
        reset_state(dev);
    virtio_drained(dev);
}

/* ---- for transports ---- */

uint8_t virtio_get_status(const struct virtio_device *dev)
{
    return dev->status;
}

static void begin_reset(struct virtio_device *dev)
{
    if (dev->is_resetting)
        return;
    dev->is_resetting = true;
    if (dev->ops->reset == NULL || dev->ops->reset(dev))
        reset_state(dev);
}

/*
 * FEATURES_OK stays clear when the device cannot work with what was accepted (3.1.1): without
 * VERSION_1 there is no device here.
 */
static bool features_are_good(const struct virtio_device *dev)
{
    return (dev->features & ~dev->offered) == 0 && virtio_has(dev, VIRTIO_F_VERSION_1);
}

void virtio_notify(struct virtio_device *dev, unsigned index)
{
    if (index < dev->queue_count && dev->queues[index].is_enabled && virtio_may_take(dev))
        dev->ops->notify(dev, index);
}

void virtio_notify_all(struct virtio_device *dev)
{
    for (unsigned i = 0; i < dev->queue_count; i++)
        virtio_notify(dev, i);
}

void virtio_hold(struct virtio_device *dev, bool is_held)
{
    bool was_held = dev->is_held;

    dev->is_held = is_held;
    if (was_held && !is_held)
        virtio_notify_all(dev);
}

void virtio_set_status(struct virtio_device *dev, uint8_t status)
{
    uint8_t added = status & (uint8_t)~dev->status & STATUS_WRITABLE;

    if (status == 0) {
        begin_reset(dev);
        return;
    }
    if (dev->is_resetting)
        return;
    if ((added & VIRTIO_STATUS_FEATURES_OK) && !features_are_good(dev))
        added &= (uint8_t)~VIRTIO_STATUS_FEATURES_OK;
    /* the steps have an order, and only a reset takes one back */
    if (!((dev->status | added) & VIRTIO_STATUS_FEATURES_OK))
        added &= (uint8_t)~VIRTIO_STATUS_DRIVER_OK;
    dev->status |= added;
    if (added & VIRTIO_STATUS_DRIVER_OK) {
        if (dev->ops->start != NULL)
            dev->ops->start(dev);
        virtio_notify_all(dev);
    }
}

void virtio_set_driver_features(struct virtio_device *dev, unsigned select, uint32_t value)
{
    if (select > 1 || dev->is_resetting || (dev->status & VIRTIO_STATUS_FEATURES_OK))
        return;
    uint64_t shift = select * 32;
    dev->features = (dev->features & ~(UINT64_C(0xffffffff) << shift)) | (uint64_t)value << shift;
}

void virtio_enable_queue(struct virtio_device *dev, unsigned index)
{
    struct virtqueue *q = &dev->queues[index];

    if (q->is_enabled || dev->is_resetting || !(dev->status & VIRTIO_STATUS_FEATURES_OK))
        return;
    if (!virtqueue_enable(q, dev->memory, virtio_has(dev, VIRTIO_F_RING_PACKED),
                          virtio_has(dev, VIRTIO_F_INDIRECT_DESC),
                          virtio_has(dev, VIRTIO_F_EVENT_IDX)))
        virtio_needs_reset(dev, q->why);
}

uint64_t virtio_config_read(struct virtio_device *dev, unsigned offset, unsigned size)
{
    uint64_t value = 0;

    if (range_fits(offset, size, dev->config_size))
        memcpy(&value, dev->config + offset, size);
    return value;
}

void virtio_config_write(struct virtio_device *dev, unsigned offset, uint64_t value, unsigned size)
{
    if (!range_fits(offset, size, dev->config_size) || dev->is_resetting)
        return;
    for (unsigned i = 0; i < size; i++) {
        uint8_t mask = dev->config_write_mask[offset + i];
        uint8_t *byte = &dev->config[offset + i];
        *byte = (uint8_t)((*byte & ~mask) | ((value >> (8 * i)) & mask));
    }
    if (dev->ops->config_written != NULL)
        dev->ops->config_written(dev, offset, size);
}
