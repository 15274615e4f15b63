/*
 * task_test.c - hardware task switches by JMP, CALL, IRET, task gate and exception
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include "engine/soft/system.h"
#include "engine/soft/testing.h"

#define NEW_TSS 0x4000u
#define NEW_CODE 0x9000u
#define NEW_STACK 0x60000u

/* A second task at NEW_TSS: flat kernel segments, EAX .. EDI = 100h, 101h ... */
static struct soft_test *start(void)
{
    struct soft_test *t = soft_test_create(SOFT_TEST_PROTECTED);

    soft_test_descriptor(t, SEL_TSS2, NEW_TSS, 103, 0x89);
    soft_test_put(t, NEW_TSS + 32, 4, NEW_CODE);
    soft_test_put(t, NEW_TSS + 36, 4, RFLAGS_CF | RFLAGS_FIXED);
    for (unsigned i = 0; i < 8; i++)
        soft_test_put(t, NEW_TSS + 40 + 4 * i, 4, i == CPU_RSP ? NEW_STACK : 0x100 + i);
    for (unsigned i = 0; i < 6; i++)
        soft_test_put(t, NEW_TSS + 72 + 4 * i, 4, i == CPU_CS ? SEL_CODE32 : SEL_DATA2);
    t->ram[NEW_CODE] = 0xf4;
    return t;
}

static unsigned descriptor_type(const struct soft_test *t, unsigned selector)
{
    return (unsigned)soft_test_get(t, SOFT_TEST_GDT + selector + 5, 1) & 0xf;
}

static void jump_to_tss(void **state)
{
    struct soft_test *t = start();
    struct cpu_state *st = &t->v->st;

    st->gpr[CPU_RDX] = 0xabcd;
    st->dr7 |= 0x3; /* L0, G0 */
    SOFT_TEST_RUN(t, 2, 0xea, LE32(0), LE16(SEL_TSS2));
    assert_int_equal(st->run_state, CPU_HALTED);
    assert_int_equal(st->rip, NEW_CODE + 1);
    assert_int_equal(st->gpr[CPU_RAX], 0x100);
    assert_int_equal(st->gpr[CPU_RDI], 0x107);
    assert_int_equal(st->gpr[CPU_RSP], NEW_STACK);
    assert_int_equal(st->rflags, RFLAGS_CF | RFLAGS_FIXED);
    assert_int_equal(st->seg[CPU_DS].selector, SEL_DATA2);
    assert_int_equal(st->seg[CPU_TR].selector, SEL_TSS2);
    assert_true(st->cr0 & CR0_TS);
    assert_int_equal(st->dr7 & 0xff, 0x2);
    assert_int_equal(descriptor_type(t, SEL_TSS), SOFT_TYPE_TSS32);
    assert_int_equal(descriptor_type(t, SEL_TSS2), SOFT_TYPE_TSS32_BUSY);

    /* the old task's state */
    assert_int_equal(soft_test_get(t, SOFT_TEST_TSS + 32, 4), SOFT_TEST_CODE + 7);
    assert_int_equal(soft_test_get(t, SOFT_TEST_TSS + 48, 4), 0xabcd);
    assert_int_equal(soft_test_get(t, SOFT_TEST_TSS + 76, 2), SEL_CODE32);
    soft_test_destroy(t);
}

static void call_and_iret(void **state)
{
    struct soft_test *t = start();
    struct cpu_state *st = &t->v->st;

    t->ram[NEW_CODE] = 0xcf;
    SOFT_TEST_RUN(t, 1, 0x9a, LE32(0), LE16(SEL_TSS2));
    assert_int_equal(st->rip, NEW_CODE);
    assert_true(st->rflags & RFLAGS_NT);
    assert_int_equal(soft_test_get(t, NEW_TSS, 2), SEL_TSS);
    assert_int_equal(descriptor_type(t, SEL_TSS), SOFT_TYPE_TSS32_BUSY);
    soft_step(t->v);
    assert_int_equal(st->rip, SOFT_TEST_CODE + 7);
    assert_int_equal(st->seg[CPU_TR].selector, SEL_TSS);
    assert_false(st->rflags & RFLAGS_NT);
    assert_int_equal(descriptor_type(t, SEL_TSS2), SOFT_TYPE_TSS32);
    assert_int_equal(descriptor_type(t, SEL_TSS), SOFT_TYPE_TSS32_BUSY);
    /* the image that IRET saved has NT clear */
    assert_false(soft_test_get(t, NEW_TSS + 36, 4) & RFLAGS_NT);
    soft_test_destroy(t);
}

static void jump_through_task_gate(void **state)
{
    struct soft_test *t = start();

    soft_test_gate(t, SEL_TASK_GATE, SOFT_TYPE_TASK_GATE, 3, SEL_TSS2, 0, 0);
    soft_test_user(t, false);
    SOFT_TEST_RUN(t, 2, 0xea, LE32(0), LE16(SEL_TASK_GATE | 3));
    assert_int_equal(t->v->st.rip, NEW_CODE + 1);
    assert_int_equal(cpu_cpl(&t->v->st), 0);
    soft_test_destroy(t);
}

