/*
 * virtqueue_test.c - both rings against a driver that plays by the rules, and one that does not
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bits.h"
#include "dev/virtio/virtqueue.h"
#include "dev/virtio/virtqueue_ring.h"
#include "mem/space.h"

#define RAM_SIZE 0x20000u
#define DESC 0x1000u
#define DRIVER 0x2000u
#define DEVICE 0x3000u
#define TABLE 0x4000u /* indirect */
#define DATA 0x8000u
#define SIZE 8u

struct fixture {
    uint8_t *ram;
    struct space *space;
    struct virtqueue q;
    struct virtqueue_buffer buffers[SIZE];
    struct virtqueue_chain chain;
    uint64_t written_addr, written_size; /* last that the watcher heard of */
    uint64_t noted_bytes;
    bool noted[RAM_SIZE];
    bool is_packed;

    /* the driver's own */
    uint16_t avail, used;
    bool avail_wrap, used_wrap;
};

struct piece {
    uint64_t addr;
    uint32_t len;
    uint16_t flags; /* DESC_WRITE, DESC_INDIRECT; DESC_NEXT is added */
};

static void note_written(void *ctx, uint64_t addr, uint64_t size)
{
    struct fixture *f = ctx;
    f->written_addr = addr;
    f->written_size = size;
    f->noted_bytes += size;
    assert_true(range_fits(addr, size, RAM_SIZE));
    memset(f->noted + addr, true, size);
}

static struct fixture *setup(bool is_packed, bool is_event_idx)
{
    struct fixture *f = calloc(1, sizeof(*f));
    f->ram = aligned_alloc(4096, RAM_SIZE);
    memset(f->ram, 0, RAM_SIZE);
    assert_int_equal(space_create("memory", BIT(40), &f->space, NULL), 0);
    assert_int_equal(space_add_ram(f->space, 0, f->ram, RAM_SIZE, false, NULL), 0);
    space_set_watcher(f->space, note_written, f);
    virtqueue_reset(&f->q, SIZE);
    f->q.descriptors = DESC;
    f->q.driver = DRIVER;
    f->q.device = DEVICE;
    f->is_packed = is_packed;
    f->avail_wrap = f->used_wrap = true;
    f->chain.buffers = f->buffers;
    assert_true(virtqueue_enable(&f->q, f->space, is_packed, true, is_event_idx));
    return f;
}

static void teardown(struct fixture *f)
{
    space_destroy(f->space);
    free(f->ram);
    free(f);
}

/* ---- the driver ---- */

static void put_descriptor(struct fixture *f, uint32_t at, const struct piece *p, uint16_t flags,
                           uint16_t third, bool is_packed)
{
    uint8_t *d = f->ram + at;
    store_le64(d, p->addr);
    store_le32(d + 8, p->len);
    store_le16(d + 12, is_packed ? third : flags);
    store_le16(d + 14, is_packed ? flags : third);
}

/* Make one chain available, its descriptors in order from where the ring stands. */
static void offer(struct fixture *f, const struct piece *pieces, unsigned count, uint16_t id)
{
    if (!f->is_packed) {
        unsigned first = id;
        for (unsigned i = 0; i < count; i++) {
            unsigned at = (first + i) % SIZE;
            uint16_t flags = pieces[i].flags | (i + 1 < count ? DESC_NEXT : 0);
            put_descriptor(f, DESC + at * DESCRIPTOR_SIZE, &pieces[i], flags,
                           (uint16_t)((at + 1) % SIZE), false);
        }
        store_le16(f->ram + DRIVER + AVAIL_RING + 2 * (f->avail % SIZE), id);
        f->avail++;
        store_le16(f->ram + DRIVER + AVAIL_INDEX, f->avail);
        return;
    }
    for (unsigned i = 0; i < count; i++) {
        uint16_t flags = pieces[i].flags | (i + 1 < count ? DESC_NEXT : 0);
        flags |= f->avail_wrap ? DESC_AVAIL : DESC_USED;
        put_descriptor(f, DESC + f->avail * DESCRIPTOR_SIZE, &pieces[i], flags, id, true);
        if (++f->avail == SIZE) {
            f->avail = 0;
            f->avail_wrap = !f->avail_wrap;
        }
    }
}

