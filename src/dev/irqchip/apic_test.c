/*
 * apic_test.c - local APICs, their timers, the bus and the IOAPIC together
 */
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "dev/irqchip/testing.h"

#define CPUS 4
#define TSC_HZ UINT64_C(2000000000)
#define LAPIC LAPIC_DEFAULT_BASE
#define IOAPIC IOAPIC_DEFAULT_BASE

struct cpu {
    struct lapic *lapic;
    struct vclock *clock;
    bool intr;
    unsigned nmis, inits, sipis;
    uint8_t sipi_vector;
    uint64_t tsc_offset;
};

struct machine {
    struct apic_rig rig;
    struct cpu cpu[CPUS];
    int pic_vector;
    unsigned pic_acknowledges;
};

static void set_intr(void *ctx, bool level)
{
    ((struct cpu *)ctx)->intr = level;
}

static void raise_nmi(void *ctx)
{
    ((struct cpu *)ctx)->nmis++;
}

static void raise_init(void *ctx)
{
    ((struct cpu *)ctx)->inits++;
}

static void raise_sipi(void *ctx, uint8_t vector)
{
    ((struct cpu *)ctx)->sipis++;
    ((struct cpu *)ctx)->sipi_vector = vector;
}

static uint64_t guest_tsc(void *ctx)
{
    struct cpu *cpu = ctx;

    return vclock_now_ns(cpu->clock) * (TSC_HZ / NS_PER_SEC) + cpu->tsc_offset;
}

static const struct lapic_ops ops = {set_intr, raise_nmi, raise_init, raise_sipi, guest_tsc};

static int pic_acknowledge(void *ctx)
{
    struct machine *m = ctx;

    m->pic_acknowledges++;
    return m->pic_vector;
}

static int setup(void **state)
{
    struct machine *m = calloc(1, sizeof(*m));

    apic_rig_make(&m->rig);
    for (unsigned i = 0; i < CPUS; i++) {
        struct lapic_config config = {
            .bus = m->rig.bus,
            .clock = m->rig.clock,
            .ops = &ops,
            .cpu = &m->cpu[i],
            .apic_id = i,
            .is_bsp = i == 0,
            .phys_bits = 40,
            .tsc_hz = TSC_HZ,
            .pic_acknowledge = pic_acknowledge,
            .pic = m,
        };
        m->cpu[i].clock = m->rig.clock;
        assert_int_equal(lapic_create(&config, &m->cpu[i].lapic, NULL), 0);
    }
    *state = m;
    return 0;
}

static int teardown(void **state)
{
    struct machine *m = *state;

    for (unsigned i = 0; i < CPUS; i++)
        lapic_destroy(m->cpu[i].lapic);
    apic_rig_free(&m->rig);
    free(m);
    return 0;
}

static uint32_t rd(struct machine *m, unsigned cpu, unsigned reg)
{
    return apic_rd(m->cpu[cpu].lapic, reg);
}

static void wr(struct machine *m, unsigned cpu, unsigned reg, uint32_t value)
{
    apic_wr(m->cpu[cpu].lapic, reg, value);
}

static bool vector_in(struct machine *m, unsigned cpu, unsigned set, unsigned vector)
{
    return rd(m, cpu, set + vector / 32 * 16) >> vector % 32 & 1;
}

static void enable_all(struct machine *m)
{
    for (unsigned i = 0; i < CPUS; i++)
        wr(m, i, SVR, 0x1ff);
}

static void send(struct machine *m, unsigned from, uint32_t dest, uint32_t low)
{
    wr(m, from, ICR2, dest << 24);
    wr(m, from, ICR, low);
}

static int ack(struct machine *m, unsigned cpu)
{
    return lapic_acknowledge(m->cpu[cpu].lapic);
}

static uint64_t msr(struct machine *m, unsigned cpu, uint32_t index)
{
    uint64_t value = 0;

    assert_true(lapic_msr_read(m->cpu[cpu].lapic, index, &value));
    return value;
}

