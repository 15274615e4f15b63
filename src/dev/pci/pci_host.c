/*
 * pci_host.c - 440FX-like host bridge, bus 0: configuration, BARs, interrupt wires
 *
 * Two locks: `lock` covers CONFIG_ADDRESS and every function's configuration space; `wire_lock`
 * covers the interrupt pins, so that a device may move its pin while the guest configures it.
 * Order: lock, the device's own, wire_lock, interrupt controllers.
 *
 * Accesses to BARs take neither: where a BAR answers is an atomic of its own, so an access that
 * races with moving the BAR finds it at the old place or at the new one.
 *
 * The bridge only keeps the 440FX's PAM registers; the board does what they say. SMRAM is storage:
 * there is no system management mode.
 *
 * Spec: PCI Local Bus Specification 3.0, 3.2.2.3.2; Intel 82441FX data sheet.
 */
#include "dev/pci/pci_host.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "dev/pci/pci_msix.h"
#include "dev/pci/pci_state.h"
#include "mem/space.h"

#define ADDRESS_ENABLE 0x80000000u
#define ADDRESS_WRITABLE 0x80fffffcu
#define ADDRESS_BUS(a) ((a) >> 16 & 0xff)
#define ADDRESS_DEVFN(a) ((a) >> 8 & 0xff)
#define ADDRESS_REGISTER(a) ((a)&0xfc)

/* Reset control register (CF9h). */
#define RCR_OFFSET 1
#define RCR_CPU 0x04      /* a rising edge resets */
#define RCR_WRITABLE 0x0e /* full reset, reset CPU, hard reset */

#define ECAM_FUNCTION_SHIFT 12
#define ECAM_OFFSET 0xfff

#define FX_PAM0 0x59
#define FX_SMRAM 0x72

struct pci_host_registers {
    uint32_t address;
    uint8_t reset_control;
};

/* Part of an address space that leads to the bus. */
struct pci_window {
    struct pci_host *host;
    uint64_t base, size;
    bool is_io;
};

#define WINDOWS_MAX 8

struct pci_host {
    pthread_mutex_t lock;
    pthread_mutex_t wire_lock;
    struct pci_host_config config;
    struct pci_host_registers s;                 /* under lock */
    struct pci_device *devices[PCI_DEVFN_COUNT]; /* fixed after set-up; contents under lock */
    uint8_t present[PCI_DEVFN_COUNT];            /* indices of those that are there, in order */
    unsigned present_count;
    unsigned wire_count[4];                 /* under wire_lock: pins that pull each wire */
    struct pci_device bridge;               /* 00:00.0 itself */
    struct pci_window windows[WINDOWS_MAX]; /* fixed after set-up */
    unsigned window_count;
    struct pci_host_bell bells[PCI_HOST_BELLS_MAX]; /* under lock: what was last told of */
    unsigned bell_count;
};

/* ---- interrupt wires ---- */

/* What the pin does to its wire: asserted by the device, and not disabled by the command. */
static bool intx_is_driven(const struct pci_device *dev)
{
    return dev->is_intx_asserted && dev->is_intx_enabled;
}

/* With wire_lock held. The pin moves once at most. */
static void intx_change(struct pci_host *host, struct pci_device *dev, bool is_asserted,
                        bool is_enabled)
{
    bool was_driven = intx_is_driven(dev);
    uint8_t pin = dev->config[PCI_INTERRUPT_PIN];

    dev->is_intx_asserted = is_asserted;
    dev->is_intx_enabled = is_enabled;
    if (was_driven == intx_is_driven(dev) || pin == 0)
        return;
    unsigned wire = ((dev->devfn >> 3) + pin - 2u) & 3;
    if (!was_driven && host->wire_count[wire]++ == 0)
        irq_set(&host->config.pirq[wire], true);
    else if (was_driven && --host->wire_count[wire] == 0)
        irq_set(&host->config.pirq[wire], false);
}

void pci_host_set_intx(struct pci_host *host, struct pci_device *dev, bool level)
{
    pthread_mutex_lock(&host->wire_lock);
    intx_change(host, dev, level, dev->is_intx_enabled);
    pthread_mutex_unlock(&host->wire_lock);
}