/* The next used entry, if there is one; `count` descriptors of the ring become free. */
static bool take_used(struct fixture *f, unsigned count, uint16_t *id, uint32_t *len)
{
    if (!f->is_packed) {
        if (load_le16(f->ram + DEVICE + USED_INDEX) == f->used)
            return false;
        const uint8_t *entry = f->ram + DEVICE + USED_RING + USED_SIZE * (f->used++ % SIZE);
        *id = (uint16_t)load_le32(entry);
        *len = load_le32(entry + 4);
        return true;
    }
    const uint8_t *d = f->ram + DESC + f->used * DESCRIPTOR_SIZE;
    uint16_t flags = load_le16(d + 14);
    if (((flags & DESC_AVAIL) != 0) != f->used_wrap || ((flags & DESC_USED) != 0) != f->used_wrap)
        return false;
    *id = load_le16(d + 12);
    *len = load_le32(d + 8);
    f->used = (uint16_t)(f->used + count);
    if (f->used >= SIZE) {
        f->used = (uint16_t)(f->used - SIZE);
        f->used_wrap = !f->used_wrap;
    }
    return true;
}

static bool pop(struct fixture *f)
{
    return virtqueue_pop(&f->q, &f->chain);
}

/* ---- by the rules ---- */

static void chains_go_round(bool is_packed)
{
    struct fixture *f = setup(is_packed, false);
    uint16_t id;
    uint32_t len;

    assert_false(pop(f));
    for (unsigned n = 0; n < 70000; n++) { /* indices wrap at 65536 */
        struct piece pieces[] = {{DATA, 10, 0}, {DATA + 100, 20, 0}, {DATA + 200, 30, DESC_WRITE}};
        uint16_t want = (uint16_t)(n * 3 % SIZE);
        memcpy(f->ram + DATA, "0123456789", 10);
        offer(f, pieces, 3, want);
        assert_true(pop(f));
        assert_int_equal(f->chain.out_count, 2);
        assert_int_equal(f->chain.in_count, 1);
        assert_int_equal(f->chain.out_size, 30);
        assert_int_equal(f->chain.in_size, 30);
        assert_false(pop(f));
        if (n % 7 == 0) { /* put back and taken again, it is the same */
            virtqueue_unpop(&f->q, &f->chain);
            assert_true(pop(f));
            assert_int_equal(f->chain.out_size, 30);
        }
        char text[4];
        assert_int_equal(virtqueue_read(&f->chain, 7, text, 4), 4);
        assert_memory_equal(text, "789", 4);
        assert_int_equal(virtqueue_write(&f->chain, 5, "abc", 3), 3);
        assert_memory_equal(f->ram + DATA + 205, "abc", 3);
        virtqueue_push(&f->q, &f->chain, 8);
        assert_true(take_used(f, 3, &id, &len));
        assert_int_equal(id, want);
        assert_int_equal(len, 8);
        assert_false(take_used(f, 3, &id, &len));
    }
    assert_false(f->q.is_broken);
    teardown(f);
}

static void split_chains_go_round(void **state)
{
    chains_go_round(false);
}

static void packed_chains_go_round(void **state)
{
    chains_go_round(true);
}

static void several_are_under_way(bool is_packed)
{
    struct fixture *f = setup(is_packed, false);
    struct virtqueue_buffer buffers[3][SIZE];
    struct virtqueue_chain chains[3];
    uint16_t id;
    uint32_t len;

    for (unsigned i = 0; i < 3; i++) {
        struct piece pieces[] = {{DATA + i * 64, 64, DESC_WRITE}, {DATA, 8, DESC_WRITE}};
        chains[i].buffers = buffers[i];
        offer(f, pieces, 2, (uint16_t)(i * 2));
        assert_true(virtqueue_pop(&f->q, &chains[i]));
    }
    for (unsigned i = 3; i-- > 0;) { /* in another order */
        virtqueue_push(&f->q, &chains[i], 10 + i);
        assert_true(take_used(f, 2, &id, &len));
        assert_int_equal(id, i * 2);
        assert_int_equal(len, 10 + i);
    }
    teardown(f);
}

static void split_several_are_under_way(void **state)
{
    several_are_under_way(false);
}

static void packed_several_are_under_way(void **state)
{
    several_are_under_way(true);
}

static void indirect_tables(void **state)
{
    for (unsigned packed = 0; packed < 2; packed++) {
        struct fixture *f = setup(packed, false);
        struct piece inner[] = {{DATA, 16, 0}, {DATA + 16, 32, DESC_WRITE}};
        struct piece outer = {TABLE, 2 * DESCRIPTOR_SIZE, DESC_INDIRECT};
        put_descriptor(f, TABLE, &inner[0], packed ? 0 : DESC_NEXT, 1, packed);
        put_descriptor(f, TABLE + DESCRIPTOR_SIZE, &inner[1], DESC_WRITE, 0, packed);
        offer(f, &outer, 1, 5);
        assert_true(pop(f));
        assert_int_equal(f->chain.out_size, 16);
        assert_int_equal(f->chain.in_size, 32);
        virtqueue_push(&f->q, &f->chain, 32);
        teardown(f);
    }
}

