/*
 * state.h - the architectural state of one x86-64 logical processor
 *
 * No pointers, no host types, no cached or lazy values: what this holds between two
 * instructions is all there is to know of the processor (the local APIC is a device). Engines
 * load it, run, and store it back; CPU_* groups say which parts an exchange covers.
 *
 * Names and encodings: AMD64 APM volume 2, Intel SDM volume 3.
 */
#ifndef DOPPEL_CPU_STATE_H
#define DOPPEL_CPU_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bits.h"

typedef uint64_t gpa_t;   /* guest-physical address */
typedef uint64_t gva_t;   /* guest-linear address (segment base applied) */

enum cpu_gpr {
    CPU_RAX, CPU_RCX, CPU_RDX, CPU_RBX, CPU_RSP, CPU_RBP, CPU_RSI, CPU_RDI,
    CPU_R8, CPU_R9, CPU_R10, CPU_R11, CPU_R12, CPU_R13, CPU_R14, CPU_R15,
    CPU_GPR_COUNT,
};

/* The order of the Sreg encoding; LDTR and TR follow. */
enum cpu_seg_index { CPU_ES, CPU_CS, CPU_SS, CPU_DS, CPU_FS, CPU_GS, CPU_LDTR, CPU_TR, CPU_SEG_COUNT };

#define RFLAGS_CF BIT(0)
#define RFLAGS_FIXED BIT(1)
#define RFLAGS_PF BIT(2)
#define RFLAGS_AF BIT(4)
#define RFLAGS_ZF BIT(6)
#define RFLAGS_SF BIT(7)
#define RFLAGS_TF BIT(8)
#define RFLAGS_IF BIT(9)
#define RFLAGS_DF BIT(10)
#define RFLAGS_OF BIT(11)
#define RFLAGS_IOPL (BIT(12) | BIT(13))
#define RFLAGS_IOPL_SHIFT 12
#define RFLAGS_NT BIT(14)
#define RFLAGS_RF BIT(16)
#define RFLAGS_VM BIT(17)
#define RFLAGS_AC BIT(18)
#define RFLAGS_VIF BIT(19)
#define RFLAGS_VIP BIT(20)
#define RFLAGS_ID BIT(21)
#define RFLAGS_STATUS (RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF)

#define CR0_PE BIT(0)
#define CR0_MP BIT(1)
#define CR0_EM BIT(2)
#define CR0_TS BIT(3)
#define CR0_ET BIT(4)
#define CR0_NE BIT(5)
#define CR0_WP BIT(16)
#define CR0_AM BIT(18)
#define CR0_NW BIT(29)
#define CR0_CD BIT(30)
#define CR0_PG BIT(31)

#define CR4_VME BIT(0)
#define CR4_PVI BIT(1)
#define CR4_TSD BIT(2)
#define CR4_DE BIT(3)
#define CR4_PSE BIT(4)
#define CR4_PAE BIT(5)
#define CR4_MCE BIT(6)
#define CR4_PGE BIT(7)
#define CR4_PCE BIT(8)
#define CR4_OSFXSR BIT(9)
#define CR4_OSXMMEXCPT BIT(10)
#define CR4_UMIP BIT(11)
#define CR4_LA57 BIT(12)
#define CR4_FSGSBASE BIT(16)
#define CR4_PCIDE BIT(17)
#define CR4_OSXSAVE BIT(18)
#define CR4_SMEP BIT(20)
#define CR4_SMAP BIT(21)
#define CR4_PKE BIT(22)

#define EFER_SCE BIT(0)
#define EFER_LME BIT(8)
#define EFER_LMA BIT(10)
#define EFER_NXE BIT(11)
#define EFER_FFXSR BIT(14)

#define DR6_FIXED UINT64_C(0xffff0ff0)
#define DR6_BD BIT(13)
#define DR6_BS BIT(14)
#define DR6_BT BIT(15)
#define DR7_FIXED UINT64_C(0x400)
#define DR7_GD BIT(13)

