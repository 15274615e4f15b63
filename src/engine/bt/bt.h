/*
 * bt.h - the translator's own structures
 *
 * A block is host code for guest code that starts at one (linear address, physical address,
 * mode). It has three entries, one behind the other:
 *
 *   guard: compares the vCPU's cookie for the linear page with the block's. Equal: the page is
 *          mapped to the same physical page, executable at this privilege. Polls in the same
 *          comparison (BT_GO). Entered from indirect branches and from blocks in other pages.
 *   poll:  for who knows that already: blocks of the same page. Looks whether somebody wants this
 *          vCPU's attention.
 *   body:  for who cannot be part of an endless loop: links to a higher address in the page, and
 *          the dispatcher.
 *
 * The body starts with a five-byte NOP within an aligned quadword. Killing a block turns that NOP
 * into a jump to its `fail` path by one atomic store; whatever still points to the block then
 * falls through to the dispatcher, and goes to the block's successor once that has been made.
 * Memory is reused only when the whole cache is emptied with every vCPU outside of it.
 *
 * Registers in generated code: every guest GPR is in the host GPR of the same number, except
 * that RCX, R10 and R15 are scratch, R11 holds the guest's RCX, and the guest's R10, R11 and R15
 * stay in the vCPU block. RSP may lag behind between pushes and pops (bt_emit_move_rsp). The
 * guest's status flags are the host's; all generated code between guest instructions leaves them
 * alone. GS base is the vCPU block. DF, IF, AC, TF and the rest of RFLAGS are in st.rflags only.
 *
 * Locks: `lock` guards everything in struct bt_engine that is not said to be immutable. Order:
 * soft_exclusive, then `lock`. It may be taken by a vCPU that counts as in guest, because a
 * holder never waits for an exclusive section.
 */
#ifndef DOPPEL_ENGINE_BT_BT_H
#define DOPPEL_ENGINE_BT_BT_H

#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <ucontext.h>

#include "cpu/insn_cache.h"
#include "engine/bt/block.h"
#include "engine/bt/emit.h"
#include "engine/bt/loop.h"
#include "engine/soft/vcpu.h"

/* Scratch registers of generated code, and where the guest's RCX lives. */
#define S0 H_RCX
#define S1 H_R10
#define S2 H_R15
#define H_GUEST_RCX H_R11

/*
 * What `go` is while nobody wants the vCPU's attention. Cookies are less, so that a guard can
 * compare the sum of both: cookie + go is the block's cookie + BT_GO only when each is what it
 * ought to be.
 */
#define BT_GO UINT32_C(0x40000000)
_Static_assert(BT_VIEWS_MAX < BT_GO, "cookies are numbers of views");

/* Guest GPRs that stay in memory. */
#define BT_IN_MEMORY(g) ((g) == CPU_R10 || (g) == CPU_R11 || (g) == CPU_R15)

/*
 * What a translation depends on, beside the bytes: part of a block's key. A mode with
 * BT_MODE_STEP is not translated at all; soft_step runs it.
 */
#define BT_MODE_SIZE 0x3u   /* code: 0 = 64, 1 = 32 bits */
#define BT_MODE_SET_SHIFT 2 /* TLB set, SOFT_TLB_* (2 bits) */
#define BT_MODE_SET 0xcu
#define BT_MODE_FS_FLAT 0x10u /* 32-bit: FS limit is 4 GiB, base is any; always in 64-bit */
#define BT_MODE_GS_FLAT 0x20u
#define BT_MODE_X87 0x40u  /* no #NM: CR0.EM and TS clear */
#define BT_MODE_WAIT 0x80u /* FWAIT: not (MP and TS) */
#define BT_MODE_SSE 0x100u
#define BT_MODE_AVX 0x200u
#define BT_MODE_AVX512 0x400u
#define BT_MODE_PROTECTED 0x800u /* VEX-encoded integer instructions exist */
#define BT_MODE_STEP 0x1000u
#define BT_MODE_NOSHARE 0x8000u /* translate without shared checks (share.c) */
#define BT_MODE_CPL0 0x2000u
#define BT_MODE_RDTSC 0x4000u /* allowed at this privilege */
#define BT_MODE_SMAP 0x10000u /* CPL < 3 and CR4.SMAP: the set says what RFLAGS.AC is */
#define BT_MODE_FSGSBASE 0x20000u

