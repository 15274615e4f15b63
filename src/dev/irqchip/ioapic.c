/*
 * ioapic.c - I/O APIC: redirection of 24 inputs to the APIC bus
 *
 * Remote IRR is set exactly while a level-triggered interrupt that a local APIC accepted waits
 * for its EOI; until then the input delivers nothing more. Edges on a masked input are lost, as
 * the data sheet has it.
 *
 * Spec: Intel 82093AA data sheet, 3.2 "IOAPIC Registers".
 */
#include "dev/irqchip/ioapic.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/bits.h"
#include "dev/irqchip/apic_bus.h"
#include "mem/space.h"

/* Offsets into the window. */
enum { IOREGSEL = 0x00, IOWIN = 0x10, IOEOI = 0x40 };

/* Registers behind IOREGSEL. */
enum { REG_ID = 0x00, REG_VERSION = 0x01, REG_ARBITRATION = 0x02, REG_ENTRY = 0x10 };

/* Version 20H has the EOI register. */
#define IOAPIC_VERSION (0x20u | (IOAPIC_PIN_COUNT - 1) << 16)

/* Redirection entry. */
#define ENTRY_MODE(entry) ((unsigned)((entry) >> 8 & 7))
#define ENTRY_LOGICAL BIT(11)
#define ENTRY_STATUS BIT(12)
#define ENTRY_REMOTE_IRR BIT(14)
#define ENTRY_LEVEL BIT(15)
#define ENTRY_MASKED BIT(16)
#define ENTRY_WRITABLE                                                                             \
    (UINT64_C(0xff00000000000000) | (UINT64_C(0x1ffff) & ~(ENTRY_STATUS | ENTRY_REMOTE_IRR)))

struct ioapic {
    struct apic_bus *bus; /* constant */
    unsigned reset_id;    /* constant */
    pthread_mutex_t lock; /* covers the rest */
    uint8_t select;
    uint8_t id;
    uint32_t levels; /* one bit for each input */
    uint64_t entry[IOAPIC_PIN_COUNT];
    ioapic_watch_fn watch; /* NULL: nobody */
    void *watch_ctx;
};

/* Remote IRR exists for fixed and lowest-priority delivery only; the others are edges. */
static bool entry_is_level(uint64_t entry)
{
    return (entry & ENTRY_LEVEL) &&
           (ENTRY_MODE(entry) == APIC_FIXED || ENTRY_MODE(entry) == APIC_LOWEST);
}

static struct apic_message entry_message(uint64_t entry)
{
    bool is_logical = (entry & ENTRY_LOGICAL) != 0;

    return (struct apic_message){
        .dest = apic_dest_from_8bit(entry >> 56, is_logical),
        .is_logical = is_logical,
        .mode = ENTRY_MODE(entry),
        .vector = entry & 0xff,
        .is_level = entry_is_level(entry),
        .is_asserted = true,
    };
}

static void ioapic_send(struct ioapic *ioapic, unsigned pin)
{
    struct apic_message msg = entry_message(ioapic->entry[pin]);

    if (apic_bus_deliver(ioapic->bus, &msg) && msg.is_level)
        ioapic->entry[pin] |= ENTRY_REMOTE_IRR;
}

/* Send what an asserted level-triggered input still owes. */
static void ioapic_check_level(struct ioapic *ioapic, unsigned pin)
{
    uint64_t entry = ioapic->entry[pin];

    if ((ioapic->levels >> pin & 1) && entry_is_level(entry) &&
        !(entry & (ENTRY_MASKED | ENTRY_REMOTE_IRR)))
        ioapic_send(ioapic, pin);
}

static void ioapic_set_input(void *sink, unsigned pin, bool level)
{
    struct ioapic *ioapic = sink;

    pthread_mutex_lock(&ioapic->lock);
    bool was_level = ioapic->levels >> pin & 1;
    ioapic->levels = (ioapic->levels & ~(1u << pin)) | (uint32_t)level << pin;
    if (level && !was_level) {
        if (entry_is_level(ioapic->entry[pin]))
            ioapic_check_level(ioapic, pin);
        else if (!(ioapic->entry[pin] & ENTRY_MASKED))
            ioapic_send(ioapic, pin);
    }
    pthread_mutex_unlock(&ioapic->lock);
}

struct irq_line ioapic_input(struct ioapic *ioapic, unsigned pin)
{
    if (pin >= IOAPIC_PIN_COUNT)
        return (struct irq_line){0};
    return (struct irq_line){.set = ioapic_set_input, .sink = ioapic, .input = pin};
}

/* With the lock held. */
static void ioapic_end_of_interrupt(struct ioapic *ioapic, uint8_t vector)
{
    for (unsigned pin = 0; pin < IOAPIC_PIN_COUNT; pin++) {
        uint64_t entry = ioapic->entry[pin];

        if (!(entry & ENTRY_REMOTE_IRR) || (entry & 0xff) != vector)
            continue;
        ioapic->entry[pin] &= ~ENTRY_REMOTE_IRR;
        ioapic_check_level(ioapic, pin);
    }
}

static void ioapic_eoi_broadcast(void *ctx, uint8_t vector)
{
    struct ioapic *ioapic = ctx;

    pthread_mutex_lock(&ioapic->lock);
    ioapic_end_of_interrupt(ioapic, vector);
    pthread_mutex_unlock(&ioapic->lock);
}

