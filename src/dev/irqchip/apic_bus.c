/*
 * apic_bus.c - destination matching and delivery of interrupt messages
 *
 * The tables are fixed after set-up, and what a destination depends on is published by each
 * local APIC as one atomic word: finding the target takes no lock, handing over takes the
 * target's only. A message that races with a change of its target's address may go either way,
 * as on hardware.
 *
 * Spec: Intel SDM vol. 3, "Determining IPI Destination", "x2APIC".
 */
#include "dev/irqchip/apic_bus.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "dev/irqchip/lapic_internal.h"

#define EOI_LISTENERS_MAX 8

struct apic_bus {
    /* constant after set-up */
    struct lapic *lapics[APIC_BUS_LAPICS_MAX];
    unsigned lapic_count;
    struct lapic *by_id[APIC_BUS_LAPICS_MAX];
    struct {
        apic_eoi_fn fn;
        void *ctx;
    } listeners[EOI_LISTENERS_MAX];
    unsigned listener_count;

    /* lending */
    bool is_prepared; /* constant after set-up: `lending` is used */
    pthread_rwlock_t lending;
    apic_deliver_fn deliver; /* under `lending`; NULL: the local APICs are here */
    void *deliver_ctx;

    /* where lowest-priority arbitration starts, so that equals take turns */
    _Atomic unsigned turn;
};

int apic_bus_create(struct apic_bus **out, struct err *e)
{
    struct apic_bus *bus = calloc(1, sizeof(*bus));

    if (bus == NULL)
        return err_set(e, ENOMEM, "make the APIC bus");
    pthread_rwlock_init(&bus->lending, NULL);
    *out = bus;
    return 0;
}

void apic_bus_destroy(struct apic_bus *bus)
{
    if (bus == NULL)
        return;
    pthread_rwlock_destroy(&bus->lending);
    free(bus);
}

int apic_bus_add(struct apic_bus *bus, struct lapic *lapic, struct err *e)
{
    uint32_t id = lapic->config.apic_id;

    if (id >= APIC_BUS_LAPICS_MAX)
        return err_set(e, 0, "APIC ID %u is above %u", id, APIC_BUS_LAPICS_MAX - 1);
    if (bus->by_id[id] != NULL)
        return err_set(e, EEXIST, "add local APIC %u to the bus", id);
    bus->by_id[id] = lapic;
    bus->lapics[bus->lapic_count++] = lapic;
    return 0;
}

void apic_bus_remove(struct apic_bus *bus, struct lapic *lapic)
{
    bus->by_id[lapic->config.apic_id] = NULL;
    for (unsigned i = 0; i < bus->lapic_count; i++) {
        if (bus->lapics[i] == lapic)
            bus->lapics[i] = bus->lapics[--bus->lapic_count];
    }
}

int apic_bus_add_eoi_listener(struct apic_bus *bus, apic_eoi_fn fn, void *ctx, struct err *e)
{
    if (bus->listener_count == EOI_LISTENERS_MAX)
        return err_set(e, ENOSPC, "add an EOI listener to the APIC bus");
    bus->listeners[bus->listener_count].fn = fn;
    bus->listeners[bus->listener_count].ctx = ctx;
    bus->listener_count++;
    return 0;
}

void apic_bus_eoi(struct apic_bus *bus, uint8_t vector)
{
    for (unsigned i = 0; i < bus->listener_count; i++)
        bus->listeners[i].fn(bus->listeners[i].ctx, vector);
}

/* Is a local APIC with this published route addressed by a logical destination? */
static bool route_matches_logical(uint64_t route, uint32_t dest)
{
    uint32_t ldr = route & ROUTE_LDR;

    if (dest == APIC_DEST_ALL)
        return true;
    if (route & ROUTE_X2APIC)
        return dest >> 16 == ldr >> 16 && (dest & ldr & 0xffff) != 0;
    if (dest > 0xff)
        return false;

    uint32_t logical_id = ldr >> 24;
    switch (route >> ROUTE_DFR_SHIFT & 0xf) {
    case 0xf: /* flat model */
        return (dest & logical_id) != 0;
    case 0x0: /* cluster model: FFH is broadcast */
        if (dest == 0xff)
            return true;
        return dest >> 4 == logical_id >> 4 && (dest & logical_id & 0xf) != 0;
    default:
        return false;
    }
}

static bool lapic_matches(const struct lapic *lapic, const struct apic_message *msg)
{
    uint64_t route = atomic_load_explicit(&lapic->route, memory_order_acquire);

    if (!(route & ROUTE_PRESENT))
        return false;
    if (msg->is_logical)
        return route_matches_logical(route, msg->dest);
    return msg->dest == APIC_DEST_ALL || msg->dest == lapic->config.apic_id;
}

