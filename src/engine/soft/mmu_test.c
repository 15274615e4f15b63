/*
 * mmu_test.c - the software TLB and memory access: what is cached, what a flush must drop
 *
 * A stale translation is how a test sees that something was cached: the page table is changed
 * without a flush.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>

#include "engine/soft/debug.h"
#include "engine/soft/mmu.h"
#include "engine/soft/testing.h"

#define PT UINT64_C(0x20000) /* page table for 4 KiB mappings */
#define PD (SOFT_TEST_TABLES + 0x2000)
#define PDPT (SOFT_TEST_TABLES + 0x1000)
#define SMALL UINT64_C(0x400000) /* linear: mapped through PT */
#define LARGE UINT64_C(0x600000) /* linear: a 2 MiB page */
#define PAGE_A UINT64_C(0x30000)
#define PAGE_B UINT64_C(0x31000)
#define P 1u
#define W 2u
#define U 4u
#define D 0x40u
#define PS 0x80u
#define G 0x100u

static struct soft_test *test_of(void **state)
{
    return *state;
}

static void map(struct soft_test *t, unsigned n, uint64_t entry)
{
    soft_test_put(t, PT + 8 * n, 8, entry);
}

static uint64_t load(struct soft_test *t, gva_t addr, unsigned size)
{
    uint64_t value;

    assert_int_equal(soft_load(t->v, addr, size, SOFT_AS_CPL, &value), 0);
    return value;
}

static void assert_page_fault(struct soft_test *t, gva_t addr, uint32_t error)
{
    assert_int_equal(t->v->fault.vector, VEC_PF);
    assert_int_equal(t->v->fault.cr2, addr);
    assert_int_equal(t->v->fault.error, error);
}

static int set_up(void **state)
{
    struct soft_test *t = soft_test_create(SOFT_TEST_LONG);

    soft_test_put(t, PD + 16, 8, PT | P | W | U);
    soft_test_put(t, PD + 24, 8, 0x200000 | P | W | U | PS);
    map(t, 0, PAGE_A | P | W | U);
    map(t, 1, PAGE_B | P | W | U);
    soft_test_put(t, PAGE_A, 8, 0xaaaa);
    soft_test_put(t, PAGE_B, 8, 0xbbbb);
    soft_guest_enter(t->v);
    *state = t;
    return 0;
}

static int tear_down(void **state)
{
    struct soft_test *t = *state;

    soft_guest_leave(t->v);
    soft_test_destroy(t);
    return 0;
}

static void test_sizes(void **state)
{
    struct soft_test *t = test_of(state);

    soft_test_put(t, PAGE_A + 0x10, 8, UINT64_C(0x1122334455667788));
    for (unsigned size = 1; size <= 8; size++) {
        uint64_t want = UINT64_C(0x1122334455667788) & mask_bytes(size);
        assert_int_equal(load(t, SMALL + 0x10, size), want);
        assert_int_equal(soft_store(t->v, SMALL + 0x101, size, SOFT_AS_CPL, want), 0);
        assert_int_equal(soft_test_get(t, PAGE_A + 0x101, 8), want);
    }
}

static void test_crossing(void **state)
{
    struct soft_test *t = test_of(state);
    const uint64_t value = UINT64_C(0x8877665544332211);

    /* the second page comes before the first in memory */
    map(t, 0, PAGE_B | P | W);
    map(t, 1, PAGE_A | P | W);
    for (unsigned first = 1; first < 8; first++) {
        assert_int_equal(soft_store(t->v, SMALL + 4096 - first, 8, SOFT_AS_CPL, value), 0);
        assert_int_equal(load(t, SMALL + 4096 - first, 8), value);
        assert_int_equal(soft_test_get(t, PAGE_B + 4096 - first, first), value & mask_bytes(first));
        assert_int_equal(soft_test_get(t, PAGE_A, 8 - first), value >> (8 * first));
    }
}