/* Large: programs of many megabytes return to more places than a processor's own tables hold. */
#define BT_JC_BITS 14
#define BT_JC_SIZE (1u << BT_JC_BITS)
#define BT_JC_GROUP 64u /* slots that are cleared together */

/* Direct-mapped guess from a linear address to a block's guard entry; one per TLB set. */
struct bt_jump_cache {
    uint64_t minus_rip[BT_JC_SIZE];
    uint64_t host[BT_JC_SIZE];
    uint32_t block[BT_JC_SIZE]; /* number; for C; valid where minus_rip matches */
    uint64_t filled[BT_JC_SIZE / BT_JC_GROUP / 64]; /* groups that may hold any */
    uint32_t mode;                                  /* of every block in it */
};

/* What a vCPU's time goes to, beside translating, devices and exclusive sections. */
enum bt_time { BT_TIME_CODE, BT_TIME_TLB, BT_TIME_SOFT, BT_TIME_DISPATCH, BT_TIME_KINDS };

struct bt_clock {
    enum bt_time kind;
    uint64_t since, elsewhere; /* TSC, and cycles that had been spent elsewhere, when it began */
};

struct bt_stats {
    uint64_t dispatches, chains, tlb_misses, tlb_miss_soft, guard_fails, steps;
    uint64_t blocks, guest_insns, guest_bytes, host_bytes, translate_cycles;
    uint64_t kills, flushes, code_writes, code_writes_beside, protects, protect_exclusive;
    uint64_t cycles[BT_TIME_KINDS]; /* with is_counting */
    uint64_t indirect_misses, host_faults, share_misses, loops, loop_refusals;
    uint32_t soft_ops[2048]; /* by mnemonic */
};

struct bt_engine;

struct bt_vcpu {
    struct soft_vcpu soft; /* at %gs:0 */

    /* for generated code */
    uint64_t self;
    uint64_t host_rsp;
    uint64_t target;
    uint64_t blocks_run, accesses;       /* counted by generated code with is_counting */
    uint64_t share[8];                   /* host addresses of live shares */
    uint64_t pushed;                     /* a value on its way while the stack is checked */
    uint64_t loop_host[BT_LOOP_STREAMS]; /* where a strip's streams begin */
    uint64_t loop_spill[CPU_GPR_COUNT];  /* guest registers that gave way to a strip's pointers */
    uint64_t loop_tail, loop_count;      /* of a strip: iterations left over; counter */
    uint32_t flags_ax;                   /* LAHF in bits 15..8, OF in bit 0 */
    uint32_t pad;
    uint64_t mask_tlb, mask_page, mask_jc;    /* PEXT masks */
    uint64_t mask_high;                       /* bits 63..32 */
    uint64_t mask_bit[2], mask_df;            /* of bit numbers below 32 and 64; DF in a byte */
    uint64_t canonical_shift;                 /* arithmetic shift right gives 0 or -1 */
    uint8_t set_bit_1[256], clear_bit_1[256]; /* IF, in bits 15..8 of RFLAGS, without flags */
    struct bt_jump_cache jc[SOFT_TLB_SETS];

    /* for C */
    struct bt_engine *engine;
    uint32_t mode;
    uint32_t set;
    enum engine_stop stop;
    int64_t slice_left; /* instructions until ENGINE_STOP_SLICE */
    bool is_code_lost;  /* a block was killed by this vCPU's own last write */
    struct bt_stats stats;
    struct bt_clock clock;
};

/* Blocks whose shared checks failed often are made without them; by a hash of their address. */
#define BT_NOSHARE_BITS (1u << 16)
#define BT_SHARE_MISSES_MAX 24

struct bt_engine {
    struct soft_engine soft; /* first */
    pthread_mutex_t lock;

