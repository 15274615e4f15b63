/*
 * fuzz_pci.c - libFuzzer entry of the PCI bus: configuration both ways, BARs, interrupts
 *
 * The input is accesses, eight bytes each, to a bus with the bridges, a function with all kinds of
 * BARs and MSI-X, and a virtio device whose queue the same bytes can set up. What must hold, beside
 * what sanitizers see: both ways of configuration read the same; what is read-only stays; nothing
 * but a bus master in D0 writes memory; wires are asserted by functions that may, and by no other;
 * after a reset each function is as it was; and whatever came before, the bus's state can be taken,
 * and put back after a reset, while what was made of it by changing bytes is put back or refused.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "dev/pci/pci_host.h"
#include "dev/pci/pci_msix.h"
#include "dev/pci/piix3.h"
#include "dev/pci/piix4_pm.h"
#include "dev/virtio/virtio.h"
#include "dev/virtio/virtio_pci.h"
#include "dev/virtio/virtio_rng.h"
#include "dev/virtio/virtio_state.h"
#include "mem/space.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define STEP 8u
#define STEPS_MAX 512u
#define RAM_SIZE 0x4000u
#define ECAM 0xe0000000u
#define WINDOW 0xf0000000u
#define WINDOW_SIZE 0x1000000u
#define WINDOW_64 UINT64_C(0x100000000)
#define PORTS 0x1000u
#define VECTORS 3u
#define REGISTERS 64u

enum { BRIDGE, ISA, PM, OWN, VIRTIO, NOBODY, FUNCTIONS };
static const uint8_t devfns[FUNCTIONS] = {PCI_DEVFN(0, 0), PCI_DEVFN(1, 0), PCI_DEVFN(1, 3),
                                          PCI_DEVFN(2, 0), PCI_DEVFN(3, 0), PCI_DEVFN(31, 7)};

struct bus {
    struct space *ports, *memory;
    struct pci_host *host;
    struct piix3 *isa;
    struct piix4_pm *pm;
    struct pci_device dev; /* OWN */
    struct pci_msix *msix;
    struct virtio_rng *rng;
    struct virtio_pci *virtio;
    pthread_mutex_t lock;
    uint8_t registers[REGISTERS];
    uint8_t *ram, *before; /* the latter as it was before an access */
    uint8_t at_first[FUNCTIONS][PCI_CONFIG_SIZE];
    int pins[4], inputs[16]; /* asserted: 0 or 1 */
    bool is_asserted;        /* OWN drives its pin */
};

static void require(bool claim)
{
    if (!claim)
        abort();
}

/* ---- what is around the bus ---- */

static uint64_t registers_read(void *ctx, uint64_t offset, unsigned size)
{
    struct bus *b = ctx;
    uint64_t value = 0;

    if (range_fits(offset, size, REGISTERS))
        memcpy(&value, b->registers + offset, size);
    return value;
}

static void registers_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct bus *b = ctx;

    if (range_fits(offset, size, REGISTERS))
        memcpy(b->registers + offset, &value, size);
}

static const struct space_ops registers_ops = {
    .read = registers_read, .write = registers_write, .max_size = 4};

static void input_set(void *sink, unsigned input, bool level)
{
    struct bus *b = sink;

    require(b->inputs[input] == !level); /* only changes are told */
    b->inputs[input] = level;
}

static void pin_set(void *sink, unsigned input, bool level)
{
    struct bus *b = sink;
    struct irq_line onwards = piix3_pirq_input(b->isa, input);

    require(b->pins[input] == !level);
    b->pins[input] = level;
    irq_set(&onwards, level);
}

static void ignore_reset(void *ctx)
{
}

static void ignore_pam(void *ctx, const uint8_t pam[PCI_HOST_PAM_COUNT])
{
}

static void check_message(void *ctx, uint64_t address, uint32_t data)
{
    require((address & 3) == 0);
}

/* ---- configuration ---- */

static uint32_t get(struct bus *b, unsigned function, unsigned reg, unsigned size)
{
    space_store(b->ports, 0xcf8, 0x80000000u | devfns[function] << 8 | (reg & 0xfc), 4);
    return (uint32_t)space_load(b->ports, 0xcfc + (reg & 3), size);
}

static void put(struct bus *b, unsigned function, unsigned reg, uint32_t value, unsigned size)
{
    space_store(b->ports, 0xcf8, 0x80000000u | devfns[function] << 8 | (reg & 0xfc), 4);
    space_store(b->ports, 0xcfc + (reg & 3), value, size);
}