static bool wrmsr(struct machine *m, unsigned cpu, uint32_t index, uint64_t value)
{
    return lapic_msr_write(m->cpu[cpu].lapic, index, value);
}

static void enter_x2apic(struct machine *m, unsigned cpu)
{
    assert_true(wrmsr(m, cpu, 0x1b, msr(m, cpu, 0x1b) | 0x400));
}

static void test_reset_state(void **state)
{
    struct machine *m = *state;

    assert_int_equal(msr(m, 0, 0x1b), 0xfee00900);
    assert_int_equal(msr(m, 1, 0x1b), 0xfee00800);
    assert_int_equal(rd(m, 2, ID), 2u << 24);
    assert_int_equal(rd(m, 0, VERSION), 0x01050014);
    assert_int_equal(rd(m, 0, SVR), 0xff);
    assert_int_equal(rd(m, 0, DFR), 0xffffffff);
    for (unsigned reg = LVT_TIMER; reg <= LVT_ERROR; reg += 0x10)
        assert_int_equal(rd(m, 0, reg), 0x10000);
    assert_int_equal(rd(m, 0, CURRENT), 0);
    assert_true(lapic_claims(m->cpu[0].lapic, 0xfee00fff));
    assert_false(lapic_claims(m->cpu[0].lapic, 0xfee01000));
}

static void test_software_disabled(void **state)
{
    struct machine *m = *state;

    send(m, 0, 1, 0x4031);
    assert_false(m->cpu[1].intr);
    wr(m, 1, LVT_LINT0, 0x700);
    assert_int_equal(rd(m, 1, LVT_LINT0), 0x10700);
    wr(m, 1, SVR, 0x1ff);
    wr(m, 1, LVT_LINT0, 0x700);
    assert_int_equal(rd(m, 1, LVT_LINT0), 0x700);
    wr(m, 1, SVR, 0xff);
    assert_int_equal(rd(m, 1, LVT_LINT0), 0x10700);
    send(m, 0, 1, 0x4400);
    assert_int_equal(m->cpu[1].nmis, 1);
}

static void test_priority(void **state)
{
    struct machine *m = *state;

    enable_all(m);
    send(m, 0, 1, 0x4041);
    send(m, 0, 1, 0x4052);
    send(m, 0, 1, 0x4055);
    assert_true(m->cpu[1].intr);
    assert_int_equal(ack(m, 1), 0x55);
    assert_int_equal(rd(m, 1, PPR), 0x50);
    assert_false(m->cpu[1].intr); /* 52H is of the same class */
    assert_int_equal(ack(m, 1), -1);
    wr(m, 1, EOI, 0);
    assert_int_equal(ack(m, 1), 0x52);
    lapic_cr8_write(m->cpu[1].lapic, 4);
    assert_int_equal(rd(m, 1, TPR), 0x40);
    wr(m, 1, EOI, 0);
    assert_false(m->cpu[1].intr);
    assert_int_equal(rd(m, 1, PPR), 0x40);
    lapic_cr8_write(m->cpu[1].lapic, 3);
    assert_int_equal(lapic_cr8_read(m->cpu[1].lapic), 3);
    assert_true(m->cpu[1].intr);
    assert_int_equal(ack(m, 1), 0x41);
    assert_true(vector_in(m, 1, ISR, 0x41));
    assert_false(vector_in(m, 1, IRR, 0x41));
}

static void test_shorthands(void **state)
{
    struct machine *m = *state;

    enable_all(m);
    wr(m, 0, ICR, 0x44030);
    assert_true(m->cpu[0].intr && !m->cpu[1].intr);
    assert_int_equal(ack(m, 0), 0x30);
    wr(m, 0, EOI, 0);
    wr(m, 0, ICR, 0xc4031);
    assert_false(m->cpu[0].intr);
    for (unsigned i = 1; i < CPUS; i++)
        assert_int_equal(ack(m, i), 0x31);
    wr(m, 0, ICR, 0x84042);
    for (unsigned i = 0; i < CPUS; i++)
        assert_int_equal(ack(m, i), 0x42);
    send(m, 2, 0xff, 0x4053);
    for (unsigned i = 0; i < CPUS; i++)
        assert_int_equal(ack(m, i), 0x53);
}

