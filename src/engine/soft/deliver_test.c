/*
 * deliver_test.c - frames of exceptions and interrupts in every mode, their checks, and what
 * exceptions during delivery turn into
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>

#include "engine/soft/exception.h"
#include "engine/soft/testing.h"

#define HANDLER(n) (SOFT_TEST_HANDLERS + 16u * (n))
#define RIP 0x1234u

static struct soft_test *test_of(void **state)
{
    return *state;
}

static void idt_gate(struct soft_test *t, unsigned vector, unsigned attr, uint16_t selector,
                     uint64_t offset)
{
    unsigned size = cpu_is_long(&t->v->st) ? 16 : 8;
    uint64_t at = SOFT_TEST_IDT + vector * size;

    soft_test_put(t, at, 8,
                  (offset & 0xffff) | (uint64_t)selector << 16 | (uint64_t)(attr & 0xff) << 40 |
                      (uint64_t)(attr >> 8) << 32 | (offset >> 16 & 0xffff) << 48);
    if (size == 16)
        soft_test_put(t, at + 8, 8, offset >> 32);
}

static void fault(struct soft_test *t, unsigned vector, bool has_error, uint32_t error)
{
    t->v->st.rip = RIP;
    t->v->next_rip = RIP + 2;
    if (has_error)
        soft_raise_error(t->v, vector, error);
    else
        soft_raise(t->v, vector);
    soft_deliver_fault(t->v);
}

static void software(struct soft_test *t, unsigned vector)
{
    t->v->st.rip = RIP;
    t->v->next_rip = RIP + 2;
    soft_raise(t->v, vector);
    t->v->fault.is_software = true;
    soft_deliver_fault(t->v);
}

/* Item n of the handler's frame. */
static uint64_t item(struct soft_test *t, unsigned size, unsigned n)
{
    const struct cpu_state *st = &t->v->st;
    uint64_t sp = st->gpr[CPU_RSP];

    if (!cpu_is_long(st) && !(st->seg[CPU_SS].attr & SEG_DB))
        sp &= 0xffff;
    return soft_test_get(t, st->seg[CPU_SS].base + sp + size * n, size);
}

static void assert_frame(struct soft_test *t, unsigned size, const uint64_t *want, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        assert_int_equal(item(t, size, i), want[i] & mask_bytes(size));
}

#define ASSERT_FRAME(t, size, ...)                                                                 \
    assert_frame(t, size, (const uint64_t[]){__VA_ARGS__},                                         \
                 sizeof((const uint64_t[]){__VA_ARGS__}) / sizeof(uint64_t))

static void test_real(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    st->rflags |= RFLAGS_IF | RFLAGS_TF | RFLAGS_AC | RFLAGS_CF;
    st->seg[CPU_CS].selector = 0x10;
    st->gpr[CPU_RSP] = 0xabcd6000;
    fault(t, VEC_GP, true, 0x50);
    assert_int_equal(st->rip, HANDLER(VEC_GP));
    assert_int_equal(st->gpr[CPU_RSP], 0xabcd5ffa);
    ASSERT_FRAME(t, 2, RIP, 0x10, RFLAGS_IF | RFLAGS_TF | RFLAGS_CF | RFLAGS_FIXED);
    assert_int_equal(st->rflags, RFLAGS_CF | RFLAGS_FIXED);
    assert_int_equal(st->seg[CPU_CS].selector, 0);
}

static void test_real_stack_wraps(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    st->gpr[CPU_RSP] = 2;
    fault(t, VEC_UD, false, 0);
    assert_int_equal(st->gpr[CPU_RSP], 0xfffc);
    assert_int_equal(soft_test_get(t, 0, 2), RFLAGS_FIXED);
    assert_int_equal(soft_test_get(t, 0xfffc, 2), RIP);
}

/* An odd SP cannot push at 0xffff: #SS, which cannot push either: shutdown. */
static void test_real_shutdown(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    st->gpr[CPU_RSP] = 1;
    fault(t, VEC_UD, false, 0);
    assert_int_equal(st->run_state, CPU_SHUTDOWN);
    assert_int_equal(st->rip, RIP);
    assert_int_equal(st->gpr[CPU_RSP], 1);
}

static void test_real_idt_limit(void **state)
{
    struct soft_test *t = test_of(state);

    t->v->st.idtr.limit = VEC_GP * 4 + 3;
    soft_deliver_interrupt(t->v, VEC_PF);
    assert_int_equal(t->v->st.rip, HANDLER(VEC_GP));
    t->v->st.idtr.limit = 0;
    fault(t, VEC_PF, true, 0);
    assert_int_equal(t->v->st.run_state, CPU_SHUTDOWN);
}

