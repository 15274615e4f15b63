/*
 * linux.c - Linux bzImage, without its real-mode part
 *
 * The setup header says where the kernel may go; we fill in the zero page as a boot loader and
 * the real-mode code together would, and enter at the 64-bit entry where there is one, else at
 * the 32-bit one.
 * Spec: Linux, Documentation/arch/x86/boot.rst and zero-page.rst.
 */
#include <inttypes.h>
#include <string.h>

#include "vm/boot/boot.h"

/*
 * Low memory. The zero page is where old kernels expect the real-mode code, and the command
 * line within 64 KiB of it, which protocol versions before 2.02 need.
 */
#define PAGE_TABLES_ADDR UINT64_C(0x80000)
#define PAGE_TABLES_SIZE UINT64_C(0x6000) /* PML4, PDPT, four page directories */
#define GDT_ADDR UINT64_C(0x8f000)
#define ZERO_PAGE_ADDR UINT64_C(0x90000)
#define CMDLINE_ADDR UINT64_C(0x91000)
#define CMDLINE_SPACE UINT64_C(0xc000)

#define BOOT_CS 0x10
#define BOOT_DS 0x18

/* Offsets in the setup header, which are those in the zero page too. */
#define HDR_START 0x1f1
#define HDR_SETUP_SECTS 0x1f1
#define HDR_SYSSIZE 0x1f4
#define HDR_VID_MODE 0x1fa
#define HDR_JUMP_LENGTH 0x201
#define HDR_MAGIC 0x202
#define HDR_VERSION 0x206
#define HDR_TYPE_OF_LOADER 0x210
#define HDR_LOADFLAGS 0x211
#define HDR_CODE32_START 0x214
#define HDR_RAMDISK_IMAGE 0x218
#define HDR_RAMDISK_SIZE 0x21c
#define HDR_HEAP_END_PTR 0x224
#define HDR_CMD_LINE_PTR 0x228
#define HDR_INITRD_ADDR_MAX 0x22c
#define HDR_KERNEL_ALIGNMENT 0x230
#define HDR_RELOCATABLE 0x234
#define HDR_XLOADFLAGS 0x236
#define HDR_CMDLINE_SIZE 0x238
#define HDR_PAYLOAD_OFFSET 0x248
#define HDR_PAYLOAD_LENGTH 0x24c
#define HDR_PREF_ADDRESS 0x258
#define HDR_INIT_SIZE 0x260
#define HDR_END_MAX 0x290

/* Elsewhere in the zero page. */
#define ZP_EXT_MEM_K 0x002
#define ZP_CMD_LINE_MAGIC 0x020
#define ZP_CMD_LINE_OFFSET 0x022
#define ZP_ACPI_RSDP_ADDR 0x070
#define ZP_ALT_MEM_K 0x1e0
#define ZP_E820_ENTRIES 0x1e8
#define ZP_E820_TABLE 0x2d0
#define ZP_SIZE 0x1000

#define LOADED_HIGH 0x01
#define CAN_USE_HEAP 0x80
#define XLF_KERNEL_64 0x01
#define CMD_LINE_MAGIC 0xa33f
#define VID_MODE_NORMAL 0xffff
#define LOADER_UNDEFINED 0xff

struct linux_image {
    const struct boot_image *file;
    unsigned version;
    uint64_t setup_size;  /* boot sector and real-mode code, in bytes */
    uint64_t kernel_size; /* the rest that is loaded */
    uint64_t memory_size; /* what it needs from its load address on */
    uint64_t load_addr;
    uint64_t initrd_addr_max; /* of the last byte */
    uint64_t cmdline_max;     /* bytes without the final zero */
    bool has_64bit_entry;
};

/* The least length of the header, as an end offset, that each protocol version defines. */
static unsigned header_end_of_version(unsigned version)
{
    static const struct {
        unsigned version, end;
    } ends[] = {{0x20f, 0x26c}, {0x20b, 0x268}, {0x20a, 0x264}, {0x209, 0x258},
                {0x208, 0x250}, {0x207, 0x248}, {0x206, 0x23c}, {0x205, 0x235},
                {0x203, 0x230}, {0x202, 0x22c}, {0x201, 0x226}};

    for (unsigned i = 0; i < ARRAY_SIZE(ends); i++)
        if (version >= ends[i].version)
            return ends[i].end;
    return 0x224;
}

