/*
 * exec_test.c - fetching: page ends, limits, the 15-byte rule, code that changes, hidden features
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>

#include "engine/soft/testing.h"

#define CODE SOFT_TEST_CODE
#define HANDLER(n) (SOFT_TEST_HANDLERS + 16u * (n))
#define END SOFT_TEST_RAM /* nothing is mapped from here on */

static struct soft_test *test_of(void **state)
{
    return *state;
}

static void step_at(struct soft_test *t, uint64_t rip, const void *code, size_t size)
{
    memcpy(t->ram + rip, code, size);
    t->v->st.rip = rip;
    soft_guest_enter(t->v);
    soft_step(t->v);
    soft_guest_leave(t->v);
}

#define STEP_AT(t, rip, ...)                                                                       \
    step_at(t, rip, (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

static void assert_fault(struct soft_test *t, unsigned vector, uint64_t rip)
{
    const struct cpu_state *st = &t->v->st;
    bool has_error = vector == VEC_PF || vector == VEC_GP;

    assert_int_equal(st->rip, HANDLER(vector));
    assert_int_equal(soft_test_get(t, st->gpr[CPU_RSP] + (has_error ? 8 : 0), 8), rip);
}

/* The second page is what faults, and only when the instruction needs it. */
static void test_page_end(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    STEP_AT(t, END - 2, 0xb0, 0x55); /* mov al, 0x55 */
    assert_int_equal(st->rip, END);
    assert_int_equal(st->gpr[CPU_RAX], 0x55);

    STEP_AT(t, END - 3, 0xb8, 0x01, 0x02); /* mov eax, imm32 */
    assert_fault(t, VEC_PF, END - 3);
    assert_int_equal(st->cr2, END);
    assert_int_equal(soft_test_get(t, st->gpr[CPU_RSP], 8), 0);
    assert_int_equal(st->gpr[CPU_RAX], 0x55);
}

static void test_across_pages(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;
    uint64_t rip = CODE + 0xffd;

    for (unsigned i = 0; i < 2; i++) { /* decoded, then from the cache */
        STEP_AT(t, rip, 0xb8, 0x01, 0x02, 0x03, 0x04);
        assert_int_equal(st->rip, rip + 5);
        assert_int_equal(st->gpr[CPU_RAX], 0x04030201);
    }
    STEP_AT(t, rip, 0xb8, 0x01, 0x02, 0x03, 0x05); /* changed in the second page */
    assert_int_equal(st->gpr[CPU_RAX], 0x05030201);
    STEP_AT(t, rip, 0xb8, 0x11, 0x02, 0x03, 0x05); /* in the first */
    assert_int_equal(st->gpr[CPU_RAX], 0x05030211);
    STEP_AT(t, rip, 0xb0, 0x77); /* a shorter one */
    assert_int_equal(st->rip, rip + 2);
    assert_int_equal(st->gpr[CPU_RAX], 0x05030277);
}

static void test_changed_code(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    for (unsigned i = 0; i < 4; i++) {
        STEP_AT(t, CODE, 0xb0, (uint8_t)(i / 2));
        assert_int_equal(st->gpr[CPU_RAX], i / 2);
    }
}

/* The same bytes mean something else in another mode. */
static void test_mode_is_part_of_the_key(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    st->gpr[CPU_RAX] = 0x1ffffffff;
    STEP_AT(t, CODE, 0x48, 0x90, 0x40); /* rex.w nop */
    assert_int_equal(st->rip, CODE + 2);
    soft_test_compat(t);
    STEP_AT(t, CODE, 0x48, 0x90, 0x40); /* dec eax */
    assert_int_equal(st->rip, CODE + 1);
    assert_int_equal(st->gpr[CPU_RAX], 0xfffffffe);
}

static void test_length(void **state)
{
    struct soft_test *t = test_of(state);
    uint8_t code[16];

    memset(code, 0x66, sizeof(code));
    code[14] = 0x90;
    step_at(t, CODE, code, 15);
    assert_int_equal(t->v->st.rip, CODE + 15);
    memset(code, 0x66, sizeof(code));
    code[15] = 0x90;
    step_at(t, CODE, code, 16);
    assert_fault(t, VEC_GP, CODE);
    step_at(t, END - 16, code, 16); /* neither does it look beyond 15 bytes */
    assert_fault(t, VEC_GP, END - 16);
}

static void test_invalid(void **state)
{
    struct soft_test *t = test_of(state);

    STEP_AT(t, CODE, 0x06); /* push es, in 64-bit mode */
    assert_fault(t, VEC_UD, CODE);
    STEP_AT(t, CODE, 0xf0, 0x01, 0xc0); /* lock add eax, eax */
    assert_fault(t, VEC_UD, CODE);
    STEP_AT(t, CODE, 0x0f, 0xff, 0xc0); /* ud0 */
    assert_fault(t, VEC_UD, CODE);
}

static void test_limit(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    st->seg[CPU_CS].limit = CODE + 1;
    STEP_AT(t, CODE, 0xb0, 0x01);
    assert_int_equal(st->rip, CODE + 2);
    STEP_AT(t, CODE, 0x66, 0xb0, 0x01);
    assert_int_equal(st->rip, HANDLER(VEC_GP));
    st->seg[CPU_CS].limit = CODE - 1;
    STEP_AT(t, CODE, 0x90);
    assert_int_equal(st->rip, HANDLER(VEC_GP));
}

/* What CPUID does not show is not there. */
static void test_hidden(void **state)
{
    struct soft_test *t = test_of(state);
    enum cpu_feature f = CPU_FEATURE_POPCNT;

    STEP_AT(t, CODE, 0xf3, 0x0f, 0xb8, 0xc0); /* popcnt eax, eax */
    assert_int_equal(t->v->st.rip, CODE + 4);
    t->model.feature_words[f / 64] &= ~(UINT64_C(1) << (f % 64));
    STEP_AT(t, CODE + 0x100, 0xf3, 0x0f, 0xb8, 0xc0);
    assert_fault(t, VEC_UD, CODE + 0x100);
}

/* Writes of 8 and 16 bits merge, of 32 bits zero-extend. */
static void test_registers_of_sizes(void **state)
{
    struct soft_test *t = test_of(state);
    struct soft_vcpu *v = t->v;

    v->st.gpr[CPU_RAX] = 0x1122334455667788;
    soft_gpr_write(v, CPU_RAX, 1, true, 0xaa);
    assert_int_equal(v->st.gpr[CPU_RAX], 0x112233445566aa88);
    soft_gpr_write(v, CPU_RAX, 1, false, 0x1bb);
    assert_int_equal(v->st.gpr[CPU_RAX], 0x112233445566aabb);
    soft_gpr_write(v, CPU_RAX, 2, false, 0xccdd);
    assert_int_equal(v->st.gpr[CPU_RAX], 0x112233445566ccdd);
    assert_int_equal(soft_gpr_read(v, CPU_RAX, 1, true), 0xcc);
    assert_int_equal(soft_gpr_read(v, CPU_RAX, 4, false), 0x5566ccdd);
    soft_gpr_write(v, CPU_RAX, 4, false, UINT64_C(0x100000001));
    assert_int_equal(v->st.gpr[CPU_RAX], 1);
}

static int set_up_long(void **state)
{
    *state = soft_test_create(SOFT_TEST_LONG);
    return 0;
}

static int set_up_protected(void **state)
{
    *state = soft_test_create(SOFT_TEST_PROTECTED);
    return 0;
}

static int tear_down(void **state)
{
    soft_test_destroy(*state);
    return 0;
}

#define TEST(name, mode) cmocka_unit_test_setup_teardown(name, set_up_##mode, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_page_end, long),
        TEST(test_across_pages, long),
        TEST(test_changed_code, long),
        TEST(test_mode_is_part_of_the_key, long),
        TEST(test_length, long),
        TEST(test_invalid, long),
        TEST(test_limit, protected),
        TEST(test_hidden, long),
        TEST(test_registers_of_sizes, long),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
