/*
 * board.c - the list of what is on the machine, and the wires between
 *
 * A PC of the 440FX kind with IOAPIC, HPET and ACPI. Interrupt n of the ISA bus ends at input n
 * of the 8259 pair and of the IOAPIC, but the timer's at IOAPIC input 2; the PCI bus's wires end
 * at the PCI-to-ISA bridge, which routes them to the 8259s, and at IOAPIC inputs 16 to 19.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dev/irqchip/apic_bus.h"
#include "dev/irqchip/i8259.h"
#include "dev/irqchip/ioapic.h"
#include "dev/irqchip/lapic.h"
#include "dev/pci/pci_host.h"
#include "dev/platform/acpi_pm.h"
#include "dev/platform/debug_exit.h"
#include "dev/platform/debug_port.h"
#include "dev/platform/ferr.h"
#include "dev/platform/fw_cfg.h"
#include "dev/platform/i8042.h"
#include "dev/platform/kvmclock.h"
#include "dev/platform/steal_time.h"
#include "dev/platform/pflash.h"
#include "dev/platform/test_device.h"
#include "dev/serial/uart16550.h"
#include "dev/timer/hpet.h"
#include "dev/timer/i8254.h"
#include "dev/timer/mc146818.h"
#include "engine/engine.h"
#include "mem/space.h"
#include "os/run_delay.h"
#include "os/vclock.h"
#include "vm/acpi.h"
#include "vm/board_internal.h"
#include "vm/firmware.h"
#include "vm/machine.h"
#include "vm/smbios.h"

_Static_assert(MAP_FPU_PORT == FERR_PORT, "the DSDT says where the coprocessor's port is");
_Static_assert(MAP_HPET_ADDR == HPET_DEFAULT_BASE, "the DSDT says where the HPET is");
_Static_assert(MAP_COM1_PORT == UART16550_COM1_PORT, "the DSDT says where COM1 is");
_Static_assert(MAP_PM_PORT == ACPI_PM_DEFAULT_BASE, "the DSDT says where the PM block is");
_Static_assert(MAP_PM_SIZE == ACPI_PM_SIZE, "the DSDT says how large the PM block is");
_Static_assert(MAP_SLP_TYP_S5 == ACPI_PM_SLP_TYP_S5, "the DSDT says how to power off");

/* BIOS data area and extended BIOS data area */
#define BDA_COM1_PORT 0x400
#define BDA_EBDA_SEGMENT 0x40e
#define BDA_MEMORY_KIB 0x413

/* PIRQ route registers of the PCI-to-ISA bridge */
#define PIRQ_ROUTE_OFFSET 0x60
/* PAM registers of the host bridge: for F0000H, and for E0000H to EFFFFH */
#define PAM0_OFFSET 0x59
#define PAM5_OFFSET 0x5e

#define RESET_ROM_SIZE 4096u

/* ---- RAM ---- */

void board_make_map(uint64_t memory_bytes, struct boot_map *map)
{
    uint64_t low_end = MIN(memory_bytes, MAP_LOW_RAM_MAX);

    *map = (struct boot_map){
        .ranges = {{0, MAP_EBDA_ADDR, BOOT_RAM},
                   {MAP_EBDA_ADDR, MAP_BASE_RAM_END - MAP_EBDA_ADDR, BOOT_RESERVED},
                   {MAP_TABLES_ADDR, MAP_TABLES_END - MAP_TABLES_ADDR, BOOT_RESERVED},
                   {MAP_EXTENDED_ADDR, low_end - MAP_EXTENDED_ADDR, BOOT_RAM}},
        .count = 4,
    };
    if (memory_bytes > low_end)
        map->ranges[map->count++] =
            (struct boot_range){MAP_HIGH_RAM_ADDR, memory_bytes - low_end, BOOT_RAM};
}

