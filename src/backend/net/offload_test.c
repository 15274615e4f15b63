/*
 * offload_test.c - checksums and segments made in software, and headers that make no sense
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backend/net/offload.h"
#include "base/bits.h"

static uint16_t be16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

/* The plainest way to sum up: for comparison. */
static uint32_t plain_sum(const uint8_t *p, size_t size, uint32_t sum)
{
    for (size_t i = 0; i < size; i++)
        sum += i % 2 == 0 ? (uint32_t)p[i] << 8 : p[i];
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

struct seen {
    unsigned count;
    size_t payload, len;
    uint32_t sequence;
    unsigned takes;
    bool is_ipv6, is_udp;
    uint8_t bytes[NETDEV_FRAME_MAX];
    struct netdev_header header;
};

/* Every segment has to be a good packet by itself. */
static void check_segment(struct seen *s, const struct netdev_header *h, uint8_t *frame, size_t len)
{
    struct netdev_packet p;

    assert_true(netdev_packet_parse(frame, len, &p));
    assert_int_equal(p.end, len);
    const uint8_t *ip = frame + p.network, *t = frame + p.transport;
    if (!p.is_ipv6)
        assert_int_equal(plain_sum(ip, p.transport - p.network, 0), 0xffff);
    uint32_t pseudo = plain_sum(p.is_ipv6 ? ip + 8 : ip + 12, p.is_ipv6 ? 32 : 8,
                                p.protocol + (uint32_t)(len - p.transport));
    if (h->flags & NETDEV_NEEDS_CHECKSUM)
        assert_int_equal(be16(t + h->checksum_offset), pseudo);
    else
        assert_int_equal(plain_sum(t, len - p.transport, pseudo), 0xffff);
    if (p.protocol == NETDEV_PROTOCOL_UDP)
        assert_int_equal(be16(t + 4), len - p.transport);
    memcpy(s->bytes + s->payload, frame + p.payload, len - p.payload);
    if (p.protocol == NETDEV_PROTOCOL_TCP)
        assert_int_equal((uint32_t)be16(t + 4) << 16 | be16(t + 6),
                         (uint32_t)(s->sequence + s->payload));
    s->payload += len - p.payload;
}

static void on_segment(void *ctx, const struct netdev_header *h, uint8_t *frame, size_t len)
{
    struct seen *s = ctx;

    s->header = *h;
    s->len = len;
    s->count++;
    check_segment(s, h, frame, len);
}

static void on_any(void *ctx, const struct netdev_header *h, uint8_t *frame, size_t len)
{
    struct seen *s = ctx;

    s->header = *h;
    s->len = len;
    s->count++;
}

#define PAYLOAD 5000u

/* A large packet as a driver leaves it: its length, and its header in *h. */
static size_t make(uint8_t *frame, bool is_ipv6, bool is_udp, struct netdev_header *h)
{
    unsigned network = 14, transport = network + (is_ipv6 ? 40 : 20);
    unsigned payload = transport + (is_udp ? 8 : 32);
    uint8_t *ip = frame + network, *t = frame + transport;
    size_t len = payload + PAYLOAD;
    struct netdev_packet p;

    memset(frame, 0, len);
    frame[12] = is_ipv6 ? 0x86 : 0x08;
    frame[13] = is_ipv6 ? 0xdd : 0x00;
    uint16_t size = (uint16_t)(len - network - (is_ipv6 ? 40 : 0));
    ip[is_ipv6 ? 4 : 2] = (uint8_t)(size >> 8);
    ip[is_ipv6 ? 5 : 3] = (uint8_t)size;
    ip[0] = is_ipv6 ? 0x60 : 0x45;
    ip[is_ipv6 ? 6 : 9] = is_udp ? NETDEV_PROTOCOL_UDP : NETDEV_PROTOCOL_TCP;
    for (unsigned i = 0; i < (is_ipv6 ? 32u : 8u); i++)
        ip[(is_ipv6 ? 8 : 12) + i] = (uint8_t)(i * 37 + 11);
    if (!is_ipv6)
        store_le16(ip + 10, (uint16_t)~netdev_sum(ip, 20, 0));
    store_le64(t, UINT64_C(0x30fffffff0005000)); /* the sequence number wraps soon */
    if (!is_udp) {
        store_le64(t + 4, 0);
        memcpy(t + 4, "\xff\xff\xf0\x00", 4);
        t[12] = 8 << 4;
        t[13] = 0x99; /* CWR, ACK, PSH, FIN */
    }
    for (unsigned i = 0; i < PAYLOAD; i++)
        frame[payload + i] = (uint8_t)(i * i >> 3);
    p = (struct netdev_packet){.network = network,
                               .transport = transport,
                               .protocol = ip[is_ipv6 ? 6 : 9],
                               .is_ipv6 = is_ipv6};
    store_le16(t + (is_udp ? 6 : 16), netdev_pseudo_sum(frame, &p, len - transport));
    *h = (struct netdev_header){
        .flags = NETDEV_NEEDS_CHECKSUM,
        .gso_type = is_udp    ? NETDEV_GSO_UDP
                    : is_ipv6 ? NETDEV_GSO_TCP6
                              : NETDEV_GSO_TCP4,
        .gso_size = 1400,
        .checksum_start = (uint16_t)transport,
        .checksum_offset = is_udp ? 6 : 16,
    };
    return len;
}

static uint8_t frame[NETDEV_FRAME_MAX], room[NETDEV_FRAME_MAX];
static struct seen seen;

static void sums(void **state)
{
    uint8_t bytes[67];
    for (unsigned i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(255 - i % 7);
    for (size_t n = 0; n <= sizeof(bytes); n++) {
        uint16_t sum = netdev_sum(bytes, n, 0);
        assert_int_equal((sum & 0xff) << 8 | sum >> 8, plain_sum(bytes, n, 0));
    }
}

static void segments_are_packets(void **state)
{
    for (unsigned kind = 0; kind < 8; kind++) {
        bool is_ipv6 = kind & 1, is_udp = kind & 2;
        unsigned takes = kind & 4 ? NETDEV_TAKES_CHECKSUM : 0;
        struct netdev_header h;
        size_t len = make(frame, is_ipv6, is_udp, &h);
        unsigned payload = (unsigned)len - PAYLOAD;
        seen = (struct seen){.sequence = 0xfffff000};
        netdev_finish(&h, frame, len, takes, room, on_segment, &seen);
        assert_int_equal(seen.count, 4); /* 1400, 1400, 1400, 800 */
        assert_int_equal(seen.payload, PAYLOAD);
        assert_memory_equal(seen.bytes, frame + payload, PAYLOAD);
        assert_int_equal(seen.header.gso_type, NETDEV_GSO_NONE);
        assert_int_equal((seen.header.flags & NETDEV_NEEDS_CHECKSUM) != 0, takes != 0);
    }
}

struct flags {
    uint8_t of[8];
    unsigned count;
};

static void on_flags(void *ctx, const struct netdev_header *h, uint8_t *segment, size_t len)
{
    struct flags *f = ctx;
    f->of[f->count++] = segment[14 + 20 + 13];
}

/* What ends the stream stands in the last, what was reduced is said in the first. */
static void flags_of_segments(void **state)
{
    struct flags f = {0};
    struct netdev_header h;
    size_t len = make(frame, false, false, &h);
    netdev_finish(&h, frame, len, 0, room, on_flags, &f);
    assert_int_equal(f.count, 4);
    assert_int_equal(f.of[0], 0x90);
    assert_int_equal(f.of[1], 0x10);
    assert_int_equal(f.of[3], 0x19);
}

static void what_is_taken_is_left(void **state)
{
    struct netdev_header h, plain = {.flags = NETDEV_DATA_VALID};
    size_t len = make(frame, false, false, &h);
    seen = (struct seen){0};
    netdev_finish(&h, frame, len, NETDEV_TAKES_CHECKSUM | NETDEV_TAKES_TCP4, room, on_any, &seen);
    assert_int_equal(seen.count, 1);
    assert_memory_equal(&seen.header, &h, sizeof(h));
    h.gso_type |= NETDEV_GSO_ECN;
    netdev_finish(&h, frame, len, NETDEV_TAKES_CHECKSUM | NETDEV_TAKES_TCP4, room, on_any, &seen);
    assert_int_equal(seen.count, 5); /* ECN was not said to be taken */
    h.gso_type = NETDEV_GSO_TCP4;
    seen = (struct seen){.sequence = 0xfffff000};
    netdev_finish(&h, frame, len, NETDEV_TAKES_TCP4, room, on_segment, &seen);
    assert_int_equal(seen.count, 1); /* whole, and summed up */
    assert_int_equal(seen.header.gso_type, NETDEV_GSO_TCP4);
    seen = (struct seen){0};
    netdev_finish(&plain, frame, len, NETDEV_TAKES_CHECKSUM, room, on_any, &seen);
    assert_int_equal(seen.header.flags, NETDEV_DATA_VALID);
    netdev_finish(&plain, frame, len, 0, room, on_any, &seen);
    assert_int_equal(seen.header.flags, 0);
}

static void assert_lost(const struct netdev_header *h, size_t len)
{
    seen = (struct seen){0};
    assert_false(netdev_header_is_good(h, frame, len));
    netdev_finish(h, frame, len, 0, room, on_any, &seen);
    netdev_finish(h, frame, len, ~0u, room, on_any, &seen);
    assert_int_equal(seen.count, 0);
}

static void senseless_headers(void **state)
{
    struct netdev_header good, h;
    size_t len = make(frame, false, false, &good);
    assert_true(netdev_header_is_good(&good, frame, len));
#define LOST(change)                                                                               \
    do {                                                                                           \
        h = good;                                                                                  \
        change;                                                                                    \
        assert_lost(&h, len);                                                                      \
    } while (0)
    LOST(h.checksum_start = 0xffff);
    LOST(h.checksum_offset = 0xffff);
    LOST(h.checksum_start = (uint16_t)(len - 1));
    LOST(h.checksum_start = 0);
    LOST(h.checksum_start += 2);
    LOST(h.checksum_offset = 6);
    LOST(h.gso_size = 0);
    LOST(h.gso_size = 1); /* 5000 segments */
    LOST(h.flags = 0);
    LOST(h.gso_type = NETDEV_GSO_TCP6);
    LOST(h.gso_type = NETDEV_GSO_UDP_FRAGMENTS);
    LOST(h.gso_type = 0x7f);
    LOST(h.gso_type = NETDEV_GSO_ECN);
    LOST(frame[14 + 20 + 12] = 0xf0; h.checksum_start = 14; frame[14] = 0x40);
    len = make(frame, false, false, &good);
    for (size_t n = 0; n < 14 + 20 + 32; n++) /* cut off within the headers */
        assert_lost(&good, n);
    frame[14 + 20 + 12] = 0; /* a TCP header of no size */
    assert_lost(&good, len);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums),
        cmocka_unit_test(segments_are_packets),
        cmocka_unit_test(flags_of_segments),
        cmocka_unit_test(what_is_taken_is_left),
        cmocka_unit_test(senseless_headers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
