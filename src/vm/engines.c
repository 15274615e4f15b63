/*
 * engines.c - the engines there are, those that a machine may run on, and opening one
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "mem/space.h"
#include "os/run_delay.h"
#include "vm/machine.h"

/* The best first; the last is always there. */
static const struct engine_ops *const all_engines[] = {&engine_kvm, &engine_bt, &engine_interp};

_Static_assert(ARRAY_SIZE(all_engines) <= VM_ENGINES_MAX, "a machine can name them all");

/* ---- choosing ---- */

static const struct engine_ops *engines_look_up(const char *name, size_t len)
{
    for (unsigned i = 0; i < ARRAY_SIZE(all_engines); i++)
        if (strlen(all_engines[i]->name) == len && memcmp(all_engines[i]->name, name, len) == 0)
            return all_engines[i];
    return NULL;
}

const struct engine_ops *engines_find(const char *name, struct err *e)
{
    const struct engine_ops *ops = engines_look_up(name, strlen(name));

    if (ops == NULL)
        err_set(e, 0, "there is no engine '%s': it has to be kvm, bt or interp", name);
    return ops;
}

static bool engines_are_named(const struct vm *vm, const struct engine_ops *ops)
{
    for (unsigned i = 0; i < vm->engine_count; i++)
        if (vm->engines[i] == ops)
            return true;
    return false;
}

/* vm->engines from a list as in "bt,interp". */
static int engines_parse(struct vm *vm, const char *list, struct err *e)
{
    for (const char *name = list; name != NULL;) {
        size_t len = strcspn(name, ",");
        const struct engine_ops *ops = engines_look_up(name, len);

        if (ops == NULL)
            return err_set(e, 0, "--engines %s: '%.*s' has to be kvm, bt or interp", list, (int)len,
                           name);
        if (engines_are_named(vm, ops))
            return err_set(e, 0, "--engines %s: %s is there twice", list, ops->name);
        vm->engines[vm->engine_count++] = ops;
        name = name[len] == ',' ? name + len + 1 : NULL;
    }
    return 0;
}

/* The first of vm->engines in the order of all_engines that is there and fast, or the last. */
static void engines_choose_best(struct vm *vm)
{
    for (unsigned i = 0; i < ARRAY_SIZE(all_engines); i++) {
        const struct engine_ops *ops = all_engines[i];
        struct err why;

        if (vm->engine_count != 0 && !engines_are_named(vm, ops))
            continue;
        vm->ops = ops;
        if (ops->probe == NULL) {
            log_info("engine: %s", ops->name);
            return;
        }
        if (ops->probe(&why) == 0) {
            log_info("engine: %s, which runs kernel-mode code at hardware speed here", ops->name);
            return;
        }
        log_info("engine: not %s: %s", ops->name, why.msg);
    }
}

static enum engine_irqchip engines_irqchip(const struct vm *vm)
{
    static const enum engine_irqchip irqchips[] = {
        [VM_IRQCHIP_AUTO] = ENGINE_IRQCHIP_AUTO,
        [VM_IRQCHIP_ON] = ENGINE_IRQCHIP_ON,
        [VM_IRQCHIP_OFF] = ENGINE_IRQCHIP_OFF,
    };

    return apics_can_be_lent(vm) ? irqchips[vm->config.kvm_irqchip] : ENGINE_IRQCHIP_OFF;
}

int engines_limit_model(const struct vm *vm, const struct engine_ops *ops,
                        struct cpu_model_limit *limit, struct err *e)
{
    return ops->limit_model != NULL ? ops->limit_model(engines_irqchip(vm), limit, e) : 0;
}

int engines_choose(struct vm *vm, struct cpu_model_limit *limit, struct err *e)
{
    const char *name = vm->config.engine, *list = vm->config.engines;
    int ret = list != NULL ? engines_parse(vm, list, e) : 0;

    if (ret != 0)
        return ret;
    if (name == NULL || strcmp(name, "auto") == 0) {
        engines_choose_best(vm);
    } else {
        vm->ops = engines_look_up(name, strlen(name));
        if (vm->ops == NULL)
            return err_set(e, 0, "engine '%s': it has to be auto, kvm, bt or interp", name);
        if (list != NULL && !engines_are_named(vm, vm->ops))
            return err_set(e, 0, "--engine %s is not among --engines %s", name, list);
    }
    if (vm->engine_count == 0)
        vm->engines[vm->engine_count++] = vm->ops;

    cpu_model_limit_init(limit);
    limit->who = "this host";
    if (!run_delay_is_known())
        cpu_model_limit_remove(limit, CPU_FEATURE_KVM_STEAL_TIME);
    for (unsigned i = 0; i < vm->engine_count; i++) {
        ret = engines_limit_model(vm, vm->engines[i], limit, e);
        if (ret != 0)
            return list != NULL ? err_prefix(e, "--engines %s", list) : ret;
    }
    return 0;
}

/* ---- opening ---- */

static int engines_add_ram(void *ctx, uint64_t addr, void *host, uint64_t size, bool is_rom,
                           struct err *e)
{
    struct vm_engine *to = ctx;

    return to->ops->add_ram(to->engine, addr, host, size, is_rom, e);
}

int engines_open(struct vm *vm, const struct engine_ops *ops, struct vm_engine *out, struct err *e)
{
    const struct vm_config *config = &vm->config;
    struct engine_config engine_config = {
        .model = &vm->model,
        .host = &vm_engine_host,
        .cpu_count = config->cpu_count,
        .irqchip = engines_irqchip(vm),
        .slice = config->switch_storm,
        .code_cache_size = config->code_cache_size,
        .counts_hits = config->counts_hits,
        .perf_map_path = config->perf_map_path,
        .dump_blocks_path = config->dump_blocks_path,
    };
    int ret;

    *out = (struct vm_engine){.ops = ops};
    ret = ops->open(&engine_config, &out->engine, e);
    if (ret == 0)
        ret = space_for_each_ram(vm->board.memory, engines_add_ram, out, e);
    for (unsigned i = 0; ret == 0 && i < config->cpu_count; i++) {
        struct vcpu *vcpu = &vm->vcpus[i];
        ret = ops->attach(out->engine, i, vcpu, &vcpu->pins, &out->vcpus[i], e);
    }
    if (ret != 0)
        engines_close(vm, out);
    return ret;
}

void engines_close(struct vm *vm, struct vm_engine *engine)
{
    if (engine->engine == NULL)
        return;
    for (unsigned i = 0; i < vm->config.cpu_count; i++)
        if (engine->vcpus[i] != NULL)
            engine->ops->detach(engine->vcpus[i]);
    engine->ops->close(engine->engine);
    engine->engine = NULL;
}

void engines_exchange(struct vm *vm, struct vm_engine *engine)
{
    struct vm_engine old = {.ops = vm->ops, .engine = vm->engine};

    pthread_rwlock_wrlock(&vm->engine_lock);
    vm->ops = engine->ops;
    vm->engine = engine->engine;
    for (unsigned i = 0; i < vm->config.cpu_count; i++) {
        old.vcpus[i] = vm->vcpus[i].engine;
        vm->vcpus[i].engine = engine->vcpus[i];
    }
    pthread_rwlock_unlock(&vm->engine_lock);
    *engine = old;
}
