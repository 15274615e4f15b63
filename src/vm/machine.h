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

#include "cpu/model.h"
#include "cpu/state.h"
#include "engine/engine.h"
#include "vm/board.h"
#include "vm/boot/boot.h"
#include "vm/vm.h"

struct vcpu {
    struct vm *vm;
    unsigned index;
    struct engine_vcpu *engine;
    struct engine_pins pins;
    struct lapic *lapic;           /* the board's */
    _Atomic uint8_t sipi_vector;   /* valid with PIN_SIPI */

    pthread_t thread;
    bool is_started;

    /* is_asleep is set under the lock before the pins are looked at for the last time */
    pthread_mutex_t sleep_lock;
    pthread_cond_t wake;
    _Atomic bool is_asleep;

    /* this thread's own, or anybody's while it is parked */
    struct cpu_state state;        /* scratch for exchanges with the engine */
    bool is_waiting_sipi;
    uint64_t run_ns, halt_ns, halt_count;
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
    struct cpu_model model;
    struct boot_source source;
    bool is_source_open;
    struct board board;
    struct vcpu *vcpus;
    unsigned vcpu_count;           /* with locks made and attached to the engine */
    uint64_t tsc_base;             /* host TSC when the guest's was 0, plus pauses since */

    /* the main loop's thread only */
    bool is_started;               /* vCPU threads have been */
    bool is_paused;
    uint64_t paused_tsc, paused_ns; /* host TSC and CLOCK_BOOTTIME when guest time stopped */

    pthread_mutex_t lock;
    pthread_cond_t parked;         /* parked_count grew */
    pthread_cond_t resumed;        /* run_state changed */
    enum machine_run_state run_state; /* under lock */
    unsigned parked_count;         /* under lock */
    bool is_reset_wanted;          /* under lock */
    bool is_ended;                 /* under lock: `end` is filled, the first cause counts */
    struct vm_end end;             /* under lock */
};

/* vcpu.c */
int vcpu_create(struct vcpu *vcpu, struct vm *vm, unsigned index, struct err *e);
void vcpu_destroy(struct vcpu *vcpu);
int vcpu_start(struct vcpu *vcpu, struct err *e);
void vcpu_join(struct vcpu *vcpu);
/* Set pins, and see to it that the vCPU looks at them. Any thread. */
void vcpu_raise(struct vcpu *vcpu, uint32_t pins);
/* Reset the processor; `st` NULL: as after power-up. Its thread does not run guest code. */
void vcpu_reset(struct vcpu *vcpu, const struct cpu_state *st);
/* State after power-up, with what firmware sets up in each processor before it starts an OS. */
void vcpu_state_reset(const struct vcpu *vcpu, struct cpu_state *st);
extern const struct lapic_ops vcpu_lapic_ops;

/* host.c */
extern const struct engine_host vm_engine_host;

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
/* PIN_STOP: returns false when the thread has to end. The vCPU's thread. */
bool vm_park(struct vcpu *vcpu);
/*
 * Get every vCPU thread out of the engine and hold it, until vm_release lets them go on, which it
 * does not while something else keeps the machine from running. Main loop's thread.
 */
void vm_hold(struct vm *vm);
void vm_release(struct vm *vm);
/* Has the machine ended? Any thread. */
bool vm_is_ended(struct vm *vm);

#endif