static int board_create_memory(struct board *b, struct err *e)
{
    uint64_t size = b->vm->config.memory_bytes;
    uint64_t low_end = MIN(size, MAP_LOW_RAM_MAX);
    uint8_t *host;
    int ret = space_create("memory", BIT(b->vm->model.phys_bits), &b->memory, e);

    if (ret == 0)
        ret = space_create("ports", BIT(16), &b->ports, e);
    if (ret == 0)
        ret = ram_create(size, &b->ram, e);
    if (ret != 0)
        return ret;
    if (!range_fits(MAP_HIGH_RAM_ADDR, size - low_end, BIT(b->vm->model.phys_bits)))
        return err_set(e, 0, "the CPU model's %u physical address bits do not reach all memory",
                       b->vm->model.phys_bits);
    host = b->ram.host;
    board_make_map(size, &b->map);
    ret = space_add_ram(b->memory, 0, host, MAP_BASE_RAM_END, false, e);
    /* A0000H..BFFFFH stays empty: no display adapter; from there to 1 MiB see board_create_rom */
    if (ret == 0)
        ret = space_add_ram(b->memory, MAP_EXTENDED_ADDR, host + MAP_EXTENDED_ADDR,
                            low_end - MAP_EXTENDED_ADDR, false, e);
    if (ret == 0 && size > low_end)
        ret = space_add_ram(b->memory, MAP_HIGH_RAM_ADDR, host + low_end, size - low_end, false, e);
    b->ram_regions[0] = (struct vhost_user_region){.size = low_end, .host = host, .fd = b->ram.fd};
    b->ram_regions[1] = (struct vhost_user_region){.guest_addr = MAP_HIGH_RAM_ADDR,
                                                   .size = size - low_end,
                                                   .host = host + low_end,
                                                   .fd = b->ram.fd,
                                                   .fd_offset = low_end};
    b->ram_region_count = size > low_end ? 2 : 1;
    return ret;
}

static int board_vars_changed(void *ctx, uint32_t offset, uint32_t size)
{
    struct board *b = ctx;

    return firmware_write_vars(&b->vm->firmware, offset, size);
}

static void board_vars_want(void *ctx, unsigned choice)
{
    struct board *b = ctx;

    if (atomic_exchange(&b->vars_wanted, (uint8_t)choice) != choice)
        vm_request_remap(b->vm);
}

static int board_apply_vars(struct board *b, const struct engine_ops *ops, struct engine *engine,
                            struct err *e)
{
    const struct firmware *fw = &b->vm->firmware;
    uint8_t wanted = atomic_load(&b->vars_wanted);
    int ret = 0;

    if (wanted == b->vars_now)
        return 0;
    space_switch_set(b->vars_switch, wanted);
    b->vars_now = wanted;
    if (engine != NULL)
        ret = wanted == PFLASH_ROM
                  ? ops->add_ram(engine, b->vars_addr, fw->vars, fw->vars_size, true, e)
                  : ops->remove_ram(engine, b->vars_addr, e);
    return ret == 0 ? 0 : err_prefix(e, "route the flash chip's memory");
}

int board_apply_map(struct board *b, const struct engine_ops *ops, struct engine *engine,
                    struct err *e)
{
    int ret = shadow_apply(&b->shadow, ops, engine, e);

    return ret == 0 ? board_apply_vars(b, ops, engine, e) : ret;
}

/* UEFI's variables, in a flash chip below the ROM. */
static int board_create_vars(struct board *b, struct err *e)
{
    const struct firmware *fw = &b->vm->firmware;
    struct pflash_config config = {.bytes = fw->vars,
                                   .size = fw->vars_size,
                                   .changed = board_vars_changed,
                                   .wants = board_vars_want,
                                   .ctx = b};
    int ret;

    if (fw->vars == NULL)
        return 0;
    b->vars_addr = BIT(32) - fw->rom_size - fw->vars_size;
    ret = pflash_create(&config, &b->vars, e);
    if (ret == 0)
        ret = pflash_map(b->vars, b->memory, b->vars_addr, &b->vars_switch, e);
    return ret;
}

/*
 * What there is at the reset vector without firmware: a kernel's processors get there when one
 * sends INIT to the boot processor, and firmware that finds the machine running resets it.
 */
