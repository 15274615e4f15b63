/*
 * virtio_net.c - network device
 *
 * Spec: VIRTIO 1.2, 5.1.
 */
#include "dev/virtio/virtio_net.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/net/netdev.h"
#include "dev/virtio/virtio.h"

#define QUEUE_SIZE 256
enum { QUEUE_RX, QUEUE_TX, QUEUE_CONTROL, QUEUE_COUNT };

#define NET_F_MTU BIT(3)
#define NET_F_MAC BIT(5)
#define NET_F_MRG_RXBUF BIT(15)
#define NET_F_STATUS BIT(16)
#define NET_F_CTRL_VQ BIT(17)
#define NET_F_CTRL_RX BIT(18)
#define NET_F_CTRL_RX_EXTRA BIT(20)
#define NET_F_CTRL_MAC_ADDR BIT(23)

/* Configuration (5.1.4). */
enum { CONFIG_MAC = 0, CONFIG_STATUS = 6, CONFIG_MTU = 10, CONFIG_SIZE = 12 };
#define STATUS_LINK_UP 1

/* In front of each frame (5.1.6). */
#define HEADER_SIZE 12u
#define HEADER_NUM_BUFFERS 10
#define ETHERNET_HEADER 14

/* A frame for the driver may be spread over this many chains. */
#define MERGE_MAX 32u

/* Control queue (5.1.6.5). */
enum { CLASS_RX = 0, CLASS_MAC = 1 };
enum { RX_PROMISC, RX_ALLMULTI, RX_ALLUNI, RX_NOMULTI, RX_NOUNI, RX_NOBCAST, RX_COUNT };
enum { MAC_TABLE_SET, MAC_ADDR_SET };
enum { ACK_OK, ACK_ERR };
#define TABLE_MAX 32u

/* Addresses of one kind that the driver wants to hear of. */
struct mac_table {
    unsigned count;
    bool is_full; /* there were more than fit: all are let through */
    uint8_t addr[TABLE_MAX][6];
};

struct virtio_net {
    struct virtio_device dev;
    struct netdev *net;
    uint8_t mac[6]; /* after reset */

    /* under dev.lock */
    bool rx[RX_COUNT];
    struct mac_table unicast, multicast;
    struct virtqueue_chain merged[MERGE_MAX];
    struct virtqueue_buffer merged_buffers[MERGE_MAX][QUEUE_SIZE];
    struct virtqueue_buffer buffers[QUEUE_SIZE]; /* transmission and control */
};

/* ---- from the driver; on the backend's thread ---- */

/* The next chain; when there is none the driver is asked to notify. */
static bool pop_or_ask(struct virtio_net *n, unsigned queue, struct virtqueue_chain *chain)
{
    do {
        if (virtio_pop(&n->dev, queue, chain))
            return true;
    } while (virtio_is_running(&n->dev) && virtqueue_set_notify(&n->dev.queues[queue], true));
    return false;
}

static size_t net_pull(void *ctx, uint8_t frame[NETDEV_FRAME_MAX])
{
    struct virtio_net *n = ctx;
    struct virtqueue_chain chain = {.buffers = n->buffers};
    size_t len = 0;

    pthread_mutex_lock(&n->dev.lock);
    if (virtio_is_running(&n->dev))
        virtqueue_set_notify(&n->dev.queues[QUEUE_TX], false);
    while (len == 0 && pop_or_ask(n, QUEUE_TX, &chain)) {
        /* too short or too long for a frame: as on a wire, it is lost */
        if (chain.out_size >= HEADER_SIZE + ETHERNET_HEADER &&
            chain.out_size <= HEADER_SIZE + NETDEV_FRAME_MAX)
            len = virtqueue_read(&chain, HEADER_SIZE, frame, NETDEV_FRAME_MAX);
        virtqueue_push(&n->dev.queues[QUEUE_TX], &chain, 0);
        virtio_signal_queue(&n->dev, QUEUE_TX);
    }
    pthread_mutex_unlock(&n->dev.lock);
    return len;
}

/* ---- to the driver; on the backend's thread ---- */

