/*
 * pflash_test.c - the flash chip: what OVMF does with it, buffers, and commands that are none
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dev/platform/pflash.h"
#include "dev/test_support.h"

#define SIZE 0x3000u
#define BASE UINT64_C(0xffc00000)

struct fixture {
    struct space *memory;
    struct pflash *flash;
    /* another chip over the same bytes; if there is one, each access is to the other of the two */
    struct space *other_memory;
    struct pflash *other;
    uint8_t *bytes;
    uint32_t changed_at, changed_size;
    unsigned changes;
    int result; /* of keeping a change */
    struct space_switch *sw;
    unsigned wishes, choice;
    bool obeys; /* what the chip wants of the space is done */
};

static void note_wish(void *ctx, unsigned choice)
{
    struct fixture *f = ctx;

    f->wishes++;
    f->choice = choice;
    if (f->obeys)
        space_switch_set(f->sw, choice);
}

static int keep_change(void *ctx, uint32_t offset, uint32_t size)
{
    struct fixture *f = ctx;

    f->changed_at = offset;
    f->changed_size = size;
    f->changes++;
    return f->result;
}

static int setup(void **state)
{
    static struct fixture f;

    memset(&f, 0, sizeof(f));
    f.bytes = malloc(SIZE); /* just so much: the sanitizer sees a byte too many */
    assert_non_null(f.bytes);
    memset(f.bytes, 0xff, SIZE);
    struct pflash_config config = {
        .bytes = f.bytes, .size = SIZE, .changed = keep_change, .wants = note_wish, .ctx = &f};
    assert_int_equal(space_create("memory", BIT(32), &f.memory, NULL), 0);
    assert_int_equal(pflash_create(&config, &f.flash, NULL), 0);
    assert_int_equal(pflash_map(f.flash, f.memory, BASE, &f.sw, NULL), 0);
    *state = &f;
    return 0;
}

/* The same tests, with a chip in another's place before every access. */
static int setup_moving(void **state)
{
    struct space_switch *sw;
    int rc = setup(state);
    struct fixture *f = *state;
    struct pflash_config config = {
        .bytes = f->bytes, .size = SIZE, .changed = keep_change, .wants = note_wish, .ctx = f};

    assert_int_equal(space_create("memory", BIT(32), &f->other_memory, NULL), 0);
    assert_int_equal(pflash_create(&config, &f->other, NULL), 0);
    assert_int_equal(pflash_map(f->other, f->other_memory, BASE, &sw, NULL), 0);
    return rc;
}

static void move(struct fixture *f)
{
    struct pflash *flash = f->flash;
    struct space *memory = f->memory;
    struct pflash_state s;
    struct err e;

    if (f->other == NULL)
        return;
    memset(&s, 0xa5, sizeof(s));
    pflash_get_state(flash, &s);
    if (pflash_set_state(f->other, &s, &e) != 0)
        fail_msg("%s", e.msg);
    f->flash = f->other;
    f->memory = f->other_memory;
    f->other = flash;
    f->other_memory = memory;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    if (f->other != NULL)
        space_destroy(f->other_memory);
    pflash_destroy(f->other);
    space_destroy(f->memory);
    pflash_destroy(f->flash);
    free(f->bytes);
    return 0;
}

static void put(struct fixture *f, uint32_t at, uint8_t value)
{
    move(f);
    space_store(f->memory, BASE + at, value, 1);
}

static unsigned get(struct fixture *f, uint32_t at)
{
    move(f);
    return (unsigned)space_load(f->memory, BASE + at, 1);
}

/* As OVMF finds out whether there is flash, RAM or ROM, then programs and erases. */
static void test_as_ovmf(void **state)
{
    struct fixture *f = *state;

    f->bytes[0] = 0xa5;
    put(f, 0, 0x50);
    assert_int_equal(get(f, 0), 0xa5); /* not RAM */
    put(f, 0, 0x70);
    assert_int_equal(get(f, 0), 0x00); /* cleared status: flash */
    put(f, 0, 0xff);
    assert_int_equal(get(f, 0), 0xa5);

    for (unsigned i = 0; i < 4; i++) {
        put(f, 0x1ffe + i, 0x10);
        put(f, 0x1ffe + i, (uint8_t)(0x11 * (i + 1)));
        assert_int_equal(f->changed_at, 0x1ffe + i);
        assert_int_equal(f->changed_size, 1);
    }
    assert_int_equal(get(f, 0x1ffe), 0x80); /* status: ready */
    put(f, 0x2001, 0xff);
    assert_int_equal(space_load(f->memory, BASE + 0x1ffe, 4), 0x44332211);
    assert_int_equal(space_load(f->memory, BASE + 0x1ffa, 8), 0x44332211ffffffff);
    /* programming only clears bits */
    put(f, 0x2001, 0x40);
    put(f, 0x2001, 0xf0);
    put(f, 0x2001, 0xff);
    assert_int_equal(get(f, 0x2001), 0x40);

    put(f, 0x1abc, 0x20);
    put(f, 0x1abc, 0xd0);
    assert_int_equal(f->changed_at, 0x1000);
    assert_int_equal(f->changed_size, 0x1000);
    put(f, 0x1abc, 0xff);
    assert_int_equal(space_load(f->memory, BASE + 0x1ffe, 4), 0x4033ffff);
    assert_int_equal(f->changes, 6);
    assert_int_equal(f->bytes[0], 0xa5);
}