static void test_protected_same_level(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    st->rflags |= RFLAGS_IF | RFLAGS_NT | RFLAGS_TF;
    fault(t, VEC_NP, true, 0x123c);
    assert_int_equal(st->rip, HANDLER(VEC_NP));
    ASSERT_FRAME(t, 4, 0x123c, RIP, SEL_CODE32,
                 RFLAGS_IF | RFLAGS_NT | RFLAGS_TF | RFLAGS_RF | RFLAGS_FIXED);
    assert_int_equal(st->gpr[CPU_RSP], SOFT_TEST_STACK - 16);
    assert_int_equal(st->rflags, RFLAGS_FIXED);
}

static void test_protected_trap_gate(void **state)
{
    struct soft_test *t = test_of(state);

    idt_gate(t, VEC_UD, 0x8f, SEL_CODE32, HANDLER(VEC_UD));
    t->v->st.rflags |= RFLAGS_IF;
    fault(t, VEC_UD, false, 0);
    assert_true(t->v->st.rflags & RFLAGS_IF);
}

static void test_protected_inner(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    soft_test_user(t, false);
    fault(t, VEC_GP, true, 0);
    assert_int_equal(st->rip, HANDLER(VEC_GP));
    ASSERT_FRAME(t, 4, 0, RIP, SEL_USER_CODE32 | 3, RFLAGS_RF | RFLAGS_FIXED, SOFT_TEST_STACK,
                 SEL_USER_DATA | 3);
    assert_int_equal(st->gpr[CPU_RSP], SOFT_TEST_STACK0 - 24);
    assert_int_equal(cpu_cpl(st), 0);
    assert_int_equal(st->seg[CPU_SS].selector, SEL_DATA);
    assert_int_equal(st->seg[CPU_CS].selector, SEL_CODE32);
}

static void test_protected_conforming(void **state)
{
    struct soft_test *t = test_of(state);

    idt_gate(t, VEC_UD, 0x8e, SEL_CONFORMING, HANDLER(VEC_UD));
    soft_test_user(t, false);
    fault(t, VEC_UD, false, 0);
    assert_int_equal(t->v->st.seg[CPU_CS].selector, SEL_CONFORMING | 3);
    assert_int_equal(cpu_cpl(&t->v->st), 3);
    ASSERT_FRAME(t, 4, RIP, SEL_USER_CODE32 | 3);
    assert_int_equal(t->v->st.gpr[CPU_RSP], SOFT_TEST_STACK - 12);
}

static void test_protected_16bit_gate(void **state)
{
    struct soft_test *t = test_of(state);

    idt_gate(t, VEC_GP, 0x86, SEL_CODE32, 0x12340000 | HANDLER(VEC_GP));
    soft_test_user(t, false);
    fault(t, VEC_GP, true, 0x1238);
    assert_int_equal(t->v->st.rip, HANDLER(VEC_GP) & 0xffff);
    ASSERT_FRAME(t, 2, 0x1238, RIP, SEL_USER_CODE32 | 3, RFLAGS_FIXED, SOFT_TEST_STACK & 0xffff,
                 SEL_USER_DATA | 3);
    assert_int_equal(t->v->st.gpr[CPU_RSP], SOFT_TEST_STACK0 - 12);
}

static void test_v86(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    soft_test_v86(t, 0);
    st->seg[CPU_GS].selector = 1;
    st->seg[CPU_FS].selector = 2;
    st->seg[CPU_DS].selector = 3;
    st->seg[CPU_ES].selector = 4;
    st->seg[CPU_SS].selector = 5;
    st->seg[CPU_CS].selector = 6;
    fault(t, VEC_GP, true, 0);
    ASSERT_FRAME(t, 4, 0, RIP, 6, RFLAGS_VM | RFLAGS_RF | RFLAGS_FIXED, SOFT_TEST_STACK_REAL, 5, 4,
                 3, 2, 1);
    assert_int_equal(st->gpr[CPU_RSP], SOFT_TEST_STACK0 - 40);
    assert_false(cpu_is_v86(st));
    assert_int_equal(cpu_cpl(st), 0);
    assert_true(st->seg[CPU_DS].attr & SEG_UNUSABLE);
    assert_true(st->seg[CPU_GS].attr & SEG_UNUSABLE);
    assert_int_equal(st->seg[CPU_ES].selector, 0);
}

