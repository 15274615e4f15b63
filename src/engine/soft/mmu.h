/*
 * mmu.h - address translation inside engine/soft, beyond what vcpu.h offers
 *
 * Invariants of the software TLB (tlb.h has the layout):
 *  - The first level holds the current address space and global pages only; the second holds
 *    all address spaces, tagged.
 *  - Rights are folded into the first level at the fill; what changes them for translations
 *    that stay valid (CR0.WP, CR4.SMEP, DR0-3, DR7) calls soft_tlb_rights_changed.
 *  - A page with a data breakpoint on it, and device memory, never enter the first level, so
 *    that a hit needs no further check.
 *  - A write entry exists only for RAM whose page has its dirty bit set, SOFT_PAGE_WRITER of
 *    this vCPU set, and SOFT_PAGE_CODE clear.
 *  - code_cookie[slot] is not 0 only while exec_tag[slot] holds the page it was made for.
 */
#ifndef DOPPEL_ENGINE_SOFT_MMU_H
#define DOPPEL_ENGINE_SOFT_MMU_H

#include "engine/soft/vcpu.h"

/* Before anything else is done with a vCPU; soft_tlb_flush_all does it when it was forgotten. */
void soft_tlb_init(struct soft_vcpu *v);

/*
 * After a MOV to CR3 (st.cr3 is the new value): the first level is emptied but for global
 * pages. keep: bit 63 was set with CR4.PCIDE, the new PCID's translations stay valid (SDM
 * vol. 3, 4.10.4.1).
 */
void soft_tlb_switch(struct soft_vcpu *v, bool keep);
/* INVPCID type 1: all but global translations of `pcid`. */
void soft_tlb_flush_pcid(struct soft_vcpu *v, unsigned pcid);
/* INVPCID type 0: the translation of `addr` in `pcid`. */
void soft_tlb_flush_page_pcid(struct soft_vcpu *v, unsigned pcid, gva_t addr);
/* INVPCID type 3: all but global translations, of every PCID. Type 2 is soft_tlb_flush_all. */
void soft_tlb_flush_pcids(struct soft_vcpu *v);
/* What the current state permits has changed, translations have not: CR0.WP, CR4.SMEP, DRn. */
void soft_tlb_rights_changed(struct soft_vcpu *v);

/*
 * Load the PDPTE registers from the table at `cr3` as MOV to CR3 does in PAE mode: #GP(0), and
 * nothing changed, when a present one has reserved bits set. Also due when CR0.PG, CD or NW, or
 * CR4.PAE, PGE, PSE or SMEP change there (SDM vol. 3, 4.4.1).
 */
int soft_load_pdptrs(struct soft_vcpu *v, uint64_t cr3) SOFT_MUST_CHECK;

/* Host address of physical memory that the processor reads or writes itself; NULL: no RAM. */
static inline uint8_t *soft_physical(struct soft_vcpu *v, gpa_t addr, bool *is_writable)
{
    struct soft_ram *ram = soft_ram_find(v->engine, addr);

    if (ram == NULL)
        return NULL;
    *is_writable = !ram->is_rom;
    return ram->host + (addr - ram->addr);
}

/* The PCID in use: 0 without CR4.PCIDE. */
static inline unsigned soft_pcid(const struct soft_vcpu *v)
{
    return v->st.cr4 & CR4_PCIDE ? (unsigned)(v->st.cr3 & 0xfff) : 0;
}

/* The TLB set that serves accesses made `as`. */
static inline unsigned soft_tlb_set_of(const struct soft_vcpu *v, enum soft_as as)
{
    const struct cpu_state *st = &v->st;

    switch (as) {
    case SOFT_AS_CPL:
        return soft_tlb_current(v);
    case SOFT_AS_USER:
        return SOFT_TLB_USER;
    case SOFT_AS_KERNEL:
        return (st->cr4 & CR4_SMAP) && !(st->rflags & RFLAGS_AC) ? SOFT_TLB_KERNEL_SMAP
                                                                 : SOFT_TLB_KERNEL;
    default: /* implicit: EFLAGS.AC does not lift SMAP (SDM vol. 3, 4.6.1) */
        return st->cr4 & CR4_SMAP ? SOFT_TLB_KERNEL_SMAP : SOFT_TLB_KERNEL;
    }
}

/* Host address when the first level permits it, all `size` bytes within the page; else NULL. */
static inline uint8_t *soft_tlb_find_read(struct soft_vcpu *v, unsigned set, gva_t addr,
                                          unsigned size)
{
    struct soft_tlb_set *tlb = &v->tlb[set];
    unsigned slot = soft_tlb_slot(addr);

    if (UNLIKELY(addr + tlb->read_tag[slot] + size - 1 >= SOFT_PAGE_SIZE))
        return NULL;
    return (uint8_t *)(uintptr_t)(addr + tlb->read_addend[slot]);
}

static inline uint8_t *soft_tlb_find_write(struct soft_vcpu *v, unsigned set, gva_t addr,
                                           unsigned size)
{
    struct soft_tlb_set *tlb = &v->tlb[set];
    unsigned slot = soft_tlb_slot(addr);

    if (UNLIKELY(addr + tlb->write_tag[slot] + size - 1 >= SOFT_PAGE_SIZE))
        return NULL;
    return (uint8_t *)(uintptr_t)(addr + tlb->write_addend[slot]);
}

static inline uint8_t *soft_tlb_find_exec(struct soft_vcpu *v, unsigned set, gva_t addr)
{
    struct soft_tlb_set *tlb = &v->tlb[set];
    unsigned slot = soft_tlb_exec_slot(addr);

    if (UNLIKELY(addr + tlb->exec_tag[slot] >= SOFT_PAGE_SIZE))
        return NULL;
    return (uint8_t *)(uintptr_t)(addr + tlb->exec_addend[slot]);
}

/* tlb.c: the two levels, for mmu.c. */
struct soft_tlb_entry {
    gpa_t gpa;           /* 4 KiB page */
    uint32_t rights;     /* PAGE_RIGHT_* */
    unsigned page_shift; /* as mapped; large pages are noted for INVLPG */
};

/* Second level: a translation of `addr` in the current address space. */
bool soft_tlb2_find(struct soft_vcpu *v, gva_t addr, struct soft_tlb_entry *entry);
void soft_tlb2_insert(struct soft_vcpu *v, gva_t addr, const struct soft_tlb_entry *entry);

/*
 * First level: enter the page of `addr` for data; host is the page's start. Reads and writes have
 * halves of their own; the one that was not asked for is filled unless another page is in it.
 */
void soft_tlb_fill_data(struct soft_vcpu *v, unsigned set, gva_t addr,
                        const struct soft_tlb_entry *entry, uint8_t *host, bool is_for_write,
                        bool is_writable);
void soft_tlb_fill_exec(struct soft_vcpu *v, unsigned set, gva_t addr,
                        const struct soft_tlb_entry *entry, uint8_t *host);

#endif
