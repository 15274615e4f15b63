/*
 * acpi.c - the ACPI tables of the machine
 *
 * They are made in one piece that can stand anywhere: pointers are offsets into it, with a list of
 * where they are, and checksums are 0, with a list of what they cover. A kernel without firmware
 * finds the piece between MAP_TABLES_ADDR and 1 MiB, in RAM that the memory map calls reserved, the
 * RSDP first, where operating systems search for it; firmware places it as it likes.
 * Spec: ACPI 6.3, chapter 5; IA-PC HPET Specification 1.0a, 3.2.4; PCI Firmware
 * Specification 3.2, 4.1.
 */
#include <assert.h>
#include <string.h>

#include "base/bits.h"
#include "dev/irqchip/ioapic.h"
#include "dev/irqchip/lapic.h"
#include "dev/pci/pci_host.h"
#include "dev/platform/acpi_pm.h"
#include "dev/timer/hpet.h"
#include "dev/timer/mc146818.h"
#include "mem/space.h"
#include "vm/acpi.h"
#include "vm/machine_map.h"

/* clang-format off */
static const
#include "vm/dsdt.hex"
/* clang-format on */

#define HEADER_SIZE 36
#define FACS_SIZE 64
#define FADT_SIZE 276
#define HPET_SIZE 56
#define MCFG_SIZE 60
#define MADT_SIZE_MAX (HEADER_SIZE + 8 + 256 * 8 + 64)

#define FADT_WBINVD BIT(0)
#define FADT_PROC_C1 BIT(2)
#define FADT_SLP_BUTTON BIT(5)  /* none as a fixed feature */
#define FADT_FIX_RTC BIT(6)     /* no RTC wake status */
#define FADT_TMR_VAL_EXT BIT(8) /* the PM timer has 32 bits */
#define FADT_RESET_REG_SUP BIT(10)
#define FADT_HEADLESS BIT(12)
#define BOOT_ARCH_LEGACY_DEVICES BIT(0)
#define BOOT_ARCH_8042 BIT(1)
#define BOOT_ARCH_NO_VGA BIT(2)

#define AML_NAME 0x08
#define AML_DWORD 0x0c
#define AML_QWORD 0x0e

#define GAS_MEMORY 0
#define GAS_IO 1

#define MADT_PCAT_COMPAT 1
#define MADT_ACTIVE_HIGH_LEVEL 0xd

    static uint8_t
    acpi_checksum(const uint8_t *data, unsigned size)
{
    uint8_t sum = 0;

    for (unsigned i = 0; i < size; i++)
        sum = (uint8_t)(sum + data[i]);
    return (uint8_t)-sum;
}

static void acpi_fill_header(uint8_t *table, const char *signature, unsigned size, uint8_t revision)
{
    memcpy(table, signature, 4);
    store_le32(table + 4, size);
    table[8] = revision;
    table[9] = 0;
    memcpy(table + 10, "DOPPEL", 6);
    memcpy(table + 16, "DOPPELPC", 8);
    store_le32(table + 24, 1);
    memcpy(table + 28, "DOPL", 4);
    store_le32(table + 32, 1);
}

/* Append `size` bytes; returns their offset. */
static uint32_t acpi_append_bytes(struct acpi_image *image, const uint8_t *bytes, unsigned size)
{
    uint32_t at = (uint32_t)align_up(image->size, ACPI_IMAGE_ALIGN);

    assert(range_fits(at, size, ACPI_IMAGE_MAX));
    memcpy(image->tables + at, bytes, size);
    image->size = at + size;
    return at;
}

/* Append a table, whose checksum is to be made. */
static uint32_t acpi_append(struct acpi_image *image, uint8_t *table, unsigned size)
{
    assert(image->sum_count < ACPI_SUMS_MAX);
    table[9] = 0;
    uint32_t at = acpi_append_bytes(image, table, size);
    image->sums[image->sum_count++] = (struct acpi_sum){.start = at, .size = size, .at = at + 9};
    return at;
}

