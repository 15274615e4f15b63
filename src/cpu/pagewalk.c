/*
 * pagewalk.c - translation of linear addresses through the guest's page tables
 *
 * An entry is read once a walk; its A and D bits are set by compare-and-swap against what was
 * read, so that a translation never mixes two versions of an entry that another processor
 * changes: then the walk starts again.
 *
 * Specification: Intel SDM vol. 3, chapter 4 (tables 4-4 to 4-20 for reserved bits, 4.6 for
 * rights, 4.7 for error codes); AMD64 APM vol. 2, chapter 5.
 */
#include "cpu/pagewalk.h"

#define ENTRY_P BIT(0)
#define ENTRY_W BIT(1)
#define ENTRY_U BIT(2)
#define ENTRY_A BIT(5)
#define ENTRY_D BIT(6)
#define ENTRY_PS BIT(7)
#define ENTRY_G BIT(8)
#define ENTRY_NX BIT(63)
#define ENTRY_ADDRESS UINT64_C(0x000ffffffffff000)

#define LEVELS_MAX 5

/* One entry used by the walk, top level first. */
struct walk_entry {
    uint8_t *host; /* NULL: it cannot be written */
    gpa_t addr;
    uint64_t value;
};

struct walk {
    const struct pagewalk *pw;
    struct walk_entry entries[LEVELS_MAX];
    unsigned count;
    uint64_t rights_and; /* AND of all entries: W, U */
    uint64_t rights_or;  /* OR of all entries: NX */
    gpa_t base;          /* of the page as mapped */
    unsigned page_shift;
};

enum walk_outcome { WALK_FOUND, WALK_NOT_PRESENT, WALK_RESERVED };

static inline void walk_read(struct walk *w, gpa_t addr, unsigned size)
{
    struct walk_entry *entry = &w->entries[w->count++];
    bool is_writable = true;
    uint8_t *host = w->pw->entry(w->pw->ctx, addr, &is_writable);

    entry->addr = addr;
    entry->host = is_writable ? host : NULL;
    if (host == NULL)
        entry->value = mask_bytes(size);
    else if (size == 8)
        entry->value = __atomic_load_n((uint64_t *)(void *)host, __ATOMIC_ACQUIRE);
    else
        entry->value = __atomic_load_n((uint32_t *)(void *)host, __ATOMIC_ACQUIRE);
    w->rights_and &= entry->value;
    w->rights_or |= entry->value;
}

/* 32-bit paging (SDM vol. 3, 4.3). */
static enum walk_outcome walk_legacy(struct walk *w, uint32_t addr)
{
    const struct pagewalk *pw = w->pw;
    uint64_t entry;

    walk_read(w, (pw->cr3 & 0xfffff000) | (gpa_t)(addr >> 22) << 2, 4);
    entry = w->entries[0].value;
    if (!(entry & ENTRY_P))
        return WALK_NOT_PRESENT;
    if ((entry & ENTRY_PS) && (pw->cr4 & CR4_PSE)) {
        uint64_t base = (entry & 0xffc00000) | bits(entry, 20, 13) << 32;
        /* bit 21, and address bits beyond what the processor has; without PSE-36 all of them */
        if ((entry & BIT(21)) || (!pw->has_pse36 && (base >> 32) != 0) ||
            (base >> pw->phys_bits) != 0)
            return WALK_RESERVED;
        w->base = base;
        w->page_shift = 22;
        return WALK_FOUND;
    }

    walk_read(w, (entry & 0xfffff000) | (gpa_t)bits(addr, 21, 12) << 2, 4);
    entry = w->entries[1].value;
    if (!(entry & ENTRY_P))
        return WALK_NOT_PRESENT;
    w->base = entry & 0xfffff000;
    w->page_shift = 12;
    return WALK_FOUND;
}

/* Reserved bits of a 64-bit entry at `level` (1 = page table). */
static inline uint64_t reserved_bits(const struct pagewalk *pw, unsigned level, bool is_leaf)
{
    uint64_t reserved = ENTRY_ADDRESS & -BIT(pw->phys_bits);

    if (!(pw->efer & EFER_NXE))
        reserved |= ENTRY_NX;
    if (!(pw->efer & EFER_LMA))
        reserved |= BIT(63) - BIT(52); /* PAE paging: 62:52 are not ignored */
    if (is_leaf) {
        if (level > 1) /* address bits below the page's size, bit 12 is PAT */
            reserved |= BIT(12 + 9 * (level - 1)) - BIT(13);
    } else if (level > 2 && pw->is_bit8_reserved) {
        reserved |= ENTRY_G;
    }
    if (level > 3 || (level == 3 && !pw->has_1g_pages))
        reserved |= ENTRY_PS;
    return reserved;
}

