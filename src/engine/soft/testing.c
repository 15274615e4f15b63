/*
 * testing.c - see testing.h
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "engine/soft/testing.h"
#include "os/fault.h"

#define FLAT 0xfffff

static uint64_t host_io_read(void *cpu, uint16_t port, unsigned size)
{
    struct soft_test *t = cpu;

    t->io_port = port;
    t->io_size = size;
    t->host_calls++;
    return t->io_value;
}

static void host_io_write(void *cpu, uint16_t port, uint64_t value, unsigned size)
{
    struct soft_test *t = cpu;

    t->io_port = port;
    t->io_size = size;
    t->io_value = value;
    t->host_calls++;
}

static uint64_t host_mmio_read(void *cpu, gpa_t addr, unsigned size)
{
    struct soft_test *t = cpu;

    t->host_calls++;
    return mask_bytes(size);
}

static void host_mmio_write(void *cpu, gpa_t addr, uint64_t value, unsigned size)
{
    struct soft_test *t = cpu;

    t->host_calls++;
}

static int host_interrupt_acknowledge(void *cpu)
{
    struct soft_test *t = cpu;

    atomic_fetch_and(&t->pins.bits, ~PIN_INTR);
    return t->interrupt_vector;
}

static uint64_t host_cr8_read(void *cpu)
{
    return ((struct soft_test *)cpu)->cr8;
}

static void host_cr8_write(void *cpu, uint64_t value)
{
    ((struct soft_test *)cpu)->cr8 = value;
}

static bool host_msr_read(void *cpu, uint32_t index, uint64_t *value)
{
    struct soft_test *t = cpu;

    t->msr_index = index;
    *value = t->msr_value;
    return true;
}

static bool host_msr_write(void *cpu, uint32_t index, uint64_t value)
{
    struct soft_test *t = cpu;

    t->msr_index = index;
    t->msr_value = value;
    return true;
}

static bool host_set_ferr(void *cpu, bool is_asserted)
{
    return false;
}

static int64_t host_hypercall(void *cpu, const struct cpu_hypercall *call)
{
    struct soft_test *t = cpu;

    t->hypercall = *call;
    return t->hypercall_result;
}

static const struct engine_host test_host = {
    .io_read = host_io_read,
    .io_write = host_io_write,
    .mmio_read = host_mmio_read,
    .mmio_write = host_mmio_write,
    .interrupt_acknowledge = host_interrupt_acknowledge,
    .cr8_read = host_cr8_read,
    .cr8_write = host_cr8_write,
    .msr_read = host_msr_read,
    .msr_write = host_msr_write,
    .hypercall = host_hypercall,
    .set_ferr = host_set_ferr,
};

uint64_t soft_test_get(const struct soft_test *t, uint64_t addr, unsigned size)
{
    uint64_t value = 0;

    assert_true(range_fits(addr, size, SOFT_TEST_RAM));
    memcpy(&value, t->ram + addr, size);
    return value;
}

void soft_test_put(struct soft_test *t, uint64_t addr, unsigned size, uint64_t value)
{
    assert_true(range_fits(addr, size, SOFT_TEST_RAM));
    memcpy(t->ram + addr, &value, size);
}

void soft_test_descriptor(struct soft_test *t, unsigned selector, uint32_t base, uint32_t limit,
                          uint32_t attr)
{
    uint64_t raw = (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 |
                   (uint64_t)(attr & 0xf0ff) << 40 | (uint64_t)(limit >> 16 & 0xf) << 48 |
                   (uint64_t)(base >> 24) << 56;

    soft_test_put(t, SOFT_TEST_GDT + selector, 8, raw);
}

static uint64_t gate_low(unsigned type, unsigned dpl, uint16_t target, uint64_t offset,
                         unsigned parameters)
{
    return (offset & 0xffff) | (uint64_t)target << 16 | (uint64_t)parameters << 32 |
           (uint64_t)(type | dpl << 5 | 0x80) << 40 | (offset >> 16 & 0xffff) << 48;
}

void soft_test_gate(struct soft_test *t, unsigned selector, unsigned type, unsigned dpl,
                    uint16_t target, uint64_t offset, unsigned parameters)
{
    soft_test_put(t, SOFT_TEST_GDT + selector, 8, gate_low(type, dpl, target, offset, parameters));
    if (cpu_is_long(&t->v->st))
        soft_test_put(t, SOFT_TEST_GDT + selector + 8, 8, offset >> 32);
}

static void test_fill_gdt(struct soft_test *t, bool is_long)
{
    soft_test_descriptor(t, SEL_CODE32, 0, FLAT, 0xc09b);
    soft_test_descriptor(t, SEL_DATA, 0, FLAT, 0xc093);
    soft_test_descriptor(t, SEL_CODE64, 0, FLAT, is_long ? 0xa09b : 0xc09b);
    soft_test_descriptor(t, SEL_DATA2, 0, FLAT, 0xc093);
    soft_test_descriptor(t, SEL_USER_CODE32, 0, FLAT, 0xc0fb);
    soft_test_descriptor(t, SEL_USER_DATA, 0, FLAT, 0xc0f3);
    soft_test_descriptor(t, SEL_USER_CODE64, 0, FLAT, is_long ? 0xa0fb : 0xc0fb);
    soft_test_descriptor(t, SEL_TSS, SOFT_TEST_TSS, 0xfff, 0x8b);
    soft_test_descriptor(t, SEL_CODE16, 0, 0xffff, 0x9b);
    soft_test_descriptor(t, SEL_DATA16, 0, 0xffff, 0x93);
    soft_test_descriptor(t, SEL_ABSENT, 0, FLAT, 0xc01b);
    soft_test_descriptor(t, SEL_CONFORMING, 0, FLAT, 0xc09f);
    soft_test_descriptor(t, SEL_READ_ONLY, 0, FLAT, 0xc0f1);
    soft_test_descriptor(t, SEL_LIMIT, 0, 0xfff, 0x40f3);
}

static void test_fill_idt(struct soft_test *t, enum soft_test_mode mode)
{
    for (unsigned n = 0; n < 256; n++) {
        uint32_t handler = SOFT_TEST_HANDLERS + 16 * n;
        unsigned dpl = n == VEC_BP || n == VEC_OF || n == 0x80 ? 3 : 0;
        t->ram[handler] = 0xf4;
        if (mode == SOFT_TEST_REAL)
            soft_test_put(t, n * 4, 4, handler);
        else if (mode == SOFT_TEST_PROTECTED)
            soft_test_put(t, SOFT_TEST_IDT + n * 8, 8, gate_low(14, dpl, SEL_CODE32, handler, 0));
        else
            soft_test_put(t, SOFT_TEST_IDT + n * 16, 8, gate_low(14, dpl, SEL_CODE64, handler, 0));
    }
}

static struct cpu_seg test_segment(const struct soft_test *t, uint16_t selector)
{
    uint64_t raw = soft_test_get(t, SOFT_TEST_GDT + (selector & 0xfff8), 8);
    uint32_t limit = (uint32_t)((raw & 0xffff) | bits(raw, 51, 48) << 16);
    struct cpu_seg seg = {.selector = selector, .attr = (uint32_t)(raw >> 40) & 0xf0ff};

    seg.limit = seg.attr & SEG_G ? limit << 12 | 0xfff : limit;
    seg.base = bits(raw, 39, 16) | bits(raw, 63, 56) << 24;
    return seg;
}

static void test_set_segments(struct soft_test *t, struct cpu_state *st, uint16_t code,
                              uint16_t data)
{
    for (unsigned i = 0; i < CPU_LDTR; i++)
        st->seg[i] = test_segment(t, i == CPU_CS ? code : data);
}

static void test_set_tables(struct soft_test *t, struct cpu_state *st, enum soft_test_mode mode)
{
    st->gdtr.base = SOFT_TEST_GDT;
    st->gdtr.limit = 0xfff;
    st->idtr.base = SOFT_TEST_IDT;
    st->idtr.limit = 0xfff;
    st->seg[CPU_TR] = test_segment(t, SEL_TSS);
    st->seg[CPU_LDTR].attr = SEG_UNUSABLE;
    soft_test_put(t, SOFT_TEST_TSS + 102, 2, 0x200);
    memset(t->ram + SOFT_TEST_TSS + 0x200 - 32, 0xff, 0x1000 - 0x200 + 32);
    soft_test_put(t, SOFT_TEST_TSS + 4, mode == SOFT_TEST_LONG ? 8 : 4, SOFT_TEST_STACK0);
    if (mode == SOFT_TEST_PROTECTED)
        soft_test_put(t, SOFT_TEST_TSS + 8, 2, SEL_DATA);
}

/* One table of each level; the first 4 MiB by two large pages that users may access. */
static void test_set_paging(struct soft_test *t, struct cpu_state *st)
{
    uint64_t table = SOFT_TEST_TABLES;

    soft_test_put(t, table, 8, (table + 0x1000) | 7);
    soft_test_put(t, table + 0x1000, 8, (table + 0x2000) | 7);
    soft_test_put(t, table + 0x2000, 8, 0x87);
    soft_test_put(t, table + 0x2008, 8, 0x200087);
    st->cr3 = table;
    st->cr4 = CR4_PAE;
    st->efer = EFER_LME | EFER_LMA | EFER_SCE;
    st->cr0 |= CR0_PG;
}

