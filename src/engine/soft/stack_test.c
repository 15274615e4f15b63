/*
 * stack_test.c - the stack instructions and near branches, where modes and privileges differ
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>

#include "engine/soft/testing.h"

#define CODE SOFT_TEST_CODE
#define STACK SOFT_TEST_STACK
#define DATA SOFT_TEST_DATA
#define HANDLER(n) (SOFT_TEST_HANDLERS + 16u * (n))

static struct soft_test *test_of(void **state)
{
    return *state;
}

static void step_code(struct soft_test *t, uint64_t rip, const void *code, size_t size)
{
    memcpy(t->ram + rip, code, size);
    t->v->st.rip = rip;
    soft_guest_enter(t->v);
    soft_step(t->v);
    soft_guest_leave(t->v);
}

/* One instruction at CODE (or where real mode has it). */
#define STEP(t, ...)                                                                               \
    step_code(t, CODE, (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))
#define STEP_REAL(t, ...)                                                                          \
    step_code(t, SOFT_TEST_CODE_REAL, (const uint8_t[]){__VA_ARGS__},                              \
              sizeof((const uint8_t[]){__VA_ARGS__}))

static uint64_t top(struct soft_test *t, unsigned size)
{
    return soft_test_get(t, t->v->st.gpr[CPU_RSP], size);
}

static void test_push_immediates(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    STEP(t, 0x6a, 0x80);
    assert_int_equal(st->gpr[CPU_RSP], STACK - 8);
    assert_int_equal(top(t, 8), UINT64_C(0xffffffffffffff80));
    STEP(t, 0x68, 0x00, 0x00, 0x00, 0x80);
    assert_int_equal(top(t, 8), UINT64_C(0xffffffff80000000));
    STEP(t, 0x66, 0x68, 0x34, 0x92);
    assert_int_equal(st->gpr[CPU_RSP], STACK - 18);
    assert_int_equal(top(t, 2), 0x9234);
    STEP(t, 0x66, 0x6a, 0xff);
    assert_int_equal(st->gpr[CPU_RSP], STACK - 20);
    assert_int_equal(top(t, 2), 0xffff);
}

static void test_stack_pointer_operands(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    STEP(t, 0x54); /* push rsp: the value before */
    assert_int_equal(top(t, 8), STACK);
    STEP(t, 0x5c); /* pop rsp */
    assert_int_equal(st->gpr[CPU_RSP], STACK);

    soft_test_put(t, STACK, 8, 0x1234);
    STEP(t, 0x8f, 0x04, 0x24); /* pop [rsp]: the address after */
    assert_int_equal(st->gpr[CPU_RSP], STACK + 8);
    assert_int_equal(top(t, 8), 0x1234);

    soft_test_put(t, STACK + 16, 8, 0x77);
    STEP(t, 0xff, 0x74, 0x24, 0x08); /* push [rsp + 8]: the address before */
    assert_int_equal(top(t, 8), 0x77);
}

/* A POP whose store faults has not popped. */
static void test_pop_fault(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    st->gpr[CPU_RAX] = SOFT_TEST_RAM;
    STEP(t, 0x8f, 0x00);
    assert_int_equal(st->rip, HANDLER(VEC_PF));
    assert_int_equal(soft_test_get(t, st->gpr[CPU_RSP] + 32, 8), STACK); /* RSP in the frame */
}

static void test_pusha_popa(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    for (unsigned i = 0; i < 8; i++)
        if (i != CPU_RSP)
            st->gpr[i] = 0xabcd1100 + i;
    STEP_REAL(t, 0x60);
    assert_int_equal(st->gpr[CPU_RSP], SOFT_TEST_STACK_REAL - 16);
    assert_int_equal(top(t, 8), UINT64_C(0x6000110511061107));
    for (unsigned i = 0; i < 8; i++)
        if (i != CPU_RSP)
            st->gpr[i] = 0x12345678;
    STEP_REAL(t, 0x61);
    assert_int_equal(st->gpr[CPU_RSP], SOFT_TEST_STACK_REAL);
    assert_int_equal(st->gpr[CPU_RAX], 0x12341100);
    assert_int_equal(st->gpr[CPU_RDI], 0x12341107);
}

/* SP goes round at 64 KiB, and only SP. */
static void test_stack_of_16_bits(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    st->seg[CPU_SS].base = 0x20000;
    st->gpr[CPU_RSP] = 0xabcd0000;
    st->gpr[CPU_RAX] = 0x5678;
    STEP_REAL(t, 0x50);
    assert_int_equal(st->gpr[CPU_RSP], 0xabcdfffe);
    assert_int_equal(soft_test_get(t, 0x2fffe, 2), 0x5678);
    STEP_REAL(t, 0x5b);
    assert_int_equal(st->gpr[CPU_RSP], 0xabcd0000);
    assert_int_equal(st->gpr[CPU_RBX], 0x5678);
}