/* A handler that is not for CPL 0 cannot serve virtual-8086 mode: #GP(selector). */
static void test_v86_conforming(void **state)
{
    struct soft_test *t = test_of(state);

    idt_gate(t, VEC_UD, 0x8e, SEL_CONFORMING, HANDLER(VEC_UD));
    soft_test_v86(t, 0);
    fault(t, VEC_UD, false, 0);
    assert_int_equal(t->v->st.rip, HANDLER(VEC_GP));
    ASSERT_FRAME(t, 4, SEL_CONFORMING | 1);
}

static void test_long_same_level(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    st->gpr[CPU_RSP] = SOFT_TEST_STACK - 5;
    fault(t, VEC_GP, true, 0x18);
    assert_int_equal(st->rip, HANDLER(VEC_GP));
    assert_int_equal(st->gpr[CPU_RSP], SOFT_TEST_STACK - 16 - 48);
    ASSERT_FRAME(t, 8, 0x18, RIP, SEL_CODE64, RFLAGS_RF | RFLAGS_FIXED, SOFT_TEST_STACK - 5,
                 SEL_DATA);
    assert_int_equal(st->seg[CPU_SS].selector, SEL_DATA);
}

static void test_long_inner(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    soft_test_user(t, true);
    soft_deliver_interrupt(t->v, 0x55);
    assert_int_equal(st->rip, HANDLER(0x55));
    assert_int_equal(st->gpr[CPU_RSP], SOFT_TEST_STACK0 - 40);
    ASSERT_FRAME(t, 8, SOFT_TEST_CODE, SEL_USER_CODE64 | 3, RFLAGS_FIXED, SOFT_TEST_STACK,
                 SEL_USER_DATA | 3);
    assert_int_equal(st->seg[CPU_SS].selector, 0);
    assert_int_equal(cpu_cpl(st), 0);
    assert_int_equal(t->v->stats.interrupts, 1);
}

static void test_long_from_compat(void **state)
{
    struct soft_test *t = test_of(state);

    soft_test_user(t, false);
    software(t, 0x80);
    assert_int_equal(t->v->st.rip, HANDLER(0x80));
    assert_true(cpu_is_64bit(&t->v->st));
    ASSERT_FRAME(t, 8, RIP + 2, SEL_USER_CODE32 | 3, RFLAGS_FIXED, SOFT_TEST_STACK,
                 SEL_USER_DATA | 3);
}

static void test_long_ist(void **state)
{
    struct soft_test *t = test_of(state);

    for (unsigned ist = 1; ist <= 7; ist++) {
        soft_test_put(t, SOFT_TEST_TSS + 36 + 8 * (ist - 1), 8, 0x70000 + 0x1000 * ist + 9);
        idt_gate(t, VEC_PF, 0x8e | ist << 8, SEL_CODE64, HANDLER(VEC_PF));
        fault(t, VEC_PF, true, 2);
        assert_int_equal(t->v->st.gpr[CPU_RSP], 0x70000 + 0x1000 * ist + 8 - 8 - 48);
        assert_int_equal(t->v->st.seg[CPU_SS].selector, SEL_DATA);
    }
}

static void test_long_needs_64bit_code(void **state)
{
    struct soft_test *t = test_of(state);

    idt_gate(t, VEC_UD, 0x8e, SEL_CODE32, HANDLER(VEC_UD));
    fault(t, VEC_UD, false, 0);
    assert_int_equal(t->v->st.rip, HANDLER(VEC_GP));
    ASSERT_FRAME(t, 8, SEL_CODE32 | 1, RIP);
    idt_gate(t, VEC_UD, 0x86, SEL_CODE64, HANDLER(VEC_UD)); /* 16-bit gate */
    fault(t, VEC_UD, false, 0);
    ASSERT_FRAME(t, 8, VEC_UD * 8 + 2 + 1, RIP);
    idt_gate(t, VEC_UD, 0x8e, SEL_CODE64, UINT64_C(0x800000000000));
    fault(t, VEC_UD, false, 0);
    ASSERT_FRAME(t, 8, 1, RIP);
    idt_gate(t, VEC_UD, 0x8e, SEL_ABSENT, 0);
    soft_test_descriptor(t, SEL_ABSENT, 0, 0xfffff, 0xa01b);
    fault(t, VEC_UD, false, 0);
    assert_int_equal(t->v->st.rip, HANDLER(VEC_NP));
    ASSERT_FRAME(t, 8, SEL_ABSENT | 1, RIP);
}

