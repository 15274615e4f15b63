/*
 * pci.h - a conventional PCI function as its bus sees it
 *
 * A device model embeds a struct pci_device, fills its configuration space with the helpers
 * here, and registers it with the host bridge. Configuration writes go through three masks, so
 * that most devices need no code at all: bits in write_mask are stored, bits in clear_mask are
 * cleared by writing one, all others are read-only.
 *
 * Threads: filled by set-up; then under the host bridge's lock, which is held while the ops are
 * called (lock order: host bridge, device, interrupt controllers).
 *
 * Spec: PCI Local Bus Specification 3.0, chapter 6.
 */
#ifndef DOPPEL_DEV_PCI_PCI_H
#define DOPPEL_DEV_PCI_PCI_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "mem/space.h"

#define PCI_CONFIG_SIZE 256
#define PCI_VENDOR_ID 0x00
#define PCI_DEVICE_ID 0x02
#define PCI_COMMAND 0x04
#define PCI_COMMAND_IO 0x0001
#define PCI_COMMAND_MEMORY 0x0002
#define PCI_COMMAND_MASTER 0x0004
#define PCI_COMMAND_PARITY 0x0040
#define PCI_COMMAND_SERR 0x0100
#define PCI_COMMAND_INTX_DISABLE 0x0400
#define PCI_STATUS 0x06
#define PCI_STATUS_INTX 0x0008
#define PCI_REVISION 0x08
#define PCI_CLASS_PROG 0x09
#define PCI_CLASS_DEVICE 0x0a
#define PCI_HEADER_TYPE 0x0e
#define PCI_HEADER_MULTIFUNCTION 0x80
#define PCI_STATUS_CAPABILITIES 0x0010
#define PCI_BAR0 0x10
#define PCI_BAR_COUNT 6
#define PCI_CAPABILITIES 0x34
#define PCI_CAP_PM 0x01
#define PCI_CAP_VENDOR 0x09
#define PCI_CAP_MSIX 0x11
#define PCI_SUBSYSTEM_VENDOR_ID 0x2c
#define PCI_SUBSYSTEM_ID 0x2e
#define PCI_INTERRUPT_LINE 0x3c
#define PCI_INTERRUPT_PIN 0x3d

#define PCI_DEVFN(slot, function) ((slot) << 3 | (function))
#define PCI_DEVFN_COUNT 256
#define PCI_SLOT_COUNT 32

struct pci_device;
struct pci_host;
struct pci_msix;

/* Any member may be NULL. `offset` and `size` are within the configuration space. */
struct pci_device_ops {
    /* After a guest's write changed `config`: apply what it means (BARs, command, ...). */
    void (*config_written)(struct pci_device *dev, unsigned offset, unsigned size);
    /* Before a guest's read: bring `config` up to date where it is computed. */
    void (*config_reading)(struct pci_device *dev, unsigned offset, unsigned size);
    /* All of `config` was put back, and nothing of it is to be carried out: follow it. */
    void (*config_restored)(struct pci_device *dev);
};

enum pci_bar_kind { PCI_BAR_NONE, PCI_BAR_IO, PCI_BAR_MEM32, PCI_BAR_MEM64 };

/* A base address register and what answers behind it. */
struct pci_bar {
    enum pci_bar_kind kind;
    uint64_t size;
    struct space_window window;
    /* where it answers; UINT64_MAX: nowhere. Written under the host's lock, read without. */
    _Atomic uint64_t addr;
};

/*
 * A register behind a BAR of which a write of 16 bits means nothing but "wake up": whoever serves
 * it waits for `fd`, an eventfd of the device's. What carries out the guest's writes may write to
 * that instead of calling the window, or not, as it likes; other accesses go to the window.
 */
struct pci_bell {
    unsigned bar;
    uint32_t offset;
    int fd;
};
#define PCI_BELL_SIZE 2u

