/*
 * rows_cpu.c - rows that compute: integers, floating point, vectors, memory
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "rows.h"

static uint32_t rotr(uint32_t x, int n)
{
    return x >> n | x << (32 - n);
}

static void sha256_block(uint32_t h[8], const uint8_t *p)
{
    static const uint32_t k[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
        0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
        0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
        0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
        0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
        0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
        0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
        0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
        0xc67178f2};
    uint32_t w[64];

    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)p[4 * i] << 24 | p[4 * i + 1] << 16 | p[4 * i + 2] << 8 | p[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t x = rotr(w[i - 15], 7) ^ rotr(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t y = rotr(w[i - 2], 17) ^ rotr(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + x + w[i - 7] + y;
    }
    uint32_t a = h[0], b = h[1], c = h[2], d = h[3], e = h[4], f = h[5], g = h[6], z = h[7];
    for (int i = 0; i < 64; i++) {
        uint32_t x = rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25);
        uint32_t t1 = z + x + ((e & f) ^ (~e & g)) + k[i] + w[i];
        uint32_t y = rotr(a, 2) ^ rotr(a, 13) ^ rotr(a, 22);
        uint32_t t2 = y + ((a & b) ^ (a & c) ^ (b & c));
        z = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e, h[5] += f, h[6] += g, h[7] += z;
}

static double row_sha256(void)
{
    enum { SIZE = 4 << 20 };
    const uint32_t SHA_RESULT = 1088039450; /* from a run on a real processor */
    static uint8_t buf[SIZE];
    uint32_t h[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    double t = now();
    for (int i = 0; i < SIZE; i += 64)
        sha256_block(h, buf + i);
    t = now() - t;
    if (h[0] != SHA_RESULT)
        fail("sha256");
    return SIZE / 1e6 / t;
}

