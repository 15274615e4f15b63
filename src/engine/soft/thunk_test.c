/*
 * thunk_test.c - native thunks: host faults, bounced and masked operands, devices, code pages
 */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "engine/soft/fpu_state.h"
#include "engine/soft/testing.h"
#include "os/fault.h"

#define DATA SOFT_TEST_DATA
#define DEVICE (SOFT_TEST_RAM - 0x1000) /* linear page that is mapped to a device */
#define EDGE (SOFT_TEST_RAM - 0x2000)   /* the page before it; the one before is RAM */

static int setup(void **state)
{
    struct soft_test *t = soft_test_create(SOFT_TEST_LONG);

    t->v->st.cr4 |= CR4_OSFXSR | CR4_OSXSAVE | CR4_OSXMMEXCPT;
    t->v->st.xcr0 = t->model.xcr0_valid;
    *state = t;
    return 0;
}

static int teardown(void **state)
{
    soft_test_destroy(*state);
    return 0;
}

/* Map the second 2 MiB by 4 KiB pages: the last one to a device, the one before not present. */
static void map_edge(struct soft_test *t)
{
    uint64_t pd = SOFT_TEST_TABLES + 0x2000, pt = SOFT_TEST_TABLES + 0x3000;

    for (unsigned i = 0; i < 512; i++)
        soft_test_put(t, pt + 8 * i, 8, (0x200000 + 0x1000ull * i) | 7);
    soft_test_put(t, pt + 8 * 511, 8, 0xfee00000 | 7);
    soft_test_put(t, pt + 8 * 510, 8, 0);
    soft_test_put(t, pd + 8, 8, pt | 7);
    soft_tlb_flush_all(t->v);
}

static void *image(struct soft_test *t)
{
    return soft_fpu_image(t->v);
}

/* cmocka takes the fault signals for every test; take them back. */
static void catch_faults(void)
{
    assert_int_equal(fault_init(NULL), 0);
}

static void test_divide_error(void **state)
{
    struct soft_test *t = *state;

    catch_faults();
    t->v->st.gpr[CPU_RAX] = 0x1234;
    t->v->st.gpr[CPU_RDX] = 1;
    SOFT_TEST_RUN(t, 2, 0x48, 0xf7, 0xf1); /* div rcx, which is 0 */
    assert_int_equal(soft_test_vector(t), VEC_DE);
    assert_int_equal(t->v->st.gpr[CPU_RAX], 0x1234);
    assert_int_equal(soft_test_get(t, t->v->st.gpr[CPU_RSP], 8), SOFT_TEST_CODE);
}

static void test_guest_rsp(void **state)
{
    struct soft_test *t = *state;

    t->v->st.gpr[CPU_RSP] = 0x80008;
    t->v->st.gpr[CPU_RBX] = 0x10;
    /* add rsp, rbx; xchg rsp, rcx; mov rdx, [rcx]; xadd [rcx], rcx */
    soft_test_put(t, 0x80018, 8, 0x1122334455667788);
    SOFT_TEST_RUN(t, 4, 0x48, 0x01, 0xdc, 0x48, 0x87, 0xe1, 0x48, 0x8b, 0x11, 0x48, 0x0f, 0xc1,
                  0x09);
    assert_int_equal(t->v->st.gpr[CPU_RDX], 0x1122334455667788);
    assert_int_equal(t->v->st.gpr[CPU_RCX], 0x1122334455667788);
    assert_int_equal(soft_test_get(t, 0x80018, 8), 0x1122334455667788 + 0x80018);
    assert_int_equal(t->v->st.gpr[CPU_RSP], 0);
}

/* Only status flags go to the host and come back. */
static void test_flags(void **state)
{
    struct soft_test *t = *state;
    uint64_t others = RFLAGS_FIXED | RFLAGS_DF | RFLAGS_AC | RFLAGS_NT | RFLAGS_ID | RFLAGS_IOPL;

    t->v->st.rflags = others | RFLAGS_CF;
    t->v->st.gpr[CPU_RAX] = 0x7fffffffffffffff;
    SOFT_TEST_RUN(t, 1, 0x48, 0x83, 0xd0, 0x00); /* adc rax, 0 */
    assert_int_equal(t->v->st.gpr[CPU_RAX], BIT(63));
    assert_int_equal(t->v->st.rflags, others | RFLAGS_OF | RFLAGS_SF | RFLAGS_AF | RFLAGS_PF);
    SOFT_TEST_RUN(t, 1, 0x9f); /* lahf */
    assert_int_equal(t->v->st.gpr[CPU_RAX] >> 8 & 0xff, 0x96);
    t->v->st.gpr[CPU_RAX] = 0xffff;
    SOFT_TEST_RUN(t, 1, 0x9e); /* sahf */
    assert_int_equal(t->v->st.rflags, others | RFLAGS_STATUS);
}

