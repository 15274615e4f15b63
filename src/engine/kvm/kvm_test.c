/*
 * kvm_test.c - the KVM engine on a KVM that does as it is told, and calls that fail
 *
 * What needs the host's own /dev/kvm is skipped, with the reason, where there is none.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/stats.h"
#include "engine/kvm/fake.h"
#include "engine/null_host.h"
#include "os/fault.h"

#define RAM_SIZE UINT64_C(0x100000)
#define ROM_ADDR UINT64_C(0xf0000000)
#define CODE 0x7000u
#define STACK 0x6000u

struct machine {
    struct cpu_model model;
    struct engine *engine;
    struct engine_vcpu *vcpu;
    struct engine_pins pins;
    uint8_t *ram;
    uint64_t cr8;
    unsigned acknowledged, tsc_changes, eois;
    uint8_t eoi_vector;
    enum engine_irqchip irqchip;
    uint32_t raise; /* pins that the next port or device access sets */
    struct {
        uint64_t address, value;
        unsigned size;
    } log[32];
    unsigned logged;
};

static void note(struct machine *m, uint64_t address, uint64_t value, unsigned size)
{
    atomic_fetch_or(&m->pins.bits, m->raise);
    if (m->logged == ARRAY_SIZE(m->log))
        return;
    m->log[m->logged].address = address;
    m->log[m->logged].value = value;
    m->log[m->logged++].size = size;
}

static uint64_t host_io_read(void *cpu, uint16_t port, unsigned size)
{
    struct machine *m = cpu;

    note(m, port, 0, size);
    return 0x1122334455667700u + m->logged;
}

static void host_io_write(void *cpu, uint16_t port, uint64_t value, unsigned size)
{
    note(cpu, port, value, size);
}

static uint64_t host_mmio_read(void *cpu, gpa_t addr, unsigned size)
{
    note(cpu, addr, 0, size);
    return UINT64_C(0x8877665544332211);
}

static void host_mmio_write(void *cpu, gpa_t addr, uint64_t value, unsigned size)
{
    note(cpu, addr, value, size);
}

static int host_acknowledge(void *cpu)
{
    struct machine *m = cpu;

    atomic_fetch_and(&m->pins.bits, ~PIN_INTR);
    m->acknowledged++;
    return 0x21;
}

static void host_apic_eoi(void *cpu, uint8_t vector)
{
    ((struct machine *)cpu)->eois++;
    ((struct machine *)cpu)->eoi_vector = vector;
}

static uint64_t host_cr8_read(void *cpu)
{
    return ((struct machine *)cpu)->cr8;
}

static void host_cr8_write(void *cpu, uint64_t value)
{
    ((struct machine *)cpu)->cr8 = value;
}

static bool host_msr_read(void *cpu, uint32_t index, uint64_t *value)
{
    *value = index == 0x1b ? 0xfee00900 : 0;
    return index == 0x1b;
}

static bool host_msr_write(void *cpu, uint32_t index, uint64_t value)
{
    note(cpu, index, value, 8);
    return index == 0x6e0;
}

static void host_tsc_changed(void *cpu)
{
    ((struct machine *)cpu)->tsc_changes++;
}

static const struct engine_host host = {
    .io_read = host_io_read,
    .io_write = host_io_write,
    .mmio_read = host_mmio_read,
    .mmio_write = host_mmio_write,
    .interrupt_acknowledge = host_acknowledge,
    .apic_eoi = host_apic_eoi,
    .cr8_read = host_cr8_read,
    .cr8_write = host_cr8_write,
    .msr_read = host_msr_read,
    .msr_write = host_msr_write,
    .tsc_changed = host_tsc_changed,
    .set_ferr = null_set_ferr,
};

/* ---- a machine ---- */

static void machine_free(struct machine *m)
{
    engine_kvm.detach(m->vcpu);
    engine_kvm.close(m->engine);
    free(m->ram);
    free(m);
}

static int machine_open(struct machine *m, const struct kvm_sys *sys, struct err *e)
{
    struct engine_config config = {
        .host = &host, .cpu_count = 1, .model = &m->model, .irqchip = m->irqchip};
    struct cpu_state *st = aligned_alloc(64, align_up(sizeof(*st), 64));
    int ret;

    assert_non_null(st);
    ret = kvm_engine_open(sys, &config, &m->engine, e);
    if (ret == 0)
        ret = engine_kvm.add_ram(m->engine, 0, m->ram, RAM_SIZE, false, e);
    if (ret == 0)
        ret = engine_kvm.add_ram(m->engine, ROM_ADDR, m->ram, 4096, true, e);
    if (ret == 0)
        ret = engine_kvm.attach(m->engine, 0, m, &m->pins, &m->vcpu, e);
    if (ret == 0) {
        engine_kvm.pull(m->vcpu, st, CPU_GROUP_ALL);
        st->seg[CPU_CS].selector = 0;
        st->seg[CPU_CS].base = 0;
        st->rip = CODE;
        st->gpr[CPU_RSP] = STACK;
        st->tsc_offset = 12345;
        engine_kvm.push(m->vcpu, st, CPU_GROUP_ALL);
    }
    free(st);
    return ret;
}

/* What `sys` offers is asked for first, as the machine does. */
static int machine_try(const struct kvm_sys *sys, const void *code, size_t size, bool asks,
                       enum engine_irqchip irqchip, struct machine **out, struct err *e)
{
    struct machine *m = calloc(1, sizeof(*m));
    struct cpu_model_limit limit;
    int ret;

    assert_non_null(m);
    m->irqchip = irqchip;
    m->ram = aligned_alloc(4096, RAM_SIZE);
    assert_non_null(m->ram);
    memset(m->ram, 0, RAM_SIZE);
    memcpy(m->ram + CODE, code, size);
    *out = m;
    cpu_model_limit_init(&limit);
    /* asking runs a probe, which would follow a script's first turns */
    ret = asks ? kvm_cpuid_limit(sys, irqchip, &limit, e) : 0;
    if (ret == 0 && sys->open_kvm == kvm_sys_host.open_kvm)
        ret = cpu_model_create_within("host", 1, 1000000000, &limit, &m->model, e);
    else if (ret == 0)
        ret = cpu_model_create("host", 1, 1000000000, &m->model, e);
    return ret != 0 ? ret : machine_open(m, sys, e);
}

static struct machine *machine_create(const struct kvm_sys *sys, const void *code, size_t size)
{
    struct machine *m;
    struct err e = {0};

    if (machine_try(sys, code, size, false, ENGINE_IRQCHIP_OFF, &m, &e) != 0)
        fail_msg("%s", e.msg);
    return m;
}