static void test_gate_privilege(void **state)
{
    struct soft_test *t = test_of(state);

    soft_test_user(t, false);
    software(t, 0x80);
    assert_int_equal(t->v->st.rip, HANDLER(0x80));
    ASSERT_FRAME(t, 4, RIP + 2);
    soft_test_user(t, false);
    software(t, VEC_GP); /* DPL 0: not for INT n; rip is that of the INT */
    assert_int_equal(t->v->st.rip, HANDLER(VEC_GP));
    ASSERT_FRAME(t, 4, VEC_GP * 8 + 2, RIP);
    soft_test_user(t, false);
    idt_gate(t, 0x80, 0x6e, SEL_CODE32, 0); /* not present */
    software(t, 0x80);
    assert_int_equal(t->v->st.rip, HANDLER(VEC_NP));
    ASSERT_FRAME(t, 4, 0x80 * 8 + 2, RIP);
}

static void test_idt_limit(void **state)
{
    struct soft_test *t = test_of(state);

    t->v->st.idtr.limit = VEC_GP * 8 + 7;
    soft_deliver_interrupt(t->v, 0x20);
    assert_int_equal(t->v->st.rip, HANDLER(VEC_GP));
    ASSERT_FRAME(t, 4, 0x20 * 8 + 2 + 1);
}

/* Inner stacks that are not right: #TS or #SS with the selector. */
static void test_inner_stack_errors(void **state)
{
    static const struct {
        uint16_t ss;
        unsigned vector;
        uint32_t error;
    } cases[] = {
        {0, VEC_TS, 1},
        {SEL_DATA | 1, VEC_TS, SEL_DATA | 1},
        {SEL_USER_DATA, VEC_TS, SEL_USER_DATA | 1},
        {SEL_CODE32, VEC_TS, SEL_CODE32 | 1},
        {0xff0, VEC_TS, 0xff0 | 1},
        {SEL_LIMIT, VEC_SS, SEL_LIMIT | 1}, /* absent */
        {SEL_GATE, VEC_SS, SEL_GATE | 1},   /* no room */
    };
    struct soft_test *t = test_of(state);

    t->v->st.gdtr.limit = 0xfef;
    soft_test_descriptor(t, SEL_LIMIT, 0, 0xfffff, 0xc013);
    soft_test_descriptor(t, SEL_GATE, 0, 0xfff, 0x4093);
    /* these handlers run where they are, on the user's stack */
    idt_gate(t, VEC_TS, 0x8e, SEL_CONFORMING, HANDLER(VEC_TS));
    idt_gate(t, VEC_SS, 0x8e, SEL_CONFORMING, HANDLER(VEC_SS));
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        soft_test_user(t, false);
        t->v->st.gpr[CPU_RSP] = SOFT_TEST_STACK;
        soft_test_put(t, SOFT_TEST_TSS + 8, 2, cases[i].ss);
        soft_deliver_interrupt(t->v, 0x30);
        assert_int_equal(t->v->st.rip, HANDLER(cases[i].vector));
        assert_int_equal(item(t, 4, 0), cases[i].error);
    }
}

static void test_tss_limit(void **state)
{
    struct soft_test *t = test_of(state);

    soft_test_user(t, false);
    idt_gate(t, VEC_TS, 0x8e, SEL_CONFORMING, HANDLER(VEC_TS));
    t->v->st.seg[CPU_TR].limit = 8;
    soft_deliver_interrupt(t->v, 0x30);
    assert_int_equal(t->v->st.rip, HANDLER(VEC_TS));
    assert_int_equal(item(t, 4, 0), SEL_TSS | 1);
}

static void test_page_fault_cr2(void **state)
{
    struct soft_test *t = test_of(state);

    t->v->st.rip = RIP;
    soft_raise_page_fault(t->v, UINT64_C(0xffff800012345678), 6);
    soft_deliver_fault(t->v);
    assert_int_equal(t->v->st.cr2, UINT64_C(0xffff800012345678));
    ASSERT_FRAME(t, 8, 6, RIP);
}

