/*
 * vm.c - a virtual machine's life: made, started, reset, ended, taken apart
 *
 * Whatever ends or resets the machine happens on some thread, with some lock held. It leaves a
 * note under vm->lock, tells the vCPUs to park and wakes the main loop, which does the rest.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "dev/irqchip/lapic.h"
#include "dev/platform/acpi_pm.h"
#include "mem/space.h"
#include "os/cpus.h"
#include "os/loop.h"
#include "os/tsc.h"
#include "vm/machine.h"

/* ---- stopping ---- */

static void vm_stop_loop(void *loop)
{
    loop_stop(loop);
}

/* Posted, so that it counts even when the loop does not run yet. */
static void vm_wake_main(struct vm *vm)
{
    loop_post(vm->config.loop, vm_stop_loop, vm->config.loop);
}

/* With vm->lock held. */
static void vm_set_run_state(struct vm *vm, enum machine_run_state run_state)
{
    vm->run_state = run_state;
    pthread_cond_broadcast(&vm->resumed);
    if (run_state == MACHINE_RUNNING)
        return;
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        vcpu_raise(&vm->vcpus[i], PIN_STOP);
}

bool vm_park(struct vcpu *vcpu)
{
    struct vm *vm = vcpu->vm;
    bool is_running;

    pthread_mutex_lock(&vm->lock);
    atomic_fetch_and(&vcpu->pins.bits, ~PIN_STOP);
    vm->parked_count++;
    pthread_cond_signal(&vm->parked);
    while (vm->run_state == MACHINE_PARKED)
        pthread_cond_wait(&vm->resumed, &vm->lock);
    vm->parked_count--;
    is_running = vm->run_state == MACHINE_RUNNING;
    pthread_mutex_unlock(&vm->lock);
    return is_running;
}

void vm_stop_running(struct vm *vm)
{
    pthread_mutex_lock(&vm->lock);
    if (vm->run_state == MACHINE_RUNNING)
        vm_set_run_state(vm, MACHINE_PARKED);
    pthread_mutex_unlock(&vm->lock);
}

/* With vm->lock held, every vCPU thread out of guest code. */
static void vm_remap(struct vm *vm)
{
    struct vm_end end = {.cause = VM_END_ERROR};
    int ret = board_apply_map(&vm->board, vm->ops, vm->engine, &end.error);

    if (ret != 0 && !vm->is_ended) {
        vm->is_ended = true;
        vm->end = end;
    }
    atomic_store(&vm->is_remap_due, false);
    vm->remap_count++;
    vm->remap_waiters = 0;
    pthread_cond_broadcast(&vm->resumed);
}

void vm_hold(struct vm *vm)
{
    unsigned started = 0;

    for (unsigned i = 0; i < vm->vcpu_count; i++)
        started += vm->vcpus[i].is_started;
    vm_stop_running(vm);
    pthread_mutex_lock(&vm->lock);
    for (;;) {
        while (vm->parked_count + vm->remap_waiters < started)
            pthread_cond_wait(&vm->parked, &vm->lock);
        if (!atomic_load(&vm->is_remap_due))
            break;
        /* those that waited for it park next */
        vm_remap(vm);
    }
    pthread_mutex_unlock(&vm->lock);
}

void vm_request_remap(struct vm *vm)
{
    pthread_mutex_lock(&vm->lock);
    atomic_store(&vm->is_remap_due, true);
    if (vm->run_state == MACHINE_RUNNING)
        vm_set_run_state(vm, MACHINE_PARKED);
    pthread_mutex_unlock(&vm->lock);
    vm_wake_main(vm);
}

void vm_await_remap(struct vm *vm)
{
    pthread_mutex_lock(&vm->lock);
    if (atomic_load(&vm->is_remap_due)) {
        uint64_t count = vm->remap_count;

        vm->remap_waiters++;
        pthread_cond_signal(&vm->parked);
        while (vm->remap_count == count && vm->run_state != MACHINE_ENDING)
            pthread_cond_wait(&vm->resumed, &vm->lock);
    }
    pthread_mutex_unlock(&vm->lock);
}

