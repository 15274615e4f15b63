/*
 * thunk.c - data-processing instructions, executed by the host CPU
 *
 * A thunk loads the guest registers that the instruction names, and the status flags, into the
 * host's; runs the instruction with its memory operand replaced by [M]; and stores back what
 * was written. V holds the vCPU, M the operand's host address; both are registers that the
 * instruction does not name. The guest's RSP is never in the host's: it takes another register.
 *
 * Invariant: nothing is stored before the instruction has completed, so a host fault in it leaves
 * the guest's state as it was; the fault hook then continues at `exit`, which returns to C.
 * An instruction that has LOCK works on the guest's own memory, so it is atomic.
 */
#include <signal.h>
#include <ucontext.h>

#include <Zydis/Zydis.h>

#include "engine/soft/debug.h"
#include "engine/soft/fpu_state.h"
#include "engine/soft/thunk.h"
#include "engine/soft/vcpu.h"

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R12 = 12, R13, R14, R15 };

struct code {
    uint8_t *p;
    unsigned n;
};

static void put(struct code *c, unsigned byte)
{
    c->p[c->n++] = (uint8_t)byte;
}

/* mov reg, [base + disp32] (8b) or mov [base + disp32], reg (89), 64 bits */
static void put_mov_mem(struct code *c, unsigned opcode, unsigned reg, unsigned base, uint32_t disp)
{
    put(c, 0x48 | (reg >> 3) << 2 | base >> 3);
    put(c, opcode);
    put(c, 0x80 | (reg & 7) << 3 | (base & 7));
    if ((base & 7) == RSP)
        put(c, 0x24);
    for (unsigned i = 0; i < 4; i++)
        put(c, disp >> 8 * i);
}

static void put_mov(struct code *c, unsigned dst, unsigned src)
{
    put(c, 0x48 | (src >> 3) << 2 | dst >> 3);
    put(c, 0x89);
    put(c, 0xc0 | (src & 7) << 3 | (dst & 7));
}

static const uint8_t callee_saved[] = {RBX, RBP, R12, R13, R14, R15};

static void put_push_all(struct code *c)
{
    for (unsigned i = 0; i < ARRAY_SIZE(callee_saved); i++) {
        if (callee_saved[i] >= 8)
            put(c, 0x41);
        put(c, 0x50 | (callee_saved[i] & 7));
    }
}

static void put_pop_all_and_return(struct code *c)
{
    for (unsigned i = ARRAY_SIZE(callee_saved); i-- > 0;) {
        if (callee_saved[i] >= 8)
            put(c, 0x41);
        put(c, 0x58 | (callee_saved[i] & 7));
    }
    put(c, 0xc3);
}

static void thunks_reset(struct soft_thunks *t)
{
    struct code c = {.p = t->rw};
    t->exit = t->rx;
    put_pop_all_and_return(&c);
    t->used = 64;
    t->generation++;
}

/* Which host register takes the guest's RSP, the vCPU and the operand's address. */
struct plan {
    unsigned rsp, v, m;
    uint16_t used; /* guest registers to load and store, RSP included */
};

static unsigned take_free(uint16_t *busy, unsigned from, unsigned to)
{
    for (unsigned r = from; r <= to; r++) {
        if (r != RSP && !(*busy >> r & 1)) {
            *busy |= (uint16_t)(1u << r);
            return r;
        }
    }
    return RSP; /* cannot happen: no instruction names that many */
}