static void test_debug_flags(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    /* an instruction breakpoint leaves RF to the debugger; DR6's low bits are replaced */
    st->dr6 = DR6_FIXED | 1;
    st->dr7 = DR7_FIXED | DR7_GD;
    st->rip = RIP;
    soft_raise_debug(t->v, 2, false);
    soft_deliver_fault(t->v);
    ASSERT_FRAME(t, 8, RIP, SEL_CODE64, RFLAGS_FIXED);
    assert_int_equal(st->dr6, DR6_FIXED | 2);
    assert_int_equal(st->dr7, DR7_FIXED);
    /* a trap: after the instruction */
    st->rip = RIP;
    t->v->next_rip = RIP + 3;
    soft_raise_debug(t->v, DR6_BS, true);
    soft_deliver_fault(t->v);
    ASSERT_FRAME(t, 8, RIP + 3, SEL_CODE64, RFLAGS_FIXED);
    assert_int_equal(st->dr6, DR6_FIXED | DR6_BS);
    /* access to a debug register with GD: a fault */
    st->rip = RIP;
    soft_raise_debug(t->v, DR6_BD, false);
    soft_deliver_fault(t->v);
    ASSERT_FRAME(t, 8, RIP, SEL_CODE64, RFLAGS_FIXED | RFLAGS_RF);
}

/* SDM table 6-5, first by second: what the handler that runs in the end is. */
static void test_double_fault_table(void **state)
{
    static const struct {
        unsigned first;
        unsigned second; /* by way of the first one's gate */
        unsigned outcome;
    } cases[] = {
        {VEC_UD, VEC_GP, VEC_GP}, {VEC_UD, VEC_NP, VEC_NP}, {VEC_UD, VEC_PF, VEC_PF},
        {VEC_DE, VEC_GP, VEC_DF}, {VEC_DE, VEC_NP, VEC_DF}, {VEC_DE, VEC_PF, VEC_PF},
        {VEC_GP, VEC_NP, VEC_DF}, {VEC_TS, VEC_GP, VEC_DF}, {VEC_SS, VEC_NP, VEC_DF},
        {VEC_PF, VEC_GP, VEC_DF}, {VEC_PF, VEC_NP, VEC_DF}, {VEC_NP, VEC_PF, VEC_PF},
        {VEC_AC, VEC_GP, VEC_GP}, {VEC_BR, VEC_PF, VEC_PF},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct soft_test *t = soft_test_create(SOFT_TEST_LONG);
        unsigned first = cases[i].first;

        soft_guest_enter(t->v);
        /* an IST stack where nothing is mapped, a gate that is absent, or of no gate's type */
        soft_test_put(t, SOFT_TEST_TSS + 36, 8, UINT64_C(0x700000000000));
        if (cases[i].second == VEC_PF)
            idt_gate(t, first, 0x18e, SEL_CODE64, HANDLER(first));
        else if (cases[i].second == VEC_NP)
            idt_gate(t, first, 0x0e, SEL_CODE64, HANDLER(first));
        else
            idt_gate(t, first, 0x80, SEL_CODE64, HANDLER(first));
        fault(t, first, first != VEC_UD && first != VEC_DE && first != VEC_BR, 0);
        assert_int_equal(t->v->st.rip, HANDLER(cases[i].outcome));
        assert_int_equal(t->v->st.run_state, CPU_RUNNING);
        if (cases[i].outcome == VEC_DF)
            ASSERT_FRAME(t, 8, 0, RIP);
        if (cases[i].second == VEC_PF && cases[i].outcome == VEC_PF) {
            /* the first push */
            assert_int_equal(t->v->st.cr2, UINT64_C(0x6ffffffffff8));
            ASSERT_FRAME(t, 8, PF_ERR_W, RIP);
        }
        soft_guest_leave(t->v);
        soft_test_destroy(t);
    }
}

/* #PF whose delivery page-faults: #DF, and CR2 is that of the second. */
static void test_double_page_fault(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    soft_test_put(t, SOFT_TEST_TSS + 36, 8, SOFT_TEST_STACK0);
    idt_gate(t, VEC_DF, 0x18e, SEL_CODE64, HANDLER(VEC_DF));
    st->gpr[CPU_RSP] = UINT64_C(0x500000000000);
    st->rip = RIP;
    soft_raise_page_fault(t->v, 0x1000, 0);
    soft_deliver_fault(t->v);
    assert_int_equal(st->rip, HANDLER(VEC_DF));
    assert_int_equal(st->cr2, UINT64_C(0x500000000000) - 8);
    ASSERT_FRAME(t, 8, 0, RIP, SEL_CODE64, RFLAGS_FIXED, UINT64_C(0x500000000000));
}

