/*
 * vhost_user.h - the front end of vhost-user: virtqueues that another process serves
 *
 * One connection serves one device. Requests go over a Unix socket and are answered before the
 * next; the rings themselves are memory that both processes map, with an event descriptor in each
 * direction. Nothing that the other process says is believed before it is checked; it can read and
 * write all of the memory it is given, though.
 *
 * Threads: one at a time. Calls block until the answer is there, for VHOST_USER_TIMEOUT_MS at the
 * most; after any failure but of vhost_user_get_config the connection is of no more use.
 *
 * Spec: QEMU, "Vhost-user Protocol" (docs/interop/vhost-user.rst).
 */
#ifndef DOPPEL_BACKEND_VHOST_VHOST_USER_H
#define DOPPEL_BACKEND_VHOST_VHOST_USER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct vhost_user;

#define VHOST_USER_TIMEOUT_MS 20000
#define VHOST_USER_REGIONS_MAX 8
#define VHOST_USER_CONFIG_MAX 256

/* Memory that the back end may use. */
struct vhost_user_region {
    uint64_t guest_addr, size;
    void *host; /* where it is mapped here: the name by which rings are given */
    int fd;     /* not taken over */
    uint64_t fd_offset;
};

/* A split ring, its parts in one of the regions. */
struct vhost_user_ring {
    uint32_t size;
    void *descriptors, *avail, *used;
    int kick_fd, call_fd; /* eventfds; not taken over */
    bool waits;           /* for vhost_user_enable_ring */
};

/* Connect to the back end that listens at `path`, and agree on a protocol. */
int vhost_user_open(const char *path, struct vhost_user **out, struct err *e);
/* The same over a socket that is connected; it is taken over, also on failure. */
int vhost_user_open_fd(int fd, const char *path, struct vhost_user **out, struct err *e);
/* NULL is allowed. */
void vhost_user_close(struct vhost_user *u);

/*
 * Virtio features that the back end offers, and how many queues it has at the most (of a network,
 * some count pairs).
 */
uint64_t vhost_user_features(const struct vhost_user *u);
unsigned vhost_user_queues_max(const struct vhost_user *u);

int vhost_user_set_features(struct vhost_user *u, uint64_t features, struct err *e);
int vhost_user_set_memory(struct vhost_user *u, const struct vhost_user_region *regions,
                          unsigned count, struct err *e);

/* `size` bytes of the device's configuration. -EOPNOTSUPP: the back end keeps none. */
int vhost_user_get_config(struct vhost_user *u, uint8_t *config, uint32_t size, struct err *e);

/* Of a network: the largest packet. A back end that does not want to know is not told. */
int vhost_user_set_mtu(struct vhost_user *u, uint16_t mtu, struct err *e);

/* Ring `index` begins at 0; the back end may use it from now on, unless it is to wait. */
int vhost_user_start_ring(struct vhost_user *u, uint32_t index, const struct vhost_user_ring *ring,
                          struct err *e);
/* Ring `index` is started: let the back end use it, or not for a while. */
int vhost_user_enable_ring(struct vhost_user *u, uint32_t index, bool is_on, struct err *e);
/* Afterwards the back end touches neither the ring nor what was in it. */
int vhost_user_stop_ring(struct vhost_user *u, uint32_t index, struct err *e);

/* To be watched: the connection (it can only end), and messages (-1: there are none). */
int vhost_user_fd(const struct vhost_user *u);
int vhost_user_message_fd(const struct vhost_user *u);

/* Take a message. Returns 1 when the configuration has changed, 0, or -errno. */
int vhost_user_take_message(struct vhost_user *u, struct err *e);

#endif
