/*
 * tap.c - a tap interface of the host
 *
 * Frames pass with virtio's header, so that checksums and segments are left to who does them best.
 * doppel does no set-up beyond the interface itself and runs no scripts: addresses, routes and
 * bridges are root's, before or after.
 *
 * Spec: Linux, Documentation/networking/tuntap.rst; include/uapi/linux/if_tun.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "backend/net/netdev_impl.h"
#include "base/bits.h"
#include "base/log.h"

/* Linux 6.2; older headers have no names for them, and older kernels say EINVAL. */
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

#define RECEIVE_BUDGET 64

struct tap {
    struct netdev net; /* first */
    int fd;
    bool has_uso;
    bool is_gone; /* the interface was deleted */
    char name[IFNAMSIZ];
    uint8_t frame[NETDEV_FRAME_MAX];
};

static struct tap *tap_of(struct netdev *net)
{
    return CONTAINER_OF(net, struct tap, net);
}

/* ---- frames ---- */

static void tap_receive(struct tap *t)
{
    for (unsigned i = 0; i < RECEIVE_BUDGET; i++) {
        struct netdev_header header;
        struct iovec parts[2] = {{&header, sizeof(header)}, {t->frame, sizeof(t->frame)}};
        ssize_t n = readv(t->fd, parts, ARRAY_SIZE(parts));
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n < 0) {
            log_warn("the interface %s is gone: %s; the network stays away until the machine is "
                     "started again",
                     t->name, strerror(errno));
            t->is_gone = true;
            return;
        }
        if ((size_t)n > sizeof(header))
            netdev_deliver(&t->net, &header, t->frame, (size_t)n - sizeof(header));
    }
}

static void tap_serve(struct netdev *net)
{
    struct tap *t = tap_of(net);
    /* what the guest has no room for waits in the interface's queue, which has bounds */
    bool has_room = net->backlog_count < NETDEV_BACKLOG / 2;
    struct pollfd fds[2] = {{.fd = net->event_fd, .events = POLLIN},
                            {.fd = has_room && !t->is_gone ? t->fd : -1, .events = POLLIN}};

    if (poll(fds, ARRAY_SIZE(fds), -1) > 0 && fds[1].revents != 0)
        tap_receive(t);
}

/* An interface that is down takes nothing: as on a wire that is unplugged, the frame is lost. */
static void tap_send(struct netdev *net, const struct netdev_header *header, uint8_t *frame,
                     size_t len)
{
    struct iovec parts[2] = {{(void *)(uintptr_t)header, sizeof(*header)}, {frame, len}};

    while (writev(tap_of(net)->fd, parts, ARRAY_SIZE(parts)) < 0)
        if (errno != EINTR) {
            net->dropped++;
            return;
        }
}

static void tap_accept(struct netdev *net, unsigned takes)
{
    const struct tap *t = tap_of(net);
    unsigned offload = 0;

    if (takes & NETDEV_TAKES_CHECKSUM) {
        offload = TUN_F_CSUM;
        if (takes & NETDEV_TAKES_TCP4)
            offload |= TUN_F_TSO4;
        if (takes & NETDEV_TAKES_TCP6)
            offload |= TUN_F_TSO6;
        if ((takes & NETDEV_TAKES_ECN) && (offload & (TUN_F_TSO4 | TUN_F_TSO6)))
            offload |= TUN_F_TSO_ECN;
        if ((takes & NETDEV_TAKES_UDP) && t->has_uso)
            offload |= TUN_F_USO4 | TUN_F_USO6;
    }
    if (ioctl(t->fd, TUNSETOFFLOAD, (unsigned long)offload) != 0)
        log_warn("offloads of the interface %s: %s", t->name, strerror(errno));
}

static void tap_close(struct netdev *net)
{
    struct tap *t = tap_of(net);

    if (t->fd >= 0)
        close(t->fd);
    free(t);
}

static const struct netdev_ops tap_ops = {
    .serve = tap_serve, .send = tap_send, .accept = tap_accept, .close = tap_close};

/* ---- set-up ---- */

static int tap_refused(const char *name, int code, struct err *e)
{
    const char *called = name != NULL ? name : "of a new name";

    switch (code) {
    case EPERM:
        return err_set(e, code,
                       "use a tap interface %s; as root, 'ip tuntap add dev tap0 mode tap user "
                       "NAME' makes one that a user may use with --net tap,ifname=tap0",
                       called);
    case EBUSY:
        return err_set(e, code,
                       "use the tap interface %s, which another program does; end that, or give "
                       "each machine an interface of its own",
                       called);
    case EINVAL:
        return err_set(
            e, code,
            "use the interface %s, which is no tap interface; as root, 'ip tuntap add dev "
            "tap0 mode tap' makes one",
            called);
    default:
        return err_set(e, code, "use a tap interface %s", called);
    }
}

