/*
 * insn.c - decoding: Zydis's result, reduced to what the engines keep
 *
 * Invariant: an instruction is INSN_DATA only when all that it touches beside registers and
 * status flags is its ModRM memory operand, mem_size bytes at the operand's address. What
 * addresses memory otherwise (stack, strings, bit strings, gathers) or touches system state is
 * INSN_SPECIAL.
 */
#include <Zydis/Zydis.h>

#include <string.h>

#include "cpu/insn.h"
#include "cpu/insn_hidden.h"
#include "cpu/insn_length.h"
#include "cpu/model.h"
#include "cpu/state.h"

static unsigned gpr_index(ZydisRegister r, bool *is_high)
{
    *is_high = r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH;
    switch (ZydisRegisterGetClass(r)) {
    case ZYDIS_REGCLASS_GPR8:
        if (*is_high)
            return (unsigned)(r - ZYDIS_REGISTER_AH);
        if (r <= ZYDIS_REGISTER_BL)
            return (unsigned)(r - ZYDIS_REGISTER_AL);
        return (unsigned)(r - ZYDIS_REGISTER_SPL) + 4;
    case ZYDIS_REGCLASS_GPR16:
        return (unsigned)(r - ZYDIS_REGISTER_AX);
    case ZYDIS_REGCLASS_GPR32:
        return (unsigned)(r - ZYDIS_REGISTER_EAX);
    case ZYDIS_REGCLASS_GPR64:
        return (unsigned)(r - ZYDIS_REGISTER_RAX);
    default:
        return INSN_NO_REG;
    }
}

static unsigned segment_index(ZydisRegister r)
{
    switch (r) {
    case ZYDIS_REGISTER_ES:
        return CPU_ES;
    case ZYDIS_REGISTER_CS:
        return CPU_CS;
    case ZYDIS_REGISTER_SS:
        return CPU_SS;
    case ZYDIS_REGISTER_FS:
        return CPU_FS;
    case ZYDIS_REGISTER_GS:
        return CPU_GS;
    default:
        return CPU_DS;
    }
}

