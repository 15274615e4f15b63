/*
 * piix4_pm.c - power management function (82371AB function 3): where the PM registers are
 *
 * Spec: Intel 82371AB (PIIX4) data sheet, "Power Management PCI Configuration Registers".
 */
#include "dev/pci/piix4_pm.h"

#include <errno.h>
#include <stdlib.h>

#include "base/bits.h"
#include "dev/pci/pci_host.h"

#define REG_PMBA 0x40 /* bit 0: ports */
#define REG_DEVACTB 0x58
#define REG_PMREGMISC 0x80
#define DEVACTB_APMC_EN BIT(25)
#define PMREGMISC_PMIOSE 0x01
#define FUNCTION 3

struct piix4_pm {
    struct pci_device dev;
};

int piix4_pm_create(uint16_t pm_base, uint8_t sci_irq, struct piix4_pm **out, struct err *e)
{
    static const struct pci_ids ids = {
        .vendor = 0x8086, .device = 0x7113, .class_device = 0x0680, .revision = 0x03};
    struct piix4_pm *pm = calloc(1, sizeof(*pm));

    if (pm == NULL)
        return err_set(e, ENOMEM, "make the power management function");
    pci_device_init(&pm->dev, "power management", NULL, &ids);
    store_le16(pm->dev.write_mask + PCI_COMMAND, PCI_COMMAND_IO);
    store_le16(pm->dev.config + PCI_STATUS, 0x0280); /* medium DEVSEL# timing */
    pm->dev.config[PCI_INTERRUPT_LINE] = sci_irq;
    pm->dev.config[PCI_INTERRUPT_PIN] = 1;
    store_le32(pm->dev.config + REG_PMBA, pm_base | 1u);
    store_le32(pm->dev.config + REG_DEVACTB, DEVACTB_APMC_EN);
    pm->dev.config[REG_PMREGMISC] = PMREGMISC_PMIOSE;
    *out = pm;
    return 0;
}

void piix4_pm_destroy(struct piix4_pm *pm)
{
    free(pm);
}

void piix4_pm_reset(struct piix4_pm *pm)
{
    pci_host_reset_device(pm->dev.host, &pm->dev);
}

void piix4_pm_get_state(struct piix4_pm *pm, struct pci_device_state *out)
{
    pci_host_get_device_state(pm->dev.host, &pm->dev, out);
}

int piix4_pm_set_state(struct piix4_pm *pm, const struct pci_device_state *state, struct err *e)
{
    return pci_host_set_device_state(pm->dev.host, &pm->dev, state, e);
}

int piix4_pm_attach(struct piix4_pm *pm, struct pci_host *host, unsigned slot, struct err *e)
{
    return pci_host_add(host, &pm->dev, slot, FUNCTION, e);
}
