/*
 * switch_test.c - a running machine changes its engine
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "base/bits.h"
#include "os/loop.h"
#include "os/vclock.h"
#include "vm/machine.h"
#include "vm/testing.h"

#define COUNTER 0x8000

/* counts for ever; a second CPU waits for a SIPI */
TEST_GUEST(count, "1: incl 0x8000\n"
                  "jmp 1b");
/* halts for ever, with interrupts off */
TEST_GUEST(halt, "incl 0x8000\n"
                 "cli\nhlt");

struct fixture {
    struct vm *vm;
    struct loop *loop;
    uint32_t seen;
    unsigned turns; /* changes left */
    bool is_done;
};

static uint32_t counter(const struct vm *vm)
{
    return __atomic_load_n((const uint32_t *)(const void *)(vm->board.ram.host + COUNTER),
                           __ATOMIC_RELAXED);
}

static void pull_all(struct vm *vm, unsigned cpu, struct cpu_state *st)
{
    vm->ops->pull(vm->vcpus[cpu].engine, &vm->vcpus[cpu].state, CPU_GROUP_ALL);
    *st = vm->vcpus[cpu].state;
}

static const char *other_engine(const struct vm *vm)
{
    return strcmp(vm_engine_name(vm), "bt") == 0 ? "interp" : "bt";
}

static void run_with(struct fixture *f, loop_call_fn fn, enum vm_end_cause cause)
{
    struct vm_end *end = calloc(1, sizeof(*end));

    loop_post(f->loop, fn, f);
    vm_run(f->vm, end);
    if (end->cause == VM_END_ERROR)
        fail_msg("%s", end->error.msg);
    assert_int_equal(end->cause, cause);
    free(end);
    test_vm_destroy(f->vm, f->loop);
}

/* ---- it goes on ---- */

static void change_when_it_runs(void *ctx)
{
    struct fixture *f = ctx;
    struct vm_switch done;
    struct err e;

    if (counter(f->vm) != f->seen) {
        const char *next = other_engine(f->vm);
        if (f->turns-- == 0) {
            f->is_done = true;
            vm_request_stop(f->vm);
            return;
        }
        if (vm_switch_engine(f->vm, next, &done, &e) != 0)
            fail_msg("%s", e.msg);
        assert_string_equal(done.to, next);
        assert_string_not_equal(done.from, next);
        assert_true(done.stopped_ns > 0);
        assert_string_equal(vm_engine_name(f->vm), next);
        f->seen = counter(f->vm);
    }
    loop_post(f->loop, change_when_it_runs, f);
}

static void a_running_guest_goes_on(void **state)
{
    struct fixture f = {.turns = 20};

    f.vm = TEST_VM((&(struct vm_config){.engine = "bt", .cpu_count = 2}), count, &f.loop);
    run_with(&f, change_when_it_runs, VM_END_STOPPED);
    assert_true(f.is_done);
}

/* ---- nothing of a processor gets lost ---- */

/*
 * Something in every byte that means something: a field that pull and push forget shows, one that
 * is added later too. No processor would run with it, and none does.
 */
static void make_state(struct cpu_state *st, unsigned seed)
{
    const size_t error_end = offsetof(struct cpu_state, exception_error) + 4;
    const size_t dbg_end = offsetof(struct cpu_state, pending_dbg) + 8;
    uint8_t *bytes = (uint8_t *)st;

    for (size_t i = 0; i < sizeof(*st); i++)
        bytes[i] = (uint8_t)((i + seed) * 0x9e3779b1u >> 13);
    /* the compiler's padding does not move */
    st->pad = 0;
    memset(bytes + error_end, 0, offsetof(struct cpu_state, pending_dbg) - error_end);
    memset(bytes + dbg_end, 0, offsetof(struct cpu_state, xsave) - dbg_end);
}

static void every_field_moves(void **state)
{
    struct cpu_state *before = calloc(4, sizeof(*before)), *after = calloc(1, sizeof(*after));
    struct fixture f = {0};
    struct err e;

    f.vm = TEST_VM((&(struct vm_config){.engine = "bt", .cpu_count = 4}), count, &f.loop);
    for (unsigned i = 0; i < 4; i++) {
        pull_all(f.vm, i, &before[i]);
        make_state(&before[i], i);
        f.vm->ops->push(f.vm->vcpus[i].engine, &before[i], CPU_GROUP_ALL);
    }
    for (unsigned n = 0; n < 3; n++) {
        assert_int_equal(vm_switch_engine(f.vm, other_engine(f.vm), NULL, &e), 0);
        for (unsigned i = 0; i < 4; i++) {
            pull_all(f.vm, i, after);
            assert_memory_equal(after, &before[i], sizeof(*after));
        }
    }
    free(before);
    free(after);
    test_vm_destroy(f.vm, f.loop);
}

/* ---- pins and sleep ---- */

