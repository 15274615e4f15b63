/*
 * interp_test.c - the interpreter as an engine: stops, pins, wake-ups, register exchange
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"
#include "engine/null_host.h"

#define RAM_SIZE UINT64_C(0x100000)
#define CODE 0x7000u
#define WAKEUPS 500u

struct machine {
    struct cpu_model model;
    struct engine *engine;
    struct engine_vcpu *vcpu;
    struct engine_pins pins;
    uint8_t *ram;
    _Atomic uint32_t acknowledged;
    _Atomic uint64_t last_out;
};

static void host_write(void *cpu, uint16_t port, uint64_t value, unsigned size)
{
    struct machine *m = cpu;

    atomic_store(&m->last_out, value);
}

static int host_acknowledge(void *cpu)
{
    struct machine *m = cpu;

    atomic_fetch_and(&m->pins.bits, ~PIN_INTR);
    atomic_fetch_add(&m->acknowledged, 1);
    return 0x20;
}

static const struct engine_host host = {
    .io_read = null_io_read,
    .io_write = host_write,
    .mmio_read = null_mmio_read,
    .mmio_write = null_mmio_write,
    .interrupt_acknowledge = host_acknowledge,
    .cr8_read = null_cr8_read,
    .cr8_write = null_cr8_write,
    .msr_read = null_msr_read,
    .msr_write = null_msr_write,
    .set_ferr = null_set_ferr,
};

static struct machine *machine_create(const void *code, size_t size)
{
    struct machine *m = calloc(1, sizeof(*m));
    struct engine_config config = {.host = &host, .cpu_count = 1};
    struct cpu_state *st = aligned_alloc(64, align_up(sizeof(*st), 64));
    struct err e = {0};

    assert_true(m != NULL && st != NULL);
    m->ram = aligned_alloc(4096, RAM_SIZE);
    assert_non_null(m->ram);
    memset(m->ram, 0, RAM_SIZE);
    memcpy(m->ram + CODE, code, size);
    if (cpu_model_create("host", 1, 1000000000, &m->model, &e) != 0)
        fail_msg("%s", e.msg);
    config.model = &m->model;
    if (engine_interp.open(&config, &m->engine, &e) != 0 ||
        engine_interp.add_ram(m->engine, 0, m->ram, RAM_SIZE, false, &e) != 0 ||
        engine_interp.attach(m->engine, 0, m, &m->pins, &m->vcpu, &e) != 0)
        fail_msg("%s", e.msg);
    engine_interp.pull(m->vcpu, st, CPU_GROUP_ALL);
    st->seg[CPU_CS].selector = 0;
    st->seg[CPU_CS].base = 0;
    st->rip = CODE;
    st->gpr[CPU_RSP] = 0x6000;
    engine_interp.push(m->vcpu, st, CPU_GROUP_ALL);
    free(st);
    return m;
}

static void machine_destroy(struct machine *m)
{
    engine_interp.detach(m->vcpu);
    engine_interp.close(m->engine);
    free(m->ram);
    free(m);
}

static enum engine_stop machine_run(struct machine *m)
{
    enum engine_stop stop;
    struct err e = {0};

    if (engine_interp.run(m->vcpu, &stop, &e) != 0)
        fail_msg("%s", e.msg);
    return stop;
}

static void runs_until_halt(void **state)
{
    static const uint8_t code[] = {0xb0, 0x42, 0xe6, 0x80, 0xf4}; /* mov al, 42h; out; hlt */
    struct machine *m = machine_create(code, sizeof(code));
    struct cpu_state *st = aligned_alloc(64, align_up(sizeof(*st), 64));

    assert_int_equal(machine_run(m), ENGINE_STOP_HALT);
    assert_int_equal(atomic_load(&m->last_out), 0x42);
    engine_interp.pull(m->vcpu, st, CPU_GROUP_ALL);
    assert_int_equal(st->rip, CODE + 5);
    assert_int_equal(st->run_state, CPU_HALTED);
    free(st);
    machine_destroy(m);
}

static void exchange_covers_only_its_groups(void **state)
{
    static const uint8_t code[] = {0xf4};
    struct machine *m = machine_create(code, sizeof(code));
    struct cpu_state *st = aligned_alloc(64, align_up(sizeof(*st), 64));

    memset(st, 0xa5, sizeof(*st));
    engine_interp.pull(m->vcpu, st, CPU_GROUP_GPR);
    assert_int_equal(st->rip, CODE);
    assert_int_equal(st->cr0, UINT64_C(0xa5a5a5a5a5a5a5a5));
    st->gpr[CPU_RBX] = 77;
    engine_interp.push(m->vcpu, st, CPU_GROUP_GPR);
    engine_interp.pull(m->vcpu, st, CPU_GROUP_ALL);
    assert_int_equal(st->gpr[CPU_RBX], 77);
    assert_int_equal(st->cr0 & CR0_PE, 0);
    assert_int_equal(st->efer, 0);
    free(st);
    machine_destroy(m);
}

