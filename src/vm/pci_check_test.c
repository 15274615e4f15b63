/*
 * pci_check_test.c - every PCI function of a full machine, held against the specifications
 *
 * As firmware and operating systems do it: through the ports of configuration mechanism 1, through
 * ECAM, and through the BARs where they put them.
 *
 * Spec: PCI Local Bus Specification 3.0, chapter 6; PCI Bus Power Management Interface 1.2, 3.2;
 * PCI Firmware Specification 3.2, 4.1; VIRTIO 1.2, 4.1.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "backend/char/chardev.h"
#include "base/bits.h"
#include "dev/pci/pci_host.h"
#include "dev/virtio/virtio_pci.h"
#include "mem/space.h"
#include "os/loop.h"
#include "vm/machine.h"

#define DEVICES 9 /* virtio functions of the machine below */
#define NOTHING 0xffffffffu

/* where the test puts BARs: 64-bit ones above 4 GiB, others below */
#define PLACE_32 0xc0000000u
#define PLACE_64 UINT64_C(0x900000000)

/* BAR and offset of a virtio structure */
struct area {
    unsigned bar, offset, size;
};

struct machine {
    struct vm *vm;
    struct vm_config config;
    struct chardev *port;
    char dir[32], rom[48], vsock[48];
    struct space *ports, *memory;
    uint8_t found[PCI_DEVFN_COUNT];
    unsigned count;
};

/* ---- the machine ---- */

static int setup(void **state)
{
    static struct machine m;
    static uint8_t rom[0x10000];
    static struct vm_disk disks[] = {{.path = "/proc/self/exe", .is_read_only = true},
                                     {.path = "/proc/self/exe", .is_read_only = true}};
    static struct vm_share shares[] = {{.path = "/tmp", .tag = "a", .is_read_only = true},
                                       {.path = "/tmp", .tag = "b"}};
    static struct vm_port port = {.is_console = true};
    struct err e = {0};

    memset(&m, 0, sizeof(m));
    strcpy(m.dir, "/tmp/doppel-pci-XXXXXX");
    assert_non_null(mkdtemp(m.dir));
    snprintf(m.rom, sizeof(m.rom), "%s/rom", m.dir);
    snprintf(m.vsock, sizeof(m.vsock), "%s/vsock", m.dir);
    FILE *file = fopen(m.rom, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(rom, 1, sizeof(rom), file), sizeof(rom));
    fclose(file);
    m.config = (struct vm_config){
        .engine = "interp",
        .cpu_count = 4,
        .cpu_model = "host",
        .memory_bytes = 8 << 20,
        .firmware = m.rom,
        .disks = disks,
        .disk_count = ARRAY_SIZE(disks),
        .shares = shares,
        .share_count = ARRAY_SIZE(shares),
        .net = {.kind = VM_NET_USER, .mtu = 1500},
        .balloon = {.is_there = true, .deflates_on_oom = true, .reports_free_pages = true},
        .vsock = {.cid = 5, .path = m.vsock},
        .ports = &port,
        .port_count = 1,
        .has_debug_exit = true,
    };
    assert_int_equal(loop_create(&m.config.loop, &e), 0);
    if (chardev_create_none(m.config.loop, &m.port, &e) != 0)
        fail_msg("%s", e.msg);
    port.chardev = m.port;
    if (vm_create(&m.config, &m.vm, &e) != 0)
        fail_msg("%s", e.msg);
    m.ports = m.vm->board.ports;
    m.memory = m.vm->board.memory;
    for (unsigned devfn = 0; devfn < PCI_DEVFN_COUNT; devfn++)
        if (space_load(m.memory, MAP_ECAM_ADDR + (devfn << 12), 2) != 0xffff)
            m.found[m.count++] = (uint8_t)devfn;
    *state = &m;
    return 0;
}

static int teardown(void **state)
{
    struct machine *m = *state;

    vm_destroy(m->vm);
    chardev_destroy(m->port);
    loop_destroy(m->config.loop);
    unlink(m->rom);
    unlink(m->vsock);
    assert_int_equal(rmdir(m->dir), 0);
    return 0;
}

/* ---- accesses ---- */

static void select_register(struct machine *m, unsigned devfn, unsigned reg)
{
    space_store(m->ports, 0xcf8, 0x80000000u | devfn << 8 | (reg & 0xfc), 4);
}

static uint32_t get(struct machine *m, unsigned devfn, unsigned reg, unsigned size)
{
    select_register(m, devfn, reg);
    return (uint32_t)space_load(m->ports, 0xcfc + (reg & 3), size);
}

