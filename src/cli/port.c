/*
 * port.c - the values of --port
 */
#include "cli/port.h"

#include <stdio.h>
#include <string.h>

#include "base/bits.h"
#include "cli/props.h"

static int take_name(const char *name, struct port_option *out, struct err *e)
{
    if (name[0] == '\0' || strlen(name) >= sizeof(out->name) || strchr(name, '/') != NULL)
        return err_set(e, 0, "--port: the name '%s' is not one of 1 to %zu characters without '/'",
                       name, sizeof(out->name) - 1);
    memcpy(out->name, name, strlen(name) + 1);
    return 0;
}

static int take_property(const char *part, void *ctx, struct err *e)
{
    struct port_option *out = ctx;
    static const char *const names[] = {"name", "socket", "file", "pty"};
    static const char *const kinds[] = {NULL, "unix:", "file:", "pty:"};

    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        const char *value = props_value(part, names[i]);
        if (value == NULL)
            continue;
        if (kinds[i] == NULL)
            return take_name(value, out, e);
        if (value[0] == '\0')
            return err_set(e, 0, "--port: %s= needs a path", names[i]);
        if (out->device[0] != '\0')
            return err_set(e, 0, "--port: there can be one of socket=, file= and pty=");
        snprintf(out->device, sizeof(out->device), "%s%s", kinds[i], value);
        return 0;
    }
    return props_unknown("--port", part, names, ARRAY_SIZE(names),
                         "there are name=, socket=, file= and pty=", e);
}

int port_parse(const char *value, struct port_option *out, struct err *e)
{
    char text[PORT_DEVICE_SIZE];
    char *to = text;

    *out = (struct port_option){0};
    if (strlen(value) >= sizeof(text) - 8)
        return err_set(e, 0, "--port: the value is longer than %zu characters", sizeof(text) - 9);
    int rc = props_each(value, &to, take_property, out, e);
    if (rc != 0)
        return rc;
    if (out->name[0] == '\0' || out->device[0] == '\0')
        return err_set(e, 0,
                       "--port: '%s' lacks its name or its other end; it has the form "
                       "name=NAME,socket=PATH (or file=PATH, or pty=PATH)",
                       value);
    return 0;
}
