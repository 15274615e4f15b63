/*
 * testing.c - small machines for the unit tests of this folder
 */
#include "vm/testing.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "os/loop.h"

/* A file with a Multiboot header, 32 bytes, and the guest's code; loaded at 1 MiB. */
static void write_kernel(int fd, const uint8_t *code, size_t size)
{
    uint32_t header[8] = {0x1badb002, 0x10000, 0 - (0x1badb002u + 0x10000u), 0x100000, 0x100000, 0,
                          0,          0x100020};

    assert_int_equal(write(fd, header, sizeof(header)), sizeof(header));
    assert_int_equal(write(fd, code, size), size);
}

struct vm *test_vm_create(const struct vm_config *wanted, const uint8_t *code, size_t size,
                          struct loop **loop)
{
    char path[] = "/tmp/doppel-vm-XXXXXX";
    struct vm_config config = *wanted;
    struct err e = {0};
    struct vm *vm = NULL;
    int fd = mkstemp(path);

    assert_true(fd >= 0);
    write_kernel(fd, code, size);
    close(fd);
    if (config.loop == NULL)
        assert_int_equal(loop_create(&config.loop, &e), 0);
    *loop = config.loop;
    config.kernel_path = path;
    config.has_debug_exit = true;
    if (config.cpu_count == 0)
        config.cpu_count = 1;
    if (config.memory_bytes == 0)
        config.memory_bytes = UINT64_C(8) << 20;
    if (vm_create(&config, &vm, &e) != 0)
        fail_msg("%s", e.msg);
    unlink(path);
    return vm;
}

void test_vm_destroy(struct vm *vm, struct loop *loop)
{
    vm_destroy(vm);
    loop_destroy(loop);
}