static void test_pop_segment(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    soft_test_put(t, STACK, 4, SEL_DATA2);
    STEP(t, 0x17); /* pop ss */
    assert_int_equal(st->seg[CPU_SS].selector, SEL_DATA2);
    assert_int_equal(st->gpr[CPU_RSP], STACK + 4);
    assert_int_equal(st->shadow, SHADOW_MOV_SS);

    soft_test_put(t, STACK + 4, 4, 0xff8);
    STEP(t, 0x1f); /* pop ds of a selector without a segment */
    assert_int_equal(st->rip, HANDLER(VEC_GP));
    assert_int_equal(top(t, 4), 0xff8);
    assert_int_equal(st->gpr[CPU_RSP], STACK + 4 - 16);
}

#define CHANGEABLE (RFLAGS_STATUS | RFLAGS_TF | RFLAGS_DF | RFLAGS_NT | RFLAGS_AC | RFLAGS_ID)

static void popf32(struct soft_test *t, uint32_t value)
{
    t->v->st.gpr[CPU_RSP] = STACK;
    soft_test_put(t, STACK, 4, value);
    STEP(t, 0x9d);
    assert_int_equal(t->v->st.rip, CODE + 1);
}

static void test_popf_privileges(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    popf32(t, 0xffffffff);
    assert_int_equal(st->rflags, RFLAGS_FIXED | CHANGEABLE | RFLAGS_IF | RFLAGS_IOPL);
    st->rflags &= ~RFLAGS_TF;
    popf32(t, 0);
    assert_int_equal(st->rflags, RFLAGS_FIXED);

    soft_test_user(t, false);
    t->v->st.rflags = RFLAGS_FIXED | RFLAGS_IF;
    popf32(t, 0x3000);
    assert_int_equal(st->rflags, RFLAGS_FIXED | RFLAGS_IF); /* neither IF nor IOPL */
    t->v->st.rflags = RFLAGS_FIXED | RFLAGS_IF | RFLAGS_IOPL;
    popf32(t, 0);
    assert_int_equal(st->rflags, RFLAGS_FIXED | RFLAGS_IOPL); /* IF, not IOPL */
}

static void test_pushf_hides(void **state)
{
    struct soft_test *t = test_of(state);

    t->v->st.rflags = RFLAGS_FIXED | RFLAGS_RF | RFLAGS_VIF | RFLAGS_CF;
    STEP(t, 0x9c);
    assert_int_equal(top(t, 4), RFLAGS_FIXED | RFLAGS_VIF | RFLAGS_CF);
}

static void test_v86_flags(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    soft_test_v86(t, 3);
    st->rflags |= RFLAGS_IF;
    STEP_REAL(t, 0x9c);
    assert_int_equal(soft_test_get(t, SOFT_TEST_STACK_REAL - 2, 2),
                     (RFLAGS_FIXED | RFLAGS_IF | RFLAGS_IOPL) & 0xffff);
    soft_test_put(t, SOFT_TEST_STACK_REAL - 2, 2, 0);
    STEP_REAL(t, 0x9d);
    assert_int_equal(st->rflags, RFLAGS_FIXED | RFLAGS_VM | RFLAGS_IOPL);

    st->rflags &= ~RFLAGS_IOPL;
    STEP_REAL(t, 0x9c);
    assert_int_equal(st->rip, HANDLER(VEC_GP));
}

static void test_v86_extensions(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    soft_test_v86(t, 0);
    st->cr4 |= CR4_VME;
    st->rflags |= RFLAGS_VIF;
    STEP_REAL(t, 0x9c); /* VIF shows as IF, IOPL as 3 */
    assert_int_equal(soft_test_get(t, SOFT_TEST_STACK_REAL - 2, 2),
                     RFLAGS_FIXED | RFLAGS_IF | RFLAGS_IOPL);
    soft_test_put(t, SOFT_TEST_STACK_REAL - 2, 2, RFLAGS_CF);
    STEP_REAL(t, 0x9d);
    assert_int_equal(st->rflags, RFLAGS_FIXED | RFLAGS_VM | RFLAGS_CF);
    st->gpr[CPU_RSP] -= 2;
    soft_test_put(t, SOFT_TEST_STACK_REAL - 2, 2, RFLAGS_IF);
    STEP_REAL(t, 0x9d);
    assert_int_equal(st->rflags, RFLAGS_FIXED | RFLAGS_VM | RFLAGS_VIF);

    /* 32 bits do not go */
    STEP_REAL(t, 0x66, 0x9c);
    assert_int_equal(st->rip, HANDLER(VEC_GP));
}

