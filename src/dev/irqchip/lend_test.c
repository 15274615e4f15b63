/*
 * lend_test.c - local APICs that an engine's stand in for: what goes over, and what comes back
 */
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "dev/irqchip/testing.h"

#define TSC_HZ UINT64_C(2000000000)

#define MODE_PERIODIC (1u << 17)
#define MODE_DEADLINE (2u << 17)

struct machine {
    struct apic_rig rig;
    struct lapic *lapic;
    bool intr;
    unsigned acknowledged;
    struct apic_message last; /* what the bus handed over */
    unsigned delivered, watched;
    struct cpu_msi messages[IOAPIC_PIN_COUNT];
};

static void set_intr(void *ctx, bool level)
{
    ((struct machine *)ctx)->intr = level;
}

static uint64_t guest_tsc(void *ctx)
{
    return vclock_now_ns(((struct machine *)ctx)->rig.clock) * (TSC_HZ / NS_PER_SEC);
}

static const struct lapic_ops ops = {set_intr, apic_raise_nothing, apic_raise_nothing,
                                     apic_raise_no_sipi, guest_tsc};

static int pic_acknowledge(void *ctx)
{
    ((struct machine *)ctx)->acknowledged++;
    return 0x20;
}

static int setup(void **state)
{
    struct machine *m = calloc(1, sizeof(*m));
    struct lapic_config config = {.ops = &ops,
                                  .cpu = m,
                                  .phys_bits = 40,
                                  .tsc_hz = TSC_HZ,
                                  .pic_acknowledge = pic_acknowledge,
                                  .pic = m};

    apic_rig_make(&m->rig);
    apic_bus_prepare_lending(m->rig.bus);
    config.bus = m->rig.bus;
    config.clock = m->rig.clock;
    assert_int_equal(lapic_create(&config, &m->lapic, NULL), 0);
    *state = m;
    return 0;
}

static int teardown(void **state)
{
    struct machine *m = *state;

    lapic_destroy(m->lapic);
    apic_rig_free(&m->rig);
    free(m);
    return 0;
}

static uint32_t rd(struct machine *m, unsigned reg)
{
    return apic_rd(m->lapic, reg);
}

static void wr(struct machine *m, unsigned reg, uint32_t value)
{
    apic_wr(m->lapic, reg, value);
}

static void io_write(struct machine *m, unsigned reg, uint32_t value)
{
    space_store(m->rig.memory, IOAPIC_DEFAULT_BASE, reg, 4);
    space_store(m->rig.memory, IOAPIC_DEFAULT_BASE + 0x10, value, 4);
}

/* ---- registers ---- */

static void registers_go_over_and_come_back(void **state)
{
    static const unsigned regs[] = {0x20,  TPR,   LDR,   0xe0,      SVR,       ESR,     ICR,   ICR2,
                                    0x320, 0x330, 0x340, LVT_LINT0, LVT_LINT1, INITIAL, DIVIDE};
    struct machine *m = *state;
    struct cpu_apic apic;
    uint32_t before[0x40], again[0x40];

    wr(m, SVR, 0x1ff);
    wr(m, LDR, 0x04000000);
    wr(m, LVT_LINT0, 0x8051);
    wr(m, LVT_LINT1, 0x400);
    wr(m, DIVIDE, 0xa);
    apic_bus_send_msi(m->rig.bus, 0xfee00000, 0x71);
    assert_int_equal(lapic_acknowledge(m->lapic), 0x71);
    apic_bus_send_msi(m->rig.bus, 0xfee00000, 0xc0b2); /* level */
    wr(m, TPR, 0xb5);
    for (unsigned i = 0; i < ARRAY_SIZE(before); i++)
        before[i] = i == 0 ? 0 : rd(m, i * 16);
    wr(m, ESR, 0); /* unknown registers are errors */

    lapic_lend(m->lapic, &apic);
    for (unsigned i = 0; i < ARRAY_SIZE(regs); i++)
        assert_int_equal(apic.reg[regs[i] / 16], rd(m, regs[i]));
    assert_int_equal(apic.base, 0xfee00800);
    assert_int_equal(apic.reg[CPU_APIC_ISR + 0x71 / 32], BIT(0x71 % 32));
    assert_int_equal(apic.reg[CPU_APIC_IRR + 0xb2 / 32], BIT(0xb2 % 32));
    assert_int_equal(apic.reg[CPU_APIC_TMR + 0xb2 / 32], BIT(0xb2 % 32));
    assert_false(apic.is_counting);

    /* the guest lowers its priority under the engine, whose interrupt is not ours */
    apic.reg[CPU_APIC_TPR] = 0x25;
    assert_false(m->intr);
    lapic_take_back(m->lapic, &apic);
    assert_true(m->intr);
    wr(m, TPR, 0xb5);
    for (unsigned i = 0; i < ARRAY_SIZE(again); i++)
        again[i] = i == 0 ? 0 : rd(m, i * 16);
    before[ESR / 16] = again[ESR / 16];
    assert_memory_equal(before, again, sizeof(before));
    wr(m, TPR, 0);
    assert_int_equal(lapic_acknowledge(m->lapic), 0xb2);
}

