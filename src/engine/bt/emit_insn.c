/*
 * emit_insn.c - host code for one guest instruction
 *
 * Invariant: guest registers, flags and memory change only after every check of the
 * instruction has passed, so that a miss or a host fault finds the state before it.
 */
#include <Zydis/Zydis.h>

#include "engine/bt/bt.h"

/* The instruction runs in C; host code goes on behind it unless control has gone elsewhere. */
void bt_emit_soft(struct bt_tr *t)
{
    struct emit *e = &t->e;
    bt_shares_forget(t);
    bt_emit_settle(t);
    bt_emit_set_rip(e, t->rip);
    uint8_t *lea = e->p;
    emit_lea_rip(e, S2, lea);
    uint8_t *disp = e->p - 4;
    emit_jmp_to(e, bt_rw(t->be, t->be->stub_soft));
    emit_patch32(e, disp, e->p);
}

void bt_emit_end_soft(struct bt_tr *t)
{
    bt_emit_soft(t);
    t->is_end = true;
    /* the C code has gone to the dispatcher; an instruction that did not branch lands here */
    emit_jmp_to(&t->e, bt_rw(t->be, t->be->stub_dispatch));
}

bool bt_is_unit_enabled(const struct bt_tr *t, unsigned unit)
{
    static const uint32_t needs[] = {
        [INSN_UNIT_INT] = 0,
        [INSN_UNIT_X87] = BT_MODE_X87,
        [INSN_UNIT_WAIT] = BT_MODE_WAIT,
        [INSN_UNIT_MMX] = BT_MODE_X87,
        [INSN_UNIT_SSE] = BT_MODE_SSE,
        [INSN_UNIT_AVX] = BT_MODE_AVX,
        [INSN_UNIT_AVX512] = BT_MODE_AVX512,
        [INSN_UNIT_VEX_INT] = BT_MODE_PROTECTED,
        [INSN_UNIT_MASK] = BT_MODE_AVX512,
    };
    return unit < ARRAY_SIZE(needs) && (t->mode & needs[unit]) == needs[unit];
}

/* Temporaries for guest GPRs that are not in a host register of their own. */
struct temps {
    uint8_t guest[3], host[3];
    bool is_written[3];
    unsigned count;
    uint8_t free[3];
    unsigned free_count;
};

/* Instructions that write their destination without having read it, whatever happens. */
static bool is_plain_write(const struct insn *in)
{
    switch (in->op) {
    case ZYDIS_MNEMONIC_MOV:
    case ZYDIS_MNEMONIC_MOVZX:
    case ZYDIS_MNEMONIC_MOVSX:
    case ZYDIS_MNEMONIC_MOVSXD:
        return true;
    default:
        return false;
    }
}

/* Does any field need the old value of guest register g (MOVZX r15d, r15b reads and writes it)? */
static bool needs_old_value(const struct insn *in, unsigned g)
{
    const struct insn_gpr *fields[] = {&in->gpr_reg, &in->gpr_rm, &in->gpr_vvvv, &in->gpr_opcode};

    if (!is_plain_write(in))
        return true;
    for (unsigned i = 0; i < ARRAY_SIZE(fields); i++)
        if (fields[i]->reg == g && (fields[i]->is_read || fields[i]->size < 4))
            return true;
    return false;
}

/* Host register for one field; H_NONE when there is no room for it. */
static unsigned temp_take(struct bt_tr *t, struct temps *temps, const struct insn *in,
                          const struct insn_gpr *field, bool is_rcx_native)
{
    unsigned g = field->reg;
    bool is_displaced = BT_IN_MEMORY(g) || (g == CPU_RCX && in->uses_high_byte);

    if (g == CPU_RCX && !is_displaced)
        return is_rcx_native ? H_RCX : H_GUEST_RCX;
    if (!is_displaced)
        return g;
    for (unsigned i = 0; i < temps->count; i++) {
        if (temps->guest[i] == g) {
            temps->is_written[i] |= field->is_written;
            return temps->host[i];
        }
    }
    if (temps->free_count == 0)
        return H_NONE;
    unsigned h = temps->free[--temps->free_count];
    /* only RCX has a high byte and needs no REX to reach it */
    if (g == CPU_RCX && h != H_RCX)
        return H_NONE;
    if (needs_old_value(in, g)) {
        if (g == CPU_RCX)
            emit_mov(&t->e, true, H_RCX, H_GUEST_RCX);
        else
            emit_gs_load(&t->e, true, h, BT_GPR_OFFSET(g));
    }
    temps->guest[temps->count] = (uint8_t)g;
    temps->host[temps->count] = (uint8_t)h;
    temps->is_written[temps->count] = field->is_written;
    temps->count++;
    return h;
}

