/*
 * run.c - a vCPU's turns in KVM, and how others get its attention
 *
 * Wake-ups are not lost: whoever wants the vCPU's attention sets a pin, then immediate_exit, then
 * looks for a thread inside of KVM_RUN to send the signal to. The loop clears immediate_exit and
 * then reads the pins; it says that it is inside before KVM looks at immediate_exit. So either the
 * loop sees the pin, or KVM sees immediate_exit, or the signal is sent.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/kvm/kvm.h"
#include "os/fault.h"
#include "os/tsc.h"

/* ---- kicks ---- */

static void kick_on_signal(int sig)
{
    /* interrupting KVM_RUN is all */
}

int kvm_kick_init(struct err *e)
{
    /*
     * The threads keep the signal unblocked when the machine changes its engine, and where the
     * translator runs the stack pointer is the guest's.
     */
    struct sigaction sa = {.sa_handler = kick_on_signal, .sa_flags = SA_RESTART | SA_ONSTACK};

    sigemptyset(&sa.sa_mask);
    if (sigaction(KVM_KICK_SIGNAL, &sa, NULL) != 0)
        return err_set(e, errno, "install the handler of signal %d", KVM_KICK_SIGNAL);
    return 0;
}

void kvm_kick(struct engine_vcpu *v)
{
    int saved = errno;
    pid_t tid;

    __atomic_store_n(&v->soft.go, 0, __ATOMIC_SEQ_CST);
    __atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    tid = atomic_load(&v->running_tid);
    if (tid != 0)
        syscall(SYS_tgkill, getpid(), tid, KVM_KICK_SIGNAL);
    errno = saved;
}

void kvm_call_out(struct soft_vcpu *soft)
{
    kvm_kick(CONTAINER_OF(soft, struct engine_vcpu, soft));
}

/* The machine's threads block all signals; this one must come through. */
static void kick_unblock(struct engine_vcpu *v, pid_t tid)
{
    sigset_t set;

    if (v->unblocked_tid == tid)
        return;
    sigemptyset(&set);
    sigaddset(&set, KVM_KICK_SIGNAL);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    v->unblocked_tid = tid;
}

/* ---- one turn ---- */

int kvm_run_turn(struct engine_vcpu *v, struct err *e)
{
    const struct engine_host *host = v->engine->soft.host;
    struct kvm_run *run = v->run;
    bool has_apic = v->engine->has_apics;
    uint64_t cr8 = has_apic ? 0 : host->cr8_read(v->soft.cpu);
    int ret;

    run->cr8 = cr8;
    soft_guest_enter(&v->soft);
    atomic_store(&v->running_tid, v->unblocked_tid);
    ret = kvm_try(v->engine->sys, v->fd, KVM_RUN, NULL);
    if (ret < 0)
        ret = -errno;
    atomic_store(&v->running_tid, 0);
    soft_guest_leave(&v->soft);
    v->stats.runs++;
    v->valid = CPU_GROUP_TSC;
    v->is_inject_ready = true;
    v->has_entered = true;
    if (!has_apic && run->cr8 != cr8)
        host->cr8_write(v->soft.cpu, run->cr8);
    if (ret == -EINTR || ret == -EAGAIN) {
        v->is_incomplete = false;
        v->stats.counts[KVM_COUNT_KICK]++;
        return 1;
    }
    v->is_incomplete = false;
    if (ret < 0) {
        errno = -ret;
        return kvm_call_failed(KVM_RUN, "KVM_RUN", e);
    }
    return 0;
}

/* Let KVM finish the instruction whose I/O was done, and execute no other. */
static int complete(struct engine_vcpu *v, struct err *e)
{
    int ret = 0;

    while (ret == 0 && v->is_incomplete) {
        __atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
        ret = kvm_run_turn(v, e);
        if (ret == 0)
            ret = kvm_exit_serve(v, e);
    }
    return MIN(ret, 0);
}

/* ---- interrupts ---- */

static int inject_nmi(struct engine_vcpu *v, struct err *e)
{
    atomic_fetch_and(&v->soft.pins->bits, ~PIN_NMI);
    v->stats.counts[KVM_COUNT_NMI]++;
    return KVM_CALL(v->engine->sys, v->fd, KVM_NMI, NULL, e);
}

/* The INTR pin is up: deliver if the guest can take it now, else ask to be told when. */
static int inject_interrupt(struct engine_vcpu *v, struct err *e)
{
    const struct engine_host *host = v->engine->soft.host;
    struct kvm_interrupt interrupt;
    int vector, ret;

    v->run->request_interrupt_window = 1;
    if (!v->is_inject_ready || !v->run->ready_for_interrupt_injection)
        return 0;
    vector = host->interrupt_acknowledge(v->soft.cpu);
    if (vector >= 0) {
        interrupt.irq = (uint32_t)vector;
        ret = KVM_CALL(v->engine->sys, v->fd, KVM_INTERRUPT, &interrupt, e);
        if (ret < 0)
            return ret;
        v->stats.counts[KVM_COUNT_INTERRUPT]++;
        v->is_inject_ready = false;
    }
    if (!(atomic_load(&v->soft.pins->bits) & PIN_INTR))
        v->run->request_interrupt_window = 0;
    return 0;
}

/* ---- the loop ---- */

/*
 * Is something due that KVM is not told of? General registers are never stored without events:
 * what KVM holds of those would be lost.
 */
static bool has_pending(struct engine_vcpu *v)
{
    const struct cpu_state *st = &v->soft.st;

    return (v->valid & CPU_GROUP_EVENT) &&
           (st->is_exception_pending || st->pending_dbg != 0 || v->injected_vector >= 0);
}

