/*
 * emit_system.c - host code for system instructions that are frequent in kernels
 *
 * Invariant: the status flags stay as they are; IF, DF and AC are bits of st.rflags only.
 */
#include <Zydis/Zydis.h>

#include "engine/bt/bt.h"

#define RFLAGS_BYTE_1 (BT_OFFSET(soft.st.rflags) + 1)

/* RFLAGS.IF = 0 or 1, by a table of bytes so that the status flags stay. */
static void emit_set_if(struct bt_tr *t, bool is_set)
{
    struct emit *e = &t->e;
    uint32_t table = is_set ? BT_OFFSET(set_bit_1) : BT_OFFSET(clear_bit_1);

    emit8(e, 0x65); /* movzx ecx, byte gs:[rflags + 1] */
    emit8(e, 0x0f);
    emit8(e, 0xb6);
    emit_address(e, S0, H_NONE, H_NONE, 1, (int32_t)RFLAGS_BYTE_1);
    emit8(e, 0x65); /* mov cl, gs:[rcx + table] */
    emit8(e, 0x8a);
    emit_address(e, S0, S0, H_NONE, 1, (int32_t)table);
    emit_op_gs(e, false, 0x88, S0, H_NONE, RFLAGS_BYTE_1);
}

void bt_emit_cli(struct bt_tr *t)
{
    if (t->mode & BT_MODE_CPL0)
        emit_set_if(t, false);
    else
        bt_emit_soft(t);
}

/*
 * Nothing pending: no shadow is needed, since whatever comes now is taken at the next block.
 * Something pending: C does it, with the shadow.
 */
void bt_emit_sti(struct bt_tr *t)
{
    struct emit *e = &t->e;

    if (!(t->mode & BT_MODE_CPL0)) {
        bt_emit_soft(t);
        return;
    }
    emit_gs_load(e, true, S1, BT_OFFSET(soft.pins));
    emit_op_mem(e, false, 0x8b, S0, S1, H_NONE, 1, 0);
    uint8_t *quiet = emit_jrcxz(e);
    bt_emit_soft(t);
    uint8_t *done = emit_jmp(e);
    emit_patch8(e, quiet, e->p);
    emit_set_if(t, true);
    emit_patch32(e, done, e->p);
}

void bt_emit_swapgs(struct bt_tr *t)
{
    struct emit *e = &t->e;

    if (!(t->mode & BT_MODE_CPL0) || t->size != 8) {
        bt_emit_soft(t);
        return;
    }
    bt_shares_forget(t); /* those of GS lie elsewhere now */
    emit_gs_load(e, true, S1, BT_SEG_BASE_OFFSET(CPU_GS));
    emit_gs_load(e, true, S2, BT_OFFSET(soft.st.kernel_gs_base));
    emit_gs_store(e, true, S2, BT_SEG_BASE_OFFSET(CPU_GS));
    emit_gs_store(e, true, S1, BT_OFFSET(soft.st.kernel_gs_base));
}

/* EDX:EAX = host TSC + offset, without touching flags; RDTSCP: ECX = the guest's TSC_AUX. */
void bt_emit_rdtsc(struct bt_tr *t, const struct insn *in)
{
    struct emit *e = &t->e;

    if (!(t->mode & BT_MODE_RDTSC)) {
        bt_emit_soft(t);
        return;
    }
    if (in->op == ZYDIS_MNEMONIC_RDTSCP) {
        static const uint8_t rdtscp[] = {0x0f, 0x01, 0xf9}; /* waits as the guest expects it to */
        emit_bytes(e, rdtscp, sizeof(rdtscp));
        emit_gs_load(e, false, H_GUEST_RCX, BT_OFFSET(soft.st.tsc_aux));
    } else {
        emit8(e, 0x0f);
        emit8(e, 0x31);
    }
    emit_mov_imm(e, S0, 32);
    emit_shift(e, EMIT_SHLX, S1, H_RDX, S0);
    emit_lea(e, true, S1, S1, H_RAX, 1, 0);
    emit_gs_load(e, true, S2, BT_OFFSET(soft.st.tsc_offset));
    emit_lea(e, true, S1, S1, S2, 1, 0);
    emit_mov(e, false, H_RAX, S1);
    emit_rorx(e, S1, S1, 32);
    emit_mov(e, false, H_RDX, S1);
}

/*
 * With CR4.SMAP the TLB set of a block says what AC is, so STAC and CLAC either do nothing or lead
 * to the block of the other set. The jump cache of that set must be for the mode there; C puts
 * that right.
 */
void bt_emit_stac_clac(struct bt_tr *t, const struct insn *in)
{
    struct emit *e = &t->e;
    bool is_stac = in->op == ZYDIS_MNEMONIC_STAC;
    unsigned set = is_stac ? SOFT_TLB_KERNEL : SOFT_TLB_KERNEL_SMAP;
    uint32_t mode = (t->mode & ~(BT_MODE_SET | BT_MODE_NOSHARE)) | set << BT_MODE_SET_SHIFT;

    if (!(t->mode & BT_MODE_CPL0) || !(t->mode & BT_MODE_SMAP) || t->size != 8) {
        bt_emit_soft(t);
        return;
    }
    if (t->set == set)
        return;
    emit_gs_load(e, false, S0, BT_JC_OFFSET(set, mode));
    emit_lea(e, true, S0, S0, H_NONE, 1, -(int32_t)mode);
    uint8_t *known = emit_jrcxz(e);
    bt_emit_end_soft(t);
    emit_patch8(e, known, e->p);
    emit_gs_load(e, true, S0, BT_OFFSET(soft.st.rflags));
    emit_lea(e, true, S0, S0, H_NONE, 1, is_stac ? (int32_t)RFLAGS_AC : -(int32_t)RFLAGS_AC);
    emit_gs_store(e, true, S0, BT_OFFSET(soft.st.rflags));
    emit_mov_imm(e, S0, mode);
    emit_gs_store(e, false, S0, BT_OFFSET(mode));
    emit_mov_imm(e, S0, set);
    emit_gs_store(e, false, S0, BT_OFFSET(set));
    bt_emit_exit_to_mode(t, t->rip + in->len, mode);
}