/* #GP through a task gate in the IDT: the error code is on the new task's stack. */
static void exception_through_task_gate(void **state)
{
    struct soft_test *t = start();

    soft_test_put(t, SOFT_TEST_IDT + VEC_GP * 8, 8, (uint64_t)0x85 << 40 | SEL_TSS2 << 16);
    t->v->st.gpr[CPU_RAX] = 0x7f8;
    SOFT_TEST_RUN(t, 2, 0x8e, 0xd8); /* mov ds, 7f8h */
    assert_int_equal(t->v->st.rip, NEW_CODE + 1);
    assert_int_equal(t->v->st.gpr[CPU_RSP], NEW_STACK - 4);
    assert_int_equal(soft_test_get(t, NEW_STACK - 4, 4), 0x7f8);
    assert_int_equal(soft_test_get(t, SOFT_TEST_TSS + 32, 4), SOFT_TEST_CODE);
    assert_true(t->v->st.rflags & RFLAGS_NT);
    soft_test_destroy(t);
}

static void bad_new_tss(void **state)
{
    struct soft_test *t = start();

    soft_test_descriptor(t, SEL_TSS2, NEW_TSS, 102, 0x89); /* one byte short */
    SOFT_TEST_RUN(t, 2, 0xea, LE32(0), LE16(SEL_TSS2));
    assert_int_equal(soft_test_vector(t), VEC_TS);
    assert_int_equal(soft_test_error(t), SEL_TSS2);
    assert_int_equal(t->v->st.seg[CPU_TR].selector, SEL_TSS);
    soft_test_destroy(t);

    t = start();
    soft_test_descriptor(t, SEL_TSS2, NEW_TSS, 103, 0x09);
    SOFT_TEST_RUN(t, 2, 0xea, LE32(0), LE16(SEL_TSS2));
    assert_int_equal(soft_test_vector(t), VEC_NP);
    soft_test_destroy(t);

    t = start(); /* busy */
    SOFT_TEST_RUN(t, 2, 0xea, LE32(0), LE16(SEL_TSS));
    assert_int_equal(soft_test_vector(t), VEC_GP);
    soft_test_destroy(t);
}

/* A bad selector in the image is a fault of the new task. */
static void bad_new_segment(void **state)
{
    struct soft_test *t = start();

    soft_test_put(t, NEW_TSS + 72 + 4 * CPU_FS, 4, SEL_TSS);
    SOFT_TEST_RUN(t, 2, 0xea, LE32(0), LE16(SEL_TSS2));
    assert_int_equal(soft_test_vector(t), VEC_TS);
    assert_int_equal(soft_test_error(t), SEL_TSS);
    assert_int_equal(t->v->st.seg[CPU_TR].selector, SEL_TSS2);
    assert_int_equal(soft_test_get(t, t->v->st.gpr[CPU_RSP] + 4, 4), NEW_CODE);
    soft_test_destroy(t);
}

static void to_v86_task(void **state)
{
    struct soft_test *t = start();
    struct cpu_state *st = &t->v->st;

    soft_test_put(t, NEW_TSS + 36, 4, RFLAGS_VM | RFLAGS_FIXED);
    soft_test_put(t, NEW_TSS + 72 + 4 * CPU_CS, 4, 0x700);
    soft_test_put(t, NEW_TSS + 32, 4, 0x10);
    t->ram[0x7010] = 0x90;
    SOFT_TEST_RUN(t, 2, 0xea, LE32(0), LE16(SEL_TSS2));
    assert_true(cpu_is_v86(st));
    assert_int_equal(st->seg[CPU_CS].base, 0x7000);
    assert_int_equal(st->rip, 0x11);
    assert_int_equal(cpu_cpl(st), 3);
    soft_test_destroy(t);
}

static void to_16bit_tss(void **state)
{
    struct soft_test *t = start();
    struct cpu_state *st = &t->v->st;

    soft_test_descriptor(t, SEL_TSS2, NEW_TSS, 43, 0x81);
    soft_test_put(t, NEW_TSS + 14, 2, NEW_CODE);
    soft_test_put(t, NEW_TSS + 16, 2, RFLAGS_ZF);
    for (unsigned i = 0; i < 8; i++)
        soft_test_put(t, NEW_TSS + 18 + 2 * i, 2, 0x200 + i);
    for (unsigned i = 0; i < 4; i++)
        soft_test_put(t, NEW_TSS + 34 + 2 * i, 2, i == CPU_CS ? SEL_CODE32 : SEL_DATA);
    soft_test_put(t, NEW_TSS + 42, 2, 0);
    SOFT_TEST_RUN(t, 2, 0xea, LE32(0), LE16(SEL_TSS2));
    assert_int_equal(st->rip, NEW_CODE + 1);
    assert_int_equal(st->gpr[CPU_RAX], 0xffff0200);
    assert_true(st->seg[CPU_FS].attr & SEG_UNUSABLE);
    assert_int_equal(descriptor_type(t, SEL_TSS2), SOFT_TYPE_TSS16_BUSY);
    soft_test_destroy(t);
}

/* The T bit of the new TSS: #DB with BT before its first instruction. */
static void debug_trap_bit(void **state)
{
    struct soft_test *t = start();

    soft_test_put(t, NEW_TSS + 100, 2, 1);
    SOFT_TEST_RUN(t, 2, 0xea, LE32(0), LE16(SEL_TSS2));
    assert_int_equal(soft_test_vector(t), VEC_DB);
    assert_true(t->v->st.dr6 & DR6_BT);
    assert_int_equal(soft_test_get(t, t->v->st.gpr[CPU_RSP], 4), NEW_CODE);
    soft_test_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(jump_to_tss),
        cmocka_unit_test(call_and_iret),
        cmocka_unit_test(jump_through_task_gate),
        cmocka_unit_test(exception_through_task_gate),
        cmocka_unit_test(bad_new_tss),
        cmocka_unit_test(bad_new_segment),
        cmocka_unit_test(to_v86_task),
        cmocka_unit_test(to_16bit_tss),
        cmocka_unit_test(debug_trap_bit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
