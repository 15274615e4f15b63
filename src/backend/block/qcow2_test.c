/*
 * qcow2_test.c - qcow2 images: what is refused, what is repaired, power failures and kills
 *
 * Images live in memory here, in a store that remembers every write and flush, so that the disk
 * as it may be after a power failure can be made: all that was flushed, and of the rest any
 * sectors. And as it is when the process was killed: all that was written, and then what its
 * survivor makes of the list that was being carried out.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/block/qcow2.h"
#include "backend/block/qcow2_impl.h"
#include "backend/block/store.h"

#define ROOM (UINT64_C(8) << 20)

/* ---- a store in memory ---- */

struct event {
    uint64_t offset, size; /* of 0 bytes: a flush */
    uint8_t *data;
    struct redo_list *list; /* that was published then: a copy; NULL: none */
    bool is_list_mine;      /* others have the same one */
    uint64_t flushed;
};

struct memory {
    struct store store;
    uint8_t *bytes;
    uint64_t end;
    struct event *events; /* NULL: not remembered */
    size_t count, room;
    unsigned fail_after; /* so many writes work; 0: all */
    struct redo *redo;   /* of the image; NULL: not remembered */
};

/* The list that is being carried out, as the survivor sees it. */
static void remember_list(struct memory *m, struct event *event)
{
    const struct redo_list *now = m->redo != NULL ? m->redo->list : NULL, *last;
    if (now == NULL || now->published == 0)
        return;
    size_t entries = now->published * sizeof(now->writes[0]), bytes = m->redo->used;
    last = m->count > 1 ? event[-1].list : NULL;
    event->flushed = now->flushed;
    if (last != NULL && last->published == now->published &&
        memcmp(last->writes, now->writes, entries) == 0 &&
        memcmp(last->data, now->data, bytes) == 0) {
        event->list = event[-1].list;
        return;
    }
    event->list = aligned_alloc(4096, align_up(sizeof(*now) + bytes, 4096));
    event->list->published = now->published;
    memcpy(event->list->writes, now->writes, entries);
    memcpy(event->list->data, now->data, bytes);
    event->is_list_mine = true;
}

static void remember(struct memory *m, uint64_t offset, uint64_t size)
{
    if (m->events == NULL)
        return;
    if (m->count == m->room) {
        m->room *= 2;
        m->events = realloc(m->events, m->room * sizeof(*m->events));
    }
    struct event *event = &m->events[m->count++];
    *event = (struct event){.offset = offset, .size = size};
    remember_list(m, event);
    if (size != 0) {
        event->data = malloc(size);
        memcpy(event->data, m->bytes + offset, size);
    }
}

static int memory_transfer(struct store *store, bool is_write, uint64_t offset, uint64_t size,
                           const struct iovec *iov, unsigned count)
{
    struct memory *m = CONTAINER_OF(store, struct memory, store);
    uint64_t at = offset;

    if (!range_fits(offset, size, ROOM))
        return -ENOSPC;
    if (is_write && m->fail_after != 0 && --m->fail_after == 0) {
        m->fail_after = 1;
        return -ENOSPC;
    }
    for (unsigned i = 0; i < count; at += iov[i++].iov_len) {
        if (is_write)
            memcpy(m->bytes + at, iov[i].iov_base, iov[i].iov_len);
        else
            memcpy(iov[i].iov_base, m->bytes + at, iov[i].iov_len);
    }
    if (is_write) {
        m->end = MAX(m->end, offset + size);
        remember(m, offset, size);
    }
    return 0;
}

static int memory_flush(struct store *store)
{
    remember(CONTAINER_OF(store, struct memory, store), 0, 0);
    return 0;
}

static int memory_zero(struct store *store, uint64_t offset, uint64_t size, bool may_unmap)
{
    uint8_t *zeroes = calloc(1, size);
    int rc = store_write(store, offset, zeroes, size);
    free(zeroes);
    return rc;
}

/* What is no longer wanted may become anything: the worst. */
static int memory_discard(struct store *store, uint64_t offset, uint64_t size)
{
    struct memory *m = CONTAINER_OF(store, struct memory, store);
    uint64_t there = offset < m->end ? MIN(size, m->end - offset) : 0;
    uint8_t *junk = malloc(size);
    memset(junk, 0xdb, size);
    int rc = there != 0 ? store_write(store, offset, junk, there) : 0;
    free(junk);
    return rc;
}

static int memory_map(struct store *store, uint64_t offset, uint64_t *size, bool *is_zero)
{
    *is_zero = false;
    return 0;
}

static int memory_length(struct store *store, uint64_t *out)
{
    *out = CONTAINER_OF(store, struct memory, store)->end;
    return 0;
}

static int memory_resize(struct store *store, uint64_t size)
{
    CONTAINER_OF(store, struct memory, store)->end = size;
    return 0;
}

static int memory_allocate(struct store *store, uint64_t offset, uint64_t size)
{
    return 0;
}

static void memory_close(struct store *store)
{
}

static const struct store_ops memory_ops = {
    .transfer = memory_transfer,
    .flush = memory_flush,
    .discard = memory_discard,
    .write_zeroes = memory_zero,
    .map = memory_map,
    .length = memory_length,
    .resize = memory_resize,
    .allocate = memory_allocate,
    .close = memory_close,
};

static struct memory *memory_new(void)
{
    struct memory *m = calloc(1, sizeof(*m));
    m->bytes = calloc(1, ROOM);
    m->store = (struct store){.ops = &memory_ops, .physical_size = 512, .grows_zeroed = true};
    return m;
}

static void memory_free(struct memory *m)
{
    for (size_t i = 0; i < m->count; i++) {
        free(m->events[i].data);
        if (m->events[i].is_list_mine)
            free(m->events[i].list);
    }
    free(m->events);
    free(m->bytes);
    free(m);
}

/* ---- helpers ---- */

