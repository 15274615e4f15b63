/*
 * chardev_test.c - character devices: nothing lost, nothing blocks, everybody may leave
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "backend/char/chardev_impl.h"
#include "base/bits.h"
#include "os/loop.h"

struct fixture {
    struct loop *loop;
    struct chardev *cd;
    char dir[64];
    char path[96];
    uint8_t got[200000];
    size_t got_len, want_len, room;
    unsigned writable, failed, connected, disconnected, breaks;
    struct err why;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    f->room = sizeof(f->got);
    strcpy(f->dir, "/tmp/doppel-test-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->path, sizeof(f->path), "%s/x", f->dir);
    *state = f;
    struct err e;
    return loop_create(&f->loop, &e);
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    chardev_destroy(f->cd);
    loop_destroy(f->loop);
    unlink(f->path);
    rmdir(f->dir);
    free(f);
    return 0;
}

static size_t can_receive(void *ctx)
{
    return ((struct fixture *)ctx)->room;
}

static void receive(void *ctx, const uint8_t *buf, size_t len)
{
    struct fixture *f = ctx;
    assert_true(len >= 1 && len <= f->room);
    memcpy(f->got + f->got_len, buf, len);
    f->got_len += len;
    f->room -= len;
    if (f->got_len >= f->want_len || f->room == 0)
        loop_stop(f->loop);
}

static void writable(void *ctx)
{
    struct fixture *f = ctx;
    f->writable++;
    loop_stop(f->loop);
}

static void event(void *ctx, enum chardev_event ev)
{
    struct fixture *f = ctx;
    f->breaks += ev == CHARDEV_BREAK;
    f->connected += ev == CHARDEV_CONNECTED;
    f->disconnected += ev == CHARDEV_DISCONNECTED;
    if (ev != CHARDEV_BREAK)
        loop_stop(f->loop);
}

static void failed(void *ctx, const struct err *why)
{
    struct fixture *f = ctx;
    f->failed++;
    f->why = *why;
    loop_stop(f->loop);
}

static const struct chardev_receiver receiver = {
    .can_receive = can_receive, .receive = receive, .writable = writable, .event = event};

static void run(struct fixture *f)
{
    struct err e;
    assert_int_equal(loop_run(f->loop, &e), 0);
}

static void stop(void *ctx)
{
    loop_stop(ctx);
}

/* One turn for what is ready and posted. */
static void run_once(struct fixture *f)
{
    loop_post(f->loop, stop, f->loop);
    run(f);
}

static void attach(struct fixture *f)
{
    chardev_set_receiver(f->cd, &receiver, f);
    chardev_set_failed(f->cd, failed, f);
}

static void test_file_gets_everything(void **state)
{
    struct fixture *f = *state;
    struct err e;
    char spec[128];
    snprintf(spec, sizeof(spec), "file:%s", f->path);
    assert_int_equal(chardev_create(f->loop, spec, NULL, &f->cd, &e), 0);
    attach(f);
    run_once(f);
    size_t total = 0;
    for (unsigned i = 0; total < 1000000; i++) {
        uint8_t line[100];
        for (unsigned k = 0; k < sizeof(line); k++)
            line[k] = (uint8_t)((total + k) % 251);
        size_t n = chardev_write(f->cd, line, sizeof(line));
        total += n;
        if (n < sizeof(line))
            run(f); /* until writable */
    }
    assert_int_equal(chardev_drain(f->cd, -1, &e), 0);
    FILE *in = fopen(f->path, "rb");
    for (size_t i = 0; i < total; i++)
        assert_int_equal(fgetc(in), i % 251);
    assert_int_equal(fgetc(in), EOF);
    fclose(in);
}

static void test_full_disk_is_reported(void **state)
{
    struct fixture *f = *state;
    struct err e;
    assert_int_equal(chardev_create(f->loop, "file:/dev/full", NULL, &f->cd, &e), 0);
    chardev_set_failed(f->cd, failed, f);
    assert_int_equal(chardev_write(f->cd, "x", 1), 1);
    run(f);
    assert_int_equal(f->failed, 1);
    assert_int_equal(f->why.code, ENOSPC);
    /* The guest is not held up. */
    static uint8_t lots[CHAR_BIT * 100000];
    assert_int_equal(chardev_write(f->cd, lots, sizeof(lots)), sizeof(lots));
    assert_int_equal(chardev_drain(f->cd, -1, &e), -ENOSPC);
}

