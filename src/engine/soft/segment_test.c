/*
 * segment_test.c - limits at their edges, types, and loading segment registers
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include "engine/soft/segment.h"
#include "engine/soft/testing.h"

#define DATA_RW 0x93u
#define DATA_RO 0x91u
#define DATA_DOWN 0x97u
#define CODE_X 0x99u
#define CODE_XR 0x9bu

static void segment_set(struct soft_test *t, unsigned seg, uint32_t attr, uint64_t base,
                        uint32_t limit)
{
    t->v->st.seg[seg] = (struct cpu_seg){.attr = attr, .base = base, .limit = limit};
}

/* -1: allowed; else the vector. */
static int check(struct soft_test *t, unsigned seg, uint64_t offset, unsigned size,
                 enum soft_access access)
{
    gva_t addr;

    if (soft_linear(t->v, seg, offset, size, access, &addr) == 0)
        return -1;
    assert_true(t->v->fault.has_error);
    assert_int_equal(t->v->fault.error, 0);
    return t->v->fault.vector;
}

static void test_limits(void **state)
{
    static const struct {
        uint32_t attr, limit;
        uint64_t offset;
        unsigned size;
        bool is_ok;
    } cases[] = {
        {DATA_RW, 0, 0, 1, true},
        {DATA_RW, 0, 0, 2, false},
        {DATA_RW, 0xfff, 0xfff, 1, true},
        {DATA_RW, 0xfff, 0xffc, 4, true},
        {DATA_RW, 0xfff, 0xffd, 4, false},
        {DATA_RW, 0xfff, 0x1000, 1, false},
        {DATA_RW, 0xfff, 0xffffffff, 8, false},
        {DATA_RW, 0xffff, 0xffff, 1, true},
        {DATA_RW, 0xffff, 0xffff, 2, false},
        {DATA_RW, 0xfffffffe, 0xffffffff, 1, false},
        {DATA_RW, 0xffffffff, 0xffffffff, 1, true},
        {DATA_DOWN, 0xfff, 0xfff, 1, false},
        {DATA_DOWN, 0xfff, 0x1000, 1, true},
        {DATA_DOWN, 0xfff, 0xffff, 1, true},
        {DATA_DOWN, 0xfff, 0xffff, 2, false},
        {DATA_DOWN, 0xfff, 0xfffe, 2, true},
        {DATA_DOWN, 0xfff, 0x10000, 1, false},
        {DATA_DOWN | SEG_DB, 0xfff, 0x10000, 1, true},
        {DATA_DOWN | SEG_DB, 0xfff, 0xfffffffc, 4, true},
        {DATA_DOWN | SEG_DB, 0xfff, 0xfffffffd, 4, false},
        {DATA_DOWN, 0xffff, 0, 1, false},
        {DATA_DOWN, 0xffff, 0xffff, 1, false},
        {DATA_DOWN | SEG_DB, 0xffffffff, 0x1000, 1, false},
        {CODE_XR | 4, 0xfff, 0x1000, 1, false}, /* conforming, not expand-down */
        {CODE_XR | 4, 0xfff, 0xfff, 1, true},
    };
    struct soft_test *t = *state;

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        segment_set(t, CPU_DS, cases[i].attr, 0, cases[i].limit);
        segment_set(t, CPU_SS, cases[i].attr, 0, cases[i].limit);
        assert_int_equal(check(t, CPU_DS, cases[i].offset, cases[i].size, SOFT_READ),
                         cases[i].is_ok ? -1 : VEC_GP);
        assert_int_equal(check(t, CPU_SS, cases[i].offset, cases[i].size, SOFT_READ),
                         cases[i].is_ok ? -1 : VEC_SS);
    }
}

static void test_types(void **state)
{
    static const struct {
        uint32_t attr;
        bool is_readable, is_writable;
    } cases[] = {
        {DATA_RW, true, true},        {DATA_RO, true, false},
        {CODE_X, false, false},       {CODE_XR, true, false},
        {SEG_UNUSABLE, false, false}, {DATA_RW | SEG_UNUSABLE, false, false},
    };
    struct soft_test *t = *state;

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        segment_set(t, CPU_ES, cases[i].attr, 0, 0xffffffff);
        assert_int_equal(check(t, CPU_ES, 0, 4, SOFT_READ), cases[i].is_readable ? -1 : VEC_GP);
        assert_int_equal(check(t, CPU_ES, 0, 4, SOFT_WRITE), cases[i].is_writable ? -1 : VEC_GP);
        assert_int_equal(check(t, CPU_ES, 0, 4, SOFT_RMW), cases[i].is_writable ? -1 : VEC_GP);
    }
}