static bool table_has(const struct mac_table *table, const uint8_t *addr)
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

/*
 * Take as many chains as the frame needs: their number, 0 when there are too few for now, or
 * MERGE_MAX + 1 when the frame will never fit.
 */
static unsigned take_room(struct virtio_net *n, uint64_t size)
{
    bool may_merge = virtio_has(&n->dev, NET_F_MRG_RXBUF);
    unsigned count = 0;
    uint64_t room = 0;

    while (room < size) {
        struct virtqueue_chain *chain = &n->merged[count];
        bool is_there = count < MERGE_MAX && pop_or_ask(n, QUEUE_RX, chain);
        if (is_there) {
            count++;
            room += chain->in_size;
            if (room >= size || (may_merge && count < MERGE_MAX))
                continue;
        }
        while (count > 0)
            virtqueue_unpop(&n->dev.queues[QUEUE_RX], &n->merged[--count]);
        return is_there || n->dev.queues[QUEUE_RX].is_broken ? MERGE_MAX + 1 : 0;
    }
    return count;
}

static void fill_room(struct virtio_net *n, unsigned count, const uint8_t *frame, size_t len)
{
    uint8_t header[HEADER_SIZE] = {0};
    size_t done = 0;

    store_le16(header + HEADER_NUM_BUFFERS, (uint16_t)count);
    for (unsigned i = 0; i < count; i++) {
        struct virtqueue_chain *chain = &n->merged[i];
        uint64_t at = i == 0 ? virtqueue_write(chain, 0, header, HEADER_SIZE) : 0;
        size_t copied = virtqueue_write(chain, at, frame + done, len - done);
        done += copied;
        virtqueue_push(&n->dev.queues[QUEUE_RX], chain, (uint32_t)(at + copied));
    }
}

/*
 * A header that does not fit into the first chain is a driver that breaks the rules (5.1.6.3.1);
 * its frame is lost.
 */
static bool net_push(void *ctx, const uint8_t *frame, size_t len)
{
    struct virtio_net *n = ctx;
    bool is_done = true;

    pthread_mutex_lock(&n->dev.lock);
    if (virtio_is_running(&n->dev) && n->dev.queues[QUEUE_RX].is_enabled &&
        (n->dev.config[CONFIG_STATUS] & STATUS_LINK_UP) && len >= ETHERNET_HEADER &&
        is_wanted(n, frame)) {
        unsigned count = take_room(n, HEADER_SIZE + len);
        is_done = count != 0;
        if (count > 0 && count <= MERGE_MAX) {
            if (n->merged[0].in_size < HEADER_SIZE)
                virtio_needs_reset(&n->dev, "a receive buffer has no room for the header");
            else
                fill_room(n, count, frame, len);
            virtio_signal_queue(&n->dev, QUEUE_RX);
        }
    }
    pthread_mutex_unlock(&n->dev.lock);
    return is_done;
}

static const struct netdev_client net_client = {net_pull, net_push};

/* ---- control; under the lock ---- */

/* One table at `offset` of the command; the offset behind it, or 0 when it is cut off. */
static uint64_t read_table(const struct virtqueue_chain *chain, uint64_t offset,
                           struct mac_table *table)
{
    uint8_t count_bytes[4];

    if (virtqueue_read(chain, offset, count_bytes, 4) != 4)
        return 0;
    uint32_t count = load_le32(count_bytes);
    offset += 4;
    if ((uint64_t)count * 6 > chain->out_size - offset)
        return 0;
    table->count = MIN(count, TABLE_MAX);
    table->is_full = count > TABLE_MAX;
    virtqueue_read(chain, offset, table->addr, table->count * 6);
    return offset + (uint64_t)count * 6;
}

static bool control_mac(struct virtio_net *n, unsigned command, const struct virtqueue_chain *chain)
{
    struct mac_table unicast = {0}, multicast = {0};
    uint64_t at;

    switch (command) {
    case MAC_TABLE_SET:
        at = read_table(chain, 2, &unicast);
        if (at == 0 || read_table(chain, at, &multicast) == 0)
            return false;
        n->unicast = unicast;
        n->multicast = multicast;
        return true;
    case MAC_ADDR_SET:
        return chain->out_size == 8 && virtqueue_read(chain, 2, n->dev.config + CONFIG_MAC, 6) == 6;
    default:
        return false;
    }
}

