/*
 * fuzz_pci.c - libFuzzer entry of the PCI bus: the input is a guest's accesses to configuration
 * space, by both ways, and to BARs wherever it has put them
 *
 * On the bus are a plain function with a BAR of each kind, interrupt vectors and power management;
 * an entropy device as a virtio function; and the bridges of the board. What must hold: bits that
 * are read-only stay as they are; an access that reaches a BAR lies within it; the interrupt wire
 * is what the function drives and the command register lets through; and a reset makes all as it
 * was.
 */
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "dev/pci/pci_host.h"
#include "dev/pci/pci_msix.h"
#include "dev/pci/piix3.h"
#include "dev/pci/piix4_pm.h"
#include "dev/virtio/virtio_pci.h"
#include "dev/virtio/virtio_rng.h"
#include "mem/space.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define RAM_SIZE 0x10000u
#define ECAM 0xe0000000u
#define WINDOW 0xf0000000u
#define WINDOW_SIZE 0x1000000u
#define WINDOW_64 UINT64_C(0x4000000000)
#define PORTS 0x1000u
#define PLAIN_SLOT 3u
#define VIRTIO_SLOT 4u
#define VECTORS 70u
#define STEP_BYTES 8u
#define STEPS_MAX 500u

/* The plain function's BARs: ports, 32 bits, MSI-X, 64 bits. */
enum { BAR_PORTS = 0, BAR_32 = 1, BAR_VECTORS = 2, BAR_64 = 3 };
static const uint64_t bar_sizes[] = {
    [BAR_PORTS] = 32, [BAR_32] = 4096, [BAR_64] = UINT64_C(8) << 30};

struct machine;

/* What answers behind a BAR of the plain function. */
struct registers {
    struct machine *m;
    uint64_t size;
};

struct machine {
    uint8_t *ram;
    struct space *memory, *ports;
    struct pci_host *host;
    struct piix3 *isa;
    struct piix4_pm *pm;
    struct pci_device plain;
    struct pci_msix *msix;
    pthread_mutex_t lock; /* of what is behind the plain function's BARs */
    struct registers registers[4];
    struct virtio_rng *rng;
    struct virtio_pci *virtio;
    bool is_asserted;                       /* INTA of the plain function */
    bool wires[4];                          /* as the bus drives them */
    bool wants_reset;                       /* by the reset control register */
    uint8_t virtio_config[PCI_CONFIG_SIZE]; /* as it was at first */
};

static void require(bool claim)
{
    if (!claim)
        abort();
}

static uint64_t registers_read(void *ctx, uint64_t offset, unsigned size)
{
    const struct registers *r = ctx;

    require(range_fits(offset, size, r->size));
    return offset * 0x0101010101010101u;
}

static void registers_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    const struct registers *r = ctx;

    require(range_fits(offset, size, r->size));
}

static const struct space_ops registers_ops = {
    .read = registers_read, .write = registers_write, .min_size = 1, .max_size = 4};

static void set_wire(void *sink, unsigned input, bool level)
{
    struct machine *m = sink;

    require(m->wires[input] != level);
    m->wires[input] = level;
}

static void ask_for_reset(void *ctx)
{
    ((struct machine *)ctx)->wants_reset = true;
}

static uint32_t config_of(struct machine *m, unsigned slot, unsigned offset)
{
    return (uint32_t)space_load(m->memory, ECAM + (slot << 15) + offset, 4);
}

static void send_msi(void *ctx, uint64_t address, uint32_t value)
{
    require((address & 3) == 0);
}

static void pam_changed(void *ctx, const uint8_t pam[PCI_HOST_PAM_COUNT])
{
    volatile uint8_t sum = 0;

    for (unsigned i = 0; i < PCI_HOST_PAM_COUNT; i++)
        sum ^= pam[i];
}

/* ---- the machine ---- */

