/*
 * virtio_net_internal.h - the network device's state, for the virtio_net*.c
 */
#ifndef DOPPEL_DEV_VIRTIO_VIRTIO_NET_INTERNAL_H
#define DOPPEL_DEV_VIRTIO_VIRTIO_NET_INTERNAL_H

#include "backend/net/netdev.h"
#include "dev/virtio/virtio.h"
#include "dev/virtio/virtio_net.h"

#define NET_QUEUE_SIZE 256

/* Features (5.1.3). */
#define NET_F_CSUM BIT(0)
#define NET_F_GUEST_CSUM BIT(1)
#define NET_F_CTRL_GUEST_OFFLOADS BIT(2)
#define NET_F_MTU BIT(3)
#define NET_F_MAC BIT(5)
#define NET_F_GUEST_TSO4 BIT(7)
#define NET_F_GUEST_TSO6 BIT(8)
#define NET_F_GUEST_ECN BIT(9)
#define NET_F_HOST_TSO4 BIT(11)
#define NET_F_HOST_TSO6 BIT(12)
#define NET_F_HOST_ECN BIT(13)
#define NET_F_MRG_RXBUF BIT(15)
#define NET_F_STATUS BIT(16)
#define NET_F_CTRL_VQ BIT(17)
#define NET_F_CTRL_RX BIT(18)
#define NET_F_CTRL_RX_EXTRA BIT(20)
#define NET_F_MQ BIT(22)
#define NET_F_CTRL_MAC_ADDR BIT(23)
#define NET_F_HOST_USO BIT(56)
/* What the driver may take undone, and change its mind about. */
#define NET_OFFLOADS (NET_F_GUEST_CSUM | NET_F_GUEST_TSO4 | NET_F_GUEST_TSO6 | NET_F_GUEST_ECN)

/* Configuration (5.1.4). */
enum { CONFIG_MAC = 0, CONFIG_STATUS = 6, CONFIG_PAIRS = 8, CONFIG_MTU = 10, CONFIG_SIZE = 12 };
#define STATUS_LINK_UP 1

/* A frame for the driver may be spread over this many chains. */
#define NET_MERGE_MAX 64u

/* What the driver wants to hear (5.1.6.5.1). */
enum { RX_PROMISC, RX_ALLMULTI, RX_ALLUNI, RX_NOMULTI, RX_NOUNI, RX_NOBCAST, RX_COUNT };
#define NET_TABLE_MAX 32u

/* Addresses of one kind that the driver wants to hear of. */
struct net_table {
    unsigned count;
    bool is_full; /* there were more than fit: all are let through */
    uint8_t addr[NET_TABLE_MAX][6];
};

#define NET_FLOWS 256u

/* A queue of the backend, and the pairs that it serves: those whose number leaves `index`. */
struct net_lane {
    struct virtio_net *n;
    struct netdev *net;
    unsigned index;
    unsigned turn; /* the pair that is asked for a frame first; under dev.lock */
};

struct virtio_net {
    struct virtio_device dev;
    struct net_lane lanes[NETDEV_QUEUES_MAX];
    unsigned lane_count;
    uint8_t mac[6]; /* after reset */
    unsigned pair_count;

    /* under dev.lock */
    unsigned active_pairs; /* the driver uses these */
    unsigned takes;        /* what it takes undone: NETDEV_TAKES_* */
    bool rx[RX_COUNT];
    struct net_table unicast, multicast;
    bool is_quiet[VIRTIO_NET_PAIRS_MAX]; /* the driver was told not to notify */
    uint8_t flows[NET_FLOWS];            /* by hash: the pair that a flow was last sent on */
    struct virtqueue_chain merged[NET_MERGE_MAX];
    struct virtqueue_buffer merged_buffers[NET_MERGE_MAX][NET_QUEUE_SIZE];
    struct virtqueue_buffer buffers[NET_QUEUE_SIZE]; /* transmission and control */
};

/* ---- virtio_net_control.c; under the lock ---- */

/* The control queue's index depends on what was negotiated (5.1.2). */
unsigned virtio_net_control_queue(const struct virtio_net *n);
void virtio_net_serve_control(struct virtio_net *n);
/* What the driver's control commands change, as after a reset. */
void virtio_net_reset_control(struct virtio_net *n);
/* virtio_net_state.c: as in struct virtio_ops. */
void virtio_net_get_state(struct virtio_device *dev, struct virtio_state *out);
int virtio_net_check_state(struct virtio_device *dev, const struct virtio_state *state,
                           struct err *e);
void virtio_net_set_state(struct virtio_device *dev, const struct virtio_state *state);

/* The driver uses so many pairs; who serves them looks for what is there. */
void virtio_net_use_pairs(struct virtio_net *n, unsigned count);
/* The driver takes those of its features undone that `offloads` names (bits as of features). */
void virtio_net_accept(struct virtio_net *n, uint64_t offloads);

#endif
