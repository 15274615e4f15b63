/*
 * rows.h - the benchmark's rows: what they share
 *
 * A row's function does its work once and returns the figure. Wrong results end the program:
 * a fast row that computes nonsense must not pass as fast.
 */
#ifndef BENCH_ROWS_H
#define BENCH_ROWS_H

#include <stdint.h>

/* Which machine a row runs on; its name is what --list prints. */
enum row_machine {
    ROW_ONE,      /* one CPU, only the benchmark in the initramfs */
    ROW_TWO,      /* two CPUs */
    ROW_PROGRAMS, /* one CPU, Debian's programs in the initramfs */
};

struct row {
    const char *name, *unit;
    double (*run)(void);
    /* What kind of work: "int", "float" (vectors too), "memory", "system", "code", "program",
     * "smp". */
    const char *kind;
    enum row_machine machine;
    int passes;  /* at most 5; see run_row */
    int is_rate; /* more is better */
};

extern const struct row rows_cpu[], rows_kernel[], rows_two[], rows_programs[]; /* end: no name */

extern volatile uint64_t sink; /* results go here, lest the compiler drop the work */
extern const char *self;       /* this program's file */

extern const char *programs_dir; /* of Debian's programs; NULL: none are there */

double now(void);
/* Prints to standard output, ends the program (in a guest, the machine) with a failure. */
_Noreturn void fail(const char *what);
/* Makes 32 MiB present, if they are not: so that no row depends on which others ran before it. */
void touch_memory(void);
/* Makes this thread, and children, run on the n-th CPU that the program may use. */
void pin(int n);
/* Undoes pin(). */
void unpin(void);

/* Removes the files of the rows that run programs. */
void programs_clean(void);

#endif
