/*
 * tty.c - a terminal's raw mode and size
 *
 * Invariant: struct tty is filled once and only read afterwards, so that a signal handler may
 * use it at any moment.
 */
#include "os/tty.h"

#include <errno.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

int tty_open(struct tty *tty, int fd, struct err *e)
{
    tty->fd = fd;
    if (tcgetattr(fd, &tty->saved) != 0)
        return err_set(e, errno, "read the terminal's mode");
    tty->raw = tty->saved;
    cfmakeraw(&tty->raw);
    tty->raw.c_cc[VMIN] = 1;
    tty->raw.c_cc[VTIME] = 0;
    return 0;
}

/*
 * SIGTTOU would stop a process that sets the mode from the background. A blocked SIGTTOU lets
 * the change through (POSIX, tcsetattr).
 */
static int tty_set(int fd, const struct termios *mode)
{
    sigset_t block, old;
    sigemptyset(&block);
    sigaddset(&block, SIGTTOU);
    pthread_sigmask(SIG_BLOCK, &block, &old);
    int rc;
    do
        rc = tcsetattr(fd, TCSANOW, mode);
    while (rc != 0 && errno == EINTR);
    int code = errno;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    errno = code;
    return rc;
}

int tty_enter_raw(const struct tty *tty, struct err *e)
{
    if (tty_set(tty->fd, &tty->raw) != 0)
        return err_set(e, errno, "put the terminal into raw mode");
    return 0;
}

void tty_leave_raw(const struct tty *tty)
{
    int saved_errno = errno;
    tty_set(tty->fd, &tty->saved);
    errno = saved_errno;
}

bool tty_size(int fd, unsigned *rows, unsigned *columns)
{
    struct winsize ws;
    if (ioctl(fd, TIOCGWINSZ, &ws) != 0 || ws.ws_row == 0 || ws.ws_col == 0)
        return false;
    *rows = ws.ws_row;
    *columns = ws.ws_col;
    return true;
}