static void put(struct machine *m, unsigned devfn, unsigned reg, uint32_t value, unsigned size)
{
    select_register(m, devfn, reg);
    space_store(m->ports, 0xcfc + (reg & 3), value, size);
}

static uint64_t ecam(unsigned devfn, unsigned reg)
{
    return MAP_ECAM_ADDR + (devfn << 12) + reg;
}

/* Offset of the first capability with this ID from `at` on (0: from the list's head); 0: none. */
static unsigned capability(struct machine *m, unsigned devfn, uint8_t id, unsigned at)
{
    at = at == 0 ? get(m, devfn, PCI_CAPABILITIES, 1) : get(m, devfn, at + 1, 1);
    while (at != 0 && get(m, devfn, at, 1) != id)
        at = get(m, devfn, at + 1, 1);
    return at;
}

static bool is_virtio(struct machine *m, unsigned devfn)
{
    return get(m, devfn, PCI_VENDOR_ID, 2) == 0x1af4;
}

#define FOR_EACH(m, devfn)                                                                         \
    for (unsigned i_ = 0, devfn; i_ < (m)->count && (devfn = (m)->found[i_], true); i_++)

/* Size of a BAR that is there, found as software does; the register is left as it was. */
static uint64_t bar_size(struct machine *m, unsigned devfn, unsigned bar)
{
    unsigned reg = PCI_BAR0 + 4 * bar;
    uint32_t low = get(m, devfn, reg, 4), high = 0;
    uint64_t mask;

    put(m, devfn, reg, NOTHING, 4);
    mask = get(m, devfn, reg, 4);
    put(m, devfn, reg, low, 4);
    if (low & 1)
        return -(mask & 0xfffffffc) & 0xffffffff;
    if (!(low & 4))
        return -(mask & 0xfffffff0) & 0xffffffff;
    high = get(m, devfn, reg + 4, 4);
    put(m, devfn, reg + 4, NOTHING, 4);
    mask |= (uint64_t)get(m, devfn, reg + 4, 4) << 32;
    put(m, devfn, reg + 4, high, 4);
    return -(mask & ~UINT64_C(15));
}

/* A place for the BAR that no other has; returns its address. */
static uint64_t place_bar(struct machine *m, unsigned devfn, unsigned bar)
{
    unsigned reg = PCI_BAR0 + 4 * bar;
    bool is_64bit = get(m, devfn, reg, 4) & 4;
    uint64_t base = is_64bit ? PLACE_64 : PLACE_32;
    uint64_t addr = base + devfn * 0x100000u + bar * 0x10000u;

    assert_int_equal(get(m, devfn, reg, 4) & 1, 0);
    put(m, devfn, reg, (uint32_t)addr, 4);
    if (is_64bit)
        put(m, devfn, reg + 4, (uint32_t)(addr >> 32), 4);
    return addr;
}

/* ---- headers ---- */

static void what_is_not_there_reads_as_ones(void **state)
{
    struct machine *m = *state;
    unsigned virtio = 0;

    FOR_EACH(m, devfn)
    {
        virtio += is_virtio(m, devfn);
    }
    assert_int_equal(virtio, DEVICES);
    assert_int_equal(m->count, DEVICES + 3);
    for (unsigned devfn = 0; devfn < PCI_DEVFN_COUNT; devfn++) {
        if (memchr(m->found, (int)devfn, m->count) != NULL)
            continue;
        put(m, devfn, PCI_COMMAND, 7, 2);
        for (unsigned reg = 0; reg < 64; reg += 4) {
            assert_int_equal(get(m, devfn, reg, 4), NOTHING);
            assert_int_equal(get(m, devfn, reg + 2, 2), 0xffff);
            assert_int_equal(get(m, devfn, reg + 3, 1), 0xff);
            assert_int_equal(space_load(m->memory, ecam(devfn, reg), 4), NOTHING);
        }
    }
    /* another bus */
    space_store(m->ports, 0xcf8, 0x80010000, 4);
    assert_int_equal(space_load(m->ports, 0xcfc, 4), NOTHING);
}

