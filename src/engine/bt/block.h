/*
 * block.h - what is remembered of translated blocks and of the pages they were made from
 *
 * A machine has hundreds of thousands of blocks, so a block's record is small: its addresses are
 * those of a view (a linear page mapped to a physical one) that the blocks of a page share, others
 * are offsets, and what few paths ask for lies behind the block's code in the cache. Blocks and
 * pages are named by numbers, counted from 1; 0 is none.
 */
#ifndef DOPPEL_ENGINE_BT_BLOCK_H
#define DOPPEL_ENGINE_BT_BLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bits.h"
#include "cpu/state.h"
#include "engine/bt/loop.h"

#define BT_BLOCK_INSNS_MAX 64
#define BT_BLOCK_HOST_MAX (24u * 1024)

/* (linear page, physical page). Its number is the cookie that entries of blocks compare. */
struct bt_view {
    uint64_t vpn;
    uint64_t pfn : 40;
    uint64_t next : 24; /* number; of the same hash */
};

#define BT_VIEWS_MAX (1u << 17)
#define BT_VIEW_HASH_SIZE (1u << 14)

struct bt_block {
    uint32_t at;     /* of the guard entry, in the cache; 16-byte aligned */
    uint32_t cookie; /* number of its view */
    uint32_t mode : 18;
    uint32_t guest_len : 13;
    uint32_t is_dead : 1;
    uint32_t hash_next;   /* number; a bucket holds dead ones that were not made again yet, too */
    uint32_t page_next;   /* number */
    uint16_t offset : 12; /* of the guest code in its page */
    uint16_t has_shares : 1; /* C may not resume it */
    uint16_t has_loop : 1;
    uint16_t has_tail : 1;
    uint16_t more; /* from the guard entry: see below */
    uint8_t insn_count;
    uint8_t fail, poll, body; /* from the guard entry */
    uint8_t share_misses;     /* a guess: several vCPUs count without a lock */
    uint8_t pad[3];
};

_Static_assert(sizeof(struct bt_block) == 32, "there are many");

/*
 * Behind a block's code, in this order: a struct bt_loop_map when has_loop, a struct bt_tail when
 * has_tail, the loop's struct bt_copy_map, and a 16-bit word for each instruction: how far its
 * guest code is from that of the instruction before (bits 15..12), and its host code from that of
 * the instruction before, or from the guard entry (bits 11..0).
 */
#define BT_MAP_GUEST_MAX 15u
#define BT_MAP_HOST_MAX 4095u

/* The second page of an instruction that goes on there; such a one stands alone. */
struct bt_tail {
    uint32_t cookie;
    uint32_t next; /* number of another block with a tail in that page */
    uint16_t len;  /* bytes there */
    uint16_t pad;
};

#define BT_BLOCK_MORE_MAX                                                                          \
    (8u + sizeof(struct bt_loop_map) + sizeof(struct bt_tail) +                                    \
     BT_LOOP_MAP_MAX * sizeof(struct bt_copy_map) + 2 * BT_BLOCK_INSNS_MAX + 16u)

_Static_assert(BT_BLOCK_HOST_MAX + BT_BLOCK_MORE_MAX <= UINT16_MAX, "offsets in a block");

/* A physical page that code was translated from. */
struct bt_code_page {
    uint64_t granules;    /* 64-byte pieces that hold translated bytes */
    uint32_t blocks;      /* number of the first */
    uint32_t tails;       /* of blocks that begin in another page; dead ones among them */
    uint32_t idle_writes; /* since the last translation on it died */
};

/* Where a guest instruction's code begins: from the block's guest code, and guard entry. */
struct bt_insn_map {
    uint16_t guest, host;
};

#define BT_NO_TAIL UINT64_MAX

/* A block that is being made. Host addresses are executable ones. */
struct bt_draft {
    uint64_t rip;
    gpa_t gpa;
    uint32_t mode;
    uint32_t cookie;
    uint16_t guest_len;
    uint16_t insn_count;
    bool has_shares;
    uint8_t *guard, *poll, *body, *fail, *end;
    gpa_t tail_gpa; /* BT_NO_TAIL: none */
    uint32_t tail_cookie;
    uint16_t tail_len;
    uint8_t *loop_entry; /* NULL: no loop */
    struct bt_loop_map loop;
    struct bt_copy_map copies[BT_LOOP_MAP_MAX];
    struct bt_insn_map map[BT_BLOCK_INSNS_MAX + 1]; /* the last entry: where the code ends */
};

/* Where the rest of an instruction lies that begins at `rip`. */
static inline uint64_t bt_tail_rip(uint64_t rip)
{
    return (rip | 0xfff) + 1;
}

struct bt_engine;

/* block.c; with the lock held where not said otherwise */

/* The cookie of the view, made when there is none yet; 0: no room. */
uint32_t bt_view_cookie(struct bt_engine *be, uint64_t rip, gpa_t gpa);
/* The live block, or NULL. */
struct bt_block *bt_block_find(struct bt_engine *be, uint64_t rip, gpa_t gpa, uint32_t mode);
/* Make the draft, whose code is at be->used, a block that look-ups find. */
struct bt_block *bt_block_publish(struct bt_engine *be, const struct bt_draft *draft);
/* No look-up finds it from now on, and its body fails; its memory stays until the cache is emptied.
 */
void bt_block_kill(struct bt_engine *be, struct bt_block *block);
/* The block runs no strips any more. */
void bt_loop_disable(struct bt_engine *be, const struct bt_block *block);

/* Are shared checks to be left out of blocks there? */
bool bt_is_share_refused(const struct bt_engine *be, uint64_t rip, gpa_t gpa);
void bt_share_refuse(struct bt_engine *be, const struct bt_block *block);

/* The block that holds host code address `rx`, or NULL. Takes the lock. */
struct bt_block *bt_block_at(struct bt_engine *be, const uint8_t *rx);

/* Of a block that was made and not forgotten since: any vCPU, no lock. */
struct bt_loop_map *bt_block_loop(const struct bt_engine *be, const struct bt_block *block);
const struct bt_copy_map *bt_block_copies(const struct bt_engine *be, const struct bt_block *block);
struct bt_tail *bt_block_tail(const struct bt_engine *be, const struct bt_block *block);
/* Index of the guest instruction whose host code contains rx. */
unsigned bt_block_insn_at(const struct bt_engine *be, const struct bt_block *block,
                          const uint8_t *rx);
/* Where instruction `index` begins. */
struct bt_insn_map bt_block_insn(const struct bt_engine *be, const struct bt_block *block,
                                 unsigned index);

#endif
