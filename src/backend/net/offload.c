/*
 * offload.c - what a frame's header leaves to do, done in software
 *
 * Sums are kept in the byte order of memory: the Internet checksum does not care (RFC 1071, 2).
 */
#include "backend/net/offload.h"

#include <string.h>

#include "base/bits.h"

#define ETHERNET_SIZE 14u
#define TYPE_OFFSET 12u
#define VLAN_SIZE 4u

#define IP4_SIZE 20u
#define IP4_LENGTH 2u
#define IP4_ID 4u
#define IP4_FRAGMENT 6u
#define IP4_PROTOCOL 9u
#define IP4_CHECKSUM 10u
#define IP4_SOURCE 12u
#define IP6_SIZE 40u
#define IP6_LENGTH 4u
#define IP6_NEXT 6u
#define IP6_SOURCE 8u

#define TCP_SIZE 20u
#define TCP_SEQUENCE 4u
#define TCP_DATA_OFFSET 12u
#define TCP_FLAGS 13u
#define TCP_FIN 0x01u
#define TCP_PSH 0x08u
#define TCP_CWR 0x80u
#define TCP_CHECKSUM 16u
#define UDP_SIZE 8u
#define UDP_LENGTH 4u
#define UDP_CHECKSUM 6u

/* ---- sums ---- */

uint16_t netdev_sum(const uint8_t *bytes, size_t size, uint32_t sum)
{
    uint64_t total = sum;

    /* 32-bit pieces into 64 bits: no carry is lost in frames of this size */
    for (; size >= 16; bytes += 16, size -= 16)
        total += (uint64_t)load_le32(bytes) + load_le32(bytes + 4) + load_le32(bytes + 8) +
                 load_le32(bytes + 12);
    for (; size >= 2; bytes += 2, size -= 2)
        total += load_le16(bytes);
    if (size != 0)
        total += *bytes;
    while (total >> 16 != 0)
        total = (total & 0xffff) + (total >> 16);
    return (uint16_t)total;
}

uint16_t netdev_pseudo_sum(const uint8_t *frame, const struct netdev_packet *packet,
                           size_t transport_size)
{
    const uint8_t *ip = frame + packet->network;
    uint8_t rest[8] = {0, packet->protocol};

    /* the length of IPv6's is longer, and no packet is */
    store_be16(rest + 2, transport_size);
    uint32_t sum = netdev_sum(rest, sizeof(rest), 0);
    return packet->is_ipv6 ? netdev_sum(ip + IP6_SOURCE, 32, sum)
                           : netdev_sum(ip + IP4_SOURCE, 8, sum);
}

/* 0 and FFFFH are the same number here, and in UDP 0 stands for no checksum at all (RFC 768). */
static uint16_t inverted(uint16_t sum)
{
    return sum == 0xffff ? 0xffff : (uint16_t)~sum;
}

/* The place of the sum holds that of the pseudo header. */
static void fill_checksum(uint8_t *frame, size_t len, unsigned start, unsigned offset)
{
    store_le16(frame + start + offset, inverted(netdev_sum(frame + start, len - start, 0)));
}

/* ---- headers ---- */

/* Where the packet starts; its type in *type. 0: the frame is cut off. */
static unsigned network_offset(const uint8_t *frame, size_t len, uint16_t *type)
{
    unsigned at = ETHERNET_SIZE;

    if (len < at)
        return 0;
    *type = load_be16(frame + TYPE_OFFSET);
    if (*type == 0x8100 && len >= at + VLAN_SIZE) {
        *type = load_be16(frame + TYPE_OFFSET + VLAN_SIZE);
        at += VLAN_SIZE;
    }
    return at;
}

static bool parse_ip4(const uint8_t *frame, size_t len, struct netdev_packet *p)
{
    const uint8_t *ip = frame + p->network;

    if (len < p->network + IP4_SIZE || ip[0] >> 4 != 4)
        return false;
    unsigned size = (ip[0] & 15u) * 4, total = load_be16(ip + IP4_LENGTH);
    if (size < IP4_SIZE || total < size || len - p->network < total)
        return false;
    if (load_be16(ip + IP4_FRAGMENT) & 0x3fff)
        return false;
    p->protocol = ip[IP4_PROTOCOL];
    p->transport = p->network + size;
    p->end = p->network + total;
    return true;
}

