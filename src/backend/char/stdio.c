/*
 * stdio.c - a pair of descriptors, such as standard input and output; an output file; a
 * pseudo-terminal
 *
 * Invariant: a terminal with an escape key is always read, so that the filter sees it also when
 * the guest takes no input; what does not fit then is dropped. Other input waits at its source.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "backend/char/chardev_impl.h"
#include "base/bits.h"
#include "base/log.h"
#include "os/loop.h"

struct chardev_stdio {
    struct chardev cd;
    struct char_writer writer;
    int in_fd;
    int owned_fd; /* the output file, or a pseudo-terminal's master; -1: none */
    int slave_fd; /* of a pseudo-terminal, so that nobody's closing it ends it; -1: none */
    char *link;   /* the name of that, NULL: none */
    bool is_tty;
    bool is_pollable; /* epoll takes in_fd; else (file, /dev/null) it is always ready */
    bool is_read_posted;
    struct loop_fd *watch; /* NULL: not watched now */
    chardev_filter_fn filter;
    void *filter_ctx;
};

static struct chardev_stdio *stdio_of(struct chardev *cd)
{
    return CONTAINER_OF(cd, struct chardev_stdio, cd);
}

static size_t stdio_write(struct chardev *cd, const uint8_t *buf, size_t len)
{
    return char_writer_write(&stdio_of(cd)->writer, buf, len);
}

static int stdio_drain(struct chardev *cd, int timeout_ms, struct err *e)
{
    return char_writer_drain(&stdio_of(cd)->writer, timeout_ms, e);
}

/* ---- input ---- */

static void stdio_end_input(struct chardev_stdio *io)
{
    loop_fd_remove(io->watch);
    io->watch = NULL;
    io->in_fd = -1;
}

/* Read once. False: not now, or never again. */
static bool stdio_read(struct chardev_stdio *io)
{
    uint8_t buf[1024];
    size_t want = sizeof(buf);
    if (!io->is_tty)
        want = MIN(want, char_ring_room(&io->cd.input));
    if (io->in_fd < 0 || want == 0)
        return false;
    ssize_t n = read(io->in_fd, buf, want);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return errno == EINTR;
    if (n <= 0) {
        /* EIO: a terminal that hung up, or a background job that ignores SIGTTIN. */
        if (n < 0 && errno != EIO)
            log_warn("read standard input: error %d; the guest gets no more input", errno);
        stdio_end_input(io);
        return false;
    }
    size_t len = (size_t)n;
    if (io->filter != NULL)
        len = io->filter(io->filter_ctx, buf, len);
    if (len > 0)
        chardev_put_input(&io->cd, buf, len);
    return true;
}

static void stdio_on_readable(void *ctx, unsigned events)
{
    struct chardev_stdio *io = ctx;
    stdio_read(io);
    if (io->watch != NULL && !io->is_tty && char_ring_room(&io->cd.input) == 0) {
        loop_fd_remove(io->watch);
        io->watch = NULL;
    }
}

/* For what epoll does not take: read piece by piece, as fast as the receiver takes it. */
static void stdio_on_read_posted(void *ctx)
{
    struct chardev_stdio *io = ctx;
    io->is_read_posted = false;
    if (stdio_read(io) && !io->is_read_posted) {
        io->is_read_posted = true;
        loop_post(io->cd.loop, stdio_on_read_posted, io);
    }
}

static int stdio_watch(struct chardev_stdio *io, struct err *e)
{
    if (io->in_fd < 0 || io->watch != NULL)
        return 0;
    if (io->is_pollable) {
        int rc =
            loop_fd_add(io->cd.loop, io->in_fd, LOOP_READ, stdio_on_readable, io, &io->watch, e);
        if (rc != -EPERM)
            return rc;
        io->is_pollable = false;
    }
    if (!io->is_read_posted) {
        io->is_read_posted = true;
        loop_post(io->cd.loop, stdio_on_read_posted, io);
    }
    return 0;
}

static void stdio_input_taken(struct chardev *cd)
{
    struct err e;
    if (stdio_watch(stdio_of(cd), &e) != 0)
        log_warn("%s; the guest gets no more input", e.msg);
}

/* ---- making and destroying ---- */

static void stdio_destroy(struct chardev *cd)
{
    struct chardev_stdio *io = stdio_of(cd);
    stdio_end_input(io);
    char_writer_fini(&io->writer);
    if (io->link != NULL)
        unlink(io->link);
    free(io->link);
    if (io->slave_fd >= 0)
        close(io->slave_fd);
    if (io->owned_fd >= 0)
        close(io->owned_fd);
    chardev_fini(cd);
    free(io);
}

