/*
 * testing.h - kernels made of thin air, and a machine to load them into, for the loaders' tests
 */
#ifndef DOPPEL_VM_BOOT_TESTING_H
#define DOPPEL_VM_BOOT_TESTING_H

#include "vm/boot/boot.h"

#define TESTING_RAM_SIZE (UINT64_C(8) << 20)
#define TESTING_IMAGE_SIZE 0x3000

struct testing_machine {
    uint8_t *ram;           /* TESTING_RAM_SIZE bytes at address 0, but for A0000H..FFFFFH */
    struct space *space;
    struct boot_map map;
    struct boot_load load;
    struct cpu_state state;
    struct err err;
};

void testing_machine_init(struct testing_machine *m);
void testing_machine_fini(struct testing_machine *m);

/* Load `size` bytes as a kernel, with an initrd of `initrd_size` bytes unless that is 0. */
int testing_load(struct testing_machine *m, const uint8_t *kernel, uint64_t size,
                 uint64_t initrd_size);

/* Fill `image` (TESTING_IMAGE_SIZE bytes) and return the file's size. */
uint64_t testing_make_linux(uint8_t *image, unsigned version, bool has_64bit_entry);
uint64_t testing_make_pvh(uint8_t *image, bool is_64bit);
uint64_t testing_make_multiboot_elf(uint8_t *image, bool is_64bit);
uint64_t testing_make_multiboot_flat(uint8_t *image);

#endif
