/*
 * survivor.c - a small process that goes on when this one is killed
 *
 * Invariants: a survivor holds no descriptor but those it is for, so that nobody waits for it at
 * the other end of standard output, and no other survivor at the other end of a pipe. Until it is
 * in its own session, which may be after the parent's end, signals are blocked.
 */
#include "os/survivor.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Close [first, last]; the kernel may be older than close_range (Linux 5.9). */
static void close_all(unsigned first, unsigned last)
{
    if (first > last || syscall(SYS_close_range, first, last, 0) == 0)
        return;
    for (unsigned fd = first; fd <= last && fd < 1024; fd++)
        close((int)fd);
}

/* All but these. */
static void close_others(const int *kept, unsigned count)
{
    unsigned from = 0;

    for (;;) {
        unsigned next = ~0u; /* the smallest that is kept, of those not yet passed */
        for (unsigned i = 0; i < count; i++)
            if (kept[i] >= 0 && (unsigned)kept[i] >= from && (unsigned)kept[i] < next)
                next = (unsigned)kept[i];
        if (next == ~0u) {
            close_all(from, ~0u);
            return;
        }
        if (next > from)
            close_all(from, next - 1);
        from = next + 1;
    }
}

int survivor_start(struct survivor *s, const char *name, const int *kept, unsigned kept_count,
                   void (*run)(void *ctx, int fd), void *ctx, struct err *e)
{
    int fds[2], open_fds[SURVIVOR_FDS_MAX + 1];
    sigset_t all, old;

    assert(kept_count <= SURVIVOR_FDS_MAX);
    *s = (struct survivor){.pipe_fd = -1};
    if (pipe2(fds, O_CLOEXEC) != 0)
        return err_set(e, errno, "create a pipe");
    /*
     * Before there is a child: the end of a session's first process sends SIGHUP to the terminal's
     * foreground job, to which the child belongs until it has called setsid.
     */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pid_t pid = fork();
    int code = errno;
    if (pid != 0)
        pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (pid < 0) {
        close(fds[0]);
        close(fds[1]);
        return err_set(e, code, "start the process '%s'", name);
    }
    if (pid == 0) {
        /* only async-signal-safe calls from here on */
        setsid();
        prctl(PR_SET_NAME, name);
        for (unsigned i = 0; i < kept_count; i++)
            open_fds[i] = kept[i];
        open_fds[kept_count] = fds[0];
        close_others(open_fds, kept_count + 1);
        run(ctx, fds[0]);
        _exit(0);
    }
    close(fds[0]);
    *s = (struct survivor){.pid = pid, .pipe_fd = fds[1]};
    return 0;
}

void survivor_finish(struct survivor *s)
{
    if (s->pid <= 0)
        return;
    close(s->pipe_fd);
    while (waitpid(s->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    *s = (struct survivor){.pipe_fd = -1};
}