static void test_logical(void **state)
{
    struct machine *m = *state;

    enable_all(m);
    for (unsigned i = 0; i < CPUS; i++)
        wr(m, i, LDR, 1u << (24 + i));
    send(m, 0, 0xa, 0x4831);
    assert_int_equal(ack(m, 0), -1);
    assert_int_equal(ack(m, 1), 0x31);
    assert_int_equal(ack(m, 2), -1);
    assert_int_equal(ack(m, 3), 0x31);
    /* clusters of two */
    for (unsigned i = 0; i < CPUS; i++) {
        wr(m, i, DFR, 0);
        wr(m, i, LDR, (i / 2 << 4 | 1u << i % 2) << 24);
    }
    send(m, 0, 0x13, 0x4841);
    assert_int_equal(ack(m, 0), -1);
    assert_int_equal(ack(m, 1), -1);
    assert_int_equal(ack(m, 2), 0x41);
    assert_int_equal(ack(m, 3), 0x41);
    send(m, 0, 0xff, 0x4852);
    for (unsigned i = 0; i < CPUS; i++)
        assert_int_equal(ack(m, i), 0x52);
}

static void test_lowest_priority(void **state)
{
    struct machine *m = *state;
    unsigned taken[CPUS] = {0};

    enable_all(m);
    for (unsigned i = 0; i < CPUS; i++)
        wr(m, i, LDR, 1u << (24 + i));
    wr(m, 0, TPR, 0x20);
    wr(m, 3, SVR, 0xff);
    for (unsigned n = 0; n < 8; n++) {
        struct apic_message msg = {
            .dest = 0xf, .is_logical = true, .mode = APIC_LOWEST, .vector = 0x61};
        assert_true(apic_bus_deliver(m->rig.bus, &msg));
        for (unsigned i = 0; i < CPUS; i++) {
            if (ack(m, i) == 0x61) {
                taken[i]++;
                wr(m, i, EOI, 0);
            }
        }
    }
    assert_int_equal(taken[0], 0);
    assert_int_equal(taken[3], 0);
    assert_int_equal(taken[1] + taken[2], 8);
    assert_true(taken[1] > 0 && taken[2] > 0);
}

static void test_init_sipi(void **state)
{
    struct machine *m = *state;

    send(m, 0, 1, 0xc500);
    assert_int_equal(m->cpu[1].inits, 1);
    send(m, 0, 1, 0x8500); /* de-assert */
    assert_int_equal(m->cpu[1].inits, 1);
    send(m, 0, 1, 0x4609);
    assert_int_equal(m->cpu[1].sipis, 1);
    assert_int_equal(m->cpu[1].sipi_vector, 9);
    wr(m, 0, ICR, 0x84500); /* all including self: not for INIT */
    assert_int_equal(m->cpu[0].inits, 0);
    wr(m, 0, ICR, 0xc4500);
    assert_int_equal(m->cpu[0].inits, 0);
    assert_int_equal(m->cpu[3].inits, 1);

    wr(m, 1, SVR, 0x1ff);
    wr(m, 1, TPR, 0x33);
    send(m, 0, 1, 0x4077);
    assert_true(m->cpu[1].intr);
    lapic_init_reset(m->cpu[1].lapic);
    assert_false(m->cpu[1].intr);
    assert_int_equal(rd(m, 1, TPR), 0);
    assert_int_equal(rd(m, 1, ID), 1u << 24);
}

