/*
 * string_test.c - string instructions: whole stretches against one element at a time, and what
 * stops them half-way
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "engine/soft/testing.h"

#define DATA SOFT_TEST_DATA
#define DATA_SIZE 0x8000u
#define CASES 4000u
#define UNMAPPED SOFT_TEST_RAM /* the first address that no page maps */

static struct soft_test *test_of(void **state)
{
    return *state;
}

static void put_code(struct soft_test *t, const void *code, size_t size)
{
    memcpy(t->ram + SOFT_TEST_CODE, code, size);
    t->v->st.rip = SOFT_TEST_CODE;
    t->v->st.run_state = CPU_RUNNING;
    t->v->go = 1;
}

#define PUT_CODE(t, ...)                                                                           \
    put_code(t, (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

static void step(struct soft_test *t)
{
    soft_guest_enter(t->v);
    soft_step(t->v);
    soft_guest_leave(t->v);
}

/* Step until rip has left the instruction. */
static void finish(struct soft_test *t)
{
    for (unsigned i = 0; t->v->st.rip == SOFT_TEST_CODE; i++) {
        assert_true(i < 100);
        step(t);
    }
}

/* xorshift64 */
static uint64_t next_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

/* ---- against the manual's loop ---- */

struct reference {
    uint64_t rcx, rsi, rdi, rax;
    bool cf, zf;
    uint8_t *memory; /* DATA_SIZE bytes at DATA */
};

static uint64_t reference_get(const struct reference *r, uint64_t addr, unsigned size)
{
    uint64_t value = 0;

    memcpy(&value, r->memory + (addr - DATA), size);
    return value;
}

static void reference_compare(struct reference *r, uint64_t a, uint64_t b)
{
    r->cf = a < b;
    r->zf = a == b;
}

/* opcode is that of the byte form: A4, A6, AA, AC, AE */
static void reference_run(struct reference *r, uint8_t opcode, unsigned size, bool is_down,
                          bool is_while_equal)
{
    uint64_t distance = is_down ? -(uint64_t)size : size;

    for (; r->rcx != 0; r->rcx--) {
        uint64_t mask = mask_bytes(size);
        bool has_source = opcode == 0xa4 || opcode == 0xa6 || opcode == 0xac;
        uint64_t source = has_source ? reference_get(r, r->rsi, size) : r->rax & mask;

        if (opcode == 0xa4 || opcode == 0xaa)
            memcpy(r->memory + (r->rdi - DATA), &source, size);
        else if (opcode == 0xac)
            r->rax = size >= 4 ? source : (r->rax & ~mask) | source;
        else
            reference_compare(r, source, reference_get(r, r->rdi, size));
        if (has_source)
            r->rsi += distance;
        if (opcode != 0xac)
            r->rdi += distance;
        if ((opcode == 0xa6 || opcode == 0xae) && r->zf != is_while_equal) {
            r->rcx--;
            return;
        }
    }
}

static uint64_t pick_address(uint64_t *seed)
{
    return DATA + 0x2000 + next_random(seed) % 0x4000;
}

static void test_against_reference(void **state)
{
    static const uint8_t opcodes[] = {0xa4, 0xa6, 0xaa, 0xac, 0xae};
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;
    uint64_t seed = 0x123456789abcdef;
    uint8_t *copy = malloc(DATA_SIZE);

    assert_non_null(copy);
    for (unsigned i = 0; i < CASES; i++) {
        uint8_t opcode = opcodes[next_random(&seed) % ARRAY_SIZE(opcodes)];
        unsigned size = 1u << next_random(&seed) % 4;
        bool is_down = next_random(&seed) & 1, is_repe = next_random(&seed) & 1;
        struct reference r = {
            .rcx = next_random(&seed) % (0x1800 / size),
            .rsi = pick_address(&seed),
            .rdi = pick_address(&seed),
            .rax = next_random(&seed) & 0x0101010101010101,
            .memory = copy,
        };

        if (next_random(&seed) % 2 == 0)
            r.rdi = r.rsi + next_random(&seed) % 17 - 8; /* overlap */
        /* mostly equal bytes, so that comparisons get somewhere */
        memset(t->ram + DATA, is_repe ? 1 : 0, DATA_SIZE);
        for (unsigned k = 0; k < 12; k++)
            t->ram[DATA + next_random(&seed) % DATA_SIZE] ^= 1;
        memcpy(copy, t->ram + DATA, DATA_SIZE);

        PUT_CODE(t, size == 2 ? 0x66 : 0x3e, is_repe ? 0xf3 : 0xf2, size == 8 ? 0x48 : 0x40,
                 size == 1 ? opcode : opcode + 1);
        st->gpr[CPU_RCX] = r.rcx;
        st->gpr[CPU_RSI] = r.rsi;
        st->gpr[CPU_RDI] = r.rdi;
        st->gpr[CPU_RAX] = r.rax;
        st->rflags = RFLAGS_FIXED | (is_down ? RFLAGS_DF : 0);
        bool has_compare = r.rcx != 0 && (opcode == 0xa6 || opcode == 0xae);
        finish(t);
        reference_run(&r, opcode, size, is_down, is_repe);
        assert_int_equal(st->gpr[CPU_RCX], r.rcx);
        assert_int_equal(st->gpr[CPU_RSI], r.rsi);
        assert_int_equal(st->gpr[CPU_RDI], r.rdi);
        assert_int_equal(st->gpr[CPU_RAX], r.rax);
        if (has_compare) {
            assert_int_equal((st->rflags & RFLAGS_CF) != 0, r.cf);
            assert_int_equal((st->rflags & RFLAGS_ZF) != 0, r.zf);
        }
        assert_memory_equal(t->ram + DATA, copy, DATA_SIZE);
    }
    free(copy);
}

/* ---- half-way ---- */

static void test_fault_leaves_exact_registers(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    PUT_CODE(t, 0xf3, 0x48, 0xab); /* rep stosq */
    st->gpr[CPU_RDI] = UNMAPPED - 0x14;
    st->gpr[CPU_RCX] = 8;
    st->gpr[CPU_RAX] = 0x1122334455667788;
    step(t);
    assert_int_equal(st->rip, SOFT_TEST_HANDLERS + 16 * VEC_PF);
    assert_int_equal(st->cr2, UNMAPPED);
    assert_int_equal(soft_test_get(t, st->gpr[CPU_RSP] + 8, 8), SOFT_TEST_CODE);
    assert_int_equal(st->gpr[CPU_RCX], 6);
    assert_int_equal(st->gpr[CPU_RDI], UNMAPPED - 4);
    assert_int_equal(soft_test_get(t, UNMAPPED - 0xc, 8), 0x1122334455667788);
    assert_int_equal(soft_test_get(t, UNMAPPED - 4, 4), 0); /* the crossing one wrote nothing */
}

/* The flags of REPE CMPS at a fault: Intel's are from before it, AMD's of the last element. */
static void test_flags_at_fault(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    for (int is_amd = 0; is_amd < 2; is_amd++) {
        soft_test_set_vendor(t, is_amd);
        PUT_CODE(t, 0xf3, 0xa6);
        st->gpr[CPU_RSI] = DATA;
        st->gpr[CPU_RDI] = UNMAPPED - 4;
        st->gpr[CPU_RCX] = 8;
        st->rflags = RFLAGS_FIXED | RFLAGS_CF | RFLAGS_SF;
        step(t);
        assert_int_equal(st->gpr[CPU_RCX], 4);
        assert_int_equal(st->rip, SOFT_TEST_HANDLERS + 16 * VEC_PF);
        assert_int_equal(st->rflags & RFLAGS_STATUS,
                         is_amd ? RFLAGS_ZF | RFLAGS_PF : RFLAGS_CF | RFLAGS_SF);
    }
}

static void test_pause_when_asked(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    PUT_CODE(t, 0xf3, 0xaa);
    st->gpr[CPU_RDI] = DATA + 0x800;
    st->gpr[CPU_RCX] = 0x2000;
    st->gpr[CPU_RAX] = 0x5a;
    t->v->go = 0;
    step(t);
    assert_int_equal(st->rip, SOFT_TEST_CODE);
    assert_int_equal(st->gpr[CPU_RCX], 0x2000 - 0x800);
    assert_int_equal(st->gpr[CPU_RDI], DATA + 0x1000);
    assert_true(st->rflags & RFLAGS_RF);
    t->v->go = 1;
    step(t);
    assert_int_equal(st->rip, SOFT_TEST_CODE + 2);
    assert_int_equal(st->gpr[CPU_RCX], 0);
    assert_int_equal(t->ram[DATA + 0x27ff], 0x5a);
    assert_int_equal(t->ram[DATA + 0x2800], 0);
}

/* However long it is, one visit is bounded. */
static void test_budget(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    PUT_CODE(t, 0xf3, 0xac); /* rep lodsb */
    st->gpr[CPU_RSI] = 0;
    st->gpr[CPU_RCX] = SOFT_TEST_RAM;
    step(t);
    assert_int_equal(st->rip, SOFT_TEST_CODE);
    assert_true(st->gpr[CPU_RCX] != 0);
    assert_int_equal(st->gpr[CPU_RSI] + st->gpr[CPU_RCX], SOFT_TEST_RAM);
}

static void test_32bit_addresses(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    PUT_CODE(t, 0x67, 0xf3, 0xa4);
    st->gpr[CPU_RSI] = 0x100000000 | DATA;
    st->gpr[CPU_RDI] = 0x200000000 | (DATA + 16);
    st->gpr[CPU_RCX] = 0x300000000;
    step(t);
    /* no iteration: nothing is written, upper halves included */
    assert_int_equal(st->gpr[CPU_RCX], 0x300000000);
    assert_int_equal(st->gpr[CPU_RSI], 0x100000000 | DATA);

    PUT_CODE(t, 0x67, 0xf3, 0xa4);
    st->gpr[CPU_RCX] = 0x300000002;
    t->ram[DATA + 1] = 7;
    step(t);
    assert_int_equal(st->gpr[CPU_RCX], 0);
    assert_int_equal(st->gpr[CPU_RSI], DATA + 2);
    assert_int_equal(st->gpr[CPU_RDI], DATA + 18);
    assert_int_equal(t->ram[DATA + 17], 7);
}

static void test_segment_prefix(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    st->seg[CPU_GS].base = 0x40;
    PUT_CODE(t, 0x65, 0x36, 0xac); /* gs lodsb; SS counts for nothing in 64-bit mode */
    st->gpr[CPU_RSI] = DATA;
    t->ram[DATA + 0x40] = 0x99;
    step(t);
    assert_int_equal(st->gpr[CPU_RAX] & 0xff, 0x99);
}

/* ---- code pages, devices, ports ---- */

struct written {
    gpa_t gpa;
    uint64_t size;
    unsigned count;
};

static struct written written;

static void note_written(struct soft_engine *engine, struct soft_vcpu *v, gpa_t gpa, unsigned size)
{
    written = (struct written){gpa, size, written.count + 1};
}

static void test_code_page(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    t->engine.code_written = note_written;
    atomic_fetch_or(&t->engine.ram[0].page_flags[DATA >> 12], SOFT_PAGE_CODE);
    for (int is_down = 0; is_down < 2; is_down++) {
        written = (struct written){0};
        PUT_CODE(t, 0xf3, 0x66, 0xab);
        st->gpr[CPU_RDI] = is_down ? DATA + 0x11e : DATA + 0x100;
        st->gpr[CPU_RCX] = 16;
        st->rflags = RFLAGS_FIXED | (is_down ? RFLAGS_DF : 0);
        finish(t);
        assert_int_equal(written.gpa, DATA + 0x100);
        assert_int_equal(written.size, 32);
        assert_int_equal(written.count, 1);
    }
}

static void test_device_memory(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    PUT_CODE(t, 0xf3, 0x66, 0xa5);
    st->gpr[CPU_RSI] = SOFT_TEST_RAM + 0x1000;
    st->gpr[CPU_RDI] = DATA;
    st->gpr[CPU_RCX] = 5;
    finish(t);
    assert_int_equal(t->host_calls, 5);
    assert_int_equal(soft_test_get(t, DATA + 2, 8), ~UINT64_C(0));
    assert_int_equal(soft_test_get(t, DATA + 10, 2), 0);
    PUT_CODE(t, 0xf3, 0xaa);
    st->gpr[CPU_RDI] = SOFT_TEST_RAM + 0x2000;
    st->gpr[CPU_RCX] = 3;
    finish(t);
    assert_int_equal(t->host_calls, 8);
}

static void test_ports(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    t->io_value = 0x1234;
    PUT_CODE(t, 0xf3, 0x66, 0x6d); /* rep insw */
    st->gpr[CPU_RDX] = 0x1f0;
    st->gpr[CPU_RDI] = DATA + 0xfff;
    st->gpr[CPU_RCX] = 2;
    finish(t);
    assert_int_equal(t->io_port, 0x1f0);
    assert_int_equal(t->io_size, 2);
    assert_int_equal(t->host_calls, 2);
    assert_int_equal(soft_test_get(t, DATA + 0xfff, 4), 0x12341234);

    PUT_CODE(t, 0x6f); /* outsd */
    st->gpr[CPU_RSI] = DATA + 0xfff;
    finish(t);
    assert_int_equal(t->io_size, 4);
    assert_int_equal(t->io_value, 0x12341234);
}

/* The port is not read when what it gives could not be stored. */
static void test_ins_fault_reads_nothing(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    PUT_CODE(t, 0x6d);
    st->gpr[CPU_RDI] = UNMAPPED - 2;
    step(t);
    assert_int_equal(st->rip, SOFT_TEST_HANDLERS + 16 * VEC_PF);
    assert_int_equal(st->cr2, UNMAPPED);
    assert_int_equal(t->host_calls, 0);
}

static void test_ports_refused(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    soft_test_user(t, false);
    PUT_CODE(t, 0xf3, 0x6c);
    st->gpr[CPU_RDX] = 0x60;
    st->gpr[CPU_RDI] = DATA;
    st->gpr[CPU_RCX] = 1;
    step(t);
    assert_int_equal(st->rip, SOFT_TEST_HANDLERS + 16 * VEC_GP);
    assert_int_equal(t->host_calls, 0);

    soft_test_user(t, false);
    PUT_CODE(t, 0xf3, 0x6c);
    st->gpr[CPU_RCX] = 0; /* no iteration, no check */
    step(t);
    assert_int_equal(st->rip, SOFT_TEST_CODE + 2);
}

/* ---- 16-bit addresses ---- */

static void test_real_wraps(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    st->seg[CPU_ES].base = 0x20000;
    st->seg[CPU_ES].selector = 0x2000;
    st->gpr[CPU_RDI] = 0xabcdfff0;
    st->gpr[CPU_RCX] = 0xabcd0020;
    st->gpr[CPU_RAX] = 0x77;
    t->v->go = 1;
    SOFT_TEST_RUN(t, 4, 0xf3, 0xaa, 0xf4); /* rep stosb; hlt */
    assert_int_equal(st->gpr[CPU_RDI], 0xabcd0010);
    assert_int_equal(st->gpr[CPU_RCX], 0xabcd0000);
    assert_int_equal(t->ram[0x2ffff], 0x77);
    assert_int_equal(t->ram[0x2000f], 0x77);
    assert_int_equal(t->ram[0x20010], 0);
    assert_int_equal(t->ram[0x30000], 0);
}

/* A word at offset FFFF is beyond the limit. */
static void test_real_limit(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    st->gpr[CPU_RDI] = 0xfffb;
    st->gpr[CPU_RCX] = 8;
    t->v->go = 1;
    SOFT_TEST_RUN(t, 4, 0xf3, 0xab); /* rep stosw */
    assert_int_equal(soft_test_vector(t), VEC_GP);
    assert_int_equal(st->gpr[CPU_RDI], 0xffff);
    assert_int_equal(st->gpr[CPU_RCX], 6);
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
        TEST(test_against_reference, long),
        TEST(test_fault_leaves_exact_registers, long),
        TEST(test_flags_at_fault, long),
        TEST(test_pause_when_asked, long),
        TEST(test_budget, long),
        TEST(test_32bit_addresses, long),
        TEST(test_segment_prefix, long),
        TEST(test_code_page, long),
        TEST(test_device_memory, protected),
        TEST(test_ports, protected),
        TEST(test_ins_fault_reads_nothing, long),
        TEST(test_ports_refused, protected),
        TEST(test_real_wraps, real),
        TEST(test_real_limit, real),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
