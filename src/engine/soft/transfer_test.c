/*
 * transfer_test.c - far transfers, IRET and fast system calls, faults included
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include "engine/soft/system.h"
#include "engine/soft/testing.h"

#define NON_CANONICAL UINT64_C(0x0000900000000000)

static struct soft_test *start(enum soft_test_mode mode)
{
    return soft_test_create(mode);
}

/* Expect that `vector` halted with `error` on the stack, then end the test machine. */
static void expect_fault(struct soft_test *t, int vector, uint32_t error)
{
    assert_int_equal(soft_test_vector(t), vector);
    assert_int_equal(soft_test_error(t), error);
    soft_test_destroy(t);
}

static void far_jump_real(void **state)
{
    struct soft_test *t = start(SOFT_TEST_REAL);

    t->ram[0x9010] = 0xf4;
    SOFT_TEST_RUN(t, 2, 0xea, LE16(0x10), LE16(0x900));
    assert_int_equal(t->v->st.seg[CPU_CS].selector, 0x900);
    assert_int_equal(t->v->st.seg[CPU_CS].base, 0x9000);
    assert_int_equal(t->v->st.rip, 0x11);
    soft_test_destroy(t);
}

static void far_call_and_return_real(void **state)
{
    struct soft_test *t = start(SOFT_TEST_REAL);

    t->ram[0x9010] = 0xca; /* retf 4 */
    t->ram[0x9011] = 4;
    SOFT_TEST_RUN(t, 1, 0x9a, LE16(0x10), LE16(0x900), 0xf4);
    assert_int_equal(t->v->st.gpr[CPU_RSP], SOFT_TEST_STACK_REAL - 4);
    assert_int_equal(soft_test_get(t, SOFT_TEST_STACK_REAL - 4, 4), SOFT_TEST_CODE_REAL + 5);
    soft_step(t->v);
    assert_int_equal(t->v->st.rip, SOFT_TEST_CODE_REAL + 5);
    assert_int_equal(t->v->st.seg[CPU_CS].base, 0);
    assert_int_equal(t->v->st.gpr[CPU_RSP], SOFT_TEST_STACK_REAL + 4);
    soft_test_destroy(t);
}

static void far_jump_protected(void **state)
{
    struct soft_test *t = start(SOFT_TEST_PROTECTED);

    t->ram[0x9000] = 0xf4;
    SOFT_TEST_RUN(t, 2, 0xea, LE32(0x9000), LE16(SEL_CODE16));
    assert_int_equal(t->v->st.seg[CPU_CS].selector, SEL_CODE16);
    assert_int_equal(t->v->st.seg[CPU_CS].limit, 0xffff);
    assert_int_equal(cpu_code_size(&t->v->st), 2);
    assert_int_equal(t->v->st.run_state, CPU_HALTED);
    soft_test_destroy(t);
}

static void far_jump_faults(void **state)
{
    static const struct {
        uint16_t selector;
        uint32_t offset;
        int vector;
        uint32_t error;
    } cases[] = {
        {0, 0x9000, VEC_GP, 0},
        {3, 0x9000, VEC_GP, 0},
        {SEL_DATA, 0x9000, VEC_GP, SEL_DATA},
        {SEL_ABSENT, 0x9000, VEC_NP, SEL_ABSENT},
        {SEL_USER_CODE32 | 3, 0x9000, VEC_GP, SEL_USER_CODE32},
        {SEL_CODE32 | 1, 0x9000, VEC_GP, SEL_CODE32},
        {SEL_CODE16, 0x10000, VEC_GP, 0},
        {0x1000, 0x9000, VEC_GP, 0x1000},
        {SEL_CODE32 | 4, 0x9000, VEC_GP, SEL_CODE32 | 4},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct soft_test *t = start(SOFT_TEST_PROTECTED);
        SOFT_TEST_RUN(t, 2, 0xea, LE32(cases[i].offset), LE16(cases[i].selector));
        assert_int_equal(t->v->st.seg[CPU_CS].selector, SEL_CODE32);
        expect_fault(t, cases[i].vector, cases[i].error);
    }
}