static void test_errors(void **state)
{
    struct machine *m = *state;

    enable_all(m);
    wr(m, 0, LVT_ERROR, 0xe0);
    send(m, 0, 1, 0x4005);
    assert_int_equal(rd(m, 0, ESR), 0); /* latched by a write only */
    assert_int_equal(ack(m, 0), 0xe0);
    wr(m, 0, EOI, 0);
    rd(m, 0, 0x3d0);
    assert_false(m->cpu[0].intr); /* not armed again before ESR is written */
    wr(m, 0, ESR, 0);
    assert_int_equal(rd(m, 0, ESR), 0xa0);
    wr(m, 0, ESR, 0);
    assert_int_equal(rd(m, 0, ESR), 0);
    wr(m, 0, 0x400, 1);
    assert_int_equal(ack(m, 0), 0xe0);
    /* a vector below 16 arrives over the bus */
    apic_bus_send_msi(m->rig.bus, 0xfee01000, 0x0f);
    wr(m, 1, ESR, 0);
    assert_int_equal(rd(m, 1, ESR), 0x40);
}

static void test_lint(void **state)
{
    struct machine *m = *state;
    struct irq_line lint0 = lapic_lint(m->cpu[0].lapic, 0);
    struct irq_line lint1 = lapic_lint(m->cpu[0].lapic, 1);

    m->pic_vector = 0x28;
    irq_set(&lint0, true);
    assert_false(m->cpu[0].intr);
    lapic_set_virtual_wire(m->cpu[0].lapic);
    assert_true(m->cpu[0].intr);
    assert_int_equal(ack(m, 0), 0x28);
    assert_int_equal(m->pic_acknowledges, 1);
    irq_set(&lint0, false);
    assert_false(m->cpu[0].intr);
    assert_int_equal(ack(m, 0), -1);
    irq_set(&lint1, true);
    irq_set(&lint1, true);
    assert_int_equal(m->cpu[0].nmis, 1);
    /* level-triggered and fixed: again after each EOI while asserted */
    wr(m, 0, LVT_LINT0, 0x8040);
    irq_set(&lint0, true);
    assert_int_equal(rd(m, 0, LVT_LINT0), 0xc040);
    assert_int_equal(ack(m, 0), 0x40);
    wr(m, 0, EOI, 0);
    assert_int_equal(ack(m, 0), 0x40);
    irq_set(&lint0, false);
    wr(m, 0, EOI, 0);
    assert_int_equal(rd(m, 0, LVT_LINT0), 0x8040);
    assert_false(m->cpu[0].intr);
    /* globally disabled: the pins are the processor's own */
    assert_true(wrmsr(m, 0, 0x1b, 0xfee00100));
    irq_set(&lint0, true);
    assert_true(m->cpu[0].intr);
    assert_int_equal(ack(m, 0), 0x28);
    irq_set(&lint1, false);
    irq_set(&lint1, true);
    assert_int_equal(m->cpu[0].nmis, 2);
}

static void test_base_transitions(void **state)
{
    struct machine *m = *state;
    struct lapic *lapic = m->cpu[0].lapic;
    uint64_t value;

    assert_false(wrmsr(m, 0, 0x1b, 0xfee00500));              /* EXTD without EN */
    assert_false(wrmsr(m, 0, 0x1b, 0xfee00901));              /* reserved */
    assert_false(wrmsr(m, 0, 0x1b, UINT64_C(0x100fee00900))); /* above MAXPHYADDR */
    assert_false(lapic_msr_read(lapic, 0x802, &value));
    assert_true(wrmsr(m, 0, 0x1b, UINT64_C(0x80fed00900)));
    assert_true(lapic_claims(lapic, UINT64_C(0x80fed00020)));
    assert_false(lapic_claims(lapic, 0xfee00020));
    enter_x2apic(m, 0);
    assert_false(lapic_claims(lapic, UINT64_C(0x80fed00020)));
    assert_false(wrmsr(m, 0, 0x1b, 0xfee00900)); /* x2APIC to xAPIC */
    assert_true(wrmsr(m, 0, 0x1b, 0xfee00100));
    assert_false(lapic_is_enabled(lapic));
    assert_false(wrmsr(m, 0, 0x1b, 0xfee00d00)); /* off to x2APIC */
    assert_true(wrmsr(m, 0, 0x1b, 0xfee00900));
    assert_int_equal(rd(m, 0, SVR), 0xff);
}

