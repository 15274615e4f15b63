/*
 * string.c - MOVS, CMPS, SCAS, LODS, STOS, INS, OUTS, with and without repeat prefixes
 *
 * Repeated instructions go page by page on host pointers with the host's own string instruction,
 * which has the very overlap and flag behaviour that is wanted; whatever that cannot do (devices,
 * page-crossing elements, breakpoints, alignment checks) goes element by element. rCX, rSI and
 * rDI are exact after every element, so that a fault or an interrupt finds what is left to do;
 * rip stays at the instruction until the last one.
 *
 * Specification: SDM vol. 2, REP and the string instructions; vol. 1, 7.3.9.
 */
#include <Zydis/Zydis.h>

#include "engine/soft/debug.h"
#include "engine/soft/mmu.h"
#include "engine/soft/ops.h"
#include "engine/soft/segment.h"
#include "engine/soft/system.h"

/* Stretches of at most a page before interrupts get a chance even when `go` says nothing. */
#define STRING_BUDGET 64u
/* Elements that go one by one between two looks at `go`. */
#define STRING_SLOW_BUDGET 4096u

struct string_walk {
    unsigned size; /* of an element */
    unsigned addr_size;
    unsigned seg; /* of the source */
    bool is_down; /* DF */
    bool is_repeated;
    bool is_while_equal; /* CMPS, SCAS: REPE, not REPNE */
};

/* One element, without the count. */
typedef int (*string_element_fn)(struct soft_vcpu *v, const struct string_walk *w);
/* Up to `count` elements in one go; *done is 0 when they have to go one by one. */
typedef int (*string_stretch_fn)(struct soft_vcpu *v, const struct string_walk *w, uint64_t count,
                                 uint64_t *done);

struct string_op {
    string_element_fn element;
    string_stretch_fn stretch; /* may be NULL */
    bool has_condition;        /* CMPS, SCAS */
};

unsigned soft_prefix_segment(const struct insn *in)
{
    unsigned seg = CPU_DS;

    for (unsigned i = 0; i < in->opcode_off; i++) {
        uint8_t prefix = in->bytes[i];
        if (prefix == 0x64 || prefix == 0x65)
            seg = prefix == 0x64 ? CPU_FS : CPU_GS;
        else if (in->mode != 8 && (prefix & 0xe7) == 0x26) /* 26, 2E, 36, 3E */
            seg = prefix >> 3 & 3;
    }
    return seg;
}

static struct string_walk string_walk_make(const struct soft_vcpu *v, const struct insn *in)
{
    struct string_walk w;

    w.size = in->opcode & 1 ? in->op_size : 1;
    w.addr_size = in->addr_size;
    w.seg = soft_prefix_segment(in);
    w.is_down = (v->st.rflags & RFLAGS_DF) != 0;
    w.is_repeated = in->has_rep || in->has_repne;
    w.is_while_equal = in->has_rep;
    return w;
}

static uint64_t string_offset(const struct soft_vcpu *v, const struct string_walk *w, unsigned reg)
{
    return v->st.gpr[reg] & mask_bytes(w->addr_size);
}

static void string_advance(struct soft_vcpu *v, const struct string_walk *w, unsigned reg,
                           uint64_t elements)
{
    uint64_t distance = elements * w->size;

    soft_gpr_write(v, reg, w->addr_size, false,
                   w->is_down ? v->st.gpr[reg] - distance : v->st.gpr[reg] + distance);
}

/* ---- whole stretches ---- */

/* What asks for one element at a time: single-step, breakpoints, alignment checks. */
static bool string_must_walk(const struct soft_vcpu *v)
{
    const struct cpu_state *st = &v->st;

    return (st->rflags & RFLAGS_TF) || soft_debug_is_armed(v) ||
           ((st->rflags & RFLAGS_AC) && (st->cr0 & CR0_AM) && cpu_cpl(st) == 3);
}

/* A run of elements in one page: `host` is where the first one lies. */
struct string_window {
    uint8_t *host; /* NULL: no stretch here */
    gpa_t gpa;
    bool is_code_page;
};