/* With vm->lock held: does nothing keep the machine from running? */
static bool vm_may_run(const struct vm *vm)
{
    return vm->is_started && !vm->is_paused && !vm->is_ended && !vm->is_reset_wanted &&
           !vm->is_storm_due && !atomic_load(&vm->is_remap_due);
}

void vm_release(struct vm *vm)
{
    struct vm_end end = {.cause = VM_END_ERROR};
    bool may_run;

    pthread_mutex_lock(&vm->lock);
    may_run = vm_may_run(vm);
    pthread_mutex_unlock(&vm->lock);
    if (may_run && apics_lend(vm, &end.error) != 0)
        vm_end_with(vm, &end);
    pthread_mutex_lock(&vm->lock);
    if (vm_may_run(vm))
        vm_set_run_state(vm, MACHINE_RUNNING);
    pthread_mutex_unlock(&vm->lock);
}

bool vm_is_ended(struct vm *vm)
{
    bool is_ended;

    pthread_mutex_lock(&vm->lock);
    is_ended = vm->is_ended;
    pthread_mutex_unlock(&vm->lock);
    return is_ended;
}

void vm_end_with(struct vm *vm, const struct vm_end *end)
{
    bool is_by_guest = end->cause != VM_END_STOPPED && end->cause != VM_END_ERROR;

    pthread_mutex_lock(&vm->lock);
    /* what the guest still does after it asked for a reset did not happen */
    if (!vm->is_ended && !(is_by_guest && vm->is_reset_wanted)) {
        vm->is_ended = true;
        vm->end = *end;
        if (vm->run_state == MACHINE_RUNNING)
            vm_set_run_state(vm, MACHINE_PARKED);
    }
    pthread_mutex_unlock(&vm->lock);
    vm_wake_main(vm);
}

void vm_end_cause(struct vm *vm, enum vm_end_cause cause)
{
    struct vm_end end = {.cause = cause};

    vm_end_with(vm, &end);
}

void vm_request_reset(struct vm *vm)
{
    if (vm->config.on_reboot == VM_REBOOT_EXIT) {
        vm_end_cause(vm, VM_END_RESET);
        return;
    }
    pthread_mutex_lock(&vm->lock);
    vm->is_reset_wanted = true;
    if (vm->run_state == MACHINE_RUNNING)
        vm_set_run_state(vm, MACHINE_PARKED);
    pthread_mutex_unlock(&vm->lock);
    vm_wake_main(vm);
}

void vm_request_stop(struct vm *vm)
{
    vm_end_cause(vm, VM_END_STOPPED);
}

void vm_press_power_button(struct vm *vm)
{
    acpi_pm_press_power_button(vm->board.pm);
}

/* ---- reset ---- */

static int vm_forget_code(void *ctx, uint64_t addr, void *host, uint64_t size, bool is_rom,
                          struct err *e)
{
    struct vm *vm = ctx;

    vm->ops->code_changed(vm->engine, addr, size);
    return 0;
}

/* What firmware and boot loader would leave behind: tables, the kernel, and a processor in it. */
static int vm_load_kernel(struct vm *vm, struct err *e)
{
    struct boot_load load = {
        .memory = vm->board.memory,
        .map = &vm->board.map,
        .cmdline = vm->config.cmdline != NULL ? vm->config.cmdline : "",
    };
    struct vcpu *bsp = &vm->vcpus[0];
    int ret;

    load.rsdp_addr = board_write_firmware_data(&vm->board);
    vcpu_state_reset(bsp, &bsp->state);
    ret = boot_load(&vm->source, &load, &bsp->state, e);
    if (ret != 0)
        return ret;
    vcpu_reset(bsp, &bsp->state);
    lapic_set_virtual_wire(bsp->lapic);
    return 0;
}

/*
 * Bring everything to the state after power-up, and without firmware memory to what that would
 * leave behind. vCPUs are parked or not started. RAM that nobody writes keeps its contents, as on
 * real machines.
 */