static void temps_put_back(struct bt_tr *t, const struct temps *temps)
{
    for (unsigned i = 0; i < temps->count; i++) {
        if (!temps->is_written[i])
            continue;
        if (temps->guest[i] == CPU_RCX)
            emit_mov(&t->e, true, H_GUEST_RCX, H_RCX);
        else
            emit_gs_store(&t->e, true, temps->host[i], BT_GPR_OFFSET(temps->guest[i]));
    }
}

static unsigned displaced_count(const struct insn *in)
{
    const struct insn_gpr *fields[] = {&in->gpr_reg, &in->gpr_rm, &in->gpr_vvvv, &in->gpr_opcode};
    uint32_t seen = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(fields); i++) {
        unsigned g = fields[i]->reg;
        if (g != INSN_NO_REG && (BT_IN_MEMORY(g) || (g == CPU_RCX && in->uses_high_byte)))
            seen |= 1u << g;
    }
    return (unsigned)__builtin_popcount(seen);
}

bool bt_uses_rcx_implicitly(const struct insn *in)
{
    uint16_t all = in->gpr_read | in->gpr_written;
    if (!(all & BIT(CPU_RCX)))
        return false;
    switch (in->op) {
    case ZYDIS_MNEMONIC_SHL:
    case ZYDIS_MNEMONIC_SHR:
    case ZYDIS_MNEMONIC_SAR:
    case ZYDIS_MNEMONIC_ROL:
    case ZYDIS_MNEMONIC_ROR:
    case ZYDIS_MNEMONIC_RCL:
    case ZYDIS_MNEMONIC_RCR:
        return in->opcode == 0xd2 || in->opcode == 0xd3;
    case ZYDIS_MNEMONIC_SHLD:
    case ZYDIS_MNEMONIC_SHRD:
        return in->opcode == 0xa5 || in->opcode == 0xad;
    default:
        break;
    }
    if (in->gpr_reg.reg == CPU_RCX || in->gpr_rm.reg == CPU_RCX || in->gpr_vvvv.reg == CPU_RCX ||
        in->gpr_opcode.reg == CPU_RCX)
        return false;
    if (in->has_mem && (in->mem_base == CPU_RCX || in->mem_index == CPU_RCX))
        return in->op == ZYDIS_MNEMONIC_CMPXCHG8B || in->op == ZYDIS_MNEMONIC_CMPXCHG16B ||
               (in->gpr_written & BIT(CPU_RCX));
    return true;
}

/*
 * Check the memory operand; *r gets its address, *temps the scratch registers left over. False when
 * C has to run the instruction.
 */
static bool emit_data_operand(struct bt_tr *t, const struct insn *in, bool is_rcx_implicit,
                              struct insn_recode *r, struct temps *temps)
{
    struct emit *e = &t->e;
    unsigned displaced = displaced_count(in), room = is_rcx_implicit ? 0 : 1;
    struct bt_place place;

    if (in->uses_high_byte && displaced > 0)
        return false; /* both want RCX */
    if (!bt_emit_operand(t, in, in->mem_size, (in->mem_access & INSN_ACCESS_WRITE) != 0, &place))
        return false;
    r->mem_base = (uint8_t)place.base;
    r->mem_index = place.index == H_NONE ? INSN_NO_REG : (uint8_t)place.index;
    r->mem_disp = place.disp;
    if (in->uses_high_byte) {
        emit_lea(e, true, H_RCX, place.base, place.index, 1, 0); /* an address without REX */
        r->mem_base = H_RCX;
        r->mem_index = INSN_NO_REG;
        return true;
    }
    if (place.index != H_NONE && displaced > room) {
        emit_lea(e, true, S1, place.base, place.index, 1, 0);
        r->mem_base = S1;
        r->mem_index = INSN_NO_REG;
    }
    if (r->mem_index == INSN_NO_REG)
        temps->free[temps->free_count++] = S2;
    if (!is_rcx_implicit)
        temps->free[temps->free_count++] = H_RCX; /* taken first */
    return true;
}