static void far_jump_conforming_keeps_cpl(void **state)
{
    struct soft_test *t = start(SOFT_TEST_PROTECTED);

    soft_test_user(t, false);
    t->ram[0x9000] = 0x90;
    SOFT_TEST_RUN(t, 2, 0xea, LE32(0x9000), LE16(SEL_CONFORMING));
    assert_int_equal(t->v->st.seg[CPU_CS].selector, SEL_CONFORMING | 3);
    assert_int_equal(cpu_cpl(&t->v->st), 3);
    assert_int_equal(t->v->st.rip, 0x9001);
    soft_test_destroy(t);
}

static void accessed_bit_is_set(void **state)
{
    struct soft_test *t = start(SOFT_TEST_PROTECTED);

    soft_test_descriptor(t, SEL_CODE64, 0, 0xfffff, 0xc09a);
    SOFT_TEST_RUN(t, 1, 0xea, LE32(0x9000), LE16(SEL_CODE64));
    assert_int_equal(soft_test_get(t, SOFT_TEST_GDT + SEL_CODE64 + 5, 1), 0x9b);
    assert_int_equal(t->v->st.seg[CPU_CS].attr & SEG_TYPE_ACCESSED, 1);
    soft_test_destroy(t);
}

/* CALL through a 32-bit gate to CPL 0 with two parameters, and RETF 8 back. */
static void call_gate_inner(void **state)
{
    struct soft_test *t = start(SOFT_TEST_PROTECTED);
    struct cpu_state *st = &t->v->st;

    soft_test_user(t, false);
    soft_test_gate(t, SEL_GATE, SOFT_TYPE_CALL32, 3, SEL_CODE32, 0x9000, 2);
    soft_test_put(t, SOFT_TEST_STACK, 4, 0x11111111);
    soft_test_put(t, SOFT_TEST_STACK + 4, 4, 0x22222222);
    t->ram[0x9000] = 0xca;
    t->ram[0x9001] = 8;
    SOFT_TEST_RUN(t, 1, 0x9a, LE32(0x12345678), LE16(SEL_GATE | 3));
    assert_int_equal(cpu_cpl(st), 0);
    assert_int_equal(st->rip, 0x9000);
    assert_int_equal(st->seg[CPU_CS].selector, SEL_CODE32);
    assert_int_equal(st->seg[CPU_SS].selector, SEL_DATA);
    assert_int_equal(st->gpr[CPU_RSP], SOFT_TEST_STACK0 - 24);
    assert_int_equal(soft_test_get(t, SOFT_TEST_STACK0 - 4, 4), SEL_USER_DATA | 3);
    assert_int_equal(soft_test_get(t, SOFT_TEST_STACK0 - 8, 4), SOFT_TEST_STACK);
    assert_int_equal(soft_test_get(t, SOFT_TEST_STACK0 - 12, 4), 0x22222222);
    assert_int_equal(soft_test_get(t, SOFT_TEST_STACK0 - 16, 4), 0x11111111);
    assert_int_equal(soft_test_get(t, SOFT_TEST_STACK0 - 20, 4), SEL_USER_CODE32 | 3);
    assert_int_equal(soft_test_get(t, SOFT_TEST_STACK0 - 24, 4), SOFT_TEST_CODE + 7);

    st->seg[CPU_FS].attr = 0xc093; /* DPL 0: may not survive the return */
    soft_step(t->v);
    assert_int_equal(cpu_cpl(st), 3);
    assert_int_equal(st->rip, SOFT_TEST_CODE + 7);
    assert_int_equal(st->gpr[CPU_RSP], SOFT_TEST_STACK + 8);
    assert_int_equal(st->seg[CPU_SS].selector, SEL_USER_DATA | 3);
    assert_true(st->seg[CPU_FS].attr & SEG_UNUSABLE);
    assert_int_equal(st->seg[CPU_FS].selector, 0);
    assert_int_equal(st->seg[CPU_DS].selector, SEL_USER_DATA | 3);
    soft_test_destroy(t);
}

