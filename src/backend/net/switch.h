/*
 * switch.h - a software switch: network interfaces of several machines on one Unix socket
 *
 * Frames go to the port where their destination was last seen, or to all ports. It holds no frame
 * up for a slow port: each has a bounded queue, and what does not fit is lost, as on a wire.
 *
 * What comes in is hostile: a port can lie about addresses, as on any switch, and fill its own
 * share of the table and its own queue; nothing else. What is left undone in a frame is passed on
 * as it is, and judged by who receives it.
 *
 * Protocol (SOCK_SEQPACKET): a port's first message is SWITCH_HELLO. Each that follows, in both
 * directions, is a header of SWITCH_HEADER bytes that says what is left undone, as the first ten of
 * virtio's do (VIRTIO 1.2, 5.1.6), and a frame.
 *
 * Threads: everything belongs to the loop's thread.
 */
#ifndef DOPPEL_BACKEND_NET_SWITCH_H
#define DOPPEL_BACKEND_NET_SWITCH_H

#include <stdint.h>

#include "base/err.h"

struct loop;
struct netswitch;

#define SWITCH_HELLO "doppel switch 1"
#define SWITCH_HEADER 10u
#define SWITCH_PORTS_MAX 64u

struct netswitch_stats {
    unsigned ports;    /* connected now */
    uint64_t received; /* frames that made sense */
    uint64_t sent;     /* one that goes to all ports counts for each */
    uint64_t dropped;  /* for ports whose queue was full */
    uint64_t refused;  /* messages that were none */
};

/*
 * Listen on a socket at `path`, which only its user can connect to. A socket that a switch left
 * behind there is replaced. Errors: another switch is there; the path is too long.
 */
int netswitch_create(struct loop *loop, const char *path, struct netswitch **out, struct err *e);

/* Removes the socket. NULL is allowed. */
void netswitch_destroy(struct netswitch *s);

struct netswitch_stats netswitch_stats(const struct netswitch *s);

#endif
