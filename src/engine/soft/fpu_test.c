/*
 * fpu_test.c - XSAVE images, x87 environments, gathers and scatters, against the host CPU
 *
 * The same state is given to the guest and to the host's registers, the same instruction runs
 * in both, and state and memory are compared.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "engine/soft/fpu_state.h"
#include "engine/soft/testing.h"

#define AREA UINT64_C(0x2000)         /* of data, compared as a whole */
#define BASE (SOFT_TEST_DATA + 0x800) /* in the middle of it */

struct native_regs {
    uint64_t rax, rdx, rbx;
    uint64_t mask;
};

/* Load the image `in`, run code with RAX, RDX and RBX, and save to `out`. */
void native_run(const void *code, const void *in, void *out, const struct native_regs *regs);

__asm__(".text\n"
        ".globl native_run\n"
        "native_run:\n"
        "  push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
        "  mov %rdi, %r12; mov %rdx, %r13; mov %rcx, %r14\n"
        "  mov 24(%r14), %eax; mov 28(%r14), %edx\n"
        "  xrstor64 (%rsi)\n"
        "  mov (%r14), %rax; mov 8(%r14), %rdx; mov 16(%r14), %rbx\n"
        "  sub $8, %rsp; call *%r12; add $8, %rsp\n"
        "  mov 24(%r14), %eax; mov 28(%r14), %edx\n"
        "  xsave64 (%r13)\n"
        "  fninit; pushq $0x1f80; ldmxcsr (%rsp); pop %rax; vzeroupper\n"
        "  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
        "  ret\n");

struct fixture {
    struct soft_test *t;
    uint8_t *code;           /* executable */
    uint8_t *before, *after; /* images: common input, the host's output */
    uint8_t *area;           /* the host's copy of the guest's data area */
    uint64_t mask;           /* components */
    uint64_t rng;
};

static uint64_t next(struct fixture *f)
{
    f->rng ^= f->rng << 13;
    f->rng ^= f->rng >> 7;
    f->rng ^= f->rng << 17;
    return f->rng >> 11 ^ f->rng << 40;
}

static void fill(struct fixture *f, uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)(next(f) >> 8);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    f->t = soft_test_create(SOFT_TEST_LONG);
    f->mask = f->t->model.xcr0_valid;
    f->rng = UINT64_C(88172645463325252);
    f->code =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    f->before = aligned_alloc(64, 4096);
    f->after = aligned_alloc(64, 4096);
    f->area = aligned_alloc(64, AREA);
    assert_true(f->code != MAP_FAILED && f->before != NULL && f->after != NULL && f->area != NULL);
    f->t->v->st.cr4 |= CR4_OSFXSR | CR4_OSXSAVE | CR4_OSXMMEXCPT;
    f->t->v->st.xcr0 = f->mask;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    soft_test_destroy(f->t);
    munmap(f->code, 4096);
    free(f->before);
    free(f->after);
    free(f->area);
    free(f);
    return 0;
}

/* Has the host what the test is about? */
static bool is_missing(const struct fixture *f, uint64_t mask)
{
    return (f->mask & mask) != mask;
}

/* Random state with some components in their initial state. */
static void random_state(struct fixture *f)
{
    struct cpu_model *m = &f->t->model;
    uint64_t bv = f->mask & next(f);

    if (next(f) & 1)
        bv = f->mask;
    memset(f->before, 0, 4096);
    fill(f, f->before + FPU_ST, 128);
    for (unsigned i = 0; i < 8; i++)
        memset(f->before + FPU_ST + 16 * i + 10, 0, 6);
    fill(f, f->before + FPU_XMM, 256);
    for (unsigned i = 2; i < FPU_COMP_COUNT; i++)
        if (f->mask >> i & 1)
            fill(f, f->before + m->xsave_offset[i], m->xsave_component_size[i]);
    store_le16(f->before + FPU_FCW, (uint16_t)(0x37f | (next(f) & 0xc00)));
    store_le16(f->before + FPU_FSW, (uint16_t)(next(f) & 0x7f7f)); /* masked: not pending */
    f->before[FPU_FTW] = (uint8_t)next(f);
    store_le16(f->before + FPU_FOP, next(f) & 0x7ff);
    store_le64(f->before + FPU_FIP, next(f) & 0x7fffffffffff);
    store_le64(f->before + FPU_FDP, next(f) & 0x7fffffffffff);
    store_le32(f->before + FPU_MXCSR, 0x1f80 | (next(f) & 0x6000));
    store_le64(f->before + FPU_XSTATE_BV, bv);
}

