/*
 * smbios.c - SMBIOS structures: firmware, system, chassis, processor, memory, the serial port
 *
 * Strings that the machine has nothing to say for are left out (number 0), not made up.
 * Spec: DMTF DSP0134, SMBIOS Reference Specification 3.0, clause 7; each structure in full length.
 */
#include <assert.h>
#include <string.h>

#include "base/bits.h"
#include "cpu/model.h"
#include "mem/space.h"
#include "vm/machine_map.h"
#include "vm/smbios.h"

/* 7.1 */
#define CHARACTERISTICS_NOT_SUPPORTED BIT(3)
#define EXTENSION_1_ACPI 0x01
#define EXTENSION_2_VIRTUAL_MACHINE 0x10
/* 7.2 */
#define WAKE_UP_POWER_SWITCH 6
/* 7.4 */
#define CHASSIS_OTHER 1
#define STATE_SAFE 3
#define SECURITY_NONE 3
/* 7.5 */
#define PROCESSOR_CENTRAL 3
#define FAMILY_UNKNOWN 2
#define UPGRADE_OTHER 1
#define SOCKET_POPULATED_ENABLED 0x41
#define VOLTAGE_UNKNOWN 0x80 /* no volts: bit 7 with 0 */
#define NO_CACHE 0xffff
#define PROCESSOR_64BIT 0x04
#define PROCESSOR_MULTI_CORE 0x08
#define PROCESSOR_NX 0x20
/* 7.9 */
#define CONNECTOR_NONE 0
#define CONNECTOR_DB9_MALE 8
#define PORT_SERIAL_16550A 9
/* 7.17 */
#define LOCATION_OTHER 1
#define USE_SYSTEM_MEMORY 3
#define ECC_NONE 3
#define NO_HANDLE 0xfffe /* no error information is provided */
/* 7.18 */
#define WIDTH_UNKNOWN 0xffff
#define FORM_OTHER 1
#define MEMORY_RAM 7
#define DETAIL_OTHER 0x0002
#define SIZE_IS_EXTENDED 0x7fff

#define BRAND_SIZE 49

struct smbios_writer {
    uint8_t table[SMBIOS_TABLE_MAX];
    unsigned size;
    uint16_t handle; /* of the next */
};

/* Append a structure whose formatted part is `length` bytes; its fields start at offset 4. */
static uint8_t *smbios_add(struct smbios_writer *w, uint8_t type, uint8_t length)
{
    uint8_t *s = w->table + w->size;

    assert(range_fits(w->size, length, SMBIOS_TABLE_MAX));
    s[0] = type;
    s[1] = length;
    store_le16(s + 2, w->handle++);
    w->size += length;
    return s;
}

/* Strings follow the structure; it refers to them by number from 1 on. */
static void smbios_add_strings(struct smbios_writer *w, const char *const *strings, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        size_t size = strlen(strings[i]) + 1;
        assert(range_fits(w->size, size + 1, SMBIOS_TABLE_MAX));
        memcpy(w->table + w->size, strings[i], size);
        w->size += (unsigned)size;
    }
    /* an empty list is two zeroes, like the end of any other */
    w->size += count != 0 ? 1 : 2;
    assert(w->size <= SMBIOS_TABLE_MAX);
}

static void smbios_add_firmware(struct smbios_writer *w)
{
    static const char *const strings[] = {"doppel", DOPPEL_VERSION, "01/01/2026"};
    uint8_t *s = smbios_add(w, 0, 0x18);

    s[4] = 1;
    s[5] = 2;
    store_le16(s + 6, MAP_TABLES_ADDR >> 4);
    s[8] = 3;
    s[9] = (MAP_TABLES_END - MAP_TABLES_ADDR) / 65536 - 1;
    store_le64(s + 10, CHARACTERISTICS_NOT_SUPPORTED);
    s[0x12] = EXTENSION_1_ACPI;
    s[0x13] = EXTENSION_2_VIRTUAL_MACHINE;
    s[0x14] = s[0x15] = 0xff; /* the version is no number */
    s[0x16] = s[0x17] = 0xff; /* no embedded controller */
    smbios_add_strings(w, strings, ARRAY_SIZE(strings));
}

/* The first three fields of a UUID are little-endian here, in its text they are not (7.2.1). */
static void smbios_store_uuid(uint8_t *to, const uint8_t uuid[UUID_SIZE])
{
    static const uint8_t order[UUID_SIZE] = {3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15};

    for (unsigned i = 0; i < UUID_SIZE; i++)
        to[i] = uuid[order[i]];
}

