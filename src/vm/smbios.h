/*
 * smbios.h - what kind of machine this is, for people and for lists of quirks
 */
#ifndef DOPPEL_VM_SMBIOS_H
#define DOPPEL_VM_SMBIOS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/uuid.h"

struct cpu_model;
struct space;

#define SMBIOS_ENTRY_SIZE 24
#define SMBIOS_TABLE_MAX 1024

struct smbios_config {
    bool has_firmware;              /* the structure that tells of it is then its own business */
    uint8_t uuid[UUID_SIZE];        /* all zero: the machine has none */
    const struct cpu_model *model;  /* one package with so many cores */
    uint64_t low_bytes, high_bytes; /* RAM from 0 on, and from MAP_HIGH_RAM_ADDR on; whole MiB */
};

/* The structures, and an entry point that still lacks their address and its checksum. */
struct smbios_image {
    uint8_t entry[SMBIOS_ENTRY_SIZE];
    uint8_t table[SMBIOS_TABLE_MAX];
    unsigned size;
};

void smbios_build(const struct smbios_config *config, struct smbios_image *image);

/* Write the entry point to MAP_SMBIOS_ADDR and the structures behind it. */
void smbios_write_tables(struct space *memory, const struct smbios_config *config);

#endif