/*
 * Elements from `reg` on that lie in one page and pass the segment's checks, at most *count,
 * which is reduced; *count 0: none. Faults of the first element are raised.
 */
static int string_window_open(struct soft_vcpu *v, const struct string_walk *w, unsigned seg,
                              unsigned reg, enum soft_access access, struct string_window *window,
                              uint64_t *count)
{
    uint64_t offset = string_offset(v, w, reg), n, in_page;
    unsigned set = soft_tlb_current(v);
    struct soft_place place;
    gva_t addr;

    window->host = NULL;
    if (soft_linear(v, seg, offset, w->size, access, &addr))
        return SOFT_FAULT;
    in_page = addr & (SOFT_PAGE_SIZE - 1);
    if (in_page + w->size > SOFT_PAGE_SIZE) {
        *count = 0;
        return 0;
    }
    if (w->is_down)
        n = MIN(in_page, offset) / w->size + 1;
    else
        n = MIN(SOFT_PAGE_SIZE - in_page, mask_bytes(w->addr_size) - offset) / w->size;
    n = MIN(n, *count);
    if (n > 1 && !cpu_is_64bit(&v->st) &&
        !soft_limit_allows(&v->st.seg[seg], w->is_down ? offset - (n - 1) * w->size : offset,
                           (unsigned)(n * w->size)))
        n = 0;
    *count = n;
    if (n == 0)
        return 0;
    window->is_code_page = false;
    window->host = access == SOFT_READ ? soft_tlb_find_read(v, set, addr, w->size)
                                       : soft_tlb_find_write(v, set, addr, w->size);
    if (LIKELY(window->host != NULL))
        return 0;
    if (soft_translate(v, addr, access, SOFT_AS_CPL, &place))
        return SOFT_FAULT;
    window->host = place.host;
    window->gpa = place.gpa;
    window->is_code_page = place.is_code_page;
    if (place.host == NULL)
        *count = 0;
    return 0;
}

static void string_window_written(struct soft_vcpu *v, const struct string_walk *w,
                                  const struct string_window *window, uint64_t count)
{
    uint64_t bytes = count * w->size;

    if (UNLIKELY(window->is_code_page))
        soft_code_written(v, w->is_down ? window->gpa + w->size - bytes : window->gpa,
                          (unsigned)bytes);
}

/* The host's instruction for elements of w->size in w's direction. */
#define STRING_NATIVE(instruction, ...)                                                            \
    do {                                                                                           \
        if (w->is_down)                                                                            \
            __asm__ volatile("std\n\t" instruction "\n\tcld" __VA_ARGS__);                         \
        else                                                                                       \
            __asm__ volatile(instruction __VA_ARGS__);                                             \
    } while (0)
#define STRING_NATIVE_SIZES(instruction, ...)                                                      \
    switch (w->size) {                                                                             \
    case 1:                                                                                        \
        STRING_NATIVE(instruction "b", __VA_ARGS__);                                               \
        break;                                                                                     \
    case 2:                                                                                        \
        STRING_NATIVE(instruction "w", __VA_ARGS__);                                               \
        break;                                                                                     \
    case 4:                                                                                        \
        STRING_NATIVE(instruction "l", __VA_ARGS__);                                               \
        break;                                                                                     \
    default:                                                                                       \
        STRING_NATIVE(instruction "q", __VA_ARGS__);                                               \
        break;                                                                                     \
    }

static void native_movs(const struct string_walk *w, uint8_t *to, const uint8_t *from,
                        uint64_t count)
{
    STRING_NATIVE_SIZES("rep movs", : "+D"(to), "+S"(from), "+c"(count) : : "memory", "cc")
}

static void native_stos(const struct string_walk *w, uint8_t *to, uint64_t value, uint64_t count)
{
    STRING_NATIVE_SIZES("rep stos", : "+D"(to), "+c"(count) : "a"(value) : "memory", "cc")
}