static void test_simd_exception(void **state)
{
    struct soft_test *t = *state;
    uint8_t *x = image(t);

    catch_faults();
    store_le32(x + FPU_MXCSR, 0x1f80 & ~0x200u); /* divide by zero unmasked */
    store_le32(x + FPU_XMM, 0x3f800000);
    store_le32(x + FPU_XMM + 16, 0);
    SOFT_TEST_RUN(t, 2, 0xf3, 0x0f, 0x5e, 0xc1); /* divss xmm0, xmm1 */
    assert_int_equal(soft_test_vector(t), VEC_XM);
    assert_int_equal(load_le32(t->v->st.xsave + FPU_XMM), 0x3f800000);
    assert_int_equal(load_le32(t->v->st.xsave + FPU_MXCSR) & 0x3f, 4);
}

static void test_simd_exception_without_osxmmexcpt(void **state)
{
    struct soft_test *t = *state;
    uint8_t *x = image(t);

    catch_faults();
    t->v->st.cr4 &= ~CR4_OSXMMEXCPT;
    store_le32(x + FPU_MXCSR, 0);
    store_le32(x + FPU_XMM, 0x3f800000);
    SOFT_TEST_RUN(t, 2, 0xf3, 0x0f, 0x5e, 0xc1);
    assert_int_equal(soft_test_vector(t), VEC_UD);
}

/* An x87 exception is pending until the next waiting instruction. */
static void test_x87_exception(void **state)
{
    struct soft_test *t = *state;
    uint8_t *x = image(t);

    catch_faults();
    store_le16(x + FPU_FCW, 0x37b); /* zero divide unmasked */
    store_le16(x + FPU_FSW, 0);
    x[FPU_FTW] = 0;
    soft_fpu_image_mark(t->v, FPU_COMP_X87);
    /* fld1; fldz; fdivp; fnstsw ax; fwait */
    SOFT_TEST_RUN(t, 6, 0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9, 0xdf, 0xe0, 0x9b);
    assert_int_equal(soft_test_vector(t), VEC_MF);
    assert_int_equal(t->v->st.gpr[CPU_RAX] & 0x84, 0x84);
    assert_int_equal(soft_test_get(t, t->v->st.gpr[CPU_RSP], 8), SOFT_TEST_CODE + 8);
}

/* Without CR0.NE the instruction waits, and goes on when the handler has cleared the state. */
static void test_x87_exception_by_ferr(void **state)
{
    struct soft_test *t = *state;
    uint8_t *x = image(t);

    catch_faults();
    t->v->st.cr0 &= ~CR0_NE;
    store_le16(x + FPU_FCW, 0x37b);
    store_le16(x + FPU_FSW, 0);
    x[FPU_FTW] = 0;
    soft_fpu_image_mark(t->v, FPU_COMP_X87);
    SOFT_TEST_RUN(t, 8, 0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9, 0x9b, 0xf4);
    assert_int_equal(t->v->st.run_state, CPU_RUNNING);
    assert_int_equal(t->v->st.rip, SOFT_TEST_CODE + 6);
}

static void test_misaligned(void **state)
{
    struct soft_test *t = *state;

    catch_faults();
    map_edge(t);
    /* movaps xmm0, [rax]: #GP comes before the #PF of its second page */
    t->v->st.gpr[CPU_RAX] = EDGE - 8;
    SOFT_TEST_RUN(t, 2, 0x0f, 0x28, 0x00);
    assert_int_equal(soft_test_vector(t), VEC_GP);
    assert_int_equal(soft_test_error(t), 0);
}

static void test_fault_leaves_all(void **state)
{
    struct soft_test *t = *state;

    map_edge(t);
    memset(t->ram + EDGE - 4, 0x11, 4);
    t->v->st.gpr[CPU_RAX] = EDGE - 4;
    t->v->st.gpr[CPU_RCX] = 0x123456789abcdef0;
    SOFT_TEST_RUN(t, 2, 0xf0, 0x48, 0x0f, 0xc1, 0x08); /* lock xadd [rax], rcx */
    assert_int_equal(soft_test_vector(t), VEC_PF);
    assert_int_equal(t->v->st.cr2, EDGE);
    assert_int_equal(t->v->st.gpr[CPU_RCX], 0x123456789abcdef0);
    assert_int_equal(soft_test_get(t, EDGE - 4, 4), 0x11111111);
}

