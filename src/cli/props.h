/*
 * props.h - the values of options that are lists, as in FILE,ro,cache=none
 *
 * Parts stand between commas; a comma that belongs to a part is written twice.
 */
#ifndef DOPPEL_CLI_PROPS_H
#define DOPPEL_CLI_PROPS_H

#include <stddef.h>

#include "base/err.h"

/*
 * Copy the first part of `from` to *to as a string, and set *to behind it: one byte more than
 * `from` is long is enough for all parts. Returns what follows the part, or NULL at the end.
 */
const char *props_take(const char *from, char **to);

/* Give all parts of `rest` (NULL: there are none) to `take`, in order, until it fails with one. */
int props_each(const char *rest, char **to, int (*take)(const char *part, void *ctx, struct err *e),
               void *ctx, struct err *e);

/* The socket's path of a part "vhost-user:PATH", or NULL when it is none. */
const char *props_vhost_user(const char *part);

/* The value of a part "NAME=VALUE", or NULL when it is not of that name. */
const char *props_value(const char *part, const char *name);

/*
 * Sets the error that `part` of an option is none of `names`: says which is nearest, or with
 * `list` which there are. Returns -EINVAL.
 */
int props_unknown(const char *option, const char *part, const char *const *names, size_t count,
                  const char *list, struct err *e);

/*
 * Which of `words` is `value`: its index to *out. Otherwise an error that says of which `option`
 * ("--disk") it is an unknown `what` ("format", "value"), and what was meant or there is. -EINVAL.
 */
int props_choose(const char *option, const char *what, const char *value, const char *const *words,
                 unsigned count, unsigned *out, struct err *e);

#endif
