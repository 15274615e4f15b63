/*
 * pci.c - a conventional PCI function: configuration space and its masks
 *
 * Spec: PCI Local Bus Specification 3.0, chapter 6.
 */
#include "dev/pci/pci.h"

#include <assert.h>
#include <string.h>

#include "base/bits.h"
#include "dev/pci/pci_host.h"
#include "dev/pci/pci_msix.h"

#define PCI_CACHE_LINE 0x0c
#define PCI_LATENCY 0x0d
#define BAR_SPACE_IO 0x1
#define BAR_TYPE_64 0x4
/* Status bits that hardware sets and software clears by writing one. */
#define PCI_STATUS_CLEARABLE 0xf900
#define CAPABILITIES_FIRST 0x40
#define PM_SIZE 8
#define PM_CAPABILITIES 2
#define PM_VERSION 3
#define PM_CONTROL 4
#define PM_STATE 0x0003
#define PM_D0 0u
#define PM_D3HOT 3u
#define PM_NO_SOFT_RESET 0x0008

void pci_device_init(struct pci_device *dev, const char *name, const struct pci_device_ops *ops,
                     const struct pci_ids *ids)
{
    *dev = (struct pci_device){
        .ops = ops,
        .name = name,
        .is_intx_enabled = true,
        .capabilities_end = CAPABILITIES_FIRST,
    };
    for (unsigned i = 0; i < PCI_BAR_COUNT; i++)
        atomic_init(&dev->bars[i].addr, UINT64_MAX);
    store_le16(dev->config + PCI_VENDOR_ID, ids->vendor);
    store_le16(dev->config + PCI_DEVICE_ID, ids->device);
    dev->config[PCI_REVISION] = ids->revision;
    dev->config[PCI_CLASS_PROG] = ids->prog_if;
    store_le16(dev->config + PCI_CLASS_DEVICE, ids->class_device);
    store_le16(dev->config + PCI_SUBSYSTEM_VENDOR_ID, ids->subsystem_vendor);
    store_le16(dev->config + PCI_SUBSYSTEM_ID, ids->subsystem);
    store_le16(dev->write_mask + PCI_COMMAND, PCI_COMMAND_MASTER | PCI_COMMAND_PARITY |
                                                  PCI_COMMAND_SERR | PCI_COMMAND_INTX_DISABLE);
    store_le16(dev->clear_mask + PCI_STATUS, PCI_STATUS_CLEARABLE);
    dev->write_mask[PCI_CACHE_LINE] = 0xff;
    dev->write_mask[PCI_LATENCY] = 0xff;
    dev->write_mask[PCI_INTERRUPT_LINE] = 0xff;
}

void pci_device_set_bar(struct pci_device *dev, unsigned index, enum pci_bar_kind kind,
                        uint64_t size, const struct space_window *window)
{
    unsigned offset = PCI_BAR0 + index * 4;
    uint64_t mask = ~(size - 1);

    assert(index < PCI_BAR_COUNT && is_pow2(size));
    dev->bars[index].kind = kind;
    dev->bars[index].size = size;
    dev->bars[index].window = *window;
    dev->write_mask[PCI_COMMAND] |= kind == PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
    switch (kind) {
    case PCI_BAR_NONE:
        return;
    case PCI_BAR_IO:
        assert(size >= 4 && size <= 65536);
        store_le32(dev->config + offset, BAR_SPACE_IO);
        break;
    case PCI_BAR_MEM32:
        assert(size >= 16 && size <= BIT(31));
        break;
    case PCI_BAR_MEM64:
        assert(size >= 16 && index + 1 < PCI_BAR_COUNT);
        store_le32(dev->config + offset, BAR_TYPE_64);
        store_le32(dev->write_mask + offset + 4, (uint32_t)(mask >> 32));
        break;
    }
    store_le32(dev->write_mask + offset, (uint32_t)mask);
}

uint64_t pci_device_bar_addr(const struct pci_device *dev, unsigned index)
{
    unsigned offset = PCI_BAR0 + index * 4;
    uint16_t command = load_le16(dev->config + PCI_COMMAND);
    uint32_t low = load_le32(dev->config + offset);

    assert(index < PCI_BAR_COUNT);
    if (!pci_device_is_powered(dev))
        return UINT64_MAX;
    if (low & BAR_SPACE_IO)
        return command & PCI_COMMAND_IO ? low & ~3u : UINT64_MAX;
    if (!(command & PCI_COMMAND_MEMORY))
        return UINT64_MAX;
    if (low & BAR_TYPE_64)
        return (uint64_t)load_le32(dev->config + offset + 4) << 32 | (low & ~15u);
    return low & ~15u;
}

unsigned pci_device_add_capability(struct pci_device *dev, uint8_t id, unsigned size)
{
    unsigned offset = dev->capabilities_end;

    assert(size >= 4 && size % 4 == 0 && range_fits(offset, size, PCI_CONFIG_SIZE));
    dev->config[offset] = id;
    dev->config[offset + 1] = dev->config[PCI_CAPABILITIES];
    dev->config[PCI_CAPABILITIES] = (uint8_t)offset;
    dev->config[PCI_STATUS] |= PCI_STATUS_CAPABILITIES;
    /* 0 is the end: no capability can start at the top of the space again */
    dev->capabilities_end = (uint8_t)MIN(offset + size, PCI_CONFIG_SIZE - 4u);
    return offset;
}

