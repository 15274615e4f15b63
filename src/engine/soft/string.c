/*
 * string.c - string instructions, with and without repeat prefixes
 *
 * A repeated instruction runs in stretches: within one it keeps to host pointers of at most one
 * page at each side, and after a bounded number of iterations (or when `go` asks) it ends with
 * rIP still at itself, so that interrupts come in between. Registers are exact whenever a fault or
 * an interrupt can be seen.
 * Spec: Intel SDM vol. 1, 7.3.9; vol. 2 (REP and each instruction).
 */
#include <Zydis/Zydis.h>

#include "engine/soft/debug.h"
#include "engine/soft/ops.h"
#include "engine/soft/system.h"
#include "engine/soft/vcpu.h"

#define STRETCH 4096u          /* iterations between looks at `go` */

enum string_kind { STRING_MOVS, STRING_CMPS, STRING_STOS, STRING_LODS, STRING_SCAS, STRING_INS, STRING_OUTS };

struct string_op {
    enum string_kind kind;
    unsigned size;             /* element, bytes */
    unsigned addr_size;
    unsigned seg;              /* of the source */
    int64_t step;              /* size, or minus size with DF */
    bool is_repeated;
};

static enum string_kind kind_of(unsigned opcode)
{
    switch (opcode & 0xfe) {
    case 0xa4:
        return STRING_MOVS;
    case 0xa6:
        return STRING_CMPS;
    case 0xaa:
        return STRING_STOS;
    case 0xac:
        return STRING_LODS;
    case 0xae:
        return STRING_SCAS;
    case 0x6c:
        return STRING_INS;
    default:
        return STRING_OUTS;
    }
}

static bool uses_source(enum string_kind kind)
{
    return kind == STRING_MOVS || kind == STRING_CMPS || kind == STRING_LODS || kind == STRING_OUTS;
}

static bool uses_destination(enum string_kind kind)
{
    return kind != STRING_LODS && kind != STRING_OUTS;
}

static uint64_t get(const struct soft_vcpu *v, unsigned reg, const struct string_op *op)
{
    return v->st.gpr[reg] & mask_bytes(op->addr_size);
}

static void advance(struct soft_vcpu *v, unsigned reg, const struct string_op *op, int64_t by)
{
    soft_gpr_write(v, reg, op->addr_size, false, v->st.gpr[reg] + (uint64_t)by);
}

static bool is_misaligned(const struct soft_vcpu *v, gva_t addr, unsigned size)
{
    return UNLIKELY(v->is_ac_set) && (addr & (size - 1)) != 0;
}

/* Status flags of a - b. */
static void set_flags_of_compare(struct soft_vcpu *v, uint64_t a, uint64_t b, unsigned size)
{
    unsigned top = 8 * size - 1;
    uint64_t mask = mask_bytes(size), d = (a - b) & mask, f = 0;

    a &= mask;
    b &= mask;
    if (a < b)
        f |= RFLAGS_CF;
    if (d == 0)
        f |= RFLAGS_ZF;
    if (d >> top & 1)
        f |= RFLAGS_SF;
    if (((a ^ b) & (a ^ d)) >> top & 1)
        f |= RFLAGS_OF;
    if ((a ^ b ^ d) & 0x10)
        f |= RFLAGS_AF;
    uint64_t p = d & 0xff;
    p ^= p >> 4;
    if (!(0x6996 >> (p & 15) & 1))
        f |= RFLAGS_PF;
    v->st.rflags = (v->st.rflags & ~RFLAGS_STATUS) | f;
}