static void call_gate_faults(void **state)
{
    struct soft_test *t = start(SOFT_TEST_PROTECTED);

    /* the gate's DPL is below the caller's CPL */
    soft_test_user(t, false);
    soft_test_gate(t, SEL_GATE, SOFT_TYPE_CALL32, 0, SEL_CODE32, 0x9000, 0);
    SOFT_TEST_RUN(t, 2, 0x9a, LE32(0), LE16(SEL_GATE | 3));
    expect_fault(t, VEC_GP, SEL_GATE);

    /* the new stack's selector has the wrong RPL */
    t = start(SOFT_TEST_PROTECTED);
    soft_test_user(t, false);
    soft_test_gate(t, SEL_GATE, SOFT_TYPE_CALL32, 3, SEL_CODE32, 0x9000, 0);
    soft_test_put(t, SOFT_TEST_TSS + 8, 2, SEL_USER_DATA | 3);
    SOFT_TEST_RUN(t, 1, 0x9a, LE32(0), LE16(SEL_GATE | 3));
    assert_int_equal(t->v->fault.vector, VEC_TS);
    soft_test_destroy(t);

    /* JMP may not raise the privilege */
    t = start(SOFT_TEST_PROTECTED);
    soft_test_user(t, false);
    soft_test_gate(t, SEL_GATE, SOFT_TYPE_CALL32, 3, SEL_CODE32, 0x9000, 0);
    SOFT_TEST_RUN(t, 2, 0xea, LE32(0), LE16(SEL_GATE | 3));
    expect_fault(t, VEC_GP, SEL_CODE32);
}

static void call_gate_long(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);
    struct cpu_state *st = &t->v->st;

    soft_test_user(t, true);
    soft_test_gate(t, SEL_GATE, SOFT_TYPE_CALL32, 3, SEL_CODE64, 0x9000, 0);
    soft_test_put(t, SOFT_TEST_DATA, 8, (uint64_t)(SEL_GATE | 3) << 32);
    /* call far [0x200000] */
    SOFT_TEST_RUN(t, 1, 0xff, 0x1c, 0x25, LE32(SOFT_TEST_DATA));
    assert_int_equal(cpu_cpl(st), 0);
    assert_int_equal(st->rip, 0x9000);
    assert_int_equal(st->seg[CPU_SS].selector, 0);
    assert_int_equal(st->gpr[CPU_RSP], SOFT_TEST_STACK0 - 32);
    assert_int_equal(soft_test_get(t, SOFT_TEST_STACK0 - 8, 8), SEL_USER_DATA | 3);
    assert_int_equal(soft_test_get(t, SOFT_TEST_STACK0 - 16, 8), SOFT_TEST_STACK);
    assert_int_equal(soft_test_get(t, SOFT_TEST_STACK0 - 24, 8), SEL_USER_CODE64 | 3);
    assert_int_equal(soft_test_get(t, SOFT_TEST_STACK0 - 32, 8), SOFT_TEST_CODE + 7);
    soft_test_destroy(t);

    /* a 32-bit target is not for a 64-bit gate */
    t = start(SOFT_TEST_LONG);
    soft_test_gate(t, SEL_GATE, SOFT_TYPE_CALL32, 3, SEL_CODE32, 0x9000, 0);
    soft_test_put(t, SOFT_TEST_DATA, 8, (uint64_t)SEL_GATE << 32);
    SOFT_TEST_RUN(t, 2, 0xff, 0x1c, 0x25, LE32(SOFT_TEST_DATA));
    expect_fault(t, VEC_GP, SEL_CODE32);
}

