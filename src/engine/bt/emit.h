/*
 * emit.h - write host instructions
 *
 * Only what generated code is made of: moves, LEA, PEXT, jumps and accesses relative to the
 * vCPU block (%gs). None of these touches RFLAGS: the guest's status flags stay where they are.
 * Writing past the end sets `is_full`; the caller checks once per instruction it translates.
 */
#ifndef DOPPEL_ENGINE_BT_EMIT_H
#define DOPPEL_ENGINE_BT_EMIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum host_gpr {
    H_RAX,
    H_RCX,
    H_RDX,
    H_RBX,
    H_RSP,
    H_RBP,
    H_RSI,
    H_RDI,
    H_R8,
    H_R9,
    H_R10,
    H_R11,
    H_R12,
    H_R13,
    H_R14,
    H_R15,
};

#define H_NONE 0xff

struct emit {
    uint8_t *start, *p, *end; /* in the writable mapping */
    bool is_full;
};

static inline void emit_bytes(struct emit *e, const void *bytes, size_t n)
{
    if ((size_t)(e->end - e->p) < n) {
        e->is_full = true;
        return;
    }
    for (const uint8_t *from = bytes; n > 0; n--)
        *e->p++ = *from++;
}

static inline void emit8(struct emit *e, uint8_t v)
{
    emit_bytes(e, &v, 1);
}

static inline void emit32(struct emit *e, uint32_t v)
{
    emit_bytes(e, &v, 4);
}

static inline void emit64(struct emit *e, uint64_t v)
{
    emit_bytes(e, &v, 8);
}

static inline uint8_t emit_modrm(unsigned mod, unsigned reg, unsigned rm)
{
    return (uint8_t)(mod << 6 | (reg & 7) << 3 | (rm & 7));
}

/* REX is written when any bit or `force` (byte registers SPL..DIL) asks for it. */
static inline void emit_rex(struct emit *e, bool w, unsigned reg, unsigned index, unsigned base,
                            bool force)
{
    uint8_t rex =
        (uint8_t)(0x40 | w << 3 | (reg >> 3 & 1) << 2 | (index >> 3 & 1) << 1 | (base >> 3 & 1));
    if (rex != 0x40 || force)
        emit8(e, rex);
}

/* ModRM, SIB and displacement of [base + index * scale + disp]; base or index may be H_NONE. */
static inline void emit_address(struct emit *e, unsigned reg, unsigned base, unsigned index,
                                unsigned scale, int32_t disp)
{
    unsigned ss = scale == 8 ? 3 : scale == 4 ? 2 : scale == 2 ? 1 : 0;
    if (base == H_NONE) {
        emit8(e, emit_modrm(0, reg, 4));
        emit8(e, emit_modrm(ss, index == H_NONE ? 4 : index, 5));
        emit32(e, (uint32_t)disp);
        return;
    }
    unsigned mod = disp == 0 && (base & 7) != H_RBP ? 0 : disp >= -128 && disp <= 127 ? 1 : 2;
    if (index != H_NONE || (base & 7) == H_RSP) {
        emit8(e, emit_modrm(mod, reg, 4));
        emit8(e, emit_modrm(ss, index == H_NONE ? 4 : index, base));
    } else {
        emit8(e, emit_modrm(mod, reg, base));
    }
    if (mod == 1)
        emit8(e, (uint8_t)disp);
    else if (mod == 2)
        emit32(e, (uint32_t)disp);
}

/* opcode reg, [base + index * scale + disp] */
static inline void emit_op_mem(struct emit *e, bool w, uint8_t opcode, unsigned reg, unsigned base,
                               unsigned index, unsigned scale, int32_t disp)
{
    emit_rex(e, w, reg, index == H_NONE ? 0 : index, base == H_NONE ? 0 : base, false);
    emit8(e, opcode);
    emit_address(e, reg, base, index, scale, disp);
}

/* mov dst, src; `w`: 64 bits, else 32 with zero extension */
static inline void emit_mov(struct emit *e, bool w, unsigned dst, unsigned src)
{
    emit_rex(e, w, src, 0, dst, false);
    emit8(e, 0x89);
    emit8(e, emit_modrm(3, src, dst));
}

/* opcode reg, rm */
static inline void emit_op_reg(struct emit *e, bool w, uint8_t opcode, unsigned reg, unsigned rm)
{
    emit_rex(e, w, reg, 0, rm, false);
    emit8(e, opcode);
    emit8(e, emit_modrm(3, reg, rm));
}

/* not reg: the one of its group that leaves the flags alone */
static inline void emit_not(struct emit *e, unsigned reg)
{
    emit_op_reg(e, true, 0xf7, 2, reg);
}

static inline void emit_mov_imm(struct emit *e, unsigned dst, uint64_t imm)
{
    if (imm <= UINT32_MAX) {
        emit_rex(e, false, 0, 0, dst, false);
        emit8(e, (uint8_t)(0xb8 | (dst & 7)));
        emit32(e, (uint32_t)imm);
    } else if ((int64_t)imm == (int32_t)imm) {
        emit_rex(e, true, 0, 0, dst, false);
        emit8(e, 0xc7);
        emit8(e, emit_modrm(3, 0, dst));
        emit32(e, (uint32_t)imm);
    } else {
        emit_rex(e, true, 0, 0, dst, false);
        emit8(e, (uint8_t)(0xb8 | (dst & 7)));
        emit64(e, imm);
    }
}

