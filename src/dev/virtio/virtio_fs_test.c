/*
 * virtio_fs_test.c - the file system device against a driver: requests by the ring, many at once,
 * reset under way, and a driver that breaks the rules
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <ftw.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/share/share.h"
#include "base/bits.h"
#include "dev/virtio/virtio.h"
#include "dev/virtio/virtio_fs.h"
#include "dev/virtio/virtqueue_ring.h"
#include "mem/space.h"

#define RAM_SIZE 0x100000u
#define SIZE 256u
#define URGENT 0u
#define REQUESTS 1u
#define AREA(queue) (0x1000u + (queue)*0x8000u) /* descriptors, then the rings */
#define DRIVER(queue) (AREA(queue) + 0x2000u)
#define DEVICE(queue) (AREA(queue) + 0x3000u)
#define DATA 0x20000u

struct fixture {
    char folder[64];
    uint8_t *ram;
    struct space *space;
    struct share *share;
    struct virtio_fs *fs;
    struct virtio_device *dev;
    uint64_t noted; /* bytes that the watcher heard of */
    pthread_cond_t signalled;
    unsigned config_signals;
    uint16_t avail[2], next_descriptor[2];
};

static void signal_queue(void *transport, unsigned index)
{
    pthread_cond_broadcast(&((struct fixture *)transport)->signalled);
}

static void signal_config(void *transport)
{
    ((struct fixture *)transport)->config_signals++;
}

static const struct virtio_transport_ops transport_ops = {signal_queue, signal_config};

static void note_written(void *ctx, uint64_t addr, uint64_t size)
{
    __atomic_fetch_add(&((struct fixture *)ctx)->noted, size, __ATOMIC_RELAXED);
}

