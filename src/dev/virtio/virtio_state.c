/*
 * virtio_state.c - the state of virtio devices: stopping for it, taking it, checking and putting
 * it back
 *
 * Invariant: a state is checked as a whole before any of it is put into the device.
 *
 * Spec: VIRTIO 1.2, 2.1 to 2.8.
 */
#include "dev/virtio/virtio_state.h"

#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "mem/space.h"

#define STATUS_ALL                                                                                 \
    (VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_DRIVER_OK |                  \
     VIRTIO_STATUS_FEATURES_OK | VIRTIO_STATUS_NEEDS_RESET | VIRTIO_STATUS_FAILED)

/* ---- standing still ---- */

static bool is_quiet(struct virtio_device *dev)
{
    return !dev->is_resetting && (dev->ops->quiesce == NULL || dev->ops->quiesce(dev));
}

static int check_carried(struct virtio_device *dev, struct err *e)
{
    if (dev->ops->state_kind == VIRTIO_STATE_NONE)
        return err_set(e, ENOTSUP, "take the state of %s", dev->name);
    return dev->ops->check_carried != NULL ? dev->ops->check_carried(dev, e) : 0;
}

int virtio_quiesce(struct virtio_device *dev, uint64_t timeout_ns, struct err *e)
{
    struct timespec until;
    int rc = 0;

    pthread_mutex_lock(&dev->lock);
    rc = check_carried(dev, e);
    if (rc != 0) {
        pthread_mutex_unlock(&dev->lock);
        return rc;
    }
    until = clock_deadline(timeout_ns);
    dev->is_quiesced = true;
    while (!is_quiet(dev) && rc == 0)
        rc = pthread_cond_timedwait(&dev->drained, &dev->lock, &until);
    pthread_mutex_unlock(&dev->lock);
    if (rc == 0)
        return 0;
    virtio_resume(dev);
    return err_set(e, rc, "wait for what is under way in %s", dev->name);
}

void virtio_drained(struct virtio_device *dev)
{
    pthread_cond_broadcast(&dev->drained);
}

void virtio_resume(struct virtio_device *dev)
{
    virtio_lock(dev);
    if (dev->is_quiesced) {
        dev->is_quiesced = false;
        if (dev->ops->resume != NULL)
            dev->ops->resume(dev);
        if (dev->is_config_due)
            virtio_signal_config(dev);
        dev->is_config_due = false;
        virtio_notify_all(dev);
    }
    virtio_unlock(dev);
}

/* ---- taking it ---- */

static int get_queue(const struct virtio_device *dev, unsigned index, struct virtqueue_state *out,
                     struct err *e)
{
    const struct virtqueue *q = &dev->queues[index];

    out->descriptors = q->descriptors;
    out->driver = q->driver;
    out->device = q->device;
    out->size = q->size;
    out->is_enabled = q->is_enabled;
    if (!q->is_enabled)
        return 0;
    /* of a device that needs a reset, positions have no meaning any more */
    bool is_dead = (dev->status & VIRTIO_STATUS_NEEDS_RESET) != 0;
    if (!is_dead &&
        (q->next_avail != q->next_used || (q->is_packed && q->avail_wrap != q->used_wrap)))
        return err_set(e, EBUSY, "take the state of %s: requests of its queue %u are under way",
                       dev->name, index);
    out->is_quiet = q->is_quiet;
    out->next = q->next_avail;
    if (q->is_packed) {
        out->wrap = q->avail_wrap;
        out->unsignalled = q->used_since_signal;
    } else {
        out->unsignalled = (uint16_t)(q->next_used - q->signalled_used);
    }
    return 0;
}

static int get_state(struct virtio_device *dev, struct virtio_state *out, struct err *e)
{
    int rc = check_carried(dev, e);

    if (rc != 0)
        return rc;
    if (!dev->is_quiesced)
        return err_set(e, EBUSY, "take the state of %s while it works", dev->name);
    memset(out, 0, sizeof(*out)); /* what is between the fields, too */
    out->kind = (uint8_t)dev->ops->state_kind;
    out->id = dev->id;
    out->queue_count = (uint16_t)dev->queue_count;
    out->config_size = (uint16_t)dev->config_size;
    out->status = dev->status;
    out->config_generation = dev->config_generation;
    out->features = dev->features;
    memcpy(out->config, dev->config, dev->config_size);
    for (unsigned i = 0; i < dev->queue_count && rc == 0; i++)
        rc = get_queue(dev, i, &out->queues[i], e);
    if (rc == 0 && dev->ops->get_state != NULL)
        dev->ops->get_state(dev, out);
    return rc;
}

