/*
 * devices.c - what can be changed of a machine's devices while it runs
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/block/block.h"
#include "base/parse.h"
#include "dev/virtio/virtio_balloon.h"
#include "dev/virtio/virtio_blk.h"
#include "dev/virtio/virtio_console.h"
#include "dev/virtio/virtio_net.h"
#include "vm/machine.h"

void vm_set_console_size(struct vm *vm, unsigned columns, unsigned rows)
{
    if (vm->board.console != NULL)
        virtio_console_set_size(vm->board.console, columns, rows);
}

/* ---- balloon ---- */

bool vm_get_balloon(struct vm *vm, struct vm_balloon_status *out)
{
    struct virtio_balloon_status status;

    if (vm->board.balloon == NULL)
        return false;
    virtio_balloon_get_status(vm->board.balloon, &status);
    *out = (struct vm_balloon_status){.has_driver = status.has_driver,
                                      .target_bytes = status.target_bytes,
                                      .actual_bytes = status.actual_bytes};
    return true;
}

int vm_set_balloon(struct vm *vm, uint64_t bytes, struct err *e)
{
    char want[PARSE_SIZE_TEXT], all[PARSE_SIZE_TEXT];

    if (vm->board.balloon == NULL)
        return err_set(e, ENODEV, "the machine has no balloon: start it with --balloon on");
    if (bytes > vm->config.memory_bytes)
        return err_set(e, EINVAL, "a balloon of %s does not fit into the machine's %s of memory",
                       parse_format_size(bytes, want),
                       parse_format_size(vm->config.memory_bytes, all));
    virtio_balloon_set_target(vm->board.balloon, bytes);
    return 0;
}

/* ---- network ---- */

int vm_set_link(struct vm *vm, bool is_up, struct err *e)
{
    if (vm->board.net_vhost != NULL)
        return err_set(e, ENOTSUP, "the link of '%s' is the business of the process that serves it",
                       vm->config.net.path);
    if (vm->board.net == NULL)
        return err_set(e, ENODEV, "the machine has no network interface: start it with --net");
    virtio_net_set_link(vm->board.net, is_up);
    return 0;
}

/* ---- disks ---- */

static int find_disk(struct vm *vm, const char *name, unsigned *out, struct err *e)
{
    const struct vm_disk *disks = vm->config.disks;
    uint64_t number;

    for (unsigned i = 0; i < vm->config.disk_count; i++)
        if (strcmp(disks[i].path, name) == 0 ||
            (disks[i].serial != NULL && strcmp(disks[i].serial, name) == 0)) {
            *out = i;
            return 0;
        }
    if (vm->config.disk_count != 0 &&
        parse_u64(name, "disk", 0, vm->config.disk_count - 1, &number, NULL) == 0) {
        *out = (unsigned)number;
        return 0;
    }
    return err_set(e, ENOENT,
                   "the machine has no disk '%s'; say its number (the first is 0), its path as "
                   "given with --disk, or its serial",
                   name);
}

int vm_resize_disk(struct vm *vm, const char *disk, uint64_t *bytes, struct err *e)
{
    unsigned index = 0;
    int rc = find_disk(vm, disk, &index, e);

    if (rc == 0 && vm->config.disks[index].is_vhost_user)
        rc = err_set(e, ENOTSUP,
                     "resize '%s': another process serves this disk, and says what its size is",
                     vm->config.disks[index].path);
    if (rc == 0)
        rc = block_resize(vm->board.disks[index].block, *bytes, e);
    if (rc != 0)
        return rc;
    virtio_blk_resized(vm->board.disks[index].blk);
    *bytes = block_size(vm->board.disks[index].block);
    return 0;
}
