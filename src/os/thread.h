/*
 * thread.h - threads that signals leave alone
 */
#ifndef DOPPEL_OS_THREAD_H
#define DOPPEL_OS_THREAD_H

#include <pthread.h>

/*
 * Start a thread `name` (up to 15 characters) with all signals blocked: they are the main
 * thread's business, and nobody's where a call says what they would (SIGPIPE, SIGXFSZ). Returns 0
 * or -errno. Any thread.
 */
int thread_start(pthread_t *thread, const char *name, void *(*run)(void *), void *ctx);

#endif