/* Of those addressed that take fixed interrupts, the one that does the least urgent work. */
static bool deliver_lowest(struct apic_bus *bus, const struct apic_message *msg)
{
    unsigned start = atomic_fetch_add_explicit(&bus->turn, 1, memory_order_relaxed);
    struct lapic *best = NULL;
    unsigned best_priority = 0;

    for (unsigned i = 0; i < bus->lapic_count; i++) {
        struct lapic *lapic = bus->lapics[(start + i) % bus->lapic_count];
        uint64_t route = atomic_load_explicit(&lapic->route, memory_order_acquire);
        unsigned priority = atomic_load_explicit(&lapic->ppr, memory_order_relaxed);

        if (!(route & ROUTE_SOFT_ENABLED) || !lapic_matches(lapic, msg))
            continue;
        if (best == NULL || priority < best_priority) {
            best = lapic;
            best_priority = priority;
        }
    }
    return best != NULL && lapic_accept(best, msg);
}

static bool bus_deliver(struct apic_bus *bus, const struct apic_message *msg)
{
    bool is_accepted = false;

    if (msg->mode == APIC_LOWEST)
        return deliver_lowest(bus, msg);
    if (!msg->is_logical && msg->dest != APIC_DEST_ALL) {
        struct lapic *lapic = msg->dest < APIC_BUS_LAPICS_MAX ? bus->by_id[msg->dest] : NULL;
        return lapic != NULL && lapic_matches(lapic, msg) && lapic_accept(lapic, msg);
    }
    for (unsigned i = 0; i < bus->lapic_count; i++) {
        if (lapic_matches(bus->lapics[i], msg))
            is_accepted |= lapic_accept(bus->lapics[i], msg);
    }
    return is_accepted;
}

bool apic_bus_deliver(struct apic_bus *bus, const struct apic_message *msg)
{
    bool is_accepted;

    if (!bus->is_prepared)
        return bus_deliver(bus, msg);
    pthread_rwlock_rdlock(&bus->lending);
    is_accepted =
        bus->deliver != NULL ? bus->deliver(bus->deliver_ctx, msg) : bus_deliver(bus, msg);
    pthread_rwlock_unlock(&bus->lending);
    return is_accepted;
}

void apic_bus_prepare_lending(struct apic_bus *bus)
{
    bus->is_prepared = true;
}

void apic_bus_hold(struct apic_bus *bus)
{
    pthread_rwlock_wrlock(&bus->lending);
}

void apic_bus_release(struct apic_bus *bus, apic_deliver_fn fn, void *ctx)
{
    bus->deliver = fn;
    bus->deliver_ctx = ctx;
    pthread_rwlock_unlock(&bus->lending);
}

/* Of a destination only eight bits have a place; none of those who send messages has more. */
struct cpu_msi apic_message_to_msi(const struct apic_message *msg)
{
    struct cpu_msi msi = {
        .address = UINT64_C(0xfee00000) | (uint64_t)(msg->dest & 0xff) << 12 |
                   (msg->is_logical ? BIT(2) : 0),
        .data = (uint32_t)msg->mode << 8 | msg->vector,
    };

    if (msg->is_level)
        msi.data |= CPU_MSI_LEVEL | CPU_MSI_ASSERTED;
    return msi;
}

void apic_bus_broadcast(struct apic_bus *bus, const struct apic_message *msg,
                        const struct lapic *except)
{
    for (unsigned i = 0; i < bus->lapic_count; i++) {
        struct lapic *lapic = bus->lapics[i];

        if (lapic == except)
            continue;
        if (atomic_load_explicit(&lapic->route, memory_order_acquire) & ROUTE_PRESENT)
            lapic_accept(lapic, msg);
    }
}

void apic_bus_send_msi(struct apic_bus *bus, uint64_t address, uint32_t data)
{
    /*
     * Address: 31..20 FEEH, 19..12 destination, 3 redirection hint, 2 logical. The manual has
     * the mode bit ignored without the hint, but processors honour it always, and Linux's flat
     * mode sends logical destinations with no hint.
     */
    bool is_logical = (address & 4) != 0;
    struct apic_message msg = {
        .dest = apic_dest_from_8bit(address >> 12 & 0xff, is_logical),
        .is_logical = is_logical,
        .mode = data >> 8 & 7,
        .vector = data & 0xff,
        .is_level = data >> 15 & 1,
        .is_asserted = true,
    };

    if (address >> 20 != 0xfee)
        return;
    /* Level-triggered messages carry their de-assertion, too; it delivers nothing. */
    if (msg.is_level && !(data & 1u << 14))
        return;
    apic_bus_deliver(bus, &msg);
}
