/*
 * steal_time_test.c - what a guest finds in its record of stolen time
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "dev/platform/steal_time.h"
#include "mem/space.h"

#define RAM_SIZE 0x4000u
#define RECORD 0x1040u
#define TSC_HZ UINT64_C(2000000000)
#define LOOK (TSC_HZ / 2000)

struct fixture {
    struct space *memory;
    struct steal_time *st;
    uint8_t *ram;
    uint64_t waited[2], tsc;
    bool is_unknown;
    unsigned looks;
};

static bool waited_ns(void *ctx, unsigned cpu, uint64_t *ns)
{
    struct fixture *f = ctx;

    f->looks++;
    *ns = f->waited[cpu];
    return !f->is_unknown;
}

static uint64_t host_tsc(void *ctx)
{
    return ((struct fixture *)ctx)->tsc;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct steal_time_config config = {
        .cpu_count = 2, .tsc_hz = TSC_HZ, .waited_ns = waited_ns, .ctx = f, .host_tsc = host_tsc};

    f->ram = aligned_alloc(4096, RAM_SIZE);
    memset(f->ram, 0, RAM_SIZE);
    f->tsc = UINT64_C(1) << 40;
    f->waited[0] = 1000000;
    f->waited[1] = 5;
    assert_int_equal(space_create("memory", UINT64_C(1) << 40, &f->memory, NULL), 0);
    assert_int_equal(space_add_ram(f->memory, 0, f->ram, RAM_SIZE, false, NULL), 0);
    config.memory = f->memory;
    assert_int_equal(steal_time_create(&config, &f->st, NULL), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    steal_time_destroy(f->st);
    space_destroy(f->memory);
    free(f->ram);
    free(f);
    return 0;
}

static uint64_t sum(const struct fixture *f, unsigned addr)
{
    assert_false(load_le32(f->ram + addr + 8) & 1);
    return load_le64(f->ram + addr);
}

static void values(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(steal_time_read(f->st, 0), 0);
    for (unsigned bit = 1; bit < 6; bit++)
        assert_false(steal_time_write(f->st, 0, RECORD | BIT(bit) | 1));
    assert_int_equal(steal_time_read(f->st, 0), 0);
    assert_true(steal_time_write(f->st, 0, RECORD | 1));
    assert_int_equal(steal_time_read(f->st, 0), RECORD | 1);
    assert_int_equal(steal_time_read(f->st, 1), 0);
    steal_time_reset(f->st, 0);
    assert_int_equal(steal_time_read(f->st, 0), 0);
    f->tsc += LOOK;
    assert_false(steal_time_update(f->st, 0));
}

/* What was waited before the guest asked is not its; the sum is what memory says. */
static void it_adds_up(void **state)
{
    struct fixture *f = *state;
    uint32_t version;

    store_le64(f->ram + RECORD, 700);
    store_le32(f->ram + RECORD + 8, 9); /* odd: nobody has ever written it */
    f->ram[RECORD + 16] = 1;
    assert_true(steal_time_write(f->st, 0, RECORD | 1));
    version = load_le32(f->ram + RECORD + 8);
    assert_true(version > 9);
    assert_int_equal(sum(f, RECORD), 700);
    assert_int_equal(f->ram[RECORD + 16], 0);
    f->waited[0] += 300;
    f->tsc += LOOK;
    assert_true(steal_time_update(f->st, 0));
    assert_int_equal(sum(f, RECORD), 1000);
    assert_int_equal(load_le32(f->ram + RECORD + 8), version + 2);
    /* again, with nothing new */
    f->tsc += LOOK;
    assert_false(steal_time_update(f->st, 0));
    assert_int_equal(load_le32(f->ram + RECORD + 8), version + 2);
    /* what was before an update that could not be told of is in the next */
    f->waited[0] += 40;
    f->is_unknown = true;
    f->tsc += LOOK;
    assert_false(steal_time_update(f->st, 0));
    f->is_unknown = false;
    f->waited[0] += 2;
    f->tsc += LOOK;
    assert_true(steal_time_update(f->st, 0));
    assert_int_equal(sum(f, RECORD), 1042);
    /* nothing but the record */
    assert_int_equal(f->ram[RECORD - 1], 0);
    for (unsigned i = 17; i < 128; i++)
        assert_int_equal(f->ram[RECORD + i], 0);
}

static void it_does_not_look_too_often(void **state)
{
    struct fixture *f = *state;
    unsigned looks;

    assert_true(steal_time_write(f->st, 0, RECORD | 1));
    looks = f->looks;
    f->waited[0] += 300;
    f->tsc += LOOK - 1;
    assert_false(steal_time_update(f->st, 0));
    assert_int_equal(f->looks, looks);
    f->tsc += 1;
    assert_true(steal_time_update(f->st, 0));
    assert_int_equal(sum(f, RECORD), 300);
}

static void each_has_its_own(void **state)
{
    struct fixture *f = *state;

    assert_true(steal_time_write(f->st, 0, RECORD | 1));
    assert_true(steal_time_write(f->st, 1, (RECORD + 64) | 1));
    f->waited[1] += 77;
    f->tsc += LOOK;
    assert_false(steal_time_update(f->st, 0));
    assert_true(steal_time_update(f->st, 1));
    assert_int_equal(sum(f, RECORD), 0);
    assert_int_equal(sum(f, RECORD + 64), 77);
    /* off */
    assert_true(steal_time_write(f->st, 1, RECORD + 64));
    f->waited[1] += 77;
    f->tsc += LOOK;
    assert_false(steal_time_update(f->st, 1));
    assert_int_equal(sum(f, RECORD + 64), 77);
}

static void addresses_that_are_no_memory(void **state)
{
    static const uint64_t where[] = {RAM_SIZE, UINT64_C(1) << 39, UINT64_MAX & ~UINT64_C(63)};
    struct fixture *f = *state;

    for (unsigned i = 0; i < ARRAY_SIZE(where); i++) {
        assert_true(steal_time_write(f->st, 0, where[i] | 1));
        f->waited[0]++;
        f->tsc += LOOK;
        assert_true(steal_time_update(f->st, 0));
    }
    /* the last record that fits */
    assert_true(steal_time_write(f->st, 0, (RAM_SIZE - 64) | 1));
    f->waited[0] += 5;
    f->tsc += LOOK;
    assert_true(steal_time_update(f->st, 0));
    assert_int_equal(sum(f, RAM_SIZE - 64), 5);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(values),
        T(it_adds_up),
        T(each_has_its_own),
        T(it_does_not_look_too_often),
        T(addresses_that_are_no_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
