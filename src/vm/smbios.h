/*
 * smbios.h - what kind of machine this is, for people and for lists of quirks
 */
#ifndef DOPPEL_VM_SMBIOS_H
#define DOPPEL_VM_SMBIOS_H

#include <stdbool.h>
#include <stdint.h>

struct space;

#define SMBIOS_ENTRY_SIZE 24
#define SMBIOS_TABLE_MAX 512

/* The structures, and an entry point that still lacks their address and its checksum. */
struct smbios_image {
    uint8_t entry[SMBIOS_ENTRY_SIZE];
    uint8_t table[SMBIOS_TABLE_MAX];
    unsigned size;
};

/* With firmware the structure that tells of it is the firmware's business. */
void smbios_build(bool has_firmware, struct smbios_image *image);

/* Write the entry point to MAP_SMBIOS_ADDR and the structures behind it. */
void smbios_write_tables(struct space *memory);

#endif
