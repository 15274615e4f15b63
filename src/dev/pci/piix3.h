/*
 * piix3.h - PCI-to-ISA bridge (82371SB function 0): identity and PIRQ routing
 *
 * The legacy chips behind it are devices of their own; the bridge leads the PCI bus's interrupt
 * wires to the 8259's inputs as the guest's PIRQ route registers say. A board leads each wire
 * here and to the IOAPIC.
 *
 * Threads: set-up and reset by one thread; configuration under the host bridge's lock; PIRQ
 * inputs from any thread. Lock order: host bridge, this bridge, interrupt controllers.
 *
 * Spec: Intel 82371SB (PIIX3) data sheet, "PCI to ISA Bridge Configuration Registers".
 */
#ifndef DOPPEL_DEV_PCI_PIIX3_H
#define DOPPEL_DEV_PCI_PIIX3_H

#include <stdint.h>

#include "base/err.h"
#include "dev/irq.h"

struct pci_device_state;
struct pci_host;
struct piix3;

/* `isa` are the 8259's inputs; those that cannot be a PIRQ's target are never driven. */
int piix3_create(const struct irq_line isa[16], struct piix3 **out, struct err *e);
void piix3_destroy(struct piix3 *bridge);
void piix3_reset(struct piix3 *bridge);

/* Put it on the bus, normally as slot 1, function 0. */
int piix3_attach(struct piix3 *bridge, struct pci_host *host, unsigned slot, struct err *e);

/* As pci_host_get_device_state and pci_host_set_device_state, once it is on the bus. */
void piix3_get_state(struct piix3 *bridge, struct pci_device_state *out);
int piix3_set_state(struct piix3 *bridge, const struct pci_device_state *state, struct err *e);

/* PIRQA..D (0..3) as lines for irq_set. */
struct irq_line piix3_pirq_input(struct piix3 *bridge, unsigned pirq);

#endif
