/*
 * testing.c - small sound kernels of each format, for tests to look at and to damage
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "mem/space.h"
#include "vm/boot/testing.h"

void testing_machine_init(struct testing_machine *m)
{
    int ret;

    memset(m, 0, sizeof(*m));
    m->ram = calloc(1, TESTING_RAM_SIZE);
    assert(m->ram != NULL);
    ret = space_create("memory", BIT(40), &m->space, &m->err);
    assert(ret == 0);
    ret = space_add_ram(m->space, 0, m->ram, 0xa0000, false, &m->err);
    assert(ret == 0);
    ret = space_add_ram(m->space, 0x100000, m->ram + 0x100000, TESTING_RAM_SIZE - 0x100000, false,
                        &m->err);
    assert(ret == 0);
    m->map = (struct boot_map){
        .ranges = {{0, 0x9fc00, BOOT_RAM},
                   {0x9fc00, 0x400, BOOT_RESERVED},
                   {0x100000, TESTING_RAM_SIZE - 0x100000, BOOT_RAM}},
        .count = 3,
    };
    m->load = (struct boot_load){
        .memory = m->space, .map = &m->map, .cmdline = "console=ttyS0 quiet", .rsdp_addr = 0xe0000};
}

void testing_machine_fini(struct testing_machine *m)
{
    space_destroy(m->space);
    free(m->ram);
}

int testing_load(struct testing_machine *m, const uint8_t *kernel, uint64_t size,
                 uint64_t initrd_size)
{
    struct boot_source source = {
        .kernel = {.name = "kernel", .data = kernel, .size = size, .fd = -1}};
    uint8_t *initrd = calloc(1, initrd_size + 1);
    int ret;

    assert(initrd != NULL);
    memset(initrd, 0x5a, initrd_size);
    if (initrd_size != 0)
        source.modules[source.module_count++] =
            (struct boot_image){.name = "initrd", .data = initrd, .size = initrd_size, .fd = -1};
    memset(&m->state, 0, sizeof(m->state));
    ret = boot_detect(&source.kernel, &source.format, &m->err);
    if (ret == 0)
        ret = boot_load(&source, &m->load, &m->state, &m->err);
    free(initrd);
    return ret;
}

uint64_t testing_make_linux(uint8_t *image, unsigned version, bool has_64bit_entry)
{
    uint64_t setup_size = 2 * 512, kernel_size = 0x1000;

    memset(image, 0, TESTING_IMAGE_SIZE);
    image[0x1f1] = 1; /* setup_sects */
    store_le32(image + 0x1f4, (uint32_t)kernel_size / 16);
    store_le16(image + 0x1fe, 0xaa55);
    image[0x200] = 0xeb;
    image[0x201] = 0x6a; /* the header ends at 26CH */
    memcpy(image + 0x202, "HdrS", 4);
    store_le16(image + 0x206, (uint16_t)version);
    image[0x211] = 1; /* loaded high */
    store_le32(image + 0x214, 0x100000);
    store_le32(image + 0x22c, 0x7fffffff); /* initrd_addr_max */
    store_le32(image + 0x230, 0x200000);   /* kernel_alignment */
    image[0x234] = 1;                      /* relocatable */
    image[0x236] = has_64bit_entry ? 1 : 0;
    store_le32(image + 0x238, 2047); /* cmdline_size */
    store_le32(image + 0x248, 0x100);
    store_le32(image + 0x24c, 0x800);
    store_le64(image + 0x258, 0x200000); /* pref_address */
    store_le32(image + 0x260, 0x10000);  /* init_size */
    memset(image + setup_size, 0xc3, kernel_size);
    return setup_size + kernel_size;
}

