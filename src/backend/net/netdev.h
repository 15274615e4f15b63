/*
 * netdev.h - the host's side of a network interface
 *
 * Frames are whole Ethernet frames without checksum. A backend works on a thread of its own: it
 * pulls frames that the guest sends, and pushes those that are for it.
 *
 * Threads: the client's functions are called on the backend's thread with no lock held.
 * netdev_wake may be called from any thread, with the client's lock held or not. Everything else
 * belongs to one thread.
 */
#ifndef DOPPEL_BACKEND_NET_NETDEV_H
#define DOPPEL_BACKEND_NET_NETDEV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct netdev;

#define NETDEV_FRAME_MAX 65550u /* an IPv4 packet of the largest size in a frame */

struct netdev_client {
    /* The next frame that the guest sends: its length, or 0 when there is none. */
    size_t (*pull)(void *ctx, uint8_t frame[NETDEV_FRAME_MAX]);
    /* A frame for the guest: false when there is no room; it is tried again after a wake. */
    bool (*push)(void *ctx, const uint8_t *frame, size_t len);
};

/* Start to exchange frames. `client` and ctx outlive the network device. */
int netdev_start(struct netdev *net, const struct netdev_client *client, void *ctx, struct err *e);

/* There is something to pull, or room again. Cheap when that is known already. */
void netdev_wake(struct netdev *net);

/* No function of the client runs after this returns. NULL is allowed. */
void netdev_close(struct netdev *net);

/* The largest IP packet that a frame should hold. */
unsigned netdev_mtu(const struct netdev *net);

/* ---- backends ---- */

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
int netdev_user_open(const struct netdev_user_config *config, struct netdev **out, struct err *e);

#endif