static void far_jump_compat_to_long(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);

    soft_test_compat(t);
    t->ram[0x9000] = 0xf4;
    SOFT_TEST_RUN(t, 2, 0xea, LE32(0x9000), LE16(SEL_CODE64));
    assert_true(cpu_is_64bit(&t->v->st));
    assert_int_equal(t->v->st.run_state, CPU_HALTED);
    soft_test_destroy(t);

    /* L and D together */
    t = start(SOFT_TEST_LONG);
    soft_test_compat(t);
    soft_test_descriptor(t, SEL_CONFORMING, 0, 0xfffff, 0xe09b);
    SOFT_TEST_RUN(t, 2, 0xea, LE32(0x9000), LE16(SEL_CONFORMING));
    expect_fault(t, VEC_GP, SEL_CONFORMING);
}

static void put_iret_frame(struct soft_test *t, uint64_t rip, uint16_t cs, uint64_t flags,
                           uint64_t rsp, uint16_t ss)
{
    uint64_t at = t->v->st.gpr[CPU_RSP];

    soft_test_put(t, at, 8, rip);
    soft_test_put(t, at + 8, 8, cs);
    soft_test_put(t, at + 16, 8, flags);
    soft_test_put(t, at + 24, 8, rsp);
    soft_test_put(t, at + 32, 8, ss);
}

static void iret_long_to_user(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);
    struct cpu_state *st = &t->v->st;

    st->is_nmi_blocked = 1;
    put_iret_frame(t, 0x9000, SEL_USER_CODE64 | 3, 0x3202 | RFLAGS_CF | RFLAGS_AC, 0x70000,
                   SEL_USER_DATA | 3);
    SOFT_TEST_RUN(t, 1, 0x48, 0xcf);
    assert_int_equal(cpu_cpl(st), 3);
    assert_int_equal(st->rip, 0x9000);
    assert_int_equal(st->gpr[CPU_RSP], 0x70000);
    assert_int_equal(st->rflags, 0x3202 | RFLAGS_CF | RFLAGS_AC);
    assert_true(st->seg[CPU_DS].attr & SEG_UNUSABLE); /* was DPL 0 */
    assert_int_equal(st->is_nmi_blocked, 0);
    soft_test_destroy(t);
}

static void iret_long_to_compat(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);

    put_iret_frame(t, 0x9000, SEL_USER_CODE32 | 3, 0x202, 0x1234567890, SEL_USER_DATA | 3);
    SOFT_TEST_RUN(t, 1, 0x48, 0xcf);
    assert_int_equal(cpu_code_size(&t->v->st), 4);
    assert_int_equal(t->v->st.gpr[CPU_RSP], 0x34567890);
    soft_test_destroy(t);
}

/* Same privilege: 64-bit mode pops SS:RSP all the same, and SS may be null below CPL 3. */
static void iret_long_null_ss(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);

    put_iret_frame(t, 0x9000, SEL_CODE64, 2, 0x70000, 0);
    SOFT_TEST_RUN(t, 1, 0x48, 0xcf);
    assert_int_equal(t->v->st.rip, 0x9000);
    assert_int_equal(t->v->st.gpr[CPU_RSP], 0x70000);
    assert_int_equal(cpu_cpl(&t->v->st), 0);
    soft_test_destroy(t);
}

static void iret_long_faults(void **state)
{
    static const struct {
        uint64_t rip;
        uint16_t cs, ss;
        int vector;
        uint32_t error;
    } cases[] = {
        {NON_CANONICAL, SEL_USER_CODE64 | 3, SEL_USER_DATA | 3, VEC_GP, 0},
        {0x9000, SEL_USER_CODE64 | 3, 3, VEC_GP, 0},
        {0x9000, SEL_USER_CODE32 | 3, 3, VEC_GP, 0},
        {0x9000, SEL_CODE32, 0, VEC_GP, 0},
        {0x9000, SEL_USER_CODE64 | 3, SEL_READ_ONLY | 3, VEC_GP, SEL_READ_ONLY},
        {0x9000, SEL_USER_CODE64 | 3, SEL_DATA, VEC_GP, SEL_DATA},
        {0x9000, 0, SEL_DATA, VEC_GP, 0},
        {0x9000, SEL_ABSENT, SEL_DATA, VEC_NP, SEL_ABSENT},
        {0x9000, SEL_CODE64 | 3, SEL_USER_DATA | 3, VEC_GP, SEL_CODE64},
        {UINT64_C(0x100000000), SEL_CODE32, SEL_DATA, VEC_GP, 0},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct soft_test *t = start(SOFT_TEST_LONG);
        put_iret_frame(t, cases[i].rip, cases[i].cs, 2, 0x70000, cases[i].ss);
        SOFT_TEST_RUN(t, 2, 0x48, 0xcf);
        expect_fault(t, cases[i].vector, cases[i].error);
    }
}

