/*
 * virtio_net_state.c - what a driver's control commands have set, to be taken and put back
 *
 * A frame that the network's side has in its hands is not in the state: it is on the wire.
 *
 * Spec: VIRTIO 1.2, 5.1.6.5.
 */
#include <assert.h>
#include <string.h>

#include "dev/virtio/virtio_net_internal.h"
#include "dev/virtio/virtio_state.h"

_Static_assert(sizeof(((struct virtio_net_state *)0)->rx) == RX_COUNT, "a claim for each mode");
_Static_assert(sizeof(((struct virtio_net_table_state *)0)->addr) == NET_TABLE_MAX * 6,
               "room for a table");

static const struct {
    unsigned takes;
    uint64_t feature;
} offloads[] = {
    {NETDEV_TAKES_CHECKSUM, NET_F_GUEST_CSUM},
    {NETDEV_TAKES_TCP4, NET_F_GUEST_TSO4},
    {NETDEV_TAKES_TCP6, NET_F_GUEST_TSO6},
    {NETDEV_TAKES_ECN, NET_F_GUEST_ECN},
};

static void get_table(const struct net_table *table, struct virtio_net_table_state *out)
{
    out->count = (uint8_t)table->count;
    out->is_full = table->is_full;
    memcpy(out->addr, table->addr, table->count * sizeof(table->addr[0]));
}

void virtio_net_get_state(struct virtio_device *dev, struct virtio_state *out)
{
    const struct virtio_net *n = CONTAINER_OF(dev, struct virtio_net, dev);

    out->net.active_pairs = (uint8_t)n->active_pairs;
    for (unsigned i = 0; i < RX_COUNT; i++)
        out->net.rx[i] = n->rx[i];
    for (unsigned i = 0; i < ARRAY_SIZE(offloads); i++)
        if (n->takes & offloads[i].takes)
            out->net.offloads |= offloads[i].feature;
    get_table(&n->unicast, &out->net.unicast);
    get_table(&n->multicast, &out->net.multicast);
}

static int check_table(const struct virtio_net_table_state *s, const char *name, struct err *e)
{
    if (s->count > NET_TABLE_MAX)
        return err_set(e, 0, "net.%s.count is %u, and there is room for %u", name, s->count,
                       NET_TABLE_MAX);
    if (s->is_full > 1)
        return err_set(e, 0, "net.%s.is_full is %u, not 0 or 1", name, s->is_full);
    return 0;
}

int virtio_net_check_state(struct virtio_device *dev, const struct virtio_state *state,
                           struct err *e)
{
    const struct virtio_net *n = CONTAINER_OF(dev, struct virtio_net, dev);
    const struct virtio_net_state *s = &state->net;
    unsigned pairs_max = state->features & NET_F_MQ ? n->pair_count : 1;
    int rc = 0;

    if (s->active_pairs < 1 || s->active_pairs > pairs_max)
        return err_set(e, 0, "net.active_pairs is %u, and there are %u", s->active_pairs,
                       pairs_max);
    if (s->offloads & ~(state->features & NET_OFFLOADS))
        return err_set(e, 0, "net.offloads are %#llx, and not all of them are in features",
                       (unsigned long long)s->offloads);
    if (load_le16(state->config + CONFIG_STATUS) & ~STATUS_LINK_UP)
        return err_set(e, 0, "config: the status is 0x%x, and only the link's bit exists",
                       load_le16(state->config + CONFIG_STATUS));
    for (unsigned i = 0; i < RX_COUNT && rc == 0; i++)
        rc = virtio_check_claim(s->rx[i], "net.rx, mode", i, e);
    if (rc == 0)
        rc = check_table(&s->unicast, "unicast", e);
    if (rc == 0)
        rc = check_table(&s->multicast, "multicast", e);
    return rc;
}

static void set_table(struct net_table *table, const struct virtio_net_table_state *s)
{
    *table = (struct net_table){.count = s->count, .is_full = s->is_full};
    memcpy(table->addr, s->addr, s->count * sizeof(s->addr[0]));
}

void virtio_net_set_state(struct virtio_device *dev, const struct virtio_state *state)
{
    struct virtio_net *n = CONTAINER_OF(dev, struct virtio_net, dev);

    virtio_net_use_pairs(n, state->net.active_pairs);
    for (unsigned i = 0; i < RX_COUNT; i++)
        n->rx[i] = state->net.rx[i];
    set_table(&n->unicast, &state->net.unicast);
    set_table(&n->multicast, &state->net.multicast);
    for (unsigned i = 0; i < n->pair_count; i++)
        n->is_quiet[i] = dev->queues[2 * i + 1].is_quiet;
    virtio_net_accept(n, state->net.offloads);
}
