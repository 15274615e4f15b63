/*
 * isolation.c - guest code that knows the monitor's addresses tries to reach them
 *
 * Every general register holds the address of a forbidden page of this process, of the code cache
 * or the heap, or a distance that leads there (bit offsets, indices, string counts). The forbidden
 * page allows no access at all: generated code or a thunk that reached it would page-fault, which
 * the engines' fault hooks do not forgive, so this process would die. Pages that may be written are
 * compared afterwards. The guest must find #PF, #GP or #SS each time it used such an address.
 *
 * Loops, which the translator runs without checks (engine/bt/emit_loop.c), walk across pages that
 * are neighbours in the guest and lie at the two ends of its RAM, which has forbidden pages on both
 * sides; also where addresses wrap around.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <Zydis/Zydis.h>

#include "cpu/insn.h"
#include "generate.h"
#include "engine/engine.h"
#include "os/tsc.h"

#define CASES 60000
#define LOOPS 20000
#define PAGE 4096

static uint64_t random_state = 20260101;

static uint64_t draw(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static uint8_t *forbidden, *witness, *witness_copy;

static uint64_t draw_target(void)
{
    uint64_t target = (uintptr_t)(draw() & 1 ? forbidden : witness) + draw() % PAGE;
    switch (draw() % 8) {
    case 0:
        return target - DIFF_DATA; /* as an index */
    case 1:
        return (target - DIFF_DATA) * 8; /* as a bit offset */
    case 2:
        return DIFF_DATA + draw() % DIFF_WINDOW;
    case 3:
        return (target - DIFF_DATA) / 8;
    case 4:
        return (uintptr_t)&random_state + draw() % 64;
    default:
        return target;
    }
}

/* What must have been tried, so that a change of the generator cannot empty this test. */
enum family {
    BIT_STRING,
    GATHER,
    STRING,
    STACK,
    MASKMOV,
    XLAT,
    ENTER,
    MASKED,
    IMAGE,
    FAMILY_COUNT
};
static unsigned families[FAMILY_COUNT];

static void count_family(const struct insn *in)
{
    switch (in->op) {
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
        families[BIT_STRING]++;
        break;
    case ZYDIS_MNEMONIC_PUSH:
    case ZYDIS_MNEMONIC_POP:
    case ZYDIS_MNEMONIC_PUSHA:
    case ZYDIS_MNEMONIC_LEAVE:
    case ZYDIS_MNEMONIC_PUSHFQ:
    case ZYDIS_MNEMONIC_POPFQ:
        families[STACK]++;
        break;
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
        families[MASKMOV]++;
        break;
    case ZYDIS_MNEMONIC_XLAT:
        families[XLAT]++;
        break;
    case ZYDIS_MNEMONIC_ENTER:
        families[ENTER]++;
        break;
    default:
        families[IMAGE] += draw_is_image(in);
        families[STRING] += draw_is_string(in);
        families[GATHER] += in->is_vsib;
        families[MASKED] += in->is_mem_masked;
    }
}

/* Branches may loop for ever; everything else ends in an exception. */
static bool is_branch(const struct insn *in)
{
    if (in->encoding != INSN_LEGACY)
        return false;
    if (in->opcode_map == ZYDIS_OPCODE_MAP_0F)
        return in->opcode >= 0x80 && in->opcode <= 0x8f;
    if (in->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT)
        return false;
    return (in->opcode >= 0x70 && in->opcode <= 0x7f) || (in->opcode & 0xf0) == 0xe0 ||
           in->opcode == 0xff || (in->opcode & 0xf6) == 0xc2 || in->opcode == 0x9a ||
           in->opcode == 0xcf;
}