static bool control(struct virtio_net *n, const struct virtqueue_chain *chain)
{
    uint8_t header[3];

    if (virtqueue_read(chain, 0, header, 3) != 3)
        return false;
    if (header[0] == CLASS_RX && header[1] < RX_COUNT) {
        n->rx[header[1]] = header[2] != 0;
        return true;
    }
    return header[0] == CLASS_MAC && control_mac(n, header[1], chain);
}

static void serve_control(struct virtio_net *n)
{
    struct virtqueue_chain chain = {.buffers = n->buffers};

    while (pop_or_ask(n, QUEUE_CONTROL, &chain)) {
        uint8_t ack = control(n, &chain) ? ACK_OK : ACK_ERR;
        uint32_t written = (uint32_t)virtqueue_write(&chain, 0, &ack, 1);
        virtqueue_push(&n->dev.queues[QUEUE_CONTROL], &chain, written);
    }
    virtio_signal_queue(&n->dev, QUEUE_CONTROL);
}

/* ---- the device; under the lock ---- */

static void net_notify(struct virtio_device *dev, unsigned index)
{
    struct virtio_net *n = CONTAINER_OF(dev, struct virtio_net, dev);

    if (index == QUEUE_CONTROL)
        serve_control(n);
    else
        netdev_wake(n->net);
}

static void set_initial(struct virtio_net *n)
{
    memcpy(n->dev.config + CONFIG_MAC, n->mac, 6);
    memset(n->rx, 0, sizeof(n->rx));
    /* until the driver says what it wants, it gets all (5.1.6.5.1) */
    n->rx[RX_PROMISC] = true;
    n->unicast = n->multicast = (struct mac_table){0};
}

static bool net_reset(struct virtio_device *dev)
{
    set_initial(CONTAINER_OF(dev, struct virtio_net, dev));
    return true;
}

static const struct virtio_ops net_ops = {.notify = net_notify, .reset = net_reset};

void virtio_net_set_link(struct virtio_net *n, bool is_up)
{
    pthread_mutex_lock(&n->dev.lock);
    n->dev.config[CONFIG_STATUS] = is_up ? STATUS_LINK_UP : 0;
    virtio_signal_config(&n->dev);
    pthread_mutex_unlock(&n->dev.lock);
    netdev_wake(n->net);
}

int virtio_net_create(const struct virtio_net_config *config, struct virtio_net **out,
                      struct err *e)
{
    struct virtio_net *n = calloc(1, sizeof(*n));

    if (n == NULL)
        return err_set(e, ENOMEM, "make the network device %s", config->name);
    n->net = config->net;
    memcpy(n->mac, config->mac, 6);
    for (unsigned i = 0; i < MERGE_MAX; i++)
        n->merged[i].buffers = n->merged_buffers[i];
    n->dev.ops = &net_ops;
    n->dev.name = config->name;
    n->dev.id = VIRTIO_ID_NET;
    n->dev.offered = VIRTIO_FEATURES_COMMON | NET_F_MAC | NET_F_MTU | NET_F_STATUS |
                     NET_F_MRG_RXBUF | NET_F_CTRL_VQ | NET_F_CTRL_RX | NET_F_CTRL_RX_EXTRA |
                     NET_F_CTRL_MAC_ADDR;
    n->dev.queue_count = QUEUE_COUNT;
    n->dev.queue_size = QUEUE_SIZE;
    n->dev.config_size = CONFIG_SIZE;
    n->dev.memory = config->memory;
    virtio_init(&n->dev);
    set_initial(n);
    n->dev.config[CONFIG_STATUS] = STATUS_LINK_UP;
    store_le16(n->dev.config + CONFIG_MTU, (uint16_t)netdev_mtu(config->net));
    *out = n;
    return 0;
}

int virtio_net_start(struct virtio_net *n, struct err *e)
{
    return netdev_start(n->net, &net_client, n, e);
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
