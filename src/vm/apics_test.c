/*
 * apics_test.c - local APICs go to an engine that has its own, and come back
 *
 * The engine is interp with places for local APICs: what happens to them is looked at here.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bits.h"
#include "dev/irqchip/apic_bus.h"
#include "dev/irqchip/lapic.h"
#include "os/loop.h"
#include "vm/machine.h"
#include "vm/testing.h"

#define COUNTER 0x8000
#define CPUS 2u

/* counts for ever; a second CPU stays where it is, waiting for a SIPI */
TEST_GUEST(count, "1: incl 0x8000\n"
                  "jmp 1b");

struct keeper {
    struct vm *vm;
    struct loop *loop;
    struct cpu_apic apics[CPUS];
    unsigned pushes, pulls, sends, watches;
    struct cpu_msi last;
    bool fails_push, fails_pull;
    bool is_done;
};

/* The engine's functions have no place for it: one test at a time. */
static struct keeper *keeper;

static unsigned index_of(struct engine_vcpu *vcpu)
{
    for (unsigned i = 0; i < CPUS; i++)
        if (keeper->vm->vcpus[i].engine == vcpu)
            return i;
    fail_msg("no CPU of the machine");
    return 0;
}

static bool has_apics(const struct engine *engine)
{
    return true;
}

static int push_apic(struct engine_vcpu *vcpu, const struct cpu_apic *in, struct err *e)
{
    if (keeper->fails_push && index_of(vcpu) == 1)
        return err_set(e, EIO, "take no local APIC");
    keeper->apics[index_of(vcpu)] = *in;
    keeper->pushes++;
    return 0;
}

static int pull_apic(struct engine_vcpu *vcpu, struct cpu_apic *out, struct err *e)
{
    if (keeper->fails_pull && index_of(vcpu) == 1)
        return err_set(e, EIO, "give no local APIC");
    *out = keeper->apics[index_of(vcpu)];
    keeper->pulls++;
    return 0;
}

static int send(struct engine *engine, const struct cpu_msi *msi, struct err *e)
{
    keeper->last = *msi;
    keeper->sends++;
    return 1;
}

static int watch_eoi(struct engine *engine, const struct cpu_msi *messages, struct err *e)
{
    keeper->watches++;
    return 0;
}

static struct engine_ops make_ops(void)
{
    struct engine_ops ops = engine_interp;

    ops.name = "keeper";
    ops.has_apics = has_apics;
    ops.push_apic = push_apic;
    ops.pull_apic = pull_apic;
    ops.send = send;
    ops.watch_eoi = watch_eoi;
    return ops;
}

/* It outlives the machine. */
static struct engine_ops ops;

static void setup_keeper(struct keeper *k)
{
    keeper = k;
    ops = make_ops();
    k->vm = TEST_VM(
        (&(struct vm_config){.engine = "bt", .cpu_count = CPUS, .kvm_irqchip = VM_IRQCHIP_ON}),
        count, &k->loop);
}

static void run_keeper(struct keeper *k, loop_call_fn fn, enum vm_end_cause cause,
                       const char *message)
{
    struct vm_end *end = calloc(1, sizeof(*end));

    loop_post(k->loop, fn, k);
    vm_run(k->vm, end);
    if (end->cause == VM_END_ERROR && message == NULL)
        fail_msg("%s", end->error.msg);
    assert_int_equal(end->cause, cause);
    if (message != NULL && strstr(end->error.msg, message) == NULL)
        fail_msg("'%s' does not contain '%s'", end->error.msg, message);
    free(end);
    test_vm_destroy(k->vm, k->loop);
    assert_true(k->is_done);
}

static void send_message(struct keeper *k, uint8_t vector)
{
    apic_bus_send_msi(k->vm->board.apic_bus, 0xfee00000, vector);
}

static void wait_for_counter(const struct vm *vm)
{
    const uint32_t *counter = (const uint32_t *)(const void *)(vm->board.ram.host + COUNTER);
    uint32_t seen = __atomic_load_n(counter, __ATOMIC_RELAXED);

    while (__atomic_load_n(counter, __ATOMIC_RELAXED) == seen)
        ;
}