#define SIZE (UINT64_C(1) << 20)

static const struct qcow2_create create_default = {
    .size = SIZE, .version = 3, .cluster_size = 4096};

static void format(struct memory *m, const struct qcow2_create *create)
{
    struct err e;
    if (qcow2_format(&m->store, create, &e) != 0)
        fail_msg("%s", e.msg);
}

static int try_open(struct memory *m, bool is_for_repair, struct image **out, struct err *e)
{
    struct image_config config = {
        .path = "memory", .format = BLOCK_FORMAT_QCOW2, .is_for_repair = is_for_repair};
    int rc = qcow2_open(&m->store, &config, out, e);
    if (rc == 0 && (rc = qcow2_start(*out, &config, e)) != 0)
        image_close(*out);
    return rc;
}

static struct image *open_image(struct memory *m)
{
    struct image *image;
    struct err e;
    if (try_open(m, false, &image, &e) != 0)
        fail_msg("%s", e.msg);
    return image;
}

static struct qcow2_check check_image(struct memory *m, enum qcow2_repair repair)
{
    struct qcow2_check check = {0};
    struct image *image;
    struct err e;
    if (try_open(m, true, &image, &e) != 0 || qcow2_check(image, repair, &check, &e) != 0)
        fail_msg("%s", e.msg);
    image_close(image);
    return check;
}

static void fill(struct image *image, uint64_t offset, uint64_t size, uint8_t with)
{
    uint8_t *buf = malloc(size);
    memset(buf, with, size);
    assert_int_equal(image_write(image, offset, buf, size), 0);
    free(buf);
}

static bool holds(struct image *image, uint64_t offset, uint64_t size, uint8_t what)
{
    uint8_t *buf = malloc(size);
    bool is = true;
    assert_int_equal(image_read(image, offset, buf, size), 0);
    for (uint64_t i = 0; i < size; i++)
        is &= buf[i] == what;
    free(buf);
    return is;
}

/* ---- what is refused ---- */

static void refuse(struct memory *m, const char *why)
{
    struct image *image;
    struct err e;
    assert_true(try_open(m, false, &image, &e) < 0);
    if (strstr(e.msg, why) == NULL)
        fail_msg("'%s' does not say '%s'", e.msg, why);
}

static void headers_are_judged(void **state)
{
    static const struct {
        uint64_t at;
        unsigned size;
        uint64_t value;
        const char *why;
    } bad[] = {
        {0, 4, 0, "no qcow2 image"},
        {4, 4, 1, "version 1"},
        {4, 4, 4, "version 4"},
        {20, 4, 8, "clusters of 2^8"},
        {20, 4, 22, "clusters of 2^22"},
        {24, 8, 0, "impossible"},
        {24, 8, UINT64_MAX, "impossible"},
        {24, 8, UINT64_C(1) << 40, "L1 table is too small"},
        {32, 4, 1, "encrypted"},
        {32, 4, 2, "encrypted"},
        {36, 4, 0, "too small"},
        {36, 4, UINT32_MAX, "impossibly large"},
        {40, 8, 0, "where none can be"},
        {40, 8, 4097, "where none can be"},
        {40, 8, UINT64_MAX - 4095, "where none can be"},
        {48, 8, 512, "where none can be"},
        {48, 8, UINT64_C(1) << 62, "where none can be"},
        {48, 8, 0, "where none can be"},
        {56, 4, 0, "refcount table"},
        {56, 4, UINT32_MAX, "refcount table"},
        {60, 4, UINT32_MAX, "snapshots"},
        {60, 4, 1, "where none can be"},
        {72, 8, 2, "marked as damaged"},
        {72, 8, 4, "external data file"},
        {72, 8, 8, "compression type"},
        {72, 8, 16, "extended L2"},
        {72, 8, 32, "'without a name' (bit 5)"},
        {96, 4, 7, "refcounts of 2^7"},
        {100, 4, 96, "impossible length"},
        {100, 4, 101, "impossible length"},
        {100, 4, 8192, "impossible length"},
        {104, 1, 1, "compression type"},
        {8, 8, 10000, "backing file is damaged"},
        {40, 8, 4096, "lie over one another"},
    };
    struct memory *m = memory_new();
    format(m, &create_default);
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        uint8_t saved[8], *field = m->bytes + bad[i].at;
        memcpy(saved, field, sizeof(saved));
        for (unsigned b = 0; b < bad[i].size; b++)
            field[b] = (uint8_t)(bad[i].value >> 8 * (bad[i].size - 1 - b));
        refuse(m, bad[i].why);
        memcpy(field, saved, sizeof(saved));
    }
    image_close(open_image(m));
    /* the image's own name for what we do not know */
    m->bytes[72 + 7] = 32;
    memcpy(m->bytes + 120, "\0\5warp", 7);
    uint8_t type[4];
    store_be32(type, QCOW2_EXTENSION_FEATURES);
    assert_memory_equal(m->bytes + 112, type, 4);
    refuse(m, "'warp' (bit 5)");
    memory_free(m);
}

static void creation_is_judged(void **state)
{
    struct qcow2_create bad[] = {
        {.size = SIZE, .version = 1, .cluster_size = 65536},
        {.size = SIZE, .version = 3, .cluster_size = 256},
        {.size = SIZE, .version = 3, .cluster_size = 4 << 20},
        {.size = SIZE, .version = 3, .cluster_size = 65535},
        {.size = 100, .version = 3, .cluster_size = 65536},
        {.size = UINT64_C(129) << 30, .version = 3, .cluster_size = 512},
        {.size = SIZE, .version = 2, .cluster_size = 65536, .compression = QCOW2_ZSTD},
        {.size = SIZE, .version = 2, .cluster_size = 65536, .has_lazy_refcounts = true},
    };
    struct memory *m = memory_new();
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        struct err e = {0};
        assert_true(qcow2_format(&m->store, &bad[i], &e) < 0);
        assert_true(e.msg[0] != '\0');
        assert_int_equal(m->end, 0);
    }
    memory_free(m);
}