/* Write host register `h` to guest register g as an operand of `size` (4 or 8) bytes. */
static void emit_gpr_put(struct bt_tr *t, unsigned g, unsigned h, unsigned size)
{
    struct emit *e = &t->e;

    if (!BT_IN_MEMORY(g)) {
        emit_mov(e, size == 8, g == CPU_RCX ? H_GUEST_RCX : g, h);
        return;
    }
    if (size == 4)
        emit_mov(e, false, h, h);
    emit_gs_store(e, true, h, BT_GPR_OFFSET(g));
}

void bt_emit_segment_base(struct bt_tr *t, const struct insn *in)
{
    struct emit *e = &t->e;
    bool is_read = in->op == ZYDIS_MNEMONIC_RDFSBASE || in->op == ZYDIS_MNEMONIC_RDGSBASE;
    bool is_fs = in->op == ZYDIS_MNEMONIC_RDFSBASE || in->op == ZYDIS_MNEMONIC_WRFSBASE;
    uint32_t base = BT_SEG_BASE_OFFSET(is_fs ? CPU_FS : CPU_GS);
    unsigned g = in->gpr_rm.reg, size = in->op_size == 8 ? 8 : 4;

    if (!(t->mode & BT_MODE_FSGSBASE) || t->size != 8 || g == INSN_NO_REG) {
        bt_emit_soft(t);
        return;
    }
    if (is_read) {
        emit_gs_load(e, true, S1, base);
        emit_gpr_put(t, g, S1, size);
        return;
    }
    emit_mov(e, size == 8, S1, bt_emit_gpr_get(t, g, S1));
    /* canonical: all bits from the highest that counts on are alike, so the sum is 0 or 1 */
    emit_gs_load(e, true, S0, BT_OFFSET(canonical_shift));
    emit_shift(e, EMIT_SARX, S0, S1, S0);
    emit_lea(e, true, S0, S0, H_NONE, 1, 1);
    emit_mov_imm(e, S2, 1);
    emit_shift(e, EMIT_SHRX, S0, S0, S2);
    uint8_t *canonical = emit_jrcxz(e);
    bt_emit_soft(t);
    uint8_t *done = emit_jmp(e);
    emit_patch8(e, canonical, e->p);
    emit_gs_store(e, true, S1, base);
    emit_patch32(e, done, e->p);
    bt_shares_forget(t); /* of accesses through this segment */
}

bool bt_is_mov_from_system(const struct insn *in)
{
    if (in->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT)
        return in->opcode == 0x8c;
    return in->opcode_map == ZYDIS_OPCODE_MAP_0F && in->opcode == 0x20;
}

static void emit_mov_from_control(struct bt_tr *t, const struct insn *in)
{
    struct emit *e = &t->e;
    static const uint32_t offsets[] = {
        [0] = BT_OFFSET(soft.st.cr0),
        [2] = BT_OFFSET(soft.st.cr2),
        [3] = BT_OFFSET(soft.st.cr3),
        [4] = BT_OFFSET(soft.st.cr4),
    };
    unsigned reg = in->modrm >> 3 & 7, rm = in->modrm & 7;
    unsigned rex = in->has_rex ? in->bytes[in->rex_off] : 0;

    if (!(t->mode & BT_MODE_CPL0) || t->size != 8 || in->has_lock || (rex & 4) ||
        reg >= ARRAY_SIZE(offsets) || offsets[reg] == 0) {
        bt_emit_end_soft(t);
        return;
    }
    emit_gs_load(e, true, S1, offsets[reg]);
    emit_gpr_put(t, rm | (rex & 1) << 3, S1, 8);
}

/* A selector goes to a register zero-extended; SDM vol. 2, MOV. */
void bt_emit_mov_from_system(struct bt_tr *t, const struct insn *in)
{
    unsigned reg = in->modrm >> 3 & 7;

    if (in->opcode == 0x20) {
        emit_mov_from_control(t, in);
        return;
    }
    if (t->size != 8 || in->has_mem || in->has_lock || reg > CPU_GS || in->op_size == 2 ||
        in->gpr_rm.reg == INSN_NO_REG) {
        bt_emit_soft(t);
        return;
    }
    emit8(&t->e, 0x65); /* movzx r10d, word gs:[selector] */
    emit8(&t->e, 0x44);
    emit8(&t->e, 0x0f);
    emit8(&t->e, 0xb7);
    emit_address(&t->e, S1, H_NONE, H_NONE, 1, (int32_t)BT_SEG_SELECTOR_OFFSET(reg));
    emit_gpr_put(t, in->gpr_rm.reg, S1, 8);
}

/* DF is clear nearly always. */
void bt_emit_cld(struct bt_tr *t)
{
    struct emit *e = &t->e;

    bt_emit_load_df(t);
    uint8_t *is_clear = emit_jrcxz(e);
    bt_emit_soft(t);
    emit_patch8(e, is_clear, e->p);
}
