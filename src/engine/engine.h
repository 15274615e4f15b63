/*
 * engine.h - what runs guest instructions
 *
 * An engine is a table of functions over opaque objects. It sees registers, guest-physical
 * memory slots and a small host table; it knows no device.
 *
 * Threads: open, close, attach, detach, add_ram and remove_ram are called by one thread with
 * no vCPU running. run, pull and push belong to the vCPU's thread. kick and code_changed may
 * be called from any thread. An engine holds none of its locks while it calls the host table.
 */
#ifndef DOPPEL_ENGINE_ENGINE_H
#define DOPPEL_ENGINE_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "cpu/apic.h"
#include "cpu/hypercall.h"
#include "cpu/model.h"
#include "cpu/state.h"

struct engine;
struct engine_vcpu;
struct stats_sink;

/*
 * Input pins of one vCPU, owned by the machine. Devices set bits from any thread and then call
 * the engine's kick. INTR is a level that the interrupt controller keeps true; NMI is an
 * edge that the engine clears when it takes it; the others end `run` and are handled, and
 * cleared, by the vCPU's thread.
 */
#define PIN_INTR 1u
#define PIN_NMI 2u
#define PIN_INIT 4u
#define PIN_SIPI 8u
#define PIN_STOP 16u      /* leave `run`: pause, shut down, engine switch */
#define PIN_CALL 32u      /* leave `run`: the machine wants something done on this thread */
#define PIN_LEAVE (PIN_INIT | PIN_SIPI | PIN_STOP | PIN_CALL)

struct engine_pins {
    _Atomic uint32_t bits;
};

/* The engine's only way out. Called on the vCPU's thread; `cpu` is the machine's handle. */
struct engine_host {
    uint64_t (*io_read)(void *cpu, uint16_t port, unsigned size);
    void (*io_write)(void *cpu, uint16_t port, uint64_t value, unsigned size);
    uint64_t (*mmio_read)(void *cpu, gpa_t addr, unsigned size);
    void (*mmio_write)(void *cpu, gpa_t addr, uint64_t value, unsigned size);

    /* Acknowledge an external interrupt: the vector, or -1 when none is there after all. */
    int (*interrupt_acknowledge)(void *cpu);

    /*
     * A local APIC of the engine's own ended a level-triggered interrupt that watch_eoi asked
     * for. Not called by engines without.
     */
    void (*apic_eoi)(void *cpu, uint8_t vector);

    /* The task-priority register as CR8 shows it (bits 3..0). */
    uint64_t (*cr8_read)(void *cpu);
    void (*cr8_write)(void *cpu, uint64_t value);

    /*
     * MSRs that belong to devices: APIC base, x2APIC, TSC deadline, paravirtual ones. Return
     * false for #GP(0).
     */
    bool (*msr_read)(void *cpu, uint32_t index, uint64_t *value);
    bool (*msr_write)(void *cpu, uint32_t index, uint64_t value);

    /* The guest wrote its TSC: deadlines and clocks that follow it have moved. May be NULL. */
    void (*tsc_changed)(void *cpu);

    /*
     * VMCALL or VMMCALL with CPL 0: what it returns in RAX. Not called by engines that answer
     * themselves. NULL: there are no hypercalls.
     */
    int64_t (*hypercall)(void *cpu, const struct cpu_hypercall *call);

    /*
     * FERR# asserted (x87 error with CR0.NE clear) or deasserted. Returns whether the machine
     * asserts IGNNE#: the error is to be ignored.
     */
    bool (*set_ferr)(void *cpu, bool is_asserted);
};

enum engine_stop {
    ENGINE_STOP_PIN,        /* one of PIN_LEAVE is set */
    ENGINE_STOP_HALT,       /* run_state is CPU_HALTED and nothing wakes it */
    ENGINE_STOP_SHUTDOWN,   /* triple fault: run_state is CPU_SHUTDOWN, state as at the fault */
    ENGINE_STOP_SLICE,      /* engine_config.slice instructions were executed */
};

/* Interrupt controllers of the engine's own: for those that may have some. */
enum engine_irqchip {
    ENGINE_IRQCHIP_OFF,
    ENGINE_IRQCHIP_AUTO, /* where they are there and any good */
    ENGINE_IRQCHIP_ON,
};

/* Interrupts whose EOIs an engine can be asked to report: as many as an I/O APIC has inputs. */
#define ENGINE_EOI_MESSAGES 24

/*
 * A register of which a write of `size` bytes at `addr` means nothing but "wake up": to write to
 * `fd`, an eventfd, does as well.
 */
struct engine_bell {
    gpa_t addr;
    unsigned size;
    int fd;
};
#define ENGINE_BELLS_MAX 256

struct engine_config {
    const struct cpu_model *model;
    const struct engine_host *host;
    unsigned cpu_count;
    enum engine_irqchip irqchip;
    uint64_t slice;              /* leave `run` after about so many instructions; 0: no limit */
    uint64_t code_cache_size;    /* bytes of translated code; 0 = default (bt) */
    bool counts_hits;            /* count what generated code executes and time helpers (--stats) */
    const char *perf_map_path;   /* write symbols of translated blocks for perf; NULL = no */
    const char *dump_blocks_path; /* write guest and host code side by side; NULL = no */
};