/* ---- damage ---- */

static uint64_t l2_of(const struct memory *m)
{
    return load_be64(m->bytes + load_be64(m->bytes + 40)) & QCOW2_OFFSET_MASK;
}

/* An entry that leads to a table: nothing is written there, and the image is marked. */
static void damage_stops_writing(void **state)
{
    struct memory *m = memory_new();
    struct image *image;
    struct err e;
    format(m, &create_default);
    image = open_image(m);
    fill(image, 0, 65536, 1);
    image_close(image);
    uint8_t header[512];
    memcpy(header, m->bytes, sizeof(header));
    store_be64(m->bytes + l2_of(m) + 16, l2_of(m) | QCOW2_COPIED);
    image = open_image(m);
    uint8_t buf[512] = {5};
    assert_int_equal(image_write(image, 3 * 4096, buf, 512), 0);
    assert_int_equal(image_write(image, 2 * 4096, buf, 512), -EIO);
    assert_int_equal(image_write(image, 3 * 4096, buf, 512), -EIO);
    assert_true(image->ops->flush(image) < 0);
    assert_true(holds(image, 4096, 4096, 1)); /* reading goes on */
    image_close(image);
    assert_int_equal(m->bytes[79], 2);
    refuse(m, "marked as damaged");
    struct qcow2_check check = check_image(m, QCOW2_REPAIR_NONE);
    assert_true(check.errors > 0);
    /* the entry cannot be mended by counting: two things still lie there */
    check = check_image(m, QCOW2_REPAIR_ALL);
    assert_true(check.errors_fixed > 0);
    /* meaningless entries */
    memcpy(m->bytes, header, sizeof(header));
    store_be64(m->bytes + l2_of(m) + 16, UINT64_C(0x1200) | QCOW2_COPIED);
    image = open_image(m);
    assert_int_equal(image_read(image, 2 * 4096, buf, 512), -EIO);
    image_close(image);
    memcpy(m->bytes, header, sizeof(header));
    store_be64(m->bytes + l2_of(m) + 16, UINT64_C(0xffffffff000) | QCOW2_COPIED);
    assert_int_equal(try_open(m, true, &image, &e), 0);
    assert_int_equal(image_read(image, 2 * 4096, buf, 512), -EIO);
    image_close(image);
    memory_free(m);
}

static void dirty_images_are_repaired(void **state)
{
    struct memory *m = memory_new();
    struct image *image;
    format(m, &create_default);
    image = open_image(m);
    fill(image, 0, 65536, 1);
    image_close(image);
    /* as after a crash with lazy refcounts: marked, and no counts */
    memset(m->bytes + 2 * 4096, 0, 4096);
    assert_true(check_image(m, QCOW2_REPAIR_NONE).errors >= 16);
    m->bytes[79] = 1;
    image = open_image(m);
    fill(image, 65536, 65536, 2);
    assert_true(holds(image, 0, 65536, 1));
    image_close(image);
    assert_int_equal(m->bytes[79], 0);
    struct qcow2_check check = check_image(m, QCOW2_REPAIR_NONE);
    assert_int_equal(check.errors, 0);
    assert_int_equal(check.leaks, 0);
    assert_int_equal(check.allocated, 32);
    /* no refcount blocks at all: they are made anew */
    memset(m->bytes + 4096, 0, 4096);
    assert_true(check_image(m, QCOW2_REPAIR_NONE).errors >= 32);
    check = check_image(m, QCOW2_REPAIR_ALL);
    assert_true(check.errors >= 32);
    assert_int_equal(check.errors, check.errors_fixed);
    check = check_image(m, QCOW2_REPAIR_NONE);
    assert_int_equal(check.errors, 0);
    assert_int_equal(check.leaks, 0);
    /* leaks */
    image = open_image(m);
    uint64_t table = load_be64(m->bytes + 48), block = load_be64(m->bytes + table);
    image_close(image);
    store_be16(m->bytes + block + 2 * 200, 1);
    store_be16(m->bytes + block + 2 * 1, 3);
    check = check_image(m, QCOW2_REPAIR_LEAKS);
    assert_int_equal(check.errors, 0);
    assert_true(check.leaks >= 2);
    assert_int_equal(check.leaks_fixed, check.leaks);
    assert_int_equal(check_image(m, QCOW2_REPAIR_NONE).leaks, 0);
    memory_free(m);
}

static void the_host_may_fill_up(void **state)
{
    for (unsigned limit = 1; limit < 30; limit++) {
        struct memory *m = memory_new();
        struct image *image;
        format(m, &create_default);
        image = open_image(m);
        fill(image, 0, 32768, 1);
        assert_int_equal(image->ops->flush(image), 0);
        m->fail_after = limit;
        uint8_t buf[512] = {0};
        for (unsigned i = 0; i < 20; i++) {
            image_write(image, 40960 + i * 8192, buf, 512);
            image->ops->flush(image);
        }
        m->fail_after = 0;
        assert_true(holds(image, 0, 32768, 1));
        image_close(image);
        struct qcow2_check check = check_image(m, QCOW2_REPAIR_LEAKS);
        assert_int_equal(check.errors, 0);
        memory_free(m);
    }
}

/* ---- what entries become ---- */