static const struct chardev_ops stdio_ops = {
    .write = stdio_write,
    .drain = stdio_drain,
    .destroy = stdio_destroy,
    .input_taken = stdio_input_taken,
};

int chardev_create_stdio(struct loop *loop, const struct chardev_stdio_config *config,
                         struct chardev **out, struct err *e)
{
    struct chardev_stdio *io = calloc(1, sizeof(*io));
    if (io == NULL)
        return err_set(e, ENOMEM, "allocate a character device");
    io->in_fd = config->in_fd;
    io->owned_fd = io->slave_fd = -1;
    io->is_tty = config->in_fd >= 0 && config->filter != NULL && isatty(config->in_fd);
    io->is_pollable = true;
    io->filter = config->filter;
    io->filter_ctx = config->filter_ctx;
    int rc = chardev_init(&io->cd, &stdio_ops, loop, e);
    if (rc != 0) {
        free(io);
        return rc;
    }
    rc = char_writer_init(&io->writer, &io->cd, config->out_fd, e);
    if (rc != 0) {
        chardev_fini(&io->cd);
        free(io);
        return rc;
    }
    rc = stdio_watch(io, e);
    if (rc != 0) {
        stdio_destroy(&io->cd);
        return err_prefix(e, "standard input");
    }
    io->cd.is_connected = true;
    *out = &io->cd;
    return 0;
}

int chardev_create_file(struct loop *loop, const char *path, struct chardev **out, struct err *e)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, 0666);
    if (fd < 0)
        return err_set(e, errno, "open '%s' for the guest's serial output", path);
    struct chardev_stdio_config config = {.in_fd = -1, .out_fd = fd};
    int rc = chardev_create_stdio(loop, &config, out, e);
    if (rc != 0) {
        close(fd);
        return rc;
    }
    stdio_of(*out)->owned_fd = fd;
    return 0;
}

/* A link of an earlier run is replaced; anything else is left alone. */
static int link_terminal(const char *terminal, const char *path, struct err *e)
{
    struct stat st;

    if (lstat(path, &st) == 0 && S_ISLNK(st.st_mode) && unlink(path) != 0)
        return err_set(e, errno, "remove the old link '%s'", path);
    if (symlink(terminal, path) != 0)
        return err_set(e, errno, "make the link '%s' to the terminal '%s'", path, terminal);
    return 0;
}

/* Both ends of a pseudo-terminal, raw; the name of the other in *terminal. */
static int open_terminal(int *master, int *slave, char terminal[64], struct err *e)
{
    struct termios mode;

    *slave = -1;
    *master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (*master < 0 || grantpt(*master) != 0 || unlockpt(*master) != 0 ||
        ptsname_r(*master, terminal, 64) != 0)
        return err_set(e, errno, "make a pseudo-terminal");
    *slave = open(terminal, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (*slave < 0 || tcgetattr(*slave, &mode) != 0)
        return err_set(e, errno, "open the pseudo-terminal '%s'", terminal);
    cfmakeraw(&mode);
    if (tcsetattr(*slave, TCSANOW, &mode) != 0)
        return err_set(e, errno, "set up the pseudo-terminal '%s'", terminal);
    return 0;
}

int chardev_create_pty(struct loop *loop, const char *path, struct chardev **out, struct err *e)
{
    struct chardev *cd = NULL;
    char terminal[64];
    int master, slave;
    char *name = strdup(path);
    int rc = name != NULL ? open_terminal(&master, &slave, terminal, e)
                          : err_set(e, ENOMEM, "make a pseudo-terminal");

    if (name == NULL)
        return rc;
    if (rc == 0) {
        struct chardev_stdio_config config = {.in_fd = master, .out_fd = master};
        rc = chardev_create_stdio(loop, &config, &cd, e);
    }
    if (rc == 0)
        rc = link_terminal(terminal, path, e);
    if (rc != 0) {
        chardev_destroy(cd);
        if (slave >= 0)
            close(slave);
        if (master >= 0)
            close(master);
        free(name);
        return rc;
    }
    stdio_of(cd)->owned_fd = master;
    stdio_of(cd)->slave_fd = slave;
    stdio_of(cd)->link = name;
    *out = cd;
    return 0;
}