/*
 * The comparisons return the elements done and set the status flags as the instruction leaves
 * them; count is not 0. LAHF has all of them but OF.
 */
#define STRING_FLAGS "\n\tlahf\n\tseto %%al"

static uint64_t string_flags(uint64_t rax)
{
    uint64_t status = rax >> 8 & (RFLAGS_STATUS & 0xff);

    return rax & 1 ? status | RFLAGS_OF : status;
}

static uint64_t native_cmps(const struct string_walk *w, const uint8_t *a, const uint8_t *b,
                            uint64_t count, uint64_t *flags)
{
    uint64_t left = count, rax = 0;

    if (w->is_while_equal)
        STRING_NATIVE_SIZES("repe cmps", STRING_FLAGS
                            : "+S"(a), "+D"(b), "+c"(left), "+a"(rax)
                            :
                            : "memory", "cc")
    else
        STRING_NATIVE_SIZES("repne cmps", STRING_FLAGS
                            : "+S"(a), "+D"(b), "+c"(left), "+a"(rax)
                            :
                            : "memory", "cc")
    *flags = string_flags(rax);
    return count - left;
}

static uint64_t native_scas(const struct string_walk *w, uint64_t value, const uint8_t *b,
                            uint64_t count, uint64_t *flags)
{
    uint64_t left = count, rax = value;

    if (w->is_while_equal)
        STRING_NATIVE_SIZES("repe scas", STRING_FLAGS
                            : "+D"(b), "+c"(left), "+a"(rax)
                            :
                            : "memory", "cc")
    else
        STRING_NATIVE_SIZES("repne scas", STRING_FLAGS
                            : "+D"(b), "+c"(left), "+a"(rax)
                            :
                            : "memory", "cc")
    *flags = string_flags(rax);
    return count - left;
}

static void string_set_flags(struct soft_vcpu *v, uint64_t flags)
{
    v->st.rflags = (v->st.rflags & ~RFLAGS_STATUS) | flags;
}

static int movs_stretch(struct soft_vcpu *v, const struct string_walk *w, uint64_t count,
                        uint64_t *done)
{
    struct string_window from, to;

    if (string_window_open(v, w, w->seg, CPU_RSI, SOFT_READ, &from, &count))
        return SOFT_FAULT;
    if (count != 0 && string_window_open(v, w, CPU_ES, CPU_RDI, SOFT_WRITE, &to, &count))
        return SOFT_FAULT;
    *done = count;
    if (count == 0)
        return 0;
    native_movs(w, to.host, from.host, count);
    string_window_written(v, w, &to, count);
    string_advance(v, w, CPU_RSI, count);
    string_advance(v, w, CPU_RDI, count);
    return 0;
}

static int stos_stretch(struct soft_vcpu *v, const struct string_walk *w, uint64_t count,
                        uint64_t *done)
{
    struct string_window to;

    if (string_window_open(v, w, CPU_ES, CPU_RDI, SOFT_WRITE, &to, &count))
        return SOFT_FAULT;
    *done = count;
    if (count == 0)
        return 0;
    native_stos(w, to.host, v->st.gpr[CPU_RAX], count);
    string_window_written(v, w, &to, count);
    string_advance(v, w, CPU_RDI, count);
    return 0;
}

/* Only the last element stays. */
static int lods_stretch(struct soft_vcpu *v, const struct string_walk *w, uint64_t count,
                        uint64_t *done)
{
    struct string_window from;
    uint64_t value = 0;

    if (string_window_open(v, w, w->seg, CPU_RSI, SOFT_READ, &from, &count))
        return SOFT_FAULT;
    *done = count;
    if (count == 0)
        return 0;
    soft_copy(&value,
              w->is_down ? from.host - (count - 1) * w->size : from.host + (count - 1) * w->size,
              w->size);
    soft_gpr_write(v, CPU_RAX, w->size, false, value);
    string_advance(v, w, CPU_RSI, count);
    return 0;
}

