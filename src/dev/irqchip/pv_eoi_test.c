/*
 * pv_eoi_test.c - interrupts that a guest ends by a bit in its memory
 */
#include <stdlib.h>

#include "base/bits.h"
#include "cpu/apic.h"
#include "dev/irqchip/testing.h"

#define RAM_SIZE 0x4000u
#define BYTE 0x1004u
#define DEVICE 0x100000u

struct machine {
    struct apic_rig rig;
    struct lapic *lapic;
    uint8_t *ram;
    bool intr;
    unsigned written; /* writes of the byte that the engine was told of */
    unsigned accesses;
};

static void set_intr(void *ctx, bool level)
{
    ((struct machine *)ctx)->intr = level;
}

static uint64_t guest_tsc(void *ctx)
{
    return 0;
}

static const struct lapic_ops ops = {set_intr, apic_raise_nothing, apic_raise_nothing,
                                     apic_raise_no_sipi, guest_tsc};

static void note_written(void *ctx, uint64_t addr, uint64_t size)
{
    assert_int_equal(addr, BYTE);
    assert_int_equal(size, 1);
    ((struct machine *)ctx)->written++;
}

static uint64_t device_read(void *ctx, uint64_t offset, unsigned size)
{
    ((struct machine *)ctx)->accesses++;
    return 0;
}

static void device_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    ((struct machine *)ctx)->accesses++;
}

static const struct space_ops device = {device_read, device_write, 1, 4};

static uint32_t rd(struct machine *m, unsigned reg)
{
    return apic_rd(m->lapic, reg);
}

static void wr(struct machine *m, unsigned reg, uint32_t value)
{
    apic_wr(m->lapic, reg, value);
}

static int setup(void **state)
{
    struct machine *m = calloc(1, sizeof(*m));
    struct lapic_config config = {
        .ops = &ops, .cpu = m, .is_bsp = true, .phys_bits = 40, .tsc_hz = UINT64_C(1000000000)};

    m->ram = aligned_alloc(4096, RAM_SIZE);
    for (unsigned i = 0; i < RAM_SIZE; i++)
        m->ram[i] = 0xfe;
    apic_rig_make(&m->rig);
    assert_int_equal(space_add_ram(m->rig.memory, 0, m->ram, RAM_SIZE, false, NULL), 0);
    assert_int_equal(space_add_io(m->rig.memory, DEVICE, 4096, &device, m, NULL, NULL), 0);
    space_set_watcher(m->rig.memory, note_written, m);
    config.bus = m->rig.bus;
    config.clock = m->rig.clock;
    config.memory = m->rig.memory;
    assert_int_equal(lapic_create(&config, &m->lapic, NULL), 0);
    wr(m, SVR, 0x1ff);
    assert_true(lapic_pv_eoi_write(m->lapic, BYTE | 1));
    *state = m;
    return 0;
}

static int teardown(void **state)
{
    struct machine *m = *state;

    lapic_destroy(m->lapic);
    apic_rig_free(&m->rig);
    free(m->ram);
    free(m);
    return 0;
}

static void send(struct machine *m, uint8_t vector)
{
    apic_bus_send_msi(m->rig.bus, 0xfee00000, vector);
}

static int ack(struct machine *m)
{
    return lapic_acknowledge(m->lapic);
}

static bool in_service(struct machine *m, unsigned vector)
{
    return rd(m, ISR + vector / 32 * 16) >> vector % 32 & 1;
}

/* As a guest does it; whether that was all it had to do. */
static bool end(struct machine *m)
{
    bool was_set = m->ram[BYTE] & 1;

    m->ram[BYTE] &= 0xfe;
    if (!was_set)
        wr(m, EOI, 0);
    return was_set;
}

static void values(void **state)
{
    struct machine *m = *state;

    assert_int_equal(lapic_pv_eoi_read(m->lapic), BYTE | 1);
    assert_false(lapic_pv_eoi_write(m->lapic, BYTE | 3));
    assert_false(lapic_pv_eoi_write(m->lapic, 2));
    assert_false(lapic_pv_eoi_write(m->lapic, RAM_SIZE | 1));
    assert_false(lapic_pv_eoi_write(m->lapic, DEVICE | 1));
    assert_false(lapic_pv_eoi_write(m->lapic, UINT64_MAX & ~UINT64_C(2)));
    assert_int_equal(lapic_pv_eoi_read(m->lapic), BYTE | 1);
    assert_true(lapic_pv_eoi_write(m->lapic, DEVICE));
    assert_int_equal(lapic_pv_eoi_read(m->lapic), DEVICE);
    assert_int_equal(m->accesses, 0);
    lapic_pv_eoi_write(m->lapic, BYTE | 1);
    lapic_init_reset(m->lapic);
    assert_int_equal(lapic_pv_eoi_read(m->lapic), 0);
    lapic_pv_eoi_write(m->lapic, BYTE | 1);
    lapic_reset(m->lapic);
    assert_int_equal(lapic_pv_eoi_read(m->lapic), 0);
}

