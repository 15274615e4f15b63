/*
 * programs.c - rounds of real programs: compiler, compressors, sqlite, perl, shell
 *
 * Debian's programs as bench/make-programs packs them; the host's run of the same bytes says what
 * is right.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "soak.h"

#define ARGS_MAX 8

/* %P is the folder of programs, %T that of temporary files; input is a file too. */
static const struct job {
    const char *name;
    const char *args[ARGS_MAX];
    const char *input;
} jobs[] = {
    {"cc1",
     {"%P/bin/cc1", "-quiet", "-fpreprocessed", "-O2", "%P/data/compile.i", "-o", "-"},
     NULL},
    {"cc1-O0",
     {"%P/bin/cc1", "-quiet", "-fpreprocessed", "-O0", "%P/data/compile.i", "-o", "-"},
     NULL},
    {"gzip", {"%P/bin/gzip", "-6", "-n"}, "%P/data/compile.i"},
    {"xz", {"%P/bin/xz", "-2", "-T1", "--stdout"}, "%P/bin/gzip"},
    {"sha256sum", {"%P/bin/sha256sum"}, "%P/bin/cc1"},
    {"sqlite3", {"%P/bin/sqlite3", "-batch", ":memory:"}, "%P/data/table.sql"},
    {"perl", {"%P/bin/perl", "%P/data/words.pl"}, NULL},
    {"shell", {"%P/bin/busybox", "sh", "%P/data/loop.sh"}, NULL},
    {"forks", {"%P/bin/busybox", "sh", "%P/data/forks.sh"}, NULL},
};
#define JOBS (sizeof(jobs) / sizeof(jobs[0]))

static uint64_t expected[JOBS];
static const char *folder = "/programs";

static void expand(char *out, size_t size, const char *text)
{
    if (strncmp(text, "%P", 2) == 0)
        snprintf(out, size, "%s%s", folder, text + 2);
    else
        snprintf(out, size, "%s", text);
}

/* In the child: becomes the program. */
static void become(const struct job *job, int out)
{
    static char text[ARGS_MAX][512], input[512], loader[512], libs[512], busybox[600];
    char *argv[ARGS_MAX + 4] = {NULL};
    int n = 0;

    expand(input, sizeof(input), job->input ? job->input : "/dev/null");
    int in = open(input, O_RDONLY);
    if (in < 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0)
        _exit(126);
    snprintf(busybox, sizeof(busybox), "BUSYBOX=%s/bin/busybox", folder);
    char *env[] = {(char *)"LC_ALL=C", (char *)"PATH=/nowhere", busybox, NULL};
    for (int i = 0; i < ARGS_MAX && job->args[i]; i++)
        expand(text[i], sizeof(text[i]), job->args[i]);
    if (strstr(job->args[0], "busybox") == NULL) { /* which is static */
        snprintf(loader, sizeof(loader), "%s/ld.so", folder);
        snprintf(libs, sizeof(libs), "%s/lib", folder);
        argv[n++] = loader;
        argv[n++] = (char *)"--library-path";
        argv[n++] = libs;
    }
    for (int i = 0; i < ARGS_MAX && job->args[i]; i++)
        argv[n++] = text[i];
    execve(argv[0], argv, env);
    _exit(127);
}

static uint64_t run_job(const struct job *job)
{
    int ends[2], status;
    uint64_t sum = SUM_START;
    char buffer[65536];
    ssize_t n;

    if (pipe(ends) != 0)
        failed("pipe: %s", strerror(errno));
    pid_t pid = fork();
    if (pid == 0) {
        close(ends[0]);
        become(job, ends[1]);
    }
    close(ends[1]);
    if (pid < 0)
        failed("fork: %s", strerror(errno));
    while ((n = read(ends[0], buffer, sizeof(buffer))) > 0)
        sum = sum_bytes(sum, buffer, (size_t)n);
    close(ends[0]);
    if (waitpid(pid, &status, 0) != pid || status != 0)
        wrong("%s ended with status %#x", job->name, status);
    return sum;
}

void programs_measure(const char *where)
{
    folder = where;
    for (size_t i = 0; i < JOBS; i++)
        printf("%s %016llx\n", jobs[i].name, (unsigned long long)run_job(&jobs[i]));
}

void programs_expect(const char *path)
{
    FILE *f = fopen(path, "r");
    if (!f)
        failed("open %s: %s", path, strerror(errno));
    for (size_t i = 0; i < JOBS; i++) {
        char name[32];
        unsigned long long sum;
        if (fscanf(f, "%31s %llx", name, &sum) != 2 || strcmp(name, jobs[i].name) != 0)
            failed("%s does not tell about %s", path, jobs[i].name);
        expected[i] = sum;
    }
    fclose(f);
}

/* One job a round; two workers begin with different ones. */
void round_programs(uint64_t seed)
{
    static size_t next = JOBS;
    if (next == JOBS)
        next = seed == 0 ? 0 : JOBS / 2;
    const struct job *job = &jobs[next];
    uint64_t sum = run_job(job);

    if (sum != expected[next])
        wrong("output of %s: sum %016llx, expected %016llx, round %llu", job->name,
              (unsigned long long)sum, (unsigned long long)expected[next],
              (unsigned long long)seed);
    next = (next + 1) % JOBS;
}
