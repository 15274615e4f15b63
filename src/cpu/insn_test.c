/*
 * insn_test.c - decoding and re-encoding, by hand-made expectations and against Zydis
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <Zydis/Zydis.h>

#include "base/bits.h"
#include "cpu/insn.h"
#include "cpu/model.h"
#include "cpu/state.h"

#define SEED UINT64_C(0x9e3779b97f4a7c15)

static uint64_t random_next(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

static int decode(struct insn *in, unsigned mode, const char *bytes, size_t size)
{
    return insn_decode(in, (const uint8_t *)bytes, size, mode, NULL);
}
#define DECODE(in, mode, text) decode(in, mode, text, sizeof(text) - 1)

static void test_fields(void **state)
{
    struct insn in;

    /* lock add qword [r12 + rcx*8 + 0x11223344], r9 */
    assert_int_equal(DECODE(&in, 8, "\xf0\x4d\x01\x8c\xcc\x44\x33\x22\x11"), 9);
    assert_int_equal(in.op, ZYDIS_MNEMONIC_ADD);
    assert_int_equal(in.cls, INSN_DATA);
    assert_true(in.has_lock && in.has_rex && in.has_modrm && in.has_mem);
    assert_int_equal(in.rex_off, 1);
    assert_int_equal(in.opcode_off, 2);
    assert_int_equal(in.modrm_off, 3);
    assert_int_equal(in.op_size, 8);
    assert_int_equal(in.gpr_reg.reg, CPU_R9);
    assert_int_equal(in.gpr_reg.size, 8);
    assert_true(in.gpr_reg.is_read && !in.gpr_reg.is_written);
    assert_int_equal(in.gpr_rm.reg, INSN_NO_REG);
    assert_int_equal(in.mem_base, CPU_R12);
    assert_int_equal(in.mem_index, CPU_RCX);
    assert_int_equal(in.mem_scale, 8);
    assert_int_equal(in.mem_disp, 0x11223344);
    assert_int_equal(in.mem_size, 8);
    assert_int_equal(in.mem_access, INSN_ACCESS_READ | INSN_ACCESS_WRITE);
    assert_int_equal(in.gpr_read, BIT(9) | BIT(12) | BIT(1));
    assert_int_equal(in.gpr_written, 0);
    assert_int_equal(in.flags_written, RFLAGS_STATUS);

    /* mov ah, [rip + 0x10] */
    assert_int_equal(DECODE(&in, 8, "\x8a\x25\x10\x00\x00\x00"), 6);
    assert_int_equal(in.mem_base, INSN_RIP);
    assert_true(in.gpr_reg.is_high_byte && in.uses_high_byte);
    assert_int_equal(in.gpr_reg.reg, CPU_RAX);
    assert_int_equal(in.mem_disp, 0x10);

    /* mov eax, moffs32 of 16-bit code with 66 67 */
    assert_int_equal(DECODE(&in, 2, "\x66\x67\xa1\x00\x00\x00\x80"), 7);
    assert_true(in.has_mem && in.cls == INSN_SPECIAL);
    assert_int_equal(in.op_size, 4);
    assert_int_equal(in.addr_size, 4);
    assert_int_equal((uint32_t)in.mem_disp, 0x80000000);
    assert_int_equal(in.mem_base, INSN_NO_REG);

    /* vaddps zmm1{k2}, zmm3, [rax + 64*1]{1to16: no} */
    assert_int_equal(DECODE(&in, 8, "\x62\xf1\x64\x4a\x58\x48\x01"), 7);
    assert_int_equal(in.encoding, INSN_EVEX);
    assert_int_equal(in.unit, INSN_UNIT_AVX512);
    assert_int_equal(in.mem_disp, 64);
    assert_int_equal(in.mem_size, 64);
    assert_true(in.is_mem_masked);
    assert_int_equal(in.mask_lanes, 16);

    /* mov fs:[bp + si - 2], ax */
    assert_int_equal(DECODE(&in, 2, "\x64\x89\x42\xfe"), 4);
    assert_int_equal(in.seg, CPU_FS);
    assert_true(in.has_seg_override);
    assert_int_equal(in.mem_base, CPU_RBP);
    assert_int_equal(in.mem_index, CPU_RSI);
    assert_int_equal(in.mem_disp, -2);
    assert_int_equal(in.addr_size, 2);

    /* imul eax, [rbx], -3 */
    assert_int_equal(DECODE(&in, 8, "\x6b\x03\xfd"), 3);
    assert_int_equal((int64_t)in.imm, -3);
    assert_int_equal(in.imm_off, 2);
    assert_int_equal(in.imm_size, 1);

    /* paddusb mm5, [r11d*2 + 0x3bb32ff7]: REX.B makes no base of SIB.base 5 */
    assert_int_equal(DECODE(&in, 8, "\x67\x43\x0f\xdc\x2c\x5d\xf7\x2f\xb3\x3b"), 10);
    assert_int_equal(in.mem_base, INSN_NO_REG);
    assert_int_equal(in.mem_index, CPU_R11);
    assert_int_equal(in.mem_disp, 0x3bb32ff7);
    assert_int_equal(in.addr_size, 4);

    /* a 2-byte segment override in 64-bit mode has no effect */
    assert_int_equal(DECODE(&in, 8, "\x2e\x8b\x00"), 3);
    assert_int_equal(in.seg, CPU_DS);
    assert_int_equal(DECODE(&in, 4, "\x2e\x8b\x00"), 3);
    assert_int_equal(in.seg, CPU_CS);
}

