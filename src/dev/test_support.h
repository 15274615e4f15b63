/*
 * test_support.h - for the unit tests of chips: a line that remembers, ports, a manual clock
 */
#ifndef DOPPEL_DEV_TEST_SUPPORT_H
#define DOPPEL_DEV_TEST_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/bits.h"
#include "dev/irq.h"
#include "mem/space.h"
#include "os/vclock.h"

/* Where a chip's line ends. */
struct probe {
    bool level;
    unsigned rises; /* low to high, since the test last cleared it */
};

static inline void probe_set(void *sink, unsigned input, bool level)
{
    struct probe *p = sink;
    if (level && !p[input].level)
        p[input].rises++;
    p[input].level = level;
}

static inline struct irq_line probe_line(struct probe *p)
{
    return (struct irq_line){.set = probe_set, .sink = p};
}

/* A machine with nothing but ports and time. */
struct bench {
    struct space *ports;
    struct vclock *clock;
};

static inline void bench_setup(struct bench *b)
{
    assert_int_equal(space_create("ports", 65536, &b->ports, NULL), 0);
    assert_int_equal(vclock_create_manual(&b->clock, NULL), 0);
}

static inline void bench_teardown(struct bench *b)
{
    /* A chip that is gone has left no timer behind. */
    assert_true(vclock_next_deadline_ns(b->clock) == UINT64_MAX);
    vclock_destroy(b->clock);
    space_destroy(b->ports);
}

static inline uint8_t in8(struct bench *b, uint16_t port)
{
    return (uint8_t)space_load(b->ports, port, 1);
}

static inline void out8(struct bench *b, uint16_t port, uint8_t v)
{
    space_store(b->ports, port, v, 1);
}

#define assert_in8(b, port, v) assert_int_equal(in8(b, port), v)

#endif
