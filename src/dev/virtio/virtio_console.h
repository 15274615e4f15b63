/*
 * virtio_console.h - consoles and named ports
 *
 * Each port is the guest's end of a character device (backend/char). The first that is a console
 * is hvc0 in a Linux guest, the others are /dev/virtio-ports/NAME. What the host's side has no
 * room for waits in the guest's queue; what the guest has no room for, or no program that has the
 * port open, waits at the host's side: nothing is lost in either direction.
 *
 * Threads: created and destroyed by the main loop's thread, on which the character devices call;
 * everything else as virtio.h says.
 *
 * Spec: VIRTIO 1.2, 5.3.
 */
#ifndef DOPPEL_DEV_VIRTIO_VIRTIO_CONSOLE_H
#define DOPPEL_DEV_VIRTIO_VIRTIO_CONSOLE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct chardev;
struct loop;
struct space;
struct virtio_console;
struct virtio_device;

#define VIRTIO_CONSOLE_PORTS_MAX 16
#define VIRTIO_CONSOLE_NAME_MAX 63
#define VIRTIO_CONSOLE_STASH_SIZE 256 /* input that is kept until there are buffers for it */

struct virtio_console_port {
    struct chardev *chardev; /* nobody else's receiver; outlives the device */
    bool is_console;         /* else a port for programs */
    const char *name;        /* up to VIRTIO_CONSOLE_NAME_MAX characters; NULL: none */
};

struct virtio_console_config {
    struct space *memory;
    struct loop *loop;
    /* A driver that knows of one port only uses the first. */
    struct virtio_console_port ports[VIRTIO_CONSOLE_PORTS_MAX];
    unsigned port_count; /* at least 1 */
};

int virtio_console_create(const struct virtio_console_config *config, struct virtio_console **out,
                          struct err *e);

/* NULL is allowed. After its transport. The loop does not run again. */
void virtio_console_destroy(struct virtio_console *console);

/* The size of the terminal behind the first port, in characters. Any thread. */
void virtio_console_set_size(struct virtio_console *console, unsigned columns, unsigned rows);

struct virtio_device *virtio_console_device(struct virtio_console *console);

#endif
