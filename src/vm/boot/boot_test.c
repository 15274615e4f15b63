/*
 * boot_test.c - kernels as they should be, and kernels that lie
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "vm/boot/testing.h"

struct fixture {
    struct testing_machine m;
    uint8_t image[TESTING_IMAGE_SIZE];
};

static int setup(void **state)
{
    struct fixture *f = aligned_alloc(64, align_up(sizeof(*f), 64));

    memset(f, 0, sizeof(*f));
    testing_machine_init(&f->m);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    testing_machine_fini(&f->m);
    free(f);
    return 0;
}

static void assert_error_names(const struct fixture *f, const char *text)
{
    if (strstr(f->m.err.msg, text) == NULL)
        fail_msg("message '%s' does not contain '%s'", f->m.err.msg, text);
    assert_non_null(strstr(f->m.err.msg, "kernel"));
}

static void assert_protected_mode(const struct cpu_state *st)
{
    assert_int_equal(st->cr0, CR0_PE | CR0_ET);
    assert_int_equal(st->rflags, RFLAGS_FIXED);
    assert_int_equal(st->seg[CPU_CS].limit, UINT32_MAX);
    assert_int_equal(st->seg[CPU_CS].attr & (SEG_TYPE_CODE | SEG_S | SEG_P | SEG_DB | SEG_L),
                     SEG_TYPE_CODE | SEG_S | SEG_P | SEG_DB);
    assert_int_equal(st->seg[CPU_DS].attr & (SEG_TYPE_CODE | SEG_S | SEG_P | SEG_DB),
                     SEG_S | SEG_P | SEG_DB);
    assert_int_equal(st->seg[CPU_SS].base, 0);
}

/* ---- Linux ---- */

static void linux_starts_in_long_mode(void **state)
{
    struct fixture *f = *state;
    const uint8_t *ram = f->m.ram;
    const struct cpu_state *st = &f->m.state;
    uint64_t size = testing_make_linux(f->image, 0x20f, true), pml4, pdpt, pd;
    const uint8_t *zp;

    assert_int_equal(testing_load(&f->m, f->image, size, 0x1234), 0);
    assert_int_equal(st->rip, 0x200200);
    assert_true(cpu_is_64bit(st));
    assert_int_equal(st->cr0, CR0_PE | CR0_ET | CR0_PG);
    assert_int_equal(st->seg[CPU_CS].selector, 0x10);
    assert_int_equal(st->seg[CPU_DS].selector, 0x18);
    assert_int_equal(st->gdtr.limit, 31);
    assert_memory_equal(ram + 0x200000, f->image + 1024, 0x1000);
    zp = ram + st->gpr[CPU_RSI];
    assert_memory_equal(zp + 0x202, "HdrS", 4);
    assert_int_equal(zp[0x210], 0xff);
    assert_int_equal(zp[0x211], 0x81);
    assert_string_equal((const char *)ram + load_le32(zp + 0x228), "console=ttyS0 quiet");
    assert_int_equal(load_le32(zp + 0x21c), 0x1234);
    assert_int_equal(load_le32(zp + 0x218), TESTING_RAM_SIZE - 0x2000);
    assert_int_equal(ram[TESTING_RAM_SIZE - 0x2000], 0x5a);
    assert_int_equal(zp[0x1e8], 3);
    assert_int_equal(load_le64(zp + 0x2d0 + 40), 0x100000);
    assert_int_equal(load_le64(zp + 0x70), 0xe0000);
    /* the identity map: the last of the first 4 GiB */
    pml4 = load_le64(ram + st->cr3);
    pdpt = load_le64(ram + (pml4 & ~UINT64_C(0xfff)) + 24);
    pd = load_le64(ram + (pdpt & ~UINT64_C(0xfff)) + 511 * 8);
    assert_int_equal(pd, 0xffe00083);
}

static void linux_without_64bit_entry_starts_in_protected_mode(void **state)
{
    struct fixture *f = *state;
    uint64_t size = testing_make_linux(f->image, 0x20b, false);

    assert_int_equal(testing_load(&f->m, f->image, size, 0), 0);
    assert_protected_mode(&f->m.state);
    assert_int_equal(f->m.state.rip, 0x200000);
    assert_int_equal(load_le32(f->m.ram + f->m.state.gpr[CPU_RSI] + 0x218), 0);
}

