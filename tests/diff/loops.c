/*
 * loops.c - loops that walk through memory, all from one 64-bit seed
 *
 * Such loops run in strips in the translator (engine/bt/emit_loop.c), so what matters here are
 * steps of every size and direction, ranges that cross pages, faults after some iterations, and
 * registers of which the translator has to move some. Instructions are drawn as elsewhere; those
 * with a memory operand get an address made of the loop's registers.
 */
#include <string.h>

#include "generate.h"

#define CODE_ROOM (DIFF_CODE_MAX - DIFF_TAIL)
#define POINTERS_MAX 4
#define BODY_MAX 7
#define OUT_PATCHES 8

struct loop_gen {
    struct rng *r;
    struct diff_case *c;
    const struct cpu_model *model;
    unsigned pointer[POINTERS_MAX]; /* registers */
    int step[POINTERS_MAX];
    bool has_stepped[POINTERS_MAX];
    unsigned pointer_count, counter;
    uint16_t reserved; /* pointers and counter: nothing else changes them */
    unsigned trips;
    unsigned out[OUT_PATCHES]; /* rel8 of branches to behind the loop */
    unsigned out_count;
    bool is_full;
    const uint64_t *edges; /* given: addresses lie around these */
    unsigned edge_count;
};

static void put(struct loop_gen *g, const void *bytes, unsigned n)
{
    if (g->c->code_size + n > CODE_ROOM) {
        g->is_full = true;
        return;
    }
    memcpy(g->c->code + g->c->code_size, bytes, n);
    g->c->code_size += n;
}

/* 83 or 81 /ext: an operation on a whole register with a constant */
static void put_op_imm(struct loop_gen *g, unsigned ext, unsigned reg, int32_t imm)
{
    bool is_short = imm >= -128 && imm <= 127 && !rng_percent(g->r, 20);
    uint8_t code[8];
    unsigned n = 0;

    if (g->c->mode == 8)
        code[n++] = (uint8_t)(0x48 | reg >> 3);
    code[n++] = is_short ? 0x83 : 0x81;
    code[n++] = (uint8_t)(0xc0 | ext << 3 | (reg & 7));
    store_le32(code + n, (uint32_t)imm);
    put(g, code, n + (is_short ? 1 : 4));
}

static void put_inc_dec(struct loop_gen *g, bool is_dec, unsigned reg)
{
    uint8_t code[3] = {(uint8_t)(0x48 | reg >> 3), 0xff,
                       (uint8_t)(0xc0 | (unsigned)is_dec << 3 | (reg & 7))};
    if (g->c->mode == 8) {
        put(g, code, 3);
    } else if (rng_percent(g->r, 50)) {
        put(g, code + 1, 2);
    } else {
        code[0] = (uint8_t)(0x40 | (unsigned)is_dec << 3 | reg);
        put(g, code, 1);
    }
}

/* lea reg, [reg + imm] */
static void put_lea(struct loop_gen *g, unsigned reg, int32_t imm)
{
    uint8_t code[9];
    unsigned n = 0;

    if (g->c->mode == 8)
        code[n++] = (uint8_t)(0x48 | (reg >> 3) * 5);
    code[n++] = 0x8d;
    code[n++] = (uint8_t)(0x80 | (reg & 7) << 3 | (reg & 7));
    if ((reg & 7) == 4)
        code[n++] = 0x24;
    store_le32(code + n, (uint32_t)imm);
    put(g, code, n + 4);
}

static void put_step(struct loop_gen *g, unsigned i)
{
    int step = g->step[i];
    unsigned reg = g->pointer[i];

    g->has_stepped[i] = true;
    if (step == 0)
        return;
    if ((step == 1 || step == -1) && rng_percent(g->r, 60))
        put_inc_dec(g, step < 0, reg);
    else if (rng_percent(g->r, 20))
        put_lea(g, reg, step);
    else if (rng_percent(g->r, 50))
        put_op_imm(g, 0, reg, step);
    else
        put_op_imm(g, 5, reg, -step);
    if (rng_percent(g->r, 5)) { /* not by a constant only */
        put_op_imm(g, 4, reg, ~0x10);
    }
}

/* jcc rel8 to behind the loop */
static void put_branch_out(struct loop_gen *g, unsigned condition)
{
    uint8_t code[2] = {(uint8_t)(0x70 | condition), 0};
    put(g, code, 2);
    if (g->out_count < OUT_PATCHES)
        g->out[g->out_count++] = g->c->code_size - 1;
}

