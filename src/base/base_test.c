/*
 * base_test.c - errors, logging, number parsing and bit helpers
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/log.h"
#include "base/parse.h"
#include "base/stats.h"
#include "base/stats_book.h"
#include "base/uuid.h"

static void test_err_set_appends_reason(void **state)
{
    struct err e = {0};
    assert_int_equal(err_set(&e, ENOENT, "open disk '%s'", "a.img"), -ENOENT);
    assert_int_equal(e.code, ENOENT);
    assert_string_equal(e.msg, "open disk 'a.img': No such file or directory");
    assert_int_equal(err_set(&e, 0, "odd"), -EINVAL);
    assert_string_equal(e.msg, "odd");
    assert_int_equal(err_set(NULL, EIO, "x"), -EIO);
}

static void test_err_keeps_reason_when_long(void **state)
{
    char longer[2 * ERR_MSG_SIZE];
    memset(longer, 'a', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    struct err e = {0};
    err_set(&e, ENOENT, "%s", longer);
    assert_true(strlen(e.msg) < sizeof(e.msg));
    assert_non_null(strstr(e.msg, ": No such file or directory"));
}

static void test_err_prefix(void **state)
{
    struct err e = {0};
    err_set(&e, ENOENT, "open");
    assert_int_equal(err_prefix(&e, "disk %d", 1), -ENOENT);
    assert_string_equal(e.msg, "disk 1: open: No such file or directory");
    /* An old message may be an argument of the new one. */
    err_set(&e, 0, "again: %s", e.msg);
    assert_string_equal(e.msg, "again: disk 1: open: No such file or directory");
}

static void test_parse_u64(void **state)
{
    uint64_t v = 7;
    struct err e;
    assert_int_equal(parse_u64("42", "n", 0, 100, &v, &e), 0);
    assert_int_equal(v, 42);
    assert_int_equal(parse_u64("0x2a", "n", 0, 100, &v, &e), 0);
    assert_int_equal(v, 42);
    assert_int_equal(parse_u64("18446744073709551615", "n", 0, UINT64_MAX, &v, &e), 0);
    assert_true(v == UINT64_MAX);
    static const char *const bad[] = {"",
                                      "-1",
                                      "+1",
                                      " 1",
                                      "1 ",
                                      "0x",
                                      "1a",
                                      "101",
                                      "18446744073709551616",
                                      "0x10000000000000000"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(parse_u64(bad[i], "n", 0, 100, &v, &e), -EINVAL);
    assert_int_equal(parse_u64("0", "--cpus", 1, 64, &v, &e), -EINVAL);
    assert_string_equal(e.msg, "--cpus: 0 is out of range (1 to 64)");
}

static void test_parse_size(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0},
                {"4096", 4096},
                {"512M", UINT64_C(512) << 20},
                {"4G", UINT64_C(4) << 30},
                {"4g", UINT64_C(4) << 30},
                {"4GiB", UINT64_C(4) << 30},
                {"4gb", UINT64_C(4) << 30},
                {"1T", UINT64_C(1) << 40},
                {"0x10K", 16384}};
    uint64_t v;
    struct err e;
    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        assert_int_equal(parse_size(good[i].text, "size", &v, &e), 0);
        assert_true(v == good[i].bytes);
    }
    static const char *const bad[] = {"",    "M",    "512X",      "512MM",
                                      "-1M", "1.5G", "16777216T", "512 M"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(parse_size(bad[i], "size", &v, &e), -EINVAL);
}

static void test_format_size(void **state)
{
    char buf[PARSE_SIZE_TEXT];
    assert_string_equal(parse_format_size(0, buf), "0");
    assert_string_equal(parse_format_size(1000, buf), "1000");
    assert_string_equal(parse_format_size(UINT64_C(512) << 20, buf), "512M");
    assert_string_equal(parse_format_size(UINT64_C(1) << 60, buf), "1048576T");
}

static void test_bits(void **state)
{
    assert_int_equal(bits(0xabcd, 11, 4), 0xbc);
    assert_true(bits(~UINT64_C(0), 63, 0) == ~UINT64_C(0));
    assert_int_equal(sign_extend(0x80, 8), -128);
    assert_int_equal(sign_extend(0x7f, 8), 127);
    assert_true(range_fits(0, 16, 16));
    assert_false(range_fits(1, 16, 16));
    assert_false(range_fits(UINT64_MAX, 2, 16));
    assert_true(ranges_overlap(0, 2, 1, 1));
    assert_false(ranges_overlap(0, 1, 1, 1));
    assert_false(ranges_overlap(5, 0, 0, 10));
}

