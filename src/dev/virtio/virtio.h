/*
 * virtio.h - what a virtio device is to its transport
 *
 * A device model embeds a struct virtio_device, fills in `ops` and the rest of the first part, and
 * is attached to a transport (virtio_pci.h), which negotiates features, sets the queues up and
 * carries notifications both ways.
 *
 * State: while the device is quiesced it has no buffers, and its state can be taken, or one put
 * back (virtio_state.h).
 *
 * Threads: everything is under `lock`, which the transport takes around the ops; a device that
 * works on another thread takes it there. The device signals with virtio_signal_* under the lock.
 *
 * Reset: ops->reset stops what is going on. While requests that use guest memory are under way it
 * returns false, and the device calls virtio_reset_done when the last has ended: until then the
 * driver reads the old status (VIRTIO 1.2, 4.1.4.3.1).
 *
 * Spec: VIRTIO 1.2, 2.1 to 2.6, 3.1.
 */
#ifndef DOPPEL_DEV_VIRTIO_VIRTIO_H
#define DOPPEL_DEV_VIRTIO_VIRTIO_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bits.h"
#include "dev/virtio/virtqueue.h"

/* Device types (5). */
#define VIRTIO_ID_NET 1
#define VIRTIO_ID_BLOCK 2
#define VIRTIO_ID_CONSOLE 3
#define VIRTIO_ID_ENTROPY 4
#define VIRTIO_ID_BALLOON 5
#define VIRTIO_ID_VSOCK 19
#define VIRTIO_ID_FS 26

/* Feature bits of every device (6). */
#define VIRTIO_F_INDIRECT_DESC BIT(28)
#define VIRTIO_F_EVENT_IDX BIT(29)
#define VIRTIO_F_VERSION_1 BIT(32)
#define VIRTIO_F_RING_PACKED BIT(34)

/* Device status (2.1). */
#define VIRTIO_STATUS_ACKNOWLEDGE 1u
#define VIRTIO_STATUS_DRIVER 2u
#define VIRTIO_STATUS_DRIVER_OK 4u
#define VIRTIO_STATUS_FEATURES_OK 8u
#define VIRTIO_STATUS_NEEDS_RESET 64u
#define VIRTIO_STATUS_FAILED 128u

#define VIRTIO_QUEUES_MAX 64
#define VIRTIO_CONFIG_MAX 256

struct err;
struct space;
struct virtio_device;
struct virtio_state;

/* Which member of struct virtio_state's union a device has (virtio_state.h). */
enum virtio_state_kind {
    VIRTIO_STATE_NONE,  /* the device's state cannot be taken */
    VIRTIO_STATE_PLAIN, /* no member: entropy, disks, folders */
    VIRTIO_STATE_NET,
    VIRTIO_STATE_CONSOLE,
    VIRTIO_STATE_BALLOON,
    VIRTIO_STATE_VSOCK,
    VIRTIO_STATE_VHOST, /* served by another process, whatever it is */
};

struct virtio_ops {
    /* The driver is ready (DRIVER_OK); `features` are negotiated. May be NULL. */
    void (*start)(struct virtio_device *dev);
    /* Buffers may be available in queue `index`. */
    void (*notify)(struct virtio_device *dev, unsigned index);
    /*
     * An eventfd of the device's, to which may be written instead of calling notify for queue
     * `index`: for queues whose notify would do nothing but wake a thread. Whoever waits for it
     * must bear to be woken for nothing. -1: there is none, as for every queue of a device where
     * this is NULL. Asked for before there is a driver, once.
     */
    int (*bell)(struct virtio_device *dev, unsigned index);
    /* The driver wrote config[offset..], within what config_write_mask allows. May be NULL. */
    void (*config_written)(struct virtio_device *dev, unsigned offset, unsigned size);
    /* Stop; true when nothing uses guest memory any more. May be NULL. */
    bool (*reset)(struct virtio_device *dev);
    /*
     * The device takes no buffers for now. True when it has none either: those that it keeps for
     * later are put back into their queues (virtqueue_unpop), the others given back. Else it is
     * asked again when it has called virtio_drained. NULL: it never has.
     */
    bool (*quiesce)(struct virtio_device *dev);
    /* It may go on, from where it was or from a state that was put back. May be NULL. */
    void (*resume)(struct virtio_device *dev);
    /*
     * An error if the device has something now that cannot be carried: the message says what, and
     * what to do about it. Asked before the device is quiesced, and when its state is taken. NULL:
     * it never has.
     */
    int (*check_carried)(struct virtio_device *dev, struct err *e);
    /*
     * The device's own part of its state (virtio_state.h), while it is quiesced; the common part
     * is dealt with by then. check_state changes nothing; set_state gets what that let pass, with
     * features, status, configuration and queues in place. Each may be NULL.
     */
    void (*get_state)(struct virtio_device *dev, struct virtio_state *out);
    int (*check_state)(struct virtio_device *dev, const struct virtio_state *state, struct err *e);
    void (*set_state)(struct virtio_device *dev, const struct virtio_state *state);
    enum virtio_state_kind state_kind;
};

/*
 * Whose a byte of the configuration is, as far as the driver cannot write it, when a device's
 * state is put into another.
 */
enum virtio_config_rule {
    VIRTIO_CONFIG_FIXED,   /* of how the device was made: has to be the same */
    VIRTIO_CONFIG_CARRIED, /* of the state */
    VIRTIO_CONFIG_OF_HOST, /* the host's: the driver is told if it has changed */
};