static void discards_give_room_back(void **state)
{
    struct memory *m = memory_new();
    struct image *image;
    format(m, &create_default);
    image = open_image(m);
    fill(image, 0, 524288, 1);
    assert_int_equal(image->ops->discard(image, 100 * 512, 262144), 0);
    assert_int_equal(image->ops->flush(image), 0);
    uint64_t end = m->end;
    fill(image, 600 * 1024, 131072, 2); /* takes what was given free */
    assert_int_equal(image->ops->flush(image), 0);
    assert_true(m->end <= end + 4096);
    assert_true(holds(image, 0, 100 * 512, 1));
    assert_true(holds(image, 53248, 200000, 0));
    assert_int_equal(image->ops->write_zeroes(image, 512, 40960, false), 0);
    assert_true(holds(image, 512, 40960, 0));
    assert_true(holds(image, 41472, 4096, 1));
    image_close(image);
    struct qcow2_check check = check_image(m, QCOW2_REPAIR_NONE);
    assert_int_equal(check.errors + check.leaks, 0);
    memory_free(m);
}

/* What a request may still be reading is given free on the disk at once, but taken by nobody until
 * the request is over. */
static void what_is_in_use_is_not_taken(void **state)
{
    struct memory *m = memory_new(), *now = memory_new();
    struct image *image;
    struct image_access reading;
    struct qcow2_mapping old, new;
    format(m, &create_default);
    image = open_image(m);
    struct qcow2 *q = qcow2_of(image);
    fill(image, 0, 4096, 1);
    assert_int_equal(image->ops->flush(image), 0);
    assert_int_equal(qcow2_map_find(q, 0, 4096, &old), 0);
    qcow2_op_begin(q, &reading);
    assert_int_equal(image->ops->discard(image, 0, 4096), 0);
    assert_int_equal(image->ops->flush(image), 0);
    assert_int_equal(m->bytes[old.host], 1);
    memcpy(now->bytes, m->bytes, ROOM);
    now->end = m->end;
    struct qcow2_check check = check_image(now, QCOW2_REPAIR_NONE);
    assert_int_equal(check.errors + check.leaks, 0);
    fill(image, 8192, 4096, 2);
    assert_int_equal(qcow2_map_find(q, 8192, 4096, &new), 0);
    assert_int_not_equal(new.host, old.host);
    assert_int_equal(m->bytes[old.host], 1);
    qcow2_op_end(q, &reading);
    assert_int_equal(image->ops->flush(image), 0);
    fill(image, 16384, 4096, 3);
    assert_int_equal(qcow2_map_find(q, 16384, 4096, &new), 0);
    assert_int_equal(new.host, old.host);
    image_close(image);
    check = check_image(m, QCOW2_REPAIR_NONE);
    assert_int_equal(check.errors + check.leaks, 0);
    memory_free(now);
    memory_free(m);
}

static void sizes_change(void **state)
{
    for (unsigned version = 2; version <= 3; version++) {
        struct qcow2_create create = {.size = 65536, .version = version, .cluster_size = 512};
        struct memory *m = memory_new();
        struct image *image;
        struct err e;
        format(m, &create);
        image = open_image(m);
        fill(image, 0, 65536, 1);
        assert_int_equal(image->ops->resize(image, 4 * SIZE, &e), 0);
        assert_true(holds(image, 65536, 65536, 0));
        fill(image, 4 * SIZE - 512, 512, 3);
        assert_int_equal(image->ops->resize(image, 20 * 1024, &e), 0);
        assert_int_equal(image->ops->resize(image, SIZE, &e), 0);
        assert_true(holds(image, 0, 20 * 1024, 1));
        assert_true(holds(image, 20 * 1024, SIZE - 20 * 1024, 0));
        assert_true(image->ops->resize(image, UINT64_C(1) << 50, &e) < 0);
        image_close(image);
        struct qcow2_check check = check_image(m, QCOW2_REPAIR_NONE);
        assert_int_equal(check.errors + check.leaks, 0);
        assert_int_equal(check.clusters, SIZE / 512);
        memory_free(m);
    }
}

/* ---- power failures ---- */

#define OPS 250
#define FAILURES 40

struct history {
    size_t event_count; /* of the store, when the request was over */
    uint64_t offset, size;
    enum { WRITTEN, ZEROED, DISCARDED, FLUSHED } kind;
};

static uint64_t random_next(uint64_t *random, uint64_t limit)
{
    *random = *random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (*random >> 33) % limit;
}

static void write_stamped(struct image *image, unsigned number, const struct history *h)
{
    uint8_t *buf = malloc(h->size);
    for (uint64_t at = 0; at < h->size; at += 512) {
        memset(buf + at, (int)number, 512);
        store_le64(buf + at, number + 1);
    }
    assert_int_equal(image_write(image, h->offset, buf, h->size), 0);
    free(buf);
}

static void make_history(struct memory *m, struct image *image, struct history *history,
                         uint64_t *random)
{
    for (unsigned i = 0; i < OPS; i++) {
        struct history *h = &history[i];
        uint64_t first = random_next(random, SIZE / 512 - 64), kind = random_next(random, 10);
        *h = (struct history){.offset = first * 512, .size = 512 * (1 + random_next(random, 64))};
        h->kind = kind < 5 ? WRITTEN : kind == 5 ? ZEROED : kind < 8 ? DISCARDED : FLUSHED;
        if (h->kind == WRITTEN)
            write_stamped(image, i, h);
        else if (h->kind == ZEROED)
            assert_int_equal(image->ops->write_zeroes(image, h->offset, h->size, i & 1), 0);
        else if (h->kind == DISCARDED)
            assert_int_equal(image->ops->discard(image, h->offset, h->size), 0);
        else
            assert_int_equal(image->ops->flush(image), 0);
        h->event_count = m->count;
    }
}

/* The disk as it may be when the power fails after some events. */
static struct memory *fail_power(const struct memory *m, const struct memory *before, size_t count,
                                 uint64_t *random)
{
    struct memory *after = memory_new();
    size_t flushed = 0;
    memcpy(after->bytes, before->bytes, ROOM);
    after->end = before->end;
    for (size_t i = 0; i < count; i++)
        if (m->events[i].size == 0)
            flushed = i;
    for (size_t i = 0; i < count; i++) {
        const struct event *event = &m->events[i];
        for (uint64_t at = 0; at < event->size;) {
            uint64_t n = MIN(event->size - at, 512 - (event->offset + at) % 512);
            if (i < flushed || random_next(random, 2) != 0) {
                memcpy(after->bytes + event->offset + at, event->data + at, n);
                after->end = MAX(after->end, event->offset + at + n);
            }
            at += n;
        }
    }
    return after;
}

