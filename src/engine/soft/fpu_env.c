/*
 * fpu_env.c - the x87 environment in memory: FNSTENV, FLDENV, FNSAVE, FRSTOR
 *
 * The host stores and loads control, status and tag words and the stack, in its one format; the
 * instruction and data pointers are the guest's own (fpu_state.h), in the format of its mode.
 *
 * Specification: SDM vol. 1, 8.1.10 and figures 8-9 to 8-12.
 */
#include <Zydis/Zydis.h>

#include "engine/soft/fpu_state.h"

#define ENV32_SIZE 28u
#define ENV16_SIZE 14u
#define STACK_SIZE 80u

/* As the host stores it: the 32-bit protected-mode format. */
struct environment {
    uint8_t bytes[ENV32_SIZE + STACK_SIZE] __attribute__((aligned(16)));
};

static unsigned environment_size(const struct insn *in)
{
    return in->op_size == 2 ? ENV16_SIZE : ENV32_SIZE;
}

static bool is_real_format(const struct soft_vcpu *v)
{
    return cpu_is_real(&v->st) || cpu_is_v86(&v->st);
}

/*
 * CR0.EM, CR0.TS -> #NM, then the operand, whose first and last bytes are tried before any other
 * access (which shows in CR2). Its words are what #AC is about.
 */
static int environment_operand(struct soft_vcpu *v, const struct insn *in, unsigned size,
                               enum soft_access access, gva_t *addr)
{
    unsigned word = in->op_size == 2 ? 2 : 4;

    if (soft_fpu_check(v, INSN_UNIT_X87) || soft_fpu_operand(v, in, size, 0, word, access, addr))
        return SOFT_FAULT;
    if (UNLIKELY(v->is_ac_set) && (*addr & (word - 1)))
        return soft_raise_error(v, VEC_AC, 0);
    if (soft_probe(v, *addr, word, access, SOFT_AS_CPL))
        return SOFT_FAULT;
    return soft_probe(v, *addr + size - 1, 1, access, SOFT_AS_CPL);
}

/* The pointers as they are kept: offset (64 bits in 64-bit mode, else 32) and selector. */
static uint32_t pointer_offset(const uint8_t *p)
{
    return load_le32(p);
}

static uint16_t pointer_selector(const struct insn *in, const uint8_t *p)
{
    return in->mode == 8 ? 0 : load_le16(p + 4);
}

/* In real-address format pointers are linear: selector * 16 + offset. */
static uint32_t pointer_linear(const uint8_t *p)
{
    return ((uint32_t)load_le16(p + 4) << 4) + load_le32(p);
}

static void format32(const struct soft_vcpu *v, const struct insn *in, uint8_t *env)
{
    const uint8_t *image = v->st.xsave;
    uint32_t fop = load_le16(image + FPU_FOP);

    if (is_real_format(v)) {
        uint32_t fip = pointer_linear(image + FPU_FIP), fdp = pointer_linear(image + FPU_FDP);
        store_le32(env + 12, fip & 0xffff);
        store_le32(env + 16, fip >> 16 << 12 | fop);
        store_le32(env + 20, fdp & 0xffff);
        store_le32(env + 24, fdp >> 16 << 12);
        return;
    }
    store_le32(env + 12, pointer_offset(image + FPU_FIP));
    store_le32(env + 16, pointer_selector(in, image + FPU_FIP) | fop << 16);
    store_le32(env + 20, pointer_offset(image + FPU_FDP));
    /* the upper half is reserved and stored as ones, as beside the control word */
    store_le32(env + 24, pointer_selector(in, image + FPU_FDP) | UINT32_C(0xffff0000));
}

static void format16(const struct soft_vcpu *v, const struct insn *in, const uint8_t *env,
                     uint8_t *out)
{
    const uint8_t *image = v->st.xsave;
    uint32_t fop = load_le16(image + FPU_FOP);

    for (unsigned i = 0; i < 3; i++)
        store_le16(out + 2 * i, load_le16(env + 4 * i));
    if (is_real_format(v)) {
        uint32_t fip = pointer_linear(image + FPU_FIP), fdp = pointer_linear(image + FPU_FDP);
        store_le16(out + 6, (uint16_t)fip);
        store_le16(out + 8, (uint16_t)((fip >> 16 & 15) << 12 | fop));
        store_le16(out + 10, (uint16_t)fdp);
        store_le16(out + 12, (uint16_t)((fdp >> 16 & 15) << 12));
        return;
    }
    store_le16(out + 6, (uint16_t)pointer_offset(image + FPU_FIP));
    store_le16(out + 8, pointer_selector(in, image + FPU_FIP));
    store_le16(out + 10, (uint16_t)pointer_offset(image + FPU_FDP));
    store_le16(out + 12, pointer_selector(in, image + FPU_FDP));
}

