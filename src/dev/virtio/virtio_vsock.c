/*
 * virtio_vsock.c - sockets between guest and host: packets, credit, the device
 *
 * The guest's packets are checked field by field; what belongs to no connection, or breaks the
 * rules of one, is answered with a reset. A packet for the guest is a bit in the connection's
 * `due` until there is a buffer for it; while resets of no connection wait, no more packets are
 * taken.
 *
 * Spec: VIRTIO 1.2, 5.10.
 */
#include "dev/virtio/virtio_vsock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "dev/virtio/virtio_state.h"
#include "dev/virtio/virtio_vsock_internal.h"
#include "os/event.h"

#define VSOCK_F_STREAM BIT(0)
#define CONFIG_SIZE 8
/* Packets that are served before other work of the loop has its turn. */
#define PACKETS_BUDGET 256u
#define PULL_BUDGET 16u

/* ---- packets for the guest ---- */

static void put_header(const struct vsock_header *h, uint8_t bytes[VSOCK_HEADER_SIZE])
{
    store_le64(bytes, h->src_cid);
    store_le64(bytes + 8, h->dst_cid);
    store_le32(bytes + 16, h->src_port);
    store_le32(bytes + 20, h->dst_port);
    store_le32(bytes + 24, h->len);
    store_le16(bytes + 28, h->type);
    store_le16(bytes + 30, h->op);
    store_le32(bytes + 32, h->flags);
    store_le32(bytes + 36, h->buf_alloc);
    store_le32(bytes + 40, h->fwd_cnt);
}

static void get_header(const uint8_t bytes[VSOCK_HEADER_SIZE], struct vsock_header *h)
{
    h->src_cid = load_le64(bytes);
    h->dst_cid = load_le64(bytes + 8);
    h->src_port = load_le32(bytes + 16);
    h->dst_port = load_le32(bytes + 20);
    h->len = load_le32(bytes + 24);
    h->type = load_le16(bytes + 28);
    h->op = load_le16(bytes + 30);
    h->flags = load_le32(bytes + 32);
    h->buf_alloc = load_le32(bytes + 36);
    h->fwd_cnt = load_le32(bytes + 40);
}

/* A buffer for a packet; one that holds no header breaks the rules (5.10.6). */
static bool pop_rx(struct virtio_vsock *v, struct virtqueue_chain *chain)
{
    chain->buffers = v->buffers;
    if (!virtio_pop(&v->dev, VSOCK_QUEUE_RX, chain))
        return false;
    if (chain->in_size > VSOCK_HEADER_SIZE)
        return true;
    virtio_needs_reset(&v->dev, "a receive buffer has no room for a packet");
    return false;
}

static void push_rx(struct virtio_vsock *v, const struct virtqueue_chain *chain,
                    const struct vsock_header *h)
{
    uint8_t bytes[VSOCK_HEADER_SIZE];

    put_header(h, bytes);
    virtqueue_write(chain, 0, bytes, VSOCK_HEADER_SIZE);
    virtqueue_push(&v->dev.queues[VSOCK_QUEUE_RX], chain, VSOCK_HEADER_SIZE + h->len);
}

static struct vsock_header header_of(struct vsock_connection *c, unsigned op, uint32_t len)
{
    c->told_fwd_cnt = c->fwd_cnt;
    return (struct vsock_header){
        .src_cid = VSOCK_CID_HOST,
        .dst_cid = c->vsock->cid,
        .src_port = c->host_port,
        .dst_port = c->guest_port,
        .len = len,
        .type = VSOCK_TYPE_STREAM,
        .op = (uint16_t)op,
        .flags = op == VSOCK_OP_SHUTDOWN ? c->told : 0,
        .buf_alloc = VSOCK_BUFFER_SIZE,
        .fwd_cnt = c->fwd_cnt,
    };
}

