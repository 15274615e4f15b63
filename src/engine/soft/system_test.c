/*
 * system_test.c - control and debug registers, descriptor tables, MSRs, ports, interrupt flag,
 * software interrupts, faults included
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

static void expect_fault(struct soft_test *t, int vector, uint32_t error)
{
    assert_int_equal(soft_test_vector(t), vector);
    assert_int_equal(soft_test_error(t), error);
    soft_test_destroy(t);
}

static void expect_undefined(struct soft_test *t)
{
    assert_int_equal(soft_test_vector(t), VEC_UD);
    soft_test_destroy(t);
}

/* ---- control registers ---- */

static void cr0_rules(void **state)
{
    static const uint64_t refused[] = {
        CR0_PE | CR0_PG | CR0_NW, CR0_PG, BIT(32) | CR0_PE | CR0_PG,
        CR0_PE, /* leaving paging from 64-bit mode */
    };

    for (unsigned i = 0; i < ARRAY_SIZE(refused); i++) {
        struct soft_test *t = start(SOFT_TEST_LONG);
        uint64_t before = t->v->st.cr0;
        t->v->st.gpr[CPU_RAX] = refused[i];
        SOFT_TEST_RUN(t, 2, 0x0f, 0x22, 0xc0);
        assert_int_equal(t->v->st.cr0, before);
        expect_fault(t, VEC_GP, 0);
    }
}

static void cr0_enters_long_mode(void **state)
{
    struct soft_test *t = start(SOFT_TEST_PROTECTED);
    struct cpu_state *st = &t->v->st;
    uint64_t table = SOFT_TEST_TABLES;

    soft_test_put(t, table, 8, (table + 0x1000) | 7);
    soft_test_put(t, table + 0x1000, 8, (table + 0x2000) | 7);
    soft_test_put(t, table + 0x2000, 8, 0x87);
    st->cr3 = table;
    st->cr4 = CR4_PAE;
    st->efer = EFER_LME;
    st->gpr[CPU_RAX] = CR0_PE | CR0_PG | CR0_ET;
    SOFT_TEST_RUN(t, 2, 0x0f, 0x22, 0xc0, 0x0f, 0x20, 0xc3); /* mov cr0, eax; mov ebx, cr0 */
    assert_true(st->efer & EFER_LMA);
    assert_int_equal(st->gpr[CPU_RBX], CR0_PE | CR0_PG | CR0_ET);
    assert_int_equal(st->rip, SOFT_TEST_CODE + 6);

    /* and back: compatibility mode may turn paging off */
    st->gpr[CPU_RAX] = CR0_PE | CR0_ET;
    SOFT_TEST_RUN(t, 1, 0x0f, 0x22, 0xc0);
    assert_false(st->efer & EFER_LMA);
    assert_true(st->efer & EFER_LME);
    soft_test_destroy(t);

    t = start(SOFT_TEST_PROTECTED); /* LME without PAE */
    t->v->st.efer = EFER_LME;
    t->v->st.gpr[CPU_RAX] = CR0_PE | CR0_PG;
    SOFT_TEST_RUN(t, 2, 0x0f, 0x22, 0xc0);
    expect_fault(t, VEC_GP, 0);
}

static void cr4_rules(void **state)
{
    static const uint64_t refused[] = {0, CR4_PAE | BIT(63), CR4_PAE | BIT(13), CR4_PAE | BIT(15)};
    struct soft_test *t;

    for (unsigned i = 0; i < ARRAY_SIZE(refused); i++) {
        t = start(SOFT_TEST_LONG);
        t->v->st.gpr[CPU_RAX] = refused[i];
        SOFT_TEST_RUN(t, 2, 0x0f, 0x22, 0xe0);
        assert_int_equal(t->v->st.cr4, CR4_PAE);
        expect_fault(t, VEC_GP, 0);
    }
    t = start(SOFT_TEST_LONG);
    t->v->st.gpr[CPU_RAX] = CR4_PAE | CR4_PGE | CR4_OSFXSR;
    SOFT_TEST_RUN(t, 2, 0x0f, 0x22, 0xe0, 0x0f, 0x20, 0xe3);
    assert_int_equal(t->v->st.gpr[CPU_RBX], CR4_PAE | CR4_PGE | CR4_OSFXSR);
    soft_test_destroy(t);
}

