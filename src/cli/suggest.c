/*
 * suggest.c - the known word nearest to a mistyped one
 *
 * Spec: the optimal string alignment distance (Damerau and Levenshtein, with each neighbouring
 * pair swapped once at the most).
 */
#include "cli/suggest.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

#include "base/bits.h"

#define SUGGEST_WORD_MAX 31u

/* At most SUGGEST_WORD_MAX characters each. */
static unsigned suggest_distance(const char *a, const char *b)
{
    unsigned d[SUGGEST_WORD_MAX + 1][SUGGEST_WORD_MAX + 1];
    size_t a_len = strlen(a), b_len = strlen(b);
    for (unsigned i = 0; i <= a_len; i++)
        d[i][0] = i;
    for (unsigned k = 0; k <= b_len; k++)
        d[0][k] = k;
    for (size_t i = 1; i <= a_len; i++)
        for (size_t k = 1; k <= b_len; k++) {
            int ca = tolower((unsigned char)a[i - 1]), cb = tolower((unsigned char)b[k - 1]);
            unsigned best = d[i - 1][k - 1] + (ca != cb);
            best = MIN(best, d[i - 1][k] + 1);
            best = MIN(best, d[i][k - 1] + 1);
            if (i > 1 && k > 1 && ca == tolower((unsigned char)b[k - 2]) &&
                cb == tolower((unsigned char)a[i - 2]))
                best = MIN(best, d[i - 2][k - 2] + 1);
            d[i][k] = best;
        }
    return d[a_len][b_len];
}

const char *suggest_nearest(const char *typed, const char *const *words, size_t count)
{
    size_t len = strlen(typed);
    if (len == 0 || len > SUGGEST_WORD_MAX)
        return NULL;
    const char *best = NULL;
    unsigned best_distance = (unsigned)len / 3 + 1;
    for (size_t i = 0; i < count; i++) {
        if (strlen(words[i]) > SUGGEST_WORD_MAX)
            continue;
        /* An unfinished word is as good as one slip. */
        unsigned distance = len >= 3 && strncasecmp(words[i], typed, len) == 0
                                ? 1
                                : suggest_distance(typed, words[i]);
        if (distance < best_distance || (distance == best_distance && best == NULL)) {
            best = words[i];
            best_distance = distance;
        }
    }
    return best;
}