/* A reset is the last that the guest hears of a connection. */
static void send_due_of(struct vsock_connection *c)
{
    struct virtqueue_chain chain;

    if (c->due & 1u << VSOCK_OP_RST)
        c->due = 1u << VSOCK_OP_RST;
    while (c->due != 0 && pop_rx(c->vsock, &chain)) {
        unsigned op = (unsigned)__builtin_ctz(c->due);
        struct vsock_header h = header_of(c, op, 0);
        c->due &= (uint8_t)(c->due - 1);
        push_rx(c->vsock, &chain, &h);
        if (op == VSOCK_OP_RST) {
            vsock_remove(c);
            return;
        }
    }
}

void vsock_send_due(struct virtio_vsock *v)
{
    struct virtqueue_chain chain;

    while (v->reset_count != 0 && pop_rx(v, &chain))
        push_rx(v, &chain, &v->resets[--v->reset_count]);
    for (struct vsock_connection *c = v->all, *next; c != NULL; c = next) {
        next = c->list_next;
        if (c->due != 0)
            send_due_of(c);
    }
    virtio_signal_queue(&v->dev, VSOCK_QUEUE_RX);
}

/* ---- connections ---- */

void vsock_lost(struct vsock_connection *c)
{
    vsock_hang_up(c);
    c->state = VSOCK_CLOSED;
    c->ring_count = 0;
    c->due |= 1u << VSOCK_OP_RST;
}

/* How much the guest has room for. A guest that takes back what it promised has none. */
static uint32_t credit_of(const struct vsock_connection *c)
{
    uint32_t under_way = c->sent - c->peer_fwd_cnt;

    return under_way < c->peer_buf_alloc ? c->peer_buf_alloc - under_way : 0;
}

/* One packet of data. True: there may be more. */
static bool pull_one(struct vsock_connection *c)
{
    struct virtio_vsock *v = c->vsock;
    struct virtqueue_chain chain;
    uint32_t room = credit_of(c);

    c->is_starved = room == 0 || !pop_rx(v, &chain);
    if (c->is_starved)
        return false;
    room = (uint32_t)MIN(MIN((uint64_t)room, chain.in_size - VSOCK_HEADER_SIZE),
                         (uint64_t)sizeof(v->bytes));
    ssize_t n = recv(c->fd, v->bytes, room, MSG_DONTWAIT);
    int code = errno;
    if (n <= 0) {
        virtqueue_unpop(&v->dev.queues[VSOCK_QUEUE_RX], &chain);
        if (n == 0) {
            c->is_read = true;
            c->told |= VSOCK_SHUTDOWN_SEND;
            c->due |= 1u << VSOCK_OP_SHUTDOWN;
        } else if (code != EAGAIN && code != EINTR) {
            vsock_lost(c);
        }
        return false;
    }
    struct vsock_header h = header_of(c, VSOCK_OP_RW, (uint32_t)n);
    virtqueue_write(&chain, VSOCK_HEADER_SIZE, v->bytes, (size_t)n);
    push_rx(v, &chain, &h);
    c->sent += (uint32_t)n;
    return true;
}

void vsock_pull(struct vsock_connection *c)
{
    /* data comes behind what opens the connection */
    if (c->state != VSOCK_OPEN || c->is_read || c->due != 0)
        return;
    for (unsigned i = 0; i < PULL_BUDGET && pull_one(c); i++)
        ;
}

void vsock_settle(struct vsock_connection *c)
{
    if (c->state == VSOCK_OPEN && c->ring_count == 0) {
        if (c->shutdown == VSOCK_SHUTDOWN_BOTH) {
            vsock_lost(c); /* the guest waits for a reset (5.10.6.5) */
            return;
        }
        if (c->shutdown & VSOCK_SHUTDOWN_SEND)
            shutdown(c->fd, SHUT_WR);
    }
    if (c->state == VSOCK_OPEN && c->fwd_cnt - c->told_fwd_cnt >= VSOCK_BUFFER_SIZE / 4)
        c->due |= 1u << VSOCK_OP_CREDIT_UPDATE;
    vsock_watch(c);
}

/* ---- packets from the guest ---- */

