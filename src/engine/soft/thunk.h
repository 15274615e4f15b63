/*
 * thunk.h - making and destroying a vCPU's native thunks (thunk.c)
 */
#ifndef DOPPEL_ENGINE_SOFT_THUNK_H
#define DOPPEL_ENGINE_SOFT_THUNK_H

#include "base/err.h"
#include "cpu/insn.h"

#define SOFT_THUNK_MAX 256u

/* Called with (vCPU, operand's host address); status flags travel in scratch[0]. */
typedef void (*soft_thunk_fn)(void *vcpu, void *operand);

struct soft_thunk_slot {
    uint8_t bytes[INSN_MAX_LEN];
    uint8_t len;
    uint8_t mode;
    uint32_t generation;
    soft_thunk_fn fn; /* NULL: cannot be encoded */
};

struct soft_thunks {
    uint8_t *rw, *rx; /* the same memory, writable and executable */
    uint32_t used, size;
    unsigned slot_mask;
    uint32_t generation; /* of valid slots; changes when the code is thrown away */
    uint8_t *exit;       /* where a thunk that faulted goes on (executable) */
    /* set by the fault hook, read after the thunk */
    uint32_t trap; /* vector + 1; 0: none */
    uint8_t bounce[256] __attribute__((aligned(64)));
    struct soft_thunk_slot slots[];
};

struct soft_vcpu;
struct soft_sizes;

/*
 * Run the instruction natively with its memory operand at host address `operand`; raises what the
 * host CPU raised.
 */
int soft_thunk_run(struct soft_vcpu *v, const struct insn *in, void *operand)
    __attribute__((warn_unused_result));

/* Room for 128 bytes, misaligned as the guest's address is. */
uint8_t *soft_thunk_bounce(struct soft_vcpu *v, uint64_t addr);

/* masked.c: does it store its elements one by one, masked or not (VCOMPRESSPS...)? */
bool soft_is_compressed(const struct insn *in);

/* masked.c: an instruction with a memory operand whose masked-off elements must not be touched. */
int soft_exec_masked(struct soft_vcpu *v, const struct insn *in)
    __attribute__((warn_unused_result));

/* thunk_alloc.c; may use libc. */
int soft_thunks_create(const struct soft_sizes *sizes, struct soft_thunks **out, struct err *e);
void soft_thunks_destroy(struct soft_thunks *thunks);

#endif
