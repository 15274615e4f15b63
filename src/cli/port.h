/*
 * port.h - the values of --port: name=NAME,socket=PATH|file=PATH|pty=PATH
 */
#ifndef DOPPEL_CLI_PORT_H
#define DOPPEL_CLI_PORT_H

#include "base/err.h"

#define PORT_NAME_SIZE 64
#define PORT_DEVICE_SIZE 4608

struct port_option {
    char name[PORT_NAME_SIZE];
    char device[PORT_DEVICE_SIZE]; /* as chardev_create takes it */
};

/* Take `value` apart. A comma that belongs to a path is written twice. Returns 0 or -EINVAL. */
int port_parse(const char *value, struct port_option *out, struct err *e);

#endif
