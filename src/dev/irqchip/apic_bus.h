/*
 * apic_bus.h - how interrupt messages reach local APICs
 *
 * IOAPICs, MSI and the local APICs' own interrupt commands all send the same message. A bus
 * knows every local APIC of the machine; it resolves the destination (physical, logical flat,
 * logical cluster, x2APIC) and hands the message to each addressed local APIC.
 *
 * Threads: adding local APICs and EOI listeners belongs to set-up. Everything else may be
 * called from any thread, with a chip's lock held but never with a local APIC's.
 *
 * Spec: Intel SDM vol. 3, "Advanced Programmable Interrupt Controller (APIC)".
 */
#ifndef DOPPEL_DEV_IRQCHIP_APIC_BUS_H
#define DOPPEL_DEV_IRQCHIP_APIC_BUS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bits.h"
#include "base/err.h"
#include "cpu/apic.h"

struct apic_bus;

#define APIC_BUS_LAPICS_MAX 255

/* Delivery modes, encoded as in ICR, LVT and redirection entries. */
enum apic_mode {
    APIC_FIXED = 0,
    APIC_LOWEST = 1,
    APIC_SMI = 2,
    APIC_NMI = 4,
    APIC_INIT = 5,
    APIC_SIPI = 6,
    APIC_EXTINT = 7,
};

/* Physical destination that addresses every local APIC. */
#define APIC_DEST_ALL UINT32_MAX

/* An 8-bit destination field as senders other than x2APIC have it: FFH is physical broadcast. */
static inline uint32_t apic_dest_from_8bit(uint8_t dest, bool is_logical)
{
    return dest == 0xff && !is_logical ? APIC_DEST_ALL : dest;
}

struct apic_message {
    uint32_t dest;
    bool is_logical;
    uint8_t mode; /* enum apic_mode; others are dropped */
    uint8_t vector;
    bool is_level;    /* trigger mode */
    bool is_asserted; /* level: false is a de-assert, which only INIT has ever had a use for */
};

/* The interrupt command register. */
#define ICR_VECTOR 0xffu
#define ICR_MODE(icr) ((unsigned)((icr) >> 8 & 7))
#define ICR_LOGICAL BIT(11)
#define ICR_ASSERT BIT(14)
#define ICR_LEVEL BIT(15)
#define ICR_SHORTHAND(icr) ((unsigned)((icr) >> 18 & 3))

enum icr_shorthand { ICR_DEST_FIELD, ICR_SELF, ICR_ALL, ICR_ALL_BUT_SELF };

/*
 * What a command sends, but for where to. An IPI is edge-triggered, whatever the bit says; INIT
 * de-assert is nothing any more.
 */
static inline struct apic_message apic_message_from_icr(uint64_t icr)
{
    return (struct apic_message){
        .is_logical = (icr & ICR_LOGICAL) != 0,
        .mode = (uint8_t)ICR_MODE(icr),
        .vector = icr & ICR_VECTOR,
        .is_asserted = !(ICR_MODE(icr) == APIC_INIT && (icr & ICR_LEVEL) && !(icr & ICR_ASSERT)),
    };
}

int apic_bus_create(struct apic_bus **out, struct err *e);

/* The local APICs are destroyed before. NULL is allowed. */
void apic_bus_destroy(struct apic_bus *bus);

/*
 * Deliver to whoever is addressed. Returns true when at least one local APIC accepted the
 * message (a software-disabled one refuses fixed interrupts).
 */
bool apic_bus_deliver(struct apic_bus *bus, const struct apic_message *msg);

/*
 * A write of `data` to the MSI address range FEEXXXXXH (SDM vol. 3, "Message Signalled
 * Interrupts"). Addresses outside of the range are ignored.
 */
void apic_bus_send_msi(struct apic_bus *bus, uint64_t address, uint32_t data);

/*
 * While an engine's local APICs stand in for the machine's (lapic_lend), messages go to
 * fn(ctx, msg), which says whether one of them accepted: it is called like apic_bus_deliver.
 *
 * apic_bus_hold makes messages wait until apic_bus_release, which says where they go from then
 * on; fn NULL: to the machine's local APICs. Only on a bus that was prepared for it, before
 * anything is delivered: looking up who gets a message costs a little more there. One thread.
 */
typedef bool (*apic_deliver_fn)(void *ctx, const struct apic_message *msg);
void apic_bus_prepare_lending(struct apic_bus *bus);
void apic_bus_hold(struct apic_bus *bus);
void apic_bus_release(struct apic_bus *bus, apic_deliver_fn fn, void *ctx);

/* The message as a device with MSI would write it. */
struct cpu_msi apic_message_to_msi(const struct apic_message *msg);

/* An EOI of a level-triggered vector that did not come from a local APIC of the bus. */
void apic_bus_eoi(struct apic_bus *bus, uint8_t vector);

/*
 * fn(ctx, vector) is called for each EOI of a level-triggered vector that a local APIC
 * broadcasts, with no local APIC's lock held, on the vCPU's thread. At most 8 listeners.
 */
typedef void (*apic_eoi_fn)(void *ctx, uint8_t vector);
int apic_bus_add_eoi_listener(struct apic_bus *bus, apic_eoi_fn fn, void *ctx, struct err *e);

#endif