static int cmps_stretch(struct soft_vcpu *v, const struct string_walk *w, uint64_t count,
                        uint64_t *done)
{
    struct string_window a, b;
    uint64_t flags;

    if (string_window_open(v, w, w->seg, CPU_RSI, SOFT_READ, &a, &count))
        return SOFT_FAULT;
    if (count != 0 && string_window_open(v, w, CPU_ES, CPU_RDI, SOFT_READ, &b, &count))
        return SOFT_FAULT;
    *done = 0;
    if (count == 0)
        return 0;
    *done = native_cmps(w, a.host, b.host, count, &flags);
    string_set_flags(v, flags);
    string_advance(v, w, CPU_RSI, *done);
    string_advance(v, w, CPU_RDI, *done);
    return 0;
}

static int scas_stretch(struct soft_vcpu *v, const struct string_walk *w, uint64_t count,
                        uint64_t *done)
{
    struct string_window b;
    uint64_t flags;

    if (string_window_open(v, w, CPU_ES, CPU_RDI, SOFT_READ, &b, &count))
        return SOFT_FAULT;
    *done = 0;
    if (count == 0)
        return 0;
    *done = native_scas(w, v->st.gpr[CPU_RAX], b.host, count, &flags);
    string_set_flags(v, flags);
    string_advance(v, w, CPU_RDI, *done);
    return 0;
}

/* ---- one element ---- */

static int string_load(struct soft_vcpu *v, const struct string_walk *w, unsigned seg, unsigned reg,
                       uint64_t *value)
{
    gva_t addr;

    if (soft_linear(v, seg, string_offset(v, w, reg), w->size, SOFT_READ, &addr))
        return SOFT_FAULT;
    return soft_load(v, addr, w->size, SOFT_AS_CPL, value);
}

static int string_store(struct soft_vcpu *v, const struct string_walk *w, uint64_t value)
{
    gva_t addr;

    if (soft_linear(v, CPU_ES, string_offset(v, w, CPU_RDI), w->size, SOFT_WRITE, &addr))
        return SOFT_FAULT;
    return soft_store(v, addr, w->size, SOFT_AS_CPL, value);
}

static int movs_element(struct soft_vcpu *v, const struct string_walk *w)
{
    uint64_t value;

    if (string_load(v, w, w->seg, CPU_RSI, &value) || string_store(v, w, value))
        return SOFT_FAULT;
    string_advance(v, w, CPU_RSI, 1);
    string_advance(v, w, CPU_RDI, 1);
    return 0;
}

static int stos_element(struct soft_vcpu *v, const struct string_walk *w)
{
    if (string_store(v, w, v->st.gpr[CPU_RAX] & mask_bytes(w->size)))
        return SOFT_FAULT;
    string_advance(v, w, CPU_RDI, 1);
    return 0;
}

static int lods_element(struct soft_vcpu *v, const struct string_walk *w)
{
    uint64_t value;

    if (string_load(v, w, w->seg, CPU_RSI, &value))
        return SOFT_FAULT;
    soft_gpr_write(v, CPU_RAX, w->size, false, value);
    string_advance(v, w, CPU_RSI, 1);
    return 0;
}

static int cmps_element(struct soft_vcpu *v, const struct string_walk *w)
{
    struct string_walk up = *w;
    uint64_t a, b, flags;

    if (string_load(v, w, w->seg, CPU_RSI, &a) || string_load(v, w, CPU_ES, CPU_RDI, &b))
        return SOFT_FAULT;
    up.is_down = false;
    native_cmps(&up, (uint8_t *)&a, (uint8_t *)&b, 1, &flags);
    string_set_flags(v, flags);
    string_advance(v, w, CPU_RSI, 1);
    string_advance(v, w, CPU_RDI, 1);
    return 0;
}

static int scas_element(struct soft_vcpu *v, const struct string_walk *w)
{
    struct string_walk up = *w;
    uint64_t b, flags;

    if (string_load(v, w, CPU_ES, CPU_RDI, &b))
        return SOFT_FAULT;
    up.is_down = false;
    native_scas(&up, v->st.gpr[CPU_RAX], (uint8_t *)&b, 1, &flags);
    string_set_flags(v, flags);
    string_advance(v, w, CPU_RDI, 1);
    return 0;
}

