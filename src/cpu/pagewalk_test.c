/*
 * pagewalk_test.c - every combination of P, W, U, NX and a reserved bit at every level, against
 * an expectation written down level by level; large pages, A and D bits, error codes
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>

#include "cpu/pagewalk.h"

#define TABLES 6u
#define TABLE(n) ((gpa_t)(n)*4096)
#define P BIT(0)
#define W BIT(1)
#define U BIT(2)
#define A BIT(5)
#define D BIT(6)
#define PS BIT(7)
#define G BIT(8)
#define NX BIT(63)

/* Linear address with a different index at each level. */
#define ADDR UINT64_C(0x00123456789abcde)

struct fixture {
    uint8_t memory[TABLES * 4096] __attribute__((aligned(4096)));
    bool is_rom;
    unsigned entries_written;
    uint64_t pdpte[4];
    struct pagewalk pw;
};

static struct fixture *fixture_of(void **state)
{
    return *state;
}

static uint8_t *entry_host(void *ctx, gpa_t addr, bool *is_writable)
{
    struct fixture *f = ctx;

    *is_writable = !f->is_rom;
    return addr < sizeof(f->memory) ? f->memory + addr : NULL;
}

static void entry_written(void *ctx, gpa_t addr)
{
    ((struct fixture *)ctx)->entries_written++;
}

static void fixture_reset(struct fixture *f)
{
    memset(f, 0, sizeof(*f));
    f->pw = (struct pagewalk){.cr0 = CR0_PG | CR0_PE,
                              .pae_pdpte = f->pdpte,
                              .phys_bits = 46,
                              .has_1g_pages = true,
                              .has_pse36 = true,
                              .entry = entry_host,
                              .entry_written = entry_written,
                              .ctx = f};
}

enum mode { LEGACY, PAE, LONG4, LONG5 };

/* Top level number, 1 = page table. */
static unsigned mode_levels(enum mode mode)
{
    return mode == LONG5 ? 5 : mode == LONG4 ? 4 : 2;
}

static void mode_set(struct fixture *f, enum mode mode)
{
    f->pw.cr4 &= ~(CR4_PAE | CR4_LA57);
    f->pw.efer &= ~EFER_LMA;
    if (mode >= PAE)
        f->pw.cr4 |= CR4_PAE;
    if (mode >= LONG4)
        f->pw.efer |= EFER_LMA;
    if (mode == LONG5)
        f->pw.cr4 |= CR4_LA57;
    for (unsigned i = 0; i < 4; i++)
        f->pdpte[i] = P;
}

static void *entry_at(struct fixture *f, enum mode mode, unsigned table, unsigned level)
{
    if (mode == LEGACY)
        return f->memory + TABLE(table) + 4 * ((uint32_t)ADDR >> (12 + 10 * (level - 1)) & 1023);
    return f->memory + TABLE(table) + 8 * (ADDR >> (12 + 9 * (level - 1)) & 511);
}

static uint64_t entry_get(struct fixture *f, enum mode mode, unsigned table, unsigned level)
{
    void *p = entry_at(f, mode, table, level);

    return mode == LEGACY ? load_le32(p) : load_le64(p);
}

static void entry_put(struct fixture *f, enum mode mode, unsigned table, unsigned level,
                      uint64_t value)
{
    void *p = entry_at(f, mode, table, level);

    if (mode == LEGACY)
        store_le32(p, (uint32_t)value);
    else
        store_le64(p, value);
}

/* One case of the matrix. flags[0] is the top level; bit 0 P, 1 W, 2 U, 3 NX, 4 reserved. */
struct matrix_case {
    enum mode mode;
    unsigned leaf_level;
    unsigned count; /* levels walked */
    uint8_t flags[5];
    enum pagewalk_access access;
    bool is_user, is_user_page_allowed;
    bool wp, smep, nxe;
};