static void test_crossing_is_atomic(void **state)
{
    struct soft_test *t = test_of(state);
    uint8_t buf[64];

    memset(buf, 0x55, sizeof(buf));
    t->v->st.cr0 |= CR0_WP;
    map(t, 1, PAGE_B | P);
    assert_int_equal(soft_store(t->v, SMALL + 4092, 8, SOFT_AS_CPL, ~UINT64_C(0)), SOFT_FAULT);
    assert_page_fault(t, SMALL + 4096, PF_ERR_P | PF_ERR_W);
    assert_int_equal(soft_test_get(t, PAGE_A + 4092, 4), 0);
    assert_int_equal(soft_write(t->v, SMALL + 4090, buf, sizeof(buf), SOFT_AS_CPL), SOFT_FAULT);
    assert_page_fault(t, SMALL + 4096, PF_ERR_P | PF_ERR_W);
    assert_int_equal(soft_test_get(t, PAGE_A + 4090, 6), 0);
    assert_int_equal(soft_probe(t->v, SMALL + 4090, 7, SOFT_WRITE, SOFT_AS_CPL), SOFT_FAULT);
    assert_int_equal(soft_probe(t->v, SMALL + 4090, 6, SOFT_WRITE, SOFT_AS_CPL), 0);
}

static void test_read_write_lengths(void **state)
{
    struct soft_test *t = test_of(state);
    static uint8_t out[20000], in[20000];

    for (unsigned i = 0; i < sizeof(out); i++)
        out[i] = (uint8_t)(i * 7 + (i >> 8));
    assert_int_equal(soft_write(t->v, LARGE + 4000, out, sizeof(out), SOFT_AS_CPL), 0);
    assert_int_equal(soft_read(t->v, LARGE + 4000, in, sizeof(in), SOFT_AS_CPL), 0);
    assert_memory_equal(in, out, sizeof(out));
    assert_memory_equal(t->ram + 0x200000 + 4000, out, sizeof(out));
}

static void test_invlpg(void **state)
{
    struct soft_test *t = test_of(state);

    assert_int_equal(load(t, SMALL, 8), 0xaaaa);
    map(t, 0, PAGE_B | P | W);
    assert_int_equal(load(t, SMALL, 8), 0xaaaa);
    soft_tlb_rights_changed(t->v); /* empties the first level: the second still has it */
    assert_int_equal(load(t, SMALL, 8), 0xaaaa);
    soft_tlb_flush_page(t->v, SMALL + 123);
    assert_int_equal(load(t, SMALL, 8), 0xbbbb);
}

static void test_invlpg_large(void **state)
{
    struct soft_test *t = test_of(state);

    soft_test_put(t, 0x200000 + 0x5000, 8, 1);
    soft_test_put(t, 0x5000, 8, 2);
    assert_int_equal(load(t, LARGE + 0x5000, 8), 1);
    soft_test_put(t, PD + 24, 8, P | W | U | PS);
    assert_int_equal(load(t, LARGE + 0x5000, 8), 1);
    /* any address of the page drops all of it */
    soft_tlb_flush_page(t->v, LARGE + 0x1ff000);
    assert_int_equal(load(t, LARGE + 0x5000, 8), 2);
}

