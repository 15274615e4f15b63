/*
 * cli.h - the command line, without main, so that tests may call it
 */
#ifndef DOPPEL_CLI_CLI_H
#define DOPPEL_CLI_CLI_H

/* Carry out argv[1..]. Returns the exit status. */
int cli_main(int argc, char **argv);

#endif
