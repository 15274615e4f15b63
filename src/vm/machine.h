/*
 * machine.h - the parts of a virtual machine, for the files of this folder
 *
 * Threads: one for each vCPU, and the main loop. A vCPU's thread runs guest code while the
 * machine's run state is MACHINE_RUNNING; everything that changes the machine as a whole
 * (reset, the end) is done by the main loop's thread with all vCPU threads parked.
 *
 * Lock order: a device's locks, then vm->lock, then vm->engine_lock, then a vCPU's sleep lock.
 */
#ifndef DOPPEL_VM_MACHINE_H
#define DOPPEL_VM_MACHINE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/stats_book.h"
#include "cpu/model.h"
#include "cpu/state.h"
#include "engine/engine.h"
#include "os/spin_wait.h"
#include "os/vclock.h"
#include "vm/board.h"
#include "vm/boot/boot.h"
#include "vm/firmware.h"
#include "vm/vm.h"

struct vcpu {
    struct vm *vm;
    unsigned index;
    struct engine_vcpu *engine;    /* see vm->engine_lock */
    struct engine_pins pins;
    struct lapic *lapic;           /* the board's */
    _Atomic uint8_t sipi_vector;   /* valid with PIN_SIPI */

    pthread_t thread;
    bool is_started;

    _Atomic bool is_kicked;        /* the next HLT, or the present one, is over (vcpu_unhalt) */
    _Atomic uint32_t is_asleep;    /* the thread sleeps on it, or is about to; who wakes clears it */

    /* this thread's own, or anybody's while it is parked */
    struct cpu_state state;        /* scratch for exchanges with the engine */
    struct cpu_apic apic;          /* the same; main loop's thread */
    bool is_waiting_sipi;
    uint64_t poll_control;         /* MSR_KVM_POLL_CONTROL; bit 0: look for what ends HLT */
    int run_delay_fd;              /* os/run_delay.h, of the thread; -1: none */
    uint64_t run_ns, halt_ns, halt_count;
    struct spin_wait spin; /* how long HLT looks for a wake-up before it sleeps */
    uint64_t polled_ns;    /* spent so; part of halt_ns */
};

#define VM_ENGINES_MAX 3

/* An engine with the machine's memory, and a vCPU of its own for each of the machine's. */
struct vm_engine {
    const struct engine_ops *ops;
    struct engine *engine;                    /* NULL: not open */
    struct engine_vcpu *vcpus[VM_CPUS_MAX];   /* NULL: not attached */
};

/* Changes of the engine. The main loop's thread only. */
struct vm_switches {
    uint64_t count, stopped_ns, stopped_max_ns;
};

/* What engines counted that the machine ran on before (totals.c). */
struct vm_totals {
    const struct engine_ops *ops; /* NULL: a place that is free */
    struct stats_book book;
};

/* What the engine may ring (bells.c). */
struct vm_bells {
    pthread_mutex_t lock; /* after a device's locks, before vm->engine_lock */
    struct engine_bell list[ENGINE_BELLS_MAX];
    unsigned count;
};

enum machine_run_state {
    MACHINE_RUNNING,
    MACHINE_PARKED,    /* vCPU threads wait outside of the engine */
    MACHINE_ENDING,    /* vCPU threads return */
};

struct vm {
    struct vm_config config;

    /*
     * The engine: ops, engine and every vcpu->engine change together, on the main loop's thread
     * with all vCPU threads parked and engine_lock held for writing. Threads that are neither, or
     * do not know, hold it for reading.
     */
    pthread_rwlock_t engine_lock;
    const struct engine_ops *ops;
    struct engine *engine;

    /* what --engines names, or the one that the machine was made with; fixed */
    const struct engine_ops *engines[VM_ENGINES_MAX];
    unsigned engine_count;
    struct cpu_model model;
    struct boot_source source;
    bool is_source_open;      /* else the machine starts with `firmware` */
    struct firmware firmware; /* rom NULL: none */
    const char *firmware_name; /* what "auto" came to; NULL: none */
    struct board board;
    struct vm_bells bells;
    struct vcpu *vcpus;
    unsigned vcpu_count;           /* attached to the engine: none or all */
    bool can_poll;                 /* a waiting vCPU takes no processor from another */
    uint64_t tsc_base;             /* host TSC when the guest's was 0, plus pauses since */

    /* the main loop's thread only */
    bool is_started;               /* vCPU threads have been */
    bool is_paused;
    bool are_apics_lent;           /* changes with all vCPUs parked: their threads may look */
    struct vtimer steal_timer;     /* while they are lent (apics.c) */
    uint64_t steal_interval_ns;
    struct vm_switches switches;
    struct vm_totals totals[VM_ENGINES_MAX];
    struct vtimer storm_timer;     /* --switch-storm on an engine that counts no instructions */
    uint64_t paused_tsc, paused_ns; /* host TSC and CLOCK_BOOTTIME when guest time stopped */

    pthread_mutex_t lock;
    pthread_cond_t parked;         /* parked_count grew */
    pthread_cond_t resumed;        /* run_state changed */
    enum machine_run_state run_state; /* under lock */
    unsigned parked_count;         /* under lock */
    bool is_reset_wanted;          /* under lock */
    _Atomic bool is_remap_due;     /* written under lock */
    uint64_t remap_count;          /* under lock: how many were done */
    unsigned remap_waiters;        /* under lock: vCPU threads within an access, until one is done */
    bool is_storm_due;             /* under lock */
    bool is_ended;                 /* under lock: `end` is filled, the first cause counts */
    struct vm_end end;             /* under lock */
};

