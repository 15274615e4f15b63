/*
 * vcpu.c - a vCPU's thread: run, sleep, start, stop
 *
 * Wake-ups are not lost: who has something for the vCPU sets a pin and then looks whether the
 * vCPU sleeps; the vCPU says that it sleeps and then looks at the pins. Both are sequentially
 * consistent, so one of the two sees the other.
 *
 * Spec: Intel SDM vol. 3, "MP Initialization Protocol"; vol. 2, HLT.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "dev/irqchip/lapic.h"
#include "dev/platform/kvmclock.h"
#include "dev/platform/steal_time.h"
#include "os/futex.h"
#include "os/run_delay.h"
#include "os/spin_wait.h"
#include "os/tsc.h"
#include "vm/machine.h"

#define MTRR_TYPE_WB 6
#define MTRR_DEF_ENABLED (BIT(11) | BIT(10))
#define MTRR_MASK_VALID BIT(11)

void vcpu_raise(struct vcpu *vcpu, uint32_t pins)
{
    struct vm *vm = vcpu->vm;

    atomic_fetch_or(&vcpu->pins.bits, pins);
    /* a new engine finds the pin when it is entered; only the kick needs one that is there */
    pthread_rwlock_rdlock(&vm->engine_lock);
    vm->ops->kick(vcpu->engine);
    pthread_rwlock_unlock(&vm->engine_lock);
    /* no lock is held that the thread would want first, once it runs in our place */
    if (atomic_load(&vcpu->is_asleep) && atomic_exchange(&vcpu->is_asleep, 0))
        futex_wake(&vcpu->is_asleep);
}

void vcpu_unhalt(struct vcpu *vcpu)
{
    if (vcpu->vm->are_apics_lent) {
        apics_unhalt(vcpu);
        return;
    }
    atomic_store(&vcpu->is_kicked, true);
    /* no pin of its own: one that stayed set until the next HLT would slow engines down */
    vcpu_raise(vcpu, PIN_CALL);
}

/* ---- what the local APIC tells us ---- */

static void vcpu_set_intr(void *cpu, bool level)
{
    struct vcpu *vcpu = cpu;

    if (!level)
        atomic_fetch_and(&vcpu->pins.bits, ~PIN_INTR);
    else if (!(atomic_load(&vcpu->pins.bits) & PIN_INTR))
        vcpu_raise(vcpu, PIN_INTR);
}

static void vcpu_raise_nmi(void *cpu)
{
    vcpu_raise(cpu, PIN_NMI);
}

static void vcpu_raise_init(void *cpu)
{
    struct vcpu *vcpu = cpu;

    /* a SIPI from before the INIT is too early: the processor is not waiting for one yet */
    atomic_fetch_and(&vcpu->pins.bits, ~PIN_SIPI);
    vcpu_raise(vcpu, PIN_INIT);
}

static void vcpu_raise_sipi(void *cpu, uint8_t vector)
{
    struct vcpu *vcpu = cpu;

    atomic_store(&vcpu->sipi_vector, vector);
    vcpu_raise(vcpu, PIN_SIPI);
}

static uint64_t vcpu_guest_tsc(void *cpu)
{
    struct vcpu *vcpu = cpu;

    vcpu->vm->ops->pull(vcpu->engine, &vcpu->state, CPU_GROUP_TSC);
    return tsc_read() + vcpu->state.tsc_offset;
}

const struct lapic_ops vcpu_lapic_ops = {
    .set_intr = vcpu_set_intr,
    .raise_nmi = vcpu_raise_nmi,
    .raise_init = vcpu_raise_init,
    .raise_sipi = vcpu_raise_sipi,
    .guest_tsc = vcpu_guest_tsc,
};

