/*
 * smbios.h - what kind of machine this is, for people and for lists of quirks
 */
#ifndef DOPPEL_VM_SMBIOS_H
#define DOPPEL_VM_SMBIOS_H

struct space;

/* Write the entry point to MAP_SMBIOS_ADDR and the structures behind it. */
void smbios_write_tables(struct space *memory);

#endif
