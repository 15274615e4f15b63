/*
 * debug_port_test.c - the firmware's debug port: lines, and bytes that are none
 */
#include <stdio.h>
#include <string.h>

#include "dev/platform/debug_port.h"
#include "dev/test_support.h"

struct fixture {
    struct bench bench;
    struct debug_port *dev;
    char lines[1024]; /* each with a "\n" */
};

static void take_line(void *ctx, const char *line)
{
    struct fixture *f = ctx;
    size_t at = strlen(f->lines);

    snprintf(f->lines + at, sizeof(f->lines) - at, "%s\n", line);
}

static int setup(void **state)
{
    static struct fixture f;

    memset(&f, 0, sizeof(f));
    bench_setup(&f.bench);
    assert_int_equal(debug_port_create(take_line, &f, &f.dev, NULL), 0);
    assert_int_equal(debug_port_map(f.dev, f.bench.ports, DEBUG_PORT, NULL), 0);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    bench_teardown(&f->bench);
    debug_port_destroy(f->dev);
    return 0;
}

static void put(struct fixture *f, const char *text)
{
    while (*text != '\0')
        out8(&f->bench, DEBUG_PORT, (uint8_t)*text++);
}

static void test_lines(void **state)
{
    struct fixture *f = *state;

    assert_in8(&f->bench, DEBUG_PORT, 0xe9);
    put(f, "one\r\n\n\x1b[2Jt\xffo\nrest");
    assert_string_equal(f->lines, "one\n.[2Jt.o\n");
    debug_port_reset(f->dev);
    assert_string_equal(f->lines, "one\n.[2Jt.o\nrest\n");
}

static void test_long_line(void **state)
{
    struct fixture *f = *state;

    for (unsigned i = 0; i < 400; i++)
        put(f, "x");
    assert_int_equal(strlen(f->lines), 2 * 161);
    put(f, "\n");
    assert_int_equal(strlen(f->lines), 2 * 161 + 81);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_lines, setup, teardown),
        cmocka_unit_test_setup_teardown(test_long_line, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