#define DEBUGCTL_LBR BIT(0)
#define DEBUGCTL_BTF BIT(1)

#define XCR0_X87 BIT(0)
#define XCR0_SSE BIT(1)
#define XCR0_AVX BIT(2)
#define XCR0_AVX512 (BIT(5) | BIT(6) | BIT(7))

enum cpu_vector {
    VEC_DE = 0, VEC_DB = 1, VEC_NMI = 2, VEC_BP = 3, VEC_OF = 4, VEC_BR = 5, VEC_UD = 6, VEC_NM = 7,
    VEC_DF = 8, VEC_TS = 10, VEC_NP = 11, VEC_SS = 12, VEC_GP = 13, VEC_PF = 14, VEC_MF = 16,
    VEC_AC = 17, VEC_MC = 18, VEC_XM = 19,
};

/* exception_vector in shutdown, where the engine cannot tell. */
#define CPU_VECTOR_UNKNOWN 0xff

#define PF_ERR_P BIT(0)
#define PF_ERR_W BIT(1)
#define PF_ERR_U BIT(2)
#define PF_ERR_RSVD BIT(3)
#define PF_ERR_I BIT(4)

/*
 * Segment attributes, in the layout of bits 8..23 of a descriptor's high half with the limit
 * bits left out (the VMCB's and VMCS's format differ only in packing).
 */
#define SEG_TYPE_MASK 0xfu
#define SEG_TYPE_ACCESSED 0x1u
#define SEG_TYPE_WRITE_READ 0x2u   /* data: writable; code: readable */
#define SEG_TYPE_DOWN_CONFORM 0x4u /* data: expand-down; code: conforming */
#define SEG_TYPE_CODE 0x8u
#define SEG_S 0x10u                /* code or data (not a system segment) */
#define SEG_DPL_SHIFT 5
#define SEG_DPL 0x60u
#define SEG_P 0x80u
#define SEG_AVL 0x1000u
#define SEG_L 0x2000u
#define SEG_DB 0x4000u
#define SEG_G 0x8000u
#define SEG_UNUSABLE 0x10000u      /* a null selector was loaded */

struct cpu_seg {
    uint16_t selector;
    uint16_t pad;
    uint32_t attr;    /* SEG_* */
    uint32_t limit;   /* in bytes, granularity applied */
    uint32_t pad2;
    uint64_t base;
};

struct cpu_table {
    uint64_t base;
    uint16_t limit;
    uint16_t pad[3];
};

enum cpu_run_state {
    CPU_RUNNING,
    CPU_HALTED,          /* HLT: until an unmasked interrupt, NMI or INIT */
    CPU_WAIT_SIPI,       /* after INIT on an application processor */
    CPU_SHUTDOWN,        /* triple fault */
};

/* The largest XSAVE image kept: x87, SSE, AVX, MPX, AVX-512 and PKRU, standard format. */
#define CPU_XSAVE_SIZE 2816

/* Interruptions between this instruction and the next (SDM vol. 3, 6.8.3 and 6.7.1). */
#define SHADOW_STI 1u
#define SHADOW_MOV_SS 2u

#define CPU_MTRR_VARIABLE_COUNT 8

struct cpu_state {
    uint64_t gpr[CPU_GPR_COUNT];
    uint64_t rip;
    uint64_t rflags;
    struct cpu_seg seg[CPU_SEG_COUNT];
    struct cpu_table gdtr, idtr;
    uint64_t cr0, cr2, cr3, cr4;
    uint64_t xcr0;
    uint64_t dr[4], dr6, dr7;
    uint64_t pae_pdpte[4];   /* loaded by MOV CR3 in PAE mode */

    /* model-specific registers */
    uint64_t efer, star, lstar, cstar, sfmask, kernel_gs_base;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t pat, tsc_aux, misc_enable;
    uint64_t spec_ctrl, debugctl;
    uint64_t mtrr_def_type, mtrr_fixed[11];
    uint64_t mtrr_base[CPU_MTRR_VARIABLE_COUNT], mtrr_mask[CPU_MTRR_VARIABLE_COUNT];
    uint64_t tsc_offset;     /* guest TSC = host TSC + tsc_offset (modulo 2^64) */
    uint64_t tsc_adjust;     /* IA32_TSC_ADJUST, already within tsc_offset */

