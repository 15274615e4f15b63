/*
 * engine.c - set-up common to both software engines; exchange of register groups
 *
 * Nothing here runs while guest state is live in host registers, so libc is allowed.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/stats.h"
#include "engine/soft/exclusive.h"
#include "engine/soft/mmu.h"
#include "engine/soft/ops.h"
#include "engine/soft/stats.h"
#include "engine/soft/exec.h"
#include "engine/soft/system.h"
#include "engine/soft/thunk.h"
#include "engine/soft/vcpu.h"

/* Every instruction that has a function. */
static const struct soft_op *const op_tables[] = {
    soft_ops_integer, soft_ops_bcd, soft_ops_vzero,   soft_ops_stack,   soft_ops_branch, soft_ops_string,
    soft_ops_fpu,     soft_ops_xsave,  soft_ops_gather, soft_ops_system,  soft_ops_sysreg, soft_ops_interrupt,
    soft_ops_msr,     soft_ops_syscall, soft_ops_io,     soft_ops_segcheck,
};

static int engine_add_ops(struct soft_engine *se, const struct soft_op *ops, struct err *e)
{
    for (const struct soft_op *op = ops; op->fn != NULL; op++) {
        if (op->op >= ARRAY_SIZE(se->dispatch))
            return err_set(e, 0, "dispatch table too small for instruction %u", op->op);
        if (se->dispatch[op->op] != NULL)
            return err_set(e, 0, "two functions for instruction %u", op->op);
        se->dispatch[op->op] = op->fn;
    }
    return 0;
}

int soft_engine_init(struct soft_engine *se, const struct engine_config *config, struct err *e)
{
    int ret;

    if (config->cpu_count == 0 || config->cpu_count > SOFT_VCPUS_MAX)
        return err_set(e, 0, "%u CPUs asked for; the engine takes 1 to %u", config->cpu_count,
                       SOFT_VCPUS_MAX);
    memset(se, 0, sizeof(*se));
    se->model = config->model;
    se->host = config->host;
    se->sizes = SOFT_SIZES_STEP;
    for (unsigned i = 0; i < ARRAY_SIZE(op_tables); i++) {
        ret = engine_add_ops(se, op_tables[i], e);
        if (ret != 0)
            return ret;
    }
    return soft_exclusive_create(&se->exclusive, e);
}

void soft_engine_fini(struct soft_engine *se)
{
    for (unsigned i = 0; i < se->ram_count; i++)
        free((void *)se->ram[i].page_flags);
    se->ram_count = 0;
    soft_exclusive_destroy(se->exclusive);
    se->exclusive = NULL;
}

int soft_engine_add_ram(struct soft_engine *se, gpa_t addr, void *host, uint64_t size, bool is_rom,
                        struct err *e)
{
    struct soft_ram *ram;
    uint32_t *flags;

    if (se->ram_count == SOFT_RAM_SLOTS_MAX)
        return err_set(e, ENOSPC, "add RAM at 0x%" PRIx64 ": all %u slots are in use", addr,
                       SOFT_RAM_SLOTS_MAX);
    if (size == 0 || ((addr | size | (uintptr_t)host) & (SOFT_PAGE_SIZE - 1)) != 0 ||
        !range_fits(addr, size, BIT(52)))
        return err_set(e, EINVAL, "add RAM at 0x%" PRIx64 " of 0x%" PRIx64 " bytes", addr, size);
    for (unsigned i = 0; i < se->ram_count; i++)
        if (ranges_overlap(addr, size, se->ram[i].addr, se->ram[i].size))
            return err_set(e, EEXIST, "add RAM at 0x%" PRIx64 ": it overlaps RAM at 0x%" PRIx64,
                           addr, se->ram[i].addr);

    /* zero pages until touched: calloc of this size is a private mapping */
    flags = calloc(size >> SOFT_PAGE_SHIFT, sizeof(*flags));
    if (flags == NULL)
        return err_set(e, ENOMEM, "allocate page flags for RAM of 0x%" PRIx64 " bytes", size);
    ram = &se->ram[se->ram_count++];
    ram->addr = addr;
    ram->size = size;
    ram->host = host;
    ram->is_rom = is_rom;
    ram->page_flags = (_Atomic uint32_t *)flags;
    return 0;
}

int soft_engine_remove_ram(struct soft_engine *se, gpa_t addr, struct err *e)
{
    for (unsigned i = 0; i < se->ram_count; i++) {
        if (se->ram[i].addr != addr)
            continue;
        free((void *)se->ram[i].page_flags);
        se->ram_count--;
        memmove(&se->ram[i], &se->ram[i + 1], (se->ram_count - i) * sizeof(se->ram[0]));
        for (unsigned j = 0; j < se->vcpu_count; j++)
            if (se->vcpus[j] != NULL)
                soft_tlb_flush_all(se->vcpus[j]);
        return 0;
    }
    return err_set(e, ENOENT, "remove RAM at 0x%" PRIx64, addr);
}

