/*
 * virtio_console.c - consoles and named ports
 *
 * Invariants: input taken from a character device is in the guest's buffers or in the port's
 * stash, which a reset of the device does not empty. Output that was not taken stays in the
 * driver's queue: its chain is put back, and out_offset says how much of it is done. A message
 * for the driver is a bit in `due` until there is a buffer for it.
 *
 * Spec: VIRTIO 1.2, 5.3.
 */
#include "dev/virtio/virtio_console.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/char/chardev.h"
#include "dev/virtio/virtio.h"
#include "dev/virtio/virtio_state.h"
#include "os/loop.h"

#define QUEUE_SIZE 128
enum { QUEUE_CONTROL_RX = 2, QUEUE_CONTROL_TX = 3 };

#define CONSOLE_F_SIZE BIT(0)
#define CONSOLE_F_MULTIPORT BIT(1)
#define CONSOLE_F_EMERG_WRITE BIT(2)

/* Configuration (5.3.4). */
enum {
    CONFIG_COLUMNS = 0,
    CONFIG_ROWS = 2,
    CONFIG_PORTS = 4,
    CONFIG_EMERGENCY = 8,
    CONFIG_SIZE = 12
};

/* Control messages (5.3.6.2). */
#define MESSAGE_SIZE 8u
enum {
    EVENT_DEVICE_READY = 0,
    EVENT_PORT_ADD = 1,
    EVENT_PORT_READY = 3,
    EVENT_CONSOLE_PORT = 4,
    EVENT_RESIZE = 5,
    EVENT_PORT_OPEN = 6,
    EVENT_PORT_NAME = 7,
};
/* Those that the device sends. */
#define EVENTS_DUE                                                                                 \
    (BIT(EVENT_PORT_ADD) | BIT(EVENT_CONSOLE_PORT) | BIT(EVENT_RESIZE) | BIT(EVENT_PORT_OPEN) |    \
     BIT(EVENT_PORT_NAME))

#define STASH_SIZE ((unsigned)VIRTIO_CONSOLE_STASH_SIZE)
#define COPY_SIZE 4096u
/* Chains of one queue that are served before others have their turn. */
#define CHAINS_BUDGET 256u

struct port {
    struct virtio_console *console;
    unsigned index;
    struct chardev *chardev;
    bool is_console;
    char name[VIRTIO_CONSOLE_NAME_MAX + 1];

    /* under the device's lock */
    bool is_host_open;   /* somebody is at the other end */
    bool is_guest_ready; /* the driver knows the port */
    bool is_guest_open;  /* a program has it open */
    uint8_t due;         /* bits by EVENT_*: messages for the driver, sent in their order */
    uint8_t stash[STASH_SIZE];
    unsigned stash_len;
    uint64_t out_offset; /* of the chain at the head of the transmission queue */
    bool is_blocked;     /* the character device has no room: it calls */
    bool is_posted;      /* more chains are served on the loop */
};

struct virtio_console {
    struct virtio_device dev;
    struct loop *loop;
    struct port ports[VIRTIO_CONSOLE_PORTS_MAX];
    unsigned port_count;
    struct virtqueue_buffer buffers[QUEUE_SIZE]; /* under the lock */
};

static unsigned rx_queue(const struct port *port)
{
    return port->index == 0 ? 0 : 2 * port->index + 2;
}

static unsigned tx_queue(const struct port *port)
{
    return rx_queue(port) + 1;
}

static bool has_control(const struct virtio_console *c)
{
    return virtio_has(&c->dev, CONSOLE_F_MULTIPORT);
}

/* ---- messages for the driver; under the lock ---- */

static size_t make_message(const struct port *port, unsigned event, uint8_t *message)
{
    const uint8_t *config = port->console->dev.config;
    size_t size = MESSAGE_SIZE;

    store_le32(message, port->index);
    store_le16(message + 4, (uint16_t)event);
    store_le16(message + 6, 1);
    switch (event) {
    case EVENT_PORT_OPEN:
        store_le16(message + 6, port->is_host_open);
        break;
    case EVENT_PORT_NAME:
        memcpy(message + size, port->name, strlen(port->name));
        size += strlen(port->name);
        break;
    case EVENT_RESIZE:
        memcpy(message + size, config + CONFIG_COLUMNS, 2);
        memcpy(message + size + 2, config + CONFIG_ROWS, 2);
        size += 4;
        break;
    default:
        break;
    }
    return size;
}