static int linux_check_header(struct linux_image *k, struct err *e)
{
    const struct boot_image *file = k->file;
    const uint8_t *h = file->data;
    unsigned setup_sects = h[HDR_SETUP_SECTS] != 0 ? h[HDR_SETUP_SECTS] : 4;
    unsigned end = 0x202u + h[HDR_JUMP_LENGTH];

    k->version = load_le16(h + HDR_VERSION);
    if (k->version < 0x200)
        return err_set(e, 0,
                       "load '%s': field version: boot protocol %u.%02u is too old, 2.00 is the "
                       "oldest that is supported",
                       file->name, k->version >> 8, k->version & 0xff);
    k->setup_size = (setup_sects + 1) * UINT64_C(512);
    if (k->setup_size >= file->size)
        return err_set(e, 0,
                       "load '%s': field setup_sects says that %" PRIu64
                       " bytes come before the kernel; the file has %" PRIu64 " (truncated?)",
                       file->name, k->setup_size, file->size);
    if (end < header_end_of_version(k->version))
        return err_set(e, 0,
                       "load '%s': field jump: a header of protocol %u.%02u cannot end at 0x%x",
                       file->name, k->version >> 8, k->version & 0xff, end);
    if (!(h[HDR_LOADFLAGS] & LOADED_HIGH))
        return err_set(e, 0,
                       "load '%s': field loadflags: it is a zImage, which is loaded below 640 KiB; "
                       "only bzImage is supported",
                       file->name);
    return 0;
}

static int linux_check_sizes(struct linux_image *k, struct err *e)
{
    const struct boot_image *file = k->file;
    const uint8_t *h = file->data;

    k->kernel_size = file->size - k->setup_size;
    /* before 2.04 the field has 16 bits and is wrong for large kernels */
    if (k->version >= 0x204) {
        uint64_t size = (uint64_t)load_le32(h + HDR_SYSSIZE) * 16;
        if (size > k->kernel_size)
            return err_set(e, 0,
                           "load '%s': field syssize says that the kernel has %" PRIu64
                           " bytes; the file has only %" PRIu64 " for it (truncated?)",
                           file->name, size, k->kernel_size);
        if (size != 0)
            k->kernel_size = size; /* what follows is a signature */
    }
    if (k->version >= 0x208 && !range_fits(load_le32(h + HDR_PAYLOAD_OFFSET),
                                           load_le32(h + HDR_PAYLOAD_LENGTH), k->kernel_size))
        return err_set(e, 0,
                       "load '%s': fields payload_offset 0x%x and payload_length 0x%x do not fit "
                       "into the kernel of 0x%" PRIx64 " bytes",
                       file->name, load_le32(h + HDR_PAYLOAD_OFFSET),
                       load_le32(h + HDR_PAYLOAD_LENGTH), k->kernel_size);
    k->memory_size = k->kernel_size;
    if (k->version >= 0x20a)
        k->memory_size = MAX(k->memory_size, load_le32(h + HDR_INIT_SIZE));
    k->initrd_addr_max = k->version >= 0x203 ? load_le32(h + HDR_INITRD_ADDR_MAX) : 0x37ffffff;
    k->cmdline_max = k->version >= 0x206 ? load_le32(h + HDR_CMDLINE_SIZE) : 255;
    k->has_64bit_entry =
        k->version >= 0x20c && (load_le16(h + HDR_XLOADFLAGS) & XLF_KERNEL_64) != 0;
    /* the 64-bit entry is 0x200 bytes into the kernel */
    if (k->has_64bit_entry && k->kernel_size <= 0x200)
        return err_set(e, 0,
                       "load '%s': field xloadflags promises a 64-bit entry, which 0x%" PRIx64
                       " bytes of kernel cannot hold",
                       file->name, k->kernel_size);
    return 0;
}