static void linux_of_any_protocol_loads(void **state)
{
    struct fixture *f = *state;

    for (unsigned version = 0x200; version <= 0x20f; version++) {
        uint64_t size = testing_make_linux(f->image, version, false);
        const uint8_t *zp;
        assert_int_equal(testing_load(&f->m, f->image, size, 0x100), 0);
        assert_int_equal(f->m.state.rip, version >= 0x20a ? 0x200000 : 0x100000);
        zp = f->m.ram + f->m.state.gpr[CPU_RSI];
        if (version < 0x202) {
            assert_int_equal(load_le16(zp + 0x20), 0xa33f);
            assert_string_equal((const char *)zp + load_le16(zp + 0x22), "console=ttyS0 quiet");
        }
    }
}

static void linux_moves_when_its_place_is_not_ram(void **state)
{
    struct fixture *f = *state;
    uint64_t size = testing_make_linux(f->image, 0x20f, true);

    store_le64(f->image + 0x258, 0x40000000);
    assert_int_equal(testing_load(&f->m, f->image, size, 0), 0);
    assert_int_equal(f->m.state.rip, 0x200200);
    f->image[0x234] = 0;
    assert_int_not_equal(testing_load(&f->m, f->image, size, 0), 0);
    assert_error_names(f, "pref_address");
}

static void linux_header_lies(void **state)
{
    struct fixture *f = *state;
    static const struct {
        unsigned at, bytes;
        uint64_t value;
        const char *message;
    } lies[] = {
        {0x1f1, 1, 0xff, "setup_sects"},
        {0x1f4, 4, 0x10000, "syssize"},
        {0x201, 1, 0x10, "field jump"},
        {0x206, 2, 0x104, "version"},
        {0x211, 1, 0, "loadflags"},
        {0x248, 4, 0xfffffff0, "payload_offset"},
        {0x24c, 4, 0xffffffff, "payload_length"},
        {0x260, 4, 0xffffffff, "init_size"},
        {0x238, 4, 3, "command line"},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(lies); i++) {
        uint64_t size = testing_make_linux(f->image, 0x20f, true);
        memcpy(f->image + lies[i].at, &lies[i].value, lies[i].bytes);
        assert_int_not_equal(testing_load(&f->m, f->image, size, 0), 0);
        assert_error_names(f, lies[i].message);
    }
}

static void linux_bad_alignment(void **state)
{
    struct fixture *f = *state;
    uint64_t size = testing_make_linux(f->image, 0x20f, true);

    store_le64(f->image + 0x258, UINT64_MAX);
    store_le32(f->image + 0x230, 0x300001);
    assert_int_not_equal(testing_load(&f->m, f->image, size, 0), 0);
    assert_error_names(f, "kernel_alignment");
}

static void linux_initrd_too_large(void **state)
{
    struct fixture *f = *state;
    uint64_t size = testing_make_linux(f->image, 0x20f, true);

    assert_int_not_equal(testing_load(&f->m, f->image, size, TESTING_RAM_SIZE), 0);
    assert_non_null(strstr(f->m.err.msg, "initrd"));
    assert_non_null(strstr(f->m.err.msg, "--memory"));
    /* initrd_addr_max is honoured */
    store_le32(f->image + 0x22c, 0x1fffff);
    assert_int_equal(testing_load(&f->m, f->image, size, 0x1000), 0);
    assert_int_equal(load_le32(f->m.ram + f->m.state.gpr[CPU_RSI] + 0x218), 0x1ff000);
}

/* ---- PVH ---- */

static void pvh_starts(void **state)
{
    struct fixture *f = *state;

    for (unsigned is_64bit = 0; is_64bit <= 1; is_64bit++) {
        uint64_t size = testing_make_pvh(f->image, is_64bit);
        const uint8_t *ram = f->m.ram, *info, *module;
        memset(f->m.ram + 0x100000, 0xee, 0x4000);
        assert_int_equal(testing_load(&f->m, f->image, size, 0x777), 0);
        assert_protected_mode(&f->m.state);
        assert_int_equal(f->m.state.rip, 0x100020);
        assert_int_equal(f->m.state.seg[CPU_TR].limit, 0x67);
        assert_memory_equal(ram + 0x100000, f->image + 0x1000, 0x1000);
        assert_int_equal(ram[0x101000], 0); /* zeroed up to p_memsz */
        assert_int_equal(ram[0x102fff], 0);
        assert_int_equal(ram[0x103000], 0xee);
        info = ram + f->m.state.gpr[CPU_RBX];
        assert_int_equal(load_le32(info), 0x336ec578);
        assert_int_equal(load_le32(info + 4), 1);
        assert_int_equal(load_le32(info + 12), 1);
        module = ram + load_le64(info + 16);
        assert_int_equal(load_le64(module + 8), 0x777);
        assert_int_equal(ram[load_le64(module)], 0x5a);
        assert_string_equal((const char *)ram + load_le64(info + 24), "console=ttyS0 quiet");
        assert_int_equal(load_le64(info + 32), 0xe0000);
        assert_int_equal(load_le32(info + 48), 3);
        assert_int_equal(load_le64(ram + load_le64(info + 40) + 48), 0x100000);
    }
}

