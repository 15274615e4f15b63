/*
 * pci_msix.h - MSI-X: message signalled interrupts of a PCI function
 *
 * The table and the pending bits have a memory BAR of their own. The function's command register
 * (bus master) and its capability (enable, function mask) say whether a message leaves at once;
 * else it is pending until they let it.
 *
 * Threads: set-up by one thread; pci_msix_notify from any, with the device's lock held or not.
 * Lock order: host bridge, device, MSI-X, local APICs.
 *
 * Spec: PCI Local Bus Specification 3.0, 6.8.2 and 6.8.3.
 */
#ifndef DOPPEL_DEV_PCI_PCI_MSIX_H
#define DOPPEL_DEV_PCI_PCI_MSIX_H

#include <stdbool.h>

#include "base/err.h"
#include "dev/pci/pci.h"

struct pci_msix_state;

#define PCI_MSIX_VECTORS_MAX 128 /* of 2048; what pci_state.h has room for */

/* Give `dev` a capability with `count` vectors, and BAR `bar` for the table. Before pci_host_add.
 */
int pci_msix_create(struct pci_device *dev, unsigned bar, unsigned count, struct pci_msix **out,
                    struct err *e);

/* NULL is allowed. After the function has left the bus. */
void pci_msix_destroy(struct pci_msix *msix);

/* Everything masked, nothing pending. */
void pci_msix_reset(struct pci_msix *msix);

/* Does the function signal by MSI-X, and no longer by INTx? */
bool pci_msix_is_enabled(struct pci_msix *msix);

/* Signal vector `index`; out of range and with MSI-X not enabled: nothing happens. */
void pci_msix_notify(struct pci_msix *msix, unsigned index);

/* The function's registers may have changed. With the host's lock held. */
void pci_msix_follow_config(struct pci_msix *msix);

/*
 * Table and pending bits (pci_state.h), for pci_host_*_device_state. `config` is what the
 * function's registers are going to be: a vector that may be sent by them is not pending.
 * pci_msix_set_state wants a state that was checked; pci_msix_follow_config comes after it.
 */
void pci_msix_get_state(struct pci_msix *msix, struct pci_msix_state *out);
int pci_msix_check_state(struct pci_msix *msix, const uint8_t *config,
                         const struct pci_msix_state *state, struct err *e);
void pci_msix_set_state(struct pci_msix *msix, const struct pci_msix_state *state);

#endif