/* Sleep until one of `pins` is set. */
static void vcpu_sleep(struct vcpu *vcpu, uint32_t pins)
{
    uint64_t start = clock_now_ns();

    for (;;) {
        atomic_store(&vcpu->is_asleep, 1);
        if (atomic_load(&vcpu->pins.bits) & pins)
            break;
        futex_wait(&vcpu->is_asleep, 1);
    }
    atomic_store(&vcpu->is_asleep, 0);
    vcpu->halt_ns += clock_now_ns() - start;
    vcpu->halt_count++;
}

/* ---- reset ---- */

/*
 * Firmware makes RAM write-back and the hole below 4 GiB uncached, alike on all processors;
 * Linux takes disabled or unequal MTRRs for a broken machine.
 */
static void state_set_mtrrs(const struct vcpu *vcpu, struct cpu_state *st)
{
    uint64_t phys_mask = (BIT(vcpu->vm->model.phys_bits) - 1) & ~UINT64_C(0xfff);

    for (unsigned i = 0; i < ARRAY_SIZE(st->mtrr_fixed); i++)
        st->mtrr_fixed[i] = UINT64_C(0x0606060606060606);
    st->mtrr_fixed[2] = 0; /* A0000H..BFFFFH: where a display adapter would be */
    memset(st->mtrr_base, 0, sizeof(st->mtrr_base));
    memset(st->mtrr_mask, 0, sizeof(st->mtrr_mask));
    st->mtrr_base[0] = MAP_LOW_RAM_MAX; /* type 0, uncached, up to 4 GiB */
    st->mtrr_mask[0] = (phys_mask & ~(BIT(32) - MAP_LOW_RAM_MAX - 1)) | MTRR_MASK_VALID;
    st->mtrr_def_type = MTRR_DEF_ENABLED | MTRR_TYPE_WB;
}

void vcpu_state_reset(const struct vcpu *vcpu, struct cpu_state *st)
{
    struct vm *vm = vcpu->vm;

    memset(st, 0, sizeof(*st));
    cpu_state_reset(st, cpu_model_cpuid(&vm->model, st, vcpu->index, 1, 0).eax);
    if (vm->is_source_open)
        state_set_mtrrs(vcpu, st);
    st->tsc_offset = vm->model.is_tsc_hosts ? 0 : 0 - vm->tsc_base;
    st->run_state = vcpu->index == 0 ? CPU_RUNNING : CPU_WAIT_SIPI;
}

void vcpu_reset(struct vcpu *vcpu, const struct cpu_state *st)
{
    if (st == NULL)
        vcpu_state_reset(vcpu, &vcpu->state);
    else
        vcpu->state = *st;
    vcpu->is_waiting_sipi = vcpu->state.run_state == CPU_WAIT_SIPI;
    vcpu->poll_control = 1;
    atomic_store(&vcpu->is_kicked, false);
    /* a stop may have been asked for meanwhile */
    atomic_fetch_and(&vcpu->pins.bits, PIN_STOP);
    vcpu->vm->ops->push(vcpu->engine, &vcpu->state, CPU_GROUP_ALL);
}

/* INIT: application processors wait to be started, the boot processor is at the reset vector. */
static void vcpu_take_init(struct vcpu *vcpu)
{
    struct vm *vm = vcpu->vm;
    struct cpu_state *st = &vcpu->state;
    bool is_bsp = lapic_is_bsp(vcpu->lapic);

    atomic_fetch_and(&vcpu->pins.bits, ~(PIN_INIT | PIN_NMI));
    if (is_bsp && vm->is_source_open) {
        /* there is no firmware at the reset vector; it would reset the machine */
        vm_request_reset(vm);
        vcpu_sleep(vcpu, PIN_STOP);
        return;
    }
    lapic_init_reset(vcpu->lapic);
    kvmclock_reset_cpu(vm->board.kvmclock, vcpu->index);
    steal_time_reset(vm->board.steal_time, vcpu->index);
    atomic_store(&vcpu->is_kicked, false);
    vm->ops->pull(vcpu->engine, st, CPU_GROUP_ALL);
    cpu_state_init(st, cpu_model_cpuid(&vm->model, st, vcpu->index, 1, 0).eax);
    vcpu->is_waiting_sipi = !is_bsp;
    st->run_state = is_bsp ? CPU_RUNNING : CPU_WAIT_SIPI;
    vm->ops->push(vcpu->engine, st, CPU_GROUP_ALL);
}

