/*
 * lapic.h - local APIC with xAPIC and x2APIC interfaces and its timer
 *
 * One for each vCPU. The timer input runs at LAPIC_TIMER_HZ and is counted in guest time.
 *
 * Threads: functions that say "vCPU" are called on the vCPU's own thread (or with that vCPU
 * stopped); the others on any thread. Each local APIC has a lock of its own; the callbacks of
 * struct lapic_ops are called with that lock held and must not call back into a local APIC or
 * take a chip's lock. They set a pin and kick. Lock order: device, chip, local APIC.
 *
 * Spec: Intel SDM vol. 3, "Advanced Programmable Interrupt Controller (APIC)".
 */
#ifndef DOPPEL_DEV_IRQCHIP_LAPIC_H
#define DOPPEL_DEV_IRQCHIP_LAPIC_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "dev/irq.h"

struct apic_bus;
struct cpu_apic;
struct lapic;
struct space;
struct vclock;

/* Bus clock before the divider; CPUID leaf 40000010H tells guests (EBX = 1000000 kHz). */
#define LAPIC_TIMER_HZ UINT64_C(1000000000)

#define LAPIC_DEFAULT_BASE UINT64_C(0xfee00000)
#define LAPIC_WINDOW_SIZE UINT64_C(0x1000)

struct lapic_ops {
    /* The INTR pin: true while the local APIC (or the 8259 behind it) has something to deliver. */
    void (*set_intr)(void *cpu, bool level);
    void (*raise_nmi)(void *cpu);
    /*
     * INIT: the vCPU's thread takes it at its next boundary, calls lapic_init_reset, resets
     * the processor with cpu_state_init and, unless lapic_is_bsp, waits for SIPI.
     */
    void (*raise_init)(void *cpu);
    /*
     * Start-up: counts only while the vCPU waits for it (an INIT raised earlier is taken
     * first); otherwise it is dropped.
     */
    void (*raise_sipi)(void *cpu, uint8_t vector);
    /* The guest's TSC as RDTSC would show it now. Only called in functions marked "vCPU". */
    uint64_t (*guest_tsc)(void *cpu);
};

struct lapic_config {
    struct apic_bus *bus;
    struct vclock *clock;
    const struct lapic_ops *ops; /* outlives the local APIC */
    void *cpu;                   /* passed to ops */
    uint32_t apic_id;            /* 0..254, unique on the bus */
    bool is_bsp;
    unsigned phys_bits; /* MAXPHYADDR: limit of the APIC base */
    uint64_t tsc_hz;
    bool without_x2apic;       /* CPUID does not offer x2APIC mode: setting EXTD is #GP */
    bool without_tsc_deadline; /* CPUID does not offer the TSC-deadline mode: its MSR is #GP */

    struct space *memory; /* guest-physical, for paravirtual EOI; NULL: without */

    /* Ask the 8259 pair for its vector (i8259_acknowledge). NULL: no 8259. vCPU, no lock held. */
    int (*pic_acknowledge)(void *pic);
    void *pic;
};

/* In the state after power-up. Registers itself with the bus. */
int lapic_create(const struct lapic_config *config, struct lapic **out, struct err *e);

/* No vCPU and no device may use it any more; the main loop does not run. NULL is allowed. */
void lapic_destroy(struct lapic *lapic);

/* RESET#: power-up state, xAPIC mode at the default base. vCPU. */
void lapic_reset(struct lapic *lapic);

/* INIT: as reset, but APIC base (with mode and BSP flag) and APIC ID stay. vCPU. */
void lapic_init_reset(struct lapic *lapic);

/*
 * What PC firmware leaves behind on the boot processor, for machines that start without any:
 * software enabled, spurious vector FH, LINT0 as ExtINT (virtual wire to the 8259), LINT1 as
 * NMI. After lapic_reset. vCPU.
 */
void lapic_set_virtual_wire(struct lapic *lapic);

uint32_t lapic_apic_id(const struct lapic *lapic);

/* The BSP flag of IA32_APIC_BASE. */
bool lapic_is_bsp(const struct lapic *lapic);

/* False when IA32_APIC_BASE.EN is clear: CPUID.1:EDX.APIC then reads 0. */
bool lapic_is_enabled(const struct lapic *lapic);

/*
 * MMIO. The board asks lapic_claims for each access of this vCPU outside of RAM: the window is
 * private to a processor, and may be moved. In x2APIC mode nothing is claimed. vCPU.
 */
bool lapic_claims(const struct lapic *lapic, uint64_t addr);
uint64_t lapic_mmio_read(struct lapic *lapic, uint64_t addr, unsigned size);
void lapic_mmio_write(struct lapic *lapic, uint64_t addr, uint64_t value, unsigned size);

/* IA32_APIC_BASE, IA32_TSC_DEADLINE and the x2APIC range 800H..8FFH. */
#define LAPIC_MSR_APIC_BASE 0x1bu
#define LAPIC_MSR_TSC_DEADLINE 0x6e0u
#define LAPIC_MSR_X2APIC_FIRST 0x800u
#define LAPIC_MSR_X2APIC_LAST 0x8ffu
static inline bool lapic_has_msr(uint32_t index)
{
    return index == LAPIC_MSR_APIC_BASE || index == LAPIC_MSR_TSC_DEADLINE ||
           (index >= LAPIC_MSR_X2APIC_FIRST && index <= LAPIC_MSR_X2APIC_LAST);
}

/* Only for an index that lapic_has_msr. False: #GP(0). vCPU. */
bool lapic_msr_read(struct lapic *lapic, uint32_t index, uint64_t *value);
bool lapic_msr_write(struct lapic *lapic, uint32_t index, uint64_t value);

/*
 * KVM's paravirtual EOI: the value of MSR_KVM_EOI_EN (bit 0: enabled; bits 63..2: address of the
 * byte). False: #GP(0), for a reserved bit or an address that is not RAM. vCPU.
 */
bool lapic_pv_eoi_write(struct lapic *lapic, uint64_t value);
uint64_t lapic_pv_eoi_read(const struct lapic *lapic);

/* Bits 7..4 of the TPR. vCPU. */
uint64_t lapic_cr8_read(struct lapic *lapic);
void lapic_cr8_write(struct lapic *lapic, uint64_t value);

/*
 * The processor takes an external interrupt: its vector, or -1 when there is none after all.
 * May ask the 8259. vCPU, no lock held.
 */
int lapic_acknowledge(struct lapic *lapic);

/* The guest's TSC jumped (WRMSR to IA32_TSC or IA32_TSC_ADJUST): an armed deadline moves. vCPU. */
void lapic_tsc_changed(struct lapic *lapic);

/*
 * An engine may have local APICs of its own, which stand in for the machine's while the guest
 * runs. lapic_lend hands the state over; from then on this one only leads the 8259's INTR to the
 * INTR pin and acknowledges it, and everything else here does nothing. lapic_take_back makes it
 * whole again: what fell due meanwhile is delivered now. With all vCPUs stopped and apic_bus_hold.
 */
void lapic_lend(struct lapic *lapic, struct cpu_apic *out);
void lapic_take_back(struct lapic *lapic, const struct cpu_apic *in);

/*
 * Local interrupt pins, as lines for irq_set: LINT0 is where the 8259's INTR goes (on every
 * processor), LINT1 is NMI. Any thread.
 */
struct irq_line lapic_lint(struct lapic *lapic, unsigned pin);

#endif