static __attribute__((noinline)) int fib(int n)
{
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

static double row_fib(void)
{
    double t = now();
    int result = fib(30);
    t = now() - t;
    if (result != 832040)
        fail("fib30");
    return t * 1e3;
}

static int compare_ints(const void *a, const void *b)
{
    int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

static double row_qsort(void)
{
    enum { N = 200000 };
    static int v[N];
    uint32_t s = 1;
    for (int i = 0; i < N; i++)
        v[i] = (int)(s = s * 1664525 + 1013904223);
    double t = now();
    qsort(v, N, sizeof(v[0]), compare_ints);
    t = now() - t;
    for (int i = 1; i < N; i++)
        if (v[i - 1] > v[i])
            fail("qsort");
    return t * 1e3;
}

static double row_matrix(void)
{
    enum { N = 256 };
    static double a[N][N], b[N][N], c[N][N];
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            a[i][j] = i + j, b[i][j] = i - j, c[i][j] = 0;
    double t = now();
    for (int i = 0; i < N; i++)
        for (int k = 0; k < N; k++)
            for (int j = 0; j < N; j++)
                c[i][j] += a[i][k] * b[k][j];
    t = now() - t;
    /* Small integers: exact, whatever the order of additions. */
    double want = 0;
    for (int k = 0; k < N; k++)
        want += (3.0 + k) * (k - 5.0);
    if (c[3][5] != want)
        fail("matrix");
    return 2.0 * N * N * N / 1e6 / t;
}

static double row_libm(void)
{
    const double LIBM_RESULT = 244064.844141477923; /* from a run on a real processor */
    double x = 0.5, sum = 0, t = now();
    for (int i = 0; i < 100000; i++) {
        sum += sin(x) + sqrt(x) + exp(-x);
        x += 1e-4;
    }
    t = now() - t;
    if (fabs(sum - LIBM_RESULT) > 1e-6)
        fail("libm");
    return t * 1e3;
}

/* ChaCha's quarter rounds on four blocks at once, in 128-bit vectors of integers. */
typedef uint32_t u32x4 __attribute__((vector_size(16)));

#define ROTL(x, n) ((x) << (n) | (x) >> (32 - (n)))
#define QUARTER(a, b, c, d)                                                                        \
    (a += b, d ^= a, d = ROTL(d, 16), c += d, b ^= c, b = ROTL(b, 12), a += b, d ^= a,             \
     d = ROTL(d, 8), c += d, b ^= c, b = ROTL(b, 7))

static double row_chacha(void)
{
    enum { BLOCKS = 20000 };
    const uint32_t CHACHA_RESULT = 3627039003; /* from a run on a real processor */
    u32x4 sum = {0};
    double t = now();
    for (uint32_t n = 0; n < BLOCKS; n++) {
        u32x4 x[16];
        for (uint32_t i = 0; i < 16; i++)
            x[i] = (u32x4){i, i + n, i ^ n, i * n};
        for (int round = 0; round < 10; round++) {
            for (int i = 0; i < 4; i++)
                QUARTER(x[i], x[4 + i], x[8 + i], x[12 + i]);
            for (int i = 0; i < 4; i++)
                QUARTER(x[i], x[4 + (i + 1) % 4], x[8 + (i + 2) % 4], x[12 + (i + 3) % 4]);
        }
        for (int i = 0; i < 16; i++)
            sum += x[i];
    }
    t = now() - t;
    if ((sum[0] ^ sum[1] ^ sum[2] ^ sum[3]) != CHACHA_RESULT)
        fail("chacha");
    return BLOCKS * 256.0 / 1e6 / t;
}

/* Fused multiply-add in 256-bit vectors, where there are any. */
typedef double f64x4 __attribute__((vector_size(32), aligned(8)));

__attribute__((target("avx2,fma"), noinline)) static double dot(const double *a, const double *b,
                                                                int n)
{
    f64x4 s0 = {0}, s1 = {0};
    for (int i = 0; i < n; i += 8) {
        s0 += *(const f64x4 *)(a + i) * *(const f64x4 *)(b + i);
        s1 += *(const f64x4 *)(a + i + 4) * *(const f64x4 *)(b + i + 4);
    }
    s0 += s1;
    return s0[0] + s0[1] + s0[2] + s0[3];
}

static double row_avx(void)
{
    enum { N = 1024, TIMES = 5000 };
    static double a[N], b[N];
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return -1;
    for (int i = 0; i < N; i++)
        a[i] = i, b[i] = 2;
    double sum = 0, t = now();
    for (int k = 0; k < TIMES; k++) {
        a[0] = k;
        sum += dot(a, b, N);
    }
    t = now() - t;
    if (sum != TIMES * (double)(N * (N - 1)) + (double)TIMES * (TIMES - 1))
        fail("avx");
    return 2.0 * N * TIMES / 1e6 / t;
}

/* Extended precision goes through the x87 stack. */
static double row_x87(void)
{
    enum { N = 400000 };
    long double sum = 0, sign = 1;
    double t = now();
    for (int i = 0; i < N; i++) {
        sum += sign / (2 * i + 1);
        sign = -sign;
    }
    t = now() - t;
    if (fabsl(4 * sum - 3.14159265358979323846L) > 1e-5L)
        fail("x87");
    return t * 1e3;
}

static uint64_t big[(32 << 20) / 8];

void touch_memory(void)
{
    static int is_touched;
    if (!is_touched)
        memset(big, 1, sizeof(big));
    is_touched = 1;
}

static double row_read(void)
{
    uint64_t sum = 0;
    touch_memory();
    double t = now();
    for (size_t i = 0; i < sizeof(big) / 8; i += 4)
        sum += big[i] + big[i + 1] + big[i + 2] + big[i + 3];
    sink += sum;
    return (double)sizeof(big) / 1e6 / (now() - t);
}

static double row_memcpy(void)
{
    size_t half = sizeof(big) / 2;
    touch_memory();
    double t = now();
    for (int i = 0; i < 4; i++)
        memcpy(big, (char *)big + half, half), sink += big[i];
    return 4.0 * (double)half / 1e6 / (now() - t);
}

static double row_chase(void)
{
    enum { N = (8 << 20) / 8, STEPS = 200000 };
    static int is_made;
    uint64_t at = 0, s = 7;
    if (!is_made) {
        for (uint64_t i = 0; i < N; i++)
            big[i] = i;
        for (uint64_t i = N - 1; i > 0; i--) { /* one cycle through all (Sattolo) */
            s = s * 6364136223846793005u + 1;
            uint64_t j = (s >> 33) % i, x = big[i];
            big[i] = big[j];
            big[j] = x;
        }
        is_made = 1;
    }
    double t = now();
    for (int i = 0; i < STEPS; i++)
        at = big[at];
    sink += at;
    return (now() - t) * 1e9 / STEPS;
}

const struct row rows_cpu[] = {
    {"sha256", "MB/s", row_sha256, "int", ROW_ONE, 5, 1},
    {"fib30", "ms", row_fib, "int", ROW_ONE, 5, 0},
    {"qsort", "ms", row_qsort, "int", ROW_ONE, 5, 0},
    {"matrix", "MFLOP/s", row_matrix, "float", ROW_ONE, 5, 1},
    {"libm", "ms", row_libm, "float", ROW_ONE, 5, 0},
    {"chacha", "MB/s", row_chacha, "float", ROW_ONE, 5, 1},
    {"avx", "MFLOP/s", row_avx, "float", ROW_ONE, 5, 1},
    {"x87", "ms", row_x87, "float", ROW_ONE, 5, 0},
    {"read", "MB/s", row_read, "memory", ROW_ONE, 5, 1},
    {"memcpy", "MB/s", row_memcpy, "memory", ROW_ONE, 5, 1},
    {"chase", "ns", row_chase, "memory", ROW_ONE, 5, 0},
    {0},
};