/* What KVM has put off for the next entry is done now; it has to know everything for that. */
static int settle_apic(struct engine_vcpu *v, struct err *e)
{
    int ret = 0;

    if (v->dirty & (CPU_GROUP_GPR | CPU_GROUP_EVENT))
        ret = kvm_state_fetch(v, CPU_GROUP_GPR | CPU_GROUP_EVENT, e);
    if (ret == 0 && has_pending(v))
        ret = kvm_deliver_pending(v, e);
    if (ret == 0)
        ret = kvm_state_store(v, e);
    v->run->request_interrupt_window = 0;
    return ret == 0 ? kvm_apic_settle(v, e) : ret;
}

/* Leave nothing that only KVM knows how to finish. */
static int settle(struct engine_vcpu *v, struct err *e)
{
    int ret = complete(v, e);

    if (ret == 0 && v->engine->has_apics)
        ret = settle_apic(v, e);
    if (ret == 0)
        ret = kvm_state_fetch(v, CPU_GROUP_EVENT, e);
    if (ret == 0 && v->injected_vector >= 0)
        ret = kvm_deliver_pending(v, e);
    return ret;
}

/* A halted processor: does anything wake it? */
static int wake(struct engine_vcpu *v, struct err *e)
{
    struct cpu_state *st = &v->soft.st;
    int ret = kvm_state_fetch(v, CPU_GROUP_GPR | CPU_GROUP_EVENT, e);
    uint32_t pins = atomic_load(&v->soft.pins->bits);

    if (ret == 0 && (((pins & PIN_NMI) && !st->is_nmi_blocked) ||
                     ((pins & PIN_INTR) && (st->rflags & RFLAGS_IF)) || st->is_exception_pending ||
                     st->pending_dbg != 0))
        st->run_state = CPU_RUNNING;
    return ret;
}

/* 1: `run` has to end, with *stop. */
static int must_stop(struct engine_vcpu *v, enum engine_stop *stop, struct err *e)
{
    struct cpu_state *st = &v->soft.st;
    int ret = 0;

    if (st->run_state == CPU_SHUTDOWN) {
        *stop = ENGINE_STOP_SHUTDOWN;
        return 1;
    }
    if (atomic_load(&v->soft.pins->bits) & PIN_LEAVE) {
        *stop = ENGINE_STOP_PIN;
        ret = settle(v, e);
        return ret != 0 ? ret : 1;
    }
    if (v->engine->has_apics) /* where HLT and SIPI are waited for */
        return 0;
    if (st->run_state == CPU_HALTED)
        ret = wake(v, e);
    if (ret != 0 || st->run_state == CPU_RUNNING)
        return ret;
    *stop = st->run_state == CPU_SHUTDOWN ? ENGINE_STOP_SHUTDOWN : ENGINE_STOP_HALT;
    return 1;
}

/* All that KVM has to know before the guest is entered. */
static int prepare(struct engine_vcpu *v, struct err *e)
{
    uint32_t pins = atomic_load(&v->soft.pins->bits);
    int ret = kvm_state_store(v, e);

    v->run->request_interrupt_window = 0;
    if (ret >= 0 && (pins & PIN_NMI))
        ret = inject_nmi(v, e);
    if (ret >= 0 && (pins & PIN_INTR))
        ret = inject_interrupt(v, e);
    return MIN(ret, 0);
}

/* A guest that KVM would interpret is run elsewhere. True: look at everything again. */
static bool take_over(struct engine_vcpu *v, int *ret, struct err *e)
{
    if (!atomic_load_explicit(&v->engine->is_interpreted, memory_order_relaxed))
        return false;
    if (v->is_incomplete) {
        *ret = complete(v, e);
        return true;
    }
    *ret = kvm_take_over(v, e);
    return *ret != 0 || v->soft.st.run_state != CPU_RUNNING || has_pending(v) ||
           (atomic_load(&v->soft.pins->bits) & PIN_LEAVE);
}

static int loop(struct engine_vcpu *v, enum engine_stop *stop, struct err *e)
{
    for (;;) {
        int ret;

        __atomic_store_n(&v->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
        ret = must_stop(v, stop, e);
        if (ret != 0)
            return MIN(ret, 0);
        /* registers are only right to store when no instruction is half done */
        if (v->is_incomplete && (v->dirty & ~CPU_GROUP_TSC)) {
            ret = complete(v, e);
            if (ret != 0)
                return ret;
            continue;
        }
        if (v->dirty & (CPU_GROUP_GPR | CPU_GROUP_EVENT))
            ret = kvm_state_fetch(v, CPU_GROUP_GPR | CPU_GROUP_EVENT, e);
        if (ret == 0 && has_pending(v))
            ret = kvm_deliver_pending(v, e);
        else if (ret == 0 && take_over(v, &ret, e))
            ;
        else if (ret == 0 && (ret = prepare(v, e)) == 0 && (ret = kvm_run_turn(v, e)) == 0)
            ret = kvm_exit_serve(v, e);
        if (ret < 0)
            return ret;
    }
}

static bool fault_hook(void *ctx, int sig, siginfo_t *info, ucontext_t *uc)
{
    return soft_thunk_fault(ctx, sig, info, uc);
}

int kvm_run(struct engine_vcpu *v, enum engine_stop *stop, struct err *e)
{
    uint64_t start = tsc_read();
    int ret = v->failure.code;

    if (ret != 0) { /* of a pull, which cannot say so */
        *e = v->failure;
        return -ret;
    }
    ret = fault_thread_enter(fault_hook, &v->soft, e);
    if (ret != 0)
        return ret;
    kick_unblock(v, gettid());
    ret = loop(v, stop, e);
    fault_thread_exit();
    v->run_tsc += tsc_read() - start;
    return ret;
}