static int board_create_reset_vector(struct board *b, struct err *e)
{
    static const uint8_t code[16] = {
        0xba,
        PCI_HOST_RESET_PORT & 0xff,
        PCI_HOST_RESET_PORT >> 8, /* mov dx, 0cf9h */
        0xb0,
        PCI_HOST_RESET_VALUE, /* mov al, 6 */
        0xee,                 /* out dx, al */
        0xf4,
        0xeb,
        0xfd, /* hlt; jmp to it */
    };

    b->reset_rom = aligned_alloc(RESET_ROM_SIZE, RESET_ROM_SIZE);
    if (b->reset_rom == NULL)
        return err_set(e, ENOMEM, "make a ROM of %u bytes", RESET_ROM_SIZE);
    memset(b->reset_rom, 0xff, RESET_ROM_SIZE);
    memcpy(b->reset_rom + RESET_ROM_SIZE - sizeof(code), code, sizeof(code));
    return space_add_ram(b->memory, BIT(32) - RESET_ROM_SIZE, b->reset_rom, RESET_ROM_SIZE, true,
                         e);
}

/* The firmware's ROM below 4 GiB; RAM, or the end of that ROM, below 1 MiB. */
static int board_create_rom(struct board *b, struct err *e)
{
    const struct firmware *fw = &b->vm->firmware;
    uint32_t copy = MIN(fw->rom_size, SHADOW_ROM_MAX);
    uint8_t *tail = fw->rom != NULL ? fw->rom + (fw->rom_size - copy) : NULL;
    int ret;

    if (fw->rom != NULL)
        ret = space_add_ram(b->memory, BIT(32) - fw->rom_size, fw->rom, fw->rom_size, true, e);
    else
        ret = board_create_reset_vector(b, e);
    if (ret == 0)
        ret = shadow_create(&b->shadow, b->memory, b->ram.host, tail, copy, e);
    return ret;
}

/* ---- wires ---- */

static void wire_set(void *sink, unsigned input, bool level)
{
    struct board_wire *wire = sink;

    for (unsigned i = 0; i < ARRAY_SIZE(wire->ends); i++)
        irq_set(&wire->ends[i], level);
}

struct irq_line board_make_wire(struct board_wire *wire, struct irq_line a, struct irq_line b)
{
    *wire = (struct board_wire){.ends = {a, b}};
    return (struct irq_line){.set = wire_set, .sink = wire};
}

static void board_pic_intr(void *ctx, bool level)
{
    struct board *b = ctx;

    for (unsigned i = 0; i < b->lapic_count; i++)
        irq_set(&b->lint0[i], level);
}

static int board_pic_acknowledge(void *pic)
{
    return i8259_acknowledge(pic);
}

/* ---- what devices ask of the machine: any thread, their lock held ---- */

void board_reset_wanted(void *ctx)
{
    struct board *b = ctx;

    vm_request_reset(b->vm);
}

static void board_power_off(void *ctx)
{
    struct board *b = ctx;

    vm_end_cause(b->vm, VM_END_POWER_OFF);
}

static void board_debug_exit(void *ctx, uint32_t status)
{
    struct board *b = ctx;
    struct vm_end end = {.cause = VM_END_DEBUG_EXIT, .status = status & 0xff};

    vm_end_with(b->vm, &end);
}

static uint64_t board_tsc_offset(void *ctx, unsigned index)
{
    struct board *b = ctx;
    struct vcpu *vcpu = &b->vm->vcpus[index];

    b->vm->ops->pull(vcpu->engine, &vcpu->state, CPU_GROUP_TSC);
    return vcpu->state.tsc_offset;
}

/* ---- interrupt controllers ---- */

static int board_create_lapic(struct board *b, unsigned index, struct err *e)
{
    struct vcpu *vcpu = &b->vm->vcpus[index];
    struct lapic_config config = {
        .bus = b->apic_bus,
        .clock = b->clock,
        .ops = &vcpu_lapic_ops,
        .cpu = vcpu,
        .apic_id = index,
        .is_bsp = index == 0,
        .phys_bits = b->vm->model.phys_bits,
        .tsc_hz = b->vm->model.tsc_hz,
        .memory = b->memory,
        .pic_acknowledge = board_pic_acknowledge,
        .pic = b->pic,
    };
    int ret = lapic_create(&config, &b->lapics[index], e);

    if (ret != 0)
        return ret;
    vcpu->lapic = b->lapics[index];
    b->lint0[index] = lapic_lint(vcpu->lapic, 0);
    b->lapic_count++;
    return 0;
}

