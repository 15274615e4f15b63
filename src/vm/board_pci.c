/*
 * board_pci.c - the PCI bus of the machine and what is plugged into it: bridges, virtio devices and
 * the host's side of each
 *
 * Each device has a slot of its own (machine_map.h), so that it is found at the same place whatever
 * else the machine has.
 */
#include <string.h>

#include "backend/block/block.h"
#include "backend/net/netdev.h"
#include "backend/share/share.h"
#include "dev/irqchip/apic_bus.h"
#include "dev/irqchip/i8259.h"
#include "dev/irqchip/ioapic.h"
#include "dev/pci/pci_host.h"
#include "dev/pci/piix3.h"
#include "dev/pci/piix4_pm.h"
#include "dev/platform/test_device.h"
#include "dev/virtio/virtio_balloon.h"
#include "dev/virtio/virtio_blk.h"
#include "dev/virtio/virtio_console.h"
#include "dev/virtio/virtio_fs.h"
#include "dev/virtio/virtio_net.h"
#include "dev/virtio/virtio_pci.h"
#include "dev/virtio/virtio_rng.h"
#include "dev/virtio/virtio_vhost.h"
#include "dev/virtio/virtio_vsock.h"
#include "mem/space.h"
#include "vm/board_internal.h"
#include "vm/machine.h"

_Static_assert(MAP_ECAM_SIZE == PCI_HOST_ECAM_SIZE, "the DSDT says how large it is");
_Static_assert(VM_SHARE_TAG_MAX == VIRTIO_FS_TAG_MAX, "the option's tag is the device's");
_Static_assert(VM_VSOCK_CID_MIN == VIRTIO_VSOCK_CID_MIN, "the device's limits");
_Static_assert(VM_VSOCK_CID_MAX == VIRTIO_VSOCK_CID_MAX, "the device's limits");
_Static_assert(VM_VSOCK_PATH_MAX == VIRTIO_VSOCK_PATH_MAX, "the device's limits");

#define PCI_CLASS_STORAGE_OTHER 0x0180
#define PCI_CLASS_ETHERNET 0x0200
#define PCI_CLASS_COMMUNICATION_OTHER 0x0780
#define PCI_CLASS_OTHER 0x00ff
#define DISK_QUEUES_MAX 4u
#define NET_PAIRS_MAX 4u

/* ---- the bus ---- */

/* Make `dev` a function of its own and put that into `slot`. */
static int board_plug(struct board *b, struct virtio_device *dev, uint16_t class_device,
                      unsigned slot, struct err *e)
{
    int ret = virtio_pci_create(dev, class_device, &b->functions[slot], e);

    return ret == 0 ? virtio_pci_attach(b->functions[slot], b->pci, slot, e) : ret;
}

/* On the bus or not: nobody goes there any more. */
static void board_destroy_function(struct board *b, unsigned slot)
{
    virtio_pci_destroy(b->functions[slot]);
    b->functions[slot] = NULL;
}

static void board_pam_changed(void *ctx, const uint8_t *pam)
{
    struct board *b = ctx;

    if (shadow_want(&b->shadow, pam))
        vm_request_remap(b->vm);
}

static void board_send_msi(void *ctx, uint64_t address, uint32_t data)
{
    struct board *b = ctx;

    apic_bus_send_msi(b->apic_bus, address, data);
}

static void board_bells_moved(void *ctx, const struct pci_host_bell *bells, unsigned count)
{
    struct board *b = ctx;

    bells_moved(b->vm, bells, count);
}

/* The bus's ports, but those that the test device takes out of their midst. */
static int board_map_pci_ports(struct board *b, struct err *e)
{
    uint64_t first = MAP_PCI_PORTS_ADDR, end = first + MAP_PCI_PORTS_SIZE;
    int ret = 0;

    if (b->vm->config.has_test_device) {
        ret = pci_host_map_window(b->pci, b->ports, true, first, TEST_DEVICE_LINES_PORT - first, e);
        first = TEST_DEVICE_LINES_PORT + TEST_DEVICE_LINES;
    }
    if (ret == 0)
        ret = pci_host_map_window(b->pci, b->ports, true, first, end - first, e);
    return ret;
}

