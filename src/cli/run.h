/*
 * run.h - `doppel run`: one machine from its options to its exit status
 */
#ifndef DOPPEL_CLI_RUN_H
#define DOPPEL_CLI_RUN_H

struct options;

/* Documented in options_print_help and doppel(1). */
enum exit_status {
    EXIT_STATUS_OK = 0,
    EXIT_STATUS_ERROR = 1,
    EXIT_STATUS_GUEST_DIED = 2,
    EXIT_STATUS_REBOOT = 3,
    EXIT_STATUS_SIGNAL = 128, /* plus the signal's number */
};

/* Run the machine, say on standard error how it ended when that was not as wished. */
int run_machine(const struct options *options);

#endif