static enum engine_stop machine_run(struct machine *m)
{
    enum engine_stop stop;
    struct err e = {0};

    if (engine_kvm.run(m->vcpu, &stop, &e) != 0)
        fail_msg("%s", e.msg);
    return stop;
}

static struct cpu_state *machine_state(struct machine *m)
{
    struct cpu_state *st = aligned_alloc(64, align_up(sizeof(*st), 64));

    assert_non_null(st);
    engine_kvm.pull(m->vcpu, st, CPU_GROUP_ALL);
    return st;
}

static const uint8_t nothing[] = {0xf4};

/* ---- exits ---- */

static int turn_out_string(struct fake *f)
{
    static const uint16_t words[] = {0x1111, 0x2222, 0x3333};

    f->run->exit_reason = KVM_EXIT_IO;
    f->run->io.direction = KVM_EXIT_IO_OUT;
    f->run->io.size = 2;
    f->run->io.port = 0x1f0;
    f->run->io.count = 3;
    f->run->io.data_offset = 4096;
    memcpy((uint8_t *)f->run + 4096, words, sizeof(words));
    return 0;
}

static int turn_in_string(struct fake *f)
{
    turn_out_string(f);
    f->run->io.direction = KVM_EXIT_IO_IN;
    return 0;
}

static int turn_mmio_7(struct fake *f)
{
    f->run->exit_reason = KVM_EXIT_MMIO;
    f->run->mmio.phys_addr = 0xfec00ff9;
    f->run->mmio.len = 7;
    f->run->mmio.is_write = 1;
    memcpy(f->run->mmio.data, "\1\2\3\4\5\6\7", 7);
    return 0;
}

static int turn_mmio_read(struct fake *f)
{
    f->run->exit_reason = KVM_EXIT_MMIO;
    f->run->mmio.phys_addr = 0xfec00010;
    f->run->mmio.len = 4;
    f->run->mmio.is_write = 0;
    return 0;
}

static void serves_ports_and_devices(void **state)
{
    struct fake f = {.turns = {turn_out_string, turn_in_string, turn_mmio_7, turn_mmio_read}};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_create(&sys, nothing, sizeof(nothing));
    static const struct {
        uint64_t address, value;
        unsigned size;
    } wanted[] = {
        {0x1f0, 0x1111, 2},
        {0x1f0, 0x2222, 2},
        {0x1f0, 0x3333, 2},
        {0x1f0, 0, 2},
        {0x1f0, 0, 2},
        {0x1f0, 0, 2},
        {0xfec00ff9, 0x04030201, 4},
        {0xfec00ffd, 0x0605, 2},
        {0xfec00fff, 7, 1},
        {0xfec00010, 0, 4},
    };

    assert_int_equal(machine_run(m), ENGINE_STOP_HALT);
    assert_int_equal(m->logged, ARRAY_SIZE(wanted));
    for (unsigned i = 0; i < ARRAY_SIZE(wanted); i++) {
        assert_int_equal(m->log[i].address, wanted[i].address);
        assert_int_equal(m->log[i].value, wanted[i].value);
        assert_int_equal(m->log[i].size, wanted[i].size);
    }
    /* what was read: a word each, in order */
    assert_memory_equal((uint8_t *)f.run + 4096, "\x04\x77\x05\x77\x06\x77", 6);
    assert_memory_equal(f.run->mmio.data, "\x11\x22\x33\x44", 4);
    machine_free(m);
}

/* The instruction is finished before anybody can look at the registers. */
static void completes_io_before_it_stops(void **state)
{
    struct fake f = {.turns = {turn_mmio_read}};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_create(&sys, nothing, sizeof(nothing));

    m->raise = PIN_STOP;
    assert_int_equal(machine_run(m), ENGINE_STOP_PIN);
    assert_int_equal(m->logged, 1);
    assert_int_equal(f.completed, 1);
    machine_free(m);
}

static int turn_shutdown(struct fake *f)
{
    f->run->exit_reason = KVM_EXIT_SHUTDOWN;
    return 0;
}

static void shuts_down(void **state)
{
    struct fake f = {.turns = {turn_shutdown}};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_create(&sys, nothing, sizeof(nothing));
    struct cpu_state *st;

    assert_int_equal(machine_run(m), ENGINE_STOP_SHUTDOWN);
    st = machine_state(m);
    assert_int_equal(st->run_state, CPU_SHUTDOWN);
    assert_int_equal(st->exception_vector, CPU_VECTOR_UNKNOWN);
    free(st);
    machine_free(m);
}

static int turn_msr(struct fake *f, unsigned reason, uint32_t index, uint64_t data)
{
    f->run->exit_reason = reason;
    f->run->msr.reason = KVM_MSR_EXIT_REASON_FILTER;
    f->run->msr.index = index;
    f->run->msr.data = data;
    f->run->msr.error = 0xff;
    return 0;
}

static int turn_read_apic_base(struct fake *f)
{
    return turn_msr(f, KVM_EXIT_X86_RDMSR, 0x1b, 0);
}

static int turn_write_deadline(struct fake *f)
{
    assert_int_equal(f->run->msr.error, 0);
    assert_int_equal(f->run->msr.data, 0xfee00900);
    return turn_msr(f, KVM_EXIT_X86_WRMSR, 0x6e0, 99);
}

static int turn_write_tsc_adjust(struct fake *f)
{
    assert_int_equal(f->run->msr.error, 0);
    return turn_msr(f, KVM_EXIT_X86_WRMSR, 0x3b, 1000);
}

static int turn_read_unknown(struct fake *f)
{
    assert_int_equal(f->run->msr.error, 0);
    assert_int_equal(f->tsc_offset, 13345);
    return turn_msr(f, KVM_EXIT_X86_RDMSR, 0xdeadbeef, 0);
}

static int turn_write_bad_efer(struct fake *f)
{
    assert_int_equal(f->run->msr.error, 1);
    turn_msr(f, KVM_EXIT_X86_WRMSR, 0xc0000080, 1); /* engine/soft would take it */
    f->run->msr.reason = KVM_MSR_EXIT_REASON_INVAL;
    return 0;
}

static int turn_after_efer(struct fake *f)
{
    assert_int_equal(f->run->msr.error, 1);
    f->run->exit_reason = KVM_EXIT_HLT;
    return 0;
}

