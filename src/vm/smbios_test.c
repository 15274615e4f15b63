/*
 * smbios_test.c - the structures can be walked, say what the machine is, and dmidecode reads them
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bits.h"
#include "cpu/model.h"
#include "mem/space.h"
#include "vm/machine_map.h"
#include "vm/smbios.h"

#define RAM_SIZE UINT64_C(0x100000)

struct fixture {
    uint8_t *ram;
    struct space *space;
    struct cpu_model model;
    struct smbios_config config;
    unsigned count[256]; /* structures of each type, and the first of them */
    const uint8_t *first[256];
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct err e;

    f->ram = calloc(1, RAM_SIZE);
    assert_int_equal(space_create("memory", BIT(40), &f->space, &e), 0);
    assert_int_equal(space_add_ram(f->space, 0, f->ram, RAM_SIZE, false, &e), 0);
    if (cpu_model_create("host", 3, 2500000000, &f->model, &e) != 0)
        fail_msg("%s", e.msg);
    f->config = (struct smbios_config){
        .model = &f->model, .low_bytes = UINT64_C(3) << 30, .high_bytes = UINT64_C(5) << 30};
    assert_int_equal(uuid_parse("00112233-4455-6677-8899-aAbBcCdDeEfF", "test", f->config.uuid, &e),
                     0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    space_destroy(f->space);
    free(f->ram);
    free(f);
    return 0;
}

static uint8_t sum(const uint8_t *p, unsigned size)
{
    uint8_t s = 0;

    while (size-- != 0)
        s = (uint8_t)(s + *p++);
    return s;
}

/*
 * As an operating system walks it: each structure ends with two zeroes, the last has type 127.
 * Strings that a structure names by number have to be there.
 */
static void walk(struct fixture *f)
{
    const uint8_t *entry = f->ram + MAP_SMBIOS_ADDR;
    uint64_t at, end;
    uint16_t handle = 0;

    smbios_write_tables(f->space, &f->config);
    memset(f->count, 0, sizeof(f->count));
    assert_memory_equal(entry, "_SM3_", 5);
    assert_int_equal(sum(entry, entry[6]), 0);
    at = load_le64(entry + 16);
    end = at + load_le32(entry + 12);
    assert_true(end <= MAP_TABLES_END);
    for (bool is_end = false; !is_end;) {
        const uint8_t *s = f->ram + at;
        is_end = s[0] == 127;
        assert_int_equal(load_le16(s + 2), handle++);
        if (f->count[s[0]]++ == 0)
            f->first[s[0]] = s;
        at += s[1];
        while (f->ram[at] != 0 || f->ram[at + 1] != 0)
            at++;
        at += 2;
        assert_true(at <= end);
    }
    assert_int_equal(at, end);
}

static const char *string_of(const uint8_t *s, unsigned field)
{
    const char *text = (const char *)s + s[1];

    assert_int_not_equal(s[field], 0);
    for (unsigned i = 1; i < s[field]; i++) {
        assert_int_not_equal(*text, '\0');
        text += strlen(text) + 1;
    }
    assert_int_not_equal(*text, '\0');
    return text;
}

static void all_are_there(void **state)
{
    static const uint8_t once[] = {0, 1, 3, 4, 8, 16, 17, 32, 127};
    struct fixture *f = *state;
    unsigned all = 0;

    walk(f);
    for (unsigned i = 0; i < ARRAY_SIZE(once); i++)
        assert_int_equal(f->count[once[i]], 1);
    assert_int_equal(f->count[19], 2);
    for (unsigned i = 0; i < 256; i++)
        all += f->count[i];
    assert_int_equal(all, ARRAY_SIZE(once) + 2);
    assert_string_equal(string_of(f->first[1], 4), "doppel");
    assert_string_equal(string_of(f->first[8], 6), "COM1");
    /* with firmware: that tells of itself */
    struct smbios_image image;
    f->config.has_firmware = true;
    smbios_build(&f->config, &image);
    assert_int_equal(image.table[0], 1);
}

static void identity_is_told(void **state)
{
    static const uint8_t wire[16] = {0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66,
                                     0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff};
    struct fixture *f = *state;

    walk(f);
    assert_memory_equal(f->first[1] + 8, wire, 16);
}

static void processors_are_told(void **state)
{
    struct fixture *f = *state;
    const uint8_t *s;

    walk(f);
    s = f->first[4];
    struct cpuid_regs vendor = {0}, one = {0};
    for (unsigned i = 0; i < f->model.leaf_count; i++) {
        vendor = f->model.leaves[i].leaf == 0 ? f->model.leaves[i].regs : vendor;
        one = f->model.leaves[i].leaf == 1 ? f->model.leaves[i].regs : one;
    }
    assert_memory_equal(string_of(s, 7), &vendor.ebx, 4);
    assert_int_equal(load_le32(s + 8), one.eax);
    assert_int_equal(load_le32(s + 12), one.edx);
    assert_int_equal(load_le16(s + 0x16), 2500);
    assert_int_equal(s[0x23], 3);
    assert_int_equal(s[0x25], 3);
    /* a model without names has no empty strings */
    for (unsigned i = 0; i < f->model.leaf_count; i++)
        if (f->model.leaves[i].leaf != 1)
            f->model.leaves[i].regs = (struct cpuid_regs){0};
    walk(f);
    assert_int_equal(f->first[4][7], 0);
    assert_int_equal(f->first[4][0x10], 0);
}