static void make_plan(const struct insn *in, struct plan *plan)
{
    const struct insn_gpr *fields[] = {&in->gpr_reg, &in->gpr_rm, &in->gpr_vvvv, &in->gpr_opcode};
    uint16_t used = in->gpr_read | in->gpr_written;

    /* the address's registers are not loaded, unless the instruction names them elsewhere too */
    if (in->has_mem) {
        uint16_t address = 0, named = in->gpr_written;
        if (in->mem_base < 16)
            address |= (uint16_t)(1u << in->mem_base);
        if (in->mem_index < 16)
            address |= (uint16_t)(1u << in->mem_index);
        for (unsigned i = 0; i < ARRAY_SIZE(fields); i++)
            if (fields[i]->reg != INSN_NO_REG)
                named |= (uint16_t)(1u << fields[i]->reg);
        /* implicit operands are among RAX, RCX, RDX and RBX: loading one too many is harmless */
        used &= (uint16_t)(~address | named | 0xf);
    }
    uint16_t busy = used;
    plan->used = used;
    plan->rsp = used & 1u << RSP ? take_free(&busy, RBX, RDI) : RSP;
    plan->m = in->has_mem ? take_free(&busy, RBX, RDI) : RSP;
    plan->v = take_free(&busy, R8, R15);
}

static unsigned host_of(const struct plan *plan, unsigned guest)
{
    return guest == CPU_RSP ? plan->rsp : guest;
}

static uint32_t gpr_offset(unsigned g)
{
    return (uint32_t)(offsetof(struct soft_vcpu, st.gpr) + 8 * g);
}

#define FLAGS_OFFSET ((uint32_t)offsetof(struct soft_vcpu, scratch[0]))

static soft_thunk_fn thunk_make(struct soft_thunks *t, const struct insn *in)
{
    struct plan plan;
    uint8_t encoded[INSN_RECODE_MAX];

    make_plan(in, &plan);
    struct insn_recode r = {
        .reg = (uint8_t)host_of(&plan, in->gpr_reg.reg),
        .rm = (uint8_t)host_of(&plan, in->gpr_rm.reg),
        .vvvv = (uint8_t)host_of(&plan, in->gpr_vvvv.reg),
        .opcode = (uint8_t)host_of(&plan, in->gpr_opcode.reg),
        .mem_base = (uint8_t)plan.m,
        .mem_index = INSN_NO_REG,
    };
    size_t size = insn_recode(encoded, in, &r);
    if (size == 0)
        return NULL;
    if (t->used + SOFT_THUNK_MAX > t->size || t->generation == 0)
        thunks_reset(t);

    struct code c = {.p = t->rw + t->used};
    put_push_all(&c);
    put_mov(&c, plan.v, RDI);
    if (plan.m != RSP)
        put_mov(&c, plan.m, RSI);
    put_mov_mem(&c, 0x8b, RAX, plan.v, FLAGS_OFFSET); /* add al, 127; sahf */
    put(&c, 0x04);
    put(&c, 0x7f);
    put(&c, 0x9e);
    for (unsigned g = 0; g < CPU_GPR_COUNT; g++)
        if (plan.used >> g & 1)
            put_mov_mem(&c, 0x8b, host_of(&plan, g), plan.v, gpr_offset(g));
    for (size_t i = 0; i < size; i++)
        put(&c, encoded[i]);
    for (unsigned g = 0; g < CPU_GPR_COUNT; g++)
        if (in->gpr_written >> g & 1)
            put_mov_mem(&c, 0x89, host_of(&plan, g), plan.v, gpr_offset(g));
    put(&c, 0x9f); /* lahf; seto al */
    put(&c, 0x0f);
    put(&c, 0x90);
    put(&c, 0xc0);
    put_mov_mem(&c, 0x89, RAX, plan.v, FLAGS_OFFSET);
    put_pop_all_and_return(&c);

    soft_thunk_fn fn = (soft_thunk_fn)(uintptr_t)(t->rx + t->used);
    t->used = (uint32_t)align_up(t->used + c.n, 16);
    return fn;
}

static bool slot_matches(const struct soft_thunks *t, const struct soft_thunk_slot *slot,
                         const struct insn *in)
{
    if (slot->generation != t->generation || slot->len != in->len || slot->mode != in->mode)
        return false;
    for (unsigned i = 0; i < in->len; i++)
        if (slot->bytes[i] != in->bytes[i])
            return false;
    return true;
}