static void go_and_come_back(void *ctx)
{
    struct keeper *k = ctx;
    struct err e;

    /* a change of the engine */
    assert_int_equal(switch_to_ops(k->vm, &ops, NULL, &e), 0);
    assert_int_equal(k->pushes, CPUS);
    assert_int_equal(k->watches, 1);
    assert_int_equal(k->apics[0].base, 0xfee00900);
    assert_int_equal(k->apics[1].base, 0xfee00800);
    assert_int_equal(k->apics[1].reg[CPU_APIC_ID], 1 << 24);
    wait_for_counter(k->vm);
    send_message(k, 0x71);
    assert_int_equal(k->sends, 1);
    assert_int_equal(k->last.address, 0xfee00000);
    assert_int_equal(k->last.data, 0x71);

    /* a pause; what arrives meanwhile goes along */
    k->apics[0].reg[CPU_APIC_TPR] = 0x50;
    assert_int_equal(k->apics[0].poll_control, 1);
    k->apics[0].poll_control = 0;
    k->apics[1].pv_eoi = 0x2001;
    assert_int_equal(vm_pause(k->vm, &e), 0);
    assert_int_equal(k->pulls, CPUS);
    assert_int_equal(lapic_cr8_read(k->vm->vcpus[0].lapic), 5);
    assert_int_equal(lapic_pv_eoi_read(k->vm->vcpus[1].lapic), 0x2001);
    assert_int_equal(k->vm->vcpus[0].poll_control, 0);
    send_message(k, 0x72);
    assert_int_equal(k->sends, 1);
    assert_int_equal(vm_resume(k->vm, &e), 0);
    assert_int_equal(k->pushes, 2 * CPUS);
    assert_int_equal(k->apics[0].poll_control, 0);
    assert_int_equal(k->apics[1].pv_eoi, 0x2001);
    /* the CPU that runs may have been kicked; the other does not wait for a kick */
    assert_int_equal(k->sends, 2);
    assert_int_equal(k->last.address, 0xfee00000);
    assert_int_equal(k->last.data, CPU_MSI_UNHALT);
    vcpu_unhalt(&k->vm->vcpus[1]);
    assert_int_equal(k->sends, 3);
    assert_int_equal(k->last.address, 0xfee01000);
    assert_int_equal(k->last.data, CPU_MSI_UNHALT);
    assert_false(k->vm->vcpus[1].is_kicked);
    assert_int_equal(k->apics[0].reg[CPU_APIC_TPR], 0x50);
    assert_int_equal(k->apics[0].reg[CPU_APIC_IRR + 0x72 / 32], BIT(0x72 % 32));

    /* statistics do not need them back */
    vm_hold(k->vm);
    vm_release(k->vm);
    assert_int_equal(k->pulls, CPUS);

    /* and a change to one that has none */
    assert_int_equal(vm_switch_engine(k->vm, "bt", NULL, &e), 0);
    assert_int_equal(k->pulls, 2 * CPUS);
    assert_int_equal(k->pushes, 2 * CPUS);
    assert_true(k->vm->vcpus[1].is_waiting_sipi);
    send_message(k, 0x73);
    assert_int_equal(k->sends, 3);
    wait_for_counter(k->vm);
    k->is_done = true;
    vm_request_stop(k->vm);
}

static void they_go_and_come_back(void **state)
{
    struct keeper k = {0};

    setup_keeper(&k);
    run_keeper(&k, go_and_come_back, VM_END_STOPPED, NULL);
}

static void fail_to_pull(void *ctx)
{
    struct keeper *k = ctx;
    struct err e;

    assert_int_equal(switch_to_ops(k->vm, &ops, NULL, &e), 0);
    k->fails_pull = true;
    assert_int_equal(vm_pause(k->vm, &e), -EIO);
    assert_false(vm_is_paused(k->vm));
    assert_int_equal(vm_switch_engine(k->vm, "bt", NULL, &e), -EIO);
    assert_non_null(strstr(e.msg, "give no local APIC"));
    assert_string_equal(vm_engine_name(k->vm), "keeper");
    /* it goes on, with them where they were */
    wait_for_counter(k->vm);
    send_message(k, 0x71);
    assert_int_equal(k->sends, 1);
    assert_int_equal(k->pushes, CPUS);
    k->is_done = true;
    vm_request_stop(k->vm);
}

static void what_cannot_be_taken_back_stays(void **state)
{
    struct keeper k = {0};

    setup_keeper(&k);
    run_keeper(&k, fail_to_pull, VM_END_STOPPED, NULL);
}

static void fail_to_push(void *ctx)
{
    struct keeper *k = ctx;
    struct err e;

    k->fails_push = true;
    k->is_done = true;
    /* the guest is on that engine by then: it cannot go on */
    assert_int_equal(switch_to_ops(k->vm, &ops, NULL, &e), 0);
    send_message(k, 0x71);
    assert_int_equal(k->sends, 0);
}

static void what_is_not_taken_ends_the_machine(void **state)
{
    struct keeper k = {0};

    setup_keeper(&k);
    run_keeper(&k, fail_to_push, VM_END_ERROR, "take no local APIC");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(they_go_and_come_back),
        cmocka_unit_test(what_cannot_be_taken_back_stays),
        cmocka_unit_test(what_is_not_taken_ends_the_machine),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
