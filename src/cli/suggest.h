/*
 * suggest.h - the known word nearest to a mistyped one
 */
#ifndef DOPPEL_CLI_SUGGEST_H
#define DOPPEL_CLI_SUGGEST_H

#include <stddef.h>

/*
 * The one of `words` that needs the fewest insertions, deletions, replacements and swaps of
 * neighbours to become `typed`; NULL when none is near enough to be meant. Upper and lower
 * case are the same.
 */
const char *suggest_nearest(const char *typed, const char *const *words, size_t count);

#endif
