/*
 * tlb.h - layout of the software TLB, shared with generated code
 *
 * Direct-mapped, one set per kind of access rights, reads and writes apart. A slot is found by
 * the page number's low bits; it hits when address + tag + size - 1 < 4096, where the tag is
 * minus the page's address: one sum checks the page and that the access stays within it. A slot
 * that is not valid holds minus the address of a page which maps to another slot (and whose
 * predecessor does as well), so that nothing which selects the slot can hit it.
 *
 * host address = linear address + addend.
 */
#ifndef DOPPEL_ENGINE_SOFT_TLB_H
#define DOPPEL_ENGINE_SOFT_TLB_H

#include <stdbool.h>
#include <stdint.h>

#define SOFT_PAGE_SHIFT 12
#define SOFT_PAGE_SIZE UINT64_C(4096)

#define SOFT_TLB_BITS 12
#define SOFT_TLB_SIZE (1u << SOFT_TLB_BITS)
#define SOFT_TLB_EXEC_SIZE 1024u
#define SOFT_TLB_REGION_WORDS 64u

enum {
    SOFT_TLB_USER,         /* CPL 3 */
    SOFT_TLB_KERNEL_SMAP,  /* CPL < 3, user pages refused (CR4.SMAP and not RFLAGS.AC) */
    SOFT_TLB_KERNEL,       /* CPL < 3, user pages allowed */
    SOFT_TLB_SETS,
};

struct soft_tlb_set {
    uint64_t read_tag[SOFT_TLB_SIZE];
    uint64_t write_tag[SOFT_TLB_SIZE];
    /* of their own, so that a copy between pages of one slot does not miss all the time */
    uint64_t read_addend[SOFT_TLB_SIZE];
    uint64_t write_addend[SOFT_TLB_SIZE];

    /* fetches by the C code */
    uint64_t exec_tag[SOFT_TLB_EXEC_SIZE];
    uint64_t exec_addend[SOFT_TLB_EXEC_SIZE];

    /*
     * What a translated page's entry check compares: an identifier of (linear page, physical
     * page), 0 when unknown. Filled by bt, cleared by every flush that covers the page: only
     * set it for the page that exec_tag of the same slot holds (soft_translate SOFT_FETCH).
     */
    uint32_t code_cookie[SOFT_TLB_EXEC_SIZE];
};

/* A set of slots: a bit for each, and one for each word that may hold any. */
#define SOFT_TLB_WORDS (SOFT_TLB_SIZE / 64)

struct soft_tlb_slots {
    uint64_t words[SOFT_TLB_WORDS];
    uint64_t any;
};

_Static_assert(SOFT_TLB_WORDS <= 64, "one word says which words are in use");

/* Which slots are in use, so that a flush costs what was filled. */
struct soft_tlb_tracking {
    struct soft_tlb_slots local[SOFT_TLB_SETS], global[SOFT_TLB_SETS];
    uint64_t exec_is_global[SOFT_TLB_SETS][SOFT_TLB_EXEC_SIZE / 64];
    uint64_t exec_is_filled[SOFT_TLB_SETS][SOFT_TLB_EXEC_SIZE / 64];

    /*
     * A Bloom filter of the 2 MiB regions from which a fragment of a large page was filled; the
     * first half is for the lower half of the address space. INVLPG must drop all fragments.
     */
    uint64_t large_regions[SOFT_TLB_REGION_WORDS];
    /* filled since the last flush, per half of the address space: fragments of large pages, of
     * 1 GiB pages, global pages */
    bool has_large[2], has_huge[2], has_global[2];

    /* the page behind the last miss of a read, and of a write: who misses there reads on */
    uint64_t next_page[2];
};

/*
 * Second level: translations as the page tables give them, before the current privilege, WP,
 * SMEP and SMAP come in, so that an entry serves every set. tag = page number << 16 | ASID;
 * ASID 0 matches nothing. An ASID names a PCID since that PCID's last flush, or all global
 * pages since the last full flush; so flushing a PCID is to give it another ASID.
 * data = guest-physical page | PAGE_RIGHT_*.
 */
#define SOFT_TLB2_WAYS 4u
#define SOFT_TLB2_SIZE 2048u
#define SOFT_TLB2_LARGE_SIZE 128u
#define SOFT_TLB2_HUGE_SIZE 8u

struct soft_tlb2_way {
    uint64_t tag, data;
};

struct soft_tlb2_line {
    struct soft_tlb2_way ways[SOFT_TLB2_WAYS];          /* most recently filled first */
} __attribute__((aligned(64)));

struct soft_tlb2 {
    struct soft_tlb2_line small[SOFT_TLB2_SIZE];        /* 4 KiB pages */
    struct soft_tlb2_line large[SOFT_TLB2_LARGE_SIZE];  /* 2 MiB pages, halves of 4 MiB pages */
    struct soft_tlb2_way huge[SOFT_TLB2_HUGE_SIZE];     /* 1 GiB pages */
    uint16_t asid_of_pcid[4096];                        /* 0: none yet */
    uint16_t asid_last, asid_global;
    uint8_t huge_next;
    bool has_large, has_huge;
    bool is_ready;
    bool has_1g_pages, has_pse36, is_bit8_reserved;     /* of the model, for the page walk */
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