/* One iteration, registers advanced; RCX is the caller's. */
static int iterate(struct soft_vcpu *v, const struct string_op *op)
{
    uint64_t source = 0, destination = 0;
    gva_t from = 0, to = 0;
    int r = 0;

    if (uses_source(op->kind)) {
        r = soft_linear(v, op->seg, get(v, CPU_RSI, op), op->size, SOFT_READ, &from);
        if (r == 0 && is_misaligned(v, from, op->size))
            r = soft_raise_error(v, VEC_AC, 0);
        if (r == 0)
            r = soft_load(v, from, op->size, SOFT_AS_CPL, &source);
    }
    if (r == 0 && uses_destination(op->kind)) {
        bool is_read = op->kind == STRING_CMPS || op->kind == STRING_SCAS;
        r = soft_linear(v, CPU_ES, get(v, CPU_RDI, op), op->size,
                        is_read ? SOFT_READ : SOFT_WRITE, &to);
        if (r == 0 && is_misaligned(v, to, op->size))
            r = soft_raise_error(v, VEC_AC, 0);
        if (r == 0 && is_read)
            r = soft_load(v, to, op->size, SOFT_AS_CPL, &destination);
    }
    if (r != 0)
        return r;
    uint16_t port = (uint16_t)v->st.gpr[CPU_RDX];
    switch (op->kind) {
    case STRING_MOVS:
        r = soft_store(v, to, op->size, SOFT_AS_CPL, source);
        break;
    case STRING_STOS:
        r = soft_store(v, to, op->size, SOFT_AS_CPL, v->st.gpr[CPU_RAX]);
        break;
    case STRING_LODS:
        soft_gpr_write(v, CPU_RAX, op->size, false, source);
        break;
    case STRING_CMPS:
        set_flags_of_compare(v, source, destination, op->size);
        break;
    case STRING_SCAS:
        set_flags_of_compare(v, v->st.gpr[CPU_RAX], destination, op->size);
        break;
    case STRING_INS:
        /* the port is read only once the store is known to succeed */
        r = soft_probe(v, to, op->size, SOFT_WRITE, SOFT_AS_CPL);
        if (r == 0)
            r = soft_store(v, to, op->size, SOFT_AS_CPL, soft_host_io_read(v, port, op->size));
        soft_debug_watch_io(v, port, op->size);
        break;
    case STRING_OUTS:
        soft_host_io_write(v, port, op->size, source);
        soft_debug_watch_io(v, port, op->size);
        break;
    }
    if (r != 0)
        return r;
    if (uses_source(op->kind))
        advance(v, CPU_RSI, op, op->step);
    if (uses_destination(op->kind))
        advance(v, CPU_RDI, op, op->step);
    return 0;
}

/* Elements from addr to the end of its page (DF clear) that fit whole. */
static uint64_t elements_in_page(gva_t addr, unsigned size)
{
    return (SOFT_PAGE_SIZE - (addr & (SOFT_PAGE_SIZE - 1))) / size;
}

/* Elements until `offset` would wrap at the address size. */
static uint64_t elements_to_wrap(uint64_t offset, const struct string_op *op)
{
    uint64_t room = mask_bytes(op->addr_size) - offset;
    return op->addr_size == 8 ? ~UINT64_C(0) : room / op->size;
}

/* Host memory for n elements at seg:offset, n cut to what is one page of RAM; NULL: go slow. */
static uint8_t *host_run(struct soft_vcpu *v, unsigned seg, uint64_t offset,
                         const struct string_op *op, enum soft_access access, uint64_t *n)
{
    struct soft_place place;
    gva_t addr;

    *n = MIN(*n, elements_to_wrap(offset, op));
    if (*n == 0 || soft_linear(v, seg, offset, op->size, access, &addr) != 0)
        return NULL;
    *n = MIN(*n, elements_in_page(addr, op->size));
    if (*n == 0 || soft_linear(v, seg, offset, (unsigned)(*n * op->size), access, &addr) != 0)
        return NULL;
    if (soft_translate(v, addr, access, SOFT_AS_CPL, &place) != 0 || place.host == NULL ||
        place.is_code_page)
        return NULL;
    return place.host;
}

/* Ascending copy with the element order of MOVS, overlap included. */
static void copy_elements(uint8_t *to, const uint8_t *from, uint64_t n, unsigned size)
{
    uint64_t bytes = n * size, distance = (uint64_t)(to - from);

    if (distance >= bytes || distance == 0) { /* `to` does not start within the source */
        soft_copy(to, from, bytes);
        return;
    }
    for (uint64_t i = 0; i < n; i++, to += size, from += size) {
        switch (size) {
        case 1:
            *to = *from;
            break;
        case 2:
            store_le16(to, load_le16(from));
            break;
        case 4:
            store_le32(to, load_le32(from));
            break;
        default:
            store_le64(to, load_le64(from));
            break;
        }
    }
}

static void fill_elements(uint8_t *to, uint64_t value, uint64_t n, unsigned size)
{
    void *p = to;
    switch (size) {
    case 1:
        __asm__ volatile("rep stosb" : "+D"(p), "+c"(n) : "a"(value) : "memory");
        break;
    case 2:
        __asm__ volatile("rep stosw" : "+D"(p), "+c"(n) : "a"(value) : "memory");
        break;
    case 4:
        __asm__ volatile("rep stosl" : "+D"(p), "+c"(n) : "a"(value) : "memory");
        break;
    default:
        __asm__ volatile("rep stosq" : "+D"(p), "+c"(n) : "a"(value) : "memory");
        break;
    }
}