/* The disk as the survivor leaves it when the process is killed after some events, or, `is_within`,
 * when the one that follows was about to be carried out. */
static struct memory *kill_process(const struct memory *m, const struct memory *before,
                                   size_t count, bool is_within)
{
    struct memory *after = memory_new();
    const struct event *last = is_within    ? &m->events[count]
                               : count != 0 ? &m->events[count - 1]
                                            : NULL;
    memcpy(after->bytes, before->bytes, ROOM);
    after->end = before->end;
    for (size_t i = 0; i < count; i++) {
        if (m->events[i].size == 0)
            continue; /* a flush */
        memcpy(after->bytes + m->events[i].offset, m->events[i].data, m->events[i].size);
        after->end = MAX(after->end, m->events[i].offset + m->events[i].size);
    }
    if (last != NULL && last->list != NULL) {
        last->list->flushed = last->flushed;
        assert_int_equal(redo_finish(last->list, &after->store), 0);
    }
    return after;
}

/* Each sector holds what was last flushed, or anything that was written later. `first`: what was
 * there before all. */
static void judge(struct image *image, const struct history *history, size_t events, uint64_t first)
{
    uint64_t *flushed = calloc(SIZE / 512, sizeof(*flushed));
    unsigned last = 0;
    uint8_t buf[512];
    for (uint64_t s = 0; s < SIZE / 512; s++)
        flushed[s] = first;
    for (unsigned i = 0; i < OPS && history[i].event_count <= events; i++)
        if (history[i].kind == FLUSHED)
            last = i;
    for (unsigned i = 0; i < last; i++)
        for (uint64_t s = 0; history[i].kind != FLUSHED && s < history[i].size / 512; s++)
            flushed[history[i].offset / 512 + s] = history[i].kind == WRITTEN     ? i + 1
                                                   : history[i].kind == DISCARDED ? UINT64_MAX
                                                                                  : 0;
    for (uint64_t s = 0; s < SIZE / 512; s++) {
        bool is_fine = flushed[s] == UINT64_MAX;
        assert_int_equal(image_read(image, s * 512, buf, 512), 0);
        uint64_t got = load_le64(buf);
        is_fine |= got == flushed[s];
        for (unsigned i = last; i < OPS && !is_fine; i++)
            is_fine = s * 512 >= history[i].offset &&
                      s * 512 < history[i].offset + history[i].size &&
                      (history[i].kind == WRITTEN ? got == i + 1 : history[i].kind != FLUSHED);
        if (!is_fine)
            fail_msg("sector %u holds %llu instead of %llu", (unsigned)s, (unsigned long long)got,
                     (unsigned long long)flushed[s]);
    }
    free(flushed);
}

/* ---- internal snapshots, which doppel leaves alone but does not make ---- */

#define SNAPSHOT_STAMP (OPS + 5)

static void share_cluster(struct qcow2 *q, uint64_t host)
{
    assert_int_equal(qcow2_refcount_increase(q, host >> q->cluster_bits), 0);
}

/* Of a disk that is full of SNAPSHOT_STAMP: as `qemu-img snapshot -c` does it. */
static void take_snapshot(struct memory *m)
{
    struct image *image = open_image(m);
    struct qcow2 *q = qcow2_of(image);
    uint64_t l1_bytes = align_up(q->header.l1_count * UINT64_C(8), q->cluster_size), l1, table;
    bool is_fresh;
    uint8_t *entry;
    assert_int_equal(qcow2_allocate_all(q, l1_bytes >> q->cluster_bits, &l1, &is_fresh), 0);
    assert_int_equal(qcow2_allocate_all(q, 1, &table, &is_fresh), 0);
    for (uint64_t i = 0; i < q->header.l1_count; i++) {
        uint64_t l2 = q->l1[i] & QCOW2_OFFSET_MASK;
        share_cluster(q, l2);
        for (entry = m->bytes + l2; entry < m->bytes + l2 + q->cluster_size; entry += 8) {
            uint64_t host = load_be64(entry) & QCOW2_OFFSET_MASK;
            store_be64(entry, host);
            if (host != 0)
                share_cluster(q, host);
        }
        store_be64(m->bytes + q->header.l1_offset + i * 8, l2);
        store_be64(m->bytes + l1 + i * 8, l2);
    }
    entry = m->bytes + table;
    store_be64(entry, l1);
    store_be32(entry + 8, q->header.l1_count);
    entry[13] = entry[15] = 1; /* lengths of its number and its name */
    entry[39] = 16;            /* of what version 3 adds: */
    store_be64(entry + 48, SIZE);
    memcpy(entry + 56, "1s", 2);
    m->end = MAX(m->end, table + q->cluster_size);
    store_be32(m->bytes + 60, 1);
    store_be64(m->bytes + 64, table);
    image_close(image); /* writes out what is counted */
}

static bool snapshot_is_intact(const struct memory *m, uint32_t cluster_size)
{
    const uint8_t *table = m->bytes + load_be64(m->bytes + 64);
    const uint8_t *l1 = m->bytes + load_be64(table);
    uint64_t per_table = cluster_size / 8;
    bool is = load_be32(m->bytes + 60) == 1;
    for (uint64_t at = 0; is && at < SIZE; at += 512) {
        uint64_t cluster = at / cluster_size;
        const uint8_t *l2 = m->bytes + load_be64(l1 + cluster / per_table * 8);
        uint64_t host = load_be64(l2 + cluster % per_table * 8);
        is = host != 0 && load_le64(m->bytes + host + at % cluster_size) == SNAPSHOT_STAMP;
    }
    return is;
}

