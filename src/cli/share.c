/*
 * share.c - the value of --share
 */
#include "cli/share.h"

#include <string.h>

#include "base/bits.h"
#include "cli/props.h"

static int take_tag(const char *value, struct vm_share *out, struct err *e)
{
    if (value[0] == '\0' || strlen(value) > VM_SHARE_TAG_MAX)
        return err_set(e, 0, "--share: the tag '%s' is not of 1 to %u bytes", value,
                       VM_SHARE_TAG_MAX);
    out->tag = value;
    return 0;
}

static int take_cache(const char *value, struct vm_share *out, struct err *e)
{
    static const char *const names[] = {[SHARE_CACHE_AUTO] = "auto",
                                        [SHARE_CACHE_ALWAYS] = "always",
                                        [SHARE_CACHE_NEVER] = "never"};
    unsigned i = 0;
    int rc = props_choose("--share", "cache", value, names, ARRAY_SIZE(names), &i, e);

    out->cache = (enum share_cache)i;
    return rc;
}

static int take_locks(const char *value, struct vm_share *out, struct err *e)
{
    out->has_locks = strcmp(value, "on") == 0;
    if (out->has_locks || strcmp(value, "off") == 0)
        return 0;
    return err_set(e, 0, "--share: locks are on or off, not '%s'", value);
}

/* Of a folder that another process serves: what is its to say, NULL: it may be said here. */
static const char *is_theirs(const char *part)
{
    if (strcmp(part, "ro") == 0)
        return "read-only";
    if (props_value(part, "cache") != NULL)
        return "to be cached";
    return props_value(part, "locks") != NULL ? "to have locks" : NULL;
}

static int take_property(const char *part, void *ctx, struct err *e)
{
    struct vm_share *out = ctx;
    static const char *const names[] = {"ro", "tag", "cache", "locks"};
    const char *value;

    if (out->is_vhost_user && is_theirs(part) != NULL)
        return err_set(e, 0, "--share: what serves 'vhost-user:%s' says if it is %s", out->path,
                       is_theirs(part));
    if (strcmp(part, "ro") == 0) {
        out->is_read_only = true;
        return 0;
    }
    if ((value = props_value(part, "tag")) != NULL)
        return take_tag(value, out, e);
    if ((value = props_value(part, "cache")) != NULL)
        return take_cache(value, out, e);
    if ((value = props_value(part, "locks")) != NULL)
        return take_locks(value, out, e);
    return props_unknown(
        "--share", part, names, ARRAY_SIZE(names),
        "there are tag=, ro, cache= and locks=; a comma in the folder's name is written twice", e);
}

int share_parse(const char *value, char text[SHARE_TEXT_SIZE], struct vm_share *out, struct err *e)
{
    char *to = text;

    *out = (struct vm_share){.path = text};
    if (strlen(value) >= SHARE_TEXT_SIZE)
        return err_set(e, 0, "--share: the value is longer than %u characters",
                       SHARE_TEXT_SIZE - 1);
    const char *rest = props_take(value, &to);
    if (text[0] == '\0')
        return err_set(e, 0, "--share: the folder's name is empty");
    const char *socket = props_vhost_user(text);
    if (socket != NULL) {
        *out = (struct vm_share){.path = socket, .is_vhost_user = true};
        if (socket[0] == '\0')
            return err_set(e, 0, "--share: vhost-user: lacks the path of a socket");
    }
    int rc = props_each(rest, &to, take_property, out, e);
    if (rc != 0)
        return rc;
    if (out->tag == NULL)
        return err_set(e, 0,
                       "--share: by what name is the guest to mount it? Say so with "
                       "'--share %s,tag=NAME'",
                       value);
    return 0;
}