static void iret_long_nested_task(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);

    t->v->st.rflags |= RFLAGS_NT;
    put_iret_frame(t, 0x9000, SEL_CODE64, 2, 0x70000, SEL_DATA);
    SOFT_TEST_RUN(t, 2, 0x48, 0xcf);
    expect_fault(t, VEC_GP, 0);
}

/* CPL 3 with IOPL 0 keeps IF and IOPL, whatever the frame says. */
static void iret_flags_by_privilege(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);

    soft_test_user(t, true);
    put_iret_frame(t, 0x9000, SEL_USER_CODE64 | 3,
                   RFLAGS_IF | RFLAGS_IOPL | RFLAGS_ZF | RFLAGS_VIF | RFLAGS_VM, 0x70000,
                   SEL_USER_DATA | 3);
    SOFT_TEST_RUN(t, 1, 0x48, 0xcf);
    assert_int_equal(t->v->st.rip, 0x9000);
    assert_int_equal(t->v->st.rflags, RFLAGS_ZF | RFLAGS_FIXED);
    soft_test_destroy(t);
}

static void iret_protected_same(void **state)
{
    struct soft_test *t = start(SOFT_TEST_PROTECTED);

    soft_test_put(t, SOFT_TEST_STACK, 4, 0x9000);
    soft_test_put(t, SOFT_TEST_STACK + 4, 4, SEL_CODE32);
    soft_test_put(t, SOFT_TEST_STACK + 8, 4, RFLAGS_IF | RFLAGS_ID);
    SOFT_TEST_RUN(t, 1, 0xcf);
    assert_int_equal(t->v->st.rip, 0x9000);
    assert_int_equal(t->v->st.gpr[CPU_RSP], SOFT_TEST_STACK + 12);
    assert_int_equal(t->v->st.rflags, RFLAGS_IF | RFLAGS_ID | RFLAGS_FIXED);
    soft_test_destroy(t);
}

static void iret_to_v86(void **state)
{
    static const uint32_t frame[] = {
        0x20, 0x700, RFLAGS_VM | RFLAGS_IF | 2, 0xfffe, 0x600, 0x111, 0x222, 0x333, 0x444};
    struct soft_test *t = start(SOFT_TEST_PROTECTED);
    struct cpu_state *st = &t->v->st;

    for (unsigned i = 0; i < ARRAY_SIZE(frame); i++)
        soft_test_put(t, SOFT_TEST_STACK + 4 * i, 4, frame[i]);
    SOFT_TEST_RUN(t, 1, 0xcf);
    assert_true(cpu_is_v86(st));
    assert_int_equal(cpu_cpl(st), 3);
    assert_int_equal(st->rip, 0x20);
    assert_int_equal(st->seg[CPU_CS].base, 0x7000);
    assert_int_equal(st->seg[CPU_SS].base, 0x6000);
    assert_int_equal(st->seg[CPU_ES].base, 0x1110);
    assert_int_equal(st->seg[CPU_DS].base, 0x2220);
    assert_int_equal(st->seg[CPU_FS].base, 0x3330);
    assert_int_equal(st->seg[CPU_GS].base, 0x4440);
    assert_int_equal(st->gpr[CPU_RSP], 0xfffe);
    assert_int_equal(st->seg[CPU_DS].attr, 0xf3);
    soft_test_destroy(t);
}

