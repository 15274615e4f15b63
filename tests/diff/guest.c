/*
 * guest.c - a test case on an engine: long mode, paging, CPL 3, every vector to a HLT at CPL 0
 *
 * Vector n's handler is a HLT at HANDLERS + n, on a stack of its own (IST 1), so where the CPU
 * halts tells the vector and the frame tells the rest.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/stats.h"
#include "diff.h"
#include "engine/engine.h"

#define RAM_SIZE UINT64_C(0x400000)
#define PAGE 4096
#define PHYS_PML4 UINT64_C(0x1000)
#define PHYS_TABLES UINT64_C(0x2000)  /* page-table pages, handed out in order */
#define PHYS_SYSTEM UINT64_C(0x20000) /* GDT, IDT, TSS, handlers: mapped to itself, supervisor */
#define PHYS_IST_TOP UINT64_C(0x30000)
#define PHYS_DATA UINT64_C(0x40000)
#define PHYS_STACK UINT64_C(0x50000)
#define PHYS_CODE UINT64_C(0x100000)
#define GDT PHYS_SYSTEM
#define IDT (PHYS_SYSTEM + 0x1000)
#define TSS (PHYS_SYSTEM + 0x2000)
#define HANDLERS (PHYS_SYSTEM + 0x3000)

struct diff_guest {
    const struct engine_ops *ops;
    struct engine *engine;
    struct engine_vcpu *vcpu;
    struct engine_pins pins;
    uint8_t *ram;
    uint64_t next_table;
    struct cpu_state st;
    bool is_astray; /* something was called that user code cannot reach */
};

static uint64_t host_io_read(void *cpu, uint16_t port, unsigned size)
{
    ((struct diff_guest *)cpu)->is_astray = true;
    return mask_bytes(size);
}

static void host_io_write(void *cpu, uint16_t port, uint64_t value, unsigned size)
{
    ((struct diff_guest *)cpu)->is_astray = true;
}

static uint64_t host_mmio_read(void *cpu, gpa_t addr, unsigned size)
{
    ((struct diff_guest *)cpu)->is_astray = true;
    return mask_bytes(size);
}

static void host_mmio_write(void *cpu, gpa_t addr, uint64_t value, unsigned size)
{
    ((struct diff_guest *)cpu)->is_astray = true;
}

static int host_acknowledge(void *cpu)
{
    return -1;
}

static uint64_t host_cr8_read(void *cpu)
{
    return 0;
}

static void host_cr8_write(void *cpu, uint64_t value)
{
}

static bool host_msr_read(void *cpu, uint32_t index, uint64_t *value)
{
    return false;
}

static bool host_msr_write(void *cpu, uint32_t index, uint64_t value)
{
    return false;
}

static bool host_set_ferr(void *cpu, bool is_asserted)
{
    return false;
}

static const struct engine_host guest_host = {
    .io_read = host_io_read,
    .io_write = host_io_write,
    .mmio_read = host_mmio_read,
    .mmio_write = host_mmio_write,
    .interrupt_acknowledge = host_acknowledge,
    .cr8_read = host_cr8_read,
    .cr8_write = host_cr8_write,
    .msr_read = host_msr_read,
    .msr_write = host_msr_write,
    .set_ferr = host_set_ferr,
};

static void map_page(struct diff_guest *g, uint64_t linear, uint64_t physical, bool is_user,
                     bool is_code)
{
    uint64_t table = PHYS_PML4;
    for (unsigned shift = 39; shift > 12; shift -= 9) {
        uint8_t *entry = g->ram + table + 8 * bits(linear, shift + 8, shift);
        if (!(load_le64(entry) & 1)) {
            store_le64(entry, g->next_table | 7);
            g->next_table += 0x1000;
        }
        table = load_le64(entry) & ~UINT64_C(0xfff);
    }
    uint64_t entry = physical | 0x63 | (is_user ? 4 : 0) | (is_code ? 0 : BIT(63));
    store_le64(g->ram + table + 8 * bits(linear, 20, 12), entry);
}