/* An address of the loop's registers for the operand of *in, encoded anew. */
static bool put_access(struct loop_gen *g, const struct insn *in)
{
    struct insn_recode r = {.reg = in->gpr_reg.reg,
                            .rm = in->gpr_rm.reg,
                            .vvvv = in->gpr_vvvv.reg,
                            .opcode = in->gpr_opcode.reg,
                            .mem_index = INSN_NO_REG};
    unsigned i = rng_below(g->r, g->pointer_count);
    uint8_t code[INSN_RECODE_MAX];
    struct insn again;

    r.mem_base = (uint8_t)g->pointer[i];
    r.mem_disp = rng_percent(g->r, 50)   ? 0
                 : rng_percent(g->r, 80) ? (int32_t)rng_below(g->r, 64) - 16
                                         : (int32_t)rng_below(g->r, 1024) - 512;
    size_t n = insn_recode(code, in, &r);
    if (n == 0 || n > INSN_MAX_LEN || (g->c->mode == 4 && (code[0] & 0xf0) == 0x40) ||
        insn_decode(&again, code, n, g->c->mode, g->model) != (int)n || again.op != in->op ||
        again.mem_size != in->mem_size || again.mem_base != r.mem_base)
        return false;
    put(g, code, (unsigned)n);
    return true;
}

/* Draw an instruction of data processing that leaves the loop's registers alone. */
static void put_drawn(struct loop_gen *g, bool has_mem)
{
    uint8_t bytes[INSN_MAX_LEN];
    struct insn in;

    for (;;) {
        draw_bytes(g->r, g->c->mode, bytes);
        int len = insn_decode(&in, bytes, INSN_MAX_LEN, g->c->mode, g->model);
        if (len <= 0 || in.cls != INSN_DATA || in.is_hidden ||
            draw_classify(&in) != DRAW_ANYWHERE || (in.gpr_written & g->reserved) ||
            (in.gpr_written & BIT(CPU_RSP)))
            continue;
        if (!has_mem && !in.has_mem && len <= 8) {
            put(g, bytes, (unsigned)len);
            return;
        }
        if (has_mem && in.has_mem && !in.is_agen && in.mem_size != 0 && !in.is_mem_masked &&
            put_access(g, &in))
            return;
    }
}

/* MOV, ADD and the like of every size, and vectors: what loops are made of. */
static void put_common(struct loop_gen *g)
{
    static const struct {
        uint8_t n, bytes[4];
        bool writes_gpr; /* ModRM.reg is a general register that is written */
    } forms[] = {
        {1, {0x8b}, true},
        {1, {0x8a}, false},
        {1, {0x89}, false},
        {1, {0x88}, false},
        {2, {0x66, 0x89}, false},
        {2, {0x0f, 0xb6}, true},
        {2, {0x0f, 0xbf}, true},
        {1, {0x03}, true},
        {1, {0x01}, false},
        {1, {0x3b}, false},
        {1, {0x13}, true},
        {2, {0x0f, 0x10}, false},
        {2, {0x0f, 0x11}, false},
        {2, {0x0f, 0x28}, false},
        {2, {0x0f, 0x29}, false},
        {3, {0x66, 0x0f, 0xfe}, false},
        {3, {0x66, 0x0f, 0x58}, false},
        {3, {0xf3, 0x0f, 0x59}, false},
        {1, {0xd3}, false},
        {1, {0xf7}, false},
    };
    for (;;) {
        unsigned f = rng_below(g->r, ARRAY_SIZE(forms));
        uint8_t bytes[INSN_MAX_LEN] = {0};
        struct insn in;
        memcpy(bytes, forms[f].bytes, forms[f].n);
        bytes[forms[f].n] = (uint8_t)(rng_below(g->r, 8) << 3 | 6);
        int len = insn_decode(&in, bytes, INSN_MAX_LEN, g->c->mode, g->model);
        if (len > 0 && in.cls == INSN_DATA && !in.is_hidden && !(in.gpr_written & g->reserved) &&
            !(in.gpr_written & BIT(CPU_RSP)) && put_access(g, &in))
            return;
    }
}

static void put_body(struct loop_gen *g)
{
    unsigned n = 1 + rng_below(g->r, BODY_MAX);

    for (unsigned k = 0; k < n; k++) {
        unsigned i = rng_below(g->r, g->pointer_count);
        if (rng_percent(g->r, 25) && !g->has_stepped[i])
            put_step(g, i);
        if (rng_percent(g->r, 40))
            put_common(g);
        else
            put_drawn(g, rng_percent(g->r, 60));
        if (rng_percent(g->r, 6))
            put_branch_out(g, rng_below(g->r, 16));
    }
    for (unsigned i = 0; i < g->pointer_count; i++)
        if (!g->has_stepped[i])
            put_step(g, i);
}

static void put_branch_back(struct loop_gen *g, unsigned opcode)
{
    uint8_t code[6] = {0x0f, (uint8_t)(0x80 | opcode)};
    int distance = (int)g->c->code_size + 2;

    if (opcode == 0xeb) {
        code[0] = 0xeb;
        code[1] = (uint8_t)-distance;
        put(g, code, 2);
    } else if (distance <= 128 && !rng_percent(g->r, 20)) {
        code[0] = (uint8_t)(0x70 | opcode);
        code[1] = (uint8_t)-distance;
        put(g, code, 2);
    } else {
        store_le32(code + 2, (uint32_t) - (distance + 4));
        put(g, code, 6);
    }
}