static void cr4_pcide_rules(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);

    if (!cpu_model_has(&t->model, CPU_FEATURE_PCID)) {
        soft_test_destroy(t);
        skip();
    }
    t->v->st.cr3 |= 0x18; /* PCD and PWT: not a PCID of 0 */
    t->v->st.gpr[CPU_RAX] = CR4_PAE | CR4_PCIDE;
    SOFT_TEST_RUN(t, 2, 0x0f, 0x22, 0xe0);
    expect_fault(t, VEC_GP, 0);

    t = start(SOFT_TEST_LONG);
    t->v->st.gpr[CPU_RAX] = CR4_PAE | CR4_PCIDE;
    t->v->st.gpr[CPU_RBX] = BIT(63) | SOFT_TEST_TABLES | 5;
    /* mov cr4, rax; mov cr3, rbx; mov rcx, cr3: bit 63 reads as 0 */
    SOFT_TEST_RUN(t, 3, 0x0f, 0x22, 0xe0, 0x0f, 0x22, 0xdb, 0x0f, 0x20, 0xd9);
    assert_int_equal(t->v->st.gpr[CPU_RCX], SOFT_TEST_TABLES | 5);
    soft_test_destroy(t);
}

static void cr3_reserved_bits(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);

    t->v->st.gpr[CPU_RAX] = SOFT_TEST_TABLES | BIT(63);
    SOFT_TEST_RUN(t, 2, 0x0f, 0x22, 0xd8);
    expect_fault(t, VEC_GP, 0);
}

static void cr_needs_privilege(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);

    soft_test_user(t, true);
    SOFT_TEST_RUN(t, 2, 0x0f, 0x20, 0xc0);
    expect_fault(t, VEC_GP, 0);

    t = start(SOFT_TEST_LONG); /* CR1 */
    SOFT_TEST_RUN(t, 2, 0x0f, 0x20, 0xc8);
    expect_undefined(t);
}

static void cr8_is_the_hosts(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);

    t->v->st.gpr[CPU_RAX] = 9;
    SOFT_TEST_RUN(t, 2, 0x44, 0x0f, 0x22, 0xc0, 0x44, 0x0f, 0x20, 0xc3);
    assert_int_equal(t->cr8, 9);
    assert_int_equal(t->v->st.gpr[CPU_RBX], 9);
    soft_test_destroy(t);

    t = start(SOFT_TEST_LONG);
    t->v->st.gpr[CPU_RAX] = 16;
    SOFT_TEST_RUN(t, 2, 0x44, 0x0f, 0x22, 0xc0);
    expect_fault(t, VEC_GP, 0);
}

static void lmsw_sets_but_keeps_pe(void **state)
{
    struct soft_test *t = start(SOFT_TEST_PROTECTED);

    t->v->st.gpr[CPU_RAX] = CR0_TS | 0xff00;
    /* lmsw ax; smsw ebx; clts; smsw cx */
    SOFT_TEST_RUN(t, 4, 0x0f, 0x01, 0xf0, 0x0f, 0x01, 0xe3, 0x0f, 0x06, 0x66, 0x0f, 0x01, 0xe1);
    assert_int_equal(t->v->st.gpr[CPU_RBX], CR0_PE | CR0_TS | CR0_ET | CR0_NE);
    assert_int_equal(t->v->st.gpr[CPU_RCX], CR0_PE | CR0_ET | CR0_NE);
    soft_test_destroy(t);
}

/* ---- debug registers ---- */

static void dr_fixed_bits(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);

    t->v->st.gpr[CPU_RAX] = 0;
    /* mov dr6, rax; mov rbx, dr6; mov dr7, rax; mov rcx, dr5 */
    SOFT_TEST_RUN(t, 4, 0x0f, 0x23, 0xf0, 0x0f, 0x21, 0xf3, 0x0f, 0x23, 0xf8, 0x0f, 0x21, 0xe9);
    assert_int_equal(t->v->st.gpr[CPU_RBX], DR6_FIXED);
    assert_int_equal(t->v->st.gpr[CPU_RCX], DR7_FIXED);
    soft_test_destroy(t);
}

static void dr_faults(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);

    t->v->st.gpr[CPU_RAX] = BIT(32);
    SOFT_TEST_RUN(t, 2, 0x0f, 0x23, 0xf8);
    expect_fault(t, VEC_GP, 0);

    t = start(SOFT_TEST_LONG);
    t->v->st.cr4 |= CR4_DE;
    SOFT_TEST_RUN(t, 2, 0x0f, 0x21, 0xe1);
    expect_undefined(t);

    t = start(SOFT_TEST_LONG);
    soft_test_user(t, true);
    SOFT_TEST_RUN(t, 2, 0x0f, 0x21, 0xf8);
    expect_fault(t, VEC_GP, 0);

    t = start(SOFT_TEST_LONG); /* general detect: a fault, and GD is cleared by it */
    t->v->st.dr7 |= DR7_GD;
    SOFT_TEST_RUN(t, 2, 0x0f, 0x21, 0xf8);
    assert_int_equal(soft_test_vector(t), VEC_DB);
    assert_int_equal(soft_test_get(t, t->v->st.gpr[CPU_RSP], 8), SOFT_TEST_CODE);
    assert_true(t->v->st.dr6 & DR6_BD);
    assert_false(t->v->st.dr7 & DR7_GD);
    soft_test_destroy(t);
}