static void test_set_state(struct soft_test *t, enum soft_test_mode mode)
{
    struct cpu_state *st = calloc(1, align_up(sizeof(*st), 64));

    assert_non_null(st);
    soft_vcpu_pull(t->v, st, CPU_GROUP_ALL);
    memset(st->gpr, 0, sizeof(st->gpr));
    st->rflags = RFLAGS_FIXED;
    if (mode == SOFT_TEST_REAL) {
        for (unsigned i = 0; i < CPU_LDTR; i++) {
            st->seg[i].selector = 0;
            st->seg[i].base = 0;
        }
        st->rip = SOFT_TEST_CODE_REAL;
        st->gpr[CPU_RSP] = SOFT_TEST_STACK_REAL;
        soft_vcpu_push(t->v, st, CPU_GROUP_ALL);
        free(st);
        return;
    }
    test_fill_gdt(t, mode == SOFT_TEST_LONG);
    test_set_tables(t, st, mode);
    st->cr0 = CR0_PE | CR0_ET | CR0_NE;
    if (mode == SOFT_TEST_LONG)
        test_set_paging(t, st);
    test_set_segments(t, st, mode == SOFT_TEST_LONG ? SEL_CODE64 : SEL_CODE32, SEL_DATA);
    st->rip = SOFT_TEST_CODE;
    st->gpr[CPU_RSP] = SOFT_TEST_STACK;
    soft_vcpu_push(t->v, st, CPU_GROUP_ALL);
    free(st);
}