    /* events */
    uint8_t run_state;       /* enum cpu_run_state */
    uint8_t shadow;          /* SHADOW_* that cover the next instruction */
    uint8_t is_nmi_blocked;  /* between NMI delivery and IRET */
    uint8_t is_exception_pending; /* raised but not delivered yet, e.g. by another engine */
    uint8_t exception_vector; /* of the pending exception; in shutdown: of what led there */
    uint8_t exception_has_error;
    uint8_t is_ferr;         /* FERR# is asserted: an x87 exception with CR0.NE clear */
    uint8_t pad;
    uint32_t exception_error;
    uint64_t pending_dbg;    /* DR6 bits of a #DB that is due at the next boundary */

    uint8_t xsave[CPU_XSAVE_SIZE] __attribute__((aligned(64)));
};

/* Register groups for exchanges between engine and machine. */
#define CPU_GROUP_GPR BIT(0)     /* gpr, rip, rflags */
#define CPU_GROUP_SEG BIT(1)
#define CPU_GROUP_CONTROL BIT(2) /* control, debug and table registers */
#define CPU_GROUP_MSR BIT(3)
#define CPU_GROUP_XSAVE BIT(4)   /* xcr0, xsave */
#define CPU_GROUP_EVENT BIT(5)
#define CPU_GROUP_TSC BIT(6)     /* tsc_offset, tsc_adjust */
#define CPU_GROUP_ALL (BIT(7) - 1)

/* Processor state after RESET# (SDM vol. 3, table 9-1), run_state running; rdx = model. */
void cpu_state_reset(struct cpu_state *st, uint32_t cpuid_1_eax);

/*
 * What INIT does to a processor: as reset, but x87/SSE state, MSRs, TSC, MTRRs, CR0.CD/NW keep
 * their values (SDM vol. 3, table 9-1). run_state is left for the caller to decide.
 */
void cpu_state_init(struct cpu_state *st, uint32_t cpuid_1_eax);

/* Start at real-mode address vector << 12 after INIT (SDM vol. 3, 8.4). */
void cpu_state_sipi(struct cpu_state *st, uint8_t vector);

/* Current privilege level: SS.DPL (0 in real mode, 3 in virtual-8086 mode). */
static inline unsigned cpu_cpl(const struct cpu_state *st)
{
    return (st->seg[CPU_SS].attr & SEG_DPL) >> SEG_DPL_SHIFT;
}

static inline bool cpu_is_long(const struct cpu_state *st)
{
    return (st->efer & EFER_LMA) != 0;
}

/* 64-bit mode proper, not compatibility mode. */
static inline bool cpu_is_64bit(const struct cpu_state *st)
{
    return (st->efer & EFER_LMA) && (st->seg[CPU_CS].attr & SEG_L);
}

static inline bool cpu_is_v86(const struct cpu_state *st)
{
    return (st->rflags & RFLAGS_VM) != 0;
}

/* Real mode: no protection at all. */
static inline bool cpu_is_real(const struct cpu_state *st)
{
    return !(st->cr0 & CR0_PE);
}

/* Default operand and address size of the code segment in bytes: 2, 4 or 8 (8 = 64-bit mode). */
static inline unsigned cpu_code_size(const struct cpu_state *st)
{
    if (cpu_is_64bit(st))
        return 8;
    return st->seg[CPU_CS].attr & SEG_DB ? 4 : 2;
}

/* Width of the stack pointer in bytes. */
static inline unsigned cpu_stack_size(const struct cpu_state *st)
{
    if (cpu_is_64bit(st))
        return 8;
    return st->seg[CPU_SS].attr & SEG_DB ? 4 : 2;
}

#endif
