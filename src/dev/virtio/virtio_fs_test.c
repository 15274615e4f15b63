/*
 * virtio_fs_test.c - the file system device against a driver: requests by the ring, many at once,
 * reset under way, and a driver that breaks the rules
 */
#include "dev/virtio/test_driver.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "backend/share/share.h"
#include "dev/virtio/virtio_fs.h"
#include "dev/virtio/virtio_state.h"

#define URGENT 0u
#define REQUESTS 1u
#define SIZE TEST_RING_SIZE
#define DATA TEST_DATA

struct fixture {
    struct test_driver t;
    char folder[64];
    struct share *share;
    struct virtio_fs *fs;
};

static void make_fs(struct fixture *f)
{
    struct virtio_fs_config config = {
        .name = "share", .memory = f->t.space, .share = f->share, .tag = "tag"};

    assert_int_equal(virtio_fs_create(&config, &f->fs, NULL), 0);
}

static struct fixture *setup(void)
{
    struct fixture *f = calloc(1, sizeof(*f));
    char path[96];

    test_driver_init(&f->t);
    strcpy(f->folder, "/tmp/doppel-fs-XXXXXX");
    assert_non_null(mkdtemp(f->folder));
    snprintf(path, sizeof(path), "%s/file", f->folder);
    FILE *file = fopen(path, "w");
    fputs("contents", file);
    fclose(file);
    struct share_config share = {.path = f->folder, .has_locks = true, .descriptors_max = 100};
    assert_int_equal(share_open(&share, &f->share, NULL), 0);
    make_fs(f);
    test_driver_attach(&f->t, virtio_fs_device(f->fs));
    return f;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

static void teardown(struct fixture *f)
{
    pthread_mutex_unlock(&f->t.dev->lock);
    share_close(f->share);
    virtio_fs_destroy(f->fs);
    test_driver_fini(&f->t);
    nftw(f->folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    free(f);
}

static void put_message(struct fixture *f, uint32_t at, uint32_t opcode, const void *args,
                        size_t size)
{
    struct fuse_in_header header = {.len = (uint32_t)(sizeof(header) + size),
                                    .opcode = opcode,
                                    .unique = at,
                                    .nodeid = opcode == FUSE_INIT ? 0 : FUSE_ROOT_ID};

    memcpy(f->t.ram + at, &header, sizeof(header));
    memcpy(f->t.ram + at + sizeof(header), args, size);
}

static void send_init(struct fixture *f)
{
    struct fuse_init_in in = {.major = 7, .minor = 36, .flags = FUSE_POSIX_LOCKS};

    put_message(f, DATA, FUSE_INIT, &in, sizeof(in));
    test_driver_offer(&f->t, REQUESTS, DATA, 40 + sizeof(in), DATA + 0x1000, 256);
    test_driver_wait(&f->t, REQUESTS);
    assert_int_equal(test_driver_used_length(&f->t, REQUESTS), 16 + sizeof(struct fuse_init_out));
    assert_int_equal(load_le32(f->t.ram + DATA + 0x1004), 0);
}

/* ---- tests ---- */

static void requests_come_back(void **state)
{
    struct fixture *f = setup();

    assert_string_equal((char *)f->t.dev->config, "tag");
    assert_int_equal(load_le32(f->t.dev->config + 36), 1);
    send_init(f);
    uint64_t before = f->t.noted;
    put_message(f, DATA, FUSE_LOOKUP, "file", 5);
    test_driver_offer(&f->t, REQUESTS, DATA, 45, DATA + 0x1000, 4096);
    test_driver_wait(&f->t, REQUESTS);
    assert_int_equal(test_driver_used_length(&f->t, REQUESTS), 16 + sizeof(struct fuse_entry_out));
    assert_int_equal(load_le64(f->t.ram + DATA + 0x1008), DATA);
    struct fuse_entry_out *entry = (void *)(f->t.ram + DATA + 0x1010);
    assert_int_equal(entry->attr.size, 8);
    /* code may lie where the answer is */
    assert_true(f->t.noted - before >= 16 + sizeof(struct fuse_entry_out));
    /* without an answer, on the queue for such */
    struct fuse_forget_in forget = {.nlookup = 1};
    put_message(f, DATA, FUSE_FORGET, &forget, sizeof(forget));
    test_driver_offer(&f->t, URGENT, DATA, 40 + sizeof(forget), 0, 0);
    test_driver_wait(&f->t, URGENT);
    assert_int_equal(test_driver_used_length(&f->t, URGENT), 0);
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
            test_driver_offer(&f->t, REQUESTS, DATA, 45, DATA + 0x1000 + i * 256, 256);
        test_driver_wait(&f->t, REQUESTS);
        for (unsigned i = 0; i < SIZE / 2; i++)
            assert_int_equal(load_le32(f->t.ram + DATA + 0x1000 + i * 256 + 4), 0);
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
            test_driver_offer(&f->t, REQUESTS, DATA, 45, DATA + 0x1000 + i * 256, 256);
        virtio_notify(f->t.dev, REQUESTS);
        test_driver_reset(&f->t);
        test_driver_start(&f->t);
        /* the session is over: there is none before INIT */
        put_message(f, DATA, FUSE_LOOKUP, "file", 5);
        test_driver_offer(&f->t, REQUESTS, DATA, 45, DATA + 0x1000, 256);
        test_driver_wait(&f->t, REQUESTS);
        assert_int_equal((int32_t)load_le32(f->t.ram + DATA + 0x1004), -5);
    }
    teardown(f);
}

/* A lock that the host has, and will keep. */
static void reset_waits_for_no_lock(void **state)
{
    struct fixture *f = setup();
    struct flock all = {.l_type = F_WRLCK};
    char path[96];

    snprintf(path, sizeof(path), "%s/file", f->folder);
    int fd = open(path, O_RDWR);
    assert_int_equal(fcntl(fd, F_OFD_SETLK, &all), 0);
    for (unsigned round = 0; round < 20; round++) {
        send_init(f);
        put_message(f, DATA, FUSE_LOOKUP, "file", 5);
        test_driver_offer(&f->t, REQUESTS, DATA, 45, DATA + 0x1000, 256);
        test_driver_wait(&f->t, REQUESTS);
        uint64_t node = load_le64(f->t.ram + DATA + 0x1010);
        struct fuse_open_in open_in = {.flags = O_RDWR};
        put_message(f, DATA, FUSE_OPEN, &open_in, sizeof(open_in));
        store_le64(f->t.ram + DATA + 16, node);
        test_driver_offer(&f->t, REQUESTS, DATA, 40 + sizeof(open_in), DATA + 0x1000, 256);
        test_driver_wait(&f->t, REQUESTS);
        struct fuse_lk_in in = {.fh = load_le64(f->t.ram + DATA + 0x1010),
                                .lk = {.end = INT64_MAX, .type = F_WRLCK}};
        put_message(f, DATA, FUSE_SETLKW, &in, sizeof(in));
        store_le64(f->t.ram + DATA + 16, node);
        for (unsigned i = 0; i < SIZE / 2; i++)
            test_driver_offer(&f->t, REQUESTS, DATA, 40 + sizeof(in), DATA + 0x1000, 256);
        virtio_notify(f->t.dev, REQUESTS);
        test_driver_reset(&f->t);
        test_driver_start(&f->t);
    }
    close(fd);
    teardown(f);
}

static void chains_that_are_no_requests(void **state)
{
    struct fixture *f = setup();

    send_init(f);
    memset(f->t.ram + DATA, 0xff, 0x1000);
    test_driver_offer(&f->t, REQUESTS, DATA, 39, DATA + 0x1000, 256); /* not even a header */
    test_driver_wait(&f->t, REQUESTS);
    assert_int_equal(test_driver_used_length(&f->t, REQUESTS), 0);
    test_driver_offer(&f->t, REQUESTS, DATA, 40, DATA + 0x1000, 256); /* nonsense */
    test_driver_wait(&f->t, REQUESTS);
    assert_int_equal(test_driver_used_length(&f->t, REQUESTS), 16);
    assert_int_equal((int32_t)load_le32(f->t.ram + DATA + 0x1004), -22);
    put_message(f, DATA, FUSE_LOOKUP, "file", 5);
    test_driver_offer(&f->t, REQUESTS, DATA, 45, DATA + 0x1000, 15); /* no room to answer */
    test_driver_wait(&f->t, REQUESTS);
    assert_int_equal(test_driver_used_length(&f->t, REQUESTS), 0);
    test_driver_offer(&f->t, REQUESTS, DATA, 45, 0, 0);
    test_driver_wait(&f->t, REQUESTS);
    test_driver_offer(&f->t, REQUESTS, 0, 0, DATA + 0x1000, 256); /* nothing but room */
    test_driver_wait(&f->t, REQUESTS);
    assert_int_equal(test_driver_used_length(&f->t, REQUESTS), 0);
    assert_int_equal(f->t.dev->status & VIRTIO_STATUS_NEEDS_RESET, 0);
    /* a buffer that is not RAM breaks the queue, and only a reset mends it */
    test_driver_offer(&f->t, REQUESTS, TEST_RAM_SIZE, 45, DATA + 0x1000, 256);
    virtio_notify(f->t.dev, REQUESTS);
    assert_true(f->t.dev->status & VIRTIO_STATUS_NEEDS_RESET);
    assert_int_equal(f->t.config_signals, 1);
    virtio_set_status(f->t.dev, 0);
    test_driver_start(&f->t);
    send_init(f);
    teardown(f);
}

/* Returns what virtio_quiesce and virtio_get_state do. */
static int take_state(struct fixture *f, struct virtio_state *s, struct err *e)
{
    pthread_mutex_unlock(&f->t.dev->lock);
    int rc = virtio_quiesce(f->t.dev, UINT64_C(60) * 1000000000, e);
    assert_int_equal(f->t.dev->is_quiesced, rc == 0);
    if (rc == 0)
        rc = virtio_get_state(f->t.dev, s, e);
    virtio_resume(f->t.dev);
    pthread_mutex_lock(&f->t.dev->lock);
    return rc;
}

static void replace(struct fixture *f, const struct virtio_state *s)
{
    struct virtio_device *old = f->t.dev;
    struct virtio_fs *fs = f->fs;
    struct err e;

    make_fs(f);
    f->t.dev = virtio_fs_device(f->fs);
    f->t.dev->transport_ops = old->transport_ops;
    f->t.dev->transport = old->transport;
    assert_int_equal(virtio_quiesce(f->t.dev, 0, &e), 0);
    if (virtio_set_state(f->t.dev, s, &e) != 0)
        fail_msg("%s", e.msg);
    virtio_resume(f->t.dev);
    pthread_mutex_unlock(&old->lock);
    virtio_fs_destroy(fs);
    pthread_mutex_lock(&f->t.dev->lock);
}

/* A mounted folder's files are known here only: it has to be unmounted before. */
static void a_mounted_folder_stays(void **state)
{
    struct fixture *f = setup();
    struct virtio_state s;
    struct err e;

    assert_int_equal(take_state(f, &s, &e), 0);
    replace(f, &s);
    send_init(f);
    for (unsigned i = 0; i < 20; i++) {
        put_message(f, DATA + i * 0x100, FUSE_LOOKUP, "file", 5);
        test_driver_offer(&f->t, REQUESTS, DATA + i * 0x100, 45, DATA + 0x10000 + i * 0x1000, 256);
    }
    virtio_notify(f->t.dev, REQUESTS);
    assert_int_equal(take_state(f, &s, &e), -EBUSY);
    assert_non_null(strstr(e.msg, "unmount"));
    assert_non_null(strstr(e.msg, "share"));
    test_driver_await(&f->t, REQUESTS); /* all of them, though nobody notified again */
    put_message(f, DATA, FUSE_DESTROY, NULL, 0);
    test_driver_offer(&f->t, REQUESTS, DATA, 40, DATA + 0x1000, 256);
    test_driver_wait(&f->t, REQUESTS);
    assert_int_equal(take_state(f, &s, &e), 0);
    replace(f, &s);
    send_init(f);
    put_message(f, DATA, FUSE_LOOKUP, "file", 5);
    test_driver_offer(&f->t, REQUESTS, DATA, 45, DATA + 0x1000, 4096);
    test_driver_wait(&f->t, REQUESTS);
    assert_int_equal(load_le32(f->t.ram + DATA + 0x1004), 0);
    teardown(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_come_back),       cmocka_unit_test(many_at_once),
        cmocka_unit_test(reset_waits_for_requests), cmocka_unit_test(chains_that_are_no_requests),
        cmocka_unit_test(a_mounted_folder_stays),   cmocka_unit_test(reset_waits_for_no_lock),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