static void reset_unknown(struct virtio_vsock *v, const struct vsock_header *h)
{
    if (h->op == VSOCK_OP_RST)
        return; /* or two sides could go on for ever */
    v->resets[v->reset_count++] = (struct vsock_header){
        .src_cid = h->dst_cid,
        .dst_cid = h->src_cid,
        .src_port = h->dst_port,
        .dst_port = h->src_port,
        .type = h->type,
        .op = VSOCK_OP_RST,
    };
}

static void open_from_guest(struct virtio_vsock *v, const struct vsock_header *h)
{
    struct vsock_connection *c = NULL;
    int fd = vsock_connect_host(v, h->dst_port);

    if (fd >= 0)
        c = vsock_add(v, fd, VSOCK_OPEN);
    if (c != NULL && !vsock_bind(c, h->src_port, h->dst_port)) {
        vsock_remove(c);
        c = NULL;
    }
    if (c == NULL) {
        reset_unknown(v, h);
        return;
    }
    c->peer_buf_alloc = h->buf_alloc;
    c->peer_fwd_cnt = h->fwd_cnt;
    c->due |= 1u << VSOCK_OP_RESPONSE;
}

/* The program hears that the guest took its connection. */
static void answer_greeting(struct vsock_connection *c)
{
    char line[VSOCK_LINE_MAX];
    int len = snprintf(line, sizeof(line), "OK %u\n", c->host_port);

    /* the socket is empty as yet */
    if (send(c->fd, line, (size_t)len, MSG_DONTWAIT | MSG_NOSIGNAL) != len)
        vsock_lost(c);
    else
        c->state = VSOCK_OPEN;
}

/* Data, up to what the guest was told that there is room for. */
static void take_data(struct vsock_connection *c, const struct virtqueue_chain *chain, uint32_t len)
{
    struct virtio_vsock *v = c->vsock;

    if (len > VSOCK_BUFFER_SIZE - c->ring_count || (c->shutdown & VSOCK_SHUTDOWN_SEND)) {
        vsock_lost(c);
        return;
    }
    uint32_t at = (c->ring_first + c->ring_count) % VSOCK_BUFFER_SIZE;
    uint32_t head = MIN(len, VSOCK_BUFFER_SIZE - at);
    virtqueue_read(chain, VSOCK_HEADER_SIZE, c->ring + at, head);
    virtqueue_read(chain, VSOCK_HEADER_SIZE + head, c->ring, len - head);
    c->ring_count += len;
    if (!vsock_flush(c))
        vsock_lost(c);
    (void)v;
}

static void take_known(struct vsock_connection *c, const struct vsock_header *h,
                       const struct virtqueue_chain *chain)
{
    c->peer_buf_alloc = h->buf_alloc;
    c->peer_fwd_cnt = h->fwd_cnt;
    if (h->op == VSOCK_OP_RST) {
        vsock_flush(c); /* what the program has not got by now is lost */
        vsock_remove(c);
        return;
    }
    if (c->state == VSOCK_REQUESTED && h->op == VSOCK_OP_RESPONSE) {
        answer_greeting(c);
    } else if (c->state == VSOCK_OPEN && h->op == VSOCK_OP_RW) {
        take_data(c, chain, h->len);
    } else if (c->state == VSOCK_OPEN && h->op == VSOCK_OP_SHUTDOWN) {
        c->shutdown |= h->flags & VSOCK_SHUTDOWN_BOTH;
    } else if (c->state == VSOCK_OPEN && h->op == VSOCK_OP_CREDIT_REQUEST) {
        c->due |= 1u << VSOCK_OP_CREDIT_UPDATE;
    } else if (c->state != VSOCK_CLOSED && h->op != VSOCK_OP_CREDIT_UPDATE) {
        vsock_lost(c);
    }
    vsock_settle(c);
    if (c->is_starved && c->state == VSOCK_OPEN && credit_of(c) != 0) {
        vsock_pull(c);
        vsock_settle(c);
    }
}