struct engine_ops {
    const char *name;
    bool has_slices;             /* engine_config.slice is honoured */

    /*
     * Is this engine there, and is it fast on this host? 0, or -errno with the reason in *why.
     * NULL: always. At most 50 ms.
     */
    int (*probe)(struct err *why);

    /*
     * Narrow *limit to what this engine can offer the guest on this host, opened with that
     * `irqchip`. NULL: to anything.
     */
    int (*limit_model)(enum engine_irqchip irqchip, struct cpu_model_limit *limit, struct err *e);

    int (*open)(const struct engine_config *config, struct engine **out, struct err *e);
    void (*close)(struct engine *engine);

    /* `cpu` is passed to the host table; `pins` outlives the vCPU. */
    int (*attach)(struct engine *engine, unsigned index, void *cpu, struct engine_pins *pins,
                  struct engine_vcpu **out, struct err *e);
    void (*detach)(struct engine_vcpu *vcpu);

    /*
     * Run until there is a reason to stop. 0 and *stop, or -errno when the engine itself
     * cannot go on (never because of what the guest does).
     */
    int (*run)(struct engine_vcpu *vcpu, enum engine_stop *stop, struct err *e);

    /* Make `run` look at the pins soon. Any thread, signal-safe, cheap when not running. */
    void (*kick)(struct engine_vcpu *vcpu);

    /*
     * Exchange register groups (CPU_GROUP_*). The host table may pull CPU_GROUP_TSC while `run`
     * waits for it; everything else is exchanged outside of `run`.
     */
    void (*pull)(struct engine_vcpu *vcpu, struct cpu_state *out, uint32_t groups);
    void (*push)(struct engine_vcpu *vcpu, const struct cpu_state *in, uint32_t groups);

    /*
     * Have all exchanges so far worked, and can the vCPU run with the state it was given? Outside
     * of `run`. NULL: they cannot fail.
     */
    int (*sync)(struct engine_vcpu *vcpu, struct err *e);

    /*
     * Local APICs of the engine's own. When has_apics says so, `run` is only called after
     * push_apic has been for every vCPU: until pull_apic they stand in for the machine's. `run` then
     * waits by itself for what ends HLT and for SIPI, PIN_INTR is what the 8259 asks for, and the
     * APIC functions of the host table are not called but interrupt_acknowledge and apic_eoi. All
     * NULL: none.
     *
     * send: an interrupt message from outside. >= 0: how many local APICs accepted it. Any thread.
     * watch_eoi: which interrupts' ends to report: ENGINE_EOI_MESSAGES of them, all zero for none.
     * Any thread.
     */
    bool (*has_apics)(const struct engine *engine);
    int (*push_apic)(struct engine_vcpu *vcpu, const struct cpu_apic *in, struct err *e);
    int (*pull_apic)(struct engine_vcpu *vcpu, struct cpu_apic *out, struct err *e);
    int (*send)(struct engine *engine, const struct cpu_msi *msi, struct err *e);
    int (*watch_eoi)(struct engine *engine, const struct cpu_msi *messages, struct err *e);

    /* Back [addr, addr + size) with host memory. Slots do not overlap; is_rom: writes go
     * to the host table. */
    int (*add_ram)(struct engine *engine, gpa_t addr, void *host, uint64_t size, bool is_rom,
                   struct err *e);
    int (*remove_ram)(struct engine *engine, gpa_t addr, struct err *e);

    /*
     * Dirty log of the RAM at `addr` (where a slot begins): switch it on or off, and take what the
     * guest wrote since it was switched on or last taken, one bit a 4 KiB page, lowest first. No
     * vCPU runs. What devices write is not in it. NULL: not offered.
     */
    int (*log_dirty)(struct engine *engine, gpa_t addr, bool is_on, struct err *e);
    int (*take_dirty)(struct engine *engine, gpa_t addr, uint64_t *bitmap, struct err *e);

    /*
     * From now on these writes may be served by writing to their eventfds, and no others: at most
     * ENGINE_BELLS_MAX, each at an address of its own. Those that the engine does not take come out
     * by mmio_write as ever. Any thread, one at a time. NULL: it takes none.
     */
    int (*set_bells)(struct engine *engine, const struct engine_bell *bells, unsigned count,
                     struct err *e);

    /* RAM changed behind the engine's back (DMA): drop translations of it. */
    void (*code_changed)(struct engine *engine, gpa_t addr, uint64_t size);

    /*
     * What the engine counted, group by group. No vCPU runs. Groups of a CPU count events or time,
     * and are added up over all engines of this name that a machine has run on; groups of no CPU
     * say how this one stands.
     */
    void (*report_stats)(struct engine *engine, struct stats_sink *sink);
};

extern const struct engine_ops engine_interp;
extern const struct engine_ops engine_bt;
extern const struct engine_ops engine_kvm;

#endif