static void routes_msrs(void **state)
{
    struct fake f = {.turns = {turn_read_apic_base, turn_write_deadline, turn_write_tsc_adjust,
                               turn_read_unknown, turn_write_bad_efer, turn_after_efer}};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_create(&sys, nothing, sizeof(nothing));

    assert_int_equal(machine_run(m), ENGINE_STOP_HALT);
    assert_int_equal(f.turn, 6);
    assert_int_equal(m->logged, 1);
    assert_int_equal(m->log[0].value, 99);
    assert_int_equal(m->tsc_changes, 1);
    machine_free(m);
}

static int turn_lower_tpr(struct fake *f)
{
    assert_int_equal(f->run->cr8, 9);
    f->run->cr8 = 2;
    f->run->exit_reason = KVM_EXIT_SET_TPR;
    return 0;
}

/* The task priority in KVM's own local APIC. */
static int turn_lower_tpr_in_kernel(struct fake *f)
{
    f->run->cr8 = 2;
    return turn_mmio_read(f);
}

static void keeps_cr8_in_step(void **state)
{
    struct fake f = {.turns = {turn_lower_tpr}};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_create(&sys, nothing, sizeof(nothing));

    m->cr8 = 9;
    assert_int_equal(machine_run(m), ENGINE_STOP_HALT);
    assert_int_equal(m->cr8, 2);
    machine_free(m);
}

/* ---- events ---- */

static int turn_open_window(struct fake *f)
{
    assert_int_equal(f->run->request_interrupt_window, 1);
    f->regs.rflags |= RFLAGS_IF;
    f->run->ready_for_interrupt_injection = 1;
    f->run->exit_reason = KVM_EXIT_IRQ_WINDOW_OPEN;
    return 0;
}

static int turn_check_injected(struct fake *f)
{
    assert_int_equal(f->interrupts, 1);
    assert_int_equal(f->interrupt, 0x21);
    assert_int_equal(f->run->request_interrupt_window, 0);
    f->run->exit_reason = KVM_EXIT_HLT;
    return 0;
}

static void injects_when_the_window_opens(void **state)
{
    struct fake f = {.turns = {turn_open_window, turn_check_injected}};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_create(&sys, nothing, sizeof(nothing));

    atomic_store(&m->pins.bits, PIN_INTR);
    assert_int_equal(machine_run(m), ENGINE_STOP_HALT);
    assert_int_equal(m->acknowledged, 1);
    machine_free(m);
}

/* Interrupted before the processor took what was injected. */
static int turn_interrupted(struct fake *f)
{
    f->events.interrupt.injected = 1;
    f->events.interrupt.nr = 0x21;
    f->regs.rip = CODE + 1;
    f->regs.rflags |= RFLAGS_IF;
    errno = EINTR;
    return -1;
}

static void delivers_what_was_acknowledged(void **state)
{
    struct fake f = {0};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_create(&sys, nothing, sizeof(nothing));
    struct cpu_state *st;

    /* the access raises PIN_STOP; on the way out KVM shows an interrupt that is not delivered */
    store_le16(m->ram + 4 * 0x21, 0x1234);
    store_le16(m->ram + 4 * 0x21 + 2, 0x0100);
    m->raise = PIN_STOP;
    f.turns[0] = turn_interrupted;
    f.turns[1] = turn_mmio_read;
    assert_int_equal(machine_run(m), ENGINE_STOP_PIN);
    st = machine_state(m);
    assert_int_equal(st->rip, 0x1234);
    assert_int_equal(st->seg[CPU_CS].selector, 0x0100);
    assert_int_equal(st->rflags & RFLAGS_IF, 0);
    assert_int_equal(load_le16(m->ram + STACK - 6), CODE + 1);
    assert_false(st->is_exception_pending);
    free(st);
    /* and KVM is told that nothing is left */
    atomic_store(&m->pins.bits, 0);
    f.turn = FAKE_TURNS_MAX;
    assert_int_equal(machine_run(m), ENGINE_STOP_HALT);
    assert_int_equal(f.events.interrupt.injected, 0);
    assert_int_equal(f.regs.rip, 0x1234);
    machine_free(m);
}

static int turn_nmi_waits(struct fake *f)
{
    f->events.nmi.pending = 1;
    f->events.nmi.masked = 1;
    return turn_mmio_read(f);
}

static void an_nmi_that_waits_returns_to_its_pin(void **state)
{
    struct fake f = {.turns = {turn_nmi_waits}};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_create(&sys, nothing, sizeof(nothing));
    struct cpu_state *st;

    m->raise = PIN_STOP;
    assert_int_equal(machine_run(m), ENGINE_STOP_PIN);
    assert_int_equal(atomic_load(&m->pins.bits), PIN_STOP | PIN_NMI);
    st = machine_state(m);
    assert_true(st->is_nmi_blocked);
    free(st);
    atomic_fetch_and(&m->pins.bits, ~PIN_STOP);
    assert_int_equal(machine_run(m), ENGINE_STOP_HALT);
    assert_int_equal(f.events.nmi.pending, 0);
    assert_int_equal(f.nmis, 1);
    machine_free(m);
}

static void pushes_a_pending_exception_by_delivering_it(void **state)
{
    struct fake f = {0};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_create(&sys, nothing, sizeof(nothing));
    struct cpu_state *st = machine_state(m);

    store_le16(m->ram + 4 * VEC_DE, 0x4321);
    st->is_exception_pending = 1;
    st->exception_vector = VEC_DE;
    engine_kvm.push(m->vcpu, st, CPU_GROUP_EVENT);
    assert_int_equal(machine_run(m), ENGINE_STOP_HALT);
    assert_int_equal(f.regs.rip, 0x4321);
    free(st);
    machine_free(m);
}

/* ---- failures of KVM's own ---- */

static int turn_fails(struct fake *f)
{
    f->run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
    f->run->internal.suberror = KVM_INTERNAL_ERROR_EMULATION;
    if (f->lacks_failure_exit) {
        f->events.exception.injected = 1;
        f->events.exception.nr = VEC_UD;
    }
    return 0;
}

static int turn_refuses_entry(struct fake *f)
{
    f->run->exit_reason = KVM_EXIT_FAIL_ENTRY;
    return 0;
}

static int turn_check_stepped(struct fake *f)
{
    assert_int_equal(f->regs.rax & 0xffff, 0x1235);
    assert_int_equal(f->regs.rip, CODE + 1);
    assert_int_equal(f->events.exception.injected, 0);
    f->run->exit_reason = KVM_EXIT_HLT;
    return 0;
}