/* vcpu.c */
void vcpu_init(struct vcpu *vcpu, struct vm *vm, unsigned index); /* *vcpu is zeroed */
int vcpu_start(struct vcpu *vcpu, struct err *e);
void vcpu_join(struct vcpu *vcpu);
/* Set pins, and see to it that the vCPU looks at them. Any thread. */
void vcpu_raise(struct vcpu *vcpu, uint32_t pins);
/* End the HLT of a vCPU, or its next one if it is not in one, whatever RFLAGS.IF. Any thread. */
void vcpu_unhalt(struct vcpu *vcpu);
/* Reset the processor; `st` NULL: as after power-up. Its thread does not run guest code. */
void vcpu_reset(struct vcpu *vcpu, const struct cpu_state *st);
/* INIT and SIPI that wait for an application processor. Its thread is parked. */
void vcpu_take_startup(struct vcpu *vcpu);
/* State after power-up, with what firmware sets up in each processor before it starts an OS. */
void vcpu_state_reset(const struct vcpu *vcpu, struct cpu_state *st);
extern const struct lapic_ops vcpu_lapic_ops;

/* hypercall.c: what the call returns. The vCPU's thread. */
int64_t hypercall_serve(struct vcpu *vcpu, const struct cpu_hypercall *call);

/* host.c */
extern const struct engine_host vm_engine_host;

/*
 * apics.c: give the engine the machine's local APICs, if it has some of its own; take them back.
 * No harm in doing either twice. vCPUs parked, main loop's thread. On failure all is as before.
 */
int apics_lend(struct vm *vm, struct err *e);
int apics_take_back(struct vm *vm, struct err *e);
/* Was the machine made for that? Not one that was to run on other engines only. */
bool apics_can_be_lent(const struct vm *vm);
/* The engine is going away, and the machine with it. */
void apics_abandon(struct vm *vm);
/* vcpu_unhalt while they are lent. Any thread. */
void apics_unhalt(struct vcpu *vcpu);

/*
 * bells.c: registers whose writes an engine may serve by waking a thread (struct engine_bell).
 */
struct pci_host_bell;
/* The guest can reach these, and no others. Any thread, with the PCI bus's lock held. */
void bells_moved(struct vm *vm, const struct pci_host_bell *bells, unsigned count);
/* A local APIC's window may have moved, or the machine has another engine. Any thread. */
void bells_follow(struct vm *vm);
/* Give them to an engine that the machine is about to change to, so that it need not take long. */
int bells_prepare(struct vm *vm, const struct vm_engine *engine, struct err *e);
void bells_report_stats(const struct vm *vm, struct stats_sink *sink);

/* engines.c: the list of all there are, and one for this machine */
const struct engine_ops *engines_find(const char *name, struct err *e);
/* Fill in vm->engines, vm->ops and what all of them can offer of a processor. */
int engines_choose(struct vm *vm, struct cpu_model_limit *limit, struct err *e);
/* What an engine of this machine could offer of a processor. */
int engines_limit_model(const struct vm *vm, const struct engine_ops *ops,
                        struct cpu_model_limit *limit, struct err *e);
/* On failure nothing is left open. */
int engines_open(struct vm *vm, const struct engine_ops *ops, struct vm_engine *out,
                 struct err *e);
void engines_close(struct vm *vm, struct vm_engine *engine);
/* Make the machine run on *engine, and hand out in it what it ran on before. vCPUs are parked. */
void engines_exchange(struct vm *vm, struct vm_engine *engine);

/*
 * totals.c: counters of all engines that the machine has run on, for its life. Main loop's thread.
 */
/* Write down what an engine counted that the machine ran on, and does no more. */
void totals_keep(struct vm *vm, const struct vm_engine *engine);
/* vCPUs are parked. */
void totals_report(struct vm *vm, struct stats_sink *sink);
void totals_forget(struct vm *vm);

/* switch.c */
/* vm_switch_engine to an engine by its table; for tests, that of no known one. */
int switch_to_ops(struct vm *vm, const struct engine_ops *ops, struct vm_switch *done,
                  struct err *e);
void switch_report_stats(const struct vm *vm, struct stats_sink *sink);
/* ENGINE_STOP_SLICE, on the vCPU's thread: park all, and change the engine. */
void switch_storm(struct vcpu *vcpu);
void switch_storm_begin(struct vm *vm);
void switch_storm_end(struct vm *vm);

/* dump.c */
void vcpu_dump(struct vcpu *vcpu, char *buf, size_t size);

/*
 * vm.c: end the machine, unless it has ended already; fills in the cause and parks the vCPUs.
 * Any thread, with device locks held.
 */
void vm_end_with(struct vm *vm, const struct vm_end *end);
/* The same for causes that need no more words. */
void vm_end_cause(struct vm *vm, enum vm_end_cause cause);
/* The guest asks for a reset of the whole machine. Any thread, with device locks held. */
void vm_request_reset(struct vm *vm);
/*
 * Memory is to be routed anew (shadow.h): it is done when no vCPU is in guest code. Any thread,
 * with device locks held.
 */
void vm_request_remap(struct vm *vm);
/* After an access that may have asked for it: wait until it is done. The vCPU's thread, no locks.
 */
void vm_await_remap(struct vm *vm);
/* PIN_STOP: returns false when the thread has to end. The vCPU's thread. */
bool vm_park(struct vcpu *vcpu);
/*
 * Get every vCPU thread out of the engine and hold it, having routed memory anew if that is due,
 * until vm_release lets them go on, which it does not while something else keeps the machine from
 * running. Main loop's thread.
 */
void vm_stop_running(struct vm *vm); /* do not wait; any thread */
void vm_hold(struct vm *vm);
/* Lends the local APICs first, where that is wanted; a failure ends the machine. */
void vm_release(struct vm *vm);
/* Has the machine ended? Any thread. */
bool vm_is_ended(struct vm *vm);

#endif
