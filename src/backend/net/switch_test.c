/*
 * switch_test.c - the software switch, its hostile and slow ports, and interfaces on it
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "backend/net/netdev.h"
#include "backend/net/switch.h"
#include "base/bits.h"
#include "os/loop.h"

#define LIMIT_S 20

struct fixture {
    char dir[32], path[64];
    struct loop *loop;
    struct netswitch *s;
    pthread_t thread;
};

static void *run_loop(void *ctx)
{
    struct err e;
    loop_run(((struct fixture *)ctx)->loop, &e);
    return NULL;
}

static void start(struct fixture *f)
{
    struct err e;
    assert_int_equal(netswitch_create(f->loop, f->path, &f->s, &e), 0);
    assert_int_equal(pthread_create(&f->thread, NULL, run_loop, f), 0);
}

static struct netswitch_stats stop(struct fixture *f)
{
    loop_stop(f->loop);
    pthread_join(f->thread, NULL);
    struct netswitch_stats stats = netswitch_stats(f->s);
    netswitch_destroy(f->s);
    f->s = NULL;
    return stats;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct err e;
    strcpy(f->dir, "/tmp/doppel-switch-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->path, sizeof(f->path), "%s/lan", f->dir);
    assert_int_equal(loop_create(&f->loop, &e), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    if (f->s != NULL)
        stop(f);
    loop_destroy(f->loop);
    /* the switch leaves nothing behind */
    assert_int_equal(rmdir(f->dir), 0);
    free(f);
    return 0;
}

/* ---- ports made by hand ---- */

static int connect_to(const struct fixture *f)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct timeval limit = {.tv_sec = LIMIT_S};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    strcpy(addr.sun_path, f->path);
    assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    return fd;
}

static int greet(const struct fixture *f)
{
    int fd = connect_to(f);
    assert_int_equal(send(fd, SWITCH_HELLO, sizeof(SWITCH_HELLO), 0), sizeof(SWITCH_HELLO));
    return fd;
}

#define MESSAGE 64u

/* A frame from station `from` to station `to` (0: all), with a number in it. */
static void send_frame(int fd, unsigned from, unsigned to, unsigned number)
{
    uint8_t m[MESSAGE] = {0};
    uint8_t *frame = m + SWITCH_HEADER;
    memset(frame, to == 0 ? 0xff : 0, 6);
    if (to != 0) {
        frame[0] = 0x52;
        frame[4] = (uint8_t)(to >> 8);
        frame[5] = (uint8_t)to;
    }
    frame[6] = 0x52;
    frame[10] = (uint8_t)(from >> 8);
    frame[11] = (uint8_t)from;
    memcpy(frame + 14, &number, sizeof(number));
    m[0] = 7; /* the header is passed on */
    assert_int_equal(send(fd, m, sizeof(m), 0), sizeof(m));
}

/* The number in the next frame. */
static unsigned receive(int fd)
{
    uint8_t m[MESSAGE + 1];
    unsigned number;
    assert_int_equal(recv(fd, m, sizeof(m), 0), MESSAGE);
    assert_int_equal(m[0], 7);
    memcpy(&number, m + SWITCH_HEADER + 14, sizeof(number));
    return number;
}

/* Ports are heard of in no order: until each has been heard from, a broadcast may miss some. */
static void meet(const int *fds, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        for (unsigned j = 0; j < count; j++)
            if (i != j) {
                /* answered by nobody before it is connected: ask until it is */
                struct pollfd p = {.fd = fds[j], .events = POLLIN};
                do
                    send_frame(fds[i], 1000 + i, 0, 0);
                while (poll(&p, 1, 10) == 0);
            }
    for (unsigned i = 0; i < count; i++)
        send_frame(fds[i], 1000 + i, 0, 1);
    for (unsigned i = 0; i < count; i++)
        for (unsigned last = 0; last < count - 1;)
            last += receive(fds[i]) == 1;
}