/* ---- the trial ---- */

enum end { END_POWER, END_KILL, END_KILL_WITHIN };

struct trial {
    struct qcow2_create create;
    bool has_snapshot;
    uint64_t random;
    struct memory *before, *m;
    struct history history[OPS];
};

static void trial_begin(struct trial *t)
{
    struct image *image;
    t->m = memory_new();
    t->before = memory_new();
    format(t->m, &t->create);
    if (t->has_snapshot) {
        struct history all = {.size = SIZE};
        image = open_image(t->m);
        write_stamped(image, SNAPSHOT_STAMP - 1, &all);
        image_close(image);
        take_snapshot(t->m);
        assert_true(snapshot_is_intact(t->m, t->create.cluster_size));
    }
    memcpy(t->before->bytes, t->m->bytes, ROOM);
    t->before->end = t->m->end;
    t->m->room = 1024;
    t->m->events = calloc(t->m->room, sizeof(*t->m->events));
    image = open_image(t->m);
    t->m->redo = &qcow2_of(image)->redo;
    make_history(t->m, image, t->history, &t->random);
    image_close(image);
}

/* It ends after some events, in that way. What is found then? */
static void trial_end(struct trial *t, enum end how, size_t events)
{
    struct memory *after = how == END_POWER
                               ? fail_power(t->m, t->before, events, &t->random)
                               : kill_process(t->m, t->before, events, how == END_KILL_WITHIN);
    struct qcow2_check check =
        check_image(after, how == END_POWER ? QCOW2_REPAIR_LEAKS : QCOW2_REPAIR_NONE);
    if (check.errors != 0 || (how != END_POWER && check.leaks != 0))
        fail_msg("%u errors, %u leaks after %zu of %zu events (%u)", (unsigned)check.errors,
                 (unsigned)check.leaks, events, t->m->count, how);
    struct image *image = open_image(after);
    judge(image, t->history, events, t->has_snapshot ? SNAPSHOT_STAMP : 0);
    fill(image, 0, SIZE, 7);
    assert_true(holds(image, 0, SIZE, 7));
    image_close(image);
    assert_true(!t->has_snapshot || snapshot_is_intact(after, t->create.cluster_size));
    check = check_image(after, QCOW2_REPAIR_NONE);
    assert_int_equal(check.errors + check.leaks, 0);
    memory_free(after);
}

static void survive(const struct qcow2_create *create, bool has_snapshot, bool is_power,
                    uint64_t random)
{
    struct trial *t = calloc(1, sizeof(*t));
    t->create = *create;
    t->has_snapshot = has_snapshot;
    t->random = random;
    trial_begin(t);
    for (unsigned i = 0; i < FAILURES; i++) {
        size_t events = random_next(&t->random, t->m->count + 1);
        enum end how = is_power                                             ? END_POWER
                       : events < t->m->count && random_next(&t->random, 2) ? END_KILL_WITHIN
                                                                            : END_KILL;
        trial_end(t, how, events);
    }
    memory_free(t->before);
    memory_free(t->m);
    free(t);
}

static void survive_in_all_sizes(bool is_power)
{
    for (unsigned version = 2; version <= 3; version++)
        for (uint32_t cluster = 512; cluster <= 65536; cluster *= version == 2 ? 8 : 2) {
            struct qcow2_create create = {
                .size = SIZE, .version = version, .cluster_size = cluster};
            survive(&create, false, is_power, cluster + version);
            if (cluster % 4096 == 0 || version == 2)
                survive(&create, true, is_power, cluster + version);
        }
}

static void power_failures(void **state)
{
    survive_in_all_sizes(true);
}

/* There is nothing to repair afterwards, not even a leak. */
static void kills(void **state)
{
    survive_in_all_sizes(false);
}

/* ---- growth of a disk in use: it works, or leaves what was there ---- */

#define SMALL UINT64_C(65536)
#define LARGE (UINT64_C(1) << 20)

/* A disk with data whose L1 table is full. */
static struct memory *make_small(unsigned version)
{
    struct qcow2_create create = {.size = SMALL, .version = version, .cluster_size = 512};
    struct memory *m = memory_new();
    format(m, &create);
    struct image *image = open_image(m);
    fill(image, 0, SMALL, 1);
    assert_int_equal(image->ops->flush(image), 0);
    image_close(image);
    return m;
}

static void growth_may_fail_anywhere(void **state)
{
    bool is_grown = false;
    for (unsigned limit = 1; !is_grown; limit++) {
        struct memory *m = make_small(2 + limit % 2);
        struct image *image = open_image(m);
        struct err e;
        m->fail_after = limit;
        is_grown = image->ops->resize(image, LARGE, &e) == 0;
        assert_int_equal(image->size, is_grown ? LARGE : SMALL);
        m->fail_after = 0;
        assert_true(holds(image, 0, SMALL, 1));
        uint8_t *new = malloc(SMALL);
        memset(new, 2, SMALL);
        /* it goes on, or says that it does not */
        if (image_write(image, 0, new, SMALL) == 0 && image->ops->flush(image) == 0)
            assert_true(holds(image, 0, SMALL, 2));
        else
            assert_int_equal(qcow2_of(image)->broken, -ENOSPC);
        free(new);
        image_close(image);
        struct qcow2_check check = check_image(m, QCOW2_REPAIR_LEAKS);
        assert_int_equal(check.errors, 0);
        memory_free(m);
        assert_true(limit < 100);
    }
}