static void memory_is_told(void **state)
{
    struct fixture *f = *state;

    walk(f);
    assert_int_equal(load_le32(f->first[16] + 7), 8u << 20);
    assert_int_equal(load_le16(f->first[17] + 12), 8192);
    assert_int_equal(load_le16(f->first[17] + 4), load_le16(f->first[16] + 2));
    assert_int_equal(load_le32(f->first[19] + 4), 0);
    assert_int_equal(load_le32(f->first[19] + 8), (3u << 20) - 1);
    const uint8_t *high = f->first[19] + f->first[19][1] + 2;
    assert_int_equal(load_le32(high + 4), 4u << 20);
    assert_int_equal(load_le32(high + 8), (9u << 20) - 1);
    /* the largest machine; its size does not fit the old field */
    f->config.high_bytes = (UINT64_C(1) << 40) - f->config.low_bytes;
    walk(f);
    assert_int_equal(load_le32(f->first[16] + 7), 1u << 30);
    assert_int_equal(load_le16(f->first[17] + 12), 0x7fff);
    assert_int_equal(load_le32(f->first[17] + 0x1c), 1u << 20);
    f->config.low_bytes = 2 << 20;
    f->config.high_bytes = 0;
    walk(f);
    assert_int_equal(f->count[19], 1);
    assert_int_equal(load_le16(f->first[17] + 12), 2);
}

/* The same in the form of dmidecode's dumps: the entry point, and the structures from 32 on. */
static void write_dump(const struct smbios_config *config, const char *path)
{
    struct smbios_image image;
    uint8_t sums = 0;
    FILE *file = fopen(path, "wb");

    smbios_build(config, &image);
    store_le64(image.entry + 16, 32);
    for (unsigned i = 0; i < SMBIOS_ENTRY_SIZE; i++)
        sums = (uint8_t)(sums + image.entry[i]);
    image.entry[5] = (uint8_t)-sums;
    assert_non_null(file);
    assert_int_equal(fwrite(image.entry, 1, SMBIOS_ENTRY_SIZE, file), SMBIOS_ENTRY_SIZE);
    assert_int_equal(fseek(file, 32, SEEK_SET), 0);
    assert_int_equal(fwrite(image.table, 1, image.size, file), image.size);
    assert_int_equal(fclose(file), 0);
}

static void dmidecode_reads_all(void **state)
{
    static const char *const lines[] = {
        "UUID: 00112233-4455-6677-8899-aabbccddeeff",
        "ACPI is supported",
        "System is a virtual machine",
        "Core Count: 3",
        "Current Speed: 2500 MHz",
        "Range Size: 5 GB",
        "Maximum Capacity: 8 GB",
        "Size: 8 GB",
        "Port Type: Serial Port 16550A Compatible",
        "Status: No errors detected",
    };
    static char text[65536];
    struct fixture *f = *state;
    char path[] = "/tmp/doppel-smbios-XXXXXX", command[128];
    int fd = mkstemp(path);

    assert_true(fd >= 0);
    close(fd);
    write_dump(&f->config, path);
    snprintf(command, sizeof(command), "PATH=$PATH:/usr/sbin dmidecode --from-dump %s 2>&1", path);
    FILE *out = popen(command, "r");
    assert_non_null(out);
    size_t size = fread(text, 1, sizeof(text) - 1, out);
    text[size] = '\0';
    int status = pclose(out);
    unlink(path);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127) {
        print_message("dmidecode is not installed ('tools/deps test' does that)\n");
        skip();
    }
    assert_int_equal(status, 0);
    for (unsigned i = 0; i < ARRAY_SIZE(lines); i++)
        if (strstr(text, lines[i]) == NULL)
            fail_msg("dmidecode does not find '%s' in:\n%s", lines[i], text);
    if (strstr(text, "<BAD") != NULL || strstr(text, "<OUT OF SPEC>") != NULL ||
        strstr(text, "TRUNCATED") != NULL || strstr(text, "Wrong") != NULL)
        fail_msg("dmidecode complains:\n%s", text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(all_are_there, setup, teardown),
        cmocka_unit_test_setup_teardown(identity_is_told, setup, teardown),
        cmocka_unit_test_setup_teardown(processors_are_told, setup, teardown),
        cmocka_unit_test_setup_teardown(memory_is_told, setup, teardown),
        cmocka_unit_test_setup_teardown(dmidecode_reads_all, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