static void make_tables(struct diff_guest *g)
{
    for (uint64_t page = 0; page < DIFF_CODE_SIZE; page += 0x1000)
        map_page(g, DIFF_CODE + page, PHYS_CODE + page, true, true);
    for (uint64_t page = 0; page < DIFF_WINDOW; page += 0x1000) {
        map_page(g, DIFF_DATA + page, PHYS_DATA + page, true, false);
        map_page(g, DIFF_STACK + page, PHYS_STACK + page, true, false);
    }
    for (uint64_t page = PHYS_SYSTEM; page < PHYS_IST_TOP; page += 0x1000)
        map_page(g, page, page, false, true);

    /* null, kernel code 08, kernel data 10, user code 32 18|3, user data 20|3, user code 64 28|3 */
    static const uint64_t descriptors[] = {0,
                                           UINT64_C(0x00af9b000000ffff),
                                           UINT64_C(0x00cf93000000ffff),
                                           UINT64_C(0x00cffb000000ffff),
                                           UINT64_C(0x00cff3000000ffff),
                                           UINT64_C(0x00affb000000ffff)};
    for (unsigned i = 0; i < ARRAY_SIZE(descriptors); i++)
        store_le64(g->ram + GDT + 8 * i, descriptors[i]);
    for (unsigned i = 0; i < 32; i++) {
        uint64_t handler = HANDLERS + i;
        uint8_t *gate = g->ram + IDT + 16 * i;
        store_le64(gate, (handler & 0xffff) | UINT64_C(0x08) << 16 | UINT64_C(1) << 32 |
                             UINT64_C(0xee00) << 32 | (handler >> 16 & 0xffff) << 48);
        store_le64(gate + 8, 0);
        g->ram[handler] = 0xf4;
    }
    store_le64(g->ram + TSS + 4, PHYS_IST_TOP);  /* RSP0 */
    store_le64(g->ram + TSS + 36, PHYS_IST_TOP); /* IST1 */
    store_le16(g->ram + TSS + 102, 0xffff);      /* no port is allowed */
}

static void set_segment(struct cpu_seg *seg, uint16_t selector, uint32_t attr)
{
    *seg = (struct cpu_seg){.selector = selector, .attr = attr, .limit = UINT32_MAX};
}

static void make_state(struct diff_guest *g, const struct cpu_model *model)
{
    struct cpu_state *st = &g->st;
    cpu_state_reset(st, 0);
    st->cr0 = CR0_PE | CR0_PG | CR0_NE | CR0_MP | CR0_ET | CR0_WP | CR0_AM;
    st->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
    if (cpu_model_has(model, CPU_FEATURE_XSAVE))
        st->cr4 |= CR4_OSXSAVE;
    st->xcr0 = model->xcr0_valid;
    st->efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
    st->cr3 = PHYS_PML4;
    st->gdtr = (struct cpu_table){.base = GDT, .limit = 0x7f};
    st->idtr = (struct cpu_table){.base = IDT, .limit = 0xfff};
    for (unsigned i = 0; i < 6; i++)
        set_segment(&st->seg[i], 0x23, SEG_P | SEG_DPL | SEG_S | 3 | SEG_DB | SEG_G);
    st->seg[CPU_TR] =
        (struct cpu_seg){.selector = 0x40, .attr = SEG_P | 0xb, .limit = 0x67, .base = TSS};
    st->seg[CPU_LDTR] = (struct cpu_seg){.attr = SEG_UNUSABLE};
}

