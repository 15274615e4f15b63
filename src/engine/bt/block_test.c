/*
 * block_test.c - records of blocks: what was put in comes out, and all of it stays within the cache
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <cmocka.h>

#include "engine/bt/bt.h"

#define CACHE_SIZE (UINT64_C(4) << 20)
#define RAM_SIZE (UINT64_C(1) << 20)
#define RAM_PAGES (RAM_SIZE / SOFT_PAGE_SIZE)
#define MODE 0x3abcdu

struct fixture {
    struct bt_engine be;
    _Atomic uint32_t flags[RAM_PAGES];
    uint32_t pages[RAM_PAGES];
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct err e;

    if (f == NULL)
        return -1;
    *state = f;
    pthread_mutex_init(&f->be.lock, NULL);
    f->be.soft.ram[0] = (struct soft_ram){.addr = 0, .size = RAM_SIZE, .page_flags = f->flags};
    f->be.soft.ram_count = 1;
    f->be.pages[0] = f->pages;
    return bt_cache_create(&f->be, CACHE_SIZE, &e);
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    bt_cache_destroy(&f->be);
    pthread_mutex_destroy(&f->be.lock);
    free(f);
    return 0;
}

/* A draft at rip, gpa with entries and `insns` instructions of 3 guest and 20 host bytes. */
static struct bt_draft draft_at(struct bt_engine *be, uint64_t rip, gpa_t gpa, unsigned insns)
{
    uint8_t *guard = be->rx + be->used;
    struct bt_draft d = {
        .rip = rip,
        .gpa = gpa,
        .mode = MODE,
        .cookie = bt_view_cookie(be, rip, gpa),
        .guest_len = (uint16_t)(3 * insns),
        .insn_count = (uint16_t)insns,
        .guard = guard,
        .fail = guard + 18,
        .poll = guard + 46,
        .body = guard + 56,
        .end = guard + 70 + 20 * insns,
        .tail_gpa = BT_NO_TAIL,
    };
    for (unsigned i = 0; i <= insns; i++)
        d.map[i] =
            (struct bt_insn_map){.guest = (uint16_t)(3 * i), .host = (uint16_t)(70 + 20 * i)};
    return d;
}

static void test_everything_comes_back(void **state)
{
    struct bt_engine *be = &((struct fixture *)*state)->be;
    uint64_t rip = UINT64_C(0xffffffff81234ffe);
    struct bt_draft d = draft_at(be, rip, 0x5ffe, 1);

    d.guest_len = 9;
    d.tail_gpa = 0x9000;
    d.tail_cookie = bt_view_cookie(be, bt_tail_rip(rip), d.tail_gpa);
    d.tail_len = 7;
    d.has_shares = true;
    d.loop_entry = d.guard + 80;
    d.loop = (struct bt_loop_map){.entry = 80, .begin = 84, .end = 90, .count = 3, .spilled = 0x11};
    for (unsigned i = 0; i < 3; i++)
        d.copies[i] = (struct bt_copy_map){.insn = 0, .host = (uint16_t)(84 + i)};
    struct bt_block *block = bt_block_publish(be, &d);

    assert_ptr_equal(bt_block_find(be, rip, 0x5ffe, MODE), block);
    assert_null(bt_block_find(be, rip, 0x4ffe, MODE));
    assert_null(bt_block_find(be, rip, 0x5ffe, MODE ^ 1));
    assert_null(bt_block_find(be, rip - 1, 0x5ffd, MODE));
    assert_true(bt_block_rip(be, block) == rip);
    assert_true(bt_block_gpa(be, block) == 0x5ffe);
    assert_ptr_equal(bt_block_guard(be, block), d.guard);
    assert_ptr_equal(bt_block_poll(be, block), d.poll);
    assert_ptr_equal(bt_block_body(be, block), d.body);
    assert_int_equal(block->fail, 18);
    assert_int_equal(block->guest_len, 9);
    assert_true(block->has_shares);
    assert_true(bt_tail_gpa(be, bt_block_tail(be, block)) == 0x9000);
    assert_int_equal(bt_block_tail(be, block)->len, 7);
    assert_int_equal(bt_block_tail(be, block)->cookie, d.tail_cookie);
    assert_int_equal(bt_block_loop(be, block)->spilled, 0x11);
    assert_int_equal(bt_block_loop(be, block)->end, 90);
    assert_int_equal(bt_block_copies(be, block)[2].host, 86);
    assert_int_equal(bt_block_insn(be, block, 0).host, 70);
    /* its bytes are in both pages */
    assert_int_equal(be->code_pages[be->pages[0][5] - 1].granules, BIT(63));
    assert_int_equal(be->code_pages[be->pages[0][9] - 1].granules, 1);
}

