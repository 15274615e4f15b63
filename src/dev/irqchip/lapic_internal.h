/*
 * lapic_internal.h - shared by lapic*.c and apic_bus.c; no business of others
 *
 * Fields without a remark are under `lock`.
 */
#ifndef DOPPEL_DEV_IRQCHIP_LAPIC_INTERNAL_H
#define DOPPEL_DEV_IRQCHIP_LAPIC_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/bits.h"
#include "cpu/apic.h"
#include "dev/irqchip/apic_bus.h"
#include "dev/irqchip/lapic.h"
#include "os/vclock.h"

enum lapic_lvt {
    LVT_TIMER,
    LVT_THERMAL,
    LVT_PERF,
    LVT_LINT0,
    LVT_LINT1,
    LVT_ERROR,
    LVT_COUNT,
};

#define LVT_VECTOR 0xffu
#define LVT_MODE_SHIFT 8
#define LVT_MODE (7u << LVT_MODE_SHIFT)
#define LVT_STATUS (1u << 12)
#define LVT_POLARITY (1u << 13)
#define LVT_REMOTE_IRR (1u << 14)
#define LVT_LEVEL (1u << 15)
#define LVT_MASKED (1u << 16)
#define LVT_TIMER_MODE (3u << 17)
#define LVT_TIMER_ONE_SHOT (0u << 17)
#define LVT_TIMER_PERIODIC (1u << 17)
#define LVT_TIMER_TSC_DEADLINE (2u << 17)

#define APIC_BASE_BSP BIT(8)
#define APIC_BASE_EXTD BIT(10)
#define APIC_BASE_EN BIT(11)

#define SVR_ENABLED (1u << 8)
#define SVR_FOCUS (1u << 9)
#define SVR_EOI_SUPPRESS (1u << 12)

#define ESR_SEND_ILLEGAL_VECTOR (1u << 5)
#define ESR_RECEIVE_ILLEGAL_VECTOR (1u << 6)
#define ESR_ILLEGAL_REGISTER (1u << 7)

/* struct lapic.route: what the bus needs to know to find destinations without the lock */
#define ROUTE_LDR UINT32_MAX
#define ROUTE_DFR_SHIFT 32 /* the four bits of the model */
#define ROUTE_X2APIC BIT(36)
#define ROUTE_PRESENT BIT(37) /* IA32_APIC_BASE.EN */
#define ROUTE_SOFT_ENABLED BIT(38)

/* One bit for each vector. */
struct lapic_vectors {
    uint32_t word[8];
};

struct lapic_timer {
    struct vtimer vtimer;
    uint32_t initial_count;
    uint32_t divide;   /* the register */
    uint32_t count_ns; /* length of one count: LAPIC_TIMER_HZ and the divider */
    bool is_running;
    uint64_t expiry_ns;    /* guest time of the next expiry while running */
    uint64_t deadline_tsc; /* IA32_TSC_DEADLINE */
    unsigned missed_ticks; /* periodic ticks still owed to the guest */
};

struct lapic {
    struct lapic_config config; /* constant */
    pthread_mutex_t lock;

    _Atomic uint64_t base;  /* IA32_APIC_BASE; written by the vCPU under lock, read freely */
    _Atomic uint64_t route; /* ROUTE_*; written under lock, read freely */
    _Atomic uint8_t ppr;    /* written under lock, read freely for arbitration */

    struct lapic_vectors irr, isr, tmr;
    uint32_t tpr, ldr, dfr, svr;
    uint32_t esr;         /* as last latched by a write */
    uint32_t esr_pending; /* collected since */
    bool is_error_armed;  /* the next error raises LVT_ERROR */
    uint64_t icr;         /* high half: destination as the current mode lays it out */
    uint32_t lvt[LVT_COUNT];
    bool lint_level[2];
    bool is_extint_pending; /* an ExtINT message came over the bus */
    bool intr_level;        /* what set_intr was told last */
    bool is_lent;           /* an engine's local APIC stands in for this one */
    uint64_t pv_eoi_msr;    /* written by the vCPU under lock, read by it freely; so is: */
    bool is_pv_eoi_armed;   /* the interrupt in service may be ended by a bit in guest memory */
    struct lapic_timer timer;
};

static inline uint64_t lapic_base(const struct lapic *lapic)
{
    return atomic_load_explicit(&lapic->base, memory_order_relaxed);
}

static inline bool lapic_is_x2apic(const struct lapic *lapic)
{
    return (lapic_base(lapic) & APIC_BASE_EXTD) != 0;
}

static inline bool lapic_is_soft_enabled(const struct lapic *lapic)
{
    return (lapic->svr & SVR_ENABLED) != 0;
}

