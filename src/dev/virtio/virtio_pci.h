/*
 * virtio_pci.h - a virtio device as a PCI function (modern only)
 *
 * BAR 4 holds the common configuration, interrupt status, device configuration and notification
 * areas; BAR 1 the MSI-X table: a vector for each queue and one for the configuration. Without
 * MSI-X the function interrupts by INTA.
 *
 * Threads: set-up by one thread. Lock order: host bridge, device, MSI-X or interrupt wires.
 *
 * Spec: VIRTIO 1.2, 4.1.
 */
#ifndef DOPPEL_DEV_VIRTIO_VIRTIO_PCI_H
#define DOPPEL_DEV_VIRTIO_VIRTIO_PCI_H

#include <stdint.h>

#include "base/err.h"

struct pci_host;
struct virtio_device;
struct virtio_pci;
struct virtio_pci_state;

/* `dev` was given to virtio_init and outlives the function. `class_device`: as in pci_ids. */
int virtio_pci_create(struct virtio_device *dev, uint16_t class_device, struct virtio_pci **out,
                      struct err *e);

/* NULL is allowed. After the function has left the bus. */
void virtio_pci_destroy(struct virtio_pci *function);

/* What it was made for. */
struct virtio_device *virtio_pci_device(const struct virtio_pci *function);

int virtio_pci_attach(struct virtio_pci *function, struct pci_host *host, unsigned slot,
                      struct err *e);

/* Take it off the bus again, with the device quiesced. No CPU runs. */
void virtio_pci_detach(struct virtio_pci *function);

/*
 * The function and the device behind it, as virtio_get_state and virtio_set_state: the device is
 * quiesced. It is not set before its bus's bridges are. No CPU runs.
 */
int virtio_pci_get_state(struct virtio_pci *function, struct virtio_pci_state *out, struct err *e);
int virtio_pci_set_state(struct virtio_pci *function, const struct virtio_pci_state *state,
                         struct err *e);

/* RST#: the function and the device behind it. No CPU runs. */
void virtio_pci_reset(struct virtio_pci *function);

#endif