/* Not disabled (PCI 3.0, 6.2.2), in use instead of MSI-X (6.8.2.3), and with power to drive it? */
static bool intx_is_allowed(struct pci_device *dev)
{
    return (load_le16(dev->config + PCI_COMMAND) & PCI_COMMAND_INTX_DISABLE) == 0 &&
           pci_device_is_powered(dev) && (dev->msix == NULL || !pci_msix_is_enabled(dev->msix));
}

/* The function's registers may have changed. */
static void intx_follow_command(struct pci_host *host, struct pci_device *dev)
{
    bool is_enabled = intx_is_allowed(dev);

    pthread_mutex_lock(&host->wire_lock);
    intx_change(host, dev, dev->is_intx_asserted, is_enabled);
    pthread_mutex_unlock(&host->wire_lock);
}

/* Interrupt status shows the pin whether or not it is disabled (PCI 3.0, 6.2.3). */
static void intx_show_status(struct pci_host *host, struct pci_device *dev)
{
    pthread_mutex_lock(&host->wire_lock);
    bool is_asserted = dev->is_intx_asserted;
    pthread_mutex_unlock(&host->wire_lock);
    dev->config[PCI_STATUS] &= (uint8_t)~PCI_STATUS_INTX;
    if (is_asserted)
        dev->config[PCI_STATUS] |= PCI_STATUS_INTX;
}

/* ---- configuration mechanism 1 ---- */

/* The function that CONFIG_ADDRESS selects, or NULL. Only bus 0 exists. */
static struct pci_device *selected(const struct pci_host *host)
{
    uint32_t address = host->s.address;
    if (!(address & ADDRESS_ENABLE) || ADDRESS_BUS(address) != 0)
        return NULL;
    return host->devices[ADDRESS_DEVFN(address)];
}

static void reset_control_write(struct pci_host *host, uint8_t value)
{
    bool is_rising = (value & RCR_CPU) != 0 && (host->s.reset_control & RCR_CPU) == 0;
    host->s.reset_control = value & RCR_WRITABLE;
    if (is_rising)
        host->config.reset(host->config.ctx);
}

static uint64_t address_read(void *ctx, uint64_t offset, unsigned size)
{
    struct pci_host *host = ctx;
    if (size == 4 && offset == 0)
        return host->s.address;
    if (size == 1 && offset == RCR_OFFSET)
        return host->s.reset_control;
    return mask_bytes(size); /* only a double word is CONFIG_ADDRESS */
}

static void address_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct pci_host *host = ctx;
    if (size == 4 && offset == 0)
        host->s.address = (uint32_t)value & ADDRESS_WRITABLE;
    else if (size == 1 && offset == RCR_OFFSET)
        reset_control_write(host, (uint8_t)value);
}

static uint64_t data_read(void *ctx, uint64_t offset, unsigned size)
{
    struct pci_host *host = ctx;
    struct pci_device *dev = selected(host);
    if (dev == NULL)
        return mask_bytes(size);
    intx_show_status(host, dev);
    return pci_device_config_read(dev, ADDRESS_REGISTER(host->s.address) + (unsigned)offset, size);
}

static void data_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct pci_host *host = ctx;
    struct pci_device *dev = selected(host);
    if (dev == NULL)
        return;
    pci_device_config_write(dev, ADDRESS_REGISTER(host->s.address) + (unsigned)offset,
                            (uint32_t)value, size);
    intx_follow_command(host, dev);
}

/* ---- ECAM ---- */

/* The function that an offset into the window is of; NULL also behind conventional registers. */
static struct pci_device *ecam_selected(const struct pci_host *host, uint64_t offset)
{
    if ((offset & ECAM_OFFSET) >= PCI_CONFIG_SIZE)
        return NULL;
    return host->devices[offset >> ECAM_FUNCTION_SHIFT];
}

static uint64_t ecam_read(void *ctx, uint64_t offset, unsigned size)
{
    struct pci_host *host = ctx;
    struct pci_device *dev = ecam_selected(host, offset);
    if (dev == NULL)
        return mask_bytes(size);
    intx_show_status(host, dev);
    return pci_device_config_read(dev, offset & ECAM_OFFSET, size);
}

