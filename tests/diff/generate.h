/*
 * generate.h - the parts of the generator: random numbers, instructions, operands
 *
 * Everything about a case follows from its seed: no part keeps state of its own.
 */
#ifndef DOPPEL_TESTS_GENERATE_H
#define DOPPEL_TESTS_GENERATE_H

#include "cpu/insn.h"
#include "diff.h"

struct rng {
    uint64_t s;
};

uint64_t rng_next(struct rng *r);
unsigned rng_below(struct rng *r, unsigned n);
bool rng_percent(struct rng *r, unsigned percent);
/* Values where carries, signs and widths change. */
uint64_t rng_value(struct rng *r);

/* draw.c: 15 bytes that are likely an instruction for code of `mode` bytes. */
void draw_bytes(struct rng *r, unsigned mode, uint8_t bytes[INSN_MAX_LEN]);

/* The same, mostly: PUSH, POP, moves of RSP by constants, operands through RSP. */
void draw_stack_bytes(struct rng *r, unsigned mode, uint8_t bytes[INSN_MAX_LEN]);

/* What may follow an instruction of a sequence, and what it asks of its operands. */
enum draw_kind {
    DRAW_REFUSED, /* reaches the kernel, tells the time or the machine's identity */
    DRAW_ANYWHERE,
    DRAW_FIRST, /* its implicit operands are in registers that must be set */
    DRAW_LAST,  /* control leaves it for somewhere else */
};
enum draw_kind draw_classify(const struct insn *in);
bool draw_is_string(const struct insn *in);
/* Does it load or store an x87, SSE or XSAVE image? */
bool draw_is_image(const struct insn *in);

/* generate.c: the parts of a case. */
void draw_start(struct diff_case *c, uint64_t seed, unsigned mode);
void draw_state(struct rng *r, struct diff_case *c, const struct cpu_model *model);
void draw_finish(struct diff_case *c);

/* steer.c: make the operands of *in lie in the windows; `bytes` are in's. False: no use. */
struct steer {
    struct rng *r;
    struct diff_case *c;
    const struct cpu_model *model;
    uint64_t rip;      /* of the instruction */
    bool is_first;     /* no instruction has changed registers or memory yet */
    uint16_t pointers; /* registers that hold addresses in the windows */
};
bool steer_operands(struct steer *s, const struct insn *in, uint8_t *bytes);

#endif
