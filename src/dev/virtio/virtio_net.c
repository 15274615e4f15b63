/*
 * virtio_net.c - network device
 *
 * Spec: VIRTIO 1.2, 5.1.
 */
#include "dev/virtio/virtio_net.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/net/netdev.h"
#include "backend/net/offload.h"
#include "dev/virtio/virtio.h"
#include "dev/virtio/virtio_net_internal.h"

/* In front of each frame (5.1.6): the backend's header, then the number of chains. */
#define HEADER_SIZE 12u
#define HEADER_NUM_BUFFERS 10
#define ETHERNET_HEADER 14

static unsigned rx_queue(unsigned pair)
{
    return 2 * pair;
}

static unsigned tx_queue(unsigned pair)
{
    return 2 * pair + 1;
}

/*
 * Where a flow is remembered, the same for both directions. What is no TCP or UDP packet is one
 * flow.
 */
static unsigned flow_of(const uint8_t *frame, size_t len)
{
    struct netdev_packet p;

    if (!netdev_packet_parse(frame, len, &p))
        return 0;
    unsigned size = p.is_ipv6 ? 32 : 8;
    uint32_t sum = netdev_sum(frame + p.network + (p.is_ipv6 ? 8 : 12), size, p.protocol);
    sum = netdev_sum(frame + p.transport, 4, sum);
    return (sum ^ sum >> 8) % NET_FLOWS;
}

/* ---- from the driver; on the backend's thread ---- */

static struct net_lane *lane_of(struct virtio_net *n, unsigned queue)
{
    return &n->lanes[queue / 2 % n->lane_count];
}

/* A chain of any pair that is in use; when there is none, the driver is asked to notify. */
static bool take_transmitted(struct net_lane *lane, struct virtqueue_chain *chain, unsigned *pair)
{
    struct virtio_net *n = lane->n;
    bool has_more;

    do {
        for (unsigned i = 0; i < n->active_pairs; i++) {
            *pair = (lane->turn + i) % n->active_pairs;
            if (*pair % n->lane_count != lane->index ||
                !virtio_pop(&n->dev, tx_queue(*pair), chain))
                continue;
            lane->turn = (*pair + 1) % n->active_pairs;
            if (!n->is_quiet[*pair])
                virtqueue_set_notify(&n->dev.queues[tx_queue(*pair)], false);
            n->is_quiet[*pair] = true;
            return true;
        }
        has_more = false;
        for (unsigned i = lane->index; i < n->active_pairs; i += n->lane_count)
            if (n->is_quiet[i]) {
                n->is_quiet[i] = false;
                has_more |= virtqueue_set_notify(&n->dev.queues[tx_queue(i)], true);
            }
    } while (has_more && virtio_may_take(&n->dev));
    return false;
}

/* What the driver left undone, if it may. */
static void read_header(const struct virtio_net *n, const struct virtqueue_chain *chain,
                        struct netdev_header *header)
{
    virtqueue_read(chain, 0, header, sizeof(*header));
    if (!virtio_has(&n->dev, NET_F_CSUM)) /* which segmentation rests on (5.1.3.1) */
        *header = (struct netdev_header){0};
    header->flags &= NETDEV_NEEDS_CHECKSUM;
}

static size_t net_pull(void *ctx, struct netdev_header *header, uint8_t frame[NETDEV_FRAME_MAX])
{
    struct net_lane *lane = ctx;
    struct virtio_net *n = lane->n;
    struct virtqueue_chain chain = {.buffers = n->buffers};
    size_t len = 0;
    unsigned pair;

    virtio_lock(&n->dev);
    while (len == 0 && take_transmitted(lane, &chain, &pair)) {
        /* too short or too long for a frame, or with no cable: as on a wire, it is lost */
        if (chain.out_size >= HEADER_SIZE + ETHERNET_HEADER &&
            chain.out_size <= HEADER_SIZE + NETDEV_FRAME_MAX &&
            (n->dev.config[CONFIG_STATUS] & STATUS_LINK_UP)) {
            read_header(n, &chain, header);
            len = virtqueue_read(&chain, HEADER_SIZE, frame, NETDEV_FRAME_MAX);
            if (n->active_pairs > 1 && n->lane_count == 1)
                n->flows[flow_of(frame, len)] = (uint8_t)pair;
        }
        virtqueue_push(&n->dev.queues[tx_queue(pair)], &chain, 0);
        virtio_signal_queue(&n->dev, tx_queue(pair));
    }
    virtio_unlock(&n->dev);
    return len;
}

