/*
 * fuzz_decode.c - arbitrary bytes through the decoder and the re-encoder
 *
 * What must hold whatever the bytes are: the decoder stays within them; a data-processing instruction
 * encoded again decodes to the same mnemonic in 64-bit mode, and the only memory it names is
 * the operand it was given. The last is what confines generated code and native thunks.
 */
#include <Zydis/Zydis.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/insn.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define BASE 11          /* R11 */
#define DISPLACEMENT 0x40

static void require(int claim)
{
    if (!claim)
        abort();
}

/* Registers other than the address's; low ones where a high byte forbids REX. */
static uint8_t draw_register(const struct insn_gpr *field, uint8_t seed)
{
    if (field->is_high_byte)
        return seed & 3;
    return seed % 16 == BASE ? 12 : seed % 16;
}

static void check_recoded(const struct insn *in, const uint8_t *code, size_t size)
{
    ZydisDecoder decoder;
    ZydisDecodedInstruction out;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];

    ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    ZydisDecoderEnableMode(&decoder, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
    ZydisDecoderEnableMode(&decoder, ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
    ZydisDecoderEnableMode(&decoder, ZYDIS_DECODER_MODE_KNC, ZYAN_FALSE);
    require(ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, code, size, &out, operands)));
    require(out.length == size);
    /* 90H: XCHG of the accumulator with itself, which no engine asks for */
    require(out.mnemonic == (ZydisMnemonic)in->op ||
            (in->op == ZYDIS_MNEMONIC_XCHG && out.mnemonic == ZYDIS_MNEMONIC_NOP));
    for (unsigned i = 0; i < out.operand_count; i++) {
        const ZydisDecodedOperand *o = &operands[i];
        if (o->type != ZYDIS_OPERAND_TYPE_MEMORY || o->mem.type == ZYDIS_MEMOP_TYPE_AGEN)
            continue;
        require(in->has_mem);
        require(o->mem.base == ZYDIS_REGISTER_R11 && o->mem.index == ZYDIS_REGISTER_NONE);
        require(o->mem.disp.value == DISPLACEMENT);
        require(o->mem.segment != ZYDIS_REGISTER_FS && o->mem.segment != ZYDIS_REGISTER_GS);
        require(o->size / 8 <= in->mem_size || in->is_agen);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const unsigned modes[] = {8, 4, 2};
    struct insn in;

    if (size < 5)
        return 0;
    unsigned mode = modes[data[0] % 3];
    int len = insn_decode(&in, data + 4, size - 4, mode, NULL);
    if (len <= 0)
        return 0;
    require((size_t)len <= size - 4 && len <= INSN_MAX_LEN);
    require(memcmp(in.bytes, data + 4, (size_t)len) == 0);
    /* reserved NOPs may become hints of later CPUs with another register; engines never run them */
    if (in.cls != INSN_DATA || in.is_hidden || in.op == ZYDIS_MNEMONIC_NOP)
        return 0;
    struct insn_recode r = {
        .reg = draw_register(&in.gpr_reg, data[1]),
        .rm = draw_register(&in.gpr_rm, data[2]),
        .vvvv = draw_register(&in.gpr_vvvv, data[3]),
        .opcode = draw_register(&in.gpr_opcode, data[1]),
        .mem_base = BASE,
        .mem_index = INSN_NO_REG,
        .mem_disp = DISPLACEMENT,
    };
    struct {
        uint8_t code[INSN_RECODE_MAX];
        uint8_t guard[8];
    } out;
    memset(&out, 0xa5, sizeof(out));
    size_t n = insn_recode(out.code, &in, &r);
    for (unsigned i = 0; i < sizeof(out.guard); i++)
        require(out.guard[i] == 0xa5);
    require(n <= INSN_RECODE_MAX);
    if (n != 0)
        check_recoded(&in, out.code, n);
    return 0;
}