static void die_of_nmi(void *ctx)
{
    struct fixture *f = ctx;
    struct vcpu *vcpu = &f->vm->vcpus[0];
    struct err e;

    if (counter(f->vm) == 0 || !atomic_load(&vcpu->is_asleep)) {
        loop_post(f->loop, die_of_nmi, f);
        return;
    }
    /* the NMI comes while the guest is between engines: there is no IDT, so it dies of it */
    assert_int_equal(vm_pause(f->vm, &e), 0);
    assert_int_equal(vm_switch_engine(f->vm, other_engine(f->vm), NULL, &e), 0);
    vcpu_raise(vcpu, PIN_NMI);
    assert_int_equal(vm_switch_engine(f->vm, other_engine(f->vm), NULL, &e), 0);
    assert_int_equal(vm_resume(f->vm, &e), 0);
}

static void a_halted_cpu_keeps_its_nmi(void **state)
{
    static const char *const engines[] = {"bt", "interp"};

    for (unsigned i = 0; i < ARRAY_SIZE(engines); i++) {
        struct fixture f = {0};
        f.vm = TEST_VM((&(struct vm_config){.engine = engines[i], .cpu_count = 1}), halt, &f.loop);
        run_with(&f, die_of_nmi, VM_END_DIED);
    }
}

/* ---- paused ---- */

static void change_paused(void *ctx)
{
    struct fixture *f = ctx;
    struct err e;

    if (counter(f->vm) == 0) {
        loop_post(f->loop, change_paused, f);
        return;
    }
    assert_int_equal(vm_pause(f->vm, &e), 0);
    f->seen = counter(f->vm);
    assert_int_equal(vm_switch_engine(f->vm, other_engine(f->vm), NULL, &e), 0);
    assert_true(vm_is_paused(f->vm));
    for (unsigned i = 0; i < 1000; i++)
        assert_int_equal(counter(f->vm), f->seen);
    assert_int_equal(vm_resume(f->vm, &e), 0);
    f->turns = 1;
    change_when_it_runs(f);
}

static void a_paused_machine_stays_paused(void **state)
{
    struct fixture f = {0};

    f.vm = TEST_VM((&(struct vm_config){.engine = "interp", .cpu_count = 2}), count, &f.loop);
    run_with(&f, change_paused, VM_END_STOPPED);
    assert_true(f.is_done);
}

/* ---- what kvm leaves behind ---- */

/* The guest's stack pointer is an address of ours: a handler that ran on its stack would show. */
static void signal_the_cpu(void *ctx)
{
    struct fixture *f = ctx;
    struct err e;

    if (counter(f->vm) != f->seen) {
        if (strcmp(vm_engine_name(f->vm), "kvm") == 0) {
            assert_int_equal(vm_switch_engine(f->vm, "bt", NULL, &e), 0);
        } else if (f->turns-- == 0) {
            f->is_done = true;
            vm_request_stop(f->vm);
            return;
        }
        f->seen = counter(f->vm);
        if (strcmp(vm_engine_name(f->vm), "bt") == 0)
            pthread_kill(f->vm->vcpus[0].thread, SIGUSR1);
    }
    loop_post(f->loop, signal_the_cpu, f);
}

static void the_kick_signal_of_kvm_does_no_harm_later(void **state)
{
    enum { SIZE = 1 << 16 };
    uint8_t *ours =
        mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    struct fixture f = {.turns = 20};
    struct cpu_model_limit limit;
    struct vcpu *vcpu;
    struct err e;

    assert_true(ours != MAP_FAILED);
    cpu_model_limit_init(&limit);
    if (engine_kvm.limit_model(ENGINE_IRQCHIP_OFF, &limit, &e) != 0)
        skip(); /* no KVM here */
    f.vm = TEST_VM((&(struct vm_config){.engine = "kvm"}), count, &f.loop);
    vcpu = &f.vm->vcpus[0];
    f.vm->ops->pull(vcpu->engine, &vcpu->state, CPU_GROUP_GPR);
    vcpu->state.gpr[CPU_RSP] = (uintptr_t)ours + SIZE;
    f.vm->ops->push(vcpu->engine, &vcpu->state, CPU_GROUP_GPR);
    run_with(&f, signal_the_cpu, VM_END_STOPPED);
    assert_true(f.is_done);
    for (unsigned i = 0; i < SIZE; i++)
        assert_int_equal(ours[i], 0);
    munmap(ours, SIZE);
}

/* ---- refusals: the machine goes on as it was ---- */

enum failing { FAIL_NONE, FAIL_OPEN, FAIL_RAM, FAIL_ATTACH, FAIL_SYNC, FAIL_LIMIT };

static int fail_open(const struct engine_config *config, struct engine **out, struct err *e)
{
    return err_set(e, ENODEV, "open nothing");
}

static int fail_add_ram(struct engine *engine, gpa_t addr, void *host, uint64_t size, bool is_rom,
                        struct err *e)
{
    return err_set(e, ENOMEM, "add no RAM");
}

/* the second one */
static int fail_attach(struct engine *engine, unsigned index, void *cpu, struct engine_pins *pins,
                       struct engine_vcpu **out, struct err *e)
{
    if (index == 0)
        return engine_interp.attach(engine, index, cpu, pins, out, e);
    return err_set(e, EMFILE, "attach nothing");
}