/* PAE, 4-level and 5-level paging from the table at `table` down (SDM vol. 3, 4.4.2, 4.5). */
static inline enum walk_outcome walk_long(struct walk *w, uint64_t addr, gpa_t table,
                                          unsigned level)
{
    for (;; level--) {
        unsigned shift = 12 + 9 * (level - 1);
        uint64_t entry;
        bool is_leaf;

        walk_read(w, table | (addr >> shift & 511) << 3, 8);
        entry = w->entries[w->count - 1].value;
        if (!(entry & ENTRY_P))
            return WALK_NOT_PRESENT;
        is_leaf = level == 1 || (level <= 3 && (entry & ENTRY_PS));
        if (UNLIKELY(entry & reserved_bits(w->pw, level, is_leaf)))
            return WALK_RESERVED;
        if (is_leaf) {
            w->base = entry & ENTRY_ADDRESS & -BIT(shift);
            w->page_shift = shift;
            return WALK_FOUND;
        }
        table = entry & ENTRY_ADDRESS;
    }
}

static enum walk_outcome walk_find(struct walk *w, uint64_t addr)
{
    const struct pagewalk *pw = w->pw;

    w->count = 0;
    w->rights_and = ~UINT64_C(0);
    w->rights_or = 0;
    if (pw->efer & EFER_LMA)
        return walk_long(w, addr, pw->cr3 & ENTRY_ADDRESS, pw->cr4 & CR4_LA57 ? 5 : 4);
    if (pw->cr4 & CR4_PAE) {
        uint64_t pdpte = pw->pae_pdpte[addr >> 30 & 3];

        /* present or not is all that it says; its other bits were checked when it was loaded */
        if (!(pdpte & ENTRY_P))
            return WALK_NOT_PRESENT;
        return walk_long(w, (uint32_t)addr, pdpte & ENTRY_ADDRESS, 2);
    }
    return walk_legacy(w, (uint32_t)addr);
}

/* Set A everywhere, and D in the leaf for a write. False: an entry has changed meanwhile. */
static bool walk_mark(struct walk *w, bool is_write, unsigned size)
{
    for (unsigned i = 0; i < w->count; i++) {
        struct walk_entry *entry = &w->entries[i];
        bool is_leaf = i == w->count - 1;
        uint64_t old = entry->value;
        uint64_t value = old | ENTRY_A | (is_leaf && is_write ? ENTRY_D : 0);
        bool is_done;

        if (value == old || entry->host == NULL)
            continue;
        if (size == 8) {
            is_done = __atomic_compare_exchange_n((uint64_t *)(void *)entry->host, &old, value,
                                                  false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        } else {
            uint32_t old32 = (uint32_t)old;
            is_done = __atomic_compare_exchange_n((uint32_t *)(void *)entry->host, &old32,
                                                  (uint32_t)value, false, __ATOMIC_SEQ_CST,
                                                  __ATOMIC_SEQ_CST);
        }
        if (!is_done)
            return false;
        w->pw->entry_written(w->pw->ctx, entry->addr);
    }
    return true;
}

/* Error code bits that say what kind of access it was (SDM vol. 3, 4.7). */
static uint32_t error_of_access(const struct pagewalk *pw, enum pagewalk_access access,
                                bool is_user)
{
    uint32_t error = is_user ? PF_ERR_U : 0;

    if (access == PAGEWALK_WRITE)
        error |= PF_ERR_W;
    if (access == PAGEWALK_FETCH &&
        ((pw->cr4 & CR4_SMEP) || ((pw->cr4 & CR4_PAE) && (pw->efer & EFER_NXE))))
        error |= PF_ERR_I;
    return error;
}

bool pagewalk(const struct pagewalk *pw, gva_t addr, enum pagewalk_access access, bool is_user,
              bool is_user_page_allowed, struct pagewalk_result *result)
{
    bool is_write = access == PAGEWALK_WRITE;
    unsigned entry_size = pw->cr4 & CR4_PAE ? 8 : 4;
    struct walk w;
    uint64_t leaf;

    w.pw = pw;
    do {
        enum walk_outcome outcome = walk_find(&w, addr);

        if (UNLIKELY(outcome != WALK_FOUND)) {
            result->error = error_of_access(pw, access, is_user) |
                            (outcome == WALK_RESERVED ? PF_ERR_P | PF_ERR_RSVD : 0);
            return false;
        }
        leaf = w.entries[w.count - 1].value;
        result->rights = (uint32_t)(w.rights_and & (ENTRY_W | ENTRY_U)) |
                         (w.rights_or & ENTRY_NX && entry_size == 8 ? PAGE_RIGHT_NX : 0) |
                         (is_write || (leaf & ENTRY_D) ? PAGE_RIGHT_DIRTY : 0) |
                         ((leaf & ENTRY_G) && (pw->cr4 & CR4_PGE) ? PAGE_RIGHT_GLOBAL : 0);
        if (!pagewalk_permits(pw->cr0, pw->cr4, result->rights, access, is_user,
                              is_user_page_allowed)) {
            result->error = error_of_access(pw, access, is_user) | PF_ERR_P;
            return false;
        }
    } while (UNLIKELY(!walk_mark(&w, is_write, entry_size)));

    result->gpa = w.base | (addr & (BIT(w.page_shift) - 1) & ~UINT64_C(0xfff));
    result->page_shift = w.page_shift;
    result->error = 0;
    return true;
}
