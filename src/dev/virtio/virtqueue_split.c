/*
 * virtqueue_split.c - split virtqueues: descriptor table, available ring, used ring
 *
 * Spec: VIRTIO 1.2, 2.7.
 */
#include "dev/virtio/virtqueue_ring.h"
#include "mem/space.h"

static uint8_t *used_event(const struct virtqueue *q)
{
    return q->driver_area + AVAIL_RING + q->size * 2;
}

static uint8_t *avail_event(const struct virtqueue *q)
{
    return q->device_area + USED_RING + q->size * USED_SIZE;
}

/* A field of the device's area; whoever watches memory hears of it. */
static void store(struct virtqueue *q, uint8_t *p, uint16_t value)
{
    ring_store16(p, value);
    space_note_written(q->memory, q->device + (uint64_t)(p - q->device_area), 2);
}

bool virtqueue_split_has_more(struct virtqueue *q)
{
    return ring_load16(q->driver_area + AVAIL_INDEX) != q->next_avail;
}

static bool take_chain(struct virtqueue *q, struct virtqueue_chain *chain, unsigned head)
{
    unsigned at = head;

    for (unsigned n = 0; n < q->size; n++) {
        struct descriptor d;
        descriptor_read(&d, q->descriptor_area + (size_t)at * DESCRIPTOR_SIZE);
        if (d.flags & DESC_INDIRECT) {
            /* only the last of a chain may be one, and it names no successor (2.7.5.3.1) */
            if (d.flags & DESC_NEXT)
                return virtqueue_break(q, "an indirect descriptor has a successor");
            return virtqueue_add_indirect(q, chain, d.addr, d.len);
        }
        if (!virtqueue_add_buffer(q, chain, d.addr, d.len, (d.flags & DESC_WRITE) != 0))
            return false;
        if (!(d.flags & DESC_NEXT))
            return true;
        at = d.next;
        if (at >= q->size)
            return virtqueue_break(q, "a descriptor's successor is out of range");
    }
    return virtqueue_break(q, "a chain is longer than the queue");
}

bool virtqueue_split_pop(struct virtqueue *q, struct virtqueue_chain *chain)
{
    uint16_t waiting = (uint16_t)(ring_load16(q->driver_area + AVAIL_INDEX) - q->next_avail);

    if (waiting == 0 && q->is_event_idx && !q->is_quiet) {
        /* the wish for the next one is visible before the ring is found empty (2.7.10.1) */
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        waiting = (uint16_t)(ring_load16(q->driver_area + AVAIL_INDEX) - q->next_avail);
    }
    if (waiting == 0)
        return false;
    if (waiting > q->size)
        return virtqueue_break(q, "more buffers are available than the queue has");
    virtqueue_clear_chain(chain);
    unsigned slot = q->next_avail & (q->size - 1u);
    uint16_t head = ring_load16(q->driver_area + AVAIL_RING + 2 * slot);
    if (head >= q->size)
        return virtqueue_break(q, "the head of a chain is out of range");
    if (!take_chain(q, chain, head))
        return false;
    chain->id = head;
    q->next_avail++;
    if (q->is_event_idx && !q->is_quiet)
        store(q, avail_event(q), q->next_avail);
    return true;
}

void virtqueue_split_push(struct virtqueue *q, const struct virtqueue_chain *chain,
                          uint32_t written)
{
    unsigned slot = q->next_used & (q->size - 1u);
    uint8_t *entry = q->device_area + USED_RING + slot * USED_SIZE;

    __atomic_store_n((uint32_t *)entry, chain->id, __ATOMIC_RELAXED);
    __atomic_store_n((uint32_t *)(entry + 4), written, __ATOMIC_RELAXED);
    q->next_used++;
    space_note_written(q->memory, q->device + (uint64_t)(entry - q->device_area), USED_SIZE);
    store(q, q->device_area + USED_INDEX, q->next_used);
}

bool virtqueue_split_wants_interrupt(struct virtqueue *q)
{
    uint16_t count = (uint16_t)(q->next_used - q->signalled_used);

    q->signalled_used = q->next_used;
    if (count == 0)
        return false;
    if (!q->is_event_idx)
        return !(ring_load16(q->driver_area + AVAIL_FLAGS) & AVAIL_NO_INTERRUPT);
    /* did the used index pass the one that the driver waits for? (2.7.7.2) */
    return (uint16_t)(q->next_used - ring_load16(used_event(q)) - 1) < count;
}

void virtqueue_split_set_notify(struct virtqueue *q, bool is_wanted)
{
    if (!q->is_event_idx)
        store(q, q->device_area + USED_FLAGS, is_wanted ? 0 : USED_NO_NOTIFY);
    else if (is_wanted)
        store(q, avail_event(q), q->next_avail);
    /* else: the event index stays behind, which asks for nothing until it is moved */
}
