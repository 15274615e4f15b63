/*
 * unix.c - a character device behind a listening Unix stream socket
 *
 * Invariants: there is at most one client; while there is one, the listener is not watched and
 * others wait in its backlog. The ring and is_client are under the lock, everything else is the
 * loop's. With no client the ring keeps the latest output.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "backend/char/chardev_impl.h"
#include "base/bits.h"
#include "base/log.h"
#include "os/loop.h"
#include "os/unixsock.h"

struct chardev_unix {
    struct chardev cd;
    struct sockaddr_un addr;
    int listen_fd, client_fd;
    struct loop_fd *listen_watch, *client_watch;
    unsigned client_events; /* what client_watch watches */
    pthread_mutex_t lock;   /* protects the rest */
    struct char_ring output;
    bool is_client;
    bool is_full; /* a write was cut short: report when there is room */
    bool is_flush_posted;
};

static struct chardev_unix *unix_of(struct chardev *cd)
{
    return CONTAINER_OF(cd, struct chardev_unix, cd);
}

static void unix_on_listen(void *ctx, unsigned events);

static void unix_watch_listener(struct chardev_unix *u)
{
    struct err e;
    if (loop_fd_add(u->cd.loop, u->listen_fd, LOOP_READ, unix_on_listen, u, &u->listen_watch, &e) !=
        0)
        log_warn("%s; '%s' takes no more clients", e.msg, u->addr.sun_path);
}

static void unix_drop_client(struct chardev_unix *u)
{
    loop_fd_remove(u->client_watch);
    u->client_watch = NULL;
    close(u->client_fd);
    u->client_fd = -1;
    pthread_mutex_lock(&u->lock);
    u->is_client = false;
    bool was_full = u->is_full;
    u->is_full = false;
    pthread_mutex_unlock(&u->lock);
    chardev_set_connected(&u->cd, false);
    /* With nobody there, nothing holds the guest up. */
    if (was_full)
        chardev_report_writable(&u->cd);
    unix_watch_listener(u);
}

/* Watch what can make progress. False: the client is gone. */
static bool unix_watch_client(struct chardev_unix *u, bool has_output)
{
    unsigned events =
        (char_ring_room(&u->cd.input) > 0 ? LOOP_READ : 0) | (has_output ? LOOP_WRITE : 0);
    if (events == u->client_events)
        return true;
    struct err e;
    if (loop_fd_modify(u->client_watch, events, &e) != 0) {
        log_warn("%s", e.msg);
        unix_drop_client(u);
        return false;
    }
    u->client_events = events;
    return true;
}

/* Send what the socket takes. False: the client is gone. */
static bool unix_flush(struct chardev_unix *u)
{
    int code = 0;
    pthread_mutex_lock(&u->lock);
    while (u->output.count > 0 && code == 0) {
        const uint8_t *front;
        size_t len = char_ring_front(&u->output, &front);
        ssize_t n = send(u->client_fd, front, len, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n >= 0)
            char_ring_drop(&u->output, (size_t)n);
        else if (errno != EINTR)
            code = errno;
    }
    bool has_output = u->output.count > 0;
    bool must_report = u->is_full && char_ring_room(&u->output) >= u->output.size / 2;
    if (must_report)
        u->is_full = false;
    pthread_mutex_unlock(&u->lock);
    if (code != 0 && code != EAGAIN) {
        unix_drop_client(u);
        return false;
    }
    if (must_report)
        chardev_report_writable(&u->cd);
    return unix_watch_client(u, has_output);
}

static void unix_on_flush(void *ctx)
{
    struct chardev_unix *u = ctx;
    pthread_mutex_lock(&u->lock);
    u->is_flush_posted = false;
    pthread_mutex_unlock(&u->lock);
    if (u->client_fd >= 0)
        unix_flush(u);
}

static size_t unix_write(struct chardev *cd, const uint8_t *buf, size_t len)
{
    struct chardev_unix *u = unix_of(cd);
    pthread_mutex_lock(&u->lock);
    size_t taken = len;
    if (!u->is_client) {
        if (len > u->output.size) {
            buf += len - u->output.size;
            len = u->output.size;
        }
        if (len > char_ring_room(&u->output))
            char_ring_drop(&u->output, len - char_ring_room(&u->output));
        char_ring_put(&u->output, buf, len);
        pthread_mutex_unlock(&u->lock);
        return taken;
    }
    taken = char_ring_put(&u->output, buf, len);
    if (taken < len)
        u->is_full = true;
    bool must_post = !u->is_flush_posted;
    u->is_flush_posted = true;
    pthread_mutex_unlock(&u->lock);
    if (must_post)
        loop_post(cd->loop, unix_on_flush, u);
    return taken;
}