static void elf_put_segment(uint8_t *p, bool is_64bit, uint32_t type, uint64_t offset,
                            uint64_t vaddr, uint64_t paddr, uint64_t filesz, uint64_t memsz)
{
    store_le32(p, type);
    if (is_64bit) {
        store_le64(p + 8, offset);
        store_le64(p + 16, vaddr);
        store_le64(p + 24, paddr);
        store_le64(p + 32, filesz);
        store_le64(p + 40, memsz);
    } else {
        store_le32(p + 4, (uint32_t)offset);
        store_le32(p + 8, (uint32_t)vaddr);
        store_le32(p + 12, (uint32_t)paddr);
        store_le32(p + 16, (uint32_t)filesz);
        store_le32(p + 20, (uint32_t)memsz);
    }
}

/* Header and program headers; two segments to load, at 1 MiB and at 2 MiB. */
static void elf_make(uint8_t *image, bool is_64bit, uint64_t base)
{
    unsigned header = is_64bit ? 64 : 52, entry = is_64bit ? 56 : 32;
    uint8_t *p = image + header;

    memset(image, 0, TESTING_IMAGE_SIZE);
    memcpy(image, "\177ELF", 4);
    image[4] = is_64bit ? 2 : 1;
    image[5] = 1;
    image[6] = 1;
    store_le16(image + 16, 2);
    store_le16(image + 18, is_64bit ? 62 : 3);
    if (is_64bit) {
        store_le64(image + 24, base + 0x100010);
        store_le64(image + 32, header);
        store_le16(image + 54, (uint16_t)entry);
        store_le16(image + 56, 3);
    } else {
        store_le32(image + 24, (uint32_t)base + 0x100010);
        store_le32(image + 28, header);
        store_le16(image + 42, (uint16_t)entry);
        store_le16(image + 44, 3);
    }
    elf_put_segment(p, is_64bit, 1, 0x1000, base + 0x100000, 0x100000, 0x1000, 0x3000);
    elf_put_segment(p + entry, is_64bit, 1, 0x2000, base + 0x200000, 0x200000, 0x800, 0x800);
    elf_put_segment(p + 2 * entry, is_64bit, 4, 0x200, 0, 0, 40, 40);
    memset(image + 0x1000, 0x90, 0x1000);
    memset(image + 0x2000, 0x91, 0x800);
}

uint64_t testing_make_pvh(uint8_t *image, bool is_64bit)
{
    uint8_t *note = image + 0x200;

    elf_make(image, is_64bit, 0);
    /* another owner's note first */
    store_le32(note, 4);
    store_le32(note + 4, 0);
    store_le32(note + 8, 1);
    memcpy(note + 12, "GNU", 4);
    store_le32(note + 16, 4);
    store_le32(note + 20, is_64bit ? 8 : 4);
    store_le32(note + 24, 18);
    memcpy(note + 28, "Xen", 4);
    store_le32(note + 32, 0x100020);
    return 0x2800;
}

static void multiboot_put_header(uint8_t *p, uint32_t flags)
{
    store_le32(p, 0x1badb002);
    store_le32(p + 4, flags);
    store_le32(p + 8, 0 - (0x1badb002 + flags));
}

uint64_t testing_make_multiboot_elf(uint8_t *image, bool is_64bit)
{
    /* linked high, loaded low: the entry point is a virtual address */
    elf_make(image, is_64bit, is_64bit ? UINT64_C(0xffffffff80000000) : 0xc0000000);
    multiboot_put_header(image + 0x1000, 3);
    return 0x2800;
}

uint64_t testing_make_multiboot_flat(uint8_t *image)
{
    uint8_t *p = image + 0x40;

    memset(image, 0x92, TESTING_IMAGE_SIZE);
    multiboot_put_header(p, 0x10003);
    store_le32(p + 12, 0x100020); /* header_addr */
    store_le32(p + 16, 0x100000); /* load_addr: from file offset 20H on */
    store_le32(p + 20, 0x101000); /* load_end_addr */
    store_le32(p + 24, 0x102000); /* bss_end_addr */
    store_le32(p + 28, 0x100080); /* entry_addr */
    return 0x2000;
}