/* ---- tables ---- */

static void gdtr_idtr(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);

    soft_test_put(t, SOFT_TEST_DATA, 2, 0x123);
    soft_test_put(t, SOFT_TEST_DATA + 2, 8, UINT64_C(0xffff800000001000));
    /* lidt [rax]; sidt [rbx] */
    t->v->st.gpr[CPU_RAX] = SOFT_TEST_DATA;
    t->v->st.gpr[CPU_RBX] = SOFT_TEST_DATA + 0x100;
    SOFT_TEST_RUN(t, 2, 0x0f, 0x01, 0x18, 0x0f, 0x01, 0x0b);
    assert_int_equal(t->v->st.idtr.limit, 0x123);
    assert_int_equal(t->v->st.idtr.base, UINT64_C(0xffff800000001000));
    assert_int_equal(soft_test_get(t, SOFT_TEST_DATA + 0x100, 2), 0x123);
    assert_int_equal(soft_test_get(t, SOFT_TEST_DATA + 0x102, 8), UINT64_C(0xffff800000001000));
    soft_test_destroy(t);

    t = start(SOFT_TEST_LONG);
    soft_test_put(t, SOFT_TEST_DATA + 2, 8, NON_CANONICAL);
    t->v->st.gpr[CPU_RAX] = SOFT_TEST_DATA;
    SOFT_TEST_RUN(t, 2, 0x0f, 0x01, 0x10);
    assert_int_equal(t->v->st.gdtr.base, SOFT_TEST_GDT);
    expect_fault(t, VEC_GP, 0);
}

static void umip(void **state)
{
    static const uint8_t modrm[][3] = {
        {0x0f, 0x01, 0x00}, {0x0f, 0x01, 0x08}, {0x0f, 0x01, 0xe0},
        {0x0f, 0x00, 0xc0}, {0x0f, 0x00, 0xc8},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(modrm); i++) {
        struct soft_test *t = start(SOFT_TEST_LONG);
        soft_test_user(t, true);
        t->v->st.gpr[CPU_RAX] = SOFT_TEST_DATA;
        soft_test_run(t, modrm[i], 3, 1);
        assert_int_equal(t->v->st.rip, SOFT_TEST_CODE + 3); /* allowed without UMIP */
        t->v->st.rip = SOFT_TEST_CODE;
        t->v->st.gpr[CPU_RAX] = SOFT_TEST_DATA;
        t->v->st.cr4 |= CR4_UMIP;
        t->v->is_mode_stale = 1;
        soft_test_run(t, modrm[i], 3, 2);
        expect_fault(t, VEC_GP, 0);
    }
}

static void ltr_and_lldt(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);

    soft_test_descriptor(t, SEL_TSS2, 0x4000, 0x67, 0x89);
    soft_test_put(t, SOFT_TEST_GDT + SEL_TSS2 + 8, 8, 0xffff8000);
    soft_test_descriptor(t, SEL_LDT, 0x5000, 0xff, 0x82);
    soft_test_put(t, SOFT_TEST_GDT + SEL_LDT + 8, 8, 0);
    t->v->st.gpr[CPU_RAX] = SEL_TSS2;
    t->v->st.gpr[CPU_RBX] = SEL_LDT;
    /* ltr ax; lldt bx; str ecx; sldt edx */
    SOFT_TEST_RUN(t, 4, 0x0f, 0x00, 0xd8, 0x0f, 0x00, 0xd3, 0x0f, 0x00, 0xc9, 0x0f, 0x00, 0xc2);
    assert_int_equal(t->v->st.seg[CPU_TR].base, UINT64_C(0xffff800000004000));
    assert_int_equal(t->v->st.seg[CPU_TR].attr & SEG_TYPE_MASK, SOFT_TYPE_TSS32_BUSY);
    assert_int_equal(soft_test_get(t, SOFT_TEST_GDT + SEL_TSS2 + 5, 1), 0x8b);
    assert_int_equal(t->v->st.seg[CPU_LDTR].base, 0x5000);
    assert_int_equal(t->v->st.gpr[CPU_RCX], SEL_TSS2);
    assert_int_equal(t->v->st.gpr[CPU_RDX], SEL_LDT);
    soft_test_destroy(t);

    t = start(SOFT_TEST_LONG); /* busy already */
    t->v->st.gpr[CPU_RAX] = SEL_TSS;
    SOFT_TEST_RUN(t, 2, 0x0f, 0x00, 0xd8);
    expect_fault(t, VEC_GP, SEL_TSS);

    t = start(SOFT_TEST_LONG);
    t->v->st.gpr[CPU_RAX] = 0;
    SOFT_TEST_RUN(t, 2, 0x0f, 0x00, 0xd8);
    expect_fault(t, VEC_GP, 0);

    t = start(SOFT_TEST_REAL);
    SOFT_TEST_RUN(t, 2, 0x0f, 0x00, 0xd8);
    expect_undefined(t);
}