static void acpi_note_pointer(struct acpi_image *image, uint32_t at, uint8_t size)
{
    assert(image->pointer_count < ACPI_POINTERS_MAX);
    image->pointers[image->pointer_count++] = (struct acpi_pointer){.at = at, .size = size};
}

/* A generic address structure: `size` bytes of ports or memory, accessed as a whole. */
static void acpi_fill_gas(uint8_t *gas, uint8_t space_id, uint64_t addr, unsigned size,
                          uint8_t access_size)
{
    gas[0] = space_id;
    gas[1] = (uint8_t)(size * 8);
    gas[2] = 0;
    gas[3] = access_size;
    store_le64(gas + 4, addr);
}

static uint32_t acpi_add_facs(struct acpi_image *image)
{
    uint8_t facs[FACS_SIZE] = "FACS";

    /* no standard header and no checksum */
    store_le32(facs + 4, FACS_SIZE);
    facs[32] = 2;
    return acpi_append_bytes(image, facs, sizeof(facs));
}

/* Give Name (\\NAME, number) of the DSDT its value: `size` bytes behind the name and a prefix. */
static void dsdt_set(uint8_t *dsdt, const char *name, unsigned size, uint64_t value)
{
    uint8_t aml[6] = {AML_NAME, name[0], name[1],
                      name[2],  name[3], size == 4 ? AML_DWORD : AML_QWORD};
    uint8_t *found = memmem(dsdt, sizeof(dsdt_aml_code), aml, sizeof(aml));

    assert(found != NULL);
    memcpy(found + sizeof(aml), &value, size);
}

static uint32_t acpi_add_dsdt(struct acpi_image *image, const struct acpi_config *config)
{
    uint8_t dsdt[sizeof(dsdt_aml_code)];

    memcpy(dsdt, dsdt_aml_code, sizeof(dsdt));
    dsdt_set(dsdt, "PMIN", 4, config->window_addr);
    dsdt_set(dsdt, "PHMN", 8, config->high_window_addr);
    dsdt_set(dsdt, "PHMX", 8, config->high_window_end - 1);
    return acpi_append(image, dsdt, sizeof(dsdt));
}

/* The fixed registers: port, length, and where the two ways to say so are. */
static void fadt_set_block(uint8_t *fadt, unsigned port_at, unsigned length_at, unsigned gas_at,
                           unsigned offset, unsigned length, uint8_t access_size)
{
    store_le32(fadt + port_at, MAP_PM_PORT + offset);
    fadt[length_at] = (uint8_t)length;
    acpi_fill_gas(fadt + gas_at, GAS_IO, MAP_PM_PORT + offset, length, access_size);
}

static uint32_t acpi_add_fadt(struct acpi_image *image, uint32_t facs, uint32_t dsdt)
{
    uint8_t fadt[FADT_SIZE] = {0};

    acpi_fill_header(fadt, "FACP", sizeof(fadt), 6);
    fadt[131] = 3; /* ACPI 6.3 */
    store_le32(fadt + 36, facs);
    store_le32(fadt + 40, dsdt);
    store_le64(fadt + 140, dsdt);
    store_le16(fadt + 46, MAP_SCI_IRQ);
    store_le32(fadt + 48, ACPI_PM_SMI_PORT);
    fadt[52] = ACPI_PM_ENABLE;
    fadt[53] = ACPI_PM_DISABLE;
    fadt_set_block(fadt, 56, 88, 148, ACPI_PM1_EVT_OFFSET, ACPI_PM1_EVT_LEN, 2);
    fadt_set_block(fadt, 64, 89, 172, ACPI_PM1_CNT_OFFSET, ACPI_PM1_CNT_LEN, 2);
    fadt_set_block(fadt, 76, 91, 208, ACPI_PM_TMR_OFFSET, ACPI_PM_TMR_LEN, 3);
    fadt_set_block(fadt, 80, 92, 220, ACPI_PM_GPE0_OFFSET, ACPI_PM_GPE0_LEN, 1);
    store_le16(fadt + 96, 0xfff); /* worst latencies: no C2 and no C3 */
    store_le16(fadt + 98, 0xfff);
    fadt[108] = MC146818_CENTURY;
    store_le16(fadt + 109, BOOT_ARCH_LEGACY_DEVICES | BOOT_ARCH_8042 | BOOT_ARCH_NO_VGA);
    store_le32(fadt + 112, FADT_WBINVD | FADT_PROC_C1 | FADT_SLP_BUTTON | FADT_FIX_RTC |
                               FADT_TMR_VAL_EXT | FADT_RESET_REG_SUP | FADT_HEADLESS);
    acpi_fill_gas(fadt + 116, GAS_IO, PCI_HOST_RESET_PORT, 1, 1);
    fadt[128] = PCI_HOST_RESET_VALUE;
    uint32_t at = acpi_append(image, fadt, sizeof(fadt));
    acpi_note_pointer(image, at + 36, 4);
    acpi_note_pointer(image, at + 40, 4);
    acpi_note_pointer(image, at + 140, 8);
    return at;
}