static void steps_over(fake_turn_fn turn, bool lacks_failure_exit)
{
    static const uint8_t code[] = {0x40, 0xf4}; /* inc ax */
    struct fake f = {.turns = {turn, turn_check_stepped}, .lacks_failure_exit = lacks_failure_exit};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_create(&sys, code, sizeof(code));
    struct cpu_state *st = machine_state(m);

    st->gpr[CPU_RAX] = 0x1234;
    engine_kvm.push(m->vcpu, st, CPU_GROUP_GPR);
    free(st);
    assert_int_equal(machine_run(m), ENGINE_STOP_HALT);
    assert_int_equal(f.turn, 2);
    machine_free(m);
}

static void steps_over_failures(void **state)
{
    steps_over(turn_fails, false);
    steps_over(turn_fails, true);
    steps_over(turn_refuses_entry, false);
}

/* A KVM that can do nothing at all: the guest runs nevertheless. */
static void never_loops(void **state)
{
    static const uint8_t code[] = {0xb9, 0x00, 0x40, 0x49, 0x75, 0xfd, 0xf4}; /* 4000H rounds */
    struct fake f = {0};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_create(&sys, code, sizeof(code));
    struct cpu_state *st = machine_state(m);
    char *text = NULL;
    size_t size = 0;
    struct stats_text stats;

    m->model.tsc_hz = UINT64_C(100000000000000); /* every failure is near the last */
    atomic_store(&m->engine->is_probed, true);   /* the script is not for a probe */
    for (unsigned runs = 0; st->rip != CODE + 7 && runs < 100; runs++) {
        for (unsigned i = 0; i < FAKE_TURNS_MAX; i++)
            f.turns[i] = turn_fails;
        f.turn = 0;
        st->run_state = CPU_RUNNING; /* each script ends with a halt */
        engine_kvm.push(m->vcpu, st, CPU_GROUP_EVENT);
        assert_int_equal(machine_run(m), ENGINE_STOP_HALT);
        engine_kvm.pull(m->vcpu, st, CPU_GROUP_ALL);
    }
    assert_int_equal(st->rip, CODE + 7);
    assert_int_equal(st->gpr[CPU_RCX] & 0xffff, 0);
    free(st);
    stats_text_init(&stats, open_memstream(&text, &size));
    engine_kvm.report_stats(m->engine, &stats.sink);
    fclose(stats.out);
    assert_non_null(strstr(text, "emulation failures"));
    assert_non_null(strstr(text, "failed on 49"));
    free(text);
    machine_free(m);
}

/* Of more places than are kept, the frequent ones survive, in order; ports are no pages. */
static void counts_what_is_frequent(void **state)
{
    static const char *const order[] = {"page fee00000", "port 0064", "port 0060",
                                        "failed on 0f01"};
    static const uint8_t insn[] = {0x0f, 0x01};
    struct fake f = {0};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_create(&sys, insn, sizeof(insn));
    char *text = NULL, *at;
    size_t size = 0;
    struct stats_text stats;

    for (unsigned round = 0; round < 100; round++) {
        kvm_stats_count_place(m->vcpu, true, 0x60, 1);
        kvm_stats_count_place(m->vcpu, true, 0x64, 2);
        kvm_stats_count_place(m->vcpu, false, 0xfee00000 + 4 * round, 3);
        kvm_stats_count_place(m->vcpu, true, 0x1000 + round, 1);
        kvm_stats_count_failed(m->vcpu, insn, sizeof(insn));
    }
    kvm_stats_count_failed(m->vcpu, insn, 0);
    stats_text_init(&stats, open_memstream(&text, &size));
    engine_kvm.report_stats(m->engine, &stats.sink);
    fclose(stats.out);
    assert_non_null(strstr(text, "failed on not_readable"));
    at = strstr(text, order[3]);
    assert_non_null(at);
    assert_true(at < strstr(text, "failed on not_readable"));
    for (unsigned i = 0; i < 3; i++) {
        assert_non_null(strstr(at, order[i]));
        at = strstr(at, order[i]);
    }
    assert_null(strstr(text, "port fee00000"));
    assert_non_null(strstr(text, "port 1063")); /* the newest, in the place of a rare one */
    free(text);
    machine_free(m);
}

/* Kernel mode that KVM would interpret: all but CPUID is executed elsewhere, interrupts included.
 */
static void takes_over_from_an_interpreter(void **state)
{
    static const uint8_t code[] = {0xfb, 0xb8, 0x77, 0x00, 0x40, 0xf4}; /* sti; mov; inc ax; hlt */
    struct fake f = {0};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_create(&sys, code, sizeof(code));
    struct cpu_state *st;

    store_le16(m->ram + 4 * 0x21, 0x500);
    m->ram[0x500] = 0xcf; /* iret */
    atomic_store(&m->engine->is_interpreted, true);
    atomic_store(&m->pins.bits, PIN_INTR);
    assert_int_equal(machine_run(m), ENGINE_STOP_HALT);
    st = machine_state(m);
    assert_int_equal(st->rip, CODE + sizeof(code));
    assert_int_equal(st->gpr[CPU_RAX] & 0xffff, 0x78);
    assert_int_equal(m->acknowledged, 1);
    assert_int_equal(m->vcpu->stats.runs, 0);
    assert_int_equal(f.interrupts, 0);
    free(st);
    machine_free(m);
}

/* ---- the dirty log ---- */

/* What KVM wrote, and what was written for it. */
static void logs_writes(void **state)
{
    static const uint8_t code[] = {0xa2, 0x00, 0x90, 0xf4}; /* mov [9000H], al */
    struct fake f = {.turns = {turn_fails}};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_create(&sys, code, sizeof(code));
    uint64_t bitmap[RAM_SIZE / 4096 / 64];
    struct err e = {0};

    assert_true(engine_kvm.take_dirty(m->engine, 0, bitmap, &e) < 0);
    assert_true(engine_kvm.log_dirty(m->engine, 4096, true, &e) < 0);
    assert_int_equal(engine_kvm.log_dirty(m->engine, 0, true, &e), 0);
    assert_int_equal(f.region.flags, KVM_MEM_LOG_DIRTY_PAGES);
    f.dirty = BIT(3);
    assert_int_equal(machine_run(m), ENGINE_STOP_HALT);
    memset(bitmap, 0, sizeof(bitmap));
    assert_int_equal(engine_kvm.take_dirty(m->engine, 0, bitmap, &e), 0);
    assert_int_equal(bitmap[0], BIT(3) | BIT(9));
    memset(bitmap, 0, sizeof(bitmap));
    assert_int_equal(engine_kvm.take_dirty(m->engine, 0, bitmap, &e), 0);
    assert_int_equal(bitmap[0], 0);
    assert_int_equal(engine_kvm.log_dirty(m->engine, 0, false, &e), 0);
    assert_int_equal(f.region.flags, 0);
    machine_free(m);
}

