/*
 * tap_test.c - a tap interface, in a network namespace of the test's own
 *
 * The other end is the host's own stack: it answers ARP, and leaves checksums undone only when that
 * was agreed to. Skipped where no namespace or no tap interface can be had.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "backend/net/netdev.h"
#include "base/bits.h"

#define LIMIT_S 20
#define FRAME_MAX 2048

/* The guest's side: frames to send, and the latest frame of each kind that came. */
struct station {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    uint8_t out[FRAME_MAX], arp[FRAME_MAX], udp[FRAME_MAX];
    size_t out_len, arp_len, udp_len;
    struct netdev_header udp_header;
};

static const uint8_t mac[6] = {0x52, 1, 2, 3, 4, 5};
#define HOST_ADDR "10.7.0.1"
#define GUEST_ADDR "10.7.0.2"

static size_t station_pull(void *ctx, struct netdev_header *header, uint8_t frame[NETDEV_FRAME_MAX])
{
    struct station *st = ctx;
    pthread_mutex_lock(&st->lock);
    size_t len = st->out_len;
    memcpy(frame, st->out, len);
    st->out_len = 0;
    pthread_mutex_unlock(&st->lock);
    *header = (struct netdev_header){0};
    return len;
}

static bool station_push(void *ctx, const struct netdev_header *header, const uint8_t *frame,
                         size_t len)
{
    struct station *st = ctx;
    pthread_mutex_lock(&st->lock);
    if (len <= FRAME_MAX && len >= 42 && frame[12] == 8 && frame[13] == 6) {
        memcpy(st->arp, frame, len);
        st->arp_len = len;
    } else if (len <= FRAME_MAX && len >= 42 && frame[12] == 8 && frame[13] == 0 &&
               frame[23] == IPPROTO_UDP) {
        memcpy(st->udp, frame, len);
        st->udp_len = len;
        st->udp_header = *header;
    }
    pthread_cond_signal(&st->cond);
    pthread_mutex_unlock(&st->lock);
    return true;
}

static const struct netdev_client station_client = {station_pull, station_push};

/* Wait until *len is not 0. */
static void await(struct station *st, const size_t *len)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += LIMIT_S;
    pthread_mutex_lock(&st->lock);
    int rc = 0;
    while (*len == 0 && rc == 0)
        rc = pthread_cond_timedwait(&st->cond, &st->lock, &until);
    pthread_mutex_unlock(&st->lock);
    assert_int_equal(rc, 0);
}

/* Who has the host's address? */
static void ask_arp(struct station *st, struct netdev *net)
{
    static const uint8_t head[22] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 1, 2, 3, 4,
                                     5,    8,    6,    0,    1,    8,    0,    6, 4, 0, 1};
    pthread_mutex_lock(&st->lock);
    memset(st->out, 0, 60);
    memcpy(st->out, head, sizeof(head));
    memcpy(st->out + 22, mac, 6);
    inet_pton(AF_INET, GUEST_ADDR, st->out + 28);
    inet_pton(AF_INET, HOST_ADDR, st->out + 38);
    st->out_len = 60;
    pthread_mutex_unlock(&st->lock);
    netdev_wake(net);
    await(st, &st->arp_len);
}

static void set_address(const char *name)
{
    struct ifreq ifr = {0};
    struct sockaddr_in addr = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    strcpy(ifr.ifr_name, name);
    inet_pton(AF_INET, HOST_ADDR, &addr.sin_addr);
    memcpy(&ifr.ifr_addr, &addr, sizeof(addr));
    assert_int_equal(ioctl(fd, SIOCSIFADDR, &ifr), 0);
    inet_pton(AF_INET, "255.255.255.0", &addr.sin_addr);
    memcpy(&ifr.ifr_netmask, &addr, sizeof(addr));
    assert_int_equal(ioctl(fd, SIOCSIFNETMASK, &ifr), 0);
    close(fd);
}