static bool parse_ip6(const uint8_t *frame, size_t len, struct netdev_packet *p)
{
    const uint8_t *ip = frame + p->network;

    if (len < p->network + IP6_SIZE || ip[0] >> 4 != 6)
        return false;
    unsigned total = IP6_SIZE + load_be16(ip + IP6_LENGTH);
    if (len - p->network < total)
        return false;
    p->protocol = ip[IP6_NEXT];
    p->transport = p->network + IP6_SIZE;
    p->end = p->network + total;
    return true;
}

/* Behind the headers of the transport; 0 when they are not there or are no such protocol's. */
static unsigned payload_offset(const uint8_t *frame, size_t end, unsigned transport,
                               uint8_t protocol)
{
    unsigned size = protocol == NETDEV_PROTOCOL_TCP ? TCP_SIZE : UDP_SIZE;

    if (end < transport + size)
        return 0;
    if (protocol == NETDEV_PROTOCOL_UDP)
        return transport + size;
    if (protocol != NETDEV_PROTOCOL_TCP)
        return 0;
    size = (frame[transport + TCP_DATA_OFFSET] >> 4) * 4u;
    return size >= TCP_SIZE && end >= transport + size ? transport + size : 0;
}

bool netdev_packet_parse(const uint8_t *frame, size_t len, struct netdev_packet *out)
{
    uint16_t type;

    *out = (struct netdev_packet){.network = network_offset(frame, len, &type)};
    if (out->network == 0)
        return false;
    out->is_ipv6 = type == 0x86dd;
    if (out->is_ipv6 ? !parse_ip6(frame, len, out) : type != 0x0800 || !parse_ip4(frame, len, out))
        return false;
    out->payload = payload_offset(frame, out->end, out->transport, out->protocol);
    return out->payload != 0;
}

/*
 * The packet that is to be cut: its transport is where the checksum starts, so that extension
 * headers need not be understood; its lengths are ours to fill in.
 */
static bool parse_gso(const struct netdev_header *h, const uint8_t *frame, size_t len,
                      struct netdev_packet *p)
{
    unsigned gso_type = h->gso_type & ~(unsigned)NETDEV_GSO_ECN;
    uint16_t type;

    *p = (struct netdev_packet){.network = network_offset(frame, len, &type),
                                .transport = h->checksum_start,
                                .end = (unsigned)len};
    if (p->network == 0)
        return false;
    p->is_ipv6 = type == 0x86dd;
    if (!p->is_ipv6 && type != 0x0800)
        return false;
    if ((gso_type == NETDEV_GSO_TCP4 && p->is_ipv6) || (gso_type == NETDEV_GSO_TCP6 && !p->is_ipv6))
        return false;
    if (p->transport < p->network + (p->is_ipv6 ? IP6_SIZE : IP4_SIZE))
        return false;
    if (!p->is_ipv6 && p->network + (frame[p->network] & 15u) * 4 != p->transport)
        return false;
    p->protocol = gso_type == NETDEV_GSO_UDP ? NETDEV_PROTOCOL_UDP : NETDEV_PROTOCOL_TCP;
    p->payload = payload_offset(frame, len, p->transport, p->protocol);
    return p->payload != 0 &&
           h->checksum_offset == (p->protocol == NETDEV_PROTOCOL_UDP ? UDP_CHECKSUM : TCP_CHECKSUM);
}

bool netdev_header_is_good(const struct netdev_header *h, const uint8_t *frame, size_t len)
{
    struct netdev_packet packet;
    bool needs = h->flags & NETDEV_NEEDS_CHECKSUM;

    if (needs && (size_t)h->checksum_start + h->checksum_offset + 2 > len)
        return false;
    switch (h->gso_type) {
    case NETDEV_GSO_NONE:
        return true;
    case NETDEV_GSO_TCP4:
    case NETDEV_GSO_TCP6:
    case NETDEV_GSO_TCP4 | NETDEV_GSO_ECN:
    case NETDEV_GSO_TCP6 | NETDEV_GSO_ECN:
    case NETDEV_GSO_UDP:
        break;
    default:
        return false;
    }
    return needs && h->gso_size != 0 && parse_gso(h, frame, len, &packet) &&
           (len - packet.payload) / h->gso_size < NETDEV_SEGMENTS_MAX;
}

/* ---- cutting ---- */

struct cutter {
    const struct netdev_header *header; /* of the whole */
    struct netdev_packet packet;
    unsigned takes;
    netdev_emit_fn emit;
    void *ctx;
};

