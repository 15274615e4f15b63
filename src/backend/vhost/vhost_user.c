/*
 * vhost_user.c - the front end of vhost-user
 *
 * Spec: QEMU, "Vhost-user Protocol" (docs/interop/vhost-user.rst).
 */
#include "backend/vhost/vhost_user.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/clock.h"

enum request {
    GET_FEATURES = 1,
    SET_FEATURES = 2,
    SET_OWNER = 3,
    SET_MEM_TABLE = 5,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9,
    SET_VRING_BASE = 10,
    GET_VRING_BASE = 11,
    SET_VRING_KICK = 12,
    SET_VRING_CALL = 13,
    GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16,
    GET_QUEUE_NUM = 17,
    SET_VRING_ENABLE = 18,
    NET_SET_MTU = 20,
    SET_BACKEND_REQ_FD = 21,
    GET_CONFIG = 24,
};

/* What the back end sends on its own channel. */
#define MESSAGE_CONFIG_CHANGED 2u

#define FLAG_VERSION 1u
#define FLAG_VERSION_MASK 3u
#define FLAG_REPLY 4u
#define FLAG_NEED_REPLY 8u

#define F_PROTOCOL_FEATURES BIT(30)
#define PROTOCOL_MQ BIT(0)
#define PROTOCOL_REPLY_ACK BIT(3)
#define PROTOCOL_NET_MTU BIT(4)
#define PROTOCOL_BACKEND_REQ BIT(5)
#define PROTOCOL_CONFIG BIT(9)
#define PROTOCOL_WANTED                                                                            \
    (PROTOCOL_MQ | PROTOCOL_REPLY_ACK | PROTOCOL_NET_MTU | PROTOCOL_BACKEND_REQ | PROTOCOL_CONFIG)

struct header {
    uint32_t request, flags, size;
};

struct region {
    uint64_t guest_addr, size, user_addr, fd_offset;
};

struct vring_addr {
    uint32_t index, flags;
    uint64_t descriptors, used, avail, log;
};

struct config {
    uint32_t offset, size, flags;
    uint8_t bytes[VHOST_USER_CONFIG_MAX];
};

union payload {
    uint64_t number;
    uint32_t state[2]; /* ring, value */
    struct vring_addr vring;
    struct {
        uint32_t count, padding;
        struct region regions[VHOST_USER_REGIONS_MAX];
    } memory;
    struct config config;
};

_Static_assert(sizeof(struct header) == 12, "a header is three words");
_Static_assert(sizeof(struct vring_addr) == 40, "as the protocol has it");

struct message {
    struct header header;
    union payload payload;
} __attribute__((packed));

struct vhost_user {
    int fd, message_fd;
    const char *path;
    uint64_t features, protocol;
    unsigned queues_max;
};

/* ---- bytes ---- */

static int broken(const struct vhost_user *u, const char *what, struct err *e)
{
    err_set(e, 0, "the vhost-user back end at '%s' %s", u->path, what);
    return -EPROTO;
}

static int wait_for(const struct vhost_user *u, int fd, short events, uint64_t deadline_ns,
                    struct err *e)
{
    for (;;) {
        uint64_t now = clock_now_ns();
        struct pollfd p = {.fd = fd, .events = events};
        if (now >= deadline_ns) {
            err_set(e, 0, "the vhost-user back end at '%s' did not answer for %u s", u->path,
                    VHOST_USER_TIMEOUT_MS / 1000);
            return -ETIMEDOUT;
        }
        int n = poll(&p, 1, (int)((deadline_ns - now) / 1000000 + 1));
        if (n > 0)
            return 0;
        if (n < 0 && errno != EINTR)
            return err_set(e, errno, "wait for the vhost-user back end at '%s'", u->path);
    }
}

static uint64_t deadline(void)
{
    return clock_now_ns() + VHOST_USER_TIMEOUT_MS * UINT64_C(1000000);
}

/* Descriptors go with the first byte. */
static int send_bytes(const struct vhost_user *u, const void *bytes, size_t size, const int *fds,
                      unsigned fd_count, struct err *e)
{
    uint64_t until = deadline();
    union {
        struct cmsghdr align;
        uint8_t bytes[CMSG_SPACE(VHOST_USER_REGIONS_MAX * sizeof(int))];
    } control = {0};

    for (size_t done = 0; done < size;) {
        struct iovec iov = {(uint8_t *)bytes + done, size - done};
        struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
        if (done == 0 && fd_count != 0) {
            m.msg_control = control.bytes;
            m.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
            struct cmsghdr *c = CMSG_FIRSTHDR(&m);
            c->cmsg_level = SOL_SOCKET;
            c->cmsg_type = SCM_RIGHTS;
            c->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
            memcpy(CMSG_DATA(c), fds, fd_count * sizeof(int));
        }
        ssize_t n = sendmsg(u->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0) {
            done += (size_t)n;
        } else if (errno == EAGAIN) {
            int rc = wait_for(u, u->fd, POLLOUT, until, e);
            if (rc != 0)
                return rc;
        } else if (errno != EINTR) {
            return err_set(e, errno, "send to the vhost-user back end at '%s'", u->path);
        }
    }
    return 0;
}

