/*
 * fw_cfg_test.c - firmware configuration: items, files, and what DMA does with bad requests
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dev/platform/fw_cfg.h"
#include "dev/test_support.h"

#define RAM_SIZE UINT64_C(0x10000)
#define ROM_ADDR UINT64_C(0x20000)
#define REQUEST UINT64_C(0x100)
#define READ 2u
#define SKIP 4u
#define SELECT 8u
#define WRITE 16u

struct fixture {
    struct bench bench;
    struct space *memory;
    uint8_t *ram;
    uint8_t rom[4096];
    struct fw_cfg *cfg;
    uint64_t noted; /* bytes that the watcher was told of */
};

static void note_written(void *ctx, uint64_t addr, uint64_t size)
{
    struct fixture *f = ctx;

    f->noted += size;
}

static int setup_with(void **state, bool has_dma)
{
    static struct fixture f;

    memset(&f, 0, sizeof(f));
    bench_setup(&f.bench);
    f.ram = calloc(1, RAM_SIZE); /* just so much: the sanitizer sees a byte too many */
    assert_non_null(f.ram);
    assert_int_equal(space_create("memory", UINT64_C(1) << 36, &f.memory, NULL), 0);
    assert_int_equal(space_add_ram(f.memory, 0, f.ram, RAM_SIZE, false, NULL), 0);
    assert_int_equal(space_add_ram(f.memory, ROM_ADDR, f.rom, sizeof(f.rom), true, NULL), 0);
    space_set_watcher(f.memory, note_written, &f);
    assert_int_equal(fw_cfg_create(has_dma ? f.memory : NULL, &f.cfg, NULL), 0);
    assert_int_equal(fw_cfg_add_number(f.cfg, FW_CFG_KEY_MEMORY, UINT64_C(5) << 30, 8, NULL), 0);
    assert_int_equal(fw_cfg_add_number(f.cfg, FW_CFG_KEY_CPUS, 3, 2, NULL), 0);
    assert_int_equal(fw_cfg_add_number(f.cfg, FW_CFG_KEY_IRQ0_OVERRIDE, 1, 1, NULL), 0);
    assert_int_equal(fw_cfg_map(f.cfg, f.bench.ports, FW_CFG_PORT, FW_CFG_DMA_PORT, NULL), 0);
    *state = &f;
    return 0;
}

static int setup(void **state)
{
    return setup_with(state, true);
}

static int setup_without_dma(void **state)
{
    return setup_with(state, false);
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    bench_teardown(&f->bench);
    fw_cfg_destroy(f->cfg);
    space_destroy(f->memory);
    free(f->ram);
    return 0;
}

static uint64_t read_item(struct fixture *f, uint16_t key, unsigned size)
{
    uint64_t value = 0;

    space_store(f->bench.ports, FW_CFG_PORT, key, 2);
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)in8(&f->bench, FW_CFG_PORT + 1) << (8 * i);
    return value;
}

static void test_items(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(read_item(f, 0, 4), 'Q' | 'E' << 8 | 'M' << 16 | 'U' << 24);
    assert_in8(&f->bench, FW_CFG_PORT + 1, 0);
    assert_int_equal(read_item(f, 1, 4), 3);
    assert_true(read_item(f, 3, 8) == UINT64_C(5) << 30);
    assert_int_equal(read_item(f, 5, 2), 3);
    assert_int_equal(read_item(f, 0x4005, 2), 3); /* "write mode" */
    assert_int_equal(read_item(f, 0x8002, 2), 1);
    /* what is not there: files, the architecture's, the largest number */
    assert_int_equal(read_item(f, 0x19, 4), 0);
    assert_int_equal(read_item(f, 0x20, 2), 0);
    assert_int_equal(read_item(f, 0x8005, 2), 0);
    assert_int_equal(read_item(f, 0xffff, 2), 0);
    /* bytes select nothing; nothing can be written; reset selects the signature */
    read_item(f, 5, 1);
    out8(&f->bench, FW_CFG_PORT, 0);
    assert_in8(&f->bench, FW_CFG_PORT + 1, 0);
    read_item(f, 5, 0);
    out8(&f->bench, FW_CFG_PORT + 1, 77);
    assert_in8(&f->bench, FW_CFG_PORT + 1, 3);
    fw_cfg_reset(f->cfg);
    assert_in8(&f->bench, FW_CFG_PORT + 1, 'Q');
}

static void test_without_dma(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(read_item(f, 1, 4), 1);
    assert_int_equal(space_load(f->bench.ports, FW_CFG_DMA_PORT, 4), 0xffffffff);
}