static uint64_t ecam(unsigned function, unsigned reg)
{
    return ECAM + ((uint64_t)devfns[function] << 12) + reg;
}

/* Reading the data register of virtio's window reads what it shows, which may change by that. */
static bool has_effects(struct bus *b, unsigned function, unsigned reg)
{
    if (function != VIRTIO)
        return false;
    for (unsigned at = b->at_first[VIRTIO][PCI_CAPABILITIES]; at != 0;
         at = b->at_first[VIRTIO][at + 1])
        if (b->at_first[VIRTIO][at] == PCI_CAP_VENDOR && b->at_first[VIRTIO][at + 3] == 5)
            return ranges_overlap(reg, 4, at + 16, 4);
    return false;
}

static void check_same(struct bus *b, unsigned function, unsigned reg, unsigned size)
{
    if (!has_effects(b, function, reg))
        require(get(b, function, reg, size) == space_load(b->memory, ecam(function, reg), size));
}

/* Identity, header type, and the list of capabilities. */
static void check_fixed(struct bus *b, unsigned function)
{
    static const uint8_t fixed[] = {0x00, 0x01, 0x02, 0x03, 0x08, 0x09, 0x0a, 0x0b,
                                    0x0e, 0x2c, 0x2d, 0x2e, 0x2f, 0x34, 0x3d};
    const uint8_t *first = b->at_first[function];

    for (unsigned i = 0; i < ARRAY_SIZE(fixed); i++)
        require(get(b, function, fixed[i], 1) == first[fixed[i]]);
    for (unsigned at = first[PCI_CAPABILITIES]; at != 0; at = first[at + 1])
        require(get(b, function, at, 2) == (uint32_t)(first[at] | first[at + 1] << 8));
    if (function != VIRTIO && function != OWN)
        return;
    unsigned state = get(b, function, first[PCI_CAPABILITIES] + 4u, 1) & 3; /* PM came last */
    require(state == 0 || state == 3);
}

static bool is_powered(struct bus *b, unsigned function)
{
    return (get(b, function, b->at_first[function][PCI_CAPABILITIES] + 4u, 1) & 3) == 0;
}

static bool may_master(struct bus *b)
{
    return (get(b, VIRTIO, PCI_COMMAND, 2) & PCI_COMMAND_MASTER) != 0 && is_powered(b, VIRTIO);
}

/* Is OWN's pin on its wire as it should be? Slot 2, pin A: the second wire, which is its alone. */
static void check_wire(struct bus *b)
{
    bool may = !(get(b, OWN, PCI_COMMAND, 2) & PCI_COMMAND_INTX_DISABLE) && is_powered(b, OWN) &&
               !pci_msix_is_enabled(b->msix);

    require(b->pins[1] == (b->is_asserted && may));
    require(((get(b, OWN, PCI_STATUS, 2) & PCI_STATUS_INTX) != 0) == b->is_asserted);
}

/* ---- steps ---- */

/* An address in BAR 0 to 4 of OWN or VIRTIO, wherever that is; false: it decodes nothing. */
static bool bar_place(struct bus *b, const uint8_t *step, bool *is_io, uint64_t *addr)
{
    unsigned function = step[1] & 1 ? VIRTIO : OWN, bar = step[1] >> 1 & 7;

    if (bar > 4)
        return false;
    uint32_t low = get(b, function, PCI_BAR0 + 4 * bar, 4);
    *is_io = low & 1;
    *addr = low & (*is_io ? ~3u : ~15u);
    if ((low & 7) == 4)
        *addr |= (uint64_t)get(b, function, PCI_BAR0 + 4 * bar + 4, 4) << 32;
    *addr += load_le16(step + 2);
    return true;
}

static void access_bar(struct bus *b, const uint8_t *step, unsigned size)
{
    uint64_t addr;
    bool is_io;

    if (!bar_place(b, step, &is_io, &addr))
        return;
    struct space *space = is_io ? b->ports : b->memory;
    if (is_io ? addr >= 0x10000 : addr >= UINT64_C(1) << 40)
        return;
    if (step[0] & 0x20)
        space_store(space, addr, load_le32(step + 4), size);
    else
        space_load(space, addr, size);
    if (!is_io && addr < RAM_SIZE) /* a BAR that is nowhere: it was the driver that wrote */
        memcpy(b->before, b->ram, RAM_SIZE);
}