/* IRETD to a 16-bit stack leaves the upper half of ESP as it was. */
static void iret_16bit_stack_keeps_upper_half(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);

    soft_test_descriptor(t, SEL_LIMIT, 0, 0xffff, 0xf3);
    put_iret_frame(t, 0x9000, SEL_USER_CODE32 | 3, 2, 0x11112222, SEL_LIMIT | 3);
    SOFT_TEST_RUN(t, 1, 0x48, 0xcf);
    assert_int_equal(t->v->st.gpr[CPU_RSP], (SOFT_TEST_STACK & 0xffff0000) | 0x2222);
    soft_test_destroy(t);
}

static void iret_real(void **state)
{
    struct soft_test *t = start(SOFT_TEST_REAL);

    soft_test_put(t, SOFT_TEST_STACK_REAL, 2, 0x10);
    soft_test_put(t, SOFT_TEST_STACK_REAL + 2, 2, 0x900);
    soft_test_put(t, SOFT_TEST_STACK_REAL + 4, 2, RFLAGS_IF | RFLAGS_CF);
    SOFT_TEST_RUN(t, 1, 0xcf);
    assert_int_equal(t->v->st.seg[CPU_CS].base, 0x9000);
    assert_int_equal(t->v->st.rip, 0x10);
    assert_int_equal(t->v->st.rflags, RFLAGS_IF | RFLAGS_CF | RFLAGS_FIXED);
    assert_int_equal(t->v->st.gpr[CPU_RSP], SOFT_TEST_STACK_REAL + 6);
    soft_test_destroy(t);
}

static void set_star(struct soft_test *t)
{
    struct cpu_state *st = &t->v->st;

    st->star = (uint64_t)SEL_CODE64 << 32 | (uint64_t)SEL_USER_CODE32 << 48;
    st->lstar = 0x9000;
    st->cstar = 0xa000;
    st->sfmask = RFLAGS_IF | RFLAGS_TF | RFLAGS_AC;
}

static void syscall_and_sysret(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);
    struct cpu_state *st = &t->v->st;

    set_star(t);
    soft_test_user(t, true);
    st->rflags = RFLAGS_FIXED | RFLAGS_IF | RFLAGS_CF;
    t->ram[0x9000] = 0x48; /* sysretq */
    t->ram[0x9001] = 0x0f;
    t->ram[0x9002] = 0x07;
    SOFT_TEST_RUN(t, 1, 0x0f, 0x05);
    assert_int_equal(st->rip, 0x9000);
    assert_int_equal(cpu_cpl(st), 0);
    assert_int_equal(st->seg[CPU_CS].selector, SEL_CODE64);
    assert_int_equal(st->seg[CPU_SS].selector, SEL_DATA2);
    assert_int_equal(st->gpr[CPU_RCX], SOFT_TEST_CODE + 2);
    assert_int_equal(st->gpr[CPU_R11], RFLAGS_FIXED | RFLAGS_IF | RFLAGS_CF);
    assert_int_equal(st->rflags, RFLAGS_FIXED | RFLAGS_CF);
    assert_int_equal(st->gpr[CPU_RSP], SOFT_TEST_STACK);
    soft_step(t->v);
    assert_int_equal(st->rip, SOFT_TEST_CODE + 2);
    assert_int_equal(cpu_cpl(st), 3);
    assert_int_equal(st->seg[CPU_CS].selector, SEL_USER_CODE64 | 3);
    assert_int_equal(st->seg[CPU_SS].selector, SEL_USER_DATA | 3);
    assert_int_equal(st->rflags, RFLAGS_FIXED | RFLAGS_IF | RFLAGS_CF);
    soft_test_destroy(t);
}

