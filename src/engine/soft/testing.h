/*
 * testing.h - a small machine for the unit tests of engine/soft: RAM, one vCPU, and handlers
 * that halt, so that a test sees which exception came with which frame
 *
 * Guest-physical memory is identity-mapped where paging is on (user pages, 2 MiB each). The
 * handler of vector n is one HLT at SOFT_TEST_HANDLERS + 16 * n.
 */
#ifndef DOPPEL_ENGINE_SOFT_TESTING_H
#define DOPPEL_ENGINE_SOFT_TESTING_H

#include "cpu/model.h"
#include "engine/soft/vcpu.h"

#define SOFT_TEST_RAM UINT64_C(0x400000)
#define SOFT_TEST_GDT 0x1000u
#define SOFT_TEST_IDT 0x2000u
#define SOFT_TEST_TSS 0x3000u
#define SOFT_TEST_TABLES 0x10000u
#define SOFT_TEST_HANDLERS 0x8000u
#define SOFT_TEST_CODE 0x100000u /* protected and long mode */
#define SOFT_TEST_CODE_REAL 0x7000u
#define SOFT_TEST_STACK 0x80000u
#define SOFT_TEST_STACK_REAL 0x6000u
#define SOFT_TEST_STACK0 0x90000u /* ESP0, RSP0 */
#define SOFT_TEST_DATA 0x200000u

/* The GDT. SYSCALL and SYSENTER find their segments after CODE64 and USER_CODE32. */
enum soft_test_selector {
    SEL_CODE32 = 0x08,
    SEL_DATA = 0x10,
    SEL_CODE64 = 0x18,
    SEL_DATA2 = 0x20,
    SEL_USER_CODE32 = 0x28,
    SEL_USER_DATA = 0x30,
    SEL_USER_CODE64 = 0x38,
    SEL_TSS = 0x40, /* 16 bytes, as the next two, for long mode */
    SEL_LDT = 0x50,
    SEL_GATE = 0x60,
    SEL_TSS2 = 0x70,
    SEL_TASK_GATE = 0x80,
    SEL_CODE16 = 0x88,
    SEL_DATA16 = 0x90,
    SEL_ABSENT = 0x98,
    SEL_CONFORMING = 0xa0,
    SEL_READ_ONLY = 0xa8,
    SEL_LIMIT = 0xb0,
};

enum soft_test_mode { SOFT_TEST_REAL, SOFT_TEST_PROTECTED, SOFT_TEST_LONG };

struct soft_test {
    struct cpu_model model;
    struct soft_engine engine;
    struct soft_vcpu *v;
    struct engine_pins pins;
    uint8_t *ram;

    /* what the guest did through the host table */
    uint16_t io_port;
    unsigned io_size;
    uint64_t io_value; /* last written; what reads return */
    uint64_t cr8;
    uint32_t msr_index;
    uint64_t msr_value;
    struct cpu_hypercall hypercall; /* the last one */
    int64_t hypercall_result;
    unsigned host_calls;
    int interrupt_vector; /* given to interrupt_acknowledge */
};

/* Made in the given mode at CPL 0, interrupts off, rip at the code address. Asserts on failure. */
struct soft_test *soft_test_create(enum soft_test_mode mode);
void soft_test_destroy(struct soft_test *t);

/* Make the current mode's CPL 3 (protected and long mode). */
void soft_test_user(struct soft_test *t, bool is_64bit);
/* Compatibility mode at CPL 0, from SOFT_TEST_LONG. */
void soft_test_compat(struct soft_test *t);
/* Virtual-8086 mode with this IOPL, code at SOFT_TEST_CODE_REAL; from SOFT_TEST_PROTECTED. */
void soft_test_v86(struct soft_test *t, unsigned iopl);

/* What CPUID leaf 0 says from now on: "GenuineIntel" or "AuthenticAMD". */
void soft_test_set_vendor(struct soft_test *t, bool is_amd);

/* Bytes of immediates in code. */
#define LE16(x) (uint8_t)(x), (uint8_t)((uint64_t)(x) >> 8)
#define LE32(x) LE16(x), LE16((uint64_t)(x) >> 16)

void soft_test_descriptor(struct soft_test *t, unsigned selector, uint32_t base, uint32_t limit,
                          uint32_t attr);
/* A call (or other) gate in the GDT; 16 bytes in long mode. */
void soft_test_gate(struct soft_test *t, unsigned selector, unsigned type, unsigned dpl,
                    uint16_t target, uint64_t offset, unsigned parameters);

/* Put code at the current CS:rip and step until HLT or shutdown, or `steps` instructions. */
void soft_test_run(struct soft_test *t, const void *code, size_t size, unsigned steps);
#define SOFT_TEST_RUN(t, steps, ...)                                                               \
    soft_test_run(t, (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}), steps)

/* The vector whose handler halted, or -1. */
int soft_test_vector(const struct soft_test *t);
/* Error code on top of the handler's stack. */
uint64_t soft_test_error(const struct soft_test *t);

uint64_t soft_test_get(const struct soft_test *t, uint64_t addr, unsigned size);
void soft_test_put(struct soft_test *t, uint64_t addr, unsigned size, uint64_t value);

#endif
