/*
 * insn.h - one decoded instruction, and how to encode it again with other registers
 *
 * Decoding is Zydis's work; this is the compact result that the engines keep. It holds what
 * an instruction reads and writes, where its fields lie in its bytes, and how it is executed:
 * as data processing, which the host CPU can do itself once the memory operand and displaced
 * registers are replaced, or as something with a function of its own.
 */
#ifndef DOPPEL_CPU_INSN_H
#define DOPPEL_CPU_INSN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define INSN_MAX_LEN 15
#define INSN_NO_REG 0xff
#define INSN_RIP 0xfe          /* as mem_base: RIP-relative */

enum insn_encoding { INSN_LEGACY, INSN_VEX, INSN_EVEX };

/*
 * How an instruction is executed. INSN_DATA: GPRs, vector/x87/mask registers, status flags
 * and at most one explicit ModRM memory operand, nothing else; identical in every mode apart
 * from encoding. All others have a semantic function each, found by `op`.
 */
enum insn_class { INSN_DATA, INSN_SPECIAL, INSN_INVALID };

/* What INSN_DATA needs enabled, for #UD and #NM (SDM vol. 2, exception classes). */
enum insn_unit {
    INSN_UNIT_INT,      /* nothing */
    INSN_UNIT_X87,      /* CR0.EM/TS -> #NM; pending exceptions -> #MF */
    INSN_UNIT_WAIT,     /* FWAIT: CR0.MP && TS -> #NM */
    INSN_UNIT_MMX,      /* CR0.EM -> #UD, TS -> #NM */
    INSN_UNIT_SSE,      /* CR0.EM or !CR4.OSFXSR -> #UD, TS -> #NM */
    INSN_UNIT_AVX,      /* !CR4.OSXSAVE or XCR0[2:1] != 3, real or v86 mode -> #UD, TS -> #NM */
    INSN_UNIT_AVX512,   /* as AVX, XCR0[7:5] too */
    INSN_UNIT_VEX_INT,  /* VEX-encoded integer (BMI): #UD in real and v86 mode */
    INSN_UNIT_MASK,     /* VEX-encoded opmask instructions: as AVX512 */
};

/* One GPR field of the encoding (ModRM.reg, ModRM.rm with mod 3, VEX.vvvv, opcode bits 2..0). */
struct insn_gpr {
    uint8_t reg;        /* 0..15, or INSN_NO_REG: the field is absent or not a GPR */
    uint8_t size;       /* bytes accessed: 1, 2, 4, 8 */
    bool is_high_byte;  /* AH, CH, DH, BH; reg is 0..3 then */
    bool is_read, is_written;
};

#define INSN_ACCESS_READ 1u
#define INSN_ACCESS_WRITE 2u

struct insn {
    uint8_t bytes[INSN_MAX_LEN];
    uint8_t len;
    uint8_t mode;            /* code size it was decoded for: 2, 4, 8 */
    bool is_imm_signed;      /* imm was sign-extended */

    uint16_t op;             /* ZydisMnemonic */
    uint8_t cls;             /* enum insn_class */
    uint8_t unit;            /* enum insn_unit */
    uint8_t encoding;        /* enum insn_encoding */
    uint8_t opcode_map;      /* ZydisOpcodeMap */
    uint8_t opcode;          /* the opcode byte */
    bool is_hidden;          /* the CPU model hides it: #UD */

    /* prefixes */
    bool has_lock, has_rep, has_repne;
    uint8_t opcode_prefix;   /* F2H or F3H where it selects the instruction, else 0 */
    bool is_66_opcode;       /* 66H selects the instruction, it is no operand size */
    uint8_t seg;             /* segment of the memory operand, override applied; cpu_seg_index */
    bool has_seg_override;

    uint8_t op_size;         /* effective operand size: 1, 2, 4, 8 */
    uint8_t addr_size;       /* effective address size: 2, 4, 8 */