static void test_v86_pending(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    soft_test_v86(t, 0);
    st->cr4 |= CR4_VME;
    st->rflags |= RFLAGS_VIP;
    soft_test_put(t, SOFT_TEST_STACK_REAL, 2, RFLAGS_IF);
    STEP_REAL(t, 0x9d);
    assert_int_equal(st->rip, HANDLER(VEC_GP));
}

static void test_enter_leave(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    st->gpr[CPU_RBP] = DATA + 0x100;
    soft_test_put(t, DATA + 0xf8, 8, 0x1111);
    soft_test_put(t, DATA + 0xf0, 8, 0x2222);
    STEP(t, 0xc8, 0x20, 0x00, 0x03); /* enter 0x20, 3 */
    assert_int_equal(st->gpr[CPU_RBP], STACK - 8);
    assert_int_equal(st->gpr[CPU_RSP], STACK - 32 - 0x20);
    assert_int_equal(soft_test_get(t, STACK - 8, 8), DATA + 0x100);
    assert_int_equal(soft_test_get(t, STACK - 16, 8), 0x1111);
    assert_int_equal(soft_test_get(t, STACK - 24, 8), 0x2222);
    assert_int_equal(soft_test_get(t, STACK - 32, 8), STACK - 8);
    STEP(t, 0xc9);
    assert_int_equal(st->gpr[CPU_RBP], DATA + 0x100);
    assert_int_equal(st->gpr[CPU_RSP], STACK);

    STEP(t, 0xc8, 0xff, 0xff, 0x20); /* levels count modulo 32 */
    assert_int_equal(st->gpr[CPU_RSP], STACK - 8 - 0xffff);
}

static void test_call_ret(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    STEP(t, 0xe8, 0xf0, 0xff, 0xff, 0xff);
    assert_int_equal(st->rip, CODE + 5 - 16);
    assert_int_equal(top(t, 8), CODE + 5);
    STEP(t, 0xc2, 0x10, 0x00);
    assert_int_equal(st->rip, CODE + 5);
    assert_int_equal(st->gpr[CPU_RSP], STACK + 16);
}

/* A bad target faults at the branch, with nothing pushed or popped. */
static void test_branch_not_canonical(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    st->gpr[CPU_RAX] = UINT64_C(0x800000000000);
    soft_test_put(t, STACK - 8, 8, 0x55);
    STEP(t, 0xff, 0xd0);
    assert_int_equal(st->rip, HANDLER(VEC_GP));
    assert_int_equal(soft_test_get(t, st->gpr[CPU_RSP] + 8, 8), CODE);
    assert_int_equal(soft_test_get(t, st->gpr[CPU_RSP] + 32, 8), STACK);

    st->gpr[CPU_RSP] = STACK;
    soft_test_put(t, STACK, 8, UINT64_C(0x800000000000));
    STEP(t, 0xc3);
    assert_int_equal(st->rip, HANDLER(VEC_GP));
    assert_int_equal(soft_test_get(t, st->gpr[CPU_RSP] + 32, 8), STACK);
}

static void test_branch_beyond_limit(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    st->seg[CPU_CS].limit = CODE + 0x10;
    STEP(t, 0xeb, 0x0e);
    assert_int_equal(st->rip, CODE + 0x10);
    STEP(t, 0xeb, 0x0f);
    assert_int_equal(st->rip, HANDLER(VEC_GP));
}

/* A 16-bit jump in 32-bit code cuts EIP. */
static void test_branch_16bit_operand(void **state)
{
    struct soft_test *t = test_of(state);

    STEP(t, 0x66, 0xe9, 0x00, 0x10);
    assert_int_equal(t->v->st.rip, (CODE + 4 + 0x1000) & 0xffff);
}

/* SETcc of the host says whether cc holds. */
#define CONDITION(cc)                                                                              \
    static bool host_##cc(uint64_t flags)                                                          \
    {                                                                                              \
        bool holds;                                                                                \
        __asm__("sub $128, %%rsp\n\tpush %1\n\tpopfq\n\tset" #cc " %0\n\tlea 128(%%rsp), %%rsp"    \
                : "=r"(holds)                                                                      \
                : "r"(flags)                                                                       \
                : "cc", "memory");                                                                 \
        return holds;                                                                              \
    }
CONDITION(o)
CONDITION(no)
CONDITION(b)
CONDITION(ae)
CONDITION(e)
CONDITION(ne)
CONDITION(be)
CONDITION(a)
CONDITION(s)
CONDITION(ns)
CONDITION(p)
CONDITION(np)
CONDITION(l)
CONDITION(ge)
CONDITION(le)
CONDITION(g)