static void growth_survives(bool is_power)
{
    uint64_t random = 5;
    struct memory *before = make_small(3), *m = make_small(3);
    struct image *image;
    struct err e;
    m->room = 64;
    m->events = calloc(m->room, sizeof(*m->events));
    image = open_image(m);
    m->redo = &qcow2_of(image)->redo;
    assert_int_equal(image->ops->resize(image, LARGE, &e), 0);
    size_t grown = m->count; /* what resize has said is so from here on */
    fill(image, LARGE - 512, 512, 3);
    image_close(image);
    for (size_t events = 0; events <= m->count; events++)
        for (unsigned i = 0; i < (is_power ? 8 : 2); i++) {
            struct memory *after =
                is_power ? fail_power(m, before, events, &random)
                         : kill_process(m, before, events, i != 0 && events < m->count);
            struct qcow2_check check =
                check_image(after, is_power ? QCOW2_REPAIR_LEAKS : QCOW2_REPAIR_NONE);
            assert_int_equal(check.errors, 0);
            assert_true(is_power || check.leaks == 0);
            image = open_image(after);
            assert_true(image->size == LARGE || (image->size == SMALL && events < grown));
            assert_true(holds(image, 0, SMALL, 1));
            assert_true(image->size == SMALL || holds(image, SMALL, LARGE - SMALL - 512, 0));
            fill(image, 0, image->size, 7);
            assert_true(holds(image, 0, image->size, 7));
            image_close(image);
            memory_free(after);
        }
    memory_free(before);
    memory_free(m);
}

static void growth_survives_power_failures(void **state)
{
    growth_survives(true);
}

static void growth_survives_kills(void **state)
{
    growth_survives(false);
}

/* ---- files: chains and formats ---- */

struct folder {
    char path[64];
};

static int setup(void **state)
{
    struct folder *f = calloc(1, sizeof(*f));
    strcpy(f->path, "/tmp/doppel-qcow2-XXXXXX");
    assert_non_null(mkdtemp(f->path));
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct folder *f = *state;
    char command[96];
    snprintf(command, sizeof(command), "rm -r '%s'", f->path);
    assert_int_equal(system(command), 0);
    free(f);
    return 0;
}

static const char *in(const struct folder *f, const char *name)
{
    static char path[128];
    snprintf(path, sizeof(path), "%s/%s", f->path, name);
    return path;
}

static void make_file(const struct folder *f, const char *name, const char *backing,
                      enum block_format backing_format)
{
    struct qcow2_create create = create_default;
    struct store *store;
    struct err e;
    create.backing_file = backing;
    create.backing_format = backing_format;
    assert_int_equal(store_create_file(in(f, name), true, &store, &e), 0);
    if (qcow2_format(store, &create, &e) != 0)
        fail_msg("%s", e.msg);
    store->ops->close(store);
}

static int open_file(const struct folder *f, const char *name, enum block_format format,
                     struct image **out, struct err *e)
{
    struct image_config config = {.path = in(f, name), .format = format};
    return image_open(&config, out, e);
}

static void refuse_file(const struct folder *f, const char *name, enum block_format format,
                        const char *why)
{
    struct image *image;
    struct err e;
    assert_true(open_file(f, name, format, &image, &e) < 0);
    if (strstr(e.msg, why) == NULL)
        fail_msg("'%s' does not say '%s'", e.msg, why);
}

static void chains(void **state)
{
    struct folder *f = *state;
    struct image *image;
    struct err e;
    make_file(f, "base.qcow2", NULL, BLOCK_FORMAT_AUTO);
    assert_int_equal(open_file(f, "base.qcow2", BLOCK_FORMAT_AUTO, &image, &e), 0);
    fill(image, 0, 65536, 1);
    image_close(image);
    make_file(f, "top.qcow2", "base.qcow2", BLOCK_FORMAT_QCOW2);
    assert_int_equal(open_file(f, "top.qcow2", BLOCK_FORMAT_AUTO, &image, &e), 0);
    assert_true(holds(image, 0, 65536, 1));
    fill(image, 512, 512, 2);
    assert_true(holds(image, 0, 512, 1) && holds(image, 512, 512, 2));
    /* what is read by one may not be written by another */
    refuse_file(f, "base.qcow2", BLOCK_FORMAT_QCOW2, "another program uses it");
    image_close(image);
    make_file(f, "loop.qcow2", "./loop.qcow2", BLOCK_FORMAT_QCOW2);
    refuse_file(f, "loop.qcow2", BLOCK_FORMAT_QCOW2, "its own backing file");
    make_file(f, "a.qcow2", "b.qcow2", BLOCK_FORMAT_QCOW2);
    make_file(f, "b.qcow2", "a.qcow2", BLOCK_FORMAT_QCOW2);
    refuse_file(f, "a.qcow2", BLOCK_FORMAT_QCOW2, "its own backing file");
    make_file(f, "gone.qcow2", "nowhere", BLOCK_FORMAT_RAW);
    refuse_file(f, "gone.qcow2", BLOCK_FORMAT_QCOW2, "No such file");
    make_file(f, "net.qcow2", "nbd:localhost:10809", BLOCK_FORMAT_RAW);
    refuse_file(f, "net.qcow2", BLOCK_FORMAT_QCOW2, "not the name of a file");
    make_file(f, "c000.qcow2", NULL, BLOCK_FORMAT_AUTO);
    for (unsigned i = 1; i <= IMAGE_CHAIN_MAX; i++) {
        char name[16], below[16];
        snprintf(name, sizeof(name), "c%03u.qcow2", i);
        snprintf(below, sizeof(below), "c%03u.qcow2", i - 1);
        make_file(f, name, below, BLOCK_FORMAT_QCOW2);
        if (i == IMAGE_CHAIN_MAX) {
            refuse_file(f, name, BLOCK_FORMAT_QCOW2, "on top of each other");
        } else {
            assert_int_equal(open_file(f, name, BLOCK_FORMAT_QCOW2, &image, &e), 0);
            image_close(image);
        }
    }
}