/* -1: permitted, else the error code. Written from the manual's sentences, one by one. */
static int expected(const struct matrix_case *c)
{
    int about = 0;
    bool w = true, u = true, nx = false;

    if (c->access == PAGEWALK_WRITE)
        about += 2;
    if (c->is_user)
        about += 4;
    if (c->access == PAGEWALK_FETCH && (c->smep || (c->mode != LEGACY && c->nxe)))
        about += 16;
    for (unsigned i = 0; i < c->count; i++) {
        if ((c->flags[i] & 1) == 0)
            return about;
        if (c->flags[i] & 16)
            return about + 8 + 1;
        if (c->flags[i] & 8) {
            if (!c->nxe)
                return about + 8 + 1;
            nx = true;
        }
        if (!(c->flags[i] & 2))
            w = false;
        if (!(c->flags[i] & 4))
            u = false;
    }
    if (c->access == PAGEWALK_FETCH) {
        if (nx)
            return about + 1;
        if (c->is_user)
            return u ? -1 : about + 1;
        return u && c->smep ? about + 1 : -1;
    }
    if (c->is_user) {
        if (!u)
            return about + 1;
        return c->access == PAGEWALK_WRITE && !w ? about + 1 : -1;
    }
    if (u && !c->is_user_page_allowed)
        return about + 1;
    return c->access == PAGEWALK_WRITE && !w && c->wp ? about + 1 : -1;
}

static uint64_t entry_make(const struct matrix_case *c, unsigned i, unsigned level)
{
    uint64_t flags = c->flags[i];
    bool is_leaf = level == c->leaf_level;
    uint64_t value = (flags & 7) | (is_leaf ? BIT(30) : TABLE(i + 1));

    if (is_leaf && level > 1)
        value |= PS;
    if (flags & 8)
        value |= NX;
    if (flags & 16)
        value |= c->mode == LEGACY ? BIT(21) : BIT(46);
    return value;
}

static void case_check(struct fixture *f, const struct matrix_case *c)
{
    unsigned top = mode_levels(c->mode);
    int want = expected(c);
    struct pagewalk_result r;
    bool is_ok;

    f->pw.cr0 = CR0_PG | CR0_PE | (c->wp ? CR0_WP : 0);
    f->pw.cr4 = (f->pw.cr4 & ~CR4_SMEP) | CR4_PSE | (c->smep ? CR4_SMEP : 0);
    f->pw.efer = (f->pw.efer & ~EFER_NXE) | (c->nxe ? EFER_NXE : 0);
    for (unsigned i = 0; i < c->count; i++)
        entry_put(f, c->mode, i, top - i, entry_make(c, i, top - i));

    is_ok = pagewalk(&f->pw, ADDR, c->access, c->is_user, c->is_user_page_allowed, &r);
    assert_int_equal(is_ok ? -1 : (int)r.error, want);
    for (unsigned i = 0; i < c->count; i++) {
        uint64_t want_entry = entry_make(c, i, top - i);
        if (want == -1)
            want_entry |= A;
        if (want == -1 && i == c->count - 1 && c->access == PAGEWALK_WRITE)
            want_entry |= D;
        assert_int_equal(entry_get(f, c->mode, i, top - i), want_entry);
    }
}

/* All flags at all levels; the rest exhaustively, or with `is_sampled` by turns. */
static void matrix_run(struct fixture *f, enum mode mode, unsigned leaf_level, unsigned flag_bits,
                       bool is_sampled)
{
    struct matrix_case c = {.mode = mode, .leaf_level = leaf_level};
    unsigned cases;

    mode_set(f, mode);
    c.count = mode_levels(mode) - leaf_level + 1;
    cases = 1u << (flag_bits * c.count);
    for (unsigned n = 0; n < cases; n++) {
        bool has_reserved = false;
        for (unsigned i = 0; i < c.count; i++) {
            c.flags[i] = (uint8_t)(n >> (flag_bits * i) & ((1u << flag_bits) - 1));
            has_reserved |= mode == LEGACY && i < c.count - 1 && (c.flags[i] & 16);
        }
        if (has_reserved)
            continue;
        for (unsigned k = is_sampled ? n * 2654435761u >> 26 : 0; k < 72;
             k += is_sampled ? 64 : 1) {
            c.access = (enum pagewalk_access)(k % 3);
            c.is_user = k / 3 % 3 == 0;
            c.is_user_page_allowed = k / 3 % 3 == 1;
            c.wp = k / 9 & 1;
            c.smep = k / 9 & 2;
            c.nxe = k / 9 & 4;
            case_check(f, &c);
        }
    }
}

