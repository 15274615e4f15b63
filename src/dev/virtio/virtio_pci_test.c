/*
 * virtio_pci_test.c - the state of PCI functions: on one bus it is taken, on another put back
 *
 * The guest reaches the bus as guests do, by configuration mechanism 1 and by BARs. What it can see
 * of the functions has to be the same on both, and what waited has to come out.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "dev/pci/pci_host.h"
#include "dev/pci/pci_msix.h"
#include "dev/pci/piix3.h"
#include "dev/pci/piix4_pm.h"
#include "dev/virtio/virtio_pci.h"
#include "dev/virtio/virtio_rng.h"
#include "dev/virtio/virtio_state.h"
#include "dev/virtio/virtqueue_ring.h"
#include "mem/space.h"

#define RAM_SIZE 0x10000u
#define WINDOW 0xe0000000u
#define REGISTERS 0xe0000000u /* BAR 4 */
#define TABLE 0xe0100000u     /* BAR 1 */
#define NOTIFY (REGISTERS + 0x3000u)
#define SLOT 3u
#define DESCRIPTORS 0x1000u
#define DRIVER_AREA 0x2000u
#define DEVICE_AREA 0x3000u
#define BUFFER 0x4000u

/* Common configuration. */
enum { FEATURE_SELECT = 8, FEATURE = 12, CONFIG_VECTOR = 16, STATUS = 20, QUEUE_SELECT = 22 };
enum { QUEUE_SIZE = 24, QUEUE_VECTOR = 26, QUEUE_ENABLE = 28, QUEUE_DESC = 32 };

struct bus {
    struct space *memory, *ports;
    struct pci_host *host;
    struct piix3 *isa;
    struct piix4_pm *pm;
    struct virtio_rng *rng;
    struct virtio_pci *function;
    uint8_t *ram; /* the guest's: shared by both */
    bool inputs[16];
    uint8_t pam[PCI_HOST_PAM_COUNT];
    unsigned messages;
    uint64_t address;
    uint32_t data;
};

struct bus_state {
    struct pci_host_state host;
    struct pci_device_state isa, pm;
    struct virtio_pci_state function;
};

static void input_set(void *sink, unsigned input, bool level)
{
    ((struct bus *)sink)->inputs[input] = level;
}

static void on_pam(void *ctx, const uint8_t pam[PCI_HOST_PAM_COUNT])
{
    memcpy(((struct bus *)ctx)->pam, pam, PCI_HOST_PAM_COUNT);
}

static void on_message(void *ctx, uint64_t address, uint32_t data)
{
    struct bus *b = ctx;

    b->messages++;
    b->address = address;
    b->data = data;
}

static void bus_make(struct bus *b, uint8_t *ram)
{
    struct pci_host_config config = {.pam_changed = on_pam, .send_msi = on_message, .ctx = b};
    struct irq_line isa[16];

    *b = (struct bus){.ram = ram};
    for (unsigned i = 0; i < 16; i++)
        isa[i] = (struct irq_line){.set = input_set, .sink = b, .input = i};
    assert_int_equal(space_create("memory", BIT(40), &b->memory, NULL), 0);
    assert_int_equal(space_create("ports", BIT(16), &b->ports, NULL), 0);
    assert_int_equal(space_add_ram(b->memory, 0, ram, RAM_SIZE, false, NULL), 0);
    assert_int_equal(piix3_create(isa, &b->isa, NULL), 0);
    for (unsigned i = 0; i < 4; i++)
        config.pirq[i] = piix3_pirq_input(b->isa, i);
    assert_int_equal(pci_host_create(&config, &b->host, NULL), 0);
    assert_int_equal(pci_host_map(b->host, b->ports, 0xcf8, NULL), 0);
    assert_int_equal(pci_host_map_window(b->host, b->memory, false, WINDOW, 0x10000000, NULL), 0);
    assert_int_equal(piix3_attach(b->isa, b->host, 1, NULL), 0);
    assert_int_equal(piix4_pm_create(0x600, 9, &b->pm, NULL), 0);
    assert_int_equal(piix4_pm_attach(b->pm, b->host, 1, NULL), 0);
    assert_int_equal(virtio_rng_create(b->memory, &b->rng, NULL), 0);
    assert_int_equal(virtio_pci_create(virtio_rng_device(b->rng), 0x00ff, &b->function, NULL), 0);
    assert_int_equal(virtio_pci_attach(b->function, b->host, SLOT, NULL), 0);
}

