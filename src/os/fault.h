/*
 * fault.h - synchronous host signals (SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP) for engines
 *
 * Generated code and native thunks fault on purpose (a divide error, an unmasked SIMD
 * exception, a misaligned vector access). A thread that runs such code registers a hook; the
 * process-wide handler offers it every synchronous fault of that thread first. Whatever the
 * hook does not claim is a bug of ours and ends the process with the default action.
 *
 * The handler runs on an alternate stack with SS_AUTODISARM, so the interrupted stack pointer
 * may hold any value, a guest's included.
 */
#ifndef DOPPEL_OS_FAULT_H
#define DOPPEL_OS_FAULT_H

#include <signal.h>
#include <stdbool.h>
#include <ucontext.h>

#include "base/err.h"

/*
 * Returns true when the fault was the engine's: it has changed *uc so that execution goes on
 * elsewhere. Async-signal context: no locks, no allocation, no stdio.
 */
typedef bool (*fault_hook_fn)(void *ctx, int sig, siginfo_t *info, ucontext_t *uc);

/* Install the process-wide handlers; idempotent. Any thread, before the first hook. */
int fault_init(struct err *e);

/*
 * Give the calling thread a hook, and on first use a signal stack, which is freed when the thread
 * ends. fault_thread_exit takes the hook away.
 */
int fault_thread_enter(fault_hook_fn fn, void *ctx, struct err *e);
void fault_thread_exit(void);

#endif