static void test_broken_pipe_is_reported(void **state)
{
    struct fixture *f = *state;
    struct err e;
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    struct chardev_stdio_config config = {.in_fd = -1, .out_fd = fds[1]};
    assert_int_equal(chardev_create(f->loop, "stdio", &config, &f->cd, &e), 0);
    chardev_set_failed(f->cd, failed, f);
    close(fds[0]);
    chardev_write(f->cd, "x", 1);
    run(f);
    assert_int_equal(f->why.code, EPIPE);
    chardev_destroy(f->cd);
    f->cd = NULL;
    close(fds[1]);
}

/* Write into a pipe until no more goes in; how much that was. */
static size_t fill(int fd, const uint8_t *block, size_t size)
{
    size_t total = 0;
    ssize_t n;

    assert_int_equal(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
    while ((n = write(fd, block, size)) > 0)
        total += (size_t)n;
    assert_int_equal(errno, EAGAIN);
    assert_int_equal(fcntl(fd, F_SETFL, 0), 0);
    return total;
}

/* Nobody reads the pipe: writes are cut short, drain gives up, destroying does not hang. */
static void test_stuck_reader(void **state)
{
    struct fixture *f = *state;
    struct err e;
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    uint8_t block[4096];
    memset(block, 'z', sizeof(block));
    size_t before = fill(fds[1], block, sizeof(block));
    struct chardev_stdio_config config = {.in_fd = -1, .out_fd = fds[1]};
    assert_int_equal(chardev_create(f->loop, "stdio", &config, &f->cd, &e), 0);
    attach(f);
    run_once(f);
    /* The pipe is full: what is written stays in the queue, whenever its thread runs. */
    size_t total = 0;
    for (int i = 0; i < 1000; i++)
        total += chardev_write(f->cd, block, sizeof(block));
    assert_int_equal(total, CHARDEV_OUTPUT_SIZE);
    assert_int_equal(chardev_drain(f->cd, 20, &e), -ETIMEDOUT);
    assert_int_equal(f->writable, 0);
    /* Somebody reads after all. */
    for (size_t left = before + total; left > 0;) {
        ssize_t n = read(fds[0], block, MIN(sizeof(block), left));
        assert_true(n > 0);
        left -= (size_t)n;
    }
    while (f->writable == 0)
        run(f);
    for (int i = 0; i < 1000; i++)
        chardev_write(f->cd, block, sizeof(block));
    chardev_destroy(f->cd);
    f->cd = NULL;
    close(fds[0]);
    close(fds[1]);
}

static size_t drop_x(void *ctx, uint8_t *buf, size_t len)
{
    size_t n = 0;
    for (size_t i = 0; i < len; i++)
        if (buf[i] != 'x')
            buf[n++] = buf[i];
    return n;
}

static void test_stdin_flow(void **state)
{
    struct fixture *f = *state;
    struct err e;
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    fcntl(fds[1], F_SETPIPE_SZ, 65536);
    static uint8_t data[60000];
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i % 100);
    assert_int_equal(write(fds[1], data, sizeof(data)), sizeof(data));
    close(fds[1]);
    int null = open("/dev/null", O_WRONLY);
    struct chardev_stdio_config config = {.in_fd = fds[0], .out_fd = null};
    assert_int_equal(chardev_create(f->loop, "stdio", &config, &f->cd, &e), 0);
    f->room = 0;
    attach(f);
    run_once(f);
    run_once(f);
    assert_int_equal(f->connected, 1);
    assert_int_equal(f->got_len, 0);
    /* The receiver takes a few bytes at a time, as a UART does. */
    f->want_len = sizeof(data);
    while (f->got_len < sizeof(data)) {
        f->room = 16;
        chardev_resume_input(f->cd);
        run(f);
    }
    assert_memory_equal(f->got, data, sizeof(data));
    chardev_destroy(f->cd);
    f->cd = NULL;
    close(null);
    close(fds[0]);
}

