/*
 * step_test.c - what happens at instruction boundaries: shadows, single-stepping, breakpoints,
 * RF, and the order of interrupts
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>

#include "engine/soft/debug.h"
#include "engine/soft/testing.h"

#define CODE SOFT_TEST_CODE
#define HANDLER(n) (SOFT_TEST_HANDLERS + 16u * (n))

static struct soft_test *test_of(void **state)
{
    return *state;
}

static void put_code(struct soft_test *t, const void *code, size_t size)
{
    memcpy(t->ram + CODE, code, size);
    t->v->st.rip = CODE;
}

#define PUT_CODE(t, ...)                                                                           \
    put_code(t, (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

static uint64_t frame_rip(struct soft_test *t)
{
    return soft_test_get(t, t->v->st.gpr[CPU_RSP], 8);
}

static uint64_t frame_flags(struct soft_test *t)
{
    return soft_test_get(t, t->v->st.gpr[CPU_RSP] + 16, 8);
}

static void test_single_step(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    PUT_CODE(t, 0x90, 0x90);
    st->rflags |= RFLAGS_TF;
    soft_step(t->v);
    assert_int_equal(st->rip, HANDLER(VEC_DB));
    assert_int_equal(frame_rip(t), CODE + 1);
    assert_int_equal(frame_flags(t), RFLAGS_FIXED | RFLAGS_TF);
    assert_true(st->dr6 & DR6_BS);
    assert_false(st->rflags & RFLAGS_TF);
}

/* POPF: the trap comes after the instruction that follows, and after the POPF that clears TF. */
static void test_popf_sets_tf(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    PUT_CODE(t, 0x9d, 0x9d, 0x90);
    st->gpr[CPU_RSP] -= 16;
    soft_test_put(t, st->gpr[CPU_RSP], 8, RFLAGS_TF);
    soft_test_put(t, st->gpr[CPU_RSP] + 8, 8, 0);
    soft_step(t->v);
    assert_int_equal(st->rip, CODE + 1);
    soft_step(t->v);
    assert_int_equal(st->rip, HANDLER(VEC_DB));
    assert_int_equal(frame_rip(t), CODE + 2);
    assert_false(frame_flags(t) & RFLAGS_TF);
}

/* MOV SS holds back the single-step trap of its own boundary. */
static void test_mov_ss_shadow(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    PUT_CODE(t, 0x8e, 0xd0, 0x90, 0x90); /* mov ss, eax */
    st->gpr[CPU_RAX] = SEL_DATA;
    st->rflags |= RFLAGS_TF | RFLAGS_IF;
    atomic_store(&t->pins.bits, PIN_INTR | PIN_NMI);
    soft_step(t->v);
    assert_int_equal(st->rip, CODE + 2);
    assert_int_equal(st->shadow, SHADOW_MOV_SS);
    assert_false(soft_take_interrupts(t->v));
    soft_step(t->v);
    assert_int_equal(st->rip, HANDLER(VEC_DB));
    assert_int_equal(frame_rip(t), CODE + 3);
    assert_int_equal(st->shadow, 0);
}

static void test_sti_shadow(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    PUT_CODE(t, 0xfb, 0xf4, 0x90); /* sti; hlt */
    t->interrupt_vector = 0x40;
    atomic_store(&t->pins.bits, PIN_INTR);
    assert_false(soft_take_interrupts(t->v));
    soft_step(t->v);
    assert_false(soft_take_interrupts(t->v));
    soft_step(t->v);
    assert_int_equal(st->run_state, CPU_HALTED);
    assert_true(soft_take_interrupts(t->v));
    assert_int_equal(st->run_state, CPU_RUNNING);
    assert_int_equal(st->rip, HANDLER(0x40));
    assert_int_equal(frame_rip(t), CODE + 2);
    assert_true(frame_flags(t) & RFLAGS_IF);
    assert_false(st->rflags & RFLAGS_IF);
    assert_int_equal(atomic_load(&t->pins.bits), 0);
}

