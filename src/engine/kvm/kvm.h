/*
 * kvm.h - inside engine/kvm: an engine whose instructions the host's KVM executes
 *
 * Each vCPU carries a soft vCPU (engine/soft). Its `st` is the one place where the engine keeps
 * processor state outside of KVM: register groups are fetched into it, changed there, and stored
 * back before the guest is entered again; and the soft vCPU steps over what KVM gives up on.
 *
 * Invariants:
 *  - `valid` says which groups of soft.st are current; `dirty` which KVM has to be told before
 *    the guest is entered. The guest is entered with dirty == 0, and is left with valid == 0.
 *  - What KVM is never told is always valid: run state, TSC offset, MTRRs, IA32_MISC_ENABLE.
 *  - Outside of `run` no I/O is half done and no interrupt is acknowledged but not delivered.
 *  - KVM's structures do not leave this folder.
 *
 * Spec: Linux, Documentation/virt/kvm/api.rst.
 */
#ifndef DOPPEL_ENGINE_KVM_KVM_H
#define DOPPEL_ENGINE_KVM_KVM_H

#include <linux/kvm.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "engine/engine.h"
#include "engine/soft/vcpu.h"

/* Makes the vCPU's thread leave KVM_RUN. Not queued: one pending signal is as good as many. */
#define KVM_KICK_SIGNAL SIGUSR1

#define KVM_XSAVE_BUFFER_SIZE 16384

/* Every system call to KVM goes through here, so that tests can make each of them fail. */
struct kvm_sys {
    int (*open_kvm)(void *ctx); /* a descriptor, or -1 with errno */
    int (*ioctl)(void *ctx, int fd, unsigned long request, void *arg);
    void *(*map)(void *ctx, int fd, size_t size); /* MAP_FAILED with errno */
    void *ctx;
};

extern const struct kvm_sys kvm_sys_host;

/* An ioctl whose failure is the caller's to report: returns what ioctl does. */
int kvm_try(const struct kvm_sys *sys, int fd, unsigned long request, void *arg);

/* An ioctl that has to work: >= 0, or -errno and *e names the call, the reason, the remedy. */
int kvm_call(const struct kvm_sys *sys, int fd, unsigned long request, const char *name, void *arg,
             struct err *e);
int kvm_call_failed(unsigned long request, const char *name, struct err *e); /* of errno */
#define KVM_CALL(sys, fd, request, arg, e) kvm_call(sys, fd, request, #request, arg, e)

/* Open /dev/kvm and check its version and what this engine cannot do without. */
int kvm_open_system(const struct kvm_sys *sys, int *fd, struct err *e);
int kvm_create_vm(const struct kvm_sys *sys, int system_fd, int *fd, struct err *e);
void kvm_close_fd(int *fd);

/* KVM knows the TSC's frequency, which takes 20 ms to measure. */
void kvm_hint_tsc(const struct kvm_sys *sys, int vcpu_fd);

/* Value of KVM_CHECK_EXTENSION, 0 when unknown. */
int kvm_extension(const struct kvm_sys *sys, int fd, int extension);

/* What this host's KVM has beyond the necessary. */
struct kvm_caps {
    bool has_sregs2;
    bool has_tsc_offset; /* KVM_VCPU_TSC_OFFSET */
    bool has_triple_fault_event;
    bool has_failure_exit; /* KVM_CAP_EXIT_ON_EMULATION_FAILURE */
    uint32_t xsave_size;
};

/* A memory slot; its number is its place in engine.slots. */
struct kvm_slot {
    gpa_t addr;
    uint64_t size; /* 0: free */
    void *host;
    uint32_t flags;
};

/* What KVM has made for a vCPU of some index, attached or not. */
struct kvm_seat {
    int fd;              /* -1: nothing */
    struct kvm_run *run; /* NULL: not mapped */
};

struct engine {
    struct soft_engine soft;
    const struct kvm_sys *sys;
    int system_fd, vm_fd;
    size_t run_size;
    bool has_apics;                         /* apic.c */
    _Atomic bool is_probed, is_interpreted; /* recover.c */
    struct kvm_caps caps;
    _Atomic(struct cpu_model *) stepping_model; /* recover.c; NULL: not needed yet */
    struct kvm_slot slots[SOFT_RAM_SLOTS_MAX];
    bool has_bells;                             /* bells.c */
    struct engine_bell bells[ENGINE_BELLS_MAX]; /* which KVM rings */
    unsigned bell_count;
    struct kvm_seat seats[SOFT_VCPUS_MAX];
};

