/*
 * board_state.h - the state of all that is on the machine's PCI bus, and of what firmware talks to
 *
 * Plain data; dev/pci/pci_state.h and dev/virtio/virtio_state.h say what it consists of, decision
 * 0025 why. Memory, processors and the chips of the platform are not in it.
 *
 * Threads: the main loop's, with the machine paused (vm_pause) from before board_quiesce_pci until
 * after board_resume_pci.
 */
#ifndef DOPPEL_VM_BOARD_STATE_H
#define DOPPEL_VM_BOARD_STATE_H

#include <stdint.h>

#include "base/err.h"
#include "dev/pci/pci_state.h"
#include "dev/platform/fw_cfg.h"
#include "dev/platform/pflash.h"
#include "dev/virtio/virtio_state.h"
#include "vm/vm.h"

struct board;

/* Entropy, network, console, balloon, sockets, and as many disks and folders as there may be. */
#define BOARD_FUNCTIONS_MAX (5u + VM_DISKS_MAX + VM_SHARES_MAX)

struct board_pci_state {
    struct pci_host_state host;
    struct pci_device_state isa_bridge, pm_function;
    uint8_t function_count;
    uint8_t slots[BOARD_FUNCTIONS_MAX]; /* of each, where it is on the bus; rising */
    struct virtio_pci_state functions[BOARD_FUNCTIONS_MAX];
    uint8_t has_fw_cfg, has_vars;
    struct fw_cfg_state fw_cfg; /* has_fw_cfg */
    struct pflash_state vars;   /* has_vars: UEFI's variables */
};

/*
 * Bring all devices to rest, each within `timeout_ns`; then what they have posted to the loop runs
 * out at its next turn. On failure all go on.
 */
int board_quiesce_pci(struct board *board, uint64_t timeout_ns, struct err *e);

/* Let all go on, those that are not at rest too. */
void board_resume_pci(struct board *board);

/* All of them, at rest. An error when one of them cannot be carried, which the message names. */
int board_get_pci_state(struct board *board, struct board_pci_state *out, struct err *e);

/*
 * Into a machine that was made with the same configuration, and that is at rest as after its
 * reset. Interrupt controllers have their state by now; wires and the memory map follow. On
 * failure the machine is to be reset or destroyed: part of it may have its state by then.
 */
int board_set_pci_state(struct board *board, const struct board_pci_state *state, struct err *e);

#endif