static void test_x2apic(void **state)
{
    struct machine *m = *state;
    uint64_t value;

    enable_all(m);
    for (unsigned i = 0; i < CPUS; i++)
        enter_x2apic(m, i);
    assert_int_equal(msr(m, 3, 0x802), 3);
    assert_int_equal(msr(m, 3, 0x80d), 8);
    assert_int_equal(msr(m, 3, 0x80f), 0x1ff);
    assert_false(lapic_msr_read(m->cpu[0].lapic, 0x80e, &value)); /* DFR */
    assert_false(lapic_msr_read(m->cpu[0].lapic, 0x831, &value));
    assert_false(lapic_msr_read(m->cpu[0].lapic, 0x80b, &value)); /* write-only */
    assert_false(lapic_msr_read(m->cpu[0].lapic, 0x83f, &value));
    assert_false(lapic_msr_read(m->cpu[0].lapic, 0x8ff, &value));
    assert_false(wrmsr(m, 0, 0x802, 1));
    assert_false(wrmsr(m, 0, 0x80b, 1));
    assert_false(wrmsr(m, 0, 0x808, 0x100));
    assert_false(wrmsr(m, 0, 0x828, 1));
    assert_false(wrmsr(m, 0, 0x838, UINT64_C(1) << 32));
    assert_false(wrmsr(m, 0, 0x830, 0x2031));
    assert_false(wrmsr(m, 0, 0x832, 0x80000));

    assert_true(wrmsr(m, 0, 0x830, UINT64_C(2) << 32 | 0x4031));
    assert_int_equal(ack(m, 2), 0x31);
    assert_int_equal(msr(m, 0, 0x830), UINT64_C(2) << 32 | 0x4031);
    assert_true(wrmsr(m, 0, 0x830, UINT64_C(0xff) << 32 | 0x4041)); /* an ID, no broadcast */
    for (unsigned i = 0; i < CPUS; i++)
        assert_int_equal(ack(m, i), -1);
    assert_true(wrmsr(m, 0, 0x830, UINT64_C(0xffffffff) << 32 | 0x4041));
    for (unsigned i = 0; i < CPUS; i++)
        assert_int_equal(ack(m, i), 0x41);
    assert_true(wrmsr(m, 0, 0x830, UINT64_C(0x6) << 32 | 0x4851)); /* logical: cluster 0 */
    assert_int_equal(ack(m, 0), -1);
    assert_int_equal(ack(m, 1), 0x51);
    assert_int_equal(ack(m, 2), 0x51);
    assert_true(wrmsr(m, 0, 0x830, UINT64_C(0x10006) << 32 | 0x4861));
    assert_int_equal(ack(m, 1), -1);
    assert_true(wrmsr(m, 3, 0x83f, 0x77));
    assert_int_equal(ack(m, 3), 0x77);
    assert_true(wrmsr(m, 3, 0x80b, 0));
    assert_int_equal(msr(m, 3, 0x80a), 0x40);
    lapic_init_reset(m->cpu[3].lapic);
    assert_int_equal(msr(m, 3, 0x1b), 0xfee00c00);
    assert_int_equal(msr(m, 3, 0x80d), 8);
}

static void test_mmio_access_sizes(void **state)
{
    struct machine *m = *state;
    struct lapic *lapic = m->cpu[1].lapic;

    assert_int_equal(lapic_mmio_read(lapic, LAPIC + ID + 3, 1), 1);
    assert_int_equal(lapic_mmio_read(lapic, LAPIC + ID + 4, 4), 0);
    assert_int_equal(lapic_mmio_read(lapic, LAPIC + VERSION, 8), 0x01050014);
    lapic_mmio_write(lapic, LAPIC + TPR, 0x55, 1);
    lapic_mmio_write(lapic, LAPIC + TPR + 4, 0x55, 4);
    assert_int_equal(rd(m, 1, TPR), 0);
    lapic_mmio_write(lapic, LAPIC + TPR, 0x55, 8);
    assert_int_equal(rd(m, 1, TPR), 0x55);
}