struct virtio_transport_ops {
    void (*signal_queue)(void *transport, unsigned index);
    void (*signal_config)(void *transport);
};

struct virtio_device {
    /* set by the device model before it is attached */
    const struct virtio_ops *ops;
    const char *name;     /* for messages; outlives the device */
    uint16_t id;          /* VIRTIO_ID_* */
    uint64_t offered;     /* features, VERSION_1 and the rings' own included */
    unsigned queue_count; /* 1..VIRTIO_QUEUES_MAX */
    uint16_t queue_size;  /* of each, at most VIRTQUEUE_SIZE_MAX, a power of two */
    unsigned config_size; /* of the device-specific configuration */
    struct space *memory;

    pthread_mutex_t lock; /* made by virtio_init */

    /* under lock */
    uint8_t config[VIRTIO_CONFIG_MAX];
    uint8_t config_write_mask[VIRTIO_CONFIG_MAX];
    uint8_t config_rule[VIRTIO_CONFIG_MAX]; /* enum virtio_config_rule */
    uint8_t config_generation;
    uint8_t status;
    bool is_resetting;
    bool is_held;       /* its transport does not let it take buffers */
    bool is_quiesced;   /* nor does virtio_quiesce */
    bool is_config_due; /* the driver is told of a change when the device goes on */
    pthread_cond_t drained;
    uint64_t features; /* negotiated */
    struct virtqueue queues[VIRTIO_QUEUES_MAX];

    const struct virtio_transport_ops *transport_ops;
    void *transport;
};

/* Features that every device here offers: version 1, both rings, indirect, event index. */
#define VIRTIO_FEATURES_COMMON                                                                     \
    (VIRTIO_F_VERSION_1 | VIRTIO_F_RING_PACKED | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX)

/* Make the lock and put everything in the state after reset. The first part is filled in. */
void virtio_init(struct virtio_device *dev);
void virtio_fini(struct virtio_device *dev);

/*
 * Take and leave the device's lock, for threads that complete requests: a CPU that they interrupt
 * is woken only when the lock is free, for it may want the device at once (os/futex.h).
 */
void virtio_lock(struct virtio_device *dev);
void virtio_unlock(struct virtio_device *dev);

static inline bool virtio_has(const struct virtio_device *dev, uint64_t feature)
{
    return (dev->features & feature) != 0;
}

static inline bool virtio_is_running(const struct virtio_device *dev)
{
    return (dev->status & (VIRTIO_STATUS_DRIVER_OK | VIRTIO_STATUS_NEEDS_RESET)) ==
               VIRTIO_STATUS_DRIVER_OK &&
           !dev->is_resetting;
}

/* May the device take buffers? What waits for some need not look while it may not. */
static inline bool virtio_may_take(const struct virtio_device *dev)
{
    return virtio_is_running(dev) && !dev->is_held && !dev->is_quiesced;
}

/* ---- for device models; under the lock ---- */

/*
 * Take a chain of queue `index`. When the driver has broken the queue the device is marked as
 * needing a reset, what it did is logged, and there are no more chains.
 */
bool virtio_pop(struct virtio_device *dev, unsigned index, struct virtqueue_chain *chain);

/* Interrupt the driver if it wants to know what was pushed. */
void virtio_signal_queue(struct virtio_device *dev, unsigned index);

/* The device changed its configuration. */
void virtio_signal_config(struct virtio_device *dev);

/* The device can't go on (2.1.2), `why` for the log. */
void virtio_needs_reset(struct virtio_device *dev, const char *why);

/* What ops->reset said was still under way has ended. */
void virtio_reset_done(struct virtio_device *dev);

/* What ops->quiesce said was still under way may have ended. */
void virtio_drained(struct virtio_device *dev);

/* ---- for transports; under the lock ---- */

void virtio_set_status(struct virtio_device *dev, uint8_t status);
/* The status as the driver reads it. */
uint8_t virtio_get_status(const struct virtio_device *dev);
/* Half `select` of the features that the driver accepts; too late after FEATURES_OK. */
void virtio_set_driver_features(struct virtio_device *dev, unsigned select, uint32_t value);
void virtio_enable_queue(struct virtio_device *dev, unsigned index);
void virtio_notify(struct virtio_device *dev, unsigned index);
/* As if the driver had notified of every queue. */
void virtio_notify_all(struct virtio_device *dev);
/*
 * Keep the device from taking buffers, or let it go on with what is there by then. Requests under
 * way come to their end. Resets have no influence.
 */
void virtio_hold(struct virtio_device *dev, bool is_held);
uint64_t virtio_config_read(struct virtio_device *dev, unsigned offset, unsigned size);
void virtio_config_write(struct virtio_device *dev, unsigned offset, uint64_t value, unsigned size);

/* ---- for whoever takes and puts back states; without the lock ---- */

/*
 * Let no buffers be taken, and wait until what was taken is back with the driver: its state can
 * be taken, or one put back (virtio_state.h). What comes back interrupts, so the interrupt
 * controllers' state is taken afterwards. On failure the device goes on: at once when it has
 * something that cannot be carried, or with -ETIMEDOUT when something is still under way after
 * `timeout_ns`. No CPU runs from before this until virtio_resume. Without the lock, and not on
 * one of the device's threads.
 */
int virtio_quiesce(struct virtio_device *dev, uint64_t timeout_ns, struct err *e);

/* Let it go on. No harm if it was not quiesced. */
void virtio_resume(struct virtio_device *dev);

#endif
