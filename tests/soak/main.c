/*
 * main.c - the soak: workers that go round until the time is over
 *
 * usage: soak run SECONDS EXPECTED-FILE     as a process of the guest
 *        soak measure PROGRAMS-FOLDER       on the host: prints the sums that are right
 *        soak once SEED                     one round of everything but programs, anywhere
 *
 * Prints "soak: beat SECONDS NAME=ROUNDS..." now and then, at the end "soak: ok SECONDS
 * NAME=ROUNDS...", or why not.
 */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "soak.h"

#define BEAT_SECONDS 10

static const struct worker {
    const char *name;
    void (*round)(uint64_t seed);
} workers[] = {
    {"programs", round_programs}, {"programs2", round_programs}, {"forks", round_forks},
    {"pages", round_pages},       {"pages2", round_pages},       {"files", round_files},
    {"code", round_code},
};
#define WORKERS (sizeof(workers) / sizeof(workers[0]))

struct shared {
    volatile uint64_t rounds[WORKERS];
    volatile int is_over;
};

static void complain(const char *kind, const char *format, va_list args)
{
    char text[512];
    vsnprintf(text, sizeof(text), format, args);
    /* one write, lest lines of several processes mix */
    char line[600];
    int n = snprintf(line, sizeof(line), "soak: %s: %s\n", kind, text);
    if (write(1, line, (size_t)n) < 0)
        _exit(2);
}

void wrong(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    complain("WRONG", format, args);
    _exit(1);
}

void failed(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    complain("FAILED", format, args);
    _exit(2);
}

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void work(struct shared *shared, size_t n)
{
    for (uint64_t i = 0; !shared->is_over; i++) {
        workers[n].round(i * WORKERS + n);
        shared->rounds[n]++;
    }
    _exit(0);
}

static void report(const char *what, double seconds, const struct shared *shared)
{
    printf("soak: %s %.3f", what, seconds);
    for (size_t i = 0; i < WORKERS; i++)
        printf(" %s=%llu", workers[i].name, (unsigned long long)shared->rounds[i]);
    printf("\n");
    fflush(stdout);
}

/* Waits until a worker ends (which it should not before the time is over) or until `deadline`. */
static int watch(const pid_t *pids, double deadline)
{
    while (now() < deadline) {
        int status;
        pid_t pid = waitpid(-1, &status, WNOHANG);
        if (pid <= 0) {
            usleep(100000);
            continue;
        }
        for (size_t i = 0; i < WORKERS; i++)
            if (pids[i] == pid && WIFSIGNALED(status))
                printf("soak: FAILED: %s: killed by signal %d\n", workers[i].name,
                       WTERMSIG(status));
            else if (pids[i] == pid)
                printf("soak: FAILED: %s: ended with %d\n", workers[i].name, WEXITSTATUS(status));
        return -1;
    }
    return 0;
}

static int finish(const pid_t *pids)
{
    int is_bad = 0;
    for (size_t i = 0; i < WORKERS; i++) {
        int status;
        if (waitpid(pids[i], &status, 0) != pids[i] || status != 0) {
            printf("soak: FAILED: %s: status %#x in its last round\n", workers[i].name, status);
            is_bad = 1;
        }
    }
    return is_bad;
}

static int run(double seconds)
{
    struct shared *shared =
        mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pids[WORKERS];
    double begin = now();

    if (shared == MAP_FAILED)
        failed("mmap: %s", strerror(errno));
    report("begin", 0, shared);
    for (size_t i = 0; i < WORKERS; i++) {
        pids[i] = fork();
        if (pids[i] == 0)
            work(shared, i);
        if (pids[i] < 0)
            failed("fork: %s", strerror(errno));
    }
    int is_bad = 0;
    while (!is_bad && now() - begin < seconds) {
        double left = begin + seconds - now();
        is_bad = watch(pids, now() + (left < BEAT_SECONDS ? left : BEAT_SECONDS)) != 0;
        report("beat", now() - begin, shared);
    }
    shared->is_over = 1;
    if (!is_bad)
        is_bad = finish(pids);
    else
        for (size_t i = 0; i < WORKERS; i++)
            kill(pids[i], SIGKILL);
    for (size_t i = 0; i < WORKERS; i++)
        if (shared->rounds[i] == 0) {
            printf("soak: FAILED: %s: no round was finished\n", workers[i].name);
            is_bad = 1;
        }
    report(is_bad ? "bad" : "ok", now() - begin, shared);
    return is_bad;
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "run") == 0) {
        programs_expect(argv[3]);
        return run(atof(argv[2]));
    }
    if (argc == 3 && strcmp(argv[1], "measure") == 0) {
        programs_measure(argv[2]);
        return 0;
    }
    if (argc == 3 && strcmp(argv[1], "once") == 0) {
        uint64_t seed = strtoull(argv[2], NULL, 0);
        round_forks(seed);
        round_pages(seed);
        round_files(seed);
        round_code(seed);
        return 0;
    }
    fprintf(stderr, "usage: soak run SECONDS EXPECTED | measure PROGRAMS | once SEED\n");
    return 2;
}