    /* code cache: one memory file, mapped twice; immutable after open */
    uint8_t *rw, *rx;
    size_t cache_size;
    size_t stubs_end;
    uint8_t *stub_enter, *stub_leave, *stub_dispatch, *stub_tlb, *stub_soft, *stub_chain,
        *stub_indirect, *stub_fault, *stub_switch; /* executable addresses */

    uint64_t generation; /* counts how often the cache was emptied; read in guest */
    size_t used;
    size_t touched; /* bytes of the cache that the host has given; may lag behind `used` */

    /* Tables: reserved for the most there can be, populated as they are used (cache.c). */
    struct bt_block *blocks; /* in order of address */
    uint32_t block_count, block_max;
    struct bt_code_page *code_pages;
    uint32_t page_count, page_max;
    struct bt_view *views;
    uint32_t view_count, view_max;
    uint32_t *hash; /* numbers of blocks */
    unsigned hash_bits;
    uint32_t view_hash[BT_VIEW_HASH_SIZE];
    uint32_t *pages[SOFT_RAM_SLOTS_MAX]; /* of each page of a slot, the number of its code page */
    uint64_t no_share[BT_NOSHARE_BITS / 64];
    struct insn_cache decoded;
    struct insn insns[BT_BLOCK_INSNS_MAX];    /* of the block being made */
    uint16_t insn_at[BT_BLOCK_INSNS_MAX + 1]; /* their offsets in it */

    /*
     * Immutable after open. A slice is counted by the dispatcher, block by block, so with slices
     * no block leads to another by itself.
     */
    bool is_counting;
    uint64_t slice;

    FILE *perf_map;
    FILE *dump;
};

/* Entry to generated code; returns when a helper has set vcpu->stop. */
typedef void (*bt_enter_fn)(struct bt_vcpu *b, const uint8_t *target);

static inline const uint8_t *bt_rx(const struct bt_engine *be, const uint8_t *rw)
{
    return be->rx + (rw - be->rw);
}

static inline uint8_t *bt_rw(const struct bt_engine *be, const uint8_t *rx)
{
    return be->rw + (rx - be->rx);
}

/* What the numbers are of that block.h names things by. */
static inline struct bt_block *bt_block(const struct bt_engine *be, uint32_t number)
{
    return &be->blocks[number - 1];
}

static inline uint32_t bt_block_number(const struct bt_engine *be, const struct bt_block *block)
{
    return (uint32_t)(block - be->blocks) + 1;
}

static inline const struct bt_view *bt_view(const struct bt_engine *be, uint32_t number)
{
    return &be->views[number - 1];
}

/* Addresses of a block: the guest's, and of its entries. */
static inline uint64_t bt_block_rip(const struct bt_engine *be, const struct bt_block *block)
{
    return bt_view(be, block->cookie)->vpn << SOFT_PAGE_SHIFT | block->offset;
}

static inline gpa_t bt_block_gpa(const struct bt_engine *be, const struct bt_block *block)
{
    return (gpa_t)bt_view(be, block->cookie)->pfn << SOFT_PAGE_SHIFT | block->offset;
}

static inline gpa_t bt_tail_gpa(const struct bt_engine *be, const struct bt_tail *tail)
{
    return (gpa_t)bt_view(be, tail->cookie)->pfn << SOFT_PAGE_SHIFT;
}

static inline const uint8_t *bt_block_guard(const struct bt_engine *be,
                                            const struct bt_block *block)
{
    return be->rx + block->at;
}

static inline const uint8_t *bt_block_poll(const struct bt_engine *be, const struct bt_block *block)
{
    return be->rx + block->at + block->poll;
}

static inline const uint8_t *bt_block_body(const struct bt_engine *be, const struct bt_block *block)
{
    return be->rx + block->at + block->body;
}

/* cache.c */
int bt_cache_create(struct bt_engine *be, size_t size, struct err *e);
void bt_cache_destroy(struct bt_engine *be);
/* Forget every block. Exclusive; takes the lock. */
void bt_cache_empty(struct bt_engine *be);
/* Room for another block's code and bookkeeping? */
bool bt_cache_has_room(const struct bt_engine *be);
/* Bytes of the tables that are in use. With the lock held, or for a figure. */
size_t bt_cache_tables_size(const struct bt_engine *be);
void bt_jump_cache_init(struct bt_jump_cache *jc);
/* Forget all; costs what was filled. */
void bt_jump_cache_clear(struct bt_jump_cache *jc);

