/*
 * exec.h - the cache of decoded instructions (exec.c)
 */
#ifndef DOPPEL_ENGINE_SOFT_EXEC_H
#define DOPPEL_ENGINE_SOFT_EXEC_H

#include "cpu/insn.h"
#include "cpu/state.h"

struct soft_insn_slot {
    gva_t addr;                /* all ones: nothing */
    struct insn in;
};

struct soft_insn_cache {
    unsigned mask;             /* slots, a power of two, less one */
    struct soft_insn_slot slots[];
};

#endif