static void send_messages(struct virtio_console *c)
{
    struct virtqueue_chain chain = {.buffers = c->buffers};
    uint8_t message[MESSAGE_SIZE + VIRTIO_CONSOLE_NAME_MAX];
    bool has_sent = false;

    for (unsigned i = 0; i < c->port_count; i++) {
        struct port *port = &c->ports[i];
        while (port->due != 0 && virtio_pop(&c->dev, QUEUE_CONTROL_RX, &chain)) {
            unsigned event = (unsigned)__builtin_ctz(port->due);
            size_t size = make_message(port, event, message);
            port->due &= (uint8_t)(port->due - 1);
            /* a buffer that is too small gets what fits: the driver's own loss */
            size = virtqueue_write(&chain, 0, message, size);
            virtqueue_push(&c->dev.queues[QUEUE_CONTROL_RX], &chain, (uint32_t)size);
            has_sent = true;
        }
    }
    if (has_sent)
        virtio_signal_queue(&c->dev, QUEUE_CONTROL_RX);
}

static void tell(struct port *port, unsigned events)
{
    if (!has_control(port->console))
        return;
    port->due |= (uint8_t)events;
    send_messages(port->console);
}

/* ---- input; under the lock ---- */

static bool is_listening(const struct port *port)
{
    return virtio_is_running(&port->console->dev) &&
           (port->is_guest_open || (port->index == 0 && !has_control(port->console)));
}

/* From the stash to the guest, as far as there are buffers. */
static void flush_stash(struct port *port)
{
    struct virtio_console *c = port->console;
    struct virtqueue_chain chain = {.buffers = c->buffers};
    unsigned queue = rx_queue(port), done = 0;

    if (!is_listening(port))
        return;
    while (done < port->stash_len && virtio_pop(&c->dev, queue, &chain)) {
        size_t n = virtqueue_write(&chain, 0, port->stash + done, port->stash_len - done);
        virtqueue_push(&c->dev.queues[queue], &chain, (uint32_t)n);
        done += (unsigned)n;
        if (n == 0) { /* or a driver could keep us here with buffers of no use */
            virtio_needs_reset(&c->dev, "a receive buffer has no room");
            break;
        }
    }
    port->stash_len -= done;
    memmove(port->stash, port->stash + done, port->stash_len);
    if (done != 0)
        virtio_signal_queue(&c->dev, queue);
}

static size_t port_can_receive(void *ctx)
{
    struct port *port = ctx;
    struct virtio_console *c = port->console;
    struct virtqueue_chain chain = {.buffers = c->buffers};
    size_t room = 0;

    virtio_lock(&c->dev);
    flush_stash(port);
    if (port->stash_len == 0 && is_listening(port) && virtio_pop(&c->dev, rx_queue(port), &chain)) {
        room = (size_t)MIN(chain.in_size, (uint64_t)STASH_SIZE);
        virtqueue_unpop(&c->dev.queues[rx_queue(port)], &chain);
    }
    virtio_unlock(&c->dev);
    return room;
}

/* The stash is empty: can_receive was asked before. */
static void port_receive(void *ctx, const uint8_t *buf, size_t len)
{
    struct port *port = ctx;

    virtio_lock(&port->console->dev);
    assert(port->stash_len == 0 && len <= STASH_SIZE);
    memcpy(port->stash, buf, len);
    port->stash_len = (unsigned)len;
    flush_stash(port);
    virtio_unlock(&port->console->dev);
}

/* ---- output; under the lock ---- */

static void serve_output(struct port *port);

static void on_posted(void *ctx)
{
    struct port *port = ctx;

    virtio_lock(&port->console->dev);
    port->is_posted = false;
    serve_output(port);
    virtio_unlock(&port->console->dev);
}

/* True when the whole chain went out. */
static bool write_chain(struct port *port, const struct virtqueue_chain *chain)
{
    uint8_t bytes[COPY_SIZE];

    while (port->out_offset < chain->out_size) {
        size_t n = virtqueue_read(chain, port->out_offset, bytes, sizeof(bytes));
        size_t taken = chardev_write(port->chardev, bytes, n);
        port->out_offset += taken;
        if (taken < n)
            return false;
    }
    port->out_offset = 0;
    return true;
}