static void take_packet(struct virtio_vsock *v, const struct virtqueue_chain *chain)
{
    uint8_t bytes[VSOCK_HEADER_SIZE];
    struct vsock_header h;

    if (virtqueue_read(chain, 0, bytes, VSOCK_HEADER_SIZE) != VSOCK_HEADER_SIZE)
        return; /* nobody could be answered */
    get_header(bytes, &h);
    /* an answer would go to the wrong place (5.10.6.2) */
    if (h.src_cid != v->cid)
        return;
    bool is_good = h.dst_cid == VSOCK_CID_HOST && h.type == VSOCK_TYPE_STREAM &&
                   h.len <= chain->out_size - VSOCK_HEADER_SIZE;
    struct vsock_connection *c = is_good ? vsock_find(v, h.src_port, h.dst_port) : NULL;
    if (c != NULL)
        take_known(c, &h, chain);
    else if (is_good && h.op == VSOCK_OP_REQUEST)
        open_from_guest(v, &h);
    else
        reset_unknown(v, &h);
}

/* ---- the loop's turn ---- */

static void serve(void *ctx);

static void post(struct virtio_vsock *v)
{
    if (v->is_posted)
        return;
    v->is_posted = true;
    loop_post(v->loop, serve, v);
}

void vsock_enter(struct virtio_vsock *v)
{
    virtio_lock(&v->dev);
    if (v->is_reset_due)
        vsock_remove_all(v);
    v->is_reset_due = false;
}

void vsock_leave(struct virtio_vsock *v)
{
    vsock_send_due(v);
    virtio_unlock(&v->dev);
}

/* Connections that waited for buffers. */
static void feed_starved(struct virtio_vsock *v)
{
    for (struct vsock_connection *c = v->all; c != NULL; c = c->list_next)
        if (c->is_starved && c->due == 0) {
            vsock_pull(c);
            vsock_settle(c);
        }
}

static void serve(void *ctx)
{
    struct virtio_vsock *v = ctx;
    struct virtqueue_chain chain = {.buffers = v->buffers};
    unsigned count = 0;

    vsock_enter(v);
    v->is_posted = false;
    vsock_send_due(v);
    /* answers take v->buffers over: a chain is given back before they are sent */
    while (count < PACKETS_BUDGET && v->reset_count < VSOCK_RESETS_MAX &&
           virtio_pop(&v->dev, VSOCK_QUEUE_TX, &chain)) {
        uint16_t id = chain.id, descriptors = chain.descriptor_count;
        unsigned in_count = chain.in_count;
        take_packet(v, &chain);
        /* nothing was written, so its buffers are not looked at */
        struct virtqueue_chain done = {
            .buffers = v->buffers, .id = id, .descriptor_count = descriptors, .in_count = in_count};
        virtqueue_push(&v->dev.queues[VSOCK_QUEUE_TX], &done, 0);
        count++;
    }
    virtio_signal_queue(&v->dev, VSOCK_QUEUE_TX);
    vsock_send_due(v);
    feed_starved(v);
    if (count == PACKETS_BUDGET)
        post(v);
    vsock_leave(v);
}

/* ---- the device; under the lock ---- */

/* Once there is a buffer for it: the driver ends its connections, and reads its CID anew. */
static void send_event(struct virtio_vsock *v)
{
    struct virtqueue_chain chain = {.buffers = v->buffers};
    uint8_t event[VSOCK_EVENT_SIZE];

    if (!v->is_event_due || !virtio_pop(&v->dev, VSOCK_QUEUE_EVENT, &chain))
        return;
    store_le32(event, VSOCK_EVENT_TRANSPORT_RESET);
    if (virtqueue_write(&chain, 0, event, sizeof(event)) != sizeof(event)) {
        virtio_needs_reset(&v->dev, "an event buffer has no room for an event");
        return;
    }
    v->is_event_due = false;
    virtqueue_push(&v->dev.queues[VSOCK_QUEUE_EVENT], &chain, sizeof(event));
    virtio_signal_queue(&v->dev, VSOCK_QUEUE_EVENT);
}

static void vsock_notify(struct virtio_device *dev, unsigned index)
{
    struct virtio_vsock *v = CONTAINER_OF(dev, struct virtio_vsock, dev);

    if (index == VSOCK_QUEUE_EVENT)
        send_event(v);
    else
        post(v);
}

