/*
 * virtio_balloon_test.c - pages go to the host, and only those that are the guest's
 */
#include "dev/virtio/testing.h"

#include "base/stats.h"
#include "dev/virtio/virtio_balloon.h"
#include "os/loop.h"
#include "os/memfd.h"

#include <unistd.h>

#define F_STATS BIT(1)
#define F_POISON BIT(4)
#define F_REPORTING BIT(5)
#define PFNS 0x200000u
#define PAGES 0x400000u /* what is given away */
#define BUFFERS 0x300000u

struct fixture {
    struct driver driver;
    struct loop *loop;
    void *memory; /* of the host, at 1 GiB: can be given back */
    int fd;
    struct virtio_balloon *balloon;
    uint64_t told; /* bytes that the watcher heard of, above 1 GiB */
};

#define GIVEN_BASE (UINT64_C(1) << 30)
#define GIVEN_SIZE (UINT64_C(4) << 20)
#define GIVEN_PFN (GIVEN_BASE >> 12)

static void watch(void *ctx, uint64_t addr, uint64_t size)
{
    struct fixture *f = ctx;
    if (addr >= GIVEN_BASE)
        f->told += size;
}

static void make_balloon(struct fixture *f)
{
    struct err e;
    struct virtio_balloon_config config = {.memory = f->driver.space,
                                           .loop = f->loop,
                                           .deflates_on_oom = true,
                                           .reports_free_pages = true};
    assert_int_equal(virtio_balloon_create(&config, &f->balloon, &e), 0);
}

static struct fixture *setup(uint64_t features)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct err e;
    driver_setup(&f->driver);
    assert_int_equal(loop_create(&f->loop, &e), 0);
    f->fd = memfd_make("test", GIVEN_SIZE, &e);
    assert_true(f->fd >= 0);
    assert_int_equal(memfd_map(f->fd, 0, GIVEN_SIZE, MEMFD_READ | MEMFD_WRITE, &f->memory, &e), 0);
    assert_int_equal(space_add_ram(f->driver.space, GIVEN_BASE, f->memory, GIVEN_SIZE, false, &e),
                     0);
    assert_int_equal(
        space_add_ram(f->driver.space, GIVEN_BASE * 2, f->memory, GIVEN_SIZE, true, &e),
        0); /* as ROM */
    memset(f->memory, 0xaa, GIVEN_SIZE);
    space_set_watcher(f->driver.space, watch, f);
    make_balloon(f);
    driver_start(&f->driver, virtio_balloon_device(f->balloon), features);
    return f;
}

static void teardown(struct fixture *f)
{
    virtio_balloon_destroy(f->balloon);
    loop_destroy(f->loop);
    driver_teardown(&f->driver);
    memfd_unmap(f->memory, GIVEN_SIZE);
    close(f->fd);
    free(f);
}

static void send_pfns(struct fixture *f, unsigned queue, const uint32_t *pfns, unsigned count)
{
    struct driver_piece piece = {PFNS, count * 4, false};
    memcpy(f->driver.ram + PFNS, pfns, (size_t)count * 4);
    driver_offer(&f->driver, queue, 0, &piece, 1);
    driver_notify(&f->driver, queue);
    assert_int_equal(driver_used(&f->driver, queue, NULL), 0);
}

/* Which pages of the host's memory were emptied: a bit each. */
static uint64_t emptied(const struct fixture *f)
{
    uint64_t bits = 0;
    for (unsigned i = 0; i < 64; i++) {
        const uint8_t *page = (const uint8_t *)f->memory + i * 4096u;
        assert_true(page[0] == page[4095]);
        bits |= page[0] == 0 ? BIT(i) : 0;
    }
    return bits;
}

struct counter {
    struct stats_sink sink;
    uint64_t bad, given, reported, free_bytes;
};

static void on_group(struct stats_sink *sink, const char *group, int cpu)
{
}

static void on_item(struct stats_sink *sink, const struct stats_item *item)
{
    struct counter *c = (struct counter *)sink;
    if (strcmp(item->key, "bad_pages") == 0)
        c->bad = item->count;
    else if (strcmp(item->key, "given_bytes") == 0)
        c->given = item->count;
    else if (strcmp(item->key, "reported_bytes") == 0)
        c->reported = item->count;
    else if (strcmp(item->key, "free_bytes") == 0)
        c->free_bytes = item->count;
}