/* Behind RAM, but not so low that a machine's size moves it about for nothing. */
uint64_t board_pci_window(const struct board *b)
{
    uint64_t low_end = MIN(b->vm->config.memory_bytes, MAP_LOW_RAM_MAX);

    return MAX(low_end, MAP_PCI_WINDOW_MIN);
}

/* Above 4 GiB: behind RAM, in whole GiB. */
uint64_t board_pci_high_window(const struct board *b)
{
    uint64_t size = b->vm->config.memory_bytes, low_end = MIN(size, MAP_LOW_RAM_MAX);

    return align_up(MAP_HIGH_RAM_ADDR + (size - low_end), BIT(30));
}

static int board_map_pci_memory(struct board *b, struct err *e)
{
    uint64_t first = board_pci_window(b), high = board_pci_high_window(b);
    int ret = pci_host_map_ecam(b->pci, b->memory, MAP_ECAM_ADDR, e);

    if (ret == 0)
        ret = pci_host_map_window(b->pci, b->memory, false, first, MAP_ECAM_ADDR - first, e);
    if (ret == 0)
        ret = pci_host_map_window(b->pci, b->memory, false, MAP_PCI_WINDOW2_ADDR,
                                  MAP_PCI_WINDOW2_SIZE, e);
    if (ret == 0 && high < BIT(b->vm->model.phys_bits))
        ret = pci_host_map_window(b->pci, b->memory, false, high,
                                  BIT(b->vm->model.phys_bits) - high, e);
    return ret;
}

int board_create_pci(struct board *b, struct err *e)
{
    struct pci_host_config config = {.reset = board_reset_wanted,
                                     .pam_changed = board_pam_changed,
                                     .bells_moved = board_bells_moved,
                                     .send_msi = board_send_msi,
                                     .ctx = b};
    struct irq_line pic_inputs[16] = {0};
    int ret;

    for (unsigned i = 0; i < ARRAY_SIZE(pic_inputs); i++)
        if (i != 2)
            pic_inputs[i] = i8259_input(b->pic, i);
    ret = piix3_create(pic_inputs, &b->isa_bridge, e);
    if (ret != 0)
        return ret;
    for (unsigned i = 0; i < ARRAY_SIZE(config.pirq); i++)
        config.pirq[i] = board_make_wire(&b->pirq_wires[i], piix3_pirq_input(b->isa_bridge, i),
                                         ioapic_input(b->ioapic, MAP_PIRQ_GSI + i));
    ret = pci_host_create(&config, &b->pci, e);
    if (ret == 0)
        ret = pci_host_map(b->pci, b->ports, PCI_HOST_PORT, e);
    if (ret == 0)
        ret = board_map_pci_memory(b, e);
    if (ret == 0)
        ret = board_map_pci_ports(b, e);
    if (ret == 0)
        ret = piix3_attach(b->isa_bridge, b->pci, MAP_ISA_BRIDGE_SLOT, e);
    if (ret == 0)
        ret = piix4_pm_create(MAP_PM_PORT, MAP_SCI_IRQ, &b->pm_function, e);
    if (ret == 0)
        ret = piix4_pm_attach(b->pm_function, b->pci, MAP_ISA_BRIDGE_SLOT, e);
    return ret;
}

int board_create_rng(struct board *b, struct err *e)
{
    int ret = virtio_rng_create(b->memory, &b->rng, e);

    if (ret == 0)
        ret = board_plug(b, virtio_rng_device(b->rng), PCI_CLASS_OTHER, MAP_RNG_SLOT, e);
    return ret;
}

/* A device that another process serves. */
static int board_create_vhost(struct board *b, struct virtio_vhost_config *config,
                              uint16_t class_device, unsigned slot, struct virtio_vhost **out,
                              struct err *e)
{
    config->memory = b->memory;
    config->regions = b->ram_regions;
    config->region_count = b->ram_region_count;
    int ret = virtio_vhost_create(config, out, e);
    if (ret != 0)
        return ret;
    return board_plug(b, virtio_vhost_device(*out), class_device, slot, e);
}

