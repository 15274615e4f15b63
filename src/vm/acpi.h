/*
 * acpi.h - the ACPI tables of the machine
 */
#ifndef DOPPEL_VM_ACPI_H
#define DOPPEL_VM_ACPI_H

#include <stdint.h>

struct space;

/* Write all tables to MAP_TABLES_ADDR and after; returns the address of the RSDP. */
uint64_t acpi_write_tables(struct space *memory, unsigned cpu_count);

#endif