static void ecam_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct pci_host *host = ctx;
    struct pci_device *dev = ecam_selected(host, offset);
    if (dev == NULL)
        return;
    pci_device_config_write(dev, offset & ECAM_OFFSET, (uint32_t)value, size);
    intx_follow_command(host, dev);
}

static const struct space_ops ecam_ops = {
    .read = ecam_read, .write = ecam_write, .min_size = 1, .max_size = 4};

int pci_host_map_ecam(struct pci_host *host, struct space *memory, uint64_t base, struct err *e)
{
    return space_add_io(memory, base, PCI_HOST_ECAM_SIZE, &ecam_ops, host, &host->lock, e);
}

/* ---- windows ---- */

/* The BAR that answers at `addr`, and how many bytes from there on are its own. */
static struct pci_bar *window_find(const struct pci_window *window, uint64_t addr, uint64_t *offset,
                                   uint64_t *left)
{
    const struct pci_host *host = window->host;
    for (unsigned i = 0; i < host->present_count; i++) {
        struct pci_device *dev = host->devices[host->present[i]];
        for (unsigned n = 0; n < PCI_BAR_COUNT; n++) {
            struct pci_bar *bar = &dev->bars[n];
            uint64_t base = atomic_load_explicit(&bar->addr, memory_order_acquire);
            /* UINT64_MAX is no base: every BAR has a size of 4 or more */
            if (base == UINT64_MAX || addr - base >= bar->size ||
                (bar->kind == PCI_BAR_IO) != window->is_io)
                continue;
            *offset = addr - base;
            *left = bar->size - *offset;
            return bar;
        }
    }
    *left = 1;
    return NULL;
}

static uint64_t window_read(void *ctx, uint64_t offset, unsigned size)
{
    const struct pci_window *window = ctx;
    uint64_t value = 0, at = 0, left;

    for (unsigned done = 0, n; done < size; done += n) {
        struct pci_bar *bar = window_find(window, window->base + offset + done, &at, &left);
        n = (unsigned)MIN(left, (uint64_t)(size - done));
        uint64_t part = bar != NULL ? space_window_load(&bar->window, at, n) : mask_bytes(n);
        value |= (part & mask_bytes(n)) << (8 * done);
    }
    return value;
}

static void window_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    const struct pci_window *window = ctx;
    uint64_t at = 0, left;

    for (unsigned done = 0, n; done < size; done += n) {
        struct pci_bar *bar = window_find(window, window->base + offset + done, &at, &left);
        n = (unsigned)MIN(left, (uint64_t)(size - done));
        if (bar != NULL)
            space_window_store(&bar->window, at, value >> (8 * done) & mask_bytes(n), n);
    }
}

static const struct space_ops window_ops = {
    .read = window_read, .write = window_write, .min_size = 1, .max_size = 8};

int pci_host_map_window(struct pci_host *host, struct space *space, bool is_io, uint64_t base,
                        uint64_t size, struct err *e)
{
    if (host->window_count == WINDOWS_MAX)
        return err_set(e, ENOSPC, "give the PCI bus another window at %#llx",
                       (unsigned long long)base);
    struct pci_window *window = &host->windows[host->window_count];
    *window = (struct pci_window){.host = host, .base = base, .size = size, .is_io = is_io};
    int rc = space_add_io(space, base, size, &window_ops, window, NULL, e);
    if (rc == 0)
        host->window_count++;
    return rc;
}

/* ---- bells ---- */

/* Is it `bar` that answers at `addr`, and not one that lies above it, or nobody? */
static bool bell_is_reached(const struct pci_host *host, const struct pci_bar *bar, uint64_t addr)
{
    uint64_t at, left;

    for (unsigned i = 0; i < host->window_count; i++) {
        const struct pci_window *window = &host->windows[i];
        if (window->is_io || addr < window->base ||
            !range_fits(addr - window->base, PCI_BELL_SIZE, window->size))
            continue;
        return window_find(window, addr, &at, &left) == bar && left >= PCI_BELL_SIZE &&
               window_find(window, addr + PCI_BELL_SIZE - 1, &at, &left) == bar;
    }
    return false;
}