static void note_gpr(struct insn *out, const ZydisDecodedOperand *o)
{
    bool is_high, is_read = (o->actions & ZYDIS_OPERAND_ACTION_MASK_READ) != 0,
                  is_written = (o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
    unsigned r = gpr_index(o->reg.value, &is_high);
    struct insn_gpr *field;

    if (r == INSN_NO_REG)
        return;
    if (is_read)
        out->gpr_read |= (uint16_t)(1u << r);
    if (is_written)
        out->gpr_written |= (uint16_t)(1u << r);
    switch (o->encoding) {
    case ZYDIS_OPERAND_ENCODING_MODRM_REG:
        field = &out->gpr_reg;
        break;
    case ZYDIS_OPERAND_ENCODING_MODRM_RM:
        field = &out->gpr_rm;
        break;
    case ZYDIS_OPERAND_ENCODING_NDSNDD:
        field = &out->gpr_vvvv;
        break;
    case ZYDIS_OPERAND_ENCODING_OPCODE:
        field = &out->gpr_opcode;
        break;
    default:
        return; /* implied: nothing to encode */
    }
    field->reg = (uint8_t)r;
    field->size = (uint8_t)(o->size / 8);
    field->is_high_byte = is_high;
    field->is_read |= is_read;
    field->is_written |= is_written;
    out->uses_high_byte |= is_high;
}

static uint8_t base_or_index(struct insn *out, ZydisRegister r)
{
    bool is_high;
    if (r == ZYDIS_REGISTER_RIP || r == ZYDIS_REGISTER_EIP)
        return INSN_RIP;
    unsigned i = gpr_index(r, &is_high);
    if (i != INSN_NO_REG)
        out->gpr_read |= (uint16_t)(1u << i);
    return (uint8_t)i;
}

/* These take an address and never access it as a load does: no fault comes of it. */
static bool is_hint(unsigned op)
{
    return op == ZYDIS_MNEMONIC_NOP ||
           (op >= ZYDIS_MNEMONIC_PREFETCH && op <= ZYDIS_MNEMONIC_PREFETCHWT1);
}

static void note_memory(struct insn *out, const ZydisDecodedOperand *o)
{
    out->has_mem = true;
    out->is_agen = o->mem.type == ZYDIS_MEMOP_TYPE_AGEN || is_hint(out->op);
    out->is_vsib = o->mem.type == ZYDIS_MEMOP_TYPE_VSIB;
    out->seg = (uint8_t)segment_index(o->mem.segment);
    out->mem_base = base_or_index(out, o->mem.base);
    out->mem_index = base_or_index(out, o->mem.index);
    out->mem_scale = o->mem.scale != 0 ? o->mem.scale : 1;
    out->mem_disp = o->mem.disp.has_displacement ? o->mem.disp.value : 0;
    if (!out->is_agen) {
        out->mem_size = (uint16_t)(o->size / 8);
        out->mem_element_size = (uint8_t)(o->element_size / 8);
        if (o->actions & ZYDIS_OPERAND_ACTION_MASK_READ)
            out->mem_access |= INSN_ACCESS_READ;
        if (o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
            out->mem_access |= INSN_ACCESS_WRITE;
    }
}

/* Data processing by its operands, but with effects that Zydis's operands do not show. */
static bool is_system_op(unsigned op)
{
    switch (op) {
    case ZYDIS_MNEMONIC_AAA:
    case ZYDIS_MNEMONIC_AAD:
    case ZYDIS_MNEMONIC_AAM:
    case ZYDIS_MNEMONIC_AAS:
    case ZYDIS_MNEMONIC_ARPL:
    case ZYDIS_MNEMONIC_BOUND:
    case ZYDIS_MNEMONIC_CLAC:
    case ZYDIS_MNEMONIC_CLD:
    case ZYDIS_MNEMONIC_CLDEMOTE:
    case ZYDIS_MNEMONIC_CLFLUSH:
    case ZYDIS_MNEMONIC_CLFLUSHOPT:
    case ZYDIS_MNEMONIC_CLGI:
    case ZYDIS_MNEMONIC_CLI:
    case ZYDIS_MNEMONIC_CLTS:
    case ZYDIS_MNEMONIC_CLWB:
    case ZYDIS_MNEMONIC_CLZERO:
    case ZYDIS_MNEMONIC_CPUID:
    case ZYDIS_MNEMONIC_DAA:
    case ZYDIS_MNEMONIC_DAS:
    case ZYDIS_MNEMONIC_ENTER:
    case ZYDIS_MNEMONIC_FLDENV:
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_GETSEC:
    case ZYDIS_MNEMONIC_HLT:
    case ZYDIS_MNEMONIC_IN:
    case ZYDIS_MNEMONIC_INSB:
    case ZYDIS_MNEMONIC_INSD:
    case ZYDIS_MNEMONIC_INSW:
    case ZYDIS_MNEMONIC_INT:
    case ZYDIS_MNEMONIC_INT1:
    case ZYDIS_MNEMONIC_INT3:
    case ZYDIS_MNEMONIC_INTO:
    case ZYDIS_MNEMONIC_INVD:
    case ZYDIS_MNEMONIC_INVLPG:
    case ZYDIS_MNEMONIC_INVPCID:
    case ZYDIS_MNEMONIC_LAR:
    case ZYDIS_MNEMONIC_LDS:
    case ZYDIS_MNEMONIC_LES:
    case ZYDIS_MNEMONIC_LFS:
    case ZYDIS_MNEMONIC_LGDT:
    case ZYDIS_MNEMONIC_LGS:
    case ZYDIS_MNEMONIC_LIDT:
    case ZYDIS_MNEMONIC_LLDT:
    case ZYDIS_MNEMONIC_LMSW:
    case ZYDIS_MNEMONIC_LSL:
    case ZYDIS_MNEMONIC_LSS:
    case ZYDIS_MNEMONIC_LTR:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MONITOR:
    case ZYDIS_MNEMONIC_MONITORX:
    case ZYDIS_MNEMONIC_MWAIT:
    case ZYDIS_MNEMONIC_MWAITX:
    case ZYDIS_MNEMONIC_OUT:
    case ZYDIS_MNEMONIC_OUTSB:
    case ZYDIS_MNEMONIC_OUTSD:
    case ZYDIS_MNEMONIC_OUTSW:
    case ZYDIS_MNEMONIC_RDFSBASE:
    case ZYDIS_MNEMONIC_RDGSBASE:
    case ZYDIS_MNEMONIC_RDMSR:
    case ZYDIS_MNEMONIC_RDPID:
    case ZYDIS_MNEMONIC_RDPKRU:
    case ZYDIS_MNEMONIC_RDPMC:
    case ZYDIS_MNEMONIC_RDPRU:
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP:
    case ZYDIS_MNEMONIC_RSM:
    case ZYDIS_MNEMONIC_SALC:
    case ZYDIS_MNEMONIC_SERIALIZE:
    case ZYDIS_MNEMONIC_SGDT:
    case ZYDIS_MNEMONIC_SIDT:
    case ZYDIS_MNEMONIC_SLDT:
    case ZYDIS_MNEMONIC_SMSW:
    case ZYDIS_MNEMONIC_STAC:
    case ZYDIS_MNEMONIC_STD:
    case ZYDIS_MNEMONIC_STGI:
    case ZYDIS_MNEMONIC_STI:
    case ZYDIS_MNEMONIC_STR:
    case ZYDIS_MNEMONIC_SWAPGS:
    case ZYDIS_MNEMONIC_SYSCALL:
    case ZYDIS_MNEMONIC_SYSENTER:
    case ZYDIS_MNEMONIC_SYSEXIT:
    case ZYDIS_MNEMONIC_SYSRET:
    case ZYDIS_MNEMONIC_TPAUSE:
    case ZYDIS_MNEMONIC_UD0:
    case ZYDIS_MNEMONIC_UD1:
    case ZYDIS_MNEMONIC_UD2:
    case ZYDIS_MNEMONIC_UMONITOR:
    case ZYDIS_MNEMONIC_UMWAIT:
    case ZYDIS_MNEMONIC_VERR:
    case ZYDIS_MNEMONIC_VERW:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
    case ZYDIS_MNEMONIC_VMCALL:
    case ZYDIS_MNEMONIC_VMMCALL:
    case ZYDIS_MNEMONIC_WBINVD:
    case ZYDIS_MNEMONIC_WRFSBASE:
    case ZYDIS_MNEMONIC_WRGSBASE:
    case ZYDIS_MNEMONIC_WRMSR:
    case ZYDIS_MNEMONIC_WRPKRU:
    case ZYDIS_MNEMONIC_XGETBV:
    case ZYDIS_MNEMONIC_XLAT:
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64:
    case ZYDIS_MNEMONIC_XRSTORS:
    case ZYDIS_MNEMONIC_XRSTORS64:
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEC64:
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
    case ZYDIS_MNEMONIC_XSAVES:
    case ZYDIS_MNEMONIC_XSAVES64:
    case ZYDIS_MNEMONIC_XSETBV:
        return true;
    default:
        return false;
    }
}

/* Outside of 64-bit mode these leave registers 8 and above alone. */
static bool is_zeroing(unsigned op)
{
    return op == ZYDIS_MNEMONIC_VZEROUPPER || op == ZYDIS_MNEMONIC_VZEROALL;
}

static bool is_bit_string(unsigned op)
{
    return op == ZYDIS_MNEMONIC_BT || op == ZYDIS_MNEMONIC_BTS || op == ZYDIS_MNEMONIC_BTR ||
           op == ZYDIS_MNEMONIC_BTC;
}

struct classes {
    bool has_other_memory, has_system_register, has_mmx, has_xmm, has_wide, has_mask;
};

/* An implicit operand that a segment prefix applies to: not the stack, not a destination. */
static bool is_overridable(const ZydisDecodedOperand *o)
{
    switch (o->mem.base) {
    case ZYDIS_REGISTER_SP:
    case ZYDIS_REGISTER_ESP:
    case ZYDIS_REGISTER_RSP:
        return false;
    default:
        return o->mem.segment != ZYDIS_REGISTER_ES;
    }
}

static void note_operand(struct insn *out, struct classes *c, const ZydisDecodedOperand *o)
{
    if (o->type == ZYDIS_OPERAND_TYPE_MEMORY) {
        if (o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM)
            note_memory(out, o);
        else if (o->encoding == ZYDIS_OPERAND_ENCODING_DISP16_32_64) {
            note_memory(out, o); /* MOV moffs */
            c->has_other_memory = true;
        } else {
            c->has_other_memory = true;
            /* string source, XLAT, MASKMOV: what a prefix chose */
            if (out->has_seg_override && is_overridable(o))
                out->seg = (uint8_t)segment_index(o->mem.segment);
        }
        return;
    }
    if (o->type != ZYDIS_OPERAND_TYPE_REGISTER)
        return;
    note_gpr(out, o);
    switch (ZydisRegisterGetClass(o->reg.value)) {
    case ZYDIS_REGCLASS_SEGMENT:
    case ZYDIS_REGCLASS_CONTROL:
    case ZYDIS_REGCLASS_DEBUG:
    case ZYDIS_REGCLASS_TEST:
    case ZYDIS_REGCLASS_TABLE:
    case ZYDIS_REGCLASS_IP:
        c->has_system_register = true;
        break;
    case ZYDIS_REGCLASS_MMX:
        c->has_mmx = true;
        break;
    case ZYDIS_REGCLASS_XMM:
        c->has_xmm = true;
        break;
    case ZYDIS_REGCLASS_YMM:
    case ZYDIS_REGCLASS_ZMM:
        c->has_wide = true;
        break;
    case ZYDIS_REGCLASS_MASK:
        c->has_mask = true;
        break;
    default:
        break;
    }
}

/* Conversions whose vector operand is in memory: they round by MXCSR and raise #XM. */
static bool is_sse_without_register(unsigned op)
{
    return op == ZYDIS_MNEMONIC_CVTSS2SI || op == ZYDIS_MNEMONIC_CVTTSS2SI ||
           op == ZYDIS_MNEMONIC_CVTSD2SI || op == ZYDIS_MNEMONIC_CVTTSD2SI ||
           op == ZYDIS_MNEMONIC_CVTPS2PI || op == ZYDIS_MNEMONIC_CVTTPS2PI ||
           op == ZYDIS_MNEMONIC_CVTPD2PI || op == ZYDIS_MNEMONIC_CVTTPD2PI;
}

/* Must the memory operand be aligned to its size (SDM vol. 2, 2.4, types 1, 2 and 4)? */
static bool needs_alignment(const ZydisDecodedInstruction *in, const struct insn *out)
{
    switch (in->meta.exception_class) {
    case ZYDIS_EXCEPTION_CLASS_SSE1:
    case ZYDIS_EXCEPTION_CLASS_AVX1:
    case ZYDIS_EXCEPTION_CLASS_E1:
    case ZYDIS_EXCEPTION_CLASS_E1NF:
        return true;
    case ZYDIS_EXCEPTION_CLASS_SSE2:
    case ZYDIS_EXCEPTION_CLASS_SSE4:
        break;
    default: /* no class given */
        return in->mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B ||
               in->mnemonic == ZYDIS_MNEMONIC_CVTPD2PI || in->mnemonic == ZYDIS_MNEMONIC_CVTTPD2PI;
    }
    switch (in->mnemonic) {
    case ZYDIS_MNEMONIC_MOVUPS:
    case ZYDIS_MNEMONIC_MOVUPD:
    case ZYDIS_MNEMONIC_MOVDQU:
    case ZYDIS_MNEMONIC_LDDQU:
    case ZYDIS_MNEMONIC_PCMPESTRI:
    case ZYDIS_MNEMONIC_PCMPESTRM:
    case ZYDIS_MNEMONIC_PCMPISTRI:
    case ZYDIS_MNEMONIC_PCMPISTRM:
        return false;
    default:
        /* SHA: types differ between vendors; the host CPU decides when it runs it */
        return out->mem_size == 16 && in->meta.isa_ext != ZYDIS_ISA_EXT_SHA;
    }
}

static unsigned unit_of(const ZydisDecodedInstruction *in, const struct classes *c)
{
    bool has_vector = c->has_xmm || c->has_wide;

    if (in->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX)
        return INSN_UNIT_AVX512;
    if (in->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
        if (c->has_mask)
            return INSN_UNIT_MASK;
        return in->meta.isa_ext == ZYDIS_ISA_EXT_BMI1 || in->meta.isa_ext == ZYDIS_ISA_EXT_BMI2
                   ? INSN_UNIT_VEX_INT
                   : INSN_UNIT_AVX;
    }
    if (in->mnemonic == ZYDIS_MNEMONIC_FWAIT)
        return INSN_UNIT_WAIT;
    if (in->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && in->opcode >= 0xd8 && in->opcode <= 0xdf)
        return INSN_UNIT_X87; /* FISTTP as well, which came with SSE3 */
    if (in->mnemonic == ZYDIS_MNEMONIC_LDMXCSR || in->mnemonic == ZYDIS_MNEMONIC_STMXCSR)
        return INSN_UNIT_SSE;
    if (c->has_mmx && !has_vector)
        return INSN_UNIT_MMX;
    if (in->mnemonic == ZYDIS_MNEMONIC_EMMS)
        return INSN_UNIT_MMX;
    if (has_vector || is_sse_without_register(in->mnemonic))
        return INSN_UNIT_SSE;
    return INSN_UNIT_INT;
}

/* Classes whose loads fault whatever the mask says (SDM vol. 2, 2.8). */
static bool has_no_fault_suppression(const ZydisDecodedInstruction *in)
{
    /* E4NF, too: an element of memory serves several lanes, or parts of them */
    switch (in->mnemonic) {
    case ZYDIS_MNEMONIC_VCVTNE2PS2BF16:
    case ZYDIS_MNEMONIC_VDBPSADBW:
    case ZYDIS_MNEMONIC_VGF2P8AFFINEINVQB:
    case ZYDIS_MNEMONIC_VGF2P8AFFINEQB:
        return true;
    default:
        break;
    }
    switch (in->meta.exception_class) {
    case ZYDIS_EXCEPTION_CLASS_E1NF:
    case ZYDIS_EXCEPTION_CLASS_E2NF:
    case ZYDIS_EXCEPTION_CLASS_E3NF:
    case ZYDIS_EXCEPTION_CLASS_E4NF:
    case ZYDIS_EXCEPTION_CLASS_E5NF:
    case ZYDIS_EXCEPTION_CLASS_E6NF:
    case ZYDIS_EXCEPTION_CLASS_E9NF:
    case ZYDIS_EXCEPTION_CLASS_E10NF:
    case ZYDIS_EXCEPTION_CLASS_E11NF:
        return true;
    default:
        return false;
    }
}

static bool is_vector(const ZydisDecodedOperand *o)
{
    ZydisRegisterClass c = o->type == ZYDIS_OPERAND_TYPE_REGISTER
                               ? ZydisRegisterGetClass(o->reg.value)
                               : ZYDIS_REGCLASS_INVALID;

    return c == ZYDIS_REGCLASS_XMM || c == ZYDIS_REGCLASS_YMM || c == ZYDIS_REGCLASS_ZMM;
}

static bool is_masked(const struct insn *out, const ZydisDecodedInstruction *in)
{
    switch (in->mnemonic) {
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ:
        return true;
    default:
        break;
    }
    if (in->encoding != ZYDIS_INSTRUCTION_ENCODING_EVEX || in->avx.mask.reg == ZYDIS_REGISTER_K0 ||
        in->avx.mask.reg == ZYDIS_REGISTER_NONE)
        return false;
    return (out->mem_access & INSN_ACCESS_WRITE) || !has_no_fault_suppression(in);
}

/* How many bits of the mask count: the elements of the operation, more than memory's in a
 * broadcast. */
static unsigned mask_lanes(const struct insn *out, const ZydisDecodedInstruction *in,
                           const ZydisDecodedOperand *operands)
{
    unsigned in_memory = out->mem_element_size != 0 ? out->mem_size / out->mem_element_size : 1;
    bool is_embedded = in->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && in->raw.evex.b;

    if (!is_embedded)
        return in->avx.broadcast.is_static ? operands[0].element_count : in_memory;
    /* of an embedded one, the vector full of it; a wider result, or a narrower one, has fewer */
    unsigned full = in->avx.vector_length / 8 / out->mem_element_size;
    return is_vector(&operands[0]) ? MIN(full, operands[0].element_count) : full;
}

/* Does the model offer it? Without a model, everything is there. */
static bool offers(const struct cpu_model *model, enum cpu_feature feature)
{
    return model == NULL || cpu_model_has(model, feature);
}

/*
 * What decodes differently on a CPU that lacks it is switched off here: hints in NOP space (MPX,
 * CET, CLDEMOTE), and LZCNT and TZCNT, which are BSR and BSF there.
 */
static bool decoder_init(ZydisDecoder *decoder, unsigned mode, const struct cpu_model *model)
{
    static const struct {
        ZydisDecoderMode mode;
        int feature; /* -1: never */
    } optional[] = {
        {ZYDIS_DECODER_MODE_KNC, -1},
        {ZYDIS_DECODER_MODE_MPX, -1},
        {ZYDIS_DECODER_MODE_CET, -1},
        {ZYDIS_DECODER_MODE_CLDEMOTE, -1},
        {ZYDIS_DECODER_MODE_LZCNT, CPU_FEATURE_ABM},
        {ZYDIS_DECODER_MODE_TZCNT, CPU_FEATURE_BMI1},
    };
    ZydisMachineMode machine = mode == 8   ? ZYDIS_MACHINE_MODE_LONG_64
                               : mode == 4 ? ZYDIS_MACHINE_MODE_LONG_COMPAT_32
                                           : ZYDIS_MACHINE_MODE_LEGACY_16;
    ZydisStackWidth stack = mode == 8   ? ZYDIS_STACK_WIDTH_64
                            : mode == 4 ? ZYDIS_STACK_WIDTH_32
                                        : ZYDIS_STACK_WIDTH_16;
    if (!ZYAN_SUCCESS(ZydisDecoderInit(decoder, machine, stack)))
        return false;
    for (unsigned i = 0; i < ARRAY_SIZE(optional); i++) {
        bool is_on =
            optional[i].feature >= 0 && offers(model, (enum cpu_feature)optional[i].feature);
        if (!ZYAN_SUCCESS(ZydisDecoderEnableMode(decoder, optional[i].mode, is_on)))
            return false;
    }
    return ZYAN_SUCCESS(ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_AMD_BRANCHES,
                                               model != NULL && model->is_amd));
}

static void note_encoding(struct insn *out, const ZydisDecodedInstruction *in)
{
    out->op = (uint16_t)in->mnemonic;
    out->opcode_map = (uint8_t)in->opcode_map;
    out->opcode = in->opcode;
    out->encoding = in->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX    ? INSN_VEX
                    : in->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX ? INSN_EVEX
                                                                      : INSN_LEGACY;
    out->op_size = (uint8_t)(in->operand_width / 8);
    out->addr_size = (uint8_t)(in->address_width / 8);
    for (unsigned i = 0; i < in->raw.prefix_count; i++) {
        bool is_opcode = in->raw.prefixes[i].type == ZYDIS_PREFIX_TYPE_MANDATORY;
        switch (in->raw.prefixes[i].value) {
        case 0x66:
            out->is_66_opcode |= is_opcode;
            break;
        case 0xf0:
            out->has_lock = true;
            break;
        case 0xf2:
            out->has_repne = true;
            out->has_rep = false;
            out->opcode_prefix = is_opcode ? 0xf2 : 0;
            break;
        case 0xf3:
            out->has_rep = true;
            out->has_repne = false;
            out->opcode_prefix = is_opcode ? 0xf3 : 0;
            break;
        default:
            break;
        }
    }
    out->has_seg_override = (in->attributes & ZYDIS_ATTRIB_HAS_SEGMENT) != 0;
    out->has_rex = (in->attributes & ZYDIS_ATTRIB_HAS_REX) != 0;
    out->rex_off = in->raw.rex.offset;
    out->vex_off = in->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX    ? in->raw.vex.offset
                   : in->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX ? in->raw.evex.offset
                                                                     : 0;
    out->has_modrm = (in->attributes & ZYDIS_ATTRIB_HAS_MODRM) != 0;
    if (out->has_modrm) {
        out->modrm_off = in->raw.modrm.offset;
        out->modrm = out->bytes[out->modrm_off];
    }
    out->imm_off = in->raw.imm[0].offset;
    out->imm_size = in->raw.imm[0].size / 8;
    out->imm2_off = in->raw.imm[1].offset;
    out->imm2_size = in->raw.imm[1].size / 8;
    out->imm = in->raw.imm[0].value.u;
    out->imm2 = in->raw.imm[1].value.u;
    /* sign-extended to the operand size by every instruction but the logical-width ones */
    out->is_imm_signed = out->imm_size > 0 && out->imm_size < 8 && in->raw.imm[0].is_signed;
    if (out->is_imm_signed)
        out->imm = (uint64_t)in->raw.imm[0].value.s;
    /* the last opcode byte stands before ModRM, displacement and immediates */
    if (out->has_modrm)
        out->opcode_off = (uint8_t)(out->modrm_off - 1);
    else if (in->raw.disp.size != 0)
        out->opcode_off = (uint8_t)(in->raw.disp.offset - 1);
    else if (out->imm_size != 0)
        out->opcode_off = (uint8_t)(out->imm_off - 1);
    else
        out->opcode_off = (uint8_t)(in->length - 1);
}

/* Flags that are left as they were where the manuals say "undefined", on some CPU at least. */
static bool keeps_undefined_flags(unsigned op)
{
    switch (op) {
    case ZYDIS_MNEMONIC_AND: /* AF is cleared by every CPU */
    case ZYDIS_MNEMONIC_OR:
    case ZYDIS_MNEMONIC_XOR:
    case ZYDIS_MNEMONIC_TEST:
        return false;
    default:
        return true;
    }
}

/* A count of zero leaves all flags alone: CL, or an immediate. */
static bool is_shift_by_maybe_zero(const struct insn *out, const ZydisDecodedInstruction *in)
{
    switch (in->mnemonic) {
    case ZYDIS_MNEMONIC_ROL:
    case ZYDIS_MNEMONIC_ROR:
    case ZYDIS_MNEMONIC_RCL:
    case ZYDIS_MNEMONIC_RCR:
    case ZYDIS_MNEMONIC_SHL:
    case ZYDIS_MNEMONIC_SHR:
    case ZYDIS_MNEMONIC_SAR:
        if (in->opcode == 0xd0 || in->opcode == 0xd1)
            return false;
        break;
    case ZYDIS_MNEMONIC_SHLD:
    case ZYDIS_MNEMONIC_SHRD:
        break;
    default:
        return false;
    }
    return out->imm_size == 0 || (out->imm & (out->op_size == 8 ? 63 : 31)) == 0;
}

static void note_flags(struct insn *out, const ZydisDecodedInstruction *in)
{
    const uint32_t all = (uint32_t)(RFLAGS_STATUS | RFLAGS_DF);
    const ZydisAccessedFlags *f = in->cpu_flags;

    if (f == NULL)
        return;
    uint32_t written = f->modified | f->set_0 | f->set_1 | f->undefined;
    out->flags_read = f->tested & all;
    out->flags_written = written & all;
    if (keeps_undefined_flags(in->mnemonic))
        out->flags_read |= f->undefined & all;
    /* REP with a count of zero executes nothing */
    bool is_string =
        in->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE);
    if (is_string || is_shift_by_maybe_zero(out, in))
        out->flags_read |= out->flags_written;
}

