/*
 * disk.c - the value of --disk
 */
#include "cli/disk.h"

#include <string.h>

#include "base/bits.h"
#include "cli/props.h"

#define SERIAL_MAX 20

static int take_cache(const char *value, struct vm_disk *out, struct err *e)
{
    static const char *const names[] = {[BLOCK_CACHE_WRITEBACK] = "writeback",
                                        [BLOCK_CACHE_NONE] = "none",
                                        [BLOCK_CACHE_UNSAFE] = "unsafe"};

    for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
        if (strcmp(value, names[i]) == 0) {
            out->cache = (enum block_cache)i;
            return 0;
        }
    return err_set(e, 0, "--disk: unknown cache '%s' (choose from writeback, none, unsafe)", value);
}

static int take_format(const char *value, struct vm_disk *out, struct err *e)
{
    static const char *const names[] = {[BLOCK_FORMAT_RAW] = "raw", [BLOCK_FORMAT_QCOW2] = "qcow2"};

    for (unsigned i = BLOCK_FORMAT_RAW; i < ARRAY_SIZE(names); i++)
        if (strcmp(value, names[i]) == 0) {
            out->format = (enum block_format)i;
            return 0;
        }
    return err_set(e, 0, "--disk: unknown format '%s' (choose from raw, qcow2)", value);
}

static int take_aio(const char *value, struct vm_disk *out, struct err *e)
{
    static const char *const names[] = {[BLOCK_AIO_AUTO] = "auto",
                                        [BLOCK_AIO_IO_URING] = "io_uring",
                                        [BLOCK_AIO_THREADS] = "threads"};

    for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
        if (strcmp(value, names[i]) == 0) {
            out->aio = (enum block_aio)i;
            return 0;
        }
    return err_set(e, 0, "--disk: unknown aio '%s' (choose from auto, io_uring, threads)", value);
}

static int take_serial(const char *value, struct vm_disk *out, struct err *e)
{
    if (strlen(value) > SERIAL_MAX)
        return err_set(e, 0, "--disk: the serial '%s' is longer than %u characters", value,
                       SERIAL_MAX);
    out->serial = value;
    return 0;
}

static int take_property(const char *part, void *ctx, struct err *e)
{
    struct vm_disk *out = ctx;
    static const char *const names[] = {"ro", "format", "cache", "aio", "serial"};
    const char *value;

    if (strcmp(part, "ro") == 0) {
        out->is_read_only = true;
        return 0;
    }
    if ((value = props_value(part, "format")) != NULL)
        return take_format(value, out, e);
    if ((value = props_value(part, "cache")) != NULL)
        return take_cache(value, out, e);
    if ((value = props_value(part, "aio")) != NULL)
        return take_aio(value, out, e);
    if ((value = props_value(part, "serial")) != NULL)
        return take_serial(value, out, e);
    return props_unknown("--disk", part, names, ARRAY_SIZE(names),
                         "there are ro, format=, cache=, aio=, serial=; a comma in the file's name "
                         "is written twice",
                         e);
}

int disk_parse(const char *value, char text[DISK_TEXT_SIZE], struct vm_disk *out, struct err *e)
{
    char *to = text;

    *out = (struct vm_disk){.path = text};
    if (strlen(value) >= DISK_TEXT_SIZE)
        return err_set(e, 0, "--disk: the value is longer than %u characters", DISK_TEXT_SIZE - 1);
    const char *rest = props_take(value, &to);
    if (text[0] == '\0')
        return err_set(e, 0, "--disk: the file's name is empty");
    const char *socket = props_vhost_user(text);
    if (socket != NULL) {
        *out = (struct vm_disk){.path = socket, .is_vhost_user = true};
        if (socket[0] == '\0')
            return err_set(e, 0, "--disk: vhost-user: lacks the path of a socket");
        if (rest != NULL)
            return err_set(e, 0,
                           "--disk: what serves 'vhost-user:%s' sets its properties; there are "
                           "none here",
                           socket);
    }
    return props_each(rest, &to, take_property, out, e);
}