/* Where the kernel prefers to be, or, where it can be moved, the lowest place that is free. */
static int linux_place(struct linux_image *k, struct boot_load *load, struct err *e)
{
    const uint8_t *h = k->file->data;
    uint64_t wanted = k->version >= 0x20a ? load_le64(h + HDR_PREF_ADDRESS) : 0x100000;
    bool is_relocatable = k->version >= 0x205 && h[HDR_RELOCATABLE] != 0;
    uint64_t align = k->version >= 0x205 ? load_le32(h + HDR_KERNEL_ALIGNMENT) : 0;
    uint64_t size = k->memory_size;

    k->load_addr = wanted;
    if (range_fits(wanted, size, BIT(32)) && wanted >= 0x100000 &&
        boot_claim(load, k->file, "kernel", wanted, size, NULL) == 0)
        return 0;
    if (!is_relocatable) {
        if (!range_fits(wanted, size, BIT(32)) || wanted < 0x100000)
            return err_set(e, 0,
                           "load '%s': field pref_address: 0x%" PRIx64 ", with 0x%" PRIx64
                           " bytes from there on, is not between 1 MiB and 4 GiB",
                           k->file->name, wanted, size);
        return boot_claim(load, k->file,
                          "kernel, which cannot be moved (fields pref_address "
                          "and init_size)",
                          wanted, size, e);
    }
    if (!is_pow2(align) || align > BIT(31))
        return err_set(e, 0,
                       "load '%s': field kernel_alignment: 0x%" PRIx64 " is not a power of two",
                       k->file->name, align);
    return boot_place_low(load, k->file, "kernel (field init_size)", size, align, 0x100000, BIT(32),
                          &k->load_addr, e);
}

static int linux_load_cmdline(const struct linux_image *k, struct boot_load *load, struct err *e)
{
    uint64_t length = strlen(load->cmdline);
    uint64_t max = MIN(k->cmdline_max, CMDLINE_SPACE - 1);

    if (length > max)
        return err_set(e, 0,
                       "load '%s': the command line has %" PRIu64
                       " characters; this kernel takes %" PRIu64,
                       k->file->name, length, max);
    boot_write(load, CMDLINE_ADDR, load->cmdline, length + 1);
    return 0;
}

static int linux_load_initrd(const struct linux_image *k, const struct boot_source *source,
                             struct boot_load *load, uint8_t *zp, struct err *e)
{
    const struct boot_image *initrd = &source->modules[0];
    uint64_t addr;
    int ret;

    if (source->module_count == 0 || initrd->size == 0)
        return 0;
    ret = boot_place_high(load, initrd, "initrd", initrd->size, 4096, 0x100000,
                          k->initrd_addr_max + 1, &addr, e);
    if (ret == 0)
        ret = boot_copy(load, initrd, 0, addr, initrd->size, e);
    if (ret != 0)
        return ret;
    store_le32(zp + HDR_RAMDISK_IMAGE, (uint32_t)addr);
    store_le32(zp + HDR_RAMDISK_SIZE, (uint32_t)initrd->size);
    return 0;
}

static void zero_page_set_memory(uint8_t *zp, const struct boot_map *map)
{
    uint64_t extended_kib = boot_map_extended_size(map) / 1024;
    unsigned count = 0;

    store_le16(zp + ZP_EXT_MEM_K, (uint16_t)MIN(extended_kib, 0xfc00));
    store_le32(zp + ZP_ALT_MEM_K, (uint32_t)MIN(extended_kib, UINT32_MAX));
    for (; count < map->count; count++) {
        uint8_t *entry = zp + ZP_E820_TABLE + count * 20;
        store_le64(entry, map->ranges[count].addr);
        store_le64(entry + 8, map->ranges[count].size);
        store_le32(entry + 16, map->ranges[count].type);
    }
    zp[ZP_E820_ENTRIES] = (uint8_t)count;
}

static void zero_page_fill(const struct linux_image *k, const struct boot_load *load, uint8_t *zp)
{
    const uint8_t *h = k->file->data;
    unsigned end = MIN(0x202u + h[HDR_JUMP_LENGTH], (unsigned)HDR_END_MAX);

    memset(zp, 0, ZP_SIZE);
    memcpy(zp + HDR_START, h + HDR_START, end - HDR_START);
    store_le16(zp + HDR_VID_MODE, VID_MODE_NORMAL);
    zp[HDR_TYPE_OF_LOADER] = LOADER_UNDEFINED;
    store_le32(zp + HDR_CODE32_START, (uint32_t)k->load_addr);
    store_le32(zp + HDR_RAMDISK_IMAGE, 0);
    store_le32(zp + HDR_RAMDISK_SIZE, 0);
    if (k->version >= 0x201) {
        zp[HDR_LOADFLAGS] |= CAN_USE_HEAP;
        store_le16(zp + HDR_HEAP_END_PTR, 0xfe00);
    }
    if (k->version >= 0x202) {
        store_le32(zp + HDR_CMD_LINE_PTR, (uint32_t)CMDLINE_ADDR);
    } else {
        store_le16(zp + ZP_CMD_LINE_MAGIC, CMD_LINE_MAGIC);
        store_le16(zp + ZP_CMD_LINE_OFFSET, (uint16_t)(CMDLINE_ADDR - ZERO_PAGE_ADDR));
    }
    if (k->version >= 0x20e)
        store_le64(zp + ZP_ACPI_RSDP_ADDR, load->rsdp_addr);
    zero_page_set_memory(zp, load->map);
}

