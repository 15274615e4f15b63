/*
 * virtqueue.c - the device's side of a virtqueue: what split and packed rings share
 *
 * Spec: VIRTIO 1.2, 2.7 and 2.8. The rings themselves: virtqueue_split.c, virtqueue_packed.c.
 */
#include "dev/virtio/virtqueue.h"

#include <string.h>

#include "base/bits.h"
#include "dev/virtio/virtqueue_ring.h"
#include "mem/space.h"

bool virtqueue_break(struct virtqueue *q, const char *why)
{
    if (!q->is_broken) {
        q->is_broken = true;
        q->why = why;
    }
    return false;
}

/* The host address of an area that the driver named; `align` is a power of two. */
static uint8_t *area(struct virtqueue *q, uint64_t addr, uint64_t size, unsigned align)
{
    if (addr & (align - 1)) {
        virtqueue_break(q, "an area of the queue is not aligned");
        return NULL;
    }
    uint8_t *host = space_ram_ptr(q->memory, addr, size, true);
    if (host == NULL)
        virtqueue_break(q, "an area of the queue is not in RAM");
    return host;
}

static bool map_areas(struct virtqueue *q)
{
    uint64_t n = q->size;

    if (q->is_packed) {
        q->descriptor_area = area(q, q->descriptors, n * DESCRIPTOR_SIZE, 16);
        q->driver_area = area(q, q->driver, PACKED_EVENT_SIZE, 4);
        q->device_area = area(q, q->device, PACKED_EVENT_SIZE, 4);
    } else {
        q->descriptor_area = area(q, q->descriptors, n * DESCRIPTOR_SIZE, 16);
        q->driver_area = area(q, q->driver, AVAIL_RING + n * 2 + 2, 2);
        q->device_area = area(q, q->device, USED_RING + n * USED_SIZE + 2, 4);
    }
    return !q->is_broken;
}

bool virtqueue_enable(struct virtqueue *q, struct space *memory, bool is_packed, bool is_indirect,
                      bool is_event_idx)
{
    q->memory = memory;
    q->is_packed = is_packed;
    q->is_indirect = is_indirect;
    q->is_event_idx = is_event_idx;
    q->is_quiet = q->is_broken = false;
    q->next_avail = q->next_used = q->signalled_used = 0;
    q->avail_wrap = q->used_wrap = true; /* 2.8.1 */
    q->used_since_signal = 0;
    if (q->size == 0 || q->size > VIRTQUEUE_SIZE_MAX || (!is_packed && !is_pow2(q->size)))
        return virtqueue_break(q, "the queue has an impossible size");
    q->is_enabled = map_areas(q);
    return q->is_enabled;
}

void virtqueue_reset(struct virtqueue *q, uint16_t size)
{
    *q = (struct virtqueue){.size = size};
}

/* ---- chains ---- */

void virtqueue_clear_chain(struct virtqueue_chain *chain)
{
    chain->out_count = chain->in_count = 0;
    chain->out_size = chain->in_size = 0;
}

bool virtqueue_add_buffer(struct virtqueue *q, struct virtqueue_chain *chain, uint64_t addr,
                          uint32_t len, bool is_writable)
{
    unsigned count = chain->out_count + chain->in_count;

    if (!is_writable && chain->in_count != 0)
        return virtqueue_break(q, "a readable buffer follows a writable one");
    if (count == q->size)
        return virtqueue_break(q, "a chain is longer than the queue");
    if (len == 0)
        return virtqueue_break(q, "a buffer is empty");
    struct virtqueue_buffer *buffer = &chain->buffers[count];
    *buffer = (struct virtqueue_buffer){
        .addr = addr, .host = space_ram_ptr(q->memory, addr, len, is_writable), .len = len};
    if (buffer->host == NULL)
        return virtqueue_break(q, "a buffer is not in RAM");
    if (is_writable) {
        chain->in_count++;
        chain->in_size += len;
    } else {
        chain->out_count++;
        chain->out_size += len;
    }
    return true;
}