/* Misses in a row fill what follows, as far as it is known; no page table entry is touched. */
static void test_fill_ahead(void **state)
{
    struct soft_test *t = test_of(state);
    struct soft_vcpu *v = t->v;
    const uint64_t rw = P | W | U;

    for (unsigned i = 0; i < 16; i++)
        map(t, i, (PAGE_A + 4096 * i) | rw);
    for (unsigned i = 0; i < 4; i++)
        load(t, SMALL + 4096 * i, 8);
    assert_null(soft_tlb_find_read(v, SOFT_TLB_KERNEL, SMALL + 4 * 4096, 8));
    assert_int_equal(soft_test_get(t, PT + 8 * 4, 8), (PAGE_A + 4 * 4096) | rw); /* no A */

    /* all of the first four are known by now, and come back with the second of them */
    load(t, SMALL + 5 * 4096, 8);
    soft_tlb_rights_changed(v);
    load(t, SMALL, 8);
    assert_null(soft_tlb_find_read(v, SOFT_TLB_KERNEL, SMALL + 2 * 4096, 8));
    load(t, SMALL + 4096, 8);
    for (unsigned i = 0; i < 4; i++)
        assert_ptr_equal(soft_tlb_find_read(v, SOFT_TLB_KERNEL, SMALL + 4096 * i, 8),
                         t->ram + PAGE_A + 4096 * i);
    assert_null(soft_tlb_find_read(v, SOFT_TLB_KERNEL, SMALL + 4 * 4096, 8));
    assert_null(soft_tlb_find_read(v, SOFT_TLB_KERNEL, SMALL + 5 * 4096, 8));

    /* clean pages are not made writable by it */
    soft_tlb_rights_changed(v);
    assert_int_equal(soft_store(v, SMALL, 8, SOFT_AS_CPL, 1), 0);
    assert_int_equal(soft_store(v, SMALL + 4096, 8, SOFT_AS_CPL, 1), 0);
    assert_null(soft_tlb_find_write(v, SOFT_TLB_KERNEL, SMALL + 2 * 4096, 8));
    assert_false(soft_test_get(t, PT + 8 * 2, 8) & D);

    /* a large page, up to its end, and INVLPG of any part of it */
    load(t, LARGE + 0x1fd000, 8);
    load(t, LARGE + 0x1fe000, 8);
    assert_ptr_equal(soft_tlb_find_read(v, SOFT_TLB_KERNEL, LARGE + 0x1ff000, 8),
                     t->ram + 0x3ff000);
    assert_null(soft_tlb_find_read(v, SOFT_TLB_KERNEL, LARGE + 0x200000, 8));
    soft_tlb_flush_page(v, LARGE);
    assert_null(soft_tlb_find_read(v, SOFT_TLB_KERNEL, LARGE + 0x1ff000, 8));
    assert_null(soft_tlb_find_read(v, SOFT_TLB_KERNEL, LARGE + 0x1fd000, 8));
}

static void test_invlpg_huge(void **state)
{
    struct soft_test *t = test_of(state);
    const gva_t huge = UINT64_C(0x40000000);

    if (!cpu_model_has(&t->model, CPU_FEATURE_PDPE1GB))
        skip();
    soft_test_put(t, PDPT + 8, 8, P | W | U | PS);
    soft_test_put(t, 0x200000 + 0x5000, 8, 1);
    assert_int_equal(load(t, huge + 0x205000, 8), 1);
    soft_test_put(t, PDPT + 8, 8, 0);
    assert_int_equal(load(t, huge + 0x205000, 8), 1);
    soft_tlb_flush_page(t->v, huge + 0x3ff00000);
    uint64_t value;
    assert_int_equal(soft_load(t->v, huge + 0x205000, 8, SOFT_AS_CPL, &value), SOFT_FAULT);
    assert_page_fault(t, huge + 0x205000, 0);
}

static void test_invlpg_drops_code(void **state)
{
    struct soft_test *t = test_of(state);
    struct soft_place place;
    unsigned slot = soft_tlb_exec_slot(SMALL);

    assert_int_equal(soft_translate(t->v, SMALL, SOFT_FETCH, SOFT_AS_CPL, &place), 0);
    assert_ptr_equal(soft_tlb_find_exec(t->v, SOFT_TLB_KERNEL, SMALL), t->ram + PAGE_A);
    t->v->tlb[SOFT_TLB_KERNEL].code_cookie[slot] = 77;
    soft_tlb_flush_page(t->v, SMALL + 4096);
    assert_int_equal(t->v->tlb[SOFT_TLB_KERNEL].code_cookie[slot], 77);
    soft_tlb_flush_page(t->v, SMALL);
    assert_int_equal(t->v->tlb[SOFT_TLB_KERNEL].code_cookie[slot], 0);
    assert_null(soft_tlb_find_exec(t->v, SOFT_TLB_KERNEL, SMALL));
}

static void test_global(void **state)
{
    struct soft_test *t = test_of(state);

    t->v->st.cr4 |= CR4_PGE;
    map(t, 0, PAGE_A | P | W | G);
    assert_int_equal(load(t, SMALL, 8), 0xaaaa);
    assert_int_equal(load(t, SMALL + 4096, 8), 0xbbbb);
    map(t, 0, PAGE_B | P | W | G);
    map(t, 1, PAGE_A | P | W);
    soft_tlb_flush_nonglobal(t->v);
    assert_int_equal(load(t, SMALL, 8), 0xaaaa);
    assert_int_equal(load(t, SMALL + 4096, 8), 0xaaaa);
    soft_tlb_rights_changed(t->v);
    assert_int_equal(load(t, SMALL, 8), 0xaaaa);
    soft_tlb_flush_all(t->v);
    assert_int_equal(load(t, SMALL, 8), 0xbbbb);
}