/* The host sends a datagram; returns the sum over pseudo header and datagram, 0xffff when right. */
static unsigned receive_udp(struct station *st)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9)};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    inet_pton(AF_INET, GUEST_ADDR, &to.sin_addr);
    pthread_mutex_lock(&st->lock);
    st->udp_len = 0;
    pthread_mutex_unlock(&st->lock);
    assert_int_equal(sendto(fd, "payload!", 8, 0, (struct sockaddr *)&to, sizeof(to)), 8);
    await(st, &st->udp_len);
    close(fd);
    pthread_mutex_lock(&st->lock);
    uint32_t sum = IPPROTO_UDP + 16;
    for (unsigned i = 26; i < 34 + 16; i += 2) /* addresses, then the datagram */
        sum += (uint32_t)st->udp[i] << 8 | st->udp[i + 1];
    pthread_mutex_unlock(&st->lock);
    sum = (sum & 0xffff) + (sum >> 16);
    return (sum & 0xffff) + (sum >> 16);
}

/* A namespace of our own: as root, or as root of a user namespace. */
static bool has_namespace(void)
{
    return unshare(CLONE_NEWNET) == 0 || unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0;
}

static void test_traffic(void **state)
{
    static struct station st = {.lock = PTHREAD_MUTEX_INITIALIZER,
                                .cond = PTHREAD_COND_INITIALIZER};
    struct netdev *net, *other;
    struct err e;
    if (!has_namespace() || netdev_tap_open("vm0", 0, 1, &net, &e) != 0)
        skip();
    assert_int_equal(netdev_mtu(net), 1500);
    assert_int_equal(netdev_tap_open("vm0", 0, 1, &other, &e), -EBUSY);
    assert_non_null(strstr(e.msg, "vm0"));
    assert_int_equal(netdev_tap_open("lo", 0, 1, &other, &e), -EINVAL);
    set_address("vm0");
    assert_int_equal(netdev_start(net, &station_client, &st, &e), 0);
    ask_arp(&st, net);
    assert_memory_equal(st.arp, mac, 6);
    assert_int_equal(st.arp[21], 2); /* an answer */
    /* nothing is left undone that was not agreed to */
    assert_int_equal(receive_udp(&st), 0xffff);
    assert_int_equal(st.udp_header.flags & NETDEV_NEEDS_CHECKSUM, 0);
    netdev_accept(net, NETDEV_TAKES_CHECKSUM | NETDEV_TAKES_TCP4 | NETDEV_TAKES_ECN);
    unsigned sum = receive_udp(&st);
    assert_true(st.udp_header.flags & NETDEV_NEEDS_CHECKSUM);
    assert_int_equal(st.udp_header.checksum_start, 34);
    assert_int_not_equal(sum, 0xffff);
    netdev_close(net);
    /* gone with who made it; and made with another MTU */
    assert_int_equal(if_nametoindex("vm0"), 0);
    assert_int_equal(netdev_tap_open(NULL, 9000, 1, &net, &e), 0);
    assert_int_equal(netdev_mtu(net), 9000);
    netdev_close(net);
}

/* A datagram of the guest's, so that the host knows by which queue the flow comes. */
static void send_udp(struct station *st, struct netdev *net, uint16_t port)
{
    static const uint8_t head[] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 1,
                                   2,    3,    4,    5,    8,    0,    0x45, 0,
                                   0,    29,   0,    0,    0,    0,    64,   IPPROTO_UDP};
    uint32_t sum = 0;

    pthread_mutex_lock(&st->lock);
    memset(st->out, 0, 60);
    memcpy(st->out, head, sizeof(head));
    inet_pton(AF_INET, GUEST_ADDR, st->out + 26);
    inet_pton(AF_INET, HOST_ADDR, st->out + 30);
    for (unsigned i = 14; i < 34; i += 2)
        sum += (uint32_t)st->out[i] << 8 | st->out[i + 1];
    sum = ~((sum & 0xffff) + (sum >> 16));
    st->out[24] = (uint8_t)(sum >> 8);
    st->out[25] = (uint8_t)sum;
    st->out[34] = (uint8_t)(port >> 8);
    st->out[35] = (uint8_t)port;
    st->out[37] = 7;
    st->out[39] = 9; /* no checksum */
    st->out_len = 60;
    pthread_mutex_unlock(&st->lock);
    netdev_wake(net);
}

