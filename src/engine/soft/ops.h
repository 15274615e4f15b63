/*
 * ops.h - the dispatch tables of the unprivileged instructions, each ended by fn == NULL
 */
#ifndef DOPPEL_ENGINE_SOFT_OPS_H
#define DOPPEL_ENGINE_SOFT_OPS_H

#include "engine/soft/vcpu.h"

extern const struct soft_op soft_ops_stack[];    /* stack.c */
extern const struct soft_op soft_ops_branch[];   /* branch.c */
extern const struct soft_op soft_ops_string[];   /* string.c */

#endif
