/*
 * stubs.c - the glue between generated code and C
 *
 * Every stub has the same shape: put the guest's registers and status flags into the vCPU
 * block, call a C helper on the host's stack with (vCPU, S1, S0, S2), take the registers back
 * and go where the helper said. Vector state is not touched: the helpers are compiled for
 * general registers only and save it themselves before they leave the engine.
 */
#include "engine/bt/bt.h"

/* Guest GPRs that live in host registers other than RAX, as (guest, host). */
static const uint8_t stub_gprs[][2] = {
    {CPU_RCX, H_GUEST_RCX}, {CPU_RDX, H_RDX}, {CPU_RBX, H_RBX}, {CPU_RSP, H_RSP},
    {CPU_RBP, H_RBP},       {CPU_RSI, H_RSI}, {CPU_RDI, H_RDI}, {CPU_R8, H_R8},
    {CPU_R9, H_R9},         {CPU_R12, H_R12}, {CPU_R13, H_R13}, {CPU_R14, H_R14},
};

static void stub_emit_save(struct emit *e)
{
    static const uint8_t lahf_seto[] = {0x9f, 0x0f, 0x90, 0xc0};
    emit_gs_store(e, true, H_RAX, BT_GPR_OFFSET(CPU_RAX));
    emit_bytes(e, lahf_seto, sizeof(lahf_seto));
    emit_gs_store(e, false, H_RAX, BT_OFFSET(flags_ax));
    for (size_t i = 0; i < ARRAY_SIZE(stub_gprs); i++)
        emit_gs_store(e, true, stub_gprs[i][1], BT_GPR_OFFSET(stub_gprs[i][0]));
}

/* add al, 127 gives back OF; sahf the others. */
static void stub_emit_restore_and_go(struct emit *e)
{
    static const uint8_t add_sahf[] = {0x04, 0x7f, 0x9e};
    for (size_t i = 0; i < ARRAY_SIZE(stub_gprs); i++)
        emit_gs_load(e, true, stub_gprs[i][1], BT_GPR_OFFSET(stub_gprs[i][0]));
    emit_gs_load(e, false, H_RAX, BT_OFFSET(flags_ax));
    emit_bytes(e, add_sahf, sizeof(add_sahf));
    emit_gs_load(e, true, H_RAX, BT_GPR_OFFSET(CPU_RAX));
    emit_op_gs(e, false, 0xff, 4, H_NONE, BT_OFFSET(target)); /* jmp [target] */
}

static uint8_t *stub_begin(struct bt_engine *be, struct emit *e)
{
    while ((uintptr_t)e->p & 15)
        emit8(e, 0xcc);
    return (uint8_t *)bt_rx(be, e->p);
}

static uint8_t *stub_make_call(struct bt_engine *be, struct emit *e, uintptr_t helper)
{
    uint8_t *at = stub_begin(be, e);
    stub_emit_save(e);
    emit_gs_load(e, true, H_RSP, BT_OFFSET(host_rsp));
    emit_mov(e, true, H_RSI, S1);
    emit_mov(e, true, H_RDX, S0);
    emit_mov(e, true, H_RCX, S2);
    emit_gs_load(e, true, H_RDI, BT_OFFSET(self));
    emit_mov_imm(e, H_RAX, helper);
    emit8(e, 0xff); /* call rax */
    emit8(e, emit_modrm(3, 2, H_RAX));
    emit_gs_store(e, true, H_RAX, BT_OFFSET(target));
    stub_emit_restore_and_go(e);
    return at;
}

void bt_stubs_make(struct bt_engine *be)
{
    static const uint8_t saved[] = {H_RBX, H_RBP, H_R12, H_R13, H_R14, H_R15};
    struct emit e = {.start = be->rw, .p = be->rw, .end = be->rw + 4096};

    /* void enter(vcpu, target): a call from C, with GS base set */
    be->stub_enter = stub_begin(be, &e);
    for (size_t i = 0; i < ARRAY_SIZE(saved); i++) {
        emit_rex(&e, false, 0, 0, saved[i], false);
        emit8(&e, (uint8_t)(0x50 | (saved[i] & 7)));
    }
    emit_lea(&e, true, H_RSP, H_RSP, H_NONE, 1, -8); /* helpers are called 16-byte aligned */
    emit_gs_store(&e, true, H_RSP, BT_OFFSET(host_rsp));
    emit_gs_store(&e, true, H_RSI, BT_OFFSET(target));
    stub_emit_restore_and_go(&e);

    /* back to C; guest registers are in the vCPU block already */
    be->stub_leave = stub_begin(be, &e);
    emit_gs_load(&e, true, H_RSP, BT_OFFSET(host_rsp));
    emit_lea(&e, true, H_RSP, H_RSP, H_NONE, 1, 8);
    for (size_t i = ARRAY_SIZE(saved); i-- > 0;) {
        emit_rex(&e, false, 0, 0, saved[i], false);
        emit8(&e, (uint8_t)(0x58 | (saved[i] & 7)));
    }
    emit8(&e, 0xc3);

    be->stub_dispatch = stub_make_call(be, &e, (uintptr_t)bt_helper_dispatch);
    be->stub_tlb = stub_make_call(be, &e, (uintptr_t)bt_helper_tlb);
    be->stub_soft = stub_make_call(be, &e, (uintptr_t)bt_helper_soft);
    be->stub_chain = stub_make_call(be, &e, (uintptr_t)bt_helper_chain);
    be->stub_indirect = stub_make_call(be, &e, (uintptr_t)bt_helper_indirect);
    be->stub_fault = stub_make_call(be, &e, (uintptr_t)bt_helper_fault);
    be->stub_switch = stub_make_call(be, &e, (uintptr_t)bt_helper_switch);
    be->stubs_end = 4096;
}