static int board_create_image(struct board *b, unsigned index, struct err *e)
{
    const struct vm_disk *disk = &b->vm->config.disks[index];
    struct board_disk *d = &b->disks[index];
    struct block_config host = {
        .path = disk->path,
        .format = disk->format,
        .is_read_only = disk->is_read_only,
        .is_ephemeral = disk->is_ephemeral,
        .cache = disk->cache,
        .aio = disk->aio,
    };
    int ret = block_open(&host, &d->block, e);

    if (ret != 0)
        return ret;
    struct virtio_blk_config config = {
        .name = disk->path,
        .memory = b->memory,
        .block = d->block,
        .serial = disk->serial,
        .queue_count = MIN(b->vm->config.cpu_count, DISK_QUEUES_MAX),
    };
    ret = virtio_blk_create(&config, &d->blk, e);
    if (ret == 0)
        ret = board_plug(b, virtio_blk_device(d->blk), PCI_CLASS_STORAGE_OTHER,
                         MAP_DISK_SLOT + index, e);
    return ret;
}

static int board_create_disk(struct board *b, unsigned index, struct err *e)
{
    const struct vm_disk *disk = &b->vm->config.disks[index];
    struct board_disk *d = &b->disks[index];
    struct virtio_vhost_config config = {
        .kind = VIRTIO_VHOST_DISK,
        .path = disk->path,
        .queues_wanted = MIN(b->vm->config.cpu_count, DISK_QUEUES_MAX),
    };
    if (!disk->is_vhost_user)
        return board_create_image(b, index, e);
    return board_create_vhost(b, &config, PCI_CLASS_STORAGE_OTHER, MAP_DISK_SLOT + index, &d->vhost,
                              e);
}

int board_create_disks(struct board *b, struct err *e)
{
    int ret = 0;

    for (unsigned i = 0; ret == 0 && i < b->vm->config.disk_count; i++)
        ret = board_create_disk(b, i, e);
    return ret;
}

static void board_destroy_disk(struct board *b, unsigned index)
{
    struct board_disk *d = &b->disks[index];

    /* requests under way come back first: they signal through the function */
    block_close(d->block);
    virtio_vhost_close(d->vhost);
    board_destroy_function(b, MAP_DISK_SLOT + index);
    virtio_blk_destroy(d->blk);
    virtio_vhost_destroy(d->vhost);
}

static int board_create_net_vhost(struct board *b, const uint8_t mac[6], struct err *e)
{
    const struct vm_config *vm = &b->vm->config;
    struct virtio_vhost_config config = {
        .kind = VIRTIO_VHOST_NET,
        .path = vm->net.path,
        .queues_wanted = MIN(vm->cpu_count, NET_PAIRS_MAX),
        .mtu = (uint16_t)vm->net.mtu,
    };

    memcpy(config.mac, mac, 6);
    return board_create_vhost(b, &config, PCI_CLASS_ETHERNET, MAP_NET_SLOT, &b->net_vhost, e);
}