static void vcpu_take_sipi(struct vcpu *vcpu)
{
    struct vm *vm = vcpu->vm;

    atomic_fetch_and(&vcpu->pins.bits, ~PIN_SIPI);
    if (!vcpu->is_waiting_sipi)
        return;
    vm->ops->pull(vcpu->engine, &vcpu->state, CPU_GROUP_ALL);
    cpu_state_sipi(&vcpu->state, atomic_load(&vcpu->sipi_vector));
    vcpu->state.run_state = CPU_RUNNING;
    vcpu->is_waiting_sipi = false;
    vm->ops->push(vcpu->engine, &vcpu->state, CPU_GROUP_ALL);
}

void vcpu_take_startup(struct vcpu *vcpu)
{
    uint32_t pins = atomic_load(&vcpu->pins.bits);

    /* the boot processor's INIT resets the machine, on its own thread */
    if ((pins & PIN_INIT) && !lapic_is_bsp(vcpu->lapic))
        vcpu_take_init(vcpu);
    if (pins & PIN_SIPI)
        vcpu_take_sipi(vcpu);
}

/* ---- the thread ---- */

/* HLT: only where every processor of the guest can have one of the host's it looks before it
 * sleeps. */
static void vcpu_wait(struct vcpu *vcpu, uint32_t pins)
{
    uint64_t start = clock_now_ns();
    uint64_t spun = 0;

    if (vcpu->poll_control & 1) /* else the guest has looked for a while itself */
        spun = spin_wait(&vcpu->spin, &vcpu->pins.bits, pins, start);
    vcpu->polled_ns += spun;
    vcpu->halt_ns += spun;
    if (atomic_load(&vcpu->pins.bits) & pins) {
        vcpu->halt_count++;
        return;
    }
    vcpu_sleep(vcpu, pins);
    spin_wait_slept(&vcpu->spin, start, clock_now_ns(), vcpu->vm->can_poll);
}

static void vcpu_halt(struct vcpu *vcpu)
{
    const struct cpu_state *st = &vcpu->state;
    uint32_t pins = PIN_LEAVE;

    vcpu->vm->ops->pull(vcpu->engine, &vcpu->state, CPU_GROUP_GPR | CPU_GROUP_EVENT);
    if (atomic_exchange(&vcpu->is_kicked, false)) {
        vcpu->state.run_state = CPU_RUNNING;
        vcpu->vm->ops->push(vcpu->engine, &vcpu->state, CPU_GROUP_EVENT);
        return;
    }
    if (st->rflags & RFLAGS_IF)
        pins |= PIN_INTR;
    if (!st->is_nmi_blocked)
        pins |= PIN_NMI;
    vcpu_wait(vcpu, pins);
}

/*
 * Triple fault. A chip set answers it with a reset, and firmware starts again; where there is none,
 * or a reset would be the end anyway, the registers are worth more.
 */
static void vcpu_die(struct vcpu *vcpu)
{
    struct vm_end *end = &(struct vm_end){.cause = VM_END_DIED, .cpu = vcpu->index};
    struct vm *vm = vcpu->vm;

    vcpu_dump(vcpu, end->dump, sizeof(end->dump));
    if (!vm->is_source_open && vm->config.on_reboot == VM_REBOOT_RESET) {
        log_guest("triple fault on CPU %u: the machine is reset\n%s", vcpu->index, end->dump);
        vm_request_reset(vm);
    } else {
        vm_end_with(vm, end);
    }
    /* only INIT, RESET or the end of the machine get a processor out of shutdown */
    vcpu_sleep(vcpu, PIN_INIT | PIN_STOP);
}

