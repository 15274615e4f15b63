/*
 * tlb.h - layout of the software TLB, shared with generated code
 *
 * Direct-mapped, one set per kind of access rights. A slot is found by the page number's low
 * bits; it hits when address + tag + size - 1 < 4096, where the tag is minus the page's
 * address: one sum checks the page and that the access stays within it. A slot that is not
 * valid holds minus the address of a page which maps to another slot (and whose predecessor
 * does as well), so that nothing which selects the slot can hit it.
 *
 * host address = linear address + addend.
 */
#ifndef DOPPEL_ENGINE_SOFT_TLB_H
#define DOPPEL_ENGINE_SOFT_TLB_H

#include <stdbool.h>
#include <stdint.h>

#define SOFT_PAGE_SHIFT 12
#define SOFT_PAGE_SIZE UINT64_C(4096)

#define SOFT_TLB_BITS 10
#define SOFT_TLB_SIZE (1u << SOFT_TLB_BITS)
#define SOFT_TLB_EXEC_SIZE 256u

enum {
    SOFT_TLB_USER,         /* CPL 3 */
    SOFT_TLB_KERNEL_SMAP,  /* CPL < 3, user pages refused (CR4.SMAP and not RFLAGS.AC) */
    SOFT_TLB_KERNEL,       /* CPL < 3, user pages allowed */
    SOFT_TLB_SETS,
};

struct soft_tlb_set {
    uint64_t read_tag[SOFT_TLB_SIZE];
    uint64_t write_tag[SOFT_TLB_SIZE];
    uint64_t addend[SOFT_TLB_SIZE];

    /* fetches by the C code */
    uint64_t exec_tag[SOFT_TLB_EXEC_SIZE];
    uint64_t exec_addend[SOFT_TLB_EXEC_SIZE];

    /*
     * What a translated page's entry check compares: an identifier of (linear page, physical
     * page), 0 when unknown. Filled by bt, cleared by every flush that covers the page.
     */
    uint32_t code_cookie[SOFT_TLB_EXEC_SIZE];
};

/* Which slots are in use, so that a flush costs what was filled. */
struct soft_tlb_tracking {
    uint16_t filled[SOFT_TLB_SETS][SOFT_TLB_SIZE];      /* slots filled since the last flush */
    uint32_t filled_count[SOFT_TLB_SETS];
    uint64_t is_global[SOFT_TLB_SETS][SOFT_TLB_SIZE / 64];
    uint64_t is_filled[SOFT_TLB_SETS][SOFT_TLB_SIZE / 64];
    uint64_t exec_is_global[SOFT_TLB_SETS][SOFT_TLB_EXEC_SIZE / 64];
    uint64_t large_start, large_end;   /* linear range that covers every large page cached */
};

static inline unsigned soft_tlb_slot(uint64_t addr)
{
    return (unsigned)(addr >> SOFT_PAGE_SHIFT) & (SOFT_TLB_SIZE - 1);
}

static inline unsigned soft_tlb_exec_slot(uint64_t addr)
{
    return (unsigned)(addr >> SOFT_PAGE_SHIFT) & (SOFT_TLB_EXEC_SIZE - 1);
}

/* A tag that no address of this slot can match. */
static inline uint64_t soft_tlb_invalid_tag(unsigned slot)
{
    return -((uint64_t)(slot ^ 8) << SOFT_PAGE_SHIFT);
}

#endif