static void test_buffer(void **state)
{
    struct fixture *f = *state;

    put(f, 0x100, 0xe8);
    assert_int_equal(get(f, 0x100) & 0x80, 0x80);
    put(f, 0x100, 5); /* six bytes */
    space_store(f->memory, BASE + 0x104, 0x44332211, 4);
    space_store(f->memory, BASE + 0x108, 0x6655, 2);
    assert_int_equal(f->changes, 0);
    put(f, 0x100, 0xd0);
    assert_int_equal(f->changes, 1);
    assert_int_equal(get(f, 0), 0x80);
    put(f, 0, 0xff);
    assert_memory_equal(f->bytes + 0x104, "\x11\x22\x33\x44\x55\x66\xff", 7);
}

/* Counts and places that do not fit, confirmations that are none: an error and nothing changes. */
static void test_bad_sequences(void **state)
{
    struct fixture *f = *state;
    static const uint8_t sequences[][6] = {
        {0x20, 0x00},             /* erase, not confirmed */
        {0xe8, 0x20},             /* more than the buffer */
        {0xe8, 0x00, 0x12, 0x34}, /* programmed, not confirmed */
    };

    for (unsigned i = 0; i < ARRAY_SIZE(sequences); i++) {
        for (unsigned n = 0; n < (i == 2 ? 4u : 2u); n++)
            put(f, 0x100, sequences[i][n]);
        put(f, 0x100, 0x70);
        assert_int_equal(get(f, 0x100), 0xb0);
        put(f, 0x100, 0x50);
    }
    /* out of the block, out of order, too much at once */
    put(f, 0, 0xe8);
    put(f, 0, 7);
    space_store(f->memory, BASE + 0x1ffc, 0, 8);
    put(f, 0, 0x70);
    assert_int_equal(get(f, 0), 0x30 | 0x80);
    put(f, 0, 0xe8);
    put(f, 0, 7);
    put(f, 0x10, 0);
    put(f, 0x12, 0);
    put(f, 0, 0x70);
    assert_int_equal(get(f, 0), 0xb0);
    put(f, 0, 0xe8);
    put(f, 0, 1);
    space_store(f->memory, BASE + 0x10, 0, 4);
    assert_int_equal(get(f, 0), 0xb0);
    assert_int_equal(f->changes, 0);
    /* the last byte; the window ends there */
    put(f, SIZE - 1, 0x40);
    put(f, SIZE - 1, 0x00);
    put(f, 0, 0xff);
    assert_int_equal(get(f, SIZE - 1), 0);
    assert_int_equal(get(f, SIZE), 0xff);
}

static void test_errors_are_told(void **state)
{
    struct fixture *f = *state;

    f->result = -EIO;
    put(f, 0, 0x40);
    put(f, 0, 0);
    assert_int_equal(get(f, 0), 0x90);
    put(f, 0, 0x50);
    put(f, 0, 0x20);
    put(f, 0, 0xd0);
    assert_int_equal(get(f, 0), 0xa0);
    pflash_reset(f->flash);
    assert_int_equal(get(f, 0), 0xff);
}

static void test_identity(void **state)
{
    struct fixture *f = *state;

    put(f, 0, 0x90);
    assert_int_equal(space_load(f->memory, BASE, 4), 0x1889);
    put(f, 0, 0x98);
    assert_int_equal(space_load(f->memory, BASE + 0x10, 4), 'Q' | 'R' << 8 | 'Y' << 16 | 1 << 24);
    assert_int_equal(space_load(f->memory, BASE + 0x2d, 4), 2 | 0x10 << 16);
    assert_int_equal(get(f, SIZE - 1), 0);
    put(f, 0, 0x60);
    put(f, 0, 0xd0);
    assert_int_equal(get(f, 0), 0x80);
}

static int count_rom(void *ctx, uint64_t addr, void *host, uint64_t size, bool is_rom,
                     struct err *e)
{
    struct fixture *f = ctx;

    assert_true(is_rom && addr == BASE && host == f->bytes && size == SIZE);
    f->wishes += 100;
    return 0;
}

