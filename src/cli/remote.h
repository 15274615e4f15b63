/*
 * remote.h - the commands on running machines: ps, status, pause, resume, stop, stats, engine
 */
#ifndef DOPPEL_CLI_REMOTE_H
#define DOPPEL_CLI_REMOTE_H

#include <stdbool.h>
#include <stdio.h>

/* How they end, beyond EXIT_STATUS_OK and EXIT_STATUS_ERROR. Documented in doppel(1). */
enum remote_status {
    REMOTE_STATUS_ABSENT = 4,        /* no such machine runs */
    REMOTE_STATUS_STILL_RUNNING = 5, /* stop --button: the guest has not powered off */
};

/* Is `command` one of them? */
bool remote_knows(const char *command);

/* Their names, ends with NULL. */
extern const char *const remote_commands[];

/* argv[0..argc) starts behind the command. Returns the exit status. */
int remote_run(const char *command, int argc, char **argv);

/* A line for each, for the general help. */
void remote_print_list(FILE *out);

#endif
