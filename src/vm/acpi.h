/*
 * acpi.h - the ACPI tables of the machine
 */
#ifndef DOPPEL_VM_ACPI_H
#define DOPPEL_VM_ACPI_H

#include <stdint.h>

struct space;

struct acpi_config {
    unsigned cpu_count;
    uint32_t window_addr;                       /* where the window for PCI BARs begins */
    uint64_t high_window_addr, high_window_end; /* the one above 4 GiB */
};

#define ACPI_IMAGE_MAX 0x8000
#define ACPI_IMAGE_ALIGN 64 /* of the image, and of each table in it */
#define ACPI_POINTERS_MAX 24
#define ACPI_SUMS_MAX 12

/* Of the RSDP: where its pointers and its checksums are; the first checksum covers a part. */
#define ACPI_RSDP_SIZE 36
#define ACPI_RSDP_SUM 8
#define ACPI_RSDP_SUM_SIZE 20
#define ACPI_RSDP_RSDT 16
#define ACPI_RSDP_XSDT 24
#define ACPI_RSDP_SUM_ALL 32

/* The tables before it is known where they will stand. */
struct acpi_image {
    uint8_t tables[ACPI_IMAGE_MAX];
    uint32_t size;
    uint8_t rsdp[ACPI_RSDP_SIZE]; /* its pointers are offsets into `tables` */
    struct acpi_pointer {
        uint32_t at;  /* in `tables`: an offset into `tables` */
        uint8_t size; /* 4 or 8 */
    } pointers[ACPI_POINTERS_MAX];
    unsigned pointer_count;
    struct acpi_sum {
        uint32_t start, size,
            at; /* in `tables`: the bytes that are to sum up to 0, and which makes them */
    } sums[ACPI_SUMS_MAX];
    unsigned sum_count;
};

void acpi_build(const struct acpi_config *config, struct acpi_image *image);

/* Write all tables to MAP_TABLES_ADDR and after; returns the address of the RSDP. */
uint64_t acpi_write_tables(struct space *memory, const struct acpi_config *config);

#endif