static void test_nmi(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    PUT_CODE(t, 0x90);
    st->rflags |= RFLAGS_IF;
    st->run_state = CPU_HALTED;
    t->interrupt_vector = 0x40;
    atomic_store(&t->pins.bits, PIN_NMI | PIN_INTR);
    assert_true(soft_take_interrupts(t->v));
    assert_int_equal(st->rip, HANDLER(VEC_NMI));
    assert_int_equal(st->run_state, CPU_RUNNING);
    assert_int_equal(st->is_nmi_blocked, 1);
    atomic_fetch_or(&t->pins.bits, PIN_NMI);
    assert_false(soft_take_interrupts(t->v));      /* IF was cleared by the gate */
    soft_test_put(t, HANDLER(VEC_NMI), 2, 0xcf48); /* iretq */
    soft_step(t->v);
    assert_int_equal(st->rip, CODE);
    assert_int_equal(st->is_nmi_blocked, 0);
    assert_true(soft_take_interrupts(t->v));
    assert_int_equal(st->rip, HANDLER(VEC_NMI));
    assert_int_equal(atomic_load(&t->pins.bits), PIN_INTR);
}

static void test_spurious_interrupt(void **state)
{
    struct soft_test *t = test_of(state);

    PUT_CODE(t, 0x90);
    t->v->st.rflags |= RFLAGS_IF;
    t->v->st.run_state = CPU_HALTED;
    t->interrupt_vector = -1;
    atomic_store(&t->pins.bits, PIN_INTR);
    assert_false(soft_take_interrupts(t->v));
    assert_int_equal(t->v->st.run_state, CPU_HALTED);
    assert_int_equal(t->v->st.rip, CODE);
}

static void test_code_breakpoint(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    PUT_CODE(t, 0x90, 0x90);
    st->dr[2] = CODE;
    st->dr7 = DR7_FIXED | 2 << 4; /* G2, execute */
    soft_debug_changed(t->v);
    soft_step(t->v);
    assert_int_equal(st->rip, HANDLER(VEC_DB));
    assert_int_equal(frame_rip(t), CODE);
    assert_int_equal(frame_flags(t), RFLAGS_FIXED);
    assert_int_equal(st->dr6 & 0xf, 4);
    /* with RF the instruction passes, and takes RF down */
    st->rip = CODE;
    st->rflags |= RFLAGS_RF;
    soft_step(t->v);
    assert_int_equal(st->rip, CODE + 1);
    assert_false(st->rflags & RFLAGS_RF);
}

/* IRET brings RF back for the instruction it returns to. */
static void test_iret_restores_rf(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    PUT_CODE(t, 0x90);
    st->dr[0] = CODE;
    st->dr7 = DR7_FIXED | 1;
    soft_debug_changed(t->v);
    soft_step(t->v);
    assert_int_equal(st->rip, HANDLER(VEC_DB));
    soft_test_put(t, HANDLER(VEC_DB), 2, 0xcf48);
    soft_test_put(t, st->gpr[CPU_RSP] + 16, 8, frame_flags(t) | RFLAGS_RF);
    soft_step(t->v);
    assert_int_equal(st->rip, CODE);
    assert_true(st->rflags & RFLAGS_RF);
    soft_step(t->v);
    assert_int_equal(st->rip, CODE + 1);
}

static void test_data_breakpoint(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    PUT_CODE(t, 0x89, 0x03, 0x90); /* mov [rbx], eax */
    st->gpr[CPU_RBX] = SOFT_TEST_DATA;
    st->dr[3] = SOFT_TEST_DATA + 2;
    st->dr7 = DR7_FIXED | 1 << 6 | 1u << 28; /* L3, write, one byte */
    soft_debug_changed(t->v);
    soft_step(t->v);
    assert_int_equal(st->rip, HANDLER(VEC_DB));
    assert_int_equal(frame_rip(t), CODE + 2);
    assert_int_equal(st->dr6 & 0xf, 8);
    assert_int_equal(st->pending_dbg, 0);
}

/* A fault cancels the traps of its instruction; the restart raises them again. */
static void test_fault_before_trap(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    PUT_CODE(t, 0x0f, 0x0b); /* ud2 */
    st->rflags |= RFLAGS_TF;
    soft_step(t->v);
    assert_int_equal(st->rip, HANDLER(VEC_UD));
    assert_int_equal(frame_rip(t), CODE);
    assert_int_equal(frame_flags(t), RFLAGS_FIXED | RFLAGS_TF | RFLAGS_RF);
    assert_false(st->dr6 & DR6_BS);
    assert_int_equal(st->pending_dbg, 0);
}