static int vm_reset(struct vm *vm, struct err *e)
{
    int ret = apics_take_back(vm, e);

    if (ret != 0)
        return ret;
    vm->tsc_base = vm->is_paused ? vm->paused_tsc : tsc_read();
    board_reset(&vm->board);
    pthread_mutex_lock(&vm->lock);
    vm_remap(vm);
    pthread_mutex_unlock(&vm->lock);
    ret = space_for_each_ram(vm->board.memory, vm_forget_code, vm, e);
    if (ret != 0)
        return ret;
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        vcpu_reset(&vm->vcpus[i], NULL);
    return vm->is_source_open ? vm_load_kernel(vm, e) : 0;
}

/* ---- the main thread ---- */

static int vm_start(struct vm *vm, struct err *e)
{
    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        int ret = vcpu_start(&vm->vcpus[i], e);
        if (ret != 0)
            return ret;
    }
    vm->is_started = true;
    switch_storm_begin(vm);
    vm_release(vm);
    return 0;
}

/* After a wake-up of the main loop: whether the machine is to go on. */
static bool vm_go_on(struct vm *vm)
{
    struct vm_end end = {.cause = VM_END_ERROR};
    bool is_ended, is_reset_wanted;

    pthread_mutex_lock(&vm->lock);
    is_ended = vm->is_ended;
    is_reset_wanted = vm->is_reset_wanted;
    vm->is_reset_wanted = false;
    pthread_mutex_unlock(&vm->lock);
    if (is_ended)
        return false;
    if (!is_reset_wanted && !atomic_load(&vm->is_remap_due))
        return true;
    vm_hold(vm);
    if (!is_reset_wanted) {
        vm_release(vm);
        return !vm_is_ended(vm);
    }
    if (vm_reset(vm, &end.error) != 0) {
        err_prefix(&end.error, "start the guest again after a reset");
        vm_end_with(vm, &end);
        return false;
    }
    log_info("the guest reset the machine");
    vm_release(vm);
    return true;
}

void vm_run(struct vm *vm, struct vm_end *end)
{
    struct vm_end failure = {.cause = VM_END_ERROR};
    int ret = vm_start(vm, &failure.error);

    while (ret == 0) {
        ret = loop_run(vm->config.loop, &failure.error);
        if (ret == 0 && !vm_go_on(vm))
            break;
    }
    if (ret != 0)
        vm_end_with(vm, &failure);
    pthread_mutex_lock(&vm->lock);
    vm_set_run_state(vm, MACHINE_ENDING);
    pthread_mutex_unlock(&vm->lock);
    switch_storm_end(vm);
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        vcpu_join(&vm->vcpus[i]);
    *end = vm->end;
}

/* ---- making and taking apart ---- */

/*
 * What a processor has of physical addresses when firmware runs on it: OVMF maps all there is by
 * pages of 2 MiB, which takes for ever, and more memory than there is, with the 48 bits of today's.
 */
#define FIRMWARE_PHYS_BITS 40

static int vm_check_config(const struct vm_config *config, struct err *e)
{
    if (config->cpu_count == 0 || config->cpu_count > VM_CPUS_MAX)
        return err_set(e, 0, "%u CPUs: it has to be 1 to %u", config->cpu_count, VM_CPUS_MAX);
    if (config->memory_bytes < VM_MEMORY_MIN || config->memory_bytes > VM_MEMORY_MAX ||
        config->memory_bytes % (1 << 20) != 0)
        return err_set(e, 0,
                       "%" PRIu64 " bytes of memory: it has to be 2 MiB to 1 TiB, in whole MiB",
                       config->memory_bytes);
    if ((config->kernel_path == NULL) == (config->firmware == NULL))
        return err_set(e, 0, "a machine starts with either a kernel or firmware");
    return 0;
}

static void vm_memory_written(void *ctx, uint64_t addr, uint64_t size)
{
    struct vm *vm = ctx;

    pthread_rwlock_rdlock(&vm->engine_lock);
    vm->ops->code_changed(vm->engine, addr, size);
    pthread_rwlock_unlock(&vm->engine_lock);
}

