/*
 * firmware_test.c - machines that start in a ROM: where it is, shadow RAM, resets; which firmware
 *
 * The ROM is 64 KiB of 16-bit code that begins at F000:0000 and is entered through its reset
 * vector, which jumps there within the segment that ends at 4 GiB.
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
#include "os/loop.h"
#include "vm/firmware.h"
#include "vm/machine.h"
#include "vm/vm.h"

#define ROM_SIZE 0x10000u
#define ROM_MARK_AT 0x1234 /* a byte of the ROM that the code looks at */
#define ROM_MARK 0x5a

#define TEST_ROM(name, code)                                                                       \
    extern const uint8_t rom_##name[], rom_##name##_end[];                                         \
    __asm__(".pushsection .rodata\n"                                                               \
            "rom_" #name ":\n.code16\n" code "\n.code64\n"                                         \
            "rom_" #name "_end:\n.popsection\n")

/* write V to PAM0, which is byte 59H of the host bridge; EAX, DX change */
#define PAM0(v)                                                                                    \
    "mov $0x80000058, %eax\n mov $0xcf8, %dx\n out %eax, %dx\n"                                    \
    "mov $0xcfd, %dx\n mov $" #v ", %al\n out %al, %dx\n"
/* the instruction after the one that changes the map sees the new one */
#define EXPECT(v) "cmpb $" #v ", %es:0x1234\n jne fail\n"
#define STORE(v) "movb $" #v ", %es:0x1234\n"
#define EXIT(v) "mov $0xf4, %dx\n mov $" #v ", %eax\n out %eax, %dx\n 1: hlt\n jmp 1b\n"

TEST_ROM(shadow, "mov $0xf000, %bx\n mov %bx, %es\n mov $20, %cx\n"
                 "again:\n" EXPECT(0x5a) STORE(0x11) EXPECT(0x5a) /* ROM */
         PAM0(0x20) EXPECT(0x5a) STORE(0x77) EXPECT(0x5a)         /* reads ROM, writes RAM */
         PAM0(0x30) EXPECT(0x77) STORE(0x88) EXPECT(0x88)         /* RAM */
         PAM0(0x10) EXPECT(0x88) STORE(0x99) EXPECT(0x88)         /* RAM, not written */
         PAM0(0x00) EXPECT(0x5a)                                  /* ROM again */
         "dec %cx\n jnz again\n" EXIT(7) "fail:\n" EXIT(1));

/*
 * As a BIOS does it: from its copy below 1 MiB, the code copies itself to the RAM beneath and goes
 * on in that. A byte that it changes there tells where it is.
 */
TEST_ROM(moves, "ljmp $0xf000, $(low - rom_moves)\n"
                "low: mov $0xf000, %bx\n mov %bx, %ds\n mov %bx, %es\n" PAM0(
                    0x20) "xor %si, %si\n xor %di, %di\n mov $0x8000, %cx\n cld\n rep movsw\n"
                          "movb $0x66, (here - rom_moves) + 1\n" /* the number below, in RAM only */
         PAM0(0x10) "here: mov $0x55, %al\n cmp $0x66, %al\n jne 2f\n" EXPECT(0x5a)
             EXIT(13) "2:\n" EXIT(2));

/*
 * RAM survives a reset, the PAM registers don't: the first time through a counter at 0:600H is
 * set and PAM0 opened, then port CF9H is asked for a reset.
 */
TEST_ROM(reset, "xor %bx, %bx\n mov %bx, %ds\n mov $0xf000, %bx\n mov %bx, %es\n"
                "cmpb $0x5a, %es:0x1234\n jne lost\n"
                "cmpl $0x600d600d, 0x600\n je second\n"
                "movl $0x600d600d, 0x600\n" PAM0(0x30)
                    STORE(0x44) "mov $0xcf9, %dx\n mov $6, %al\n out %al, %dx\n 2: hlt\n jmp 2b\n"
                                "second:\n" EXIT(9) "lost:\n" EXIT(2));

/*
 * Three times through the reset vector: after the first, a triple fault, after the second an INIT
 * that the processor sends itself through its x2APIC. A reset closes PAM0 again, INIT does not.
 */
TEST_ROM(restarts,
         "xor %bx, %bx\n mov %bx, %ds\n mov $0xf000, %bx\n mov %bx, %es\n"
         "cmpl $0x11111111, 0x600\n je 3f\n"
         "cmpl $0x22222222, 0x600\n je 4f\n"
         "movl $0x11111111, 0x600\n" PAM0(0x30)
             STORE(0x44) "lidt %cs:(none - rom_restarts)\n int3\n"
                         "3: cmpb $0x5a, %es:0x1234\n jne 5f\n"
                         "movl $0x22222222, 0x600\n" PAM0(
                             0x30) "mov $0x1b, %ecx\n rdmsr\n or $0xc00, %eax\n wrmsr\n"
                                   "mov $0x830, %ecx\n xor %edx, %edx\n mov $0x4500, %eax\n wrmsr\n"
                                   "2: hlt\n jmp 2b\n"
                                   "4: cmpb $0x44, %es:0x1234\n jne 5f\n" EXIT(11) "5:\n" EXIT(
                                       2) "none: .skip 6\n");

static void write_rom(char *path, const uint8_t *code, size_t size)
{
    static uint8_t rom[ROM_SIZE];
    int fd = mkstemp(path);

    assert_true(fd >= 0);
    memset(rom, 0, sizeof(rom));
    if (size != 0)
        memcpy(rom, code, size);
    rom[ROM_MARK_AT] = ROM_MARK;
    /* JMP to the segment's start, from FFF0H */
    memcpy(rom + 0xfff0, "\xe9\x0d\x00", 3);
    assert_int_equal(write(fd, rom, sizeof(rom)), sizeof(rom));
    close(fd);
}

static void run_rom(const struct vm_config *wanted, const uint8_t *code, size_t size,
                    struct vm_end *end)
{
    char path[] = "/tmp/doppel-rom-XXXXXX";
    struct vm_config config = *wanted;
    struct vm *vm = NULL;
    struct err e = {0};

    write_rom(path, code, size);
    assert_int_equal(loop_create(&config.loop, &e), 0);
    config.memory_bytes = 8 << 20;
    config.cpu_model = "host";
    config.has_debug_exit = true;
    config.firmware = path;
    if (vm_create(&config, &vm, &e) != 0)
        fail_msg("%s", e.msg);
    unlink(path);
    vm_run(vm, end);
    vm_destroy(vm);
    loop_destroy(config.loop);
}

#define RUN_ROM(config, name, end)                                                                 \
    run_rom(config, rom_##name, (size_t)(rom_##name##_end - rom_##name), end)

static const char *const engines[] = {"interp", "bt"};

static void memory_changes_under_the_next_instruction(void **state)
{
    for (unsigned i = 0; i < ARRAY_SIZE(engines); i++) {
        /* the second processor waits to be started, and is stopped for each change all the same */
        struct vm_config config = {.engine = engines[i], .cpu_count = 1 + i};
        struct vm_end end;

        RUN_ROM(&config, shadow, &end);
        assert_int_equal(end.cause, VM_END_DEBUG_EXIT);
        assert_int_equal(end.status, 7 << 1 | 1);
    }
}

static void code_moves_to_the_ram_beneath(void **state)
{
    for (unsigned i = 0; i < ARRAY_SIZE(engines); i++) {
        struct vm_config config = {.engine = engines[i], .cpu_count = 1};
        struct vm_end end;

        RUN_ROM(&config, moves, &end);
        assert_int_equal(end.cause, VM_END_DEBUG_EXIT);
        assert_int_equal(end.status, 13 << 1 | 1);
    }
}

/* The engine is exchanged at any moment: it gets the slots that there are then. */
static void memory_changes_while_engines_do(void **state)
{
    struct vm_config config = {.engines = "bt,interp", .cpu_count = 1, .switch_storm = 20};
    struct vm_end end;

    RUN_ROM(&config, shadow, &end);
    assert_int_equal(end.cause, VM_END_DEBUG_EXIT);
    assert_int_equal(end.status, 7 << 1 | 1);
}

static void reset_keeps_ram(void **state)
{
    for (unsigned i = 0; i < ARRAY_SIZE(engines); i++) {
        struct vm_config config = {.engine = engines[i], .cpu_count = 1};
        struct vm_end end;

        RUN_ROM(&config, reset, &end);
        assert_int_equal(end.cause, VM_END_DEBUG_EXIT);
        assert_int_equal(end.status, (9 << 1 | 1) & 0xff);
    }
}

static void restarts(const char *engine, enum vm_on_reboot on_reboot, struct vm_end *end)
{
    struct vm_config config = {.engine = engine, .cpu_count = 1, .on_reboot = on_reboot};

    RUN_ROM(&config, restarts, end);
}

static void processors_start_again(void **state)
{
    struct vm_end end;

    for (unsigned i = 0; i < ARRAY_SIZE(engines); i++) {
        restarts(engines[i], VM_REBOOT_RESET, &end);
        assert_int_equal(end.cause, VM_END_DEBUG_EXIT);
        assert_int_equal(end.status, 11 << 1 | 1);
        /* who does not want resets wants to know why */
        restarts(engines[i], VM_REBOOT_EXIT, &end);
        assert_int_equal(end.cause, VM_END_DIED);
        assert_non_null(strstr(end.dump, "rip"));
    }
}

/* ---- what firmware is told ---- */

#define FILE_MAX 0x8000u
#define FILES_BASE UINT64_C(0x7000000) /* where this firmware places the first file */

/* Files of fw_cfg, read as firmware does, through the ports. */
struct told {
    struct vm *vm;
    struct told_file {
        char name[56];
        uint8_t bytes[FILE_MAX];
        uint32_t size;
        uint64_t addr; /* 0: not placed */
    } files[16];
    unsigned count;
};

static uint8_t next_byte(const struct told *t)
{
    return (uint8_t)space_load(t->vm->board.ports, 0x511, 1);
}

static uint32_t next_be(const struct told *t, unsigned size)
{
    uint32_t v = 0;

    while (size-- > 0)
        v = v << 8 | next_byte(t);
    return v;
}

static void read_files(struct told *t)
{
    uint16_t keys[ARRAY_SIZE(t->files)];

    space_store(t->vm->board.ports, 0x510, 0x19, 2);
    t->count = next_be(t, 4);
    assert_in_range(t->count, 8, ARRAY_SIZE(t->files));
    for (unsigned i = 0; i < t->count; i++) {
        t->files[i].size = next_be(t, 4);
        keys[i] = (uint16_t)next_be(t, 2);
        next_be(t, 2);
        for (unsigned n = 0; n < sizeof(t->files[i].name); n++)
            t->files[i].name[n] = (char)next_byte(t);
        assert_in_range(t->files[i].size, 1, FILE_MAX);
    }
    for (unsigned i = 0; i < t->count; i++) {
        space_store(t->vm->board.ports, 0x510, keys[i], 2);
        for (unsigned n = 0; n < t->files[i].size; n++)
            t->files[i].bytes[n] = next_byte(t);
    }
}

static struct told_file *file_of(struct told *t, const char *name)
{
    for (unsigned i = 0; i < t->count; i++)
        if (strcmp(t->files[i].name, name) == 0)
            return &t->files[i];
    fail_msg("no file '%s'", name);
    return NULL;
}

static uint8_t sum_of(const uint8_t *p, uint32_t size)
{
    uint8_t sum = 0;

    while (size-- > 0)
        sum = (uint8_t)(sum + *p++);
    return sum;
}

static void obey(struct told *t, const uint8_t *c, uint64_t *next)
{
    struct told_file *file = file_of(t, (const char *)c + 4);
    uint32_t at, start, size;

    switch (load_le32(c)) {
    case 1:
        assert_int_equal(file->addr, 0);
        assert_true(is_pow2(load_le32(c + 60)));
        assert_in_range(c[64], 1, 2);
        file->addr = align_up(*next, load_le32(c + 60));
        *next = file->addr + file->size;
        break;
    case 2: {
        const struct told_file *to = file_of(t, (const char *)c + 60);
        at = load_le32(c + 116);
        assert_true(range_fits(at, c[120], file->size));
        assert_int_not_equal(to->addr, 0);
        uint64_t v = c[120] == 8 ? load_le64(file->bytes + at) : load_le32(file->bytes + at);
        assert_true(v < to->size);
        if (c[120] == 8)
            store_le64(file->bytes + at, v + to->addr);
        else
            store_le32(file->bytes + at, (uint32_t)(v + to->addr));
        break;
    }
    case 3:
        at = load_le32(c + 60), start = load_le32(c + 64), size = load_le32(c + 68);
        assert_true(range_fits(start, size, file->size) && at - start < size);
        assert_int_equal(file->bytes[at], 0);
        file->bytes[at] = (uint8_t)-sum_of(file->bytes + start, size);
        break;
    default:
        fail_msg("command %u", load_le32(c));
    }
}

/* From the RSDP on all pointers lead to tables, and what has a checksum is right. */
static void check_placed(struct told *t)
{
    const struct told_file *tables = file_of(t, "etc/acpi/tables");
    const uint8_t *rsdp = file_of(t, "etc/acpi/rsdp")->bytes;
    const uint8_t *xsdt = tables->bytes + (load_le64(rsdp + 24) - tables->addr);
    unsigned count;

    assert_int_equal(sum_of(rsdp, 20), 0);
    assert_int_equal(sum_of(rsdp, 36), 0);
    assert_memory_equal(xsdt, "XSDT", 4);
    assert_int_equal(sum_of(xsdt, load_le32(xsdt + 4)), 0);
    count = (load_le32(xsdt + 4) - 36) / 8;
    assert_in_range(count, 4, 16);
    for (unsigned i = 0; i < count; i++) {
        const uint8_t *table = tables->bytes + (load_le64(xsdt + 36 + 8 * i) - tables->addr);
        assert_int_equal(sum_of(table, load_le32(table + 4)), 0);
        if (memcmp(table, "FACP", 4) != 0)
            continue;
        const uint8_t *dsdt = tables->bytes + (load_le64(table + 140) - tables->addr);
        assert_memory_equal(dsdt, "DSDT", 4);
        assert_int_equal(sum_of(dsdt, load_le32(dsdt + 4)), 0);
        assert_int_equal(load_le32(table + 40), load_le64(table + 140));
    }
}

static void tables_are_placed_by_commands(void **state)
{
    static struct told t;
    const struct vm_disk disks[] = {{.path = "/proc/self/exe", .is_read_only = true}};
    struct vm_config config = {
        .cpu_count = 3, .memory_bytes = UINT64_C(4) << 30, .disks = disks, .disk_count = 1};
    char path[] = "/tmp/doppel-rom-XXXXXX";
    uint64_t next = FILES_BASE + 1;
    struct err e = {0};

    write_rom(path, NULL, 0);
    config.firmware = path;
    assert_int_equal(loop_create(&config.loop, &e), 0);
    if (vm_create(&config, &t.vm, &e) != 0)
        fail_msg("%s", e.msg);
    unlink(path);
    read_files(&t);
    const struct told_file *commands = file_of(&t, "etc/table-loader");
    assert_int_equal(commands->size % 128, 0);
    for (uint32_t at = 0; at < commands->size; at += 128)
        obey(&t, commands->bytes + at, &next);
    check_placed(&t);

    /* 3 GiB below the hole, the rest above 4 GiB */
    const struct told_file *e820 = file_of(&t, "etc/e820");
    assert_int_equal(e820->size, 40);
    assert_int_equal(load_le64(e820->bytes + 8), UINT64_C(3) << 30);
    assert_int_equal(load_le64(e820->bytes + 20), UINT64_C(4) << 30);
    assert_int_equal(load_le64(e820->bytes + 28), UINT64_C(1) << 30);
    assert_string_equal((const char *)file_of(&t, "bootorder")->bytes,
                        "/pci@i0cf8/scsi@3/disk@0,0");
    assert_memory_equal(file_of(&t, "etc/smbios/smbios-anchor")->bytes, "_SM3_", 5);
    vm_destroy(t.vm);
    loop_destroy(config.loop);
}

/* ---- which firmware ---- */

static const uint8_t guid_esp[16] = {0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11,
                                     0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b};

static void disks_are_told_apart(void **state)
{
    uint8_t disk[34 * 512] = {0};

    assert_false(firmware_is_uefi_disk(disk, sizeof(disk)));
    disk[446 + 4] = 0xef;
    assert_false(firmware_is_uefi_disk(disk, sizeof(disk))); /* no signature */
    disk[510] = 0x55;
    disk[511] = 0xaa;
    assert_true(firmware_is_uefi_disk(disk, 512));
    assert_false(firmware_is_uefi_disk(disk, 511));
    disk[0] = 0xeb; /* boot code */
    assert_false(firmware_is_uefi_disk(disk, sizeof(disk)));
    disk[0] = 0;
    disk[446 + 4] = 0x83;
    assert_false(firmware_is_uefi_disk(disk, sizeof(disk)));

    disk[446 + 16 + 4] = 0xee;
    assert_false(firmware_is_uefi_disk(disk, sizeof(disk))); /* no table */
    memcpy(disk + 512, "EFI PART", 8);
    store_le64(disk + 512 + 72, 2);
    store_le32(disk + 512 + 84, 128);
    memcpy(disk + 1024 + 127 * 128, guid_esp, 16);
    assert_true(firmware_is_uefi_disk(disk, sizeof(disk)));
    assert_false(firmware_is_uefi_disk(disk, sizeof(disk) - 1)); /* cut off */
    assert_false(firmware_is_uefi_disk(disk, 512));
    /* sizes and places that lead out of what was read, or nowhere */
    store_le32(disk + 512 + 84, 0);
    assert_false(firmware_is_uefi_disk(disk, sizeof(disk)));
    store_le32(disk + 512 + 84, 0xffffffff);
    assert_false(firmware_is_uefi_disk(disk, sizeof(disk)));
    store_le32(disk + 512 + 84, 128);
    store_le64(disk + 512 + 72, UINT64_MAX / 512);
    assert_false(firmware_is_uefi_disk(disk, sizeof(disk)));
}

/* ---- variables in a file ---- */

static void write_file(const char *path, const void *data, size_t size)
{
    FILE *file = fopen(path, "wb");

    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    fclose(file);
}

static uint8_t byte_of(const char *path, long at)
{
    FILE *file = fopen(path, "rb");
    int c;

    assert_non_null(file);
    assert_int_equal(fseek(file, at, SEEK_SET), 0);
    c = getc(file);
    fclose(file);
    return (uint8_t)c;
}

static void variables_are_kept(void **state)
{
    static uint8_t image[0x3000];
    char dir[] = "/tmp/doppel-vars-XXXXXX", rom[64], vars[64], command[64];
    struct firmware fw, other;
    struct err e = {0};

    assert_non_null(mkdtemp(dir));
    snprintf(rom, sizeof(rom), "%s/rom", dir);
    snprintf(vars, sizeof(vars), "%s/vars", dir);
    write_file(rom, image, sizeof(image));
    /* a ROM by its file brings no variables to begin with */
    assert_true(firmware_open(rom, vars, &fw, &e) < 0);
    assert_non_null(strstr(e.msg, vars));
    image[5] = 0x55;
    write_file(vars, image, sizeof(image));
    assert_int_equal(firmware_open(rom, vars, &fw, &e), 0);
    assert_int_equal(fw.vars_size, sizeof(image));
    assert_int_equal(fw.vars[5], 0x55);
    /* one machine at a time */
    assert_true(firmware_open(rom, vars, &other, &e) < 0);
    assert_non_null(strstr(e.msg, "another machine"));
    fw.vars[5] = 0x11;
    fw.vars[6] = 0x22;
    fw.vars[7] = 0x33;
    assert_int_equal(firmware_write_vars(&fw, 6, 1), 0);
    assert_int_equal(byte_of(vars, 5), 0x55);
    assert_int_equal(byte_of(vars, 6), 0x22);
    assert_int_equal(byte_of(vars, 7), 0);
    firmware_close(&fw);
    firmware_close(&fw);
    assert_int_equal(firmware_open(rom, vars, &fw, &e), 0);
    assert_int_equal(fw.vars[6], 0x22);
    firmware_close(&fw);
    /* what cannot be one */
    write_file(vars, image, 0x1001);
    assert_true(firmware_open(rom, vars, &fw, &e) < 0);
    write_file(vars, image, 0);
    assert_true(firmware_open(rom, vars, &fw, &e) < 0);
    assert_true(firmware_open("seabios", vars, &fw, &e) < 0);
    snprintf(command, sizeof(command), "rm -r %s", dir);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_changes_under_the_next_instruction),
        cmocka_unit_test(memory_changes_while_engines_do),
        cmocka_unit_test(code_moves_to_the_ram_beneath),
        cmocka_unit_test(reset_keeps_ram),
        cmocka_unit_test(processors_start_again),
        cmocka_unit_test(tables_are_placed_by_commands),
        cmocka_unit_test(disks_are_told_apart),
        cmocka_unit_test(variables_are_kept),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