int soft_vcpu_init(struct soft_vcpu *v, struct soft_engine *se, unsigned index, void *cpu,
                   struct engine_pins *pins, struct err *e)
{
    if (index >= SOFT_VCPUS_MAX || se->vcpus[index] != NULL)
        return err_set(e, EINVAL, "attach CPU %u", index);
    v->engine = se;
    v->model = se->model;
    v->cpu = cpu;
    v->pins = pins;
    v->index = index;
    v->is_mode_stale = 1;
    v->insn_cache = malloc(sizeof(*v->insn_cache) +
                           se->sizes.insn_slots * sizeof(v->insn_cache->slots[0]));
    if (v->insn_cache == NULL)
        return err_set(e, ENOMEM, "allocate CPU %u's cache of decoded instructions", index);
    v->insn_cache->mask = se->sizes.insn_slots - 1;
    for (unsigned i = 0; i < se->sizes.insn_slots; i++)
        v->insn_cache->slots[i].addr = ~UINT64_C(0);
    struct soft_thunks *thunks = NULL;
    int r = soft_thunks_create(&se->sizes, &thunks, e);
    if (r != 0) {
        free(v->insn_cache);
        return r;
    }
    v->thunks = thunks;
    soft_tlb_init(v);
    cpu_state_reset(&v->st, cpu_model_cpuid(se->model, &v->st, index, 1, 0).eax);
    se->vcpus[index] = v;
    se->vcpu_count = MAX(se->vcpu_count, index + 1);
    return 0;
}

void soft_vcpu_fini(struct soft_vcpu *v)
{
    struct soft_engine *se = v->engine;

    if (se == NULL || se->vcpus[v->index] != v)
        return;
    se->vcpus[v->index] = NULL;
    free(v->insn_cache);
    soft_thunks_destroy(v->thunks);
    v->insn_cache = NULL;
    v->thunks = NULL;
    while (se->vcpu_count != 0 && se->vcpus[se->vcpu_count - 1] == NULL)
        se->vcpu_count--;
}

static void state_copy_gpr(struct cpu_state *to, const struct cpu_state *from)
{
    memcpy(to->gpr, from->gpr, sizeof(to->gpr));
    to->rip = from->rip;
    to->rflags = from->rflags;
}

static void state_copy_control(struct cpu_state *to, const struct cpu_state *from)
{
    to->gdtr = from->gdtr;
    to->idtr = from->idtr;
    to->cr0 = from->cr0;
    to->cr2 = from->cr2;
    to->cr3 = from->cr3;
    to->cr4 = from->cr4;
    memcpy(to->dr, from->dr, sizeof(to->dr));
    to->dr6 = from->dr6;
    to->dr7 = from->dr7;
    memcpy(to->pae_pdpte, from->pae_pdpte, sizeof(to->pae_pdpte));
}

static void state_copy_msr(struct cpu_state *to, const struct cpu_state *from)
{
    to->efer = from->efer;
    to->star = from->star;
    to->lstar = from->lstar;
    to->cstar = from->cstar;
    to->sfmask = from->sfmask;
    to->kernel_gs_base = from->kernel_gs_base;
    to->sysenter_cs = from->sysenter_cs;
    to->sysenter_esp = from->sysenter_esp;
    to->sysenter_eip = from->sysenter_eip;
    to->pat = from->pat;
    to->tsc_aux = from->tsc_aux;
    to->misc_enable = from->misc_enable;
    to->spec_ctrl = from->spec_ctrl;
    to->debugctl = from->debugctl;
    to->mtrr_def_type = from->mtrr_def_type;
    memcpy(to->mtrr_fixed, from->mtrr_fixed, sizeof(to->mtrr_fixed));
    memcpy(to->mtrr_base, from->mtrr_base, sizeof(to->mtrr_base));
    memcpy(to->mtrr_mask, from->mtrr_mask, sizeof(to->mtrr_mask));
}

static void state_copy_events(struct cpu_state *to, const struct cpu_state *from)
{
    to->run_state = from->run_state;
    to->shadow = from->shadow;
    to->is_nmi_blocked = from->is_nmi_blocked;
    to->is_exception_pending = from->is_exception_pending;
    to->exception_vector = from->exception_vector;
    to->exception_has_error = from->exception_has_error;
    to->exception_error = from->exception_error;
    to->is_ferr = from->is_ferr;
    to->pending_dbg = from->pending_dbg;
}