static void test_timer_one_shot(void **state)
{
    struct machine *m = *state;

    enable_all(m);
    wr(m, 0, LVT_TIMER, 0x40);
    wr(m, 0, DIVIDE, 0xb); /* by 1 */
    wr(m, 0, INITIAL, 1000);
    vclock_advance(m->rig.clock, 400);
    assert_int_equal(rd(m, 0, CURRENT), 600);
    wr(m, 0, DIVIDE, 0x3); /* by 16: the count stays, its pace changes */
    assert_int_equal(rd(m, 0, CURRENT), 600);
    vclock_advance(m->rig.clock, 599 * 16);
    assert_false(m->cpu[0].intr);
    assert_int_equal(rd(m, 0, CURRENT), 1);
    vclock_advance(m->rig.clock, 16);
    assert_int_equal(ack(m, 0), 0x40);
    assert_int_equal(rd(m, 0, CURRENT), 0);
    wr(m, 0, EOI, 0);
    vclock_advance(m->rig.clock, 1000000);
    assert_false(m->cpu[0].intr);
    assert_int_equal(vclock_next_deadline_ns(m->rig.clock), UINT64_MAX);
    /* masked: it runs out without an interrupt and without waking anybody */
    wr(m, 0, LVT_TIMER, 0x10040);
    wr(m, 0, INITIAL, 100);
    assert_int_equal(vclock_next_deadline_ns(m->rig.clock), UINT64_MAX);
    vclock_advance(m->rig.clock, 10000);
    wr(m, 0, LVT_TIMER, 0x40);
    assert_false(m->cpu[0].intr);
    /* unmasked on the way */
    wr(m, 0, LVT_TIMER, 0x10040);
    wr(m, 0, INITIAL, 100);
    wr(m, 0, LVT_TIMER, 0x40);
    vclock_advance(m->rig.clock, 1600);
    assert_true(m->cpu[0].intr);
    wr(m, 0, INITIAL, 100);
    wr(m, 0, INITIAL, 0); /* stops it */
    assert_int_equal(vclock_next_deadline_ns(m->rig.clock), UINT64_MAX);
}

static void test_timer_periodic(void **state)
{
    struct machine *m = *state;
    unsigned ticks = 0;

    enable_all(m);
    wr(m, 0, DIVIDE, 0xb);
    wr(m, 0, LVT_TIMER, 0x20050);
    wr(m, 0, INITIAL, 1000000);
    for (unsigned i = 1; i <= 5; i++) {
        vclock_advance(m->rig.clock, 1000000);
        assert_int_equal(ack(m, 0), 0x50);
        wr(m, 0, EOI, 0);
        assert_false(m->cpu[0].intr);
    }
    vclock_advance(m->rig.clock, 300000);
    assert_int_equal(rd(m, 0, CURRENT), 700000);
    /* four ticks while the guest looks away are made up for, a thousand are not */
    vclock_advance(m->rig.clock, 4000000);
    while (ack(m, 0) == 0x50) {
        ticks++;
        wr(m, 0, EOI, 0);
    }
    assert_int_equal(ticks, 4);
    vclock_advance(m->rig.clock, 1000 * 1000000);
    for (ticks = 0; ack(m, 0) == 0x50; ticks++)
        wr(m, 0, EOI, 0);
    assert_in_range(ticks, 2, 40);
    assert_int_equal(rd(m, 0, CURRENT), 700000);
}

