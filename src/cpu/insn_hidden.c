/*
 * insn_hidden.c - instructions that the guest's CPUID does not show raise #UD
 *
 * By Zydis's instruction-set names: what stands in neither table belongs to the baseline.
 */
#include "cpu/insn_hidden.h"

#include <stddef.h>

#include "base/bits.h"
#include "cpu/model.h"

/* Never offered. */
static bool is_never_offered(ZydisISAExt ext)
{
    switch (ext) {
    case ZYDIS_ISA_EXT_AMD3DNOW:
    case ZYDIS_ISA_EXT_AMD_INVLPGB:
    case ZYDIS_ISA_EXT_AMX_BF16:
    case ZYDIS_ISA_EXT_AMX_INT8:
    case ZYDIS_ISA_EXT_AMX_TILE:
    case ZYDIS_ISA_EXT_CET:
    case ZYDIS_ISA_EXT_ENQCMD:
    case ZYDIS_ISA_EXT_FMA4:
    case ZYDIS_ISA_EXT_HRESET:
    case ZYDIS_ISA_EXT_KEYLOCKER:
    case ZYDIS_ISA_EXT_KEYLOCKER_WIDE:
    case ZYDIS_ISA_EXT_KNC:
    case ZYDIS_ISA_EXT_KNCE:
    case ZYDIS_ISA_EXT_KNCV:
    case ZYDIS_ISA_EXT_MCOMMIT:
    case ZYDIS_ISA_EXT_MONITOR:
    case ZYDIS_ISA_EXT_MONITORX:
    case ZYDIS_ISA_EXT_MOVDIR:
    case ZYDIS_ISA_EXT_PADLOCK:
    case ZYDIS_ISA_EXT_PCONFIG:
    case ZYDIS_ISA_EXT_PKU:
    case ZYDIS_ISA_EXT_PT:
    case ZYDIS_ISA_EXT_RDPRU:
    case ZYDIS_ISA_EXT_RTM:
    case ZYDIS_ISA_EXT_SERIALIZE:
    case ZYDIS_ISA_EXT_SGX:
    case ZYDIS_ISA_EXT_SGX_ENCLV:
    case ZYDIS_ISA_EXT_SMX:
    case ZYDIS_ISA_EXT_SNP:
    case ZYDIS_ISA_EXT_SVM:
    case ZYDIS_ISA_EXT_TBM:
    case ZYDIS_ISA_EXT_TDX:
    case ZYDIS_ISA_EXT_TSX_LDTRK:
    case ZYDIS_ISA_EXT_UINTR:
    case ZYDIS_ISA_EXT_VMFUNC:
    case ZYDIS_ISA_EXT_VTX:
    case ZYDIS_ISA_EXT_WAITPKG:
    case ZYDIS_ISA_EXT_XOP:
        return true;
    default:
        return false;
    }
}