static void make_xchg_r8(struct insn *out)
{
    out->op = ZYDIS_MNEMONIC_XCHG;
    out->opcode_prefix = 0;
    out->gpr_opcode =
        (struct insn_gpr){.reg = CPU_R8, .size = out->op_size, .is_read = true, .is_written = true};
    out->gpr_read = out->gpr_written = BIT(CPU_RAX) | BIT(CPU_R8);
}

/* VPINSRD and VPEXTRD with VEX.W: the 64-bit forms, which other modes do not have. */
static bool is_refused_in_32_bit(const struct insn *out, const ZydisDecodedInstruction *in)
{
    return out->mode != 8 && out->encoding == INSN_VEX && in->raw.vex.W &&
           (in->mnemonic == ZYDIS_MNEMONIC_VPINSRD || in->mnemonic == ZYDIS_MNEMONIC_VPEXTRD);
}

/* PREFETCH and PREFETCHW of a register: #UD on AMD, which defined them, and a NOP on Intel. */
static bool is_prefetch_of_register(const struct insn *out, const struct cpu_model *model)
{
    return out->opcode_map == ZYDIS_OPCODE_MAP_0F && out->opcode == 0x0d &&
           out->encoding == INSN_LEGACY && !out->has_mem && model != NULL && model->is_amd;
}