/* What the device wrote may be code: whoever watches hears of it. */
static void writes_are_told(void **state)
{
    struct fixture *f = setup(false, false);
    struct piece pieces[] = {{DATA, 16, DESC_WRITE}};
    offer(f, pieces, 1, 0);
    assert_true(pop(f));
    f->q.is_broken = true; /* so that the ring itself is left alone */
    virtqueue_push(&f->q, &f->chain, 5);
    assert_int_equal(f->written_addr, DATA);
    assert_int_equal(f->written_size, 5);
    teardown(f);
}

/* Every byte of the rings that the device changed was told, and no more than it wrote. */
static void ring_writes_are_told(void **state)
{
    static uint8_t before[RAM_SIZE];

    for (unsigned kind = 0; kind < 4; kind++) {
        bool is_packed = kind & 1, is_event_idx = kind & 2;
        struct fixture *f = setup(is_packed, is_event_idx);
        for (unsigned i = 0; i < 3 * SIZE; i++) {
            struct piece piece = {DATA, 16, DESC_WRITE};
            uint16_t id;
            uint32_t len;
            offer(f, &piece, 1, (uint16_t)(i % SIZE));
            memcpy(before, f->ram, RAM_SIZE);
            memset(f->noted, 0, sizeof(f->noted));
            f->noted_bytes = 0;
            virtqueue_set_notify(&f->q, i % 3 == 0);
            assert_true(pop(f));
            virtqueue_push(&f->q, &f->chain, 0);
            virtqueue_set_notify(&f->q, i % 3 == 1);
            for (unsigned at = 0; at < RAM_SIZE; at++)
                if (before[at] != f->ram[at])
                    assert_true(f->noted[at]);
            assert_in_range(f->noted_bytes, 8, 10 + 3 * 4);
            assert_true(take_used(f, 1, &id, &len));
        }
        teardown(f);
    }
}

static void push_one(struct fixture *f, uint16_t id)
{
    struct piece piece = {DATA, 16, DESC_WRITE};
    uint16_t got;
    uint32_t len;
    offer(f, &piece, 1, id);
    assert_true(pop(f));
    virtqueue_push(&f->q, &f->chain, 0);
    assert_true(take_used(f, 1, &got, &len));
}

static void interrupts_are_suppressed(void **state)
{
    struct fixture *f = setup(false, false);
    assert_false(virtqueue_wants_interrupt(&f->q)); /* nothing was pushed */
    push_one(f, 0);
    assert_true(virtqueue_wants_interrupt(&f->q));
    assert_false(virtqueue_wants_interrupt(&f->q));
    store_le16(f->ram + DRIVER + AVAIL_FLAGS, AVAIL_NO_INTERRUPT);
    push_one(f, 1);
    assert_false(virtqueue_wants_interrupt(&f->q));
    assert_false(virtqueue_set_notify(&f->q, false));
    assert_int_equal(load_le16(f->ram + DEVICE + USED_FLAGS), USED_NO_NOTIFY);
    struct piece piece = {DATA, 16, 0};
    offer(f, &piece, 1, 2);
    assert_true(virtqueue_set_notify(&f->q, true)); /* it came meanwhile */
    assert_int_equal(load_le16(f->ram + DEVICE + USED_FLAGS), 0);
    teardown(f);

    f = setup(true, false);
    store_le16(f->ram + DRIVER + PACKED_EVENT_FLAGS, EVENT_DISABLE);
    push_one(f, 0);
    assert_false(virtqueue_wants_interrupt(&f->q));
    store_le16(f->ram + DRIVER + PACKED_EVENT_FLAGS, EVENT_ENABLE);
    assert_true(virtqueue_wants_interrupt(&f->q)); /* the one of before */
    assert_false(virtqueue_wants_interrupt(&f->q));
    virtqueue_set_notify(&f->q, false);
    assert_int_equal(load_le16(f->ram + DEVICE + PACKED_EVENT_FLAGS), EVENT_DISABLE);
    teardown(f);
}