static unsigned madt_add_override(uint8_t *entry, uint8_t irq, uint32_t gsi, uint16_t flags)
{
    entry[0] = 2;
    entry[1] = 10;
    entry[2] = 0; /* ISA */
    entry[3] = irq;
    store_le32(entry + 4, gsi);
    store_le16(entry + 8, flags);
    return 10;
}

static uint32_t acpi_add_madt(struct acpi_image *image, unsigned cpu_count)
{
    uint8_t madt[MADT_SIZE_MAX] = {0};
    unsigned at = HEADER_SIZE + 8;

    store_le32(madt + 36, LAPIC_DEFAULT_BASE);
    store_le32(madt + 40, MADT_PCAT_COMPAT);
    for (unsigned i = 0; i < cpu_count; i++, at += 8) {
        madt[at] = 0; /* processor local APIC */
        madt[at + 1] = 8;
        madt[at + 2] = (uint8_t)i;
        madt[at + 3] = (uint8_t)i;
        store_le32(madt + at + 4, 1);
    }
    madt[at] = 1; /* IOAPIC, its inputs from interrupt 0 on */
    madt[at + 1] = 12;
    madt[at + 2] = MAP_IOAPIC_ID;
    store_le32(madt + at + 4, IOAPIC_DEFAULT_BASE);
    at += 12;
    at += madt_add_override(madt + at, MAP_PIT_IRQ, MAP_PIT_GSI, 0);
    at += madt_add_override(madt + at, MAP_SCI_IRQ, MAP_SCI_IRQ, MADT_ACTIVE_HIGH_LEVEL);
    madt[at] = 4; /* NMI: LINT1 of every processor */
    madt[at + 1] = 6;
    madt[at + 2] = 0xff;
    madt[at + 5] = 1;
    at += 6;
    acpi_fill_header(madt, "APIC", at, 4);
    return acpi_append(image, madt, at);
}

static uint32_t acpi_add_hpet(struct acpi_image *image)
{
    uint8_t hpet[HPET_SIZE] = {0};

    acpi_fill_header(hpet, "HPET", sizeof(hpet), 1);
    store_le32(hpet + 36, HPET_BLOCK_ID);
    acpi_fill_gas(hpet + 40, GAS_MEMORY, HPET_DEFAULT_BASE, 8, 0);
    store_le16(hpet + 53, HPET_MIN_TICK);
    return acpi_append(image, hpet, sizeof(hpet));
}

/* One segment, bus 0 (PCI Firmware Specification 3.2, table 4-3). */
static uint32_t acpi_add_mcfg(struct acpi_image *image)
{
    uint8_t mcfg[MCFG_SIZE] = {0};

    acpi_fill_header(mcfg, "MCFG", sizeof(mcfg), 1);
    store_le64(mcfg + 44, MAP_ECAM_ADDR);
    return acpi_append(image, mcfg, sizeof(mcfg));
}

