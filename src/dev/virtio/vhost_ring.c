/*
 * vhost_ring.c - the driver's side of a split ring
 *
 * Invariant: descriptor n of the ring points at table n, for good; slot n holds the chain that is
 * in it. A slot is in the list of free ones, or out.
 *
 * Spec: VIRTIO 1.2, 2.7.
 */
#include "dev/virtio/vhost_ring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dev/virtio/virtqueue_ring.h"

#define AVAIL_AT (VHOST_RING_SIZE * DESCRIPTOR_SIZE)
#define USED_AT (AVAIL_AT + 1024)
#define TABLES_AT (USED_AT + 4096 - 1024)

_Static_assert(AVAIL_RING + VHOST_RING_SIZE * 2 + 2 <= 1024, "the available ring has its place");
_Static_assert(USED_RING + VHOST_RING_SIZE * USED_SIZE + 2 <= 4096 - 1024, "so has the used ring");

size_t vhost_ring_memory(unsigned chain_max)
{
    return align_up(TABLES_AT + (size_t)VHOST_RING_SIZE * chain_max * DESCRIPTOR_SIZE, 4096);
}

int vhost_ring_init(struct vhost_ring *r, void *memory, uint64_t addr, unsigned chain_max)
{
    uint8_t *at = memory;

    *r = (struct vhost_ring){.chain_max = chain_max,
                             .descriptors = at,
                             .avail = at + AVAIL_AT,
                             .used = at + USED_AT,
                             .tables = at + TABLES_AT,
                             .tables_addr = addr + TABLES_AT};
    /* touched as far as the guest's queue is used */
    r->buffers = calloc((size_t)VHOST_RING_SIZE * chain_max, sizeof(*r->buffers));
    if (r->buffers == NULL)
        return -ENOMEM;
    vhost_ring_reset(r);
    return 0;
}

void vhost_ring_fini(struct vhost_ring *r)
{
    free(r->buffers);
}

void vhost_ring_reset(struct vhost_ring *r)
{
    memset(r->descriptors, 0, TABLES_AT);
    for (unsigned i = 0; i < VHOST_RING_SIZE; i++)
        r->slots[i] =
            (struct vhost_ring_slot){.chain = {.buffers = r->buffers + (size_t)i * r->chain_max},
                                     .next_free = (uint16_t)(i + 1)};
    r->free = 0;
    r->next_avail = r->next_used = 0;
    r->out_count = 0;
}

struct virtqueue_chain *vhost_ring_room(struct vhost_ring *r)
{
    return r->free < VHOST_RING_SIZE ? &r->slots[r->free].chain : NULL;
}

static void put_descriptor(uint8_t *d, uint64_t addr, uint32_t len, unsigned flags, unsigned next)
{
    store_le64(d, addr);
    store_le32(d + 8, len);
    store_le16(d + 12, (uint16_t)flags);
    store_le16(d + 14, (uint16_t)next);
}

void vhost_ring_add(struct vhost_ring *r)
{
    unsigned n = r->free;
    struct vhost_ring_slot *slot = &r->slots[n];
    unsigned count = slot->chain.out_count + slot->chain.in_count;
    size_t table = (size_t)n * r->chain_max * DESCRIPTOR_SIZE;

    for (unsigned i = 0; i < count; i++)
        put_descriptor(
            r->tables + table + i * DESCRIPTOR_SIZE, slot->chain.buffers[i].addr,
            slot->chain.buffers[i].len,
            (i >= slot->chain.out_count ? DESC_WRITE : 0) | (i + 1 < count ? DESC_NEXT : 0), i + 1);
    put_descriptor(r->descriptors + n * DESCRIPTOR_SIZE, r->tables_addr + table,
                   count * DESCRIPTOR_SIZE, DESC_INDIRECT, 0);
    slot->is_out = true;
    slot->added_at = r->next_avail;
    r->free = slot->next_free;
    r->out_count++;
    ring_store16(r->avail + AVAIL_RING + 2 * (r->next_avail % VHOST_RING_SIZE), (uint16_t)n);
    ring_store16(r->avail + AVAIL_INDEX, ++r->next_avail);
}

bool vhost_ring_wants_kick(const struct vhost_ring *r)
{
    /* what was added is visible before the wish is read (2.7.13.4.1) */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return !(ring_load16(r->used + USED_FLAGS) & USED_NO_NOTIFY);
}

static const struct virtqueue_chain *release(struct vhost_ring *r, unsigned n)
{
    r->out_count--;
    r->slots[n].is_out = false;
    r->slots[n].next_free = r->free;
    r->free = (uint16_t)n;
    return &r->slots[n].chain;
}

int vhost_ring_take(struct vhost_ring *r, const struct virtqueue_chain **chain, uint32_t *written)
{
    uint16_t waiting = (uint16_t)(ring_load16(r->used + USED_INDEX) - r->next_used);

    if (waiting == 0)
        return 0;
    const uint8_t *entry = r->used + USED_RING + r->next_used % VHOST_RING_SIZE * USED_SIZE;
    uint32_t n = __atomic_load_n((const uint32_t *)entry, __ATOMIC_RELAXED);
    *written = __atomic_load_n((const uint32_t *)(entry + 4), __ATOMIC_RELAXED);
    if (waiting > r->out_count || n >= VHOST_RING_SIZE || !r->slots[n].is_out)
        return -EPROTO;
    r->next_used++;
    *chain = release(r, n);
    return 1;
}

int vhost_ring_undo(struct vhost_ring *r, const struct virtqueue_chain **chain)
{
    uint16_t last = (uint16_t)(r->next_avail - 1);

    if (r->out_count == 0)
        return 0;
    for (unsigned n = 0; n < VHOST_RING_SIZE; n++)
        if (r->slots[n].is_out && r->slots[n].added_at == last) {
            r->next_avail = last;
            *chain = release(r, n);
            return 1;
        }
    return -EPROTO;
}