static const struct {
    const char *bytes;
    uint8_t len, mode, cls, unit;
} class_cases[] = {
#define CASE(bytes, mode, cls, unit)                                                               \
    {                                                                                              \
        bytes, sizeof(bytes) - 1, mode, INSN_##cls, INSN_UNIT_##unit                               \
    }
    CASE("\x0f\x44\xc1", 8, DATA, INT),                /* cmovz */
    CASE("\x0f\xb1\x0a", 8, DATA, INT),                /* cmpxchg [rdx], ecx */
    CASE("\x0f\xa3\x08", 8, SPECIAL, INT),             /* bt [rax], ecx: a bit string */
    CASE("\x0f\xba\x20\x05", 8, DATA, INT),            /* bt [rax], 5 */
    CASE("\x0f\xa3\xc8", 8, DATA, INT),                /* bt eax, ecx */
    CASE("\x50", 8, SPECIAL, INT),                     /* push */
    CASE("\xc3", 8, SPECIAL, INT),                     /* ret */
    CASE("\xa4", 8, SPECIAL, INT),                     /* movsb */
    CASE("\x8e\xd8", 8, SPECIAL, INT),                 /* mov ds, eax */
    CASE("\x0f\x20\xc0", 8, SPECIAL, INT),             /* mov rax, cr0 */
    CASE("\xfc", 8, SPECIAL, INT),                     /* cld */
    CASE("\xf9", 8, DATA, INT),                        /* stc */
    CASE("\x9e", 8, DATA, INT),                        /* sahf */
    CASE("\xd9\xc0", 8, DATA, X87),                    /* fld st0 */
    CASE("\xdb\x08", 8, DATA, X87),                    /* fisttp */
    CASE("\xd9\x30", 8, SPECIAL, X87),                 /* fnstenv */
    CASE("\x9b", 8, DATA, WAIT),                       /* fwait */
    CASE("\x0f\xfc\xc1", 8, DATA, MMX),                /* paddb mm */
    CASE("\x0f\x77", 8, DATA, MMX),                    /* emms */
    CASE("\x66\x0f\xfc\xc1", 8, DATA, SSE),            /* paddb xmm */
    CASE("\x0f\xae\x10", 8, DATA, SSE),                /* ldmxcsr */
    CASE("\x0f\xae\xe8", 8, DATA, INT),                /* lfence */
    CASE("\x0f\xc3\x08", 8, DATA, INT),                /* movnti */
    CASE("\xf2\x0f\x38\xf1\xc1", 8, DATA, INT),        /* crc32 */
    CASE("\xc4\xe2\x70\xf2\xc1", 8, DATA, VEX_INT),    /* andn */
    CASE("\xc5\xf8\x77", 8, DATA, AVX),                /* vzeroupper */
    CASE("\xc5\xec\x41\xc9", 8, DATA, MASK),           /* kandw */
    CASE("\xc4\xe2\x69\x92\x04\x08", 8, SPECIAL, AVX), /* vgatherdps */
    CASE("\x0f\x01\xd0", 8, SPECIAL, INT),             /* xgetbv */
    CASE("\x0f\xae\x20", 8, SPECIAL, INT),             /* xsave */
    CASE("\x0f\x31", 8, SPECIAL, INT),                 /* rdtsc */
    CASE("\x37", 4, SPECIAL, INT),                     /* aaa */
    CASE("\xd7", 8, SPECIAL, INT),                     /* xlat */
    CASE("\x0f\xf7\xc1", 8, SPECIAL, MMX),             /* maskmovq */
#undef CASE
};