/* False: the client is gone. */
static bool unix_read(struct chardev_unix *u)
{
    uint8_t buf[1024];
    size_t want = MIN(sizeof(buf), char_ring_room(&u->cd.input));
    if (want == 0)
        return true;
    ssize_t n = recv(u->client_fd, buf, want, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return true;
    if (n <= 0) {
        unix_drop_client(u);
        return false;
    }
    chardev_put_input(&u->cd, buf, (size_t)n);
    return true;
}

static void unix_on_client(void *ctx, unsigned events)
{
    struct chardev_unix *u = ctx;
    /* What a client sent before it hung up counts: the end of file comes behind it. */
    if ((events & LOOP_READ) && !unix_read(u))
        return;
    if ((events & LOOP_HANGUP) && !(events & LOOP_READ)) {
        unix_drop_client(u);
        return;
    }
    unix_flush(u);
}

static void unix_input_taken(struct chardev *cd)
{
    struct chardev_unix *u = unix_of(cd);
    if (u->client_fd >= 0)
        unix_watch_client(u, (u->client_events & LOOP_WRITE) != 0);
}

static void unix_on_listen(void *ctx, unsigned events)
{
    struct chardev_unix *u = ctx;
    int fd = accept4(u->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return; /* the client gave up before we came */
    struct err e;
    if (loop_fd_add(u->cd.loop, fd, LOOP_READ, unix_on_client, u, &u->client_watch, &e) != 0) {
        log_warn("%s", e.msg);
        close(fd);
        return;
    }
    u->client_fd = fd;
    u->client_events = LOOP_READ;
    loop_fd_remove(u->listen_watch);
    u->listen_watch = NULL;
    pthread_mutex_lock(&u->lock);
    u->is_client = true;
    pthread_mutex_unlock(&u->lock);
    chardev_set_connected(&u->cd, true);
    unix_flush(u);
}

static int unix_drain(struct chardev *cd, int timeout_ms, struct err *e)
{
    struct chardev_unix *u = unix_of(cd);
    /* The loop does not run, so nobody else sends; writers may still hold the lock briefly. */
    while (u->client_fd >= 0) {
        pthread_mutex_lock(&u->lock);
        const uint8_t *front;
        size_t len = char_ring_front(&u->output, &front);
        ssize_t n = len > 0 ? send(u->client_fd, front, len, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;
        int code = errno;
        if (n > 0)
            char_ring_drop(&u->output, (size_t)n);
        pthread_mutex_unlock(&u->lock);
        if (len == 0)
            return 0;
        if (n >= 0 || code == EINTR)
            continue;
        if (code != EAGAIN)
            return 0; /* the client left: nobody is there to miss it */
        struct pollfd pfd = {.fd = u->client_fd, .events = POLLOUT};
        if (poll(&pfd, 1, timeout_ms) == 0)
            return err_set(e, ETIMEDOUT, "write the guest's serial output to '%s'",
                           u->addr.sun_path);
    }
    return 0;
}

static void unix_destroy(struct chardev *cd)
{
    struct chardev_unix *u = unix_of(cd);
    loop_fd_remove(u->client_watch);
    loop_fd_remove(u->listen_watch);
    if (u->client_fd >= 0)
        close(u->client_fd);
    if (u->listen_fd >= 0) {
        unlink(u->addr.sun_path);
        close(u->listen_fd);
    }
    pthread_mutex_destroy(&u->lock);
    char_ring_free(&u->output);
    chardev_fini(cd);
    free(u);
}

static const struct chardev_ops unix_ops = {
    .write = unix_write,
    .drain = unix_drain,
    .destroy = unix_destroy,
    .input_taken = unix_input_taken,
};

static int unix_listen(struct chardev_unix *u, struct err *e)
{
    int fd = unixsock_listen(u->addr.sun_path, 8, e);
    if (fd < 0)
        return fd;
    u->listen_fd = fd; /* from here on, destroying removes the file */
    return loop_fd_add(u->cd.loop, fd, LOOP_READ, unix_on_listen, u, &u->listen_watch, e);
}

int chardev_create_unix(struct loop *loop, const char *path, struct chardev **out, struct err *e)
{
    struct chardev_unix *u = calloc(1, sizeof(*u));
    if (u == NULL)
        return err_set(e, ENOMEM, "allocate a character device");
    u->listen_fd = u->client_fd = -1;
    u->addr.sun_family = AF_UNIX;
    if (strlen(path) >= sizeof(u->addr.sun_path)) {
        free(u);
        return err_set(e, ENAMETOOLONG, "listen on '%s' (at most %zu bytes)", path,
                       sizeof(u->addr.sun_path) - 1);
    }
    strcpy(u->addr.sun_path, path);
    int rc = chardev_init(&u->cd, &unix_ops, loop, e);
    if (rc == 0) {
        rc = char_ring_init(&u->output, CHARDEV_OUTPUT_SIZE, e);
        if (rc != 0)
            chardev_fini(&u->cd);
    }
    if (rc != 0) {
        free(u);
        return rc;
    }
    pthread_mutex_init(&u->lock, NULL);
    rc = unix_listen(u, e);
    if (rc != 0) {
        unix_destroy(&u->cd);
        return rc;
    }
    *out = &u->cd;
    return 0;
}
