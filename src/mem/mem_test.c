/*
 * mem_test.c - guest RAM and address spaces
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/bits.h"
#include "mem/ram.h"
#include "mem/space.h"

/* A device that remembers the last accesses, backed by bytes. */
struct dev {
    pthread_mutex_t lock;
    uint8_t bytes[64];
    struct {
        uint64_t offset;
        unsigned size;
        bool is_write;
    } seen[16];
    unsigned count;
};

static void dev_note(struct dev *d, uint64_t offset, unsigned size, bool is_write)
{
    /* The space holds the lock that the region names. */
    assert_int_equal(pthread_mutex_trylock(&d->lock), EBUSY);
    assert_true(range_fits(offset, size, sizeof(d->bytes)));
    d->seen[d->count].offset = offset;
    d->seen[d->count].size = size;
    d->seen[d->count++].is_write = is_write;
}

static uint64_t dev_read(void *ctx, uint64_t offset, unsigned size)
{
    struct dev *d = ctx;
    dev_note(d, offset, size, false);
    uint64_t v = 0;
    memcpy(&v, d->bytes + offset, size);
    return v | ~mask_bytes(size); /* garbage above must not leak */
}

static void dev_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct dev *d = ctx;
    dev_note(d, offset, size, true);
    assert_true((value & ~mask_bytes(size)) == 0);
    memcpy(d->bytes + offset, &value, size);
}

static const struct space_ops ops_1_4 = {.read = dev_read, .write = dev_write};
static const struct space_ops ops_4_4 = {
    .read = dev_read, .write = dev_write, .min_size = 4, .max_size = 4};
static const struct space_ops ops_4_8 = {
    .read = dev_read, .write = dev_write, .min_size = 4, .max_size = 8};

struct fixture {
    struct space *space;
    uint8_t ram[8192];
    uint8_t rom[4096];
    struct dev dev;
    uint64_t written_addr, written_size;
    unsigned written_count;
};

static int setup(void **state)
{
    static struct fixture f;
    memset(&f, 0, sizeof(f));
    pthread_mutex_init(&f.dev.lock, NULL);
    for (unsigned i = 0; i < sizeof(f.dev.bytes); i++)
        f.dev.bytes[i] = (uint8_t)(0x80 + i);
    *state = &f;
    struct err e;
    return space_create("memory", UINT64_C(1) << 40, &f.space, &e);
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    space_destroy(f->space);
    return 0;
}

static void assert_seen(struct dev *d, unsigned i, uint64_t offset, unsigned size, bool is_write)
{
    assert_int_equal(d->seen[i].offset, offset);
    assert_int_equal(d->seen[i].size, size);
    assert_int_equal(d->seen[i].is_write, is_write);
}

static void test_ram_and_gap(void **state)
{
    struct fixture *f = *state;
    struct err e;
    assert_int_equal(space_add_ram(f->space, 0x1000, f->ram, sizeof(f->ram), false, &e), 0);
    space_store(f->space, 0x1004, 0x1122334455667788, 8);
    assert_true(space_load(f->space, 0x1004, 8) == 0x1122334455667788);
    assert_int_equal(space_load(f->space, 0x1005, 1), 0x77);
    assert_int_equal(space_load(f->space, 0x1005, 2), 0x6677);
    assert_int_equal(space_load(f->space, 0x1005, 4), 0x44556677);
    /* Nobody there: ones, and writes vanish. */
    assert_int_equal(space_load(f->space, 0, 4), 0xffffffff);
    space_store(f->space, 0, 1, 4);
    /* Half RAM, half nothing; both ends. */
    store_le16(f->ram, 0xbbaa);
    assert_int_equal(space_load(f->space, 0xffe, 4), 0xbbaaffff);
    space_store(f->space, 0xffe, 0x44332211, 4);
    assert_int_equal(load_le16(f->ram), 0x4433);
    store_le16(f->ram + sizeof(f->ram) - 2, 0xddcc);
    assert_int_equal(space_load(f->space, 0x2ffe, 4), 0xffffddcc);
    assert_true(space_load(f->space, UINT64_MAX, 8) == UINT64_MAX);
    assert_true(space_load(f->space, UINT64_MAX - 3, 8) == UINT64_MAX);
}