struct bus_state {
    struct pci_host_state host;
    struct pci_device_state isa, pm, own;
    struct virtio_pci_state virtio;
};

static void reset_functions(struct bus *b)
{
    virtio_pci_reset(b->virtio);
    pci_host_reset_device(b->host, &b->dev);
    pci_host_reset(b->host);
    piix3_reset(b->isa);
    piix4_pm_reset(b->pm);
}

static int put_state(struct bus *b, const struct bus_state *s)
{
    struct err e;
    int rc = pci_host_set_state(b->host, &s->host, &e);

    if (rc == 0)
        rc = piix3_set_state(b->isa, &s->isa, &e);
    if (rc == 0)
        rc = piix4_pm_set_state(b->pm, &s->pm, &e);
    if (rc == 0)
        rc = pci_host_set_device_state(b->host, &b->dev, &s->own, &e);
    if (rc == 0)
        rc = virtio_pci_set_state(b->virtio, &s->virtio, &e);
    b->is_asserted = s->own.is_intx_asserted;
    return rc;
}

static void renew(struct bus *b, const uint8_t *step)
{
    static struct bus_state taken, forged;
    struct virtio_device *dev = virtio_rng_device(b->rng);

    require(virtio_quiesce(dev, 0, NULL) == 0);
    pci_host_get_state(b->host, &taken.host);
    piix3_get_state(b->isa, &taken.isa);
    piix4_pm_get_state(b->pm, &taken.pm);
    pci_host_get_device_state(b->host, &b->dev, &taken.own);
    require(virtio_pci_get_state(b->virtio, &taken.virtio, NULL) == 0);
    reset_functions(b);
    forged = taken;
    ((uint8_t *)&forged)[load_le16(step + 2) % sizeof(forged)] ^= step[4];
    ((uint8_t *)&forged)[load_le16(step + 5) % sizeof(forged)] ^= step[7];
    if (put_state(b, &forged) != 0) {
        reset_functions(b);
        require(put_state(b, &taken) == 0);
    }
    virtio_resume(dev);
}

static void obey(struct bus *b, const uint8_t *step)
{
    unsigned size = 1u << (step[0] >> 3 & 3), function = step[1] % FUNCTIONS;
    unsigned reg = step[2] & ~(MIN(size, 4u) - 1);
    uint32_t value = load_le32(step + 4);

    switch (step[0] & 7) {
    case 0:
        put(b, function, reg, value, MIN(size, 4u));
        break;
    case 1:
        space_store(b->memory, ecam(function, reg), value, MIN(size, 4u));
        break;
    case 2:
        check_same(b, function, reg, MIN(size, 4u));
        break;
    case 3:
    case 4:
        access_bar(b, step, size);
        break;
    case 5: /* the ports themselves */
        if (step[0] & 0x20)
            space_store(b->ports, 0xcf8 + (step[2] & 7), value, MIN(size, 4u));
        else
            space_load(b->ports, 0xcf8 + (step[2] & 7), MIN(size, 4u));
        break;
    case 6:
        b->is_asserted = value & 1;
        pci_host_set_intx(b->host, &b->dev, b->is_asserted);
        break;
    default:
        if (step[0] & 0x40)
            renew(b, step);
        else
            pci_msix_notify(b->msix, value % (VECTORS + 1));
        break;
    }
}

static void check_step(struct bus *b, const uint8_t *step)
{
    bool was_master = may_master(b);

    memcpy(b->before, b->ram, RAM_SIZE);
    obey(b, step);
    if (!was_master && !may_master(b))
        require(memcmp(b->before, b->ram, RAM_SIZE) == 0);
    check_wire(b);
}

/* ---- the bus ---- */