static bool test_fault_hook(void *ctx, int sig, siginfo_t *info, ucontext_t *uc)
{
    return soft_thunk_fault(ctx, sig, info, uc);
}

struct soft_test *soft_test_create(enum soft_test_mode mode)
{
    struct soft_test *t = calloc(1, sizeof(*t));
    struct engine_config config = {.host = &test_host, .cpu_count = 1};
    struct err e = {0};

    assert_non_null(t);
    if (cpu_model_create("host", 1, 1000000000, &t->model, &e) != 0)
        fail_msg("%s", e.msg);
    config.model = &t->model;
    t->ram = aligned_alloc(4096, SOFT_TEST_RAM);
    t->v = aligned_alloc(64, align_up(sizeof(*t->v), 64));
    assert_true(t->ram != NULL && t->v != NULL);
    memset(t->ram, 0, SOFT_TEST_RAM);
    memset(t->v, 0, align_up(sizeof(*t->v), 64));
    if (soft_engine_init(&t->engine, &config, &e) != 0 ||
        soft_engine_add_ram(&t->engine, 0, t->ram, SOFT_TEST_RAM, false, &e) != 0 ||
        soft_vcpu_init(t->v, &t->engine, 0, t, &t->pins, &e) != 0 || fault_init(&e) != 0 ||
        fault_thread_enter(test_fault_hook, t->v, &e) != 0)
        fail_msg("%s", e.msg);
    test_fill_idt(t, mode);
    test_set_state(t, mode);
    return t;
}

