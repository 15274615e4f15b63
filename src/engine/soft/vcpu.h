/*
 * vcpu.h - a vCPU whose instructions doppel itself executes (interp and bt)
 *
 * Everything under engine/soft/ is the semantics that both software engines share: memory
 * access through the software TLB, exceptions, segments, system instructions, and native
 * thunks for data processing. interp steps through it; bt compiles blocks and calls it for
 * whatever it does not inline.
 *
 * Invariant: while these functions run, the guest's x87/vector state may be live in the host's
 * registers (is_fpu_live). The folder is therefore compiled with -mgeneral-regs-only and calls
 * nothing outside of it except through soft_host_* (host.c), which puts the guest's state away
 * first. No libc function is called here, memcpy and memset included: use soft_copy/soft_zero.
 *
 * Faults: a function that may fault returns 0, or SOFT_FAULT after soft_raise has recorded the
 * exception in v->fault; the caller passes SOFT_FAULT on unchanged. Nothing architectural may
 * have been changed by then (accessed and dirty bits apart), so the instruction can restart.
 */
#ifndef DOPPEL_ENGINE_SOFT_VCPU_H
#define DOPPEL_ENGINE_SOFT_VCPU_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "cpu/insn.h"
#include "cpu/model.h"
#include "cpu/state.h"
#include "engine/engine.h"
#include "engine/soft/tlb.h"

#define SOFT_FAULT (-1)
#define SOFT_VCPUS_MAX 64
#define SOFT_RAM_SLOTS_MAX 32
#define SOFT_MUST_CHECK __attribute__((warn_unused_result))

struct soft_engine;
struct soft_vcpu;
struct soft_insn_cache;

/* Semantic function of one instruction. v->next_rip is preset to the following instruction. */
typedef int (*soft_op_fn)(struct soft_vcpu *v, const struct insn *in);

/* One row of the dispatch tables: soft_ops_integer[], soft_ops_system[] ... */
struct soft_op {
    uint16_t op;           /* ZydisMnemonic */
    soft_op_fn fn;
};

/* Per 4 KiB page of a RAM slot. */
#define SOFT_PAGE_CODE UINT32_C(0x80000000)      /* translated code was made from it */
#define SOFT_PAGE_WRITER(index) (UINT32_C(1) << ((index) < 30 ? (index) : 30))
                                                /* that vCPU may hold a write entry for it */

struct soft_ram {
    gpa_t addr;
    uint64_t size;
    uint8_t *host;
    bool is_rom;
    _Atomic uint32_t *page_flags;               /* one per page, SOFT_PAGE_* */
};

/* What a vCPU keeps of instructions it has run; powers of two. */
struct soft_sizes {
    unsigned insn_slots;                        /* decoded instructions */
    unsigned thunk_slots;
    uint32_t thunk_bytes;                       /* of code */
};
/* For an engine that steps all it runs; and for one that does so where nothing else serves. */
#define SOFT_SIZES_STEP ((struct soft_sizes){8192, 4096, 1u << 20})
#define SOFT_SIZES_ASIDE ((struct soft_sizes){2048, 2048, 1u << 18})

struct soft_engine {
    const struct cpu_model *model;
    const struct engine_host *host;
    struct soft_ram ram[SOFT_RAM_SLOTS_MAX];
    unsigned ram_count;
    struct soft_vcpu *vcpus[SOFT_VCPUS_MAX];
    unsigned vcpu_count;
    soft_op_fn dispatch[2048];                  /* by ZydisMnemonic; NULL: none */
    struct soft_sizes sizes;                    /* of each vCPU's caches */

    /*
     * A write by `v` (NULL: a device) hit [gpa, gpa + size), which lies in one page with
     * SOFT_PAGE_CODE. Called after the write. NULL with interp.
     */
    void (*code_written)(struct soft_engine *engine, struct soft_vcpu *v, gpa_t gpa, unsigned size);

    struct soft_exclusive *exclusive;           /* exclusive.c */