int virtio_get_state(struct virtio_device *dev, struct virtio_state *out, struct err *e)
{
    pthread_mutex_lock(&dev->lock);
    int rc = get_state(dev, out, e);
    pthread_mutex_unlock(&dev->lock);
    return rc;
}

/* ---- checking it ---- */

int virtio_check_claim(uint8_t value, const char *field, unsigned index, struct err *e)
{
    return value > 1 ? err_set(e, 0, "%s of %u is %u, not 0 or 1", field, index, value) : 0;
}

static bool state_has(const struct virtio_state *state, uint64_t feature)
{
    return (state->features & feature) != 0;
}

static int check_kind(const struct virtio_device *dev, const struct virtio_state *state,
                      struct err *e)
{
    if (state->kind == VIRTIO_STATE_NONE || state->kind != dev->ops->state_kind ||
        state->id != dev->id)
        return err_set(e, 0, "kind and id are %u and %u, and the device's are %u and %u",
                       state->kind, state->id, dev->ops->state_kind, dev->id);
    if (state->queue_count != dev->queue_count)
        return err_set(e, 0, "queue_count is %u, and the device has %u queues", state->queue_count,
                       dev->queue_count);
    if (state->config_size != dev->config_size)
        return err_set(e, 0, "config_size is %u, and the device has %u bytes of it",
                       state->config_size, dev->config_size);
    return 0;
}

/* Until FEATURES_OK a driver may have written any features, as far as it has come. */
static int check_status(const struct virtio_device *dev, const struct virtio_state *state,
                        struct err *e)
{
    bool is_agreed = (state->status & VIRTIO_STATUS_FEATURES_OK) != 0;

    if (state->status & ~STATUS_ALL)
        return err_set(e, 0, "status is 0x%02x, and not all of these bits exist", state->status);
    if (!is_agreed && (state->status & VIRTIO_STATUS_DRIVER_OK))
        return err_set(e, 0, "status is 0x%02x: DRIVER_OK without FEATURES_OK", state->status);
    if (is_agreed && (state->features & ~dev->offered))
        return err_set(e, 0, "features are %#llx, and %#llx of them are not offered",
                       (unsigned long long)state->features,
                       (unsigned long long)(state->features & ~dev->offered));
    if (is_agreed && !state_has(state, VIRTIO_F_VERSION_1))
        return err_set(e, 0, "features are %#llx, without VERSION_1",
                       (unsigned long long)state->features);
    return 0;
}

/* What the driver cannot change, and the host does not, is as it was when the driver read it. */
static int check_config(const struct virtio_device *dev, const struct virtio_state *state,
                        struct err *e)
{
    for (unsigned i = 0; i < dev->config_size; i++) {
        uint8_t fixed = (uint8_t)~dev->config_write_mask[i];
        if (dev->config_rule[i] == VIRTIO_CONFIG_FIXED &&
            ((state->config[i] ^ dev->config[i]) & fixed))
            return err_set(e, 0, "config[%u] is 0x%02x, and the device's is 0x%02x for good", i,
                           state->config[i], dev->config[i]);
    }
    return 0;
}

/* As a queue that was enabled with this; *q is scratch. */
static int enable(const struct virtio_device *dev, const struct virtio_state *state, unsigned index,
                  struct virtqueue *q, struct err *e)
{
    const struct virtqueue_state *s = &state->queues[index];

    *q = (struct virtqueue){
        .size = s->size, .descriptors = s->descriptors, .driver = s->driver, .device = s->device};
    if (!virtqueue_enable(q, dev->memory, state_has(state, VIRTIO_F_RING_PACKED),
                          state_has(state, VIRTIO_F_INDIRECT_DESC),
                          state_has(state, VIRTIO_F_EVENT_IDX)))
        return err_set(e, 0,
                       "queues[%u]: %s (size %u, descriptors %#llx, driver %#llx, device %#llx)",
                       index, q->why, s->size, (unsigned long long)s->descriptors,
                       (unsigned long long)s->driver, (unsigned long long)s->device);
    return 0;
}