/* ---- to the driver; on the backend's thread ---- */

static bool table_has(const struct net_table *table, const uint8_t *addr)
{
    for (unsigned i = 0; i < table->count; i++)
        if (memcmp(table->addr[i], addr, 6) == 0)
            return true;
    return table->is_full;
}

/* Does the driver want frames to this address? (5.1.6.5.1, 5.1.6.5.2) */
static bool is_wanted(const struct virtio_net *n, const uint8_t *to)
{
    static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

    if (n->rx[RX_PROMISC])
        return true;
    if (memcmp(to, broadcast, 6) == 0)
        return !n->rx[RX_NOBCAST];
    if (to[0] & 1)
        return !n->rx[RX_NOMULTI] && (n->rx[RX_ALLMULTI] || table_has(&n->multicast, to));
    return !n->rx[RX_NOUNI] &&
           (n->rx[RX_ALLUNI] || memcmp(to, n->dev.config + CONFIG_MAC, 6) == 0 ||
            table_has(&n->unicast, to));
}

/* The next chain; when there is none the driver is asked to notify. */
static bool pop_or_ask(struct virtio_net *n, unsigned queue, struct virtqueue_chain *chain)
{
    do {
        if (virtio_pop(&n->dev, queue, chain))
            return true;
    } while (virtio_may_take(&n->dev) && virtqueue_set_notify(&n->dev.queues[queue], true));
    return false;
}

/*
 * Take as many chains as the frame needs: their number, 0 when there are too few for now, or
 * NET_MERGE_MAX + 1 when the frame will never fit.
 */
static unsigned take_room(struct virtio_net *n, unsigned queue, uint64_t size)
{
    bool may_merge = virtio_has(&n->dev, NET_F_MRG_RXBUF);
    unsigned count = 0;
    uint64_t room = 0;

    while (room < size) {
        struct virtqueue_chain *chain = &n->merged[count];
        bool is_there = count < NET_MERGE_MAX && pop_or_ask(n, queue, chain);
        if (is_there) {
            count++;
            room += chain->in_size;
            if (room >= size || (may_merge && count < NET_MERGE_MAX))
                continue;
        }
        while (count > 0)
            virtqueue_unpop(&n->dev.queues[queue], &n->merged[--count]);
        return is_there || n->dev.queues[queue].is_broken ? NET_MERGE_MAX + 1 : 0;
    }
    return count;
}

static void fill_room(struct virtio_net *n, unsigned queue, unsigned count,
                      const struct netdev_header *left, const uint8_t *frame, size_t len)
{
    uint8_t header[HEADER_SIZE];
    size_t done = 0;

    memcpy(header, left, sizeof(*left));
    store_le16(header + HEADER_NUM_BUFFERS, (uint16_t)count);
    for (unsigned i = 0; i < count; i++) {
        struct virtqueue_chain *chain = &n->merged[i];
        uint64_t at = i == 0 ? virtqueue_write(chain, 0, header, HEADER_SIZE) : 0;
        size_t copied = virtqueue_write(chain, at, frame + done, len - done);
        done += copied;
        virtqueue_push(&n->dev.queues[queue], chain, (uint32_t)(at + copied));
    }
}