static void test_matrix_legacy(void **state)
{
    /* 4 KiB pages have no reserved bits here: P, W, U */
    matrix_run(fixture_of(state), LEGACY, 1, 3, false);
}

static void test_matrix_legacy_large(void **state)
{
    struct fixture *f = fixture_of(state);
    struct matrix_case c = {.mode = LEGACY, .leaf_level = 2, .count = 1};

    mode_set(f, LEGACY);
    for (unsigned n = 0; n < 16; n++)
        for (unsigned k = 0; k < 36; k++) {
            c.flags[0] = (uint8_t)((n & 7) | (n & 8) << 1);
            c.access = (enum pagewalk_access)(k % 3);
            c.is_user = k / 3 % 3 == 0;
            c.is_user_page_allowed = k / 3 % 3 == 1;
            c.wp = k / 9 & 1;
            c.smep = k / 9 & 2;
            case_check(f, &c);
        }
}

static void test_matrix_pae(void **state)
{
    matrix_run(fixture_of(state), PAE, 1, 5, false);
    matrix_run(fixture_of(state), PAE, 2, 5, false);
}

static void test_matrix_long(void **state)
{
    matrix_run(fixture_of(state), LONG4, 1, 5, true);
    matrix_run(fixture_of(state), LONG4, 2, 5, true);
    matrix_run(fixture_of(state), LONG4, 3, 5, false);
}

static void test_matrix_long5(void **state)
{
    matrix_run(fixture_of(state), LONG5, 1, 4, true);
    matrix_run(fixture_of(state), LONG5, 3, 5, true);
}

static void chain(struct fixture *f, enum mode mode, unsigned leaf_level, uint64_t leaf)
{
    unsigned top = mode_levels(mode);

    mode_set(f, mode);
    for (unsigned i = 0; top - i > leaf_level; i++)
        entry_put(f, mode, i, top - i, TABLE(i + 1) | P | W | U | A);
    entry_put(f, mode, top - leaf_level, leaf_level, leaf);
}

static bool walk(struct fixture *f, enum pagewalk_access access, struct pagewalk_result *r)
{
    return pagewalk(&f->pw, ADDR, access, false, true, r);
}

static void test_addresses(void **state)
{
    struct fixture *f = fixture_of(state);
    struct pagewalk_result r;

    chain(f, LONG4, 1, BIT(45) | 0x12345000 | P | W | BIT(7) /* PAT */);
    assert_true(walk(f, PAGEWALK_READ, &r));
    assert_int_equal(r.gpa, BIT(45) | 0x12345000);
    assert_int_equal(r.page_shift, 12);

    chain(f, LONG4, 2, BIT(45) | 0x40200000 | P | W | PS | BIT(12));
    assert_true(walk(f, PAGEWALK_READ, &r));
    assert_int_equal(r.gpa, BIT(45) | 0x40200000 | (ADDR & 0x1ff000));
    assert_int_equal(r.page_shift, 21);

    chain(f, LONG4, 3, BIT(45) | 0x40000000 | P | W | PS | BIT(12));
    assert_true(walk(f, PAGEWALK_READ, &r));
    assert_int_equal(r.gpa, BIT(45) | 0x40000000 | (ADDR & 0x3ffff000));
    assert_int_equal(r.page_shift, 30);

    f->pw.cr4 |= CR4_PSE;
    chain(f, LEGACY, 2, 0x40000000 | 0xa5u << 13 | P | W | PS);
    assert_true(walk(f, PAGEWALK_READ, &r));
    assert_int_equal(r.gpa, UINT64_C(0xa540000000) | (ADDR & 0x3ff000));
    assert_int_equal(r.page_shift, 22);

    chain(f, LEGACY, 1, 0xfffff000 | P);
    assert_true(walk(f, PAGEWALK_READ, &r));
    assert_int_equal(r.gpa, 0xfffff000);
}