/* NULL when the instruction has no encoding of that form. */
static soft_thunk_fn thunk_get(struct soft_thunks *t, const struct insn *in)
{
    uint64_t h = in->mode;
    for (unsigned i = 0; i < in->len; i++)
        h = (h ^ in->bytes[i]) * UINT64_C(0x100000001b3);
    struct soft_thunk_slot *slot = &t->slots[(h ^ h >> 20) & t->slot_mask];

    if (slot_matches(t, slot, in))
        return slot->fn;
    soft_thunk_fn fn = thunk_make(t, in);
    soft_copy(slot->bytes, in->bytes, in->len);
    slot->len = in->len;
    slot->mode = in->mode;
    slot->generation = t->generation;
    slot->fn = fn;
    return fn;
}

int soft_thunk_run(struct soft_vcpu *v, const struct insn *in, void *operand)
{
    struct soft_thunks *t = v->thunks;
    soft_thunk_fn fn = thunk_get(t, in);
    uint64_t f = v->st.rflags;

    if (fn == NULL)
        return soft_raise(v, VEC_UD);
    if (in->unit != INSN_UNIT_INT && in->unit != INSN_UNIT_VEX_INT && !v->is_fpu_live)
        soft_fpu_load(v);
    v->scratch[0] = ((f & 0xd5) | 2) << 8 | (f >> 11 & 1);
    t->trap = 0;
    fn(v, operand);
    if (t->trap != 0) {
        unsigned vector = t->trap - 1;
        switch (vector) {
        case VEC_GP: /* the operand is misaligned, or a register holds reserved bits */
            return soft_raise_error(v, VEC_GP, 0);
        case VEC_XM:
            return soft_raise(v, v->st.cr4 & CR4_OSXMMEXCPT ? VEC_XM : VEC_UD);
        case VEC_MF:
            return soft_fpu_raise_pending(v);
        default:
            return soft_raise(v, vector);
        }
    }
    if (in->unit == INSN_UNIT_X87)
        soft_fpu_note_x87(v, in);
    uint64_t ax = v->scratch[0];
    v->st.rflags = (f & ~RFLAGS_STATUS) | (ax >> 8 & 0xd5) | (ax & 1) << 11;
    return 0;
}

bool soft_thunk_fault(struct soft_vcpu *v, int sig, void *siginfo, void *ucontext)
{
    struct soft_thunks *t = v->thunks;
    greg_t *regs = ((ucontext_t *)ucontext)->uc_mcontext.gregs;
    const uint8_t *at = (const uint8_t *)(uintptr_t)regs[REG_RIP];

    if (t == NULL || at < t->rx || at >= t->rx + t->size)
        return false;
    /* thunks touch checked guest memory only: a page fault is a bug, see bt_fault_hook */
    if (regs[REG_TRAPNO] == VEC_PF)
        return false;
    t->trap = (uint32_t)regs[REG_TRAPNO] + 1;
    regs[REG_RIP] = (greg_t)(uintptr_t)t->exit;
    return true;
}

uint8_t *soft_thunk_bounce(struct soft_vcpu *v, gva_t addr)
{
    struct soft_thunks *t = v->thunks;
    return t->bounce + (addr & 63);
}

/* Is the operand in RAM alone? Faults as the access would, with the first bad byte's address. */
static int find_ram(struct soft_vcpu *v, gva_t addr, unsigned size, enum soft_access access,
                    bool *is_ram)
{
    unsigned first = (unsigned)MIN(size, SOFT_PAGE_SIZE - (addr & (SOFT_PAGE_SIZE - 1)));
    struct soft_place place;

    if (soft_translate(v, addr, access, SOFT_AS_CPL, &place))
        return SOFT_FAULT;
    *is_ram = place.host != NULL;
    if (first == size)
        return 0;
    if (soft_translate(v, addr + first, access, SOFT_AS_CPL, &place))
        return SOFT_FAULT;
    *is_ram &= place.host != NULL;
    return 0;
}

/*
 * An x87 store with an unmasked exception leaves its operand as it was, so the bounce buffer
 * starts out as that, unless it would be a device's to read.
 */