static void vcpu_run_engine(struct vcpu *vcpu)
{
    struct vm_end end = {.cause = VM_END_ERROR};
    enum engine_stop stop;
    uint64_t start = clock_now_ns();
    int ret = vcpu->vm->ops->run(vcpu->engine, &stop, &end.error);

    vcpu->run_ns += clock_now_ns() - start;
    if (ret != 0) {
        err_prefix(&end.error, "run CPU %u", vcpu->index);
        vm_end_with(vcpu->vm, &end);
        vcpu_sleep(vcpu, PIN_STOP);
        return;
    }
    switch (stop) {
    case ENGINE_STOP_PIN:
        break;
    case ENGINE_STOP_HALT:
        vcpu_halt(vcpu);
        break;
    case ENGINE_STOP_SHUTDOWN:
        vcpu_die(vcpu);
        break;
    case ENGINE_STOP_SLICE:
        switch_storm(vcpu);
        break;
    }
}

/* Take what pins ask of this thread. Returns false when it has to end. */
static bool vcpu_take_pins(struct vcpu *vcpu)
{
    uint32_t pins = atomic_load(&vcpu->pins.bits);

    if ((pins & PIN_STOP) && !vm_park(vcpu))
        return false;
    if (pins & PIN_CALL)
        atomic_fetch_and(&vcpu->pins.bits, ~PIN_CALL);
    /* a stop may have reset the machine: look again */
    pins = atomic_load(&vcpu->pins.bits);
    if (pins & PIN_INIT)
        vcpu_take_init(vcpu);
    if (pins & PIN_SIPI)
        vcpu_take_sipi(vcpu);
    return true;
}

static void *vcpu_thread(void *arg)
{
    struct vcpu *vcpu = arg;

    vcpu->run_delay_fd = run_delay_open();
    while (vcpu_take_pins(vcpu)) {
        /* a local APIC of the engine's takes the start-up by itself */
        if (vcpu->is_waiting_sipi && !vcpu->vm->are_apics_lent)
            vcpu_sleep(vcpu, PIN_LEAVE);
        else
            vcpu_run_engine(vcpu);
    }
    if (vcpu->run_delay_fd >= 0)
        close(vcpu->run_delay_fd);
    return NULL;
}

int vcpu_start(struct vcpu *vcpu, struct err *e)
{
    char name[16];
    sigset_t blocked, old;
    int ret;

    /* it parks first: the guest runs when the machine does */
    atomic_fetch_or(&vcpu->pins.bits, PIN_STOP);
    /* signals to the process are the main thread's; faults of engines cannot be blocked */
    sigfillset(&blocked);
    sigdelset(&blocked, SIGSEGV);
    sigdelset(&blocked, SIGBUS);
    sigdelset(&blocked, SIGFPE);
    sigdelset(&blocked, SIGILL);
    sigdelset(&blocked, SIGTRAP);
    pthread_sigmask(SIG_SETMASK, &blocked, &old);
    ret = pthread_create(&vcpu->thread, NULL, vcpu_thread, vcpu);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (ret != 0)
        return err_set(e, ret, "start the thread of CPU %u", vcpu->index);
    vcpu->is_started = true;
    snprintf(name, sizeof(name), "cpu%u", vcpu->index);
    pthread_setname_np(vcpu->thread, name);
    return 0;
}

void vcpu_join(struct vcpu *vcpu)
{
    if (vcpu->is_started)
        pthread_join(vcpu->thread, NULL);
    vcpu->is_started = false;
}

void vcpu_init(struct vcpu *vcpu, struct vm *vm, unsigned index)
{
    vcpu->vm = vm;
    vcpu->index = index;
    vcpu->poll_control = 1;
    vcpu->run_delay_fd = -1;
}