static void test_reserved_bits(void **state)
{
    struct fixture *f = fixture_of(state);
    struct pagewalk_result r;

    f->pw.efer = EFER_NXE;
    /* bits below a large page's size */
    for (unsigned bit = 13; bit < 21; bit++) {
        chain(f, LONG4, 2, BIT(bit) | P | PS);
        assert_false(walk(f, PAGEWALK_READ, &r));
        assert_int_equal(r.error, PF_ERR_P | PF_ERR_RSVD);
    }
    for (unsigned bit = 13; bit < 30; bit++) {
        chain(f, LONG4, 3, BIT(bit) | P | PS);
        assert_false(walk(f, PAGEWALK_READ, &r));
    }
    /* ignored in long mode, reserved with PAE */
    for (unsigned bit = 52; bit < 63; bit++) {
        chain(f, LONG4, 1, BIT(bit) | P);
        assert_true(walk(f, PAGEWALK_READ, &r));
        chain(f, PAE, 1, BIT(bit) | P);
        assert_false(walk(f, PAGEWALK_READ, &r));
        assert_int_equal(r.error, PF_ERR_P | PF_ERR_RSVD);
    }
    for (unsigned bit = 45; bit < 52; bit++) {
        chain(f, LONG4, 1, BIT(bit) | P);
        assert_int_equal(walk(f, PAGEWALK_READ, &r), bit < 46);
    }
    chain(f, LONG4, 4, P | PS);
    assert_false(walk(f, PAGEWALK_READ, &r));
    assert_int_equal(r.error, PF_ERR_P | PF_ERR_RSVD);
    f->pw.has_1g_pages = false;
    chain(f, LONG4, 3, P | PS);
    assert_false(walk(f, PAGEWALK_READ, &r));
    assert_int_equal(r.error, PF_ERR_P | PF_ERR_RSVD);
}

static void test_bit8(void **state)
{
    struct fixture *f = fixture_of(state);
    struct pagewalk_result r;

    chain(f, LONG4, 1, P);
    for (unsigned level = 2; level <= 4; level++) {
        uint64_t entry = entry_get(f, LONG4, 4 - level, level);
        entry_put(f, LONG4, 4 - level, level, entry | G);
        f->pw.is_bit8_reserved = false;
        assert_true(walk(f, PAGEWALK_READ, &r));
        f->pw.is_bit8_reserved = true;
        assert_int_equal(walk(f, PAGEWALK_READ, &r), level == 2);
        entry_put(f, LONG4, 4 - level, level, entry);
    }
}

static void test_pse36(void **state)
{
    struct fixture *f = fixture_of(state);
    struct pagewalk_result r;

    f->pw.cr4 = CR4_PSE;
    f->pw.phys_bits = 36;
    for (unsigned bit = 13; bit <= 21; bit++) {
        chain(f, LEGACY, 2, BIT(bit) | P | PS);
        f->pw.has_pse36 = true;
        assert_int_equal(walk(f, PAGEWALK_READ, &r), bit < 17);
        f->pw.has_pse36 = false;
        assert_false(walk(f, PAGEWALK_READ, &r));
        assert_int_equal(r.error, PF_ERR_P | PF_ERR_RSVD);
    }
    /* without CR4.PSE the bit means nothing: a page table */
    f->pw.cr4 = 0;
    chain(f, LEGACY, 1, 0x7000 | P);
    entry_put(f, LEGACY, 0, 2, TABLE(1) | P | PS);
    assert_true(walk(f, PAGEWALK_READ, &r));
    assert_int_equal(r.gpa, 0x7000);
}

