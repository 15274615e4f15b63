/*
 * pci_test.c - configuration by both ways, functions and their masks, BARs in their windows, MSI-X,
 * interrupt wires, reset port
 */
#include <errno.h>
#include <string.h>

#include "dev/test_support.h"
#include "dev/pci/pci_host.h"
#include "dev/pci/pci_msix.h"
#include "dev/pci/piix3.h"
#include "dev/pci/piix4_pm.h"

struct fixture {
    uint8_t pam[PCI_HOST_PAM_COUNT]; /* as the bridge told last */
    unsigned pam_changes;
    struct bench b;
    struct space *memory;
    struct pci_host *host;
    struct piix3 *bridge;
    struct pci_device dev; /* slot 3 */
    struct probe isa[16];
    unsigned resets, writes;
    struct pci_msix *msix;
    unsigned messages;
    uint64_t message_address;
    uint32_t message_data;
    uint8_t registers[32]; /* behind BARs 0 and 2 */
    struct pci_bell bells[2];
    struct pci_host_bell rung[4]; /* as the bridge told last */
    unsigned rung_count, rung_changes;
    struct pci_device above; /* slot 2 */
    pthread_mutex_t registers_lock;
};

#define ECAM 0xe0000000u
#define WINDOW 0xf0000000u
#define WINDOW_64 UINT64_C(0x4000000000)

static void count_reset(void *ctx)
{
    ((struct fixture *)ctx)->resets++;
}

static void count_write(struct pci_device *dev, unsigned offset, unsigned size)
{
    CONTAINER_OF(dev, struct fixture, dev)->writes++;
}

static void note_message(void *ctx, uint64_t address, uint32_t data)
{
    struct fixture *f = ctx;
    f->messages++;
    f->message_address = address;
    f->message_data = data;
}

static uint64_t registers_read(void *ctx, uint64_t offset, unsigned size)
{
    struct fixture *f = ctx;
    uint64_t value = 0;
    assert_true(offset + size <= UINT64_C(8) << 30);
    if (range_fits(offset, size, sizeof(f->registers)))
        memcpy(&value, f->registers + offset, size);
    return value;
}

static void registers_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct fixture *f = ctx;
    if (range_fits(offset, size, sizeof(f->registers)))
        memcpy(f->registers + offset, &value, size);
}

static const struct space_ops registers_ops = {
    .read = registers_read, .write = registers_write, .max_size = 4};

static const struct pci_device_ops dev_ops = {.config_written = count_write};
static const struct pci_ids dev_ids = {.vendor = 0x1af4,
                                       .device = 0x1000,
                                       .class_device = 0x0200,
                                       .revision = 7,
                                       .subsystem_vendor = 0x1af4,
                                       .subsystem = 1};

static void note_pam(void *ctx, const uint8_t pam[PCI_HOST_PAM_COUNT])
{
    struct fixture *f = ctx;
    memcpy(f->pam, pam, sizeof(f->pam));
    f->pam_changes++;
}

static void note_bells(void *ctx, const struct pci_host_bell *bells, unsigned count)
{
    struct fixture *f = ctx;
    assert_true(count <= ARRAY_SIZE(f->rung));
    memcpy(f->rung, bells, count * sizeof(bells[0]));
    f->rung_count = count;
    f->rung_changes++;
}

