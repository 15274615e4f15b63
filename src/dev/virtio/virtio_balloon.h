/*
 * virtio_balloon.h - memory balloon: the guest gives memory back to the host
 *
 * The host asks for a size of the balloon, and the guest fills it with pages that it can spare;
 * they go back to the host. With free page reporting the guest tells, with no size asked for, what
 * it does not use. With deflate-on-OOM it takes pages back before it kills processes.
 *
 * Threads: created and destroyed by one thread; everything else as virtio.h says.
 *
 * Spec: VIRTIO 1.2, 5.5.
 */
#ifndef DOPPEL_DEV_VIRTIO_VIRTIO_BALLOON_H
#define DOPPEL_DEV_VIRTIO_VIRTIO_BALLOON_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define VIRTIO_BALLOON_STATS 10 /* statistics that drivers tell, by tag */

struct loop;
struct space;
struct stats_sink;
struct virtio_balloon;
struct virtio_device;

struct virtio_balloon_config {
    struct space *memory;
    struct loop *loop;
    bool deflates_on_oom;
    bool reports_free_pages;
};

int virtio_balloon_create(const struct virtio_balloon_config *config, struct virtio_balloon **out,
                          struct err *e);

/* NULL is allowed. After its transport. The loop does not run again. */
void virtio_balloon_destroy(struct virtio_balloon *balloon);

/* Ask for a balloon of so many bytes, rounded down to pages of 4 KiB. Any thread. */
void virtio_balloon_set_target(struct virtio_balloon *balloon, uint64_t bytes);

struct virtio_balloon_status {
    bool has_driver;
    uint64_t target_bytes, actual_bytes;
};

/* Any thread. */
void virtio_balloon_get_status(struct virtio_balloon *balloon, struct virtio_balloon_status *out);

/*
 * What went to and fro, and what the guest last said of its memory; it is asked to say it again.
 * Any thread.
 */
void virtio_balloon_report_stats(struct virtio_balloon *balloon, struct stats_sink *sink);

struct virtio_device *virtio_balloon_device(struct virtio_balloon *balloon);

#endif