static void serve_output(struct port *port)
{
    struct virtio_console *c = port->console;
    struct virtqueue_chain chain = {.buffers = c->buffers};
    unsigned queue = tx_queue(port), count = 0;

    if (port->is_blocked || port->is_posted)
        return;
    while (count < CHAINS_BUDGET && virtio_pop(&c->dev, queue, &chain)) {
        if (!write_chain(port, &chain)) {
            virtqueue_unpop(&c->dev.queues[queue], &chain);
            port->is_blocked = true;
            break;
        }
        virtqueue_push(&c->dev.queues[queue], &chain, 0);
        count++;
    }
    virtio_signal_queue(&c->dev, queue);
    if (count == CHAINS_BUDGET) {
        port->is_posted = true;
        loop_post(c->loop, on_posted, port);
    }
}

static void port_writable(void *ctx)
{
    struct port *port = ctx;

    virtio_lock(&port->console->dev);
    port->is_blocked = false;
    serve_output(port);
    virtio_unlock(&port->console->dev);
}

static void port_event(void *ctx, enum chardev_event event)
{
    struct port *port = ctx;

    if (event == CHARDEV_BREAK)
        return; /* there is no line that could be broken */
    virtio_lock(&port->console->dev);
    port->is_host_open = event == CHARDEV_CONNECTED;
    if (port->is_guest_ready)
        tell(port, BIT(EVENT_PORT_OPEN));
    virtio_unlock(&port->console->dev);
}

static const struct chardev_receiver port_receiver = {
    .can_receive = port_can_receive,
    .receive = port_receive,
    .writable = port_writable,
    .event = port_event,
};

/* ---- messages from the driver; under the lock ---- */

static void begin_port(struct port *port)
{
    unsigned events = 0;

    port->is_guest_ready = true;
    if (port->is_console)
        events |= BIT(EVENT_CONSOLE_PORT) | BIT(EVENT_RESIZE);
    if (port->name[0] != '\0')
        events |= BIT(EVENT_PORT_NAME);
    if (port->is_host_open)
        events |= BIT(EVENT_PORT_OPEN);
    tell(port, events);
}

static void control(struct virtio_console *c, const uint8_t *message)
{
    uint32_t id = load_le32(message);
    unsigned event = load_le16(message + 4), value = load_le16(message + 6);

    if (event == EVENT_DEVICE_READY) {
        for (unsigned i = 0; value == 1 && i < c->port_count; i++)
            tell(&c->ports[i], BIT(EVENT_PORT_ADD));
        return;
    }
    if (id >= c->port_count)
        return;
    struct port *port = &c->ports[id];
    if (event == EVENT_PORT_READY && value == 1) {
        begin_port(port);
    } else if (event == EVENT_PORT_OPEN) {
        port->is_guest_open = value != 0;
        flush_stash(port);
        chardev_resume_input(port->chardev);
    }
}

static void serve_control(struct virtio_console *c)
{
    struct virtqueue_chain chain = {.buffers = c->buffers};
    uint8_t messages[QUEUE_SIZE][MESSAGE_SIZE];
    unsigned count = 0;

    /* answers need c->buffers too: first all questions */
    while (count < QUEUE_SIZE && virtio_pop(&c->dev, QUEUE_CONTROL_TX, &chain)) {
        if (virtqueue_read(&chain, 0, messages[count], MESSAGE_SIZE) == MESSAGE_SIZE)
            count++;
        virtqueue_push(&c->dev.queues[QUEUE_CONTROL_TX], &chain, 0);
    }
    virtio_signal_queue(&c->dev, QUEUE_CONTROL_TX);
    for (unsigned i = 0; i < count; i++)
        control(c, messages[i]);
}

/* ---- the device; under the lock ---- */

static void console_notify(struct virtio_device *dev, unsigned index)
{
    struct virtio_console *c = CONTAINER_OF(dev, struct virtio_console, dev);

    if (index == QUEUE_CONTROL_RX || index == QUEUE_CONTROL_TX) {
        if (!has_control(c))
            return;
        if (index == QUEUE_CONTROL_TX)
            serve_control(c);
        else
            send_messages(c);
        return;
    }
    struct port *port = &c->ports[index < 2 ? 0 : index / 2 - 1];
    if (index & 1) {
        serve_output(port);
    } else {
        flush_stash(port);
        chardev_resume_input(port->chardev);
    }
}