/* The directory's bytes are big-endian. */
static void test_files(void **state)
{
    struct fixture *f = *state;
    uint8_t list[4 + 2 * 64];
    char name[FW_CFG_NAME_MAX + 2];
    struct err e;

    assert_int_equal(fw_cfg_add_file(f->cfg, "etc/one", "abc", 3, NULL), 0);
    assert_int_equal(fw_cfg_add_number_file(f->cfg, "two", 0x3f8, 8, NULL), 0);
    space_store(f->bench.ports, FW_CFG_PORT, 0x19, 2);
    for (unsigned i = 0; i < sizeof(list); i++)
        list[i] = in8(&f->bench, FW_CFG_PORT + 1);
    assert_in8(&f->bench, FW_CFG_PORT + 1, 0);
    assert_memory_equal(list, "\0\0\0\2", 4);
    assert_memory_equal(list + 4, "\0\0\0\3\0\x20\0\0etc/one\0", 16);
    assert_memory_equal(list + 68, "\0\0\0\x8\0\x21\0\0two\0", 12);
    assert_int_equal(read_item(f, 0x20, 4), 'a' | 'b' << 8 | 'c' << 16);
    assert_int_equal(read_item(f, 0x21, 8), 0x3f8);

    assert_int_equal(fw_cfg_add_file(f->cfg, "two", "", 0, &e), -EEXIST);
    assert_int_equal(fw_cfg_add(f->cfg, FW_CFG_KEY_CPUS, "", 0, &e), -EEXIST);
    assert_int_equal(fw_cfg_add_file(f->cfg, "", "", 0, &e), -EINVAL);
    memset(name, 'n', sizeof(name));
    name[FW_CFG_NAME_MAX + 1] = '\0';
    assert_int_equal(fw_cfg_add_file(f->cfg, name, "", 0, &e), -EINVAL);
    assert_int_equal(fw_cfg_add_file(f->cfg, name + 1, "", 0, &e), 0);
    for (unsigned i = 0; i < FW_CFG_ITEMS_MAX; i++) {
        name[0] = (char)('0' + i);
        name[1] = '\0';
        if (fw_cfg_add_file(f->cfg, name, "", 0, &e) != 0)
            return;
    }
    fail();
}

/* Put a request at `at`, and let it run. Returns the answer, all ones if there is none. */
static uint32_t dma_at(struct fixture *f, uint64_t at, uint32_t control, uint32_t length,
                       uint64_t addr)
{
    uint8_t request[16];

    store_be32(request, control);
    store_be32(request + 4, length);
    store_be32(request + 8, (uint32_t)(addr >> 32));
    store_be32(request + 12, (uint32_t)addr);
    space_write(f->memory, at, request, sizeof(request));
    f->noted = 0;
    space_store(f->bench.ports, FW_CFG_DMA_PORT, __builtin_bswap32((uint32_t)(at >> 32)), 4);
    space_store(f->bench.ports, FW_CFG_DMA_PORT + 4, __builtin_bswap32((uint32_t)at), 4);
    return __builtin_bswap32((uint32_t)space_load(f->memory, at, 4));
}

static uint32_t dma(struct fixture *f, uint32_t control, uint32_t length, uint64_t addr)
{
    return dma_at(f, REQUEST, control, length, addr);
}

#define KEY(key) ((uint32_t)(key) << 16 | SELECT)

static void test_dma(void **state)
{
    struct fixture *f = *state;
    uint8_t *ram = f->ram;

    /* "QEMU CFG", big-endian, also by parts */
    assert_int_equal(space_load(f->bench.ports, FW_CFG_DMA_PORT, 4), 0x554d4551);
    assert_int_equal(space_load(f->bench.ports, FW_CFG_DMA_PORT + 4, 4), 0x47464320);
    assert_int_equal(space_load(f->bench.ports, FW_CFG_DMA_PORT + 7, 1), 0x47);

    assert_int_equal(fw_cfg_add_file(f->cfg, "f", "0123456789", 10, NULL), 0);
    memset(ram + 0x1000, 0xee, 32);
    assert_int_equal(dma(f, KEY(0x20) | READ, 4, 0x1000), 0);
    assert_memory_equal(ram + 0x1000, "0123\xee", 5);
    assert_int_equal(f->noted, 4 + 4); /* and the answer */
    /* goes on where it was, across a page, zeros behind the end */
    assert_int_equal(dma(f, SKIP, 1, 0), 0);
    assert_int_equal(dma(f, READ, 8, 0x1ffd), 0);
    assert_memory_equal(ram + 0x1ffd, "56789\0\0\0", 8);
    assert_in8(&f->bench, FW_CFG_PORT + 1, 0);
    /* an item that is not there */
    memset(ram + 0x1000, 0xee, 8);
    assert_int_equal(dma(f, KEY(0x99) | READ, 4, 0x1000), 0);
    assert_memory_equal(ram + 0x1000, "\0\0\0\0\xee", 5);
    /* select alone; a skip behind the end stays there */
    assert_int_equal(dma(f, KEY(0x20), 0, 0), 0);
    assert_in8(&f->bench, FW_CFG_PORT + 1, '0');
    assert_int_equal(dma(f, SKIP, 0xffffffff, 0), 0);
    assert_int_equal(dma(f, SKIP, 0xffffffff, 0), 0);
    assert_in8(&f->bench, FW_CFG_PORT + 1, 0);
    /* nothing can be written */
    assert_int_equal(dma(f, KEY(0x20) | WRITE, 1, 0x1000), 1);
    assert_int_equal(dma(f, KEY(0x20) | WRITE, 0, 0x1000), 0);
    assert_in8(&f->bench, FW_CFG_PORT + 1, '0');
}

