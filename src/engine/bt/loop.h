/*
 * loop.h - loops of one block, run in strips that need no checks
 *
 * loop.c finds out which memory accesses of a loop move by a constant from iteration to iteration;
 * emit_loop.c writes the code.
 */
#ifndef DOPPEL_ENGINE_BT_LOOP_H
#define DOPPEL_ENGINE_BT_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#define BT_LOOP_INSNS_MAX 64
#define BT_LOOP_STREAMS 6
/* Bytes that the accesses of one stream cover in an iteration, and its longest step. */
#define BT_LOOP_SPAN_MAX 512
#define BT_LOOP_STEP_MAX 512
/*
 * Steps of all streams together: with more, some stream leaves its page after a dozen iterations,
 * and coming back to the entry costs what was saved.
 */
#define BT_LOOP_STEPS_MAX 256
/* Instructions in a strip, about: a vCPU whose attention is wanted looks up after that many. */
#define BT_LOOP_BUDGET 16384u
#define BT_LOOP_EXITS 128
#define BT_LOOP_MAP_MAX 64 /* instructions of all copies together */

struct bt_tr;
struct bt_block;
struct bt_vcpu;
struct insn;

/* Accesses through the same registers. Without any the displacement is an address. */
struct bt_loop_stream {
    uint8_t base, index, scale, seg; /* guest registers or INSN_NO_REG; CPU_FS, CPU_GS or CPU_DS */
    bool is_write;
    uint8_t pointer;    /* host register: where `low` is in the current iteration */
    int32_t step;       /* of its address, per iteration */
    uint64_t low, high; /* displacements covered in the first iteration */
};

struct bt_loop {
    bool is_found;
    bool is_endless; /* closed by JMP: left by other branches only */
    bool is_rcx_implicit;
    uint8_t last;           /* index of the branch back */
    uint8_t unroll;         /* iterations in the main copy; a power of two */
    uint16_t used, written; /* guest registers that the copies need and change */
    uint16_t spilled;       /* guest registers that gave way to pointers */
    uint8_t host[16];       /* of each guest register that is used */
    unsigned stream_count;
    struct bt_loop_stream streams[BT_LOOP_STREAMS];
    uint8_t stream_of[BT_LOOP_INSNS_MAX]; /* of each access */
    uint64_t disp_of[BT_LOOP_INSNS_MAX];  /* as in low and high */
    uint8_t *back;                        /* rel32 of the branch back in the block proper */
    uint8_t *behind;                      /* and what follows it */
};

/* What has to be known of a strip when a host fault ends it. Offsets: from the guard entry. */
struct bt_loop_map {
    uint16_t entry;          /* a five-byte NOP at an 8-byte boundary, as a body's */
    uint16_t begin, end;     /* of the copies */
    uint16_t count;          /* instructions of all copies: struct bt_copy_map */
    uint16_t spilled, moved; /* moved: R10, R11, R15 that are in registers */
    uint8_t host[3];         /* of R10, R11, R15 */
    uint8_t refusals;        /* guesses: several vCPUs count without a lock */
    uint64_t refused_tsc;
};

/* A copy of instruction `insn` begins at `host`. */
struct bt_copy_map {
    uint16_t insn, host;
};

/* loop.c: is there a loop from the block's start, all of whose accesses are streams? */
void bt_loop_find(struct bt_tr *t);

/* emit_loop.c */
/* The branch back, in the block proper. */
void bt_loop_emit_back(struct bt_tr *t, const struct insn *in);
/* The strips, behind the block proper. */
void bt_loop_emit(struct bt_tr *t);

/* loop_run.c */
/* A host fault at `at`, within a strip: make the state that of the block proper; where it is. */
const uint8_t *bt_loop_recover(struct bt_vcpu *b, const struct bt_block *block, const uint8_t *at,
                               uint64_t s1, uint64_t s2);
/* A stream of the strip at `at` may not be accessed directly: where to go on instead. */
const uint8_t *bt_loop_refuse(struct bt_vcpu *b, const uint8_t *at);

#endif