/*
 * The branch behind an instruction of `size` bytes may need padding; before them it does not keep
 * the processor from fusing a comparison with the branch.
 */
static unsigned pad_before_jcc(const struct bt_tr *t, size_t size)
{
    unsigned next = t->insn_index + 1;
    if (next >= t->insn_count || !bt_is_jcc(&t->insns[next]) || t->insns[next].cls != INSN_SPECIAL)
        return 0;
    return bt_link_padding(t->e.p + size + 2);
}

/* MOV between a register that is in the vCPU block and one that is not needs no other. */
static bool emit_mov_displaced(struct bt_tr *t, const struct insn *in)
{
    bool is_load = in->gpr_reg.is_written;
    const struct insn_gpr *to = is_load ? &in->gpr_reg : &in->gpr_rm;
    const struct insn_gpr *from = is_load ? &in->gpr_rm : &in->gpr_reg;

    if (in->op != ZYDIS_MNEMONIC_MOV || in->has_mem || from->reg == INSN_NO_REG ||
        to->reg == INSN_NO_REG || from->size < 4 || to->size < 4 ||
        BT_IN_MEMORY(from->reg) == BT_IN_MEMORY(to->reg))
        return false;
    if (BT_IN_MEMORY(from->reg))
        emit_gs_load(&t->e, from->size == 8, to->reg == CPU_RCX ? H_GUEST_RCX : to->reg,
                     BT_GPR_OFFSET(from->reg));
    else if (from->size == 8)
        emit_gs_store(&t->e, true, from->reg == CPU_RCX ? H_GUEST_RCX : from->reg,
                      BT_GPR_OFFSET(to->reg));
    else
        return false; /* zero-extended on the way */
    return true;
}

static void emit_data(struct bt_tr *t, const struct insn *in)
{
    struct emit *e = &t->e;
    struct temps temps = {.count = 0};
    struct insn_recode r = {.mem_base = S1, .mem_index = S2};
    bool is_rcx_implicit = bt_uses_rcx_implicitly(in);
    uint8_t code[INSN_RECODE_MAX];

    if (emit_mov_displaced(t, in))
        return;
    if (in->has_mem && !in->is_agen) {
        if (!emit_data_operand(t, in, is_rcx_implicit, &r, &temps)) {
            bt_emit_soft(t);
            return;
        }
    } else {
        temps.free[temps.free_count++] = S1; /* taken last: see keeps_s1 */
        temps.free[temps.free_count++] = S2;
        if (!is_rcx_implicit)
            temps.free[temps.free_count++] = H_RCX; /* taken first */
    }

    if (is_rcx_implicit)
        emit_mov(e, true, H_RCX, H_GUEST_RCX);

    const struct insn_gpr *fields[] = {&in->gpr_reg, &in->gpr_rm, &in->gpr_vvvv, &in->gpr_opcode};
    uint8_t *hosts[] = {&r.reg, &r.rm, &r.vvvv, &r.opcode};
    for (unsigned i = 0; i < ARRAY_SIZE(fields); i++) {
        if (fields[i]->reg == INSN_NO_REG)
            continue;
        unsigned h = temp_take(t, &temps, in, fields[i], false);
        if (h == H_NONE) {
            bt_emit_soft(t);
            return;
        }
        *hosts[i] = (uint8_t)h;
    }

    size_t n = insn_recode(code, in, &r);
    if (n == 0) {
        bt_emit_soft(t);
        return;
    }
    emit_nops(e, pad_before_jcc(t, n));
    emit_bytes(e, code, n);
    temps_put_back(t, &temps);
    if (in->unit == INSN_UNIT_X87)
        bt_emit_note_x87(t, in);
    if (is_rcx_implicit && (in->gpr_written & BIT(CPU_RCX)) && in->gpr_rm.reg != CPU_RCX)
        emit_mov(e, true, H_GUEST_RCX, H_RCX);
}

