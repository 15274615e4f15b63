/*
 * bells_test.c - which engine is given which bells
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bits.h"
#include "dev/irqchip/lapic.h"
#include "dev/pci/pci_host.h"
#include "vm/machine.h"
#include "vm/testing.h"

TEST_GUEST(halt, "cli\nhlt");

/* Two engines that take bells, and what each was given last. */
static struct given {
    struct engine *engine;
    struct engine_bell bells[ENGINE_BELLS_MAX];
    unsigned count, calls;
    bool fails;
} givens[2];

static int take(struct given *g, struct engine *engine, const struct engine_bell *bells,
                unsigned count, struct err *e)
{
    g->calls++;
    if (g->fails)
        return err_set(e, 0, "no bells today");
    g->engine = engine;
    g->count = count;
    memcpy(g->bells, bells, count * sizeof(bells[0]));
    return 0;
}

static int take_first(struct engine *engine, const struct engine_bell *bells, unsigned count,
                      struct err *e)
{
    return take(&givens[0], engine, bells, count, e);
}

static int take_second(struct engine *engine, const struct engine_bell *bells, unsigned count,
                       struct err *e)
{
    return take(&givens[1], engine, bells, count, e);
}

struct fixture {
    struct vm *vm;
    struct loop *loop;
    struct engine_ops first, second;
};

static const struct pci_host_bell some[] = {
    {0xd0000000, 50}, {0xd0000ffe, 51}, {UINT64_C(0x800000000), 50}};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    memset(givens, 0, sizeof(givens));
    f->vm = TEST_VM((&(struct vm_config){.engine = "interp", .cpu_count = 2}), halt, &f->loop);
    f->first = f->second = engine_interp;
    f->first.name = "first";
    f->first.set_bells = take_first;
    f->second.name = "second";
    f->second.set_bells = take_second;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    test_vm_destroy(f->vm, f->loop);
    free(f);
    return 0;
}

static void change(struct fixture *f, const struct engine_ops *ops)
{
    struct err e;

    if (switch_to_ops(f->vm, ops, NULL, &e) != 0)
        fail_msg("%s", e.msg);
}

static void expect_all(const struct fixture *f, const struct given *g)
{
    assert_ptr_equal(g->engine, f->vm->engine);
    assert_int_equal(g->count, ARRAY_SIZE(some));
    for (unsigned i = 0; i < ARRAY_SIZE(some); i++) {
        assert_true(g->bells[i].addr == some[i].addr);
        assert_int_equal(g->bells[i].fd, some[i].fd);
        assert_int_equal(g->bells[i].size, PCI_BELL_SIZE);
    }
}

static void every_engine_gets_them(void **state)
{
    struct fixture *f = *state;

    bells_moved(f->vm, some, ARRAY_SIZE(some)); /* interp takes none */
    change(f, &f->first);
    expect_all(f, &givens[0]);
    bells_moved(f->vm, some, 1);
    assert_int_equal(givens[0].count, 1);
    bells_moved(f->vm, some, ARRAY_SIZE(some));
    expect_all(f, &givens[0]);
    change(f, &f->second);
    expect_all(f, &givens[1]);
    change(f, &engine_interp);
    bells_moved(f->vm, some, 0);
    change(f, &f->first);
    assert_ptr_equal(givens[0].engine, f->vm->engine);
    assert_int_equal(givens[0].count, 0);
}

/* A local APIC's window comes before whatever else is there, and is its processor's only. */
static void apics_hide_bells(void **state)
{
    struct fixture *f = *state;
    struct vcpu *second = &f->vm->vcpus[1];

    bells_moved(f->vm, some, ARRAY_SIZE(some));
    change(f, &f->first);
    assert_true(
        vm_engine_host.msr_write(second, LAPIC_MSR_APIC_BASE, UINT64_C(0xd0000800) & ~0xfffu));
    assert_int_equal(givens[0].count, 3); /* one that is switched off hides nothing */
    assert_true(vm_engine_host.msr_write(second, LAPIC_MSR_APIC_BASE, 0xd0000800));
    assert_int_equal(givens[0].count, 1);
    assert_true(givens[0].bells[0].addr == some[2].addr);
    /* the next engine, too */
    change(f, &f->second);
    assert_int_equal(givens[1].count, 1);
    assert_true(vm_engine_host.msr_write(second, LAPIC_MSR_APIC_BASE, 0xfee00800));
    expect_all(f, &givens[1]);
}

static void failures_are_told(void **state)
{
    struct fixture *f = *state;
    struct vm_end end;
    struct err e;

    bells_moved(f->vm, some, ARRAY_SIZE(some));
    change(f, &f->first);
    givens[1].fails = true;
    assert_true(switch_to_ops(f->vm, &f->second, NULL, &e) != 0);
    assert_non_null(strstr(e.msg, "no bells today"));
    assert_string_equal(vm_engine_name(f->vm), "first");
    /* what stays hung cannot be let be */
    givens[0].fails = true;
    bells_moved(f->vm, some, 1);
    assert_true(vm_is_ended(f->vm));
    vm_run(f->vm, &end);
    assert_int_equal(end.cause, VM_END_ERROR);
    assert_non_null(strstr(end.error.msg, "no bells today"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_engine_gets_them, setup, teardown),
        cmocka_unit_test_setup_teardown(apics_hide_bells, setup, teardown),
        cmocka_unit_test_setup_teardown(failures_are_told, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
