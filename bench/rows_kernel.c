/*
 * rows_kernel.c - rows that make the guest's kernel work, and code that rewrites itself
 */
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "rows.h"

static double row_getppid(void)
{
    enum { N = 100000 };
    double t = now();
    for (int i = 0; i < N; i++)
        sink += (uint64_t)syscall(SYS_getppid);
    return (now() - t) * 1e9 / N;
}

/* Two processes on one CPU: each byte is two context switches. */
static double row_pipe(void)
{
    enum { N = 2000 };
    int ab[2], ba[2];
    char c = 0;
    if (pipe(ab) != 0 || pipe(ba) != 0)
        return -1;
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

/* A process with 32 MiB of memory. */
static double row_fork(void)
{
    enum { N = 40 };
    touch_memory();
    double t = now();
    for (int i = 0; i < N; i++) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(0);
        waitpid(pid, NULL, 0);
    }
    return (now() - t) * 1e6 / N;
}

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
        return -1;
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

static volatile uint32_t signals;

static void on_signal(int signo)
{
    (void)signo;
    signals++;
}

static double row_signal(void)
{
    enum { N = 10000 };
    signal(SIGUSR1, on_signal);
    signals = 0;
    double t = now();
    for (int i = 0; i < N; i++)
        raise(SIGUSR1);
    t = now() - t;
    if (signals != N)
        fail("signal");
    return t * 1e6 / N;
}

static char *guarded;

static void on_fault(int signo, siginfo_t *info, void *context)
{
    (void)signo, (void)context;
    if (info->si_addr != guarded || mprotect(guarded, 4096, PROT_READ | PROT_WRITE) != 0)
        fail("segv");
    signals++;
}

/* A write barrier as garbage collectors make it: protect, fault, signal, unprotect, return. */
static double row_segv(void)
{
    enum { N = 2000 };
    struct sigaction sa = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO}, old;
    guarded = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (guarded == MAP_FAILED)
        return -1;
    sigaction(SIGSEGV, &sa, &old);
    signals = 0;
    double t = now();
    for (int i = 0; i < N; i++) {
        mprotect(guarded, 4096, PROT_READ);
        *(volatile char *)guarded = (char)i;
    }
    t = now() - t;
    sigaction(SIGSEGV, &old, NULL);
    if (signals != N)
        fail("segv");
    munmap(guarded, 4096);
    return t * 1e6 / N;
}

/* Code that is written, run, and written again. */
static double row_jit(void)
{
    enum { N = 2000 };
    uint32_t sum = 0;
    uint8_t *p =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return -1;
    double t = now();
    for (uint32_t i = 0; i < N; i++) {
        p[0] = 0xb8;
        memcpy(p + 1, &i, 4);
        p[5] = 0xc3;
        sum += ((uint32_t(*)(void))(uintptr_t)p)();
    }
    t = now() - t;
    munmap(p, 4096);
    if (sum != N * (N - 1) / 2)
        fail("jit");
    return t * 1e6 / N;
}

/*
 * A just-in-time compiler at work: fresh functions of 64 additions, each called a hundred times,
 * in a buffer that is used over and over.
 */
static double row_jitcode(void)
{
    enum { N = 400, ADDS = 64, CALLS = 100, SIZE = 65536 };
    uint8_t *buffer =
        mmap(NULL, SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint32_t at = 0;
    if (buffer == MAP_FAILED)
        return -1;
    double t = now();
    for (uint32_t n = 0; n < N; n++) {
        if (at + 7 * ADDS + 16 > SIZE)
            at = 0;
        uint8_t *p = buffer + at, *begin = p;
        *p++ = 0x89, *p++ = 0xf8; /* mov eax, edi */
        for (uint32_t i = 0; i < ADDS; i++) {
            uint32_t x = n + i;
            *p++ = 0x05; /* add eax, imm32 */
            memcpy(p, &x, 4);
            p += 4;
        }
        *p++ = 0xc3;
        at += (uint32_t)(p - begin + 15) & ~15u;
        for (uint32_t call = 0; call < CALLS; call++)
            if (((uint32_t(*)(uint32_t))(uintptr_t)begin)(call) !=
                call + ADDS * n + ADDS * (ADDS - 1) / 2)
                fail("jitcode");
    }
    t = now() - t;
    munmap(buffer, SIZE);
    return t * 1e6 / N;
}

const struct row rows_kernel[] = {
    {"getppid", "ns", row_getppid, "system", ROW_ONE, 5, 0},
    {"pipe", "us", row_pipe, "system", ROW_ONE, 5, 0},
    {"signal", "us", row_signal, "system", ROW_ONE, 5, 0},
    {"segv", "us", row_segv, "system", ROW_ONE, 5, 0},
    {"fork", "us", row_fork, "system", ROW_ONE, 5, 0},
    {"exec", "us", row_exec, "system", ROW_ONE, 5, 0},
    {"fault", "us", row_fault, "system", ROW_ONE, 5, 0},
    {"mmap", "us", row_mmap, "system", ROW_ONE, 5, 0},
    {"jit", "us", row_jit, "code", ROW_ONE, 5, 0},
    {"jitcode", "us", row_jitcode, "code", ROW_ONE, 5, 0},
    {0},
};