/* ---- local APICs in the kernel ---- */

static const struct cpu_msi eoi_messages[ENGINE_EOI_MESSAGES] = {
    [3] = {.address = 0xfee01000, .data = 0xc041},
};

static struct machine *machine_with_apics(const struct kvm_sys *sys)
{
    struct machine *m;
    struct err e = {0};

    if (machine_try(sys, nothing, sizeof(nothing), false, ENGINE_IRQCHIP_ON, &m, &e) != 0)
        fail_msg("%s", e.msg);
    assert_true(engine_kvm.has_apics(m->engine));
    return m;
}

static uint32_t *lapic_reg(struct fake *f, unsigned reg)
{
    return (uint32_t *)(void *)(f->lapic.regs + 16 * reg);
}

#define LVT_ONE_SHOT 0x40u
#define LVT_DEADLINE (CPU_APIC_TIMER_TSC_DEADLINE | 0x40u)
#define DIVIDE_BY_128 0xau

static void gives_and_takes_local_apics(void **state)
{
    struct fake f = {0};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_with_apics(&sys);
    struct cpu_apic in = {.base = 0xfee00d00, .deadline_tsc = 1234567, .pv_eoi = 0x1235}, out;
    struct err e;

    assert_int_equal(f.split_inputs, 24);
    for (unsigned i = 0; i < CPU_APIC_REGS; i++)
        in.reg[i] = 0x01010101 * i;
    in.reg[CPU_APIC_LVT_TIMER] = LVT_DEADLINE;
    assert_int_equal(engine_kvm.push_apic(m->vcpu, &in, &e), 0);
    assert_int_equal(f.sregs.apic_base, 0xfee00d00);
    assert_int_equal(f.sregs.cr8, 0x08080808 >> 4);
    assert_int_equal(*lapic_reg(&f, CPU_APIC_SVR), 0x0f0f0f0f);
    assert_int_equal(*lapic_reg(&f, CPU_APIC_CURRENT_COUNT), 0);
    assert_int_equal(f.msrs[0x6e0 % 511], 1234567);
    assert_int_equal(f.msrs[0x4b564d04 % 511], 0x1235);
    assert_int_equal(f.msrs[0x4b564d05 % 511], 0);
    f.msrs[0x4b564d04 % 511] = 0x4321;
    f.msrs[0x4b564d05 % 511] = 1;

    assert_int_equal(engine_kvm.pull_apic(m->vcpu, &out, &e), 0);
    in.reg[CPU_APIC_CURRENT_COUNT] = 0;
    assert_memory_equal(out.reg, in.reg, sizeof(in.reg));
    assert_int_equal(out.base, in.base);
    assert_int_equal(out.deadline_tsc, in.deadline_tsc);
    assert_int_equal(out.pv_eoi, 0x4321);
    assert_int_equal(out.poll_control, 1);
    machine_free(m);
}

/* KVM's own local APIC refused a write: that of the machine is not asked. */
static int turn_write_bad_x2apic(struct fake *f)
{
    turn_msr(f, KVM_EXIT_X86_WRMSR, 0x808, 0x100);
    f->run->msr.reason = KVM_MSR_EXIT_REASON_INVAL;
    return 0;
}

static int turn_after_x2apic(struct fake *f)
{
    assert_int_equal(f->run->msr.error, 1);
    return turn_mmio_read(f);
}

static void what_the_kernels_apic_refuses_faults(void **state)
{
    struct fake f = {.turns = {turn_write_bad_x2apic, turn_after_x2apic}};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_with_apics(&sys);

    m->raise = PIN_STOP;
    assert_int_equal(machine_run(m), ENGINE_STOP_PIN);
    assert_int_equal(m->logged, 1); /* the device's read */
    machine_free(m);
}

/* HLT and SIPI are waited for inside of KVM_RUN; what it says goes out and in as run state. */
static int turn_halted(struct fake *f)
{
    f->mp.mp_state = KVM_MP_STATE_HALTED;
    errno = EINTR;
    return -1;
}

static void halts_in_the_kernel(void **state)
{
    struct fake f = {.turns = {turn_halted, turn_mmio_read}};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_with_apics(&sys);
    struct cpu_state *st = machine_state(m);

    st->run_state = CPU_WAIT_SIPI;
    engine_kvm.push(m->vcpu, st, CPU_GROUP_ALL);
    free(st);
    m->raise = PIN_STOP;
    assert_int_equal(machine_run(m), ENGINE_STOP_PIN);
    assert_int_equal(f.turn, 2);
    st = machine_state(m);
    assert_int_equal(st->run_state, CPU_HALTED);
    /* a start-up that reaches KVM after `run` has returned */
    f.mp.mp_state = KVM_MP_STATE_RUNNABLE;
    f.regs.rip = 0x1234;
    free(st);
    st = machine_state(m);
    assert_int_equal(st->run_state, CPU_RUNNING);
    assert_int_equal(st->rip, 0x1234);
    free(st);
    machine_free(m);
}

static int turn_wait_sipi_seen(struct fake *f)
{
    assert_int_equal(f->mp.mp_state, KVM_MP_STATE_INIT_RECEIVED);
    return turn_mmio_read(f);
}

static void waits_for_sipi_in_the_kernel(void **state)
{
    struct fake f = {.turns = {turn_wait_sipi_seen}};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_with_apics(&sys);
    struct cpu_state *st = machine_state(m);

    st->run_state = CPU_WAIT_SIPI;
    engine_kvm.push(m->vcpu, st, CPU_GROUP_ALL);
    free(st);
    m->raise = PIN_STOP;
    assert_int_equal(machine_run(m), ENGINE_STOP_PIN);
    machine_free(m);
}

/* An EOI of which KVM would only have told at the next entry. */
static int put_off_eoi(struct fake *f)
{
    f->run->exit_reason = KVM_EXIT_IOAPIC_EOI;
    f->run->eoi.vector = 0x41;
    return 0;
}