static void bus_free(struct bus *b)
{
    virtio_pci_detach(b->function);
    virtio_pci_destroy(b->function);
    virtio_rng_destroy(b->rng);
    space_destroy(b->memory);
    space_destroy(b->ports);
    pci_host_destroy(b->host);
    piix4_pm_destroy(b->pm);
    piix3_destroy(b->isa);
}

/* ---- the guest ---- */

static uint32_t config_address(unsigned slot, unsigned function, unsigned reg)
{
    return 0x80000000u | PCI_DEVFN(slot, function) << 8 | (reg & 0xfc);
}

static uint32_t config_get(struct bus *b, unsigned slot, unsigned reg, unsigned size)
{
    space_store(b->ports, 0xcf8, config_address(slot, 0, reg), 4);
    return (uint32_t)space_load(b->ports, 0xcfc + (reg & 3), size);
}

static void config_put(struct bus *b, unsigned slot, unsigned reg, uint32_t value, unsigned size)
{
    space_store(b->ports, 0xcf8, config_address(slot, 0, reg), 4);
    space_store(b->ports, 0xcfc + (reg & 3), value, size);
}

static unsigned capability(struct bus *b, unsigned id)
{
    unsigned at = config_get(b, SLOT, PCI_CAPABILITIES, 1);

    while (at != 0 && config_get(b, SLOT, at, 1) != id)
        at = config_get(b, SLOT, at + 1, 1);
    assert_int_not_equal(at, 0);
    return at;
}

static void set(struct bus *b, unsigned offset, uint64_t value, unsigned size)
{
    space_store(b->memory, REGISTERS + offset, value, size);
}