static void pvh_lies(void **state)
{
    struct fixture *f = *state;
    /* the second program header is at 64 + 56 */
    static const struct {
        unsigned at;
        uint64_t value;
        const char *message;
    } lies[] = {
        {32, 0x10000, "e_phoff"},
        {32, UINT64_MAX - 8, "e_phoff"},
        {120 + 8, UINT64_MAX - 4, "p_offset"},
        {120 + 32, UINT64_MAX, "p_filesz"},
        {120 + 40, 1, "p_memsz"},
        {120 + 40, UINT64_MAX, "program header 1"},
        {120 + 24, UINT64_MAX - 0xff, "program header 1"},
        {120 + 24, 0x9f800, "program header 1"},
        {120 + 24, 0x102800, "overlaps"},
        {0x200 + 32, 0x300000, "PVH note"},
        {0x200 + 32, UINT64_C(0x100000000), "PVH note"},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(lies); i++) {
        uint64_t size = testing_make_pvh(f->image, true);
        store_le64(f->image + lies[i].at, lies[i].value);
        assert_int_not_equal(testing_load(&f->m, f->image, size, 0), 0);
        assert_error_names(f, lies[i].message);
    }
}

static void pvh_wrong_machine(void **state)
{
    struct fixture *f = *state;
    uint64_t size = testing_make_pvh(f->image, true);

    store_le16(f->image + 18, 183);
    assert_int_not_equal(testing_load(&f->m, f->image, size, 0), 0);
    assert_error_names(f, "e_machine");
}

static void elf_without_an_entry_we_know(void **state)
{
    struct fixture *f = *state;
    uint64_t size = testing_make_pvh(f->image, true);

    f->image[0x200 + 24] = 17;
    assert_int_not_equal(testing_load(&f->m, f->image, size, 0), 0);
    assert_error_names(f, "PVH note");
}

/* A note whose sizes wrap or run over the end is no note, and no reason to crash. */
static void pvh_notes_that_lie(void **state)
{
    struct fixture *f = *state;
    static const uint32_t sizes[] = {UINT32_MAX, UINT32_MAX - 3, 0x80000000, 41, 28};

    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        for (unsigned at = 0; at < 8; at += 4) {
            uint64_t size = testing_make_pvh(f->image, true);
            store_le32(f->image + 0x200 + at, sizes[i]);
            assert_int_not_equal(testing_load(&f->m, f->image, size, 0), 0);
        }
    }
}

/* ---- Multiboot ---- */

static void check_multiboot_info(const struct fixture *f, uint64_t kernel_end)
{
    const uint8_t *ram = f->m.ram;
    uint64_t at = f->m.state.gpr[CPU_RBX];
    const uint8_t *info = ram + at, *module;

    assert_protected_mode(&f->m.state);
    assert_int_equal(f->m.state.gpr[CPU_RAX], 0x2badb002);
    assert_true(at >= kernel_end);
    assert_int_equal(load_le32(info), 0x24d);
    assert_int_equal(load_le32(info + 4), 639);
    assert_int_equal(load_le32(info + 8), 7 * 1024);
    assert_string_equal((const char *)ram + load_le32(info + 16), "console=ttyS0 quiet");
    assert_int_equal(load_le32(info + 20), 1);
    module = ram + load_le32(info + 24);
    assert_int_equal(load_le32(module) % 4096, 0);
    assert_int_equal(load_le32(module + 4) - load_le32(module), 0x321);
    assert_int_equal(ram[load_le32(module)], 0x5a);
    assert_string_equal((const char *)ram + load_le32(module + 8), "initrd");
    assert_int_equal(load_le32(info + 44), 3 * 24);
    assert_int_equal(load_le32(ram + load_le32(info + 48)), 20);
    assert_int_equal(load_le64(ram + load_le32(info + 48) + 48 + 4), 0x100000);
    assert_memory_equal(ram + load_le32(info + 64), "doppel", 6);
}

