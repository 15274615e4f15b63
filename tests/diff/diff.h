/*
 * diff.h - one test case, and the places it runs: the two software engines and the host CPU
 *
 * A case is up to DIFF_INSNS instructions of user-mode code and the state before them. Code, data
 * and stack have the same linear addresses in the guests and in this process, so that the very
 * same bytes run natively. Each sequence ends in INT3; what counts as the outcome is the first
 * exception, with the state it found.
 */
#ifndef DOPPEL_TESTS_DIFF_H
#define DOPPEL_TESTS_DIFF_H

#include <stdbool.h>
#include <stdint.h>

#include "cpu/model.h"
#include "cpu/state.h"

#define DIFF_CODE UINT64_C(0x10000000) /* 1 MiB */
#define DIFF_CODE_SIZE UINT64_C(0x100000)
#define DIFF_DATA UINT64_C(0x20000000)  /* two pages; the next one is not mapped */
#define DIFF_STACK UINT64_C(0x30000000) /* two pages, as well */
#define DIFF_WINDOW UINT64_C(0x2000)
#define DIFF_INSNS 6
#define DIFF_CODE_MAX 128
#define DIFF_TAIL 33 /* INT3s behind the code: a branch lands on any of them */

struct diff_state {
    uint64_t gpr[CPU_GPR_COUNT];
    uint64_t rip, rflags;
    uint64_t cr2;
    uint32_t vector, error;
    uint8_t data[DIFF_WINDOW];
    uint8_t stack[DIFF_WINDOW];
    uint8_t xsave[CPU_XSAVE_SIZE] __attribute__((aligned(64)));
};

/* What an image in memory holds that is not compared: reserved bytes, x87 pointers. */
enum diff_image { DIFF_IMAGE_NONE, DIFF_IMAGE_FXSAVE, DIFF_IMAGE_ENV16, DIFF_IMAGE_ENV32 };

struct diff_case {
    uint64_t seed;
    unsigned mode;      /* 8: 64-bit code, 4: 32-bit code in compatibility mode */
    bool is_without_ac; /* given: leave RFLAGS.AC clear */
    uint8_t code[DIFF_CODE_MAX];
    unsigned code_size;
    enum diff_image image; /* the last instruction stores one at image_addr */
    uint64_t image_addr;
    struct diff_state before; /* rip is where the code lies */
};

/* loops.c: a loop that walks through memory. */
void diff_generate_loop(struct diff_case *c, uint64_t seed, const struct cpu_model *model);
/* The same, its addresses around `edges`, which it is to run across. */
void diff_generate_loop_at(struct diff_case *c, uint64_t seed, const struct cpu_model *model,
                           const uint64_t *edges, unsigned edge_count);
/* generate.c: the case that belongs to `seed`. */
void diff_generate(struct diff_case *c, uint64_t seed, const struct cpu_model *model);
/* As above, but with these instructions; false when they do not fit together. */
bool diff_generate_for(struct diff_case *c, uint64_t seed, const struct cpu_model *model,
                       unsigned mode, const uint8_t *bytes, unsigned size);

/* regress.c: what once differed; bytes of the instructions, padded where a field may be longer. */
struct diff_regression {
    uint8_t mode, size;
    const char *bytes;
    const char *what;
};
extern const struct diff_regression diff_regressions[];
extern const unsigned diff_regression_count;

/*
 * forgive.c: make equal in `st` what is not to be compared with `native`. For native itself, call
 * it first, with itself.
 */
void diff_forgive(const struct diff_case *c, struct diff_state *st,
                  const struct diff_state *native);
/* Did an engine end as it may, and the processor go on in its own way? */
bool diff_is_left_open(const struct diff_case *c, const struct diff_state *native,
                       const struct diff_state *engine);

/* Is it one whose differences forgive.c knows? */
bool diff_is_examined_processor(void);

/* native.c: on this CPU, in this process. */
int diff_native_open(const struct cpu_model *model, struct err *e);
void diff_native_run(const struct diff_case *c, struct diff_state *after);

/* guest.c: on an engine. */
struct engine_ops;
struct diff_guest;
int diff_guest_open(const struct engine_ops *ops, const struct cpu_model *model,
                    struct diff_guest **out, struct err *e);
void diff_guest_close(struct diff_guest *g);
/*
 * Map the last page of RAM below each of `edges` and the first one above it: pages that are
 * neighbours in the guest and have pages without any access beside them in this process.
 */
void diff_guest_map_edges(struct diff_guest *g, const uint64_t *edges, unsigned edge_count);
/* The engine's counter `key`. */
uint64_t diff_guest_count(struct diff_guest *g, const char *key);
/* False when the engine did something that no user code can make it do. */
bool diff_guest_run(struct diff_guest *g, const struct diff_case *c, struct diff_state *after);

#endif