/* stubs.c: hand-written glue between generated code and C, made once at open. */
void bt_stubs_make(struct bt_engine *be);

/* smc.c: translated code and writes to it */
/* Called with the lock held for the page of gpa: true when it is protected by now. */
bool bt_page_is_protected(struct bt_engine *be, gpa_t gpa);
/* Protect it: no vCPU writes to it unseen any more. In guest, lock not held. */
void bt_page_protect(struct bt_vcpu *b, gpa_t gpa);
void bt_code_written(struct soft_engine *se, struct soft_vcpu *v, gpa_t gpa, unsigned size);
/* Take a block out of use. With the lock held. */
void bt_block_retire(struct bt_engine *be, struct bt_block *block);
void bt_page_add_block(struct bt_engine *be, struct bt_block *block);
/* Nothing was translated from that page; with all blocks about to go. */
void bt_page_forget(struct bt_engine *be, gpa_t gpa);

/*
 * translate.c: with the lock held and the page protected; NULL when the cache is full. With
 * tail_gpa the block is one instruction that goes on there: `bytes` has both parts.
 */
/* Does the instruction there go on in the next page, and can it be translated? */
bool bt_crosses_page(const struct bt_vcpu *b, uint64_t rip, const uint8_t *bytes);
struct bt_block *bt_translate(struct bt_vcpu *b, uint64_t rip, gpa_t gpa, const uint8_t *bytes,
                              size_t avail, gpa_t tail_gpa);

/* One check that serves several accesses: [registers + low, registers + high). */
#define BT_SHARES 6
#define BT_SHARE_SPAN_MAX 256
#define BT_SHARE_RSP_MAX 0x10000
/* Leaves room for a block's movements of RSP: a share that wrapped at 32 bits would be elsewhere.
 */
#define BT_SHARE_DISP_MAX 0x40000000

struct bt_share {
    bool is_live, is_write;
    bool is_fixed; /* all of `page`; no registers (fixed.c) */
    uint8_t base, index, scale, seg;
    int32_t low, high;
    uint64_t page;
    uint16_t uses_left; /* accesses further on that look like using it */
};

/* A checked operand: [base + index + disp]; index is S2 or H_NONE, base S1 or the guest's own. */
struct bt_place {
    unsigned base, index;
    int32_t disp;
};

/* What an address is made of; registers are the guest's. */
struct bt_address {
    uint8_t base, index, scale, seg, size;
    int32_t disp;
};

/* emit_insn.c */
struct bt_tr {
    struct emit e;
    struct bt_draft block;
    struct bt_engine *be;
    struct bt_vcpu *b;
    uint64_t rip; /* of the instruction being translated */
    uint64_t block_rip;
    unsigned set;
    uint32_t mode;
    unsigned size;            /* code size, bytes: 4 or 8 */
    uint8_t *body;            /* in the writable mapping */
    uint8_t *retry;           /* where the check being emitted starts over after a miss */
    const struct insn *insns; /* the block's, for looking ahead */
    unsigned insn_index, insn_count;
    struct bt_share shares[BT_SHARES];
    unsigned share_next;
    struct bt_share *held; /* the share whose host address is in S1, or NULL */
    bool is_held_saved;    /* it is in the vCPU block as well */
    int32_t rsp_moved;     /* what the guest's RSP has moved without RSP following */
    bool has_shares, is_share_refused;
    struct bt_loop loop;
    bool is_end; /* control does not fall through */

    struct bt_cold {
        uint8_t *from;   /* the rel32 that leads here; chain: linking patches it */
        uint8_t *resume; /* tlb: start over here; indirect: within the instruction */
        uint64_t rip;    /* chain, switch: target; tlb_fixed: operand's address */
        uint32_t info;   /* tlb: BT_MISS_*; indirect: change of RSP; switch: mode there */
        uint8_t reg;     /* tlb: holds the address */
        uint8_t kind;
    } cold[3 * BT_BLOCK_INSNS_MAX + 8];
    unsigned cold_count;
};

