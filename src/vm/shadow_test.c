/*
 * shadow_test.c - PAM registers: which segment is what, and what an engine is told
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bits.h"
#include "engine/engine.h"
#include "vm/shadow.h"

struct slot {
    uint64_t addr, size;
    uint8_t *host;
    bool is_rom;
};

/* An engine that keeps a list of slots. */
struct fixture {
    struct space *memory;
    struct shadow shadow;
    uint8_t *ram, *rom;
    struct slot slots[SHADOW_SEGMENTS];
    unsigned count;
};

static int fake_add(struct engine *engine, gpa_t addr, void *host, uint64_t size, bool is_rom,
                    struct err *e)
{
    struct fixture *f = (struct fixture *)engine;

    assert_true(f->count < ARRAY_SIZE(f->slots));
    f->slots[f->count++] = (struct slot){addr, size, host, is_rom};
    return 0;
}

static int take_slot(void *ctx, uint64_t addr, void *host, uint64_t size, bool is_rom,
                     struct err *e)
{
    return fake_add(ctx, addr, host, size, is_rom, e);
}

static int fake_remove(struct engine *engine, gpa_t addr, struct err *e)
{
    struct fixture *f = (struct fixture *)engine;

    for (unsigned i = 0; i < f->count; i++)
        if (f->slots[i].addr == addr) {
            f->slots[i] = f->slots[--f->count];
            return 0;
        }
    fail_msg("no slot at 0x%llx", (unsigned long long)addr);
    return -1;
}

static const struct engine_ops fake_ops = {.add_ram = fake_add, .remove_ram = fake_remove};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct err e;

    f->ram = calloc(1, SHADOW_END);
    f->rom = malloc(SHADOW_ROM_MAX);
    memset(f->rom, 0x77, SHADOW_ROM_MAX);
    assert_int_equal(space_create("memory", BIT(32), &f->memory, &e), 0);
    assert_int_equal(shadow_create(&f->shadow, f->memory, f->ram, f->rom, SHADOW_ROM_MAX, &e), 0);
    assert_int_equal(space_for_each_ram(f->memory, take_slot, f, &e), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    space_destroy(f->memory);
    free(f->ram);
    free(f->rom);
    free(f);
    return 0;
}

static void apply(struct fixture *f, const uint8_t pam[SHADOW_PAM_COUNT])
{
    struct err e;

    shadow_want(&f->shadow, pam);
    assert_int_equal(shadow_apply(&f->shadow, &fake_ops, (struct engine *)f, &e), 0);
}

static const struct slot *slot_at(const struct fixture *f, uint64_t addr)
{
    for (unsigned i = 0; i < f->count; i++)
        if (addr - f->slots[i].addr < f->slots[i].size)
            return &f->slots[i];
    return NULL;
}

/* A write and what is read after it; RAM is 0 there before. */
static unsigned poke(struct fixture *f, uint32_t addr)
{
    space_store(f->memory, addr, 0x55, 1);
    return (unsigned)space_load(f->memory, addr, 1);
}

/* On the bus there are 128 KiB of ROM, and nothing below. */
static void begins_on_the_bus(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(poke(f, 0xc0000), 0xff);
    assert_int_equal(poke(f, 0xdffff), 0xff);
    assert_int_equal(poke(f, 0xe0000), 0x77);
    assert_int_equal(poke(f, 0xfffff), 0x77);
    assert_int_equal(f->count, 5);
    assert_null(slot_at(f, 0xdffff));
    assert_true(slot_at(f, 0xf8000)->is_rom);
    for (unsigned i = SHADOW_ADDR; i < SHADOW_END; i++)
        assert_int_equal(f->ram[i], 0);
}

/* Each half of a register is one segment; all four of its values. */
static void each_field_is_a_segment(void **state)
{
    struct fixture *f = *state;

    for (unsigned i = 0; i < SHADOW_SEGMENTS; i++) {
        uint8_t pam[SHADOW_PAM_COUNT] = {0};
        bool is_last = i == SHADOW_SEGMENTS - 1;
        uint32_t addr = SHADOW_ADDR + i * 0x4000, size = is_last ? 0x10000 : 0x4000;
        uint8_t *field = is_last ? &pam[0] : &pam[1 + i / 2];
        unsigned shift = is_last || i % 2 != 0 ? 4 : 0;
        unsigned bus = addr >= 0xe0000 ? 0x77 : 0xff;

        *field = (uint8_t)(1 << shift); /* read from RAM, writes to the bus */
        apply(f, pam);
        assert_int_equal(poke(f, addr), 0);
        assert_true(slot_at(f, addr)->is_rom);
        assert_ptr_equal(slot_at(f, addr)->host, f->ram + addr);
        *field = (uint8_t)(2 << shift); /* and the other way round */
        apply(f, pam);
        assert_int_equal(poke(f, addr), bus);
        assert_int_equal(f->ram[addr], 0x55);
        assert_null(slot_at(f, addr));
        *field = (uint8_t)(3 << shift);
        apply(f, pam);
        assert_int_equal(poke(f, addr + size - 1), 0x55);
        assert_false(slot_at(f, addr + size - 1)->is_rom);
        /* what stands beside it did not change */
        if (addr > SHADOW_ADDR)
            assert_int_equal(poke(f, addr - 1), addr > 0xe0000 ? 0x77 : 0xff);
        if (!is_last)
            assert_int_equal(poke(f, addr + size), addr + size >= 0xe0000 ? 0x77 : 0xff);
        *field = 0;
        apply(f, pam);
        assert_int_equal(poke(f, addr), bus);
    }
    assert_int_equal(f->count, 5);
}

/* Reserved bits mean nothing, and nothing new is nothing to do. */
static void only_changes_count(void **state)
{
    struct fixture *f = *state;
    uint8_t pam[SHADOW_PAM_COUNT] = {0xcf, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc};

    assert_false(shadow_want(&f->shadow, pam));
    pam[6] |= 0x33;
    assert_true(shadow_want(&f->shadow, pam));
    assert_false(shadow_want(&f->shadow, pam));
    apply(f, pam);
    assert_int_equal(poke(f, 0xe8000), 0x55);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(begins_on_the_bus, setup, teardown),
        cmocka_unit_test_setup_teardown(each_field_is_a_segment, setup, teardown),
        cmocka_unit_test_setup_teardown(only_changes_count, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