static void event_indices(void **state)
{
    struct fixture *f = setup(false, true);
    uint8_t *used_event = f->ram + DRIVER + AVAIL_RING + 2 * SIZE;
    uint8_t *avail_event = f->ram + DEVICE + USED_RING + USED_SIZE * SIZE;
    store_le16(used_event, 2); /* at the third */
    for (unsigned i = 0; i < 5; i++) {
        push_one(f, (uint16_t)i);
        assert_int_equal(virtqueue_wants_interrupt(&f->q), i == 2);
        assert_int_equal(load_le16(avail_event), i + 1);
    }
    store_le16(used_event, 6);
    push_one(f, 5);
    push_one(f, 6);
    push_one(f, 7);
    assert_true(virtqueue_wants_interrupt(&f->q)); /* passed on the way */
    teardown(f);

    f = setup(true, true);
    store_le16(f->ram + DRIVER, 2 | 1u << 15);
    store_le16(f->ram + DRIVER + PACKED_EVENT_FLAGS, EVENT_DESCRIPTOR);
    for (unsigned i = 0; i < 3 * SIZE; i++) {
        if (i == SIZE) /* the same slot, on the next lap */
            store_le16(f->ram + DRIVER, 2);
        push_one(f, (uint16_t)(i % SIZE));
        assert_int_equal(virtqueue_wants_interrupt(&f->q), i == 2 || i == SIZE + 2);
    }
    assert_false(virtqueue_set_notify(&f->q, true));
    assert_int_equal(load_le16(f->ram + DEVICE + PACKED_EVENT_FLAGS), EVENT_DESCRIPTOR);
    assert_int_equal(load_le16(f->ram + DEVICE), f->avail | f->avail_wrap << 15);
    teardown(f);
}

/* ---- against them ---- */

static void assert_broken(struct fixture *f, const char *about)
{
    assert_false(pop(f));
    assert_true(f->q.is_broken);
    if (strstr(f->q.why, about) == NULL)
        fail_msg("'%s' instead of something about '%s'", f->q.why, about);
    assert_false(pop(f));
    assert_false(virtqueue_wants_interrupt(&f->q));
    teardown(f);
}

static void bad_chain(bool packed, const struct piece *pieces, unsigned count, const char *about)
{
    struct fixture *f = setup(packed, false);
    offer(f, pieces, count, 0);
    assert_broken(f, about);
}

static void bad_buffers(void **state)
{
    struct piece absent = {RAM_SIZE, 16, 0}, over = {RAM_SIZE - 8, 16, 0};
    struct piece wraps = {UINT64_MAX - 7, 16, DESC_WRITE}, empty = {DATA, 0, 0};
    struct piece long_one = {0, 0xffffffff, 0};
    struct piece order[] = {{DATA, 8, DESC_WRITE}, {DATA, 8, 0}};
    struct piece nested = {TABLE, 24, DESC_INDIRECT}, no_table = {RAM_SIZE, 32, DESC_INDIRECT};

    for (unsigned packed = 0; packed < 2; packed++) {
        bad_chain(packed, &absent, 1, "not in RAM");
        bad_chain(packed, &over, 1, "not in RAM");
        bad_chain(packed, &wraps, 1, "not in RAM");
        bad_chain(packed, &long_one, 1, "not in RAM");
        bad_chain(packed, &empty, 1, "empty");
        bad_chain(packed, order, 2, "readable buffer follows");
        bad_chain(packed, &nested, 1, "impossible size");
        bad_chain(packed, &no_table, 1, "not in RAM");
    }
}

static void loops(void **state)
{
    struct piece ring[SIZE];
    for (unsigned i = 0; i < SIZE; i++)
        ring[i] = (struct piece){DATA, 8, 0};
    struct fixture *f = setup(false, false);
    offer(f, ring, SIZE, 0);
    f->ram[DESC + (SIZE - 1) * DESCRIPTOR_SIZE + 12] = DESC_NEXT; /* and back to the first */
    assert_broken(f, "longer than the queue");

    f = setup(true, false);
    offer(f, ring, SIZE, 0);
    f->ram[DESC + (SIZE - 1) * DESCRIPTOR_SIZE + 14] |= DESC_NEXT;
    assert_broken(f, "longer than the queue");

    for (unsigned packed = 0; packed < 2; packed++) { /* an indirect table, too */
        f = setup(packed, false);
        struct piece outer = {TABLE, 64 * DESCRIPTOR_SIZE, DESC_INDIRECT};
        for (unsigned i = 0; i < 64; i++)
            put_descriptor(f, TABLE + i * DESCRIPTOR_SIZE, &ring[0], packed ? 0 : DESC_NEXT, 0,
                           packed);
        offer(f, &outer, 1, 0);
        assert_broken(f, "longer than the queue");
    }
}