#define JNZ 5
#define JZ 4

static void put_close(struct loop_gen *g)
{
    struct diff_state *st = &g->c->before;

    st->gpr[g->counter] = g->trips;
    switch (rng_below(g->r, 5)) {
    case 0:
        put_op_imm(g, 5, g->counter, 1);
        put_branch_back(g, JNZ);
        break;
    case 1:
        st->gpr[g->counter] = g->c->mode == 8 ? -(uint64_t)g->trips : (uint32_t)-g->trips;
        put_inc_dec(g, false, g->counter);
        put_branch_back(g, JNZ);
        break;
    case 2:
        put_inc_dec(g, true, g->counter);
        put_branch_out(g, JZ);
        put_branch_back(g, 0xeb);
        break;
    case 3:
        st->gpr[g->counter] = 0;
        put_op_imm(g, 0, g->counter, 1);
        put_op_imm(g, 7, g->counter, (int32_t)g->trips);
        put_branch_back(g, 2); /* jb */
        break;
    default:
        put_inc_dec(g, true, g->counter);
        put_branch_back(g, JNZ);
        break;
    }
    for (unsigned i = 0; i < g->out_count && !g->is_full; i++)
        g->c->code[g->out[i]] = (uint8_t)(g->c->code_size + 4 - (g->out[i] + 1));
}

/* Registers, steps and places; the range is likely in a window, or runs out of it. */
static void choose_registers(struct loop_gen *g)
{
    static const int steps[] = {0,   0,   1,   1,   2,   2,    3,    4,  4,  5,  8,
                                8,   16,  16,  24,  32,  40,   48,   64, 64, 96, 128,
                                256, 511, 512, 513, 600, 1024, 4096, 16, 8,  1};
    unsigned registers = g->c->mode == 8 ? 16 : 8;
    struct diff_state *st = &g->c->before;

    g->trips = rng_percent(g->r, 70) ? 1 + rng_below(g->r, 200) : 1 + rng_below(g->r, 6);
    if (rng_percent(g->r, 4))
        g->trips = 1 + rng_below(g->r, 5000);
    g->pointer_count = 1 + rng_below(g->r, POINTERS_MAX);
    for (unsigned i = 0; i <= g->pointer_count; i++) {
        unsigned reg;
        do
            reg = rng_below(g->r, registers);
        while (reg == CPU_RSP || (g->reserved & BIT(reg)));
        g->reserved |= (uint16_t)BIT(reg);
        if (i == g->pointer_count) {
            g->counter = reg;
            break;
        }
        g->pointer[i] = reg;
        g->step[i] = steps[rng_below(g->r, ARRAY_SIZE(steps))];
        if (rng_percent(g->r, 30))
            g->step[i] = -g->step[i];
        if (g->edge_count != 0) {
            int64_t before = (int64_t)rng_below(g->r, 2 * 4096) * (g->step[i] < 0 ? 1 : -1);
            if (rng_percent(g->r, 50))
                before = -(int64_t)rng_below(g->r, g->trips) * g->step[i];
            st->gpr[reg] = g->edges[rng_below(g->r, g->edge_count)] + (uint64_t)before;
            if (g->c->mode == 4)
                st->gpr[reg] = (uint32_t)st->gpr[reg];
            continue;
        }
        uint64_t window = rng_percent(g->r, 50) ? DIFF_DATA : DIFF_STACK;
        uint64_t length = (uint64_t)(g->step[i] < 0 ? -g->step[i] : g->step[i]) * g->trips;
        uint64_t room = length + 64 < DIFF_WINDOW ? DIFF_WINDOW - length - 64 : 64;
        uint64_t at = 32 + rng_next(g->r) % room;
        if (rng_percent(g->r, 15))
            at = rng_next(g->r) % DIFF_WINDOW;
        if (rng_percent(g->r, 50))
            at &= ~UINT64_C(15);
        st->gpr[reg] = window + (g->step[i] < 0 ? DIFF_WINDOW - 32 - at : at);
    }
}

void diff_generate_loop(struct diff_case *c, uint64_t seed, const struct cpu_model *model)
{
    diff_generate_loop_at(c, seed, model, NULL, 0);
}

void diff_generate_loop_at(struct diff_case *c, uint64_t seed, const struct cpu_model *model,
                           const uint64_t *edges, unsigned edge_count)
{
    struct rng r = {seed ^ UINT64_C(0x6c6f6f7073)};

    for (;;) {
        struct loop_gen g = {
            .r = &r, .c = c, .model = model, .edges = edges, .edge_count = edge_count};
        draw_start(c, seed, rng_percent(&r, 70) ? 8 : 4);
        draw_state(&r, c, model);
        if ((c->before.rip & 0xfff) > 0x1000 - DIFF_CODE_MAX)
            c->before.rip &= ~UINT64_C(0xff);
        choose_registers(&g);
        put_body(&g);
        put_close(&g);
        if (!g.is_full)
            break;
    }
    draw_finish(c);
}