static void test_rights_reported(void **state)
{
    struct fixture *f = fixture_of(state);
    struct pagewalk_result r;

    chain(f, LONG4, 1, P | W | U | G | A);
    assert_true(walk(f, PAGEWALK_READ, &r));
    assert_int_equal(r.rights, PAGE_RIGHT_WRITE | PAGE_RIGHT_USER);
    assert_int_equal(f->entries_written, 0);
    f->pw.cr4 |= CR4_PGE;
    assert_true(walk(f, PAGEWALK_WRITE, &r));
    assert_int_equal(r.rights,
                     PAGE_RIGHT_WRITE | PAGE_RIGHT_USER | PAGE_RIGHT_GLOBAL | PAGE_RIGHT_DIRTY);
    assert_int_equal(f->entries_written, 1);
    assert_true(walk(f, PAGEWALK_READ, &r));
    assert_true(r.rights & PAGE_RIGHT_DIRTY);
    assert_int_equal(f->entries_written, 1);
}

static void test_memory_absent(void **state)
{
    struct fixture *f = fixture_of(state);
    struct pagewalk_result r;

    mode_set(f, LONG4);
    f->pw.cr3 = BIT(40);
    assert_false(walk(f, PAGEWALK_READ, &r));
    assert_int_equal(r.error, PF_ERR_P | PF_ERR_RSVD);
    /* 32-bit: all ones is a table at 0xfffff000, whose entries are all ones as well */
    mode_set(f, LEGACY);
    f->pw.cr4 = 0;
    f->pw.cr3 = 0xfffff000;
    assert_true(walk(f, PAGEWALK_WRITE, &r));
    assert_int_equal(r.gpa, 0xfffff000);
}

static void test_rom_keeps_bits(void **state)
{
    struct fixture *f = fixture_of(state);
    struct pagewalk_result r;

    chain(f, LONG4, 1, P | W);
    f->is_rom = true;
    assert_true(walk(f, PAGEWALK_WRITE, &r));
    assert_int_equal(entry_get(f, LONG4, 3, 1), P | W);
}

static void test_pdpte(void **state)
{
    struct fixture *f = fixture_of(state);
    struct pagewalk_result r;

    chain(f, PAE, 1, P);
    f->pdpte[(uint32_t)ADDR >> 30] = 0;
    assert_false(walk(f, PAGEWALK_READ, &r));
    assert_int_equal(r.error, 0);

    for (unsigned bit = 0; bit < 64; bit++) {
        bool is_reserved = bit == 1 || bit == 2 || (bit >= 5 && bit <= 8) || bit >= 46;
        assert_int_equal(pagewalk_pdpte_is_bad(BIT(bit) | P, 46), is_reserved);
        if (bit != 0)
            assert_false(pagewalk_pdpte_is_bad(BIT(bit), 46));
    }
}

static int set_up(void **state)
{
    static struct fixture fixture;

    fixture_reset(&fixture);
    *state = &fixture;
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_matrix_legacy, set_up),
        cmocka_unit_test_setup(test_matrix_legacy_large, set_up),
        cmocka_unit_test_setup(test_matrix_pae, set_up),
        cmocka_unit_test_setup(test_matrix_long, set_up),
        cmocka_unit_test_setup(test_matrix_long5, set_up),
        cmocka_unit_test_setup(test_addresses, set_up),
        cmocka_unit_test_setup(test_reserved_bits, set_up),
        cmocka_unit_test_setup(test_bit8, set_up),
        cmocka_unit_test_setup(test_pse36, set_up),
        cmocka_unit_test_setup(test_rights_reported, set_up),
        cmocka_unit_test_setup(test_memory_absent, set_up),
        cmocka_unit_test_setup(test_rom_keeps_bits, set_up),
        cmocka_unit_test_setup(test_pdpte, set_up),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