static void test_classes(void **state)
{
    struct insn in;

    for (size_t i = 0; i < ARRAY_SIZE(class_cases); i++) {
        int len = decode(&in, class_cases[i].mode, class_cases[i].bytes, class_cases[i].len);
        if (len != class_cases[i].len || in.cls != class_cases[i].cls ||
            in.unit != class_cases[i].unit)
            fail_msg("case %zu: length %d, class %u, unit %u", i, len, in.cls, in.unit);
    }
}

static void test_refused(void **state)
{
    struct insn in;

    assert_int_equal(DECODE(&in, 8, "\xf0\x01\xc8"), -1);             /* lock add eax, ecx */
    assert_int_equal(DECODE(&in, 8, "\xf0\x8b\x08"), -1);             /* lock mov */
    assert_int_equal(DECODE(&in, 8, "\xf0\x3b\x08"), -1);             /* lock cmp */
    assert_int_equal(DECODE(&in, 8, "\x66\xc5\xf8\x77"), -1);         /* 66 before VEX */
    assert_int_equal(DECODE(&in, 8, "\x48\xc5\xf8\x77"), -1);         /* REX before VEX */
    assert_int_equal(DECODE(&in, 8, "\x27"), -1);                     /* daa */
    assert_int_equal(DECODE(&in, 4, "\xc4\xe3\xf1\x22\xc1\x00"), -1); /* vpinsrd with W */
    assert_int_equal(DECODE(&in, 8, "\x0f"), 0);
    assert_int_equal(DECODE(&in, 8, "\x48\x8b\x84\x24\x00\x00\x00"), 0);
    assert_int_equal(DECODE(&in, 8, "\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x90"),
                     15);
    assert_int_equal(
        DECODE(&in, 8, "\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x90"), -2);
    assert_int_equal(
        DECODE(&in, 4, "\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x81\xc0\x01\x00"), -2);
}

/* The length of what does not exist comes before #UD. */
static void test_undefined_length(void **state)
{
    struct insn in;

    /* EVEX after prefixes, opcode E0 of 0F3A: 16 bytes */
    assert_int_equal(
        DECODE(&in, 4, "\x66\xf3\x2e\xf2\x62\xd3\xb5\xc4\xe0\xac\xcc\x00\x00\x00\x00\x00"), -2);
    assert_int_equal(DECODE(&in, 4, "\x62\xd3\xb5\xc4\xe0\xac\xcc\x00\x00\x00\x00"), 0);
    assert_int_equal(DECODE(&in, 4, "\x62\xd3\xb5\xc4\xe0\xac\xcc\x00\x00\x00\x00\x00"), -1);
    assert_int_equal(DECODE(&in, 8, "\x0f\x38\x0f\x80\x00\x00\x00"), 0);
    assert_int_equal(DECODE(&in, 8, "\x0f\x38\x0f\x80\x00\x00\x00\x00"), -1);
    /* lock mov eax, imm32 */
    assert_int_equal(DECODE(&in, 8, "\xf0\xb8\x00\x00\x00"), 0);
    assert_int_equal(DECODE(&in, 8, "\xf0\xb8\x00\x00\x00\x00"), -1);
    assert_int_equal(DECODE(&in, 2, "\x0f\x38\x0f\x80\x00\x00"), -1);
}