static void bad_indices(void **state)
{
    struct fixture *f = setup(false, false);
    store_le16(f->ram + DRIVER + AVAIL_INDEX, SIZE + 1);
    assert_broken(f, "more buffers");
    f = setup(false, false);
    store_le16(f->ram + DRIVER + AVAIL_RING, SIZE);
    store_le16(f->ram + DRIVER + AVAIL_INDEX, 1);
    assert_broken(f, "head");
    f = setup(false, false);
    struct piece two[] = {{DATA, 8, 0}, {DATA, 8, 0}};
    offer(f, two, 2, 0);
    store_le16(f->ram + DESC + 14, 0xffff);
    assert_broken(f, "successor");
    f = setup(false, false);
    struct piece outer = {TABLE, DESCRIPTOR_SIZE, DESC_INDIRECT};
    put_descriptor(f, TABLE, &two[0], DESC_NEXT, 1, false);
    offer(f, &outer, 1, 0);
    assert_broken(f, "successor");
    f = setup(false, false);
    put_descriptor(f, TABLE, &outer, DESC_INDIRECT, 0, false);
    offer(f, &outer, 1, 0);
    assert_broken(f, "lies in an indirect table");
}

static void bad_areas(void **state)
{
    static const struct {
        uint64_t descriptors, driver, device;
        uint16_t size;
        bool is_packed;
    } cases[] = {
        {DESC + 8, DRIVER, DEVICE, SIZE, false},
        {DESC, DRIVER + 1, DEVICE, SIZE, false},
        {DESC, DRIVER, DEVICE + 2, SIZE, false},
        {RAM_SIZE, DRIVER, DEVICE, SIZE, false},
        {DESC, UINT64_MAX - 1, DEVICE, SIZE, false},
        {DESC, DRIVER, RAM_SIZE - 16, SIZE, false},
        {DESC, DRIVER, DEVICE, 6, false},
        {DESC, DRIVER, DEVICE, 0, true},
        {DESC, DRIVER + 2, DEVICE, SIZE, true},
        {DESC, DRIVER, RAM_SIZE, SIZE, true},
        {DESC, DRIVER, DEVICE, 2048, true},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct fixture *f = setup(false, false);
        virtqueue_reset(&f->q, cases[i].size);
        f->q.descriptors = cases[i].descriptors;
        f->q.driver = cases[i].driver;
        f->q.device = cases[i].device;
        assert_false(virtqueue_enable(&f->q, f->space, cases[i].is_packed, true, false));
        assert_false(f->q.is_enabled);
        assert_false(pop(f));
        virtqueue_reset(&f->q, SIZE); /* a reset makes it good again */
        f->q.descriptors = DESC;
        f->q.driver = DRIVER;
        f->q.device = DEVICE;
        assert_true(virtqueue_enable(&f->q, f->space, false, true, false));
        teardown(f);
    }
}

/* Rings full of chance: nothing may be reached outside of RAM, and every call comes back. */
static void random_rings(void **state)
{
    uint64_t seed = 88172645463325252u;
    for (unsigned n = 0; n < 5000; n++) {
        struct fixture *f = setup(n & 1, n & 2);
        for (unsigned i = 0; i < 200; i++) {
            seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
            unsigned at = seed % 4 * 0x1000 + DESC + (seed >> 8) % 0x90;
            /* small numbers are the interesting ones */
            f->ram[at] = (uint8_t)(seed >> 40 & (seed >> 60 ? 0x0f : 0xff));
        }
        for (unsigned i = 0; i < 2 * SIZE && pop(f); i++) {
            for (unsigned b = 0; b < f->chain.out_count + f->chain.in_count; b++) {
                const uint8_t *host = f->buffers[b].host;
                assert_true(host >= f->ram && host + f->buffers[b].len <= f->ram + RAM_SIZE);
            }
            virtqueue_push(&f->q, &f->chain, (uint32_t)f->chain.in_size);
            virtqueue_wants_interrupt(&f->q);
        }
        teardown(f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(split_chains_go_round),
        cmocka_unit_test(packed_chains_go_round),
        cmocka_unit_test(split_several_are_under_way),
        cmocka_unit_test(packed_several_are_under_way),
        cmocka_unit_test(indirect_tables),
        cmocka_unit_test(writes_are_told),
        cmocka_unit_test(ring_writes_are_told),
        cmocka_unit_test(interrupts_are_suppressed),
        cmocka_unit_test(event_indices),
        cmocka_unit_test(bad_buffers),
        cmocka_unit_test(loops),
        cmocka_unit_test(bad_indices),
        cmocka_unit_test(bad_areas),
        cmocka_unit_test(random_rings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