static int fail_sync(struct engine_vcpu *vcpu, struct err *e)
{
    return err_set(e, EINVAL, "take nothing");
}

static int fail_limit(enum engine_irqchip irqchip, struct cpu_model_limit *limit, struct err *e)
{
    limit->who = "the test";
    cpu_model_limit_remove(limit, CPU_FEATURE_SSE3);
    cpu_model_limit_remove(limit, CPU_FEATURE_SSSE3);
    return 0;
}

static const struct {
    struct engine_ops ops;
    const char *message;
} failures[] = {
#define FAILURE(text, ...)                                                                         \
    {                                                                                              \
        .message = (text), .ops = { __VA_ARGS__ }                                                  \
    }
    FAILURE("open nothing", .open = fail_open),
    FAILURE("add no RAM", .add_ram = fail_add_ram),
    FAILURE("attach nothing", .attach = fail_attach),
    FAILURE("give CPU 0 to failing: take nothing", .sync = fail_sync),
    FAILURE("the test does not offer what this machine's CPU has: pni, ssse3",
            .limit_model = fail_limit),
};

/* interp, but for what `wrong` has */
static struct engine_ops make_failing(const struct engine_ops *wrong)
{
    struct engine_ops ops = engine_interp;

    ops.name = "failing";
    if (wrong->open != NULL)
        ops.open = wrong->open;
    if (wrong->add_ram != NULL)
        ops.add_ram = wrong->add_ram;
    if (wrong->attach != NULL)
        ops.attach = wrong->attach;
    ops.sync = wrong->sync;
    ops.limit_model = wrong->limit_model;
    return ops;
}

static void try_failures(void *ctx)
{
    struct fixture *f = ctx;
    struct err e;

    for (unsigned i = 0; i < ARRAY_SIZE(failures); i++) {
        struct engine_ops ops = make_failing(&failures[i].ops);
        assert_int_not_equal(switch_to_ops(f->vm, &ops, NULL, &e), 0);
        if (strstr(e.msg, failures[i].message) == NULL ||
            strstr(e.msg, "change the engine from bt to failing: ") != e.msg)
            fail_msg("message '%s' does not contain '%s'", e.msg, failures[i].message);
        assert_string_equal(vm_engine_name(f->vm), "bt");
    }
    assert_int_not_equal(vm_switch_engine(f->vm, "qemu", NULL, &e), 0);
    assert_non_null(strstr(e.msg, "no engine 'qemu'"));
    assert_int_equal(vm_switch_engine(f->vm, "bt", NULL, &e), 0);
    f->seen = counter(f->vm);
    f->turns = 1;
    loop_post(f->loop, change_when_it_runs, f);
}

static void a_failure_leaves_the_old_engine(void **state)
{
    struct fixture f = {0};

    f.vm = TEST_VM((&(struct vm_config){.engine = "bt", .cpu_count = 2}), count, &f.loop);
    run_with(&f, try_failures, VM_END_STOPPED);
    assert_true(f.is_done);
}

static void lists_of_engines(void **state)
{
    static const struct {
        const char *engine, *engines, *message;
    } cases[] = {
        {"bt", "interp", "--engine bt is not among --engines interp"},
        {"bt", "bt,", "has to be kvm, bt or interp"},
        {"bt", "bt,tcg", "'tcg' has to be"},
        {"bt", "bt,bt", "bt is there twice"},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct vm_config config = {.engine = cases[i].engine,
                                   .engines = cases[i].engines,
                                   .cpu_count = 1,
                                   .memory_bytes = 8 << 20,
                                   .kernel_path = "/dev/null"};
        struct vm *vm = NULL;
        struct err e;
        assert_int_equal(loop_create(&config.loop, &e), 0);
        assert_int_not_equal(vm_create(&config, &vm, &e), 0);
        if (strstr(e.msg, cases[i].message) == NULL)
            fail_msg("message '%s' does not contain '%s'", e.msg, cases[i].message);
        loop_destroy(config.loop);
    }
}

/* "auto" takes the best of the list */
static void the_list_bounds_auto(void **state)
{
    struct fixture f = {0};

    f.vm = TEST_VM((&(struct vm_config){.engines = "interp,bt"}), count, &f.loop);
    assert_string_equal(vm_engine_name(f.vm), "bt");
    test_vm_destroy(f.vm, f.loop);
    f.vm = TEST_VM((&(struct vm_config){.engines = "interp"}), count, &f.loop);
    assert_string_equal(vm_engine_name(f.vm), "interp");
    test_vm_destroy(f.vm, f.loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_running_guest_goes_on),
        cmocka_unit_test(every_field_moves),
        cmocka_unit_test(a_halted_cpu_keeps_its_nmi),
        cmocka_unit_test(a_paused_machine_stays_paused),
        cmocka_unit_test(the_kick_signal_of_kvm_does_no_harm_later),
        cmocka_unit_test(a_failure_leaves_the_old_engine),
        cmocka_unit_test(lists_of_engines),
        cmocka_unit_test(the_list_bounds_auto),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