static int setup(void **state)
{
    static struct fixture f;
    f = (struct fixture){0};
    bench_setup(&f.b);
    assert_int_equal(space_create("memory", BIT(40), &f.memory, NULL), 0);
    struct irq_line isa[16];
    for (unsigned i = 0; i < 16; i++)
        isa[i] = probe_line(&f.isa[i]);
    assert_int_equal(piix3_create(isa, &f.bridge, NULL), 0);
    struct pci_host_config config = {.reset = count_reset,
                                     .pam_changed = note_pam,
                                     .bells_moved = note_bells,
                                     .send_msi = note_message,
                                     .ctx = &f};
    for (unsigned i = 0; i < 4; i++)
        config.pirq[i] = piix3_pirq_input(f.bridge, i);
    assert_int_equal(pci_host_create(&config, &f.host, NULL), 0);
    assert_int_equal(pci_host_map(f.host, f.b.ports, 0xcf8, NULL), 0);
    assert_int_equal(piix3_attach(f.bridge, f.host, 1, NULL), 0);
    pci_device_init(&f.dev, "test device", &dev_ops, &dev_ids);
    f.dev.config[PCI_INTERRUPT_PIN] = 1;
    pthread_mutex_init(&f.registers_lock, NULL);
    struct space_window window = {&registers_ops, &f, &f.registers_lock};
    pci_device_set_bar(&f.dev, 0, PCI_BAR_IO, 32, &window);
    assert_int_equal(pci_msix_create(&f.dev, 1, 70, &f.msix, NULL), 0);
    pci_device_set_bar(&f.dev, 2, PCI_BAR_MEM64, UINT64_C(8) << 30, &window);
    f.bells[0] = (struct pci_bell){.bar = 2, .offset = 8, .fd = 70};
    f.bells[1] = (struct pci_bell){.bar = 2, .offset = 0xff0002, .fd = 71};
    f.dev.bells = f.bells;
    f.dev.bell_count = 2;
    pci_device_add_power_management(&f.dev);
    assert_int_equal(pci_host_map_ecam(f.host, f.memory, ECAM, NULL), 0);
    assert_int_equal(pci_host_map_window(f.host, f.b.ports, true, 0x1000, 0xf000, NULL), 0);
    assert_int_equal(pci_host_map_window(f.host, f.memory, false, WINDOW, 0x1000000, NULL), 0);
    assert_int_equal(pci_host_map_window(f.host, f.memory, false, WINDOW_64, WINDOW_64, NULL), 0);
    assert_int_equal(pci_host_add(f.host, &f.dev, 3, 0, NULL), 0);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    bench_teardown(&f->b);
    space_destroy(f->memory);
    pci_host_destroy(f->host);
    piix3_destroy(f->bridge);
    pci_msix_destroy(f->msix);
    pthread_mutex_destroy(&f->registers_lock);
    return 0;
}

static void select_register(struct fixture *f, unsigned slot, unsigned reg)
{
    space_store(f->b.ports, 0xcf8, 0x80000000u | slot << 11 | (reg & 0xfc), 4);
}

static uint32_t get(struct fixture *f, unsigned slot, unsigned reg, unsigned size)
{
    select_register(f, slot, reg);
    return (uint32_t)space_load(f->b.ports, 0xcfc + (reg & 3), size);
}

static void set(struct fixture *f, unsigned slot, unsigned reg, uint32_t v, unsigned size)
{
    select_register(f, slot, reg);
    space_store(f->b.ports, 0xcfc + (reg & 3), v, size);
}

static void test_mechanism_1(void **state)
{
    struct fixture *f = *state;
    space_store(f->b.ports, 0xcf8, 0xffffffff, 4);
    assert_int_equal(space_load(f->b.ports, 0xcf8, 4), 0x80fffffc);
    assert_int_equal(space_load(f->b.ports, 0xcfc, 4), 0xffffffff);
    space_store(f->b.ports, 0xcf8, 0x80000000, 4);
    space_store(f->b.ports, 0xcf8, 0x55, 1); /* only a double word writes it */
    assert_int_equal(space_load(f->b.ports, 0xcf8, 4), 0x80000000);
    assert_int_equal(space_load(f->b.ports, 0xcfc, 4), 0x12378086);
    assert_int_equal(space_load(f->b.ports, 0xcfe, 2), 0x1237);
    assert_int_equal(space_load(f->b.ports, 0xcff, 1), 0x12);
    space_store(f->b.ports, 0xcf8, 0x00000000, 4); /* not enabled */
    assert_int_equal(space_load(f->b.ports, 0xcfc, 4), 0xffffffff);
    space_store(f->b.ports, 0xcf8, 0x80010000, 4); /* bus 1 */
    assert_int_equal(space_load(f->b.ports, 0xcfc, 4), 0xffffffff);
    assert_int_equal(get(f, 31, 0, 4), 0xffffffff);
    set(f, 31, 4, 7, 2);
}