static void what_comes_back_is_masked(void **state)
{
    struct machine *m = *state;
    struct cpu_apic apic;

    lapic_lend(m->lapic, &apic);
    memset(apic.reg, 0xff, sizeof(apic.reg));
    lapic_take_back(m->lapic, &apic);
    assert_int_equal(rd(m, TPR), 0xff);
    assert_int_equal(rd(m, SVR), 0x13ff);
    assert_int_equal(rd(m, LVT_LINT0), 0x1e7ff);
    assert_int_equal(rd(m, DIVIDE), 0xb);
    assert_int_equal(rd(m, 0x200) & 0xffff, 0);
}

static void x2apic_mode_comes_back(void **state)
{
    struct machine *m = *state;
    struct cpu_apic apic;
    uint64_t value;

    lapic_lend(m->lapic, &apic);
    apic.base |= BIT(10);
    apic.reg[CPU_APIC_ICR_LOW] = 0x40;
    apic.reg[CPU_APIC_ICR_HIGH] = 3;
    lapic_take_back(m->lapic, &apic);
    assert_false(lapic_claims(m->lapic, LAPIC_DEFAULT_BASE));
    assert_true(lapic_msr_read(m->lapic, 0x830, &value));
    assert_int_equal(value, UINT64_C(0x300000040));
    assert_true(lapic_msr_read(m->lapic, 0x80d, &value));
    assert_int_equal(value, 1);
}

/* ---- the timer ---- */

static void a_one_shot_keeps_its_time(void **state)
{
    struct machine *m = *state;
    struct cpu_apic apic;

    wr(m, SVR, 0x1ff);
    wr(m, LVT_TIMER, 0x40);
    wr(m, DIVIDE, 0xb); /* by 1 */
    wr(m, INITIAL, 1000);
    vclock_advance(m->rig.clock, 400);
    lapic_lend(m->lapic, &apic);
    assert_true(apic.is_counting);
    assert_int_equal(apic.reg[CPU_APIC_CURRENT_COUNT], 600);
    assert_int_equal(apic.reg[CPU_APIC_INITIAL_COUNT], 1000);
    /* it is not ours now */
    assert_int_equal(vclock_next_deadline_ns(m->rig.clock), UINT64_MAX);
    vclock_advance(m->rig.clock, 5000);
    apic.reg[CPU_APIC_CURRENT_COUNT] = 200;
    lapic_take_back(m->lapic, &apic);
    assert_int_equal(rd(m, CURRENT), 200);
    vclock_advance(m->rig.clock, 199);
    assert_false(m->intr);
    vclock_advance(m->rig.clock, 1);
    assert_int_equal(lapic_acknowledge(m->lapic), 0x40);

    /* due, and not delivered: at once; over: never again */
    wr(m, EOI, 0);
    lapic_lend(m->lapic, &apic);
    assert_false(apic.is_counting);
    apic.is_counting = true;
    lapic_take_back(m->lapic, &apic);
    assert_int_equal(lapic_acknowledge(m->lapic), 0x40);
    wr(m, EOI, 0);
    lapic_lend(m->lapic, &apic);
    lapic_take_back(m->lapic, &apic);
    vclock_advance(m->rig.clock, 100000);
    assert_false(m->intr);
}

static void a_period_goes_on(void **state)
{
    struct machine *m = *state;
    struct cpu_apic apic;

    wr(m, SVR, 0x1ff);
    wr(m, LVT_TIMER, MODE_PERIODIC | 0x40);
    wr(m, DIVIDE, 0xb);
    wr(m, INITIAL, 100000);
    vclock_advance(m->rig.clock, 30000);
    lapic_lend(m->lapic, &apic);
    assert_int_equal(apic.reg[CPU_APIC_CURRENT_COUNT], 70000);
    lapic_take_back(m->lapic, &apic);
    vclock_advance(m->rig.clock, 69999);
    assert_false(m->intr);
    vclock_advance(m->rig.clock, 1);
    assert_int_equal(lapic_acknowledge(m->lapic), 0x40);
    wr(m, EOI, 0);
    vclock_advance(m->rig.clock, 100000);
    assert_int_equal(lapic_acknowledge(m->lapic), 0x40);
}

static void a_deadline_goes_over(void **state)
{
    struct machine *m = *state;
    struct cpu_apic apic;

    wr(m, SVR, 0x1ff);
    wr(m, LVT_TIMER, MODE_DEADLINE | 0x40);
    assert_true(lapic_msr_write(m->lapic, 0x6e0, 20000));
    lapic_lend(m->lapic, &apic);
    assert_int_equal(apic.deadline_tsc, 20000);
    vclock_advance(m->rig.clock, 4000);
    assert_false(m->intr);
    lapic_take_back(m->lapic, &apic);
    vclock_advance(m->rig.clock, 5999);
    assert_false(m->intr);
    vclock_advance(m->rig.clock, 1);
    assert_int_equal(lapic_acknowledge(m->lapic), 0x40);
    wr(m, EOI, 0);
    /* one that passed meanwhile */
    assert_true(lapic_msr_write(m->lapic, 0x6e0, 40000));
    lapic_lend(m->lapic, &apic);
    vclock_advance(m->rig.clock, 100000);
    lapic_take_back(m->lapic, &apic);
    assert_int_equal(lapic_acknowledge(m->lapic), 0x40);
}