static void emit_lea_insn(struct bt_tr *t, const struct insn *in)
{
    struct emit *e = &t->e;
    unsigned g = in->gpr_reg.reg;
    unsigned dst = g == CPU_RCX ? H_GUEST_RCX : BT_IN_MEMORY(g) || in->op_size == 2 ? S1 : g;
    bool is_wide = in->op_size == 8 && in->addr_size == 8;

    if (in->addr_size == 2) {
        bt_emit_soft(t);
        return;
    }
    if (in->op_size == 2 && g == CPU_RCX)
        dst = S1;
    if (in->mem_base == INSN_RIP || (in->mem_base == INSN_NO_REG && in->mem_index == INSN_NO_REG)) {
        uint64_t addr = (uint64_t)in->mem_disp;
        if (in->mem_base == INSN_RIP)
            addr += t->rip + in->len;
        emit_mov_imm(e, dst, is_wide ? addr : (uint32_t)addr);
    } else {
        unsigned base = in->mem_base == INSN_NO_REG ? H_NONE : bt_emit_gpr_get(t, in->mem_base, S1);
        unsigned index =
            in->mem_index == INSN_NO_REG ? H_NONE : bt_emit_gpr_get(t, in->mem_index, S2);
        emit_lea(e, is_wide, dst, base, index, in->mem_scale, (int32_t)in->mem_disp);
    }
    if (in->op_size == 2) {
        if (BT_IN_MEMORY(g)) {
            emit8(e, 0x66);
            emit_op_gs(e, false, 0x89, S1, H_NONE, BT_GPR_OFFSET(g));
        } else {
            emit8(e, 0x66);
            emit_mov(e, false, g == CPU_RCX ? H_GUEST_RCX : g, S1);
        }
    } else if (BT_IN_MEMORY(g)) {
        emit_gs_store(e, true, S1, BT_GPR_OFFSET(g));
    }
}

/* MOV between the accumulator and an absolute address (A0..A3). */
static void emit_mov_special(struct bt_tr *t, const struct insn *in)
{
    struct emit *e = &t->e;
    bool is_store = in->opcode == 0xa2 || in->opcode == 0xa3;
    struct bt_place place;

    if (in->opcode < 0xa0 || in->opcode > 0xa3 || !in->has_mem || in->opcode_map != 0 ||
        !bt_emit_operand(t, in, in->op_size, is_store, &place)) {
        bt_emit_soft(t);
        return;
    }
    if (in->op_size == 2)
        emit8(e, 0x66);
    emit_op_mem(e, in->op_size == 8, (uint8_t)((is_store ? 0x88 : 0x8a) | (in->op_size != 1)),
                H_RAX, place.base, place.index, 1, place.disp);
}

/* Instructions after which the same block must not be resumed. */
static bool ends_block(const struct insn *in)
{
    switch (in->op) {
    case ZYDIS_MNEMONIC_INT:
    case ZYDIS_MNEMONIC_INT1:
    case ZYDIS_MNEMONIC_INT3:
    case ZYDIS_MNEMONIC_INTO:
    case ZYDIS_MNEMONIC_IRET:
    case ZYDIS_MNEMONIC_IRETD:
    case ZYDIS_MNEMONIC_IRETQ:
    case ZYDIS_MNEMONIC_SYSCALL:
    case ZYDIS_MNEMONIC_SYSRET:
    case ZYDIS_MNEMONIC_SYSENTER:
    case ZYDIS_MNEMONIC_SYSEXIT:
    case ZYDIS_MNEMONIC_LOOP:
    case ZYDIS_MNEMONIC_LOOPE:
    case ZYDIS_MNEMONIC_LOOPNE:
    case ZYDIS_MNEMONIC_JCXZ:
    case ZYDIS_MNEMONIC_JECXZ:
    case ZYDIS_MNEMONIC_JRCXZ:
    case ZYDIS_MNEMONIC_HLT:
    case ZYDIS_MNEMONIC_UD0:
    case ZYDIS_MNEMONIC_UD1:
    case ZYDIS_MNEMONIC_UD2:
    case ZYDIS_MNEMONIC_INVLPG:
    case ZYDIS_MNEMONIC_INVPCID:
    case ZYDIS_MNEMONIC_WRMSR:
    case ZYDIS_MNEMONIC_LMSW:
    case ZYDIS_MNEMONIC_CPUID: /* serializing: code that another CPU changed is seen behind it */
    case ZYDIS_MNEMONIC_WBINVD:
        return true;
    case ZYDIS_MNEMONIC_MOV: /* to and from control and debug registers */
        return in->opcode_map == ZYDIS_OPCODE_MAP_0F && in->opcode >= 0x20 && in->opcode <= 0x23;
    default:
        return false;
    }
}

