/*
 * forgive.c - what is not compared of an outcome: where processors differ, or the places do
 *
 * The manuals leave it open, or processors of one vendor do not agree with each other; each rule
 * says what was seen where. The engines follow the newest of AMD's (family 1Ah), and are to agree
 * with each other everywhere.
 */
#include <cpuid.h>
#include <string.h>

#include <Zydis/Zydis.h>

#include "base/bits.h"
#include "cpu/insn.h"
#include "diff.h"

#define CPU_REACHES 8 /* bytes, the largest element of a string instruction */

static void blank(struct diff_state *st, uint64_t addr, unsigned n)
{
    for (; n-- > 0; addr++) {
        if (addr - DIFF_DATA < DIFF_WINDOW)
            st->data[addr - DIFF_DATA] = 0;
        else if (addr - DIFF_STACK < DIFF_WINDOW)
            st->stack[addr - DIFF_STACK] = 0;
    }
}

/* Reserved bytes of a stored image, and where the last x87 instruction and its operand were. */
static void blank_image(struct diff_state *st, const struct diff_case *c)
{
    switch (c->image) {
    case DIFF_IMAGE_FXSAVE:
        blank(st, c->image_addr + 6, 18);
        for (unsigned i = 0; i < 8; i++)
            blank(st, c->image_addr + 32 + 16 * i + 10, 6);
        break;
    case DIFF_IMAGE_ENV16:
        blank(st, c->image_addr + 6, 8);
        break;
    case DIFF_IMAGE_ENV32:
        blank(st, c->image_addr + 12, 16);
        break;
    case DIFF_IMAGE_NONE:
        break;
    }
}

/*
 * Outside of the windows the host has its own pages where the guests have other ones or none, so
 * whether the page was present says nothing there.
 */
static void forgive_presence(struct diff_state *st)
{
    if (st->vector == VEC_PF && st->cr2 - DIFF_CODE >= DIFF_STACK + 0x100000 - DIFF_CODE)
        st->error &= ~(uint32_t)PF_ERR_P;
}

/* Does `byte` stand before opcodes in both kinds of mode? LOCK does not count. */
static bool is_prefix(uint8_t byte)
{
    return byte == 0xf2 || byte == 0xf3 || byte == 0x66 || byte == 0x67 || (byte & 0xe7) == 0x26 ||
           byte == 0x64 || byte == 0x65 || (byte & 0xf0) == 0x40;
}

/* Where the opcode begins, behind prefixes that both kinds of mode read alike. */
static const uint8_t *skip_prefixes(const uint8_t *code, bool *is_repeated)
{
    *is_repeated = false;
    for (unsigned at = 0; at < 14 && is_prefix(*code); at++, code++)
        *is_repeated |= *code == 0xf2 || *code == 0xf3;
    return code;
}

/*
 * The bytes where `st` ended, of the case's code as the processor left it: a case may write over
 * itself. NULL when it ended elsewhere.
 */
static const uint8_t *code_at_end(const struct diff_case *c, const struct diff_state *st)
{
    uint64_t at = st->rip - c->before.rip;

    return at + INSN_MAX_LEN <= sizeof(c->code) ? (const uint8_t *)(uintptr_t)st->rip : NULL;
}

/*
 * Where a repeated CMPS or SCAS faults after some elements, AMD's processors leave the flags of
 * the last one, but not when they compared many at a time.
 */
static void forgive_flags(const struct diff_case *c, struct diff_state *st)
{
    const uint8_t *code = code_at_end(c, st);
    bool is_repeated;

    if (st->vector == VEC_DB || st->vector == VEC_BP || code == NULL)
        return;
    code = skip_prefixes(code, &is_repeated);
    if (is_repeated && (*code == 0xa6 || *code == 0xa7 || *code == 0xae || *code == 0xaf))
        st->rflags &= ~RFLAGS_STATUS;
}

