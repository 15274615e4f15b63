/*
 * fake.h - a KVM of our own making, for tests: registers are kept, KVM_RUN follows a script
 *
 * Also a wrapper that makes the n-th call to any KVM fail.
 */
#ifndef DOPPEL_ENGINE_KVM_FAKE_H
#define DOPPEL_ENGINE_KVM_FAKE_H

#include "engine/kvm/kvm.h"

#define FAKE_TURNS_MAX 16u

struct fake;

/* One KVM_RUN: fill f->run and the registers; returns 0, or -1 with errno set. */
typedef int (*fake_turn_fn)(struct fake *f);

struct fake {
    struct kvm_run *run;
    struct kvm_regs regs;
    struct kvm_sregs2 sregs;
    struct kvm_vcpu_events events;
    struct kvm_debugregs debugregs;
    struct kvm_xcrs xcrs;
    uint8_t xsave[4096];
    uint64_t msrs[512]; /* by index, hashed without collisions for what the engine uses */
    uint64_t tsc_offset;
    bool lacks_failure_exit;
    bool answers_hypercalls;
    bool is_intel;   /* else of no vendor */
    int lacking;     /* an extension that is not there; 0: all are */
    bool is_engines; /* an MSR filter was set: this is no probe, and turns are taken */

    /* local APICs */
    struct kvm_lapic_state lapic;
    struct kvm_mp_state mp;
    struct kvm_msi msi;
    struct kvm_irq_routing_entry route; /* the last one set */
    unsigned routes, in_place;          /* in_place: entries with the kick signal pending */
    uint32_t split_inputs;              /* of KVM_CAP_SPLIT_IRQCHIP; 0: not enabled */
    fake_turn_fn put_off;               /* taken, once, by such an entry */

    fake_turn_fn turns[FAKE_TURNS_MAX];
    unsigned turn;
    unsigned completed; /* entries with immediate_exit */
    unsigned interrupts, nmis;
    uint32_t interrupt;
    struct kvm_userspace_memory_region region;
    struct kvm_ioeventfd bells[8];
    unsigned bell_count, bells_room; /* bells_room: KVM_IOEVENTFD fails beyond it; 0: all fit */
    uint64_t dirty;                  /* the first 64 pages of what KVM_GET_DIRTY_LOG shows */
};

struct kvm_sys fake_sys(struct fake *f);

/* Passes calls on until the n-th (from 0), which fails with `code`. */
struct failing {
    const struct kvm_sys *under;
    unsigned fail_at;
    int code;
    unsigned count;       /* calls so far */
    unsigned long failed; /* request that was made to fail; 1: open, 2: map; 0: none */
};

#define FAILING_OPEN 1ul
#define FAILING_MAP 2ul

struct kvm_sys failing_sys(struct failing *f);

#endif