static void test_rom(void **state)
{
    struct fixture *f = *state;
    struct err e;
    f->rom[0] = 7;
    assert_int_equal(space_add_ram(f->space, 0xf000, f->rom, sizeof(f->rom), true, &e), 0);
    space_store(f->space, 0xf000, 9, 1);
    assert_int_equal(space_load(f->space, 0xf000, 1), 7);
    uint8_t nine = 9;
    space_write(f->space, 0xf000, &nine, 1);
    assert_int_equal(f->rom[0], 7);
    assert_ptr_equal(space_ram_ptr(f->space, 0xf001, 1, false), f->rom + 1);
    assert_null(space_ram_ptr(f->space, 0xf001, 1, true));
    assert_null(space_ram_ptr(f->space, 0xf001, 4096, false));
}

static void test_overlap_and_range(void **state)
{
    struct fixture *f = *state;
    struct err e;
    uint64_t top = UINT64_C(1) << 40;
    assert_int_equal(space_add_ram(f->space, 0x1000, f->ram, 0x1000, false, &e), 0);
    assert_int_equal(space_add_ram(f->space, 0x1fff, f->ram, 1, false, &e), -EEXIST);
    assert_int_equal(space_add_ram(f->space, 0x0, f->ram, 0x1001, false, &e), -EEXIST);
    assert_int_equal(space_add_ram(f->space, 0x2000, f->ram, 1, false, &e), 0);
    assert_int_equal(space_add_ram(f->space, 0x800, f->ram, 0x800, false, &e), 0);
    assert_true(space_add_ram(f->space, top, f->ram, 1, false, &e) < 0);
    assert_true(space_add_ram(f->space, UINT64_MAX, f->ram, 2, false, &e) < 0);
    assert_true(space_add_ram(f->space, 0x9000, f->ram, 0, false, &e) < 0);
    assert_int_equal(space_add_ram(f->space, top - 1, f->ram, 1, false, &e), 0);
    assert_int_equal(space_remove(f->space, 0x1000, &e), 0);
    assert_int_equal(space_load(f->space, 0x1000, 1), 0xff);
    assert_int_equal(space_remove(f->space, 0x1000, &e), -ENOENT);
}

static void test_io_split(void **state)
{
    struct fixture *f = *state;
    struct dev *d = &f->dev;
    struct err e;
    assert_int_equal(space_add_io(f->space, 0x100, 64, &ops_1_4, d, &d->lock, &e), 0);
    assert_int_equal(space_load(f->space, 0x101, 1), 0x81);
    assert_seen(d, 0, 1, 1, false);
    /* Bytes are fine for this device, so an odd word is one access. */
    assert_int_equal(space_load(f->space, 0x101, 2), 0x8281);
    assert_seen(d, 1, 1, 2, false);
    d->count = 0;
    assert_true(space_load(f->space, 0x100, 8) == 0x8786858483828180);
    assert_int_equal(d->count, 2);
    assert_seen(d, 0, 0, 4, false);
    assert_seen(d, 1, 4, 4, false);
    d->count = 0;
    space_store(f->space, 0x110, 0x1122334455667788, 8);
    assert_seen(d, 0, 16, 4, true);
    assert_seen(d, 1, 20, 4, true);
    assert_int_equal(load_le32(d->bytes + 20), 0x11223344);
    /* Over the window's end: the rest reads as ones. */
    d->count = 0;
    assert_int_equal(space_load(f->space, 0x13f, 4), 0xffffffbf);
    assert_int_equal(d->count, 1);
    space_store(f->space, 0x13e, 0x04030201, 4);
    assert_int_equal(load_le16(d->bytes + 62), 0x0201);
}

static void test_io_widen(void **state)
{
    struct fixture *f = *state;
    struct dev *d = &f->dev;
    struct err e;
    assert_int_equal(space_add_io(f->space, 0x100, 64, &ops_4_4, d, &d->lock, &e), 0);
    assert_int_equal(space_load(f->space, 0x105, 1), 0x85);
    assert_seen(d, 0, 4, 4, false);
    d->count = 0;
    space_store(f->space, 0x106, 0xabcd, 2);
    assert_seen(d, 0, 4, 4, false);
    assert_seen(d, 1, 4, 4, true);
    assert_int_equal(load_le32(d->bytes + 4), 0xabcd8584);
    /* Across two registers. */
    d->count = 0;
    assert_int_equal(space_load(f->space, 0x10a, 4), 0x8d8c8b8a);
    assert_int_equal(d->count, 2);
    d->count = 0;
    space_store(f->space, 0x10e, 0x04030201, 4);
    assert_int_equal(load_le32(d->bytes + 14), 0x04030201);
    assert_int_equal(load_le16(d->bytes + 12), 0x8d8c);
    assert_int_equal(load_le16(d->bytes + 18), 0x9392);
}

