/*
 * firmware_config.c - what firmware is told of the machine, through fw_cfg
 *
 * RAM, processors, the order in which to boot, the ACPI and SMBIOS tables. Where the tables stand
 * firmware decides: a list of commands tells it to allocate room for each file, to add the address
 * of one to pointers in another, and to make checksums.
 *
 * Spec: QEMU docs/specs/fw_cfg.rst; the loader's commands: QEMU, hw/acpi/bios-linker-loader.c
 * (description of the ABI), SeaBIOS, "Runtime config" in docs/Runtime_config.md.
 */
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/bits.h"
#include "dev/platform/fw_cfg.h"
#include "dev/timer/mc146818.h"
#include "vm/acpi.h"
#include "vm/firmware.h"
#include "vm/machine.h"
#include "vm/smbios.h"

#define CMOS_CPU_COUNT 0x5f /* less one */
#define CMOS_EQUIPMENT 0x14
#define EQUIPMENT_FPU 0x02
#define EQUIPMENT_MOUSE 0x04

/* ---- ACPI ---- */

#define FILE_RSDP "etc/acpi/rsdp"
#define FILE_TABLES "etc/acpi/tables"

#define COMMAND_SIZE 128
#define COMMAND_NAME_SIZE 56
#define COMMAND_ALLOCATE 1
#define COMMAND_POINTER 2
#define COMMAND_SUM 3
#define ZONE_HIGH 1
#define ZONE_FSEG 2
/* two files; pointers and sums of the tables; two of each in the RSDP */
#define COMMANDS_MAX (2 + ACPI_POINTERS_MAX + ACPI_SUMS_MAX + 4)

struct loader {
    uint8_t commands[COMMANDS_MAX][COMMAND_SIZE];
    unsigned count;
};

static uint8_t *loader_add(struct loader *loader, uint32_t command, const char *file)
{
    assert(loader->count < COMMANDS_MAX);
    uint8_t *c = loader->commands[loader->count++];

    store_le32(c, command);
    memcpy(c + 4, file, strlen(file));
    return c + 4 + COMMAND_NAME_SIZE;
}

static void loader_allocate(struct loader *loader, const char *file, uint32_t align, uint8_t zone)
{
    uint8_t *c = loader_add(loader, COMMAND_ALLOCATE, file);

    store_le32(c, align);
    c[4] = zone;
}

/* What stands at `at` of `file` is an offset into the tables; make it a pointer. */
static void loader_add_pointer(struct loader *loader, const char *file, uint32_t at, uint8_t size)
{
    uint8_t *c = loader_add(loader, COMMAND_POINTER, file);

    memcpy(c, FILE_TABLES, sizeof(FILE_TABLES));
    store_le32(c + COMMAND_NAME_SIZE, at);
    c[COMMAND_NAME_SIZE + 4] = size;
}

static void loader_add_sum(struct loader *loader, const char *file, uint32_t at, uint32_t start,
                           uint32_t size)
{
    uint8_t *c = loader_add(loader, COMMAND_SUM, file);

    store_le32(c, at);
    store_le32(c + 4, start);
    store_le32(c + 8, size);
}

static void loader_fill(struct loader *loader, const struct acpi_image *image)
{
    loader_allocate(loader, FILE_RSDP, 16, ZONE_FSEG);
    loader_allocate(loader, FILE_TABLES, ACPI_IMAGE_ALIGN, ZONE_HIGH);
    for (unsigned i = 0; i < image->pointer_count; i++)
        loader_add_pointer(loader, FILE_TABLES, image->pointers[i].at, image->pointers[i].size);
    for (unsigned i = 0; i < image->sum_count; i++)
        loader_add_sum(loader, FILE_TABLES, image->sums[i].at, image->sums[i].start,
                       image->sums[i].size);
    loader_add_pointer(loader, FILE_RSDP, ACPI_RSDP_RSDT, 4);
    loader_add_pointer(loader, FILE_RSDP, ACPI_RSDP_XSDT, 8);
    loader_add_sum(loader, FILE_RSDP, ACPI_RSDP_SUM, 0, ACPI_RSDP_SUM_SIZE);
    loader_add_sum(loader, FILE_RSDP, ACPI_RSDP_SUM_ALL, 0, ACPI_RSDP_SIZE);
}

static int describe_acpi(struct board *b, struct err *e)
{
    struct acpi_image image;
    struct loader loader = {0};
    struct acpi_config config;
    int ret;

    board_acpi_config(b, &config);
    acpi_build(&config, &image);
    loader_fill(&loader, &image);
    ret = fw_cfg_add_file(b->fw_cfg, FILE_RSDP, image.rsdp, sizeof(image.rsdp), e);
    if (ret == 0)
        ret = fw_cfg_add_file(b->fw_cfg, FILE_TABLES, image.tables, image.size, e);
    if (ret == 0)
        ret = fw_cfg_add_file(b->fw_cfg, "etc/table-loader", loader.commands,
                              loader.count * sizeof(loader.commands[0]), e);
    return ret;
}

