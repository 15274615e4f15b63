/*
 * machine_map.h - where things are on the machine: addresses, ports, interrupts
 *
 * Plain numbers only: the ASL compiler reads this file too.
 */
#ifndef DOPPEL_VM_MACHINE_MAP_H
#define DOPPEL_VM_MACHINE_MAP_H

/* RAM; what does not fit below the hole goes on at 4 GiB */
#define MAP_BASE_RAM_END 0xa0000
#define MAP_EBDA_ADDR 0x9fc00 /* reserved up to MAP_BASE_RAM_END, as by a BIOS */
#define MAP_TABLES_ADDR 0xe0000
#define MAP_SMBIOS_ADDR 0xf0000 /* where it is searched for; the ACPI tables end before */
#define MAP_TABLES_END 0x100000
#define MAP_EXTENDED_ADDR 0x100000
#define MAP_LOW_RAM_MAX 0xc0000000
#define MAP_HIGH_RAM_ADDR 0x100000000
#define MAP_ROM_MAX 0x1000000 /* firmware's ROM ends at 4 GiB */

/*
 * The windows for PCI BARs. The first begins behind RAM, at 2 GiB at the lowest, where OVMF starts
 * to assign addresses; SeaBIOS assigns them downwards from the end of the second.
 */
#define MAP_PCI_WINDOW_MIN 0x80000000
#define MAP_PCI_WINDOW_ADDR 0xc0000000 /* with all of the RAM that fits below */
#define MAP_PCI_WINDOW_LAST 0xfbffffff
#define MAP_PCI_WINDOW_SIZE 0x3c000000
#define MAP_ECAM_ADDR 0xfc000000 /* configuration space of bus 0 */
#define MAP_ECAM_SIZE 0x100000
#define MAP_PCI_WINDOW2_ADDR 0xfc100000
#define MAP_PCI_WINDOW2_LAST 0xfebfffff
#define MAP_PCI_WINDOW2_SIZE 0x2b00000
/* the third begins behind the RAM above 4 GiB and ends where addresses do: these are placeholders
 */
#define MAP_PCI_HIGH_WINDOW_ADDR 0x800000000
#define MAP_PCI_HIGH_WINDOW_LAST 0xfffffffff
#define MAP_PCI_HIGH_WINDOW_SIZE 0x800000000
#define MAP_PCI_PORTS_ADDR 0x1000 /* below, chips of the platform decode ports */
#define MAP_PCI_PORTS_LAST 0xffff
#define MAP_PCI_PORTS_SIZE 0xf000
#define MAP_IOAPIC_ID 0
#define MAP_HPET_ADDR 0xfed00000
#define MAP_HPET_SIZE 0x400

/* ports that the ACPI tables name; the others are where the chips' headers say */
#define MAP_FPU_PORT 0xf0
#define MAP_COM1_PORT 0x3f8
#define MAP_PM_PORT 0x600
#define MAP_PM_SIZE 0x40

/* interrupts, as ISA numbers; the IOAPIC's inputs are the same but for the timer's */
#define MAP_PIT_IRQ 0
#define MAP_PIT_GSI 2
#define MAP_KEYBOARD_IRQ 1
#define MAP_COM1_IRQ 4
#define MAP_RTC_IRQ 8
#define MAP_SCI_IRQ 9
#define MAP_MOUSE_IRQ 12
#define MAP_FERR_IRQ 13

/* where firmware routes PIRQA and C, and PIRQB and D, for guests that use the 8259s */
#define MAP_PIRQ_AC_IRQ 10
#define MAP_PIRQ_BD_IRQ 11

/* PIRQA..D end at four IOAPIC inputs of their own, the HPET's comparators at the next four */
#define MAP_ISA_BRIDGE_SLOT 1
#define MAP_RNG_SLOT 2
#define MAP_DISK_SLOT 3 /* and 15 behind it */
#define MAP_NET_SLOT 19
#define MAP_SHARE_SLOT 24 /* and 7 behind it */
#define MAP_CONSOLE_SLOT 21
#define MAP_BALLOON_SLOT 22
#define MAP_VSOCK_SLOT 23
#define MAP_PIRQ_GSI 16
#define MAP_HPET_GSI_MASK 0x00f00000

/* \_S5 */
#define MAP_SLP_TYP_S5 5

#endif