static void one_at_a_time(void **state)
{
    struct machine *m = *state;

    for (unsigned i = 0; i < 3; i++) {
        send(m, 0x61);
        assert_true(m->intr);
        assert_int_equal(ack(m), 0x61);
        assert_int_equal(m->ram[BYTE], 1);
        assert_int_equal(m->written, i + 1);
        assert_false(m->intr);
        assert_true(end(m));
    }
    assert_false(in_service(m, 0x61));
    assert_int_equal(m->ram[BYTE - 1], 0xfe);
    assert_int_equal(m->ram[BYTE + 1], 0xfe);
}

/* The guest said so in memory, where nobody looks: the next one makes somebody. */
static void the_next_one_finds_out(void **state)
{
    struct machine *m = *state;

    send(m, 0x71);
    assert_int_equal(ack(m), 0x71);
    assert_true(end(m));
    send(m, 0x61);
    assert_true(m->intr);
    assert_int_equal(ack(m), 0x61);
    assert_true(end(m));
    send(m, 0x61);
    assert_int_equal(ack(m), 0x61);
}

/* It did not end it: who was called for nothing takes the bit back, and the register is told. */
static void called_for_nothing(void **state)
{
    struct machine *m = *state;

    send(m, 0x71);
    assert_int_equal(ack(m), 0x71);
    send(m, 0x61);
    assert_true(m->intr);
    assert_int_equal(ack(m), -1);
    assert_false(m->intr);
    assert_int_equal(m->ram[BYTE], 0);
    send(m, 0x62);
    assert_false(m->intr);
    assert_false(end(m));
    assert_true(m->intr);
    assert_int_equal(ack(m), 0x62);
}

static void nested(void **state)
{
    struct machine *m = *state;

    send(m, 0x61);
    assert_int_equal(ack(m), 0x61);
    send(m, 0x71);
    assert_int_equal(ack(m), 0x71);
    assert_int_equal(m->ram[BYTE], 0); /* two are in service */
    assert_false(end(m));
    assert_true(in_service(m, 0x61));
    assert_false(end(m));
    assert_false(in_service(m, 0x61));
}

static void another_waits(void **state)
{
    struct machine *m = *state;

    send(m, 0x61);
    send(m, 0x71);
    assert_int_equal(ack(m), 0x71);
    assert_false(end(m));
    assert_int_equal(ack(m), 0x61);
    assert_true(end(m));
}

static void level_triggered(void **state)
{
    struct machine *m = *state;
    struct irq_line line = ioapic_input(m->rig.ioapic, 5);

    space_store(m->rig.memory, IOAPIC_DEFAULT_BASE, 0x10 + 2 * 5, 4);
    space_store(m->rig.memory, IOAPIC_DEFAULT_BASE + 0x10, 0x8061, 4);
    irq_set(&line, true);
    assert_int_equal(ack(m), 0x61);
    assert_int_equal(m->written, 0);
    irq_set(&line, false);
    assert_false(end(m));
    assert_false(m->intr);
}

static void level_triggered_pin(void **state)
{
    struct machine *m = *state;
    struct irq_line lint0 = lapic_lint(m->lapic, 0);

    wr(m, LVT_LINT0, 0x8061);
    irq_set(&lint0, true);
    assert_int_equal(ack(m), 0x61);
    assert_int_equal(m->written, 0);
    assert_false(end(m));
    assert_int_equal(ack(m), 0x61);
}

/* Ticks that the host was late with come one for each EOI. */
static void ticks_that_are_owed(void **state)
{
    struct machine *m = *state;

    wr(m, DIVIDE, 0xb);
    wr(m, LVT_TIMER, 0x20061);
    wr(m, INITIAL, 100000);
    vclock_advance(m->rig.clock, 350000);
    assert_int_equal(ack(m), 0x61);
    assert_int_equal(m->written, 0);
    assert_false(end(m));
    assert_int_equal(ack(m), 0x61);
    assert_false(end(m));
    assert_int_equal(ack(m), 0x61);
    assert_int_equal(m->ram[BYTE], 1);
    assert_true(end(m));
    vclock_advance(m->rig.clock, 100000);
    assert_true(m->intr);
    assert_int_equal(ack(m), 0x61);
}