static bool console_reset(struct virtio_device *dev)
{
    struct virtio_console *c = CONTAINER_OF(dev, struct virtio_console, dev);

    for (unsigned i = 0; i < c->port_count; i++) {
        struct port *port = &c->ports[i];
        port->is_guest_ready = port->is_guest_open = false;
        port->due = 0;
        port->out_offset = 0;
    }
    return true;
}

/* A byte with no queue, for the earliest and the last words (5.3.5). */
static void console_config_written(struct virtio_device *dev, unsigned offset, unsigned size)
{
    struct virtio_console *c = CONTAINER_OF(dev, struct virtio_console, dev);

    if (!ranges_overlap(offset, size, CONFIG_EMERGENCY, 4))
        return;
    chardev_write(c->ports[0].chardev, &dev->config[CONFIG_EMERGENCY], 1);
    memset(dev->config + CONFIG_EMERGENCY, 0, 4);
}

/* ---- state; under the lock ---- */

static void get_port(const struct port *port, struct virtio_console_port_state *out)
{
    out->is_guest_ready = port->is_guest_ready;
    out->is_guest_open = port->is_guest_open;
    out->was_host_open = port->is_host_open;
    out->due = port->due;
    out->stash_len = (uint16_t)port->stash_len;
    memcpy(out->stash, port->stash, port->stash_len);
    out->out_offset = port->out_offset;
}

static void console_get_state(struct virtio_device *dev, struct virtio_state *out)
{
    const struct virtio_console *c = CONTAINER_OF(dev, struct virtio_console, dev);

    out->console.port_count = (uint8_t)c->port_count;
    for (unsigned i = 0; i < c->port_count; i++)
        get_port(&c->ports[i], &out->console.ports[i]);
}

static int check_port(const struct virtio_console_port_state *s, unsigned index, bool has_control,
                      struct err *e)
{
    int rc = virtio_check_claim(s->is_guest_ready, "is_guest_ready of port", index, e);

    if (rc == 0)
        rc = virtio_check_claim(s->is_guest_open, "is_guest_open of port", index, e);
    if (rc == 0)
        rc = virtio_check_claim(s->was_host_open, "was_host_open of port", index, e);
    if (rc != 0)
        return rc;
    if (s->due & ~EVENTS_DUE)
        return err_set(e, 0, "console.ports[%u].due is 0x%02x, and not all of these are sent",
                       index, s->due);
    if (!has_control && (s->due != 0 || s->is_guest_ready || s->is_guest_open))
        return err_set(e, 0, "console.ports[%u] has messages (0x%02x), and MULTIPORT is off", index,
                       s->due);
    if (s->stash_len > STASH_SIZE)
        return err_set(e, 0, "console.ports[%u].stash_len is %u, and there is room for %u", index,
                       s->stash_len, STASH_SIZE);
    return 0;
}

/* `out_offset` may be anything: the driver may have made the chain that it is of shorter. */
static int console_check_state(struct virtio_device *dev, const struct virtio_state *state,
                               struct err *e)
{
    const struct virtio_console *c = CONTAINER_OF(dev, struct virtio_console, dev);
    bool has_control = (state->features & CONSOLE_F_MULTIPORT) != 0;
    int rc = 0;

    if (state->console.port_count != c->port_count)
        return err_set(e, 0, "console.port_count is %u, and the device has %u ports",
                       state->console.port_count, c->port_count);
    if (load_le32(state->config + CONFIG_EMERGENCY) != 0)
        return err_set(e, 0, "config: a byte of emergency_wr is left over");
    for (unsigned i = 0; i < c->port_count && rc == 0; i++)
        rc = check_port(&state->console.ports[i], i, has_control, e);
    return rc;
}

/* Who is at the other end, and how large the terminal is, is the host's to say, now as then. */
static void console_set_state(struct virtio_device *dev, const struct virtio_state *state)
{
    struct virtio_console *c = CONTAINER_OF(dev, struct virtio_console, dev);

    for (unsigned i = 0; i < c->port_count; i++) {
        const struct virtio_console_port_state *s = &state->console.ports[i];
        struct port *port = &c->ports[i];
        port->is_guest_ready = s->is_guest_ready;
        port->is_guest_open = s->is_guest_open;
        port->due = s->due;
        if (s->is_guest_ready && s->was_host_open != port->is_host_open)
            port->due |= BIT(EVENT_PORT_OPEN);
        if (s->is_guest_ready && port->is_console && dev->is_config_due)
            port->due |= BIT(EVENT_RESIZE);
        memcpy(port->stash, s->stash, s->stash_len);
        port->stash_len = s->stash_len;
        port->out_offset = s->out_offset;
    }
}

