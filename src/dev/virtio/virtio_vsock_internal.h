/*
 * virtio_vsock_internal.h - connections, for the virtio_vsock*.c
 *
 * Invariant: all of it is used on the loop's thread, with the device's lock held; what other
 * threads want is noted under the lock and posted to the loop.
 */
#ifndef DOPPEL_DEV_VIRTIO_VIRTIO_VSOCK_INTERNAL_H
#define DOPPEL_DEV_VIRTIO_VIRTIO_VSOCK_INTERNAL_H

#include <stdatomic.h>

#include "dev/virtio/virtio.h"
#include "dev/virtio/virtio_vsock.h"
#include "os/loop.h"

#define VSOCK_QUEUE_SIZE 128
enum { VSOCK_QUEUE_RX, VSOCK_QUEUE_TX, VSOCK_QUEUE_EVENT, VSOCK_QUEUE_COUNT };

#define VSOCK_CID_HOST 2u
#define VSOCK_TYPE_STREAM 1u

/* Operations (5.10.6). */
enum {
    VSOCK_OP_REQUEST = 1,
    VSOCK_OP_RESPONSE = 2,
    VSOCK_OP_RST = 3,
    VSOCK_OP_SHUTDOWN = 4,
    VSOCK_OP_RW = 5,
    VSOCK_OP_CREDIT_UPDATE = 6,
    VSOCK_OP_CREDIT_REQUEST = 7,
};
#define VSOCK_SHUTDOWN_RECEIVE 1u
#define VSOCK_SHUTDOWN_SEND 2u
#define VSOCK_SHUTDOWN_BOTH 3u

#define VSOCK_HEADER_SIZE 44u

/* Events (5.10.6.7): a number. */
#define VSOCK_EVENT_SIZE 4u
#define VSOCK_EVENT_TRANSPORT_RESET 0u

struct vsock_header {
    uint64_t src_cid, dst_cid;
    uint32_t src_port, dst_port, len;
    uint16_t type, op;
    uint32_t flags, buf_alloc, fwd_cnt;
};

#define VSOCK_CONNECTIONS_MAX 1024u
#define VSOCK_BUCKETS 256u
/* What the guest may send before the host's side has taken it: bytes of each connection. */
#define VSOCK_BUFFER_SIZE 65536u
#define VSOCK_LINE_MAX 32u
/* Resets of what is no connection, that wait for a buffer. */
#define VSOCK_RESETS_MAX 64u

enum vsock_state {
    VSOCK_GREETING,  /* a program of the host has not said yet which port it wants */
    VSOCK_REQUESTED, /* the guest was asked */
    VSOCK_OPEN,
    VSOCK_CLOSED, /* there is no socket any more; the guest has to hear of it */
};

struct vsock_connection {
    struct virtio_vsock *vsock;
    struct vsock_connection *next;                   /* in its bucket */
    struct vsock_connection *list_next, **list_prev; /* among all */
    enum vsock_state state;
    uint32_t guest_port, host_port;
    int fd; /* -1: closed */
    struct loop_fd *watch;
    unsigned events;  /* what is watched */
    uint8_t due;      /* bits by VSOCK_OP_*: packets for the guest, sent in the order of enum */
    bool is_read;     /* the program sends no more */
    bool is_starved;  /* it may have sent something; there was no buffer, or no credit, for it */
    uint8_t shutdown; /* VSOCK_SHUTDOWN_*: what the guest has ended */
    uint8_t told;     /* VSOCK_SHUTDOWN_*: what it was told that we ended */

    uint32_t peer_buf_alloc, peer_fwd_cnt; /* the guest's */
    uint32_t sent;                         /* bytes to the guest */
    uint32_t fwd_cnt, told_fwd_cnt;        /* bytes that the program took; the guest knows of */
    uint8_t *ring;                         /* from the guest, for the program; NULL: not open */
    uint32_t ring_first, ring_count;
    char line[VSOCK_LINE_MAX];
    unsigned line_len;
};

struct virtio_vsock {
    struct virtio_device dev;
    struct loop *loop;
    const char *path;
    uint32_t cid;
    int listen_fd;
    struct loop_fd *listen_watch;
    int bell_fd; /* written to instead of a notification of RX or TX */
    struct loop_fd *bell_watch;
    _Atomic uint64_t rung;

    /* under dev.lock; what is not said to be any thread's, on the loop's only */
    bool is_posted;    /* any thread: serve runs soon */
    bool is_reset_due; /* any thread: connections are those of an earlier driver */
    bool is_event_due; /* any thread: the driver has to hear that its connections are gone */
    struct vsock_connection *buckets[VSOCK_BUCKETS];
    struct vsock_connection *all;
    unsigned count;
    uint32_t next_port;
    struct vsock_header resets[VSOCK_RESETS_MAX];
    unsigned reset_count;
    struct virtqueue_buffer buffers[VSOCK_QUEUE_SIZE];
    uint8_t bytes[VSOCK_BUFFER_SIZE];
};

/* ---- virtio_vsock_host.c: the host's sockets ---- */

int vsock_listen(struct virtio_vsock *v, struct err *e);
/* A connection with a socket of its own; NULL when there are too many. Takes the descriptor. */
struct vsock_connection *vsock_add(struct virtio_vsock *v, int fd, enum vsock_state state);
/* Once its ports are known. False: there is no memory for what it sends. */
bool vsock_bind(struct vsock_connection *c, uint32_t guest_port, uint32_t host_port);
struct vsock_connection *vsock_find(struct virtio_vsock *v, uint32_t guest_port,
                                    uint32_t host_port);
/* The socket is closed; the connection stays. */
void vsock_hang_up(struct vsock_connection *c);
void vsock_remove(struct vsock_connection *c);
void vsock_remove_all(struct virtio_vsock *v);
/* Watch for what the connection can go on with. */
void vsock_watch(struct vsock_connection *c);
/* Give the program what came for it. False: it is gone. */
bool vsock_flush(struct vsock_connection *c);
/* The guest wants port `port` of the host: a descriptor, or -1. */
int vsock_connect_host(struct virtio_vsock *v, uint32_t port);

/* ---- virtio_vsock.c: packets ---- */

/* The socket may have something to read: bring it to the guest. */
void vsock_pull(struct vsock_connection *c);
/* Send what is due to the guest, as far as there are buffers. */
void vsock_send_due(struct virtio_vsock *v);
/* Nothing of the host is behind the connection any more. */
void vsock_lost(struct vsock_connection *c);
/* The guest ended the connection in both directions, or the program did. */
void vsock_settle(struct vsock_connection *c);
/* Whoever comes from the loop: the lock, and connections of an earlier driver are no more. */
void vsock_enter(struct virtio_vsock *v);
void vsock_leave(struct virtio_vsock *v);

#endif