static void state_copy(struct cpu_state *to, const struct cpu_state *from, uint32_t groups)
{
    if (groups & CPU_GROUP_GPR)
        state_copy_gpr(to, from);
    if (groups & CPU_GROUP_SEG)
        memcpy(to->seg, from->seg, sizeof(to->seg));
    if (groups & CPU_GROUP_CONTROL)
        state_copy_control(to, from);
    if (groups & CPU_GROUP_MSR)
        state_copy_msr(to, from);
    if (groups & CPU_GROUP_TSC) {
        to->tsc_offset = from->tsc_offset;
        to->tsc_adjust = from->tsc_adjust;
    }
    if (groups & CPU_GROUP_XSAVE) {
        to->xcr0 = from->xcr0;
        memcpy(to->xsave, from->xsave, sizeof(to->xsave));
    }
    if (groups & CPU_GROUP_EVENT)
        state_copy_events(to, from);
}

void soft_vcpu_pull(struct soft_vcpu *v, struct cpu_state *out, uint32_t groups)
{
    if (v->is_fpu_live)
        soft_fpu_save(v);
    state_copy(out, &v->st, groups);
}

void soft_vcpu_push(struct soft_vcpu *v, const struct cpu_state *in, uint32_t groups)
{
    if (v->is_fpu_live)
        soft_fpu_save(v);
    state_copy(&v->st, in, groups);
    v->is_mode_stale = 1;
    if (groups & (CPU_GROUP_CONTROL | CPU_GROUP_MSR | CPU_GROUP_SEG))
        soft_tlb_flush_all(v);
}

static const char *const exception_names[32] = {
    "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", NULL,  "#TS",
    "#NP", "#SS", "#GP", "#PF", NULL,  "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
};

static void soft_report_exceptions(const struct soft_stats *s, struct stats_sink *sink)
{
    for (unsigned n = 0; n < ARRAY_SIZE(s->exceptions); n++) {
        char key[24], title[32];
        if (s->exceptions[n] == 0)
            continue;
        snprintf(key, sizeof(key), "exceptions.%u", n);
        snprintf(title, sizeof(title), "exceptions %u %s", n,
                 exception_names[n] != NULL ? exception_names[n] : "");
        stats_put_count(sink, key, title, s->exceptions[n]);
    }
}

static void soft_report_vcpu(const struct soft_stats *s, double tsc_per_ms, struct stats_sink *sink)
{
    const struct {
        const char *key, *title;
        uint64_t count;
    } rows[] = {
        {"tlb_fills", "TLB fills", s->tlb_fills},
        {"tlb_flushes", "TLB flushes", s->tlb_flushes},
        {"tlb_page_flushes", "TLB page flushes", s->tlb_page_flushes},
        {"page_walks", "page walks", s->walks},
        {"io_reads", "port reads", s->io_reads},
        {"io_writes", "port writes", s->io_writes},
        {"mmio_reads", "MMIO reads", s->mmio_reads},
        {"mmio_writes", "MMIO writes", s->mmio_writes},
        {"halts", "halts", s->halts},
        {"fpu_loads", "FPU state loads", s->fpu_loads},
        {"fpu_saves", "FPU state saves", s->fpu_saves},
        {"host_calls", "host calls", s->host_calls},
        {"exclusive_waits", "exclusive sections or waits", s->exclusive_waits},
    };

    stats_put_count(sink, "instructions_stepped", "instructions stepped", s->instructions);
    stats_put_count(sink, "interrupts", "interrupts", s->interrupts);
    soft_report_exceptions(s, sink);
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
        stats_put_count(sink, rows[i].key, rows[i].title, rows[i].count);
    stats_put_ms(sink, "page_walks_ms", "ms in page walks", (double)s->walk_tsc / tsc_per_ms);
    stats_put_ms(sink, "host_calls_ms", "ms in host calls", (double)s->host_tsc / tsc_per_ms);
    stats_put_ms(sink, "exclusive_ms", "ms in exclusive sections",
                 (double)s->exclusive_tsc / tsc_per_ms);
}

void soft_stats_report(const struct soft_engine *se, struct stats_sink *sink)
{
    double tsc_per_ms = se->model->tsc_hz != 0 ? (double)se->model->tsc_hz / 1000 : 1e6;

    for (unsigned i = 0; i < se->vcpu_count; i++) {
        if (se->vcpus[i] == NULL)
            continue;
        stats_begin(sink, "execution", (int)i);
        soft_report_vcpu(&se->vcpus[i]->stats, tsc_per_ms, sink);
    }
}
