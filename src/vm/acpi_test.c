/*
 * acpi_test.c - the tables hang together, their sums are right, and iasl can read them
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
#include "mem/space.h"
#include "vm/acpi.h"
#include "vm/machine_map.h"

#define RAM_SIZE UINT64_C(0x100000)

struct fixture {
    uint8_t *ram;
    struct space *space;
    uint64_t rsdp;
};

static int setup_with(void **state, unsigned cpu_count)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct err e;

    f->ram = calloc(1, RAM_SIZE);
    assert_int_equal(space_create("memory", BIT(40), &f->space, &e), 0);
    assert_int_equal(space_add_ram(f->space, 0, f->ram, RAM_SIZE, false, &e), 0);
    f->rsdp = acpi_write_tables(f->space,
                                &(struct acpi_config){.cpu_count = cpu_count,
                                                      .window_addr = 0x90000000,
                                                      .high_window_addr = UINT64_C(0x140000000),
                                                      .high_window_end = UINT64_C(0x10000000000)});
    *state = f;
    return 0;
}

static int setup(void **state)
{
    return setup_with(state, 4);
}

static int setup_64_cpus(void **state)
{
    return setup_with(state, 64);
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

static const uint8_t *table_at(const struct fixture *f, uint64_t addr)
{
    const uint8_t *t = f->ram + addr;

    assert_in_range(addr, MAP_TABLES_ADDR, MAP_TABLES_END - 36);
    assert_true(addr + load_le32(t + 4) <= MAP_TABLES_END);
    assert_int_equal(sum(t, load_le32(t + 4)), 0);
    return t;
}

/* Through the XSDT; the RSDT has to say the same. */
static const uint8_t *find_table(const struct fixture *f, const char *signature)
{
    const uint8_t *rsdt = table_at(f, load_le32(f->ram + f->rsdp + 16));
    const uint8_t *xsdt = table_at(f, load_le64(f->ram + f->rsdp + 24));
    unsigned count = (load_le32(xsdt + 4) - 36) / 8;

    assert_memory_equal(xsdt, "XSDT", 4);
    assert_memory_equal(rsdt, "RSDT", 4);
    assert_int_equal((load_le32(rsdt + 4) - 36) / 4, count);
    for (unsigned i = 0; i < count; i++) {
        const uint8_t *t = table_at(f, load_le64(xsdt + 36 + i * 8));
        assert_int_equal(load_le64(xsdt + 36 + i * 8), load_le32(rsdt + 36 + i * 4));
        if (memcmp(t, signature, 4) == 0)
            return t;
    }
    fail_msg("no %s", signature);
    return NULL;
}

static void root_pointer_is_found(void **state)
{
    struct fixture *f = *state;
    const uint8_t *rsdp = f->ram + f->rsdp;

    assert_int_equal(f->rsdp % 16, 0);
    assert_in_range(f->rsdp, 0xe0000, 0xfffff);
    assert_memory_equal(rsdp, "RSD PTR ", 8);
    assert_int_equal(sum(rsdp, 20), 0);
    assert_int_equal(sum(rsdp, 36), 0);
}

static void fixed_table_names_the_others(void **state)
{
    struct fixture *f = *state;
    const uint8_t *fadt = find_table(f, "FACP");
    const uint8_t *dsdt = table_at(f, load_le32(fadt + 40));
    uint64_t facs = load_le32(fadt + 36);

    assert_memory_equal(dsdt, "DSDT", 4);
    /* the windows, as AML */
    assert_non_null(memmem(dsdt, load_le32(dsdt + 4), "\x08PMIN\x0c\0\0\0\x90", 10));
    assert_non_null(memmem(dsdt, load_le32(dsdt + 4), "\x08PHMN\x0e\0\0\0\x40\1\0\0\0", 14));
    assert_non_null(
        memmem(dsdt, load_le32(dsdt + 4), "\x08PHMX\x0e\xff\xff\xff\xff\xff\0\0\0", 14));
    assert_int_equal(load_le64(fadt + 140), load_le32(fadt + 40));
    assert_memory_equal(f->ram + facs, "FACS", 4);
    assert_int_equal(facs % 64, 0);
    assert_int_equal(load_le32(fadt + 56), MAP_PM_PORT);
    assert_int_equal(load_le64(fadt + 148 + 4), MAP_PM_PORT);
    assert_int_equal(load_le16(fadt + 46), MAP_SCI_IRQ);
    /* reset register: a port, one byte */
    assert_int_equal(fadt[116], 1);
    assert_int_equal(load_le64(fadt + 120), 0xcf9);
}

static void check_processors(const struct fixture *f, unsigned expected)
{
    const uint8_t *madt = find_table(f, "APIC");
    unsigned size = load_le32(madt + 4), cpus = 0, ioapics = 0, overrides = 0;

    for (unsigned at = 44; at < size; at += madt[at + 1]) {
        assert_true(madt[at + 1] >= 6 && at + madt[at + 1] <= size);
        switch (madt[at]) {
        case 0:
            assert_int_equal(madt[at + 3], cpus++);
            assert_int_equal(load_le32(madt + at + 4), 1);
            break;
        case 1:
            ioapics++;
            break;
        case 2:
            overrides++;
            if (madt[at + 3] == 0)
                assert_int_equal(load_le32(madt + at + 4), 2);
            break;
        default:
            break;
        }
    }
    assert_int_equal(cpus, expected);
    assert_int_equal(ioapics, 1);
    assert_int_equal(overrides, 2);
}

static void processors_are_listed(void **state)
{
    check_processors(*state, 4);
}

static void many_processors_are_listed(void **state)
{
    check_processors(*state, 64);
}

static void iasl_reads(const char *dir, const uint8_t *table)
{
    char path[128], command[512];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%.4s.dat", dir, (const char *)table);
    file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(table, 1, load_le32(table + 4), file), load_le32(table + 4));
    fclose(file);
    /* disassemble, then compile what came out: both complain of what is not well-formed */
    snprintf(command, sizeof(command),
             "cd %s && iasl -vs -d %.4s.dat >log 2>&1 && ! grep -i -E 'error|invalid|unknown' log "
             "&& iasl -vs -we %.4s.dsl >log 2>&1 || { cat log; exit 1; }",
             dir, (const char *)table, (const char *)table);
    assert_int_equal(system(command), 0);
}

static void iasl_reads_all(void **state)
{
    struct fixture *f = *state;
    char dir[] = "/tmp/doppel-acpi-XXXXXX", command[64];
    const uint8_t *fadt = find_table(f, "FACP");

    assert_non_null(mkdtemp(dir));
    iasl_reads(dir, fadt);
    iasl_reads(dir, table_at(f, load_le32(fadt + 40)));
    iasl_reads(dir, f->ram + load_le32(fadt + 36));
    iasl_reads(dir, find_table(f, "APIC"));
    iasl_reads(dir, find_table(f, "HPET"));
    iasl_reads(dir, find_table(f, "MCFG"));
    iasl_reads(dir, table_at(f, load_le64(f->ram + f->rsdp + 24)));
    iasl_reads(dir, table_at(f, load_le32(f->ram + f->rsdp + 16)));
    snprintf(command, sizeof(command), "rm -r %s", dir);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(root_pointer_is_found, setup, teardown),
        cmocka_unit_test_setup_teardown(fixed_table_names_the_others, setup, teardown),
        cmocka_unit_test_setup_teardown(processors_are_listed, setup, teardown),
        cmocka_unit_test_setup_teardown(many_processors_are_listed, setup_64_cpus, teardown),
        cmocka_unit_test_setup_teardown(iasl_reads_all, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