static void test_base_wraps(void **state)
{
    struct soft_test *t = *state;
    gva_t addr;

    segment_set(t, CPU_DS, DATA_RW, 0xfffff000, 0xffffffff);
    assert_int_equal(soft_linear(t->v, CPU_DS, 0x2004, 4, SOFT_READ, &addr), 0);
    assert_int_equal(addr, 0x1004);
}

static void test_64bit(void **state)
{
    struct soft_test *t = *state;
    gva_t addr;

    segment_set(t, CPU_DS, SEG_UNUSABLE, 0x1000, 0);
    assert_int_equal(soft_linear(t->v, CPU_DS, 0x5000, 8, SOFT_WRITE, &addr), 0);
    assert_int_equal(addr, 0x5000);
    segment_set(t, CPU_GS, SEG_UNUSABLE, UINT64_C(0xffff888000000000), 0);
    assert_int_equal(soft_linear(t->v, CPU_GS, 0x10, 8, SOFT_WRITE, &addr), 0);
    assert_int_equal(addr, UINT64_C(0xffff888000000010));

    assert_int_equal(check(t, CPU_DS, UINT64_C(0x7fffffffffff), 1, SOFT_READ), -1);
    assert_int_equal(check(t, CPU_DS, UINT64_C(0x7fffffffffff), 2, SOFT_READ), VEC_GP);
    assert_int_equal(check(t, CPU_SS, UINT64_C(0x7fffffffffff), 2, SOFT_READ), VEC_SS);
    assert_int_equal(check(t, CPU_SS, UINT64_C(0x8000000000000000), 1, SOFT_WRITE), VEC_SS);
    assert_int_equal(check(t, CPU_DS, UINT64_C(0xffff800000000000), 8, SOFT_READ), -1);
    assert_int_equal(check(t, CPU_DS, UINT64_C(0xffff7fffffffffff), 8, SOFT_READ), VEC_GP);
    /* the top of the address space is next to its bottom */
    assert_int_equal(check(t, CPU_DS, ~UINT64_C(0), 2, SOFT_READ), -1);
}

/* -1: loaded; else vector << 16 | error code. */
static int load(struct soft_test *t, unsigned seg, uint16_t selector)
{
    struct cpu_seg before = t->v->st.seg[seg];

    if (soft_load_segment(t->v, seg, selector) == 0) {
        assert_int_equal(t->v->st.seg[seg].selector, selector);
        return -1;
    }
    assert_memory_equal(&t->v->st.seg[seg], &before, sizeof(before));
    return t->v->fault.vector << 16 | (int)t->v->fault.error;
}

#define FAULT(vector, error) ((vector) << 16 | (error))

static void test_load_data(void **state)
{
    struct soft_test *t = *state;

    assert_int_equal(load(t, CPU_DS, SEL_DATA), -1);
    assert_int_equal(load(t, CPU_DS, SEL_DATA | 3), FAULT(VEC_GP, SEL_DATA));
    assert_int_equal(load(t, CPU_DS, SEL_USER_DATA | 3), -1);
    assert_int_equal(load(t, CPU_ES, SEL_CODE32), -1);
    assert_int_equal(load(t, CPU_ES, SEL_CONFORMING | 3), -1);
    assert_int_equal(load(t, CPU_ES, SEL_TSS), FAULT(VEC_GP, SEL_TSS));
    assert_int_equal(load(t, CPU_FS, 0xfff8), FAULT(VEC_GP, 0xfff8));
    assert_int_equal(load(t, CPU_FS, 0xc | 3), FAULT(VEC_GP, 0xc)); /* no LDT */
    assert_int_equal(load(t, CPU_FS, 3), -1);
    assert_true(t->v->st.seg[CPU_FS].attr & SEG_UNUSABLE);

    soft_test_descriptor(t, SEL_LIMIT, 0x12345678, 0x54321, 0x40f2);
    assert_int_equal(load(t, CPU_FS, SEL_LIMIT | 1), -1);
    assert_int_equal(t->v->st.seg[CPU_FS].base, 0x12345678);
    assert_int_equal(t->v->st.seg[CPU_FS].limit, 0x54321);
    assert_int_equal(t->v->st.seg[CPU_FS].attr, 0x40f3);
    assert_int_equal(soft_test_get(t, SOFT_TEST_GDT + SEL_LIMIT + 5, 1), 0xf3);

    soft_test_descriptor(t, SEL_LIMIT, 0, 0, 0xc012); /* absent data */
    assert_int_equal(load(t, CPU_FS, SEL_LIMIT), FAULT(VEC_NP, SEL_LIMIT));
    soft_test_descriptor(t, SEL_LIMIT, 0, 0xfffff, 0xc099); /* code, not readable */
    assert_int_equal(load(t, CPU_FS, SEL_LIMIT), FAULT(VEC_GP, SEL_LIMIT));

    soft_test_user(t, false);
    assert_int_equal(load(t, CPU_DS, SEL_DATA), FAULT(VEC_GP, SEL_DATA));
    assert_int_equal(load(t, CPU_DS, SEL_USER_DATA), -1);
}