enum { BT_COLD_TLB, BT_COLD_TLB_FIXED, BT_COLD_CHAIN, BT_COLD_INDIRECT, BT_COLD_SWITCH };

#define BT_MISS_WRITE 0x10000u
#define BT_MISS_SHARED 0x20000u
#define BT_MISS_LOOP 0x40000u /* and shared: the entry of a strip */
#define BT_MISS_SIZE 0xffffu

/* Does *in do nothing, and nothing that can fault? */
bool bt_is_hint(const struct insn *in);
bool bt_is_unit_enabled(const struct bt_tr *t, unsigned unit);
/* RCX used other than through a field of the encoding: shift counts, CMPXCHG16B, PCMPESTRI. */
bool bt_uses_rcx_implicitly(const struct insn *in);
/* Emit one instruction. */
void bt_emit_insn(struct bt_tr *t, const struct insn *in);
/* It runs in C; host code goes on behind it unless control has gone elsewhere. */
void bt_emit_soft(struct bt_tr *t);
/* The same, and the block ends. */
void bt_emit_end_soft(struct bt_tr *t);
/* A jump to a guest address, linked later. */
void bt_emit_exit(struct bt_tr *t, uint64_t target);
/* The same to code of another mode, which the vCPU block holds by then. */
void bt_emit_exit_to_mode(struct bt_tr *t, uint64_t target, uint32_t mode);
/* st.rip = rip, without touching flags or registers other than S1. */
void bt_emit_set_rip(struct emit *e, uint64_t rip);
void bt_emit_cold(struct bt_tr *t);

/* emit_mem.c */
/*
 * The linear address of the operand in *reg: S1, or a guest register that holds it. False when this
 * needs the C code.
 */
bool bt_emit_address(struct bt_tr *t, const struct insn *in, unsigned *reg);
/* *reg = the address base + index * scale + disp + base of seg, as above; for bt_emit_check. */
void bt_emit_linear(struct bt_tr *t, const struct bt_address *a, unsigned *reg);
/* Check the access at the linear address in `reg`; S2 is its addend afterwards. S0 is lost. */
void bt_emit_check(struct bt_tr *t, unsigned reg, unsigned size, bool is_write);
/* Indirect branch to the linear address in S1; RSP has changed by `stack_delta`. */
void bt_emit_indirect(struct bt_tr *t, int32_t stack_delta);
/*
 * Its first half: S2 is the slot of the jump cache for the linear address in S1, or control goes
 * to the C code; with BT_INDIRECT_REDO that runs the whole instruction.
 */
#define BT_INDIRECT_REDO INT32_MIN
void bt_emit_lookup(struct bt_tr *t, int32_t stack_delta);
/* The same for a range that several accesses share. */
void bt_emit_check_shared(struct bt_tr *t, unsigned reg, unsigned size, bool is_write);

/* Check the memory operand of *in as `size` bytes; false when C has to run the instruction. */
bool bt_emit_operand(struct bt_tr *t, const struct insn *in, unsigned size, bool is_write,
                     struct bt_place *place);
/* Check the first byte of a stream, at S1; a strip may be refused. */
void bt_emit_check_loop(struct bt_tr *t, bool is_write);
/* Is the segment of the operand one that needs no check? */
bool bt_is_segment_flat(const struct bt_tr *t, const struct insn *in);

/* emit_stack.c */
void bt_emit_push(struct bt_tr *t, const struct insn *in);
void bt_emit_pushf(struct bt_tr *t, const struct insn *in);
void bt_emit_pop(struct bt_tr *t, const struct insn *in);
void bt_emit_leave(struct bt_tr *t, const struct insn *in);
/* Push a constant for *in, whichever instruction that is. */
void bt_emit_push_imm(struct bt_tr *t, const struct insn *in, uint64_t value);
/* Check the stack slot at [reg], a guest register, for a pop of *in. */
struct bt_place bt_emit_pop_check(struct bt_tr *t, const struct insn *in, unsigned reg);
/* opcode reg, the checked operand, as wide as the stack */
void bt_emit_stack_op(struct bt_tr *t, uint8_t opcode, unsigned reg, struct bt_place place);
/*
 * RSP moves. It follows later, with the sum of moves: whatever may leave the block, runs in C or
 * reads RSP is preceded by bt_emit_settle.
 */
