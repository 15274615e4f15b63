/*
 * elf.c - ELF kernels (32 and 64 bits), and the PVH way to start them
 *
 * Nothing of the file is looked at through a struct: headers are read field by field at checked
 * offsets. Section headers are ignored; all that counts is in the program headers.
 * Spec: System V ABI, chapters 4 and 5; Xen, docs/misc/pvh.pandoc and start_info.h.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "vm/boot/boot.h"

#define PT_LOAD 1
#define PT_NOTE 4
#define EM_386 3
#define EM_X86_64 62
#define ET_EXEC 2
#define ET_DYN 3
#define SEGMENTS_MAX 64

#define NOTE_PHYS32_ENTRY 18 /* XEN_ELFNOTE_PHYS32_ENTRY */

/* struct hvm_start_info and what hangs on it */
#define START_INFO_MAGIC 0x336ec578u
#define START_INFO_SIZE 56
#define MODULE_SIZE 32
#define MEMMAP_SIZE 24

struct elf_header {
    bool is_64bit;
    uint64_t entry, phoff;
    unsigned phnum, phentsize;
};

struct elf_segment {
    uint32_t type;
    uint64_t offset, vaddr, paddr, filesz, memsz;
};

bool boot_is_elf(const struct boot_image *kernel)
{
    return kernel->size >= 4 && memcmp(kernel->data, "\177ELF", 4) == 0;
}

static int elf_read_header(const struct boot_image *kernel, struct elf_header *h, struct err *e)
{
    const uint8_t *d = kernel->data;
    unsigned machine, type, needed;

    if (kernel->size < 52 || (d[4] == 2 && kernel->size < 64))
        return err_set(e, 0, "load '%s': the ELF header is truncated", kernel->name);
    if ((d[4] != 1 && d[4] != 2) || d[5] != 1)
        return err_set(e, 0,
                       "load '%s': fields EI_CLASS %u and EI_DATA %u: not a little-endian ELF file "
                       "of 32 or 64 bits",
                       kernel->name, d[4], d[5]);
    h->is_64bit = d[4] == 2;
    type = load_le16(d + 16);
    machine = load_le16(d + 18);
    if (machine != EM_386 && machine != EM_X86_64)
        return err_set(e, 0, "load '%s': field e_machine: %u is not x86", kernel->name, machine);
    if (type != ET_EXEC && type != ET_DYN)
        return err_set(e, 0, "load '%s': field e_type: %u is not an executable", kernel->name,
                       type);
    h->entry = h->is_64bit ? load_le64(d + 24) : load_le32(d + 24);
    h->phoff = h->is_64bit ? load_le64(d + 32) : load_le32(d + 28);
    h->phentsize = load_le16(d + (h->is_64bit ? 54 : 42));
    h->phnum = load_le16(d + (h->is_64bit ? 56 : 44));
    needed = h->is_64bit ? 56 : 32;
    if (h->phnum == 0)
        return err_set(e, 0, "load '%s': field e_phnum: it has no program headers", kernel->name);
    if (h->phentsize < needed)
        return err_set(e, 0, "load '%s': field e_phentsize: %u is less than %u", kernel->name,
                       h->phentsize, needed);
    if (!range_fits(h->phoff, (uint64_t)h->phnum * h->phentsize, kernel->size))
        return err_set(e, 0,
                       "load '%s': field e_phoff: %u program headers at 0x%" PRIx64
                       " reach beyond the end of the file (truncated?)",
                       kernel->name, h->phnum, h->phoff);
    return 0;
}

static int elf_read_segment(const struct boot_image *kernel, const struct elf_header *h, unsigned n,
                            struct elf_segment *s, struct err *e)
{
    const uint8_t *p = kernel->data + h->phoff + (uint64_t)n * h->phentsize;

    s->type = load_le32(p);
    if (h->is_64bit) {
        s->offset = load_le64(p + 8);
        s->vaddr = load_le64(p + 16);
        s->paddr = load_le64(p + 24);
        s->filesz = load_le64(p + 32);
        s->memsz = load_le64(p + 40);
    } else {
        s->offset = load_le32(p + 4);
        s->vaddr = load_le32(p + 8);
        s->paddr = load_le32(p + 12);
        s->filesz = load_le32(p + 16);
        s->memsz = load_le32(p + 20);
    }
    if (s->type != PT_LOAD && s->type != PT_NOTE)
        return 0;
    if (!range_fits(s->offset, s->filesz, kernel->size))
        return err_set(e, 0,
                       "load '%s': program header %u: p_offset 0x%" PRIx64
                       " and p_filesz 0x%" PRIx64 " reach beyond the end of the file (truncated?)",
                       kernel->name, n, s->offset, s->filesz);
    if (s->type == PT_LOAD && s->memsz < s->filesz)
        return err_set(e, 0,
                       "load '%s': program header %u: p_memsz 0x%" PRIx64
                       " is less than p_filesz 0x%" PRIx64,
                       kernel->name, n, s->memsz, s->filesz);
    return 0;
}