static void multiboot_elf_starts(void **state)
{
    struct fixture *f = *state;

    for (unsigned is_64bit = 0; is_64bit <= 1; is_64bit++) {
        uint64_t size = testing_make_multiboot_elf(f->image, is_64bit);
        assert_int_equal(testing_load(&f->m, f->image, size, 0x321), 0);
        assert_int_equal(f->m.state.rip, 0x100010);
        check_multiboot_info(f, 0x200800);
    }
}

static void multiboot_flat_starts(void **state)
{
    struct fixture *f = *state;
    uint64_t size = testing_make_multiboot_flat(f->image);

    memset(f->m.ram + 0x100000, 0xee, 0x3000);
    assert_int_equal(testing_load(&f->m, f->image, size, 0x321), 0);
    assert_int_equal(f->m.state.rip, 0x100080);
    assert_memory_equal(f->m.ram + 0x100000, f->image + 0x20, 0x1000);
    assert_int_equal(f->m.ram[0x101000], 0);
    assert_int_equal(f->m.ram[0x101fff], 0);
    check_multiboot_info(f, 0x102000);
}

/* Without load_end_addr the whole rest of the file is loaded. */
static void multiboot_flat_to_the_end(void **state)
{
    struct fixture *f = *state;
    uint64_t size = testing_make_multiboot_flat(f->image);

    store_le32(f->image + 0x40 + 20, 0);
    assert_int_equal(testing_load(&f->m, f->image, size, 0), 0);
    assert_memory_equal(f->m.ram + 0x100000, f->image + 0x20, size - 0x20);
}

static void multiboot_lies(void **state)
{
    struct fixture *f = *state;
    static const struct {
        unsigned at;
        uint32_t value;
        const char *message;
    } lies[] = {
        {12, 0x100100, "header_addr"},   {12, 0xfffff, "header_addr"},
        {16, 0xffffffff, "header_addr"}, {20, 0xfffff, "load_end_addr"},
        {20, 0x700000, "load_end_addr"}, {24, 0x100fff, "bss_end_addr"},
        {24, 0xffffffff, "load_addr"},   {28, 0x102000, "entry_addr"},
        {28, 0xfffff, "entry_addr"},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(lies); i++) {
        uint64_t size = testing_make_multiboot_flat(f->image);
        store_le32(f->image + 0x40 + lies[i].at, lies[i].value);
        assert_int_not_equal(testing_load(&f->m, f->image, size, 0), 0);
        assert_error_names(f, lies[i].message);
    }
}

static void multiboot_unknown_requirement(void **state)
{
    struct fixture *f = *state;
    uint64_t size = testing_make_multiboot_flat(f->image);

    store_le32(f->image + 0x44, 0x10013);
    store_le32(f->image + 0x48, 0 - (0x1badb002 + 0x10013));
    assert_int_not_equal(testing_load(&f->m, f->image, size, 0), 0);
    assert_error_names(f, "flags");
}

static void multiboot_entry_in_no_segment(void **state)
{
    struct fixture *f = *state;
    uint64_t size = testing_make_multiboot_elf(f->image, false);

    store_le32(f->image + 24, 0x400000);
    assert_int_not_equal(testing_load(&f->m, f->image, size, 0), 0);
    assert_error_names(f, "e_entry");
}

/* ---- all formats ---- */

static uint64_t make_kernel(uint8_t *image, unsigned n)
{
    switch (n) {
    case 0:
        return testing_make_linux(image, 0x20f, true);
    case 1:
        return testing_make_pvh(image, true);
    case 2:
        return testing_make_pvh(image, false);
    case 3:
        return testing_make_multiboot_elf(image, false);
    case 4:
        return testing_make_multiboot_flat(image);
    default:
        return 0;
    }
}

/* Each length goes through a buffer of just that size, so that a sanitizer sees every overrun. */
static void truncated_files_are_errors(void **state)
{
    struct fixture *f = *state;
    uint64_t size;

    for (unsigned n = 0; (size = make_kernel(f->image, n)) != 0; n++) {
        for (uint64_t cut = 0; cut < size; cut = cut < 0x300 ? cut + 1 : cut + 97) {
            uint8_t *copy = malloc(cut != 0 ? cut : 1);
            memcpy(copy, f->image, cut);
            /* what a flat image does not load may be missing */
            if (testing_load(&f->m, copy, cut, 0) == 0)
                assert_true(n == 4 && cut >= 0x1020);
            else
                assert_true(f->m.err.msg[0] != '\0');
            free(copy);
        }
    }
}

