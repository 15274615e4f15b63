/*
 * test_device.h - what QEMU calls pc-testdev: interrupt lines, a register and a buffer at the
 * disposal of bare-metal test suites
 *
 *   port 0E0H, 4 bytes     a register that remembers; bytes, words and all of it
 *   port 0E4H, 32 bits     the address of a page: the monitor may forget what it knows of it
 *   port 0E8H, 4 bytes     the register of 0E0H again
 *   port 2000H + n, byte   interrupt line n (0 to 23): low when 0 is written, else high
 *   0FF000000H, 64 KiB     memory that is not RAM: each access reaches the device
 *
 * Threads: set-up and reset by one thread; accesses come through the spaces, which take the
 * device's lock. Lines are driven with that lock held.
 *
 * Spec: none; the behaviour of QEMU's device and what kvm-unit-tests do with it.
 */
#ifndef DOPPEL_DEV_PLATFORM_TEST_DEVICE_H
#define DOPPEL_DEV_PLATFORM_TEST_DEVICE_H

#include <stdint.h>

#include "base/err.h"
#include "dev/irq.h"

struct test_device;
struct space;

#define TEST_DEVICE_PORT 0xe0 /* 12 ports */
#define TEST_DEVICE_LINES_PORT 0x2000
#define TEST_DEVICE_LINES 24
#define TEST_DEVICE_MEMORY UINT64_C(0xff000000)
#define TEST_DEVICE_MEMORY_SIZE 0x10000

int test_device_create(const struct irq_line lines[TEST_DEVICE_LINES], struct test_device **out,
                       struct err *e);

/* After the spaces no longer lead here. NULL is allowed. */
void test_device_destroy(struct test_device *dev);

/* Lines low, register and buffer zero. */
void test_device_reset(struct test_device *dev);

/* At the addresses above. */
int test_device_map(struct test_device *dev, struct space *ports, struct space *memory,
                    struct err *e);

#endif