    /*
     * An exclusive section waits for `v` to leave the guest, and clearing v->go may not be enough
     * (KVM). Any thread, no guest state live, not the vCPU's own. NULL: it is enough.
     */
    void (*call_out)(struct soft_vcpu *v);
};

/* An exception on its way (fault), or what raised it, for error messages. */
struct soft_fault {
    uint8_t vector;
    bool has_error;
    bool is_software;      /* INT n, INT3, INTO: DPL checks, rip after the instruction */
    bool is_trap;          /* rip after the instruction (#DB single-step, data breakpoint) */
    uint32_t error;
    uint64_t cr2;          /* VEC_PF only */
    uint64_t dr6;          /* VEC_DB only: bits to set */
};

struct soft_stats {
    uint64_t instructions;         /* stepped by interp functions */
    uint64_t tlb_fills, tlb_flushes, tlb_page_flushes;
    uint64_t walks, walk_tsc;
    uint64_t exceptions[32], interrupts;
    uint64_t io_reads, io_writes, mmio_reads, mmio_writes;
    uint64_t halts;
    uint64_t fpu_loads, fpu_saves;
    uint64_t host_calls, host_tsc;         /* calls out through the host table, and time there */
    uint64_t exclusive_waits, exclusive_tsc; /* exclusive sections begun or waited for */
};

/*
 * The vCPU block. bt maps it at %gs:0 and generated code addresses what stands before `engine`
 * by offset, so that part changes only together with bt.
 */
struct soft_vcpu {
    struct cpu_state st;           /* first; status flags in st.rflags are current in C code */

    uint64_t next_rip;
    uint32_t go;                   /* 0: leave translated code at the next poll */
    uint32_t is_mode_stale;        /* CPL, CR0/3/4, EFER, segments, AC, TF, DR7, XCR0 changed */
    uint64_t scratch[8];           /* for generated code */

    struct soft_tlb_set tlb[SOFT_TLB_SETS];

    struct soft_engine *engine;
    const struct cpu_model *model;
    void *cpu;                     /* the machine's handle, for the host table */
    struct engine_pins *pins;
    unsigned index;

    bool is_fpu_live;              /* guest x87/vector state is in the host's registers */
    bool is_ac_set;                /* reserved for #AC checks: CR0.AM && RFLAGS.AC && CPL 3 */
    bool has_jumped;               /* the instruction was a near branch, and taken */
    struct soft_fault fault;
    struct soft_tlb_tracking tlb_tracking;
    struct soft_tlb2 tlb2;
    struct soft_insn_cache *insn_cache;
    void *thunks;                  /* thunk.c */
    struct soft_stats stats;
    _Atomic uint32_t is_in_guest;  /* exclusive.c */
};

/*
 * engine.c: set-up common to both engines. Not for use while guest state is live. An engine that
 * does not step everything sets se->sizes before it makes vCPUs.
 */
int soft_engine_init(struct soft_engine *se, const struct engine_config *config, struct err *e);
void soft_engine_fini(struct soft_engine *se);
int soft_engine_add_ram(struct soft_engine *se, gpa_t addr, void *host, uint64_t size, bool is_rom,
                        struct err *e);
int soft_engine_remove_ram(struct soft_engine *se, gpa_t addr, struct err *e);
/* *v is zeroed memory, 64-byte aligned. Registers it in se->vcpus. */
int soft_vcpu_init(struct soft_vcpu *v, struct soft_engine *se, unsigned index, void *cpu,
                   struct engine_pins *pins, struct err *e);
void soft_vcpu_fini(struct soft_vcpu *v);
void soft_vcpu_pull(struct soft_vcpu *v, struct cpu_state *out, uint32_t groups);
void soft_vcpu_push(struct soft_vcpu *v, const struct cpu_state *in, uint32_t groups);