static void test_pcid(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    st->cr4 |= CR4_PCIDE | CR4_PGE;
    st->cr3 |= 1;
    soft_tlb_switch(t->v, true);
    assert_int_equal(load(t, SMALL, 8), 0xaaaa);
    map(t, 0, PAGE_B | P | W);
    st->cr3 ^= 3; /* PCID 2 */
    soft_tlb_switch(t->v, true);
    assert_int_equal(load(t, SMALL, 8), 0xbbbb);
    st->cr3 ^= 3;
    soft_tlb_switch(t->v, true);
    assert_int_equal(load(t, SMALL, 8), 0xaaaa);
    soft_tlb_flush_pcid(t->v, 2);
    assert_int_equal(load(t, SMALL, 8), 0xaaaa);
    soft_tlb_flush_page_pcid(t->v, 2, SMALL);
    assert_int_equal(load(t, SMALL, 8), 0xaaaa);
    soft_tlb_flush_page_pcid(t->v, 1, SMALL);
    assert_int_equal(load(t, SMALL, 8), 0xbbbb);
    map(t, 0, PAGE_A | P | W);
    assert_int_equal(load(t, SMALL, 8), 0xbbbb);
    soft_tlb_switch(t->v, false);
    assert_int_equal(load(t, SMALL, 8), 0xaaaa);
    map(t, 0, PAGE_B | P | W);
    soft_tlb_flush_pcids(t->v);
    assert_int_equal(load(t, SMALL, 8), 0xbbbb);
}

/* ASIDs are 16 bits: after all of them are used nothing old may come back. */
static void test_asid_wrap(void **state)
{
    struct soft_test *t = test_of(state);

    assert_int_equal(load(t, SMALL, 8), 0xaaaa);
    for (unsigned i = 0; i < 70000; i++) {
        map(t, 0, (i & 1 ? PAGE_A : PAGE_B) | P | W);
        soft_tlb_flush_nonglobal(t->v);
        assert_int_equal(load(t, SMALL, 8), i & 1 ? 0xaaaa : 0xbbbb);
    }
}

static void test_dirty(void **state)
{
    struct soft_test *t = test_of(state);

    load(t, SMALL, 8);
    assert_int_equal(soft_test_get(t, PT, 8) & 0x60, 0x20);
    assert_null(soft_tlb_find_write(t->v, SOFT_TLB_KERNEL, SMALL, 8));
    assert_int_equal(soft_store(t->v, SMALL, 8, SOFT_AS_CPL, 1), 0);
    assert_int_equal(soft_test_get(t, PT, 8) & 0x60, 0x60);
    assert_non_null(soft_tlb_find_write(t->v, SOFT_TLB_KERNEL, SMALL, 8));
    assert_true(t->engine.ram[0].page_flags[PAGE_A >> 12] & SOFT_PAGE_WRITER(0));
}

static void test_write_protect(void **state)
{
    struct soft_test *t = test_of(state);

    map(t, 0, PAGE_A | P | D);
    assert_int_equal(soft_store(t->v, SMALL, 8, SOFT_AS_CPL, 1), 0);
    t->v->st.cr0 |= CR0_WP;
    soft_tlb_rights_changed(t->v);
    assert_int_equal(soft_store(t->v, SMALL, 8, SOFT_AS_CPL, 2), SOFT_FAULT);
    assert_page_fault(t, SMALL, PF_ERR_P | PF_ERR_W);
    assert_int_equal(load(t, SMALL, 8), 1);
}