static void lar_lsl_verr_verw(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);
    struct cpu_state *st = &t->v->st;

    st->gpr[CPU_RCX] = SEL_USER_DATA;
    /* lar eax, ecx; lsl ebx, ecx; verw cx */
    SOFT_TEST_RUN(t, 3, 0x0f, 0x02, 0xc1, 0x0f, 0x03, 0xd9, 0x0f, 0x00, 0xe9);
    assert_int_equal(st->gpr[CPU_RAX], 0xc0f300);
    assert_int_equal(st->gpr[CPU_RBX], 0xffffffff);
    assert_true(st->rflags & RFLAGS_ZF);

    st->gpr[CPU_RCX] = 0;
    SOFT_TEST_RUN(t, 1, 0x0f, 0x02, 0xc1);
    assert_false(st->rflags & RFLAGS_ZF);
    assert_int_equal(st->gpr[CPU_RAX], 0xc0f300);

    st->gpr[CPU_RCX] = SEL_READ_ONLY;
    SOFT_TEST_RUN(t, 1, 0x0f, 0x00, 0xe9); /* verw */
    assert_false(st->rflags & RFLAGS_ZF);
    SOFT_TEST_RUN(t, 1, 0x0f, 0x00, 0xe1); /* verr */
    assert_true(st->rflags & RFLAGS_ZF);

    soft_test_user(t, true);
    st->gpr[CPU_RCX] = SEL_DATA; /* more privileged than the caller */
    SOFT_TEST_RUN(t, 1, 0x0f, 0x03, 0xd9);
    assert_false(st->rflags & RFLAGS_ZF);
    soft_test_destroy(t);
}

static void arpl(void **state)
{
    struct soft_test *t = start(SOFT_TEST_PROTECTED);

    t->v->st.gpr[CPU_RAX] = 0x20;
    t->v->st.gpr[CPU_RBX] = 3;
    SOFT_TEST_RUN(t, 1, 0x63, 0xd8);
    assert_int_equal(t->v->st.gpr[CPU_RAX], 0x23);
    assert_true(t->v->st.rflags & RFLAGS_ZF);
    SOFT_TEST_RUN(t, 1, 0x63, 0xd8);
    assert_false(t->v->st.rflags & RFLAGS_ZF);
    soft_test_destroy(t);
}

static void mov_sreg_and_lss(void **state)
{
    struct soft_test *t = start(SOFT_TEST_PROTECTED);
    struct cpu_state *st = &t->v->st;

    st->gpr[CPU_RAX] = SEL_DATA2;
    /* mov fs, ax; mov ebx, fs; lss esp, [200000h] */
    soft_test_put(t, SOFT_TEST_DATA, 4, 0x70000);
    soft_test_put(t, SOFT_TEST_DATA + 4, 2, SEL_DATA2);
    SOFT_TEST_RUN(t, 3, 0x8e, 0xe0, 0x8c, 0xe3, 0x0f, 0xb2, 0x25, LE32(SOFT_TEST_DATA));
    assert_int_equal(st->seg[CPU_FS].selector, SEL_DATA2);
    assert_int_equal(st->gpr[CPU_RBX], SEL_DATA2);
    assert_int_equal(st->gpr[CPU_RSP], 0x70000);
    assert_int_equal(st->seg[CPU_SS].selector, SEL_DATA2);

    SOFT_TEST_RUN(t, 1, 0x8e, 0xd0); /* mov ss, ax */
    assert_int_equal(st->shadow, SHADOW_MOV_SS);
    soft_test_destroy(t);

    t = start(SOFT_TEST_PROTECTED);
    SOFT_TEST_RUN(t, 2, 0x8e, 0xc8); /* mov cs, ax */
    expect_undefined(t);
}

/* ---- MSRs ---- */

static void wrmsr(struct soft_test *t, uint32_t index, uint64_t value)
{
    t->v->st.gpr[CPU_RCX] = index;
    t->v->st.gpr[CPU_RAX] = (uint32_t)value;
    t->v->st.gpr[CPU_RDX] = value >> 32;
    SOFT_TEST_RUN(t, 1, 0x0f, 0x30);
}

static uint64_t rdmsr(struct soft_test *t, uint32_t index)
{
    t->v->st.gpr[CPU_RCX] = index;
    SOFT_TEST_RUN(t, 1, 0x0f, 0x32);
    return t->v->st.gpr[CPU_RDX] << 32 | t->v->st.gpr[CPU_RAX];
}