static int board_create_interrupts(struct board *b, struct err *e)
{
    int ret = apic_bus_create(&b->apic_bus, e);

    if (ret == 0 && apics_can_be_lent(b->vm))
        apic_bus_prepare_lending(b->apic_bus);
    if (ret == 0)
        ret = i8259_create(board_pic_intr, b, &b->pic, e);
    if (ret == 0)
        ret = i8259_map(b->pic, b->ports, I8259_MASTER_PORT, I8259_SLAVE_PORT, I8259_ELCR_PORT, e);
    for (unsigned i = 0; ret == 0 && i < b->vm->config.cpu_count; i++)
        ret = board_create_lapic(b, i, e);
    if (ret == 0)
        ret = ioapic_create(b->apic_bus, MAP_IOAPIC_ID, &b->ioapic, e);
    if (ret == 0)
        ret = ioapic_map(b->ioapic, b->memory, IOAPIC_DEFAULT_BASE, e);
    for (unsigned i = 0; ret == 0 && i < ARRAY_SIZE(b->isa); i++) {
        unsigned gsi = i == MAP_PIT_IRQ ? MAP_PIT_GSI : i;
        if (i == 2) /* the second 8259's output */
            continue;
        b->isa[i] =
            board_make_wire(&b->isa_wires[i], i8259_input(b->pic, i), ioapic_input(b->ioapic, gsi));
    }
    return ret;
}

/* ---- timers and clocks ---- */

static int board_create_timers(struct board *b, struct err *e)
{
    struct hpet_config hpet = {
        .clock = b->clock,
        .legacy = {b->isa[MAP_PIT_IRQ], b->isa[MAP_RTC_IRQ]},
        .ioapic_mask = MAP_HPET_GSI_MASK,
    };
    struct mc146818_config rtc = {.clock = b->clock};
    uint64_t size = b->vm->config.memory_bytes;
    uint64_t low = MIN(size, MAP_LOW_RAM_MAX);
    int ret;

    for (unsigned i = 0; i < IOAPIC_PIN_COUNT; i++)
        if (MAP_HPET_GSI_MASK >> i & 1)
            hpet.ioapic[i] = ioapic_input(b->ioapic, i);
    ret = hpet_create(&hpet, &b->hpet, e);
    if (ret == 0)
        ret = hpet_map(b->hpet, b->memory, HPET_DEFAULT_BASE, e);
    if (ret == 0)
        ret = i8254_create(b->clock, hpet_legacy_input(b->hpet, 0), &b->pit, e);
    if (ret == 0)
        ret = i8254_map(b->pit, b->ports, I8254_PORT, I8254_CONTROL_PORT, e);
    if (ret == 0) {
        rtc.irq8 = hpet_legacy_input(b->hpet, 1);
        ret = mc146818_create(&rtc, &b->rtc, e);
    }
    if (ret == 0)
        ret = mc146818_map(b->rtc, b->ports, MC146818_PORT, e);
    if (ret == 0)
        mc146818_set_memory_size(b->rtc, low, size - low);
    return ret;
}

static int board_create_kvmclock(struct board *b, struct err *e)
{
    struct kvmclock_config config = {
        .memory = b->memory,
        .clock = b->clock,
        .cpu_count = b->vm->config.cpu_count,
        .tsc_hz = b->vm->model.tsc_hz,
        .tsc_offset = board_tsc_offset,
        .ctx = b,
    };

    return kvmclock_create(&config, &b->kvmclock, e);
}

static bool board_waited_ns(void *ctx, unsigned index, uint64_t *ns)
{
    struct board *b = ctx;

    return run_delay_read(b->vm->vcpus[index].run_delay_fd, ns);
}

