/*
 * steer.c - operands of drawn instructions, made to lie where something is to be seen
 *
 * Most land in the data window, some across its middle (two pages), some across its end (a page
 * fault), few anywhere. Only the first instruction of a case may have its registers set, since
 * the later ones find what those before them left.
 */
#include <string.h>

#include <Zydis/Zydis.h>

#include "generate.h"

/* Where an operand of `size` bytes shall lie. */
static uint64_t pick_address(struct rng *r, unsigned size, unsigned alignment)
{
    unsigned at = rng_below(r, (unsigned)DIFF_WINDOW - size);

    switch (rng_below(r, 16)) {
    case 0:
        return DIFF_DATA + 0x1000 - rng_below(r, size + 1); /* across the middle */
    case 1:
        return DIFF_DATA + DIFF_WINDOW - rng_below(r, size + 1); /* across the end */
    case 2:
        return DIFF_DATA - rng_below(r, size + 1); /* across the beginning */
    case 3:
    case 4:
        return DIFF_DATA + at;
    default:
        return DIFF_DATA + (at & ~(alignment - 1));
    }
}

static void set_low(struct steer *s, unsigned reg, uint64_t value, unsigned size)
{
    uint64_t *gpr = &s->c->before.gpr[reg];

    if (size == 8)
        *gpr = value;
    else if (size == 4 && s->c->mode == 8 && rng_percent(s->r, 50))
        *gpr = (uint32_t)value | rng_next(s->r) << 32;
    else
        *gpr = (uint32_t)value;
    s->pointers |= (uint16_t)(1u << reg);
}

static uint8_t *stack_at(struct steer *s, uint64_t addr)
{
    return s->c->before.stack + (addr - DIFF_STACK);
}

static bool is_in_stack(uint64_t addr, unsigned size)
{
    return addr >= DIFF_STACK && addr + size <= DIFF_STACK + DIFF_WINDOW;
}

/* An address that is in the bytes: absolute or relative to RIP. */
static void patch_address(struct steer *s, const struct insn *in, uint8_t *bytes, uint64_t target)
{
    bool has_sib = in->has_modrm && (in->modrm & 7) == 4;

    if (!in->has_modrm) { /* MOV moffs */
        uint8_t *p = bytes + in->opcode_off + 1;
        if (in->addr_size == 8)
            store_le64(p, target);
        else
            store_le32(p, (uint32_t)target);
    } else if (in->mem_base == INSN_RIP) {
        store_le32(bytes + in->modrm_off + 1, (uint32_t)(target - (s->rip + in->len)));
    } else {
        store_le32(bytes + in->modrm_off + 1 + has_sib, (uint32_t)target);
    }
}

/* A later instruction: a pointer that may still be one, with a displacement of our choice. */
static bool patch_displacement(struct steer *s, const struct insn *in, uint8_t *bytes,
                               uint64_t target)
{
    bool has_sib = (in->modrm & 7) == 4;

    if (in->mem_base >= 16 || !(s->pointers >> in->mem_base & 1) || in->mem_index != INSN_NO_REG)
        return rng_percent(s->r, 5);
    if (in->modrm >> 6 == 2)
        store_le32(bytes + in->modrm_off + 1 + has_sib,
                   (uint32_t)(target - s->c->before.gpr[in->mem_base]));
    return true;
}

/* Base and index so that base + index * scale + displacement is target. */
static bool set_registers(struct steer *s, const struct insn *in, uint64_t target)
{
    uint64_t rest = target - (uint64_t)in->mem_disp;

    if (in->mem_base == in->mem_index) {
        set_low(s, in->mem_base, rest / (1u + in->mem_scale), in->addr_size);
        return (int64_t)rest >= 0;
    }
    if (in->mem_base == INSN_NO_REG) {
        set_low(s, in->mem_index, rest / in->mem_scale, in->addr_size);
        return (int64_t)rest >= 0;
    }
    if (in->mem_index != INSN_NO_REG) {
        uint64_t index = (uint64_t)rng_below(s->r, 512) - 256;
        set_low(s, in->mem_index, index, in->addr_size);
        rest -= index * in->mem_scale;
    }
    set_low(s, in->mem_base, rest, in->addr_size);
    return true;
}

