/*
 * pagewalk.h - translation of linear addresses through the guest's page tables
 *
 * Pure: all it knows of a machine is a callback that finds a page-table entry in host memory.
 * Calls no libc function, so that it may run while guest vector state is live.
 *
 * Specification: Intel SDM vol. 3, chapter 4; AMD64 APM vol. 2, chapter 5.
 */
#ifndef DOPPEL_CPU_PAGEWALK_H
#define DOPPEL_CPU_PAGEWALK_H

#include <stdbool.h>
#include <stdint.h>

#include "cpu/state.h"

/*
 * Rights of a translation, accumulated over its levels. The bits lie below the page number, so
 * that a cache may keep both in one word.
 */
#define PAGE_RIGHT_WRITE UINT32_C(0x002)  /* every level has R/W set */
#define PAGE_RIGHT_NX UINT32_C(0x008)     /* some level has XD set */
#define PAGE_RIGHT_USER UINT32_C(0x004)   /* every level has U/S set */
#define PAGE_RIGHT_DIRTY UINT32_C(0x040)  /* the D bit is set, now */
#define PAGE_RIGHT_GLOBAL UINT32_C(0x100) /* G, and CR4.PGE */

enum pagewalk_access { PAGEWALK_READ, PAGEWALK_WRITE, PAGEWALK_FETCH };

struct pagewalk {
    uint64_t cr0, cr3, cr4, efer;
    const uint64_t *pae_pdpte; /* the four PDPTE registers, for PAE paging */
    unsigned phys_bits;        /* MAXPHYADDR */
    bool has_1g_pages;
    bool has_pse36;
    bool is_bit8_reserved; /* AMD: bit 8 of non-leaf level-3-and-up entries is MBZ */

    /*
     * Host address of the entry (4 or 8 bytes, naturally aligned) at guest-physical `addr`, or
     * NULL when no memory is there: it reads as all ones then. *is_writable false: A and D
     * bits cannot be set (ROM).
     */
    uint8_t *(*entry)(void *ctx, gpa_t addr, bool *is_writable);
    /* The walk has set A or D in the entry at `addr`. */
    void (*entry_written)(void *ctx, gpa_t addr);
    void *ctx;
};

struct pagewalk_result {
    gpa_t gpa;           /* of the 4 KiB page that holds the address */
    unsigned page_shift; /* of the page as mapped: 12, 21, 22 or 30 */
    uint32_t rights;     /* PAGE_RIGHT_* */
    uint32_t error;      /* on a fault: error code of the #PF */
};

/*
 * Translate `addr`. is_user: made at CPL 3 and not implicit. is_user_page_allowed: a supervisor
 * data access to user pages is not stopped by SMAP (CR4.SMAP clear, or an explicit access with
 * EFLAGS.AC set). Accessed and dirty bits are set, atomically, only when the access is permitted.
 * Returns true, or false with result->error. CR0.PG must be set.
 */
bool pagewalk(const struct pagewalk *pw, gva_t addr, enum pagewalk_access access, bool is_user,
              bool is_user_page_allowed, struct pagewalk_result *result);

/* Do `rights` permit the access? (SDM vol. 3, 4.6.1; the D bit is not looked at.) */
static inline bool pagewalk_permits(uint64_t cr0, uint64_t cr4, uint32_t rights,
                                    enum pagewalk_access access, bool is_user,
                                    bool is_user_page_allowed)
{
    bool is_user_page = (rights & PAGE_RIGHT_USER) != 0;

    if (access == PAGEWALK_FETCH) {
        if (rights & PAGE_RIGHT_NX)
            return false;
        return is_user ? is_user_page : !(is_user_page && (cr4 & CR4_SMEP));
    }
    if (is_user ? !is_user_page : is_user_page && !is_user_page_allowed)
        return false;
    return access == PAGEWALK_READ || (rights & PAGE_RIGHT_WRITE) || (!is_user && !(cr0 & CR0_WP));
}

/* Reserved bits set in a present PAE PDPTE: loading it is #GP(0) (SDM vol. 3, 4.4.1). */
static inline bool pagewalk_pdpte_is_bad(uint64_t pdpte, unsigned phys_bits)
{
    return (pdpte & 1) && (pdpte & (UINT64_C(0x1e6) | -BIT(phys_bits))) != 0;
}

#endif