int board_create_net(struct board *b, struct err *e)
{
    /* locally administered */
    static const uint8_t made_up[6] = {0x52, 0x54, 0x00, 0xd0, 0x99, 0x01};
    const struct vm_net *net = &b->vm->config.net;
    unsigned count = MAX(net->queues, 1u);
    struct virtio_net_config config = {
        .name = "network interface",
        .memory = b->memory,
        .nets = b->netdevs,
        .net_count = count,
        /* a pair without a queue behind it would be for nothing where there are several */
        .pair_count = count > 1 ? count : MIN(b->vm->config.cpu_count, NET_PAIRS_MAX),
    };
    int ret;

    if (net->kind == VM_NET_NONE)
        return 0;
    if (net->kind == VM_NET_VHOST_USER)
        return board_create_net_vhost(b, net->has_mac ? net->mac : made_up, e);
    if (net->kind == VM_NET_USER)
        ret = netdev_user_open(&net->user, net->mtu, b->netdevs, e);
    else if (net->kind == VM_NET_TAP)
        ret = netdev_tap_open(net->path, net->mtu, count, b->netdevs, e);
    else
        ret = netdev_socket_open(net->path, net->mtu, b->netdevs, e);
    if (ret != 0)
        return ret;
    b->netdev_count = count;
    memcpy(config.mac, net->has_mac ? net->mac : made_up, 6);
    ret = virtio_net_create(&config, &b->net, e);
    if (ret == 0)
        ret = board_plug(b, virtio_net_device(b->net), PCI_CLASS_ETHERNET, MAP_NET_SLOT, e);
    if (ret == 0)
        ret = virtio_net_start(b->net, e);
    return ret;
}

static int board_create_folder(struct board *b, unsigned index, struct err *e)
{
    const struct vm_share *share = &b->vm->config.shares[index];
    struct board_share *s = &b->shares[index];
    struct share_config host = {
        .path = share->path,
        .is_read_only = share->is_read_only,
        .cache = share->cache,
        .has_locks = share->has_locks,
        .descriptors_max = share_descriptors(b->vm->config.share_count),
    };
    int ret = share_open(&host, &s->share, e);

    if (ret != 0)
        return ret;
    struct virtio_fs_config config = {
        .name = share->path, .memory = b->memory, .share = s->share, .tag = share->tag};
    ret = virtio_fs_create(&config, &s->fs, e);
    if (ret == 0)
        ret = board_plug(b, virtio_fs_device(s->fs), PCI_CLASS_STORAGE_OTHER,
                         MAP_SHARE_SLOT + index, e);
    return ret;
}

static int board_create_share(struct board *b, unsigned index, struct err *e)
{
    const struct vm_share *share = &b->vm->config.shares[index];
    struct board_share *s = &b->shares[index];
    struct virtio_vhost_config config = {
        .kind = VIRTIO_VHOST_SHARE, .path = share->path, .tag = share->tag};
    if (!share->is_vhost_user)
        return board_create_folder(b, index, e);
    return board_create_vhost(b, &config, PCI_CLASS_STORAGE_OTHER, MAP_SHARE_SLOT + index,
                              &s->vhost, e);
}

int board_create_shares(struct board *b, struct err *e)
{
    int ret = 0;

    for (unsigned i = 0; ret == 0 && i < b->vm->config.share_count; i++)
        ret = board_create_share(b, i, e);
    return ret;
}

static void board_destroy_share(struct board *b, unsigned index)
{
    struct board_share *s = &b->shares[index];

    /* as for disks */
    share_close(s->share);
    virtio_vhost_close(s->vhost);
    board_destroy_function(b, MAP_SHARE_SLOT + index);
    virtio_fs_destroy(s->fs);
    virtio_vhost_destroy(s->vhost);
}

int board_create_console(struct board *b, struct err *e)
{
    const struct vm_config *vm = &b->vm->config;
    struct virtio_console_config config = {
        .memory = b->memory, .loop = vm->loop, .port_count = vm->port_count};
    int ret;

    if (vm->port_count == 0)
        return 0;
    for (unsigned i = 0; i < vm->port_count; i++)
        config.ports[i] = (struct virtio_console_port){.chardev = vm->ports[i].chardev,
                                                       .is_console = vm->ports[i].is_console,
                                                       .name = vm->ports[i].name};
    ret = virtio_console_create(&config, &b->console, e);
    if (ret == 0)
        ret = board_plug(b, virtio_console_device(b->console), PCI_CLASS_COMMUNICATION_OTHER,
                         MAP_CONSOLE_SLOT, e);
    return ret;
}