/* What is at the host's side may have waited for room. */
static void console_resume(struct virtio_device *dev)
{
    struct virtio_console *c = CONTAINER_OF(dev, struct virtio_console, dev);

    send_messages(c);
    for (unsigned i = 0; i < c->port_count; i++)
        chardev_resume_input(c->ports[i].chardev);
}

static const struct virtio_ops console_ops = {
    .notify = console_notify,
    .reset = console_reset,
    .config_written = console_config_written,
    .resume = console_resume,
    .get_state = console_get_state,
    .check_state = console_check_state,
    .set_state = console_set_state,
    .state_kind = VIRTIO_STATE_CONSOLE,
};

void virtio_console_set_size(struct virtio_console *c, unsigned columns, unsigned rows)
{
    virtio_lock(&c->dev);
    store_le16(c->dev.config + CONFIG_COLUMNS, (uint16_t)MIN(columns, 0xffffu));
    store_le16(c->dev.config + CONFIG_ROWS, (uint16_t)MIN(rows, 0xffffu));
    virtio_signal_config(&c->dev);
    if (c->ports[0].is_guest_ready && c->ports[0].is_console)
        tell(&c->ports[0], BIT(EVENT_RESIZE));
    virtio_unlock(&c->dev);
}

/* ---- set-up ---- */

static void fill_device(struct virtio_console *c, struct space *memory)
{
    struct virtio_device *dev = &c->dev;

    dev->ops = &console_ops;
    dev->name = "virtio console";
    dev->id = VIRTIO_ID_CONSOLE;
    dev->offered =
        VIRTIO_FEATURES_COMMON | CONSOLE_F_SIZE | CONSOLE_F_MULTIPORT | CONSOLE_F_EMERG_WRITE;
    dev->queue_count = 2 * c->port_count + 2;
    dev->queue_size = QUEUE_SIZE;
    dev->config_size = CONFIG_SIZE;
    dev->memory = memory;
    virtio_init(dev);
    store_le16(dev->config + CONFIG_COLUMNS, 80);
    store_le16(dev->config + CONFIG_ROWS, 24);
    store_le32(dev->config + CONFIG_PORTS, c->port_count);
    memset(dev->config_rule + CONFIG_COLUMNS, VIRTIO_CONFIG_OF_HOST, 4);
    memset(dev->config_write_mask + CONFIG_EMERGENCY, 0xff, 4);
}

int virtio_console_create(const struct virtio_console_config *config, struct virtio_console **out,
                          struct err *e)
{
    struct virtio_console *c = calloc(1, sizeof(*c));

    assert(config->port_count >= 1 && config->port_count <= VIRTIO_CONSOLE_PORTS_MAX);
    if (c == NULL)
        return err_set(e, ENOMEM, "make a console with %u ports", config->port_count);
    c->loop = config->loop;
    c->port_count = config->port_count;
    fill_device(c, config->memory);
    for (unsigned i = 0; i < c->port_count; i++) {
        struct port *port = &c->ports[i];
        port->console = c;
        port->index = i;
        port->chardev = config->ports[i].chardev;
        port->is_console = config->ports[i].is_console;
        if (config->ports[i].name != NULL)
            memcpy(port->name, config->ports[i].name,
                   MIN(strlen(config->ports[i].name), (size_t)VIRTIO_CONSOLE_NAME_MAX));
    }
    for (unsigned i = 0; i < c->port_count; i++)
        chardev_set_receiver(c->ports[i].chardev, &port_receiver, &c->ports[i]);
    *out = c;
    return 0;
}

void virtio_console_destroy(struct virtio_console *c)
{
    if (c == NULL)
        return;
    for (unsigned i = 0; i < c->port_count; i++)
        chardev_set_receiver(c->ports[i].chardev, NULL, NULL);
    virtio_fini(&c->dev);
    free(c);
}

struct virtio_device *virtio_console_device(struct virtio_console *c)
{
    return &c->dev;
}