static int preload_x87_store(struct soft_vcpu *v, const struct insn *in, gva_t addr,
                             uint8_t *operand)
{
    bool is_ram;

    if (find_ram(v, addr, in->mem_size, SOFT_RMW, &is_ram))
        return SOFT_FAULT;
    return is_ram ? soft_read(v, addr, operand, in->mem_size, SOFT_AS_CPL) : 0;
}

/* Memory that is no single piece of RAM: the operand is worked on in the bounce buffer. */
static int exec_bounced(struct soft_vcpu *v, const struct insn *in, gva_t addr)
{
    unsigned size = in->mem_size;
    uint8_t *operand = soft_thunk_bounce(v, addr);

    if (in->mem_access & INSN_ACCESS_WRITE) {
        int r = soft_probe(v, addr, size, in->mem_access & INSN_ACCESS_READ ? SOFT_RMW : SOFT_WRITE,
                           SOFT_AS_CPL);
        if (r != 0)
            return r;
    }
    if (in->mem_access & INSN_ACCESS_READ) {
        int r = soft_read(v, addr, operand, size, SOFT_AS_CPL);
        if (r != 0)
            return r;
    } else if (in->unit == INSN_UNIT_X87) {
        int r = preload_x87_store(v, in, addr, operand);
        if (r != 0)
            return r;
    }
    int r = soft_thunk_run(v, in, operand);
    if (r == 0 && (in->mem_access & INSN_ACCESS_WRITE))
        r = soft_write(v, addr, operand, size, SOFT_AS_CPL);
    return r;
}

/*
 * A LOCK across pages: nobody else runs meanwhile. A device's register is not shared that way,
 * and the owner of an exclusive section must not call out to one.
 */
static int exec_locked_bounced(struct soft_vcpu *v, const struct insn *in, gva_t addr)
{
    bool is_ram;

    if (find_ram(v, addr, in->mem_size, SOFT_RMW, &is_ram))
        return SOFT_FAULT;
    if (is_ram) {
        soft_exclusive_begin(v);
        /* another section may have run before ours began */
        int r = find_ram(v, addr, in->mem_size, SOFT_RMW, &is_ram);
        if (r == 0 && is_ram)
            r = exec_bounced(v, in, addr);
        soft_exclusive_end(v);
        if (r != 0 || is_ram)
            return r;
    }
    return exec_bounced(v, in, addr);
}

/* XCHG with memory is locked without the prefix. */
static bool is_locked(const struct insn *in)
{
    return in->has_lock || in->op == ZYDIS_MNEMONIC_XCHG;
}

static uint32_t current_mxcsr(const struct soft_vcpu *v)
{
    uint32_t mxcsr = load_le32(v->st.xsave + FPU_MXCSR);

    if (v->is_fpu_live)
        __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    return mxcsr;
}

/*
 * May this instruction's operand be misaligned after all? On AMD, MXCSR.MM permits it to all of
 * SSE but aligned moves (APM vol. 1, 4.2.2), and SHA does not ask for alignment.
 */
static bool alignment_is_waived(const struct soft_vcpu *v, const struct insn *in)
{
    if (!v->model->is_amd || in->encoding != INSN_LEGACY)
        return false;
    switch (in->op) {
    case ZYDIS_MNEMONIC_SHA1MSG1:
    case ZYDIS_MNEMONIC_SHA1MSG2:
    case ZYDIS_MNEMONIC_SHA1NEXTE:
    case ZYDIS_MNEMONIC_SHA1RNDS4:
    case ZYDIS_MNEMONIC_SHA256MSG1:
    case ZYDIS_MNEMONIC_SHA256MSG2:
    case ZYDIS_MNEMONIC_SHA256RNDS2:
        return true;
    case ZYDIS_MNEMONIC_CMPXCHG16B:
    case ZYDIS_MNEMONIC_MOVAPD:
    case ZYDIS_MNEMONIC_MOVAPS:
    case ZYDIS_MNEMONIC_MOVDQA:
    case ZYDIS_MNEMONIC_MOVNTDQ:
    case ZYDIS_MNEMONIC_MOVNTDQA:
    case ZYDIS_MNEMONIC_MOVNTPD:
    case ZYDIS_MNEMONIC_MOVNTPS:
        return false;
    default:
        return current_mxcsr(v) & FPU_MXCSR_MM;
    }
}