static void test_bridges(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(get(f, 0, PCI_CLASS_DEVICE, 2), 0x0600);
    assert_int_equal(get(f, 1, 0, 4), 0x70008086);
    assert_int_equal(get(f, 1, PCI_CLASS_DEVICE, 2), 0x0601);
    set(f, 0, 0, 0, 4);
    assert_int_equal(get(f, 0, 0, 4), 0x12378086);
    set(f, 0, PCI_COMMAND, 0, 2);
    assert_int_equal(get(f, 0, PCI_COMMAND, 2), 6);
    set(f, 0, 0x59, 0x30, 1); /* PAM is storage */
    assert_int_equal(get(f, 0, 0x59, 1), 0x30);
    pci_host_reset(f->host);
    assert_int_equal(get(f, 0, 0x59, 1), 0);
    assert_int_equal(get(f, 0, 0, 4), 0x12378086);
}

static void test_device_registers(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(get(f, 3, 0, 4), 0x10001af4);
    assert_int_equal(get(f, 3, PCI_REVISION, 4), 0x02000007);
    set(f, 3, PCI_COMMAND, 0xffff, 2);
    assert_int_equal(get(f, 3, PCI_COMMAND, 2), 0x0547);
    assert_int_equal(f->writes, 1);
    f->dev.config[PCI_STATUS + 1] = 0x22;
    set(f, 3, PCI_STATUS, 0x2000, 2);
    assert_int_equal(get(f, 3, PCI_STATUS, 2), 0x0210);
    set(f, 3, PCI_INTERRUPT_LINE, 0xff0b, 2);
    assert_int_equal(get(f, 3, PCI_INTERRUPT_LINE, 2), 0x010b);
}

static void test_base_addresses(void **state)
{
    struct fixture *f = *state;
    for (unsigned i = 0; i < 6; i++)
        set(f, 3, PCI_BAR0 + 4 * i, 0xffffffff, 4);
    assert_int_equal(get(f, 3, 0x10, 4), 0xffffffe1);
    assert_int_equal(get(f, 3, 0x14, 4), 0xffffe000);
    assert_int_equal(get(f, 3, 0x18, 4), 0x00000004);
    assert_int_equal(get(f, 3, 0x1c, 4), 0xfffffffe);
    assert_int_equal(get(f, 3, 0x20, 4), 0);
    set(f, 3, 0x10, 0xc000, 4);
    set(f, 3, 0x14, 0xfe000000, 4);
    set(f, 3, 0x18, 0, 4);
    set(f, 3, 0x1c, 0x10, 4);
    assert_true(pci_device_bar_addr(&f->dev, 0) == UINT64_MAX);
    assert_true(pci_device_bar_addr(&f->dev, 1) == UINT64_MAX);
    set(f, 3, PCI_COMMAND, 3, 2);
    assert_int_equal(pci_device_bar_addr(&f->dev, 0), 0xc000);
    assert_int_equal(pci_device_bar_addr(&f->dev, 1), 0xfe000000);
    assert_int_equal(pci_device_bar_addr(&f->dev, 2), UINT64_C(0x1000000000));
}

static void test_capabilities(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(get(f, 3, PCI_STATUS, 2) & PCI_STATUS_CAPABILITIES, PCI_STATUS_CAPABILITIES);
    unsigned seen = 0, at = get(f, 3, PCI_CAPABILITIES, 1);
    for (unsigned n = 0; at != 0 && n < 48; n++, at = get(f, 3, at + 1, 1)) {
        assert_int_equal(at & 3, 0);
        assert_true(at >= 0x40);
        seen |= 1u << get(f, 3, at, 1);
    }
    assert_int_equal(at, 0);
    assert_int_equal(seen, 1u << PCI_CAP_PM | 1u << PCI_CAP_MSIX);
    at = get(f, 3, PCI_CAPABILITIES, 1); /* power management came last */
    set(f, 3, at + 4, 0xffff, 2);
    assert_int_equal(get(f, 3, at + 4, 2), 0x000b);
    set(f, 3, at + 4, 2, 2); /* there is no D2 to go to */
    assert_int_equal(get(f, 3, at + 4, 2), 0x000b);
    set(f, 3, at, 0, 2); /* the list itself is read-only */
    assert_int_equal(get(f, 3, at, 1), PCI_CAP_PM);
}