static void test_smap_smep(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;
    struct soft_place place;
    uint64_t value;

    map(t, 1, PAGE_B | P | W); /* a supervisor page */
    st->cr4 |= CR4_SMAP | CR4_SMEP;
    assert_int_equal(soft_load(t->v, SMALL, 1, SOFT_AS_CPL, &value), SOFT_FAULT);
    assert_page_fault(t, SMALL, PF_ERR_P);
    assert_int_equal(load(t, SMALL + 4096, 1), 0xbb);
    st->rflags |= RFLAGS_AC;
    assert_int_equal(load(t, SMALL, 1), 0xaa);
    assert_int_equal(soft_load(t->v, SMALL, 1, SOFT_AS_SYSTEM, &value), SOFT_FAULT);
    assert_int_equal(soft_translate(t->v, SMALL, SOFT_FETCH, SOFT_AS_CPL, &place), SOFT_FAULT);
    assert_page_fault(t, SMALL, PF_ERR_P | PF_ERR_I);
    assert_int_equal(soft_load(t->v, SMALL + 4096, 1, SOFT_AS_USER, &value), SOFT_FAULT);
    assert_page_fault(t, SMALL + 4096, PF_ERR_P | PF_ERR_U);
}

static unsigned code_written_size;
static gpa_t code_written_gpa;

static void note_code_written(struct soft_engine *engine, struct soft_vcpu *v, gpa_t gpa,
                              unsigned size)
{
    code_written_gpa = gpa;
    code_written_size += size;
}

static void test_code_page(void **state)
{
    struct soft_test *t = test_of(state);

    t->engine.code_written = note_code_written;
    code_written_size = 0;
    assert_int_equal(soft_store(t->v, SMALL, 8, SOFT_AS_CPL, 1), 0);
    atomic_fetch_or(&t->engine.ram[0].page_flags[PAGE_A >> 12], SOFT_PAGE_CODE);
    soft_tlb_drop_writes(t->v, t->ram + PAGE_A);
    assert_null(soft_tlb_find_write(t->v, SOFT_TLB_KERNEL, SMALL, 1));
    assert_non_null(soft_tlb_find_read(t->v, SOFT_TLB_KERNEL, SMALL, 1));
    for (unsigned i = 1; i <= 2; i++) {
        assert_int_equal(soft_store(t->v, SMALL + 0xffe, 4, SOFT_AS_CPL, 0x11223344), 0);
        assert_int_equal(code_written_gpa, PAGE_A + 0xffe);
        assert_int_equal(code_written_size, 2 * i);
        assert_null(soft_tlb_find_write(t->v, SOFT_TLB_KERNEL, SMALL, 1));
    }
    assert_int_equal(soft_test_get(t, PAGE_A + 0xffe, 2), 0x3344);
}

static void test_device_and_rom(void **state)
{
    struct soft_test *t = test_of(state);
    struct err e;
    static uint8_t rom[4096] __attribute__((aligned(4096)));

    memset(rom, 0x90, sizeof(rom));
    assert_int_equal(soft_engine_add_ram(&t->engine, UINT64_C(0xf0000000), rom, 4096, true, &e), 0);
    map(t, 2, UINT64_C(0xf0000000) | P | W);
    map(t, 3, UINT64_C(0xfee00000) | P | W);
    assert_int_equal(soft_store(t->v, SMALL + 0x2000, 4, SOFT_AS_CPL, 1), 0);
    assert_int_equal(load(t, SMALL + 0x2000, 4), 0x90909090);
    assert_int_equal(soft_store(t->v, SMALL + 0x2000, 4, SOFT_AS_CPL, 1), 0);
    assert_int_equal(load(t, SMALL + 0x2000, 4), 0x90909090);
    assert_int_equal(t->host_calls, 2); /* may be flash: the machine knows */
    t->host_calls = 0;
    assert_int_equal(load(t, SMALL + 0x3000, 4), 0xffffffff);
    assert_int_equal(t->host_calls, 1);
    assert_null(soft_tlb_find_read(t->v, SOFT_TLB_KERNEL, SMALL + 0x3000, 1));
    /* half ROM, half device */
    assert_int_equal(load(t, SMALL + 0x2ffe, 4), 0xffff9090);
    assert_int_equal(t->host_calls, 2);
    assert_int_equal(soft_engine_remove_ram(&t->engine, UINT64_C(0xf0000000), &e), 0);
}

