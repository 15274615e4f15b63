/*
 * virtio_state.h - the state of virtio devices, as something that outlives them
 *
 * Plain data, as pci_state.h says: no pointers, nothing that can be computed from the rest, claims
 * as bytes that are 0 or 1.
 *
 * A state is that of a quiesced device (virtio_quiesce): all that it took from its queues it has
 * given back, or put back as if it had not been taken. So no request is in the state, and one
 * position a queue says all. Guest memory, rings included, is not in it either: it goes on as it
 * was at that moment, or the state is worth nothing.
 *
 * Whatever a state says is checked before anything is changed: it may come from anywhere. A device
 * that it is put into was made with the same configuration.
 *
 * Spec: VIRTIO 1.2.
 */
#ifndef DOPPEL_DEV_VIRTIO_VIRTIO_STATE_H
#define DOPPEL_DEV_VIRTIO_VIRTIO_STATE_H

#include <stdint.h>

#include "dev/pci/pci_state.h"
#include "dev/virtio/virtio.h"
#include "dev/virtio/virtio_balloon.h"
#include "dev/virtio/virtio_console.h"

struct virtqueue_state {
    uint64_t descriptors, driver, device; /* guest-physical addresses of the three areas */
    uint16_t size;                        /* entries */
    uint8_t is_enabled;
    /* the rest: 0 unless it is enabled */
    uint8_t is_quiet; /* the driver was told that it need not notify */
    uint8_t wrap;     /* packed: wrap counter at `next` */
    /*
     * The entry that is looked at next, which is also the one that is given back next. Split: a
     * free-running index; packed: the position in the ring.
     */
    uint16_t next;
    uint16_t unsignalled; /* entries given back since an interrupt was last thought of */
};

/* Addresses of one kind that a driver wants to hear of. */
struct virtio_net_table_state {
    uint8_t count;
    uint8_t is_full; /* there were more than there is room for: all are let through */
    uint8_t addr[32][6];
};

/*
 * Beside the configuration, in which the MAC address and the link are. Which pair a flow was last
 * sent on is not kept: flows find their pairs anew, as after a change of their number.
 */
struct virtio_net_state {
    uint8_t active_pairs; /* of queues, that the driver uses */
    uint8_t rx[6];        /* claims: receive modes, in the order of their commands (5.1.6.5.1) */
    uint64_t offloads;    /* what the driver takes undone, as bits of features (5.1.6.5.6) */
    struct virtio_net_table_state unicast, multicast;
};

struct virtio_console_port_state {
    uint8_t is_guest_ready; /* the driver knows the port */
    uint8_t is_guest_open;  /* a program has it open */
    uint8_t was_host_open; /* the driver was told, or is to be, that somebody is at the other end */
    uint8_t due;           /* messages for the driver, bits by number of event (5.3.6.2) */
    uint16_t stash_len;
    uint8_t stash[VIRTIO_CONSOLE_STASH_SIZE]; /* input that the driver had no buffer for */
    uint64_t out_offset;                      /* bytes of the next chain that went out already */
};

struct virtio_console_state {
    uint8_t port_count;
    struct virtio_console_port_state ports[VIRTIO_CONSOLE_PORTS_MAX];
};

/*
 * Beside the configuration, in which the sizes are. The buffer for statistics that the device
 * keeps until it asks for new ones is put back into its queue. Counters of the host are not kept.
 */
struct virtio_balloon_state {
    uint16_t known;                       /* bits: which statistics the driver has told */
    uint64_t stats[VIRTIO_BALLOON_STATS]; /* by tag (5.5.6.4) */
};

/*
 * Connections end with the device: their other ends are sockets of this process. The driver is
 * told so by an event (5.10.6.7) once the state is put back.
 */
struct virtio_vsock_state {
    uint32_t next_port; /* of the host: where to look for one that is free */
};

/*
 * Of its own process a back end knows nothing that could be asked for; what is kept is what it was
 * told.
 */
struct virtio_vhost_state {
    uint8_t kind;         /* enum virtio_vhost_kind */
    uint8_t active_pairs; /* of a network: of queues, that the driver uses */
};

struct virtio_state {
    uint8_t kind;              /* enum virtio_state_kind */
    uint16_t id;               /* VIRTIO_ID_* */
    uint16_t queue_count;      /* of the device, enabled or not */
    uint16_t config_size;      /* bytes */
    uint8_t status;            /* VIRTIO_STATUS_* */
    uint8_t config_generation; /* as the driver reads it */
    uint64_t features;         /* as the driver has written them; negotiated with FEATURES_OK */
    /* as the driver reads it; what of it is the host's to say is compared, or taken from there */
    uint8_t config[VIRTIO_CONFIG_MAX];
    struct virtqueue_state queues[VIRTIO_QUEUES_MAX];
    union {
        struct virtio_net_state net;
        struct virtio_console_state console;
        struct virtio_balloon_state balloon;
        struct virtio_vsock_state vsock;
        struct virtio_vhost_state vhost;
    };
};

/* The device and the PCI function that it is. */
struct virtio_pci_state {
    struct pci_device_state function;
    /* the registers of the same names (4.1.4.3) */
    uint32_t device_feature_select, driver_feature_select;
    uint16_t queue_select;
    uint16_t config_vector; /* 0xffff: none */
    uint16_t queue_vectors[VIRTIO_QUEUES_MAX];
    uint8_t isr; /* not 0 exactly while the function asserts its pin */
    struct virtio_state device;
};

/*
 * Take the state of a quiesced device. An error when there is something that cannot be carried:
 * the message says what, and what to do. Takes the lock.
 */
int virtio_get_state(struct virtio_device *dev, struct virtio_state *out, struct err *e);

/*
 * Could this be the state of a device like this one? The message names the field that could not.
 * virtio_set_state asks by itself. Takes the lock.
 */
int virtio_check_state(struct virtio_device *dev, const struct virtio_state *state, struct err *e);

/*
 * Put the state into a quiesced device that no driver has touched since it was made or reset
 * (-EBUSY). Guest memory is as it was. virtio_resume lets it go on. On failure nothing has
 * changed. Takes the lock.
 */
int virtio_set_state(struct virtio_device *dev, const struct virtio_state *state, struct err *e);

/* For device models: the field must be 0 or 1. */
int virtio_check_claim(uint8_t value, const char *field, unsigned index, struct err *e);

#endif