/* The guest's state becomes f->before. */
static void give_state(struct fixture *f)
{
    struct cpu_state *st = &f->t->v->st;

    f->t->v->is_fpu_live = false;
    memcpy(st->xsave, f->before, CPU_XSAVE_SIZE);
    soft_fpu_image(f->t->v); /* components in their initial state have no stray bytes */
}

static void give_memory(struct fixture *f)
{
    fill(f, f->area, AREA);
    memcpy(f->t->ram + SOFT_TEST_DATA, f->area, AREA);
}

static void run_native(struct fixture *f, const uint8_t *code, size_t size, uint64_t rax,
                       uint64_t rdx)
{
    struct native_regs regs = {.rax = rax,
                               .rdx = rdx,
                               .mask = f->mask,
                               .rbx = (uintptr_t)f->area + (BASE - SOFT_TEST_DATA)};

    memcpy(f->code, code, size);
    f->code[size] = 0xc3;
    memset(f->after, 0, 4096);
    native_run(f->code, f->before, f->after, &regs);
}

/* One instruction in the guest; its vector if it faulted, or -1. */
static int run_guest(struct fixture *f, const uint8_t *code, size_t size, uint64_t rax,
                     uint64_t rdx)
{
    struct cpu_state *st = &f->t->v->st;

    st->run_state = CPU_RUNNING;
    st->rip = SOFT_TEST_CODE;
    st->gpr[CPU_RSP] = SOFT_TEST_STACK;
    st->gpr[CPU_RAX] = rax;
    st->gpr[CPU_RDX] = rdx;
    st->gpr[CPU_RBX] = BASE;
    soft_test_run(f->t, code, size, 1);
    if (st->rip == SOFT_TEST_CODE + size)
        return -1;
    soft_step(f->t->v); /* the handler's HLT */
    return soft_test_vector(f->t);
}

static void print_code(const char *what, const uint8_t *code, size_t size)
{
    char text[64];
    for (size_t i = 0; i < size; i++)
        snprintf(text + 2 * i, sizeof(text) - 2 * i, "%02x", code[i]);
    print_message("%s: %s\n", what, text);
}

static void compare_range(const struct fixture *f, const char *what, unsigned from, unsigned to,
                          const uint8_t *code, size_t size)
{
    const uint8_t *got = f->t->v->st.xsave;

    for (unsigned i = from; i < to; i++) {
        if (got[i] == f->after[i])
            continue;
        print_code(what, code, size);
        fail_msg("image byte %u is %02x, on the host %02x", i, got[i], f->after[i]);
    }
}

static void compare_state(struct fixture *f, const uint8_t *code, size_t size)
{
    struct cpu_model *m = &f->t->model;

    soft_fpu_image(f->t->v);
    compare_range(f, "FCW FSW FTW", 0, 6, code, size);
    compare_range(f, "MXCSR", FPU_MXCSR, FPU_MXCSR_MASK, code, size);
    compare_range(f, "ST", FPU_ST, FPU_XMM, code, size);
    compare_range(f, "XMM", FPU_XMM, FPU_XMM_END, code, size);
    for (unsigned i = 2; i < FPU_COMP_COUNT; i++)
        if (f->mask >> i & 1)
            compare_range(f, "component", m->xsave_offset[i],
                          m->xsave_offset[i] + m->xsave_component_size[i], code, size);
}

static void compare_memory(const struct fixture *f, const uint8_t *code, size_t size)
{
    const uint8_t *got = f->t->ram + SOFT_TEST_DATA;

    for (unsigned i = 0; i < AREA; i++) {
        if (got[i] == f->area[i])
            continue;
        print_code("memory", code, size);
        fail_msg("byte %d from the operand is %02x, on the host %02x",
                 (int)i - (int)(BASE - SOFT_TEST_DATA), got[i], f->area[i]);
    }
}

/* ---- FXSAVE, XSAVE ---- */