static bool steer_modrm(struct steer *s, const struct insn *in, uint8_t *bytes, uint64_t target)
{
    if (in->addr_size == 2)
        return rng_percent(s->r, 10); /* the first 64 KiB: never mapped */
    if (!in->has_modrm || in->mem_base == INSN_RIP ||
        (in->mem_base == INSN_NO_REG && in->mem_index == INSN_NO_REG)) {
        patch_address(s, in, bytes, target);
        return true;
    }
    if (!s->is_first)
        return patch_displacement(s, in, bytes, target);
    if (rng_percent(s->r, 1))
        return true; /* anywhere, non-canonical addresses among it */
    return set_registers(s, in, target);
}

/* ---- vectors ---- */

static uint8_t *vector_half(struct steer *s, unsigned n, unsigned at)
{
    const uint32_t *offset = s->model->xsave_offset;
    uint8_t *x = s->c->before.xsave;

    if (n >= 16)
        return x + offset[7] + 64 * (n - 16) + at;
    if (at < 16)
        return x + 160 + 16 * n + at;
    return at < 32 ? x + offset[2] + 16 * n + (at - 16) : x + offset[6] + 32 * n + (at - 32);
}

/* The vector register in SIB.index. */
static unsigned vsib_index(const struct insn *in)
{
    const uint8_t *p = in->bytes + in->vex_off;
    unsigned n = in->bytes[in->modrm_off + 1] >> 3 & 7;

    if (in->mode == 8) {
        n |= (~p[1] & 0x40u) >> 3;
        if (in->encoding == INSN_EVEX)
            n |= (~p[3] & 0x08u) << 1;
    }
    return n;
}

static bool has_wide_indices(const struct insn *in)
{
    return in->opcode & 1; /* 91, 93, A1, A3: quadwords */
}

/* Elements spread over the window; a few of them beyond it in one case of three. */
static bool steer_vsib(struct steer *s, const struct insn *in)
{
    unsigned n = vsib_index(in), size = has_wide_indices(in) ? 8 : 4;
    bool has_strays = rng_percent(s->r, 33);
    uint64_t base = DIFF_DATA + 0x1000 - (uint64_t)in->mem_disp;

    if (in->mem_base == INSN_NO_REG) {
        base = (uint64_t)in->mem_disp; /* absolute: the indices are all there is */
    } else if (in->addr_size == 2 || in->mem_base >= 16) {
        return false;
    } else {
        set_low(s, in->mem_base, base, in->addr_size);
        base = DIFF_DATA + 0x1000;
    }
    for (unsigned at = 0; at + size <= 64; at += size) {
        uint64_t target = DIFF_DATA + (rng_below(s->r, DIFF_WINDOW - 16) & ~3u);
        if (has_strays && rng_percent(s->r, 20))
            target = DIFF_DATA + DIFF_WINDOW - rng_below(s->r, 9);
        uint64_t index = (uint64_t)((int64_t)(target - base) / in->mem_scale);
        if (s->model->xcr0_valid & XCR0_AVX512 || at < 32) {
            if (size == 8)
                store_le64(vector_half(s, n, at), index);
            else
                store_le32(vector_half(s, n, at), (uint32_t)index);
        }
    }
    return true;
}

/* Masks of loads and stores that cross into nothing: none, or just what fits. */
static void steer_mask(struct steer *s, const struct insn *in)
{
    if (in->encoding != INSN_EVEX || !rng_percent(s->r, 60))
        return;
    unsigned k = in->bytes[in->vex_off + 3] & 7;
    uint64_t mask = BIT(rng_below(s->r, 33)) - 1;
    if (rng_percent(s->r, 30))
        mask = ~mask;
    if (rng_percent(s->r, 15))
        mask &= rng_next(s->r);
    store_le64(s->c->before.xsave + s->model->xsave_offset[5] + 8 * k, mask);
}

/* ---- images ---- */

/* A valid image to load, of other registers than the CPU holds, with some components left out. */
static void fill_image(struct steer *s, uint64_t addr, bool is_xsave)
{
    unsigned size = MIN(s->model->xsave_size, (unsigned)CPU_XSAVE_SIZE);
    uint8_t *p;

    if (!is_xsave)
        size = 512;
    if (addr < DIFF_DATA || addr + size > DIFF_DATA + DIFF_WINDOW)
        return;
    p = s->c->before.data + (addr - DIFF_DATA);
    memcpy(p, s->c->before.xsave, size);
    for (unsigned i = 32; i < 416; i += 7)
        p[i] ^= (uint8_t)rng_next(s->r);
    if (rng_percent(s->r, 95))
        store_le32(p + 28, s->model->mxcsr_mask);
    if (is_xsave) {
        store_le64(p + 512, s->model->xcr0_valid & rng_next(s->r));
        if (rng_percent(s->r, 5))
            store_le64(p + 512 + 8 * rng_below(s->r, 8), rng_value(s->r));
    }
}