/* Read often it becomes ROM, which engines get; a command makes it a window before it is obeyed. */
static void test_rom_while_it_is_read(void **state)
{
    struct fixture *f = *state;

    f->obeys = true;
    f->bytes[7] = 0x5a;
    for (unsigned round = 0; round < 3; round++) {
        f->wishes = 0;
        for (unsigned i = 0; i < PFLASH_ROM_AFTER - 1; i++)
            assert_int_equal(get(f, 7), 0x5a);
        assert_int_equal(f->wishes, 0);
        put(f, 0, 0xff); /* even a command that changes nothing: it was not read on end */
        for (unsigned i = 0; i < PFLASH_ROM_AFTER; i++)
            assert_int_equal(get(f, 7), 0x5a);
        assert_int_equal(f->wishes, 1);
        assert_int_equal(f->choice, PFLASH_ROM);
        assert_int_equal(space_for_each_ram(f->memory, count_rom, f, NULL), 0);
        assert_int_equal(f->wishes, 101);
        assert_int_equal(get(f, 7), 0x5a);
        put(f, 0, 0x90);
        assert_int_equal(f->wishes, 102);
        assert_int_equal(f->choice, PFLASH_WINDOW);
        assert_int_equal(get(f, 0), 0x89);
        for (unsigned i = 0; i < 2 * PFLASH_ROM_AFTER; i++)
            get(f, 1); /* not as memory */
        put(f, 0, 0xff);
        assert_int_equal(f->wishes, 102);
    }
    /* asked for once, however long it takes; what comes meanwhile is obeyed */
    f->obeys = false;
    f->wishes = 0;
    for (unsigned i = 0; i < 3 * PFLASH_ROM_AFTER; i++)
        get(f, 7);
    assert_int_equal(f->wishes, 1);
    put(f, 7, 0x40);
    put(f, 7, 0x50);
    assert_int_equal(f->wishes, 2);
    assert_int_equal(f->choice, PFLASH_WINDOW);
    assert_int_equal(f->bytes[7], 0x50);
}

static void test_forged_states(void **state)
{
    struct fixture *f = *state;
    struct pflash_state good, s;
    struct err e;

    put(f, 0x1000, 0xe8);
    put(f, 0x1000, 3);
    put(f, 0x1ff0, 0x12);
    pflash_get_state(f->flash, &good);
    assert_int_equal(good.buffer_used, 1);
#define REFUSES(what, says)                                                                        \
    do {                                                                                           \
        s = good;                                                                                  \
        what;                                                                                      \
        assert_int_not_equal(pflash_set_state(f->flash, &s, &e), 0);                               \
        if (strstr(e.msg, says) == NULL)                                                           \
            fail_msg("'%s' should say '%s'", e.msg, says);                                         \
        pflash_get_state(f->flash, &s);                                                            \
        assert_memory_equal(&s, &good, sizeof(s));                                                 \
    } while (0)
    REFUSES(s.mode = 4, "mode is 4");
    REFUSES(s.expects = 7, "expects is 7");
    REFUSES(s.status = 1, "status");
    REFUSES(s.buffer_wanted = 33, "buffer_wanted");
    REFUSES(s.buffer_wanted = 0, "buffer_wanted");
    REFUSES(s.buffer_used = 4, "buffer_used");
    REFUSES(s.buffer_used = 5, "buffer_used");
    REFUSES(s.expects = PFLASH_EXPECT_CONFIRM, "buffer_used");
    REFUSES(s.buffer_at = SIZE, "buffer_at");
    REFUSES(s.buffer_at = UINT32_MAX, "buffer_at");
    REFUSES((s.buffer_used = 3, s.buffer_at = 0x1ffe), "buffer_at");
#undef REFUSES
    for (unsigned i = 1; i < 4; i++)
        put(f, 0x1ff0 + i, 0x12);
    put(f, 0x1ff0, 0xd0);
    assert_memory_equal(f->bytes + 0x1ff0, "\x12\x12\x12\x12\xff", 5);
}

/* A chip that is ROM in its space is a window again, for what is put into it may be read. */
static void test_state_into_rom(void **state)
{
    struct fixture *f = *state;
    struct pflash_state s;

    f->obeys = true;
    pflash_get_state(f->flash, &s);
    s.mode = PFLASH_READ_STATUS;
    s.status = 0x80;
    for (unsigned i = 0; i < PFLASH_ROM_AFTER; i++)
        get(f, 0);
    assert_int_equal(f->choice, PFLASH_ROM);
    assert_int_equal(pflash_set_state(f->flash, &s, NULL), 0);
    assert_int_equal(f->choice, PFLASH_WINDOW);
    assert_int_equal(get(f, 0), 0x80);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_as_ovmf, setup, teardown),
        cmocka_unit_test_setup_teardown(test_buffer, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_sequences, setup, teardown),
        cmocka_unit_test_setup_teardown(test_errors_are_told, setup, teardown),
        cmocka_unit_test_setup_teardown(test_identity, setup, teardown),
        cmocka_unit_test_setup_teardown(test_rom_while_it_is_read, setup, teardown),
        cmocka_unit_test_setup_teardown(test_as_ovmf, setup_moving, teardown),
        cmocka_unit_test_setup_teardown(test_buffer, setup_moving, teardown),
        cmocka_unit_test_setup_teardown(test_bad_sequences, setup_moving, teardown),
        cmocka_unit_test_setup_teardown(test_errors_are_told, setup_moving, teardown),
        cmocka_unit_test_setup_teardown(test_identity, setup_moving, teardown),
        cmocka_unit_test_setup_teardown(test_forged_states, setup, teardown),
        cmocka_unit_test_setup_teardown(test_state_into_rom, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