/* Two queues: a flow comes back where it came from, until its queue is not used any more. */
static void test_queues(void **state)
{
    static struct station st[2] = {
        {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER},
        {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER}};
    struct netdev *nets[2], *other;
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(7)}, from;
    socklen_t size = sizeof(from);
    uint8_t byte;
    struct err e;
    if (!has_namespace() || netdev_tap_open("vm1", 1400, 2, nets, &e) != 0)
        skip();
    assert_int_equal(netdev_mtu(nets[1]), 1400);
    set_address("vm1");
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct timeval limit = {.tv_sec = LIMIT_S};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    inet_pton(AF_INET, HOST_ADDR, &here.sin_addr);
    assert_int_equal(bind(fd, (struct sockaddr *)&here, sizeof(here)), 0);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(netdev_start(nets[i], &station_client, &st[i], &e), 0);
    ask_arp(&st[0], nets[0]); /* the host knows us from now on */
    for (unsigned round = 0; round < 8; round++) {
        unsigned queue = round & 1;
        send_udp(&st[queue], nets[queue], (uint16_t)(2000 + round));
        assert_int_equal(recvfrom(fd, &byte, 1, 0, (struct sockaddr *)&from, &size), 1);
        st[0].udp_len = st[1].udp_len = 0;
        assert_int_equal(sendto(fd, &byte, 1, 0, (struct sockaddr *)&from, size), 1);
        await(&st[queue], &st[queue].udp_len);
        assert_int_equal(st[!queue].udp_len, 0);
    }
    netdev_use(nets[1], false);
    st[0].udp_len = 0;
    assert_int_equal(sendto(fd, &byte, 1, 0, (struct sockaddr *)&from, size), 1);
    await(&st[0], &st[0].udp_len);
    netdev_use(nets[1], true);
    netdev_use(nets[1], true);
    send_udp(&st[1], nets[1], 3000);
    assert_int_equal(recvfrom(fd, &byte, 1, 0, (struct sockaddr *)&from, &size), 1);
    st[1].udp_len = 0;
    assert_int_equal(sendto(fd, &byte, 1, 0, (struct sockaddr *)&from, size), 1);
    await(&st[1], &st[1].udp_len);
    close(fd);
    netdev_close(nets[0]);
    netdev_close(nets[1]);
    assert_int_equal(if_nametoindex("vm1"), 0);

    /* one that was made for one queue, and is not used */
    struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI, .ifr_name = "vm2"};
    fd = open("/dev/net/tun", O_RDWR);
    assert_int_equal(ioctl(fd, TUNSETIFF, &ifr), 0);
    assert_int_equal(ioctl(fd, TUNSETPERSIST, 1), 0);
    close(fd);
    assert_int_equal(netdev_tap_open("vm2", 0, 2, nets, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "multi_queue"));
    assert_int_equal(netdev_tap_open("lo", 0, 2, nets, &e), -EINVAL);
    assert_null(strstr(e.msg, "multi_queue"));
    assert_int_equal(netdev_tap_open("vm2", 0, 1, &other, &e), 0);
    netdev_close(other);
}

static void test_names(void **state)
{
    static const char *const bad[] = {"a-name-that-is-too-long", "a/b", "tap%d"};
    struct netdev *net;
    struct err e;
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_int_equal(netdev_tap_open(bad[i], 0, 1, &net, &e), -EINVAL);
        assert_non_null(strstr(e.msg, bad[i]));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_traffic),
        cmocka_unit_test(test_queues),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