static bool steer_image(struct steer *s, const struct insn *in, uint8_t *bytes)
{
    bool is_x87 = in->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT, is_xsave = false, is_load = false;
    unsigned size, alignment;

    switch (in->op) {
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64:
        is_load = is_xsave = true;
        break;
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEC64:
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
        is_xsave = true;
        break;
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
        is_load = true;
        break;
    default:
        break;
    }
    size = is_x87 ? 108 : is_xsave ? s->model->xsave_size : 512;
    alignment = is_xsave ? 64 : 16;
    uint64_t target = pick_address(s->r, size, alignment);
    if (is_xsave && !s->is_first)
        return false; /* which components are in use is known at the start only */
    if (!s->is_first && in->mem_base < 16)
        return false; /* where it lies must be known */
    if (!steer_modrm(s, in, bytes, target))
        return false;
    if (is_xsave) {
        s->c->before.gpr[CPU_RAX] = s->model->xcr0_valid & rng_next(s->r);
        s->c->before.gpr[CPU_RDX] = rng_percent(s->r, 80) ? 0 : (uint32_t)rng_next(s->r);
        if (in->mem_base == CPU_RAX || in->mem_base == CPU_RDX || in->mem_index == CPU_RAX ||
            in->mem_index == CPU_RDX)
            return false; /* they are the mask */
    }
    if (is_load)
        fill_image(s, target, is_xsave);
    else if (in->op == ZYDIS_MNEMONIC_FNSAVE || in->op == ZYDIS_MNEMONIC_FNSTENV)
        s->c->image = in->op_size == 2 ? DIFF_IMAGE_ENV16 : DIFF_IMAGE_ENV32;
    else if (!is_x87)
        s->c->image = DIFF_IMAGE_FXSAVE;
    s->c->image_addr = target;
    return true;
}

/* ---- implicit operands ---- */

static bool steer_string(struct steer *s, const struct insn *in)
{
    struct diff_state *st = &s->c->before;

    if (in->addr_size == 2)
        return rng_percent(s->r, 10);
    set_low(s, CPU_RSI, pick_address(s->r, in->op_size, 64), in->addr_size);
    set_low(s, CPU_RDI,
            rng_percent(s->r, 30) ? st->gpr[CPU_RSI] + rng_below(s->r, 9)
                                  : pick_address(s->r, in->op_size, 64),
            in->addr_size);
    set_low(s, CPU_RCX, rng_below(s->r, rng_percent(s->r, 10) ? 5000 : 80), in->addr_size);
    if (rng_percent(s->r, 25))
        st->rflags |= RFLAGS_DF;
    return true;
}

/* Branch targets: the INT3s behind the code. */
static bool steer_branch(struct steer *s, const struct insn *in, uint8_t *bytes)
{
    uint64_t target = s->rip + in->len + rng_below(s->r, 16);
    uint64_t rsp = s->c->before.gpr[CPU_RSP];

    if (in->imm_size == 1 && in->opcode != 0xc2) {
        bytes[in->len - 1] = (uint8_t)rng_below(s->r, 16);
        return true;
    }
    if (in->opcode == 0xc2 || in->opcode == 0xc3) {
        if (!s->is_first || !is_in_stack(rsp, 8))
            return false;
        if (rng_percent(s->r, 95))
            store_le64(stack_at(s, rsp), target);
        if (in->opcode == 0xc2 && rng_percent(s->r, 80))
            store_le16(bytes + in->imm_off, (uint16_t)rng_below(s->r, 64));
        return true;
    }
    if (in->opcode == 0xff) {
        if (!s->is_first)
            return false;
        if (!in->has_mem) {
            s->c->before.gpr[in->gpr_rm.reg] = target;
            return in->gpr_rm.reg != CPU_RSP;
        }
        uint64_t at = pick_address(s->r, 8, 8);
        if (at >= DIFF_DATA && at + 8 <= DIFF_DATA + DIFF_WINDOW)
            store_le64(s->c->before.data + (at - DIFF_DATA), target);
        return steer_modrm(s, in, bytes, at);
    }
    /* CALL, JMP, Jcc with a displacement of 2 or 4 bytes */
    if (in->imm_size == 2) {
        store_le16(bytes + in->imm_off, (uint16_t)rng_below(s->r, 16));
        return true;
    }
    store_le32(bytes + in->imm_off, rng_below(s->r, 16));
    return in->imm_size == 4;
}