/* What log_write puts on standard error. */
static void capture_log(char *out, size_t size, const char *text)
{
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    int saved = dup(STDERR_FILENO);
    dup2(fds[1], STDERR_FILENO);
    log_warn("%s", text);
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(fds[1]);
    ssize_t n = read(fds[0], out, size - 1);
    close(fds[0]);
    out[n > 0 ? n : 0] = '\0';
}

static void test_log_lines(void **state)
{
    char out[4096];
    capture_log(out, sizeof(out), "one\ntwo\n");
    assert_string_equal(out, "doppel: warn: one\ndoppel: warn: two\n");
    log_set_raw_terminal(true);
    capture_log(out, sizeof(out), "x\033[2Jy");
    log_set_raw_terminal(false);
    assert_string_equal(out, "doppel: warn: x?[2Jy\r\n");
    log_set_level(LOG_ERROR);
    capture_log(out, sizeof(out), "hidden");
    log_set_level(LOG_WARN);
    assert_string_equal(out, "");
    char many[1000];
    memset(many, '\n', sizeof(many));
    many[0] = 'a';
    many[998] = 'b';
    many[999] = '\0';
    capture_log(out, sizeof(out), many);
    assert_true(strlen(out) < 2048);
}

static void test_log_level(void **state)
{
    enum log_level level = LOG_ERROR;
    assert_int_equal(log_parse_level("trace", &level), 0);
    assert_int_equal(level, LOG_TRACE);
    assert_int_equal(log_parse_level("loud", &level), -EINVAL);
}

static void test_log_limit(void **state)
{
    struct log_limit limit = {0};
    for (int i = 0; i < LOG_LIMIT_BURST; i++)
        assert_true(log_limit_allows(&limit));
    /* The burst is used up; one more is due because none was printed in the last second. */
    assert_true(log_limit_allows(&limit));
    assert_false(log_limit_allows(&limit));
}

static void test_stats_text(void **state)
{
    struct stats_text text;
    char *buf = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&buf, &size);
    stats_text_init(&text, out);
    stats_begin(&text.sink, "cache", -1);
    stats_put_count(&text.sink, "blocks", "blocks", 7);
    stats_put_count(&text.sink, "none", "not seen", 0);
    stats_begin(&text.sink, "translator", 3);
    stats_put_share(&text.sink, "hits", "hits", 1, 8);
    stats_put_ms(&text.sink, "time_ms", "ms in it", 1.5);
    fclose(out);
    assert_string_equal(buf, "cache\n"
                             "  blocks                                                      7\n"
                             "CPU 3, translator\n"
                             "  hits                                                        1"
                             "  12.500%\n"
                             "  ms in it                                                1.500\n");
    free(buf);
}

static uint64_t count_of(const char *text, const char *line)
{
    const char *found = strstr(text, line);

    return found != NULL ? strtoull(found + strlen(line), NULL, 10) : UINT64_MAX;
}

/* Reports add up by group, CPU and key, in the order of the first. */
static void test_stats_book(void **state)
{
    struct stats_book book, sum;
    struct stats_text text;
    char *buf = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&buf, &size);
    stats_book_init(&book);
    for (unsigned n = 1; n <= 3; n++) {
        for (int cpu = 0; cpu < 2; cpu++) {
            stats_begin(&book.sink, "engine", cpu);
            stats_put_count(&book.sink, "a", "first", n);
            if (n == 2)
                stats_put_count(&book.sink, "odd", "only then", 7);
            stats_put_share(&book.sink, "b", "second", n, 10);
            stats_put_ms(&book.sink, "c_ms", "time", 0.5);
        }
        stats_begin(&book.sink, "cache", -1);
        stats_put_count(&book.sink, "a", "full", 50);
    }
    stats_text_init(&text, out);
    text.sink.engine = "bt";
    stats_book_report(&book, true, &text.sink);
    fclose(out);
    assert_string_equal(buf, "CPU 0, engine (bt)\n"
                             "  first                                                       6\n"
                             "  second                                                      6"
                             "  20.000%\n"
                             "  time                                                    1.500\n"
                             "  only then                                                   7\n"
                             "CPU 1, engine (bt)\n"
                             "  first                                                       6\n"
                             "  second                                                      6"
                             "  20.000%\n"
                             "  time                                                    1.500\n"
                             "  only then                                                   7\n");
    free(buf);
    /* into another book, and that of the whole machine, too */
    stats_book_init(&sum);
    stats_book_report(&book, true, &sum.sink);
    stats_book_report(&book, false, &sum.sink);
    out = open_memstream(&buf, &size);
    stats_text_init(&text, out);
    stats_book_report(&sum, false, &text.sink);
    fclose(out);
    assert_int_equal(count_of(buf, "  first"), 12);
    assert_int_equal(count_of(buf, "  full"), 150);
    free(buf);
    assert_false(book.is_incomplete || sum.is_incomplete);
    stats_book_fini(&sum);
    stats_book_fini(&book);
}