static int vsock_bell(struct virtio_device *dev, unsigned index)
{
    return index != VSOCK_QUEUE_EVENT ? CONTAINER_OF(dev, struct virtio_vsock, dev)->bell_fd : -1;
}

/* On the loop. */
static void on_bell(void *ctx, unsigned events)
{
    struct virtio_vsock *v = ctx;
    uint64_t count = event_take(v->bell_fd);

    if (count == 0)
        return;
    atomic_fetch_add(&v->rung, count);
    virtio_lock(&v->dev);
    bool is_posted = v->is_posted;
    virtio_unlock(&v->dev);
    if (!is_posted)
        serve(v);
}

static bool vsock_reset(struct virtio_device *dev)
{
    struct virtio_vsock *v = CONTAINER_OF(dev, struct virtio_vsock, dev);

    v->is_reset_due = true;
    v->is_event_due = false;
    post(v);
    return true;
}

static void vsock_get_state(struct virtio_device *dev, struct virtio_state *out)
{
    out->vsock.next_port = CONTAINER_OF(dev, struct virtio_vsock, dev)->next_port;
}

/* What connections there were ended with their sockets. */
static void vsock_set_state(struct virtio_device *dev, const struct virtio_state *state)
{
    struct virtio_vsock *v = CONTAINER_OF(dev, struct virtio_vsock, dev);

    v->next_port = state->vsock.next_port;
    v->is_event_due = (state->status & VIRTIO_STATUS_DRIVER_OK) != 0;
}

static const struct virtio_ops vsock_ops = {
    .notify = vsock_notify,
    .bell = vsock_bell,
    .reset = vsock_reset,
    .get_state = vsock_get_state,
    .set_state = vsock_set_state,
    .state_kind = VIRTIO_STATE_VSOCK,
};

/* ---- set-up ---- */

static int make_bell(struct virtio_vsock *v, struct err *e)
{
    v->bell_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (v->bell_fd < 0)
        return err_set(e, errno, "make an event descriptor for the socket device");
    return loop_fd_add(v->loop, v->bell_fd, LOOP_READ, on_bell, v, &v->bell_watch, e);
}

int virtio_vsock_create(const struct virtio_vsock_config *config, struct virtio_vsock **out,
                        struct err *e)
{
    struct virtio_vsock *v = calloc(1, sizeof(*v));

    if (v == NULL)
        return err_set(e, ENOMEM, "make the socket device");
    v->bell_fd = -1;
    v->loop = config->loop;
    v->path = config->path;
    v->cid = config->cid;
    v->dev.ops = &vsock_ops;
    v->dev.name = "virtio socket device";
    v->dev.id = VIRTIO_ID_VSOCK;
    v->dev.offered = VIRTIO_FEATURES_COMMON | VSOCK_F_STREAM;
    v->dev.queue_count = VSOCK_QUEUE_COUNT;
    v->dev.queue_size = VSOCK_QUEUE_SIZE;
    v->dev.config_size = CONFIG_SIZE;
    v->dev.memory = config->memory;
    virtio_init(&v->dev);
    store_le64(v->dev.config, config->cid);
    memset(v->dev.config_rule, VIRTIO_CONFIG_OF_HOST, CONFIG_SIZE);
    int rc = vsock_listen(v, e);
    if (rc == 0)
        rc = make_bell(v, e);
    if (rc != 0) {
        virtio_vsock_destroy(v);
        return rc;
    }
    *out = v;
    return 0;
}

void virtio_vsock_destroy(struct virtio_vsock *v)
{
    if (v == NULL)
        return;
    vsock_remove_all(v);
    loop_fd_remove(v->listen_watch);
    loop_fd_remove(v->bell_watch);
    if (v->bell_fd >= 0)
        close(v->bell_fd);
    if (v->listen_fd >= 0) {
        unlink(v->path);
        close(v->listen_fd);
    }
    virtio_fini(&v->dev);
    free(v);
}

uint64_t virtio_vsock_rung(const struct virtio_vsock *v)
{
    return atomic_load(&v->rung);
}

struct virtio_device *virtio_vsock_device(struct virtio_vsock *v)
{
    return &v->dev;
}