static void test_flags(void **state)
{
    struct insn in;

    assert_int_equal(DECODE(&in, 8, "\xd3\xe0"), 2); /* shl eax, cl: may change nothing */
    assert_int_equal(in.flags_read, RFLAGS_STATUS);
    assert_int_equal(in.flags_written, RFLAGS_STATUS);
    assert_true(in.gpr_read & BIT(CPU_RCX));
    assert_int_equal(DECODE(&in, 8, "\xc1\xe0\x20"), 3); /* shl eax, 32: is 0 */
    assert_int_equal(in.flags_read, RFLAGS_STATUS);
    assert_int_equal(DECODE(&in, 8, "\xd1\xe0"), 2); /* shl eax, 1 */
    assert_int_equal(in.flags_read & RFLAGS_CF, 0);
    assert_int_equal(DECODE(&in, 8, "\x21\xc8"), 2); /* and */
    assert_int_equal(in.flags_read, 0);
    assert_int_equal(in.flags_written, RFLAGS_STATUS);
    assert_int_equal(DECODE(&in, 8, "\xff\xc0"), 2); /* inc keeps CF */
    assert_int_equal(in.flags_written, RFLAGS_STATUS & ~RFLAGS_CF);
    assert_int_equal(DECODE(&in, 8, "\x11\xc8"), 2); /* adc */
    assert_int_equal(in.flags_read, RFLAGS_CF);
    assert_int_equal(DECODE(&in, 8, "\xf3\xa6"), 2); /* repe cmpsb */
    assert_int_equal(in.flags_read, RFLAGS_STATUS | RFLAGS_DF);
    assert_int_equal(DECODE(&in, 8, "\x0f\x4e\xc1"), 3); /* cmovle */
    assert_int_equal(in.flags_read, RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF);
    assert_int_equal(in.flags_written, 0);
}

static void test_hidden(void **state)
{
    static struct cpu_model model; /* offers nothing */
    struct insn in;
    const uint8_t lzcnt[] = {0xf3, 0x0f, 0xbd, 0xc1}, endbr[] = {0xf3, 0x0f, 0x1e, 0xfa};
    const uint8_t vaddps[] = {0xc5, 0xf8, 0x58, 0xc1}, wrss[] = {0x0f, 0x38, 0xf6, 0x00};
    const uint8_t xbegin[] = {0xc7, 0xf8, 0, 0, 0, 0}, prefetch[] = {0x0f, 0x0d, 0xc8};
    struct insn_recode r = {.mem_index = INSN_NO_REG};
    uint8_t out[INSN_RECODE_MAX];

    memset(&model, 0, sizeof(model));
    assert_int_equal(insn_decode(&in, lzcnt, 4, 8, NULL), 4);
    assert_int_equal(in.op, ZYDIS_MNEMONIC_LZCNT);
    assert_int_equal(insn_decode(&in, lzcnt, 4, 8, &model), 4);
    assert_int_equal(in.op, ZYDIS_MNEMONIC_BSR);
    assert_false(in.is_hidden);
    /* and the host, which may know LZCNT, must be told BSR */
    r.reg = CPU_RAX;
    r.rm = CPU_RCX;
    assert_int_equal(insn_recode(out, &in, &r), 3);
    assert_memory_equal(out, "\x0f\xbd\xc1", 3);
    assert_int_equal(insn_decode(&in, endbr, 4, 8, &model), 4);
    assert_int_equal(in.op, ZYDIS_MNEMONIC_NOP);
    assert_int_equal(insn_decode(&in, vaddps, 4, 8, &model), 4);
    assert_true(in.is_hidden);
    model.feature_words[CPU_FEATURE_AVX / 64] |= BIT(CPU_FEATURE_AVX % 64);
    assert_int_equal(insn_decode(&in, vaddps, 4, 8, &model), 4);
    assert_false(in.is_hidden);
    assert_int_equal(insn_decode(&in, wrss, 4, 8, NULL), 4);
    assert_true(in.is_hidden);
    assert_int_equal(insn_decode(&in, xbegin, 6, 8, NULL), 6);
    assert_true(in.is_hidden);
    assert_int_equal(insn_decode(&in, prefetch, 3, 8, &model), 3);
    model.is_amd = true;
    assert_int_equal(insn_decode(&in, prefetch, 3, 8, &model), -1);
}