/* What a driver does before DRIVER_OK; under the lock. */
static void start(struct fixture *f)
{
    struct virtio_device *dev = f->dev;

    virtio_set_status(dev, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
    virtio_set_driver_features(dev, 0, (uint32_t)VIRTIO_F_INDIRECT_DESC);
    virtio_set_driver_features(dev, 1, (uint32_t)(VIRTIO_F_VERSION_1 >> 32));
    virtio_set_status(dev, dev->status | VIRTIO_STATUS_FEATURES_OK);
    assert_true(dev->status & VIRTIO_STATUS_FEATURES_OK);
    memset(f->ram, 0, 0x20000);
    for (unsigned i = 0; i < 2; i++) {
        dev->queues[i].size = SIZE;
        dev->queues[i].descriptors = AREA(i);
        dev->queues[i].driver = DRIVER(i);
        dev->queues[i].device = DEVICE(i);
        virtio_enable_queue(dev, i);
        assert_true(dev->queues[i].is_enabled);
        f->avail[i] = f->next_descriptor[i] = 0;
    }
    virtio_set_status(dev, dev->status | VIRTIO_STATUS_DRIVER_OK);
}

static struct fixture *setup(void)
{
    struct fixture *f = calloc(1, sizeof(*f));
    char path[96];

    pthread_cond_init(&f->signalled, NULL);
    strcpy(f->folder, "/tmp/doppel-fs-XXXXXX");
    assert_non_null(mkdtemp(f->folder));
    snprintf(path, sizeof(path), "%s/file", f->folder);
    FILE *file = fopen(path, "w");
    fputs("contents", file);
    fclose(file);
    f->ram = aligned_alloc(4096, RAM_SIZE);
    assert_int_equal(space_create("memory", BIT(40), &f->space, NULL), 0);
    assert_int_equal(space_add_ram(f->space, 0, f->ram, RAM_SIZE, false, NULL), 0);
    space_set_watcher(f->space, note_written, f);
    struct share_config share = {.path = f->folder, .descriptors_max = 100};
    assert_int_equal(share_open(&share, &f->share, NULL), 0);
    struct virtio_fs_config config = {
        .name = "share", .memory = f->space, .share = f->share, .tag = "tag"};
    assert_int_equal(virtio_fs_create(&config, &f->fs, NULL), 0);
    f->dev = virtio_fs_device(f->fs);
    f->dev->transport_ops = &transport_ops;
    f->dev->transport = f;
    pthread_mutex_lock(&f->dev->lock);
    start(f);
    return f;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

/* Called with the lock held, as all tests run. */
static void teardown(struct fixture *f)
{
    pthread_mutex_unlock(&f->dev->lock);
    share_close(f->share);
    virtio_fs_destroy(f->fs);
    space_destroy(f->space);
    free(f->ram);
    nftw(f->folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    free(f);
}

/* A chain of one readable and one writable buffer (size 0: not there), made available. */
static void offer(struct fixture *f, unsigned queue, uint32_t from, uint32_t from_size, uint32_t to,
                  uint32_t to_size)
{
    uint16_t head = f->next_descriptor[queue];
    unsigned count = (from_size != 0) + (to_size != 0);

    for (unsigned i = 0; i < count; i++) {
        bool is_write = i == 1 || from_size == 0;
        uint8_t *d = f->ram + AREA(queue) + (head + i) * DESCRIPTOR_SIZE;
        store_le64(d, is_write ? to : from);
        store_le32(d + 8, is_write ? to_size : from_size);
        store_le16(d + 12,
                   (uint16_t)((is_write ? DESC_WRITE : 0) | (i + 1 < count ? DESC_NEXT : 0)));
        store_le16(d + 14, (uint16_t)(head + i + 1));
    }
    f->next_descriptor[queue] = (uint16_t)((head + 2) % SIZE);
    store_le16(f->ram + DRIVER(queue) + AVAIL_RING + 2 * (f->avail[queue]++ % SIZE), head);
    store_le16(f->ram + DRIVER(queue) + AVAIL_INDEX, f->avail[queue]);
}

/* Until all that was made available has come back. */
static void wait_used(struct fixture *f, unsigned queue)
{
    virtio_notify(f->dev, queue);
    while (ring_load16(f->ram + DEVICE(queue) + USED_INDEX) != f->avail[queue])
        pthread_cond_wait(&f->signalled, &f->dev->lock);
}

static uint32_t used_length(const struct fixture *f, unsigned queue)
{
    unsigned last = (f->avail[queue] - 1u) % SIZE;

    return load_le32(f->ram + DEVICE(queue) + USED_RING + last * USED_SIZE + 4);
}

static void put_message(struct fixture *f, uint32_t at, uint32_t opcode, const void *args,
                        size_t size)
{
    struct fuse_in_header header = {.len = (uint32_t)(sizeof(header) + size),
                                    .opcode = opcode,
                                    .unique = at,
                                    .nodeid = opcode == FUSE_INIT ? 0 : FUSE_ROOT_ID};

    memcpy(f->ram + at, &header, sizeof(header));
    memcpy(f->ram + at + sizeof(header), args, size);
}

static void send_init(struct fixture *f)
{
    struct fuse_init_in in = {.major = 7, .minor = 36};

    put_message(f, DATA, FUSE_INIT, &in, sizeof(in));
    offer(f, REQUESTS, DATA, 40 + sizeof(in), DATA + 0x1000, 256);
    wait_used(f, REQUESTS);
    assert_int_equal(used_length(f, REQUESTS), 16 + sizeof(struct fuse_init_out));
    assert_int_equal(load_le32(f->ram + DATA + 0x1004), 0);
}

/* ---- tests ---- */

static void requests_come_back(void **state)
{
    struct fixture *f = setup();

    assert_string_equal((char *)f->dev->config, "tag");
    assert_int_equal(load_le32(f->dev->config + 36), 1);
    send_init(f);
    uint64_t before = f->noted;
    put_message(f, DATA, FUSE_LOOKUP, "file", 5);
    offer(f, REQUESTS, DATA, 45, DATA + 0x1000, 4096);
    wait_used(f, REQUESTS);
    assert_int_equal(used_length(f, REQUESTS), 16 + sizeof(struct fuse_entry_out));
    assert_int_equal(load_le64(f->ram + DATA + 0x1008), DATA);
    struct fuse_entry_out *entry = (void *)(f->ram + DATA + 0x1010);
    assert_int_equal(entry->attr.size, 8);
    /* code may lie where the answer is */
    assert_true(f->noted - before >= 16 + sizeof(struct fuse_entry_out));
    /* without an answer, on the queue for such */
    struct fuse_forget_in forget = {.nlookup = 1};
    put_message(f, DATA, FUSE_FORGET, &forget, sizeof(forget));
    offer(f, URGENT, DATA, 40 + sizeof(forget), 0, 0);
    wait_used(f, URGENT);
    assert_int_equal(used_length(f, URGENT), 0);
    teardown(f);
}

/* More than the device carries out at a time. */
static void many_at_once(void **state)
{
    struct fixture *f = setup();

    send_init(f);
    put_message(f, DATA, FUSE_LOOKUP, "file", 5);
    for (unsigned round = 0; round < 5; round++) {
        for (unsigned i = 0; i < SIZE / 2; i++)
            offer(f, REQUESTS, DATA, 45, DATA + 0x1000 + i * 256, 256);
        wait_used(f, REQUESTS);
        for (unsigned i = 0; i < SIZE / 2; i++)
            assert_int_equal(load_le32(f->ram + DATA + 0x1000 + i * 256 + 4), 0);
    }
    teardown(f);
}

static void reset_waits_for_requests(void **state)
{
    struct fixture *f = setup();

    for (unsigned round = 0; round < 50; round++) {
        send_init(f);
        put_message(f, DATA, FUSE_LOOKUP, "file", 5);
        for (unsigned i = 0; i < SIZE / 2; i++)
            offer(f, REQUESTS, DATA, 45, DATA + 0x1000 + i * 256, 256);
        virtio_notify(f->dev, REQUESTS);
        virtio_set_status(f->dev, 0);
        while (virtio_get_status(f->dev) != 0) { /* as drivers do */
            pthread_mutex_unlock(&f->dev->lock);
            sched_yield();
            pthread_mutex_lock(&f->dev->lock);
        }
        start(f);
        /* the session is over: there is none before INIT */
        put_message(f, DATA, FUSE_LOOKUP, "file", 5);
        offer(f, REQUESTS, DATA, 45, DATA + 0x1000, 256);
        wait_used(f, REQUESTS);
        assert_int_equal((int32_t)load_le32(f->ram + DATA + 0x1004), -5);
    }
    teardown(f);
}

static void chains_that_are_no_requests(void **state)
{
    struct fixture *f = setup();

    send_init(f);
    memset(f->ram + DATA, 0xff, 0x1000);
    offer(f, REQUESTS, DATA, 39, DATA + 0x1000, 256); /* not even a header */
    wait_used(f, REQUESTS);
    assert_int_equal(used_length(f, REQUESTS), 0);
    offer(f, REQUESTS, DATA, 40, DATA + 0x1000, 256); /* nonsense */
    wait_used(f, REQUESTS);
    assert_int_equal(used_length(f, REQUESTS), 16);
    assert_int_equal((int32_t)load_le32(f->ram + DATA + 0x1004), -22);
    put_message(f, DATA, FUSE_LOOKUP, "file", 5);
    offer(f, REQUESTS, DATA, 45, DATA + 0x1000, 15); /* no room to answer */
    wait_used(f, REQUESTS);
    assert_int_equal(used_length(f, REQUESTS), 0);
    offer(f, REQUESTS, DATA, 45, 0, 0);
    wait_used(f, REQUESTS);
    offer(f, REQUESTS, 0, 0, DATA + 0x1000, 256); /* nothing but room */
    wait_used(f, REQUESTS);
    assert_int_equal(used_length(f, REQUESTS), 0);
    assert_int_equal(f->dev->status & VIRTIO_STATUS_NEEDS_RESET, 0);
    /* a buffer that is not RAM breaks the queue, and only a reset mends it */
    offer(f, REQUESTS, RAM_SIZE, 45, DATA + 0x1000, 256);
    virtio_notify(f->dev, REQUESTS);
    assert_true(f->dev->status & VIRTIO_STATUS_NEEDS_RESET);
    assert_int_equal(f->config_signals, 1);
    virtio_set_status(f->dev, 0);
    start(f);
    send_init(f);
    teardown(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_come_back),
        cmocka_unit_test(many_at_once),
        cmocka_unit_test(reset_waits_for_requests),
        cmocka_unit_test(chains_that_are_no_requests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
