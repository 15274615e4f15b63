/*
 * virtqueue_ring.h - layouts of split and packed rings, for the virtqueue_*.c
 *
 * Spec: VIRTIO 1.2, 2.7.5 to 2.7.8, 2.8.13 and 2.8.14.
 */
#ifndef DOPPEL_DEV_VIRTIO_VIRTQUEUE_RING_H
#define DOPPEL_DEV_VIRTIO_VIRTQUEUE_RING_H

#include "base/bits.h"
#include "dev/virtio/virtqueue.h"

#define DESCRIPTOR_SIZE 16u
#define DESC_NEXT 1u
#define DESC_WRITE 2u
#define DESC_INDIRECT 4u
#define DESC_AVAIL BIT(7) /* packed */
#define DESC_USED BIT(15) /* packed */

/* split: offsets in the driver's and the device's area */
#define AVAIL_FLAGS 0
#define AVAIL_INDEX 2
#define AVAIL_RING 4
#define USED_FLAGS 0
#define USED_INDEX 2
#define USED_RING 4
#define USED_SIZE 8u
#define AVAIL_NO_INTERRUPT 1u
#define USED_NO_NOTIFY 1u

/* packed: event suppression */
#define PACKED_EVENT_SIZE 4
#define PACKED_EVENT_FLAGS 2
#define EVENT_ENABLE 0u
#define EVENT_DISABLE 1u
#define EVENT_DESCRIPTOR 2u

/* A descriptor of either kind, read once. */
struct descriptor {
    uint64_t addr;
    uint32_t len;
    union {
        uint16_t flags; /* split */
        uint16_t id;    /* packed */
    };
    union {
        uint16_t next;         /* split */
        uint16_t packed_flags; /* packed */
    };
};

static inline uint16_t ring_load16(const uint8_t *p)
{
    return __atomic_load_n((const uint16_t *)p, __ATOMIC_ACQUIRE);
}

static inline void ring_store16(uint8_t *p, uint16_t value)
{
    __atomic_store_n((uint16_t *)p, value, __ATOMIC_RELEASE);
}

static inline void descriptor_read(struct descriptor *d, const uint8_t *p)
{
    d->addr = __atomic_load_n((const uint64_t *)p, __ATOMIC_RELAXED);
    uint64_t rest = __atomic_load_n((const uint64_t *)(p + 8), __ATOMIC_RELAXED);
    d->len = (uint32_t)rest;
    d->flags = (uint16_t)(rest >> 32);
    d->next = (uint16_t)(rest >> 48);
}

/* virtqueue.c */
void virtqueue_clear_chain(struct virtqueue_chain *chain);
/* all return false, with the queue broken, when the driver broke the rules */
bool virtqueue_break(struct virtqueue *q, const char *why);
bool virtqueue_add_buffer(struct virtqueue *q, struct virtqueue_chain *chain, uint64_t addr,
                          uint32_t len, bool is_writable);
bool virtqueue_add_indirect(struct virtqueue *q, struct virtqueue_chain *chain, uint64_t addr,
                            uint32_t size);

/* virtqueue_split.c */
bool virtqueue_split_pop(struct virtqueue *q, struct virtqueue_chain *chain);
void virtqueue_split_push(struct virtqueue *q, const struct virtqueue_chain *chain,
                          uint32_t written);
bool virtqueue_split_wants_interrupt(struct virtqueue *q);
void virtqueue_split_set_notify(struct virtqueue *q, bool is_wanted);
bool virtqueue_split_has_more(struct virtqueue *q);

/* virtqueue_packed.c */
bool virtqueue_packed_pop(struct virtqueue *q, struct virtqueue_chain *chain);
void virtqueue_packed_push(struct virtqueue *q, const struct virtqueue_chain *chain,
                           uint32_t written);
bool virtqueue_packed_wants_interrupt(struct virtqueue *q);
void virtqueue_packed_set_notify(struct virtqueue *q, bool is_wanted);
bool virtqueue_packed_has_more(struct virtqueue *q);

#endif
