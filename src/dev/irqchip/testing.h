/*
 * testing.h - what tests of interrupt controllers share: registers, and what local APICs are on
 */
#ifndef DOPPEL_DEV_IRQCHIP_TESTING_H
#define DOPPEL_DEV_IRQCHIP_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "dev/irqchip/apic_bus.h"
#include "dev/irqchip/ioapic.h"
#include "dev/irqchip/lapic.h"
#include "mem/space.h"
#include "os/vclock.h"

/* Of the local APIC: by themselves, so that a wrong number there is found out. */
enum {
    ID = 0x20,
    VERSION = 0x30,
    TPR = 0x80,
    PPR = 0xa0,
    EOI = 0xb0,
    LDR = 0xd0,
    DFR = 0xe0,
    SVR = 0xf0,
    ISR = 0x100,
    TMR = 0x180,
    IRR = 0x200,
    ESR = 0x280,
    ICR = 0x300,
    ICR2 = 0x310,
    LVT_TIMER = 0x320,
    LVT_LINT0 = 0x350,
    LVT_LINT1 = 0x360,
    LVT_ERROR = 0x370,
    INITIAL = 0x380,
    CURRENT = 0x390,
    DIVIDE = 0x3e0,
};

/* A machine as far as local APICs need one; the clock goes by hand. */
struct apic_rig {
    struct apic_bus *bus;
    struct vclock *clock;
    struct space *memory;
    struct ioapic *ioapic;
};

static inline void apic_rig_make(struct apic_rig *rig)
{
    assert_int_equal(apic_bus_create(&rig->bus, NULL), 0);
    assert_int_equal(vclock_create_manual(&rig->clock, NULL), 0);
    assert_int_equal(space_create("memory", UINT64_C(1) << 40, &rig->memory, NULL), 0);
    assert_int_equal(ioapic_create(rig->bus, 1, &rig->ioapic, NULL), 0);
    assert_int_equal(ioapic_map(rig->ioapic, rig->memory, IOAPIC_DEFAULT_BASE, NULL), 0);
}

/* The local APICs are gone. */
static inline void apic_rig_free(struct apic_rig *rig)
{
    space_destroy(rig->memory);
    ioapic_destroy(rig->ioapic);
    apic_bus_destroy(rig->bus);
    vclock_destroy(rig->clock);
}

static inline uint32_t apic_rd(struct lapic *lapic, unsigned reg)
{
    return (uint32_t)lapic_mmio_read(lapic, LAPIC_DEFAULT_BASE + reg, 4);
}

static inline void apic_wr(struct lapic *lapic, unsigned reg, uint32_t value)
{
    lapic_mmio_write(lapic, LAPIC_DEFAULT_BASE + reg, value, 4);
}

/* For struct lapic_ops of tests in which nobody sends any. */
static inline void apic_raise_nothing(void *ctx)
{
    fail_msg("no NMI and no INIT was sent");
}

static inline void apic_raise_no_sipi(void *ctx, uint8_t vector)
{
    fail_msg("no SIPI was sent");
}

#endif