/* epoll refuses regular files; they are read all the same, through the filter. */
static void test_pseudo_terminal(void **state)
{
    struct fixture *f = *state;
    struct err e;
    char spec[128], text[8];
    snprintf(spec, sizeof(spec), "pty:%s", f->path);
    assert_int_equal(symlink("/nowhere", f->path), 0); /* of an earlier run */
    assert_int_equal(chardev_create(f->loop, spec, NULL, &f->cd, &e), 0);
    attach(f);
    run_once(f);
    for (unsigned i = 0; i < 2; i++) { /* it may be opened again */
        int fd = open(f->path, O_RDWR | O_NOCTTY);
        assert_true(fd >= 0);
        f->want_len = 3 * (i + 1);
        assert_int_equal(write(fd, "a\003\n", 3), 3); /* as it is: no signal, no echo */
        while (f->got_len < f->want_len)
            run(f);
        assert_memory_equal(f->got + 3 * i, "a\003\n", 3);
        assert_int_equal(chardev_write(f->cd, "out\n", 4), 4);
        assert_int_equal(read(fd, text, sizeof(text)), 4);
        assert_memory_equal(text, "out\n", 4);
        close(fd);
    }
    chardev_destroy(f->cd);
    f->cd = NULL;
    assert_int_equal(access(f->path, F_OK), -1);
    int fd = open(f->path, O_RDWR | O_CREAT, 0600); /* somebody's file is left alone */
    close(fd);
    assert_true(chardev_create(f->loop, spec, NULL, &f->cd, &e) < 0);
    assert_int_equal(access(f->path, F_OK), 0);
    f->cd = NULL;
}

static void test_stdin_from_file(void **state)
{
    struct fixture *f = *state;
    struct err e;
    int fd = open(f->path, O_RDWR | O_CREAT, 0600);
    for (int i = 0; i < 5000; i++)
        assert_int_equal(write(fd, "axb", 3), 3);
    lseek(fd, 0, SEEK_SET);
    int null = open("/dev/null", O_WRONLY);
    struct chardev_stdio_config config = {.in_fd = fd, .out_fd = null, .filter = drop_x};
    assert_int_equal(chardev_create(f->loop, "stdio", &config, &f->cd, &e), 0);
    attach(f);
    run_once(f);
    f->want_len = 10000;
    run(f);
    while (f->got_len < 10000)
        run(f);
    assert_int_equal(f->got_len, 10000);
    assert_memory_equal(f->got, "abab", 4);
    run_once(f); /* end of file: silence */
    chardev_destroy(f->cd);
    f->cd = NULL;
    close(null);
    close(fd);
}