static void msr_round_trips(void **state)
{
    static const struct {
        uint32_t index;
        uint64_t value;
    } cases[] = {
        {0xc0000081, UINT64_C(0x0023001000000000)},
        {0xc0000082, UINT64_C(0xffffffff81000000)},
        {0xc0000100, 0x7fff00001000},
        {0xc0000102, UINT64_C(0xffff888000000000)},
        {0x174, 0x10},
        {0x176, UINT64_C(0xffffffff81000040)},
        {0x277, UINT64_C(0x0407050600070106)},
        {0x200, 0x80000006},
        {0x201, 0xff800 | BIT(11)},
        {0x26f, UINT64_C(0x0606060606060606)},
        {0x2ff, 0xc06},
        {0xc0000103, 3},
    };
    struct soft_test *t = start(SOFT_TEST_LONG);

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        wrmsr(t, cases[i].index, cases[i].value);
        assert_int_equal(rdmsr(t, cases[i].index), cases[i].value);
    }
    assert_int_equal(soft_test_vector(t), -1);
    assert_int_equal(t->v->st.seg[CPU_FS].base, 0x7fff00001000);
    soft_test_destroy(t);
}

static void msr_faults(void **state)
{
    static const struct {
        uint32_t index;
        uint64_t value;
    } cases[] = {
        {0xc0000082, NON_CANONICAL},
        {0xc0000101, NON_CANONICAL},
        {0x277, 2},
        {0x277, 8},
        {0x2ff, 0x100},
        {0x200, 0x2},
        {0xc0000080, BIT(12)},
        {0xc0000080, EFER_SCE}, /* LME while paging */
        {0xc0000103, BIT(32)},
        {0xfe, 0},
        {0x12345, 0},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct soft_test *t = start(SOFT_TEST_LONG);
        t->v->st.gpr[CPU_RCX] = cases[i].index;
        t->v->st.gpr[CPU_RAX] = (uint32_t)cases[i].value;
        t->v->st.gpr[CPU_RDX] = cases[i].value >> 32;
        SOFT_TEST_RUN(t, 2, 0x0f, 0x30);
        expect_fault(t, VEC_GP, 0);
    }
}

static void msr_host_owned(void **state)
{
    static const uint32_t indices[] = {0x1b, 0x11, 0x12, 0x4b564d01, 0x6e0, 0x80b};
    struct soft_test *t = start(SOFT_TEST_LONG);

    for (unsigned i = 0; i < ARRAY_SIZE(indices); i++) {
        wrmsr(t, indices[i], 0x1234567890 + i);
        assert_int_equal(t->msr_index, indices[i]);
        assert_int_equal(rdmsr(t, indices[i]), 0x1234567890 + i);
    }
    soft_test_destroy(t);
}

/* Writing the TSC moves TSC_ADJUST with it, and the other way round. */
static void msr_tsc(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);
    uint64_t offset, adjust;

    if (!cpu_model_has(&t->model, CPU_FEATURE_TSC_ADJUST)) {
        soft_test_destroy(t);
        skip();
    }
    offset = t->v->st.tsc_offset;
    wrmsr(t, 0x10, 0);
    assert_int_equal(t->v->st.tsc_offset - offset, t->v->st.tsc_adjust);
    assert_true(rdmsr(t, 0x10) < BIT(40));
    adjust = rdmsr(t, 0x3b);
    wrmsr(t, 0x3b, adjust + 1000);
    assert_int_equal(t->v->st.tsc_offset - offset, adjust + 1000);
    soft_test_destroy(t);
}

static void msr_needs_privilege(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);

    soft_test_user(t, true);
    t->v->st.gpr[CPU_RCX] = 0x10;
    SOFT_TEST_RUN(t, 2, 0x0f, 0x32);
    expect_fault(t, VEC_GP, 0);
}

static void rdtsc_and_tsd(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);

    t->v->st.tsc_aux = 7;
    SOFT_TEST_RUN(t, 1, 0x0f, 0x01, 0xf9);
    assert_int_equal(t->v->st.gpr[CPU_RCX], 7);
    soft_test_user(t, true);
    t->v->st.cr4 |= CR4_TSD;
    SOFT_TEST_RUN(t, 2, 0x0f, 0x31);
    expect_fault(t, VEC_GP, 0);
}

/* ---- ports ---- */

static void ports(void **state)
{
    struct soft_test *t = start(SOFT_TEST_PROTECTED);
    struct cpu_state *st = &t->v->st;

    st->gpr[CPU_RAX] = 0x11223344;
    st->gpr[CPU_RDX] = 0x3f8;
    t->io_value = 0xaabbccdd;
    SOFT_TEST_RUN(t, 1, 0xe4, 0x60); /* in al, 60h */
    assert_int_equal(t->io_port, 0x60);
    assert_int_equal(t->io_size, 1);
    assert_int_equal(st->gpr[CPU_RAX], 0x112233dd);
    SOFT_TEST_RUN(t, 1, 0x66, 0xed); /* in ax, dx */
    assert_int_equal(t->io_port, 0x3f8);
    assert_int_equal(st->gpr[CPU_RAX], 0x1122ccdd);
    SOFT_TEST_RUN(t, 1, 0xed);
    assert_int_equal(st->gpr[CPU_RAX], 0xaabbccdd);
    st->gpr[CPU_RAX] = 0x55667788;
    SOFT_TEST_RUN(t, 1, 0xe7, 0xf4); /* out 0f4h, eax */
    assert_int_equal(t->io_port, 0xf4);
    assert_int_equal(t->io_size, 4);
    assert_int_equal(t->io_value, 0x55667788);
    SOFT_TEST_RUN(t, 1, 0xee);
    assert_int_equal(t->io_size, 1);
    assert_int_equal(t->io_value, 0x88);
    soft_test_destroy(t);
}

