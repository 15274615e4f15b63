/*
 * insn_hidden.h - does the CPU model hide an instruction?
 */
#ifndef DOPPEL_CPU_INSN_HIDDEN_H
#define DOPPEL_CPU_INSN_HIDDEN_H

#include <Zydis/Zydis.h>
#include <stdbool.h>

struct cpu_model;

/* model may be NULL: then only what doppel never offers is hidden. */
bool insn_is_hidden(const ZydisDecodedInstruction *in, const struct cpu_model *model);

#endif
