/*
 * system.h - what the system half of engine/soft shares: descriptors, far transfers, tasks,
 * control registers, MSRs and port permissions
 *
 * Conventions are those of vcpu.h: 0, or SOFT_FAULT with the exception recorded.
 */
#ifndef DOPPEL_ENGINE_SOFT_SYSTEM_H
#define DOPPEL_ENGINE_SOFT_SYSTEM_H

#include "engine/soft/vcpu.h"

/* A descriptor-table entry taken apart. Gates use `raw` and the SOFT_GATE_* accessors. */
struct soft_descriptor {
    uint64_t raw[2]; /* [1]: second half of a 16-byte system descriptor, else 0 */
    uint64_t base;
    uint32_t limit; /* in bytes */
    uint32_t attr;  /* SEG_* */
    gva_t addr;     /* linear address of the entry */
};

/* System descriptor types (SDM vol. 3, table 3-2). */
enum soft_system_type {
    SOFT_TYPE_TSS16 = 1,
    SOFT_TYPE_LDT = 2,
    SOFT_TYPE_TSS16_BUSY = 3,
    SOFT_TYPE_CALL16 = 4,
    SOFT_TYPE_TASK_GATE = 5,
    SOFT_TYPE_INT16 = 6,
    SOFT_TYPE_TRAP16 = 7,
    SOFT_TYPE_TSS32 = 9,
    SOFT_TYPE_TSS32_BUSY = 11,
    SOFT_TYPE_CALL32 = 12,
    SOFT_TYPE_INT32 = 14,
    SOFT_TYPE_TRAP32 = 15,
};

/* Selector without its RPL, as error codes carry it. */
#define SOFT_SELECTOR_ERROR(selector) ((uint32_t)(selector)&0xfffcu)
#define SOFT_SELECTOR_IS_NULL(selector) (((selector)&0xfffcu) == 0)

static inline unsigned soft_descriptor_dpl(const struct soft_descriptor *d)
{
    return (d->attr & SEG_DPL) >> SEG_DPL_SHIFT;
}

static inline bool soft_descriptor_is_code(const struct soft_descriptor *d)
{
    return (d->attr & (SEG_S | SEG_TYPE_CODE)) == (SEG_S | SEG_TYPE_CODE);
}

static inline bool soft_descriptor_is_conforming(const struct soft_descriptor *d)
{
    return (d->attr & SEG_TYPE_DOWN_CONFORM) != 0;
}

static inline bool soft_descriptor_is_writable(const struct soft_descriptor *d)
{
    return (d->attr & (SEG_S | SEG_TYPE_CODE | SEG_TYPE_WRITE_READ)) ==
           (SEG_S | SEG_TYPE_WRITE_READ);
}

static inline unsigned soft_descriptor_type(const struct soft_descriptor *d)
{
    return d->attr & SEG_TYPE_MASK;
}

/* Gates. */
static inline uint16_t soft_gate_selector(const struct soft_descriptor *d)
{
    return (uint16_t)(d->raw[0] >> 16);
}

/* Target offset of a 16-, 32- or (with raw[1] read) 64-bit gate. */
static inline uint64_t soft_gate_offset(const struct soft_descriptor *d)
{
    uint64_t low = d->raw[0] & 0xffff;

    if ((soft_descriptor_type(d) & 8) == 0)
        return low;
    return low | (d->raw[0] >> 48) << 16 | (d->raw[1] & 0xffffffff) << 32;
}

/* descriptor.c */
/*
 * Read the descriptor that `selector` names. *is_valid is false (and 0 returned) when the
 * selector is null or beyond its table's limit; faults only as memory does. System descriptors
 * in long mode are read with their second half.
 */
int soft_descriptor_read(struct soft_vcpu *v, uint16_t selector, struct soft_descriptor *d,
                         bool *is_valid) SOFT_MUST_CHECK;
/* As above; a bad selector raises `vector` with the selector (and `ext`) as error code. */
int soft_descriptor_require(struct soft_vcpu *v, uint16_t selector, unsigned vector, uint32_t ext,
                            struct soft_descriptor *d) SOFT_MUST_CHECK;