static void headers(void **state)
{
    static const uint8_t zero[] = {0x28, 0x29, 0x2a, 0x2b, 0x30, 0x31, 0x32, 0x33, 0x35,
                                   0x36, 0x37, 0x38, 0x39, 0x3a, 0x3b, 0x3e, 0x3f, 0x0f};
    static const uint8_t fixed[] = {0x00, 0x04 + 2, 0x08, 0x2c, 0x34, 0x0e, 0x3d};
    struct machine *m = *state;

    FOR_EACH(m, devfn)
    {
        bool is_first = (devfn & 7) == 0, has_others = false;
        uint8_t type = (uint8_t)get(m, devfn, PCI_HEADER_TYPE, 1);
        assert_int_equal(type & 0x7f, 0);
        for (unsigned i = 1; i < 8; i++)
            has_others |= memchr(m->found, (int)(devfn + i), m->count) != NULL;
        if (is_first)
            assert_int_equal(type >> 7, has_others);
        else /* nobody looks for it without function 0 */
            assert_int_not_equal(get(m, devfn & ~7u, PCI_VENDOR_ID, 2), 0xffff);
        assert_in_range(get(m, devfn, PCI_INTERRUPT_PIN, 1), 0, 4);
        for (unsigned i = 0; i < ARRAY_SIZE(zero); i++) {
            put(m, devfn, zero[i], 0xff, 1);
            assert_int_equal(get(m, devfn, zero[i], 1), 0);
        }
        for (unsigned i = 0; i < ARRAY_SIZE(fixed); i++) {
            uint32_t was = get(m, devfn, fixed[i] & ~3u, 4);
            unsigned size = fixed[i] == 0x0e || fixed[i] == 0x3d || fixed[i] == 0x34 ? 1 : 2;
            put(m, devfn, fixed[i], 0x00000000, size);
            assert_int_equal(get(m, devfn, fixed[i] & ~3u, 4), was);
            put(m, devfn, fixed[i], 0xffffffff, size);
            assert_int_equal(get(m, devfn, fixed[i] & ~3u, 4), was);
        }
        if (get(m, devfn, PCI_INTERRUPT_PIN, 1) != 0) {
            put(m, devfn, PCI_INTERRUPT_LINE, 0xa5, 1);
            assert_int_equal(get(m, devfn, PCI_INTERRUPT_LINE, 1), 0xa5);
        }
    }
}

/* Both ways to configure see the same, in every size. */
static void ways_agree(void **state)
{
    struct machine *m = *state;

    FOR_EACH(m, devfn)
    {
        for (unsigned reg = 0; reg < PCI_CONFIG_SIZE; reg += 4) {
            uint32_t all = get(m, devfn, reg, 4);
            assert_int_equal(space_load(m->memory, ecam(devfn, reg), 4), all);
            for (unsigned i = 0; i < 4; i++) {
                assert_int_equal(get(m, devfn, reg + i, 1), all >> 8 * i & 0xff);
                assert_int_equal(space_load(m->memory, ecam(devfn, reg + i), 1),
                                 all >> 8 * i & 0xff);
            }
            for (unsigned i = 0; i < 4; i += 2) {
                assert_int_equal(get(m, devfn, reg + i, 2), all >> 8 * i & 0xffff);
                assert_int_equal(space_load(m->memory, ecam(devfn, reg + i), 2),
                                 all >> 8 * i & 0xffff);
            }
        }
        /* no extended space */
        assert_int_equal(space_load(m->memory, ecam(devfn, 0x100), 4), NOTHING);
        /* writes too, a byte at a time */
        uint16_t command = (uint16_t)get(m, devfn, PCI_COMMAND, 2);
        space_store(m->memory, ecam(devfn, PCI_COMMAND + 1), (command >> 8) ^ 1, 1);
        uint16_t got = (uint16_t)get(m, devfn, PCI_COMMAND, 2);
        assert_true(got == command || got == (command ^ PCI_COMMAND_SERR));
        assert_int_equal(space_load(m->memory, ecam(devfn, PCI_COMMAND), 2), got);
        put(m, devfn, PCI_COMMAND, command, 2);
        assert_int_equal(space_load(m->memory, ecam(devfn, PCI_COMMAND), 2), command);
    }
}

/* Which of its BARs a function has: bits of the command register that mean something for it. */
static uint16_t decodes(struct machine *m, unsigned devfn)
{
    uint16_t bits = 0;

    for (unsigned bar = 0; bar < PCI_BAR_COUNT; bar++) {
        uint32_t was = get(m, devfn, PCI_BAR0 + 4 * bar, 4);
        put(m, devfn, PCI_BAR0 + 4 * bar, NOTHING, 4);
        if (get(m, devfn, PCI_BAR0 + 4 * bar, 4) != 0)
            bits |= was & 1 ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
        put(m, devfn, PCI_BAR0 + 4 * bar, was, 4);
        bar += (was & 7) == 4;
    }
    return bits;
}