void soft_test_destroy(struct soft_test *t)
{
    fault_thread_exit();
    soft_vcpu_fini(t->v);
    soft_engine_fini(&t->engine);
    free(t->v);
    free(t->ram);
    free(t);
}

void soft_test_set_vendor(struct soft_test *t, bool is_amd)
{
    t->model.is_amd = is_amd;
    for (unsigned i = 0; i < t->model.leaf_count; i++) {
        if (t->model.leaves[i].leaf != 0)
            continue;
        t->model.leaves[i].regs.ebx = is_amd ? 0x68747541 : 0x756e6547;
        t->model.leaves[i].regs.edx = is_amd ? 0x69746e65 : 0x49656e69;
        t->model.leaves[i].regs.ecx = is_amd ? 0x444d4163 : 0x6c65746e;
    }
}

void soft_test_user(struct soft_test *t, bool is_64bit)
{
    test_set_segments(t, &t->v->st, (is_64bit ? SEL_USER_CODE64 : SEL_USER_CODE32) | 3,
                      SEL_USER_DATA | 3);
    t->v->is_mode_stale = 1;
}

void soft_test_compat(struct soft_test *t)
{
    test_set_segments(t, &t->v->st, SEL_CODE32, SEL_DATA);
    t->v->is_mode_stale = 1;
}

void soft_test_v86(struct soft_test *t, unsigned iopl)
{
    struct cpu_state *st = &t->v->st;

    st->rflags |= RFLAGS_VM | (uint64_t)iopl << RFLAGS_IOPL_SHIFT;
    for (unsigned i = 0; i < CPU_LDTR; i++)
        st->seg[i] = (struct cpu_seg){.attr = 0xf3, .limit = 0xffff};
    st->rip = SOFT_TEST_CODE_REAL;
    st->gpr[CPU_RSP] = SOFT_TEST_STACK_REAL;
    t->v->is_mode_stale = 1;
}

void soft_test_run(struct soft_test *t, const void *code, size_t size, unsigned steps)
{
    struct soft_vcpu *v = t->v;
    uint64_t addr = v->st.rip + (cpu_is_64bit(&v->st) ? 0 : v->st.seg[CPU_CS].base);

    assert_true(range_fits(addr, size, SOFT_TEST_RAM));
    memcpy(t->ram + addr, code, size);
    soft_guest_enter(v);
    for (unsigned i = 0; i < steps && v->st.run_state == CPU_RUNNING; i++)
        soft_step(v);
    if (v->is_fpu_live)
        soft_fpu_save(v);
    soft_guest_leave(v);
}

int soft_test_vector(const struct soft_test *t)
{
    const struct cpu_state *st = &t->v->st;
    uint64_t offset = st->rip - 1 - SOFT_TEST_HANDLERS;

    if (st->run_state != CPU_HALTED || offset >= 256 * 16 || offset % 16 != 0)
        return -1;
    return (int)(offset / 16);
}

uint64_t soft_test_error(const struct soft_test *t)
{
    return soft_test_get(t, t->v->st.gpr[CPU_RSP], 4);
}
