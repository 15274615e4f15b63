/*
 * insn_cache.h - decoding by what was decoded before
 *
 * Most instructions differ from an earlier one in displacement and immediate only. The cache keeps
 * decoded instructions by their prefixes, opcode, ModRM and SIB bytes; a hit fills in the rest.
 */
#ifndef DOPPEL_CPU_INSN_CACHE_H
#define DOPPEL_CPU_INSN_CACHE_H

#include "cpu/insn.h"

#define INSN_CACHE_SLOTS 4096u

struct insn_template {
    uint64_t
        head; /* prefixes to SIB; no instruction's when zero: that is a slot without `in.len` */
    struct insn in;
    uint8_t disp_off, disp_size;
};

/* Zeroed memory is an empty cache. Of one CPU model; for one thread at a time. */
struct insn_cache {
    struct insn_template slots[INSN_CACHE_SLOTS];
    uint64_t hits; /* for tests */
};

/* As insn_decode, with the same result to the last byte. The model is always the same. */
int insn_decode_cached(struct insn_cache *cache, struct insn *out, const uint8_t *bytes,
                       size_t avail, unsigned mode, const struct cpu_model *model);

#endif