static int board_create_steal_time(struct board *b, struct err *e)
{
    struct steal_time_config config = {
        .memory = b->memory,
        .cpu_count = b->vm->config.cpu_count,
        .tsc_hz = b->vm->model.tsc_hz,
        .waited_ns = board_waited_ns,
        .ctx = b,
    };

    return steal_time_create(&config, &b->steal_time, e);
}

/* ---- the rest of the chips ---- */

static int board_create_pm(struct board *b, struct err *e)
{
    struct acpi_pm_config config = {
        .clock = b->clock,
        .sci = b->isa[MAP_SCI_IRQ],
        .is_timer_32bit = true,
        .power_off = board_power_off,
        .ctx = b,
    };
    int ret = acpi_pm_create(&config, &b->pm, e);

    if (ret == 0)
        ret = acpi_pm_map(b->pm, b->ports, ACPI_PM_DEFAULT_BASE, ACPI_PM_SMI_PORT, e);
    return ret;
}

static int board_create_kbc(struct board *b, struct err *e)
{
    struct i8042_config config = {
        .irq1 = b->isa[MAP_KEYBOARD_IRQ],
        .irq12 = b->isa[MAP_MOUSE_IRQ],
        .reset = board_reset_wanted,
        .ctx = b,
    };
    int ret = i8042_create(&config, &b->kbc, e);

    if (ret == 0)
        ret = i8042_map(b->kbc, b->ports, I8042_DATA_PORT, I8042_COMMAND_PORT, I8042_PORT_A, e);
    return ret;
}

static int board_create_serial(struct board *b, struct err *e)
{
    int ret = uart16550_create(b->clock, b->vm->config.serial, b->isa[MAP_COM1_IRQ], &b->com1, e);

    if (ret == 0)
        ret = uart16550_map(b->com1, b->ports, UART16550_COM1_PORT, e);
    return ret;
}

static int board_create_ferr(struct board *b, struct err *e)
{
    int ret = ferr_create(b->isa[MAP_FERR_IRQ], &b->ferr, e);

    return ret == 0 ? ferr_map(b->ferr, b->ports, e) : ret;
}

static int board_create_debug_exit(struct board *b, struct err *e)
{
    int ret;

    if (!b->vm->config.has_debug_exit)
        return 0;
    ret = debug_exit_create(board_debug_exit, b, &b->debug_exit, e);
    if (ret == 0)
        ret = debug_exit_map(b->debug_exit, b->ports, DEBUG_EXIT_PORT, e);
    return ret;
}

/*
 * What bare-metal test suites written for QEMU expect. Lines 0 to 15 are the ISA bus's, the rest
 * the IOAPIC's own inputs.
 */
static int board_create_test_device(struct board *b, struct err *e)
{
    struct irq_line lines[TEST_DEVICE_LINES];
    int ret;

    if (!b->vm->config.has_test_device)
        return 0;
    for (unsigned i = 0; i < ARRAY_SIZE(lines); i++)
        lines[i] = i < ARRAY_SIZE(b->isa) ? b->isa[i] : ioapic_input(b->ioapic, i);
    ret = test_device_create(lines, &b->test_device, e);
    if (ret == 0)
        ret = test_device_map(b->test_device, b->ports, b->memory, e);
    return ret;
}

/* What tells firmware of the machine, or a bare-metal test. */
static int board_create_fw_cfg(struct board *b, struct err *e)
{
    const struct vm_config *config = &b->vm->config;
    bool has_firmware = b->vm->firmware.rom != NULL;
    int ret;

    if (!has_firmware && !config->has_test_device)
        return 0;
    ret = fw_cfg_create(b->memory, &b->fw_cfg, e);
    if (ret == 0)
        ret = fw_cfg_map(b->fw_cfg, b->ports, FW_CFG_PORT, FW_CFG_DMA_PORT, e);
    if (ret == 0)
        ret = fw_cfg_add_number(b->fw_cfg, FW_CFG_KEY_MEMORY, config->memory_bytes, 8, e);
    if (ret == 0)
        ret = fw_cfg_add_number(b->fw_cfg, FW_CFG_KEY_CPUS, config->cpu_count, 2, e);
    if (ret == 0)
        ret = fw_cfg_add_number(b->fw_cfg, FW_CFG_KEY_MAX_CPUS, config->cpu_count, 2, e);
    if (ret == 0 && has_firmware)
        ret = firmware_describe(b, e);
    return ret;
}