static void place_bars(struct bus *b)
{
    config_put(b, SLOT, PCI_BAR0 + 4, TABLE, 4);
    config_put(b, SLOT, PCI_BAR0 + 16, REGISTERS, 4);
    config_put(b, SLOT, PCI_BAR0 + 20, 0, 4);
    config_put(b, SLOT, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
}

/* Two vectors, the queue's masked. */
static void use_msix(struct bus *b)
{
    for (unsigned i = 0; i < 2; i++) {
        space_store(b->memory, TABLE + 16 * i, 0xfee00000, 4);
        space_store(b->memory, TABLE + 16 * i + 8, 0x40 + i, 4);
        space_store(b->memory, TABLE + 16 * i + 12, i, 4);
    }
    config_put(b, SLOT, capability(b, PCI_CAP_MSIX) + 2, 0x8000, 2);
    set(b, QUEUE_SELECT, 0, 2);
    set(b, QUEUE_VECTOR, 1, 2);
    set(b, CONFIG_VECTOR, 0, 2);
}

/* As far as the queue's addresses, of which the last is only half there. */
static void begin_setup(struct bus *b)
{
    place_bars(b);
    set(b, STATUS, 0, 1);
    set(b, STATUS, 3, 1);
    set(b, FEATURE_SELECT, 1, 4);
    set(b, FEATURE, 1, 4); /* VERSION_1 */
    set(b, STATUS, 11, 1);
    set(b, QUEUE_SELECT, 0, 2);
    set(b, QUEUE_SIZE, 4, 2);
    set(b, QUEUE_DESC, DESCRIPTORS, 4);
    set(b, QUEUE_DESC + 8, DRIVER_AREA, 4);
    set(b, QUEUE_DESC + 20, 0x12, 4);
}

static void end_setup(struct bus *b)
{
    set(b, QUEUE_DESC + 16, DEVICE_AREA, 4);
    set(b, QUEUE_DESC + 20, 0, 4);
    set(b, QUEUE_ENABLE, 1, 2);
    set(b, STATUS, 15, 1);
}

static void offer(struct bus *b, unsigned n)
{
    uint8_t *d = b->ram + DESCRIPTORS;

    store_le64(d, BUFFER);
    store_le32(d + 8, 64);
    store_le16(d + 12, DESC_WRITE);
    store_le16(b->ram + DRIVER_AREA + AVAIL_INDEX, (uint16_t)n);
}

static void ask(struct bus *b, unsigned n)
{
    offer(b, n);
    space_store(b->memory, NOTIFY, 0, 2);
}

static unsigned answered(const struct bus *b)
{
    return load_le16(b->ram + DEVICE_AREA + USED_INDEX);
}

/* ---- from one bus to the other ---- */

static void take(struct bus *b, struct bus_state *s)
{
    struct err e;

    assert_int_equal(virtio_quiesce(virtio_rng_device(b->rng), 0, &e), 0);
    pci_host_get_state(b->host, &s->host);
    piix3_get_state(b->isa, &s->isa);
    piix4_pm_get_state(b->pm, &s->pm);
    assert_int_equal(virtio_pci_get_state(b->function, &s->function, &e), 0);
}

static void put(struct bus *b, const struct bus_state *s)
{
    struct err e = {0};

    assert_int_equal(virtio_quiesce(virtio_rng_device(b->rng), 0, &e), 0);
    if (pci_host_set_state(b->host, &s->host, &e) != 0 ||
        piix3_set_state(b->isa, &s->isa, &e) != 0 || piix4_pm_set_state(b->pm, &s->pm, &e) != 0 ||
        virtio_pci_set_state(b->function, &s->function, &e) != 0)
        fail_msg("%s", e.msg);
    virtio_resume(virtio_rng_device(b->rng));
}

/* Registers with no effect of being read: all that the guest sees of the bus. */
static void check_same(struct bus *a, struct bus *b)
{
    assert_int_equal(space_load(a->ports, 0xcf8, 4), space_load(b->ports, 0xcf8, 4));
    assert_int_equal(space_load(a->ports, 0xcf9, 1), space_load(b->ports, 0xcf9, 1));
    for (unsigned slot = 0; slot <= SLOT; slot++)
        for (unsigned reg = 0; reg < PCI_CONFIG_SIZE; reg += 4)
            assert_int_equal(config_get(a, slot, reg, 4), config_get(b, slot, reg, 4));
    for (unsigned i = 0; i < 0x38; i += 4)
        assert_int_equal(space_load(a->memory, REGISTERS + i, 4),
                         space_load(b->memory, REGISTERS + i, 4));
    for (unsigned i = 0; i < 0x2000; i += 4)
        assert_int_equal(space_load(a->memory, TABLE + i, 4), space_load(b->memory, TABLE + i, 4));
    assert_memory_equal(a->inputs, b->inputs, sizeof(a->inputs));
    assert_memory_equal(a->pam, b->pam, sizeof(a->pam));
}

struct fixture {
    struct bus a, b;
    struct bus_state *s;
    uint8_t *ram;
};

static struct fixture *setup(void)
{
    struct fixture *f = calloc(1, sizeof(*f));

    f->ram = aligned_alloc(4096, RAM_SIZE);
    memset(f->ram, 0, RAM_SIZE);
    f->s = calloc(1, sizeof(*f->s));
    bus_make(&f->a, f->ram);
    bus_make(&f->b, f->ram);
    return f;
}

static void teardown(struct fixture *f)
{
    bus_free(&f->a);
    bus_free(&f->b);
    free(f->ram);
    free(f->s);
    free(f);
}

static void move(struct fixture *f)
{
    take(&f->a, f->s);
    put(&f->b, f->s);
    check_same(&f->a, &f->b);
}

/* ---- tests ---- */

static void the_bridges_move(void **state)
{
    struct fixture *f = setup();

    config_put(&f->a, 0, 0x5a, 0x33, 1);       /* PAM */
    config_put(&f->a, 1, 0x60, 0x8080050a, 4); /* routes */
    config_put(&f->a, 1, 0x69, 0xf0, 1);
    space_store(f->a.ports, 0xcf9, 2, 1);
    move(f);
    assert_int_equal(f->b.pam[1], 0x33);
    assert_int_equal(config_get(&f->b, 1, 0x60, 2), 0x050a);
    teardown(f);
}

static void a_function_moves_half_configured(void **state)
{
    struct fixture *f = setup();

    begin_setup(&f->a);
    move(f);
    end_setup(&f->b);
    ask(&f->b, 1);
    assert_int_equal(answered(&f->b), 1);
    teardown(f);
}

static void a_masked_message_moves(void **state)
{
    struct fixture *f = setup();

    begin_setup(&f->a);
    use_msix(&f->a);
    end_setup(&f->a);
    ask(&f->a, 1);
    assert_int_equal(space_load(f->a.memory, TABLE + 0x1000, 4), 2); /* pending */
    move(f);
    assert_int_equal(f->b.messages, 0);
    space_store(f->b.memory, TABLE + 16 + 12, 0, 4);
    assert_int_equal(f->b.messages, 1);
    assert_int_equal(f->b.address, 0xfee00000);
    assert_int_equal(f->b.data, 0x41);
    ask(&f->b, 2);
    assert_int_equal(f->b.messages, 2);
    assert_int_equal(answered(&f->b), 2);
    teardown(f);
}

/* The wire of INTA ends where the PCI-to-ISA bridge's state says. */
static void an_asserted_pin_moves(void **state)
{
    struct fixture *f = setup();

    begin_setup(&f->a);
    end_setup(&f->a);
    config_put(&f->a, 1, 0x60, 0x0a0a0a0b, 4);
    ask(&f->a, 1);
    assert_true(f->a.inputs[10]);
    move(f);
    assert_true(f->b.inputs[10]);
    assert_true(config_get(&f->b, SLOT, PCI_STATUS, 2) & PCI_STATUS_INTX);
    config_put(&f->b, SLOT, PCI_COMMAND,
               PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE, 2);
    assert_false(f->b.inputs[10]);
    config_put(&f->b, SLOT, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
    assert_true(f->b.inputs[10]);
    assert_int_equal(space_load(f->b.memory, REGISTERS + 0x1000, 1), 1); /* ISR */
    assert_false(f->b.inputs[10]);
    teardown(f);
}

/* In D3hot, or as no bus master, what is in the queue waits; after the move it still does. */
static void what_is_held_back_stays_so(void **state)
{
    for (unsigned is_asleep = 0; is_asleep < 2; is_asleep++) {
        struct fixture *f = setup();
        begin_setup(&f->a);
        end_setup(&f->a);
        unsigned power = capability(&f->a, PCI_CAP_PM) + 4;
        if (is_asleep)
            config_put(&f->a, SLOT, power, 3, 2);
        else
            config_put(&f->a, SLOT, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
        ask(&f->a, 1);
        move(f);
        assert_int_equal(answered(&f->b), 0);
        if (is_asleep)
            config_put(&f->b, SLOT, power, 0, 2);
        else
            config_put(&f->b, SLOT, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
        assert_int_equal(answered(&f->b), 1);
        teardown(f);
    }
}

#define FORGERY(name, what)                                                                        \
    static void name(struct bus_state *s)                                                          \
    {                                                                                              \
        what;                                                                                      \
    }
FORGERY(forge_address, s->host.address |= 1)
FORGERY(forge_reset_control, s->host.reset_control = 0xf1)
FORGERY(forge_bridge, s->host.bridge.config[2] ^= 1)
FORGERY(forge_bridge_pin, s->host.bridge.is_intx_asserted = 1)
FORGERY(forge_isa, s->isa.config[0x61] |= 0x40)
FORGERY(forge_pm_msix, s->pm.msix.count = 1)
FORGERY(forge_vendor, s->function.function.config[0] ^= 1)
FORGERY(forge_bar, s->function.function.config[PCI_BAR0 + 4] ^= 4)
FORGERY(forge_list, s->function.function.config[PCI_CAPABILITIES]++)
FORGERY(forge_pin, s->function.function.is_intx_asserted = 2)
FORGERY(forge_isr, s->function.isr = 1)
FORGERY(forge_isr_bits, (s->function.isr = 4, s->function.function.is_intx_asserted = 1))
FORGERY(forge_vectors, s->function.function.msix.count = 128)
FORGERY(forge_aligned, s->function.function.msix.vectors[1].address++)
FORGERY(forge_masked, s->function.function.msix.vectors[0].is_masked = 2)
FORGERY(forge_pending, s->function.function.msix.pending[0] |= BIT(0))
FORGERY(forge_pending_none, s->function.function.msix.pending[1] = BIT(63))
FORGERY(forge_config_vector, s->function.config_vector = 2)
FORGERY(forge_queue_vector, s->function.queue_vectors[63] = 99)
FORGERY(forge_device, s->function.device.queues[0].descriptors = RAM_SIZE)

static void forged_states_are_refused(void **state)
{
    static const struct {
        const char *says;
        void (*forge)(struct bus_state *s);
    } forgeries[] = {
        {"address", forge_address},
        {"reset_control", forge_reset_control},
        {"host bridge: config[0x02]", forge_bridge},
        {"host bridge: is_intx_asserted", forge_bridge_pin},
        {"PCI-to-ISA bridge: config[0x61]", forge_isa},
        {"power management: msix.count", forge_pm_msix},
        {"entropy: config[0x00]", forge_vendor},
        {"entropy: config[0x14]", forge_bar},
        {"entropy: config[0x34]", forge_list},
        {"is_intx_asserted", forge_pin},
        {"isr is 0x01", forge_isr},
        {"isr is 0x04", forge_isr_bits},
        {"msix.count", forge_vectors},
        {"msix.vectors[1].address", forge_aligned},
        {"msix.vectors[0].is_masked", forge_masked},
        {"msix.pending has bit 0", forge_pending},
        {"msix.pending has bit 127", forge_pending_none},
        {"the configuration's vector", forge_config_vector},
        {"the vector of queue 63", forge_queue_vector},
        {"queues[0]", forge_device},
    };
    struct fixture *f = setup();
    struct bus_state *s = malloc(sizeof(*s)), *before = malloc(sizeof(*s)),
                     *after = malloc(sizeof(*s));

    begin_setup(&f->a);
    use_msix(&f->a);
    end_setup(&f->a);
    ask(&f->a, 1);
    take(&f->a, f->s);
    take(&f->b, before);
    for (unsigned i = 0; i < ARRAY_SIZE(forgeries); i++) {
        struct err e = {0};
        *s = *f->s;
        forgeries[i].forge(s);
        /* the bridges' own are good for each of them, but where they are what was forged */
        bool is_refused = pci_host_set_state(f->b.host, &s->host, &e) != 0 ||
                          piix3_set_state(f->b.isa, &s->isa, &e) != 0 ||
                          piix4_pm_set_state(f->b.pm, &s->pm, &e) != 0 ||
                          virtio_pci_set_state(f->b.function, &s->function, &e) != 0;
        assert_true(is_refused);
        if (strstr(e.msg, forgeries[i].says) == NULL)
            fail_msg("'%s' should say '%s'", e.msg, forgeries[i].says);
        take(&f->b, after);
        assert_memory_equal(&before->function, &after->function, sizeof(before->function));
    }
    put(&f->b, f->s);
    check_same(&f->a, &f->b);
    free(s);
    free(before);
    free(after);
    teardown(f);
}

/* There is no other power state than D0 and D3hot. */
static void no_state_is_in_d1(void **state)
{
    struct fixture *f = setup();
    struct err e;

    place_bars(&f->a);
    take(&f->a, f->s);
    assert_int_equal(virtio_quiesce(virtio_rng_device(f->b.rng), 0, &e), 0);
    f->s->function.function.config[capability(&f->a, PCI_CAP_PM) + 4] |= 1;
    assert_int_not_equal(virtio_pci_set_state(f->b.function, &f->s->function, &e), 0);
    assert_non_null(strstr(e.msg, "D1"));
    teardown(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_bridges_move),
        cmocka_unit_test(a_function_moves_half_configured),
        cmocka_unit_test(a_masked_message_moves),
        cmocka_unit_test(an_asserted_pin_moves),
        cmocka_unit_test(what_is_held_back_stays_so),
        cmocka_unit_test(forged_states_are_refused),
        cmocka_unit_test(no_state_is_in_d1),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