/* RSDT (4-byte pointers) or XSDT (8). */
static uint32_t acpi_add_root(struct acpi_image *image, const char *signature,
                              unsigned pointer_size, const uint64_t *tables, unsigned count)
{
    uint8_t root[HEADER_SIZE + 8 * 8] = {0};
    unsigned size = HEADER_SIZE + count * pointer_size;

    acpi_fill_header(root, signature, size, 1);
    for (unsigned i = 0; i < count; i++)
        memcpy(root + HEADER_SIZE + i * pointer_size, &tables[i], pointer_size);
    uint32_t at = acpi_append(image, root, size);
    for (unsigned i = 0; i < count; i++)
        acpi_note_pointer(image, at + HEADER_SIZE + i * pointer_size, (uint8_t)pointer_size);
    return at;
}

static void acpi_fill_rsdp(uint8_t *rsdp, uint32_t rsdt, uint32_t xsdt)
{
    memcpy(rsdp, "RSD PTR ", 8);
    memcpy(rsdp + 9, "DOPPEL", 6);
    rsdp[15] = 2;
    store_le32(rsdp + ACPI_RSDP_RSDT, rsdt);
    store_le32(rsdp + 20, ACPI_RSDP_SIZE);
    store_le64(rsdp + ACPI_RSDP_XSDT, xsdt);
}

void acpi_build(const struct acpi_config *config, struct acpi_image *image)
{
    memset(image, 0, sizeof(*image));
    uint32_t facs = acpi_add_facs(image);
    uint32_t dsdt = acpi_add_dsdt(image, config);
    uint64_t tables[] = {
        acpi_add_fadt(image, facs, dsdt),
        acpi_add_madt(image, config->cpu_count),
        acpi_add_hpet(image),
        acpi_add_mcfg(image),
    };
    uint32_t rsdt = acpi_add_root(image, "RSDT", 4, tables, ARRAY_SIZE(tables));
    uint32_t xsdt = acpi_add_root(image, "XSDT", 8, tables, ARRAY_SIZE(tables));

    acpi_fill_rsdp(image->rsdp, rsdt, xsdt);
}

/* ---- without firmware ---- */

static void pointer_add(uint8_t *at, unsigned size, uint64_t base)
{
    if (size == 4)
        store_le32(at, load_le32(at) + (uint32_t)base);
    else
        store_le64(at, load_le64(at) + base);
}

uint64_t acpi_write_tables(struct space *memory, const struct acpi_config *config)
{
    struct acpi_image image;
    uint64_t base = MAP_TABLES_ADDR + ACPI_IMAGE_ALIGN;

    _Static_assert(ACPI_IMAGE_MAX + ACPI_IMAGE_ALIGN <= MAP_SMBIOS_ADDR - MAP_TABLES_ADDR,
                   "the tables fit");
    acpi_build(config, &image);
    for (unsigned i = 0; i < image.pointer_count; i++)
        pointer_add(image.tables + image.pointers[i].at, image.pointers[i].size, base);
    for (unsigned i = 0; i < image.sum_count; i++) {
        const struct acpi_sum *sum = &image.sums[i];
        image.tables[sum->at] = acpi_checksum(image.tables + sum->start, sum->size);
    }
    pointer_add(image.rsdp + ACPI_RSDP_RSDT, 4, base);
    pointer_add(image.rsdp + ACPI_RSDP_XSDT, 8, base);
    image.rsdp[ACPI_RSDP_SUM] = acpi_checksum(image.rsdp, ACPI_RSDP_SUM_SIZE);
    image.rsdp[ACPI_RSDP_SUM_ALL] = acpi_checksum(image.rsdp, ACPI_RSDP_SIZE);
    space_write(memory, base, image.tables, image.size);
    space_write(memory, MAP_TABLES_ADDR, image.rsdp, sizeof(image.rsdp));
    return MAP_TABLES_ADDR;
}