static void test_timer_deadline(void **state)
{
    struct machine *m = *state;

    enable_all(m);
    m->cpu[0].tsc_offset = 5000;
    assert_true(wrmsr(m, 0, 0x6e0, 6000));
    assert_int_equal(msr(m, 0, 0x6e0), 0); /* not in this mode */
    wr(m, 0, LVT_TIMER, 0x40060);
    wr(m, 0, INITIAL, 100);
    assert_int_equal(rd(m, 0, INITIAL), 0);
    assert_true(wrmsr(m, 0, 0x6e0, 7000)); /* 2000 ticks from now: 1000 ns */
    assert_int_equal(msr(m, 0, 0x6e0), 7000);
    vclock_advance(m->rig.clock, 999);
    assert_false(m->cpu[0].intr);
    vclock_advance(m->rig.clock, 1);
    assert_int_equal(ack(m, 0), 0x60);
    wr(m, 0, EOI, 0);
    assert_int_equal(msr(m, 0, 0x6e0), 0);
    /* in the past: at once */
    assert_true(wrmsr(m, 0, 0x6e0, 1));
    assert_int_equal(ack(m, 0), 0x60);
    wr(m, 0, EOI, 0);
    /* another mode disarms */
    assert_true(wrmsr(m, 0, 0x6e0, 100000));
    wr(m, 0, LVT_TIMER, 0x60);
    assert_int_equal(vclock_next_deadline_ns(m->rig.clock), UINT64_MAX);
    wr(m, 0, LVT_TIMER, 0x40060);
    assert_int_equal(msr(m, 0, 0x6e0), 0);
    /* the guest moves its TSC forward past the deadline */
    assert_true(wrmsr(m, 0, 0x6e0, 1000000));
    m->cpu[0].tsc_offset = 2000000;
    lapic_tsc_changed(m->cpu[0].lapic);
    assert_int_equal(ack(m, 0), 0x60);
    assert_true(wrmsr(m, 0, 0x6e0, UINT64_MAX));
    assert_int_equal(msr(m, 0, 0x6e0), UINT64_MAX);
}

static void io_write(struct machine *m, unsigned reg, uint32_t value)
{
    space_store(m->rig.memory, IOAPIC, reg, 4);
    space_store(m->rig.memory, IOAPIC + 0x10, value, 4);
}

static uint32_t io_read(struct machine *m, unsigned reg)
{
    space_store(m->rig.memory, IOAPIC, reg, 1);
    return (uint32_t)space_load(m->rig.memory, IOAPIC + 0x10, 4);
}

static void test_ioapic_registers(void **state)
{
    struct machine *m = *state;

    assert_int_equal(io_read(m, 0), 1u << 24);
    assert_int_equal(io_read(m, 1), 0x00170020);
    io_write(m, 0, 0xff000000);
    assert_int_equal(io_read(m, 0), 0x0f000000);
    assert_int_equal(io_read(m, 2), 0x0f000000);
    for (unsigned pin = 0; pin < IOAPIC_PIN_COUNT; pin++)
        assert_int_equal(io_read(m, 0x10 + pin * 2), 0x10000);
    io_write(m, 0x12, 0xffffffff);
    io_write(m, 0x13, 0xffffffff);
    assert_int_equal(io_read(m, 0x12), 0x1afff);
    assert_int_equal(io_read(m, 0x13), 0xff000000);
    assert_int_equal(io_read(m, 0x40), 0);
    assert_int_equal(io_read(m, 0xff), 0);
}

static void test_ioapic_edge(void **state)
{
    struct machine *m = *state;
    struct irq_line line = ioapic_input(m->rig.ioapic, 4);

    enable_all(m);
    irq_set(&line, true); /* masked: lost */
    io_write(m, 0x19, 2u << 24);
    io_write(m, 0x18, 0x34);
    assert_false(m->cpu[2].intr);
    irq_set(&line, false);
    irq_set(&line, true);
    irq_set(&line, true);
    assert_int_equal(ack(m, 2), 0x34);
    assert_false(vector_in(m, 2, TMR, 0x34));
    wr(m, 2, EOI, 0);
    assert_false(m->cpu[2].intr);
}