struct pci_device {
    const struct pci_device_ops *ops; /* NULL: none */
    const char *name;                 /* for messages; outlives the device */
    struct pci_host *host;            /* set by pci_host_add */
    uint8_t devfn;                    /* set by pci_host_add */
    bool is_intx_asserted;            /* under the host's wire lock: as the device drives it */
    bool is_intx_enabled;             /* under the host's wire lock: as its registers say */
    uint8_t config[PCI_CONFIG_SIZE];
    uint8_t initial[PCI_CONFIG_SIZE]; /* config as it is after reset */
    uint8_t write_mask[PCI_CONFIG_SIZE];
    uint8_t clear_mask[PCI_CONFIG_SIZE];
    uint8_t capabilities_end; /* where the next capability may start */
    uint8_t pm_control;       /* the power management capability's PMCSR; 0: it has none */
    struct pci_bar bars[PCI_BAR_COUNT];
    struct pci_msix *msix;        /* NULL: none */
    const struct pci_bell *bells; /* the device's; fixed once it is on the bus */
    unsigned bell_count;
};

struct pci_ids {
    uint16_t vendor, device;
    uint16_t class_device; /* base class << 8 | sub-class */
    uint8_t prog_if, revision;
    uint16_t subsystem_vendor, subsystem;
};

/*
 * A type 0 header with the usual masks (command, status, interrupt line, cache line, latency). The
 * command's decode enables are read-only zeroes until pci_device_set_bar gives them a meaning
 * (6.2.2).
 */
void pci_device_init(struct pci_device *dev, const char *name, const struct pci_device_ops *ops,
                     const struct pci_ids *ids);

/*
 * Give the function a base address register: `size` is a power of two, at least 16 (memory) or
 * 4 (ports); a 64-bit memory BAR takes `index` and the one after it. `window` answers behind it,
 * from offset 0 to `size`; its lock comes after the host's.
 */
void pci_device_set_bar(struct pci_device *dev, unsigned index, enum pci_bar_kind kind,
                        uint64_t size, const struct space_window *window);

/*
 * Append a capability of `size` bytes (a multiple of 4, header included) to the list; returns
 * its offset. Set-up, before pci_host_add. Its body is zero and read-only until the caller says
 * otherwise in config and write_mask.
 */
unsigned pci_device_add_capability(struct pci_device *dev, uint8_t id, unsigned size);

/*
 * A power management capability that knows D0 and D3hot. In D3hot the function answers to
 * configuration accesses only: BARs are nowhere, it does not interrupt, and is no bus master. Back
 * in D0 it is as it was (No_Soft_Reset). States that it does not know are not entered (PCI Bus
 * Power Management Interface Specification 1.2, 3.2.4, 5.4.1).
 */
void pci_device_add_power_management(struct pci_device *dev);

/* Is it in D0? With the host's lock held. */
bool pci_device_is_powered(const struct pci_device *dev);

/* May it access memory by itself: command register, and power? With the host's lock held. */
bool pci_device_is_master(const struct pci_device *dev);

/* Would it be one, if its configuration space were `config`? */
bool pci_config_is_master(const struct pci_device *dev, const uint8_t *config);

/*
 * Could `config` be the function's configuration space? The guest changes what the masks let it,
 * and the power state is one that there is.
 */
int pci_device_check_config(const struct pci_device *dev, const uint8_t *config, struct err *e);

/*
 * Where the guest has put BAR `index`: UINT64_MAX when its decoding is off in the command
 * register, or the function is not in D0. With the host's lock held.
 */
uint64_t pci_device_bar_addr(const struct pci_device *dev, unsigned index);

/* Let the BARs follow the registers: they answer where these say. With the host's lock held. */
void pci_device_decode_bars(struct pci_device *dev);

/* Configuration accesses, through the masks and the ops. With the host's lock held. */
uint32_t pci_device_config_read(struct pci_device *dev, unsigned offset, unsigned size);
void pci_device_config_write(struct pci_device *dev, unsigned offset, uint32_t value,
                             unsigned size);

#endif