/* Keys that a guest makes up do not fill the memory. */
static void test_stats_book_is_bounded(void **state)
{
    struct stats_book book;
    char key[16];
    stats_book_init(&book);
    stats_begin(&book.sink, "engine", 0);
    for (unsigned n = 0; n < STATS_BOOK_ITEMS_MAX; n++) {
        snprintf(key, sizeof(key), "failed.%u", n);
        stats_put_count(&book.sink, key, key, 1);
    }
    assert_false(book.is_incomplete);
    stats_put_count(&book.sink, "failed.0", "known", 1);
    assert_false(book.is_incomplete);
    stats_put_count(&book.sink, "failed.new", "one too many", 1);
    assert_true(book.is_incomplete);
    stats_book_fini(&book);
}

static void test_uuid(void **state)
{
    static const char *const bad[] = {
        "",
        "2b4e9c1a",
        "2b4e9c1a7d354f0e9a610c8d5b3f2e17",
        "2b4e9c1a-7d35-4f0e-9a61-0c8d5b3f2e1",
        "2b4e9c1a-7d35-4f0e-9a61-0c8d5b3f2e170",
        "2b4e9c1a-7d35-4f0e-9a61-0c8d5b3f2e1g",
        "2b4e9c1a-7d35-4f0e-9a610-c8d5b3f2e17",
        "{2b4e9c1a-7d35-4f0e-9a61-0c8d5b3f2e1",
    };
    static const uint8_t want[UUID_SIZE] = {0x2b, 0x4e, 0x9c, 0x1a, 0x7d, 0x35, 0x4f, 0x0e,
                                            0x9a, 0x61, 0x0c, 0x8d, 0x5b, 0x3f, 0x2e, 0x17};
    uint8_t a[UUID_SIZE], b[UUID_SIZE];
    struct err e;

    assert_int_equal(uuid_parse("2B4e9c1a-7d35-4f0e-9a61-0c8d5b3f2E17", "--uuid", a, &e), 0);
    assert_memory_equal(a, want, UUID_SIZE);
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_int_equal(uuid_parse(bad[i], "--uuid", a, &e), -EINVAL);
        assert_non_null(strstr(e.msg, "--uuid"));
        assert_memory_equal(a, want, UUID_SIZE);
    }
    /* for all time: guests know themselves by it */
    assert_int_equal(uuid_parse("a925bd7c-359c-8f8b-ad53-4a51c98587cc", "want", b, &e), 0);
    uuid_of_name("web", a);
    assert_memory_equal(a, b, UUID_SIZE);
    uuid_of_name("weB", b);
    assert_memory_not_equal(a, b, 6);
    assert_memory_not_equal(a + 10, b + 10, 6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_err_set_appends_reason),
        cmocka_unit_test(test_err_keeps_reason_when_long),
        cmocka_unit_test(test_err_prefix),
        cmocka_unit_test(test_parse_u64),
        cmocka_unit_test(test_parse_size),
        cmocka_unit_test(test_uuid),
        cmocka_unit_test(test_format_size),
        cmocka_unit_test(test_bits),
        cmocka_unit_test(test_log_lines),
        cmocka_unit_test(test_log_level),
        cmocka_unit_test(test_log_limit),
        cmocka_unit_test(test_stats_text),
        cmocka_unit_test(test_stats_book),
        cmocka_unit_test(test_stats_book_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