static void stops_before_running_with_pin(void **state)
{
    static const uint8_t code[] = {0xf4};
    struct machine *m = machine_create(code, sizeof(code));

    atomic_fetch_or(&m->pins.bits, PIN_CALL);
    assert_int_equal(machine_run(m), ENGINE_STOP_PIN);
    atomic_fetch_and(&m->pins.bits, ~PIN_CALL);
    assert_int_equal(machine_run(m), ENGINE_STOP_HALT);
    machine_destroy(m);
}

static void *stop_thread(void *arg)
{
    struct machine *m = arg;

    while (atomic_load(&m->last_out) != 1)
        sched_yield();
    atomic_fetch_or(&m->pins.bits, PIN_STOP);
    engine_interp.kick(m->vcpu);
    return NULL;
}

static void kick_ends_a_loop(void **state)
{
    static const uint8_t code[] = {0xb0, 0x01, 0xe6, 0x80, 0xeb, 0xfe};
    struct machine *m = machine_create(code, sizeof(code));
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, stop_thread, m), 0);
    assert_int_equal(machine_run(m), ENGINE_STOP_PIN);
    pthread_join(thread, NULL);
    machine_destroy(m);
}

/* The handler counts in memory at 500h; whoever raises the pin waits for the acknowledge. */
static void *interrupt_thread(void *arg)
{
    struct machine *m = arg;

    for (uint32_t i = 0; i < WAKEUPS; i++) {
        atomic_fetch_or(&m->pins.bits, PIN_INTR);
        engine_interp.kick(m->vcpu);
        while (atomic_load(&m->acknowledged) <= i)
            sched_yield();
    }
    atomic_fetch_or(&m->pins.bits, PIN_STOP);
    engine_interp.kick(m->vcpu);
    return NULL;
}

static void interrupts_are_not_lost(void **state)
{
    static const uint8_t code[] = {0xfb, 0xfa, 0xfb, 0x90, 0xeb, 0xfa}; /* sti; cli; sti; nop */
    static const uint8_t handler[] = {0xff, 0x06, 0x00, 0x05, 0xcf};    /* inc word [500h]; iret */
    struct machine *m = machine_create(code, sizeof(code));
    pthread_t thread;
    uint16_t count;

    memcpy(m->ram + 0x8000, handler, sizeof(handler));
    memcpy(m->ram + 0x20 * 4, &(uint32_t){0x8000}, 4);
    assert_int_equal(pthread_create(&thread, NULL, interrupt_thread, m), 0);
    assert_int_equal(machine_run(m), ENGINE_STOP_PIN);
    pthread_join(thread, NULL);
    /* the last one may have been acknowledged but its handler not yet run */
    memcpy(&count, m->ram + 0x500, 2);
    assert_true(count == WAKEUPS || count == WAKEUPS - 1);
    machine_destroy(m);
}

static void interrupt_wakes_from_halt(void **state)
{
    static const uint8_t code[] = {0xfb, 0xf4, 0xb0, 0x07, 0xe6, 0x80, 0xfa, 0xf4};
    struct machine *m = machine_create(code, sizeof(code));

    m->ram[0x8000] = 0xcf;
    memcpy(m->ram + 0x20 * 4, &(uint32_t){0x8000}, 4);
    assert_int_equal(machine_run(m), ENGINE_STOP_HALT);
    assert_int_equal(atomic_load(&m->last_out), 0);
    assert_int_equal(machine_run(m), ENGINE_STOP_HALT); /* nothing woke it */
    atomic_fetch_or(&m->pins.bits, PIN_INTR);
    assert_int_equal(machine_run(m), ENGINE_STOP_HALT);
    assert_int_equal(atomic_load(&m->last_out), 7);
    atomic_fetch_or(&m->pins.bits, PIN_INTR); /* interrupts are off now */
    assert_int_equal(machine_run(m), ENGINE_STOP_HALT);
    assert_int_equal(atomic_load(&m->acknowledged), 1);
    machine_destroy(m);
}

static void triple_fault_stops(void **state)
{
    /* lidt [7100h] with limit 0; int3 */
    static const uint8_t code[] = {0x0f, 0x01, 0x1e, 0x00, 0x71, 0xcc};
    struct machine *m = machine_create(code, sizeof(code));

    assert_int_equal(machine_run(m), ENGINE_STOP_SHUTDOWN);
    machine_destroy(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(runs_until_halt),
        cmocka_unit_test(exchange_covers_only_its_groups),
        cmocka_unit_test(stops_before_running_with_pin),
        cmocka_unit_test(kick_ends_a_loop),
        cmocka_unit_test(interrupts_are_not_lost),
        cmocka_unit_test(interrupt_wakes_from_halt),
        cmocka_unit_test(triple_fault_stops),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
