/*
 * props.c - the values of options that are lists
 */
#include "cli/props.h"

#include <stdio.h>
#include <string.h>

#include "base/bits.h"
#include "cli/suggest.h"

const char *props_take(const char *from, char **to)
{
    for (; *from != '\0'; from++) {
        if (*from == ',' && from[1] != ',')
            break;
        from += *from == ',';
        *(*to)++ = *from;
    }
    *(*to)++ = '\0';
    return *from == ',' ? from + 1 : NULL;
}

int props_each(const char *rest, char **to, int (*take)(const char *part, void *ctx, struct err *e),
               void *ctx, struct err *e)
{
    int rc = 0;

    while (rc == 0 && rest != NULL) {
        const char *part = *to;
        rest = props_take(rest, to);
        rc = take(part, ctx, e);
    }
    return rc;
}

const char *props_vhost_user(const char *part)
{
    static const char prefix[] = "vhost-user:";

    return strncmp(part, prefix, strlen(prefix)) == 0 ? part + strlen(prefix) : NULL;
}

const char *props_value(const char *part, const char *name)
{
    size_t len = strlen(name);

    return strncmp(part, name, len) == 0 && part[len] == '=' ? part + len + 1 : NULL;
}

int props_unknown(const char *option, const char *part, const char *const *names, size_t count,
                  const char *list, struct err *e)
{
    char name[32] = "";

    memcpy(name, part, MIN(strcspn(part, "="), sizeof(name) - 1));
    const char *near = suggest_nearest(name, names, count);
    if (near != NULL)
        return err_set(e, 0, "%s: unknown property '%s'; did you mean '%s'?", option, part, near);
    return err_set(e, 0, "%s: unknown property '%s' (%s)", option, part, list);
}

int props_choose(const char *option, const char *what, const char *value, const char *const *words,
                 unsigned count, unsigned *out, struct err *e)
{
    char list[128] = "";

    for (unsigned i = 0; i < count; i++)
        if (strcmp(value, words[i]) == 0) {
            *out = i;
            return 0;
        }
    const char *near = suggest_nearest(value, words, count);
    if (near != NULL)
        return err_set(e, 0, "%s: unknown %s '%s'; did you mean '%s'?", option, what, value, near);
    for (unsigned i = 0; i < count; i++)
        snprintf(list + strlen(list), sizeof(list) - strlen(list), "%s%s", i > 0 ? ", " : "",
                 words[i]);
    return err_set(e, 0, "%s: unknown %s '%s' (choose from %s)", option, what, value, list);
}
