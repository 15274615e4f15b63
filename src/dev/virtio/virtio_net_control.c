/*
 * virtio_net_control.c - the network device's control queue: filters, addresses, pairs, offloads
 *
 * Spec: VIRTIO 1.2, 5.1.6.5.
 */
#include <string.h>

#include "dev/virtio/virtio_net_internal.h"

enum { CLASS_RX = 0, CLASS_MAC = 1, CLASS_MQ = 4, CLASS_OFFLOADS = 5 };
enum { MAC_TABLE_SET, MAC_ADDR_SET };
enum { MQ_PAIRS_SET };
enum { OFFLOADS_SET };
enum { ACK_OK, ACK_ERR };
#define HEADER_SIZE 2u

unsigned virtio_net_control_queue(const struct virtio_net *n)
{
    return virtio_has(&n->dev, NET_F_MQ) ? 2 * n->pair_count : 2;
}

/* ---- commands: each says whether it was done ---- */

static bool control_rx(struct virtio_net *n, unsigned command, const struct virtqueue_chain *chain)
{
    uint8_t is_on;

    if (command >= RX_COUNT || virtqueue_read(chain, HEADER_SIZE, &is_on, 1) != 1)
        return false;
    n->rx[command] = is_on != 0;
    return true;
}

/* One table at `offset` of the command; the offset behind it, or 0 when it is cut off. */
static uint64_t read_table(const struct virtqueue_chain *chain, uint64_t offset,
                           struct net_table *table)
{
    uint8_t count_bytes[4];

    if (virtqueue_read(chain, offset, count_bytes, 4) != 4)
        return 0;
    uint32_t count = load_le32(count_bytes);
    offset += 4;
    if ((uint64_t)count * 6 > chain->out_size - offset)
        return 0;
    table->count = MIN(count, NET_TABLE_MAX);
    table->is_full = count > NET_TABLE_MAX;
    virtqueue_read(chain, offset, table->addr, table->count * 6);
    return offset + (uint64_t)count * 6;
}

static bool control_mac(struct virtio_net *n, unsigned command, const struct virtqueue_chain *chain)
{
    struct net_table unicast = {0}, multicast = {0};
    uint64_t at;

    switch (command) {
    case MAC_TABLE_SET:
        at = read_table(chain, HEADER_SIZE, &unicast);
        if (at == 0 || read_table(chain, at, &multicast) == 0)
            return false;
        n->unicast = unicast;
        n->multicast = multicast;
        return true;
    case MAC_ADDR_SET:
        return chain->out_size == HEADER_SIZE + 6 &&
               virtqueue_read(chain, HEADER_SIZE, n->dev.config + CONFIG_MAC, 6) == 6;
    default:
        return false;
    }
}

static bool control_mq(struct virtio_net *n, unsigned command, const struct virtqueue_chain *chain)
{
    uint8_t bytes[2];

    if (command != MQ_PAIRS_SET || !virtio_has(&n->dev, NET_F_MQ) ||
        virtqueue_read(chain, HEADER_SIZE, bytes, 2) != 2)
        return false;
    unsigned count = load_le16(bytes);
    if (count < 1 || count > n->pair_count)
        return false;
    /* whoever is not looked at any more has to notify when it is again */
    for (unsigned i = 0; i < n->pair_count; i++)
        if (n->is_quiet[i])
            virtqueue_set_notify(&n->dev.queues[2 * i + 1], true);
    memset(n->is_quiet, 0, sizeof(n->is_quiet));
    virtio_net_use_pairs(n, count);
    return true;
}

static bool control_offloads(struct virtio_net *n, unsigned command,
                             const struct virtqueue_chain *chain)
{
    uint8_t bytes[8];

    if (command != OFFLOADS_SET || !virtio_has(&n->dev, NET_F_CTRL_GUEST_OFFLOADS) ||
        virtqueue_read(chain, HEADER_SIZE, bytes, 8) != 8)
        return false;
    uint64_t offloads = load_le64(bytes);
    if (offloads & ~(n->dev.features & NET_OFFLOADS))
        return false;
    virtio_net_accept(n, offloads);
    return true;
}

static bool control(struct virtio_net *n, const struct virtqueue_chain *chain)
{
    uint8_t header[HEADER_SIZE];

    if (virtqueue_read(chain, 0, header, HEADER_SIZE) != HEADER_SIZE)
        return false;
    switch (header[0]) {
    case CLASS_RX:
        return control_rx(n, header[1], chain);
    case CLASS_MAC:
        return control_mac(n, header[1], chain);
    case CLASS_MQ:
        return control_mq(n, header[1], chain);
    case CLASS_OFFLOADS:
        return control_offloads(n, header[1], chain);
    default:
        return false;
    }
}

void virtio_net_serve_control(struct virtio_net *n)
{
    struct virtqueue_chain chain = {.buffers = n->buffers};
    unsigned queue = virtio_net_control_queue(n);

    for (unsigned i = 0; i < NET_QUEUE_SIZE && virtio_pop(&n->dev, queue, &chain); i++) {
        uint8_t ack = control(n, &chain) ? ACK_OK : ACK_ERR;
        uint32_t written = (uint32_t)virtqueue_write(&chain, 0, &ack, 1);
        virtqueue_push(&n->dev.queues[queue], &chain, written);
    }
    virtio_signal_queue(&n->dev, queue);
}

void virtio_net_accept(struct virtio_net *n, uint64_t offloads)
{
    n->takes = 0;
    /* the others rest on the first (5.1.3.1) */
    if (offloads & NET_F_GUEST_CSUM) {
        n->takes = NETDEV_TAKES_CHECKSUM;
        n->takes |= offloads & NET_F_GUEST_TSO4 ? NETDEV_TAKES_TCP4 : 0;
        n->takes |= offloads & NET_F_GUEST_TSO6 ? NETDEV_TAKES_TCP6 : 0;
        n->takes |= offloads & NET_F_GUEST_ECN ? NETDEV_TAKES_ECN : 0;
    }
    for (unsigned i = 0; i < n->lane_count; i++)
        netdev_accept(n->lanes[i].net, n->takes);
}

void virtio_net_use_pairs(struct virtio_net *n, unsigned count)
{
    n->active_pairs = count;
    /* flows learn their pairs anew */
    memset(n->flows, 0, sizeof(n->flows));
    for (unsigned i = 0; i < n->lane_count; i++) {
        n->lanes[i].turn = 0;
        netdev_use(n->lanes[i].net, i < count);
        netdev_wake(n->lanes[i].net); /* for what came without a notification */
    }
}

void virtio_net_reset_control(struct virtio_net *n)
{
    memcpy(n->dev.config + CONFIG_MAC, n->mac, 6);
    memset(n->rx, 0, sizeof(n->rx));
    /* until the driver says what it wants, it gets all (5.1.6.5.1) */
    n->rx[RX_PROMISC] = true;
    n->unicast = n->multicast = (struct net_table){0};
    memset(n->is_quiet, 0, sizeof(n->is_quiet));
    virtio_net_use_pairs(n, 1);
}