/* The RAM slot that holds gpa, or NULL (a device's address, or nobody's). */
static inline struct soft_ram *soft_ram_find(struct soft_engine *se, gpa_t gpa)
{
    for (unsigned i = 0; i < se->ram_count; i++)
        if (gpa - se->ram[i].addr < se->ram[i].size)
            return &se->ram[i];
    return NULL;
}

/* string-free copies: never a libc call */
static inline void soft_copy(void *dst, const void *src, uint64_t n)
{
    __asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
}

static inline void soft_zero(void *dst, uint64_t n)
{
    __asm__ volatile("rep stosb" : "+D"(dst), "+c"(n) : "a"(0) : "memory");
}

/* exception.c */
/* Record an exception; both return SOFT_FAULT, for `return soft_raise(v, VEC_UD);`. */
int soft_raise(struct soft_vcpu *v, unsigned vector) __attribute__((cold));
int soft_raise_error(struct soft_vcpu *v, unsigned vector, uint32_t error) __attribute__((cold));
int soft_raise_page_fault(struct soft_vcpu *v, gva_t addr, uint32_t error) __attribute__((cold));
int soft_raise_debug(struct soft_vcpu *v, uint64_t dr6_bits, bool is_trap) __attribute__((cold));

/*
 * Deliver v->fault through the IDT, with all that may follow (nested faults, double fault,
 * shutdown: st.run_state becomes CPU_SHUTDOWN with registers as at the first fault).
 * st.rip is that of the faulting instruction, v->next_rip of the following one.
 */
void soft_deliver_fault(struct soft_vcpu *v);
/* Deliver an external interrupt or NMI at an instruction boundary. */
void soft_deliver_interrupt(struct soft_vcpu *v, unsigned vector);
void soft_deliver_nmi(struct soft_vcpu *v);

/* mmu.c, mem.c */
enum soft_access { SOFT_READ, SOFT_WRITE, SOFT_FETCH, SOFT_RMW /* write intent, read as well */ };

/* Which privilege an access is made with. */
enum soft_as {
    SOFT_AS_CPL,           /* as the current privilege level, RFLAGS.AC honoured */
    SOFT_AS_SYSTEM,        /* implicit supervisor access: descriptor tables, TSS, IDT */
    SOFT_AS_KERNEL,        /* explicit, as CPL < 3 would: pushes on an inner stack */
    SOFT_AS_USER,          /* explicit, as CPL 3 would */
};

/*
 * Translate for `access`, filling the TLB: 0 with *host the RAM address (NULL for a device's
 * address) and *gpa; SOFT_FAULT with #PF (or #GP/#SS for a non-canonical address: is_stack)
 * raised. [addr] only: the caller splits at pages. *host is writable only for SOFT_WRITE/RMW
 * and only when *is_code_page comes back false, or soft_code_written is called after the write.
 */
struct soft_place {
    uint8_t *host;         /* NULL: device or nothing there; ROM on write */
    gpa_t gpa;
    bool is_code_page;
};
int soft_translate(struct soft_vcpu *v, gva_t addr, enum soft_access access, enum soft_as as,
                   struct soft_place *place) SOFT_MUST_CHECK;

/* Loads and stores at a linear address, any size 1..8, any alignment, devices included. */
int soft_load(struct soft_vcpu *v, gva_t addr, unsigned size, enum soft_as as,
              uint64_t *value) SOFT_MUST_CHECK;
int soft_store(struct soft_vcpu *v, gva_t addr, unsigned size, enum soft_as as,
               uint64_t value) SOFT_MUST_CHECK;
/* Any length; a write checks every page before it changes the first byte. */
int soft_read(struct soft_vcpu *v, gva_t addr, void *buf, unsigned size,
              enum soft_as as) SOFT_MUST_CHECK;
int soft_write(struct soft_vcpu *v, gva_t addr, const void *buf, unsigned size,
               enum soft_as as) SOFT_MUST_CHECK;
/* Check that [addr, addr + size) may be accessed; faults as the access would. */
int soft_probe(struct soft_vcpu *v, gva_t addr, unsigned size, enum soft_access access,
               enum soft_as as) SOFT_MUST_CHECK;