static struct counter count(struct fixture *f)
{
    struct counter c = {.sink = {.begin = on_group, .put = on_item}};
    virtio_balloon_report_stats(f->balloon, &c.sink);
    return c;
}

static void pages_go_to_the_host(void **state)
{
    struct fixture *f = setup(0);
    uint32_t pfns[] = {GIVEN_PFN + 9,  GIVEN_PFN + 8,  GIVEN_PFN + 7,
                       GIVEN_PFN + 20, GIVEN_PFN + 21, GIVEN_PFN};
    send_pfns(f, 0, pfns, ARRAY_SIZE(pfns));
    assert_true(emptied(f) == (BIT(7) | BIT(8) | BIT(9) | BIT(20) | BIT(21) | BIT(0)));
    assert_int_equal(f->told, 6 * 4096);
    memset(f->memory, 0xaa, GIVEN_SIZE); /* they are there again when they are written */
    send_pfns(f, 1, pfns, 3);            /* taken back: nothing happens to them */
    assert_true(emptied(f) == 0);
    virtio_balloon_set_target(f->balloon, 5 << 20);
    assert_int_equal(f->driver.config_signals, 1);
    assert_int_equal(load_le32(f->driver.dev->config), 5 * 256);
    pthread_mutex_lock(&f->driver.dev->lock);
    virtio_config_write(f->driver.dev, 4, 6, 4);
    virtio_config_write(f->driver.dev, 0, 99, 4); /* the host's to say */
    pthread_mutex_unlock(&f->driver.dev->lock);
    struct virtio_balloon_status status;
    virtio_balloon_get_status(f->balloon, &status);
    assert_true(status.has_driver && status.actual_bytes == 6 * 4096 &&
                status.target_bytes == 5 << 20);
    assert_int_equal(count(f).given, 6 * 4096);
    teardown(f);
}

static void pages_of_nobody(void **state)
{
    struct fixture *f = setup(0);
    uint32_t pfns[] = {0xffffffff,    0xfffffffe,
                       0xffffffff,    GIVEN_PFN + GIVEN_SIZE / 4096,
                       GIVEN_PFN - 1, 2 * GIVEN_PFN /* ROM */,
                       GIVEN_PFN + 3};
    send_pfns(f, 0, pfns, ARRAY_SIZE(pfns));
    assert_true(emptied(f) == BIT(3));
    assert_int_equal(count(f).bad, 6);
    struct driver_piece odd = {PFNS, 3, false};
    driver_offer(&f->driver, 0, 0, &odd, 1); /* not even one number */
    driver_notify(&f->driver, 0);
    assert_int_equal(driver_used(&f->driver, 0, NULL), 0);
    struct driver_piece huge[] = {{0, DRIVER_RAM, false}, {0, DRIVER_RAM, false}};
    driver_offer(&f->driver, 0, 0, huge, 2); /* all of memory as numbers, twice */
    driver_notify(&f->driver, 0);
    assert_int_equal(driver_used(&f->driver, 0, NULL), 0);
    assert_false(driver_needs_reset(&f->driver));
    teardown(f);
}

/* Queues are numbered without those that were not negotiated. */
static void free_pages_are_reported(void **state)
{
    for (unsigned kind = 0; kind < 4; kind++) {
        bool has_stats = kind & 1, is_poisoned = kind & 2;
        struct fixture *f =
            setup(F_REPORTING | (has_stats ? F_STATS : 0) | (is_poisoned ? F_POISON : 0));
        unsigned queue = has_stats ? 3 : 2;
        uint8_t *ring = f->driver.ram + driver_ring(queue);
        pthread_mutex_lock(&f->driver.dev->lock);
        virtio_config_write(f->driver.dev, 12, is_poisoned ? 0xaaaaaaaa : 0, 4);
        pthread_mutex_unlock(&f->driver.dev->lock);
        struct driver_piece piece = {0, 3 * 4096 + 100, true};
        driver_offer(&f->driver, queue, 0, &piece, 1);
        store_le64(ring, GIVEN_BASE + 4096 - 50); /* only whole pages go */
        driver_notify(&f->driver, queue);
        assert_int_equal(driver_used(&f->driver, queue, NULL), 0);
        const uint8_t *page = f->memory;
        assert_int_equal(page[4095], 0xaa);
        assert_int_equal(page[4096], is_poisoned ? 0xaa : 0);
        assert_int_equal(page[4 * 4096 - 1], is_poisoned ? 0xaa : 0);
        assert_int_equal(page[4 * 4096], 0xaa);
        assert_int_equal(count(f).reported, is_poisoned ? 0 : 3 * 4096);
        teardown(f);
    }
}