/* Whoever looks at what depends on ISR sees the truth, whether the guest has ended it or not. */
static void looked_at(void **state)
{
    struct machine *m = *state;

    send(m, 0x61);
    assert_int_equal(ack(m), 0x61);
    assert_int_equal(rd(m, PPR), 0x60);
    assert_int_equal(m->ram[BYTE], 0);
    assert_false(end(m));
    send(m, 0x61);
    assert_int_equal(ack(m), 0x61);
    assert_true(end(m));
    assert_int_equal(rd(m, PPR), 0);
    send(m, 0x61);
    assert_int_equal(ack(m), 0x61);
    assert_true(end(m));
    wr(m, TPR, 0x70);
    send(m, 0x61);
    assert_false(m->intr);
    lapic_cr8_write(m->lapic, 0);
    assert_true(m->intr);
}

/* Two EOIs, one each way: the second is another's. */
static void by_the_register_too(void **state)
{
    struct machine *m = *state;

    send(m, 0x61);
    assert_int_equal(ack(m), 0x61);
    send(m, 0x71);
    assert_int_equal(ack(m), 0x71);
    assert_false(end(m));
    wr(m, EOI, 0);
    assert_false(in_service(m, 0x61));
    send(m, 0x61);
    assert_int_equal(ack(m), 0x61);
    wr(m, EOI, 0); /* with the bit set */
    assert_int_equal(m->ram[BYTE], 0);
    assert_false(in_service(m, 0x61));
    wr(m, EOI, 0);
    assert_false(in_service(m, 0x61));
}

static void switched_off(void **state)
{
    struct machine *m = *state;

    send(m, 0x61);
    assert_int_equal(ack(m), 0x61);
    assert_true(lapic_pv_eoi_write(m->lapic, 0));
    assert_int_equal(m->ram[BYTE], 0);
    assert_true(in_service(m, 0x61));
    assert_false(end(m));
    send(m, 0x61);
    assert_int_equal(ack(m), 0x61);
    assert_int_equal(m->ram[BYTE], 0);
}

/* The memory goes away while the bit is set. */
static void memory_that_goes(void **state)
{
    struct machine *m = *state;

    send(m, 0x61);
    assert_int_equal(ack(m), 0x61);
    assert_int_equal(space_remove(m->rig.memory, 0, NULL), 0);
    assert_true(in_service(m, 0x61));
    wr(m, EOI, 0);
    send(m, 0x61);
    assert_int_equal(ack(m), 0x61);
    assert_true(in_service(m, 0x61));
}

static void lent(void **state)
{
    struct machine *m = *state;
    struct cpu_apic apic;

    send(m, 0x61);
    assert_int_equal(ack(m), 0x61);
    assert_true(end(m));
    lapic_lend(m->lapic, &apic);
    assert_int_equal(apic.pv_eoi, BYTE | 1);
    assert_int_equal(apic.reg[CPU_APIC_ISR + 0x61 / 32], 0);
    assert_false(lapic_pv_eoi_write(m->lapic, 0));
    apic.pv_eoi = (BYTE + 8) | 1;
    lapic_take_back(m->lapic, &apic);
    assert_int_equal(lapic_pv_eoi_read(m->lapic), (BYTE + 8) | 1);
    lapic_pv_eoi_write(m->lapic, BYTE | 1);

    send(m, 0x61);
    assert_int_equal(ack(m), 0x61);
    lapic_lend(m->lapic, &apic);
    assert_int_equal(m->ram[BYTE], 0);
    assert_int_equal(apic.reg[CPU_APIC_ISR + 0x61 / 32], BIT(0x61 % 32));
    lapic_take_back(m->lapic, &apic);
    assert_false(end(m));
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(values),
        T(one_at_a_time),
        T(the_next_one_finds_out),
        T(called_for_nothing),
        T(nested),
        T(another_waits),
        T(level_triggered),
        T(level_triggered_pin),
        T(ticks_that_are_owed),
        T(looked_at),
        T(by_the_register_too),
        T(switched_off),
        T(memory_that_goes),
        T(lent),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