/* ---- while it is lent ---- */

static void the_8259_is_heard(void **state)
{
    struct machine *m = *state;
    struct irq_line lint0 = lapic_lint(m->lapic, 0);
    struct cpu_apic apic;

    wr(m, SVR, 0x1ff); /* LINT0 is masked: who has the APIC looks at that */
    lapic_lend(m->lapic, &apic);
    irq_set(&lint0, true);
    assert_true(m->intr);
    assert_int_equal(lapic_acknowledge(m->lapic), 0x20);
    assert_int_equal(m->acknowledged, 1);
    lapic_take_back(m->lapic, &apic);
    assert_false(m->intr);
}

static bool deliver(void *ctx, const struct apic_message *msg)
{
    struct machine *m = ctx;

    m->last = *msg;
    m->delivered++;
    return true;
}

static void watch(void *ctx, const struct cpu_msi messages[IOAPIC_PIN_COUNT])
{
    struct machine *m = ctx;

    memcpy(m->messages, messages, sizeof(m->messages));
    m->watched++;
}

static void messages_go_elsewhere(void **state)
{
    struct machine *m = *state;
    struct cpu_apic apic;
    struct cpu_msi msi;

    wr(m, SVR, 0x1ff);
    apic_bus_hold(m->rig.bus);
    lapic_lend(m->lapic, &apic);
    apic_bus_release(m->rig.bus, deliver, m);
    apic_bus_send_msi(m->rig.bus, 0xfeeff00c, 0x171);
    assert_int_equal(m->delivered, 1);
    assert_int_equal(m->last.vector, 0x71);
    assert_int_equal(m->last.mode, APIC_LOWEST);
    msi = apic_message_to_msi(&m->last);
    assert_int_equal(msi.address, 0xfeeff004);
    assert_int_equal(msi.data, 0x171);
    apic_bus_hold(m->rig.bus);
    lapic_take_back(m->lapic, &apic);
    apic_bus_release(m->rig.bus, NULL, NULL);
    assert_false(m->intr);
    apic_bus_send_msi(m->rig.bus, 0xfee00000, 0x72);
    assert_int_equal(m->delivered, 1);
    assert_int_equal(lapic_acknowledge(m->lapic), 0x72);
}

static void level_triggered_inputs_are_watched(void **state)
{
    struct machine *m = *state;
    struct irq_line line = ioapic_input(m->rig.ioapic, 10);
    struct cpu_apic apic;

    io_write(m, 0x24, 0x8050); /* level, fixed, physical, CPU 0 */
    io_write(m, 0x26, 0x0051); /* an edge */
    lapic_lend(m->lapic, &apic);
    apic_bus_hold(m->rig.bus);
    apic_bus_release(m->rig.bus, deliver, m);
    ioapic_watch(m->rig.ioapic, watch, m);
    assert_int_equal(m->watched, 1);
    assert_int_equal(m->messages[10].address, 0xfee00000);
    assert_int_equal(m->messages[10].data, 0xc050);
    assert_int_equal(m->messages[11].address, 0);
    io_write(m, 0x24, 0x18050); /* masked: nothing that its EOI could not still be wanted for */
    io_write(m, 0x24, 0x8050);
    assert_int_equal(m->watched, 1);
    io_write(m, 0x25, 0xff000000);
    assert_int_equal(m->watched, 2);
    assert_int_equal(m->messages[10].address, 0xfeeff000);

    irq_set(&line, true);
    assert_int_equal(m->delivered, 1);
    assert_true(m->last.is_level);
    assert_int_equal(m->last.dest, APIC_DEST_ALL);
    apic_bus_eoi(m->rig.bus, 0x51);
    assert_int_equal(m->delivered, 1);
    apic_bus_eoi(m->rig.bus, 0x50);
    assert_int_equal(m->delivered, 2);
    irq_set(&line, false);
    apic_bus_eoi(m->rig.bus, 0x50);
    assert_int_equal(m->delivered, 2);

    io_write(m, 0x24, 0x0050);
    assert_int_equal(m->watched, 3);
    assert_int_equal(m->messages[10].address, 0);
    ioapic_watch(m->rig.ioapic, NULL, NULL);
    io_write(m, 0x24, 0x8050);
    assert_int_equal(m->watched, 3);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(registers_go_over_and_come_back),
        T(what_comes_back_is_masked),
        T(x2apic_mode_comes_back),
        T(a_one_shot_keeps_its_time),
        T(a_period_goes_on),
        T(a_deadline_goes_over),
        T(the_8259_is_heard),
        T(messages_go_elsewhere),
        T(level_triggered_inputs_are_watched),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