static void test_across_pages(void **state)
{
    struct soft_test *t = *state;
    uint8_t *x;

    map_edge(t);
    soft_test_put(t, DATA + 0xffc, 8, 0x1111111122222222);
    t->v->st.gpr[CPU_RAX] = DATA + 0xffc;
    t->v->st.gpr[CPU_RCX] = 1;
    /* lock xadd [rax], rcx; movups xmm1, [rax]; movups [rax + 0x1000], xmm1 */
    SOFT_TEST_RUN(t, 3, 0xf0, 0x48, 0x0f, 0xc1, 0x08, 0x0f, 0x10, 0x08, 0x0f, 0x11, 0x88, 0x00,
                  0x10, 0x00, 0x00);
    assert_int_equal(t->v->st.gpr[CPU_RCX], 0x1111111122222222);
    assert_int_equal(soft_test_get(t, DATA + 0xffc, 8), 0x1111111122222223);
    assert_int_equal(soft_test_get(t, DATA + 0x1ffc, 8), 0x1111111122222223);
    x = image(t);
    assert_int_equal(load_le64(x + FPU_XMM + 16), 0x1111111122222223);
}

/* A device is read and written once, with the instruction's size. */
static void test_device(void **state)
{
    struct soft_test *t = *state;

    map_edge(t);
    t->v->st.gpr[CPU_RAX] = DEVICE;
    t->v->st.gpr[CPU_RCX] = 5;
    SOFT_TEST_RUN(t, 1, 0x8b, 0x50, 0x10); /* mov edx, [rax + 16] */
    assert_int_equal(t->v->st.gpr[CPU_RDX], UINT32_MAX);
    assert_int_equal(t->host_calls, 1);
    SOFT_TEST_RUN(t, 1, 0xf0, 0x01, 0x08); /* lock add [rax], ecx */
    assert_int_equal(t->host_calls, 3);
    assert_int_equal(t->v->st.rflags & RFLAGS_CF, RFLAGS_CF);
    SOFT_TEST_RUN(t, 1, 0x0f, 0x11, 0x00); /* movups [rax], xmm0 */
    assert_int_equal(t->host_calls, 5);
}

static struct {
    gpa_t gpa;
    unsigned size, calls;
} written;

static void code_written(struct soft_engine *se, struct soft_vcpu *v, gpa_t gpa, unsigned size)
{
    written.gpa = gpa;
    written.size = size;
    written.calls++;
}

static void test_code_page(void **state)
{
    struct soft_test *t = *state;

    memset(&written, 0, sizeof(written));
    t->engine.code_written = code_written;
    t->engine.ram[0].page_flags[(DATA >> SOFT_PAGE_SHIFT) + 1] |= SOFT_PAGE_CODE;
    t->v->st.gpr[CPU_RAX] = DATA + 0x1010;
    SOFT_TEST_RUN(t, 1, 0xf0, 0xff, 0x00); /* lock inc dword [rax] */
    assert_int_equal(written.calls, 1);
    assert_int_equal(written.gpa, DATA + 0x1010);
    assert_int_equal(written.size, 4);
    t->v->st.gpr[CPU_RAX] = DATA + 0xffe; /* its second half lies there */
    SOFT_TEST_RUN(t, 1, 0xff, 0x00);
    assert_int_equal(written.calls, 2);
    assert_int_equal(written.gpa, DATA + 0x1000);
    assert_int_equal(written.size, 2);
}

/* What is masked off is neither read nor written, and does not fault. */
static void test_masked_at_edge(void **state)
{
    struct soft_test *t = *state;
    uint8_t *x = image(t);

    if (!(t->model.xcr0_valid & XCR0_AVX))
        skip();
    map_edge(t);
    memset(t->ram + EDGE - 16, 0x77, 16);
    for (unsigned i = 0; i < 16; i++)
        x[FPU_XMM + i] = (uint8_t)i;
    memset(x + FPU_XMM + 16, 0, 16);
    x[FPU_XMM + 16 + 3] = 0x80; /* lane 0 only */
    soft_fpu_image_mark(t->v, FPU_COMP_SSE);
    t->v->st.gpr[CPU_RAX] = EDGE - 4;
    SOFT_TEST_RUN(t, 1, 0xc4, 0xe2, 0x71, 0x2e, 0x00); /* vmaskmovps [rax], xmm1, xmm0 */
    assert_int_equal(t->v->st.rip, SOFT_TEST_CODE + 5);
    assert_int_equal(soft_test_get(t, EDGE - 4, 4), 0x03020100);
    assert_int_equal(soft_test_get(t, EDGE - 8, 4), 0x77777777);
    SOFT_TEST_RUN(t, 1, 0xc4, 0xe2, 0x71, 0x2c, 0x10); /* vmaskmovps xmm2, xmm1, [rax] */
    x = image(t);
    assert_int_equal(load_le64(x + FPU_XMM + 32), 0x03020100);
    assert_int_equal(load_le64(x + FPU_XMM + 40), 0);
}