static void smbios_add_system(struct smbios_writer *w, const struct smbios_config *config)
{
    static const char *const strings[] = {"doppel", "doppel PC", "1"};
    uint8_t *s = smbios_add(w, 1, 0x1b);

    s[4] = 1;
    s[5] = 2;
    s[6] = 3;
    smbios_store_uuid(s + 8, config->uuid);
    s[0x18] = WAKE_UP_POWER_SWITCH;
    smbios_add_strings(w, strings, ARRAY_SIZE(strings));
}

static void smbios_add_chassis(struct smbios_writer *w)
{
    static const char *const strings[] = {"doppel"};
    uint8_t *s = smbios_add(w, 3, 0x16);

    s[4] = 1;
    s[5] = CHASSIS_OTHER;
    s[9] = STATE_SAFE;
    s[10] = STATE_SAFE;
    s[11] = STATE_SAFE;
    s[12] = SECURITY_NONE;
    s[0x12] = 1; /* power cords */
    smbios_add_strings(w, strings, ARRAY_SIZE(strings));
}

/* ---- the processor ---- */

static struct cpuid_regs model_leaf(const struct cpu_model *model, uint32_t leaf)
{
    for (unsigned i = 0; i < model->leaf_count; i++)
        if (model->leaves[i].leaf == leaf)
            return model->leaves[i].regs;
    return (struct cpuid_regs){0};
}

/* Copy printable text without the blanks around it; a terminating zero follows. */
static void copy_text(char *to, const uint8_t *from, unsigned size)
{
    unsigned used = 0;

    for (unsigned i = 0; i < size && from[i] != '\0'; i++)
        if (from[i] > ' ' ? from[i] < 0x7f : used != 0)
            to[used++] = (char)from[i];
    while (used != 0 && to[used - 1] == ' ')
        used--;
    to[used] = '\0';
}

static void vendor_text(const struct cpu_model *model, char out[13])
{
    struct cpuid_regs r = model_leaf(model, 0);
    uint8_t bytes[12];

    store_le32(bytes, r.ebx);
    store_le32(bytes + 4, r.edx);
    store_le32(bytes + 8, r.ecx);
    copy_text(out, bytes, sizeof(bytes));
}

static void brand_text(const struct cpu_model *model, char out[BRAND_SIZE])
{
    uint8_t bytes[BRAND_SIZE - 1];

    for (unsigned i = 0; i < 3; i++) {
        struct cpuid_regs r = model_leaf(model, 0x80000002 + i);
        store_le32(bytes + 16 * i, r.eax);
        store_le32(bytes + 16 * i + 4, r.ebx);
        store_le32(bytes + 16 * i + 8, r.ecx);
        store_le32(bytes + 16 * i + 12, r.edx);
    }
    copy_text(out, bytes, sizeof(bytes));
}

static void smbios_add_processor(struct smbios_writer *w, const struct cpu_model *model)
{
    char vendor[13], brand[BRAND_SIZE];
    const char *strings[3] = {"CPU 0"};
    struct cpuid_regs identity = model_leaf(model, 1);
    uint8_t *s = smbios_add(w, 4, 0x30);
    unsigned count = 1;

    vendor_text(model, vendor);
    brand_text(model, brand);
    s[4] = 1;
    s[5] = PROCESSOR_CENTRAL;
    s[6] = FAMILY_UNKNOWN;
    if (vendor[0] != '\0') {
        strings[count++] = vendor;
        s[7] = (uint8_t)count;
    }
    store_le32(s + 8, identity.eax);
    store_le32(s + 0x0c, identity.edx);
    if (brand[0] != '\0') {
        strings[count++] = brand;
        s[0x10] = (uint8_t)count;
    }
    s[0x11] = VOLTAGE_UNKNOWN;
    store_le16(s + 0x14, (uint16_t)MIN(model->tsc_hz / 1000000, UINT64_C(0xffff)));
    store_le16(s + 0x16, load_le16(s + 0x14));
    s[0x18] = SOCKET_POPULATED_ENABLED;
    s[0x19] = UPGRADE_OTHER;
    store_le16(s + 0x1a, NO_CACHE);
    store_le16(s + 0x1c, NO_CACHE);
    store_le16(s + 0x1e, NO_CACHE);
    s[0x23] = s[0x24] = s[0x25] = (uint8_t)model->cpu_count; /* cores, enabled, threads */
    store_le16(s + 0x26, (cpu_model_has(model, CPU_FEATURE_LM) ? PROCESSOR_64BIT : 0) |
                             (model->cpu_count > 1 ? PROCESSOR_MULTI_CORE : 0) |
                             (cpu_model_has(model, CPU_FEATURE_NX) ? PROCESSOR_NX : 0));
    store_le16(s + 0x28, FAMILY_UNKNOWN);
    store_le16(s + 0x2a, (uint16_t)model->cpu_count);
    store_le16(s + 0x2c, (uint16_t)model->cpu_count);
    store_le16(s + 0x2e, (uint16_t)model->cpu_count);
    smbios_add_strings(w, strings, count);
}

