/*
 * switch.h - `doppel switch`: a software switch between machines
 */
#ifndef DOPPEL_CLI_SWITCH_H
#define DOPPEL_CLI_SWITCH_H

#include <stdio.h>

/* argv[0..argc) starts behind the command. Returns the exit status, once a signal ended it. */
int switch_run(int argc, char **argv);

/* A line for the general help. */
void switch_print_line(FILE *out);

#endif