static const struct {
    uint8_t code[5];
    uint8_t size;
} save_cases[] = {
    {{0x0f, 0xae, 0x03}, 3},       /* fxsave [rbx] */
    {{0x48, 0x0f, 0xae, 0x03}, 4}, /* fxsave64 */
    {{0x0f, 0xae, 0x23}, 3},       /* xsave */
    {{0x48, 0x0f, 0xae, 0x23}, 4}, /* xsave64 */
    {{0x48, 0x0f, 0xae, 0x33}, 4}, /* xsaveopt64 */
    {{0x48, 0x0f, 0xc7, 0x23}, 4}, /* xsavec64 */
    {{0x0f, 0xc7, 0x23}, 3},       /* xsavec */
};

/* FOP, FIP and FDP: AMD's hosts leave them out while no exception is pending. */
static void blank_pointers(uint8_t *image)
{
    memset(image + FPU_FOP, 0, FPU_MXCSR - FPU_FOP);
}

/*
 * After a context switch the host may call components in use (XINUSE, SDM vol. 1, 13.6) that were
 * loaded in their initial state, and save them. Does its state say after a saving instruction what
 * it said before?
 */
static bool is_host_undisturbed(const struct fixture *f)
{
    return ((load_le64(f->after + FPU_XSTATE_BV) ^ load_le64(f->before + FPU_XSTATE_BV)) &
            f->mask) == 0;
}

static void test_save(void **state)
{
    struct fixture *f = *state;

    for (unsigned n = 0; n < 4000; n++) {
        unsigned c = n % ARRAY_SIZE(save_cases);
        const uint8_t *code = save_cases[c].code;
        size_t size = save_cases[c].size;
        uint64_t rax = next(f), rdx = next(f);
        random_state(f);
        give_state(f);
        do {
            give_memory(f);
            run_native(f, code, size, rax, rdx);
        } while (!is_host_undisturbed(f));
        assert_int_equal(run_guest(f, code, size, rax, rdx), -1);
        blank_pointers(f->area + 0x800);
        blank_pointers(f->t->ram + BASE);
        compare_memory(f, code, size);
        compare_state(f, code, size);
    }
}

/* An image that may be restored, in the area at BASE, for guest and host. */
static void give_image(struct fixture *f, bool is_compacted)
{
    uint8_t *p = f->area + 0x800;
    uint64_t bv = f->mask & next(f), comp = bv | (f->mask & next(f));

    fill(f, f->area, AREA);
    memset(p + FPU_XSTATE_BV, 0, 64);
    store_le32(p + FPU_MXCSR, next(f) & f->t->model.mxcsr_mask);
    store_le64(p + FPU_XSTATE_BV, bv);
    if (is_compacted)
        store_le64(p + FPU_XCOMP_BV, comp | BIT(63));
    memcpy(f->t->ram + SOFT_TEST_DATA, f->area, AREA);
}

static void test_restore(void **state)
{
    static const struct {
        uint8_t code[4];
        uint8_t size;
    } cases[] = {
        {{0x0f, 0xae, 0x0b}, 3},       /* fxrstor */
        {{0x48, 0x0f, 0xae, 0x0b}, 4}, /* fxrstor64 */
        {{0x0f, 0xae, 0x2b}, 3},       /* xrstor */
        {{0x48, 0x0f, 0xae, 0x2b}, 4}, /* xrstor64 */
    };
    struct fixture *f = *state;

    for (unsigned n = 0; n < 4000; n++) {
        const uint8_t *code = cases[n % ARRAY_SIZE(cases)].code;
        size_t size = cases[n % ARRAY_SIZE(cases)].size;
        uint64_t rax = next(f), rdx = next(f);
        random_state(f);
        give_state(f);
        give_image(f, n & 8);
        run_native(f, code, size, rax, rdx);
        assert_int_equal(run_guest(f, code, size, rax, rdx), -1);
        compare_state(f, code, size);
        compare_memory(f, code, size);
    }
}

static void expect_gp(struct fixture *f, const uint8_t *code, size_t size, const char *what)
{
    static uint8_t before[CPU_XSAVE_SIZE];

    memcpy(before, f->t->v->st.xsave, CPU_XSAVE_SIZE);
    int vector = run_guest(f, code, size, ~UINT64_C(0), ~UINT64_C(0));
    if (vector != VEC_GP)
        fail_msg("%s: vector %d", what, vector);
    assert_memory_equal(before, f->t->v->st.xsave, CPU_XSAVE_SIZE);
}