    /* offsets into bytes; 0 where absent (an opcode is at 0 at the earliest) */
    uint8_t rex_off;         /* of REX; valid when has_rex */
    bool has_rex;
    uint8_t vex_off;         /* of C4/C5/62 */
    uint8_t opcode_off;      /* of the last opcode byte */
    uint8_t modrm_off;
    uint8_t imm_off, imm_size;   /* first immediate, raw bytes */
    uint8_t imm2_off, imm2_size;
    uint8_t modrm;           /* raw ModRM byte */
    bool has_modrm;

    struct insn_gpr gpr_reg, gpr_rm, gpr_vvvv, gpr_opcode;

    /* explicit ModRM memory operand (also of LEA and NOP) */
    bool has_mem;
    bool is_agen;            /* the address is computed but not accessed (LEA, multi-byte NOP) */
    bool is_vsib;            /* gather/scatter: INSN_SPECIAL */
    bool is_mem_aligned;     /* misaligned -> #GP by the host itself (MOVAPS ...) */
    uint8_t mem_base, mem_index; /* GPR, INSN_RIP (base), or INSN_NO_REG */
    uint8_t mem_scale;       /* 1, 2, 4, 8 */
    int64_t mem_disp;        /* scaled and sign-extended; moffs is zero-extended */
    uint8_t mem_element_size; /* bytes of one vector element; 0 where there are none */
    uint16_t mem_size;       /* bytes accessed, 0 for is_agen; the largest for masked accesses */
    uint8_t mem_access;      /* INSN_ACCESS_* */
    bool is_mem_masked;      /* EVEX masking or VMASKMOV: bytes masked off must not fault */
    bool is_fault_unmasked;  /* a masked store that faults whatever the mask says */
    uint8_t mask_lanes;      /* bits of the mask that count; lane i is memory element
                                i % (mem_size / mem_element_size) */

    uint64_t imm;            /* first immediate, sign-extended as the instruction does */
    uint64_t imm2;

    /* every GPR read or written, implicit operands too; bit n = register n */
    uint16_t gpr_read, gpr_written;
    bool uses_high_byte;     /* an explicit AH..BH operand: no REX may be added */

    /* RFLAGS bits, as RFLAGS_* (status flags and DF); "undefined" counts as written */
    uint32_t flags_read, flags_written;
};

struct cpu_model;

/*
 * Decode one instruction from `bytes` (`avail` of them, at most 15 are looked at) for code of
 * `mode` bytes (2, 4, 8). Returns its length; 0 when avail is too short to tell (a page ends
 * here); -1 when it is no instruction (#UD). An instruction longer than 15 bytes returns -2
 * (#GP, SDM vol. 2, 2.3.11). What the model's CPUID does not offer is decoded with is_hidden.
 * model may be NULL: nothing is hidden. Holes in *out are zero.
 */
int insn_decode(struct insn *out, const uint8_t *bytes, size_t avail, unsigned mode,
                const struct cpu_model *model);

/* How to encode an INSN_DATA instruction again, in 64-bit mode. */
struct insn_recode {
    uint8_t reg, rm, vvvv, opcode;    /* host GPR for each field that holds a GPR; else ignored */
    uint8_t mem_base;                 /* host GPR; replaces the whole address */
    uint8_t mem_index;                /* host GPR with scale 1, or INSN_NO_REG */
    int32_t mem_disp;                 /* displacement beside them; 0 for none */
};

#define INSN_RECODE_MAX 24

/*
 * Write *in with *r's registers to out, as 64-bit code. 32-bit-mode encodings that 64-bit mode
 * lacks (40+r, 82 /n ...) are replaced by their twins. Segment, address-size and LOCK-less
 * prefixes: segment overrides and 67H are dropped, 66H/F2H/F3H/LOCK kept. Returns the number of
 * bytes, or 0 when this combination cannot be encoded (a high byte register with REX).
 */
size_t insn_recode(uint8_t out[INSN_RECODE_MAX], const struct insn *in, const struct insn_recode *r);

#endif
