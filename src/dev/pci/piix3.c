/*
 * piix3.c - PCI-to-ISA bridge (82371SB function 0): identity and PIRQ routing
 *
 * A PIRQ wire ends at the 8259 input that its route register names, or nowhere when bit 7 is
 * set. Several wires may share an input: the input is up while any of them is.
 *
 * Spec: Intel 82371SB (PIIX3) data sheet, "PCI to ISA Bridge Configuration Registers".
 */
#include "dev/pci/piix3.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/bits.h"
#include "dev/pci/pci_host.h"

#define PIRQ_COUNT 4
#define REG_IO_RECOVERY 0x4c
#define REG_XBUS 0x4e       /* 2 bytes */
#define REG_PIRQ_ROUTE 0x60 /* 4 bytes */
#define REG_TOP_OF_MEMORY 0x69
#define REG_MISC 0x6a    /* 2 bytes */
#define REG_DELAYED 0x82 /* passive release, delayed transactions */
#define ROUTE_DISABLED 0x80
#define ROUTE_MASK 0x8f
#define DELAYED_PASSIVE_RELEASE 0x02

/* IRQ 0, 1, 2, 8 and 13 cannot be a target ("PIRQx Route Control Registers"). */
#define ROUTE_TARGETS 0xdef8

struct piix3 {
    pthread_mutex_t lock;
    struct irq_line isa[16];
    struct pci_device dev;     /* under the host bridge's lock */
    uint8_t route[PIRQ_COUNT]; /* under lock: copy of the route registers */
    uint8_t pirq_levels;       /* under lock: one bit a wire, as the bus drives it */
    uint16_t isa_levels;       /* under lock: what the inputs were told last */
};

static void lines_update(struct piix3 *bridge)
{
    uint16_t levels = 0;
    for (unsigned i = 0; i < PIRQ_COUNT; i++)
        if ((bridge->pirq_levels & BIT(i)) && !(bridge->route[i] & ROUTE_DISABLED))
            levels |= BIT(bridge->route[i] & 15);
    levels &= ROUTE_TARGETS;
    for (unsigned i = 0; i < 16; i++)
        if ((levels ^ bridge->isa_levels) & BIT(i))
            irq_set(&bridge->isa[i], (levels & BIT(i)) != 0);
    bridge->isa_levels = levels;
}

static void pirq_set(void *sink, unsigned input, bool level)
{
    struct piix3 *bridge = sink;
    pthread_mutex_lock(&bridge->lock);
    if (level)
        bridge->pirq_levels |= BIT(input);
    else
        bridge->pirq_levels &= (uint8_t)~BIT(input);
    lines_update(bridge);
    pthread_mutex_unlock(&bridge->lock);
}

struct irq_line piix3_pirq_input(struct piix3 *bridge, unsigned pirq)
{
    assert(pirq < PIRQ_COUNT);
    return (struct irq_line){.set = pirq_set, .sink = bridge, .input = pirq};
}

static void routes_follow_config(struct piix3 *bridge)
{
    pthread_mutex_lock(&bridge->lock);
    for (unsigned i = 0; i < PIRQ_COUNT; i++)
        bridge->route[i] = bridge->dev.config[REG_PIRQ_ROUTE + i];
    lines_update(bridge);
    pthread_mutex_unlock(&bridge->lock);
}

static void config_written(struct pci_device *dev, unsigned offset, unsigned size)
{
    if (ranges_overlap(offset, size, REG_PIRQ_ROUTE, PIRQ_COUNT))
        routes_follow_config(CONTAINER_OF(dev, struct piix3, dev));
}

static void config_restored(struct pci_device *dev)
{
    routes_follow_config(CONTAINER_OF(dev, struct piix3, dev));
}

static const struct pci_device_ops piix3_ops = {.config_written = config_written,
                                                .config_restored = config_restored};

static void set_register(struct pci_device *dev, unsigned offset, uint8_t value, uint8_t writable)
{
    dev->config[offset] = value;
    dev->write_mask[offset] = writable;
}

/* "Default value" of each register. */
static void config_reset(struct pci_device *dev)
{
    static const struct pci_ids ids = {.vendor = 0x8086, .device = 0x7000, .class_device = 0x0601};

    pci_device_init(dev, "PCI-to-ISA bridge", &piix3_ops, &ids);
    /* I/O, memory and bus mastering cannot be switched off. */
    store_le16(dev->config + PCI_COMMAND, PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    store_le16(dev->write_mask + PCI_COMMAND, 0x0008); /* special cycles */
    store_le16(dev->config + PCI_STATUS, 0x0200);      /* medium DEVSEL# timing */
    dev->write_mask[PCI_INTERRUPT_LINE] = 0;
    set_register(dev, REG_IO_RECOVERY, 0x4d, 0x7f);
    set_register(dev, REG_XBUS, 0x03, 0xff);
    set_register(dev, REG_XBUS + 1, 0x00, 0x01);
    for (unsigned i = 0; i < PIRQ_COUNT; i++)
        set_register(dev, REG_PIRQ_ROUTE + i, ROUTE_DISABLED, ROUTE_MASK);
    set_register(dev, REG_TOP_OF_MEMORY, 0x02, 0xfe);
    set_register(dev, REG_MISC, 0x00, 0x81);
    /* As firmware leaves it: without passive release an ISA master can hold the bus for ever. */
    set_register(dev, REG_DELAYED, DELAYED_PASSIVE_RELEASE, 0x0f);
}

void piix3_reset(struct piix3 *bridge)
{
    struct pci_host *host = bridge->dev.host;
    uint8_t devfn = bridge->dev.devfn;
    uint8_t header = bridge->dev.config[PCI_HEADER_TYPE];

    config_reset(&bridge->dev);
    bridge->dev.host = host;
    bridge->dev.devfn = devfn;
    bridge->dev.config[PCI_HEADER_TYPE] = header;
    routes_follow_config(bridge);
}

int piix3_create(const struct irq_line isa[16], struct piix3 **out, struct err *e)
{
    struct piix3 *bridge = calloc(1, sizeof(*bridge));
    if (bridge == NULL)
        return err_set(e, ENOMEM, "make the PCI-to-ISA bridge");
    pthread_mutex_init(&bridge->lock, NULL);
    for (unsigned i = 0; i < 16; i++)
        bridge->isa[i] = isa[i];
    config_reset(&bridge->dev);
    routes_follow_config(bridge);
    *out = bridge;
    return 0;
}

void piix3_destroy(struct piix3 *bridge)
{
    if (bridge == NULL)
        return;
    pthread_mutex_destroy(&bridge->lock);
    free(bridge);
}

void piix3_get_state(struct piix3 *bridge, struct pci_device_state *out)
{
    pci_host_get_device_state(bridge->dev.host, &bridge->dev, out);
}

int piix3_set_state(struct piix3 *bridge, const struct pci_device_state *state, struct err *e)
{
    return pci_host_set_device_state(bridge->dev.host, &bridge->dev, state, e);
}

int piix3_attach(struct piix3 *bridge, struct pci_host *host, unsigned slot, struct err *e)
{
    return pci_host_add(host, &bridge->dev, slot, 0, e);
}
