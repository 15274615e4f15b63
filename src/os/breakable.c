/*
 * breakable.c - see breakable.h
 */
#include "os/breakable.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>

/* Used for nothing else; thread_start blocks it. */
#define BREAK_SIGNAL (SIGRTMIN + 1)

/* Where the thread's call is left; valid while the signal is not blocked. A handler is told nothing
 * but what it finds. */
static _Thread_local sigjmp_buf *landing;

static void leave(int sig)
{
    siglongjmp(*landing, 1);
}

int breakable_init(void)
{
    struct sigaction sa = {.sa_handler = leave};

    sigemptyset(&sa.sa_mask);
    return sigaction(BREAK_SIGNAL, &sa, NULL) == 0 ? 0 : -errno;
}

bool breakable_run(int (*call)(void *ctx), void *ctx, int *result)
{
    sigjmp_buf here;
    sigset_t set;

    if (sigsetjmp(here, 1) != 0) /* the signal is blocked as it was here */
        return false;
    landing = &here;
    sigemptyset(&set);
    sigaddset(&set, BREAK_SIGNAL);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    *result = call(ctx);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    return true;
}

void breakable_break(pthread_t thread)
{
    pthread_kill(thread, BREAK_SIGNAL);
}
