/*
 * disk.c - the value of --disk
 */
#include "cli/disk.h"

#include <string.h>

#include "base/bits.h"
#include "cli/props.h"

#define SERIAL_MAX 20

int disk_parse_format(const char *option, const char *value, enum block_format *out, struct err *e)
{
    static const char *const names[] = {"raw", "qcow2"};
    static const enum block_format formats[] = {BLOCK_FORMAT_RAW, BLOCK_FORMAT_QCOW2};
    unsigned i = 0;
    int rc = props_choose(option, "format", value, names, ARRAY_SIZE(names), &i, e);

    *out = formats[i];
    return rc;
}

static int take_cache(const char *value, struct vm_disk *out, struct err *e)
{
    static const char *const names[] = {[BLOCK_CACHE_WRITEBACK] = "writeback",
                                        [BLOCK_CACHE_NONE] = "none",
                                        [BLOCK_CACHE_UNSAFE] = "unsafe"};
    unsigned i = 0;
    int rc = props_choose("--disk", "cache", value, names, ARRAY_SIZE(names), &i, e);

    out->cache = (enum block_cache)i;
    return rc;
}

static int take_aio(const char *value, struct vm_disk *out, struct err *e)
{
    static const char *const names[] = {[BLOCK_AIO_AUTO] = "auto",
                                        [BLOCK_AIO_IO_URING] = "io_uring",
                                        [BLOCK_AIO_THREADS] = "threads"};
    unsigned i = 0;
    int rc = props_choose("--disk", "aio", value, names, ARRAY_SIZE(names), &i, e);

    out->aio = (enum block_aio)i;
    return rc;
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
    static const char *const names[] = {"ro", "format", "cache", "aio", "serial", "bus"};
    static const char *const buses[] = {"virtio"}; /* the machine has no other disks */
    const char *value;
    unsigned bus;

    if (strcmp(part, "ro") == 0) {
        out->is_read_only = true;
        return 0;
    }
    if ((value = props_value(part, "format")) != NULL)
        return disk_parse_format("--disk", value, &out->format, e);
    if ((value = props_value(part, "cache")) != NULL)
        return take_cache(value, out, e);
    if ((value = props_value(part, "aio")) != NULL)
        return take_aio(value, out, e);
    if ((value = props_value(part, "serial")) != NULL)
        return take_serial(value, out, e);
    if ((value = props_value(part, "bus")) != NULL)
        return props_choose("--disk", "bus", value, buses, ARRAY_SIZE(buses), &bus, e);
    return props_unknown(
        "--disk", part, names, ARRAY_SIZE(names),
        "there are ro, format=, cache=, aio=, serial=, bus=; a comma in the file's name "
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