static void port_permissions(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);

    soft_test_user(t, true);
    soft_test_put(t, SOFT_TEST_TSS + 0x200 + 0x60 / 8, 1, 0xfe); /* port 60h only */
    SOFT_TEST_RUN(t, 1, 0xe4, 0x60);
    assert_int_equal(t->host_calls, 1);
    SOFT_TEST_RUN(t, 2, 0xe5, 0x60); /* four ports, three forbidden */
    assert_int_equal(t->host_calls, 1);
    expect_fault(t, VEC_GP, 0);

    t = start(SOFT_TEST_LONG); /* IOPL 3 needs no map */
    soft_test_user(t, true);
    t->v->st.rflags |= RFLAGS_IOPL;
    SOFT_TEST_RUN(t, 1, 0xe5, 0x60);
    assert_int_equal(t->host_calls, 1);
    soft_test_destroy(t);

    t = start(SOFT_TEST_LONG); /* beyond the TSS */
    soft_test_user(t, true);
    t->v->st.seg[CPU_TR].limit = 0x20b;
    soft_test_put(t, SOFT_TEST_TSS + 0x200 + 0x60 / 8, 1, 0);
    SOFT_TEST_RUN(t, 2, 0xe4, 0x60);
    expect_fault(t, VEC_GP, 0);
}

/* ---- interrupt flag, software interrupts ---- */

static void sti_shadow(void **state)
{
    struct soft_test *t = start(SOFT_TEST_PROTECTED);

    SOFT_TEST_RUN(t, 1, 0xfb);
    assert_true(t->v->st.rflags & RFLAGS_IF);
    assert_int_equal(t->v->st.shadow, SHADOW_STI);
    SOFT_TEST_RUN(t, 1, 0xfb); /* IF was set: no shadow */
    assert_int_equal(t->v->st.shadow, 0);
    SOFT_TEST_RUN(t, 1, 0xfa);
    assert_false(t->v->st.rflags & RFLAGS_IF);
    soft_test_user(t, false);
    SOFT_TEST_RUN(t, 2, 0xfa);
    expect_fault(t, VEC_GP, 0);
}

static void pvi(void **state)
{
    struct soft_test *t = start(SOFT_TEST_PROTECTED);

    soft_test_user(t, false);
    t->v->st.cr4 |= CR4_PVI;
    SOFT_TEST_RUN(t, 1, 0xfb);
    assert_int_equal(t->v->st.rflags & (RFLAGS_IF | RFLAGS_VIF), RFLAGS_VIF);
    SOFT_TEST_RUN(t, 1, 0xfa);
    assert_false(t->v->st.rflags & RFLAGS_VIF);
    t->v->st.rflags |= RFLAGS_VIP;
    SOFT_TEST_RUN(t, 2, 0xfb);
    expect_fault(t, VEC_GP, 0);
}

static void software_interrupts(void **state)
{
    struct soft_test *t = start(SOFT_TEST_PROTECTED);

    SOFT_TEST_RUN(t, 2, 0xcd, 0x80);
    assert_int_equal(soft_test_vector(t), 0x80);
    assert_int_equal(soft_test_get(t, t->v->st.gpr[CPU_RSP], 4), SOFT_TEST_CODE + 2);
    soft_test_destroy(t);

    t = start(SOFT_TEST_PROTECTED); /* the gate's DPL is 0 */
    soft_test_user(t, false);
    SOFT_TEST_RUN(t, 2, 0xcd, 0x21);
    expect_fault(t, VEC_GP, 0x21 * 8 + 2);

    t = start(SOFT_TEST_PROTECTED);
    soft_test_user(t, false);
    SOFT_TEST_RUN(t, 2, 0xcc);
    assert_int_equal(soft_test_vector(t), VEC_BP);
    assert_int_equal(soft_test_get(t, t->v->st.gpr[CPU_RSP], 4), SOFT_TEST_CODE + 1);
    soft_test_destroy(t);

    t = start(SOFT_TEST_PROTECTED); /* INTO: only with OF */
    SOFT_TEST_RUN(t, 1, 0xce);
    assert_int_equal(t->v->st.rip, SOFT_TEST_CODE + 1);
    t->v->st.rflags |= RFLAGS_OF;
    SOFT_TEST_RUN(t, 2, 0xce);
    assert_int_equal(soft_test_vector(t), VEC_OF);
    soft_test_destroy(t);

    t = start(SOFT_TEST_PROTECTED); /* INT1: no DPL check, rip after it */
    soft_test_user(t, false);
    SOFT_TEST_RUN(t, 2, 0xf1);
    assert_int_equal(soft_test_vector(t), VEC_DB);
    assert_int_equal(soft_test_get(t, t->v->st.gpr[CPU_RSP], 4), SOFT_TEST_CODE + 1);
    soft_test_destroy(t);
}