static void test_triple_fault(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state before;

    t->v->st.idtr.limit = 0;
    t->v->st.gpr[CPU_RAX] = 0x1234;
    memcpy(&before, &t->v->st, sizeof(before));
    fault(t, VEC_UD, false, 0);
    assert_int_equal(t->v->st.run_state, CPU_SHUTDOWN);
    before.run_state = CPU_SHUTDOWN;
    before.exception_vector = VEC_UD;
    before.rip = RIP;
    assert_memory_equal(&before, &t->v->st, sizeof(before));
}

/* INT n, external interrupts and NMI are benign: what fails is delivered by itself. */
static void test_interrupts_are_benign(void **state)
{
    struct soft_test *t = test_of(state);

    idt_gate(t, VEC_GP, 0x0e, SEL_CODE64, 0);
    software(t, VEC_GP);
    assert_int_equal(t->v->st.rip, HANDLER(VEC_NP));
    ASSERT_FRAME(t, 8, VEC_GP * 8 + 2, RIP);
    soft_deliver_interrupt(t->v, VEC_GP);
    ASSERT_FRAME(t, 8, VEC_GP * 8 + 2 + 1);
    idt_gate(t, VEC_NMI, 0x0e, SEL_CODE64, 0);
    soft_deliver_nmi(t->v);
    ASSERT_FRAME(t, 8, VEC_NMI * 8 + 2 + 1);
    assert_int_equal(t->v->st.is_nmi_blocked, 1);
}

/* An alignment check whose frame is misaligned comes again for ever: delivery must not hang. */
static void test_endless_nesting(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    soft_test_user(t, false);
    soft_test_descriptor(t, SEL_CONFORMING, 0, 0xfffff, 0xc09f);
    idt_gate(t, VEC_AC, 0x8e, SEL_CONFORMING, HANDLER(VEC_AC));
    idt_gate(t, VEC_GP, 0x8e, SEL_CONFORMING, HANDLER(VEC_GP));
    st->cr0 |= CR0_AM;
    st->rflags |= RFLAGS_AC;
    st->gpr[CPU_RSP] = SOFT_TEST_STACK - 1;
    fault(t, VEC_AC, true, 0);
    assert_int_equal(st->is_exception_pending, 1);
    assert_int_equal(st->exception_vector, VEC_AC);
    assert_int_equal(st->rip, RIP);
    st->gpr[CPU_RSP] = SOFT_TEST_STACK;
    soft_step(t->v);
    assert_int_equal(st->is_exception_pending, 0);
    assert_int_equal(st->rip, HANDLER(VEC_AC));
}

static int set_up(void **state, enum soft_test_mode mode)
{
    struct soft_test *t = soft_test_create(mode);

    soft_guest_enter(t->v);
    *state = t;
    return 0;
}

static int set_up_real(void **state)
{
    return set_up(state, SOFT_TEST_REAL);
}

static int set_up_protected(void **state)
{
    return set_up(state, SOFT_TEST_PROTECTED);
}

static int set_up_long(void **state)
{
    return set_up(state, SOFT_TEST_LONG);
}

static int tear_down(void **state)
{
    struct soft_test *t = *state;

    soft_guest_leave(t->v);
    soft_test_destroy(t);
    return 0;
}

#define TEST(name, mode) cmocka_unit_test_setup_teardown(name, set_up_##mode, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_real, real),
        TEST(test_real_stack_wraps, real),
        TEST(test_real_shutdown, real),
        TEST(test_real_idt_limit, real),
        TEST(test_protected_same_level, protected),
        TEST(test_protected_trap_gate, protected),
        TEST(test_protected_inner, protected),
        TEST(test_protected_conforming, protected),
        TEST(test_protected_16bit_gate, protected),
        TEST(test_v86, protected),
        TEST(test_v86_conforming, protected),
        TEST(test_long_same_level, long),
        TEST(test_long_inner, long),
        TEST(test_long_from_compat, long),
        TEST(test_long_ist, long),
        TEST(test_long_needs_64bit_code, long),
        TEST(test_gate_privilege, protected),
        TEST(test_idt_limit, protected),
        TEST(test_inner_stack_errors, protected),
        TEST(test_tss_limit, protected),
        TEST(test_page_fault_cr2, long),
        TEST(test_debug_flags, long),
        cmocka_unit_test(test_double_fault_table),
        TEST(test_double_page_fault, long),
        TEST(test_triple_fault, long),
        TEST(test_interrupts_are_benign, long),
        TEST(test_endless_nesting, protected),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
