/*
 * netdev.h - the host's side of a network interface
 *
 * Frames are whole Ethernet frames without the frame check sequence, each with a header that says
 * what is left to do: a checksum to fill in, segments to cut. A backend works on a thread of its
 * own: it pulls frames that the guest sends, and pushes those that are for it. What one side left
 * undone and the other does not take is done in between (offload.h), so that both may offer and
 * accept what is good for them.
 *
 * Threads: the client's functions are called on the backend's thread with no lock held.
 * netdev_wake and netdev_accept may be called from any thread, with the client's lock held or not.
 * Everything else belongs to one thread.
 *
 * Spec: VIRTIO 1.2, 5.1.6, for the header.
 */
#ifndef DOPPEL_BACKEND_NET_NETDEV_H
#define DOPPEL_BACKEND_NET_NETDEV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct netdev;

#define NETDEV_FRAME_MAX 65550u /* an IPv4 packet of the largest size in a frame */

#define NETDEV_NEEDS_CHECKSUM 1u /* in flags: only the pseudo header was summed up so far */
#define NETDEV_DATA_VALID 2u     /* in flags: the checksums are known to be good */

enum {
    NETDEV_GSO_NONE = 0,
    NETDEV_GSO_TCP4 = 1,
    NETDEV_GSO_UDP_FRAGMENTS = 3, /* of old drivers; nothing here makes or takes it */
    NETDEV_GSO_TCP6 = 4,
    NETDEV_GSO_UDP = 5,
    NETDEV_GSO_ECN = 0x80, /* added to one of TCP: CWR is set, in the first segment only */
};

/*
 * In front of a frame: what is left to do. Laid out as the first ten bytes of virtio's header,
 * which are those of Linux' struct virtio_net_hdr. The numbers may come from a guest: netdev_finish
 * checks them before anything else looks at them.
 */
struct netdev_header {
    uint8_t flags;            /* NETDEV_NEEDS_CHECKSUM, NETDEV_DATA_VALID */
    uint8_t gso_type;         /* NETDEV_GSO_*: the frame is to be cut into several */
    uint16_t headers_size;    /* of all headers: a hint */
    uint16_t gso_size;        /* bytes of payload in each segment */
    uint16_t checksum_start;  /* what is to be summed up, up to the end */
    uint16_t checksum_offset; /* from there: where the sum goes */
};
_Static_assert(sizeof(struct netdev_header) == 10, "the layout of virtio's header");

/* What a side takes undone. */
#define NETDEV_TAKES_CHECKSUM 1u /* frames with NEEDS_CHECKSUM or DATA_VALID */
#define NETDEV_TAKES_TCP4                                                                          \
    2u /* frames with NETDEV_GSO_TCP4; without TAKES_CHECKSUM, summed up whole */
#define NETDEV_TAKES_TCP6 4u
#define NETDEV_TAKES_UDP 8u
#define NETDEV_TAKES_ECN 16u /* NETDEV_GSO_ECN with either TCP */

struct netdev_client {
    /*
     * The next frame that the guest sends: its length, or 0 when there is none. With a header
     * that makes no sense it is lost.
     */
    size_t (*pull)(void *ctx, struct netdev_header *header, uint8_t frame[NETDEV_FRAME_MAX]);
    /*
     * A frame for the guest, with nothing undone but what netdev_accept said: false when there is
     * no room; it is tried again after a wake.
     */
    bool (*push)(void *ctx, const struct netdev_header *header, const uint8_t *frame, size_t len);
};

/* Start to exchange frames. `client` and ctx outlive the network device. */
int netdev_start(struct netdev *net, const struct netdev_client *client, void *ctx, struct err *e);

/* There is something to pull, or room again. Cheap when that is known already. */
void netdev_wake(struct netdev *net);

/* An eventfd: who writes to it does what netdev_wake does. The network's. */
int netdev_wake_fd(const struct netdev *net);

/* How often others wrote there, as far as the thread has looked. Any thread. */
uint64_t netdev_rung(const struct netdev *net);

/*
 * Say what the guest takes undone, NETDEV_TAKES_*; nothing until then. Frames that are under way
 * may still come with more.
 */
void netdev_accept(struct netdev *net, unsigned takes);

/*
 * The guest uses this queue of an interface that has several, or not: whoever delivers frames
 * chooses among those that are used. At first it does. Any thread.
 */
void netdev_use(struct netdev *net, bool is_used);

/* No function of the client runs after this returns. NULL is allowed. */
void netdev_close(struct netdev *net);

#define NETDEV_MTU_MIN 1280u /* what IPv6 needs */
#define NETDEV_MTU_MAX 65521u
#define NETDEV_MTU_DEFAULT 1500u

/* The largest IP packet that a frame should hold. */
unsigned netdev_mtu(const struct netdev *net);

/*
 * ---- backends ----
 *
 * `mtu` is the largest IP packet that the guest should send, NETDEV_MTU_MIN..NETDEV_MTU_MAX; 0:
 * NETDEV_MTU_DEFAULT.
 */

#define NETDEV_FORWARDS_MAX 16

/* A port of the host that leads to one of the guest. */
struct netdev_forward {
    bool is_udp;
    uint8_t host_addr[4];  /* 0.0.0.0: every address of the host */
    uint8_t guest_addr[4]; /* 0.0.0.0: the first address that DHCP gives */
    uint16_t host_port, guest_port;
};

struct netdev_user_config {
    struct netdev_forward forwards[NETDEV_FORWARDS_MAX];
    unsigned forward_count;
    bool is_restricted; /* the guest reaches nothing but what is forwarded to it */
};

/*
 * A network of the guest's own behind the host's sockets, with no rights needed: DHCP, DNS,
 * outgoing TCP, UDP and ping. Guest 10.0.2.15, gateway 10.0.2.2, name server 10.0.2.3; IPv6
 * fec0::/64.
 */
int netdev_user_open(const struct netdev_user_config *config, unsigned mtu, struct netdev **out,
                     struct err *e);

/*
 * A network with other machines: the software switch (switch.h) that listens at `path`. One that
 * goes away and comes back is connected to again.
 */
int netdev_socket_open(const char *path, unsigned mtu, struct netdev **out, struct err *e);

#define NETDEV_QUEUES_MAX 8u

/*
 * The host's tap interface `name`, or a new one (NULL) for as long as it is open. A new one takes
 * CAP_NET_ADMIN, and so does to change the MTU (`mtu` 0: the guest's is the interface's); one
 * that root made for the user takes nothing. It is brought up if that is allowed.
 *
 * `count` queues of it, 1..NETDEV_QUEUES_MAX, each of which is a network device of its own with a
 * thread of its own: out[0] to out[count - 1]. The host sends a flow on the queue that it last came
 * from.
 */
int netdev_tap_open(const char *name, unsigned mtu, unsigned count, struct netdev **out,
                    struct err *e);

#endif
