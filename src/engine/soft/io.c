/*
 * io.c - port instructions and who may use them
 *
 * Specification: SDM vol. 1, 19.5 (I/O privilege level and permission bitmap); vol. 2, IN, OUT.
 */
#include <Zydis/Zydis.h>

#include "engine/soft/debug.h"
#include "engine/soft/system.h"

#define TSS32_IOMAP 102u

int soft_io_check(struct soft_vcpu *v, uint16_t port, unsigned size)
{
    const struct cpu_state *st = &v->st;
    const struct cpu_seg *tr = &st->seg[CPU_TR];
    uint64_t iomap, bitmap, addr;

    if (cpu_is_real(st))
        return 0;
    if (!cpu_is_v86(st) && cpu_cpl(st) <= (st->rflags & RFLAGS_IOPL) >> RFLAGS_IOPL_SHIFT)
        return 0;
    if ((tr->attr & SEG_UNUSABLE) || (tr->attr & SEG_TYPE_MASK) < SOFT_TYPE_TSS32 ||
        tr->limit < TSS32_IOMAP + 1)
        return soft_raise_error(v, VEC_GP, 0);
    if (soft_load(v, tr->base + TSS32_IOMAP, 2, SOFT_AS_SYSTEM, &iomap))
        return SOFT_FAULT;
    /* two bytes are read always, so the map ends with a byte of all ones (19.5.2) */
    if (iomap + port / 8 + 1 > tr->limit)
        return soft_raise_error(v, VEC_GP, 0);
    addr = tr->base + iomap + port / 8;
    if (soft_load(v, addr, 2, SOFT_AS_SYSTEM, &bitmap))
        return SOFT_FAULT;
    if ((bitmap >> (port % 8)) & ((1u << size) - 1))
        return soft_raise_error(v, VEC_GP, 0);
    return 0;
}

/* Bit 0 of the opcode: 0 for bytes; bit 3: port in DX. */
static unsigned io_size(const struct insn *in)
{
    if (!(in->opcode & 1))
        return 1;
    return in->op_size == 2 ? 2 : 4;
}

static uint16_t io_port(const struct soft_vcpu *v, const struct insn *in)
{
    return in->opcode & 8 ? (uint16_t)v->st.gpr[CPU_RDX] : in->bytes[in->imm_off];
}

static int op_in(struct soft_vcpu *v, const struct insn *in)
{
    unsigned size = io_size(in);
    uint16_t port = io_port(v, in);

    if (soft_io_check(v, port, size))
        return SOFT_FAULT;
    soft_debug_watch_io(v, port, size);
    soft_gpr_write(v, CPU_RAX, size, false, soft_host_io_read(v, port, size));
    return 0;
}

static int op_out(struct soft_vcpu *v, const struct insn *in)
{
    unsigned size = io_size(in);
    uint16_t port = io_port(v, in);

    if (soft_io_check(v, port, size))
        return SOFT_FAULT;
    soft_debug_watch_io(v, port, size);
    soft_host_io_write(v, port, size, v->st.gpr[CPU_RAX] & mask_bytes(size));
    return 0;
}

const struct soft_op soft_ops_io[] = {
    {ZYDIS_MNEMONIC_IN, op_in},
    {ZYDIS_MNEMONIC_OUT, op_out},
    {0, NULL},
};