int diff_guest_open(const struct engine_ops *ops, const struct cpu_model *model,
                    struct diff_guest **out, struct err *e)
{
    struct diff_guest *g = aligned_alloc(64, align_up(sizeof(*g), 64));
    struct engine_config config = {
        .model = model, .host = &guest_host, .cpu_count = 1, .code_cache_size = UINT64_C(32) << 20};
    if (g == NULL)
        return err_set(e, ENOMEM, "allocate a test guest");
    memset(g, 0, sizeof(*g));
    g->ops = ops;
    g->next_table = PHYS_TABLES;
    uint8_t *p = mmap(NULL, RAM_SIZE + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    g->ram = p + PAGE;
    if (p == MAP_FAILED || mprotect(g->ram, RAM_SIZE, PROT_READ | PROT_WRITE) != 0) {
        free(g);
        return err_set(e, errno, "allocate guest RAM");
    }
    make_tables(g);
    make_state(g, model);
    int r = ops->open(&config, &g->engine, e);
    if (r == 0)
        r = ops->add_ram(g->engine, 0, g->ram, RAM_SIZE, false, e);
    if (r == 0)
        r = ops->attach(g->engine, 0, g, &g->pins, &g->vcpu, e);
    if (r == 0)
        ops->push(g->vcpu, &g->st, CPU_GROUP_ALL);
    if (r != 0) {
        diff_guest_close(g);
        return r;
    }
    *out = g;
    return 0;
}

void diff_guest_close(struct diff_guest *g)
{
    if (g == NULL)
        return;
    if (g->vcpu != NULL)
        g->ops->detach(g->vcpu);
    if (g->engine != NULL)
        g->ops->close(g->engine);
    munmap(g->ram - PAGE, RAM_SIZE + 2 * PAGE);
    free(g);
}

void diff_guest_map_edges(struct diff_guest *g, const uint64_t *edges, unsigned edge_count)
{
    for (unsigned i = 0; i < edge_count; i++) {
        map_page(g, edges[i] - PAGE, RAM_SIZE - PAGE, true, false);
        map_page(g, edges[i], 0, true, false);
    }
}

struct find_count {
    struct stats_sink sink;
    const char *key;
    uint64_t count;
};

static void find_begin(struct stats_sink *sink, const char *group, int cpu)
{
}

static void find_put(struct stats_sink *sink, const struct stats_item *item)
{
    struct find_count *f = (struct find_count *)sink;
    if (strcmp(item->key, f->key) == 0)
        f->count = item->count;
}

uint64_t diff_guest_count(struct diff_guest *g, const char *key)
{
    struct find_count f = {.sink = {.begin = find_begin, .put = find_put}, .key = key};
    g->ops->report_stats(g->engine, &f.sink);
    return f.count;
}

static bool vector_has_error(unsigned vector)
{
    return vector == VEC_DF || (vector >= VEC_TS && vector <= VEC_PF) || vector == VEC_AC;
}

bool diff_guest_run(struct diff_guest *g, const struct diff_case *c, struct diff_state *after)
{
    struct cpu_state *st = &g->st;
    uint64_t code = PHYS_CODE + (c->before.rip - DIFF_CODE);
    enum engine_stop stop;

    g->is_astray = false;
    memcpy(g->ram + code, c->code, c->code_size);
    g->ops->code_changed(g->engine, code, c->code_size);
    memcpy(g->ram + PHYS_DATA, c->before.data, DIFF_WINDOW);
    memcpy(g->ram + PHYS_STACK, c->before.stack, DIFF_WINDOW);

    memcpy(st->gpr, c->before.gpr, sizeof(st->gpr));
    st->rip = c->before.rip;
    st->rflags = c->before.rflags | RFLAGS_IF;
    st->run_state = CPU_RUNNING;
    st->shadow = 0;
    memcpy(st->xsave, c->before.xsave, sizeof(st->xsave));
    if (c->mode == 8)
        set_segment(&st->seg[CPU_CS], 0x2b, SEG_P | SEG_DPL | SEG_S | 0xb | SEG_L | SEG_G);
    else
        set_segment(&st->seg[CPU_CS], 0x1b, SEG_P | SEG_DPL | SEG_S | 0xb | SEG_DB | SEG_G);
    set_segment(&st->seg[CPU_SS], 0x23, SEG_P | SEG_DPL | SEG_S | 3 | SEG_DB | SEG_G);
    g->ops->push(g->vcpu, st, CPU_GROUP_GPR | CPU_GROUP_SEG | CPU_GROUP_EVENT | CPU_GROUP_XSAVE);

    struct err e;
    if (g->ops->run(g->vcpu, &stop, &e) != 0 || stop != ENGINE_STOP_HALT || g->is_astray)
        return false;
    g->ops->pull(g->vcpu, st, CPU_GROUP_ALL);

    memcpy(after->gpr, st->gpr, sizeof(after->gpr));
    memcpy(after->xsave, st->xsave, sizeof(after->xsave));
    memcpy(after->data, g->ram + PHYS_DATA, DIFF_WINDOW);
    memcpy(after->stack, g->ram + PHYS_STACK, DIFF_WINDOW);
    after->vector = (uint32_t)(st->rip - 1 - HANDLERS);
    if (after->vector >= 32)
        return false;
    const uint8_t *frame = g->ram + st->gpr[CPU_RSP];
    after->error = 0;
    if (vector_has_error(after->vector)) {
        after->error = (uint32_t)load_le64(frame);
        frame += 8;
    }
    after->rip = load_le64(frame);
    after->rflags = load_le64(frame + 16);
    after->gpr[CPU_RSP] = load_le64(frame + 24);
    after->cr2 = after->vector == VEC_PF ? st->cr2 : 0;
    return true;
}