/* Bit strings: the bit's byte lies in the window, the register is an offset to it. */
static bool steer_bit_string(struct steer *s, const struct insn *in, uint8_t *bytes)
{
    uint64_t target = pick_address(s->r, in->op_size, 8);
    unsigned g = in->gpr_reg.reg;

    if (!in->has_mem || g == INSN_NO_REG || in->addr_size == 2)
        return !in->has_mem || (in->addr_size != 2 && steer_modrm(s, in, bytes, target));
    if (g == in->mem_base || g == in->mem_index)
        return false;
    int64_t bit = (int64_t)(rng_below(s->r, 0x8000)) - 0x4000;
    s->c->before.gpr[g] = s->c->mode == 8 ? (uint64_t)bit : (uint32_t)bit;
    if (in->op_size == 4 && s->c->mode == 8 && rng_percent(s->r, 50))
        s->c->before.gpr[g] = (uint32_t)bit | rng_next(s->r) << 32;
    return steer_modrm(s, in, bytes, target - (uint64_t)(bit >> 3));
}

static bool steer_flags_on_stack(struct steer *s)
{
    uint64_t rsp = s->c->before.gpr[CPU_RSP];

    if (!is_in_stack(rsp, 8))
        return false;
    uint8_t *p = stack_at(s, rsp);
    store_le64(p, load_le64(p) & ~(uint64_t)RFLAGS_TF);
    return true;
}

static bool steer_enter(struct steer *s, uint8_t *bytes, const struct insn *in)
{
    if (rng_percent(s->r, 90)) {
        store_le16(bytes + in->imm_off, (uint16_t)rng_below(s->r, 256));
        bytes[in->imm_off + 2] =
            (uint8_t)(rng_percent(s->r, 50) ? 0 : rng_below(s->r, rng_percent(s->r, 80) ? 6 : 256));
    }
    return true;
}

static bool steer_special(struct steer *s, const struct insn *in, uint8_t *bytes)
{
    struct rng *r = s->r;

    if (draw_is_string(in))
        return steer_string(s, in);
    if (draw_is_image(in))
        return steer_image(s, in, bytes);
    if (draw_classify(in) == DRAW_LAST)
        return steer_branch(s, in, bytes);
    if (in->is_vsib) {
        steer_mask(s, in);
        return steer_vsib(s, in);
    }
    switch (in->op) {
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
        set_low(s, CPU_RDI, pick_address(r, 16, 16), in->addr_size);
        return in->addr_size != 2;
    case ZYDIS_MNEMONIC_XLAT:
        set_low(s, CPU_RBX, pick_address(r, 1, 1) - (s->c->before.gpr[CPU_RAX] & 0xff),
                in->addr_size);
        return in->addr_size != 2;
    case ZYDIS_MNEMONIC_CLZERO:
        set_low(s, CPU_RAX, pick_address(r, 64, 1), in->addr_size);
        return in->addr_size != 2;
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
        return steer_bit_string(s, in, bytes);
    case ZYDIS_MNEMONIC_POPF:
    case ZYDIS_MNEMONIC_POPFD:
    case ZYDIS_MNEMONIC_POPFQ:
        return steer_flags_on_stack(s);
    case ZYDIS_MNEMONIC_ENTER:
        return steer_enter(s, bytes, in);
    default:
        break;
    }
    if (!in->has_mem || in->is_agen)
        return true;
    return steer_modrm(s, in, bytes, pick_address(r, MAX(in->mem_size, 1u), 16));
}

bool steer_operands(struct steer *s, const struct insn *in, uint8_t *bytes)
{
    if (in->cls == INSN_SPECIAL)
        return steer_special(s, in, bytes);
    if (!in->has_mem || in->is_agen)
        return true;
    unsigned size = MAX(in->mem_size, 1u);
    uint64_t target = pick_address(s->r, size, 64);
    if (in->is_mem_masked) {
        if (rng_percent(s->r, 40))
            target = DIFF_DATA + DIFF_WINDOW - rng_below(s->r, size + 1);
        if (s->is_first)
            steer_mask(s, in);
    }
    return steer_modrm(s, in, bytes, target);
}