/* The destination is known to be writable before the port is read, which may have effects. */
static int ins_element(struct soft_vcpu *v, const struct string_walk *w)
{
    uint16_t port = (uint16_t)v->st.gpr[CPU_RDX];
    gva_t addr;

    if (soft_io_check(v, port, w->size) ||
        soft_linear(v, CPU_ES, string_offset(v, w, CPU_RDI), w->size, SOFT_WRITE, &addr) ||
        soft_probe(v, addr, w->size, SOFT_WRITE, SOFT_AS_CPL))
        return SOFT_FAULT;
    if (UNLIKELY((addr & (w->size - 1)) != 0 && (v->st.rflags & RFLAGS_AC) &&
                 (v->st.cr0 & CR0_AM) && cpu_cpl(&v->st) == 3))
        return soft_raise_error(v, VEC_AC, 0);
    soft_debug_watch_io(v, port, w->size);
    if (soft_store(v, addr, w->size, SOFT_AS_CPL, soft_host_io_read(v, port, w->size)))
        return SOFT_FAULT;
    string_advance(v, w, CPU_RDI, 1);
    return 0;
}

static int outs_element(struct soft_vcpu *v, const struct string_walk *w)
{
    uint16_t port = (uint16_t)v->st.gpr[CPU_RDX];
    uint64_t value;

    if (soft_io_check(v, port, w->size) || string_load(v, w, w->seg, CPU_RSI, &value))
        return SOFT_FAULT;
    soft_debug_watch_io(v, port, w->size);
    soft_host_io_write(v, port, w->size, value);
    string_advance(v, w, CPU_RSI, 1);
    return 0;
}

/* ---- repetition ---- */

static bool string_has_ended(const struct soft_vcpu *v, const struct string_walk *w)
{
    return ((v->st.rflags & RFLAGS_ZF) != 0) != w->is_while_equal;
}

/* Interrupts, a debug trap or the budget end this visit; the instruction is not done. */
static bool string_must_pause(const struct soft_vcpu *v, unsigned stretches, unsigned elements)
{
    return __atomic_load_n(&v->go, __ATOMIC_RELAXED) == 0 || v->st.pending_dbg != 0 ||
           (v->st.rflags & RFLAGS_TF) || stretches == STRING_BUDGET ||
           elements == STRING_SLOW_BUDGET;
}

static int string_repeat(struct soft_vcpu *v, const struct string_walk *w,
                         const struct string_op *op)
{
    uint64_t count = string_offset(v, w, CPU_RCX), flags = v->st.rflags;
    bool may_stretch = op->stretch != NULL && !string_must_walk(v);
    unsigned stretches = 0, elements = 0;

    while (count != 0) {
        uint64_t done = 0;
        int ret = may_stretch ? op->stretch(v, w, count, &done) : 0;
        if (ret == 0 && done != 0) {
            stretches++;
        } else if (ret == 0) {
            ret = op->element(v, w);
            done = 1;
            elements++;
        }
        if (UNLIKELY(ret != 0)) {
            /* what CMPS and SCAS leave in the flags at a fault is the vendor's choice:
             * Intel restores them (SDM vol. 2, REP), AMD has those of the last element */
            if (op->has_condition && !soft_is_amd(v))
                v->st.rflags = (v->st.rflags & ~RFLAGS_STATUS) | (flags & RFLAGS_STATUS);
            return ret;
        }
        count -= done;
        soft_gpr_write(v, CPU_RCX, w->addr_size, false, count);
        if (count == 0 || (op->has_condition && string_has_ended(v, w)))
            break;
        if (UNLIKELY(string_must_pause(v, stretches, elements))) {
            v->next_rip = v->st.rip;
            v->st.rflags |= RFLAGS_RF; /* for the frame of what comes between (17.3.1.1) */
            break;
        }
    }
    return 0;
}

