/*
 * tap.c - a tap interface of the host
 *
 * Frames pass with virtio's header, so that checksums and segments are left to who does them best.
 * doppel does no set-up beyond the interface itself and runs no scripts: addresses, routes and
 * bridges are root's, before or after.
 *
 * An interface with several queues is opened once for each. Offloads and the size of the header are
 * the interface's, so it does no harm that each queue sets them.
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
    bool is_one_of_many; /* queues of the interface */
    bool is_attached;    /* the host sends frames here; under the client's lock */
    bool is_gone;        /* the interface was deleted */
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

static void tap_use(struct netdev *net, bool is_used)
{
    struct tap *t = tap_of(net);
    struct ifreq ifr = {.ifr_flags = is_used ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE};

    if (!t->is_one_of_many || t->is_attached == is_used)
        return;
    if (ioctl(t->fd, TUNSETQUEUE, &ifr) == 0)
        t->is_attached = is_used;
    else if (!t->is_gone)
        log_warn("%s a queue of the interface %s: %s", is_used ? "attach" : "detach", t->name,
                 strerror(errno));
}

static void tap_close(struct netdev *net)
{
    struct tap *t = tap_of(net);

    if (t->fd >= 0)
        close(t->fd);
    free(t);
}

static const struct netdev_ops tap_ops = {
    .serve = tap_serve,
    .send = tap_send,
    .accept = tap_accept,
    .use = tap_use,
    .close = tap_close,
};

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

/* 0 with t->name, or -errno. */
static int tap_claim(struct tap *t, const char *name, int flags)
{
    struct ifreq ifr = {.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | flags)};

    if (name != NULL)
        strcpy(ifr.ifr_name, name);
    if (ioctl(t->fd, TUNSETIFF, &ifr) != 0)
        return -errno;
    strcpy(t->name, ifr.ifr_name);
    return 0;
}

static int tap_attach(struct tap *t, const char *name, struct err *e)
{
    int header = sizeof(struct netdev_header);
    int rc = tap_claim(t, name, t->is_one_of_many ? IFF_MULTI_QUEUE : 0);

    /* whether it was made for several queues has to be said right; for one, both kinds will do */
    if (rc == -EINVAL && !t->is_one_of_many)
        rc = tap_claim(t, name, IFF_MULTI_QUEUE);
    else if (rc == -EINVAL && tap_claim(t, name, 0) == 0)
        return err_set(e, EINVAL,
                       "use several queues of the interface %s, which was made for one; as root, "
                       "'ip tuntap add dev NAME mode tap multi_queue user USER' makes one for "
                       "several, or leave queues= out",
                       name);
    if (rc != 0)
        return tap_refused(name, -rc, e);
    t->is_attached = true;
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

static int tap_open_device(struct tap *t, const char *name, struct err *e)
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
    return tap_attach(t, name, e);
}

static int tap_set_interface(struct tap *t, unsigned mtu, struct err *e)
{
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (control < 0)
        return err_set(e, errno, "make a socket");
    int rc = tap_set_mtu(t, control, mtu, e);
    if (rc == 0)
        rc = tap_set_up(t, control, e);
    close(control);
    return rc;
}

/* One queue of the interface. */
static int tap_open_queue(const char *name, bool is_one_of_many, struct tap **out, struct err *e)
{
    struct tap *t = calloc(1, sizeof(*t));

    if (t == NULL)
        return err_set(e, ENOMEM, "make a network interface on a tap interface");
    t->fd = -1;
    t->is_one_of_many = is_one_of_many;
    int rc = netdev_init(&t->net, &tap_ops, e);
    if (rc != 0) {
        free(t);
        return rc;
    }
    rc = tap_open_device(t, name, e);
    if (rc != 0) {
        netdev_close(&t->net);
        return rc;
    }
    t->net.takes = NETDEV_TAKES_CHECKSUM | NETDEV_TAKES_TCP4 | NETDEV_TAKES_TCP6 | NETDEV_TAKES_ECN;
    if (t->has_uso)
        t->net.takes |= NETDEV_TAKES_UDP;
    *out = t;
    return 0;
}

int netdev_tap_open(const char *name, unsigned mtu, unsigned count, struct netdev **out,
                    struct err *e)
{
    struct tap *taps[NETDEV_QUEUES_MAX];
    unsigned opened = 0;
    int rc = 0;

    if (name != NULL && (strlen(name) >= IFNAMSIZ || strpbrk(name, "/%: \t\n") != NULL))
        return err_set(e, 0,
                       "'%s' is no name for an interface: at most %d characters, and no /, %%",
                       name, IFNAMSIZ - 1);
    while (rc == 0 && opened < count) {
        rc = tap_open_queue(opened == 0 ? name : taps[0]->name, count > 1, &taps[opened], e);
        opened += rc == 0;
    }
    if (rc == 0)
        rc = tap_set_interface(taps[0], mtu, e);
    for (unsigned i = 0; i < opened; i++)
        if (rc == 0) {
            taps[i]->net.mtu = taps[0]->net.mtu;
            out[i] = &taps[i]->net;
        } else {
            netdev_close(&taps[i]->net);
        }
    if (rc == 0)
        log_info("the network is on the tap interface %s", taps[0]->name);
    return rc;
}