/* Addresses and lengths that lead out of RAM. */
static void test_dma_out_of_ram(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(dma(f, KEY(0) | READ, 1, RAM_SIZE), 1);
    assert_int_equal(dma(f, KEY(0) | READ, 2, RAM_SIZE - 1), 1);
    assert_int_equal(dma(f, KEY(0) | READ, 1, ROM_ADDR), 1);
    assert_int_equal(dma(f, KEY(0) | READ, 0xffffffff, 0x2000), 1);
    assert_int_equal(dma(f, KEY(0) | READ, 4, UINT64_MAX), 1);
    assert_int_equal(dma(f, KEY(0) | READ, 4, UINT64_MAX - 1), 1);
    assert_int_equal(dma(f, KEY(0) | READ, 0, UINT64_MAX), 0);
    /* the request itself: no answer where there is no RAM */
    assert_int_equal(dma_at(f, RAM_SIZE, KEY(0) | READ, 1, 0x1000), 0xffffffff);
    assert_int_equal(dma_at(f, ROM_ADDR, KEY(0) | READ, 1, 0x1000), 0);
    dma_at(f, RAM_SIZE - 15, KEY(0) | READ, 1, 0x1000);
    dma_at(f, UINT64_MAX - 3, KEY(0) | READ, 1, 0x1000);
    assert_int_equal(f->ram[0x1000], 0);
    /* one that overwrites itself is answered all the same */
    assert_int_equal(dma(f, KEY(0) | READ, 64, REQUEST - 8), 0);
    /* only a double word starts one */
    out8(&f->bench, FW_CFG_DMA_PORT + 4, 0);
    space_store(f->bench.ports, FW_CFG_DMA_PORT + 2, 0, 4);
}

/* In the midst of an item, and between the halves of a request's address. */
static void test_state(void **state)
{
    struct fixture *f = *state;
    struct fw_cfg_state good, s, now;
    struct err e;

    read_item(f, 3, 4);
    store_be32(f->ram + REQUEST, READ);
    store_be32(f->ram + REQUEST + 4, 2);
    store_be64(f->ram + REQUEST + 8, 0x1000);
    space_store(f->bench.ports, FW_CFG_DMA_PORT, 0, 4);
    fw_cfg_get_state(f->cfg, &good);
    fw_cfg_reset(f->cfg);
    space_store(f->bench.ports, FW_CFG_DMA_PORT, 0x1234, 4); /* nowhere */
    fw_cfg_get_state(f->cfg, &now);
#define REFUSES(what, says)                                                                        \
    do {                                                                                           \
        s = good;                                                                                  \
        what;                                                                                      \
        assert_int_not_equal(fw_cfg_set_state(f->cfg, &s, &e), 0);                                 \
        assert_non_null(strstr(e.msg, says));                                                      \
        fw_cfg_get_state(f->cfg, &s);                                                              \
        assert_memory_equal(&s, &now, sizeof(s));                                                  \
    } while (0)
    REFUSES(s.selector |= 0x4000, "selector");
    REFUSES(s.at = 9, "at is 9");
    REFUSES(s.selector = 0x77, "item 0x77 has 0 bytes");
#undef REFUSES
    assert_int_equal(fw_cfg_set_state(f->cfg, &good, &e), 0);
    space_store(f->bench.ports, FW_CFG_DMA_PORT + 4, __builtin_bswap32((uint32_t)REQUEST), 4);
    assert_int_equal(load_be32(f->ram + REQUEST), 0);
    assert_int_equal(load_le16(f->ram + 0x1000), 1); /* bytes 4 and 5 of 5 GiB */
    assert_in8(&f->bench, FW_CFG_PORT + 1, 0);
    /* an item that is not there stays one */
    read_item(f, 0x1234, 1);
    fw_cfg_get_state(f->cfg, &s);
    assert_int_equal(s.selector, 0x1234);
    assert_int_equal(fw_cfg_set_state(f->cfg, &s, &e), 0);
    assert_in8(&f->bench, FW_CFG_PORT + 1, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_items, setup, teardown),
        cmocka_unit_test_setup_teardown(test_without_dma, setup_without_dma, teardown),
        cmocka_unit_test_setup_teardown(test_files, setup, teardown),
        cmocka_unit_test_setup_teardown(test_dma, setup, teardown),
        cmocka_unit_test_setup_teardown(test_dma_out_of_ram, setup, teardown),
        cmocka_unit_test_setup_teardown(test_state, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
