/*
 * ops.h - the dispatch tables of the unprivileged instructions, each ended by fn == NULL
 */
#ifndef DOPPEL_ENGINE_SOFT_OPS_H
#define DOPPEL_ENGINE_SOFT_OPS_H

#include "engine/soft/vcpu.h"

extern const struct soft_op soft_ops_stack[];    /* stack.c */
extern const struct soft_op soft_ops_branch[];   /* branch.c */
extern const struct soft_op soft_ops_string[];   /* string.c */
extern const struct soft_op soft_ops_bcd[];      /* bcd.c */

/*
 * The segment that prefixes choose for an implicit memory operand (string source, XLAT,
 * MASKMOV): DS without one. In 64-bit mode only FS and GS count. (string.c)
 */
unsigned soft_prefix_segment(const struct insn *in);

/* MOV between the accumulator and an address in the instruction, A0H to A3H (integer.c). */
int soft_mov_offset(struct soft_vcpu *v, const struct insn *in) SOFT_MUST_CHECK;
extern const struct soft_op soft_ops_vzero[];    /* masked.c */
extern const struct soft_op soft_ops_xsave[];    /* xsave.c */
extern const struct soft_op soft_ops_gather[];   /* gather.c */

#endif