static void test_watchpoint(void **state)
{
    struct soft_test *t = test_of(state);
    struct cpu_state *st = &t->v->st;

    load(t, SMALL, 8);
    st->dr[1] = SMALL + 0x106;
    st->dr7 = DR7_FIXED | 1 << 2 | 1u << 20 | 1u << 22; /* L1, write, two bytes */
    soft_debug_changed(t->v);
    assert_int_equal(load(t, SMALL + 0x106, 2), 0);
    assert_int_equal(soft_store(t->v, SMALL + 0x108, 8, SOFT_AS_CPL, 1), 0);
    assert_int_equal(soft_store(t->v, SMALL + 0x104, 2, SOFT_AS_CPL, 1), 0);
    assert_int_equal(st->pending_dbg, 0);
    assert_int_equal(soft_store(t->v, SMALL + 0x100, 8, SOFT_AS_CPL, 1), 0);
    assert_int_equal(st->pending_dbg, 2);
    st->pending_dbg = 0;
    st->dr7 |= 3u << 20; /* read or write */
    soft_debug_changed(t->v);
    load(t, SMALL + 0x107, 1);
    assert_int_equal(st->pending_dbg, 2);
    assert_null(soft_tlb_find_read(t->v, SOFT_TLB_KERNEL, SMALL, 1));
}

static void test_alignment_check(void **state)
{
    struct soft_test *t = test_of(state);
    uint64_t value;

    soft_test_user(t, true);
    t->v->st.rflags |= RFLAGS_AC;
    load(t, SMALL + 1, 4);
    t->v->st.cr0 |= CR0_AM;
    assert_int_equal(soft_load(t->v, SMALL + 1, 4, SOFT_AS_CPL, &value), SOFT_FAULT);
    assert_int_equal(t->v->fault.vector, VEC_AC);
    assert_true(t->v->fault.has_error && t->v->fault.error == 0);
    load(t, SMALL + 4, 4);
    load(t, SMALL + 1, 1);
    assert_int_equal(soft_store(t->v, SMALL + 4, 8, SOFT_AS_CPL, 0), SOFT_FAULT);
    assert_int_equal(soft_load(t->v, SMALL + 1, 4, SOFT_AS_SYSTEM, &value), 0);
}

static void test_not_canonical(void **state)
{
    struct soft_test *t = test_of(state);
    static const uint64_t addrs[] = {UINT64_C(0x800000000000), UINT64_C(0xffff7fffffffffff),
                                     UINT64_C(0x8000000000000000)};
    uint64_t value;

    for (unsigned i = 0; i < ARRAY_SIZE(addrs); i++) {
        assert_int_equal(soft_load(t->v, addrs[i], 1, SOFT_AS_CPL, &value), SOFT_FAULT);
        assert_int_equal(t->v->fault.vector, VEC_GP);
        assert_int_equal(t->v->fault.error, 0);
    }
}

static void test_pdptrs(void **state)
{
    struct soft_test *t = test_of(state);

    for (unsigned i = 0; i < 4; i++)
        soft_test_put(t, PAGE_A + 0x20 + 8 * i, 8, 0x1000 * i | P);
    assert_int_equal(soft_load_pdptrs(t->v, PAGE_A + 0x20), 0);
    assert_int_equal(t->v->st.pae_pdpte[3], 0x3001);
    soft_test_put(t, PAGE_A + 0x20, 8, 0);
    soft_test_put(t, PAGE_A + 0x38, 8, 0x4000 | P | W);
    assert_int_equal(soft_load_pdptrs(t->v, PAGE_A + 0x20), SOFT_FAULT);
    assert_int_equal(t->v->fault.vector, VEC_GP);
    assert_int_equal(t->v->st.pae_pdpte[0], P);
}

/* Many pages through few slots, twice: a wrong tag or addend shows itself. */
static void test_conflicts(void **state)
{
    struct soft_test *t = test_of(state);

    for (unsigned i = 0; i < 512; i++)
        soft_test_put(t, 0x200000 + 4096 * i + 8, 8, i);
    for (unsigned round = 0; round < 3; round++)
        for (unsigned i = 0; i < 512; i++) {
            assert_int_equal(load(t, LARGE + 4096 * i + 8, 8), i);
            assert_int_equal(load(t, 0x200000 + 4096 * i + 8, 8), i);
            if (round == 1 && i % 7 == 0)
                soft_tlb_flush_page(t->v, LARGE + 4096 * i);
        }
}