/*
 * Some hypervisors hand on the #DB of an INT1, which a case may write over itself, as a fault.
 */
static void forgive_int1(const struct diff_case *c, struct diff_state *st)
{
    if (st->vector == VEC_DB && st->rip - c->before.rip < c->code_size &&
        *(const uint8_t *)(uintptr_t)st->rip == 0xf1)
        st->rip++;
}

static bool is_data_fault(const struct diff_state *st)
{
    return st->vector == VEC_PF || st->vector == VEC_GP || st->vector == VEC_SS ||
           st->vector == VEC_AC;
}

/* May `st` have faulted on the operand that the register, or its low half, points to? */
static bool may_be_fault_of(const struct diff_state *st, enum cpu_gpr pointer)
{
    return is_data_fault(st) &&
           (st->vector != VEC_PF || (uint16_t)(st->cr2 - st->gpr[pointer]) < CPU_REACHES);
}

/*
 * Where both operands of CMPS fault, family 1Ah of AMD's processors reports that of rSI, family 19h
 * that of rDI.
 */
static void forgive_order(const struct diff_case *c, struct diff_state *st,
                          const struct diff_state *native)
{
    const uint8_t *code = code_at_end(c, st);
    bool is_repeated;

    if (code == NULL || st->rip != native->rip || !may_be_fault_of(st, CPU_RSI) ||
        !may_be_fault_of(native, CPU_RDI))
        return;
    code = skip_prefixes(code, &is_repeated);
    if (*code == 0xa6 || *code == 0xa7) {
        st->vector = native->vector;
        st->error = native->error;
        st->cr2 = native->cr2;
    }
}

/* CLZERO with a prefix that stands for nothing: #UD with F2 on family 1Ah, not on family 19h. */
static bool is_prefixed_clzero(const uint8_t *code)
{
    bool is_repeated;
    const uint8_t *opcode = skip_prefixes(code, &is_repeated);

    return is_repeated && opcode[0] == 0x0f && opcode[1] == 0x01 && opcode[2] == 0xfc;
}

/*
 * LOCK VERW: #UD, as of any other LOCK that has nothing to lock. Family 19h, where VERW also
 * empties buffers, runs it.
 */
static bool is_locked_verw(const uint8_t *code)
{
    const uint8_t *opcode = code;
    bool is_locked = false;

    for (; opcode < code + 12 && (is_prefix(*opcode) || *opcode == 0xf0); opcode++)
        is_locked |= *opcode == 0xf0;
    return is_locked && opcode[0] == 0x0f && opcode[1] == 0x00 && (opcode[2] & 0x38) == 0x28;
}

static bool decode(const struct diff_case *c, const uint8_t *code, ZydisDecodedInstruction *in)
{
    ZydisDecoder decoder;

    if (c->mode == 8)
        ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    else
        ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32);
    return ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&decoder, NULL, code, INSN_MAX_LEN, in));
}

/*
 * VEX and EVEX encodings that no manual defines, or says to be #UD: family 19h runs some of them (a
 * mask register above 7, EVEX.V' clear in 32-bit code), as if the offending bits were not there.
 */
static bool is_reserved_vector(const struct diff_case *c, const uint8_t *code)
{
    ZydisDecodedInstruction in;
    bool is_repeated;
    const uint8_t *opcode = skip_prefixes(code, &is_repeated);

    return (*opcode == 0x62 || *opcode == 0xc4 || *opcode == 0xc5) && !decode(c, code, &in);
}

/* Reserved, or XOP, which no model has, and too long: which of its faults comes first? */
static bool is_reserved_long(const struct diff_case *c, const uint8_t *code)
{
    ZydisDecodedInstruction in;
    bool is_repeated;

    return is_reserved_vector(c, code) ||
           (*skip_prefixes(code, &is_repeated) == 0x8f && !decode(c, code, &in));
}

/*
 * #AC of EVEX operands with a mask: family 1Ah checks the elements that are accessed, family 19h
 * with some masks the operand as a whole.
 */