static void test_ioapic_level(void **state)
{
    struct machine *m = *state;
    struct irq_line line = ioapic_input(m->rig.ioapic, 10);

    enable_all(m);
    io_write(m, 0x25, 1u << 24);
    io_write(m, 0x24, 0xa050); /* level, active low: the polarity is the board's matter */
    irq_set(&line, true);
    assert_int_equal(io_read(m, 0x24), 0xe050);
    assert_int_equal(ack(m, 1), 0x50);
    assert_true(vector_in(m, 1, TMR, 0x50));
    irq_set(&line, false);
    irq_set(&line, true);
    assert_false(vector_in(m, 1, IRR, 0x50)); /* remote IRR holds it */
    wr(m, 1, EOI, 0);
    assert_int_equal(ack(m, 1), 0x50);
    irq_set(&line, false);
    wr(m, 1, EOI, 0);
    assert_int_equal(io_read(m, 0x24), 0xa050);
    assert_false(m->cpu[1].intr);

    /* without the broadcast, the IOAPIC's own EOI register is needed */
    wr(m, 1, SVR, 0x11ff);
    irq_set(&line, true);
    assert_int_equal(ack(m, 1), 0x50);
    wr(m, 1, EOI, 0);
    assert_int_equal(io_read(m, 0x24), 0xe050);
    assert_false(m->cpu[1].intr);
    space_store(m->rig.memory, IOAPIC + 0x40, 0x50, 4);
    assert_int_equal(ack(m, 1), 0x50);
    /* to edge and back: remote IRR is gone */
    io_write(m, 0x24, 0x12050);
    io_write(m, 0x24, 0x1a050);
    assert_int_equal(io_read(m, 0x24), 0x1a050);
}

static void test_ioapic_refused(void **state)
{
    struct machine *m = *state;
    struct irq_line line = ioapic_input(m->rig.ioapic, 10);

    /* nobody takes it: no remote IRR, which no EOI would ever clear */
    io_write(m, 0x25, 1u << 24);
    io_write(m, 0x24, 0x8050);
    irq_set(&line, true);
    assert_int_equal(io_read(m, 0x24), 0x8050);
    io_write(m, 0x26, 0x400); /* NMI on pin 11 goes through, though */
    io_write(m, 0x27, 1u << 24);
    line = ioapic_input(m->rig.ioapic, 11);
    irq_set(&line, true);
    assert_int_equal(m->cpu[1].nmis, 1);
}

static void test_ioapic_extint(void **state)
{
    struct machine *m = *state;
    struct irq_line line = ioapic_input(m->rig.ioapic, 0);

    m->pic_vector = 0x20;
    io_write(m, 0x10, 0x700);
    irq_set(&line, true);
    assert_true(m->cpu[0].intr);
    assert_int_equal(ack(m, 0), 0x20);
    assert_false(m->cpu[0].intr);
}

static void test_msi(void **state)
{
    struct machine *m = *state;

    enable_all(m);
    apic_bus_send_msi(m->rig.bus, 0xfee03000, 0x71);
    assert_int_equal(ack(m, 3), 0x71);
    wr(m, 1, LDR, 0x02000000);
    apic_bus_send_msi(m->rig.bus, 0xfee02004, 0x72);
    assert_int_equal(ack(m, 1), 0x72);
    assert_int_equal(ack(m, 2), -1);
    apic_bus_send_msi(m->rig.bus, 0xfed03000, 0x83);
    assert_int_equal(ack(m, 3), -1);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_reset_state),
        T(test_software_disabled),
        T(test_priority),
        T(test_shorthands),
        T(test_logical),
        T(test_lowest_priority),
        T(test_init_sipi),
        T(test_errors),
        T(test_lint),
        T(test_base_transitions),
        T(test_x2apic),
        T(test_mmio_access_sizes),
        T(test_timer_one_shot),
        T(test_timer_periodic),
        T(test_timer_deadline),
        T(test_ioapic_registers),
        T(test_ioapic_edge),
        T(test_ioapic_level),
        T(test_ioapic_refused),
        T(test_ioapic_extint),
        T(test_msi),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