/* After a write through soft_place.host to a code page. */
void soft_code_written(struct soft_vcpu *v, gpa_t gpa, unsigned size);

/* Invalidation (SDM vol. 3, 4.10.4). */
void soft_tlb_flush_all(struct soft_vcpu *v);                 /* global entries too */
void soft_tlb_flush_nonglobal(struct soft_vcpu *v);           /* CR3 write */
void soft_tlb_flush_page(struct soft_vcpu *v, gva_t addr);    /* INVLPG */
/* Drop this vCPU's write entries for the page at host address `page` (code protection). */
void soft_tlb_drop_writes(struct soft_vcpu *v, const uint8_t *page);
/* The TLB set that accesses at the current privilege use. */
static inline unsigned soft_tlb_current(const struct soft_vcpu *v)
{
    const struct cpu_state *st = &v->st;
    if (cpu_cpl(st) == 3)
        return SOFT_TLB_USER;
    return (st->cr4 & CR4_SMAP) && !(st->rflags & RFLAGS_AC) ? SOFT_TLB_KERNEL_SMAP
                                                             : SOFT_TLB_KERNEL;
}

/* segment.c */
/* Segment check of [offset, offset + size): linear address, or #GP/#SS (SDM vol. 3, 5.3). */
int soft_linear(struct soft_vcpu *v, unsigned seg, uint64_t offset, unsigned size,
                enum soft_access access, gva_t *addr) SOFT_MUST_CHECK;
/* MOV/POP/LxS to a segment register, every check included. */
int soft_load_segment(struct soft_vcpu *v, unsigned seg, uint16_t selector) SOFT_MUST_CHECK;

/* operand.c */
/* Offset (effective address, truncated to the address size) of the ModRM memory operand. */
uint64_t soft_effective_address(const struct soft_vcpu *v, const struct insn *in);
/* Linear address of the memory operand with segment checks for in->mem_size bytes or `size`. */
int soft_operand_address(struct soft_vcpu *v, const struct insn *in, unsigned size,
                         enum soft_access access, gva_t *addr) SOFT_MUST_CHECK;
/* Read or write the ModRM r/m operand, register or memory, of `size` bytes (1..8). */
int soft_read_rm(struct soft_vcpu *v, const struct insn *in, unsigned size,
                 uint64_t *value) SOFT_MUST_CHECK;
int soft_write_rm(struct soft_vcpu *v, const struct insn *in, unsigned size,
                  uint64_t value) SOFT_MUST_CHECK;
/* GPR access with x86 merging: 32-bit writes zero-extend, 8/16-bit writes merge. */
uint64_t soft_gpr_read(const struct soft_vcpu *v, unsigned reg, unsigned size, bool is_high_byte);
void soft_gpr_write(struct soft_vcpu *v, unsigned reg, unsigned size, bool is_high_byte,
                    uint64_t value);
/*
 * Stack, with the current stack width. The pointer changes only on success. A push of several
 * values that must be all or nothing probes first (soft_push_probe).
 */
int soft_push(struct soft_vcpu *v, unsigned size, uint64_t value) SOFT_MUST_CHECK;
int soft_pop(struct soft_vcpu *v, unsigned size, uint64_t *value) SOFT_MUST_CHECK;
/* Set v->next_rip after checks: canonical (64-bit) or within the CS limit; `size` truncates. */
int soft_jump_near(struct soft_vcpu *v, uint64_t target, unsigned size) SOFT_MUST_CHECK;

/* fpu.c */
/* Make the guest's x87/vector state live in the host's registers; put it into st.xsave. */
void soft_fpu_load(struct soft_vcpu *v);
void soft_fpu_save(struct soft_vcpu *v);
/* #UD/#NM/#MF checks that `unit` (enum insn_unit) asks for, before an instruction runs. */
int soft_fpu_check(struct soft_vcpu *v, unsigned unit) SOFT_MUST_CHECK;