/* What was delivered before the driver changed its mind may leave too much undone: it is lost. */
static bool is_taken(const struct virtio_net *n, const struct netdev_header *header)
{
    unsigned needs = header->flags != 0 ? NETDEV_TAKES_CHECKSUM : 0;

    if (header->gso_type & NETDEV_GSO_ECN)
        needs |= NETDEV_TAKES_ECN;
    switch (header->gso_type & ~(unsigned)NETDEV_GSO_ECN) {
    case NETDEV_GSO_NONE:
        break;
    case NETDEV_GSO_TCP4:
        needs |= NETDEV_TAKES_TCP4;
        break;
    case NETDEV_GSO_TCP6:
        needs |= NETDEV_TAKES_TCP6;
        break;
    default:
        return false;
    }
    return (needs & ~n->takes) == 0;
}

/*
 * The queue of the pair that the flow was last sent on (5.1.6.5.6): remembered here, or by who has
 * several queues and has chosen this one for it.
 */
static unsigned queue_for(const struct net_lane *lane, const uint8_t *frame, size_t len)
{
    const struct virtio_net *n = lane->n;
    unsigned pair = 0;

    if (n->lane_count > 1)
        pair = lane->index < n->active_pairs ? lane->index : 0;
    else if (n->active_pairs > 1)
        pair = n->flows[flow_of(frame, len)];
    return rx_queue(n->dev.queues[rx_queue(pair)].is_enabled ? pair : 0);
}

/*
 * A header that does not fit into the first chain is a driver that breaks the rules (5.1.6.3.1);
 * its frame is lost.
 */
static bool push_wanted(struct net_lane *lane, const struct netdev_header *header,
                        const uint8_t *frame, size_t len)
{
    struct virtio_net *n = lane->n;
    unsigned queue = queue_for(lane, frame, len);

    if (!n->dev.queues[queue].is_enabled)
        return true;
    unsigned count = take_room(n, queue, HEADER_SIZE + len);
    if (count == 0 || count > NET_MERGE_MAX)
        return count != 0;
    if (n->merged[0].in_size < HEADER_SIZE)
        virtio_needs_reset(&n->dev, "a receive buffer has no room for the header");
    else
        fill_room(n, queue, count, header, frame, len);
    virtio_signal_queue(&n->dev, queue);
    return true;
}

static bool net_push(void *ctx, const struct netdev_header *header, const uint8_t *frame,
                     size_t len)
{
    struct net_lane *lane = ctx;
    struct virtio_net *n = lane->n;
    bool is_done = true;

    virtio_lock(&n->dev);
    if (virtio_is_running(&n->dev) && (n->dev.config[CONFIG_STATUS] & STATUS_LINK_UP) &&
        len >= ETHERNET_HEADER && is_wanted(n, frame) && is_taken(n, header))
        is_done = push_wanted(lane, header, frame, len);
    virtio_unlock(&n->dev);
    return is_done;
}

static const struct netdev_client net_client = {net_pull, net_push};

/* ---- the device; under the lock ---- */

static void net_notify(struct virtio_device *dev, unsigned index)
{
    struct virtio_net *n = CONTAINER_OF(dev, struct virtio_net, dev);

    if (index == virtio_net_control_queue(n))
        virtio_net_serve_control(n);
    else
        netdev_wake(lane_of(n, index)->net);
}

/* Not for either of the queues that may be the control queue: the driver has yet to say which. */
static int net_bell(struct virtio_device *dev, unsigned index)
{
    struct virtio_net *n = CONTAINER_OF(dev, struct virtio_net, dev);

    return index != 2 && index != 2 * n->pair_count ? netdev_wake_fd(lane_of(n, index)->net) : -1;
}

static void net_start(struct virtio_device *dev)
{
    struct virtio_net *n = CONTAINER_OF(dev, struct virtio_net, dev);

    virtio_net_accept(n, dev->features);
}

static bool net_reset(struct virtio_device *dev)
{
    struct virtio_net *n = CONTAINER_OF(dev, struct virtio_net, dev);

    virtio_net_reset_control(n);
    virtio_net_accept(n, 0);
    return true;
}