/* Processors disagree on reserved forms with a register (0F 0D): those run as they are. */
bool bt_is_hint(const struct insn *in)
{
    switch (in->op) {
    case ZYDIS_MNEMONIC_NOP:
        return in->has_mem || in->opcode != 0x0d;
    case ZYDIS_MNEMONIC_ENDBR32:
    case ZYDIS_MNEMONIC_ENDBR64:
    case ZYDIS_MNEMONIC_PREFETCHNTA:
    case ZYDIS_MNEMONIC_PREFETCHT0:
    case ZYDIS_MNEMONIC_PREFETCHT1:
    case ZYDIS_MNEMONIC_PREFETCHT2:
    case ZYDIS_MNEMONIC_PREFETCHW:
        return true;
    default:
        return false;
    }
}

bool bt_is_jcc(const struct insn *in)
{
    return (in->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && in->opcode >= 0x70 &&
            in->opcode <= 0x7f) ||
           (in->opcode_map == ZYDIS_OPCODE_MAP_0F && in->opcode >= 0x80 && in->opcode <= 0x8f);
}

static void emit_special(struct bt_tr *t, const struct insn *in)
{
    if (bt_is_jcc(in) && in->encoding == INSN_LEGACY) {
        bt_emit_jcc(t, in);
        return;
    }
    switch (in->op) {
    case ZYDIS_MNEMONIC_PUSH:
        bt_emit_push(t, in);
        break;
    case ZYDIS_MNEMONIC_POP:
        bt_emit_pop(t, in);
        break;
    case ZYDIS_MNEMONIC_LEAVE:
        bt_emit_leave(t, in);
        break;
    case ZYDIS_MNEMONIC_CALL:
        bt_emit_call(t, in);
        break;
    case ZYDIS_MNEMONIC_JMP:
        bt_emit_jump(t, in);
        break;
    case ZYDIS_MNEMONIC_RET:
        bt_emit_ret(t, in);
        break;
    case ZYDIS_MNEMONIC_PUSHFQ:
        bt_emit_pushf(t, in);
        break;
    case ZYDIS_MNEMONIC_CLI:
        bt_emit_cli(t);
        break;
    case ZYDIS_MNEMONIC_STI:
        bt_emit_sti(t);
        break;
    case ZYDIS_MNEMONIC_SWAPGS:
        bt_emit_swapgs(t);
        break;
    case ZYDIS_MNEMONIC_CLD:
        bt_emit_cld(t);
        break;
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP:
        bt_emit_rdtsc(t, in);
        break;
    case ZYDIS_MNEMONIC_STAC:
    case ZYDIS_MNEMONIC_CLAC:
        bt_emit_stac_clac(t, in);
        break;
    case ZYDIS_MNEMONIC_RDFSBASE:
    case ZYDIS_MNEMONIC_RDGSBASE:
    case ZYDIS_MNEMONIC_WRFSBASE:
    case ZYDIS_MNEMONIC_WRGSBASE:
        bt_emit_segment_base(t, in);
        break;
    case ZYDIS_MNEMONIC_MOVSB:
    case ZYDIS_MNEMONIC_MOVSW:
    case ZYDIS_MNEMONIC_MOVSD:
    case ZYDIS_MNEMONIC_MOVSQ:
    case ZYDIS_MNEMONIC_STOSB:
    case ZYDIS_MNEMONIC_STOSW:
    case ZYDIS_MNEMONIC_STOSD:
    case ZYDIS_MNEMONIC_STOSQ:
        bt_emit_string(t, in);
        break;
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
        bt_emit_bit_string(t, in);
        break;
    case ZYDIS_MNEMONIC_MOV:
        if (bt_is_mov_from_system(in))
            bt_emit_mov_from_system(t, in);
        else if (ends_block(in))
            bt_emit_end_soft(t);
        else
            emit_mov_special(t, in);
        break;
    default:
        if (ends_block(in))
            bt_emit_end_soft(t);
        else
            bt_emit_soft(t);
        break;
    }
}

