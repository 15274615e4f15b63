/*
 * fault.c - synchronous host signals, offered to the thread's engine first
 *
 * Invariant: the handler trusts nothing of the interrupted context but the FS base (thread-local
 * storage), which generated code never changes. SS_AUTODISARM makes the kernel switch stacks
 * whatever the interrupted stack pointer holds: without it, a guest's RSP that happens to lie
 * within the alternate stack would look as if a handler already ran there.
 */
#include "os/fault.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1u << 31)
#endif

/* AVX-512 frames are over 3 KiB; the hook needs little. */
#define FAULT_STACK_SIZE (64u * 1024)

static const int fault_signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};

/* Per thread: its hook, and the stack that the kernel switches to. */
static _Thread_local struct {
    fault_hook_fn fn;
    void *ctx;
    void *stack;
} fault_thread;

static pthread_once_t fault_key_once = PTHREAD_ONCE_INIT;
static pthread_key_t fault_stack_key;

static void fault_on_signal(int sig, siginfo_t *info, void *uc)
{
    if (fault_thread.fn != NULL && fault_thread.fn(fault_thread.ctx, sig, info, uc))
        return;
    /*
     * Ours: put the default action back and return, so that the instruction faults again and
     * the process ends with the true address in its core file.
     */
    struct sigaction sa = {.sa_handler = SIG_DFL};
    sigaction(sig, &sa, NULL);
    if (info->si_code <= 0)
        raise(sig); /* sent by somebody: it would not repeat by itself */
}

int fault_init(struct err *e)
{
    struct sigaction sa = {.sa_sigaction = fault_on_signal,
                           .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    sigemptyset(&sa.sa_mask);
    for (size_t i = 0; i < sizeof(fault_signals) / sizeof(fault_signals[0]); i++)
        if (sigaction(fault_signals[i], &sa, NULL) != 0)
            return err_set(e, errno, "install the handler of signal %d", fault_signals[i]);
    return 0;
}

/* Runs when the thread ends. */
static void fault_stack_free(void *stack)
{
    stack_t ss = {.ss_flags = SS_DISABLE};
    sigaltstack(&ss, NULL);
    munmap(stack, FAULT_STACK_SIZE);
}

static void fault_key_make(void)
{
    pthread_key_create(&fault_stack_key, fault_stack_free);
}

/* The thread's signal stack is made once and kept: `run` begins and ends often. */
static int fault_stack_make(struct err *e)
{
    void *stack = mmap(NULL, FAULT_STACK_SIZE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED)
        return err_set(e, errno, "allocate a signal stack of %u bytes", FAULT_STACK_SIZE);
    stack_t ss = {.ss_sp = stack, .ss_size = FAULT_STACK_SIZE, .ss_flags = (int)SS_AUTODISARM};
    if (sigaltstack(&ss, NULL) != 0) {
        int code = errno;
        munmap(stack, FAULT_STACK_SIZE);
        return err_set(e, code, "set the signal stack (needs Linux 4.7 or later)");
    }
    pthread_once(&fault_key_once, fault_key_make);
    pthread_setspecific(fault_stack_key, stack);
    fault_thread.stack = stack;
    return 0;
}

int fault_thread_enter(fault_hook_fn fn, void *ctx, struct err *e)
{
    int r = fault_thread.stack == NULL ? fault_stack_make(e) : 0;
    if (r != 0)
        return r;
    fault_thread.fn = fn;
    fault_thread.ctx = ctx;
    return 0;
}

void fault_thread_exit(void)
{
    fault_thread.fn = NULL;
    fault_thread.ctx = NULL;
}