static int tap_attach(struct tap *t, const char *name, struct err *e)
{
    struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    int header = sizeof(struct netdev_header);

    if (name != NULL)
        strcpy(ifr.ifr_name, name);
    int rc = ioctl(t->fd, TUNSETIFF, &ifr);
    if (rc != 0 && errno == EINVAL) {
        /* one that was made for several queues wants to be asked so; it works with one */
        ifr.ifr_flags |= IFF_MULTI_QUEUE;
        rc = ioctl(t->fd, TUNSETIFF, &ifr);
    }
    if (rc != 0)
        return tap_refused(name, errno, e);
    strcpy(t->name, ifr.ifr_name);
    if (ioctl(t->fd, TUNSETVNETHDRSZ, &header) != 0)
        return err_set(e, errno, "set up the tap interface %s", t->name);
    t->has_uso =
        ioctl(t->fd, TUNSETOFFLOAD, (unsigned long)(TUN_F_CSUM | TUN_F_USO4 | TUN_F_USO6)) == 0;
    if (ioctl(t->fd, TUNSETOFFLOAD, 0ul) != 0)
        return err_set(e, errno, "set up the tap interface %s", t->name);
    return 0;
}

/* The interface's MTU is the guest's, unless one is asked for. */
static int tap_set_mtu(struct tap *t, int control, unsigned mtu, struct err *e)
{
    struct ifreq ifr = {0};

    strcpy(ifr.ifr_name, t->name);
    if (mtu == 0) {
        if (ioctl(control, SIOCGIFMTU, &ifr) != 0)
            return err_set(e, errno, "ask for the MTU of the interface %s", t->name);
        t->net.mtu = MAX(MIN((unsigned)ifr.ifr_mtu, NETDEV_MTU_MAX), NETDEV_MTU_MIN);
        return 0;
    }
    ifr.ifr_mtu = (int)mtu;
    if (ioctl(control, SIOCSIFMTU, &ifr) != 0)
        return err_set(e, errno, "set the MTU of the interface %s to %u", t->name, mtu);
    t->net.mtu = mtu;
    return 0;
}

/* Up it has to be; where we may not do that, somebody else has done it or will. */
static int tap_set_up(struct tap *t, int control, struct err *e)
{
    struct ifreq ifr = {0};

    strcpy(ifr.ifr_name, t->name);
    if (ioctl(control, SIOCGIFFLAGS, &ifr) != 0)
        return err_set(e, errno, "look at the interface %s", t->name);
    if (ifr.ifr_flags & IFF_UP)
        return 0;
    ifr.ifr_flags |= IFF_UP;
    if (ioctl(control, SIOCSIFFLAGS, &ifr) == 0)
        return 0;
    if (errno != EPERM)
        return err_set(e, errno, "bring up the interface %s", t->name);
    log_warn("the interface %s is down; as root: ip link set %s up", t->name, t->name);
    return 0;
}

static int tap_open_device(struct tap *t, const char *name, unsigned mtu, struct err *e)
{
    t->fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (t->fd < 0 && (errno == ENOENT || errno == ENODEV || errno == ENXIO))
        return err_set(e, errno, "open '/dev/net/tun'; as root, 'modprobe tun' may help");
    if (t->fd < 0 && errno == EACCES)
        return err_set(e, errno,
                       "open '/dev/net/tun'; as root, 'chmod a+rw /dev/net/tun' makes it what "
                       "it is elsewhere");
    if (t->fd < 0)
        return err_set(e, errno, "open '/dev/net/tun'");
    int rc = tap_attach(t, name, e);
    if (rc != 0)
        return rc;
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (control < 0)
        return err_set(e, errno, "make a socket");
    rc = tap_set_mtu(t, control, mtu, e);
    if (rc == 0)
        rc = tap_set_up(t, control, e);
    close(control);
    return rc;
}

int netdev_tap_open(const char *name, unsigned mtu, struct netdev **out, struct err *e)
{
    struct tap *t = calloc(1, sizeof(*t));

    if (t == NULL)
        return err_set(e, ENOMEM, "make a network interface on a tap interface");
    t->fd = -1;
    int rc = 0;
    if (name != NULL && (strlen(name) >= IFNAMSIZ || strpbrk(name, "/%: \t\n") != NULL))
        rc = err_set(e, 0, "'%s' is no name for an interface: at most %d characters, and no /, %%",
                     name, IFNAMSIZ - 1);
    if (rc == 0)
        rc = netdev_init(&t->net, &tap_ops, e);
    if (rc != 0) {
        free(t);
        return rc;
    }
    rc = tap_open_device(t, name, mtu, e);
    if (rc != 0) {
        netdev_close(&t->net);
        return rc;
    }
    t->net.takes = NETDEV_TAKES_CHECKSUM | NETDEV_TAKES_TCP4 | NETDEV_TAKES_TCP6 | NETDEV_TAKES_ECN;
    if (t->has_uso)
        t->net.takes |= NETDEV_TAKES_UDP;
    log_info("the network is on the tap interface %s", t->name);
    *out = &t->net;
    return 0;
}
