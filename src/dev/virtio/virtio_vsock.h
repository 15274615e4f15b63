/*
 * virtio_vsock.h - sockets between guest and host
 *
 * The host's side are Unix stream sockets, as Firecracker has them. A program of the host that
 * wants a port of the guest connects to PATH and sends "CONNECT port\n"; "OK port\n" comes back
 * when somebody there took the connection. A guest that connects to a port of the host (CID 2)
 * is connected to the socket PATH_port.
 *
 * Threads: created and destroyed by the main loop's thread, on which connections are served;
 * everything else as virtio.h says.
 *
 * Spec: VIRTIO 1.2, 5.10.
 */
#ifndef DOPPEL_DEV_VIRTIO_VIRTIO_VSOCK_H
#define DOPPEL_DEV_VIRTIO_VIRTIO_VSOCK_H

#include <stdint.h>

#include "base/err.h"

struct loop;
struct space;
struct virtio_device;
struct virtio_vsock;

#define VIRTIO_VSOCK_CID_MIN 3u
#define VIRTIO_VSOCK_CID_MAX 0xfffffffeu
/* With the longest port behind it, the path of a socket. */
#define VIRTIO_VSOCK_PATH_MAX 96u

struct virtio_vsock_config {
    struct space *memory;
    struct loop *loop;
    uint32_t cid;     /* the guest's */
    const char *path; /* at most VIRTIO_VSOCK_PATH_MAX bytes; outlives the device */
};

int virtio_vsock_create(const struct virtio_vsock_config *config, struct virtio_vsock **out,
                        struct err *e);

/* NULL is allowed. After its transport. The loop does not run again. */
void virtio_vsock_destroy(struct virtio_vsock *vsock);

struct virtio_device *virtio_vsock_device(struct virtio_vsock *vsock);

/* Notifications that came by its bell. Any thread. */
uint64_t virtio_vsock_rung(const struct virtio_vsock *vsock);

#endif
