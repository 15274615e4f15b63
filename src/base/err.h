/*
 * err.h - one error rule for the whole program
 *
 * A function that can fail returns 0, or -errno with a message in a struct err that its
 * caller owns. The message says what was tried, on what, and why it failed; only front
 * ends print it.
 */
#ifndef DOPPEL_BASE_ERR_H
#define DOPPEL_BASE_ERR_H

#define ERR_MSG_SIZE 512

struct err {
    int code;                 /* positive errno, 0 when unset */
    char msg[ERR_MSG_SIZE];   /* complete sentence without a final full stop */
};

/*
 * Fill *e and return -code. When code is not 0, ": " and strerror(code) are appended.
 * `e` may be NULL: the caller does not want the text. A code of 0 is for failures that no
 * errno describes; it is stored and returned as EINVAL, without the strerror text.
 */
int err_set(struct err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Put "prefix: " before the message that *e holds already. Returns -e->code. */
int err_prefix(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