/* The first 4 GiB at their own addresses, in pages of 2 MiB. */
static void linux_write_page_tables(struct boot_load *load)
{
    uint8_t table[4096];
    uint64_t pdpt = PAGE_TABLES_ADDR + 0x1000, directories = PAGE_TABLES_ADDR + 0x2000;

    memset(table, 0, sizeof(table));
    store_le64(table, pdpt | 3);
    boot_write(load, PAGE_TABLES_ADDR, table, sizeof(table));
    for (unsigned i = 0; i < 4; i++)
        store_le64(table + i * 8, (directories + i * 0x1000) | 3);
    boot_write(load, pdpt, table, sizeof(table));
    for (unsigned i = 0; i < 4; i++) {
        for (uint64_t n = 0; n < 512; n++)
            store_le64(table + n * 8, ((i * UINT64_C(512) + n) << 21) | 0x83);
        boot_write(load, directories + i * 0x1000, table, sizeof(table));
    }
}

static void linux_set_state(const struct linux_image *k, struct boot_load *load,
                            struct cpu_state *st)
{
    /* null, unused, flat code and flat data: the selectors are the protocol's */
    uint64_t gdt[4] = {0, 0, UINT64_C(0x00cf9b000000ffff), UINT64_C(0x00cf93000000ffff)};

    boot_state_protected(st, BOOT_CS, BOOT_DS);
    if (k->has_64bit_entry)
        gdt[2] = UINT64_C(0x00af9b000000ffff);
    boot_write(load, GDT_ADDR, gdt, sizeof(gdt));
    st->gdtr.base = GDT_ADDR;
    st->gdtr.limit = sizeof(gdt) - 1;
    memset(st->gpr, 0, sizeof(st->gpr));
    st->gpr[CPU_RSI] = ZERO_PAGE_ADDR;
    st->rip = k->load_addr;
    if (k->has_64bit_entry) {
        linux_write_page_tables(load);
        st->seg[CPU_CS].attr = (st->seg[CPU_CS].attr & ~SEG_DB) | SEG_L;
        st->cr3 = PAGE_TABLES_ADDR;
        st->cr4 = CR4_PAE;
        st->efer = EFER_LME | EFER_LMA;
        st->cr0 |= CR0_PG;
        st->rip += 0x200;
    }
}

int boot_load_linux(const struct boot_source *source, struct boot_load *load, struct cpu_state *st,
                    struct err *e)
{
    struct linux_image k = {.file = &source->kernel};
    uint8_t zp[ZP_SIZE];
    int ret = linux_check_header(&k, e);

    if (ret == 0)
        ret = linux_check_sizes(&k, e);
    if (ret == 0)
        ret = boot_claim(load, k.file, "boot parameters", PAGE_TABLES_ADDR,
                         CMDLINE_ADDR + CMDLINE_SPACE - PAGE_TABLES_ADDR, e);
    if (ret == 0)
        ret = linux_place(&k, load, e);
    if (ret == 0)
        ret = boot_copy(load, k.file, k.setup_size, k.load_addr, k.kernel_size, e);
    if (ret == 0)
        ret = linux_load_cmdline(&k, load, e);
    if (ret != 0)
        return ret;
    zero_page_fill(&k, load, zp);
    ret = linux_load_initrd(&k, source, load, zp, e);
    if (ret != 0)
        return ret;
    boot_write(load, ZERO_PAGE_ADDR, zp, sizeof(zp));
    linux_set_state(&k, load, st);
    return 0;
}
