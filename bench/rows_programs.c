/*
 * rows_programs.c - rows that run real programs, as Debian ships them
 *
 * Each is started as "ld.so --library-path lib bin/NAME", on the host too, so that both execute
 * the same bytes. What a program puts out is summed up as "check NAME SUM": it must be the same
 * everywhere. Files are on a tmpfs.
 */
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "rows.h"

enum { INPUT_BYTES = 3 << 20 };

static char dir[64]; /* of the files */

static void put_input(const char *path)
{
    static const char *const words[] = {"page",   "table",  "of",   "the",  "machine", "is",
                                        "walked", "again",  "when", "an",   "old",     "entry",
                                        "in",     "memory", "has",  "been", "found"};
    FILE *f = fopen(path, "w");
    uint32_t s = 12345;
    long size = 0;
    if (!f)
        fail("cannot make the input file");
    while (size < INPUT_BYTES) {
        s = s * 1664525 + 1013904223;
        size += fprintf(f, "%s%c", words[(s >> 16) % 17], (s >> 28) == 3 ? '\n' : ' ');
        if ((s >> 24) % 16 == 5)
            size += fprintf(f, "%u ", s);
    }
    if (fclose(f) != 0)
        fail("cannot write the input file");
}

/* The folder of files, with the input in it; made when first asked for. */
static const char *file(const char *name)
{
    static char path[4][128];
    static int next;
    if (!dir[0]) {
        const char *base = getpid() != 1 && access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
        snprintf(dir, sizeof(dir), "%s/doppel-bench.XXXXXX", base);
        if (!mkdtemp(dir))
            fail("cannot make a folder on a tmpfs");
        put_input(file("input"));
    }
    char *p = path[next++ % 4];
    snprintf(p, sizeof(path[0]), "%s/%s", dir, name);
    return p;
}

void programs_clean(void)
{
    static const char *const names[] = {"input", "out", "data.db", "data.db-wal", "data.db-shm"};
    if (!dir[0])
        return;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        unlink(file(names[i]));
    rmdir(dir);
}

static const char *program_file(const char *name)
{
    static char path[4][512];
    static int next;
    char *p = path[next++ % 4];
    snprintf(p, sizeof(path[0]), "%s/%s", programs_dir, name);
    return p;
}

/* A sum of what the program put out (FNV-1a). */
static void print_check(const char *row, const char *path)
{
    uint64_t sum = 14695981039346656037u;
    FILE *f = fopen(path, "r");
    int c;
    if (!f)
        fail("a program has put out nothing");
    while ((c = getc(f)) != EOF)
        sum = (sum ^ (uint64_t)c) * 1099511628211u;
    fclose(f);
    printf("check %s %016llx\n", row, (unsigned long long)sum);
}

/* Runs argv with standard input and output on files; returns milliseconds. */
static double spawn(const char *row, char *const argv[], const char *input)
{
    static char busybox[600];
    posix_spawn_file_actions_t files;
    const char *out = file("out");
    pid_t pid;
    int status;

    snprintf(busybox, sizeof(busybox), "BUSYBOX=%s", program_file("bin/busybox"));
    char *env[] = {"LC_ALL=C", "PATH=/nowhere", busybox, NULL};
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 0, input ? input : "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&files, 1, out, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    double t = now();
    if (posix_spawn(&pid, argv[0], &files, NULL, argv, env) != 0)
        fail(row);
    if (waitpid(pid, &status, 0) != pid || status != 0)
        fail(row);
    t = now() - t;
    posix_spawn_file_actions_destroy(&files);
    print_check(row, out);
    return t * 1e3;
}

/* The same for a program that the loader has to start; at most seven arguments. */
static double load(const char *row, const char *name, const char *const args[], const char *input)
{
    static char loader[512], libs[512], program[512];
    char *argv[12] = {loader, "--library-path", libs, program};
    int n = 4;
    if (!programs_dir)
        return -1;
    snprintf(loader, sizeof(loader), "%s", program_file("ld.so"));
    snprintf(libs, sizeof(libs), "%s", program_file("lib"));
    snprintf(program, sizeof(program), "%s/bin/%s", programs_dir, name);
    for (int i = 0; i < 7 && args[i]; i++)
        argv[n++] = (char *)args[i];
    return spawn(row, argv, input);
}

static double shell(const char *row, const char *script)
{
    if (!programs_dir)
        return -1;
    char *argv[] = {(char *)program_file("bin/busybox"), "sh", (char *)program_file(script), NULL};
    return spawn(row, argv, NULL);
}

static double row_shell(void)
{
    return shell("shell", "data/loop.sh");
}

static double row_forks(void)
{
    return shell("forks", "data/forks.sh");
}

static double row_gzip(void)
{
    return load("gzip", "gzip", (const char *[]){"-6", "-n", NULL}, file("input"));
}

static double row_xz(void)
{
    return load("xz", "xz", (const char *[]){"-2", "-T1", "--stdout", NULL}, file("input"));
}

static double row_sha256sum(void)
{
    return load("sha256sum", "sha256sum", (const char *[]){NULL}, file("input"));
}

static double row_gcc(void)
{
    return load("gcc", "cc1",
                (const char *[]){"-quiet", "-fpreprocessed", "-O2", program_file("data/compile.i"),
                                 "-o", "-", NULL},
                NULL);
}

static double row_sqlite(void)
{
    unlink(file("data.db"));
    return load("sqlite", "sqlite3", (const char *[]){"-batch", file("data.db"), NULL},
                program_file("data/table.sql"));
}

static double row_perl(void)
{
    return load("perl", "perl", (const char *[]){program_file("data/words.pl"), NULL}, NULL);
}

const struct row rows_programs[] = {
    {"shell", "ms", row_shell, "program", ROW_PROGRAMS, 3, 0},
    {"forks", "ms", row_forks, "program", ROW_PROGRAMS, 3, 0},
    {"gzip", "ms", row_gzip, "program", ROW_PROGRAMS, 3, 0},
    {"xz", "ms", row_xz, "program", ROW_PROGRAMS, 3, 0},
    {"sha256sum", "ms", row_sha256sum, "program", ROW_PROGRAMS, 3, 0},
    {"gcc", "ms", row_gcc, "program", ROW_PROGRAMS, 3, 0},
    {"sqlite", "ms", row_sqlite, "program", ROW_PROGRAMS, 3, 0},
    {"perl", "ms", row_perl, "program", ROW_PROGRAMS, 3, 0},
    {0},
};