static int board_create_debug_port(struct board *b, struct err *e)
{
    int ret;

    if (b->vm->firmware.rom == NULL)
        return 0;
    ret = debug_port_create(NULL, NULL, &b->debug_port, e);
    return ret == 0 ? debug_port_map(b->debug_port, b->ports, DEBUG_PORT, e) : ret;
}

/* ---- all of it ---- */

int board_create(struct board *b, struct vm *vm, struct err *e)
{
    static int (*const parts[])(struct board *, struct err *) = {
        board_create_memory,      /* RAM below 3 GiB, the rest above 4 GiB */
        board_create_rom,         /* firmware below 4 GiB; what is below 1 MiB changes */
        board_create_vars,        /* with UEFI: flash below the ROM */
        board_create_interrupts,  /* local APICs, 8259 pair, IOAPIC */
        board_create_timers,      /* HPET, 8254, real-time clock */
        board_create_kvmclock,    /* paravirtual clock */
        board_create_steal_time,  /* what the host kept vCPUs from running */
        board_create_pm,          /* ACPI fixed hardware: SCI, PM timer, power */
        board_create_kbc,         /* keyboard controller and port 92H */
        board_create_serial,      /* COM1 */
        board_create_ferr,        /* x87 errors the AT's way */
        board_create_pci,         /* host bridge 00:00.0, PCI-to-ISA bridge 00:01.0, PM 00:01.3 */
        board_create_rng,         /* entropy 00:02.0 */
        board_create_disks,       /* virtio disks, from 00:03.0 on */
        board_create_net,         /* with --net: 00:13.0 */
        board_create_shares,      /* shared folders, from 00:18.0 on */
        board_create_console,     /* with --console and --port: 00:15.0 */
        board_create_balloon,     /* with --balloon: 00:16.0 */
        board_create_vsock,       /* with --vsock: 00:17.0 */
        board_create_debug_exit,  /* with --debug-exit */
        board_create_test_device, /* with --test-device */
        board_create_debug_port,  /* with firmware: what it says of itself */
        board_create_fw_cfg, /* with firmware or --test-device; the last: it tells of the others */
    };
    int ret;

    b->vm = vm;
    ret = vclock_create(vm->config.loop, &b->clock, e);
    for (unsigned i = 0; ret == 0 && i < ARRAY_SIZE(parts); i++)
        ret = parts[i](b, e);
    return ret;
}

void board_destroy(struct board *b)
{
    /* from the outside in: what drives a line goes before what the line leads to */
    space_destroy(b->ports);
    debug_exit_destroy(b->debug_exit);
    debug_port_destroy(b->debug_port);
    pflash_destroy(b->vars);
    fw_cfg_destroy(b->fw_cfg);
    test_device_destroy(b->test_device);
    board_destroy_pci(b);
    uart16550_destroy(b->com1);
    ferr_destroy(b->ferr);
    i8042_destroy(b->kbc);
    acpi_pm_destroy(b->pm);
    steal_time_destroy(b->steal_time);
    kvmclock_destroy(b->kvmclock);
    mc146818_destroy(b->rtc);
    i8254_destroy(b->pit);
    hpet_destroy(b->hpet);
    ioapic_destroy(b->ioapic);
    for (unsigned i = 0; i < b->lapic_count; i++)
        lapic_destroy(b->lapics[i]);
    i8259_destroy(b->pic);
    apic_bus_destroy(b->apic_bus);
    vclock_destroy(b->clock);
    space_destroy(b->memory);
    free(b->reset_rom);
    if (b->ram.host != NULL)
        ram_destroy(&b->ram);
    memset(b, 0, sizeof(*b));
}

static void board_configure(struct board *b, unsigned slot, unsigned offset, uint32_t value)
{
    space_store(b->ports, PCI_HOST_PORT, 0x80000000u | slot << 11 | offset, 4);
    space_store(b->ports, PCI_HOST_PORT + 4, value, 4);
    space_store(b->ports, PCI_HOST_PORT, 0, 4);
}

