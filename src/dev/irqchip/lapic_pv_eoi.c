/*
 * lapic_pv_eoi.c - KVM's paravirtual EOI: the guest ends an interrupt by a bit in its memory
 *
 * While the local APIC is *armed*, the bit is set, and the one interrupt in service may be ended
 * by clearing it. A guest clears it with an instruction that is not locked; so nobody touches it
 * but the vCPU's thread, and that outside of guest code. Whoever else has an interrupt for an
 * armed local APIC raises the INTR pin as if the one in service had been ended (lapic_update):
 * that brings the vCPU's thread to lapic_acknowledge, which finds out.
 *
 * Invariant: what depends on ISR is preceded by lapic_pv_eoi_sync, on the vCPU's thread.
 *
 * Spec: Linux Documentation/virt/kvm/x86/msr.rst, MSR_KVM_EOI_EN.
 */
#include "dev/irqchip/lapic_internal.h"
#include "mem/space.h"

#define PV_EOI_ENABLED BIT(0)
#define PV_EOI_RESERVED BIT(1)
#define PV_EOI_ADDRESS (~UINT64_C(3))

/* The byte is guest memory: looked up each time, for what is there may change. NULL: no RAM. */
static uint8_t *pv_eoi_byte(const struct lapic *lapic, uint64_t msr)
{
    if (lapic->config.memory == NULL || !(msr & PV_EOI_ENABLED))
        return NULL;
    return space_ram_ptr(lapic->config.memory, msr & PV_EOI_ADDRESS, 1, true);
}

/* A byte of its own: its neighbours may be other processors'. */
static void pv_eoi_store(struct lapic *lapic, uint8_t *byte, uint8_t value)
{
    __atomic_store_n(byte, value, __ATOMIC_RELAXED);
    space_note_written(lapic->config.memory, lapic->pv_eoi_msr & PV_EOI_ADDRESS, 1);
}

void lapic_pv_eoi_sync(struct lapic *lapic)
{
    uint8_t *byte;
    bool is_ended = false;

    if (LIKELY(!lapic->is_pv_eoi_armed))
        return;
    byte = pv_eoi_byte(lapic, lapic->pv_eoi_msr);
    if (byte != NULL) {
        is_ended = !(__atomic_load_n(byte, __ATOMIC_RELAXED) & 1);
        if (!is_ended)
            pv_eoi_store(lapic, byte, 0);
    }
    pthread_mutex_lock(&lapic->lock);
    lapic->is_pv_eoi_armed = false;
    /* only edge-triggered interrupts are ended this way: nobody else hears of it */
    if (is_ended)
        lapic_end_of_interrupt(lapic);
    lapic_update(lapic);
    pthread_mutex_unlock(&lapic->lock);
}

bool lapic_pv_eoi_is_safe(const struct lapic *lapic, uint8_t vector)
{
    const struct lapic_timer *timer = &lapic->timer;
    uint32_t lint0 = lapic->lvt[LVT_LINT0];
    uint32_t others = 0;

    if (!(lapic->pv_eoi_msr & PV_EOI_ENABLED) || vectors_test(&lapic->tmr, vector))
        return false;
    for (unsigned i = 0; i < ARRAY_SIZE(lapic->isr.word); i++)
        others |= lapic->irr.word[i] | (i == vector / 32 ? lapic->isr.word[i] & ~(1u << vector % 32)
                                                         : lapic->isr.word[i]);
    if (others != 0)
        return false;
    /* its EOI would bring the next one along */
    return !(timer->missed_ticks != 0 && vector == (lapic->lvt[LVT_TIMER] & LVT_VECTOR)) &&
           !((lint0 & LVT_REMOTE_IRR) && vector == (lint0 & LVT_VECTOR));
}

/* Others may have raised the pin already: this thread looks at it when the bit is there. */
void lapic_pv_eoi_arm(struct lapic *lapic)
{
    uint8_t *byte = pv_eoi_byte(lapic, lapic->pv_eoi_msr);

    if (byte != NULL)
        pv_eoi_store(lapic, byte, 1);
}

void lapic_pv_eoi_drop(struct lapic *lapic)
{
    lapic->is_pv_eoi_armed = false;
    lapic->pv_eoi_msr = 0;
}

bool lapic_pv_eoi_write(struct lapic *lapic, uint64_t value)
{
    if (lapic->is_lent || (value & PV_EOI_RESERVED))
        return false;
    if ((value & PV_EOI_ENABLED) && pv_eoi_byte(lapic, value) == NULL)
        return false;
    lapic_pv_eoi_sync(lapic);
    pthread_mutex_lock(&lapic->lock);
    lapic->pv_eoi_msr = value;
    pthread_mutex_unlock(&lapic->lock);
    return true;
}

uint64_t lapic_pv_eoi_read(const struct lapic *lapic)
{
    return lapic->pv_eoi_msr;
}
