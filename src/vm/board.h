/*
 * board.h - the machine's parts and how they are wired
 *
 * board_create is the one readable list of what is on the machine.
 */
#ifndef DOPPEL_VM_BOARD_H
#define DOPPEL_VM_BOARD_H

#include <stdint.h>

#include "backend/vhost/vhost_user.h"
#include "base/err.h"
#include "dev/irq.h"
#include "dev/pci/pci.h"
#include "mem/ram.h"
#include "vm/boot/boot.h"
#include "vm/machine_map.h"
#include "vm/shadow.h"
#include "vm/vm.h"

struct acpi_config;
struct engine;
struct engine_ops;
struct smbios_config;
struct vm;

/* One wire that ends at two inputs. */
struct board_wire {
    struct irq_line ends[2];
};

struct board {
    struct vm *vm;

    struct ram ram;
    struct vhost_user_region ram_regions[2]; /* for other processes */
    unsigned ram_region_count;
    struct boot_map map; /* what the guest is told of RAM */
    struct space *memory, *ports;
    struct shadow shadow; /* 0xc0000 to 0xfffff */
    uint8_t *reset_rom;   /* with the reset vector; NULL: firmware has it */
    struct vclock *clock;

    struct apic_bus *apic_bus;
    struct lapic *lapics[VM_CPUS_MAX];
    struct irq_line lint0[VM_CPUS_MAX];
    unsigned lapic_count;
    struct ioapic *ioapic;
    struct i8259 *pic;
    struct board_wire isa_wires[16];
    struct irq_line isa[16]; /* interrupt n of the ISA bus: 8259 and IOAPIC */

    struct i8254 *pit;
    struct hpet *hpet;
    struct mc146818 *rtc;
    struct uart16550 *com1;
    struct i8042 *kbc;
    struct ferr *ferr;
    struct acpi_pm *pm;
    struct debug_exit *debug_exit; /* these: NULL unless asked for */
    struct test_device *test_device;
    struct fw_cfg *fw_cfg;
    struct debug_port *debug_port;
    struct pflash *vars;
    struct space_switch *vars_switch;
    uint64_t vars_addr;
    _Atomic uint8_t vars_wanted; /* PFLASH_ROM or PFLASH_WINDOW */
    uint8_t vars_now;            /* what space and engine have */
    struct kvmclock *kvmclock;
    struct steal_time *steal_time;

    struct board_wire pirq_wires[4];
    struct piix3 *isa_bridge;
    struct piix4_pm *pm_function;
    struct pci_host *pci;
    struct virtio_pci *functions[PCI_SLOT_COUNT]; /* what is plugged in; NULL: a free slot */
    struct virtio_rng *rng;
    struct board_disk {
        struct block *block;
        struct virtio_blk *blk;
        struct virtio_vhost *vhost; /* instead of the two */
    } disks[VM_DISKS_MAX];
    struct netdev *netdevs[NETDEV_QUEUES_MAX]; /* queues of one network */
    unsigned netdev_count;
    struct virtio_net *net;
    struct virtio_vhost *net_vhost; /* instead of the two */
    struct board_share {
        struct share *share;
        struct virtio_fs *fs;
        struct virtio_vhost *vhost; /* instead of the two */
    } shares[VM_SHARES_MAX];
    struct virtio_console *console; /* NULL: no ports */
    struct virtio_balloon *balloon; /* NULL: none */
    struct virtio_vsock *vsock;     /* NULL: none */
};

/*
 * Make all parts, in the state after power-up. vm->config, vm->model and vm->vcpus are set;
 * nothing runs. On failure *board can be given to board_destroy.
 */
int board_create(struct board *board, struct vm *vm, struct err *e);

/* *board zeroed or filled in part is fine. */
void board_destroy(struct board *board);

/* RESET# to every chip; memory is left alone. vCPUs parked, the main loop's thread. */
void board_reset(struct board *board);

/*
 * Do what chips want of the memory map (vm_request_remap): in the space, and in the engine, which
 * may be NULL. No vCPU is in guest code.
 */
int board_apply_map(struct board *board, const struct engine_ops *ops, struct engine *engine,
                    struct err *e);

/*
 * What a BIOS leaves below 1 MiB: its data area and the ACPI tables. Returns the address of the
 * RSDP. After each reset, before a boot loader writes.
 */
uint64_t board_write_firmware_data(struct board *board);

/* What the SMBIOS tables have to know; it refers to the machine's own. */
void board_smbios_config(const struct board *board, struct smbios_config *config);

/* What the ACPI tables have to know. */
void board_acpi_config(const struct board *board, struct acpi_config *config);

/* The memory map that follows from the size of RAM. */
void board_make_map(uint64_t memory_bytes, struct boot_map *map);

#endif