static void test_learning(void **state)
{
    struct fixture *f = *state;
    start(f);
    int fds[3] = {greet(f), greet(f), greet(f)};
    meet(fds, 3);
    send_frame(fds[0], 1, 0, 10); /* to all */
    assert_int_equal(receive(fds[1]), 10);
    assert_int_equal(receive(fds[2]), 10);
    send_frame(fds[1], 2, 1, 11); /* to one that is known: nobody else gets it */
    assert_int_equal(receive(fds[0]), 11);
    send_frame(fds[1], 2, 9, 12); /* to one that is not */
    assert_int_equal(receive(fds[0]), 12);
    assert_int_equal(receive(fds[2]), 12);
    send_frame(fds[2], 1, 0, 13); /* the first one has moved */
    assert_int_equal(receive(fds[0]), 13);
    assert_int_equal(receive(fds[1]), 13);
    send_frame(fds[1], 2, 1, 14);
    assert_int_equal(receive(fds[2]), 14);
    /* and is unknown again when its port is gone */
    close(fds[2]);
    int late = greet(f), both[2] = {fds[0], late};
    meet(both, 2);
    for (unsigned got = 0; got != 2;) /* what meet said to the others */
        got = receive(fds[1]) == 1 ? got + 1 : got;
    send_frame(fds[1], 2, 1, 15);
    assert_int_equal(receive(fds[0]), 15);
    assert_int_equal(receive(late), 15);
    close(fds[0]);
    close(fds[1]);
    close(late);
}

static void test_hostile(void **state)
{
    struct fixture *f = *state;
    uint8_t *huge = calloc(1, 1 << 17);
    char byte;
    start(f);
    int fds[2] = {greet(f), greet(f)};
    meet(fds, 2);
    /* what does not greet is let go of */
    int stranger = connect_to(f);
    assert_int_equal(send(stranger, "GET / HTTP/1.1", 14, 0), 14);
    assert_int_equal(recv(stranger, &byte, 1, 0), 0);
    close(stranger);
    /* messages that are none are passed over */
    assert_int_equal(send(fds[0], huge, SWITCH_HEADER + 13, 0), SWITCH_HEADER + 13);
    assert_int_equal(send(fds[0], huge, 1 << 17, 0), 1 << 17);
    /* one that claims many addresses takes nobody's away, and is still heard */
    send_frame(fds[1], 1, 0, 1);
    assert_int_equal(receive(fds[0]), 1);
    for (unsigned i = 0; i < 3000; i++) {
        send_frame(fds[0], 2000 + i, 0, i);
        assert_int_equal(receive(fds[1]), i);
    }
    int third = greet(f), pair[2] = {third, fds[1]};
    meet(pair, 2);
    send_frame(third, 5000, 1, 2);
    assert_int_equal(receive(fds[1]), 2);
    close(third);
    close(fds[0]);
    close(fds[1]);
    assert_int_equal(stop(f).refused, 2);
    free(huge);
}

/* A port that does not read loses what does not fit, and holds nobody up. */
static void test_slow(void **state)
{
    enum { FRAMES = 20000 };
    struct fixture *f = *state;
    start(f);
    int fds[3] = {greet(f), greet(f), greet(f)};
    meet(fds, 3);
    for (unsigned i = 0; i < FRAMES; i++) {
        send_frame(fds[0], 1, 0, i);
        assert_int_equal(receive(fds[1]), i);
    }
    /* In order, up to where the queue was full; then one that came when there was room again. */
    unsigned got = 0, n = 0, lasts = 0;
    for (; n != FRAMES; got += n != FRAMES) {
        struct pollfd p = {.fd = fds[2], .events = POLLIN};
        for (; poll(&p, 1, 10) == 0; lasts++)
            send_frame(fds[0], 1, 0, FRAMES);
        n = receive(fds[2]);
        assert_true(n == got || n == FRAMES);
    }
    assert_true(got > 1000 && got < FRAMES);
    for (unsigned i = 0; i < 3; i++)
        close(fds[i]);
    struct netswitch_stats stats = stop(f);
    assert_in_range(stats.dropped, FRAMES - got, FRAMES - got + lasts);
}

