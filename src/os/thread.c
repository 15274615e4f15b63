/*
 * thread.c - see thread.h
 */
#include "os/thread.h"

#include <signal.h>

int thread_start(pthread_t *thread, const char *name, void *(*run)(void *), void *ctx)
{
    sigset_t all, old;

    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    int code = pthread_create(thread, NULL, run, ctx);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (code == 0)
        pthread_setname_np(*thread, name);
    return -code;
}