static void sysret_to_compat(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);

    set_star(t);
    t->v->st.gpr[CPU_RCX] = 0x1234500009000;
    t->v->st.gpr[CPU_R11] = RFLAGS_VM | RFLAGS_RF | RFLAGS_IF;
    SOFT_TEST_RUN(t, 1, 0x0f, 0x07);
    assert_int_equal(t->v->st.rip, 0x9000);
    assert_int_equal(t->v->st.seg[CPU_CS].selector, SEL_USER_CODE32 | 3);
    assert_int_equal(cpu_code_size(&t->v->st), 4);
    assert_int_equal(t->v->st.rflags, RFLAGS_FIXED | RFLAGS_IF);
    soft_test_destroy(t);
}

/* Intel checks RCX before it leaves CPL 0; AMD faults at the fetch, in user mode. */
static void sysret_non_canonical(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);

    soft_test_set_vendor(t, false);
    set_star(t);
    t->v->st.gpr[CPU_RCX] = NON_CANONICAL;
    SOFT_TEST_RUN(t, 2, 0x48, 0x0f, 0x07);
    assert_int_equal(soft_test_get(t, t->v->st.gpr[CPU_RSP] + 16, 2), SEL_CODE64);
    expect_fault(t, VEC_GP, 0);

    t = start(SOFT_TEST_LONG);
    soft_test_set_vendor(t, true);
    set_star(t);
    t->v->st.gpr[CPU_RCX] = NON_CANONICAL;
    SOFT_TEST_RUN(t, 3, 0x48, 0x0f, 0x07);
    assert_int_equal(soft_test_get(t, t->v->st.gpr[CPU_RSP] + 16, 2), SEL_USER_CODE64 | 3);
    expect_fault(t, VEC_GP, 0);
}

/* SYSRET that sets TF traps at once; SYSCALL that masks TF does not trap. */
static void single_step_of_system_calls(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);

    set_star(t);
    t->v->st.gpr[CPU_RCX] = 0xb000;
    t->v->st.gpr[CPU_R11] = RFLAGS_TF;
    SOFT_TEST_RUN(t, 2, 0x48, 0x0f, 0x07);
    assert_int_equal(soft_test_vector(t), VEC_DB);
    assert_true(t->v->st.dr6 & DR6_BS);
    assert_int_equal(soft_test_get(t, t->v->st.gpr[CPU_RSP], 8), 0xb000);
    soft_test_destroy(t);

    t = start(SOFT_TEST_LONG);
    set_star(t);
    soft_test_user(t, true);
    t->v->st.rflags |= RFLAGS_TF;
    t->ram[0x9000] = 0x90;
    SOFT_TEST_RUN(t, 2, 0x0f, 0x05);
    assert_int_equal(t->v->st.rip, 0x9001);
    soft_test_destroy(t);
}

static void syscall_needs_sce(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);

    t->v->st.efer &= ~EFER_SCE;
    SOFT_TEST_RUN(t, 2, 0x0f, 0x05);
    assert_int_equal(soft_test_vector(t), VEC_UD);
    soft_test_destroy(t);

    t = start(SOFT_TEST_LONG);
    soft_test_user(t, true);
    SOFT_TEST_RUN(t, 2, 0x48, 0x0f, 0x07); /* SYSRET at CPL 3 */
    expect_fault(t, VEC_GP, 0);
}