static void make_functions(struct bus *b)
{
    static const struct pci_ids ids = {.vendor = 0x1af4, .device = 0x1000, .class_device = 0x0200};
    struct space_window window = {&registers_ops, b, &b->lock};

    require(piix3_attach(b->isa, b->host, 1, NULL) == 0);
    require(piix4_pm_create(0x600, 9, &b->pm, NULL) == 0);
    require(piix4_pm_attach(b->pm, b->host, 1, NULL) == 0);
    pci_device_init(&b->dev, "function", NULL, &ids);
    b->dev.config[PCI_INTERRUPT_PIN] = 1;
    pci_device_set_bar(&b->dev, 0, PCI_BAR_IO, REGISTERS, &window);
    require(pci_msix_create(&b->dev, 1, VECTORS, &b->msix, NULL) == 0);
    pci_device_set_bar(&b->dev, 2, PCI_BAR_MEM64, UINT64_C(1) << 33, &window);
    pci_device_set_bar(&b->dev, 4, PCI_BAR_MEM32, 4096, &window);
    pci_device_add_power_management(&b->dev);
    require(pci_host_add(b->host, &b->dev, 2, 0, NULL) == 0);
    require(virtio_rng_create(b->memory, &b->rng, NULL) == 0);
    require(virtio_pci_create(virtio_rng_device(b->rng), 0x00ff, &b->virtio, NULL) == 0);
    require(virtio_pci_attach(b->virtio, b->host, 3, NULL) == 0);
}

static void make_bus(struct bus *b)
{
    struct pci_host_config config = {
        .reset = ignore_reset, .pam_changed = ignore_pam, .send_msi = check_message, .ctx = b};
    struct irq_line isa[16];

    memset(b, 0, sizeof(*b));
    pthread_mutex_init(&b->lock, NULL);
    b->ram = calloc(1, RAM_SIZE);
    b->before = malloc(RAM_SIZE);
    require(b->ram != NULL && b->before != NULL);
    require(space_create("memory", BIT(40), &b->memory, NULL) == 0);
    require(space_create("ports", BIT(16), &b->ports, NULL) == 0);
    require(space_add_ram(b->memory, 0, b->ram, RAM_SIZE, false, NULL) == 0);
    for (unsigned i = 0; i < ARRAY_SIZE(isa); i++)
        isa[i] = (struct irq_line){.set = input_set, .sink = b, .input = i};
    require(piix3_create(isa, &b->isa, NULL) == 0);
    for (unsigned i = 0; i < ARRAY_SIZE(config.pirq); i++)
        config.pirq[i] = (struct irq_line){.set = pin_set, .sink = b, .input = i};
    require(pci_host_create(&config, &b->host, NULL) == 0);
    require(pci_host_map(b->host, b->ports, 0xcf8, NULL) == 0);
    require(pci_host_map_ecam(b->host, b->memory, ECAM, NULL) == 0);
    require(pci_host_map_window(b->host, b->ports, true, PORTS, 0x10000 - PORTS, NULL) == 0);
    require(pci_host_map_window(b->host, b->memory, false, WINDOW, WINDOW_SIZE, NULL) == 0);
    require(pci_host_map_window(b->host, b->memory, false, WINDOW_64, BIT(40) - WINDOW_64, NULL) ==
            0);
    make_functions(b);
}

static void look(struct bus *b, uint8_t config[FUNCTIONS][PCI_CONFIG_SIZE])
{
    for (unsigned i = 0; i < FUNCTIONS; i++)
        for (unsigned reg = 0; reg < PCI_CONFIG_SIZE; reg++)
            config[i][reg] = (uint8_t)get(b, i, reg, 1);
}

static void check_reset(struct bus *b)
{
    static uint8_t after[FUNCTIONS][PCI_CONFIG_SIZE];

    virtio_pci_reset(b->virtio);
    pci_host_reset_device(b->host, &b->dev);
    pci_host_reset(b->host);
    piix3_reset(b->isa);
    piix4_pm_reset(b->pm);
    look(b, after);
    require(memcmp(after, b->at_first, sizeof(after)) == 0);
    for (unsigned i = 0; i < ARRAY_SIZE(b->pins); i++)
        require(b->pins[i] == 0);
    for (unsigned i = 0; i < ARRAY_SIZE(b->inputs); i++)
        require(b->inputs[i] == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct bus b;

    make_bus(&b);
    look(&b, b.at_first);
    for (size_t at = 0; size - at >= STEP && at < STEPS_MAX * STEP; at += STEP)
        check_step(&b, data + at);
    for (unsigned i = 0; i < NOBODY; i++)
        check_fixed(&b, i);
    check_reset(&b);
    space_destroy(b.ports);
    space_destroy(b.memory);
    virtio_pci_destroy(b.virtio);
    virtio_rng_destroy(b.rng);
    pci_host_destroy(b.host);
    pci_msix_destroy(b.msix);
    piix4_pm_destroy(b.pm);
    piix3_destroy(b.isa);
    pthread_mutex_destroy(&b.lock);
    free(b.ram);
    free(b.before);
    return 0;
}