/* A stretch of REP MOVS or REP STOS within pages of RAM; returns the elements done, 0: go slow. */
static uint64_t run_fast(struct soft_vcpu *v, const struct string_op *op, uint64_t count)
{
    uint64_t n = count;
    uint8_t *from = NULL, *to;

    if (op->step < 0 || v->is_ac_set || soft_debug_is_armed(v))
        return 0;
    if (op->kind == STRING_MOVS) {
        from = host_run(v, op->seg, get(v, CPU_RSI, op), op, SOFT_READ, &n);
        if (from == NULL)
            return 0;
    } else if (op->kind != STRING_STOS) {
        return 0;
    }
    to = host_run(v, CPU_ES, get(v, CPU_RDI, op), op, SOFT_WRITE, &n);
    if (to == NULL)
        return 0;
    if (op->kind == STRING_MOVS) {
        copy_elements(to, from, n, op->size);
        advance(v, CPU_RSI, op, (int64_t)(n * op->size));
    } else {
        fill_elements(to, v->st.gpr[CPU_RAX], n, op->size);
    }
    advance(v, CPU_RDI, op, (int64_t)(n * op->size));
    return n;
}

/* REPE and REPNE end CMPS and SCAS by ZF. */
static bool is_done_by_flag(const struct soft_vcpu *v, const struct insn *in,
                            const struct string_op *op)
{
    bool zf = v->st.rflags & RFLAGS_ZF;
    if (op->kind != STRING_CMPS && op->kind != STRING_SCAS)
        return false;
    return in->has_repne ? zf : !zf;
}

static int repeat(struct soft_vcpu *v, const struct insn *in, const struct string_op *op)
{
    uint64_t count = get(v, CPU_RCX, op), spent = 0;

    while (count != 0) {
        uint64_t n = run_fast(v, op, count);
        if (n == 0) {
            int r = iterate(v, op);
            if (r != 0)
                return r;
            n = 1;
        }
        count -= n;
        soft_gpr_write(v, CPU_RCX, op->addr_size, false, count);
        if (count == 0 || is_done_by_flag(v, in, op))
            return 0;
        /* a data breakpoint that was hit traps after the iteration */
        spent += n > 1 ? 64 : 1;
        if (spent >= STRETCH || v->st.pending_dbg != 0 ||
            !__atomic_load_n(&v->go, __ATOMIC_RELAXED) ||
            atomic_load_explicit(&v->pins->bits, memory_order_relaxed) != 0 ||
            (v->st.rflags & RFLAGS_TF)) {
            v->next_rip = v->st.rip; /* to be gone on with */
            return 0;
        }
    }
    return 0;
}

static int op_string(struct soft_vcpu *v, const struct insn *in)
{
    struct string_op op = {
        .kind = kind_of(in->opcode),
        .size = in->opcode & 1 ? MIN(in->op_size, in->opcode < 0x70 ? 4u : 8u) : 1,
        .addr_size = in->addr_size,
        .seg = in->seg,
        .is_repeated = in->has_rep || in->has_repne,
    };
    op.step = v->st.rflags & RFLAGS_DF ? -(int64_t)op.size : (int64_t)op.size;
    if (op.kind == STRING_INS || op.kind == STRING_OUTS) {
        int r = soft_io_check(v, (uint16_t)v->st.gpr[CPU_RDX], op.size);
        if (r != 0)
            return r;
    }
    return op.is_repeated ? repeat(v, in, &op) : iterate(v, &op);
}

/* MOVSD and CMPSD name SSE instructions as well; those are data processing. */
const struct soft_op soft_ops_string[] = {
    {ZYDIS_MNEMONIC_MOVSB, op_string}, {ZYDIS_MNEMONIC_MOVSW, op_string},
    {ZYDIS_MNEMONIC_MOVSD, op_string}, {ZYDIS_MNEMONIC_MOVSQ, op_string},
    {ZYDIS_MNEMONIC_CMPSB, op_string}, {ZYDIS_MNEMONIC_CMPSW, op_string},
    {ZYDIS_MNEMONIC_CMPSD, op_string}, {ZYDIS_MNEMONIC_CMPSQ, op_string},
    {ZYDIS_MNEMONIC_STOSB, op_string}, {ZYDIS_MNEMONIC_STOSW, op_string},
    {ZYDIS_MNEMONIC_STOSD, op_string}, {ZYDIS_MNEMONIC_STOSQ, op_string},
    {ZYDIS_MNEMONIC_LODSB, op_string}, {ZYDIS_MNEMONIC_LODSW, op_string},
    {ZYDIS_MNEMONIC_LODSD, op_string}, {ZYDIS_MNEMONIC_LODSQ, op_string},
    {ZYDIS_MNEMONIC_SCASB, op_string}, {ZYDIS_MNEMONIC_SCASW, op_string},
    {ZYDIS_MNEMONIC_SCASD, op_string}, {ZYDIS_MNEMONIC_SCASQ, op_string},
    {ZYDIS_MNEMONIC_INSB, op_string},  {ZYDIS_MNEMONIC_INSW, op_string},
    {ZYDIS_MNEMONIC_INSD, op_string},  {ZYDIS_MNEMONIC_OUTSB, op_string},
    {ZYDIS_MNEMONIC_OUTSW, op_string}, {ZYDIS_MNEMONIC_OUTSD, op_string},
    {0, NULL},
};