static bool is_inline_data(const struct bt_tr *t, const struct insn *in)
{
    return in->cls == INSN_DATA && !in->is_hidden && bt_is_unit_enabled(t, in->unit);
}

/* RET, and CALL with a displacement: they end a block with an access to the stack. */
static bool is_stack_branch(const struct insn *in)
{
    return in->op == ZYDIS_MNEMONIC_RET || (in->op == ZYDIS_MNEMONIC_CALL && in->opcode == 0xe8);
}

/*
 * Does the code of *in leave S1 alone, or release it itself where it does not? Memory operands
 * do; without one, the third scratch register that emit_data takes is S1.
 */
static bool keeps_s1(const struct bt_tr *t, const struct insn *in)
{
    const uint32_t in_memory = BIT(CPU_R10) | BIT(CPU_R11) | BIT(CPU_R15);

    if (!is_inline_data(t, in))
        return bt_is_simple_stack(t, in) || is_stack_branch(in) ||
               (in->cls == INSN_SPECIAL && bt_is_jcc(in));
    if (in->is_agen)
        return in->op == ZYDIS_MNEMONIC_LEA && in->op_size != 2 && in->addr_size != 2 &&
               !((in->gpr_read | in->gpr_written) & in_memory);
    return in->has_mem || displaced_count(in) + (bt_uses_rcx_implicitly(in) ? 1 : 0) <= 2;
}

/*
 * May RSP lag behind while the code of *in runs? It must neither read it nor write it, but for
 * operands that settle it or are in a share, and nothing may end it before its end.
 */
static bool allows_late_rsp(const struct bt_tr *t, const struct insn *in)
{
    const struct insn_gpr *fields[] = {&in->gpr_reg, &in->gpr_rm, &in->gpr_vvvv, &in->gpr_opcode};
    unsigned next = t->insn_index + 1;

    for (unsigned i = 0; i < ARRAY_SIZE(fields); i++)
        if (fields[i]->reg == CPU_RSP)
            return false;
    /* a LEA between a comparison and its branch would keep them from being fused */
    if (next < t->insn_count && bt_is_jcc(&t->insns[next]))
        return false;
    if (!is_inline_data(t, in))
        return bt_is_simple_stack(t, in) || is_stack_branch(in);
    switch (in->op) {
    case ZYDIS_MNEMONIC_DIV: /* may fault on the host */
    case ZYDIS_MNEMONIC_IDIV:
        return false;
    default:
        return in->unit == INSN_UNIT_INT && !in->has_lock && !in->is_mem_aligned &&
               (!in->is_agen || !((in->gpr_read | in->gpr_written) & BIT(CPU_RSP)));
    }
}

void bt_emit_insn(struct bt_tr *t, const struct insn *in)
{
    if (!keeps_s1(t, in))
        bt_share_release(t);
    if (!allows_late_rsp(t, in))
        bt_emit_settle(t);
    if (in->is_hidden || in->cls == INSN_INVALID)
        bt_emit_end_soft(t);
    else if (bt_is_hint(in) && !in->has_lock)
        ; /* nothing to do, and nothing that can fault */
    else if (in->cls == INSN_SPECIAL)
        emit_special(t, in);
    else if (!bt_is_unit_enabled(t, in->unit))
        bt_emit_soft(t);
    else if (in->op == ZYDIS_MNEMONIC_LEA)
        emit_lea_insn(t, in);
    else
        emit_data(t, in);
}