static void test_io_wide_device(void **state)
{
    struct fixture *f = *state;
    struct dev *d = &f->dev;
    struct err e;
    assert_int_equal(space_add_io(f->space, 0x100, 64, &ops_4_8, d, &d->lock, &e), 0);
    assert_true(space_load(f->space, 0x108, 8) == 0x8f8e8d8c8b8a8988);
    assert_seen(d, 0, 8, 8, false);
    d->count = 0;
    /* Eight bytes at a multiple of four are two registers. */
    assert_true(space_load(f->space, 0x104, 8) == 0x8b8a898887868584);
    assert_seen(d, 0, 4, 4, false);
    assert_seen(d, 1, 8, 4, false);
    static const struct space_ops odd = {.read = dev_read, .write = dev_write, .max_size = 3};
    assert_true(space_add_io(f->space, 0x200, 64, &odd, d, NULL, &e) < 0);
    assert_true(space_add_io(f->space, 0x200, 63, &ops_4_8, d, NULL, &e) < 0);
}

static void on_written(void *ctx, uint64_t addr, uint64_t size)
{
    struct fixture *f = ctx;
    f->written_addr = addr;
    f->written_size = size;
    f->written_count++;
}

static void test_copies(void **state)
{
    struct fixture *f = *state;
    struct dev *d = &f->dev;
    struct err e;
    assert_int_equal(space_add_ram(f->space, 0x1000, f->ram, 0x1000, false, &e), 0);
    assert_int_equal(space_add_ram(f->space, 0x2000, f->rom, 0x1000, true, &e), 0);
    assert_int_equal(space_add_io(f->space, 0x3000, 64, &ops_1_4, d, &d->lock, &e), 0);
    space_set_watcher(f->space, on_written, f);
    memset(f->rom, 0x55, sizeof(f->rom));
    uint8_t buf[0x1100];
    memset(buf, 0x11, sizeof(buf));
    space_write(f->space, 0x1f80, buf, sizeof(buf));
    assert_int_equal(f->written_count, 1);
    assert_int_equal(f->written_addr, 0x1f80);
    assert_int_equal(f->written_size, 0x80);
    assert_int_equal(f->ram[0xfff], 0x11);
    assert_int_equal(f->rom[0], 0x55);
    assert_int_equal(d->bytes[0], 0x11);
    d->count = 0;
    space_read(f->space, 0x2ffe, buf, 70);
    assert_int_equal(buf[1], 0x55);
    assert_int_equal(buf[2], 0x11);
    assert_int_equal(buf[66], 0xff);
    space_store(f->space, 0x1000, 1, 4);
    assert_int_equal(f->written_count, 2);
    space_set_watcher(f->space, NULL, NULL);
    space_store(f->space, 0x1000, 1, 4);
    assert_int_equal(f->written_count, 2);
}

static int count_ram(void *ctx, uint64_t addr, void *host, uint64_t size, bool is_rom,
                     struct err *e)
{
    uint64_t *sum = ctx;
    *sum += addr + is_rom;
    return addr == 0x5000 ? -EINTR : 0;
}

static void test_many_regions(void **state)
{
    struct fixture *f = *state;
    struct err e;
    /* Added out of order, looked up in order and at random. */
    for (unsigned i = 0; i < 64; i++) {
        unsigned k = (i * 37) % 64;
        f->ram[k] = (uint8_t)k;
        assert_int_equal(space_add_ram(f->space, k * 2, &f->ram[k], 1, false, &e), 0);
    }
    for (unsigned i = 0; i < 128; i++) {
        unsigned k = (i * 29) % 128;
        assert_int_equal(space_load(f->space, k, 1), k % 2 ? 0xff : k / 2);
    }
    uint64_t sum = 0;
    assert_int_equal(space_for_each_ram(f->space, count_ram, &sum, &e), 0);
    assert_int_equal(sum, 64 * 63);
    assert_int_equal(space_add_ram(f->space, 0x5000, f->rom, 16, true, &e), 0);
    assert_int_equal(space_for_each_ram(f->space, count_ram, &sum, &e), -EINTR);
}