static uint32_t ioapic_read_register(const struct ioapic *ioapic)
{
    unsigned pin = (ioapic->select - REG_ENTRY) / 2u;

    switch (ioapic->select) {
    case REG_ID:
    case REG_ARBITRATION: /* loaded with the ID; there is no serial bus to arbitrate for */
        return (uint32_t)ioapic->id << 24;
    case REG_VERSION:
        return IOAPIC_VERSION;
    default:
        if (ioapic->select < REG_ENTRY || pin >= IOAPIC_PIN_COUNT)
            return 0;
        return ioapic->entry[pin] >> (ioapic->select & 1 ? 32 : 0);
    }
}

/* Masked ones, too: an interrupt from before may still want its EOI. */
static void ioapic_tell_watcher(struct ioapic *ioapic)
{
    struct cpu_msi messages[IOAPIC_PIN_COUNT] = {0};

    if (ioapic->watch == NULL)
        return;
    for (unsigned pin = 0; pin < IOAPIC_PIN_COUNT; pin++) {
        struct apic_message msg = entry_message(ioapic->entry[pin]);
        if (msg.is_level)
            messages[pin] = apic_message_to_msi(&msg);
    }
    ioapic->watch(ioapic->watch_ctx, messages);
}

void ioapic_watch(struct ioapic *ioapic, ioapic_watch_fn fn, void *ctx)
{
    pthread_mutex_lock(&ioapic->lock);
    ioapic->watch = fn;
    ioapic->watch_ctx = ctx;
    ioapic_tell_watcher(ioapic);
    pthread_mutex_unlock(&ioapic->lock);
}

static void ioapic_write_entry(struct ioapic *ioapic, unsigned pin, bool is_high, uint32_t value)
{
    uint64_t old = ioapic->entry[pin];
    uint64_t entry = is_high ? (old & UINT32_MAX) | (uint64_t)value << 32
                             : (old & ~(uint64_t)UINT32_MAX) | value;

    entry &= ENTRY_WRITABLE;
    /* Turning an entry to edge and back is how software clears a stuck remote IRR. */
    if (entry_is_level(entry))
        entry |= old & ENTRY_REMOTE_IRR;
    ioapic->entry[pin] = entry;
    /* before the first of them is sent; what is only masked or unmasked changes nothing */
    if ((entry_is_level(entry) || entry_is_level(old)) && ((entry ^ old) & ~ENTRY_MASKED))
        ioapic_tell_watcher(ioapic);
    ioapic_check_level(ioapic, pin);
}

static void ioapic_write_register(struct ioapic *ioapic, uint32_t value)
{
    unsigned pin = (ioapic->select - REG_ENTRY) / 2u;

    if (ioapic->select == REG_ID)
        ioapic->id = value >> 24 & 0xf;
    else if (ioapic->select >= REG_ENTRY && pin < IOAPIC_PIN_COUNT)
        ioapic_write_entry(ioapic, pin, ioapic->select & 1, value);
}

/* The registers are 32 bits wide at 16-byte strides; the select register is usable as a byte. */
static uint64_t ioapic_read(void *ctx, uint64_t offset, unsigned size)
{
    struct ioapic *ioapic = ctx;
    uint32_t value = 0;

    if (offset >> 2 == IOREGSEL >> 2)
        value = ioapic->select;
    else if (offset >> 2 == IOWIN >> 2)
        value = ioapic_read_register(ioapic);
    return (value >> (offset & 3) * 8) & mask_bytes(size);
}

static void ioapic_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct ioapic *ioapic = ctx;

    if (offset == IOREGSEL)
        ioapic->select = value;
    else if (offset == IOWIN && size == 4)
        ioapic_write_register(ioapic, value);
    else if (offset == IOEOI)
        ioapic_end_of_interrupt(ioapic, value);
}

static const struct space_ops ioapic_ops = {
    .read = ioapic_read,
    .write = ioapic_write,
    .min_size = 1,
    .max_size = 4,
};

int ioapic_map(struct ioapic *ioapic, struct space *space, uint64_t addr, struct err *e)
{
    return space_add_io(space, addr, IOAPIC_WINDOW_SIZE, &ioapic_ops, ioapic, &ioapic->lock, e);
}

void ioapic_reset(struct ioapic *ioapic)
{
    pthread_mutex_lock(&ioapic->lock);
    ioapic->select = 0;
    ioapic->id = ioapic->reset_id;
    for (unsigned pin = 0; pin < IOAPIC_PIN_COUNT; pin++)
        ioapic->entry[pin] = ENTRY_MASKED;
    pthread_mutex_unlock(&ioapic->lock);
}

int ioapic_create(struct apic_bus *bus, unsigned id, struct ioapic **out, struct err *e)
{
    struct ioapic *ioapic = calloc(1, sizeof(*ioapic));
    int ret;

    if (ioapic == NULL)
        return err_set(e, ENOMEM, "make IOAPIC %u", id);
    ioapic->bus = bus;
    ioapic->reset_id = id & 0xf;
    ret = apic_bus_add_eoi_listener(bus, ioapic_eoi_broadcast, ioapic, e);
    if (ret < 0) {
        free(ioapic);
        return ret;
    }
    pthread_mutex_init(&ioapic->lock, NULL);
    ioapic_reset(ioapic);
    *out = ioapic;
    return 0;
}

void ioapic_destroy(struct ioapic *ioapic)
{
    if (ioapic == NULL)
        return;
    pthread_mutex_destroy(&ioapic->lock);
    free(ioapic);
}
