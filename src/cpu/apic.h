/*
 * apic.h - a local APIC's registers, and interrupt messages, as data
 *
 * For exchange between the machine's local APICs and those that an engine may have of its own.
 *
 * Spec: Intel SDM vol. 3, "Advanced Programmable Interrupt Controller (APIC)".
 */
#ifndef DOPPEL_CPU_APIC_H
#define DOPPEL_CPU_APIC_H

#include <stdbool.h>
#include <stdint.h>

/* Places in cpu_apic.reg: offsets in the memory-mapped window, divided by their stride of 16. */
enum cpu_apic_reg {
    CPU_APIC_ID = 0x02,
    CPU_APIC_VERSION = 0x03,
    CPU_APIC_TPR = 0x08,
    CPU_APIC_LDR = 0x0d,
    CPU_APIC_DFR = 0x0e,
    CPU_APIC_SVR = 0x0f,
    CPU_APIC_ISR = 0x10, /* eight registers each */
    CPU_APIC_TMR = 0x18,
    CPU_APIC_IRR = 0x20,
    CPU_APIC_ESR = 0x28,
    CPU_APIC_ICR_LOW = 0x30,
    CPU_APIC_ICR_HIGH = 0x31,
    CPU_APIC_LVT_TIMER = 0x32, /* thermal, performance, LINT0, LINT1, error follow */
    CPU_APIC_LVT_ERROR = 0x37,
    CPU_APIC_INITIAL_COUNT = 0x38,
    CPU_APIC_CURRENT_COUNT = 0x39,
    CPU_APIC_DIVIDE = 0x3e,
    CPU_APIC_REGS = 0x40,
};

#define CPU_APIC_TIMER_MODE (3u << 17) /* of LVT_TIMER */
#define CPU_APIC_TIMER_TSC_DEADLINE (2u << 17)

struct cpu_apic {
    uint64_t base;         /* IA32_APIC_BASE */
    uint64_t deadline_tsc; /* IA32_TSC_DEADLINE; 0: not armed. One that has passed is due. */
    /*
     * The ID register is as in xAPIC mode whatever the mode; in x2APIC mode LDR means nothing.
     * While the timer counts, CURRENT_COUNT is what is left; 0 is due, and not delivered yet.
     */
    bool is_counting;
    uint64_t pv_eoi;       /* MSR_KVM_EOI_EN; the bit in memory is clear */
    uint64_t poll_control; /* MSR_KVM_POLL_CONTROL */
    uint32_t reg[CPU_APIC_REGS];
};

/* A write that a local APIC takes for an interrupt: as of a device with MSI. */
struct cpu_msi {
    uint64_t address;
    uint32_t data;
};

/*
 * Delivery mode "remote read", which processors no longer have: an engine's local APIC with KVM's
 * paravirtual features ends the present HLT, or the next.
 */
#define CPU_MSI_UNHALT (3u << 8)

#define CPU_MSI_LEVEL (1u << 15)
#define CPU_MSI_ASSERTED (1u << 14)

#endif
