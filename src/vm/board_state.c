/*
 * board_state.c - the state of all that is on the machine's PCI bus, and of what firmware talks to
 */
#include "vm/board_state.h"

#include <string.h>

#include "dev/pci/pci_host.h"
#include "dev/pci/piix3.h"
#include "dev/pci/piix4_pm.h"
#include "dev/virtio/virtio_balloon.h"
#include "dev/virtio/virtio_blk.h"
#include "dev/virtio/virtio_console.h"
#include "dev/virtio/virtio_fs.h"
#include "dev/virtio/virtio_net.h"
#include "dev/virtio/virtio_pci.h"
#include "dev/virtio/virtio_rng.h"
#include "dev/virtio/virtio_vhost.h"
#include "dev/virtio/virtio_vsock.h"
#include "vm/board.h"

/* One of the functions that are plugged into the bus. */
struct part {
    unsigned slot;
    struct virtio_pci *function;
    struct virtio_device *dev;
};

struct parts {
    struct part list[BOARD_FUNCTIONS_MAX];
    unsigned count;
};

static void add(struct parts *parts, unsigned slot, struct virtio_pci *function,
                struct virtio_device *dev)
{
    if (function != NULL)
        parts->list[parts->count++] = (struct part){slot, function, dev};
}

static struct virtio_device *disk_device(const struct board_disk *disk)
{
    if (disk->vhost != NULL)
        return virtio_vhost_device(disk->vhost);
    return disk->blk != NULL ? virtio_blk_device(disk->blk) : NULL;
}

static struct virtio_device *share_device(const struct board_share *share)
{
    if (share->vhost != NULL)
        return virtio_vhost_device(share->vhost);
    return share->fs != NULL ? virtio_fs_device(share->fs) : NULL;
}

static struct virtio_device *net_device(const struct board *b)
{
    if (b->net_vhost != NULL)
        return virtio_vhost_device(b->net_vhost);
    return b->net != NULL ? virtio_net_device(b->net) : NULL;
}

/* In the order of their slots. */
static void list_parts(struct board *b, struct parts *parts)
{
    parts->count = 0;
    add(parts, MAP_RNG_SLOT, b->rng_function, virtio_rng_device(b->rng));
    for (unsigned i = 0; i < VM_DISKS_MAX; i++)
        add(parts, MAP_DISK_SLOT + i, b->disks[i].function, disk_device(&b->disks[i]));
    add(parts, MAP_NET_SLOT, b->net_function, net_device(b));
    if (b->console != NULL)
        add(parts, MAP_CONSOLE_SLOT, b->console_function, virtio_console_device(b->console));
    if (b->balloon != NULL)
        add(parts, MAP_BALLOON_SLOT, b->balloon_function, virtio_balloon_device(b->balloon));
    if (b->vsock != NULL)
        add(parts, MAP_VSOCK_SLOT, b->vsock_function, virtio_vsock_device(b->vsock));
    for (unsigned i = 0; i < VM_SHARES_MAX; i++)
        add(parts, MAP_SHARE_SLOT + i, b->shares[i].function, share_device(&b->shares[i]));
}

int board_quiesce_pci(struct board *b, uint64_t timeout_ns, struct err *e)
{
    struct parts parts;
    int rc = 0;

    list_parts(b, &parts);
    for (unsigned i = 0; i < parts.count && rc == 0; i++)
        rc = virtio_quiesce(parts.list[i].dev, timeout_ns, e);
    if (rc != 0)
        board_resume_pci(b);
    return rc;
}

void board_resume_pci(struct board *b)
{
    struct parts parts;

    list_parts(b, &parts);
    for (unsigned i = 0; i < parts.count; i++)
        virtio_resume(parts.list[i].dev);
}

int board_get_pci_state(struct board *b, struct board_pci_state *out, struct err *e)
{
    struct parts parts;
    int rc = 0;

    memset(out, 0, sizeof(*out));
    list_parts(b, &parts);
    out->function_count = (uint8_t)parts.count;
    for (unsigned i = 0; i < parts.count && rc == 0; i++) {
        out->slots[i] = (uint8_t)parts.list[i].slot;
        rc = virtio_pci_get_state(parts.list[i].function, &out->functions[i], e);
    }
    pci_host_get_state(b->pci, &out->host);
    piix3_get_state(b->isa_bridge, &out->isa_bridge);
    piix4_pm_get_state(b->pm_function, &out->pm_function);
    out->has_fw_cfg = b->fw_cfg != NULL;
    if (b->fw_cfg != NULL)
        fw_cfg_get_state(b->fw_cfg, &out->fw_cfg);
    out->has_vars = b->vars != NULL;
    if (b->vars != NULL)
        pflash_get_state(b->vars, &out->vars);
    return rc;
}

static int check_parts(const struct board *b, const struct parts *parts,
                       const struct board_pci_state *state, struct err *e)
{
    static const char what[] = "put back the state of the machine's devices";

    if (state->function_count != parts->count)
        return err_set(e, 0, "%s: function_count is %u, and the machine has %u", what,
                       state->function_count, parts->count);
    for (unsigned i = 0; i < parts->count; i++)
        if (state->slots[i] != parts->list[i].slot)
            return err_set(e, 0, "%s: slots[%u] is %u, and the machine's is %u", what, i,
                           state->slots[i], parts->list[i].slot);
    if (state->has_fw_cfg != (b->fw_cfg != NULL) || state->has_vars != (b->vars != NULL))
        return err_set(e, 0, "%s: has_fw_cfg and has_vars are %u and %u, and the machine's are not",
                       what, state->has_fw_cfg, state->has_vars);
    return 0;
}

int board_set_pci_state(struct board *b, const struct board_pci_state *state, struct err *e)
{
    struct parts parts;

    list_parts(b, &parts);
    int rc = check_parts(b, &parts, state, e);
    if (rc == 0)
        rc = pci_host_set_state(b->pci, &state->host, e);
    if (rc == 0)
        rc = piix3_set_state(b->isa_bridge, &state->isa_bridge, e);
    if (rc == 0)
        rc = piix4_pm_set_state(b->pm_function, &state->pm_function, e);
    for (unsigned i = 0; i < parts.count && rc == 0; i++)
        rc = virtio_pci_set_state(parts.list[i].function, &state->functions[i], e);
    if (rc == 0 && b->fw_cfg != NULL)
        rc = fw_cfg_set_state(b->fw_cfg, &state->fw_cfg, e);
    if (rc == 0 && b->vars != NULL)
        rc = pflash_set_state(b->vars, &state->vars, e);
    return rc;
}