/*
 * ModRM.mod 0 with base 5 in SIB: no base but a displacement, whatever REX.B, VEX.B or EVEX.B
 * says (SDM vol. 2, table 2-3, note 1). Zydis 4.0 takes it for R13 when that bit is set.
 */
static void drop_base_of_sib(struct insn *out, const ZydisDecodedInstruction *in)
{
    if (!out->has_mem || !(in->attributes & ZYDIS_ATTRIB_HAS_SIB) || in->raw.modrm.mod != 0 ||
        (out->bytes[in->raw.sib.offset] & 7) != 5)
        return;
    out->mem_base = INSN_NO_REG;
    out->mem_disp = in->raw.disp.value;
}

/*
 * What insn_decode returns for what Zydis refuses; n bytes of at most 15. The CPU finds the
 * length before it finds that there is no such instruction, or a LOCK before it.
 */
static int refused(const ZydisDecoder *decoder, ZyanStatus status, const uint8_t *bytes, size_t n,
                   unsigned mode, bool is_amd)
{
    ZydisDecodedInstruction in;
    uint8_t copy[INSN_MAX_LEN];
    size_t length;

    if (status == ZYDIS_STATUS_ILLEGAL_LOCK) {
        for (size_t i = 0; i < n; i++)
            copy[i] = bytes[i] == 0xf0 && insn_prefix_count(bytes, n, mode) > i ? 0x2e : bytes[i];
        status = ZydisDecoderDecodeInstruction(decoder, NULL, copy, n, &in);
    }
    switch (status) {
    case ZYDIS_STATUS_NO_MORE_DATA:
        return n < INSN_MAX_LEN ? 0 : -2;
    case ZYDIS_STATUS_INSTRUCTION_TOO_LONG:
        return -2;
    default:
        length = insn_undefined_length(bytes, n, mode, is_amd);
        return length > INSN_MAX_LEN ? -2 : length > n ? 0 : -1;
    }
}