/* ---- the rest ---- */

static int describe_smbios(struct board *b, struct err *e)
{
    struct smbios_config config;
    struct smbios_image image;
    int ret;

    board_smbios_config(b, &config);
    smbios_build(&config, &image);
    ret =
        fw_cfg_add_file(b->fw_cfg, "etc/smbios/smbios-anchor", image.entry, sizeof(image.entry), e);
    if (ret == 0)
        ret = fw_cfg_add_file(b->fw_cfg, "etc/smbios/smbios-tables", image.table, image.size, e);
    return ret;
}

#define E820_ENTRY_SIZE 20
#define E820_RAM 1

static int describe_memory(struct board *b, struct err *e)
{
    uint64_t size = b->vm->config.memory_bytes, low_end = MIN(size, MAP_LOW_RAM_MAX);
    uint8_t list[2 * E820_ENTRY_SIZE] = {0}, *high = list + E820_ENTRY_SIZE;

    store_le64(list + 8, low_end);
    store_le32(list + 16, E820_RAM);
    store_le64(high, MAP_HIGH_RAM_ADDR);
    store_le64(high + 8, size - low_end);
    store_le32(high + 16, E820_RAM);
    return fw_cfg_add_file(b->fw_cfg, "etc/e820", list,
                           size > low_end ? sizeof(list) : E820_ENTRY_SIZE, e);
}

/* Disks in the order in which they were given, then the network: as Open Firmware's paths. */
static int describe_boot_order(struct board *b, struct err *e)
{
    char list[(VM_DISKS_MAX + 1) * 64] = "";
    size_t at = 0;

    for (unsigned i = 0; i < b->vm->config.disk_count; i++)
        at += (size_t)snprintf(list + at, sizeof(list) - at, "/pci@i0cf8/scsi@%x/disk@0,0\n",
                               MAP_DISK_SLOT + i);
    if (b->net != NULL)
        at += (size_t)snprintf(list + at, sizeof(list) - at,
                               "/pci@i0cf8/ethernet@%x/ethernet-phy@0\n", MAP_NET_SLOT);
    if (at == 0)
        return 0;
    list[at - 1] = '\0'; /* the last line ends the file */
    return fw_cfg_add_file(b->fw_cfg, "bootorder", list, at, e);
}

static int describe_processors(struct board *b, struct err *e)
{
    unsigned count = b->vm->config.cpu_count;

    mc146818_set_byte(b->rtc, CMOS_CPU_COUNT, (uint8_t)(count - 1));
    mc146818_set_byte(b->rtc, CMOS_EQUIPMENT, EQUIPMENT_FPU | EQUIPMENT_MOUSE);
    return 0;
}

static int describe_settings(struct board *b, struct err *e)
{
    /* S0 and S5, and the numbers that the others would have */
    static const uint8_t states[6] = {128, 0, 0, 1, 2, 128};
    static const struct {
        unsigned key;
        uint64_t value;
        size_t size;
    } numbers[] = {
        {FW_CFG_KEY_NO_GRAPHICS, 1, 2},
        {FW_CFG_KEY_BOOT_MENU, 0, 2},
        {FW_CFG_KEY_IRQ0_OVERRIDE, 1, 1}, /* the timer is at IOAPIC input 2 */
    };
    int ret = 0;

    for (unsigned i = 0; ret == 0 && i < ARRAY_SIZE(numbers); i++)
        ret = fw_cfg_add_number(b->fw_cfg, numbers[i].key, numbers[i].value, numbers[i].size, e);
    if (ret == 0)
        ret = fw_cfg_add_file(b->fw_cfg, "etc/system-states", states, sizeof(states), e);
    /* SeaBIOS: no display adapter, so its console is the serial port */
    if (ret == 0)
        ret = fw_cfg_add_number_file(b->fw_cfg, "etc/sercon-port", MAP_COM1_PORT, 8, e);
    return ret;
}

int firmware_describe(struct board *b, struct err *e)
{
    static int (*const parts[])(struct board *, struct err *) = {
        describe_memory,     describe_processors, describe_settings,
        describe_boot_order, describe_acpi,       describe_smbios,
    };
    int ret = 0;

    for (unsigned i = 0; ret == 0 && i < ARRAY_SIZE(parts); i++)
        ret = parts[i](b, e);
    return ret;
}