static void test_ram_create(void **state)
{
    struct err e;
    struct ram ram;
    assert_int_equal(ram_create(UINT64_C(8) << 30, &ram, &e), 0);
    ram.host[ram.size - 1] = 1;
    struct stat st;
    assert_int_equal(fstat(ram.fd, &st), 0);
    /* Lazily populated: one touched page does not cost 8 GiB. */
    assert_true(st.st_blocks < 8192);
    ram_destroy(&ram);
    assert_true(ram_create(0, &ram, &e) < 0);
    assert_true(ram_create(4097, &ram, &e) < 0);
    assert_true(ram_create(UINT64_C(1) << 62, &ram, &e) < 0);
    assert_non_null(strstr(e.msg, "this host has"));
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

static int count_kinds(void *ctx, uint64_t addr, void *host, uint64_t size, bool is_rom,
                       struct err *e)
{
    unsigned *seen = ctx;
    *seen += is_rom ? 16 : 1;
    return 0;
}

/* One place that is nothing, ROM, RAM and a device in turn, among neighbours. */
static void test_switch(void **state)
{
    static uint8_t rom[16], ram[16], next[16];
    struct dev d = {.lock = PTHREAD_MUTEX_INITIALIZER};
    const struct space_choice choices[] = {
        {.kind = SPACE_NOTHING},
        {.kind = SPACE_ROM, .host = rom},
        {.kind = SPACE_RAM, .host = ram},
        {.kind = SPACE_WINDOW, .window = {.ops = &ops_1_4, .ctx = &d, .lock = &d.lock}},
        {.kind = SPACE_ROM_WINDOW,
         .host = rom,
         .window = {.ops = &ops_1_4, .ctx = &d, .lock = &d.lock}},
    };
    struct space_switch *sw, *other;
    struct space *s;
    unsigned seen = 0;
    struct err e;

    memset(rom, 0x11, sizeof(rom));
    memset(ram, 0x22, sizeof(ram));
    memset(next, 0x33, sizeof(next));
    memset(d.bytes, 0x44, sizeof(d.bytes));
    assert_int_equal(space_create("test", 4096, &s, &e), 0);
    assert_int_equal(space_add_switch(s, 0x100, 16, choices, ARRAY_SIZE(choices), &sw, &e), 0);
    assert_int_equal(space_add_ram(s, 0x110, next, 16, false, &e), 0);
    assert_int_equal(space_add_switch(s, 0x10f, 16, choices, 1, &other, &e), -EEXIST);

    /* nothing, up to the neighbour */
    assert_int_equal(space_load(s, 0x10e, 4), 0x3333ffff);
    assert_null(space_ram_ptr(s, 0x100, 1, false));
    space_store(s, 0x100, 1, 1);
    space_switch_set(sw, 1);
    space_store(s, 0x10f, 0x5555, 2);
    assert_int_equal(space_load(s, 0x10e, 4), 0x33551111);
    assert_ptr_equal(space_ram_ptr(s, 0x101, 15, false), rom + 1);
    assert_null(space_ram_ptr(s, 0x100, 1, true));
    assert_null(space_ram_ptr(s, 0x101, 16, false));
    assert_int_equal(space_for_each_ram(s, count_kinds, &seen, &e), 0);
    assert_int_equal(seen, 17);
    space_switch_set(sw, 2);
    space_store(s, 0x100, 0x66, 1);
    assert_int_equal(ram[0], 0x66);
    assert_ptr_equal(space_ram_ptr(s, 0x100, 1, true), ram);
    space_switch_set(sw, 3);
    assert_int_equal(space_load(s, 0x102, 2), 0x4444);
    space_store(s, 0x104, 0x77, 1);
    assert_int_equal(d.bytes[4], 0x77);
    assert_int_equal(d.count, 2);
    seen = 0;
    assert_int_equal(space_for_each_ram(s, count_kinds, &seen, &e), 0);
    assert_int_equal(seen, 1);
    /* ROM to all who read and to engines; a device to those who write, by whatever way */
    space_switch_set(sw, 4);
    assert_int_equal(space_load(s, 0x104, 2), 0x1111);
    assert_null(space_ram_ptr(s, 0x100, 1, true));
    assert_ptr_equal(space_ram_ptr(s, 0x100, 16, false), rom);
    space_store(s, 0x104, 0x88, 1);
    assert_int_equal(d.bytes[4], 0x88);
    space_write(s, 0x106, "ab", 2);
    assert_memory_equal(d.bytes + 6, "ab", 2);
    assert_int_equal(rom[4], 0x11);
    seen = 0;
    assert_int_equal(space_for_each_ram(s, count_kinds, &seen, &e), 0);
    assert_int_equal(seen, 17);
    space_destroy(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_switch),     TEST(test_ram_and_gap), TEST(test_rom),
        TEST(test_overlap_and_range),      TEST(test_io_split),    TEST(test_io_widen),
        TEST(test_io_wide_device),         TEST(test_copies),      TEST(test_many_regions),
        cmocka_unit_test(test_ram_create),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