static unsigned bells_find(const struct pci_host *host, struct pci_host_bell *out)
{
    unsigned count = 0;

    for (unsigned i = 0; i < host->present_count; i++) {
        const struct pci_device *dev = host->devices[host->present[i]];
        for (unsigned n = 0; n < dev->bell_count && count < PCI_HOST_BELLS_MAX; n++) {
            const struct pci_bell *bell = &dev->bells[n];
            const struct pci_bar *bar = &dev->bars[bell->bar];
            uint64_t base = atomic_load_explicit(&bar->addr, memory_order_relaxed);
            if (base != UINT64_MAX && base <= UINT64_MAX - bar->size &&
                bell_is_reached(host, bar, base + bell->offset))
                out[count++] = (struct pci_host_bell){base + bell->offset, bell->fd};
        }
    }
    return count;
}

static bool bells_are_known(const struct pci_host *host, const struct pci_host_bell *bells,
                            unsigned count)
{
    if (count != host->bell_count)
        return false;
    for (unsigned i = 0; i < count; i++)
        if (bells[i].addr != host->bells[i].addr || bells[i].fd != host->bells[i].fd)
            return false;
    return true;
}

void pci_host_follow_bells(struct pci_host *host)
{
    struct pci_host_bell bells[PCI_HOST_BELLS_MAX];
    unsigned count;

    if (host->config.bells_moved == NULL)
        return;
    count = bells_find(host, bells);
    if (bells_are_known(host, bells, count))
        return;
    memcpy(host->bells, bells, count * sizeof(bells[0]));
    host->bell_count = count;
    host->config.bells_moved(host->config.ctx, bells, count);
}

void pci_host_send_msi(struct pci_host *host, uint64_t address, uint32_t data)
{
    if (host->config.send_msi != NULL)
        host->config.send_msi(host->config.ctx, address, data);
}

static const struct space_ops address_ops = {
    .read = address_read, .write = address_write, .min_size = 1, .max_size = 4};
static const struct space_ops data_ops = {
    .read = data_read, .write = data_write, .min_size = 1, .max_size = 4};

int pci_host_map(struct pci_host *host, struct space *ports, uint16_t base, struct err *e)
{
    int rc = space_add_io(ports, base, 4, &address_ops, host, &host->lock, e);
    if (rc == 0)
        rc = space_add_io(ports, base + 4u, 4, &data_ops, host, &host->lock, e);
    return rc;
}

/* ---- set-up ---- */

static void pam_follow(struct pci_host *host)
{
    if (host->config.pam_changed != NULL)
        host->config.pam_changed(host->config.ctx, host->bridge.config + FX_PAM0);
}

static void bridge_written(struct pci_device *bridge, unsigned offset, unsigned size)
{
    if (ranges_overlap(offset, size, FX_PAM0, PCI_HOST_PAM_COUNT))
        pam_follow(bridge->host);
}

static void bridge_restored(struct pci_device *bridge)
{
    pam_follow(bridge->host);
}

static const struct pci_device_ops bridge_ops = {.config_written = bridge_written,
                                                 .config_restored = bridge_restored};