static void make_plain(struct machine *m)
{
    static const struct pci_ids ids = {.vendor = 0x1234, .device = 0x5678, .class_device = 0xff00};
    static const enum pci_bar_kind kinds[] = {
        [BAR_PORTS] = PCI_BAR_IO, [BAR_32] = PCI_BAR_MEM32, [BAR_64] = PCI_BAR_MEM64};
    struct err e;

    pci_device_init(&m->plain, "plain", NULL, &ids);
    m->plain.config[PCI_INTERRUPT_PIN] = 1;
    for (unsigned i = 0; i < ARRAY_SIZE(kinds); i++) {
        m->registers[i] = (struct registers){m, bar_sizes[i]};
        struct space_window window = {&registers_ops, &m->registers[i], &m->lock};
        if (i != BAR_VECTORS)
            pci_device_set_bar(&m->plain, i, kinds[i], bar_sizes[i], &window);
    }
    require(pci_msix_create(&m->plain, BAR_VECTORS, VECTORS, &m->msix, &e) == 0);
    pci_device_add_power_management(&m->plain);
    require(pci_host_add(m->host, &m->plain, PLAIN_SLOT, 0, &e) == 0);
}

static void make_machine(struct machine *m)
{
    struct err e;
    struct irq_line isa[16] = {0};
    struct pci_host_config config = {
        .reset = ask_for_reset, .pam_changed = pam_changed, .send_msi = send_msi, .ctx = m};

    require(space_create("memory", BIT(40), &m->memory, &e) == 0);
    require(space_create("ports", 65536, &m->ports, &e) == 0);
    require(space_add_ram(m->memory, 0, m->ram, RAM_SIZE, false, &e) == 0);
    require(piix3_create(isa, &m->isa, &e) == 0);
    for (unsigned i = 0; i < 4; i++)
        config.pirq[i] = (struct irq_line){set_wire, m, i};
    require(pci_host_create(&config, &m->host, &e) == 0);
    require(pci_host_map(m->host, m->ports, PCI_HOST_PORT, &e) == 0);
    require(pci_host_map_ecam(m->host, m->memory, ECAM, &e) == 0);
    require(pci_host_map_window(m->host, m->ports, true, PORTS, 0x10000 - PORTS, &e) == 0);
    require(pci_host_map_window(m->host, m->memory, false, WINDOW, WINDOW_SIZE, &e) == 0);
    require(pci_host_map_window(m->host, m->memory, false, WINDOW_64, WINDOW_64, &e) == 0);
    require(piix3_attach(m->isa, m->host, 1, &e) == 0);
    require(piix4_pm_create(0x600, 9, &m->pm, &e) == 0);
    require(piix4_pm_attach(m->pm, m->host, 1, &e) == 0);
    pthread_mutex_init(&m->lock, NULL);
    make_plain(m);
    require(virtio_rng_create(m->memory, &m->rng, &e) == 0);
    require(virtio_pci_create(virtio_rng_device(m->rng), 0x1000, &m->virtio, &e) == 0);
    require(virtio_pci_attach(m->virtio, m->host, VIRTIO_SLOT, &e) == 0);
    for (unsigned i = 0; i < PCI_CONFIG_SIZE; i += 4)
        store_le32(m->virtio_config + i, config_of(m, VIRTIO_SLOT, i));
}

static void destroy_machine(struct machine *m)
{
    space_destroy(m->ports);
    space_destroy(m->memory);
    virtio_pci_destroy(m->virtio);
    virtio_rng_destroy(m->rng);
    pci_msix_destroy(m->msix);
    piix4_pm_destroy(m->pm);
    piix3_destroy(m->isa);
    pci_host_destroy(m->host);
    pthread_mutex_destroy(&m->lock);
}

/* As the board does it, which nobody may call from within an access. */
static void reset(struct machine *m)
{
    pci_host_reset_device(m->host, &m->plain);
    m->is_asserted = false;
    virtio_pci_reset(m->virtio);
    piix3_reset(m->isa);
    piix4_pm_reset(m->pm);
    pci_host_reset(m->host);
    require(memcmp(m->plain.config, m->plain.initial, PCI_CONFIG_SIZE) == 0);
    for (unsigned i = 0; i < PCI_BAR_COUNT; i++)
        require(m->plain.bars[i].addr == UINT64_MAX);
    for (unsigned i = 0; i < PCI_CONFIG_SIZE; i += 4)
        require(config_of(m, VIRTIO_SLOT, i) == load_le32(m->virtio_config + i));
    for (unsigned i = 0; i < 4; i++)
        require(!m->wires[i]);
    m->wants_reset = false;
}

/* ---- the guest ---- */

