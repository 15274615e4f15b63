/*
 * insn_cache_test.c - a decoder with a cache says what the decoder says
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bits.h"
#include "cpu/insn_cache.h"
#include "cpu/model.h"

#define SEED UINT64_C(0x2545f4914f6cdd1d)
#define HEADS 60000u
#define TAILS 6u

static uint64_t random_next(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

static struct cpu_model *model_of_host(void)
{
    static struct cpu_model model;
    struct err e;

    assert_int_equal(cpu_model_create("host", 1, 1000000000, &model, &e), 0);
    return &model;
}

/* Decode both ways; returns whether the cache had it. */
static bool compare(struct insn_cache *cache, const uint8_t *bytes, size_t avail, unsigned mode,
                    const struct cpu_model *model)
{
    uint64_t hits = cache->hits;
    struct insn plain, cached;

    memset(&plain, 0x55, sizeof(plain));
    memset(&cached, 0xaa, sizeof(cached));
    int len = insn_decode(&plain, bytes, avail, mode, model);
    int got = insn_decode_cached(cache, &cached, bytes, avail, mode, model);
    if (got != len || (len > 0 && memcmp(&plain, &cached, sizeof(plain)) != 0)) {
        char text[3 * INSN_MAX_LEN + 1] = "";
        for (size_t i = 0; i < avail && i < INSN_MAX_LEN; i++)
            sprintf(text + 3 * i, "%02x ", bytes[i]);
        fail_msg("mode %u: %s: length %d, with a cache %d", mode, text, len, got);
    }
    return cache->hits != hits;
}

/* Prefixes, REX and the two-byte map more often than chance has them. */
static void make_bytes(uint8_t *bytes, uint64_t *seed)
{
    static const uint8_t first[] = {0x66, 0xf2, 0xf3, 0x64, 0x65, 0x67, 0xf0, 0x0f, 0x0f, 0x0f,
                                    0x48, 0x44, 0x41, 0x4c, 0x40, 0xc5, 0xc4, 0x62, 0x2e};

    for (unsigned i = 0; i < INSN_MAX_LEN; i++)
        bytes[i] = (uint8_t)(random_next(seed) >> 24);
    for (unsigned i = 0; i < 3 && random_next(seed) % 2; i++)
        bytes[i] = first[random_next(seed) % ARRAY_SIZE(first)];
}

static void test_random(void **state)
{
    static const unsigned modes[] = {4, 8};
    const struct cpu_model *models[] = {NULL, model_of_host()};

    for (unsigned m = 0; m < 4; m++) {
        struct insn_cache *cache = calloc(1, sizeof(*cache));
        uint64_t seed = SEED + m, hits = 0;
        uint8_t bytes[INSN_MAX_LEN];
        assert_non_null(cache);
        for (unsigned n = 0; n < HEADS; n++) {
            make_bytes(bytes, &seed);
            for (unsigned k = 0; k < TAILS; k++) {
                hits += compare(cache, bytes, INSN_MAX_LEN, modes[m % 2], models[m / 2]);
                for (unsigned i = 2 + (unsigned)(random_next(&seed) % 6); i < INSN_MAX_LEN; i++)
                    bytes[i] = random_next(&seed) % 4   ? (uint8_t)(random_next(&seed) >> 24)
                               : random_next(&seed) % 2 ? 0xff
                                                        : 0;
            }
        }
        assert_true(hits > HEADS * TAILS / 10);
        free(cache);
    }
}

/* What makes instructions with one head differ, one by one. */
static void test_tails(void **state)
{
    static const struct {
        const char *bytes; /* 15 */
        bool is_kept;      /* the second time */
    } cases[] = {
        {"\x48\x8b\x45\xf8\0\0\0\0\0\0\0\0\0\0", true}, /* mov rax, [rbp - 8] */
        {"\x48\x8b\x45\x70\0\0\0\0\0\0\0\0\0\0", true},
        {"\x8b\x05\xff\xff\xff\x80\0\0\0\0\0\0\0\0", true},         /* mov eax, [rip + ...] */
        {"\xe8\xff\xff\xff\xff\0\0\0\0\0\0\0\0\0", true},           /* call */
        {"\x68\x80\x80\x80\x80\0\0\0\0\0\0\0\0\0", true},           /* push */
        {"\x48\xb8\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", true}, /* mov rax, -1 */
        {"\xb8\xff\xff\xff\xff\0\0\0\0\0\0\0\0\0", true},           /* mov eax, ... */
        {"\xc1\xe0\x20\0\0\0\0\0\0\0\0\0\0\0", true},               /* shl eax, 32: keeps flags */
        {"\xc1\xe0\x04\0\0\0\0\0\0\0\0\0\0\0", true},               /* shl eax, 4 */
        {"\xc1\x20\x04\0\0\0\0\0\0\0\0\0\0\0", false},
        {"\x81\x84\x8d\x11\x22\x33\x84\x55\x66\x77\x88\0\0\0", true}, /* both */
        {"\x0f\x0f\xc1\xbf\0\0\0\0\0\0\0\0\0\0", false},    /* 3DNow: opcode behind ModRM */
        {"\xc8\x10\x00\x01\0\0\0\0\0\0\0\0\0\0", false},    /* enter: two immediates */
        {"\xf3\x41\x90\0\0\0\0\0\0\0\0\0\0\0", true},       /* xchg r8, rax */
        {"\xf3\x90\0\0\0\0\0\0\0\0\0\0\0\0", true},         /* pause */
        {"\xc5\xf9\x6f\x44\x24\x90\0\0\0\0\0\0\0\0", true}, /* vmovdqa xmm0, [rsp - 112] */
    };
    struct insn_cache *cache = calloc(1, sizeof(*cache));

    assert_non_null(cache);
    for (unsigned round = 0; round < 2; round++)
        for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
            bool is_hit = compare(cache, (const uint8_t *)cases[i].bytes, INSN_MAX_LEN, 8, NULL);
            if (round == 1 && is_hit != cases[i].is_kept)
                fail_msg("case %u", i);
        }
    /* what ends at a page's end is not looked up beyond it */
    assert_false(compare(cache, (const uint8_t *)cases[0].bytes, 4, 8, NULL));
    assert_false(compare(cache, (const uint8_t *)cases[0].bytes, 3, 8, NULL));
    free(cache);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_tails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
