/*
 * multiboot.c - Multiboot 1 kernels: ELF, or placed by the address fields of their header
 *
 * Modules and the information structure come right after the kernel in memory where nothing
 * else is, as with other loaders: small kernels map only what is near.
 * Spec: Multiboot Specification version 0.6.96.
 */
#include <inttypes.h>
#include <string.h>

#include "base/log.h"
#include "vm/boot/boot.h"

#define SEARCH_SIZE 8192
#define HEADER_MAGIC 0x1badb002u
#define BOOT_MAGIC 0x2badb002u

#define FLAG_VIDEO_MODE 0x4u
#define FLAGS_KNOWN 0x7u /* of bits 0..15, which a loader has to honour */
#define FLAGS_REQUIRED 0xffffu
#define FLAG_ADDRESSES 0x10000u

#define INFO_MEMORY 0x001u
#define INFO_CMDLINE 0x004u
#define INFO_MODULES 0x008u
#define INFO_MMAP 0x040u
#define INFO_LOADER_NAME 0x200u
#define INFO_SIZE 116 /* to the end of the VBE and framebuffer fields */
#define MODULE_SIZE 16
#define MMAP_ENTRY_SIZE 24

static const char loader_name[] = "doppel " DOPPEL_VERSION;

int64_t boot_multiboot_find(const struct boot_image *kernel)
{
    uint64_t end = MIN(kernel->size, SEARCH_SIZE);

    for (uint64_t at = 0; at + 12 <= end; at += 4) {
        const uint8_t *p = kernel->data + at;
        if (load_le32(p) == HEADER_MAGIC && load_le32(p) + load_le32(p + 4) + load_le32(p + 8) == 0)
            return (int64_t)at;
    }
    return -1;
}

struct address_fields {
    uint64_t header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr;
};

static int addresses_check(const struct boot_image *kernel, uint64_t header,
                           const struct address_fields *a, struct err *e)
{
    if (a->load_addr > a->header_addr || a->header_addr - a->load_addr > header)
        return err_set(e, 0,
                       "load '%s': fields header_addr 0x%" PRIx64 " and load_addr 0x%" PRIx64
                       " do not agree with the header at offset 0x%" PRIx64,
                       kernel->name, a->header_addr, a->load_addr, header);
    if (a->load_end_addr != 0 && a->load_end_addr < a->load_addr)
        return err_set(
            e, 0, "load '%s': field load_end_addr: 0x%" PRIx64 " is below load_addr 0x%" PRIx64,
            kernel->name, a->load_end_addr, a->load_addr);
    return 0;
}

/* The "a.out kludge": one piece of the file goes to load_addr, zeroes follow. */
static int multiboot_load_flat(struct boot_load *load, const struct boot_image *kernel,
                               uint64_t header, uint64_t *entry, uint64_t *end, struct err *e)
{
    const uint8_t *p = kernel->data + header;
    struct address_fields a;
    uint64_t offset, size, memory_size;
    int ret;

    if (!range_fits(header, 32, MIN(kernel->size, SEARCH_SIZE)))
        return err_set(e, 0, "load '%s': the Multiboot header is truncated", kernel->name);
    a = (struct address_fields){
        .header_addr = load_le32(p + 12),
        .load_addr = load_le32(p + 16),
        .load_end_addr = load_le32(p + 20),
        .bss_end_addr = load_le32(p + 24),
        .entry_addr = load_le32(p + 28),
    };
    ret = addresses_check(kernel, header, &a, e);
    if (ret != 0)
        return ret;
    offset = header - (a.header_addr - a.load_addr);
    size = a.load_end_addr != 0 ? a.load_end_addr - a.load_addr : kernel->size - offset;
    if (!range_fits(offset, size, kernel->size))
        return err_set(e, 0,
                       "load '%s': field load_end_addr: 0x%" PRIx64 " bytes from offset 0x%" PRIx64
                       " reach beyond the end of the file (truncated?)",
                       kernel->name, size, offset);
    memory_size = size;
    if (a.bss_end_addr != 0) {
        if (a.bss_end_addr < a.load_addr + size)
            return err_set(e, 0,
                           "load '%s': field bss_end_addr: 0x%" PRIx64
                           " is below the end of the data at 0x%" PRIx64,
                           kernel->name, a.bss_end_addr, a.load_addr + size);
        memory_size = a.bss_end_addr - a.load_addr;
    }
    if (a.entry_addr < a.load_addr || a.entry_addr - a.load_addr >= memory_size)
        return err_set(e, 0, "load '%s': field entry_addr: 0x%" PRIx64 " is not in what is loaded",
                       kernel->name, a.entry_addr);
    ret = boot_claim(load, kernel, "kernel (field load_addr)", a.load_addr, memory_size, e);
    if (ret == 0)
        ret = boot_copy(load, kernel, offset, a.load_addr, size, e);
    if (ret != 0)
        return ret;
    boot_zero(load, a.load_addr + size, memory_size - size);
    *entry = a.entry_addr;
    *end = a.load_addr + memory_size;
    return 0;
}