/* Set the accessed bit in memory and in *d, when it is not set yet. */
int soft_descriptor_set_accessed(struct soft_vcpu *v, struct soft_descriptor *d) SOFT_MUST_CHECK;
/* Set or clear the busy bit of the TSS descriptor at d->addr, in memory only. */
int soft_descriptor_set_busy(struct soft_vcpu *v, const struct soft_descriptor *d,
                             bool is_busy) SOFT_MUST_CHECK;
/* Load a segment register's hidden part; no checks, no faults. */
void soft_segment_install(struct soft_vcpu *v, unsigned seg, uint16_t selector,
                          const struct soft_descriptor *d);
/* As real and virtual-8086 mode load one: base = selector * 16; v86 sets limit and rights too. */
void soft_segment_install_real(struct soft_vcpu *v, unsigned seg, uint16_t selector);
/* Null: unusable. `dpl` is kept in the attributes, which for SS is the CPL. */
void soft_segment_install_null(struct soft_vcpu *v, unsigned seg, uint16_t selector, unsigned dpl);
/* Flat code and stack segments as SYSCALL and friends make them. */
void soft_segment_install_flat_code(struct soft_vcpu *v, uint16_t selector, unsigned dpl,
                                    bool is_64bit);
void soft_segment_install_flat_stack(struct soft_vcpu *v, uint16_t selector, unsigned dpl);
/* After a return to outer privilege: drop data segments the new CPL may not use. */
void soft_segments_drop_inaccessible(struct soft_vcpu *v);
/*
 * Stack for privilege level `dpl` from the TSS: *ss and *sp. #TS on a TSS too short. In long
 * mode *ss is the null selector with RPL dpl; *sp is checked to be canonical (#SS).
 */
int soft_tss_stack(struct soft_vcpu *v, unsigned dpl, uint32_t ext, uint16_t *ss,
                   uint64_t *sp) SOFT_MUST_CHECK;
/* Checks of a stack segment taken from a TSS, for privilege level `dpl`: #TS, #SS. */
int soft_inner_stack_check(struct soft_vcpu *v, uint16_t ss, unsigned dpl, uint32_t ext,
                           struct soft_descriptor *d) SOFT_MUST_CHECK;

/* Canonical for the paging mode in use (48 or 57 bits). */
static inline bool soft_is_canonical(const struct soft_vcpu *v, uint64_t addr)
{
    unsigned width = v->st.cr4 & CR4_LA57 ? 57 : 48;

    return (uint64_t)sign_extend(addr, width) == addr;
}

/* Canonical for the widest paging mode of the model, as MSR writes check. */
static inline bool soft_is_canonical_max(const struct soft_vcpu *v, uint64_t addr)
{
    return (uint64_t)sign_extend(addr, v->model->linear_bits == 57 ? 57 : 48) == addr;
}

/* #GP(0) unless CPL is 0 (true in real mode, false in virtual-8086 mode). */
static inline int soft_require_cpl0(struct soft_vcpu *v)
{
    return UNLIKELY(cpu_cpl(&v->st) != 0) ? soft_raise_error(v, VEC_GP, 0) : 0;
}

/* Protected mode proper: not real, not virtual-8086. */
static inline bool soft_is_protected(const struct soft_vcpu *v)
{
    return !cpu_is_real(&v->st) && !cpu_is_v86(&v->st);
}

/* The model's vendor is AMD (or Hygon): a few system instructions differ. */
static inline bool soft_is_amd(const struct soft_vcpu *v)
{
    return v->model->is_amd;
}

/* transfer.c: far control transfers; JMP, CALL and RET near are elsewhere. */
int soft_far_jump(struct soft_vcpu *v, const struct insn *in) SOFT_MUST_CHECK;
int soft_far_call(struct soft_vcpu *v, const struct insn *in) SOFT_MUST_CHECK;
int soft_far_return(struct soft_vcpu *v, const struct insn *in) SOFT_MUST_CHECK;
/* The checked offset for a jump to a code segment: canonical, or within its limit; else #GP(0). */
int soft_code_offset_check(struct soft_vcpu *v, const struct soft_descriptor *cs,
                           uint64_t offset) SOFT_MUST_CHECK;
