/*
 * status.c - what a machine is, how it stands, what it counted
 */
#include "base/stats.h"
#include "dev/virtio/virtio_balloon.h"
#include "os/vclock.h"
#include "vm/machine.h"

const char *vm_engine_name(const struct vm *vm)
{
    return vm->ops->name;
}

void vm_get_status(struct vm *vm, struct vm_status *out)
{
    *out = (struct vm_status){
        .engine = vm->ops->name,
        .is_paused = vm->is_paused,
        .cpu_count = vm->config.cpu_count,
        .memory_bytes = vm->config.memory_bytes,
        .cpu_model = vm->config.cpu_model != NULL ? vm->config.cpu_model : "host",
        .firmware = vm->firmware_name,
        .kernel_path = vm->config.kernel_path,
        .initrd_path = vm->config.initrd_path,
        .cmdline = vm->config.cmdline != NULL ? vm->config.cmdline : "",
        .guest_ns = vclock_now_ns(vm->board.clock),
    };
}

void vm_report_stats(struct vm *vm, struct stats_sink *sink)
{
    vm_hold(vm);
    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        const struct vcpu *vcpu = &vm->vcpus[i];
        stats_begin(sink, "time", (int)i);
        stats_put_ms(sink, "running_ms", "ms running", (double)vcpu->run_ns / 1e6);
        stats_put_ms(sink, "halted_ms", "ms halted", (double)vcpu->halt_ns / 1e6);
        stats_put_ms(sink, "polling_ms", "  of them polling", (double)vcpu->polled_ns / 1e6);
        stats_put_count(sink, "halts", "times halted", vcpu->halt_count);
    }
    switch_report_stats(vm, sink);
    totals_report(vm, sink);
    bells_report_stats(vm, sink);
    if (vm->board.balloon != NULL)
        virtio_balloon_report_stats(vm->board.balloon, sink);
    vm_release(vm);
}

void vm_print_stats(struct vm *vm, FILE *out)
{
    struct stats_text text;

    stats_text_init(&text, out);
    fprintf(out, "engine %s\n", vm->ops->name);
    vm_report_stats(vm, &text.sink);
}
