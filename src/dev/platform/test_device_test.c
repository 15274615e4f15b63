/*
 * test_device_test.c - the test device: lines, register, buffer
 */
#include <string.h>

#include "dev/platform/test_device.h"
#include "dev/test_support.h"

struct fixture {
    struct bench bench;
    struct space *memory;
    struct probe probes[TEST_DEVICE_LINES];
    struct test_device *dev;
};

static int setup(void **state)
{
    static struct fixture f;
    struct irq_line lines[TEST_DEVICE_LINES];

    memset(&f, 0, sizeof(f));
    bench_setup(&f.bench);
    assert_int_equal(space_create("memory", UINT64_C(1) << 36, &f.memory, NULL), 0);
    for (unsigned i = 0; i < TEST_DEVICE_LINES; i++) {
        lines[i] = probe_line(f.probes);
        lines[i].input = i;
    }
    assert_int_equal(test_device_create(lines, &f.dev, NULL), 0);
    assert_int_equal(test_device_map(f.dev, f.bench.ports, f.memory, NULL), 0);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    bench_teardown(&f->bench);
    space_destroy(f->memory);
    test_device_destroy(f->dev);
    return 0;
}

static void test_register(void **state)
{
    struct fixture *f = *state;
    struct space *ports = f->bench.ports;

    space_store(ports, 0xe0, 0x44332211, 4);
    assert_int_equal(space_load(ports, 0xe0, 4), 0x44332211);
    assert_in8(&f->bench, 0xe2, 0x33);
    assert_int_equal(space_load(ports, 0xe1, 2), 0x3322);
    assert_int_equal(space_load(ports, 0xe8, 4), 0x44332211);
    out8(&f->bench, 0xe9, 0xaa);
    space_store(ports, 0xe2, 0x5566, 2);
    assert_int_equal(space_load(ports, 0xe0, 4), 0x5566aa11);
    test_device_reset(f->dev);
    assert_int_equal(space_load(ports, 0xe0, 4), 0);
}

static void test_flush_changes_nothing(void **state)
{
    struct fixture *f = *state;

    space_store(f->bench.ports, 0xe0, 1, 4);
    space_store(f->bench.ports, 0xe4, 0xfffff000, 4);
    assert_int_equal(space_load(f->bench.ports, 0xe0, 4), 1);
}

static void test_lines(void **state)
{
    struct fixture *f = *state;

    for (unsigned i = 0; i < TEST_DEVICE_LINES; i++) {
        out8(&f->bench, (uint16_t)(0x2000 + i), 0x80);
        assert_true(f->probes[i].level);
        assert_int_equal(f->probes[i].rises, 1);
        if (i + 1 < TEST_DEVICE_LINES)
            assert_false(f->probes[i + 1].level);
    }
    out8(&f->bench, 0x2005, 0);
    assert_false(f->probes[5].level);
    assert_true(f->probes[6].level);
    test_device_reset(f->dev);
    for (unsigned i = 0; i < TEST_DEVICE_LINES; i++)
        assert_false(f->probes[i].level);
    /* 2018H is nobody's */
    out8(&f->bench, 0x2018, 1);
}

static void test_buffer(void **state)
{
    struct fixture *f = *state;
    uint64_t end = TEST_DEVICE_MEMORY + TEST_DEVICE_MEMORY_SIZE;

    space_store(f->memory, TEST_DEVICE_MEMORY, 0x1122334455667788, 8);
    assert_true(space_load(f->memory, TEST_DEVICE_MEMORY, 8) == 0x1122334455667788);
    assert_int_equal(space_load(f->memory, TEST_DEVICE_MEMORY + 3, 2), 0x4455);
    space_store(f->memory, end - 4, 0xcafebabe, 4);
    assert_int_equal(space_load(f->memory, end - 1, 1), 0xca);
    /* half of it is outside: that half reads as ones */
    assert_int_equal(space_load(f->memory, end - 2, 4), 0xffffcafe);
    test_device_reset(f->dev);
    assert_true(space_load(f->memory, TEST_DEVICE_MEMORY, 8) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_register, setup, teardown),
        cmocka_unit_test_setup_teardown(test_flush_changes_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lines, setup, teardown),
        cmocka_unit_test_setup_teardown(test_buffer, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
