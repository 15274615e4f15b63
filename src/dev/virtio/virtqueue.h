/*
 * virtqueue.h - the device's side of a virtqueue, split or packed
 *
 * Everything in guest memory is the driver's and may change at any time: each descriptor is read
 * once, and what was read is checked. A driver that breaks the rules (a loop, a chain longer than
 * the queue, a buffer that is not RAM, a device-readable buffer behind a writable one, an index
 * that ran away) gets the queue marked as broken; it yields no buffer any more until it is
 * reset, and nothing else suffers.
 *
 * Buffers of a chain are host addresses in guest RAM, valid until the machine's memory changes.
 * virtqueue_push tells the space what was written, so that engines drop translations of it.
 *
 * Threads: one caller at a time (the device's lock).
 *
 * Spec: Virtual I/O Device (VIRTIO) 1.2, 2.7 (split), 2.8 (packed).
 */
#ifndef DOPPEL_DEV_VIRTIO_VIRTQUEUE_H
#define DOPPEL_DEV_VIRTIO_VIRTQUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct space;

#define VIRTQUEUE_SIZE_MAX 1024

/* One buffer. Not empty. */
struct virtqueue_buffer {
    uint64_t addr; /* guest-physical */
    void *host;
    uint32_t len;
};

/*
 * A chain taken from a queue: `out_count` device-readable buffers, then `in_count` writable ones.
 * The caller gives room for as many buffers as the queue has entries.
 */
struct virtqueue_chain {
    struct virtqueue_buffer *buffers;
    unsigned out_count, in_count;
    uint64_t out_size, in_size; /* bytes */
    uint16_t id;                /* the queue's own */
    uint16_t descriptor_count;  /* the queue's own: packed entries used up */
};

struct virtqueue {
    /* set by the transport while the queue is not enabled */
    uint16_t size;
    uint64_t descriptors, driver, device; /* guest-physical addresses of the three areas */

    /* fixed while it is enabled */
    struct space *memory;
    bool is_enabled;
    bool is_packed;    /* VIRTIO_F_RING_PACKED */
    bool is_indirect;  /* VIRTIO_F_INDIRECT_DESC */
    bool is_event_idx; /* VIRTIO_F_EVENT_IDX */

    bool is_quiet; /* the driver need not notify */
    bool is_broken;
    const char *why; /* is_broken: what the driver did, for the log */

    /* host addresses of the areas */
    uint8_t *descriptor_area, *driver_area, *device_area;

    /* split: free-running indices; packed: position in the ring and wrap counter */
    uint16_t next_avail, next_used;
    bool avail_wrap, used_wrap;
    uint16_t signalled_used;    /* next_used when the driver was last told */
    uint16_t used_since_signal; /* packed: entries since then */
};

/*
 * Enable the queue with the negotiated features. False, with `why`, when the areas are not RAM,
 * not aligned, or the size is not allowed.
 */
bool virtqueue_enable(struct virtqueue *q, struct space *memory, bool is_packed, bool is_indirect,
                      bool is_event_idx);

/* As after reset: not enabled, addresses zero, `size` as given. */
void virtqueue_reset(struct virtqueue *q, uint16_t size);

/*
 * Take the next chain: true; false when there is none (*chain is left alone), or the queue is or
 * becomes broken.
 */
bool virtqueue_pop(struct virtqueue *q, struct virtqueue_chain *chain);

/* Put a chain back that was popped last, as if it had not been popped. */
void virtqueue_unpop(struct virtqueue *q, const struct virtqueue_chain *chain);

/*
 * Give the chain back, `written` bytes of its writable buffers filled from the first on. Chains
 * may be given back in any order.
 */
void virtqueue_push(struct virtqueue *q, const struct virtqueue_chain *chain, uint32_t written);

/* Does the driver want an interrupt for what was pushed since the last call? */
bool virtqueue_wants_interrupt(struct virtqueue *q);

/*
 * Say whether the driver should notify of new buffers. After switching on, returns true when
 * there are buffers already, which may have come without a notification.
 */
bool virtqueue_set_notify(struct virtqueue *q, bool is_wanted);

/* Copy from the readable buffers, starting `offset` bytes in; returns bytes copied. */
size_t virtqueue_read(const struct virtqueue_chain *chain, uint64_t offset, void *buf, size_t size);

/* Copy to the writable buffers, starting `offset` bytes in; returns bytes copied. */
size_t virtqueue_write(const struct virtqueue_chain *chain, uint64_t offset, const void *buf,
                       size_t size);

#endif