static int dial(const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    strcpy(addr.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static void expect_text(int fd, const char *text)
{
    char buf[256];
    size_t len = strlen(text), got = 0;
    while (got < len) {
        ssize_t n = read(fd, buf + got, len - got);
        assert_true(n > 0);
        got += (size_t)n;
    }
    assert_memory_equal(buf, text, len);
}

static void test_unix_clients_come_and_go(void **state)
{
    struct fixture *f = *state;
    struct err e;
    assert_int_equal(chardev_create_unix(f->loop, f->path, &f->cd, &e), 0);
    attach(f);
    struct stat st;
    assert_int_equal(stat(f->path, &st), 0);
    assert_int_equal(st.st_mode & 077, 0);
    /* A second device may not take a live socket. */
    struct chardev *other;
    assert_int_equal(chardev_create_unix(f->loop, f->path, &other, &e), -EADDRINUSE);
    run_once(f); /* the probe connected and left */
    while (f->disconnected < f->connected)
        run(f);
    f->connected = f->disconnected = 0;

    assert_int_equal(chardev_write(f->cd, "early ", 6), 6);
    int a = dial(f->path);
    assert_true(a >= 0);
    run(f);
    assert_int_equal(f->connected, 1);
    int b = dial(f->path); /* waits in line */
    assert_int_equal(chardev_write(f->cd, "bird", 4), 4);
    run_once(f);
    expect_text(a, "early bird");
    f->want_len = 2;
    assert_int_equal(write(a, "hi", 2), 2);
    run(f);
    assert_memory_equal(f->got, "hi", 2);
    close(a);
    while (f->disconnected == 0)
        run(f);
    while (f->connected == 1)
        run(f);
    assert_int_equal(chardev_write(f->cd, "second", 6), 6);
    assert_int_equal(chardev_drain(f->cd, 1000, &e), 0);
    expect_text(b, "second");
    close(b);
    chardev_destroy(f->cd);
    f->cd = NULL;
    assert_int_equal(access(f->path, F_OK), -1);
}

static void test_unix_slow_client(void **state)
{
    struct fixture *f = *state;
    struct err e;
    assert_int_equal(chardev_create_unix(f->loop, f->path, &f->cd, &e), 0);
    attach(f);
    /* With nobody there only the latest output is kept. */
    static uint8_t block[100000];
    memset(block, 'o', sizeof(block));
    memcpy(block + sizeof(block) - 3, "end", 3);
    assert_int_equal(chardev_write(f->cd, block, sizeof(block)), sizeof(block));
    int a = dial(f->path);
    run(f);
    size_t total = 65536, cut = 0;
    while (cut == 0) {
        size_t n = chardev_write(f->cd, block, 1000);
        total += n;
        cut = 1000 - n;
        run_once(f);
    }
    assert_int_equal(chardev_drain(f->cd, 10, &e), -ETIMEDOUT);
    while (f->writable == 0) {
        static char sink[8192];
        ssize_t n = read(a, sink, sizeof(sink));
        assert_true(n > 0);
        total -= (size_t)n;
        run_once(f);
    }
    assert_true(total < 10000000);
    close(a);
}

static void test_unix_bad_paths(void **state)
{
    struct fixture *f = *state;
    struct err e;
    close(open(f->path, O_CREAT | O_WRONLY, 0600));
    assert_int_equal(chardev_create_unix(f->loop, f->path, &f->cd, &e), -EEXIST);
    assert_int_equal(access(f->path, F_OK), 0);
    char longer[300];
    memset(longer, 'a', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    assert_int_equal(chardev_create_unix(f->loop, longer, &f->cd, &e), -ENAMETOOLONG);
    assert_int_equal(chardev_create_unix(f->loop, "/nonexistent/x", &f->cd, &e), -ENOENT);
    assert_int_equal(chardev_create_file(f->loop, "/nonexistent/x", &f->cd, &e), -ENOENT);
    assert_true(chardev_create(f->loop, "file:", NULL, &f->cd, &e) < 0);
    assert_true(chardev_create(f->loop, "tcp:1", NULL, &f->cd, &e) < 0);
    unlink(f->path);
    /* A stale socket is replaced. */
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    strcpy(addr.sun_path, f->path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    close(fd);
    assert_int_equal(chardev_create_unix(f->loop, f->path, &f->cd, &e), 0);
}

static void test_none_and_break(void **state)
{
    struct fixture *f = *state;
    struct err e;
    assert_int_equal(chardev_create(f->loop, "none", NULL, &f->cd, &e), 0);
    attach(f);
    assert_int_equal(f->connected, 0);
    assert_int_equal(chardev_write(f->cd, "abc", 3), 3);
    assert_int_equal(chardev_drain(f->cd, -1, &e), 0);
    chardev_send_break(f->cd);
    assert_int_equal(f->breaks, 1);
    chardev_set_receiver(f->cd, NULL, NULL);
    chardev_send_break(f->cd);
    assert_int_equal(f->breaks, 1);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_file_gets_everything),
        TEST(test_full_disk_is_reported),
        TEST(test_broken_pipe_is_reported),
        TEST(test_stuck_reader),
        TEST(test_stdin_flow),
        TEST(test_pseudo_terminal),
        TEST(test_stdin_from_file),
        TEST(test_unix_clients_come_and_go),
        TEST(test_unix_slow_client),
        TEST(test_unix_bad_paths),
        TEST(test_none_and_break),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
