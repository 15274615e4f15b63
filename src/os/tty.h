/*
 * tty.h - a terminal's raw mode and size
 */
#ifndef DOPPEL_OS_TTY_H
#define DOPPEL_OS_TTY_H

#include <stdbool.h>
#include <termios.h>

#include "base/err.h"

struct tty {
    int fd;               /* not owned */
    struct termios saved; /* the mode that tty_leave_raw puts back */
    struct termios raw;
};

/* Remember the terminal's mode. Fails with -ENOTTY when fd is none. */
int tty_open(struct tty *tty, int fd, struct err *e);

/* Bytes as they are typed, output as it is written, no signals from keys. */
int tty_enter_raw(const struct tty *tty, struct err *e);

/* Put the remembered mode back. Async-signal-safe; works from a background process group too. */
void tty_leave_raw(const struct tty *tty);

/* The window's size in characters. False when it is not known. */
bool tty_size(int fd, unsigned *rows, unsigned *columns);

#endif