static void test_ecam(void **state)
{
    struct fixture *f = *state;
    struct space *memory = f->memory;
    assert_int_equal(space_load(memory, ECAM, 4), 0x12378086);
    assert_int_equal(space_load(memory, ECAM + (3u << 15), 4), 0x10001af4);
    assert_int_equal(space_load(memory, ECAM + (3u << 15) + PCI_REVISION, 1), 7);
    space_store(memory, ECAM + (3u << 15) + PCI_COMMAND, 3, 2);
    assert_int_equal(get(f, 3, PCI_COMMAND, 2), 3);
    assert_int_equal(space_load(memory, ECAM + (3u << 15) + 256, 4), 0xffffffff);
    assert_int_equal(space_load(memory, ECAM + (5u << 15), 4), 0xffffffff);
    space_store(memory, ECAM + (5u << 15), 0, 4);
    assert_int_equal(space_load(memory, ECAM + PCI_HOST_ECAM_SIZE - 4, 4), 0xffffffff);
}

static void test_windows(void **state)
{
    struct fixture *f = *state;
    struct space *memory = f->memory, *ports = f->b.ports;
    set(f, 3, 0x10, 0xc000, 4);
    set(f, 3, 0x18, (uint32_t)WINDOW_64, 4);
    set(f, 3, 0x1c, (uint32_t)(WINDOW_64 >> 32), 4);
    assert_int_equal(space_load(ports, 0xc000, 1), 0xff); /* not decoded yet */
    set(f, 3, PCI_COMMAND, 3, 2);
    space_store(ports, 0xc004, 0x12345678, 4);
    assert_int_equal(space_load(ports, 0xc004, 4), 0x12345678);
    assert_int_equal(space_load(memory, WINDOW_64 + 4, 4), 0x12345678);
    assert_int_equal(space_load(memory, WINDOW_64 + 5, 2), 0x3456); /* bytes of a register */
    space_store(memory, WINDOW_64 + 8, UINT64_C(0x1122334455667788), 8);
    assert_true(space_load(memory, WINDOW_64 + 8, 8) == UINT64_C(0x1122334455667788));
    /* over the end: what is outside is all ones */
    f->registers[31] = 0x5a;
    assert_int_equal(space_load(ports, 0xc01f, 4), 0xffffff5a);
    space_store(ports, 0xc01f, 0xa5, 4);
    assert_int_equal(f->registers[31], 0xa5);
    /* moved away, and out of the window */
    set(f, 3, 0x10, 0xd000, 4);
    assert_int_equal(space_load(ports, 0xc004, 4), 0xffffffff);
    assert_int_equal(space_load(ports, 0xd004, 4), 0x12345678);
    set(f, 3, 0x10, 0x100, 4);
    assert_int_equal(space_load(ports, 0x104, 4), 0xffffffff);
    set(f, 3, PCI_COMMAND, 0, 2);
    assert_int_equal(space_load(memory, WINDOW_64 + 4, 4), 0xffffffff);
    /* a BAR of ports does not answer to memory addresses */
    set(f, 3, 0x10, WINDOW, 4);
    set(f, 3, PCI_COMMAND, 3, 2);
    assert_int_equal(space_load(memory, WINDOW, 4), 0xffffffff);
}

static void expect_bells(struct fixture *f, unsigned changes, unsigned count, uint64_t first,
                         uint64_t second)
{
    assert_int_equal(f->rung_changes, changes);
    assert_int_equal(f->rung_count, count);
    if (count > 0)
        assert_true(f->rung[0].addr == first);
    if (count > 1)
        assert_true(f->rung[1].addr == second && f->rung[1].fd == 71);
}

/* Where a write can be one to a descriptor: as BARs move, are switched off, and lie over another.
 */
