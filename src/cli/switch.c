/*
 * switch.c - `doppel switch`: a software switch between machines
 */
#include "cli/switch.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "backend/net/switch.h"
#include "base/log.h"
#include "cli/run.h"
#include "os/loop.h"

static void switch_print_help(void)
{
    printf(
        "Usage: doppel switch [options] PATH\n"
        "\n"
        "Connects the networks of machines that are started with --net socket:PATH, at most %u.\n"
        "PATH is a socket that only you can use. Runs until a signal ends it. Machines outlive\n"
        "it: when there is a switch at PATH again, they are connected again.\n"
        "\n"
        "Options:\n"
        "  --help                       Print this text\n"
        "\n"
        "Exit status:\n"
        "  0      a signal ended it\n"
        "  1      wrong usage, or there can be no switch at PATH; a message says why\n",
        SWITCH_PORTS_MAX);
}

void switch_print_line(FILE *out)
{
    fprintf(out, "  %-29s%s\n", "switch PATH",
            "Connect the networks of machines: a software switch");
}

static void switch_on_signal(void *ctx, unsigned events)
{
    loop_stop(ctx);
}

/* Signals that end it are read by the loop; *fd is theirs. */
static int switch_watch_signals(struct loop *loop, int *fd, struct loop_fd **watch, struct err *e)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGQUIT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    *fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (*fd < 0)
        return err_set(e, errno, "create a signal descriptor");
    return loop_fd_add(loop, *fd, LOOP_READ, switch_on_signal, loop, watch, e);
}

static void switch_report(const struct netswitch *s)
{
    struct netswitch_stats stats = netswitch_stats(s);

    log_info("%llu frames received, %llu sent on, %llu lost at full ports, %llu messages refused",
             (unsigned long long)stats.received, (unsigned long long)stats.sent,
             (unsigned long long)stats.dropped, (unsigned long long)stats.refused);
}

static int switch_serve(const char *path)
{
    struct loop *loop = NULL;
    struct netswitch *s = NULL;
    struct loop_fd *watch = NULL;
    struct err e;
    int fd = -1;

    int rc = loop_create(&loop, &e);
    if (rc == 0)
        rc = switch_watch_signals(loop, &fd, &watch, &e);
    if (rc == 0)
        rc = netswitch_create(loop, path, &s, &e);
    if (rc == 0) {
        printf("The switch '%s' is there.\n", path);
        fflush(stdout);
        rc = loop_run(loop, &e);
        switch_report(s);
    }
    if (rc != 0)
        log_error("%s", e.msg);
    netswitch_destroy(s);
    loop_fd_remove(watch);
    if (fd >= 0)
        close(fd);
    loop_destroy(loop);
    return rc == 0 ? EXIT_STATUS_OK : EXIT_STATUS_ERROR;
}

int switch_run(int argc, char **argv)
{
    const char *path = NULL;

    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            switch_print_help();
            return EXIT_STATUS_OK;
        }
        if (argv[i][0] == '-' || argv[i][0] == '\0' || path != NULL) {
            log_error("unexpected argument '%s'; 'doppel switch --help' shows what it takes",
                      argv[i]);
            return EXIT_STATUS_ERROR;
        }
        path = argv[i];
    }
    if (path == NULL) {
        log_error("where? 'doppel switch PATH', for machines with --net socket:PATH");
        return EXIT_STATUS_ERROR;
    }
    return switch_serve(path);
}