void bt_emit_move_rsp(struct bt_tr *t, int32_t delta);
void bt_emit_settle(struct bt_tr *t);

/* emit_branch.c */
/* Where the direct branch *in, at t->rip, leads. */
uint64_t bt_branch_target(const struct bt_tr *t, const struct insn *in);
void bt_emit_jcc(struct bt_tr *t, const struct insn *in);
void bt_emit_jump(struct bt_tr *t, const struct insn *in);
void bt_emit_call(struct bt_tr *t, const struct insn *in);
void bt_emit_ret(struct bt_tr *t, const struct insn *in);

/* emit_system.c */
void bt_emit_cli(struct bt_tr *t);
void bt_emit_sti(struct bt_tr *t);
void bt_emit_swapgs(struct bt_tr *t);
void bt_emit_rdtsc(struct bt_tr *t, const struct insn *in);
void bt_emit_stac_clac(struct bt_tr *t, const struct insn *in);
/* RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE */
void bt_emit_segment_base(struct bt_tr *t, const struct insn *in);
/* MOV from a segment or control register */
bool bt_is_mov_from_system(const struct insn *in);
void bt_emit_mov_from_system(struct bt_tr *t, const struct insn *in);
void bt_emit_cld(struct bt_tr *t);

/* emit_string.c */
/* S0 = 0 when DF is clear */
void bt_emit_load_df(struct bt_tr *t);
/* MOVS and STOS within a page each */
void bt_emit_string(struct bt_tr *t, const struct insn *in);
/* BT, BTS, BTR, BTC of a bit string in memory */
void bt_emit_bit_string(struct bt_tr *t, const struct insn *in);

/* emit_x87.c: behind an x87 instruction, what FNSTENV shows of it. S1 and S2 are lost. */
void bt_emit_note_x87(struct bt_tr *t, const struct insn *in);

/* share.c */
/* The checked operand of *in, when a live share covers it or a new one pays; else false. */
bool bt_share_access(struct bt_tr *t, const struct insn *in, struct bt_place *place);
/* S1 is about to be lost: what it holds of a share goes to the vCPU block if it is needed again. */
void bt_share_release(struct bt_tr *t);
/* C code has run: nothing is known any more. */
void bt_shares_forget(struct bt_tr *t);
/* *in was emitted: drop or move the shares whose registers it has changed. */
void bt_shares_after(struct bt_tr *t, const struct insn *in);
bool bt_is_jcc(const struct insn *in);
/* Does straight-line code go on behind *in with no C code in between? */
bool bt_stays_inline(const struct insn *in);
/* PUSH or POP of a register, PUSH of a constant? */
bool bt_is_simple_stack(const struct bt_tr *t, const struct insn *in);
/* Are shares allowed in this block? */
static inline bool bt_may_share(const struct bt_tr *t)
{
    return !(t->mode & BT_MODE_NOSHARE) && !t->is_share_refused;
}
/* Make *made, whose host address is in S1, known. */
struct bt_share *bt_share_add(struct bt_tr *t, const struct bt_share *made);
/* Another access by *s: its host address in S1. */
void bt_share_use(struct bt_tr *t, struct bt_share *s);

/* fixed.c */
/* Check the operand of *in when its address is a constant; false: it is not. */
bool bt_fixed_access(struct bt_tr *t, const struct insn *in, unsigned size, bool is_write,
                     struct bt_place *place);

/* Count in the vCPU block, S0 lost; nothing unless is_counting. */
void bt_emit_count(struct bt_tr *t, uint32_t offset);
/*
 * How many bytes must precede a displacement that would be at `at`. Linking stores it while others
 * may execute it: such a store is atomic within an aligned quadword (AMD APM vol. 2, 7.3.2; Intel
 * SDM vol. 3, 9.1.1 asks for less).
 */
