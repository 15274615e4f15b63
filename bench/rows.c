/*
 * rows.c - what the benchmark measures, as one static program
 *
 * usage: rows [--list] [NAME,NAME...]
 *
 * Runs natively, and as /init of a guest (it then powers the machine off); there the names come
 * from "rows=NAME,NAME" on the kernel's command line. Each row prints "row NAME VALUE UNIT": the
 * best of several passes. --list prints "NAME UNIT KIND" for each row, KIND being "rate" when more
 * is better, else "time".
 */
#include <math.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PASSES 5

static volatile uint64_t sink;

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

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
    uint32_t w[64], s[8];

    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)p[4 * i] << 24 | p[4 * i + 1] << 16 | p[4 * i + 2] << 8 | p[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t a = rotr(w[i - 15], 7) ^ rotr(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t b = rotr(w[i - 2], 17) ^ rotr(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + a + w[i - 7] + b;
    }
    memcpy(s, h, sizeof(s));
    for (int i = 0; i < 64; i++) {
        uint32_t a = rotr(s[4], 6) ^ rotr(s[4], 11) ^ rotr(s[4], 25);
        uint32_t t1 = s[7] + a + ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
        uint32_t b = rotr(s[0], 2) ^ rotr(s[0], 13) ^ rotr(s[0], 22);
        uint32_t t2 = b + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof(s[0]));
        s[4] += t1;
        s[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++)
        h[i] += s[i];
}

static double row_sha256(void)
{
    enum { SIZE = 4 << 20 };
    static uint8_t buf[SIZE];
    uint32_t h[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    double t = now();
    for (int i = 0; i < SIZE; i += 64)
        sha256_block(h, buf + i);
    sink += h[0];
    return SIZE / 1e6 / (now() - t);
}

static __attribute__((noinline)) int fib(int n)
{
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

static double row_fib(void)
{
    double t = now();
    sink += (uint64_t)fib(30);
    return (now() - t) * 1e3;
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
    sink += (uint64_t)v[N / 2];
    return (now() - t) * 1e3;
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
    sink += (uint64_t)c[3][5];
    return 2.0 * N * N * N / 1e6 / (now() - t);
}

static double row_libm(void)
{
    double x = 0.5, sum = 0, t = now();
    for (int i = 0; i < 100000; i++) {
        sum += sin(x) + sqrt(x) + exp(-x);
        x += 1e-4;
    }
    sink += (uint64_t)sum;
    return (now() - t) * 1e3;
}

static uint64_t big[(32 << 20) / 8];

static double row_read(void)
{
    uint64_t sum = 0;
    double t = now();
    for (size_t i = 0; i < sizeof(big) / 8; i += 4)
        sum += big[i] + big[i + 1] + big[i + 2] + big[i + 3];
    sink += sum;
    return (double)sizeof(big) / 1e6 / (now() - t);
}

static double row_memcpy(void)
{
    size_t half = sizeof(big) / 2;
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

static double row_getppid(void)
{
    enum { N = 100000 };
    double t = now();
    for (int i = 0; i < N; i++)
        sink += (uint64_t)syscall(SYS_getppid);
    return (now() - t) * 1e9 / N;
}

static double row_pipe(void)
{
    enum { N = 2000 };
    int ab[2], ba[2];
    char c = 0;
    if (pipe(ab) != 0 || pipe(ba) != 0)
        return 0;
    pid_t pid = fork();
    if (pid == 0) {
        for (int i = 0; i < N; i++)
            if (read(ab[0], &c, 1) != 1 || write(ba[1], &c, 1) != 1)
                _exit(1);
        _exit(0);
    }
    double t = now();
    for (int i = 0; i < N; i++)
        if (write(ab[1], &c, 1) != 1 || read(ba[0], &c, 1) != 1)
            break;
    t = now() - t;
    waitpid(pid, NULL, 0);
    for (int i = 0; i < 2; i++)
        close(ab[i]), close(ba[i]);
    return t * 1e6 / N;
}

static double row_fork(void)
{
    enum { N = 40 };
    double t = now();
    for (int i = 0; i < N; i++) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(0);
        waitpid(pid, NULL, 0);
    }
    return (now() - t) * 1e6 / N;
}

static const char *self = "/init";

static double row_exec(void)
{
    enum { N = 40 };
    extern char **environ;
    char *argv[] = {(char *)self, (char *)"exit", NULL};
    double t = now();
    for (int i = 0; i < N; i++) {
        pid_t pid;
        if (posix_spawn(&pid, self, NULL, NULL, argv, environ) == 0)
            waitpid(pid, NULL, 0);
    }
    return (now() - t) * 1e6 / N;
}

static double row_fault(void)
{
    enum { N = 4096 };
    char *p = mmap(NULL, N * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return 0;
    madvise(p, N * 4096, MADV_NOHUGEPAGE);
    double t = now();
    for (int i = 0; i < N; i++)
        p[i * 4096] = 1;
    t = now() - t;
    munmap(p, N * 4096);
    return t * 1e6 / N;
}

static double row_mmap(void)
{
    enum { N = 2000 };
    double t = now();
    for (int i = 0; i < N; i++) {
        char *p = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        p[0] = 1;
        munmap(p, 65536);
    }
    return (now() - t) * 1e6 / N;
}

/* Code that is written, run, and written again. */
static double row_jit(void)
{
    enum { N = 2000 };
    uint8_t *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS,
                      -1, 0);
    if (p == MAP_FAILED)
        return 0;
    double t = now();
    for (uint32_t i = 0; i < N; i++) {
        p[0] = 0xb8;
        memcpy(p + 1, &i, 4);
        p[5] = 0xc3;
        sink += (uint64_t)((int (*)(void))(uintptr_t)p)();
    }
    t = now() - t;
    munmap(p, 4096);
    return t * 1e6 / N;
}

static const struct row {
    const char *name, *unit;
    double (*run)(void);
    int is_rate;
} rows[] = {
    {"sha256", "MB/s", row_sha256, 1},     {"fib30", "ms", row_fib, 0},
    {"qsort", "ms", row_qsort, 0},         {"matrix", "MFLOP/s", row_matrix, 1},
    {"libm", "ms", row_libm, 0},           {"read", "MB/s", row_read, 1},
    {"memcpy", "MB/s", row_memcpy, 1},     {"chase", "ns", row_chase, 0},
    {"getppid", "ns", row_getppid, 0},     {"pipe", "us", row_pipe, 0},
    {"fork", "us", row_fork, 0},           {"exec", "us", row_exec, 0},
    {"fault", "us", row_fault, 0},         {"mmap", "us", row_mmap, 0},
    {"jit", "us", row_jit, 0},
};

/* Is the row called `name` in the comma-separated list? No list means all rows. */
static int is_chosen(const char *list, const char *name)
{
    size_t n = strlen(name);
    if (!list || !*list)
        return 1;
    for (const char *p = list; p; p = strchr(p, ',')) {
        p += *p == ',';
        if (strncmp(p, name, n) == 0 && (p[n] == ',' || p[n] == 0))
            return 1;
    }
    return 0;
}

static void print_list(void)
{
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        printf("%s %s %s\n", rows[i].name, rows[i].unit, rows[i].is_rate ? "rate" : "time");
}

static void run_row(const struct row *row)
{
    double best = 0;
    for (int pass = 0; pass < PASSES; pass++) {
        double v = row->run();
        if (pass == 0 || (row->is_rate ? v > best : v < best))
            best = v;
    }
    printf("row %s %.4f %s\n", row->name, best, row->unit);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    int is_init = getpid() == 1;
    const char *chosen = is_init ? getenv("rows") : argc > 1 ? argv[1] : NULL;

    if (argc > 1 && strcmp(argv[1], "exit") == 0)
        return 0;
    if (argc > 1 && strcmp(argv[1], "--list") == 0) {
        print_list();
        return 0;
    }
    if (!is_init)
        self = argv[0];
    printf("rows: first process\n");
    fflush(stdout);
    memset(big, 1, sizeof(big));
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        if (is_chosen(chosen, rows[i].name))
            run_row(&rows[i]);
    printf("rows: done\n");
    fflush(stdout);
    if (is_init)
        reboot(RB_POWER_OFF);
    return 0;
}