/*
 * VPERMQ and VPERMPD with an immediate: AMD's CPUs ignore VEX.W, which the manuals want set.
 * Copies the n bytes with it set; false for other instructions.
 */
static bool set_ignored_w(uint8_t *copy, const uint8_t *bytes, size_t n, unsigned mode)
{
    size_t at = insn_prefix_count(bytes, n, mode);

    if (n < at + 4 || bytes[at] != 0xc4 || (bytes[at + 1] & 0x1f) != 3 || bytes[at + 3] > 1 ||
        (bytes[at + 2] & 0x80))
        return false;
    for (size_t i = 0; i < n; i++)
        copy[i] = bytes[i];
    copy[at + 2] |= 0x80;
    return true;
}

int insn_decode(struct insn *out, const uint8_t *bytes, size_t avail, unsigned mode,
                const struct cpu_model *model)
{
    ZydisDecoder decoder;
    ZydisDecodedInstruction in;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    struct classes classes = {false};

    if (!decoder_init(&decoder, mode, model))
        return -1;
    size_t n = avail < INSN_MAX_LEN ? avail : INSN_MAX_LEN;
    uint8_t copy[INSN_MAX_LEN];
    ZyanStatus status = ZydisDecoderDecodeFull(&decoder, bytes, n, &in, operands);
    if (!ZYAN_SUCCESS(status) && model != NULL && model->is_amd &&
        set_ignored_w(copy, bytes, n, mode))
        status = ZydisDecoderDecodeFull(&decoder, copy, n, &in, operands);
    if (!ZYAN_SUCCESS(status))
        return refused(&decoder, status, bytes, n, mode, model != NULL && model->is_amd);

    memset(out, 0, sizeof(*out)); /* holes as well, so that equal instructions are equal bytes */
    out->len = in.length;
    out->mode = (uint8_t)mode;
    out->seg = CPU_DS;
    for (unsigned i = 0; i < in.length; i++)
        out->bytes[i] = bytes[i];
    out->gpr_reg.reg = out->gpr_rm.reg = out->gpr_vvvv.reg = out->gpr_opcode.reg = INSN_NO_REG;
    out->mem_base = out->mem_index = INSN_NO_REG;
    note_encoding(out, &in);
    for (unsigned i = 0; i < in.operand_count; i++)
        note_operand(out, &classes, &operands[i]);
    drop_base_of_sib(out, &in);
    note_flags(out, &in);
    /* F3 41 90 is XCHG r8, rAX: REX.B turns the opcode from PAUSE to XCHG, on all CPUs */
    if (in.mnemonic == ZYDIS_MNEMONIC_PAUSE && out->has_rex && in.raw.rex.B)
        make_xchg_r8(out);
    if (in.mnemonic == ZYDIS_MNEMONIC_CLZERO && (out->has_rep || out->has_repne))
        return -1;
    if (is_refused_in_32_bit(out, &in) || is_prefetch_of_register(out, model))
        return -1;
    /* AMD: 66H cuts a near branch in 64-bit mode to 16 bits; Intel ignores it there */
    bool is_near_branch = in.meta.branch_type == ZYDIS_BRANCH_TYPE_NEAR ||
                          in.meta.branch_type == ZYDIS_BRANCH_TYPE_SHORT;
    if (mode == 8 && model != NULL && model->is_amd && is_near_branch &&
        (in.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE) && !in.raw.rex.W)
        out->op_size = 2;
    out->unit = (uint8_t)unit_of(&in, &classes);
    out->is_mem_masked = out->has_mem && is_masked(out, &in);
    out->is_fault_unmasked = out->is_mem_masked && has_no_fault_suppression(&in);
    if (out->is_mem_masked && out->mem_element_size == 0)
        out->mem_element_size = (uint8_t)out->mem_size;
    if (out->is_mem_masked)
        out->mask_lanes = (uint8_t)mask_lanes(out, &in, operands);
    out->is_mem_aligned = out->has_mem && !out->is_agen && needs_alignment(&in, out);
    if (in.mnemonic == ZYDIS_MNEMONIC_NOP && out->has_mem)
        out->is_agen = true;
    out->is_hidden = insn_is_hidden(&in, model);
    bool is_special =
        classes.has_other_memory || classes.has_system_register || out->is_vsib ||
        in.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE || is_system_op(in.mnemonic) ||
        (is_zeroing(in.mnemonic) && mode != 8) ||
        (is_bit_string(in.mnemonic) && out->has_mem && out->gpr_reg.reg != INSN_NO_REG);
    out->cls = is_special ? INSN_SPECIAL : INSN_DATA;
    return out->len;
}
