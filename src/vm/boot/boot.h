/*
 * boot.h - put a kernel into guest memory, without firmware
 *
 * A kernel file is hostile: every offset, size and address in it is checked against the file
 * and against guest RAM before it is used, and what does not fit is an error that names the
 * file and the field. A loader changes guest memory and the boot processor's registers only.
 */
#ifndef DOPPEL_VM_BOOT_BOOT_H
#define DOPPEL_VM_BOOT_BOOT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "cpu/state.h"

struct space;

/* The numbers of the BIOS call INT 15h AX=E820h, which all boot protocols use. */
enum boot_range_type { BOOT_RAM = 1, BOOT_RESERVED = 2, BOOT_ACPI = 3 };

struct boot_range {
    uint64_t addr, size;
    enum boot_range_type type;
};

#define BOOT_RANGES_MAX 16

/* The machine's memory map: sorted, without overlaps. */
struct boot_map {
    struct boot_range ranges[BOOT_RANGES_MAX];
    unsigned count;
};

/* A file to load: in memory (`data`), or open (`fd`) and copied straight into guest RAM. */
struct boot_image {
    const char *name;       /* for messages; what a Multiboot kernel sees as a module's string */
    const uint8_t *data;    /* NULL: read from fd */
    uint64_t size;
    int fd;                 /* -1: in memory */
};

enum boot_format { BOOT_LINUX, BOOT_PVH, BOOT_MULTIBOOT };

#define BOOT_MODULES_MAX 32

/* A kernel and what comes with it. Open once; load as often as the machine starts. */
struct boot_source {
    enum boot_format format;
    struct boot_image kernel;
    struct boot_image modules[BOOT_MODULES_MAX];   /* Linux, PVH: at most one, the initrd */
    unsigned module_count;
    char *names[BOOT_MODULES_MAX + 1];             /* what the images' names point to */
};

/* Where a load puts things, and the RAM it has given away so far. */
#define BOOT_CLAIMS_MAX 128

struct boot_claim {
    uint64_t addr, size;
};

struct boot_load {
    /* set by the caller */
    struct space *memory;
    const struct boot_map *map;
    const char *cmdline;       /* never NULL */
    uint64_t rsdp_addr;

    struct boot_claim claims[BOOT_CLAIMS_MAX];
    unsigned claim_count;
};

/*
 * Open a kernel, find out its format, and open what `initrd` names: one file for Linux and
 * PVH; for Multiboot a list "FILE [ARGUMENTS][,FILE [ARGUMENTS]]...". `initrd` may be NULL.
 * The files stay open, so that later changes of directory or name do not matter.
 */
int boot_source_open(const char *kernel, const char *initrd, struct boot_source *out,
                     struct err *e);
void boot_source_close(struct boot_source *source);

/* What `data` (a whole kernel file) is. -EINVAL with a message when it is nothing we can boot. */
int boot_detect(const struct boot_image *kernel, enum boot_format *format, struct err *e);

/*
 * Load `source` into load->memory and set the registers with which the boot processor starts
 * in *st, which holds the state after reset.
 */
int boot_load(const struct boot_source *source, struct boot_load *load, struct cpu_state *st,
              struct err *e);

/* One format each; kernel->data is set. */
int boot_load_linux(const struct boot_source *source, struct boot_load *load, struct cpu_state *st,
                    struct err *e);
int boot_load_pvh(const struct boot_source *source, struct boot_load *load, struct cpu_state *st,
                  struct err *e);
int boot_load_multiboot(const struct boot_source *source, struct boot_load *load,
                        struct cpu_state *st, struct err *e);

/*
 * Reserve [addr, addr + size): it has to be RAM that nothing else was put into. `what` is the
 * subject of the message: "segment 2", "initrd".
 */
int boot_claim(struct boot_load *load, const struct boot_image *image, const char *what,
               uint64_t addr, uint64_t size, struct err *e);

/*
 * Find and reserve `size` bytes of free RAM within [min, limit), aligned, as high or as low as
 * possible.
 */
int boot_place_high(struct boot_load *load, const struct boot_image *image, const char *what,
                    uint64_t size, uint64_t align, uint64_t min, uint64_t limit, uint64_t *addr,
                    struct err *e);
int boot_place_low(struct boot_load *load, const struct boot_image *image, const char *what,
                   uint64_t size, uint64_t align, uint64_t min, uint64_t limit, uint64_t *addr,
                   struct err *e);

/* Fill RAM that was reserved: with bytes, zeroes, or [offset, offset + size) of a file. */
void boot_write(struct boot_load *load, uint64_t addr, const void *data, uint64_t size);
void boot_zero(struct boot_load *load, uint64_t addr, uint64_t size);
int boot_copy(struct boot_load *load, const struct boot_image *image, uint64_t offset,
              uint64_t addr, uint64_t size, struct err *e);

/* RAM from 1 MiB to the first hole, in bytes. */
uint64_t boot_map_extended_size(const struct boot_map *map);

/*
 * Flat segments with these selectors and their hidden parts; 32-bit protected mode without
 * paging, caches on, interrupts off.
 */
void boot_state_protected(struct cpu_state *st, uint16_t code, uint16_t data);

/* What both ELF formats need (elf.c). */
struct boot_elf {
    uint64_t entry;         /* e_entry */
    uint64_t pvh_entry;     /* from the PVH note; 0: none */
    bool has_pvh;
};

bool boot_is_elf(const struct boot_image *kernel);
/* Check the headers and read the notes. Loads nothing. */
int boot_elf_parse(const struct boot_image *kernel, struct boot_elf *out, struct err *e);
/*
 * Load the segments at their physical addresses. With `entry` not NULL, *entry is a virtual
 * address that becomes physical by the segment that holds it.
 */
int boot_elf_load(struct boot_load *load, const struct boot_image *kernel, uint64_t *entry,
                  uint64_t *end, struct err *e);
/* Whether [addr, addr + size) lies in one segment of the file. */
bool boot_is_claimed(const struct boot_load *load, uint64_t addr, uint64_t size);

/* Offset of a valid Multiboot header in the first 8 KiB, or -1. */
int64_t boot_multiboot_find(const struct boot_image *kernel);

#endif
