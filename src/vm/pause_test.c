/*
 * pause_test.c - a paused machine stands still, with its clocks
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/bits.h"
#include "os/loop.h"
#include "os/tsc.h"
#include "os/vclock.h"
#include "vm/machine.h"
#include "vm/testing.h"

#define COUNTER 0x8000

/* counts for ever; a second CPU stays where it is, waiting for a SIPI */
TEST_GUEST(count, "1: incl 0x8000\n"
                  "jmp 1b");

static const char *const engines[] = {"interp", "bt"};

struct fixture {
    struct vm *vm;
    struct loop *loop;
    uint32_t seen;
    unsigned turns; /* pauses left */
    bool is_done;
};

static uint32_t counter(const struct vm *vm)
{
    return __atomic_load_n((const uint32_t *)(const void *)(vm->board.ram.host + COUNTER),
                           __ATOMIC_RELAXED);
}

static uint64_t tsc_offset(struct vm *vm, unsigned cpu)
{
    struct cpu_state *st = &vm->vcpus[cpu].state;

    vm->ops->pull(vm->vcpus[cpu].engine, st, CPU_GROUP_TSC);
    return st->tsc_offset;
}

/* Pause, look, go on. */
static void check_pause(struct fixture *f)
{
    struct vm *vm = f->vm;
    struct err e;
    uint64_t offset, begin, end, now_ns;

    assert_int_equal(vm_pause(vm, &e), 0);
    assert_true(vm_is_paused(vm));
    f->seen = counter(vm);
    now_ns = vclock_now_ns(vm->board.clock);
    offset = tsc_offset(vm, 1);
    assert_int_equal(vm_pause(vm, &e), 0); /* once more changes nothing */
    for (unsigned i = 0; i < 1000; i++)
        assert_int_equal(counter(vm), f->seen);
    assert_int_equal(vclock_now_ns(vm->board.clock), now_ns);

    begin = tsc_read();
    assert_int_equal(vm_resume(vm, &e), 0);
    end = tsc_read();
    assert_false(vm_is_paused(vm));
    assert_int_equal(vm_resume(vm, &e), 0);
    /* at one instant within vm_resume the guest's TSC was what it had been at the pause */
    vm_hold(vm);
    assert_in_range(vm->paused_tsc + offset - tsc_offset(vm, 1), begin, end);
    assert_int_equal(tsc_offset(vm, 0), tsc_offset(vm, 1));
    vm_release(vm);
}

static void turn(void *ctx)
{
    struct fixture *f = ctx;

    if (counter(f->vm) != f->seen) { /* it runs (again) */
        if (f->turns-- == 0) {
            f->is_done = true;
            vm_request_stop(f->vm);
            return;
        }
        check_pause(f);
    }
    loop_post(f->loop, turn, f);
}

static void a_paused_machine_stands_still(void **state)
{
    for (unsigned i = 0; i < ARRAY_SIZE(engines); i++) {
        struct fixture f = {.turns = 20};
        struct vm_end *end = calloc(1, sizeof(*end));
        f.vm = TEST_VM((&(struct vm_config){.engine = engines[i], .cpu_count = 2}), count, &f.loop);
        assert_string_equal(vm_engine_name(f.vm), engines[i]);
        loop_post(f.loop, turn, &f);
        vm_run(f.vm, end);
        assert_int_equal(end->cause, VM_END_STOPPED);
        assert_true(f.is_done);
        free(end);
        test_vm_destroy(f.vm, f.loop);
    }
}

static void resume_it(void *ctx)
{
    struct fixture *f = ctx;
    struct err e;

    assert_int_equal(counter(f->vm), 0);
    assert_int_equal(vm_resume(f->vm, &e), 0);
    turn(f);
}

static void a_machine_may_start_paused(void **state)
{
    struct fixture f = {.turns = 1};
    struct vm_end *end = calloc(1, sizeof(*end));
    struct err e;

    f.vm = TEST_VM((&(struct vm_config){.engine = "bt", .cpu_count = 2}), count, &f.loop);
    assert_int_equal(vm_pause(f.vm, &e), 0);
    loop_post(f.loop, resume_it, &f);
    vm_run(f.vm, end);
    assert_int_equal(end->cause, VM_END_STOPPED);
    assert_true(f.is_done);
    free(end);
    test_vm_destroy(f.vm, f.loop);
}

static void stop_paused(void *ctx)
{
    struct fixture *f = ctx;
    struct err e;

    assert_int_equal(vm_pause(f->vm, &e), 0);
    vm_request_stop(f->vm);
}

static void a_paused_machine_can_be_stopped(void **state)
{
    struct fixture f = {0};
    struct vm_end *end = calloc(1, sizeof(*end));
    struct err e;

    f.vm = TEST_VM((&(struct vm_config){.engine = "bt", .cpu_count = 2}), count, &f.loop);
    loop_post(f.loop, stop_paused, &f);
    vm_run(f.vm, end);
    assert_int_equal(end->cause, VM_END_STOPPED);
    assert_int_not_equal(vm_resume(f.vm, &e), 0);
    assert_int_not_equal(vm_pause(f.vm, &e), 0);
    free(end);
    test_vm_destroy(f.vm, f.loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_paused_machine_stands_still),
        cmocka_unit_test(a_machine_may_start_paused),
        cmocka_unit_test(a_paused_machine_can_be_stopped),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