static int vm_open_engine(struct vm *vm, struct err *e)
{
    struct vm_engine engine;
    int ret = engines_open(vm, vm->ops, &engine, e);

    if (ret != 0)
        return ret;
    engines_exchange(vm, &engine);
    vm->vcpu_count = vm->config.cpu_count;
    space_set_watcher(vm->board.memory, vm_memory_written, vm);
    return 0;
}

static int vm_build(struct vm *vm, struct err *e)
{
    const struct vm_config *config = &vm->config;
    struct cpu_model_limit limit;
    int ret = vm_check_config(config, e);

    if (ret == 0)
        ret = engines_choose(vm, &limit, e);
    if (ret == 0 && config->kernel_path != NULL) {
        ret = boot_source_open(config->kernel_path, config->initrd_path, &vm->source, e);
        vm->is_source_open = ret == 0;
    } else if (ret == 0) {
        vm->firmware_name = config->firmware;
        if (strcmp(vm->firmware_name, "auto") == 0)
            vm->firmware_name = firmware_choose(config->disks, config->disk_count);
        ret = firmware_open(vm->firmware_name, config->firmware_vars_path, &vm->firmware, e);
    }
    if (ret != 0)
        return ret;
    if (!vm->is_source_open)
        limit.phys_bits = MIN(limit.phys_bits, FIRMWARE_PHYS_BITS);
    ret = cpu_model_create_within(config->cpu_model != NULL ? config->cpu_model : "host",
                                  config->cpu_count, tsc_frequency_hz(), &limit, &vm->model, e);
    if (ret != 0)
        return ret;
    vm->vcpus = aligned_alloc(64, align_up(config->cpu_count * sizeof(*vm->vcpus), 64));
    if (vm->vcpus == NULL)
        return err_set(e, ENOMEM, "make %u CPUs", config->cpu_count);
    memset(vm->vcpus, 0, config->cpu_count * sizeof(*vm->vcpus));
    for (unsigned i = 0; i < config->cpu_count; i++)
        vcpu_init(&vm->vcpus[i], vm, i);
    vm->can_poll = host_cpu_count() > 1 && config->cpu_count <= host_cpu_count();
    ret = board_create(&vm->board, vm, e);
    if (ret == 0)
        ret = vm_open_engine(vm, e);
    if (ret == 0)
        ret = vm_reset(vm, e);
    return ret;
}

int vm_create(const struct vm_config *config, struct vm **out, struct err *e)
{
    struct vm *vm = calloc(1, sizeof(*vm));
    int ret;

    if (vm == NULL)
        return err_set(e, ENOMEM, "make a machine");
    vm->config = *config;
    vm->run_state = MACHINE_PARKED;
    pthread_rwlock_init(&vm->engine_lock, NULL);
    pthread_mutex_init(&vm->lock, NULL);
    pthread_mutex_init(&vm->bells.lock, NULL);
    pthread_cond_init(&vm->parked, NULL);
    pthread_cond_init(&vm->resumed, NULL);
    ret = vm_build(vm, e);
    if (ret != 0) {
        vm_destroy(vm);
        return ret;
    }
    *out = vm;
    return 0;
}

void vm_destroy(struct vm *vm)
{
    struct vm_engine engine = {0};

    if (vm == NULL)
        return;
    if (vm->board.memory != NULL)
        space_set_watcher(vm->board.memory, NULL, NULL);
    switch_storm_end(vm);
    apics_abandon(vm);
    if (vm->engine != NULL)
        engines_exchange(vm, &engine);
    engines_close(vm, &engine);
    totals_forget(vm);
    board_destroy(&vm->board);
    if (vm->is_source_open)
        boot_source_close(&vm->source);
    firmware_close(&vm->firmware);
    free(vm->vcpus);
    pthread_cond_destroy(&vm->resumed);
    pthread_cond_destroy(&vm->parked);
    pthread_mutex_destroy(&vm->bells.lock);
    pthread_mutex_destroy(&vm->lock);
    pthread_rwlock_destroy(&vm->engine_lock);
    free(vm);
}