/* Descriptors that come along are not wanted. */
static void close_descriptors(struct msghdr *m)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c != NULL; c = CMSG_NXTHDR(m, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t at = 0; at + sizeof(int) <= c->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + at, sizeof(fd));
            close(fd);
        }
    }
}

static int receive_bytes(const struct vhost_user *u, int fd, void *bytes, size_t size,
                         uint64_t until, struct err *e)
{
    union {
        struct cmsghdr align;
        uint8_t bytes[CMSG_SPACE(VHOST_USER_REGIONS_MAX * sizeof(int))];
    } control;

    for (size_t done = 0; done < size;) {
        struct iovec iov = {(uint8_t *)bytes + done, size - done};
        struct msghdr m = {.msg_iov = &iov,
                           .msg_iovlen = 1,
                           .msg_control = control.bytes,
                           .msg_controllen = sizeof(control.bytes)};
        ssize_t n = recvmsg(fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n > 0) {
            close_descriptors(&m);
            done += (size_t)n;
        } else if (n == 0) {
            broken(u, "closed the connection", e);
            return -EPIPE;
        } else if (errno == EAGAIN) {
            int rc = wait_for(u, fd, POLLIN, until, e);
            if (rc != 0)
                return rc;
        } else if (errno != EINTR) {
            return err_set(e, errno, "receive from the vhost-user back end at '%s'", u->path);
        }
    }
    return 0;
}

/* A header and what it announces; more than a payload's worth is refused. */
static int receive(const struct vhost_user *u, int fd, struct message *m, struct err *e)
{
    uint64_t until = deadline();
    int rc = receive_bytes(u, fd, &m->header, sizeof(m->header), until, e);

    if (rc != 0)
        return rc;
    if ((m->header.flags & FLAG_VERSION_MASK) != FLAG_VERSION)
        return broken(u, "speaks another version of the protocol", e);
    if (m->header.size > sizeof(m->payload))
        return broken(u, "sends a message that is too long", e);
    memset(&m->payload, 0, sizeof(m->payload));
    return receive_bytes(u, fd, &m->payload, m->header.size, until, e);
}

/* ---- requests ---- */

/* Send, and take the answer into *m. */
static int ask(struct vhost_user *u, struct message *m, enum request request, uint32_t size,
               struct err *e)
{
    m->header = (struct header){.request = request, .flags = FLAG_VERSION, .size = size};
    int rc = send_bytes(u, m, sizeof(m->header) + size, NULL, 0, e);
    if (rc == 0)
        rc = receive(u, u->fd, m, e);
    if (rc != 0)
        return rc;
    if (m->header.request != (uint32_t)request || !(m->header.flags & FLAG_REPLY))
        return broken(u, "answers what it was not asked", e);
    return 0;
}

static int ask_number(struct vhost_user *u, enum request request, uint64_t *out, struct err *e)
{
    struct message m;
    int rc = ask(u, &m, request, 0, e);

    if (rc == 0 && m.header.size != sizeof(m.payload.number))
        rc = broken(u, "gives an answer of the wrong size", e);
    if (rc == 0)
        *out = m.payload.number;
    return rc;
}

/* Send, and if that was agreed upon wait for the word that it was done. */
static int tell(struct vhost_user *u, struct message *m, enum request request, uint32_t size,
                const int *fds, unsigned fd_count, struct err *e)
{
    bool is_acknowledged = (u->protocol & PROTOCOL_REPLY_ACK) != 0;

    m->header = (struct header){.request = request,
                                .flags = FLAG_VERSION | (is_acknowledged ? FLAG_NEED_REPLY : 0),
                                .size = size};
    int rc = send_bytes(u, m, sizeof(m->header) + size, fds, fd_count, e);
    if (rc != 0 || !is_acknowledged)
        return rc;
    rc = receive(u, u->fd, m, e);
    if (rc != 0)
        return rc;
    if (m->header.request != (uint32_t)request || !(m->header.flags & FLAG_REPLY) ||
        m->header.size != sizeof(m->payload.number))
        return broken(u, "answers what it was not asked", e);
    if (m->payload.number != 0) {
        err_set(e, 0, "the vhost-user back end at '%s' refuses request %d", u->path, (int)request);
        return -EPROTO;
    }
    return 0;
}

