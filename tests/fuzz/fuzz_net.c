/*
 * fuzz_net.c - libFuzzer entry of frames with work left, as a guest or another machine sends them
 *
 * The input is what the receiver takes undone, a header, and a frame in an allocation of just its
 * size. What must hold: a header that is not good loses the frame; else all that comes out has
 * nothing left undone but what was agreed on, is no longer than a frame can be, and has headers
 * that are good; segments carry the payload once, in order, and each checksum made here is right.
 */
#include <stdlib.h>
#include <string.h>

#include "backend/net/offload.h"
#include "base/bits.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct receiver {
    unsigned takes, count;
    bool is_cut; /* the frame was to be cut, and the receiver does not take that */
    const uint8_t *payload;
    size_t payload_size, seen;
};

static void require(bool claim)
{
    if (!claim)
        abort();
}

static unsigned needed(uint8_t gso_type)
{
    unsigned ecn = gso_type & NETDEV_GSO_ECN ? NETDEV_TAKES_ECN : 0;

    switch (gso_type & ~NETDEV_GSO_ECN) {
    case NETDEV_GSO_NONE:
        return 0;
    case NETDEV_GSO_TCP4:
        return NETDEV_TAKES_TCP4 | ecn;
    case NETDEV_GSO_TCP6:
        return NETDEV_TAKES_TCP6 | ecn;
    case NETDEV_GSO_UDP:
        return NETDEV_TAKES_UDP;
    default:
        return ~0u;
    }
}

/* A segment is a packet of its own, with its part of the payload. */
static void check_segment(struct receiver *r, const uint8_t *frame, size_t len)
{
    struct netdev_packet p;

    require(netdev_packet_parse(frame, len, &p));
    size_t n = len - p.payload;
    require(p.end == len && n <= r->payload_size - r->seen);
    require(memcmp(frame + p.payload, r->payload + r->seen, n) == 0);
    r->seen += n;
}

/* The sum over pseudo header and all behind it is that of a right checksum. */
static void check_sum(const uint8_t *frame, size_t len)
{
    struct netdev_packet p;

    require(netdev_packet_parse(frame, len, &p));
    uint32_t pseudo = netdev_pseudo_sum(frame, &p, p.end - p.transport);
    require(netdev_sum(frame + p.transport, p.end - p.transport, pseudo) == 0xffff);
}

static void on_frame(void *ctx, const struct netdev_header *header, uint8_t *frame, size_t len)
{
    struct receiver *r = ctx;

    require(len <= NETDEV_FRAME_MAX && ++r->count <= NETDEV_SEGMENTS_MAX);
    /* what is cut by the receiver may have its sum already: of the whole, which is of no use there
     */
    require(header->flags == 0 || netdev_header_is_good(header, frame, len));
    require((needed(header->gso_type) & ~r->takes) == 0);
    if (header->flags != 0)
        require(r->takes & NETDEV_TAKES_CHECKSUM);
    if (r->is_cut) {
        check_segment(r, frame, len);
        if (!(header->flags & NETDEV_NEEDS_CHECKSUM))
            check_sum(frame, len);
    }
    /* it is ours until we return */
    memset(frame, 0xa5, len);
}

static bool is_of_gso_type(const struct netdev_header *header, const struct netdev_packet *packet)
{
    uint8_t protocol =
        header->gso_type == NETDEV_GSO_UDP ? NETDEV_PROTOCOL_UDP : NETDEV_PROTOCOL_TCP;

    return header->gso_type != NETDEV_GSO_NONE && packet->protocol == protocol &&
           packet->transport == header->checksum_start;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t segment[NETDEV_FRAME_MAX];
    struct netdev_header header;
    struct netdev_packet packet;

    if (size < 1 + sizeof(header) || size - 1 - sizeof(header) >= NETDEV_FRAME_MAX)
        return 0;
    struct receiver r = {.takes = data[0]};
    memcpy(&header, data + 1, sizeof(header));
    size -= 1 + sizeof(header);
    data += 1 + sizeof(header);
    uint8_t *frame = malloc(size != 0 ? size : 1);
    require(frame != NULL);
    memcpy(frame, data, size);
    bool is_packet = netdev_packet_parse(frame, size, &packet);
    bool is_good = netdev_header_is_good(&header, frame, size);
    if (is_packet)
        require(packet.network < packet.transport && packet.transport < packet.payload &&
                packet.payload <= packet.end && packet.end <= size);
    /* Other packets are cut too, such as those with IPv6 extension headers; here is no model of
     * them. */
    if (is_good && is_packet && is_of_gso_type(&header, &packet)) {
        r.is_cut = (needed(header.gso_type) & ~r.takes) != 0;
        r.payload = data + packet.payload;
        r.payload_size = size - packet.payload;
    }
    netdev_finish(&header, frame, size, r.takes, segment, on_frame, &r);
    require(is_good || r.count == 0);
    if (r.is_cut && r.count > 0)
        require(r.seen == r.payload_size);
    free(frame);
    return 0;
}