/* Every byte of the headers with several values: errors or not, but nothing outside of RAM. */
static void damaged_headers_do_no_harm(void **state)
{
    struct fixture *f = *state;
    static const uint8_t values[] = {0x00, 0x01, 0x7f, 0x80, 0xff};
    uint64_t size;

    for (unsigned n = 0; (size = make_kernel(f->image, n)) != 0; n++) {
        uint8_t *copy = malloc(size);
        for (unsigned at = 0; at < 0x280; at++) {
            for (unsigned i = 0; i < ARRAY_SIZE(values); i++) {
                memcpy(copy, f->image, size);
                copy[at] = values[i];
                testing_load(&f->m, copy, size, 0x100);
                assert_true(f->m.load.claim_count <= BOOT_CLAIMS_MAX);
            }
        }
        free(copy);
    }
}

static void other_files_are_told_apart(void **state)
{
    struct fixture *f = *state;

    assert_int_not_equal(testing_load(&f->m, (const uint8_t *)"", 0, 0), 0);
    assert_error_names(f, "empty");
    memset(f->image, 'x', sizeof(f->image));
    assert_int_not_equal(testing_load(&f->m, f->image, sizeof(f->image), 0), 0);
    assert_error_names(f, "neither");
}

/* Through files, with several modules, and a second time, as after a reset. */
static void sources_are_files(void **state)
{
    struct fixture *f = *state;
    char dir[] = "/tmp/doppel-boot-XXXXXX", kernel[64], module[64], list[256];
    struct boot_source source;
    uint64_t size = testing_make_multiboot_flat(f->image);
    FILE *file;

    assert_non_null(mkdtemp(dir));
    snprintf(kernel, sizeof(kernel), "%s/kernel", dir);
    snprintf(module, sizeof(module), "%s/module", dir);
    file = fopen(kernel, "w");
    fwrite(f->image, 1, size, file);
    fclose(file);
    file = fopen(module, "w");
    fputs("one module", file);
    fclose(file);
    snprintf(list, sizeof(list), "%s first arg,%s", module, module);
    assert_int_equal(boot_source_open(kernel, list, &source, &f->m.err), 0);
    assert_int_equal(source.format, BOOT_MULTIBOOT);
    assert_int_equal(source.module_count, 2);
    unlink(kernel);
    unlink(module);
    rmdir(dir);
    for (unsigned i = 0; i < 2; i++) {
        const uint8_t *info, *modules;
        memset(f->m.ram, 0, TESTING_RAM_SIZE);
        assert_int_equal(boot_load(&source, &f->m.load, &f->m.state, &f->m.err), 0);
        info = f->m.ram + f->m.state.gpr[CPU_RBX];
        modules = f->m.ram + load_le32(info + 24);
        assert_int_equal(load_le32(info + 20), 2);
        assert_memory_equal(f->m.ram + load_le32(modules + 16), "one module", 10);
        assert_non_null(strstr((const char *)f->m.ram + load_le32(modules + 8), " first arg"));
    }
    boot_source_close(&source);
    assert_int_not_equal(boot_source_open(kernel, NULL, &source, &f->m.err), 0);
    assert_error_names(f, kernel);
    boot_source_close(&source);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(linux_starts_in_long_mode),
        TEST(linux_without_64bit_entry_starts_in_protected_mode),
        TEST(linux_of_any_protocol_loads),
        TEST(linux_moves_when_its_place_is_not_ram),
        TEST(linux_header_lies),
        TEST(linux_bad_alignment),
        TEST(linux_initrd_too_large),
        TEST(pvh_starts),
        TEST(pvh_lies),
        TEST(pvh_wrong_machine),
        TEST(elf_without_an_entry_we_know),
        TEST(pvh_notes_that_lie),
        TEST(multiboot_elf_starts),
        TEST(multiboot_flat_starts),
        TEST(multiboot_flat_to_the_end),
        TEST(multiboot_lies),
        TEST(multiboot_unknown_requirement),
        TEST(multiboot_entry_in_no_segment),
        TEST(truncated_files_are_errors),
        TEST(damaged_headers_do_no_harm),
        TEST(other_files_are_told_apart),
        TEST(sources_are_files),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