/* Reserved bits are 0; what a function has no use for cannot be switched (6.2.2, 6.2.3). */
static void command_and_status(void **state)
{
    const uint16_t known = PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | 0x0008 |
                           PCI_COMMAND_PARITY | PCI_COMMAND_SERR | PCI_COMMAND_INTX_DISABLE;
    struct machine *m = *state;

    FOR_EACH(m, devfn)
    {
        uint16_t was = (uint16_t)get(m, devfn, PCI_COMMAND, 2), ones, zeroes;
        uint16_t status = (uint16_t)get(m, devfn, PCI_STATUS, 2);
        put(m, devfn, PCI_COMMAND, 0xffff, 2);
        ones = (uint16_t)get(m, devfn, PCI_COMMAND, 2);
        put(m, devfn, PCI_COMMAND, 0, 2);
        zeroes = (uint16_t)get(m, devfn, PCI_COMMAND, 2);
        put(m, devfn, PCI_COMMAND, was, 2);
        assert_int_equal(get(m, devfn, PCI_COMMAND, 2), was);
        assert_int_equal(ones & ~known, 0);
        if (is_virtio(m, devfn)) {
            assert_int_equal(zeroes, 0);
            assert_int_equal(ones & (PCI_COMMAND_IO | PCI_COMMAND_MEMORY), decodes(m, devfn));
            assert_int_equal(ones & ~3u, PCI_COMMAND_MASTER | PCI_COMMAND_PARITY |
                                             PCI_COMMAND_SERR | PCI_COMMAND_INTX_DISABLE);
            assert_int_equal(was, 0);
        }
        /* no error has been seen, and writing ones clears no more than errors */
        assert_int_equal(status & 0xf907, 0);
        put(m, devfn, PCI_STATUS, 0xffff, 2);
        assert_int_equal(get(m, devfn, PCI_STATUS, 2), status);
        assert_int_equal((status & PCI_STATUS_CAPABILITIES) != 0,
                         get(m, devfn, PCI_CAPABILITIES, 1) != 0);
    }
}