static int op_fnstenv(struct soft_vcpu *v, const struct insn *in)
{
    bool is_save = in->op == ZYDIS_MNEMONIC_FNSAVE;
    unsigned env_size = environment_size(in), size = env_size + (is_save ? STACK_SIZE : 0);
    struct environment env;
    uint8_t out[ENV32_SIZE + STACK_SIZE];
    gva_t addr;

    if (environment_operand(v, in, size, SOFT_WRITE, &addr))
        return SOFT_FAULT;
    if (!v->is_fpu_live)
        soft_fpu_load(v);
    if (is_save)
        __asm__ volatile("fnsave %0" : "=m"(env));
    else
        __asm__ volatile("fnstenv %0" : "=m"(env)); /* masks all exceptions, as for the guest */
    if (env_size == ENV16_SIZE) {
        format16(v, in, env.bytes, out);
    } else {
        soft_copy(out, env.bytes, 12);
        format32(v, in, out);
    }
    if (is_save) {
        soft_copy(out + env_size, env.bytes + ENV32_SIZE, STACK_SIZE);
        soft_zero(v->st.xsave + FPU_FOP, 2);
        soft_zero(v->st.xsave + FPU_FIP, 16);
    }
    return soft_write(v, addr, out, size, SOFT_AS_CPL);
}

/* Linear addresses become selector 0 and offset, which are stored as the same again. */
static void parse_pointers(struct soft_vcpu *v, const struct insn *in, const uint8_t *from)
{
    uint8_t *image = v->st.xsave;
    uint64_t fip, fdp;
    unsigned fop;

    if (environment_size(in) == ENV32_SIZE) {
        uint32_t ip = load_le32(from + 12), cs = load_le32(from + 16);
        uint32_t dp = load_le32(from + 20), ds = load_le32(from + 24);
        if (is_real_format(v)) {
            fip = (ip & 0xffff) | (cs >> 12 & 0xffff) << 16;
            fdp = (dp & 0xffff) | (ds >> 12 & 0xffff) << 16;
            fop = cs & 0x7ff;
        } else {
            fip = ip | (uint64_t)(cs & 0xffff) << 32;
            fdp = dp | (uint64_t)(ds & 0xffff) << 32;
            fop = cs >> 16 & 0x7ff;
        }
    } else {
        uint32_t ip = load_le16(from + 6), cs = load_le16(from + 8);
        uint32_t dp = load_le16(from + 10), ds = load_le16(from + 12);
        if (is_real_format(v)) {
            fip = ip | (cs >> 12) << 16;
            fdp = dp | (ds >> 12) << 16;
            fop = cs & 0x7ff;
        } else {
            fip = ip | (uint64_t)cs << 32;
            fdp = dp | (uint64_t)ds << 32;
            fop = 0;
        }
    }
    if (in->mode == 8 || cpu_model_has(v->model, CPU_FEATURE_ZERO_FCS_FDS)) {
        fip = (uint32_t)fip;
        fdp = (uint32_t)fdp;
    }
    store_le16(image + FPU_FOP, (uint16_t)fop);
    store_le64(image + FPU_FIP, fip);
    store_le64(image + FPU_FDP, fdp);
}

static int op_fldenv(struct soft_vcpu *v, const struct insn *in)
{
    bool is_restore = in->op == ZYDIS_MNEMONIC_FRSTOR;
    unsigned env_size = environment_size(in), size = env_size + (is_restore ? STACK_SIZE : 0);
    uint8_t from[ENV32_SIZE + STACK_SIZE];
    struct environment env;
    gva_t addr;

    if (soft_fpu_check(v, INSN_UNIT_X87))
        return SOFT_FAULT;
    if (soft_fpu_is_pending(v))
        return soft_fpu_raise_pending(v);
    if (environment_operand(v, in, size, SOFT_READ, &addr))
        return SOFT_FAULT;
    if (soft_read(v, addr, from, size, SOFT_AS_CPL))
        return SOFT_FAULT;
    soft_zero(env.bytes, ENV32_SIZE);
    for (unsigned i = 0; i < 3; i++)
        store_le16(env.bytes + 4 * i, load_le16(from + (env_size == ENV16_SIZE ? 2 : 4) * i));
    if (!v->is_fpu_live) /* a device may have been read */
        soft_fpu_load(v);
    if (is_restore) {
        soft_copy(env.bytes + ENV32_SIZE, from + env_size, STACK_SIZE);
        __asm__ volatile("frstor %0" : : "m"(env));
    } else {
        __asm__ volatile("fldenv %0" : : "m"(env));
    }
    parse_pointers(v, in, from);
    return 0;
}

const struct soft_op soft_ops_fpu[] = {
    {ZYDIS_MNEMONIC_FNSTENV, op_fnstenv},
    {ZYDIS_MNEMONIC_FNSAVE, op_fnstenv},
    {ZYDIS_MNEMONIC_FLDENV, op_fldenv},
    {ZYDIS_MNEMONIC_FRSTOR, op_fldenv},
    {0, NULL},
};