/* ---- re-encoding, against Zydis ---- */

struct zydis {
    ZydisDecodedInstruction in;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
};

static bool zydis_decode(struct zydis *z, const uint8_t *bytes, size_t size, unsigned mode)
{
    ZydisDecoder d;
    ZydisDecoderInit(&d,
                     mode == 8   ? ZYDIS_MACHINE_MODE_LONG_64
                     : mode == 4 ? ZYDIS_MACHINE_MODE_LEGACY_32
                                 : ZYDIS_MACHINE_MODE_LEGACY_16,
                     mode == 8   ? ZYDIS_STACK_WIDTH_64
                     : mode == 4 ? ZYDIS_STACK_WIDTH_32
                                 : ZYDIS_STACK_WIDTH_16);
    return ZYAN_SUCCESS(ZydisDecoderDecodeFull(&d, bytes, size, &z->in, z->operands));
}

/* A GPR's number; -1 for other registers. */
static int gpr_number(ZydisRegister r, bool *is_high)
{
    ZydisRegisterClass c = ZydisRegisterGetClass(r);

    *is_high = r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH;
    if (c < ZYDIS_REGCLASS_GPR8 || c > ZYDIS_REGCLASS_GPR64)
        return -1;
    int id = ZydisRegisterGetId(r);
    if (c != ZYDIS_REGCLASS_GPR8)
        return id;
    return *is_high ? id - 4 : id < 4 ? id : id - 4; /* AL.. AH.. SPL.. */
}

static unsigned expected_gpr(const struct insn_recode *r, const ZydisDecodedOperand *o, int old)
{
    switch (o->encoding) {
    case ZYDIS_OPERAND_ENCODING_MODRM_REG:
        return r->reg;
    case ZYDIS_OPERAND_ENCODING_MODRM_RM:
        return r->rm;
    case ZYDIS_OPERAND_ENCODING_NDSNDD:
        return r->vvvv;
    case ZYDIS_OPERAND_ENCODING_OPCODE:
        return r->opcode;
    default:
        return (unsigned)old;
    }
}

