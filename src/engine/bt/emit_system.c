/*
 * emit_system.c - host code for CLI, STI, SWAPGS, RDTSC
 *
 * Invariant: the status flags stay as they are; IF is a bit of st.rflags only.
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
    emit_gs_load(e, true, S1, BT_SEG_BASE_OFFSET(CPU_GS));
    emit_gs_load(e, true, S2, BT_OFFSET(soft.st.kernel_gs_base));
    emit_gs_store(e, true, S2, BT_SEG_BASE_OFFSET(CPU_GS));
    emit_gs_store(e, true, S1, BT_OFFSET(soft.st.kernel_gs_base));
}

/* rorx dst, src, imm (VEX.LZ.F2.0F3A.W1 F0) and shlx dst, src, count (VEX.LZ.66.0F38.W1 F7) */
static void emit_rorx(struct emit *e, unsigned dst, unsigned src, unsigned imm)
{
    emit8(e, 0xc4);
    emit8(e, (uint8_t)((dst < 8 ? 0x80 : 0) | 0x40 | (src < 8 ? 0x20 : 0) | 0x03));
    emit8(e, 0xfb);
    emit8(e, 0xf0);
    emit8(e, emit_modrm(3, dst, src));
    emit8(e, (uint8_t)imm);
}

static void emit_shlx(struct emit *e, unsigned dst, unsigned src, unsigned count)
{
    emit8(e, 0xc4);
    emit8(e, (uint8_t)((dst < 8 ? 0x80 : 0) | 0x40 | (src < 8 ? 0x20 : 0) | 0x02));
    emit8(e, (uint8_t)(0x80 | (~count & 15) << 3 | 0x01));
    emit8(e, 0xf7);
    emit8(e, emit_modrm(3, dst, src));
}

/* EDX:EAX = host TSC + offset, without touching flags. */
void bt_emit_rdtsc(struct bt_tr *t)
{
    struct emit *e = &t->e;

    if (!(t->mode & BT_MODE_RDTSC)) {
        bt_emit_soft(t);
        return;
    }
    emit8(e, 0x0f);
    emit8(e, 0x31);
    emit_mov_imm(e, S0, 32);
    emit_shlx(e, S1, H_RDX, S0);
    emit_lea(e, true, S1, S1, H_RAX, 1, 0);
    emit_gs_load(e, true, S2, BT_OFFSET(soft.st.tsc_offset));
    emit_lea(e, true, S1, S1, S2, 1, 0);
    emit_mov(e, false, H_RAX, S1);
    emit_rorx(e, S1, S1, 32);
    emit_mov(e, false, H_RDX, S1);
}
