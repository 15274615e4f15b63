/*
 * output.h - what commands write to standard output
 */
#ifndef DOPPEL_CLI_OUTPUT_H
#define DOPPEL_CLI_OUTPUT_H

#include <stdio.h>

/* An option's part of the help. Lines of `help` stand below each other, `arg` may be NULL. */
void output_option(FILE *out, const char *name, const char *arg, const char *help);

/*
 * The end of a command whose exit status is `status`. Output that could not be written is an error
 * of its own, which is said, as for any filter. Returns the exit status.
 */
int output_finish(int status);

#endif