/* Look for the PVH entry among the notes of one segment; notes that run over its end are none. */
static void elf_read_notes(const struct boot_image *kernel, const struct elf_segment *s,
                           struct boot_elf *out)
{
    const uint8_t *p = kernel->data + s->offset;
    uint64_t left = s->filesz;

    while (left >= 12) {
        uint32_t name_size = load_le32(p), desc_size = load_le32(p + 4), type = load_le32(p + 8);
        uint64_t desc = 12 + align_up(name_size, 4);
        uint64_t next = desc + align_up(desc_size, 4);

        if (desc + desc_size > left)
            return;
        if (type == NOTE_PHYS32_ENTRY && name_size == 4 && memcmp(p + 12, "Xen", 4) == 0 &&
            (desc_size == 4 || desc_size == 8)) {
            out->pvh_entry = desc_size == 8 ? load_le64(p + desc) : load_le32(p + desc);
            out->has_pvh = true;
            return;
        }
        if (next > left)
            return;
        p += next;
        left -= next;
    }
}

int boot_elf_parse(const struct boot_image *kernel, struct boot_elf *out, struct err *e)
{
    struct elf_header h;
    int ret = elf_read_header(kernel, &h, e);

    memset(out, 0, sizeof(*out));
    if (ret != 0)
        return ret;
    out->entry = h.entry;
    for (unsigned n = 0; n < h.phnum; n++) {
        struct elf_segment s;
        ret = elf_read_segment(kernel, &h, n, &s, e);
        if (ret != 0)
            return ret;
        if (s.type == PT_NOTE && !out->has_pvh)
            elf_read_notes(kernel, &s, out);
    }
    return 0;
}

static int elf_load_segment(struct boot_load *load, const struct boot_image *kernel, unsigned n,
                            const struct elf_segment *s, struct err *e)
{
    char what[32];
    int ret;

    snprintf(what, sizeof(what), "program header %u", n);
    ret = boot_claim(load, kernel, what, s->paddr, s->memsz, e);
    if (ret == 0)
        ret = boot_copy(load, kernel, s->offset, s->paddr, s->filesz, e);
    if (ret == 0)
        boot_zero(load, s->paddr + s->filesz, s->memsz - s->filesz);
    return ret;
}

int boot_elf_load(struct boot_load *load, const struct boot_image *kernel, uint64_t *entry,
                  uint64_t *end, struct err *e)
{
    struct elf_header h;
    uint64_t entry_paddr = 0;
    bool is_entry_found = false;
    unsigned loaded = 0;
    int ret = elf_read_header(kernel, &h, e);

    *end = 0;
    for (unsigned n = 0; ret == 0 && n < h.phnum; n++) {
        struct elf_segment s;
        ret = elf_read_segment(kernel, &h, n, &s, e);
        if (ret != 0 || s.type != PT_LOAD || s.memsz == 0)
            continue;
        if (++loaded > SEGMENTS_MAX)
            return err_set(e, 0, "load '%s': field e_phnum: more than %u segments to load",
                           kernel->name, SEGMENTS_MAX);
        ret = elf_load_segment(load, kernel, n, &s, e);
        *end = MAX(*end, s.paddr + s.memsz);
        if (entry != NULL && !is_entry_found && *entry >= s.vaddr && *entry - s.vaddr < s.memsz) {
            entry_paddr = *entry - s.vaddr + s.paddr;
            is_entry_found = true;
        }
    }
    if (ret != 0)
        return ret;
    if (loaded == 0)
        return err_set(e, 0, "load '%s': it has no segment to load", kernel->name);
    if (entry != NULL) {
        if (!is_entry_found && !boot_is_claimed(load, *entry, 1))
            return err_set(e, 0, "load '%s': field e_entry: 0x%" PRIx64 " is in no segment",
                           kernel->name, *entry);
        /* some kernels give their entry as a physical address though linked elsewhere */
        if (is_entry_found)
            *entry = entry_paddr;
    }
    return 0;
}