static void test_conditions(void **state)
{
    static bool (*const conditions[16])(uint64_t flags) = {
        host_o, host_no, host_b, host_ae, host_e, host_ne, host_be, host_a,
        host_s, host_ns, host_p, host_np, host_l, host_ge, host_le, host_g,
    };
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    for (unsigned cc = 0; cc < 16; cc++)
        for (uint64_t f = 0; f < 0x1000; f++) {
            if (f & ~RFLAGS_STATUS)
                continue;
            st->rflags = RFLAGS_FIXED | f;
            STEP(t, 0x70 | cc, 0x10);
            assert_int_equal(st->rip, conditions[cc](RFLAGS_FIXED | f) ? CODE + 0x12 : CODE + 2);
        }
}

static void test_loops(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    st->gpr[CPU_RCX] = 0x100000000;
    STEP(t, 0x67, 0xe2, 0x10); /* loop by ecx: 0 - 1 */
    assert_int_equal(st->rip, CODE + 3 + 0x10);
    assert_int_equal(st->gpr[CPU_RCX], 0xffffffff);
    st->gpr[CPU_RCX] = 1;
    STEP(t, 0xe2, 0x10);
    assert_int_equal(st->rip, CODE + 2);
    assert_int_equal(st->gpr[CPU_RCX], 0);
    STEP(t, 0xe3, 0x10); /* jrcxz */
    assert_int_equal(st->rip, CODE + 0x12);
    st->gpr[CPU_RCX] = 0x100000000;
    STEP(t, 0xe3, 0x10);
    assert_int_equal(st->rip, CODE + 2);
    STEP(t, 0x67, 0xe3, 0x10); /* jecxz */
    assert_int_equal(st->rip, CODE + 3 + 0x10);

    st->rflags = RFLAGS_FIXED | RFLAGS_ZF;
    st->gpr[CPU_RCX] = 5;
    STEP(t, 0xe1, 0x10); /* loope */
    assert_int_equal(st->rip, CODE + 0x12);
    STEP(t, 0xe0, 0x10); /* loopne */
    assert_int_equal(st->rip, CODE + 2);
    assert_int_equal(st->gpr[CPU_RCX], 3);
}

/* BOUND, XLAT, MOV with an offset, bit strings. */
static void test_implicit_operands(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    soft_test_put(t, DATA, 8, UINT64_C(0x00000005fffffffe)); /* -2 .. 5 */
    st->gpr[CPU_RBX] = DATA;
    st->gpr[CPU_RAX] = 0xfffffffe;
    STEP(t, 0x62, 0x03);
    assert_int_equal(st->rip, CODE + 2);
    st->gpr[CPU_RAX] = 6;
    STEP(t, 0x62, 0x03);
    assert_int_equal(st->rip, HANDLER(VEC_BR));

    st->gpr[CPU_RAX] = 0x1204;
    STEP(t, 0xd7); /* xlat */
    assert_int_equal(st->gpr[CPU_RAX], 0x1205);

    STEP(t, 0xa1, LE32(DATA)); /* mov eax, [offset] */
    assert_int_equal(st->gpr[CPU_RAX], 0xfffffffe);
    STEP(t, 0x66, 0xa3, LE32(DATA + 5));
    assert_int_equal(soft_test_get(t, DATA, 8), UINT64_C(0x00fffe05fffffffe));

    st->gpr[CPU_RAX] = (uint32_t)-31; /* bit 1 of the doubleword before */
    soft_test_put(t, DATA - 4, 4, 0);
    STEP(t, 0x0f, 0xab, 0x03); /* bts [ebx], eax */
    assert_false(st->rflags & RFLAGS_CF);
    assert_int_equal(soft_test_get(t, DATA - 4, 4), 2);
    STEP(t, 0x0f, 0xb3, 0x03);
    assert_true(st->rflags & RFLAGS_CF);
    assert_int_equal(soft_test_get(t, DATA - 4, 4), 0);
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

static int set_up_real(void **state)
{
    *state = soft_test_create(SOFT_TEST_REAL);
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
        TEST(test_push_immediates, long),
        TEST(test_stack_pointer_operands, long),
        TEST(test_pop_fault, long),
        TEST(test_pusha_popa, real),
        TEST(test_stack_of_16_bits, real),
        TEST(test_pop_segment, protected),
        TEST(test_popf_privileges, protected),
        TEST(test_pushf_hides, protected),
        TEST(test_v86_flags, protected),
        TEST(test_v86_extensions, protected),
        TEST(test_v86_pending, protected),
        TEST(test_enter_leave, long),
        TEST(test_call_ret, long),
        TEST(test_branch_not_canonical, long),
        TEST(test_branch_beyond_limit, protected),
        TEST(test_branch_16bit_operand, protected),
        TEST(test_conditions, long),
        TEST(test_loops, long),
        TEST(test_implicit_operands, protected),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