static void statistics(void **state)
{
    struct fixture *f = setup(F_STATS);
    uint8_t *stats = f->driver.ram + PFNS;
    store_le16(stats, 4);
    store_le64(stats + 2, 12345);
    store_le16(stats + 10, 0xffff); /* of a later version */
    struct driver_piece piece = {PFNS, 25, false};
    driver_offer(&f->driver, 2, 0, &piece, 1);
    driver_notify(&f->driver, 2);
    assert_int_equal(driver_used(&f->driver, 2, NULL), -1); /* until it is asked again */
    assert_int_equal(count(f).free_bytes, 12345);
    assert_int_equal(driver_used(&f->driver, 2, NULL), 0);
    store_le64(stats + 2, 54321);
    assert_int_equal(count(f).free_bytes, 12345); /* it has not answered yet */
    driver_offer(&f->driver, 2, 1, &piece, 1);
    driver_notify(&f->driver, 2);
    driver_offer(&f->driver, 2, 2, &piece, 1); /* a second: the first comes back */
    driver_notify(&f->driver, 2);
    assert_int_equal(driver_used(&f->driver, 2, NULL), 1);
    assert_int_equal(count(f).free_bytes, 54321);
    driver_start(&f->driver, f->driver.dev, F_STATS);
    assert_int_equal(count(f).free_bytes, 0); /* of another driver; nothing is pushed */
    assert_int_equal(driver_used(&f->driver, 2, NULL), -1);
    teardown(f);
}

/* The driver's buffer for statistics is where it was, and its balloon as large. */
static void another_balloon_goes_on(void **state)
{
    struct fixture *f = setup(F_STATS);
    struct virtio_state s, bad;
    uint8_t *stats = f->driver.ram + PFNS;
    virtio_balloon_set_target(f->balloon, 5 << 20);
    pthread_mutex_lock(&f->driver.dev->lock);
    virtio_config_write(f->driver.dev, 4, 6, 4);
    pthread_mutex_unlock(&f->driver.dev->lock);
    store_le16(stats, 4);
    store_le64(stats + 2, 12345);
    struct driver_piece piece = {PFNS, 25, false};
    driver_offer(&f->driver, 2, 0, &piece, 1);
    driver_notify(&f->driver, 2);
    driver_take_state(&f->driver, &s);
    assert_int_equal(s.queues[2].next, 0);
    virtio_resume(f->driver.dev); /* the device itself goes on as well */
    driver_take_state(&f->driver, &s);
    virtio_balloon_destroy(f->balloon);
    make_balloon(f);
    bad = s;
    bad.balloon.known = 0xffff;
    driver_refuses(virtio_balloon_device(f->balloon), &bad, "balloon.known");
    bad = s;
    bad.config[12] ^= 1; /* poison: the driver's to write, whatever it means */
    assert_int_equal(virtio_check_state(virtio_balloon_device(f->balloon), &bad, NULL), 0);
    driver_put_state(&f->driver, virtio_balloon_device(f->balloon), &s);
    struct virtio_balloon_status status;
    virtio_balloon_get_status(f->balloon, &status);
    assert_true(status.has_driver && status.actual_bytes == 6 * 4096 &&
                status.target_bytes == 5 << 20);
    assert_int_equal(driver_used(&f->driver, 2, NULL), -1);
    assert_int_equal(count(f).free_bytes, 12345);
    assert_int_equal(driver_used(&f->driver, 2, NULL), 0);
    assert_int_equal(driver_used(&f->driver, 2, NULL), -1);
    /* it was asked, and has not answered: what it last said is known still */
    driver_take_state(&f->driver, &s);
    virtio_balloon_destroy(f->balloon);
    make_balloon(f);
    driver_put_state(&f->driver, virtio_balloon_device(f->balloon), &s);
    assert_int_equal(count(f).free_bytes, 12345);
    store_le64(stats + 2, 54321);
    driver_offer(&f->driver, 2, 1, &piece, 1);
    driver_notify(&f->driver, 2);
    assert_int_equal(count(f).free_bytes, 54321);
    assert_int_equal(driver_used(&f->driver, 2, NULL), 1);
    teardown(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_go_to_the_host),    cmocka_unit_test(pages_of_nobody),
        cmocka_unit_test(free_pages_are_reported), cmocka_unit_test(statistics),
        cmocka_unit_test(another_balloon_goes_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