static inline void emit_lea(struct emit *e, bool w, unsigned dst, unsigned base, unsigned index,
                            unsigned scale, int32_t disp)
{
    emit_op_mem(e, w, 0x8d, dst, base, index, scale, disp);
}

/* opcode reg, %gs:[index * 8 + offset]; index may be H_NONE */
static inline void emit_op_gs(struct emit *e, bool w, uint8_t opcode, unsigned reg, unsigned index,
                              uint32_t offset)
{
    emit8(e, 0x65);
    emit_rex(e, w, reg, index == H_NONE ? 0 : index, 0, false);
    emit8(e, opcode);
    emit_address(e, reg, H_NONE, index, 8, (int32_t)offset);
}

static inline void emit_gs_load(struct emit *e, bool w, unsigned reg, uint32_t offset)
{
    emit_op_gs(e, w, 0x8b, reg, H_NONE, offset);
}

static inline void emit_gs_store(struct emit *e, bool w, unsigned reg, uint32_t offset)
{
    emit_op_gs(e, w, 0x89, reg, H_NONE, offset);
}

/* mov qword %gs:[offset], sign-extended imm */
static inline void emit_gs_store_imm(struct emit *e, uint32_t offset, int32_t imm)
{
    emit_op_gs(e, true, 0xc7, 0, H_NONE, offset);
    emit32(e, (uint32_t)imm);
}

/* pext dst, src, %gs:[offset] (VEX.LZ.F3.0F38.W1 F5 /r) */
static inline void emit_pext_gs(struct emit *e, unsigned dst, unsigned src, uint32_t offset)
{
    emit8(e, 0x65);
    emit8(e, 0xc4);
    emit8(e, (uint8_t)((dst < 8 ? 0x80 : 0) | 0x40 | 0x20 | 0x02));
    emit8(e, (uint8_t)(0x80 | (~src & 15) << 3 | 0x02));
    emit8(e, 0xf5);
    emit_address(e, dst, H_NONE, H_NONE, 1, (int32_t)offset);
}

/* rorx dst, src, imm (VEX.LZ.F2.0F3A.W1 F0) */
static inline void emit_rorx(struct emit *e, unsigned dst, unsigned src, unsigned imm)
{
    emit8(e, 0xc4);
    emit8(e, (uint8_t)((dst < 8 ? 0x80 : 0) | 0x40 | (src < 8 ? 0x20 : 0) | 0x03));
    emit8(e, 0xfb);
    emit8(e, 0xf0);
    emit8(e, emit_modrm(3, dst, src));
    emit8(e, (uint8_t)imm);
}

/* Shifts by a register that leave the flags alone, 64 bits wide: VEX.LZ.pp.0F38.W1 F7. */
enum emit_shift { EMIT_SHLX = 1, EMIT_SARX = 2, EMIT_SHRX = 3 };

static inline void emit_shift(struct emit *e, enum emit_shift kind, unsigned dst, unsigned src,
                              unsigned count)
{
    emit8(e, 0xc4);
    emit8(e, (uint8_t)((dst < 8 ? 0x80 : 0) | 0x40 | (src < 8 ? 0x20 : 0) | 0x02));
    emit8(e, (uint8_t)(0x80 | (~count & 15) << 3 | kind));
    emit8(e, 0xf7);
    emit8(e, emit_modrm(3, dst, src));
}

/* jrcxz to a place not known yet; returns the place of the displacement byte */
static inline uint8_t *emit_jrcxz(struct emit *e)
{
    emit8(e, 0xe3);
    emit8(e, 0);
    return e->p - 1;
}

static inline void emit_patch8(struct emit *e, uint8_t *at, const uint8_t *target)
{
    if (!e->is_full)
        *at = (uint8_t)(target - (at + 1));
}

/* jmp rel32 to a place not known yet; returns the place of the displacement */
static inline uint8_t *emit_jmp(struct emit *e)
{
    emit8(e, 0xe9);
    emit32(e, 0);
    return e->p - 4;
}

static inline void emit_patch32(struct emit *e, uint8_t *at, const uint8_t *target)
{
    if (!e->is_full) {
        int32_t rel = (int32_t)(target - (at + 4));
        memcpy(at, &rel, 4);
    }
}

static inline void emit_jmp_to(struct emit *e, const uint8_t *target)
{
    uint8_t *at = emit_jmp(e);
    emit_patch32(e, at, target);
}

/* lea reg, [rip + (target - next)] */
static inline void emit_lea_rip(struct emit *e, unsigned reg, const uint8_t *target)
{
    emit_rex(e, true, reg, 0, 0, false);
    emit8(e, 0x8d);
    emit8(e, emit_modrm(0, reg, 5));
    emit32(e, (uint32_t)(target - (e->p + 4)));
}

/* n bytes (any number) that do nothing and leave the flags alone */
static inline void emit_nops(struct emit *e, unsigned n)
{
    static const uint8_t nop[8][8] = {
        {0x90},
        {0x66, 0x90},
        {0x0f, 0x1f, 0x00},
        {0x0f, 0x1f, 0x40, 0x00},
        {0x0f, 0x1f, 0x44, 0x00, 0x00},
        {0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00},
        {0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00},
        {0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00},
    };
    while (n > 0) {
        unsigned k = n > 8 ? 8 : n;
        emit_bytes(e, nop[k - 1], k);
        n -= k;
    }
}

#endif