static int tell_number(struct vhost_user *u, enum request request, uint64_t number, struct err *e)
{
    struct message m = {.payload = {.number = number}};

    return tell(u, &m, request, sizeof(number), NULL, 0, e);
}

static int tell_ring(struct vhost_user *u, enum request request, uint32_t index, uint32_t value,
                     struct err *e)
{
    struct message m = {.payload = {.state = {index, value}}};

    return tell(u, &m, request, sizeof(m.payload.state), NULL, 0, e);
}

/* ---- opening ---- */

/* A channel for what the back end has to say unasked. */
static int give_message_channel(struct vhost_user *u, struct err *e)
{
    struct message m = {0};
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
        return err_set(e, errno, "make a socket for the vhost-user back end at '%s'", u->path);
    u->message_fd = fds[0];
    int rc = tell(u, &m, SET_BACKEND_REQ_FD, 0, &fds[1], 1, e);
    close(fds[1]);
    return rc;
}

static int agree(struct vhost_user *u, struct err *e)
{
    uint64_t protocol = 0, queues = 0;
    int rc = ask_number(u, GET_FEATURES, &u->features, e);

    if (rc == 0 && (u->features & F_PROTOCOL_FEATURES)) {
        rc = ask_number(u, GET_PROTOCOL_FEATURES, &protocol, e);
        if (rc == 0)
            rc = tell_number(u, SET_PROTOCOL_FEATURES, protocol & PROTOCOL_WANTED, e);
        if (rc == 0)
            u->protocol = protocol & PROTOCOL_WANTED;
    }
    if (rc == 0) {
        struct message m = {0};
        rc = tell(u, &m, SET_OWNER, 0, NULL, 0, e);
    }
    if (rc == 0 && (u->protocol & PROTOCOL_MQ))
        rc = ask_number(u, GET_QUEUE_NUM, &queues, e);
    u->queues_max = u->protocol & PROTOCOL_MQ ? (unsigned)MIN(queues, (uint64_t)1024) : 2;
    if (rc == 0 && (u->protocol & PROTOCOL_BACKEND_REQ))
        rc = give_message_channel(u, e);
    return rc;
}

int vhost_user_open_fd(int fd, const char *path, struct vhost_user **out, struct err *e)
{
    struct vhost_user *u = calloc(1, sizeof(*u));

    if (u == NULL) {
        close(fd);
        return err_set(e, ENOMEM, "connect to the vhost-user back end at '%s'", path);
    }
    u->fd = fd;
    u->message_fd = -1;
    u->path = path;
    int rc = agree(u, e);
    if (rc != 0) {
        vhost_user_close(u);
        return rc;
    }
    *out = u;
    return 0;
}

int vhost_user_open(const char *path, struct vhost_user **out, struct err *e)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(addr.sun_path))
        return err_set(e, ENAMETOOLONG, "connect to the vhost-user back end at '%s'", path);
    strcpy(addr.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_set(e, errno, "make a socket");
    if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) != 0) {
        int code = errno;
        close(fd);
        return err_set(e, code,
                       "connect to the vhost-user back end at '%s', which has to be there first",
                       path);
    }
    return vhost_user_open_fd(fd, path, out, e);
}

void vhost_user_close(struct vhost_user *u)
{
    if (u == NULL)
        return;
    close(u->fd);
    if (u->message_fd >= 0)
        close(u->message_fd);
    free(u);
}

/* ---- the device ---- */

uint64_t vhost_user_features(const struct vhost_user *u)
{
    return u->features & ~F_PROTOCOL_FEATURES;
}

unsigned vhost_user_queues_max(const struct vhost_user *u)
{
    return u->queues_max;
}

int vhost_user_fd(const struct vhost_user *u)
{
    return u->fd;
}

int vhost_user_message_fd(const struct vhost_user *u)
{
    return u->message_fd;
}

int vhost_user_set_features(struct vhost_user *u, uint64_t features, struct err *e)
{
    return tell_number(u, SET_FEATURES, features | (u->features & F_PROTOCOL_FEATURES), e);
}