static void test_restore_faults(void **state)
{
    static const uint8_t xrstor[] = {0x48, 0x0f, 0xae, 0x2b}, fxrstor[] = {0x0f, 0xae, 0x0b};
    struct fixture *f = *state;
    uint8_t *p = f->t->ram + BASE;

    random_state(f);
    give_state(f);
    give_image(f, false);
    store_le64(p + FPU_XSTATE_BV, BIT(62));
    expect_gp(f, xrstor, 4, "XSTATE_BV beyond XCR0");
    give_image(f, false);
    p[FPU_XCOMP_BV + 8] = 1;
    expect_gp(f, xrstor, 4, "reserved byte 16 of the header");
    give_image(f, false);
    store_le64(p + FPU_XCOMP_BV, 1);
    expect_gp(f, xrstor, 4, "XCOMP_BV without bit 63");
    give_image(f, true);
    p[FPU_XSTATE_BV + 63] = 1;
    expect_gp(f, xrstor, 4, "reserved byte 63 of a compacted header");
    give_image(f, true);
    store_le64(p + FPU_XSTATE_BV, f->mask);
    store_le64(p + FPU_XCOMP_BV, BIT(63) | 1);
    expect_gp(f, xrstor, 4, "XSTATE_BV beyond XCOMP_BV");
    give_image(f, false);
    store_le32(p + FPU_MXCSR, 0xffffffff);
    expect_gp(f, xrstor, 4, "MXCSR");
    expect_gp(f, fxrstor, 3, "MXCSR of FXRSTOR");
    static const uint8_t misaligned[] = {0x48, 0x0f, 0xae, 0x6b, 0x20}; /* xrstor64 [rbx + 32] */
    expect_gp(f, misaligned, 5, "alignment");
    static const uint8_t xsetbv[] = {0x0f, 0x01, 0xd1};
    f->t->v->st.gpr[CPU_RCX] = 0;
    expect_gp(f, xsetbv, 3, "XSETBV of everything");
}

/* A save that crosses into a page that is not there writes nothing. */
static void test_save_is_all_or_nothing(void **state)
{
    static const uint8_t xsave[] = {0x48, 0x0f, 0xae, 0x23};
    struct fixture *f = *state;
    uint64_t end = SOFT_TEST_RAM; /* no page beyond */

    random_state(f);
    give_state(f);
    memset(f->t->ram + end - 0x400, 0xee, 0x400);
    struct cpu_state *st = &f->t->v->st;
    st->gpr[CPU_RAX] = st->gpr[CPU_RDX] = UINT32_MAX;
    st->gpr[CPU_RBX] = end - 0x240;
    soft_test_run(f->t, xsave, 4, 2);
    assert_int_equal(soft_test_vector(f->t), VEC_PF);
    assert_true(st->cr2 >= end);
    for (unsigned i = 0; i < 0x400; i++)
        assert_int_equal(f->t->ram[end - 0x400 + i], 0xee);
}

/* 32-bit code sees eight registers. */
static void test_32_bit_code(void **state)
{
    static const uint8_t xsave[] = {0x0f, 0xae, 0x23}, xrstor[] = {0x0f, 0xae, 0x2b};
    struct fixture *f = *state;
    uint8_t *p = f->t->ram + BASE;

    random_state(f);
    store_le64(f->before + FPU_XSTATE_BV, f->mask);
    give_state(f);
    memset(f->t->ram + SOFT_TEST_DATA, 0x55, AREA);
    memset(p + FPU_XSTATE_BV, 0, 64);
    soft_test_compat(f->t);
    assert_int_equal(run_guest(f, xsave, 3, ~UINT64_C(0), ~UINT64_C(0)), -1);
    assert_memory_equal(p + FPU_XMM, f->before + FPU_XMM, 128);
    for (unsigned i = 128; i < 256; i++)
        assert_int_equal(p[FPU_XMM + i], 0x55);
    memset(p + FPU_XMM, 0x66, 256);
    assert_int_equal(run_guest(f, xrstor, 3, ~UINT64_C(0), ~UINT64_C(0)), -1);
    soft_fpu_image(f->t->v);
    assert_int_equal(f->t->v->st.xsave[FPU_XMM], 0x66);
    assert_memory_equal(f->t->v->st.xsave + FPU_XMM + 128, f->before + FPU_XMM + 128, 128);
}