static void v86_int_needs_iopl(void **state)
{
    struct soft_test *t = start(SOFT_TEST_PROTECTED);

    soft_test_v86(t, 0);
    SOFT_TEST_RUN(t, 2, 0xcd, 0x80);
    expect_fault(t, VEC_GP, 0);

    t = start(SOFT_TEST_PROTECTED);
    soft_test_v86(t, 3);
    SOFT_TEST_RUN(t, 2, 0xcd, 0x80);
    assert_int_equal(soft_test_vector(t), 0x80);
    soft_test_destroy(t);
}

/* VME: a clear redirection bit sends INT n to the 8086 handler, with VIF for IF. */
static void v86_int_redirected(void **state)
{
    struct soft_test *t = start(SOFT_TEST_PROTECTED);
    struct cpu_state *st = &t->v->st;
    uint64_t flags;

    soft_test_v86(t, 0);
    st->cr4 |= CR4_VME;
    st->rflags |= RFLAGS_VIF;
    soft_test_put(t, SOFT_TEST_TSS + 0x200 - 32 + 0x21 / 8, 1, (uint8_t) ~(1u << (0x21 % 8)));
    soft_test_put(t, 0x21 * 4, 4, 0x09000010);
    SOFT_TEST_RUN(t, 1, 0xcd, 0x21);
    assert_true(cpu_is_v86(st));
    assert_int_equal(st->seg[CPU_CS].base, 0x9000);
    assert_int_equal(st->rip, 0x10);
    assert_false(st->rflags & RFLAGS_VIF);
    flags = soft_test_get(t, SOFT_TEST_STACK_REAL - 2, 2);
    assert_int_equal(flags & (RFLAGS_IF | RFLAGS_IOPL), RFLAGS_IF | RFLAGS_IOPL);
    assert_int_equal(soft_test_get(t, SOFT_TEST_STACK_REAL - 6, 2), SOFT_TEST_CODE_REAL + 2);

    t->ram[0x9010] = 0xcf; /* iret gives VIF back */
    soft_step(t->v);
    assert_int_equal(st->rip, SOFT_TEST_CODE_REAL + 2);
    assert_int_equal(st->rflags & (RFLAGS_VIF | RFLAGS_IF | RFLAGS_IOPL), RFLAGS_VIF);
    soft_test_destroy(t);
}

static void undefined_opcodes(void **state)
{
    static const uint8_t code[][3] = {
        {0x0f, 0x0b, 0x90},
        {0x0f, 0xb9, 0xc0},
        {0x0f, 0xaa, 0x90},
        {0x0f, 0x37, 0x90},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(code); i++) {
        struct soft_test *t = start(SOFT_TEST_LONG);
        soft_test_run(t, code[i], 3, 2);
        expect_undefined(t);
    }
}

static void hypercalls(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);

    /* with one to serve them: all of its registers, and what it says */
    t->hypercall_result = -22;
    t->v->st.gpr[CPU_RAX] = 0x1100000001;
    t->v->st.gpr[CPU_RBX] = 0x2200000002;
    t->v->st.gpr[CPU_RCX] = 0x3300000003;
    t->v->st.gpr[CPU_RDX] = 0x4400000004;
    t->v->st.gpr[CPU_RSI] = 0x5500000005;
    SOFT_TEST_RUN(t, 1, 0x0f, 0x01, 0xc1);
    assert_int_equal(t->v->st.gpr[CPU_RAX], (uint64_t)-22);
    assert_true(t->hypercall.is_64bit);
    assert_int_equal(t->hypercall.number, 0x1100000001);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(t->hypercall.arg[i], (i + 2) * 0x1100000001);
    soft_test_compat(t);
    t->v->st.gpr[CPU_RAX] = 0x1100000001;
    SOFT_TEST_RUN(t, 1, 0x0f, 0x01, 0xd9);
    assert_int_equal(t->v->st.gpr[CPU_RAX], (uint32_t)-22);
    assert_false(t->hypercall.is_64bit);
    assert_int_equal(t->hypercall.number, 1);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(t->hypercall.arg[i], i + 2);
    soft_test_destroy(t);

    t = start(SOFT_TEST_LONG);
    soft_test_user(t, true);
    t->hypercall_result = 5;
    SOFT_TEST_RUN(t, 1, 0x0f, 0x01, 0xc1);
    assert_int_equal(t->v->st.gpr[CPU_RAX], (uint64_t)-1);
    assert_int_equal(t->hypercall.number, 0);
    soft_test_destroy(t);
}

