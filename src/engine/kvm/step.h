/*
 * step.h - the soft vCPU of a KVM vCPU executes some instructions itself
 *
 * The caller has made all of soft.st current and registered the thread's fault hook. `model` is
 * the processor that executes: the host's, which has more than the guest's CPUID tells.
 */
#ifndef DOPPEL_ENGINE_KVM_STEP_H
#define DOPPEL_ENGINE_KVM_STEP_H

#include "engine/soft/vcpu.h"

/* Up to `count` instructions, fewer when something wants the vCPU's attention; at least one. */
void kvm_step(struct soft_vcpu *v, const struct cpu_model *model, unsigned count);

/* All that the guest executes, interrupts included, until HLT or a pin that leaves `run`. */
void kvm_step_guest(struct soft_vcpu *v, const struct cpu_model *model);

/* Deliver an acknowledged interrupt through the IDT. */
void kvm_step_interrupt(struct soft_vcpu *v, const struct cpu_model *model, unsigned vector);

/* The bytes of the instruction that is next; 0 when it cannot be fetched. */
unsigned kvm_step_peek(struct soft_vcpu *v, const struct cpu_model *model, uint8_t bytes[15]);

#endif