static void test_instructions(void **state)
{
    struct bt_engine *be = &((struct fixture *)*state)->be;
    struct bt_draft d = draft_at(be, 0x1000, 0x1000, BT_BLOCK_INSNS_MAX);

    /* two without host code, and the longest there is */
    d.map[5].host = d.map[6].host = d.map[7].host;
    for (unsigned i = 9; i <= BT_BLOCK_INSNS_MAX; i++) {
        d.map[i].host = (uint16_t)(d.map[i].host + BT_MAP_HOST_MAX - 20);
        d.map[i].guest = (uint16_t)(d.map[i].guest + BT_MAP_GUEST_MAX - 3);
    }
    d.end += BT_MAP_HOST_MAX;
    struct bt_block *block = bt_block_publish(be, &d);
    for (unsigned i = 0; i < BT_BLOCK_INSNS_MAX; i++) {
        assert_int_equal(bt_block_insn(be, block, i).host, d.map[i].host);
        assert_int_equal(bt_block_insn(be, block, i).guest, d.map[i].guest);
        if (i == 5 || i == 6)
            continue;
        assert_int_equal(bt_block_insn_at(be, block, d.guard + d.map[i].host), i);
        assert_int_equal(bt_block_insn_at(be, block, d.guard + d.map[i + 1].host - 1), i);
    }
    assert_int_equal(bt_block_insn_at(be, block, d.guard), 0);
    assert_int_equal(bt_block_insn_at(be, block, d.end), BT_BLOCK_INSNS_MAX - 1);
}

/* What is made again takes the dead one's place, which leads there. */
static void test_dead(void **state)
{
    struct bt_engine *be = &((struct fixture *)*state)->be;
    struct bt_draft d = draft_at(be, 0x2010, 0x3010, 4);
    struct bt_block *old = bt_block_publish(be, &d);
    const uint8_t *body = be->rw + old->at + old->body;

    bt_block_retire(be, old);
    assert_null(bt_block_find(be, 0x2010, 0x3010, MODE));
    assert_int_equal(body[0], 0xe9);
    d = draft_at(be, 0x2010, 0x3010, 4);
    struct bt_block *block = bt_block_publish(be, &d);
    assert_ptr_equal(bt_block_find(be, 0x2010, 0x3010, MODE), block);
    int32_t rel;
    memcpy(&rel, body + 1, sizeof(rel));
    assert_ptr_equal(bt_block_body(be, old) + 5 + rel, bt_block_body(be, block));
}

static size_t resident(const void *p, size_t size)
{
    static unsigned char in_core[CACHE_SIZE / SOFT_PAGE_SIZE];
    size_t pages = align_up(size, SOFT_PAGE_SIZE) / SOFT_PAGE_SIZE, found = 0;

    assert_int_equal(mincore((void *)(uintptr_t)p, size, in_core), 0);
    for (size_t i = 0; i < pages; i++)
        found += in_core[i] & 1u;
    return found * SOFT_PAGE_SIZE;
}

static void fill(struct bt_engine *be, unsigned insns)
{
    for (unsigned n = 0; bt_cache_has_room(be); n++) {
        gpa_t gpa = n * 64 % RAM_SIZE;
        struct bt_draft d = draft_at(be, gpa + n / 4096 * RAM_SIZE, gpa, insns);
        assert_true(d.cookie != 0);
        memset(bt_rw(be, d.guard), 0xcc, (size_t)(d.end - d.guard));
        struct bt_block *block = bt_block_publish(be, &d);
        assert_ptr_equal(bt_block_at(be, d.guard + 60), block);
        assert_ptr_equal(bt_block_at(be, d.end - 1), block);
    }
}

/* Small blocks need more of tables; the next filling with large ones may have what they had. */
static void test_both_fit(void **state)
{
    struct bt_engine *be = &((struct fixture *)*state)->be;
    static const unsigned insns[] = {64, 1, 30, 2, 64};

    for (unsigned i = 0; i < ARRAY_SIZE(insns); i++) {
        fill(be, insns[i]);
        size_t code = resident(be->rw, be->cache_size);
        size_t tables = bt_cache_tables_size(be);
        assert_true(code + tables <= CACHE_SIZE);
        assert_true(code + tables > CACHE_SIZE - (64u << 10) || be->touched > be->used);
        uint64_t generation = be->generation;
        bt_cache_empty(be);
        assert_true(be->generation == generation + 1);
        assert_int_equal(be->block_count, 0);
        assert_null(bt_block_find(be, 0x40, 0x40, MODE));
        for (unsigned page = 0; page < RAM_PAGES; page++)
            assert_int_equal(be->pages[0][page], 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_everything_comes_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_instructions, setup, teardown),
        cmocka_unit_test_setup_teardown(test_dead, setup, teardown),
        cmocka_unit_test_setup_teardown(test_both_fit, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