static void stac_clac(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);

    if (!cpu_model_has(&t->model, CPU_FEATURE_SMAP)) {
        soft_test_destroy(t);
        skip();
    }
    SOFT_TEST_RUN(t, 1, 0x0f, 0x01, 0xcb);
    assert_true(t->v->st.rflags & RFLAGS_AC);
    SOFT_TEST_RUN(t, 1, 0x0f, 0x01, 0xca);
    assert_false(t->v->st.rflags & RFLAGS_AC);
    soft_test_user(t, true);
    SOFT_TEST_RUN(t, 2, 0x0f, 0x01, 0xcb);
    expect_undefined(t);
}

/* A page remapped without INVLPG may stay; after INVLPG it must be the new one. */
static void invlpg(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);
    struct cpu_state *st = &t->v->st;

    soft_test_put(t, SOFT_TEST_DATA, 4, 1);
    soft_test_put(t, 0x5000, 4, 2);
    st->gpr[CPU_RBX] = SOFT_TEST_DATA;
    SOFT_TEST_RUN(t, 1, 0x8b, 0x03); /* mov eax, [rbx] */
    assert_int_equal(st->gpr[CPU_RAX], 1);
    soft_test_put(t, SOFT_TEST_TABLES + 0x2008, 8, (SOFT_TEST_TABLES + 0x3000) | 7);
    soft_test_put(t, SOFT_TEST_TABLES + 0x3000, 8, 0x5007);
    SOFT_TEST_RUN(t, 2, 0x0f, 0x01, 0x3b, 0x8b, 0x03);
    assert_int_equal(st->gpr[CPU_RAX], 2);
    soft_test_user(t, true);
    SOFT_TEST_RUN(t, 2, 0x0f, 0x01, 0x3b);
    expect_fault(t, VEC_GP, 0);
}

static void hlt(void **state)
{
    struct soft_test *t = start(SOFT_TEST_LONG);

    SOFT_TEST_RUN(t, 5, 0xf4);
    assert_int_equal(t->v->st.run_state, CPU_HALTED);
    assert_int_equal(t->v->st.rip, SOFT_TEST_CODE + 1);
    soft_test_destroy(t);

    t = start(SOFT_TEST_LONG);
    soft_test_user(t, true);
    SOFT_TEST_RUN(t, 2, 0xf4);
    expect_fault(t, VEC_GP, 0);

    t = start(SOFT_TEST_LONG); /* a single-step trap comes after HLT and ends it */
    t->v->st.rflags |= RFLAGS_TF;
    SOFT_TEST_RUN(t, 2, 0xf4);
    assert_int_equal(soft_test_vector(t), VEC_DB);
    assert_int_equal(soft_test_get(t, t->v->st.gpr[CPU_RSP], 8), SOFT_TEST_CODE + 1);
    soft_test_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cr0_rules),
        cmocka_unit_test(cr0_enters_long_mode),
        cmocka_unit_test(cr4_rules),
        cmocka_unit_test(cr4_pcide_rules),
        cmocka_unit_test(cr3_reserved_bits),
        cmocka_unit_test(cr_needs_privilege),
        cmocka_unit_test(cr8_is_the_hosts),
        cmocka_unit_test(lmsw_sets_but_keeps_pe),
        cmocka_unit_test(dr_fixed_bits),
        cmocka_unit_test(dr_faults),
        cmocka_unit_test(gdtr_idtr),
        cmocka_unit_test(umip),
        cmocka_unit_test(ltr_and_lldt),
        cmocka_unit_test(lar_lsl_verr_verw),
        cmocka_unit_test(arpl),
        cmocka_unit_test(mov_sreg_and_lss),
        cmocka_unit_test(msr_round_trips),
        cmocka_unit_test(msr_faults),
        cmocka_unit_test(msr_host_owned),
        cmocka_unit_test(msr_tsc),
        cmocka_unit_test(msr_needs_privilege),
        cmocka_unit_test(rdtsc_and_tsd),
        cmocka_unit_test(ports),
        cmocka_unit_test(port_permissions),
        cmocka_unit_test(sti_shadow),
        cmocka_unit_test(pvi),
        cmocka_unit_test(software_interrupts),
        cmocka_unit_test(v86_int_needs_iopl),
        cmocka_unit_test(v86_int_redirected),
        cmocka_unit_test(undefined_opcodes),
        cmocka_unit_test(hypercalls),
        cmocka_unit_test(stac_clac),
        cmocka_unit_test(invlpg),
        cmocka_unit_test(hlt),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