/* thunk.c: execute an INSN_DATA instruction natively. */
int soft_exec_data(struct soft_vcpu *v, const struct insn *in) SOFT_MUST_CHECK;
/* Fault hook of both engines (os/fault.h), ctx = vCPU: claims faults inside thunks. */
bool soft_thunk_fault(struct soft_vcpu *v, int sig, void *siginfo, void *ucontext);

/* exec.c */
/* Execute a decoded instruction at st.rip: 0 with st.rip advanced, or SOFT_FAULT (undelivered). */
int soft_exec(struct soft_vcpu *v, const struct insn *in) SOFT_MUST_CHECK;
/* Fetch and decode at CS:rip, cached; SOFT_FAULT with #PF/#GP/#UD raised. */
int soft_fetch(struct soft_vcpu *v, const struct insn **in) SOFT_MUST_CHECK;

/*
 * step.c: fetch, execute and complete one instruction, with everything the manuals put at its
 * boundaries: code breakpoints, shadows, exceptions delivered, single-step and data-breakpoint
 * traps. Does not look at interrupt pins.
 */
void soft_step(struct soft_vcpu *v);
/*
 * What is due before the next instruction: NMI, external interrupt (with IF, shadows), wake-up
 * from HLT. Returns true when an event was delivered or state changed.
 */
bool soft_take_interrupts(struct soft_vcpu *v);

/* host.c: the host table, with guest FPU state put away first and counters kept. */
uint64_t soft_host_io_read(struct soft_vcpu *v, uint16_t port, unsigned size);
void soft_host_io_write(struct soft_vcpu *v, uint16_t port, unsigned size, uint64_t value);
uint64_t soft_host_mmio_read(struct soft_vcpu *v, gpa_t addr, unsigned size);
void soft_host_mmio_write(struct soft_vcpu *v, gpa_t addr, unsigned size, uint64_t value);
int soft_host_interrupt_acknowledge(struct soft_vcpu *v);
uint64_t soft_host_cr8_read(struct soft_vcpu *v);
void soft_host_cr8_write(struct soft_vcpu *v, uint64_t value);
bool soft_host_msr_read(struct soft_vcpu *v, uint32_t index, uint64_t *value);
bool soft_host_msr_write(struct soft_vcpu *v, uint32_t index, uint64_t value);
bool soft_host_set_ferr(struct soft_vcpu *v, bool is_asserted); /* is IGNNE# asserted? */
void soft_host_tsc_changed(struct soft_vcpu *v);
int64_t soft_host_hypercall(struct soft_vcpu *v, const struct cpu_hypercall *call);
/* Log what the guest did wrong (log_guest), from here where stdio may not be called directly. */
void soft_host_log(struct soft_vcpu *v, const char *format, uint64_t a, uint64_t b);

/*
 * exclusive.c: stop every other vCPU of the engine outside guest code (split locks, dropping
 * translations). Enter/leave bracket every stretch in which a vCPU executes guest code or
 * touches guest memory; soft_host_* leaves around each call out.
 */
void soft_guest_enter(struct soft_vcpu *v);
void soft_guest_leave(struct soft_vcpu *v);
void soft_exclusive_begin(struct soft_vcpu *v);
void soft_exclusive_end(struct soft_vcpu *v);
/* The same for a thread that is no vCPU, or does not know which (DMA); not in guest. */
void soft_exclusive_begin_outside(struct soft_engine *se);
void soft_exclusive_end_outside(struct soft_engine *se);
/*
 * In guest, at a poll: let a pending exclusive section run. To be called after go was set to 1
 * again, because the section's owner asks by clearing go.
 */
void soft_guest_yield(struct soft_vcpu *v);

/* The dispatch tables, terminated by fn == NULL. */
extern const struct soft_op soft_ops_integer[];   /* stack, string, near control flow ... */
extern const struct soft_op soft_ops_fpu[];       /* XSAVE family, environments, gathers */
extern const struct soft_op soft_ops_system[];    /* segments, far control, registers, I/O */

#endif