int board_create_balloon(struct board *b, struct err *e)
{
    const struct vm_balloon *balloon = &b->vm->config.balloon;
    struct virtio_balloon_config config = {
        .memory = b->memory,
        .loop = b->vm->config.loop,
        .deflates_on_oom = balloon->deflates_on_oom,
        .reports_free_pages = balloon->reports_free_pages,
    };
    int ret;

    if (!balloon->is_there)
        return 0;
    ret = virtio_balloon_create(&config, &b->balloon, e);
    if (ret == 0)
        ret =
            board_plug(b, virtio_balloon_device(b->balloon), PCI_CLASS_OTHER, MAP_BALLOON_SLOT, e);
    return ret;
}

int board_create_vsock(struct board *b, struct err *e)
{
    const struct vm_config *vm = &b->vm->config;
    struct virtio_vsock_config config = {
        .memory = b->memory, .loop = vm->loop, .cid = vm->vsock.cid, .path = vm->vsock.path};
    int ret;

    if (vm->vsock.cid == 0)
        return 0;
    ret = virtio_vsock_create(&config, &b->vsock, e);
    if (ret == 0)
        ret = board_plug(b, virtio_vsock_device(b->vsock), PCI_CLASS_COMMUNICATION_OTHER,
                         MAP_VSOCK_SLOT, e);
    return ret;
}

/* ---- all of them ---- */

void board_reset_pci(struct board *b)
{
    for (unsigned i = 0; i < PCI_SLOT_COUNT; i++)
        if (b->functions[i] != NULL)
            virtio_pci_reset(b->functions[i]);
    pci_host_reset(b->pci);
    piix3_reset(b->isa_bridge);
    piix4_pm_reset(b->pm_function);
}

/* What is plugged in, with the host's side of each. */
static void board_destroy_functions(struct board *b)
{
    for (unsigned i = 0; i < VM_DISKS_MAX; i++)
        board_destroy_disk(b, i);
    for (unsigned i = 0; i < VM_SHARES_MAX; i++)
        board_destroy_share(b, i);
    for (unsigned i = 0; i < b->netdev_count; i++)
        netdev_close(b->netdevs[i]);
    virtio_vhost_close(b->net_vhost);
    board_destroy_function(b, MAP_NET_SLOT);
    virtio_net_destroy(b->net);
    virtio_vhost_destroy(b->net_vhost);
    board_destroy_function(b, MAP_VSOCK_SLOT);
    virtio_vsock_destroy(b->vsock);
    board_destroy_function(b, MAP_BALLOON_SLOT);
    virtio_balloon_destroy(b->balloon);
    board_destroy_function(b, MAP_CONSOLE_SLOT);
    virtio_console_destroy(b->console);
    board_destroy_function(b, MAP_RNG_SLOT);
    virtio_rng_destroy(b->rng);
}

int board_renew_pci(struct board *b, struct err *e)
{
    int (*const make[])(struct board *, struct err *) = {
        board_create_rng,     board_create_disks,   board_create_net,  board_create_shares,
        board_create_console, board_create_balloon, board_create_vsock};
    int ret = 0;

    for (unsigned i = 0; i < PCI_SLOT_COUNT; i++)
        if (b->functions[i] != NULL)
            virtio_pci_detach(b->functions[i]);
    board_destroy_functions(b);
    memset(b->disks, 0, sizeof(b->disks));
    memset(b->shares, 0, sizeof(b->shares));
    b->rng = NULL;
    memset(b->netdevs, 0, sizeof(b->netdevs));
    b->netdev_count = 0;
    b->net = NULL;
    b->net_vhost = NULL;
    b->console = NULL;
    b->balloon = NULL;
    b->vsock = NULL;
    pci_host_reset(b->pci);
    piix3_reset(b->isa_bridge);
    piix4_pm_reset(b->pm_function);
    for (unsigned i = 0; i < ARRAY_SIZE(make) && ret == 0; i++)
        ret = make[i](b, e);
    return ret;
}

void board_destroy_pci(struct board *b)
{
    board_destroy_functions(b);
    pci_host_destroy(b->pci);
    piix4_pm_destroy(b->pm_function);
    piix3_destroy(b->isa_bridge);
}