/* Outside long mode linear addresses have 32 bits: the byte after 4 GiB less 1 is byte 0. */
static void test_wrap_at_4g(void **state)
{
    struct soft_test *t = soft_test_create(SOFT_TEST_PROTECTED);
    struct err e;
    static uint8_t top[4096] __attribute__((aligned(4096)));

    assert_int_equal(soft_engine_add_ram(&t->engine, 0xfffff000, top, 4096, false, &e), 0);
    soft_guest_enter(t->v);
    assert_int_equal(soft_store(t->v, 0xfffffffe, 4, SOFT_AS_CPL, 0x44332211), 0);
    assert_int_equal(load_le16(top + 4094), 0x2211);
    assert_int_equal(soft_test_get(t, 0, 2), 0x4433);
    assert_int_equal(load(t, 0xfffffffe, 4), 0x44332211);
    soft_guest_leave(t->v);
    assert_int_equal(soft_engine_remove_ram(&t->engine, 0xfffff000, &e), 0);
    soft_test_destroy(t);
}

/* 32-bit paging with 4 MiB pages: INVLPG anywhere in one drops both halves of it. */
static void test_legacy_large(void **state)
{
    struct soft_test *t = soft_test_create(SOFT_TEST_PROTECTED);
    struct cpu_state *st = &t->v->st;
    uint64_t value;

    soft_test_put(t, SOFT_TEST_TABLES, 4, P | W | PS);
    soft_test_put(t, SOFT_TEST_TABLES + 4, 4, P | W | PS);
    st->cr3 = SOFT_TEST_TABLES;
    st->cr4 = CR4_PSE;
    st->cr0 |= CR0_PG;
    soft_tlb_flush_all(t->v);
    soft_guest_enter(t->v);
    soft_test_put(t, 0x300000, 4, 0x1234);
    assert_int_equal(load(t, 0x700000, 4), 0x1234);
    assert_int_equal(soft_test_get(t, SOFT_TEST_TABLES + 4, 4), P | W | PS | 0x20);
    soft_test_put(t, SOFT_TEST_TABLES + 4, 4, 0);
    assert_int_equal(load(t, 0x700000, 4), 0x1234);
    soft_tlb_flush_page(t->v, 0x400000);
    assert_int_equal(soft_load(t->v, 0x700000, 4, SOFT_AS_CPL, &value), SOFT_FAULT);
    assert_page_fault(t, 0x700000, 0);
    soft_guest_leave(t->v);
    soft_test_destroy(t);
}

static void test_pae(void **state)
{
    struct soft_test *t = soft_test_create(SOFT_TEST_PROTECTED);
    struct cpu_state *st = &t->v->st;

    soft_test_put(t, SOFT_TEST_TABLES + 0x18, 8, (SOFT_TEST_TABLES + 0x1000) | P);
    soft_test_put(t, SOFT_TEST_TABLES + 0x1000 + 8 * 511, 8, PT | P | W);
    map(t, 511, PAGE_A | P | W);
    st->cr3 = SOFT_TEST_TABLES;
    st->cr4 = CR4_PAE;
    st->cr0 |= CR0_PG;
    soft_tlb_flush_all(t->v);
    soft_guest_enter(t->v);
    assert_int_equal(soft_load_pdptrs(t->v, st->cr3), 0);
    assert_int_equal(soft_store(t->v, 0xfffff010, 4, SOFT_AS_CPL, 0x5678), 0);
    assert_int_equal(soft_test_get(t, PAGE_A + 0x10, 4), 0x5678);
    soft_guest_leave(t->v);
    soft_test_destroy(t);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_sizes),
        TEST(test_crossing),
        TEST(test_crossing_is_atomic),
        TEST(test_read_write_lengths),
        TEST(test_invlpg),
        TEST(test_invlpg_large),
        TEST(test_fill_ahead),
        TEST(test_invlpg_huge),
        TEST(test_invlpg_drops_code),
        TEST(test_global),
        TEST(test_pcid),
        TEST(test_asid_wrap),
        TEST(test_dirty),
        TEST(test_write_protect),
        TEST(test_smap_smep),
        TEST(test_code_page),
        TEST(test_device_and_rom),
        TEST(test_watchpoint),
        TEST(test_alignment_check),
        TEST(test_not_canonical),
        TEST(test_pdptrs),
        TEST(test_conflicts),
        cmocka_unit_test(test_wrap_at_4g),
        cmocka_unit_test(test_legacy_large),
        cmocka_unit_test(test_pae),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