static void smbios_add_serial_port(struct smbios_writer *w)
{
    static const char *const strings[] = {"COM1"};
    uint8_t *s = smbios_add(w, 8, 9);

    s[5] = CONNECTOR_NONE; /* inside */
    s[6] = 1;
    s[7] = CONNECTOR_DB9_MALE;
    s[8] = PORT_SERIAL_16550A;
    smbios_add_strings(w, strings, ARRAY_SIZE(strings));
}

/* ---- memory: one array with one module ---- */

static void smbios_add_range(struct smbios_writer *w, uint16_t array, uint64_t addr, uint64_t size)
{
    uint8_t *s = smbios_add(w, 19, 0x1f);

    /* in KiB; 2 TiB, where the extended fields would be needed, is more than a machine can have */
    store_le32(s + 4, (uint32_t)(addr >> 10));
    store_le32(s + 8, (uint32_t)((addr + size) >> 10) - 1);
    store_le16(s + 12, array);
    s[14] = 1; /* module in a row */
    smbios_add_strings(w, NULL, 0);
}

static void smbios_add_memory(struct smbios_writer *w, const struct smbios_config *config)
{
    static const char *const strings[] = {"DIMM 0"};
    uint64_t size = config->low_bytes + config->high_bytes;
    uint32_t size_mib = (uint32_t)(size >> 20);
    uint16_t array = w->handle;
    uint8_t *s = smbios_add(w, 16, 0x17);

    s[4] = LOCATION_OTHER;
    s[5] = USE_SYSTEM_MEMORY;
    s[6] = ECC_NONE;
    store_le32(s + 7, (uint32_t)(size >> 10));
    store_le16(s + 11, NO_HANDLE);
    store_le16(s + 13, 1);
    smbios_add_strings(w, NULL, 0);

    s = smbios_add(w, 17, 0x28);
    store_le16(s + 4, array);
    store_le16(s + 6, NO_HANDLE);
    store_le16(s + 8, WIDTH_UNKNOWN);
    store_le16(s + 10, WIDTH_UNKNOWN);
    store_le16(s + 12, (uint16_t)MIN(size_mib, SIZE_IS_EXTENDED));
    s[14] = FORM_OTHER;
    s[16] = 1;
    s[18] = MEMORY_RAM;
    store_le16(s + 19, DETAIL_OTHER);
    if (size_mib >= SIZE_IS_EXTENDED)
        store_le32(s + 0x1c, size_mib);
    smbios_add_strings(w, strings, ARRAY_SIZE(strings));

    smbios_add_range(w, array, 0, config->low_bytes);
    if (config->high_bytes != 0)
        smbios_add_range(w, array, MAP_HIGH_RAM_ADDR, config->high_bytes);
}

/* ---- all of it ---- */

void smbios_build(const struct smbios_config *config, struct smbios_image *image)
{
    struct smbios_writer w = {0};
    uint8_t entry[SMBIOS_ENTRY_SIZE] = "_SM3_";

    if (!config->has_firmware)
        smbios_add_firmware(&w);
    smbios_add_system(&w, config);
    smbios_add_chassis(&w);
    smbios_add_processor(&w, config->model);
    smbios_add_serial_port(&w);
    smbios_add_memory(&w, config);
    smbios_add(&w, 32, 11); /* boot status: no error */
    smbios_add_strings(&w, NULL, 0);
    smbios_add(&w, 127, 4); /* the end */
    smbios_add_strings(&w, NULL, 0);

    entry[6] = SMBIOS_ENTRY_SIZE;
    entry[7] = 3;
    entry[10] = 1;
    store_le32(entry + 12, w.size);
    memcpy(image->entry, entry, sizeof(entry));
    memcpy(image->table, w.table, w.size);
    image->size = w.size;
}

void smbios_write_tables(struct space *memory, const struct smbios_config *config)
{
    struct smbios_image image;
    uint8_t sum = 0;

    smbios_build(config, &image);
    store_le64(image.entry + 16, MAP_SMBIOS_ADDR + SMBIOS_ENTRY_SIZE);
    for (unsigned i = 0; i < SMBIOS_ENTRY_SIZE; i++)
        sum = (uint8_t)(sum + image.entry[i]);
    image.entry[5] = (uint8_t)-sum;
    space_write(memory, MAP_SMBIOS_ADDR, image.entry, sizeof(image.entry));
    space_write(memory, MAP_SMBIOS_ADDR + SMBIOS_ENTRY_SIZE, image.table, image.size);
}