static const struct {
    uint16_t ext, feature;
} ext_features[] = {
    {ZYDIS_ISA_EXT_ADOX_ADCX, CPU_FEATURE_ADX},
    {ZYDIS_ISA_EXT_AES, CPU_FEATURE_AES},
    {ZYDIS_ISA_EXT_AVX, CPU_FEATURE_AVX},
    {ZYDIS_ISA_EXT_AVX2, CPU_FEATURE_AVX2},
    {ZYDIS_ISA_EXT_AVX2GATHER, CPU_FEATURE_AVX2},
    {ZYDIS_ISA_EXT_AVX512EVEX, CPU_FEATURE_AVX512F},
    {ZYDIS_ISA_EXT_AVX512VEX, CPU_FEATURE_AVX512F},
    {ZYDIS_ISA_EXT_AVXAES, CPU_FEATURE_AES},
    {ZYDIS_ISA_EXT_AVX_VNNI, CPU_FEATURE_AVX_VNNI},
    {ZYDIS_ISA_EXT_BMI1, CPU_FEATURE_BMI1},
    {ZYDIS_ISA_EXT_BMI2, CPU_FEATURE_BMI2},
    {ZYDIS_ISA_EXT_CLFLUSHOPT, CPU_FEATURE_CLFLUSHOPT},
    {ZYDIS_ISA_EXT_CLFSH, CPU_FEATURE_CLFLUSH},
    {ZYDIS_ISA_EXT_CLWB, CPU_FEATURE_CLWB},
    {ZYDIS_ISA_EXT_CLZERO, CPU_FEATURE_CLZERO},
    {ZYDIS_ISA_EXT_F16C, CPU_FEATURE_F16C},
    {ZYDIS_ISA_EXT_FMA, CPU_FEATURE_FMA},
    {ZYDIS_ISA_EXT_GFNI, CPU_FEATURE_GFNI},
    {ZYDIS_ISA_EXT_INVPCID, CPU_FEATURE_INVPCID},
    {ZYDIS_ISA_EXT_LZCNT, CPU_FEATURE_ABM},
    {ZYDIS_ISA_EXT_MMX, CPU_FEATURE_MMX},
    {ZYDIS_ISA_EXT_MOVBE, CPU_FEATURE_MOVBE},
    {ZYDIS_ISA_EXT_PCLMULQDQ, CPU_FEATURE_PCLMULQDQ},
    {ZYDIS_ISA_EXT_RDPID, CPU_FEATURE_RDPID},
    {ZYDIS_ISA_EXT_RDRAND, CPU_FEATURE_RDRAND},
    {ZYDIS_ISA_EXT_RDSEED, CPU_FEATURE_RDSEED},
    {ZYDIS_ISA_EXT_RDTSCP, CPU_FEATURE_RDTSCP},
    {ZYDIS_ISA_EXT_RDWRFSGS, CPU_FEATURE_FSGSBASE},
    {ZYDIS_ISA_EXT_SHA, CPU_FEATURE_SHA_NI},
    {ZYDIS_ISA_EXT_SMAP, CPU_FEATURE_SMAP},
    {ZYDIS_ISA_EXT_SSE, CPU_FEATURE_SSE},
    {ZYDIS_ISA_EXT_SSE2, CPU_FEATURE_SSE2},
    {ZYDIS_ISA_EXT_SSE3, CPU_FEATURE_SSE3},
    {ZYDIS_ISA_EXT_SSE4, CPU_FEATURE_SSE4_1},
    {ZYDIS_ISA_EXT_SSE4A, CPU_FEATURE_SSE4A},
    {ZYDIS_ISA_EXT_SSSE3, CPU_FEATURE_SSSE3},
    {ZYDIS_ISA_EXT_VAES, CPU_FEATURE_VAES},
    {ZYDIS_ISA_EXT_VPCLMULQDQ, CPU_FEATURE_VPCLMULQDQ},
    {ZYDIS_ISA_EXT_XSAVE, CPU_FEATURE_XSAVE},
    {ZYDIS_ISA_EXT_XSAVEC, CPU_FEATURE_XSAVEC},
    {ZYDIS_ISA_EXT_XSAVEOPT, CPU_FEATURE_XSAVEOPT},
    {ZYDIS_ISA_EXT_XSAVES, CPU_FEATURE_XSAVES},
};