/* A raw disk's guest must not get at files of the host by writing a header. */
static void formats_are_not_guessed_wrong(void **state)
{
    struct folder *f = *state;
    struct image *image;
    struct err e;
    uint8_t header[4096];
    make_file(f, "evil", "/etc/passwd", BLOCK_FORMAT_RAW);
    refuse_file(f, "evil", BLOCK_FORMAT_AUTO, "state the format");
    assert_int_equal(open_file(f, "evil", BLOCK_FORMAT_RAW, &image, &e), 0);
    assert_int_equal(image_read(image, 0, header, sizeof(header)), 0);
    image_close(image);
    /* as a backing file whose format is not recorded */
    make_file(f, "top.qcow2", "evil", BLOCK_FORMAT_RAW);
    int fd = open(in(f, "top.qcow2"), O_RDWR);
    uint8_t none[8] = {0}, at[112 + 16];
    assert_int_equal(pread(fd, at, sizeof(at), 0), sizeof(at));
    assert_int_equal(load_be32(at + 112), QCOW2_EXTENSION_BACKING_FORMAT);
    store_be32(none, 0x12345678); /* an extension that nobody knows, of as many bytes */
    store_be32(none + 4, load_be32(at + 116));
    assert_int_equal(pwrite(fd, none, 8, 112), 8);
    close(fd);
    refuse_file(f, "top.qcow2", BLOCK_FORMAT_QCOW2, "does not state its format");
    /* a disk that was found to be raw does not begin to look like qcow2; one that is said to be
     * raw may */
    fd = open(in(f, "disk"), O_RDWR | O_CREAT, 0600);
    assert_int_equal(ftruncate(fd, SIZE), 0);
    close(fd);
    assert_int_equal(open_file(f, "disk", BLOCK_FORMAT_AUTO, &image, &e), 0);
    assert_int_equal(image_write(image, 0, header, sizeof(header)), -EPERM);
    assert_true(holds(image, 0, sizeof(header), 0));
    header[0] = 'X';
    assert_int_equal(image_write(image, 0, header, sizeof(header)), 0);
    header[0] = 'Q';
    image_close(image);
    assert_int_equal(open_file(f, "disk", BLOCK_FORMAT_RAW, &image, &e), 0);
    assert_int_equal(image_write(image, 0, header, sizeof(header)), 0);
    image_close(image);
}

static void ephemeral_disks_change_nothing(void **state)
{
    struct folder *f = *state;
    struct image *image;
    struct err e;
    make_file(f, "base.qcow2", NULL, BLOCK_FORMAT_AUTO);
    assert_int_equal(open_file(f, "base.qcow2", BLOCK_FORMAT_AUTO, &image, &e), 0);
    fill(image, 0, 65536, 1);
    image_close(image);
    struct image_config config = {.path = in(f, "base.qcow2"), .is_read_only = true};
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(image_open(&config, &image, &e), 0);
        setenv("TMPDIR", f->path, 1);
        if (image_open_ephemeral(image, &image, &e) != 0)
            fail_msg("%s", e.msg);
        unsetenv("TMPDIR");
        assert_true(holds(image, 0, 65536, 1));
        assert_true(holds(image, 65536, 65536, 0));
        fill(image, 512, 131072, 2);
        assert_true(holds(image, 512, 131072, 2));
        assert_int_equal(image->ops->flush(image), 0);
        image_close(image);
    }
    setenv("TMPDIR", "/nonexistent", 1);
    assert_int_equal(image_open(&config, &image, &e), 0);
    assert_true(image_open_ephemeral(image, &image, &e) < 0);
    unsetenv("TMPDIR");
    assert_non_null(strstr(e.msg, "/nonexistent"));
}

static void counts_of_every_width(void **state)
{
    for (unsigned order = 0; order <= 6; order++) {
        uint64_t max = mask_bytes(8) >> (64 - (1u << order));
        uint8_t block[64] = {0};
        unsigned n = 512 >> order;
        for (unsigned i = 0; i < n; i++)
            qcow2_count_store(block, i, order, (i * UINT64_C(0x9e3779b97f4a7c15)) & max);
        for (unsigned i = 0; i < n; i++)
            assert_int_equal(qcow2_count_load(block, i, order),
                             (i * UINT64_C(0x9e3779b97f4a7c15)) & max);
    }
}

static void sets(void **state)
{
    struct qcow2_set set = {0};
    assert_false(qcow2_set_has(&set, 0, 100));
    for (uint64_t i = 0; i < 5000; i++)
        assert_int_equal(qcow2_set_add(&set, i * i), 0);
    assert_int_equal(qcow2_set_add(&set, 49), -EEXIST);
    for (uint64_t i = 0; i < 5000; i += 2)
        qcow2_set_remove(&set, i * i);
    for (uint64_t i = 0; i < 5000; i++)
        assert_int_equal(qcow2_set_has(&set, i * i, 1), i & 1);
    assert_true(qcow2_set_has(&set, 45, 5));
    assert_false(qcow2_set_has(&set, 50, 31));
    qcow2_set_free(&set);
}

int main(void)
{
#define IN_FOLDER(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counts_of_every_width),
        cmocka_unit_test(sets),
        cmocka_unit_test(headers_are_judged),
        cmocka_unit_test(creation_is_judged),
        cmocka_unit_test(damage_stops_writing),
        cmocka_unit_test(dirty_images_are_repaired),
        cmocka_unit_test(the_host_may_fill_up),
        cmocka_unit_test(discards_give_room_back),
        cmocka_unit_test(what_is_in_use_is_not_taken),
        cmocka_unit_test(sizes_change),
        cmocka_unit_test(power_failures),
        cmocka_unit_test(kills),
        cmocka_unit_test(growth_may_fail_anywhere),
        cmocka_unit_test(growth_survives_power_failures),
        cmocka_unit_test(growth_survives_kills),
        IN_FOLDER(chains),
        IN_FOLDER(formats_are_not_guessed_wrong),
        IN_FOLDER(ephemeral_disks_change_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