void pci_device_add_power_management(struct pci_device *dev)
{
    unsigned offset = pci_device_add_capability(dev, PCI_CAP_PM, PM_SIZE);

    store_le16(dev->config + offset + PM_CAPABILITIES, PM_VERSION);
    store_le16(dev->config + offset + PM_CONTROL, PM_NO_SOFT_RESET);
    store_le16(dev->write_mask + offset + PM_CONTROL, PM_STATE);
    dev->pm_control = (uint8_t)(offset + PM_CONTROL);
}

static unsigned pm_state_in(const struct pci_device *dev, const uint8_t *config)
{
    return dev->pm_control != 0 ? config[dev->pm_control] & PM_STATE : PM_D0;
}

static unsigned pm_state(const struct pci_device *dev)
{
    return pm_state_in(dev, dev->config);
}

bool pci_device_is_powered(const struct pci_device *dev)
{
    return pm_state(dev) == PM_D0;
}

bool pci_config_is_master(const struct pci_device *dev, const uint8_t *config)
{
    return (load_le16(config + PCI_COMMAND) & PCI_COMMAND_MASTER) != 0 &&
           pm_state_in(dev, config) == PM_D0;
}

bool pci_device_is_master(const struct pci_device *dev)
{
    return pci_config_is_master(dev, dev->config);
}

int pci_device_check_config(const struct pci_device *dev, const uint8_t *config, struct err *e)
{
    unsigned state = pm_state_in(dev, config);

    for (unsigned i = 0; i < PCI_CONFIG_SIZE; i++) {
        uint8_t may_differ = dev->write_mask[i] | dev->clear_mask[i];
        if (i == PCI_STATUS) /* computed whenever it is read */
            may_differ |= PCI_STATUS_INTX;
        if ((config[i] ^ dev->config[i]) & ~may_differ)
            return err_set(e, 0, "config[0x%02x] is 0x%02x, and the function's is 0x%02x for good",
                           i, config[i], dev->config[i]);
    }
    if (state != PM_D0 && state != PM_D3HOT)
        return err_set(e, 0, "config[0x%02x] says D%u, and the function has D0 and D3 only",
                       dev->pm_control, state);
    return 0;
}

void pci_device_decode_bars(struct pci_device *dev)
{
    bool has_moved = false;

    for (unsigned i = 0; i < PCI_BAR_COUNT; i++) {
        struct pci_bar *bar = &dev->bars[i];
        uint64_t addr = bar->kind != PCI_BAR_NONE ? pci_device_bar_addr(dev, i) : UINT64_MAX;

        has_moved |= addr != atomic_load_explicit(&bar->addr, memory_order_relaxed);
        atomic_store_explicit(&bar->addr, addr, memory_order_release);
    }
    if (has_moved && dev->host != NULL)
        pci_host_follow_bells(dev->host);
}

uint32_t pci_device_config_read(struct pci_device *dev, unsigned offset, unsigned size)
{
    uint32_t v = 0;
    if (!range_fits(offset, size, PCI_CONFIG_SIZE))
        return (uint32_t)mask_bytes(size);
    if (dev->ops != NULL && dev->ops->config_reading != NULL)
        dev->ops->config_reading(dev, offset, size);
    for (unsigned i = 0; i < size; i++)
        v |= (uint32_t)dev->config[offset + i] << i * 8;
    return v;
}

void pci_device_config_write(struct pci_device *dev, unsigned offset, uint32_t value, unsigned size)
{
    unsigned state = pm_state(dev);

    if (!range_fits(offset, size, PCI_CONFIG_SIZE))
        return;
    for (unsigned i = 0; i < size; i++) {
        uint8_t byte = (uint8_t)(value >> i * 8);
        uint8_t writable = dev->write_mask[offset + i];
        uint8_t *config = &dev->config[offset + i];
        *config = (*config & (uint8_t)~writable) | (byte & writable);
        *config &= (uint8_t) ~(byte & dev->clear_mask[offset + i]);
    }
    /* D1 and D2 are not there: the write is complete, and changes nothing (PM 1.2, 3.2.4) */
    if (pm_state(dev) != PM_D0 && pm_state(dev) != PM_D3HOT)
        dev->config[dev->pm_control] =
            (uint8_t)((dev->config[dev->pm_control] & ~PM_STATE) | state);
    if (offset < PCI_BAR0 + 4 * PCI_BAR_COUNT || pm_state(dev) != state)
        pci_device_decode_bars(dev);
    if (dev->msix != NULL)
        pci_msix_follow_config(dev->msix);
    if (dev->ops != NULL && dev->ops->config_written != NULL)
        dev->ops->config_written(dev, offset, size);
}
