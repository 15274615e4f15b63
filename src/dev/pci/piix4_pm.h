/*
 * piix4_pm.h - power management function (82371AB function 3): where the PM registers are
 *
 * Firmware and operating systems without ACPI look here for the base of the ACPI registers and for
 * the PM timer. The base is fixed and its decoding always on, so that what the ACPI tables say is
 * true whatever the guest writes. APMC_EN is set and stays so: firmware takes that for system
 * management mode being set up already, and there is none to set up. There is no SMBus: its
 * registers read as 0.
 *
 * Threads: as other PCI functions, under the host bridge's lock.
 *
 * Spec: Intel 82371AB (PIIX4) data sheet, "Power Management PCI Configuration Registers".
 */
#ifndef DOPPEL_DEV_PCI_PIIX4_PM_H
#define DOPPEL_DEV_PCI_PIIX4_PM_H

#include <stdint.h>

#include "base/err.h"

struct pci_device_state;
struct pci_host;
struct piix4_pm;

/* The registers themselves are acpi_pm's, at `pm_base`; the SCI is `sci_irq`. */
int piix4_pm_create(uint16_t pm_base, uint8_t sci_irq, struct piix4_pm **out, struct err *e);
void piix4_pm_destroy(struct piix4_pm *pm);
void piix4_pm_reset(struct piix4_pm *pm);

/* Put it on the bus, normally as function 3 of the PCI-to-ISA bridge's slot. */
int piix4_pm_attach(struct piix4_pm *pm, struct pci_host *host, unsigned slot, struct err *e);

/* As pci_host_get_device_state and pci_host_set_device_state, once it is on the bus. */
void piix4_pm_get_state(struct piix4_pm *pm, struct pci_device_state *out);
int piix4_pm_set_state(struct piix4_pm *pm, const struct pci_device_state *state, struct err *e);

#endif