/* AVX-512 comes in sets named AVX512<FEATURE>_<WIDTH>; widths below 512 need VL. */
static const struct {
    const char *prefix;
    uint16_t feature;
} avx512_features[] = {
    {"AVX512BW", CPU_FEATURE_AVX512BW},
    {"AVX512CD", CPU_FEATURE_AVX512CD},
    {"AVX512DQ", CPU_FEATURE_AVX512DQ},
    {"AVX512F", CPU_FEATURE_AVX512F},
    {"AVX512_BF16", CPU_FEATURE_AVX512_BF16},
    {"AVX512_BITALG", CPU_FEATURE_AVX512_BITALG},
    {"AVX512_FP16", CPU_FEATURE_AVX512_FP16},
    {"AVX512_GFNI", CPU_FEATURE_GFNI},
    {"AVX512_IFMA", CPU_FEATURE_AVX512IFMA},
    {"AVX512_VAES", CPU_FEATURE_VAES},
    {"AVX512_VBMI2", CPU_FEATURE_AVX512_VBMI2},
    {"AVX512_VBMI", CPU_FEATURE_AVX512VBMI},
    {"AVX512_VNNI", CPU_FEATURE_AVX512_VNNI},
    {"AVX512_VP2INTERSECT", CPU_FEATURE_AVX512_VP2INTERSECT},
    {"AVX512_VPCLMULQDQ", CPU_FEATURE_VPCLMULQDQ},
    {"AVX512_VPOPCNTDQ", CPU_FEATURE_AVX512_VPOPCNTDQ},
};

/* True when `name` is `prefix` or goes on with an underscore. */
static bool has_prefix(const char *name, const char *prefix)
{
    while (*prefix != '\0')
        if (*name++ != *prefix++)
            return false;
    return *name == '\0' || *name == '_';
}

static bool is_avx512_hidden(const ZydisDecodedInstruction *in, const struct cpu_model *model)
{
    const char *name = ZydisISASetGetString(in->meta.isa_set);
    bool is_known = false;

    if (name == NULL || !cpu_model_has(model, CPU_FEATURE_AVX512F))
        return true;
    for (size_t i = 0; i < ARRAY_SIZE(avx512_features); i++) {
        if (!has_prefix(name, avx512_features[i].prefix))
            continue;
        is_known = true;
        if (!cpu_model_has(model, avx512_features[i].feature))
            return true;
        break;
    }
    if (!is_known)
        return true;
    bool is_narrow = in->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX &&
                     in->avx.vector_length != 0 && in->avx.vector_length < 512;
    const char *end = name;
    while (*end != '\0')
        end++;
    /* ..._128 and ..._256; not ..._128N and ..._SCALAR, which have no vector length */
    return is_narrow && (end[-1] == '8' || end[-1] == '6') &&
           !cpu_model_has(model, CPU_FEATURE_AVX512VL);
}

bool insn_is_hidden(const ZydisDecodedInstruction *in, const struct cpu_model *model)
{
    ZydisISAExt ext = in->meta.isa_ext;

    /* hypercalls come with the paravirtual leaves, not with VMX or SVM */
    if (in->mnemonic == ZYDIS_MNEMONIC_VMCALL || in->mnemonic == ZYDIS_MNEMONIC_VMMCALL)
        return false;
    if (is_never_offered(ext))
        return true;
    if (model == NULL)
        return false;
    if (ext == ZYDIS_ISA_EXT_AVX512EVEX || ext == ZYDIS_ISA_EXT_AVX512VEX)
        return is_avx512_hidden(in, model);
    switch (in->mnemonic) {
    case ZYDIS_MNEMONIC_CRC32:
    case ZYDIS_MNEMONIC_PCMPGTQ:
    case ZYDIS_MNEMONIC_PCMPESTRI:
    case ZYDIS_MNEMONIC_PCMPESTRM:
    case ZYDIS_MNEMONIC_PCMPISTRI:
    case ZYDIS_MNEMONIC_PCMPISTRM:
        return !cpu_model_has(model, CPU_FEATURE_SSE4_2);
    case ZYDIS_MNEMONIC_POPCNT:
        return !cpu_model_has(model, CPU_FEATURE_POPCNT);
    case ZYDIS_MNEMONIC_CMPXCHG16B:
        return !cpu_model_has(model, CPU_FEATURE_CX16);
    default:
        break;
    }
    for (size_t i = 0; i < ARRAY_SIZE(ext_features); i++)
        if (ext_features[i].ext == ext)
            return !cpu_model_has(model, (enum cpu_feature)ext_features[i].feature);
    return false;
}
