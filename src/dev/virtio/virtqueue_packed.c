/*
 * virtqueue_packed.c - packed virtqueues: one ring that both sides write
 *
 * A descriptor is available when its AVAIL bit equals the driver's wrap counter and its USED bit
 * does not; it is used when both equal the device's.
 *
 * Spec: VIRTIO 1.2, 2.8.
 */
#include "dev/virtio/virtqueue_ring.h"
#include "mem/space.h"

#define WRAP_SHIFT 15

static uint8_t *slot(const struct virtqueue *q, unsigned at)
{
    return q->descriptor_area + (size_t)at * DESCRIPTOR_SIZE;
}

static bool is_available(uint16_t flags, bool wrap)
{
    bool avail = (flags & DESC_AVAIL) != 0, used = (flags & DESC_USED) != 0;

    return avail == wrap && used != wrap;
}

bool virtqueue_packed_has_more(struct virtqueue *q)
{
    return is_available(ring_load16(slot(q, q->next_avail) + 14), q->avail_wrap);
}

static void advance(uint16_t *at, bool *wrap, unsigned count, unsigned size)
{
    unsigned next = *at + count;

    if (next >= size) {
        next -= size;
        *wrap = !*wrap;
    }
    *at = (uint16_t)next;
}

/* A field of the device's area; whoever watches memory hears of it. */
static void store(struct virtqueue *q, unsigned offset, uint16_t value)
{
    ring_store16(q->device_area + offset, value);
    space_note_written(q->memory, q->device + offset, 2);
}

/* The device says with which descriptor it wants to be told again. */
static void ask_for_next(struct virtqueue *q)
{
    store(q, 0, (uint16_t)(q->next_avail | (unsigned)q->avail_wrap << WRAP_SHIFT));
}

bool virtqueue_packed_pop(struct virtqueue *q, struct virtqueue_chain *chain)
{
    uint16_t at = q->next_avail;
    bool wrap = q->avail_wrap;

    /* the flags of the first are read before the rest of it (2.8.21.1) */
    if (!is_available(ring_load16(slot(q, at) + 14), wrap))
        return false;
    virtqueue_clear_chain(chain);
    for (unsigned n = 1;; n++) {
        struct descriptor d;
        descriptor_read(&d, slot(q, at));
        advance(&at, &wrap, 1, q->size);
        if (d.packed_flags & DESC_INDIRECT) {
            if ((d.packed_flags & DESC_NEXT) || n != 1)
                return virtqueue_break(q, "an indirect descriptor is not alone");
            if (!virtqueue_add_indirect(q, chain, d.addr, d.len))
                return false;
        } else if (!virtqueue_add_buffer(q, chain, d.addr, d.len,
                                         (d.packed_flags & DESC_WRITE) != 0)) {
            return false;
        }
        if (!(d.packed_flags & DESC_NEXT)) {
            /* the identifier is in the last descriptor of a chain (2.8.6) */
            chain->id = d.id;
            chain->descriptor_count = (uint16_t)n;
            break;
        }
        if (n == q->size)
            return virtqueue_break(q, "a chain is longer than the queue");
    }
    q->next_avail = at;
    q->avail_wrap = wrap;
    if (q->is_event_idx &&
        (ring_load16(q->device_area + PACKED_EVENT_FLAGS) & 3) == EVENT_DESCRIPTOR)
        ask_for_next(q);
    return true;
}

void virtqueue_packed_push(struct virtqueue *q, const struct virtqueue_chain *chain,
                           uint32_t written)
{
    uint8_t *p = slot(q, q->next_used);
    uint16_t flags = (uint16_t)((q->used_wrap ? DESC_AVAIL | DESC_USED : 0) |
                                (chain->in_count != 0 ? DESC_WRITE : 0));

    __atomic_store_n((uint32_t *)(p + 8), written, __ATOMIC_RELAXED);
    __atomic_store_n((uint16_t *)(p + 12), chain->id, __ATOMIC_RELAXED);
    ring_store16(p + 14, flags);
    /* the address, the first half of it, is the driver's still */
    space_note_written(q->memory, q->descriptors + q->next_used * DESCRIPTOR_SIZE + 8, 8);
    advance(&q->next_used, &q->used_wrap, chain->descriptor_count, q->size);
    q->used_since_signal = (uint16_t)MIN(q->used_since_signal + chain->descriptor_count, 0xffff);
}

bool virtqueue_packed_wants_interrupt(struct virtqueue *q)
{
    unsigned count = q->used_since_signal;
    uint16_t off_wrap = ring_load16(q->driver_area);
    unsigned flags = ring_load16(q->driver_area + PACKED_EVENT_FLAGS) & 3;

    if (count == 0)
        return false;
    if (flags == EVENT_DISABLE)
        return false;
    q->used_since_signal = 0;
    if (flags != EVENT_DESCRIPTOR || !q->is_event_idx)
        return true;
    /* how far behind the next entry is the one that the driver waits for? */
    unsigned event = off_wrap & 0x7fffu;
    bool event_wrap = off_wrap >> WRAP_SHIFT;
    if (event >= q->size)
        return true;
    unsigned behind =
        event_wrap == q->used_wrap ? q->next_used - event : q->next_used + q->size - event;
    /* a negative distance lies ahead; 0 is the next one to come */
    if (behind - 1u < count)
        return true;
    return false;
}

void virtqueue_packed_set_notify(struct virtqueue *q, bool is_wanted)
{
    if (!is_wanted) {
        store(q, PACKED_EVENT_FLAGS, EVENT_DISABLE);
    } else if (q->is_event_idx) {
        ask_for_next(q);
        store(q, PACKED_EVENT_FLAGS, EVENT_DESCRIPTOR);
    } else {
        store(q, PACKED_EVENT_FLAGS, EVENT_ENABLE);
    }
}
