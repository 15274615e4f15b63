/*
 * offload.h - what a frame's header leaves to do, done in software
 *
 * Pure functions over bytes; a header or frame that makes no sense loses the frame, as on a wire.
 *
 * Spec: VIRTIO 1.2, 5.1.6; RFC 1071 (checksums), RFC 9293 (TCP), RFC 768 (UDP), RFC 791, RFC 8200.
 */
#ifndef DOPPEL_BACKEND_NET_OFFLOAD_H
#define DOPPEL_BACKEND_NET_OFFLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backend/net/netdev.h"

/* No frame is cut into more segments than this. */
#define NETDEV_SEGMENTS_MAX 2048u

/*
 * Can what the header asks for be done to a frame of `len` bytes? That is, the checksum lies
 * inside, and headers that segments would get are there, of the protocols that gso_type names.
 */
bool netdev_header_is_good(const struct netdev_header *header, const uint8_t *frame, size_t len);

/* The frame belongs to the caller again afterwards; `frame` may be changed meanwhile. */
typedef void (*netdev_emit_fn)(void *ctx, const struct netdev_header *header, uint8_t *frame,
                               size_t len);

/*
 * Give `emit` the frame, or the segments that it is to be cut into, with nothing left undone but
 * what `takes` (NETDEV_TAKES_*) says. `frame` is changed in place; `segment` is room for one.
 * Nothing is emitted when the header is not good.
 */
void netdev_finish(const struct netdev_header *header, uint8_t *frame, size_t len, unsigned takes,
                   uint8_t segment[NETDEV_FRAME_MAX], netdev_emit_fn emit, void *ctx);

/*
 * What an IP packet is, as far as a network backend needs to know. Offsets are in the frame.
 */
struct netdev_packet {
    unsigned network;   /* where the IP header starts */
    unsigned transport; /* where TCP's or UDP's starts */
    unsigned payload;   /* behind all headers; that of TCP: options included */
    unsigned end;       /* of the packet: a frame may be padded */
    uint8_t protocol;   /* NETDEV_PROTOCOL_* or another */
    bool is_ipv6;
};

#define NETDEV_PROTOCOL_TCP 6
#define NETDEV_PROTOCOL_UDP 17

/*
 * Take a frame's headers apart: false when it holds no IP packet that is TCP or UDP, whole (no
 * fragment) and with no IPv6 extension headers.
 */
bool netdev_packet_parse(const uint8_t *frame, size_t len, struct netdev_packet *out);

/* The sum of the pseudo header, not inverted: what NETDEV_NEEDS_CHECKSUM leaves in the place of the
 * sum. */
uint16_t netdev_pseudo_sum(const uint8_t *frame, const struct netdev_packet *packet,
                           size_t transport_size);

/* The Internet checksum's sum of the bytes, folded to 16 bits, not inverted; starts from `sum`. */
uint16_t netdev_sum(const uint8_t *bytes, size_t size, uint32_t sum);

#endif