/* ---- x87 environments ---- */

static void test_environment(void **state)
{
    static const struct {
        uint8_t code[3];
        uint8_t size;
        uint16_t from, to; /* pointers, which the host has of its own */
        bool is_load;
    } cases[] = {
        {{0xd9, 0x33}, 2, 12, 28, false},      /* fnstenv [rbx] */
        {{0x66, 0xd9, 0x33}, 3, 6, 14, false}, /* fnstenv, 14 bytes */
        {{0xdd, 0x33}, 2, 12, 28, false},      /* fnsave */
        {{0x66, 0xdd, 0x33}, 3, 6, 14, false}, /* fnsave, 94 bytes */
        {{0xd9, 0x23}, 2, 0, 0, true},         /* fldenv */
        {{0x66, 0xd9, 0x23}, 3, 0, 0, true},   {{0xdd, 0x23}, 2, 0, 0, true}, /* frstor */
        {{0x66, 0xdd, 0x23}, 3, 0, 0, true},
    };
    struct fixture *f = *state;

    for (unsigned n = 0; n < 4000; n++) {
        unsigned c = n % ARRAY_SIZE(cases);
        random_state(f);
        give_state(f);
        give_memory(f);
        run_native(f, cases[c].code, cases[c].size, 0, 0);
        assert_int_equal(run_guest(f, cases[c].code, cases[c].size, 0, 0), -1);
        memset(f->area + 0x800 + cases[c].from, 0, (size_t)(cases[c].to - cases[c].from));
        memset(f->t->ram + BASE + cases[c].from, 0, (size_t)(cases[c].to - cases[c].from));
        compare_memory(f, cases[c].code, cases[c].size);
        compare_state(f, cases[c].code, cases[c].size);
    }
}

/* The guest finds its own addresses, never the thunk's. */
static void test_pointers(void **state)
{
    static const uint8_t code[] = {
        0xdb, 0xe3,                      /* fninit */
        0xd9, 0xe8,                      /* fld1 */
        0xd8, 0x43, 0x10,                /* fadd dword [rbx + 16] */
        0xd9, 0x3b,                      /* fnstcw [rbx]: does not count */
        0x48, 0x0f, 0xae, 0x43, 0x40,    /* fxsave64 [rbx + 64] */
        0xd9, 0x73, 0x20,                /* fnstenv [rbx + 32] */
        0xdb, 0xe3,                      /* fninit */
        0xd9, 0xb3, 0x00, 0x04, 0,    0, /* fnstenv [rbx + 1024] */
        0xf4,
    };
    struct fixture *f = *state;
    const uint8_t *p = f->t->ram + BASE;

    f->t->v->st.gpr[CPU_RBX] = BASE;
    soft_test_run(f->t, code, sizeof(code), 9);
    assert_int_equal(f->t->v->st.run_state, CPU_HALTED);
    assert_int_equal(load_le64(p + 64 + FPU_FIP), SOFT_TEST_CODE + 4);
    assert_int_equal(load_le64(p + 64 + FPU_FDP), BASE + 16);
    assert_int_equal(load_le16(p + 64 + FPU_FOP), 0x043);
    assert_int_equal(load_le32(p + 32 + 12), SOFT_TEST_CODE + 4);
    assert_int_equal(load_le16(p + 32 + 18), 0x043);
    assert_int_equal(load_le32(p + 32 + 20), BASE + 16);
    assert_int_equal(load_le32(p + 1024 + 12), 0);
    assert_int_equal(load_le32(p + 1024 + 20), 0);
}

/* ---- gathers and scatters ---- */

struct vsib {
    unsigned opcode; /* 0x90 .. 0x93, 0xa0 .. 0xa3 */
    bool is_wide;    /* W: 64-bit elements */
    bool is_evex;
    unsigned length; /* 0 .. 2 */
    unsigned data, index, mask;
    unsigned scale_log2;
    int8_t disp;
};