static int multiboot_load_kernel(struct boot_load *load, const struct boot_image *kernel,
                                 uint64_t *entry, uint64_t *end, struct err *e)
{
    int64_t header = boot_multiboot_find(kernel);
    struct boot_elf elf;
    uint32_t flags;
    int ret;

    if (header < 0)
        return err_set(e, 0, "load '%s': it has no Multiboot header", kernel->name);
    flags = load_le32(kernel->data + header + 4);
    if (flags & FLAGS_REQUIRED & ~FLAGS_KNOWN)
        return err_set(
            e, 0, "load '%s': field flags: it asks for 0x%x, which Multiboot 1 does not define",
            kernel->name, flags & FLAGS_REQUIRED & ~FLAGS_KNOWN);
    if (flags & FLAG_VIDEO_MODE)
        log_warn("kernel '%s' asks for a video mode; there is no display", kernel->name);
    if (flags & FLAG_ADDRESSES)
        return multiboot_load_flat(load, kernel, (uint64_t)header, entry, end, e);
    if (!boot_is_elf(kernel))
        return err_set(e, 0,
                       "load '%s': field flags: it has no load addresses (bit 16), and the file is "
                       "not ELF",
                       kernel->name);
    ret = boot_elf_parse(kernel, &elf, e);
    if (ret != 0)
        return ret;
    *entry = elf.entry;
    ret = boot_elf_load(load, kernel, entry, end, e);
    if (ret == 0 && *entry > UINT32_MAX)
        ret = err_set(e, 0, "load '%s': field e_entry: 0x%" PRIx64 " is above 4 GiB", kernel->name,
                      *entry);
    return ret;
}

static int multiboot_load_modules(const struct boot_source *source, struct boot_load *load,
                                  uint64_t kernel_end, uint64_t *addrs, struct err *e)
{
    for (unsigned i = 0; i < source->module_count; i++) {
        const struct boot_image *module = &source->modules[i];
        /* an empty module still has an address */
        int ret = boot_place_low(load, module, "module", MAX(module->size, 1), 4096,
                                 MAX(kernel_end, 0x100000), BIT(32), &addrs[i], e);
        if (ret == 0)
            ret = boot_copy(load, module, 0, addrs[i], module->size, e);
        if (ret != 0)
            return ret;
    }
    return 0;
}

/* Where the parts of the information go, relative to its start. */
struct info_layout {
    uint64_t modules, mmap, loader, cmdline, strings, size;
};

static struct info_layout info_layout_make(const struct boot_source *source,
                                           const struct boot_load *load)
{
    struct info_layout l;

    l.modules = align_up(INFO_SIZE, 16);
    l.mmap = l.modules + source->module_count * MODULE_SIZE;
    l.loader = l.mmap + load->map->count * MMAP_ENTRY_SIZE;
    l.cmdline = l.loader + sizeof(loader_name);
    l.strings = l.cmdline + strlen(load->cmdline) + 1;
    l.size = l.strings;
    for (unsigned i = 0; i < source->module_count; i++)
        l.size += strlen(source->modules[i].name) + 1;
    return l;
}