enum kvm_count {
    KVM_COUNT_IO_READ,
    KVM_COUNT_IO_WRITE,
    KVM_COUNT_MMIO_READ,
    KVM_COUNT_MMIO_WRITE,
    KVM_COUNT_MSR_READ,
    KVM_COUNT_MSR_WRITE,
    KVM_COUNT_EOI,
    KVM_COUNT_HALT,
    KVM_COUNT_WINDOW,
    KVM_COUNT_TPR,
    KVM_COUNT_KICK,
    KVM_COUNT_INTERRUPT,
    KVM_COUNT_NMI,
    KVM_COUNT_FETCH,
    KVM_COUNT_STORE,
    KVM_COUNT_FAILURE,
    KVM_COUNT_BAD_ENTRY,
    KVM_COUNT_STEPPED,
    KVM_COUNT_TAKEN_OVER,
    KVM_COUNT_MAX,
};

/* How often a thing was met; of many things the most frequent ones survive (Space-Saving). */
struct kvm_tally {
    uint64_t count; /* 0: free */
    uint8_t length;
    uint8_t key[15];
};

#define KVM_FAILED_KINDS 16u
#define KVM_EXIT_PLACES 64u

struct kvm_stats {
    uint64_t runs;
    uint64_t counts[KVM_COUNT_MAX];
    /* Where accesses went that left the guest: ports, and pages of memory that is not there. */
    struct kvm_tally places[KVM_EXIT_PLACES];
    struct kvm_tally failed[KVM_FAILED_KINDS]; /* which instructions KVM failed on */
};

struct engine_vcpu {
    struct soft_vcpu soft; /* first: 64-byte aligned */
    struct engine *engine;
    int fd;
    struct kvm_run *run;
    uint32_t valid, dirty;     /* CPU_GROUP_* */
    bool is_incomplete;        /* an exit was served; KVM finishes the instruction on re-entry */
    bool is_inject_ready;      /* run->ready_for_interrupt_injection describes the state */
    struct err failure;        /* of an exchange outside of `run`; code 0: none */
    pid_t unblocked_tid;       /* the thread that takes the kick signal */
    int injected_vector;       /* EVENT valid: acknowledged, not delivered; -1: none */
    _Atomic pid_t running_tid; /* thread inside of KVM_RUN, 0: none */

    /* local APICs in the kernel (apic.c) */
    bool has_entered;        /* since all was pushed: KVM knows better */
    uint64_t apic_base, cr8; /* CONTROL valid: as KVM has them */
    bool is_shot_pending;    /* the one-shot timer counted when `run` returned */
    uint32_t shot_count;     /* and had this left */
    uint64_t shot_seen_ns;   /* at this time */

    /* stepping over failures (recover.c) */
    uint64_t resume_tsc;
    unsigned batch;
    bool has_warned;
    struct cpu_state before;

    uint64_t run_tsc;
    struct kvm_stats stats;
    uint8_t *xsave; /* KVM_XSAVE_BUFFER_SIZE */
};

/* engine.c: for tests, with other system calls than the host's */
int kvm_engine_open(const struct kvm_sys *sys, const struct engine_config *config,
                    struct engine **out, struct err *e);

/* cpuid.c */
int kvm_cpuid_limit(const struct kvm_sys *sys, enum engine_irqchip irqchip,
                    struct cpu_model_limit *limit, struct err *e);
int kvm_cpuid_set(struct engine_vcpu *v, struct err *e);

/* msr.c: which MSRs KVM keeps; every other access comes out to the soft vCPU */
int kvm_msr_set_filter(struct engine *engine, struct err *e);
int kvm_msr_fetch(struct engine_vcpu *v, struct err *e);
int kvm_msr_store(struct engine_vcpu *v, struct err *e);
void kvm_msr_exit_read(struct engine_vcpu *v);
void kvm_msr_exit_write(struct engine_vcpu *v);