int vhost_user_set_memory(struct vhost_user *u, const struct vhost_user_region *regions,
                          unsigned count, struct err *e)
{
    struct message m = {.payload = {.memory = {.count = count}}};
    int fds[VHOST_USER_REGIONS_MAX];

    if (count == 0 || count > VHOST_USER_REGIONS_MAX)
        return err_set(e, 0, "%u pieces of memory are more than a vhost-user back end takes",
                       count);
    for (unsigned i = 0; i < count; i++) {
        m.payload.memory.regions[i] = (struct region){.guest_addr = regions[i].guest_addr,
                                                      .size = regions[i].size,
                                                      .user_addr = (uintptr_t)regions[i].host,
                                                      .fd_offset = regions[i].fd_offset};
        fds[i] = regions[i].fd;
    }
    return tell(u, &m, SET_MEM_TABLE, (uint32_t)(8 + count * sizeof(struct region)), fds, count, e);
}

int vhost_user_get_config(struct vhost_user *u, uint8_t *config, uint32_t size, struct err *e)
{
    const uint32_t head = offsetof(struct config, bytes);
    struct message m = {.payload = {.config = {.size = size}}};

    if (!(u->protocol & PROTOCOL_CONFIG)) {
        err_set(e, 0, "the vhost-user back end at '%s' tells no configuration", u->path);
        return -EOPNOTSUPP;
    }
    int rc = ask(u, &m, GET_CONFIG, head + size, e);
    if (rc != 0)
        return rc;
    if (m.header.size != head + size || m.payload.config.size != size)
        return broken(u, "does not tell its configuration", e);
    memcpy(config, m.payload.config.bytes, size);
    return 0;
}

/* ---- rings ---- */

static int tell_ring_fd(struct vhost_user *u, enum request request, uint32_t index, int fd,
                        struct err *e)
{
    struct message m = {.payload = {.number = index}};

    return tell(u, &m, request, sizeof(m.payload.number), &fd, 1, e);
}

int vhost_user_enable_ring(struct vhost_user *u, uint32_t index, bool is_on, struct err *e)
{
    if (!(u->features & F_PROTOCOL_FEATURES))
        return 0;
    return tell_ring(u, SET_VRING_ENABLE, index, is_on, e);
}

int vhost_user_set_mtu(struct vhost_user *u, uint16_t mtu, struct err *e)
{
    return u->protocol & PROTOCOL_NET_MTU ? tell_number(u, NET_SET_MTU, mtu, e) : 0;
}

int vhost_user_start_ring(struct vhost_user *u, uint32_t index, const struct vhost_user_ring *ring,
                          struct err *e)
{
    struct message m = {.payload = {.vring = {.index = index,
                                              .descriptors = (uintptr_t)ring->descriptors,
                                              .used = (uintptr_t)ring->used,
                                              .avail = (uintptr_t)ring->avail}}};
    int rc = tell_ring(u, SET_VRING_NUM, index, ring->size, e);

    if (rc == 0)
        rc = tell_ring(u, SET_VRING_BASE, index, 0, e);
    if (rc == 0)
        rc = tell(u, &m, SET_VRING_ADDR, sizeof(m.payload.vring), NULL, 0, e);
    if (rc == 0)
        rc = tell_ring_fd(u, SET_VRING_CALL, index, ring->call_fd, e);
    if (rc == 0)
        rc = tell_ring_fd(u, SET_VRING_KICK, index, ring->kick_fd, e);
    /* with the protocol features rings are made disabled, without them enabled */
    if (rc == 0 && !ring->waits)
        rc = vhost_user_enable_ring(u, index, true, e);
    return rc;
}

int vhost_user_stop_ring(struct vhost_user *u, uint32_t index, struct err *e)
{
    struct message m = {.payload = {.state = {index, 0}}};
    int rc = ask(u, &m, GET_VRING_BASE, sizeof(m.payload.state), e);

    if (rc == 0 && (m.header.size != sizeof(m.payload.state) || m.payload.state[0] != index))
        rc = broken(u, "gives an answer of the wrong size", e);
    return rc;
}

int vhost_user_take_message(struct vhost_user *u, struct err *e)
{
    struct message m;
    int rc = receive(u, u->message_fd, &m, e);

    if (rc != 0)
        return rc;
    uint32_t request = m.header.request;
    if (m.header.flags & FLAG_NEED_REPLY) {
        m.header = (struct header){.request = request,
                                   .flags = FLAG_VERSION | FLAG_REPLY,
                                   .size = sizeof(m.payload.number)};
        m.payload.number = request != MESSAGE_CONFIG_CHANGED;
        /* one message is nothing to a socket's buffer: what does not fit is not waited for */
        if (send(u->message_fd, &m, sizeof(m.header) + m.header.size, MSG_NOSIGNAL | MSG_DONTWAIT) <
            0)
            return err_set(e, errno, "answer the vhost-user back end at '%s'", u->path);
    }
    return request == MESSAGE_CONFIG_CHANGED;
}
