/*
 * disk.h - the value of --disk: vhost-user:PATH, or
 * FILE[,ro][,format=raw|qcow2][,cache=writeback|none|unsafe]
 * [,aio=auto|io_uring|threads][,serial=TEXT][,bus=virtio]
 */
#ifndef DOPPEL_CLI_DISK_H
#define DOPPEL_CLI_DISK_H

#include "base/err.h"
#include "vm/vm.h"

/* What the parsed strings point into. */
#define DISK_TEXT_SIZE 4608

/*
 * Take `value` apart. A comma that belongs to the file's name is written twice. Returns 0 or
 * -EINVAL.
 */
int disk_parse(const char *value, char text[DISK_TEXT_SIZE], struct vm_disk *out, struct err *e);

/*
 * A format by its name, "raw" or "qcow2", for any `option` that takes one. Returns 0 or -EINVAL.
 */
int disk_parse_format(const char *option, const char *value, enum block_format *out, struct err *e);

#endif
