/*
 * breakable.h - a blocking call of the host that another thread can end
 *
 * There are calls that wait for something for ever, and that no descriptor can wake (locks of
 * files). A signal ends them, but one that comes just before the call is lost. Here it is not: the
 * signal is blocked but for the call, so that it comes within, or stays pending until then, and its
 * handler leaves by a jump.
 */
#ifndef DOPPEL_OS_BREAKABLE_H
#define DOPPEL_OS_BREAKABLE_H

#include <pthread.h>
#include <stdbool.h>

/* Once or more, before the next two: the process's signal is set up. 0 or -errno. Any thread. */
int breakable_init(void);

/*
 * call(ctx), on a thread of thread_start: true, with what it returned in *result; false: it was
 * broken, and whether it did what it does is not known. It may use nothing but calls that are safe
 * in signal handlers.
 */
bool breakable_run(int (*call)(void *ctx), void *ctx, int *result);

/* End what a thread of thread_start has in breakable_run, or will have next. Any thread. */
void breakable_break(pthread_t thread);

#endif