static void access_config(struct machine *m, const uint8_t *step, bool is_write, bool is_ecam)
{
    static const uint8_t functions[] = {PCI_DEVFN(PLAIN_SLOT, 0), PCI_DEVFN(VIRTIO_SLOT, 0),
                                        PCI_DEVFN(0, 0),          PCI_DEVFN(1, 0),
                                        PCI_DEVFN(1, 3),          PCI_DEVFN(9, 1)};
    uint32_t devfn = functions[step[1] % ARRAY_SIZE(functions)], value = load_le32(step + 4);
    unsigned size = 1u << (step[3] & 3) % 3;
    uint64_t at = ECAM + (devfn << 12) + (step[2] | (step[3] & 8) << 5);

    if (!is_ecam) {
        space_store(m->ports, PCI_HOST_PORT, 0x80000000u | devfn << 8 | step[2], 4);
        at = PCI_HOST_PORT + 4 + (step[3] >> 2 & 3);
    }
    struct space *space = is_ecam ? m->memory : m->ports;
    if (is_write)
        space_store(space, at, value, size);
    else
        space_load(space, at, size);
}

/* To a BAR where it is now, or anywhere in the windows. */
static void access_bar(struct machine *m, const uint8_t *step, bool is_write)
{
    unsigned size = 1u << (step[1] & 3), bar = (step[1] >> 2) % PCI_BAR_COUNT;
    uint64_t value = load_le32(step + 4) * UINT64_C(0x100000001);
    unsigned slot = step[2] & 1 ? VIRTIO_SLOT : PLAIN_SLOT, offset = load_le16(step + 2) >> 1;
    uint32_t low = config_of(m, slot, PCI_BAR0 + 4 * bar);
    bool is_io = (low & 1) != 0;
    uint64_t at = low & (is_io ? ~3u : ~15u);

    if (!is_io && (low & 4) && bar + 1 < PCI_BAR_COUNT)
        at |= (uint64_t)config_of(m, slot, PCI_BAR0 + 4 * bar + 4) << 32;
    /* as far before its end as behind its start */
    at = step[1] & 0x80 ? at - (offset & 15) : at + offset;
    struct space *space = is_io ? m->ports : m->memory;
    if (is_write)
        space_store(space, at, value, size);
    else
        space_load(space, at, size);
}

static void check(struct machine *m)
{
    const struct pci_device *dev = &m->plain;

    for (unsigned i = 0; i < PCI_CONFIG_SIZE; i++)
        require(((dev->config[i] ^ dev->initial[i]) &
                 (uint8_t) ~(dev->write_mask[i] | dev->clear_mask[i] |
                             (i == PCI_STATUS ? PCI_STATUS_INTX : 0))) == 0);
    bool is_disabled = load_le16(dev->config + PCI_COMMAND) & PCI_COMMAND_INTX_DISABLE;
    require(m->wires[PLAIN_SLOT - 1] == (m->is_asserted && !is_disabled));
    require(!m->wires[0] && !m->wires[1]);
}

static void take_step(struct machine *m, const uint8_t *step)
{
    switch (step[0] % 8) {
    case 0:
    case 1:
    case 2:
    case 3:
        access_config(m, step, step[0] & 1, step[0] & 2);
        break;
    case 4:
    case 5:
        access_bar(m, step, step[0] & 1);
        break;
    case 6: /* the devices' side */
        m->is_asserted = step[1] & 1;
        pci_host_set_intx(m->host, &m->plain, m->is_asserted);
        pci_msix_notify(m->msix, load_le16(step + 2) % (VECTORS + 2));
        break;
    default: /* the bridge's ports, in every way */
        space_store(m->ports, PCI_HOST_PORT + (step[1] & 7), load_le32(step + 4),
                    1u << (step[2] & 3) % 3);
        break;
    }
    if (m->wants_reset)
        reset(m);
    check(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t ram[RAM_SIZE] __attribute__((aligned(4096)));
    struct machine m = {.ram = ram};

    memset(ram, 0, sizeof(ram));
    make_machine(&m);
    for (unsigned i = 0; i < STEPS_MAX && size >= STEP_BYTES; i++, data += 8, size -= 8)
        take_step(&m, data);
    reset(&m);
    destroy_machine(&m);
    return 0;
}