static const char *compare_operand(const ZydisDecodedOperand *a, const ZydisDecodedOperand *b,
                                   const struct insn_recode *r)
{
    bool high_a, high_b;

    /* INC and DEC of one byte become a form with ModRM */
    bool is_same_field =
        a->encoding == b->encoding || (a->encoding == ZYDIS_OPERAND_ENCODING_OPCODE &&
                                       b->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM);
    if (a->type != b->type || !is_same_field || a->actions != b->actions)
        return "operand type";
    if (a->type == ZYDIS_OPERAND_TYPE_MEMORY &&
        a->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT) {
        int base = gpr_number(b->mem.base, &high_b), index = gpr_number(b->mem.index, &high_b);
        if (a->size != b->size || a->element_size != b->element_size)
            return "memory size";
        if (base != r->mem_base || (index < 0 ? INSN_NO_REG : index) != r->mem_index ||
            (index >= 0 && b->mem.scale != 1))
            return "memory registers";
        if (b->mem.disp.value != r->mem_disp)
            return "displacement";
        return NULL;
    }
    if (a->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
        return (a->imm.value.u ^ b->imm.value.u) & mask_bytes(a->size / 8) ? "immediate" : NULL;
    if (a->type != ZYDIS_OPERAND_TYPE_REGISTER)
        return NULL;
    int n = gpr_number(a->reg.value, &high_a), m = gpr_number(b->reg.value, &high_b);
    if (n < 0) /* RFLAGS is EFLAGS or FLAGS elsewhere */
        return a->reg.value == b->reg.value ||
                       ZydisRegisterGetClass(a->reg.value) == ZYDIS_REGCLASS_FLAGS
                   ? NULL
                   : "register";
    if (a->size != b->size || high_a != high_b)
        return "register size";
    return m == (int)expected_gpr(r, a, n) ? NULL : "general register";
}

static const char *compare(const struct zydis *a, const struct zydis *b,
                           const struct insn_recode *r)
{
    if (a->in.mnemonic != b->in.mnemonic)
        return "mnemonic";
    if (a->in.operand_count != b->in.operand_count)
        return "operand count";
    if (a->in.avx.vector_length != b->in.avx.vector_length ||
        a->in.avx.mask.mode != b->in.avx.mask.mode || a->in.avx.mask.reg != b->in.avx.mask.reg ||
        a->in.avx.broadcast.mode != b->in.avx.broadcast.mode ||
        a->in.avx.rounding.mode != b->in.avx.rounding.mode ||
        a->in.avx.has_sae != b->in.avx.has_sae)
        return "AVX attributes";
    if ((a->in.attributes ^ b->in.attributes) & ZYDIS_ATTRIB_HAS_LOCK)
        return "LOCK";
    for (unsigned i = 0; i < a->in.operand_count; i++) {
        const char *what = compare_operand(&a->operands[i], &b->operands[i], r);
        if (what != NULL)
            return what;
    }
    return NULL;
}

static void report(const char *what, const struct insn *in, const uint8_t *out, size_t n)
{
    char text[128];
    unsigned at = 0;

    for (unsigned i = 0; i < in->len; i++)
        at += (unsigned)snprintf(text + at, sizeof(text) - at, "%02x", in->bytes[i]);
    at += (unsigned)snprintf(text + at, sizeof(text) - at, " mode %u -> ", in->mode);
    for (size_t i = 0; i < n; i++)
        at += (unsigned)snprintf(text + at, sizeof(text) - at, "%02x", out[i]);
    fail_msg("%s: %s", what, text);
}

static unsigned random_gpr(uint64_t *rng, unsigned except)
{
    unsigned r = (unsigned)(random_next(rng) >> 20) & 15;
    return r == except ? (r + 1) & 15 : r;
}

/* May the combination be impossible: a high byte beside something that takes REX? */
static bool may_be_impossible(const struct insn *in)
{
    return in->uses_high_byte;
}

static void check_recode(const struct insn *in, uint64_t *rng)
{
    uint8_t out[INSN_RECODE_MAX];
    struct zydis a, b;
    uint64_t bits_ = random_next(rng);
    struct insn_recode r = {
        .reg = (uint8_t)random_gpr(rng, 16),
        .rm = (uint8_t)random_gpr(rng, 16),
        .vvvv = (uint8_t)random_gpr(rng, 16),
        .opcode = (uint8_t)random_gpr(rng, 16),
        .mem_base = (uint8_t)random_gpr(rng, 16),
        .mem_index = bits_ & 1 ? INSN_NO_REG : (uint8_t)random_gpr(rng, CPU_RSP),
    };
    const int32_t disps[] = {0, 0, 1, -128, 127, 128, 64, -64, 0x12345678, INT32_MIN};
    r.mem_disp = disps[(bits_ >> 8) % ARRAY_SIZE(disps)];
    if (in->op == ZYDIS_MNEMONIC_XCHG && in->opcode >= 0x90 && in->opcode <= 0x97 &&
        in->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && r.opcode == CPU_RAX)
        r.opcode = CPU_RDX; /* 90 is no XCHG */

    assert_true(zydis_decode(&a, in->bytes, in->len, in->mode));
    size_t n = insn_recode(out, in, &r);
    if (n == 0) {
        if (!may_be_impossible(in))
            report("not re-encoded", in, out, 0);
        return;
    }
    assert_true(n <= INSN_RECODE_MAX);
    if (!zydis_decode(&b, out, n, 8) || b.in.length != n)
        report("not decoded", in, out, n);
    const char *what = compare(&a, &b, &r);
    if (what != NULL)
        report(what, in, out, n);
}

/* Bytes that look like code: prefixes, escapes and VEX are likelier than by chance. */
static void random_bytes(uint64_t *rng, uint8_t bytes[16], unsigned mode)
{
    static const uint8_t prefixes[] = {0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x64};
    unsigned n = 0;

    for (unsigned i = 0; i < 16; i++)
        bytes[i] = (uint8_t)(random_next(rng) >> 24);
    while ((random_next(rng) >> 30 & 3) == 0 && n < 4)
        bytes[n++] = prefixes[(random_next(rng) >> 20) % ARRAY_SIZE(prefixes)];
    if (mode == 8 && (random_next(rng) >> 30 & 3) == 0)
        bytes[n++] = (uint8_t)(0x40 | (random_next(rng) >> 20 & 15));
    switch (random_next(rng) >> 30 & 15) {
    case 0:
    case 1:
    case 2:
    case 3:
        bytes[n++] = 0x0f;
        break;
    case 4:
        bytes[n++] = 0x0f;
        bytes[n++] = random_next(rng) >> 30 & 1 ? 0x38 : 0x3a;
        break;
    case 5:
        bytes[n++] = 0xc5;
        if (mode != 8)
            bytes[n] |= 0xc0;
        break;
    case 6:
        bytes[n++] = 0xc4;
        bytes[n] = (uint8_t)((bytes[n] & 0xe0) | (1 + bytes[n] % 3) | (mode != 8 ? 0xc0 : 0));
        break;
    case 7:
    case 8:
        bytes[n++] = 0x62;
        bytes[n] = (uint8_t)((bytes[n] & 0xf0) | (1 + bytes[n] % 3) | (mode != 8 ? 0xc0 : 0));
        bytes[n + 1] |= 4;
        if (mode != 8)
            bytes[n + 2] |= 8;
        if (random_next(rng) >> 30 & 1) /* no masking, 512 bits, no rounding */
            bytes[n + 2] &= 0x48;
        break;
    default:
        break;
    }
}

static bool is_run_natively(const struct insn *in)
{
    return in->cls == INSN_DATA && !in->is_hidden && !in->is_agen && in->op != ZYDIS_MNEMONIC_NOP &&
           in->op != ZYDIS_MNEMONIC_LEA && in->op != ZYDIS_MNEMONIC_PAUSE;
}

static void test_recode_random(void **state)
{
    uint64_t rng = SEED;
    unsigned checked = 0;

    for (unsigned i = 0; i < 900000; i++) {
        unsigned mode = 2u << i % 3;
        uint8_t bytes[16];
        struct insn in;

        random_bytes(&rng, bytes, mode);
        int len = insn_decode(&in, bytes, sizeof(bytes), mode, NULL);
        if (len <= 0 || !is_run_natively(&in))
            continue;
        if (mode == 8 && in.op == ZYDIS_MNEMONIC_XCHG && in.opcode == 0x90)
            continue; /* F3 41 90, which Zydis takes for PAUSE */
        check_recode(&in, &rng);
        checked++;
    }
    assert_true(checked > 200000);
}

/* A prefix of an instruction is never taken for one, and what follows does not matter. */
static void test_truncation(void **state)
{
    uint64_t rng = SEED + 1;

    for (unsigned i = 0; i < 60000; i++) {
        unsigned mode = 2u << i % 3;
        uint8_t bytes[16], other[16];
        struct insn a, b;

        random_bytes(&rng, bytes, mode);
        int len = insn_decode(&a, bytes, sizeof(bytes), mode, NULL);
        if (len <= 0)
            continue;
        for (int n = 1; n < len; n++)
            assert_int_equal(insn_decode(&b, bytes, (size_t)n, mode, NULL), 0);
        assert_int_equal(insn_decode(&b, bytes, (size_t)len, mode, NULL), len);
        assert_memory_equal(&a, &b, sizeof(a));
        memset(other, 0xcc, sizeof(other));
        memcpy(other, bytes, (size_t)len);
        assert_int_equal(insn_decode(&b, other, sizeof(other), mode, NULL), len);
        assert_memory_equal(&a, &b, sizeof(a));
    }
}

/* What the fields say agrees with the bytes and with Zydis's operands. */
static void test_decode_random(void **state)
{
    uint64_t rng = SEED + 2;

    for (unsigned i = 0; i < 300000; i++) {
        unsigned mode = 2u << i % 3;
        uint8_t bytes[16];
        struct insn in;
        struct zydis z;
        uint16_t read = 0, written = 0;

        random_bytes(&rng, bytes, mode);
        if (insn_decode(&in, bytes, sizeof(bytes), mode, NULL) <= 0 ||
            !zydis_decode(&z, bytes, in.len, mode) || z.in.mnemonic != in.op)
            continue;
        if (in.opcode_map != ZYDIS_OPCODE_MAP_0F0F) /* 3DNow!: the opcode comes last */
            assert_int_equal(in.bytes[in.opcode_off], in.opcode);
        if (in.has_modrm)
            assert_int_equal(in.bytes[in.modrm_off], in.modrm);
        if (in.imm_size != 0)
            assert_true(in.imm_off + in.imm_size <= in.len);
        for (unsigned k = 0; k < z.in.operand_count; k++) {
            const ZydisDecodedOperand *o = &z.operands[k];
            bool is_high;
            int n =
                o->type == ZYDIS_OPERAND_TYPE_REGISTER ? gpr_number(o->reg.value, &is_high) : -1;
            if (n >= 0 && (o->actions & ZYDIS_OPERAND_ACTION_MASK_READ))
                read |= (uint16_t)BIT(n);
            if (n >= 0 && (o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
                written |= (uint16_t)BIT(n);
        }
        assert_int_equal(in.gpr_read & read, read);
        assert_int_equal(in.gpr_written, written);
        if (in.cls == INSN_DATA && in.has_mem && !in.is_agen) {
            assert_true(in.mem_size >= 1 && in.mem_size <= 64);
            assert_true(in.mem_access != 0);
        }
    }
}

static void test_recode_high_bytes(void **state)
{
    struct insn in;
    struct insn_recode r = {.mem_index = INSN_NO_REG};
    uint8_t out[INSN_RECODE_MAX];

    assert_int_equal(DECODE(&in, 4, "\x8a\x20"), 2); /* mov ah, [eax] */
    r.reg = CPU_RBX;
    r.mem_base = CPU_RDI;
    assert_int_equal(insn_recode(out, &in, &r), 2);
    assert_memory_equal(out, "\x8a\x3f", 2); /* mov bh, [rdi] */
    r.mem_base = CPU_R8;
    assert_int_equal(insn_recode(out, &in, &r), 0);
    r.mem_base = CPU_RDI;
    r.reg = CPU_RSI;
    assert_int_equal(insn_recode(out, &in, &r), 0);
    assert_int_equal(DECODE(&in, 4, "\x00\xe1"), 2); /* add cl, ah */
    r.rm = CPU_RSI;                                  /* SIL needs REX */
    r.reg = CPU_RAX;
    assert_int_equal(insn_recode(out, &in, &r), 0);
}

static void test_recode_32_bit_forms(void **state)
{
    struct insn in;
    struct insn_recode r = {.opcode = CPU_RBX, .rm = CPU_RDX, .mem_index = INSN_NO_REG};
    uint8_t out[INSN_RECODE_MAX];

    assert_int_equal(DECODE(&in, 4, "\x41"), 1); /* inc ecx */
    assert_int_equal(insn_recode(out, &in, &r), 2);
    assert_memory_equal(out, "\xff\xc3", 2);
    assert_int_equal(DECODE(&in, 2, "\x49"), 1); /* dec cx */
    assert_int_equal(insn_recode(out, &in, &r), 3);
    assert_memory_equal(out, "\x66\xff\xcb", 3);
    assert_int_equal(DECODE(&in, 2, "\x66\x49"), 2); /* dec ecx */
    assert_int_equal(insn_recode(out, &in, &r), 2);
    assert_memory_equal(out, "\xff\xcb", 2);
    assert_int_equal(DECODE(&in, 4, "\x82\xc1\x07"), 3); /* add cl, 7 */
    assert_int_equal(insn_recode(out, &in, &r), 3);
    assert_memory_equal(out, "\x80\xc2\x07", 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_classes),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_undefined_length),
        cmocka_unit_test(test_flags),
        cmocka_unit_test(test_hidden),
        cmocka_unit_test(test_truncation),
        cmocka_unit_test(test_decode_random),
        cmocka_unit_test(test_recode_random),
        cmocka_unit_test(test_recode_high_bytes),
        cmocka_unit_test(test_recode_32_bit_forms),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