/* Operand [rbx + index * scale + disp8]. */
static size_t encode(const struct vsib *s, uint8_t *out)
{
    size_t n = 0;

    if (s->is_evex) {
        out[n++] = 0x62;
        out[n++] =
            (uint8_t)((~s->data & 8) << 4 | (~s->index & 8) << 3 | 0x20 | (~s->data & 16) | 2);
        out[n++] = (uint8_t)(s->is_wide << 7 | 0x7d);
        out[n++] = (uint8_t)(s->length << 5 | (~s->index & 16) >> 1 | s->mask);
    } else {
        out[n++] = 0xc4;
        out[n++] = (uint8_t)((~s->data & 8) << 4 | (~s->index & 8) << 3 | 0x20 | 2);
        out[n++] = (uint8_t)(s->is_wide << 7 | (~s->mask & 15) << 3 | s->length << 2 | 1);
    }
    out[n++] = (uint8_t)s->opcode;
    out[n++] = (uint8_t)(0x44 | (s->data & 7) << 3);
    out[n++] = (uint8_t)(s->scale_log2 << 6 | (s->index & 7) << 3 | 3);
    out[n++] = (uint8_t)s->disp;
    return n;
}

static bool index_is_wide(const struct vsib *s)
{
    return s->opcode & 1;
}

/* Indices that keep every element within the area. */
static void give_indices(struct fixture *f, const struct vsib *s)
{
    unsigned size = index_is_wide(s) ? 8 : 4;

    for (unsigned i = 0; i < 64 / size; i++) {
        int64_t index = (int64_t)(next(f) % 128) - 64;
        for (unsigned k = 0; k < size; k++) {
            unsigned at = i * size + k, part = at / 16;
            unsigned offset = part == 0 ? FPU_XMM + 16 * s->index
                              : part == 1
                                  ? f->t->model.xsave_offset[2] + 16 * s->index
                                  : f->t->model.xsave_offset[6] + 32 * s->index + 16 * (part - 2);
            if (s->index >= 16)
                offset = f->t->model.xsave_offset[7] + 64 * (s->index - 16) + 16 * part;
            else if (part >= 2 && !(f->mask & XCR0_AVX512))
                continue;
            f->before[offset + at % 16] = (uint8_t)((uint64_t)index >> 8 * k);
        }
    }
}

static void random_vsib(struct fixture *f, struct vsib *s)
{
    bool has_avx512 = (f->mask & XCR0_AVX512) != 0;
    unsigned count;

    s->is_evex = has_avx512 && (next(f) & 1);
    s->opcode = 0x90 + next(f) % 4 + (s->is_evex && (next(f) & 1) ? 0x10 : 0);
    s->is_wide = next(f) & 1;
    s->length = (unsigned)(next(f) % (s->is_evex ? 3 : 2));
    count = s->is_evex ? 32 : 16;
    s->data = (unsigned)(next(f) % count);
    s->index = (s->data + 1 + (unsigned)(next(f) % (count - 2))) % count;
    s->mask = s->is_evex ? 1 + (unsigned)(next(f) % 7) : 0;
    if (!s->is_evex)
        while (s->mask == s->data || s->mask == s->index)
            s->mask++;
    s->scale_log2 = next(f) & 3;
    s->disp = (int8_t)next(f);
}

static void test_gather(void **state)
{
    struct fixture *f = *state;

    if (is_missing(f, XCR0_AVX))
        skip();
    for (unsigned n = 0; n < 20000; n++) {
        struct vsib s;
        uint8_t code[16];
        random_vsib(f, &s);
        size_t size = encode(&s, code);
        random_state(f);
        store_le64(f->before + FPU_XSTATE_BV, f->mask);
        give_indices(f, &s);
        give_state(f);
        give_memory(f);
        run_native(f, code, size, 0, 0);
        int vector = run_guest(f, code, size, 0, 0);
        if (vector != -1) {
            print_code("gather", code, size);
            fail_msg("vector %d", vector);
        }
        compare_memory(f, code, size);
        compare_state(f, code, size);
    }
}