static void an_eoi_is_not_left_behind(void **state)
{
    struct fake f = {.put_off = put_off_eoi};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_with_apics(&sys);
    struct err e;
    sigset_t set;

    assert_int_equal(engine_kvm.watch_eoi(m->engine, eoi_messages, &e), 0);
    assert_int_equal(f.routes, 1);
    assert_int_equal(f.route.gsi, 3);
    assert_int_equal(f.route.u.msi.data, 0xc041);
    assert_int_equal(engine_kvm.send(m->engine, &eoi_messages[3], &e), 1);
    assert_int_equal(f.msi.address_lo, 0xfee01000);
    assert_int_equal(f.msi.data, 0xc041);
    atomic_store(&m->pins.bits, PIN_STOP);
    assert_int_equal(machine_run(m), ENGINE_STOP_PIN);
    assert_int_equal(m->eois, 1);
    assert_int_equal(m->eoi_vector, 0x41);
    assert_int_equal(f.in_place, 2);
    /* and the signal that kept the guest from being entered is gone */
    sigpending(&set);
    assert_false(sigismember(&set, KVM_KICK_SIGNAL));
    pthread_sigmask(SIG_SETMASK, NULL, &set);
    assert_int_equal(sigismember(&set, KVM_KICK_SIGNAL), 0);
    machine_free(m);
}

static void a_suppressed_eoi_stays_inside(void **state)
{
    struct fake f = {.put_off = put_off_eoi};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_with_apics(&sys);

    *lapic_reg(&f, CPU_APIC_SVR) = 0x11ff;
    atomic_store(&m->pins.bits, PIN_STOP);
    assert_int_equal(machine_run(m), ENGINE_STOP_PIN);
    assert_int_equal(f.in_place, 2);
    assert_int_equal(m->eois, 0);
    machine_free(m);
}

/* The timer expires between two looks at it: KVM's interrupt may still be on its way into IRR. */
static int put_off_expiry(struct fake *f)
{
    *lapic_reg(f, CPU_APIC_CURRENT_COUNT) = 0;
    errno = EINTR;
    return -1;
}

static void set_one_shot(struct fake *f, uint32_t count)
{
    *lapic_reg(f, CPU_APIC_LVT_TIMER) = LVT_ONE_SHOT;
    *lapic_reg(f, CPU_APIC_DIVIDE) = DIVIDE_BY_128;
    *lapic_reg(f, CPU_APIC_INITIAL_COUNT) = 0xffffffff;
    *lapic_reg(f, CPU_APIC_CURRENT_COUNT) = count;
}

static void a_one_shot_is_not_left_behind(void **state)
{
    struct fake f = {.put_off = put_off_expiry};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_with_apics(&sys);
    struct cpu_apic out;
    struct err e;

    /* expired as `run` returned: looked at again, for KVM to put it into IRR */
    set_one_shot(&f, 500);
    atomic_store(&m->pins.bits, PIN_STOP);
    assert_int_equal(machine_run(m), ENGINE_STOP_PIN);
    assert_int_equal(f.in_place, 2);
    assert_int_equal(engine_kvm.pull_apic(m->vcpu, &out, &e), 0);
    assert_false(out.is_counting);

    /* counting then, expired by now: KVM cannot say so, and its interrupt is not in IRR */
    set_one_shot(&f, 1);
    assert_int_equal(machine_run(m), ENGINE_STOP_PIN);
    assert_int_equal(f.in_place, 3);
    usleep(1);
    *lapic_reg(&f, CPU_APIC_CURRENT_COUNT) = 0;
    assert_int_equal(engine_kvm.pull_apic(m->vcpu, &out, &e), 0);
    assert_true(out.is_counting);
    assert_int_equal(out.reg[CPU_APIC_CURRENT_COUNT], 0);

    /* far from it: what is left shrinks with time */
    set_one_shot(&f, 0xf0000000);
    assert_int_equal(machine_run(m), ENGINE_STOP_PIN);
    assert_int_equal(engine_kvm.pull_apic(m->vcpu, &out, &e), 0);
    assert_true(out.is_counting);
    assert_in_range(out.reg[CPU_APIC_CURRENT_COUNT], 0xe0000000, 0xf0000000);
    machine_free(m);
}

static void keeps_out_of_the_kernels_apic(void **state)
{
    struct fake f = {.turns = {turn_lower_tpr_in_kernel}};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_with_apics(&sys);

    m->cr8 = 9; /* the machine's own, which is lent */
    m->raise = PIN_STOP;
    assert_int_equal(machine_run(m), ENGINE_STOP_PIN);
    assert_int_equal(m->cr8, 9);
    machine_free(m);
}

static void does_without_apics_in_the_kernel(void **state)
{
    static const int needed[] = {KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_SIGNAL_MSI, KVM_CAP_IRQ_ROUTING,
                                 KVM_CAP_MP_STATE, KVM_CAP_TSC_DEADLINE_TIMER};

    for (unsigned i = 0; i < ARRAY_SIZE(needed); i++) {
        struct fake f = {.lacking = needed[i]};
        struct kvm_sys sys = fake_sys(&f);
        struct machine *m;
        struct err e = {0};

        assert_int_equal(
            machine_try(&sys, nothing, sizeof(nothing), false, ENGINE_IRQCHIP_AUTO, &m, &e), 0);
        assert_false(engine_kvm.has_apics(m->engine));
        assert_int_equal(f.split_inputs, 0);
        machine_free(m);
        assert_true(machine_try(&sys, nothing, sizeof(nothing), false, ENGINE_IRQCHIP_ON, &m, &e) <
                    0);
        assert_non_null(strstr(e.msg, "KVM_CHECK_EXTENSION(KVM_CAP_"));
        assert_non_null(strstr(e.msg, "--kvm-irqchip"));
        machine_free(m);
    }
}

/* Intel's KVM drops writes of the deadline where it has no local APIC. */
static void offers_tsc_deadlines(void **state)
{
    static const struct {
        bool is_intel;
        enum engine_irqchip irqchip;
        bool is_offered;
    } cases[] = {
        {false, ENGINE_IRQCHIP_OFF, true}, {false, ENGINE_IRQCHIP_ON, true},
        {true, ENGINE_IRQCHIP_OFF, false}, {true, ENGINE_IRQCHIP_AUTO, false},
        {true, ENGINE_IRQCHIP_ON, true},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct fake f = {.is_intel = cases[i].is_intel};
        struct kvm_sys sys = fake_sys(&f);
        struct cpu_model_limit limit;
        struct err e = {0};
        unsigned at = CPU_FEATURE_TSC_DEADLINE;

        cpu_model_limit_init(&limit);
        if (kvm_cpuid_limit(&sys, cases[i].irqchip, &limit, &e) != 0)
            fail_msg("%s", e.msg);
        assert_int_equal(limit.feature_words[at / 64] >> (at % 64) & 1, cases[i].is_offered);
    }
}

