/*
 * rows.c - what the benchmark measures, as one static program
 *
 * usage: rows [--list] [NAME,NAME...] [PROGRAMS]
 *
 * Runs natively, and as /init of a guest (it then powers the machine off); there the names come
 * from "rows=NAME,NAME" on the kernel's command line. Each row prints "row NAME VALUE UNIT": the
 * best of several passes (with two CPUs their median). PROGRAMS is the folder of Debian's programs
 * (bench/make-programs), in a guest "/programs". --list prints "NAME UNIT rate|time KIND MACHINE"
 * for each row.
 */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "rows.h"

volatile uint64_t sink;
const char *self = "/init";
const char *programs_dir = "/programs";
static cpu_set_t allowed;

static const struct row *const tables[] = {rows_cpu, rows_kernel, rows_programs, rows_two};
#define MAX_PASSES 5
#define TABLES (sizeof(tables) / sizeof(tables[0]))

double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

void fail(const char *what)
{
    printf("rows: FAILED: %s\n", what);
    fflush(stdout);
    if (getpid() == 1)
        reboot(RB_POWER_OFF);
    programs_clean();
    exit(1);
}

void pin(int n)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &allowed) && n-- == 0)
            CPU_SET(i, &one);
    if (CPU_COUNT(&one) == 1)
        sched_setaffinity(0, sizeof(one), &one);
}

void unpin(void)
{
    sched_setaffinity(0, sizeof(allowed), &allowed);
}

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

static void print_row(const struct row *row)
{
    static const char *const machines[] = {"one", "two", "programs"};
    printf("%s %s %s %s %s\n", row->name, row->unit, row->is_rate ? "rate" : "time", row->kind,
           machines[row->machine]);
}

static int compare_values(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void run_row(const struct row *row)
{
    double values[MAX_PASSES];
    int n = row->passes;
    /* On a host with more CPUs, a machine with one is compared with one CPU. */
    if (row->machine != ROW_TWO)
        pin(0);
    for (int pass = 0; pass < n; pass++)
        values[pass] = row->run();
    unpin();
    if (values[0] < 0) /* this machine cannot do it */
        return;
    qsort(values, (size_t)n, sizeof(values[0]), compare_values);
    /* With two CPUs the best is chance: threads that happen to miss each other. */
    double value = row->machine == ROW_TWO ? values[n / 2] : values[row->is_rate ? n - 1 : 0];
    printf("row %s %.4f %s\n", row->name, value, row->unit);
    fflush(stdout);
}

/* What a program in the guest expects of its surroundings. */
static void mount_all(void)
{
    mkdir("/tmp", 01777);
    mkdir("/proc", 0555);
    if (mount("none", "/tmp", "tmpfs", 0, NULL) != 0 ||
        mount("none", "/proc", "proc", 0, NULL) != 0)
        fail("mount");
}

int main(int argc, char **argv)
{
    int is_init = getpid() == 1;
    const char *chosen = is_init ? getenv("rows") : argc > 1 ? argv[1] : NULL;

    if (argc > 1 && strcmp(argv[1], "exit") == 0)
        return 0;
    if (argc > 1 && strcmp(argv[1], "--list") == 0) {
        for (size_t t = 0; t < TABLES; t++)
            for (const struct row *row = tables[t]; row->name; row++)
                print_row(row);
        return 0;
    }
    printf("rows: first process\n");
    fflush(stdout);
    if (is_init) {
        mount_all();
    } else {
        self = argv[0];
        programs_dir = argc > 2 ? argv[2] : NULL;
    }
    sched_getaffinity(0, sizeof(allowed), &allowed);
    for (size_t t = 0; t < TABLES; t++)
        for (const struct row *row = tables[t]; row->name; row++)
            if (is_chosen(chosen, row->name))
                run_row(row);
    programs_clean();
    printf("rows: done\n");
    fflush(stdout);
    if (is_init)
        reboot(RB_POWER_OFF);
    return 0;
}