/* Elements before the one that faults are done, and their mask is clear. */
static void test_gather_fault(void **state)
{
    /* vpgatherdd xmm1, [rbx + xmm2 * 4], xmm3 */
    static const uint8_t code[] = {0xc4, 0xe2, 0x61, 0x90, 0x0c, 0x93};
    struct fixture *f = *state;
    uint8_t *image = f->t->v->st.xsave;

    if (is_missing(f, XCR0_AVX))
        skip();
    random_state(f);
    store_le64(f->before + FPU_XSTATE_BV, f->mask);
    memset(f->before + FPU_XMM + 48, 0xff, 16);
    for (unsigned i = 0; i < 4; i++)
        store_le32(f->before + FPU_XMM + 32 + 4 * i, i == 2 ? 0x10000000 : i);
    give_state(f);
    give_memory(f);
    assert_int_equal(run_guest(f, code, sizeof(code), 0, 0), VEC_PF);
    assert_int_equal(f->t->v->st.cr2, BASE + 0x40000000);
    soft_fpu_image(f->t->v);
    assert_memory_equal(image + FPU_XMM + 16, f->t->ram + BASE, 8);
    assert_memory_equal(image + FPU_XMM + 24, f->before + FPU_XMM + 24, 8);
    assert_int_equal(load_le64(image + FPU_XMM + 48), 0);
    assert_true(load_le64(image + FPU_XMM + 56) == ~UINT64_C(0));
}

/* ---- who may use what ---- */

static void test_checks(void **state)
{
    static const struct {
        uint8_t unit;
        uint32_t cr0, cr4, xcr0;
        int vector;
    } cases[] = {
        {INSN_UNIT_X87, CR0_TS, ~0u, 7, VEC_NM},
        {INSN_UNIT_X87, CR0_EM, ~0u, 7, VEC_NM},
        {INSN_UNIT_X87, 0, 0, 1, 0},
        {INSN_UNIT_WAIT, CR0_TS, ~0u, 7, 0},
        {INSN_UNIT_WAIT, CR0_TS | CR0_MP, ~0u, 7, VEC_NM},
        {INSN_UNIT_MMX, CR0_EM, ~0u, 7, VEC_UD},
        {INSN_UNIT_MMX, CR0_TS, ~0u, 7, VEC_NM},
        {INSN_UNIT_SSE, 0, 0, 7, VEC_UD},
        {INSN_UNIT_SSE, CR0_EM, CR4_OSFXSR, 7, VEC_UD},
        {INSN_UNIT_SSE, CR0_TS, CR4_OSFXSR, 7, VEC_NM},
        {INSN_UNIT_SSE, 0, CR4_OSFXSR, 1, 0},
        {INSN_UNIT_AVX, 0, CR4_OSFXSR, 7, VEC_UD},
        {INSN_UNIT_AVX, 0, CR4_OSXSAVE, 3, VEC_UD},
        {INSN_UNIT_AVX, CR0_TS, CR4_OSXSAVE, 7, VEC_NM},
        {INSN_UNIT_AVX, CR0_EM, CR4_OSXSAVE, 7, 0},
        {INSN_UNIT_AVX512, 0, CR4_OSXSAVE, 7, VEC_UD},
        {INSN_UNIT_AVX512, 0, CR4_OSXSAVE, 0xe7, 0},
        {INSN_UNIT_MASK, 0, CR4_OSXSAVE, 0x67, VEC_UD},
        {INSN_UNIT_VEX_INT, CR0_TS | CR0_EM, 0, 1, 0},
        {INSN_UNIT_INT, CR0_TS | CR0_EM, 0, 1, 0},
    };
    struct fixture *f = *state;
    struct soft_vcpu *v = f->t->v;

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        v->st.cr0 = CR0_PE | cases[i].cr0;
        v->st.cr4 = cases[i].cr4;
        v->st.xcr0 = cases[i].xcr0;
        v->fault.vector = 0;
        int r = soft_fpu_check(v, cases[i].unit);
        if (r != (cases[i].vector != 0 ? SOFT_FAULT : 0) || v->fault.vector != cases[i].vector)
            fail_msg("case %zu: %d, vector %u", i, r, v->fault.vector);
    }
    v->st.cr0 = 0; /* real mode has no VEX */
    v->st.cr4 = CR4_OSXSAVE;
    v->st.xcr0 = 7;
    assert_int_equal(soft_fpu_check(v, INSN_UNIT_VEX_INT), SOFT_FAULT);
    assert_int_equal(soft_fpu_check(v, INSN_UNIT_AVX), SOFT_FAULT);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_save),           TEST(test_restore),
        TEST(test_restore_faults), TEST(test_save_is_all_or_nothing),
        TEST(test_32_bit_code),    TEST(test_environment),
        TEST(test_pointers),       TEST(test_gather),
        TEST(test_gather_fault),   TEST(test_checks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
