/*
 * cli.c - commands of the command line
 */
#include "cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/image.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/remote.h"
#include "cli/run.h"
#include "cli/suggest.h"
#include "cli/switch.h"
#include "cpu/model.h"

/*
 * A closed standard descriptor would be taken by the next file we open, and guest output would
 * end up in it. Fill the gap with something that fails when used the usual way.
 */
static void cli_fill_standard_fds(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF) {
            int got = open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY);
            if (got >= 0 && got != fd) {
                dup2(got, fd);
                close(got);
            }
        }
}

static int cli_help(void)
{
    options_print_help(stdout);
    return output_finish(EXIT_STATUS_OK);
}

static int cli_version(void)
{
    printf("doppel %s\n", DOPPEL_VERSION);
    return output_finish(EXIT_STATUS_OK);
}

static void cli_print_line(void *ctx, const char *line)
{
    fprintf(ctx, "%s\n", line);
}

static int cli_run(int argc, char **argv)
{
    struct options options;
    struct err e;
    if (options_parse(argc, argv, &options, &e) != 0) {
        log_error("%s", e.msg);
        return EXIT_STATUS_ERROR;
    }
    if (options.wants_help)
        return cli_help();
    if (options.wants_version)
        return cli_version();
    if (options.wants_cpu_models) {
        cpu_model_list(cli_print_line, stdout);
        return output_finish(EXIT_STATUS_OK);
    }
    log_set_level(options.log_level);
    return run_machine(&options);
}

int cli_main(int argc, char **argv)
{
    cli_fill_standard_fds();
    if (argc < 2) {
        options_print_help(stderr);
        return EXIT_STATUS_ERROR;
    }
    const char *command = argv[1];
    if (strcmp(command, "run") == 0)
        return cli_run(argc - 2, argv + 2);
    if (strcmp(command, "image") == 0)
        return image_run(argc - 2, argv + 2);
    if (remote_knows(command))
        return remote_run(command, argc - 2, argv + 2);
    if (strcmp(command, "switch") == 0)
        return switch_run(argc - 2, argv + 2);
    if (strcmp(command, "help") == 0 || strcmp(command, "--help") == 0 ||
        strcmp(command, "-h") == 0)
        return cli_help();
    if (strcmp(command, "version") == 0 || strcmp(command, "--version") == 0)
        return cli_version();
    if (command[0] == '-') {
        log_error("'%s' before a command; try 'doppel run %s ...' or 'doppel --help'", command,
                  command);
        return EXIT_STATUS_ERROR;
    }
    const char *commands[16] = {"run", "image", "switch", "help", "version"};
    size_t count = 5;
    for (unsigned i = 0; remote_commands[i] != NULL; i++)
        commands[count++] = remote_commands[i];
    const char *near = suggest_nearest(command, commands, count);
    if (near != NULL)
        log_error("unknown command '%s'; did you mean '%s'?", command, near);
    else
        log_error("unknown command '%s'; 'doppel --help' shows what there is", command);
    return EXIT_STATUS_ERROR;
}