/* An indirect table of the split ring follows `next`; one of the packed ring is taken in order. */
bool virtqueue_add_indirect(struct virtqueue *q, struct virtqueue_chain *chain, uint64_t addr,
                            uint32_t size)
{
    if (!q->is_indirect)
        return virtqueue_break(q, "an indirect descriptor was not negotiated");
    if (size == 0 || size % DESCRIPTOR_SIZE != 0)
        return virtqueue_break(q, "an indirect table has an impossible size");
    uint32_t count = size / DESCRIPTOR_SIZE;
    const uint8_t *table = space_ram_ptr(q->memory, addr, size, false);
    if (table == NULL)
        return virtqueue_break(q, "an indirect table is not in RAM");

    uint32_t at = 0;
    for (unsigned n = 0; n < q->size; n++) {
        struct descriptor d;
        descriptor_read(&d, table + (size_t)at * DESCRIPTOR_SIZE);
        uint16_t flags = q->is_packed ? d.packed_flags : d.flags;
        if (flags & DESC_INDIRECT)
            return virtqueue_break(q, "an indirect descriptor lies in an indirect table");
        if (!virtqueue_add_buffer(q, chain, d.addr, d.len, (flags & DESC_WRITE) != 0))
            return false;
        if (q->is_packed) {
            if (++at == count)
                return true;
        } else {
            if (!(flags & DESC_NEXT))
                return true;
            at = d.next;
            if (at >= count)
                return virtqueue_break(q, "a descriptor's successor is out of range");
        }
    }
    return virtqueue_break(q, "a chain is longer than the queue");
}

bool virtqueue_pop(struct virtqueue *q, struct virtqueue_chain *chain)
{
    if (!q->is_enabled || q->is_broken)
        return false;
    return q->is_packed ? virtqueue_packed_pop(q, chain) : virtqueue_split_pop(q, chain);
}

void virtqueue_unpop(struct virtqueue *q, const struct virtqueue_chain *chain)
{
    if (!q->is_packed) {
        q->next_avail--;
    } else if (q->next_avail < chain->descriptor_count) {
        q->next_avail = (uint16_t)(q->next_avail + q->size - chain->descriptor_count);
        q->avail_wrap = !q->avail_wrap;
    } else {
        q->next_avail = (uint16_t)(q->next_avail - chain->descriptor_count);
    }
}

/* Tell the space what the device wrote: code may lie there. */
static void note_written(struct virtqueue *q, const struct virtqueue_chain *chain, uint64_t written)
{
    const struct virtqueue_buffer *in = chain->buffers + chain->out_count;

    for (unsigned i = 0; i < chain->in_count && written != 0; i++) {
        uint64_t n = MIN(written, (uint64_t)in[i].len);
        space_note_written(q->memory, in[i].addr, n);
        written -= n;
    }
}

void virtqueue_push(struct virtqueue *q, const struct virtqueue_chain *chain, uint32_t written)
{
    note_written(q, chain, written);
    if (!q->is_enabled || q->is_broken)
        return;
    if (q->is_packed)
        virtqueue_packed_push(q, chain, written);
    else
        virtqueue_split_push(q, chain, written);
}

bool virtqueue_wants_interrupt(struct virtqueue *q)
{
    if (!q->is_enabled || q->is_broken)
        return false;
    /* what was pushed is visible before the driver's wish is read (2.7.7.2, 2.8.21.3.1) */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return q->is_packed ? virtqueue_packed_wants_interrupt(q) : virtqueue_split_wants_interrupt(q);
}

bool virtqueue_set_notify(struct virtqueue *q, bool is_wanted)
{
    if (!q->is_enabled || q->is_broken)
        return false;
    q->is_quiet = !is_wanted;
    if (q->is_packed)
        virtqueue_packed_set_notify(q, is_wanted);
    else
        virtqueue_split_set_notify(q, is_wanted);
    if (!is_wanted)
        return false;
    /* the wish is visible before the ring is looked at once more (2.7.10.1) */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return q->is_packed ? virtqueue_packed_has_more(q) : virtqueue_split_has_more(q);
}

/* ---- copies ---- */

static size_t copy(const struct virtqueue_buffer *buffers, unsigned count, uint64_t offset,
                   uint8_t *to, const uint8_t *from, size_t size)
{
    size_t done = 0;

    for (unsigned i = 0; i < count && done < size; i++) {
        if (offset >= buffers[i].len) {
            offset -= buffers[i].len;
            continue;
        }
        size_t n = MIN(size - done, (size_t)(buffers[i].len - offset));
        uint8_t *host = (uint8_t *)buffers[i].host + offset;
        if (to != NULL)
            memcpy(to + done, host, n);
        else
            memcpy(host, from + done, n);
        done += n;
        offset = 0;
    }
    return done;
}

size_t virtqueue_read(const struct virtqueue_chain *chain, uint64_t offset, void *buf, size_t size)
{
    return copy(chain->buffers, chain->out_count, offset, buf, NULL, size);
}

size_t virtqueue_write(const struct virtqueue_chain *chain, uint64_t offset, const void *buf,
                       size_t size)
{
    return copy(chain->buffers + chain->out_count, chain->in_count, offset, NULL, buf, size);
}