static int check_queue(const struct virtio_device *dev, const struct virtio_state *state,
                       unsigned index, struct err *e)
{
    const struct virtqueue_state *s = &state->queues[index];
    struct virtqueue q;
    int rc = virtio_check_claim(s->is_enabled, "is_enabled of queue", index, e);

    if (rc == 0)
        rc = virtio_check_claim(s->is_quiet, "is_quiet of queue", index, e);
    if (rc == 0)
        rc = virtio_check_claim(s->wrap, "wrap of queue", index, e);
    if (rc != 0)
        return rc;
    if (s->size == 0 || s->size > dev->queue_size)
        return err_set(e, 0, "queues[%u].size is %u, and at most %u is allowed", index, s->size,
                       dev->queue_size);
    if (!s->is_enabled) {
        if (s->is_quiet != 0 || s->wrap != 0 || s->next != 0 || s->unsignalled != 0)
            return err_set(e, 0, "queues[%u] has a position (%u), and is not enabled", index,
                           s->next);
        return 0;
    }
    if (!(state->status & VIRTIO_STATUS_FEATURES_OK))
        return err_set(e, 0,
                       "queues[%u].is_enabled is 1, and status is 0x%02x, without FEATURES_OK",
                       index, state->status);
    rc = enable(dev, state, index, &q, e);
    if (rc == 0 && q.is_packed && s->next >= s->size)
        rc = err_set(e, 0, "queues[%u].next is %u, and the ring has %u entries", index, s->next,
                     s->size);
    if (rc == 0 && !q.is_packed && s->wrap != 0)
        rc = err_set(e, 0, "queues[%u].wrap is 1, and the ring is no packed one", index);
    return rc;
}

static int check_state(struct virtio_device *dev, const struct virtio_state *state, struct err *e)
{
    int rc = check_kind(dev, state, e);

    if (rc == 0)
        rc = check_status(dev, state, e);
    if (rc == 0)
        rc = check_config(dev, state, e);
    for (unsigned i = 0; i < dev->queue_count && rc == 0; i++)
        rc = check_queue(dev, state, i, e);
    if (rc == 0 && dev->ops->check_state != NULL)
        rc = dev->ops->check_state(dev, state, e);
    return rc != 0 ? err_prefix(e, "put back the state of %s", dev->name) : 0;
}

int virtio_check_state(struct virtio_device *dev, const struct virtio_state *state, struct err *e)
{
    pthread_mutex_lock(&dev->lock);
    int rc = check_state(dev, state, e);
    pthread_mutex_unlock(&dev->lock);
    return rc;
}

/* ---- putting it back ---- */

static void set_queue(struct virtio_device *dev, const struct virtio_state *state, unsigned index)
{
    const struct virtqueue_state *s = &state->queues[index];
    struct virtqueue *q = &dev->queues[index];

    if (!s->is_enabled) {
        virtqueue_reset(q, s->size);
        q->descriptors = s->descriptors;
        q->driver = s->driver;
        q->device = s->device;
        return;
    }
    enable(dev, state, index, q, NULL);
    q->is_quiet = s->is_quiet;
    q->next_avail = q->next_used = s->next;
    if (q->is_packed) {
        q->avail_wrap = q->used_wrap = s->wrap;
        q->used_since_signal = s->unsignalled;
    } else {
        q->signalled_used = (uint16_t)(s->next - s->unsignalled);
    }
}

/* What the host has changed meanwhile the driver is told of when the device goes on. */
static void set_config(struct virtio_device *dev, const struct virtio_state *state)
{
    dev->config_generation = state->config_generation;
    for (unsigned i = 0; i < dev->config_size; i++) {
        uint8_t mask = dev->config_write_mask[i];
        if (dev->config_rule[i] == VIRTIO_CONFIG_CARRIED)
            mask = 0xff;
        else if (dev->config_rule[i] == VIRTIO_CONFIG_OF_HOST && dev->config[i] != state->config[i])
            dev->is_config_due = true;
        dev->config[i] = (uint8_t)((dev->config[i] & ~mask) | (state->config[i] & mask));
    }
}

int virtio_set_state(struct virtio_device *dev, const struct virtio_state *state, struct err *e)
{
    int rc = 0;

    pthread_mutex_lock(&dev->lock);
    if (!dev->is_quiesced || dev->status != 0)
        rc = err_set(e, EBUSY, "put back the state of %s, which is in use", dev->name);
    if (rc == 0)
        rc = check_state(dev, state, e);
    if (rc == 0) {
        dev->features = state->features;
        dev->status = state->status;
        set_config(dev, state);
        for (unsigned i = 0; i < dev->queue_count; i++)
            set_queue(dev, state, i);
        if (dev->ops->set_state != NULL)
            dev->ops->set_state(dev, state);
    }
    pthread_mutex_unlock(&dev->lock);
    return rc;
}