static void info_write_modules(const struct boot_source *source, struct boot_load *load,
                               const struct info_layout *l, uint64_t info, const uint64_t *addrs)
{
    uint64_t string = info + l->strings;

    for (unsigned i = 0; i < source->module_count; i++) {
        const struct boot_image *module = &source->modules[i];
        uint8_t entry[MODULE_SIZE] = {0};
        store_le32(entry, (uint32_t)addrs[i]);
        store_le32(entry + 4, (uint32_t)(addrs[i] + module->size));
        store_le32(entry + 8, (uint32_t)string);
        boot_write(load, info + l->modules + i * MODULE_SIZE, entry, sizeof(entry));
        boot_write(load, string, module->name, strlen(module->name) + 1);
        string += strlen(module->name) + 1;
    }
}

static void info_write_mmap(struct boot_load *load, uint64_t addr)
{
    for (unsigned i = 0; i < load->map->count; i++) {
        const struct boot_range *r = &load->map->ranges[i];
        uint8_t entry[MMAP_ENTRY_SIZE];
        store_le32(entry, MMAP_ENTRY_SIZE - 4); /* the size field does not count itself */
        store_le64(entry + 4, r->addr);
        store_le64(entry + 12, r->size);
        store_le32(entry + 20, r->type);
        boot_write(load, addr + i * MMAP_ENTRY_SIZE, entry, sizeof(entry));
    }
}

static int multiboot_write_info(const struct boot_source *source, struct boot_load *load,
                                uint64_t kernel_end, const uint64_t *modules, uint64_t *out,
                                struct err *e)
{
    struct info_layout l = info_layout_make(source, load);
    const struct boot_map *map = load->map;
    uint8_t info[INFO_SIZE] = {0};
    uint64_t at;
    int ret = boot_place_low(load, &source->kernel, "Multiboot information", l.size, 16,
                             MAX(kernel_end, 0x100000), BIT(32), &at, e);

    if (ret != 0)
        return ret;
    store_le32(info, INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MMAP | INFO_LOADER_NAME);
    store_le32(info + 4,
               (uint32_t)(map->count != 0 ? MIN(map->ranges[0].size, 0xa0000) / 1024 : 0));
    store_le32(info + 8, (uint32_t)(boot_map_extended_size(map) / 1024));
    store_le32(info + 16, (uint32_t)(at + l.cmdline));
    store_le32(info + 20, source->module_count);
    store_le32(info + 24, source->module_count != 0 ? (uint32_t)(at + l.modules) : 0);
    store_le32(info + 44, map->count * MMAP_ENTRY_SIZE);
    store_le32(info + 48, (uint32_t)(at + l.mmap));
    store_le32(info + 64, (uint32_t)(at + l.loader));
    boot_write(load, at, info, sizeof(info));
    info_write_modules(source, load, &l, at, modules);
    info_write_mmap(load, at + l.mmap);
    boot_write(load, at + l.loader, loader_name, sizeof(loader_name));
    boot_write(load, at + l.cmdline, load->cmdline, strlen(load->cmdline) + 1);
    *out = at;
    return 0;
}

int boot_load_multiboot(const struct boot_source *source, struct boot_load *load,
                        struct cpu_state *st, struct err *e)
{
    uint64_t modules[BOOT_MODULES_MAX], entry, end, info;
    int ret = multiboot_load_kernel(load, &source->kernel, &entry, &end, e);

    if (ret == 0)
        ret = multiboot_load_modules(source, load, end, modules, e);
    if (ret == 0)
        ret = multiboot_write_info(source, load, end, modules, &info, e);
    if (ret != 0)
        return ret;
    boot_state_protected(st, 0x8, 0x10);
    memset(st->gpr, 0, sizeof(st->gpr));
    st->gpr[CPU_RAX] = BOOT_MAGIC;
    st->gpr[CPU_RBX] = info;
    st->rip = entry;
    return 0;
}
