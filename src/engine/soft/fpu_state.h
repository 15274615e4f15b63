/*
 * fpu_state.h - the guest's x87 and vector state as the XSAVE image in st.xsave
 *
 * For instructions that are easier on memory than on live registers: soft_fpu_image puts the
 * state there and makes every component's bytes valid; the next instruction that needs it in
 * registers loads it again.
 *
 * The last x87 instruction's opcode and pointers are those of the guest: the host's, which an
 * XSAVE would show, never enter the image. The image holds them, current also while the rest
 * of the state is live.
 *
 * Specification: SDM vol. 1, 8.1.8 and 13.4.
 */
#ifndef DOPPEL_ENGINE_SOFT_FPU_STATE_H
#define DOPPEL_ENGINE_SOFT_FPU_STATE_H

#include "engine/soft/vcpu.h"

/* Offsets in the image. */
#define FPU_FCW 0u
#define FPU_FSW 2u
#define FPU_FTW 4u /* abridged: a bit per register, 0 = empty */
#define FPU_FOP 6u
#define FPU_FIP 8u /* 64 bits, or 32 and CS's selector */
#define FPU_FDP 16u
#define FPU_MXCSR 24u
#define FPU_MXCSR_MASK 28u
#define FPU_ST 32u
#define FPU_XMM 160u
#define FPU_XMM_END 416u
#define FPU_LEGACY_SIZE 512u
#define FPU_XSTATE_BV 512u
#define FPU_XCOMP_BV 520u
#define FPU_EXTENDED 576u

#define FPU_FCW_INIT 0x37fu
#define FPU_MXCSR_INIT 0x1f80u
#define FPU_MXCSR_MM 0x20000u   /* AMD: misaligned operands do not fault */
#define FPU_FSW_ES 0x80u

enum fpu_component {
    FPU_COMP_X87,
    FPU_COMP_SSE,
    FPU_COMP_AVX,
    FPU_COMP_OPMASK = 5,
    FPU_COMP_ZMM_HI256,
    FPU_COMP_HI16_ZMM,
    FPU_COMP_COUNT,
};

/* Put live state into st.xsave, with all components' bytes valid. Not live afterwards. */
uint8_t *soft_fpu_image(struct soft_vcpu *v);
/* Component `c` was changed in the image. */
static inline void soft_fpu_image_mark(struct soft_vcpu *v, unsigned c)
{
    uint8_t *p = v->st.xsave + FPU_XSTATE_BV;
    store_le64(p, load_le64(p) | BIT(c));
}

/* Bytes [16 * part, 16 * part + 16) of vector register `n` (part 0..3, n 0..31) in the image. */
uint8_t *soft_fpu_vector(struct soft_vcpu *v, unsigned n, unsigned part);
/* Note that vector register `n` up to `size` bytes was changed. */
void soft_fpu_vector_mark(struct soft_vcpu *v, unsigned n, unsigned size);

/* Is an unmasked x87 exception pending (FSW.ES)? */
bool soft_fpu_is_pending(struct soft_vcpu *v);
/*
 * Report the pending x87 exception: #MF, or FERR# and the instruction waits for the interrupt
 * (SDM vol. 1, 8.7; ferr.c). Return what the semantic function is to return.
 */
int soft_fpu_raise_pending(struct soft_vcpu *v);

/*
 * With FERR# asserted (st.is_ferr): is `in` about to wait for an exception that IGNNE# lets pass?
 * Then it is run between soft_ferr_mask, which returns the control word, and soft_ferr_unmask.
 */
bool soft_ferr_is_ignored(struct soft_vcpu *v, const struct insn *in);
uint16_t soft_ferr_mask(struct soft_vcpu *v);
void soft_ferr_unmask(struct soft_vcpu *v, const struct insn *in, uint16_t fcw, bool has_run);
/* After an instruction with FERR# asserted: has the exception gone? */
void soft_ferr_update(struct soft_vcpu *v);

/*
 * soft_operand_address for an operand that the CPU accesses in pieces, of which the one at
 * `first` (bytes into it, of piece_size bytes) comes first: where the operand wraps around the end
 * of a segment of 4 GiB, the page fault of that piece goes before the segment's fault.
 */
int soft_fpu_operand(struct soft_vcpu *v, const struct insn *in, unsigned size, unsigned first,
                     unsigned piece_size, enum soft_access access, gva_t *addr) SOFT_MUST_CHECK;

/* Does it set the instruction and data pointers? Of x87 instructions but FNINIT, which zeroes them. */
bool soft_fpu_sets_pointers(const struct insn *in);
/* An x87 instruction that sets the instruction and data pointers has run. */
void soft_fpu_note_x87(struct soft_vcpu *v, const struct insn *in);

#endif