static void bridge_reset(struct pci_device *bridge)
{
    /* by the subsystem firmware knows a virtual machine with fw_cfg */
    static const struct pci_ids ids = {.vendor = 0x8086,
                                       .device = 0x1237,
                                       .class_device = 0x0600,
                                       .revision = 0x02,
                                       .subsystem_vendor = 0x1af4,
                                       .subsystem = 0x1100};

    pci_device_init(bridge, "host bridge", &bridge_ops, &ids);
    /* Memory access and bus mastering cannot be switched off in the 82441FX. */
    store_le16(bridge->config + PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    store_le16(bridge->write_mask + PCI_COMMAND, PCI_COMMAND_PARITY | PCI_COMMAND_SERR);
    store_le16(bridge->config + PCI_STATUS, 0x0280); /* fast back-to-back, medium DEVSEL# timing */
    bridge->write_mask[PCI_INTERRUPT_LINE] = 0;
    memset(bridge->write_mask + FX_PAM0, 0xff, PCI_HOST_PAM_COUNT);
    bridge->config[FX_SMRAM] = 0x02;
    bridge->write_mask[FX_SMRAM] = 0x78;
}

void pci_host_reset(struct pci_host *host)
{
    pthread_mutex_lock(&host->lock);
    host->s = (struct pci_host_registers){0};
    struct pci_device *bridge = &host->bridge;
    uint8_t header = bridge->config[PCI_HEADER_TYPE];
    bridge_reset(bridge);
    bridge->host = host;
    bridge->config[PCI_HEADER_TYPE] = header;
    pam_follow(host);
    pthread_mutex_unlock(&host->lock);
}

void pci_host_reset_device(struct pci_host *host, struct pci_device *dev)
{
    pci_host_set_intx(host, dev, false);
    pthread_mutex_lock(&host->lock);
    memcpy(dev->config, dev->initial, sizeof(dev->config));
    pci_device_decode_bars(dev);
    if (dev->msix != NULL)
        pci_msix_reset(dev->msix);
    intx_follow_command(host, dev);
    pthread_mutex_unlock(&host->lock);
}

/* ---- state ---- */

void pci_host_get_device_state(struct pci_host *host, struct pci_device *dev,
                               struct pci_device_state *out)
{
    memset(out, 0, sizeof(*out));
    pthread_mutex_lock(&host->lock);
    memcpy(out->config, dev->config, sizeof(out->config));
    out->config[PCI_STATUS] &= (uint8_t)~PCI_STATUS_INTX;
    pthread_mutex_lock(&host->wire_lock);
    out->is_intx_asserted = dev->is_intx_asserted;
    pthread_mutex_unlock(&host->wire_lock);
    if (dev->msix != NULL)
        pci_msix_get_state(dev->msix, &out->msix);
    pthread_mutex_unlock(&host->lock);
}

/* With the lock held. */
static int check_device(struct pci_device *dev, const struct pci_device_state *state, struct err *e)
{
    int rc = pci_device_check_config(dev, state->config, e);

    if (rc != 0)
        return rc;
    if (state->is_intx_asserted > (dev->config[PCI_INTERRUPT_PIN] != 0))
        return err_set(e, 0, "is_intx_asserted is %u for a function with %s pin",
                       state->is_intx_asserted, dev->config[PCI_INTERRUPT_PIN] != 0 ? "a" : "no");
    if (dev->msix != NULL)
        return pci_msix_check_state(dev->msix, state->config, &state->msix, e);
    if (state->msix.count != 0)
        return err_set(e, 0, "msix.count is %u, and the function has no MSI-X", state->msix.count);
    return 0;
}

int pci_host_check_device_state(struct pci_host *host, struct pci_device *dev,
                                const struct pci_device_state *state, struct err *e)
{
    pthread_mutex_lock(&host->lock);
    int rc = check_device(dev, state, e);
    pthread_mutex_unlock(&host->lock);
    return rc != 0 ? err_prefix(e, "put back the state of %s", dev->name) : 0;
}

/* With the lock held. */
static void set_device(struct pci_host *host, struct pci_device *dev,
                       const struct pci_device_state *state)
{
    memcpy(dev->config, state->config, sizeof(dev->config));
    dev->config[PCI_STATUS] &= (uint8_t)~PCI_STATUS_INTX;
    if (dev->msix != NULL) {
        pci_msix_set_state(dev->msix, &state->msix);
        pci_msix_follow_config(dev->msix);
    }
    pci_device_decode_bars(dev);
    pthread_mutex_lock(&host->wire_lock);
    intx_change(host, dev, state->is_intx_asserted, intx_is_allowed(dev));
    pthread_mutex_unlock(&host->wire_lock);
    if (dev->ops != NULL && dev->ops->config_restored != NULL)
        dev->ops->config_restored(dev);
}

int pci_host_set_device_state(struct pci_host *host, struct pci_device *dev,
                              const struct pci_device_state *state, struct err *e)
{
    pthread_mutex_lock(&host->lock);
    int rc = check_device(dev, state, e);
    if (rc == 0)
        set_device(host, dev, state);
    pthread_mutex_unlock(&host->lock);
    return rc != 0 ? err_prefix(e, "put back the state of %s", dev->name) : 0;
}

void pci_host_get_state(struct pci_host *host, struct pci_host_state *out)
{
    pci_host_get_device_state(host, &host->bridge, &out->bridge);
    pthread_mutex_lock(&host->lock);
    out->address = host->s.address;
    out->reset_control = host->s.reset_control;
    pthread_mutex_unlock(&host->lock);
}

int pci_host_set_state(struct pci_host *host, const struct pci_host_state *state, struct err *e)
{
    int rc = 0;

    if (state->address & ~ADDRESS_WRITABLE)
        rc = err_set(e, 0, "address is 0x%08x, and bits of it cannot be written", state->address);
    else if (state->reset_control & ~RCR_WRITABLE)
        rc = err_set(e, 0, "reset_control is 0x%02x, and bits of it cannot be written",
                     state->reset_control);
    if (rc != 0)
        return err_prefix(e, "put back the state of the PCI bus");
    rc = pci_host_set_device_state(host, &host->bridge, &state->bridge, e);
    if (rc != 0)
        return rc;
    pthread_mutex_lock(&host->lock);
    host->s.address = state->address;
    host->s.reset_control = state->reset_control;
    pthread_mutex_unlock(&host->lock);
    return 0;
}

/* ---- making it ---- */

int pci_host_create(const struct pci_host_config *config, struct pci_host **out, struct err *e)
{
    struct pci_host *host = calloc(1, sizeof(*host));
    if (host == NULL)
        return err_set(e, ENOMEM, "make the PCI host bridge");
    pthread_mutex_init(&host->lock, NULL);
    pthread_mutex_init(&host->wire_lock, NULL);
    host->config = *config;
    bridge_reset(&host->bridge);
    host->bridge.host = host;
    host->devices[0] = &host->bridge;
    *out = host;
    return 0;
}

void pci_host_destroy(struct pci_host *host)
{
    if (host == NULL)
        return;
    pthread_mutex_destroy(&host->wire_lock);
    pthread_mutex_destroy(&host->lock);
    free(host);
}

static void list_present(struct pci_host *host)
{
    host->present_count = 0;
    for (unsigned i = 0; i < PCI_DEVFN_COUNT; i++)
        if (host->devices[i] != NULL)
            host->present[host->present_count++] = (uint8_t)i;
}

void pci_host_remove(struct pci_host *host, struct pci_device *dev)
{
    pci_host_set_intx(host, dev, false);
    pthread_mutex_lock(&host->lock);
    host->devices[dev->devfn] = NULL;
    list_present(host);
    pci_host_follow_bells(host);
    dev->host = NULL;
    pthread_mutex_unlock(&host->lock);
}

int pci_host_add(struct pci_host *host, struct pci_device *dev, unsigned slot, unsigned function,
                 struct err *e)
{
    if (slot > 31 || function > 7)
        return err_set(e, EINVAL, "put %s on the PCI bus: no place %02x.%u", dev->name, slot,
                       function);
    unsigned devfn = PCI_DEVFN(slot, function);
    if (host->devices[devfn] != NULL)
        return err_set(e, EEXIST, "put %s on the PCI bus: %02x.%u is taken by %s", dev->name, slot,
                       function, host->devices[devfn]->name);
    pthread_mutex_lock(&host->lock);
    dev->host = host;
    dev->devfn = (uint8_t)devfn;
    memcpy(dev->initial, dev->config, sizeof(dev->initial));
    host->devices[devfn] = dev;
    list_present(host);
    /* Software looks for functions 1..7 only where function 0 says so (PCI 3.0, 6.2.1). */
    for (unsigned i = 1; i < 8; i++) {
        struct pci_device *first = host->devices[PCI_DEVFN(slot, 0)];
        if (first != NULL && host->devices[PCI_DEVFN(slot, i)] != NULL)
            first->config[PCI_HEADER_TYPE] |= PCI_HEADER_MULTIFUNCTION;
        if (first != NULL)
            first->initial[PCI_HEADER_TYPE] = first->config[PCI_HEADER_TYPE];
    }
    pthread_mutex_unlock(&host->lock);
    return 0;
}