/* Also with decoding on; what the function had before it has again (6.2.5.1). */
static void bars_are_sized(void **state)
{
    struct machine *m = *state;

    FOR_EACH(m, devfn)
    {
        for (unsigned bar = 0; bar < PCI_BAR_COUNT; bar++) {
            unsigned reg = PCI_BAR0 + 4 * bar;
            uint32_t low = get(m, devfn, reg, 4);
            put(m, devfn, reg, NOTHING, 4);
            bool is_there = get(m, devfn, reg, 4) != 0;
            put(m, devfn, reg, low, 4);
            assert_int_equal(get(m, devfn, reg, 4), low);
            if (!is_there)
                continue;
            assert_true(low == 0 || low == 4); /* 32 or 64 bits, not prefetchable, nowhere */
            uint64_t size = bar_size(m, devfn, bar);
            assert_true(is_pow2(size) && size >= 4096 && size <= 1 << 20);
            uint64_t addr = place_bar(m, devfn, bar);
            assert_int_equal(space_load(m->memory, addr, 4), NOTHING);
            put(m, devfn, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
            uint64_t there = space_load(m->memory, addr + (bar == 4 ? 0x12 : 12), 2);
            assert_int_not_equal(there, 0xffff);
            assert_true(bar_size(m, devfn, bar) == size);
            assert_int_equal(space_load(m->memory, addr + (bar == 4 ? 0x12 : 12), 2), there);
            /* writing bytes moves it as well: 1 MiB up */
            put(m, devfn, reg + 2, (get(m, devfn, reg + 2, 1) ^ 0x80), 1);
            assert_int_equal(space_load(m->memory, addr, 4), NOTHING);
            addr = (addr & ~UINT64_C(0xff0000)) | ((addr & 0xff0000) ^ 0x800000);
            assert_int_equal(space_load(m->memory, addr + (bar == 4 ? 0x12 : 12), 2), there);
            put(m, devfn, PCI_COMMAND, 0, 2);
            assert_int_equal(space_load(m->memory, addr, 4), NOTHING);
            bar += (low & 4) != 0;
        }
    }
}

/* ---- capabilities ---- */

static unsigned capability_size(struct machine *m, unsigned devfn, unsigned at)
{
    switch (get(m, devfn, at, 1)) {
    case PCI_CAP_PM:
        return 8;
    case PCI_CAP_MSIX:
        return 12;
    case PCI_CAP_VENDOR:
        return get(m, devfn, at + 2, 1);
    default:
        fail_msg("%02x: an unknown capability at %#x", devfn, at);
        return 0;
    }
}

static void capabilities_are_a_list(void **state)
{
    struct machine *m = *state;

    FOR_EACH(m, devfn)
    {
        uint8_t used[PCI_CONFIG_SIZE] = {0};
        unsigned next;
        for (unsigned at = get(m, devfn, PCI_CAPABILITIES, 1); at != 0; at = next) {
            assert_true(at >= 0x40 && at % 4 == 0);
            unsigned size = capability_size(m, devfn, at);
            assert_true(size >= 4 && at + size <= PCI_CONFIG_SIZE);
            for (unsigned i = 0; i < size; i++)
                assert_int_equal(used[at + i]++, 0); /* neither a loop nor an overlap */
            next = get(m, devfn, at + 1, 1);
            uint32_t head = get(m, devfn, at, 2);
            put(m, devfn, at, ~head, 2);
            assert_int_equal(get(m, devfn, at, 2), head);
        }
        if (is_virtio(m, devfn)) {
            assert_int_not_equal(capability(m, devfn, PCI_CAP_PM, 0), 0);
            assert_int_not_equal(capability(m, devfn, PCI_CAP_MSIX, 0), 0);
        }
    }
}

/* D0 and D3hot are there; the others are not entered, and nothing is lost on the way (3.2.4). */
static void power_states(void **state)
{
    struct machine *m = *state;

    FOR_EACH(m, devfn)
    {
        unsigned pm = capability(m, devfn, PCI_CAP_PM, 0), control = pm + 4;
        if (pm == 0)
            continue;
        assert_int_equal(get(m, devfn, pm + 2, 2), 3);  /* version 1.2; no PME, no D1, no D2 */
        assert_int_equal(get(m, devfn, control, 4), 8); /* D0, No_Soft_Reset */
        put(m, devfn, control, 0xffffff00, 4);
        assert_int_equal(get(m, devfn, control, 4), 8);
        uint64_t addr = place_bar(m, devfn, 4);
        put(m, devfn, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
        space_store(m->memory, addr + 0x16, 1, 2); /* queue_select: is it kept? */
        for (unsigned absent = 1; absent < 3; absent++) {
            put(m, devfn, control, absent, 1);
            assert_int_equal(get(m, devfn, control, 2), 8);
            assert_int_equal(space_load(m->memory, addr + 0x16, 2), 1);
        }
        put(m, devfn, control, 3, 2);
        assert_int_equal(get(m, devfn, control, 2), 0xb);
        assert_int_equal(space_load(m->memory, addr + 0x16, 2), 0xffff);
        space_store(m->memory, addr + 0x16, 0, 2);
        put(m, devfn, control, 1, 2); /* from there neither */
        assert_int_equal(get(m, devfn, control, 2), 0xb);
        assert_int_equal(get(m, devfn, PCI_COMMAND, 2), 6);
        put(m, devfn, control, 0, 2);
        assert_int_equal(get(m, devfn, PCI_COMMAND, 2), 6);
        assert_int_equal(space_load(m->memory, addr + 0x16, 2), 1);
        space_store(m->memory, addr + 0x16, 0, 2);
        put(m, devfn, PCI_COMMAND, 0, 2);
    }
}

/* Table and pending bits lie within the BAR, apart; what can be written of them (6.8.2). */
static void vectors(void **state)
{
    struct machine *m = *state;

    FOR_EACH(m, devfn)
    {
        unsigned cap = capability(m, devfn, PCI_CAP_MSIX, 0);
        if (cap == 0)
            continue;
        unsigned control = get(m, devfn, cap + 2, 2), count = (control & 0x7ff) + 1;
        uint32_t table = get(m, devfn, cap + 4, 4), pba = get(m, devfn, cap + 8, 4);
        assert_int_equal(control & 0xf800, 0); /* off, not masked; reserved bits */
        put(m, devfn, cap + 2, 0xffff, 2);
        assert_int_equal(get(m, devfn, cap + 2, 2), 0xc000 | control);
        put(m, devfn, cap + 2, 0, 2);
        put(m, devfn, cap + 4, ~table, 4);
        put(m, devfn, cap + 8, ~pba, 4);
        assert_int_equal(get(m, devfn, cap + 4, 4), table);
        assert_int_equal(get(m, devfn, cap + 8, 4), pba);

        assert_int_equal(table & 7, pba & 7);
        unsigned bar = table & 7;
        uint64_t size = bar_size(m, devfn, bar);
        table &= ~7u;
        pba &= ~7u;
        assert_true(range_fits(table, count * 16, size));
        assert_true(range_fits(pba, (count + 63) / 64 * 8, size));
        assert_false(ranges_overlap(table / 4096, (count * 16 + 4095) / 4096, pba / 4096, 1));

        uint64_t addr = place_bar(m, devfn, bar);
        put(m, devfn, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
        for (unsigned i = 0; i < count; i++) {
            uint64_t entry = addr + table + 16 * i;
            assert_int_equal(space_load(m->memory, entry + 12, 4), 1); /* masked at reset */
            space_store(m->memory, entry, UINT64_C(0x12345678fee01003), 8);
            assert_true(space_load(m->memory, entry, 8) == UINT64_C(0x12345678fee01000));
            space_store(m->memory, entry + 8, 0x5a5a, 4);
            assert_int_equal(space_load(m->memory, entry + 8, 4), 0x5a5a);
            space_store(m->memory, entry + 12, 0xfffffffe, 4);
            assert_int_equal(space_load(m->memory, entry + 12, 4), 0);
            space_store(m->memory, entry + 12, 1, 4);
        }
        space_store(m->memory, addr + pba, NOTHING, 4);
        assert_int_equal(space_load(m->memory, addr + pba, 4), 0);
        put(m, devfn, PCI_COMMAND, 0, 2);
    }
}

/* ---- virtio ---- */

/* The structures, by type; false when there is none of that type. */
static bool find_area(struct machine *m, unsigned devfn, unsigned type, struct area *out,
                      unsigned *at)
{
    for (*at = capability(m, devfn, PCI_CAP_VENDOR, 0); *at != 0;
         *at = capability(m, devfn, PCI_CAP_VENDOR, *at)) {
        if (get(m, devfn, *at + 3, 1) != type)
            continue;
        *out = (struct area){get(m, devfn, *at + 4, 1), get(m, devfn, *at + 8, 4),
                             get(m, devfn, *at + 12, 4)};
        return true;
    }
    return false;
}

#define AREAS 5 /* types 1 to 4, by type */

static void check_areas(struct machine *m, unsigned devfn, struct area areas[AREAS])
{
    static const unsigned alignment[AREAS] = {0, 4, 2, 1, 4};
    unsigned at;

    for (unsigned type = 1; type < AREAS; type++) {
        struct area *a = &areas[type];
        /* the entropy device has no configuration of its own */
        if (!find_area(m, devfn, type, a, &at)) {
            assert_int_equal(type, 4);
            assert_int_equal(get(m, devfn, PCI_DEVICE_ID, 2), 0x1044);
            continue;
        }
        assert_true(get(m, devfn, at + 2, 1) >= (type == 2 ? 20 : 16));
        assert_true(a->bar < PCI_BAR_COUNT && a->offset % alignment[type] == 0);
        assert_true(a->size != 0 && range_fits(a->offset, a->size, bar_size(m, devfn, a->bar)));
        for (unsigned i = 0; i < 16; i += 4) { /* read-only for the driver (4.1.4) */
            uint32_t was = get(m, devfn, at + i, 4);
            put(m, devfn, at + i, ~was, 4);
            assert_int_equal(get(m, devfn, at + i, 4), was);
        }
        for (unsigned other = 1; other < type; other++)
            assert_false(
                areas[other].bar == a->bar &&
                ranges_overlap(areas[other].offset, areas[other].size, a->offset, a->size));
    }
    assert_true(areas[1].size >= 0x38);
}

/* What the driver finds before it has done anything, and what it cannot do (4.1.4.3). */
static void check_common(struct machine *m, unsigned devfn, uint64_t common, struct area *notify,
                         unsigned multiplier)
{
    unsigned count = (unsigned)space_load(m->memory, common + 0x12, 2);
    unsigned vectors = (get(m, devfn, capability(m, devfn, PCI_CAP_MSIX, 0) + 2, 2) & 0x7ff) + 1;

    assert_int_equal(space_load(m->memory, common + 0x14, 1), 0);
    assert_true(count >= 1 && count < 64 && vectors > count);
    space_store(m->memory, common + 0x00, 1, 4);
    assert_int_equal(space_load(m->memory, common + 0x04, 4) & 1, 1); /* VERSION_1 */
    space_store(m->memory, common + 0x00, 2, 4);
    assert_int_equal(space_load(m->memory, common + 0x04, 4), 0);
    assert_int_equal(space_load(m->memory, common + 0x10, 2), 0xffff);
    space_store(m->memory, common + 0x10, vectors, 2); /* there is none of that number */
    assert_int_equal(space_load(m->memory, common + 0x10, 2), 0xffff);
    space_store(m->memory, common + 0x10, vectors - 1, 2);
    assert_int_equal(space_load(m->memory, common + 0x10, 2), vectors - 1);
    for (unsigned q = 0; q < count; q++) {
        space_store(m->memory, common + 0x16, q, 2);
        unsigned size = (unsigned)space_load(m->memory, common + 0x18, 2);
        unsigned off = (unsigned)space_load(m->memory, common + 0x1e, 2);
        assert_true(is_pow2(size) && size <= 32768);
        assert_int_equal(space_load(m->memory, common + 0x1a, 2), 0xffff);
        assert_int_equal(space_load(m->memory, common + 0x1c, 2), 0);
        assert_true(off * multiplier + 2 <= notify->size);
        space_store(m->memory, common + 0x18, size * 2, 2); /* more than it has */
        assert_int_equal(space_load(m->memory, common + 0x18, 2), size);
        space_store(m->memory, common + 0x1c, 1, 2); /* not without FEATURES_OK */
        assert_int_equal(space_load(m->memory, common + 0x1c, 2), 0);
        space_store(m->memory, common + 0x24, 0x11223344, 4);
        assert_int_equal(space_load(m->memory, common + 0x20, 4), 0);
        assert_int_equal(space_load(m->memory, common + 0x24, 4), 0x11223344);
        assert_int_equal(space_load(m->memory, common + 0x26, 2), 0x1122);
    }
    space_store(m->memory, common + 0x16, count, 2);
    assert_int_equal(space_load(m->memory, common + 0x18, 2), 0);
    space_store(m->memory, common + 0x14, 1, 1);
    assert_int_equal(space_load(m->memory, common + 0x14, 1), 1);
    space_store(m->memory, common + 0x14, 0, 1);
    assert_int_equal(space_load(m->memory, common + 0x14, 1), 0);
    assert_int_equal(space_load(m->memory, common + 0x10, 2), 0xffff);
    space_store(m->memory, common + 0x16, 0, 2);
    assert_int_equal(space_load(m->memory, common + 0x24, 4), 0);
}

/* The window in configuration space shows what the BAR does, wherever that is (4.1.4.9). */
static void check_window(struct machine *m, unsigned devfn, const struct area *common)
{
    struct area none;
    unsigned at;

    assert_true(find_area(m, devfn, 5, &none, &at));
    assert_true(get(m, devfn, at + 2, 1) >= 20);
    put(m, devfn, at + 4, common->bar, 1);
    put(m, devfn, at + 8, common->offset + 0x12, 4);
    put(m, devfn, at + 12, 2, 4);
    assert_int_equal(get(m, devfn, at + 4, 1), common->bar);
    unsigned count = get(m, devfn, at + 16, 2);
    assert_true(count >= 1 && count < 64);
    put(m, devfn, at + 8, common->offset + 0x16, 4);
    put(m, devfn, at + 16, count - 1, 2);
    assert_int_equal(get(m, devfn, at + 16, 2), count - 1);
    /* no BAR of that number, and a place outside: nothing happens */
    put(m, devfn, at + 8, NOTHING - 1, 4);
    put(m, devfn, at + 16, 0, 2);
    put(m, devfn, at + 4, 6, 1);
    put(m, devfn, at + 8, common->offset + 0x16, 4);
    put(m, devfn, at + 16, 0, 2);
    put(m, devfn, at + 4, common->bar, 1);
    assert_int_equal(get(m, devfn, at + 16, 2), count - 1);
    put(m, devfn, at + 16, 0, 2);
}

static void virtio_structures(void **state)
{
    struct machine *m = *state;

    FOR_EACH(m, devfn)
    {
        struct area areas[AREAS] = {0};
        unsigned at;
        if (!is_virtio(m, devfn))
            continue;
        assert_in_range(get(m, devfn, PCI_DEVICE_ID, 2), 0x1041, 0x107f);
        assert_true(get(m, devfn, PCI_REVISION, 1) >= 1);
        assert_true(get(m, devfn, PCI_SUBSYSTEM_ID, 2) >= 0x40);
        check_areas(m, devfn, areas);
        assert_true(find_area(m, devfn, 2, &areas[2], &at));
        unsigned multiplier = get(m, devfn, at + 16, 4);
        assert_true(multiplier == 0 || (is_pow2(multiplier) && multiplier % 2 == 0));
        check_window(m, devfn, &areas[1]); /* with decoding off */
        uint64_t base = place_bar(m, devfn, areas[1].bar);
        put(m, devfn, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
        check_common(m, devfn, base + areas[1].offset, &areas[2], multiplier);
        put(m, devfn, PCI_COMMAND, 0, 2);
    }
}

#define RING_DESCRIPTORS 0x100000u
#define RING_DRIVER 0x101000u
#define RING_DEVICE 0x102000u
#define RING_BUFFER 0x103000u

static unsigned used(struct machine *m)
{
    return (unsigned)space_load(m->memory, RING_DEVICE + 2, 2);
}

/* The buffer once more, for the entropy device to fill. */
static void offer(struct machine *m, uint64_t base, const struct area *notify)
{
    uint16_t index = (uint16_t)space_load(m->memory, RING_DRIVER + 2, 2);

    space_store(m->memory, RING_DRIVER + 4 + 2 * (index % 8), 0, 2);
    space_store(m->memory, RING_DRIVER + 2, index + 1u, 2);
    space_store(m->memory, base + notify->offset, 0, 2);
}

/*
 * A function that is no bus master, or not in D0, leaves memory alone; what waited is done when it
 * may. PCI 3.0, 6.2.2; PM 1.2, 5.4.1.
 */
static void memory_is_for_bus_masters(void **state)
{
    struct machine *m = *state;
    unsigned devfn = PCI_DEVFN(MAP_RNG_SLOT, 0), at;
    unsigned control = capability(m, devfn, PCI_CAP_PM, 0) + 4;
    struct area common, notify;

    assert_true(find_area(m, devfn, 1, &common, &at) && find_area(m, devfn, 2, &notify, &at));
    uint64_t base = place_bar(m, devfn, common.bar), regs = base + common.offset;
    put(m, devfn, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
    space_store(m->memory, regs + 0x14, 3, 1);
    space_store(m->memory, regs + 0x08, 1, 4);
    space_store(m->memory, regs + 0x0c, 1, 4);
    space_store(m->memory, regs + 0x14, 11, 1);
    space_store(m->memory, regs + 0x18, 8, 2);
    space_store(m->memory, regs + 0x20, RING_DESCRIPTORS, 4);
    space_store(m->memory, regs + 0x28, RING_DRIVER, 4);
    space_store(m->memory, regs + 0x30, RING_DEVICE, 4);
    space_store(m->memory, regs + 0x1c, 1, 2);
    space_store(m->memory, RING_DESCRIPTORS, RING_BUFFER, 8);
    space_store(m->memory, RING_DESCRIPTORS + 8, 16, 4);
    space_store(m->memory, RING_DESCRIPTORS + 12, 2, 2);
    space_store(m->memory, regs + 0x14, 15, 1);
    assert_int_equal(space_load(m->memory, regs + 0x14, 1), 15);

    offer(m, base, &notify);
    assert_int_equal(used(m), 0);
    assert_int_equal(get(m, devfn, PCI_STATUS, 2) & PCI_STATUS_INTX, 0);
    put(m, devfn, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
    assert_int_equal(used(m), 1);
    assert_int_equal(get(m, devfn, PCI_STATUS, 2) & PCI_STATUS_INTX, PCI_STATUS_INTX);
    offer(m, base, &notify);
    assert_int_equal(used(m), 2);
    put(m, devfn, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
    offer(m, base, &notify);
    assert_int_equal(used(m), 2);
    put(m, devfn, control, 3, 1);
    put(m, devfn, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
    assert_int_equal(used(m), 2);
    put(m, devfn, control, 0, 1);
    assert_int_equal(used(m), 3);
    /* a reset of the machine takes it away again */
    virtio_pci_reset(m->vm->board.functions[MAP_RNG_SLOT]);
    assert_int_equal(get(m, devfn, PCI_COMMAND, 2), 0);
    assert_int_equal(space_load(m->memory, base, 4), NOTHING);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_is_not_there_reads_as_ones, setup, teardown),
        cmocka_unit_test_setup_teardown(headers, setup, teardown),
        cmocka_unit_test_setup_teardown(ways_agree, setup, teardown),
        cmocka_unit_test_setup_teardown(command_and_status, setup, teardown),
        cmocka_unit_test_setup_teardown(bars_are_sized, setup, teardown),
        cmocka_unit_test_setup_teardown(capabilities_are_a_list, setup, teardown),
        cmocka_unit_test_setup_teardown(power_states, setup, teardown),
        cmocka_unit_test_setup_teardown(vectors, setup, teardown),
        cmocka_unit_test_setup_teardown(virtio_structures, setup, teardown),
        cmocka_unit_test_setup_teardown(memory_is_for_bus_masters, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