static inline unsigned bt_link_padding(const uint8_t *at)
{
    unsigned offset = (uintptr_t)at & 7;
    return offset > 4 ? 8 - offset : 0;
}
/* Note a path that stands after the block's hot code and is reached by the rel32 at `from`. */
struct bt_cold *bt_cold_add(struct bt_tr *t, unsigned kind, uint8_t *from);
/* Host register of a guest GPR; one that stays in memory is loaded into `scratch`. */
unsigned bt_emit_gpr_get(struct bt_tr *t, unsigned gpr, unsigned scratch);

#define BT_GPR_OFFSET(g) ((uint32_t)(offsetof(struct bt_vcpu, soft.st.gpr) + 8 * (g)))
#define BT_OFFSET(member) ((uint32_t)offsetof(struct bt_vcpu, member))
#define BT_SEG_BASE_OFFSET(s)                                                                      \
    ((uint32_t)(offsetof(struct bt_vcpu, soft.st.seg) + (s) * sizeof(struct cpu_seg) +             \
                offsetof(struct cpu_seg, base)))
#define BT_SEG_SELECTOR_OFFSET(s)                                                                  \
    ((uint32_t)(offsetof(struct bt_vcpu, soft.st.seg) + (s) * sizeof(struct cpu_seg) +             \
                offsetof(struct cpu_seg, selector)))
#define BT_SET_OFFSET(set, member)                                                                 \
    ((uint32_t)(offsetof(struct bt_vcpu, soft.tlb) + (set) * sizeof(struct soft_tlb_set) +         \
                offsetof(struct soft_tlb_set, member)))
#define BT_JC_OFFSET(set, member)                                                                  \
    ((uint32_t)(offsetof(struct bt_vcpu, jc) + (set) * sizeof(struct bt_jump_cache) +              \
                offsetof(struct bt_jump_cache, member)))

/* run.c: helpers that the stubs call; each returns the host address to go on at. */
const uint8_t *bt_helper_dispatch(struct bt_vcpu *b);
const uint8_t *bt_helper_tlb(struct bt_vcpu *b, uint64_t addr, uint64_t info,
                             const uint8_t *resume);
const uint8_t *bt_helper_soft(struct bt_vcpu *b, uint64_t s1, uint64_t info, const uint8_t *resume);
const uint8_t *bt_helper_chain(struct bt_vcpu *b, uint64_t s1, uint64_t info, uint8_t *site);
const uint8_t *bt_helper_switch(struct bt_vcpu *b, uint64_t s1, uint64_t info, uint8_t *site);
const uint8_t *bt_helper_indirect(struct bt_vcpu *b, uint64_t target, uint64_t info,
                                  const uint8_t *at);
const uint8_t *bt_helper_fault(struct bt_vcpu *b, uint64_t s1, const uint8_t *at, uint64_t s2);
int bt_run(struct engine_vcpu *vcpu, enum engine_stop *stop, struct err *e);
bool bt_fault_hook(void *ctx, int sig, siginfo_t *info, ucontext_t *uc);

/* trace.c: perf map and block dump */
int bt_trace_open(struct bt_engine *be, const struct engine_config *config, struct err *e);
void bt_trace_block(struct bt_engine *be, const struct bt_draft *block, const uint8_t *guest);
void bt_trace_close(struct bt_engine *be);

/* stats.c */
void bt_report_stats(struct engine *engine, struct stats_sink *sink);

/* Status flags between st.rflags and the form that stubs load and save. */
static inline void bt_flags_from_host(struct bt_vcpu *b)
{
    uint32_t ax = b->flags_ax;
    b->soft.st.rflags =
        (b->soft.st.rflags & ~RFLAGS_STATUS) | (ax >> 8 & 0xd5) | (uint64_t)(ax & 1) << 11;
}

static inline void bt_flags_to_host(struct bt_vcpu *b)
{
    uint64_t f = b->soft.st.rflags;
    b->flags_ax = (uint32_t)((f & 0xd5) | 2) << 8 | (uint32_t)(f >> 11 & 1);
}

#endif
