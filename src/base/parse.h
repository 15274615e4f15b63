/*
 * parse.h - numbers and sizes as people type them
 *
 * Every function takes the whole string or nothing: trailing text, signs and white space are
 * errors, and so is a value that does not fit.
 */
#ifndef DOPPEL_BASE_PARSE_H
#define DOPPEL_BASE_PARSE_H

#include <stdint.h>

#include "base/err.h"

/*
 * A decimal or 0x hexadecimal number within [min, max]. `what` names it in the message.
 * Returns 0 or -EINVAL.
 */
int parse_u64(const char *text, const char *what, uint64_t min, uint64_t max, uint64_t *out,
              struct err *e);

/*
 * A size in bytes: a decimal or 0x hexadecimal number and an optional suffix K, M, G or T
 * (powers of 1024; lower case, and a following "B" or "iB", are fine). Returns 0 or -EINVAL.
 */
int parse_size(const char *text, const char *what, uint64_t *out, struct err *e);

/* Write `bytes` as the shortest exact form with a suffix, such as "512M". Returns buf. */
#define PARSE_SIZE_TEXT 24
const char *parse_format_size(uint64_t bytes, char buf[PARSE_SIZE_TEXT]);

#endif