static void test_int_clears_tf(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    PUT_CODE(t, 0xcd, 0x80);
    st->rflags |= RFLAGS_TF;
    soft_step(t->v);
    assert_int_equal(st->rip, HANDLER(0x80));
    assert_int_equal(frame_rip(t), CODE + 2);
    soft_step(t->v);
    assert_int_equal(st->run_state, CPU_HALTED); /* no trap in the handler */
}

/* With TF a repeated string instruction traps after each iteration, RF set meanwhile. */
static void test_repeat_single_step(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    PUT_CODE(t, 0xf3, 0xaa, 0x90); /* rep stosb */
    st->gpr[CPU_RCX] = 2;
    st->gpr[CPU_RDI] = SOFT_TEST_DATA;
    st->rflags |= RFLAGS_TF;
    soft_step(t->v);
    assert_int_equal(st->rip, HANDLER(VEC_DB));
    assert_int_equal(frame_rip(t), CODE);
    assert_true(frame_flags(t) & RFLAGS_RF);
    assert_int_equal(st->gpr[CPU_RCX], 1);
    st->rip = CODE;
    st->rflags |= RFLAGS_TF | RFLAGS_RF;
    soft_step(t->v);
    assert_int_equal(frame_rip(t), CODE + 2);
    assert_false(frame_flags(t) & RFLAGS_RF);
    assert_int_equal(st->gpr[CPU_RCX], 0);
}

static void test_pending_exception(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    PUT_CODE(t, 0x90);
    st->is_exception_pending = 1;
    st->exception_vector = VEC_GP;
    st->exception_has_error = 1;
    st->exception_error = 0x10;
    assert_true(soft_take_interrupts(t->v));
    assert_int_equal(st->rip, HANDLER(VEC_GP));
    assert_int_equal(soft_test_get(t, st->gpr[CPU_RSP], 8), 0x10);
    assert_int_equal(st->is_exception_pending, 0);
}

static void test_fetch_fault(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    st->rip = UINT64_C(0x7f0000000000);
    soft_step(t->v);
    assert_int_equal(st->rip, HANDLER(VEC_PF));
    assert_int_equal(st->cr2, UINT64_C(0x7f0000000000));
    assert_int_equal(soft_test_get(t, st->gpr[CPU_RSP] + 8, 8), UINT64_C(0x7f0000000000));
    st->rip = UINT64_C(0x800000000000);
    soft_step(t->v);
    assert_int_equal(st->rip, HANDLER(VEC_GP));
}

static void test_alignment_flag(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    soft_test_user(t, true);
    PUT_CODE(t, 0x9d, 0x90); /* popf */
    st->cr0 |= CR0_AM;
    st->gpr[CPU_RSP] -= 8;
    soft_test_put(t, st->gpr[CPU_RSP], 8, RFLAGS_AC);
    soft_step(t->v);
    assert_true(t->v->is_ac_set);
}

static int set_up(void **state)
{
    struct soft_test *t = soft_test_create(SOFT_TEST_LONG);

    soft_guest_enter(t->v);
    *state = t;
    return 0;
}

static int tear_down(void **state)
{
    struct soft_test *t = *state;

    if (t->v->is_fpu_live)
        soft_fpu_save(t->v);
    soft_guest_leave(t->v);
    soft_test_destroy(t);
    return 0;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_single_step),
        TEST(test_popf_sets_tf),
        TEST(test_mov_ss_shadow),
        TEST(test_sti_shadow),
        TEST(test_nmi),
        TEST(test_spurious_interrupt),
        TEST(test_code_breakpoint),
        TEST(test_iret_restores_rf),
        TEST(test_data_breakpoint),
        TEST(test_fault_before_trap),
        TEST(test_int_clears_tf),
        TEST(test_repeat_single_step),
        TEST(test_pending_exception),
        TEST(test_fetch_fault),
        TEST(test_alignment_flag),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