/* KVM answers them by itself, for its own local APICs. */
static void hypercalls_are_offered_where_they_work(void **state)
{
    static const struct {
        enum engine_irqchip irqchip;
        bool is_answered, is_offered;
    } cases[] = {
        {ENGINE_IRQCHIP_OFF, true, false},
        {ENGINE_IRQCHIP_AUTO, true, false},
        {ENGINE_IRQCHIP_ON, false, false},
        {ENGINE_IRQCHIP_ON, true, true},
    };
    static const enum cpu_feature features[] = {CPU_FEATURE_KVM_PV_UNHALT, CPU_FEATURE_KVM_PV_IPI,
                                                CPU_FEATURE_KVM_PV_SCHED_YIELD};

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct fake f = {.answers_hypercalls = cases[i].is_answered};
        struct kvm_sys sys = fake_sys(&f);
        struct cpu_model_limit limit;
        struct err e = {0};

        cpu_model_limit_init(&limit);
        if (kvm_cpuid_limit(&sys, cases[i].irqchip, &limit, &e) != 0)
            fail_msg("%s", e.msg);
        for (unsigned k = 0; k < ARRAY_SIZE(features); k++)
            assert_int_equal(limit.feature_words[features[k] / 64] >> (features[k] % 64) & 1,
                             cases[i].is_offered);
    }
}

/* ---- bells ---- */

static const struct engine_bell some_bells[] = {
    {0xd0000000, 2, 50}, {0xd0000004, 2, 51}, {UINT64_C(0x800000000), 2, 50}};
static const struct engine_bell moved_bells[] = {
    {0xd0000004, 2, 51}, {UINT64_C(0x800000000), 2, 52}, {0xd0000000, 2, 51}};

static bool fake_has_bells(const struct fake *f, const struct engine_bell *bells, unsigned count)
{
    unsigned found = 0;

    for (unsigned i = 0; i < f->bell_count; i++)
        for (unsigned n = 0; n < count; n++)
            found += f->bells[i].addr == bells[n].addr && f->bells[i].len == bells[n].size &&
                     f->bells[i].fd == bells[n].fd && f->bells[i].flags == 0;
    return found == count && f->bell_count == count;
}

static void hangs_bells(void **state)
{
    struct fake f = {0};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_create(&sys, nothing, sizeof(nothing));
    struct err e;

    assert_int_equal(engine_kvm.set_bells(m->engine, some_bells, 3, &e), 0);
    assert_true(fake_has_bells(&f, some_bells, 3));
    assert_int_equal(engine_kvm.set_bells(m->engine, some_bells, 3, &e), 0);
    assert_true(fake_has_bells(&f, some_bells, 3));
    /* another descriptor at an address that one had before */
    assert_int_equal(engine_kvm.set_bells(m->engine, moved_bells, 3, &e), 0);
    assert_true(fake_has_bells(&f, moved_bells, 3));
    assert_int_equal(engine_kvm.set_bells(m->engine, moved_bells, 1, &e), 0);
    assert_true(fake_has_bells(&f, moved_bells, 1));
    assert_int_equal(engine_kvm.set_bells(m->engine, NULL, 0, &e), 0);
    assert_int_equal(f.bell_count, 0);
    machine_free(m);
}

static void does_without_bells(void **state)
{
    struct fake f = {.lacking = KVM_CAP_IOEVENTFD};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_create(&sys, nothing, sizeof(nothing));
    struct err e;

    assert_int_equal(engine_kvm.set_bells(m->engine, some_bells, 3, &e), 0);
    assert_int_equal(f.bell_count, 0);
    machine_free(m);

    /* a kernel that has no room for more: those that fit, and others when one of them goes */
    f = (struct fake){.bells_room = 1};
    m = machine_create(&sys, nothing, sizeof(nothing));
    assert_int_equal(engine_kvm.set_bells(m->engine, some_bells, 3, &e), 0);
    assert_true(fake_has_bells(&f, some_bells, 1));
    assert_int_equal(engine_kvm.set_bells(m->engine, some_bells + 1, 2, &e), 0);
    assert_true(fake_has_bells(&f, some_bells + 1, 1));
    machine_free(m);
}

/* One that cannot be taken down would go on ringing where something else is by now. */
static void a_bell_that_stays_is_an_error(void **state)
{
    struct fake f = {0};
    struct kvm_sys sys = fake_sys(&f);
    struct machine *m = machine_create(&sys, nothing, sizeof(nothing));
    struct err e;

    assert_int_equal(engine_kvm.set_bells(m->engine, some_bells, 3, &e), 0);
    f.bell_count = 0;
    assert_true(engine_kvm.set_bells(m->engine, moved_bells, 3, &e) < 0);
    assert_non_null(strstr(e.msg, "0xd0000000: KVM_IOEVENTFD"));
    machine_free(m);
}

/* ---- calls that fail ---- */

static unsigned open_files(void)
{
    DIR *dir = opendir("/proc/self/fd");
    unsigned count = 0;

    assert_non_null(dir);
    while (readdir(dir) != NULL)
        count++;
    closedir(dir);
    return count;
}

static int ring_bells(struct machine *m, struct err *e)
{
    struct engine_bell bell = {0xd0000000, 2, eventfd(0, 0)};
    int ret;

    assert_true(bell.fd >= 0);
    ret = engine_kvm.set_bells(m->engine, &bell, 1, e);
    if (ret == 0)
        ret = engine_kvm.set_bells(m->engine, NULL, 0, e);
    close(bell.fd);
    return ret;
}

/* Everything an engine is asked for, until the first failure. */
static int exercise(const struct kvm_sys *sys, struct err *e)
{
    /* mov al, 42h; out 80h, al; in al, 81h; hlt */
    static const uint8_t code[] = {0xb0, 0x42, 0xe6, 0x80, 0xe4, 0x81, 0xf4};
    uint64_t bitmap[RAM_SIZE / 4096 / 64];
    enum engine_stop stop;
    struct machine *m;
    struct cpu_state *st;
    int ret = machine_try(sys, code, sizeof(code), true, ENGINE_IRQCHIP_OFF, &m, e);

    if (ret == 0)
        ret = engine_kvm.run(m->vcpu, &stop, e);
    if (ret == 0) {
        assert_int_equal(stop, ENGINE_STOP_HALT);
        st = machine_state(m);
        st->run_state = CPU_RUNNING;
        st->rip = CODE;
        engine_kvm.push(m->vcpu, st, CPU_GROUP_ALL);
        free(st);
        atomic_store(&m->pins.bits, PIN_NMI);
        m->raise = PIN_STOP;
        ret = engine_kvm.run(m->vcpu, &stop, e);
    }
    if (ret == 0) {
        st = machine_state(m);
        free(st);
        atomic_store(&m->pins.bits, PIN_STOP);
        ret = engine_kvm.run(m->vcpu, &stop, e); /* says if the exchange failed */
    }
    if (ret == 0)
        ret = ring_bells(m, e);
    if (ret == 0)
        ret = engine_kvm.log_dirty(m->engine, 0, true, e);
    if (ret == 0)
        ret = engine_kvm.take_dirty(m->engine, 0, bitmap, e);
    if (ret == 0)
        ret = engine_kvm.remove_ram(m->engine, ROM_ADDR, e);
    machine_free(m);
    return ret;
}

