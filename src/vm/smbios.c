/*
 * smbios.c - SMBIOS structures: firmware, system, chassis
 *
 * Operating systems read the names and that the machine is virtual; nothing else is claimed.
 * Spec: DMTF DSP0134, SMBIOS Reference Specification 3.0.
 */
#include <string.h>

#include "base/bits.h"
#include "mem/space.h"
#include "vm/machine_map.h"
#include "vm/smbios.h"

#define CHARACTERISTICS_NOT_SUPPORTED BIT(3)
#define EXTENSION_2_VIRTUAL_MACHINE 0x10
#define WAKE_UP_POWER_SWITCH 6
#define CHASSIS_OTHER 1
#define STATE_SAFE 3
#define SECURITY_UNKNOWN 2

struct smbios_writer {
    uint8_t table[SMBIOS_TABLE_MAX];
    unsigned size;
    uint16_t handle;
};

/* Append a structure whose formatted part is `length` bytes; its fields start at offset 4. */
static uint8_t *smbios_add(struct smbios_writer *w, uint8_t type, uint8_t length)
{
    uint8_t *s = w->table + w->size;

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
        memcpy(w->table + w->size, strings[i], strlen(strings[i]) + 1);
        w->size += (unsigned)strlen(strings[i]) + 1;
    }
    /* an empty list is two zeroes, like the end of any other */
    w->size += count != 0 ? 1 : 2;
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
    s[0x13] = EXTENSION_2_VIRTUAL_MACHINE;
    s[0x16] = 0xff; /* no embedded controller */
    s[0x17] = 0xff;
    smbios_add_strings(w, strings, ARRAY_SIZE(strings));
}

static void smbios_add_system(struct smbios_writer *w)
{
    static const char *const strings[] = {"doppel", "doppel PC", "1"};
    uint8_t *s = smbios_add(w, 1, 0x1b);

    s[4] = 1;
    s[5] = 2;
    s[6] = 3;
    memset(s + 8, 0xff, 16); /* no UUID */
    s[0x18] = WAKE_UP_POWER_SWITCH;
    smbios_add_strings(w, strings, ARRAY_SIZE(strings));
}

static void smbios_add_chassis(struct smbios_writer *w)
{
    static const char *const strings[] = {"doppel"};
    uint8_t *s = smbios_add(w, 3, 0x15);

    s[4] = 1;
    s[5] = CHASSIS_OTHER;
    s[9] = STATE_SAFE;
    s[10] = STATE_SAFE;
    s[11] = STATE_SAFE;
    s[12] = SECURITY_UNKNOWN;
    smbios_add_strings(w, strings, ARRAY_SIZE(strings));
}

void smbios_build(bool has_firmware, struct smbios_image *image)
{
    struct smbios_writer w = {0};
    uint8_t entry[SMBIOS_ENTRY_SIZE] = "_SM3_";

    if (!has_firmware)
        smbios_add_firmware(&w);
    smbios_add_system(&w);
    smbios_add_chassis(&w);
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

void smbios_write_tables(struct space *memory)
{
    struct smbios_image image;
    uint8_t sum = 0;

    smbios_build(false, &image);
    store_le64(image.entry + 16, MAP_SMBIOS_ADDR + SMBIOS_ENTRY_SIZE);
    for (unsigned i = 0; i < SMBIOS_ENTRY_SIZE; i++)
        sum = (uint8_t)(sum + image.entry[i]);
    image.entry[5] = (uint8_t)-sum;
    space_write(memory, MAP_SMBIOS_ADDR, image.entry, sizeof(image.entry));
    space_write(memory, MAP_SMBIOS_ADDR + SMBIOS_ENTRY_SIZE, image.table, image.size);
}