static void set_lengths(uint8_t *frame, const struct netdev_packet *p, size_t len, unsigned index)
{
    uint8_t *ip = frame + p->network;

    if (p->is_ipv6) {
        store_be16(ip + IP6_LENGTH, len - p->network - IP6_SIZE);
    } else {
        store_be16(ip + IP4_LENGTH, len - p->network);
        store_be16(ip + IP4_ID, load_be16(ip + IP4_ID) + index);
        store_le16(ip + IP4_CHECKSUM, 0);
        store_le16(ip + IP4_CHECKSUM, (uint16_t)~netdev_sum(ip, p->transport - p->network, 0));
    }
    if (p->protocol == NETDEV_PROTOCOL_UDP)
        store_be16(frame + p->transport + UDP_LENGTH, len - p->transport);
}

/* The segment's headers are copies of the whole's (RFC 9293, 3.1, for what differs). */
static void finish_segment(const struct cutter *c, uint8_t *segment, size_t len, size_t offset,
                           unsigned index, bool is_last)
{
    const struct netdev_packet *p = &c->packet;
    struct netdev_header header = {0};
    uint8_t *transport = segment + p->transport;

    set_lengths(segment, p, len, index);
    if (p->protocol == NETDEV_PROTOCOL_TCP) {
        uint32_t sequence = (uint32_t)load_be16(transport + TCP_SEQUENCE) << 16 |
                            load_be16(transport + TCP_SEQUENCE + 2);
        sequence += (uint32_t)offset;
        store_be16(transport + TCP_SEQUENCE, sequence >> 16);
        store_be16(transport + TCP_SEQUENCE + 2, sequence & 0xffff);
        if (!is_last)
            transport[TCP_FLAGS] &= (uint8_t) ~(TCP_FIN | TCP_PSH);
        if (index != 0)
            transport[TCP_FLAGS] &= (uint8_t)~TCP_CWR;
    }
    store_le16(transport + c->header->checksum_offset,
               netdev_pseudo_sum(segment, p, len - p->transport));
    if (c->takes & NETDEV_TAKES_CHECKSUM) {
        header.flags = NETDEV_NEEDS_CHECKSUM;
        header.checksum_start = c->header->checksum_start;
        header.checksum_offset = c->header->checksum_offset;
    } else {
        fill_checksum(segment, len, p->transport, c->header->checksum_offset);
    }
    c->emit(c->ctx, &header, segment, len);
}

static void cut(const struct cutter *c, const uint8_t *frame, size_t len, uint8_t *segment)
{
    size_t headers = c->packet.payload, payload = len - headers, offset = 0;
    unsigned index = 0;

    do {
        size_t n = MIN(payload - offset, (size_t)c->header->gso_size);
        memcpy(segment, frame, headers);
        memcpy(segment + headers, frame + headers + offset, n);
        finish_segment(c, segment, headers + n, offset, index++, offset + n == payload);
        offset += n;
    } while (offset < payload);
}

static bool takes_gso(unsigned gso_type, unsigned takes)
{
    if ((gso_type & NETDEV_GSO_ECN) && !(takes & NETDEV_TAKES_ECN))
        return false;
    switch (gso_type & ~(unsigned)NETDEV_GSO_ECN) {
    case NETDEV_GSO_TCP4:
        return takes & NETDEV_TAKES_TCP4;
    case NETDEV_GSO_TCP6:
        return takes & NETDEV_TAKES_TCP6;
    default:
        return takes & NETDEV_TAKES_UDP;
    }
}

void netdev_finish(const struct netdev_header *header, uint8_t *frame, size_t len, unsigned takes,
                   uint8_t segment[NETDEV_FRAME_MAX], netdev_emit_fn emit, void *ctx)
{
    struct cutter cutter = {.header = header, .takes = takes, .emit = emit, .ctx = ctx};
    struct netdev_header left = *header;

    if (len > NETDEV_FRAME_MAX || !netdev_header_is_good(header, frame, len))
        return;
    if (header->gso_type != NETDEV_GSO_NONE && !takes_gso(header->gso_type, takes)) {
        if (parse_gso(header, frame, len, &cutter.packet))
            cut(&cutter, frame, len, segment);
        return;
    }
    if (!(takes & NETDEV_TAKES_CHECKSUM)) {
        if (header->flags & NETDEV_NEEDS_CHECKSUM)
            fill_checksum(frame, len, header->checksum_start, header->checksum_offset);
        left.flags = 0;
        left.checksum_start = left.checksum_offset = 0;
    }
    emit(ctx, &left, frame, len);
}