/* state.c: exchange with KVM. In no guest; no I/O half done. */
int kvm_state_fetch(struct engine_vcpu *v, uint32_t groups, struct err *e);
/* soft.st was changed; what `groups` covers was valid, or is by now. */
void kvm_state_changed(struct engine_vcpu *v, uint32_t groups);
/* They have to be fetched and stored again, for what goes along with them. */
void kvm_state_changed_later(struct engine_vcpu *v, uint32_t groups);
/* Make KVM know all that is dirty. */
int kvm_state_store(struct engine_vcpu *v, struct err *e);

/* Let KVM know these two, and all else that goes along with them, now. */
int kvm_state_set_apic_base(struct engine_vcpu *v, uint64_t base, uint64_t cr8, struct err *e);

/* apic.c: see engine.h for what the table offers */
/* Before the first vCPU is made. */
int kvm_apic_choose(struct engine *engine, enum engine_irqchip irqchip, struct err *e);
bool kvm_has_apics(const struct engine *engine);
int kvm_apic_push(struct engine_vcpu *v, const struct cpu_apic *in, struct err *e);
int kvm_apic_pull(struct engine_vcpu *v, struct cpu_apic *out, struct err *e);
int kvm_apic_send(struct engine *engine, const struct cpu_msi *msi, struct err *e);
int kvm_apic_watch_eoi(struct engine *engine, const struct cpu_msi *messages, struct err *e);
/* soft.st.run_state from and to KVM */
int kvm_apic_fetch_mp_state(struct engine_vcpu *v, struct err *e);
int kvm_apic_store_mp_state(struct engine_vcpu *v, struct err *e);
/* KVM_EXIT_IOAPIC_EOI */
int kvm_apic_eoi(struct engine_vcpu *v, uint8_t vector, struct err *e);
int kvm_apic_tsc_changed(struct engine_vcpu *v, struct err *e);
/* On the vCPU's thread, with nothing to be stored: leave nothing that KVM puts off to an entry. */
int kvm_apic_settle(struct engine_vcpu *v, struct err *e);

/* bells.c: see engine.h */
int kvm_set_bells(struct engine *engine, const struct engine_bell *bells, unsigned count,
                  struct err *e);

/* run.c */
/* KVM_RUN once: 0 with an exit to serve, 1 when it was interrupted, or -errno. */
int kvm_run_turn(struct engine_vcpu *v, struct err *e);
int kvm_run(struct engine_vcpu *v, enum engine_stop *stop, struct err *e);
void kvm_kick(struct engine_vcpu *v);
void kvm_call_out(struct soft_vcpu *soft); /* for exclusive sections: leave the guest */
int kvm_kick_init(struct err *e);

/* exit.c: serve what KVM_RUN came back with */
int kvm_exit_serve(struct engine_vcpu *v, struct err *e);

/* recover.c: KVM gave up at the current instruction; step over it */
int kvm_recover(struct engine_vcpu *v, bool drops_ud, struct err *e);
/* When is_interpreted: run the guest in software until it halts or somebody wants something. */
int kvm_take_over(struct engine_vcpu *v, struct err *e);
/* Deliver in software what is pending or acknowledged in soft.st, so that nothing is. */
int kvm_deliver_pending(struct engine_vcpu *v, struct err *e);

/* stats.c */
void kvm_stats_count_place(struct engine_vcpu *v, bool is_port, uint64_t addr, uint64_t count);
void kvm_stats_count_failed(struct engine_vcpu *v, const uint8_t *bytes, unsigned length);
void kvm_stats_report(struct engine *engine, struct stats_sink *sink);

/* probe.c */
/* Does the guest see the host's TSC, whatever its offset? Failures count as no. */
bool kvm_probe_tsc(const struct kvm_sys *sys);
/*
 * Does it answer hypercalls as the engine has it, by this instruction? One that interprets kernel
 * mode may not know them. Failures count as no.
 */
bool kvm_probe_hypercalls(const struct kvm_sys *sys, bool is_vmmcall);
/* 0: KVM is there, and good. *is_interpreted (NULL allowed): it is there, but slow. */
int kvm_probe(const struct kvm_sys *sys, bool *is_interpreted, struct err *why);

#endif