static void sysenter_and_sysexit(void **state)
{
    struct soft_test *t = start(SOFT_TEST_PROTECTED);
    struct cpu_state *st = &t->v->st;

    soft_test_user(t, false);
    st->sysenter_cs = SEL_CODE64;
    st->sysenter_esp = 0x70000;
    st->sysenter_eip = 0x9000;
    st->rflags |= RFLAGS_IF;
    t->ram[0x9000] = 0x0f; /* sysexit */
    t->ram[0x9001] = 0x35;
    SOFT_TEST_RUN(t, 1, 0x0f, 0x34);
    assert_int_equal(cpu_cpl(st), 0);
    assert_int_equal(st->seg[CPU_CS].selector, SEL_CODE64);
    assert_int_equal(st->seg[CPU_SS].selector, SEL_DATA2);
    assert_int_equal(st->gpr[CPU_RSP], 0x70000);
    assert_int_equal(st->rip, 0x9000);
    assert_int_equal(st->rflags & RFLAGS_IF, 0);
    st->gpr[CPU_RCX] = 0x60000;
    st->gpr[CPU_RDX] = 0xb000;
    soft_step(t->v);
    assert_int_equal(cpu_cpl(st), 3);
    assert_int_equal(st->rip, 0xb000);
    assert_int_equal(st->gpr[CPU_RSP], 0x60000);
    assert_int_equal(st->seg[CPU_CS].selector, SEL_USER_CODE32 | 3);
    assert_int_equal(st->seg[CPU_SS].selector, SEL_USER_DATA | 3);
    soft_test_destroy(t);

    t = start(SOFT_TEST_PROTECTED);
    SOFT_TEST_RUN(t, 2, 0x0f, 0x34); /* SYSENTER_CS is 0 */
    expect_fault(t, VEC_GP, 0);
}

static void swapgs_and_bases(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);
    struct cpu_state *st = &t->v->st;

    st->cr4 |= CR4_FSGSBASE;
    st->seg[CPU_GS].base = 0x1000;
    st->kernel_gs_base = 0x2000;
    st->gpr[CPU_RBX] = UINT64_C(0xffff800000001234);
    /* swapgs; rdgsbase rax; wrfsbase rbx; rdfsbase ecx */
    SOFT_TEST_RUN(t, 4, 0x0f, 0x01, 0xf8, 0xf3, 0x48, 0x0f, 0xae, 0xc8, 0xf3, 0x48, 0x0f, 0xae,
                  0xd3, 0xf3, 0x0f, 0xae, 0xc1);
    assert_int_equal(st->kernel_gs_base, 0x1000);
    assert_int_equal(st->gpr[CPU_RAX], 0x2000);
    assert_int_equal(st->seg[CPU_FS].base, UINT64_C(0xffff800000001234));
    assert_int_equal(st->gpr[CPU_RCX], 0x1234);
    soft_test_destroy(t);

    t = start(SOFT_TEST_LONG);
    t->v->st.cr4 |= CR4_FSGSBASE;
    t->v->st.gpr[CPU_RBX] = NON_CANONICAL;
    SOFT_TEST_RUN(t, 2, 0xf3, 0x48, 0x0f, 0xae, 0xd3);
    expect_fault(t, VEC_GP, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(far_jump_real),
        cmocka_unit_test(far_call_and_return_real),
        cmocka_unit_test(far_jump_protected),
        cmocka_unit_test(far_jump_faults),
        cmocka_unit_test(far_jump_conforming_keeps_cpl),
        cmocka_unit_test(accessed_bit_is_set),
        cmocka_unit_test(call_gate_inner),
        cmocka_unit_test(call_gate_faults),
        cmocka_unit_test(call_gate_long),
        cmocka_unit_test(far_jump_compat_to_long),
        cmocka_unit_test(iret_long_to_user),
        cmocka_unit_test(iret_long_to_compat),
        cmocka_unit_test(iret_long_null_ss),
        cmocka_unit_test(iret_long_faults),
        cmocka_unit_test(iret_long_nested_task),
        cmocka_unit_test(iret_flags_by_privilege),
        cmocka_unit_test(iret_protected_same),
        cmocka_unit_test(iret_to_v86),
        cmocka_unit_test(iret_16bit_stack_keeps_upper_half),
        cmocka_unit_test(iret_real),
        cmocka_unit_test(syscall_and_sysret),
        cmocka_unit_test(sysret_to_compat),
        cmocka_unit_test(sysret_non_canonical),
        cmocka_unit_test(single_step_of_system_calls),
        cmocka_unit_test(syscall_needs_sce),
        cmocka_unit_test(sysenter_and_sysexit),
        cmocka_unit_test(swapgs_and_bases),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