static void test_bells(void **state)
{
    struct fixture *f = *state;
    struct space_window window = {&registers_ops, f, NULL};
    pci_device_init(&f->above, "another device", NULL, &dev_ids);
    pci_device_set_bar(&f->above, 0, PCI_BAR_MEM32, 0x1000, &window);
    assert_int_equal(pci_host_add(f->host, &f->above, 2, 0, NULL), 0);
    set(f, 3, 0x18, (uint32_t)WINDOW_64, 4);
    set(f, 3, 0x1c, (uint32_t)(WINDOW_64 >> 32), 4);
    expect_bells(f, 0, 0, 0, 0); /* not decoded yet */
    set(f, 3, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
    expect_bells(f, 1, 2, WINDOW_64 + 8, WINDOW_64 + 0xff0002);
    assert_int_equal(f->rung[0].fd, 70);
    /* what is no move is not told */
    set(f, 3, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
    set(f, 3, PCI_INTERRUPT_LINE, 5, 1);
    expect_bells(f, 1, 2, WINDOW_64 + 8, WINDOW_64 + 0xff0002);
    /* within its window, out of it, and back */
    set(f, 3, 0x1c, (uint32_t)((WINDOW_64 + (UINT64_C(32) << 30)) >> 32), 4);
    expect_bells(f, 2, 2, WINDOW_64 + (UINT64_C(32) << 30) + 8,
                 WINDOW_64 + (UINT64_C(32) << 30) + 0xff0002);
    set(f, 3, 0x1c, 0x1000, 4);
    expect_bells(f, 3, 0, 0, 0);
    set(f, 3, 0x1c, 0xffffffff, 4); /* as drivers do to find out its size */
    expect_bells(f, 3, 0, 0, 0);
    set(f, 3, 0x1c, 0, 4); /* the other window is in its midst, but no bell in that */
    expect_bells(f, 3, 0, 0, 0);
    set(f, 3, 0x1c, (uint32_t)(WINDOW_64 >> 32), 4);
    expect_bells(f, 4, 2, WINDOW_64 + 8, WINDOW_64 + 0xff0002);
    /* the other device's BAR over the window of 32 bits, where this one is not */
    set(f, 2, 0x10, WINDOW, 4);
    set(f, 2, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
    expect_bells(f, 4, 2, WINDOW_64 + 8, WINDOW_64 + 0xff0002);
    /* all off */
    set(f, 3, PCI_COMMAND, 0, 2);
    expect_bells(f, 5, 0, 0, 0);
    set(f, 3, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
    pci_host_reset_device(f->host, &f->dev);
    expect_bells(f, 7, 0, 0, 0);
}

/* A BAR of a lower slot that lies over another hides its bells. */
static void test_bells_below_another(void **state)
{
    struct fixture *f = *state;
    struct space_window window = {&registers_ops, f, NULL};
    struct pci_bell bell = {.bar = 0, .offset = 0x800, .fd = 72};
    struct pci_device below;
    pci_device_init(&f->above, "a device", NULL, &dev_ids);
    pci_device_set_bar(&f->above, 0, PCI_BAR_MEM32, 0x100, &window);
    assert_int_equal(pci_host_add(f->host, &f->above, 2, 0, NULL), 0);
    pci_device_init(&below, "another device", NULL, &dev_ids);
    pci_device_set_bar(&below, 0, PCI_BAR_MEM32, 0x1000, &window);
    below.bells = &bell;
    below.bell_count = 1;
    assert_int_equal(pci_host_add(f->host, &below, 4, 0, NULL), 0);
    set(f, 2, 0x10, WINDOW, 4);
    set(f, 2, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
    set(f, 4, 0x10, WINDOW, 4);
    set(f, 4, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
    expect_bells(f, 1, 1, WINDOW + 0x800, 0); /* behind it */
    set(f, 2, 0x10, WINDOW + 0x800, 4);
    expect_bells(f, 2, 0, 0, 0);
    space_store(f->memory, WINDOW + 0x800, 0x1234, 2); /* which the write shows */
    assert_int_equal(load_le16(f->registers), 0x1234);
    set(f, 2, 0x10, WINDOW + 0x900, 4);
    expect_bells(f, 3, 1, WINDOW + 0x800, 0);
}

static void test_messages(void **state)
{
    struct fixture *f = *state;
    struct space *memory = f->memory;
    unsigned cap = f->dev.capabilities_end;
    for (cap = get(f, 3, PCI_CAPABILITIES, 1); get(f, 3, cap, 1) != PCI_CAP_MSIX;)
        cap = get(f, 3, cap + 1, 1);
    assert_int_equal(get(f, 3, cap + 2, 2), 69);
    assert_int_equal(get(f, 3, cap + 4, 4), 1); /* table: BAR 1, at 0 */
    unsigned pba = get(f, 3, cap + 8, 4) & ~7u;
    set(f, 3, 0x14, WINDOW, 4);
    set(f, 3, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);

    uint64_t entry = WINDOW + 65 * 16;
    assert_int_equal(space_load(memory, entry + 12, 4), 1); /* masked after reset */
    pci_msix_notify(f->msix, 65);
    set(f, 3, cap + 2, 0x8000, 2);
    assert_true(pci_msix_is_enabled(f->msix));
    assert_int_equal(space_load(memory, WINDOW + pba, 8), 0); /* not enabled then: lost */
    space_store(memory, entry, UINT64_C(0xfee01003), 8);
    space_store(memory, entry + 8, 0x4041, 4);
    pci_msix_notify(f->msix, 65);
    assert_int_equal(f->messages, 0);
    assert_int_equal(space_load(memory, WINDOW + pba + 8, 4), 2);
    space_store(memory, WINDOW + pba + 8, 0, 4); /* read-only */
    space_store(memory, entry + 12, 0xfffffffe, 4);
    assert_int_equal(f->messages, 0); /* no bus master */
    assert_int_equal(space_load(memory, entry + 12, 4), 0);
    set(f, 3, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
    assert_int_equal(f->messages, 1);
    assert_int_equal(f->message_address, 0xfee01000);
    assert_int_equal(f->message_data, 0x4041);
    assert_int_equal(space_load(memory, WINDOW + pba + 8, 4), 0);
    pci_msix_notify(f->msix, 65);
    assert_int_equal(f->messages, 2);
    set(f, 3, cap + 2, 0xc000, 2); /* the function's mask */
    pci_msix_notify(f->msix, 65);
    pci_msix_notify(f->msix, 65);
    assert_int_equal(f->messages, 2);
    set(f, 3, cap + 2, 0x8000, 2);
    assert_int_equal(f->messages, 3); /* one bit, one message */
    pci_msix_notify(f->msix, 70);
    assert_int_equal(f->messages, 3);
    /* between the table and the pending bits there is nothing */
    space_store(memory, WINDOW + 70 * 16, 0x55, 4);
    assert_int_equal(space_load(memory, WINDOW + 70 * 16, 4), 0);

    pci_host_reset_device(f->host, &f->dev);
    assert_false(pci_msix_is_enabled(f->msix));
    assert_int_equal(get(f, 3, PCI_COMMAND, 2), 0);
    assert_int_equal(get(f, 3, 0x14, 4), 0);
    assert_int_equal(space_load(memory, WINDOW, 4), 0xffffffff);
}

/* INTx is for functions in D0 that do not use MSI-X (6.8.2.3; PM 1.2, 5.4.1). */
static void test_who_may_interrupt(void **state)
{
    struct fixture *f = *state;
    unsigned pm = get(f, 3, PCI_CAPABILITIES, 1) + 4, msix = get(f, 3, PCI_CAPABILITIES, 1);
    while (get(f, 3, msix, 1) != PCI_CAP_MSIX)
        msix = get(f, 3, msix + 1, 1);
    set(f, 1, 0x62, 11, 1);
    pci_host_set_intx(f->host, &f->dev, true);
    assert_true(f->isa[11].level);
    set(f, 3, pm, 3, 1);
    assert_false(f->isa[11].level);
    set(f, 3, pm, 0, 1);
    assert_true(f->isa[11].level);
    set(f, 3, msix + 2, 0x8000, 2);
    assert_false(f->isa[11].level);
    assert_int_equal(get(f, 3, PCI_STATUS, 2) & PCI_STATUS_INTX, PCI_STATUS_INTX);
    set(f, 3, msix + 2, 0, 2);
    assert_true(f->isa[11].level);

    /* messages wait for D0 */
    set(f, 3, 0x14, WINDOW, 4);
    set(f, 3, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
    set(f, 3, msix + 2, 0x8000, 2);
    space_store(f->memory, WINDOW + 12, 0, 4);
    set(f, 3, pm, 3, 1);
    pci_msix_notify(f->msix, 0);
    assert_int_equal(f->messages, 0);
    assert_int_equal(space_load(f->memory, WINDOW + 12, 4), 0xffffffff);
    set(f, 3, pm, 0, 1);
    assert_int_equal(f->messages, 1);
    assert_int_equal(space_load(f->memory, WINDOW + 12, 4), 0);
    pci_host_reset_device(f->host, &f->dev);
    assert_false(f->isa[11].level);
}

static void test_adding_functions(void **state)
{
    struct fixture *f = *state;
    struct pci_device second, elsewhere;
    struct err e;
    pci_device_init(&second, "second function", NULL, &dev_ids);
    pci_device_init(&elsewhere, "nowhere", NULL, &dev_ids);
    assert_int_equal(pci_host_add(f->host, &second, 3, 0, &e), -EEXIST);
    assert_int_equal(pci_host_add(f->host, &elsewhere, 32, 0, &e), -EINVAL);
    assert_int_equal(get(f, 3, PCI_HEADER_TYPE, 1), 0);
    assert_int_equal(pci_host_add(f->host, &second, 3, 2, NULL), 0);
    assert_int_equal(get(f, 3, PCI_HEADER_TYPE, 1), 0x80);
    space_store(f->b.ports, 0xcf8, 0x80001a00, 4);
    assert_int_equal(space_load(f->b.ports, 0xcfc, 4), 0x10001af4);
}

/* Pin A of slot 3 is wire 2; the bridge routes it to an input of the 8259s. */
static void test_interrupt_wires(void **state)
{
    struct fixture *f = *state;
    pci_host_set_intx(f->host, &f->dev, true);
    assert_int_equal(get(f, 3, PCI_STATUS, 2) & PCI_STATUS_INTX, PCI_STATUS_INTX);
    for (unsigned i = 0; i < 16; i++)
        assert_false(f->isa[i].level); /* no route */
    set(f, 1, 0x62, 11, 1);
    assert_true(f->isa[11].level);
    set(f, 1, 0x62, 10, 1);
    assert_true(f->isa[10].level && !f->isa[11].level);
    set(f, 1, 0x62, 8, 1); /* not a target */
    assert_false(f->isa[8].level || f->isa[10].level);
    set(f, 1, 0x62, 10, 1);
    set(f, 3, PCI_COMMAND, PCI_COMMAND_INTX_DISABLE, 2);
    assert_false(f->isa[10].level);
    assert_int_equal(get(f, 3, PCI_STATUS, 2) & PCI_STATUS_INTX, PCI_STATUS_INTX);
    set(f, 3, PCI_COMMAND, 0, 2);
    assert_true(f->isa[10].level);

    struct pci_device other; /* slot 7 shares the wire */
    pci_device_init(&other, "other", NULL, &dev_ids);
    other.config[PCI_INTERRUPT_PIN] = 1;
    assert_int_equal(pci_host_add(f->host, &other, 7, 0, NULL), 0);
    pci_host_set_intx(f->host, &other, true);
    pci_host_set_intx(f->host, &f->dev, false);
    assert_true(f->isa[10].level);
    pci_host_set_intx(f->host, &other, false);
    pci_host_set_intx(f->host, &other, false);
    assert_false(f->isa[10].level);
    pci_host_set_intx(f->host, &f->dev, true);
    piix3_reset(f->bridge);
    assert_false(f->isa[10].level);
    assert_int_equal(get(f, 1, 0x60, 4), 0x80808080);
}

/* By what firmware knows the board, and the registers that say what is below 1 MiB. */
static void test_host_bridge(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(get(f, 0, PCI_VENDOR_ID, 4), 0x12378086);
    assert_int_equal(get(f, 0, PCI_SUBSYSTEM_VENDOR_ID, 4), 0x11001af4);
    f->pam_changes = 0;
    set(f, 0, 0x58, 0xffffff3f, 4); /* 59H to 5BH */
    assert_int_equal(f->pam_changes, 1);
    assert_memory_equal(f->pam, "\xff\xff\xff\0\0\0\0", 7);
    set(f, 0, 0x5f, 0x33, 1);
    assert_int_equal(f->pam[6], 0x33);
    set(f, 0, 0x60, 0x33, 1);
    assert_int_equal(f->pam_changes, 2);
    pci_host_reset(f->host);
    assert_int_equal(f->pam_changes, 3);
    assert_memory_equal(f->pam, "\0\0\0\0\0\0\0", 7);
}

static uint32_t get_pm(struct fixture *f, unsigned reg)
{
    space_store(f->b.ports, 0xcf8, 0x80000b00u | reg, 4);
    return (uint32_t)space_load(f->b.ports, 0xcfc, 4);
}

/* The PM base is where the ACPI tables say, whatever is written; there is no SMM to set up. */
static void test_power_management(void **state)
{
    struct fixture *f = *state;
    struct piix4_pm *pm;
    static const uint8_t regs[] = {0x40, 0x58, 0x80, 0x90, 0xd0};
    static const uint32_t values[] = {0x601, 1u << 25, 1, 0, 0};

    assert_int_equal(piix4_pm_create(0x600, 9, &pm, NULL), 0);
    assert_int_equal(piix4_pm_attach(pm, f->host, 1, NULL), 0);
    assert_int_equal(get(f, 1, PCI_HEADER_TYPE, 1), 0x80);
    assert_int_equal(get_pm(f, PCI_VENDOR_ID), 0x71138086);
    assert_int_equal(get_pm(f, PCI_INTERRUPT_LINE) & 0xffff, 0x0109);
    for (unsigned i = 0; i < ARRAY_SIZE(regs); i++) {
        assert_int_equal(get_pm(f, regs[i]), values[i]);
        space_store(f->b.ports, 0xcfc, ~values[i], 4);
        assert_int_equal(get_pm(f, regs[i]), values[i]);
    }
    get_pm(f, PCI_INTERRUPT_LINE);
    space_store(f->b.ports, 0xcfc, 5, 1);
    piix4_pm_reset(pm);
    assert_int_equal(get_pm(f, PCI_INTERRUPT_LINE) & 0xffff, 0x0109);
    piix4_pm_destroy(pm);
}

static void test_reset_port(void **state)
{
    struct fixture *f = *state;
    out8(&f->b, 0xcf9, 0x02);
    assert_int_equal(f->resets, 0);
    assert_in8(&f->b, 0xcf9, 0x02);
    out8(&f->b, 0xcf9, 0x06);
    assert_int_equal(f->resets, 1);
    out8(&f->b, 0xcf9, 0x06);
    assert_int_equal(f->resets, 1); /* the bit has to rise */
    space_store(f->b.ports, 0xcf8, 0x80000600, 4);
    assert_int_equal(f->resets, 1); /* CONFIG_ADDRESS, not the reset port */
    pci_host_reset(f->host);
    out8(&f->b, 0xcf9, 0xff);
    assert_in8(&f->b, 0xcf9, 0x0e);
    assert_int_equal(f->resets, 2);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_mechanism_1),
        TEST(test_bridges),
        TEST(test_device_registers),
        TEST(test_base_addresses),
        TEST(test_adding_functions),
        TEST(test_interrupt_wires),
        TEST(test_host_bridge),
        TEST(test_power_management),
        TEST(test_reset_port),
        TEST(test_capabilities),
        TEST(test_ecam),
        TEST(test_windows),
        TEST(test_bells),
        TEST(test_bells_below_another),
        TEST(test_messages),
        TEST(test_who_may_interrupt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