static inline bool vectors_test(const struct lapic_vectors *v, uint8_t vector)
{
    return v->word[vector / 32] >> (vector % 32) & 1;
}

static inline void vectors_set(struct lapic_vectors *v, uint8_t vector)
{
    v->word[vector / 32] |= 1u << (vector % 32);
}

static inline void vectors_clear(struct lapic_vectors *v, uint8_t vector)
{
    v->word[vector / 32] &= ~(1u << (vector % 32));
}

/* The highest vector, or -1. */
static inline int vectors_highest(const struct lapic_vectors *v)
{
    for (int i = 7; i >= 0; i--) {
        if (v->word[i] != 0)
            return i * 32 + 31 - __builtin_clz(v->word[i]);
    }
    return -1;
}

/*
 * The bus hands over a message that addresses this local APIC. Takes the lock. False when it is
 * not accepted.
 */
bool lapic_accept(struct lapic *lapic, const struct apic_message *msg);

/* With the lock held: put a vector into IRR; illegal ones are logged in ESR. False: refused. */
bool lapic_request(struct lapic *lapic, uint8_t vector, bool is_level);

/* With the lock held: recompute PPR and the INTR pin after any change of state. */
void lapic_update(struct lapic *lapic);

/* All with the lock held. */
void lapic_publish_route(struct lapic *lapic);
uint8_t lapic_compute_ppr(const struct lapic *lapic);
void lapic_log_error(struct lapic *lapic, uint32_t esr_bit);
void lapic_check_lint0_level(struct lapic *lapic);

/* Returns the vector whose EOI is to be broadcast, once the lock is dropped, or -1. */
int lapic_end_of_interrupt(struct lapic *lapic);

/* Send an interrupt command. The lock is held on entry and dropped on the way. */
void lapic_command(struct lapic *lapic, uint64_t icr);

/* All registers but those of the timer. */
void lapic_regs_lend(const struct lapic *lapic, struct cpu_apic *out);
void lapic_regs_take_back(struct lapic *lapic, const struct cpu_apic *in);

/*
 * Paravirtual EOI (lapic_pv_eoi.c). sync: has the guest ended the interrupt in service? From then
 * on it can do so by the register only. vCPU, without the lock. May the one that was just taken be
 * ended by the bit? With the lock. arm: set the bit, is_pv_eoi_armed being set; vCPU, without the
 * lock. drop: as after INIT; vCPU, with the lock.
 */
void lapic_pv_eoi_sync(struct lapic *lapic);
bool lapic_pv_eoi_is_safe(const struct lapic *lapic, uint8_t vector);
void lapic_pv_eoi_arm(struct lapic *lapic);
void lapic_pv_eoi_drop(struct lapic *lapic);

/* Registers (lapic_regs.c). Reading and the first two: with the lock held; writing: without. */
void lapic_write_lvt(struct lapic *lapic, enum lapic_lvt which, uint32_t value);
void lapic_write_svr(struct lapic *lapic, uint32_t value);
/* Does reading or writing it have to do with the interrupt in service? */
bool lapic_register_needs_isr(unsigned reg);
bool lapic_x2apic_read(struct lapic *lapic, unsigned reg, uint64_t *value);
bool lapic_x2apic_write(struct lapic *lapic, unsigned reg, uint64_t value);

/* The timer; all with the lock held. */
void lapic_timer_init(struct lapic *lapic);
void lapic_timer_reset(struct lapic *lapic);
uint32_t lapic_timer_read_count(struct lapic *lapic);
void lapic_timer_write_count(struct lapic *lapic, uint32_t value);
void lapic_timer_write_divide(struct lapic *lapic, uint32_t value);
void lapic_timer_write_lvt(struct lapic *lapic, uint32_t value);
uint64_t lapic_timer_read_deadline(struct lapic *lapic);
void lapic_timer_write_deadline(struct lapic *lapic, uint64_t tsc);
void lapic_timer_eoi(struct lapic *lapic, uint8_t vector);
void lapic_timer_lend(struct lapic *lapic, struct cpu_apic *out);
/* After LVT_TIMER is set. */
void lapic_timer_take_back(struct lapic *lapic, const struct cpu_apic *in);

/* The bus's side. */
int apic_bus_add(struct apic_bus *bus, struct lapic *lapic, struct err *e);
void apic_bus_remove(struct apic_bus *bus, struct lapic *lapic);

/* To everybody but `except` (NULL: to everybody); msg->dest is not looked at. */
void apic_bus_broadcast(struct apic_bus *bus, const struct apic_message *msg,
                        const struct lapic *except);

#endif