/* One instruction with a memory operand, or one that addresses memory implicitly. */
static void draw_case(struct diff_case *c, const struct cpu_model *model)
{
    struct rng r = {draw()};
    struct insn in;
    int len;

    memset(c, 0, sizeof(*c));
    c->mode = draw() % 4 == 0 ? 4 : 8;
    do {
        draw_bytes(&r, c->mode, c->code);
        len = insn_decode(&in, c->code, INSN_MAX_LEN, c->mode, model);
    } while (len <= 0 || in.is_hidden || is_branch(&in) || (!in.has_mem && in.cls != INSN_SPECIAL));
    count_family(&in);
    memset(c->code + len, 0xcc, sizeof(c->code) - (size_t)len);
    c->code_size = (unsigned)len + 1;

    struct diff_state *st = &c->before;
    for (unsigned i = 0; i < CPU_GPR_COUNT; i++)
        st->gpr[i] = c->mode == 8 ? draw_target() : i < 8 ? (uint32_t)draw_target() : 0;
    if (draw() % 2)
        st->gpr[CPU_RSP] = DIFF_STACK + PAGE;
    st->rflags = RFLAGS_FIXED;
    st->rip = DIFF_CODE + draw() % (DIFF_CODE_SIZE - 4 * DIFF_CODE_MAX);
    store_le16(st->xsave, 0x37f);
    store_le32(st->xsave + 24, 0x1f80);
    for (unsigned i = 160; i + 8 <= model->xsave_size && i + 8 <= sizeof(st->xsave); i += 8) {
        if (i == 416)
            i = 576;
        store_le64(st->xsave + i, draw_target()); /* indices of gathers and scatters; masks */
    }
    store_le64(st->xsave + 512, model->xcr0_valid);
}

static void *map_anywhere(int prot)
{
    void *p = mmap(NULL, PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        abort();
    return p;
}

/* Any two pages, and where addresses of 32 and of 64 bits start over. */
static const uint64_t edges[] = {UINT64_C(0x40001000), UINT64_C(0x100000000), 0};

/* Both engines must survive them and come to the same end. */
static int run_loops(struct diff_guest *guests[2], const struct cpu_model *model)
{
    static struct diff_case c;
    static struct diff_state after[2];

    for (unsigned g = 0; g < 2; g++)
        diff_guest_map_edges(guests[g], edges, ARRAY_SIZE(edges));
    for (unsigned i = 0; i < LOOPS; i++) {
        diff_generate_loop_at(&c, draw(), model, edges, ARRAY_SIZE(edges));
        for (unsigned g = 0; g < 2; g++)
            if (!diff_guest_run(guests[g], &c, &after[g]))
                after[g].vector = 32;
        if (after[0].vector != after[1].vector || after[0].rip != after[1].rip ||
            (after[0].vector != 32 &&
             memcmp(after[0].gpr, after[1].gpr, sizeof(after[0].gpr)) != 0)) {
            printf("loop %u, case %" PRIu64 ": the engines differ\n", i, c.seed);
            return 1;
        }
    }
    uint64_t loops = diff_guest_count(guests[0], "loops");
    printf("%u loops, %" PRIu64 " of them in strips\n", LOOPS, loops);
    return loops < LOOPS / 8;
}

int main(void)
{
    static struct diff_case c;
    static struct diff_state after;
    struct cpu_model model;
    struct diff_guest *guests[2];
    uint64_t vectors[33] = {0};
    struct err e;

    forbidden = map_anywhere(PROT_NONE);
    witness = map_anywhere(PROT_READ | PROT_WRITE);
    witness_copy = map_anywhere(PROT_READ | PROT_WRITE);
    for (unsigned i = 0; i < PAGE; i++)
        witness[i] = witness_copy[i] = (uint8_t)draw();
    if (cpu_model_create("host", 1, tsc_frequency_hz(), &model, &e) != 0 ||
        diff_guest_open(&engine_bt, &model, &guests[0], &e) != 0 ||
        diff_guest_open(&engine_interp, &model, &guests[1], &e) != 0) {
        fprintf(stderr, "isolation: %s\n", e.msg);
        return 2;
    }
    for (unsigned i = 0; i < CASES; i++) {
        draw_case(&c, &model);
        for (unsigned g = 0; g < 2; g++) {
            bool ended = diff_guest_run(guests[g], &c, &after);
            vectors[ended ? after.vector : 32]++;
            if (memcmp(witness, witness_copy, PAGE) != 0) {
                printf("case %u: %s wrote to memory outside of the guest\n", i,
                       g == 0 ? "bt" : "interp");
                return 1;
            }
        }
    }
    printf("%u hostile instructions on 2 engines; they ended in", CASES);
    for (unsigned i = 0; i < 32; i++)
        if (vectors[i] != 0)
            printf(" #%u: %" PRIu64, i, vectors[i]);
    printf("\n");
    if (run_loops(guests, &model) != 0)
        return 1;
    diff_guest_close(guests[0]);
    diff_guest_close(guests[1]);
    for (unsigned i = 0; i < FAMILY_COUNT; i++) {
        if (families[i] < CASES / 2000) {
            printf("family %u was tried %u times only\n", i, families[i]);
            return 1;
        }
    }
    return vectors[VEC_PF] + vectors[VEC_GP] + vectors[VEC_SS] < CASES / 4;
}