/*
 * An x87 exception that is pending comes before any fault of the operand (SDM vol. 1, 8.6):
 * the instruction waits for it before it begins.
 */
static bool waits_for_x87(const struct insn *in)
{
    if (in->unit == INSN_UNIT_X87)
        return in->op != ZYDIS_MNEMONIC_FNSTCW && in->op != ZYDIS_MNEMONIC_FNSTSW;
    return in->unit == INSN_UNIT_MMX;
}

/* An instruction that insists on alignment says so before the address is looked at (#SS, #GP). */
static bool is_refused_misaligned(const struct soft_vcpu *v, const struct insn *in)
{
    uint64_t addr = soft_effective_address(v, in) + v->st.seg[in->seg].base;

    return (addr & (in->mem_size - 1u)) && !alignment_is_waived(v, in);
}

/*
 * #AC of operands that soft_operand_address leaves out: m80 is aligned to 8 (SDM vol. 3, table
 * 6-7); vectors are checked as a whole by AMD's CPUs, and not at all by Intel's.
 */
static bool is_alignment_checked(const struct soft_vcpu *v, const struct insn *in, gva_t addr)
{
    unsigned size = in->mem_size;

    if (LIKELY(!v->is_ac_set))
        return false;
    if (size == 10)
        return addr & 7;
    if (size <= 8 || !is_pow2(size) || !v->model->is_amd)
        return false;
    /* vectors of any length: to 16 bytes */
    return addr & (soft_is_compressed(in) ? in->mem_element_size - 1u : 15);
}

static int exec_memory(struct soft_vcpu *v, const struct insn *in)
{
    unsigned size = in->mem_size;
    bool is_write = (in->mem_access & INSN_ACCESS_WRITE) != 0;
    enum soft_access access = !is_write                           ? SOFT_READ
                              : in->mem_access & INSN_ACCESS_READ ? SOFT_RMW
                                                                  : SOFT_WRITE;
    struct soft_place place;
    gva_t addr;

    if (waits_for_x87(in) && soft_fpu_is_pending(v))
        return soft_fpu_raise_pending(v);
    if (in->is_mem_masked)
        return soft_exec_masked(v, in);
    if (in->is_mem_aligned && is_refused_misaligned(v, in))
        return soft_raise_error(v, VEC_GP, 0);
    int r = size == 10 ? soft_fpu_operand(v, in, size, 0, 8, access, &addr)
                       : soft_operand_address(v, in, size, access, &addr);
    if (r != 0)
        return r;
    if (is_alignment_checked(v, in, addr))
        return soft_raise_error(v, VEC_AC, 0);
    bool is_one_page = (addr & (SOFT_PAGE_SIZE - 1)) + size <= SOFT_PAGE_SIZE;
    if (is_one_page) {
        r = soft_translate(v, addr, access, SOFT_AS_CPL, &place);
        if (r != 0)
            return r;
        if (place.host != NULL) {
            r = soft_thunk_run(v, in, place.host);
            if (r == 0 && is_write && place.is_code_page)
                soft_code_written(v, place.gpa, size);
            if (r == 0 && soft_debug_is_armed(v))
                soft_debug_watch(v, addr, size, access);
            return r;
        }
    }
    return is_locked(in) ? exec_locked_bounced(v, in, addr) : exec_bounced(v, in, addr);
}

int soft_exec_data(struct soft_vcpu *v, const struct insn *in)
{
    if (in->op == ZYDIS_MNEMONIC_LEA) {
        uint64_t addr = soft_effective_address(v, in);
        soft_gpr_write(v, in->gpr_reg.reg, in->op_size, false, addr);
        return 0;
    }
    if (in->is_agen || in->op == ZYDIS_MNEMONIC_NOP || (in->has_mem && in->mem_size == 0))
        return 0; /* hints */
    if (in->has_mem)
        return exec_memory(v, in);
    return soft_thunk_run(v, in, NULL);
}