static bool is_masked_alignment(const struct diff_case *c, const struct diff_state *st,
                                const uint8_t *code)
{
    ZydisDecodedInstruction in;

    return st->vector == VEC_AC && decode(c, code, &in) &&
           in.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && in.avx.mask.reg != ZYDIS_REGISTER_K0 &&
           in.avx.mask.reg != ZYDIS_REGISTER_NONE;
}

/*
 * VMASKMOV and VPMASKMOV across the largest offset: elements beyond it lie above the addresses of
 * 16 or 32 bits on family 1Ah, or are #GP or #SS in 32-bit code, and lie at the bottom on family
 * 19h (SDM vol. 3, 6.3: the processor may do either).
 */
static bool is_masked_wrap(const struct diff_case *c, const struct diff_state *native,
                           const struct diff_state *engine, const uint8_t *code)
{
    uint64_t above = c->mode == 4 ? 0x10000 : UINT64_C(1) << 32;
    bool is_above = engine->vector == VEC_PF && engine->cr2 - above == native->cr2;
    bool is_refused = c->mode == 4 && (engine->vector == VEC_GP || engine->vector == VEC_SS);
    ZydisDecodedInstruction in;

    return (is_above || is_refused) && native->vector == VEC_PF && native->cr2 < 32 &&
           decode(c, code, &in) && in.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX &&
           in.opcode_map == ZYDIS_OPCODE_MAP_0F38 &&
           ((in.opcode & 0xfc) == 0x2c || (in.opcode & 0xfd) == 0x8c);
}

/*
 * FXSAVE, XSAVE and their counterparts with 16-bit addresses: family 19h wraps within the image at
 * 64 KiB; the manuals say nothing (in real mode, that it is #GP).
 */
static bool is_image_wrap(const struct diff_case *c, const struct diff_state *native,
                          const struct diff_state *engine, const uint8_t *code)
{
    ZydisDecodedInstruction in;

    return native->vector == VEC_PF && engine->vector == VEC_PF &&
           engine->cr2 - 0x10000 == native->cr2 && decode(c, code, &in) && in.address_width == 16 &&
           in.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY &&
           in.opcode_map == ZYDIS_OPCODE_MAP_0F && in.opcode == 0xae;
}

bool diff_is_left_open(const struct diff_case *c, const struct diff_state *native,
                       const struct diff_state *engine)
{
    const struct diff_state *checked = native->vector == VEC_AC ? native : engine;
    const uint8_t *code = code_at_end(c, engine), *checked_code = code_at_end(c, checked);

    if (native->rip == engine->rip && native->vector == engine->vector &&
        native->cr2 == engine->cr2)
        return false;
    if (checked_code != NULL && is_masked_alignment(c, checked, checked_code))
        return true;
    if (code == NULL)
        return false;
    if (engine->vector == VEC_UD &&
        (is_prefixed_clzero(code) || is_locked_verw(code) || is_reserved_vector(c, code)))
        return true;
    if (native->vector == VEC_UD && engine->vector == VEC_GP && is_reserved_long(c, code))
        return true;
    return is_masked_wrap(c, native, engine, code) || is_image_wrap(c, native, engine, code);
}

void diff_forgive(const struct diff_case *c, struct diff_state *st, const struct diff_state *native)
{
    if (st == native)
        forgive_int1(c, st);
    else
        forgive_order(c, st, native);
    forgive_presence(st);
    forgive_flags(c, st);
    blank_image(st, c);
}

bool diff_is_examined_processor(void)
{
    uint32_t a, b, c, d;

    __cpuid(0, a, b, c, d);
    if (b != signature_AMD_ebx || c != signature_AMD_ecx || d != signature_AMD_edx)
        return false;
    __cpuid(1, a, b, c, d);
    uint32_t family = bits(a, 11, 8) + bits(a, 27, 20);
    return family == 0x19 || family == 0x1a;
}
