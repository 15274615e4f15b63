/*
 * kvmclock_test.c - what lands in guest memory, and whether a guest would read true time
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "dev/platform/kvmclock.h"
#include "mem/space.h"
#include "os/vclock.h"

#define RAM_SIZE 0x10000

struct fixture {
    struct vclock *clock;
    struct space *memory;
    uint8_t *ram;
    uint64_t tsc_hz;
    uint64_t offset[2];
    struct kvmclock *kc;
};

static uint64_t tsc_offset(void *ctx, unsigned index)
{
    return ((struct fixture *)ctx)->offset[index];
}

static uint64_t host_tsc(void *ctx)
{
    struct fixture *f = ctx;

    return (uint64_t)((unsigned __int128)vclock_now_ns(f->clock) * f->tsc_hz / NS_PER_SEC) + 77;
}

static uint64_t realtime_ns(void *ctx)
{
    struct fixture *f = ctx;

    return UINT64_C(1700000000) * NS_PER_SEC + 5 + vclock_now_ns(f->clock);
}

static void make(struct fixture *f, uint64_t tsc_hz)
{
    struct kvmclock_config config = {
        .tsc_hz = tsc_hz,
        .cpu_count = 2,
        .tsc_offset = tsc_offset,
        .ctx = f,
        .host_tsc = host_tsc,
        .realtime_ns = realtime_ns,
    };

    memset(f, 0, sizeof(*f));
    f->tsc_hz = tsc_hz;
    f->ram = aligned_alloc(4096, RAM_SIZE);
    memset(f->ram, 0, RAM_SIZE);
    assert_int_equal(vclock_create_manual(&f->clock, NULL), 0);
    assert_int_equal(space_create("memory", UINT64_C(1) << 40, &f->memory, NULL), 0);
    assert_int_equal(space_add_ram(f->memory, 0, f->ram, RAM_SIZE, false, NULL), 0);
    config.memory = f->memory;
    config.clock = f->clock;
    vclock_advance(f->clock, 123456789);
    assert_int_equal(kvmclock_create(&config, &f->kc, NULL), 0);
}

static void unmake(struct fixture *f)
{
    kvmclock_destroy(f->kc);
    space_destroy(f->memory);
    vclock_destroy(f->clock);
    free(f->ram);
}

/* What a guest computes from the record at `addr` (pvclock ABI). */
static uint64_t guest_ns(struct fixture *f, uint64_t addr, unsigned cpu)
{
    const uint8_t *record = f->ram + addr;
    uint64_t delta = host_tsc(f) + f->offset[cpu] - load_le64(record + 8);
    int8_t shift = (int8_t)record[28];

    delta = shift < 0 ? delta >> -shift : delta << shift;
    return load_le64(record + 16) +
           (uint64_t)((unsigned __int128)delta * load_le32(record + 24) >> 32);
}

static void test_time_is_true(void **state)
{
    static const uint64_t rates[] = {
        UINT64_C(800000000),  UINT64_C(1000000000), UINT64_C(2000000000), UINT64_C(2494140000),
        UINT64_C(2900000123), UINT64_C(4100000000), UINT64_C(19200000),
    };

    for (unsigned i = 0; i < ARRAY_SIZE(rates); i++) {
        struct fixture f;
        make(&f, rates[i]);
        f.offset[0] = UINT64_C(0) - 5000000;
        f.offset[1] = 99;
        assert_true(kvmclock_msr_write(f.kc, 0, KVMCLOCK_MSR_SYSTEM_TIME, 0x1001));
        vclock_advance(f.clock, 1000);
        assert_true(kvmclock_msr_write(f.kc, 1, KVMCLOCK_MSR_SYSTEM_TIME_OLD, 0x1041));
        /* a minute later: true within a microsecond, and the same on both CPUs */
        vclock_advance(f.clock, 60 * NS_PER_SEC);
        uint64_t now = vclock_now_ns(f.clock);
        assert_in_range(guest_ns(&f, 0x1000, 0), now - 1000, now + 100);
        assert_int_equal(guest_ns(&f, 0x1000, 0), guest_ns(&f, 0x1040, 1));
        assert_true(load_le32(f.ram + 0x1018) >= 1u << 31);
        unmake(&f);
    }
}

static void test_record(void **state)
{
    struct fixture f;
    uint64_t value = 0;

    make(&f, UINT64_C(2500000000));
    assert_true(kvmclock_msr_write(f.kc, 0, KVMCLOCK_MSR_SYSTEM_TIME, 0x2001));
    assert_int_equal(load_le32(f.ram + 0x2000), 2);
    assert_int_equal(f.ram[0x201d], 1);
    assert_true(kvmclock_msr_read(f.kc, 0, KVMCLOCK_MSR_SYSTEM_TIME_OLD, &value));
    assert_int_equal(value, 0x2001);

    vclock_advance(f.clock, 50);
    kvmclock_rebase(f.kc, true);
    assert_int_equal(load_le32(f.ram + 0x2000), 4);
    assert_int_equal(f.ram[0x201d], 3);
    assert_int_equal(load_le64(f.ram + 0x2010), vclock_now_ns(f.clock));

    f.offset[0] = 1000000;
    kvmclock_tsc_changed(f.kc, 0);
    assert_in_range(guest_ns(&f, 0x2000, 0), vclock_now_ns(f.clock) - 10,
                    vclock_now_ns(f.clock) + 10);

    /* disabled: nothing is written any more */
    assert_true(kvmclock_msr_write(f.kc, 0, KVMCLOCK_MSR_SYSTEM_TIME, 0x2000));
    kvmclock_rebase(f.kc, false);
    assert_int_equal(load_le32(f.ram + 0x2000), 6);
    /* not RAM, and half outside of it */
    assert_true(kvmclock_msr_write(f.kc, 0, KVMCLOCK_MSR_SYSTEM_TIME, UINT64_MAX));
    assert_true(kvmclock_msr_write(f.kc, 0, KVMCLOCK_MSR_SYSTEM_TIME, (RAM_SIZE - 16) | 1));
    assert_int_equal(f.ram[RAM_SIZE - 3], 0);
    unmake(&f);
}

static void test_wall_clock(void **state)
{
    struct fixture f;
    uint64_t value = 0;

    make(&f, UINT64_C(2500000000));
    store_le32(f.ram + 0x3000, 7);
    assert_true(kvmclock_msr_write(f.kc, 1, KVMCLOCK_MSR_WALL_CLOCK, 0x3000));
    assert_int_equal(load_le32(f.ram + 0x3000), 10);
    assert_int_equal(load_le32(f.ram + 0x3004), 1700000000);
    assert_int_equal(load_le32(f.ram + 0x3008), 5);
    assert_true(kvmclock_msr_read(f.kc, 0, KVMCLOCK_MSR_WALL_CLOCK_OLD, &value));
    assert_int_equal(value, 0x3000);
    assert_true(kvmclock_msr_write(f.kc, 1, KVMCLOCK_MSR_WALL_CLOCK, RAM_SIZE - 4));
    unmake(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_time_is_true),
        cmocka_unit_test(test_record),
        cmocka_unit_test(test_wall_clock),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