static int string_execute(struct soft_vcpu *v, const struct string_walk *w,
                          const struct string_op *op)
{
    return w->is_repeated ? string_repeat(v, w, op) : op->element(v, w);
}

static int op_movs(struct soft_vcpu *v, const struct insn *in)
{
    static const struct string_op op = {movs_element, movs_stretch, false};
    struct string_walk w = string_walk_make(v, in);

    return string_execute(v, &w, &op);
}

static int op_stos(struct soft_vcpu *v, const struct insn *in)
{
    static const struct string_op op = {stos_element, stos_stretch, false};
    struct string_walk w = string_walk_make(v, in);

    return string_execute(v, &w, &op);
}

static int op_lods(struct soft_vcpu *v, const struct insn *in)
{
    static const struct string_op op = {lods_element, lods_stretch, false};
    struct string_walk w = string_walk_make(v, in);

    return string_execute(v, &w, &op);
}

static int op_cmps(struct soft_vcpu *v, const struct insn *in)
{
    static const struct string_op op = {cmps_element, cmps_stretch, true};
    struct string_walk w = string_walk_make(v, in);

    return string_execute(v, &w, &op);
}

static int op_scas(struct soft_vcpu *v, const struct insn *in)
{
    static const struct string_op op = {scas_element, scas_stretch, true};
    struct string_walk w = string_walk_make(v, in);

    return string_execute(v, &w, &op);
}

/* Ports have at most 32 bits. */
static int op_ins(struct soft_vcpu *v, const struct insn *in)
{
    static const struct string_op op = {ins_element, NULL, false};
    struct string_walk w = string_walk_make(v, in);

    w.size = MIN(w.size, 4u);
    return string_execute(v, &w, &op);
}

static int op_outs(struct soft_vcpu *v, const struct insn *in)
{
    static const struct string_op op = {outs_element, NULL, false};
    struct string_walk w = string_walk_make(v, in);

    w.size = MIN(w.size, 4u);
    return string_execute(v, &w, &op);
}

const struct soft_op soft_ops_string[] = {
    {ZYDIS_MNEMONIC_MOVSB, op_movs},
    {ZYDIS_MNEMONIC_MOVSW, op_movs},
    {ZYDIS_MNEMONIC_MOVSD, op_movs},
    {ZYDIS_MNEMONIC_MOVSQ, op_movs},
    {ZYDIS_MNEMONIC_CMPSB, op_cmps},
    {ZYDIS_MNEMONIC_CMPSW, op_cmps},
    {ZYDIS_MNEMONIC_CMPSD, op_cmps},
    {ZYDIS_MNEMONIC_CMPSQ, op_cmps},
    {ZYDIS_MNEMONIC_SCASB, op_scas},
    {ZYDIS_MNEMONIC_SCASW, op_scas},
    {ZYDIS_MNEMONIC_SCASD, op_scas},
    {ZYDIS_MNEMONIC_SCASQ, op_scas},
    {ZYDIS_MNEMONIC_LODSB, op_lods},
    {ZYDIS_MNEMONIC_LODSW, op_lods},
    {ZYDIS_MNEMONIC_LODSD, op_lods},
    {ZYDIS_MNEMONIC_LODSQ, op_lods},
    {ZYDIS_MNEMONIC_STOSB, op_stos},
    {ZYDIS_MNEMONIC_STOSW, op_stos},
    {ZYDIS_MNEMONIC_STOSD, op_stos},
    {ZYDIS_MNEMONIC_STOSQ, op_stos},
    {ZYDIS_MNEMONIC_INSB, op_ins},
    {ZYDIS_MNEMONIC_INSW, op_ins},
    {ZYDIS_MNEMONIC_INSD, op_ins},
    {ZYDIS_MNEMONIC_OUTSB, op_outs},
    {ZYDIS_MNEMONIC_OUTSW, op_outs},
    {ZYDIS_MNEMONIC_OUTSD, op_outs},
    {0, NULL},
};