static const struct virtio_ops net_ops = {
    .start = net_start,
    .notify = net_notify,
    .bell = net_bell,
    .reset = net_reset,
    .get_state = virtio_net_get_state,
    .check_state = virtio_net_check_state,
    .set_state = virtio_net_set_state,
    .state_kind = VIRTIO_STATE_NET,
};

void virtio_net_set_link(struct virtio_net *n, bool is_up)
{
    virtio_lock(&n->dev);
    n->dev.config[CONFIG_STATUS] = is_up ? STATUS_LINK_UP : 0;
    virtio_signal_config(&n->dev);
    virtio_unlock(&n->dev);
    for (unsigned i = 0; i < n->lane_count; i++)
        netdev_wake(n->lanes[i].net);
}

static void fill_device(struct virtio_net *n, const struct virtio_net_config *config)
{
    struct virtio_device *dev = &n->dev;

    dev->ops = &net_ops;
    dev->name = config->name;
    dev->id = VIRTIO_ID_NET;
    dev->offered = VIRTIO_FEATURES_COMMON | NET_F_CSUM | NET_F_GUEST_CSUM |
                   NET_F_CTRL_GUEST_OFFLOADS | NET_F_MTU | NET_F_MAC | NET_F_GUEST_TSO4 |
                   NET_F_GUEST_TSO6 | NET_F_GUEST_ECN | NET_F_HOST_TSO4 | NET_F_HOST_TSO6 |
                   NET_F_HOST_ECN | NET_F_MRG_RXBUF | NET_F_STATUS | NET_F_CTRL_VQ | NET_F_CTRL_RX |
                   NET_F_CTRL_RX_EXTRA | NET_F_CTRL_MAC_ADDR | NET_F_HOST_USO;
    if (config->pair_count > 1)
        dev->offered |= NET_F_MQ;
    dev->queue_count = 2 * config->pair_count + 1;
    dev->queue_size = NET_QUEUE_SIZE;
    dev->config_size = CONFIG_SIZE;
    dev->memory = config->memory;
    virtio_init(dev);
    memset(dev->config_rule + CONFIG_MAC, VIRTIO_CONFIG_CARRIED, CONFIG_PAIRS - CONFIG_MAC);
    dev->config[CONFIG_STATUS] = STATUS_LINK_UP;
    store_le16(dev->config + CONFIG_PAIRS, (uint16_t)config->pair_count);
    store_le16(dev->config + CONFIG_MTU, (uint16_t)netdev_mtu(config->nets[0]));
}

int virtio_net_create(const struct virtio_net_config *config, struct virtio_net **out,
                      struct err *e)
{
    struct virtio_net *n = calloc(1, sizeof(*n));

    assert(config->pair_count >= 1 && config->pair_count <= VIRTIO_NET_PAIRS_MAX);
    if (n == NULL)
        return err_set(e, ENOMEM, "make the network device %s", config->name);
    assert(config->net_count >= 1 && config->net_count <= NETDEV_QUEUES_MAX);
    for (unsigned i = 0; i < config->net_count; i++)
        n->lanes[i] = (struct net_lane){.n = n, .net = config->nets[i], .index = i};
    n->lane_count = config->net_count;
    n->pair_count = config->pair_count;
    memcpy(n->mac, config->mac, 6);
    for (unsigned i = 0; i < NET_MERGE_MAX; i++)
        n->merged[i].buffers = n->merged_buffers[i];
    fill_device(n, config);
    virtio_net_reset_control(n);
    *out = n;
    return 0;
}

int virtio_net_start(struct virtio_net *n, struct err *e)
{
    int rc = 0;

    for (unsigned i = 0; rc == 0 && i < n->lane_count; i++)
        rc = netdev_start(n->lanes[i].net, &net_client, &n->lanes[i], e);
    return rc;
}

void virtio_net_destroy(struct virtio_net *n)
{
    if (n == NULL)
        return;
    virtio_fini(&n->dev);
    free(n);
}

struct virtio_device *virtio_net_device(struct virtio_net *n)
{
    return &n->dev;
}
