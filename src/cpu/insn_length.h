/*
 * insn_length.h - how long an instruction is that does not exist
 */
#ifndef DOPPEL_CPU_INSN_LENGTH_H
#define DOPPEL_CPU_INSN_LENGTH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Length, by the rules of its opcode map, of the instruction that begins at `bytes` (n of them
 * are there). More than n: it goes on beyond them; 0: not known. AMD's processors know XOP.
 */
size_t insn_undefined_length(const uint8_t *bytes, size_t n, unsigned mode, bool is_amd);

/* How many of the bytes are prefixes, REX included. */
size_t insn_prefix_count(const uint8_t *bytes, size_t n, unsigned mode);

#endif