static const int codes[] = {ENOMEM, EINVAL, EIO, EPERM};

typedef int (*exercise_fn)(const struct kvm_sys *sys, struct err *e);

static void fails_in_turn(const struct kvm_sys *under, exercise_fn run)
{
    struct failing f;
    struct kvm_sys sys = failing_sys(&f);
    struct cpu_model_limit limit;
    unsigned i, tried, files = open_files();

    f = (struct failing){.under = under, .fail_at = UINT32_MAX};
    cpu_model_limit_init(&limit);
    assert_int_equal(kvm_cpuid_limit(&sys, ENGINE_IRQCHIP_OFF, &limit, NULL), 0);
    tried = f.count;

    for (i = 0;; i++) {
        struct err e = {0};
        f = (struct failing){.under = under, .fail_at = i, .code = codes[i % ARRAY_SIZE(codes)]};
        int ret = run(&sys, &e);
        assert_int_equal(open_files(), files);
        if (f.failed == 0) { /* there were not that many */
            assert_int_equal(ret, 0);
            break;
        }
        /* only what is tried out, as bells are, and what is asked of an extension, may fail without
         * a word */
        if (ret == 0 && f.failed != KVM_CHECK_EXTENSION && f.failed != KVM_IOEVENTFD && i >= tried)
            fail_msg("call %u (request 0x%lx) failed without a word", i, f.failed);
        assert_true(ret == 0 || (ret < 0 && e.code != 0));
        if (ret != 0 && strstr(e.msg, "KVM") == NULL)
            fail_msg("call %u: '%s' does not name it", i, e.msg);
    }
    assert_true(i > 40);
}

static void calls_fail_in_turn(void **state)
{
    struct fake f = {0};
    struct kvm_sys under = fake_sys(&f);

    fails_in_turn(&under, exercise);
}

static void calls_of_the_host_fail_in_turn(void **state)
{
    struct err e = {0};
    int fd;

    if (kvm_open_system(&kvm_sys_host, &fd, &e) != 0) {
        print_message("skipped: %s\n", e.msg);
        skip();
    }
    kvm_close_fd(&fd);
    fails_in_turn(&kvm_sys_host, exercise);
}

/* The same with local APICs in the kernel: given to it, run with, taken back. */
static int exercise_apics(const struct kvm_sys *sys, struct err *e)
{
    struct cpu_apic apic = {.base = 0xfee00900, .deadline_tsc = 99};
    enum engine_stop stop;
    struct machine *m;
    struct cpu_state *st;
    int ret = machine_try(sys, nothing, sizeof(nothing), false, ENGINE_IRQCHIP_ON, &m, e);

    if (ret == 0)
        ret = engine_kvm.push_apic(m->vcpu, &apic, e);
    if (ret == 0)
        ret = engine_kvm.watch_eoi(m->engine, eoi_messages, e);
    if (ret == 0)
        ret = engine_kvm.send(m->engine, &eoi_messages[3], e);
    if (ret >= 0) {
        atomic_store(&m->pins.bits, PIN_STOP);
        ret = engine_kvm.run(m->vcpu, &stop, e);
    }
    if (ret == 0) {
        st = machine_state(m);
        free(st);
        ret = engine_kvm.sync(m->vcpu, e);
    }
    if (ret == 0)
        ret = engine_kvm.pull_apic(m->vcpu, &apic, e);
    machine_free(m);
    return ret;
}

static void calls_for_apics_fail_in_turn(void **state)
{
    struct fake f = {0};
    struct kvm_sys under = fake_sys(&f);

    fails_in_turn(&under, exercise_apics);
}

static void says_what_to_do(void **state)
{
    static const struct {
        int code;
        const char *word;
    } cases[] = {{EACCES, "usermod"}, {EMFILE, "ulimit"}, {ENOENT, "host"}};

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct failing f = {.under = &kvm_sys_host, .code = cases[i].code};
        struct kvm_sys sys = failing_sys(&f);
        struct err e = {0};
        int fd;
        assert_int_equal(kvm_open_system(&sys, &fd, &e), -cases[i].code);
        assert_non_null(strstr(e.msg, "open /dev/kvm: "));
        assert_non_null(strstr(e.msg, cases[i].word));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(serves_ports_and_devices),
        cmocka_unit_test(completes_io_before_it_stops),
        cmocka_unit_test(shuts_down),
        cmocka_unit_test(routes_msrs),
        cmocka_unit_test(keeps_cr8_in_step),
        cmocka_unit_test(injects_when_the_window_opens),
        cmocka_unit_test(delivers_what_was_acknowledged),
        cmocka_unit_test(an_nmi_that_waits_returns_to_its_pin),
        cmocka_unit_test(pushes_a_pending_exception_by_delivering_it),
        cmocka_unit_test(steps_over_failures),
        cmocka_unit_test(never_loops),
        cmocka_unit_test(counts_what_is_frequent),
        cmocka_unit_test(takes_over_from_an_interpreter),
        cmocka_unit_test(logs_writes),
        cmocka_unit_test(hypercalls_are_offered_where_they_work),
        cmocka_unit_test(gives_and_takes_local_apics),
        cmocka_unit_test(what_the_kernels_apic_refuses_faults),
        cmocka_unit_test(halts_in_the_kernel),
        cmocka_unit_test(waits_for_sipi_in_the_kernel),
        cmocka_unit_test(an_eoi_is_not_left_behind),
        cmocka_unit_test(a_suppressed_eoi_stays_inside),
        cmocka_unit_test(a_one_shot_is_not_left_behind),
        cmocka_unit_test(keeps_out_of_the_kernels_apic),
        cmocka_unit_test(does_without_apics_in_the_kernel),
        cmocka_unit_test(offers_tsc_deadlines),
        cmocka_unit_test(hangs_bells),
        cmocka_unit_test(does_without_bells),
        cmocka_unit_test(a_bell_that_stays_is_an_error),
        cmocka_unit_test(calls_fail_in_turn),
        cmocka_unit_test(calls_for_apics_fail_in_turn),
        cmocka_unit_test(calls_of_the_host_fail_in_turn),
        cmocka_unit_test(says_what_to_do),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