static void test_opmask_at_edge(void **state)
{
    struct soft_test *t = *state;
    uint8_t *x = image(t);

    if ((t->model.xcr0_valid & XCR0_AVX512) != XCR0_AVX512)
        skip();
    map_edge(t);
    memset(t->ram + EDGE - 64, 0x77, 64);
    store_le64(x + t->model.xsave_offset[FPU_COMP_OPMASK] + 8, 0x8001);      /* k1 */
    store_le64(x + t->model.xsave_offset[FPU_COMP_OPMASK] + 16, 0xffff0000); /* k2: none of 16 */
    soft_fpu_image_mark(t->v, FPU_COMP_OPMASK);
    t->v->st.gpr[CPU_RAX] = EDGE - 8;
    /* vmovdqu32 zmm1{k2}{z}, [rax]: nothing; vpaddd zmm1{k2}, zmm0, [rax]{1to16} in the hole */
    SOFT_TEST_RUN(t, 2, 0x62, 0xf1, 0x7e, 0xca, 0x6f, 0x08, 0x62, 0xf1, 0x7d, 0x5a, 0xfe, 0x48,
                  0x02);
    assert_int_equal(t->v->st.rip, SOFT_TEST_CODE + 13);
    /* vpcompressd [rax]{k1}, zmm0: two elements */
    SOFT_TEST_RUN(t, 1, 0x62, 0xf2, 0x7d, 0x49, 0x8b, 0x00);
    assert_int_equal(t->v->st.rip, SOFT_TEST_CODE + 19);
    assert_int_equal(soft_test_get(t, EDGE - 8, 8), 0);
    /* vmovdqu32 [rax]{k1}, zmm0: element 15 is in the hole */
    SOFT_TEST_RUN(t, 2, 0x62, 0xf1, 0x7e, 0x49, 0x7f, 0x00);
    assert_int_equal(soft_test_vector(t), VEC_PF);
    assert_int_equal(t->v->st.cr2, EDGE - 8 + 60);
}

/* An x87 store that an unmasked exception stops writes nothing. */
static void test_x87_store_is_stopped(void **state)
{
    struct soft_test *t = *state;
    uint8_t *x = image(t);

    map_edge(t);
    store_le16(x + FPU_FCW, 0x37e); /* invalid operation unmasked */
    store_le16(x + FPU_FSW, 0);
    x[FPU_FTW] = 0; /* empty: underflow of the stack */
    soft_fpu_image_mark(t->v, FPU_COMP_X87);
    memset(t->ram + DATA + 0xff0, 0x33, 32);
    t->v->st.gpr[CPU_RAX] = DATA + 0xffc;
    SOFT_TEST_RUN(t, 1, 0xdd, 0x18); /* fstp qword [rax] */
    assert_int_equal(soft_test_get(t, DATA + 0xffc, 8), 0x3333333333333333);
}

/* More instructions than there are slots: thunks are made anew, results stay right. */
static void test_eviction(void **state)
{
    struct soft_test *t = *state;

    for (uint32_t i = 0; i < 9000; i++) {
        t->v->st.rip = SOFT_TEST_CODE;
        t->v->st.gpr[CPU_RAX] = 7;
        SOFT_TEST_RUN(t, 1, 0x05, LE32(i * 3)); /* add eax, i * 3 */
        assert_int_equal(t->v->st.gpr[CPU_RAX], 7 + i * 3);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_divide_error),
        TEST(test_guest_rsp),
        TEST(test_flags),
        TEST(test_simd_exception),
        TEST(test_simd_exception_without_osxmmexcpt),
        TEST(test_x87_exception),
        TEST(test_x87_exception_by_ferr),
        TEST(test_misaligned),
        TEST(test_fault_leaves_all),
        TEST(test_across_pages),
        TEST(test_device),
        TEST(test_code_page),
        TEST(test_masked_at_edge),
        TEST(test_opmask_at_edge),
        TEST(test_x87_store_is_stopped),
        TEST(test_eviction),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
