/*
 * virtio_vhost_state.c - a device that another process serves: coming to rest, and its state
 *
 * The rings between us and the back end are ours, and begin anew with every start; so a device at
 * rest is one whose back end has been stopped, and what it was given and has not done lies in the
 * guest's queues again. Requests of disks come back by themselves and are waited for.
 */
#include <errno.h>
#include <stdio.h>

#include "backend/vhost/vhost_user.h"
#include "dev/virtio/virtio_vhost_internal.h"
#include "os/event.h"

/* ---- coming to rest; the device's thread ---- */

/* Requests of a disk or a folder end; buffers for a network's frames may wait for ever. */
static bool is_done(struct virtio_vhost *v)
{
    unsigned count = 0;

    virtio_lock(&v->dev);
    for (unsigned i = 0; i < v->ring_count; i++)
        count += v->rings[i].out_count;
    virtio_unlock(&v->dev);
    return count == 0 || v->config.kind == VIRTIO_VHOST_NET || v->backend == NULL;
}

/* Chains that the back end has not used go back, the last one first. False: not all could. */
static bool undo_chains(struct virtio_vhost *v, unsigned index)
{
    const struct virtqueue_chain *chain;
    int rc;

    if (!vhost_give_back(v, index))
        return false;
    while ((rc = vhost_ring_undo(&v->rings[index], &chain)) > 0) {
        vhost_note_written(v, chain); /* in part, it may have been */
        virtqueue_unpop(&v->dev.queues[index], chain);
    }
    return rc == 0;
}

void vhost_park(struct virtio_vhost *v)
{
    char why[ERR_MSG_SIZE];
    bool is_good = true;

    if (!is_done(v))
        return; /* when the next one has come back, this is asked again */
    vhost_stop_rings(v);
    virtio_lock(&v->dev);
    for (unsigned i = 0; i < v->ring_count && v->is_live; i++)
        is_good = undo_chains(v, i) && is_good;
    virtio_unlock(&v->dev);
    if (!is_good && v->backend != NULL) {
        snprintf(why, sizeof(why),
                 "the vhost-user back end at '%s' kept requests when it was stopped",
                 v->config.path);
        vhost_lose_backend(v, why);
    }
    virtio_lock(&v->dev);
    vhost_drop_chains(v);
    v->is_parked = v->wants_park;
    /* whoever wanted it did not wait */
    v->wants_start |= !v->wants_park && virtio_is_running(&v->dev);
    v->wants_park = false;
    virtio_drained(&v->dev);
    virtio_unlock(&v->dev);
    event_raise(v->wake_fd);
}

/* ---- state; under the lock ---- */

bool vhost_quiesce(struct virtio_device *dev)
{
    struct virtio_vhost *v = CONTAINER_OF(dev, struct virtio_vhost, dev);

    if (!v->is_up || v->is_parked)
        return true;
    v->wants_park = true;
    event_raise(v->wake_fd);
    return false;
}

void vhost_resume(struct virtio_device *dev)
{
    struct virtio_vhost *v = CONTAINER_OF(dev, struct virtio_vhost, dev);

    v->wants_start |= v->is_parked && virtio_is_running(dev);
    v->wants_park = v->is_parked = false;
    event_raise(v->wake_fd);
}

/* Of a folder the back end knows what the guest has opened, and nobody can ask it for that. */
static int check_kind(const struct virtio_vhost *v, uint8_t status, struct err *e)
{
    if (v->config.kind == VIRTIO_VHOST_SHARE && (status & VIRTIO_STATUS_DRIVER_OK))
        return err_set(e, ENOTSUP,
                       "'%s' is a folder that another process serves, and a driver is using it; "
                       "what that process knows of the guest's files stays there",
                       v->config.path);
    return 0;
}

int vhost_check_carried(struct virtio_device *dev, struct err *e)
{
    return check_kind(CONTAINER_OF(dev, struct virtio_vhost, dev), dev->status, e);
}

void vhost_get_state(struct virtio_device *dev, struct virtio_state *out)
{
    const struct virtio_vhost *v = CONTAINER_OF(dev, struct virtio_vhost, dev);

    out->vhost.kind = (uint8_t)v->config.kind;
    out->vhost.active_pairs = (uint8_t)v->active_pairs;
}

int vhost_check_state(struct virtio_device *dev, const struct virtio_state *state, struct err *e)
{
    const struct virtio_vhost *v = CONTAINER_OF(dev, struct virtio_vhost, dev);
    unsigned pairs = state->features & VHOST_NET_F_MQ ? v->ring_count / 2 : 1;

    if (state->vhost.kind != v->config.kind)
        return err_set(e, 0, "vhost.kind is %u, and the device's is %u", state->vhost.kind,
                       v->config.kind);
    if (v->config.kind != VIRTIO_VHOST_NET)
        pairs = 1;
    if (state->vhost.active_pairs < 1 || state->vhost.active_pairs > pairs)
        return err_set(e, 0, "vhost.active_pairs is %u, and there are %u",
                       state->vhost.active_pairs, pairs);
    if (v->config.kind == VIRTIO_VHOST_DISK && load_le64(state->config) > load_le64(dev->config))
        return err_set(e, 0, "config: the capacity is %llu sectors, and the disk has %llu",
                       (unsigned long long)load_le64(state->config),
                       (unsigned long long)load_le64(dev->config));
    return check_kind(v, state->status, e);
}

void vhost_set_state(struct virtio_device *dev, const struct virtio_state *state)
{
    struct virtio_vhost *v = CONTAINER_OF(dev, struct virtio_vhost, dev);

    v->active_pairs = state->vhost.active_pairs;
    v->is_up = v->is_parked = (state->status & VIRTIO_STATUS_DRIVER_OK) != 0;
}