/*
 * What far RET and IRET share. Read the stack at rSP + displacement without popping; check the
 * CS popped; check the SS popped for privilege `rpl` (a null one comes back SEG_UNUSABLE); load
 * SS and rSP, CS having been loaded before.
 */
int soft_return_peek(struct soft_vcpu *v, uint64_t displacement, unsigned size,
                     uint64_t *value) SOFT_MUST_CHECK;
int soft_return_code_check(struct soft_vcpu *v, uint16_t selector,
                           struct soft_descriptor *cs) SOFT_MUST_CHECK;
int soft_return_stack_check(struct soft_vcpu *v, uint16_t selector, unsigned rpl,
                            const struct soft_descriptor *cs,
                            struct soft_descriptor *ss) SOFT_MUST_CHECK;
void soft_return_stack_install(struct soft_vcpu *v, uint16_t selector, unsigned rpl,
                               const struct soft_descriptor *ss, uint64_t sp);

/* iret.c */
int soft_iret(struct soft_vcpu *v, const struct insn *in) SOFT_MUST_CHECK;

/* task.c */
enum soft_task_source {
    SOFT_TASK_JUMP,
    SOFT_TASK_CALL,
    SOFT_TASK_IRET,
    SOFT_TASK_EVENT, /* exception or interrupt through a task gate: nests like CALL */
};
/*
 * Switch to the task of `tss_selector` (SDM vol. 3, 7.3). The caller has checked privileges of a
 * gate or TSS selector used as operand; this checks the TSS descriptor itself (#GP, or #TS for
 * IRET and events; `ext` is or-ed into those error codes). `saved_eip` is what the old task
 * continues at. With has_error, `error` is pushed on the new task's stack. v->next_rip becomes
 * the new EIP. Faults after the switch are those of the new task: st.rip is its EIP then.
 */
int soft_task_switch(struct soft_vcpu *v, uint16_t tss_selector, enum soft_task_source source,
                     uint64_t saved_eip, uint32_t ext, bool has_error,
                     uint32_t error) SOFT_MUST_CHECK;

/* io.c: #GP(0) unless the current privilege may use ports [port, port + size). */
int soft_io_check(struct soft_vcpu *v, uint16_t port, unsigned size) SOFT_MUST_CHECK;

/* sysreg.c */
int soft_write_cr0(struct soft_vcpu *v, uint64_t value) SOFT_MUST_CHECK;
int soft_write_cr3(struct soft_vcpu *v, uint64_t value) SOFT_MUST_CHECK;
int soft_write_cr4(struct soft_vcpu *v, uint64_t value) SOFT_MUST_CHECK;

/* msr.c: false for #GP(0). */
bool soft_msr_read(struct soft_vcpu *v, uint32_t index, uint64_t *value);
bool soft_msr_write(struct soft_vcpu *v, uint32_t index, uint64_t value);

/* mtrr.c: false when `index` is none of its MSRs or, *is_mine true, for #GP(0). */
bool soft_mtrr_read(struct soft_vcpu *v, uint32_t index, uint64_t *value, bool *is_mine);
bool soft_mtrr_write(struct soft_vcpu *v, uint32_t index, uint64_t value, bool *is_mine);

/* MOV to and from segment registers (segcheck.c). */
int soft_mov_sreg(struct soft_vcpu *v, const struct insn *in) SOFT_MUST_CHECK;

/* Dispatch tables beside soft_ops_system[], each terminated by fn == NULL. */
extern const struct soft_op soft_ops_interrupt[];
extern const struct soft_op soft_ops_sysreg[];
extern const struct soft_op soft_ops_msr[];
extern const struct soft_op soft_ops_syscall[];
extern const struct soft_op soft_ops_segcheck[];
extern const struct soft_op soft_ops_io[];

#endif
