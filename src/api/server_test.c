/*
 * server_test.c - connections that are slow, idle, held, or never take their answer
 *
 * The server's loop runs in a thread; the test is its client. No test depends on how long
 * something takes, only on that it ends.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "api/server.h"
#include "os/loop.h"

#define BIG (1u << 20)

struct fixture {
    struct loop *loop;
    struct server *server;
    struct sockaddr_un addr;
    int listen_fd;
    pthread_t thread;
};

/* "/big" is more than a socket takes, "/hold" is answered by server_reply_all or by expiring. */
static void handle(void *ctx, struct server_conn *conn, const struct http_head *head,
                   const char *body)
{
    if (http_span_is(head->target, "/big")) {
        char *text = malloc(BIG + 1);
        memset(text, ' ', BIG);
        text[BIG] = '\0';
        server_reply(conn, 200, "", text);
        free(text);
    } else if (http_span_is(head->target, "/hold")) {
        server_hold(conn, 0);
    } else if (http_span_is(head->target, "/hold-a-moment")) {
        server_hold(conn, 1000000);
    } else {
        server_reply(conn, 200, "", "{}");
    }
}

static void refuse(void *ctx, struct server_conn *conn, unsigned status, const char *why)
{
    server_reply(conn, status, "", "{}");
}

static void expire(void *ctx, struct server_conn *conn)
{
    server_reply(conn, 200, "", "\"expired\"");
}

static const struct server_ops ops = {.handle = handle, .refuse = refuse, .expire = expire};

static void *run_loop(void *loop)
{
    struct err e;
    loop_run(loop, &e);
    return NULL;
}

static void start(struct fixture *f, uint64_t request_ns, uint64_t idle_ns, uint64_t send_ns)
{
    struct err e;
    *f = (struct fixture){.addr = {.sun_family = AF_UNIX}};
    /* An abstract address: no file. */
    snprintf(f->addr.sun_path + 1, sizeof(f->addr.sun_path) - 1, "doppel-test-%d", (int)getpid());
    f->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_int_equal(bind(f->listen_fd, (struct sockaddr *)&f->addr, sizeof(f->addr)), 0);
    assert_int_equal(listen(f->listen_fd, 16), 0);
    assert_int_equal(loop_create(&f->loop, &e), 0);
    struct server_config config = {
        .loop = f->loop,
        .listen_fd = f->listen_fd,
        .ops = &ops,
        .request_ns = request_ns,
        .idle_ns = idle_ns,
        .send_ns = send_ns,
    };
    assert_int_equal(server_create(&config, &f->server, &e), 0);
    assert_int_equal(pthread_create(&f->thread, NULL, run_loop, f->loop), 0);
}

static void end(struct fixture *f)
{
    loop_stop(f->loop);
    pthread_join(f->thread, NULL);
    server_destroy(f->server);
    loop_destroy(f->loop);
    close(f->listen_fd);
}

static int dial(struct fixture *f, const char *text)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&f->addr, sizeof(f->addr)), 0);
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
    return fd;
}

/* Everything until the other end closes; at most size - 1 bytes are kept. Returns how many came. */
static size_t read_all(int fd, char *buf, size_t size)
{
    char part[65536];
    size_t total = 0, kept = 0;
    ssize_t n;
    while ((n = recv(fd, part, sizeof(part), 0)) > 0) {
        size_t keep = (size_t)n < size - 1 - kept ? (size_t)n : size - 1 - kept;
        memcpy(buf + kept, part, keep);
        kept += keep;
        total += (size_t)n;
    }
    buf[kept] = '\0';
    close(fd);
    return total;
}

static void assert_status(int fd, unsigned status)
{
    char buf[4096], want[32];
    read_all(fd, buf, sizeof(buf));
    snprintf(want, sizeof(want), "HTTP/1.1 %u ", status);
    if (strncmp(buf, want, strlen(want)) != 0)
        fail_msg("not %u: '%s'", status, buf);
}

static void test_slow_requests(void **state)
{
    struct fixture f;
    start(&f, 20000000, 0, 0);
    assert_status(dial(&f, "GET / HT"), 408);
    assert_status(dial(&f, "PUT / HTTP/1.0\r\nContent-Length: 5\r\n\r\nx"), 408);
    /* The second request of a connection has its own time. */
    assert_status(dial(&f, "GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /"), 200);
    end(&f);
}

static void test_idle_is_closed(void **state)
{
    struct fixture f;
    char buf[4096];
    start(&f, 0, 20000000, 0);
    assert_status(dial(&f, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"), 200);
    int fd = dial(&f, "\r\n");
    shutdown(fd, SHUT_WR);
    read_all(fd, buf, sizeof(buf));
    end(&f);
}

static void test_client_takes_nothing(void **state)
{
    struct fixture f;
    char buf[16];
    start(&f, 0, 0, 20000000);
    int fd = dial(&f, "GET /big HTTP/1.0\r\n\r\n");
    struct pollfd gone = {.fd = fd, .events = 0};
    assert_int_equal(poll(&gone, 1, 60000), 1);
    assert_true(gone.revents & POLLHUP);
    assert_true(read_all(fd, buf, sizeof(buf)) < BIG);
    end(&f);
}

static void test_big_answer(void **state)
{
    struct fixture f;
    char buf[4096];
    start(&f, 0, 0, 0);
    assert_true(read_all(dial(&f, "GET /big HTTP/1.0\r\n\r\n"), buf, sizeof(buf)) > BIG);
    int fd = dial(&f, "GET /big HTTP/1.1\r\nHost: x\r\n\r\nGET /big HTTP/1.0\r\n\r\n");
    shutdown(fd, SHUT_WR);
    assert_true(read_all(fd, buf, sizeof(buf)) > 2 * BIG);
    end(&f);
}

static void release(void *server)
{
    server_reply_all(server, 200, "\"released\"");
}

static void test_hold(void **state)
{
    struct fixture f;
    char buf[4096];
    start(&f, 0, 0, 0);
    read_all(dial(&f, "GET /hold-a-moment HTTP/1.0\r\n\r\n"), buf, sizeof(buf));
    assert_non_null(strstr(buf, "\"expired\""));
    close(dial(&f, "GET /hold HTTP/1.0\r\n\r\n"));
    int fd = dial(&f, "GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /hold HTTP/1.1\r\nHost: x\r\n\r\n");
    /* The first answer shows that the second request is held, or about to be in the same turn. */
    assert_true(recv(fd, buf, sizeof(buf), MSG_PEEK) > 0);
    loop_post(f.loop, release, f.server);
    read_all(fd, buf, sizeof(buf));
    assert_non_null(strstr(buf, "\"released\""));
    end(&f);
}

/* With a connection in each phase. */
static void test_destroy(void **state)
{
    struct fixture f;
    start(&f, 0, 0, 0);
    int fds[] = {
        dial(&f, ""),
        dial(&f, "GET"),
        dial(&f, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        dial(&f, "GET /hold HTTP/1.1\r\nHost: x\r\n\r\n"),
        dial(&f, "GET /big HTTP/1.1\r\nHost: x\r\n\r\n"),
        dial(&f, "\n"),
    };
    char byte;
    assert_int_equal(recv(fds[5], &byte, 1, 0), 1);
    end(&f);
    for (unsigned i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
        close(fds[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slow_requests),
        cmocka_unit_test(test_idle_is_closed),
        cmocka_unit_test(test_client_takes_nothing),
        cmocka_unit_test(test_big_answer),
        cmocka_unit_test(test_hold),
        cmocka_unit_test(test_destroy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
