/*
 * testing.h - small machines for the unit tests of this folder
 *
 * A guest is a Multiboot kernel: 32-bit code at 100020H, below the header.
 */
#ifndef DOPPEL_VM_TESTING_H
#define DOPPEL_VM_TESTING_H

#include <stddef.h>
#include <stdint.h>

#include "vm/vm.h"

#define TEST_GUEST(name, code)                                                                     \
    extern const uint8_t guest_##name[], guest_##name##_end[];                                     \
    __asm__(".pushsection .rodata\n"                                                               \
            "guest_" #name ":\n.code32\n" code "\n.code64\n"                                       \
            "guest_" #name "_end:\n.popsection\n")

/*
 * A machine of 8 MiB around the guest, and its loop. Of *config engine, cpu_count (0: 1), loop
 * (NULL: a new one) and the like are taken, the rest is filled in. Fails the test when something
 * goes wrong.
 */
struct vm *test_vm_create(const struct vm_config *config, const uint8_t *code, size_t size,
                          struct loop **loop);
void test_vm_destroy(struct vm *vm, struct loop *loop);

#define TEST_VM(config, name, loop)                                                                \
    test_vm_create(config, guest_##name, (size_t)(guest_##name##_end - guest_##name), loop)

#endif