static void test_path(void **state)
{
    struct fixture *f = *state;
    struct netswitch *other;
    struct stat st;
    struct err e;
    start(f);
    assert_int_equal(stat(f->path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(netswitch_create(f->loop, f->path, &other, &e), -EADDRINUSE);
    assert_non_null(strstr(e.msg, "already"));
    stop(f);
    /* what was left by one that was killed is replaced */
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    strcpy(addr.sun_path, f->path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    close(fd);
    start(f);
    stop(f);
    /* what is no socket is not */
    fd = open(f->path, O_CREAT | O_WRONLY, 0600);
    close(fd);
    assert_int_equal(netswitch_create(f->loop, f->path, &other, &e), -EEXIST);
    assert_int_equal(unlink(f->path), 0);
    char long_path[200];
    memset(long_path, 'x', sizeof(long_path) - 1);
    long_path[sizeof(long_path) - 1] = '\0';
    assert_int_equal(netswitch_create(f->loop, long_path, &other, &e), -ENAMETOOLONG);
}

/* ---- interfaces ---- */

struct station {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    unsigned to_send, received;
    size_t len;
};

static size_t station_pull(void *ctx, struct netdev_header *header, uint8_t frame[NETDEV_FRAME_MAX])
{
    struct station *st = ctx;
    pthread_mutex_lock(&st->lock);
    size_t len = st->to_send > 0 ? st->len : 0;
    if (len > 0)
        st->to_send--;
    pthread_mutex_unlock(&st->lock);
    memset(frame, 0xff, len);
    *header = (struct netdev_header){0};
    if (len > 0)
        frame[6] = 0x52;
    return len;
}

static bool station_push(void *ctx, const struct netdev_header *header, const uint8_t *frame,
                         size_t len)
{
    struct station *st = ctx;
    pthread_mutex_lock(&st->lock);
    st->received += len == st->len && frame[6] == 0x52;
    pthread_cond_signal(&st->cond);
    pthread_mutex_unlock(&st->lock);
    return true;
}

static const struct netdev_client station_client = {station_pull, station_push};

/* Send frames until one arrives: true when it did. */
static bool reaches(struct netdev *from, struct station *a, struct station *b)
{
    unsigned had;
    bool is_there = false;
    for (unsigned i = 0; i < LIMIT_S * 10 && !is_there; i++) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 100000000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_mutex_lock(&a->lock);
        a->to_send++;
        pthread_mutex_unlock(&a->lock);
        pthread_mutex_lock(&b->lock);
        had = b->received;
        pthread_mutex_unlock(&b->lock);
        netdev_wake(from);
        pthread_mutex_lock(&b->lock);
        if (b->received == had)
            pthread_cond_timedwait(&b->cond, &b->lock, &until);
        is_there = b->received > had;
        pthread_mutex_unlock(&b->lock);
    }
    return is_there;
}

static void test_interfaces(void **state)
{
    static struct station st[2] = {
        {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER},
        {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER},
    };
    struct fixture *f = *state;
    struct netdev *net[2];
    struct err e;
    st[0].len = st[1].len = NETDEV_FRAME_MAX; /* the largest pass */
    assert_int_equal(netdev_socket_open(f->path, 0, &net[0], &e), -ENOENT);
    assert_non_null(strstr(e.msg, "doppel switch"));
    start(f);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(netdev_socket_open(f->path, 0, &net[i], &e), 0);
        assert_int_equal(netdev_start(net[i], &station_client, &st[i], &e), 0);
    }
    assert_true(reaches(net[0], &st[0], &st[1]));
    assert_true(reaches(net[1], &st[1], &st[0]));
    /* the switch goes, and another comes */
    stop(f);
    start(f);
    assert_true(reaches(net[0], &st[0], &st[1]));
    assert_true(reaches(net[1], &st[1], &st[0]));
    for (unsigned i = 0; i < 2; i++)
        netdev_close(net[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_learning, setup, teardown),
        cmocka_unit_test_setup_teardown(test_hostile, setup, teardown),
        cmocka_unit_test_setup_teardown(test_slow, setup, teardown),
        cmocka_unit_test_setup_teardown(test_path, setup, teardown),
        cmocka_unit_test_setup_teardown(test_interfaces, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