static int pvh_place(struct boot_load *load, const struct boot_image *kernel, uint64_t size,
                     uint64_t *addr, struct err *e)
{
    /* not page 0, and clear of the BIOS data area's end */
    if (boot_place_high(load, kernel, "start info", size, 16, 0x1000, 0xa0000, addr, NULL) == 0)
        return 0;
    return boot_place_high(load, kernel, "start info", size, 16, 0x1000, BIT(32), addr, e);
}

static int pvh_load_initrd(const struct boot_source *source, struct boot_load *load,
                           uint8_t *module, struct err *e)
{
    const struct boot_image *initrd = &source->modules[0];
    uint64_t addr;
    int ret =
        boot_place_high(load, initrd, "initrd", initrd->size, 4096, 0x100000, BIT(32), &addr, e);

    if (ret == 0)
        ret = boot_copy(load, initrd, 0, addr, initrd->size, e);
    if (ret == 0) {
        memset(module, 0, MODULE_SIZE);
        store_le64(module, addr);
        store_le64(module + 8, initrd->size);
    }
    return ret;
}

/* struct hvm_start_info, its module and memory map, and the command line, in one piece. */
static int pvh_write_info(const struct boot_source *source, struct boot_load *load,
                          const uint8_t *module, uint64_t *addr, struct err *e)
{
    unsigned modules = source->module_count;
    uint64_t module_at = START_INFO_SIZE + 8;
    uint64_t map_at = module_at + modules * MODULE_SIZE;
    uint64_t cmdline_at = map_at + load->map->count * MEMMAP_SIZE;
    uint64_t cmdline_size = strlen(load->cmdline) + 1;
    uint8_t info[START_INFO_SIZE] = {0};
    int ret = pvh_place(load, &source->kernel, cmdline_at + cmdline_size, addr, e);

    if (ret != 0)
        return ret;
    store_le32(info, START_INFO_MAGIC);
    store_le32(info + 4, 1);
    store_le32(info + 12, modules);
    store_le64(info + 16, modules != 0 ? *addr + module_at : 0);
    store_le64(info + 24, *addr + cmdline_at);
    store_le64(info + 32, load->rsdp_addr);
    store_le64(info + 40, *addr + map_at);
    store_le32(info + 48, load->map->count);
    boot_write(load, *addr, info, sizeof(info));
    boot_write(load, *addr + module_at, module, modules * MODULE_SIZE);
    for (unsigned i = 0; i < load->map->count; i++) {
        uint8_t entry[MEMMAP_SIZE] = {0};
        store_le64(entry, load->map->ranges[i].addr);
        store_le64(entry + 8, load->map->ranges[i].size);
        store_le32(entry + 16, load->map->ranges[i].type);
        boot_write(load, *addr + map_at + i * MEMMAP_SIZE, entry, sizeof(entry));
    }
    boot_write(load, *addr + cmdline_at, load->cmdline, cmdline_size);
    return 0;
}

int boot_load_pvh(const struct boot_source *source, struct boot_load *load, struct cpu_state *st,
                  struct err *e)
{
    const struct boot_image *kernel = &source->kernel;
    uint8_t module[MODULE_SIZE] = {0};
    struct boot_elf elf;
    uint64_t end, info = 0;
    int ret = boot_elf_parse(kernel, &elf, e);

    if (ret == 0)
        ret = boot_elf_load(load, kernel, NULL, &end, e);
    if (ret == 0 && (elf.pvh_entry > UINT32_MAX || !boot_is_claimed(load, elf.pvh_entry, 1)))
        ret = err_set(e, 0, "load '%s': the PVH note's entry point 0x%" PRIx64 " is in no segment",
                      kernel->name, elf.pvh_entry);
    if (ret == 0 && source->module_count != 0)
        ret = pvh_load_initrd(source, load, module, e);
    if (ret == 0)
        ret = pvh_write_info(source, load, module, &info, e);
    if (ret != 0)
        return ret;
    boot_state_protected(st, 0x8, 0x10);
    /* the protocol asks for a 32-bit TSS with this limit */
    st->seg[CPU_TR] = (struct cpu_seg){.attr = 0xb | SEG_P, .limit = 0x67};
    memset(st->gpr, 0, sizeof(st->gpr));
    st->gpr[CPU_RBX] = info;
    st->rip = elf.pvh_entry;
    return 0;
}