static void test_load_stack(void **state)
{
    struct soft_test *t = *state;

    assert_int_equal(load(t, CPU_SS, SEL_DATA), -1);
    assert_int_equal(load(t, CPU_SS, 0), FAULT(VEC_GP, 0));
    assert_int_equal(load(t, CPU_SS, SEL_USER_DATA), FAULT(VEC_GP, SEL_USER_DATA));
    assert_int_equal(load(t, CPU_SS, SEL_DATA | 1), FAULT(VEC_GP, SEL_DATA));
    assert_int_equal(load(t, CPU_SS, SEL_CODE32), FAULT(VEC_GP, SEL_CODE32));
    soft_test_descriptor(t, SEL_LIMIT, 0, 0, 0xc012);
    assert_int_equal(load(t, CPU_SS, SEL_LIMIT), FAULT(VEC_SS, SEL_LIMIT));
    soft_test_descriptor(t, SEL_LIMIT, 0, 0, 0xc090);
    assert_int_equal(load(t, CPU_SS, SEL_LIMIT), FAULT(VEC_GP, SEL_LIMIT));
}

static void test_load_null_stack_64bit(void **state)
{
    struct soft_test *t = *state;

    assert_int_equal(load(t, CPU_SS, 0), -1);
    assert_int_equal(cpu_cpl(&t->v->st), 0);
    assert_int_equal(load(t, CPU_SS, 3), FAULT(VEC_GP, 0));
    soft_test_compat(t);
    assert_int_equal(load(t, CPU_SS, 0), FAULT(VEC_GP, 0));
    soft_test_user(t, true);
    assert_int_equal(load(t, CPU_SS, 3), FAULT(VEC_GP, 0));
}

static void test_load_real(void **state)
{
    struct soft_test *t = *state;

    t->v->st.seg[CPU_DS].limit = 0xffffffff; /* "unreal" mode */
    assert_int_equal(load(t, CPU_DS, 0x1234), -1);
    assert_int_equal(t->v->st.seg[CPU_DS].base, 0x12340);
    assert_int_equal(t->v->st.seg[CPU_DS].limit, 0xffffffff);
    assert_int_equal(check(t, CPU_DS, 0x123456, 4, SOFT_WRITE), -1);
    assert_int_equal(check(t, CPU_ES, 0xffff, 2, SOFT_READ), VEC_GP);
    assert_int_equal(check(t, CPU_SS, 0xffff, 2, SOFT_READ), VEC_SS);
}

static void test_load_v86(void **state)
{
    struct soft_test *t = *state;

    soft_test_v86(t, 0);
    assert_int_equal(load(t, CPU_DS, 0xffff), -1);
    assert_int_equal(t->v->st.seg[CPU_DS].base, 0xffff0);
    assert_int_equal(t->v->st.seg[CPU_DS].limit, 0xffff);
    assert_int_equal(cpu_cpl(&t->v->st), 3);
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
        TEST(test_limits, protected),           TEST(test_types, protected),
        TEST(test_base_wraps, protected),       TEST(test_64bit, long),
        TEST(test_load_data, protected),        TEST(test_load_stack, protected),
        TEST(test_load_null_stack_64bit, long), TEST(test_load_real, real),
        TEST(test_load_v86, protected),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
