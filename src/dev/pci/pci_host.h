/*
 * pci_host.h - 440FX-like host bridge (00:00.0), bus 0: configuration by mechanism 1 and through
 * a memory window (ECAM), and the windows in which BARs answer
 *
 * The bridge also decodes the reset control register at port CF9h: it lies within CONFIG_ADDRESS
 * and is told apart by the access's size. What is not there reads as all ones.
 *
 * Threads: set-up and reset by one thread; accesses come through the space, which takes the
 * bridge's lock. Interrupt lines are driven, and `reset` is called, with that lock held;
 * `reset` must not call back.
 *
 * Spec: PCI Local Bus Specification 3.0, 3.2.2.3.2; Intel 82441FX data sheet; 82371SB (PIIX3),
 * "Reset Control Register".
 */
#ifndef DOPPEL_DEV_PCI_PCI_HOST_H
#define DOPPEL_DEV_PCI_PCI_HOST_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "dev/irq.h"
#include "dev/pci/pci.h"

struct pci_device_state;
struct pci_host;
struct pci_host_state;
struct space;

#define PCI_HOST_PORT 0xcf8 /* 8 ports */
/* For the FADT: RESET_REG and RESET_VALUE. */
#define PCI_HOST_RESET_PORT 0xcf9
#define PCI_HOST_RESET_VALUE 0x06

#define PCI_HOST_PAM_COUNT 7

/* Where a write of PCI_BELL_SIZE bytes of memory may be one to `fd` (struct pci_bell) instead. */
struct pci_host_bell {
    uint64_t addr;
    int fd;
};
/* Those of further devices are left to their windows. */
#define PCI_HOST_BELLS_MAX 256

struct pci_host_config {
    /*
     * The four interrupt wires of the bus (PIRQA..D) after the swizzle that firmware expects of
     * this chip set: INTx pin p of slot s drives wire (s - 1 + p) mod 4, p = 0 for INTA.
     */
    struct irq_line pirq[4];
    void (*reset)(void *ctx); /* through port CF9h */
    /*
     * The PAM registers (59h to 5fh), which say what 0xc0000 to 0xfffff is: after the guest wrote
     * to them, and at reset. The bridge's lock is held; it must not call back. NULL: nobody
     * follows.
     */
    void (*pam_changed)(void *ctx, const uint8_t pam[PCI_HOST_PAM_COUNT]);
    /*
     * The guest has moved BARs: these are all bells that it can reach from now on, each at an
     * address of its own. Any thread, the bridge's lock held. NULL: nobody rings them.
     */
    void (*bells_moved)(void *ctx, const struct pci_host_bell *bells, unsigned count);
    /* A function's message signalled interrupt. Any thread, the function's lock held. */
    void (*send_msi)(void *ctx, uint64_t address, uint32_t data);
    void *ctx;
};

int pci_host_create(const struct pci_host_config *config, struct pci_host **out, struct err *e);

/* The devices on the bus are not owned. After the space no longer leads here. NULL is allowed. */
void pci_host_destroy(struct pci_host *host);

/* The bridge's own registers; devices are reset by their owners. */
void pci_host_reset(struct pci_host *host);

int pci_host_map(struct pci_host *host, struct space *ports, uint16_t base, struct err *e);

/*
 * Configuration space of bus 0 as memory, 4 KiB a function (PCI Firmware Specification 3.2, 4.1);
 * behind the 256 bytes of a conventional function there is nothing.
 */
#define PCI_HOST_ECAM_SIZE 0x100000
int pci_host_map_ecam(struct pci_host *host, struct space *memory, uint64_t base, struct err *e);

/*
 * [base, base + size) of `space` leads to the bus: BARs that the guest has put inside of it
 * answer there. Where two of them overlap, that of the lower slot and index does.
 */
int pci_host_map_window(struct pci_host *host, struct space *space, bool is_io, uint64_t base,
                        uint64_t size, struct err *e);

/*
 * Put a function on the bus: slot 0..31, function 0..7, not taken yet (-EEXIST). A function
 * other than 0 makes function 0 of its slot a multi-function device. Set-up.
 */
int pci_host_add(struct pci_host *host, struct pci_device *dev, unsigned slot, unsigned function,
                 struct err *e);

/* A BAR answers elsewhere: bells_moved, if that concerns any bell. With the bridge's lock held. */
void pci_host_follow_bells(struct pci_host *host);

/*
 * RST#: registers as they were when the function was put on the bus, BARs nowhere, MSI-X off,
 * INTx not asserted.
 */
void pci_host_reset_device(struct pci_host *host, struct pci_device *dev);

/*
 * What the bus knows of a function (pci_state.h), and what of itself. The function's owner takes
 * and puts back what is behind its BARs. Putting back drives the function's pin, and calls the
 * board as the guest's writes would. On failure nothing has changed. No CPU runs.
 */
void pci_host_get_device_state(struct pci_host *host, struct pci_device *dev,
                               struct pci_device_state *out);
int pci_host_check_device_state(struct pci_host *host, struct pci_device *dev,
                                const struct pci_device_state *state, struct err *e);
int pci_host_set_device_state(struct pci_host *host, struct pci_device *dev,
                              const struct pci_device_state *state, struct err *e);
void pci_host_get_state(struct pci_host *host, struct pci_host_state *out);
int pci_host_set_state(struct pci_host *host, const struct pci_host_state *state, struct err *e);

/* The function leaves the bus: what it was found at is nowhere. No CPU runs. */
void pci_host_remove(struct pci_host *host, struct pci_device *dev);

/* A message signalled interrupt of a function. Any thread. */
void pci_host_send_msi(struct pci_host *host, uint64_t address, uint32_t data);

/*
 * Drive the function's INTx pin (config's interrupt pin says which). Any thread, with the
 * device's or the host's lock held or not: the wires have a lock of their own, which comes after
 * both and before the interrupt controllers'.
 */
void pci_host_set_intx(struct pci_host *host, struct pci_device *dev, bool level);

#endif
