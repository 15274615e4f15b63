/*
 * pci_state.h - the state of PCI functions, as something that outlives them
 *
 * Plain data: no pointers, nothing that can be computed from the rest, claims as bytes that are 0
 * or 1. Whoever stores or sends them writes their fields, not their bytes.
 *
 * A function whose state is put back has been made as the one was that it was taken of: what the
 * guest cannot write is compared, not set. Values that no guest could have brought about are
 * refused with an error that names the field, and then nothing has changed.
 */
#ifndef DOPPEL_DEV_PCI_PCI_STATE_H
#define DOPPEL_DEV_PCI_PCI_STATE_H

#include <stdint.h>

#include "dev/pci/pci.h"
#include "dev/pci/pci_msix.h"

struct pci_msix_vector_state {
    uint64_t address; /* of the message; a multiple of 4 */
    uint32_t data;
    uint8_t is_masked;
};

struct pci_msix_state {
    uint16_t count; /* vectors; 0: the function has no MSI-X */
    struct pci_msix_vector_state vectors[PCI_MSIX_VECTORS_MAX];
    /* a bit for each vector: it was signalled, and may not be sent as yet */
    uint64_t pending[PCI_MSIX_VECTORS_MAX / 64];
};

/*
 * Any function. Its BARs, its power state and whether MSI-X is enabled or masked are in `config`;
 * what the function keeps behind its BARs is not.
 */
struct pci_device_state {
    uint8_t config[PCI_CONFIG_SIZE]; /* PCI_STATUS_INTX in it has no meaning */
    uint8_t is_intx_asserted;        /* as the device drives its pin, disabled or not */
    struct pci_msix_state msix;
};

/* The host bridge. The interrupt wires of the bus follow from the functions' pins. */
struct pci_host_state {
    uint32_t address;      /* CONFIG_ADDRESS */
    uint8_t reset_control; /* as port CF9h reads */
    struct pci_device_state bridge;
};

#endif