/*
 * As firmware leaves the chip set: RAM from E0000H on, where its tables are; PCI interrupts
 * routed to two inputs of the 8259s, and those, like the ACPI interrupt, level-triggered.
 */
static void board_act_as_firmware(struct board *b)
{
    uint32_t routes = (uint32_t)(MAP_PIRQ_AC_IRQ | MAP_PIRQ_BD_IRQ << 8) * (UINT32_C(1) << 16 | 1);
    unsigned level = 1u << MAP_SCI_IRQ | 1u << MAP_PIRQ_AC_IRQ | 1u << MAP_PIRQ_BD_IRQ;

    board_configure(b, 0, PAM0_OFFSET & ~3u, 0x30u << 8 * (PAM0_OFFSET & 3));
    board_configure(b, 0, PAM5_OFFSET & ~3u, 0x3333u << 8 * (PAM5_OFFSET & 3));
    board_configure(b, MAP_ISA_BRIDGE_SLOT, PIRQ_ROUTE_OFFSET, routes);
    i8259_set_firmware_defaults(b->pic);
    space_store(b->ports, I8259_ELCR_PORT, level & 0xff, 1);
    space_store(b->ports, I8259_ELCR_PORT + 1, level >> 8, 1);
}

void board_reset(struct board *b)
{
    board_reset_pci(b);
    uart16550_reset(b->com1);
    ferr_reset(b->ferr);
    i8042_reset(b->kbc);
    acpi_pm_reset(b->pm);
    kvmclock_reset(b->kvmclock);
    for (unsigned i = 0; i < b->vm->config.cpu_count; i++)
        steal_time_reset(b->steal_time, i);
    mc146818_reset(b->rtc);
    i8254_reset(b->pit);
    hpet_reset(b->hpet);
    ioapic_reset(b->ioapic);
    for (unsigned i = 0; i < b->lapic_count; i++)
        lapic_reset(b->lapics[i]);
    i8259_reset(b->pic);
    if (b->vm->config.has_test_device)
        test_device_reset(b->test_device);
    if (b->fw_cfg != NULL)
        fw_cfg_reset(b->fw_cfg);
    if (b->vars != NULL)
        pflash_reset(b->vars);
    if (b->debug_port != NULL)
        debug_port_reset(b->debug_port);
    if (b->vm->firmware.rom == NULL)
        board_act_as_firmware(b);
}

void board_acpi_config(const struct board *b, struct acpi_config *config)
{
    *config = (struct acpi_config){
        .cpu_count = b->vm->config.cpu_count,
        .window_addr = (uint32_t)board_pci_window(b),
        .high_window_addr = board_pci_high_window(b),
        .high_window_end = BIT(b->vm->model.phys_bits),
    };
}

void board_smbios_config(const struct board *b, struct smbios_config *config)
{
    uint64_t low = MIN(b->vm->config.memory_bytes, MAP_LOW_RAM_MAX);

    *config = (struct smbios_config){
        .has_firmware = b->vm->firmware.rom != NULL,
        .model = &b->vm->model,
        .low_bytes = low,
        .high_bytes = b->vm->config.memory_bytes - low,
    };
    memcpy(config->uuid, b->vm->config.uuid, UUID_SIZE);
}

uint64_t board_write_firmware_data(struct board *b)
{
    struct smbios_config smbios;
    struct acpi_config config;

    space_store(b->memory, BDA_COM1_PORT, MAP_COM1_PORT, 2);
    space_store(b->memory, BDA_EBDA_SEGMENT, MAP_EBDA_ADDR >> 4, 2);
    space_store(b->memory, BDA_MEMORY_KIB, MAP_EBDA_ADDR >> 10, 2);
    space_store(b->memory, MAP_EBDA_ADDR, (MAP_BASE_RAM_END - MAP_EBDA_ADDR) >> 10, 1);
    board_smbios_config(b, &smbios);
    smbios_write_tables(b->memory, &smbios);
    board_acpi_config(b, &config);
    return acpi_write_tables(b->memory, &config);
}
