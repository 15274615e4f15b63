/*
 * vhost_ring.h - the driver's side of a split ring, on which another process serves our device
 *
 * The guest's queue is taken apart here (virtqueue.h), as for any device, and each chain goes on to
 * the other process as one indirect descriptor of a ring that is ours. So the guest learns that a
 * request is done only after we do: by then what was written to its memory has been noted. And a
 * driver that breaks the rules meets our checks, whoever serves the device.
 *
 * The other process can write the ring at any time: what it says of used entries is checked, and
 * nothing else is read back.
 *
 * Threads: one caller at a time (the device's lock).
 *
 * Spec: VIRTIO 1.2, 2.7.
 */
#ifndef DOPPEL_DEV_VIRTIO_VHOST_RING_H
#define DOPPEL_DEV_VIRTIO_VHOST_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dev/virtio/virtqueue.h"

/* Chains that are out at a time. */
#define VHOST_RING_SIZE 256u

struct vhost_ring_slot {
    struct virtqueue_chain chain;
    bool is_out;
    uint16_t next_free;
    uint16_t added_at; /* is_out: the ring's next_avail then */
};

struct vhost_ring {
    unsigned chain_max; /* buffers of a chain */
    uint8_t *descriptors, *avail, *used, *tables;
    uint64_t tables_addr; /* as the other process knows it */
    struct virtqueue_buffer *buffers;
    struct vhost_ring_slot slots[VHOST_RING_SIZE];
    uint16_t free; /* first slot of the list; VHOST_RING_SIZE: none */
    uint16_t next_avail, next_used;
    unsigned out_count;
};

/* Bytes of shared memory that a ring takes: a multiple of 4096. */
size_t vhost_ring_memory(unsigned chain_max);

/* `memory` is shared, zeroed, and known to the other process as `addr`. 0 or -ENOMEM. */
int vhost_ring_init(struct vhost_ring *ring, void *memory, uint64_t addr, unsigned chain_max);
void vhost_ring_fini(struct vhost_ring *ring);

/* Empty, as before the first chain. The other process does not use it. */
void vhost_ring_reset(struct vhost_ring *ring);

/* Where to pop the next chain to, for vhost_ring_add; NULL: all are out. */
struct virtqueue_chain *vhost_ring_room(struct vhost_ring *ring);
/* Make it available. vhost_ring_wants_kick says whether the other process is to be told. */
void vhost_ring_add(struct vhost_ring *ring);
bool vhost_ring_wants_kick(const struct vhost_ring *ring);

/*
 * Take one that is done: 1, and *chain is valid until the next call for this ring; 0: there is
 * none; -EPROTO: the other process broke the ring.
 */
int vhost_ring_take(struct vhost_ring *ring, const struct virtqueue_chain **chain,
                    uint32_t *written);

/*
 * The other process has stopped, and what it has done was taken: take back the chain that was
 * added last, as if it had not been: 1; 0: none is left; -EPROTO: the other process has done some
 * that were added behind one that it has not, so that they cannot all be undone.
 */
int vhost_ring_undo(struct vhost_ring *ring, const struct virtqueue_chain **chain);

#endif
